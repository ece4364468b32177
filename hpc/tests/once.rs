//! Exactly once: many jobs on a Slurm that loses answers to submissions after it took them, and submissions before. No job runs
//! twice, none is lost. Needs the program: `cargo build -p skiff-fake-slurm`. SKIFF_HPC_JOBS is how many (60).
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use fake_slurm::state::Store;
use fake_slurm::{control, rest, ssh};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use skiff_hpc::api::{GpuJob, HpcCluster, Phase};
use skiff_hpc::{Config, run};
use support::world;
use tokio_util::sync::CancellationToken;

mod support;

/// Time for all of it.
const LIMIT: Duration = Duration::from_secs(300);

fn strings(all: &[&str]) -> Vec<String> {
    all.iter().map(|s| (*s).to_owned()).collect()
}

async fn many(driver: &str, faults: &[&str]) {
    let jobs: usize = std::env::var("SKIFF_HPC_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::new(dir.path());
    control::init(dir.path(), &strings(&["run=false", "simulated_ms=100", "accounting=true"])).unwrap();
    control::change(dir.path(), "faults.json", &strings(faults)).unwrap();
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
            secret["stringData"]["ssh-privatekey"] = json!(std::fs::read_to_string(dir.path().join("key")).unwrap());
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
    spec.as_object_mut().unwrap().extend(access.as_object().unwrap().clone());
    let world = world().await;
    let secrets = world.api::<Secret>();
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    let cluster =
        json!({"apiVersion": "skiff.dev/v1", "kind": "HpcCluster", "metadata": {"name": "fake"}, "spec": spec});
    let clusters = Api::<HpcCluster>::all(world.client.clone());
    clusters.create(&PostParams::default(), &serde_json::from_value(cluster).unwrap()).await.unwrap();
    let api = world.api::<GpuJob>();
    for i in 0..jobs {
        let job = json!({"apiVersion": "skiff.dev/v1", "kind": "GpuJob", "metadata": {"name": format!("job-{i}")},
            "spec": {"run": {"command": ["true"]}}});
        api.create(&PostParams::default(), &serde_json::from_value(job).unwrap()).await.unwrap();
    }
    let stop = CancellationToken::new();
    let config = Config { settled: Duration::from_secs(3), ..Config::new(dir.path().join("results")) };
    let began = Instant::now();
    let running = tokio::spawn(run(world.client.clone(), config, stop.clone()));
    let done = async {
        loop {
            let all = api.list(&ListParams::default()).await.unwrap().items;
            let phase = |j: &GpuJob| j.status.as_ref().and_then(|s| s.phase).unwrap_or_default();
            if let Some(failed) = all.iter().find(|j| phase(j) == Phase::Failed) {
                panic!("{failed:#?}");
            }
            if all.iter().all(|j| phase(j) == Phase::Succeeded) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let ended = tokio::time::timeout(LIMIT, done).await;
    let counts = control::counts(dir.path()).unwrap();
    let names = counts["names"].as_object().map_or(0, serde_json::Map::len);
    let adopted = api.list(&ListParams::default()).await.unwrap().items;
    let adopted =
        adopted.iter().filter(|j| j.status.as_ref().and_then(|s| s.identity.as_ref()).is_some_and(|i| i.adopted));
    println!("{driver}: {jobs} jobs in {:?}, {} found again", began.elapsed(), adopted.count());
    assert!(ended.is_ok(), "not all ended: {counts}");
    assert_eq!((&counts["duplicates"], names), (&Value::from(0), jobs));
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn by_commands() {
    many("local", &["drop_answer=0.2", "drop_request=0.05", "loss=error"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_ssh() {
    many("ssh", &["drop_answer=0.2", "drop_request=0.05", "loss=disconnect"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_rest() {
    many("rest", &["drop_answer=0.2", "drop_request=0.05", "loss=disconnect"]).await;
}
