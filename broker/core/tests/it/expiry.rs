//! Messages that expire leave within a minute, wherever they are and whoever consumes.

use std::sync::Arc;
use std::time::Duration;

use weir_core::Core;
use weir_core::definition::{DeadLetterTarget, Definition, Kind};
use weir_core::key::Publisher;
use weir_core::keyspace::record::RecordKind;
use weir_core::queue::Verdict;
use weir_core::shard::QueueReport;
use weir_env::clock::Clock;

use crate::support::{TestConsumer, definition, memory, message, open, text};

async fn report(core: &Core, name: &str) -> QueueReport {
    let queue = core.catalog().view().find(Kind::Queue, name).unwrap();
    core.describe(&queue).await.unwrap().remove(0).queue.unwrap()
}

/// Publishes to topic `a`, one after the other; those with a number of seconds expire.
async fn publish(core: &Core, clock: Clock, messages: impl IntoIterator<Item = (String, Option<u64>)>) {
    let mut receipts = Vec::new();
    for (payload, seconds) in messages {
        let mut message = message(clock, "a", &payload);
        message.expires_at = seconds.map(|s| clock.wall().saturating_add(Duration::from_secs(s)));
        let targets = core.targets(&message.topic);
        receipts.push(core.append(&targets, &message, &Publisher::default(), None).await.unwrap());
    }
    for receipt in receipts {
        assert!(receipt.settled().await.is_empty());
    }
}

async fn after(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

/// 10,000 messages, every hundredth of which expires after 100 s, and one that lasts before them.
fn mixed() -> impl Iterator<Item = (String, Option<u64>)> {
    (0..10_000).map(|n| (n.to_string(), (n % 100 == 50).then_some(100)))
}

#[tokio::test(start_paused = true)]
async fn what_expires_in_the_middle_of_a_backlog_leaves_within_a_minute() {
    for restart in [false, true] {
        let (store, clock) = memory();
        let mut core = open(&store, clock, 1).await;
        core.apply(&[definition(Kind::Queue, "q", "a", 1)]).await.unwrap();
        publish(&core, clock, mixed()).await;
        if restart {
            core.close().await;
            core = open(&store, clock, 2).await;
        }
        // Somebody who does not take what waits.
        let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
        let mut slow = TestConsumer::attach(&core, &queue, 1, 1).await;
        assert_eq!(text(&slow.next().await), "0");
        after(90).await;
        assert_eq!(report(&core, "q").await.depth, 10_000);
        after(75).await;
        let swept = report(&core, "q").await;
        assert_eq!((swept.depth, swept.counters.expired), (9_900, 100), "restarted: {restart}");
        // What came back to the front meanwhile is not delivered either.
        let mut fast = TestConsumer::attach(&core, &queue, 2, 1000).await;
        let mut bytes = 0;
        for _ in 0..9_899 {
            let delivery = fast.next().await;
            assert_ne!(text(&delivery).parse::<u32>().unwrap() % 100, 50);
            bytes += 1;
            fast.ack(&core, &delivery).await;
        }
        assert_eq!(bytes, 9_899);
        core.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_sweep_leaves_what_consumers_hold_and_fills_the_dead_letters() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut q = definition(Kind::Queue, "q", "a", 1);
    q.dispatch.ack_timeout_ms = 3_600_000;
    q.queue.dead_letter = Some(DeadLetterTarget::Object("dead".into()));
    let dead = Definition { topic_filter: None, ..definition(Kind::Queue, "dead", "unused", 1) };
    core.apply(&[q, dead]).await.unwrap();
    let messages = (0..20).map(|n| (n.to_string(), (n < 10).then_some(30)));
    publish(&core, clock, messages).await;
    let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
    let mut consumer = TestConsumer::attach(&core, &queue, 1, 2).await;
    let held = [consumer.next().await, consumer.next().await];
    after(200).await;
    let swept = report(&core, "q").await;
    assert_eq!((swept.depth, swept.inflight, swept.counters.dead_lettered), (12, 2, 8));
    assert_eq!(report(&core, "dead").await.depth, 8);
    // One is acknowledged after all; the other comes back too late to be delivered again.
    consumer.ack(&core, &held[0]).await;
    consumer.settle(&core, &held[1], Verdict::Rejected).await;
    assert_eq!(text(&consumer.next().await), "10");
    after(10).await;
    let swept = report(&core, "q").await;
    assert_eq!((swept.depth, swept.counters.acknowledged, swept.counters.dead_lettered), (10, 1, 9));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_backlog_without_expiries_is_not_read_to_look_for_them() {
    let (store, clock) = memory();
    let meter = Arc::new(weir_storage::Meter::new(RecordKind::ALL.len(), RecordKind::index_of));
    let store: weir_storage::SharedStore =
        Arc::new(weir_storage::MeteredStore::new(store, Arc::clone(&meter)));
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Queue, "q", "a", 1)]).await.unwrap();
    publish(&core, clock, (0..5000).map(|n| (n.to_string(), None))).await;
    core.close().await;
    let core = open(&store, clock, 2).await;
    report(&core, "q").await;
    after(10).await;
    let read = || meter.cost(RecordKind::Segment as usize).keys_read;
    let before = read();
    after(600).await;
    assert_eq!(read(), before);
    // Of others every block is, once.
    publish(&core, clock, [("last".to_owned(), Some(10_000))]).await;
    core.close().await;
    let core = open(&store, clock, 3).await;
    report(&core, "q").await;
    after(100).await;
    let after_sweep = read();
    assert!(after_sweep > before);
    after(600).await;
    assert_eq!(read(), after_sweep);
    core.close().await;
}
