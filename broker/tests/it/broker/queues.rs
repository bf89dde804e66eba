//! Queue subscriptions: who gets what, how often, and what follows from each answer.

use weir_codec::{Connect, Publish, ReasonCode};
use weir_core::definition::{Definition, Strategy};

use super::client::{
    AtLeastOnce, AtMostOnce, Client, ExactlyOnce, V5, V311, clean, filter, number, property, publish,
    receive_maximum, text,
};
use super::{TestBroker, config, memory, queue};

async fn start(change: impl FnOnce(&mut Definition)) -> TestBroker {
    let broker = TestBroker::start().await;
    let mut work = queue("work", "job/#");
    change(&mut work);
    broker.declare(&[work]).await;
    broker
}

async fn consumer(broker: &TestBroker, id: &str) -> Client {
    broker.subscriber(id, "$queue/work", AtLeastOnce).await
}

#[tokio::test]
async fn a_backlog_is_shared_and_every_message_comes_once() {
    for version in [V5, V311] {
        let broker = start(|work| work.dispatch.strategy = Strategy::RoundRobin).await;
        let payloads: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        broker.publish("job/1", &payloads.iter().map(String::as_str).collect::<Vec<_>>()).await;
        let mut texts = Vec::new();
        let mut first = broker.connect(receive_maximum(clean("a", version), 5)).await;
        first.subscribe("$queue/work", AtLeastOnce).await;
        let mut second = broker.connect(clean("b", version)).await;
        if version == V5 {
            let held: Vec<Publish> = [first.message().await, first.message().await].into();
            second.subscribe("$q/job/#", AtLeastOnce).await;
            // The first has room for three more that it has not taken.
            texts.extend(second.take_texts(15).await);
            for message in &held {
                first.puback(message, ReasonCode::Success).await;
                texts.push(text(message).to_owned());
            }
            texts.extend(first.take_texts(3).await);
        } else {
            texts.extend(first.take_texts(20).await);
        }
        texts.sort_by_key(|text| text.parse::<u32>().unwrap());
        assert_eq!(texts, payloads);
        first.synced().await;
        second.synced().await;
    }
}

#[tokio::test]
async fn receive_maximum_bounds_what_a_consumer_holds() {
    for maximum in [1, 2] {
        let broker = start(|_| {}).await;
        let mut consumer = broker.connect(receive_maximum(clean("c", V5), maximum)).await;
        consumer.subscribe("$queue/work", AtLeastOnce).await;
        broker.publish("job/1", &["0", "1", "2", "3"]).await;
        let mut held = Vec::new();
        for _ in 0..maximum {
            held.push(consumer.message().await);
        }
        consumer.quiet().await;
        for n in usize::from(maximum)..4 {
            consumer.puback(&held.remove(0), ReasonCode::Success).await;
            held.push(consumer.message().await);
            assert_eq!(text(held.last().unwrap()), n.to_string());
            consumer.synced().await;
        }
    }
}

/// Live messages and queue messages share one Receive Maximum, and neither starves the other.
#[tokio::test]
async fn a_queue_and_a_topic_share_one_receive_maximum() {
    let broker = start(|_| {}).await;
    let mut consumer = broker.connect(receive_maximum(clean("c", V5), 1)).await;
    consumer.subscribe("$queue/work", AtLeastOnce).await;
    consumer.subscribe("job/#", AtLeastOnce).await;
    let mut publisher = broker.clean("p").await;
    for n in 0..50 {
        publisher.publish("job/1", &n.to_string()).await;
    }
    let (mut live, mut queued) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let message = consumer.message().await;
        consumer.synced().await;
        consumer.puback(&message, ReasonCode::Success).await;
        let list = if property(&message, "queue").is_some() { &mut queued } else { &mut live };
        list.push(text(&message).to_owned());
    }
    let expected: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    assert_eq!((&live, &queued), (&expected, &expected));
}

