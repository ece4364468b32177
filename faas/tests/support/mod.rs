//! An API server in this process with the definitions of functions.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use kube::api::{Api, PostParams};
use kube::runtime::wait::await_condition;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_controllers::runtime::definitions::define;
use skiff_faas::api::{Function, definitions};
use skiff_faas::gateway::invoke::{Answer, Call, Invoke, InvokeError};
use skiff_storage::embedded::{Embedded, Options};
use tokio::sync::Notify;

/// Patience for what happens by itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A server that ends with its value.
pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) client: kube::Client,
    _dir: tempfile::TempDir,
}

pub(crate) async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), Options::default()).unwrap();
    let server = Server::builder(Arc::new(store)).start().await.unwrap();
    let client = server.client(User::new("admin", &["system:masters"]));
    define(&client, "tests", &definitions()).await.unwrap();
    World { server, client, _dir: dir }
}

impl World {
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) async fn function(&self, name: &str, more: Value) -> Function {
        let mut spec = json!({"source": {"inline": "def main(params): return params"}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let whole = json!({"apiVersion": "skiff.dev/v1", "kind": "Function", "metadata": {"name": name}, "spec": spec});
        let function = serde_json::from_value(whole).unwrap();
        self.api::<Function>().create(&PostParams::default(), &function).await.unwrap()
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

/// Functions that answer what the test said, one answer after the other, then 200.
#[derive(Default)]
pub(crate) struct Fake {
    pub(crate) answers: Mutex<VecDeque<Result<u16, InvokeError>>>,
    pub(crate) calls: Mutex<Vec<Call>>,
    pub(crate) called: Notify,
    /// Calls wait for it while there is one.
    pub(crate) hold: Mutex<Option<Arc<Notify>>>,
}

impl Fake {
    pub(crate) fn with(answers: impl IntoIterator<Item = Result<u16, InvokeError>>) -> Arc<Self> {
        Arc::new(Self { answers: Mutex::new(answers.into_iter().collect()), ..Self::default() })
    }

    /// Waits until there were so many calls.
    pub(crate) async fn until(&self, calls: usize) -> Vec<Call> {
        let enough = async {
            loop {
                let called = self.called.notified();
                let now = self.calls.lock().clone();
                if now.len() >= calls {
                    return now;
                }
                called.await;
            }
        };
        match tokio::time::timeout(PATIENCE, enough).await {
            Ok(calls) => calls,
            Err(_) => panic!("{} calls of {calls}", self.calls.lock().len()),
        }
    }
}

#[async_trait]
impl Invoke for Fake {
    async fn invoke(&self, call: Call) -> Result<Answer, InvokeError> {
        let body = format!("{} {}", call.function, call.id);
        self.calls.lock().push(call);
        self.called.notify_one();
        let hold = self.hold.lock().clone();
        if let Some(hold) = hold {
            hold.notified().await;
        }
        let status = self.answers.lock().pop_front().unwrap_or(Ok(200))?;
        let status = http::StatusCode::from_u16(status).unwrap();
        Ok(Answer { status, headers: http::HeaderMap::new(), body: Bytes::from(body) })
    }
}
