//! Versions that no other life of the store gives out.
//!
//! A client remembers versions while the server is away: one that was given out in one life and again in the next
//! would stand for two states of the store, and a fence checked against it would not hold. What the next life knows
//! is the last commit. So a life gives out no version that is [`LEAP`] or more beyond its last commit, and begins with
//! a commit [`LEAP`] beyond what it found. A server that nobody writes to commits something now and then.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use weir_storage::{Error, KEYS_END, Result, Store, Version};

/// An hour of the versions of a local engine, which count microseconds: for so long commits may fail before reads do.
const LEAP: u64 = 3_600_000_000;
/// How often there is a commit at least.
pub(super) const TOUCH_INTERVAL: Duration = Duration::from_mins(1);

#[derive(Debug)]
pub(super) struct Horizon {
    /// The newest commit that is known to be durable.
    last: AtomicU64,
}

impl Horizon {
    /// Begins a life of `store`.
    pub(super) async fn begin(store: &dyn Store) -> Result<Self> {
        let found = store.begin().read_version().await?;
        store.advance(Version(found.0.saturating_add(LEAP))).await?;
        let horizon = Self { last: AtomicU64::new(0) };
        horizon.touch(store).await?;
        Ok(horizon)
    }

    /// Commits something that changes nothing.
    pub(super) async fn touch(&self, store: &dyn Store) -> Result<()> {
        let mut tx = store.begin();
        // Never set: no key of a store begins with these bytes.
        tx.clear(&[KEYS_END, b"alive"].concat());
        let committed = tx.commit().await?;
        self.note(committed.version);
        Ok(())
    }

    /// Notes a commit.
    pub(super) fn note(&self, version: Version) {
        self.last.fetch_max(version.0, Ordering::Relaxed);
    }

    pub(super) fn last(&self) -> u64 {
        self.last.load(Ordering::Relaxed)
    }

    /// Fails if `version` may not be given out.
    pub(super) fn check(&self, version: Version) -> Result<Version> {
        if version.0.saturating_sub(self.last()) < LEAP {
            return Ok(version);
        }
        Err(Error::Busy("the store has taken no commit for an hour: look at the log of its server".into()))
    }
}

#[cfg(test)]
mod tests {
    use weir_env::clock::Clock;
    use weir_storage::MemoryStore;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_given_out_stays_near_the_last_commit() {
        let store = MemoryStore::new(Clock::system());
        let before = store.begin().read_version().await.unwrap();
        let horizon = Horizon::begin(&store).await.unwrap();
        assert!(horizon.last() >= before.0 + LEAP, "a life begins beyond what the one before has given out");
        let now = || async { horizon.check(store.begin().read_version().await?) };
        now().await.unwrap();
        tokio::time::sleep(Duration::from_secs(3_599)).await;
        now().await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(matches!(now().await, Err(Error::Busy(_))));
        horizon.touch(&store).await.unwrap();
        now().await.unwrap();
    }
}
