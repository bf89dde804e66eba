//! What publishers ask of a queue, seen from outside.

use weir_codec::{Packet, Publish, ReasonCode};
use weir_core::definition::Definition;

use super::client::{
    AtLeastOnce, AtMostOnce, Client, ExactlyOnce, V5, clean, id, property, publish, receive_maximum, text,
    will,
};
use super::{TestBroker, queue};

async fn start(change: impl FnOnce(&mut Definition)) -> TestBroker {
    let broker = TestBroker::start().await;
    let mut work = queue("work", "job/#");
    change(&mut work);
    broker.declare(&[work]).await;
    broker
}

/// A publish to the queue that asks for something.
fn asking(n: u16, payload: &str, properties: &[(&str, &str)]) -> Publish {
    let mut publish = publish(AtLeastOnce, n, "job/1", payload);
    let user = properties.iter().map(|(name, value)| ((*name).into(), (*value).into()));
    publish.properties.user_properties = user.collect();
    publish
}

async fn post(publisher: &mut Client, n: u16, payload: &str, properties: &[(&str, &str)]) -> ReasonCode {
    publisher.post(asking(n, payload, properties)).await;
    publisher.pubacked(n).await
}

#[tokio::test]
async fn a_publish_repeated_under_its_id_is_one_message() {
    let broker = start(|work| work.shards = 4).await;
    let mut publisher = broker.clean("p").await;
    for n in 1..=3 {
        let reason = post(&mut publisher, n, "once", &[("queue-dedup-id", "order-7")]).await;
        assert_eq!(reason, ReasonCode::Success);
    }
    let mut exactly = asking(4, "once", &[("queue-dedup-id", "order-7")]);
    exactly.header.qos = ExactlyOnce;
    publisher.post(exactly).await;
    assert_eq!(publisher.pubreced(4).await, ReasonCode::Success);
    assert_eq!(
        post(&mut publisher, 5, "another", &[("queue-dedup-id", "order-8")]).await,
        ReasonCode::Success
    );
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    let mut texts = consumer.take_texts(2).await;
    texts.sort();
    assert_eq!(texts, ["another", "once"]);
    consumer.quiet().await;
    assert!(broker.metric("weir_queue_duplicates_total").await > 2.0);
}

#[tokio::test]
async fn what_a_queue_cannot_follow_is_refused_with_the_reason() {
    let broker = start(|_| {}).await;
    let mut live = broker.subscriber("l", "job/#", AtMostOnce).await;
    let mut publisher = broker.clean("p").await;
    for (n, name, value, says) in [
        (
            1,
            "queue-priority",
            "12",
            "work refuses the message: queue-priority \"12\" is not a priority; allowed: 0 to 9",
        ),
        (
            2,
            "queue-delay",
            "soon",
            "work refuses the message: queue-delay \"soon\" is not a delay; allowed: ",
        ),
        (3, "queue-dedup-id", "", "work refuses the message: queue-dedup-id has 0 bytes; allowed: 1 to 256"),
    ] {
        publisher.post(asking(n, "x", &[(name, value)])).await;
        match publisher.recv().await {
            Packet::PubAck(ack) => {
                assert_eq!((ack.packet_id, ack.reason), (id(n), ReasonCode::ImplementationSpecificError));
                let reason = ack.properties.unwrap().reason_string.unwrap();
                assert!(reason.starts_with(says), "{reason}");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(text(&live.message().await), "x", "live subscribers do not depend on queues");
    }
    // Where no queue takes it, it is a property like any other.
    let mut elsewhere = asking(4, "y", &[("queue-priority", "12")]);
    elsewhere.topic = Some(weir_topic::TopicName::parse("other").unwrap());
    publisher.post(elsewhere).await;
    assert_eq!(publisher.pubacked(4).await, ReasonCode::NoMatchingSubscribers);
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    consumer.quiet().await;
}

#[tokio::test]
async fn a_will_that_a_queue_cannot_follow_is_dropped_at_once_and_counted() {
    let broker = start(|_| {}).await;
    let mut connect = clean("w", V5);
    let mut last = will("job/1", "gone");
    last.message.properties.user_properties = vec![("queue-delay".into(), "soon".into())];
    connect.will = Some(last);
    broker.connect(connect).await.vanish();
    let refused = "weir_messages_dropped_total{reason=\"queue_refused\"}";
    broker.metric_reaches(refused, 1.0).await;
    // As a publish that nobody can be told of.
    let mut publisher = broker.clean("p").await;
    let mut silent = asking(1, "gone", &[("queue-delay", "soon")]);
    (silent.header.qos, silent.header.packet_id) = (AtMostOnce, None);
    publisher.post(silent).await;
    broker.metric_reaches(refused, 2.0).await;
    assert_eq!(broker.metric("weir_messages_dropped_total{reason=\"store_failed\"}").await, 0.0);
}

#[tokio::test]
async fn a_delayed_message_waits_and_keeps_its_properties() {
    let broker = start(|_| {}).await;
    let mut live = broker.subscriber("l", "job/#", AtMostOnce).await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    let mut publisher = broker.clean("p").await;
    assert_eq!(post(&mut publisher, 1, "far", &[("queue-delay", "1h")]).await, ReasonCode::Success);
    assert_eq!(text(&live.message().await), "far", "live subscribers do not wait");
    assert_eq!(post(&mut publisher, 2, "later", &[("queue-delay", "400ms")]).await, ReasonCode::Success);
    assert_eq!(post(&mut publisher, 3, "now", &[]).await, ReasonCode::Success);
    assert!(broker.metric("weir_queue_delayed").await > 0.0);
    assert_eq!(text(&consumer.take().await), "now");
    let later = consumer.take().await;
    assert_eq!((text(&later), property(&later, "queue-delay")), ("later", Some("400ms")));
    consumer.quiet().await;
    assert!((broker.metric("weir_queue_delayed").await - 1.0).abs() < f64::EPSILON);
}

#[tokio::test]
async fn what_is_urgent_overtakes_what_waits() {
    let broker = start(|_| {}).await;
    let mut publisher = broker.clean("p").await;
    for (n, payload, priority) in
        [(1, "low", "0"), (2, "high", "9"), (3, "middle", "5"), (4, "high too", "9")]
    {
        assert_eq!(
            post(&mut publisher, n, payload, &[("queue-priority", priority)]).await,
            ReasonCode::Success
        );
    }
    let mut consumer = broker.connect(receive_maximum(clean("c", V5), 1)).await;
    consumer.subscribe("$queue/work", AtLeastOnce).await;
    for (expected, priority) in
        [("high", Some("9")), ("high too", Some("9")), ("middle", Some("5")), ("low", None)]
    {
        let message = consumer.take().await;
        let properties = &message.properties.user_properties;
        let said = properties.iter().find(|(name, _)| **name == *"priority").map(|(_, value)| &**value);
        assert_eq!((text(&message), said), (expected, priority));
    }
}
