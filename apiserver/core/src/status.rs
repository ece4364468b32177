//! `Status`: every error a client sees, made in one place.
//!
//! Handlers answer with a [`Status`]; the server writes it out once. The wording follows upstream wherever clients match
//! on it (see spec rows 8.x): `kubectl` prints the message, client-go branches on the reason.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::invalid::Errors;

/// A failure (or, rarely, a success) as the API reports it.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason; empty for the few answers upstream gives without one.
    pub reason: &'static str,
    /// Text for people.
    pub message: String,
    /// `details`, boxed because most errors never leave the stack.
    pub details: Option<Box<Map<String, Value>>>,
    /// `metadata.continue`, only of 410 answers to paged lists.
    pub continue_token: Option<String>,
}

impl std::error::Error for Status {}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// `deployments.apps`, or `pods` for the core group.
#[must_use]
pub fn qualified(resource: &str, group: &str) -> String {
    if group.is_empty() { resource.to_owned() } else { format!("{resource}.{group}") }
}

fn details(name: &str, group: &str, kind: &str) -> Map<String, Value> {
    let mut m = Map::new();
    for (k, v) in [("name", name), ("group", group), ("kind", kind)] {
        if !v.is_empty() {
            m.insert(k.to_owned(), Value::from(v));
        }
    }
    m
}

