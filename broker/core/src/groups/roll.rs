//! The roll of pods: each says once who its members are, and until all have, or are members of the cluster no more, nobody
//! gets a shard. No IO and no clock.

use std::collections::BTreeSet;
use std::time::Duration;

use weir_env::clock::Instant;

use crate::keyspace::owner::PodId;

/// How often pods that have not answered are asked again who their members are.
const CALL_INTERVAL: Duration = Duration::from_secs(1);

/// Who has not answered. By default the roll is not called.
#[derive(Debug, Default)]
pub(super) struct Roll {
    awaited: BTreeSet<PodId>,
    /// When those are asked again; nothing once the roll is complete and that is known.
    call_at: Option<Instant>,
}

impl Roll {
    /// Calls `pods` at once.
    pub(super) fn begun(pods: impl IntoIterator<Item = PodId>, now: Instant) -> Self {
        Self { awaited: pods.into_iter().collect(), call_at: Some(now) }
    }

    /// When [`Self::due`] has something to say.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.call_at
    }

    /// Who is to be asked now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<PodId> {
        if self.call_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.call_at = Some(now + CALL_INTERVAL);
        self.awaited.iter().copied().collect()
    }

    pub(super) fn answered(&mut self, pod: PodId) {
        self.awaited.remove(&pod);
    }

    /// Waits for no others.
    pub(super) fn keep(&mut self, is_member: impl Fn(PodId) -> bool) {
        self.awaited.retain(|pod| is_member(*pod));
    }

    /// Whether it is not said yet that nobody is waited for.
    pub(super) fn is_open(&self) -> bool {
        self.call_at.is_some()
    }

    /// Whether nobody is waited for any more; said once.
    pub(super) fn take_complete(&mut self) -> bool {
        self.awaited.is_empty() && self.call_at.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use weir_env::clock::Clock;

    use super::*;

    fn pods() -> [PodId; 2] {
        [PodId([1; 16]), PodId([2; 16])]
    }

    #[test]
    fn who_has_not_answered_is_asked_each_second() {
        let (now, [one, other]) = (Clock::system().now(), pods());
        let mut roll = Roll::begun([one, other], now);
        assert_eq!((roll.due(now), roll.due(now)), (vec![one, other], Vec::new()));
        roll.answered(one);
        assert!(!roll.take_complete() && roll.is_open());
        assert_eq!(roll.poll_timeout(), Some(now + CALL_INTERVAL));
        assert_eq!(roll.due(now + CALL_INTERVAL), [other]);
        roll.answered(other);
        assert!(roll.take_complete() && !roll.is_open());
        assert_eq!((roll.take_complete(), roll.poll_timeout()), (false, None), "it is said once");
    }

    #[test]
    fn a_pod_that_is_gone_when_it_is_to_be_asked_again_is_not_waited_for() {
        let (now, [one, other]) = (Clock::system().now(), pods());
        let mut roll = Roll::begun([one, other], now);
        let _ = roll.due(now);
        roll.answered(one);
        roll.keep(|pod| pod == one);
        assert_eq!(roll.due(now + CALL_INTERVAL), []);
        assert!(roll.take_complete());
    }

    #[test]
    fn what_was_not_called_is_not_complete() {
        assert!(!Roll::default().take_complete() && !Roll::default().is_open());
    }
}
