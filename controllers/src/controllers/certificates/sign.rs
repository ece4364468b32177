//! Signs approved requests with the cluster's CA.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use kube::api::PostParams;
use kube::{Api, Client};
use rcgen::{KeyPair, SigningKey};
use x509_parser::extensions::ParsedExtension;

use super::request::Request;
use super::{CLIENT, NODE_CLIENT, NODE_SERVING, add_condition, certificate, condition, der};
use crate::runtime::informer::{Informer, key_of};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{Error, Outcome, Reconcile, found};

/// Longest life of a certificate, and that of one whose request names none.
const LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Shortest life of a certificate.
const SHORTEST: Duration = Duration::from_secs(600);
/// Certificates begin this long ago, for clocks that are behind.
const BACKDATE: Duration = Duration::from_secs(300);
/// Certificates that live shorter than this are not shortened by what they are backdated.
const SHORT: Duration = Duration::from_secs(8 * 3600);

/// The signing authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The certificate cannot be read.
    #[error("cannot read the signing certificate: {0}")]
    Certificate(String),
    /// The key cannot be read, or is of a kind that is not known.
    #[error("cannot use the signing key: {0}")]
    Key(String),
    /// The kernel's random numbers or the signature failed.
    #[error("cannot sign: {0}")]
    Sign(String),
}

/// A CA that signs requests.
pub struct Authority {
    name: Vec<u8>,
    key_id: Option<Vec<u8>>,
    ends: i64,
    key: KeyPair,
    algorithm: Vec<u8>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    /// From the PEM of certificate and key.
    ///
    /// # Errors
    /// When they cannot be read, or the key is neither ECDSA, RSA nor Ed25519.
    pub fn new(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let unreadable = |e: &dyn std::fmt::Display| AuthorityError::Certificate(e.to_string());
        let (_, pem) = x509_parser::pem::parse_x509_pem(certificate.as_bytes()).map_err(|e| unreadable(&e))?;
        let ca = pem.parse_x509().map_err(|e| unreadable(&e))?;
        let key = KeyPair::from_pem(key).map_err(|e| AuthorityError::Key(e.to_string()))?;
        let algorithm = algorithm(&key).ok_or_else(|| AuthorityError::Key("a key of an unknown kind".into()))?;
        let key_id = ca.extensions().iter().find_map(|e| match e.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        Ok(Self {
            name: ca.subject().as_raw().to_vec(),
            key_id,
            ends: ca.validity().not_after.timestamp(),
            key,
            algorithm,
        })
    }

    /// A certificate for the request, PEM. `seconds` is the life that was asked for.
    ///
    /// # Errors
    /// When signing fails.
    pub fn sign(
        &self,
        request: &Request,
        usages: &[String],
        seconds: Option<i32>,
        now: jiff::Timestamp,
    ) -> Result<String, AuthorityError> {
        let wanted = seconds.map(|s| Duration::from_secs(u64::try_from(s).unwrap_or_default()));
        let life = wanted.map_or(LIFE, |w| w.clamp(SHORTEST, LIFE));
        let begins = now - BACKDATE;
        let ends = if life < SHORT { now + life } else { begins + life };
        let ends = jiff::Timestamp::from_second(ends.as_second().min(self.ends)).unwrap_or(ends);
        let has = |usage: &str| usages.iter().any(|u| u == usage);
        let bits = u8::from(has("digital signature")) << 7 | u8::from(has("key encipherment")) << 5;
        let mut purposes = Vec::new();
        for (usage, last) in [("server auth", 1), ("client auth", 2)] {
            if has(usage) {
                purposes.push(der::oid(&[1, 3, 6, 1, 5, 5, 7, 3, last]));
            }
        }
        let mut extensions = Vec::new();
        if bits != 0 {
            // The first byte says how many of the last one's bits are unused.
            let content = der::value(der::BITS, &[u8::try_from(bits.trailing_zeros()).unwrap_or(0), bits]);
            extensions.push(der::extension(&[2, 5, 29, 15], true, &content));
        }
        if !purposes.is_empty() {
            extensions.push(der::extension(&[2, 5, 29, 37], false, &der::sequence(&purposes)));
        }
        // Not a CA.
        extensions.push(der::extension(&[2, 5, 29, 19], true, &der::sequence(&[])));
        if let Some(id) = &self.key_id {
            let content = der::sequence(&[der::value(0x80, id)]);
            extensions.push(der::extension(&[2, 5, 29, 35], false, &content));
        }
        let names = names(request);
        if !names.is_empty() {
            let no_subject = request.subject == der::sequence(&[]);
            extensions.push(der::extension(&[2, 5, 29, 17], no_subject, &der::sequence(&names)));
        }
        let mut serial = rand::random::<[u8; 16]>();
        // Positive, and never zero.
        serial[0] = serial[0] & 0x7f | 0x40;
        let version = der::value(0xa0, &der::unsigned(&[2]));
        let tbs = der::sequence(&[
            version,
            der::unsigned(&serial),
            self.algorithm.clone(),
            self.name.clone(),
            der::sequence(&[der::time(begins), der::time(ends)]),
            request.subject.clone(),
            request.key.clone(),
            der::value(0xa3, &der::sequence(&extensions)),
        ]);
        let mut signature = vec![0];
        signature.extend(self.key.sign(&tbs).map_err(|e| AuthorityError::Sign(e.to_string()))?);
        let whole = der::sequence(&[tbs, self.algorithm.clone(), der::value(der::BITS, &signature)]);
        Ok(skiff_core::pem::encode("CERTIFICATE", &whole))
    }
}

/// How signatures of the key are named in a certificate.
fn algorithm(key: &KeyPair) -> Option<Vec<u8>> {
    let alg = key.algorithm();
    let plain = |arcs: &[u32]| Some(der::sequence(&[der::oid(arcs)]));
    if alg == &rcgen::PKCS_ECDSA_P256_SHA256 {
        plain(&[1, 2, 840, 10045, 4, 3, 2])
    } else if alg == &rcgen::PKCS_ECDSA_P384_SHA384 {
        plain(&[1, 2, 840, 10045, 4, 3, 3])
    } else if alg == &rcgen::PKCS_ED25519 {
        plain(&[1, 3, 101, 112])
    } else if alg == &rcgen::PKCS_RSA_SHA256 {
        Some(der::sequence(&[der::oid(&[1, 2, 840, 113_549, 1, 1, 11]), vec![0x05, 0x00]]))
    } else {
        None
    }
}

fn names(request: &Request) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    let texts = [(0x82, &request.dns), (0x81, &request.emails), (0x86, &request.uris)];
    for (tag, list) in texts {
        names.extend(list.iter().map(|n| der::value(tag, n.as_bytes())));
    }
    names.extend(request.addresses.iter().map(|a| match a {
        std::net::IpAddr::V4(a) => der::value(0x87, &a.octets()),
        std::net::IpAddr::V6(a) => der::value(0x87, &a.octets()),
    }));
    names
}

