//! A store that fails on request: wraps any engine and injects every outcome of the contract, scripted or
//! drawn from a seed. For tests.
//!
//! Knows the contract alone. [`FaultHandle`] says what goes wrong; without a word from it the wrapped engine
//! shines through unchanged.

mod plan;
mod transaction;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use weir_env::seed::Seed;

pub use self::plan::{CommitFault, FaultRates, WatchFault};
use self::plan::{Plan, ReadFault};
use self::transaction::FaultTransaction;
use crate::local::failure_in;
use crate::{Committed, Error, Result, SharedStore, Snapshot, Store, Transaction, Version, Watch};

/// A store with faults; see [`FaultStore::handle`].
#[derive(Debug)]
pub struct FaultStore {
    inner: SharedStore,
    faults: Arc<Faults>,
}

/// Decides what goes wrong in a [`FaultStore`]. Clones share one plan.
#[derive(Clone, Debug)]
pub struct FaultHandle {
    faults: Arc<Faults>,
}

/// What the store, its handle and its transactions share.
#[derive(Debug)]
struct Faults {
    plan: Mutex<Plan>,
    seed: Seed,
    /// Commits whose outcome was told as open and that happen later.
    delayed: Mutex<JoinSet<()>>,
    /// Ends stalls.
    release: Arc<Notify>,
    /// Why nothing is committed any more.
    failure: watch::Sender<Option<Arc<str>>>,
}

impl FaultStore {
    /// `inner`, with random faults drawn from `seed` once rates are set.
    #[must_use]
    pub fn wrap(inner: SharedStore, seed: Seed) -> Self {
        let faults = Faults {
            plan: Mutex::default(),
            seed,
            delayed: Mutex::default(),
            release: Arc::default(),
            failure: watch::Sender::new(None),
        };
        Self { inner, faults: Arc::new(faults) }
    }

    /// What makes it fail.
    #[must_use]
    pub fn handle(&self) -> FaultHandle {
        FaultHandle { faults: Arc::clone(&self.faults) }
    }
}

#[async_trait]
impl Store for FaultStore {
    fn begin(&self) -> Box<dyn Transaction> {
        Box::new(FaultTransaction::new(self.inner.begin(), Arc::clone(&self.faults)))
    }

    fn engine(&self) -> &'static str {
        self.inner.engine()
    }

    async fn describe(&self) -> Result<Vec<(&'static str, String)>> {
        self.inner.describe().await
    }

    async fn hold(&self) -> Option<Result<Box<dyn Snapshot>>> {
        self.inner.hold().await
    }

    async fn advance(&self, version: Version) -> Result<()> {
        self.inner.advance(version).await
    }

    async fn failed(&self) -> Arc<str> {
        tokio::select! {
            why = failure_in(&self.faults.failure) => why,
            why = self.inner.failed() => why,
        }
    }

    async fn close(&self) {
        self.faults.settle().await;
        self.inner.close().await;
    }
}

impl FaultHandle {
    /// The next transaction with writes that nothing else fails ends like this. May be called several times:
    /// the faults are used up in order.
    pub fn fail_next_commit(&self, fault: CommitFault) {
        self.faults.plan.lock().next_commits.push_back(fault);
    }

    /// Every commit that writes, clears or adds a write conflict under `key_prefix` ends like this, until
    /// [`FaultHandle::heal`].
    pub fn fail_commits_matching(&self, key_prefix: &[u8], fault: CommitFault) {
        self.faults.plan.lock().matching_commits.push((key_prefix.to_vec(), fault));
    }

    /// The next read (of a key, a range or the read version) fails with `error`.
    pub fn fail_next_read(&self, error: Error) {
        self.faults.plan.lock().next_reads.push_back(error);
    }

    /// The next watch is lost or fires for no reason.
    pub fn fail_next_watch(&self, fault: WatchFault) {
        self.faults.plan.lock().next_watches.push_back(fault);
    }

    /// From now on faults also happen by chance.
    pub fn set_rates(&self, rates: FaultRates) {
        self.faults.plan.lock().rates = rates;
    }

    /// While `true`, every read and commit fails with [`Error::Unavailable`].
    pub fn unavailable(&self, is_unavailable: bool) {
        self.faults.plan.lock().is_unavailable = is_unavailable;
    }

    /// From now on every commit with writes fails with [`Error::Unavailable`], and [`Store::failed`] says so.
    /// Nothing heals it.
    pub fn fail_for_good(&self, why: &str) {
        self.faults.failure.send_replace(Some(why.into()));
    }

    /// Lets the commits that are stalled now take their course at once.
    pub fn release_stalled(&self) {
        self.faults.release.notify_waiters();
    }

    /// No more faults. Commits that are to happen later still do; see [`FaultHandle::settle`].
    pub fn heal(&self) {
        let mut plan = self.faults.plan.lock();
        *plan = Plan { injected: plan.injected, ..Plan::default() };
    }

    /// Waits until no commit is still to happen. Not cancel-safe: cancelled, it may lose such commits.
    pub async fn settle(&self) {
        self.faults.settle().await;
    }

    /// How many faults there have been.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.faults.plan.lock().injected
    }
}

impl Faults {
    async fn on_read(&self) -> Result<()> {
        let fault = self.plan.lock().next_read(&self.seed);
        match fault {
            None => Ok(()),
            Some(ReadFault::Refused(error)) => Err(error),
            Some(ReadFault::Slow(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(())
            }
        }
    }

    /// Whether commits that touch these ranges fail for good.
    fn check_alive(&self, touched: &[(Bytes, Bytes)]) -> Result<()> {
        let failure = self.failure.borrow().clone();
        failure.filter(|_| !touched.is_empty()).map_or(Ok(()), |why| Err(Error::Unavailable(why)))
    }

    fn on_watch(&self, watch: Watch) -> Watch {
        let fault = self.plan.lock().next_watch(&self.seed);
        let Some(fault) = fault else { return watch };
        let (trigger, changed) = Watch::new();
        match fault {
            WatchFault::Lost => trigger.abandon(),
            WatchFault::Spurious => trigger.fire(),
        }
        changed
    }

    /// Lets `transaction`, which touches these ranges, commit after `delay` or once released, whoever waits for
    /// it or not.
    fn commit_later(
        self: &Arc<Self>,
        transaction: Box<dyn Transaction>,
        touched: Vec<(Bytes, Bytes)>,
        delay: Duration,
    ) -> oneshot::Receiver<Result<Committed>> {
        let (told_tx, told_rx) = oneshot::channel();
        let faults = Arc::clone(self);
        // From here on, so that whoever has counted the fault can end it.
        let released = Arc::clone(&self.release).notified_owned();
        let held_up = async move {
            // Either ends it.
            let _ = tokio::time::timeout(delay, released).await;
            faults.check_alive(&touched)?;
            transaction.commit().await
        };
        let mut delayed = self.delayed.lock();
        while delayed.try_join_next().is_some() {}
        delayed.spawn(async move {
            let outcome = held_up.await;
            tracing::debug!(?outcome, "a delayed commit");
            // Whoever asked may be gone.
            let _ = told_tx.send(outcome);
        });
        told_rx
    }

    async fn settle(&self) {
        let delayed = std::mem::take(&mut *self.delayed.lock());
        delayed.join_all().await;
    }
}
