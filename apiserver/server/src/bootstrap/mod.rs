//! Objects that exist from the first second: system namespaces, the RBAC policy, the `kubernetes` Service, priority
//! classes, flow control, and what aggregated servers read.
//!
//! Everything is written through the store with the kinds' own forms. What an administrator changed is kept: RBAC objects
//! are brought back to the policy unless `rbac.authorization.kubernetes.io/autoupdate` is "false"; the rest is only made
//! when missing.

mod peers;

use std::sync::Arc;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use skiff_core::meta;
use skiff_core::status::Status;
use skiff_storage::{Compare, Error, Op};

use crate::registry::{object, storage_error};
use crate::server::Inner;

/// The RBAC policy of upstream v1.37, as recorded facts: one object a line.
const POLICY: &str = include_str!("policy.json");
/// The flow control of upstream v1.37, as recorded facts: one object a line.
const FLOW: &str = include_str!("flow.json");
/// Writes under way at a time.
const WRITES_AT_ONCE: usize = 64;
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// Makes what is missing.
///
/// # Errors
/// When the store refuses a write.
pub async fn run(server: &Arc<Inner>) -> Result<(), Status> {
    for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
        ensure(server, "", "namespaces", namespace(name)).await?;
    }
    let policy: Vec<Value> = serde_json::from_str(POLICY).map_err(|e| Status::internal(format!("policy: {e}")))?;
    together(policy.into_iter().map(|obj| {
        let plural = match obj["kind"].as_str() {
            Some("ClusterRole") => "clusterroles",
            Some("Role") => "roles",
            Some("ClusterRoleBinding") => "clusterrolebindings",
            _ => "rolebindings",
        };
        reconcile_policy(server, plural, obj)
    }))
    .await?;
    for (name, value, text) in [
        (
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
        (
            "system-node-critical",
            2_000_001_000,
            "Used for system critical pods that must not be moved from their current node.",
        ),
    ] {
        let v = json!({"kind": "PriorityClass", "apiVersion": "scheduling.k8s.io/v1", "metadata": {"name": name, "generation": 1},
            "value": value, "description": text, "preemptionPolicy": "PreemptLowerPriority"});
        ensure(server, "scheduling.k8s.io", "priorityclasses", v).await?;
    }
    together(flow().into_iter().map(|mut obj| {
        let plural = if obj["kind"] == "FlowSchema" { "flowschemas" } else { "prioritylevelconfigurations" };
        obj["status"] = json!({});
        // Upstream's servers say so of every schema that they follow; one behind this one tries it again and again otherwise.
        if let Some(level) = obj["spec"]["priorityLevelConfiguration"]["name"].as_str() {
            obj["status"] = json!({"conditions": [crate::flow::dangling(level, true)]});
        }
        ensure(server, "flowcontrol.apiserver.k8s.io", plural, obj)
    }))
    .await?;
    api_services(server).await?;
    kubernetes_service(server).await?;
    let cidr = json!({"kind": "ServiceCIDR", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": "kubernetes", "finalizers": ["networking.k8s.io/service-cidr-finalizer"]},
        "spec": {"cidrs": [server.config.service_cidr.trunc().to_string()]},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "", "lastTransitionTime": crate::verbs::write::now(),
            "message": "Kubernetes Service CIDR is ready"}]}});
    ensure(server, "networking.k8s.io", "servicecidrs", cidr).await?;
    let auth = json!({"kind": "ConfigMap", "apiVersion": "v1",
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {"client-ca-file": server.config.ca, "requestheader-client-ca-file": server.config.front_ca,
            "requestheader-allowed-names": json!([crate::FRONT_PROXY]).to_string(),
            "requestheader-username-headers": "[\"X-Remote-User\"]", "requestheader-uid-headers": "[\"X-Remote-Uid\"]",
            "requestheader-group-headers": "[\"X-Remote-Group\"]",
            "requestheader-extra-headers-prefix": "[\"X-Remote-Extra-\"]"}});
    overwrite(server, "", "configmaps", auth, "data").await?;
    Ok(())
}

/// The flow control that every cluster begins with: FlowSchemas and PriorityLevelConfigurations.
pub fn flow() -> Vec<Value> {
    // A part of the program, and read at every start.
    serde_json::from_str(FLOW).unwrap_or_default()
}

