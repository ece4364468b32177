//! Pure questions about a pod's spec: quantities, quality of service, names, resources, variable expansion.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sha2::Digest;

/// Grace period of a pod that names none.
pub const DEFAULT_GRACE_SECONDS: i64 = 30;
const MIN_SHARES: i64 = 2;
const MAX_SHARES: i64 = 262_144;

/// A pod's spec, or an empty one.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

/// A pod's UID, or the empty string.
pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

/// A pod's name, or the empty string.
pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// A pod's namespace.
pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// `name_namespace(uid)`, the form in messages.
pub fn full_name(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// The kind of a container in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the containers start.
    Init,
    /// An init container that keeps running beside the containers.
    Sidecar,
    /// One of `spec.containers`.
    Regular,
    /// Added by a person to look inside.
    Ephemeral,
}

/// All containers of a pod with their kinds, in order.
pub fn containers(pod: &Pod) -> Vec<(Role, Container)> {
    let spec = spec(pod);
    let init = spec.init_containers.iter().flatten().map(|c| {
        let sidecar = c.restart_policy.as_deref() == Some("Always");
        (if sidecar { Role::Sidecar } else { Role::Init }, c.clone())
    });
    let regular = spec.containers.iter().map(|c| (Role::Regular, c.clone()));
    let ephemeral = spec.ephemeral_containers.iter().flatten().filter_map(|c| {
        // The two types have the same fields but one.
        let container = serde_json::to_value(c).and_then(serde_json::from_value).ok()?;
        Some((Role::Ephemeral, container))
    });
    init.chain(regular).chain(ephemeral).collect()
}

/// Where a container is in its pod, as events name it.
pub fn field_path(role: Role, container: &str) -> String {
    match role {
        Role::Init | Role::Sidecar => format!("spec.initContainers{{{container}}}"),
        Role::Regular => format!("spec.containers{{{container}}}"),
        Role::Ephemeral => format!("spec.ephemeralContainers{{{container}}}"),
    }
}

