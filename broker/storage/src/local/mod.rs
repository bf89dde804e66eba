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

mod resolver;
mod sequencer;
mod shared;
mod transaction;
mod watches;
mod write_set;

use std::fmt::Debug;
use std::ops::ControlFlow;

use async_trait::async_trait;
use bytes::Bytes;

pub(crate) use sequencer::{CommitRequest, Sequencer};
pub(crate) use shared::{Shared, closed, failure_in};
pub(crate) use transaction::LocalTransaction;
pub(crate) use write_set::WriteSet;

use crate::{Committed, Result, Version, key_after};

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

    /// Applies `changes` as one atomic and durable step and returns the store as it is then. After an error
    /// the writer is not used again.
    fn apply(&mut self, version: Version, changes: &WriteSet) -> Result<Self::View>;

    /// Views older than the one in force at `oldest` are not read any more.
    fn retire(&mut self, oldest: Version);
}

/// Where a transaction takes its commit.
#[async_trait]
pub(crate) trait Submit: Debug + Send + Sync + 'static {
    /// Commits, once it is this request's turn.
    async fn submit(&self, request: CommitRequest) -> Result<Committed>;
}

/// Keys from `begin` (inclusive) to `end` (exclusive).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyRange {
    pub(crate) begin: Bytes,
    pub(crate) end: Bytes,
}

impl KeyRange {
    pub(crate) fn new(begin: impl Into<Bytes>, end: impl Into<Bytes>) -> Self {
        Self { begin: begin.into(), end: end.into() }
    }

    pub(crate) fn copy(begin: &[u8], end: &[u8]) -> Self {
        Self { begin: Bytes::copy_from_slice(begin), end: Bytes::copy_from_slice(end) }
    }

    /// The range that holds `key` alone.
    pub(crate) fn key(key: &[u8]) -> Self {
        let end = key_after(key);
        Self { begin: end.slice(..key.len()), end }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.begin >= self.end
    }
}
