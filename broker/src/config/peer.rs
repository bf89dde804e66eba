//! The part of the configuration about other pods of a cluster. The files are read by [`crate::peer`].

use std::net::SocketAddr;
use std::path::PathBuf;

use super::settings::{PLAIN, Setting, one};
use super::value;

/// How this pod talks to others that work on the same store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerConfig {
    /// gRPC `weir.peer.v1`; `None`: this pod is alone.
    pub listen: Option<SocketAddr>,
    /// Where other pods reach it, as `HOST:PORT`; `None`: where it listens.
    pub advertise: Option<String>,
    /// A secret that all pods of the cluster have.
    pub token_file: Option<PathBuf>,
    /// The pod's certificate chain (PEM), shown to pods that dial it and to those it dials.
    pub certificate_file: Option<PathBuf>,
    /// Its private key (PEM).
    pub key_file: Option<PathBuf>,
    /// Other pods must show a certificate of these authorities (PEM).
    pub ca_file: Option<PathBuf>,
    /// The name that certificates of pods that are dialled are for; `None`: the host that is dialled.
    pub server_name: Option<String>,
}

impl PeerConfig {
    /// Settings that are wrong or unsafe together.
    pub(super) fn contradictions(&self) -> Vec<String> {
        let mut messages = Vec::new();
        let certificates = [&self.certificate_file, &self.key_file, &self.ca_file];
        let given = certificates.iter().filter(|file| file.is_some()).count();
        if given != 0 && given != certificates.len() {
            messages.push(
                "peerCertificateFile, peerKeyFile and peerCaFile go together: pods that speak TLS check each other"
                    .to_owned(),
            );
        }
        let has_others = self.advertise.is_some() || self.token_file.is_some() || given != 0;
        let Some(listen) = self.listen else {
            if has_others || self.server_name.is_some() {
                messages
                    .push("settings of other pods (peer...) need peer, the address to listen at".to_owned());
            }
            return messages;
        };
        if self.server_name.is_some() && given == 0 {
            messages.push("peerServerName needs peerCertificateFile, peerKeyFile and peerCaFile".to_owned());
        }
        if listen.ip().is_unspecified() && self.advertise.is_none() {
            messages.push(format!(
                "peer address {listen} is no address that other pods can dial: say how they reach this pod with \
                 peerAdvertise (HOST:PORT), or listen at one address"
            ));
        }
        if !listen.ip().is_loopback() && self.token_file.is_none() && given != certificates.len() {
            messages.push(format!(
                "peer address {listen} is reachable from other machines, and anyone may pass for a pod: use a loopback \
                 address, certificates (peerCertificateFile, peerKeyFile and peerCaFile) or a token (peerTokenFile)"
            ));
        }
        messages
    }

    /// Where other pods reach this one that listens at `bound`.
    pub(crate) fn advertised(&self, bound: SocketAddr) -> String {
        self.advertise.clone().unwrap_or_else(|| bound.to_string())
    }
}

fn host_and_port(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    let (host, port) = text.rsplit_once(':').unwrap_or_default();
    let is_port = port.parse::<u16>().is_ok_and(|port| port != 0);
    // An IPv6 address is in brackets, or its end would be taken for the port.
    let is_host =
        !host.is_empty() && host.chars().all(is_allowed) && host.contains(':') == host.starts_with('[');
    match is_host && is_port {
        true => Ok(text.to_owned()),
        false => Err(format!("`{text}` is not allowed; allowed: HOST:PORT, as in 10.0.0.7:8082")),
    }
}

fn server_name(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    match !text.is_empty() && text.chars().all(is_allowed) {
        true => Ok(text.to_owned()),
        false => Err(format!("`{text}` is not allowed; allowed: a DNS name, as in weir.example.org")),
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
                config.peer.$field = Some(one(values)?.into());
                Ok(())
            },
            show: |config| {
                config.peer.$field.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
            },
            ..PLAIN
        }
    };
}

