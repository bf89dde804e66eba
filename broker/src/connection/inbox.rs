//! Where a persistent session stands in its inbox. Costs a connection nothing until there is one: most sessions are
//! clean.
//!
//! Knows what has been read, sent and is to be stored; reading, sending and storing is for others.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use weir_core::inbox::InboxItem;
use weir_core::keyspace::inbox::InboxId;
use weir_core::keyspace::session::OutgoingPhase;
use weir_core::sessions::SessionOp;
use weir_env::seed::{HashMap, HashSet};

use super::scanned::Scanned;

/// The inbox of a session, if it uses one.
#[derive(Default)]
pub(super) struct Inbox(Option<Box<InboxState>>);

/// What is known of it.
#[derive(Default)]
pub(super) struct InboxState {
    /// Whether there may be more than has been read.
    pub(super) more: bool,
    pub(super) cursor: Option<InboxId>,
    pub(super) items: VecDeque<InboxItem>,
    /// Deliveries that were restored from an earlier connection: their rows have been sent.
    pub(super) restored: HashSet<InboxId>,
    /// Retained messages that are among what waits.
    pub(super) scanned: Scanned,
    /// Packet ids that have a record in the store, and what it says: what is released has left the inbox.
    pub(super) recorded: HashMap<u16, OutgoingPhase>,
    /// Changes to store, and the write under way.
    pub(super) ops: Vec<SessionOp>,
    pub(super) writing: Option<BoxFuture<'static, weir_core::Result<()>>>,
}

impl Inbox {
    /// What is known of it; from here on it costs something.
    pub(super) fn state(&mut self) -> &mut InboxState {
        self.0.get_or_insert_default()
    }

    /// What is known of it, if there is one.
    pub(super) fn known(&mut self) -> Option<&mut InboxState> {
        self.0.as_deref_mut()
    }

    /// Whether all there is has been read and sent.
    pub(super) fn is_exhausted(&self) -> bool {
        self.0.as_ref().is_none_or(|state| state.items.is_empty() && !state.more)
    }

    /// What is to be stored, if nothing is being stored: at most `max` changes.
    pub(super) fn take_ops(&mut self, max: usize) -> Option<Vec<SessionOp>> {
        let state = self.0.as_mut().filter(|state| state.writing.is_none() && !state.ops.is_empty())?;
        let rest = state.ops.split_off(state.ops.len().min(max));
        Some(std::mem::replace(&mut state.ops, rest))
    }

    /// The outcome of the write under way, if it has come.
    pub(super) fn poll_written(&mut self, context: &mut Context<'_>) -> Option<weir_core::Result<()>> {
        match self.0.as_mut()?.writing.as_mut()?.poll_unpin(context) {
            Poll::Ready(result) => Some(result),
            Poll::Pending => None,
        }
    }
}

impl From<InboxState> for Inbox {
    fn from(state: InboxState) -> Self {
        Self(Some(Box::new(state)))
    }
}
