//! Which client ids are connected: one connection each, the newest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytestring::ByteString;
use parking_lot::Mutex;
use weir_env::seed::HashMap;

use crate::cluster::holds::Hold;
use crate::mailbox::{Eviction, Mailbox};

/// Longest wait for a connection that has been told to end. Its session is fenced off in the store anyway.
pub(crate) const EVICTION_WAIT_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
struct Entry {
    id: u64,
    mailbox: Arc<Mailbox>,
}

/// The connected clients of this process. Bounded by the limit on connections.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    by_id: Mutex<HashMap<ByteString, Entry>>,
    next: AtomicU64,
    draining: AtomicBool,
}

/// A connection's place among the connected clients; given up when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    clients: Arc<Clients>,
    client_id: ByteString,
    id: u64,
    mailbox: Arc<Mailbox>,
    /// With other pods: its entry there, which goes with the place.
    hold: Option<Hold>,
}

impl Place {
    /// Gives `hold` up with the place.
    pub(crate) fn keep(&mut self, hold: Option<Hold>) {
        self.hold = hold;
    }
}

impl Clients {
    /// Makes `mailbox` the connection of `client_id`. An older connection is told to end and waited for.
    /// `None` if a newer one came meanwhile.
    pub(crate) async fn admit(
        self: &Arc<Self>,
        client_id: &ByteString,
        mailbox: &Arc<Mailbox>,
    ) -> Option<Place> {
        let entry = Entry { id: self.next.fetch_add(1, Ordering::Relaxed), mailbox: Arc::clone(mailbox) };
        let place = Place {
            clients: Arc::clone(self),
            client_id: client_id.clone(),
            id: entry.id,
            mailbox: Arc::clone(mailbox),
            hold: None,
        };
        let older = self.by_id.lock().insert(client_id.clone(), entry);
        if let Some(older) = older {
            older.mailbox.evict(Eviction::TakenOver);
            // An older connection that hangs in its store loses its session by the fence, not by this wait.
            let _ = tokio::time::timeout(EVICTION_WAIT_MAX, older.mailbox.left()).await;
        }
        mailbox.eviction().is_none().then_some(place)
    }

    /// Tells every connection, also one to come, that the broker shuts down. One signal each costs less than what
    /// each would need to wait for a common one.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.by_id.lock().values().for_each(|entry| entry.mailbox.wake());
    }

    /// Whether the broker shuts down.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// The mailboxes of all connections that have not been told to end.
    pub(crate) fn staying(&self) -> Vec<Arc<Mailbox>> {
        let by_id = self.by_id.lock();
        let staying = by_id.values().filter(|entry| entry.mailbox.eviction().is_none());
        staying.map(|entry| Arc::clone(&entry.mailbox)).collect()
    }

    /// Whether nobody is connected.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.lock().is_empty()
    }

    /// Whether there is a connection of `client_id`.
    pub(crate) fn is_connected(&self, client_id: &ByteString) -> bool {
        self.by_id.lock().contains_key(client_id)
    }

    /// Tells the connection of `client_id`, if there is one, that its inbox has more.
    pub(crate) fn notify_inbox(&self, client_id: &ByteString) {
        let mailbox = self.by_id.lock().get(client_id).map(|entry| Arc::clone(&entry.mailbox));
        if let Some(mailbox) = mailbox {
            mailbox.inbox_changed();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.mailbox.leave();
        let mut by_id = self.clients.by_id.lock();
        if by_id.get(&self.client_id).is_some_and(|entry| entry.id == self.id) {
            by_id.remove(&self.client_id);
        }
    }
}
