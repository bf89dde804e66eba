//! Retention: how far a log can be cut, worked out from its time index.

use weir_env::clock::Timestamp;
use weir_storage::{Isolation, RangeQuery};

use super::Context;
use super::log::{IndexPlace, Trim};
use crate::definition::Definition;
use crate::error::Result;
use crate::keyspace::log_state::LogState;
use crate::keyspace::time_index::{self, IndexEntry};
use crate::keyspace::{LogId, tag};

/// Index entries looked at in one go: about 64 MB of segments.
const PAGE: usize = 1000;

/// Up to where a log may be cut.
#[derive(Clone, Debug)]
pub(crate) enum Rule {
    /// Below a queue's floor nothing is needed.
    Floor(u64),
    /// A stream keeps what its limits allow.
    Stream { max_bytes: Option<u64>, max_messages: Option<u64>, keep_since: Option<Timestamp> },
}

impl Rule {
    /// The rule of one shard of a stream at `now`.
    pub(crate) fn of_stream(definition: &Definition, shard: u8, now: Timestamp) -> Self {
        let retention = &definition.retention;
        let age = retention.max_age_ms.saturating_mul(1000);
        let since = now.as_micros().saturating_sub(age);
        Self::Stream {
            max_bytes: definition.share(retention.max_bytes, shard),
            max_messages: definition.share(retention.max_messages, shard),
            keep_since: (age != 0).then_some(Timestamp::from_micros(since)),
        }
    }
}

/// What a look at a log found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cut {
    /// The cut that the rule asks for, if it is beyond the last one.
    pub(crate) trim: Option<Trim>,
    /// Time of the first segment that age will reach next.
    pub(crate) ages_next: Option<Timestamp>,
    /// Bytes of the log from the segment of a queue's floor on.
    pub(crate) above_floor: u64,
    /// Where the time index begins, unless it is empty.
    pub(crate) first: Option<IndexPlace>,
}

/// The cut of `log` that `rule` asks for; the time index has nothing before `first`.
pub(crate) async fn find_cut(
    context: &Context,
    log: &LogId,
    state: &LogState,
    rule: &Rule,
    first: IndexPlace,
) -> Result<Cut> {
    let mut tx = context.store.begin();
    let begin = time_index::key(log, first.first_ts, first.base);
    let (_, end) = log.range(tag::TIME_INDEX);
    let query =
        RangeQuery { begin: begin.into(), end: end.into(), limit: PAGE, target_bytes: 0, reverse: false };
    let page = tx.get_range(query, Isolation::Snapshot).await?;
    let mut entries = Vec::with_capacity(page.pairs.len());
    for (key, value) in page.pairs {
        entries.push(IndexEntry::decode(&key, value)?);
    }
    let ages_next = match rule {
        Rule::Stream { keep_since: Some(since), .. } => {
            entries.iter().map(|entry| entry.first_ts).find(|first| first > since)
        }
        Rule::Stream { keep_since: None, .. } | Rule::Floor(_) => None,
    };
    let above_floor = match rule {
        Rule::Floor(floor) => entries.iter().rfind(|entry| entry.base <= *floor),
        Rule::Stream { .. } => None,
    };
    let above_floor =
        above_floor.map_or(0, |entry| state.bytes_appended.saturating_sub(entry.log_bytes_before));
    let mut trim = cut(&entries, state, rule);
    if let (Some(trim), Some(last)) = (&mut trim, entries.last()) {
        trim.is_partial = page.more && trim.base == last.base;
    }
    Ok(Cut { trim, ages_next, above_floor, first: entries.first().map(IndexPlace::of) })
}

fn cut(entries: &[IndexEntry], state: &LogState, rule: &Rule) -> Option<Trim> {
    let (start, at) = match rule {
        Rule::Floor(floor) => (*floor, entries.iter().rposition(|entry| entry.base <= *floor)),
        Rule::Stream { max_bytes, max_messages, keep_since } => {
            let too_old = |entry: &IndexEntry| keep_since.is_some_and(|since| entry.first_ts <= since);
            let by_age = entries.iter().rposition(too_old).unwrap_or(0);
            let over = |entry: &IndexEntry| {
                max_bytes.is_some_and(|max| state.bytes_appended.saturating_sub(entry.log_bytes_before) > max)
            };
            // The newest segment stays, however large it is.
            let by_bytes =
                entries.iter().position(|entry| !over(entry)).unwrap_or(entries.len().saturating_sub(1));
            let by_count = max_messages.map_or(0, |max| state.next.saturating_sub(max));
            let segment = by_age.max(by_bytes);
            let start = entries.get(segment).map_or(0, |entry| entry.base).max(by_count);
            (start, entries.iter().rposition(|entry| entry.base <= start))
        }
    };
    let entry = entries.get(at?)?;
    let start = start.max(state.start).min(state.next);
    let from = entries.first().map(IndexPlace::of).unwrap_or_default();
    let trim = Trim {
        start,
        from,
        base: entry.base,
        first_ts: entry.first_ts,
        bytes_trimmed: entry.log_bytes_before,
        is_partial: false,
    };
    let moves = trim.base > from.base;
    let stream_moves = matches!(rule, Rule::Stream { .. }) && trim.start > state.start;
    (moves || stream_moves).then_some(trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ten segments of 100 records and 1,000 bytes, one a second.
    fn entries() -> Vec<IndexEntry> {
        let entry = |n: u64| IndexEntry {
            first_ts: Timestamp::from_micros(n * 1_000_000),
            base: n * 100,
            log_bytes_before: n * 1000,
        };
        (0..10).map(entry).collect()
    }

    fn check(rule: Rule, expected: Option<(u64, u64)>) {
        let state = LogState { next: 1000, bytes_appended: 10_000, ..LogState::default() };
        let trim = cut(&entries(), &state, &rule);
        assert_eq!(trim.map(|trim| (trim.start, trim.base)), expected, "{rule:?}");
        if let Some(trim) = trim {
            assert_eq!(trim.bytes_trimmed, trim.base * 10);
        }
    }

    fn stream(max_bytes: Option<u64>, max_messages: Option<u64>, since: Option<u64>) -> Rule {
        let keep_since = since.map(|s| Timestamp::from_micros(s * 1_000_000));
        Rule::Stream { max_bytes, max_messages, keep_since }
    }

    #[test]
    fn cuts() {
        check(Rule::Floor(99), None);
        check(Rule::Floor(100), Some((100, 100)));
        check(Rule::Floor(250), Some((250, 200)));
        check(Rule::Floor(1000), Some((1000, 900)));
        check(stream(None, None, None), None);
        check(stream(Some(10_000), None, None), None);
        check(stream(Some(9_999), None, None), Some((100, 100)));
        check(stream(Some(3_000), None, None), Some((700, 700)));
        check(stream(Some(1), None, None), Some((900, 900)));
        check(stream(None, Some(950), None), Some((50, 0)));
        check(stream(None, Some(1), None), Some((999, 900)));
        check(stream(None, None, Some(4)), Some((400, 400)));
        check(stream(Some(9_000), Some(500), Some(2)), Some((500, 500)));
    }
}
