//! Which requests are recorded, and how much of them: `audit.k8s.io/v1` Policy. The first rule that fits decides; what no rule
//! fits is not recorded.

use serde::{Deserialize, Serialize};

use crate::auth::User;

/// How much of a request is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who, when, what, with what result.
    Metadata,
    /// The request's object too.
    Request,
    /// The answer's object too.
    RequestResponse,
}

/// Where a request is when it is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// It is known who asks for what.
    RequestReceived,
    /// The head of a long answer was sent.
    ResponseStarted,
    /// All was sent.
    ResponseComplete,
    /// The handler panicked.
    Panic,
}

/// Resources of a group.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GroupResources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// One rule. What it leaves out fits everything.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<GroupResources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    paths: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

/// A policy.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    api_version: String,
    kind: String,
    #[serde(default)]
    #[allow(dead_code, reason = "may be there, says nothing")]
    metadata: serde_json::Value,
    rules: Vec<Rule>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
}

/// A policy that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It is no policy.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// It is something else.
    #[error("it is {0}, not audit.k8s.io/v1 Policy")]
    Other(String),
    /// It records nothing.
    #[error("it has no rules")]
    Empty,
    /// A rule is about two kinds of requests.
    #[error("rules[{0}]: a rule cannot apply to both regular resources and non-resource URLs")]
    Mixed(usize),
    /// A path that nothing fits.
    #[error("rules[{0}]: {1:?} must begin with '/' and may have '*' at its end only")]
    Path(usize, String),
}

/// What a request is about.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Verb, or the lower-case method of a request that is about no resource.
    pub verb: String,
    /// Group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Resource. Empty: the request is about a path.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Path.
    pub path: String,
}

/// What a policy says of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// How much is recorded.
    pub level: Level,
    /// When it is not.
    pub omit: Vec<Stage>,
    /// Whether objects are recorded without their managedFields.
    pub omit_managed_fields: bool,
}

impl GroupResources {
    fn fits(&self, about: &About) -> bool {
        if self.group != about.group {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let named = self.resource_names.is_empty() || self.resource_names.contains(&about.name);
        named && self.resources.iter().any(|r| resource_fits(r, about))
    }
}

/// Whether `pods`, `pods/log`, `pods/*`, `*/log` or `*` fits.
fn resource_fits(pattern: &str, about: &About) -> bool {
    match pattern.split_once('/') {
        None if pattern == "*" => true,
        None => pattern == about.resource && about.subresource.is_empty(),
        Some(("*", sub)) => !about.subresource.is_empty() && sub == about.subresource,
        Some((resource, "*")) => resource == about.resource,
        Some((resource, sub)) => resource == about.resource && sub == about.subresource,
    }
}

/// Whether a path is `pattern`, or begins so where that ends with `*`.
fn path_fits(pattern: &str, path: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == path, |start| path.starts_with(start))
}

impl Rule {
    fn fits(&self, user: &User, about: &About) -> bool {
        let among = |wanted: &[String], value: &str| wanted.is_empty() || wanted.iter().any(|w| w == value);
        if !among(&self.users, &user.name) || !among(&self.verbs, &about.verb) {
            return false;
        }
        if !self.user_groups.is_empty() && !user.groups.iter().any(|g| self.user_groups.contains(g)) {
            return false;
        }
        let is_resource = !about.resource.is_empty();
        if !self.paths.is_empty() {
            return !is_resource && self.paths.iter().any(|p| path_fits(p, &about.path));
        }
        if self.namespaces.is_empty() && self.resources.is_empty() {
            return true;
        }
        let of_resources = self.resources.is_empty() || self.resources.iter().any(|r| r.fits(about));
        is_resource && among(&self.namespaces, &about.namespace) && of_resources
    }
}

