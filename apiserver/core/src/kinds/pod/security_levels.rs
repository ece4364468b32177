//! The Pod Security Standards: what a pod may do at the levels `baseline` and `restricted`, as a table of checks.
//!
//! Pure rules: whether a level is enforced, warned of or audited, and where, is admission's business. A check says
//! since which minor version of the standards it holds; a namespace may pin an older version.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::invalid::quote_str;
use crate::kinds::check::{given, list, text};

/// A level, in order of strictness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    /// Reads a label's value.
    #[must_use]
    pub fn parse(s: &str) -> Option<Self> {
        match s {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }
}

/// A level of the standards as they were at a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standard {
    /// Level.
    pub level: Level,
    /// Minor version; `None` is the latest.
    pub minor: Option<u32>,
}

impl Standard {
    /// Everything is allowed.
    pub const PRIVILEGED: Self = Self { level: Level::Privileged, minor: None };

    /// Reads a version label: `latest` or `v1.x`.
    #[must_use]
    #[allow(clippy::option_option, reason = "no version and the latest version are two things")]
    pub fn parse_minor(s: &str) -> Option<Option<u32>> {
        if s == "latest" {
            return Some(None);
        }
        let minor = s.strip_prefix("v1.")?;
        let plain = minor == "0" || !minor.starts_with('0');
        (plain && minor.bytes().all(|b| b.is_ascii_digit())).then(|| minor.parse().ok().map(Some))?
    }
}

impl std::fmt::Display for Standard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.minor {
            None => write!(f, "{}:latest", self.level.name()),
            Some(m) => write!(f, "{}:v1.{m}", self.level.name()),
        }
    }
}

/// One thing that a pod may not do at a level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// In two words.
    pub reason: String,
    /// Who sets what, or should.
    pub detail: String,
}

type Check = fn(&Pod<'_>) -> Option<Violation>;

/// Checks of the baseline: name, since which minor version, rule.
const BASELINE: &[(&str, u32, Check)] = &[
    ("appArmorProfile", 0, app_armor),
    ("capabilities_baseline", 0, capabilities),
    ("hostNamespaces", 0, host_namespaces),
    ("hostPathVolumes", 0, host_paths),
    ("hostPorts", 0, host_ports),
    ("hostProbesAndHostLifecycle", 34, host_probes),
    ("privileged", 0, privileged),
    ("procMount", 0, proc_mount),
    ("seLinuxOptions", 0, se_linux),
    ("seccompProfile_baseline", 19, seccomp),
    ("sysctls", 0, sysctls),
    ("windowsHostProcess", 0, host_process),
];
/// Checks that the restricted level adds, and which check of the baseline each takes the place of.
const RESTRICTED: &[(&str, u32, &str, Check)] = &[
    ("allowPrivilegeEscalation", 8, "", escalation),
    ("capabilities_restricted", 22, "capabilities_baseline", drop_all),
    ("restrictedVolumes", 0, "hostPathVolumes", volume_types),
    ("runAsNonRoot", 0, "", non_root),
    ("runAsUser", 23, "", root_user),
    ("seccompProfile_restricted", 19, "seccompProfile_baseline", seccomp_set),
];

/// What `pod` (metadata and spec, of a pod or a template) does that the standard does not allow.
#[must_use]
pub fn violations(standard: Standard, pod: &Value) -> Vec<Violation> {
    if standard.level == Level::Privileged {
        return vec![];
    }
    let since = |min: u32| standard.minor.is_none_or(|m| m >= min);
    let pod = Pod { meta: &pod["metadata"], spec: &pod["spec"], minor: standard.minor };
    let more: Vec<_> = if standard.level == Level::Restricted {
        RESTRICTED.iter().filter(|(_, min, ..)| since(*min)).collect()
    } else {
        vec![]
    };
    let replaced = |id: &str| more.iter().any(|(_, _, over, _)| *over == id);
    let basic = BASELINE.iter().filter(|(id, min, _)| since(*min) && !replaced(id)).filter_map(|(_, _, f)| f(&pod));
    basic.chain(more.iter().filter_map(|(_, _, _, f)| f(&pod))).collect()
}

/// `reason (detail), reason (detail)`.
#[must_use]
pub fn details(all: &[Violation]) -> String {
    let one =
        |v: &Violation| if v.detail.is_empty() { v.reason.clone() } else { format!("{} ({})", v.reason, v.detail) };
    all.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// `reason, reason`.
#[must_use]
pub fn reasons(all: &[Violation]) -> String {
    all.iter().map(|v| v.reason.as_str()).collect::<Vec<_>>().join(", ")
}

struct Pod<'a> {
    meta: &'a Value,
    spec: &'a Value,
    minor: Option<u32>,
}

impl<'a> Pod<'a> {
    fn containers(&self) -> impl Iterator<Item = &'a Value> {
        let spec = self.spec;
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|l| list(spec, l))
    }

    fn windows(&self) -> bool {
        self.minor.is_none_or(|m| m >= 25) && self.spec["os"]["name"] == "windows"
    }

    /// Names of the containers for which `f` holds.
    fn named(&self, f: impl Fn(&Value) -> bool) -> Vec<&'a str> {
        self.containers().filter(|c| f(c)).map(|c| text(c, "name")).collect()
    }

    /// Who sets something forbidden in its security context: the pod, containers; with the values.
    fn setters(&self, value: impl Fn(&Value) -> Option<String>) -> (Vec<String>, BTreeSet<String>) {
        let (mut who, mut values) = (vec![], BTreeSet::new());
        if let Some(v) = value(&self.spec["securityContext"]) {
            who.push("pod".to_owned());
            values.insert(v);
        }
        let mut names = vec![];
        for c in self.containers() {
            if let Some(v) = value(&c["securityContext"]) {
                names.push(text(c, "name"));
                values.insert(v);
            }
        }
        if !names.is_empty() {
            who.push(containers(&names));
        }
        (who, values)
    }
}

