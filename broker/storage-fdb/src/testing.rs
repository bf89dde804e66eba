//! A store for the tests of other crates, in the cluster that `FDB_CLUSTER_FILE` names, if it is set.
//!
//! Knows nothing of what it is used for. The network and a runtime for the answers of the cluster live as long as the
//! process.

use std::env;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Runtime};
use weir_env::clock::Clock;
use weir_env::seed::Seed;
use weir_storage::{
    Committed, ConflictKind, Error, Isolation, RangePage, RangeQuery, Result, SharedStore, Store,
    Transaction, Version, Watch,
};

use crate::{FdbNetwork, FdbOptions, FdbStore};

/// An empty store of its own in the cluster for tests, if there is one.
///
/// # Panics
/// If there is one and it does not answer.
#[must_use]
pub fn store() -> Option<SharedStore> {
    /// Can't be started twice in a process; joined at its exit.
    static NETWORK: OnceLock<FdbNetwork> = OnceLock::new();
    let file = env::var_os("FDB_CLUSTER_FILE").map(PathBuf::from)?;
    let network = NETWORK.get_or_init(|| FdbNetwork::start(None).expect("a client library of FoundationDB"));
    let id = u128::from_be_bytes(Seed::from_entropy().next_id());
    let options = FdbOptions { name: format!("test-{:027x}", id >> 20), ..FdbOptions::new(file) };
    // Tests ask within runtimes of theirs, which may not be blocked, and without one.
    let open = || runtime().block_on(FdbStore::open(network, &options, Clock::system()));
    let opened = std::thread::scope(|scope| scope.spawn(open).join().expect("no panic"));
    Some(Arc::new(opened.expect("a cluster for tests")))
}

/// The same for tests in whose runtime time stands still. For the cluster it does not: every operation runs in another
/// runtime, and the paused clock does not go on while one is under way.
#[must_use]
pub fn store_apart() -> Option<SharedStore> {
    store().map(|inner| Arc::new(ApartStore { inner }) as SharedStore)
}

fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let build = || Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    RUNTIME.get_or_init(build)
}

/// Runs `operation` on a thread apart, which keeps a paused clock from going on.
async fn apart<T: Send + 'static>(operation: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(operation).await.expect("no panic, and nobody ends it")
}

#[derive(Debug)]
struct ApartStore {
    inner: SharedStore,
}

#[async_trait]
impl Store for ApartStore {
    fn begin(&self) -> Box<dyn Transaction> {
        let _entered = runtime().enter();
        Box::new(ApartTransaction { inner: Arc::new(Mutex::new(Some(self.inner.begin()))) })
    }

    fn engine(&self) -> &'static str {
        self.inner.engine()
    }

    async fn advance(&self, version: Version) -> Result<()> {
        let inner = Arc::clone(&self.inner);
        apart(move || runtime().block_on(inner.advance(version))).await
    }

    async fn failed(&self) -> Arc<str> {
        self.inner.failed().await
    }

    async fn describe(&self) -> Result<Vec<(&'static str, String)>> {
        let inner = Arc::clone(&self.inner);
        apart(move || runtime().block_on(inner.describe())).await
    }

    async fn close(&self) {
        let inner = Arc::clone(&self.inner);
        apart(move || runtime().block_on(inner.close())).await;
    }
}

/// `None` once it is committed. Whoever gives up a read and goes on waits for its answer all the same.
#[derive(Debug)]
struct ApartTransaction {
    inner: Arc<Mutex<Option<Box<dyn Transaction>>>>,
}

impl ApartTransaction {
    fn now<T>(&self, operation: impl FnOnce(&mut dyn Transaction) -> T) -> T {
        let _entered = runtime().enter();
        operation(&mut **self.inner.lock().as_mut().expect("it is not committed yet"))
    }

    async fn apart<T, F>(&self, operation: F) -> Result<T>
    where
        T: Send + 'static,
        F: AsyncFnOnce(&mut dyn Transaction) -> Result<T> + Send + 'static,
    {
        let inner = Arc::clone(&self.inner);
        let run = move || match inner.lock().as_mut() {
            Some(inner) => runtime().block_on(operation(&mut **inner)),
            None => Err(Error::Unavailable("the transaction is committed".into())),
        };
        apart(run).await
    }
}

#[async_trait]
impl Transaction for ApartTransaction {
    async fn read_version(&mut self) -> Result<Version> {
        self.apart(async |tx| tx.read_version().await).await
    }

    fn set_read_version(&mut self, version: Version) {
        self.now(|tx| tx.set_read_version(version));
    }

    async fn get(&mut self, key: &[u8], isolation: Isolation) -> Result<Option<Bytes>> {
        let key = Bytes::copy_from_slice(key);
        self.apart(async move |tx| tx.get(&key, isolation).await).await
    }

    async fn get_range(&mut self, query: RangeQuery, isolation: Isolation) -> Result<RangePage> {
        self.apart(async move |tx| tx.get_range(query, isolation).await).await
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.now(|tx| tx.set(key, value));
    }

    fn clear(&mut self, key: &[u8]) {
        self.now(|tx| tx.clear(key));
    }

    fn clear_range(&mut self, begin: &[u8], end: &[u8]) {
        self.now(|tx| tx.clear_range(begin, end));
    }

    fn set_versionstamped_key(&mut self, key: &[u8], offset: usize, value: &[u8]) {
        self.now(|tx| tx.set_versionstamped_key(key, offset, value));
    }

    fn set_versionstamped_value(&mut self, key: &[u8], value: &[u8], offset: usize) {
        self.now(|tx| tx.set_versionstamped_value(key, value, offset));
    }

    fn add_conflict_range(&mut self, begin: &[u8], end: &[u8], kind: ConflictKind) {
        self.now(|tx| tx.add_conflict_range(begin, end, kind));
    }

    fn watch(&mut self, key: &[u8]) -> Watch {
        self.now(|tx| tx.watch(key))
    }

    async fn commit(self: Box<Self>) -> Result<Committed> {
        let inner = self.inner;
        apart(move || match inner.lock().take() {
            Some(inner) => runtime().block_on(inner.commit()),
            None => Err(Error::Unavailable("the transaction is committed".into())),
        })
        .await
    }
}
