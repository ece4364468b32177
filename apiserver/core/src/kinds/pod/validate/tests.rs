//! Rules that the recorded answers do not reach, and laws over all of them.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{PodStrategy, defaults, update};
use super::*;
use crate::kinds::Strategy;

fn pod(spec: Value) -> Value {
    let mut p = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "generation": 1}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    for (k, v) in spec.as_object().into_iter().flatten() {
        p["spec"][k] = v.clone();
    }
    defaults::default_pod(&mut p);
    p
}

fn faults(spec: Value) -> Vec<String> {
    let mut e = Errors::new();
    validate_pod(&pod(spec), &mut e);
    e.0.iter().map(ToString::to_string).collect()
}

#[test]
fn ordinary_pods_pass() {
    for spec in [
        json!({}),
        json!({"containers": [{"name": "c", "image": "i", "lifecycle": {"preStop": {"httpGet": {"port": "web"}}},
            "startupProbe": {"httpGet": {"port": 80}}, "ports": [{"containerPort": 80, "hostPort": 80}]}]}),
        json!({"initContainers": [{"name": "s", "image": "i", "restartPolicy": "Always", "livenessProbe": {"exec": {"command": ["a"]}}}]}),
        json!({"volumes": [{"name": "t", "projected": {"sources": [
            {"serviceAccountToken": {"path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}}],
            "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "t", "mountPath": "/t", "readOnly": true}]}]}),
        json!({"hostNetwork": true, "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}),
    ] {
        assert_eq!(faults(spec.clone()), [""; 0], "{spec}");
    }
}

#[test]
fn faults_beyond_the_recorded_ones() {
    for (spec, want) in [
        (
            json!({"initContainers": [{"name": "i", "image": "i", "livenessProbe": {"exec": {"command": ["a"]}}}]}),
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always",
        ),
        (
            json!({"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 1, "hostPort": 9}, {"containerPort": 2, "hostPort": 9}]}]}),
            "spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//9\"",
        ),
        (
            json!({"hostNetwork": true, "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 81}]}]}),
            "spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true",
        ),
        (
            json!({"volumes": [{"name": "v", "emptyDir": {}}], "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/a", "subPath": "/x"}]}]}),
            "spec.containers[0].volumeMounts.subPath: Invalid value: \"/x\": must be a relative path",
        ),
        (
            json!({"containers": [{"name": "c", "image": "i"}], "initContainers": [{"name": "d", "image": "i", "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}]}]}),
            "spec.initContainers[0].resizePolicy[0].restartPolicy: Invalid value: \"RestartContainer\": must not be set to 'RestartContainer' for non-sidecar initContainers",
        ),
        (
            json!({"resourceClaims": [{"name": "r", "resourceClaimName": "x"}, {"name": "b", "resourceClaimName": "x"}], "containers": [{"name": "c", "image": "i", "resources": {"claims": [{"name": "x"}]}}]}),
            "spec.containers[0].resources.claims[0]: Not found: \"x\": must be one of the names in pod.spec.resourceClaims: b, r",
        ),
        (
            json!({"resources": {"requests": {"foo": "1"}}}),
            "spec.resources.requests[foo]: Invalid value: \"foo\": must be a standard resource type or fully qualified",
        ),
        (
            json!({"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}]}),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            json!({"containers": [{"name": "c", "image": "i", "env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.phase"}}}]}]}),
            "spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: \"status.phase\": supported values: \"metadata.name\", \"metadata.namespace\", \"metadata.uid\", \"spec.nodeName\", \"spec.serviceAccountName\", \"status.hostIP\", \"status.hostIPs\", \"status.podIP\", \"status.podIPs\"",
        ),
        (
            json!({"activeDeadlineSeconds": 0}),
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive",
        ),
    ] {
        assert_eq!(faults(spec), [want]);
    }
}

#[test]
fn only_the_subresource_adds_ephemeral_containers_and_resizes() {
    let sized =
        |cpu: &str| json!({"containers": [{"name": "c", "image": "i:1", "resources": {"requests": {"cpu": cpu}}}]});
    let old = pod(sized("1m"));
    let mut debugged = sized("1m");
    debugged["ephemeralContainers"] = json!([{"name": "e", "image": "i"}]);
    for (spec, name) in [(debugged, "ephemeralcontainers"), (sized("2m"), "resize")] {
        let new = pod(spec);
        let check = |f: &dyn Fn(&mut Errors)| {
            let mut e = Errors::new();
            f(&mut e);
            e.0
        };
        let through = check(&|e| PodStrategy.validate_subresource(name, &new, &old, e));
        assert!(through.is_empty(), "{name}: {through:?}");
        let plain = check(&|e| PodStrategy.validate_update(&new, &old, e));
        assert_eq!(plain.len(), 1, "{name}: {plain:?}");
    }
}

#[test]
fn a_resize_keeps_the_class_and_what_was_asked_for() {
    let with = |r: Value| pod(json!({"containers": [{"name": "c", "image": "i:1", "resources": r}]}));
    for (from, to, want) in [
        (
            json!({}),
            json!({"requests": {"cpu": "1"}}),
            "spec: Invalid value: \"Burstable\": Pod QOS Class may not change as a result of resizing",
        ),
        (
            json!({"requests": {"cpu": "1", "memory": "1"}}),
            json!({"requests": {"cpu": "1"}}),
            "spec.containers[0].resources.requests: Forbidden: resource requests cannot be removed",
        ),
        (
            json!({"requests": {"cpu": "1"}}),
            json!({"requests": {"cpu": "1", "ephemeral-storage": "1"}}),
            "spec: Forbidden: only cpu and memory resources are mutable",
        ),
    ] {
        let mut e = Errors::new();
        update::validate_resize(&with(to), &with(from), &mut e);
        assert_eq!(e.0.iter().map(ToString::to_string).collect::<Vec<_>>(), [want]);
    }
}

#[test]
fn an_ended_container_stays_ended_unless_it_may_restart() {
    let state = |policy: &str, code: i64, ended: bool| {
        let s = if ended { json!({"terminated": {"exitCode": code}}) } else { json!({"running": {}}) };
        let mut p = pod(json!({"restartPolicy": policy}));
        p["status"] = json!({"containerStatuses": [{"name": "c", "state": s}]});
        p
    };
    for (policy, code, refused) in
        [("Never", 0, true), ("Never", 1, true), ("OnFailure", 0, true), ("OnFailure", 1, false), ("Always", 0, false)]
    {
        let mut e = Errors::new();
        PodStrategy.validate_status(&state(policy, code, false), &state(policy, code, true), &mut e);
        assert_eq!(!e.is_empty(), refused, "{policy} {code}: {:?}", e.0);
    }
}

proptest! {
    /// A pod that was accepted stays acceptable when nothing changes, and validation of any strings never panics.
    #[test]
    fn unchanged_is_allowed(name in ".{0,8}", image in ".{0,8}", mount in ".{0,8}", key in ".{0,8}", q in "-?[0-9]{1,4}[mki]{0,2}") {
        let p = pod(json!({
            "containers": [{"name": name, "image": image, "volumeMounts": [{"name": key, "mountPath": mount}],
                "resources": {"limits": {key.as_str(): q.as_str(), "memory": q.as_str()}},
                "env": [{"name": key, "valueFrom": {"fieldRef": {"fieldPath": mount}}}]}],
            "nodeSelector": {key.as_str(): mount.as_str()},
            "tolerations": [{"key": key, "operator": name}],
            "volumes": [{"name": key, "configMap": {"name": name, "items": [{"key": key, "path": mount}]}}],
            "hostname": name, "hostAliases": [{"ip": image}],
        }));
        let mut e = Errors::new();
        update::validate(&p, &p, &mut e);
        prop_assert!(e.is_empty(), "{:?}", e.0);
    }
}
