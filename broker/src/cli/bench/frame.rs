//! Just enough of MQTT to measure it: frames found and read in place, without an allocation per message. The codec
//! makes the connection; from then on only these packets come.

use weir_codec::{PacketType, ProtocolVersion, QoS, ReasonCode};

/// A packet in the receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    /// Packet type and flags.
    first: u8,
    body: &'a [u8],
    /// Bytes of the whole packet.
    pub(super) length: usize,
}

/// What a load generator wants to know of a PUBLISH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Delivery<'a> {
    pub(super) qos: QoS,
    /// Zero at QoS 0.
    pub(super) packet_id: u16,
    pub(super) payload: &'a [u8],
}

/// Bytes that are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed packet from the server")]
pub(super) struct Malformed;

/// The first packet in `bytes`, if it is there as a whole.
pub(super) fn first(bytes: &[u8]) -> Result<Option<Frame<'_>>, Malformed> {
    let Some((&first, rest)) = bytes.split_first() else { return Ok(None) };
    let Some((length, width)) = variable_byte_integer(rest)? else { return Ok(None) };
    let body = rest.get(width..).and_then(|rest| rest.get(..length));
    Ok(body.map(|body| Frame { first, body, length: 1 + width + length }))
}

/// A number and how many bytes it takes.
fn variable_byte_integer(bytes: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    let mut value = 0;
    for (n, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * n);
        if byte & 0x80 == 0 {
            return Ok(Some((value, n + 1)));
        }
    }
    if bytes.len() < 4 { Ok(None) } else { Err(Malformed) }
}

impl<'a> Frame<'a> {
    pub(super) fn packet_type(&self) -> Result<PacketType, Malformed> {
        PacketType::from_u8(self.first >> 4).ok_or(Malformed)
    }

    /// The parts of a PUBLISH.
    pub(super) fn delivery(&self, version: ProtocolVersion) -> Result<Delivery<'a>, Malformed> {
        let qos = QoS::from_u8(self.first >> 1 & 0b11).ok_or(Malformed)?;
        let (topic_length, rest) = u16_and_rest(self.body)?;
        let mut rest = rest.get(usize::from(topic_length)..).ok_or(Malformed)?;
        let mut packet_id = 0;
        if qos > QoS::AtMostOnce {
            (packet_id, rest) = u16_and_rest(rest)?;
        }
        if version == ProtocolVersion::V5 {
            let (length, width) = variable_byte_integer(rest)?.ok_or(Malformed)?;
            rest = rest.get(width + length..).ok_or(Malformed)?;
        }
        Ok(Delivery { qos, packet_id, payload: rest })
    }

    /// Packet id and reason code of PUBACK, PUBREC, PUBREL or PUBCOMP.
    pub(super) fn ack(&self) -> Result<(u16, u8), Malformed> {
        let (packet_id, rest) = u16_and_rest(self.body)?;
        Ok((packet_id, rest.first().copied().unwrap_or(ReasonCode::Success.as_u8())))
    }

    /// Reason code of a DISCONNECT.
    pub(super) fn disconnect_reason(&self) -> u8 {
        self.body.first().copied().unwrap_or(ReasonCode::Success.as_u8())
    }
}

/// A successful PUBACK, PUBREC, PUBREL or PUBCOMP, in either version.
pub(super) fn success(packet: PacketType, packet_id: u16) -> [u8; 4] {
    let flags = if packet == PacketType::PubRel { 0b0010 } else { 0 };
    let [high, low] = packet_id.to_be_bytes();
    [packet.as_u8() << 4 | flags, 2, high, low]
}

/// A DISCONNECT without a reason, in either version.
pub(super) const DISCONNECT: [u8; 2] = [0xe0, 0];

