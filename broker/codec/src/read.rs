//! Reads the data types of section 1.5 from one packet. Strings and binary data share the packet's buffer.

use bytes::{Buf, Bytes};
use bytestring::ByteString;

use crate::error::{Parsed, Problem};
use crate::packet::PacketId;

/// The unread rest of one packet, or of a part of it.
pub(crate) struct Reader {
    rest: Bytes,
}

/// A variable byte integer and the number of bytes it took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VariableByteInteger {
    pub(crate) value: u32,
    pub(crate) bytes: usize,
    /// In the shortest form.
    pub(crate) shortest: bool,
}

impl VariableByteInteger {
    /// Reads the integer at the beginning of `bytes`: `Ok(None)` if it goes on after them.
    pub(crate) fn read(bytes: &[u8], field: &'static str) -> Parsed<Option<Self>> {
        let mut value = 0;
        for ((byte, shift), length) in bytes.iter().zip([0, 7, 14, 21]).zip(1..) {
            value |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(Some(Self { value, bytes: length, shortest: *byte != 0 || length == 1 }));
            }
        }
        if bytes.len() < 4 { Ok(None) } else { Err(Problem::VariableByteInteger.at(field)) }
    }
}

impl Reader {
    pub(crate) const fn new(packet: Bytes) -> Self {
        Self { rest: packet }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Everything that is left.
    pub(crate) fn take_rest(&mut self) -> Bytes {
        std::mem::take(&mut self.rest)
    }

    /// Nothing may be left.
    pub(crate) fn finish(&self) -> Parsed<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(Problem::TrailingBytes(self.rest.len()).at("end")) }
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Parsed<u8> {
        self.rest.try_get_u8().map_err(|_| Problem::Truncated.at(field))
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Parsed<u16> {
        self.rest.try_get_u16().map_err(|_| Problem::Truncated.at(field))
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Parsed<u32> {
        self.rest.try_get_u32().map_err(|_| Problem::Truncated.at(field))
    }

    /// A variable byte integer inside of a packet: in the shortest form only.
    pub(crate) fn variable_byte_integer(&mut self, field: &'static str) -> Parsed<u32> {
        let number = VariableByteInteger::read(&self.rest, field)?.ok_or(Problem::Truncated.at(field))?;
        if !number.shortest {
            return Err(Problem::VariableByteInteger.at(field));
        }
        self.rest.advance(number.bytes);
        Ok(number.value)
    }

    /// The next `length` bytes.
    pub(crate) fn take(&mut self, length: usize, field: &'static str) -> Parsed<Bytes> {
        if length > self.rest.len() {
            return Err(Problem::Truncated.at(field));
        }
        Ok(self.rest.split_to(length))
    }

    pub(crate) fn binary(&mut self, field: &'static str) -> Parsed<Bytes> {
        let length = self.u16(field)?;
        self.take(usize::from(length), field)
    }

    /// Surrogates and overlong forms are ill-formed UTF-8; control characters other than null may be there.
    pub(crate) fn string(&mut self, field: &'static str) -> Parsed<ByteString> {
        let text = self.binary(field)?;
        if text.contains(&0) {
            return Err(Problem::NullCharacter.at(field));
        }
        ByteString::try_from(text).map_err(|_| Problem::Utf8.at(field))
    }

    pub(crate) fn packet_id(&mut self) -> Parsed<PacketId> {
        let id = self.u16("packet identifier")?;
        PacketId::new(id).ok_or(Problem::PacketIdZero.at("packet identifier"))
    }
}
