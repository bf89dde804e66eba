//! Putting a backup into an empty store.
//!
//! A restore goes back in time, and whoever knows a later time must not go on as if nothing had happened: a broker
//! that was not stopped, a connection that still holds its session. So the fences of all shards and sessions are
//! raised by more than they can have grown since the backup; everything else is taken over byte by byte.
//!
//! Until the last record is in, the place of the keyspace's format says that a restore goes on: no broker starts on
//! half a store. Records come in the order of the backup; this module holds one transaction's worth of them.

use std::time::Duration;

use bytes::Bytes;
use weir_env::seed::Seed;
use weir_storage::backup::Pairs;
use weir_storage::limits::TRANSACTION_BYTES_TARGET;
use weir_storage::{Isolation, KEYS_END, RangeQuery, SharedStore, Transaction, TransactionSize, Version};

use crate::keyspace::DecodeError;
use crate::keyspace::format::{self, KeyspaceFormat};
use crate::keyspace::owner::{Epoch, Owner, PodId};
use crate::keyspace::record::{RecordKind, session_part};
use crate::keyspace::session::{Fence, SessionEpoch};
use crate::keyspace::timer::{Timer, TimerKind};
use crate::keyspace::will::WillId;

/// What epochs grow by: more than takeovers there can have been since the backup.
const EPOCH_LEAP: u64 = 1 << 32;
/// The owner of a restored shard: no process has this id.
const NOBODY: PodId = PodId([0; 16]);
/// Size of the records in one transaction; what comes on top of them is small.
const BATCH_BYTES: usize = TRANSACTION_BYTES_TARGET - 100_000;
/// How often a transaction is repeated.
const REPEATS_MAX: u32 = 20;
/// Wait before a repeat.
const REPEAT_WAIT: Duration = Duration::from_millis(100);
/// Where the kind of a timer stands in its key.
const TIMER_KIND_AT: usize = 3;

