//! Admission: the built-in plugins, in upstream's order. Mutating ones first, then the kind's own rules (elsewhere),
//! then validating ones. Webhooks and CEL policies hang in here too when they come.

mod certificates;
mod lifecycle;
mod limits;
mod node_restriction;
mod pod_security;
mod pods;
mod quota;
mod storage;

use std::sync::Arc;

use serde_json::Value;
use skiff_core::status::Status;

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
        let name = match skiff_core::meta::name(obj) {
            "" => skiff_core::meta::text(obj, "generateName"),
            n => n,
        };
        Status::forbidden(self.kind.group(), self.kind.plural(), name, why)
    }
}

/// The objects of one resource in a namespace, by name.
fn in_namespace(r: &Review<'_>, group: &str, plural: &str, ns: &str) -> Result<Vec<Value>, Status> {
    let all = r.server.collection(group, plural)?;
    let list = all.cache.list(&all.scope(ns));
    Ok(list.objects.iter().filter_map(|o| serde_json::from_slice(&o.value).ok()).collect())
}

/// Runs the mutating plugins.
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
    _dry_run: bool,
) -> Result<(), Status> {
    let mut warnings = vec![];
    {
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
    }
    call.warnings.extend(warnings);
    Ok(())
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
    let r = Review { server, kind, call, operation, old };
    if operation == Operation::Delete {
        lifecycle::check_delete(&r, obj)?;
        node_restriction::check_delete(&r, obj)?;
    }
    crate::auth::escalation::check(&r, obj)?;
    limits::check(&r, obj)?;
    storage::check_resize(&r, obj)?;
    let mut warnings = vec![];
    let secure = pod_security::check(&r, obj, &mut warnings);
    certificates::check(&r, obj)?;
    secure?;
    // Last, because it books what everybody else has let through.
    quota::admit(&r, obj, dry_run).await?;
    call.warnings.extend(warnings);
    Ok(())
}
