//! Certificates of pods: a key made here, a PodCertificateRequest, and what a signer made of it.
//!
//! A projection is asked for when its volume is first made, and the volume waits. One task per projection makes the key
//! and the request, follows that one request until it is issued, denied or failed, and tells [`Sources`] so that the
//! pod's worker looks again. Nothing is watched once a certificate is there; it is asked for anew, with a new key, when
//! the signer said that this begins.
//!
//! Limits: keys are in memory and in the pod's volume (a tmpfs) alone, so an agent that starts anew asks anew. A denied
//! or failed request is final for the pod.
//!
//! [`Sources`]: crate::source::Sources

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{
    PodCertificateRequest, PodCertificateRequestSpec, PodCertificateRequestStatus,
};
use k8s_openapi::api::core::v1::{Node, Pod, PodCertificateProjection, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use tokio::sync::broadcast;

use crate::events::{Kind, Recorder};
use crate::pod::spec;
use crate::source;
use crate::trust;

mod key;

/// A request to the API that takes longer failed.
const API_TIMEOUT: Duration = Duration::from_secs(15);
/// First and longest wait after a request could not be made, or vanished.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// So much later than the signer says a certificate is renewed at most, that not all come at once.
const SPREAD_SECONDS: i64 = 300;
/// A certificate that is not renewed so long after it should be is worth an event.
const OVERDUE_SECONDS: i64 = 600;

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API server: {0}")]
    Api(#[from] Box<kube::Error>),
    #[error("the API server does not answer")]
    Silent,
    #[error("cannot make a key: {0}")]
    Make(#[from] rcgen::Error),
    #[error("unknown key type {0:?}")]
    KeyType(String),
    #[error("PodCertificateRequest {0} appears to have been deleted")]
    Deleted(String),
    #[error("PodCertificateRequest {0} was issued without times")]
    Timeless(String),
    #[error("the agent is stopping")]
    Stopping,
}

/// A key and its certificates, both PEM.
#[derive(Debug, PartialEq, Eq)]
pub struct Credential {
    /// The key.
    pub key: String,
    /// The certificate and those between it and the authority.
    pub chain: String,
}

/// What became of a request.
enum Outcome {
    Issued { chain: String, refresh: Timestamp, expires: Timestamp },
    Refused { kind: &'static str, reason: String, message: String },
}

struct Held {
    credential: Arc<Credential>,
    refresh: Timestamp,
    expires: Timestamp,
    /// Events that were told already.
    overdue: bool,
    expired: bool,
}

enum State {
    /// A first one is asked for; with what went wrong last.
    Asking(Option<String>),
    /// The signer said no, for ever.
    Refused(String),
    Held(Held),
}

struct Record {
    state: State,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Record {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// UID of the pod, volume, and place of the projection in it.
type Id = (String, String, usize);

/// The certificates of this node's pods.
pub struct Certificates {
    client: kube::Client,
    node: String,
    recorder: Recorder,
    changes: broadcast::Sender<source::Key>,
    records: Arc<Mutex<HashMap<Id, Record>>>,
}

impl Certificates {
    /// None yet. A change is told to `changes`.
    pub fn new(
        client: kube::Client,
        node: String,
        recorder: Recorder,
        changes: broadcast::Sender<source::Key>,
    ) -> Self {
        Self { client, node, recorder, changes, records: Arc::default() }
    }

    /// The credential of a projection, the `index`th of a pod's volume. Asks for one where there is none or where it is
    /// time for the next.
    ///
    /// # Errors
    /// Says why there is none, which may change ([`source::Key::certificate`] is told then).
    pub fn credential(
        &self,
        pod: &Pod,
        volume: &str,
        index: usize,
        projection: &PodCertificateProjection,
    ) -> Result<Arc<Credential>, String> {
        let id = (spec::uid(pod).to_owned(), volume.to_owned(), index);
        let mut records = lock(&self.records);
        let Some(record) = records.get_mut(&id) else {
            let task = self.ask(&id, pod, projection);
            records.insert(id, Record { state: State::Asking(None), task });
            return Err(pending(None));
        };
        match &mut record.state {
            State::Asking(why) => Err(pending(why.as_deref())),
            State::Refused(why) => Err(why.clone()),
            State::Held(held) => {
                let credential = held.credential.clone();
                let now = Timestamp::now().as_second();
                let tell = |told: &mut bool, since: i64, reason, message| {
                    if now > since && !std::mem::replace(told, true) {
                        self.recorder.pod(pod, None, Kind::Warning, reason, message);
                    }
                };
                let late = held.refresh.as_second() + OVERDUE_SECONDS;
                tell(&mut held.overdue, late, "CertificateOverdueForRefresh", "PodCertificate refresh overdue");
                tell(&mut held.expired, held.expires.as_second(), "CertificateExpired", "PodCertificate expired");
                if now >= held.refresh.as_second() && record.task.is_finished() {
                    record.task = self.ask(&id, pod, projection);
                }
                Ok(credential)
            }
        }
    }

    /// When the first of a pod's certificates is to be renewed.
    pub fn next_refresh(&self, uid: &str) -> Option<Timestamp> {
        let records = lock(&self.records);
        let own = records.iter().filter(|((owner, ..), _)| owner == uid);
        own.filter_map(|(_, record)| match &record.state {
            State::Held(held) if record.task.is_finished() => Some(held.refresh),
            _ => None,
        })
        .min()
    }

    /// Forgets what a pod had.
    pub fn forget(&self, uid: &str) {
        lock(&self.records).retain(|(owner, ..), _| owner != uid);
    }

    fn ask(&self, id: &Id, pod: &Pod, projection: &PodCertificateProjection) -> tokio::task::JoinHandle<()> {
        let ask = Ask {
            client: self.client.clone(),
            node: self.node.clone(),
            pod: about(pod),
            account: spec::spec(pod).service_account_name.clone().unwrap_or_else(|| "default".into()),
            projection: projection.clone(),
        };
        let (id, records, recorder, changes) =
            (id.clone(), self.records.clone(), self.recorder.clone(), self.changes.clone());
        tokio::spawn(async move {
            let mut pause = RETRY.0;
            let state = loop {
                let error = match ask.once().await {
                    Ok((key, Outcome::Issued { chain, refresh, expires })) => {
                        let credential = Arc::new(Credential { key, chain });
                        break State::Held(Held { credential, refresh, expires, overdue: false, expired: false });
                    }
                    Ok((_, Outcome::Refused { kind, reason, message })) => {
                        let what = if kind == "Denied" { "was denied" } else { "failed" };
                        let text = format!("PodCertificateRequest {what}, reason={reason:?}, message={message:?}");
                        recorder.pod(&ask.pod, None, Kind::Warning, kind, text);
                        let kind = kind.to_lowercase();
                        break State::Refused(format!(
                            "PodCertificateRequest was permanently {kind}: reason={reason:?} message={message:?}"
                        ));
                    }
                    Err(error) => error,
                };
                tracing::debug!(pod = %spec::full_name(&ask.pod), %error, "no certificate for a pod yet");
                if let Some(Record { state: State::Asking(why), .. }) = lock(&records).get_mut(&id) {
                    *why = Some(error.to_string());
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY.1);
            };
            // A pod that was forgotten meanwhile took this task along.
            if let Some(record) = lock(&records).get_mut(&id) {
                record.state = state;
            }
            // No listener is fine.
            let _ = changes.send(source::Key::certificate(spec::namespace(&ask.pod), &id.0));
        })
    }
}

fn lock(records: &Mutex<HashMap<Id, Record>>) -> MutexGuard<'_, HashMap<Id, Record>> {
    records.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pending(why: Option<&str>) -> String {
    let why = why.map(|w| format!(": {w}")).unwrap_or_default();
    format!("credential bundle is not issued yet{why}")
}

/// As much of a pod as requests and events say of it.
fn about(pod: &Pod) -> Pod {
    let ObjectMeta { name, namespace, uid, resource_version, .. } = pod.metadata.clone();
    Pod { metadata: ObjectMeta { name, namespace, uid, resource_version, ..Default::default() }, ..Default::default() }
}

/// What is asked for.
struct Ask {
    client: kube::Client,
    node: String,
    pod: Pod,
    account: String,
    projection: PodCertificateProjection,
}

impl Ask {
    /// One key, one request, until it is decided.
    async fn once(&self) -> Result<(String, Outcome), Error> {
        let kind = self.projection.key_type.clone();
        let (key, proof) =
            tokio::task::spawn_blocking(move || key::make(&kind)).await.map_err(|_| Error::Stopping)??;
        let namespace = spec::namespace(&self.pod);
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        let nodes: Api<Node> = Api::all(self.client.clone());
        let account = call(accounts.get(&self.account)).await?.uid().unwrap_or_default();
        let node = call(nodes.get(&self.node)).await?.uid().unwrap_or_default();
        let requests: Api<PodCertificateRequest> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams::default();
        let request = self.request(proof, account, node);
        let made = call(requests.create(&params, &request)).await?;
        Ok((key, follow(requests, &made.name_any()).await?))
    }

    fn request(&self, proof: Vec<u8>, account_uid: String, node_uid: String) -> PodCertificateRequest {
        let (name, uid) = (spec::name(&self.pod).to_owned(), spec::uid(&self.pod).to_owned());
        PodCertificateRequest {
            metadata: ObjectMeta {
                generate_name: Some("req-".into()),
                namespace: self.pod.metadata.namespace.clone(),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".into(),
                    kind: "Pod".into(),
                    name: name.clone(),
                    uid: uid.clone(),
                    ..Default::default()
                }]),
                ..Default::default()
            },
            spec: PodCertificateRequestSpec {
                max_expiration_seconds: self.projection.max_expiration_seconds,
                node_name: self.node.clone(),
                node_uid,
                pod_name: name,
                pod_uid: uid,
                service_account_name: self.account.clone(),
                service_account_uid: account_uid,
                signer_name: self.projection.signer_name.clone(),
                stub_pkc_s10_request: ByteString(proof),
                unverified_user_annotations: self.projection.user_annotations.clone(),
            },
            status: None,
        }
    }
}

async fn call<T>(work: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    match tokio::time::timeout(API_TIMEOUT, work).await {
        Ok(answer) => answer.map_err(|e| Error::Api(Box::new(e))),
        Err(_) => Err(Error::Silent),
    }
}

/// Waits, for as long as it takes, until somebody decides.
async fn follow(requests: Api<PodCertificateRequest>, name: &str) -> Result<Outcome, Error> {
    let mut changes = skiff_client::watch_object(requests, name);
    loop {
        match changes.next().await {
            Some(Ok(Some(request))) => {
                if let Some(outcome) = request.status.and_then(|s| outcome(name, s)) {
                    return outcome;
                }
            }
            Some(Ok(None)) => return Err(Error::Deleted(name.to_owned())),
            Some(Err(error)) => tracing::debug!(%error, name, "watch of a pod's certificate failed"),
            None => return Err(Error::Stopping),
        }
    }
}

/// What a status says; none while the request is open.
fn outcome(name: &str, status: PodCertificateRequestStatus) -> Option<Result<Outcome, Error>> {
    const KINDS: [&str; 3] = ["Denied", "Failed", "Issued"];
    let conditions = status.conditions.unwrap_or_default();
    let (kind, condition) = conditions
        .into_iter()
        .find_map(|c| Some((KINDS.into_iter().find(|k| *k == c.type_ && c.status == "True")?, c)))?;
    if kind != "Issued" {
        return Some(Ok(Outcome::Refused { kind, reason: condition.reason, message: condition.message }));
    }
    let (Some(refresh), Some(expires)) = (status.begin_refresh_at, status.not_after) else {
        return Some(Err(Error::Timeless(name.to_owned())));
    };
    let later = refresh.0.as_second() + rand::random_range(0..SPREAD_SECONDS);
    let chain = trust::certificates(&status.certificate_chain.unwrap_or_default());
    Some(Ok(Outcome::Issued {
        chain: chain.iter().map(|c| skiff_core::pem::encode("CERTIFICATE", c)).collect(),
        refresh: Timestamp::from_second(later).unwrap_or(refresh.0),
        expires: expires.0,
    }))
}
