//! Reading a compacted stream: the newest message of each key, in the order in which they came.
//!
//! Offsets have gaps where messages were replaced. This knows rows and nothing of who reads.

use std::sync::Arc;

use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery, SharedStore};

use crate::error::Result;
use crate::keyspace::LogId;
use crate::keyspace::last_value;
use crate::keyspace::log_state::LogState;
use crate::shard::{Extent, ReadRecords, blob};

/// Rows of `log` from offset `from` on with their payloads, about `target_bytes` of them, and where the next read
/// begins: where nothing follows, at the end of the log.
///
/// # Errors
/// If the store fails or a row is damaged.
pub(crate) async fn read_rows(
    store: &SharedStore,
    log: &LogId,
    from: u64,
    target_bytes: usize,
) -> Result<ReadRecords> {
    // All at one version: a row may be replaced at any time, and then its payload is gone with it.
    let mut tx = store.begin();
    let (begin, end) = last_value::range_from(log, from);
    let query = RangeQuery::new(begin, end).target_bytes(target_bytes);
    let page = tx.get_range(query, Isolation::Snapshot).await?;
    let mut records = Vec::with_capacity(page.pairs.len());
    let mut next = from;
    let mut blob_bytes = 0;
    for (key, value) in page.pairs {
        let offset = last_value::offset_of_key(&key)?;
        let mut record = last_value::decode(value)?;
        if let Some(len) = record.blob_len {
            // A short row may refer to far more than it holds.
            if blob_bytes >= target_bytes {
                return Ok((records, offset));
            }
            record.message.payload = blob(&mut *tx, log, offset, len).await?;
            blob_bytes += record.message.payload.len();
        }
        records.push((offset, Arc::new(record)));
        next = offset.saturating_add(1);
    }
    if !page.more {
        let state = tx.get(&LogState::key(log), Isolation::Snapshot).await?;
        let state = state.map(LogState::decode).transpose()?.unwrap_or_default();
        next = next.max(state.next);
    }
    Ok((records, next))
}

/// When the oldest message of the compacted `log` came, which is not below `from`; none if it has none.
///
/// # Errors
/// If the store fails or the row is damaged.
pub async fn oldest_row(store: &SharedStore, log: &LogId, from: u64) -> Result<Option<Timestamp>> {
    let (begin, end) = last_value::range_from(log, from);
    let query = RangeQuery::new(begin, end).limit(1);
    let page = store.begin().get_range(query, Isolation::Snapshot).await?;
    let Some((_, value)) = page.pairs.into_iter().next() else { return Ok(None) };
    Ok(Some(last_value::decode(value)?.message.published_at))
}

/// How many messages the compacted `log` has in a range of offsets. Reads them all, page by page.
///
/// # Errors
/// If the store fails.
pub(super) async fn count(store: &SharedStore, log: &LogId, (from, to): (u64, u64)) -> Result<u64> {
    let mut count = 0;
    let mut next = (from < to).then(|| RangeQuery::new(last_value::key(log, from), last_value::key(log, to)));
    while let Some(query) = next {
        let page = store.begin().get_range(query.clone(), Isolation::Snapshot).await?;
        count += page.pairs.len() as u64;
        next = query.after(&page);
    }
    Ok(count)
}

/// Where the first message that came at or after `at` is, or the end if there is none. Rows are in the order of their
/// times, so this is found by halves: some forty reads of one row in the longest of logs.
///
/// # Errors
/// If the store fails or a row is damaged.
pub(crate) async fn first_since(
    store: &SharedStore,
    log: &LogId,
    at: Timestamp,
    extent: Extent,
) -> Result<u64> {
    let mut tx = store.begin();
    let (mut from, mut to) = (extent.start, extent.next);
    // All rows below `from` are older; no row from `to` on is.
    while from < to {
        let middle = from + (to - from) / 2;
        let query = RangeQuery::new(last_value::key(log, middle), last_value::key(log, to)).limit(1);
        let page = tx.get_range(query, Isolation::Snapshot).await?;
        let Some((key, value)) = page.pairs.into_iter().next() else {
            to = middle;
            continue;
        };
        if last_value::decode(value)?.message.published_at < at {
            from = last_value::offset_of_key(&key)?.saturating_add(1);
        } else {
            to = middle;
        }
    }
    Ok(to)
}
