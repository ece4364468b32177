//! The custom resources as the API server takes them: what it serves, defaults and refuses.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, PostParams};
use kube::runtime::{conditions, wait::await_condition};
use serde_json::json;
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_faas::api::{Function, definitions};
use skiff_storage::embedded::{Embedded, Options};

fn function(name: &str, spec: serde_json::Value) -> Function {
    let whole = json!({"apiVersion": "skiff.dev/v1", "kind": "Function", "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(whole).unwrap()
}

#[tokio::test]
async fn the_server_takes_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), Options::default()).unwrap();
    let server = Server::builder(Arc::new(store)).start().await.unwrap();
    let client = server.client(User::new("admin", &["system:masters"]));
    let all = Api::<CustomResourceDefinition>::all(client.clone());
    for definition in definitions() {
        let name = definition.metadata.name.clone().unwrap();
        all.create(&PostParams::default(), &definition).await.unwrap();
        let established = await_condition(all.clone(), &name, conditions::is_crd_established());
        tokio::time::timeout(std::time::Duration::from_secs(20), established).await.unwrap().unwrap();
    }
    let functions = Api::<Function>::namespaced(client, "default");
    let add = function("add", json!({"source": {"inline": "def main(params):\n  return {'x': params['x'] + 5}\n"}}));
    functions.create(&PostParams::default(), &add).await.unwrap();
    let scale = functions.get_scale("add").await.unwrap();
    assert_eq!((scale.spec.unwrap().replicas, scale.status.unwrap().replicas), (Some(1), 0));

    let refused = [
        (json!({"source": {}}), "exactly one of inline, configMap, archive and image must be given"),
        (json!({"source": {"inline": "x", "image": "y"}}), "exactly one of inline"),
        (json!({"source": {"inline": "x"}, "runtime": "http"}), "runtime http needs a command, or an image"),
        (json!({"source": {"image": "x"}, "scale": {"min": 3, "max": 2}}), "scale.min must not be above scale.max"),
        (json!({"source": {"image": "x"}, "traffic": [{"percent": 60}]}), "must add up to 100"),
        (json!({"source": {"image": "x"}, "triggers": [{"name": "a"}]}), "exactly one of cron, watch and files"),
    ];
    for (spec, why) in refused {
        let error = functions.create(&PostParams::default(), &function("bad", spec.clone())).await.unwrap_err();
        assert!(error.to_string().contains(why), "{spec}: {error}");
    }
}
