//! Type checking of policies: what is doubtful in one, given the structures of the kinds it is about.
//!
//! A policy compiles without knowing its objects (`object` is of any type); with their structure known, fields that are not
//! there and operators that do not fit are found. They are warnings only: a policy may be about several kinds.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::check::{self, More};
use super::expression::{VARIABLES, namespace, record, request};
use super::parse;
use super::types::Ty;
use crate::schema::Struct;

/// Kinds that one policy is checked against at most, as upstream has it.
pub const KINDS_MAX: usize = 10;

/// A kind that a policy is about.
#[derive(Clone, Copy, Debug)]
pub struct Kind<'a> {
    /// `group/version, Kind=Kind`.
    pub name: &'a str,
    /// Its structure.
    pub model: &'a Struct,
}

/// What is doubtful in a validating policy: where, and in upstream's words what.
#[must_use]
pub fn warnings(spec: &Value, kinds: &[Kind<'_>], params: Option<&Struct>) -> Vec<(String, String)> {
    let mut out = vec![];
    for (i, v) in spec["validations"].as_array().into_iter().flatten().enumerate() {
        for key in ["expression", "messageExpression"] {
            let text = v[key].as_str().unwrap_or_default();
            let found: Vec<String> = kinds
                .iter()
                .filter(|_| !text.is_empty())
                .filter_map(|k| one(spec, text, *k, params).err().map(|why| format!("{}: {why}\n", k.name)))
                .collect();
            if !found.is_empty() {
                out.push((format!("spec.validations[{i}].{key}"), found.join("\n")));
            }
        }
    }
    out
}

fn one<'a>(spec: &Value, text: &str, kind: Kind<'a>, params: Option<&'a Struct>) -> Result<(), String> {
    let object = || Ty::Model(kind.model);
    let mut scopes = vec![
        ("object".to_owned(), object()),
        ("oldObject".to_owned(), object()),
        ("request".to_owned(), request()),
        ("authorizer".to_owned(), record([("requestResource", Ty::DYN)])),
        ("namespaceObject".to_owned(), namespace()),
    ];
    if spec["paramKind"].is_object() {
        scopes.push(("params".to_owned(), params.map_or(Ty::DYN, Ty::Model)));
    }
    let more = More { authorizer: true, objects: false };
    let mut variables: BTreeMap<String, Ty<'a>> = BTreeMap::new();
    let check = |text: &str, variables: &BTreeMap<String, Ty<'a>>| -> Result<Ty<'a>, String> {
        let program = parse(text)?;
        let mut scopes = scopes.clone();
        scopes.push((VARIABLES.to_owned(), Ty::Record(Arc::new(variables.clone()))));
        check::typed_in(text, &program, scopes, more)
    };
    for v in spec["variables"].as_array().into_iter().flatten() {
        let text = |key: &str| v[key].as_str().unwrap_or_default();
        // A fault in a variable is not told of every expression that uses it.
        let of = check(text("expression"), &variables).unwrap_or(Ty::DYN);
        variables.insert(text("name").to_owned(), of);
    }
    check(text, &variables).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn doubts() {
        let kind =
            |name, group, version, kind| Kind { name, model: crate::schema::kind(group, version, kind).unwrap() };
        let kinds = [kind("apps/v1, Kind=Deployment", "apps", "v1", "Deployment")];
        let of = |validations: Value| {
            warnings(
                &json!({"variables": [{"name": "r", "expression": "object.spec.replicas"}], "validations": validations}),
                &kinds,
                None,
            )
        };
        assert_eq!(
            of(
                json!([{"expression": "object.spec.replicas > 1 && object.spec.template.spec.containers.all(c, c.image != '')"},
            {"expression": "variables.r <= 5", "messageExpression": "'got ' + string(variables.r)"},
            {"expression": "object.metadata.labels['a'] == 'b' && object.metadata.creationTimestamp > timestamp('2020-01-01T00:00:00Z')"},
            {"expression": "object.spec.strategy.rollingUpdate.maxSurge == 1 && oldObject == null"}])
            ),
            vec![]
        );
        let found = of(
            json!([{"expression": "object.spec.replicas > '1'", "messageExpression": "'wants ' + object.spec.replicas"},
            {"expression": "object.spec.replica == 1"}, {"expression": "variables.r == 'x'"}]),
        );
        let at: Vec<&str> = found.iter().map(|(at, _)| at.as_str()).collect();
        assert_eq!(
            at,
            [
                "spec.validations[0].expression",
                "spec.validations[0].messageExpression",
                "spec.validations[1].expression",
                "spec.validations[2].expression"
            ]
        );
        let first = "apps/v1, Kind=Deployment: ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'";
        assert_eq!(found[0].1.lines().next(), Some(first));
        assert!(found[2].1.contains("undefined field 'replica'"), "{found:?}");
    }
}
