//! Policies in CEL, compiled, and what they say about a request.
//!
//! A policy does nothing without a binding. Evaluation is synchronous: parameters and namespaces are read from the caches
//! before, and nothing waits while expressions run.

pub(super) mod mutating;
mod params;

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_core::custom::cel::expression::{Env, Expression, Facts, Outcome, Run, Want};
use skiff_core::meta;
use skiff_core::status::Status;

use self::mutating::Mutation;
use self::params::ParamRef;
use super::Seen;
use super::action::Action;
use super::matching::Criteria;
use crate::audit::annotate;
use crate::registry::Kind;

/// Longest text that a messageExpression may make.
const MESSAGE_MAX: usize = 5 * 1024;

/// A compiled policy of either sort.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    /// Whether what goes wrong refuses the request.
    fail: bool,
    pub(super) criteria: Criteria,
    /// apiVersion and kind of its parameters.
    param_kind: Option<(String, String)>,
    conditions: Vec<Expression>,
    variables: Vec<(String, Expression)>,
    validations: Vec<Validation>,
    annotations: Vec<(String, Expression)>,
    mutations: Vec<Mutation>,
    reinvoke: bool,
    /// Why it cannot be used: it was stored before a rule that refuses it.
    broken: Option<String>,
}

#[derive(Debug)]
struct Validation {
    expression: Expression,
    message: String,
    by: Option<Expression>,
    reason: String,
}

/// A compiled binding of either sort.
#[derive(Debug)]
pub(super) struct Binding {
    name: String,
    pub(super) policy: String,
    criteria: Option<Criteria>,
    params: Option<ParamRef>,
    deny: bool,
    warn: bool,
    audit: bool,
}

impl Policy {
    /// Compiles a stored policy.
    pub(super) fn compile(v: &Value) -> Self {
        let spec = &v["spec"];
        let text = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
        let list = |key: &str| spec[key].as_array().map_or(&[][..], Vec::as_slice);
        let param_kind = spec["paramKind"].as_object().map(|_| {
            let p = &spec["paramKind"];
            (text(p, "apiVersion"), text(p, "kind"))
        });
        let mut env = Env::policy(param_kind.is_some());
        let mut broken = None;
        let mut compile = |env: &Env, text: &str, want: Want| match env.compile(text, want) {
            Ok(e) => Some(e),
            Err(why) => {
                broken.get_or_insert(why);
                None
            }
        };
        let conditions = list("matchConditions");
        let conditions = conditions.iter().filter_map(|c| compile(&env, &text(c, "expression"), Want::Bool)).collect();
        if !list("mutations").is_empty() {
            env = env.with_objects();
        }
        env = env.composing(!list("variables").is_empty());
        let mut variables = vec![];
        for variable in list("variables") {
            if let Some(e) = compile(&env, &text(variable, "expression"), Want::Any) {
                env.declare(&text(variable, "name"), Some(&e));
                variables.push((text(variable, "name"), e));
            }
        }
        let mut validations = vec![];
        for one in list("validations") {
            let Some(expression) = compile(&env, &text(one, "expression"), Want::Bool) else { continue };
            let by = text(one, "messageExpression");
            let by = if by.is_empty() { None } else { compile(&env.clone().without_authorizer(), &by, Want::Text) };
            validations.push(Validation { expression, message: text(one, "message"), by, reason: text(one, "reason") });
        }
        let mut annotations = vec![];
        for one in list("auditAnnotations") {
            if let Some(e) = compile(&env, &text(one, "valueExpression"), Want::TextOrNull) {
                annotations.push((text(one, "key"), e));
            }
        }
        let mutations = list("mutations").iter().filter_map(|m| Mutation::compile(m, &env, &mut compile)).collect();
        Self {
            name: meta::name(v).to_owned(),
            fail: spec["failurePolicy"] != "Ignore",
            criteria: Criteria::policy(&spec["matchConstraints"]),
            param_kind,
            conditions,
            variables,
            validations,
            annotations,
            mutations,
            reinvoke: spec["reinvocationPolicy"] == "IfNeeded",
            broken,
        }
    }

    /// Whether the conditions choose the request.
    ///
    /// # Errors
    /// Conditions that come to nothing, unless another says no.
    fn chosen(&self, run: &Run<'_>) -> Result<bool, String> {
        chosen(&self.conditions, run)
    }
}

/// Whether all conditions are true.
///
/// # Errors
/// Conditions that come to nothing, unless another says no.
pub(super) fn chosen(conditions: &[Expression], run: &Run<'_>) -> Result<bool, String> {
    let mut errors = vec![];
    for c in conditions {
        match run.evaluate(c) {
            Ok(Outcome::True) => {}
            Ok(Outcome::Other(_)) => return Ok(false),
            Err(why) => errors.push(failure(c, &why)),
        }
    }
    match errors.as_slice() {
        [] => Ok(true),
        [one] => Err(one.clone()),
        many => Err(format!("[{}]", many.join(", "))),
    }
}

