//! Admission webhooks: who is asked about a request, and what becomes of the answers.
//!
//! Mutating webhooks are asked one after the other, by the names of their configurations and their place in them;
//! validating ones all at once. A webhook that gives no usable answer in time refuses the request or is passed over, as its
//! failurePolicy says. What a webhook is sent and what it may answer is in [`review`].

mod review;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use skiff_core::custom::cel::expression::{Env, Expression, Want};
use skiff_core::invalid::quote_str;
use skiff_core::meta;
use skiff_core::patch::json::JsonPatch;
use skiff_core::status::Status;
use tokio::time::Instant;

use self::review::Answer;
use super::action::Action;
use super::matching::Criteria;
use super::policy::{chosen, facts};
use super::{Again, as_seen, back, forbidden};
use crate::outward::Endpoint;
use crate::registry::Kind;

/// Seconds that a webhook has when its configuration does not say.
const TIMEOUT: u64 = 10;

/// One webhook of a configuration.
#[derive(Debug)]
pub(super) struct Webhook {
    name: String,
    /// Name of the configuration, and the place in it: what tells webhooks apart.
    configuration: String,
    place: usize,
    criteria: Criteria,
    conditions: Vec<Expression>,
    /// Whether a call that fails refuses the request.
    fail: bool,
    timeout: Duration,
    /// Whether it may be asked about a dry run.
    harmless: bool,
    reinvoke: bool,
    /// Version of AdmissionReview it is sent.
    version: &'static str,
    endpoint: Endpoint,
}

/// What tells webhooks apart from one another.
pub(super) type Id = (String, usize);

impl Webhook {
    /// Compiles the webhooks of a stored configuration.
    pub(super) fn compile(configuration: &Value) -> Vec<Arc<Self>> {
        let name = meta::name(configuration);
        let env = Env::webhook();
        let list = configuration["webhooks"].as_array().into_iter().flatten();
        let one = |(place, w): (usize, &Value)| {
            let conditions = w["matchConditions"].as_array().into_iter().flatten();
            let text = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
            let beta = w["admissionReviewVersions"].as_array().and_then(|all| {
                all.iter().filter_map(Value::as_str).find(|v| matches!(*v, "v1" | "v1beta1")).map(|v| v == "v1beta1")
            });
            Arc::new(Self {
                name: text(w, "name"),
                configuration: name.to_owned(),
                place,
                criteria: Criteria::webhook(w),
                conditions: conditions
                    .filter_map(|c| env.compile(c["expression"].as_str().unwrap_or_default(), Want::Bool).ok())
                    .collect(),
                fail: w["failurePolicy"] != "Ignore",
                timeout: Duration::from_secs(w["timeoutSeconds"].as_u64().unwrap_or(TIMEOUT)),
                harmless: matches!(w["sideEffects"].as_str(), Some("None" | "NoneOnDryRun")),
                reinvoke: w["reinvocationPolicy"] == "IfNeeded",
                version: if beta == Some(true) { "v1beta1" } else { "v1" },
                endpoint: Endpoint::parse(&w["clientConfig"]),
            })
        };
        list.enumerate().map(one).collect()
    }

    fn id(&self) -> Id {
        (self.configuration.clone(), self.place)
    }

    /// The kind as which the webhook is asked; `None` when it is not.
    fn meant(&self, a: &Action<'_>, object: Option<&Value>, old: Option<&Value>) -> Result<Option<Arc<Kind>>, Status> {
        self.criteria.matches(a, object, old)
    }

    /// Whether the conditions choose the request.
    fn chosen(&self, a: &Action<'_>, kind: &Kind, object: Option<&Value>, old: Option<&Value>) -> Result<bool, Status> {
        if self.conditions.is_empty() {
            return Ok(true);
        }
        let facts = facts(a, kind, object, old)?;
        match chosen(&self.conditions, &facts.run(None, &[])) {
            Ok(is) => Ok(is),
            Err(why) if self.fail => Err(forbidden(a, object.or(old), &why)),
            Err(_) => Ok(false),
        }
    }

