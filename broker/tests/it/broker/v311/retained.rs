//! Retained messages.

use weir_codec::{Packet, QoS, ReasonCode};

use super::super::client::{
    AtLeastOnce, AtMostOnce, Client, ExactlyOnce, V311, clean, persistent, publish, retained, text,
};
use super::super::{DEADLINE, TestBroker, memory};

/// Publishes and waits for the broker.
async fn publish_one(publisher: &mut Client, message: weir_codec::Publish) {
    let (qos, packet_id) = (message.header.qos, message.header.packet_id);
    publisher.post(message).await;
    match (qos, packet_id) {
        (AtLeastOnce, Some(n)) => drop(publisher.pubacked(n.get()).await),
        (ExactlyOnce, Some(n)) => {
            publisher.pubreced(n.get()).await;
            publisher.pubrel(n).await;
            publisher.pubcomped(n.get()).await;
        }
        _ => publisher.synced().await,
    }
}

/// What a new subscription to `filter` is sent, payloads and QoS.
async fn kept(broker: &TestBroker, filter: &str) -> Vec<(String, QoS)> {
    let mut client = broker.old("asks").await;
    client.subscribe(filter, ExactlyOnce).await;
    // They come with SUBACK, and so before this.
    client.send(Packet::PingReq).await;
    let mut all = Vec::new();
    loop {
        match client.recv().await {
            Packet::Publish(message) => {
                assert!(message.header.retain && !message.header.dup, "{message:?}");
                all.push((text(&message).to_owned(), message.header.qos));
            }
            Packet::PingResp => break,
            other => panic!("{other:?}"),
        }
    }
    client.disconnect().await;
    all
}

/// The same, once a publish of QoS 0 that nobody waits for has been stored.
#[track_caller]
fn becomes(broker: &TestBroker, expected: &[(&str, QoS)]) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let stored = async {
            while !kept(broker, "t")
                .await
                .iter()
                .map(|(text, qos)| (text.as_str(), *qos))
                .eq(expected.iter().copied())
            {
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(DEADLINE, stored).await.is_ok(), "not {expected:?} at {caller}");
    }
}

// Conformance v311: 3.1.2-7, 3.3.1-5, 3.3.1-6, 3.3.1-8
#[tokio::test]
async fn a_retained_publish_is_kept_with_its_qos_for_new_subscriptions() {
    let store = memory();
    let broker = TestBroker::start_on(&store).await;
    let mut publisher = broker.old("p").await;
    for (n, qos) in (1..).zip([AtMostOnce, AtLeastOnce, ExactlyOnce]) {
        publish_one(&mut publisher, retained(qos, n, &format!("t/{n}"), "kept")).await;
    }
    // Neither the session nor the process that it came from matters.
    publisher.disconnect().await;
    broker.connect(clean("p", V311)).await.disconnect().await;
    drop(broker);
    let broker = TestBroker::start_on(&store).await;
    for connect in [clean("s", V311), persistent("s", V311)] {
        for granted in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
            let mut client = broker.connect(connect.clone()).await;
            client.subscribe("t/#", granted).await;
            let mut came = Vec::new();
            for _ in 0..3 {
                let message = client.message().await;
                assert!(message.header.retain && !message.header.dup);
                assert_eq!(text(&message), "kept");
                match message.header.qos {
                    AtMostOnce => {}
                    AtLeastOnce => client.puback(&message, ReasonCode::Success).await,
                    ExactlyOnce => client.receive_twice_acknowledged(&message).await,
                }
                came.push((message.topic.unwrap().to_string(), message.header.qos));
            }
            came.sort();
            let expected = (1..).zip([AtMostOnce, AtLeastOnce, ExactlyOnce]);
            let expected: Vec<_> = expected.map(|(n, qos)| (format!("t/{n}"), qos.min(granted))).collect();
            assert_eq!(came, expected);
            client.synced().await;
            client.unsubscribe("t/#").await;
            client.disconnect().await;
        }
    }
}

// Conformance v311: 3.3.1-7, 3.3.1-5
#[tokio::test]
async fn a_retained_publish_takes_the_place_of_the_last_whatever_its_qos() {
    let broker = TestBroker::start().await;
    let mut publisher = broker.old("p").await;
    for first in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
        for second in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
            publish_one(&mut publisher, retained(first, 1, "t", "old")).await;
            publish_one(&mut publisher, retained(second, 1, "t", "new")).await;
            becomes(&broker, &[("new", second)]).await;
        }
    }
}

