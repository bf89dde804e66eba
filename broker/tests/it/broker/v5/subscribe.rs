//! SUBSCRIBE, SUBACK, UNSUBSCRIBE, UNSUBACK (3.8 to 3.11).

use std::collections::BTreeSet;

use weir_codec::{Packet, QoS, ReasonCode, RetainHandling, SubAck, UnsubAck, Unsubscribe};

use super::super::TestBroker;
use super::super::client::{
    AtLeastOnce, AtMostOnce, Client, ExactlyOnce, V5, clean, filter, id, persistent, publish, retained, text,
};
use super::{frame, told};

async fn unsubscribe(client: &mut Client, n: u16, filters: &[&str]) -> Vec<ReasonCode> {
    let filters = filters.iter().map(|filter| (*filter).to_owned().into()).collect();
    let packet = Unsubscribe { packet_id: id(n), filters, user_properties: Vec::new() };
    client.send(Packet::Unsubscribe(Box::new(packet))).await;
    match client.recv().await {
        Packet::UnsubAck(unsuback) => {
            let UnsubAck { packet_id, reasons, .. } = *unsuback;
            assert_eq!(packet_id, id(n));
            reasons
        }
        other => panic!("not an UNSUBACK: {other:?}"),
    }
}

// Conformance v5: 2.1.3-1, 2.2.1-3, 3.8.1-1, 3.8.3-1, 3.8.3-2, 3.8.3-4, 3.8.3-5
#[tokio::test]
async fn a_subscribe_that_breaks_the_rules_ends_the_connection() {
    use ReasonCode::{MalformedPacket, ProtocolError};
    let broker = TestBroker::start().await;
    for (first, body, reason) in [
        (0x80, "00 01 00 00 01 't' 00", MalformedPacket),
        (0x83, "00 01 00 00 01 't' 00", MalformedPacket),
        (0x82, "00 00 00 00 01 't' 00", ProtocolError),
        (0x82, "00 01 00", ProtocolError),
        (0x82, "00 01 00 00 01 't'", MalformedPacket),
        (0x82, "00 01 00 00 01 ff 00", MalformedPacket),
        (0x82, "00 01 00 00 01 00 00", MalformedPacket),
        (0x82, "00 01 00 00 01 't' 03", ProtocolError),
        (0x82, "00 01 00 00 01 't' 30", ProtocolError),
        (0x82, "00 01 00 00 01 't' 40", MalformedPacket),
        (0x82, "00 01 00 00 01 't' 80", MalformedPacket),
        (0x82, "00 01 00 00 0a '$share/g/t' 04", ProtocolError),
        (0x82, "00 01 02 0b 00 00 01 't' 00", ProtocolError),
    ] {
        told(&broker, &frame(first, body), reason).await;
    }
}

// Conformance v5: 3.10.1-1, 3.10.3-1, 3.10.3-2
#[tokio::test]
async fn an_unsubscribe_that_breaks_the_rules_ends_the_connection() {
    use ReasonCode::{MalformedPacket, ProtocolError};
    let broker = TestBroker::start().await;
    for (first, body, reason) in [
        (0xa0, "00 01 00 00 01 't'", MalformedPacket),
        (0xa3, "00 01 00 00 01 't'", MalformedPacket),
        (0xa2, "00 00 00 00 01 't'", ProtocolError),
        (0xa2, "00 01 00", ProtocolError),
        (0xa2, "00 01 00 00 01 ff", MalformedPacket),
        (0xa2, "00 01 00 00 01 00", MalformedPacket),
    ] {
        told(&broker, &frame(first, body), reason).await;
    }
}

