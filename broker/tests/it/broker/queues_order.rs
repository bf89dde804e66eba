//! Queues that keep order within a key: one message of a key at a time, in the order they were published.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weir_codec::ReasonCode;
use weir_core::definition::{Definition, Ordering};

use super::client::{AtLeastOnce, Client, V5, clean, number, property, receive_maximum, text};
use super::{TestBroker, memory, queue, stream};

fn ordered(shards: u8) -> Definition {
    let mut work = queue("work", "job/+");
    work.queue.ordering = Ordering::Key;
    work.shards = shards;
    work.dispatch.backoff_initial_ms = 5;
    work.dispatch.backoff_max_ms = 20;
    work
}

/// What the consumers of one queue have seen together.
#[derive(Default)]
struct Seen {
    /// Topics of which somebody holds a message.
    held: BTreeSet<String>,
    /// The number that comes next on each topic.
    next: BTreeMap<String, u32>,
    done: usize,
    refused: usize,
}

const TOPICS: u32 = 12;
const PER_TOPIC: u32 = 15;

/// Takes messages, refuses some of them the first time, until all that were published are done.
async fn consume(mut consumer: Client, seen: Arc<Mutex<Seen>>, end: CancellationToken) {
    consumer.subscribe("$queue/work", AtLeastOnce).await;
    loop {
        let message = tokio::select! {
            message = consumer.message() => message,
            () = end.cancelled() => return,
        };
        let topic = message.topic.as_ref().unwrap().as_str().to_owned();
        let n = text(&message).parse::<u32>().unwrap();
        {
            let mut seen = seen.lock();
            assert!(seen.held.insert(topic.clone()), "two messages of {topic} at a time");
            assert_eq!(*seen.next.entry(topic.clone()).or_default(), n, "{topic} is out of order");
        }
        // Whoever could break the order has the time to.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
        let refused = n % 5 == 2 && number(&message, "delivery-count") == 1;
        {
            let mut seen = seen.lock();
            seen.held.remove(&topic);
            if refused {
                seen.refused += 1;
            } else {
                seen.next.insert(topic, n + 1);
                seen.done += 1;
            }
            if seen.done == (TOPICS * PER_TOPIC) as usize {
                end.cancel();
            }
        }
        let reason = if refused { ReasonCode::UnspecifiedError } else { ReasonCode::Success };
        consumer.puback(&message, reason).await;
    }
}

#[tokio::test]
async fn messages_of_a_key_come_one_at_a_time_in_order_whoever_consumes() {
    let broker = TestBroker::start().await;
    broker.declare(&[ordered(3)]).await;
    let seen = Arc::new(Mutex::new(Seen::default()));
    let end = CancellationToken::new();
    let mut tasks = JoinSet::new();
    for n in 0..4 {
        let consumer = broker.connect(receive_maximum(clean(&format!("c{n}"), V5), 5)).await;
        tasks.spawn(consume(consumer, Arc::clone(&seen), end.clone()));
    }
    let mut publisher = broker.clean("p").await;
    for n in 0..PER_TOPIC {
        for topic in 0..TOPICS {
            publisher.publish(&format!("job/{topic}"), &n.to_string()).await;
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let refused = usize::try_from(TOPICS * PER_TOPIC / 5).unwrap();
    assert_eq!(seen.lock().refused, refused);
}

#[tokio::test]
async fn order_within_a_key_outlives_the_broker() {
    let store = memory();
    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[ordered(1)]).await;
    broker.publish("job/a", &["a0", "a1", "a2"]).await;
    broker.publish("job/b", &["b0"]).await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    let first = consumer.message().await;
    assert_eq!(text(&consumer.take().await), "b0");
    consumer.quiet().await;
    consumer.puback(&first, ReasonCode::UnspecifiedError).await;
    consumer.synced().await;
    broker.stop().await;

    let broker = TestBroker::start_on(&store).await;
    broker.declare(&[ordered(1)]).await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    for (n, count) in [(0, 2), (1, 1), (2, 1)] {
        let message = consumer.message().await;
        assert_eq!((text(&message), number(&message, "delivery-count")), (format!("a{n}").as_str(), count));
        consumer.quiet().await;
        consumer.puback(&message, ReasonCode::Success).await;
    }
}

#[tokio::test]
async fn what_orders_messages_can_be_computed_from_their_payload() {
    let broker = TestBroker::start().await;
    let key = "has(message.json.id) ? message.topic.split('/')[0] + ':' + string(message.json.id) : 7.5";
    let mut log = stream("log", "job/+");
    log.key = Some(key.into());
    let mut work = ordered(3);
    work.key = Some(key.into());
    broker.declare(&[work, log]).await;
    broker.publish("job/a", &["{\"id\": 1}"]).await;
    broker.publish("job/b", &["{\"id\": 1, \"n\": 2}"]).await;
    let mut consumer = broker.subscriber("c", "$queue/work", AtLeastOnce).await;
    let first = consumer.message().await;
    assert_eq!(property(&first, "key"), Some("job:1"));
    // The second waits for the first; one without a key, or with another, waits for nothing.
    broker.publish("job/c", &["no JSON"]).await;
    let unordered = consumer.message().await;
    assert_eq!((text(&unordered), property(&unordered, "key")), ("no JSON", None));
    broker.publish("job/a", &["{\"id\": \"2\"}"]).await;
    assert_eq!(property(&consumer.message().await, "key"), Some("job:2"));
    assert!(broker.metric("weir_queue_key_waits_total").await > 0.0);
    consumer.puback(&first, ReasonCode::Success).await;
    assert_eq!(text(&consumer.message().await), "{\"id\": 1, \"n\": 2}");
    // One failure each, of the queue and of the stream.
    assert_eq!(broker.metric("weir_key_failures_total").await, 2.0);
    let mut reader = broker.clean("r").await;
    reader.read_from("$stream/log", AtLeastOnce, "earliest").await;
    assert_eq!(property(&reader.take().await, "key"), Some("job:1"));
}
