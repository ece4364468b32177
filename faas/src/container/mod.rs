//! Instances that are pods: one each, made for it, never restarted in place.
//!
//! A start creates the pod and then listens to two things at once: what the watch says of it, and, as soon as it has an
//! address, its port. Nobody waits for probes or endpoints. Where there is only one node that may take the pod it is bound to
//! that node right away (the node itself refuses what does not fit); otherwise the scheduler decides.

mod images;
mod seen;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMap, Container, ContainerPort, Node, Pod, PodSpec, SeccompProfile, SecurityContext,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, LogParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::Mutex;
use skiff_controllers::runtime::controller_ref;
use skiff_controllers::runtime::informer::{Informer, controller_of, key_of};
use skiff_controllers::runtime::worker::{code, text as said};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use self::seen::{Seen, Trouble, look};
use crate::api::{FUNCTION, FunctionRevision, Isolation, REVISION};
use crate::build::Builder;
use crate::instance::{Address, Class, Event, Instance, StartError, Times};
use crate::process::Processes;
use crate::runtime::{File, Images, Launch, PORT, Source, fetch, pod};

/// Starts at a time, of all functions.
const STARTS: usize = 32;
/// Longest time from the pod to its first answer.
const START: Duration = Duration::from_secs(60);
/// How often an address is tried that does not answer yet: first, and at last.
const DIAL: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(100));
/// Time for one such try.
const DIAL_LIMIT: Duration = Duration::from_secs(5);
/// Seconds that an instance has to end. It has no request any more.
const GRACE: u32 = 5;
/// What waits to be read of what happens.
const EVENTS: usize = 256;
/// How long the list of nodes is believed.
const NODES: Duration = Duration::from_secs(10);
/// Lines of the log that an owner is shown.
const LINES: i64 = 20;
/// Annotation of a revision's ConfigMap: the paths of its files, in the order of their keys.
const PATHS: &str = "skiff.dev/paths";
/// Name of the container.
const NAME: &str = "function";

struct Inner {
    /// Pods that are being started, with what the watch says.
    starting: Mutex<HashMap<String, watch::Sender<Seen>>>,
    /// Pods that can answer: what becomes of them is an event.
    ready: Mutex<HashMap<String, ()>>,
    events: mpsc::Sender<Event>,
}

impl Inner {
    fn tell(&self, event: Event) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            let events = self.events.clone();
            // The watch must not wait; the order of events about different pods says nothing.
            tokio::spawn(async move { events.send(event).await });
        }
    }

    fn changed(&self, key: &str, pod: Option<&Pod>) {
        let gone = || Seen { trouble: Some(Trouble::Gone("its pod is gone".into())), ..Seen::default() };
        let seen = pod.map_or_else(gone, look);
        if let Some(start) = self.starting.lock().get(key) {
            start.send_modify(|before| {
                let started = before.started.or(seen.started);
                *before = Seen { started, ..seen.clone() };
            });
        }
        if let Some(trouble) = &seen.trouble
            && self.ready.lock().remove(key).is_some()
        {
            let (Trouble::Code(reason) | Trouble::NoRoom(reason) | Trouble::Gone(reason)) = trouble.clone();
            let (namespace, name) = key.split_once('/').unwrap_or(("", key));
            self.tell(Event::Ended { namespace: namespace.to_owned(), name: name.to_owned(), reason });
        }
    }
}

/// The class of pods.
pub struct Pods {
    client: Client,
    images: Images,
    inner: Arc<Inner>,
    informer: Informer<Pod>,
    receiver: Mutex<Option<mpsc::Receiver<Event>>>,
    starts: Semaphore,
    nodes: Mutex<Option<(Instant, Vec<Node>)>>,
    builder: OnceLock<Arc<Builder>>,
    /// What brings images to other nodes, where something does.
    bearer: OnceLock<Weak<Processes>>,
}

/// Takes a start out of the books, whatever becomes of it.
struct Watched<'a>(&'a Inner, String);

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.0.starting.lock().remove(&self.1);
    }
}

