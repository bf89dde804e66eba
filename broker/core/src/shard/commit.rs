//! Committing a batch: repeating it when that is right, and telling apart what cannot be known.

use std::time::Duration;

use weir_storage::{Isolation, Version};

use super::Context;
use super::batch::Batch;
use super::compaction;
use super::fence::{self, Tenure};
use super::mutations::Mutation;
use crate::error::{Error, Result};
use crate::keyspace::VirtualShard;
use crate::keyspace::log_state::LogState;
use crate::keyspace::owner::Owner;

/// How often a batch, or what it has to read before, is repeated before its outcome is reported.
pub(super) const REPEATS_MAX: u32 = 20;
/// First wait between repeats; it doubles.
pub(super) const REPEAT_WAIT: Duration = Duration::from_millis(5);
/// Longest wait between repeats.
pub(super) const REPEAT_WAIT_MAX: Duration = Duration::from_secs(1);

/// How a batch ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is durable; ownership was last checked at this version.
    Committed(Version),
    /// It is not, and never will be.
    Failed(Error),
    /// Another owner has taken over: it is not, and never will be.
    Fenced,
    /// It may be durable, or become so.
    Unknown(Error),
}

/// Commits `batch` for `owner`, whose ownership was last seen at version `seen`; without one it is read first.
pub(crate) async fn commit(
    context: Context,
    vs: VirtualShard,
    owner: Owner,
    mut seen: Option<Version>,
    mut batch: Batch,
) -> (Batch, Outcome) {
    if let Err(error) = compaction::prepare(&context, &mut batch).await {
        return (batch, Outcome::Failed(error));
    }
    for chunks in &batch.blobs {
        match commit_mutations(&context, vs, &owner, seen, chunks).await {
            Outcome::Committed(version) => seen = Some(version),
            // Chunks that nobody refers to are overwritten by the next record at their offset.
            other => return (batch, other),
        }
    }
    let outcome = commit_mutations(&context, vs, &owner, seen, &batch.mutations).await;
    (batch, outcome)
}

async fn commit_mutations(
    context: &Context,
    vs: VirtualShard,
    owner: &Owner,
    mut seen: Option<Version>,
    mutations: &[Mutation],
) -> Outcome {
    let mut unknown = None;
    let mut wait = REPEAT_WAIT;
    for repeat in 0..REPEATS_MAX {
        if repeat > 0 {
            context.metrics.batch_repeats.inc();
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(REPEAT_WAIT_MAX);
        }
        let error = match attempt(context, vs, owner, seen, mutations).await {
            Ok(version) => return Outcome::Committed(version),
            Err(error) => error,
        };
        match &error {
            // Once one attempt may have happened and others own the shard, nothing later tells which.
            Error::Fenced => return unknown.map_or(Outcome::Fenced, Outcome::Unknown),
            Error::Store(weir_storage::Error::Conflict | weir_storage::Error::TooOld) => seen = None,
            Error::Store(weir_storage::Error::Busy(_)) => {}
            Error::Store(weir_storage::Error::UnknownSettled) => unknown = Some(error),
            Error::Store(weir_storage::Error::UnknownOpen) => return Outcome::Unknown(error),
            Error::Store(_)
            | Error::Record(_)
            | Error::Damaged(_)
            | Error::NotOwner(_)
            | Error::Remote(_)
            | Error::NoOwner
            | Error::Closed
            | Error::Full(_) => {
                return if unknown.is_some() { Outcome::Unknown(error) } else { Outcome::Failed(error) };
            }
        }
    }
    unknown.map_or_else(|| Outcome::Failed(weir_storage::Error::Conflict.into()), Outcome::Unknown)
}

async fn attempt(
    context: &Context,
    vs: VirtualShard,
    owner: &Owner,
    seen: Option<Version>,
    mutations: &[Mutation],
) -> Result<Version> {
    let mut tx = context.store.begin();
    let checked = fence::fence(&mut *tx, vs, owner, seen).await?;
    for mutation in mutations {
        match mutation {
            Mutation::Set(key, value) => tx.set(key, value),
            Mutation::Clear(key) => tx.clear(key),
            Mutation::ClearRange(begin, end) => tx.clear_range(begin, end),
        }
    }
    tx.commit().await?;
    Ok(checked)
}

/// After an unknown outcome: takes over at the next epoch, so that nothing of the old one can still happen,
/// and looks whether the batch did. If not, commits it under the new epoch.
pub(crate) async fn recover(
    context: Context,
    vs: VirtualShard,
    previous: Owner,
    batch: Batch,
) -> (Batch, Outcome, Option<Tenure>) {
    let mut wait = REPEAT_WAIT;
    let mut last = Error::Closed;
    for _ in 0..REPEATS_MAX {
        match try_recover(&context, vs, previous, &batch).await {
            Ok((tenure, true)) => return (batch, Outcome::Committed(tenure.seen), Some(tenure)),
            Ok((tenure, false)) => {
                let (batch, outcome) = commit(context, vs, tenure.owner, Some(tenure.seen), batch).await;
                return (batch, outcome, Some(tenure));
            }
            Err(Error::Fenced) => return (batch, Outcome::Unknown(Error::Fenced), None),
            Err(error) => last = error,
        }
        context.metrics.batch_repeats.inc();
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(REPEAT_WAIT_MAX);
    }
    (batch, Outcome::Unknown(last), None)
}

async fn try_recover(
    context: &Context,
    vs: VirtualShard,
    previous: Owner,
    batch: &Batch,
) -> Result<(Tenure, bool)> {
    let tenure = fence::take_over(context, vs, Some(previous)).await?;
    let Some(change) =
        batch.changes.iter().find(|change| !change.records.is_empty() || change.trim.is_some())
    else {
        // Only queue state: writing it once more changes nothing.
        return Ok((tenure, false));
    };
    let mut tx = context.store.begin();
    let stored = tx.get(&LogState::key(&change.id), Isolation::Snapshot).await?;
    let landed = stored.map(LogState::decode).transpose()?.is_some_and(|state| state.batch == batch.id);
    Ok((tenure, landed))
}
