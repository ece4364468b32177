//! An API server in this process with the definitions of this room.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, PostParams};
use kube::runtime::{conditions, wait::await_condition};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_hpc::api::definitions;
use skiff_storage::embedded::{Embedded, Options};

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
    let all = Api::<CustomResourceDefinition>::all(client.clone());
    for definition in definitions() {
        let name = definition.metadata.name.clone().unwrap();
        all.create(&PostParams::default(), &definition).await.unwrap();
        let established = await_condition(all.clone(), &name, conditions::is_crd_established());
        tokio::time::timeout(PATIENCE, established).await.unwrap().unwrap();
    }
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
