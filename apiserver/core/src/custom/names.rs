//! Which definition gets which names, and the conditions that tell.
//!
//! Names are given first come, first served within a group: a definition keeps what it has, and gets what it asks for
//! unless another one has it. A definition is established once all its names were accepted, and stays so.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::meta;

/// The annotation that lets a definition use a group of the Kubernetes project.
pub const APPROVAL: &str = "api-approved.kubernetes.io";

/// Whether a group belongs to the Kubernetes project.
#[must_use]
pub fn protected(group: &str) -> bool {
    ["k8s.io", "kubernetes.io"].iter().any(|p| group == *p || group.ends_with(&format!(".{p}")))
}

/// Names in use by others.
#[derive(Debug, Default)]
struct Used {
    resources: BTreeSet<String>,
    kinds: BTreeSet<String>,
}

fn text<'a>(v: &'a Value, key: &str) -> &'a str {
    v.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(v: &'a Value, key: &str) -> Vec<&'a str> {
    v.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

fn used<'a>(crd: &Value, others: impl IntoIterator<Item = &'a Value>) -> Used {
    let mut out = Used::default();
    let group = text(&crd["spec"], "group");
    for other in others {
        if meta::name(other) == meta::name(crd) || text(&other["spec"], "group") != group {
            continue;
        }
        let names = &other["status"]["acceptedNames"];
        let resources = [text(names, "plural"), text(names, "singular")].into_iter().chain(list(names, "shortNames"));
        out.resources.extend(resources.filter(|n| !n.is_empty()).map(str::to_owned));
        out.kinds.extend(
            [text(names, "kind"), text(names, "listKind")].iter().filter(|n| !n.is_empty()).map(|n| (*n).to_owned()),
        );
    }
    out
}

/// The status a definition should have, given all definitions. `now` is the time of a transition.
#[must_use]
pub fn settle<'a>(crd: &Value, others: impl IntoIterator<Item = &'a Value>, now: &str) -> Value {
    let used = used(crd, others);
    let asked = &crd["spec"]["names"];
    let mut status = crd.get("status").filter(|s| s.is_object()).cloned().unwrap_or_else(|| json!({}));
    let mut accepted = status["acceptedNames"].as_object().cloned().unwrap_or_default();
    let mut refused: Option<(&str, String)> = None;
    let scalars = [
        ("plural", "PluralConflict", &used.resources),
        ("singular", "SingularConflict", &used.resources),
        ("shortNames", "ShortNamesConflict", &used.resources),
        ("kind", "KindConflict", &used.kinds),
        ("listKind", "ListKindConflict", &used.kinds),
    ];
    for (key, reason, taken) in scalars {
        let conflict = if key == "shortNames" {
            let have: BTreeSet<String> =
                list(&Value::Object(accepted.clone()), key).iter().map(|s| (*s).to_owned()).collect();
            let clash: Vec<String> = list(asked, key)
                .into_iter()
                .filter(|n| !have.contains(*n) && taken.contains(*n))
                .map(|n| format!("{} is already in use", crate::invalid::quote_str(n)))
                .collect();
            match clash.as_slice() {
                [] => None,
                [one] => Some(one.clone()),
                many => Some(format!("[{}]", many.join(", "))),
            }
        } else {
            let name = text(asked, key);
            let fresh = accepted.get(key).and_then(Value::as_str) != Some(name);
            (fresh && taken.contains(name)).then(|| format!("{} is already in use", crate::invalid::quote_str(name)))
        };
        match conflict {
            Some(why) => refused = Some((reason, why)),
            None => copy(&mut accepted, asked, key),
        }
    }
    copy(&mut accepted, asked, "categories");
    status["acceptedNames"] = Value::Object(accepted);
    let mut conditions = Conditions { list: status["conditions"].as_array().cloned().unwrap_or_default(), now };
    match &refused {
        None => conditions.set("NamesAccepted", "True", "NoConflicts", "no conflicts found"),
        Some((reason, why)) => conditions.set("NamesAccepted", "False", reason, why),
    }
    if refused.is_none() && approved(crd) {
        conditions.set("Established", "True", "InitialNamesAccepted", "the initial names have been accepted");
    } else if conditions.get("Established").is_none() {
        conditions.set("Established", "False", "NotAccepted", "not all names are accepted");
    }
    approval(crd, &mut conditions);
    status["conditions"] = Value::Array(conditions.list);
    status
}

/// Whether the names of a status are usable.
#[must_use]
pub fn established(status: &Value) -> bool {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|c| c["type"] == "Established" && c["status"] == "True")
}

fn copy(to: &mut Map<String, Value>, from: &Value, key: &str) {
    match from.get(key).filter(|v| !v.is_null()) {
        Some(v) => drop(to.insert(key.to_owned(), v.clone())),
        None => drop(to.remove(key)),
    }
}

struct Conditions<'a> {
    list: Vec<Value>,
    now: &'a str,
}