impl Policy {
    /// Reads one, in YAML or JSON.
    ///
    /// # Errors
    /// See [`PolicyError`].
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let policy: Self = serde_saphyr::from_str(text).map_err(|e| PolicyError::Unreadable(e.to_string()))?;
        if (policy.api_version.as_str(), policy.kind.as_str()) != ("audit.k8s.io/v1", "Policy") {
            return Err(PolicyError::Other(format!("{} {}", policy.api_version, policy.kind)));
        }
        if policy.rules.is_empty() {
            return Err(PolicyError::Empty);
        }
        for (i, rule) in policy.rules.iter().enumerate() {
            if !rule.paths.is_empty() && (!rule.resources.is_empty() || !rule.namespaces.is_empty()) {
                return Err(PolicyError::Mixed(i));
            }
            let bad = |p: &&String| {
                let inner = p.strip_suffix('*').unwrap_or(p);
                (p.as_str() != "*" && !p.starts_with('/')) || inner.contains('*')
            };
            if let Some(path) = rule.paths.iter().find(bad) {
                return Err(PolicyError::Path(i, path.clone()));
            }
        }
        Ok(policy)
    }

    /// What is recorded of a request.
    #[must_use]
    pub fn decide(&self, user: &User, about: &About) -> Decision {
        let Some(rule) = self.rules.iter().find(|r| r.fits(user, about)) else { return Decision::default() };
        Decision {
            level: rule.level,
            omit: self.omit_stages.iter().chain(&rule.omit_stages).copied().collect(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(verb: &str, resource: &str, namespace: &str, name: &str) -> About {
        let (resource, sub) = resource.split_once('/').unwrap_or((resource, ""));
        let (group, resource) = resource.split_once(':').unwrap_or(("", resource));
        let own = |t: &str| t.to_owned();
        About {
            verb: own(verb),
            group: own(group),
            resource: own(resource),
            subresource: own(sub),
            namespace: own(namespace),
            name: own(name),
            ..About::default()
        }
    }

    #[test]
    fn the_first_rule_that_fits_decides() {
        let policy = Policy::parse(
            r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:kube-proxy"]
  verbs: [watch]
- level: None
  nonResourceURLs: ["/healthz*", /version]
- level: Metadata
  resources: [{group: "", resources: [secrets, "serviceaccounts/token"]}]
- level: Request
  omitManagedFields: true
  resources: [{group: "", resources: [pods], resourceNames: [special]}]
- level: None
  userGroups: ["system:nodes"]
- level: RequestResponse
  namespaces: [kube-system]
  omitStages: [ResponseStarted]
- level: Metadata
  resources: [{group: apps}, {group: "", resources: ["*/status", "pods/*"]}]
"#,
        )
        .unwrap();
        let path = |p: &str| About { verb: "get".into(), path: p.into(), ..About::default() };
        for (user, about, level) in [
            ("system:kube-proxy", about("watch", "services", "", ""), Level::None),
            ("alice", path("/healthz/etcd"), Level::None),
            ("alice", path("/metrics"), Level::None),
            ("alice", about("get", "secrets", "a", "s"), Level::Metadata),
            ("alice", about("create", "serviceaccounts/token", "a", "s"), Level::Metadata),
            ("alice", about("get", "serviceaccounts", "a", "s"), Level::None),
            ("alice", about("get", "pods", "a", "special"), Level::Request),
            ("alice", about("get", "pods", "a", "other"), Level::Metadata),
            ("alice", about("get", "pods/exec", "a", "special"), Level::Metadata),
            ("node", about("get", "pods", "kube-system", "x"), Level::None),
            ("alice", about("get", "configmaps", "kube-system", "x"), Level::RequestResponse),
            ("alice", about("get", "configmaps", "a", "x"), Level::None),
            ("alice", about("get", "nodes/status", "", "x"), Level::Metadata),
            ("alice", about("get", "apps:deployments/scale", "a", "x"), Level::Metadata),
        ] {
            let groups: &[&str] = if user == "node" { &["system:nodes"] } else { &[] };
            let decision = policy.decide(&User::new(user, groups), &about);
            assert_eq!(decision.level, level, "{user} {about:?}");
        }
        let decision = policy.decide(&User::new("a", &[]), &about("get", "configmaps", "kube-system", "x"));
        assert_eq!(decision.omit, [Stage::RequestReceived, Stage::ResponseStarted]);
        assert!(policy.decide(&User::new("a", &[]), &about("get", "pods", "a", "special")).omit_managed_fields);
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        let head = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";
        for (text, word) in [
            (String::new(), "cannot be read"),
            (format!("{head}rules: []"), "no rules"),
            (format!("{head}rules: [{{level: Everything}}]"), "cannot be read"),
            (format!("{head}rules: [{{level: None, user: a}}]"), "cannot be read"),
            ("apiVersion: v1\nkind: Policy\nrules: [{level: None}]".to_owned(), "it is v1 Policy"),
            (format!("{head}rules: [{{level: None, nonResourceURLs: [/a], namespaces: [b]}}]"), "rules[0]"),
            (format!("{head}rules: [{{level: None}}, {{level: None, nonResourceURLs: ['/a*b']}}]"), "rules[1]"),
        ] {
            let error = Policy::parse(&text).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
