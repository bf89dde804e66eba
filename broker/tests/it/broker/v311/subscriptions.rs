//! SUBSCRIBE and UNSUBSCRIBE.

use weir_codec::{Packet, ReasonCode, Subscribe};

use super::super::client::{
    AtLeastOnce, AtMostOnce, ExactlyOnce, V311, clean, filter, id, persistent, publish, retained, text,
};
use super::super::{TestBroker, config, memory};

// Conformance v311: 3.8.4-1, 3.8.4-2, 3.8.4-4, 3.8.4-5, 3.9.3-1, 3.9.3-2, 2.3.1-7
#[tokio::test]
async fn suback_has_a_code_for_each_filter_in_their_order() {
    let mut config = config();
    config.limits.max_subscriptions_per_client = 5;
    let broker = TestBroker::start_with(config, &memory()).await;
    let mut raw = broker.raw_clean("c").await;
    raw.send("82: 12 34 `a` 02 `b/#/c` 01 `c` 00 `$queue/-` 01 `d` 01 `$share/g` 02 `` 00").await;
    raw.expect("90: 12 34 02 80 00 80 01 80 80").await;
    // One after the other is the same; the last is one too many.
    raw.send("82: 00 01 `e` 01; 82: ff ff `f` 02; 82: 00 02 `g` 00").await;
    raw.expect("90: 00 01 01; 90: ff ff 02; 90: 00 02 80").await;
    // What was granted works, and what was refused does not.
    raw.send("30: `a` '1'; 30: `c` '2'; 30: `d` '3'; 30: `g` '4'; 30: `b` '5'; 30: `f` '6'").await;
    raw.expect("30: `a` '1'; 30: `c` '2'; 30: `d` '3'; 30: `f` '6'").await;
    raw.synced().await;
}

// Conformance v311: 3.3.5-1, 3.8.4-6
#[tokio::test]
async fn overlapping_subscriptions_deliver_once_with_the_highest_of_their_qos() {
    let broker = TestBroker::start().await;
    for connect in [clean("s", V311), persistent("s", V311)] {
        let mut client = broker.connect(connect).await;
        for (to, qos) in
            [("t/1", AtMostOnce), ("t/+", ExactlyOnce), ("t/#", AtLeastOnce), ("+/1", AtMostOnce)]
        {
            client.subscribe(to, qos).await;
        }
        let mut publisher = broker.old("p").await;
        publisher.publish_twice_acknowledged(1, "t/1", "x").await;
        let message = client.take().await;
        assert_eq!((text(&message), message.header.qos), ("x", ExactlyOnce));
        client.synced().await;
        client.unsubscribe("t/+").await;
        publisher.publish_twice_acknowledged(1, "t/1", "y").await;
        let message = client.take().await;
        assert_eq!((text(&message), message.header.qos), ("y", AtLeastOnce));
        client.synced().await;
        client.disconnect().await;
    }
}

