//! Warnings about pods and pod templates that are accepted all the same.

use serde_json::Value;

use super::validate::{given, list, text};
use crate::invalid::quote_str;
use crate::names;
use crate::path::Path;
use crate::quantity::Quantity;

/// Labels of nodes that have a newer name.
const OLD_LABELS: &[(&str, &str, &str)] = &[
    ("beta.kubernetes.io/arch", "v1.14", "kubernetes.io/arch"),
    ("beta.kubernetes.io/os", "v1.14", "kubernetes.io/os"),
    ("failure-domain.beta.kubernetes.io/region", "v1.17", "topology.kubernetes.io/region"),
    ("failure-domain.beta.kubernetes.io/zone", "v1.17", "topology.kubernetes.io/zone"),
    ("beta.kubernetes.io/instance-type", "v1.17", "node.kubernetes.io/instance-type"),
];
const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";
const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

/// Kinds of volumes that no longer work, or will not.
const RETIRED: &[(&str, &str)] = &[
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11, and disabled by default in v1.33+"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

/// What is wrong with a kind of volume, if it is on its way out.
pub(in crate::kinds) fn retired_volume(kind: &str) -> Option<&'static str> {
    RETIRED.iter().find(|(k, _)| *k == kind).map(|(_, why)| *why)
}

fn old_label(key: &str) -> Option<String> {
    let (_, since, new) = OLD_LABELS.iter().find(|(old, ..)| *old == key)?;
    Some(format!("deprecated since {since}; use \"{new}\" instead"))
}

/// Warnings about a new pod; updates say nothing. Its AppArmor annotations were warned of before it was checked.
pub(super) fn of_pod(new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
    if old.is_some() {
        return;
    }
    let name = text(&new["metadata"], "name");
    let why = names::is_dns1123_label(name);
    if !name.is_empty() && !why.is_empty() {
        out.push(format!("metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended: [{}]", why.join(" ")));
    }
    check(new, &Path::new(""), out);
}

/// Warnings about AppArmor profiles given by annotation.
pub(super) fn of_app_armor(pod: &Value, path: &Path<'_>, out: &mut Vec<String>) {
    let meta = path.child("metadata");
    let annotations = meta.child("annotations");
    for key in pod["metadata"]["annotations"].as_object().into_iter().flat_map(|a| a.keys()) {
        let Some(name) = key.strip_prefix(APP_ARMOR) else { continue };
        let mut all = ["containers", "initContainers"].iter().flat_map(|l| list(&pod["spec"], l));
        // Whoever gives the field too knows it already.
        if all.any(|c| text(c, "name") == name && c["securityContext"]["appArmorProfile"].is_null()) {
            let here = annotations.key(key);
            out.push(format!("{here}: deprecated since v1.30; use the \"appArmorProfile\" field instead"));
        }
    }
}

/// Warnings about the template of a workload at `path`.
pub(in crate::kinds) fn of_template(template: &Value, path: &Path<'_>, out: &mut Vec<String>) {
    of_app_armor(template, path, out);
    check(template, path, out);
}

fn check(pod: &Value, path: &Path<'_>, out: &mut Vec<String>) {
    let spec = &pod["spec"];
    let at = path.child("spec");
    let meta = path.child("metadata");
    let annotations = meta.child("annotations");
    for key in pod["metadata"]["annotations"].as_object().into_iter().flat_map(|a| a.keys()) {
        let here = annotations.key(key);
        if key == SECCOMP || key.starts_with(SECCOMP_CONTAINER) {
            out.push(format!("{here}: non-functional in v1.27+; use the \"seccompProfile\" field instead"));
        }
    }
    let selector = at.child("nodeSelector");
    for key in spec["nodeSelector"].as_object().into_iter().flat_map(|m| m.keys()) {
        if let Some(why) = old_label(key) {
            out.push(format!("{}: {why}", selector.key(key)));
        }
    }
    node_affinity(spec, &at, out);
    no_selector(spec, &at, out);
    let spread = at.child("topologySpreadConstraints");
    for (i, c) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let here = spread.index(i);
        if let Some(why) = old_label(text(c, "topologyKey")) {
            out.push(format!("{}: {} is {why}", here.child("topologyKey"), text(c, "topologyKey")));
        }
        if !given(c, "labelSelector") {
            out.push(format!("{}: {NONE_CHOSEN}", here.child("labelSelector")));
        }
    }
    let secrets = at.child("imagePullSecrets");
    let mut seen = vec![];
    for (i, s) in list(spec, "imagePullSecrets").iter().enumerate() {
        let (here, name) = (secrets.index(i), text(s, "name"));
        if name.is_empty() {
            out.push(format!("{}: invalid empty name \"\"", here.child("name")));
        }
        if seen.contains(&name) {
            out.push(format!("{}: duplicate name {}", here.child("name"), quote_str(name)));
        }
        seen.push(name);
    }
    let aliases = at.child("hostAliases");
    let mut seen = vec![];
    for (i, a) in list(spec, "hostAliases").iter().enumerate() {
        let ip = text(a, "ip");
        if seen.contains(&ip) {
            out.push(format!("{}: duplicate ip {}", aliases.index(i).child("ip"), quote_str(ip)));
        }
        seen.push(ip);
    }
    containers(spec, &at, out);
    volumes(spec, &at, out);
}

