//! Certificates of the node: asked for by signing requests, kept on disk, renewed before they end.
//!
//! A certificate and its key are one file (0600, replaced in one step), so that they never disagree. Renewal is due when
//! between 70 and 90 % of the life has passed; which, differs from node to node, so that many nodes do not ask at once.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;

use crate::Config;

const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// Time for one request to the API.
const API_TIMEOUT: Duration = Duration::from_secs(10);
/// First and longest wait between two looks at a signing request.
const LOOK: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// A client certificate must come within this time: it is approved without a person.
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);
/// A serving certificate may have to be approved by a person; after this time a new request is made.
const SERVING_PATIENCE: Duration = Duration::from_secs(900);
/// First and longest wait after a certificate could not be had.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// No timer is set for longer than this, so that a clock that was changed is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(3600);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("the API server: {0}")]
    Api(#[from] Box<kube::Error>),
    /// The API server did not answer in time.
    #[error("the API server does not answer")]
    Silent,
    /// A key or request could not be made.
    #[error("cannot make a key: {0}")]
    Make(#[from] rcgen::Error),
    /// Somebody decided against it.
    #[error("signing request {name} was refused: {why}")]
    Refused {
        /// The request.
        name: String,
        /// The message of the condition.
        why: String,
    },
    /// Nobody decided in time.
    #[error(
        "signing request {0} was not approved and signed in time: look with `kubectl get csr`, then \
         `kubectl certificate approve {0}`"
    )]
    Undecided(String),
    /// A certificate that cannot be read.
    #[error("not a certificate with its key")]
    Unreadable,
    /// The file could not be written.
    #[error("cannot write {0}")]
    Write(PathBuf, #[source] std::io::Error),
}

/// A certificate with its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub cert: String,
    /// The key.
    pub key: String,
}

impl Pair {
    /// The pair of a file; none when there is no file, or nothing usable in it.
    #[must_use]
    pub fn load(path: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(path).ok()?;
        let at = text.find("-----BEGIN PRIVATE KEY-----")?;
        let (cert, key) = text.split_at(at);
        let pair = Self { cert: cert.to_owned(), key: key.to_owned() };
        (pair.times().is_some() && pair.certified().is_ok()).then_some(pair)
    }

    /// Writes the pair to a file that only its owner may read.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store(&self, path: &Path) -> Result<(), Error> {
        let new = path.with_extension("new");
        let write = || {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            let mut file =
                std::fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(self.cert.as_bytes())?;
            file.write_all(self.key.as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&new, path)
        };
        write().map_err(|e| Error::Write(path.to_owned(), e))
    }

    /// Seconds since the epoch when it begins and ends.
    fn times(&self) -> Option<(i64, i64)> {
        let (_, pem) = x509_parser::pem::parse_x509_pem(self.cert.as_bytes()).ok()?;
        let cert = pem.parse_x509().ok()?;
        Some((cert.validity().not_before.timestamp(), cert.validity().not_after.timestamp()))
    }

    /// How long until a new one should be asked for; nothing when that is due.
    #[must_use]
    pub fn renew_in(&self) -> Duration {
        let Some((begins, ends)) = self.times() else { return Duration::ZERO };
        // The same share for one certificate at every look.
        let share = 0.7 + 0.2 * f64::from(self.cert.bytes().fold(0u8, u8::wrapping_add)) / 255.0;
        let due = begins as f64 + (ends - begins) as f64 * share;
        Duration::try_from_secs_f64(due - jiff::Timestamp::now().as_second() as f64).unwrap_or_default()
    }

    /// Whether its time is over.
    #[must_use]
    pub fn expired(&self) -> bool {
        self.times().is_none_or(|(_, ends)| ends <= jiff::Timestamp::now().as_second())
    }

    /// Whether it names all these addresses.
    fn names(&self, addresses: &[IpAddr]) -> bool {
        let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(self.cert.as_bytes()) else { return false };
        let Ok(cert) = pem.parse_x509() else { return false };
        let Ok(Some(san)) = cert.subject_alternative_name() else { return false };
        addresses.iter().all(|a| {
            let bytes = match a {
                IpAddr::V4(a) => a.octets().to_vec(),
                IpAddr::V6(a) => a.octets().to_vec(),
            };
            let same = |n: &x509_parser::extensions::GeneralName<'_>| {
                matches!(n, x509_parser::extensions::GeneralName::IPAddress(b) if *b == bytes)
            };
            san.value.general_names.iter().any(same)
        })
    }

    fn certified(&self) -> Result<CertifiedKey, Error> {
        let chain = CertificateDer::pem_slice_iter(self.cert.as_bytes()).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|_| Error::Unreadable)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|_| Error::Unreadable)?;
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        CertifiedKey::from_der(chain, key, &provider).map_err(|_| Error::Unreadable)
    }
}

