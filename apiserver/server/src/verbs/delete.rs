//! `delete` and `deletecollection`.

use std::sync::Arc;

use serde_json::{Value, json};
use skiff_core::meta;
use skiff_core::status::Status;
use skiff_core::time;
use skiff_storage::cache::Object;
use skiff_storage::{Compare, Error, Op};

use super::options::{DeleteOptions, Propagation, delete_options};
use super::update::RACE_TRIES;
use super::{Answer, Call, Content};
use crate::admission::{self, Operation};
use crate::registry::{Kind, object, storage_error};
use crate::server::Inner;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What became of an object.
enum Outcome {
    /// Gone; the last state.
    Gone(Value),
    /// Still there, terminating.
    Pending(Value),
}

/// Deletes the object named in the path.
///
/// # Errors
/// As upstream's server answers.
pub async fn delete(server: &Arc<Inner>, kind: &Arc<Kind>, call: &mut Call) -> Result<Answer, Status> {
    let options = delete_options(call)?;
    warn(kind, call, &options);
    let (ns, name) = (call.target.namespace.clone(), call.target.name.clone());
    let outcome = delete_one(server, kind, call, &ns, &name, &options).await?;
    let answer = |code, v| Answer::Object { code, kind: Arc::clone(kind), object: Content::Parsed(v) };
    Ok(match outcome {
        Outcome::Pending(v) => {
            let accepted = options.orphan_dependents == Some(false) && !options.dry_run;
            answer(if accepted { 202 } else { 200 }, v)
        }
        Outcome::Gone(v) if kind.strategy.traits().returns_deleted => answer(200, v),
        Outcome::Gone(v) => Answer::status(200, Status::deleted(&name, kind.group(), kind.plural(), meta::uid(&v))),
    })
}

/// Deletes every object the request selects.
///
/// # Errors
/// The first refusal ends it; what was deleted until then stays deleted.
pub async fn delete_collection(server: &Arc<Inner>, kind: &Arc<Kind>, call: &mut Call) -> Result<Vec<Value>, Status> {
    let options = delete_options(call)?;
    warn(kind, call, &options);
    let (listing, selection) = super::list::list(kind, call).await?;
    let listing = super::list::present(server, kind, listing, &selection).await?;
    let mut out = Vec::with_capacity(listing.objects.len());
    for o in listing.objects {
        let (ns, name) = (o.namespace().to_owned(), o.name().to_owned());
        if kind.hooks.refuse_delete(&name).is_some() {
            continue;
        }
        match delete_one(server, kind, call, &ns, &name, &options).await {
            Ok(_) => out.push(kind.load_from(server, &o).await?),
            // Somebody else was faster: the result is what was asked for.
            Err(s) if s.code == 404 => {}
            Err(s) => return Err(s),
        }
    }
    Ok(out)
}

/// Tells a client that does not say what becomes of the dependents.
fn warn(kind: &Kind, call: &mut Call, options: &DeleteOptions) {
    if options.propagation.is_none() && kind.strategy.traits().orphan_by_default {
        call.warnings.extend(kind.strategy.deletion_warning().map(str::to_owned));
    }
}

