//! What clients send, whole buffers of it at once, and what becomes of what they sent last.

use weir_codec::{Packet, ReasonCode, Subscribe};

use super::client::{
    AtLeastOnce, AtMostOnce, ExactlyOnce, V5, V311, clean, filter, id, persistent, publish, receive_maximum,
    text,
};
use super::{TestBroker, config, memory, queue};

fn pub_packet(qos: weir_codec::QoS, n: u16, topic: &str, payload: &str) -> Packet {
    Packet::Publish(Box::new(publish(qos, n, topic, payload)))
}

#[tokio::test]
async fn more_publishes_than_may_wait_are_all_answered() {
    let mut config = config();
    config.limits.receive_maximum = 10;
    let broker = TestBroker::start_with(config, &memory()).await;
    broker.declare(&[queue("all", "t")]).await;
    let mut client = broker.connect(clean("c", V311)).await;
    client.send_all((1..=500).map(|n| pub_packet(AtLeastOnce, n, "t", "x"))).await;
    for n in 1..=500 {
        assert_eq!(client.pubacked(n).await, ReasonCode::Success);
    }
}

// Conformance v5: 3.8.4-1, 3.12.4-1
#[tokio::test]
async fn requests_sent_in_one_piece_are_all_answered() {
    let broker = TestBroker::start().await;
    let mut client = broker.clean("c").await;
    let subscribe = |n: u16| {
        let filters = vec![filter(&format!("t/{n}"), AtMostOnce)];
        let subscribe = Subscribe {
            packet_id: id(n),
            subscription_identifier: None,
            user_properties: Vec::new(),
            filters,
        };
        Packet::Subscribe(Box::new(subscribe))
    };
    client.send_all((1..=100).map(subscribe)).await;
    for n in 1..=100 {
        match client.recv().await {
            Packet::SubAck(suback) => assert_eq!(suback.packet_id, id(n)),
            other => panic!("{other:?}"),
        }
    }
    client.send_all((0..5000).map(|_| Packet::PingReq)).await;
    for _ in 0..5000 {
        assert_eq!(client.recv().await, Packet::PingResp);
    }
}

#[tokio::test]
async fn what_was_sent_before_the_end_arrives() {
    let broker = TestBroker::start().await;
    broker.declare(&[queue("all", "t")]).await;
    let mut consumer = broker.subscriber("consumer", "$queue/all", AtLeastOnce).await;
    let mut client = broker.clean("c").await;
    let payload = "x".repeat(100);
    let mut packets: Vec<Packet> = (0..6000).map(|_| pub_packet(AtMostOnce, 0, "t", &payload)).collect();
    packets.push(Packet::Disconnect(Box::default()));
    client.send_all(packets).await;
    drop(client);
    for _ in 0..6000 {
        consumer.take().await;
    }
}

// Conformance v5: 3.3.4-9, 4.6.0-5
#[tokio::test]
async fn an_exhausted_receive_maximum_holds_live_messages_back_and_loses_none() {
    let broker = TestBroker::start().await;
    for version in [V5, V311] {
        let mut subscriber = broker.connect(receive_maximum(clean("s", version), 2)).await;
        subscriber.subscribe("t", AtLeastOnce).await;
        let mut publisher = broker.clean("p").await;
        for n in 0..2000 {
            assert_eq!(publisher.publish("t", &n.to_string()).await, ReasonCode::Success);
        }
        let mut taken = Vec::new();
        if version == V5 {
            let held = [subscriber.message().await, subscriber.message().await];
            subscriber.synced().await;
            for message in &held {
                subscriber.puback(message, ReasonCode::Success).await;
                taken.push(text(message).to_owned());
            }
        }
        taken.extend(subscriber.take_texts(2000 - taken.len()).await);
        assert!(taken.iter().enumerate().all(|(n, text)| *text == n.to_string()), "{taken:?}");
    }
}

#[tokio::test]
async fn publishing_to_a_queue_by_its_name_is_refused() {
    let broker = TestBroker::start().await;
    broker.declare(&[queue("all", "t")]).await;
    for topic in ["$queue/all", "$q/t", "$stream/all", "$s/earliest/t", "$SYS/broker/uptime"] {
        let mut client = broker.clean("c").await;
        assert_eq!(client.publish(topic, "x").await, ReasonCode::TopicNameInvalid, "{topic}");
        client.post(publish(ExactlyOnce, 7, topic, "x")).await;
        assert_eq!(client.pubreced(7).await, ReasonCode::TopicNameInvalid);
        client.post(publish(AtMostOnce, 0, topic, "x")).await;
        client.synced().await;
        for qos in [AtLeastOnce, ExactlyOnce, AtMostOnce] {
            let mut old = broker.connect(clean("old", V311)).await;
            old.post(publish(qos, 1, topic, "x")).await;
            old.ended().await;
        }
    }
    broker.metric_reaches("weir_messages_dropped_total{reason=\"topic_not_allowed\"}", 5.0).await;
    for topic in ["$queue/all", "$SYS/broker/uptime"] {
        let mut with_will = clean("w", V5);
        with_will.will = Some(super::client::will(topic, "x"));
        let (_, connack) = broker.connack(with_will).await;
        assert_eq!(connack.code, ReasonCode::TopicNameInvalid, "{topic}");
    }
}

// Conformance v5: 3.1.2-22
#[tokio::test]
async fn a_quiet_client_is_told_that_its_time_is_over() {
    let broker = TestBroker::start().await;
    let mut connect = clean("c", V5);
    connect.keep_alive = 1;
    broker.connect(connect).await.told(ReasonCode::KeepAliveTimeout).await;
}

#[tokio::test]
async fn too_many_filters_in_one_packet_are_refused_each() {
    let mut config = config();
    config.limits.max_subscriptions_per_client = 100;
    let broker = TestBroker::start_with(config, &memory()).await;
    let mut client = broker.connect(persistent("c", V5)).await;
    let queues = (0..70).map(|n| filter(&format!("$queue/q{n}"), AtLeastOnce));
    let topics = (0..70).map(|n| filter(&format!("t{n}"), AtLeastOnce));
    let suback = client.try_subscribe(queues.chain(topics).collect(), None, Vec::new()).await;
    let granted = |reason: &&ReasonCode| !reason.is_error();
    assert_eq!(suback.reasons[..70].iter().filter(granted).count(), 64);
    assert_eq!(suback.reasons.iter().filter(granted).count(), 100);
    let refused = suback.reasons.iter().filter(|reason| reason.is_error());
    assert!(refused.into_iter().all(|reason| *reason == ReasonCode::QuotaExceeded));
}
