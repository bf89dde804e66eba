//! Random histories over engines that fail at random: what callers are told is true, and what they are not told
//! is one of the two things it can be.

use std::sync::Arc;

use weir_env::clock::Clock;
use weir_env::seed::{Seed, trials};
use weir_storage::conformance::{History, Tally};
use weir_storage::{EmbeddedOptions, EmbeddedStore, FaultRates, FaultStore, MemoryStore, SharedStore};

/// One history over `inner` with these faults.
async fn run(inner: SharedStore, rates: FaultRates, seed: u64) -> Tally {
    let store = FaultStore::wrap(inner, Seed::fixed(seed).fork("faults"));
    let faults = store.handle();
    let store: SharedStore = Arc::new(store);
    faults.set_rates(rates);
    let history = History::record(&store, b"history/", seed).await;
    faults.heal();
    faults.settle().await;
    let tally = history.check(&store).await;
    store.close().await;
    tally
}

/// Each of `count` seeds under its own runtime, as each has faults of its own.
fn run_all(
    count: u64,
    rates: FaultRates,
    make: impl Fn() -> (SharedStore, Option<tempfile::TempDir>),
) -> Tally {
    let mut tally = Tally::default();
    for trial in trials(count) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        tally = runtime.block_on(async {
            let (store, _keep) = make();
            tally.plus(run(store, rates, trial.seed()).await)
        });
    }
    tally
}

fn memory() -> (SharedStore, Option<tempfile::TempDir>) {
    (Arc::new(MemoryStore::new(Clock::system())), None)
}

fn embedded() -> (SharedStore, Option<tempfile::TempDir>) {
    let dir = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(dir.path(), &EmbeddedOptions::default(), Clock::system()).unwrap();
    (Arc::new(store), Some(dir))
}

#[test]
fn a_calm_store_is_serializable() {
    run_all(100, FaultRates::calm(), memory);
}

#[test]
fn a_rough_store_is_serializable() {
    let tally = run_all(100, FaultRates::rough(), memory);
    assert!(tally.unknown_committed > 0 && tally.unknown_lost > 0, "{tally:?}");
}

#[test]
fn a_hostile_store_is_serializable() {
    let tally = run_all(100, FaultRates::hostile(), memory);
    assert!(tally.unknown_committed > 0 && tally.unknown_lost > 0, "{tally:?}");
}

#[test]
fn a_hostile_embedded_store_is_serializable() {
    let tally = run_all(10, FaultRates::hostile(), embedded);
    assert!(tally.unknown_committed > 0 && tally.unknown_lost > 0, "{tally:?}");
}

/// What was committed is there when the store is opened again, and what was not is not.
#[test]
fn a_history_holds_after_the_store_is_opened_again() {
    for trial in trials(20) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let open =
                || EmbeddedStore::open(dir.path(), &EmbeddedOptions::default(), Clock::system()).unwrap();
            let store: SharedStore = Arc::new(open());
            let history = History::record(&store, b"history/", trial.seed()).await;
            store.close().await;
            drop(store);
            let store: SharedStore = Arc::new(open());
            history.check(&store).await;
            store.close().await;
        });
    }
}

/// What a history tells is determined by its seed.
#[test]
fn the_same_seed_is_the_same_history() {
    let tally = |seed: u64| {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(run(memory().0, FaultRates::hostile(), seed))
    };
    assert_eq!([tally(1), tally(2)], [tally(1), tally(2)]);
}
