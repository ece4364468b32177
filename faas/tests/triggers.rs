//! Triggers, against a real API server and functions that are made up.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use skiff_faas::api::Function;
use skiff_faas::asynchronous::Queue;
use skiff_faas::gateway::invoke::Call;
use skiff_faas::trigger::Triggers;
use support::{Fake, World, until, world};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What one run of the process has.
struct Run {
    triggers: Triggers,
    functions: Arc<Fake>,
    _stop: DropGuard,
}

fn run(w: &World, files: Option<&std::path::Path>) -> Run {
    let queue = Queue::new(w.client.clone(), "n1");
    let (functions, stop) = (Fake::with([]), CancellationToken::new());
    tokio::spawn(Arc::clone(&queue).run(functions.clone(), stop.clone()));
    let triggers = Triggers::new(w.client.clone(), queue, files.map(Into::into));
    Run { triggers, functions, _stop: stop.drop_guard() }
}

fn header<'a>(call: &'a Call, name: &str) -> &'a str {
    call.headers[name].to_str().unwrap()
}

fn body(call: &Call) -> Value {
    serde_json::from_slice(&call.body).unwrap()
}

async fn map(w: &World, name: &str, labels: Value) {
    let whole = json!({"metadata": {"name": name, "labels": labels}});
    w.api::<ConfigMap>().create(&PostParams::default(), &serde_json::from_value(whole).unwrap()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn time_calls_and_bad_schedules_are_told() {
    let w = world().await;
    let r = run(&w, None);
    let triggers = json!([{"name": "tick", "cron": {"schedule": "@every 1s", "body": "{\"x\":1}"}},
        {"name": "bad", "cron": {"schedule": "no"}}]);
    r.triggers.changed(&w.function("clock", json!({"triggers": triggers})).await);
    let calls = r.functions.until(2).await;
    assert_eq!((header(&calls[0], "ce-type"), header(&calls[0], "ce-specversion")), ("dev.skiff.cron", "1.0"));
    assert_eq!(
        (header(&calls[0], "ce-source"), body(&calls[0])),
        ("/functions/default/clock/triggers/tick", json!({"x": 1}))
    );
    assert_ne!(header(&calls[0], "ce-id"), header(&calls[1], "ce-id"));
    let api = w.api::<Function>();
    let told = |f: &Function| f.status.clone().unwrap_or_default().triggers;
    let f =
        until(&api, "clock", |f| told(f).values().any(|t| t.message.is_some()) && told(f)["tick"].last_time.is_some())
            .await;
    assert!(told(&f)["bad"].message.clone().unwrap().contains("unparseable schedule"));
    // Without its triggers it is silent.
    let none =
        api.patch("clock", &PatchParams::default(), &Patch::Merge(json!({"spec": {"triggers": []}}))).await.unwrap();
    r.triggers.changed(&none);
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let before = r.functions.calls.lock().len();
    tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    assert_eq!(r.functions.calls.lock().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_call_as_far_as_the_account_may_see_them() {
    let w = world().await;
    let named = |name: &str| json!({"metadata": {"name": name}});
    let account: ServiceAccount = serde_json::from_value(named("seer")).unwrap();
    w.api::<ServiceAccount>().create(&PostParams::default(), &account).await.unwrap();
    map(&w, "before", json!({"kind": "order"})).await;
    let watch = json!({"apiVersion": "v1", "kind": "ConfigMap", "events": ["ADDED", "DELETED"],
        "selector": {"matchLabels": {"kind": "order"}}});
    let spec = json!({"serviceAccountName": "seer", "triggers": [{"name": "orders", "watch": watch}]});
    let f = w.function("clerk", spec).await;
    let first = run(&w, None);
    first.triggers.changed(&f);
    let api = w.api::<Function>();
    let told = |f: &Function| f.status.clone().unwrap_or_default().triggers.remove("orders").unwrap_or_default();
    let refused = until(&api, "clerk", |f| told(f).message.is_some()).await;
    assert!(told(&refused).message.unwrap().contains("cannot list resource \"configmaps\""));

    let role = json!({"metadata": {"name": "see"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list", "watch"]}]});
    let role: Role = serde_json::from_value(role).unwrap();
    w.api::<Role>().create(&PostParams::default(), &role).await.unwrap();
    let binding = json!({"metadata": {"name": "see"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "see"},
        "subjects": [{"kind": "ServiceAccount", "name": "seer", "namespace": "default"}]});
    let binding: RoleBinding = serde_json::from_value(binding).unwrap();
    w.api::<RoleBinding>().create(&PostParams::default(), &binding).await.unwrap();
    until(&api, "clerk", |f| told(f).resource_version.is_some() && told(f).message.is_none()).await;
    map(&w, "other", json!({"kind": "bill"})).await;
    map(&w, "one", json!({"kind": "order"})).await;
    let calls = first.functions.until(1).await;
    assert_eq!(
        (header(&calls[0], "ce-type"), header(&calls[0], "ce-subject")),
        ("dev.skiff.object.added", "default/one")
    );
    assert_eq!((&body(&calls[0])["type"], &body(&calls[0])["object"]["kind"]), (&json!("ADDED"), &json!("ConfigMap")));
    let f = until(&api, "clerk", |f| told(f).last_time.is_some()).await;

    // Nothing runs for a while; what happened then is told afterwards, and nothing twice.
    drop(first);
    map(&w, "two", json!({"kind": "order"})).await;
    w.api::<ConfigMap>().delete("one", &Default::default()).await.unwrap();
    let again = run(&w, None);
    again.triggers.changed(&f);
    let calls = again.functions.until(2).await;
    let told: Vec<(&str, &str)> = calls.iter().map(|c| (header(c, "ce-type"), header(c, "ce-subject"))).collect();
    assert!(told.contains(&("dev.skiff.object.added", "default/two")), "{told:?}");
    assert!(told.contains(&("dev.skiff.object.deleted", "default/one")), "{told:?}");
    assert_eq!(told.len(), 2, "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_call() {
    let w = world().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("inbox")).unwrap();
    let r = run(&w, Some(dir.path()));
    let f = w.function("post", json!({"triggers": [{"name": "in", "files": {"path": "inbox"}}, {"name": "out", "files": {"path": "/etc"}}]})).await;
    r.triggers.changed(&f);
    let told = |f: &Function| f.status.clone().unwrap_or_default().triggers;
    let f = until(&w.api::<Function>(), "post", |f| {
        told(f).get("out").is_some_and(|t| t.message.is_some()) && told(f).contains_key("in")
    })
    .await;
    assert!(told(&f)["out"].message.clone().unwrap().contains("is not below"));
    // It is watched soon after it is in the status: what is written again and again is seen.
    let calls = async {
        for i in 0.. {
            std::fs::write(dir.path().join("inbox/letter"), format!("{i}")).unwrap();
            if !r.functions.calls.lock().is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(support::PATIENCE, calls).await.unwrap();
    let call = r.functions.until(1).await.remove(0);
    assert!(header(&call, "ce-type").starts_with("dev.skiff.file."));
    assert!(body(&call)["path"].as_str().unwrap().ends_with("/inbox/letter"));
}
