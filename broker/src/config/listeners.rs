//! Where clients connect, and what is spoken there: the URLs of `listen`, the tables `[[listeners]]` and the
//! settings of TLS that they share.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use weir_auth::Network;

use super::settings::{PLAIN, Setting, one};
use super::value::socket_addr;

/// Listeners of one broker at most: each is a task, and a label of metrics.
const LISTENERS_MAX: usize = 64;
/// Paths of a WebSocket whose URL says none.
const DEFAULT_PATHS: [&str; 2] = ["/mqtt", "/"];
/// Mode of a Unix socket, if nothing is said.
const DEFAULT_MODE: u32 = 0o660;
const ALLOWED: &str = "mqtt://ADDRESS[:PORT], mqtts://ADDRESS[:PORT], ws://ADDRESS[:PORT][/PATH], \
                       wss://ADDRESS[:PORT][/PATH] with an IP address, unix:PATH";

/// One way in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// In logs and metrics; unique.
    pub name: String,
    /// What is spoken.
    pub transport: Transport,
    /// Where.
    pub at: ListenAt,
    /// Paths of a WebSocket.
    pub paths: Vec<String>,
    /// Certificates, of a listener that speaks TLS.
    pub tls: TlsConfig,
    /// Every connection begins with a header of the PROXY protocol, version 2.
    pub proxy_protocol: bool,
    /// Who may send such a header; nobody named: everybody.
    pub proxy_from: Vec<Network>,
    /// Web sites beside its own whose pages may open a WebSocket, as `https://example.com`; `*`: all.
    pub origins: Vec<String>,
    /// Connections at once; `None`: as many as the broker takes.
    pub max_connections: Option<u32>,
    /// Mode of a Unix socket.
    pub socket_mode: u32,
}

/// What is spoken between MQTT and the socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Nothing.
    Mqtt,
    /// TLS.
    Mqtts,
    /// WebSocket.
    Ws,
    /// WebSocket over TLS.
    Wss,
}

/// Where a socket is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAt {
    /// TCP. Port 0 takes a free port. `[::]` takes IPv4 too, unless a listener of IPv4 has its port.
    Ip(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Files of TLS, in PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Certificate chains of the server. Of several, each client is shown the one for the name it asks for, or the
    /// first.
    pub cert: Vec<PathBuf>,
    /// Their private keys, in the same order.
    pub key: Vec<PathBuf>,
    /// Authorities whose clients are trusted.
    pub client_ca: Option<PathBuf>,
    /// Whether clients show a certificate; `None`: they must if there is a `client_ca`.
    pub client_auth: Option<ClientAuth>,
    /// Certificates of clients that are revoked.
    pub client_crl: Option<PathBuf>,
}

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// They are not asked.
    None,
    /// They may; one that is not trusted is refused.
    Optional,
    /// They must.
    Required,
}

pub(super) const LISTEN: Setting = Setting {
    key: "listen",
    flag: "listen",
    env: "WEIR_LISTEN",
    value_name: "URL",
    help: "Where MQTT clients connect: mqtt://, mqtts://, ws://, wss://ADDRESS[:PORT], unix:PATH; port 0 takes a free \
           one; repeatable",
    many: true,
    set: |config, values| {
        let listeners: Vec<_> = values.iter().map(|text| Listener::parse(text)).collect::<Result<_, _>>()?;
        if listeners.is_empty() {
            return Err(format!("an empty list is not allowed; allowed: {ALLOWED}"));
        }
        config.listeners = listeners;
        name(&mut config.listeners);
        Ok(())
    },
    show: |config| config.listeners.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    ..PLAIN
};

