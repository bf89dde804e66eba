//! How long to wait before something is tried again: longer each time, and never all at one moment. Owns the count of
//! failures of each key until it succeeds.

use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use weir_env::clock::{Clock, Instant};
use weir_env::seed::{HashMap, Seed};

/// Waits per key. A key that has not failed for twice the longest wait is forgotten: it may not exist any more.
#[derive(Debug)]
pub(crate) struct Backoffs<K> {
    first: Duration,
    most: Duration,
    clock: Clock,
    seed: Seed,
    failures: Mutex<Failures<K>>,
}

#[derive(Debug)]
struct Failures<K> {
    of: HashMap<K, Failed>,
    /// When there are as many, those to forget are looked for.
    look_at: usize,
}

#[derive(Clone, Copy, Debug)]
struct Failed {
    count: u32,
    last: Instant,
    wait: Duration,
}

/// Keys that are kept without a look at how old they are.
const YOUNG: usize = 64;

impl<K: Hash + Eq> Backoffs<K> {
    /// The first wait is `first`, each later one twice as long, none longer than `most`.
    pub(crate) fn new(first: Duration, most: Duration, clock: Clock, seed: Seed) -> Self {
        let failures = Mutex::new(Failures { of: HashMap::default(), look_at: YOUNG });
        Self { first, most, clock, seed, failures }
    }

    /// Counts a failure and says how long to wait.
    pub(crate) fn fail(&self, key: K) -> Duration {
        let now = self.clock.now();
        let mut failures = self.failures.lock();
        if failures.of.len() >= failures.look_at {
            failures.of.retain(|_, failed| !self.is_old(failed, now));
            failures.look_at = (failures.of.len() * 2).max(YOUNG);
        }
        let old = failures.of.get(&key).filter(|failed| !self.is_old(failed, now));
        let count = old.map_or(0, |failed| failed.count);
        let wait = jittered(delay(self.first, self.most, count), &self.seed);
        failures.of.insert(key, Failed { count: count.saturating_add(1), last: now, wait });
        wait
    }

    /// How much is left of its wait.
    pub(crate) fn left(&self, key: &K) -> Duration {
        let waited = |failed: &Failed| self.clock.now().saturating_duration_since(failed.last);
        let failures = self.failures.lock();
        failures.of.get(key).map_or(Duration::ZERO, |failed| failed.wait.saturating_sub(waited(failed)))
    }

    /// Forgets its failures.
    pub(crate) fn succeed(&self, key: &K) {
        self.failures.lock().of.remove(key);
    }

    fn is_old(&self, failed: &Failed, now: Instant) -> bool {
        now.saturating_duration_since(failed.last) > self.most.saturating_mul(2)
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
    use weir_env::clock::Timestamp;

    use super::*;

    fn waits() -> Backoffs<String> {
        let clock = Clock::simulated(Timestamp::default());
        Backoffs::new(Duration::from_secs(1), Duration::from_secs(60), clock, Seed::fixed(1))
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_to_a_limit_and_differ() {
        let waits = waits();
        let drawn: Vec<Duration> = (0..40).map(|_| waits.fail("a".to_owned())).collect();
        for (failures, wait) in (0u32..).zip(&drawn) {
            let middle = delay(Duration::from_secs(1), Duration::from_secs(60), failures);
            assert!(*wait >= middle * 3 / 4 && *wait <= middle * 5 / 4, "{failures}: {wait:?}");
        }
        assert!(drawn[39] >= Duration::from_secs(45));
        assert!(drawn[10..].windows(2).any(|pair| pair[0] != pair[1]), "no jitter");
        assert!(waits.fail("b".to_owned()) < Duration::from_secs(2), "another key starts anew");
        waits.succeed(&"a".to_owned());
        assert!(waits.fail("a".to_owned()) < Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_a_wait_is_told() {
        let (waits, key) = (waits(), "a".to_owned());
        assert_eq!(waits.left(&key), Duration::ZERO);
        let wait = waits.fail(key.clone());
        tokio::time::advance(wait / 4).await;
        assert_eq!(waits.left(&key), wait - wait / 4);
        tokio::time::advance(wait).await;
        assert_eq!(waits.left(&key), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_do_not_fail_any_more_are_forgotten() {
        let waits = waits();
        for round in 0..20 {
            for n in 0..40 {
                waits.fail(format!("{round} {n}"));
            }
            tokio::time::advance(Duration::from_secs(121)).await;
        }
        let kept = waits.failures.lock().of.len();
        assert!(kept <= 2 * 40 + YOUNG, "{kept}");
        waits.fail("b".to_owned());
        waits.fail("b".to_owned());
        tokio::time::advance(Duration::from_secs(121)).await;
        assert!(waits.fail("b".to_owned()) < Duration::from_secs(2), "it starts anew");
    }
}
