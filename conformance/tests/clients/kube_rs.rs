//! kube-rs against a server in this process: a controller of a custom kind with its finalizer, events, streaming lists,
//! pages, discovery. What a program that embeds the server, or one that talks to it, would use.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::api::events::v1::Event as ClusterEvent;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::entry::{CommitError, Entry};
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::discovery::Discovery;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::events::{Event as Note, EventType, Recorder, Reporter};
use kube::runtime::finalizer::{Event as Life, finalizer};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource as _, ResourceExt as _};
use serde_json::json;
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_storage::embedded::Embedded;

/// Patience with each thing that must come true.
const PATIENCE: Duration = Duration::from_secs(30);
const FINALIZER: &str = "kube-rs.example.com/farewell";

fn kind() -> ApiResource {
    ApiResource {
        group: "kube-rs.example.com".into(),
        version: "v1".into(),
        api_version: "kube-rs.example.com/v1".into(),
        kind: "Note".into(),
        plural: "notes".into(),
    }
}

async fn start() -> Result<(Server, tempfile::TempDir)> {
    let dir = tempfile::tempdir()?;
    let store = Embedded::open(dir.path(), Default::default())?;
    let begun = Instant::now();
    let server = Server::builder(Arc::new(store)).start().await?;
    println!("a server on an empty store started in {:.1} ms", begun.elapsed().as_secs_f64() * 1000.0);
    Ok((server, dir))
}

async fn soon<T>(what: &str, wanted: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(PATIENCE, wanted)
        .await
        .with_context(|| format!("{what}: not in time"))?
        .context(what.to_owned())
}

async fn define(client: &Client) -> Result<()> {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["text"],
        "properties": {"text": {"type": "string", "minLength": 1}}}, "status": open}});
    let definition = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "notes.kube-rs.example.com"}, "spec": {"group": "kube-rs.example.com", "scope": "Namespaced",
        "names": {"kind": "Note", "plural": "notes"}, "versions": [{"name": "v1", "served": true, "storage": true,
        "subresources": {"status": {}}, "schema": {"openAPIV3Schema": schema}}]}});
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = "notes.kube-rs.example.com";
    api.patch(name, &PatchParams::apply("installer"), &Patch::Apply(&definition)).await?;
    await_condition(api, name, conditions::is_crd_established()).await?;
    Ok(())
}

/// What the controller does with one object.
struct Worker {
    client: Client,
    recorder: Recorder,
}

#[derive(Debug)]
struct Failure(String);

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

impl From<kube::Error> for Failure {
    fn from(e: kube::Error) -> Self {
        Self(e.to_string())
    }
}

impl Worker {
    async fn work(&self, life: Life<DynamicObject>) -> Result<Action, Failure> {
        let maps =
            |o: &DynamicObject| Api::<ConfigMap>::namespaced(self.client.clone(), &o.namespace().unwrap_or_default());
        let apply = PatchParams::apply("note-controller").force();
        match life {
            Life::Apply(o) => {
                let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"text": o.data["spec"]["text"]},
                    "metadata": {"name": o.name_any(), "ownerReferences": [o.controller_owner_ref(&kind())]}});
                maps(&o).patch(&o.name_any(), &apply, &Patch::Apply(&map)).await?;
                let status = json!({"apiVersion": "kube-rs.example.com/v1", "kind": "Note",
                    "status": {"seen": o.metadata.generation}});
                let ns = o.namespace().unwrap_or_default();
                let notes: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &ns, &kind());
                notes.patch_status(&o.name_any(), &apply, &Patch::Apply(&status)).await?;
                let note = Note {
                    type_: EventType::Normal,
                    reason: "Written".into(),
                    note: Some("the note is written".into()),
                    action: "Write".into(),
                    secondary: None,
                };
                self.recorder.publish(&note, &o.object_ref(&kind())).await?;
            }
            Life::Cleanup(o) => {
                let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("farewell-{}", o.name_any())}});
                maps(&o).patch(&format!("farewell-{}", o.name_any()), &apply, &Patch::Apply(&map)).await?;
            }
        }
        Ok(Action::await_change())
    }
}

