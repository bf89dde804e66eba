//! What holds for every packet and every stream of bytes.

use bytes::{BufMut, BytesMut};
use proptest::collection::vec;
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};
use proptest::sample::Index;
use weir_codec::{
    Decoder, MessageProperties, Packet, ProtocolVersion, PublishHeader, Role, encode, encode_publish,
    encoded_len, fuzz, publish_len,
};

use crate::arbitrary::{connect, packet};
use crate::support::{Side, V5, V31, V311, connected, decoder, topic};

fn version() -> impl Strategy<Value = ProtocolVersion> {
    proptest::sample::select(vec![V31, V311, V5])
}

/// What one side sends in one connection, CONNECT included.
fn conversation() -> impl Strategy<Value = (Side, ProtocolVersion, Vec<Packet>)> {
    (version(), any::<bool>()).prop_flat_map(|(version, to_server)| {
        let side = if to_server { Side::Server } else { Side::Client };
        (connect(version), vec(packet(side, version), 1..6)).prop_map(move |(connect, mut packets)| {
            if to_server {
                packets.insert(0, connect);
            }
            (side, version, packets)
        })
    })
}

fn role(side: Side, version: ProtocolVersion) -> Role {
    match side {
        Side::Server => Role::Server,
        Side::Client => Role::Client { version },
    }
}

fn stream_of(packets: &[Packet], version: ProtocolVersion) -> BytesMut {
    let mut stream = BytesMut::new();
    for packet in packets {
        let before = stream.len();
        encode(packet, version, &mut stream).unwrap();
        assert_eq!(stream.len() - before, encoded_len(packet, version), "{packet:?}");
    }
    stream
}

fn decode_all(decoder: &mut Decoder, buf: &mut BytesMut) -> Vec<Packet> {
    std::iter::from_fn(|| decoder.decode(buf).unwrap()).collect()
}

/// What a fuzzer has found worth keeping: see `broker/fuzz/README.md`.
#[test]
fn the_corpus_of_the_fuzzer_is_safe() {
    let mut inputs = 0;
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/decode")).unwrap() {
        let path = entry.unwrap().path();
        let data = std::fs::read(&path).unwrap();
        assert!(std::panic::catch_unwind(|| fuzz::decode(&data)).is_ok(), "{}", path.display());
        inputs += 1;
    }
    assert!(inputs > 100, "{inputs} inputs");
}

