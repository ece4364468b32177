//! Admission that is configured by objects: policies in CEL and webhooks, compiled, and the order they work in.
//!
//! What is configured is compiled when it is first needed after a change, and objects that did not change are not compiled
//! again. Where nothing is configured a write asks six collections when they last changed, and no more.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::Value;
use skiff_core::status::Status;
use skiff_storage::Revision;

use super::action::Action;
use super::policy::{self, Binding, Bound, Policy};
use super::webhook::{self, Webhook};
use super::{Again, Operation, built_in};
use crate::registry::{Collection, Kind};
use crate::server::Inner;
use crate::subresources::scale;
use crate::verbs::Call;

const GROUP: &str = "admissionregistration.k8s.io";
/// Where what is configured is stored.
const PLURALS: [&str; 6] = [
    "mutatingadmissionpolicies",
    "mutatingadmissionpolicybindings",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
    "mutatingwebhookconfigurations",
    "validatingwebhookconfigurations",
];

/// One compiled object.
#[derive(Clone, Debug)]
enum Compiled {
    Policy(Arc<Policy>),
    Binding(Arc<Binding>),
    Webhooks(Vec<Arc<Webhook>>),
}

/// Everything that is configured.
#[derive(Debug, Default)]
struct Set {
    stamp: u64,
    mutating: Vec<Bound>,
    validating: Vec<Bound>,
    mutators: Vec<Arc<Webhook>>,
    validators: Vec<Arc<Webhook>>,
    /// By collection and name, with the revision it was compiled from.
    known: HashMap<(usize, String), (Revision, Compiled)>,
}

/// What is configured, kept up to date.
#[derive(Default)]
pub struct Dynamic {
    collections: OnceLock<Vec<Arc<Collection>>>,
    present: ArcSwap<Set>,
    rebuild: Mutex<()>,
}

impl Dynamic {
    /// What is configured now.
    fn now(&self, server: &Inner) -> Option<Arc<Set>> {
        let collections = match self.collections.get() {
            Some(c) => c,
            None => {
                let found: Result<Vec<_>, _> = PLURALS.iter().map(|p| server.collection(GROUP, p)).collect();
                let found = found.ok()?;
                self.collections.get_or_init(|| found)
            }
        };
        // The revisions only grow, so their sum changes exactly when one of them does.
        let stamp = || collections.iter().map(|c| c.cache.last_change()).sum::<u64>();
        let wanted = stamp();
        if wanted == 0 {
            return None;
        }
        let present = self.present.load();
        if present.stamp == wanted {
            let idle = present.known.is_empty();
            return (!idle).then(|| Arc::clone(&present));
        }
        let _one = self.rebuild.lock();
        let wanted = stamp();
        let before = self.present.load_full();
        if before.stamp != wanted {
            self.present.store(Arc::new(Set::build(collections, wanted, &before)));
        }
        Some(self.present.load_full())
    }
}

impl Set {
    fn build(collections: &[Arc<Collection>], stamp: u64, before: &Self) -> Self {
        let mut out = Self { stamp, ..Self::default() };
        let mut policies: [Vec<Arc<Policy>>; 2] = Default::default();
        let mut bindings: [Vec<Arc<Binding>>; 2] = Default::default();
        for (place, collection) in collections.iter().enumerate() {
            // In the order of names.
            for object in collection.cache.list(&collection.prefix).objects {
                let id = (place, object.name().to_owned());
                let known = before.known.get(&id).filter(|(r, _)| *r == object.revision).map(|(_, c)| c.clone());
                let compiled = match known {
                    Some(c) => c,
                    None => {
                        let Ok(v) = serde_json::from_slice::<Value>(&object.value) else { continue };
                        match place {
                            0 | 2 => Compiled::Policy(Arc::new(Policy::compile(&v))),
                            1 | 3 => Compiled::Binding(Arc::new(Binding::compile(&v))),
                            _ => Compiled::Webhooks(Webhook::compile(&v)),
                        }
                    }
                };
                out.known.insert(id, (object.revision, compiled.clone()));
                match compiled {
                    Compiled::Policy(p) => policies[place / 2].push(p),
                    Compiled::Binding(b) => bindings[place / 2].push(b),
                    Compiled::Webhooks(w) if place == 4 => out.mutators.extend(w),
                    Compiled::Webhooks(w) => out.validators.extend(w),
                }
            }
        }
        let [mutating, validating] = policies;
        let bound = |policies: Vec<Arc<Policy>>, bindings: &[Arc<Binding>]| -> Vec<Bound> {
            let of = |p: &Policy| bindings.iter().filter(|b| b.policy == p.name).cloned().collect::<Vec<_>>();
            let all = policies.into_iter().map(|policy| Bound { bindings: of(&policy), policy });
            all.filter(|b| !b.bindings.is_empty()).collect()
        };
        out.mutating = bound(mutating, &bindings[0]);
        out.validating = bound(validating, &bindings[1]);
        out
    }
}

