//! How long to wait before something is tried again: longer each time, and never all at one moment. Owns the count of
//! failures of each key until it succeeds.

use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use weir_env::seed::{HashMap, Seed};

/// Waits per key.
#[derive(Debug)]
pub(crate) struct Backoffs<K> {
    first: Duration,
    most: Duration,
    seed: Seed,
    /// As many as have failed and exist: the caller forgets those that succeed or go.
    failures: Mutex<HashMap<K, u32>>,
}

impl<K: Hash + Eq> Backoffs<K> {
    /// The first wait is `first`, each later one twice as long, none longer than `most`.
    pub(crate) fn new(first: Duration, most: Duration, seed: Seed) -> Self {
        Self { first, most, seed, failures: Mutex::default() }
    }

    /// Counts a failure and says how long to wait.
    pub(crate) fn fail(&self, key: K) -> Duration {
        let mut failures = self.failures.lock();
        let count = failures.entry(key).or_insert(0);
        let wait = delay(self.first, self.most, *count);
        *count = count.saturating_add(1);
        jittered(wait, &self.seed)
    }

    /// Forgets its failures.
    pub(crate) fn succeed(&self, key: &K) {
        self.failures.lock().remove(key);
    }
}

/// The wait after `failures` earlier ones.
pub(crate) fn delay(first: Duration, most: Duration, failures: u32) -> Duration {
    first.saturating_mul(1 << failures.min(20)).min(most)
}

/// From three quarters to five quarters of `wait`.
pub(crate) fn jittered(wait: Duration, seed: &Seed) -> Duration {
    let span = u64::try_from(wait.as_micros() / 2).unwrap_or(u64::MAX);
    wait - wait / 4 + Duration::from_micros(seed.below(span.saturating_add(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_differ() {
        let waits = Backoffs::new(Duration::from_secs(1), Duration::from_secs(60), Seed::fixed(1));
        let drawn: Vec<Duration> = (0..40).map(|_| waits.fail("a")).collect();
        for (failures, wait) in (0u32..).zip(&drawn) {
            let middle = delay(Duration::from_secs(1), Duration::from_secs(60), failures);
            assert!(*wait >= middle * 3 / 4 && *wait <= middle * 5 / 4, "{failures}: {wait:?}");
        }
        assert!(drawn[39] >= Duration::from_secs(45));
        assert!(drawn[10..].windows(2).any(|pair| pair[0] != pair[1]), "no jitter");
        assert!(waits.fail("b") < Duration::from_secs(2), "another key starts anew");
        waits.succeed(&"a");
        assert!(waits.fail("a") < Duration::from_secs(2));
    }
}
