//! Role-based access control: roles and bindings compiled into an index by subject.
//!
//! The index is rebuilt when one of the four collections has changed since it was made, and shared behind an atomic
//! pointer: a decision takes no lock. Rules only ever allow.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::User;

/// A request as authorisation sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Verb (`get`, `list`, ... or the lower-case method of a non-resource request).
    pub verb: String,
    /// API group.
    pub group: String,
    /// API version; RBAC does not look at it.
    pub version: String,
    /// Resource, with its subresource (`pods/log`).
    pub resource: String,
    /// Object name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Path of a non-resource request; empty for resources.
    pub path: String,
}

impl Attributes {
    /// Attributes of a request to a resource.
    #[must_use]
    pub fn resource(verb: &str, group: &str, resource: &str, namespace: &str, name: &str) -> Self {
        Self {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Self::default()
        }
    }
}

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Verbs, or `*`.
    pub verbs: Vec<String>,
    /// API groups, or `*`.
    pub groups: Vec<String>,
    /// Resources: `pods`, `pods/log`, `*/scale`, or `*`.
    pub resources: Vec<String>,
    /// Names the rule is limited to; empty: all.
    pub names: Vec<String>,
    /// Non-resource paths, with an optional `*` at the end.
    pub paths: Vec<String>,
}

impl Rule {
    /// Reads a rule object.
    #[must_use]
    pub fn parse(v: &Value) -> Self {
        let list = |k: &str| {
            v.get(k)
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .filter_map(|s| s.as_str().map(str::to_owned))
                .collect()
        };
        Self {
            verbs: list("verbs"),
            groups: list("apiGroups"),
            resources: list("resources"),
            names: list("resourceNames"),
            paths: list("nonResourceURLs"),
        }
    }

    /// Whether the rule allows the request.
    #[must_use]
    pub fn allows(&self, a: &Attributes) -> bool {
        if !has(&self.verbs, &a.verb) {
            return false;
        }
        if !a.path.is_empty() {
            return self.paths.iter().any(|p| path_matches(p, &a.path));
        }
        has(&self.groups, &a.group)
            && self.resources.iter().any(|r| resource_matches(r, &a.resource))
            && (self.names.is_empty() || self.names.contains(&a.name))
    }

    /// Whether everything `other` allows is allowed by this rule too; `other` must be a single-valued rule.
    fn covers(&self, other: &Rule) -> bool {
        let all = |mine: &[String], theirs: &[String]| theirs.iter().all(|t| has(mine, t));
        let resources = other
            .resources
            .iter()
            .all(|r| self.resources.iter().any(|m| m == "*" || m == r || (r != "*" && resource_matches(m, r))));
        let names =
            self.names.is_empty() || (!other.names.is_empty() && other.names.iter().all(|n| self.names.contains(n)));
        let paths = other.paths.iter().all(|p| self.paths.iter().any(|m| m == p || path_matches(m, p)));
        all(&self.verbs, &other.verbs) && all(&self.groups, &other.groups) && resources && names && paths
    }

    /// The rule split into rules of one verb, one group, one resource (and one name, or path).
    #[must_use]
    pub fn split(&self) -> Vec<Rule> {
        let mut out = vec![];
        let one = |s: &String| vec![s.clone()];
        for verb in &self.verbs {
            for path in &self.paths {
                out.push(Rule { verbs: one(verb), paths: one(path), ..Rule::default() });
            }
            for group in &self.groups {
                for resource in &self.resources {
                    let base =
                        Rule { verbs: one(verb), groups: one(group), resources: one(resource), ..Rule::default() };
                    if self.names.is_empty() {
                        out.push(base);
                    } else {
                        out.extend(self.names.iter().map(|n| Rule { names: one(n), ..base.clone() }));
                    }
                }
            }
        }
        out
    }
}

/// The part of `wanted` that `held` does not cover, each as a single-valued rule.
#[must_use]
pub fn missing(held: &[Arc<Vec<Rule>>], wanted: &[Rule]) -> Vec<Rule> {
    let covered = |r: &Rule| held.iter().flat_map(|h| h.iter()).any(|h| h.covers(r));
    wanted.iter().flat_map(Rule::split).filter(|r| !covered(r)).collect()
}

