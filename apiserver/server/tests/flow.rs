//! Priority and fairness: what FlowSchemas say of the priority level that they name, as upstream's server (kube-apiserver
//! v1.37.0) has them say it; what answers carry; and who is served when one asks for everything.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt as _;

use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use serde_json::json;
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_storage::embedded::{Embedded, Options};
use tokio::sync::{mpsc, watch};

mod support;

use support::{MAPS, call, put, start};

/// Seats of the server that is flooded, and with how many requests.
const SEATS: u32 = 12;
const FLOOD: usize = 400;

/// Waits until the schema says so of its level.
async fn says(client: &Client, name: &str, status: &str, reason: &str, message: &str) -> FlowSchema {
    let wanted = |o: Option<&FlowSchema>| {
        let conditions = o.and_then(|o| o.status.as_ref()?.conditions.as_ref());
        conditions.is_some_and(|all| {
            all.iter().any(|c| {
                let said = [&c.status, &c.reason, &c.message].map(Option::as_deref);
                c.type_ == "Dangling" && said == [Some(status), Some(reason), Some(message)]
            })
        })
    };
    let waited = await_condition(Api::<FlowSchema>::all(client.clone()), name, wanted);
    tokio::time::timeout(Duration::from_secs(20), waited).await.expect("no such condition").unwrap().unwrap()
}

