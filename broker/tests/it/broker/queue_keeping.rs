//! What queues keep, seen from outside: over a restart, and of each key the newest message.

use weir_codec::{Publish, ReasonCode};
use weir_core::definition::Definition;

use super::client::{AtLeastOnce, V311, clean, property, text};
use super::{TestBroker, memory, queue};

fn topic_and_text(message: &Publish) -> (&str, &str) {
    (message.topic.as_ref().unwrap().as_str(), text(message))
}

#[tokio::test]
async fn a_last_value_queue_has_the_newest_message_of_each_topic() {
    let broker = TestBroker::start().await;
    broker.declare(&[Definition { last_value: true, ..queue("state", "state/+") }]).await;
    for topic in ["state/1", "state/2"] {
        broker.publish(topic, &["1", "2", "3"]).await;
    }
    assert!(broker.metric("weir_queue_superseded_total").await >= 4.0);
    let mut consumer = broker.connect(clean("c", V311)).await;
    consumer.subscribe("$queue/state", AtLeastOnce).await;
    let held = consumer.message().await;
    assert_eq!(topic_and_text(&held), ("state/1", "3"));
    assert_eq!(topic_and_text(&consumer.take().await), ("state/2", "3"));
    // Replaced while it is in flight: whoever gives it back does not get it again.
    broker.publish("state/1", &["4"]).await;
    assert_eq!(topic_and_text(&consumer.take().await), ("state/1", "4"));
    consumer.vanish();
    let mut next = broker.subscriber("d", "$queue/state", AtLeastOnce).await;
    next.quiet().await;
    broker.publish("state/2", &["5"]).await;
    assert_eq!(topic_and_text(&next.take().await), ("state/2", "5"));
}

#[tokio::test]
async fn after_an_orderly_end_nothing_acknowledged_comes_again_and_a_backoff_goes_on() {
    let store = memory();
    let broker = TestBroker::start_on(&store).await;
    let mut work = queue("work", "job/+");
    (work.dispatch.backoff_initial_ms, work.dispatch.backoff_max_ms) = (3_600_000, 3_600_000);
    broker.declare(&[work.clone()]).await;
    broker.publish("job/1", &["done", "refused", "done too", "held", "waiting"]).await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    for answer in
        [Some(ReasonCode::Success), Some(ReasonCode::UnspecifiedError), Some(ReasonCode::Success), None]
    {
        let message = consumer.message().await;
        if let Some(reason) = answer {
            consumer.puback(&message, reason).await;
        }
    }
    assert_eq!(text(&consumer.message().await), "waiting");
    consumer.synced().await;
    broker.stop().await;

    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[work]).await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    for expected in ["held", "waiting"] {
        let message = consumer.take().await;
        assert_eq!((text(&message), property(&message, "delivery-count")), (expected, Some("1")));
    }
    // What was refused waits for the rest of its hour.
    consumer.quiet().await;
}
