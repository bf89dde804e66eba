//! An authority for tests, and what it signs: certificates of servers and clients, in files.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// An authority and a folder of what it signed.
pub(crate) struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: PathBuf,
}

/// A certificate and its key.
#[derive(Clone)]
pub(crate) struct Signed {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().unwrap();
        let pem = dir.path().join("ca.pem");
        std::fs::write(&pem, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { dir, issuer: Issuer::new(params, key), pem }
    }

    /// Signs a certificate of `common_name` for `host`, into files of that name.
    pub(crate) fn sign(&self, common_name: &str, host: &str) -> Signed {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.serial_number = Some(1234_u64.into());
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        let file = common_name.replace('/', "_");
        let path = |kind: &str| self.dir.path().join(format!("{file}.{kind}.pem"));
        let signed = Signed { cert: path("cert"), key: path("key") };
        std::fs::write(&signed.key, key.serialize_pem()).unwrap();
        std::fs::write(&signed.cert, cert.pem()).unwrap();
        signed
    }

    /// A list that revokes what [`sign`](Self::sign) made.
    pub(crate) fn revoke(&self) -> PathBuf {
        let now = rcgen::date_time_ymd(2020, 1, 1);
        let revoked = rcgen::RevokedCertParams {
            serial_number: 1234_u64.into(),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let list = rcgen::CertificateRevocationListParams {
            this_update: now,
            next_update: rcgen::date_time_ymd(2120, 1, 1),
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        let path = self.dir.path().join("crl.pem");
        std::fs::write(&path, list.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
        path
    }

    /// The folder of what it signed.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.pem).unwrap()).unwrap();
        roots
    }

    /// A client that trusts this authority and shows `own`.
    pub(crate) fn client(&self, own: Option<&Signed>) -> ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let builder = builder.with_root_certificates(self.roots());
        match own {
            None => builder.with_no_client_auth(),
            Some(Signed { cert, key }) => {
                let cert = CertificateDer::from_pem_file(cert).unwrap();
                builder.with_client_auth_cert(vec![cert], PrivateKeyDer::from_pem_file(key).unwrap()).unwrap()
            }
        }
    }
}
