//! Flags that several commands share, and parsers of their values.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use bytestring::ByteString;
use clap::Args;
use weir_codec::{ProtocolVersion, QoS};
use weir_env::seed::Seed;

use crate::client::{Client, ClientTls, ConnectOptions, Endpoint, Error, TlsFiles};
use crate::transport::UpgradeError;

/// Which broker to talk to, and as whom.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Connection")]
pub struct BrokerArgs {
    /// Where the broker listens
    #[arg(long, env = "WEIR_URL", default_value = "mqtt://127.0.0.1:1883")]
    pub url: Endpoint,
    /// MQTT version: 5 or 3.1.1
    #[arg(short = 'V', long = "protocol", value_name = "VERSION", default_value = "5", value_parser = protocol)]
    pub version: ProtocolVersion,
    /// Client id [default: a random one]
    #[arg(short, long, value_name = "ID")]
    pub id: Option<String>,
    /// User name
    #[arg(short, long, env = "WEIR_USERNAME", value_name = "NAME")]
    pub username: Option<String>,
    /// Password; the variable keeps it out of process lists
    #[arg(long, env = "WEIR_PASSWORD", hide_env_values = true, requires = "username")]
    pub password: Option<String>,
    /// Authorities (PEM) whose brokers are trusted, for mqtts:// and wss:// [default: those of the system]
    #[arg(long, env = "WEIR_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Certificate (PEM) to show the broker
    #[arg(long, env = "WEIR_CERT", value_name = "FILE", requires = "key")]
    pub cert: Option<PathBuf>,
    /// Its private key (PEM)
    #[arg(long, env = "WEIR_KEY", value_name = "FILE", requires = "cert")]
    pub key: Option<PathBuf>,
    /// Trust any broker, whoever it is: for tests only
    #[arg(long, conflicts_with = "ca_file")]
    pub insecure: bool,
    /// Longest wait for an answer of the broker
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub deadline: Duration,
}

impl BrokerArgs {
    /// Options to connect as these flags say.
    ///
    /// # Errors
    /// If the files for TLS are not what they should be.
    pub fn connect_options(&self, purpose: &str) -> anyhow::Result<ConnectOptions> {
        let client_id = self.id.clone().unwrap_or_else(|| random_id(purpose));
        Ok(ConnectOptions {
            tls: self.tls()?,
            version: self.version,
            client_id: ByteString::from(client_id),
            username: self.username.clone().map(ByteString::from),
            password: self.password.clone().map(Bytes::from),
            deadline: self.deadline,
            ..ConnectOptions::default()
        })
    }

    fn tls(&self) -> anyhow::Result<Option<ClientTls>> {
        if !self.url.is_tls() {
            return Ok(None);
        }
        let Self { ca_file: ca, cert, key, insecure, .. } = self.clone();
        if insecure {
            eprintln!(
                "WARNING: --insecure: whoever answers is trusted; passwords and messages may go to anyone"
            );
        }
        ClientTls::load(&TlsFiles { ca, cert, key, insecure }).map(Some)
    }

    /// Connects, and says what to do if nothing is there.
    pub(super) async fn connect(&self, options: &ConnectOptions) -> anyhow::Result<Client> {
        Client::connect(&self.url, options).await.map_err(explain)
    }
}

/// Says what to do where that is known.
pub(super) fn explain(error: Error) -> anyhow::Error {
    match error {
        Error::Connect { address, source } => match source.get_ref() {
            Some(tls) if tls.is::<rustls::Error>() => anyhow!(
                "no TLS with {address} ({tls}); --ca-file names the authority to trust, --cert and --key show a \
                 certificate of this client"
            ),
            Some(other) if other.is::<UpgradeError>() => anyhow!("connect to {address}: {other}"),
            _ => no_broker(&address, &source),
        },
        other => other.into(),
    }
}

/// What people read when nothing listens at `address`.
pub(super) fn no_broker(address: &str, source: &dyn std::fmt::Display) -> anyhow::Error {
    anyhow!("no broker answers at {address} ({source}); start one with `weir serve`")
}

fn random_id(purpose: &str) -> String {
    format!("weir-{purpose}-{:08x}", Seed::from_entropy().next_u64() & 0xffff_ffff)
}

pub(super) fn protocol(text: &str) -> Result<ProtocolVersion, String> {
    match text {
        "5" | "5.0" => Ok(ProtocolVersion::V5),
        "3.1.1" | "311" | "4" => Ok(ProtocolVersion::V311),
        _ => Err("allowed: 5, 3.1.1".to_owned()),
    }
}

pub(super) fn qos(text: &str) -> Result<QoS, String> {
    text.parse().ok().and_then(QoS::from_u8).ok_or_else(|| "allowed: 0, 1, 2".to_owned())
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    crate::config::parse_duration(text)
        .ok_or_else(|| "allowed: a duration such as 500ms, 30s, 5m, 1h".to_owned())
}

/// `name=value`; the value may contain more of `=`.
pub(super) fn property(text: &str) -> Result<(ByteString, ByteString), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((ByteString::from(name), ByteString::from(value))),
        _ => Err("allowed: NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_split_at_the_first_equals_sign() {
        let pair = |name: &str, value: &str| Ok((ByteString::from(name), ByteString::from(value)));
        assert_eq!(property("a=b"), pair("a", "b"));
        assert_eq!(property("a=b=c"), pair("a", "b=c"));
        assert_eq!(property("a="), pair("a", ""));
        assert!(property("=b").is_err());
        assert!(property("a").is_err());
    }

    #[test]
    fn versions_and_qualities() {
        assert_eq!(protocol("5"), Ok(ProtocolVersion::V5));
        assert_eq!(protocol("3.1.1"), Ok(ProtocolVersion::V311));
        assert!(protocol("3.1").is_err());
        assert_eq!(qos("2"), Ok(QoS::ExactlyOnce));
        assert!(qos("3").is_err());
        assert!(qos("").is_err());
    }
}
