//! As many messages per second as a reader asks for: a bucket of tokens that fills with time. Without input or output.
//!
//! Even: never more at once than a tenth of a second's worth, or one. Knows time and numbers, nothing of messages.

use std::num::NonZeroU32;
use std::time::Duration;

use weir_env::clock::Instant;

const NANOS: u64 = 1_000_000_000;
/// Part of a second in which what was not used may be caught up with.
const BURST: u32 = 10;
/// Part of a second for which messages are gathered rather than let through one by one.
const STEP: u32 = 100;

/// Lets messages through.
#[derive(Debug)]
pub(super) struct Rate {
    per_second: u64,
    burst: u64,
    step: u64,
    /// Parts of messages, of which [`NANOS`] make one.
    credit: u64,
    at: Instant,
}

impl Rate {
    pub(super) fn new(per_second: NonZeroU32, now: Instant) -> Self {
        let part = |of: u32| u64::from((per_second.get() / of).max(1));
        Self {
            per_second: per_second.get().into(),
            burst: part(BURST),
            step: part(STEP),
            credit: NANOS,
            at: now,
        }
    }

    /// Messages that it lets through within `time`, at least one.
    pub(super) fn within(&self, time: Duration) -> usize {
        usize::try_from(self.per_second.saturating_mul(time.as_secs()).max(1)).unwrap_or(usize::MAX)
    }

    /// How many of `wanted` messages, at least one, may go now; or how long to wait before asking again.
    pub(super) fn take(&mut self, wanted: usize, now: Instant) -> Result<usize, Duration> {
        let nanos = u64::try_from(now.saturating_duration_since(self.at).as_nanos()).unwrap_or(u64::MAX);
        self.at = now;
        self.credit =
            self.credit.saturating_add(nanos.saturating_mul(self.per_second)).min(self.burst * NANOS);
        let wanted = (wanted as u64).max(1);
        let granted = wanted.min(self.credit / NANOS);
        let needed = self.step.min(wanted);
        if granted < needed {
            let missing = needed * NANOS - self.credit;
            return Err(Duration::from_nanos(missing.div_ceil(self.per_second)));
        }
        self.credit -= granted * NANOS;
        Ok(usize::try_from(granted).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use weir_env::clock::Clock;

    use super::*;

    /// Takes all that it may for `seconds`, from batches of `batch`: how many went, the most at once, and how often it
    /// was asked.
    fn run(per_second: u32, seconds: u64, batch: usize) -> (u64, usize, u64) {
        let start = Clock::system().now();
        let mut now = start;
        let mut rate = Rate::new(NonZeroU32::new(per_second).unwrap(), now);
        let (mut taken, mut most, mut asked) = (0, 0, 0);
        while now < start + Duration::from_secs(seconds) {
            asked += 1;
            match rate.take(batch, now) {
                Ok(count) => {
                    assert!(count >= 1 && count <= batch);
                    taken += count as u64;
                    most = most.max(count);
                }
                Err(wait) => {
                    assert!(wait > Duration::ZERO);
                    now += wait;
                }
            }
        }
        (taken, most, asked)
    }

    #[test]
    fn exactly_as_many_as_asked_for_and_evenly() {
        for (per_second, batch) in [
            (1, 1),
            (1, 5_000),
            (3, 7),
            (10, 1),
            (999, 7),
            (999, 5_000),
            (100_000, 1),
            (100_000, 5_000),
            (1_000_000_000, 50_000_000),
        ] {
            let (taken, most, asked) = run(per_second, 2, batch);
            let (expected, step) = (u64::from(per_second) * 2, u64::from(per_second / STEP));
            // One may go at the start.
            assert!(
                (expected - step..=expected + 1 + step).contains(&taken),
                "{per_second} {batch}: {taken}"
            );
            assert!(most <= usize::try_from(per_second / BURST).unwrap().max(1));
            // Waits, rather than asking again and again.
            assert!(asked <= 2 * taken + 2, "{per_second} {batch}: {asked}");
        }
    }

    #[test]
    fn what_was_not_used_is_caught_up_with_for_a_tenth_of_a_second_only() {
        let now = Clock::system().now();
        let mut rate = Rate::new(NonZeroU32::new(1000).unwrap(), now);
        let later = now + Duration::from_secs(3600);
        assert_eq!(rate.take(10_000, later), Ok(100));
        assert!(rate.take(10_000, later).is_err());
        let mut slow = Rate::new(NonZeroU32::MIN, now);
        assert_eq!(slow.take(5, later), Ok(1));
        assert_eq!(slow.take(5, later), Err(Duration::from_secs(1)));
    }
}
