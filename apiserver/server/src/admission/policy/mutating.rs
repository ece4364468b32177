//! Mutating policies: an object is made or patched as expressions say.
//!
//! An applied configuration is merged as server-side apply merges, but nobody owns what it sets, and it may not touch what
//! is replaced as a whole: what it does not name there would be lost.

use serde_json::Value;
use skiff_core::custom::cel::expression::{Env, Expression, Outcome, Want};
use skiff_core::managed;
use skiff_core::patch::json::JsonPatch;
use skiff_core::status::Status;

use super::{Binding, Bound, Policy, Use, facts, failure, uses};
use crate::admission::action::Action;
use crate::admission::{Again, as_seen, back};

/// One mutation.
#[derive(Debug)]
pub(super) enum Mutation {
    /// The expression makes a configuration to apply.
    Apply(Expression),
    /// The expression makes a JSON patch.
    Patch(Expression),
}

impl Mutation {
    pub(super) fn compile(
        v: &Value,
        env: &Env,
        compile: &mut dyn FnMut(&Env, &str, Want) -> Option<Expression>,
    ) -> Option<Self> {
        let text = |key: &str| v[key]["expression"].as_str().unwrap_or_default();
        if v["patchType"] == "JSONPatch" {
            compile(env, text("jsonPatch"), Want::Patches).map(Self::Patch)
        } else {
            compile(env, text("applyConfiguration"), Want::Object).map(Self::Apply)
        }
    }

    fn expression(&self) -> &Expression {
        match self {
            Self::Apply(e) | Self::Patch(e) => e,
        }
    }
}

/// Carries the mutating policies out, all or `only` those named; `again` learns which want to be run once more.
///
/// # Errors
/// The first failure of a policy that must not fail.
pub(in crate::admission) async fn mutate(
    a: &Action<'_>,
    policies: &[Bound],
    object: &mut Value,
    old: Option<&Value>,
    only: Option<&[String]>,
    again: &mut Again<String>,
) -> Result<(), Status> {
    let mut refused: Option<Status> = None;
    for bound in policies {
        let policy = &*bound.policy;
        if only.is_some_and(|only| !only.contains(&policy.name)) {
            continue;
        }
        let mut fail = |binding: Option<&Binding>, why: String, reason: &'static str| {
            if policy.fail {
                refused = Some(refusal(a, policy, binding, &why, reason, refused.take()));
            }
        };
        let mut broken = vec![];
        let uses = uses(a, bound, Some(object), old, &mut |b, why| broken.push((b, why)));
        for (binding, why) in broken {
            fail(binding, why, "Forbidden");
        }
        for one in uses {
            for params in &one.params {
                let (seen, before) = as_seen(a, &one.kind, Some(object), old).await?;
                let Some(seen) = seen else { continue };
                match carry_out(a, &one, params.as_deref(), &seen, before.as_deref()) {
                    Ok(None) => {}
                    Ok(Some(new)) => {
                        let new = back(a, &one.kind, object, new).await;
                        match new {
                            Ok(new) => {
                                again.asked(new != *object, policy.reinvoke, policy.name.clone());
                                *object = new;
                            }
                            Err(s) => fail(Some(one.binding), s.message, "Invalid"),
                        }
                    }
                    Err(why) => fail(Some(one.binding), why, "Invalid"),
                }
            }
        }
    }
    refused.map_or(Ok(()), Err)
}

/// The object after all mutations of one use; `None` when the conditions do not choose it.
fn carry_out(
    a: &Action<'_>,
    one: &Use<'_>,
    params: Option<&Value>,
    object: &Value,
    old: Option<&Value>,
) -> Result<Option<Value>, String> {
    let mut object = object.clone();
    for (i, mutation) in one.policy.mutations.iter().enumerate() {
        // Every mutation sees what those before it have made; the conditions saw the first.
        let facts = facts(a, &one.kind, Some(&object), old).map_err(|s| s.message)?;
        let run = facts.run(params, &one.policy.variables);
        if i == 0 && !one.policy.chosen(&run)? {
            return Ok(None);
        }
        let e = mutation.expression();
        let made = match run.evaluate(e).map_err(|why| failure(e, &why))? {
            Outcome::Other(v) => v,
            Outcome::True => return Err(failure(e, "no such overload")),
        };
        object = match mutation {
            Mutation::Apply(_) => {
                let mut made = made;
                for key in ["apiVersion", "kind"] {
                    made[key] = object[key].clone();
                }
                managed::merge_unowned(&one.kind.resource.model, &object, &made)
                    .map_err(|why| format!("error applying patch: {why}"))?
            }
            Mutation::Patch(_) => {
                let patch = serde_json::to_vec(&made).map_err(|e| e.to_string())?;
                let patch = JsonPatch::parse(&patch).map_err(|e| format!("JSON Patch: {e}"))?;
                patch.apply(&object).map_err(|e| format!("JSON Patch: {e}"))?
            }
        };
        if object["kind"] != one.kind.resource.kind.as_ref() && a.is_whole() {
            return Err("the kind of an object cannot be changed".to_owned());
        }
    }
    Ok(Some(object))
}

/// A failure as a Status, after those before it.
fn refusal(
    a: &Action<'_>,
    policy: &Policy,
    binding: Option<&Binding>,
    why: &str,
    reason: &'static str,
    before: Option<Status>,
) -> Status {
    let name = &policy.name;
    let text = match binding {
        Some(b) => format!("policy '{name}' with binding '{}' denied request: {why}", b.name),
        None => format!("policy {} denied request: {why}", skiff_core::invalid::quote_str(name)),
    };
    let s = before.unwrap_or_else(|| {
        let mut s = super::super::forbidden(a, None, "");
        s.message.clone_from(&text);
        s.reason = reason;
        s
    });
    s.cause("", &text, "")
}
