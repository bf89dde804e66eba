//! Pages of a log as stored.

use weir_storage::SharedStore;

use super::rows::read_rows;
use crate::error::Result;
use crate::keyspace::LogId;
use crate::shard::{ReadRecords, read_records};

/// Records of `log` from `from` on with their payloads, about `target_bytes` of them, at least one, and the offset at
/// which the next page begins. `end` is the end of the log that its owner has announced.
///
/// # Errors
/// If the store fails or a record is damaged.
pub(crate) async fn read_page(
    store: &SharedStore,
    log: &LogId,
    last_value: bool,
    (from, _end): (u64, u64),
    target_bytes: usize,
) -> Result<ReadRecords> {
    if last_value {
        return read_rows(store, log, from, target_bytes).await;
    }
    read_records(store, log, from, target_bytes).await
}