/// What is configured, unless the request is about that itself, or about nothing anybody may stand in the way of.
fn asked(server: &Inner, kind: &Kind, call: &Call, operation: Operation) -> Option<Arc<Set>> {
    let set = server.dynamic.now(server)?;
    // An eviction was reviewed as one; the deletion it comes to is the server's own.
    let evicted = operation == Operation::Delete && call.target.subresource == "eviction";
    let exempt = kind.group() == GROUP && PLURALS.contains(&kind.plural());
    (!evicted && !exempt).then_some(set)
}

/// An object as this endpoint's subresource shows it, and the way back.
fn shown(kind: &Kind, call: &Call, object: &Value) -> Result<Value, Status> {
    if call.target.subresource == "scale" { scale::view_of(kind, object, false) } else { Ok(object.clone()) }
}

/// Mutating policies, then mutating webhooks; what wants to be asked again once the object changed is asked once more,
/// after the built-in plugins. Answers whether there was anybody to be asked: then the object may be another.
///
/// # Errors
/// A refusal or a failure.
pub(super) async fn mutate(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    call: &mut Call,
    operation: Operation,
    object: &mut Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<bool, Status> {
    let Some(set) = asked(server, kind, call, operation) else { return Ok(false) };
    if set.mutating.is_empty() && set.mutators.is_empty() {
        return Ok(false);
    }
    let before = shown(kind, call, object)?;
    let old_shown = old.map(|o| shown(kind, call, o)).transpose()?;
    let old_shown = old_shown.as_ref();
    let mut warnings = vec![];
    let mut now = before.clone();
    let outcome: Result<(), Status> = async {
        let (mut policies, mut webhooks) = (Again::default(), Again::default());
        let mut none = Again::default();
        let a = Action::new(server, kind, call, operation, &now, dry_run);
        policy::mutating::mutate(&a, &set.mutating, &mut now, old_shown, None, &mut policies).await?;
        let by_policies = now.clone();
        let mut held = Some(std::mem::take(&mut now));
        webhook::mutate(&a, &set.mutators, &mut held, old_shown, None, &mut webhooks, &mut warnings).await?;
        now = held.unwrap_or_default();
        if now == before {
            return Ok(());
        }
        let by_webhooks = now.clone();
        if call.target.subresource.is_empty() && operation != Operation::Connect {
            warnings.extend(built_in(server, kind, call, operation, &mut now, old).await?);
        }
        if now != by_policies {
            policies.changed();
        }
        if now != by_webhooks {
            webhooks.changed();
        }
        let before = now.clone();
        policy::mutating::mutate(&a, &set.mutating, &mut now, old_shown, Some(&policies.wanted), &mut none).await?;
        if now != before {
            webhooks.changed();
        }
        let mut held = Some(std::mem::take(&mut now));
        let (wanted, mut none) = (&webhooks.wanted, Again::default());
        webhook::mutate(&a, &set.mutators, &mut held, old_shown, Some(wanted), &mut none, &mut warnings).await?;
        now = held.unwrap_or_default();
        Ok(())
    }
    .await;
    call.warnings.extend(warnings);
    outcome?;
    if call.target.subresource == "scale" {
        if now["spec"]["replicas"] != before["spec"]["replicas"] {
            scale::set_replicas(kind, object, now["spec"]["replicas"].as_i64().unwrap_or(0));
        }
    } else {
        *object = now;
    }
    Ok(true)
}

/// Validating policies, then validating webhooks. A deletion has no new object, and mutating webhooks may still refuse it.
///
/// # Errors
/// A refusal or a failure.
pub(super) async fn validate(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    call: &mut Call,
    operation: Operation,
    object: &Value,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<(), Status> {
    let Some(set) = asked(server, kind, call, operation) else { return Ok(()) };
    let object = shown(kind, call, object)?;
    let old = old.map(|o| shown(kind, call, o)).transpose()?;
    let mut warnings = vec![];
    let outcome = async {
        let a = Action::new(server, kind, call, operation, &object, dry_run);
        let new = (operation != Operation::Delete).then_some(&object);
        if operation == Operation::Delete {
            let mut none = Again::default();
            webhook::mutate(&a, &set.mutators, &mut None, old.as_ref(), None, &mut none, &mut warnings).await?;
        }
        policy::validate(&a, &set.validating, new, old.as_ref(), &mut warnings).await?;
        webhook::validate(&a, &set.validators, new, old.as_ref(), &mut warnings).await
    }
    .await;
    call.warnings.extend(warnings);
    outcome
}
