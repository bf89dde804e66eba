//! What pods say to each other about sessions of clients.

use bytestring::ByteString;

use crate::keyspace::session::SessionEpoch;

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
        /// The connection that is to end; a younger one stays.
        epoch: SessionEpoch,
    },
    /// The connection has ended, or there was none.
    Kicked {
        /// Which question this answers.
        request: u64,
    },
    /// There are new rows in the inboxes of these clients.
    InboxChanged {
        /// Whose.
        clients: Vec<ByteString>,
    },
}

impl SessionMessage {
    /// Bytes it holds in memory, nearly.
    #[must_use]
    pub fn size(&self) -> usize {
        let more = match self {
            Self::Kick { client, .. } => client.len(),
            Self::Kicked { .. } => 0,
            Self::InboxChanged { clients } => {
                clients.iter().map(|client| client.len() + size_of::<ByteString>()).sum()
            }
        };
        BASE_BYTES + more
    }
}
