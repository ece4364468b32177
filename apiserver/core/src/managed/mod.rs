//! Who owns which field: `metadata.managedFields`, and the patch that is built on it (server-side apply).
//!
//! Every write says who makes it ([`Writer`]). A create, update or patch makes its writer own what it added or changed
//! ([`update`]). An apply ([`apply`]) makes its writer own exactly what its configuration lists: what somebody else owns
//! and would be changed is a conflict; what the writer listed before and lists no more goes away unless somebody else owns
//! it. Defaults belong to nobody, because sets are made before defaulting.
//!
//! Limits: sets recorded under another version of the same kind are read along the schema of the version at hand. Fields
//! that a conversion renames would have to be mapped by the caller.

mod entries;
#[cfg(test)]
mod recorded;
pub mod set;
#[cfg(test)]
mod tests;
mod typed;

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use self::entries::{Id, Managed, Operation};
pub use self::set::{Set, Step};
use self::typed::{Comparison, Type, faults, field_set, merge, remove, same, with_named};
use crate::codec::{Faults, normalize};
use crate::schema::{ListType, Shape, Struct};
use crate::status::Status;

/// Annotation of client-side `kubectl apply`.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Owner of what was there when an object without owners is applied to for the first time.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// What is never owned.
static UNTRACKED: LazyLock<Set> = LazyLock::new(|| {
    Set::of_fields(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
});

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// Name of the field manager.
    pub manager: &'a str,
    /// Version of the request, for example `apps/v1`.
    pub api_version: &'a str,
    /// Subresource, or empty.
    pub subresource: &'a str,
    /// Now, as in `2026-01-02T03:04:05Z`.
    pub now: &'a str,
}

/// The kind that is written to.
#[derive(Clone, Copy)]
pub struct Kind<'a> {
    /// Its structure.
    pub shape: &'a Struct,
    /// Fields this endpoint takes back (status on the main one, spec on `status`): never owned through it.
    pub reset: &'a Set,
    /// Whether an `apiVersion` is one of this kind. Sets of unknown versions are dropped.
    pub known: &'a dyn Fn(&str) -> bool,
}

/// Why an apply cannot be done.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ApplyError {
    /// The configuration does not follow the schema: upstream answers 500 with this text.
    #[error("{0}")]
    Schema(String),
    /// `metadata.managedFields` in a configuration.
    #[error("metadata.managedFields must be nil")]
    ManagedFields,
    /// Fields of others would change: manager as in messages, and path, for each.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<(String, String)>),
}

impl From<ApplyError> for Status {
    fn from(error: ApplyError) -> Self {
        let text = error.to_string();
        match error {
            ApplyError::Schema(_) => Self::untyped(text),
            ApplyError::ManagedFields => Self::bad_request(text),
            ApplyError::Conflicts(conflicts) => {
                conflicts.iter().fold(Self::new(409, "Conflict", text), |status, (manager, path)| {
                    status.cause("FieldManagerConflict", &format!("conflict with {manager}"), path)
                })
            }
        }
    }
}

