//! Who may call the admin API: certificates, and a token. The files are read by [`crate::admin`].

use std::net::SocketAddr;
use std::path::PathBuf;

use super::settings::{PLAIN, Setting, one};

/// How the admin API is protected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AdminAccess {
    /// A secret that callers send as `authorization: Bearer`.
    pub token_file: Option<PathBuf>,
    /// The server's certificate chain (PEM).
    pub certificate_file: Option<PathBuf>,
    /// Its private key (PEM).
    pub key_file: Option<PathBuf>,
    /// Callers must show a certificate of these authorities (PEM).
    pub client_ca_file: Option<PathBuf>,
}

impl AdminAccess {
    /// Settings that are wrong or unsafe together.
    pub(super) fn contradictions(&self, address: SocketAddr) -> Vec<String> {
        let mut messages = Vec::new();
        if self.certificate_file.is_some() != self.key_file.is_some() {
            messages
                .push("adminCertificateFile and adminKeyFile go together: one of them is missing".to_owned());
        }
        if self.client_ca_file.is_some() && self.certificate_file.is_none() {
            messages.push("adminClientCaFile needs adminCertificateFile and adminKeyFile".to_owned());
        }
        if !address.ip().is_loopback() && self.token_file.is_none() && self.client_ca_file.is_none() {
            messages.push(format!(
                "admin address {address} is reachable from other machines, and anyone may call it: use a loopback \
                 address, ask for certificates (adminClientCaFile) or for a token (adminTokenFile)"
            ));
        }
        messages
    }
}

macro_rules! files {
    ($($field:ident, $key:literal, $flag:literal, $env:literal, $help:literal;)+) => {
        pub(super) const SETTINGS: &[Setting] = &[$(Setting {
            key: $key,
            flag: $flag,
            env: $env,
            value_name: "FILE",
            help: $help,
            set: |config, values| {
                config.admin_access.$field = Some(one(values)?.into());
                Ok(())
            },
            show: |config| {
                config.admin_access.$field.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
            },
            ..PLAIN
        }),+];
    };
}

files! {
    token_file, "adminTokenFile", "admin-token-file", "WEIR_ADMIN_TOKEN_FILE",
        "Secret, from 16 bytes, that callers of the admin API must send";
    certificate_file, "adminCertificateFile", "admin-certificate-file", "WEIR_ADMIN_CERTIFICATE_FILE",
        "Certificate chain (PEM) of the admin API, which then speaks TLS";
    key_file, "adminKeyFile", "admin-key-file", "WEIR_ADMIN_KEY_FILE",
        "Private key (PEM) of adminCertificateFile";
    client_ca_file, "adminClientCaFile", "admin-client-ca-file", "WEIR_ADMIN_CLIENT_CA_FILE",
        "Authorities (PEM) of which callers of the admin API must show a certificate";
}
