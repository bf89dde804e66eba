//! Conflict detection: which keys were written when, over the last five seconds.
//!
//! Most reads and writes are of single keys, so the last write of each is in a hash map, and the keys of each batch lie
//! in order for reads of ranges. Written ranges cut the key space into intervals, each with the version of the last write
//! of a range in it; an interval reaches from its key in the map to the next one. Owned by the
//! [`Sequencer`](super::Sequencer).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use weir_env::seed::HashMap;

use super::{KeyRange, WriteSet};
use crate::Version;

/// Keys and ranges remembered at most, so that a burst of writes cannot take all memory (about 200 bytes each). Past
/// it the oldest are forgotten early, and transactions that old fail as too old.
pub(super) const RANGES_MAX: usize = 1_000_000;

#[derive(Debug)]
pub(super) struct Resolver {
    /// Last write of single keys.
    keys: HashMap<Bytes, Version>,
    ranges: Intervals,
    /// What was put into these two, in order of version.
    noted: VecDeque<Noted>,
    /// How many keys and ranges that is.
    noted_len: usize,
    /// Reads before this version can't be checked any more.
    oldest: Version,
    ranges_max: usize,
}

/// What one batch wrote, or some of it.
#[derive(Debug)]
struct Noted {
    version: Version,
    /// In order.
    keys: Vec<Bytes>,
    range: Option<KeyRange>,
}

/// Whether a transaction may commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Commit,
    Conflict,
    TooOld,
}

impl Resolver {
    /// Everything up to `oldest` counts as written long ago.
    pub(super) fn new(oldest: Version, ranges_max: usize) -> Self {
        let (keys, ranges) = (HashMap::default(), Intervals::default());
        Self { keys, ranges, noted: VecDeque::new(), noted_len: 0, oldest, ranges_max }
    }

    /// Whether any of `reads` was written after `read_version`, or is among the keys of `batch`, which are not noted yet.
    pub(super) fn check(&self, read_version: Version, reads: &[KeyRange], batch: &WriteSet) -> Verdict {
        let is_written = |range: &KeyRange| {
            if range.is_empty() {
                return false;
            }
            let is_written = match range.as_key() {
                Some(key) => {
                    batch.has_key(key) || self.keys.get(key).is_some_and(|version| *version > read_version)
                }
                None => batch.keys_in(range).next().is_some() || self.has_key_after(read_version, range),
            };
            is_written || self.ranges.written_after(read_version, range)
        };
        if reads.is_empty() {
            Verdict::Commit
        } else if read_version < self.oldest {
            Verdict::TooOld
        } else if reads.iter().any(is_written) {
            Verdict::Conflict
        } else {
            Verdict::Commit
        }
    }

    /// Whether a single key in `range` was written after `version`. Takes as long as there are batches since then.
    fn has_key_after(&self, version: Version, range: &KeyRange) -> bool {
        self.noted.iter().rev().take_while(|noted| noted.version > version).any(|Noted { keys, .. }| {
            let from = keys.partition_point(|key| *key < range.begin);
            keys.get(from).is_some_and(|key| *key < range.end)
        })
    }

    /// Notes a write of all keys of `batch` at `version`, which is not lower than any noted before. What it clears is to
    /// be noted range by range.
    pub(super) fn note_keys(&mut self, version: Version, batch: &WriteSet) {
        let keys: Vec<Bytes> = batch.keys().map(|(key, _)| key.clone()).collect();
        if keys.is_empty() {
            return;
        }
        self.noted_len += keys.len();
        self.keys.extend(keys.iter().map(|key| (key.clone(), version)));
        self.noted.push_back(Noted { version, keys, range: None });
    }

    /// Notes a write of `range` at `version`, which is not lower than any noted before.
    pub(super) fn note(&mut self, version: Version, range: KeyRange) {
        if range.is_empty() {
            return;
        }
        self.noted_len += 1;
        self.ranges.note(version, &range);
        self.noted.push_back(Noted { version, keys: Vec::new(), range: Some(range) });
    }