fn conflict_message(conflicts: &[(String, String)]) -> String {
    if let [(manager, path)] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {manager}: {path}");
    }
    let mut lines = Vec::new();
    let mut last = None;
    for (manager, path) in conflicts {
        if last != Some(manager) {
            lines.push(format!("conflicts with {manager}:"));
            last = Some(manager);
        }
        lines.push(format!("- {path}"));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// What a new object is before anything is said about it: what upstream's empty structure prints.
fn blank(shape: &Struct) -> Value {
    let mut blank = Value::Object(Map::new());
    // An empty object fits any structure.
    let _ = normalize(&mut blank, shape, &mut Faults::default());
    blank
}

fn managed_fields(object: &Value) -> Option<&Value> {
    object.get("metadata")?.get("managedFields")
}

/// Puts `managedFields` into the object, or takes them out when there are none.
fn set_managed_fields(object: &mut Value, fields: Option<Value>) {
    let Some(members) = object.as_object_mut() else { return };
    let metadata = members.entry("metadata").or_insert_with(|| json!({}));
    let Some(metadata) = metadata.as_object_mut() else { return };
    match fields {
        Some(fields) => drop(metadata.insert("managedFields".to_owned(), fields)),
        None => drop(metadata.remove("managedFields")),
    }
}

fn without_managed_fields(object: &Value) -> Value {
    let Value::Object(members) = object else { return object.clone() };
    let mut out = Map::new();
    for (name, value) in members {
        // Not cloned to be dropped: the entries may well be half of the object.
        let value = match value {
            Value::Object(metadata) if name == "metadata" => {
                let kept = metadata.iter().filter(|(k, _)| *k != "managedFields");
                Value::Object(kept.map(|(k, v)| (k.clone(), v.clone())).collect())
            }
            other => other.clone(),
        };
        out.insert(name.clone(), value);
    }
    out.entry("metadata").or_insert_with(|| json!({}));
    Value::Object(out)
}

/// Whether two objects differ in nothing but their `managedFields`.
fn same_but_owners(a: &Value, b: &Value) -> bool {
    let (Value::Object(a), Value::Object(b)) = (a, b) else { return same(a, b) };
    a.len() == b.len()
        && a.iter().all(|(key, a)| match (a, b.get(key)) {
            (Value::Object(a), Some(Value::Object(b))) if key == "metadata" => {
                let rest = |m: &Map<String, Value>| m.len() - usize::from(m.contains_key("managedFields"));
                let mut kept = a.iter().filter(|(key, _)| *key != "managedFields");
                rest(a) == rest(b) && kept.all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
            }
            (a, Some(b)) => same(a, b),
            (_, None) => false,
        })
}

/// Whether a list of entries asks for none to be kept.
fn is_reset(entries: &[Value]) -> bool {
    match entries {
        [] => true,
        [Value::Object(only)] => only.is_empty(),
        _ => false,
    }
}

/// Gives `new` the `managedFields` it has after this write. `live` is the object before, `None` on creation. To be called
/// on the object after decoding and defaulting, before the server fills in what is its own, and again if admission changed
/// it. `new` must still carry the `managedFields` of the request as they were: `[]` and `[{}]` drop all owners, and
/// normalising drops `[]`.
pub fn update(kind: &Kind<'_>, live: Option<&Value>, new: &mut Value, writer: &Writer<'_>) {
    let before = live.and_then(managed_fields);
    let mut managed = match managed_fields(new) {
        // Subresources do not touch the entries.
        _ if !writer.subresource.is_empty() => Managed::decode(before),
        Some(Value::Array(entries)) if is_reset(entries) => Managed::default(),
        given => match Managed::decode(given) {
            given if given.is_empty() => Managed::decode(before),
            given => given,
        },
    };
    set_managed_fields(new, None);
    // An object whose owners were dropped stays without, until it is applied to.
    if live.is_some() && managed.is_empty() {
        return;
    }
    // The entries of the live object are found missing, and belong to nobody.
    let empty = live.is_none().then(|| blank(kind.shape));
    let Some(old) = live.or(empty.as_ref()) else { return };
    record_update(kind, old, new, &mut managed, writer);
    managed.cap();
    let fields = managed.encode();
    // Times alone are no change.
    let unchanged = live.is_some() && same_but_owners(old, new) && Managed::same_owners(before, fields.as_ref());
    set_managed_fields(new, if unchanged { before.cloned() } else { fields });
}

/// Ownership after a write of an object that does not fit the structure of its kind, as those of custom kinds may: it is not
/// understood, so all stays as it was. Answers whether it is such a one.
pub fn misfit(shape: &Struct, live: Option<&Value>, new: &mut Value) -> bool {
    if typed::fits(new, Type::Struct(shape)) {
        return false;
    }
    set_managed_fields(new, live.and_then(managed_fields).cloned());
    true
}

/// Ownership after a write that is no apply.
fn record_update(kind: &Kind<'_>, old: &Value, new: &Value, managed: &mut Managed, writer: &Writer<'_>) {
    managed.retain_known(kind.known);
    let compared = Comparison::of(old, new, Type::Struct(kind.shape)).without(kind.reset);
    let mut taken = compared.modified;
    taken.extend(compared.added);
    for entry in managed.0.values_mut() {
        entry.set.subtract(&taken);
        entry.set.subtract(&compared.removed);
    }
    taken.subtract(&UNTRACKED);
    if !taken.is_empty() {
        let id = Id::new(writer, Operation::Update);
        let entry = managed.entry(id, writer.api_version);
        entry.set.extend(taken);
        // What comes from the scale view keeps the time it had in the object, which is none at first.
        if writer.subresource != "scale" {
            entry.time = Some(writer.now.to_owned());
        }
    }
    managed.tidy(&UNTRACKED);
}

/// Applies a configuration. Answers the object as it then is, with its `managedFields`, still to be decoded, defaulted and
/// validated; `live` is `None` when it does not exist yet.
pub fn apply(
    kind: &Kind<'_>,
    live: Option<&Value>,
    config: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    if managed_fields(config).is_some_and(|v| !v.is_null()) {
        return Err(ApplyError::ManagedFields);
    }
    let t = Type::Struct(kind.shape);
    let problems = faults(config, t);
    if !problems.is_empty() {
        let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default();
        let meta =
            |key: &str| config.get("metadata").and_then(|m| m.get(key)).and_then(Value::as_str).unwrap_or_default();
        let version = text("apiVersion");
        let version = if version.contains('/') { version.to_owned() } else { format!("/{version}") };
        let problems = match problems.as_slice() {
            [one] => one.clone(),
            many => format!("errors:\n{}", many.iter().map(|p| format!("  {p}")).collect::<Vec<_>>().join("\n")),
        };
        return Err(ApplyError::Schema(format!(
            "failed to create typed patch object ({}/{}; {version}, Kind={}): {problems}",
            meta("namespace"),
            meta("name"),
            text("kind"),
        )));
    }
    let before = live.and_then(managed_fields).cloned();
    let old = live.map_or_else(|| blank(kind.shape), without_managed_fields);
    let mut managed = Managed::decode(before.as_ref());
    if managed.is_empty() && live.is_some() {
        let nobody = Writer { manager: BEFORE_FIRST_APPLY, ..*writer };
        let whole = Kind { reset: &Set::default(), ..*kind };
        record_update(&whole, &blank(kind.shape), &old, &mut managed, &nobody);
    }
    managed.retain_known(kind.known);

    let id = Id::new(writer, Operation::Apply);
    let config = without_managed_fields(config);
    let set = field_set(&config, t).without(kind.reset);
    // Of a new object the kind itself takes back what may not be given.
    let config = if live.is_some() { remove(&config, kind.reset, t) } else { config };
    let last = managed.0.get(&id).map(|e| e.set.clone());
    let entry = managed.entry(id.clone(), writer.api_version);
    entry.set = set;
    entry.api_version = writer.api_version.to_owned();
    let mut new = merge(&old, &config, t);
    if let Some(last) = last {
        new = prune(&new, &last, &managed, t);
    }

    let compared = Comparison::of(&old, &new, t).without(kind.reset);
    let taken = compared.modified.union(&compared.added);
    let mut conflicts = Vec::new();
    for (other, entry) in managed.0.iter().filter(|(other, _)| **other != id) {
        let name = other.describe(&entry.api_version);
        entry.set.intersection(&taken).each(&mut |path| conflicts.push((name.clone(), path.to_vec())));
    }
    if !force && !conflicts.is_empty() {
        let allowed = if writer.manager == "kubectl" { allowed_by_last_applied(live, t) } else { Set::default() };
        let open = |path: &[Step]| {
            let mut one = Set::default();
            one.insert(path);
            allowed.intersection(&one).is_empty()
        };
        let mut conflicts: Vec<(String, String)> = conflicts
            .into_iter()
            .filter(|(_, path)| open(path))
            .map(|(manager, path)| (manager, set::show(&path)))
            .collect();
        if !conflicts.is_empty() {
            // Within a manager they stay as a set of fields is walked: what stands at a place before what is below it.
            conflicts.sort_by(|a, b| a.0.cmp(&b.0));
            return Err(ApplyError::Conflicts(conflicts));
        }
    }
    for (_, entry) in managed.0.iter_mut().filter(|(other, _)| **other != id) {
        entry.set = entry.set.difference(&taken).difference(&compared.removed);
    }
    if writer.manager == "kubectl" {
        renew_last_applied(&mut new, &config);
    }
    let changed = !same(&old, &new);
    if changed && let Some(entry) = managed.0.get_mut(&id) {
        entry.time = Some(writer.now.to_owned());
    }
    managed.tidy(&UNTRACKED);
    managed.cap();
    let fields = managed.encode();
    let unchanged = !changed && Managed::same_owners(before.as_ref(), fields.as_ref());
    set_managed_fields(&mut new, if unchanged { before } else { fields });
    Ok(new)
}

/// Merges a configuration into an object as [`apply`] does, for a writer that owns nothing. It may not name what is
/// replaced as a whole.
///
/// # Errors
/// Why not, in upstream's words.
pub fn merge_unowned(shape: &Struct, live: &Value, config: &Value) -> Result<Value, String> {
    let t = Type::Struct(shape);
    if let Some(problem) = faults(config, t).first() {
        return Err(format!("failed to convert patch object to typed object: {problem}"));
    }
    let mut wholes = vec![];
    wholes_of_struct(shape, config, "", &mut wholes);
    if !wholes.is_empty() {
        return Err(format!(
            "invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            wholes.join(", ")
        ));
    }
    Ok(merge(live, config, t))
}

/// Paths in a configuration of what is replaced as a whole.
fn wholes_of_struct(shape: &Struct, value: &Value, path: &str, out: &mut Vec<String>) {
    let Value::Object(members) = value else { return };
    for (name, value) in members {
        let Some(field) = shape.field(name) else { continue };
        let at = format!("{path}.{name}");
        match (&field.shape, value) {
            (Shape::Struct(s), Value::Object(_)) => {
                if (s.atomic || field.atomic) && !field.granular {
                    out.push(at.clone());
                }
                wholes_of_struct(s, value, &at, out);
            }
            (Shape::Map(_), Value::Object(_)) if field.atomic => out.push(at),
            (Shape::List(item), Value::Array(items)) => {
                if field.list == ListType::Atomic {
                    out.push(at.clone());
                }
                if let Shape::Struct(s) = &**item {
                    for (i, item) in items.iter().enumerate() {
                        wholes_of_struct(s, item, &format!("{at}[{i}]"), out);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Takes out what the writer listed before and lists no more, except what somebody (the writer included) owns.
fn prune(merged: &Value, last: &Set, managed: &Managed, t: Type<'_>) -> Value {
    let named = |set: &Set| with_named(set, t);
    let last = named(last);
    let pruned = remove(merged, &last, t);
    let owned = managed.0.values().fold(Set::default(), |all, entry| all.union(&entry.set));
    let merged_set = named(&field_set(merged, t));
    let kept = named(&field_set(&pruned, t)).union(&named(&owned));
    let pruned = remove(merged, &merged_set.difference(&kept), t);
    // What went only because all below it went, and was not the writer's, comes back.
    let pruned_set = named(&field_set(&pruned, t));
    remove(merged, &merged_set.difference(&pruned_set).intersection(&last), t)
}

/// Keeps the annotation of client-side apply true where there is one, so that old clients can still take over.
fn renew_last_applied(object: &mut Value, config: &Value) {
    let annotation = object.get_mut("metadata").and_then(|m| m.get_mut("annotations")?.get_mut(LAST_APPLIED));
    let Some(annotation) = annotation else { return };
    let mut config = config.clone();
    if let Some(Value::Object(annotations)) = config.get_mut("metadata").and_then(|m| m.get_mut("annotations")) {
        annotations.remove(LAST_APPLIED);
    }
    *annotation = Value::from(format!("{config}\n"));
}

/// What a first server-side `kubectl apply` may take over: fields that client-side apply set and nobody changed since.
fn allowed_by_last_applied(live: Option<&Value>, t: Type<'_>) -> Set {
    let read = || {
        let live = live?;
        let text = live.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()?;
        let last: Value = serde_json::from_str(text).ok()?;
        let compared = Comparison::of(&last, &without_managed_fields(live), t);
        Some(field_set(&last, t).difference(&compared.modified).difference(&compared.removed))
    };
    read().unwrap_or_default()
}
