//! Telling a URL the result of a call: one POST with the answer's body, as a CloudEvent in binary mode.
//!
//! The URL is written by whoever may write the function, and the request leaves from the node: see [`crate::outside`].

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Request, Uri};
use http_body_util::BodyExt as _;
use kube::client::Body;
use kube::{Client, ResourceExt as _};

use crate::api::{CallState, FunctionCall};
use crate::outside::{Unreachable, connect};

/// Patience for the whole of it.
const PATIENCE: Duration = Duration::from_secs(15);

/// Why a URL was not told.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallbackError {
    #[error("{0:?} is no URL that can be called")]
    Url(String),
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    #[error("it answered {0}")]
    Answered(http::StatusCode),
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Silent,
    #[error("it is not reached: {0}")]
    Failed(String),
}

impl CallbackError {
    /// Whether it may go better next time.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Url(_) | Self::Unreachable(Unreachable::Url(_) | Unreachable::Refused(_)) => false,
            Self::Answered(status) => status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429),
            Self::Unreachable(_) | Self::Silent | Self::Failed(_) => true,
        }
    }
}

/// Tells the URL in the call's status.
pub(super) async fn tell(client: &Client, call: &FunctionCall) -> Result<(), CallbackError> {
    let sent = tokio::time::timeout(PATIENCE, send(client, call)).await;
    sent.unwrap_or(Err(CallbackError::Silent))
}

async fn send(client: &Client, call: &FunctionCall) -> Result<(), CallbackError> {
    let status = call.status.clone().unwrap_or_default();
    let text = status.callback.clone().unwrap_or_default();
    let bad = || CallbackError::Url(text.clone());
    let url: Uri = text.parse().map_err(|_| bad())?;
    let failed = |e: kube::Error| CallbackError::Failed(e.to_string());
    let to = connect(client, &url).await?;
    let (namespace, function) = (call.namespace().unwrap_or_default(), &call.spec.function);
    let done = if status.state == CallState::Succeeded { "succeeded" } else { "failed" };
    let path = url.path_and_query().map_or("/", |p| p.as_str());
    let mut request = Request::post(path)
        .header("host", url.authority().map_or("", |a| a.as_str()))
        .header("ce-specversion", "1.0")
        .header("ce-id", call.name_any())
        .header("ce-type", format!("dev.skiff.call.{done}"))
        .header("ce-source", format!("/function/{namespace}/{function}"))
        .header("skiff-call-id", call.name_any())
        .header("skiff-call-status", status.code.unwrap_or_default());
    if let Some(kind) = status.headers.get("content-type") {
        request = request.header("content-type", kind);
    }
    let body = status.body.and_then(|b| STANDARD.decode(b).ok()).unwrap_or_default();
    let request = request.body(Body::from(body)).map_err(|_| bad())?;
    let answer = to.send(request).await.map_err(failed)?;
    let status = answer.status();
    // Read to the end of the first piece, so that the connection is not broken off in the middle of an answer.
    let _ = answer.into_body().frame().await;
    if status.is_success() { Ok(()) } else { Err(CallbackError::Answered(status)) }
}