impl Pods {
    /// Follows pods of functions from now on, until `stop`.
    #[must_use]
    pub fn new(client: Client, images: Images, stop: &CancellationToken) -> Arc<Self> {
        let (events, receiver) = mpsc::channel(EVENTS);
        let inner = Arc::new(Inner { starting: Mutex::default(), ready: Mutex::default(), events });
        let informer = Informer::<Pod>::default();
        let seen = Arc::clone(&inner);
        informer.on_change(move |change| seen.changed(&key_of(&**change.latest()), change.new.as_deref()));
        informer.start(Api::all(client.clone()), watcher::Config::default().labels(REVISION), stop.clone());
        Arc::new(Self {
            client,
            images,
            inner,
            informer,
            receiver: Mutex::new(Some(receiver)),
            starts: Semaphore::new(STARTS),
            nodes: Mutex::default(),
            builder: OnceLock::new(),
            bearer: OnceLock::new(),
        })
    }

    /// Tells of the pods that ran before this process did, and deletes those that are of no use.
    ///
    /// # Errors
    /// When the pods cannot be listed in time.
    pub async fn adopt(&self, limit: Duration) -> anyhow::Result<()> {
        anyhow::ensure!(self.informer.wait_synced(limit).await, "the pods of functions could not be listed in time");
        for found in self.informer.all() {
            let key = key_of(&*found);
            let (namespace, name) = key.split_once('/').unwrap_or_default();
            let owner = controller_of(&*found).filter(|o| o.kind == "FunctionRevision");
            let Some(owner) = owner else { continue };
            let seen = look(&found);
            let usable = seen.address.filter(|_| seen.trouble.is_none() && seen.started.is_some());
            let Some(ip) = usable else {
                if let Err(error) = self.stop(namespace, name).await {
                    tracing::warn!(%error, pod = %key, "cannot delete a pod that is of no use");
                }
                continue;
            };
            let now = Instant::now();
            let instance = Instance {
                name: name.to_owned(),
                node: seen.node,
                address: Address::Tcp(SocketAddr::new(ip, PORT)),
                times: Times { asked: now, started: now, loaded: now },
            };
            self.inner.ready.lock().insert(key.clone(), ());
            let (namespace, revision) = (namespace.to_owned(), owner.name.clone());
            self.inner.tell(Event::Found { namespace, revision, instance });
        }
        Ok(())
    }