/// The controller.
pub struct Signer {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
    authority: Authority,
    queue: Arc<Queue>,
}

impl Signer {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, requests: Informer<CertificateSigningRequest>, authority: Authority) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        requests.on_change(move |c| {
            if c.new.is_some() {
                q.add(key_of(&**c.latest()));
            }
        });
        Arc::new(Self { client, requests, authority, queue })
    }

    async fn sync(&self, name: &str) -> Outcome {
        let Some(object) = self.requests.get(name) else { return Ok(None) };
        let waits = condition(&object, "Approved").is_some_and(|c| c.status == "True")
            && condition(&object, "Failed").is_none()
            && certificate(&object).is_none();
        if !waits || ![CLIENT, NODE_CLIENT, NODE_SERVING].contains(&object.spec.signer_name.as_str()) {
            return Ok(None);
        }
        let mut next = CertificateSigningRequest::clone(&object);
        let usages = object.spec.usages.clone().unwrap_or_default();
        // The server reads requests before it keeps them: one that cannot be read will never be readable.
        let checked = Request::parse(&object.spec.request.0)
            .map_err(|e| format!("unable to parse csr {name:?}: {e}"))
            .and_then(|r| r.check(&object.spec.signer_name, &usages).map(|()| r));
        match checked {
            Ok(request) => {
                let signed =
                    self.authority.sign(&request, &usages, object.spec.expiration_seconds, jiff::Timestamp::now());
                let pem = signed.map_err(|e| Error::Other(e.to_string()))?;
                next.status.get_or_insert_default().certificate = Some(ByteString(pem.into_bytes()));
            }
            Err(why) => add_condition(&mut next, "Failed", "SignerValidationFailure", why),
        }
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        if let Some(written) = found(api.replace_status(name, &PostParams::default(), &next).await)? {
            self.requests.apply(written);
        }
        Ok(None)
    }
}

