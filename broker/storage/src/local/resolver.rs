//! Conflict detection: which keys were written when, over the last five seconds.
//!
//! The key space is cut into intervals, each with the version of the last write in it; an interval reaches
//! from its key in the map to the next one. Owned by the [`Sequencer`](super::Sequencer).

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;

use super::KeyRange;
use crate::Version;

/// Ranges remembered at most, so that a burst of writes cannot take all memory (about 200 bytes each). Past
/// it the oldest are forgotten early, and transactions that old fail as too old.
pub(super) const RANGES_MAX: usize = 1_000_000;

#[derive(Debug)]
pub(super) struct Resolver {
    /// Last write of the keys from this one to the next. A version up to `oldest` says no more than "long ago".
    written: BTreeMap<Bytes, Version>,
    /// What was put into `written`, in order of version.
    expiry: VecDeque<(Version, KeyRange)>,
    /// Reads before this version can't be checked any more.
    oldest: Version,
    ranges_max: usize,
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
    pub(super) const fn new(oldest: Version, ranges_max: usize) -> Self {
        Self { written: BTreeMap::new(), expiry: VecDeque::new(), oldest, ranges_max }
    }

    /// Whether any of `reads` was written after `read_version`.
    pub(super) fn check(&self, read_version: Version, reads: &[KeyRange]) -> Verdict {
        if reads.is_empty() {
            Verdict::Commit
        } else if read_version < self.oldest {
            Verdict::TooOld
        } else if reads.iter().any(|range| self.written_after(read_version, range)) {
            Verdict::Conflict
        } else {
            Verdict::Commit
        }
    }

    fn written_after(&self, version: Version, range: &KeyRange) -> bool {
        let inside = (Bound::Excluded(&range.begin), Bound::Excluded(&range.end));
        self.at(&range.begin) > version || self.written.range::<Bytes, _>(inside).any(|(_, at)| *at > version)
    }

    /// The version of the interval that holds `key`.
    fn at(&self, key: &Bytes) -> Version {
        self.written.range::<Bytes, _>(..=key).next_back().map_or(Version(0), |(_, version)| *version)
    }

    /// Notes a write of `range` at `version`, which is not lower than any noted before.
    pub(super) fn note(&mut self, version: Version, range: KeyRange) {
        if range.is_empty() {
            return;
        }
        let after = self.at(&range.end);
        let inside = (Bound::Included(range.begin.clone()), Bound::Excluded(range.end.clone()));
        self.written.extract_if(inside, |_, _| true).for_each(drop);
        self.written.insert(range.begin.clone(), version);
        self.written.entry(range.end.clone()).or_insert(after);
        self.expiry.push_back((version, range));
    }

    /// Forgets writes up to `oldest`, and more if there are too many.
    pub(super) fn forget_before(&mut self, oldest: Version) {
        self.oldest = self.oldest.max(oldest);
        while let Some((version, range)) = self.expiry.pop_front() {
            if version > self.oldest && self.expiry.len() < self.ranges_max {
                self.expiry.push_front((version, range));
                break;
            }
            self.oldest = self.oldest.max(version);
            self.merge(&range.begin);
            self.merge(&range.end);
        }
    }

    /// Removes the boundary at `key` if both sides of it are forgotten. Whichever of the two is not will
    /// come here for the same key when it expires.
    fn merge(&mut self, key: &Bytes) {
        let before = (Bound::Unbounded, Bound::Excluded(key));
        let left = self.written.range::<Bytes, _>(before).next_back().map_or(Version(0), |(_, at)| *at);
        if left <= self.oldest && self.written.get(key).is_some_and(|right| *right <= self.oldest) {
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

    #[test]
    fn the_fence_key_alone_decides() {
        let mut resolver = Resolver::new(Version(0), RANGES_MAX);
        resolver.note(Version(5), KeyRange::key(b"owner"));
        let owner = [KeyRange::key(b"owner")];
        assert_eq!(resolver.check(Version(4), &owner), Verdict::Conflict);
        assert_eq!(resolver.check(Version(5), &owner), Verdict::Commit);
        assert_eq!(resolver.check(Version(4), &[KeyRange::key(b"ownes")]), Verdict::Commit);
        resolver.forget_before(Version(5));
        assert_eq!(resolver.check(Version(4), &owner), Verdict::TooOld);
        assert_eq!(resolver.check(Version(4), &[]), Verdict::Commit);
        assert!(resolver.written.is_empty());
    }

    #[test]
    fn a_burst_of_writes_shortens_the_memory_not_the_safety() {
        let mut resolver = Resolver::new(Version(0), 10);
        for n in 1..=100u8 {
            resolver.note(Version(u64::from(n)), KeyRange::key(&[n]));
            resolver.forget_before(Version(0));
        }
        assert!(resolver.written.len() <= 22, "{} boundaries", resolver.written.len());
        assert_eq!(resolver.check(Version(50), &[range(1, 2)]), Verdict::TooOld);
        assert_eq!(resolver.check(Version(99), &[range(100, 101)]), Verdict::Conflict);
    }

    proptest! {
        #[test]
        fn agrees_with_a_version_per_key(
            writes in prop::collection::vec((0u8..30, 1u8..8), 1..60),
            reads in prop::collection::vec((0u8..30, 1u8..8, 0u64..60), 1..40),
            keep in 0u64..60,
        ) {
            let mut resolver = Resolver::new(Version(0), RANGES_MAX);
            let mut model = [0u64; 64];
            for (version, (begin, len)) in (1u64..).zip(&writes) {
                resolver.note(Version(version), range(*begin, begin + len));
                resolver.forget_before(Version(version.saturating_sub(keep)));
                (*begin..begin + len).for_each(|key| model[usize::from(key)] = version);
            }
            for (begin, len, version) in reads {
                let reads = [range(begin, begin + len)];
                let newest = (begin..begin + len).map(|key| model[usize::from(key)]).max();
                let expected = if Version(version) < resolver.oldest {
                    Verdict::TooOld
                } else if newest > Some(version) {
                    Verdict::Conflict
                } else {
                    Verdict::Commit
                };
                prop_assert_eq!(resolver.check(Version(version), &reads), expected);
            }
            resolver.forget_before(Version(1000));
            prop_assert!(resolver.written.is_empty(), "left: {:?}", resolver.written);
        }
    }
}
