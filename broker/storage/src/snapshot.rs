//! The store as it was at one version, read for longer than a transaction lives: what a backup is made of.
//!
//! An engine that can keep a version readable says so by [`Store::hold`](crate::Store::hold). On any other, a snapshot
//! moves on to a newer version every few seconds, after a transaction has proved that nobody has written anything in
//! between. So it is of one version in either case, or it fails: an engine without holds gives a snapshot that is read
//! within seconds while others write, and of any length while nobody does.

use std::time::Duration;

use async_trait::async_trait;
use weir_env::clock::{Clock, Instant};

use crate::{ConflictKind, Error, Isolation, RangePage, RangeQuery, Result, SharedStore, Version};

/// The end of what a snapshot covers: no key of a store begins with this byte.
pub const KEYS_END: &[u8] = &[0xff];
/// A key that is never written. The proof that nothing has changed needs one, because a transaction that neither
/// writes nor conflicts with anybody is not judged.
const PROOF_KEY: &[u8] = b"!";
/// Age from which a version is left for a newer one, well below [`LIFETIME`](crate::limits::LIFETIME).
const STEP_AFTER: Duration = Duration::from_secs(3);

/// The store as it was at one version.
#[async_trait]
pub trait Snapshot: Send + std::fmt::Debug {
    /// The version it shows. No versionstamp in it is greater.
    fn version(&self) -> Version;

    /// A page of pairs, of keys below [`KEYS_END`]. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the engine cannot keep the version and others have written meanwhile; begin again with
    /// another snapshot. Otherwise as [`Transaction::get_range`](crate::Transaction::get_range).
    async fn get_range(&mut self, query: RangeQuery) -> Result<RangePage>;
}

/// The store as it is now; see the [module](self). Reads are not counted by a [`MeteredStore`](crate::MeteredStore).
///
/// # Errors
/// If the store does not answer.
pub async fn snapshot(store: &SharedStore) -> Result<Box<dyn Snapshot>> {
    match store.hold().await {
        Some(held) => held,
        None => Ok(Box::new(Stepping::begin(SharedStore::clone(store)).await?)),
    }
}

/// A snapshot over transactions alone.
#[derive(Debug)]
struct Stepping {
    store: SharedStore,
    /// What it shows is the same from `first` to `at`.
    first: Version,
    at: Version,
    /// No later than `at` was given out.
    since: Instant,
}

impl Stepping {
    async fn begin(store: SharedStore) -> Result<Self> {
        let since = Clock::system().now();
        let first = store.begin().read_version().await?;
        Ok(Self { store, first, at: first, since })
    }

    /// Moves on to a newer version at which the store is still the same.
    async fn step(&mut self) -> Result<()> {
        let since = Clock::system().now();
        let next = self.store.begin().read_version().await?;
        // Commits after `next`, so that it conflicts with every write from `at` to `next`.
        let mut proof = self.store.begin();
        proof.set_read_version(self.at);
        proof.add_conflict_range(b"", PROOF_KEY, ConflictKind::Read);
        proof.add_conflict_range(&[PROOF_KEY, b"\0"].concat(), KEYS_END, ConflictKind::Read);
        proof.add_conflict_key(PROOF_KEY, ConflictKind::Write);
        match proof.commit().await {
            Ok(_) => (self.at, self.since) = (next, since),
            // It may be that nobody has written, but there is no proof.
            Err(Error::TooOld) => return Err(Error::Conflict),
            // What it proves does not depend on whether it is known: another attempt asks again.
            Err(Error::UnknownSettled | Error::UnknownOpen) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

#[async_trait]
impl Snapshot for Stepping {
    fn version(&self) -> Version {
        self.first
    }

    async fn get_range(&mut self, query: RangeQuery) -> Result<RangePage> {
        if self.since.elapsed() >= STEP_AFTER {
            self.step().await?;
        }
        let mut tx = self.store.begin();
        tx.set_read_version(self.at);
        match tx.get_range(query.clone(), Isolation::Snapshot).await {
            Err(Error::TooOld) => {}
            answer => return answer,
        }
        self.step().await?;
        let mut tx = self.store.begin();
        tx.set_read_version(self.at);
        tx.get_range(query, Isolation::Snapshot).await.map_err(|error| match error {
            Error::TooOld => Error::Conflict,
            error => error,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::MemoryStore;

    async fn put(store: &SharedStore, key: &[u8], value: &[u8]) {
        let mut tx = store.begin();
        tx.set(key, value);
        tx.commit().await.unwrap();
    }

    fn all() -> RangeQuery {
        RangeQuery::new(b"", KEYS_END)
    }

    async fn stepping() -> (SharedStore, Stepping) {
        let store: SharedStore = Arc::new(MemoryStore::new(Clock::system()));
        put(&store, b"a", b"1").await;
        let snapshot = Stepping::begin(Arc::clone(&store)).await.unwrap();
        (store, snapshot)
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_store_can_be_read_for_as_long_as_it_takes() {
        let (_store, mut snapshot) = stepping().await;
        for wait in [0, 1, 3, 4, 3, 2, 0] {
            tokio::time::sleep(Duration::from_secs(wait)).await;
            assert_eq!(snapshot.get_range(all()).await.unwrap().pairs.len(), 1, "after {wait} s");
        }
        assert!(snapshot.version() < snapshot.at);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_written_meanwhile_is_never_shown() {
        let (store, mut snapshot) = stepping().await;
        put(&store, b"b", b"2").await;
        assert_eq!(snapshot.get_range(all()).await.unwrap().pairs.len(), 1);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(matches!(snapshot.get_range(all()).await, Err(Error::Conflict)));
        assert!(matches!(snapshot.get_range(all()).await, Err(Error::Conflict)), "and stays so");

        // Also what is written between two steps, and what is undone again.
        let mut snapshot = Stepping::begin(Arc::clone(&store)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(snapshot.get_range(all()).await.unwrap().pairs.len(), 2);
        put(&store, b"c", b"").await;
        let mut tx = store.begin();
        tx.clear(b"c");
        tx.commit().await.unwrap();
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(matches!(snapshot.get_range(all()).await, Err(Error::Conflict)));
    }

    #[tokio::test(start_paused = true)]
    async fn without_proof_in_time_there_is_no_page() {
        let (_store, mut snapshot) = stepping().await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(matches!(snapshot.get_range(all()).await, Err(Error::Conflict)));
    }
}
