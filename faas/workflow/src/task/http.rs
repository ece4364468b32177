//! Tasks that are requests: `arn:aws:states:::http:invoke` and `skiff:http`.
//!
//! Parameters `ApiEndpoint`, `Method`, `Headers`, `QueryParameters`, `RequestBody`; output `StatusCode`, `StatusText`, `Headers`,
//! `ResponseBody`. The request leaves from the node, so addresses of the node itself are refused ([`skiff_faas::outside`]), and
//! no redirect is followed. Limits: a body of 262,144 bytes, a minute.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use kube::client::Body;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Map, Value, json};
use skiff_asl::{ExecutionError, error};
use skiff_faas::outside::{Unreachable, connect};

use super::{Call, Done, failed, until};
use crate::api::DATA_MAX;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// What must not be in a query as it is.
const QUERY: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'&')
    .add(b'=')
    .add(b'+')
    .add(b'%')
    .add(b'?')
    .add(b'/');
/// Headers that are the connection's business.
const OWN: [&str; 5] = ["host", "content-length", "connection", "transfer-encoding", "upgrade"];

/// The error of a request that was not answered.
fn socket(cause: impl std::fmt::Display) -> ExecutionError {
    failed("States.Http.Socket", cause.to_string())
}

fn wrong(cause: impl Into<String>) -> ExecutionError {
    failed(error::RUNTIME, cause)
}

/// Text of a value as a header or query has it.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl Call {
    /// Makes a request.
    pub(super) async fn http(&self) -> Result<Done, ExecutionError> {
        let patience = self.dispatch.deadline.map_or(PATIENCE, until).min(PATIENCE);
        let done = tokio::time::timeout(patience, self.request()).await;
        let output = done.map_err(|_| failed(error::TIMEOUT, "the endpoint does not answer"))??;
        self.answered(output).await
    }

    async fn request(&self) -> Result<String, ExecutionError> {
        let (parts, body) = self.fetch(DATA_MAX).await?;
        let body = serde_json::from_slice(&body)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&body).into_owned()));
        let mut headers: Map<String, Value> = Map::new();
        for (name, value) in &parts.headers {
            let value = json!(String::from_utf8_lossy(value.as_bytes()));
            match headers.get_mut(name.as_str()).and_then(Value::as_array_mut) {
                Some(all) => all.push(value),
                None => drop(headers.insert(name.to_string(), json!([value]))),
            }
        }
        let text = parts.status.canonical_reason().unwrap_or_default();
        let said = json!({
            "StatusCode": parts.status.as_u16(), "StatusText": text, "Headers": headers, "ResponseBody": body,
        });
        if parts.status.is_success() {
            Ok(said.to_string())
        } else {
            Err(failed(&format!("States.Http.StatusCode.{}", parts.status.as_u16()), said.to_string()))
        }
    }

    /// Makes the request that the parameters say, and reads its answer up to so many bytes.
    pub(crate) async fn fetch(&self, limit: usize) -> Result<(http::response::Parts, Bytes), ExecutionError> {
        let endpoint = self.text("ApiEndpoint")?;
        let mut url: Uri = endpoint.parse().map_err(|e| wrong(format!("'{endpoint}' is no URL: {e}")))?;
        if let Some(Value::Object(query)) = self.field("QueryParameters") {
            url = with_query(&url, query)?;
        }
        let method = self.field("Method").and_then(Value::as_str).unwrap_or("GET");
        let method = Method::try_from(method).map_err(|_| wrong(format!("'{method}' is no method")))?;
        let client = connect(self.client(), &url).await.map_err(|e| match e {
            Unreachable::Url(_) | Unreachable::Refused(_) => failed(error::PERMISSIONS, e.to_string()),
            Unreachable::Unknown(_) | Unreachable::Failed(_) => socket(e),
        })?;
        let path = url.path_and_query().map_or("/", |p| p.as_str());
        let mut request = Request::builder().method(method).uri(path);
        request = request.header("host", url.authority().map_or("", |a| a.as_str()));
        let mut typed = false;
        for (name, value) in self.headers() {
            request = request.header(name, value);
        }
        if let Some(Value::Object(headers)) = self.field("Headers") {
            for (name, value) in headers {
                let name = HeaderName::try_from(name).map_err(|_| wrong(format!("'{name}' is no header")))?;
                if OWN.contains(&name.as_str()) {
                    return Err(wrong(format!("the header '{name}' cannot be set")));
                }
                typed |= name == http::header::CONTENT_TYPE;
                let value = HeaderValue::try_from(plain(value)).map_err(|_| wrong(format!("the value of '{name}'")))?;
                request = request.header(name, value);
            }
        }
        let body = match self.field("RequestBody") {
            None => vec![],
            Some(Value::String(text)) => text.clone().into_bytes(),
            Some(body) => {
                if !typed {
                    request = request.header("content-type", "application/json");
                }
                body.to_string().into_bytes()
            }
        };
        let request = request.body(Body::from(body)).map_err(|e| wrong(e.to_string()))?;
        let answer = client.send(request).await.map_err(socket)?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, limit).collect().await.map_err(|e| {
            if e.downcast_ref::<LengthLimitError>().is_some() {
                failed(error::DATA_LIMIT_EXCEEDED, format!("the answer is longer than {limit} bytes"))
            } else {
                socket(e)
            }
        })?;
        Ok((parts, body.to_bytes()))
    }
}

/// A URL with more in its query; lists give one part for each of their values.
fn with_query(url: &Uri, query: &Map<String, Value>) -> Result<Uri, ExecutionError> {
    let mut parts: Vec<String> = url.query().filter(|q| !q.is_empty()).map(str::to_owned).into_iter().collect();
    for (name, value) in query {
        let values = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for value in values {
            let value = plain(value);
            let (name, value) = (utf8_percent_encode(name, QUERY), utf8_percent_encode(&value, QUERY));
            parts.push(format!("{name}={value}"));
        }
    }
    let mut split = url.clone().into_parts();
    let path = format!("{}?{}", url.path(), parts.join("&"));
    split.path_and_query = Some(path.parse().map_err(|e| wrong(format!("the query: {e}")))?);
    Uri::from_parts(split).map_err(|e| wrong(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_added_and_escaped() {
        let url: Uri = "http://h/p?a=1".parse().unwrap();
        let query = json!({"b": "x y&z", "c": [1, 2], "d": true});
        let whole = with_query(&url, query.as_object().unwrap()).unwrap();
        assert_eq!(whole.to_string(), "http://h/p?a=1&b=x%20y%26z&c=1&c=2&d=true");
    }
}
