//! What each stream keeps and does, by its name.
//!
//! Names are bounded (`names`): the first [`STREAMS_NAMED_MAX`] streams in use have series of their own. Owners of shards
//! and readers write here what has changed since they wrote last; nobody reads it to decide anything.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use weir_env::clock::Timestamp;

use super::names::Names;
use crate::keyspace::LogId;

/// Streams with series of their own.
pub const STREAMS_NAMED_MAX: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamLabel {
    stream: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    stream: Arc<str>,
    event: &'static str,
}

/// What happens to messages of a stream: a bounded label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Published,
    Read,
    Removed,
}

impl Event {
    const ALL: [Self; 3] = [Self::Published, Self::Read, Self::Removed];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Read => "read",
            Self::Removed => "removed",
        }
    }
}

/// What a shard of a stream keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamGauges {
    /// Messages.
    pub messages: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the oldest came, if there is one and that is known.
    pub oldest: Option<Timestamp>,
}

/// Series by stream. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct StreamMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    messages: Family<StreamLabel, Gauge>,
    bytes: Family<StreamLabel, Gauge>,
    readers: Family<StreamLabel, Gauge>,
    oldest: Family<StreamLabel, Gauge>,
    events: Family<EventLabels, Counter>,
    names: Names<StreamSeries>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            messages: Family::default(),
            bytes: Family::default(),
            readers: Family::default(),
            oldest: Family::default(),
            events: Family::default(),
            names: Names::new(STREAMS_NAMED_MAX),
        }
    }
}

/// The series of one label.
#[derive(Debug)]
pub(crate) struct StreamSeries {
    metrics: StreamMetrics,
    label: Arc<str>,
    read: Counter,
    readers: Gauge,
    /// When the oldest message of each shard came.
    oldest: Mutex<BTreeMap<LogId, u64>>,
}

/// What one shard of a stream adds to the series of its stream. Takes it back when it is dropped.
#[derive(Debug)]
pub(crate) struct StreamShare {
    series: Arc<StreamSeries>,
    log: LogId,
    gauges: StreamGauges,
    /// Messages ever published and removed, as of the last call; none before the first, which tells what had happened
    /// before.
    events: Option<(u64, u64)>,
}

impl StreamMetrics {
    /// Makes the series part of `registry`.
    pub(super) fn register(&self, registry: &mut Registry) {
        let mut gauge = |name: &str, help: &str, family: &Family<StreamLabel, Gauge>| {
            registry.register(name, help, family.clone());
        };
        gauge("stream_kept", "Messages that a stream keeps", &self.0.messages);
        gauge("stream_readers", "Readers of a stream", &self.0.readers);
        let bytes = self.0.bytes.clone();
        registry.register_with_unit("stream_kept", "Bytes that a stream keeps", Unit::Bytes, bytes);
        registry.register_with_unit(
            "stream_oldest_timestamp",
            "When the oldest message of a stream came, since 1970; 0: there is none",
            Unit::Seconds,
            self.0.oldest.clone(),
        );
        registry.register("stream_messages", "What happens to messages of a stream", self.0.events.clone());
    }

    /// The series that the stream called `name` counts into.
    pub(crate) fn series(&self, name: &str) -> Arc<StreamSeries> {
        self.0.names.get(name, |label| {
            let labels = StreamLabel { stream: Arc::clone(&label) };
            let event = EventLabels { stream: Arc::clone(&label), event: Event::Read.as_str() };
            StreamSeries {
                read: self.0.events.get_or_create(&event).clone(),
                readers: self.0.readers.get_or_create(&labels).clone(),
                metrics: self.clone(),
                label,
                oldest: Mutex::default(),
            }
        })
    }
}

impl StreamSeries {
    /// One reader more, or one less.
    pub(crate) fn count_readers(&self, change: i64) {
        self.readers.inc_by(change);
    }

    /// Messages were given to a reader.
    pub(crate) fn count_read(&self, count: u64) {
        self.read.inc_by(count);
    }

    fn label(&self) -> StreamLabel {
        StreamLabel { stream: Arc::clone(&self.label) }
    }

    fn count(&self, event: Event, count: u64) {
        let labels = EventLabels { stream: Arc::clone(&self.label), event: event.as_str() };
        self.metrics.0.events.get_or_create(&labels).inc_by(count);
    }

    fn set_oldest(&self, log: LogId, at: Option<Timestamp>) {
        let mut oldest = self.oldest.lock();
        match at {
            Some(at) => _ = oldest.insert(log, at.as_micros()),
            None => _ = oldest.remove(&log),
        }
        let first = oldest.values().min().copied().unwrap_or(0);
        let seconds = i64::try_from(first / 1_000_000).unwrap_or(i64::MAX);
        self.metrics.0.oldest.get_or_create(&self.label()).set(seconds);
    }
}

