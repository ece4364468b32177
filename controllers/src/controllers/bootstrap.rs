//! Bootstrap tokens, by which machines join: expired ones are deleted, and the others sign what joining machines read.
//!
//! The ConfigMap `kube-public/cluster-info` tells anybody where the server is and what its CA is. For each token that is
//! for signing it carries a detached JWS made with the token's secret: a machine that has the token sees that the
//! answer comes from a server that has it too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client};

use crate::runtime::informer::{Informer, key_of, split};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{Outcome, Reconcile, found};

/// Type of the Secrets.
pub const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Name of the ConfigMap that is signed, in `kube-public`.
pub const CLUSTER_INFO: &str = "cluster-info";
const PUBLIC: &str = "kube-public";
const KUBECONFIG: &str = "kubeconfig";
/// What keys of signatures begin with; the token's id follows.
pub const SIGNATURE: &str = "jws-kubeconfig-";

fn field<'a>(secret: &'a Secret, key: &str) -> &'a str {
    let bytes = secret.data.as_ref().and_then(|d| d.get(key)).map_or(&[][..], |b| &b.0);
    std::str::from_utf8(bytes).unwrap_or_default()
}

/// How long a token lives: for ever when it says nothing, no more when it cannot be read.
#[derive(Debug, PartialEq)]
enum Life {
    Forever,
    For(Duration),
    Over,
}

fn life(secret: &Secret, now: jiff::Timestamp) -> Life {
    let text = field(secret, "expiration");
    if text.is_empty() {
        return Life::Forever;
    }
    let Ok(end) = text.parse::<jiff::Timestamp>() else { return Life::Over };
    match Duration::try_from(end.duration_since(now)) {
        Ok(left) if !left.is_zero() => Life::For(left),
        _ => Life::Over,
    }
}

/// A signature of `text` under a token, as JWS with the text left out.
#[must_use]
pub fn signature(text: &str, id: &str, secret: &str) -> String {
    let header = URL_SAFE_NO_PAD.encode(serde_json::json!({"alg": "HS256", "kid": id}).to_string());
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
    let tag = aws_lc_rs::hmac::sign(&key, format!("{header}.{}", URL_SAFE_NO_PAD.encode(text)).as_bytes());
    format!("{header}..{}", URL_SAFE_NO_PAD.encode(tag.as_ref()))
}

/// Whether `jws`, whose text was left out, is a signature of the encoded text under a token's secret.
#[must_use]
pub fn verifies(jws: &str, payload: &str, secret: &str) -> bool {
    let Some((header, tag)) = jws.split_once("..") else { return false };
    let decoded =
        URL_SAFE_NO_PAD.decode(header).ok().and_then(|h| serde_json::from_slice::<serde_json::Value>(&h).ok());
    let Ok(tag) = URL_SAFE_NO_PAD.decode(tag) else { return false };
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
    decoded.is_some_and(|h| h["alg"] == "HS256")
        && aws_lc_rs::hmac::verify(&key, format!("{header}.{payload}").as_bytes(), &tag).is_ok()
}

/// Deletes tokens whose time is over.
pub struct Cleaner {
    client: Client,
    tokens: Informer<Secret>,
    queue: Arc<Queue>,
}

impl Cleaner {
    /// Makes the controller and subscribes it to changes. `tokens` need only hold Secrets of [`TYPE`].
    #[must_use]
    pub fn new(client: Client, tokens: Informer<Secret>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        tokens.on_change(move |c| q.add(key_of(&**c.latest())));
        Arc::new(Self { client, tokens, queue })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(secret) = self.tokens.get(key) else { return Ok(None) };
        let (namespace, name) = split(key);
        if namespace != "kube-system" {
            return Ok(None);
        }
        match life(&secret, jiff::Timestamp::now()) {
            Life::Forever => return Ok(None),
            Life::For(left) => return Ok(Some(left)),
            Life::Over => {}
        }
        let exactly = Preconditions { uid: secret.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() };
        found(Api::<Secret>::namespaced(self.client.clone(), namespace).delete(name, &params).await)?;
        Ok(None)
    }
}

impl Reconcile for Cleaner {
    fn name(&self) -> &'static str {
        "token-cleaner"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.tokens.keys().into_iter().for_each(|k| self.queue.add(k));
    }

    fn workers(&self) -> usize {
        1
    }
}

/// Keeps the signatures of `cluster-info`.
pub struct Signer {
    client: Client,
    tokens: Informer<Secret>,
    maps: Informer<ConfigMap>,
    queue: Arc<Queue>,
}

