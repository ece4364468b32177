//! Admission: the built-in plugins, in upstream's order, and what is configured by objects ([`dynamic`]). Mutating ones
//! first, then the kind's own rules (elsewhere), then validating ones.

mod action;
mod certificates;
mod dynamic;
mod lifecycle;
mod limits;
mod matching;
mod node_restriction;
mod pod_security;
mod pods;
mod policy;
mod quota;
mod storage;
mod webhook;

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;
use skiff_core::status::Status;

use self::action::Action;
pub use self::dynamic::Dynamic;
use crate::registry::Kind;
use crate::server::Inner;
use crate::verbs::Call;

/// What is being done to the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

impl Operation {
    /// As rules and reviews name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// One request as plugins see it.
pub struct Review<'a> {
    /// Server.
    pub server: &'a Arc<Inner>,
    /// Kind of the object.
    pub kind: &'a Kind,
    /// The request.
    pub call: &'a Call,
    /// Operation.
    pub operation: Operation,
    /// State before, for updates and deletions.
    pub old: Option<&'a Value>,
}

impl Review<'_> {
    fn is(&self, group: &str, plural: &str) -> bool {
        self.kind.group() == group && self.kind.plural() == plural
    }

    fn subresource(&self) -> &str {
        &self.call.target.subresource
    }

    /// 403 about the object under review.
    #[must_use]
    pub fn forbidden(&self, obj: &Value, why: impl std::fmt::Display) -> Status {
        let names = [skiff_core::meta::name(obj), skiff_core::meta::text(obj, "generateName")];
        let name = names.into_iter().find(|n| !n.is_empty()).unwrap_or("Unknown");
        Status::forbidden(self.kind.group(), self.kind.plural(), name, why)
    }
}

/// The objects of one resource in a namespace, by name.
fn in_namespace(r: &Review<'_>, group: &str, plural: &str, ns: &str) -> Result<Vec<Value>, Status> {
    let all = r.server.collection(group, plural)?;
    let list = all.cache.list(&all.scope(ns));
    Ok(list.objects.iter().filter_map(|o| serde_json::from_slice(&o.value).ok()).collect())
}

/// Who wants to be asked once more, because the object changed after it was asked.
struct Again<T> {
    previous: Vec<T>,
    wanted: Vec<T>,
}

impl<T> Default for Again<T> {
    fn default() -> Self {
        Self { previous: vec![], wanted: vec![] }
    }
}

impl<T> Again<T> {
    /// One was asked, and changed the object or not; `eligible`: it may be asked again.
    fn asked(&mut self, changed: bool, eligible: bool, id: T) {
        if changed {
            self.changed();
        }
        if eligible {
            self.previous.push(id);
        }
    }

    /// The object changed after all that were asked.
    fn changed(&mut self) {
        self.wanted.append(&mut self.previous);
    }
}

/// 403 about the object of an action.
fn forbidden(a: &Action<'_>, object: Option<&Value>, why: &str) -> Status {
    let generated = object.map_or("", |o| skiff_core::meta::text(o, "generateName"));
    let name = [a.name.as_str(), generated].into_iter().find(|n| !n.is_empty()).unwrap_or("Unknown");
    Status::forbidden(a.kind.group(), a.kind.plural(), name, why)
}

/// An object and what it was before, either of which may not be.
type Seen<'v> = (Option<Cow<'v, Value>>, Option<Cow<'v, Value>>);

/// Objects of an action as another version of their kind has them.
async fn as_seen<'v>(
    a: &Action<'_>,
    kind: &Arc<Kind>,
    object: Option<&'v Value>,
    old: Option<&'v Value>,
) -> Result<Seen<'v>, Status> {
    if Arc::ptr_eq(kind, a.kind) || !a.is_whole() {
        return Ok((object.map(Cow::Borrowed), old.map(Cow::Borrowed)));
    }
    let mut out = [None, None];
    for (v, out) in [object, old].into_iter().zip(&mut out) {
        if let Some(v) = v {
            *out = Some(Cow::Owned(a.kind.translate(a.server, kind, v.clone()).await?));
        }
    }
    let [object, old] = out;
    Ok((object, old))
}

/// What a policy or webhook made of an object, as the request's own kind and decoded anew: defaults for what was added,
/// unknown fields gone. Its name and namespace are not theirs to change.
async fn back(a: &Action<'_>, seen: &Arc<Kind>, before: &Value, new: Value) -> Result<Value, Status> {
    use skiff_core::meta;
    if !a.is_whole() {
        return Ok(new);
    }
    let mut new = if Arc::ptr_eq(seen, a.kind) { new } else { seen.translate(a.server, a.kind, new).await? };
    crate::verbs::write::renormalise(a.kind, &mut new)?;
    if meta::namespace(&new) != meta::namespace(before) {
        let why = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Status::bad_request(why));
    }
    if !meta::name(before).is_empty() && meta::name(&new) != meta::name(before) {
        let (name, want) = (meta::name(&new), meta::name(before));
        let why = format!("the name of the object ({name}) does not match the name on the URL ({want})");
        return Err(Status::bad_request(why));
    }
    Ok(new)
}

