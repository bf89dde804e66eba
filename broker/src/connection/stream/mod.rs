//! What a connection does for its stream subscriptions: understands what they ask for, has them read, and gives the
//! session what was read.
//!
//! Knows nothing of how a stream is stored. The state is the connection's.

mod deliver;
pub(super) mod request;
mod task;

use std::collections::VecDeque;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use weir_core::catalog::Object;
use weir_core::keyspace::LogId;
use weir_core::keyspace::segment::Record;
use weir_core::stream::{ReadOptions, ReadPermit, Start};

use super::Connection;
use super::external::Source;
use task::read_stream;

/// Batches of stream messages, 256 KiB each about, that wait for a connection; then its readers wait.
pub(in crate::connection) const STREAM_CHANNEL: usize = 2;

/// Tells the batches of a stream subscription from those of one that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::connection) struct ReaderId(pub(super) u64);

/// Records of one shard of a stream, on their way to the client.
#[derive(Debug)]
pub(in crate::connection) struct StreamBatch {
    pub(super) reader: ReaderId,
    pub(super) log: LogId,
    pub(super) records: VecDeque<(u64, Arc<Record>)>,
    /// Held while the records are in memory.
    pub(super) _permit: Option<ReadPermit>,
}

impl Connection {
    /// Begins to read a stream.
    pub(super) async fn read(&mut self, start: Start, object: Arc<Object>) -> weir_core::Result<Source> {
        let stop = CancellationToken::new();
        let id = ReaderId(self.broker.consumer_id().0);
        let options = ReadOptions { start, ..ReadOptions::default() };
        let reader = self.broker.core.reader(&object, &options).await?;
        self.broker.tasks.spawn(read_stream(id, reader, self.stream.sender(), stop.clone()));
        Ok(Source::Stream { object, reader: id, _reader: stop.drop_guard() })
    }
}