pub(super) const TLS: &[Setting] = &[
    Setting {
        key: "tls.cert",
        flag: "tls-cert",
        env: "WEIR_TLS_CERT",
        value_name: "FILE",
        help: "Certificate chain (PEM) of mqtts:// and wss:// listeners; of several, clients get the one for the name \
               they ask for; repeatable",
        many: true,
        set: |config, values| {
            config.tls.cert = values.iter().map(PathBuf::from).collect();
            Ok(())
        },
        show: |_| String::new(),
        ..PLAIN
    },
    Setting {
        key: "tls.key",
        flag: "tls-key",
        env: "WEIR_TLS_KEY",
        value_name: "FILE",
        help: "Private key (PEM) of each certificate, in the same order; repeatable",
        many: true,
        set: |config, values| {
            config.tls.key = values.iter().map(PathBuf::from).collect();
            Ok(())
        },
        show: |_| String::new(),
        ..PLAIN
    },
    Setting {
        key: "tls.clientCa",
        flag: "tls-client-ca",
        env: "WEIR_TLS_CLIENT_CA",
        value_name: "FILE",
        help: "Authorities (PEM) whose clients are trusted",
        set: |config, values| {
            config.tls.client_ca = Some(one(values)?.into());
            Ok(())
        },
        ..PLAIN
    },
    Setting {
        key: "tls.clientAuth",
        flag: "tls-client-auth",
        env: "WEIR_TLS_CLIENT_AUTH",
        value_name: "WHEN",
        help: "Whether clients show a certificate: none, optional, required; required if there is a tls.clientCa",
        set: |config, values| {
            config.tls.client_auth = Some(match one(values)? {
                "none" => ClientAuth::None,
                "optional" => ClientAuth::Optional,
                "required" => ClientAuth::Required,
                text => return Err(format!("`{text}` is not allowed; allowed: none, optional, required")),
            });
            Ok(())
        },
        ..PLAIN
    },
    Setting {
        key: "tls.clientCrl",
        flag: "tls-client-crl",
        env: "WEIR_TLS_CLIENT_CRL",
        value_name: "FILE",
        help: "Revoked certificates of clients (PEM)",
        set: |config, values| {
            config.tls.client_crl = Some(one(values)?.into());
            Ok(())
        },
        ..PLAIN
    },
];

/// Keys of `[[listeners]]`.
pub(super) const KEYS: &str = "name, url, tls, proxyProtocol, proxyFrom, origins, maxConnections, mode";

impl Listener {
    /// A listener of plain MQTT over TCP.
    #[must_use]
    pub fn tcp(addr: SocketAddr) -> Self {
        Self {
            name: "mqtt".to_owned(),
            transport: Transport::Mqtt,
            at: ListenAt::Ip(addr),
            paths: Vec::new(),
            tls: TlsConfig::default(),
            proxy_protocol: false,
            proxy_from: Vec::new(),
            origins: Vec::new(),
            max_connections: None,
            socket_mode: DEFAULT_MODE,
        }
    }

    /// A listener without a name, from its URL.
    ///
    /// # Errors
    /// If it is none: what is allowed.
    pub fn parse(url: &str) -> Result<Self, String> {
        let refused = || format!("`{url}` is not allowed; allowed: {ALLOWED}");
        let (scheme, rest) = url.split_once(':').ok_or_else(refused)?;
        let (transport, at, paths) = if scheme == "unix" {
            let path = rest.strip_prefix("//").unwrap_or(rest);
            if path.is_empty() {
                return Err(refused());
            }
            (Transport::Mqtt, ListenAt::Unix(path.into()), Vec::new())
        } else {
            let transport = Transport::of_scheme(scheme).ok_or_else(refused)?;
            let rest = rest.strip_prefix("//").ok_or_else(refused)?;
            let (address, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let paths = match path {
                _ if !transport.is_websocket() => Vec::new(),
                "" | "/" => DEFAULT_PATHS.map(str::to_owned).to_vec(),
                path => vec![path.to_owned()],
            };
            let plain = transport.is_websocket() || path.is_empty();
            let addr = socket_addr(address, Some(transport.default_port())).filter(|_| plain);
            (transport, ListenAt::Ip(addr.ok_or_else(refused)?), paths)
        };
        let unbound = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(Self { name: String::new(), transport, at, paths, ..Self::tcp(unbound) })
    }

    /// Only this machine can connect.
    #[must_use]
    pub fn is_local(&self) -> bool {
        let here = match &self.at {
            ListenAt::Ip(addr) => addr.ip().is_loopback(),
            ListenAt::Unix(_) => true,
        };
        // Behind a proxy is somewhere else.
        here && !self.proxy_protocol
    }

    /// Clients show a certificate that is trusted, or they do not get in.
    #[must_use]
    pub fn requires_certificate(&self) -> bool {
        self.transport.is_tls() && self.tls.client_auth() == ClientAuth::Required
    }

    /// Takes what a key of its table says.
    pub(super) fn set(&mut self, key: &str, text: &str) -> Result<(), String> {
        match key {
            "name" if is_name(text) => text.clone_into(&mut self.name),
            "name" => {
                return Err(format!("`{text}` is not allowed; allowed: letters, digits, `-`, `_`, `.`"));
            }
            // What it was made of.
            "url" => {}
            "proxyProtocol" => self.proxy_protocol = super::value::boolean(text)?,
            "proxyFrom" => self.proxy_from = listed(text, Network::from_str)?,
            "origins" => self.origins = listed(text, origin)?,
            "maxConnections" => {
                self.max_connections = Some(super::value::within(text, &(1..=1_000_000_u32))?);
            }
            "mode" => {
                let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
                self.socket_mode = mode.ok_or_else(|| {
                    format!("`{text}` is not allowed; allowed: an octal mode such as \"0660\"")
                })?;
            }
            _ => return Err(format!("unknown key; allowed here: {KEYS}")),
        }
        Ok(())
    }

    fn scheme(&self) -> &'static str {
        match &self.at {
            ListenAt::Ip(_) => self.transport.scheme(),
            ListenAt::Unix(_) => "unix",
        }
    }

