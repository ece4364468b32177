//! Nobody gives away more than they have: creating or changing roles and bindings needs the rights in them.

use serde_json::Value;
use skiff_core::meta;
use skiff_core::status::Status;

use super::identity::MASTERS;
use super::rbac::{Attributes, Rule, missing, rules_of};
use crate::admission::{Operation, Review};

const GROUP: &str = "rbac.authorization.k8s.io";

/// Checks a write of an RBAC object.
///
/// # Errors
/// 403 naming what is missing.
pub fn check(r: &Review<'_>, obj: &Value) -> Result<(), Status> {
    if r.kind.group() != GROUP || r.operation == Operation::Delete || r.call.user.in_group(MASTERS) {
        return Ok(());
    }
    let plural = r.kind.plural();
    let (verb, resource, name, wanted) = match plural {
        "roles" | "clusterroles" => {
            if r.old.is_some_and(|o| {
                o.get("rules") == obj.get("rules") && o.get("aggregationRule") == obj.get("aggregationRule")
            }) {
                return Ok(());
            }
            // Aggregation gathers rules one cannot foresee: only the full set covers it.
            let mut rules = rules_of(obj);
            if obj.get("aggregationRule").is_some_and(|a| !a.is_null()) {
                let all = || vec!["*".to_owned()];
                rules.push(Rule { verbs: all(), groups: all(), resources: all(), ..Rule::default() });
                rules.push(Rule { verbs: all(), paths: all(), ..Rule::default() });
            }
            ("escalate", plural, meta::name(obj).to_owned(), rules)
        }
        "rolebindings" | "clusterrolebindings" => {
            let same = |o: &Value| o.get("roleRef") == obj.get("roleRef") && o.get("subjects") == obj.get("subjects");
            if r.old.is_some_and(same) {
                return Ok(());
            }
            let role = &obj["roleRef"];
            let name = role["name"].as_str().unwrap_or_default().to_owned();
            let (resource, ns) = match role["kind"].as_str().unwrap_or_default() {
                "Role" => ("roles", meta::namespace(obj)),
                "ClusterRole" => ("clusterroles", ""),
                other => {
                    let what = skiff_core::invalid::quote_str(other);
                    return Err(Status::untyped(format!("unsupported role reference kind: {what}")));
                }
            };
            let held = Attributes {
                verb: "bind".into(),
                ..Attributes::resource("bind", GROUP, resource, meta::namespace(obj), &name)
            };
            if r.server.authorise(&r.call.user, &held).is_ok() {
                return Ok(());
            }
            let Some(found) = r.server.peek(GROUP, resource, ns, &name) else {
                return Err(Status::not_found(GROUP, plural, &name));
            };
            ("bind", resource, name, rules_of(&found))
        }
        _ => return Ok(()),
    };
    let ns = meta::namespace(obj);
    if verb == "escalate"
        && r.server.authorise(&r.call.user, &Attributes::resource(verb, GROUP, resource, ns, &name)).is_ok()
    {
        return Ok(());
    }
    let held = r.server.rbac().rules_for(&r.call.user, ns);
    let lacking = missing(&held, &wanted);
    if lacking.is_empty() {
        return Ok(());
    }
    let user = &r.call.user;
    let list = compact(&lacking).iter().map(describe).collect::<Vec<_>>().join("\n");
    let groups: Vec<String> = user.groups.iter().map(|g| format!("\"{g}\"")).collect();
    let why = format!(
        "user \"{}\" (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{list}",
        user.name,
        groups.join(" ")
    );
    Err(r.forbidden(obj, why))
}

/// Joins rules that differ in their verb alone, as upstream prints them.
fn compact(rules: &[Rule]) -> Vec<Rule> {
    let mut out: Vec<Rule> = vec![];
    for r in rules {
        let same = |o: &&mut Rule| {
            o.groups == r.groups && o.resources == r.resources && o.names == r.names && o.paths == r.paths
        };
        match out.iter_mut().find(same) {
            Some(o) => o.verbs.extend(r.verbs.iter().cloned()),
            None => out.push(r.clone()),
        }
    }
    out.sort_by_key(describe);
    out
}

fn describe(r: &Rule) -> String {
    let list = |l: &[String]| l.iter().map(|s| format!("\"{s}\"")).collect::<Vec<_>>().join(" ");
    let mut parts = vec![];
    if !r.paths.is_empty() {
        parts.push(format!("NonResourceURLs:[{}]", list(&r.paths)));
    }
    if r.paths.is_empty() {
        parts.push(format!("APIGroups:[{}]", list(&r.groups)));
        parts.push(format!("Resources:[{}]", list(&r.resources)));
    }
    if !r.names.is_empty() {
        parts.push(format!("ResourceNames:[{}]", list(&r.names)));
    }
    parts.push(format!("Verbs:[{}]", list(&r.verbs)));
    format!("{{{}}}", parts.join(", "))
}
