//! Persistent sessions: who owns them, what they have subscribed to, and which packet ids they use.
//!
//! A session is written under a fence: the epoch of the connection that opened it last. Whoever still holds an
//! older [`SessionRef`] gets [`Error::Fenced`] and has changed nothing. This module never sees a packet or a
//! connection, and it holds no state of its own but
//! counters and what it could not see through: the store is the owner. Within one session the
//! caller makes one call after the other.

mod close;
mod doubt;
#[cfg(test)]
mod doubt_tests;
#[cfg(test)]
pub(crate) mod faults;
mod open;
mod retry;
#[cfg(test)]
mod tests;
mod update;
mod whereabouts;

use std::sync::Arc;

use bytestring::ByteString;
use weir_env::clock::{Clock, Timestamp};
use weir_env::seed::Seed;
use weir_storage::{Isolation, SharedStore, Transaction};

pub use close::{CloseOptions, Closed, WillAction};
pub use open::{Holder, OpenOptions, Opened};
pub(crate) use retry::Retry;
pub use update::{RouteCursor, RoutePage, SessionOp};
pub use whereabouts::{Place, Whereabouts};

use self::doubt::Doubts;
use crate::cluster::Cluster;
use crate::inbox::InboxCounters;
use crate::keyspace::change::{Change, SessionPhase};
use crate::keyspace::session::{ClientKeys, Fence, Incarnation, SessionEpoch};
use crate::keyspace::timer::TimerId;
use crate::keyspace::will::WillId;
use crate::{Error, Result};

/// One connection's hold on a session. It is worthless once another connection has opened the session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRef {
    /// Whose session.
    pub client_id: ByteString,
    /// Of the connection; zero for a clean session that left no trace in the store.
    pub epoch: SessionEpoch,
    /// Of the session.
    pub incarnation: Incarnation,
    /// Whether the store keeps its subscriptions, packet ids and inbox.
    pub persistent: bool,
}

/// A session that is over. Its routes are to be forgotten.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedSession {
    /// Whose.
    pub client_id: ByteString,
    /// Which.
    pub incarnation: Incarnation,
    /// What it had subscribed to.
    pub filters: Vec<ByteString>,
}

/// The sessions in a store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sessions {
    pub(crate) shared: Arc<Shared>,
}

/// What sessions, inboxes and wills of one process have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: SharedStore,
    pub(crate) clock: Clock,
    pub(crate) seed: Seed,
    pub(crate) pod: [u8; 16],
    pub(crate) virtual_shards: u16,
    pub(crate) counters: Arc<InboxCounters>,
    /// The other pods, if there may be any.
    pub(crate) cluster: Option<Cluster>,
    /// Where the clients of persistent sessions are connected; unused without other pods.
    pub(crate) whereabouts: Whereabouts,
    doubts: Doubts,
}

impl Sessions {
    /// The sessions in `store`, as pod `pod` (an id that is new with each start of the process) sees them.
    #[must_use]
    pub fn new(store: SharedStore, clock: Clock, seed: &Seed, pod: [u8; 16], virtual_shards: u16) -> Self {
        Self::new_in(None, store, clock, seed, pod, virtual_shards)
    }

    /// As [`Sessions::new`], as one pod of `cluster`.
    #[must_use]
    pub fn new_in(
        cluster: Option<Cluster>,
        store: SharedStore,
        clock: Clock,
        seed: &Seed,
        pod: [u8; 16],
        virtual_shards: u16,
    ) -> Self {
        let seed = seed.fork("sessions");
        let (counters, whereabouts, doubts) = (Arc::default(), Whereabouts::default(), Doubts::default());
        let shared =
            Shared { store, clock, seed, pod, virtual_shards, counters, cluster, whereabouts, doubts };
        Self { shared: Arc::new(shared) }
    }
}

impl Sessions {
    /// Takes note of what the change feed says of persistent sessions; of nothing else.
    pub fn follow(&self, change: &Change) {
        let Shared { whereabouts, counters, .. } = &*self.shared;
        let Change::Session { client, incarnation, pod, now, .. } = change else { return };
        match now {
            SessionPhase::Clean => return,
            SessionPhase::Connected => whereabouts.note(client, *incarnation, Some(*pod)),
            SessionPhase::Away => whereabouts.note(client, *incarnation, None),
            SessionPhase::Ended => whereabouts.forget(client, *incarnation),
        }
        // Who takes from the inbox has changed: what is counted here is worth nothing.
        counters.forget(client, *incarnation);
    }

    /// Forgets what the change feed has said: some of it was missed.
    pub fn follow_anew(&self) {
        self.shared.whereabouts.clear();
    }

    /// Where the client of a persistent session is connected, as far as is known.
    #[must_use]
    pub fn whereabouts(&self, client_id: &str) -> Place {
        self.shared.whereabouts.of(client_id)
    }
}

impl Shared {
    /// Tells the other pods of a change, with the transaction that makes it. Nobody is told without other pods.
    pub(crate) fn tell(&self, tx: &mut dyn Transaction, change: impl FnOnce() -> Change) {
        if let Some(cluster) = &self.cluster {
            cluster.feed().write(tx, &change());
        }
    }

    /// Whether somebody else than this pod takes messages out of the inbox of `client_id`, as far as is known.
    pub(crate) fn is_read_elsewhere(&self, client_id: &str) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| match self.whereabouts.of(client_id) {
            Place::Unknown => true,
            Place::Away => false,
            Place::At(pod) => pod != cluster.me(),
        })
    }

    pub(crate) fn keys(&self, client_id: &str) -> ClientKeys {
        ClientKeys::new(client_id, self.virtual_shards)
    }

    pub(crate) fn timer_at(&self, due: Timestamp) -> TimerId {
        TimerId { due, seq: self.seed.next_u64() }
    }

    fn will_id(&self, session: &SessionRef) -> WillId {
        WillId {
            pod: self.pod,
            client_id: session.client_id.clone(),
            incarnation: session.incarnation,
            epoch: session.epoch,
        }
    }
}

/// Reads the fence of a client.
pub(crate) async fn read_fence(tx: &mut dyn Transaction, keys: &ClientKeys) -> Result<Option<Fence>> {
    let value = tx.get(&keys.fence(), Isolation::Serializable).await?;
    Ok(value.map(Fence::decode).transpose()?)
}

/// Makes the transaction fail or conflict unless `session` is the latest. A repeat also writes the fence, so
/// that an earlier attempt still in flight, which has read it, cannot commit any more.
pub(crate) async fn check_fence(
    tx: &mut dyn Transaction,
    keys: &ClientKeys,
    session: &SessionRef,
    is_repeat: bool,
) -> Result<Fence> {
    let fence = read_fence(tx, keys).await?.ok_or(Error::Fenced)?;
    if fence.epoch != session.epoch || fence.incarnation != session.incarnation {
        return Err(Error::Fenced);
    }
    if is_repeat {
        tx.set(&keys.fence(), &fence.encode());
    }
    Ok(fence)
}
