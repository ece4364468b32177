//! The audit log of a whole server: what clients do is in it, as the policy says.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use skiff_apiserver::Server;
use skiff_apiserver::audit::{About, Audit, Level, LogConfig, Policy};
use skiff_apiserver::auth::User;
use skiff_storage::embedded::{Embedded, Options};

async fn server(dir: &Path, policy: &str) -> Server {
    let config = LogConfig { path: dir.join("audit.log"), max_age_days: 0, max_backups: 0, max_size_mb: 0 };
    let audit = Audit::open(Policy::parse(policy).unwrap(), config).unwrap();
    let store = Embedded::open(dir.join("data"), Options::default()).unwrap();
    Server::builder(Arc::new(store)).audit(Some(Arc::new(audit))).start().await.unwrap()
}

/// The events in the log once there are `count` that fit.
async fn events(dir: &Path, count: usize, fits: impl Fn(&Value) -> bool) -> Vec<Value> {
    let begun = Instant::now();
    loop {
        let text = std::fs::read_to_string(dir.join("audit.log")).unwrap();
        let whole = text.lines().filter_map(|l| serde_json::from_str(l).ok());
        let found: Vec<Value> = whole.filter(|e| fits(e)).collect();
        if found.len() >= count {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{} of {count} in {text}", found.len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
rules:
- {level: Metadata, resources: [{group: "", resources: [secrets]}]}
- {level: RequestResponse, omitStages: [RequestReceived], users: [alice], resources: [{group: "", resources: [configmaps, pods]}]}
- {level: None}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_recorded_is_what_the_policy_says() {
    let dir = tempfile::tempdir().unwrap();
    let server = server(dir.path(), POLICY).await;
    let alice = server.client(User::new("alice", &["system:masters"]));
    let maps = Api::<ConfigMap>::namespaced(alice.clone(), "default");
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "m"}, "data": {"a": "b"}})).unwrap();
    maps.create(&PostParams::default(), &map).await.unwrap();
    maps.patch("m", &PatchParams::default(), &Patch::Merge(json!({"data": {"a": "c"}}))).await.unwrap();
    maps.get("none").await.unwrap_err();
    maps.list(&ListParams::default()).await.unwrap();
    let secrets = Api::<Secret>::namespaced(alice, "default");
    let secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": "s"}, "stringData": {"key": "hush"}})).unwrap();
    secrets.create(&PostParams::default(), &secret).await.unwrap();
    // A refused one, as somebody else.
    let bob = server.client(User::new("bob", &[]));
    Api::<Secret>::namespaced(bob.clone(), "default").get("s").await.unwrap_err();
    Api::<ConfigMap>::namespaced(bob, "default").get("m").await.unwrap_err();

    let all = events(dir.path(), 8, |_| true).await;
    assert_eq!(all.len(), 8, "{all:#?}");
    let of = |verb: &str, stage: &str, resource: &str| -> &Value {
        let mut fit =
            all.iter().filter(|e| e["verb"] == verb && e["stage"] == stage && e["objectRef"]["resource"] == resource);
        fit.next().unwrap_or_else(|| panic!("no {verb} {stage} {resource} in {all:#?}"))
    };
    let created = of("create", "ResponseComplete", "configmaps");
    assert_eq!((&created["level"], &created["user"]["username"]), (&json!("RequestResponse"), &json!("alice")));
    assert_eq!(created["requestObject"]["data"]["a"], "b");
    assert_eq!(created["responseObject"]["metadata"]["name"], "m");
    assert!(created["responseObject"]["metadata"].get("managedFields").is_none());
    assert_eq!(created["responseStatus"]["code"], 201);
    assert_eq!(created["annotations"]["authorization.k8s.io/decision"], "allow");
    assert_eq!((&created["kind"], &created["apiVersion"]), (&json!("Event"), &json!("audit.k8s.io/v1")));
    let patched = of("patch", "ResponseComplete", "configmaps");
    assert_eq!((&patched["requestObject"], &patched["objectRef"]["name"]), (&json!({"data": {"a": "c"}}), &json!("m")));
    let listed = of("list", "ResponseComplete", "configmaps");
    let names: Vec<_> =
        listed["responseObject"]["items"].as_array().unwrap().iter().map(|i| &i["metadata"]["name"]).collect();
    assert!(names.contains(&&json!("m")), "{names:?}");
    let missing = of("get", "ResponseComplete", "configmaps");
    assert_eq!(
        (&missing["responseStatus"]["code"], &missing["responseStatus"]["reason"]),
        (&json!(404), &json!("NotFound"))
    );
    // Secrets: that it happened, at both stages, and nothing of what is in them.
    of("create", "RequestReceived", "secrets");
    let secret = of("create", "ResponseComplete", "secrets");
    assert!(secret.get("requestObject").is_none() && secret.get("responseObject").is_none(), "{secret}");
    assert!(!all.iter().any(|e| e.to_string().contains("hush")));
    let refused = of("get", "ResponseComplete", "secrets");
    assert_eq!(
        (&refused["annotations"]["authorization.k8s.io/decision"], &refused["user"]["username"]),
        (&json!("forbid"), &json!("bob"))
    );
    assert_eq!(refused["responseStatus"]["code"], 403);
    let ids: std::collections::BTreeSet<_> = all.iter().map(|e| e["auditID"].to_string()).collect();
    assert_eq!(ids.len(), 6, "one id for each request, whatever its stages");
}