async fn delete_one(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    call: &mut Call,
    ns: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<Outcome, Status> {
    let objects = Arc::clone(kind.stored()?);
    // Its last state, once everybody could see that it ends: whoever removes it then does so for this request too.
    let mut ended: Option<Value> = None;
    for _ in 0..RACE_TRIES {
        let found = objects.get(ns, name).await?;
        let same = |o: &Object| ended.as_ref().is_none_or(|e| meta::uid(e) == o.meta.uid());
        let Some(found) = found.filter(|o| same(o)) else {
            return ended.map(Outcome::Gone).ok_or_else(|| kind.not_found(name));
        };
        if let Some(refusal) = kind.hooks.refuse_delete(name) {
            return Err(refusal);
        }
        let old = kind.load_from(server, &found).await?;
        preconditions(kind, &old, name, &found, options)?;
        admission::validate(server, kind, call, Operation::Delete, &old, Some(&old), options.dry_run).await?;
        let step = plan(kind, &old, options);
        let (op, outcome) = match step {
            Step::Nothing => return Ok(Outcome::Pending(old)),
            Step::Mark(new) => {
                let stored = kind.stored_form(server, &new).await?;
                (Op::Put(object::encode(&stored)), Outcome::Pending(*new))
            }
            Step::Remove => (Op::Delete, Outcome::Gone(removed(kind, &old))),
        };
        if options.dry_run {
            return Ok(outcome);
        }
        let mut at = found.revision;
        if let Outcome::Gone(last) = &outcome
            && kind.strategy.traits().graceful
            && !meta::deleting(&old)
        {
            // Who watches sees it end before it is gone, however short its period is.
            let stored = kind.stored_form(server, last).await?;
            match objects.store.commit(&found.key, Compare::At(at), Op::Put(object::encode(&stored))).await {
                Ok(revision) => (at, ended) = (revision, Some(last.clone())),
                Err(Error::Conflict { .. }) => continue,
                Err(e) => return Err(storage_error(e)),
            }
        }
        match objects.store.commit(&found.key, Compare::At(at), op).await {
            Ok(revision) => {
                let stamp = |mut v: Value| {
                    meta::meta_mut(&mut v).insert("resourceVersion".into(), revision.to_string().into());
                    v
                };
                return Ok(match outcome {
                    Outcome::Gone(v) => {
                        kind.hooks.after_delete(server, &v).await;
                        Outcome::Gone(v)
                    }
                    Outcome::Pending(v) => Outcome::Pending(stamp(v)),
                });
            }
            Err(Error::Conflict { .. }) => {}
            Err(e) => return Err(storage_error(e)),
        }
    }
    Err(Status::modified(kind.group(), kind.plural(), name))
}

fn preconditions(kind: &Kind, old: &Value, name: &str, found: &Object, options: &DeleteOptions) -> Result<(), Status> {
    let group = kind.strategy.error_group().unwrap_or(kind.group());
    // Kinds that upstream looks at itself before it begins their deletion.
    let own_words = match (kind.group(), kind.plural()) {
        ("", "namespaces") => Some("Precondition failed"),
        ("apiextensions.k8s.io", "customresourcedefinitions") => Some("precondition failed"),
        _ => None,
    };
    let conflict = |what: &str, asked: &str, is: &str, then: &str| match own_words {
        Some(words) => {
            let why = format!("{words}: {what} in precondition: {asked}, {what} in object meta: {is}");
            Status::conflict(group, kind.plural(), name, why)
        }
        None => {
            let why =
                format!("the {what} in the precondition ({asked}) does not match the {what} in record ({is}). {then}");
            Status::conflict(group, &kind.resource.kind, name, why)
        }
    };
    if let Some(uid) = &options.uid
        && uid != meta::uid(old)
    {
        let then = "The object might have been deleted and then recreated";
        return Err(conflict("UID", uid, meta::uid(old), then));
    }
    let revision = found.revision.to_string();
    if let Some(v) = &options.version
        && *v != revision
    {
        return Err(conflict("ResourceVersion", v, &revision, "The object might have been modified"));
    }
    Ok(())
}

/// The last state of an object that goes at once; of a graceful kind it says that its period was zero.
fn removed(kind: &Kind, old: &Value) -> Value {
    let mut v = old.clone();
    if kind.strategy.traits().graceful && !meta::deleting(old) {
        let generation = v["metadata"]["generation"].as_i64();
        let m = meta::meta_mut(&mut v);
        m.insert("deletionTimestamp".into(), super::write::now().into());
        m.insert("deletionGracePeriodSeconds".into(), 0.into());
        if let Some(g) = generation {
            m.insert("generation".into(), (g + 1).into());
        }
    }
    v
}

enum Step {
    /// Already on its way, nothing to change.
    Nothing,
    /// Stays, marked as terminating (or with a shorter grace period).
    Mark(Box<Value>),
    /// Goes now.
    Remove,
}

/// Decides what a deletion does to the object.
fn plan(kind: &Kind, old: &Value, options: &DeleteOptions) -> Step {
    let traits = kind.strategy.traits();
    let mut new = old.clone();
    let before = meta::finalizers(old).into_iter().map(str::to_owned).collect::<Vec<_>>();
    let after = finalizers_after(&before, traits.orphan_by_default, options);
    let mut after = after;
    if !meta::deleting(old)
        && let Some(f) = kind.strategy.deletion_finalizer().filter(|f| !after.iter().any(|a| a == f))
    {
        after.push(f.to_owned());
    }
    let grace = if traits.graceful { kind.strategy.grace(old, options.grace) } else { 0 };
    if meta::deleting(old) {
        let left = old["metadata"]["deletionGracePeriodSeconds"].as_i64().unwrap_or(0);
        // A deletion under way can only be hurried.
        if traits.graceful && (left == 0 || grace >= left) && !(grace == 0 && left > 0) {
            if left == 0 && after.is_empty() {
                return Step::Remove;
            }
            if after == before {
                return Step::Nothing;
            }
        }
        if traits.graceful && grace < left && grace > 0 {
            shorten(&mut new, left, grace);
            set_finalizers(&mut new, &after);
            return Step::Mark(Box::new(new));
        }
        if after.is_empty() {
            return if kind_holds(kind, old) { Step::Nothing } else { Step::Remove };
        }
        if traits.graceful && grace < left {
            shorten(&mut new, left, grace);
            set_finalizers(&mut new, &after);
            return Step::Mark(Box::new(new));
        }
        // Asked again, such a deletion gets its period.
        let late =
            kind.strategy.deletion_finalizer().is_some() && old["metadata"].get("deletionGracePeriodSeconds").is_none();
        if late {
            meta::meta_mut(&mut new).insert("deletionGracePeriodSeconds".into(), 0.into());
        } else if after == before {
            return Step::Nothing;
        }
        set_finalizers(&mut new, &after);
        return Step::Mark(Box::new(new));
    }
    if grace == 0 && after.is_empty() && !kind_holds(kind, old) {
        return Step::Remove;
    }
    let now = jiff::Timestamp::now();
    let at = now.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
    set_finalizers(&mut new, &after);
    let generation = new["metadata"]["generation"].as_i64();
    let m = meta::meta_mut(&mut new);
    m.insert("deletionTimestamp".into(), time::format(at).into());
    // Namespaces have a life cycle of their own and no period; neither have kinds that begin their own deletion.
    let own = kind.strategy.deletion_finalizer().is_some();
    if !kind_holds(kind, old) && !own {
        m.insert("deletionGracePeriodSeconds".into(), grace.into());
    }
    if let Some(g) = generation.filter(|g| *g > 0 && !own) {
        m.insert("generation".into(), (g + 1).into());
    }
    kind.strategy.on_delete(&mut new);
    Step::Mark(Box::new(new))
}

/// Whether something besides metadata.finalizers holds the object (namespaces).
fn kind_holds(kind: &Kind, obj: &Value) -> bool {
    kind.group().is_empty()
        && kind.plural() == "namespaces"
        && obj["spec"]["finalizers"].as_array().is_some_and(|a| !a.is_empty())
}

fn shorten(obj: &mut Value, left: i64, grace: i64) {
    let at = obj["metadata"]["deletionTimestamp"].as_str().and_then(|t| t.parse::<jiff::Timestamp>().ok());
    if let Some(at) = at.and_then(|t| t.checked_sub(jiff::SignedDuration::from_secs(left - grace)).ok()) {
        meta::meta_mut(obj).insert("deletionTimestamp".into(), time::format(at).into());
    }
    meta::meta_mut(obj).insert("deletionGracePeriodSeconds".into(), grace.into());
}

fn set_finalizers(obj: &mut Value, list: &[String]) {
    let m = meta::meta_mut(obj);
    if list.is_empty() { drop(m.remove("finalizers")) } else { drop(m.insert("finalizers".into(), json!(list))) }
}

/// The finalizers that hold the object, given how dependents are to be treated.
fn finalizers_after(before: &[String], orphan_by_default: bool, options: &DeleteOptions) -> Vec<String> {
    let has = |f: &str| before.iter().any(|b| b == f);
    let wanted = match options.propagation {
        Some(p) => p,
        None if has(ORPHAN) => Propagation::Orphan,
        None if has(FOREGROUND) => Propagation::Foreground,
        None if orphan_by_default => Propagation::Orphan,
        None => Propagation::Background,
    };
    let mut out: Vec<String> = before.iter().filter(|f| *f != ORPHAN && *f != FOREGROUND).cloned().collect();
    match wanted {
        Propagation::Orphan => out.push(ORPHAN.into()),
        Propagation::Foreground => out.push(FOREGROUND.into()),
        Propagation::Background => {}
    }
    // What was there keeps its place.
    if before.len() == out.len() && before.iter().all(|b| out.contains(b)) {
        out = before.to_vec();
    }
    out
}
