//! The leader of the controllers is killed in the middle of its work: another goes on, and nothing is done twice.
//!
//! Real servers, managers and scheduler; the nodes are played through the API, because what counts is what is asked of
//! them: which pods are made, and how many there are at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{Api as Objects, DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::etcd_cluster::{Cluster, available};
use crate::servers::{Running, component, servers};
use crate::until;

/// How long a played pod takes for anything.
const WORK: Duration = Duration::from_millis(300);

/// What the nodes have seen.
#[derive(Default)]
struct Seen {
    /// Of each owner, all pods there ever were.
    made: BTreeMap<String, BTreeSet<String>>,
    /// Pods that are ready and not going, by their label `app`.
    ready: BTreeMap<String, String>,
    /// Pods that are not going.
    present: BTreeMap<String, String>,
    /// The fewest that were ready at a time, and the most that were there, since they were last asked for.
    fewest: usize,
    most: usize,
}

impl Seen {
    fn take(&mut self, pod: &Pod, gone: bool) {
        let uid = pod.uid().unwrap_or_default();
        let app = pod.labels().get("app").cloned().unwrap_or_default();
        let owner = pod.owner_references().first().map(|o| o.name.clone()).unwrap_or_default();
        self.made.entry(owner).or_default().insert(uid.clone());
        let status = pod.status.as_ref();
        let is_ready = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
        let is_ready = is_ready.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
        let over = gone || pod.metadata.deletion_timestamp.is_some();
        if over {
            self.present.remove(&uid)
        } else {
            self.present.insert(uid.clone(), app.clone())
        };
        if over || !is_ready {
            self.ready.remove(&uid)
        } else {
            self.ready.insert(uid, app)
        };
        self.fewest = self.fewest.min(self.ready.len());
        self.most = self.most.max(self.present.len());
    }

    /// Counts anew, if all that should be there has been seen: the server's word for it may come before its events do.
    fn begin(&mut self) -> Option<()> {
        let settled = self.ready.len() == REPLICAS && self.present.len() == REPLICAS;
        (self.fewest, self.most) = (REPLICAS, REPLICAS);
        settled.then_some(())
    }
}

type Shared = Arc<Mutex<Seen>>;

