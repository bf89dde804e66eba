//! Where messages go that a queue cannot deliver, or has no room for, seen from outside.

use weir_codec::{Packet, Publish, ReasonCode};
use weir_core::definition::{DeadLetterTarget, Definition, Kind, Overflow};

use super::client::{AtLeastOnce, Client, V5, V311, clean, id, persistent, property, publish, text};
use super::{TestBroker, memory, queue};

/// A queue `work` of `job/#` that gives a message up after two attempts.
fn work(target: DeadLetterTarget) -> Definition {
    let mut work = queue("work", "job/#");
    work.dispatch.max_deliveries = 2;
    work.queue.dead_letter = Some(target);
    work
}

fn to_queue() -> Definition {
    work(DeadLetterTarget::Object("dead".into()))
}

fn dead() -> Definition {
    Definition { topic_filter: None, ..queue("dead", "unused") }
}

async fn reject(consumer: &mut Client, times: usize) {
    for _ in 0..times {
        let message = consumer.message().await;
        consumer.puback(&message, ReasonCode::UnspecifiedError).await;
    }
}

/// What a dead letter says of itself.
fn told(letter: &Publish) -> [Option<&str>; 4] {
    ["dead-letter-reason", "dead-letter-queue", "delivery-count", "original-topic"].map(|n| last(letter, n))
}

/// The last user property of this name before those of the delivery.
fn last<'a>(letter: &'a Publish, name: &str) -> Option<&'a str> {
    let user = &letter.properties.user_properties;
    let own = user.iter().position(|(name, _)| name == "queue").unwrap_or(user.len());
    user[..own].iter().rfind(|(key, _)| key == name).map(|(_, value)| &**value)
}

#[tokio::test]
async fn what_is_refused_too_often_is_in_the_dead_letter_queue() {
    let broker = TestBroker::start().await;
    broker.declare(&[to_queue(), dead()]).await;
    broker.publish("job/1", &["x"]).await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    reject(&mut consumer, 2).await;
    let mut reader = broker.subscriber("r", "$queue/dead", AtLeastOnce).await;
    let letter = reader.take().await;
    assert_eq!((text(&letter), letter.topic.as_ref().unwrap().as_str()), ("x", "job/1"));
    assert_eq!(told(&letter), [Some("rejected"), Some("work"), Some("2"), Some("job/1")]);
    assert_eq!(property(&letter, "queue"), Some("dead"));
    consumer.quiet().await;
    assert!(broker.metric("weir_queue_dead_lettered_total").await > 0.0);
    // An old client reads dead letters as well.
    broker.publish("job/2", &["y"]).await;
    reject(&mut consumer, 2).await;
    reader.disconnect().await;
    let mut old = broker.connect(clean("old", V311)).await;
    old.subscribe("$queue/dead", AtLeastOnce).await;
    assert_eq!(text(&old.take().await), "y");
}

#[tokio::test]
async fn a_consumer_that_crashes_on_a_message_is_spared_the_third_time() {
    let broker = TestBroker::start().await;
    broker.declare(&[to_queue(), dead()]).await;
    broker.publish("job/1", &["x"]).await;
    for _ in 0..2 {
        let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
        consumer.message().await;
        consumer.vanish();
    }
    let letter = broker.subscriber("r", "$queue/dead", AtLeastOnce).await.take().await;
    assert_eq!(last(&letter, "dead-letter-reason"), Some("disconnected"));
}

#[tokio::test]
async fn a_topic_gets_dead_letters_live_and_stored_and_the_queue_they_left_does_not() {
    let broker = TestBroker::start().await;
    let mut everything = work(DeadLetterTarget::Topic("dead/work".into()));
    everything.topic_filter = Some("#".into());
    // A second queue of the topic, whose own dead letters would go there too.
    let mut keeps = work(DeadLetterTarget::Topic("dead/keeps".into()));
    (keeps.name, keeps.object, keeps.topic_filter) = ("keeps".into(), "keeps".into(), Some("dead/#".into()));
    broker.declare(&[everything, keeps]).await;
    let mut live = broker.subscriber("l", "dead/+", AtLeastOnce).await;
    let mut away = broker.connect(persistent("away", V5)).await;
    away.subscribe("dead/work", AtLeastOnce).await;
    away.disconnect().await;
    broker.publish("job/1", &["x"]).await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    reject(&mut consumer, 2).await;

    let letter = live.take().await;
    assert_eq!((text(&letter), letter.topic.as_ref().unwrap().as_str()), ("x", "dead/work"));
    assert_eq!(told(&letter), [Some("rejected"), Some("work"), Some("2"), Some("job/1")]);
    let mut away = broker.resume(persistent("away", V5)).await;
    assert_eq!(text(&away.take().await), "x");
    let mut second = broker.subscriber("s", "$queue/keeps", AtLeastOnce).await;
    let stored = second.message().await;
    assert_eq!(told(&stored), told(&letter));
    second.puback(&stored, ReasonCode::UnspecifiedError).await;
    reject(&mut second, 1).await;
    // It has died once: no one else gets it, and it is not in the queue that it left.
    second.quiet().await;
    live.quiet().await;
    consumer.quiet().await;
    assert!(broker.metric("weir_queue_exhausted_total").await > 0.0);
}

#[tokio::test]
async fn dead_letters_wait_for_their_queue_over_a_restart() {
    let store = memory();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[to_queue()]).await;
    broker.publish("job/1", &["x"]).await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    reject(&mut consumer, 2).await;
    consumer.quiet().await;
    broker.stop().await;

    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[to_queue(), dead()]).await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    let mut reader = broker.subscriber("r", "$queue/dead", AtLeastOnce).await;
    assert_eq!(text(&reader.take().await), "x");
    reader.quiet().await;
    consumer.quiet().await;
}

#[tokio::test]
async fn the_oldest_make_room_and_are_dead_letters() {
    let broker = TestBroker::start().await;
    let mut newest = to_queue();
    newest.retention.max_messages = 2;
    newest.queue.overflow = Overflow::DropOldest;
    broker.declare(&[newest, dead()]).await;
    broker.publish("job/1", &["0", "1", "2", "3"]).await;
    let mut reader = broker.subscriber("r", "$queue/dead", AtLeastOnce).await;
    for expected in ["0", "1"] {
        let letter = reader.take().await;
        assert_eq!((text(&letter), last(&letter, "dead-letter-reason")), (expected, Some("overflow")));
    }
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    assert_eq!(consumer.take_texts(2).await, ["2", "3"]);
}

#[tokio::test]
async fn a_publisher_is_told_which_queue_is_full_of_what() {
    let broker = TestBroker::start().await;
    let mut full = queue("work", "job/#");
    full.retention.max_messages = 1;
    broker.declare(&[full]).await;
    let mut publisher = broker.clean("p").await;
    assert_eq!(publisher.publish("job/1", "0").await, ReasonCode::Success);
    publisher.post(publish(AtLeastOnce, 7, "job/1", "1")).await;
    match publisher.recv().await {
        Packet::PubAck(ack) => {
            assert_eq!((ack.packet_id, ack.reason), (id(7), ReasonCode::QuotaExceeded));
            let reason = ack.properties.unwrap().reason_string.unwrap();
            assert!(
                reason.starts_with("work is full: retention.maxMessages has reached its limit"),
                "{reason}"
            );
        }
        other => panic!("{other:?}"),
    }
    let object = broker.core.catalog().view().find(Kind::Queue, "work").unwrap();
    assert_eq!(broker.core.describe(&object).await.unwrap()[0].queue.as_ref().unwrap().depth, 1);
}