/// The policy that docs/audit.md recommends: what is in Secrets is not recorded, changes are.
#[test]
fn the_example_keeps_secrets() {
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/examples/audit-policy.yaml")).unwrap();
    let policy = Policy::parse(&text).unwrap();
    let level = |verb: &str, group: &str, resource: &str, subresource: &str| {
        let about = About {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: "a".into(),
            name: "x".into(),
            ..About::default()
        };
        policy.decide(&User::new("alice", &[]), &about).level
    };
    for verb in ["get", "list", "create", "update", "patch", "delete"] {
        assert_eq!(level(verb, "", "secrets", ""), Level::Metadata, "{verb}");
    }
    assert_eq!(level("create", "", "serviceaccounts", "token"), Level::Metadata);
    assert_eq!(level("create", "authentication.k8s.io", "tokenreviews", ""), Level::Metadata);
    assert_eq!(level("create", "", "pods", "exec"), Level::Request);
    assert_eq!(level("create", "rbac.authorization.k8s.io", "roles", ""), Level::RequestResponse);
    assert_eq!(level("update", "apps", "deployments", ""), Level::Request);
    assert_eq!(level("get", "apps", "deployments", ""), Level::Metadata);
    assert_eq!(level("update", "coordination.k8s.io", "leases", ""), Level::None);
}

#[tokio::test(flavor = "multi_thread")]
async fn long_answers_have_a_beginning_and_an_end_and_admission_has_its_say() {
    let dir = tempfile::tempdir().unwrap();
    let policy = POLICY.replace("- {level: None}", "- {level: Metadata, namespaces: [strict]}\n- {level: None}");
    let server = server(dir.path(), &policy).await;
    let admin = server.client(User::new("admin", &["system:masters"]));
    let labels =
        json!({"pod-security.kubernetes.io/audit": "restricted", "pod-security.kubernetes.io/warn": "privileged"});
    let namespace = serde_json::from_value(json!({"metadata": {"name": "strict", "labels": labels}})).unwrap();
    Api::<Namespace>::all(admin.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    let account = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
    let accounts = Api::<k8s_openapi::api::core::v1::ServiceAccount>::namespaced(admin.clone(), "strict");
    accounts.create(&PostParams::default(), &account).await.unwrap();
    let pods = Api::<Pod>::namespaced(admin.clone(), "strict");
    {
        use futures::StreamExt as _;
        let mut watch = pods.watch(&kube::api::WatchParams::default(), "0").await.unwrap().boxed();
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        watch.next().await.unwrap().unwrap();
        events(dir.path(), 1, |e| e["verb"] == "watch" && e["stage"] == "ResponseStarted").await;
    }
    events(dir.path(), 1, |e| e["verb"] == "watch" && e["stage"] == "ResponseComplete").await;
    let said = |e: &Value| {
        e["annotations"]["pod-security.kubernetes.io/audit-violations"].as_str().unwrap_or_default().to_owned()
    };
    let created = events(dir.path(), 1, |e| e["verb"] == "create" && !said(e).is_empty()).await;
    assert!(said(&created[0]).starts_with("would violate PodSecurity \"restricted:latest\": "), "{}", created[0]);
    assert_eq!(created[0]["annotations"]["pod-security.kubernetes.io/enforce-policy"], "privileged:latest");
}
