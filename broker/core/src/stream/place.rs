//! Where a place in a stream is: times become offsets by the time index and at most one segment.

use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery, SharedStore};

use super::{Start, rows};
use crate::error::Result;
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
        Start::Time(at) => first_at(store, log, last_value, *at, extent).await?,
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
    let mut tx = store.begin();
    let (begin, _) = log.range(tag::TIME_INDEX);
    let end = time_index::key(log, at, 0);
    let query = RangeQuery { begin: begin.into(), end: end.into(), limit: 1, target_bytes: 0, reverse: true };
    let page = tx.get_range(query, Isolation::Snapshot).await?;
    // Times never go back within a log. So what comes before the last segment that begins earlier is earlier too, and
    // what comes after it is not.
    let Some((key, value)) = page.pairs.into_iter().next() else { return Ok(extent.start) };
    let base = IndexEntry::decode(&key, value)?.base;
    let Some(value) = tx.get(&segment::key(log, base), Isolation::Snapshot).await? else {
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