// Conformance v311: 3.3.1-10, 3.3.1-11, 3.3.1-9
#[tokio::test]
async fn an_empty_retained_publish_removes_and_is_delivered_and_is_not_kept() {
    let broker = TestBroker::start().await;
    let mut publisher = broker.old("p").await;
    let mut live = broker.old_subscriber("live", "t", ExactlyOnce).await;
    for qos in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
        publish_one(&mut publisher, retained(AtLeastOnce, 1, "t", "kept")).await;
        assert_eq!(kept(&broker, "t").await.len(), 1);
        publish_one(&mut publisher, retained(qos, 2, "t", "")).await;
        becomes(&broker, &[]).await;
        assert_eq!(broker.metric("weir_retained_messages").await, 0.0);
        // Where there is nothing to remove it is delivered just so.
        publish_one(&mut publisher, retained(qos, 3, "t", "")).await;
        assert_eq!(kept(&broker, "#").await, []);
        for (expected, expected_qos) in [("kept", AtLeastOnce), ("", qos), ("", qos)] {
            let message = live.message().await;
            assert_eq!((text(&message), message.header.qos), (expected, expected_qos));
            assert!(!message.header.retain, "to one who had subscribed before");
            match expected_qos {
                AtMostOnce => {}
                AtLeastOnce => live.puback(&message, ReasonCode::Success).await,
                ExactlyOnce => live.receive_twice_acknowledged(&message).await,
            }
        }
        live.synced().await;
    }
}

// Conformance v311: 3.3.1-9, 3.3.1-12
#[tokio::test]
async fn a_publish_without_the_flag_is_not_kept_and_changes_nothing() {
    let broker = TestBroker::start().await;
    let mut publisher = broker.old("p").await;
    for qos in [AtMostOnce, AtLeastOnce, ExactlyOnce] {
        publish_one(&mut publisher, publish(qos, 1, "t", "live")).await;
        assert_eq!(kept(&broker, "#").await, []);
    }
    publish_one(&mut publisher, retained(AtLeastOnce, 1, "t", "kept")).await;
    for (qos, payload) in [(AtMostOnce, "x"), (AtLeastOnce, ""), (ExactlyOnce, "y")] {
        publish_one(&mut publisher, publish(qos, 1, "t", payload)).await;
        assert_eq!(kept(&broker, "t").await, [("kept".to_owned(), AtLeastOnce)]);
    }
}

/// Also in the inbox of one who is away.
// Conformance v311: 3.3.1-9
#[tokio::test]
async fn an_established_subscription_sees_no_retain_flag() {
    let broker = TestBroker::start().await;
    let mut live = broker.old_subscriber("live", "t", AtLeastOnce).await;
    let mut away = broker.connect(persistent("away", V311)).await;
    away.subscribe("t", AtLeastOnce).await;
    away.disconnect().await;
    let mut publisher = broker.old("p").await;
    publish_one(&mut publisher, retained(AtLeastOnce, 1, "t", "kept")).await;
    assert!(!live.take().await.header.retain);
    let mut away = broker.resume(persistent("away", V311)).await;
    assert!(!away.take().await.header.retain);
    // A session that comes back has not subscribed anew.
    away.synced().await;
}

// Conformance v311: 3.8.4-3, 3.3.1-6, 3.3.1-8
#[tokio::test]
async fn a_subscription_made_again_is_sent_retained_messages_again() {
    let broker = TestBroker::start().await;
    let mut publisher = broker.old("p").await;
    publish_one(&mut publisher, retained(AtLeastOnce, 1, "t/1", "kept")).await;
    for connect in [clean("s", V311), persistent("s", V311)] {
        let mut client = broker.connect(connect).await;
        for qos in [AtLeastOnce, AtLeastOnce, AtMostOnce, ExactlyOnce] {
            client.subscribe("t/+", qos).await;
            let message = client.message().await;
            assert_eq!((text(&message), message.header.retain), ("kept", true));
            assert_eq!(message.header.qos, qos.min(AtLeastOnce));
            if message.header.qos == AtLeastOnce {
                client.puback(&message, ReasonCode::Success).await;
            }
            client.synced().await;
        }
    }
}
