//! Parameters of policies: the objects that a binding refers to.

use std::sync::Arc;

use serde_json::Value;
use skiff_core::selector::LabelSelector;

use crate::admission::action::Action;
use crate::registry::Kind;

/// Parameters that one binding may bring; upstream has no bound, but each costs an evaluation.
const PARAMS_MAX: usize = 1000;

/// What a binding refers to.
#[derive(Debug)]
pub(super) struct ParamRef {
    name: String,
    namespace: String,
    selector: Option<LabelSelector>,
    /// Whether it is no fault when there is none.
    allow: bool,
}

impl ParamRef {
    pub(super) fn parse(v: &Value) -> Self {
        let text = |key: &str| v[key].as_str().unwrap_or_default().to_owned();
        Self {
            name: text("name"),
            namespace: text("namespace"),
            selector: v["selector"].as_object().map(|_| LabelSelector::from_object(Some(&v["selector"]))),
            allow: v["parameterNotFoundAction"] == "Allow",
        }
    }
}

fn kind_of(a: &Action<'_>, api_version: &str, kind: &str) -> Option<Arc<Kind>> {
    let registry = a.server.registry.load();
    let fits = |k: &&Arc<Kind>| k.resource.kind == kind && k.api_version() == api_version && k.collection.is_some();
    registry.iter().find(fits).cloned()
}

/// Why there can be no parameters of a kind; `None` when there can, or none are wanted.
pub(super) fn unknown(a: &Action<'_>, kind: Option<&(String, String)>) -> Option<String> {
    let (api_version, kind) = kind?;
    if kind_of(a, api_version, kind).is_some() {
        return None;
    }
    let gv = if api_version.contains('/') { api_version.clone() } else { format!("/{api_version}") };
    Some(format!("failed to find resource referenced by paramKind: '{gv}, Kind={kind}'"))
}

/// The parameters of a binding: an element for each evaluation, none where nothing is to be done.
///
/// # Errors
/// Why they cannot be had, in upstream's words.
pub(super) fn find(
    a: &Action<'_>,
    kind: Option<&(String, String)>,
    reference: Option<&ParamRef>,
) -> Result<Vec<Option<Arc<Value>>>, String> {
    let Some((api_version, kind)) = kind else { return Ok(vec![None]) };
    let Some(reference) = reference else { return Ok(vec![None]) };
    let Some(found) = kind_of(a, api_version, kind) else {
        return Err(format!("paramKind kind `{api_version}, Kind={kind}` not known"));
    };
    let namespace = match (found.resource.namespaced, reference.namespace.as_str()) {
        (false, "") => "",
        (false, _) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned()),
        (true, "") if a.namespace.is_empty() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned()
            );
        }
        (true, "") => &a.namespace,
        (true, ns) => ns,
    };
    let objects = found.stored().map_err(|s| s.message)?;
    let mut out = vec![];
    if let Some(selector) = &reference.selector {
        for object in objects.cache.list(&objects.scope(namespace)).objects {
            let Ok(value) = found.load(&object) else { continue };
            if out.len() < PARAMS_MAX && selector.matches(&value["metadata"]["labels"]) {
                out.push(Some(Arc::new(value)));
            }
        }
    } else if let Some(object) = objects.peek(namespace, &reference.name) {
        out.push(Some(Arc::new(found.load(&object).map_err(|s| s.message)?)));
    }
    if out.is_empty() && !reference.allow {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    Ok(out)
}
