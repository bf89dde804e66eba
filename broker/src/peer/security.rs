//! How pods know that they may talk to each other: certificates of common authorities, or a common token.

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
    pub(super) tls: Option<ClientTlsConfig>,
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
        let read = |path: &std::path::Path| {
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
        };
        let tls = match (&config.certificate_file, &config.key_file, &config.ca_file) {
            (Some(certificate), Some(key), Some(authorities)) => {
                let tls = ClientTlsConfig::new()
                    .ca_certificate(Certificate::from_pem(read(authorities)?))
                    .identity(Identity::from_pem(read(certificate)?, read(key)?));
                Some(match &config.server_name {
                    Some(name) => tls.domain_name(name),
                    None => tls,
                })
            }
            _ => None,
        };
        Ok(Self { access: Access::read(&access, reload)?, tls })
    }

    pub(super) fn token(&self) -> Token {
        Token(self.access.guard.clone())
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
