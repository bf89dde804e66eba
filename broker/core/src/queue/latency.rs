//! How long consumers take to acknowledge: a small histogram of the latest deliveries.

use std::time::Duration;

/// Half powers of two of a microsecond: up to 24 hours.
const BUCKETS: usize = 74;
/// Deliveries from which all are halved, so that the latest weigh most.
const SAMPLES_MAX: u32 = 2048;

/// Times from delivery to acknowledgement, the latest few thousand, each known to within a fifth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AckLatency {
    buckets: [u16; BUCKETS],
    samples: u32,
}

impl Default for AckLatency {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], samples: 0 }
    }
}

impl AckLatency {
    /// Adds one.
    pub(super) fn record(&mut self, latency: Duration) {
        if self.samples >= SAMPLES_MAX {
            for bucket in &mut self.buckets {
                *bucket /= 2;
            }
            self.samples = self.buckets.iter().map(|n| u32::from(*n)).sum();
        }
        let bucket = &mut self.buckets[Self::bucket(latency)];
        *bucket = bucket.saturating_add(1);
        self.samples += 1;
    }

    /// Adds those of another shard.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine = mine.saturating_add(*theirs);
        }
        self.samples = self.buckets.iter().map(|n| u32::from(*n)).sum();
    }

    /// Deliveries by latency, for another pod.
    pub fn counts(&self) -> impl Iterator<Item = u16> {
        self.buckets.iter().copied()
    }

    /// What [`AckLatency::counts`] gave.
    #[must_use]
    pub fn of_counts(counts: impl IntoIterator<Item = u16>) -> Self {
        let mut latency = Self::default();
        for (bucket, count) in latency.buckets.iter_mut().zip(counts) {
            *bucket = count;
        }
        latency.samples = latency.buckets.iter().map(|n| u32::from(*n)).sum();
        latency
    }

    /// The latency that `percent` of the deliveries do not exceed; `None` if there were none.
    #[must_use]
    pub fn percentile(&self, percent: u32) -> Option<Duration> {
        let rank = (u64::from(self.samples) * u64::from(percent.min(100))).div_ceil(100).max(1);
        let mut seen = 0;
        for (n, count) in self.buckets.iter().enumerate() {
            seen += u64::from(*count);
            if seen >= rank {
                return Some(Self::middle(n));
            }
        }
        None
    }

    fn bucket(latency: Duration) -> usize {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1);
        let power = micros.ilog2();
        // The second highest bit tells the halves of a power apart: from one and a half of it on.
        let upper = power > 0 && micros & (1 << (power - 1)) != 0;
        (2 * power as usize + usize::from(upper)).min(BUCKETS - 1)
    }

    /// What stands for a bucket: from 2^n on or 1.5 * 2^n on.
    fn middle(bucket: usize) -> Duration {
        let power = 1u64 << (bucket / 2);
        Duration::from_micros(if bucket.is_multiple_of(2) {
            power + power / 4
        } else {
            power + power * 3 / 4
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_near_the_truth() {
        let mut latency = AckLatency::default();
        assert_eq!(latency.percentile(50), None);
        for micros in (0..1000).map(|n| 1000 + n * 100) {
            latency.record(Duration::from_micros(micros));
        }
        for (percent, truth) in [(1, 2_000), (50, 51_000), (99, 100_000)] {
            let found = latency.percentile(percent).unwrap().as_micros();
            assert!((truth * 3 / 4..truth * 5 / 4).contains(&found), "p{percent} is {found}, not {truth}");
        }
    }

    #[test]
    fn the_latest_weigh_most_and_extremes_fit() {
        let mut latency = AckLatency::default();
        (0..SAMPLES_MAX).for_each(|_| latency.record(Duration::MAX));
        assert!(latency.percentile(50).unwrap() > Duration::from_secs(24 * 3600));
        (0..2 * SAMPLES_MAX).for_each(|_| latency.record(Duration::ZERO));
        assert!(latency.percentile(50).unwrap() < Duration::from_micros(2));
        let mut both = AckLatency::default();
        both.merge(&latency);
        both.merge(&latency);
        assert_eq!(both.percentile(50), latency.percentile(50));
    }
}
