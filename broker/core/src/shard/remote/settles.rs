//! What clients here have settled of a shard that another pod owns, as long as the owner has not said that it has heard it.
//! Whoever has the shard next is told again. Bound: [`SETTLES_MAX`], beyond which consumers get nothing new.

use std::collections::VecDeque;

use weir_env::clock::Instant;

use crate::queue::{Handout, Verdict};

/// Settlements that the owner has not heard of before consumers get no more.
pub(super) const SETTLES_MAX: usize = 65_536;

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settlement {
    /// Counts them, over all talks.
    pub(super) seq: u64,
    pub(super) handout: Handout,
    pub(super) verdict: Verdict,
    pub(super) at: Instant,
}

/// In their order.
#[derive(Debug, Default)]
pub(super) struct Settles {
    line: VecDeque<Settlement>,
    last: u64,
}

impl Settles {
    /// Adds one; its number.
    pub(super) fn add(&mut self, handout: Handout, verdict: Verdict, at: Instant) -> u64 {
        self.last += 1;
        self.line.push_back(Settlement { seq: self.last, handout, verdict, at });
        self.last
    }

    /// The owner has heard all up to `seq`. Whether there is room again that there was not before.
    pub(super) fn heard(&mut self, seq: u64) -> bool {
        let was_full = self.is_full();
        while self.line.front().is_some_and(|first| first.seq <= seq) {
            self.line.pop_front();
        }
        was_full && !self.is_full()
    }

    /// Whether there are so many that nothing new is to be asked for.
    pub(super) fn is_full(&self) -> bool {
        self.line.len() >= SETTLES_MAX
    }

    pub(super) fn len(&self) -> usize {
        self.line.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Settlement> {
        self.line.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::{LogId, VirtualShard};
    use crate::queue::ConsumerId;

    #[test]
    fn beyond_the_bound_there_is_room_again_however_many_are_heard_at_once() {
        let clock = weir_env::clock::Clock::simulated(weir_env::clock::Timestamp::default());
        let log = LogId { vs: VirtualShard(1), object: 2, shard: 3, class: 0 };
        let handout = Handout { log, consumer: ConsumerId(1), offset: 4, delivery_count: 1 };
        for heard in [1, 1_000, SETTLES_MAX] {
            let mut settles = Settles::default();
            for n in 1..=SETTLES_MAX as u64 {
                assert!(!settles.is_full());
                assert_eq!(settles.add(handout, Verdict::Acknowledged, clock.now()), n);
            }
            assert!(settles.is_full() && !settles.heard(0));
            assert!(settles.heard(heard as u64) && !settles.is_full());
            assert_eq!((settles.len(), settles.heard(heard as u64)), (SETTLES_MAX - heard, false));
        }
    }
}
