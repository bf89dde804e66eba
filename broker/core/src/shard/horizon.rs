//! The oldest segments of a stream, in its owner's memory: retention is decided on them with every batch, and the store
//! is asked only when they run out.
//!
//! The start of a stream moves exactly, with the batch that makes it move; what is below it is cleared later, many
//! segments at a time. So a stream costs no read and no write of its own while messages flow.

use std::collections::VecDeque;

use weir_env::clock::Timestamp;

use super::log::{IndexPlace, Trim};
use super::retention::Rule;
use crate::keyspace::log_state::LogState;
use crate::keyspace::time_index::IndexEntry;

/// Segments known at most; the others are read when these are cleared.
pub(super) const KNOWN_MAX: usize = 128;
/// Segments cleared at once, while messages flow.
const CLEARED_AT_ONCE: usize = 64;
/// Or bytes: large payloads are stored apart from their segments.
const BYTES_CLEARED_AT_ONCE: u64 = 4 * 1024 * 1024;
/// Segments cleared in one transaction at most, when there are that many too many: a store may remove key by key, and
/// all who commit wait for that.
pub(super) const CLEARED_MAX: usize = 2000;

/// The segments of a log that are stored, from the first on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Horizon {
    entries: VecDeque<IndexEntry>,
    /// There are more.
    is_partial: bool,
}

/// Where a log is to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Its new first offset.
    pub(crate) start: u64,
    /// The segment that has it.
    pub(crate) entry: IndexEntry,
    /// Segments before that one.
    pub(crate) below: usize,
    /// Bytes of them, with their payloads.
    bytes_below: u64,
}

impl Place {
    /// Whether there is enough to clear while messages flow.
    pub(super) fn is_worth_clearing(&self) -> bool {
        self.below >= CLEARED_AT_ONCE || self.bytes_below >= BYTES_CLEARED_AT_ONCE
    }
}

impl Horizon {
    /// The first segments of a log, in order.
    pub(super) fn new(entries: Vec<IndexEntry>, is_partial: bool) -> Self {
        Self { entries: entries.into(), is_partial }
    }

    /// These were appended.
    pub(super) fn append(&mut self, appended: &[IndexEntry]) {
        if !self.is_partial {
            let room = KNOWN_MAX.saturating_sub(self.entries.len());
            self.entries.extend(appended.iter().take(room));
            self.is_partial = appended.len() > room;
        }
    }

    /// These were appended, some of them before the others were read.
    pub(super) fn append_after(&mut self, appended: &[IndexEntry]) {
        let end = self.entries.back().map(|entry| entry.base);
        let new = appended.partition_point(|entry| end.is_some_and(|end| entry.base <= end));
        self.append(appended.get(new..).unwrap_or_default());
    }

    /// What begins below `base` is cleared.
    pub(super) fn clear(&mut self, base: u64) {
        let below = self.entries.partition_point(|entry| entry.base < base);
        self.entries.drain(..below);
        if below > 0 && self.entries.len() > KNOWN_MAX {
            self.entries.truncate(KNOWN_MAX);
            self.entries.shrink_to_fit();
            self.is_partial = true;
        }
    }

    /// Whether more has to be read, so that the log can be cut further.
    pub(super) fn is_short(&self) -> bool {
        self.is_partial && self.entries.len() <= CLEARED_AT_ONCE
    }

    /// Whether a log in `state` is to begin at the last segment that is known, or beyond.
    pub(super) fn is_exceeded(&self, state: &LogState, rule: &Rule) -> bool {
        self.is_partial
            && self.place(&[], state, rule).is_some_and(|place| place.below + 1 == self.entries.len())
    }

