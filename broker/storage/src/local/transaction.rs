//! A transaction of a local engine: reads a view, keeps its writes to itself, and hands both over at commit.
//!
//! Reads are answered where they are asked, without another thread: from memory mostly, from the disk at
//! worst. A loop of reads or commits still yields to other tasks now and then.

use std::fmt;
use std::iter::Peekable;
use std::ops::ControlFlow;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::sequencer::{CommitRequest, Mutation};
use super::{KeyRange, Shared, Submit, View, WriteSet};
use crate::limits::KEY_BYTES_MAX;
use crate::{
    Committed, ConflictKind, Isolation, RangePage, RangeQuery, Result, Transaction, TransactionSize, Version,
    Watch, WatchTrigger, key_after,
};

/// Length of a versionstamp.
const STAMP_BYTES: usize = 10;

pub(crate) struct LocalTransaction<V> {
    shared: Arc<Shared<V>>,
    submit: Arc<dyn Submit>,
    read_version: Option<Version>,
    size: TransactionSize,
    reads: Vec<KeyRange>,
    write_conflicts: Vec<KeyRange>,
    writes: WriteSet,
    /// Everything from the first versionstamped write on, in order: only the commit can say which keys it
    /// touches. What of it is not versionstamped is in `writes` too.
    stamped: Vec<Mutation>,
    watches: Vec<(Bytes, WatchTrigger)>,
}

