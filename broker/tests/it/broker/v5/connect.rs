//! CONNECT and CONNACK (3.1, 3.2).

use std::num::NonZeroU32;

use weir::responses::ResponseInformation;
use weir_codec::{ConnAck, Connect, Packet, ReasonCode};

use super::super::client::{AtLeastOnce, AtMostOnce, V5, V311, clean, persistent, publish, text, will};
use super::super::{TestBroker, config, memory};
use super::{frame, sent, told, wire};

/// What precedes the payload of a CONNECT with these flags.
fn head(flags: u8) -> String {
    format!("00 04 'MQTT' 05 {flags:x} 00 00 00")
}

/// The only answer to these bytes is a CONNACK with an error, and then the connection ends.
#[track_caller]
fn refused(broker: &TestBroker, bytes: &[u8]) -> impl Future<Output = ConnAck> {
    let caller = std::panic::Location::caller();
    async move {
        match &sent(broker, bytes).await.rest().await[..] {
            [Packet::ConnAck(connack)] if connack.code.is_error() && !connack.session_present => {
                (**connack).clone()
            }
            other => panic!("{bytes:x?} at {caller}: {other:?}"),
        }
    }
}

// Conformance v5: 3.1.0-1, 3.14.0-1
#[tokio::test]
async fn what_comes_before_connect_ends_the_connection_without_a_word() {
    let broker = TestBroker::start().await;
    for first in
        ["30 04 00 01 't' 00", "82 07 00 01 00 00 01 't' 00", "c0 00", "e0 00", "f0 00", "20 03 00 00 00"]
    {
        assert_eq!(sent(&broker, &wire(first)).await.rest().await, [], "{first}");
    }
}

// Conformance v5: 3.1.0-2, 3.2.0-2, 4.13.1-1
#[tokio::test]
async fn a_second_connect_ends_the_connection() {
    let broker = TestBroker::start().await;
    told(&broker, &frame(0x10, &(head(2) + " 00 01 'c'")), ReasonCode::ProtocolError).await;
}

// Conformance v5: 3.1.2-1, 3.1.2-2, 3.2.2-6, 3.2.2-7, 3.2.2-8
#[tokio::test]
async fn other_protocols_and_versions_are_refused() {
    let broker = TestBroker::start().await;
    let names =
        ["00 04 'MqTT' 05 02 00 00 00 00 01 'c'", "00 05 'MQTTX' 05 02 00 00 00 00 01 'c'", "00 00 05 02"];
    for name in names {
        assert_eq!(sent(&broker, &frame(0x10, name)).await.rest().await, [], "{name}");
    }
    let connack = refused(&broker, &frame(0x10, "00 04 'MQTT' 06 02 00 00 00 00 01 'c'")).await;
    assert_eq!(connack.code, ReasonCode::UnsupportedProtocolVersion);
}

// Conformance v5: 3.1.2-3, 3.1.2-11, 3.1.2-12, 3.1.2-13, 3.1.4-1, 3.2.2-6, 3.2.2-7
#[tokio::test]
async fn flags_that_may_not_be_end_the_connection() {
    let broker = TestBroker::start().await;
    // Reserved; QoS 1, QoS 2 and retain of a will that is not there; QoS 3 of one that is.
    for flags in [0x03, 0x0a, 0x12, 0x22] {
        let connack = refused(&broker, &frame(0x10, &(head(flags) + " 00 01 'c'"))).await;
        assert_eq!(connack.code, ReasonCode::MalformedPacket, "{flags:x}");
    }
    let connack = refused(&broker, &frame(0x10, &(head(0x1e) + " 00 01 'c' 00 00 01 'w' 00 00"))).await;
    assert_eq!(connack.code, ReasonCode::MalformedPacket);
}

