//! Jobs on a real Slurm, by any driver. `hack/slurm.sh up --ssh --rest` makes one; SKIFF_SLURM_MANIFEST is a file with what
//! `hack/slurm.sh manifest local|ssh|rest` prints. Without it there is nothing to test.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use skiff_hpc::api::{GpuJob, HpcCluster, Phase, SlurmPartition};
use skiff_hpc::{Config, run};
use support::{World, until, world};
use tokio_util::sync::CancellationToken;

mod support;

struct Room {
    world: World,
    stop: CancellationToken,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn room() -> Room {
    let world = world().await;
    let stop = CancellationToken::new();
    let manifest = std::env::var("SKIFF_SLURM_MANIFEST").expect("SKIFF_SLURM_MANIFEST names a file with an HpcCluster");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    let mut objects: Vec<Value> = manifest.split("\n---\n").map(|d| serde_saphyr::from_str(d).unwrap()).collect();
    let mut cluster = objects.pop().unwrap();
    // Other tests may run beside this one.
    let work = format!(
        "{}/test-{}-{}",
        cluster["spec"]["workDirectory"].as_str().unwrap(),
        std::process::id(),
        rand::random::<u32>()
    );
    cluster["spec"]["workDirectory"] = json!(work);
    cluster["metadata"]["name"] = json!("here");
    for secret in objects {
        let secrets =
            Api::<Secret>::namespaced(world.client.clone(), secret["metadata"]["namespace"].as_str().unwrap());
        secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    }
    let room = Room { world, stop: stop.clone() };
    let config = Config { settled: Duration::from_secs(3), ..Config::new(room.world.dir.path().join("results")) };
    let client = room.world.client.clone();
    tokio::spawn(async move { run(client, config, stop).await.unwrap() });
    let clusters = Api::<HpcCluster>::all(room.world.client.clone());
    clusters.create(&PostParams::default(), &serde_json::from_value(cluster).unwrap()).await.unwrap();
    room
}

impl Room {
    fn jobs(&self) -> Api<GpuJob> {
        self.world.api()
    }

    async fn submit(&self, name: &str, spec: Value) {
        let whole = json!({"apiVersion": "skiff.dev/v1", "kind": "GpuJob", "metadata": {"name": name}, "spec": spec});
        self.jobs().create(&PostParams::default(), &serde_json::from_value(whole).unwrap()).await.unwrap();
    }

    async fn phase(&self, name: &str, phase: Phase) -> GpuJob {
        until(&self.jobs(), name, |j: &GpuJob| j.status.as_ref().and_then(|s| s.phase) == Some(phase)).await
    }
}

fn reason(job: &GpuJob, kind: &str) -> String {
    let all = &job.status.as_ref().unwrap().conditions;
    all.iter().find(|c| c.type_ == kind && c.status == "True").map(|c| c.reason.clone()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Slurm: see the head of this file"]
async fn jobs_end_as_they_end() {
    let room = room().await;
    let good = json!({
        "source": {"inline": {"add.sh": "echo $(( $1 + $2 )) >sum.txt\necho said\n"}},
        "build": {"commands": ["cp add.sh built.sh"]},
        "run": {"command": ["bash", "built.sh", "2", "3"]},
        "outputs": ["*.txt"],
    });
    room.submit("good", good).await;
    room.submit("bad", json!({"run": {"script": "exit 3"}})).await;
    room.submit("broken", json!({"run": {"command": ["true"]}, "build": {"commands": ["false"]}})).await;
    room.submit("killed", json!({"run": {"script": "kill -9 $PPID"}})).await;
    room.submit(
        "refused",
        json!({"run": {"command": ["true"]}, "resources": {"qos": "nosuch", "partition": "nosuch"}}),
    )
    .await;
    room.submit(
        "many",
        json!({"run": {"script": "exit $(( SLURM_ARRAY_TASK_ID == 2 ))"}, "resources": {"array": {"tasks": "0-3"}}}),
    )
    .await;
    room.submit("after", json!({"run": {"command": ["true"]}, "dependencies": [{"type": "AfterOk", "job": "good"}]}))
        .await;
    room.submit("never", json!({"run": {"command": ["true"]}, "dependencies": [{"type": "AfterOk", "job": "bad"}]}))
        .await;

    let good = room.phase("good", Phase::Succeeded).await;
    let status = good.status.clone().unwrap();
    assert_eq!((status.exit_code, status.outputs.clone().map(|o| o.files)), (Some(0), Some(1)), "{status:#?}");
    assert_eq!(reason(&good, "Complete"), "Completed");
    let bad = room.phase("bad", Phase::Failed).await;
    assert_eq!((reason(&bad, "Failed").as_str(), bad.status.unwrap().exit_code), ("NonZeroExit", Some(3)));
    assert_eq!(reason(&room.phase("broken", Phase::Failed).await, "Failed"), "BuildFailed");
    let killed = room.phase("killed", Phase::Failed).await;
    assert_eq!((reason(&killed, "Failed").as_str(), killed.status.unwrap().signal), ("Signaled", Some(9)));
    let refused = until(&room.jobs(), "refused", |j: &GpuJob| {
        j.status.as_ref().is_some_and(|s| s.conditions.iter().any(|c| c.type_ == "Unschedulable" && c.status == "True"))
    })
    .await;
    assert_eq!(reason(&refused, "Unschedulable"), "DoesNotFit");
    let many = room.phase("many", Phase::Failed).await.status.unwrap();
    let tasks = many.tasks.unwrap();
    assert_eq!((tasks.succeeded, tasks.failed, tasks.failed_tasks.as_str()), (3, 1, "2"));
    room.phase("after", Phase::Succeeded).await;
    assert_eq!(reason(&room.phase("never", Phase::Failed).await, "Failed"), "DependencyNeverSatisfied");
    let partitions = Api::<SlurmPartition>::all(room.world.client.clone());
    assert!(!partitions.list(&Default::default()).await.unwrap().items.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a Slurm: see the head of this file"]
async fn deletion_cancels_and_suspension_holds() {
    let room = room().await;
    room.submit("long", json!({"run": {"command": ["sleep", "600"]}})).await;
    let long = room.phase("long", Phase::Running).await;
    let directory = long.status.unwrap().directory.unwrap();
    assert!(std::path::Path::new(&directory).exists());
    room.jobs().delete("long", &DeleteParams::default()).await.unwrap();
    let gone = async {
        while room.jobs().get_opt("long").await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, gone).await.unwrap();
    assert!(!std::path::Path::new(&directory).exists());

    room.submit("held", json!({"run": {"command": ["true"]}, "suspend": true})).await;
    let held = room.phase("held", Phase::Suspended).await;
    assert_eq!(held.status.unwrap().job_id, None);
    let resume = Patch::Merge(json!({"spec": {"suspend": false}}));
    room.jobs().patch("held", &PatchParams::default(), &resume).await.unwrap();
    room.phase("held", Phase::Succeeded).await;
}
