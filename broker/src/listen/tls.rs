//! What a listener shows its clients and asks of them in TLS, read from files and read again when they change. APIs over gRPC
//! have the same.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use bytestring::ByteString;
use parking_lot::Mutex;
use rustls::crypto::aws_lc_rs::{self, Ticketer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Certificate;
use crate::config::{ClientAuth, TlsConfig, Transport};

/// TLS of one listener.
pub(crate) struct TlsServer {
    config: TlsConfig,
    alpn: &'static [u8],
    current: ArcSwap<ServerConfig>,
    /// The files as they were last looked at, or why they could not be read.
    seen: Mutex<Result<Files, String>>,
}

/// The contents of all files, in the order of [`TlsConfig`].
#[derive(Default, PartialEq, Eq)]
struct Files {
    cert: Vec<Vec<u8>>,
    key: Vec<Vec<u8>>,
    client_ca: Option<Vec<u8>>,
    client_crl: Option<Vec<u8>>,
}

/// What a look at the files led to.
#[derive(Debug)]
pub(crate) enum Reloaded {
    /// They are as they were.
    Same,
    /// New connections get what is new.
    New,
    /// What they say now is no good: what was before goes on.
    Broken(anyhow::Error),
}

impl TlsServer {
    /// Reads the files.
    pub(super) fn load(config: &TlsConfig, transport: Transport) -> anyhow::Result<Self> {
        Self::load_for(config, if transport.is_websocket() { b"http/1.1" } else { b"mqtt" })
    }

    /// As [`TlsServer::load`], for a protocol by its name in ALPN.
    pub(crate) fn load_for(config: &TlsConfig, alpn: &'static [u8]) -> anyhow::Result<Self> {
        let files = Files::read(config)?;
        let current = ArcSwap::new(build(config, &files, alpn)?);
        Ok(Self { config: config.clone(), alpn, current, seen: Mutex::new(Ok(files)) })
    }

    /// The server's side of a new connection.
    pub(super) fn connection(&self) -> Result<ServerConnection, rustls::Error> {
        ServerConnection::new(self.current())
    }

    /// What a new connection gets.
    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Looks at the files. What is wrong is said once, until they change again. Blocks.
    pub(crate) fn reload(&self) -> Reloaded {
        let read = Files::read(&self.config);
        let (now, result) = match read {
            Ok(files) => {
                if self.seen.lock().as_ref() == Ok(&files) {
                    return Reloaded::Same;
                }
                let built = build(&self.config, &files, self.alpn);
                (Ok(files), built)
            }
            Err(error) => (Err(format!("{error:#}")), Err(error)),
        };
        let before = std::mem::replace(&mut *self.seen.lock(), now);
        match result {
            Ok(built) => {
                self.current.store(built);
                Reloaded::New
            }
            Err(error) if before.is_err_and(|before| before == format!("{error:#}")) => Reloaded::Same,
            Err(error) => Reloaded::Broken(error),
        }
    }
}

impl fmt::Debug for TlsServer {
    /// Without what the files hold.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsServer").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Files {
    fn read(config: &TlsConfig) -> anyhow::Result<Self> {
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| format!("read `{}`", path.display()));
        Ok(Self {
            cert: config.cert.iter().map(read).collect::<Result<_, _>>()?,
            key: config.key.iter().map(read).collect::<Result<_, _>>()?,
            client_ca: config.client_ca.as_ref().map(read).transpose()?,
            client_crl: config.client_crl.as_ref().map(read).transpose()?,
        })
    }
}

/// Sessions of before are not resumed: who was trusted then may not be now.
fn build(config: &TlsConfig, files: &Files, alpn: &[u8]) -> anyhow::Result<Arc<ServerConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .context("TLS 1.2 and 1.3")?;
    let builder = match (config.client_auth(), &config.client_ca, &files.client_ca) {
        (ClientAuth::None, ..) | (_, None, _) | (_, _, None) => builder.with_no_client_auth(),
        (auth, Some(path), Some(pem)) => {
            let roots = Arc::new(roots(path, pem)?);
            let mut verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
            if let (Some(path), Some(pem)) = (&config.client_crl, &files.client_crl) {
                let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem)
                    .collect::<Result<_, _>>()
                    .with_context(|| {
                        format!("`{}` is no list of revoked certificates (PEM)", path.display())
                    })?;
                // Of others that are on the way to a client nothing is known.
                verifier = verifier.with_crls(lists).only_check_end_entity_revocation();
            }
            if auth == ClientAuth::Optional {
                verifier = verifier.allow_unauthenticated();
            }
            builder.with_client_cert_verifier(verifier.build().context("tls.clientCa and tls.clientCrl")?)
        }
    };
    let certified = |(n, path): (usize, &PathBuf)| {
        let key = config.key.get(n).zip(files.key.get(n)).context("each certificate needs its key")?;
        certified((path, &files.cert[n]), key, &provider)
    };
    let all = config.cert.iter().enumerate().map(certified).collect::<anyhow::Result<_>>()?;
    let mut server = builder.with_cert_resolver(Arc::new(Certificates { all }));
    server.alpn_protocols = vec![alpn.to_vec()];
    server.ticketer = Ticketer::new().context("keys of session tickets")?;
    Ok(Arc::new(server))
}

fn roots(path: &Path, pem: &[u8]) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, pem)? {
        roots
            .add(certificate)
            .with_context(|| format!("`{}` holds no certificate authority", path.display()))?;
    }
    Ok(roots)
}

