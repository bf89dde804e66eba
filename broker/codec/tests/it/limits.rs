//! Sizes: what the decoder refuses before it is there, and what the encoder can not write.

use std::num::NonZeroU32;

use bytes::{Bytes, BytesMut};
use weir_codec::{
    AckProperties, Connect, Decoder, DecoderConfig, EncodeError, MessageProperties, OWN_FRAME_BELOW, Packet,
    Problem, Publish, PublishHeader, QoS, REMAINING_LENGTH_MAX, ReasonCode, Role, SubAck, Subscribe,
    SubscribeFilter, SubscriptionOptions, Unsubscribe, encode, encode_publish, encode_publish_head,
};

use crate::support::{Side, V5, V311, frame, id, topic, wire};

const NO_EXTRA: &[(&str, &str)] = &[];

#[test]
fn a_packet_over_the_limit_is_refused_with_its_header() {
    for version in [V311, V5] {
        let limited =
            |max_packet_size| Decoder::new(DecoderConfig { max_packet_size, role: Role::Client { version } });
        // 130 bytes: a header of 3 bytes, and 127 that only a longer length can say.
        let header = "30 80 01";
        let error = limited(130).decode(&mut wire(header)).unwrap_err();
        assert_eq!(error.problem, Problem::PacketTooLarge { size: 131, max: 130 });
        assert_eq!(error.reason(), ReasonCode::PacketTooLarge);
        let mut decoder = limited(131);
        assert_eq!(decoder.decode(&mut wire(header)), Ok(None));
        assert_eq!(decoder.frame_bytes_needed(), 128);

        let error = limited(1 << 20).decode(&mut wire("30 ff ff ff 7f")).unwrap_err();
        assert!(matches!(error.problem, Problem::PacketTooLarge { size: 268_435_460, .. }), "{error}");
        let mut unlimited = limited(u32::MAX);
        assert_eq!(unlimited.decode(&mut wire("30 ff ff ff 7f")), Ok(None));
        assert_eq!(unlimited.frame_bytes_needed(), 268_435_455);
    }
    let mut server = Decoder::new(DecoderConfig { max_packet_size: 100, role: Role::Server });
    let error = server.decode(&mut wire("10 63")).unwrap_err();
    assert_eq!((error.reason(), error.version), (ReasonCode::PacketTooLarge, None));
}

#[test]
fn the_limit_may_change_between_packets() {
    let mut decoder = Decoder::new(DecoderConfig { max_packet_size: 2, role: Role::Client { version: V5 } });
    let mut buf = wire("d0 00 40 02 00 01");
    assert_eq!(decoder.decode(&mut buf), Ok(Some(Packet::PingResp)));
    decoder.set_max_packet_size(4);
    assert!(matches!(decoder.decode(&mut buf), Ok(Some(Packet::PubAck(_)))));
    decoder.set_max_packet_size(3);
    let error = decoder.decode(&mut wire("40 02 00 01")).unwrap_err();
    assert_eq!(error.problem, Problem::PacketTooLarge { size: 4, max: 3 });
}

#[test]
fn decoding_reserves_nothing_by_what_the_peer_says() {
    let mut decoder =
        Decoder::new(DecoderConfig { max_packet_size: u32::MAX, role: Role::Client { version: V5 } });
    let mut buf = wire("30 ff ff ff 7f");
    let capacity = buf.capacity();
    assert_eq!(decoder.decode(&mut buf), Ok(None));
    assert_eq!(buf.capacity(), capacity);
    assert_eq!(buf.len(), 5);
}

/// A PUBLISH with so many of the shortest user properties.
fn publish_of(properties: usize) -> BytesMut {
    let block = properties * 5;
    let length = [(block & 0x7f) as u8 | 0x80, (block >> 7) as u8];
    let body = [&wire("00 01 't'")[..], &length, &wire("26 00 00 00 00").repeat(properties)].concat();
    frame(0x30, &body)
}

#[test]
fn user_properties_are_counted() {
    assert!(Side::Server.decode(V5, publish_of(1_000)).is_ok());
    let error = Side::Server.decode(V5, publish_of(1_001)).unwrap_err();
    assert_eq!(error.problem, Problem::TooManyUserProperties { max: 1_000 });
    assert_eq!(error.reason(), ReasonCode::QuotaExceeded);
}

