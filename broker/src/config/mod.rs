//! What an operator of a broker can set, from four sources: defaults, then the configuration file, then `WEIR_*`
//! environment variables, then flags; later ones win, setting by setting.
//!
//! Every setting is one entry of [`settings`]: its flag, key, variable, help and parser stand together, so that
//! none of them can be forgotten. The result is plain data. This module opens no socket and no store.

mod admin;
mod auth;
mod drain;
mod fdb;
mod file;
mod limits;
mod listeners;
mod peer;
mod remote;
mod settings;
mod value;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use crate::auto_create::NamePattern;
use crate::responses::ResponseInformation;

pub use admin::AdminAccess;
pub use auth::{AuthConfig, JwtSettings};
pub use drain::DrainConfig;
pub use fdb::FdbConfig;
pub use limits::Limits;
pub use listeners::{ClientAuth, ListenAt, Listener, TlsConfig, Transport};
pub use peer::PeerConfig;
pub use remote::RemoteConfig;
pub use settings::Flags;
pub use value::ByteCount;
pub(crate) use value::{parse_duration, show_duration, store as parse_store};

/// Everything `weir serve` needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where messages live.
    pub store: StoreConfig,
    /// How a store in FoundationDB is used.
    pub fdb: FdbConfig,
    /// How a store that another process serves is reached.
    pub remote: RemoteConfig,
    /// Free space below which the embedded engine takes only what frees some.
    pub store_reserve: ByteCount,
    /// Where clients connect; never empty.
    pub listeners: Vec<Listener>,
    /// What listeners that speak TLS have in common.
    pub tls: TlsConfig,
    /// `/healthz`, `/readyz` and `/metrics`.
    pub http: SocketAddr,
    /// gRPC `weir.admin.v1`.
    pub admin: SocketAddr,
    /// Who may call it.
    pub admin_access: AdminAccess,
    /// Other pods of a cluster.
    pub peer: PeerConfig,
    /// How clients go to them when this pod leaves.
    pub drain: DrainConfig,
    /// Folder of `MessageQueue` and `Stream` manifests to follow.
    pub manifests: Option<PathBuf>,
    /// Clients may connect without saying who they are, also from other machines.
    pub allow_anonymous: bool,
    /// Who may connect and what they may do.
    pub auth: AuthConfig,
    /// A subscription to a queue or stream that does not exist is granted and starts when it appears.
    pub wait_for_queue: bool,
    /// Names of queues that a subscription creates if they do not exist.
    pub auto_create_queues: Vec<NamePattern>,
    /// Names of streams that a subscription creates if they do not exist.
    pub auto_create_streams: Vec<NamePattern>,
    /// Told to MQTT 5 clients that ask for Response Information; `None`: nothing.
    pub response_information: Option<ResponseInformation>,
    /// How often changed figures are published under `$SYS`; zero: there is nothing under `$SYS`.
    pub sys_interval: Duration,
    /// Bounds on what clients can make the broker hold.
    pub limits: Limits,
    /// Logs.
    pub log: LogConfig,
    /// Where spans go, as `http://HOST:PORT` (OTLP over gRPC); `None`: nowhere.
    pub otlp_endpoint: Option<String>,
}

/// Where messages live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreConfig {
    /// The embedded engine, in this folder.
    Embedded(PathBuf),
    /// A FoundationDB cluster, by its cluster file.
    Fdb(PathBuf),
    /// A store that `weir store serve` serves, by its `HOST:PORT`.
    Remote(String),
    /// In memory; gone when the process ends.
    Memory,
}

/// What is logged and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// How a line looks.
    pub format: LogFormat,
    /// Levels by module, as in `info,weir=debug`.
    pub filter: String,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Where [`load`] reads besides the defaults.
pub struct Sources<'a> {
    /// The configuration file, if one is named.
    pub file: Option<&'a Path>,
    /// Looks up an environment variable; an empty one counts as absent.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// What the command line says.
    pub flags: &'a Flags,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file cannot be read.
    #[error("read configuration file `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// One or more settings are wrong; all of them are listed.
    #[error("invalid configuration\n{}", Lines(.0))]
    Invalid(Vec<Problem>),
}

/// One thing that is wrong, and what is allowed instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where it was said; absent if the settings contradict each other.
    pub origin: Option<String>,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// Reads all sources and checks the result as a whole.
