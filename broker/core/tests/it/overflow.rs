//! Queues at their limits: exact, and either the publisher is told or the oldest messages make room.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::{DeadLetterTarget, Definition, Kind, Overflow, Retention};
use weir_core::key::Publisher;
use weir_core::shard::{AppendError, QueueReport};
use weir_env::clock::Clock;
use weir_env::seed::{Seed, trials};
use weir_storage::{CommitFault, FaultStore, SharedStore};

use crate::support::{TestConsumer, definition, memory, message, open, publish, text};

/// A queue `q` of topic `a` and one shard that keeps the newest `max` messages.
fn newest(max: u64) -> Definition {
    let mut q = definition(Kind::Queue, "q", "a", 1);
    q.retention = Retention { max_messages: max, ..Retention::default() };
    q.queue.overflow = Overflow::DropOldest;
    q
}

fn find(core: &Core, name: &str) -> Arc<Object> {
    core.catalog().view().find(Kind::Queue, name).unwrap()
}

async fn report(core: &Core) -> QueueReport {
    let queue = find(core, "q");
    // A fault may be in the way of taking the shard over.
    loop {
        match core.describe(&queue).await {
            Ok(mut reports) => return reports.remove(0).queue.unwrap(),
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

async fn publish_all(core: &Core, clock: Clock, numbers: std::ops::Range<u32>) {
    for n in numbers {
        publish(core, clock, "a", &n.to_string()).await.unwrap();
    }
}

/// Everything that is left, in the order of its delivery.
async fn drain(core: &Core, name: &str) -> Vec<String> {
    let mut consumer = TestConsumer::attach(core, &find(core, name), 99, 1000).await;
    let mut payloads = Vec::new();
    let wait = Duration::from_secs(90);
    while let Ok(Some(delivery)) = tokio::time::timeout(wait, consumer.deliveries.recv()).await {
        payloads.push(text(&delivery));
        consumer.ack(core, &delivery).await;
    }
    payloads
}

fn texts(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|n| n.to_string()).collect()
}

#[tokio::test(start_paused = true)]
async fn the_oldest_make_room_and_are_counted() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[newest(3)]).await.unwrap();
    publish_all(&core, clock, 0..5).await;
    let full = report(&core).await;
    assert_eq!((full.depth, full.counters.overflowed), (3, 2));
    core.close().await;
    // Nothing of it is in memory: the oldest are read before they make room.
    let core = open(&store, clock, 2).await;
    publish_all(&core, clock, 5..7).await;
    let full = report(&core).await;
    assert_eq!((full.depth, full.counters.overflowed, full.counters.done()), (3, 4, 4));
    assert_eq!(drain(&core, "q").await, texts(4..7));
    assert_eq!(report(&core).await.bytes, 0);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn many_at_once_leave_exactly_as_many_as_fit() {
    for (max, payload) in [(10, 10), (1000, 10), (700, 2000)] {
        let (store, clock) = memory();
        let core = open(&store, clock, 1).await;
        core.apply(&[newest(max)]).await.unwrap();
        let payloads: Vec<String> = (0..3000).map(|n| format!("{n:0payload$}")).collect();
        let mut receipts = Vec::new();
        for payload in &payloads {
            let message = message(clock, "a", payload);
            let targets = core.targets(&message.topic);
            receipts.push(core.append(&targets, &message, &Publisher::default(), None).await.unwrap());
        }
        for receipt in receipts {
            assert!(receipt.settled().await.is_empty());
        }
        let full = report(&core).await;
        assert_eq!((full.depth, full.counters.overflowed), (max, 3000 - max));
        let left = payloads[3000 - usize::try_from(max).unwrap()..].to_vec();
        assert_eq!(drain(&core, "q").await, left, "the newest are left");
        core.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_consumers_hold_makes_no_room() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[newest(3)]).await.unwrap();
    publish_all(&core, clock, 0..3).await;
    let mut consumer = TestConsumer::attach(&core, &find(&core, "q"), 1, 2).await;
    let held = [consumer.next().await, consumer.next().await];
    publish_all(&core, clock, 3..5).await;
    let full = report(&core).await;
    assert_eq!((full.depth, full.inflight, full.counters.overflowed), (3, 2, 2));
    let mut greedy = TestConsumer::attach(&core, &find(&core, "q"), 2, 2).await;
    let third = greedy.next().await;
    assert_eq!(text(&third), "4");
    let refused = publish(&core, clock, "a", "x").await.unwrap_err();
    assert!(matches!(&refused, AppendError::Full { what: "retention.maxMessages", .. }), "{refused}");
    consumer.ack(&core, &held[0]).await;
    publish_all(&core, clock, 5..6).await;
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_limit_in_bytes_is_as_exact_and_what_never_fits_drops_nothing() {
    for overflow in [Overflow::DropOldest, Overflow::RejectPublish] {
        let (store, clock) = memory();
        let core = open(&store, clock, 1).await;
        let mut q = newest(0);
        q.retention.max_bytes = 20_000;
        q.queue.overflow = overflow;
        core.apply(&[q]).await.unwrap();
        let mut accepted = 0;
        for n in 0..100 {
            let payload = "x".repeat(n * 10 + 1);
            accepted += u64::from(publish(&core, clock, "a", &payload).await.is_ok());
            let held = report(&core).await;
            assert!(held.bytes <= 20_000, "{}", held.bytes);
            assert_eq!(held.depth, accepted - held.counters.overflowed);
        }
        let before = report(&core).await;
        assert_eq!(before.counters.overflowed > 0, overflow == Overflow::DropOldest);
        assert_eq!(accepted == 100, overflow == Overflow::DropOldest);
        let refused = publish(&core, clock, "a", &"y".repeat(20_001)).await.unwrap_err();
        assert!(matches!(&refused, AppendError::Full { what: "retention.maxBytes", .. }), "{refused}");
        assert_eq!(report(&core).await.counters, before.counters);
        core.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_made_room_goes_to_the_dead_letters_also_after_a_restart() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut q = newest(3);
    q.queue.dead_letter = Some(DeadLetterTarget::Object("dead".into()));
    core.apply(&[q.clone()]).await.unwrap();
    publish_all(&core, clock, 0..5).await;
    let stuck = report(&core).await;
    assert_eq!((stuck.depth, stuck.dying, stuck.counters.overflowed), (5, 2, 0));
    core.close().await;

    let core = open(&store, clock, 2).await;
    let mut consumer = TestConsumer::attach(&core, &find(&core, "q"), 1, 10).await;
    for n in 2..5 {
        assert_eq!(text(&consumer.next().await), n.to_string(), "those that made room are gone");
    }
    consumer.nothing().await;
    let dead = Definition { topic_filter: None, ..definition(Kind::Queue, "dead", "unused", 1) };
    core.apply(&[q, dead]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(drain(&core, "dead").await, texts(0..2));
    let from = report(&core).await;
    assert_eq!((from.depth, from.dying, from.counters.dead_lettered), (3, 0, 2));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_whose_dead_letters_cannot_leave_refuses_in_the_end() {
    const DYING_MAX: usize = 10_000;
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut q = newest(10);
    q.queue.dead_letter = Some(DeadLetterTarget::Object("dead".into()));
    core.apply(&[q]).await.unwrap();
    let mut accepted = 0;
    for _ in 0..11 {
        let results = join_all((0..1000).map(|_| publish(&core, clock, "a", "m"))).await;
        accepted += results.iter().filter(|result| result.is_ok()).count();
    }
    assert_eq!(accepted, DYING_MAX + 10);
    let stuck = report(&core).await;
    assert_eq!((stuck.depth, stuck.dying), (10_010, 10_000));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn while_nothing_can_be_stored_nothing_makes_room() {
    for with_dead_letters in [false, true] {
        let (store, clock) = memory();
        let store = FaultStore::wrap(store, Seed::fixed(1));
        let (faults, store): (_, SharedStore) = (store.handle(), Arc::new(store));
        let core = open(&store, clock, 1).await;
        let mut q = newest(5);
        q.queue.dead_letter = with_dead_letters.then(|| DeadLetterTarget::Object("dead".into()));
        core.apply(&[q]).await.unwrap();
        publish_all(&core, clock, 0..5).await;
        for _ in 0..20 {
            faults.fail_next_commit(CommitFault::Refused(weir_storage::Error::Unavailable("x".into())));
            publish(&core, clock, "a", "lost").await.unwrap_err();
            let full = report(&core).await;
            assert_eq!((full.depth, full.dying, full.counters.overflowed), (5, 0, 0));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(drain(&core, "q").await, texts(0..5));
        core.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_limit_holds_over_all_priorities_and_a_higher_one_finds_room_after_a_restart() {
    let (store, clock) = memory();
    let mut core = open(&store, clock, 1).await;
    core.apply(&[newest(10)]).await.unwrap();
    publish_all(&core, clock, 0..6).await;
    for n in 0..8 {
        if n == 4 {
            // Nothing is in memory any more.
            core.close().await;
            core = open(&store, clock, 2).await;
        }
        let mut urgent = message(clock, "a", &format!("urgent {n}"));
        urgent.properties.user = vec![("queue-priority".into(), "9".into())];
        let targets = core.targets(&urgent.topic);
        let receipt = core.append(&targets, &urgent, &Publisher::default(), None).await.unwrap();
        let settled = tokio::time::timeout(Duration::from_secs(60), receipt.settled()).await;
        assert!(settled.expect("no append waits for ever").is_empty());
    }
    let left = drain(&core, "q").await;
    assert_eq!((left.len(), left.iter().filter(|payload| payload.starts_with("urgent")).count()), (10, 8));
    assert_eq!(left.len(), 10);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn bytes_are_right_although_consumers_acknowledge_what_their_shard_has_not_read_again() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[definition(Kind::Queue, "q", "a", 1)]).await.unwrap();
    let payload = "x".repeat(1000);
    for _ in 0..4 {
        join_all((0..1000).map(|_| publish(&core, clock, "a", &payload))).await;
    }
    let each = report(&core).await.bytes / 4000;
    let mut consumer = TestConsumer::attach(&core, &find(&core, "q"), 1, 3900).await;
    let mut held = Vec::new();
    for _ in 0..3900 {
        held.push(consumer.next().await);
    }
    // Another process takes the shard, and it is taken back.
    let other = open(&store, clock, 2).await;
    publish(&other, clock, "a", &payload).await.unwrap();
    other.close().await;
    publish(&core, clock, "a", &payload).await.unwrap_err();
    tokio::time::sleep(Duration::from_secs(5)).await;
    for delivery in held.iter().rev().take(3899) {
        consumer.ack(&core, delivery).await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    let left = report(&core).await;
    assert_eq!((left.depth, left.bytes), (102, 102 * each));
    core.close().await;
}

/// Publishes, consumers, crashes and failing commits at random: every message that was accepted is delivered, or
/// counted as having made room; the limit always holds.
#[tokio::test(start_paused = true)]
async fn whatever_fails_the_books_balance() {
    for trial in trials(30) {
        let seed = trial.seed();
        let (store, clock) = memory();
        let random = Seed::fixed(seed);
        let store = FaultStore::wrap(store, Seed::fixed(seed));
        let (faults, store): (_, SharedStore) = (store.handle(), Arc::new(store));
        let mut core = open(&store, clock, seed).await;
        core.apply(&[newest(8)]).await.unwrap();
        let (mut sent, mut accepted, mut unsure) = (0u32, BTreeSet::new(), BTreeSet::new());
        let mut acked = BTreeSet::new();
        for step in 0..60 {
            match random.below(10) {
                0 => {
                    core.close().await;
                    core = open(&store, clock, step).await;
                }
                1 => faults.fail_next_commit(CommitFault::SettledLost),
                2 => faults.fail_next_commit(CommitFault::SettledCommitted),
                3 => {
                    let error = weir_storage::Error::Unavailable("x".into());
                    faults.fail_next_commit(CommitFault::Refused(error));
                }
                4 | 5 => {
                    let consumer = TestConsumer::try_attach(&core, &find(&core, "q"), 1, 3).await;
                    let Ok(mut consumer) = consumer else { continue };
                    let wait = Duration::from_millis(100);
                    if let Ok(Some(delivery)) = tokio::time::timeout(wait, consumer.deliveries.recv()).await {
                        acked.insert(text(&delivery));
                        consumer.ack(&core, &delivery).await;
                    }
                    let lost = weir_core::queue::Lost::Left;
                    core.detach(&find(&core, "q"), consumer.consumer.id, lost).await.unwrap();
                }
                _ => {
                    let count = 1 + u32::try_from(random.below(12)).unwrap();
                    let payloads = texts(sent..sent + count);
                    sent += count;
                    let publishes = payloads.iter().map(|payload| publish(&core, clock, "a", payload));
                    for (payload, result) in payloads.iter().zip(join_all(publishes).await) {
                        if result.is_ok() { &mut accepted } else { &mut unsure }.insert(payload.clone());
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            let now = report(&core).await;
            assert!(now.depth <= 8, "{}", now.depth);
        }
        let before = report(&core).await;
        let left: BTreeSet<String> = drain(&core, "q").await.into_iter().collect();
        assert_eq!(left.len() as u64, before.depth, "each is delivered once");
        let gone = accepted.iter().filter(|p| !left.contains(*p) && !acked.contains(*p)).count() as u64;
        let overflowed = before.counters.overflowed;
        assert!(
            gone <= overflowed && overflowed <= gone + unsure.len() as u64,
            "{gone} gone, {overflowed} made room, {} unsure",
            unsure.len()
        );
        assert!(left.iter().all(|payload| accepted.contains(payload) || unsure.contains(payload)));
        core.close().await;
    }
}
