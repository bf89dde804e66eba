//! PUBLISH (3.3), its properties and topics (4.7).

use std::num::NonZeroU16;

use bytes::Bytes;
use weir_codec::{Connect, MessageProperties, Packet, Publish, ReasonCode, Will};
use weir_topic::TopicName;

use super::super::client::{
    AtLeastOnce, AtMostOnce, ExactlyOnce, V5, again, clean, filter, persistent, publish, retained, text, will,
};
use super::super::{TestBroker, memory};
use super::{frame, told};

fn properties() -> MessageProperties {
    let user = [("b", "2"), ("a", "1"), ("b", "\u{feff}2"), ("", "")];
    MessageProperties {
        payload_format_utf8: Some(true),
        content_type: Some("\u{feff}text/plain".into()),
        response_topic: Some(TopicName::parse("answers/here").unwrap()),
        correlation_data: Some(Bytes::from_static(&[0, 0xff, 7])),
        user_properties: user.map(|(name, value)| (name.into(), value.into())).to_vec(),
    }
}

// Conformance v5: 2.2.1-3, 3.3.1-4, 3.3.2-1, 3.3.2-2, 3.3.2-8, 3.3.4-6, 4.7.0-1, 4.7.3-1, 4.7.3-2, 4.13.1-1
#[tokio::test]
async fn a_publish_that_breaks_the_rules_ends_the_connection() {
    use ReasonCode::{MalformedPacket, ProtocolError, TopicAliasInvalid, TopicNameInvalid};
    let broker = TestBroker::start().await;
    for (first, body, reason) in [
        (0x36, "00 01 't' 00 01 00", MalformedPacket),
        (0x32, "00 01 't' 00 00 00", ProtocolError),
        (0x30, "00 01 ff 00", MalformedPacket),
        (0x30, "00 01 00 00", MalformedPacket),
        (0x30, "00 03 't/#' 00", TopicNameInvalid),
        (0x30, "00 03 '+/t' 00", TopicNameInvalid),
        (0x30, "00 00 00", ProtocolError),
        (0x30, "00 01 't' 03 23 00 00", TopicAliasInvalid),
        (0x30, "00 00 03 23 00 01", ProtocolError),
        (0x30, "00 01 't' 02 0b 01", ProtocolError),
    ] {
        told(&broker, &frame(first, body), reason).await;
    }
}

// Conformance v5: 1.5.7-1, 3.3.2-13, 3.3.2-14, 3.3.2-19
#[tokio::test]
async fn properties_that_are_no_text_end_the_connection() {
    let broker = TestBroker::start().await;
    for property in
        ["03 00 01 ff", "03 00 01 00", "08 00 01 ff", "08 00 01 00", "26 00 01 ff 00 00", "26 00 00 00 01 00"]
    {
        let body = format!("00 01 't' {:x} {property}", property.split(' ').count());
        told(&broker, &frame(0x30, &body), ReasonCode::MalformedPacket).await;
    }
    for wildcard in ["'#'", "'+'"] {
        let body = format!("00 01 't' 04 08 00 01 {wildcard}");
        told(&broker, &frame(0x30, &body), ReasonCode::ProtocolError).await;
    }
}

