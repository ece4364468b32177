//! Certificates by server name, from Secrets of type `kubernetes.io/tls`.

use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Secret;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::State;

/// The certificate chain and key of a Secret.
///
/// # Errors
/// When one is missing or cannot be read, or they do not belong together.
pub fn certified(secret: &Secret) -> anyhow::Result<CertifiedKey> {
    let part = |name: &str| {
        let data = secret.data.as_ref().and_then(|d| d.get(name));
        data.map(|b| b.0.as_slice()).with_context(|| format!("it has no {name}"))
    };
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(part("tls.crt")?).collect::<Result<_, _>>().context("tls.crt")?;
    let key = PrivateKeyDer::from_pem_slice(part("tls.key")?).context("tls.key")?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key, &provider).context("certificate and key")
}

/// What clients see where no Secret has a certificate for the name: one of our own, that nobody trusts.
///
/// # Errors
/// When no key can be made.
pub fn fallback() -> anyhow::Result<CertifiedKey> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(vec!["ingress.local".to_owned()])?;
    params.distinguished_name.push(rcgen::DnType::CommonName, "Skiff Ingress: no certificate for this host");
    let cert = params.self_signed(&key)?;
    let der = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| anyhow::anyhow!(e))?;
    Ok(CertifiedKey::from_der(vec![cert.der().clone()], der, &rustls::crypto::aws_lc_rs::default_provider())?)
}

/// Picks the certificate by the name the client asks for.
pub struct Resolver {
    /// What is known now.
    pub state: Arc<State>,
    /// For all other names.
    pub fallback: Arc<CertifiedKey>,
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let own = hello.server_name().and_then(|name| self.state.certificate(name));
        Some(own.unwrap_or_else(|| Arc::clone(&self.fallback)))
    }
}
