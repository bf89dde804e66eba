//! Cost accounting: a store that counts which kinds of keys its transactions read and write.
//!
//! Wraps any engine. What kinds there are is the caller's: a function from a key to a small number. A transaction
//! counts for itself and adds to the [`Meter`] once, when it ends, so that tasks which share a store do not share
//! a counter for every key. Writes count when they were committed, reads whatever became of the transaction.
//!
//! Knows neither what a kind means nor a metrics library.

mod transaction;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;

use self::transaction::MeteredTransaction;
use crate::{Committed, Error, Result, SharedStore, Snapshot, Store, StoreStats, Transaction, Version};

/// What was done to the keys of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Reads of a single key, found or not, and pairs returned by reads of a range.
    pub keys_read: u64,
    /// Bytes of keys and values read.
    pub bytes_read: u64,
    /// Keys written by commits.
    pub keys_written: u64,
    /// Bytes of keys and values written by commits.
    pub bytes_written: u64,
    /// Keys cleared one by one by commits.
    pub keys_cleared: u64,
    /// Ranges cleared by commits; each is of the kind of its first key.
    pub ranges_cleared: u64,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its writes are durable.
    Committed,
    /// It had nothing to write.
    ReadOnly,
    /// [`Error::Conflict`].
    Conflict,
    /// [`Error::TooOld`].
    TooOld,
    /// [`Error::TooLarge`].
    TooLarge,
    /// [`Error::UnknownSettled`] or [`Error::UnknownOpen`]: its writes are not counted.
    Unknown,
    /// [`Error::Busy`].
    Busy,
    /// [`Error::Unavailable`] or [`Error::Damaged`].
    Failed,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 8] = [
        Self::Committed,
        Self::ReadOnly,
        Self::Conflict,
        Self::TooOld,
        Self::TooLarge,
        Self::Unknown,
        Self::Busy,
        Self::Failed,
    ];

    /// Its name, in snake case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::ReadOnly => "read_only",
            Self::Conflict => "conflict",
            Self::TooOld => "too_old",
            Self::TooLarge => "too_large",
            Self::Unknown => "unknown",
            Self::Busy => "busy",
            Self::Failed => "failed",
        }
    }

    const fn of(committed: &Result<Committed>) -> Self {
        match committed {
            Ok(Committed { versionstamp: Some(_), .. }) => Self::Committed,
            Ok(Committed { versionstamp: None, .. }) => Self::ReadOnly,
            Err(Error::Conflict) => Self::Conflict,
            Err(Error::TooOld) => Self::TooOld,
            Err(Error::TooLarge { .. }) => Self::TooLarge,
            Err(Error::UnknownSettled | Error::UnknownOpen) => Self::Unknown,
            Err(Error::Busy(_)) => Self::Busy,
            Err(Error::Unavailable(_) | Error::Damaged(_)) => Self::Failed,
        }
    }
}

/// Tells the kind of a key, a number below the count given with it.
pub type Classify = fn(&[u8]) -> usize;

/// What the transactions of a [`MeteredStore`] have cost so far. Every number only grows.
#[derive(Debug)]
pub struct Meter {
    classify: Classify,
    kinds: Box<[KindMeter]>,
    outcomes: [AtomicU64; Outcome::ALL.len()],
}

#[derive(Debug, Default)]
struct KindMeter {
    keys_read: AtomicU64,
    bytes_read: AtomicU64,
    keys_written: AtomicU64,
    bytes_written: AtomicU64,
    keys_cleared: AtomicU64,
    ranges_cleared: AtomicU64,
}

impl Meter {
    /// A meter of `kinds` kinds, at least one, told apart by `classify`. A number that is too large counts as the
    /// last kind.
    #[must_use]
    pub fn new(kinds: usize, classify: Classify) -> Self {
        let kinds = (0..kinds.max(1)).map(|_| KindMeter::default()).collect();
        Self { classify, kinds, outcomes: Default::default() }
    }

    /// What was done to the keys of `kind`.
    #[must_use]
    pub fn cost(&self, kind: usize) -> Cost {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.kinds.get(kind).map_or_else(Cost::default, |meter| Cost {
            keys_read: read(&meter.keys_read),
            bytes_read: read(&meter.bytes_read),
            keys_written: read(&meter.keys_written),
            bytes_written: read(&meter.bytes_written),
            keys_cleared: read(&meter.keys_cleared),
            ranges_cleared: read(&meter.ranges_cleared),
        })
    }

    /// Transactions that were asked to commit and ended so.
    #[must_use]
    pub fn transactions(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize].load(Ordering::Relaxed)
    }

    fn kind(&self, key: &[u8]) -> usize {
        (self.classify)(key).min(self.kinds.len() - 1)
    }

    fn add(&self, kind: usize, cost: &Cost) {
        let meter = &self.kinds[kind];
        for (counter, n) in [
            (&meter.keys_read, cost.keys_read),
            (&meter.bytes_read, cost.bytes_read),
            (&meter.keys_written, cost.keys_written),
            (&meter.bytes_written, cost.bytes_written),
            (&meter.keys_cleared, cost.keys_cleared),
            (&meter.ranges_cleared, cost.ranges_cleared),
        ] {
            if n > 0 {
                counter.fetch_add(n, Ordering::Relaxed);
            }
        }
    }

    fn count(&self, outcome: Outcome) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// A store whose transactions are counted.