impl Signer {
    /// Makes the controller and subscribes it to changes. `maps` need only hold `kube-public/cluster-info`.
    #[must_use]
    pub fn new(client: Client, tokens: Informer<Secret>, maps: Informer<ConfigMap>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        tokens.on_change(move |_| q.add(CLUSTER_INFO));
        let q = Arc::clone(&queue);
        maps.on_change(move |_| q.add(CLUSTER_INFO));
        Arc::new(Self { client, tokens, maps, queue })
    }

    async fn sync(&self) -> Outcome {
        let Some(map) = self.maps.get(&format!("{PUBLIC}/{CLUSTER_INFO}")) else { return Ok(None) };
        let present = map.data.clone().unwrap_or_default();
        let wanted = signed(&present, &self.tokens.in_namespace("kube-system"), jiff::Timestamp::now());
        if wanted == present {
            return Ok(None);
        }
        let mut next = ConfigMap::clone(&map);
        next.data = Some(wanted);
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), PUBLIC);
        if let Some(written) = found(api.replace(CLUSTER_INFO, &PostParams::default(), &next).await)? {
            self.maps.apply(written);
        }
        Ok(None)
    }
}

/// The map's data with the signatures of all tokens that sign, and no others.
fn signed(
    present: &BTreeMap<String, String>,
    tokens: &[Arc<Secret>],
    now: jiff::Timestamp,
) -> BTreeMap<String, String> {
    let mut data = present.clone();
    data.retain(|key, _| !key.starts_with(SIGNATURE));
    let Some(text) = present.get(KUBECONFIG) else { return data };
    for token in tokens {
        let (id, secret) = (field(token, "token-id"), field(token, "token-secret"));
        let signs = field(token, "usage-bootstrap-signing") == "true" && life(token, now) != Life::Over;
        if signs && !id.is_empty() && !secret.is_empty() {
            data.insert(format!("{SIGNATURE}{id}"), signature(text, id, secret));
        }
    }
    data
}

impl Reconcile for Signer {
    fn name(&self) -> &'static str {
        "bootstrap-signer"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync().boxed()
    }

    fn resync(&self) {
        self.queue.add(CLUSTER_INFO);
    }

    fn workers(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn token(id: &str, fields: &[(&str, &str)]) -> Arc<Secret> {
        let base = [("token-id", id), ("token-secret", "0123456789abcdef")];
        let data = base.iter().chain(fields).map(|(k, v)| ((*k).into(), ByteString(v.as_bytes().to_vec()))).collect();
        Arc::new(Secret { data: Some(data), ..Secret::default() })
    }

    #[test]
    fn tokens_that_sign_sign() {
        let now: jiff::Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let map: BTreeMap<String, String> = [("kubeconfig", "text"), ("jws-kubeconfig-gone00", "x"), ("other", "y")]
            .map(|(k, v)| (k.into(), v.into()))
            .into();
        let signs = ("usage-bootstrap-signing", "true");
        let tokens = [
            token("aaaaaa", &[signs]),
            token("bbbbbb", &[]),
            token("cccccc", &[signs, ("expiration", "2029-01-01T00:00:00Z")]),
            token("dddddd", &[signs, ("expiration", "2031-01-01T00:00:00Z")]),
        ];
        let data = signed(&map, &tokens, now);
        let keys: Vec<&str> = data.keys().map(String::as_str).collect();
        assert_eq!(keys, ["jws-kubeconfig-aaaaaa", "jws-kubeconfig-dddddd", "kubeconfig", "other"]);
        // The same text under the same token gives the same signature, or every look would be a write.
        assert_eq!(signed(&data, &tokens, now), data);
        assert_ne!(signature("text", "aaaaaa", "x"), signature("texu", "aaaaaa", "x"));
        assert_ne!(signature("text", "aaaaaa", "x"), signature("text", "aaaaaa", "y"));
        let payload = URL_SAFE_NO_PAD.encode("text");
        assert!(verifies(&data["jws-kubeconfig-aaaaaa"], &payload, "0123456789abcdef"));
        assert!(!verifies(&data["jws-kubeconfig-aaaaaa"], &payload, "0123456789abcdeg"));
        assert!(!verifies("", &payload, "0123456789abcdef"));
    }

    #[test]
    fn lives() {
        let now: jiff::Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        for (end, want) in [
            ("", Life::Forever),
            ("2030-01-01T00:00:10Z", Life::For(Duration::from_secs(10))),
            ("2030-01-01T00:00:00Z", Life::Over),
            ("soon", Life::Over),
        ] {
            assert_eq!(life(&token("aaaaaa", &[("expiration", end)]), now), want, "{end}");
        }
    }
}