impl Conditions<'_> {
    fn get(&self, kind: &str) -> Option<&Value> {
        self.list.iter().find(|c| c["type"] == kind)
    }

    fn set(&mut self, kind: &str, status: &str, reason: &str, message: &str) {
        let new = json!({"type": kind, "status": status, "reason": reason, "message": message,
            "lastTransitionTime": self.now});
        match self.list.iter_mut().find(|c| c["type"] == kind) {
            None => self.list.push(new),
            Some(old) => {
                let at = if old["status"] == new["status"] { old["lastTransitionTime"].clone() } else { Value::Null };
                *old = new;
                if !at.is_null() {
                    old["lastTransitionTime"] = at;
                }
            }
        }
    }
}

/// What the approval annotation says.
enum Approval {
    Approved,
    Unapproved,
    Missing,
    Bad,
}

fn approval_of(crd: &Value) -> Approval {
    let note = crd["metadata"]["annotations"][APPROVAL].as_str().unwrap_or_default();
    match note {
        "" => Approval::Missing,
        n if n.starts_with("unapproved") => Approval::Unapproved,
        n if is_url(n) => Approval::Approved,
        _ => Approval::Bad,
    }
}

/// Whether the annotation of a protected group is one that creation accepts.
#[must_use]
pub fn approval_fits(crd: &Value) -> bool {
    matches!(approval_of(crd), Approval::Approved | Approval::Unapproved)
}

/// Whether the annotation is there at all.
#[must_use]
pub fn approval_given(crd: &Value) -> bool {
    !matches!(approval_of(crd), Approval::Missing)
}

fn is_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, rest)| {
        !scheme.is_empty()
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric())
            && rest.split('/').next().is_some_and(|h| !h.is_empty())
    })
}

fn approved(crd: &Value) -> bool {
    !protected(text(&crd["spec"], "group")) || approval_fits(crd)
}

fn approval(crd: &Value, conditions: &mut Conditions<'_>) {
    const TYPE: &str = "KubernetesAPIApprovalPolicyConformant";
    if !protected(text(&crd["spec"], "group")) {
        conditions.list.retain(|c| c["type"] != TYPE);
        return;
    }
    let note = text(&crd["metadata"]["annotations"], APPROVAL);
    let quoted = crate::invalid::quote_str(APPROVAL);
    match approval_of(crd) {
        Approval::Approved => conditions.set(TYPE, "True", "ApprovedAnnotation", &format!("approved in {note}")),
        Approval::Unapproved => {
            conditions.set(TYPE, "False", "UnapprovedAnnotation", &format!("not approved: {}", crate::invalid::quote_str(note)));
        }
        Approval::Missing => conditions.set(TYPE, "False", "MissingAnnotation", &format!(
            "protected groups must have approval annotation {quoted}, see https://github.com/kubernetes/enhancements/pull/1111")),
        Approval::Bad => conditions.set(TYPE, "False", "InvalidAnnotation", &format!(
            "protected groups must have approval annotation {quoted} with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crd(name: &str, plural: &str, kind: &str, short: &[&str]) -> Value {
        json!({"metadata": {"name": name, "generation": 1}, "spec": {"group": "e.com",
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List"), "shortNames": short}}})
    }

    #[test]
    fn first_come_first_served() {
        let mut first = crd("as.e.com", "as", "A", &["x"]);
        first["status"] = settle(&first, [], "t0");
        assert!(established(&first["status"]));
        assert_eq!(first["status"]["conditions"][0]["reason"], "NoConflicts");
        let mut second = crd("bs.e.com", "bs", "A", &["x", "y"]);
        second["status"] = settle(&second, [&first], "t1");
        assert!(!established(&second["status"]));
        assert_eq!(second["status"]["acceptedNames"]["plural"], "bs");
        assert!(second["status"]["acceptedNames"].get("kind").is_none());
        // The first changes its mind, and the second gets the names.
        first["status"]["acceptedNames"]["kind"] = "C".into();
        first["status"]["acceptedNames"]["listKind"] = "CList".into();
        first["status"]["acceptedNames"]["singular"] = "c".into();
        first["status"]["acceptedNames"]["shortNames"] = json!([]);
        second["status"] = settle(&second, [&first], "t2");
        assert!(established(&second["status"]));
        assert_eq!(second["status"]["conditions"][1]["lastTransitionTime"], "t2");
        let again = settle(&second, [&first], "t3");
        assert_eq!(again, second["status"], "nothing changes without a reason");
    }

    #[test]
    fn protected_groups() {
        for (group, want) in [("a.k8s.io", true), ("k8s.io", true), ("ak8s.io", false), ("x.kubernetes.io", true)] {
            assert_eq!(protected(group), want, "{group}");
        }
        let mut c = crd("as.e.com", "as", "A", &[]);
        c["spec"]["group"] = "a.k8s.io".into();
        assert!(!established(&settle(&c, [], "t")));
        c["metadata"]["annotations"] = json!({APPROVAL: "https://x.io/1"});
        assert!(established(&settle(&c, [], "t")));
    }
}
