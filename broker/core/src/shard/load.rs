//! Reading logs and queue state from the store.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, StreamExt};
use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery, SharedStore, Transaction};

use super::rows::Rows;
use super::{Context, ReadRecords};
use crate::error::{Error, Result};
use crate::keyspace::dedup::{self, DedupId};
use crate::keyspace::last_value::{self, Tombstone};
use crate::keyspace::log_state::LogState;
use crate::keyspace::mark::{Mark, PublishId};
use crate::keyspace::queue::{AckBlock, Attempts, QueueFloor};
use crate::keyspace::segment::{self, Record, SegmentReader};
use crate::keyspace::{DecodeError, LogId, aside, log_blob, tag};
use crate::queue::{QueueShard, StoredQueue};

/// Pairs per page of queue state.
const PAGE: usize = 1000;
/// Bytes read at once to find the keys of a last-value queue.
const LAST_VALUES_BYTES: usize = 256 * 1024;
/// Publishes looked up at a time.
const LOOKUPS_AT_ONCE: usize = 64;

/// The state of `log` as stored; a fresh one if there is none.
pub(crate) async fn log_state(context: &Context, log: &LogId) -> Result<LogState> {
    let mut tx = context.store.begin();
    let stored = tx.get(&LogState::key(log), Isolation::Snapshot).await?;
    Ok(stored.map(LogState::decode).transpose()?.unwrap_or_default())
}

/// The queue state of `log` as stored.
pub(crate) async fn queue_state(context: &Context, log: &LogId, next: u64) -> Result<StoredQueue> {
    let mut tx = context.store.begin();
    let floor = tx.get(&QueueFloor::key(log), Isolation::Snapshot).await?;
    let counters = floor.map(QueueFloor::decode).transpose()?.unwrap_or_default();
    let mut blocks = BTreeMap::new();
    for (key, value) in pages(&mut *tx, AckBlock::range(log)).await? {
        blocks.insert(AckBlock::block_of_key(&key)?, AckBlock::decode(value)?);
    }
    let mut attempts = BTreeMap::new();
    for (key, value) in pages(&mut *tx, Attempts::range(log)).await? {
        attempts.insert(Attempts::offset_of_key(&key)?, Attempts::decode(value)?);
    }
    Ok(StoredQueue { counters, blocks, attempts, next })
}

/// The priorities above 0 of which the shard of `log` has a log.
pub(crate) async fn classes(context: &Context, log: &LogId) -> Result<Vec<LogId>> {
    let mut tx = context.store.begin();
    let mut logs = Vec::new();
    for (key, _) in pages(&mut *tx, log.shard_range(tag::LOG_STATE)).await? {
        logs.push(LogId::of_key(&key)?);
    }
    logs.retain(|log| log.class > 0);
    Ok(logs)
}

/// Ids of publishers that still count, oldest first.
pub(crate) async fn dedup_ids(
    context: &Context,
    log: &LogId,
    window: Duration,
) -> Result<Vec<(Timestamp, DedupId)>> {
    let since =
        context.clock.wall().as_micros().saturating_sub(window.as_micros().try_into().unwrap_or(u64::MAX));
    let (_, begin) = dedup::range_before(log, Timestamp::from_micros(since));
    let (_, end) = log.range(tag::DEDUP);
    let mut tx = context.store.begin();
    let mut ids = Vec::new();
    for (key, value) in pages(&mut *tx, (begin, end)).await? {
        let at = dedup::time_of_key(&key)?;
        ids.extend(dedup::decode(value)?.into_iter().map(|id| (at, id)));
    }
    Ok(ids)
}

pub(super) async fn pages(
    tx: &mut dyn Transaction,
    range: (Vec<u8>, Vec<u8>),
) -> Result<Vec<(Bytes, Bytes)>> {
    let (begin, end) = range;
    let mut begin = Bytes::from(begin);
    let end = Bytes::from(end);
    let mut pairs = Vec::new();
    loop {
        let query = RangeQuery {
            begin: begin.clone(),
            end: end.clone(),
            limit: PAGE,
            target_bytes: 0,
            reverse: false,
        };
        let page = tx.get_range(query, Isolation::Snapshot).await?;
        let last = page.pairs.last().map(|(key, _)| key.clone());
        pairs.extend(page.pairs);
        match last {
            Some(last) if page.more => begin = [&last, [0].as_slice()].concat().into(),
            _ => return Ok(pairs),
        }
    }
}

