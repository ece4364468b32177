//! Tasks that are functions: how they are called, and how their failures become the names that definitions know.

use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use skiff_asl::{ExecutionError, error};
use skiff_faas::gateway::invoke::{self, InvokeError, Shared};

use super::{Call, Done, failed, until};
use crate::engine::Engine;

/// Longest wait for a function where the task has no limit: that of functions themselves, and a little.
const PATIENCE: Duration = Duration::from_secs(3700);

/// A call of a function.
#[derive(Clone, Debug)]
pub struct FunctionCall {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Version or alias: a tag of the function's traffic.
    pub qualifier: Option<String>,
    /// JSON text.
    pub payload: String,
    /// Headers; `idempotency-key` is the same for each try of the same attempt.
    pub headers: Vec<(String, String)>,
    /// Until when somebody waits.
    pub deadline: Option<Timestamp>,
}

/// What a function said, whatever its status.
#[derive(Clone, Debug, Default)]
pub struct FunctionAnswer {
    /// HTTP status.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Why a function said nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FunctionError {
    /// There is none of this name.
    #[error("{0}")]
    NotFound(String),
    /// It did not answer in time.
    #[error("{0}")]
    Timeout(String),
    /// There is no room now.
    #[error("{0}")]
    TooMany(String),
    /// The caller may not.
    #[error("{0}")]
    Forbidden(String),
    /// Something else is in the way, which may pass.
    #[error("{0}")]
    Unavailable(String),
}

/// What calls functions.
#[async_trait]
pub trait Functions: Send + Sync + 'static {
    /// Calls once.
    async fn call(&self, call: FunctionCall) -> Result<FunctionAnswer, FunctionError>;
}

/// Longest wait for the gateway of a process that has just started: runs go on at once after a restart, and may be earlier.
const GATEWAY: Duration = Duration::from_secs(30);

/// The functions of the gateway in this process, while there is one.
pub struct Gateway(pub Shared);

#[async_trait]
impl Functions for Gateway {
    async fn call(&self, call: FunctionCall) -> Result<FunctionAnswer, FunctionError> {
        let none = || FunctionError::Unavailable("no gateway of functions runs in this process".to_owned());
        let gateway = tokio::time::timeout(GATEWAY, self.0.there()).await.map_err(|_| none())?;
        let mut request = invoke::Call::post(&call.namespace, &call.name, call.payload.into_bytes());
        request.tag = call.qualifier;
        for (name, value) in call.headers {
            if let (Ok(name), Ok(value)) = (http::HeaderName::try_from(name), http::HeaderValue::try_from(value)) {
                if name == "idempotency-key" {
                    request.id = value.to_str().unwrap_or_default().to_owned();
                }
                request.headers.insert(name, value);
            }
        }
        match gateway.invoke(request).await {
            Ok(answer) => Ok(FunctionAnswer { status: answer.status.as_u16(), body: answer.body.to_vec() }),
            Err(e) => Err(match e {
                InvokeError::NotFound { .. } => FunctionError::NotFound(e.to_string()),
                InvokeError::Timeout(_) => FunctionError::Timeout(e.to_string()),
                InvokeError::Overloaded { .. } => FunctionError::TooMany(e.to_string()),
                InvokeError::Forbidden { .. } | InvokeError::Unauthorized(_) => FunctionError::Forbidden(e.to_string()),
                e => FunctionError::Unavailable(e.to_string()),
            }),
        }
    }
}

/// Functions where there are none.
pub struct NoFunctions;

#[async_trait]
impl Functions for NoFunctions {
    async fn call(&self, call: FunctionCall) -> Result<FunctionAnswer, FunctionError> {
        Err(FunctionError::NotFound(format!("there are no functions here, so no {}", call.name)))
    }
}

/// The output of a function that answered well.
pub(super) struct Answered {
    pub(super) output: String,
    pub(super) status: u16,
}

/// Calls a function, and says what became of it in the language's words.
pub(super) async fn call(engine: &Engine, call: FunctionCall) -> Result<Answered, ExecutionError> {
    let name = call.name.clone();
    let patience = call.deadline.map_or(PATIENCE, until);
    let answer = tokio::time::timeout(patience, engine.functions().call(call)).await;
    let answer = match answer {
        Err(_) => return Err(failed(error::TIMEOUT, "")),
        Ok(Err(e)) => return Err(unanswered(&e)),
        Ok(Ok(answer)) => answer,
    };
    if (200..300).contains(&answer.status) {
        return Ok(Answered { output: output(&answer.body), status: answer.status });
    }
    Err(failure(&name, &answer))
}

/// A body as JSON text: itself where it is JSON, otherwise as a string.
fn output(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    if text.trim().is_empty() {
        return "null".to_owned();
    }
    match serde_json::from_str::<serde::de::IgnoredAny>(&text) {
        Ok(_) => text.into_owned(),
        Err(_) => Value::String(text.into_owned()).to_string(),
    }
}

/// Names of errors of a function that did not answer, as the service's functions have them.
fn unanswered(e: &FunctionError) -> ExecutionError {
    let name = match e {
        FunctionError::NotFound(_) => "Lambda.ResourceNotFoundException",
        FunctionError::Timeout(_) => error::TIMEOUT,
        FunctionError::TooMany(_) => "Lambda.TooManyRequestsException",
        FunctionError::Forbidden(_) => error::PERMISSIONS,
        FunctionError::Unavailable(_) => "Lambda.ServiceException",
    };
    failed(name, e.to_string())
}