/// A controller whose watches begin as streams, from creation to the end of its finalizer.
#[tokio::test(flavor = "multi_thread")]
async fn controller() -> Result<()> {
    let (server, _dir) = start().await?;
    let client = server.client(User::new("admin", &["system:masters"]));
    soon("the definition is established", define(&client)).await?;
    let notes: Api<DynamicObject> = Api::namespaced_with(client.clone(), "default", &kind());
    let streaming = || watcher::Config::default().streaming_lists();
    let reporter = Reporter { controller: "note-controller".into(), instance: Some("one".into()) };
    let worker = Arc::new(Worker { client: client.clone(), recorder: Recorder::new(client.clone(), reporter) });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let api = notes.clone();
    let running = Controller::new_with(notes.clone(), streaming(), kind())
        .owns(Api::<ConfigMap>::namespaced(client.clone(), "default"), streaming())
        .graceful_shutdown_on(async { stopped.await.unwrap_or_default() })
        .run(
            move |o, worker| {
                let api = api.clone();
                async move { finalizer(&api, FINALIZER, o, |life| worker.work(life)).await }
            },
            |_, _, _| Action::requeue(Duration::from_millis(100)),
            worker,
        );
    let running = tokio::spawn(running.for_each(|_| futures::future::ready(())));

    let note = |text: &str| -> Result<DynamicObject> {
        Ok(serde_json::from_value(json!({"apiVersion": "kube-rs.example.com/v1", "kind": "Note",
            "metadata": {"name": "a"}, "spec": {"text": text}}))?)
    };
    ensure!(notes.create(&PostParams::default(), &note("")?).await.is_err(), "the schema is not looked at");
    let made = notes.create(&PostParams::default(), &note("hello")?).await?;
    let seen =
        |generation: i64| move |o: Option<&DynamicObject>| o.is_some_and(|o| o.data["status"]["seen"] == generation);
    soon("seen", async { Ok(await_condition(notes.clone(), "a", seen(1)).await?) }).await?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    // What a hand does to the owned object is undone.
    maps.patch("a", &PatchParams::default(), &Patch::Merge(json!({"data": {"text": "by hand"}}))).await?;
    let says = |text: &'static str| {
        move |o: Option<&ConfigMap>| {
            o.and_then(|m| m.data.as_ref()).is_some_and(|d| d.get("text").is_some_and(|t| t == text))
        }
    };
    soon("repaired", async { Ok(await_condition(maps.clone(), "a", says("hello")).await?) }).await?;
    notes.patch("a", &PatchParams::default(), &Patch::Merge(json!({"spec": {"text": "bye"}}))).await?;
    soon("seen again", async { Ok(await_condition(notes.clone(), "a", seen(2)).await?) }).await?;
    soon("changed", async { Ok(await_condition(maps.clone(), "a", says("bye")).await?) }).await?;
    let events: Api<ClusterEvent> = Api::namespaced(client.clone(), "default");
    let written = events.list(&ListParams::default().fields("reason=Written")).await?;
    // A recorder makes one object of what repeats.
    ensure!(written.items.len() == 1, "{written:?}");

    notes.delete("a", &Default::default()).await?;
    let uid = made.uid().context("no uid")?;
    soon("deleted", async { Ok(await_condition(notes.clone(), "a", conditions::is_deleted(&uid)).await?) }).await?;
    ensure!(maps.get_opt("farewell-a").await?.is_some(), "gone before its finalizer was done");
    let _ = stop.send(());
    soon("the controller stops", async { Ok(running.await?) }).await?;
    server.shutdown();
    Ok(())
}

