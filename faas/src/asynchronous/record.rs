//! Calls as objects, and back. No I/O.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use kube::{Resource as _, ResourceExt as _};
use serde_json::json;

use crate::api::{CallState, FUNCTION, Function, FunctionCall, FunctionCallSpec};
use crate::gateway::invoke::{Answer, Call, InvokeError};

/// Bytes that a stored body may have.
pub const BODY_MAX: usize = 256 * 1024;
/// Header of a request: URL that is told the result.
pub const CALLBACK: &str = "skiff-callback-url";
/// Headers that are about one connection or the caller's identity: they are not stored.
const DROPPED: [&str; 13] = [
    "authorization",
    "connection",
    "content-length",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "prefer",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The object of a call.
///
/// # Errors
/// When the request cannot be stored.
pub fn object(name: &str, call: &Call, function: &Function) -> Result<FunctionCall, InvokeError> {
    let callback = match call.headers.get(CALLBACK).map(HeaderValue::to_str) {
        None => None,
        Some(Ok(url)) => Some(url.to_owned()),
        Some(Err(_)) => return Err(InvokeError::BadRequest(format!("{CALLBACK} is no URL"))),
    };
    let spec = FunctionCallSpec {
        function: call.function.clone(),
        method: (call.method != Method::POST).then(|| call.method.to_string()),
        path: (call.path != "/").then(|| call.path.clone()),
        tag: call.tag.clone(),
        headers: stored(&call.headers),
        body: (!call.body.is_empty()).then(|| STANDARD.encode(&call.body)),
        callback,
        dead_letter_of: None,
    };
    let mut object = FunctionCall::new(name, spec);
    object.metadata.namespace = Some(call.namespace.clone());
    object.metadata.labels = Some(BTreeMap::from([(FUNCTION.to_owned(), call.function.clone())]));
    let owner = function.controller_owner_ref(&()).map(|mut o| {
        o.controller = None;
        o.block_owner_deletion = None;
        o
    });
    object.metadata.owner_references = owner.map(|o| vec![o]);
    Ok(object)
}

/// The call of an object.
///
/// # Errors
/// Why it cannot be made: somebody wrote the object by hand.
pub fn call(object: &FunctionCall) -> Result<Call, InvokeError> {
    let bad = |what: &str| InvokeError::BadRequest(format!("the call's {what} is not valid"));
    let spec = &object.spec;
    let path = spec.path.clone().unwrap_or_else(|| "/".to_owned());
    if !path.starts_with('/') || path.parse::<http::Uri>().is_err() {
        return Err(bad("path"));
    }
    let mut headers = HeaderMap::new();
    for (name, value) in &spec.headers {
        let name: HeaderName = name.parse().map_err(|_| bad("headers"))?;
        if !DROPPED.contains(&name.as_str()) {
            headers.insert(name, value.parse().map_err(|_| bad("headers"))?);
        }
    }
    let body =
        spec.body.as_deref().map(|b| STANDARD.decode(b)).transpose().map_err(|_| bad("body"))?.unwrap_or_default();
    let method = spec.method.as_deref().map_or(Ok(Method::POST), str::parse).map_err(|_| bad("method"))?;
    Ok(Call {
        namespace: object.namespace().unwrap_or_default(),
        function: spec.function.clone(),
        tag: spec.tag.clone(),
        method,
        path,
        headers,
        body: Bytes::from(body),
        id: object.name_any(),
    })
}

/// Headers as they are stored: several of a name joined.
#[must_use]
pub fn stored(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        if DROPPED.contains(&name.as_str()) || name == CALLBACK {
            continue;
        }
        let value = String::from_utf8_lossy(value.as_bytes());
        all.entry(name.to_string())
            .and_modify(|before| {
                before.push_str(", ");
                before.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    all
}

/// An error as the answer it is to a caller.
#[must_use]
pub fn told(error: &InvokeError, id: &str) -> Answer {
    let body = json!({"error": {"code": error.code(), "message": error.to_string(), "requestId": id}});
    json_answer(error.status(), &body)
}

fn json_answer(status: StatusCode, body: &serde_json::Value) -> Answer {
    let mut headers = HeaderMap::new();
    headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Answer { status, headers, body: Bytes::from(body.to_string()) }
}

/// What became of a call, as an answer: the function's own once there is one, 202 before.
#[must_use]
pub fn answer(object: &FunctionCall) -> Answer {
    let id = object.name_any();
    let status = object.status.clone().unwrap_or_default();
    if matches!(status.state, CallState::Pending | CallState::Running) {
        let state = json!({"id": id, "function": object.spec.function, "state": status.state, "attempts": status.attempts,
            "message": status.message});
        return json_answer(StatusCode::ACCEPTED, &state);
    }
    let code = status.code.and_then(|c| StatusCode::from_u16(c).ok()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut headers = HeaderMap::new();
    for (name, value) in &status.headers {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
            headers.insert(name, value);
        }
    }
    if status.truncated {
        headers.insert("skiff-truncated", HeaderValue::from_static("true"));
    }
    let body = status.body.and_then(|b| STANDARD.decode(b).ok()).unwrap_or_default();
    Answer { status: code, headers, body: Bytes::from(body) }
}

/// The call that tells a function of another's failure. The same failure is always told by the same call.
#[must_use]
pub fn dead_letter(of: &FunctionCall, to: &Function, why: &str) -> FunctionCall {
    let name = format!("{}-dead", of.name_any());
    let mut spec = FunctionCallSpec { function: to.name_any(), ..of.spec.clone() };
    spec.dead_letter_of = Some(of.name_any());
    (spec.tag, spec.callback) = (None, None);
    spec.headers.insert("skiff-dead-letter-function".into(), of.spec.function.clone());
    spec.headers.insert("skiff-dead-letter-call".into(), of.name_any());
    let why: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).take(512).collect();
    spec.headers.insert("skiff-dead-letter-reason".into(), why);
    let mut object = FunctionCall::new(&name, spec);
    object.metadata.namespace = of.namespace();
    object.metadata.labels = Some(BTreeMap::from([(FUNCTION.to_owned(), to.name_any())]));
    let owner = to.controller_owner_ref(&()).map(|mut o| {
        o.controller = None;
        o.block_owner_deletion = None;
        o
    });
    object.metadata.owner_references = owner.map(|o| vec![o]);
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_comes_back_as_it_went() {
        let mut sent = Call::post("shop", "pay", &b"\x00\xff"[..]);
        sent.method = Method::PUT;
        sent.path = "/a/b?q=1".into();
        sent.tag = Some("new".into());
        for (name, value) in
            [("x-a", "1"), ("x-a", "2"), ("authorization", "Bearer secret"), ("cookie", "s"), (CALLBACK, "http://x/")]
        {
            sent.headers.append(name, value.parse().unwrap());
        }
        let object = object("id-1", &sent, &Function::new("pay", Default::default())).unwrap();
        assert_eq!(object.spec.callback.as_deref(), Some("http://x/"));
        let back = call(&object).unwrap();
        assert_eq!((back.namespace, back.function, back.tag), (sent.namespace, sent.function, sent.tag));
        assert_eq!((back.method, back.path, back.body), (sent.method, sent.path, sent.body));
        assert_eq!(back.id, "id-1");
        let headers: Vec<(&str, &str)> = back.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        assert_eq!(headers, [("content-type", "application/json"), ("x-a", "1, 2")], "no identity is stored");
    }

    #[test]
    fn objects_by_hand_may_be_wrong() {
        let with = |change: fn(&mut FunctionCallSpec)| {
            let mut spec = FunctionCallSpec { function: "f".into(), ..FunctionCallSpec::default() };
            change(&mut spec);
            call(&FunctionCall::new("c", spec))
        };
        assert!(with(|_| {}).is_ok());
        let bad: [fn(&mut FunctionCallSpec); 5] = [
            |s| s.path = Some("a".into()),
            |s| s.path = Some("/a b".into()),
            |s| s.body = Some("not base64!".into()),
            |s| drop(s.headers.insert("x\n".into(), "y".into())),
            |s| drop(s.headers.insert("x".into(), "a\nb".into())),
        ];
        for change in bad {
            assert!(matches!(with(change), Err(InvokeError::BadRequest(_))));
        }
    }
}
