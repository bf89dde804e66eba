//! A transaction that may be told to fail. Knows which keys it touches, to find the fault meant for it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::Faults;
use super::plan::CommitFault;
use crate::{
    Committed, ConflictKind, Error, Isolation, RangePage, RangeQuery, Result, Transaction, Version, Watch,
    key_after,
};

#[derive(Debug)]
pub(super) struct FaultTransaction {
    inner: Box<dyn Transaction>,
    faults: Arc<Faults>,
    touched: Vec<(Bytes, Bytes)>,
}

impl FaultTransaction {
    pub(super) const fn new(inner: Box<dyn Transaction>, faults: Arc<Faults>) -> Self {
        Self { inner, faults, touched: Vec::new() }
    }

    fn touch(&mut self, key: &[u8]) {
        self.touched.push((Bytes::copy_from_slice(key), key_after(key)));
    }

    fn touch_range(&mut self, begin: &[u8], end: &[u8]) {
        if begin < end {
            self.touched.push((Bytes::copy_from_slice(begin), Bytes::copy_from_slice(end)));
        }
    }
}

#[async_trait]
impl Transaction for FaultTransaction {
    async fn read_version(&mut self) -> Result<Version> {
        self.faults.on_read().await?;
        self.inner.read_version().await
    }

    fn set_read_version(&mut self, version: Version) {
        self.inner.set_read_version(version);
    }

    async fn get(&mut self, key: &[u8], isolation: Isolation) -> Result<Option<Bytes>> {
        self.faults.on_read().await?;
        self.inner.get(key, isolation).await
    }

    async fn get_range(&mut self, query: RangeQuery, isolation: Isolation) -> Result<RangePage> {
        self.faults.on_read().await?;
        self.inner.get_range(query, isolation).await
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.touch(key);
        self.inner.set(key, value);
    }

    fn clear(&mut self, key: &[u8]) {
        self.touch(key);
        self.inner.clear(key);
    }

    fn clear_range(&mut self, begin: &[u8], end: &[u8]) {
        self.touch_range(begin, end);
        self.inner.clear_range(begin, end);
    }

    fn set_versionstamped_key(&mut self, key: &[u8], offset: usize, value: &[u8]) {
        self.touch(key);
        self.inner.set_versionstamped_key(key, offset, value);
    }

    fn set_versionstamped_value(&mut self, key: &[u8], value: &[u8], offset: usize) {
        self.touch(key);
        self.inner.set_versionstamped_value(key, value, offset);
    }

    fn add_conflict_range(&mut self, begin: &[u8], end: &[u8], kind: ConflictKind) {
        if kind == ConflictKind::Write {
            self.touch_range(begin, end);
        }
        self.inner.add_conflict_range(begin, end, kind);
    }

    fn watch(&mut self, key: &[u8]) -> Watch {
        let watch = self.inner.watch(key);
        self.faults.on_watch(watch)
    }

    async fn commit(self: Box<Self>) -> Result<Committed> {
        let Self { inner, faults, touched } = *self;
        faults.check_alive(&touched)?;
        // From here on, so that whoever has counted the fault can end it.
        let released = faults.release.notified();
        let fault = faults.plan.lock().next_commit(&faults.seed, &touched);
        match fault {
            None => inner.commit().await,
            Some(CommitFault::Refused(error)) => Err(error),
            Some(CommitFault::SettledCommitted) => {
                // That it conflicted, say, is not told either.
                let _ = inner.commit().await;
                Err(Error::UnknownSettled)
            }
            Some(CommitFault::SettledLost) => Err(Error::UnknownSettled),
            Some(CommitFault::OpenCommittedLater(delay)) => {
                drop(faults.commit_later(inner, touched, delay));
                Err(Error::UnknownOpen)
            }
            Some(CommitFault::Panic) => panic!("a fault asked for by a test"),
            Some(CommitFault::OpenLost) => Err(Error::UnknownOpen),
            Some(CommitFault::Stalled(delay)) => {
                // Either ends the stall.
                let _ = tokio::time::timeout(delay, released).await;
                faults.check_alive(&touched)?;
                inner.commit().await
            }
            Some(CommitFault::Detached(delay)) => {
                // Nobody tells when the runtime is going down.
                faults.commit_later(inner, touched, delay).await.unwrap_or(Err(Error::UnknownOpen))
            }
        }
    }
}