fn has(list: &[String], item: &str) -> bool {
    list.iter().any(|x| x == "*" || x == item)
}

fn path_matches(rule: &str, path: &str) -> bool {
    rule == "*" || rule == path || rule.strip_suffix('*').is_some_and(|p| path.starts_with(p))
}

fn resource_matches(rule: &str, resource: &str) -> bool {
    if rule == "*" || rule == resource {
        return true;
    }
    // `*/scale` covers the subresource of every resource; nothing covers all subresources of one.
    match (rule.strip_prefix("*/"), resource.split_once('/')) {
        (Some(sub), Some((_, s))) => sub == s,
        _ => false,
    }
}

/// A binding of one subject to a role's rules.
#[derive(Clone, Debug)]
struct Grant {
    /// Empty: everywhere.
    namespace: String,
    rules: Arc<Vec<Rule>>,
    /// For denial and review texts.
    binding: Arc<str>,
}

/// The compiled index.
#[derive(Debug, Default)]
pub struct Index {
    users: HashMap<String, Vec<Grant>>,
    groups: HashMap<String, Vec<Grant>>,
    /// Sum of the revisions the index was made from.
    pub stamp: u64,
}

/// The four collections, as objects.
#[derive(Debug, Default)]
pub struct Sources {
    /// ClusterRoles.
    pub cluster_roles: Vec<Value>,
    /// Roles.
    pub roles: Vec<Value>,
    /// ClusterRoleBindings.
    pub cluster_bindings: Vec<Value>,
    /// RoleBindings.
    pub bindings: Vec<Value>,
}

/// `rules` of a role object.
#[must_use]
pub fn rules_of(role: &Value) -> Vec<Rule> {
    role.get("rules").and_then(Value::as_array).into_iter().flatten().map(Rule::parse).collect()
}

impl Index {
    /// Compiles the collections.
    #[must_use]
    pub fn build(s: &Sources, stamp: u64) -> Self {
        use skiff_core::meta;
        let mut roles: HashMap<(&str, &str), Arc<Vec<Rule>>> = HashMap::new();
        for r in &s.cluster_roles {
            roles.insert(("", meta::name(r)), Arc::new(rules_of(r)));
        }
        for r in &s.roles {
            roles.insert((meta::namespace(r), meta::name(r)), Arc::new(rules_of(r)));
        }
        let mut index = Self { stamp, ..Self::default() };
        for b in s.cluster_bindings.iter().chain(&s.bindings) {
            let ns = meta::namespace(b);
            let role = &b["roleRef"];
            let scope = if role["kind"] == "ClusterRole" { "" } else { ns };
            let Some(rules) = roles.get(&(scope, role["name"].as_str().unwrap_or_default())) else { continue };
            let kind = if ns.is_empty() { "ClusterRoleBinding" } else { "RoleBinding" };
            let binding = describe(kind, b);
            for subject in b["subjects"].as_array().into_iter().flatten() {
                let name = subject["name"].as_str().unwrap_or_default();
                let subject_kind = subject["kind"].as_str().unwrap_or_default();
                let shown = match (subject_kind, subject["namespace"].as_str()) {
                    ("ServiceAccount", Some(in_ns)) => format!("{binding} to ServiceAccount \"{name}/{in_ns}\""),
                    _ => format!("{binding} to {subject_kind} \"{name}\""),
                };
                let grant = Grant { namespace: ns.to_owned(), rules: Arc::clone(rules), binding: Arc::from(shown) };
                match subject["kind"].as_str() {
                    Some("User") => index.users.entry(name.to_owned()).or_default().push(grant),
                    Some("Group") => index.groups.entry(name.to_owned()).or_default().push(grant),
                    Some("ServiceAccount") => {
                        let in_ns = subject["namespace"].as_str().filter(|n| !n.is_empty()).unwrap_or(ns);
                        let user = format!("system:serviceaccount:{in_ns}:{name}");
                        index.users.entry(user).or_default().push(grant);
                    }
                    _ => {}
                }
            }
        }
        index
    }