    /// Keeps what a revision's pods need and what may change until they start: the contents of ConfigMaps.
    ///
    /// # Errors
    /// When the code does not fit, or the API refuses.
    pub async fn prepare(&self, revision: &FunctionRevision, source: &Source) -> anyhow::Result<()> {
        let launch = pod(revision, source, &self.images)?;
        let Some(mut map) = launch.config_map else { return Ok(()) };
        if let Source::Files(files) = source {
            let paths: Vec<&str> = files.iter().map(|f| f.path.as_str()).collect();
            let annotation = (PATHS.to_owned(), serde_json::to_string(&paths)?);
            map.metadata.annotations = Some(BTreeMap::from([annotation]));
        }
        let namespace = revision.metadata.namespace.as_deref().unwrap_or_default();
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        match maps.create(&PostParams::default(), &map).await {
            Ok(_) => Ok(()),
            Err(e) if code(&e) == 409 => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// The code of a revision as it was when it was made.
    async fn source(&self, revision: &FunctionRevision) -> Result<Source, StartError> {
        let source = &revision.spec.code.source;
        if let Some(image) = &source.image {
            return Ok(Source::Image(image.clone()));
        }
        if source.archive.is_some() {
            // A pod unpacks it itself.
            return Ok(Source::Archive(Bytes::new()));
        }
        let (name, namespace) = (text(revision.metadata.name.as_ref()), text(revision.metadata.namespace.as_ref()));
        let maps = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
        let kept = maps.get_opt(&format!("{name}-code")).await.map_err(other)?;
        if let Some(files) = kept.and_then(|map| files(&map)) {
            return Ok(Source::Files(files));
        }
        let fetched =
            fetch(&self.client, namespace, &revision.spec.code).await.map_err(|e| match e.is_permanent() {
                true => StartError::Code(e.to_string()),
                false => StartError::Other(e.into()),
            })?;
        if fetched.digest(&revision.spec.code) != revision.spec.digest {
            return Err(StartError::Code("its code was changed since this revision was made".into()));
        }
        self.prepare(revision, &fetched).await?;
        Ok(fetched)
    }

    /// The nodes, as of a moment ago; none if they cannot be read.
    async fn nodes(&self) -> Vec<Node> {
        let known = self.nodes.lock().clone().filter(|(at, _)| at.elapsed() < NODES).map(|(_, nodes)| nodes);
        if let Some(nodes) = known {
            return nodes;
        }
        let list = ListParams::default().match_any();
        let Ok(nodes) = Api::<Node>::all(self.client.clone()).list(&list).await else { return vec![] };
        *self.nodes.lock() = Some((Instant::now(), nodes.items.clone()));
        nodes.items
    }

    fn pod(&self, revision: &FunctionRevision, launch: Launch, node: Option<String>) -> Pod {
        let code = &revision.spec.code;
        let revision_name = text(revision.metadata.name.as_ref());
        let suffix: String =
            (0..5).map(|_| char::from(b"bcdfghjklmnpqrstvwxz2456789"[rand::random_range(0..27)])).collect();
        let ours = code.source.image.is_none();
        let labels = BTreeMap::from([
            (FUNCTION.to_owned(), revision.spec.function.clone()),
            (REVISION.to_owned(), revision_name.to_owned()),
        ]);
        let security = SecurityContext {
            allow_privilege_escalation: Some(false),
            // Images of others may need to change their user.
            capabilities: ours.then(|| Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
            ..SecurityContext::default()
        };
        let container = Container {
            name: NAME.into(),
            image: Some(launch.image),
            command: launch.command,
            working_dir: launch.working_dir,
            env: Some(launch.env),
            env_from: Some(code.env_from.clone()).filter(|e| !e.is_empty()),
            ports: Some(vec![ContainerPort { container_port: i32::from(PORT), ..ContainerPort::default() }]),
            resources: code.resources.clone(),
            security_context: Some(security),
            volume_mounts: Some(launch.mounts),
            ..Container::default()
        };
        let spec = PodSpec {
            automount_service_account_token: Some(code.service_account_name.is_some()),
            service_account_name: code.service_account_name.clone(),
            containers: vec![container],
            init_containers: Some(launch.init).filter(|i| !i.is_empty()),
            enable_service_links: Some(false),
            image_pull_secrets: Some(code.image_pull_secrets.clone()).filter(|s| !s.is_empty()),
            node_name: node,
            node_selector: Some(code.node_selector.clone()).filter(|s| !s.is_empty()),
            restart_policy: Some("Never".into()),
            termination_grace_period_seconds: Some(i64::from(GRACE)),
            volumes: Some(launch.volumes),
            ..PodSpec::default()
        };
        let metadata = ObjectMeta {
            name: Some(format!("{revision_name}-{suffix}")),
            namespace: revision.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_ref(revision)]),
            ..ObjectMeta::default()
        };
        Pod { metadata, spec: Some(spec), status: None }
    }

    /// Waits until a pod answers. `ready` is what to ask; without it a connection is enough.
    async fn answers(
        &self,
        mut seen: watch::Receiver<Seen>,
        ask: bool,
    ) -> Result<(SocketAddr, String, Instant), Trouble> {
        let mut pause = DIAL.0;
        loop {
            let now = seen.borrow_and_update().clone();
            if let Some(trouble) = now.trouble {
                return Err(trouble);
            }
            let changed = seen.changed();
            let Some(ip) = now.address else {
                let _ = changed.await;
                continue;
            };
            let address = SocketAddr::new(ip, PORT);
            let tried = async {
                match tokio::time::timeout(DIAL_LIMIT, dial(address, ask)).await {
                    Ok(Ok(())) => Ok(true),
                    Ok(Err(Dial::Code(why))) => Err(Trouble::Code(why)),
                    Ok(Err(Dial::NotYet)) | Err(_) => Ok(false),
                }
            };
            if tried.await? {
                let started = now.started.unwrap_or_else(Instant::now);
                return Ok((address, now.node, started));
            }
            // Its end is noticed between tries; other news can wait for the next one.
            tokio::time::sleep(pause).await;
            pause = (pause * 3 / 2).min(DIAL.1);
        }
    }

    /// The last lines of a pod that did not start.
    async fn log(&self, namespace: &str, name: &str) -> String {
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let lines = LogParams { container: Some(NAME.into()), tail_lines: Some(LINES), ..LogParams::default() };
        let log = tokio::time::timeout(DIAL_LIMIT, pods.logs(name, &lines)).await;
        log.ok().and_then(Result::ok).map(|l| l.trim_end().to_owned()).unwrap_or_default()
    }
}

enum Dial {
    NotYet,
    Code(String),
}

/// Asks a runner whether the code is loaded; of other programs a connection says enough.
async fn dial(address: SocketAddr, ask: bool) -> Result<(), Dial> {
    let stream = TcpStream::connect(address).await.map_err(|_| Dial::NotYet)?;
    if !ask {
        return Ok(());
    }
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|_| Dial::NotYet)?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/_skiff/ready").header(http::header::HOST, "function").body(Empty::<Bytes>::new());
    let request = request.map_err(|_| Dial::NotYet)?;
    let response = sender.send_request(request).await.map_err(|_| Dial::NotYet)?;
    let status = response.status();
    let said = response.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    connection.abort();
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::INTERNAL_SERVER_ERROR => Err(Dial::Code(reason(&said))),
        _ => Err(Dial::NotYet),
    }
}