/// What this cluster's own components need beyond upstream's objects.
///
/// # Errors
/// When the store refuses a write.
pub async fn extras(server: &Arc<Inner>) -> Result<(), Status> {
    // The class of claims that name none: directories on the disk of the node that a claim's first pod goes to. Who wants
    // another default takes the annotation off; a class that was deleted comes back with the next start.
    let class = json!({"kind": "StorageClass", "apiVersion": "storage.k8s.io/v1",
        "metadata": {"name": "standard", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "skiff.dev/local-path", "reclaimPolicy": "Delete", "volumeBindingMode": "WaitForFirstConsumer",
        "allowVolumeExpansion": true});
    ensure(server, "storage.k8s.io", "storageclasses", class).await?;
    // Upstream's scheduler reads no ConfigMap; ours reads one.
    let meta =
        json!({"name": "skiff::scheduler-policy", "namespace": "kube-system", "annotations": {AUTOUPDATE: "true"}});
    let role = json!({"kind": "Role", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": meta,
        "rules": [{"verbs": ["get", "list", "watch"], "apiGroups": [""], "resources": ["configmaps"],
            "resourceNames": ["skiff-scheduler"]}]});
    reconcile_policy(server, "roles", role).await?;
    let binding = json!({"kind": "RoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": meta,
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "system:kube-scheduler"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "skiff::scheduler-policy"}});
    reconcile_policy(server, "rolebindings", binding).await?;
    usage(server).await?;
    ingress(server).await?;
    network_policies(server).await
}

/// What says that `metrics.k8s.io` is served here, and who may read it: whoever may view.
async fn usage(server: &Arc<Inner>) -> Result<(), Status> {
    use crate::usage::{GROUP, VERSION};
    let to = |role: &str| format!("rbac.authorization.k8s.io/aggregate-to-{role}");
    let role = json!({"kind": "ClusterRole", "apiVersion": "rbac.authorization.k8s.io/v1",
        "metadata": {"name": "system:aggregated-metrics-reader", "annotations": {AUTOUPDATE: "true"},
            "labels": {to("admin"): "true", to("edit"): "true", to("view"): "true"}},
        "rules": [{"verbs": ["get", "list", "watch"], "apiGroups": [GROUP], "resources": ["pods", "nodes"]}]});
    reconcile_policy(server, "clusterroles", role).await?;
    // Policies of the scheduler go by what nodes use.
    let scheduler = json!([{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "system:kube-scheduler"}]);
    let rule = json!([{"verbs": ["list"], "apiGroups": [GROUP], "resources": ["nodes"]}]);
    grant(server, "skiff::scheduler-usage", scheduler, rule).await?;
    api_service(server, GROUP, VERSION, 100, 100, "onstart").await
}

/// The ingress class that Ingresses without one get, and the rights of the gateways (the proxies) and of the controller
/// that gives Ingresses their addresses. The proxy of a node that joined has the node's identity, which the Node
/// authoriser lets read the Secrets that Ingresses name, and no others.
async fn ingress(server: &Arc<Inner>) -> Result<(), Status> {
    let class = json!({"kind": "IngressClass", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": "skiff", "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
        "spec": {"controller": "skiff.dev/ingress"}});
    ensure(server, "networking.k8s.io", "ingressclasses", class).await?;
    let rule = |verbs: &[&str], group: &str, resources: &[&str]| json!({"verbs": verbs, "apiGroups": [group], "resources": resources});
    let read = ["get", "list", "watch"];
    let both = || rule(&read, "networking.k8s.io", &["ingresses", "ingressclasses"]);
    let user = |name: &str| json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name});
    let account = json!({"kind": "ServiceAccount", "name": "ingress-controller", "namespace": "kube-system"});
    let gateway = vec![both(), rule(&["list", "watch"], "", &["secrets"])];
    grant(server, "skiff::ingress-gateway", json!([user("system:kube-proxy")]), json!(gateway)).await?;
    let nodes = json!([{"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": "system:nodes"}]);
    grant(server, "skiff::ingress-nodes", nodes, json!([both()])).await?;
    let controller = vec![
        both(),
        rule(&["update", "patch"], "networking.k8s.io", &["ingresses/status"]),
        rule(&["get"], "", &["secrets"]),
        rule(&["create", "patch", "update"], "events.k8s.io", &["events"]),
        rule(&["create", "patch", "update"], "", &["events"]),
    ];
    grant(server, "skiff::ingress-controller", json!([account]), json!(controller)).await
}

