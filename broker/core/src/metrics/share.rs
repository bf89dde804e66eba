//! One task's part in a gauge that several tasks share.

use prometheus_client::metrics::gauge::Gauge;

/// What one task adds to a gauge; taken off again when it is dropped.
#[derive(Debug)]
pub(crate) struct GaugeShare {
    of: Gauge,
    now: i64,
}

impl GaugeShare {
    pub(crate) fn new(of: &Gauge) -> Self {
        Self { of: of.clone(), now: 0 }
    }

    pub(crate) fn set(&mut self, count: usize) {
        let now = i64::try_from(count).unwrap_or(i64::MAX);
        if now != self.now {
            self.of.inc_by(now.saturating_sub(self.now));
            self.now = now;
        }
    }
}

impl Drop for GaugeShare {
    fn drop(&mut self) {
        self.set(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_is_the_sum_of_its_shares() {
        let gauge = Gauge::default();
        let (mut one, mut other) = (GaugeShare::new(&gauge), GaugeShare::new(&gauge));
        one.set(7);
        other.set(5);
        one.set(2);
        assert_eq!(gauge.get(), 7);
        drop(one);
        assert_eq!(gauge.get(), 5);
    }
}
