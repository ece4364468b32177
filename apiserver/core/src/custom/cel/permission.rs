//! `authorizer`: expressions that ask what somebody may do.
//!
//! A question is built step by step (`group`, `resource`, `namespace`, ...), each step a value of its own, and asked with
//! `check(verb)`. Who decides is the server's business: see [`Authorizer`].

use std::fmt::Debug;
use std::sync::Arc;

use kube_cel::cel::extractors::This;
use kube_cel::cel::objects::Opaque;
use kube_cel::cel::{Context, ExecutionError, Value as Cel};

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// Verb.
    pub verb: String,
    /// Path of what is no resource; empty for resources.
    pub path: String,
    /// API group.
    pub group: String,
    /// Plural name.
    pub resource: String,
    /// Subresource.
    pub subresource: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why.
    pub reason: String,
    /// Why it could not be decided.
    pub error: Option<String>,
}

/// Decides, without waiting: it is asked while an expression runs.
pub trait Authorizer: Debug + Send + Sync {
    /// Whether the request's user, or the service account (namespace, name) if one is given, may do it.
    fn decide(&self, account: Option<(&str, &str)>, check: &Check) -> Decision;
}

/// A question on its way.
#[derive(Clone, Debug)]
struct Question {
    who: Arc<dyn Authorizer>,
    account: Option<(String, String)>,
    check: Check,
}

impl PartialEq for Question {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.who, &other.who) && self.account == other.account && self.check == other.check
    }
}

impl Eq for Question {}

impl Opaque for Question {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Authorizer"
    }
}

impl Opaque for Decision {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Decision"
    }
}

/// The variable `authorizer`, or with a question begun, `authorizer.requestResource`.
pub(super) fn variable(who: &Arc<dyn Authorizer>, check: Check) -> Cel {
    Cel::Opaque(Arc::new(Question { who: Arc::clone(who), account: None, check }))
}

fn question(v: &Cel) -> Result<Question, ExecutionError> {
    match v {
        Cel::Opaque(o) => o.downcast_ref::<Question>().cloned().ok_or(ExecutionError::NoSuchOverload),
        _ => Err(ExecutionError::NoSuchOverload),
    }
}

fn decision(v: &Cel) -> Result<&Decision, ExecutionError> {
    match v {
        Cel::Opaque(o) => o.downcast_ref::<Decision>().ok_or(ExecutionError::NoSuchOverload),
        _ => Err(ExecutionError::NoSuchOverload),
    }
}

fn value(o: impl Opaque) -> Cel {
    Cel::Opaque(Arc::new(o))
}

/// Registers the functions.
pub(super) fn register(context: &mut Context<'_>) {
    type Step = fn(&mut Check, String);
    let steps: [(&str, Step); 6] = [
        ("path", |c, s| c.path = s),
        ("group", |c, s| c.group = s),
        ("resource", |c, s| c.resource = s),
        ("subresource", |c, s| c.subresource = s),
        ("namespace", |c, s| c.namespace = s),
        ("name", |c, s| c.name = s),
    ];
    for (name, step) in steps {
        context.add_function(name, move |This(v): This<Cel>, s: Arc<String>| -> Result<Cel, ExecutionError> {
            let mut q = question(&v)?;
            step(&mut q.check, (*s).clone());
            Ok(value(q))
        });
    }
    // Selectors narrow a question; rules here do not depend on them, so the wider question is asked, as upstream's
    // authorizers do that do not look at them.
    for name in ["fieldSelector", "labelSelector"] {
        context.add_function(name, |This(v): This<Cel>, _s: Arc<String>| -> Result<Cel, ExecutionError> {
            question(&v).map(value)
        });
    }
    context.add_function(
        "serviceAccount",
        |This(v): This<Cel>, namespace: Arc<String>, name: Arc<String>| -> Result<Cel, ExecutionError> {
            let mut q = question(&v)?;
            if !crate::names::is_dns1123_label(&namespace).is_empty() {
                return Err(ExecutionError::function_error("serviceAccount", "Invalid service account namespace"));
            }
            if !crate::names::is_dns1123_subdomain(&name).is_empty() {
                return Err(ExecutionError::function_error("serviceAccount", "Invalid service account name"));
            }
            q.account = Some(((*namespace).clone(), (*name).clone()));
            Ok(value(q))
        },
    );
    context.add_function("check", |This(v): This<Cel>, verb: Arc<String>| -> Result<Cel, ExecutionError> {
        let mut q = question(&v)?;
        q.check.verb = (*verb).clone();
        let account = q.account.as_ref().map(|(ns, name)| (ns.as_str(), name.as_str()));
        Ok(value(q.who.decide(account, &q.check)))
    });
    context.add_function("allowed", |This(v): This<Cel>| -> Result<Cel, ExecutionError> {
        Ok(Cel::Bool(decision(&v)?.allowed))
    });
    context.add_function("errored", |This(v): This<Cel>| -> Result<Cel, ExecutionError> {
        Ok(Cel::Bool(decision(&v)?.error.is_some()))
    });
    context.add_function("reason", |This(v): This<Cel>| -> Result<Cel, ExecutionError> {
        Ok(Cel::String(Arc::new(decision(&v)?.reason.clone())))
    });
    context.add_function("error", |This(v): This<Cel>| -> Result<Cel, ExecutionError> {
        Ok(Cel::String(Arc::new(decision(&v)?.error.clone().unwrap_or_default())))
    });
}
