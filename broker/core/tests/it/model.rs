//! What models of long runs share: how bad the weather is, what is noted for the one who reads a failure, and that a run
//! depends on its seed alone. Knows nothing of what is modelled; each run owns its state.

use std::time::Duration;

use weir_env::clock::Clock;
use weir_env::seed::Seed;

/// How much goes wrong in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    /// Nothing: brokers end in order.
    Fair,
    /// Brokers crash, and where the model has rivals lose their shards to each other; the store does not fail.
    Crashes,
    /// The store fails as well.
    Storm,
}

impl Weather {
    /// How long a publisher waits for its answer: in bad weather not always long enough.
    pub(crate) fn patience(self, seed: &Seed) -> Duration {
        match self {
            Self::Fair => Duration::from_secs(600),
            Self::Crashes | Self::Storm => Duration::from_millis(1 + seed.below(2000)),
        }
    }
}

/// What happened in a run. Printed if that fails.
#[derive(Debug, Default)]
pub(crate) struct Trace(Vec<String>);

impl Trace {
    pub(crate) fn note(&mut self, clock: Clock, what: &str) {
        self.0.push(format!("{} {what}", clock.wall()));
    }

    /// All of it, which is not printed then.
    pub(crate) fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0.join("\n"));
        }
    }
}

/// Carries out a run, in which time passes when nothing else is to be done.
pub(crate) fn simulate<T>(run: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(run)
}

/// Runs of a seed are the same, and not empty.
pub(crate) fn assert_replays<F: Future<Output = Vec<String>>>(run: impl Fn(u64) -> F) {
    for seed in [1, 2, 3] {
        let trace = simulate(run(seed));
        assert!(trace.len() > 50, "{trace:#?}");
        assert_eq!(trace, simulate(run(seed)));
    }
}