// Conformance v5: 1.5.4-3, 3.3.2-3, 3.3.2-4, 3.3.2-15, 3.3.2-16, 3.3.2-17, 3.3.2-18, 3.3.2-20
#[tokio::test]
async fn properties_reach_subscribers_as_they_were() {
    let store = memory();
    let broker = TestBroker::start_on(&store).await;
    let mut live = broker.subscriber("live", "t/+", ExactlyOnce).await;
    let mut inbox = broker.connect(persistent("inbox", V5)).await;
    inbox.subscribe("t/#", ExactlyOnce).await;
    inbox.disconnect().await;
    let mut publisher = broker.clean("p").await;
    for (qos, n) in [(AtMostOnce, 0), (AtLeastOnce, 1), (ExactlyOnce, 2)] {
        let message = Publish { properties: properties(), ..retained(qos, n, "t/\u{feff}", "x") };
        publisher.post(message).await;
        if qos == ExactlyOnce {
            publisher.pubreced(2).await;
        }
        let received = live.message().await;
        assert_eq!((&received.properties, text(&received)), (&properties(), "x"));
        assert_eq!(received.topic.as_ref().unwrap().as_str(), "t/\u{feff}");
        if qos == AtLeastOnce {
            live.puback(&received, ReasonCode::Success).await;
            publisher.pubacked(1).await;
        }
    }
    drop(broker);
    let broker = TestBroker::start_on(&store).await;
    let mut inbox = broker.resume(persistent("inbox", V5)).await;
    let mut late = broker.subscriber("late", "t/+", AtLeastOnce).await;
    for received in [inbox.take().await, inbox.take().await, late.take().await] {
        assert_eq!(received.properties, properties());
    }
}

// Conformance v5: 3.1.3-10
#[tokio::test]
async fn the_properties_of_a_will_reach_subscribers_as_they_were() {
    let broker = TestBroker::start().await;
    let mut watcher = broker.subscriber("watcher", "will", AtLeastOnce).await;
    let mut will = will("will", "x");
    will.message.properties = properties();
    broker.connect(Connect { will: Some(will), ..clean("c", V5) }).await.vanish();
    assert_eq!(watcher.take().await.properties, properties());
}

// Conformance v5: 3.3.1-2, 3.3.1-3, 4.3.1-1, 4.3.2-2, 4.3.3-2
#[tokio::test]
async fn dup_is_not_handed_on() {
    let broker = TestBroker::start().await;
    let mut subscriber = broker.subscriber("s", "t", ExactlyOnce).await;
    let mut publisher = broker.clean("p").await;
    publisher.post(publish(AtMostOnce, 0, "t", "0")).await;
    publisher.post(again(publish(AtLeastOnce, 1, "t", "1"))).await;
    publisher.post(again(publish(ExactlyOnce, 2, "t", "2"))).await;
    for qos in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
        let message = subscriber.message().await;
        assert_eq!((message.header.qos, message.header.dup), (qos, false));
        assert_eq!(message.header.packet_id.is_some(), qos != AtMostOnce);
    }
}

// Conformance v5: 3.3.1-5, 3.3.1-6, 3.3.1-7, 3.3.1-8
#[tokio::test]
async fn only_retained_publishes_change_what_is_retained() {
    let broker = TestBroker::start().await;
    let mut publisher = broker.clean("p").await;
    for (retain, payload, kept) in [
        (false, "0", None),
        (true, "1", Some("1")),
        (false, "2", Some("1")),
        (false, "", Some("1")),
        (true, "3", Some("3")),
        (true, "", None),
        (true, "", None),
    ] {
        for qos in [AtMostOnce, AtLeastOnce] {
            let mut message = publish(qos, 1, "t", payload);
            message.header.retain = retain;
            publisher.post(message).await;
        }
        publisher.pubacked(1).await;
        let mut subscriber = broker.subscriber("s", "t", AtLeastOnce).await;
        if let Some(kept) = kept {
            let message = subscriber.take().await;
            assert_eq!((text(&message), message.header.retain), (kept, true));
        }
        subscriber.synced().await;
        subscriber.quiet().await;
        subscriber.disconnect().await;
    }
}

// Conformance v5: 3.3.1-5, 3.3.1-9
#[tokio::test]
async fn a_subscription_finds_what_the_same_client_has_just_retained() {
    let broker = TestBroker::start().await;
    let mut client = broker.clean("c").await;
    for n in 1..=50 {
        let topic = format!("t/{n}");
        let subscribe = weir_codec::Subscribe {
            packet_id: super::super::client::id(n),
            subscription_identifier: None,
            user_properties: Vec::new(),
            filters: vec![filter(&topic, AtMostOnce)],
        };
        let retained = retained(AtMostOnce, 0, &topic, "kept");
        client.send_all([Packet::Publish(Box::new(retained)), Packet::Subscribe(Box::new(subscribe))]).await;
        assert!(matches!(client.recv().await, Packet::SubAck(_)));
        let message = client.message().await;
        assert_eq!((text(&message), message.header.retain), ("kept", true));
    }
}

