//! One log in its owner's memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use weir_env::clock::{Instant, Timestamp};

use super::delays::Delays;
use super::horizon::Horizon;
use super::positions::PendingPositions;
use super::repeats::Repeats;
use super::retention::Rule;
use super::rows::Rows;
use super::stats::StreamStats;
use super::trims::TrimReply;
use super::upkeep::{MAINTAIN_INTERVAL, MAINTAIN_INTERVAL_MAX};
use super::{Extent, PendingAppend};
use crate::catalog::Object;
use crate::keyspace::LogId;
use crate::keyspace::log_state::LogState;
use crate::keyspace::time_index::IndexEntry;
use crate::metrics::StreamGauges;
use crate::queue::{Consumer, Handout, Held, QueueShard};
use crate::stream::{Tail, Tails};

/// A log, its committed state, and what waits to be appended.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) id: LogId,
    /// Which of the logs of this id that the owner has had in memory this is.
    pub(super) load: u64,
    pub(crate) object: Arc<Object>,
    /// As committed.
    pub(crate) state: LogState,
    pub(crate) extent: watch::Sender<Extent>,
    /// The newest records of a stream, for its readers.
    pub(crate) tail: Arc<Tail>,
    pub(crate) queue: Option<QueueShard>,
    /// Of a compacted stream, which has rows and no segments.
    pub(crate) rows: Option<Rows>,
    /// What people see of a stream.
    pub(crate) stats: Option<StreamStats>,
    /// Who waits for the log to begin at some offset.
    pub(super) trims: Vec<(u64, TrimReply)>,
    pub(crate) pending: VecDeque<PendingAppend>,
    /// Positions of consumer groups that wait to be written; of use in streams only.
    pub(super) positions: VecDeque<PendingPositions>,
    /// Publishes of the shard that may be repeated; of use in class 0 only.
    pub(crate) repeats: Repeats,
    /// Messages of the shard that wait for their time; of use in class 0 only.
    pub(crate) delays: Delays,
    /// A read for the queue is under way.
    pub(crate) refilling: bool,
    /// The last one failed.
    pub(crate) refill_failed: bool,
    /// Messages to be moved aside, or rows of such, are being read.
    pub(crate) reading_asides: bool,
    /// Messages are being read to look whether they have expired.
    pub(crate) sweeping: bool,
    /// Where retention will cut with the next batch.
    pub(crate) trim: Option<Trim>,
    /// Retention is being worked out.
    pub(crate) trimming: bool,
    /// When retention is to be looked at, if there is a reason to.
    pub(crate) maintain_at: Option<Instant>,
    /// The time index has nothing before this place, as far as is known.
    pub(crate) first: IndexPlace,
    /// Batches with records since retention was looked at.
    pub(crate) uncut: usize,
    /// The oldest segments of a stream, once they are known.
    pub(super) horizon: Option<Horizon>,
    /// What retention removes is cleared with the next records.
    pub(super) clears_next: bool,
    /// Segments appended while they are read.
    pub(super) appended: Vec<IndexEntry>,
    /// In which of the owner's lists it is.
    pub(super) listed: Listed,
}

/// Membership in the lists of [`super::logs::Logs`], so that a log is in each at most once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Listed {
    pub(super) writable: bool,
    pub(super) dirty: bool,
    pub(super) touched: bool,
    pub(super) timer: Option<Instant>,
}

/// What outlives the loss of a shard: which of its logs were in use, and by whom.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) object: Arc<Object>,
    pub(crate) id: LogId,
    pub(crate) extent: watch::Sender<Extent>,
    pub(crate) tail: Arc<Tail>,
    /// Each with what it holds: the next owner leaves it that.
    pub(crate) consumers: Vec<(Consumer, Vec<Held>)>,
    /// Messages that they have acknowledged since; [`ACKNOWLEDGED_MAX`] at most, what is beyond is delivered again.
    pub(crate) acknowledged: Vec<Handout>,
}

impl Kept {
    /// Of a log that nobody reads.
    pub(super) fn new(object: Arc<Object>, id: LogId, tails: &Arc<Tails>) -> Self {
        let (extent, tail) = (watch::Sender::new(Extent::default()), Tail::new(tails));
        Self { object, id, extent, tail, consumers: Vec::new(), acknowledged: Vec::new() }
    }

