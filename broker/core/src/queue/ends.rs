//! How messages end: one function that all ends go through, so that each message is counted exactly once.
//!
//! Knows nothing of why a message ends; whoever ends it says so.

use super::shard::QueueShard;
use crate::keyspace::queue::{Failure, QueueFloor};

/// Why a message is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeadReason {
    /// Its last attempt was refused by a consumer.
    Rejected,
    /// Its last attempt was not acknowledged in time.
    Timeout,
    /// Its last attempt ended with its consumer's connection.
    Disconnected,
    /// It was too old.
    Expired,
    /// It made room for newer ones.
    Overflow,
}

impl DeadReason {
    /// What consumers of dead letters see.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Timeout => "timeout",
            Self::Disconnected => "disconnected",
            Self::Expired => "expired",
            Self::Overflow => "overflow",
        }
    }

    /// How a message ends for this reason if it is dropped.
    #[must_use]
    pub const fn end(self) -> End {
        match self {
            Self::Rejected | Self::Timeout | Self::Disconnected => End::Exhausted(self),
            Self::Expired => End::Expired,
            Self::Overflow => End::Overflowed,
        }
    }
}

impl From<Failure> for DeadReason {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Rejected => Self::Rejected,
            Failure::TimedOut => Self::Timeout,
            Failure::Disconnected => Self::Disconnected,
            Failure::MadeRoom => Self::Overflow,
        }
    }
}

/// How a message ends: every message of a queue, once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A consumer has it.
    Acknowledged,
    /// Dropped: it was too old.
    Expired,
    /// Dropped after its last attempt, which failed for this reason.
    Exhausted(DeadReason),
    /// Dropped to make room for a newer one.
    Overflowed,
    /// Replaced by a newer one of its key.
    Superseded,
    /// Removed by an administrator.
    Purged,
    /// Moved back to the queue it had left as a dead letter.
    Redriven,
    /// It is in the dead letters.
    DeadLettered,
}

impl QueueShard {
    /// Ends the message at `offset`, which counted `cost` bytes: it is done, and counted as `end`. False if it was
    /// done before. Lists that still name it skip it later.
    pub(super) fn finish(&mut self, offset: u64, cost: u64, end: End) -> bool {
        if !self.end(offset, cost, end) {
            return false;
        }
        self.free_key(offset);
        let metric = match end {
            End::Acknowledged => &self.metrics.acknowledged,
            End::Expired => &self.metrics.expired,
            End::Exhausted(_) => &self.metrics.exhausted,
            End::Overflowed => &self.metrics.overflowed,
            End::Superseded => &self.metrics.superseded,
            End::Purged => &self.metrics.purged,
            End::Redriven => &self.metrics.redriven,
            End::DeadLettered => &self.metrics.dead_lettered,
        };
        metric.inc();
        true
    }

    /// [`QueueShard::finish`] but for the metric, for an end that may be taken back.
    pub(super) fn end(&mut self, offset: u64, cost: u64, end: End) -> bool {
        if !self.set_done(offset, cost, end) {
            return false;
        }
        let count = counter(&mut self.counters, end);
        *count = count.saturating_add(1);
        true
    }
}

/// Where `end` is counted.
pub(super) fn counter(counters: &mut QueueFloor, end: End) -> &mut u64 {
    match end {
        End::Acknowledged => &mut counters.acknowledged,
        End::Expired => &mut counters.expired,
        End::Exhausted(_) => &mut counters.exhausted,
        End::Overflowed => &mut counters.overflowed,
        End::Superseded => &mut counters.superseded,
        End::Purged => &mut counters.purged,
        End::Redriven => &mut counters.redriven,
        End::DeadLettered => &mut counters.dead_lettered,
    }
}