fn certificates(path: &Path, pem: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .with_context(|| format!("`{}` is damaged", path.display()))?;
    if all.is_empty() {
        bail!("`{}` holds no certificate (PEM: -----BEGIN CERTIFICATE-----)", path.display());
    }
    Ok(all)
}

fn certified(
    (cert_path, cert): (&PathBuf, &Vec<u8>),
    (key_path, key): (&PathBuf, &Vec<u8>),
    provider: &rustls::crypto::CryptoProvider,
) -> anyhow::Result<(Vec<String>, Arc<CertifiedKey>)> {
    let chain = certificates(cert_path, cert)?;
    let names = server_names(&chain[0]).with_context(|| format!("`{}` is damaged", cert_path.display()))?;
    // What the parser says of a key may quote it.
    let Ok(key) = PrivateKeyDer::from_pem_slice(key) else {
        bail!("`{}` holds no private key (PEM: PKCS #8, PKCS #1 or SEC1, not encrypted)", key_path.display());
    };
    let certified = CertifiedKey::from_der(chain, key, provider).with_context(|| {
        format!("the key in `{}` is not that of `{}`", key_path.display(), cert_path.display())
    })?;
    Ok((names, Arc::new(certified)))
}

/// The certificates of a server, with the names they are for.
#[derive(Debug)]
struct Certificates {
    all: Vec<(Vec<String>, Arc<CertifiedKey>)>,
}

impl ResolvesServerCert for Certificates {
    /// The one for the name that is asked for, else the first; of those that the client can use.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let usable = |(_, key): &&(Vec<String>, Arc<CertifiedKey>)| {
            key.key.choose_scheme(hello.signature_schemes()).is_some()
        };
        let asked = hello.server_name().map(str::to_ascii_lowercase);
        let matching = asked.and_then(|asked| {
            let is_for = |names: &[String]| names.iter().any(|name| name_matches(name, &asked));
            self.all.iter().filter(usable).find(|(names, _)| is_for(names))
        });
        let (_, key) = matching.or_else(|| self.all.iter().find(usable))?;
        Some(Arc::clone(key))
    }
}

/// `*.` stands for one label.
fn name_matches(name: &str, asked: &str) -> bool {
    match name.strip_prefix("*.") {
        Some(parent) => {
            asked.split_once('.').is_some_and(|(first, rest)| !first.is_empty() && rest == parent)
        }
        None => name == asked,
    }
}

/// The DNS names a certificate is for.
fn server_names(der: &[u8]) -> anyhow::Result<Vec<String>> {
    let (_, certificate) = X509Certificate::from_der(der)?;
    let names = certificate.subject_alternative_name()?;
    let names = names.iter().flat_map(|extension| &extension.value.general_names);
    let dns = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    Ok(dns.collect())
}

/// What the certificate says that a client showed and that is trusted.
pub(super) fn identity(connection: &rustls::Connection) -> Option<Box<Certificate>> {
    let leaf = connection.peer_certificates()?.first()?;
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    Some(Box::new(Certificate { name: name.map(ByteString::from) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_and_without_a_wildcard() {
        assert!(name_matches("a.example", "a.example"));
        assert!(!name_matches("a.example", "b.example"));
        assert!(name_matches("*.example", "a.example"));
        assert!(!name_matches("*.example", "a.b.example"));
        assert!(!name_matches("*.example", ".example"));
        assert!(!name_matches("*.example", "example"));
    }

    /// A certificate for `name` and its key, in `dir`.
    fn write(dir: &Path, name: &str) -> TlsConfig {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        TlsConfig { cert: vec![cert], key: vec![key], ..TlsConfig::default() }
    }

    #[test]
    fn files_are_read_again_and_bad_ones_are_said_once() {
        let dir = tempfile::tempdir().unwrap();
        let config = write(dir.path(), "one.example");
        let server = TlsServer::load(&config, Transport::Mqtts).unwrap();
        let first = server.current.load_full();
        assert!(matches!(server.reload(), Reloaded::Same));

        std::fs::write(&config.cert[0], "nothing").unwrap();
        let Reloaded::Broken(error) = server.reload() else { panic!("not broken") };
        assert!(error.to_string().contains("cert.pem` holds no certificate"), "{error}");
        assert!(matches!(server.reload(), Reloaded::Same), "said once");
        std::fs::remove_file(&config.cert[0]).unwrap();
        let Reloaded::Broken(error) = server.reload() else { panic!("not broken") };
        assert!(error.to_string().contains("cert.pem"), "{error}");
        assert!(matches!(server.reload(), Reloaded::Same), "said once");
        assert!(Arc::ptr_eq(&server.current.load_full(), &first), "what was before goes on");

        write(dir.path(), "two.example");
        assert!(matches!(server.reload(), Reloaded::New));
        assert!(!Arc::ptr_eq(&server.current.load_full(), &first));
    }

    #[test]
    fn what_is_wrong_with_the_files_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let other = write(dir.path(), "other.example");
        let stray = dir.path().join("stray.pem");
        std::fs::rename(&other.key[0], &stray).unwrap();
        let good = write(dir.path(), "a.example");
        let check = |config: TlsConfig, part: &str| {
            let error = TlsServer::load(&config, Transport::Mqtts).expect_err(part);
            assert!(format!("{error:#}").contains(part), "{error:#}");
        };
        let key = |key: &PathBuf| TlsConfig { key: vec![key.clone()], ..good.clone() };
        check(key(&stray), "the key in");
        check(key(&good.cert[0]), "holds no private key");
        check(key(&dir.path().join("absent")), "absent`");
        let ca = TlsConfig { client_ca: Some(good.key[0].clone()), ..good.clone() };
        check(ca, "holds no certificate");
    }
}
