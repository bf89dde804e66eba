//! Order within a key: which messages wait because another of their key is under way.
//!
//! Knows offsets, hashes of keys and the records it holds back; never consumers, time or what becomes of a
//! message. Its owner is the queue's shard, which asks before it hands out and says when a message has ended.
//!
//! Keys are told apart by a hash: two that share one take turns, which costs them parallelism and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use smallvec::SmallVec;
use weir_env::seed::HashMap;

use crate::keyspace::placement_hash;
use crate::keyspace::segment::Record;

/// Messages of one shard that may be held back behind others of their key before nothing new is handed out.
pub(super) const HELD_BACK_MAX: usize = 10_000;
/// Bytes of such messages.
pub(super) const HELD_BACK_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What order says of a message that could be handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Nothing of its key is in its way.
    Free,
    /// It has to wait; it is to be held back.
    Wait,
    /// It has to wait, and there is no place for it.
    Full,
}

/// The messages of one key that are not simply in the log.
#[derive(Debug, Default)]
struct Key {
    /// Handed out and not done: leased, or waiting to be delivered again. One, unless the queue began to keep
    /// order while more were handed out.
    under_way: SmallVec<[u64; 1]>,
    held_back: BTreeSet<u64>,
}

/// Which messages of a shard's keys are under way, and the ones behind them.
#[derive(Debug, Default)]
pub(super) struct KeyOrder {
    keys: HashMap<u64, Key>,
    /// The key of every message under way or held back.
    key_of: HashMap<u64, u64>,
    held_back: BTreeMap<u64, Arc<Record>>,
    held_back_bytes: usize,
}

impl KeyOrder {
    /// Whether the message at `offset` may be handed out now. A message that has a key and is none of the two
    /// kinds in memory here has not been handed out before; `is_leased` tells what consumers hold.
    pub(super) fn admit(&self, offset: u64, record: &Record, is_leased: impl Fn(u64) -> bool) -> Admission {
        let Some(hash) = hash_of(record) else { return Admission::Free };
        let Some(key) = self.keys.get(&hash) else { return Admission::Free };
        let is_known = key.under_way.contains(&offset);
        let mut others = key.under_way.iter().filter(|other| **other != offset);
        let is_free = match is_known {
            true => {
                others.all(|other| *other > offset && !is_leased(*other))
                    && key.held_back.first().is_none_or(|first| *first > offset)
            }
            false => key.under_way.is_empty() && key.held_back.is_empty(),
        };
        if is_free {
            Admission::Free
        } else if !is_known && self.is_full() {
            Admission::Full
        } else {
            Admission::Wait
        }
    }

    /// Whether no more may be held back.
    pub(super) fn is_full(&self) -> bool {
        self.held_back.len() >= HELD_BACK_MAX || self.held_back_bytes >= HELD_BACK_BYTES_MAX
    }

    /// The message at `offset` is under way from now on: those behind it in its key wait until it has ended.
    pub(super) fn start(&mut self, offset: u64, record: &Record) {
        let Some(hash) = hash_of(record) else { return };
        let key = self.keys.entry(hash).or_default();
        if !key.under_way.contains(&offset) {
            key.under_way.push(offset);
            self.key_of.insert(offset, hash);
        }
    }

    /// Holds a message back until nothing of its key is under way. Returns one that may go instead, if that is
    /// so already.
    pub(super) fn hold_back(&mut self, offset: u64, record: Arc<Record>) -> Option<(u64, Arc<Record>)> {
        let hash = hash_of(&record)?;
        self.held_back_bytes += record.message.size();
        self.held_back.insert(offset, record);
        self.key_of.insert(offset, hash);
        let key = self.keys.entry(hash).or_default();
        key.under_way.retain(|other| *other != offset);
        key.held_back.insert(offset);
        self.next_of(hash)
    }

    /// The message at `offset` has ended. Returns the next of its key, which is under way from now on.
    pub(super) fn end(&mut self, offset: u64) -> Option<(u64, Arc<Record>)> {
        let hash = self.key_of.remove(&offset)?;
        let key = self.keys.get_mut(&hash)?;
        key.under_way.retain(|other| *other != offset);
        if key.held_back.remove(&offset) {
            self.take(offset);
        }
        self.next_of(hash)
    }

    /// The first message of a key that waits although nothing of the key is under way any more.
    fn next_of(&mut self, hash: u64) -> Option<(u64, Arc<Record>)> {
        let key = self.keys.get_mut(&hash)?;
        if !key.under_way.is_empty() {
            return None;
        }
        let Some(next) = key.held_back.pop_first() else {
            self.keys.remove(&hash);
            return None;
        };
        key.under_way.push(next);
        Some((next, self.take(next)?))
    }

    /// The first message that is held back.
    pub(super) fn first_held_back(&self) -> Option<u64> {
        self.held_back.keys().next().copied()
    }

    /// Takes a message that is held back away. Others of its key go on waiting for what is under way.
    pub(super) fn take_held_back(&mut self, offset: u64) -> Option<Arc<Record>> {
        let record = self.take(offset)?;
        let hash = self.key_of.remove(&offset)?;
        self.keys.get_mut(&hash)?.held_back.remove(&offset);
        Some(record)
    }

    fn take(&mut self, offset: u64) -> Option<Arc<Record>> {
        let record = self.held_back.remove(&offset)?;
        self.held_back_bytes = self.held_back_bytes.saturating_sub(record.message.size());
        Some(record)
    }

    /// A message that is held back.
    pub(super) fn held_back(&self, offset: u64) -> Option<&Arc<Record>> {
        self.held_back.get(&offset)
    }

    /// Forgets all keys and gives back what was held back.
    pub(super) fn clear(&mut self) -> BTreeMap<u64, Arc<Record>> {
        std::mem::take(self).held_back
    }
}

fn hash_of(record: &Record) -> Option<u64> {
    record.key_bytes().map(placement_hash)
}