fn plural(n: usize, one: &'static str, many: &'static str) -> &'static str {
    if n == 1 { one } else { many }
}

fn quoted<S: AsRef<str>>(all: impl IntoIterator<Item = S>) -> String {
    all.into_iter().map(|s| quote_str(s.as_ref())).collect::<Vec<_>>().join(", ")
}

/// `container "a"`, `containers "a", "b"`.
fn containers(names: &[&str]) -> String {
    format!("{} {}", plural(names.len(), "container", "containers"), quoted(names))
}

fn found(reason: &str, detail: String) -> Option<Violation> {
    Some(Violation { reason: reason.to_owned(), detail })
}

fn privileged(p: &Pod<'_>) -> Option<Violation> {
    let bad = p.named(|c| c["securityContext"]["privileged"] == true);
    if bad.is_empty() {
        return None;
    }
    found("privileged", format!("{} must not set securityContext.privileged=true", containers(&bad)))
}

fn host_namespaces(p: &Pod<'_>) -> Option<Violation> {
    let set = ["hostNetwork", "hostPID", "hostIPC"].into_iter().filter(|k| p.spec[*k] == true);
    let bad: Vec<String> = set.map(|k| format!("{k}=true")).collect();
    if bad.is_empty() { None } else { found("host namespaces", bad.join(", ")) }
}

fn host_paths(p: &Pod<'_>) -> Option<Violation> {
    let bad: Vec<&str> =
        list(p.spec, "volumes").iter().filter(|v| given(v, "hostPath")).map(|v| text(v, "name")).collect();
    if bad.is_empty() {
        return None;
    }
    found("hostPath volumes", format!("{} {}", plural(bad.len(), "volume", "volumes"), quoted(&bad)))
}

fn host_ports(p: &Pod<'_>) -> Option<Violation> {
    let mut ports = BTreeSet::new();
    let bad = p.named(|c| list(c, "ports").iter().any(|q| q["hostPort"].as_i64().unwrap_or(0) != 0));
    for c in p.containers() {
        ports.extend(list(c, "ports").iter().filter_map(|q| q["hostPort"].as_i64()).filter(|n| *n != 0));
    }
    if bad.is_empty() {
        return None;
    }
    let shown: Vec<String> = ports.iter().map(ToString::to_string).collect();
    let (uses, what) = (plural(bad.len(), "uses", "use"), plural(shown.len(), "hostPort", "hostPorts"));
    found("hostPort", format!("{} {uses} {what} {}", containers(&bad), shown.join(", ")))
}

fn host_probes(p: &Pod<'_>) -> Option<Violation> {
    let hosts = |c: &Value| -> Vec<String> {
        let probes = ["livenessProbe", "readinessProbe", "startupProbe"].map(|k| c[k].clone());
        let hooks = ["postStart", "preStop"].map(|k| c["lifecycle"][k].clone());
        let handlers = probes.iter().chain(&hooks).flat_map(|h| [&h["httpGet"], &h["tcpSocket"]]);
        handlers.map(|h| text(h, "host").to_owned()).filter(|h| !h.is_empty()).collect()
    };
    let bad = p.named(|c| !hosts(c).is_empty());
    if bad.is_empty() {
        return None;
    }
    let all: BTreeSet<String> = p.containers().flat_map(hosts).collect();
    let (uses, what) = (plural(bad.len(), "uses", "use"), plural(all.len(), "host", "hosts"));
    found("probe or lifecycle host", format!("{} {uses} probe or lifecycle {what} {}", containers(&bad), quoted(&all)))
}

