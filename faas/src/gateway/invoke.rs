//! Calls from inside this process: what triggers and the queue of asynchronous calls need of the gateway, and what the
//! gateway needs of the queue.
//!
//! A call of this kind takes the same way as a request by HTTP: it is counted, waits for an instance, is bounded in size
//! and time, is answered or fails with the same codes. Nobody is asked whether it is permitted: who accepted it has done
//! that.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use tokio::sync::watch;

use crate::trigger::Event;

/// A request that is held in memory.
#[derive(Clone, Debug)]
pub struct Call {
    /// Namespace of the function.
    pub namespace: String,
    /// Its name.
    pub function: String,
    /// Tag of the revision, where not the shares of traffic decide.
    pub tag: Option<String>,
    /// How it is asked.
    pub method: Method,
    /// What the function sees as path and query; begins with `/`.
    pub path: String,
    /// Headers for the function. Those about a connection are taken out.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
    /// Name of the request in answers, logs and `x-request-id`. The same for each try of one call.
    pub id: String,
}

impl Call {
    /// A `POST /` with a JSON body, as triggers send it.
    #[must_use]
    pub fn post(namespace: &str, function: &str, body: impl Into<Bytes>) -> Self {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        Self {
            namespace: namespace.to_owned(),
            function: function.to_owned(),
            tag: None,
            method: Method::POST,
            path: "/".to_owned(),
            headers,
            body: body.into(),
            id: uuid::Uuid::new_v4().to_string(),
        }
    }
}

/// What a function said. Any status: that of a function that failed is 500.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The function's status.
    pub status: StatusCode,
    /// The function's headers.
    pub headers: HeaderMap,
    /// The whole body, within the function's `maxResponseBytes`.
    pub body: Bytes,
}

/// Why a function said nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub enum InvokeError {
    /// There is no such function, or no such tag.
    #[error("there is no function {namespace}/{name}")]
    NotFound {
        /// Namespace that was asked for.
        namespace: String,
        /// Name that was asked for.
        name: String,
    },
    /// What is called does not take this method.
    #[error("the method {method} is not allowed here, only {allow}")]
    Method {
        /// The method.
        method: Method,
        /// Those that it takes, with commas (RFC 9110, section 10.2.1).
        allow: &'static str,
    },
    /// The body is longer than the function takes.
    #[error("the body is longer than {limit} bytes")]
    TooLarge {
        /// Bytes that a body may have.
        limit: u64,
    },
    /// Too many wait already.
    #[error("too many requests wait for {name}")]
    Overloaded {
        /// The function.
        name: String,
    },
    /// The caller's request broke off or is no HTTP.
    #[error("the request is not valid: {0}")]
    BadRequest(String),
    /// Nobody knows who asks.
    #[error("authentication is required: {0}")]
    Unauthorized(String),
    /// Who asks may not.
    #[error("{user} may not call the function {name}")]
    Forbidden {
        /// Who asked.
        user: String,
        /// The function.
        name: String,
    },
    /// It cannot be started, with the reason and the last lines of its log.
    #[error("the function does not start: {0}")]
    NotReady(String),
    /// The instance broke off before its answer.
    #[error("the instance ended before it answered: {0}")]
    Broken(String),
    /// It did not answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Timeout(Duration),
    /// The answer is longer than the function may give.
    #[error("the answer is longer than {limit} bytes")]
    AnswerTooLarge {
        /// Bytes that an answer may have.
        limit: u64,
    },
    /// The gateway stops, or what it needs does not answer.
    #[error("the gateway cannot take it now: {0}")]
    Unavailable(String),
}

