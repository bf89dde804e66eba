//! Monotonic and wall-clock time.
//!
//! Monotonic time is [`tokio::time::Instant`], which a paused tokio runtime controls. Wall-clock time is
//! microseconds since the Unix epoch; a simulated clock derives it from the monotonic one, so that pausing
//! tokio's time pauses both.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use tokio::time::Instant;

/// Wall-clock time in microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The latest time that can be expressed; stands for "never".
    pub const MAX: Self = Self(u64::MAX);

    /// `micros` microseconds after the Unix epoch.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the Unix epoch.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// This time plus `duration`, or [`Timestamp::MAX`] on overflow.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(micros))
    }

    /// Time passed from `earlier` to `self`; zero if `earlier` is later.
    #[must_use]
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}us", self.0)
    }
}

/// Where Weir reads the time. Cheap to copy.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    base: Option<(Instant, Timestamp)>,
}

impl Clock {
    /// The machine's clocks.
    #[must_use]
    pub const fn system() -> Self {
        Self { base: None }
    }

    /// A clock whose wall-clock time is `start` now and advances with tokio's (pausable) time.
    #[must_use]
    pub fn simulated(start: Timestamp) -> Self {
        Self { base: Some((monotonic_now(), start)) }
    }

    /// Monotonic time: for durations, deadlines and time-outs.
    #[must_use]
    pub fn now(&self) -> Instant {
        monotonic_now()
    }

    /// Wall-clock time: for what is stored or shown.
    #[must_use]
    pub fn wall(&self) -> Timestamp {
        match self.base {
            Some((base, start)) => start.saturating_add(monotonic_now().saturating_duration_since(base)),
            None => system_wall(),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the monotonic clock")]
fn monotonic_now() -> Instant {
    Instant::now()
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
fn system_wall() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn simulated_wall_time_follows_paused_time() {
        let clock = Clock::simulated(Timestamp::from_micros(1_000_000));
        assert_eq!(clock.wall(), Timestamp::from_micros(1_000_000));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(clock.wall(), Timestamp::from_micros(3_601_000_000));
    }

    #[test]
    fn additions_saturate() {
        assert_eq!(Timestamp::MAX.saturating_add(Duration::from_secs(1)), Timestamp::MAX);
        let t = Timestamp::from_micros(5);
        assert_eq!(t.saturating_since(Timestamp::from_micros(9)), Duration::ZERO);
    }
}
