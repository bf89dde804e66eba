//! Sessions that outlive their connections, and the broker's process.

use weir_codec::{Connect, Packet, ReasonCode};
use weir_core::keyspace::tag;
use weir_storage::CommitFault;

use super::client::{
    AtLeastOnce, AtMostOnce, Client, ExactlyOnce, V5, V311, again, clean, id, persistent, publish,
    receive_maximum, text, will,
};
use super::{DEADLINE, TestBroker, faulty, memory, queue, stream};

// Conformance v5: 3.1.2-5, 3.1.2-23, 4.5.0-1, 4.6.0-5
#[tokio::test]
async fn a_backlog_waits_in_order_over_restarts() {
    for version in [V5, V311] {
        let store = memory();
        let broker = TestBroker::start_on(&store).await;
        let (mut subscriber, connack) = broker.connack(persistent("s", version)).await;
        assert!(!connack.session_present);
        subscriber.subscribe("t/+", ExactlyOnce).await;
        subscriber.disconnect().await;
        let mut publisher = broker.clean("p").await;
        for n in 0..10 {
            let qos = [AtLeastOnce, ExactlyOnce][usize::from(n % 2)];
            if qos == ExactlyOnce {
                publisher.publish_twice_acknowledged(n + 1, "t/1", &n.to_string()).await;
            } else {
                publisher.publish("t/1", &n.to_string()).await;
            }
            publisher.post(publish(AtMostOnce, 0, "t/1", "lost")).await;
        }
        publisher.synced().await;
        // Half of it on this broker, half after a crash.
        let mut subscriber = broker.resume(persistent("s", version)).await;
        assert_eq!(subscriber.take_texts(5).await, ["0", "1", "2", "3", "4"]);
        subscriber.disconnect().await;
        drop(broker);
        let broker = TestBroker::start_on(&store).await;
        let mut subscriber = broker.resume(persistent("s", version)).await;
        assert_eq!(subscriber.take_texts(5).await, ["5", "6", "7", "8", "9"]);
        subscriber.synced().await;
        broker.publish("t/2", &["live"]).await;
        assert_eq!(text(&subscriber.take().await), "live");
    }
}

/// What was in flight comes again: same packet id, DUP, before everything else.
// Conformance v5: 3.3.1-1, 4.4.0-1
#[tokio::test]
async fn what_was_in_flight_is_resent() {
    for (version, crash) in [(V5, false), (V5, true), (V311, false)] {
        let store = memory();
        let mut broker = TestBroker::start_on(&store).await;
        let mut subscriber = broker.connect(persistent("s", version)).await;
        subscriber.subscribe("t", ExactlyOnce).await;
        let mut publisher = broker.clean("p").await;
        publisher.publish("t", "0").await;
        publisher.publish_twice_acknowledged(1, "t", "1").await;
        publisher.publish_twice_acknowledged(2, "t", "2").await;
        let (zero, one, two) =
            (subscriber.message().await, subscriber.message().await, subscriber.message().await);
        subscriber.pubrec(two.header.packet_id.unwrap()).await;
        assert!(matches!(subscriber.recv().await, Packet::PubRel(_)));
        if crash {
            drop(broker);
            broker = TestBroker::start_on(&store).await;
        } else {
            subscriber.vanish();
        }
        let mut subscriber = broker.resume(persistent("s", version)).await;
        broker.publish("t", &["3"]).await;
        let mut resent = Vec::new();
        for _ in 0..4 {
            resent.push(subscriber.recv().await);
        }
        let publishes: Vec<_> = resent
            .iter()
            .filter_map(|packet| match packet {
                Packet::Publish(publish) => {
                    Some((text(publish), publish.header.packet_id, publish.header.dup))
                }
                _ => None,
            })
            .collect();
        // A crash forgets which ids messages of QoS 1 had: they come again as new ones.
        assert_eq!(
            publishes.iter().map(|(text, ..)| *text).collect::<std::collections::BTreeSet<_>>(),
            ["0", "1", "3"].into()
        );
        for (text, packet_id, dup) in &publishes {
            match *text {
                "0" if !crash => assert_eq!((*packet_id, *dup), (zero.header.packet_id, true)),
                "1" => assert_eq!((*packet_id, *dup), (one.header.packet_id, true)),
                _ => {}
            }
        }
        let released = resent.iter().find_map(|packet| match packet {
            Packet::PubRel(ack) => Some(ack.packet_id),
            _ => None,
        });
        assert_eq!(released, two.header.packet_id);
        subscriber.pubcomp(released.unwrap()).await;
        for packet in &resent {
            match packet {
                Packet::Publish(publish) if publish.header.qos == AtLeastOnce => {
                    subscriber.puback(publish, ReasonCode::Success).await;
                }
                Packet::Publish(publish) => subscriber.receive_twice_acknowledged(publish).await,
                _ => {}
            }
        }
        subscriber.synced().await;
        subscriber.disconnect().await;
        let mut subscriber = broker.resume(persistent("s", version)).await;
        subscriber.quiet().await;
    }
}