    /// A consumer has said what becomes of a message: it does not hold it any more.
    pub(super) fn settled(&mut self, handout: &Handout) {
        let is_it = |held: &Held| (held.class, held.offset) == (handout.log.class, handout.offset);
        let of_its = self.consumers.iter_mut().filter(|(consumer, _)| consumer.id == handout.consumer);
        of_its.for_each(|(_, held)| held.retain(|held| !is_it(held)));
    }
}

/// Batches after which retention is looked at at once: a store may remove segment by segment what is cut, and all who
/// commit wait for that.
const UNCUT_MAX: usize = 256;
/// Longest time that what retention has removed from a stream stays in the store.
const CLEAR_INTERVAL_MAX: Duration = Duration::from_secs(60);
/// Acknowledgements kept for a log until it is taken over again.
pub(super) const ACKNOWLEDGED_MAX: usize = 65_536;

/// A cut of a log by retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trim {
    /// New first offset.
    pub(crate) start: u64,
    /// The first segment there is.
    pub(crate) from: IndexPlace,
    /// Segments below this base are removed.
    pub(crate) base: u64,
    /// Time of the segment at `base`.
    pub(crate) first_ts: Timestamp,
    /// Bytes of the log before `base`.
    pub(crate) bytes_trimmed: u64,
    /// More may be cut than was looked at.
    pub(crate) is_partial: bool,
}

/// Where a segment stands in the time index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct IndexPlace {
    /// Time of its first record.
    pub(crate) first_ts: Timestamp,
    /// Offset of its first record.
    pub(crate) base: u64,
}

impl IndexPlace {
    pub(crate) fn of(entry: &IndexEntry) -> Self {
        Self { first_ts: entry.first_ts, base: entry.base }
    }
}

/// A log as read once: what is under way for it means nothing to the one that is read after it was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loaded {
    pub(super) id: LogId,
    load: u64,
}

impl Log {
    /// What names it and no later log of its id.
    pub(super) fn loaded(&self) -> Loaded {
        Loaded { id: self.id, load: self.load }
    }

    pub(crate) fn publish_extent(&self) {
        self.extent.send_if_modified(|extent| {
            let now = Extent { start: self.state.start, next: self.state.next };
            std::mem::replace(extent, now) != now
        });
    }

    /// Messages that are kept of a stream.
    pub(super) fn messages(&self) -> u64 {
        match &self.rows {
            Some(_) => self.state.rows(),
            None => self.state.next.saturating_sub(self.state.start),
        }
    }

    /// When the first message that is kept of a stream came, about, if there is one and that is known.
    pub(super) fn oldest(&self) -> Option<Timestamp> {
        if self.messages() == 0 {
            return None;
        }
        match &self.rows {
            Some(rows) => rows.oldest(),
            None => self.horizon.as_ref()?.time_of(self.state.start),
        }
    }

    /// Tells people what it holds.
    pub(super) fn observe(&mut self, now: Instant) {
        let gauges =
            StreamGauges { messages: self.messages(), bytes: self.state.bytes(), oldest: self.oldest() };
        if let Some(stats) = &mut self.stats {
            stats.observe(gauges, self.state.next, now);
        }
    }

    /// Whether appends or a cut wait for a batch.
    pub(crate) fn has_writes(&self) -> bool {
        !self.pending.is_empty()
            || !self.positions.is_empty()
            || self.trim.is_some()
            || self.repeats.has_writes()
            || self.delays.has_writes()
            || self.rows.as_ref().is_some_and(Rows::is_due)
    }

    /// The cut that is to be made; none that is above a queue's floor, which is lower again once a batch failed.
    pub(crate) fn take_trim(&mut self) -> Option<Trim> {
        let floor = self.queue.as_ref().map_or(u64::MAX, QueueShard::floor);
        self.trim.take().filter(|trim| trim.base <= floor)
    }

    /// Appends that wait for a read of the oldest messages, which failed. Empty unless the queue drops those.
    pub(crate) fn take_unread(&mut self) -> VecDeque<PendingAppend> {
        if !self.queue.as_ref().is_some_and(|queue| queue.limits().drops_oldest) {
            return VecDeque::new();
        }
        let (kept, unread) = std::mem::take(&mut self.pending).into_iter().partition(|p| p.moved.is_some());
        self.pending = kept;
        unread
    }