/// Why a restore does not go on.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The store holds something.
    #[error("the store is not empty: restore into a new one")]
    NotEmpty,
    /// The store holds part of a backup.
    #[error(
        "an earlier restore into this store did not come to its end: empty the store, then restore again"
    )]
    Unfinished,
    /// Somebody else has written to the store.
    #[error("somebody else uses the store: stop every broker that has it, empty it, then restore again")]
    Interfered,
    /// A record of the backup is not readable.
    #[error("the backup holds a record that this program cannot read: {0}")]
    Record(#[from] DecodeError),
    /// The store failed.
    #[error("{0}")]
    Store(#[from] weir_storage::Error),
}

/// A restore that is going on.
#[derive(Debug)]
pub struct Restore {
    store: SharedStore,
    /// What stands in place of the format.
    mark: Bytes,
    /// What will stand there; `None` if the backup is of a store that no broker has used.
    format: Option<Bytes>,
    batch: Pairs,
    batch_bytes: usize,
}

/// Whether every one of `pairs` can be restored. Writes nothing.
///
/// # Errors
/// If one is damaged or of a newer version.
pub fn check(pairs: &Pairs) -> Result<(), DecodeError> {
    for (key, value) in pairs {
        if key.as_ref() == KeyspaceFormat::key() {
            KeyspaceFormat::decode(value.clone())?;
        }
        renew(key.clone(), value.clone())?;
    }
    Ok(())
}

impl Restore {
    /// Begins to restore a backup of version `version` into `store`, which must be empty.
    ///
    /// # Errors
    /// If it is not; nothing has been written then. If the store fails.
    pub async fn begin(store: &SharedStore, version: Version, seed: &Seed) -> Result<Self, RestoreError> {
        check_empty(&mut *store.begin()).await?;
        // Versionstamps of the backup must stay below those that are still to come.
        store.advance(version).await?;
        let mark = Bytes::from(format::restoring(&seed.fork("restore").next_id()));
        let (batch, batch_bytes) = (Vec::new(), 0);
        let restore = Self { store: SharedStore::clone(store), mark, format: None, batch, batch_bytes };
        let mut repeats = 0;
        loop {
            let mut tx = store.begin();
            let outcome = restore.try_mark(&mut *tx).await;
            let outcome = match outcome {
                Ok(()) => tx.commit().await.map(drop).map_err(RestoreError::from),
                Err(error) => Err(error),
            };
            match outcome {
                Err(error) if is_worth_a_repeat(&error) && repeats < REPEATS_MAX => pause(&mut repeats).await,
                outcome => return outcome.map(|()| restore),
            }
        }
    }

    /// Takes the next records of the backup. Not cancel-safe.
    ///
    /// # Errors
    /// If a record is not readable, somebody else uses the store, or it fails. The store is then of no use.
    pub async fn add(&mut self, pairs: Pairs) -> Result<(), RestoreError> {
        for (key, value) in pairs {
            if key.as_ref() == KeyspaceFormat::key() {
                KeyspaceFormat::decode(value.clone())?;
                self.format = Some(value);
                continue;
            }
            let (key, value) = renew(key, value)?;
            let bytes = TransactionSize::of_write(key.len(), value.len());
            if self.batch_bytes + bytes > BATCH_BYTES {
                self.flush().await?;
            }
            self.batch_bytes += bytes;
            self.batch.push((key, value));
        }
        Ok(())
    }

    /// Writes what is left, and makes the store one that a broker can run on.
    ///
    /// # Errors
    /// As [`Restore::add`].
    pub async fn finish(mut self) -> Result<(), RestoreError> {
        self.flush().await?;
        let format = self.format.as_ref();
        let mut repeats = 0;
        loop {
            match self.try_finish(format).await {
                Err(error) if is_worth_a_repeat(&error) && repeats < REPEATS_MAX => pause(&mut repeats).await,
                outcome => return outcome,
            }
        }
    }

    async fn flush(&mut self) -> Result<(), RestoreError> {
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let mut repeats = 0;
        loop {
            // What may have been committed is written once more: the same bytes.
            match self.try_write(&batch).await {
                Err(error) if is_worth_a_repeat(&error) && repeats < REPEATS_MAX => pause(&mut repeats).await,
                outcome => return outcome,
            }
        }
    }

    async fn try_mark(&self, tx: &mut dyn Transaction) -> Result<(), RestoreError> {
        if self.place_of_format(tx).await?.as_ref() != Some(&self.mark) {
            check_empty(tx).await?;
            tx.set(&KeyspaceFormat::key(), &self.mark);
        }
        Ok(())
    }

    async fn try_write(&self, pairs: &Pairs) -> Result<(), RestoreError> {
        let mut tx = self.store.begin();
        if self.place_of_format(&mut *tx).await?.as_ref() != Some(&self.mark) {
            return Err(RestoreError::Interfered);
        }
        for (key, value) in pairs {
            tx.set(key, value);
        }
        tx.commit().await?;
        Ok(())
    }

    async fn try_finish(&self, format: Option<&Bytes>) -> Result<(), RestoreError> {
        let mut tx = self.store.begin();
        let found = self.place_of_format(&mut *tx).await?;
        if found.as_ref() == format {
            // An attempt whose outcome was not known.
            return Ok(());
        }
        if found.as_ref() != Some(&self.mark) {
            return Err(RestoreError::Interfered);
        }
        match format {
            Some(format) => tx.set(&KeyspaceFormat::key(), format),
            None => tx.clear(&KeyspaceFormat::key()),
        }
        tx.commit().await?;
        Ok(())
    }

    /// Reads it so that no attempt from before it was changed can still commit after.
    async fn place_of_format(&self, tx: &mut dyn Transaction) -> Result<Option<Bytes>, RestoreError> {
        Ok(tx.get(&KeyspaceFormat::key(), Isolation::Serializable).await?)
    }
}

async fn check_empty(tx: &mut dyn Transaction) -> Result<(), RestoreError> {
    let stored = tx.get(&KeyspaceFormat::key(), Isolation::Serializable).await?;
    if stored.is_some_and(|stored| KeyspaceFormat::decode(stored) == Err(DecodeError::Unfinished)) {
        return Err(RestoreError::Unfinished);
    }
    let first = tx.get_range(RangeQuery::new(b"", KEYS_END).limit(1), Isolation::Serializable).await?;
    if first.pairs.is_empty() { Ok(()) } else { Err(RestoreError::NotEmpty) }
}

const fn is_worth_a_repeat(error: &RestoreError) -> bool {
    match error {
        RestoreError::Store(error) => error.is_retryable() || error.may_have_committed(),
        RestoreError::NotEmpty
        | RestoreError::Unfinished
        | RestoreError::Interfered
        | RestoreError::Record(_) => false,
    }
}

async fn pause(repeats: &mut u32) {
    *repeats += 1;
    tokio::time::sleep(REPEAT_WAIT).await;
}

/// The record as it is restored: fences are raised, and wills follow the fences of their sessions.
fn renew(key: Bytes, value: Bytes) -> Result<(Bytes, Bytes), DecodeError> {
    match RecordKind::of(&key) {
        RecordKind::Owner => {
            let owner = Owner::decode(value)?;
            let raised = Owner { epoch: Epoch(owner.epoch.0.saturating_add(EPOCH_LEAP)), pod: NOBODY };
            Ok((key, raised.encode().into()))
        }
        RecordKind::Session if session_part(&key) == Some(b'e') => {
            let fence = Fence::decode(value)?;
            Ok((key, Fence { epoch: raised(fence.epoch), ..fence }.encode().into()))
        }
        RecordKind::Will => {
            let (will, part) = WillId::decode_key(key)?;
            Ok((WillId { epoch: raised(will.epoch), ..will }.key(part).into(), value))
        }
        RecordKind::Timer if key.get(TIMER_KIND_AT) == Some(&TimerKind::Will.byte()) => {
            let timer = match Timer::decode(TimerKind::Will, value)? {
                Timer::Will(will) => Timer::Will(WillId { epoch: raised(will.epoch), ..will }),
                other => other,
            };
            Ok((key, timer.encode().into()))
        }
        _ => Ok((key, value)),
    }
}

const fn raised(epoch: SessionEpoch) -> SessionEpoch {
    SessionEpoch(epoch.0.saturating_add(EPOCH_LEAP))
}

#[cfg(test)]
mod tests;
