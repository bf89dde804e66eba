//! Counters of this crate, under names that begin with `weir_`.

mod cluster;
mod groups;
mod names;
mod peers;
mod queues;
mod reading;
mod share;
mod streams;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

pub use cluster::{ClusterMetrics, Takeover};
pub use groups::{GROUPS_NAMED_MAX, GroupMetrics, GroupShare};
pub use names::OTHERS;
pub(crate) use peers::{LaneSeries, PeerSeries};
pub use peers::{PEERS_NAMED_MAX, PeerMetrics};
pub use queues::{Gauges, QUEUES_NAMED_MAX, QueueEvent, QueueMetrics, SeriesShare};
pub use reading::ReadMetrics;
pub(crate) use share::GaugeShare;
pub use streams::{STREAMS_NAMED_MAX, StreamGauges, StreamMetrics};
pub(crate) use streams::{StreamSeries, StreamShare};

/// Why an append was refused: a bounded label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Reason {
    /// `full`, `invalid`, `store` or `closed`.
    pub reason: &'static str,
}

/// What the core counts. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Records appended to queues and streams.
    pub appended: Counter,
    /// Bytes of segments written.
    pub appended_bytes: Counter,
    /// Batches committed by shard owners.
    pub batches: Counter,
    /// Batches repeated because their outcome was unknown or their read version too old.
    pub batch_repeats: Counter,
    /// Appends refused.
    pub append_refused: Family<Reason, Counter>,
    /// Queue messages given to consumers, redeliveries included.
    pub dispatched: Counter,
    /// Queue messages given to a consumer again after a delivery failed: refused, too late, or its connection lost.
    pub redelivered: Counter,
    /// Queue messages acknowledged.
    pub acknowledged: Counter,
    /// Queue deliveries refused by their consumer.
    pub rejected: Counter,
    /// Queue deliveries whose acknowledgement did not come in time.
    pub ack_timeouts: Counter,
    /// Queue messages moved out of their log because those around them were done.
    pub moved_aside: Counter,
    /// Queue messages dropped because they had expired.
    pub expired: Counter,
    /// Queue messages dropped after their last attempt.
    pub exhausted: Counter,
    /// Queue messages that went to the dead letters.
    pub dead_lettered: Counter,
    /// Queue messages dropped to make room for newer ones.
    pub overflowed: Counter,
    /// Queue messages replaced by a newer one of their key.
    pub superseded: Counter,
    /// Queue messages removed by a purge.
    pub purged: Counter,
    /// Dead letters moved back to the queue they had left.
    pub redriven: Counter,
    /// Messages on their way to the dead letters, or that cannot leave.
    pub dead_letters_waiting: Gauge,
    /// Attempts to send dead letters that failed.
    pub dead_letter_failures: Counter,
    /// Publishes to queues not stored again: one of their `queue-dedup-id` was.
    pub duplicates: Counter,
    /// Ids of publishers remembered by queues.
    pub dedup_ids: Gauge,
    /// Messages of queues that wait for their time.
    pub delayed: Gauge,
    /// Messages that asked for a priority where it has no effect.
    pub priorities_ignored: Counter,
    /// Messages whose key expression did not evaluate.
    pub key_failures: Counter,
    /// Queue messages that had to wait because another of their key was under way.
    pub key_waits: Counter,
    /// Times that a shard stopped handing out because too many messages waited for their key.
    pub key_lookahead_full: Counter,
    /// Messages of compacted streams replaced by a newer one of their key.
    pub rows_replaced: Counter,
    /// Messages of compacted streams removed by limits.
    pub rows_dropped: Counter,
    /// Tombstones of compacted streams removed after their time.
    pub tombstones_swept: Counter,
    /// Shards lost to another owner.
    pub shards_lost: Counter,
    /// Virtual shards this pod owns.
    pub shards_owned: Gauge,
    /// Segments or records found damaged.
    pub damaged: Counter,
    /// What goes on among the pods.
    pub cluster: ClusterMetrics,
    /// What each queue holds and does.
    pub queues: QueueMetrics,
    /// What reading streams costs.
    pub reading: ReadMetrics,
    /// What consumer groups do.
    pub groups: GroupMetrics,
    /// What each stream keeps and does.
    pub streams: StreamMetrics,
    /// What goes to other pods and comes from them.
    pub peers: PeerMetrics,
}

