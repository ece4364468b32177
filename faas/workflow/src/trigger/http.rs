//! Starts by plain HTTP: `POST /workflow/NAMESPACE/NAME`, the body is the input.
//!
//! The caller shows a client certificate or a token of the cluster, with the right to `create` `workflowruns`, or the token
//! of one of the workflow's own `http` triggers. The answer is 202 with the run's name; with `Prefer: wait` (or `wait=SECONDS`) it is
//! the output once the run is over. `Idempotency-Key` names the run: the same request again is the same run.

use std::time::Duration;

use aws_lc_rs::constant_time;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use serde_json::{Value, json};
use skiff_faas::gateway::auth::{Right, User};
use skiff_faas::gateway::call::whole;
use skiff_faas::gateway::invoke::InvokeError;
use skiff_faas::gateway::link::Body;

use crate::api::{Kind, Phase, Workflow, WorkflowRun};
use crate::endpoint::{Endpoint, arn};
use crate::pack::digest;
use crate::runs::{RunsError, Start, run_name};

/// Where requests for workflows begin.
pub const PATH: &str = "/workflow/";
/// Seconds that a request waits where it does not say, and at most.
const WAIT: u64 = 60;
const WAIT_MAX: u64 = 300;
/// Characters that a trigger's token must have.
const TOKEN_MIN: usize = 16;
/// What callers must be allowed otherwise.
const START: Right = Right { verb: "create", resource: "workflowruns", subresource: None };

