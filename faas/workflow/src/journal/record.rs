//! Inputs and events as pages hold them: JSON text, with long data in payloads.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use skiff_asl::ExecutionError;

use crate::api::PayloadRef;
use crate::machine::{Event, Input, Step, What};
use crate::payload::{Payload, PayloadError};

/// Bytes of text that a page holds itself.
pub(crate) const INLINE: usize = 4096;

/// Text in a record, or where it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Text {
    Here(Arc<str>),
    There(PayloadRef),
}

impl Text {
    /// Text as it is stored; what is long is added to `long`.
    ///
    /// # Errors
    /// When it is too long for anything.
    pub(crate) fn of(text: &Arc<str>, long: &mut Vec<Payload>) -> Result<Self, PayloadError> {
        if text.len() <= INLINE {
            return Ok(Self::Here(Arc::clone(text)));
        }
        let payload = Payload::of(text)?;
        let reference = payload.reference.clone();
        long.push(payload);
        Ok(Self::There(reference))
    }
}

/// An input, stored. Times are microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    at: i64,
    #[serde(flatten)]
    what: Kept,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "k", rename_all = "lowercase")]
enum Kept {
    Start,
    Go,
    Timer,
    Submitted { step: Step, output: Text, started: i64 },
    Taken { step: Step, worker: Option<String> },
    Succeeded { step: Step, output: Text, started: Option<i64> },
    Failed { step: Step, error: String, cause: Text, started: Option<i64> },
    Heartbeat { step: Step },
    Stop { error: Option<String>, cause: Option<Text> },
    Redrive { count: u32 },
}

/// A time as it is stored.
pub(crate) fn micros(at: Timestamp) -> i64 {
    at.as_microsecond()
}

