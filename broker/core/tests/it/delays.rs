//! `queue-delay`: what is kept from consumers, for how long, and through what.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use weir_core::definition::{Kind, Retention};
use weir_core::key::Publisher;
use weir_core::keyspace::record::RecordKind;
use weir_core::shard::AppendError;
use weir_env::seed::{Seed, trials};
use weir_storage::{CommitFault, FaultRates, FaultStore, SharedStore};

use crate::controls::Bench;
use crate::support::{TestConsumer, definition, memory, message, text};

impl Bench {
    async fn delayed(&self) -> u64 {
        let reports = self.core.describe(&self.queue).await.unwrap();
        reports.iter().map(|report| report.queue.as_ref().unwrap().delayed).sum()
    }
}

async fn rows(store: &SharedStore) -> u64 {
    let counts = weir_core::inspect::count(&**store).await.unwrap();
    counts.iter().find(|(kind, _)| *kind == RecordKind::Delayed).unwrap().1.records
}

#[tokio::test(start_paused = true)]
async fn a_delayed_message_comes_when_it_is_due_and_not_before() {
    let (store, clock) = memory();
    let bench = Bench::open(&store, clock, &definition(Kind::Queue, "q", "a", 1), 1).await;
    let mut consumer = TestConsumer::attach(&bench.core, &bench.queue, 1, 10).await;
    let start = clock.now();
    for (payload, delay) in
        [("late", "1h"), ("soon", "10s"), ("first", "1500"), ("now", "0"), ("soon too", "10s")]
    {
        bench.publish("a", payload, &[("queue-delay", delay)]).await.unwrap();
    }
    assert_eq!((bench.depth().await, bench.delayed().await, bench.metrics.delayed.get()), (5, 4, 4));
    for (payload, at) in
        [("now", 0), ("first", 1500), ("soon", 10_000), ("soon too", 10_000), ("late", 3_600_000)]
    {
        let delivery = consumer.next_within(Duration::from_secs(3700)).await;
        let waited = (clock.now() - start).as_millis();
        assert_eq!(text(&delivery), payload);
        assert!((at..at + 20).contains(&waited), "{payload} after {waited} ms");
        consumer.ack(&bench.core, &delivery).await;
    }
    assert_eq!((bench.depth().await, bench.delayed().await, bench.metrics.delayed.get()), (0, 0, 0));
    assert_eq!(rows(&store).await, 1, "only how many there are: none");
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn delays_outlive_a_restart_and_large_messages_too() {
    let (store, clock) = memory();
    let q = definition(Kind::Queue, "q", "a/#", 3);
    let bench = Bench::open(&store, clock, &q, 1).await;
    let large = "x".repeat(1_200_000);
    for n in 0..20 {
        bench.publish(&format!("a/{n}"), &n.to_string(), &[("queue-delay", "1m")]).await.unwrap();
    }
    bench.publish("a/large", &large, &[("queue-delay", "1m")]).await.unwrap();
    bench.core.close().await;
    assert_eq!(bench.metrics.delayed.get(), 0, "of no shard in memory");

    tokio::time::sleep(Duration::from_secs(30)).await;
    let bench = Bench::open(&store, clock, &q, 2).await;
    assert_eq!((bench.depth().await, bench.delayed().await, bench.metrics.delayed.get()), (21, 21, 21));
    let mut consumer = TestConsumer::attach(&bench.core, &bench.queue, 1, 100).await;
    consumer.nothing().await;
    bench.core.close().await;

    // Overdue at the start.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let bench = Bench::open(&store, clock, &q, 3).await;
    let mut consumer = TestConsumer::attach(&bench.core, &bench.queue, 1, 100).await;
    let mut seen = BTreeSet::new();
    for _ in 0..21 {
        let delivery = consumer.next().await;
        assert!(seen.insert(text(&delivery)), "twice");
        consumer.ack(&bench.core, &delivery).await;
    }
    assert!(seen.contains(&large));
    consumer.nothing().await;
    let reports = bench.core.describe(&bench.queue).await.unwrap();
    let held: u64 = reports.iter().map(|report| report.queue.as_ref().unwrap().bytes).sum();
    assert_eq!((bench.depth().await, held), (0, 0));
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_expires_while_it_waits_is_not_delivered() {
    let (store, clock) = memory();
    let bench = Bench::open(&store, clock, &definition(Kind::Queue, "q", "a", 1), 1).await;
    let mut message = message(clock, "a", "short-lived");
    message.expires_at = Some(clock.wall().saturating_add(Duration::from_secs(5)));
    message.properties.user = vec![("queue-delay".into(), "1h".into())];
    let targets = bench.core.targets(&message.topic);
    let receipt = bench.core.append(&targets, &message, &Publisher::default(), None).await.unwrap();
    assert!(receipt.settled().await.is_empty());
    assert_eq!(bench.depth().await, 1);
    let mut consumer = TestConsumer::attach(&bench.core, &bench.queue, 1, 10).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let reports = bench.core.describe(&bench.queue).await.unwrap();
    let report = reports[0].queue.as_ref().unwrap();
    assert_eq!((report.depth, report.counters.expired), (0, 1));
    consumer.nothing().await;
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_counts_against_the_limits_once() {
    let (store, clock) = memory();
    let mut q = definition(Kind::Queue, "q", "a", 1);
    q.retention = Retention { max_messages: 3, ..Retention::default() };
    let bench = Bench::open(&store, clock, &q, 1).await;
    let delay = [("queue-delay", "10s")];
    let (a, b, c, d) = tokio::join!(
        bench.publish("a", "1", &delay),
        bench.publish("a", "2", &delay),
        bench.publish("a", "3", &[]),
        bench.publish("a", "4", &delay)
    );
    assert!(a.is_ok() && b.is_ok() && c.is_ok(), "{a:?} {b:?} {c:?}");
    assert!(matches!(d, Err(AppendError::Full { what: "retention.maxMessages", .. })), "{d:?}");
    assert!(bench.publish("a", "5", &[]).await.is_err());
    // In the log they count as before.
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!((bench.depth().await, bench.delayed().await), (3, 0));
    assert!(bench.publish("a", "6", &[]).await.is_err());
    let mut consumer = TestConsumer::attach(&bench.core, &bench.queue, 1, 10).await;
    let delivery = consumer.next().await;
    consumer.ack(&bench.core, &delivery).await;
    bench.publish("a", "7", &delay).await.unwrap();
    assert!(bench.publish("a", "8", &[]).await.is_err());
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_id_counts_while_its_message_waits() {
    let (store, clock) = memory();
    let bench = Bench::open(&store, clock, &definition(Kind::Queue, "q", "a", 1), 1).await;
    let both = [("queue-delay", "10s"), ("queue-dedup-id", "one")];
    bench.publish("a", "m", &both).await.unwrap();
    bench.publish("a", "m", &both).await.unwrap();
    bench.publish("a", "m", &both[1..]).await.unwrap();
    assert_eq!((bench.depth().await, bench.metrics.duplicates.get()), (1, 2));
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_queue_leaves_nothing() {
    let (store, clock) = memory();
    let mut q = definition(Kind::Queue, "q", "a", 1);
    q.delete_data = true;
    let bench = Bench::open(&store, clock, &q, 1).await;
    let properties = [("queue-delay", "10s"), ("queue-dedup-id", "one")];
    bench.publish("a", "m", &properties).await.unwrap();
    bench.core.apply(&[]).await.unwrap();
    let counts = weir_core::inspect::count(&*store).await.unwrap();
    let left: Vec<_> =
        counts.iter().filter(|(_, count)| count.records > 0).map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(left, ["format", "catalog", "owner"]);
    bench.core.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_whose_move_fails_is_moved_again() {
    for fault in [
        CommitFault::Refused(weir_storage::Error::Unavailable("no disk".into())),
        CommitFault::SettledCommitted,
        CommitFault::SettledLost,
        CommitFault::OpenLost,
        CommitFault::OpenCommittedLater(Duration::from_millis(50)),
    ] {
        let (store, clock) = memory();
        let faults = FaultStore::wrap(store, Seed::fixed(1));
        let handle = faults.handle();
        let store: SharedStore = Arc::new(faults);
        let bench = Bench::open(&store, clock, &definition(Kind::Queue, "q", "a", 1), 1).await;
        bench.publish("a", "m", &[("queue-delay", "10s")]).await.unwrap();
        handle.fail_next_commit(fault.clone());
        let mut consumer = TestConsumer::attach(&bench.core, &bench.queue, 1, 10).await;
        let delivery = consumer.next().await;
        consumer.ack(&bench.core, &delivery).await;
        consumer.nothing().await;
        assert_eq!((bench.depth().await, bench.delayed().await), (0, 0), "{fault:?}");
        assert_eq!(
            bench.metrics.append_refused.get_or_create(&weir_core::metrics::Reason { reason: "store" }).get(),
            0
        );
        bench.core.close().await;
    }
}

/// Over stores with random faults and crashes every accepted message comes once, whatever its publisher asked for, and
/// the counters are exact.
#[tokio::test(start_paused = true)]
async fn what_publishers_ask_for_survives_random_crashes() {
    const LIVES: u64 = 4;
    for trial in trials(40) {
        let seed = trial.seed();
        let (store, clock) = memory();
        let faults = FaultStore::wrap(store, Seed::fixed(seed).fork("faults"));
        let handle = faults.handle();
        let store: SharedStore = Arc::new(faults);
        let q = definition(Kind::Queue, "q", "a/#", 2);
        let random = Seed::fixed(seed);
        let mut accepted = BTreeSet::new();
        for life in 0..LIVES {
            let bench = Bench::open(&store, clock, &q, seed * 10 + life).await;
            handle.set_rates(if seed.is_multiple_of(2) { FaultRates::calm() } else { FaultRates::rough() });
            for step in 0..10 {
                let patience = Duration::from_millis(1 + random.below(400));
                let publishes = (0..4).map(|n| {
                    let (payload, bench) = (format!("{life}-{step}-{n}"), &bench);
                    let (delay, priority) = (random.below(20_000).to_string(), random.below(4).to_string());
                    async move {
                        let properties = [
                            ("queue-delay", if n == 0 { "0" } else { &delay }),
                            ("queue-priority", &*priority),
                            ("queue-dedup-id", &*payload),
                        ];
                        let topic = format!("a/{n}");
                        let twice = async {
                            let one = bench.publish(&topic, &payload, &properties);
                            let again = bench.publish(&topic, &payload, &properties);
                            let (one, again) = tokio::join!(one, again);
                            one.is_ok() || again.is_ok()
                        };
                        let is_stored = tokio::time::timeout(patience, twice).await == Ok(true);
                        is_stored.then_some(payload)
                    }
                });
                accepted.extend(join_all(publishes).await.into_iter().flatten());
                tokio::time::sleep(Duration::from_millis(random.below(2000))).await;
            }
            if life + 1 < LIVES && random.below(2) == 0 {
                // A crash: what is under way may still happen.
                drop(bench);
                handle.set_rates(FaultRates::default());
                continue;
            }
            handle.heal();
            handle.settle().await;
            if life + 1 == LIVES {
                check_all(&bench, &accepted).await;
            }
            bench.core.close().await;
        }
    }
}

/// Takes all that is left, the last of it once it is due.
async fn check_all(bench: &Bench, accepted: &BTreeSet<String>) {
    let mut consumer = TestConsumer::attach(&bench.core, &bench.queue, 1, 1000).await;
    let mut seen = BTreeSet::new();
    let wait = Duration::from_secs(25);
    while let Ok(Some(delivery)) = tokio::time::timeout(wait, consumer.deliveries.recv()).await {
        assert!(seen.insert(text(&delivery)), "{} twice", text(&delivery));
        consumer.ack(&bench.core, &delivery).await;
    }
    assert!(accepted.is_subset(&seen), "lost {:?}", accepted - &seen);
    let reports = bench.core.describe(&bench.queue).await.unwrap();
    let mut sums = (0, 0, 0, 0);
    for report in reports.into_iter().filter_map(|report| report.queue) {
        sums.0 += report.depth;
        sums.1 += report.bytes;
        sums.2 += report.delayed;
        sums.3 += report.counters.acknowledged;
    }
    assert_eq!(sums, (0, 0, 0, seen.len() as u64));
}
