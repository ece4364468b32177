//! An API server in this process, engines on it, and functions that do what a test says.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use kube::api::{Api, PostParams};
use kube::runtime::wait::await_condition;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_controllers::runtime::definitions::define;
use skiff_storage::embedded::{Embedded, Options};
use skiff_workflow::api::{Phase, Workflow, WorkflowHistory, WorkflowRun, definitions};
use skiff_workflow::engine::{Engine, Faults, Members, NoFaults, Pace, Settings, Sharing};
use skiff_workflow::runs::{Runs as _, Stored};
use skiff_workflow::task::functions::{FunctionAnswer, FunctionCall, FunctionError, Functions};
use tokio_util::sync::CancellationToken;

/// Patience for what happens by itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A server that ends with its value.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) client: kube::Client,
    pub(crate) functions: Arc<Fake>,
    _dir: tempfile::TempDir,
}

pub(crate) async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), Options::default()).unwrap();
    let server = Server::builder(Arc::new(store)).start().await.unwrap();
    let client = server.client(User::new("admin", &["system:masters"]));
    define(&client, "tests", &definitions()).await.unwrap();
    World { server, client, functions: Arc::default(), _dir: dir }
}

/// An engine that runs until it is dropped.
pub(crate) struct Running {
    pub(crate) engine: Arc<Engine>,
    pub(crate) stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    /// Ends it as a kill does, and waits until nothing of it is left.
    pub(crate) async fn kill(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }

    /// Ends it in order: others hear of it.
    pub(crate) async fn leave(self) {
        let engine = Arc::clone(&self.engine);
        self.kill().await;
        engine.leave().await;
    }

    /// Waits until it ended by itself.
    pub(crate) async fn ended(self) {
        tokio::time::timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}

impl World {
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) fn engine(&self) -> Running {
        self.engine_with(Arc::new(NoFaults))
    }

    pub(crate) fn engine_with(&self, faults: Arc<dyn Faults>) -> Running {
        self.engine_sharing(faults, Sharing::default())
    }

    pub(crate) fn engine_sharing(&self, faults: Arc<dyn Faults>, sharing: Sharing) -> Running {
        self.engine_of(faults, sharing, Members::Alone)
    }

    /// An engine that shares the runs with others.
    pub(crate) fn member(&self, faults: Arc<dyn Faults>, sharing: Sharing) -> Running {
        // As soon as it is sensible here: what is tested must not wait for long.
        let millis = Duration::from_millis;
        let pace = Pace { renew: millis(400), deadline: millis(4000), dead: millis(6000) };
        self.engine_of(faults, sharing, Members::Several(pace))
    }

    fn engine_of(&self, faults: Arc<dyn Faults>, sharing: Sharing, members: Members) -> Running {
        let stop = CancellationToken::new();
        let functions = Arc::clone(&self.functions) as Arc<dyn Functions>;
        let settings = Settings { functions, faults, sharing, members };
        let engine = Engine::new(self.client.clone(), settings, stop.clone());
        let task = tokio::spawn(Arc::clone(&engine).run());
        Running { engine, stop, task }
    }

    pub(crate) async fn workflow(&self, name: &str, definition: Value, more: Value) -> Workflow {
        let mut spec = json!({"definition": definition});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let whole = json!({"apiVersion": "skiff.dev/v1", "kind": "Workflow", "metadata": {"name": name}, "spec": spec});
        self.api::<Workflow>().create(&PostParams::default(), &serde_json::from_value(whole).unwrap()).await.unwrap()
    }

    /// Makes a run with a definition of its own.
    pub(crate) async fn start(&self, name: &str, definition: &Value, input: &Value) -> WorkflowRun {
        let spec = json!({"definition": definition, "input": input});
        let whole =
            json!({"apiVersion": "skiff.dev/v1", "kind": "WorkflowRun", "metadata": {"name": name}, "spec": spec});
        self.api::<WorkflowRun>().create(&PostParams::default(), &serde_json::from_value(whole).unwrap()).await.unwrap()
    }

    /// Waits for the end of a run.
    pub(crate) async fn over(&self, name: &str) -> WorkflowRun {
        until(&self.api::<WorkflowRun>(), name, |r| r.status.as_ref().is_some_and(|s| s.phase.is_over())).await
    }