/// The first list as a stream, in pages and at once says the same; later changes follow.
#[tokio::test(flavor = "multi_thread")]
async fn lists() -> Result<()> {
    let (server, _dir) = start().await?;
    let client = server.client(User::new("admin", &["system:masters"]));
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    for i in 0..10 {
        let map = json!({"metadata": {"name": format!("m{i}"), "labels": {"of": "lists"}}});
        maps.create(&PostParams::default(), &serde_json::from_value(map)?).await?;
    }
    let base = || watcher::Config::default().labels("of=lists");
    for (round, (how, config)) in
        [("stream", base().streaming_lists()), ("pages", base().page_size(3)), ("at once", base())]
            .into_iter()
            .enumerate()
    {
        let mut events = std::pin::pin!(watcher(maps.clone(), config));
        let mut names = vec![];
        soon(how, async {
            loop {
                match events.try_next().await?.context("the watch ended")? {
                    watcher::Event::InitApply(m) => names.push(m.name_any()),
                    watcher::Event::InitDone => return Ok(()),
                    _ => {}
                }
            }
        })
        .await?;
        names.sort();
        let wanted: Vec<String> = (0..10).map(|i| format!("m{i}")).collect();
        ensure!(names == wanted, "{how}: {names:?}");
        let change = json!({"data": {"round": how}});
        maps.patch("m3", &PatchParams::default(), &Patch::Merge(change)).await?;
        let mut touched = std::pin::pin!(events.touched_objects());
        let next = soon(how, async { touched.try_next().await?.context("the watch ended") }).await?;
        ensure!(next.name_any() == "m3" && next.data.is_some_and(|d| d["round"] == how), "round {round}");
    }
    server.shutdown();
    Ok(())
}

/// Discovery in one request finds what discovery by group finds, and every kind in it can be listed.
#[tokio::test(flavor = "multi_thread")]
async fn discovery() -> Result<()> {
    let (server, _dir) = start().await?;
    let client = server.client(User::new("admin", &["system:masters"]));
    let names = |d: &Discovery| -> Vec<String> {
        let all = d.groups().flat_map(|g| g.resources_by_stability());
        let mut all: Vec<String> = all.map(|(r, _)| format!("{}/{}", r.api_version, r.plural)).collect();
        all.sort();
        all
    };
    let (at_once, one_by_one) =
        (Discovery::new(client.clone()).run_aggregated().await?, Discovery::new(client.clone()).run().await?);
    ensure!(names(&at_once) == names(&one_by_one), "{:?} {:?}", names(&at_once), names(&one_by_one));
    let mut listed = 0;
    for (r, can) in at_once.groups().flat_map(|g| g.resources_by_stability()) {
        if can.supports_operation(kube::discovery::verbs::LIST) {
            let all: Api<DynamicObject> = Api::all_with(client.clone(), &r);
            all.list(&ListParams::default()).await.with_context(|| format!("{}/{}", r.api_version, r.plural))?;
            listed += 1;
        }
    }
    ensure!(listed > 50, "only {listed} kinds");
    server.shutdown();
    Ok(())
}

/// Read, change or make, write: of two that began with the same state the second is told of the conflict.
#[tokio::test(flavor = "multi_thread")]
async fn entries() -> Result<()> {
    let (server, _dir) = start().await?;
    let spaces: Api<Namespace> = Api::all(server.client(User::new("admin", &["system:masters"])));
    let (mut one, mut two) = (
        spaces.entry("made").await?.or_insert(Default::default),
        spaces.entry("made").await?.or_insert(Default::default),
    );
    one.commit(&PostParams::default()).await?;
    ensure!(two.commit(&PostParams::default()).await.is_err(), "made twice");
    ensure!(
        one.get().status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Active")),
        "no phase: {:?}",
        one.get()
    );
    let mark = |n: &mut Namespace| drop(n.labels_mut().insert("a".into(), "b".into()));
    let (mut one, mut two) =
        (spaces.entry("made").await?.and_modify(mark), spaces.entry("made").await?.and_modify(mark));
    if let Entry::Occupied(one) = &mut one {
        one.commit(&PostParams::default()).await?;
    }
    let Entry::Occupied(two) = &mut two else { anyhow::bail!("not found") };
    ensure!(
        matches!(two.commit(&PostParams::default()).await, Err(CommitError::Save(kube::Error::Api(s))) if s.code == 409)
    );
    server.shutdown();
    Ok(())
}
