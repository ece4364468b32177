//! The custom resources as the API server takes them: what it serves, defaults and refuses.
#![allow(clippy::unwrap_used)]

use kube::api::PostParams;
use serde_json::json;
use skiff_faas::api::Function;

mod support;

fn function(name: &str, spec: serde_json::Value) -> Function {
    let whole = json!({"apiVersion": "skiff.dev/v1", "kind": "Function", "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(whole).unwrap()
}

#[tokio::test]
async fn the_server_takes_them() {
    let world = support::world().await;
    let functions = world.api::<Function>();
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
        (json!({"source": {"image": "x"}, "triggers": [{"name": "a"}]}), "exactly one of cron, watch, files and event"),
    ];
    for (spec, why) in refused {
        let error = functions.create(&PostParams::default(), &function("bad", spec.clone())).await.unwrap_err();
        assert!(error.to_string().contains(why), "{spec}: {error}");
    }
}
