//! Last-value queues: of each key only the newest message is kept that nobody has consumed.
//!
//! An append ends the older message of its key in its own transaction. What is in flight is left to its consumer: it is
//! marked, and ends as replaced when it comes back unacknowledged. Messages without a key replace nothing. Knows
//! keys and offsets, no payloads; the owner reads them again when it restores a shard. Bounds: [`KEYS_MAX`] keys and
//! [`KEY_BYTES_MAX`], beyond which a message with a new key is refused.

use std::collections::BTreeMap;

use bytes::Bytes;
use weir_env::seed::HashMap;

use super::shard::{DirtyQueue, QueueShard};
use super::{End, Evicted};
use crate::keyspace::segment::Record;

/// Keys of one shard with a message that is not done.
pub(super) const KEYS_MAX: usize = 50_000;
/// Bytes of those keys.
pub(super) const KEY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Messages with rows of their own that one batch ends.
const ROWS_MAX: usize = 1000;
/// What is full when they are reached.
const KEYS: &str = "the number of keys of a shard of a last-value queue";

/// The newest message of each key.
#[derive(Debug, Default)]
pub(super) struct LastValues {
    newest: HashMap<Bytes, u64>,
    /// Key and cost of each of them.
    by_offset: HashMap<u64, (Bytes, u64)>,
    key_bytes: usize,
}

impl LastValues {
    /// What was the newest message of `key` before, with its cost.
    fn insert(&mut self, key: &Bytes, offset: u64, cost: u64) -> Option<(u64, u64)> {
        let older = match self.newest.insert(key.clone(), offset) {
            Some(older) => self.by_offset.remove(&older).map(|(_, cost)| (older, cost)),
            None => {
                self.key_bytes += key.len();
                None
            }
        };
        self.by_offset.insert(offset, (key.clone(), cost));
        older
    }

    /// A message is done. What it cost, if it was the newest of its key.
    pub(super) fn remove(&mut self, offset: u64) -> Option<u64> {
        let (key, cost) = self.by_offset.remove(&offset)?;
        self.newest.remove(&key);
        self.key_bytes = self.key_bytes.saturating_sub(key.len());
        Some(cost)
    }

    fn newest(&self, key: &[u8]) -> Option<(u64, u64)> {
        let offset = *self.newest.get(key)?;
        self.by_offset.get(&offset).map(|(_, cost)| (offset, *cost))
    }
}

/// What the messages of a batch replace.
#[derive(Debug, Default)]
pub(crate) struct Replaced {
    /// Newest of each key in the batch, with its cost.
    fresh: HashMap<Bytes, (u64, u64)>,
    new_keys: usize,
    new_key_bytes: usize,
    /// End with the batch, with their cost.
    ends: BTreeMap<u64, u64>,
    /// Are in flight.
    held: Vec<u64>,
    freed: u64,
    /// Of those that end, the ones with rows of their own.
    rows: usize,
}

impl Replaced {
    /// Whether no more is to end with the batch.
    pub(crate) fn is_full(&self) -> bool {
        self.rows >= ROWS_MAX
    }

    /// Another message made room already.
    pub(crate) fn forget(&mut self, evicted: &Evicted) {
        if let Some(cost) = self.ends.remove(&evicted.offset()) {
            self.freed -= cost;
        }
    }
}

impl QueueShard {
    /// A plan for a batch of a last-value queue; none for others.
    pub(crate) fn replacing(&self) -> Option<Replaced> {
        self.last_values.as_ref().map(|_| Replaced::default())
    }

    /// The message that `record` ends, with its cost, and whether its key is a new one.
    fn older(&self, replaced: &Replaced, key: &[u8]) -> (Option<(u64, u64)>, bool) {
        let older = replaced.fresh.get(key).copied();
        let older = older.or_else(|| self.last_values.as_ref().and_then(|values| values.newest(key)));
        let is_new = older.is_none();
        (older.filter(|(offset, _)| !self.dying.contains(*offset)), is_new)
    }

