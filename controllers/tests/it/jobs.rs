use k8s_openapi::api::batch::v1::{CronJob, Job, JobStatus};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, EXIT, FAILS, eventually};

fn job(name: &str, annotations: Value, spec: Value) -> Value {
    let mut spec = spec;
    spec["template"] = json!({"metadata": {"annotations": annotations}, "spec": {"restartPolicy": "Never",
        "containers": [{"name": "c", "image": "a"}]}});
    json!({"metadata": {"name": name}, "spec": spec})
}

async fn cluster() -> Cluster {
    let c = Cluster::start().await;
    c.node("n1").await;
    c.run_pods();
    c
}

async fn pods_of(c: &Cluster, job: &str) -> Vec<Pod> {
    let mine = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={job}"));
    c.api::<Pod>("default").list(&mine).await.unwrap().items
}

async fn with_condition(c: &Cluster, job: &str, kind: &str) -> JobStatus {
    eventually(&format!("{job} is {kind}"), || async {
        let status = c.api::<Job>("default").get(job).await.unwrap().status?;
        let found = status.conditions.iter().flatten().any(|c| c.type_ == kind && c.status == "True");
        found.then_some(status)
    })
    .await
}

fn types(s: &JobStatus) -> Vec<(&str, &str)> {
    s.conditions.iter().flatten().map(|c| (c.type_.as_str(), c.reason.as_deref().unwrap_or_default())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_its_pods_and_counts_each_once() {
    let c = cluster().await;
    c.create::<Job>("default", job("sum", json!({EXIT: "0"}), json!({"completions": 7, "parallelism": 3}))).await;
    let s = with_condition(&c, "sum", "Complete").await;
    assert_eq!(types(&s), [("SuccessCriteriaMet", "CompletionsReached"), ("Complete", "CompletionsReached")]);
    assert_eq!((s.succeeded, s.failed, s.active, s.ready, s.terminating), (Some(7), None, None, Some(0), Some(0)));
    assert!(s.start_time.is_some() && s.completion_time.is_some());
    let pods = pods_of(&c, "sum").await;
    assert_eq!(pods.len(), 7, "no pod too many");
    assert!(pods.iter().all(|p| p.finalizers().is_empty()), "all are let go");
    let events = c.api::<Event>("default");
    eventually("an event tells it", || async {
        let list = events.list(&ListParams::default()).await.unwrap();
        list.items.into_iter().find(|e| e.reason.as_deref() == Some("Completed"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_end_a_job() {
    let c = cluster().await;
    c.create::<Job>("default", job("bad", json!({EXIT: "1"}), json!({"backoffLimit": 0}))).await;
    let s = with_condition(&c, "bad", "Failed").await;
    assert_eq!(types(&s), [("FailureTarget", "BackoffLimitExceeded"), ("Failed", "BackoffLimitExceeded")]);
    assert_eq!((s.failed, s.succeeded), (Some(1), None));
    assert!(pods_of(&c, "bad").await.iter().all(|p| p.finalizers().is_empty()));

    let rule = json!({"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]});
    c.create::<Job>("default", job("ruled", json!({EXIT: "42"}), json!({"podFailurePolicy": rule}))).await;
    let s = with_condition(&c, "ruled", "Failed").await;
    assert_eq!(types(&s), [("FailureTarget", "PodFailurePolicy"), ("Failed", "PodFailurePolicy")]);

    // Its pods run, then its time is over: they are deleted, and only then has it failed.
    c.create::<Job>("default", job("slow", json!({}), json!({"activeDeadlineSeconds": 1, "parallelism": 2}))).await;
    let s = with_condition(&c, "slow", "Failed").await;
    assert_eq!(types(&s), [("FailureTarget", "DeadlineExceeded"), ("Failed", "DeadlineExceeded")]);
    assert_eq!((s.failed, s.active, s.terminating), (Some(2), None, Some(0)));
    assert!(pods_of(&c, "slow").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_fail_one_by_one() {
    let c = cluster().await;
    let spec = json!({"completions": 4, "parallelism": 4, "completionMode": "Indexed", "backoffLimitPerIndex": 0});
    c.create::<Job>("default", job("parts", json!({FAILS: "1"}), spec.clone())).await;
    let s = with_condition(&c, "parts", "Failed").await;
    assert_eq!(types(&s), [("FailureTarget", "FailedIndexes"), ("Failed", "FailedIndexes")]);
    assert_eq!((s.completed_indexes.as_deref(), s.failed_indexes.as_deref()), (Some("0,2,3"), Some("1")));
    assert_eq!((s.succeeded, s.failed), (Some(3), Some(1)));
    let mut hosts: Vec<String> =
        pods_of(&c, "parts").await.into_iter().map(|p| p.spec.unwrap().hostname.unwrap()).collect();
    hosts.sort();
    assert_eq!(hosts, ["parts-0", "parts-1", "parts-2", "parts-3"]);

    let mut lucky = spec;
    lucky["successPolicy"] = json!({"rules": [{"succeededIndexes": "0,1"}]});
    lucky["parallelism"] = 1.into();
    c.create::<Job>("default", job("enough", json!({FAILS: "3"}), lucky)).await;
    let s = with_condition(&c, "enough", "Complete").await;
    assert_eq!(types(&s), [("SuccessCriteriaMet", "SuccessPolicy"), ("Complete", "SuccessPolicy")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_pauses_and_goes_on() {
    let c = cluster().await;
    let api = c.api::<Job>("default");
    c.create::<Job>("default", job("later", json!({}), json!({"suspend": true, "parallelism": 2}))).await;
    let s = with_condition(&c, "later", "Suspended").await;
    assert_eq!((s.start_time, s.active), (None, None));
    assert!(pods_of(&c, "later").await.is_empty());
    let suspend = |v: bool| Patch::Merge(json!({"spec": {"suspend": v}}));
    api.patch("later", &PatchParams::default(), &suspend(false)).await.unwrap();
    eventually("two pods run", || async {
        let s = api.get("later").await.unwrap().status?;
        (s.active == Some(2) && s.ready == Some(2) && s.start_time.is_some()).then_some(())
    })
    .await;
    api.patch("later", &PatchParams::default(), &suspend(true)).await.unwrap();
    eventually("none is left", || async { pods_of(&c, "later").await.is_empty().then_some(()) }).await;
    let s = with_condition(&c, "later", "Suspended").await;
    assert_eq!((s.failed, s.active), (None, None), "what was paused has not failed");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_go_with_their_pods() {
    let c = cluster().await;
    let api = c.api::<Job>("default");
    c.create::<Job>("default", job("runs", json!({}), json!({}))).await;
    c.create::<Job>("default", job("brief", json!({EXIT: "0"}), json!({"ttlSecondsAfterFinished": 1}))).await;
    eventually("it runs", || async { api.get("runs").await.unwrap().status?.ready.filter(|n| *n == 1) }).await;
    api.delete("runs", &DeleteParams::background()).await.unwrap();
    eventually("its pod goes", || async { pods_of(&c, "runs").await.is_empty().then_some(()) }).await;
    eventually("the finished one goes by itself", || async {
        (api.get_opt("brief").await.unwrap().is_none() && pods_of(&c, "brief").await.is_empty()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_job_starts_jobs_on_time() {
    let c = cluster().await;
    let template = json!({"spec": {"template": {"metadata": {"annotations": {EXIT: "0"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "a"}]}}}});
    let spec = json!({"schedule": "@every 1s", "successfulJobsHistoryLimit": 1, "jobTemplate": template,
        "timeZone": "Europe/Berlin"});
    c.create::<CronJob>("default", json!({"metadata": {"name": "tick"}, "spec": spec})).await;
    let crons = c.api::<CronJob>("default");
    eventually("a Job succeeded", || async { crons.get("tick").await.unwrap().status?.last_successful_time }).await;
    let jobs = c.api::<Job>("default");
    let pause = Patch::Merge(json!({"spec": {"suspend": true}}));
    crons.patch("tick", &PatchParams::default(), &pause).await.unwrap();
    // Runs of one minute share a name and so are one.
    let list = jobs.list(&ListParams::default()).await.unwrap().items;
    let minute = |j: &Job| j.name_any().strip_prefix("tick-").unwrap().parse::<i64>().unwrap();
    assert!(!list.is_empty() && list.iter().all(|j| minute(j) > 29_000_000), "{list:?}");
    assert!(list[0].annotations()["batch.kubernetes.io/cronjob-scheduled-timestamp"].contains("+0"));
    eventually("none is active", || async {
        let s = crons.get("tick").await.unwrap().status?;
        (s.active.is_none() && s.last_schedule_time.is_some()).then_some(())
    })
    .await;
    let forget = Patch::Merge(json!({"spec": {"successfulJobsHistoryLimit": 0}}));
    crons.patch("tick", &PatchParams::default(), &forget).await.unwrap();
    eventually("finished Jobs go", || async {
        jobs.list(&ListParams::default()).await.unwrap().items.is_empty().then_some(())
    })
    .await;
}
