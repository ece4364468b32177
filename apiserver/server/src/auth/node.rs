//! The Node authoriser: a node agent may read what the pods bound to its node use, and nothing else of the kind.
//!
//! Upstream keeps a graph of pods, secrets, config maps and claims. Here the question is answered from the pods of the
//! node itself (an index of the pod cache), because a node has at most some hundred pods: no second structure to keep
//! in step. Everything that is not a question about such an object is answered by the fixed rules below.

use serde_json::Value;

use super::rbac::Attributes;

/// What the authoriser thinks of a request by a node agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opinion {
    /// Allowed.
    Allow,
    /// Not by this authoriser.
    None,
}

/// Decides for node `node`. `pods` answers the pods bound to it, `objects` those of a kind (group, plural) in a namespace
/// (both called only when needed): every node may have an ingress gateway, which reads the certificates that Ingresses
/// name.
#[must_use]
pub fn authorise(
    node: &str,
    a: &Attributes,
    pods: impl Fn() -> Vec<Value>,
    objects: impl Fn(&str, &str, &str) -> Vec<Value>,
) -> Opinion {
    let ok = |yes: bool| if yes { Opinion::Allow } else { Opinion::None };
    if !a.path.is_empty() {
        return Opinion::None;
    }
    let read_one = a.verb == "get" || ((a.verb == "list" || a.verb == "watch") && !a.name.is_empty());
    match (a.group.as_str(), a.resource.as_str()) {
        ("", "secrets" | "configmaps" | "persistentvolumeclaims" | "serviceaccounts") => {
            let served = || {
                a.resource == "secrets"
                    && objects("networking.k8s.io", "ingresses", &a.namespace).iter().any(|i| names(i, &a.name))
            };
            ok(read_one && (pods().iter().any(|p| uses(p, a)) || served()))
        }
        ("", "serviceaccounts/token") => {
            ok(a.verb == "create" && pods().iter().any(|p| in_namespace(p, a) && account(p) == a.name))
        }
        // What an agent may patch, the NodeRestriction plugin says: its finalizer on volumes that are its own directories.
        ("", "persistentvolumes") => ok(matches!(a.verb.as_str(), "get" | "list" | "watch" | "patch")),
        ("coordination.k8s.io", "leases") => ok(a.namespace == "kube-node-lease"
            && (a.verb == "create"
                || (a.name == node && matches!(a.verb.as_str(), "get" | "update" | "patch" | "delete")))),
        ("storage.k8s.io", "csinodes") => {
            ok(a.verb == "create"
                || (a.name == node && matches!(a.verb.as_str(), "get" | "update" | "patch" | "delete")))
        }
        ("storage.k8s.io", "csidrivers" | "volumeattachments") => {
            ok(matches!(a.verb.as_str(), "get" | "list" | "watch"))
        }
        // The last two are what the proxy of the node goes by, which is one program with its agent.
        ("", "services")
        | ("node.k8s.io", "runtimeclasses")
        | ("discovery.k8s.io", "endpointslices")
        | ("networking.k8s.io", "servicecidrs") => ok(matches!(a.verb.as_str(), "get" | "list" | "watch")),
        ("", "nodes") => ok(match a.verb.as_str() {
            "create" | "list" | "watch" | "get" => true,
            "update" | "patch" => a.name == node,
            _ => false,
        }),
        ("", "nodes/status") => ok(a.name == node && matches!(a.verb.as_str(), "update" | "patch")),
        ("", "pods") => ok(matches!(a.verb.as_str(), "get" | "list" | "watch" | "create" | "delete")),
        ("", "pods/status") => ok(matches!(a.verb.as_str(), "update" | "patch")),
        ("", "pods/eviction") => ok(a.verb == "create"),
        ("" | "events.k8s.io", "events") => ok(matches!(a.verb.as_str(), "create" | "update" | "patch")),
        ("certificates.k8s.io", "certificatesigningrequests") => {
            ok(matches!(a.verb.as_str(), "create" | "get" | "list" | "watch"))
        }
        ("certificates.k8s.io", "clustertrustbundles") => ok(matches!(a.verb.as_str(), "get" | "list" | "watch")),
        // Whose request it may make, the NodeRestriction plugin says. What is not there belongs to nobody.
        ("certificates.k8s.io", "podcertificaterequests") => {
            let others = || {
                let all = objects(&a.group, &a.resource, &a.namespace);
                all.iter().any(|r| skiff_core::meta::name(r) == a.name && r["spec"]["nodeName"] != node)
            };
            ok(a.verb == "create" || (read_one && !others()))
        }
        ("authentication.k8s.io", "tokenreviews")
        | ("authorization.k8s.io", "subjectaccessreviews" | "localsubjectaccessreviews") => ok(a.verb == "create"),
        _ => Opinion::None,
    }
}

fn in_namespace(pod: &Value, a: &Attributes) -> bool {
    skiff_core::meta::namespace(pod) == a.namespace
}

fn account(pod: &Value) -> &str {
    pod["spec"]["serviceAccountName"].as_str().unwrap_or("default")
}

fn list<'a>(v: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    v.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// Whether an Ingress names the Secret for TLS.
fn names(ingress: &Value, secret: &str) -> bool {
    list(&ingress["spec"], "tls").any(|t| t["secretName"].as_str() == Some(secret))
}