impl<V: View> LocalTransaction<V> {
    pub(crate) fn new(shared: Arc<Shared<V>>, submit: Arc<dyn Submit>) -> Self {
        Self {
            shared,
            submit,
            read_version: None,
            size: TransactionSize::default(),
            reads: Vec::new(),
            write_conflicts: Vec::new(),
            writes: WriteSet::default(),
            stamped: Vec::new(),
            watches: Vec::new(),
        }
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

    fn is_read_only(&self) -> bool {
        self.writes.is_empty() && self.stamped.is_empty() && self.write_conflicts.is_empty()
    }

    /// The watches with the value each expects to find after the commit; those whose value can't be told
    /// are dropped, which fires them.
    fn expectations(&mut self) -> Result<Vec<(Bytes, Option<Bytes>, WatchTrigger)>> {
        let mut expectations = Vec::with_capacity(self.watches.len());
        for (key, trigger) in std::mem::take(&mut self.watches) {
            let is_stamped = |mutation: &Mutation| mutation.stamps_value_of(&key);
            if self.stamped.iter().any(is_stamped) {
                continue;
            }
            let expected = match self.writes.lookup(&key) {
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
        if let Some(own) = self.writes.lookup(key) {
            return Ok(own.cloned());
        }
        let value = self.view()?.get(key)?;
        if isolation == Isolation::Serializable {
            self.note_read(KeyRange::key(key));
        }
        Ok(value)
    }

    async fn get_range(&mut self, query: RangeQuery, isolation: Isolation) -> Result<RangePage> {
        tokio::task::consume_budget().await;
        let range = KeyRange::new(query.begin.clone(), query.end.clone());
        if range.is_empty() {
            return Ok(RangePage::default());
        }
        let view = self.view()?;
        let page = merged_page(&view, &self.writes, &range, &query)?;
        if isolation == Isolation::Serializable {
            let read = match page.pairs.last().filter(|_| page.more) {
                None => range,
                Some((last, _)) if query.reverse => KeyRange::new(last.clone(), range.end),
                Some((last, _)) => KeyRange::new(range.begin, key_after(last)),
            };
            self.note_read(read);
        }
        Ok(page)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.size.add_write(key.len(), value.len());
        self.mutate(Mutation::Set(Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
    }

    fn clear(&mut self, key: &[u8]) {
        // A key over the limit can't exist.
        if key.len() <= KEY_BYTES_MAX {
            self.size.add_write(key.len(), 0);
            self.mutate(Mutation::Clear(Bytes::copy_from_slice(key)));
        }
    }

    fn clear_range(&mut self, begin: &[u8], end: &[u8]) {
        let range = KeyRange::copy(begin, end);
        if !range.is_empty() {
            self.size.add_range(begin.len(), end.len());
            self.mutate(Mutation::ClearRange(range));
        }
    }

    fn set_versionstamped_key(&mut self, key: &[u8], offset: usize, value: &[u8]) {
        assert!(offset + STAMP_BYTES <= key.len(), "the versionstamp lies beyond the key");
        self.size.add_write(key.len(), value.len());
        let value = Bytes::copy_from_slice(value);
        self.stamped.push(Mutation::StampedKey { key: key.to_vec(), offset, value });
    }

    fn set_versionstamped_value(&mut self, key: &[u8], value: &[u8], offset: usize) {
        assert!(offset + STAMP_BYTES <= value.len(), "the versionstamp lies beyond the value");
        self.size.add_write(key.len(), value.len());
        let key = Bytes::copy_from_slice(key);
        self.stamped.push(Mutation::StampedValue { key, value: value.to_vec(), offset });
    }

    fn add_conflict_range(&mut self, begin: &[u8], end: &[u8], kind: ConflictKind) {
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

    fn watch(&mut self, key: &[u8]) -> Watch {
        let (trigger, watch) = Watch::new();
        self.watches.push((Bytes::copy_from_slice(key), trigger));
        watch
    }

    async fn commit(mut self: Box<Self>) -> Result<Committed> {
        tokio::task::consume_budget().await;
        let expectations = self.expectations()?;
        let committed = if self.is_read_only() {
            Committed { version: self.pinned_version()?, versionstamp: None }
        } else {
            self.size.check()?;
            let read_version = match self.reads.is_empty() {
                true => self.read_version,
                false => Some(self.pinned_version()?),
            };
            let request = CommitRequest {
                read_version: read_version.unwrap_or_default(),
                reads: self.reads,
                write_conflicts: self.write_conflicts,
                writes: self.writes,
                stamped: self.stamped,
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
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// A page of `view` with `writes` on top.
fn merged_page<V: View>(
    view: &V,
    writes: &WriteSet,
    range: &KeyRange,
    query: &RangeQuery,
) -> Result<RangePage> {
    type Own<'a> = Box<dyn Iterator<Item = (&'a Bytes, Option<&'a Bytes>)> + 'a>;
    let own = writes.keys_in(range);
    let own: Own<'_> = if query.reverse { Box::new(own.rev()) } else { Box::new(own) };
    let mut own: Peekable<Own<'_>> = own.peekable();
    let mut page = PageBuilder { page: RangePage::default(), bytes: 0, query };

    view.scan(range, query.reverse, &mut |key, value| {
        let is_before = |own: &Bytes| if query.reverse { *own > key } else { *own < key };
        while let Some((own_key, own_value)) = own.next_if(|(own_key, _)| is_before(own_key)) {
            page.push_own(own_key, own_value)?;
        }
        if let Some((own_key, own_value)) = own.next_if(|(own_key, _)| **own_key == key) {
            page.push_own(own_key, own_value)
        } else if writes.is_cleared(&key) {
            ControlFlow::Continue(())
        } else {
            page.push(key, value)
        }
    })?;
    if !page.page.more {
        // A page that is full stops at the first pair it can't take, whose key is not needed.
        let _ = own.try_for_each(|(key, value)| page.push_own(key, value));
    }
    Ok(page.page)
}

struct PageBuilder<'a> {
    page: RangePage,
    bytes: usize,
    query: &'a RangeQuery,
}

impl PageBuilder<'_> {
    fn push_own(&mut self, key: &Bytes, value: Option<&Bytes>) -> ControlFlow<()> {
        match value {
            Some(value) => self.push(key.clone(), value.clone()),
            None => ControlFlow::Continue(()),
        }
    }

    /// Takes the pair, or notes that there is more and breaks.
    fn push(&mut self, key: Bytes, value: Bytes) -> ControlFlow<()> {
        let is_full = |limit: usize, taken: usize| limit != 0 && taken >= limit;
        let RangeQuery { limit, target_bytes, .. } = *self.query;
        if is_full(limit, self.page.pairs.len()) || is_full(target_bytes, self.bytes) {
            self.page.more = true;
            return ControlFlow::Break(());
        }
        self.bytes += key.len() + value.len();
        self.page.pairs.push((key, value));
        ControlFlow::Continue(())
    }
}
