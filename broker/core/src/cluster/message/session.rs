//! What pods say to each other about sessions of clients.

use bytestring::ByteString;

use crate::keyspace::PublishId;
use crate::keyspace::session::{Incarnation, SessionEpoch};

/// Bytes that a message is counted as beside its texts.
const BASE_BYTES: usize = 96;

/// Something about sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionMessage {
    /// A client has connected elsewhere: end its connection. Answered by [`SessionMessage::Kicked`] once it has ended.
    Kick {
        /// Names the question among those of the pod that asks.
        request: u64,
        /// Whose.
        client: ByteString,
        /// Of which of its sessions.
        incarnation: Incarnation,
        /// The connection that is to end, and no other.
        epoch: SessionEpoch,
    },
    /// The connection has ended, or there was none.
    Kicked {
        /// Which question this answers.
        request: u64,
        /// QoS 2 publishes of the session that were answered there and not released, by packet id.
        received: Vec<(u16, PublishId)>,
    },
    /// There are new rows in the inboxes of these clients.
    InboxChanged {
        /// Whose.
        clients: Vec<ByteString>,
    },
    /// There are new rows in the inboxes of so many clients that they are not named.
    AllInboxesChanged,
}

impl SessionMessage {
    /// Bytes it holds in memory, nearly.
    #[must_use]
    pub fn size(&self) -> usize {
        let more = match self {
            Self::Kick { client, .. } => client.len(),
            Self::Kicked { received, .. } => size_of_val(received.as_slice()),
            Self::InboxChanged { clients } => {
                clients.iter().map(|client| client.len() + size_of::<ByteString>()).sum()
            }
            Self::AllInboxesChanged => 0,
        };
        BASE_BYTES + more
    }
}