#[tokio::test]
async fn a_level_that_comes_and_goes() {
    const GONE: &str =
        r#"This FlowSchema references the PriorityLevelConfiguration object named "shy" but there is no such object"#;
    const THERE: &str = r#"This FlowSchema references the PriorityLevelConfiguration object named "shy" and it exists"#;
    const ELSE: &str =
        r#"This FlowSchema references the PriorityLevelConfiguration object named "exempt" and it exists"#;
    let dir = tempfile::tempdir().unwrap();
    let (_server, client) = start(dir.path()).await;
    let schemas = Api::<FlowSchema>::all(client.clone());
    let levels = Api::<PriorityLevelConfiguration>::all(client.clone());
    let schema = json!({"metadata": {"name": "one"}, "spec": {"priorityLevelConfiguration": {"name": "shy"}}});
    schemas.create(&PostParams::default(), &serde_json::from_value(schema).unwrap()).await.unwrap();
    let said = says(&client, "one", "True", "NotFound", GONE).await;
    let managers = said.metadata.managed_fields.unwrap();
    let wrote = managers.iter().find(|m| m.subresource.as_deref() == Some("status")).unwrap();
    assert_eq!(wrote.manager.as_deref(), Some("api-priority-and-fairness-config-consumer-v1"));
    assert_eq!(wrote.operation.as_deref(), Some("Apply"));
    assert_eq!(said.metadata.generation, Some(1), "a status is no new generation");

    let level = json!({"metadata": {"name": "shy"}, "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}});
    levels.create(&PostParams::default(), &serde_json::from_value(level).unwrap()).await.unwrap();
    says(&client, "one", "False", "Found", THERE).await;
    levels.delete("shy", &DeleteParams::default()).await.unwrap();
    says(&client, "one", "True", "NotFound", GONE).await;
    let moved = json!({"spec": {"priorityLevelConfiguration": {"name": "exempt"}}});
    schemas.patch("one", &PatchParams::default(), &Patch::Merge(moved)).await.unwrap();
    says(&client, "one", "False", "Found", ELSE).await;
    // Also where somebody else writes otherwise.
    let lie = json!({"status": {"conditions": [{"type": "Dangling", "status": "True", "reason": "Lie", "message": "none",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    schemas.patch_status("one", &PatchParams::default(), &Patch::Merge(lie)).await.unwrap();
    says(&client, "one", "False", "Found", ELSE).await;
}

/// What a user is told: status, UIDs of schema and level, when to come again, body.
async fn ask(client: &Client, path: &str) -> (u16, [String; 2], Option<String>, String) {
    let request = http::Request::get(path).header("accept", "application/json").body(vec![].into()).unwrap();
    let answer = client.send(request).await.unwrap();
    let headers = answer.headers().clone();
    let header = |name: &str| headers.get(name).map(|v| v.to_str().unwrap().to_owned());
    let uids = ["x-kubernetes-pf-flowschema-uid", "x-kubernetes-pf-prioritylevel-uid"];
    let (status, uids, after) =
        (answer.status().as_u16(), uids.map(|n| header(n).unwrap_or_default()), header("retry-after"));
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, uids, after, String::from_utf8(body.to_vec()).unwrap())
}

/// The UIDs of a schema and of a level.
async fn uids(client: &Client, schema: &str, level: &str) -> [String; 2] {
    let schema = Api::<FlowSchema>::all(client.clone()).get(schema).await.unwrap();
    let level = Api::<PriorityLevelConfiguration>::all(client.clone()).get(level).await.unwrap();
    [schema.metadata.uid.unwrap(), level.metadata.uid.unwrap()]
}

#[tokio::test]
async fn every_request_falls_under_a_schema() {
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = start(dir.path()).await;
    let of = |name: &str, groups: &[&str]| server.client(User::new(name, groups));
    for (who, path, schema, level) in [
        (client.clone(), "/api/v1/nodes", "exempt", "exempt"),
        (of("somebody", &[]), "/api/v1/nodes", "global-default", "global-default"),
        (of("somebody", &[]), "/healthz", "probes", "exempt"),
        (of("somebody", &[]), "/healthz/ping", "probes", "exempt"),
        (of("somebody", &[]), "/version", "global-default", "global-default"),
        (of("system:kube-scheduler", &[]), "/api/v1/pods", "kube-scheduler", "workload-high"),
        (
            of("system:kube-scheduler", &[]),
            "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/a",
            "system-leader-election",
            "leader-election",
        ),
        (of("system:node:a", &["system:nodes"]), "/api/v1/nodes/a", "system-node-high", "node-high"),
        (of("system:node:a", &["system:nodes"]), "/api/v1/pods", "system-nodes", "system"),
        (
            of("system:serviceaccount:kube-system:a", &["system:serviceaccounts"]),
            "/api/v1/pods",
            "kube-system-service-accounts",
            "workload-high",
        ),
        (
            of("system:serviceaccount:kube-systems:a", &["system:serviceaccounts"]),
            "/api/v1/pods?watch=1&timeoutSeconds=1",
            "service-accounts",
            "workload-low",
        ),
    ] {
        assert_eq!(ask(&who, path).await.1, uids(&client, schema, level).await, "{path} is for {schema}");
    }
    // Whoever deletes what everybody falls under is not served less.
    let all = Api::<FlowSchema>::all(client.clone());
    for name in ["exempt", "global-default"] {
        all.delete(name, &DeleteParams::default()).await.unwrap();
    }
    says_of(&client, "/api/v1/nodes", "").await;
    let catch_all = uids(&client, "catch-all", "catch-all").await;
    says_of(&of("somebody", &[]), "/api/v1/nodes", &catch_all[0]).await;
    let numbers = ask(&client, "/metrics").await.3;
    assert!(numbers.contains(
        r#"apiserver_flowcontrol_dispatched_requests_total{flow_schema="probes",priority_level="exempt"} 2"#
    ));
    assert!(numbers.contains(r#"apiserver_flowcontrol_nominal_limit_seats{priority_level="global-default"} 49"#));
}

/// Asks until the answer is for this schema.
async fn says_of(client: &Client, path: &str, uid: &str) {
    let until = async {
        while ask(client, path).await.1[0] != uid {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), until).await.expect("the schema is not gone by");
}

/// One user floods the server with lists that he does not read, while a node renews its lease: it does not notice, and the one
/// who floods waits, or is told to come again.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_everything_delays_himself() {
    let dir = tempfile::tempdir().unwrap();
    let store = Embedded::open(dir.path(), Options::default()).unwrap();
    let server = Server::builder(Arc::new(store)).seats(SEATS).start().await.unwrap();
    let client = server.client(User::new("admin", &["system:masters"]));
    for i in 0..40 {
        let name = format!("m-{i}");
        put(&client, MAPS, &json!({"metadata": {"name": name}, "data": {"a": "x".repeat(20_000)}})).await;
    }
    let role = json!({"metadata": {"name": "reads"}, "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]});
    put(&client, "/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await;
    let bound = json!({"metadata": {"name": "reads"}, "subjects": [{"kind": "User", "name": "greedy"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reads"}});
    put(&client, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &bound).await;
    let lease = json!({"metadata": {"name": "n"}, "spec": {"holderIdentity": "n", "leaseDurationSeconds": 40}});
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    put(&client, leases, &lease).await;

    let (greedy, node) =
        (server.client(User::new("greedy", &[])), server.client(User::new("system:node:n", &["system:nodes"])));
    let (tell, mut heads) = mpsc::unbounded_channel();
    let (release, released) = watch::channel(false);
    let flood: Vec<_> = (0..FLOOD)
        .map(|_| {
            let (greedy, tell, mut released) = (greedy.clone(), tell.clone(), released.clone());
            tokio::spawn(async move {
                let request = http::Request::get(MAPS).body(vec![].into()).unwrap();
                let answer = greedy.send(request).await.unwrap();
                tell.send((answer.status().as_u16(), answer.headers().clone())).unwrap();
                released.wait_for(|r| *r).await.unwrap();
                let (code, body) = (answer.status().as_u16(), answer.into_body().collect().await.unwrap());
                (code, String::from_utf8(body.to_bytes().to_vec()).unwrap())
            })
        })
        .collect();
    // Six queues of fifty are dealt to one user: so many wait, the others know where they are.
    let mut told = vec![];
    for _ in 0..FLOOD - 300 {
        told.push(tokio::time::timeout(Duration::from_secs(20), heads.recv()).await.unwrap().unwrap());
    }
    let own = format!("{leases}/n");
    for i in 0..20 {
        let renewed = json!({"spec": {"renewTime": format!("2026-01-01T00:00:{i:02}.000000Z")}});
        let renewal = call(&node, "PATCH", &own, &renewed);
        let (code, said, _) = tokio::time::timeout(Duration::from_secs(5), renewal).await.unwrap();
        assert_eq!(code, 200, "{said}");
    }
    let schema = uids(&client, "global-default", "global-default").await;
    let refused: Vec<_> = told.iter().filter(|(code, _)| *code == 429).map(|(_, headers)| headers).collect();
    assert!(
        refused.len() >= FLOOD - 300 - SEATS as usize,
        "no more than there are seats are served: {}",
        refused.len()
    );
    for headers in &refused {
        assert_eq!(headers["x-kubernetes-pf-flowschema-uid"], *schema[0]);
        assert_eq!(headers["x-kubernetes-pf-prioritylevel-uid"], *schema[1]);
        assert!(headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1);
    }
    release.send_replace(true);
    let mut answers = vec![];
    for one in flood {
        answers.push(tokio::time::timeout(Duration::from_secs(20), one).await.unwrap().unwrap());
    }
    let served = answers.iter().filter(|(code, _)| *code == 200).count();
    assert_eq!(served + refused.len(), FLOOD, "who has waited is served");
    assert!(answers.iter().all(|(code, body)| *code == 200 || body == "Too many requests, please try again later.\n"));
    let numbers = ask(&client, "/metrics").await.3;
    let counted = format!(
        r#"flow_schema="global-default",priority_level="global-default",reason="queue-full"}} {}"#,
        refused.len()
    );
    assert!(numbers.contains(&counted), "{numbers}");
    let mut lines = numbers.lines().filter(|l| l.starts_with("apiserver_request_total") && l.contains(r#"code="429""#));
    let line = lines.next().expect("refusals are counted");
    assert!(line.contains(r#"verb="LIST""#) && line.ends_with(&format!(" {}", refused.len())), "{line}");
}