/// The publisher's side of QoS 2, broken off at each step.
// Conformance v5: 4.3.3-10, 4.3.3-12
#[tokio::test]
async fn a_qos_2_publish_is_delivered_once_wherever_its_connection_breaks() {
    for version in [V5, V311] {
        for crash in [false, true] {
            let store = memory();
            let mut broker = TestBroker::start_on(&store).await;
            broker.declare(&[stream("log", "t"), queue("work", "t")]).await;
            let mut inbox = broker.connect(persistent("inbox", V5)).await;
            inbox.subscribe("t", ExactlyOnce).await;
            inbox.disconnect().await;
            let mut live = broker.subscriber("live", "t", ExactlyOnce).await;
            let mut publisher = broker.connect(persistent("p", version)).await;
            publisher.post(publish(ExactlyOnce, 1, "t", "x")).await;
            assert!(!publisher.pubreced(1).await.is_error());
            assert_eq!(text(&live.take().await), "x");
            let broken = async |broker: &mut TestBroker, client: Client| {
                client.vanish();
                if crash {
                    let addr = broker.addr;
                    *broker = TestBroker::start_on(&store).await;
                    assert_ne!(broker.addr, addr);
                }
                broker.resume(persistent("p", version)).await
            };
            // PUBREC was lost, as far as the publisher knows.
            publisher = broken(&mut broker, publisher).await;
            publisher.post(again(publish(ExactlyOnce, 1, "t", "x"))).await;
            assert!(!publisher.pubreced(1).await.is_error());
            publisher = broken(&mut broker, publisher).await;
            // PUBREC has come, PUBREL has not.
            publisher.pubrel(id(1)).await;
            let Packet::PubComp(_) = publisher.recv().await else { panic!("not a PUBCOMP") };
            publisher = broken(&mut broker, publisher).await;
            // PUBCOMP was lost: the id is not known any more, which is no error.
            publisher.pubrel(id(1)).await;
            let Packet::PubComp(_) = publisher.recv().await else { panic!("not a PUBCOMP") };
            // Another message under the same id.
            publisher.publish_twice_acknowledged(1, "t", "y").await;
            if !crash {
                assert_eq!(text(&live.take().await), "y");
                live.quiet().await;
            }
            let mut reader = broker.clean("reader").await;
            reader.read_from("$stream/log", AtLeastOnce, "earliest").await;
            assert_eq!(reader.take_texts(2).await, ["x", "y"]);
            reader.quiet().await;
            let mut consumer = broker.subscriber("consumer", "$queue/work", AtLeastOnce).await;
            assert_eq!(consumer.take_texts(2).await, ["x", "y"]);
            consumer.quiet().await;
            let mut inbox = broker.resume(persistent("inbox", V5)).await;
            assert_eq!(inbox.take_texts(2).await, ["x", "y"]);
            inbox.quiet().await;
        }
    }
}

// Conformance v5: 3.1.4-3
#[tokio::test]
async fn a_second_connection_takes_the_session_over() {
    let broker = TestBroker::start().await;
    let mut old = broker.connect(persistent("s", V5)).await;
    old.subscribe("t", AtLeastOnce).await;
    broker.publish("t", &["0"]).await;
    let first = old.message().await;
    let mut new = broker.resume(persistent("s", V5)).await;
    old.told(ReasonCode::SessionTakenOver).await;
    let second = new.message().await;
    assert_eq!((text(&second), second.header.dup), ("0", true));
    assert_eq!(first.header.packet_id, second.header.packet_id);
    let mut old311 = broker.connect(clean("other", V311)).await;
    old311.synced().await;
    broker.clean("other").await;
    old311.ended().await;
}

