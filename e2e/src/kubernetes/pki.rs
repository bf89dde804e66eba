//! Keys and certificates of a cluster's own, and the files by which its clients find it.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

/// Names by which the API server is reached.
const API_SERVER: [&str; 8] = [
    "127.0.0.1",
    "10.96.0.1",
    "10.244.0.1",
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// The files.
#[derive(Clone, Debug)]
pub(super) struct Pki {
    folder: PathBuf,
}

impl Pki {
    /// Makes all of them in `folder`.
    pub(super) fn make(folder: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&folder)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "authority of this cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        std::fs::write(folder.join("ca.pem"), params.self_signed(&key)?.pem())?;
        let issuer = Issuer::new(params, key);

        let server = CertificateParams::new(API_SERVER.map(str::to_owned))?;
        sign(&folder, "api-server", server, ExtendedKeyUsagePurpose::ServerAuth, &issuer)?;
        for (file, user, group) in [
            ("admin", "admin", Some("system:masters")),
            ("controller-manager", "system:kube-controller-manager", None),
            ("scheduler", "system:kube-scheduler", None),
        ] {
            let mut client = CertificateParams::new(Vec::new())?;
            client.distinguished_name.push(DnType::CommonName, user);
            if let Some(group) = group {
                client.distinguished_name.push(DnType::OrganizationName, group);
            }
            sign(&folder, file, client, ExtendedKeyUsagePurpose::ClientAuth, &issuer)?;
        }
        let accounts = KeyPair::generate()?;
        std::fs::write(folder.join("accounts.key.pem"), accounts.serialize_pem())?;
        std::fs::write(folder.join("accounts.pem"), accounts.public_key_pem())?;
        let pki = Self { folder };
        for user in ["admin", "controller-manager", "scheduler"] {
            pki.write_kubeconfig(user)?;
        }
        Ok(pki)
    }

    /// A file of the folder, as an argument.
    pub(super) fn file(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// How `user` reaches the cluster.
    pub(super) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.folder.join(format!("{user}.kubeconfig"))
    }

    fn write_kubeconfig(&self, user: &str) -> Result<()> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "here", "cluster": {
                "server": "https://127.0.0.1:6443", "certificate-authority": self.file("ca.pem"),
            }}],
            "users": [{ "name": user, "user": {
                "client-certificate": self.file(&format!("{user}.pem")),
                "client-key": self.file(&format!("{user}.key.pem")),
            }}],
            "contexts": [{ "name": "here", "context": { "cluster": "here", "user": user } }],
            "current-context": "here",
        });
        std::fs::write(self.kubeconfig(user), config.to_string())?;
        Ok(())
    }
}

fn sign(
    folder: &Path,
    name: &str,
    mut params: CertificateParams,
    purpose: ExtendedKeyUsagePurpose,
    issuer: &Issuer<'_, KeyPair>,
) -> Result<()> {
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![purpose];
    let pair = KeyPair::generate()?;
    std::fs::write(folder.join(format!("{name}.pem")), params.signed_by(&pair, issuer)?.pem())?;
    std::fs::write(folder.join(format!("{name}.key.pem")), pair.serialize_pem())?;
    Ok(())
}