// Conformance v5: 2.2.1-6, 3.8.4-1, 3.8.4-2, 3.8.4-5, 3.8.4-6, 3.8.4-7, 3.9.3-1, 3.9.3-2, 4.7.1-1, 4.7.1-2
#[tokio::test]
async fn each_filter_of_a_subscribe_has_its_answer() {
    let broker = TestBroker::start().await;
    let mut client = broker.clean("c").await;
    let filters = [
        ("a", AtMostOnce, ReasonCode::Success),
        ("a/#/b", AtLeastOnce, ReasonCode::TopicFilterInvalid),
        ("b", ExactlyOnce, ReasonCode::GrantedQoS2),
        ("b#", AtLeastOnce, ReasonCode::TopicFilterInvalid),
        ("c+", AtLeastOnce, ReasonCode::TopicFilterInvalid),
        ("+c/d", AtLeastOnce, ReasonCode::TopicFilterInvalid),
        ("", AtLeastOnce, ReasonCode::TopicFilterInvalid),
        ("c/+/#", AtLeastOnce, ReasonCode::GrantedQoS1),
        ("+", AtLeastOnce, ReasonCode::GrantedQoS1),
    ];
    let wishes = filters.iter().map(|(text, qos, _)| filter(text, *qos)).collect();
    let SubAck { reasons, .. } = client.try_subscribe(wishes, None, Vec::new()).await;
    assert_eq!(reasons, filters.map(|(_, _, reason)| reason));
    // All that was granted works, and nothing else.
    for (topic, qos) in [("b", Some(ExactlyOnce)), ("c/d/e", Some(AtLeastOnce)), ("b#", None), ("d/d", None)]
    {
        if weir_topic::TopicName::parse(topic).is_ok() {
            broker.publish(topic, &[topic]).await;
        }
        if let Some(qos) = qos {
            let message = client.take().await;
            assert_eq!((text(&message), message.header.qos), (topic, qos.min(AtLeastOnce)));
        }
        client.synced().await;
    }
}

// Conformance v5: 3.8.4-8
#[tokio::test]
async fn a_delivery_has_the_lower_qos() {
    let broker = TestBroker::start().await;
    let all = [AtMostOnce, AtLeastOnce, ExactlyOnce];
    for connect in [clean("s", V5), persistent("s", V5)] {
        let mut subscriber = broker.connect(connect).await;
        let mut publisher = broker.clean("p").await;
        for granted in all {
            subscriber.subscribe("t", granted).await;
            for published in all {
                publisher.post(publish(published, 1, "t", "x")).await;
                let message = subscriber.message().await;
                assert_eq!(message.header.qos, granted.min(published));
                match message.header.qos {
                    AtMostOnce => {}
                    AtLeastOnce => subscriber.puback(&message, ReasonCode::Success).await,
                    ExactlyOnce => subscriber.receive_twice_acknowledged(&message).await,
                }
                match published {
                    AtMostOnce => {}
                    AtLeastOnce => assert!(!publisher.pubacked(1).await.is_error()),
                    ExactlyOnce => {
                        publisher.pubreced(1).await;
                        publisher.pubrel(id(1)).await;
                        publisher.pubcomped(1).await;
                    }
                }
            }
        }
    }
}

// Conformance v5: 3.3.4-2, 3.3.4-3, 3.3.4-4
#[tokio::test]
async fn overlapping_subscriptions_are_one_delivery_at_the_highest_qos() {
    for connect in [clean("s", V5), persistent("s", V5)] {
        let broker = TestBroker::start().await;
        let mut subscriber = broker.connect(connect).await;
        for (to, qos, identifier) in
            [("t/#", AtMostOnce, Some(1)), ("t/+", AtLeastOnce, Some(268_435_455)), ("+/1", AtMostOnce, None)]
        {
            subscriber.try_subscribe(vec![filter(to, qos)], identifier, Vec::new()).await;
        }
        let mut publisher = broker.clean("p").await;
        publisher.publish_twice_acknowledged(1, "t/1", "x").await;
        let message = subscriber.take().await;
        let identifiers: BTreeSet<u32> = message.header.subscription_identifiers.iter().copied().collect();
        assert_eq!((message.header.qos, identifiers), (AtLeastOnce, [1, 268_435_455].into()));
        subscriber.synced().await;
        broker.publish("u/1", &["x"]).await;
        let message = subscriber.message().await;
        assert_eq!((message.header.qos, message.header.subscription_identifiers.len()), (AtMostOnce, 0));
    }
}

