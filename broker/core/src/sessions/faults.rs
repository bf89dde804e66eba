//! A store for tests whose commits have the outcomes they are told to have.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_storage::{
    Committed, ConflictKind, Error, Isolation, MemoryStore, RangePage, RangeQuery, Result, SharedStore,
    Store, Transaction, Version, Watch,
};

use super::Sessions;

/// What becomes of a commit that writes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing special.
    None,
    /// It happens, and nobody knows.
    UnknownCommitted,
    /// It does not happen, and nobody knows.
    UnknownLost,
    /// It happens only when [`Faults::release`] is called.
    UnknownOpen,
    /// What is still in flight happens before it.
    ReleaseFirst,
    /// It fails.
    Unavailable,
}

/// A store over another one.
#[derive(Debug)]
pub(crate) struct Faults {
    inner: SharedStore,
    script: Arc<Script>,
}

#[derive(Debug, Default)]
struct Script {
    faults: Mutex<VecDeque<Fault>>,
    open: Mutex<Vec<Box<dyn Transaction>>>,
    commits: Mutex<usize>,
    rows_read: Mutex<usize>,
    ranges_read: Mutex<usize>,
}

impl Faults {
    pub(crate) fn new(clock: Clock) -> Arc<Self> {
        let inner =
            weir_storage_fdb::testing::store_apart().unwrap_or_else(|| Arc::new(MemoryStore::new(clock)));
        Arc::new(Self { inner, script: Arc::default() })
    }

    /// The next commits that write something have these outcomes.
    pub(crate) fn expect(&self, faults: impl IntoIterator<Item = Fault>) {
        *self.script.faults.lock() = faults.into_iter().collect();
    }

    /// Whether all expected faults have happened.
    pub(crate) fn is_through(&self) -> bool {
        self.script.faults.lock().is_empty()
    }

    /// Commits that wrote something and were tried.
    pub(crate) fn commits(&self) -> usize {
        *self.script.commits.lock()
    }

    /// Pairs that ranges have returned.
    pub(crate) fn rows_read(&self) -> usize {
        *self.script.rows_read.lock()
    }

    /// Reads of ranges.
    pub(crate) fn ranges_read(&self) -> usize {
        *self.script.ranges_read.lock()
    }

    /// Keeps a transaction in flight.
    pub(crate) fn hold(&self, tx: Box<dyn Transaction>) {
        self.script.open.lock().push(tx);
    }

    /// Lets the commits that are still in flight happen now, if they can.
    pub(crate) async fn release(&self) -> Vec<Result<Committed>> {
        let open = std::mem::take(&mut *self.script.open.lock());
        let mut outcomes = Vec::new();
        for tx in open {
            outcomes.push(tx.commit().await);
        }
        outcomes
    }

    /// All keys of a table.
    pub(crate) async fn keys(&self, tag: u8) -> Vec<Bytes> {
        let mut tx = self.inner.begin();
        let page = tx.get_range(RangeQuery::prefix([tag]), Isolation::Snapshot).await.unwrap();
        page.pairs.into_iter().map(|(key, _)| key).collect()
    }
}

#[async_trait::async_trait]
impl Store for Faults {
    fn begin(&self) -> Box<dyn Transaction> {
        let script = Arc::clone(&self.script);
        Box::new(FaultTransaction { inner: self.inner.begin(), script, writes: false })
    }

    fn engine(&self) -> &'static str {
        "faults"
    }

    async fn failed(&self) -> Arc<str> {
        self.inner.failed().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[derive(Debug)]
struct FaultTransaction {
    inner: Box<dyn Transaction>,
    script: Arc<Script>,
    writes: bool,
}

#[async_trait::async_trait]
impl Transaction for FaultTransaction {
    async fn read_version(&mut self) -> Result<Version> {
        self.inner.read_version().await
    }

    fn set_read_version(&mut self, version: Version) {
        self.inner.set_read_version(version);
    }

    async fn get(&mut self, key: &[u8], isolation: Isolation) -> Result<Option<Bytes>> {
        self.inner.get(key, isolation).await
    }

    async fn get_range(&mut self, query: RangeQuery, isolation: Isolation) -> Result<RangePage> {
        let page = self.inner.get_range(query, isolation).await?;
        *self.script.rows_read.lock() += page.pairs.len();
        *self.script.ranges_read.lock() += 1;
        Ok(page)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.writes = true;
        self.inner.set(key, value);
    }

    fn clear(&mut self, key: &[u8]) {
        self.writes = true;
        self.inner.clear(key);
    }

    fn clear_range(&mut self, begin: &[u8], end: &[u8]) {
        self.writes = true;
        self.inner.clear_range(begin, end);
    }

    fn set_versionstamped_key(&mut self, key: &[u8], offset: usize, value: &[u8]) {
        self.writes = true;
        self.inner.set_versionstamped_key(key, offset, value);
    }

    fn set_versionstamped_value(&mut self, key: &[u8], value: &[u8], offset: usize) {
        self.writes = true;
        self.inner.set_versionstamped_value(key, value, offset);
    }

    fn add_conflict_range(&mut self, begin: &[u8], end: &[u8], kind: ConflictKind) {
        self.inner.add_conflict_range(begin, end, kind);
    }

    fn watch(&mut self, key: &[u8]) -> Watch {
        self.inner.watch(key)
    }

    async fn commit(self: Box<Self>) -> Result<Committed> {
        if !self.writes {
            return self.inner.commit().await;
        }
        *self.script.commits.lock() += 1;
        let fault = self.script.faults.lock().pop_front().unwrap_or(Fault::None);
        match fault {
            Fault::None => self.inner.commit().await,
            Fault::UnknownCommitted => {
                self.inner.commit().await?;
                Err(Error::UnknownSettled)
            }
            Fault::UnknownLost => Err(Error::UnknownSettled),
            Fault::UnknownOpen => {
                self.script.open.lock().push(self.inner);
                Err(Error::UnknownOpen)
            }
            Fault::ReleaseFirst => {
                let open = std::mem::take(&mut *self.script.open.lock());
                for tx in open {
                    tx.commit().await?;
                }
                self.inner.commit().await
            }
            Fault::Unavailable => Err(Error::Unavailable("as told".into())),
        }
    }
}

/// What the tests of sessions, inboxes, wills and retained messages start from. Create it in a runtime whose
/// time is paused.
pub(crate) struct Bench {
    pub(crate) clock: Clock,
    pub(crate) store: Arc<Faults>,
    pub(crate) sessions: Sessions,
}

impl Bench {
    pub(crate) const VIRTUAL_SHARDS: u16 = 8;

    pub(crate) fn new() -> Self {
        let clock = Clock::simulated(Timestamp::from_micros(1_700_000_000_000_000));
        let store = Faults::new(clock);
        let sessions = Self::pod(&store, clock, 1);
        Self { clock, store, sessions }
    }

    fn pod(store: &Arc<Faults>, clock: Clock, pod: u8) -> Sessions {
        let seed = Seed::fixed(pod.into());
        Sessions::new(Arc::clone(store) as SharedStore, clock, &seed, [pod; 16], Self::VIRTUAL_SHARDS)
    }

    /// The same store as another pod sees it.
    pub(crate) fn other_pod(&self, pod: u8) -> Sessions {
        Self::pod(&self.store, self.clock, pod)
    }
}