// Conformance v5: 3.1.2-9, 3.1.2-16, 3.1.2-17, 3.1.2-18, 3.1.2-19, 3.1.3-3
#[tokio::test]
async fn fields_are_there_exactly_if_their_flags_say_so() {
    let broker = TestBroker::start().await;
    for (flags, payload) in [
        (0x02, ""),
        // Will: absent, without its topic, without its payload.
        (0x06, "00 01 'c'"),
        (0x06, "00 01 'c' 00"),
        (0x06, "00 01 'c' 00 00 01 'w'"),
        (0x02, "00 01 'c' 00 00 01 'w' 00 00"),
        // User name.
        (0x82, "00 01 'c'"),
        (0x02, "00 01 'c' 00 01 'u'"),
        // Password, alone and behind a user name.
        (0x42, "00 01 'c'"),
        (0xc2, "00 01 'c' 00 01 'u'"),
        (0x82, "00 01 'c' 00 01 'u' 00 01 'p'"),
    ] {
        let connack = refused(&broker, &frame(0x10, &format!("{} {payload}", head(flags)))).await;
        assert_eq!(connack.code, ReasonCode::MalformedPacket, "{flags:x} {payload}");
    }
}

// Conformance v5: 1.5.4-1, 1.5.4-2, 3.1.3-4, 3.1.3-11, 3.1.3-12
#[tokio::test]
async fn strings_that_are_no_text_end_the_connection() {
    let broker = TestBroker::start().await;
    for bad in ["01 ff", "03 ed a0 80", "01 00"] {
        for (flags, payload) in [
            (0x02, format!("00 {bad}")),
            (0x06, format!("00 01 'c' 00 00 {bad} 00 00")),
            (0x82, format!("00 01 'c' 00 {bad}")),
        ] {
            let connack = refused(&broker, &frame(0x10, &format!("{} {payload}", head(flags)))).await;
            assert_eq!(connack.code, ReasonCode::MalformedPacket, "{payload}");
        }
    }
}

// Conformance v5: 3.1.2-7, 3.1.2-9, 3.1.2-17, 3.1.2-19, 3.1.3-1, 3.1.3-3
#[tokio::test]
async fn the_fields_of_the_payload_come_in_their_order() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.subscriber("watcher", "w/#", AtLeastOnce).await;
    let payload = "00 01 'c' 05 02 00 00 00 63 00 03 'w/t' 00 04 'gone' 00 04 'user' 00 02 00 ff";
    let mut client = sent(&broker, &frame(0x10, &format!("{} {payload}", head(0xce)))).await;
    assert!(matches!(client.recv().await, Packet::ConnAck(connack) if connack.code == ReasonCode::Success));
    client.vanish();
    let will = watcher.take().await;
    assert_eq!((will.topic.as_ref().unwrap().as_str(), text(&will)), ("w/t", "gone"));
    assert!(will.header.message_expiry_interval.is_some_and(|left| left <= 0x63));
}

// Conformance v5: 3.1.3-5
#[tokio::test]
async fn client_identifiers_of_digits_and_letters_are_taken() {
    let broker = TestBroker::start().await;
    let characters = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    for start in (0..characters.len()).step_by(23) {
        let id = &characters[start..characters.len().min(start + 23)];
        broker.connect(persistent(id, V5)).await.disconnect().await;
        broker.resume(persistent(id, V5)).await.disconnect().await;
    }
    for id in ["0", "z", "A"] {
        broker.clean(id).await.disconnect().await;
    }
}

// Conformance v5: 3.1.3-2, 3.1.3-6, 3.1.3-7, 3.2.2-16
#[tokio::test]
async fn an_empty_client_identifier_is_replaced_by_a_new_one() {
    let broker = TestBroker::start().await;
    let (mut first, connack) = broker.connack(persistent("", V5)).await;
    let id = connack.assigned_client_identifier.unwrap();
    assert!(!id.is_empty() && !connack.session_present);
    let (_second, connack) = broker.connack(persistent("", V5)).await;
    assert!(!connack.session_present && connack.assigned_client_identifier.unwrap() != id);
    first.subscribe("t", AtLeastOnce).await;
    first.disconnect().await;
    broker.publish("t", &["kept"]).await;
    let (mut back, connack) = broker.connack(persistent(&id, V5)).await;
    assert!(connack.session_present && connack.assigned_client_identifier.is_none());
    assert_eq!(text(&back.take().await), "kept");
}

