//! What the memory and the embedded engine share: transactions over a read view, conflict detection, and
//! the sequence of commits.
//!
//! An engine supplies two things: a [`View`], the store as it was at one version, and a [`Writer`], which
//! turns a batch of changes into the next view. Nothing here knows where the bytes live. The [`Sequencer`]
//! owns the order of commits; [`Shared`] is what transactions see of it.
//!
//! # Versions
//! A version is a count of microseconds that starts above the last version of the store's previous life and
//! grows with the monotonic clock, and by at least one with every commit. So the age of a version can be
//! told from the number alone, whatever happened since, as on FoundationDB. The clock of versions stands
//! still while a commit is in flight: no version above that commit's may be handed out before it is visible.

mod held;
mod resolver;
mod sequencer;
mod shared;
mod transaction;
mod watches;

use std::fmt::Debug;
use std::ops::ControlFlow;

use async_trait::async_trait;
use bytes::Bytes;

pub(crate) use crate::pending::{KeyRange, WriteSet};
use crate::{Committed, Error, Result, Version};
pub(crate) use held::HeldSnapshot;
pub(crate) use sequencer::{CommitRequest, Sequencer};
pub(crate) use shared::{Shared, closed, failure_in};
pub(crate) use transaction::LocalTransaction;

/// The store as it was at one version. Cheap to clone.
pub(crate) trait View: Clone + Debug + Send + Sync + 'static {
    /// The value of `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>>;

    /// Calls `visit` with the pairs of a range in order until it breaks.
    fn scan(
        &self,
        range: &KeyRange,
        reverse: bool,
        visit: &mut dyn FnMut(Bytes, Bytes) -> ControlFlow<()>,
    ) -> Result<()>;
}

/// Makes batches durable. Owned by the one task or thread that commits.
pub(crate) trait Writer: Debug + Send + 'static {
    /// What it produces.
    type View: View;

    /// What can be taken now.
    fn room(&mut self) -> Room {
        Room::Plenty
    }

    /// The store as it is, if it lies otherwise than in the view that it returned last: with that one kept, files that
    /// are not needed are.
    fn moved(&mut self) -> Option<Self::View> {
        None
    }

    /// Applies `changes` as one atomic and durable step and returns the store as it is then. After
    /// [`ApplyError::Failed`] the writer is not used again.
    fn apply(&mut self, version: Version, changes: &WriteSet) -> Result<Self::View, ApplyError>;

    /// Views older than the one in force at `oldest` are not read any more.
    fn retire(&mut self, oldest: Version);
}

/// What an engine can take, with the error for the rest.
#[derive(Debug)]
pub(crate) enum Room {
    /// Everything.
    Plenty,
    /// What clears something and writes little.
    OnlyFreeing(Error),
    /// Nothing.
    Nothing(Error),
}

/// Why a batch was not applied.
#[derive(Debug)]
pub(crate) enum ApplyError {
    /// Not for now; everything is as before.
    Refused(Error),
    /// It may or may not be durable.
    Failed(Error),
}

/// Where a transaction takes its commit.
#[async_trait]
pub(crate) trait Submit: Debug + Send + Sync + 'static {
    /// Commits, once it is this request's turn.
    async fn submit(&self, request: CommitRequest) -> Result<Committed>;
}
