//! Processes on another node, whose agent is a TLS server of the test around the real endpoint. Needs root, as the class itself.
#![allow(clippy::unwrap_used)]

mod served;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use served::served;
use skiff_apiserver::Server;
use skiff_apiserver::pki::Pki;
use skiff_controllers::runtime::definitions::define;
use skiff_faas::api::{Code, FunctionInstance, FunctionRevision, definitions};
use skiff_faas::gateway::link::{Body, Link};
use skiff_faas::instance::{Class, Event, Instance, StartError};
use skiff_faas::process::{Access, Config, Endpoint, Host, Keys, Processes, Wanted};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

const SOON: Duration = Duration::from_secs(30);

/// A node's agent. Its connections end with it.
struct Agent {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
    host: Arc<Host>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An agent that shows a certificate for `name`, and takes clients of the cluster's CA.
async fn agent(pki: &Pki, name: &str, host: Arc<Host>, at: SocketAddr) -> Agent {
    let leaf = pki.cluster.server(&format!("system:node:{name}"), &[], &[[127, 0, 0, 1].into()]).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.cluster.cert.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let chain = vec![CertificateDer::from_pem_slice(leaf.cert.as_bytes()).unwrap()];
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap())
        .unwrap();
    let tls = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let wanted = Wanted::new(&host, "/nowhere".into());
    let endpoint = Arc::new(Endpoint::new(host.clone(), wanted));
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, endpoint) = (tls.clone(), endpoint.clone());
            connections.spawn(async move {
                let Ok(stream) = tls.accept(stream).await else { return };
                let service = service_fn(move |request| {
                    let endpoint = endpoint.clone();
                    async move { Ok::<_, Infallible>(endpoint.answer(request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new();
                let _ = connection.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
            });
        }
    });
    Agent { address, task, host }
}

struct World {
    processes: Arc<Processes>,
    events: mpsc::Receiver<Event>,
    client: kube::Client,
    pki: Pki,
    dir: tempfile::TempDir,
    keys: Keys,
    _stop: DropGuard,
    _server: Server,
}

async fn world() -> Option<World> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = served(dir.path()).await;
    define(&client, "tests", &definitions()).await.unwrap();
    let pki = Pki::ephemeral().unwrap();
    let own = pki.cluster.client("system:skiff-functions", &[]).unwrap();
    let keys = Keys { ca: pki.cluster.cert.clone(), certificate: own.cert, key: own.key };
    let stop = CancellationToken::new();
    let access = Access { host: host(dir.path(), "here"), keys: Some(keys.clone()) };
    let processes = Processes::new(client.clone(), &access, None, stop.clone()).unwrap();
    let events = processes.events();
    Some(World { processes, events, client, pki, dir, keys, _stop: stop.drop_guard(), _server: server })
}

fn host(dir: &Path, name: &str) -> Arc<Host> {
    Host::new(Config::new(name, dir.join(name))).unwrap()
}

