//! Messages that are not done long after those around them: they do not keep the log in the store.

use std::sync::Arc;
use std::time::Duration;

use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::{DeadLetterTarget, Definition, DispatchSettings, Kind, Overflow, Retention};
use weir_core::key::Publisher;
use weir_core::keyspace::{LogId, aside, log_blob, queue};
use weir_core::queue::Verdict;
use weir_core::shard::LogReport;
use weir_env::clock::Clock;
use weir_storage::{Isolation, RangeQuery, SharedStore};

use crate::support::{TestConsumer, definition, memory, message, open, publish, text};

/// More than may be done above the floor before messages are moved.
const MANY: usize = 20_000;

struct World {
    store: SharedStore,
    clock: Clock,
    core: Core,
    queue: Arc<Object>,
}

impl World {
    async fn start(definition: Definition) -> Self {
        let (store, clock) = memory();
        let core = open(&store, clock, 1).await;
        core.apply(&[definition]).await.unwrap();
        let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
        Self { store, clock, core, queue }
    }

    /// Ends the process without a word and starts another.
    async fn crash(&mut self) {
        self.core = open(&self.store, self.clock, 2).await;
    }

    async fn report(&self) -> LogReport {
        self.core.describe(&self.queue).await.unwrap().remove(0)
    }

    async fn publish_many(&self) {
        let message = message(self.clock, "a", "m");
        let targets = self.core.targets(&message.topic);
        let mut receipts = Vec::new();
        for _ in 0..MANY {
            receipts.push(self.core.append(&targets, &message, &Publisher::default(), None).await.unwrap());
        }
        for receipt in receipts {
            assert!(receipt.settled().await.is_empty());
        }
    }

    /// Rows of messages aside, of attempts, and chunks of payloads.
    async fn rows(&self) -> [usize; 3] {
        let log = self.queue.logs[0];
        let mut counts = [0; 3];
        let ranges = [aside::range_from(&log, 0), queue::Attempts::range(&log), blobs(&log)];
        for (count, (begin, end)) in counts.iter_mut().zip(ranges) {
            let query = RangeQuery {
                begin: begin.into(),
                end: end.into(),
                limit: 0,
                target_bytes: 0,
                reverse: false,
            };
            *count = self.store.begin().get_range(query, Isolation::Snapshot).await.unwrap().pairs.len();
        }
        counts
    }
}

fn blobs(log: &LogId) -> (Vec<u8>, Vec<u8>) {
    log_blob::range(log, 0, u64::MAX)
}