/// Whether `pod` refers to the object.
fn uses(pod: &Value, a: &Attributes) -> bool {
    if !in_namespace(pod, a) {
        return false;
    }
    let spec = &pod["spec"];
    let named = |v: &Value, key: &str| v.get(key).and_then(Value::as_str) == Some(a.name.as_str());
    let (env, env_from, volume, volume_key) = match a.resource.as_str() {
        "secrets" => ("secretKeyRef", "secretRef", "secret", "secretName"),
        "configmaps" => ("configMapKeyRef", "configMapRef", "configMap", "name"),
        "persistentvolumeclaims" => {
            let made = |v: &Value| {
                v.get("ephemeral").is_some_and(|e| !e.is_null())
                    && a.name == format!("{}-{}", skiff_core::meta::name(pod), v["name"].as_str().unwrap_or_default())
            };
            return list(spec, "volumes").any(|v| named(&v["persistentVolumeClaim"], "claimName") || made(v));
        }
        "serviceaccounts" => return account(pod) == a.name,
        _ => return false,
    };
    if a.resource == "secrets" && list(spec, "imagePullSecrets").any(|s| named(s, "name")) {
        return true;
    }
    let containers = ["containers", "initContainers", "ephemeralContainers"];
    let in_env = containers.iter().flat_map(|c| list(spec, c)).any(|c| {
        list(c, "env").any(|e| named(&e["valueFrom"][env], "name"))
            || list(c, "envFrom").any(|e| named(&e[env_from], "name"))
    });
    let source = volume;
    let in_volume = |v: &Value| {
        named(&v[source], volume_key)
            || list(&v["projected"], "sources").any(|s| named(&s[source], "name"))
            || (a.resource == "secrets"
                && ["csi", "flexVolume", "cephfs", "rbd", "iscsi", "scaleIO", "storageos"]
                    .iter()
                    .any(|t| named(&v[*t]["nodePublishSecretRef"], "name") || named(&v[*t]["secretRef"], "name")))
    };
    in_env || list(spec, "volumes").any(in_volume)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pods() -> Vec<Value> {
        vec![json!({"metadata":{"name":"p","namespace":"n"},"spec":{"serviceAccountName":"sa",
            "containers":[{"env":[{"valueFrom":{"secretKeyRef":{"name":"s1"}}}]}],
            "ephemeralContainers":[{"envFrom":[{"secretRef":{"name":"s4"}}]}],
            "volumes":[{"projected":{"sources":[{"secret":{"name":"s2"}}]}},{"configMap":{"name":"c"}}],
            "imagePullSecrets":[{"name":"s3"}]}})]
    }

    fn objects(_: &str, plural: &str, namespace: &str) -> Vec<Value> {
        let request = |name: &str, node: &str| json!({"metadata": {"name": name}, "spec": {"nodeName": node}});
        match (plural, namespace) {
            ("ingresses", "n") => {
                vec![json!({"metadata": {"name": "i", "namespace": "n"}, "spec": {"tls": [{"secretName": "cert"}]}})]
            }
            ("podcertificaterequests", "n") => vec![request("ours", "n1"), request("theirs", "n2")],
            _ => vec![],
        }
    }

    #[test]
    fn only_what_its_pods_and_its_gateway_use() {
        let may = |verb: &str, resource: &str, ns: &str, name: &str| {
            let asked = Attributes::resource(verb, "", resource, ns, name);
            authorise("n1", &asked, pods, objects) == Opinion::Allow
        };
        assert!(may("get", "secrets", "n", "cert") && may("watch", "secrets", "n", "cert"));
        assert!(!may("get", "secrets", "m", "cert") && !may("get", "configmaps", "n", "cert"));
        assert!(!may("update", "secrets", "n", "cert") && !may("watch", "secrets", "n", ""));
        for s in ["s1", "s2", "s3", "s4"] {
            assert!(may("get", "secrets", "n", s), "{s}");
        }
        assert!(may("get", "configmaps", "n", "c"));
        assert!(may("create", "serviceaccounts/token", "n", "sa"));
        assert!(!may("get", "secrets", "n", "other"));
        assert!(!may("get", "secrets", "m", "s1"));
        assert!(!may("list", "secrets", "n", ""));
        assert!(!may("create", "serviceaccounts/token", "n", "other"));
        assert!(may("patch", "nodes/status", "", "n1"));
        assert!(!may("patch", "nodes/status", "", "n2"));
    }
    #[test]
    fn trust_is_for_all_and_requests_for_their_node() {
        let may = |verb: &str, resource: &str, ns: &str, name: &str| {
            let asked = Attributes::resource(verb, "certificates.k8s.io", resource, ns, name);
            authorise("n1", &asked, pods, objects) == Opinion::Allow
        };
        assert!(may("watch", "clustertrustbundles", "", "") && !may("create", "clustertrustbundles", "", ""));
        assert!(
            may("create", "podcertificaterequests", "n", "") && may("watch", "podcertificaterequests", "n", "ours")
        );
        assert!(
            !may("get", "podcertificaterequests", "n", "theirs") && !may("list", "podcertificaterequests", "n", "")
        );
        assert!(!may("update", "podcertificaterequests", "n", "ours"));
        assert!(!may("update", "podcertificaterequests/status", "n", "ours"));
    }
}