    /// Waits for a phase of a run.
    pub(crate) async fn phase(&self, name: &str, phase: Phase) -> WorkflowRun {
        until(&self.api::<WorkflowRun>(), name, |r| r.status.as_ref().is_some_and(|s| s.phase == phase)).await
    }

    /// The whole history of a run.
    pub(crate) async fn history(&self, name: &str) -> Vec<Value> {
        Stored::new(self.client.clone()).history("default", name, None, false, usize::MAX).await.unwrap().events
    }

    /// Waits until a run's history has an event.
    pub(crate) async fn told(&self, name: &str, kind: &str) {
        let config = kube::runtime::watcher::Config::default();
        let mut pages = Box::pin(kube::runtime::watcher(self.api::<WorkflowHistory>(), config));
        let found = async {
            while !self.types(name).await.iter().any(|t| t == kind) {
                pages.next().await;
            }
        };
        tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("{name} has no {kind}"));
    }

    /// Lets the ServiceAccount `default` do something.
    pub(crate) async fn allow(&self, name: &str, rule: Value) {
        let role = json!({"kind": "Role", "rules": [rule]});
        let binding = json!({"kind": "RoleBinding",
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}]});
        for (plural, mut whole) in [("roles", role), ("rolebindings", binding)] {
            whole["apiVersion"] = json!("rbac.authorization.k8s.io/v1");
            whole["metadata"] = json!({"name": name});
            let path = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/default/{plural}");
            let request = http::Request::post(path).header("content-type", "application/json");
            self.client.request::<Value>(request.body(whole.to_string().into_bytes()).unwrap()).await.unwrap();
        }
    }

    /// The types of a run's events.
    pub(crate) async fn types(&self, name: &str) -> Vec<String> {
        self.history(name).await.iter().map(|e| e["type"].as_str().unwrap().to_owned()).collect()
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

/// What a function of the test does.
type Does = Box<dyn Fn(&str, &FunctionCall) -> Option<Result<FunctionAnswer, FunctionError>> + Send + Sync>;

/// Functions: `add` adds one to `x`, `echo` gives back what it gets, `fail` raises the error it is told, anything else is
/// what a test says, or is not there.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) calls: Mutex<Vec<FunctionCall>>,
    pub(crate) does: Mutex<Option<Does>>,
    pub(crate) hold: Mutex<Option<Arc<tokio::sync::Notify>>>,
    pub(crate) called: tokio::sync::Notify,
}

pub(crate) fn answer(status: u16, body: &Value) -> FunctionAnswer {
    FunctionAnswer { status, body: body.to_string().into_bytes() }
}

impl Fake {
    /// How often each attempt was called.
    pub(crate) fn keys(&self) -> Vec<String> {
        let key = |c: &FunctionCall| c.headers.iter().find(|(k, _)| k == "idempotency-key").unwrap().1.clone();
        self.calls.lock().iter().map(key).collect()
    }

    pub(crate) async fn until(&self, calls: usize) {
        let enough = async {
            loop {
                let called = self.called.notified();
                if self.calls.lock().len() >= calls {
                    return;
                }
                called.await;
            }
        };
        tokio::time::timeout(PATIENCE, enough).await.unwrap_or_else(|_| panic!("not called {calls} times"));
    }
}

#[async_trait]
impl Functions for Fake {
    async fn call(&self, call: FunctionCall) -> Result<FunctionAnswer, FunctionError> {
        self.calls.lock().push(call.clone());
        self.called.notify_waiters();
        self.called.notify_one();
        let hold = self.hold.lock().clone();
        if let Some(hold) = hold {
            hold.notified().await;
        }
        if let Some(done) = self.does.lock().as_ref().and_then(|d| d(&call.name, &call)) {
            return done;
        }
        let payload: Value = serde_json::from_str(&call.payload).unwrap();
        match call.name.as_str() {
            "add" => Ok(answer(200, &json!({"x": payload["x"].as_i64().unwrap() + 1}))),
            "echo" => Ok(answer(200, &payload)),
            "fail" => Ok(answer(500, &json!({"errorType": payload["error"], "errorMessage": "as it was told"}))),
            name => Err(FunctionError::NotFound(format!("there is no function {name}"))),
        }
    }
}