impl Status {
    /// A status with no details.
    #[must_use]
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, continue_token: None }
    }

    /// Adds details about an object.
    #[must_use]
    pub fn about(mut self, name: &str, group: &str, kind: &str) -> Self {
        let extra = self.details.take();
        let mut d = details(name, group, kind);
        if let Some(extra) = extra {
            d.extend(*extra);
        }
        self.details = Some(Box::new(d));
        self
    }

    /// Adds empty details, which upstream's router and patch errors carry.
    #[must_use]
    pub fn empty(mut self) -> Self {
        self.details.get_or_insert_default();
        self
    }

    /// Sets one key of `details`.
    #[must_use]
    pub fn detail(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.details.get_or_insert_default().insert(key.to_owned(), value.into());
        self
    }

    /// Adds a cause. Empty parts are left out.
    #[must_use]
    pub fn cause(mut self, reason: &str, message: &str, field: &str) -> Self {
        let mut c = Map::new();
        for (k, v) in [("reason", reason), ("message", message), ("field", field)] {
            if !v.is_empty() {
                c.insert(k.to_owned(), Value::from(v));
            }
        }
        let d = self.details.get_or_insert_default();
        match d.get_mut("causes") {
            Some(Value::Array(a)) => a.push(Value::Object(c)),
            _ => drop(d.insert("causes".to_owned(), Value::Array(vec![Value::Object(c)]))),
        }
        self
    }

    /// Tells the client to come back after `seconds` (also sent as `Retry-After`).
    #[must_use]
    pub fn retry_after(self, seconds: u32) -> Self {
        self.detail("retryAfterSeconds", seconds)
    }

    /// 400.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401, with the one text it has.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403 in admission's words: `pods "x" is forbidden: why`.
    #[must_use]
    pub fn forbidden(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Self {
        let what = qualified(resource, group);
        let message = match (resource.is_empty(), name.is_empty()) {
            (true, _) => format!("forbidden: {why}"),
            (_, true) => format!("{what} is forbidden: {why}"),
            _ => format!("{what} {} is forbidden: {why}", crate::invalid::quote_str(name)),
        };
        Self::new(403, "Forbidden", message).about(name, group, resource)
    }

    /// 404 for an object.
    #[must_use]
    pub fn not_found(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {} not found", qualified(resource, group), crate::invalid::quote_str(name));
        Self::new(404, "NotFound", message).about(name, group, resource)
    }

    /// 404 for a path nothing is served at.
    #[must_use]
    pub fn no_such_path() -> Self {
        let mut s = Self::new(404, "NotFound", "the server could not find the requested resource");
        s.details = Some(Box::default());
        s
    }

    /// 405.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        let mut s =
            Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource");
        s.details = Some(Box::default());
        s
    }

    /// 406 naming what could be sent.
    #[must_use]
    pub fn not_acceptable(accepted: &[&str]) -> Self {
        let list = accepted.join(", ");
        Self::new(406, "NotAcceptable", format!("only the following media types are accepted: {list}"))
    }

    /// 409 because the name is taken.
    #[must_use]
    pub fn already_exists(group: &str, resource: &str, name: &str) -> Self {
        let message = format!("{} {} already exists", qualified(resource, group), crate::invalid::quote_str(name));
        Self::new(409, "AlreadyExists", message).about(name, group, resource)
    }

    /// 409 because of a precondition.
    #[must_use]
    pub fn conflict(group: &str, resource: &str, name: &str, why: impl fmt::Display) -> Self {
        let what = qualified(resource, group);
        let message = format!("Operation cannot be fulfilled on {what} {}: {why}", crate::invalid::quote_str(name));
        Self::new(409, "Conflict", message).about(name, group, resource)
    }

    /// 409 because somebody else wrote first.
    #[must_use]
    pub fn modified(group: &str, resource: &str, name: &str) -> Self {
        const WHY: &str = "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(group, resource, name, WHY)
    }

    /// 410 because the history is gone.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// 413.
    #[must_use]
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 415 naming what could be read.
    #[must_use]
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        let list = accepted.join(", ");
        let text = format!("the body of the request was in an unknown format - accepted media types include: {list}");
        Self::new(415, "UnsupportedMediaType", text)
    }

    /// 422 with one cause per field. `kind` is the kind, not the resource.
    #[must_use]
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &Errors) -> Self {
        let told = errors.told();
        let list = errors.sentence();
        let what = qualified(kind, group);
        let text = format!("{what} {} is invalid: {list}", crate::invalid::quote_str(name));
        let mut s = Self::new(422, "Invalid", text).about(name, group, kind);
        for e in told {
            s = s.cause(e.kind.reason(), &e.body, &e.path);
        }
        s
    }

    /// 429.
    #[must_use]
    pub fn too_many_requests(message: impl Into<String>, retry_after: u32) -> Self {
        Self::new(429, "TooManyRequests", message).retry_after(retry_after)
    }

    /// 500 with upstream's prefix.
    #[must_use]
    pub fn internal(cause: impl fmt::Display) -> Self {
        let cause = cause.to_string();
        Self::new(500, "InternalError", format!("Internal error occurred: {cause}")).cause("", &cause, "")
    }

    /// 500 without a reason: how upstream answers an error that no one translated. Some clients match on the text.
    #[must_use]
    pub fn untyped(message: impl Into<String>) -> Self {
        Self::new(500, "", message)
    }

    /// 503.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "ServiceUnavailable", message)
    }

    /// 504.
    #[must_use]
    pub fn timeout(message: impl fmt::Display, retry_after: u32) -> Self {
        let s = Self::new(504, "Timeout", format!("Timeout: {message}"));
        if retry_after == 0 { s } else { s.retry_after(retry_after) }
    }

    /// 504 because the asked-for version lies in the future.
    #[must_use]
    pub fn too_large_resource_version(requested: u64, current: u64) -> Self {
        Self::timeout(format!("Too large resource version: {requested}, current: {current}"), 1).cause(
            "ResourceVersionTooLarge",
            "Too large resource version",
            "",
        )
    }

    /// `Retry-After` to send with this answer.
    #[must_use]
    pub fn retry_seconds(&self) -> Option<u64> {
        self.details.as_ref()?.get("retryAfterSeconds")?.as_u64()
    }

    /// The object on the wire.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut metadata = Map::new();
        if let Some(c) = &self.continue_token {
            metadata.insert("continue".into(), Value::from(c.as_str()));
        }
        let mut v = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure", "code": self.code,
        });
        if !self.message.is_empty() {
            v["message"] = Value::from(self.message.as_str());
        }
        if !self.reason.is_empty() {
            v["reason"] = Value::from(self.reason);
        }
        if let Some(d) = &self.details {
            v["details"] = Value::Object((**d).clone());
        }
        v
    }

    /// The `Success` answer of a completed deletion.
    #[must_use]
    pub fn deleted(name: &str, group: &str, resource: &str, uid: &str) -> Value {
        let mut d = details(name, group, resource);
        if !uid.is_empty() {
            d.insert("uid".into(), Value::from(uid));
        }
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": d})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Path;

    #[test]
    fn one_error_is_not_bracketed() {
        let mut e = Errors::new();
        e.required(&Path::new("spec"), "");
        let s = Status::invalid("apps", "Deployment", "a", &e);
        assert_eq!(s.message, "Deployment.apps \"a\" is invalid: spec: Required value");
        assert_eq!(s.to_value()["details"]["causes"][0]["field"], "spec");
        e.required(&Path::new("kind"), "");
        let s = Status::invalid("apps", "Deployment", "a", &e);
        assert_eq!(s.message, "Deployment.apps \"a\" is invalid: [spec: Required value, kind: Required value]");
    }
}
