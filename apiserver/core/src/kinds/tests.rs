//! Rules that the recorded answers do not reach: one line a fault, through the same table that the verbs use.

use serde_json::{Value, json};

use super::strategy;
use crate::invalid::Errors;

fn shown(errors: &Errors) -> Vec<String> {
    errors.told().into_iter().map(ToString::to_string).collect()
}

/// Faults of a new object.
fn faults(group: &str, plural: &str, mut obj: Value) -> Vec<String> {
    let s = strategy(group, plural);
    obj["metadata"]["name"] = obj["metadata"].get("name").cloned().unwrap_or_else(|| "a".into());
    s.default(&mut obj);
    let mut e = Errors::new();
    s.validate(&obj, &mut e);
    shown(&e)
}

/// Faults of a change from `old` by a JSON merge of `change`.
fn change(group: &str, plural: &str, mut old: Value, change: &Value) -> Vec<String> {
    let s = strategy(group, plural);
    old["metadata"]["name"] = "a".into();
    s.default(&mut old);
    let mut new = old.clone();
    json_patch::merge(&mut new, change);
    s.default(&mut new);
    s.prepare_update(&mut new, &old);
    let mut e = Errors::new();
    s.validate_update(&new, &old, &mut e);
    shown(&e)
}

fn pods() -> Value {
    json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}})
}

#[test]
fn a_stateful_set_mounts_the_claims_made_for_it() {
    let set = |claims: Value| {
        let mut template = pods();
        template["spec"]["containers"][0]["volumeMounts"] = json!([{"name": "data", "mountPath": "/d"}]);
        json!({"spec": {"serviceName": "s", "selector": {"matchLabels": {"a": "b"}}, "template": template,
            "volumeClaimTemplates": claims}})
    };
    let claim = json!([{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "1Gi"}}}}]);
    assert_eq!(faults("apps", "statefulsets", set(claim)), Vec::<String>::new());
    let missing = "spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"data\"";
    assert_eq!(faults("apps", "statefulsets", set(json!([]))), [missing]);
}

#[test]
fn daemon_sets_surge_or_go_without() {
    let set = |rolling: Value| {
        json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": pods(),
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": rolling}}})
    };
    for (rolling, want) in [
        (json!({"maxSurge": 1, "maxUnavailable": 0}), vec![]),
        (json!({"maxUnavailable": "10%"}), vec![]),
        (
            json!({"maxSurge": 1, "maxUnavailable": 1}),
            vec![
                "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
            ],
        ),
        (
            json!({"maxUnavailable": 0}),
            vec!["spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0"],
        ),
    ] {
        assert_eq!(faults("apps", "daemonsets", set(rolling.clone())), want, "{rolling}");
    }
}

#[test]
fn cron_jobs_keep_an_old_zone_in_the_schedule_and_take_no_new_one() {
    let job = |schedule: &str| {
        let mut template = pods();
        template["spec"]["restartPolicy"] = "Never".into();
        json!({"spec": {"schedule": schedule, "jobTemplate": {"spec": {"template": template}}}})
    };
    let refused = "spec.schedule: Invalid value: \"TZ=UTC 0 0 * * *\": cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
    assert_eq!(faults("batch", "cronjobs", job("TZ=UTC 0 0 * * *")), [refused]);
    let suspended = json!({"spec": {"suspend": true}});
    assert_eq!(change("batch", "cronjobs", job("TZ=UTC 0 0 * * *"), &suspended), Vec::<String>::new());
    let both = json!({"spec": {"timeZone": "UTC"}});
    let want = "spec.schedule: Invalid value: \"TZ=UTC 0 0 * * *\": cannot use both timeZone field and TZ or CRON_TZ in schedule";
    assert_eq!(change("batch", "cronjobs", job("TZ=UTC 0 0 * * *"), &both), [want]);
}

#[test]
fn a_success_policy_counts_within_its_indexes() {
    let job = |rule: Value| {
        let mut template = pods();
        template["spec"]["restartPolicy"] = "Never".into();
        json!({"spec": {"completionMode": "Indexed", "completions": 5, "parallelism": 5, "manualSelector": true,
            "selector": {"matchLabels": {"a": "b"}}, "template": template, "successPolicy": {"rules": [rule]}}})
    };
    for (rule, want) in [
        (json!({"succeededIndexes": "0-2", "succeededCount": 3}), vec![]),
        (
            json!({"succeededIndexes": "0-2", "succeededCount": 4}),
            vec![
                "spec.successPolicy.rules[0].succeededCount: Invalid value: 4: must be less than or equal to 3 (the number of indexes in the specified succeededIndexes field)",
            ],
        ),
        (
            json!({"succeededIndexes": "3-9"}),
            vec![
                "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"3-9\": error parsing succeededIndexes: too large index: \"9\"",
            ],
        ),
        (
            json!({}),
            vec![
                "spec.successPolicy.rules[0]: Required value: at least one of succeededCount or succeededIndexes must be specified",
            ],
        ),
    ] {
        assert_eq!(faults("batch", "jobs", job(rule.clone())), want, "{rule}");
    }
}

