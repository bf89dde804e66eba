//! Reads a stream for one subscription, for as long as that lasts.
//!
//! Knows no client: what it reads goes into a channel, and it waits while that is full.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use weir_core::stream::ShardReader;

use super::{ReaderId, StreamBatch};

/// First wait before a stream that could not be read is read again; it doubles.
const READ_RETRY_WAIT: Duration = Duration::from_millis(100);
/// Longest wait before that.
const READ_RETRY_WAIT_MAX: Duration = Duration::from_secs(5);

/// Reads one shard into the channel until told to stop. A store in trouble is asked again until it answers.
pub(super) async fn read_shard(
    id: ReaderId,
    mut reader: ShardReader,
    batches: mpsc::Sender<StreamBatch>,
    stop: CancellationToken,
) {
    let log = reader.log();
    let read = async {
        let mut wait = READ_RETRY_WAIT;
        loop {
            match reader.read().await {
                Ok(records) => {
                    wait = READ_RETRY_WAIT;
                    if batches.send(StreamBatch { reader: id, log, records: records.into() }).await.is_err() {
                        return;
                    }
                }
                // The stream is gone, or the broker shuts down.
                Err(weir_core::Error::Closed) => return,
                Err(error) => {
                    tracing::warn!(stream = log.object, shard = log.shard, %error, "read stream; trying again");
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(READ_RETRY_WAIT_MAX);
                }
            }
        }
    };
    tokio::select! {
        () = read => {}
        () = stop.cancelled() => {}
    }
}