    /// What is wrong with its own settings.
    fn problem(&self) -> Option<String> {
        let Self { name, tls, .. } = self;
        if !self.proxy_from.is_empty() && !self.proxy_protocol {
            return Some(format!("listener {name}: proxyFrom means nothing without proxyProtocol = true"));
        }
        if !self.proxy_from.is_empty() && matches!(self.at, ListenAt::Unix(_)) {
            return Some(format!("listener {name}: proxyFrom means nothing for {self}: it has no addresses"));
        }
        if !self.origins.is_empty() && !self.transport.is_websocket() {
            return Some(format!("listener {name}: origins mean nothing for {self}: it is no WebSocket"));
        }
        if !self.transport.is_tls() {
            return (*tls != TlsConfig::default()).then(|| {
                format!(
                    "listener {name}: {self} does not speak TLS: use mqtts:// or wss://, or leave tls out"
                )
            });
        }
        let why = if tls.cert.is_empty() {
            format!("{self} needs a certificate: set tls.cert and tls.key (--tls-cert, --tls-key)")
        } else if tls.cert.len() != tls.key.len() {
            format!(
                "{} tls.cert and {} tls.key: each certificate needs its key",
                tls.cert.len(),
                tls.key.len()
            )
        } else if tls.client_auth() != ClientAuth::None && tls.client_ca.is_none() {
            "tls.clientAuth asks for certificates and nobody's are trusted: set tls.clientCa".to_owned()
        } else if tls.client_auth() == ClientAuth::None
            && (tls.client_ca.is_some() || tls.client_crl.is_some())
        {
            "tls.clientCa and tls.clientCrl mean nothing: tls.clientAuth asks for no certificate".to_owned()
        } else {
            return None;
        };
        Some(format!("listener {name}: {why}"))
    }
}

/// Gives those without a name one: the scheme, and a number if others have it.
pub(super) fn name(listeners: &mut [Listener]) {
    let mut taken: BTreeSet<String> = listeners.iter().map(|listener| listener.name.clone()).collect();
    for listener in listeners.iter_mut().filter(|listener| listener.name.is_empty()) {
        let scheme = listener.scheme();
        let numbered = (2..).map(|n| format!("{scheme}-{n}"));
        let free = std::iter::once(scheme.to_owned()).chain(numbered).find(|name| !taken.contains(name));
        listener.name = free.unwrap_or_default();
        taken.insert(listener.name.clone());
    }
}

/// What a listener does not say itself is as `[tls]` says.
pub(super) fn inherit(listeners: &mut [Listener], tls: &TlsConfig) {
    for own in listeners.iter_mut().filter(|l| l.transport.is_tls()).map(|listener| &mut listener.tls) {
        if own.cert.is_empty() && own.key.is_empty() {
            own.cert.clone_from(&tls.cert);
            own.key.clone_from(&tls.key);
        }
        // Who is trusted is one decision.
        if own.client_auth.is_none() && own.client_ca.is_none() && own.client_crl.is_none() {
            own.client_auth = tls.client_auth;
            own.client_ca.clone_from(&tls.client_ca);
            own.client_crl.clone_from(&tls.client_crl);
        }
    }
}

/// Settings that are fine alone and wrong together.
pub(super) fn problems(listeners: &[Listener]) -> Vec<String> {
    let mut messages: Vec<String> = listeners.iter().filter_map(Listener::problem).collect();
    if listeners.len() > LISTENERS_MAX {
        messages.push(format!("{} listeners; allowed: at most {LISTENERS_MAX}", listeners.len()));
    }
    for (n, listener) in listeners.iter().enumerate() {
        let earlier = &listeners[..n];
        if earlier.iter().any(|other| other.name == listener.name) {
            messages.push(format!("two listeners have the name {}", listener.name));
        }
        let fixed = !matches!(&listener.at, ListenAt::Ip(addr) if addr.port() == 0);
        if fixed && earlier.iter().any(|other| other.at == listener.at) {
            messages.push(format!("two listeners are at the address of {listener}"));
        }
    }
    messages
}

