//! Messages moved aside: what is not done long after its neighbours are gets a row of its own, so that the floor goes
//! on and the log can be cut.
//!
//! For floor and bitmaps such a message is done; here it is not, until its end clears the row. Depth and bytes do not
//! change when a message is moved. A row is written in the transaction that writes the floor beyond it, and its end in
//! the one that counts it. Reads nothing: the owner brings the records to be moved, and rows that are to be delivered.
//! Bounds: [`ASIDE_MAX`] messages; rows are read when consumers have taken those read before, or to give up what has
//! expired.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use weir_env::clock::{Instant, Timestamp};

use super::shard::QueueShard;
use super::{DeadReason, End};
use crate::keyspace::queue::Aside;
use crate::keyspace::segment::Record;

/// Messages of one shard that may be moved aside; more pin the log again.
pub(super) const ASIDE_MAX: usize = 50_000;
/// Rows cleared in one batch; those left, and what they count, go with the next.
const ENDED_ROWS_MAX: usize = 500;
/// Rows written in one batch.
const ROUND_ROWS_MAX: usize = 1000;
/// Bytes of rows written in one batch, and those of one more.
const ROUND_BYTES_MAX: u64 = 128 * 1024;

/// From when on messages are moved aside.
#[derive(Clone, Copy, Debug)]
pub struct Lag {
    /// Done messages above the floor.
    pub offsets: u64,
    /// Bytes they hold in the store.
    pub bytes: u64,
}

impl Default for Lag {
    fn default() -> Self {
        Self { offsets: 16 * 1024, bytes: 64 * 1024 * 1024 }
    }
}

/// A row of a message aside that has to be written or cleared.
#[derive(Clone, Debug)]
pub(crate) enum AsideChange {
    /// It was moved.
    Moved(Arc<Record>),
    /// It is done.
    Ended(Ended),
}

/// The end of a message aside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// Its payload is in chunks.
    pub(crate) blob: bool,
    /// What it counted.
    pub(super) cost: u64,
    pub(super) end: End,
}

/// Messages of one shard that were moved aside.
#[derive(Debug, Default)]
pub(super) struct Asides {
    by_offset: BTreeMap<u64, Aside>,
    /// Of those, the ones that are not in memory.
    unread: BTreeSet<u64>,
    /// Of those, the ones that have expired and leave for the dead letters.
    sought: BTreeSet<u64>,
    bytes: u64,
    /// Rows to be written.
    moved: BTreeMap<u64, Arc<Record>>,
    /// Rows in the batch on its way.
    writing: BTreeSet<u64>,
    /// Rows to be cleared.
    ended: BTreeMap<u64, Ended>,
    /// Moving goes on up to this offset.
    goal: u64,
}

impl Asides {
    /// As stored: nothing is in memory.
    pub(super) fn restore(by_offset: BTreeMap<u64, Aside>) -> Self {
        let unread = by_offset.keys().copied().collect();
        let bytes = by_offset.values().fold(0_u64, |sum, aside| sum.saturating_add(aside.cost));
        Self { by_offset, unread, bytes, ..Self::default() }
    }

    pub(super) fn contains(&self, offset: u64) -> bool {
        self.by_offset.contains_key(&offset)
    }

    /// What ends a message that is here.
    pub(super) fn ended(&self, offset: u64, end: End) -> Option<AsideChange> {
        let Aside { blob, cost, .. } = *self.by_offset.get(&offset)?;
        Some(AsideChange::Ended(Ended { blob, cost, end }))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_offset.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.by_offset.len()
    }