/// Lists of short entries are what grows most from the wire to memory. Each is as long as fits the limit.
#[test]
fn a_packet_in_memory_is_at_most_32_times_its_length() {
    let body = |before: &str, entry: &str| {
        let (before, entry) = (wire(before), wire(entry));
        [&before[..], &entry.repeat((16_380 - before.len()) / entry.len())].concat()
    };
    let packets = [
        (Side::Server, publish_of(1_000)),
        (Side::Server, frame(0x82, &body("00 01 00", "00 00 00"))),
        (Side::Server, frame(0xa2, &body("00 01 00", "00 00"))),
        (Side::Client, frame(0x90, &body("00 01 00", "00"))),
    ];
    for (side, bytes) in packets {
        let length = bytes.len();
        let in_lists = match side.decode(V5, bytes).unwrap().unwrap() {
            Packet::Publish(publish) => {
                let entries = publish.properties.user_properties;
                entries.capacity() * size_of_val(&entries[0])
            }
            Packet::Subscribe(subscribe) => subscribe.filters.capacity() * size_of_val(&subscribe.filters[0]),
            Packet::Unsubscribe(packet) => packet.filters.capacity() * size_of_val(&packet.filters[0]),
            Packet::SubAck(suback) => suback.reasons.capacity(),
            other => panic!("{other:?}"),
        };
        assert!(in_lists <= 32 * length, "{in_lists} bytes for {length}");
    }
}

#[track_caller]
fn check_refused(packet: Packet, expected: EncodeError) {
    let mut buf = BytesMut::from("before");
    assert_eq!(encode(&packet, V5, &mut buf), Err(expected));
    assert_eq!(buf, "before", "the buffer is as it was");
}

// Conformance v5: 4.7.3-3
// Conformance v311: 4.7.3-3
#[test]
fn topics_over_two_bytes_of_length_do_not_exist() {
    let (header, properties) = (PublishHeader::default(), MessageProperties::default());
    let publish = |length: usize| {
        let topic = "x".repeat(length);
        encode_publish(&mut BytesMut::new(), V311, &header, &topic, &properties, NO_EXTRA, b"")
    };
    assert_eq!(publish(65_535), Ok(()));
    assert_eq!(publish(65_536), Err(EncodeError::FieldTooLong { bytes: 65_536 }));
    for subscribe in [true, false] {
        let filter = |length: usize| {
            let (filter, packet_id) = ("x".repeat(length), id(1));
            let packet = if subscribe {
                let options = SubscriptionOptions::default();
                let filters = vec![SubscribeFilter { filter: filter.into(), options }];
                Packet::Subscribe(Box::new(Subscribe {
                    packet_id,
                    filters,
                    subscription_identifier: None,
                    user_properties: vec![],
                }))
            } else {
                let filters = vec![filter.into()];
                Packet::Unsubscribe(Box::new(Unsubscribe { packet_id, filters, user_properties: vec![] }))
            };
            encode(&packet, V311, &mut BytesMut::new())
        };
        assert_eq!(filter(65_535), Ok(()));
        assert_eq!(filter(65_536), Err(EncodeError::FieldTooLong { bytes: 65_536 }));
    }
}

#[test]
fn strings_over_two_bytes_of_length_are_not_encoded() {
    let too_long = EncodeError::FieldTooLong { bytes: 65_536 };
    let with_id = |length: usize| {
        Packet::Connect(Box::new(Connect { client_id: "x".repeat(length).into(), ..Connect::default() }))
    };
    check_refused(with_id(65_536), too_long);
    assert_eq!(encode(&with_id(65_535), V5, &mut BytesMut::new()), Ok(()));
    let reason_string = Some("x".repeat(65_536).into());
    check_refused(
        Packet::SubAck(Box::new(SubAck {
            packet_id: id(1),
            reasons: vec![ReasonCode::Success],
            properties: AckProperties { reason_string, user_properties: vec![] },
        })),
        too_long,
    );
    let password = Some(Bytes::from(vec![0; 65_536]));
    check_refused(Packet::Connect(Box::new(Connect { password, ..Connect::default() })), too_long);
    let extra = [("name", "x".repeat(65_536))];
    let properties = MessageProperties::default();
    let header = PublishHeader::default();
    let mut buf = BytesMut::new();
    assert_eq!(encode_publish(&mut buf, V5, &header, "t", &properties, &extra, b""), Err(too_long));
    assert_eq!(encode_publish(&mut buf, V311, &header, "t", &properties, &extra, b""), Ok(()));
}

#[test]
fn a_packet_over_four_bytes_of_length_is_not_encoded() {
    // Zeroed memory that is never written to, or read more than to be measured.
    let payload = vec![0; REMAINING_LENGTH_MAX as usize];
    let (header, properties) = (PublishHeader::default(), MessageProperties::default());
    let mut buf = BytesMut::new();
    let refused = encode_publish(&mut buf, V311, &header, "t", &properties, NO_EXTRA, &payload);
    assert_eq!(refused, Err(EncodeError::PacketTooLong { bytes: payload.len() + 3 }));
    assert!(buf.is_empty());
}