impl Metrics {
    /// Makes the counters part of `registry`.
    pub fn register(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, counter: &Counter| {
            registry.register(name, help, counter.clone());
        };
        counter("log_appended", "Messages appended to queues and streams", &self.appended);
        counter("log_appended_bytes", "Bytes of segments written", &self.appended_bytes);
        counter("shard_batches", "Batches committed by shard owners", &self.batches);
        counter("shard_batch_repeats", "Batches repeated after an unknown outcome", &self.batch_repeats);
        counter("queue_dispatched", "Queue messages given to consumers", &self.dispatched);
        counter(
            "queue_redelivered",
            "Queue messages given to a consumer again after a delivery failed",
            &self.redelivered,
        );
        counter("queue_acknowledged", "Queue messages acknowledged", &self.acknowledged);
        counter("queue_rejected", "Queue deliveries refused by their consumer", &self.rejected);
        counter("queue_ack_timeouts", "Queue deliveries not acknowledged in time", &self.ack_timeouts);
        counter("queue_moved_aside", "Queue messages moved out of their log", &self.moved_aside);
        counter("queue_expired", "Queue messages dropped because they had expired", &self.expired);
        counter("queue_exhausted", "Queue messages dropped after their last attempt", &self.exhausted);
        counter("queue_dead_lettered", "Queue messages that went to the dead letters", &self.dead_lettered);
        counter("queue_overflowed", "Queue messages dropped to make room for newer ones", &self.overflowed);
        counter("queue_superseded", "Queue messages replaced by a newer one of their key", &self.superseded);
        counter("queue_purged", "Queue messages removed by a purge", &self.purged);
        counter("queue_redriven", "Dead letters moved back to the queue they had left", &self.redriven);
        let failures = &self.dead_letter_failures;
        counter("queue_dead_letter_failures", "Attempts to send dead letters that failed", failures);
        let ignored = &self.priorities_ignored;
        counter("queue_priorities_ignored", "Priorities asked of queues where they have no effect", ignored);
        counter("queue_duplicates", "Publishes that a queue had stored before", &self.duplicates);
        counter("key_failures", "Messages whose key expression did not evaluate", &self.key_failures);
        counter("queue_key_waits", "Queue messages that waited for another of their key", &self.key_waits);
        counter(
            "queue_key_lookahead_full",
            "Times a queue's shard stopped because too many messages waited for their key",
            &self.key_lookahead_full,
        );
        counter(
            "stream_replaced",
            "Messages of compacted streams replaced by a newer one",
            &self.rows_replaced,
        );
        counter("stream_dropped", "Messages of compacted streams removed by limits", &self.rows_dropped);
        counter("stream_tombstones_removed", "Tombstones removed after their time", &self.tombstones_swept);
        counter("shards_lost", "Virtual shards lost to another owner", &self.shards_lost);
        counter("damaged_records", "Stored records found damaged", &self.damaged);
        registry.register("append_refused", "Appends refused", self.append_refused.clone());
        let waiting = self.dead_letters_waiting.clone();
        registry.register("queue_dead_letters_waiting", "Messages on their way to the dead letters", waiting);
        self.cluster.register(registry);
        self.queues.register(registry);
        self.reading.register(registry);
        self.groups.register(registry);
        self.streams.register(registry);
        registry.register(
            "queue_dedup_ids",
            "Ids of publishers remembered by queues",
            self.dedup_ids.clone(),
        );
        registry.register(
            "queue_delayed",
            "Messages of queues that wait for their time",
            self.delayed.clone(),
        );
        registry.register("shards_owned", "Virtual shards this pod owns", self.shards_owned.clone());
    }
}