fn u16_and_rest(bytes: &[u8]) -> Result<(u16, &[u8]), Malformed> {
    let (number, rest) = bytes.split_first_chunk().ok_or(Malformed)?;
    Ok((u16::from_be_bytes(*number), rest))
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use weir_codec::{
        Ack, Decoder, DecoderConfig, MessageProperties, Packet, PacketId, Publish, PublishHeader, Role,
        encode,
    };
    use weir_topic::TopicName;

    use super::*;

    #[test]
    fn deliveries_are_read_as_the_codec_writes_them() {
        for version in [ProtocolVersion::V311, ProtocolVersion::V5] {
            for (qos, id, size) in
                [(QoS::AtMostOnce, 0, 0), (QoS::AtLeastOnce, 7, 300), (QoS::ExactlyOnce, 65_535, 20_000)]
            {
                let user_properties = match version {
                    ProtocolVersion::V5 => vec![("name".into(), "x".repeat(200).into())],
                    ProtocolVersion::V31 | ProtocolVersion::V311 => vec![],
                };
                let publish = Publish {
                    header: PublishHeader { qos, packet_id: PacketId::new(id), ..PublishHeader::default() },
                    topic: Some(TopicName::parse("a/b").unwrap()),
                    payload: Bytes::from(vec![b'x'; size]),
                    properties: MessageProperties { user_properties, ..MessageProperties::default() },
                };
                let mut bytes = BytesMut::new();
                encode(&Packet::Publish(Box::new(publish.clone())), version, &mut bytes).unwrap();
                for cut in 0..bytes.len().min(400) {
                    assert_eq!(first(&bytes[..cut]), Ok(None));
                }
                let length = bytes.len();
                bytes.extend_from_slice(b"next");
                let frame = first(&bytes).unwrap().unwrap();
                assert_eq!((frame.packet_type(), frame.length), (Ok(PacketType::Publish), length));
                let expected = Delivery { qos, packet_id: id, payload: &publish.payload };
                assert_eq!(frame.delivery(version), Ok(expected));
            }
        }
    }

    #[test]
    fn acknowledgements_are_the_codecs() {
        let version = ProtocolVersion::V5;
        let packet_id = PacketId::new(0x1234).unwrap();
        let ack = |reason| Ack { packet_id, reason, properties: None };
        for packet in [Packet::PubAck, Packet::PubRec, Packet::PubRel, Packet::PubComp] {
            let mut bytes = BytesMut::new();
            let packet = packet(ack(ReasonCode::Success));
            encode(&packet, version, &mut bytes).unwrap();
            assert_eq!(success(packet.packet_type(), 0x1234), bytes[..]);
            assert_eq!(first(&bytes).unwrap().unwrap().ack(), Ok((0x1234, 0)));
        }
        let mut bytes = BytesMut::new();
        encode(&Packet::PubAck(ack(ReasonCode::QuotaExceeded)), version, &mut bytes).unwrap();
        assert_eq!(first(&bytes).unwrap().unwrap().ack(), Ok((0x1234, 0x97)));
        let config = DecoderConfig { max_packet_size: 100, role: Role::Client { version } };
        let decoded = Decoder::new(config).decode(&mut BytesMut::from(&DISCONNECT[..])).unwrap();
        assert_eq!(decoded, Some(Packet::Disconnect(Box::default())));
    }

    #[test]
    fn nonsense_is_malformed() {
        assert_eq!(first(&[0x30, 0xff, 0xff, 0xff, 0xff]), Err(Malformed));
        let publish =
            |body: &'static [u8]| Frame { first: 0x32, body, length: 0 }.delivery(ProtocolVersion::V5);
        for body in
            [&b""[..], b"\x00", b"\x00\x05abc", b"\x00\x01a", b"\x00\x01a\x00\x01", b"\x00\x01a\x00\x01\x05a"]
        {
            assert_eq!(publish(body), Err(Malformed), "{body:?}");
        }
        assert_eq!(
            Frame { first: 0x36, body: b"\x00\x01a\x00\x01\x00", length: 0 }.delivery(ProtocolVersion::V5),
            Err(Malformed)
        );
        assert_eq!(Frame { first: 0x40, body: b"\x01", length: 0 }.ack(), Err(Malformed));
    }
}
