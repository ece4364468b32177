//! From a Function to answers: controller, gateway and fleets on the real API server, with instances that are tasks of the
//! test.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Event, ServiceAccount};
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_faas::Config;
use skiff_faas::api::{Function, FunctionCall, FunctionRevision, Isolation};
use skiff_faas::instance::{Address, Class, Event as Change, Instance, StartError, Times};
use skiff_faas::runtime::Images;
use skiff_storage::embedded::{Embedded, Options};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Instances in this process: what they do is the function's code, a word.
#[derive(Default)]
struct Tasks {
    started: AtomicUsize,
    stopped: AtomicUsize,
    running: Mutex<HashMap<String, tokio::task::AbortHandle>>,
    events: Mutex<Option<mpsc::Sender<Change>>>,
}

/// Bytes that instances which stream have given away.
static STREAMED: AtomicUsize = AtomicUsize::new(0);
/// One piece of a stream, and how many there are.
const PIECES: (usize, usize) = (64 << 10, 4096);

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

async fn behave(code: String, name: String, request: Request<Incoming>) -> Result<Reply, Infallible> {
    let whole = |bytes: Bytes| Response::new(Full::new(bytes).boxed_unsync());
    if code == "talk" && request.headers().contains_key(UPGRADE) {
        let mut response = whole(Bytes::new());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert(CONNECTION, "upgrade".parse().unwrap());
        response.headers_mut().insert(UPGRADE, "echo".parse().unwrap());
        tokio::spawn(async move {
            let io = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
            let (mut from, mut to) = tokio::io::split(io);
            tokio::io::copy(&mut from, &mut to).await
        });
        return Ok(response);
    }
    let said = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    match code.as_str() {
        "hang" => std::future::pending().await,
        "huge" => Ok(whole(Bytes::from(vec![b'x'; 2000]))),
        "stream" => {
            let pieces = futures::stream::iter(0..PIECES.1).map(|_| {
                STREAMED.fetch_add(PIECES.0, Ordering::SeqCst);
                Ok(Frame::data(Bytes::from(vec![b'x'; PIECES.0])))
            });
            Ok(Response::new(StreamBody::new(pieces).boxed_unsync()))
        }
        _ => Ok(whole(Bytes::from(format!("{code} {name} {}", said.len())))),
    }
}

#[async_trait]
impl Class for Tasks {
    fn isolation(&self) -> Isolation {
        Isolation::Process
    }

    async fn start(&self, revision: Arc<FunctionRevision>) -> Result<Instance, StartError> {
        let asked = Instant::now();
        let code = revision.spec.code.source.inline.clone().unwrap_or_default();
        if code == "broken" {
            return Err(StartError::Code("SyntaxError: line 1".into()));
        }
        let number = self.started.fetch_add(1, Ordering::SeqCst);
        let name = format!("{}-{number}", revision.metadata.name.clone().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let own = name.clone();
        let task = tokio::spawn(async move {
            // Its connections end with it.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (code, name) = (code.clone(), own.clone());
                let service = service_fn(move |request| behave(code.clone(), name.clone(), request));
                let connection = hyper::server::conn::http1::Builder::new();
                connections.spawn(connection.serve_connection(TokioIo::new(stream), service).with_upgrades());
            }
        });
        self.running.lock().insert(name.clone(), task.abort_handle());
        let now = Instant::now();
        Ok(Instance { name, node: "here".into(), address, times: Times { asked, started: now, loaded: now } })
    }

