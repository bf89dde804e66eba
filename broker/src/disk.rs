//! What the embedded engine does with its disk, for `/metrics`. Knows no engine but by its counters.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use weir_storage::StoreStats;

/// Adds what `stats` count to `registry`, read when it is asked for. An engine without a disk has none.
pub(crate) fn register(registry: &mut Registry, stats: Option<Arc<StoreStats>>) {
    if let Some(stats) = stats {
        registry.register_collector(Box::new(Disk(stats)));
    }
}

#[derive(Debug)]
struct Disk(Arc<StoreStats>);

impl Collector for Disk {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self(stats) = self;
        let free = stats.disk_free_bytes.load(Ordering::Relaxed);
        let gauge = ConstGauge::new(i64::try_from(free).unwrap_or(i64::MAX));
        let help = "Free space on the disk of the store at the last commit";
        let metric =
            encoder.encode_descriptor("store_disk_free", help, Some(&Unit::Bytes), gauge.metric_type())?;
        gauge.encode(metric)?;
        let mut counter = |name: &str, help: &str, value: &AtomicU64| {
            let counter = ConstCounter::new(value.load(Ordering::Relaxed));
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)
        };
        counter("store_refused_full", "Transactions refused because the disk is full", &stats.refused_full)?;
        counter("store_batches", "Groups of transactions that shared one fdatasync", &stats.batches)?;
        counter("store_sync_microseconds", "Time spent in writing and syncing batches", &stats.sync_micros)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_of_the_store_is_told() {
        let (mut registry, stats) = (Registry::default(), Arc::new(StoreStats::default()));
        stats.disk_free_bytes.store(5_000, Ordering::Relaxed);
        stats.refused_full.store(7, Ordering::Relaxed);
        register(&mut registry, Some(stats));
        register(&mut registry, None);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in ["store_disk_free_bytes 5000", "store_refused_full_total 7", "store_batches_total 0"] {
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
    }
}