    /// Where a log in `state`, to which `appended` were just added, is to begin by `rule`.
    pub(super) fn place(&self, appended: &[IndexEntry], state: &LogState, rule: &Rule) -> Option<Place> {
        // What lies between is not known: what was appended does not come next.
        let appended = if self.is_partial { &[] } else { appended };
        let len = self.entries.len() + appended.len();
        let at = |n: usize| self.entries.get(n).or_else(|| appended.get(n - self.entries.len())).copied();
        let Rule { max_bytes, max_messages, keep_since } = rule;
        let over = |entry: &IndexEntry| {
            max_bytes.is_some_and(|max| state.bytes_appended.saturating_sub(entry.log_bytes_before) > max)
        };
        // What is in a segment came at one time, with its batch.
        let too_old = |entry: &IndexEntry| keep_since.is_some_and(|since| entry.first_ts <= since);
        let by_count = max_messages.map_or(0, |max| state.next.saturating_sub(max));
        let least = state.start.max(by_count.min(state.next));
        // The newest segment stays, however large it is; and the first that stays is known.
        let mut below = 0;
        while let (Some(entry), Some(next)) = (at(below), (below + 1 < len).then(|| at(below + 1)).flatten())
        {
            if !(over(&entry) || too_old(&entry) || next.base <= least) {
                break;
            }
            below += 1;
        }
        let mut entry = at(below)?;
        if below + 1 == len && !self.is_partial && keep_since.is_some_and(|since| state.last_ts <= since) {
            // Nothing stays: the log begins where the next segment will.
            below = len;
            entry = IndexEntry {
                first_ts: state.last_ts,
                base: state.next,
                log_bytes_before: state.bytes_appended,
            };
        }
        let bytes_below = entry.log_bytes_before.saturating_sub(at(0)?.log_bytes_before);
        Some(Place { start: least.max(entry.base), entry, below, bytes_below })
    }

    /// The cut that leaves a log in `state`, to which `appended` were just added, beginning at `place`; none if nothing is
    /// to be cleared and it does already.
    pub(super) fn trim(&self, appended: &[IndexEntry], place: &Place, state: &LogState) -> Option<Trim> {
        let first = self.entries.front().or(appended.first()).unwrap_or(&place.entry);
        let trim = Trim {
            start: place.start,
            from: IndexPlace::of(first),
            base: place.entry.base,
            first_ts: place.entry.first_ts,
            bytes_trimmed: place.entry.log_bytes_before,
            is_partial: false,
        };
        (place.below > 0 || place.start > state.start).then_some(trim)
    }

    /// Time of the first segment after `since`: age reaches it next.
    pub(super) fn ages_next(&self, since: Timestamp) -> Option<Timestamp> {
        self.entries.iter().map(|entry| entry.first_ts).find(|first| *first > since)
    }

    /// When the first record of the segment came that has `offset`, if that is known.
    pub(super) fn time_of(&self, offset: u64) -> Option<Timestamp> {
        let after = self.entries.partition_point(|entry| entry.base <= offset);
        self.entries.get(after.checked_sub(1)?).map(|entry| entry.first_ts)
    }