#[tokio::test]
async fn room_is_given_back_when_a_subscription_ends() {
    let broker = start(|_| {}).await;
    broker.publish("job/1", &["0", "1", "2", "3"]).await;
    let mut consumer = broker.connect(receive_maximum(clean("c", V5), 2)).await;
    for _ in 0..5 {
        consumer.subscribe("$queue/work", AtLeastOnce).await;
        let held = [consumer.message().await, consumer.message().await];
        assert_eq!(held.each_ref().map(text), ["0", "1"]);
        consumer.unsubscribe("$queue/work").await;
        // Nacks of what is no longer theirs: only the room counts.
        for message in &held {
            consumer.puback(message, ReasonCode::UnspecifiedError).await;
        }
        consumer.synced().await;
    }
    consumer.subscribe("$queue/work", AtLeastOnce).await;
    assert_eq!(consumer.take_texts(4).await, ["0", "1", "2", "3"]);
}

#[tokio::test]
async fn a_nack_brings_the_message_again() {
    let broker = start(|_| {}).await;
    broker.publish("job/1", &["x"]).await;
    let mut consumer = consumer(&broker, "c").await;
    let mut last = None;
    for count in 1..=3 {
        let message = consumer.message().await;
        assert_eq!((number(&message, "delivery-count"), message.header.dup), (count, false));
        assert_ne!(message.header.packet_id, last);
        last = message.header.packet_id;
        consumer.puback(&message, ReasonCode::UnspecifiedError).await;
    }
    consumer.take().await;
    consumer.quiet().await;
}

#[tokio::test]
async fn silence_brings_the_message_again_and_a_late_answer_counts() {
    let broker = start(|work| work.dispatch.ack_timeout_ms = 100).await;
    broker.publish("job/1", &["x"]).await;
    let mut consumer = consumer(&broker, "c").await;
    let first = consumer.message().await;
    let second = consumer.message().await;
    assert_eq!((number(&first, "delivery-count"), number(&second, "delivery-count")), (1, 2));
    assert!(!second.header.dup && first.header.packet_id != second.header.packet_id);
    consumer.puback(&first, ReasonCode::Success).await;
    consumer.synced().await;
    let report = async {
        let object = broker.core.catalog().view().find(weir_core::definition::Kind::Queue, "work").unwrap();
        broker.core.describe(&object).await.unwrap().remove(0).queue.unwrap()
    };
    let report = report.await;
    assert_eq!((report.depth, report.counters.acknowledged), (0, 1));
    // The other one is not needed any more, and not an error.
    consumer.puback(&second, ReasonCode::UnspecifiedError).await;
    consumer.synced().await;
    broker.publish("job/1", &["y"]).await;
    assert_eq!(text(&consumer.take().await), "y");
}

#[tokio::test]
async fn a_consumer_that_vanishes_counts_an_attempt_and_one_that_leaves_does_not() {
    let broker = start(|_| {}).await;
    broker.publish("job/1", &["x"]).await;
    let mut expected = 1;
    for vanishes in [false, true, false, true] {
        let mut consumer = consumer(&broker, "c").await;
        assert_eq!(number(&consumer.message().await, "delivery-count"), expected);
        if vanishes {
            consumer.vanish();
            expected += 1;
        } else {
            consumer.disconnect().await;
        }
    }
    let mut taken_over = consumer(&broker, "c").await;
    assert_eq!(number(&taken_over.message().await, "delivery-count"), expected);
    let mut unsubscribes = consumer(&broker, "other").await;
    broker.clean("c").await;
    taken_over.told(ReasonCode::SessionTakenOver).await;
    assert_eq!(number(&unsubscribes.message().await, "delivery-count"), expected + 1);
    unsubscribes.unsubscribe("$queue/work").await;
    assert_eq!(number(&consumer(&broker, "last").await.message().await, "delivery-count"), expected + 1);
}

#[tokio::test]
async fn at_qos_0_written_is_acknowledged() {
    let broker = start(|_| {}).await;
    broker.publish("job/1", &["0", "1"]).await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtMostOnce).await;
    for expected in ["0", "1"] {
        let message = consumer.message().await;
        assert_eq!((text(&message), message.header.qos), (expected, AtMostOnce));
    }
    consumer.synced().await;
    consumer.vanish();
    broker.publish("job/1", &["2"]).await;
    assert_eq!(text(&super::queues::consumer(&broker, "d").await.take().await), "2");
}