/// Tells a last-value queue which messages it has, up to `next`.
pub(crate) async fn last_values(
    context: &Context,
    queue: &mut QueueShard,
    log: &LogId,
    next: u64,
) -> Result<()> {
    let mut at = 0;
    while at < u64::MAX {
        let (begin, end) = aside::range_from(log, at);
        let query = RangeQuery {
            begin: begin.into(),
            end: end.into(),
            limit: 0,
            target_bytes: LAST_VALUES_BYTES,
            reverse: false,
        };
        let page = context.store.begin().get_range(query, Isolation::Snapshot).await?;
        at = if page.more { at } else { u64::MAX };
        for (key, value) in page.pairs {
            let offset = aside::offset_of_key(&key)?;
            queue.restore_last_value(offset, &aside::decode(value)?);
            at = at.max(offset.saturating_add(1));
        }
    }
    let mut at = queue.floor();
    while at < next {
        let records = read_heads(&context.store, log, at, LAST_VALUES_BYTES).await?;
        let Some((last, _)) = records.last() else { break };
        at = last.saturating_add(1);
        for (offset, record) in &records {
            queue.restore_last_value(*offset, record);
        }
    }
    Ok(())
}

/// What the owner of a compacted log remembers of its rows.
pub(crate) async fn rows(context: &Context, log: &LogId, state: &LogState) -> Result<Rows> {
    let mut tx = context.store.begin();
    let mut first = async |(begin, end): (Vec<u8>, Vec<u8>)| {
        let page = tx.get_range(RangeQuery::new(begin, end).limit(1), Isolation::Snapshot).await?;
        Ok::<_, Error>(page.pairs.into_iter().next().map(|(_, value)| value))
    };
    // A damaged one is as old as can be: the next look removes it.
    let oldest = first(last_value::range_from(log, state.start)).await?.map(|value| {
        last_value::decode(value).map_or_else(|_| Timestamp::default(), |record| record.message.published_at)
    });
    let tombstone = first(Tombstone::range(log)).await?.map(|value| {
        Tombstone::decode(value).map_or_else(|_| Timestamp::default(), |tombstone| tombstone.at)
    });
    Ok(Rows::restore(oldest, tombstone))
}

/// Of each of these publishes, whether it was appended.
pub(crate) async fn have_marks(context: &Context, publishes: Vec<(LogId, PublishId)>) -> Vec<Result<bool>> {
    let lookups = publishes.into_iter().map(|(log, publish)| async move {
        let mut tx = context.store.begin();
        let stored = tx.get(&Mark::key(&log, &publish), Isolation::Snapshot).await?;
        Ok(stored.map(Mark::decode).transpose()?.is_some())
    });
    stream::iter(lookups).buffered(LOOKUPS_AT_ONCE).collect().await
}

/// Segments of `log` from the one that holds `from` on, about `target_bytes` of them, at least one.
///
/// # Errors
/// If the store fails or a segment is damaged.
pub async fn read_segments(
    store: &SharedStore,
    log: &LogId,
    from: u64,
    target_bytes: usize,
) -> Result<Vec<SegmentReader>> {
    segments(&mut *store.begin(), log, from, target_bytes).await
}

async fn segments(
    tx: &mut dyn Transaction,
    log: &LogId,
    from: u64,
    target_bytes: usize,
) -> Result<Vec<SegmentReader>> {
    let first = RangeQuery {
        begin: segment::key(log, 0).into(),
        end: segment::key(log, from.saturating_add(1)).into(),
        limit: 1,
        target_bytes: 0,
        reverse: true,
    };
    let mut begin = Bytes::from(segment::key(log, from));
    let mut segments = Vec::new();
    if let Some((key, value)) = tx.get_range(first, Isolation::Snapshot).await?.pairs.pop() {
        let segment = SegmentReader::open(segment::base_of_key(&key)?, value)?;
        if segment.end() > from {
            begin = segment::key(log, segment.end()).into();
            segments.push(segment);
        }
    }
    let (_, end) = log.range(tag::SEGMENT);
    let query = RangeQuery { begin, end: end.into(), limit: 0, target_bytes, reverse: false };
    for (key, value) in tx.get_range(query, Isolation::Snapshot).await?.pairs {
        segments.push(SegmentReader::open(segment::base_of_key(&key)?, value)?);
    }
    Ok(segments)
}

