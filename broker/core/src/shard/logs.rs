//! The logs of one owner, and lists of those that need something, so that a turn of the owner costs what
//! there is to do and not what there is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use smallvec::SmallVec;
use weir_env::clock::Instant;

use super::log::{Loaded, Log};
use crate::keyspace::LogId;
use crate::keyspace::delayed::DelayedState;

/// Names a log within its virtual shard: object, shard and priority class.
pub(crate) type LogKey = (u32, u8, u8);

/// The key of `id`.
pub(crate) const fn key_of(id: &LogId) -> LogKey {
    (id.object, id.shard, id.class)
}

/// The key of the log of class 0 of the same shard.
pub(crate) const fn base_of(key: LogKey) -> LogKey {
    (key.0, key.1, 0)
}

/// What the other logs of a shard mean for one of them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Elsewhere {
    /// Messages and bytes that count against the limits.
    pub(crate) limited: (u64, u64),
    /// What waits for its time.
    pub(crate) delayed: DelayedState,
    /// Whether there are any.
    pub(crate) is_shared: bool,
}

/// Logs in memory.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    by_key: BTreeMap<LogKey, Log>,
    /// Logs with appends or cuts, each served in its turn.
    writable: VecDeque<LogKey>,
    /// Logs whose queue state changed.
    dirty: VecDeque<LogKey>,
    /// Logs to be looked at before the next batch.
    touched: Vec<LogKey>,
    /// At most one entry per log, never later than its next time-out.
    timers: BTreeSet<(Instant, LogKey)>,
    /// How many there have been.
    loads: u64,
}

impl Logs {
    pub(crate) fn get(&self, key: LogKey) -> Option<&Log> {
        self.by_key.get(&key)
    }

    pub(crate) fn get_mut(&mut self, key: LogKey) -> Option<&mut Log> {
        self.by_key.get_mut(&key)
    }

    /// The log that `loaded` names, if it was not lost since.
    pub(super) fn still(&mut self, loaded: Loaded) -> Option<&mut Log> {
        self.get_mut(key_of(&loaded.id)).filter(|log| log.loaded() == loaded)
    }

    pub(crate) fn insert(&mut self, mut log: Log) {
        let key = key_of(&log.id);
        self.remove(key);
        self.loads += 1;
        log.load = self.loads;
        self.by_key.insert(key, log);
    }

    pub(crate) fn remove(&mut self, key: LogKey) -> Option<Log> {
        let log = self.by_key.remove(&key)?;
        if let Some(at) = log.listed.timer {
            self.timers.remove(&(at, key));
        }
        // The other lists skip what is not there.
        Some(log)
    }

    /// Everything in memory, and an empty collection in its place.
    pub(crate) fn take_all(&mut self) -> impl Iterator<Item = Log> {
        let empty = Self { loads: self.loads, ..Self::default() };
        std::mem::replace(self, empty).by_key.into_values()
    }

    /// Puts `key` on the lists its state asks for.
    pub(crate) fn list(&mut self, key: LogKey) {
        let Some(log) = self.by_key.get_mut(&key) else { return };
        if log.has_writes() && !std::mem::replace(&mut log.listed.writable, true) {
            self.writable.push_back(key);
        }
        if log.has_dirty_queue() && !std::mem::replace(&mut log.listed.dirty, true) {
            self.dirty.push_back(key);
        }
        if let Some(due) = log.next_timeout()
            && log.listed.timer.is_none_or(|at| due < at)
        {
            if let Some(at) = log.listed.timer.replace(due) {
                self.timers.remove(&(at, key));
            }
            self.timers.insert((due, key));
        }
    }

    /// The logs of the shard of `key`, those of higher priority first.
    pub(crate) fn classes(&self, key: LogKey) -> SmallVec<[LogKey; 2]> {
        let of_shard = self.by_key.range(base_of(key)..=(key.0, key.1, u8::MAX));
        of_shard.rev().map(|(key, _)| *key).collect()
    }

    /// What the other logs of the shard of `key` mean for it.
    pub(crate) fn elsewhere(&self, key: LogKey) -> Elsewhere {
        let mut elsewhere = Elsewhere::default();
        for (other, log) in self.by_key.range(base_of(key)..=(key.0, key.1, u8::MAX)) {
            if other.2 == 0 {
                elsewhere.delayed = log.delays.state();
            }
            if let Some(queue) = log.queue.as_ref().filter(|_| *other != key) {
                let (messages, bytes) = queue.limited_here();
                elsewhere.limited.0 += messages;
                elsewhere.limited.1 += bytes;
                elsewhere.is_shared = true;
            }
        }
        elsewhere
    }

    /// All are to be looked at before the next batch.
    pub(super) fn touch_all(&mut self) {
        let keys: Vec<LogKey> = self.by_key.keys().copied().collect();
        keys.into_iter().for_each(|key| self.touch(key));
    }

    /// The shard of `key` is to be looked at before the next batch.
    pub(crate) fn touch(&mut self, key: LogKey) {
        let key = base_of(key);
        if let Some(log) = self.by_key.get_mut(&key)
            && !std::mem::replace(&mut log.listed.touched, true)
        {
            self.touched.push(key);
        }
    }

    pub(crate) fn pop_touched(&mut self) -> Option<LogKey> {
        let key = self.touched.pop()?;
        if let Some(log) = self.by_key.get_mut(&key) {
            log.listed.touched = false;
        }
        Some(key)
    }

    pub(crate) fn has_writable(&self) -> bool {
        !self.writable.is_empty()
    }

    pub(crate) fn has_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// The log whose turn it is to write.
    pub(crate) fn pop_writable(&mut self) -> Option<LogKey> {
        while let Some(key) = self.writable.pop_front() {
            if let Some(log) = self.by_key.get_mut(&key) {
                log.listed.writable = false;
                return Some(key);
            }
        }
        None
    }

    /// A log whose queue state changed and was not written along with its appends.
    pub(crate) fn pop_dirty(&mut self) -> Option<&mut Log> {
        while let Some(key) = self.dirty.pop_front() {
            let Some(log) = self.by_key.get_mut(&key) else { continue };
            log.listed.dirty = false;
            if log.has_dirty_queue() {
                return self.by_key.get_mut(&key);
            }
        }
        None
    }

    /// When the first log has something to do.
    pub(crate) fn next_timeout(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// A log whose time has come by `now`.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<LogKey> {
        let (at, key) = *self.timers.first()?;
        if at > now {
            return None;
        }
        self.timers.pop_first();
        if let Some(log) = self.by_key.get_mut(&key) {
            log.listed.timer = None;
        }
        Some(key)
    }
}