/// Asks for a client certificate of the node agent. `seconds` is the life asked for; the signer's longest when unset.
///
/// # Errors
/// When there is none within a minute.
pub async fn client(client: &kube::Client, node: &str, seconds: Option<i32>) -> Result<Pair, Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject(node);
    request(client, params, CLIENT_SIGNER, "client auth", seconds, CLIENT_PATIENCE).await
}

async fn serving(client: &kube::Client, config: &Config) -> Result<Pair, Error> {
    let mut params = CertificateParams::new(vec![config.node_name.clone()])?;
    params.distinguished_name = subject(&config.node_name);
    params.subject_alt_names.push(SanType::IpAddress(config.node_ip));
    request(client, params, SERVING_SIGNER, "server auth", config.certificate_seconds, SERVING_PATIENCE).await
}

fn subject(node: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "system:nodes");
    name.push(DnType::CommonName, format!("system:node:{node}"));
    name
}

async fn call<T>(work: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(API_TIMEOUT, work).await {
        Ok(answer) => answer.map_err(|e| Error::Api(Box::new(e))),
        Err(_) => Err(Error::Silent),
    }
}

async fn request(
    client: &kube::Client,
    params: CertificateParams,
    signer: &str,
    usage: &str,
    seconds: Option<i32>,
    patience: Duration,
) -> Result<Pair, Error> {
    let key = KeyPair::generate()?;
    let pem = params.serialize_request(&key)?.pem()?;
    let object = CertificateSigningRequest {
        metadata: ObjectMeta { generate_name: Some("csr-".into()), ..ObjectMeta::default() },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: signer.into(),
            usages: Some(vec!["digital signature".into(), usage.into()]),
            expiration_seconds: seconds,
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    };
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let made = call(api.create(&PostParams::default(), &object)).await?;
    let name = made.metadata.name.unwrap_or_default();
    let wait = async {
        let mut pause = LOOK.0;
        loop {
            // A server that is away for a moment costs a look, not the request.
            if let Ok(found) = call(api.get(&name)).await
                && let Some(outcome) = outcome(&name, found)
            {
                return outcome;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(LOOK.1);
        }
    };
    let cert = tokio::time::timeout(patience, wait).await.map_err(|_| Error::Undecided(name.clone()))??;
    let pair = Pair { cert, key: key.serialize_pem() };
    pair.certified()?;
    Ok(pair)
}

/// What became of a request; none while it is open.
fn outcome(name: &str, request: CertificateSigningRequest) -> Option<Result<String, Error>> {
    let status = request.status?;
    if let Some(cert) = status.certificate.filter(|c| !c.0.is_empty()) {
        return Some(String::from_utf8(cert.0).map_err(|_| Error::Unreadable));
    }
    let refused = status.conditions.iter().flatten().find(|c| c.type_ == "Denied" || c.type_ == "Failed")?;
    let why = refused.message.clone().or(refused.reason.clone()).unwrap_or_default();
    Some(Err(Error::Refused { name: name.to_owned(), why }))
}

/// The serving certificate as the listener sees it: the newest, from one handshake to the next.
#[derive(Debug, Default)]
pub struct Slot(RwLock<Option<Arc<CertifiedKey>>>);

impl Slot {
    /// Serves with this pair from now on.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn put(&self, pair: &Pair) -> Result<(), Error> {
        let key = Arc::new(pair.certified()?);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(key);
        Ok(())
    }
}