/// Reviews what is written through a subresource without being stored as it is (bindings, evictions, token requests), and
/// connections: only policies and webhooks have a say.
///
/// # Errors
/// What one of them refuses.
pub async fn review(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    call: &mut Call,
    operation: Operation,
    obj: &mut Value,
    dry_run: bool,
) -> Result<(), Status> {
    dynamic::mutate(server, kind, call, operation, obj, None, dry_run).await?;
    dynamic::validate(server, kind, call, operation, obj, None, dry_run).await
}

/// Reviews a connection (exec, attach, port-forward, proxy): the object is its options.
///
/// # Errors
/// As [`review`].
pub async fn connect(server: &Arc<Inner>, kind: &Arc<Kind>, call: &mut Call) -> Result<(), Status> {
    let of = match kind.plural() {
        "pods" => "Pod",
        "services" => "Service",
        _ => "Node",
    };
    let (name, flags): (_, &[&str]) = match call.target.subresource.as_str() {
        "exec" => ("Exec", &["stdin", "stdout", "stderr", "tty"]),
        "attach" => ("Attach", &["stdin", "stdout", "stderr", "tty"]),
        "portforward" => ("PortForward", &[]),
        _ => ("Proxy", &[]),
    };
    let mut options = serde_json::json!({"kind": format!("{of}{name}Options"), "apiVersion": "v1"});
    for flag in flags.iter().filter(|f| call.query.flag(f)) {
        options[*flag] = true.into();
    }
    if let Some(container) = call.query.get("container").filter(|c| !c.is_empty()) {
        options["container"] = container.into();
    }
    let command: Vec<&str> = call.query.all("command").collect();
    let ports: Vec<i64> = call.query.all("ports").flat_map(|p| p.split(',')).filter_map(|p| p.parse().ok()).collect();
    if !command.is_empty() {
        options["command"] = command.into();
    }
    if !ports.is_empty() {
        options["ports"] = ports.into();
    }
    if name == "Proxy" && !call.target.rest.is_empty() {
        options["path"] = call.target.rest.as_str().into();
    }
    review(server, kind, call, Operation::Connect, &mut options, false).await
}

/// Runs the mutating plugins, then what is configured. Answers whether that may have changed the object.
///
/// # Errors
/// What a plugin refuses.
pub async fn mutate(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    call: &mut Call,
    operation: Operation,
    obj: &mut Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<bool, Status> {
    let warnings = built_in(server, kind, call, operation, obj, old).await?;
    call.warnings.extend(warnings);
    let asked = dynamic::mutate(server, kind, call, operation, obj, old, dry_run).await?;
    // Before the kind's own rules see it.
    crate::auth::escalation::check(&Review { server, kind, call, operation, old }, obj)?;
    // The plugins that are built in know no custom kind.
    Ok(asked || !kind.strategy.traits().untyped)
}

/// The mutating plugins; answers warnings.
async fn built_in(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    call: &Call,
    operation: Operation,
    obj: &mut Value,
    old: Option<&Value>,
) -> Result<Vec<String>, Status> {
    let mut warnings = vec![];
    let r = Review { server, kind, call, operation, old };
    lifecycle::check_namespace(&r, obj).await?;
    limits::fill(&r, obj)?;
    certificates::identify(&r, obj);
    node_restriction::mutate(&r, obj)?;
    pods::service_account(&r, obj)?;
    pods::priority(&r, obj)?;
    pods::tolerations(&r, obj);
    pods::runtime_class(&r, obj)?;
    storage::protect(&r, obj);
    storage::default_classes(&r, obj, &mut warnings)?;
    lifecycle::taint_new_node(&r, obj);
    Ok(warnings)
}

/// Runs the validating plugins.
///
/// # Errors
/// What a plugin refuses.
pub async fn validate(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    call: &mut Call,
    operation: Operation,
    obj: &Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<(), Status> {
    let mut warnings = vec![];
    {
        let r = Review { server, kind, call, operation, old };
        if operation == Operation::Delete {
            lifecycle::check_delete(&r, obj)?;
            node_restriction::check_delete(&r, obj)?;
        }
        limits::check(&r, obj)?;
        storage::check_resize(&r, obj)?;
        let secure = pod_security::check(&r, obj, &mut warnings);
        certificates::check(&r, obj)?;
        secure?;
    }
    dynamic::validate(server, kind, call, operation, obj, old, dry_run).await?;
    // Last, because it books what everybody else has let through.
    quota::admit(&Review { server, kind, call, operation, old }, obj, dry_run).await?;
    call.warnings.extend(warnings);
    Ok(())
}