impl InvokeError {
    /// The status a caller by HTTP sees.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::Method { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Overloaded { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden { .. } => StatusCode::FORBIDDEN,
            Self::NotReady(_) | Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Broken(_) | Self::AnswerTooLarge { .. } => StatusCode::BAD_GATEWAY,
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The word for it in `error.code`.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "FunctionNotFound",
            Self::Method { .. } => "MethodNotAllowed",
            Self::TooLarge { .. } => "BodyTooLarge",
            Self::Overloaded { .. } => "TooManyRequests",
            Self::BadRequest(_) => "BadRequest",
            Self::Unauthorized(_) => "Unauthorized",
            Self::Forbidden { .. } => "Forbidden",
            Self::NotReady(_) => "FunctionNotReady",
            Self::Broken(_) => "InstanceEnded",
            Self::Timeout(_) => "Timeout",
            Self::AnswerTooLarge { .. } => "AnswerTooLarge",
            Self::Unavailable(_) => "Unavailable",
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Overloaded { .. } | Self::NotReady(_) | Self::Broken(_) | Self::Timeout(_) | Self::Unavailable(_) => {
                true
            }
            Self::NotFound { .. }
            | Self::Method { .. }
            | Self::TooLarge { .. }
            | Self::BadRequest(_)
            | Self::Unauthorized(_)
            | Self::Forbidden { .. }
            | Self::AnswerTooLarge { .. } => false,
        }
    }

    /// When to come again, where that may help.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { .. } | Self::Broken(_) | Self::Unavailable(_) => Some(Duration::from_secs(1)),
            Self::NotReady(_) => Some(Duration::from_secs(5)),
            _ => None,
        }
    }
}

/// What calls functions.
#[async_trait]
pub trait Invoke: Send + Sync + 'static {
    /// Calls once: waits for an instance and for its whole answer, at most the function's own time. Trying again after
    /// a failure is the caller's.
    async fn invoke(&self, call: Call) -> Result<Answer, InvokeError>;
}

/// What takes events that somebody publishes.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Stores a call for each function that takes the event. How many do; none is no error. Publishing it again does no harm.
    async fn publish(&self, namespace: &str, event: &Event) -> Result<usize, InvokeError>;
}

/// The gateway of this process, for others in it. Cloning shares the place; it is empty while there is no gateway.
#[derive(Clone)]
pub struct Shared(Arc<watch::Sender<Option<Arc<dyn Invoke>>>>);

impl Default for Shared {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Shared {
    /// From now on calls go here, or nowhere.
    pub fn set(&self, invoke: Option<Arc<dyn Invoke>>) {
        self.0.send_replace(invoke);
    }

    /// Where calls go.
    #[must_use]
    pub fn get(&self) -> Option<Arc<dyn Invoke>> {
        self.0.borrow().clone()
    }

    /// Where calls go, as soon as they can: who starts with the gateway may be earlier. It may never be.
    pub async fn there(&self) -> Arc<dyn Invoke> {
        let mut changes = self.0.subscribe();
        loop {
            if let Some(invoke) = changes.borrow_and_update().clone() {
                return invoke;
            }
            if changes.changed().await.is_err() {
                // Not while `self` lives.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Shared").field(&self.0.borrow().is_some()).finish()
    }
}

/// What takes calls nobody waits for.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Takes a call so that it is not lost any more, and names it. The gateway answers 202 with
    /// `Location: /result/NAMESPACE/ID`.
    async fn accept(&self, call: Call) -> Result<String, InvokeError>;

    /// What became of a call: `None` when it is unknown, or forgotten since. The gateway sends it as it is (202 while it is
    /// under way).
    async fn result(&self, namespace: &str, id: &str) -> Result<Option<Answer>, InvokeError>;
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    struct Nothing;

    #[async_trait]
    impl Invoke for Nothing {
        async fn invoke(&self, _: Call) -> Result<Answer, InvokeError> {
            Err(InvokeError::Unavailable(String::new()))
        }
    }

    #[tokio::test]
    async fn who_comes_before_the_gateway_waits_for_it() {
        let shared = Shared::default();
        let early = shared.clone();
        let mut waits = Box::pin(async move { early.there().await });
        assert!(waits.as_mut().now_or_never().is_none());
        shared.set(Some(Arc::new(Nothing)));
        waits.await;
        assert!(shared.there().now_or_never().is_some());
        shared.set(None);
        assert!(shared.get().is_none() && shared.there().now_or_never().is_none());
    }
}