/// Hash of the part of a container whose change restarts it: its name and image.
pub fn hash(container: &Container) -> String {
    let mut digest = sha2::Sha256::new();
    digest.update(&container.name);
    digest.update([0]);
    digest.update(container.image.as_deref().unwrap_or_default());
    digest.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// The pod's grace period for stopping.
pub fn grace(pod: &Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .or(spec(pod).termination_grace_period_seconds)
        .unwrap_or(DEFAULT_GRACE_SECONDS)
        .max(0)
}

/// A quantity in thousandths, rounded up; `None` when it is not a number.
pub fn milli(quantity: &Quantity) -> Option<i128> {
    let text = quantity.0.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let digits = format!("{}{fraction}", whole.trim_start_matches(['+', '-']));
    let mantissa: i128 = if digits.is_empty() { return None } else { digits.parse().ok()? };
    // The value is mantissa * multiplier * 10^exponent.
    let (multiplier, exponent): (i128, i32) = match suffix {
        "" => (1, 0),
        "n" => (1, -9),
        "u" => (1, -6),
        "m" => (1, -3),
        "k" => (1, 3),
        "M" => (1, 6),
        "G" => (1, 9),
        "T" => (1, 12),
        "P" => (1, 15),
        "E" => (1, 18),
        "Ki" => (1 << 10, 0),
        "Mi" => (1 << 20, 0),
        "Gi" => (1 << 30, 0),
        "Ti" => (1 << 40, 0),
        "Pi" => (1 << 50, 0),
        "Ei" => (1 << 60, 0),
        other => (1, other.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    let scale = exponent + 3 - i32::try_from(fraction.len()).ok()?;
    let value = mantissa.checked_mul(multiplier)?;
    let value = if scale >= 0 {
        value.checked_mul(10i128.checked_pow(scale.unsigned_abs())?)?
    } else {
        let divisor = 10i128.checked_pow(scale.unsigned_abs())?;
        (value + divisor - 1) / divisor
    };
    Some(if negative { -value } else { value })
}

/// A quantity as a whole number, rounded up.
pub fn whole(quantity: &Quantity) -> Option<i64> {
    milli(quantity).and_then(|m| i64::try_from((m + 999).div_euclid(1000)).ok())
}

/// One resource of a list, in thousandths.
fn amount(list: Option<&BTreeMap<String, Quantity>>, name: &str) -> Option<i128> {
    list.and_then(|l| l.get(name)).and_then(milli)
}

/// What a container asks of a resource, in thousandths; the limit stands in for a missing request.
pub fn request(container: &Container, name: &str) -> i128 {
    let resources = container.resources.as_ref();
    amount(resources.and_then(|r| r.requests.as_ref()), name)
        .or_else(|| amount(resources.and_then(|r| r.limits.as_ref()), name))
        .unwrap_or(0)
}

/// A container's limit of a resource, in thousandths.
pub fn limit(container: &Container, name: &str) -> Option<i128> {
    amount(container.resources.as_ref().and_then(|r| r.limits.as_ref()), name).filter(|l| *l > 0)
}

/// What the whole pod asks of a resource, in thousandths: the larger of what runs and what initialises, and overhead.
pub fn pod_request(pod: &Pod, name: &str) -> i128 {
    let spec = spec(pod);
    let mut sidecars = 0;
    let mut initialising = 0;
    for container in spec.init_containers.iter().flatten() {
        let own = request(container, name);
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars += own;
            initialising = initialising.max(sidecars);
        } else {
            initialising = initialising.max(sidecars + own);
        }
    }
    let running: i128 = spec.containers.iter().map(|c| request(c, name)).sum::<i128>() + sidecars;
    let declared = amount(spec.resources.as_ref().and_then(|r| r.requests.as_ref()), name);
    declared.unwrap_or_else(|| running.max(initialising)) + amount(spec.overhead.as_ref(), name).unwrap_or(0)
}

/// The pod's quality-of-service class.
pub fn qos_class(pod: &Pod) -> &'static str {
    let spec = spec(pod);
    let sets: Vec<Option<&ResourceRequirements>> = match &spec.resources {
        Some(resources) => vec![Some(resources)],
        None => spec.init_containers.iter().flatten().chain(&spec.containers).map(|c| c.resources.as_ref()).collect(),
    };
    let names = ["cpu", "memory"];
    let get = |list: Option<&BTreeMap<String, Quantity>>, name| amount(list, name).filter(|a| *a > 0);
    let request = |r: &ResourceRequirements, name| get(r.requests.as_ref(), name);
    let limit = |r: &ResourceRequirements, name| get(r.limits.as_ref(), name);
    let nothing = |r: &Option<&ResourceRequirements>| {
        r.is_none_or(|r| names.iter().all(|n| request(r, n).is_none() && limit(r, n).is_none()))
    };
    if sets.iter().all(nothing) {
        return "BestEffort";
    }
    let exact = |r: &Option<&ResourceRequirements>| {
        r.is_some_and(|r| {
            names.iter().all(|n| limit(r, n).is_some() && request(r, n).is_none_or(|q| Some(q) == limit(r, n)))
        })
    };
    if sets.iter().all(exact) { "Guaranteed" } else { "Burstable" }
}

/// Relative CPU weight for a request in millicores.
pub fn cpu_shares(millicpu: i128) -> i64 {
    i64::try_from(millicpu * 1024 / 1000).unwrap_or(MAX_SHARES).clamp(MIN_SHARES, MAX_SHARES)
}

/// CPU time per 100 ms in microseconds for a limit in millicores; never less than the kernel takes.
pub fn cpu_quota(millicpu: i128) -> i64 {
    i64::try_from(millicpu * 100).unwrap_or(i64::MAX).max(1000)
}

/// How readily the kernel kills the container when memory runs out.
pub fn oom_score_adj(pod: &Pod, container: &Container, node_memory: i128) -> i64 {
    let critical = spec(pod).priority_class_name.as_deref().is_some_and(|p| p.starts_with("system-"));
    match qos_class(pod) {
        _ if critical => -997,
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => {
            let asked = request(container, "memory") / 1000;
            let score = 1000 - if node_memory > 0 { 1000 * asked / node_memory } else { 0 };
            i64::try_from(score).unwrap_or(999).clamp(3, 999)
        }
    }
}

/// Replaces `$(NAME)` by the variable's value. `$$` stands for `$`; an unknown name stays as it is.
pub fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
        } else if let Some((name, tail)) = after.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match variables.get(name) {
                Some(value) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

/// The host name inside the pod, and its fully qualified form when a subdomain gives it one.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> (String, Option<String>) {
    let spec = spec(pod);
    if let Some(name) = spec.hostname_override.as_deref().filter(|h| !h.is_empty()) {
        return (name.into(), None);
    }
    let given = spec.hostname.as_deref().filter(|h| !h.is_empty()).unwrap_or_else(|| name(pod));
    // The kernel takes 64 bytes, and a name must not end with a separator.
    let short: String = given.chars().take(63).collect();
    let short = short.trim_end_matches(['-', '.']).to_string();
    let domain = spec.subdomain.as_deref().filter(|s| !s.is_empty());
    let full = domain.map(|d| format!("{short}.{d}.{}.svc.{cluster_domain}", namespace(pod)));
    (short, full)
}