#[test]
fn a_packet_that_contradicts_itself_is_not_encoded() {
    let (properties, mut buf) = (MessageProperties::default(), BytesMut::new());
    let mut publish =
        |header, topic| encode_publish(&mut buf, V5, &header, topic, &properties, NO_EXTRA, b"");
    let contradicts =
        |result: Result<(), EncodeError>| assert!(matches!(result, Err(EncodeError::Contradiction(_))));
    let header = PublishHeader::default;
    contradicts(publish(PublishHeader { qos: QoS::AtLeastOnce, ..header() }, "t"));
    contradicts(publish(PublishHeader { packet_id: Some(id(1)), ..header() }, "t"));
    contradicts(publish(PublishHeader { dup: true, ..header() }, "t"));
    contradicts(publish(header(), ""));
    for number in [0, REMAINING_LENGTH_MAX + 1] {
        let identified =
            PublishHeader { subscription_identifiers: [number].into_iter().collect(), ..header() };
        assert_eq!(publish(identified, "t"), Err(EncodeError::SubscriptionIdentifier(number)));
    }
    let empty = EncodeError::Contradiction("SUBSCRIBE without a filter");
    let subscribe = |identifier, filters| {
        Packet::Subscribe(Box::new(Subscribe {
            packet_id: id(1),
            subscription_identifier: NonZeroU32::new(identifier),
            user_properties: vec![],
            filters,
        }))
    };
    check_refused(subscribe(1, vec![]), empty);
    let filter = SubscribeFilter { filter: "f".into(), options: SubscriptionOptions::default() };
    check_refused(
        subscribe(REMAINING_LENGTH_MAX + 1, vec![filter]),
        EncodeError::SubscriptionIdentifier(REMAINING_LENGTH_MAX + 1),
    );
    let unsubscribe = Unsubscribe { packet_id: id(1), filters: vec![], user_properties: vec![] };
    check_refused(
        Packet::Unsubscribe(Box::new(unsubscribe)),
        EncodeError::Contradiction("UNSUBSCRIBE without a filter"),
    );
    let publish = Publish {
        header: PublishHeader { qos: QoS::ExactlyOnce, ..header() },
        topic: Some(topic("t")),
        payload: Bytes::new(),
        properties: MessageProperties::default(),
    };
    check_refused(
        Packet::Publish(Box::new(publish)),
        EncodeError::Contradiction("PUBLISH has a packet id exactly if its QoS is not 0"),
    );
}

#[test]
fn a_message_keeps_alive_little_beside_itself() {
    #[track_caller]
    fn check(payload: usize, own: bool) {
        let mut buf = BytesMut::with_capacity(1 << 20);
        let header = PublishHeader::default();
        let properties = MessageProperties::default();
        let extra = NO_EXTRA;
        let payload = vec![7; payload];
        for _ in 0..2 {
            encode_publish(&mut buf, V311, &header, "t", &properties, extra, &payload).unwrap();
        }
        let role = Role::Client { version: V311 };
        let mut decoder = Decoder::new(DecoderConfig { max_packet_size: u32::MAX, role });
        let read = buf.as_ptr_range();
        let Some(Packet::Publish(publish)) = decoder.decode(&mut buf).unwrap() else { panic!("no PUBLISH") };
        assert_eq!(publish.payload, payload);
        let topic = publish.topic.as_ref().unwrap();
        for part in [topic.as_str().as_bytes(), &publish.payload[..]] {
            assert_eq!(!read.contains(&part.as_ptr()), own, "{} bytes", payload.len());
        }
    }
    for payload in [1, 60, 100, 1000, 2000, OWN_FRAME_BELOW - 8] {
        check(payload, true);
    }
    check(OWN_FRAME_BELOW, false);
}

#[test]
fn a_head_and_its_payload_are_the_whole_publish() {
    for payload in [0, 1, 200, 20_000] {
        let payload = vec![7; payload];
        let header = PublishHeader { message_expiry_interval: Some(1), ..PublishHeader::default() };
        let properties = MessageProperties { content_type: Some("x".into()), ..MessageProperties::default() };
        let extra = [("a", "b")];
        let version = V5;
        let (mut whole, mut head) = (BytesMut::new(), BytesMut::new());
        encode_publish(&mut whole, version, &header, "t", &properties, &extra, &payload).unwrap();
        encode_publish_head(&mut head, version, &header, "t", &properties, &extra, payload.len()).unwrap();
        head.extend_from_slice(&payload);
        assert_eq!(head, whole);
    }
    let (mut buf, too_long) = (BytesMut::new(), 1 << 28);
    let (header, properties) = (PublishHeader::default(), MessageProperties::default());
    let extra = NO_EXTRA;
    let refused = encode_publish_head(&mut buf, V5, &header, "t", &properties, extra, too_long);
    assert!(matches!(refused, Err(EncodeError::PacketTooLong { .. })), "{refused:?}");
    assert!(buf.is_empty());
}
