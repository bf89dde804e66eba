//! A transaction of a local engine: reads a view, keeps its writes to itself, and hands both over at commit.
//!
//! Reads are answered where they are asked, without another thread: from memory mostly, from the disk at
//! worst. A loop of reads or commits still yields to other tasks now and then.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::sequencer::CommitRequest;
use super::{KeyRange, Shared, Submit, View};
use crate::pending::{PageMerge, Pending};
use crate::{
    Committed, ConflictKind, Isolation, RangePage, RangeQuery, Result, Transaction, Version, Watch,
    WatchTrigger,
};

pub(crate) struct LocalTransaction<V> {
    shared: Arc<Shared<V>>,
    submit: Arc<dyn Submit>,
    read_version: Option<Version>,
    pending: Pending,
    watches: Vec<(Bytes, WatchTrigger)>,
}

impl<V: View> LocalTransaction<V> {
    pub(crate) fn new(shared: Arc<Shared<V>>, submit: Arc<dyn Submit>) -> Self {
        Self { shared, submit, read_version: None, pending: Pending::default(), watches: Vec::new() }
    }

    fn view(&mut self) -> Result<V> {
        let version = self.pinned_version()?;
        self.shared.view_at(version)
    }

    fn pinned_version(&mut self) -> Result<Version> {
        match self.read_version {
            Some(version) => Ok(version),
            None => Ok(*self.read_version.insert(self.shared.read_version()?)),
        }
    }

    /// The watches with the value each expects to find after the commit; those whose value can't be told
    /// are dropped, which fires them.
    fn expectations(&mut self) -> Result<Vec<(Bytes, Option<Bytes>, WatchTrigger)>> {
        let mut expectations = Vec::with_capacity(self.watches.len());
        for (key, trigger) in std::mem::take(&mut self.watches) {
            if self.pending.stamps_value_of(&key) {
                continue;
            }
            let expected = match self.pending.lookup(&key) {
                Some(own) => own.cloned(),
                None => self.view()?.get(&key)?,
            };
            expectations.push((key, expected, trigger));
        }
        Ok(expectations)
    }
}

#[async_trait]
impl<V: View> Transaction for LocalTransaction<V> {
    async fn read_version(&mut self) -> Result<Version> {
        self.pinned_version()
    }

    fn set_read_version(&mut self, version: Version) {
        self.read_version = Some(version);
    }

    async fn get(&mut self, key: &[u8], isolation: Isolation) -> Result<Option<Bytes>> {
        tokio::task::consume_budget().await;
        if let Some(own) = self.pending.lookup(key) {
            return Ok(own.cloned());
        }
        let value = self.view()?.get(key)?;
        self.pending.note_get(key, isolation);
        Ok(value)
    }

    async fn get_range(&mut self, query: RangeQuery, isolation: Isolation) -> Result<RangePage> {
        tokio::task::consume_budget().await;
        let range = KeyRange::new(query.begin.clone(), query.end.clone());
        if range.is_empty() {
            return Ok(RangePage::default());
        }
        let view = self.view()?;
        let mut merge = PageMerge::new(&query, &self.pending.writes);
        view.scan(&range, query.reverse, &mut |key, value| merge.push(key, value))?;
        let page = merge.finish();
        self.pending.note_page(&query, &page, isolation);
        Ok(page)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.pending.set(key, value);
    }

    fn clear(&mut self, key: &[u8]) {
        self.pending.clear(key);
    }

    fn clear_range(&mut self, begin: &[u8], end: &[u8]) {
        self.pending.clear_range(begin, end);
    }

    fn set_versionstamped_key(&mut self, key: &[u8], offset: usize, value: &[u8]) {
        self.pending.set_versionstamped_key(key, offset, value);
    }

    fn set_versionstamped_value(&mut self, key: &[u8], value: &[u8], offset: usize) {
        self.pending.set_versionstamped_value(key, value, offset);
    }

    fn add_conflict_range(&mut self, begin: &[u8], end: &[u8], kind: ConflictKind) {
        self.pending.add_conflict_range(begin, end, kind);
    }

    fn watch(&mut self, key: &[u8]) -> Watch {
        let (trigger, watch) = Watch::new();
        self.watches.push((Bytes::copy_from_slice(key), trigger));
        watch
    }

    async fn commit(mut self: Box<Self>) -> Result<Committed> {
        tokio::task::consume_budget().await;
        let expectations = self.expectations()?;
        let committed = if self.pending.is_read_only() {
            Committed { version: self.pinned_version()?, versionstamp: None }
        } else {
            self.pending.size.check()?;
            let read_version = match self.pending.reads.is_empty() {
                true => self.read_version,
                false => Some(self.pinned_version()?),
            };
            let Pending { reads, write_conflicts, writes, stamped, .. } = self.pending;
            let request = CommitRequest {
                read_version: read_version.unwrap_or_default(),
                reads,
                write_conflicts,
                writes,
                stamped,
                asked_at: self.shared.clock.now(),
            };
            self.submit.submit(request).await?
        };
        for (key, expected, trigger) in expectations {
            self.shared.arm(key, expected, trigger);
        }
        Ok(committed)
    }
}

impl<V> fmt::Debug for LocalTransaction<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalTransaction")
            .field("read_version", &self.read_version)
            .field("size", &self.pending.size)
            .finish_non_exhaustive()
    }
}
