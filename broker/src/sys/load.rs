//! How much happens a minute, averaged over the last one, five and fifteen, the older the less it counts. Knows
//! neither what is counted nor who reads it; each [`Load`] belongs to whoever feeds it.

use std::time::Duration;

/// What the averages are called, and over how long they go.
pub(super) const WINDOWS: [(&str, Duration); 3] =
    [("1min", Duration::from_mins(1)), ("5min", Duration::from_mins(5)), ("15min", Duration::from_mins(15))];

/// Exponentially damped averages of how much a counter grows a minute.
#[derive(Clone, Debug, Default)]
pub(super) struct Load {
    last: u64,
    averages: [f64; WINDOWS.len()],
}

impl Load {
    /// The counter stands at `now`, `elapsed` after the last call. A counter that fell, or no time, counts as
    /// nothing.
    pub(super) fn update(&mut self, now: u64, elapsed: Duration) {
        let grown = now.saturating_sub(self.last);
        self.last = now;
        if elapsed.is_zero() {
            return;
        }
        let per_minute = grown as f64 * 60.0 / elapsed.as_secs_f64();
        for (average, (_, window)) in self.averages.iter_mut().zip(WINDOWS) {
            let kept = (-elapsed.as_secs_f64() / window.as_secs_f64()).exp();
            *average = per_minute + kept * (*average - per_minute);
        }
    }

    /// In the order of [`WINDOWS`].
    pub(super) fn averages(&self) -> [f64; WINDOWS.len()] {
        self.averages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(steps: impl IntoIterator<Item = (u64, u64)>) -> [f64; 3] {
        let mut load = Load::default();
        for (count, seconds) in steps {
            load.update(count, Duration::from_secs(seconds));
        }
        load.averages()
    }

    #[track_caller]
    fn check(found: [f64; 3], expected: [f64; 3]) {
        let close = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 0.01);
        assert!(close, "{found:?} is not {expected:?}");
    }

    #[test]
    fn a_steady_rate_is_reached_and_left_by_the_shorter_average_first() {
        // 60 a minute: after one window 1 - 1/e of it.
        let minute = (1..=6).map(|n| (n * 10, 10));
        check(fed(minute.clone()), [37.93, 10.88, 3.87]);
        let hours = (1..=1_800).map(|n| (n * 10, 10));
        check(fed(hours.clone()), [60.0, 60.0, 60.0]);
        let silence = std::iter::repeat_n((18_000, 10), 6);
        check(fed(hours.chain(silence)), [22.07, 49.12, 56.13]);
    }

    #[test]
    fn the_length_of_the_steps_does_not_matter() {
        let (coarse, fine) = ((1..=4).map(|n| (n * 30, 30)), (1..=120).map(|n| (n, 1)));
        check(fed(coarse), fed(fine));
    }

    #[test]
    fn no_time_and_a_counter_that_fell_count_as_nothing() {
        check(fed([(1_000, 0)]), [0.0; 3]);
        check(fed([(60, 60), (10, 0), (10, 0)]), fed([(60, 60)]));
        check(fed([(1_000, 0), (500, 10)]), [0.0; 3]);
    }
}
