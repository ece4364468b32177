//! CloudEvents that somebody publishes in a namespace: `POST /events/NAMESPACE` on the gateway, in binary, structured or
//! batched mode (CloudEvents 1.0, HTTP and JSON bindings). Each function whose trigger takes an event gets a call of its own.
//!
//! An event is accepted when the calls of all its functions are stored. Its source and id name it: a publisher that repeats
//! itself repeats nothing.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use percent_encoding::{CONTROLS, percent_decode_str, utf8_percent_encode};
use serde_json::{Map, Value};

use crate::api::EventFilter;
use crate::gateway::invoke::Call;

/// Events in one request.
const BATCH: usize = 1000;
/// Attributes that every event has.
const REQUIRED: [&str; 4] = ["specversion", "id", "source", "type"];

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Context attributes, without `datacontenttype`.
    pub attributes: BTreeMap<String, String>,
    /// What the data are.
    pub content_type: Option<String>,
    /// The data.
    pub data: Bytes,
}

/// Whether a value is as the pattern says: equal, or, where that ends with `*`, beginning so.
fn fits(pattern: &str, value: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == value, |start| value.starts_with(start))
}

fn media_type(headers: &HeaderMap) -> &str {
    let whole = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    whole.split(';').next().unwrap_or_default().trim()
}

impl Event {
    /// The events of a request; or what is wrong with it, for its sender.
    pub(crate) fn read(headers: &HeaderMap, body: Bytes) -> Result<Vec<Self>, String> {
        let json = || serde_json::from_slice(&body).map_err(|e| format!("the body is no JSON: {e}"));
        let events = match media_type(headers).to_ascii_lowercase().as_str() {
            "application/cloudevents+json" => vec![Self::structured(json()?)?],
            "application/cloudevents-batch+json" => match json()? {
                Value::Array(all) if all.len() <= BATCH => {
                    all.into_iter().map(Self::structured).collect::<Result<_, _>>()?
                }
                Value::Array(_) => return Err(format!("a batch has at most {BATCH} events")),
                _ => return Err("a batch is an array of events".to_owned()),
            },
            _ => vec![Self::binary(headers, body)],
        };
        events.iter().try_for_each(Self::check)?;
        Ok(events)
    }

    fn binary(headers: &HeaderMap, data: Bytes) -> Self {
        let text = |v: &HeaderValue| {
            let raw = v.to_str().unwrap_or_default();
            percent_decode_str(raw).decode_utf8().map_or_else(|_| raw.to_owned(), |t| t.into_owned())
        };
        let attribute =
            |(n, v): (&HeaderName, &HeaderValue)| Some((n.as_str().strip_prefix("ce-")?.to_owned(), text(v)));
        let content_type = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(str::to_owned);
        Self { attributes: headers.iter().filter_map(attribute).collect(), content_type, data }
    }

    fn structured(whole: Value) -> Result<Self, String> {
        let Value::Object(mut whole) = whole else { return Err("an event is an object".to_owned()) };
        let content_type = whole.remove("datacontenttype").and_then(|v| v.as_str().map(str::to_owned));
        let (data, encoded) = (whole.remove("data"), whole.remove("data_base64"));
        let is_json = content_type.as_deref().is_none_or(|t| {
            let t = t.split(';').next().unwrap_or_default().trim();
            t.ends_with("/json") || t.ends_with("+json")
        });
        let data = match (data, encoded) {
            (Some(_), Some(_)) => return Err("an event has data or data_base64, not both".to_owned()),
            (None, None) => Bytes::new(),
            (None, Some(Value::String(text))) => {
                STANDARD.decode(text).map_err(|e| format!("data_base64 is not base64: {e}"))?.into()
            }
            (None, Some(_)) => return Err("data_base64 is a string".to_owned()),
            (Some(Value::String(text)), None) if !is_json => text.into(),
            (Some(value), None) => value.to_string().into(),
        };
        let content_type = content_type.or_else(|| (!data.is_empty()).then(|| "application/json".to_owned()));
        Ok(Self { attributes: attributes(whole)?, content_type, data })
    }

    fn check(&self) -> Result<(), String> {
        if let Some(missing) = REQUIRED.iter().find(|a| self.attributes.get(**a).is_none_or(String::is_empty)) {
            return Err(format!("the event has no {missing}"));
        }
        if self.attributes["specversion"] != "1.0" {
            return Err(format!("specversion {:?} is not known: 1.0 is", self.attributes["specversion"]));
        }
        let plain = |name: &str| name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        match self.attributes.keys().find(|name| !plain(name)) {
            Some(bad) => Err(format!("the attribute {bad:?} may have small letters and digits only")),
            None => Ok(()),
        }
    }

    /// What is the same for the same event, however often it is published.
    pub(crate) fn id(&self) -> String {
        format!("{}\n{}", self.attributes["source"], self.attributes["id"])
    }

    /// Whether a trigger takes it.
    #[must_use]
    pub fn matches(&self, filter: &EventFilter) -> bool {
        let named = [("type", &filter.type_), ("source", &filter.source), ("subject", &filter.subject)];
        let named = named.into_iter().filter_map(|(name, pattern)| Some((name, pattern.as_deref()?)));
        let further = filter.extensions.iter().map(|(name, pattern)| (name.as_str(), pattern.as_str()));
        named.chain(further).all(|(name, pattern)| self.attributes.get(name).is_some_and(|v| fits(pattern, v)))
    }