// Conformance v5: 3.1.2-4, 4.1.0-2
#[tokio::test]
async fn a_clean_start_and_an_expired_session_leave_nothing() {
    let broker = TestBroker::start().await;
    let mut subscriber = broker.connect(persistent("s", V5)).await;
    subscriber.subscribe("t", AtLeastOnce).await;
    subscriber.disconnect().await;
    broker.publish("t", &["0"]).await;
    let mut connect = persistent("s", V5);
    connect.clean_start = true;
    let (mut subscriber, connack) = broker.connack(connect).await;
    assert!(!connack.session_present);
    broker.publish("t", &["1"]).await;
    subscriber.quiet().await;
    subscriber.subscribe("t", AtLeastOnce).await;
    subscriber.disconnect_with(ReasonCode::Success, Some(1)).await;
    broker.metric_reaches("weir_sessions", 1.0).await;
    assert!(broker.metric("weir_subscriptions").await >= 1.0);
    let gone = async {
        while broker.metric("weir_subscriptions").await > 0.0 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.expect("the session expires");
    let (mut subscriber, connack) = broker.connack(persistent("s", V5)).await;
    assert!(!connack.session_present);
    broker.publish("t", &["2"]).await;
    subscriber.quiet().await;
}

// Conformance v5: 4.1.0-2
#[tokio::test]
async fn a_clean_session_ends_with_its_connection() {
    let broker = TestBroker::start().await;
    let mut subscriber = broker.subscriber("s", "t", AtLeastOnce).await;
    subscriber.subscribe("$share/g/t", AtLeastOnce).await;
    assert_eq!(broker.metric("weir_subscriptions").await, 2.0);
    subscriber.disconnect().await;
    let gone = async {
        while broker.metric("weir_subscriptions").await > 0.0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.expect("its subscriptions end");
    let (_, connack) = broker.connack(persistent("s", V5)).await;
    assert!(!connack.session_present);
}

// Conformance v5: 3.3.4-9, 4.6.0-1
#[tokio::test]
async fn a_long_backlog_keeps_to_receive_maximum() {
    let broker = TestBroker::start().await;
    let mut subscriber = broker.connect(persistent("s", V5)).await;
    subscriber.subscribe("t", ExactlyOnce).await;
    subscriber.disconnect().await;
    let payloads: Vec<String> = (0..600).map(|n| n.to_string()).collect();
    let mut publisher = broker.clean("p").await;
    for (n, payload) in (1..).zip(&payloads) {
        let qos = [AtLeastOnce, ExactlyOnce][usize::from(n % 2)];
        publisher.post(publish(qos, n, "t", payload)).await;
    }
    for n in 1..=600 {
        let reason = if n % 2 == 0 { publisher.pubacked(n).await } else { publisher.pubreced(n).await };
        assert_eq!(reason, ReasonCode::Success);
    }
    let mut subscriber = broker.resume(receive_maximum(persistent("s", V5), 3)).await;
    let held = [subscriber.message().await, subscriber.message().await, subscriber.message().await];
    subscriber.synced().await;
    drop(held);
    subscriber.vanish();
    // The three come again; a smaller window holds for them too.
    let mut subscriber = broker.resume(receive_maximum(persistent("s", V5), 1)).await;
    assert_eq!(subscriber.take_texts(600).await, payloads);
    subscriber.quiet().await;
}

/// Subscriptions to queues and streams are part of the session too.
#[tokio::test]
async fn queue_subscriptions_come_back_with_the_session() {
    let store = memory();
    let mut broker = TestBroker::start_on(&store).await;
    broker.declare(&[queue("work", "t")]).await;
    let mut consumer = broker.connect(persistent("c", V311)).await;
    consumer.subscribe("$queue/work", AtLeastOnce).await;
    for n in ["0", "1", "2"] {
        consumer.disconnect().await;
        broker.publish("t", &[n]).await;
        if n == "1" {
            drop(broker);
            broker = TestBroker::start_on(&store).await;
        }
        consumer = broker.resume(persistent("c", V311)).await;
        let message = consumer.take().await;
        assert_eq!((text(&message), message.header.dup), (n, false));
        consumer.synced().await;
    }
}

/// However much it is, and whatever it waits for: its DISCONNECT too.
// Conformance v5: 3.1.4-3
#[tokio::test]
async fn all_that_a_client_sent_before_it_came_back_counts() {
    const CONNECTS: &str = "weir_packets_received_total{type=\"connect\"}";
    let (store, faults) = faulty();
    let broker = TestBroker::start_on(&store).await;
    let mut reader = broker.subscriber("reader", "#", AtMostOnce).await;
    for (n, version) in [V5, V311, V5, V311].into_iter().enumerate() {
        let connect = persistent(&format!("c{n}"), version);
        let mut old = broker.connect(Connect { will: Some(will("gone", "")), ..connect.clone() }).await;
        let mut new = broker.open(version).await;
        let connects = broker.metric(CONNECTS).await;
        // It waits for this before anything else is read.
        let injected = faults.injected();
        faults.fail_commits_matching(&[tag::SESSION], CommitFault::Stalled(DEADLINE));
        old.post(publish(ExactlyOnce, 1, "first", "")).await;
        while faults.injected() == injected {
            tokio::task::yield_now().await;
        }
        let payload = "x".repeat(500);
        let many = (0..400).map(|_| Packet::Publish(Box::new(publish(AtMostOnce, 0, "many", &payload))));
        old.send_all(many.chain([Packet::Disconnect(Box::default())])).await;
        new.send(Packet::Connect(Box::new(connect))).await;
        broker.metric_reaches(CONNECTS, connects + 1.0).await;
        faults.heal();
        faults.release_stalled();
        assert!(matches!(new.recv().await, Packet::ConnAck(connack) if connack.session_present));
        assert_eq!(reader.message().await.topic.unwrap().as_str(), "first");
        for _ in 0..400 {
            assert_eq!(reader.message().await.topic.unwrap().as_str(), "many");
        }
        broker.publish("then", &["no will"]).await;
        assert_eq!(reader.message().await.topic.unwrap().as_str(), "then");
    }
}