#[test]
fn a_bound_claim_grows_and_shrinks_no_further_than_what_it_has() {
    let claim = |phase: &str| {
        json!({"spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "c", "volumeName": "v",
            "resources": {"requests": {"storage": "4Gi"}}}, "status": {"phase": phase, "capacity": {"storage": "2Gi"}}})
    };
    let size = |s: &str| json!({"spec": {"resources": {"requests": {"storage": s}}}});
    const FIXED: &str = "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
    const SMALL: &str = "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity";
    for (phase, to, want) in [
        ("Bound", "8Gi", vec![]),
        ("Bound", "3Gi", vec![]),
        ("Bound", "2Gi", vec![SMALL]),
        ("Pending", "8Gi", vec![FIXED]),
    ] {
        assert_eq!(change("", "persistentvolumeclaims", claim(phase), &size(to)), want, "{phase} to {to}");
    }
    let nothing = json!({"spec": {"resources": {"requests": null}}, "status": {"capacity": null}});
    assert!(change("", "persistentvolumeclaims", claim("Bound"), &nothing).contains(&SMALL.to_owned()));
    let class = json!({"spec": {"storageClassName": "d"}});
    assert_eq!(change("", "persistentvolumeclaims", claim("Bound"), &class), [FIXED]);
}

#[test]
fn network_rules() {
    let policy = |port: Value| json!({"spec": {"podSelector": {}, "ingress": [{"ports": [port]}]}});
    let ingress = |path: &str, kind: &str| {
        json!({"spec": {"rules": [{"http": {"paths": [{"path": path, "pathType": kind,
            "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}})
    };
    let range = json!({"spec": {"cidrs": ["10.0.0.0/24"]}});
    for (got, want) in [
        (faults("networking.k8s.io", "networkpolicies", policy(json!({"port": 80, "endPort": 90}))), ""),
        (
            faults("networking.k8s.io", "networkpolicies", policy(json!({"port": 80, "endPort": 70}))),
            "spec.ingress[0].ports[0].endPort: Invalid value: 70: must be greater than or equal to `port`",
        ),
        (
            faults("networking.k8s.io", "networkpolicies", policy(json!({"port": "http", "endPort": 70}))),
            "spec.ingress[0].ports[0].endPort: Invalid value: 70: may not be specified when `port` is non-numeric",
        ),
        (faults("networking.k8s.io", "ingresses", ingress("/a", "Prefix")), ""),
        (
            faults("networking.k8s.io", "ingresses", ingress("/a//b", "Exact")),
            "spec.rules[0].http.paths[0].path: Invalid value: \"/a//b\": must not contain '//'",
        ),
        (
            faults("networking.k8s.io", "ingresses", ingress("/a", "Glob")),
            "spec.rules[0].http.paths[0].pathType: Unsupported value: \"Glob\": supported values: \"Exact\", \"ImplementationSpecific\", \"Prefix\"",
        ),
        (
            change(
                "networking.k8s.io",
                "servicecidrs",
                range.clone(),
                &json!({"spec": {"cidrs": ["10.0.0.0/24", "fd00::/64"]}}),
            ),
            "",
        ),
        (
            change("networking.k8s.io", "servicecidrs", range, &json!({"spec": {"cidrs": ["10.0.1.0/24"]}})),
            "spec.cidrs: Invalid value: [\"10.0.1.0/24\"]: field is immutable",
        ),
    ] {
        assert_eq!(got.join("; "), want);
    }
}

#[test]
fn limits_of_one_resource_agree() {
    let range = |l: Value| json!({"spec": {"limits": [l]}});
    for (l, want) in [
        (json!({"type": "Container", "min": {"cpu": "1"}, "max": {"cpu": "2"}, "default": {"cpu": "2"}}), ""),
        (
            json!({"type": "Pod", "min": {"cpu": "3"}, "max": {"cpu": "2"}}),
            "spec.limits[0].min[cpu]: Invalid value: \"3\": min value 3 is greater than max value 2",
        ),
        (
            json!({"type": "Pod", "default": {"cpu": "3"}}),
            "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
        ),
        (
            json!({"type": "PersistentVolumeClaim"}),
            "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither was provided",
        ),
        (
            json!({"type": "Pod", "maxLimitRequestRatio": {"cpu": "500m"}}),
            "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"500m\": ratio 500m is less than 1",
        ),
    ] {
        assert_eq!(faults("", "limitranges", range(l.clone())).join("; "), want, "{l}");
    }
}

#[test]
fn quotas_name_resources_that_their_scopes_are_about() {
    for (spec, want) in [
        (json!({"hard": {"pods": "1", "requests.cpu": "1", "count/x.example.com": "3"}}), ""),
        (json!({"hard": {"pods": "1"}, "scopes": ["BestEffort"]}), ""),
        (
            json!({"hard": {"nonsense": "1"}}),
            "spec.hard[nonsense]: Invalid value: \"nonsense\": must be a standard resource type or fully qualified; \
             spec.hard[nonsense]: Invalid value: \"nonsense\": must be a standard resource for quota",
        ),
        (
            json!({"hard": {"services": "1"}, "scopes": ["Terminating"]}),
            "spec.scopes: Invalid value: [\"Terminating\"]: unsupported scope applied to resource",
        ),
        (
            json!({"hard": {"pods": "1"}, "scopes": ["BestEffort", "NotBestEffort"]}),
            "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: conflicting scopes",
        ),
        (json!({"hard": {"pods": "-1"}}), "spec.hard[pods]: Invalid value: \"-1\": must be greater than or equal to 0"),
    ] {
        assert_eq!(faults("", "resourcequotas", json!({"spec": spec.clone()})).join("; "), want, "{spec}");
    }
}

#[test]
fn other_kinds() {
    let service = |spec: Value| json!({"metadata": {"name": "v1.e.com"}, "spec": spec});
    for (got, want) in [
        (
            faults(
                "apiregistration.k8s.io",
                "apiservices",
                service(json!({"group": "e.com", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 1})),
            ),
            "",
        ),
        (
            faults(
                "apiregistration.k8s.io",
                "apiservices",
                service(json!({"group": "f.com", "version": "v1", "groupPriorityMinimum": 1, "versionPriority": 2000})),
            ),
            "metadata.name: Invalid value: \"v1.e.com\": must be `spec.version+\".\"+spec.group`: \"v1.f.com\"; \
             spec.versionPriority: Invalid value: 2000: must be positive and less than 1000",
        ),
        (
            change("node.k8s.io", "runtimeclasses", json!({"handler": "a"}), &json!({"handler": "b"})),
            "handler: Invalid value: \"b\": field is immutable",
        ),
        (
            faults("rbac.authorization.k8s.io", "rolebindings", json!({"roleRef": {}, "subjects": [{}]})),
            "roleRef.kind: Unsupported value: \"\": supported values: \"Role\", \"ClusterRole\"; \
             subjects[0].kind: Unsupported value: \"\": supported values: \"ServiceAccount\", \"User\", \"Group\"; \
             subjects[0].name: Required value; roleRef.name: Required value",
        ),
        (
            faults("storage.k8s.io", "storageclasses", json!({"allowedTopologies": [{}]})),
            "allowedTopologies[0].matchLabelExpressions: Duplicate value: \"\"; provisioner: Required value",
        ),
        (
            faults("", "limitranges", json!({"spec": {"limits": [{"type": "Pod", "max": {"storage": "1"}}]}})),
            "spec.limits[0].max[storage]: Invalid value: \"storage\": must be a standard resource for containers",
        ),
        (
            change("storage.k8s.io", "csidrivers", json!({"spec": {}}), &json!({"spec": {"attachRequired": false}})),
            "spec.attachedRequired: Invalid value: false: field is immutable",
        ),
    ] {
        assert_eq!(got.join("; "), want);
    }
}

/// Rules that were found where the same changed requests were sent to upstream's server.
#[test]
fn one_fault_is_told_once_and_where_upstream_does() {
    let pod = |part: Value| {
        let mut pod = pods();
        json_patch::merge(
            &mut pod,
            &json!({"spec": {"restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "terminationGracePeriodSeconds": 1}}),
        );
        json_patch::merge(&mut pod, &part);
        faults("", "pods", pod)
    };
    let container = |part: Value| {
        let mut c = json!({"name": "c", "image": "i:1"});
        json_patch::merge(&mut c, &part);
        pod(json!({"spec": {"containers": [c]}}))
    };
    let rules = json!({"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"},
        "behavior": {"scaleDown": {"policies": []}}});
    for (got, want) in [
        (
            container(json!({"securityContext": {"appArmorProfile": {"localhostProfile": "p"}}})),
            "spec.containers[0].securityContext.appArmorProfile.type: Required value: type is required when appArmorProfile is set",
        ),
        (
            container(json!({"env": [{"name": "A", "valueFrom":
                {"resourceFieldRef": {"resource": "requests.ephemeral-storage", "divisor": "5m"}}}]})),
            "spec.containers[0].env[0].valueFrom.resourceFieldRef.divisor: Invalid value: \"requests.ephemeral-storage\": \
             only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the local \
             ephemeral storage resource",
        ),
        (
            pod(json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": "", "type": "Folder"}}]}})),
            "spec.volumes[0].hostPath.path: Required value",
        ),
        (
            faults(
                "discovery.k8s.io",
                "endpointslices",
                json!({"addressType": "IPv4", "endpoints": [{"addresses": ["2001:DB8::0001"]}]}),
            ),
            "endpoints[0].addresses: Invalid value: \"2001:DB8::0001\": must be an IPv4 address",
        ),
        (
            faults("autoscaling", "horizontalpodautoscalers", json!({"apiVersion": "autoscaling/v2", "spec": rules})),
            "spec.behavior.scaleDown.policies: Required value: must specify at least one Policy",
        ),
    ] {
        assert_eq!(got.join("; "), want);
    }
}

#[test]
fn a_taint_of_devices_counts_from_when_its_effect_came() {
    let rule = |effect: &str, at: Value| {
        json!({"metadata": {"name": "a", "generation": 3}, "spec": {"taint": {"key": "k", "effect": effect, "timeAdded": at}},
            "status": {"conditions": []}})
    };
    let s = strategy("resource.k8s.io", "devicetaintrules");
    let mut new = rule("NoSchedule", Value::Null);
    s.default(&mut new);
    assert!(new["spec"]["taint"]["timeAdded"].is_string());
    let old = rule("NoSchedule", json!("2024-01-01T00:00:00Z"));
    for (change, kept, generation) in [
        (rule("NoSchedule", json!("2024-01-01T00:00:00Z")), true, 3),
        (rule("NoExecute", json!("2024-01-01T00:00:00Z")), false, 4),
        (rule("NoExecute", json!("2024-02-01T00:00:00Z")), true, 4),
    ] {
        let mut new = change.clone();
        new["status"] = Value::Null;
        s.prepare_update(&mut new, &old);
        assert_eq!(new["spec"]["taint"]["timeAdded"] == change["spec"]["taint"]["timeAdded"], kept, "{change}");
        assert_eq!((&new["metadata"]["generation"], &new["status"]), (&json!(generation), &old["status"]), "{change}");
    }
    for (spec, want) in [
        (
            json!({"taint": {"key": "k", "value": "v", "effect": "None"}, "deviceSelector": {"driver": "d.e.com", "pool": "a/b"}}),
            "",
        ),
        (
            json!({"taint": {"key": "k", "effect": "Bang"}, "deviceSelector": {"device": ""}}),
            "spec.deviceSelector.device: Required value; spec.taint.effect: Unsupported value: \"Bang\": supported values: \
             \"NoExecute\", \"NoSchedule\", \"None\"",
        ),
        (json!({"taint": {"key": "k"}}), "spec.taint.effect: Required value"),
    ] {
        assert_eq!(faults("resource.k8s.io", "devicetaintrules", json!({"spec": spec})).join("; "), want);
    }
}

#[test]
fn a_migration_of_stored_versions_ends_once() {
    let group = "storagemigration.k8s.io";
    let spec = |resource: &str| json!({"spec": {"resource": {"group": "apps", "resource": resource}}});
    assert_eq!(faults(group, "storageversionmigrations", spec("deployments")), [""; 0]);
    assert_eq!(
        faults(group, "storageversionmigrations", spec("")),
        ["spec.resource.resource: Required value: resource is required to be set"]
    );
    let moved = change(group, "storageversionmigrations", spec("deployments"), &spec("jobs"));
    assert!(moved.iter().any(|f| f.contains("field is immutable")), "{moved:?}");
    let ended = |kind: &str| json!({"status": {"conditions": [{"type": kind, "status": "True"}]}});
    let mut e = Errors::new();
    strategy(group, "storageversionmigrations").validate_status(&ended("Running"), &ended("Succeeded"), &mut e);
    assert!(shown(&e)[0].ends_with("Success condition cannot be set to false once it is true"), "{:?}", shown(&e));
}
