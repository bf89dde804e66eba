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

/// A purge that has begun and has more to end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Purging {
    /// All before this are to end.
    end: u64,
    /// Bytes of messages from there on.
    above: u64,
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

    /// Ends up to [`OFFSETS_MAX`] messages before `end` and more, in flight or not: all that were there at the first
    /// step. How many, and whether there are more. What has left for the dead letters stays.
    ///
    /// Messages that are not in memory cost about the average until the last step, which knows what is left.
    pub(crate) fn purge_below(&mut self, end: u64) -> (u64, bool) {
        let begun = Purging { end: self.next, above: 0 };
        let to = self.purging.get_or_insert(begun).end;
        let mut purged = 0;
        let asides: Vec<u64> = self.asides().take_while(|offset| *offset < to).collect();
        for offset in asides.into_iter().chain(self.acks.floor()..to) {
            if purged >= OFFSETS_MAX as u64 {
                return (purged, true);
            }
            let average = self.counters.bytes / self.in_log().max(1);
            purged += u64::from(self.purge_one(offset, average));
        }
        if to == self.next {
            // All that is left is at hand.
            self.skip_to_end();
        }
        if let Some(Purging { above, .. }) = self.purging.take() {
            self.counters.bytes = above.saturating_add(self.dying.cost_below(to));
            self.owe_nothing_below(to);
        }
        // Others may have begun it, and before some of these were there.
        (purged, to < end.min(self.next))
    }

    /// The message at `offset` costs so much more.
    pub(super) fn add_bytes(&mut self, offset: u64, cost: u64) {
        self.counters.bytes = self.counters.bytes.saturating_add(cost);
        if let Some(purging) = self.purging.as_mut().filter(|purging| offset >= purging.end) {
            purging.above = purging.above.saturating_add(cost);
        }
    }

    /// The message at `offset` costs so much less.
    pub(super) fn take_bytes(&mut self, offset: u64, cost: u64) {
        self.counters.bytes = self.counters.bytes.saturating_sub(cost);
        if let Some(purging) = self.purging.as_mut().filter(|purging| offset >= purging.end) {
            purging.above = purging.above.saturating_sub(cost);
        }
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
        self.take_delayed(offset)
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

#[cfg(test)]
mod tests {
    use weir_env::seed::Seed;

    use super::*;
    use crate::keyspace::segment::RecordKey;
    use crate::keyspace::{LogId, VirtualShard};
    use crate::message::tests::full_message;
    use crate::metrics::Metrics;
    use crate::queue::{Settings, StoredQueue};

    const LOG: LogId = LogId { vs: VirtualShard(0), object: 1, shard: 0, class: 0 };

    #[test]
    fn what_comes_while_a_purge_goes_on_is_all_that_counts_after_it() {
        let (stored, settings) = (StoredQueue::default(), Settings::default());
        let mut shard = QueueShard::restore(LOG, stored, settings, Seed::fixed(1), Metrics::default());
        let message = full_message();
        let (key, span) = (RecordKey::None, tracing::Span::none());
        let record = Arc::new(Record { message, key, blob_len: None, span });
        let many = OFFSETS_MAX as u64 * 2 + 10;
        shard.appended(0, (0..many).map(|_| Arc::clone(&record)));
        let end = shard.next;
        let (mut purged, mut steps) = (0, 0);
        loop {
            let (count, more) = shard.purge_below(end);
            (purged, steps) = (purged + count, steps + 1);
            if !more {
                break;
            }
            let average = shard.bytes() / shard.depth();
            assert_eq!(average, record.cost(), "in between they cost the average");
            shard.appended(shard.next, (0..5).map(|_| Arc::clone(&record)));
        }
        assert_eq!((purged, steps, shard.depth()), (many, 3, 10));
        assert_eq!(shard.bytes(), 10 * record.cost());
        let late = shard.next - 1;
        assert!(shard.finish(late, record.cost(), End::Acknowledged));
        assert_eq!(shard.purge_below(late - 1), (9, false), "up to the end of the log");
        assert_eq!((shard.bytes(), shard.depth()), (0, 0));
    }
}