proptest! {
    // Conformance v5: 1.5.5-1
    #[test]
    fn every_packet_comes_back_as_it_was((side, version, packets) in conversation()) {
        let mut stream = stream_of(&packets, version);
        let mut decoder = decoder(role(side, version));
        prop_assert_eq!(decode_all(&mut decoder, &mut stream), packets);
        prop_assert!(stream.is_empty());
        prop_assert_eq!(decoder.version(), Some(version));
    }

    #[test]
    fn any_split_gives_the_same_packets(
        (side, version, packets) in conversation(),
        cuts in vec(any::<Index>(), 0..8),
    ) {
        let stream = stream_of(&packets, version).freeze();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.push(stream.len());
        cuts.sort_unstable();
        let mut decoder = decoder(role(side, version));
        let (mut buf, mut decoded, mut from) = (BytesMut::new(), Vec::new(), 0);
        for to in cuts {
            buf.extend_from_slice(&stream[from..to]);
            decoded.extend(decode_all(&mut decoder, &mut buf));
            from = to;
        }
        prop_assert_eq!(decoded, packets);
    }

    #[test]
    fn a_packet_comes_with_its_last_byte_and_is_waited_for_exactly(
        (side, version, packets) in conversation()
    ) {
        let mut decoder = decoder(role(side, version));
        for packet in packets {
            let bytes = stream_of(std::slice::from_ref(&packet), version);
            let mut buf = BytesMut::new();
            prop_assert_eq!(decoder.decode(&mut buf), Ok(None));
            // Reading what is said to be missing at least never reads into the next packet.
            while buf.len() + decoder.frame_bytes_needed() < bytes.len() {
                let next = buf.len() + decoder.frame_bytes_needed();
                buf.extend_from_slice(&bytes[buf.len()..next]);
                prop_assert_eq!(decoder.decode(&mut buf), Ok(None));
            }
            prop_assert_eq!(buf.len() + decoder.frame_bytes_needed(), bytes.len());
            buf.extend_from_slice(&bytes[buf.len()..bytes.len() - 1]);
            prop_assert_eq!(decoder.decode(&mut buf), Ok(None));
            buf.put_u8(bytes[bytes.len() - 1]);
            prop_assert_eq!(decoder.decode(&mut buf), Ok(Some(packet)));
            prop_assert_eq!(decoder.frame_bytes_needed(), 2);
            prop_assert!(buf.is_empty());
        }
    }

    #[test]
    fn any_bytes_are_safe(data in vec(any::<u8>(), 0..256)) {
        fuzz::decode(&data);
    }

    #[test]
    fn damaged_packets_are_safe(
        (_, version, packets) in conversation(),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
    ) {
        let mut stream = stream_of(&packets, version);
        for (at, byte) in damage {
            let at = at.index(stream.len());
            stream[at] = byte;
        }
        fuzz::decode(&stream);
    }

    /// Random bytes seldom get past the fixed header, so it is given.
    #[test]
    fn any_body_is_safe(kind in 1..16_u8, body in vec(any::<u8>(), 0..64), version in version()) {
        let flags = if matches!(kind, 6 | 8 | 10) { 2 } else { 0 };
        let mut stream = BytesMut::new();
        let connect = weir_codec::Connect { version, ..Default::default() };
        encode(&Packet::Connect(Box::new(connect)), version, &mut stream).unwrap();
        stream.unsplit(crate::support::frame(kind << 4 | flags, &body));
        fuzz::decode(&stream);
        fuzz::decode(&crate::support::frame(kind << 4 | flags, &body));
    }

    #[test]
    fn a_delivery_is_the_packet_it_stands_for(
        version in version(),
        packet in packet(Side::Client, V5),
        extra in vec(("[a-z]{0,3}", "[0-9]{0,3}"), 0..3),
    ) {
        let Packet::Publish(mut publish) = packet else { return Ok(()) };
        publish.topic.get_or_insert_with(|| topic("t"));
        let mut buf = BytesMut::new();
        let text = publish.topic.as_ref().unwrap().as_str();
        encode_publish(&mut buf, version, &publish.header, text, &publish.properties, &extra, &publish.payload)
            .unwrap();
        let payload_len = publish.payload.len();
        let length = publish_len(version, &publish.header, text, &publish.properties, &extra, payload_len);
        prop_assert_eq!(buf.len(), length);
        let expected = match version {
            ProtocolVersion::V5 => {
                let extra = extra.into_iter().map(|(name, value)| (name.into(), value.into()));
                publish.properties.user_properties.extend(extra);
                publish
            }
            ProtocolVersion::V31 | ProtocolVersion::V311 => {
                publish.properties = MessageProperties::default();
                publish.header = PublishHeader {
                    topic_alias: None,
                    message_expiry_interval: None,
                    subscription_identifiers: Default::default(),
                    ..publish.header
                };
                publish
            }
        };
        let decoded = connected(Side::Client, version).decode(&mut buf);
        prop_assert_eq!(decoded, Ok(Some(Packet::Publish(expected))));
    }
}

#[test]
fn a_connect_does_not_keep_the_read_buffer() {
    let mut buf = BytesMut::new();
    let connect = weir_codec::Connect { client_id: "id".into(), ..Default::default() };
    encode(&Packet::Connect(Box::new(connect)), V5, &mut buf).unwrap();
    let received = buf.as_ptr_range();
    let packet = decoder(Role::Server).decode(&mut buf);
    let Ok(Some(Packet::Connect(connect))) = packet else { panic!("{packet:?}") };
    assert!(
        !received.contains(&connect.client_id.as_bytes().as_ptr()),
        "the client identifier was not copied"
    );
}