    /// As a call of a function, in binary mode.
    pub(crate) fn call(&self, namespace: &str, function: &str) -> Call {
        let mut call = Call::post(namespace, function, self.data.clone());
        call.headers.remove(CONTENT_TYPE);
        let content_type = self.content_type.as_deref().and_then(|t| HeaderValue::try_from(t).ok());
        call.headers.extend(content_type.map(|t| (CONTENT_TYPE, t)));
        for (name, value) in &self.attributes {
            let name = HeaderName::try_from(format!("ce-{name}"));
            // What a header cannot have is in percent.
            let value = HeaderValue::try_from(utf8_percent_encode(value, CONTROLS).to_string());
            if let (Ok(name), Ok(value)) = (name, value) {
                call.headers.insert(name, value);
            }
        }
        call
    }
}

/// Context attributes of an event as JSON: strings, numbers and truth values, all as text.
fn attributes(whole: Map<String, Value>) -> Result<BTreeMap<String, String>, String> {
    let text = |(name, value): (String, Value)| match value {
        Value::Null => None,
        Value::String(text) => Some(Ok((name, text))),
        Value::Bool(_) | Value::Number(_) => Some(Ok((name, value.to_string()))),
        Value::Array(_) | Value::Object(_) => Some(Err(format!("the attribute {name:?} is no simple value"))),
    };
    whole.into_iter().filter_map(text).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(content_type: &str, headers: &[(&'static str, &str)], body: &str) -> Result<Vec<Event>, String> {
        let mut all = HeaderMap::new();
        all.insert(CONTENT_TYPE, content_type.parse().unwrap());
        for (name, value) in headers {
            all.insert(*name, value.parse().unwrap());
        }
        Event::read(&all, Bytes::copy_from_slice(body.as_bytes()))
    }

    const BINARY: [(&str, &str); 5] = [
        ("ce-specversion", "1.0"),
        ("ce-id", "1"),
        ("ce-source", "/shop"),
        ("ce-type", "com.paid"),
        ("ce-who", "J%C3%B6"),
    ];

    #[test]
    fn the_three_modes_say_the_same() {
        let binary = read("application/json", &BINARY, r#"{"sum":3}"#).unwrap();
        let event = json!({"specversion": "1.0", "id": "1", "source": "/shop", "type": "com.paid", "who": "Jö", "data": {"sum": 3}});
        let structured = read("application/cloudevents+json; charset=utf-8", &[], &event.to_string()).unwrap();
        let batched = read("application/cloudevents-batch+json", &[], &json!([event, event]).to_string()).unwrap();
        assert_eq!(binary, structured);
        assert_eq!(batched, [binary[0].clone(), binary[0].clone()]);
        let call = binary[0].call("n", "f");
        assert_eq!(
            (&call.headers["ce-who"], &call.body[..]),
            (&HeaderValue::from_static("J%C3%B6"), &br#"{"sum":3}"#[..])
        );
    }

    #[test]
    fn data_are_what_their_type_says() {
        let with = |more: Value| {
            let mut whole = json!({"specversion": "1.0", "id": "1", "source": "s", "type": "t"});
            whole.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let event = read("application/cloudevents+json", &[], &whole.to_string())?.remove(0);
            Ok::<_, String>((event.content_type, event.data.to_vec()))
        };
        let some = |t: &str| Some(t.to_owned());
        for (more, want) in [
            (json!({}), (None, &b""[..])),
            (json!({"data": "text"}), (some("application/json"), b"\"text\"")),
            (json!({"data": "text", "datacontenttype": "text/plain"}), (some("text/plain"), b"text")),
            (json!({"data_base64": "AAE=", "datacontenttype": "image/png"}), (some("image/png"), b"\0\x01")),
        ] {
            assert_eq!(with(more.clone()), Ok((want.0, want.1.to_vec())), "{more}");
        }
        assert!(with(json!({"data": 1, "data_base64": "AA=="})).is_err());
    }

    #[test]
    fn what_is_no_event_is_refused() {
        for (content_type, body, word) in [
            ("application/json", "{}", "no specversion"),
            ("application/cloudevents+json", "{", "no JSON"),
            ("application/cloudevents+json", "[]", "is an object"),
            ("application/cloudevents+json", r#"{"specversion":"0.3","id":"1","source":"s","type":"t"}"#, "0.3"),
            ("application/cloudevents+json", r#"{"specversion":"1.0","id":"1","source":"","type":"t"}"#, "no source"),
            (
                "application/cloudevents+json",
                r#"{"specversion":"1.0","id":"1","source":"s","type":"t","a_b":1}"#,
                "a_b",
            ),
            ("application/cloudevents-batch+json", "{}", "array"),
        ] {
            let error = read(content_type, &[], body).unwrap_err();
            assert!(error.contains(word), "{body}: {error}");
        }
    }

    #[test]
    fn filters_take_what_fits_in_all_they_name() {
        let event = read("text/plain", &BINARY, "").unwrap().remove(0);
        for (filter, want) in [
            (json!({}), true),
            (json!({"type": "com.paid"}), true),
            (json!({"type": "com.*", "source": "/shop"}), true),
            (json!({"type": "com"}), false),
            (json!({"type": "com.paid", "source": "/other"}), false),
            (json!({"subject": "*"}), false),
            (json!({"extensions": {"who": "J*"}}), true),
        ] {
            assert_eq!(event.matches(&serde_json::from_value(filter.clone()).unwrap()), want, "{filter}");
        }
    }
}
