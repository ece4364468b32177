//! An API server in this process with the definitions of workflows.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, PostParams};
use kube::runtime::{conditions, wait::await_condition};
use serde_json::json;
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_storage::embedded::{Embedded, Options};
use skiff_workflow::api::definitions;
use skiff_workflow::endpoint::CREDENTIALS;

/// Patience for what happens by itself.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

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
    let all = Api::<CustomResourceDefinition>::all(client.clone());
    for definition in definitions() {
        let name = definition.metadata.name.clone().unwrap();
        all.create(&PostParams::default(), &definition).await.unwrap();
        let established = await_condition(all.clone(), &name, conditions::is_crd_established());
        tokio::time::timeout(PATIENCE, established).await.unwrap().unwrap();
    }
    World { server, client, _dir: dir }
}

impl World {
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    /// An access key of a namespace.
    pub(crate) async fn key(&self, namespace: &str, id: &str, secret: &str, account: Option<&str>) {
        let mut data = json!({"accessKeyId": id, "secretAccessKey": secret});
        if let Some(account) = account {
            data["serviceAccountName"] = account.into();
        }
        let whole = json!({"metadata": {"name": id.to_lowercase()}, "type": CREDENTIALS, "stringData": data});
        let secret: Secret = serde_json::from_value(whole).unwrap();
        let api = Api::<Secret>::namespaced(self.client.clone(), namespace);
        api.create(&PostParams::default(), &secret).await.unwrap();
    }
}
