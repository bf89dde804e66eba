//! Retention: how far a log can be cut, worked out from its time index. What the limits of a stream mean for it is
//! decided in [`super::horizon`].

use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery};

use super::Context;
use super::horizon::{CLEARED_MAX, Horizon, KNOWN_MAX};
use super::log::{IndexPlace, Trim};
use crate::definition::Definition;
use crate::error::Result;
use crate::keyspace::log_state::LogState;
use crate::keyspace::time_index::{self, IndexEntry};
use crate::keyspace::{LogId, tag};

/// Index entries looked at in one go: about 64 MB of segments.
pub(super) const PAGE: usize = 1000;

/// What the limits of a stream let one of its shards keep.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(super) max_bytes: Option<u64>,
    pub(super) max_messages: Option<u64>,
    pub(super) keep_since: Option<Timestamp>,
}

impl Rule {
    /// The rule of one shard of a stream at `now`.
    pub(crate) fn of_stream(definition: &Definition, shard: u8, now: Timestamp) -> Self {
        let retention = &definition.retention;
        let age = retention.max_age_ms.saturating_mul(1000);
        let since = now.as_micros().saturating_sub(age);
        Self {
            max_bytes: definition.share(retention.max_bytes, shard),
            max_messages: definition.share(retention.max_messages, shard),
            keep_since: (age != 0).then_some(Timestamp::from_micros(since)),
        }
    }
}

/// What a look at the log of a queue found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cut {
    /// The cut up to the queue's floor, if there is anything to cut.
    pub(crate) trim: Option<Trim>,
    /// Bytes of the log from the segment of the floor on.
    pub(crate) above_floor: u64,
    /// Where the time index begins, unless it is empty.
    pub(crate) first: Option<IndexPlace>,
}

/// The cut of `log` below `floor`; the time index has nothing before `first`.
pub(crate) async fn find_cut(
    context: &Context,
    log: &LogId,
    state: &LogState,
    floor: u64,
    first: IndexPlace,
) -> Result<Cut> {
    let (entries, more) = read_index(context, log, first, PAGE).await?;
    let at_floor = entries.iter().rfind(|entry| entry.base <= floor);
    let above_floor = at_floor.map_or(0, |entry| state.bytes_appended.saturating_sub(entry.log_bytes_before));
    let mut trim = cut(&entries, state, floor);
    if let (Some(trim), Some(last)) = (&mut trim, entries.last()) {
        trim.is_partial = more && trim.base == last.base;
    }
    Ok(Cut { trim, above_floor, first: entries.first().map(IndexPlace::of) })
}

/// The oldest segments of `log`, of which the time index has none before `first`; many of them if `rule` removes as
/// many.
pub(crate) async fn read_horizon(
    context: &Context,
    log: &LogId,
    state: &LogState,
    rule: &Rule,
    first: IndexPlace,
) -> Result<Horizon> {
    let (entries, more) = read_index(context, log, first, KNOWN_MAX).await?;
    let horizon = Horizon::new(entries, more);
    if !horizon.is_exceeded(state, rule) {
        return Ok(horizon);
    }
    let (entries, more) = read_index(context, log, first, CLEARED_MAX).await?;
    Ok(Horizon::new(entries, more))
}

/// Entries of the time index of `log` from `first` on, at most `limit`, and whether there are more.
pub(super) async fn read_index(
    context: &Context,
    log: &LogId,
    first: IndexPlace,
    limit: usize,
) -> Result<(Vec<IndexEntry>, bool)> {
    let mut tx = context.store.begin();
    let begin = time_index::key(log, first.first_ts, first.base);
    let (_, end) = log.range(tag::TIME_INDEX);
    let query = RangeQuery { begin: begin.into(), end: end.into(), limit, target_bytes: 0, reverse: false };
    let page = tx.get_range(query, Isolation::Snapshot).await?;
    let mut entries = Vec::with_capacity(page.pairs.len());
    for (key, value) in page.pairs {
        entries.push(IndexEntry::decode(&key, value)?);
    }
    Ok((entries, page.more))
}

fn cut(entries: &[IndexEntry], state: &LogState, floor: u64) -> Option<Trim> {
    let entry = entries.iter().rfind(|entry| entry.base <= floor)?;
    let from = entries.first().map(IndexPlace::of).unwrap_or_default();
    let trim = Trim {
        start: floor.max(state.start).min(state.next),
        from,
        base: entry.base,
        first_ts: entry.first_ts,
        bytes_trimmed: entry.log_bytes_before,
        is_partial: false,
    };
    (trim.base > from.base).then_some(trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_cut_below_its_floor() {
        let entry = |n: u64| IndexEntry {
            first_ts: Timestamp::from_micros(n * 1_000_000),
            base: n * 100,
            log_bytes_before: n * 1000,
        };
        let entries: Vec<IndexEntry> = (0..10).map(entry).collect();
        let state = LogState { next: 1000, bytes_appended: 10_000, ..LogState::default() };
        for (floor, expected) in
            [(99, None), (100, Some((100, 100))), (250, Some((250, 200))), (1000, Some((1000, 900)))]
        {
            let trim = cut(&entries, &state, floor);
            assert_eq!(trim.map(|trim| (trim.start, trim.base)), expected, "{floor}");
            if let Some(trim) = trim {
                assert_eq!(trim.bytes_trimmed, trim.base * 10);
            }
        }
    }
}