/// What the proxies read to enforce NetworkPolicies: who the policies hold for and whom they name. The proxy of a node
/// that joined has the node's identity, whose pods the Node authoriser already lets it read.
async fn network_policies(server: &Arc<Inner>) -> Result<(), Status> {
    let rule = |group: &str, resources: &[&str]| json!({"verbs": ["list", "watch"], "apiGroups": [group], "resources": resources});
    let subject = |kind: &str, name: &str| json!({"kind": kind, "apiGroup": "rbac.authorization.k8s.io", "name": name});
    let proxies = json!([subject("User", "system:kube-proxy"), subject("Group", "system:nodes")]);
    let rules = json!([rule("networking.k8s.io", &["networkpolicies"]), rule("", &["namespaces"])]);
    grant(server, "skiff::network-policies", proxies, rules).await?;
    let proxy = json!([subject("User", "system:kube-proxy")]);
    grant(server, "skiff::network-policy-pods", proxy, json!([rule("", &["pods"])])).await
}

/// A role of that name in the whole cluster, and who has it.
async fn grant(server: &Arc<Inner>, name: &str, subjects: Value, rules: Value) -> Result<(), Status> {
    let meta = json!({"name": name, "annotations": {AUTOUPDATE: "true"}});
    let role =
        json!({"kind": "ClusterRole", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": meta, "rules": rules});
    reconcile_policy(server, "clusterroles", role).await?;
    let binding = json!({"kind": "ClusterRoleBinding", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": meta,
        "subjects": subjects,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}});
    reconcile_policy(server, "clusterrolebindings", binding).await
}

/// Makes writes that do not need each other. The store takes all that waits into one commit with one sync, so that a first
/// start costs a few syncs and not one per object.
async fn together(writes: impl Iterator<Item = impl Future<Output = Result<(), Status>>>) -> Result<(), Status> {
    stream::iter(writes).map(Ok).try_for_each_concurrent(WRITES_AT_ONCE, |write| write).await
}

fn namespace(name: &str) -> Value {
    json!({"kind": "Namespace", "apiVersion": "v1",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}})
}

/// Creates the object unless one of its name exists.
async fn ensure(server: &Arc<Inner>, group: &str, plural: &str, obj: Value) -> Result<(), Status> {
    let objects = server.collection(group, plural)?;
    if objects.peek(meta::namespace(&obj), meta::name(&obj)).is_none() {
        // Where another server was faster the object is there.
        objects.make(obj).await?;
    }
    Ok(())
}

/// Brings one RBAC object back to the policy: what the policy grants is added, nothing an administrator added is removed.
async fn reconcile_policy(server: &Arc<Inner>, plural: &str, wanted: Value) -> Result<(), Status> {
    const GROUP: &str = "rbac.authorization.k8s.io";
    let objects = server.collection(GROUP, plural)?;
    let key = objects.key(meta::namespace(&wanted), meta::name(&wanted));
    let Some(found) = objects.cache.get(&key) else { return ensure(server, GROUP, plural, wanted).await };
    let mut current: Value = serde_json::from_slice(&found.value).unwrap_or_default();
    if current["metadata"]["annotations"][AUTOUPDATE] == "false" {
        return Ok(());
    }
    let mut changed = false;
    for list in ["rules", "subjects"] {
        for item in wanted[list].as_array().into_iter().flatten() {
            let covered = match list {
                "rules" => {
                    let held = [Arc::new(crate::auth::rbac::rules_of(&current))];
                    crate::auth::rbac::missing(&held, &[crate::auth::rbac::Rule::parse(item)]).is_empty()
                }
                _ => current[list].as_array().is_some_and(|a| a.contains(item)),
            };
            if covered || wanted.get("aggregationRule").is_some() {
                continue;
            }
            match current.get_mut(list).and_then(Value::as_array_mut) {
                Some(a) => a.push(item.clone()),
                None => current[list] = json!([item]),
            }
            changed = true;
        }
    }
    if !changed {
        return Ok(());
    }
    match objects.store.commit(&key, Compare::At(found.revision), Op::Put(object::encode(&current))).await {
        Ok(_) | Err(Error::Conflict { .. }) => Ok(()),
        Err(e) => Err(storage_error(e)),
    }
}

