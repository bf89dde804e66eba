//! Packets as text, and the checks that the tables of the other modules use.

use bytes::{Bytes, BytesMut};
use weir_codec::{
    Ack, Connect, DecodeError, Decoder, DecoderConfig, Packet, PacketId, Problem, ProtocolVersion,
    ReasonCode, Role, encode, encoded_len,
};
use weir_topic::TopicName;

pub(crate) const V31: ProtocolVersion = ProtocolVersion::V31;
pub(crate) const V311: ProtocolVersion = ProtocolVersion::V311;
pub(crate) const V5: ProtocolVersion = ProtocolVersion::V5;

type AckKind = fn(Ack) -> Packet;

/// The four acknowledgements with their first bytes.
pub(crate) const ACKNOWLEDGEMENTS: [(u8, AckKind); 4] =
    [(0x40, Packet::PubAck), (0x50, Packet::PubRec), (0x62, Packet::PubRel), (0x70, Packet::PubComp)];

/// Bytes from hexadecimal numbers, `'text'` and comments from `#` to the end of the line.
pub(crate) fn wire(text: &str) -> BytesMut {
    let mut bytes = BytesMut::new();
    for line in text.lines() {
        let mut rest = line.trim_start();
        while !rest.is_empty() && !rest.starts_with('#') {
            if let Some(quoted) = rest.strip_prefix('\'') {
                let (text, behind) = quoted.split_once('\'').expect("quotes are closed");
                bytes.extend_from_slice(text.as_bytes());
                rest = behind.trim_start();
            } else {
                let (number, behind) = rest.split_once(' ').unwrap_or((rest, ""));
                bytes.extend_from_slice(&[u8::from_str_radix(number, 16).expect("is hexadecimal")]);
                rest = behind.trim_start();
            }
        }
    }
    bytes
}

/// A packet of the given first byte and body, the length in between.
pub(crate) fn frame(first: u8, body: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::from(&[first][..]);
    let mut length = body.len();
    while length > 0x7f {
        bytes.extend_from_slice(&[(length & 0x7f) as u8 | 0x80]);
        length >>= 7;
    }
    bytes.extend_from_slice(&[length as u8]);
    bytes.extend_from_slice(body);
    bytes
}

pub(crate) fn id(n: u16) -> PacketId {
    PacketId::new(n).unwrap()
}

pub(crate) fn topic(text: &'static str) -> TopicName {
    TopicName::parse(text).unwrap()
}

pub(crate) fn decoder(role: Role) -> Decoder {
    Decoder::new(DecoderConfig { max_packet_size: 1 << 20, role })
}

/// A decoder that has its version: of a server that has seen the CONNECT, or of a client.
pub(crate) fn connected(side: Side, version: ProtocolVersion) -> Decoder {
    match side {
        Side::Client => decoder(Role::Client { version }),
        Side::Server => {
            let mut decoder = decoder(Role::Server);
            let mut buf = BytesMut::new();
            let connect = Connect { version, ..Connect::default() };
            encode(&Packet::Connect(Box::new(connect)), version, &mut buf).unwrap();
            assert!(matches!(decoder.decode(&mut buf), Ok(Some(Packet::Connect(_)))));
            decoder
        }
    }
}

/// The side that decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

impl Side {
    /// Decodes the one packet in `bytes`, with a connection before it unless it is a CONNECT.
    pub(crate) fn decode(
        self,
        version: ProtocolVersion,
        mut bytes: BytesMut,
    ) -> Result<Option<Packet>, DecodeError> {
        let is_connect = bytes.first().is_some_and(|first| first >> 4 == 1);
        let mut decoder = if is_connect { decoder(Role::Server) } else { connected(self, version) };
        let packet = decoder.decode(&mut bytes)?;
        assert!(packet.is_none() || bytes.is_empty(), "{} bytes are left", bytes.len());
        Ok(packet)
    }
}

/// `text` is decoded to `packet`.
#[track_caller]
pub(crate) fn check_decode(side: Side, version: ProtocolVersion, text: &str, packet: Packet) {
    assert_eq!(side.decode(version, wire(text)), Ok(Some(packet)), "decoding\n{text}");
}

/// `packet` is written as `text`, of the length foretold.
#[track_caller]
pub(crate) fn check_encode(version: ProtocolVersion, packet: &Packet, text: &str) {
    let mut buf = BytesMut::new();
    encode(packet, version, &mut buf).unwrap();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x} ")).collect::<String>();
    assert_eq!(hex(&buf), hex(&wire(text)), "encoding\n{text}");
    assert_eq!(encoded_len(packet, version), buf.len());
}

/// `text` and `packet` are the same, in both directions.
#[track_caller]
pub(crate) fn check(side: Side, version: ProtocolVersion, text: &str, packet: Packet) {
    check_encode(version, &packet, text);
    check_decode(side, version, text, packet);
}

/// `bytes` are refused for `problem`, with `reason`.
#[track_caller]
pub(crate) fn check_refused(
    side: Side,
    version: ProtocolVersion,
    bytes: impl Into<BytesMut>,
    problem: Problem,
    reason: ReasonCode,
) {
    let bytes = bytes.into();
    let what = format!("{:02x?}", Bytes::from(bytes.clone()));
    let error = match side.decode(version, bytes) {
        Err(error) => error,
        Ok(packet) => panic!("{what} gave {packet:?} and not {problem:?}"),
    };
    assert_eq!((error.problem, error.reason()), (problem, reason), "{what}");
}