    pub(crate) fn has_dirty_queue(&self) -> bool {
        self.queue.as_ref().is_some_and(QueueShard::is_dirty)
    }

    /// A batch that changed it is stored: retention is to be looked at in a moment, at once after many of them.
    pub(crate) fn batch_stored(&mut self, has_records: bool, trim: Option<&Trim>, now: Instant) {
        if let Some(trim) = trim {
            self.first = IndexPlace { first_ts: trim.first_ts, base: trim.base };
        }
        self.uncut += usize::from(has_records);
        let is_due = trim.is_some_and(|trim| trim.is_partial) || self.uncut >= UNCUT_MAX;
        if self.queue.is_some() || self.rows.is_some() {
            self.maintain_by(if is_due { now } else { now + MAINTAIN_INTERVAL });
        }
    }

    /// A batch added `segments` to a stream and cut it as retention asked for. What is not worth a cut yet is looked at
    /// later.
    pub(super) fn segments_stored(&mut self, segments: &[IndexEntry], retained: Option<&Trim>, now: Instant) {
        if let Some(trim) = retained.filter(|trim| trim.base > self.first.base) {
            self.first = IndexPlace { first_ts: trim.first_ts, base: trim.base };
        }
        self.clears_next &= segments.is_empty();
        if self.trimming {
            self.appended.extend(segments);
        }
        if let Some(horizon) = &mut self.horizon {
            horizon.append(segments);
            horizon.clear(self.first.base);
            self.first = horizon.first().unwrap_or(self.first);
        }
        self.maintain_by(match &self.horizon {
            None => now + MAINTAIN_INTERVAL,
            // At once: the start stops at the last segment that is known.
            Some(horizon) if horizon.is_short() => now,
            Some(_) => now + self.clear_interval(),
        });
    }

    /// How long what retention has removed from a stream may stay in the store.
    fn clear_interval(&self) -> Duration {
        let age = Duration::from_millis(self.object.definition.retention.max_age_ms);
        let wait = if age.is_zero() { CLEAR_INTERVAL_MAX } else { age / 16 };
        wait.clamp(MAINTAIN_INTERVAL, CLEAR_INTERVAL_MAX)
    }

    /// Cuts a stream as retention asks for now, with its next records if it `flows` and else by itself, and looks again
    /// when age reaches the next segment.
    pub(super) fn retain(&mut self, now: Instant, wall: Timestamp, flows: bool) {
        let Some(horizon) = &self.horizon else { return };
        let rule = Rule::of_stream(&self.object.definition, self.id.shard, wall);
        let place = horizon.place(&[], &self.state, &rule);
        let next = rule.keep_since.and_then(|since| horizon.ages_next(since));
        let trim = place.and_then(|place| horizon.trim(&[], &place, &self.state));
        self.clears_next = trim.is_some() && flows;
        if self.clears_next {
            self.maintain_by(now + self.clear_interval());
        } else {
            self.trim = self.trim.or(trim);
        }
        if let Some(first) = next {
            let age = Duration::from_millis(self.object.definition.retention.max_age_ms);
            let wait = first.saturating_add(age).saturating_since(wall);
            self.maintain_by(now + wait.clamp(self.clear_interval(), MAINTAIN_INTERVAL_MAX));
        }
    }

    /// The oldest segments of a stream as read; others were appended since.
    pub(super) fn restore_horizon(&mut self, mut horizon: Horizon) {
        let appended = std::mem::take(&mut self.appended);
        horizon.append_after(&appended);
        horizon.clear(self.first.base);
        self.first = horizon.first().unwrap_or(self.first);
        self.horizon = Some(horizon);
    }

    /// Retention is to be looked at by `at`.
    pub(crate) fn maintain_by(&mut self, at: Instant) {
        self.maintain_at = Some(self.maintain_at.map_or(at, |due| due.min(at)));
    }

    /// When something is to be done although nobody asks.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        let queue = self.queue.as_ref().and_then(QueueShard::poll_timeout);
        let maintain = self.maintain_at.filter(|_| !self.trimming);
        [queue, maintain, self.repeats.poll_timeout(), self.delays.poll_timeout()].into_iter().flatten().min()
    }
}