// Conformance v5: 3.3.4-1
#[tokio::test]
async fn each_qos_has_its_answer() {
    let broker = TestBroker::start().await;
    let mut client = broker.clean("c").await;
    client.post(publish(AtMostOnce, 0, "t", "x")).await;
    client.synced().await;
    client.post(publish(AtLeastOnce, 1, "t", "x")).await;
    client.pubacked(1).await;
    client.post(publish(ExactlyOnce, 1, "t", "x")).await;
    client.pubreced(1).await;
    client.synced().await;
}

fn aliased(alias: u16, topic: Option<&str>) -> Publish {
    let mut message = publish(AtLeastOnce, 1, topic.unwrap_or("none"), "x");
    message.header.topic_alias = NonZeroU16::new(alias);
    if topic.is_none() {
        message.topic = None;
    }
    message
}

// Conformance v5: 3.2.2-17, 3.2.2-18, 3.3.2-7, 3.3.2-9, 3.3.2-12
#[tokio::test]
async fn every_alias_of_a_client_is_taken_up_to_the_maximum_and_for_one_connection() {
    let mut config = super::super::config();
    config.limits.topic_alias_maximum = 70;
    let broker = TestBroker::start_with(config.clone(), &memory()).await;
    let mut subscriber = broker.subscriber("s", "t/+", AtLeastOnce).await;
    let (mut publisher, connack) = broker.connack(persistent("p", V5)).await;
    assert_eq!(connack.topic_alias_maximum, 70);
    for named in [true, false] {
        for alias in 1..=70 {
            let topic = format!("t/{alias}");
            publisher.post(aliased(alias, named.then_some(&topic))).await;
            assert_eq!(publisher.pubacked(1).await, ReasonCode::Success);
            assert_eq!(subscriber.take().await.topic.unwrap().as_str(), topic);
        }
    }
    publisher.post(aliased(71, Some("t/71"))).await;
    publisher.told(ReasonCode::TopicAliasInvalid).await;
    let mut publisher = broker.resume(persistent("p", V5)).await;
    publisher.post(aliased(1, None)).await;
    publisher.told(ReasonCode::ProtocolError).await;
    subscriber.synced().await;

    config.limits.topic_alias_maximum = 0;
    let broker = TestBroker::start_with(config, &memory()).await;
    let (mut publisher, connack) = broker.connack(clean("p", V5)).await;
    assert_eq!(connack.topic_alias_maximum, 0);
    publisher.post(aliased(1, Some("t"))).await;
    publisher.told(ReasonCode::TopicAliasInvalid).await;
}

// Conformance v5: 3.1.2-26, 3.1.2-27, 3.3.2-7, 3.3.2-8, 3.3.2-11
#[tokio::test]
async fn no_alias_is_used_that_the_client_does_not_allow() {
    let broker = TestBroker::start().await;
    let mut publisher = broker.clean("p").await;
    for maximum in [0, 2] {
        let connect = || Connect { topic_alias_maximum: maximum, ..persistent("s", V5) };
        let mut subscriber = broker.connect(connect()).await;
        subscriber.subscribe("long/+", AtLeastOnce).await;
        for _ in 0..2 {
            let mut known = std::collections::BTreeMap::new();
            for n in [0, 1, 0, 1, 2, 2, 2, 3, 0, 1, 2, 3] {
                let topic = format!("long/{n}");
                publisher.publish(&topic, "x").await;
                let message = subscriber.take().await;
                let alias = message.header.topic_alias.map(NonZeroU16::get);
                assert!(alias.is_none_or(|alias| (1..=maximum).contains(&alias)), "{message:?}");
                // What the alias stood for in the connection before counts for nothing.
                let named = message.topic.as_ref().map(|topic| topic.as_str().to_owned());
                let meant = named.clone().or_else(|| known.get(&alias?).cloned());
                assert_eq!(meant.as_ref(), Some(&topic), "{message:?}");
                if let (Some(alias), Some(named)) = (alias, named) {
                    known.insert(alias, named);
                }
            }
            assert_eq!(known.is_empty(), maximum == 0);
            subscriber.disconnect().await;
            subscriber = broker.resume(connect()).await;
        }
        subscriber.unsubscribe("long/+").await;
        subscriber.disconnect().await;
    }
}