/// An expression that comes to nothing, in upstream's words.
fn failure(e: &Expression, why: &str) -> String {
    format!("expression '{}' resulted in error: {why}", e.text())
}

impl Binding {
    /// Compiles a stored binding.
    pub(super) fn compile(v: &Value) -> Self {
        let spec = &v["spec"];
        let acts = |what: &str| spec["validationActions"].as_array().is_some_and(|a| a.iter().any(|x| x == what));
        Self {
            name: meta::name(v).to_owned(),
            policy: spec["policyName"].as_str().unwrap_or_default().to_owned(),
            criteria: spec["matchResources"].as_object().map(|_| Criteria::policy(&spec["matchResources"])),
            params: spec["paramRef"].as_object().map(|_| ParamRef::parse(&spec["paramRef"])),
            deny: acts("Deny"),
            warn: acts("Warn"),
            audit: acts("Audit"),
        }
    }
}

/// A policy with its bindings, by name.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) policy: Arc<Policy>,
    pub(super) bindings: Vec<Arc<Binding>>,
}

/// A reason against the request.
struct Refusal {
    message: String,
    reason: String,
    /// Which of the policy's validations it was.
    index: usize,
}

impl Refusal {
    fn plain(message: String) -> Self {
        Self { message, reason: String::new(), index: 0 }
    }
}

/// One use of a policy: a binding that is about the request, with the parameters it brings.
struct Use<'p> {
    policy: &'p Policy,
    binding: &'p Binding,
    kind: Arc<Kind>,
    /// One evaluation for each; `None` where the policy has none.
    params: Vec<Option<Arc<Value>>>,
}

/// What is to be evaluated, and what cannot be.
fn uses<'p>(
    a: &Action<'_>,
    bound: &'p Bound,
    object: Option<&Value>,
    old: Option<&Value>,
    failed: &mut dyn FnMut(Option<&'p Binding>, String),
) -> Vec<Use<'p>> {
    let policy = &*bound.policy;
    let mut out = vec![];
    let kind = match policy.criteria.matches(a, object, old) {
        Ok(Some(kind)) => kind,
        Ok(None) => return out,
        Err(s) => {
            failed(None, format!("failed to configure policy: {}", s.message));
            return out;
        }
    };
    if let Some(why) = policy.broken.clone().or_else(|| params::unknown(a, policy.param_kind.as_ref())) {
        failed(None, format!("failed to configure policy: {why}"));
        return out;
    }
    for binding in &bound.bindings {
        match binding.criteria.as_ref().map(|c| c.matches(a, object, old)) {
            None | Some(Ok(Some(_))) => {}
            Some(Ok(None)) => continue,
            Some(Err(s)) => {
                failed(Some(binding), format!("failed to configure binding: {}", s.message));
                continue;
            }
        }
        match params::find(a, policy.param_kind.as_ref(), binding.params.as_ref()) {
            Ok(params) => out.push(Use { policy, binding, kind: Arc::clone(&kind), params }),
            Err(why) => failed(Some(binding), format!("failed to configure binding: {why}")),
        }
    }
    out
}