impl ResolvesServerCert for Slot {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Where the serving certificate is kept.
fn serving_file(config: &Config) -> PathBuf {
    config.data_dir.join("pki/kubelet-server-current.pem")
}

/// Keeps `slot` filled with a serving certificate that the cluster signs, until told to stop. Until there is one, callers
/// are refused at the handshake.
pub async fn keep_serving(client: kube::Client, config: Arc<Config>, slot: Arc<Slot>, shutdown: CancellationToken) {
    let file = serving_file(&config);
    let kept = Pair::load(&file).filter(|p| !p.expired() && p.names(&[config.node_ip]));
    let mut current = kept.filter(|p| slot.put(p).is_ok());
    let mut retry = RETRY.0;
    loop {
        let due = current.as_ref().map_or(Duration::ZERO, Pair::renew_in);
        if !due.is_zero() {
            if shutdown.run_until_cancelled(tokio::time::sleep(due.min(LONGEST_SLEEP))).await.is_none() {
                return;
            }
            continue;
        }
        let Some(got) = shutdown.run_until_cancelled(serving(&client, &config)).await else { return };
        let used = got.and_then(|pair| {
            slot.put(&pair)?;
            // One that cannot be kept still serves.
            if let Err(error) = pair.store(&file) {
                tracing::warn!(%error, "serving certificate not kept");
            }
            Ok(pair)
        });
        match used {
            Ok(pair) => {
                tracing::info!("new serving certificate");
                (current, retry) = (Some(pair), RETRY.0);
            }
            Err(error) => {
                tracing::warn!(%error, "no serving certificate yet: logs and exec of this node do not work");
                if shutdown.run_until_cancelled(tokio::time::sleep(retry)).await.is_none() {
                    return;
                }
                retry = (retry * 2).min(RETRY.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(begins: i64, ends: i64, address: [u8; 4]) -> Pair {
        let at = |s: i64| {
            std::time::SystemTime::now() + Duration::from_secs(1_000_000) - Duration::from_secs((1_000_000 - s) as u64)
        };
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.not_before = at(begins).into();
        params.not_after = at(ends).into();
        params.subject_alt_names.push(SanType::IpAddress(address.into()));
        Pair { cert: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
    }

    #[test]
    fn renewal_is_due_in_the_last_third() {
        for (begins, ends, least, most) in
            [(0, 1000, 699, 900), (-600, 400, 99, 300), (-900, 90, 0, 0), (-1000, -1, 0, 0)]
        {
            let p = pair(begins, ends, [127, 0, 0, 1]);
            let due = p.renew_in().as_secs();
            assert!((least..=most).contains(&due), "{begins} {ends}: {due}");
            assert_eq!(p.expired(), ends < 0);
        }
    }

    #[test]
    fn a_pair_is_kept_whole_and_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pki/a.pem");
        assert_eq!(Pair::load(&file), None);
        let p = pair(0, 1000, [192, 0, 2, 1]);
        p.store(&file).unwrap();
        assert_eq!(Pair::load(&file), Some(p.clone()));
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(p.names(&[[192, 0, 2, 1].into()]) && !p.names(&[[192, 0, 2, 2].into()]));
        // A key of another certificate is no pair.
        let other = Pair { key: pair(0, 1000, [192, 0, 2, 1]).key, ..p };
        other.store(&file).unwrap();
        assert_eq!(Pair::load(&file), None);
    }
}