    /// Forgets writes up to `oldest`, and more if there are too many.
    pub(super) fn forget_before(&mut self, oldest: Version) {
        self.oldest = self.oldest.max(oldest);
        while let Some(noted) = self.noted.front()
            && (noted.version <= self.oldest || self.noted_len > self.ranges_max)
            && let Some(Noted { version, keys, range }) = self.noted.pop_front()
        {
            self.oldest = self.oldest.max(version);
            self.noted_len -= keys.len() + usize::from(range.is_some());
            for key in keys {
                if self.keys.get(&key) == Some(&version) {
                    self.keys.remove(&key);
                }
            }
            if let Some(KeyRange { begin, end }) = range {
                self.ranges.merge(self.oldest, &begin);
                self.ranges.merge(self.oldest, &end);
            }
        }
        if self.noted.is_empty() {
            // A burst is not remembered by the room it took.
            self.keys.shrink_to(0);
        }
    }
}

/// When ranges were written.
#[derive(Debug, Default)]
struct Intervals {
    /// Last write of a range over the keys from this one to the next. One long ago says no more than that.
    written: BTreeMap<Bytes, Version>,
}

impl Intervals {
    fn written_after(&self, version: Version, range: &KeyRange) -> bool {
        if self.written.is_empty() {
            return false;
        }
        let inside = (Bound::Excluded(&range.begin), Bound::Excluded(&range.end));
        self.at(&range.begin) > version || self.written.range::<Bytes, _>(inside).any(|(_, at)| *at > version)
    }

    /// The version of the interval that holds `key`.
    fn at(&self, key: &Bytes) -> Version {
        self.written.range::<Bytes, _>(..=key).next_back().map_or(Version(0), |(_, version)| *version)
    }

    fn note(&mut self, version: Version, range: &KeyRange) {
        let after = self.at(&range.end);
        let inside = (Bound::Included(range.begin.clone()), Bound::Excluded(range.end.clone()));
        self.written.extract_if(inside, |_, _| true).for_each(drop);
        self.written.insert(range.begin.clone(), version);
        self.written.entry(range.end.clone()).or_insert(after);
    }

