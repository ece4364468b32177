//! Faults in the words of the service: a name that clients know, and a message.

use http::StatusCode;
use serde_json::{Value, json};

/// Why a request was refused. Clients decide by the name; the message is for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {message}")]
pub struct Fault {
    /// The error's name, as in the service's model.
    pub name: &'static str,
    /// What is wrong.
    pub message: String,
}

/// Answers of operations.
pub(crate) type Answer = Result<Value, Fault>;

impl Fault {
    /// A fault of this name.
    pub(crate) fn new(name: &'static str, message: impl Into<String>) -> Self {
        Self { name, message: message.into() }
    }

    /// A request that breaks a rule of its shape.
    pub(crate) fn validation(message: impl Into<String>) -> Self {
        Self::new("ValidationException", message)
    }

    /// The service's way to say that something named by an ARN is not there.
    pub(crate) fn absent(name: &'static str, arn: &str) -> Self {
        let words = match name {
            "StateMachineDoesNotExist" => "State Machine Does Not Exist",
            "ExecutionDoesNotExist" => "Execution Does Not Exist",
            "ActivityDoesNotExist" => "Activity Does Not Exist",
            _ => "Resource not found",
        };
        Self::new(name, format!("{words}: '{arn}'"))
    }

    /// Something here failed; the caller may try again.
    pub(crate) fn internal(error: &dyn std::fmt::Display) -> Self {
        tracing::warn!(%error, "a request to the endpoint of workflows failed");
        Self::new("InternalFailure", error.to_string())
    }

    /// The status of the answer. Nearly all errors of the service are 400; clients try again at 5xx.
    pub(crate) fn status(&self) -> StatusCode {
        match self.name {
            "InternalFailure" => StatusCode::INTERNAL_SERVER_ERROR,
            "ServiceUnavailable" => StatusCode::SERVICE_UNAVAILABLE,
            "RequestEntityTooLargeException" => StatusCode::PAYLOAD_TOO_LARGE,
            "UnknownOperationException" => StatusCode::NOT_FOUND,
            _ => StatusCode::BAD_REQUEST,
        }
    }

    /// The body of the answer.
    pub(crate) fn body(&self) -> Value {
        json!({"__type": self.name, "message": self.message})
    }
}

impl From<kube::Error> for Fault {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(s) if s.code == 403 && s.message.contains("exceeded quota") => {
                Self::new("ServiceQuotaExceededException", s.message.clone())
            }
            kube::Error::Api(s) if s.code == 403 => Self::new("AccessDeniedException", s.message.clone()),
            kube::Error::Api(s) if s.code == 409 => Self::new("ConflictException", s.message.clone()),
            kube::Error::Api(s) if s.code == 429 => Self::new("ThrottlingException", s.message.clone()),
            kube::Error::Api(s) if matches!(s.code, 400 | 422) => Self::validation(s.message.clone()),
            _ => Self::internal(&error),
        }
    }
}