    fn grants<'a>(&'a self, user: &'a User, namespace: &'a str) -> impl Iterator<Item = &'a Grant> {
        let mine = self.users.get(&user.name).into_iter().flatten();
        let groups = user.groups.iter().filter_map(|g| self.groups.get(g)).flatten();
        mine.chain(groups)
            .filter(move |g| g.namespace.is_empty() || (!namespace.is_empty() && g.namespace == namespace))
    }

    /// The binding that allows the request, described; `None`: not allowed.
    #[must_use]
    pub fn allows(&self, user: &User, a: &Attributes) -> Option<Arc<str>> {
        let grant = self.grants(user, &a.namespace).find(|g| g.rules.iter().any(|r| r.allows(a)))?;
        Some(Arc::clone(&grant.binding))
    }

    /// All rules a user holds in a namespace (empty: cluster-wide only).
    #[must_use]
    pub fn rules_for(&self, user: &User, namespace: &str) -> Vec<Arc<Vec<Rule>>> {
        self.grants(user, namespace).map(|g| Arc::clone(&g.rules)).collect()
    }
}

fn describe(kind: &str, b: &Value) -> String {
    use skiff_core::meta;
    let ns = meta::namespace(b);
    let name = meta::name(b);
    let full = if ns.is_empty() { format!("{kind} \"{name}\"") } else { format!("{kind} \"{name}/{ns}\"") };
    let role = &b["roleRef"];
    format!("{full} of {} \"{}\"", role["kind"].as_str().unwrap_or_default(), role["name"].as_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rule(v: Value) -> Rule {
        Rule::parse(&v)
    }

    #[test]
    fn rules_match() {
        let r = rule(json!({"verbs":["get"],"apiGroups":[""],"resources":["pods","*/scale"]}));
        let a = |verb: &str, resource: &str| Attributes::resource(verb, "", resource, "n", "x");
        assert!(r.allows(&a("get", "pods")));
        assert!(!r.allows(&a("list", "pods")));
        assert!(!r.allows(&a("get", "pods/log")));
        assert!(r.allows(&a("get", "deployments/scale")));
        let r = rule(json!({"verbs":["get"],"nonResourceURLs":["/healthz","/a/*"]}));
        let p = |path: &str| Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() };
        assert!(r.allows(&p("/a/b")));
        assert!(!r.allows(&p("/b")));
    }

    #[test]
    fn names_do_not_cover_collections() {
        let r = rule(json!({"verbs":["*"],"apiGroups":["*"],"resources":["*"],"resourceNames":["a"]}));
        assert!(r.allows(&Attributes::resource("get", "", "pods", "n", "a")));
        assert!(!r.allows(&Attributes::resource("create", "", "pods", "n", "")));
    }

    #[test]
    fn what_is_missing() {
        let held = vec![Arc::new(vec![rule(json!({"verbs":["get","list"],"apiGroups":[""],"resources":["pods"]}))])];
        let want = [rule(json!({"verbs":["get","delete"],"apiGroups":[""],"resources":["pods"]}))];
        let m = missing(&held, &want);
        assert_eq!(m.len(), 1);
        assert_eq!(m[0].verbs, ["delete"]);
    }

    #[test]
    fn service_accounts_are_users() {
        let s = Sources {
            cluster_roles: vec![
                json!({"metadata":{"name":"r"},"rules":[{"verbs":["get"],"apiGroups":[""],"resources":["pods"]}]}),
            ],
            bindings: vec![json!({"metadata":{"name":"b","namespace":"n"},"roleRef":{"kind":"ClusterRole","name":"r"},
                "subjects":[{"kind":"ServiceAccount","name":"sa"}]})],
            ..Sources::default()
        };
        let i = Index::build(&s, 0);
        let u = User::new("system:serviceaccount:n:sa", &[]);
        assert!(i.allows(&u, &Attributes::resource("get", "", "pods", "n", "x")).is_some());
        assert!(i.allows(&u, &Attributes::resource("get", "", "pods", "m", "x")).is_none());
    }
}
