//! What each queue holds and does, by its name.
//!
//! Names are bounded (`names`): the first [`QUEUES_NAMED_MAX`] queues in use have series of their own. Owners of
//! shards write here what has changed since they wrote last; nobody reads it to decide anything.

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

/// Queues with series of their own, unless the configuration says otherwise.
pub const QUEUES_NAMED_MAX: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct QueueLabel {
    queue: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabels {
    queue: Arc<str>,
    event: &'static str,
}

/// What happens to messages of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QueueEvent {
    /// It came in.
    Published,
    /// It was given to a consumer.
    Delivered,
    /// It was given to a consumer again.
    Redelivered,
    /// A consumer has it.
    Acknowledged,
    /// A consumer refused it.
    Rejected,
    /// It was not acknowledged in time.
    TimedOut,
    /// It went to the dead letters.
    DeadLettered,
    /// It was dropped because it was too old.
    Expired,
    /// It was dropped after its last attempt.
    Exhausted,
    /// It made room for a newer one.
    Overflowed,
    /// A newer one of its key replaced it.
    Superseded,
    /// An administrator removed it.
    Purged,
    /// It was moved back to the queue it had left.
    Redriven,
}

impl QueueEvent {
    const ALL: [Self; 13] = [
        Self::Published,
        Self::Delivered,
        Self::Redelivered,
        Self::Acknowledged,
        Self::Rejected,
        Self::TimedOut,
        Self::DeadLettered,
        Self::Expired,
        Self::Exhausted,
        Self::Overflowed,
        Self::Superseded,
        Self::Purged,
        Self::Redriven,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Published => "published",
            Self::Delivered => "delivered",
            Self::Redelivered => "redelivered",
            Self::Acknowledged => "acknowledged",
            Self::Rejected => "rejected",
            Self::TimedOut => "timed_out",
            Self::DeadLettered => "dead_lettered",
            Self::Expired => "expired",
            Self::Exhausted => "exhausted",
            Self::Overflowed => "overflowed",
            Self::Superseded => "superseded",
            Self::Purged => "purged",
            Self::Redriven => "redriven",
        }
    }
}

/// What a shard of a queue holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Messages that are not done.
    pub depth: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Messages that consumers hold.
    pub inflight: u64,
    /// Messages that wait to be delivered again.
    pub waiting: u64,
    /// Subscriptions.
    pub consumers: u64,
    /// When the oldest came.
    pub oldest: Option<Timestamp>,
}

/// Series by queue. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct QueueMetrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    depth: Family<QueueLabel, Gauge>,
    bytes: Family<QueueLabel, Gauge>,
    inflight: Family<QueueLabel, Gauge>,
    waiting: Family<QueueLabel, Gauge>,
    consumers: Family<QueueLabel, Gauge>,
    oldest: Family<QueueLabel, Gauge>,
    events: Family<EventLabels, Counter>,
    names: Names<Series>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            depth: Family::default(),
            bytes: Family::default(),
            inflight: Family::default(),
            waiting: Family::default(),
            consumers: Family::default(),
            oldest: Family::default(),
            events: Family::default(),
            names: Names::new(QUEUES_NAMED_MAX),
        }
    }
}

/// The series of one label.
#[derive(Debug)]
struct Series {
    metrics: QueueMetrics,
    label: Arc<str>,
    /// When the oldest message of each shard came.
    oldest: Mutex<BTreeMap<LogId, u64>>,
}

/// What one shard of a queue adds to the series of its queue. Takes it back when it is dropped.
#[derive(Debug)]
pub struct SeriesShare {
    series: Arc<Series>,
    log: LogId,
    gauges: Gauges,
    /// As of the last call; none before the first, which tells what had happened before.
    events: Option<[u64; QueueEvent::ALL.len()]>,
}

impl QueueMetrics {
    /// Makes the series part of `registry`.
    pub(super) fn register(&self, registry: &mut Registry) {
        let mut gauge = |name: &str, help: &str, family: &Family<QueueLabel, Gauge>| {
            registry.register(name, help, family.clone());
        };
        gauge("queue_depth", "Messages of a queue that are not done", &self.0.depth);
        gauge("queue_in_flight", "Messages of a queue that consumers hold", &self.0.inflight);
        gauge("queue_waiting", "Messages of a queue that wait to be delivered again", &self.0.waiting);
        gauge("queue_consumers", "Subscriptions that consume a queue", &self.0.consumers);
        registry.register_with_unit(
            "queue_depth",
            "Bytes of messages of a queue that are not done",
            Unit::Bytes,
            self.0.bytes.clone(),
        );
        registry.register_with_unit(
            "queue_oldest_timestamp",
            "When the oldest message of a queue came, since 1970; 0: there is none",
            Unit::Seconds,
            self.0.oldest.clone(),
        );
        registry.register("queue_messages", "What happens to messages of a queue", self.0.events.clone());
    }

    /// How many queues may have series of their own, of those that come into use from now on.
    pub fn name_at_most(&self, max: usize) {
        self.0.names.set_max(max);
    }

    /// The share of shard `log` of the queue called `name`.
    #[must_use]
    pub fn share(&self, name: &str, log: LogId) -> SeriesShare {
        let gauges = Gauges::default();
        SeriesShare { series: self.series(name), log, gauges, events: None }
    }

    fn series(&self, name: &str) -> Arc<Series> {
        let make = |label| Series { metrics: self.clone(), label, oldest: Mutex::default() };
        self.0.names.get(name, make)
    }
}

