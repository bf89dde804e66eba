//! Re-authentication (MQTT 5.0, section 4.12.1): whose turn it is. What proves anything, the broker knows.

use bytes::Bytes;
use bytestring::ByteString;
use weir_codec::{Auth, Packet, ReasonCode};

use crate::ProtocolError;
use crate::session::violation;

/// The authentication of a client that named a method in CONNECT.
#[derive(Clone, Debug)]
pub(crate) struct Authentication {
    method: ByteString,
    turn: Turn,
}

/// Who has to send the next AUTH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// The client may begin.
    Nobody,
    Client,
    Broker,
}

impl Authentication {
    pub(crate) fn new(method: ByteString) -> Self {
        Self { method, turn: Turn::Nobody }
    }

    /// Takes an AUTH of the client. True if it begins an exchange.
    pub(crate) fn accept(&mut self, auth: &Auth) -> Result<bool, ProtocolError> {
        if auth.authentication_method.as_ref() != Some(&self.method) {
            // [MQTT-4.12.0-5], [MQTT-4.12.1-1]
            return Err(violation("AUTH with another authentication method than CONNECT"));
        }
        let begins = match (auth.reason, self.turn) {
            (ReasonCode::ReAuthenticate, Turn::Nobody) => true,
            (ReasonCode::ContinueAuthentication, Turn::Client) => false,
            _ => return Err(violation("AUTH out of turn")),
        };
        self.turn = Turn::Broker;
        Ok(begins)
    }

    /// The broker's AUTH.
    pub(crate) fn answer(&mut self, reason: ReasonCode, authentication_data: Option<Bytes>) -> Packet {
        self.turn = if reason == ReasonCode::ContinueAuthentication { Turn::Client } else { Turn::Nobody };
        let authentication_method = Some(self.method.clone());
        Packet::Auth(Box::new(Auth { reason, authentication_method, authentication_data, ..Auth::default() }))
    }
}
