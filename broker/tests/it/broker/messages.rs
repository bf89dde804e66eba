//! Messages between publishers and live subscribers: retained ones, options of subscriptions, limits of packets.

use std::collections::BTreeSet;
use std::num::{NonZeroU16, NonZeroU32};

use weir_codec::{Packet, ReasonCode, RetainHandling, SubscribeFilter};

use super::client::{
    AtLeastOnce, AtMostOnce, ExactlyOnce, V5, V311, clean, filter, id, persistent, publish, receive_maximum,
    retained, text,
};
use super::{TestBroker, memory};

fn handling(to: &str, retain_handling: RetainHandling) -> SubscribeFilter {
    let mut filter = filter(to, AtLeastOnce);
    filter.options.retain_handling = retain_handling;
    filter
}

// Conformance v5: 3.3.1-5, 3.3.1-6, 3.3.1-7
#[tokio::test]
async fn retained_messages_are_kept_replaced_and_cleared() {
    let store = memory();
    let broker = TestBroker::start_on(&store).await;
    let mut publisher = broker.clean("p").await;
    for (n, (topic, payload)) in (1..).zip([
        ("a/1", "old"),
        ("a/1", "1"),
        ("a/2", "2"),
        ("b", "3"),
        ("a", "4"),
        ("a/2", ""),
        ("$x", "5"),
    ]) {
        publisher.post(retained(AtLeastOnce, n, topic, payload)).await;
        assert!(!publisher.pubacked(n).await.is_error());
    }
    // Also after a crash, and for every kind of session.
    for broker in [broker, TestBroker::start_on(&store).await] {
        for connect in [clean("s", V5), clean("s", V311), persistent("s", V5)] {
            let mut subscriber = broker.connect(connect).await;
            for (to, expected) in [
                ("a/1", &["1"][..]),
                ("a/+", &["1"]),
                ("a/#", &["1", "4"]),
                ("#", &["1", "3", "4"]),
                ("+", &["3", "4"]),
                ("a/2", &[]),
                ("$share/g/a/1", &[]),
            ] {
                subscriber.subscribe(to, AtLeastOnce).await;
                let mut texts = BTreeSet::new();
                for _ in expected {
                    let message = subscriber.take().await;
                    assert!(message.header.retain);
                    texts.insert(text(&message).to_owned());
                }
                assert_eq!(texts.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{to}");
                subscriber.synced().await;
                subscriber.unsubscribe(to).await;
            }
            subscriber.disconnect().await;
        }
    }
}

// Conformance v5: 3.3.1-9, 3.3.1-10, 3.3.1-11, 3.3.1-12, 3.3.1-13
#[tokio::test]
async fn retain_handling_and_retain_as_published() {
    let broker = TestBroker::start().await;
    let mut publisher = broker.clean("p").await;
    publisher.post(retained(AtLeastOnce, 1, "t", "kept")).await;
    publisher.pubacked(1).await;
    let mut subscriber = broker.clean("s").await;
    for (handling_, first, second) in [
        (RetainHandling::OnSubscribe, true, true),
        (RetainHandling::OnNewSubscription, true, false),
        (RetainHandling::Never, false, false),
    ] {
        for expected in [first, second] {
            subscriber.try_subscribe(vec![handling("t", handling_)], None, Vec::new()).await;
            if expected {
                assert_eq!(text(&subscriber.take().await), "kept");
            }
            subscriber.quiet().await;
        }
        subscriber.unsubscribe("t").await;
    }
    for as_published in [false, true] {
        let mut wish = handling("t", RetainHandling::Never);
        wish.options.retain_as_published = as_published;
        subscriber.try_subscribe(vec![wish], None, Vec::new()).await;
        publisher.post(retained(AtLeastOnce, 2, "t", "new")).await;
        publisher.pubacked(2).await;
        assert_eq!(subscriber.take().await.header.retain, as_published);
    }
}

#[tokio::test]
async fn many_retained_messages_keep_to_receive_maximum() {
    let broker = TestBroker::start().await;
    let mut publisher = broker.clean("p").await;
    for n in 1..=300 {
        publisher.post(retained(AtLeastOnce, n, &format!("t/{n}"), "x")).await;
        publisher.pubacked(n).await;
    }
    for connect in [clean("s", V5), persistent("s", V5)] {
        let mut subscriber = broker.connect(receive_maximum(connect, 2)).await;
        subscriber.subscribe("t/+", AtLeastOnce).await;
        let held = [subscriber.message().await, subscriber.message().await];
        subscriber.synced().await;
        let mut topics: BTreeSet<_> =
            held.iter().map(|message| message.topic.clone().unwrap().to_string()).collect();
        for message in &held {
            subscriber.puback(message, ReasonCode::Success).await;
        }
        for _ in 2..300 {
            topics.insert(subscriber.take().await.topic.unwrap().to_string());
        }
        assert_eq!(topics.len(), 300);
        subscriber.quiet().await;
    }
}

// Conformance v5: 3.8.3-4
#[tokio::test]
async fn a_group_shares_its_messages() {
    let broker = TestBroker::start().await;
    let mut a = broker.subscriber("a", "$share/g/t", AtLeastOnce).await;
    let mut b = broker.subscriber("b", "$share/g/t", AtLeastOnce).await;
    let mut other = broker.subscriber("other", "$share/h/t", AtLeastOnce).await;
    broker.publish("t", &["0", "1", "2", "3"]).await;
    let mut shared = a.take_texts(2).await;
    shared.extend(b.take_texts(2).await);
    shared.sort();
    assert_eq!(shared, ["0", "1", "2", "3"]);
    assert_eq!(other.take_texts(4).await, ["0", "1", "2", "3"]);
    a.disconnect().await;
    broker.publish("t", &["4", "5"]).await;
    assert_eq!(b.take_texts(2).await, ["4", "5"]);
    // Which message a member would not get back cannot be said, so No Local is a protocol error [MQTT-3.8.3-4].
    let mut local = filter("$share/g/t", AtLeastOnce);
    local.options.no_local = true;
    let mut client = broker.clean("c").await;
    let subscribe = weir_codec::Subscribe {
        packet_id: id(1),
        subscription_identifier: None,
        user_properties: Vec::new(),
        filters: vec![local],
    };
    client.send(Packet::Subscribe(Box::new(subscribe))).await;
    client.told(ReasonCode::ProtocolError).await;
}

// Conformance v5: 3.3.4-3, 3.3.4-4, 3.8.3-3
#[tokio::test]
async fn no_local_and_subscription_identifiers() {
    for connect in [clean("c", V5), persistent("c", V5)] {
        let broker = TestBroker::start().await;
        let mut client = broker.connect(connect).await;
        let mut local = filter("t/+", ExactlyOnce);
        local.options.no_local = true;
        client.try_subscribe(vec![local], Some(7), Vec::new()).await;
        assert_eq!(client.publish("t/1", "own").await, ReasonCode::NoMatchingSubscribers);
        client.try_subscribe(vec![filter("t/#", AtLeastOnce)], Some(9), Vec::new()).await;
        client.try_subscribe(vec![filter("t/1", AtMostOnce)], None, Vec::new()).await;
        broker.publish("t/1", &["x"]).await;
        let message = client.take().await;
        let identifiers: BTreeSet<u32> = message.header.subscription_identifiers.iter().copied().collect();
        assert_eq!((text(&message), identifiers), ("x", [7, 9].into()));
        client.quiet().await;
        client.unsubscribe("t/#").await;
        broker.publish("t/1", &["y"]).await;
        assert_eq!(client.take().await.header.subscription_identifiers[..], [7]);
    }
}

// Conformance v5: 3.3.2-5, 3.3.2-6
#[tokio::test]
async fn a_message_is_told_its_remaining_time_and_not_delivered_after_it() {
    let broker = TestBroker::start().await;
    let mut subscriber = broker.connect(persistent("s", V5)).await;
    subscriber.subscribe("t", AtLeastOnce).await;
    let mut publisher = broker.clean("p").await;
    let mut message = publish(AtLeastOnce, 1, "t", "x");
    message.header.message_expiry_interval = Some(100);
    publisher.post(message.clone()).await;
    publisher.pubacked(1).await;
    let left = subscriber.take().await.header.message_expiry_interval.unwrap();
    assert!((1..=100).contains(&left), "{left}");
    subscriber.disconnect().await;
    message.header.message_expiry_interval = Some(1);
    publisher.post(message).await;
    publisher.pubacked(1).await;
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    publisher.publish("t", "lasting").await;
    let mut subscriber = broker.resume(persistent("s", V5)).await;
    assert_eq!(text(&subscriber.take().await), "lasting");
    subscriber.quiet().await;
}

// Conformance v5: 3.1.2-24, 3.1.2-25, 3.2.2-15
#[tokio::test]
async fn no_packet_is_larger_than_its_receiver_takes() {
    let mut config = super::config();
    config.limits.max_packet_size = weir::config::ByteCount::kib(2);
    let broker = TestBroker::start_with(config, &memory()).await;
    for connect in [clean("s", V5), persistent("s", V5)] {
        let connect = weir_codec::Connect { maximum_packet_size: NonZeroU32::new(100), ..connect };
        let mut subscriber = broker.connect(connect).await;
        subscriber.subscribe("t", AtLeastOnce).await;
        broker.publish("t", &[&"x".repeat(200), "small"]).await;
        assert_eq!(text(&subscriber.take().await), "small");
        subscriber.synced().await;
        subscriber.disconnect().await;
    }
    broker.metric_reaches("weir_messages_dropped_total{reason=\"too_large\"}", 2.0).await;
    let (mut client, connack) = broker.connack(clean("c", V5)).await;
    assert_eq!(connack.maximum_packet_size, NonZeroU32::new(2048));
    client.post(publish(AtMostOnce, 0, "t", &"x".repeat(3000))).await;
    client.told(ReasonCode::PacketTooLarge).await;
}

// Conformance v5: 3.2.2-17, 3.3.2-11
#[tokio::test]
async fn topic_aliases_both_ways() {
    let broker = TestBroker::start().await;
    let connect = weir_codec::Connect { topic_alias_maximum: 1, ..clean("s", V5) };
    let mut subscriber = broker.connect(connect).await;
    subscriber.subscribe("t/#", AtLeastOnce).await;
    let (mut publisher, connack) = broker.connack(clean("p", V5)).await;
    assert!(connack.topic_alias_maximum > 0);
    let mut first = publish(AtLeastOnce, 1, "t/long", "0");
    first.header.topic_alias = NonZeroU16::new(1);
    publisher.post(first.clone()).await;
    publisher.pubacked(1).await;
    first.topic = None;
    publisher.post(first).await;
    publisher.pubacked(1).await;
    let (set, used) = (subscriber.take().await, subscriber.take().await);
    assert_eq!(set.topic.as_ref().unwrap().as_str(), "t/long");
    assert_eq!((used.topic, used.header.topic_alias), (None, set.header.topic_alias));
    let mut beyond = publish(AtLeastOnce, 1, "t", "x");
    beyond.header.topic_alias = NonZeroU16::new(connack.topic_alias_maximum + 1);
    publisher.post(beyond).await;
    publisher.told(ReasonCode::TopicAliasInvalid).await;
}
