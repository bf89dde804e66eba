//! What a transaction keeps to itself until its commit: its writes, what it conflicts on, how large it is, and
//! what its own reads see of all that. For whoever writes an engine: with this, own writes, conflict ranges and
//! sizes are the same on each.
//!
//! Knows nothing of versions, nor where bytes live. Owned by one transaction.

mod page;
mod write_set;

use std::collections::BTreeSet;

use bytes::Bytes;

pub use page::PageMerge;
pub use write_set::WriteSet;

use crate::limits::KEY_BYTES_MAX;
use crate::{ConflictKind, Isolation, RangePage, RangeQuery, TransactionSize, Versionstamp, key_after};

/// Length of a versionstamp in bytes.
pub const STAMP_BYTES: usize = 10;

/// Keys from `begin` (inclusive) to `end` (exclusive).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// The first key.
    pub begin: Bytes,
    /// The key behind the last one.
    pub end: Bytes,
}

impl KeyRange {
    /// The keys from `begin` to `end`.
    pub fn new(begin: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self { begin: begin.into(), end: end.into() }
    }

    /// The keys from `begin` to `end`, copied.
    #[must_use]
    pub fn copy(begin: &[u8], end: &[u8]) -> Self {
        Self { begin: Bytes::copy_from_slice(begin), end: Bytes::copy_from_slice(end) }
    }

    /// The range that holds `key` alone.
    #[must_use]
    pub fn key(key: &[u8]) -> Self {
        let end = key_after(key);
        Self { begin: end.slice(..key.len()), end }
    }

    /// The key, if it is a range that holds one alone.
    pub(crate) fn as_key(&self) -> Option<&Bytes> {
        let is_key = self.end.strip_prefix(&self.begin[..]) == Some(&[0]);
        is_key.then_some(&self.begin)
    }

    /// Whether no key is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.begin >= self.end
    }
}

/// One write of a transaction.
#[derive(Clone, Debug)]
pub enum Mutation {
    /// Writes a value at a key.
    Set(Bytes, Bytes),
    /// Removes a key.
    Clear(Bytes),
    /// Removes a range.
    ClearRange(KeyRange),
    /// Writes a value at a key that holds the versionstamp.
    StampedKey {
        /// The key with ten bytes to replace.
        key: Vec<u8>,
        /// Where these are.
        offset: usize,
        /// The value.
        value: Bytes,
    },
    /// Writes a value that holds the versionstamp.
    StampedValue {
        /// The key.
        key: Bytes,
        /// The value with ten bytes to replace.
        value: Vec<u8>,
        /// Where these are.
        offset: usize,
    },
}

impl Mutation {
    /// Does what can be done before the versionstamp is known.
    pub(crate) fn apply(self, writes: &mut WriteSet) {
        match self {
            Self::Set(key, value) => writes.set(key, value),
            Self::Clear(key) => writes.clear(key),
            Self::ClearRange(range) => writes.clear_range(range),
            Self::StampedKey { .. } | Self::StampedValue { .. } => {}
        }
    }

    pub(crate) fn apply_stamped(self, stamp: Versionstamp, writes: &mut WriteSet) {
        match self {
            Self::StampedKey { mut key, offset, value } => {
                key[offset..offset + stamp.0.len()].copy_from_slice(&stamp.0);
                writes.set(key.into(), value);
            }
            Self::StampedValue { key, mut value, offset } => {
                value[offset..offset + stamp.0.len()].copy_from_slice(&stamp.0);
                writes.set(key, value.into());
            }
            Self::Set(..) | Self::Clear(_) | Self::ClearRange(_) => self.apply(writes),
        }
    }

    /// Bytes of keys and values.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Set(key, value) => key.len() + value.len(),
            Self::Clear(key) => key.len(),
            Self::ClearRange(range) => range.begin.len() + range.end.len(),
            Self::StampedKey { key, value, .. } => key.len() + value.len(),
            Self::StampedValue { key, value, .. } => key.len() + value.len(),
        }
    }
}

/// What a transaction has done so far.
#[derive(Debug, Default)]
pub struct Pending {
    /// What counts against the limits.
    pub size: TransactionSize,
    /// What must not have been written since the read version.
    pub reads: Vec<KeyRange>,
    /// What counts as written although it is not.
    pub write_conflicts: Vec<KeyRange>,
    /// The writes without a versionstamp, as they stand.
    pub writes: WriteSet,
    /// Everything from the first versionstamped write on, in order, to be done after `writes`: only the commit can
    /// say which keys it touches. What of it is not versionstamped is in `writes` too.
    pub stamped: Vec<Mutation>,
}

