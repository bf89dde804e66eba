//! Messages that cannot be delivered: they leave for the dead letters once, whatever fails meanwhile.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use weir_core::Core;
use weir_core::catalog::Object;
use weir_core::definition::{DeadLetterTarget, Definition, Kind, Retention};
use weir_core::queue::{Lost, QueueDelivery, Verdict};
use weir_core::shard::QueueReport;
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_storage::{CommitFault, FaultStore, Isolation, RangeQuery, SharedStore};

use crate::support::{TestConsumer, definition, memory, message, open, publish, text};

/// A queue `q` of topic `a` whose dead letters go to queue `dead` after two attempts.
fn with_target(name: &str, filter: &str, target: &str) -> Definition {
    let mut q = definition(Kind::Queue, name, filter, 1);
    q.dispatch.max_deliveries = 2;
    q.queue.dead_letter = Some(DeadLetterTarget::Object(target.into()));
    q
}

fn target(name: &str) -> Definition {
    Definition { topic_filter: None, ..definition(Kind::Queue, name, "unused", 1) }
}

fn find(core: &Core, name: &str) -> Arc<Object> {
    core.catalog().view().find(Kind::Queue, name).unwrap()
}

async fn report(core: &Core, name: &str) -> QueueReport {
    core.describe(&find(core, name)).await.unwrap().remove(0).queue.unwrap()
}

/// The last user property of a name: the publisher's own come before.
fn property<'a>(delivery: &'a QueueDelivery, name: &str) -> Option<&'a str> {
    let mut user = delivery.record.message.properties.user.iter().rev();
    user.find(|(key, _)| key == name).map(|(_, value)| &**value)
}

