//! The custom resources as the API server takes them: what it serves, and what it refuses.
#![allow(clippy::unwrap_used)]

use kube::api::PostParams;
use serde_json::{Value, json};
use skiff_hpc::api::{GpuJob, HpcCluster};

mod support;

fn object<K: serde::de::DeserializeOwned>(kind: &str, name: &str, spec: &Value) -> K {
    let whole = json!({"apiVersion": "skiff.dev/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(whole).unwrap()
}

#[tokio::test]
async fn the_server_takes_them() {
    let world = support::world().await;
    let jobs = world.api::<GpuJob>();
    let good = [
        json!({"run": {"command": ["hostname"]}}),
        json!({"run": {"script": "echo a\necho b"}, "resources": {"gpus": [{"type": "a100", "count": 2}], "time": "1-00:00:00",
            "array": {"tasks": "0-15:2,40", "limit": 4}, "constraint": "[rack1*2&rack2*4]", "extraOptions": ["--nice=100"]}}),
    ];
    for (i, spec) in good.iter().enumerate() {
        jobs.create(&PostParams::default(), &object("GpuJob", &format!("good-{i}"), spec)).await.unwrap();
    }
    let run = json!({"command": ["true"]});
    let refused = [
        (json!({"run": {}}), "exactly one of command and script must be given"),
        (json!({"run": {"script": "true", "args": ["x"]}}), "args needs command"),
        (json!({"run": run, "resources": {"partition": "gpu\n#SBATCH --uid=0"}}), "spec.resources.partition"),
        (json!({"run": run, "resources": {"partition": "gpu --uid=0"}}), "spec.resources.partition"),
        (json!({"run": run, "resources": {"extraOptions": ["--wrap=a b"]}}), "spec.resources.extraOptions"),
        (json!({"run": run, "resources": {"memory": "1G", "memoryPerCpu": "1G"}}), "at most one of memory"),
        (json!({"run": run, "resources": {"array": {"tasks": "0-"}}}), "spec.resources.array.tasks"),
        (json!({"run": run, "modules": ["cuda; rm -rf /"]}), "spec.modules"),
        (json!({"run": run, "env": [{"name": "A=B", "value": "x"}]}), "spec.env"),
        (json!({"run": run, "inputs": [{"path": "/etc/passwd", "text": "y"}]}), "spec.inputs[0].path"),
        (json!({"run": run, "inputs": [{"path": "a/../../b", "text": "y"}]}), "spec.inputs[0].path"),
        (json!({"run": run, "dependencies": [{"type": "AfterOk"}]}), "job must be given"),
        (json!({"run": run, "outputFile": "a/%j"}), "spec.outputFile"),
    ];
    for (spec, why) in refused {
        let error = jobs.create(&PostParams::default(), &object("GpuJob", "bad", &spec)).await.unwrap_err();
        assert!(error.to_string().contains(why), "{spec}: {error}");
    }
    let mut changed = jobs.get("good-0").await.unwrap();
    changed.spec.run.command = vec!["other".into()];
    let error = jobs.replace("good-0", &PostParams::default(), &changed).await.unwrap_err();
    assert!(error.to_string().contains("run of a job cannot be changed"), "{error}");

    let clusters = kube::Api::<HpcCluster>::all(world.client.clone());
    let local = json!({"local": {}, "workDirectory": "/scratch/skiff"});
    clusters.create(&PostParams::default(), &object("HpcCluster", "a", &local)).await.unwrap();
    let refused = [
        (json!({"workDirectory": "/x"}), "exactly one of local, ssh and rest"),
        (json!({"local": {}, "workDirectory": "/x; y"}), "spec.workDirectory"),
        (json!({"local": {}, "workDirectory": "/x", "files": {"local": {}}}), "files is for rest only"),
        (json!({"rest": {"url": "http://a:1", "user": "u"}, "workDirectory": "/x"}), "url needs a secret"),
    ];
    for (spec, why) in refused {
        let error = clusters.create(&PostParams::default(), &object("HpcCluster", "b", &spec)).await.unwrap_err();
        assert!(error.to_string().contains(why), "{spec}: {error}");
    }
}
