//! What comes again after the end of a process: nothing acknowledged if it ends in order, and after a crash only what
//! was acknowledged a moment before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use weir_core::Core;
use weir_core::definition::Kind;
use weir_core::metrics::Metrics;
use weir_env::clock::Instant;
use weir_env::seed::{Seed, trials};

use crate::support::{TestConsumer, definition, memory, publish};

const SEEDS: u64 = 40;
const MESSAGES: usize = 200;
/// Within this time an acknowledgement is in the store.
const DURABLE: Duration = Duration::from_millis(10);

/// An acknowledgement: when, and how many batches had been committed soon after.
struct Ack {
    at: Instant,
    batches: u64,
}

/// Acknowledges messages at random moments in random order, ends the process, and looks what comes again. Returns how
/// many of those did that had been acknowledged.
async fn run(seed: u64, in_order: bool) -> usize {
    let seed = Seed::fixed(seed);
    let (store, clock) = memory();
    let metrics = Metrics::default();
    let core = Core::open(Arc::clone(&store), clock, &seed.fork("core"), metrics.clone()).await.unwrap();
    core.apply(&[definition(Kind::Queue, "q", "a/#", 1)]).await.unwrap();
    let queue = core.catalog().view().find(Kind::Queue, "q").unwrap();
    for n in 0..MESSAGES {
        publish(&core, clock, &format!("a/{n}"), "m").await.unwrap();
    }
    let mut consumer = TestConsumer::attach(&core, &queue, 1, u32::try_from(MESSAGES).unwrap()).await;
    let mut held = Vec::new();
    for _ in 0..MESSAGES {
        held.push(consumer.next().await);
    }
    let mut acks: BTreeMap<u64, Ack> = BTreeMap::new();
    for _ in 0..seed.below(60) {
        let mut together = Vec::new();
        for _ in 0..seed.below(5).min(held.len() as u64) {
            let at = usize::try_from(seed.below(held.len() as u64)).unwrap();
            let delivery = held.swap_remove(at);
            consumer.ack(&core, &delivery).await;
            together.push((delivery.offset, clock.now()));
        }
        tokio::time::sleep(Duration::from_millis(1 + seed.below(4))).await;
        let batches = metrics.batches.get();
        acks.extend(together.into_iter().map(|(offset, at)| (offset, Ack { at, batches })));
    }
    if in_order {
        core.close().await;
    }
    let (ended_at, batches) = (clock.now(), metrics.batches.get());
    drop(core);

    let core = Core::open(store, clock, &seed.fork("next"), Metrics::default()).await.unwrap();
    let mut consumer = TestConsumer::attach(&core, &queue, 1, u32::try_from(MESSAGES).unwrap()).await;
    let depth = core.describe(&queue).await.unwrap()[0].queue.as_ref().unwrap().depth;
    let mut again = BTreeSet::new();
    for _ in 0..depth {
        assert!(again.insert(consumer.next().await.offset));
    }
    consumer.nothing().await;
    assert!(held.iter().all(|delivery| again.contains(&delivery.offset)), "what was not acknowledged");
    let repeated: Vec<&Ack> =
        acks.iter().filter(|(offset, _)| again.contains(offset)).map(|(_, a)| a).collect();
    for ack in &repeated {
        // When it was looked at, the next batch may have been on its way; the one after that has the acknowledgement.
        assert!(batches < ack.batches + 2, "acknowledged before the last batches were committed");
        assert!(ended_at - ack.at < DURABLE, "acknowledged {:?} before the end", ended_at - ack.at);
    }
    assert_eq!(again.len(), held.len() + repeated.len());
    core.close().await;
    repeated.len()
}

#[test]
fn a_crash_repeats_what_was_acknowledged_in_the_last_10_ms_at_most() {
    let mut repeated = 0;
    for trial in trials(SEEDS) {
        repeated += simulate(trial.seed(), false);
    }
    assert!(repeated > 0, "it was no crash");
}

#[test]
fn an_end_in_order_repeats_nothing_that_was_acknowledged() {
    for trial in trials(SEEDS) {
        assert_eq!(simulate(trial.seed(), true), 0);
    }
}

fn simulate(seed: u64, in_order: bool) -> usize {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(run(seed, in_order))
}