    /// Messages and bytes that leave with the batch once `record` is added to it.
    ///
    /// # Errors
    /// What is full if its key is one too many.
    pub(crate) fn makes_room(
        &self,
        replaced: &Replaced,
        record: &Record,
    ) -> Result<(u64, u64), &'static str> {
        let freed = (replaced.ends.len() as u64, replaced.freed);
        let (Some(key), Some(values)) = (record.key_bytes(), &self.last_values) else { return Ok(freed) };
        let (older, is_new) = self.older(replaced, key);
        let keys = values.newest.len() + replaced.new_keys;
        let bytes = values.key_bytes + replaced.new_key_bytes + key.len();
        if is_new && (keys >= KEYS_MAX || bytes > KEY_BYTES_MAX) {
            return Err(KEYS);
        }
        let older = older.filter(|(offset, _)| !self.leases.contains_key(offset));
        Ok(older.map_or(freed, |(_, cost)| (freed.0 + 1, freed.1 + cost)))
    }

    /// `record` will be at `offset`: plans the end of the older message of its key.
    pub(crate) fn replace(&self, replaced: &mut Replaced, offset: u64, record: &Record) {
        let Some(key) = record.key_bytes() else { return };
        let (older, is_new) = self.older(replaced, key);
        match older {
            Some((older, _)) if self.leases.contains_key(&older) => replaced.held.push(older),
            Some((older, cost)) => {
                replaced.ends.insert(older, cost);
                replaced.freed += cost;
                replaced.rows += usize::from(self.attempts.contains_key(&older));
            }
            None => {}
        }
        if is_new {
            replaced.new_keys += 1;
            replaced.new_key_bytes += key.len();
        }
        replaced.fresh.insert(Bytes::copy_from_slice(key), (offset, record.cost()));
    }

    /// What has to be written along with records of `cost` up to offset `next`, and with the plan for them carried out:
    /// in memory that is done by [`QueueShard::replaced`], once the batch is committed.
    pub(crate) fn take_dirty_with(
        &mut self,
        replaced: Option<&Replaced>,
        cost: u64,
        next: u64,
    ) -> DirtyQueue {
        let mut dirty = self.take_dirty();
        dirty.floor.bytes = dirty.floor.bytes.saturating_add(cost);
        let Some(replaced) = replaced.filter(|replaced| !replaced.ends.is_empty()) else { return dirty };
        let mut acks = self.acks.clone();
        for offset in replaced.ends.keys() {
            match self.asides.ended(*offset, End::Superseded) {
                Some(ended) => dirty.asides.push((*offset, ended)),
                None => drop(acks.set(*offset, next)),
            }
            if self.attempts.contains_key(offset) {
                dirty.attempts.insert(*offset, None);
            }
            dirty.floor.superseded = dirty.floor.superseded.saturating_add(1);
        }
        dirty.floor.bytes = dirty.floor.bytes.saturating_sub(replaced.freed);
        dirty.floor.floor = acks.floor();
        let blocks = acks.take_dirty();
        // If it does not come about in memory, they are written again.
        self.acks.mark_dirty(blocks.iter().map(|(block, _)| *block));
        // The later one counts.
        dirty.blocks.extend(blocks);
        dirty
    }

    /// A batch that was planned is committed, and its records are appended.
    pub(crate) fn replaced(&mut self, replaced: &Replaced) {
        // It is all in the store, but for what has changed since the batch was built.
        let mut changed = self.changed;
        for (offset, cost) in &replaced.ends {
            if self.leases.contains_key(offset) {
                self.mark_superseded(*offset);
                changed = true;
            } else {
                let is_aside = self.asides.contains(*offset);
                changed |= self.dying.contains(*offset) || !self.end_superseded(*offset, *cost);
                if is_aside {
                    self.asides.end_written(*offset);
                }
            }
        }
        for offset in &replaced.held {
            if self.leases.contains_key(offset) {
                // In the store the newer one says so, until its own end is written, and this with it.
                self.mark_superseded(*offset);
            } else if !self.dying.contains(*offset) {
                changed |= self.end_superseded(*offset, 0);
            }
        }
        if let Some(values) = &mut self.last_values {
            for (key, (offset, cost)) in &replaced.fresh {
                values.insert(key, *offset, *cost);
            }
        }
        self.changed = changed;
    }

    fn mark_superseded(&mut self, offset: u64) {
        self.attempts.entry(offset).or_default().superseded = true;
        self.touch_attempts(offset);
    }

    fn end_superseded(&mut self, offset: u64, cost: u64) -> bool {
        let waited = self.take_waiting(offset);
        let cost = waited.map_or(cost, |record| record.cost());
        self.finish(offset, cost, End::Superseded)
    }

    /// Ends a message that comes back unacknowledged if a newer one has replaced it meanwhile.
    pub(super) fn drop_superseded(&mut self, offset: u64, record: &Record) -> bool {
        let superseded = self.attempts.get(&offset).is_some_and(|attempts| attempts.superseded);
        superseded && self.finish(offset, record.cost(), End::Superseded)
    }

    /// A message that had made room is there again.
    pub(super) fn keep_last_value(&mut self, offset: u64, record: &Record) {
        let superseded = self.attempts.get(&offset).is_some_and(|attempts| attempts.superseded);
        if let (Some(values), Some(key), false) = (&mut self.last_values, record.key_bytes(), superseded) {
            values.insert(&Bytes::copy_from_slice(key), offset, record.cost());
        }
    }

    /// The message at `offset` is in the store: all that are not done, in order, before anything else is done with a
    /// shard that was read. Of each key the last one stays.
    pub(crate) fn restore_last_value(&mut self, offset: u64, record: &Record) {
        if self.is_done(offset) || self.drop_superseded(offset, record) {
            return;
        }
        let (Some(values), Some(key)) = (&mut self.last_values, record.key_bytes()) else { return };
        if let Some((older, cost)) = values.insert(&Bytes::copy_from_slice(key), offset, record.cost()) {
            self.finish(older, cost, End::Superseded);
        }
    }
}
