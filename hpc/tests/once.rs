//! Exactly once: many jobs on a Slurm that loses answers to submissions after it took them, and submissions before. No job runs
//! twice, none is lost. Needs the program: `cargo build -p skiff-fake-slurm`. SKIFF_HPC_JOBS is how many (60).
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use fake_slurm::control;
use kube::api::ListParams;
use serde_json::{Value, json};
use skiff_hpc::api::{GpuJob, Phase};
use support::Fake;

mod support;

/// Time for all of it.
const LIMIT: Duration = Duration::from_secs(300);

async fn many(driver: &str, faults: &[&str]) {
    let jobs: usize = std::env::var("SKIFF_HPC_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let fake = Fake::prepared(driver, &["run=false", "simulated_ms=100", "accounting=true"], faults, json!({})).await;
    let (api, dir) = (fake.jobs(), &fake.dir);
    for i in 0..jobs {
        fake.submit(&format!("job-{i}"), json!({"run": {"command": ["true"]}})).await;
    }
    let began = Instant::now();
    fake.run();
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
    fake.stop().await;
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