/// What a runner says of code that cannot be loaded.
fn reason(said: &[u8]) -> String {
    let Ok(v) = serde_json::from_slice::<serde_json::Value>(said) else {
        return String::from_utf8_lossy(said).into_owned();
    };
    let error = v["error"].as_str().or_else(|| v["error"]["message"].as_str()).unwrap_or("it cannot be loaded");
    match &v["log"] {
        serde_json::Value::String(log) => format!("{error}\n{log}"),
        serde_json::Value::Array(lines) => {
            let lines: Vec<&str> = lines.iter().filter_map(serde_json::Value::as_str).collect();
            format!("{error}\n{}", lines.join("\n"))
        }
        _ => error.to_owned(),
    }
}

fn text(s: Option<&String>) -> &str {
    s.map(String::as_str).unwrap_or_default()
}

fn other(e: impl Into<anyhow::Error>) -> StartError {
    StartError::Other(e.into())
}

/// The files that [`Pods::prepare`] kept.
fn files(map: &ConfigMap) -> Option<Vec<File>> {
    let paths: Vec<String> = serde_json::from_str(map.metadata.annotations.as_ref()?.get(PATHS)?).ok()?;
    let data = map.binary_data.as_ref()?;
    let file = |(i, path): (usize, String)| {
        Some(File { path, content: Bytes::from(data.get(&format!("file-{i}"))?.0.clone()) })
    };
    paths.into_iter().enumerate().map(file).collect()
}

fn has(node: &Node, selector: &BTreeMap<String, String>) -> bool {
    let labels = node.metadata.labels.as_ref();
    selector.iter().all(|(k, v)| labels.is_some_and(|l| l.get(k) == Some(v)))
}

/// Whether a node is known not to have these labels.
fn refuses(nodes: &[Node], name: &str, selector: &BTreeMap<String, String>) -> bool {
    nodes.iter().any(|n| n.metadata.name.as_deref() == Some(name) && !has(n, selector))
}

/// The one node that may take a pod, if there is exactly one in the cluster: where there are several, the scheduler
/// knows best.
fn only(nodes: &[Node], selector: &BTreeMap<String, String>) -> Option<String> {
    let [node] = nodes else { return None };
    let spec = node.spec.as_ref();
    let tainted = spec.and_then(|s| s.taints.as_ref()).is_some_and(|t| !t.is_empty());
    let closed = spec.and_then(|s| s.unschedulable).unwrap_or(false);
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    (ready && !tainted && !closed && has(node, selector)).then(|| node.metadata.name.clone()).flatten()
}

#[async_trait]
impl Class for Pods {
    fn isolation(&self) -> Isolation {
        Isolation::Container
    }

    async fn prepare(&self, revision: Arc<FunctionRevision>) -> Result<(), StartError> {
        self.built(revision).await.map(|_| ())
    }

