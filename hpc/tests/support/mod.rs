//! An API server in this process with the definitions of this room.
#![allow(dead_code, clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use fake_slurm::resident::{self, Resident};
use fake_slurm::state::Store;
use fake_slurm::{control, rest, ssh};
use k8s_openapi::api::core::v1::Secret;

use kube::api::{Api, PostParams};
use kube::runtime::wait::await_condition;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_controllers::runtime::definitions::define;
use skiff_hpc::api::{GpuJob, HpcCluster, Phase, definitions};
use skiff_hpc::{Config, run};
use skiff_storage::embedded::{Embedded, Options};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Patience for what happens by itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A server that ends with its value.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) client: kube::Client,
    pub(crate) dir: tempfile::TempDir,
}

pub(crate) async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path().join("store"), Options::default()).unwrap();
    let server = Server::builder(Arc::new(store)).start().await.unwrap();
    let client = server.client(User::new("admin", &["system:masters"]));
    define(&client, "tests", &definitions()).await.unwrap();
    World { server, client, dir }
}

impl World {
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }
}

/// Waits until an object is as it should be.
pub(crate) async fn until<K>(api: &Api<K>, name: &str, is: impl Fn(&K) -> bool) -> K
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + kube::Resource + Send + 'static,
{
    let wanted = |k: Option<&K>| k.is_some_and(&is);
    let waited = tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, wanted)).await;
    match waited {
        Ok(found) => found.unwrap().unwrap(),
        Err(_) => panic!("{name} is not as it should be: {:?}", api.get(name).await),
    }
}

/// A fake Slurm, reached by some driver, with a controller that brings jobs to it.
pub(crate) struct Fake {
    pub(crate) world: World,
    /// Before the directory: it has its socket there.
    _resident: Resident,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) config: Config,
    stop: CancellationToken,
    running: Mutex<Option<JoinHandle<anyhow::Result<()>>>>,
}

impl Fake {
    /// One with these faults whose jobs take a moment; `more` is merged into the spec of its HpcCluster.
    pub(crate) async fn start(driver: &str, faults: &[&str], more: Value) -> Self {
        let fake = Self::prepared(driver, &["run=false", "simulated_ms=100"], faults, more).await;
        fake.run();
        fake
    }

    /// One that nobody looks at yet.
    pub(crate) async fn prepared(driver: &str, settings: &[&str], faults: &[&str], more: Value) -> Self {
        let strings = |all: &[&str]| all.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        control::init(dir.path(), &strings(settings)).unwrap();
        control::change(dir.path(), "faults.json", &strings(faults)).unwrap();
        let resident = resident::serve(&store).unwrap();
        let at: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let work = dir.path().join("work");
        std::fs::create_dir(&work).unwrap();
        let config = store.config().unwrap();
        let mut secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "door"}, "stringData": {}});
        let reference = json!({"namespace": "default", "name": "door"});
        let access = match driver {
            "ssh" => {
                let address = ssh::serve(store.clone(), at).await.unwrap();
                ssh::authorize(&store, "key").unwrap();
                let known = std::fs::read_to_string(dir.path().join("known_hosts")).unwrap();
                let key = std::fs::read_to_string(dir.path().join("key")).unwrap();
                secret["stringData"]["ssh-privatekey"] = json!(key);
                json!({"ssh": {"host": "127.0.0.1", "port": address.port(), "user": config.user, "secret": reference,
                    "hostKeys": [known.trim()], "binDirectory": dir.path().join("bin")}})
            }
            "rest" => {
                let address = rest::serve(store.clone(), at).await.unwrap();
                secret["stringData"]["token"] = json!(config.token);
                json!({"rest": {"url": format!("http://{address}"), "user": config.user, "secret": reference}})
            }
            _ => json!({"local": {"binDirectory": dir.path().join("bin")}}),
        };
        let mut spec = json!({"workDirectory": work, "limits": {"jobs": 2000}});
        for part in [access, more] {
            spec.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        }
        let world = world().await;
        let secrets = world.api::<Secret>();
        secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
        let cluster =
            json!({"apiVersion": "skiff.dev/v1", "kind": "HpcCluster", "metadata": {"name": "fake"}, "spec": spec});
        let clusters = Api::<HpcCluster>::all(world.client.clone());
        clusters.create(&PostParams::default(), &serde_json::from_value(cluster).unwrap()).await.unwrap();
        let config = Config { settled: Duration::from_secs(3), ..Config::new(dir.path().join("results")) };
        Self { world, _resident: resident, dir, config, stop: CancellationToken::new(), running: Mutex::default() }
    }

    /// From now on somebody looks.
    pub(crate) fn run(&self) {
        let running = tokio::spawn(run(self.world.client.clone(), self.config.clone(), self.stop.clone()));
        *self.running.lock() = Some(running);
    }

    /// Nobody looks any more; what went wrong meanwhile shows here.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        let running = self.running.lock().take();
        if let Some(running) = running {
            running.await.unwrap().unwrap();
        }
    }

    pub(crate) fn jobs(&self) -> Api<GpuJob> {
        self.world.api()
    }

    pub(crate) async fn submit(&self, name: &str, spec: Value) {
        let whole = json!({"apiVersion": "skiff.dev/v1", "kind": "GpuJob", "metadata": {"name": name}, "spec": spec});
        self.jobs().create(&PostParams::default(), &serde_json::from_value(whole).unwrap()).await.unwrap();
    }

    pub(crate) async fn phase(&self, name: &str, phase: Phase) -> GpuJob {
        until(&self.jobs(), name, |j: &GpuJob| j.status.as_ref().and_then(|s| s.phase) == Some(phase)).await
    }
}
