//! The memory engine: nothing survives the process. For tests, simulations and trying things out.
//!
//! Commits are applied where they are asked, under a lock and without a thread, so that under a paused
//! single-threaded runtime every run is the same.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use weir_env::clock::Clock;

use crate::local::{
    ApplyError, CommitRequest, HeldSnapshot, KeyRange, LocalTransaction, Sequencer, Shared, Submit, View,
    WriteSet, Writer, closed,
};
use crate::{Committed, Result, Snapshot, Store, StoreStats, Transaction, Version};

/// A store in memory.
#[derive(Debug)]
pub struct MemoryStore {
    shared: Arc<Shared<MemoryView>>,
    committer: Arc<Committer>,
    stats: Arc<StoreStats>,
}

/// `None` once the store is closed.
type Committer = Mutex<Option<Sequencer<MemoryWriter>>>;

impl MemoryStore {
    /// An empty store whose versions age by `clock`.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let table = Arc::new(RwLock::new(Table::new()));
        let (first, stats) = (Version(1), Arc::new(StoreStats::default()));
        let view = MemoryView { table: Arc::clone(&table), version: first };
        let shared = Shared::new(first, view, clock, Arc::clone(&stats));
        let writer = MemoryWriter { table, superseded: VecDeque::new() };
        let sequencer = Sequencer::new(Arc::clone(&shared), writer, first);
        Self { shared, committer: Arc::new(Mutex::new(Some(sequencer))), stats }
    }

    /// What the store has done so far.
    #[must_use]
    pub fn stats(&self) -> Arc<StoreStats> {
        Arc::clone(&self.stats)
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn begin(&self) -> Box<dyn Transaction> {
        let committer: Arc<dyn Submit> = Arc::<Committer>::clone(&self.committer);
        Box::new(LocalTransaction::new(Arc::clone(&self.shared), committer))
    }

    fn engine(&self) -> &'static str {
        "memory"
    }

    async fn hold(&self) -> Option<Result<Box<dyn Snapshot>>> {
        let held = HeldSnapshot::new(Arc::clone(&self.shared));
        Some(held.map(|held| Box::new(held) as Box<dyn Snapshot>))
    }

    async fn advance(&self, version: Version) -> Result<()> {
        self.shared.advance(version)
    }

    async fn failed(&self) -> Arc<str> {
        self.shared.failed().await
    }

    async fn close(&self) {
        let sequencer = self.committer.lock().take();
        drop(sequencer);
        self.shared.close();
    }
}

#[async_trait]
impl Submit for Committer {
    async fn submit(&self, request: CommitRequest) -> Result<Committed> {
        let mut committer = self.lock();
        let sequencer = committer.as_mut().ok_or_else(closed)?;
        sequencer.commit(vec![request]).pop().unwrap_or_else(|| Err(closed()))
    }
}

/// Each key with its values, oldest first; `None` where it was cleared.
type Table = BTreeMap<Bytes, Vec<(Version, Option<Bytes>)>>;

#[derive(Clone, Debug)]
struct MemoryView {
    table: Arc<RwLock<Table>>,
    version: Version,
}

impl MemoryView {
    fn visible<'a>(&self, history: &'a [(Version, Option<Bytes>)]) -> Option<&'a Bytes> {
        let index = history.partition_point(|(version, _)| *version <= self.version);
        history[..index].last().and_then(|(_, value)| value.as_ref())
    }
}

impl View for MemoryView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>> {
        Ok(self.table.read().get(key).and_then(|history| self.visible(history)).cloned())
    }

    fn scan(
        &self,
        range: &KeyRange,
        reverse: bool,
        visit: &mut dyn FnMut(Bytes, Bytes) -> ControlFlow<()>,
    ) -> Result<()> {
        let bounds = (Bound::Included(&range.begin), Bound::Excluded(&range.end));
        let table = self.table.read();
        let mut pairs = table
            .range::<Bytes, _>(bounds)
            .filter_map(|(key, history)| self.visible(history).map(|value| (key.clone(), value.clone())));
        // The caller asked to stop; there is nothing else to tell.
        let _ = if reverse {
            pairs.try_rfold((), |(), (key, value)| visit(key, value))
        } else {
            pairs.try_for_each(|(key, value)| visit(key, value))
        };
        Ok(())
    }
}

#[derive(Debug)]
struct MemoryWriter {
    table: Arc<RwLock<Table>>,
    /// Keys by the version that wrote them: what to look at when older values are no longer needed.
    superseded: VecDeque<(Version, Bytes)>,
}

impl Writer for MemoryWriter {
    type View = MemoryView;

    fn apply(&mut self, version: Version, changes: &WriteSet) -> Result<MemoryView, ApplyError> {
        let mut table = self.table.write();
        for range in changes.cleared() {
            let bounds = (Bound::Included(range.begin), Bound::Excluded(range.end));
            for (key, history) in table.range_mut::<Bytes, _>(bounds) {
                if !changes.has_key(key) && history.last().is_some_and(|(_, value)| value.is_some()) {
                    history.push((version, None));
                    self.superseded.push_back((version, key.clone()));
                }
            }
        }
        for (key, value) in changes.keys() {
            table.entry(key.clone()).or_default().push((version, value.cloned()));
            self.superseded.push_back((version, key.clone()));
        }
        Ok(MemoryView { table: Arc::clone(&self.table), version })
    }

    fn retire(&mut self, oldest: Version) {
        let mut table = self.table.write();
        while let Some((_, key)) = self.superseded.pop_front_if(|(version, _)| *version <= oldest) {
            let Some(history) = table.get_mut(&key) else { continue };
            let needed = history.partition_point(|(version, _)| *version <= oldest).saturating_sub(1);
            history.drain(..needed);
            if matches!(history[..], [(version, None)] if version <= oldest) {
                table.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_nobody_can_read_are_forgotten() {
        let table = Arc::new(RwLock::new(Table::new()));
        let mut writer = MemoryWriter { table: Arc::clone(&table), superseded: VecDeque::new() };
        for version in 1..=100 {
            let mut changes = WriteSet::default();
            changes.set(Bytes::from("kept"), Bytes::copy_from_slice(&[version]));
            if version == 10 {
                changes.set(Bytes::from("cleared"), Bytes::new());
            } else {
                changes.clear_range(KeyRange::copy(b"a", b"d"));
            }
            writer.apply(Version(u64::from(version)), &changes).unwrap();
        }
        let at = |version| MemoryView { table: Arc::clone(&table), version: Version(version) };
        writer.retire(Version(60));
        assert_eq!(at(60).get(b"kept").unwrap(), Some(Bytes::copy_from_slice(&[60])));
        assert_eq!(table.read().get(&b"kept"[..]).map(Vec::len), Some(41));
        assert!(!table.read().contains_key(&b"cleared"[..]));
    }
}