/// The error of a function that failed: the type of its exception, with type, message and what else it said as cause.
fn failure(name: &str, answer: &FunctionAnswer) -> ExecutionError {
    let said: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let field = |name: &str| said.pointer(name).and_then(Value::as_str).map(str::to_owned);
    // Code that knows the service says it itself.
    if let Some(kind) = field("/errorType") {
        return failed(&kind, String::from_utf8_lossy(&answer.body));
    }
    let message = field("/error/message");
    let (Some(code), Some(message)) = (field("/error/code"), message) else {
        let text = String::from_utf8_lossy(&answer.body);
        let text: String = text.chars().take(4096).collect();
        return failed(
            "Lambda.Unknown",
            json!({"errorType": "Lambda.Unknown", "errorMessage": format!("{name} answered {}: {text}", answer.status)})
                .to_string(),
        );
    };
    let kind = match (code.as_str(), answer.status) {
        ("FunctionError", _) => exception(&message).unwrap_or("Error"),
        ("Timeout", _) => return failed(error::TIMEOUT, message),
        ("FunctionNotFound", _) => "Lambda.ResourceNotFoundException",
        ("TooManyRequests", _) => "Lambda.TooManyRequestsException",
        ("Forbidden" | "Unauthorized", _) => error::PERMISSIONS,
        ("FunctionNotReady" | "Unavailable", _) => "Lambda.ServiceException",
        ("InstanceEnded", _) => "Lambda.Unknown",
        _ => "Lambda.Unknown",
    };
    failed(kind, json!({"errorMessage": message, "errorType": kind}).to_string())
}

/// The type of an exception in its text: `KeyError: 'x'`.
fn exception(message: &str) -> Option<&str> {
    let first = message.lines().next()?.split(':').next()?.trim();
    let named = first.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
    (named && first.bytes().next()?.is_ascii_alphabetic()).then_some(first)
}

impl Call {
    /// `lambda:invoke`: the parameters name the function.
    pub(super) async fn invoke(&self) -> Result<Done, ExecutionError> {
        let function = self.text("FunctionName")?;
        let (name, qualifier) = named(function);
        let qualifier = self.field("Qualifier").and_then(Value::as_str).map(str::to_owned).or(qualifier);
        let payload = self.field("Payload").map_or_else(|| "{}".to_owned(), Value::to_string);
        let version = qualifier.clone().unwrap_or_else(|| "$LATEST".to_owned());
        let call = FunctionCall {
            namespace: self.owner.namespace.clone(),
            name,
            qualifier: qualifier.filter(|q| q != "$LATEST"),
            payload,
            headers: self.headers(),
            deadline: self.dispatch.deadline,
        };
        let answer = call_or_event(self, call).await?;
        let key = self.key();
        let payload: Box<serde_json::value::RawValue> =
            serde_json::from_str(&answer.output).map_err(|e| failed(error::RUNTIME, e.to_string()))?;
        let wrapped = format!(
            r#"{{"ExecutedVersion":{},"Payload":{payload},"SdkHttpMetadata":{{"HttpHeaders":{{"Content-Type":"application/json"}},"HttpStatusCode":{}}},"SdkResponseMetadata":{{"RequestId":{}}},"StatusCode":{}}}"#,
            json!(version),
            answer.status,
            json!(key),
            answer.status
        );
        self.answered(wrapped).await
    }
}

async fn call_or_event(task: &Call, function: FunctionCall) -> Result<Answered, ExecutionError> {
    call(&task.engine, function).await
}

/// A function's name and qualifier: `NAME`, `NAME:QUALIFIER`, or an ARN of either.
fn named(function: &str) -> (String, Option<String>) {
    let plain = match function.split(':').collect::<Vec<_>>().as_slice() {
        ["arn", _, "lambda", _, _, "function", rest @ ..] => rest.join(":"),
        _ => function.to_owned(),
    };
    match plain.split_once(':') {
        Some((name, qualifier)) => (name.to_owned(), Some(qualifier.to_owned())),
        None => (plain, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_have_names_that_definitions_know() {
        let table = [
            (500, r#"{"error":{"code":"FunctionError","message":"KeyError: 'x'"}}"#, "KeyError"),
            (500, r#"{"error":{"code":"FunctionError","message":"my.Own: no"}}"#, "my.Own"),
            (500, r#"{"error":{"code":"FunctionError","message":"it broke, so: what"}}"#, "Error"),
            (500, r#"{"errorType":"Custom","errorMessage":"m"}"#, "Custom"),
            (404, r#"{"error":{"code":"FunctionNotFound","message":"m"}}"#, "Lambda.ResourceNotFoundException"),
            (429, r#"{"error":{"code":"TooManyRequests","message":"m"}}"#, "Lambda.TooManyRequestsException"),
            (504, r#"{"error":{"code":"Timeout","message":"m"}}"#, "States.Timeout"),
            (503, r#"{"error":{"code":"FunctionNotReady","message":"m"}}"#, "Lambda.ServiceException"),
            (418, "teapot", "Lambda.Unknown"),
        ];
        for (status, body, name) in table {
            let error = failure("f", &FunctionAnswer { status, body: body.into() });
            assert_eq!(error.error, name, "{body}");
            assert!(!error.cause.is_empty(), "{body}");
        }
    }

    #[test]
    fn bodies_become_json() {
        for (body, json) in
            [("", "null"), (" \n", "null"), ("{\"a\":1}", "{\"a\":1}"), ("a\"b", "\"a\\\"b\""), ("7", "7")]
        {
            assert_eq!(output(body.as_bytes()), json);
        }
    }

    #[test]
    fn functions_are_named_in_several_ways() {
        for (text, name, qualifier) in [
            ("add", "add", None),
            ("add:PROD", "add", Some("PROD")),
            ("arn:aws:lambda:r:1:function:add", "add", None),
            ("arn:aws:lambda:r:1:function:add:3", "add", Some("3")),
        ] {
            assert_eq!(named(text), (name.to_owned(), qualifier.map(str::to_owned)), "{text}");
        }
    }
}