fn text_of(qos: weir_codec::QoS, utf8: Option<bool>, payload: &'static [u8]) -> Publish {
    let mut message = publish(qos, 1, "t", "");
    message.payload = Bytes::from_static(payload);
    message.properties.payload_format_utf8 = utf8;
    message
}

/// 3.3.2.3.2: the server may check it, and so it does.
#[tokio::test]
async fn a_payload_that_is_not_the_text_it_says_is_refused() {
    let broker = TestBroker::start().await;
    let mut subscriber = broker.subscriber("s", "t", AtLeastOnce).await;
    let mut client = broker.clean("c").await;
    let refused = ReasonCode::PayloadFormatInvalid;
    client.post(text_of(AtLeastOnce, Some(true), &[0xff])).await;
    assert_eq!(client.pubacked(1).await, refused);
    client.post(text_of(ExactlyOnce, Some(true), &[0xed, 0xa0, 0x80])).await;
    assert_eq!(client.pubreced(1).await, refused);
    client.post(text_of(AtMostOnce, Some(true), &[0xc0])).await;
    client.synced().await;
    broker.metric_reaches("weir_messages_dropped_total{reason=\"payload_format_invalid\"}", 1.0).await;
    for (utf8, payload) in [(None, &[0xff_u8][..]), (Some(false), &[0xff]), (Some(true), b"\xc3\xa4\0")] {
        client.post(text_of(AtLeastOnce, utf8, payload)).await;
        assert_eq!(client.pubacked(1).await, ReasonCode::Success);
        assert_eq!(subscriber.take().await.payload, payload);
    }
    let Publish { topic, payload, properties, .. } = text_of(AtMostOnce, Some(true), &[0xff]);
    let message = weir_codec::Message { topic: topic.unwrap(), payload, properties };
    let will = Will { message, ..will("t", "") };
    let (mut client, connack) = broker.connack(Connect { will: Some(will), ..clean("w", V5) }).await;
    assert_eq!(connack.code, refused);
    client.ended().await;
}

// Conformance v5: 3.3.2-5, 3.3.2-6, 4.3.3-13
#[tokio::test]
async fn a_message_that_has_expired_is_answered_and_not_delivered() {
    let broker = TestBroker::start().await;
    let mut away = broker.connect(persistent("away", V5)).await;
    away.subscribe("t", ExactlyOnce).await;
    away.disconnect().await;
    let mut publisher = broker.clean("p").await;
    let mut message = publish(ExactlyOnce, 1, "t", "gone");
    message.header.message_expiry_interval = Some(0);
    publisher.post(message.clone()).await;
    publisher.pubreced(1).await;
    publisher.pubrel(super::super::client::id(1)).await;
    publisher.pubcomped(1).await;
    message.header.message_expiry_interval = Some(100);
    message.payload = "kept".into();
    message.header.retain = true;
    publisher.post(message).await;
    publisher.pubreced(1).await;
    // A whole second has to pass before less is left.
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    let mut away = broker.resume(persistent("away", V5)).await;
    let mut late = broker.clean("late").await;
    late.try_subscribe(vec![filter("t", AtLeastOnce)], None, Vec::new()).await;
    for message in [away.take().await, late.take().await] {
        let left = message.header.message_expiry_interval.unwrap();
        assert!(text(&message) == "kept" && (1..=99).contains(&left), "{message:?}");
    }
    away.synced().await;
    let Packet::PingResp = ({
        late.send(Packet::PingReq).await;
        late.recv().await
    }) else {
        panic!("more than one message")
    };
}
