//! How fast connections are accepted: at most so many in a second, with one second's worth at once.
//!
//! Who comes faster waits in the queue of the operating system. Nothing spins, nobody is turned away for this.

use std::time::Duration;

use parking_lot::Mutex;
use weir_env::clock::Instant;

/// The pace of all listeners of a process together.
#[derive(Debug)]
pub(super) struct Pace {
    /// Time that one connection stands for.
    interval: Duration,
    /// When all that was accepted would have come, one after the other.
    paid: Mutex<Option<Instant>>,
}

impl Pace {
    pub(super) fn new(per_second: u32) -> Self {
        Self { interval: Duration::from_secs(1) / per_second.max(1), paid: Mutex::new(None) }
    }

    /// Counts a connection accepted `now`; how long to wait before the next.
    pub(super) fn count(&self, now: Instant) -> Duration {
        let burst = Duration::from_secs(1);
        let mut paid = self.paid.lock();
        let earliest = paid.map_or(now, |paid| paid.max(now)) + self.interval;
        *paid = Some(earliest);
        earliest.duration_since(now).saturating_sub(burst)
    }
}

#[cfg(test)]
mod tests {
    use weir_env::clock::Clock;

    use super::*;

    #[test]
    fn a_second_at_once_and_then_one_after_the_other() {
        let pace = Pace::new(100);
        let start = Clock::system().now();
        for _ in 0..100 {
            assert_eq!(pace.count(start), Duration::ZERO);
        }
        assert_eq!(pace.count(start), Duration::from_millis(10));
        assert_eq!(pace.count(start), Duration::from_millis(20));
        let later = start + Duration::from_millis(500);
        for _ in 0..48 {
            assert_eq!(pace.count(later), Duration::ZERO);
        }
        assert_eq!(pace.count(later), Duration::from_millis(10));
        // A quiet time does not add up.
        let later = start + Duration::from_mins(1);
        for _ in 0..100 {
            assert_eq!(pace.count(later), Duration::ZERO);
        }
        assert_eq!(pace.count(later), Duration::from_millis(10));
    }
}