fn host_process(p: &Pod<'_>) -> Option<Violation> {
    let set = |s: &Value| (s["windowsOptions"]["hostProcess"] == true).then(String::new);
    let (who, _) = p.setters(set);
    if who.is_empty() {
        return None;
    }
    let detail = format!("{} must not set securityContext.windowsOptions.hostProcess=true", who.join(" and "));
    found("hostProcess", detail)
}

fn added<'a>(c: &'a Value, allowed: &'a [&str]) -> impl Iterator<Item = &'a str> {
    let all = list(&c["securityContext"]["capabilities"], "add").iter().filter_map(Value::as_str);
    all.filter(move |a| !allowed.contains(a))
}

fn capabilities(p: &Pod<'_>) -> Option<Violation> {
    const ALLOWED: &[&str] = &[
        "AUDIT_WRITE",
        "CHOWN",
        "DAC_OVERRIDE",
        "FOWNER",
        "FSETID",
        "KILL",
        "MKNOD",
        "NET_BIND_SERVICE",
        "SETFCAP",
        "SETGID",
        "SETPCAP",
        "SETUID",
        "SYS_CHROOT",
    ];
    let bad = p.named(|c| added(c, ALLOWED).next().is_some());
    if bad.is_empty() {
        return None;
    }
    let which: BTreeSet<&str> = p.containers().flat_map(|c| added(c, ALLOWED)).collect();
    let detail =
        format!("{} must not include {} in securityContext.capabilities.add", containers(&bad), quoted(&which));
    found("non-default capabilities", detail)
}

fn drop_all(p: &Pod<'_>) -> Option<Violation> {
    const ALLOWED: &[&str] = &["NET_BIND_SERVICE"];
    if p.windows() {
        return None;
    }
    let mut parts = vec![];
    let dropped = |c: &Value| list(&c["securityContext"]["capabilities"], "drop").iter().any(|d| d == "ALL");
    let keep = p.named(|c| !dropped(c));
    if !keep.is_empty() {
        parts.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keep)));
    }
    let bad = p.named(|c| added(c, ALLOWED).next().is_some());
    if !bad.is_empty() {
        let which: BTreeSet<&str> = p.containers().flat_map(|c| added(c, ALLOWED)).collect();
        let (who, what) = (containers(&bad), quoted(&which));
        parts.push(format!("{who} must not include {what} in securityContext.capabilities.add"));
    }
    if parts.is_empty() { None } else { found("unrestricted capabilities", parts.join("; ")) }
}

fn app_armor(p: &Pod<'_>) -> Option<Violation> {
    const PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
    let bad = |s: &Value| {
        let kind = s["appArmorProfile"]["type"].as_str()?;
        (!matches!(kind, "RuntimeDefault" | "Localhost")).then(|| kind.to_owned())
    };
    let (mut who, mut values) = p.setters(bad);
    let mut notes = BTreeSet::new();
    for (k, v) in p.meta["annotations"].as_object().into_iter().flatten().filter(|(k, _)| k.starts_with(PREFIX)) {
        let v = v.as_str().unwrap_or_default();
        if !(v.is_empty() || v == "runtime/default" || v.starts_with("localhost/")) {
            notes.insert(k.as_str());
            values.insert(v.to_owned());
        }
    }
    if !notes.is_empty() {
        who.push(format!("{} {}", plural(notes.len(), "annotation", "annotations"), quoted(&notes)));
    }
    if who.is_empty() {
        return None;
    }
    let reason = plural(values.len(), "forbidden AppArmor profile", "forbidden AppArmor profiles");
    found(reason, format!("{} must not set AppArmor profile type to {}", who.join(" and "), quoted(&values)))
}

