//! What the task of a virtual shard hands on when the shard changes hands: commands that are not done, and who waits.

use std::collections::{BTreeMap, VecDeque};

use tokio::sync::{mpsc, oneshot};

use super::Command;
use super::log::Kept;
use super::logs::LogKey;
use crate::keyspace::owner::Owner;

/// What is to be gone on with.
#[derive(Debug, Default)]
pub(crate) struct Carried {
    /// In the order in which they came, to be done before anything that comes later.
    pub(crate) commands: VecDeque<Command>,
    /// Who consumes and reads.
    pub(crate) kept: BTreeMap<LogKey, Kept>,
}

/// What is left of a task that has ended.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) carried: Carried,
    /// It has ended for good, and this is who waits for that.
    pub(crate) closing: Option<oneshot::Sender<()>>,
    /// Somebody is about to give the shard to another pod.
    pub(crate) offer: Option<Offering>,
}

/// An owner that has stopped, for its shard to be given to another pod.
#[derive(Debug)]
pub(crate) struct Offer {
    /// As it knew itself. Nothing of it is in flight.
    pub(crate) owner: Owner,
    /// Dropped once it is done, or given up.
    pub(crate) done: oneshot::Sender<()>,
}

/// The shard's side of an [`Offer`] that is to be made.
#[derive(Debug)]
pub(crate) struct Offering {
    /// As the task knew itself; none if it was no owner.
    pub(crate) owner: Option<Owner>,
    pub(crate) reply: oneshot::Sender<Offer>,
}

impl Offering {
    /// Makes the offer, and waits until it is taken or not.
    pub(super) async fn settled(self) {
        let Some(owner) = self.owner else { return };
        let (done, settled) = oneshot::channel();
        if self.reply.send(Offer { owner, done }).is_ok() {
            // Nothing is ever sent.
            let _ = settled.await;
        }
    }
}
