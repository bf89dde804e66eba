//! What reading streams costs, over all of them.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// What readers of streams count. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct ReadMetrics {
    /// Bytes of history that was read and not yet taken.
    pub bytes: Gauge,
    /// Times that a reader did not read ahead because of the bound on them.
    pub held_up: Counter,
    /// Times that a reader whose client took nothing gave back what it had read ahead.
    pub given_back: Counter,
    /// Bytes of the newest messages kept for those who read them as they come.
    pub tail_bytes: Gauge,
    /// Pages that readers found there.
    pub tail_hits: Counter,
    /// Pages that they read from the store.
    pub tail_misses: Counter,
    /// Times that new messages in shards of other pods were read once for all readers here.
    pub tail_fills: Counter,
    /// Times that a fetch waited because of the bound on what fetches have in memory.
    pub fetches_held_up: Counter,
}

impl ReadMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "stream_read_bytes",
            "Bytes of history of streams that readers have in memory",
            self.bytes.clone(),
        );
        registry.register(
            "stream_reads_held_up",
            "Times a reader of a stream did not read ahead because limits.streamReadBytes was reached",
            self.held_up.clone(),
        );
        registry.register(
            "stream_reads_given_back",
            "Times a reader of a stream whose client took nothing gave back what it had read ahead",
            self.given_back.clone(),
        );
        registry.register(
            "stream_tail_bytes",
            "Bytes of the newest messages of streams kept in memory",
            self.tail_bytes.clone(),
        );
        registry.register(
            "stream_tail_hits",
            "Pages of streams that readers found in memory",
            self.tail_hits.clone(),
        );
        registry.register(
            "stream_tail_misses",
            "Pages of streams that readers read from the store",
            self.tail_misses.clone(),
        );
        registry.register(
            "stream_tail_fills",
            "Times that new messages of streams, in shards of other pods, were read from the store once for all readers here",
            self.tail_fills.clone(),
        );
        registry.register(
            "stream_fetches_held_up",
            "Times a fetch of a stream waited because others had as much in memory as fetches may",
            self.fetches_held_up.clone(),
        );
    }
}
