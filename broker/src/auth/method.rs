//! Enhanced authentication (MQTT 5.0, section 4.12): methods that a client names in CONNECT, with any number of steps,
//! and the one that is built in, `JWT`.
//!
//! A method sees what the client says and answers; it knows no packets and no session.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use weir_env::clock::Timestamp;

use super::Auth;

/// Name of the built-in method: the Authentication Data is a JSON Web Token.
pub(super) const JWT: &str = "JWT";

/// A way to prove who one is in several steps.
pub trait Method: Send + Sync + 'static {
    /// Its name, as in Authentication Method.
    fn name(&self) -> &str;

    /// Begins: at CONNECT, or when a client proves itself anew.
    fn begin(&self, claim: Claim) -> Box<dyn Exchange>;
}

/// Who says so, not yet proved.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Client identifier as sent; empty if the broker assigns one.
    pub client_id: ByteString,
    /// User Name of CONNECT.
    pub username: Option<ByteString>,
    /// Where it comes from.
    pub address: Option<IpAddr>,
}

/// One run of a method. Dropped when it ends, or when the connection does.
pub trait Exchange: Send {
    /// Takes the client's Authentication Data and says how to go on. The connection's time-outs apply; the future is
    /// dropped if the connection ends.
    fn step(&mut self, data: Option<Bytes>) -> BoxFuture<'_, Step>;
}

/// How to go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this and wait for the client.
    Continue(Bytes),
    /// It is proved.
    Success(Proved),
    /// It is not; why, for the log. Must not hold secrets.
    Failure(String),
}

/// What a method has found out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proved {
    /// User name.
    pub user: ByteString,
    /// When the proof ends; `None`: with the connection.
    pub expires_at: Option<Timestamp>,
    /// Authentication Data for the client.
    pub data: Option<Bytes>,
}

/// The built-in method.
struct JwtExchange {
    auth: Arc<Auth>,
    /// Must be that of the token, if the client names one.
    username: Option<ByteString>,
}

impl Auth {
    /// Begins an exchange by the method called `name`; `None` if there is none.
    pub(crate) fn begin(self: &Arc<Self>, name: &str, claim: Claim) -> Option<Box<dyn Exchange>> {
        if name == JWT && self.config.jwt.is_configured() {
            return Some(Box::new(JwtExchange { auth: Arc::clone(self), username: claim.username }));
        }
        self.methods.iter().find(|method| method.name() == name).map(|method| method.begin(claim))
    }
}

impl Exchange for JwtExchange {
    fn step(&mut self, data: Option<Bytes>) -> BoxFuture<'_, Step> {
        // A signature is checked in tens of microseconds.
        let username = self.username.as_deref().unwrap_or_default();
        let step = match self.auth.verify_token(&data.unwrap_or_default()) {
            Ok(token) if !username.is_empty() && username != token.user => {
                Step::Failure("a token came with another user name than it has".to_owned())
            }
            Ok(token) => Step::Success(Proved {
                user: token.user.into(),
                expires_at: Some(token.expires_at),
                data: None,
            }),
            Err(error) => Step::Failure(error.to_string()),
        };
        std::future::ready(step).boxed()
    }
}
