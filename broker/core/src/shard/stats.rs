//! What people see of one shard of a stream: its part in the metrics of the stream, and in its rates.
//!
//! Told after each batch; decides nothing. The log that it is of owns it.

use std::sync::Arc;

use weir_env::clock::Instant;

use super::Context;
use crate::activity::Activity;
use crate::catalog::Object;
use crate::keyspace::LogId;
use crate::keyspace::log_state::LogState;
use crate::metrics::{StreamGauges, StreamShare};

/// What a shard of a stream tells.
#[derive(Debug)]
pub(crate) struct StreamStats {
    activity: Arc<Activity>,
    share: StreamShare,
    /// Messages ever published, as of the last time it was told.
    published: u64,
}

impl StreamStats {
    /// Of `log`, whose state is `state`.
    pub(crate) fn new(context: &Context, stream: &Object, log: LogId, state: &LogState) -> Self {
        let activity = context.activities.of(stream, &context.metrics.streams);
        let mut share = StreamShare::new(Arc::clone(&activity.series), log);
        share.set(StreamGauges::default(), state.next, state.next);
        Self { activity, share, published: state.next }
    }

    /// Takes note of what the log keeps now; `next` messages were ever published to it.
    pub(crate) fn observe(&mut self, gauges: StreamGauges, next: u64, now: Instant) {
        self.share.set(gauges, next, next.saturating_sub(gauges.messages));
        let new = next.saturating_sub(self.published);
        self.published = next;
        if new > 0 {
            self.activity.published(new, now);
        }
    }
}