    async fn stop(&self, _: &str, name: &str) -> anyhow::Result<()> {
        if let Some(task) = self.running.lock().remove(name) {
            task.abort();
            self.stopped.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    fn events(&self) -> mpsc::Receiver<Change> {
        let (sender, receiver) = mpsc::channel(16);
        *self.events.lock() = Some(sender);
        receiver
    }
}

/// A cluster of an API server and functions.
struct Cluster {
    client: kube::Client,
    functions: Api<Function>,
    class: Arc<Tasks>,
    gateway: SocketAddr,
    _stop: DropGuard,
    _dir: tempfile::TempDir,
}

struct Said {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path(), Options::default()).unwrap();
        let server = Server::builder(Arc::new(store)).start().await.unwrap();
        let client = server.client(User::new("admin", &["system:masters"]));
        // Free at this moment: nothing else listens on what the system just gave.
        let gateway = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let config = Config {
            http: gateway,
            https: None,
            // Where pods would reach it: nobody goes there.
            address: [192, 0, 2, 7].into(),
            node: "here".into(),
            files: None,
            domain: "cluster.local".into(),
            images: Images::default(),
            engine: None,
            supplies: skiff_faas::build::Supplies::default(),
            processes: None,
            share: skiff_faas::gateway::invoke::Shared::default(),
        };
        let (class, stop) = (Arc::new(Tasks::default()), CancellationToken::new());
        let processes = Some(Arc::clone(&class) as Arc<dyn Class>);
        tokio::spawn(skiff_faas::serve(client.clone(), config, processes, stop.clone()));
        let crds = Api::all(client.clone());
        for name in ["functions.skiff.dev", "functionrevisions.skiff.dev"] {
            let served = await_condition(crds.clone(), name, kube::runtime::conditions::is_crd_established());
            tokio::time::timeout(Duration::from_secs(30), served).await.unwrap().unwrap();
        }
        let functions = Api::namespaced(client.clone(), "default");
        Self { client, functions, class, gateway, _stop: stop.drop_guard(), _dir: dir }
    }

    async fn make(&self, name: &str, spec: Value) {
        let whole = json!({"apiVersion": "skiff.dev/v1", "kind": "Function", "metadata": {"name": name}, "spec": spec});
        let function = serde_json::from_value(whole).unwrap();
        self.functions.create(&PostParams::default(), &function).await.unwrap();
    }

    async fn patch(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.functions.patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Waits until a function's status is so.
    async fn until(&self, name: &str, is: impl Fn(&Value) -> bool) {
        let condition = |f: Option<&Function>| {
            f.is_some_and(|f| is(&serde_json::to_value(f.status.clone().unwrap_or_default()).unwrap()))
        };
        let waited = await_condition(self.functions.clone(), name, condition);
        let found = tokio::time::timeout(Duration::from_secs(60), waited).await;
        let now = self.functions.get(name).await.ok().and_then(|f| f.status);
        found.unwrap_or_else(|_| panic!("{name} is {now:?}")).unwrap();
    }

    /// Waits until the namespace's objects are so.
    async fn seen<K>(&self, is: impl Fn(&[K]) -> bool) -> Vec<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    {
        let api = Api::<K>::namespaced(self.client.clone(), "default");
        let waited = async {
            let mut changes =
                std::pin::pin!(kube::runtime::watcher(api.clone(), kube::runtime::watcher::Config::default()));
            loop {
                let now = api.list(&ListParams::default()).await.unwrap().items;
                if is(&now) {
                    return now;
                }
                changes.next().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), waited).await.expect("objects as they should be")
    }

    /// Makes an account, or lets it do more.
    async fn allow(&self, account: &str, rules: Value) {
        let named = json!({"metadata": {"name": account}});
        let (client, parameters) = (self.client.clone(), PatchParams::apply("test"));
        let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "default");
        let whole = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}});
        accounts.patch(account, &parameters, &Patch::Apply(&whole)).await.unwrap();
        let mut role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "rules": rules});
        role["metadata"] = named["metadata"].clone();
        // One role a time: what was allowed before stays.
        role["metadata"]["name"] = json!(format!("{account}-{}", uuid::Uuid::new_v4()));
        let name = role["metadata"]["name"].as_str().unwrap().to_owned();
        Api::<ClusterRole>::all(client.clone()).patch(&name, &parameters, &Patch::Apply(&role)).await.unwrap();
        let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": account}]});
        Api::<ClusterRoleBinding>::all(client).patch(&name, &parameters, &Patch::Apply(&binding)).await.unwrap();
    }

    async fn token_of(&self, account: &str) -> String {
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), "default");
        let request =
            accounts.create_token_request(account, &PostParams::default(), &TokenRequest::default()).await.unwrap();
        request.status.and_then(|s| s.token).unwrap()
    }

    /// A token of an account that may read these paths.
    async fn token(&self, paths: &[&str]) -> String {
        self.allow("reader", json!([{"nonResourceURLs": paths, "verbs": ["get"]}])).await;
        self.token_of("reader").await
    }

    async fn call(&self, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Said {
        let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build_http();
        let method = if body.is_empty() { Method::GET } else { Method::POST };
        let mut request = Request::builder().method(method).uri(format!("http://{}{path}", self.gateway));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body))).unwrap();
        let response = tokio::time::timeout(Duration::from_secs(60), client.request(request)).await.unwrap().unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.map(|b| b.to_bytes()).unwrap_or_default();
        Said { status: head.status, headers: head.headers, text: String::from_utf8(body.to_vec()).unwrap() }
    }
}

