//! What an answer carries beside its body: warnings, and fewer bytes.

use http::header::{HeaderValue, WARNING};

use crate::body::Body;

type Response = http::Response<Body>;

/// Bodies larger than this are compressed when the client can read it.
const GZIP_MIN: usize = 128 * 1024;

/// A large answer in fewer bytes, for who can read it.
pub(crate) fn compress(response: Response) -> Response {
    if response.headers().contains_key("content-encoding") {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let body = match body {
        Body::Full(Some(b)) if b.len() > GZIP_MIN => {
            use std::io::Write;
            let mut e = flate2::write::GzEncoder::new(Vec::with_capacity(b.len() / 8), flate2::Compression::fast());
            // Writing to a Vec cannot fail.
            let packed = e.write_all(&b).and_then(|()| e.finish());
            match packed {
                Ok(p) => {
                    parts.headers.insert("content-encoding", HeaderValue::from_static("gzip"));
                    parts.headers.insert("vary", HeaderValue::from_static("Accept-Encoding"));
                    Body::full(p)
                }
                Err(_) => Body::Full(Some(b)),
            }
        }
        other => other,
    };
    http::Response::from_parts(parts, body)
}

/// Total text of warnings after which they are cut, and the length they are cut to.
const WARNINGS_MAX: usize = 4096;
const WARNING_CUT: usize = 256;

/// Puts warnings on an answer, each once.
pub(crate) fn warn(response: &mut Response, warnings: &[String]) {
    let mut seen: Vec<&str> = vec![];
    let total: usize = warnings.iter().map(String::len).sum();
    for w in warnings {
        if seen.contains(&w.as_str()) {
            continue;
        }
        seen.push(w);
        let text: String = if total > WARNINGS_MAX { w.chars().take(WARNING_CUT).collect() } else { w.clone() };
        let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace(['\n', '\r'], " ");
        if let Ok(v) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            response.headers_mut().append(WARNING, v);
        }
    }
}