    /// When the first of them came.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        self.by_offset.first_key_value().map(|(_, aside)| aside.published_at)
    }

    /// The message is done. What it counted as, if it is here.
    pub(super) fn end(&mut self, offset: u64, end: End) -> Option<u64> {
        let aside = self.by_offset.remove(&offset)?;
        self.read(offset);
        self.moved.remove(&offset);
        self.bytes = self.bytes.saturating_sub(aside.cost);
        let Aside { blob, cost, .. } = aside;
        self.ended.insert(offset, Ended { blob, cost, end });
        Some(cost)
    }

    /// That the message is done is in the store.
    pub(super) fn end_written(&mut self, offset: u64) {
        self.ended.remove(&offset);
    }

    /// Takes back that the message is done.
    pub(super) fn put_back(&mut self, offset: u64, aside: Aside, record: Arc<Record>) {
        self.ended.remove(&offset);
        self.by_offset.insert(offset, aside);
        self.bytes = self.bytes.saturating_add(aside.cost);
        // Its row may not have been written when it ended.
        self.moved.insert(offset, record);
    }

    /// Whether some are not in memory.
    pub(super) fn are_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// It is in memory, or need not be. False if it was before.
    pub(super) fn read(&mut self, offset: u64) -> bool {
        self.sought.remove(&offset);
        self.unread.remove(&offset)
    }

    /// It is let go of.
    pub(super) fn forget(&mut self, offset: u64) {
        if self.contains(offset) {
            self.unread.insert(offset);
        }
    }

    pub(super) fn take_dirty(&mut self) -> Vec<(u64, AsideChange)> {
        let moved = std::mem::take(&mut self.moved);
        self.writing.extend(moved.keys());
        let moved = moved.into_iter().map(|(offset, record)| (offset, AsideChange::Moved(record)));
        let kept = match self.ended.keys().nth(ENDED_ROWS_MAX).copied() {
            Some(first) => self.ended.split_off(&first),
            None => BTreeMap::new(),
        };
        let ended = std::mem::replace(&mut self.ended, kept).into_iter();
        moved.chain(ended.map(|(offset, ended)| (offset, AsideChange::Ended(ended)))).collect()
    }

    /// Messages that are done and whose rows are not cleared by what was taken last: the store is not to count their
    /// end yet.
    pub(super) fn left(&self) -> &BTreeMap<u64, Ended> {
        &self.ended
    }

    pub(super) fn restore_dirty(&mut self, changes: &[(u64, AsideChange)]) {
        for (offset, change) in changes {
            match change {
                AsideChange::Moved(record) if self.contains(*offset) => {
                    self.moved.insert(*offset, Arc::clone(record));
                }
                AsideChange::Moved(_) => {}
                AsideChange::Ended(_) if self.contains(*offset) => {}
                AsideChange::Ended(ended) => {
                    self.ended.entry(*offset).or_insert(*ended);
                }
            }
        }
        self.writing.clear();
    }

    /// What was taken last is in the store.
    pub(super) fn written(&mut self) {
        self.writing.clear();
    }

    /// Whether some are not in memory.
    pub(super) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    fn is_written(&self) -> bool {
        self.moved.is_empty() && self.writing.is_empty()
    }
}

impl QueueShard {
    /// Whether a message is done.
    pub(super) fn is_done(&self, offset: u64) -> bool {
        self.acks.is_done(offset) && !self.asides.contains(offset)
    }

    /// Messages that were moved aside and are not done, in order.
    pub fn asides(&self) -> impl Iterator<Item = u64> {
        self.asides.by_offset.keys().copied()
    }

    /// Which of the offsets from `from` to `to` (exclusive) have payloads in chunks that a cut of the log must leave.
    pub(crate) fn aside_blobs(&self, from: u64, to: u64) -> impl Iterator<Item = u64> {
        let range = self.asides.by_offset.range(from..to.max(from));
        range.filter(|(_, aside)| aside.blob).map(|(offset, _)| *offset)
    }

    /// Looks how far the floor lags behind; `stored` is the size of the log from the floor on. Beyond the bounds, and
    /// if at least half of what is in between is done, the older half of it is moved aside.
    pub fn check_lag(&mut self, stored: u64) {
        let undone = self.in_log().saturating_sub(self.asides.len() as u64);
        let done = self.next.saturating_sub(self.floor()).saturating_sub(undone);
        let held = stored.saturating_sub(self.bytes().saturating_sub(self.asides.bytes));
        self.asides.goal = 0;
        if done == 0 || (done <= self.lag.offsets && held <= self.lag.bytes) {
            return;
        }
        let Some(last) = self.acks.last() else { return };
        let span = last.saturating_sub(self.floor());
        if span <= done.saturating_mul(2) {
            self.asides.goal = self.floor() + span.div_ceil(2);
        }
    }

    /// Where the owner should read messages that are to be moved aside.
    #[must_use]
    pub fn wants_stragglers(&self) -> Option<u64> {
        let is_due = self.floor() < self.asides.goal && self.asides.len() < ASIDE_MAX;
        (is_due && self.asides.is_written()).then(|| self.floor())
    }

    /// Moves messages aside that were read from the floor on; payloads in chunks need not be with them.
    pub fn move_aside(&mut self, records: Vec<(u64, Record)>) {
        let mut bytes = 0;
        for (offset, record) in records {
            let full = self.asides.moved.len() >= ROUND_ROWS_MAX
                || bytes >= ROUND_BYTES_MAX
                || self.asides.len() >= ASIDE_MAX;
            if offset >= self.asides.goal || full {
                break;
            }
            if !self.acks.set(offset, self.next) {
                continue;
            }
            bytes += record.encoded_len() as u64;
            let aside = Aside {
                cost: record.cost(),
                blob: record.blob_len.is_some(),
                published_at: record.message.published_at,
                expires_at: record.message.expires_at,
            };
            self.asides.bytes = self.asides.bytes.saturating_add(aside.cost);
            self.asides.by_offset.insert(offset, aside);
            self.asides.moved.insert(offset, Arc::new(record));
            self.attempts.entry(offset).or_default().aside = Some(aside);
            self.touch_attempts(offset);
            if offset >= self.read_next {
                self.asides.unread.insert(offset);
            }
            self.metrics.moved_aside.inc();
        }
        self.counters.floor = self.acks.floor();
        if self.ready.is_empty() {
            self.read_next = self.read_next.max(self.counters.floor);
        }
    }

