//! What a worker does with one call that is due: a try, the callback, or forgetting it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;

use super::plan::{self, LEASE, Outcome};
use super::{Key, callback, record};
use crate::api::{Asynchronous, CallState, Function, FunctionCall};
use crate::gateway::invoke::{Answer, Call, Invoke, InvokeError};

/// Seconds that a result is kept where the function does not say.
const RETENTION: u32 = 3600;
/// How often the end of a try is written before it is left to the lease.
const WRITES: u32 = 5;

/// Does what is due now. Nothing happens when it is not, or when another was quicker.
pub(super) async fn work(client: &Client, holder: &str, invoke: &dyn Invoke, key: &Key) -> Result<(), kube::Error> {
    let api: Api<FunctionCall> = Api::namespaced(client.clone(), &key.0);
    let Some(call) = api.get_opt(&key.1).await? else { return Ok(()) };
    let Some((at, tries)) = plan::due(&call, holder) else { return Ok(()) };
    if at > Timestamp::now() || call.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    if tries {
        one_try(client, &api, holder, invoke, call).await
    } else if plan::calls_back(&call) {
        call_back(client, &api, call).await
    } else {
        let exactly = Preconditions { uid: call.uid(), resource_version: call.resource_version() };
        let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::background() };
        unless_other(api.delete(&key.1, &params).await.map(drop))
    }
}

/// A conflict means that somebody else is at it, an absence that somebody removed it.
fn unless_other(done: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match done {
        Err(kube::Error::Api(s)) if matches!(s.code, 404 | 409) => Ok(()),
        other => other,
    }
}

async fn one_try(
    client: &Client,
    api: &Api<FunctionCall>,
    holder: &str,
    invoke: &dyn Invoke,
    mut call: FunctionCall,
) -> Result<(), kube::Error> {
    let name = call.name_any();
    let functions: Api<Function> = Api::namespaced(client.clone(), &call.namespace().unwrap_or_default());
    let mut status = call.status.take().unwrap_or_default();
    status.state = CallState::Running;
    status.attempts += 1;
    status.next_attempt_at = None;
    status.lease_holder = Some(holder.to_owned());
    status.lease_until = Some(plan::after(LEASE));
    call.status = Some(status);
    // With the version that was read: of two that see the same call only one begins.
    let mut call = match api.replace_status(&name, &PostParams::default(), &call).await {
        Ok(call) => call,
        Err(e) => return unless_other(Err(e)),
    };
    let tried = match record::call(&call) {
        Ok(request) => match under_lease(api, invoke, request, &mut call).await {
            Some(tried) => tried,
            // Another has it by now: what came of this try is not known to anybody.
            None => return Ok(()),
        },
        Err(e) => Err(e),
    };
    let settings = functions.get_opt(&call.spec.function).await?.and_then(|f| f.spec.asynchronous).unwrap_or_default();
    let attempts = call.status.as_ref().map_or(1, |s| s.attempts);
    let outcome = plan::outcome(&tried, attempts, &settings);
    let mut status = call.status.take().unwrap_or_default();
    status.message = match &tried {
        Ok(a) if outcome != Outcome::Succeeded => Some(format!("the function answered {}", a.status)),
        Ok(_) => None,
        Err(e) => Some(e.to_string()),
    };
    let answer = tried.unwrap_or_else(|e| record::told(&e, &name));
    (status.lease_holder, status.lease_until) = (None, None);
    store(&mut status, &answer);
    match outcome {
        Outcome::Again(pause) => {
            status.state = CallState::Pending;
            status.next_attempt_at = Some(plan::after(pause));
        }
        Outcome::Succeeded => ended(&mut status, CallState::Succeeded, &call, &settings),
        Outcome::Failed => {
            let why = status.message.clone().unwrap_or_default();
            status.dead_letter = dead_letter(client, &functions, &call, &settings, &why).await?;
            ended(&mut status, CallState::Failed, &call, &settings);
        }
    }
    call.status = Some(status);
    let mut pause = Duration::from_millis(100);
    for left in (0..WRITES).rev() {
        match api.replace_status(&name, &PostParams::default(), &call).await {
            Err(e) if left > 0 && !matches!(&e, kube::Error::Api(s) if s.code < 500 && s.code != 429) => {
                tokio::time::sleep(pause).await;
                pause *= 3;
            }
            done => return unless_other(done.map(drop)),
        }
    }
    Ok(())
}

