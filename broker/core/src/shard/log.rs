//! One log in its owner's memory.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::watch;
use weir_env::clock::{Instant, Timestamp};

use super::{Extent, PendingAppend};
use crate::catalog::Object;
use crate::keyspace::LogId;
use crate::keyspace::log_state::LogState;
use crate::queue::QueueShard;

/// A log, its committed state, and what waits to be appended.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) id: LogId,
    pub(crate) object: Arc<Object>,
    /// As committed.
    pub(crate) state: LogState,
    pub(crate) extent: watch::Sender<Extent>,
    pub(crate) queue: Option<QueueShard>,
    pub(crate) pending: VecDeque<PendingAppend>,
    /// A read for the queue is under way.
    pub(crate) refilling: bool,
    /// Where retention will cut with the next batch.
    pub(crate) trim: Option<Trim>,
    /// Retention is being worked out.
    pub(crate) trimming: bool,
    /// When retention is looked at next.
    pub(crate) maintain_at: Instant,
}

/// A cut of a log by retention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trim {
    /// New first offset.
    pub(crate) start: u64,
    /// Segments below this base are removed.
    pub(crate) base: u64,
    /// Time of the segment at `base`.
    pub(crate) first_ts: Timestamp,
    /// Bytes of the log before `base`.
    pub(crate) bytes_trimmed: u64,
}

impl Log {
    pub(crate) fn publish_extent(&self) {
        self.extent.send_if_modified(|extent| {
            let now = Extent { start: self.state.start, next: self.state.next };
            std::mem::replace(extent, now) != now
        });
    }

    /// Whether a batch would have something of this log in it.
    pub(crate) fn has_work(&self) -> bool {
        !self.pending.is_empty() || self.trim.is_some() || self.has_dirty_queue()
    }

    pub(crate) fn has_dirty_queue(&self) -> bool {
        self.queue.as_ref().is_some_and(QueueShard::is_dirty)
    }
}
