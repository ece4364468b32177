//! Access keys: Secrets of type `skiff.dev/aws-credentials`, each good for the namespace it is in.
//!
//! Fields: `accessKeyId`, `secretAccessKey`, optional `sessionToken`, optional `serviceAccountName`, with whose rights on
//! workflows the holder acts. Without an account the holder may do everything with the namespace's workflows. Two Secrets may
//! have the same key id, as when people choose names like `test`: who knows the secret of one acts in its namespace, so nobody can
//! take a name away from others. Secrets are listed when a key is used that was not looked at for some seconds; nothing
//! is watched.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::constant_time;
use http::request::Parts;
use k8s_openapi::api::core::v1::Secret;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::sync::Mutex;

use super::error::Fault;
use super::sigv4::Claim;

/// Type of the Secrets.
pub const TYPE: &str = "skiff.dev/aws-credentials";
/// How long what was read is believed.
const FRESH: Duration = Duration::from_secs(10);
/// Pause between lists because of keys that nobody has.
const ABSENT: Duration = Duration::from_secs(1);
/// Time for a list.
const PATIENCE: Duration = Duration::from_secs(10);
/// Secrets in one answer.
const PAGE: u32 = 500;
/// Secrets that are kept in mind, and characters that a secret must have.
const KEYS_MAX: usize = 10_000;
const SECRET_MIN: usize = 16;

/// Who signed a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    /// Where they act.
    pub(crate) namespace: String,
    /// With whose rights.
    pub(crate) account: Option<String>,
    /// The access key.
    pub(crate) key: String,
}

struct Key {
    caller: Caller,
    secret: String,
    token: Option<String>,
    /// Of keys with the same secret the oldest counts.
    since: i64,
}

#[derive(Default)]
struct Known {
    keys: Arc<HashMap<String, Vec<Key>>>,
    read: Option<Instant>,
}

/// The keys of the cluster.
pub(crate) struct Keys {
    client: Client,
    known: Mutex<Known>,
}

impl Keys {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, known: Mutex::default() }
    }

    /// Whether there is such a key.
    pub(crate) async fn known(&self, claim: &Claim) -> Result<(), Fault> {
        if self.with(&claim.key).await?.contains_key(&claim.key) { Ok(()) } else { Err(unknown()) }
    }

    /// Who signed this request.
    pub(crate) async fn caller(&self, claim: &Claim, parts: &Parts, body: &[u8]) -> Result<Caller, Fault> {
        let known = self.with(&claim.key).await?;
        let candidates = known.get(&claim.key).ok_or_else(unknown)?;
        let signed = candidates.iter().find(|k| claim.holds(&k.secret, parts, body)).ok_or_else(|| {
            Fault::new(
                "InvalidSignatureException",
                "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
                 Access Key and signing method. Consult the service documentation for details.",
            )
        })?;
        let shown = parts.headers.get("x-amz-security-token").map(http::HeaderValue::as_bytes);
        let genuine = match (shown, signed.token.as_deref()) {
            (None, None) => true,
            (Some(a), Some(b)) => constant_time::verify_slices_are_equal(a, b.as_bytes()).is_ok(),
            _ => false,
        };
        genuine.then(|| signed.caller.clone()).ok_or_else(unknown)
    }

    /// All keys, read anew where they may have changed. One reads for all.
    async fn with(&self, key: &str) -> Result<Arc<HashMap<String, Vec<Key>>>, Fault> {
        let mut known = self.known.lock().await;
        let bound = if known.keys.contains_key(key) { FRESH } else { ABSENT };
        if known.read.is_none_or(|read| read.elapsed() >= bound) {
            let read = tokio::time::timeout(PATIENCE, list(&self.client)).await;
            let read = read.map_err(|_| Fault::new("ServiceUnavailable", "the cluster does not say who that is"))?;
            known.keys = Arc::new(read?);
            known.read = Some(Instant::now());
        }
        Ok(Arc::clone(&known.keys))
    }
}

fn unknown() -> Fault {
    Fault::new("UnrecognizedClientException", "The security token included in the request is invalid.")
}

async fn list(client: &Client) -> Result<HashMap<String, Vec<Key>>, Fault> {
    let api = Api::<Secret>::all(client.clone());
    let mut params = ListParams::default().fields(&format!("type={TYPE}")).limit(PAGE);
    let (mut keys, mut count): (HashMap<String, Vec<Key>>, usize) = (HashMap::new(), 0);
    loop {
        let page = api.list(&params).await?;
        for key in page.items.into_iter().filter_map(key_of) {
            keys.entry(key.caller.key.clone()).or_default().push(key);
            count += 1;
        }
        match page.metadata.continue_.filter(|c| !c.is_empty()) {
            Some(more) if count < KEYS_MAX => params = params.continue_token(&more),
            _ => break,
        }
    }
    for same in keys.values_mut() {
        same.sort_by(|a, b| (a.since, &a.caller.namespace).cmp(&(b.since, &b.caller.namespace)));
    }
    Ok(keys)
}

/// What a Secret says. One that says too little is none.
fn key_of(secret: Secret) -> Option<Key> {
    let data: BTreeMap<String, _> = secret.data.unwrap_or_default();
    let field = |name: &str| -> Option<String> {
        let text = String::from_utf8(data.get(name)?.0.clone()).ok()?;
        Some(text.trim().to_owned()).filter(|t| !t.is_empty())
    };
    let namespace = secret.metadata.namespace?;
    let (key, secret_key) = (field("accessKeyId")?, field("secretAccessKey")?);
    if secret_key.len() < SECRET_MIN {
        tracing::warn!(
            namespace,
            name = secret.metadata.name,
            "a secretAccessKey has less than {SECRET_MIN} characters"
        );
        return None;
    }
    let since = secret.metadata.creation_timestamp.map_or(0, |t| t.0.as_second());
    let caller = Caller { namespace, account: field("serviceAccountName"), key };
    Some(Key { caller, secret: secret_key, token: field("sessionToken"), since })
}