impl Drop for StreamSeries {
    fn drop(&mut self) {
        let metrics = &*self.metrics.0;
        metrics.names.release(&self.label, || {
            for family in [&metrics.messages, &metrics.bytes, &metrics.readers, &metrics.oldest] {
                family.remove(&self.label());
            }
            for event in Event::ALL {
                let labels = EventLabels { stream: Arc::clone(&self.label), event: event.as_str() };
                metrics.events.remove(&labels);
            }
        });
    }
}

impl StreamShare {
    /// The share of shard `log` of the stream that `series` are of.
    pub(crate) fn new(series: Arc<StreamSeries>, log: LogId) -> Self {
        Self { series, log, gauges: StreamGauges::default(), events: None }
    }

    /// Tells what the shard keeps now, and how many messages were ever published to it and removed from it.
    pub(crate) fn set(&mut self, gauges: StreamGauges, published: u64, removed: u64) {
        let (series, before) = (&self.series, self.gauges);
        if gauges != before || self.events.is_none() {
            let (metrics, label) = (&*series.metrics.0, series.label());
            for (family, now, before) in [
                (&metrics.messages, gauges.messages, before.messages),
                (&metrics.bytes, gauges.bytes, before.bytes),
            ] {
                let delta = now.cast_signed().wrapping_sub(before.cast_signed());
                family.get_or_create(&label).inc_by(delta);
            }
            if gauges.oldest != before.oldest || self.events.is_none() {
                series.set_oldest(self.log, gauges.oldest);
            }
            self.gauges = gauges;
        }
        let is_first = self.events.is_none();
        let known = self.events.replace((published, removed)).unwrap_or((published, removed));
        for (event, now, before) in
            [(Event::Published, published, known.0), (Event::Removed, removed, known.1)]
        {
            if is_first || now > before {
                series.count(event, now.saturating_sub(before));
            }
        }
    }
}

impl Drop for StreamShare {
    fn drop(&mut self) {
        let (published, removed) = self.events.unwrap_or_default();
        self.set(StreamGauges::default(), published, removed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::VirtualShard;

    fn text(metrics: &StreamMetrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    fn share(metrics: &StreamMetrics, name: &str, shard: u8) -> StreamShare {
        let log = LogId { vs: VirtualShard(0), object: 1, shard, class: 0 };
        StreamShare::new(metrics.series(name), log)
    }

    fn gauges(messages: u64, oldest: u64) -> StreamGauges {
        let oldest = Some(Timestamp::from_micros(oldest * 1_000_000));
        StreamGauges { messages, bytes: messages * 10, oldest }
    }

    #[track_caller]
    fn shows(metrics: &StreamMetrics, lines: &[&str]) {
        let shown = text(metrics);
        for line in lines {
            assert!(shown.contains(&format!("{line}\n")), "{line} is not in {shown}");
        }
    }

    #[test]
    fn shards_and_readers_of_a_stream_add_up() {
        let metrics = StreamMetrics::default();
        let (mut one, mut two) = (share(&metrics, "s", 0), share(&metrics, "s", 1));
        one.set(gauges(5, 30), 100, 95);
        two.set(gauges(7, 20), 7, 0);
        one.set(gauges(4, 31), 102, 98);
        let series = metrics.series("s");
        series.count_readers(2);
        series.count_readers(-1);
        series.count_read(8);
        shows(
            &metrics,
            &[
                "stream_kept{stream=\"s\"} 11",
                "stream_kept_bytes{stream=\"s\"} 110",
                "stream_readers{stream=\"s\"} 1",
                "stream_oldest_timestamp_seconds{stream=\"s\"} 20",
                "stream_messages_total{stream=\"s\",event=\"published\"} 2",
                "stream_messages_total{stream=\"s\",event=\"removed\"} 3",
                "stream_messages_total{stream=\"s\",event=\"read\"} 8",
            ],
        );
        drop(two);
        shows(&metrics, &["stream_kept{stream=\"s\"} 4", "stream_oldest_timestamp_seconds{stream=\"s\"} 31"]);
        drop((one, series));
        assert!(!text(&metrics).contains("stream=\"s\""), "{}", text(&metrics));
    }

    #[test]
    fn names_are_bounded_and_free_again() {
        let metrics = StreamMetrics::default();
        metrics.0.names.set_max(2);
        let mut shares: Vec<StreamShare> = (0..5)
            .map(|n| {
                let mut share = share(&metrics, &format!("s{n}"), n);
                share.set(gauges(1, 1), 1, 0);
                share
            })
            .collect();
        shows(&metrics, &["stream_kept{stream=\"_other\"} 3", "stream_kept{stream=\"s1\"} 1"]);
        assert!(!text(&metrics).contains("s2"), "{}", text(&metrics));
        shares.clear();
        share(&metrics, "s7", 0).set(gauges(1, 1), 1, 0);
        let mut again = share(&metrics, "s7", 0);
        again.set(gauges(2, 1), 1, 0);
        shows(&metrics, &["stream_kept{stream=\"s7\"} 2"]);
    }
}
