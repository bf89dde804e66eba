//! Where and how a client reaches a broker.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::certificates::Certificates;

/// What MQTT is carried by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// TLS.
    Tls,
    /// WebSocket.
    Ws,
    /// WebSocket in TLS.
    Wss,
}

impl Transport {
    /// Every transport.
    pub const ALL: [Self; 4] = [Self::Tcp, Self::Tls, Self::Ws, Self::Wss];

    /// The scheme of its URLs.
    #[must_use]
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Tcp => "mqtt",
            Self::Tls => "mqtts",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    /// Whether it is WebSocket, encrypted or not.
    #[must_use]
    pub fn is_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }

    /// Whether it is encrypted.
    #[must_use]
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }
}

/// A way to a broker, and who the client says it is.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Where it listens.
    pub address: SocketAddr,
    /// How it is spoken to.
    pub transport: Transport,
    /// What its certificate is checked against; there for TLS.
    pub certificates: Option<Arc<Certificates>>,
    /// Present the client's certificate.
    pub client_certificate: bool,
    /// User name and password.
    pub login: Option<(String, String)>,
}

impl Endpoint {
    /// Path of the URL of WebSockets.
    pub const PATH: &str = "/mqtt";

    /// The same with a user name and password.
    #[must_use]
    pub fn with_login(self, user: &str, password: &str) -> Self {
        Self { login: Some((user.to_owned(), password.to_owned())), ..self }
    }

    /// The same with the client's certificate.
    #[must_use]
    pub fn with_client_certificate(self) -> Self {
        Self { client_certificate: true, ..self }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Self {
            address,
            transport: Transport::Tcp,
            certificates: None,
            client_certificate: false,
            login: None,
        }
    }
}

impl From<&Self> for Endpoint {
    fn from(endpoint: &Self) -> Self {
        endpoint.clone()
    }
}
