//! Where the clients of persistent sessions are connected, as the change feed tells it.
//!
//! What is not known costs a question to every pod; what is wrong is put right by the next change. So nothing here is
//! read from the store. Owned by whoever follows the feed; one entry for each persistent session that has connected
//! since, bounded as the sessions are.

use bytestring::ByteString;
use parking_lot::Mutex;
use weir_env::seed::HashMap;

use crate::keyspace::owner::PodId;
use crate::keyspace::session::Incarnation;

/// Where a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing has been heard of it.
    Unknown,
    /// It is not connected.
    Away,
    /// It is connected to this pod, unless that is gone.
    At(PodId),
}

/// Where clients are. A short lock, never held over anything that waits.
#[derive(Debug, Default)]
pub struct Whereabouts {
    clients: Mutex<HashMap<ByteString, (Incarnation, Option<PodId>)>>,
}

impl Whereabouts {
    /// Where the client with this id is.
    #[must_use]
    pub fn of(&self, client_id: &str) -> Place {
        match self.clients.lock().get(client_id) {
            None => Place::Unknown,
            Some((_, None)) => Place::Away,
            Some((_, Some(pod))) => Place::At(*pod),
        }
    }

    /// A client has connected to `pod`, or its connection has ended.
    pub fn note(&self, client_id: &ByteString, incarnation: Incarnation, pod: Option<PodId>) {
        self.clients.lock().insert(client_id.clone(), (incarnation, pod));
    }

    /// A session has ended; the client may have a younger one.
    pub fn forget(&self, client_id: &str, incarnation: Incarnation) {
        let mut clients = self.clients.lock();
        if clients.get(client_id).is_some_and(|(known, _)| *known == incarnation) {
            clients.remove(client_id);
        }
    }

    /// Something has been missed: nothing is known any more.
    pub fn clear(&self) {
        self.clients.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_where_it_was_seen_last() {
        let whereabouts = Whereabouts::default();
        let (client, pod) = (ByteString::from("c"), PodId([1; 16]));
        assert_eq!(whereabouts.of("c"), Place::Unknown);
        whereabouts.note(&client, Incarnation(1), Some(pod));
        assert_eq!(whereabouts.of("c"), Place::At(pod));
        whereabouts.note(&client, Incarnation(2), None);
        assert_eq!(whereabouts.of("c"), Place::Away);
        whereabouts.forget("c", Incarnation(1));
        assert_eq!(whereabouts.of("c"), Place::Away, "that session was another one");
        whereabouts.forget("c", Incarnation(2));
        assert_eq!(whereabouts.of("c"), Place::Unknown);
        whereabouts.note(&client, Incarnation(3), Some(pod));
        whereabouts.clear();
        assert_eq!(whereabouts.of("c"), Place::Unknown);
    }
}
