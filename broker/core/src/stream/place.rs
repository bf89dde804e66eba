//! Where a place in a stream is: times become offsets by the time index and at most one segment.

use bytes::Bytes;
use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery, SharedStore};

use super::{Start, rows};
use crate::error::{Error, Result};
use crate::keyspace::segment::{self, SegmentReader};
use crate::keyspace::time_index::{self, IndexEntry};
use crate::keyspace::{LogId, tag};
use crate::shard::Extent;

/// The offset at which a reader of `log` begins that starts at `start`. A time that is yet to come begins at the end.
///
/// # Errors
/// If the store fails, or what is stored is damaged.
pub(crate) async fn begin(
    store: &SharedStore,
    log: &LogId,
    last_value: bool,
    start: &Start,
    extent: Extent,
) -> Result<u64> {
    Ok(match start {
        Start::Earliest => extent.start,
        Start::Latest => extent.next,
        Start::Time(at) => match first_at(store, log, last_value, *at, extent).await {
            // From there on it is for whoever reads, or removes, what is there.
            Err(Error::Record(_)) if !last_value => match last_before(store, log, *at).await? {
                Some((base, _)) => base.clamp(extent.start, extent.next),
                None => extent.start,
            },
            found => found?,
        },
        Start::Offset(_) | Start::Offsets(_) => {
            start.offset(log.shard).unwrap_or(0).clamp(extent.start, extent.next)
        }
    })
}

/// The offset of the first record of `log` at or after `at`; the end if there is none.
pub(super) async fn first_at(
    store: &SharedStore,
    log: &LogId,
    last_value: bool,
    at: Timestamp,
    extent: Extent,
) -> Result<u64> {
    if last_value {
        return rows::first_since(store, log, at, extent).await;
    }
    // Times never go back within a log. So what comes before the last segment that begins earlier is earlier too, and
    // what comes after it is not.
    let Some((base, value)) = last_before(store, log, at).await? else { return Ok(extent.start) };
    let Some(value) = value else {
        // Retention was faster.
        return Ok(extent.start.max(base));
    };
    let mut segment = SegmentReader::open(base, value)?;
    let end = segment.end();
    if segment.header().last_ts < at {
        return Ok(end.max(extent.start));
    }
    while let Some((offset, record)) = segment.next_record()? {
        if record.message.published_at >= at {
            return Ok(offset.max(extent.start));
        }
    }
    Ok(end.max(extent.start))
}

/// The last segment of `log` that begins before `at`, if there is one; its value is gone if retention was faster.
async fn last_before(
    store: &SharedStore,
    log: &LogId,
    at: Timestamp,
) -> Result<Option<(u64, Option<Bytes>)>> {
    let mut tx = store.begin();
    let (begin, _) = log.range(tag::TIME_INDEX);
    let end = time_index::key(log, at, 0);
    let query = RangeQuery { begin: begin.into(), end: end.into(), limit: 1, target_bytes: 0, reverse: true };
    let Some((key, value)) = tx.get_range(query, Isolation::Snapshot).await?.pairs.pop() else {
        return Ok(None);
    };
    let base = IndexEntry::decode(&key, value)?.base;
    Ok(Some((base, tx.get(&segment::key(log, base), Isolation::Snapshot).await?)))
}