impl Pending {
    /// Whether a commit would change nothing, not even for others' conflicts.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.writes.is_empty() && self.stamped.is_empty() && self.write_conflicts.is_empty()
    }

    /// What the transaction itself has made of `key`: nothing, cleared, or a value.
    #[must_use]
    pub fn lookup(&self, key: &[u8]) -> Option<Option<&Bytes>> {
        self.writes.lookup(key)
    }

    /// Whether a versionstamp will be in the value of `key`, so that the value can't be told before the commit.
    #[must_use]
    pub fn stamps_value_of(&self, key: &[u8]) -> bool {
        self.stamped
            .iter()
            .any(|mutation| matches!(mutation, Mutation::StampedValue { key: stamped, .. } if stamped == key))
    }

    /// All writes in an order to do them in, for an engine that does them elsewhere. None counts twice against the
    /// size, as it would if what was written after a versionstamped write were done before it too.
    #[must_use]
    pub fn mutations(&self) -> Vec<Mutation> {
        let again = Again::of(&self.stamped);
        let cleared = self.writes.cleared().filter(|range| !again.clears(range)).map(Mutation::ClearRange);
        let keys = self.writes.keys().filter(|(key, _)| !again.keys.contains(key));
        let keys = keys.map(|(key, value)| match value {
            Some(value) => Mutation::Set(key.clone(), value.clone()),
            None => Mutation::Clear(key.clone()),
        });
        cleared.chain(keys).chain(self.stamped.iter().cloned()).collect()
    }

    /// Notes that `key` was read from the store.
    pub fn note_get(&mut self, key: &[u8], isolation: Isolation) {
        if isolation == Isolation::Serializable {
            self.note_read(KeyRange::key(key));
        }
    }

    /// Notes that `query` gave `page`.
    pub fn note_page(&mut self, query: &RangeQuery, page: &RangePage, isolation: Isolation) {
        if isolation == Isolation::Snapshot {
            return;
        }
        let (begin, end) = (query.begin.clone(), query.end.clone());
        self.note_read(match page.pairs.last().filter(|_| page.more) {
            None => KeyRange { begin, end },
            Some((last, _)) if query.reverse => KeyRange { begin: last.clone(), end },
            Some((last, _)) => KeyRange { begin, end: key_after(last) },
        });
    }

    fn note_read(&mut self, range: KeyRange) {
        self.size.add_range(range.begin.len(), range.end.len());
        self.reads.push(range);
    }

    fn mutate(&mut self, mutation: Mutation) {
        if !self.stamped.is_empty() {
            self.stamped.push(mutation.clone());
        }
        mutation.apply(&mut self.writes);
    }

    /// See [`Transaction::set`](crate::Transaction::set).
    pub fn set(&mut self, key: &[u8], value: &[u8]) {
        self.size.add_write(key.len(), value.len());
        self.mutate(Mutation::Set(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
    }

    /// See [`Transaction::clear`](crate::Transaction::clear).
    pub fn clear(&mut self, key: &[u8]) {
        // A key over the limit can't exist.
        if key.len() <= KEY_BYTES_MAX {
            self.size.add_write(key.len(), 0);
            self.mutate(Mutation::Clear(Bytes::copy_from_slice(key)));
        }
    }

    /// See [`Transaction::clear_range`](crate::Transaction::clear_range).
    pub fn clear_range(&mut self, begin: &[u8], end: &[u8]) {
        let range = KeyRange::copy(begin, end);
        if !range.is_empty() {
            self.size.add_range(begin.len(), end.len());
            self.mutate(Mutation::ClearRange(range));
        }
    }

    /// See [`Transaction::set_versionstamped_key`](crate::Transaction::set_versionstamped_key).
    ///
    /// # Panics
    /// If `offset + 10` is beyond the key.
    pub fn set_versionstamped_key(&mut self, key: &[u8], offset: usize, value: &[u8]) {
        assert!(offset + STAMP_BYTES <= key.len(), "the versionstamp lies beyond the key");
        self.size.add_write(key.len(), value.len());
        let value = Bytes::copy_from_slice(value);
        self.stamped.push(Mutation::StampedKey { key: key.to_vec(), offset, value });
    }

    /// See [`Transaction::set_versionstamped_value`](crate::Transaction::set_versionstamped_value).
    ///
    /// # Panics
    /// If `offset + 10` is beyond the value.
    pub fn set_versionstamped_value(&mut self, key: &[u8], value: &[u8], offset: usize) {
        assert!(offset + STAMP_BYTES <= value.len(), "the versionstamp lies beyond the value");
        self.size.add_write(key.len(), value.len());
        let key = Bytes::copy_from_slice(key);
        self.stamped.push(Mutation::StampedValue { key, value: value.to_vec(), offset });
    }

    /// See [`Transaction::add_conflict_range`](crate::Transaction::add_conflict_range).
    pub fn add_conflict_range(&mut self, begin: &[u8], end: &[u8], kind: ConflictKind) {
        let range = KeyRange::copy(begin, end);
        if range.is_empty() {
            return;
        }
        match kind {
            ConflictKind::Read => self.note_read(range),
            ConflictKind::Write => {
                self.size.add_range(begin.len(), end.len());
                self.write_conflicts.push(range);
            }
        }
    }
}

/// What is written in the order of its calls, and so need not be written before.
struct Again<'a> {
    keys: BTreeSet<&'a Bytes>,
    ranges: BTreeSet<(&'a Bytes, &'a Bytes)>,
}

impl<'a> Again<'a> {
    fn of(mutations: &'a [Mutation]) -> Self {
        let mut again = Self { keys: BTreeSet::new(), ranges: BTreeSet::new() };
        for mutation in mutations {
            match mutation {
                Mutation::Set(key, _) | Mutation::Clear(key) => {
                    again.keys.insert(key);
                }
                Mutation::ClearRange(range) => {
                    again.ranges.insert((&range.begin, &range.end));
                }
                Mutation::StampedKey { .. } | Mutation::StampedValue { .. } => {}
            }
        }
        again
    }

    fn clears(&self, range: &KeyRange) -> bool {
        self.ranges.contains(&(&range.begin, &range.end))
    }
}
