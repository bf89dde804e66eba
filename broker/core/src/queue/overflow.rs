//! Room for new messages in a full queue that drops the oldest.
//!
//! What makes room is done, or on its way to the dead letters, in the transaction that appends what it makes room for:
//! until that is committed it can be put back. The oldest messages are kept in memory while the queue is nearly full
//! ([`NEARLY_FULL_PERCENT`]), so that an append waits for no read.

use std::sync::Arc;

use super::shard::QueueShard;
use super::{DeadReason, End};
use crate::keyspace::queue::{Attempts, Failure};
use crate::keyspace::segment::Record;

/// How full a queue is, of either limit, when its oldest messages are read although nobody consumes.
const NEARLY_FULL_PERCENT: u64 = 90;

/// What a shard may hold: its share of the queue's limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Messages; none: any number.
    pub messages: Option<u64>,
    /// Bytes; none: any number.
    pub bytes: Option<u64>,
    /// Whether the oldest make room; else new ones are refused.
    pub drops_oldest: bool,
}

/// A message that made room for others in a batch that is not committed yet.
#[derive(Debug)]
pub(crate) struct Evicted {
    offset: u64,
    record: Arc<Record>,
    attempts: Option<Attempts>,
}

impl Evicted {
    /// Which.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }
}

/// What became of asking for room.
#[derive(Debug)]
pub(crate) enum Room {
    /// One message less.
    Made(Evicted),
    /// The oldest message has to be read first.
    Unread,
    /// Consumers hold all there is, or nothing more can leave for the dead letters.
    None,
}

impl Limits {
    /// The limit that does not let `count` and `bytes` be held, if one does not.
    pub(crate) fn exceeded(&self, count: u64, bytes: u64) -> Option<&'static str> {
        if self.messages.is_some_and(|max| count > max) {
            return Some("retention.maxMessages");
        }
        self.bytes.is_some_and(|max| bytes > max).then_some("retention.maxBytes")
    }
}

impl QueueShard {
    /// What this shard may hold.
    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Whether the oldest messages may have to make room soon.
    pub(super) fn keeps_front(&self) -> bool {
        if !self.limits.drops_oldest {
            return false;
        }
        // Other priorities of the shard may fill it.
        if self.needs_front {
            return true;
        }
        let (count, bytes) = self.limited();
        let is_near = |max: Option<u64>, held: u64| {
            max.is_some_and(|max| held.saturating_mul(100) >= max.saturating_mul(NEARLY_FULL_PERCENT))
        };
        is_near(self.limits.messages, count) || is_near(self.limits.bytes, bytes)
    }

    /// Gives up the oldest message that no consumer holds. The caller tells with [`QueueShard::evicted`] that this is
    /// stored, or takes it back with [`QueueShard::put_back`].
    pub(crate) fn make_room(&mut self) -> Room {
        if self.has_dead_letters && self.dying.is_full() {
            return Room::None;
        }
        if self.wants_asides().is_some() {
            // Older than all of the log.
            return Room::Unread;
        }
        let Some((offset, record)) = self.take_oldest() else {
            self.needs_front |= self.read_next < self.next;
            let has_more = self.read_next < self.next || self.asides.has_unread();
            return if has_more { Room::Unread } else { Room::None };
        };
        let attempts = self.attempts.get(&offset).copied();
        if self.is_mortal(&record) {
            // Told by its row, it leaves also if the process ends before.
            self.attempts.entry(offset).or_default().failure = Some(Failure::MadeRoom);
            self.touch_attempts(offset);
            self.hold_dying(offset, &record, DeadReason::Overflow);
        } else {
            self.end(offset, record.cost(), End::Overflowed);
        }
        Room::Made(Evicted { offset, record, attempts })
    }