#[derive(Debug)]
pub struct MeteredStore {
    inner: SharedStore,
    meter: Arc<Meter>,
}

impl MeteredStore {
    /// `inner`, counted by `meter`.
    #[must_use]
    pub const fn new(inner: SharedStore, meter: Arc<Meter>) -> Self {
        Self { inner, meter }
    }
}

#[async_trait]
impl Store for MeteredStore {
    fn begin(&self) -> Box<dyn Transaction> {
        Box::new(MeteredTransaction::new(self.inner.begin(), Arc::clone(&self.meter)))
    }

    fn engine(&self) -> &'static str {
        self.inner.engine()
    }

    fn engine_stats(&self) -> Option<Arc<StoreStats>> {
        self.inner.engine_stats()
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
        self.inner.failed().await
    }

    async fn close(&self) {
        self.inner.close().await;
    }
}

#[cfg(test)]
mod tests {
    use weir_env::clock::Clock;

    use super::*;
    use crate::{ConflictKind, Isolation, MemoryStore, RangeQuery};

    /// Kinds 0 and 1 by the first byte; everything else is beyond them.
    fn metered() -> (MeteredStore, Arc<Meter>) {
        let classify: Classify = |key| match key.first() {
            Some(b'a') => 0,
            Some(b'b') => 1,
            _ => usize::MAX,
        };
        let meter = Arc::new(Meter::new(3, classify));
        (MeteredStore::new(Arc::new(MemoryStore::new(Clock::system())), Arc::clone(&meter)), meter)
    }

    #[tokio::test]
    async fn what_is_committed_is_counted_by_kind() {
        let (store, meter) = metered();
        let mut tx = store.begin();
        tx.set(b"a1", b"123");
        tx.set(b"b1", b"12345");
        tx.set(b"a2", b"");
        tx.set_versionstamped_key(b"b          ", 1, b"x");
        tx.set_versionstamped_value(b"c", b"0123456789", 0);
        tx.clear(b"a9");
        tx.clear_range(b"b3", b"b4");
        assert_eq!(meter.cost(0), Cost::default(), "nothing before the commit");
        tx.commit().await.unwrap();
        let a = Cost { keys_written: 2, bytes_written: 7, keys_cleared: 1, ..Cost::default() };
        let b = Cost { keys_written: 2, bytes_written: 7 + 12, ranges_cleared: 1, ..Cost::default() };
        let rest = Cost { keys_written: 1, bytes_written: 11, ..Cost::default() };
        assert_eq!([0, 1, 2].map(|kind| meter.cost(kind)), [a, b, rest]);
        assert_eq!(Outcome::ALL.map(|outcome| meter.transactions(outcome)), [1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[tokio::test]
    async fn reads_count_also_when_nothing_comes_of_them() {
        let (store, meter) = metered();
        let mut tx = store.begin();
        tx.set(b"a1", b"123");
        tx.set(b"b1", b"12345");
        tx.commit().await.unwrap();
        let written = [0, 1].map(|kind| meter.cost(kind));

        let mut tx = store.begin();
        tx.get(b"a1", Isolation::Serializable).await.unwrap();
        tx.get(b"a2", Isolation::Snapshot).await.unwrap();
        let page = tx.get_range(RangeQuery::new("a", "c"), Isolation::Snapshot).await.unwrap();
        assert_eq!(page.pairs.len(), 2);
        tx.set(b"a1", b"lost");
        drop(tx);
        let a = Cost { keys_read: 3, bytes_read: 5 + 2 + 5, ..written[0] };
        let b = Cost { keys_read: 1, bytes_read: 7, ..written[1] };
        assert_eq!([0, 1].map(|kind| meter.cost(kind)), [a, b]);
    }

    #[tokio::test]
    async fn every_transaction_ends_in_one_outcome() {
        let (store, meter) = metered();
        store.begin().commit().await.unwrap();
        let mut late = store.begin();
        late.get(b"a", Isolation::Serializable).await.unwrap();
        late.set(b"a", b"late");
        let mut first = store.begin();
        first.set(b"a", b"first");
        first.commit().await.unwrap();
        assert!(matches!(late.commit().await, Err(Error::Conflict)));
        let mut large = store.begin();
        large.set(b"a", &vec![0; 100_000]);
        assert!(matches!(large.commit().await, Err(Error::TooLarge { .. })));
        let mut conflict_only = store.begin();
        conflict_only.add_conflict_key(b"a", ConflictKind::Write);
        conflict_only.commit().await.unwrap();
        store.close().await;
        let mut closed = store.begin();
        closed.set(b"a", b"");
        assert!(closed.commit().await.is_err());
        let counted = Outcome::ALL.map(|outcome| (outcome.as_str(), meter.transactions(outcome)));
        let expected = [
            ("committed", 2),
            ("read_only", 1),
            ("conflict", 1),
            ("too_old", 0),
            ("too_large", 1),
            ("unknown", 0),
            ("busy", 0),
            ("failed", 1),
        ];
        assert_eq!(counted, expected);
        assert_eq!(meter.cost(0).keys_written, 1, "only what was committed");
    }
}
