//! What every write has in common: admission, the kind's rules, ownership, the store.
//!
//! `new` arrives decoded, of the request's version, and leaves validated and stored. Creates and updates differ only in
//! the order the upstream server has; both live here so that PUT, every kind of PATCH, apply, and the subresources go
//! through the same checks.

use std::sync::Arc;

use serde_json::Value;
use skiff_core::codec;
use skiff_core::invalid::Errors;
use skiff_core::kinds;
use skiff_core::meta;
use skiff_core::status::Status;
use skiff_core::time;
use skiff_storage::cache::Object;
use skiff_storage::{Compare, Error, Op};

use super::options::WriteOptions;
use super::{Answer, Call, Content};
use crate::admission::{self, Operation};
use crate::ownership::{self, Owner};
use crate::registry::hooks::Undo;
use crate::registry::{Kind, object, storage_error};
use crate::request::Verb;
use crate::server::Inner;

/// How often a generated name is tried again when it is taken.
const NAME_TRIES: usize = 8;

/// The refusal of an object whose name is taken.
fn exists(kind: &Kind, new: &Value, there: Option<&Value>) -> Status {
    let mut s = Status::already_exists(kind.group(), kind.plural(), meta::name(new));
    if there.is_some_and(meta::deleting) {
        s.message = format!("object is being deleted: {}", s.message);
    }
    s
}

/// Gives back what a hook reserved for a write that does not happen.
async fn give_back(undo: Undo) {
    if let Some(undo) = undo {
        undo.await;
    }
}

/// The same, on the way to telling why.
async fn undone(why: Status, undo: Undo) -> Status {
    give_back(undo).await;
    why
}

/// Stores a new object.
///
/// # Errors
/// Whatever admission, validation or the store refuse.
pub async fn create(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    call: &mut Call,
    mut obj: Value,
    owner: Owner,
    options: &WriteOptions,
) -> Result<Answer, Status> {
    let objects = Arc::clone(kind.stored()?);
    let version = obj["metadata"].get("resourceVersion").filter(|v| !v.is_null() && *v != "").cloned();
    wipe_new(&mut obj);
    dedup_owners(&mut obj, &mut call.warnings);
    let generated = meta::name(&obj).is_empty() && !meta::text(&obj, "generateName").is_empty();
    let base = meta::text(&obj, "generateName").to_owned();
    if let Some(refusal) = kind.hooks.refuse_create(meta::name(&obj)) {
        return Err(refusal);
    }
    kind.strategy.default(&mut obj);
    if owner == Owner::Update {
        ownership::track(kind, call, &mut obj, None, &options.manager);
    }
    // After ownership: what follows from a generated name is not the client's.
    if generated {
        let name = generate_name(&base);
        meta::meta_mut(&mut obj).insert("name".into(), name.into());
    }
    stamp_new(&mut obj);
    let changed = admission::mutate(server, kind, call, Operation::Create, &mut obj, None, options.dry_run).await?;
    if changed {
        renormalise(kind, &mut obj)?;
    }
    kind.strategy.early_warnings(&obj, &mut call.warnings);
    kind.strategy.prepare_create(&mut obj);
    retype(kind, &mut obj)?;
    let mut errors = Errors::new();
    kind.strategy.settle(&mut obj, None, &mut errors);
    if !errors.is_empty() {
        return Err(refusal(kind, meta::name(&obj), errors, &call.emptied));
    }
    let undo = kind.hooks.before_create(server, &mut obj, options.dry_run).await?;
    meta::validate(&obj, kind.resource.namespaced, kind.strategy.traits().name, &mut errors);
    if !kind.strategy.traits().untyped {
        meta::validate_standard_finalizers(&obj, &mut errors);
    }
    kind.strategy.validate(&obj, &mut errors);
    kind.hooks.validate(&obj, None, &mut errors);
    if !errors.is_empty() {
        let name = meta::name(&obj);
        let name = if name.is_empty() { &base } else { name };
        return Err(undone(refusal(kind, name, errors, &call.emptied), undo).await);
    }
    kind.strategy.warnings(&obj, None, &mut call.warnings);
    forget_empty_lists(&mut obj, &kind.resource.model);
    if let Err(e) = admission::validate(server, kind, call, Operation::Create, &obj, None, options.dry_run).await {
        return Err(undone(e, undo).await);
    }
    if options.dry_run {
        give_back(undo).await;
        let key = objects.key(meta::namespace(&obj), meta::name(&obj));
        if let Some(there) = objects.cache.get(&key) {
            return Err(exists(kind, &obj, serde_json::from_slice(&there.value).ok().as_ref()));
        }
        // Only the store would have set another.
        if let Some(version) = version {
            meta::meta_mut(&mut obj).insert("resourceVersion".into(), version);
        }
        return Ok(Answer::Object { code: 201, kind: Arc::clone(kind), object: Content::Parsed(obj) });
    }
    // The store is who minds; it does not look at what is no number. On the way to an update nobody asks.
    let numbered = version.and_then(|v| v.as_str()?.parse::<u64>().ok()).is_some_and(|v| v != 0);
    if numbered && call.target.verb == Verb::Create {
        let why = Status::untyped("resourceVersion should not be set on objects to be created");
        return Err(undone(why, undo).await);
    }
    for attempt in 0.. {
        let stored = match kind.stored_form(server, &obj).await {
            Ok(v) => v,
            Err(e) => return Err(undone(e, undo).await),
        };
        let payload = object::encode(&stored);
        let key = objects.key(meta::namespace(&obj), meta::name(&obj));
        match objects.store.commit(&key, Compare::Absent, Op::Put(payload.clone())).await {
            Ok(revision) => {
                let bytes = payload.stamp(revision);
                return Ok(Answer::Object { code: 201, kind: Arc::clone(kind), object: Content::Stored(bytes) });
            }
            Err(Error::Conflict { current }) => {
                if generated && attempt + 1 < NAME_TRIES {
                    let name = generate_name(&base);
                    meta::meta_mut(&mut obj).insert("name".into(), name.into());
                    continue;
                }
                let there = current.and_then(|e| serde_json::from_slice::<Value>(&e.value).ok());
                let mut s = exists(kind, &obj, there.as_ref());
                if generated {
                    s = s.retry_after(1);
                }
                return Err(undone(s, undo).await);
            }
            Err(e) => return Err(undone(storage_error(e), undo).await),
        }
    }
    Err(Status::internal("unreachable: the loop above always returns"))
}