// Conformance v311: 3.8.4-3
#[tokio::test]
async fn a_subscription_made_again_is_replaced_and_interrupts_nothing() {
    const COUNT: u16 = 500;
    let broker = TestBroker::start().await;
    for connect in [clean("s", V311), persistent("s", V311)] {
        let mut client = broker.connect(connect).await;
        client.subscribe("t", ExactlyOnce).await;
        let mut publisher = broker.old("p").await;
        let mut seen = 0;
        for round in 0..5 {
            publisher
                .send_all((1..=COUNT / 5).map(|n| super::packet(publish(AtLeastOnce, n, "t", "x"))))
                .await;
            // In the midst of it.
            let subscribe = Subscribe {
                packet_id: id(round + 1),
                subscription_identifier: None,
                user_properties: Vec::new(),
                filters: vec![filter("t", AtLeastOnce)],
            };
            client.send(Packet::Subscribe(Box::new(subscribe))).await;
            let mut answered = false;
            while seen < (round + 1) * (COUNT / 5) || !answered {
                match client.recv().await {
                    Packet::Publish(message) => {
                        seen += 1;
                        client.puback(&message, ReasonCode::Success).await;
                    }
                    Packet::SubAck(suback) => {
                        assert_eq!(suback.reasons, [ReasonCode::GrantedQoS1]);
                        answered = true;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        client.synced().await;
        for _ in 0..5 {
            for n in 1..=COUNT / 5 {
                publisher.pubacked(n).await;
            }
        }
        // There is one subscription, with the QoS of the last.
        client.subscribe("t", AtMostOnce).await;
        publisher.publish_twice_acknowledged(1000, "t", "last").await;
        let last = client.message().await;
        assert_eq!((text(&last), last.header.qos), ("last", AtMostOnce));
        client.synced().await;
        assert_eq!(broker.metric("weir_subscriptions").await, 1.0);
        client.unsubscribe("t").await;
        client.disconnect().await;
    }
}

// Conformance v311: 3.10.4-1, 3.10.4-2, 3.10.4-4, 3.10.4-5, 3.10.4-6, 2.3.1-7
#[tokio::test]
async fn unsubscribe_ends_what_is_the_same_and_is_always_answered() {
    let broker = TestBroker::start().await;
    let mut raw = broker.raw_clean("c").await;
    raw.send("82: 00 01 `t/+` 00 `t/#` 00 `T/1` 00 `u` 00 `v` 00").await;
    raw.expect("90: 00 01 00 00 00 00 00").await;
    // Filters that match as much, or more, or are spelled otherwise, are others.
    raw.send("a2: 12 34 `t/1` `+/+` `#` `t/+/` `U` `/u`").await;
    raw.expect("b0: 12 34").await;
    raw.send("30: `t/1` '1'; 30: `u` '2'").await;
    raw.expect("30: `t/1` '1'; 30: `u` '2'").await;
    raw.send("a2: 00 02 `t/+`").await;
    raw.expect("b0: 00 02").await;
    raw.send("30: `t/1` '3'").await;
    raw.expect("30: `t/1` '3'").await;
    raw.send("a2: 00 03 `t/#` `none` `u`; 30: `t/1` '4'; 30: `u` '5'; 30: `v` '6'; 30: `T/1` '7'").await;
    raw.expect("b0: 00 03; 30: `v` '6'; 30: `T/1` '7'").await;
    raw.send("a2: 00 04 `t/#`").await;
    raw.expect("b0: 00 04").await;
    raw.synced().await;
}

// Conformance v311: 3.10.4-3, 3.10.4-2
#[tokio::test]
async fn deliveries_that_had_begun_are_completed_after_unsubscribe() {
    let broker = TestBroker::start().await;
    let connect = persistent("s", V311);
    let mut client = broker.connect(connect.clone()).await;
    client.subscribe("t", ExactlyOnce).await;
    let mut publisher = broker.old("p").await;
    publisher.publish("t", "1").await;
    publisher.publish_twice_acknowledged(1, "t", "2").await;
    let (one, two) = (client.message().await, client.message().await);
    client.unsubscribe("t").await;
    publisher.publish("t", "after").await;
    client.synced().await;
    // Over a reconnect too.
    client.vanish();
    let mut client = broker.resume(connect.clone()).await;
    for sent in [&one, &two] {
        let again = client.message().await;
        assert_eq!((text(&again), again.header.packet_id), (text(sent), sent.header.packet_id));
        assert!(again.header.dup);
    }
    client.puback(&one, ReasonCode::Success).await;
    client.receive_twice_acknowledged(&two).await;
    client.synced().await;
    client.vanish();
    broker.resume(connect).await.quiet().await;
}

// Conformance v311: 3.3.2-3, 4.5.0-1
#[tokio::test]
async fn a_message_reaches_every_subscriber_whose_filter_matches_and_no_other() {
    let broker = TestBroker::start().await;
    let mut raws = Vec::new();
    for (n, (to, matches)) in [
        ("a/b", true),
        ("a/+", true),
        ("+/b", true),
        ("#", true),
        ("a/b/#", true),
        ("a", false),
        ("a/b/+", false),
    ]
    .into_iter()
    .enumerate()
    {
        let mut raw = broker.raw_clean(&format!("c{n}")).await;
        raw.send(&format!("82: 00 01 `{to}` 00")).await;
        raw.expect("90: 00 01 00").await;
        raws.push((raw, matches));
    }
    broker.publish("a/b", &["x"]).await;
    for (raw, matches) in &mut raws {
        if *matches {
            raw.expect("30: `a/b` 'x'").await;
        }
        raw.synced().await;
    }
}

/// A refusal among others leaves the others as they are.
// Conformance v311: 3.8.4-4, 3.8.4-5
#[tokio::test]
async fn several_filters_count_as_several_subscriptions() {
    let broker = TestBroker::start().await;
    let mut publisher = broker.old("p").await;
    for topic in ["a", "b"] {
        publisher.post(retained(AtLeastOnce, 1, topic, topic)).await;
        publisher.pubacked(1).await;
    }
    let mut client = broker.old("s").await;
    let filters = vec![filter("a", AtMostOnce), filter("a/#b", AtLeastOnce), filter("b", AtLeastOnce)];
    let suback = client.try_subscribe(filters, None, Vec::new()).await;
    let expected = [ReasonCode::Success, ReasonCode::UnspecifiedError, ReasonCode::GrantedQoS1];
    assert_eq!(suback.reasons, expected);
    let (a, b) = (client.message().await, client.message().await);
    assert_eq!((text(&a), a.header.qos, text(&b), b.header.qos), ("a", AtMostOnce, "b", AtLeastOnce));
    client.synced().await;
}