///
/// # Errors
/// If the file cannot be read, a setting is unknown or not allowed, or the settings together are unsafe.
pub fn load(sources: &Sources<'_>) -> Result<Config, Error> {
    let mut config = Config { listeners: Vec::new(), ..Config::default() };
    let mut problems = Vec::new();
    let mut named = Vec::new();
    if let Some(path) = sources.file {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
        named = file::apply(&mut config, path, &text, &mut problems);
    }
    settings::apply_env(&mut config, sources.env, &mut problems);
    settings::apply_flags(&mut config, sources.flags, &mut problems);
    config.listeners.append(&mut named);
    if config.listeners.is_empty() {
        config.listeners = Config::default().listeners;
    }
    listeners::name(&mut config.listeners);
    listeners::inherit(&mut config.listeners, &config.tls);
    if problems.is_empty() {
        problems.extend(config.contradictions());
    }
    if problems.is_empty() { Ok(config) } else { Err(Error::Invalid(problems)) }
}

impl Default for Config {
    fn default() -> Self {
        let loopback = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Self {
            store: StoreConfig::Embedded(PathBuf::from("./weir-data")),
            fdb: FdbConfig::default(),
            remote: RemoteConfig::default(),
            store_reserve: ByteCount::mib(256),
            listeners: vec![Listener::tcp(loopback(1883))],
            tls: TlsConfig::default(),
            http: loopback(8080),
            admin: loopback(8081),
            admin_access: AdminAccess::default(),
            peer: PeerConfig::default(),
            drain: DrainConfig::default(),
            manifests: None,
            allow_anonymous: false,
            auth: AuthConfig::default(),
            wait_for_queue: true,
            auto_create_queues: Vec::new(),
            auto_create_streams: Vec::new(),
            response_information: None,
            sys_interval: Duration::ZERO,
            limits: Limits::default(),
            log: LogConfig { format: LogFormat::Text, filter: "info".to_owned() },
            otlp_endpoint: None,
        }
    }
}

impl Config {
    /// Settings that are fine alone and wrong or unsafe together.
    fn contradictions(&self) -> Vec<Problem> {
        let mut messages = listeners::problems(&self.listeners);
        if !self.allow_anonymous && !self.auth.authenticates() {
            let open = self.listeners.iter().filter(|l| !l.is_local() && !l.requires_certificate());
            messages.extend(open.map(|listener| {
                format!(
                    "{listener} is reachable from other machines and no authentication is configured: listen on \
                     a loopback address, say who may connect (--auth-users-file and others of [auth]), or let anyone \
                     connect with --allow-anonymous (allowAnonymous = true, WEIR_ALLOW_ANONYMOUS=true)"
                )
            }));
        }
        messages.extend(self.admin_access.contradictions(self.admin));
        messages.extend(self.remote.contradictions());
        messages.extend(self.peer.contradictions());
        if self.peer.listen.is_some() && matches!(self.store, StoreConfig::Embedded(_) | StoreConfig::Memory)
        {
            messages.push(format!(
                "peer is for pods on one store, and {} belongs to one process alone: use remote:HOST:PORT (of `weir store \
                 serve`) or fdb:CLUSTER_FILE, or leave peer away",
                self.store
            ));
        }
        messages.extend(self.auth.contradictions());
        if self.limits.outbox_bytes_per_client < self.limits.max_packet_size {
            messages.push(format!(
                "limits.outboxBytesPerClient ({}) is below limits.maxPacketSize ({}): such a packet could never be \
                 delivered",
                self.limits.outbox_bytes_per_client, self.limits.max_packet_size
            ));
        }
        messages.into_iter().map(|message| Problem { origin: None, message }).collect()
    }
}

impl fmt::Display for StoreConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(dir) => write!(f, "embedded:{}", dir.display()),
            Self::Fdb(file) => write!(f, "fdb:{}", file.display()),
            Self::Remote(address) => write!(f, "remote:{address}"),
            Self::Memory => f.write_str("memory:"),
        }
    }
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "{origin}: {}", self.message),
            None => f.write_str(&self.message),
        }
    }
}

struct Lines<'a>(&'a [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            write!(f, "{}  {problem}", if n == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod docs;
#[cfg(test)]
mod tests;