/// Whether a fault that is found twice is told twice: of kinds that upstream generates no rules for.
fn repeats(kind: &Kind) -> bool {
    kind.strategy.traits().untyped || matches!(kind.group(), "apiextensions.k8s.io" | "apiregistration.k8s.io")
}

fn refusal(kind: &Kind, name: &str, mut errors: Errors, emptied: &[String]) -> Status {
    if !repeats(kind) {
        errors.once();
    }
    errors.show_empty(emptied);
    let errors = &errors;
    let group = kind.strategy.error_group().unwrap_or(kind.group());
    Status::invalid(group, &kind.resource.kind, name, errors)
}

/// Five characters from an alphabet without vowels and look-alikes, after at most 58 of the base.
#[must_use]
pub fn generate_name(base: &str) -> String {
    use rand::Rng;
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rng = rand::rng();
    let cut: String = base.chars().take(58).collect();
    let tail: String = (0..5).map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())])).collect();
    cut + &tail
}

/// Drops repeated owner references, with upstream's warning.
fn dedup_owners(obj: &mut Value, warnings: &mut Vec<String>) {
    let gone = meta::dedup_owners(obj);
    if !gone.is_empty() {
        warnings.push(format!(
            ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, and may reject such requests as early as 1.24; please fix your requests; duplicate UID(s) observed: {}",
            gone.join(", ")
        ));
    }
}

/// Drops what a client cannot set on a new object, before ownership sees it.
fn wipe_new(obj: &mut Value) {
    let m = meta::meta_mut(obj);
    for key in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        m.remove(key);
    }
}

/// Sets what the server alone decides on a new object.
fn stamp_new(obj: &mut Value) {
    let m = meta::meta_mut(obj);
    m.insert("uid".into(), uuid::Uuid::new_v4().to_string().into());
    m.insert("creationTimestamp".into(), now().into());
}

/// The present time as objects carry it.
#[must_use]
pub fn now() -> String {
    time::format(jiff::Timestamp::now())
}

/// Decoding again after admission: defaults for what a plugin added, and the typed form.
pub(crate) fn renormalise(kind: &Kind, obj: &mut Value) -> Result<(), Status> {
    retype(kind, obj)?;
    kind.strategy.default(obj);
    Ok(())
}

/// The typed form: what a field prints when it holds nothing.
fn retype(kind: &Kind, obj: &mut Value) -> Result<(), Status> {
    let mut faults = codec::Faults::default();
    kind.normalize(obj, &mut faults).map_err(|e| Status::internal(e.to_string()))?;
    drop_creation_zero(obj);
    Ok(())
}

