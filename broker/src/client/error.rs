//! Why the client could not do what it was asked.

use std::fmt;
use std::io;
use std::time::Duration;

use bytestring::ByteString;
use weir_codec::{DecodeError, EncodeError, PacketType, ReasonCode};

/// Why a client operation failed. After any but [`Error::WindowFull`] and [`Error::Encode`] the connection is lost.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing listens there, or it can't be reached.
    #[error("connect to {address}")]
    Connect {
        /// Host and port.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// The server refused the connection.
    #[error("connection refused: {reason}{}", Said(.reason_string.as_ref()))]
    Refused {
        /// Why.
        reason: ReasonCode,
        /// For people.
        reason_string: Option<ByteString>,
    },
    /// The server ended the connection and said why.
    #[error("disconnected by the server: {reason}{}", Said(.reason_string.as_ref()))]
    Disconnected {
        /// Why.
        reason: ReasonCode,
        /// For people.
        reason_string: Option<ByteString>,
    },
    /// The server closed the connection without a word.
    #[error("connection closed by the server")]
    Closed,
    /// The deadline of one wait has passed.
    #[error("deadline passed")]
    Deadline,
    /// The server did not answer in time.
    #[error("no answer within {after:?}: waited for {what}")]
    NoAnswer {
        /// What was awaited.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The connection broke.
    #[error("connection lost")]
    Io(#[from] io::Error),
    /// The server sent what is no packet.
    #[error("malformed packet from the server")]
    Decode(#[from] DecodeError),
    /// The request is not expressible in the connection's protocol.
    #[error("request not expressible")]
    Encode(#[from] EncodeError),
    /// The server sent a packet that must not come here.
    #[error("unexpected {0} from the server")]
    Unexpected(PacketType),
    /// The server acknowledged what was not sent.
    #[error("unexpected packet identifier {0} from the server")]
    UnknownPacketId(u16),
    /// An answer to something else.
    #[error("{0} does not fit the request")]
    WrongAnswer(&'static str),
    /// As many publishes are in flight as may be.
    #[error("too many publishes in flight")]
    WindowFull,
    /// Messages came faster than they were taken.
    #[error("too many messages received and not taken")]
    Overrun,
}

impl Error {
    /// Says what was awaited when the deadline passed.
    pub(super) fn waiting_for(self, what: &'static str, after: Duration) -> Self {
        match self {
            Self::Deadline => Self::NoAnswer { what, after },
            other => other,
        }
    }
}

/// A reason string, if there is one, set off from the reason code.
pub(crate) struct Said<'a>(pub(crate) Option<&'a ByteString>);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(text) => write!(f, ": {text}"),
            None => Ok(()),
        }
    }
}
