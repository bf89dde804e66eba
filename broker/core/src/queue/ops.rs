//! What people do to a shard of a queue: look at messages, remove them, take some out to move them elsewhere.
//!
//! Knows offsets and what the shard has in memory. Whoever asks has read the records that it asks about.

use std::sync::Arc;
use std::time::Duration;

use weir_env::clock::Instant;

use super::shard::Lease;
use super::{ConsumerId, End, QueueShard};
use crate::keyspace::segment::Record;

/// Messages that one step of a purge ends.
const OFFSETS_MAX: usize = 20_000;

/// Holds what is taken out to be moved elsewhere. No subscription has this id.
const OPERATOR: ConsumerId = ConsumerId(u64::MAX);

/// Where a message of a queue is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MessageState {
    /// To be delivered to whoever has room.
    Ready,
    /// A consumer holds it.
    InFlight {
        /// Its client id; empty while it is being moved to another queue.
        client_id: String,
        /// Until it counts as not acknowledged.
        left: Duration,
    },
    /// It waits to be delivered again.
    Waiting {
        /// How long.
        left: Duration,
    },
    /// It is on its way to the dead letters.
    Leaving,
}

/// Messages in one of these states, for those who purge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateFilter {
    /// All.
    Any,
    /// [`MessageState::Ready`].
    Ready,
    /// [`MessageState::InFlight`].
    InFlight,
    /// [`MessageState::Waiting`].
    Waiting,
}

impl StateFilter {
    /// Whether `state` is one of them.
    #[must_use]
    pub const fn admits(self, state: &MessageState) -> bool {
        match self {
            Self::Any => true,
            Self::Ready => matches!(state, MessageState::Ready),
            Self::InFlight => matches!(state, MessageState::InFlight { .. }),
            Self::Waiting => matches!(state, MessageState::Waiting { .. }),
        }
    }
}

impl QueueShard {
    /// Where the message at `offset` is, and how often it was delivered without success; `None` if it is done.
    #[must_use]
    pub fn state_of(&self, offset: u64, now: Instant) -> Option<(MessageState, u32)> {
        if self.is_done(offset) || offset >= self.next {
            return None;
        }
        let state = if let Some(lease) = self.leases.get(&offset) {
            let holder = self.consumers.iter().find(|attached| attached.consumer.id == lease.consumer);
            let client_id =
                holder.map(|attached| attached.consumer.client_id.to_string()).unwrap_or_default();
            MessageState::InFlight { client_id, left: lease.deadline.saturating_duration_since(now) }
        } else if let Some(due) = self.delayed_until.get(&offset) {
            MessageState::Waiting { left: due.saturating_duration_since(now) }
        } else if self.dying.contains(offset) {
            MessageState::Leaving
        } else {
            MessageState::Ready
        };
        Some((state, self.attempts.get(&offset).map_or(0, |attempts| attempts.failed)))
    }

    /// Ends up to [`OFFSETS_MAX`] messages before `end`, in flight or not. How many, and whether there are more. What
    /// has left for the dead letters stays.
    pub(crate) fn purge_below(&mut self, end: u64) -> (u64, bool) {
        let end = end.min(self.next);
        let asides: Vec<u64> = self.asides().take_while(|offset| *offset < end).take(OFFSETS_MAX).collect();
        let mut purged = asides.into_iter().map(|offset| u64::from(self.purge_one(offset, 0))).sum();
        let mut offset = self.acks.floor();
        while offset < end {
            if purged >= OFFSETS_MAX as u64 {
                return (purged, true);
            }
            purged += u64::from(self.purge_one(offset, 0));
            offset += 1;
        }
        if end == self.next {
            // All that is left is at hand.
            self.skip_to_end();
        }
        if self.in_log() == 0 {
            // What was not in memory had an unknown cost.
            self.counters.bytes = 0;
        }
        (purged, false)
    }

    /// Ends those of the messages `costs`, given with what they count, that `filter` admits. How many.
    pub(crate) fn purge(&mut self, costs: &[(u64, u64)], filter: StateFilter, now: Instant) -> u64 {
        let mut purged = 0;
        for (offset, cost) in costs {
            let Some((state, _)) = self.state_of(*offset, now) else { continue };
            if filter.admits(&state) {
                purged += u64::from(self.purge_one(*offset, *cost));
            }
        }
        purged
    }

    fn purge_one(&mut self, offset: u64, cost: u64) -> bool {
        if self.dying.contains(offset) && self.revive(offset).is_none() {
            return false;
        }
        let cost = self.withdraw(offset).map_or(cost, |record| record.cost());
        self.finish(offset, cost, End::Purged)
    }

    /// Takes a message out of where it waits or is held.
    fn withdraw(&mut self, offset: u64) -> Option<Arc<Record>> {
        if let Some(lease) = self.leases.remove(&offset) {
            return Some(lease.record);
        }
        if let Some((record, _)) = self.again.remove(&offset) {
            return Some(record);
        }
        if let Some(record) = self.keys.take_held_back(offset) {
            return Some(record);
        }
        let due = self.delayed_until.remove(&offset)?;
        self.delayed.remove(&(due, offset)).map(|(record, _)| record)
    }

    /// Takes out those of `records` that nobody holds: they are delivered to nobody until [`QueueShard::moved`] tells
    /// what became of them, or the time for an acknowledgement is over. Their offsets.
    pub(crate) fn take_out(&mut self, records: Vec<(u64, Arc<Record>)>, now: Instant) -> Vec<u64> {
        let mut taken = Vec::with_capacity(records.len());
        for (offset, record) in records {
            let is_free = matches!(
                self.state_of(offset, now),
                Some((MessageState::Ready | MessageState::Waiting { .. }, _))
            );
            if !is_free {
                continue;
            }
            self.withdraw(offset);
            self.forget_ready(offset);
            self.asides.read(offset);
            let deadline = now + self.settings.ack_timeout();
            self.leases
                .insert(offset, Lease { consumer: OPERATOR, delivery_count: 0, deadline, at: now, record });
            self.deadlines.push_back((deadline, offset));
            taken.push(offset);
        }
        taken
    }

    /// What became of messages that were taken out: those that are at their new place are done, the others are here
    /// again. How many are done.
    pub(crate) fn moved(&mut self, results: &[(u64, bool)]) -> u64 {
        let mut done = 0;
        for (offset, is_moved) in results {
            let Some(lease) = self.leases.get(offset).filter(|lease| is_operator(lease)) else {
                // Its time was over, and others have it now: it comes twice, as after a crash.
                continue;
            };
            let record = Arc::clone(&lease.record);
            self.leases.remove(offset);
            if *is_moved {
                done += u64::from(self.finish(*offset, record.cost(), End::Redriven));
            } else if !self.drop_superseded(*offset, &record) {
                self.again.insert(*offset, (record, None));
            }
        }
        done
    }
}

/// Whether a lease is of a message that was taken out by a person.
pub(super) fn is_operator(lease: &Lease) -> bool {
    lease.consumer == OPERATOR
}