/// A node whose agent is there.
async fn node(client: &kube::Client, name: &str, at: SocketAddr) {
    let nodes = Api::<Node>::all(client.clone());
    let node = json!({"metadata": {"name": name, "labels": {"name": name}}});
    nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
    let status = json!({"status": {
        "conditions": [{"type": "Ready", "status": "True"}],
        "addresses": [{"type": "InternalIP", "address": at.ip().to_string()}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": at.port()}},
    }});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    // Admission gives it the taint of a node that is not ready; here nobody takes that away.
    let open = Patch::Merge(json!({"spec": {"taints": null}}));
    nodes.patch(name, &PatchParams::default(), &open).await.unwrap();
}

fn python(name: &str, node: Option<&str>, text: &str) -> Arc<FunctionRevision> {
    let mut code = json!({"source": {"inline": text}});
    if let Some(node) = node {
        code["nodeSelector"] = json!({"name": node});
    }
    let revision = json!({
        "apiVersion": "skiff.dev/v1", "kind": "FunctionRevision", "metadata": {"name": name, "namespace": "default"},
        "spec": {"function": name, "number": 1, "generation": 1, "digest": name, "code": code},
    });
    Arc::new(serde_json::from_value(revision).unwrap())
}

async fn ask(instance: &Instance, body: &str) -> Result<String, String> {
    let body: Body = Full::new(body.to_owned().into()).map_err(|never: Infallible| match never {}).boxed_unsync();
    let request = Request::post("/").header("host", "f").body(body).unwrap();
    let link = Arc::new(Link::new(instance.address.clone()));
    let answer = tokio::time::timeout(SOON, link.send(request)).await.unwrap().map_err(|e| e.to_string())?;
    let whole = answer.into_body().collect().await.map_err(|e| e.to_string())?;
    Ok(String::from_utf8(whole.to_bytes().to_vec()).unwrap())
}

async fn event(events: &mut mpsc::Receiver<Event>) -> Event {
    tokio::time::timeout(SOON, events.recv()).await.unwrap().unwrap()
}

/// Waits until the records of instances are on so many nodes each.
async fn recorded(client: &kube::Client, nodes: &[&str]) {
    let all = Api::<FunctionInstance>::all(client.clone());
    let wait = async {
        loop {
            let items = all.list(&ListParams::default()).await.unwrap().items;
            let mut on: Vec<String> = items.into_iter().map(|i| i.spec.node).collect();
            on.sort();
            if on == nodes {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(SOON, wait).await.is_ok(), "not on {nodes:?}");
}

const ADD: &str = "def main(params):\n    print('called')\n    return {'x': params['x'] + 5}\n";

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_on_another_node_answers_and_ends() {
    let Some(mut world) = world().await else { return };
    let far = agent(&world.pki, "far", host(world.dir.path(), "far"), ([127, 0, 0, 1], 0).into()).await;
    node(&world.client, "far", far.address).await;
    world.processes.look().await;
    let mut lines = world.processes.follow().unwrap();
    let there = world.processes.start(python("add", Some("far"), ADD)).await.unwrap();
    assert_eq!(there.node, "far");
    assert_eq!(ask(&there, "{\"x\": 100}").await.unwrap(), "{\"x\": 105}");
    recorded(&world.client, &["far"]).await;
    let line = tokio::time::timeout(SOON, lines.recv()).await.unwrap().unwrap();
    assert!(line.text.ends_with(" called") && *line.instance == *there.name, "{line:?}");
    let tail = world.processes.tail("default", "add", None, 10).await;
    assert!(tail.len() == 1 && tail[0].text.ends_with(" called"), "{tail:?}");

    // Without a selector the nodes share: the own one is next.
    let any = python("any", None, ADD);
    let mut nodes = vec![];
    let mut all = vec![];
    for _ in 0..3 {
        let instance = world.processes.start(any.clone()).await.unwrap();
        assert_eq!(ask(&instance, "{\"x\": 1}").await.unwrap(), "{\"x\": 6}");
        nodes.push(instance.node.clone());
        all.push(instance);
    }
    nodes.sort();
    assert_eq!(nodes, ["far", "here", "here"]);
    recorded(&world.client, &["far", "far", "here", "here"]).await;

    // What is wrong with code is told from there as from here, and ends no other.
    let error = world.processes.start(python("bad", Some("far"), "def main(p)\n")).await.unwrap_err();
    assert!(matches!(&error, StartError::Code(said) if said.contains("SyntaxError")), "{error}");
    let nowhere = world.processes.start(python("no", Some("none"), ADD)).await.unwrap_err();
    assert!(matches!(&nowhere, StartError::NoRoom(said) if said.contains("name=none")), "{nowhere}");

    for instance in all {
        world.processes.stop("default", &instance.name).await.unwrap();
        assert!(ask(&instance, "{}").await.is_err(), "it is gone");
    }
    recorded(&world.client, &["far"]).await;

    // One that dies is told of.
    let dies = "import os\ndef main(p):\n    os._exit(7)\n";
    let dies = world.processes.start(python("dies", Some("far"), dies)).await.unwrap();
    assert!(ask(&dies, "{}").await.is_err());
    let ended = event(&mut world.events).await;
    assert!(
        matches!(&ended, Event::Ended { name, reason, .. } if *name == dies.name && reason.contains("exit code 7")),
        "{ended:?}"
    );

    // Code that no revision has goes from the node's disk; what was just used, or is being used, stays.
    let codes = || std::fs::read_dir(world.dir.path().join("far/code")).unwrap().flatten().map(|e| e.path());
    assert_eq!(codes().count(), 4);
    world.processes.tidy(&[]).await;
    assert_eq!(codes().count(), 4);
    for code in codes() {
        let hour = Duration::from_secs(3600);
        std::fs::File::open(code).unwrap().set_modified(std::time::SystemTime::now() - hour).unwrap();
    }
    world.processes.tidy(&[any]).await;
    assert_eq!(codes().count(), 2, "that of the one that runs, and that of a revision");
    assert_eq!(ask(&there, "{\"x\": 1}").await.unwrap(), "{\"x\": 6}");
}

/// A gateway that starts again finds what runs; one that never comes back is not waited for (the host's own rule).
#[tokio::test(flavor = "multi_thread")]
async fn another_gateway_finds_what_runs() {
    let Some(world) = world().await else { return };
    let far = agent(&world.pki, "far", host(world.dir.path(), "far"), ([127, 0, 0, 1], 0).into()).await;
    node(&world.client, "far", far.address).await;
    world.processes.look().await;
    let instance = world.processes.start(python("add", Some("far"), ADD)).await.unwrap();
    recorded(&world.client, &["far"]).await;
    let stop = CancellationToken::new();
    let access = Access { host: host(world.dir.path(), "third"), keys: Some(world.keys.clone()) };
    let second = Processes::new(world.client.clone(), &access, None, stop.clone()).unwrap();
    let _stop = stop.drop_guard();
    let mut events = second.events();
    let found = event(&mut events).await;
    let Event::Found { instance: found, revision, .. } = found else { panic!("{found:?}") };
    assert_eq!((found.name.as_str(), revision.as_str(), found.node.as_str()), (&*instance.name, "add", "far"));
    assert_eq!(ask(&found, "{\"x\": 0}").await.unwrap(), "{\"x\": 5}");
    second.stop("default", &found.name).await.unwrap();
    assert!(ask(&instance, "{}").await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_node_takes_its_instances_with_it() {
    let Some(mut world) = world().await else { return };
    let far = agent(&world.pki, "far", host(world.dir.path(), "far"), ([127, 0, 0, 1], 0).into()).await;
    node(&world.client, "far", far.address).await;
    world.processes.look().await;
    let slow = "import time\ndef main(p):\n    time.sleep(p.get('s', 0))\n    return 1\n";
    let instance = world.processes.start(python("slow", Some("far"), slow)).await.unwrap();
    assert_eq!(ask(&instance, "{}").await.unwrap(), "1");
    let name = instance.name.clone();
    let begun = Instant::now();
    let waits = tokio::spawn(async move { ask(&instance, "{\"s\": 120}").await });
    // The agent is gone, its instances are not: only the gateway can tell that nobody reaches them.
    let (address, host) = (far.address, far.host.clone());
    drop(far);
    let ended = event(&mut world.events).await;
    assert!(
        matches!(&ended, Event::Ended { name: n, reason, .. } if *n == name && reason.contains("far")),
        "{ended:?}"
    );
    assert!(tokio::time::timeout(SOON, waits).await.unwrap().unwrap().is_err(), "who waits is told");
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    recorded(&world.client, &[]).await;
    let nowhere = world.processes.start(python("slow", Some("far"), slow)).await.unwrap_err();
    assert!(matches!(&nowhere, StartError::NoRoom(said) if said.contains("does not answer")), "{nowhere}");
    // The agent is back with what still runs: it is found.
    let _far = agent(&world.pki, "far", host, address).await;
    let found = event(&mut world.events).await;
    assert!(matches!(&found, Event::Found { instance, .. } if instance.name == name), "{found:?}");
    recorded(&world.client, &["far"]).await;
    // The node is deleted: nobody asks it any more.
    Api::<Node>::all(world.client.clone()).delete("far", &DeleteParams::default()).await.unwrap();
    let ended = event(&mut world.events).await;
    assert!(matches!(&ended, Event::Ended { name: n, .. } if *n == name), "{ended:?}");
}

/// What answers at a node's address but is another is believed nothing, and gets no code and no secret.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_must_be_who_it_is() {
    let Some(world) = world().await else { return };
    let at = SocketAddr::from(([127, 0, 0, 1], 0));
    // Another node of the cluster behind the address, and somebody of another cluster.
    let other = agent(&world.pki, "other", host(world.dir.path(), "other"), at).await;
    let stranger = agent(&Pki::ephemeral().unwrap(), "stranger", host(world.dir.path(), "stranger"), at).await;
    node(&world.client, "far", other.address).await;
    node(&world.client, "stranger", stranger.address).await;
    world.processes.look().await;
    for name in ["far", "stranger"] {
        let error = world.processes.start(python("add", Some(name), ADD)).await.unwrap_err();
        assert!(matches!(&error, StartError::NoRoom(_)), "{name}: {error}");
        let code = Code { node_selector: [("name".to_owned(), name.to_owned())].into(), ..Code::default() };
        assert!(world.processes.takes(&code).is_err(), "{name}");
    }
}

/// What the endpoint takes is bounded and checked, whoever sends it.
#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_refuses_what_is_none_of_it() {
    let Some(world) = world().await else { return };
    let host = host(world.dir.path(), "far");
    let wanted = Wanted::new(&host, "/nowhere".into());
    let endpoint = Arc::new(Endpoint::new(host, wanted));
    let order = |name: &str, code: &str| {
        json!({"namespace": "default", "function": "f", "revision": "f-1", "name": name, "code": code, "language": "python",
            "environment": {}, "memory": 1, "askedAt": "2026-01-01T00:00:00Z"})
        .to_string()
    };
    let key = "a".repeat(64);
    let image = "b".repeat(32);
    let long = vec![b' '; (64 << 20) + 1];
    let cases: Vec<(&str, String, Vec<u8>, u16, &str)> = vec![
        ("POST", "/functions/start".into(), order("../../etc/x", &key).into(), 200, "not those of objects"),
        ("POST", "/functions/start".into(), order("f-1-x", "../../root").into(), 200, "not those of objects"),
        ("POST", "/functions/start".into(), order("f-1-x", &key).into(), 200, "missing"),
        ("POST", "/functions/start".into(), b"{}".to_vec(), 400, "no order"),
        ("POST", "/functions/start".into(), long[..(4 << 20) + 1].to_vec(), 413, "too long"),
        ("PUT", format!("/functions/code/{key}"), long, 413, "too long"),
        ("PUT", format!("/functions/code/{key}"), b"no archive".to_vec(), 200, "code"),
        ("PUT", "/functions/code/..%2f..%2fx".into(), vec![], 404, "not found"),
        ("PUT", format!("/functions/image/{image}"), b"x".to_vec(), 409, "not wanted"),
        ("PUT", "/functions/image/latest".into(), b"x".to_vec(), 404, "not found"),
        ("GET", "/functions/logs?namespace=..&function=f".into(), vec![], 400, "no names"),
        ("GET", "/functions/connect/default/f".into(), vec![], 404, "not found"),
        ("POST", "/functions/connect/default/f".into(), vec![], 400, "change its protocol"),
        ("GET", "/functions".into(), vec![], 404, "not found"),
    ];
    for (method, path, body, code, words) in cases {
        // A connection each: one whose body is refused is closed.
        let (client, server) = tokio::io::duplex(1 << 16);
        let endpoint = endpoint.clone();
        let service = service_fn(move |request| {
            let endpoint = endpoint.clone();
            async move { Ok::<_, Infallible>(endpoint.answer(request).await) }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service));
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::builder().method(method).uri(&path).header("host", "n");
        let answer: Response<_> =
            sender.send_request(request.body(Full::new(bytes::Bytes::from(body))).unwrap()).await.unwrap();
        let status = answer.status();
        let said = answer.into_body().collect().await.unwrap().to_bytes();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(
            status == StatusCode::from_u16(code).unwrap() && said.contains(words),
            "{method} {path}: {status} {said}"
        );
    }
}
