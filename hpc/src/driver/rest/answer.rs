//! Answers of slurmrestd: whether one went well is in its error numbers, not in the HTTP status.

use serde_json::Value;

use crate::driver::SlurmError;

/// Slurm's error numbers.
pub(super) mod number {
    /// There is no such job.
    pub(in crate::driver::rest) const INVALID_JOB: i64 = 2017;
    /// It has ended already.
    pub(in crate::driver::rest) const ALREADY_DONE: i64 = 2021;
    /// The controller, or slurmdbd, does not answer, in its several forms.
    pub(in crate::driver::rest) const AWAY: [i64; 8] = [1001, 1002, 1003, 1004, 1005, 1006, 1008, 7000];
    /// Nobody knows whether it was heard.
    pub(in crate::driver::rest) const LOST: [i64; 3] = [5004, 5005, 1900];
    /// Credentials.
    pub(in crate::driver::rest) const DENIED: [i64; 4] = [2002, 1007, 6001, 6004];
    /// A question about accounting found nothing.
    pub(in crate::driver::rest) const NOTHING: i64 = 9003;
    /// It may be taken later.
    pub(in crate::driver::rest) const LATER: [i64; 4] = [11, 2040, 2050, 3003];
}

/// An answer: its body, and what it says went wrong.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
    pub(super) text: String,
}

impl Answer {
    fn errors(&self) -> Vec<(i64, String)> {
        let all = self.body.get("errors").and_then(Value::as_array).into_iter().flatten();
        all.map(|e| {
            let number = ["error_number", "error_code"].iter().find_map(|k| e.get(k).and_then(Value::as_i64));
            let text = |k: &str| e.get(k).and_then(Value::as_str).filter(|s| !s.is_empty());
            let said = [text("description"), text("error")].into_iter().flatten().collect::<Vec<_>>().join(": ");
            (number.unwrap_or_default(), said)
        })
        .collect()
    }

    pub(super) fn has(&self, number: i64) -> bool {
        self.errors().iter().any(|(n, _)| *n == number)
    }

    /// The error that it is, if it is one.
    pub(super) fn error(&self) -> Option<SlurmError> {
        let errors = self.errors();
        if self.status < 400 && errors.is_empty() {
            return None;
        }
        let short = self.text.chars().take(300).collect::<String>();
        let said = errors.iter().map(|(_, t)| t.as_str()).filter(|t| !t.is_empty()).collect::<Vec<_>>().join("; ");
        let said = if said.is_empty() { format!("HTTP {}: {}", self.status, short.trim()) } else { said };
        let any = |numbers: &[i64]| errors.iter().any(|(n, _)| numbers.contains(n));
        // A token that is not valid makes it fail to load anything.
        let token = said.contains("config is unable to load") || said.to_ascii_lowercase().contains("authentication");
        Some(if self.status == 401 || token || any(&number::DENIED) {
            SlurmError::Denied(said)
        } else if any(&number::LOST) {
            SlurmError::Lost(said)
        } else if any(&number::AWAY) || any(&number::LATER) || said.contains("Unable to contact") {
            SlurmError::Busy(said)
        } else if errors.is_empty() && self.status >= 500 {
            SlurmError::Lost(said)
        } else {
            SlurmError::Refused(said)
        })
    }

    pub(super) fn ok(self) -> Result<Self, SlurmError> {
        match self.error() {
            None => Ok(self),
            Some(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(status: u16, body: Value) -> Answer {
        Answer { status, text: body.to_string(), body }
    }

    #[test]
    fn numbers_decide_not_the_status() {
        let error = |status, errors: Value| answer(status, json!({"errors": errors})).error();
        assert!(error(200, json!([])).is_none());
        let refused = error(500, json!([{"error_code": 2000, "error": "Invalid partition name specified"}]));
        assert!(matches!(refused, Some(SlurmError::Refused(m)) if m == "Invalid partition name specified"));
        let token = error(500, json!([{"description": "slurmctld config is unable to load", "error_number": -1}]));
        assert!(matches!(token, Some(SlurmError::Denied(_))));
        assert!(matches!(answer(401, Value::Null).error(), Some(SlurmError::Denied(_))));
        assert!(matches!(answer(502, Value::Null).error(), Some(SlurmError::Lost(_))), "a proxy knows nothing");
        assert!(answer(500, json!({"errors": [{"error_number": 2017}]})).has(number::INVALID_JOB));
    }
}
