//! What is to be done with a call, and when. No I/O.

use std::time::Duration;

use http::StatusCode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use rand::Rng as _;

use crate::api::{Asynchronous, CallState, FunctionCall};
use crate::gateway::invoke::{Answer, InvokeError};

/// How long a lease holds when nobody renews it.
pub const LEASE: Duration = Duration::from_secs(30);
/// Longest pause between tries.
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// How often the callback is tried.
pub const CALLBACK_TRIES: u32 = 8;

/// When something is to be done with a call, and whether that is a try of it. `holder` is who asks: `NODE/RUN`.
#[must_use]
pub fn due(call: &FunctionCall, holder: &str) -> Option<(Timestamp, bool)> {
    let made = call.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |t| t.0);
    let Some(status) = &call.status else { return Some((made, true)) };
    match status.state {
        CallState::Pending => Some((status.next_attempt_at.as_ref().map_or(made, |t| t.0), true)),
        CallState::Running => {
            let until = status.lease_until.as_ref().map_or(made, |t| t.0);
            let of = status.lease_holder.as_deref().unwrap_or_default();
            // Of an earlier run of the same process: nobody works on it any more.
            let stale = of != holder && of.rsplit_once('/').map(|(n, _)| n) == holder.rsplit_once('/').map(|(n, _)| n);
            Some((if stale { made } else { until }, true))
        }
        CallState::Succeeded | CallState::Failed if calls_back(call) => {
            Some((status.next_attempt_at.as_ref().map_or(made, |t| t.0), false))
        }
        CallState::Succeeded | CallState::Failed => {
            Some((status.expires_at.as_ref().or(status.finished_at.as_ref()).map_or(made, |t| t.0), false))
        }
    }
}

/// Whether the callback is still to be told.
#[must_use]
pub fn calls_back(call: &FunctionCall) -> bool {
    call.status.as_ref().is_some_and(|s| s.callback_state.as_deref() == Some("Pending"))
}

/// What a try came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It was answered.
    Succeeded,
    /// It is tried again after at least this pause.
    Again(Duration),
    /// It will not be tried again.
    Failed,
}

/// What a try came to; `attempts` were made, this one too.
#[must_use]
pub fn outcome(tried: &Result<Answer, InvokeError>, attempts: u32, settings: &Asynchronous) -> Outcome {
    let (may_pass, wish) = match tried {
        Ok(answer) if answer.status.is_success() || answer.status.is_redirection() => return Outcome::Succeeded,
        Ok(answer) => (may_pass(answer.status), retry_after(answer)),
        Err(e) => (e.may_pass(), e.retry_after()),
    };
    if !may_pass || attempts > settings.retries.unwrap_or(3) {
        return Outcome::Failed;
    }
    let base = Duration::from_secs(settings.backoff_seconds.unwrap_or(1).into());
    Outcome::Again(backoff(base, attempts).max(wish.unwrap_or_default()).min(PAUSE_MAX))
}

/// The pause after so many tries: doubled each time, up to a fifth longer by chance so that calls that failed together do not
/// come back together.
#[must_use]
pub fn backoff(base: Duration, attempts: u32) -> Duration {
    let doubled = base.saturating_mul(1_u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX)).min(PAUSE_MAX);
    doubled.mul_f64(1.0 + rand::rng().random_range(0.0..0.2))
}

fn may_pass(status: StatusCode) -> bool {
    match status {
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS => true,
        StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED => false,
        other => other.is_server_error(),
    }
}

fn retry_after(answer: &Answer) -> Option<Duration> {
    let seconds = answer.headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// A time from now, in whole seconds, never earlier than asked.
#[must_use]
pub fn after(pause: Duration) -> Time {
    let at = Timestamp::now() + pause;
    let whole = at.as_second() + i64::from(at.subsec_nanosecond() > 0);
    Time(Timestamp::from_second(whole).unwrap_or(at))
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use serde_json::{Value, json};

    use super::*;

    fn answer(status: u16, after: Option<&str>) -> Result<Answer, InvokeError> {
        let mut headers = HeaderMap::new();
        if let Some(after) = after {
            headers.insert("retry-after", after.parse().unwrap());
        }
        Ok(Answer { status: StatusCode::from_u16(status).unwrap(), headers, body: bytes::Bytes::new() })
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let settings = Asynchronous { retries: Some(2), backoff_seconds: Some(4), ..Asynchronous::default() };
        let again = |o: &Outcome| matches!(o, Outcome::Again(_));
        for status in [200, 204, 302] {
            assert_eq!(outcome(&answer(status, None), 1, &settings), Outcome::Succeeded, "{status}");
        }
        for status in [408, 425, 429, 500, 502, 503, 504] {
            assert!(again(&outcome(&answer(status, None), 1, &settings)), "{status}");
            assert!(again(&outcome(&answer(status, None), 2, &settings)), "{status}");
            assert_eq!(
                outcome(&answer(status, None), 3, &settings),
                Outcome::Failed,
                "{status}: two retries are three tries"
            );
        }
        for status in [400, 401, 404, 410, 422, 501] {
            assert_eq!(outcome(&answer(status, None), 1, &settings), Outcome::Failed, "{status}");
        }
        assert!(again(&outcome(&Err(InvokeError::Broken("x".into())), 1, &settings)));
        assert_eq!(outcome(&Err(InvokeError::BadRequest("x".into())), 1, &settings), Outcome::Failed);
        let Outcome::Again(pause) = outcome(&answer(429, Some("90")), 1, &settings) else { panic!() };
        assert_eq!(pause, Duration::from_secs(90), "the function's own wish");
    }

    #[test]
    fn pauses_double_up_to_an_hour() {
        let base = Duration::from_secs(1);
        for (attempts, seconds) in [(1, 1.0), (2, 2.0), (5, 16.0), (13, 3600.0), (40, 3600.0), (u32::MAX, 3600.0)] {
            let pause = backoff(base, attempts).as_secs_f64();
            assert!((seconds..seconds * 1.2).contains(&pause), "{attempts}: {pause}");
        }
    }

    #[test]
    fn leases_are_respected() {
        let call = |status: Value| -> FunctionCall {
            serde_json::from_value(json!({"apiVersion": "skiff.dev/v1", "kind": "FunctionCall",
                "metadata": {"name": "c", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"function": "f"}, "status": status}))
            .unwrap()
        };
        let at = |status: Value| due(&call(status), "n1/b").map(|(t, tries)| (t.to_string(), tries)).unwrap();
        let made = "2026-01-01T00:00:00Z".to_owned();
        let until = "2026-01-01T00:05:00Z".to_owned();
        let lease = |holder: &str| json!({"state": "Running", "leaseHolder": holder, "leaseUntil": until});
        assert_eq!(at(json!({})), (made.clone(), true));
        assert_eq!(at(json!({"state": "Pending", "nextAttemptAt": until})), (until.clone(), true));
        assert_eq!(at(lease("n2/a")), (until.clone(), true), "another's");
        assert_eq!(at(lease("n1/b")), (until.clone(), true), "its own, which it works on");
        assert_eq!(at(lease("n1/a")), (made.clone(), true), "that of its earlier run");
        assert_eq!(at(json!({"state": "Failed", "expiresAt": until})), (until, false));
        assert_eq!(
            at(json!({"state": "Failed", "expiresAt": "2026-02-01T00:00:00Z", "callbackState": "Pending"})),
            (made, false)
        );
    }
}