impl Drop for Series {
    fn drop(&mut self) {
        let metrics = &*self.metrics.0;
        metrics.names.release(&self.label, || {
            let label = QueueLabel { queue: Arc::clone(&self.label) };
            for family in [
                &metrics.depth,
                &metrics.bytes,
                &metrics.inflight,
                &metrics.waiting,
                &metrics.consumers,
                &metrics.oldest,
            ] {
                family.remove(&label);
            }
            for event in QueueEvent::ALL {
                let labels = EventLabels { queue: Arc::clone(&self.label), event: event.as_str() };
                metrics.events.remove(&labels);
            }
        });
    }
}

impl SeriesShare {
    /// Tells what the shard holds now, and how often each event has happened.
    pub(crate) fn set(&mut self, gauges: Gauges, events: &[(QueueEvent, u64)]) {
        let metrics = &*self.series.metrics.0;
        if gauges != self.gauges || self.events.is_none() {
            let label = QueueLabel { queue: Arc::clone(&self.series.label) };
            let before = self.gauges;
            for (family, now, before) in [
                (&metrics.depth, gauges.depth, before.depth),
                (&metrics.bytes, gauges.bytes, before.bytes),
                (&metrics.inflight, gauges.inflight, before.inflight),
                (&metrics.waiting, gauges.waiting, before.waiting),
                (&metrics.consumers, gauges.consumers, before.consumers),
            ] {
                let delta = now.cast_signed().wrapping_sub(before.cast_signed());
                family.get_or_create(&label).inc_by(delta);
            }
            if gauges.oldest != before.oldest || self.events.is_none() {
                self.set_oldest(&label, gauges.oldest);
            }
            self.gauges = gauges;
        }
        let is_first = self.events.is_none();
        let known = self.events.get_or_insert_default();
        for (event, count) in events {
            let known = &mut known[*event as usize];
            let new = if is_first { 0 } else { count.saturating_sub(*known) };
            *known = *count;
            if is_first || new > 0 {
                let labels = EventLabels { queue: Arc::clone(&self.series.label), event: event.as_str() };
                metrics.events.get_or_create(&labels).inc_by(new);
            }
        }
    }

    fn set_oldest(&self, label: &QueueLabel, at: Option<Timestamp>) {
        let mut oldest = self.series.oldest.lock();
        match at {
            Some(at) => _ = oldest.insert(self.log, at.as_micros()),
            None => _ = oldest.remove(&self.log),
        }
        let first = oldest.values().min().copied().unwrap_or(0);
        let seconds = i64::try_from(first / 1_000_000).unwrap_or(i64::MAX);
        self.series.metrics.0.oldest.get_or_create(label).set(seconds);
    }
}

impl Drop for SeriesShare {
    fn drop(&mut self) {
        self.set(Gauges::default(), &[]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::VirtualShard;

    fn text(metrics: &QueueMetrics) -> String {
        let mut registry = Registry::default();
        metrics.register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        text
    }

    fn log(object: u32, shard: u8) -> LogId {
        LogId { vs: VirtualShard(0), object, shard, class: 0 }
    }

    fn depth(depth: u64, oldest: u64) -> Gauges {
        Gauges { depth, oldest: Some(Timestamp::from_micros(oldest * 1_000_000)), ..Gauges::default() }
    }

    #[test]
    fn shards_of_a_queue_add_up() {
        let metrics = QueueMetrics::default();
        let (mut one, mut two) = (metrics.share("q", log(1, 0)), metrics.share("q", log(1, 1)));
        one.set(depth(5, 30), &[(QueueEvent::Published, 100)]);
        two.set(depth(7, 20), &[(QueueEvent::Published, 0)]);
        one.set(depth(4, 31), &[(QueueEvent::Published, 103)]);
        let shown = text(&metrics);
        for line in [
            "queue_depth{queue=\"q\"} 11\n",
            "queue_oldest_timestamp_seconds{queue=\"q\"} 20\n",
            "queue_messages_total{queue=\"q\",event=\"published\"} 3\n",
        ] {
            assert!(shown.contains(line), "{line} is not in {shown}");
        }
        drop(two);
        let shown = text(&metrics);
        for line in ["queue_depth{queue=\"q\"} 4\n", "queue_oldest_timestamp_seconds{queue=\"q\"} 31\n"] {
            assert!(shown.contains(line), "{line} is not in {shown}");
        }
    }

    #[test]
    fn names_are_bounded_and_free_again() {
        let metrics = QueueMetrics::default();
        metrics.name_at_most(2);
        let mut shares: Vec<SeriesShare> = (0..5u32)
            .map(|n| {
                let mut share = metrics.share(&format!("q{n}"), log(n, 0));
                share.set(depth(1, 1), &[(QueueEvent::Published, 1)]);
                share
            })
            .collect();
        let shown = text(&metrics);
        assert!(shown.contains("queue_depth{queue=\"_other\"} 3\n"), "{shown}");
        assert!(shown.contains("queue_depth{queue=\"q1\"} 1\n") && !shown.contains("q2"), "{shown}");
        shares.clear();
        assert!(!text(&metrics).contains("queue=\"q"), "{}", text(&metrics));
        metrics.share("q7", log(7, 0)).set(depth(1, 1), &[]);
        let mut again = metrics.share("q7", log(7, 0));
        again.set(depth(2, 1), &[]);
        assert!(text(&metrics).contains("queue_depth{queue=\"q7\"} 2\n"), "{}", text(&metrics));
    }
}