/// Why a request starts nothing.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{0}")]
    Bad(String),
    #[error("there is no workflow {0}")]
    Absent(String),
    #[error("use POST")]
    Method,
    #[error("{0}")]
    Caller(#[from] InvokeError),
    #[error("{0}")]
    Forbidden(String),
    #[error("{0}")]
    Runs(#[from] RunsError),
    #[error("the API does not answer: {0}")]
    Api(#[from] kube::Error),
}

impl Refused {
    fn status(&self) -> StatusCode {
        match self {
            Self::Bad(_) | Self::Runs(RunsError::InvalidData(_) | RunsError::InvalidName(_)) => StatusCode::BAD_REQUEST,
            Self::Absent(_) | Self::Runs(RunsError::NoWorkflow(_)) => StatusCode::NOT_FOUND,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Caller(InvokeError::Unauthorized(_)) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) | Self::Runs(RunsError::Forbidden(_)) => StatusCode::FORBIDDEN,
            Self::Runs(RunsError::AlreadyExists(_)) => StatusCode::CONFLICT,
            Self::Runs(RunsError::InvalidDefinition(_)) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Runs(RunsError::TooMany(_)) => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// Answers a request.
pub(crate) async fn answer(
    endpoint: &Endpoint,
    request: Request<Incoming>,
    certificate: Option<&User>,
) -> Response<Body> {
    let (status, body) = match start(endpoint, request, certificate).await {
        Ok(answer) => answer,
        Err(refused) => {
            let status = refused.status();
            let code = status.canonical_reason().unwrap_or_default();
            (status, json!({"error": {"code": code, "message": refused.to_string()}}))
        }
    };
    let mut response = Response::new(whole(format!("{body}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn start(
    endpoint: &Endpoint,
    request: Request<Incoming>,
    certificate: Option<&User>,
) -> Result<(StatusCode, Value), Refused> {
    let path = request.uri().path().to_owned();
    let named = path.strip_prefix(PATH).and_then(|rest| rest.split_once('/'));
    let (namespace, name) =
        named.filter(|(_, n)| !n.is_empty() && !n.contains('/')).ok_or_else(|| Refused::Absent(path.clone()))?;
    if *request.method() != Method::POST {
        return Err(Refused::Method);
    }
    let headers = request.headers().clone();
    let workflow = permit(endpoint, &headers, certificate, namespace, name).await?;
    let body = crate::endpoint::gather(request.into_body()).await.map_err(|f| Refused::Bad(f.message))?;
    let input = match std::str::from_utf8(&body) {
        Ok(text) if text.trim().is_empty() => "{}".to_owned(),
        Ok(text) => text.to_owned(),
        Err(_) => return Err(Refused::Bad("the body is no text".into())),
    };
    if let Err(e) = serde_json::from_str::<serde::de::IgnoredAny>(&input) {
        return Err(Refused::Bad(format!("the body is no JSON: {e}")));
    }
    let key = headers.get("idempotency-key").map(|k| String::from_utf8_lossy(k.as_bytes()).into_owned());
    let execution = key.map(|k| if arn::is_name(&k) { k } else { digest(k.as_bytes()) });
    let start = Start {
        namespace: namespace.to_owned(),
        workflow: name.to_owned(),
        name: execution.clone(),
        input,
        ..Start::default()
    };
    let wait = patience(&headers);
    if workflow.spec.kind == Kind::Express && wait.is_some() {
        let outcome = endpoint.runs.start_sync(start).await?;
        return Ok(ended(outcome.phase, outcome.output.as_deref(), outcome.error, outcome.cause));
    }
    let run = match (endpoint.runs.start(start).await, execution) {
        (Ok(started), _) => started.run,
        (Err(RunsError::AlreadyExists(_)), Some(execution)) => run_name(name, &execution),
        (Err(e), _) => return Err(e.into()),
    };
    let accepted = || (StatusCode::ACCEPTED, json!({"namespace": namespace, "run": run}));
    let Some(wait) = wait else { return Ok(accepted()) };
    let api = Api::<WorkflowRun>::namespaced(endpoint.client.clone(), namespace);
    let over = |r: Option<&WorkflowRun>| r.is_none_or(|r| r.status.as_ref().is_some_and(|s| s.phase.is_over()));
    // Who waited in vain can ask for the run.
    let Ok(Ok(Some(_))) = tokio::time::timeout(wait, skiff_client::wait_for(api, &run, over)).await else {
        return Ok(accepted());
    };
    let found = endpoint.runs.describe(namespace, &run).await?;
    let status = found.run.status.unwrap_or_default();
    Ok(ended(status.phase, found.output.as_deref(), status.error, status.cause))
}

/// How a run ended, as an answer.
fn ended(phase: Phase, output: Option<&str>, error: Option<String>, cause: Option<String>) -> (StatusCode, Value) {
    if phase == Phase::Succeeded {
        let output = output.and_then(|o| serde_json::from_str(o).ok()).unwrap_or_default();
        return (StatusCode::OK, output);
    }
    let status = if phase == Phase::TimedOut { StatusCode::GATEWAY_TIMEOUT } else { StatusCode::BAD_GATEWAY };
    (
        status,
        json!({"error": {"code": error.unwrap_or_else(|| phase.as_str().to_owned()), "message": cause.unwrap_or_default()}}),
    )
}

/// How long the caller waits for the end, if at all.
fn patience(headers: &HeaderMap) -> Option<Duration> {
    let prefers = headers.get_all("prefer").iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(','));
    prefers.into_iter().find_map(|p| {
        let (word, seconds) = p.trim().split_once('=').unwrap_or((p.trim(), ""));
        let seconds = seconds.trim().parse().unwrap_or(WAIT).min(WAIT_MAX);
        word.trim().eq_ignore_ascii_case("wait").then(|| Duration::from_secs(seconds))
    })
}

/// The workflow, where the caller may start it.
async fn permit(
    endpoint: &Endpoint,
    headers: &HeaderMap,
    certificate: Option<&User>,
    namespace: &str,
    name: &str,
) -> Result<Workflow, Refused> {
    let shown = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.split_once(' '));
    let shown = shown.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
    let workflows = Api::<Workflow>::namespaced(endpoint.client.clone(), namespace);
    let absent = || Refused::Absent(format!("{namespace}/{name}"));
    let mut found = None;
    if let (Some(token), None) = (shown, certificate) {
        found = workflows.get_opt(name).await?;
        let secrets = found.iter().flat_map(|w| &w.spec.triggers).filter_map(|t| t.http.as_ref());
        for secret in secrets.map(|h| h.secret.clone()).collect::<Vec<_>>() {
            let secret = Api::<Secret>::namespaced(endpoint.client.clone(), namespace).get_opt(&secret).await?;
            let data = secret.and_then(|s| s.data).unwrap_or_default();
            let Some(wanted) = data.get("token").map(|t| t.0.trim_ascii()).filter(|t| t.len() >= TOKEN_MIN) else {
                continue;
            };
            if constant_time::verify_slices_are_equal(wanted, token.as_bytes()).is_ok() {
                return found.ok_or_else(absent);
            }
        }
    }
    let user = endpoint.auth.user(headers, certificate).await?;
    let who = user.name.clone();
    if !endpoint.auth.may(user, START, namespace, "").await? {
        return Err(Refused::Forbidden(format!("user {who} may not create workflowruns in namespace {namespace}")));
    }
    match found {
        Some(workflow) => Ok(workflow),
        None => workflows.get_opt(name).await?.ok_or_else(absent),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_say_how_long_they_wait() {
        for (value, want) in [
            ("wait", Some(60)),
            ("respond-async, wait=5", Some(5)),
            ("Wait=1000", Some(300)),
            ("respond-async", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", value.parse().unwrap());
            assert_eq!(patience(&headers), want.map(Duration::from_secs), "{value}");
        }
    }

    #[test]
    fn ends_are_answers() {
        assert_eq!(ended(Phase::Succeeded, Some("[1]"), None, None), (StatusCode::OK, json!([1])));
        let failed = ended(Phase::Failed, None, Some("E".into()), Some("why".into()));
        assert_eq!(failed, (StatusCode::BAD_GATEWAY, json!({"error": {"code": "E", "message": "why"}})));
        assert_eq!(ended(Phase::TimedOut, None, None, None).0, StatusCode::GATEWAY_TIMEOUT);
    }
}