    /// Asks. `None`: it was passed over.
    async fn ask(
        &self,
        a: &Action<'_>,
        kind: &Kind,
        object: Option<&Value>,
        old: Option<&Value>,
        mutating: bool,
    ) -> Result<Option<Answer>, Status> {
        if a.dry_run && !self.harmless {
            let name = quote_str(&self.name);
            return Err(Status::bad_request(format!("admission webhook {name} does not support dry run")));
        }
        let uid = uuid::Uuid::new_v4().to_string();
        let body = review::request(self.version, &uid, a, kind, object, old);
        let deadline = (Instant::now() + self.timeout).min(a.deadline);
        let called = a.server.outward.post(a.server, &self.endpoint, body, self.timeout, deadline).await;
        let answer = match called {
            Ok(v) => review::answer(&v, self.version, &uid, mutating)
                .map_err(|why| format!("received invalid webhook response: {why}")),
            Err(e) => Err(format!("failed to call webhook: {e}")),
        };
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(why) if self.fail => {
                Err(Status::internal(format!("failed calling webhook {}: {why}", quote_str(&self.name))))
            }
            Err(why) => {
                tracing::warn!(webhook = self.name, why, "a webhook failed and is passed over");
                Ok(None)
            }
        }
    }
}

/// Asks the mutating webhooks, all or `only` those named; `again` learns which want to be asked once more.
///
/// # Errors
/// A refusal, or a failure of a webhook that must not fail.
pub(super) async fn mutate(
    a: &Action<'_>,
    hooks: &[Arc<Webhook>],
    object: &mut Option<Value>,
    old: Option<&Value>,
    only: Option<&[Id]>,
    again: &mut Again<Id>,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    for hook in hooks {
        if only.is_some_and(|only| !only.contains(&hook.id())) {
            continue;
        }
        let Some(kind) = hook.meant(a, object.as_ref(), old)? else { continue };
        let (seen, before) = as_seen(a, &kind, object.as_ref(), old).await?;
        if !hook.chosen(a, &kind, seen.as_deref(), before.as_deref())? {
            continue;
        }
        let Some(answer) = hook.ask(a, &kind, seen.as_deref(), before.as_deref(), true).await? else { continue };
        answer.annotate(&hook.name);
        warnings.extend(answer.warnings);
        if let Some(refusal) = answer.refusal {
            return Err(review::refused(&hook.name, refusal));
        }
        let (Some(patch), Some(seen)) = (answer.patch, seen) else {
            again.asked(false, hook.reinvoke, hook.id());
            continue;
        };
        let patched = JsonPatch::parse(&patch).and_then(|p| p.apply(&seen)).map_err(Status::internal)?;
        let new = match object.as_ref() {
            Some(object) => back(a, &kind, object, patched).await?,
            None => continue,
        };
        again.asked(object.as_ref() != Some(&new), hook.reinvoke, hook.id());
        *object = Some(new);
    }
    Ok(())
}

/// Asks the validating webhooks.
///
/// # Errors
/// The first refusal, or failure of a webhook that must not fail.
pub(super) async fn validate(
    a: &Action<'_>,
    hooks: &[Arc<Webhook>],
    object: Option<&Value>,
    old: Option<&Value>,
    warnings: &mut Vec<String>,
) -> Result<(), Status> {
    let mut chosen = vec![];
    for hook in hooks {
        let Some(kind) = hook.meant(a, object, old)? else { continue };
        let (seen, before) = as_seen(a, &kind, object, old).await?;
        if hook.chosen(a, &kind, seen.as_deref(), before.as_deref())? {
            chosen.push((hook, kind, seen, before));
        }
    }
    let calls = chosen.iter().map(|(hook, kind, seen, before)| async move {
        let answer = hook.ask(a, kind, seen.as_deref(), before.as_deref(), false).await?;
        Ok::<_, Status>((hook, answer))
    });
    let mut refused = Ok(());
    for outcome in futures::future::join_all(calls).await {
        let found = match outcome {
            Ok((_, None)) => Ok(()),
            Ok((hook, Some(answer))) => {
                answer.annotate(&hook.name);
                warnings.extend(answer.warnings);
                answer.refusal.map_or(Ok(()), |r| Err(review::refused(&hook.name, r)))
            }
            Err(s) => Err(s),
        };
        refused = refused.and(found);
    }
    refused
}