    /// The first segment.
    pub(super) fn first(&self) -> Option<IndexPlace> {
        self.entries.front().map(IndexPlace::of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments of 100 records and 1,000 bytes, one a second.
    fn entries(numbers: std::ops::Range<u64>) -> Vec<IndexEntry> {
        let entry = |n: u64| IndexEntry {
            first_ts: Timestamp::from_micros(n * 1_000_000),
            base: n * 100,
            log_bytes_before: n * 1000,
        };
        numbers.map(entry).collect()
    }

    fn rule(max_bytes: Option<u64>, max_messages: Option<u64>, since: Option<u64>) -> Rule {
        let keep_since = since.map(|s| Timestamp::from_micros(s * 1_000_000));
        Rule { max_bytes, max_messages, keep_since }
    }

    fn state() -> LogState {
        let last_ts = Timestamp::from_micros(9_000_000);
        LogState { next: 1000, bytes_appended: 10_000, last_ts, ..LogState::default() }
    }

    #[test]
    fn a_stream_begins_where_its_limits_say() {
        for (rule, expected) in [
            (rule(None, None, None), (0, 0)),
            (rule(Some(10_000), None, None), (0, 0)),
            (rule(Some(9_999), None, None), (100, 100)),
            (rule(Some(3_000), None, None), (700, 700)),
            (rule(Some(1), None, None), (900, 900)),
            (rule(None, Some(950), None), (50, 0)),
            (rule(None, Some(1), None), (999, 900)),
            (rule(None, None, Some(4)), (500, 500)),
            (rule(None, None, Some(8)), (900, 900)),
            (rule(None, None, Some(9)), (1000, 1000)),
            (rule(None, Some(1), Some(99)), (1000, 1000)),
            (rule(Some(9_000), Some(500), Some(2)), (500, 500)),
        ] {
            // Whichever of them have just been appended.
            for known in [0, 1, 5, 10] {
                let horizon = Horizon::new(entries(0..known), false);
                let place = horizon.place(&entries(known..10), &state(), &rule).unwrap();
                assert_eq!((place.start, place.entry.base), expected, "{rule:?}, {known} known");
                assert_eq!(place.below as u64 * 100, place.entry.base);
            }
        }
        assert_eq!(Horizon::default().place(&[], &LogState::default(), &rule(Some(1), None, None)), None);
    }

    #[test]
    fn what_is_not_known_is_not_cut() {
        let horizon = Horizon::new(entries(0..3), true);
        let place = horizon.place(&entries(9..10), &state(), &rule(Some(1), None, None)).unwrap();
        assert_eq!((place.start, place.below), (200, 2));
        let place = horizon.place(&[], &state(), &rule(None, Some(1), None)).unwrap();
        assert_eq!((place.start, place.below), (999, 2), "the start is exact all the same");
        let place = horizon.place(&[], &state(), &rule(None, None, Some(99))).unwrap();
        assert_eq!((place.start, place.below), (200, 2));
        assert!(horizon.is_exceeded(&state(), &rule(None, None, Some(99))));
        assert!(!horizon.is_exceeded(&state(), &rule(None, None, Some(0))));
    }

    #[test]
    fn segments_come_and_go() {
        let mut horizon = Horizon::default();
        horizon.append(&entries(0..10));
        horizon.clear(300);
        let rule = rule(Some(1), None, None);
        let place = horizon.place(&[], &state(), &rule).unwrap();
        assert_eq!((place.start, place.below), (900, 6));
        let trim = horizon.trim(&[], &place, &state()).unwrap();
        assert_eq!((trim.from.base, trim.base, trim.bytes_trimmed), (300, 900, 9_000));
        assert_eq!(
            horizon.ages_next(Timestamp::from_micros(4_000_001)).map(Timestamp::as_micros),
            Some(5_000_000)
        );
        horizon.clear(900);
        assert!(!horizon.is_short(), "there are no others");
        let state = LogState { start: 900, ..state() };
        let place = horizon.place(&[], &state, &rule).unwrap();
        assert_eq!(horizon.trim(&[], &place, &state), None);
        horizon.append(&entries(10..2000));
        assert_eq!((horizon.entries.len(), horizon.is_partial), (KNOWN_MAX, true));
        horizon.append(&entries(2000..2001));
        assert_eq!(horizon.entries.len(), KNOWN_MAX);
        assert!(!horizon.is_short());
        let base = horizon.entries[KNOWN_MAX - CLEARED_AT_ONCE].base;
        horizon.clear(base);
        assert!(horizon.is_short());
        // Many that go, and what is left of them.
        let mut horizon = Horizon::new(entries(0..1000), false);
        horizon.clear(100);
        assert_eq!((horizon.entries.len(), horizon.is_partial), (KNOWN_MAX, true));
        // Read again while others are appended.
        let mut read = Horizon::new(entries(0..5), false);
        read.append_after(&entries(3..7));
        assert_eq!(read.entries, entries(0..7));
    }
}