#[tokio::test]
async fn a_consumer_waits_for_its_queue_and_outlives_it() {
    let broker = TestBroker::start().await;
    let mut consumer = broker.clean("c").await;
    let suback = consumer.try_subscribe(vec![filter("$queue/work", AtLeastOnce)], None, Vec::new()).await;
    assert_eq!(suback.reasons, [ReasonCode::GrantedQoS1]);
    assert!(suback.properties.reason_string.unwrap().contains("does not exist yet"));
    for round in ["0", "1"] {
        broker.declare(&[queue("work", "job/#")]).await;
        broker.publish("job/1", &[round]).await;
        assert_eq!(text(&consumer.take().await), round);
        broker.declare(&[]).await;
        consumer.synced().await;
    }
}

#[tokio::test]
async fn where_nobody_may_wait_a_missing_queue_fails_the_subscription() {
    let mut config = config();
    config.wait_for_queue = false;
    let broker = TestBroker::start_with(config, &memory()).await;
    let mut consumer = broker.clean("c").await;
    assert_eq!(consumer.subscribed("$queue/work", AtLeastOnce).await, ReasonCode::UnspecifiedError);
    assert_eq!(consumer.subscribed("$stream/work", AtLeastOnce).await, ReasonCode::UnspecifiedError);
}

#[tokio::test]
async fn a_delivery_says_where_it_comes_from_after_what_its_publisher_said() {
    let broker = start(|work| work.key = Some("message.userProperties[\"k\"]".into())).await;
    let mut client = broker.clean("c").await;
    client.try_subscribe(vec![filter("$queue/work", ExactlyOnce)], Some(42), Vec::new()).await;
    let mut sent = publish(ExactlyOnce, 1, "job/1", "x");
    let user = |name: &str, value: &str| (name.to_owned().into(), value.to_owned().into());
    let own = vec![user("k", "v"), user("queue", "mine"), user("b", ""), user("a", "")];
    sent.properties.user_properties.clone_from(&own);
    sent.properties.content_type = Some("text/plain".into());
    sent.properties.correlation_data = Some("c".into());
    sent.properties.payload_format_utf8 = Some(true);
    sent.properties.response_topic = Some(weir_topic::TopicName::parse("answers").unwrap());
    sent.header.retain = true;
    let mut publisher = broker.clean("p").await;
    publisher.post(sent.clone()).await;
    assert_eq!(publisher.pubreced(1).await, ReasonCode::Success);
    let message = client.take().await;
    assert_eq!((message.header.qos, message.header.retain), (AtLeastOnce, false));
    assert_eq!(message.header.subscription_identifiers[..], [42]);
    assert_eq!(message.topic, sent.topic);
    assert_eq!(message.properties.content_type, sent.properties.content_type);
    assert_eq!(message.properties.correlation_data, sent.properties.correlation_data);
    assert_eq!(message.properties.payload_format_utf8, sent.properties.payload_format_utf8);
    assert_eq!(message.properties.response_topic, sent.properties.response_topic);
    let (publishers, ours) = message.properties.user_properties.split_at(own.len());
    assert_eq!(publishers, own);
    let expected =
        [("queue", "work"), ("offset", "0"), ("shard", "0"), ("delivery-count", "1"), ("key", "v")];
    assert_eq!(ours, expected.map(|(name, value)| user(name, value)));
}

