//! Whom the client trusts, and what it shows of itself, in TLS.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// How the client speaks TLS. Clones share what they remember of servers.
#[derive(Clone)]
pub struct ClientTls(Arc<ClientConfig>);

/// Files in PEM.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// Authorities whose servers are trusted; `None`: those of the system.
    pub ca: Option<PathBuf>,
    /// The client's certificate chain.
    pub cert: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// Any server is trusted.
    pub insecure: bool,
}

impl ClientTls {
    /// Reads the files.
    ///
    /// # Errors
    /// If one cannot be read or does not hold what it should.
    pub fn load(files: &TlsFiles) -> anyhow::Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .context("TLS 1.2 and 1.3")?;
        let builder = if files.insecure {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone(provider)))
        } else {
            builder.with_root_certificates(roots(files.ca.as_deref())?)
        };
        let config = match (&files.cert, &files.key) {
            (Some(cert), Some(key)) => {
                let Ok(key_der) = PrivateKeyDer::from_pem_file(key) else {
                    bail!("`{}` cannot be read or holds no private key (PEM, not encrypted)", key.display());
                };
                builder.with_client_auth_cert(certificates(cert)?, key_der).with_context(|| {
                    format!("the key in `{}` is not that of `{}`", key.display(), cert.display())
                })?
            }
            (None, None) => builder.with_no_client_auth(),
            (Some(_), None) | (None, Some(_)) => bail!("--cert and --key belong together"),
        };
        Ok(Self(Arc::new(config)))
    }

    /// The client's side of a connection to `host`.
    pub(super) fn connection(&self, host: &str, alpn: &[u8]) -> Result<ClientConnection, rustls::Error> {
        let mut config = (*self.0).clone();
        config.alpn_protocols = vec![alpn.to_vec()];
        let name = ServerName::try_from(host.to_owned())
            .map_err(|_| rustls::Error::General(format!("`{host}` is no name of a server")))?;
        ClientConnection::new(Arc::new(config), name)
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

fn roots(ca: Option<&Path>) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(path) => {
            for certificate in certificates(path)? {
                roots
                    .add(certificate)
                    .with_context(|| format!("`{}` holds no certificate authority", path.display()))?;
            }
        }
        None => {
            // Some of a system's may be odd; the others still count.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    Ok(roots)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(|| format!("read certificates from `{}`", path.display()))?;
    if all.is_empty() {
        bail!("`{}` holds no certificate (PEM)", path.display());
    }
    Ok(all)
}

/// Trusts whoever answers.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