fn se_linux(p: &Pod<'_>) -> Option<Violation> {
    let newer = p.minor.is_none_or(|m| m >= 31);
    let ok = |t: &str| {
        matches!(t, "" | "container_t" | "container_init_t" | "container_kvm_t") || (newer && t == "container_engine_t")
    };
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut look = |s: &Value| {
        let o = &s["seLinuxOptions"];
        let (t, u, r) = (text(o, "type"), !text(o, "user").is_empty(), !text(o, "role").is_empty());
        if !ok(t) {
            types.insert(t.to_owned());
        }
        user |= u;
        role |= r;
        !ok(t) || u || r
    };
    let mut who = vec![];
    if look(&p.spec["securityContext"]) {
        who.push("pod".to_owned());
    }
    let names: Vec<&str> = p.containers().filter(|c| look(&c["securityContext"])).map(|c| text(c, "name")).collect();
    if !names.is_empty() {
        who.push(containers(&names));
    }
    if who.is_empty() {
        return None;
    }
    let mut what = vec![];
    if !types.is_empty() {
        what.push(format!("{} {}", plural(types.len(), "type", "types"), quoted(&types)));
    }
    if user {
        what.push("user may not be set".to_owned());
    }
    if role {
        what.push("role may not be set".to_owned());
    }
    let detail = format!("{} set forbidden securityContext.seLinuxOptions: {}", who.join(" and "), what.join("; "));
    found("seLinuxOptions", detail)
}

fn proc_mount(p: &Pod<'_>) -> Option<Violation> {
    let other = |c: &Value| c["securityContext"]["procMount"].as_str().filter(|m| *m != "Default").map(str::to_owned);
    let bad = p.named(|c| other(c).is_some());
    if bad.is_empty() {
        return None;
    }
    let values: BTreeSet<String> = p.containers().filter_map(other).collect();
    let detail = format!("{} must not set securityContext.procMount to {}", containers(&bad), quoted(&values));
    found("procMount", detail)
}

fn bad_seccomp(p: &Pod<'_>) -> Option<Violation> {
    let bad = |s: &Value| {
        let kind = s["seccompProfile"]["type"].as_str()?;
        (!matches!(kind, "RuntimeDefault" | "Localhost")).then(|| kind.to_owned())
    };
    let (who, values) = p.setters(bad);
    if who.is_empty() {
        return None;
    }
    let (who, what) = (who.join(" and "), quoted(&values));
    found("seccompProfile", format!("{who} must not set securityContext.seccompProfile.type to {what}"))
}

fn seccomp(p: &Pod<'_>) -> Option<Violation> {
    bad_seccomp(p)
}

fn seccomp_set(p: &Pod<'_>) -> Option<Violation> {
    if p.windows() {
        return None;
    }
    if let Some(v) = bad_seccomp(p) {
        return Some(v);
    }
    let set = |s: &Value| given(&s["seccompProfile"], "type");
    if set(&p.spec["securityContext"]) {
        return None;
    }
    let bad = p.named(|c| !set(&c["securityContext"]));
    if bad.is_empty() {
        return None;
    }
    let who = containers(&bad);
    let detail =
        format!("pod or {who} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"");
    found("seccompProfile", detail)
}

fn sysctls(p: &Pod<'_>) -> Option<Violation> {
    /// Harmless ones, since which minor version of the standards.
    const SAFE: &[(&str, u32)] = &[
        ("kernel.shm_rmid_forced", 0),
        ("net.ipv4.ip_local_port_range", 0),
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.ping_group_range", 0),
        ("net.ipv4.ip_unprivileged_port_start", 0),
        ("net.ipv4.ip_local_reserved_ports", 27),
        ("net.ipv4.tcp_keepalive_time", 29),
        ("net.ipv4.tcp_fin_timeout", 29),
        ("net.ipv4.tcp_keepalive_intvl", 29),
        ("net.ipv4.tcp_keepalive_probes", 29),
        ("net.ipv4.tcp_rmem", 32),
        ("net.ipv4.tcp_wmem", 32),
    ];
    let safe = |n: &str| SAFE.iter().any(|(s, min)| *s == n && p.minor.is_none_or(|m| m >= *min));
    let all = list(&p.spec["securityContext"], "sysctls").iter().map(|s| text(s, "name"));
    let bad: Vec<&str> = all.filter(|n| !safe(n)).collect();
    if bad.is_empty() { None } else { found("forbidden sysctls", bad.join(", ")) }
}

fn escalation(p: &Pod<'_>) -> Option<Violation> {
    if p.windows() {
        return None;
    }
    let bad = p.named(|c| c["securityContext"]["allowPrivilegeEscalation"] != false);
    if bad.is_empty() {
        return None;
    }
    let detail = format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&bad));
    found("allowPrivilegeEscalation != false", detail)
}

