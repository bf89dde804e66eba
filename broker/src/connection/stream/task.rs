//! Reads a stream for one subscription, for as long as that lasts.
//!
//! Knows no client: what it reads goes into a channel, and it waits while that is full.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weir_core::stream::{ReadBatch, StreamReader};

use super::{ReaderId, StreamBatch};

/// Reads a stream into the channel until told to stop. A store in trouble is asked again until it answers.
pub(super) async fn read_stream(
    id: ReaderId,
    mut reader: StreamReader,
    batches: mpsc::Sender<StreamBatch>,
    stop: CancellationToken,
) {
    let read = async {
        loop {
            match reader.next().await {
                Ok(ReadBatch { log, records, permit, .. }) => {
                    let batch = StreamBatch { reader: id, log, records: records.into(), _permit: permit };
                    if !batch.records.is_empty() && batches.send(batch).await.is_err() {
                        return;
                    }
                }
                // The stream is gone, or the broker shuts down.
                Err(weir_core::Error::Closed) => return,
                // The shard that failed waits by itself.
                Err(error) => tracing::warn!(%error, "read stream; trying again"),
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = stop.cancelled() => {}
    }
}
