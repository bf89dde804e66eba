//! How a client reaches its store, as plain data.

use std::time::Duration;

use secrecy::SecretString;

/// Where a store is served, and how long to wait for it.
#[derive(Clone, Debug)]
pub struct RemoteOptions {
    /// `HOST:PORT` of the server.
    pub address: String,
    /// How to speak TLS with it; `None`: not at all.
    pub tls: Option<ClientTls>,
    /// The secret that it asks for.
    pub token: Option<SecretString>,
    /// Longest wait for an answer.
    pub timeout: Duration,
}

/// What both sides of TLS show each other, as PEM.
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// Authorities that the server's certificate must come from.
    pub authorities: String,
    /// Own certificate chain and private key, for a server that asks for one.
    pub identity: Option<(String, SecretString)>,
}

impl RemoteOptions {
    /// The store at `address`, without TLS or secret; waits five seconds.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), tls: None, token: None, timeout: Duration::from_secs(5) }
    }
}