// Conformance v5: 3.1.3-8, 3.1.4-2, 3.1.4-6, 3.2.2-7, 4.13.2-1
#[tokio::test]
async fn nothing_after_a_refused_connect_is_processed() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.subscriber("watcher", "#", AtMostOnce).await;
    let mut refused_will = clean("c", V5);
    refused_will.will = Some(will("$queue/all", "x"));
    for (connect, code) in [
        (clean(&"x".repeat(257), V5), ReasonCode::ClientIdentifierNotValid),
        (refused_will, ReasonCode::TopicNameInvalid),
    ] {
        let mut client = broker.open(V5).await;
        let publish = Packet::Publish(Box::new(publish(AtMostOnce, 0, "t", "x")));
        client.send_all([Packet::Connect(Box::new(connect)), publish, Packet::PingReq]).await;
        match &client.rest().await[..] {
            [Packet::ConnAck(connack)] => assert_eq!(connack.code, code),
            other => panic!("{other:?}"),
        }
    }
    watcher.synced().await;
}

// Conformance v5: 3.1.2-4, 3.1.2-5, 3.1.2-6, 3.1.3-2, 3.1.4-4, 3.2.2-2, 3.2.2-3
#[tokio::test]
async fn clean_start_decides_what_is_left_of_a_session() {
    let broker = TestBroker::start().await;
    let anew = || Connect { clean_start: true, ..persistent("c", V5) };
    // Whether the client starts clean, and whether a session is then told and its subscription there.
    for (connect, present) in [(persistent("c", V5), false), (persistent("c", V5), true), (anew(), false)] {
        let (mut client, connack) = broker.connack(connect).await;
        assert_eq!((connack.code, connack.session_present), (ReasonCode::Success, present));
        broker.publish("t", &["x"]).await;
        if present {
            assert_eq!(text(&client.take().await), "x");
        }
        client.synced().await;
        client.subscribe("t", AtLeastOnce).await;
        client.disconnect().await;
    }
    let (_, connack) = broker.connack(persistent("another", V5)).await;
    assert!(!connack.session_present);
}

// Conformance v5: 2.2.2-1, 3.1.4-5, 3.2.0-1, 3.2.0-2, 3.2.2-1, 3.2.2-3
#[tokio::test]
async fn connack_comes_first_and_once() {
    let broker = TestBroker::start().await;
    let mut client = broker.connect(persistent("c", V5)).await;
    client.subscribe("t", AtLeastOnce).await;
    client.disconnect().await;
    broker.publish("t", &["0", "1", "2"]).await;
    let mut client = broker.open(V5).await;
    // What follows the CONNECT at once is answered later.
    client.send_all([Packet::Connect(Box::new(persistent("c", V5))), Packet::PingReq]).await;
    let bytes = client.recv_bytes(4).await;
    assert_eq!((bytes[0], bytes[2], bytes[3]), (0x20, 0x01, 0x00));
    let mut packets = Vec::new();
    for _ in 0..5 {
        packets.push(client.recv().await);
    }
    let is_connack = |packet: &Packet| matches!(packet, Packet::ConnAck(_));
    assert!(is_connack(&packets[0]) && !packets[1..].iter().any(is_connack), "{packets:?}");
    client.synced().await;
}

// Conformance v5: 3.1.2-28
#[tokio::test]
async fn response_information_is_not_told_unasked() {
    let mut config = config();
    config.response_information = Some(ResponseInformation::parse("responses/%c").unwrap());
    let broker = TestBroker::start_with(config, &memory()).await;
    let none = TestBroker::start().await;
    for (asks, told) in [(false, None), (true, Some("responses/c"))] {
        let connect = Connect { request_response_information: asks, ..clean("c", V5) };
        let (mut client, connack) = broker.connack(connect.clone()).await;
        assert_eq!(connack.response_information.as_deref(), told);
        client.subscribe("responses/c", AtMostOnce).await;
        assert_eq!(none.connack(connect).await.1.response_information, None, "nothing is configured");
    }
    let (_, connack) = broker.connack(clean("c", V311)).await;
    assert_eq!(connack.response_information, None);
}