/// Terms about other pods that choose none.
fn no_selector(spec: &Value, at: &Path<'_>, out: &mut Vec<String>) {
    let affinity = at.child("affinity");
    for sort in ["podAffinity", "podAntiAffinity"] {
        let (here, v) = (affinity.child(sort), &spec["affinity"][sort]);
        let required = here.child("requiredDuringSchedulingIgnoredDuringExecution");
        for (i, t) in list(v, "requiredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            if !given(t, "labelSelector") {
                out.push(format!("{}: {NONE_CHOSEN}", required.index(i).child("labelSelector")));
            }
        }
        let preferred = here.child("preferredDuringSchedulingIgnoredDuringExecution");
        for (i, w) in list(v, "preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
            if !given(&w["podAffinityTerm"], "labelSelector") {
                let one = preferred.index(i);
                out.push(format!("{}: {NONE_CHOSEN}", one.child("podAffinityTerm.labelSelector")));
            }
        }
    }
}

const NONE_CHOSEN: &str = "a null labelSelector results in matching no pod";

fn node_affinity(spec: &Value, at: &Path<'_>, out: &mut Vec<String>) {
    let a = &spec["affinity"]["nodeAffinity"];
    let at = at.child("affinity.nodeAffinity");
    let required = at.child("requiredDuringSchedulingIgnoredDuringExecution");
    of_node_selector(&a["requiredDuringSchedulingIgnoredDuringExecution"], &required, out);
    let preferred = at.child("preferredDuringSchedulingIgnoredDuringExecution");
    for (i, w) in list(a, "preferredDuringSchedulingIgnoredDuringExecution").iter().enumerate() {
        node_term(&w["preference"], &preferred.index(i).child("preference"), out);
    }
}

/// Warnings about the labels that a node selector asks for.
pub(in crate::kinds) fn of_node_selector(selector: &Value, path: &Path<'_>, out: &mut Vec<String>) {
    let terms = path.child("nodeSelectorTerms");
    for (i, t) in list(selector, "nodeSelectorTerms").iter().enumerate() {
        node_term(t, &terms.index(i), out);
    }
}

fn node_term(t: &Value, path: &Path<'_>, out: &mut Vec<String>) {
    let all = path.child("matchExpressions");
    for (i, e) in list(t, "matchExpressions").iter().enumerate() {
        if let Some(why) = old_label(text(e, "key")) {
            out.push(format!("{}: {} is {why}", all.index(i).child("key"), text(e, "key")));
        }
    }
}

