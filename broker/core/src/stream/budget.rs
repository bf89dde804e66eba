//! The memory of pages that were read and that nobody has taken yet, over all readers of a process.
//!
//! Nobody waits here: a reader takes what is left for its next page, and when nothing is, it waits for its own client
//! to take what it holds. One that holds nothing has its page in any case, so that slow clients never starve others. What
//! is read ahead, beyond that page, never takes more than half, and those whose clients do not take give it back while
//! others go without: so one that begins later has whole pages too.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

use crate::metrics::ReadMetrics;

/// The budget.
#[derive(Debug)]
pub(crate) struct ReadBudget {
    limit: u64,
    taken: AtomicU64,
    pub(super) metrics: ReadMetrics,
}

impl ReadBudget {
    pub(crate) fn new(limit: u64, metrics: ReadMetrics) -> Self {
        Self { limit, taken: AtomicU64::new(0), metrics }
    }

    /// Room for `bytes`, if there is that much left; half as much for a page ahead.
    pub(super) fn try_take(self: &Arc<Self>, bytes: u64, holder: &Arc<Holder>) -> Option<ReadPermit> {
        let limit = if holder.is_empty() { self.limit } else { self.ahead_max() };
        let add = |taken: u64| taken.checked_add(bytes).filter(|taken| *taken <= limit);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).ok()?;
        Some(self.permit(bytes, holder))
    }

    /// Room for `bytes`, whatever is left.
    pub(super) fn take(self: &Arc<Self>, bytes: u64, holder: &Arc<Holder>) -> ReadPermit {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
        self.permit(bytes, holder)
    }

    /// Whether there is no room to read `bytes` ahead.
    pub(super) fn is_short_of(&self, bytes: u64) -> bool {
        self.taken.load(Ordering::Relaxed).saturating_add(bytes) > self.ahead_max()
    }

    fn ahead_max(&self) -> u64 {
        self.limit / 2
    }

    fn permit(self: &Arc<Self>, bytes: u64, holder: &Arc<Holder>) -> ReadPermit {
        self.metrics.bytes.inc_by(signed(bytes));
        holder.pages.fetch_add(1, Ordering::Relaxed);
        ReadPermit { budget: Arc::clone(self), holder: Arc::clone(holder), bytes }
    }
}

/// How many pages a reader holds, or those who have its batches.
#[derive(Debug, Default)]
pub(super) struct Holder {
    pages: AtomicUsize,
    freed: Notify,
}

impl Holder {
    pub(super) fn is_empty(&self) -> bool {
        self.pages.load(Ordering::Acquire) == 0
    }

    /// Waits until a page was let go since this was last waited for. Cancel-safe.
    pub(super) async fn freed(&self) {
        self.freed.notified().await;
    }
}

/// Room for a page, given back when it is dropped.
#[derive(Debug)]
pub struct ReadPermit {
    budget: Arc<ReadBudget>,
    holder: Arc<Holder>,
    bytes: u64,
}

impl ReadPermit {
    /// The page turned out to have `bytes`.
    pub(super) fn resize(&mut self, bytes: u64) {
        let change = signed(bytes).saturating_sub(signed(self.bytes));
        if change < 0 {
            self.budget.taken.fetch_sub(change.unsigned_abs(), Ordering::Relaxed);
        } else {
            self.budget.taken.fetch_add(change.unsigned_abs(), Ordering::Relaxed);
        }
        self.budget.metrics.bytes.inc_by(change);
        self.bytes = bytes;
    }
}

impl Drop for ReadPermit {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.metrics.bytes.dec_by(signed(self.bytes));
        self.holder.pages.fetch_sub(1, Ordering::Release);
        self.holder.freed.notify_one();
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
