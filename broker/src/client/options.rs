//! Where and how to connect.

use std::fmt;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use weir_codec::{Connect, ProtocolVersion, UserProperties, Will};
use weir_env::clock::Clock;

use super::tls::ClientTls;
use crate::config::Transport;

/// Where a server listens, written `mqtt://HOST[:PORT]`, `mqtts://`, `ws://`, `wss://HOST[:PORT][/PATH]` or
/// `unix:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// On the network.
    Net {
        /// What is spoken.
        transport: Transport,
        /// Host name or IP address, without brackets.
        host: String,
        /// TCP port.
        port: u16,
        /// Path of a WebSocket; empty for others.
        path: String,
    },
    /// A socket on this machine.
    Unix(PathBuf),
}

/// Who acknowledges received messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// The client, when a message arrives.
    #[default]
    Auto,
    /// The caller, with [`Client::ack`](super::Client::ack).
    Manual,
}

/// How to connect.
#[derive(Clone)]
pub struct ConnectOptions {
    /// Protocol version.
    pub version: ProtocolVersion,
    /// Empty: the server chooses.
    pub client_id: ByteString,
    /// Start without the state of an earlier connection.
    pub clean_start: bool,
    /// Seconds the session outlives the connection; MQTT 5 only.
    pub session_expiry_interval: Option<u32>,
    /// User name.
    pub username: Option<ByteString>,
    /// Password.
    pub password: Option<Bytes>,
    /// Seconds between packets, after which the client pings; zero: never.
    pub keep_alive: u16,
    /// Published if the connection breaks.
    pub will: Option<Will>,
    /// QoS 1 and 2 messages the server may send unacknowledged; MQTT 5 only.
    pub receive_maximum: Option<NonZeroU16>,
    /// User properties of CONNECT; MQTT 5 only.
    pub user_properties: UserProperties,
    /// Largest packet accepted from the server, in bytes.
    pub max_packet_size: u32,
    /// QoS 1 and 2 publishes in flight at once, if the server allows as many.
    pub window: NonZeroU16,
    /// Who acknowledges received messages.
    pub acks: Acks,
    /// Longest wait for an answer of the server.
    pub deadline: Duration,
    /// Where the client reads the time.
    pub clock: Clock,
    /// For `mqtts://` and `wss://`; `None`: authorities of the system are trusted.
    pub tls: Option<ClientTls>,
}

/// Without the password, and short: what tells one connection from another.
impl fmt::Debug for ConnectOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectOptions")
            .field("version", &self.version)
            .field("client_id", &self.client_id)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            version: ProtocolVersion::V5,
            client_id: ByteString::new(),
            clean_start: true,
            session_expiry_interval: None,
            username: None,
            password: None,
            keep_alive: 30,
            will: None,
            receive_maximum: None,
            user_properties: UserProperties::new(),
            max_packet_size: 16 << 20,
            window: NonZeroU16::new(1_000).expect("1,000 is not zero"),
            acks: Acks::Auto,
            deadline: Duration::from_secs(10),
            clock: Clock::system(),
            tls: None,
        }
    }
}

impl ConnectOptions {
    pub(super) fn connect_packet(&self) -> Connect {
        let v5 = self.version == ProtocolVersion::V5;
        Connect {
            version: self.version,
            clean_start: self.clean_start,
            keep_alive: self.keep_alive,
            client_id: self.client_id.clone(),
            will: self.will.clone(),
            username: self.username.clone(),
            password: self.password.clone(),
            session_expiry_interval: self.session_expiry_interval.filter(|_| v5),
            receive_maximum: self.receive_maximum.filter(|_| v5),
            user_properties: if v5 { self.user_properties.clone() } else { UserProperties::new() },
            ..Connect::default()
        }
    }
}

impl Endpoint {
    /// Plain MQTT over TCP.
    #[must_use]
    pub fn tcp(host: impl Into<String>, port: u16) -> Self {
        Self::Net { transport: Transport::Mqtt, host: host.into(), port, path: String::new() }
    }

    /// Whether TLS is spoken there.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self, Self::Net { transport, .. } if transport.is_tls())
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || {
            format!(
                "`{text}` is not allowed; allowed: mqtt://HOST[:PORT], mqtts://HOST[:PORT], ws://HOST[:PORT][/PATH], \
                 wss://HOST[:PORT][/PATH], unix:PATH"
            )
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(refused()) } else { Ok(Self::Unix(path.into())) };
        }
        let (transport, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Transport::of_scheme(scheme).ok_or_else(refused)?, rest),
            None => (Transport::Mqtt, text),
        };
        let (rest, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let path = match path {
            "" | "/" if transport.is_websocket() => "/mqtt",
            "" | "/" => "",
            path if transport.is_websocket() => path,
            _ => return Err(refused()),
        };
        let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, Some(port.strip_prefix(':').ok_or_else(refused)?)),
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let port = port.map_or(Ok(transport.default_port()), |port| port.parse().map_err(|_| refused()))?;
        let odd = |c: char| c.is_whitespace() || c.is_control() || c == '@';
        if host.is_empty() || host.contains(odd) || path.contains(odd) {
            return Err(refused());
        }
        Ok(Self::Net { transport, host: host.to_owned(), port, path: path.to_owned() })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Net { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let parsed = |text: &str| text.parse::<Endpoint>().map(|endpoint| endpoint.to_string());
        assert_eq!(parsed("mqtt://127.0.0.1:1884").as_deref(), Ok("127.0.0.1:1884"));
        assert_eq!(parsed("mqtt://broker.example/").as_deref(), Ok("broker.example:1883"));
        assert_eq!(parsed("localhost:1").as_deref(), Ok("localhost:1"));
        assert_eq!(parsed("mqtt://[::1]").as_deref(), Ok("[::1]:1883"));
        assert_eq!(parsed("mqtt://[::1]:7").as_deref(), Ok("[::1]:7"));
        for text in [
            "",
            "mqtt://",
            "mqtt://a:b",
            "mqtt://a:70000",
            "http://a",
            "mqtt://u@h",
            "mqtt://::1",
            "[::1]x",
            "unix:",
        ] {
            assert!(parsed(text).is_err(), "{text}");
        }
        assert_eq!(parsed("mqtts://a").as_deref(), Ok("a:8883"));
        assert_eq!(parsed("unix:/run/s").as_deref(), Ok("unix:/run/s"));
        let path = |text: &str| match text.parse::<Endpoint>() {
            Ok(Endpoint::Net { path, port, .. }) => format!("{port} {path}"),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(path("ws://a"), "8083 /mqtt");
        assert_eq!(path("wss://a/b/c"), "8084 /b/c");
    }
}