/// Label of the APIServices that servers make themselves.
pub(crate) const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Where each group stands among the others; upstream's numbers.
const GROUP_PRIORITY: &[(&str, i64)] = &[
    ("", 18_000),
    ("apps", 17_800),
    ("events.k8s.io", 17_750),
    ("authentication.k8s.io", 17_700),
    ("authorization.k8s.io", 17_600),
    ("autoscaling", 17_500),
    ("batch", 17_400),
    ("certificates.k8s.io", 17_300),
    ("networking.k8s.io", 17_200),
    ("policy", 17_100),
    ("rbac.authorization.k8s.io", 17_000),
    ("storage.k8s.io", 16_800),
    ("apiextensions.k8s.io", 16_700),
    ("admissionregistration.k8s.io", 16_700),
    ("scheduling.k8s.io", 16_600),
    ("coordination.k8s.io", 16_500),
    ("node.k8s.io", 16_300),
    ("discovery.k8s.io", 16_200),
    ("flowcontrol.apiserver.k8s.io", 16_100),
    ("resource.k8s.io", 15_900),
];

/// The APIServices of the groups this server serves itself.
async fn api_services(server: &Arc<Inner>) -> Result<(), Status> {
    let writes = skiff_core::resources::group_versions().filter_map(|(group, version)| {
        let (_, priority) = GROUP_PRIORITY.iter().find(|(g, _)| *g == group)?;
        let rank = match (group, version) {
            ("", _) => 1,
            ("autoscaling", "v2") => 30,
            _ => 15,
        };
        Some(api_service(server, group, version, *priority, rank, "onstart"))
    });
    together(writes).await
}

/// The APIService of a group-version that is served here.
///
/// # Errors
/// When the store refuses a write.
pub(crate) async fn api_service(
    server: &Arc<Inner>,
    group: &str,
    version: &str,
    priority: i64,
    rank: i64,
    managed: &str,
) -> Result<(), Status> {
    let mut spec = json!({"version": version, "groupPriorityMinimum": priority, "versionPriority": rank});
    if !group.is_empty() {
        spec["group"] = group.into();
    }
    let obj = json!({"kind": "APIService", "apiVersion": "apiregistration.k8s.io/v1",
        "metadata": {"name": format!("{version}.{group}"), "labels": {AUTOMANAGED: managed}},
        "spec": spec,
        "status": {"conditions": [{"type": "Available", "status": "True", "reason": "Local",
            "lastTransitionTime": crate::verbs::write::now(), "message": "Local APIServices are always available"}]}});
    ensure(server, "apiregistration.k8s.io", "apiservices", obj).await
}

/// The Service of the API server, with its endpoints: the address may have changed since the last start.
async fn kubernetes_service(server: &Arc<Inner>) -> Result<(), Status> {
    let first = server.addresses.first().to_string();
    let (address, port) = server.config.advertise;
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let service = json!({"kind": "Service", "apiVersion": "v1",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"type": "ClusterIP", "clusterIP": first, "clusterIPs": [first], "ipFamilies": [family],
            "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": port}]},
        "status": {"loadBalancer": {}}});
    ensure(server, "", "services", service).await?;
    // The name every cluster answers DNS under: the tenth address, served by the proxy of each node.
    let tenth = server.addresses.nth(10).to_string();
    let dns = json!({"kind": "Service", "apiVersion": "v1",
        "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns",
            "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"}},
        "spec": {"type": "ClusterIP", "clusterIP": tenth, "clusterIPs": [tenth], "ipFamilies": [family],
            "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 53},
                {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": 53}]},
        "status": {"loadBalancer": {}}});
    ensure(server, "", "services", dns).await?;
    peers::start(server).await
}

/// Creates the object, or replaces it when `part` differs.
async fn overwrite(server: &Arc<Inner>, group: &str, plural: &str, obj: Value, part: &str) -> Result<(), Status> {
    let objects = server.collection(group, plural)?;
    let key = objects.key(meta::namespace(&obj), meta::name(&obj));
    let Some(found) = objects.cache.get(&key) else { return ensure(server, group, plural, obj).await };
    let mut current: Value = serde_json::from_slice(&found.value).unwrap_or_default();
    if current[part] == obj[part] && current["ports"] == obj["ports"] {
        return Ok(());
    }
    for key in [part, "ports", "addressType"] {
        if let Some(v) = obj.get(key) {
            current[key] = v.clone();
        }
    }
    match objects.store.commit(&key, Compare::At(found.revision), Op::Put(object::encode(&current))).await {
        Ok(_) | Err(Error::Conflict { .. }) => Ok(()),
        Err(e) => Err(storage_error(e)),
    }
}
