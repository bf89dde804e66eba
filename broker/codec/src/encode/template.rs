//! Writes many PUBLISH packets at QoS 0 that have most of their properties in common: those are encoded once.

use bytes::{BufMut, BytesMut};

use super::frame_len;
use super::sink::{Counter, Sink};
use crate::REMAINING_LENGTH_MAX;
use crate::error::EncodeError;
use crate::packet::{ProtocolVersion, QoS};
use crate::packet_type::PacketType;
use crate::property::id;

/// Bytes of a string.
const STRING_BYTES_MAX: usize = 65_535;

/// A PUBLISH at QoS 0 of which topic, payload and the values of some user properties change from packet to packet.
/// MQTT 3.1.1 gets no properties.
#[derive(Clone, Debug)]
pub struct PublishTemplate {
    version: ProtocolVersion,
    /// Properties that stay the same.
    fixed: BytesMut,
    /// Each user property whose value changes, up to that.
    names: Vec<BytesMut>,
}

impl PublishTemplate {
    /// With these subscription identifiers and user properties in each packet, and behind them user properties with
    /// these names.
    ///
    /// # Errors
    /// Whatever can not be expressed on the wire.
    pub fn new(
        version: ProtocolVersion,
        subscription_identifiers: &[u32],
        fixed: &[(&str, &str)],
        names: &[&str],
    ) -> Result<Self, EncodeError> {
        if !version.is_v5() {
            return Ok(Self { version, fixed: BytesMut::new(), names: Vec::new() });
        }
        fn write(out: &mut impl Sink, identifiers: &[u32], fixed: &[(&str, &str)]) {
            for identifier in identifiers {
                out.subscription_identifier(*identifier);
            }
            for (name, value) in fixed {
                out.user_property(name, value);
            }
        }
        let mut counter = Counter::default();
        write(&mut counter, subscription_identifiers, fixed);
        names.iter().for_each(|name| counter.string(name));
        counter.remaining_length()?;
        let mut bytes = BytesMut::new();
        write(&mut bytes, subscription_identifiers, fixed);
        let encoded = names.iter().map(|name| {
            let mut bytes = BytesMut::new();
            bytes.u8(id::USER_PROPERTY);
            bytes.string(name);
            bytes
        });
        Ok(Self { version, fixed: bytes, names: encoded.collect() })
    }

    /// Appends a packet of at most `size_max` bytes to `buf`; false if it is longer, and `buf` unchanged. `values` are
    /// those of the user properties in their order; where there are fewer, the last properties are left out.
    ///
    /// # Errors
    /// Whatever can not be expressed on the wire; `buf` is then unchanged.
    pub fn write(
        &self,
        buf: &mut BytesMut,
        size_max: u32,
        topic: &str,
        values: &[&str],
        payload: &[u8],
    ) -> Result<bool, EncodeError> {
        let too_long = values.iter().map(|value| value.len()).chain([topic.len()]);
        if let Some(bytes) = too_long.into_iter().find(|length| *length > STRING_BYTES_MAX) {
            return Err(EncodeError::FieldTooLong { bytes });
        }
        let mut properties = Counter::default();
        properties.add(self.fixed.len());
        for (name, value) in self.names.iter().zip(values) {
            properties.add(name.len());
            properties.add(2);
            properties.add(value.len());
        }
        let mut counter = Counter::default();
        counter.add(2);
        counter.add(topic.len());
        let properties_length = u32::try_from(properties.bytes()).unwrap_or(u32::MAX);
        if self.version.is_v5() {
            counter.variable_byte_integer(properties_length.min(REMAINING_LENGTH_MAX));
            counter.add(properties.bytes());
        }
        counter.add(payload.len());
        let remaining = counter.remaining_length()?;
        let length = frame_len(counter.bytes());
        if u32::try_from(length).is_ok_and(|length| length > size_max) {
            return Ok(false);
        }
        buf.reserve(length);
        buf.u8(PacketType::Publish.as_u8() << 4 | QoS::AtMostOnce.as_u8() << 1);
        buf.variable_byte_integer(remaining);
        buf.string(topic);
        if self.version.is_v5() {
            buf.variable_byte_integer(properties_length);
            buf.put_slice(&self.fixed);
            for (name, value) in self.names.iter().zip(values) {
                buf.put_slice(name);
                buf.string(value);
            }
        }
        buf.put_slice(payload);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encode::encode_publish;
    use crate::packet::{MessageProperties, PublishHeader};

    #[test]
    fn packets_are_those_of_the_other_encoder() {
        let names = ["offset", "ts", "key"];
        for version in [ProtocolVersion::V31, ProtocolVersion::V311, ProtocolVersion::V5] {
            for identifiers in [&[][..], &[200_000]] {
                let fixed = [("stream", "s"), ("shard", "12")];
                let template = PublishTemplate::new(version, identifiers, &fixed, &names).unwrap();
                for (size, values) in [
                    (0, &["1", "2"][..]),
                    (100, &["18446744073709551615", "", "k"]),
                    (20_000, &["1", "2", "3"]),
                ] {
                    let payload = vec![b'p'; size];
                    let extra: Vec<_> =
                        fixed.into_iter().chain(names.into_iter().zip(values.iter().copied())).collect();
                    let header = PublishHeader {
                        subscription_identifiers: identifiers.iter().copied().collect(),
                        ..PublishHeader::default()
                    };
                    let (mut ours, mut theirs) = (BytesMut::from("before"), BytesMut::from("before"));
                    let none = MessageProperties::default();
                    encode_publish(&mut theirs, version, &header, "a/b", &none, &extra, &payload).unwrap();
                    let length = u32::try_from(theirs.len() - 6).unwrap();
                    assert_eq!(template.write(&mut ours, length - 1, "a/b", values, &payload), Ok(false));
                    assert_eq!(ours, "before");
                    assert_eq!(template.write(&mut ours, length, "a/b", values, &payload), Ok(true));
                    assert_eq!(ours, theirs);
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_expressed_is_refused() {
        let v5 = ProtocolVersion::V5;
        let long = "x".repeat(STRING_BYTES_MAX + 1);
        assert!(PublishTemplate::new(v5, &[0], &[], &[]).is_err());
        assert!(PublishTemplate::new(v5, &[], &[("a", &long)], &[]).is_err());
        assert!(PublishTemplate::new(v5, &[], &[], &[&long]).is_err());
        let template = PublishTemplate::new(v5, &[], &[], &["a"]).unwrap();
        let mut out = BytesMut::new();
        for (topic, value) in [(&*long, ""), ("a", &*long)] {
            let written = template.write(&mut out, u32::MAX, topic, &[value], b"");
            assert_eq!(written, Err(EncodeError::FieldTooLong { bytes: STRING_BYTES_MAX + 1 }));
        }
        let huge = vec![0; REMAINING_LENGTH_MAX as usize];
        assert!(template.write(&mut out, u32::MAX, "a", &["b"], &huge).is_err());
        assert!(out.is_empty());
    }
}
