//! Jobs that Slurm could not start and holds: let go as often as their retries say, or sent again where they may not be let go.
//! Needs the program: `cargo build -p skiff-fake-slurm`.
#![allow(clippy::unwrap_used)]

use fake_slurm::control;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use skiff_hpc::api::{GpuJob, Phase, RELEASE};
use support::{Fake, until};

mod support;

fn job(retries: u32) -> Value {
    json!({"run": {"command": ["true"]}, "retries": {"infrastructure": retries, "backoffSeconds": 1}})
}

fn reason(job: &GpuJob, kind: &str) -> String {
    let all = job.status.iter().flat_map(|s| &s.conditions);
    all.filter(|c| c.type_ == kind && c.status == "True").map(|c| c.reason.clone()).next().unwrap_or_default()
}

/// Submissions that Slurm took.
fn accepted(fake: &Fake) -> Value {
    control::counts(fake.dir.path()).unwrap()["accepted"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_let_go_as_often_as_retries_say() {
    for driver in ["local", "rest"] {
        let fake = Fake::start(driver, &["launch_failures=2"], json!({})).await;
        fake.submit("tough", job(2)).await;
        let done = fake.phase("tough", Phase::Succeeded).await.status.unwrap();
        assert_eq!((done.infrastructure_retries, done.attempt), (2, 1), "{driver}: the same job, let go twice");
        assert_eq!(accepted(&fake), 1, "{driver}");
        fake.submit("weak", job(1)).await;
        let held = until(&fake.jobs(), "weak", |j: &GpuJob| {
            reason(j, "Suspended") == "LaunchFailedHeld"
                && j.status.as_ref().is_some_and(|s| s.infrastructure_retries == 1)
                && j.status.as_ref().unwrap().conditions.iter().any(|c| c.message.contains("kubectl gpu release"))
        })
        .await;
        assert_eq!(held.status.unwrap().phase, Some(Phase::Suspended));
        let release = Patch::Merge(json!({"metadata": {"annotations": {RELEASE: "now"}}}));
        fake.jobs().patch("weak", &PatchParams::default(), &release).await.unwrap();
        let done = fake.phase("weak", Phase::Succeeded).await.status.unwrap();
        assert_eq!((done.infrastructure_retries, done.attempt), (1, 1), "{driver}: what a person does is not counted");
        assert_eq!(accepted(&fake), 2, "{driver}");
        fake.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_sent_again_once_where_it_may_not_be_let_go() {
    let fake = Fake::start("local", &["launch_failures=1", "no_release=true"], json!({})).await;
    fake.submit("barred", job(1)).await;
    let second = until(&fake.jobs(), "barred", |j: &GpuJob| {
        j.status.as_ref().is_some_and(|s| s.attempt == 2 && s.identity.is_some()) && !reason(j, "Suspended").is_empty()
    })
    .await;
    // The first is over before the second is sent, and there is no third.
    assert_eq!(second.status.unwrap().infrastructure_retries, 1);
    assert_eq!(accepted(&fake), 2);
    let names = control::counts(fake.dir.path()).unwrap();
    assert_eq!(names["duplicates"], 0);
    fake.stop().await;
}