fn containers(spec: &Value, at: &Path<'_>, out: &mut Vec<String>) {
    let mut ports: Vec<(&Value, String)> = vec![];
    for key in ["initContainers", "containers"] {
        let all = at.child(key);
        for (i, c) in list(spec, key).iter().enumerate() {
            let here = all.index(i);
            let env = here.child("env");
            let variables = list(c, "env");
            for (j, e) in variables.iter().enumerate() {
                let name = text(e, "name");
                // A value made from the previous one is meant.
                let reference = format!("$({name})");
                let extends = text(e, "value").contains(&reference);
                if !extends && variables[..j].iter().any(|p| text(p, "name") == name) {
                    let q = quote_str(name);
                    out.push(format!(
                        "{}: hides previous definition of {q}, which may be dropped when using apply",
                        env.index(j)
                    ));
                }
            }
            let resources = here.child("resources");
            for sort in ["limits", "requests"] {
                let sort_at = resources.child(sort);
                for name in ["ephemeral-storage", "memory"] {
                    let q = c["resources"][sort][name].as_str().and_then(|q| Quantity::parse(q).ok());
                    if let Some(q) = q.filter(|q| !q.is_integer()) {
                        let q = quote_str(&q.to_string());
                        out.push(format!(
                            "{}: fractional byte value {q} is invalid, must be an integer",
                            sort_at.key(name)
                        ));
                    }
                }
            }
            let list_at = here.child("ports");
            for (j, p) in list(c, "ports").iter().enumerate() {
                let me = list_at.index(j);
                let same = |k: &str, o: &Value| o[k] == p[k];
                for (other, other_at) in &ports {
                    let equal = same("containerPort", other)
                        && text(other, "protocol") == text(p, "protocol")
                        && same("hostPort", other)
                        && same("hostIP", other);
                    if equal {
                        out.push(format!("{me}: duplicate port definition with {other_at}"));
                    }
                }
                // Selecting a port by name finds the first of that name in the pod.
                let name = text(p, "name");
                let first = ports.iter().find(|(o, _)| !name.is_empty() && text(o, "name") == name);
                if let Some((_, first)) = first {
                    let q = quote_str(name);
                    out.push(format!("{me}: duplicate port name {q} with {first}, services and probes that select ports by name will use {first}"));
                }
                ports.push((p, me.to_string()));
            }
        }
    }
}

/// The sources of a volume that are files, with the paths they take and how messages name them.
fn file_sources(v: &Value) -> Vec<(Vec<&str>, String)> {
    let paths = |s: &Value| list(s, "items").iter().filter_map(|i| i["path"].as_str().map(str::len)).count();
    let mut all = vec![];
    for s in list(&v["projected"], "sources") {
        for (key, sort) in [("secret", "Secret"), ("configMap", "ConfigMap")] {
            if given(s, key) && paths(&s[key]) > 0 {
                let items = list(&s[key], "items").iter().map(|i| text(i, "path")).collect();
                all.push((items, format!("{sort} {}", quote_str(text(&s[key], "name")))));
            }
        }
        if given(s, "downwardAPI") {
            let items = list(&s["downwardAPI"], "items").iter().map(|i| text(i, "path")).collect();
            all.push((items, "DownwardAPI".to_owned()));
        }
        if given(s, "serviceAccountToken") {
            all.push((vec![text(&s["serviceAccountToken"], "path")], "ServiceAccountToken".to_owned()));
        }
    }
    all
}

fn overlap(a: &str, b: &str) -> bool {
    let under = |x: &str, y: &str| x.strip_prefix(y).is_some_and(|r| r.starts_with('/'));
    a == b || under(a, b) || under(b, a)
}

fn volumes(spec: &Value, at: &Path<'_>, out: &mut Vec<String>) {
    let all = at.child("volumes");
    for (i, v) in list(spec, "volumes").iter().enumerate() {
        let here = all.index(i);
        let name = quote_str(text(v, "name"));
        for (key, why) in RETIRED {
            if given(v, key) {
                out.push(format!("{}: {why}", here.child(key)));
            }
        }
        for (key, shown, name_key) in
            [("configMap", "ConfigMap", "name"), ("secret", "Secret", "secretName"), ("downwardAPI", "DownwardAPI", "")]
        {
            let s = &v[key];
            let paths: Vec<&str> = list(s, "items").iter().map(|i| text(i, "path")).collect();
            let what = if name_key.is_empty() {
                shown.to_owned()
            } else {
                format!("{shown} {}", quote_str(text(s, name_key)))
            };
            for (j, p) in paths.iter().enumerate() {
                for other in paths[..j].iter().filter(|o| overlap(o, p)) {
                    let (a, b) = (quote_str(p), quote_str(other));
                    out.push(format!("volume {name} ({what}): overlapping paths: {a} with {b}"));
                }
            }
        }
        if !given(v, "projected") {
            continue;
        }
        for s in list(&v["projected"], "sources") {
            if s.as_object().is_none_or(serde_json::Map::is_empty) {
                out.push(format!("volume {name} (Projected) has no sources provided"));
            }
        }
        let mut before: Vec<(&str, String)> = vec![];
        for (paths, source) in file_sources(v) {
            for p in paths {
                for (other, from) in before.iter().filter(|(o, _)| overlap(o, p)) {
                    let (a, b) = (quote_str(p), quote_str(other));
                    out.push(format!("volume {name} (Projected): overlapping paths: {a} ({source}) with {b} ({from})"));
                }
                before.push((p, source.clone()));
            }
        }
    }
}