#[tokio::test]
async fn refused_subscriptions() {
    let broker = start(|_| {}).await;
    let invalid = ReasonCode::TopicFilterInvalid;
    let mut client = broker.clean("c").await;
    // Those at the end can never exist: no queue or stream has a filter that begins with `$`.
    for to in [
        "$queue/work/other",
        "$share/g/$queue/work",
        "$share/g/$q/job/#",
        "$queue/-",
        "$queue/",
        "$q/",
        "$q/$SYS/#",
        "$q/$other/a",
        "$queue/nowhere/$SYS/#",
        "$stream/nowhere/$SYS/#",
        "$s/earliest/$SYS/#",
    ] {
        assert_eq!(client.subscribed(to, AtLeastOnce).await, invalid, "{to}");
        let mut old = broker.connect(clean("old", V311)).await;
        assert_eq!(old.subscribed(to, AtLeastOnce).await, ReasonCode::UnspecifiedError, "{to}");
    }
    for to in ["$queue/work", "$q/job/#"] {
        let mut local = filter(to, AtLeastOnce);
        local.options.no_local = true;
        assert_eq!(client.try_subscribe(vec![local], None, Vec::new()).await.reasons, [invalid]);
    }
    client.subscribe("$queue/work/job/#", AtLeastOnce).await;
    assert_eq!(client.subscribed("$queue/work", AtLeastOnce).await, invalid, "the same queue again");
    broker.publish("job/1", &["x"]).await;
    client.take().await;
    client.quiet().await;
}

#[tokio::test]
async fn a_full_queue_refuses_and_takes_again() {
    let broker = start(|work| work.retention.max_messages = 2).await;
    broker.publish("job/1", &["0", "1"]).await;
    let mut live = broker.subscriber("live", "job/#", ExactlyOnce).await;
    let mut publisher = broker.clean("p").await;
    for (n, qos) in [(1, AtLeastOnce), (2, ExactlyOnce)] {
        publisher.post(publish(qos, n, "job/1", "x")).await;
        let reason =
            if qos == ExactlyOnce { publisher.pubreced(n).await } else { publisher.pubacked(n).await };
        assert_eq!(reason, ReasonCode::QuotaExceeded);
    }
    // Live subscribers had the one of QoS 1 all the same.
    live.take().await;
    live.synced().await;
    let mut consumer = consumer(&broker, "c").await;
    assert_eq!(consumer.take_texts(2).await, ["0", "1"]);
    consumer.synced().await;
    assert_eq!(publisher.publish("job/1", "2").await, ReasonCode::Success);
    assert_eq!(text(&consumer.take().await), "2");
}

#[tokio::test]
async fn a_message_too_large_for_one_consumer_goes_to_another() {
    let broker = start(|_| {}).await;
    let mut connect = clean("small", V5);
    connect.maximum_packet_size = std::num::NonZeroU32::new(500);
    let mut small = broker.connect(connect).await;
    small.subscribe("$queue/work", AtLeastOnce).await;
    let large = "x".repeat(1000);
    broker.publish("job/1", &[&large]).await;
    small.quiet().await;
    let mut consumer = consumer(&broker, "c").await;
    assert_eq!(text(&consumer.take().await), large);
    broker.publish("job/1", &["small"]).await;
    let either = async |client: &mut Client| text(&client.take().await).to_owned();
    let got = tokio::select! { text = either(&mut small) => text, text = either(&mut consumer) => text };
    assert_eq!(got, "small");
}

#[tokio::test]
async fn subscribing_again_keeps_what_is_in_flight() {
    let broker = start(|_| {}).await;
    broker.publish("job/1", &["x"]).await;
    let mut consumer = consumer(&broker, "c").await;
    let message = consumer.message().await;
    consumer.subscribe("$queue/work", AtLeastOnce).await;
    consumer.quiet().await;
    consumer.puback(&message, ReasonCode::Success).await;
    consumer.quiet().await;
}

/// Old clients and bridges consume with the same filters, and get what they understand.
#[tokio::test]
async fn an_old_consumer_gets_plain_messages() {
    let broker = start(|_| {}).await;
    for (to, qos) in
        [("$queue/work", AtLeastOnce), ("$q/job/#", AtLeastOnce), ("$queue/work/job/#", AtMostOnce)]
    {
        for bridge in [false, true] {
            let mut consumer = broker.connect(Connect { bridge, ..clean("old", V311) }).await;
            consumer.subscribe(to, qos).await;
            broker.publish("job/1", &["x"]).await;
            let message: Publish =
                if qos == AtMostOnce { consumer.message().await } else { consumer.take().await };
            assert_eq!((text(&message), message.topic.as_ref().unwrap().as_str()), ("x", "job/1"));
            assert_eq!(message.properties, Default::default());
            consumer.disconnect().await;
        }
    }
}
