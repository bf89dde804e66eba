//! Writes the data types of section 1.5 and properties. One body function serves two sinks: the first counts,
//! so that lengths can be written in front of what they measure, the second writes.

use bytes::{BufMut, BytesMut};
use bytestring::ByteString;

use crate::REMAINING_LENGTH_MAX;
use crate::error::EncodeError;
use crate::packet::UserProperties;
use crate::property::id;

/// Where bytes go.
pub(super) trait Sink {
    fn put(&mut self, bytes: &[u8]);

    /// Notes why what is written can not be sent. Only counting needs to: it comes first.
    fn reject(&mut self, why: EncodeError);

    fn u8(&mut self, value: u8) {
        self.put(&[value]);
    }

    fn u16(&mut self, value: u16) {
        self.put(&value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    fn variable_byte_integer(&mut self, mut value: u32) {
        loop {
            let [low, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                return self.u8(low & 0x7f);
            }
            self.u8(low | 0x80);
        }
    }

    fn binary(&mut self, bytes: &[u8]) {
        match u16::try_from(bytes.len()) {
            Ok(length) => {
                self.u16(length);
                self.put(bytes);
            }
            Err(_) => self.reject(EncodeError::FieldTooLong { bytes: bytes.len() }),
        }
    }

    fn string(&mut self, text: &str) {
        self.binary(text.as_bytes());
    }

    fn flag_property(&mut self, id: u8, value: Option<bool>) {
        if let Some(value) = value {
            self.put(&[id, u8::from(value)]);
        }
    }

    fn u16_property(&mut self, id: u8, value: Option<u16>) {
        if let Some(value) = value {
            self.u8(id);
            self.u16(value);
        }
    }

    fn u32_property(&mut self, id: u8, value: Option<u32>) {
        if let Some(value) = value {
            self.u8(id);
            self.u32(value);
        }
    }

    fn string_property(&mut self, id: u8, value: Option<&ByteString>) {
        if let Some(value) = value {
            self.u8(id);
            self.string(value);
        }
    }

    fn binary_property(&mut self, id: u8, value: Option<&[u8]>) {
        if let Some(value) = value {
            self.u8(id);
            self.binary(value);
        }
    }

    fn subscription_identifier(&mut self, value: u32) {
        if value == 0 || value > REMAINING_LENGTH_MAX {
            return self.reject(EncodeError::SubscriptionIdentifier(value));
        }
        self.u8(id::SUBSCRIPTION_IDENTIFIER);
        self.variable_byte_integer(value);
    }

    fn user_property(&mut self, name: &str, value: &str) {
        self.u8(id::USER_PROPERTY);
        self.string(name);
        self.string(value);
    }

    fn user_properties(&mut self, properties: &UserProperties) {
        for (name, value) in properties {
            self.user_property(name, value);
        }
    }

    /// A property block, its length in front.
    fn properties(&mut self, of: &impl WriteProperties)
    where
        Self: Sized,
    {
        let mut counter = Counter::default();
        of.write_properties(&mut counter);
        self.variable_byte_integer(counter.length_u32());
        of.write_properties(self);
    }
}

/// A packet, or a part of one, that has properties.
pub(super) trait WriteProperties {
    fn write_properties<S: Sink>(&self, out: &mut S);
}

/// Measures.
#[derive(Default)]
pub(super) struct Counter {
    bytes: usize,
    rejected: Option<EncodeError>,
}

impl Counter {
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// Counts bytes that are written elsewhere.
    pub(super) const fn add(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Saturated: what does not fit is refused before it is written.
    fn length_u32(&self) -> u32 {
        u32::try_from(self.bytes).unwrap_or(u32::MAX)
    }

    /// The number of bytes counted, if a packet may have as many.
    pub(super) fn remaining_length(&self) -> Result<u32, EncodeError> {
        match self.rejected {
            Some(why) => Err(why),
            None if self.length_u32() > REMAINING_LENGTH_MAX => {
                Err(EncodeError::PacketTooLong { bytes: self.bytes })
            }
            None => Ok(self.length_u32()),
        }
    }
}

impl Sink for Counter {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len());
    }

    fn reject(&mut self, why: EncodeError) {
        self.rejected.get_or_insert(why);
    }
}

impl Sink for BytesMut {
    fn put(&mut self, bytes: &[u8]) {
        self.put_slice(bytes);
    }

    fn reject(&mut self, _why: EncodeError) {}
}