/// Whether a container that ended with `exit_code` is to be started again.
pub fn should_restart(pod: &Pod, role: Role, container: &Container, exit_code: i32) -> bool {
    if role == Role::Ephemeral {
        return false;
    }
    for rule in container.restart_policy_rules.iter().flatten() {
        let Some(codes) = &rule.exit_codes else { continue };
        let listed = codes.values.iter().flatten().any(|v| *v == exit_code);
        if (codes.operator == "In" && listed) || (codes.operator == "NotIn" && !listed) {
            return rule.action.starts_with("Restart");
        }
    }
    let policy = container.restart_policy.as_deref().or(spec(pod).restart_policy.as_deref()).unwrap_or("Always");
    match (policy, role) {
        ("Never", _) => false,
        // An init container that reached its end is done, whatever the policy.
        ("Always", Role::Init) | ("OnFailure", _) => exit_code != 0,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u"}, "spec": value
        }))
        .unwrap()
    }

    #[test]
    fn quantities() {
        for (text, wanted) in [
            ("1", Some(1000)),
            ("100m", Some(100)),
            ("0.5", Some(500)),
            ("1.5Gi", Some(1_610_612_736_000)),
            ("1Ki", Some(1_024_000)),
            ("2k", Some(2_000_000)),
            ("1e3", Some(1_000_000)),
            ("1E", Some(1_000_000_000_000_000_000_000)),
            ("5n", Some(1)),
            ("-2", Some(-2000)),
            ("", None),
            ("x", None),
            ("1Qi", None),
        ] {
            assert_eq!(milli(&Quantity(text.into())), wanted, "{text}");
        }
    }

    #[test]
    fn expansion() {
        let variables = BTreeMap::from([("A".to_string(), "1".to_string())]);
        for (text, wanted) in [
            ("x$(A)y", "x1y"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("end$", "end$"),
        ] {
            assert_eq!(expand(text, &variables), wanted, "{text}");
        }
    }

    proptest! {
        /// Text without a dollar sign never changes, and expansion never fails.
        #[test]
        fn expansion_leaves_plain_text(text in "[^$]*", wild in ".*") {
            prop_assert_eq!(expand(&text, &BTreeMap::new()), text);
            expand(&wild, &BTreeMap::new());
        }
    }

    #[test]
    fn quality_of_service() {
        let res = |r: serde_json::Value| pod(serde_json::json!({"containers": [{"name": "a", "resources": r}]}));
        for (resources, wanted) in [
            (serde_json::json!({}), "BestEffort"),
            (serde_json::json!({"requests": {"cpu": "1"}}), "Burstable"),
            (serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
            (
                serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}}),
                "Guaranteed",
            ),
            (serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1m"}}), "Burstable"),
        ] {
            assert_eq!(qos_class(&res(resources.clone())), wanted, "{resources}");
        }
    }

    #[test]
    fn restart_decisions() {
        let container = |extra: serde_json::Value| -> Container {
            let mut base = serde_json::json!({"name": "a"});
            base.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            serde_json::from_value(base).unwrap()
        };
        let none = serde_json::json!({});
        let rules = serde_json::json!({"restartPolicy": "Never",
            "restartPolicyRules": [{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]});
        for (policy, role, extra, code, wanted) in [
            ("Always", Role::Regular, &none, 0, true),
            ("OnFailure", Role::Regular, &none, 0, false),
            ("OnFailure", Role::Regular, &none, 1, true),
            ("Never", Role::Regular, &none, 1, false),
            ("Always", Role::Init, &none, 0, false),
            ("Always", Role::Init, &none, 2, true),
            ("Never", Role::Init, &none, 2, false),
            ("Always", Role::Ephemeral, &none, 1, false),
            ("Always", Role::Regular, &rules, 42, true),
            ("Always", Role::Regular, &rules, 1, false),
        ] {
            let pod = pod(serde_json::json!({"containers": [], "restartPolicy": policy}));
            let got = should_restart(&pod, role, &container(extra.clone()), code);
            assert_eq!(got, wanted, "{policy} {role:?} {extra} {code}");
        }
    }

    #[test]
    fn host_names() {
        let with_domain = pod(serde_json::json!({"containers": [], "hostname": "a", "subdomain": "b"}));
        assert_eq!(hostname(&with_domain, "x.y"), ("a".into(), Some("a.b.shop.svc.x.y".into())));
        assert_eq!(hostname(&pod(serde_json::json!({"containers": []})), "x"), ("web".into(), None));
    }
}
