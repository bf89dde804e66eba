//! The part of the configuration about a store that another process serves. The files are read by [`crate::store`].

use std::path::PathBuf;
use std::time::Duration;

use super::settings::{PLAIN, Setting, one};
use super::value::{self, Quantity};

/// How `store = remote:HOST:PORT` reaches its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteConfig {
    /// A secret that the server asks for.
    pub token_file: Option<PathBuf>,
    /// Authorities (PEM) that the server's certificate must come from; with them TLS is spoken.
    pub ca_file: Option<PathBuf>,
    /// Own certificate chain (PEM), for a server that asks for one.
    pub certificate_file: Option<PathBuf>,
    /// Its private key (PEM).
    pub key_file: Option<PathBuf>,
    /// Longest wait for an answer of the server.
    pub timeout: Duration,
}

impl Default for RemoteConfig {
    fn default() -> Self {
        let timeout = Duration::from_secs(5);
        Self { token_file: None, ca_file: None, certificate_file: None, key_file: None, timeout }
    }
}

impl RemoteConfig {
    /// Settings that are wrong together.
    pub(super) fn contradictions(&self) -> Vec<String> {
        let mut messages = Vec::new();
        if self.certificate_file.is_some() != self.key_file.is_some() {
            messages.push(
                "remote.certificateFile and remote.keyFile go together: one of them is missing".to_owned(),
            );
        }
        if self.certificate_file.is_some() && self.ca_file.is_none() {
            messages.push("remote.certificateFile needs remote.caFile, with which TLS is spoken".to_owned());
        }
        messages
    }
}

macro_rules! file {
    ($field:ident, $key:literal, $flag:literal, $env:literal, $help:literal) => {
        Setting {
            key: $key,
            flag: $flag,
            env: $env,
            value_name: "FILE",
            help: $help,
            set: |config, values| {
                config.remote.$field = Some(one(values)?.into());
                Ok(())
            },
            show: |config| {
                config.remote.$field.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
            },
            ..PLAIN
        }
    };
}

pub(super) const SETTINGS: &[Setting] = &[
    file!(
        token_file,
        "remote.tokenFile",
        "remote-token-file",
        "WEIR_REMOTE_TOKEN_FILE",
        "Secret that `weir store serve` asks for, for store = remote:HOST:PORT"
    ),
    file!(
        ca_file,
        "remote.caFile",
        "remote-ca-file",
        "WEIR_REMOTE_CA_FILE",
        "Authorities (PEM) that the certificate of the store server must come from; speaks TLS"
    ),
    file!(
        certificate_file,
        "remote.certificateFile",
        "remote-certificate-file",
        "WEIR_REMOTE_CERTIFICATE_FILE",
        "Own certificate chain (PEM), for a store server that asks for one"
    ),
    file!(
        key_file,
        "remote.keyFile",
        "remote-key-file",
        "WEIR_REMOTE_KEY_FILE",
        "Private key (PEM) of remote.certificateFile"
    ),
    Setting {
        key: "remote.timeout",
        flag: "remote-timeout",
        env: "WEIR_REMOTE_TIMEOUT",
        value_name: Duration::VALUE_NAME,
        help: "Longest wait for an answer of a store server, from 500ms to 1m",
        set: |config, values| {
            let range = Duration::from_millis(500)..=Duration::from_mins(1);
            config.remote.timeout = value::within(one(values)?, &range)?;
            Ok(())
        },
        show: |config| config.remote.timeout.show(),
        ..PLAIN
    },
];
