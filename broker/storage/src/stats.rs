//! Counters of an engine, for whoever exports metrics. Knows no metrics library.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What an engine has done since it was opened. Every field but [`StoreStats::disk_free_bytes`] only grows.
#[derive(Debug, Default)]
pub struct StoreStats {
    /// Transactions with writes that were committed.
    pub commits: AtomicU64,
    /// Transactions refused with [`Error::Conflict`](crate::Error::Conflict).
    pub conflicts: AtomicU64,
    /// Transactions refused at commit with [`Error::TooOld`](crate::Error::TooOld).
    pub too_old: AtomicU64,
    /// Atomic durable writes; `commits / batches` is what group commit saves.
    pub batches: AtomicU64,
    /// Bytes of keys and values in committed transactions.
    pub bytes: AtomicU64,
    /// Batches whose time to durability was measured; zero on an engine without a disk.
    pub sync_count: AtomicU64,
    /// Time spent making batches durable, in microseconds.
    pub sync_micros: AtomicU64,
    /// Transactions refused because the disk is full.
    pub refused_full: AtomicU64,
    /// Bytes that were free on the disk at the last batch; zero on an engine without a disk.
    pub disk_free_bytes: AtomicU64,
}

impl StoreStats {
    pub(crate) fn add(counter: &AtomicU64, n: usize) {
        counter.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn record_sync(&self, took: Duration) {
        self.sync_count.fetch_add(1, Ordering::Relaxed);
        self.sync_micros.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