impl Reconcile for Signer {
    fn name(&self) -> &'static str {
        "csrsigning-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.requests.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(alg: &'static rcgen::SignatureAlgorithm) -> (Authority, String) {
        let key = KeyPair::generate_for(alg).unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, "ca");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key).unwrap().pem();
        (Authority::new(&cert, &key.serialize_pem()).unwrap(), cert)
    }

    fn asked(names: &[&str]) -> String {
        let mut params = rcgen::CertificateParams::new(names.iter().map(|n| (*n).into()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(rcgen::DnType::CommonName, "system:node:a");
        params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap()
    }

    #[test]
    fn certificates_carry_what_was_asked_and_verify() {
        for alg in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
            let (authority, ca) = authority(alg);
            let request = Request::parse(asked(&["a.example", "192.0.2.7", "2001:db8::7"]).as_bytes()).unwrap();
            let now: jiff::Timestamp = "2030-06-01T00:00:00Z".parse().unwrap();
            let usages: Vec<String> = ["digital signature", "server auth"].map(String::from).into();
            for (seconds, life) in
                [(None, 365 * 86_400 - 300), (Some(3600), 3600), (Some(1), 600), (Some(i32::MAX), 365 * 86_400 - 300)]
            {
                let pem = authority.sign(&request, &usages, seconds, now).unwrap();
                let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
                let cert = block.parse_x509().unwrap();
                let (_, ca) = x509_parser::pem::parse_x509_pem(ca.as_bytes()).unwrap();
                let ca = ca.parse_x509().unwrap();
                cert.verify_signature(Some(ca.public_key())).unwrap();
                assert_eq!(cert.issuer().as_raw(), ca.subject().as_raw());
                assert_eq!(cert.subject().as_raw(), request.subject);
                assert_eq!(cert.public_key().raw, request.key);
                assert_eq!(cert.validity().not_before.timestamp(), now.as_second() - 300);
                assert_eq!(cert.validity().not_after.timestamp(), now.as_second() + life, "{seconds:?}");
                let names = cert.subject_alternative_name().unwrap().unwrap();
                assert_eq!(names.value.general_names.len(), 3);
                let usage = cert.extended_key_usage().unwrap().unwrap().value;
                assert!(usage.server_auth && !usage.client_auth);
                let key = cert.key_usage().unwrap().unwrap().value;
                assert!(key.digital_signature() && !key.key_encipherment());
                assert!(!cert.is_ca());
            }
        }
    }

    #[test]
    fn a_certificate_never_outlives_its_authority() {
        let (mut authority, _) = authority(&rcgen::PKCS_ECDSA_P256_SHA256);
        let now: jiff::Timestamp = "2030-06-01T00:00:00Z".parse().unwrap();
        authority.ends = now.as_second() + 1000;
        let request = Request::parse(asked(&[]).as_bytes()).unwrap();
        let pem = authority.sign(&request, &["client auth".into()], None, now).unwrap();
        let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
        assert_eq!(block.parse_x509().unwrap().validity().not_after.timestamp(), now.as_second() + 1000);
    }

    #[test]
    fn a_request_without_its_key_is_refused() {
        let (mine, other) = (asked(&["a.example"]), asked(&["b.example"]));
        let der = |text: &str| x509_parser::pem::parse_x509_pem(text.as_bytes()).unwrap().1.contents;
        // The signature of one under the body of the other: of one length, so the ends can be exchanged.
        let (mut body, tail) = (der(&mine), der(&other));
        let at = body.len() - 40;
        let end = tail.len() - 40;
        body.truncate(at);
        body.extend_from_slice(&tail[end..]);
        let text = skiff_core::pem::encode("CERTIFICATE REQUEST", &body);
        assert!(Request::parse(text.as_bytes()).is_err());
        assert!(Request::parse(b"junk").is_err());
    }
}