/// A time that was stored.
pub(crate) fn time(at: i64) -> Timestamp {
    Timestamp::from_microsecond(at).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Now, as exactly as it is stored.
pub(crate) fn now() -> Timestamp {
    time(micros(Timestamp::now()))
}

impl Record {
    /// What is stored of an input; long text is added to `long`.
    ///
    /// # Errors
    /// When text is too long for anything.
    pub(crate) fn of(input: &Input, long: &mut Vec<Payload>) -> Result<Self, PayloadError> {
        let what = match &input.what {
            What::Start => Kept::Start,
            What::Go => Kept::Go,
            What::Timer => Kept::Timer,
            What::Submitted { step, output, started } => {
                Kept::Submitted { step: *step, output: Text::of(output, long)?, started: micros(*started) }
            }
            What::Taken { step, worker } => Kept::Taken { step: *step, worker: worker.clone() },
            What::Succeeded { step, output, started } => {
                Kept::Succeeded { step: *step, output: Text::of(output, long)?, started: started.map(micros) }
            }
            What::Failed { step, error, started } => Kept::Failed {
                step: *step,
                error: error.error.clone(),
                cause: Text::of(&error.cause.as_str().into(), long)?,
                started: started.map(micros),
            },
            What::Heartbeat { step } => Kept::Heartbeat { step: *step },
            What::Stop { error, cause } => Kept::Stop {
                error: error.clone(),
                cause: cause.as_deref().map(|c| Text::of(&c.into(), long)).transpose()?,
            },
            What::Redrive { count } => Kept::Redrive { count: *count },
        };
        Ok(Self { at: micros(input.at), what })
    }

    /// Long text of the record.
    pub(crate) fn long(&self) -> Option<&PayloadRef> {
        let text = match &self.what {
            Kept::Submitted { output, .. } | Kept::Succeeded { output, .. } => output,
            Kept::Failed { cause, .. } | Kept::Stop { cause: Some(cause), .. } => cause,
            _ => return None,
        };
        match text {
            Text::Here(_) => None,
            Text::There(reference) => Some(reference),
        }
    }

    /// The input; `long` is the text of [`Record::long`].
    pub(crate) fn input(self, long: Option<Arc<str>>) -> Input {
        let text = |text| match text {
            Text::Here(text) => text,
            Text::There(_) => long.clone().unwrap_or_default(),
        };
        let what = match self.what {
            Kept::Start => What::Start,
            Kept::Go => What::Go,
            Kept::Timer => What::Timer,
            Kept::Submitted { step, output, started } => {
                What::Submitted { step, output: text(output), started: time(started) }
            }
            Kept::Taken { step, worker } => What::Taken { step, worker },
            Kept::Succeeded { step, output, started } => {
                What::Succeeded { step, output: text(output), started: started.map(time) }
            }
            Kept::Failed { step, error, cause, started } => What::Failed {
                step,
                error: ExecutionError { error, cause: text(cause).as_ref().to_owned() },
                started: started.map(time),
            },
            Kept::Heartbeat { step } => What::Heartbeat { step },
            Kept::Stop { error, cause } => What::Stop { error, cause: cause.map(|c| text(c).as_ref().to_owned()) },
            Kept::Redrive { count } => What::Redrive { count },
        };
        Input { at: time(self.at), what }
    }
}

/// An event as pages have it, JSON text; long text is added to `long`, and named by a field with `Ref` behind its name.
///
/// # Errors
/// When text is too long for anything.
pub(crate) fn event(event: &Event, long: &mut Vec<Payload>) -> Result<String, PayloadError> {
    use std::fmt::Write as _;
    let mut whole = String::with_capacity(192 + event.data.as_ref().map_or(0, |(_, text)| text.len().min(INLINE)));
    // Writing to a String does not fail; kinds and names of fields need no escapes.
    let _ = write!(
        whole,
        "{{\"id\":{},\"previousEventId\":{},\"timestamp\":\"{:.6}\",\"type\":\"{}\"",
        event.id, event.previous, event.at, event.kind
    );
    if let Some((key, details)) = &event.details {
        let _ = write!(whole, ",\"{key}\":{{");
        let mut first = true;
        let mut field = |whole: &mut String, key: &str, text: &str| {
            let comma = if std::mem::take(&mut first) { "" } else { "," };
            let _ = write!(whole, "{comma}{}:{text}", Value::from(key));
        };
        for (key, value) in details.as_object().into_iter().flatten() {
            match value.as_str().filter(|text| text.len() > INLINE) {
                Some(text) => {
                    let payload = Payload::of(text)?;
                    field(&mut whole, &format!("{key}Ref"), &json!(payload.reference).to_string());
                    long.push(payload);
                }
                None => field(&mut whole, key, &value.to_string()),
            }
        }
        if let Some((key, text)) = &event.data {
            match Text::of(text, long)? {
                Text::Here(text) => field(&mut whole, key, &serde_json::to_string(&*text).unwrap_or_default()),
                Text::There(reference) => field(&mut whole, &format!("{key}Ref"), &json!(reference).to_string()),
            }
        }
        whole.push('}');
    }
    whole.push('}');
    Ok(whole)
}

/// An event with all its data, as clients read it.
pub(crate) fn whole(event: &Event) -> Value {
    let mut whole = json!({
        "id": event.id, "previousEventId": event.previous, "timestamp": format!("{:.6}", event.at), "type": event.kind,
    });
    if let Some((key, details)) = &event.details {
        let mut details = details.clone();
        if let Some((key, text)) = &event.data {
            details[*key] = Value::from(&**text);
        }
        whole[*key] = details;
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_come_back() {
        let step = Step { scope: 1, entry: 2, attempt: 3 };
        let at = now();
        let error = ExecutionError::new("E", "c");
        let long: Arc<str> = "x".repeat(INLINE + 1).into();
        let all = [
            What::Start,
            What::Go,
            What::Timer,
            What::Submitted { step, output: "{}".into(), started: at },
            What::Taken { step, worker: Some("w".into()) },
            What::Succeeded { step, output: "1".into(), started: None },
            What::Succeeded { step, output: Arc::clone(&long), started: Some(at) },
            What::Failed { step, error, started: Some(at) },
            What::Heartbeat { step },
            What::Stop { error: None, cause: Some("c".into()) },
            What::Redrive { count: 2 },
        ];
        for what in all {
            let input = Input { at, what };
            let mut payloads = vec![];
            let text = serde_json::to_string(&Record::of(&input, &mut payloads).unwrap()).unwrap();
            let back: Record = serde_json::from_str(&text).unwrap();
            assert_eq!(back.long().is_some(), !payloads.is_empty(), "{text}");
            assert!(text.len() < 300, "{text}");
            let there = back.long().map(|_| Arc::clone(&long));
            assert_eq!(back.input(there), input, "{text}");
        }
    }
}
