//! Certificates for one test: an authority, and what it has signed, as files in a folder that the caller owns.

use std::path::{Path, PathBuf};

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Who the client certificate says that the client is.
pub const CLIENT_NAME: &str = "device-7";

/// PEM files of an authority and of two that it vouches for.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The authority's certificate, for those who check.
    pub authority: PathBuf,
    /// Of `localhost` and 127.0.0.1.
    pub server: Signed,
    /// Of the client [`CLIENT_NAME`].
    pub client: Signed,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Signed {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The file of the private key.
    pub key: PathBuf,
}

impl Certificates {
    /// Makes an authority and what it signs, in `folder`.
    pub fn make(folder: &Path) -> Result<Self> {
        let (issuer, authority) = authority(folder)?;
        let server = CertificateParams::new(["localhost", "127.0.0.1"].map(str::to_owned))?;
        let server = sign(folder, "server", server, &[ExtendedKeyUsagePurpose::ServerAuth], &issuer)?;
        let mut client = CertificateParams::new(Vec::new())?;
        client.distinguished_name.push(DnType::CommonName, CLIENT_NAME);
        let client = sign(folder, "client", client, &[ExtendedKeyUsagePurpose::ClientAuth], &issuer)?;
        Ok(Self { authority, server, client })
    }
}

/// A certificate for `name`, for calling and for being called, and the certificate of an authority that vouches for it
/// alone: files in `folder`.
pub fn for_both(folder: &Path, name: &str) -> Result<(Signed, PathBuf)> {
    let (issuer, authority) = authority(folder)?;
    let both = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let params = CertificateParams::new([name.to_owned()])?;
    Ok((sign(folder, "both", params, &both, &issuer)?, authority))
}

/// A new authority, and the file of its certificate in `folder`.
fn authority(folder: &Path) -> Result<(Issuer<'static, KeyPair>, PathBuf)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "authority of this test");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let file = folder.join("authority.pem");
    std::fs::write(&file, params.self_signed(&key)?.pem())?;
    Ok((Issuer::new(params, key), file))
}

fn sign(
    folder: &Path,
    name: &str,
    mut params: CertificateParams,
    purposes: &[ExtendedKeyUsagePurpose],
    issuer: &Issuer<'_, KeyPair>,
) -> Result<Signed> {
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = purposes.to_vec();
    let pair = KeyPair::generate()?;
    let signed = Signed {
        certificate: folder.join(format!("{name}.pem")),
        key: folder.join(format!("{name}.key.pem")),
    };
    std::fs::write(&signed.certificate, params.signed_by(&pair, issuer)?.pem())?;
    std::fs::write(&signed.key, pair.serialize_pem())?;
    Ok(signed)
}
