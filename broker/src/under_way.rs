//! How many bytes of publishes are becoming durable, over all clients.
//!
//! Each virtual shard, the inboxes and the retained store bound what waits for them; this bounds their sum, and the
//! answers that wait to be written. Whoever reads a client asks first, and leaves the client's next packets where
//! they are while there is too much. Nobody waits in here: a publish that has begun goes on. So the bound is exceeded
//! by what each worker thread has read at that moment, at most a packet and a read buffer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::gauge::Gauge;

/// Bytes a publish takes beside its message.
const ENTRY_BYTES: u64 = 512;

/// Counts the publishes under way.
#[derive(Debug)]
pub(crate) struct UnderWay {
    bytes: Arc<AtomicU64>,
    bytes_max: u64,
    gauge: Gauge,
}

/// One publish; it counts until this is dropped.
#[derive(Debug)]
pub(crate) struct UnderWayGuard {
    bytes: Arc<AtomicU64>,
    own: u64,
    gauge: Gauge,
}

impl UnderWay {
    pub(crate) fn new(bytes_max: u64, gauge: Gauge) -> Self {
        Self { bytes: Arc::default(), bytes_max, gauge }
    }

    /// Counts a publish of `size` bytes.
    pub(crate) fn enter(&self, size: usize) -> UnderWayGuard {
        let own = u64::try_from(size).unwrap_or(u64::MAX / 2).saturating_add(ENTRY_BYTES);
        self.bytes.fetch_add(own, Ordering::Relaxed);
        self.gauge.inc_by(i64::try_from(own).unwrap_or(0));
        UnderWayGuard { bytes: Arc::clone(&self.bytes), own, gauge: self.gauge.clone() }
    }

    /// Whether no more should begin.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) >= self.bytes_max
    }
}

impl Drop for UnderWayGuard {
    fn drop(&mut self) {
        self.bytes.fetch_sub(self.own, Ordering::Relaxed);
        self.gauge.dec_by(i64::try_from(self.own).unwrap_or(0));
    }
}
