//! The cluster's own certificate authority and the certificates it signs.
//!
//! `skiff up` makes everything on first start and keeps it in `<data>/pki` (0700, keys 0600): a cluster CA that signs
//! servers and clients, a second CA for the aggregation layer's request headers, and the key that signs ServiceAccount
//! tokens. Leaf certificates are made anew at each start, so that changed addresses and expiry never need a hand.

use std::fs;
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};

/// How long CAs live.
const CA_DAYS: i64 = 3650;
/// How long leaves live; they are renewed at every start.
const LEAF_DAYS: i64 = 365;

/// What can go wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("cannot use {path}: {source}. Check that the data directory is writable by this user")]
    File {
        /// The file.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// The token key could not be made.
    #[error("cannot make the ServiceAccount key: {0}")]
    Key(String),
}

/// A certificate with its key, both PEM.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Certificate chain.
    pub cert: String,
    /// Private key (PKCS#8).
    pub key: String,
}

/// A certificate authority.
pub struct Authority {
    /// Its certificate, PEM.
    pub cert: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// Everything under `<data>/pki`.
#[derive(Debug)]
pub struct Pki {
    /// Signs servers and clients.
    pub cluster: Authority,
    /// Signs the aggregation layer's client certificate.
    pub front_proxy: Authority,
    /// Key (PKCS#8 DER) that signs ServiceAccount tokens: RSA where it is kept, P-256 (which is made a hundred times
    /// faster) where it is not.
    pub token_key: Vec<u8>,
}

impl Pki {
    /// Loads the authorities from `dir`, making what is missing.
    ///
    /// # Errors
    /// When a file cannot be read or written, or does not hold what it should.
    pub fn load_or_create(dir: &Path) -> Result<Self, PkiError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| file_error(dir, e))?;
        Ok(Self {
            cluster: Authority::load_or_create(dir, "ca", "skiff-ca")?,
            front_proxy: Authority::load_or_create(dir, "front-proxy-ca", "skiff-front-proxy-ca")?,
            token_key: token_key(&dir.join("sa.key"))?,
        })
    }

    /// Authorities that live only in memory, for tests and embedded servers.
    ///
    /// # Errors
    /// When a key cannot be generated.
    pub fn ephemeral() -> Result<Self, PkiError> {
        Ok(Self {
            cluster: Authority::generate("skiff-ca")?.0,
            front_proxy: Authority::generate("skiff-front-proxy-ca")?.0,
            token_key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_der(),
        })
    }
}

impl Authority {
    fn load_or_create(dir: &Path, stem: &str, name: &str) -> Result<Self, PkiError> {
        let (cert_path, key_path) = (dir.join(format!("{stem}.crt")), dir.join(format!("{stem}.key")));
        if cert_path.exists() && key_path.exists() {
            let cert = fs::read_to_string(&cert_path).map_err(|e| file_error(&cert_path, e))?;
            let key = fs::read_to_string(&key_path).map_err(|e| file_error(&key_path, e))?;
            let issuer = Issuer::from_ca_cert_pem(&cert, KeyPair::from_pem(&key)?)?;
            return Ok(Self { cert, issuer });
        }
        let (authority, key) = Self::generate(name)?;
        write_private(&key_path, key.as_bytes())?;
        write_file(&cert_path, authority.cert.as_bytes(), 0o644)?;
        Ok(authority)
    }

    fn generate(name: &str) -> Result<(Self, String), PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        validity(&mut params, CA_DAYS);
        let cert = params.self_signed(&key)?.pem();
        let pem = key.serialize_pem();
        Ok((Self { cert, issuer: Issuer::new(params, key) }, pem))
    }

    /// Signs a server certificate for these names and addresses.
    ///
    /// # Errors
    /// When a name is not a valid DNS name.
    pub fn server(&self, common_name: &str, names: &[String], addresses: &[IpAddr]) -> Result<Leaf, PkiError> {
        let mut params = CertificateParams::new(names.to_vec())?;
        params.subject_alt_names.extend(addresses.iter().map(|a| SanType::IpAddress(*a)));
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// Signs a client certificate: user name and groups.
    ///
    /// # Errors
    /// When the key cannot be generated.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Leaf, PkiError> {
        let mut params = CertificateParams::new(Vec::<String>::new())?;
        params.distinguished_name.push(DnType::CommonName, user);
        for g in groups {
            params.distinguished_name.push(DnType::OrganizationName, *g);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<Leaf, PkiError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        validity(&mut params, LEAF_DAYS);
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf { cert: cert.pem(), key: key.serialize_pem() })
    }
}

fn validity(params: &mut CertificateParams, days: i64) {
    // Five minutes back, for clocks that differ a little.
    let now = jiff::Timestamp::now().as_second();
    let at = |s: i64| {
        let t = jiff::Timestamp::from_second(s).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        let d = t.to_zoned(jiff::tz::TimeZone::UTC).date();
        rcgen::date_time_ymd(
            i32::from(d.year()),
            u8::try_from(d.month()).unwrap_or(1),
            u8::try_from(d.day()).unwrap_or(1),
        )
    };
    params.not_before = at(now - 300);
    params.not_after = at(now + days * 86_400);
}

fn token_key(path: &Path) -> Result<Vec<u8>, PkiError> {
    if path.exists() {
        return fs::read(path).map_err(|e| file_error(path, e));
    }
    let der = generate_rsa()?;
    write_private(path, &der)?;
    Ok(der)
}

fn generate_rsa() -> Result<Vec<u8>, PkiError> {
    use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
    use aws_lc_rs::rsa::{KeyPair as Rsa, KeySize};
    let key = Rsa::generate(KeySize::Rsa2048).map_err(|e| PkiError::Key(e.to_string()))?;
    let der: Pkcs8V1Der<'_> = key.as_der().map_err(|e| PkiError::Key(e.to_string()))?;
    Ok(der.as_ref().to_vec())
}

fn file_error(path: &Path, source: std::io::Error) -> PkiError {
    PkiError::File { path: path.display().to_string(), source }
}

/// Writes a file that only its owner may read, through a temporary name so that a crash leaves no half.
///
/// # Errors
/// When the file cannot be written.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), PkiError> {
    write_file(path, bytes, 0o600)
}

fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    let tmp = path.with_extension("tmp");
    let write = || {
        let mut f = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&tmp)?;
        f.write_all(bytes)?;
        f.sync_all()?;
        fs::rename(&tmp, path)
    };
    write().map_err(|e| file_error(path, e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::load_or_create(dir.path()).unwrap();
        let again = Pki::load_or_create(dir.path()).unwrap();
        assert_eq!(first.cluster.cert, again.cluster.cert);
        assert_eq!(first.token_key, again.token_key);
        again.cluster.client("system:admin", &["system:masters"]).unwrap();
    }
}