fn volume_types(p: &Pod<'_>) -> Option<Violation> {
    const ALLOWED: &[&str] =
        &["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];
    let kind = |v: &Value| -> Option<String> {
        let other = v.as_object()?.iter().find(|(k, x)| *k != "name" && !x.is_null())?;
        (!ALLOWED.contains(&other.0.as_str())).then(|| other.0.clone())
    };
    let volumes = list(p.spec, "volumes");
    let bad: Vec<&str> = volumes.iter().filter(|v| kind(v).is_some()).map(|v| text(v, "name")).collect();
    if bad.is_empty() {
        return None;
    }
    let kinds: BTreeSet<String> = volumes.iter().filter_map(kind).collect();
    let (what, uses) = (plural(bad.len(), "volume", "volumes"), plural(bad.len(), "uses", "use"));
    let sort = plural(kinds.len(), "restricted volume type", "restricted volume types");
    found("restricted volume types", format!("{what} {} {uses} {sort} {}", quoted(&bad), quoted(&kinds)))
}

fn non_root(p: &Pod<'_>) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    let (who, _) = p.setters(|s| (s["runAsNonRoot"] == false).then(String::new));
    if !who.is_empty() {
        return found(REASON, format!("{} must not set securityContext.runAsNonRoot=false", who.join(" and ")));
    }
    if p.spec["securityContext"]["runAsNonRoot"] == true {
        return None;
    }
    let bad = p.named(|c| c["securityContext"]["runAsNonRoot"].is_null());
    if bad.is_empty() {
        return None;
    }
    found(REASON, format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&bad)))
}

fn root_user(p: &Pod<'_>) -> Option<Violation> {
    let (who, _) = p.setters(|s| (s["runAsUser"] == 0).then(String::new));
    if who.is_empty() {
        return None;
    }
    found("runAsUser=0", format!("{} must not set runAsUser=0", who.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(standard: &str, pod: Value, want: &str) {
        let (level, version) = standard.split_once(':').expect("level and version");
        let minor = Standard::parse_minor(version).expect("a version");
        let s = Standard { level: Level::parse(level).expect("a level"), minor };
        assert_eq!(details(&violations(s, &pod)), want, "{standard} {pod}");
    }

    fn one(c: Value) -> Value {
        let mut c = c;
        c["name"] = "c".into();
        json!({"spec": {"containers": [c]}})
    }

    #[test]
    fn baseline() {
        let security = |s: Value| one(json!({"securityContext": s}));
        for (pod, want) in [
            (one(json!({})), ""),
            (
                security(json!({"privileged": true})),
                "privileged (container \"c\" must not set securityContext.privileged=true)",
            ),
            (
                security(json!({"capabilities": {"add": ["NET_ADMIN", "CHOWN", "BPF"]}})),
                "non-default capabilities (container \"c\" must not include \"BPF\", \"NET_ADMIN\" in securityContext.capabilities.add)",
            ),
            (one(json!({"ports": [{"hostPort": 80}]})), "hostPort (container \"c\" uses hostPort 80)"),
            (
                security(json!({"seccompProfile": {"type": "Unconfined"}})),
                "seccompProfile (container \"c\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
            (
                json!({"spec": {"hostPID": true, "hostIPC": true, "volumes": [{"name": "v", "hostPath": {}}]}}),
                "host namespaces (hostPID=true, hostIPC=true), hostPath volumes (volume \"v\")",
            ),
            (
                json!({"spec": {"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}}),
                "forbidden sysctls (kernel.msgmax)",
            ),
        ] {
            check("baseline:latest", pod, want);
        }
    }

    #[test]
    fn restricted_takes_the_place_of_baseline() {
        let pod = json!({"spec": {"volumes": [{"name": "v", "hostPath": {}}], "securityContext": {"runAsNonRoot": true,
            "runAsUser": 0, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {"allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]}}}]}});
        check(
            "restricted:latest",
            pod.clone(),
            "unrestricted capabilities (container \"c\" must not include \"CHOWN\" in securityContext.capabilities.add), \
             restricted volume types (volume \"v\" uses restricted volume type \"hostPath\"), \
             runAsUser=0 (pod must not set runAsUser=0)",
        );
        // Before 1.22 and 1.23 the standards said less.
        check(
            "restricted:v1.21",
            pod,
            "restricted volume types (volume \"v\" uses restricted volume type \"hostPath\")",
        );
    }

    #[test]
    fn versions() {
        for (s, want) in [
            ("latest", Some(None)),
            ("v1.24", Some(Some(24))),
            ("v1.0", Some(Some(0))),
            ("v1.024", None),
            ("v1.", None),
            ("1.24", None),
            ("v2.0", None),
        ] {
            assert_eq!(Standard::parse_minor(s), want, "{s}");
        }
    }
}