    async fn start(&self, revision: Arc<FunctionRevision>) -> Result<Instance, StartError> {
        let asked = Instant::now();
        let (revision, bound) = self.built(revision).await?;
        let _turn = self.starts.acquire().await.map_err(other)?;
        let source = self.source(&revision).await?;
        let launch = pod(&revision, &source, &self.images).map_err(|e| StartError::Code(e.to_string()))?;
        let ask = revision.spec.code.source.image.is_none() && revision.spec.code.runtime.as_deref() != Some("http");
        let nodes = self.nodes().await;
        let selector = &revision.spec.code.node_selector;
        let node = match bound {
            Some(node) if refuses(&nodes, &node, selector) => {
                return Err(StartError::Code(format!(
                    "its image was built on node {node} and is nowhere else, and that node does not have the labels of \
                     its nodeSelector: with a registry for functions it can run on others"
                )));
            }
            Some(node) => Some(node),
            None => only(&nodes, selector),
        };
        let object = self.pod(&revision, launch, node);
        let namespace = text(object.metadata.namespace.as_ref()).to_owned();
        let name = text(object.metadata.name.as_ref()).to_owned();
        let key = format!("{namespace}/{name}");
        let (sender, seen) = watch::channel(Seen::default());
        self.inner.starting.lock().insert(key.clone(), sender);
        let watched = Watched(&self.inner, key.clone());
        let pods = Api::<Pod>::namespaced(self.client.clone(), &namespace);
        if let Err(e) = pods.create(&PostParams::default(), &object).await {
            return Err(match code(&e) {
                // Quota, and policies of the namespace.
                403 => StartError::NoRoom(said(&e)),
                400 | 422 => StartError::Code(said(&e)),
                _ => other(e),
            });
        }
        match tokio::time::timeout(START, self.answers(seen, ask)).await {
            Ok(Ok((address, node, started))) => {
                let times = Times { asked, started, loaded: Instant::now() };
                self.inner.ready.lock().insert(key, ());
                drop(watched);
                Ok(Instance { name, node, address: Address::Tcp(address), times })
            }
            failed => {
                drop(watched);
                let log = self.log(&namespace, &name).await;
                let with_log = |why: String| if log.is_empty() { why } else { format!("{why}\n{log}") };
                if let Err(error) = self.stop(&namespace, &name).await {
                    tracing::warn!(%error, pod = %name, "cannot delete a pod that did not start");
                }
                Err(match failed {
                    Ok(Err(Trouble::Code(why))) => StartError::Code(with_log(why)),
                    Ok(Err(Trouble::NoRoom(why))) => StartError::NoRoom(why),
                    Ok(Err(Trouble::Gone(why))) => other(anyhow::anyhow!(why)),
                    _ => StartError::Code(with_log(format!(
                        "nothing listens on port {PORT} after {} s",
                        START.as_secs()
                    ))),
                })
            }
        }
    }

    async fn stop(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        // What is ended on purpose is no news.
        self.inner.ready.lock().remove(&format!("{namespace}/{name}"));
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        match pods.delete(name, &DeleteParams::default().grace_period(GRACE)).await {
            Ok(_) => Ok(()),
            Err(e) if code(&e) == 404 => Ok(()),
            Err(e) => Err(e).with_context(|| format!("cannot delete the pod {namespace}/{name}")),
        }
    }

    async fn tidy(&self, revisions: &[Arc<FunctionRevision>]) {
        let Some(builder) = self.builder.get() else { return };
        let needed = revisions.iter().filter_map(|r| r.status.as_ref()?.image.as_deref()).collect();
        if let Err(error) = builder.tidy(&needed).await {
            tracing::warn!(error = format!("{error:#}"), "images of functions that no revision has are not deleted");
        }
    }

    fn events(&self) -> mpsc::Receiver<Event> {
        // A second reader gets nothing: the contract has one.
        self.receiver.lock().take().unwrap_or_else(|| mpsc::channel(1).1)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_node_is_no_choice() {
        let node = |name: &str, spec: serde_json::Value, ready: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": {"disk": "ssd"}}, "spec": spec,
                "status": {"conditions": [{"type": "Ready", "status": ready}]}}))
            .unwrap()
        };
        let any = BTreeMap::new();
        let good = node("a", json!({}), "True");
        assert_eq!(only(std::slice::from_ref(&good), &any).as_deref(), Some("a"));
        assert_eq!(only(&[good.clone(), good.clone()], &any), None, "two");
        assert_eq!(only(&[node("a", json!({}), "False")], &any), None, "not ready");
        assert_eq!(only(&[node("a", json!({"unschedulable": true}), "True")], &any), None, "cordoned");
        let tainted = json!({"taints": [{"key": "k", "effect": "NoSchedule"}]});
        assert_eq!(only(&[node("a", tainted, "True")], &any), None, "tainted");
        let selector = |v: &str| BTreeMap::from([("disk".to_owned(), v.to_owned())]);
        assert_eq!(only(std::slice::from_ref(&good), &selector("ssd")).as_deref(), Some("a"));
        assert_eq!(only(std::slice::from_ref(&good), &selector("hdd")), None);
        let all = [good];
        assert!(refuses(&all, "a", &selector("hdd")) && !refuses(&all, "a", &selector("ssd")));
        assert!(!refuses(&all, "b", &selector("hdd")), "what is not known is asked");
    }

    #[test]
    fn reasons_of_runners() {
        assert_eq!(reason(br#"{"error": "SyntaxError", "log": "line 1"}"#), "SyntaxError\nline 1");
        assert_eq!(reason(br#"{"error": {"message": "m"}, "log": ["a", "b"]}"#), "m\na\nb");
        assert_eq!(reason(b"oh"), "oh");
    }
}
