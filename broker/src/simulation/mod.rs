//! Whole brokers and their clients in one thread, on a clock that stands still while anything is to be done, under all
//! that can go wrong. A run depends on its seed alone; a failing one prints it, and what happened, and
//! `WEIR_TEST_SEEDS=17 cargo test -p weir --lib simulation` is that run again, to the last step: also who of those that wait
//! for the same change is woken first comes from the seed (`.cargo/config.toml`; flags in `RUSTFLAGS` take its place).
//!
//! Knows brokers as their clients do, and starts and stops them as the server does. Each run owns all of its state.

mod check;
mod client;
mod gate;
mod history;
mod live;
mod movers;
mod pod;
mod probers;
mod publishers;
mod pumpers;
mod subscribers;
mod testators;
mod trouble;
mod wire;
mod world;

use std::cell::Cell;
use std::sync::Once;
use std::time::Duration;

use weir_env::seed::trials;

use self::history::History;

/// Runs of one broker of the usual test command.
const SEEDS: u64 = 20;
/// Runs of a cluster of the usual test command.
const CLUSTER_SEEDS: u64 = 9;
/// Longest time that a run takes on its clock.
const RUN_MAX: Duration = Duration::from_secs(3600);
/// Pods of a cluster at a time.
const PODS: usize = 3;

thread_local! {
    /// Panics on this thread, where a runtime swallows those of tasks.
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// Notes each panic before it is told.
fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.with(|panics| panics.set(panics.get() + 1));
            told(panic);
        }));
    });
    PANICS.with(|panics| panics.set(0));
}

/// Prints what happened, if the run fails.
struct Told(History);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0.lines().join("\n"));
        }
    }
}

/// What happened in the run of `seed` with so many pods at a time, in which nothing was wrong.
fn simulate(seed: u64, pods: usize) -> Vec<String> {
    count_panics();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    // Else the order in which several who wait for one thing are woken is up to chance.
    #[cfg(tokio_unstable)]
    runtime.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_be_bytes()));
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    let history = History::default();
    let told = Told(history.clone());
    let end = runtime.block_on(async {
        let run = world::run(seed, pods, &history);
        tokio::time::timeout(RUN_MAX, run).await.expect("a run does not come to an end")
    });
    drop(runtime);
    let wrong = check::violations(&history.events(), &end);
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(PANICS.with(Cell::get), 0, "a task panicked");
    drop(told);
    history.lines()
}

#[test]
fn what_is_acknowledged_is_kept_whatever_goes_wrong() {
    for trial in trials(SEEDS) {
        simulate(trial.seed(), 1);
    }
}

#[test]
fn the_same_holds_for_a_cluster() {
    for trial in trials(CLUSTER_SEEDS) {
        simulate(trial.seed(), PODS);
    }
}

#[test]
#[cfg(tokio_unstable)]
fn the_same_seed_is_the_same_run() {
    for (seed, pods) in [(0, 1), (1, 1), (2, 1), (0, PODS), (1, PODS), (2, PODS)] {
        let (first, second) = (simulate(seed, pods), simulate(seed, pods));
        assert!(first.len() > 200, "{first:#?}");
        for (one, other) in first.iter().zip(&second) {
            assert_eq!(one, other, "runs of seed {seed} with {pods} pods are not the same");
        }
        assert_eq!(first.len(), second.len());
    }
}