// Conformance v5: 3.1.2-29
#[tokio::test]
async fn a_client_may_want_no_problem_information() {
    let broker = TestBroker::start().await;
    for wanted in [None, Some(true), Some(false)] {
        let connect = Connect { request_problem_information: wanted, ..clean("c", V5) };
        let mut client = broker.connect(connect).await;
        let told = wanted != Some(false);
        let suback = client
            .try_subscribe(vec![super::super::client::filter("$queue/none", AtLeastOnce)], None, Vec::new())
            .await;
        assert_eq!(suback.properties.reason_string.is_some(), told, "{suback:?}");
        client.post(publish(AtLeastOnce, 1, "$queue/none", "x")).await;
        match client.recv().await {
            Packet::PubAck(ack) => assert_eq!(ack.properties.is_some(), told, "{ack:?}"),
            other => panic!("{other:?}"),
        }
        client.send_bytes(&wire("36 00")).await;
        match client.recv().await {
            Packet::Disconnect(disconnect) => assert!(disconnect.reason_string.is_some()),
            other => panic!("{other:?}"),
        }
    }
}

// Conformance v5: 3.1.2-24, 3.2.2-19
#[tokio::test]
async fn a_refusal_is_no_larger_than_the_client_takes() {
    let broker = TestBroker::start().await;
    let connect =
        |size| Connect { maximum_packet_size: NonZeroU32::new(size), ..clean(&"x".repeat(257), V5) };
    let (_, connack) = broker.connack(connect(1000)).await;
    assert!(connack.reason_string.is_some());
    let (mut client, connack) = broker.connack(connect(20)).await;
    assert_eq!((connack.code, connack.reason_string), (ReasonCode::ClientIdentifierNotValid, None));
    client.ended().await;
    // Not even that fits.
    let mut client = broker.open(V5).await;
    client.send(Packet::Connect(Box::new(connect(4)))).await;
    assert_eq!(client.rest().await, []);
}

// Conformance v5: 3.2.2-22
#[tokio::test]
async fn the_server_tells_a_keep_alive_only_where_it_has_its_own() {
    let broker = TestBroker::start().await;
    let connect = |keep_alive| Connect { keep_alive, ..clean("c", V5) };
    let (mut client, connack) = broker.connack(connect(1)).await;
    assert_eq!(connack.server_keep_alive, None);
    client.told(ReasonCode::KeepAliveTimeout).await;

    let mut config = config();
    config.limits.keep_alive_max = std::time::Duration::from_secs(1);
    let broker = TestBroker::start_with(config, &memory()).await;
    for keep_alive in [0, 2, 65_535] {
        let (client, connack) = broker.connack(connect(keep_alive)).await;
        assert_eq!(connack.server_keep_alive, Some(1), "{keep_alive}");
        client.disconnect().await;
    }
    broker.connect(connect(65_535)).await.told(ReasonCode::KeepAliveTimeout).await;
    let (_, connack) = broker.connack(connect(1)).await;
    assert_eq!(connack.server_keep_alive, None);
}

// Conformance v5: 4.12.0-1, 4.12.0-6, 4.12.0-7, 4.13.2-1
#[tokio::test]
async fn methods_of_authentication_are_known_or_the_connection_ends() {
    let broker = TestBroker::start().await;
    let connect = Connect { authentication_method: Some("unknown".into()), ..clean("c", V5) };
    let (mut client, connack) = broker.connack(connect).await;
    assert_eq!(connack.code, ReasonCode::BadAuthenticationMethod);
    client.ended().await;
    // Who names none hears of none, and cannot begin later.
    let (_, connack) = broker.connack(clean("c", V5)).await;
    assert_eq!((connack.code, connack.authentication_method), (ReasonCode::Success, None));
    told(&broker, &frame(0xf0, "19 04 15 00 01 'm'"), ReasonCode::ProtocolError).await;
}
