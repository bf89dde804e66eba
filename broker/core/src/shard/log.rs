//! One log in its owner's memory.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;
use weir_env::clock::{Instant, Timestamp};

use super::delays::Delays;
use super::repeats::Repeats;
use super::{Extent, PendingAppend};
use crate::catalog::Object;
use crate::keyspace::LogId;
use crate::keyspace::log_state::LogState;
use crate::queue::{Consumer, Handout, QueueShard};

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
    pub(crate) queue: Option<QueueShard>,
    pub(crate) pending: VecDeque<PendingAppend>,
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
    pub(crate) consumers: Vec<Consumer>,
    /// Messages that they have acknowledged since; [`ACKNOWLEDGED_MAX`] at most, what is beyond is delivered again.
    pub(crate) acknowledged: Vec<Handout>,
}

/// Acknowledgements kept for a log until it is taken over again.
pub(super) const ACKNOWLEDGED_MAX: usize = 65_536;

/// A cut of a log by retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trim {
    /// New first offset.
    pub(crate) start: u64,
    /// The first segment there is begins here.
    pub(crate) from: u64,
    /// Segments below this base are removed.
    pub(crate) base: u64,
    /// Time of the segment at `base`.
    pub(crate) first_ts: Timestamp,
    /// Bytes of the log before `base`.
    pub(crate) bytes_trimmed: u64,
    /// More may be cut than was looked at.
    pub(crate) is_partial: bool,
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

    /// Whether appends or a cut wait for a batch.
    pub(crate) fn has_writes(&self) -> bool {
        !self.pending.is_empty()
            || self.trim.is_some()
            || self.repeats.has_writes()
            || self.delays.has_writes()
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