    /// Ends messages aside that have expired and that nobody else comes across: those that are not in memory.
    pub fn sweep_asides(&mut self, wall: Timestamp) {
        let max_age = self.max_age;
        let is_expired = |offset: &&u64| {
            let Some(aside) = self.asides.by_offset.get(offset) else { return false };
            let by_age = max_age.map(|age| aside.published_at.saturating_add(age));
            [aside.expires_at, by_age].into_iter().flatten().any(|at| at <= wall)
        };
        let expired: Vec<u64> = self.asides.unread.iter().filter(is_expired).copied().collect();
        if self.has_dead_letters {
            self.asides.sought.extend(expired);
        } else {
            for offset in expired {
                self.finish(offset, 0, End::Expired);
            }
        }
    }

    /// Where the owner should read rows of messages aside, if consumers could take some or some have expired.
    #[must_use]
    pub fn wants_asides(&self) -> Option<u64> {
        if !self.asides.is_written() || self.dying.is_full() {
            return None;
        }
        let wanted = (!self.is_idle() || self.keeps_front())
            && self.again.is_empty()
            // What waits for its key or its backoff is bounded, whichever way it came here.
            && !self.keys.is_full()
            && !self.is_retry_bound();
        let next = if wanted { self.asides.unread.first() } else { self.asides.sought.first() };
        next.copied()
    }

    /// Rows read from offset `from` on, up to `end` (exclusive). Offsets of messages whose row should have been there.
    pub fn asides_loaded(
        &mut self,
        from: u64,
        end: u64,
        records: Vec<(u64, Arc<Record>)>,
        now: Instant,
        wall: Timestamp,
    ) -> Vec<u64> {
        let mut seen = BTreeSet::new();
        for (offset, record) in records {
            seen.insert(offset);
            let is_expired = self.expiry(&record).is_some_and(|at| at <= wall);
            let is_wanted = !self.is_idle() || self.keeps_front() || is_expired;
            if !is_wanted || !self.asides.read(offset) {
                continue;
            }
            if is_expired {
                self.give_up(offset, &record, DeadReason::Expired);
            } else if !self.resume_delay(offset, &record, now, wall) {
                self.again.insert(offset, (record, None));
            }
        }
        let unread = self.asides.unread.range(from..end.max(from));
        let missing: Vec<u64> = unread.filter(|offset| !seen.contains(offset)).copied().collect();
        for offset in &missing {
            self.asides.read(*offset);
        }
        missing
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
    use crate::queue::{Settings, StoredQueue};

    const LOG: LogId = LogId { vs: VirtualShard(0), object: 1, shard: 0, class: 0 };
    /// Messages of which every third is not done: more than may be moved.
    const MESSAGES: u64 = ASIDE_MAX as u64 * 3 + 3000;

    /// Moves what is to be moved, as the owner does.
    fn move_all(shard: &mut QueueShard, record: &Record) {
        shard.check_lag(0);
        while let Some(from) = shard.wants_stragglers() {
            shard.move_aside((from..from + 5000).map(|offset| (offset, record.clone())).collect());
            let dirty = shard.take_dirty();
            assert!(dirty.asides.len() <= ROUND_ROWS_MAX);
            assert_eq!(shard.wants_stragglers(), None, "not before these are in the store");
            shard.written();
            shard.check_lag(0);
        }
    }

    #[test]
    fn no_more_are_moved_than_there_may_be() {
        let settings = Settings { lag: Lag { offsets: 10, bytes: u64::MAX }, ..Settings::default() };
        let stored = StoredQueue::default();
        let mut shard = QueueShard::restore(LOG, stored, settings, Seed::fixed(1), Metrics::default());
        let record = Arc::new(Record {
            message: full_message(),
            key: RecordKey::None,
            blob_len: None,
            span: tracing::Span::none(),
        });
        shard.appended(0, (0..MESSAGES).map(|_| Arc::clone(&record)));
        for offset in (0..MESSAGES).filter(|offset| offset % 3 != 0) {
            assert!(shard.finish(offset, record.cost(), End::Acknowledged));
        }
        move_all(&mut shard, &record);
        assert_eq!((shard.asides().count(), shard.floor()), (ASIDE_MAX, ASIDE_MAX as u64 * 3));
        // With room for one, one more is moved.
        assert!(shard.finish(0, 0, End::Acknowledged));
        move_all(&mut shard, &record);
        assert_eq!((shard.asides().count(), shard.floor()), (ASIDE_MAX, (ASIDE_MAX as u64 + 1) * 3));
        assert_eq!(shard.depth(), MESSAGES.div_ceil(3) - 1);
    }
}