/// Asks the validating policies.
///
/// # Errors
/// The first refusal, in upstream's words.
pub(super) async fn validate(
    a: &Action<'_>,
    policies: &[Bound],
    object: Option<&Value>,
    old: Option<&Value>,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    // First what may wait, then the evaluation, which must not: its time is counted by the thread.
    let mut steps = vec![];
    let mut versions: Vec<(Arc<Kind>, Seen<'_>)> = vec![];
    for bound in policies {
        let mut broken = vec![];
        let uses = uses(a, bound, object, old, &mut |b, why| broken.push((b, why)));
        for one in &uses {
            if !versions.iter().any(|(k, _)| Arc::ptr_eq(k, &one.kind)) {
                versions.push((Arc::clone(&one.kind), super::as_seen(a, &one.kind, object, old).await?));
            }
        }
        steps.push((&*bound.policy, broken, uses));
    }
    let mut known: Vec<(&Arc<Kind>, Facts)> = Vec::with_capacity(versions.len());
    for (kind, (seen, before)) in &versions {
        known.push((kind, facts(a, kind, seen.as_deref(), before.as_deref())?));
    }
    let mut refused: Option<Status> = None;
    let mut failures: Vec<Value> = vec![];
    for (policy, broken, uses) in steps {
        let mut refuse = |binding: Option<&Binding>, r: &Refusal| {
            refused.get_or_insert_with(|| refusal(a, object.or(old), policy, binding, r));
        };
        for (binding, why) in broken.into_iter().filter(|_| policy.fail) {
            refuse(binding, &Refusal::plain(why));
        }
        for one in uses {
            let facts = known.iter().find(|(k, _)| Arc::ptr_eq(k, &one.kind)).map(|(_, f)| f);
            for r in facts.map(|f| evaluate(&one, f)).unwrap_or_default() {
                if one.binding.deny {
                    refuse(Some(one.binding), &r);
                }
                if one.binding.audit {
                    failures.push(failed(policy, one.binding, &r));
                }
                if one.binding.warn {
                    warnings.push(format!(
                        "Validation failed for ValidatingAdmissionPolicy '{}' with binding '{}': {}",
                        policy.name, one.binding.name, r.message
                    ));
                }
            }
        }
    }
    if !failures.is_empty() {
        annotate("validation.policy.admission.k8s.io/validation_failure", Value::from(failures).to_string());
    }
    refused.map_or(Ok(()), Err)
}

/// What the audit log says of a validation that failed.
fn failed(policy: &Policy, binding: &Binding, r: &Refusal) -> Value {
    let actions = [("Deny", binding.deny), ("Warn", binding.warn), ("Audit", binding.audit)];
    let actions: Vec<&str> = actions.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
    json!({"message": r.message, "policy": policy.name, "binding": binding.name, "expressionIndex": r.index,
        "validationActions": actions})
}

/// What one use of a policy has against the request.
fn evaluate(one: &Use<'_>, facts: &Facts) -> Vec<Refusal> {
    let policy = one.policy;
    let mut out = vec![];
    let fail = |why: String, out: &mut Vec<Refusal>| {
        if policy.fail {
            out.push(Refusal::plain(why));
        }
    };
    for params in &one.params {
        let run = facts.run(params.as_deref(), &policy.variables);
        match policy.chosen(&run) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(why) => {
                fail(why, &mut out);
                continue;
            }
        }
        for (index, v) in policy.validations.iter().enumerate() {
            match run.evaluate(&v.expression) {
                Ok(Outcome::True) => {}
                Ok(Outcome::Other(_)) => {
                    out.push(Refusal { message: v.said(&run), reason: v.reason.clone(), index });
                }
                Err(why) => fail(failure(&v.expression, &why), &mut out),
            }
        }
        for (key, e) in &policy.annotations {
            match run.evaluate(e) {
                Ok(Outcome::Other(Value::String(said))) => annotate(format!("{}/{key}", policy.name), said.trim()),
                Ok(_) => {}
                Err(why) => {
                    let key = skiff_core::invalid::quote_str(key);
                    fail(format!("{} (audit annotation {key})", failure(e, &why)), &mut out);
                }
            }
        }
    }
    out
}

/// The facts of a request, of an object seen as of this kind.
pub(super) fn facts(a: &Action<'_>, kind: &Kind, object: Option<&Value>, old: Option<&Value>) -> Result<Facts, Status> {
    let (who, own) = a.authorizer();
    let namespace = if a.is_namespace() { None } else { a.namespace_object()? };
    Ok(Facts::new(object, old, &a.request(kind)).in_namespace(namespace.as_ref()).with_authorizer(&who, own))
}

impl Validation {
    /// What a refused client is told.
    fn said(&self, run: &Run<'_>) -> String {
        let by = self.by.as_ref().and_then(|e| match run.evaluate(e) {
            Ok(Outcome::Other(Value::String(s))) => Some(s.trim().to_owned()),
            _ => None,
        });
        let usable = |s: &String| !s.is_empty() && s.len() <= MESSAGE_MAX && !s.contains('\n');
        by.filter(usable).unwrap_or_else(|| match self.message.trim() {
            "" => format!("failed expression: {}", self.expression.text()),
            message => message.to_owned(),
        })
    }
}

/// A refusal as a Status: 403's words under the code of its reason.
fn refusal(a: &Action<'_>, object: Option<&Value>, policy: &Policy, binding: Option<&Binding>, r: &Refusal) -> Status {
    let with = binding.map(|b| format!(" with binding '{}'", b.name)).unwrap_or_default();
    let why = format!("ValidatingAdmissionPolicy '{}'{with} denied request: {}", policy.name, r.message);
    let mut s = super::forbidden(a, object, &why);
    (s.code, s.reason) = match r.reason.as_str() {
        "Forbidden" => (403, "Forbidden"),
        "Unauthorized" => (401, "Unauthorized"),
        "RequestEntityTooLarge" => (413, "RequestEntityTooLarge"),
        _ => (422, "Invalid"),
    };
    s.cause("", &why, "")
}