/// Calls, and renews the lease meanwhile. Nothing when the lease was lost.
async fn under_lease(
    api: &Api<FunctionCall>,
    invoke: &dyn Invoke,
    request: Call,
    call: &mut FunctionCall,
) -> Option<Result<Answer, InvokeError>> {
    let name = call.name_any();
    let mut trying = invoke.invoke(request);
    loop {
        tokio::select! {
            tried = &mut trying => return Some(tried),
            () = tokio::time::sleep(LEASE / 3) => {}
        }
        let until = json!({"metadata": {"resourceVersion": call.resource_version()},
            "status": {"leaseUntil": plan::after(LEASE)}});
        let (params, until) = (PatchParams::default(), Patch::Merge(until));
        let renew = api.patch_status(&name, &params, &until);
        tokio::select! {
            tried = &mut trying => {
                // Whether the renewal came through is not known: the newest version is.
                *call = api.get(&name).await.ok()?;
                return Some(tried);
            }
            renewed = renew => match renewed {
                Ok(newer) => *call = newer,
                Err(kube::Error::Api(s)) if matches!(s.code, 404 | 409) => return None,
                // It holds for a while yet.
                Err(e) => tracing::debug!(call = name, error = &e as &dyn std::error::Error, "a lease is not renewed"),
            },
        }
    }
}

fn store(status: &mut crate::api::CallStatus, answer: &Answer) {
    let body = &answer.body[..answer.body.len().min(record::BODY_MAX)];
    status.code = Some(answer.status.as_u16());
    status.headers = record::stored(&answer.headers);
    status.truncated = body.len() < answer.body.len();
    status.body = (!body.is_empty()).then(|| STANDARD.encode(body));
}

fn ended(status: &mut crate::api::CallStatus, state: CallState, call: &FunctionCall, settings: &Asynchronous) {
    let now = plan::after(Duration::ZERO);
    let retention = Duration::from_secs(settings.retention_seconds.unwrap_or(RETENTION).into());
    status.state = state;
    status.finished_at = Some(now.clone());
    status.expires_at = Some(plan::after(retention));
    status.callback = call.spec.callback.clone().or_else(|| settings.callback.clone());
    status.callback_state = status.callback.is_some().then(|| "Pending".to_owned());
    status.conditions = vec![complete(state, now, status.message.clone().unwrap_or_default())];
}

fn complete(state: CallState, now: Time, message: String) -> Condition {
    Condition {
        type_: "Complete".into(),
        status: "True".into(),
        reason: format!("{state:?}"),
        message,
        last_transition_time: now,
        observed_generation: None,
    }
}

/// Tells the function's dead letter of a failure and names the call that does. Before the failure is written, so that it
/// is told at least once; the name is the same each time, so that it is told once.
async fn dead_letter(
    client: &Client,
    functions: &Api<Function>,
    call: &FunctionCall,
    settings: &Asynchronous,
    why: &str,
) -> Result<Option<String>, kube::Error> {
    let Some(to) = settings.dead_letter.as_deref().filter(|_| call.spec.dead_letter_of.is_none()) else {
        return Ok(None);
    };
    let Some(to) = functions.get_opt(to).await? else {
        tracing::warn!(call = call.name_any(), function = to, "the function for dead letters does not exist");
        return Ok(None);
    };
    let letter = record::dead_letter(call, &to, why);
    let api: Api<FunctionCall> = Api::namespaced(client.clone(), &call.namespace().unwrap_or_default());
    match api.create(&PostParams::default(), &letter).await {
        Err(kube::Error::Api(s)) if s.code == 409 => {}
        made => drop(made?),
    }
    Ok(Some(letter.name_any()))
}

async fn call_back(client: &Client, api: &Api<FunctionCall>, mut call: FunctionCall) -> Result<(), kube::Error> {
    let told = callback::tell(client, &call).await;
    let mut status = call.status.take().unwrap_or_default();
    status.callback_attempts += 1;
    status.next_attempt_at = None;
    status.callback_state = match told {
        Ok(()) => Some("Delivered".into()),
        Err(e) if e.may_pass() && status.callback_attempts < plan::CALLBACK_TRIES => {
            status.next_attempt_at = Some(plan::after(plan::backoff(Duration::from_secs(1), status.callback_attempts)));
            Some("Pending".into())
        }
        Err(e) => Some(format!("Failed: {e}")),
    };
    let name = call.name_any();
    call.status = Some(status);
    unless_other(api.replace_status(&name, &PostParams::default(), &call).await.map(drop))
}