// Conformance v5: 3.8.4-3
#[tokio::test]
async fn a_filter_subscribed_to_again_replaces_the_subscription() {
    for connect in [clean("s", V5), persistent("s", V5)] {
        let broker = TestBroker::start().await;
        let mut subscriber = broker.connect(connect).await;
        for (qos, identifier) in [(AtMostOnce, Some(1)), (AtLeastOnce, Some(2)), (AtMostOnce, None)] {
            let granted: Vec<QoS> = vec![qos];
            subscriber.try_subscribe(vec![filter("t", qos)], identifier, Vec::new()).await;
            broker.publish("t", &["x"]).await;
            let message = subscriber.message().await;
            assert_eq!(vec![message.header.qos], granted);
            assert_eq!(message.header.subscription_identifiers.first().copied(), identifier);
            if qos == AtLeastOnce {
                subscriber.puback(&message, ReasonCode::Success).await;
            }
            subscriber.synced().await;
        }
        assert_eq!(
            unsubscribe(&mut subscriber, 1, &["t", "t"]).await,
            [ReasonCode::Success, ReasonCode::NoSubscriptionExisted]
        );
    }
}

// Conformance v5: 3.8.4-4
#[tokio::test]
async fn subscribing_again_loses_nothing_and_sends_what_is_retained() {
    let broker = TestBroker::start().await;
    for connect in [clean("s", V5), persistent("s", V5)] {
        let mut publisher = broker.clean("p").await;
        publisher.post(retained(AtLeastOnce, 1, "t/kept", "kept")).await;
        publisher.pubacked(1).await;
        let mut subscriber = broker.connect(connect).await;
        subscriber.subscribe("t/#", AtLeastOnce).await;
        let live = (0..100_u16).map(|n| publish(AtLeastOnce, n + 1, "t/live", &n.to_string()));
        publisher.send_all(live.map(|publish| Packet::Publish(Box::new(publish)))).await;
        let (mut live, mut kept, mut answered) = (Vec::new(), 0, 0);
        while live.len() < 100 || kept < 5 {
            match subscriber.recv().await {
                Packet::SubAck(_) => answered += 1,
                Packet::Publish(message) => {
                    subscriber.puback(&message, ReasonCode::Success).await;
                    if text(&message) != "kept" {
                        live.push(text(&message).parse::<u32>().unwrap());
                        continue;
                    }
                    kept += 1;
                    if kept < 5 {
                        let packet = weir_codec::Subscribe {
                            packet_id: id(kept),
                            subscription_identifier: None,
                            user_properties: Vec::new(),
                            filters: vec![filter("t/#", AtLeastOnce)],
                        };
                        subscriber.send(Packet::Subscribe(Box::new(packet))).await;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(answered, 4);
        assert_eq!(live, (0..100).collect::<Vec<_>>());
        subscriber.unsubscribe("t/#").await;
        subscriber.disconnect().await;
    }
}

// Conformance v5: 3.8.3-3
#[tokio::test]
async fn no_local_holds_for_the_client_and_not_for_others() {
    let broker = TestBroker::start().await;
    for connect in [clean("c", V5), persistent("c", V5)] {
        let mut client = broker.connect(connect).await;
        let mut local = filter("t", ExactlyOnce);
        local.options.no_local = true;
        client.try_subscribe(vec![local], None, Vec::new()).await;
        client.post(publish(AtMostOnce, 0, "t", "own")).await;
        client.publish("t", "own").await;
        client.publish_twice_acknowledged(1, "t", "own").await;
        client.synced().await;
        broker.publish("t", &["another's"]).await;
        assert_eq!(text(&client.take().await), "another's");
        // Without it the client gets its own.
        client.subscribe("t", AtMostOnce).await;
        client.post(publish(AtMostOnce, 0, "t", "own")).await;
        assert_eq!(text(&client.message().await), "own");
    }
}

// Conformance v5: 3.3.1-9, 3.3.1-10, 3.3.1-11
#[tokio::test]
async fn retain_handling_holds_in_a_session_that_comes_back() {
    let broker = TestBroker::start().await;
    let mut publisher = broker.clean("p").await;
    publisher.post(retained(AtLeastOnce, 1, "t", "kept")).await;
    publisher.pubacked(1).await;
    let mut client = broker.connect(persistent("s", V5)).await;
    client.subscribe("t", AtLeastOnce).await;
    client.take().await;
    for (handling, sent) in [
        (RetainHandling::OnNewSubscription, false),
        (RetainHandling::Never, false),
        (RetainHandling::OnSubscribe, true),
    ] {
        client.disconnect().await;
        client = broker.resume(persistent("s", V5)).await;
        // Coming back is no subscription.
        client.synced().await;
        let mut wish = filter("t", AtLeastOnce);
        wish.options.retain_handling = handling;
        client.try_subscribe(vec![wish], None, Vec::new()).await;
        if sent {
            assert_eq!(text(&client.take().await), "kept");
        }
        client.quiet().await;
    }
}

// Conformance v5: 2.2.1-6, 3.10.4-1, 3.10.4-2, 3.10.4-4, 3.10.4-5, 3.10.4-6, 3.11.3-1, 3.11.3-2
#[tokio::test]
async fn each_filter_of_an_unsubscribe_has_its_answer() {
    use ReasonCode::{NoSubscriptionExisted, Success};
    let broker = TestBroker::start().await;
    for connect in [clean("s", V5), persistent("s", V5)] {
        let mut client = broker.connect(connect).await;
        for to in ["a/b", "a/+", "A/b", "$share/g/c"] {
            client.subscribe(to, AtLeastOnce).await;
        }
        let filters = ["a/b", "a/#", "a/b", "+/b", "c", "$share/g/c", "not/#/valid"];
        let reasons = unsubscribe(&mut client, 7, &filters).await;
        assert_eq!(
            reasons,
            [
                Success,
                NoSubscriptionExisted,
                NoSubscriptionExisted,
                NoSubscriptionExisted,
                NoSubscriptionExisted,
                Success,
                NoSubscriptionExisted
            ]
        );
        broker.publish("a/b", &["+"]).await;
        broker.publish("c", &["none"]).await;
        broker.publish("A/b", &["A"]).await;
        assert_eq!(client.take_texts(2).await, ["+", "A"]);
        assert_eq!(unsubscribe(&mut client, 8, &["a/+", "A/b"]).await, [Success, Success]);
        assert_eq!(unsubscribe(&mut client, 9, &["a/+"]).await, [NoSubscriptionExisted]);
        broker.publish("a/b", &["none"]).await;
        client.synced().await;
        client.quiet().await;
    }
}

// Conformance v5: 3.10.4-3
#[tokio::test]
async fn a_delivery_that_has_begun_is_completed_after_unsubscribe() {
    let broker = TestBroker::start().await;
    for connect in [clean("s", V5), persistent("s", V5)] {
        let mut client = broker.connect(connect).await;
        client.subscribe("t", ExactlyOnce).await;
        let mut publisher = broker.clean("p").await;
        publisher.publish("t", "1").await;
        publisher.publish_twice_acknowledged(1, "t", "2").await;
        let (one, two) = (client.message().await, client.message().await);
        assert_eq!(unsubscribe(&mut client, 1, &["t"]).await, [ReasonCode::Success]);
        client.puback(&one, ReasonCode::Success).await;
        client.receive_twice_acknowledged(&two).await;
        client.synced().await;
        client.disconnect().await;
    }
    // Also over the end of the connection.
    let mut client = broker.connect(persistent("s", V5)).await;
    client.subscribe("t", ExactlyOnce).await;
    broker.publish("t", &["1"]).await;
    let first = client.message().await;
    assert_eq!(unsubscribe(&mut client, 1, &["t"]).await, [ReasonCode::Success]);
    client.vanish();
    let mut client = broker.resume(persistent("s", V5)).await;
    let again = client.take().await;
    assert_eq!((again.header.packet_id, again.header.dup), (first.header.packet_id, true));
}