/// Upstream stores protobuf, which cannot tell an empty list from none: where a list always prints, an empty one prints
/// as null afterwards.
fn forget_empty_lists(value: &mut Value, shape: &skiff_core::schema::Struct) {
    use skiff_core::schema::{Presence, Shape};
    let Value::Object(o) = value else { return };
    for f in shape.fields.iter() {
        let Some(v) = o.get_mut(&*f.name) else { continue };
        match &f.shape {
            Shape::Struct(s) => forget_empty_lists(v, s),
            Shape::List(item) => {
                if f.presence == Presence::Always && v.as_array().is_some_and(Vec::is_empty) {
                    *v = Value::Null;
                } else if let Shape::Struct(s) = &**item {
                    for x in v.as_array_mut().into_iter().flatten() {
                        forget_empty_lists(x, s);
                    }
                }
            }
            _ => {}
        }
    }
}

/// A creation time that was never set is not printed.
fn drop_creation_zero(obj: &mut Value) {
    let m = meta::meta_mut(obj);
    if m.get("creationTimestamp").is_some_and(Value::is_null) {
        m.remove("creationTimestamp");
    }
}

/// Which part of the object a write is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but status.
    Main,
    /// Status only.
    Status,
    /// A subresource with its own preparation (already applied by the caller), named for admission and ownership.
    Other,
}

/// The outcome of one attempt to update.
pub enum Attempt {
    /// Done.
    Done(Answer),
    /// Somebody else wrote in between; read again and decide again.
    Raced,
}

/// An object as it is stored.
pub struct Old<'a> {
    /// Its bytes.
    pub object: &'a Arc<Object>,
    /// What they say, of the request's version ([`Kind::load_from`]).
    pub value: Value,
}

/// One attempt to replace `old` by `new`.
///
/// The caller has checked identity and the client's resourceVersion; `locked` says that it was given, so a race is final.
///
/// # Errors
/// Whatever admission, validation or the store refuse.
#[allow(clippy::too_many_arguments)]
pub async fn update(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    call: &mut Call,
    old: Old<'_>,
    mut new: Value,
    part: Part,
    owner: Owner,
    options: &WriteOptions,
    locked: bool,
) -> Result<Attempt, Status> {
    let objects = Arc::clone(kind.stored()?);
    let Old { object: old_object, value: old } = old;
    carry_identity(&mut new, &old);
    dedup_owners(&mut new, &mut call.warnings);
    if owner == Owner::Update {
        ownership::track(kind, call, &mut new, Some(&old), &options.manager);
    }
    kind.hooks.patch_allocated(&mut new, &old);
    let changed =
        admission::mutate(server, kind, call, Operation::Update, &mut new, Some(&old), options.dry_run).await?;
    if changed {
        renormalise(kind, &mut new)?;
    } else {
        drop_creation_zero(&mut new);
    }
    match part {
        Part::Main => kind.strategy.prepare_update(&mut new, &old),
        Part::Status => kind.strategy.prepare_status(&mut new, &old),
        Part::Other => {}
    }
    server_owned(&mut new, &old);
    let mut errors = Errors::new();
    if part == Part::Main {
        kind.strategy.settle(&mut new, Some(&old), &mut errors);
        if !errors.is_empty() {
            return Err(refusal(kind, meta::name(&old), errors, &call.emptied));
        }
    }
    let undo = kind.hooks.before_update(server, &mut new, &old, options.dry_run).await?;
    meta::validate_update(&new, &old, &mut errors);
    if repeats(kind) {
        meta::validate_change(&new, &old, &mut errors);
    }
    if !kind.strategy.traits().untyped {
        meta::validate_standard_finalizers(&new, &mut errors);
    }
    match part {
        Part::Status => kind.strategy.validate_status(&new, &old, &mut errors),
        Part::Other => kind.strategy.validate_subresource(&call.target.subresource, &new, &old, &mut errors),
        Part::Main => {
            kind.strategy.validate_update(&new, &old, &mut errors);
            kind.hooks.validate(&new, Some(&old), &mut errors);
        }
    }
    if !errors.is_empty() {
        give_back(undo).await;
        return Err(refusal(kind, meta::name(&old), errors, &call.emptied));
    }
    if part != Part::Status {
        kind.strategy.warnings(&new, Some(&old), &mut call.warnings);
    }
    forget_empty_lists(&mut new, &kind.resource.model);
    if let Err(e) = admission::validate(server, kind, call, Operation::Update, &new, Some(&old), options.dry_run).await
    {
        give_back(undo).await;
        return Err(e);
    }
    let answer = |object| Answer::Object { code: 200, kind: Arc::clone(kind), object };
    if meta::deleting(&new) && gone(&new, kind) {
        // The last finalizer is out: the update is the deletion.
        if options.dry_run {
            give_back(undo).await;
            return Ok(Attempt::Done(answer(Content::Parsed(new))));
        }
        return match objects.store.commit(&old_object.key, Compare::At(old_object.revision), Op::Delete).await {
            Ok(revision) => {
                kind.hooks.after_delete(server, &new).await;
                meta::meta_mut(&mut new).insert("resourceVersion".into(), revision.to_string().into());
                Ok(Attempt::Done(answer(Content::Parsed(new))))
            }
            Err(Error::Conflict { .. }) => {
                give_back(undo).await;
                raced(kind, &old, locked)
            }
            Err(e) => {
                give_back(undo).await;
                Err(storage_error(e))
            }
        };
    }
    let stored = match kind.stored_form(server, &new).await {
        Ok(v) => v,
        Err(e) => {
            give_back(undo).await;
            return Err(e);
        }
    };
    let payload = object::encode(&stored);
    if object::same(&old_object.value, &payload) {
        give_back(undo).await;
        return Ok(Attempt::Done(answer(Content::Stored(old_object.value.clone()))));
    }
    if options.dry_run {
        give_back(undo).await;
        return Ok(Attempt::Done(answer(Content::Parsed(new))));
    }
    match objects.store.commit(&old_object.key, Compare::At(old_object.revision), Op::Put(payload.clone())).await {
        Ok(revision) => {
            kind.hooks.after_update(server, &new, &old).await;
            Ok(Attempt::Done(answer(Content::Stored(payload.stamp(revision)))))
        }
        Err(Error::Conflict { .. }) => {
            give_back(undo).await;
            raced(kind, &old, locked)
        }
        Err(e) => {
            give_back(undo).await;
            Err(storage_error(e))
        }
    }
}

