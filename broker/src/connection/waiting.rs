//! How long a subscription waits that cannot have its queue or stream now, and what people are told of it.
//!
//! Knows time and words, nothing of queues or streams. The state belongs to the subscription.

use std::time::Duration;

use weir_env::clock::Instant;

/// First wait; it doubles.
const WAIT: Duration = Duration::from_secs(1);
/// Longest wait.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What a subscription waits for that is tried again.
#[derive(Debug)]
pub(super) struct Waiting {
    why: String,
    wait: Duration,
    until: Instant,
}

impl Waiting {
    /// It did not work, as it did not `before`. A try before its time, as whenever the catalog changes, puts off
    /// nothing.
    pub(super) fn after(before: Option<&Self>, why: String, now: Instant) -> Self {
        match before {
            None => Self { why, wait: WAIT, until: now + WAIT },
            Some(before) if now < before.until => Self { why, ..*before },
            Some(before) => {
                let wait = (before.wait * 2).min(WAIT_MAX);
                Self { why, wait, until: now + wait }
            }
        }
    }

    /// Why it waits.
    pub(super) fn why(&self) -> &str {
        &self.why
    }

    /// When it is tried again.
    pub(super) fn until(&self) -> Instant {
        self.until
    }
}

#[cfg(test)]
mod tests {
    use weir_env::clock::Clock;

    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_early_tries_count_for_nothing() {
        let mut now = Clock::system().now();
        let mut waiting = Waiting::after(None, String::new(), now);
        let mut waits = Vec::new();
        for _ in 0..7 {
            waits.push(waiting.until().saturating_duration_since(now).as_secs());
            let early = Waiting::after(Some(&waiting), "other".to_owned(), now);
            assert_eq!((early.until(), early.why()), (waiting.until(), "other"));
            now = early.until();
            waiting = Waiting::after(Some(&early), String::new(), now);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    }
}