    /// Removes the boundary at `key` if both sides of it are not after `oldest`. Whichever of the two is will come here
    /// for the same key when it expires.
    fn merge(&mut self, oldest: Version, key: &Bytes) {
        let before = (Bound::Unbounded, Bound::Excluded(key));
        let left = self.written.range::<Bytes, _>(before).next_back().map_or(Version(0), |(_, at)| *at);
        if left <= oldest && self.written.get(key).is_some_and(|right| *right <= oldest) {
            self.written.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(begin: u8, end: u8) -> KeyRange {
        KeyRange::copy(&[begin], &[end])
    }

    fn keys(keys: &[&[u8]]) -> WriteSet {
        let mut batch = WriteSet::default();
        keys.iter().for_each(|key| batch.set(Bytes::copy_from_slice(key), Bytes::new()));
        batch
    }

    /// Among what is noted.
    fn check(resolver: &Resolver, read_version: u64, reads: &[KeyRange]) -> Verdict {
        resolver.check(Version(read_version), reads, &WriteSet::default())
    }

    fn is_empty(resolver: &Resolver) -> bool {
        resolver.keys.is_empty()
            && resolver.ranges.written.is_empty()
            && resolver.noted.is_empty()
            && resolver.noted_len == 0
    }

    #[test]
    fn the_fence_key_alone_decides() {
        for is_range in [false, true] {
            let mut resolver = Resolver::new(Version(0), RANGES_MAX);
            if is_range {
                resolver.note(Version(5), KeyRange::key(b"owner"));
            } else {
                resolver.note_keys(Version(5), &keys(&[b"owner"]));
            }
            let owner = [KeyRange::key(b"owner")];
            assert_eq!(check(&resolver, 4, &owner), Verdict::Conflict);
            assert_eq!(check(&resolver, 5, &owner), Verdict::Commit);
            assert_eq!(check(&resolver, 4, &[KeyRange::key(b"ownes")]), Verdict::Commit);
            resolver.forget_before(Version(5));
            assert_eq!(check(&resolver, 4, &owner), Verdict::TooOld);
            assert_eq!(check(&resolver, 4, &[]), Verdict::Commit);
            assert!(is_empty(&resolver));
        }
    }

    #[test]
    fn the_batch_that_is_made_counts_before_it_is_noted() {
        let resolver = Resolver::new(Version(0), RANGES_MAX);
        let batch = keys(&[b"b", b"d"]);
        let check = |read: KeyRange| resolver.check(Version(9), &[read], &batch);
        assert_eq!(check(KeyRange::key(b"b")), Verdict::Conflict);
        assert_eq!(check(KeyRange::copy(b"a", b"b")), Verdict::Commit);
        assert_eq!(check(KeyRange::copy(b"a", b"c")), Verdict::Conflict);
        assert_eq!(check(KeyRange::copy(b"d", b"d")), Verdict::Commit);
    }

    #[test]
    fn a_burst_of_writes_shortens_the_memory_not_the_safety() {
        let mut resolver = Resolver::new(Version(0), 10);
        for n in 1..=100u8 {
            resolver.note_keys(Version(u64::from(n)), &keys(&[&[n]]));
            resolver.note(Version(u64::from(n)), KeyRange::key(&[n, 1]));
            resolver.forget_before(Version(0));
        }
        assert!(resolver.noted_len <= 10 && resolver.keys.len() <= 10, "{resolver:?}");
        assert!(resolver.ranges.written.len() <= 22, "{resolver:?}");
        assert_eq!(check(&resolver, 50, &[range(1, 2)]), Verdict::TooOld);
        assert_eq!(check(&resolver, 99, &[range(100, 101)]), Verdict::Conflict);
        // One batch with more than may be remembered.
        let many: Vec<[u8; 1]> = (0..20).map(|n| [n]).collect();
        resolver.note_keys(Version(200), &keys(&many.iter().map(|key| &key[..]).collect::<Vec<_>>()));
        resolver.forget_before(Version(0));
        assert!(is_empty(&resolver));
        assert_eq!(check(&resolver, 199, &[range(100, 101)]), Verdict::TooOld);
    }

    proptest! {
        #[test]
        fn agrees_with_a_version_per_key(
            writes in prop::collection::vec((0u8..30, 0u8..8), 1..60),
            reads in prop::collection::vec((0u8..30, 0u8..8, 0u64..60), 1..40),
            keep in 0u64..60,
        ) {
            let mut resolver = Resolver::new(Version(0), RANGES_MAX);
            let mut model = [0u64; 64];
            for (version, (begin, len)) in (1u64..).zip(&writes) {
                // None: single keys, two of them.
                let written = if *len == 0 { vec![*begin, begin + 9] } else { (*begin..begin + len).collect() };
                if *len == 0 {
                    resolver.note_keys(Version(version), &keys(&[&[*begin], &[begin + 9]]));
                } else {
                    resolver.note(Version(version), range(*begin, begin + len));
                }
                resolver.forget_before(Version(version.saturating_sub(keep)));
                written.into_iter().for_each(|key| model[usize::from(key)] = version);
            }
            for (begin, len, version) in reads {
                // None: a single key.
                let (read, len) = if len == 0 { (KeyRange::key(&[begin]), 1) } else { (range(begin, begin + len), len) };
                let newest = (begin..begin + len).map(|key| model[usize::from(key)]).max();
                let expected = if Version(version) < resolver.oldest {
                    Verdict::TooOld
                } else if newest > Some(version) {
                    Verdict::Conflict
                } else {
                    Verdict::Commit
                };
                prop_assert_eq!(check(&resolver, version, &[read]), expected);
            }
            resolver.forget_before(Version(1000));
            prop_assert!(is_empty(&resolver), "left: {:?}", resolver);
        }
    }
}