fn seen<T>(shared: &Shared, look: impl FnOnce(&mut Seen) -> T) -> T {
    look(&mut shared.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Plays the nodes: what is bound runs after a while, Jobs' pods end, what is deleted goes.
async fn play(client: Client, shared: Shared) {
    let all: Objects<Pod> = Objects::default_namespaced(client);
    let mut events = std::pin::pin!(watcher(all.clone(), watcher::Config::default()).default_backoff());
    let mut asked = BTreeSet::new();
    while let Some(event) = events.next().await {
        let pod = match event {
            Ok(watcher::Event::Apply(p) | watcher::Event::InitApply(p)) => p,
            Ok(watcher::Event::Delete(p)) => {
                seen(&shared, |s| s.take(&p, true));
                continue;
            }
            _ => continue,
        };
        seen(&shared, |s| s.take(&pod, false));
        let going = pod.metadata.deletion_timestamp.is_some();
        let bound = pod.spec.as_ref().is_some_and(|s| s.node_name.is_some());
        let phase = pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
        let next = match (going, bound, phase.as_str()) {
            (true, ..) => "gone",
            (_, true, "Pending") => "Running",
            (_, true, "Running") if pod.owner_references().first().is_some_and(|o| o.kind == "Job") => "Succeeded",
            _ => continue,
        };
        if asked.insert((pod.uid(), next)) {
            tokio::spawn(step(all.clone(), pod, next));
        }
    }
}

async fn step(all: Objects<Pod>, pod: Pod, next: &'static str) {
    tokio::time::sleep(WORK).await;
    let name = pod.name_any();
    if next == "gone" {
        let mine = Preconditions { uid: pod.uid(), resource_version: None };
        let now = DeleteParams { preconditions: Some(mine), ..DeleteParams::default() }.grace_period(0);
        let _ = all.delete(&name, &now).await;
        return;
    }
    let ready = if next == "Running" { "True" } else { "False" };
    let status = json!({"metadata": {"uid": pod.uid()}, "status": {"phase": next,
        "conditions": [{"type": "Ready", "status": ready}, {"type": "ContainersReady", "status": ready}]}});
    let _ = all.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await;
}

/// A leader, and one that waits for its end.
struct Pair {
    data: PathBuf,
    logs: usize,
    leader: Running,
    standby: Running,
}

impl Pair {
    async fn start(data: PathBuf, client: &Client) -> Result<Self> {
        let leader = Self::one(&data, 0)?;
        let leases: Objects<k8s_openapi::api::coordination::v1::Lease> =
            Objects::namespaced(client.clone(), "kube-system");
        until("a leader", || async {
            let lease = leases.get_opt("kube-controller-manager").await?;
            Ok(lease.and_then(|l| l.spec?.holder_identity).filter(|h| !h.is_empty()))
        })
        .await?;
        let standby = Self::one(&data, 1)?;
        Ok(Self { data, logs: 2, leader, standby })
    }

    fn one(data: &std::path::Path, number: usize) -> Result<Running> {
        let log = data.with_extension(format!("m{number}.log"));
        // The nodes are played: nobody renews their Leases.
        component("controller-manager", data, &log, &["--node-monitor-grace-period", "1h"])
    }

    /// Kills the leader; the other one is it from now on, when its turn comes.
    fn kill(&mut self) -> Result<()> {
        let fresh = Self::one(&self.data, self.logs)?;
        self.logs += 1;
        let next = std::mem::replace(&mut self.standby, fresh);
        drop(std::mem::replace(&mut self.leader, next));
        Ok(())
    }
}

fn template(app: &str, image: &str) -> Value {
    json!({"metadata": {"labels": {"app": app}}, "spec": {"containers": [{"name": "c", "image": image}]}})
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> Result<T> {
    Ok(serde_json::from_value(value)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_leaves_nothing_twice() -> Result<()> {
    if !available() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start(1, false);
    let apis = servers(&cluster, dir.path(), 1).await?;
    let client = apis[0].client().await?;
    let data = dir.path().join("d0");
    let mut pair = Pair::start(data.clone(), &client).await?;
    let _scheduler = component("scheduler", &data, &dir.path().join("scheduler.log"), &[])?;
    for name in ["n1", "n2"] {
        node(&client, name).await?;
    }
    let shared = Shared::default();
    let nodes = tokio::spawn(play(client.clone(), Arc::clone(&shared)));
    let result = async {
        rollout(&client, &shared, &mut pair).await.context("rollout")?;
        drain(&client, &shared, &mut pair).await.context("drain")?;
        job(&client, &shared, &mut pair).await.context("Job")
    };
    let result = result.await;
    nodes.abort();
    result.with_context(|| apis[0].said())
}

async fn node(client: &Client, name: &str) -> Result<()> {
    let nodes: Objects<Node> = Objects::all(client.clone());
    nodes.create(&PostParams::default(), &object(json!({"metadata": {"name": name}}))?).await?;
    let room = json!({"cpu": "64", "memory": "64Gi", "pods": "110"});
    let status = json!({"status": {"capacity": room, "allocatable": room,
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}]}});
    nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    // Pods come when it has lost the taint of new nodes.
    until("the node takes pods", || async {
        let taints = nodes.get(name).await?.spec.and_then(|s| s.taints).unwrap_or_default();
        Ok(taints.is_empty().then_some(()))
    })
    .await
}

const REPLICAS: usize = 12;

/// A rollout goes on with the same ReplicaSet: as many new pods as replicas, and never more at a time than allowed.
async fn rollout(client: &Client, shared: &Shared, pair: &mut Pair) -> Result<()> {
    let deployments: Objects<Deployment> = Objects::default_namespaced(client.clone());
    let strategy = json!({"rollingUpdate": {"maxSurge": 2, "maxUnavailable": 0}});
    let wanted = json!({"metadata": {"name": "web"}, "spec": {"replicas": REPLICAS, "strategy": strategy,
        "selector": {"matchLabels": {"app": "web"}}, "template": template("web", "one")}});
    deployments.create(&PostParams::default(), &object(wanted)?).await?;
    let complete = || async {
        let d = deployments.get("web").await?;
        let (generation, s) = (d.metadata.generation, d.status.unwrap_or_default());
        let all = Some(REPLICAS as i32);
        let done = s.observed_generation == generation
            && [s.replicas, s.updated_replicas, s.available_replicas] == [all, all, all];
        Ok(done.then_some(()))
    };
    until("the first pods", complete).await?;
    until("all pods are seen", || async { Ok(seen(shared, Seen::begin)) }).await?;
    let change = json!({"spec": {"template": template("web", "two")}});
    deployments.patch("web", &PatchParams::default(), &Patch::Strategic(change)).await?;
    let sets: Objects<ReplicaSet> = Objects::default_namespaced(client.clone());
    let new = until("the rollout is in its middle", || async {
        let all = sets.list(&ListParams::default()).await?.items;
        let of = |s: &ReplicaSet| s.spec.template.as_ref()?.spec.as_ref()?.containers.first()?.image.clone();
        let new = all.into_iter().find(|s| of(s).as_deref() == Some("two"));
        let ready = new.as_ref().and_then(|s| s.status.as_ref()?.ready_replicas).unwrap_or_default();
        Ok(new.filter(|_| ready >= 3).map(|s| s.name_any()))
    })
    .await?;
    pair.kill()?;
    let left = deployments.get("web").await?.status.and_then(|s| s.updated_replicas).unwrap_or_default();
    ensure!(left < REPLICAS as i32, "the rollout was over before its leader was killed");
    until("the rollout is complete", complete).await?;
    let (made, fewest, most) = seen(shared, |s| (s.made.get(&new).map_or(0, BTreeSet::len), s.fewest, s.most));
    ensure!(made == REPLICAS, "{made} pods were made of the new template");
    ensure!(most <= REPLICAS + 2 && fewest >= REPLICAS, "{most} at most, {fewest} ready at least");
    ensure!(sets.list(&ListParams::default()).await?.items.len() == 2, "another ReplicaSet was made");
    Ok(())
}

/// A drain goes on: the budget holds all the time, and in the end all pods are on the other node.
async fn drain(client: &Client, shared: &Shared, pair: &mut Pair) -> Result<()> {
    let budgets: Objects<PodDisruptionBudget> = Objects::default_namespaced(client.clone());
    let least = REPLICAS - 2;
    let budget = json!({"metadata": {"name": "web"}, "spec": {"minAvailable": least,
        "selector": {"matchLabels": {"app": "web"}}}});
    budgets.create(&PostParams::default(), &object(budget)?).await?;
    until("the budget is counted", || async {
        let status = budgets.get("web").await?.status;
        Ok(status.filter(|s| s.disruptions_allowed == Some(2)).map(drop))
    })
    .await?;
    let nodes: Objects<Node> = Objects::all(client.clone());
    nodes.cordon("n1").await?;
    let pods: Objects<Pod> = Objects::default_namespaced(client.clone());
    let on = |node: &str| ListParams::default().labels("app=web").fields(&format!("spec.nodeName={node}"));
    let first = pods.list(&on("n1")).await?.items.len();
    ensure!(first >= 4, "only {first} pods are on the node");
    until("all pods are seen", || async { Ok(seen(shared, Seen::begin)) }).await?;
    // As `kubectl drain` does: what the budget forbids now is asked for again.
    let empty = |left: usize| {
        let (pods, on) = (&pods, &on);
        until("the node has fewer pods", move || async move {
            let present = pods.list(&on("n1")).await?.items;
            for pod in present.iter().filter(|p| p.metadata.deletion_timestamp.is_none()) {
                match pods.evict(&pod.name_any(), &EvictParams::default()).await {
                    Err(kube::Error::Api(s)) if s.code == 429 || s.code == 404 => {}
                    other => drop(other?),
                }
            }
            Ok((present.len() <= left).then_some(()))
        })
    };
    empty(first - 2).await?;
    pair.kill()?;
    empty(0).await?;
    until("all pods are ready again", || async {
        Ok(seen(shared, |s| (s.ready.len() == REPLICAS && s.present.len() == REPLICAS).then_some(())))
    })
    .await?;
    let (fewest, most) = seen(shared, |s| (s.fewest, s.most));
    ensure!(fewest >= least, "only {fewest} were ready at a time");
    ensure!(most <= REPLICAS, "{most} pods at a time for {REPLICAS} replicas");
    nodes.uncordon("n1").await?;
    Ok(())
}

/// A Job goes on: as many pods as completions, each counted once.
async fn job(client: &Client, shared: &Shared, pair: &mut Pair) -> Result<()> {
    const COMPLETIONS: i32 = 30;
    let jobs: Objects<Job> = Objects::default_namespaced(client.clone());
    let mut template = template("sums", "one");
    template["spec"]["restartPolicy"] = "Never".into();
    let wanted = json!({"metadata": {"name": "sums"}, "spec": {"completions": COMPLETIONS, "parallelism": 4,
        "template": template}});
    jobs.create(&PostParams::default(), &object(wanted)?).await?;
    let status = || async { anyhow::Ok(jobs.get("sums").await?.status.unwrap_or_default()) };
    until("some have ended", || async { Ok(status().await?.succeeded.filter(|s| *s >= 6)) }).await?;
    pair.kill()?;
    let done = status().await?.succeeded.unwrap_or_default();
    ensure!(done < COMPLETIONS, "the Job was over before its leader was killed");
    let end = until("the Job is complete", || async {
        let s = status().await?;
        let complete = s.conditions.iter().flatten().any(|c| c.type_ == "Complete" && c.status == "True");
        Ok(complete.then_some(s))
    })
    .await?;
    let made = seen(shared, |s| s.made.get("sums").map_or(0, BTreeSet::len));
    ensure!(end.succeeded == Some(COMPLETIONS) && end.failed.unwrap_or_default() == 0, "{end:?}");
    ensure!(made == COMPLETIONS as usize, "{made} pods were made for {COMPLETIONS} completions");
    Ok(())
}