    fn take_oldest(&mut self) -> Option<(u64, Arc<Record>)> {
        while let Some((offset, record)) = self.ready.front()
            && self.is_over(*offset)
        {
            self.ready_bytes = self.ready_bytes.saturating_sub(record.message.size());
            self.ready.pop_front();
        }
        while let Some((offset, _)) =
            self.again.first_key_value().filter(|(offset, _)| self.is_over(**offset))
        {
            let offset = *offset;
            self.again.remove(&offset);
        }
        let again = self.again.keys().next().copied();
        let delayed = self.delayed_until.keys().next().copied();
        let ready = self.ready.front().map(|(offset, _)| *offset);
        let held_back = self.keys.first_held_back();
        let oldest = [again, delayed, ready, held_back].into_iter().flatten().min()?;
        if held_back == Some(oldest) {
            return self.keys.take_held_back(oldest).map(|record| (oldest, record));
        }
        if again == Some(oldest) {
            return self.again.remove(&oldest).map(|(record, _)| (oldest, record));
        }
        if delayed == Some(oldest) {
            return self.take_delayed(oldest).map(|record| (oldest, record));
        }
        let (offset, record) = self.ready.pop_front()?;
        self.ready_bytes = self.ready_bytes.saturating_sub(record.message.size());
        Some((offset, record))
    }

    /// The batch in which these made room is committed.
    pub(crate) fn evicted(&mut self, evicted: Vec<Evicted>) {
        for Evicted { offset, .. } in evicted {
            self.free_key(offset);
            if !self.release_dying(offset) {
                self.metrics.overflowed.inc();
            }
        }
    }

    /// The batch in which these made room was not stored: they are to be delivered as before.
    pub(crate) fn put_back(&mut self, evicted: Vec<Evicted>) {
        for Evicted { offset, record, attempts } in evicted.into_iter().rev() {
            if self.forget_dying(offset) {
                // Meanwhile it may have been moved aside: of its row only this is taken back.
                let row = self.attempts.entry(offset).or_default();
                row.failure = attempts.and_then(|attempts| attempts.failure);
                if *row == Attempts::default() {
                    self.attempts.remove(&offset);
                }
                self.asides.read(offset);
            } else {
                match attempts.and_then(|attempts| attempts.aside) {
                    Some(aside) => self.asides.put_back(offset, aside, Arc::clone(&record)),
                    None => self.acks.unset(offset),
                }
                self.counters.floor = self.acks.floor();
                self.counters.overflowed -= 1;
                self.add_bytes(offset, record.cost());
                self.attempts.extend(attempts.map(|attempts| (offset, attempts)));
            }
            self.touch_attempts(offset);
            self.keep_last_value(offset, &record);
            self.again.insert(offset, (record, None));
        }
    }
}

#[cfg(test)]
mod tests {
    use weir_env::seed::Seed;

    use super::*;
    use crate::keyspace::segment::RecordKey;
    use crate::keyspace::{LogId, VirtualShard};
    use crate::message::tests::full_message;
    use crate::metrics::Metrics;
    use crate::queue::{Lag, Settings, StoredQueue};

    const LOG: LogId = LogId { vs: VirtualShard(0), object: 1, shard: 0, class: 0 };

    #[test]
    fn a_message_moved_aside_while_it_made_room_stays_aside_when_it_is_put_back() {
        let limits = Limits { messages: Some(10), bytes: None, drops_oldest: true };
        let lag = Lag { offsets: 2, bytes: u64::MAX };
        let settings = Settings { limits, lag, has_dead_letters: true, ..Settings::default() };
        let stored = StoredQueue::default();
        let mut shard = QueueShard::restore(LOG, stored, settings, Seed::fixed(1), Metrics::default());
        let message = crate::message::Message { expires_at: None, dead_letter: None, ..full_message() };
        let (key, span) = (RecordKey::None, tracing::Span::none());
        let record = Record { message, key, blob_len: None, span };
        shard.needs_front = true;
        shard.appended(0, (0..10).map(|_| Arc::new(record.clone())));
        let Room::Made(evicted) = shard.make_room() else { panic!("no room") };
        assert_eq!((evicted.offset(), shard.dying()), (0, 1));
        (1..9).for_each(|offset| assert!(shard.finish(offset, record.cost(), End::Acknowledged)));
        shard.check_lag(0);
        shard.move_aside(vec![(0, record.clone())]);
        assert_eq!(shard.asides().collect::<Vec<_>>(), [0]);
        shard.take_dirty();
        shard.put_back(vec![evicted]);
        let dirty = shard.take_dirty();
        let row = dirty.attempts[&0].expect("its row says that it is aside");
        assert!(row.aside.is_some() && row.failure.is_none(), "{row:?}");
        assert_eq!((shard.dying(), shard.depth()), (0, 2));
    }
}