/// Lets everything happen that needs no more than `seconds`.
async fn after(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

async fn refuse(core: &Core, consumer: &mut TestConsumer, times: u32) {
    for _ in 0..times {
        let delivery = consumer.next().await;
        consumer.settle(core, &delivery, Verdict::Rejected).await;
    }
}

#[tokio::test(start_paused = true)]
async fn each_reason_leads_to_the_dead_letters_and_is_told() {
    for reason in ["rejected", "timeout", "disconnected", "expired"] {
        let (store, clock) = memory();
        let core = open(&store, clock, 1).await;
        let mut q = with_target("q", "a", "dead");
        if reason == "expired" {
            q.retention = Retention { max_age_ms: 60_000, ..Retention::default() };
        }
        core.apply(&[q, target("dead")]).await.unwrap();
        let mut original = message(clock, "a", "m");
        original.expires_at = Some(clock.wall().saturating_add(Duration::from_secs(3600)));
        original.properties.user = vec![("dead-letter-reason".into(), "mine".into())];
        let targets = core.targets(&original.topic);
        let receipt = core.append(&targets, &original, &Default::default(), None).await.unwrap();
        assert!(receipt.settled().await.is_empty());
        let (mut attempts, queue) = ("2", find(&core, "q"));
        match reason {
            "expired" => {
                after(61).await;
                attempts = "0";
            }
            "disconnected" => {
                for id in 0..2 {
                    let mut consumer = TestConsumer::attach(&core, &queue, id, 10).await;
                    consumer.next().await;
                    core.detach(&queue, consumer.consumer.id, Lost::Vanished).await.unwrap();
                }
            }
            _ => {
                let mut consumer = TestConsumer::attach(&core, &queue, 1, 10).await;
                for _ in 0..2 {
                    let delivery = consumer.next().await;
                    if reason == "rejected" {
                        consumer.settle(&core, &delivery, Verdict::Rejected).await;
                    }
                }
            }
        }
        let mut reader = TestConsumer::attach(&core, &find(&core, "dead"), 9, 10).await;
        let letter = reader.next().await;
        assert_eq!((text(&letter).as_str(), letter.record.message.topic.as_str()), ("m", "a"));
        let properties = ["dead-letter-reason", "dead-letter-queue", "delivery-count", "original-topic"];
        let told = properties.map(|name| property(&letter, name).unwrap());
        assert_eq!(told, [reason, "q", attempts, "a"]);
        assert_eq!(letter.record.message.properties.user[0].1, "mine", "the publisher's own stay");
        assert_eq!(letter.record.message.expires_at, None);
        reader.ack(&core, &letter).await;
        reader.nothing().await;
        let from = report(&core, "q").await;
        assert_eq!((from.depth, from.dying, from.counters.dead_lettered), (0, 0, 1), "{reason}");
        assert_eq!(from.counters.done(), 1, "{reason}: counted once");
        core.close().await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_its_target_a_dead_letter_stays_and_leaves_once_there_is_one() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[with_target("q", "a", "dead")]).await.unwrap();
    publish(&core, clock, "a", "fine").await.unwrap();
    publish(&core, clock, "a", "m").await.unwrap();
    let mut consumer = TestConsumer::attach(&core, &find(&core, "q"), 1, 10).await;
    assert_eq!(text(&consumer.next().await), "fine");
    for _ in 0..2 {
        let delivery = consumer.next().await;
        assert_eq!(text(&delivery), "m");
        consumer.settle(&core, &delivery, Verdict::Rejected).await;
    }
    after(20).await;
    let stuck = report(&core, "q").await;
    assert_eq!((stuck.depth, stuck.dying, stuck.inflight), (2, 1, 1));
    let why = stuck.dead_letter_blocked.unwrap();
    assert!(why.contains("no other queue `dead` in namespace `default`: create it"), "{why}");
    core.close().await;

    // It is found after a restart, behind one that is not dead and without anybody who consumes; and the target may
    // come later than that.
    let core = open(&store, clock, 2).await;
    core.take_up_queues().await.unwrap();
    after(5).await;
    assert_eq!(report(&core, "q").await.dying, 1);
    let mut consumer = TestConsumer::attach(&core, &find(&core, "q"), 1, 10).await;
    assert_eq!(text(&consumer.next().await), "fine");
    consumer.nothing().await;
    core.apply(&[with_target("q", "a", "dead"), target("dead")]).await.unwrap();
    let mut reader = TestConsumer::attach(&core, &find(&core, "dead"), 9, 10).await;
    let letter = reader.next().await;
    assert_eq!(property(&letter, "dead-letter-reason"), Some("rejected"));
    let from = report(&core, "q").await;
    assert_eq!((from.depth, from.dying, from.dead_letter_blocked), (1, 0, None));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_target_blocks_until_it_has_room() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut dead = target("dead");
    dead.retention = Retention { max_messages: 1, ..Retention::default() };
    core.apply(&[with_target("q", "a", "dead"), dead]).await.unwrap();
    for payload in ["1", "2"] {
        publish(&core, clock, "a", payload).await.unwrap();
    }
    let mut consumer = TestConsumer::attach(&core, &find(&core, "q"), 1, 10).await;
    refuse(&core, &mut consumer, 4).await;
    after(60).await;
    let stuck = report(&core, "q").await;
    assert_eq!((stuck.depth, stuck.dying, stuck.counters.dead_lettered), (1, 1, 1));
    let why = stuck.dead_letter_blocked.unwrap();
    assert!(why.contains("dead-letter queue dead is full: retention.maxMessages"), "{why}");
    let mut reader = TestConsumer::attach(&core, &find(&core, "dead"), 9, 10).await;
    let mut got = Vec::new();
    for _ in 0..2 {
        let letter = reader.next().await;
        got.push(text(&letter));
        reader.ack(&core, &letter).await;
    }
    assert_eq!(got, ["1", "2"]);
    assert_eq!(report(&core, "q").await.dead_letter_blocked, None);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_dies_once_and_never_comes_back_to_the_queue_it_left() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    // Each is the other's target.
    core.apply(&[with_target("q", "a", "r"), with_target("r", "b", "q")]).await.unwrap();
    publish(&core, clock, "a", "m").await.unwrap();
    let mut of_q = TestConsumer::attach(&core, &find(&core, "q"), 1, 10).await;
    refuse(&core, &mut of_q, 2).await;
    let mut of_r = TestConsumer::attach(&core, &find(&core, "r"), 2, 10).await;
    refuse(&core, &mut of_r, 2).await;
    of_q.nothing().await;
    of_r.nothing().await;
    let (q, r) = (report(&core, "q").await, report(&core, "r").await);
    assert_eq!((q.depth, q.counters.dead_lettered, q.counters.exhausted), (0, 1, 0));
    assert_eq!((r.depth, r.counters.dead_lettered, r.counters.exhausted), (0, 0, 1));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn with_its_target_taken_away_what_was_blocked_is_dropped() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[with_target("q", "a", "dead")]).await.unwrap();
    publish(&core, clock, "a", "m").await.unwrap();
    let mut consumer = TestConsumer::attach(&core, &find(&core, "q"), 1, 10).await;
    refuse(&core, &mut consumer, 2).await;
    after(5).await;
    let mut q = with_target("q", "a", "dead");
    q.queue.dead_letter = None;
    core.apply(&[q]).await.unwrap();
    after(60).await;
    let from = report(&core, "q").await;
    assert_eq!((from.depth, from.dying, from.counters.exhausted), (0, 0, 1));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_stays_away_bounds_what_waits_for_it() {
    const DYING_MAX: usize = 10_000;
    const WINDOW: u32 = 50;
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    let mut q = with_target("q", "a", "dead");
    q.dispatch.max_deliveries = 1;
    core.apply(&[q]).await.unwrap();
    for _ in 0..11 {
        join_all((0..1000).map(|_| publish(&core, clock, "a", "m"))).await;
    }
    let mut consumer = TestConsumer::attach(&core, &find(&core, "q"), 1, WINDOW).await;
    let mut refused = 0;
    while let Ok(Some(delivery)) =
        tokio::time::timeout(Duration::from_secs(120), consumer.deliveries.recv()).await
    {
        consumer.settle(&core, &delivery, Verdict::Rejected).await;
        refused += 1;
    }
    assert!((DYING_MAX..=DYING_MAX + WINDOW as usize).contains(&refused), "{refused}");
    let stuck = report(&core, "q").await;
    assert_eq!((stuck.depth, stuck.dying), (11_000, refused as u64));
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_tells_a_repeated_letter_is_swept() {
    let (store, clock) = memory();
    let core = open(&store, clock, 1).await;
    core.apply(&[with_target("q", "a", "dead"), target("dead")]).await.unwrap();
    publish(&core, clock, "a", "m").await.unwrap();
    let mut consumer = TestConsumer::attach(&core, &find(&core, "q"), 1, 10).await;
    refuse(&core, &mut consumer, 2).await;
    after(1).await;
    let marks = async || {
        let (begin, end) = find(&core, "dead").logs[0].range(b'u');
        let query = RangeQuery::new(begin, end);
        store.begin().get_range(query, Isolation::Snapshot).await.unwrap().pairs.len()
    };
    assert_eq!(marks().await, 1);
    let appended = clock.wall();
    core.sweep_marks(Timestamp::from_micros(appended.as_micros() - 60_000_000)).await.unwrap();
    assert_eq!(marks().await, 1);
    core.sweep_marks(appended).await.unwrap();
    assert_eq!(marks().await, 0);
    core.close().await;
}

/// A core on a store that fails; what is in `dead` is counted by reading it all.
async fn letters(core: &Core) -> Vec<String> {
    let mut reader = TestConsumer::attach(core, &find(core, "dead"), 9, 100).await;
    let mut payloads = Vec::new();
    let wait = Duration::from_secs(90);
    while let Ok(Some(letter)) = tokio::time::timeout(wait, reader.deliveries.recv()).await {
        payloads.push(text(&letter));
        reader.ack(core, &letter).await;
    }
    payloads
}

async fn open_faulty(seed: u64) -> (SharedStore, weir_storage::FaultHandle, Clock, Core) {
    let (store, clock) = memory();
    let store = FaultStore::wrap(store, Seed::fixed(seed));
    let (faults, store): (_, SharedStore) = (store.handle(), Arc::new(store));
    let core = open(&store, clock, 1).await;
    core.apply(&[with_target("q", "a", "dead"), target("dead")]).await.unwrap();
    (store, faults, clock, core)
}

#[tokio::test(start_paused = true)]
async fn a_crash_between_the_target_and_the_queue_it_left_makes_no_second_letter() {
    let (store, faults, clock, core) = open_faulty(1).await;
    for payload in ["1", "2", "3"] {
        publish(&core, clock, "a", payload).await.unwrap();
    }
    let (q, dead) = (find(&core, "q"), find(&core, "dead"));
    let mut consumer = TestConsumer::attach(&core, &q, 1, 10).await;
    refuse(&core, &mut consumer, 3).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(consumer.next().await);
    }
    // From here on nothing of what the queue knows is stored, and then the process is gone.
    let unavailable = weir_storage::Error::Unavailable("x".into());
    let rows = q.logs[0].key(b'q').finish();
    for delivery in &held {
        faults.fail_commits_matching(&rows, CommitFault::Refused(unavailable.clone()));
        consumer.settle(&core, delivery, Verdict::Rejected).await;
    }
    while core.describe(&dead).await.unwrap()[0].extent.next < 3 {
        after(1).await;
    }
    drop(core);
    after(1).await;

    let core = open(&store, clock, 2).await;
    let mut consumer = TestConsumer::attach(&core, &find(&core, "q"), 1, 10).await;
    let wait = Duration::from_secs(30);
    while let Ok(Some(delivery)) = tokio::time::timeout(wait, consumer.deliveries.recv()).await {
        consumer.settle(&core, &delivery, Verdict::Rejected).await;
    }
    assert_eq!(report(&core, "q").await.depth, 0);
    assert_eq!(letters(&core).await, ["1", "2", "3"]);
    core.close().await;
}

#[tokio::test(start_paused = true)]
async fn commits_of_unknown_outcome_lose_and_double_no_letter() {
    for fault in [
        CommitFault::SettledCommitted,
        CommitFault::SettledLost,
        CommitFault::OpenLost,
        CommitFault::OpenCommittedLater(Duration::from_millis(20)),
        CommitFault::Refused(weir_storage::Error::Unavailable("x".into())),
    ] {
        let (_, faults, clock, core) = open_faulty(2).await;
        for n in 0..5 {
            publish(&core, clock, "a", &n.to_string()).await.unwrap();
        }
        let mut consumer = TestConsumer::attach(&core, &find(&core, "q"), 1, 10).await;
        refuse(&core, &mut consumer, 9).await;
        let last = consumer.next().await;
        for _ in 0..3 {
            faults.fail_next_commit(fault.clone());
        }
        consumer.settle(&core, &last, Verdict::Rejected).await;
        after(10).await;
        faults.settle().await;
        // A shard that was lost meanwhile may deliver again what it no longer knows to be dead.
        let wait = Duration::from_secs(120);
        while let Ok(Some(delivery)) = tokio::time::timeout(wait, consumer.deliveries.recv()).await {
            consumer.settle(&core, &delivery, Verdict::Rejected).await;
        }
        let mut payloads = letters(&core).await;
        payloads.sort();
        assert_eq!(payloads, ["0", "1", "2", "3", "4"], "{fault:?}");
        let from = report(&core, "q").await;
        assert_eq!((from.depth, from.counters.dead_lettered), (0, 5), "{fault:?}");
        core.close().await;
    }
}
