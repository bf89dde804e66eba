//! What a fuzzer calls: arbitrary bytes against every rule that holds for all input. Panics are findings.

use bytes::BytesMut;

use crate::decode::{Decoder, DecoderConfig, Role};
use crate::encode::{encode, encoded_len};
use crate::error::DecodeError;
use crate::packet::{Connect, Packet, ProtocolVersion};

/// Small, so that a fuzzer meets the limit.
pub const MAX_PACKET_SIZE: u32 = 4096;

/// Decodes `data` in each role, as a whole and byte by byte, and checks that both give the same packets and the
/// same end, that the caller's buffer never needs more than the limit, and that every packet decoded can be
/// encoded and decoded again to the same.
///
/// # Panics
/// If one of these does not hold.
pub fn decode(data: &[u8]) {
    let roles = [
        Role::Server,
        Role::Client { version: ProtocolVersion::V31 },
        Role::Client { version: ProtocolVersion::V311 },
        Role::Client { version: ProtocolVersion::V5 },
    ];
    for role in roles {
        let whole = decode_in_pieces(data, role, data.len());
        assert_eq!(whole, decode_in_pieces(data, role, 1), "the split of the input made a difference");
        for packet in &whole.packets {
            check_round_trip(packet, role, whole.version);
        }
    }
}

/// What came out of a stream.
#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    packets: Vec<Packet>,
    error: Option<DecodeError>,
    version: ProtocolVersion,
}

fn decode_in_pieces(data: &[u8], role: Role, piece: usize) -> Decoded {
    let mut decoder = Decoder::new(DecoderConfig { max_packet_size: MAX_PACKET_SIZE, role });
    let mut buf = BytesMut::new();
    let mut packets = Vec::new();
    let mut error = None;
    'stream: for piece in data.chunks(piece.max(1)) {
        buf.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut buf) {
                Ok(Some(packet)) => packets.push(packet),
                Ok(None) => break,
                Err(why) => {
                    error = Some(why);
                    break 'stream;
                }
            }
        }
        let needed = buf.len().saturating_add(decoder.frame_bytes_needed());
        assert!(needed <= MAX_PACKET_SIZE as usize, "a packet over the limit is waited for");
        assert!(decoder.frame_bytes_needed() > 0, "nothing is missing, and nothing came");
    }
    Decoded { packets, error, version: decoder.version().unwrap_or_default() }
}

fn check_round_trip(packet: &Packet, role: Role, version: ProtocolVersion) {
    let mut buf = BytesMut::new();
    encode(packet, version, &mut buf).expect("a decoded packet has nothing that can not be written");
    assert_eq!(buf.len(), encoded_len(packet, version), "the length was foretold wrongly");
    let mut stream = BytesMut::new();
    let server_knows_no_version = role == Role::Server && !matches!(packet, Packet::Connect(_));
    if server_knows_no_version {
        let connect = Packet::Connect(Box::new(Connect { version, ..Connect::default() }));
        encode(&connect, version, &mut stream).expect("nothing in it is long");
    }
    stream.unsplit(buf);
    let mut decoder = Decoder::new(DecoderConfig { max_packet_size: u32::MAX, role });
    if server_knows_no_version {
        assert!(matches!(decoder.decode(&mut stream), Ok(Some(Packet::Connect(_)))), "CONNECT is refused");
    }
    assert_eq!(
        decoder.decode(&mut stream).as_ref(),
        Ok(&Some(packet.clone())),
        "a packet changed on its way"
    );
}
