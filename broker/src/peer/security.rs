//! How pods know that they may talk to each other: certificates of common authorities, or a common token.

use std::path::{Path, PathBuf};

use anyhow::Context;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

use crate::admin::{Access, Guard};
use crate::config::{AdminAccess, PeerConfig};

/// What a pod shows to others, and asks of them.
pub(crate) struct Security {
    /// As the one that is dialled.
    pub(super) access: Access,
    /// As the one that dials.
    pub(super) tls: Option<ClientTls>,
}

/// The files of the one that dials, read whenever it does: they may have changed.
#[derive(Clone)]
pub(super) struct ClientTls {
    certificate: PathBuf,
    key: PathBuf,
    authorities: PathBuf,
    server_name: Option<String>,
}

/// The secret that a pod sends with a call, as the file has it now.
#[derive(Clone)]
pub(super) struct Token(Guard);

impl Security {
    /// Reads the files.
    pub(crate) fn read(config: &PeerConfig, reload: std::time::Duration) -> anyhow::Result<Self> {
        let access = AdminAccess {
            token_file: config.token_file.clone(),
            certificate_file: config.certificate_file.clone(),
            key_file: config.key_file.clone(),
            client_ca_file: config.ca_file.clone(),
        };
        let tls = match (&config.certificate_file, &config.key_file, &config.ca_file) {
            (Some(certificate), Some(key), Some(authorities)) => Some(ClientTls {
                certificate: certificate.clone(),
                key: key.clone(),
                authorities: authorities.clone(),
                server_name: config.server_name.clone(),
            }),
            _ => None,
        };
        if let Some(tls) = &tls {
            tls.read()?;
        }
        Ok(Self { access: Access::read(&access, reload)?, tls })
    }

    pub(super) fn token(&self) -> Token {
        Token(self.access.guard.clone())
    }
}

impl ClientTls {
    /// What the files say now. Blocks.
    pub(super) fn read(&self) -> anyhow::Result<ClientTlsConfig> {
        let read =
            |path: &Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
        let identity = Identity::from_pem(read(&self.certificate)?, read(&self.key)?);
        let authorities = Certificate::from_pem(read(&self.authorities)?);
        let tls = ClientTlsConfig::new().ca_certificate(authorities).identity(identity);
        Ok(match &self.server_name {
            Some(name) => tls.domain_name(name),
            None => tls,
        })
    }
}

impl Token {
    /// The header that brings it, if there is one.
    pub(super) fn header(&self) -> Result<Option<MetadataValue<Ascii>>, String> {
        let Some(value) = self.0.bearer() else { return Ok(None) };
        let mut value: MetadataValue<Ascii> =
            value.parse().map_err(|_| "the token of peerTokenFile has characters that cannot be sent")?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}
