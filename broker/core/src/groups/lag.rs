//! What the store and the owners of shards know that groups need: stored positions, where a place is, how far a group
//! is behind. Keeps nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytestring::ByteString;
use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery};

use super::GroupReport;
use crate::catalog::Object;
use crate::error::Result;
use crate::keyspace::group::GroupPosition;
use crate::keyspace::{DecodeError, LogId, tag};
use crate::shard::{Command, Extent, Owners, read_segments};
use crate::stream::Start;

/// Rows read in one go.
const PAGE: usize = 1000;
/// Messages read at once to learn when they came.
const READS_AT_ONCE: usize = 8;

/// Positions of one shard by group.
type Rows = Vec<(ByteString, std::result::Result<GroupPosition, DecodeError>)>;

/// First offset kept and end of each shard; its owner has taken it over then.
async fn extents(owners: &Owners, stream: &Arc<Object>) -> Result<Vec<Extent>> {
    try_join_all(stream.logs.iter().map(|log| extent(owners, stream, *log))).await
}

async fn extent(owners: &Owners, stream: &Arc<Object>, log: LogId) -> Result<Extent> {
    let object = Arc::clone(stream);
    let report = owners.get(log.vs)?.ask(|reply| Command::Describe { object, log, reply }).await??;
    Ok(report.extent)
}

/// The offset in each shard at which reading from `start` begins now.
pub(super) async fn places(owners: &Owners, stream: &Arc<Object>, start: &Start) -> Result<Vec<u64>> {
    let place = |log: LogId| async move {
        let extent = extent(owners, stream, log).await?;
        let last_value = stream.definition.last_value;
        crate::stream::begin(&owners.context().store, &log, last_value, start, extent).await
    };
    try_join_all(stream.logs.iter().map(|log| place(*log))).await
}

/// Whether a stream has groups in the store: each has a row on every shard.
pub(super) async fn has_groups(owners: &Owners, stream: &Object) -> Result<bool> {
    let Some(log) = stream.logs.first() else { return Ok(false) };
    let (begin, end) = log.range(tag::GROUP);
    let mut tx = owners.context().store.begin();
    let page = tx.get_range(RangeQuery::new(begin, end).limit(1), Isolation::Snapshot).await?;
    Ok(!page.pairs.is_empty())
}

/// The stored positions of all groups, by shard. What an owner of a shard before this one had under way is in them, or
/// will never be: where it `is_fenced` by the coordinator's term, as it is; else the owners have taken their shards over.
pub(super) async fn stored(
    owners: &Owners,
    stream: &Arc<Object>,
    is_fenced: bool,
) -> Result<Vec<(u8, Rows)>> {
    if !is_fenced {
        extents(owners, stream).await?;
    }
    let rows = |log: LogId| async move {
        let (begin, end) = log.range(tag::GROUP);
        let mut rows = Vec::new();
        let mut next = Some(RangeQuery::new(begin, end).limit(PAGE));
        while let Some(query) = next {
            let page = owners.context().store.begin().get_range(query.clone(), Isolation::Snapshot).await?;
            next = query.after(&page);
            for (key, value) in page.pairs {
                rows.push((GroupPosition::group_of_key(&key)?, GroupPosition::decode(value)));
            }
        }
        Ok((log.shard, rows))
    };
    try_join_all(stream.logs.iter().map(|log| rows(*log))).await
}

/// When the messages at which groups stand came, by shard and offset.
pub(super) type Times = BTreeMap<(u8, u64), Timestamp>;

/// The times that `reports` tell. Of a compacted stream none: another message may be the first from there on.
pub(super) fn times(stream: &Object, reports: &[GroupReport]) -> Times {
    if stream.definition.last_value {
        return Times::new();
    }
    let shards = reports.iter().flat_map(|report| &report.shards);
    // Where retention was faster than a group, the time is that of a later message; from such a place nobody looks.
    shards.filter_map(|shard| Some(((shard.shard, shard.position), shard.oldest?))).collect()
}

/// Says in `reports` how far the groups are behind. What is in `known` is not read again.
pub(super) async fn measure(
    owners: &Owners,
    stream: &Arc<Object>,
    mut reports: Vec<GroupReport>,
    known: &Times,
) -> Result<Vec<GroupReport>> {
    if reports.is_empty() {
        return Ok(reports);
    }
    let extents = extents(owners, stream).await?;
    // Groups that are as far have the same message before them.
    let mut oldest: BTreeMap<(u8, u64), Option<Timestamp>> = BTreeMap::new();
    for shard in reports.iter_mut().flat_map(|report| &mut report.shards) {
        let Some(extent) = extents.get(usize::from(shard.shard)) else { continue };
        let from = shard.position.max(extent.start);
        (shard.end, shard.lag) = (extent.next.max(shard.position), extent.next.saturating_sub(from));
        if shard.lag > 0 {
            oldest.insert((shard.shard, from), None);
        }
    }
    let reads = oldest.into_keys().map(|(shard, from)| {
        let (log, extent) = (stream.logs.get(usize::from(shard)), extents.get(usize::from(shard)));
        async move {
            if let Some(at) = known.get(&(shard, from)) {
                return Ok(((shard, from), Some(*at)));
            }
            let (Some(log), Some(extent)) = (log, extent) else { return Ok(((shard, from), None)) };
            let at = time_of(owners, stream, log, (from, extent.next)).await?;
            Ok::<_, crate::Error>(((shard, from), at))
        }
    });
    let oldest: BTreeMap<_, _> = stream::iter(reads).buffer_unordered(READS_AT_ONCE).try_collect().await?;
    for shard in reports.iter_mut().flat_map(|report| &mut report.shards) {
        let start = extents.get(usize::from(shard.shard)).map_or(0, |extent| extent.start);
        shard.oldest = oldest.get(&(shard.shard, shard.position.max(start))).copied().flatten();
    }
    Ok(reports)
}

/// When the first message of `log` from an offset on came. Its payload is not read, nor what comes after it.
async fn time_of(
    owners: &Owners,
    stream: &Object,
    log: &LogId,
    range: (u64, u64),
) -> Result<Option<Timestamp>> {
    let (store, last_value) = (&owners.context().store, stream.definition.last_value);
    if last_value {
        let (records, _) = crate::stream::read_page(store, log, last_value, range, 1).await?;
        return Ok(records.first().map(|(_, record)| record.message.published_at));
    }
    for mut segment in read_segments(store, log, range.0, 1).await? {
        while let Some((offset, record)) = segment.next_record()? {
            if offset >= range.0 {
                return Ok(Some(record.message.published_at));
            }
        }
    }
    Ok(None)
}
