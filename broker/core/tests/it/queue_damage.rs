//! Queues whose state says more than their log has: a store that has lost a part of itself. What comes next is delivered.

use std::sync::Arc;
use std::time::Duration;

use weir_core::Core;
use weir_core::core::Options;
use weir_core::definition::Kind;
use weir_core::keyspace::log_state::LogState;
use weir_core::keyspace::queue::{AckBlock, Aside, Attempts, BLOCK_OFFSETS, QueueFloor};
use weir_core::metrics::Metrics;
use weir_core::shard::QueueReport;
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_storage::{Isolation, SharedStore};

use crate::support::{TestConsumer, definition, memory, publish, text};

async fn open(store: &SharedStore, clock: Clock, seed: u64) -> (Core, Metrics) {
    let (seed, metrics, options) = (Seed::fixed(seed), Metrics::default(), Options::default());
    let core = Core::open_with(Arc::clone(store), clock, &seed, metrics.clone(), options);
    (core.await.unwrap(), metrics)
}

async fn report(core: &Core) -> QueueReport {
    let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
    let mut reports = core.describe(&queue).await.unwrap();
    reports.remove(0).queue.expect("a queue")
}

/// What is wrong with the state.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    Floor,
    /// Counted so far that one more does not fit.
    Counters,
    Acks,
    Attempts,
}

#[tokio::test(start_paused = true)]
async fn what_is_said_of_messages_that_there_are_not_holds_for_none_that_come() {
    for wrong in [Wrong::Floor, Wrong::Counters, Wrong::Acks, Wrong::Attempts] {
        let (store, clock) = memory();
        let (core, metrics) = open(&store, clock, 1).await;
        core.apply(&[definition(Kind::Queue, "q", "a/#", 1)]).await.unwrap();
        let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
        let mut consumer = TestConsumer::attach(&core, &queue, 1, 10).await;
        for n in 0..5 {
            publish(&core, clock, "a/b", &n.to_string()).await.unwrap();
        }
        for n in 0..5 {
            let delivery = consumer.next().await;
            assert_eq!(text(&delivery), n.to_string());
            consumer.ack(&core, &delivery).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(metrics.damaged.get(), 0);
        let log = queue.logs[0];
        let mut tx = store.begin();
        let next = tx.get(&LogState::key(&log), Isolation::Snapshot).await.unwrap().unwrap();
        assert_eq!(LogState::decode(next).unwrap().next, 5);
        let floor = QueueFloor { floor: 5, acknowledged: 5, ..QueueFloor::default() };
        match wrong {
            Wrong::Floor => {
                let floor = QueueFloor { floor: 1_000, acknowledged: 900, expired: 100, bytes: 77, ..floor };
                tx.set(&QueueFloor::key(&log), &floor.encode());
            }
            Wrong::Counters => {
                let floor = QueueFloor {
                    floor: u64::MAX,
                    acknowledged: u64::MAX,
                    purged: u64::MAX,
                    bytes: u64::MAX,
                    ..floor
                };
                tx.set(&QueueFloor::key(&log), &floor.encode());
            }
            Wrong::Acks => {
                for number in [0, 1] {
                    let mut block = AckBlock::default();
                    for offset in 5..20 {
                        block.set(number * BLOCK_OFFSETS + offset);
                    }
                    tx.set(&AckBlock::key(&log, number), &block.encode());
                }
            }
            Wrong::Attempts => {
                let aside = Aside {
                    cost: u64::MAX,
                    blob: false,
                    published_at: Timestamp::default(),
                    expires_at: None,
                };
                for offset in 5..20 {
                    let attempts = Attempts { failed: 3, aside: Some(aside), ..Attempts::default() };
                    tx.set(&Attempts::key(&log, offset), &attempts.encode());
                }
            }
        }
        tx.commit().await.unwrap();
        for round in 0..2 {
            let (core, metrics) = open(&store, clock, 2 + round).await;
            let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
            for n in 0..10 {
                publish(&core, clock, "a/b", &format!("{round} {n}")).await.unwrap();
            }
            assert_eq!(report(&core).await.depth, 10, "{wrong:?}");
            let mut consumer = TestConsumer::attach(&core, &queue, 1, 20).await;
            for n in 0..10 {
                let delivery = consumer.next().await;
                assert_eq!(
                    (text(&delivery), delivery.delivery_count),
                    (format!("{round} {n}"), 1),
                    "{wrong:?}"
                );
                consumer.ack(&core, &delivery).await;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            // What was wrong is right from then on.
            assert_eq!(metrics.damaged.get(), u64::from(round == 0), "{wrong:?}, round {round}");
            let report = report(&core).await;
            assert_eq!((report.depth, report.bytes), (0, 0), "{wrong:?}, round {round}");
        }
    }
}
