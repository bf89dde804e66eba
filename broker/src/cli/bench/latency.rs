//! Latency histograms, filled by workers and collected by the run.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Longest latency told apart; longer ones count as this.
const LONGEST: Duration = Duration::from_mins(10);
/// Decimal digits that are kept.
const DIGITS: u8 = 3;

/// Latencies of one kind each, in nanoseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Latencies {
    /// From the time a message was due to its PUBACK or PUBCOMP.
    pub(super) ack: Latency,
    /// From the time a message was due to its arrival at a subscriber.
    pub(super) end_to_end: Latency,
    /// From the start of a connection to its CONNACK.
    pub(super) connect: Latency,
    /// From a SUBSCRIBE for what is stored to the first message.
    pub(super) first: Latency,
}

/// One distribution.
#[derive(Clone, Debug)]
pub(super) struct Latency(Histogram<u64>);

impl Default for Latency {
    fn default() -> Self {
        let longest = u64::try_from(LONGEST.as_nanos()).expect("ten minutes fit");
        Self(Histogram::new_with_bounds(1_000, longest, DIGITS).expect("the bounds are in order"))
    }
}

impl Latencies {
    /// Adds what `other` has recorded.
    pub(super) fn add(&mut self, other: &Self) {
        self.ack.add(&other.ack);
        self.end_to_end.add(&other.end_to_end);
        self.connect.add(&other.connect);
        self.first.add(&other.first);
    }

    pub(super) fn clear(&mut self) {
        self.ack.0.reset();
        self.end_to_end.0.reset();
        self.connect.0.reset();
        self.first.0.reset();
    }
}

impl Latency {
    pub(super) fn record(&mut self, nanos: u64) {
        self.0.saturating_record(nanos);
    }

    fn add(&mut self, other: &Self) {
        self.0.add(&other.0).expect("the bounds are the same");
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The latency that `percent` of all stay within, in nanoseconds.
    pub(super) fn percentile(&self, percent: f64) -> u64 {
        self.0.value_at_percentile(percent)
    }

    pub(super) fn max(&self) -> u64 {
        self.0.max()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_what_was_recorded() {
        let (mut total, mut part) = (Latencies::default(), Latencies::default());
        assert!(total.ack.is_empty());
        for n in 1..=1000 {
            part.ack.record(n * 1_000_000);
        }
        total.add(&part);
        part.clear();
        total.add(&part);
        let close = |value: u64, expected: u64| value.abs_diff(expected) <= expected / 500;
        assert!(close(total.ack.percentile(50.0), 500_000_000));
        assert!(close(total.ack.percentile(99.9), 999_000_000));
        assert!(close(total.ack.max(), 1_000_000_000));
        assert!(total.end_to_end.is_empty());
    }

    #[test]
    fn what_is_out_of_range_counts_at_its_end() {
        let mut latency = Latency::default();
        latency.record(0);
        latency.record(u64::MAX);
        assert!(latency.max() >= 600_000_000_000 / 2);
    }
}