/// Takes everything and acknowledges what is not `kept`.
async fn acknowledge_all_but(world: &World, consumer: &mut TestConsumer, count: usize, kept: &[u64]) {
    for _ in 0..count {
        let delivery = consumer.next().await;
        if !kept.contains(&delivery.offset) {
            consumer.ack(&world.core, &delivery).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_straggler_leaves_the_log_and_comes_again_after_a_crash() {
    let mut q = definition(Kind::Queue, "q", "a", 1);
    q.dispatch = DispatchSettings { ack_timeout_ms: 3_600_000, ..DispatchSettings::default() };
    let mut world = World::start(q).await;
    let large = "x".repeat(200_000);
    for payload in ["small", "refused", &large] {
        publish(&world.core, world.clock, "a", payload).await.unwrap();
    }
    let mut consumer = TestConsumer::attach(&world.core, &world.queue, 1, 1000).await;
    let held = [consumer.next().await, consumer.next().await, consumer.next().await];
    world.publish_many().await;
    acknowledge_all_but(&world, &mut consumer, MANY, &[]).await;
    consumer.settle(&world.core, &held[1], Verdict::Rejected).await;
    assert_eq!(consumer.next().await.delivery_count, 2);
    tokio::time::sleep(Duration::from_secs(30)).await;

    let report = world.report().await;
    let queue = report.queue.unwrap();
    let end = report.extent.next;
    assert_eq!((queue.floor, queue.depth, queue.aside, queue.inflight), (end, 3, 3, 3));
    assert!(report.bytes < 64 * 1024, "{} bytes of the log are left", report.bytes);
    assert!(queue.bytes > 200_000, "what is held still counts");
    assert_eq!(world.rows().await, [3, 3, 3]);

    world.crash().await;
    let mut consumer = TestConsumer::attach(&world.core, &world.queue, 1, 1000).await;
    for (payload, count) in [("small", 1), ("refused", 2), (large.as_str(), 1)] {
        let delivery = consumer.next().await;
        assert_eq!((text(&delivery).as_str() == payload, delivery.delivery_count), (true, count));
        consumer.ack(&world.core, &delivery).await;
    }
    consumer.nothing().await;
    let queue = world.report().await.queue.unwrap();
    assert_eq!((queue.depth, queue.bytes, queue.aside), (0, 0, 0));
    assert_eq!(queue.counters.acknowledged, MANY as u64 + 3);
    assert_eq!(world.rows().await, [0; 3], "rows and chunks are gone");

    world.crash().await;
    let mut consumer = TestConsumer::attach(&world.core, &world.queue, 1, 1000).await;
    consumer.nothing().await;
    world.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_moved_aside_expires_although_nobody_consumes() {
    for has_dead_letters in [false, true] {
        let mut q = definition(Kind::Queue, "q", "a", 1);
        q.retention = Retention { max_age_ms: 600_000, ..Retention::default() };
        q.queue.dead_letter = has_dead_letters.then(|| DeadLetterTarget::Object("dead".into()));
        let mut world = World::start(q.clone()).await;
        let dead = Definition { topic_filter: None, ..definition(Kind::Queue, "dead", "", 1) };
        world.core.apply(&[q, dead]).await.unwrap();
        world.publish_many().await;
        let mut consumer = TestConsumer::attach(&world.core, &world.queue, 1, 1000).await;
        acknowledge_all_but(&world, &mut consumer, MANY, &[3, 700]).await;
        tokio::time::sleep(Duration::from_secs(15)).await;
        assert_eq!(world.report().await.queue.unwrap().aside, 2);
        world.crash().await;
        assert_eq!(world.report().await.queue.unwrap().depth, 2);
        tokio::time::sleep(Duration::from_secs(700)).await;
        let queue = world.report().await.queue.unwrap();
        let counters = (queue.counters.expired, queue.counters.dead_lettered);
        let expected = if has_dead_letters { (0, 2) } else { (2, 0) };
        assert_eq!((queue.depth, queue.aside, counters), (0, 0, expected));
        world.core.close().await;
        assert_eq!(world.rows().await, [0; 3]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_moved_aside_is_the_oldest_that_makes_room() {
    let mut q = Definition { last_value: true, ..definition(Kind::Queue, "q", "#", 1) };
    q.retention = Retention { max_messages: 3, ..Retention::default() };
    q.queue.overflow = Overflow::DropOldest;
    let mut world = World::start(q).await;
    for topic in ["rare/1", "rare/2"] {
        publish(&world.core, world.clock, topic, "m").await.unwrap();
    }
    world.publish_many().await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    let queue = world.report().await.queue.unwrap();
    assert_eq!((queue.depth, queue.aside), (3, 2));
    world.crash().await;
    publish(&world.core, world.clock, "new", "m").await.unwrap();
    let queue = world.report().await.queue.unwrap();
    assert_eq!((queue.depth, queue.aside, queue.counters.overflowed), (3, 1, 1));
    let mut consumer = TestConsumer::attach(&world.core, &world.queue, 1, 10).await;
    for topic in ["rare/2", "a", "new"] {
        let delivery = consumer.next().await;
        assert_eq!(delivery.record.message.topic.as_str(), topic);
        consumer.ack(&world.core, &delivery).await;
    }
    consumer.nothing().await;
    world.core.close().await;
    assert_eq!(world.rows().await, [0; 3]);
}