pub(super) const SETTINGS: &[Setting] = &[
    Setting {
        key: "peer",
        flag: "peer",
        env: "WEIR_PEER",
        value_name: "ADDRESS",
        help: "Listens for other pods on the same store (gRPC), with which this one makes a cluster; absent: it is alone",
        set: |config, values| {
            config.peer.listen = Some(value::address(one(values)?)?);
            Ok(())
        },
        show: |config| config.peer.listen.map(|address| address.to_string()).unwrap_or_default(),
        ..PLAIN
    },
    Setting {
        key: "peerAdvertise",
        flag: "peer-advertise",
        env: "WEIR_PEER_ADVERTISE",
        value_name: "HOST:PORT",
        help: "Where other pods reach this one, if not at the address of peer",
        set: |config, values| {
            config.peer.advertise = Some(host_and_port(one(values)?)?);
            Ok(())
        },
        show: |config| config.peer.advertise.clone().unwrap_or_default(),
        ..PLAIN
    },
    file!(
        token_file,
        "peerTokenFile",
        "peer-token-file",
        "WEIR_PEER_TOKEN_FILE",
        "Secret, from 16 bytes, that all pods of the cluster have"
    ),
    file!(
        certificate_file,
        "peerCertificateFile",
        "peer-certificate-file",
        "WEIR_PEER_CERTIFICATE_FILE",
        "Certificate chain (PEM) that this pod shows to others, which then speak TLS"
    ),
    file!(
        key_file,
        "peerKeyFile",
        "peer-key-file",
        "WEIR_PEER_KEY_FILE",
        "Private key (PEM) of peerCertificateFile"
    ),
    file!(
        ca_file,
        "peerCaFile",
        "peer-ca-file",
        "WEIR_PEER_CA_FILE",
        "Authorities (PEM) of which other pods must show a certificate"
    ),
    Setting {
        key: "peerServerName",
        flag: "peer-server-name",
        env: "WEIR_PEER_SERVER_NAME",
        value_name: "NAME",
        help: "Name that certificates of other pods must be for, if not the host that is dialled",
        set: |config, values| {
            config.peer.server_name = Some(server_name(one(values)?)?);
            Ok(())
        },
        show: |config| config.peer.server_name.clone().unwrap_or_default(),
        ..PLAIN
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn config(listen: &str) -> PeerConfig {
        PeerConfig { listen: Some(listen.parse().unwrap()), ..PeerConfig::default() }
    }

    #[test]
    fn what_is_unsafe_or_incomplete_is_refused() {
        let file = || Some(PathBuf::from("f"));
        let tls = PeerConfig {
            certificate_file: file(),
            key_file: file(),
            ca_file: file(),
            ..config("10.0.0.7:1")
        };
        let token = PeerConfig { token_file: file(), ..config("10.0.0.7:1") };
        let everywhere = PeerConfig { token_file: file(), ..config("0.0.0.0:1") };
        for (config, problem) in [
            (PeerConfig::default(), None),
            (config("127.0.0.1:0"), None),
            (config("10.0.0.7:1"), Some("reachable from other machines")),
            (token.clone(), None),
            (tls.clone(), None),
            (PeerConfig { server_name: Some("n".into()), ..tls.clone() }, None),
            (PeerConfig { server_name: Some("n".into()), ..token }, Some("peerServerName needs")),
            (PeerConfig { ca_file: None, ..tls }, Some("go together")),
            (everywhere.clone(), Some("peerAdvertise")),
            (PeerConfig { advertise: Some("a:1".into()), ..everywhere }, None),
            (PeerConfig { token_file: file(), ..PeerConfig::default() }, Some("need peer")),
        ] {
            let messages = config.contradictions();
            match problem {
                None => assert_eq!(messages, Vec::<String>::new(), "{config:?}"),
                Some(text) => assert!(messages.iter().any(|message| message.contains(text)), "{messages:?}"),
            }
        }
    }

    #[test]
    fn addresses_to_be_dialled() {
        for text in ["10.0.0.7:8082", "weir-0.weir:1", "[::1]:8082"] {
            assert_eq!(host_and_port(text), Ok(text.to_owned()));
        }
        for text in
            ["", "host", "host:", ":1", "host:0", "host:70000", "::1:8082", "ho st:1", "http://host:1"]
        {
            assert!(host_and_port(text).is_err(), "{text}");
        }
        assert_eq!(config("127.0.0.1:0").advertised("127.0.0.1:7".parse().unwrap()), "127.0.0.1:7");
    }
}