/// The payload of a record that is stored in chunks.
///
/// # Errors
/// If the store fails or chunks are missing.
pub async fn load_blob(store: &SharedStore, log: &LogId, offset: u64, len: u32) -> Result<Bytes> {
    blob(&mut *store.begin(), log, offset, len).await
}

/// The same at the version of `tx`, at which there are chunks of every record that there is.
///
/// # Errors
/// If the store fails or chunks are missing.
pub(crate) async fn blob(tx: &mut dyn Transaction, log: &LogId, offset: u64, len: u32) -> Result<Bytes> {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let mut payload = BytesMut::new();
    let (begin, end) = log_blob::range(log, offset, offset.saturating_add(1));
    for (_, chunk) in pages(tx, (begin, end)).await? {
        payload.extend_from_slice(&chunk);
    }
    if payload.len() < len {
        return Err(Error::Record(DecodeError::Truncated("record payload")));
    }
    // A shorter record may have been written over a longer one that was never committed.
    payload.truncate(len);
    Ok(payload.freeze())
}

/// Records of `log` from `from` on with their payloads, about `target_bytes` of them, and where the next
/// read begins.
pub(crate) async fn read_records(
    store: &SharedStore,
    log: &LogId,
    from: u64,
    target_bytes: usize,
) -> Result<ReadRecords> {
    // All at one version: what is cut or deleted meanwhile has its payload to the end.
    let mut tx = store.begin();
    let mut records = Vec::new();
    let mut end = from;
    let mut blob_bytes = 0;
    for mut segment in segments(&mut *tx, log, from, target_bytes).await? {
        while let Some((offset, mut record)) = segment.next_record()? {
            if offset < from {
                continue;
            }
            if let Some(len) = record.blob_len {
                // A small segment may refer to far more than it holds.
                if blob_bytes >= target_bytes {
                    return Ok((records, offset));
                }
                record.message.payload = blob(&mut *tx, log, offset, len).await?;
                blob_bytes += record.message.payload.len();
            }
            records.push((offset, Arc::new(record)));
        }
        end = segment.end().max(end);
    }
    Ok((records, end))
}

/// Records of `log` from `from` on, about `target_bytes` of them; payloads in chunks are not read.
pub(crate) async fn read_heads(
    store: &SharedStore,
    log: &LogId,
    from: u64,
    target_bytes: usize,
) -> Result<Vec<(u64, Record)>> {
    let mut records = Vec::new();
    for mut segment in read_segments(store, log, from, target_bytes).await? {
        while let Some((offset, record)) = segment.next_record()? {
            if offset >= from {
                records.push((offset, record));
            }
        }
    }
    Ok(records)
}

/// Messages of `log` that were moved aside, from offset `from` on with their payloads, about `target_bytes` of them,
/// and where the next read begins. Damaged ones are left out: those after them are not to wait for ever.
///
/// # Errors
/// If the store fails.
pub(crate) async fn read_asides(
    store: &SharedStore,
    log: &LogId,
    from: u64,
    target_bytes: usize,
) -> Result<ReadRecords> {
    let (begin, end) = aside::range_from(log, from);
    let query = RangeQuery { begin: begin.into(), end: end.into(), limit: 0, target_bytes, reverse: false };
    let mut tx = store.begin();
    let page = tx.get_range(query, Isolation::Snapshot).await?;
    let mut records = Vec::new();
    let mut blob_bytes = 0;
    let mut end = from;
    for (key, value) in page.pairs {
        let offset = aside::offset_of_key(&key)?;
        end = offset.saturating_add(1);
        let Ok(mut record) = aside::decode(value) else { continue };
        if let Some(len) = record.blob_len {
            if blob_bytes >= target_bytes {
                return Ok((records, offset));
            }
            record.message.payload = match blob(&mut *tx, log, offset, len).await {
                Ok(payload) => payload,
                Err(Error::Record(_)) => continue,
                Err(error) => return Err(error),
            };
            blob_bytes += record.message.payload.len();
        }
        records.push((offset, Arc::new(record)));
    }
    Ok((records, if page.more { end } else { u64::MAX }))
}