fn raced(kind: &Kind, old: &Value, locked: bool) -> Result<Attempt, Status> {
    if locked { Err(Status::modified(kind.group(), kind.plural(), meta::name(old))) } else { Ok(Attempt::Raced) }
}

/// Whether a deleting object has nothing left that holds it.
fn gone(obj: &Value, kind: &Kind) -> bool {
    let spec_finalizers = kind.plural() == "namespaces"
        && kind.group().is_empty()
        && obj["spec"]["finalizers"].as_array().is_some_and(|a| !a.is_empty());
    let grace = obj["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
    meta::finalizers(obj).is_empty() && grace == 0 && !spec_finalizers
}

/// What a client may leave out of an update and means "as it is".
fn carry_identity(new: &mut Value, old: &Value) {
    let n = meta::meta_mut(new);
    let Some(o) = meta::meta(old) else { return };
    if let Some(t) = o.get("creationTimestamp") {
        n.insert("creationTimestamp".into(), t.clone());
    }
    for key in ["name", "namespace", "uid"] {
        let absent = n.get(key).is_none_or(|v| v.is_null() || v == "");
        if absent && let Some(v) = o.get(key) {
            n.insert(key.into(), v.clone());
        }
    }
}

/// What only the server changes, whatever the client sent.
fn server_owned(new: &mut Value, old: &Value) {
    // The time of deletion cannot be changed once there. For the rest, left out means unchanged; another value is refused
    // by validation.
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        let fixed = key == "deletionTimestamp" && meta::deleting(old);
        if fixed || new["metadata"].get(key).is_none_or(Value::is_null) {
            kinds::carry_meta(new, old, &[key]);
        }
    }
    let tracked = old["metadata"].get("generation").is_some();
    if !tracked {
        meta::meta_mut(new).remove("generation");
    }
    let generation = new["metadata"].get("generation").cloned();
    let n = meta::meta_mut(new);
    n.remove("selfLink");
    if generation.is_none() || n["generation"].as_i64() == Some(0) {
        match old["metadata"].get("generation") {
            Some(g) => drop(n.insert("generation".into(), g.clone())),
            None => drop(n.remove("generation")),
        }
    }
    if let Some(v) = old["metadata"].get("resourceVersion") {
        n.insert("resourceVersion".into(), v.clone());
    }
}