/// What `parse` makes of each part of a list.
fn listed<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',').map(|part| parse(part.trim())).collect()
}

/// An origin as browsers write it.
fn origin(text: &str) -> Result<String, String> {
    let host = text.split_once("://").map_or("", |(_, host)| host);
    if text == "*" || !(host.is_empty() || host.contains(['/', '?', '#', ' '])) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(format!("`{text}` is not allowed; allowed: an origin such as https://example.com, or *"))
}

fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !text.is_empty() && text.len() <= 64 && text.chars().all(allowed)
}

impl TlsConfig {
    /// Whether clients show a certificate.
    #[must_use]
    pub fn client_auth(&self) -> ClientAuth {
        let default = if self.client_ca.is_some() { ClientAuth::Required } else { ClientAuth::None };
        self.client_auth.unwrap_or(default)
    }
}

impl Transport {
    const ALL: [Self; 4] = [Self::Mqtt, Self::Mqtts, Self::Ws, Self::Wss];

    /// From the scheme of a URL.
    #[must_use]
    pub fn of_scheme(scheme: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|transport| transport.scheme() == scheme)
    }

    /// As in a URL.
    #[must_use]
    pub const fn scheme(self) -> &'static str {
        match self {
            Self::Mqtt => "mqtt",
            Self::Mqtts => "mqtts",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    /// The port if a URL says none.
    #[must_use]
    pub const fn default_port(self) -> u16 {
        match self {
            Self::Mqtt => 1883,
            Self::Mqtts => 8883,
            Self::Ws => 8083,
            Self::Wss => 8084,
        }
    }

    /// It lies over TLS.
    #[must_use]
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Mqtts | Self::Wss)
    }

    /// It is a WebSocket.
    #[must_use]
    pub const fn is_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            ListenAt::Unix(path) => write!(f, "unix:{}", path.display()),
            ListenAt::Ip(addr) => {
                write!(f, "{}://{addr}", self.transport.scheme())?;
                match &self.paths[..] {
                    [path] => f.write_str(path),
                    _ => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        let shown = |url: &str| Listener::parse(url).map(|listener| listener.to_string());
        for (url, expected) in [
            ("mqtt://127.0.0.1", "mqtt://127.0.0.1:1883"),
            ("mqtts://[::]", "mqtts://[::]:8883"),
            ("ws://localhost:0", "ws://127.0.0.1:0"),
            ("ws://10.0.0.1/", "ws://10.0.0.1:8083"),
            ("wss://10.0.0.1/a/b", "wss://10.0.0.1:8084/a/b"),
            ("unix:/run/weir.sock", "unix:/run/weir.sock"),
            ("unix:///run/weir.sock", "unix:/run/weir.sock"),
            ("unix:weir.sock", "unix:weir.sock"),
        ] {
            assert_eq!(shown(url).as_deref(), Ok(expected));
        }
        for url in [
            "",
            "mqtt",
            "mqtt:127.0.0.1",
            "tcp://127.0.0.1",
            "mqtt://host",
            "mqtt://127.0.0.1/x",
            "unix:",
            "ws:///x",
        ] {
            let error = shown(url).expect_err(url);
            assert!(error.ends_with(&format!("is not allowed; allowed: {ALLOWED}")), "{error}");
        }
        let paths = |url| Listener::parse(url).expect("is allowed").paths;
        assert_eq!(paths("ws://[::1]"), ["/mqtt", "/"]);
        assert_eq!(paths("ws://[::1]/x"), ["/x"]);
    }

    #[test]
    fn names_are_unique() {
        let mut listeners: Vec<_> =
            ["mqtt://127.0.0.1:1", "unix:a", "mqtt://127.0.0.1:2", "mqtt://127.0.0.1:3"]
                .map(|url| Listener::parse(url).expect("is allowed"))
                .into();
        listeners[3].name = "mqtt".to_owned();
        name(&mut listeners);
        let names: Vec<_> = listeners.iter().map(|listener| &*listener.name).collect();
        assert_eq!(names, ["mqtt-2", "unix", "mqtt-3", "mqtt"]);
    }
}
