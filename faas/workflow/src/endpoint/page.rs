//! Lists page by page: rows have keys that order them, and a token is the key of the last row that was told.
//!
//! A token holds for ever and in any process; a row that comes or goes in between is told or not, and no other is lost.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::error::Fault;

/// Rows in an answer where the caller does not say.
const DEFAULT: usize = 100;

/// A row: what orders it, and what is told.
pub(crate) type Row = (String, Value);

/// A key that puts the newest first.
pub(crate) fn newest_first(time: Timestamp, name: &str) -> String {
    let micros = u64::try_from(time.as_microsecond()).unwrap_or_default();
    format!("{:020}/{name}", u64::MAX - micros)
}

/// The bound of an answer.
pub(crate) fn limit(request: &Value) -> usize {
    let asked = request["maxResults"].as_u64().unwrap_or_default();
    usize::try_from(asked).ok().filter(|n| *n > 0).unwrap_or(DEFAULT)
}

/// The text behind a token of the request.
pub(crate) fn after(request: &Value) -> Result<Option<String>, Fault> {
    let Some(token) = request["nextToken"].as_str() else { return Ok(None) };
    let invalid = || Fault::new("InvalidToken", "Invalid Token: 'Invalid token'");
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| invalid())?;
    String::from_utf8(bytes).map(Some).map_err(|_| invalid())
}

/// A token of a text.
pub(crate) fn token(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(text)
}

/// The rows that a request asks for, under a name.
pub(crate) fn page(request: &Value, name: &str, mut rows: Vec<Row>) -> Result<Value, Fault> {
    rows.sort_by(|a, b| a.0.cmp(&b.0));
    if let Some(after) = after(request)? {
        rows.retain(|(key, _)| *key > after);
    }
    let limit = limit(request);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let last = rows.last().filter(|_| more).map(|(key, _)| token(key));
    let rows: Vec<Value> = rows.into_iter().map(|(_, row)| row).collect();
    let mut answer = json!({name: rows});
    if let Some(last) = last {
        answer["nextToken"] = last.into();
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_tell_all_rows_once() {
        let at = |s: i64| Timestamp::from_second(s).unwrap();
        let rows: Vec<Row> = (0..7).map(|i| (newest_first(at(1000 + i), &format!("r{i}")), json!(i))).collect();
        let mut request = json!({"maxResults": 3});
        let mut told = vec![];
        loop {
            let answer = page(&request, "rows", rows.clone()).unwrap();
            assert!(answer["rows"].as_array().unwrap().len() <= 3);
            told.extend(answer["rows"].as_array().unwrap().clone());
            match answer.get("nextToken") {
                Some(token) => request["nextToken"] = token.clone(),
                None => break,
            }
        }
        assert_eq!(json!(told), json!([6, 5, 4, 3, 2, 1, 0]));
        assert_eq!(page(&json!({"nextToken": "%"}), "rows", vec![]).unwrap_err().name, "InvalidToken");
        assert_eq!(limit(&json!({"maxResults": 0})), 100);
    }
}
