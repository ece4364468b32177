//! How a machine that joins learns whom it talks to.
//!
//! The first answer (`kube-public/cluster-info`, read by anybody) comes over a connection that proves nothing. It is
//! believed for two reasons: a signature that only somebody who has the token's secret can make, and a CA whose public
//! key has the hash that the administrator was told. From then on that CA is the only one trusted.

use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use sha2::Digest as _;

/// Time for one answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// A bootstrap token.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) id: String,
    pub(crate) secret: String,
}

impl std::str::FromStr for Token {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (id, secret) = skiff_apiserver::auth::bootstrap::split(text)
            .ok_or("a token is six and sixteen letters or digits, as in abcdef.0123456789abcdef")?;
        Ok(Self { id: id.into(), secret: secret.into() })
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.id, self.secret)
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.***", self.id)
    }
}

/// The hash of a certificate's public key, as it is written in commands.
pub(crate) fn key_hash(pem: &str) -> anyhow::Result<String> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).context("not a certificate")?;
    let cert = pem.parse_x509().context("not a certificate")?;
    let digest = sha2::Sha256::digest(cert.public_key().raw);
    Ok(digest.iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}")))
}

/// The server's address of a `HOST:PORT`, with or without `https://`.
pub(crate) fn server_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
    let url: http::Uri = format!("https://{rest}").parse().map_err(|e| format!("{text:?} is no address: {e}"))?;
    let plain = url.path() == "/" && url.query().is_none() && !rest.contains('@');
    if url.port_u16().is_none() || !plain {
        return Err(format!("{text:?} is no HOST:PORT, as in 192.0.2.1:6443"));
    }
    Ok(format!("https://{rest}"))
}

/// Time for a connection, so that a wrong address is said soon.
pub(crate) fn config(url: &str) -> anyhow::Result<kube::Config> {
    let mut config = kube::Config::new(url.parse()?);
    config.connect_timeout = Some(PATIENCE);
    config.proxy_url = None;
    Ok(config)
}

/// One request, with its failures told from each other.
pub(crate) async fn ask<T>(url: &str, work: impl Future<Output = kube::Result<T>>) -> anyhow::Result<T> {
    let unreachable = || format!("cannot reach {url}: is the address right, and does `skiff up` run there?");
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e @ kube::Error::Api(_))) => Err(e.into()),
        Ok(Err(e)) => Err(anyhow::Error::new(e).context(unreachable())),
        Err(_) => bail!(unreachable()),
    }
}

/// Reads the cluster's CA from the server at `url`. `hashes`: at least one must be its; with none the signature alone
/// must do.
pub(crate) async fn discover(url: &str, token: &Token, hashes: &[String]) -> anyhow::Result<String> {
    let mut config = config(url)?;
    // Believed only after what follows.
    config.accept_invalid_certs = true;
    let api: Api<ConfigMap> = Api::namespaced(kube::Client::try_from(config)?, "kube-public");
    let data = match ask(url, api.get("cluster-info")).await {
        Ok(map) => map.data.unwrap_or_default(),
        Err(e) if e.downcast_ref::<kube::Error>().is_some() => {
            return Err(
                e.context(format!("{url} does not say what cluster it is: is it a server that `skiff up` started?"))
            );
        }
        Err(e) => return Err(e),
    };
    let text = data.get("kubeconfig").with_context(|| format!("{url} does not say what its CA is"))?;
    let key = format!("{}{}", skiff_controllers::controllers::bootstrap::SIGNATURE, token.id);
    let signature = data.get(&key).map(String::as_str);
    verify(url, text, signature, token, hashes)
}

/// The CA in `text`, when signature and hash fit.
fn verify(url: &str, text: &str, signature: Option<&str>, token: &Token, hashes: &[String]) -> anyhow::Result<String> {
    let Some(signature) = signature else {
        bail!(
            "token {} is unknown to the cluster, or has expired: make a new one on the server with \
             `skiff token create --print-join-command`",
            token.id
        );
    };
    let payload = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
    if !skiff_controllers::controllers::bootstrap::verifies(signature, &payload, &token.secret) {
        bail!("{url} does not know the secret of token {}: the token is wrong, or this is another cluster", token.id);
    }
    let ca = authority(text).with_context(|| format!("{url} does not say what its CA is"))?;
    let hash = key_hash(&ca)?;
    if !hashes.is_empty() && !hashes.iter().any(|h| h.eq_ignore_ascii_case(&hash)) {
        bail!("the CA of {url} is {hash}, not the one of --ca-cert-hash: this is another cluster");
    }
    Ok(ca)
}

/// The CA in a kubeconfig.
fn authority(text: &str) -> Option<String> {
    let v = skiff_core::codec::parse_yaml(text.as_bytes()).ok()?.value;
    let data = v["clusters"][0]["cluster"]["certificate-authority-data"].as_str()?;
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(data).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, want) in [
            ("192.0.2.1:6443", Some("https://192.0.2.1:6443")),
            ("https://host.lan:6443/", Some("https://host.lan:6443")),
            ("[2001:db8::1]:6443", Some("https://[2001:db8::1]:6443")),
            ("host", None),
            ("host:6443/x", None),
            ("me@host:6443", None),
            ("", None),
        ] {
            assert_eq!(server_url(text).ok().as_deref(), want, "{text}");
        }
    }

    #[test]
    fn only_the_right_cluster_is_believed() {
        let ca = skiff_apiserver::pki::Pki::ephemeral().unwrap().cluster.cert;
        let text = format!(
            "clusters: [{{cluster: {{certificate-authority-data: {}}}}}]",
            base64::engine::general_purpose::STANDARD.encode(&ca)
        );
        let token: Token = "abcdef.0123456789abcdef".parse().unwrap();
        let good = skiff_controllers::controllers::bootstrap::signature(&text, "abcdef", "0123456789abcdef");
        let other = skiff_controllers::controllers::bootstrap::signature(&text, "abcdef", "0123456789abcdeg");
        let hash = key_hash(&ca).unwrap();
        let wrong = format!("sha256:{}", "0".repeat(64));
        for (signature, hashes, want) in [
            (Some(&good), vec![hash.clone()], ""),
            (Some(&good), vec![wrong.clone(), hash.to_uppercase().replace("SHA256", "sha256")], ""),
            (Some(&good), vec![], ""),
            (Some(&good), vec![wrong], "another cluster"),
            (Some(&other), vec![hash.clone()], "does not know the secret"),
            (None, vec![hash], "has expired"),
        ] {
            let got = verify("https://x", &text, signature.map(String::as_str), &token, &hashes);
            match got {
                Ok(found) => assert_eq!((found.as_str(), want), (ca.as_str(), "")),
                Err(e) => assert!(!want.is_empty() && e.to_string().contains(want), "{e}"),
            }
        }
    }
}