fn state(want: &'static str) -> impl Fn(&Value) -> bool {
    move |s| s["state"] == want
}

fn code(said: &Said) -> String {
    let v: Value = serde_json::from_str(&said.text).unwrap_or_default();
    assert_eq!(v["error"]["requestId"], said.headers["x-request-id"].to_str().unwrap(), "{}", said.text);
    v["error"]["code"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn first_calls_wake_and_none_fails() {
    let cluster = Cluster::start().await;
    cluster.make("hello", json!({"public": true, "source": {"inline": "hello"}, "scale": {"initial": 0}})).await;
    cluster.until("hello", state("Hibernated")).await;
    assert_eq!(cluster.class.started.load(Ordering::SeqCst), 0, "nothing runs before it is called");
    let calls = (0..50).map(|_| cluster.call("/function/default/hello/a?b=c", &[], b"12345".to_vec()));
    let said = futures::future::join_all(calls).await;
    for s in &said {
        assert!(s.status == 200 && s.text.starts_with("hello hello-00001-") && s.text.ends_with(" 5"), "{}", s.text);
    }
    let receipts = said.iter().filter(|s| s.headers.contains_key("server-timing")).count();
    assert!(receipts > 0, "those who waited for a start are told how long");
    cluster.until("hello", state("Running")).await;
    let told =
        |e: &Event| e.reason.as_deref() == Some("ColdStart") && e.involved_object.name.as_deref() == Some("hello");
    let events = cluster.seen::<Event>(|all| all.iter().any(told)).await;
    let message = events.iter().find(|e| told(e)).and_then(|e| e.message.clone()).unwrap();
    assert!(message.starts_with("hello-00001-") && message.contains("loaded 0.0"), "{message}");
    let by_host = cluster.call("/", &[("host", "hello.default.svc.cluster.local")], vec![]).await;
    assert!(by_host.status == 200 && !by_host.headers.contains_key("server-timing"), "{}", by_host.text);
    let refused = cluster.call("/metrics", &[], vec![]).await;
    assert_eq!(
        (refused.status.as_u16(), code(&refused).as_str()),
        (401, "Unauthorized"),
        "names are nobody else's business"
    );
    let reader = format!("Bearer {}", cluster.token(&["/metrics"]).await);
    let metrics = cluster.call("/metrics", &[("authorization", &reader)], vec![]).await.text;
    let count = "{namespace=\"default\",function=\"hello\"";
    assert!(metrics.contains(&format!("skiff_function_requests_accepted_total{count}}} 51")), "{metrics}");
    assert!(metrics.contains(&format!("skiff_function_requests_answered_total{count},code=\"200\"}} 51")), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_reached_through_an_ingress_of_their_own() {
    let cluster = Cluster::start().await;
    let spec =
        |hosts: Value| json!({"public": true, "source": {"inline": "shop"}, "hosts": hosts, "scale": {"initial": 0}});
    cluster.make("shop", spec(json!(["shop.example.com", "www.example.com"]))).await;
    let hosts = |i: &Ingress| -> Vec<String> {
        let rules = i.spec.clone().and_then(|s| s.rules).unwrap_or_default();
        rules.into_iter().filter_map(|r| r.host).collect()
    };
    let made = cluster.seen::<Ingress>(|all| all.len() == 1).await.remove(0);
    assert_eq!(
        (made.metadata.name.as_deref(), hosts(&made)),
        (Some("shop"), vec!["shop.example.com".into(), "www.example.com".into()])
    );
    assert_eq!(made.metadata.owner_references.clone().unwrap()[0].kind, "Function");
    let backend = made.spec.unwrap().rules.unwrap()[0].http.clone().unwrap().paths[0].backend.service.clone().unwrap();
    assert_eq!(backend.name, "shop");
    let said = cluster.call("/", &[("host", "WWW.example.com")], vec![]).await;
    assert!(said.status == 200 && said.text.starts_with("shop "), "{}", said.text);
    cluster.patch("shop", json!({"hosts": ["new.example.com"]})).await;
    cluster.seen::<Ingress>(|all| all.iter().any(|i| hosts(i) == ["new.example.com"])).await;
    cluster.patch("shop", json!({"hosts": []})).await;
    cluster.seen::<Ingress>(|all| all.is_empty()).await;
    // One that is somebody else's stays as it is.
    let other = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "shop"},
        "spec": {"defaultBackend": {"service": {"name": "other", "port": {"number": 80}}}}});
    let ingresses = Api::<Ingress>::namespaced(cluster.client.clone(), "default");
    ingresses.create(&PostParams::default(), &serde_json::from_value(other).unwrap()).await.unwrap();
    cluster.patch("shop", json!({"hosts": ["again.example.com"]})).await;
    let conflict =
        |s: &Value| s["conditions"].as_array().is_some_and(|c| c.iter().any(|c| c["reason"] == "IngressConflict"));
    cluster.until("shop", conflict).await;
    assert!(ingresses.get("shop").await.unwrap().spec.unwrap().rules.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_call_the_functions_that_take_them() {
    let cluster = Cluster::start().await;
    for (name, filter) in [
        ("paid", json!({"type": "com.shop.paid"})),
        ("shop", json!({"source": "/shop/*"})),
        ("other", json!({"type": "x"})),
    ] {
        let spec =
            json!({"source": {"inline": name}, "triggers": [{"name": "t", "event": filter}], "scale": {"initial": 0}});
        cluster.make(name, spec).await;
        cluster.until(name, state("Hibernated")).await;
    }
    let reader = format!("Bearer {}", cluster.token(&["/metrics"]).await);
    let publish = async |who: &str, id: &str| {
        let event =
            json!({"specversion": "1.0", "id": id, "source": "/shop/1", "type": "com.shop.paid", "data": {"sum": 3}});
        let headers = [("authorization", who), ("content-type", "application/cloudevents+json")];
        cluster.call("/events/default", &headers, event.to_string().into_bytes()).await
    };
    assert_eq!(publish("", "1").await.status, 401);
    assert_eq!(publish(&reader, "1").await.status, 403);
    cluster
        .allow("reader", json!([{"apiGroups": ["skiff.dev"], "resources": ["functions/invoke"], "verbs": ["create"]}]))
        .await;
    let publisher = format!("Bearer {}", cluster.token_of("reader").await);
    let said = publish(&publisher, "1").await;
    assert_eq!((said.status.as_u16(), said.text.as_str()), (202, "{\"calls\":2,\"events\":1}\n"));
    // Again: it is the same event.
    assert_eq!(publish(&publisher, "1").await.status, 202);
    let done = |c: &FunctionCall| c.status.as_ref().and_then(|s| s.code) == Some(200);
    let calls = cluster.seen::<FunctionCall>(|all| all.len() == 2 && all.iter().all(done)).await;
    let called: std::collections::BTreeSet<_> = calls.iter().map(|c| c.spec.function.as_str()).collect();
    assert_eq!(called.into_iter().collect::<Vec<_>>(), ["paid", "shop"]);
    assert_eq!(publish(&publisher, "2").await.status, 202);
    cluster.seen::<FunctionCall>(|all| all.len() == 4).await;
    let bad = cluster.call("/events/default", &[("authorization", &publisher)], b"{}".to_vec()).await;
    assert_eq!((bad.status.as_u16(), code(&bad).as_str()), (400, "BadRequest"), "{}", bad.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_dies_is_replaced() {
    let cluster = Cluster::start().await;
    cluster.make("one", json!({"public": true, "source": {"inline": "one"}})).await;
    let first = cluster.call("/function/default/one", &[], vec![]).await;
    assert_eq!(first.status, 200, "a call that comes before the function is ready waits: {}", first.text);
    let dead: Vec<_> = cluster.class.running.lock().drain().collect();
    dead.iter().for_each(|(_, task)| task.abort());
    let second = cluster.call("/function/default/one", &[], vec![]).await;
    assert_eq!(second.status, 200, "{}", second.text);
    assert_ne!(first.text, second.text);
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_are_told_exactly() {
    let cluster = Cluster::start().await;
    let limits = json!({"public": true, "source": {"inline": "huge"}, "maxRequestBytes": 10, "maxResponseBytes": 1000,
        "scale": {"initial": 0}});
    cluster.make("limits", limits).await;
    cluster
        .make(
            "hang",
            json!({"public": true, "source": {"inline": "hang"}, "timeoutSeconds": 1, "scale": {"initial": 0}}),
        )
        .await;
    cluster.make("broken", json!({"public": true, "source": {"inline": "broken"}, "scale": {"initial": 0}})).await;
    cluster.make("private", json!({"source": {"inline": "private"}, "scale": {"initial": 0}})).await;
    // Without being told otherwise, what is new is started once, so its faults are known before somebody calls it.
    cluster.make("seen", json!({"public": true, "source": {"inline": "broken"}})).await;
    cluster.until("seen", |s| s["state"] == "Failed" && s["conditions"][0]["message"] == "SyntaxError: line 1").await;
    cluster.make("nothing", json!({"public": true, "source": {"configMap": {"name": "nothing"}}})).await;
    for name in ["limits", "hang", "broken", "private"] {
        cluster.until(name, state("Hibernated")).await;
    }
    cluster.until("nothing", state("Failed")).await;
    for (name, body, status, word) in [
        ("limits", 11, 413, "BodyTooLarge"),
        ("limits", 1, 502, "AnswerTooLarge"),
        ("hang", 0, 504, "Timeout"),
        ("broken", 0, 503, "FunctionNotReady"),
        ("private", 0, 401, "Unauthorized"),
        ("nothing", 0, 503, "FunctionNotReady"),
        ("unknown", 0, 404, "FunctionNotFound"),
    ] {
        let said = cluster.call(&format!("/function/default/{name}"), &[], vec![b'x'; body]).await;
        assert_eq!((said.status.as_u16(), code(&said).as_str()), (status, word), "{name}: {}", said.text);
        assert_eq!(said.headers.contains_key("retry-after"), status == 503, "{name}");
    }
    let said = cluster.call("/function/default/private", &[("authorization", "Bearer nonsense")], vec![]).await;
    assert_eq!((said.status.as_u16(), code(&said).as_str()), (401, "Unauthorized"));
    // A body makes it a POST, none a GET.
    for (path, body, allow) in
        [("/events/default", "", "POST"), ("/result/default/1", "x", "GET, HEAD"), ("/logs/default/limits", "x", "GET")]
    {
        let said = cluster.call(path, &[], body.into()).await;
        assert_eq!((said.status.as_u16(), code(&said).as_str()), (405, "MethodNotAllowed"), "{path}: {}", said.text);
        assert_eq!(said.headers.get("allow").map(http::HeaderValue::as_bytes), Some(allow.as_bytes()), "{path}");
    }
    // What hung is ended: it takes one request at a time, and nobody knows what it does.
    let deadline = Instant::now() + Duration::from_secs(10);
    while cluster.class.stopped.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < deadline, "the instance that hangs was not ended");
        tokio::task::yield_now().await;
    }
    cluster.until("broken", |s| s["state"] == "Failed" && s["conditions"][0]["message"] == "SyntaxError: line 1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_update_leaves_the_old_one_and_traffic_is_split() {
    let cluster = Cluster::start().await;
    cluster.make("app", json!({"public": true, "source": {"inline": "one"}})).await;
    cluster.until("app", |s| s["latestReadyRevision"] == "app-00001").await;
    cluster.patch("app", json!({"source": {"inline": "broken"}})).await;
    let refused = |s: &Value| {
        let conditions = s["conditions"].as_array().cloned().unwrap_or_default();
        let latest = conditions.iter().find(|c| c["type"] == "LatestRevisionReady").cloned().unwrap_or_default();
        s["latestRevision"] == "app-00002" && latest["status"] == "False" && latest["message"] == "SyntaxError: line 1"
    };
    cluster.until("app", refused).await;
    let said = cluster.call("/function/default/app", &[], vec![]).await;
    assert!(said.text.starts_with("one app-00001-"), "{}", said.text);
    cluster.patch("app", json!({"source": {"inline": "three"}})).await;
    cluster.until("app", |s| s["latestReadyRevision"] == "app-00003").await;
    assert!(cluster.call("/function/default/app", &[], vec![]).await.text.starts_with("three"));
    // Back to the first, with a way to the newest.
    let traffic = json!([{"revision": "app-00001", "percent": 100}, {"percent": 0, "tag": "new"}]);
    cluster.patch("app", json!({"traffic": traffic})).await;
    let generation = cluster.functions.get("app").await.unwrap().metadata.generation;
    cluster.until("app", |s| s["observedGeneration"] == json!(generation)).await;
    for _ in 0..10 {
        assert!(cluster.call("/function/default/app", &[], vec![]).await.text.starts_with("one"));
    }
    for headers in [("skiff-tag", "new"), ("host", "new-app.default")] {
        let said = cluster.call("/function/default/app", &[headers], vec![]).await;
        assert!(said.text.starts_with("three"), "{headers:?}: {}", said.text);
    }
    let said = cluster.call("/function/default/app", &[("skiff-tag", "old")], vec![]).await;
    assert_eq!(said.status, 404);
}

impl Cluster {
    /// Sends a head by hand, and reads the answer's.
    async fn open(&self, head: &str) -> (TcpStream, String) {
        let mut stream = TcpStream::connect(self.gateway).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut said = Vec::new();
        while !said.ends_with(b"\r\n\r\n") {
            said.push(stream.read_u8().await.unwrap());
        }
        (stream, String::from_utf8(said).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_changed_its_protocol_keeps_its_instance() {
    let cluster = Cluster::start().await;
    let scale = json!({"initial": 0, "windowSeconds": 6, "scaleToZeroGraceSeconds": 0});
    for code in ["talk", "other"] {
        cluster.make(code, json!({"public": true, "source": {"inline": code}, "concurrency": 2, "scale": scale})).await;
        cluster.until(code, state("Hibernated")).await;
    }
    let head =
        "GET /function/default/talk HTTP/1.1\r\nhost: x\r\nconnection: keep-alive, Upgrade\r\nupgrade: echo\r\n\r\n";
    let (mut stream, said) = cluster.open(head).await;
    assert!(said.starts_with("HTTP/1.1 101") && said.contains("upgrade: echo"), "{said}");
    let said = cluster.call("/function/default/talk", &[], vec![]).await;
    assert!(said.status == 200 && said.text.starts_with("talk "), "the other place on the instance: {}", said.text);
    let reader = format!("Bearer {}", cluster.token(&["/metrics"]).await);
    let metrics = cluster.call("/metrics", &[("authorization", &reader)], vec![]).await.text;
    let in_flight = "skiff_function_requests_in_flight{namespace=\"default\",function=\"talk\"} 1";
    assert!(metrics.contains(in_flight), "it counts as a request: {metrics}");
    // One that was called at the same time goes to sleep; this one talks on.
    assert_eq!(cluster.call("/function/default/other", &[], vec![]).await.status, 200);
    cluster.until("other", state("Running")).await;
    cluster.until("other", state("Hibernated")).await;
    stream.write_all(b"hello").await.unwrap();
    let mut echo = [0; 5];
    stream.read_exact(&mut echo).await.unwrap();
    assert_eq!(&echo, b"hello");
    assert_eq!(cluster.functions.get("talk").await.unwrap().status.unwrap().instances, 1);
    drop(stream);
    cluster.until("talk", state("Hibernated")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_makes_its_function_wait() {
    let cluster = Cluster::start().await;
    let whole = PIECES.0 * PIECES.1;
    let spec =
        json!({"public": true, "source": {"inline": "stream"}, "maxResponseBytes": whole, "scale": {"initial": 0}});
    cluster.make("stream", spec).await;
    cluster.make("other", json!({"public": true, "source": {"inline": "other"}, "scale": {"initial": 0}})).await;
    let (stream, said) =
        cluster.open("GET /function/default/stream HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    // Nobody reads: it stands still while others are served, and what is on its way is what sockets hold.
    let (mut before, mut still) = (0, 0);
    while still < 20 {
        assert_eq!(cluster.call("/function/default/other", &[], vec![]).await.status, 200);
        let now = STREAMED.load(Ordering::SeqCst);
        still = if now == before { still + 1 } else { 0 };
        before = now;
        assert!(now < whole / 4, "{now} bytes are kept for a client that does not read");
    }
    let mut left = tokio::io::BufReader::new(stream);
    let mut bytes = Vec::new();
    tokio::time::timeout(Duration::from_secs(60), left.read_to_end(&mut bytes)).await.unwrap().unwrap();
    assert!(bytes.len() > whole, "with the frames of chunks, all of it came: {}", bytes.len());
    assert_eq!(STREAMED.load(Ordering::SeqCst), whole);
}
