//! Which retrier or catcher an error meets, and how long a retry waits.

use std::time::Duration;

use crate::definition::{Catcher, Jitter, Retrier};
use crate::error;

/// Whether a list of names in `ErrorEquals` has the error.
///
/// States.ALL has any but States.DataLimitExceeded and States.Runtime, States.TaskFailed any but States.Timeout;
/// States.Timeout has a missed heartbeat too, which is a time-out in the service's words.
#[must_use]
pub fn matches(error_equals: &[String], error: &str) -> bool {
    error_equals.iter().any(|name| {
        name == error
            || match name.as_str() {
                error::ALL => error != error::DATA_LIMIT_EXCEEDED && error != error::RUNTIME,
                error::TASK_FAILED => error != error::TIMEOUT,
                error::TIMEOUT => error == error::HEARTBEAT_TIMEOUT,
                _ => false,
            }
    })
}

/// The first retrier for the error. When its attempts are used up no later one is asked: the catchers are.
#[must_use]
pub fn find(retriers: &[Retrier], error: &str) -> Option<usize> {
    retriers.iter().position(|retrier| matches(&retrier.error_equals, error))
}

/// The first catcher for the error.
#[must_use]
pub fn find_catcher(catchers: &[Catcher], error: &str) -> Option<usize> {
    catchers.iter().position(|catcher| matches(&catcher.error_equals, error))
}

/// The pause before a retry: `attempt` counts from 0 for the first one, `random` is from 0 to 1 for the jitter.
#[must_use]
pub fn delay(retrier: &Retrier, attempt: u64, random: f64) -> Duration {
    #[allow(clippy::cast_precision_loss, reason = "seconds are far below 2^52")]
    let (interval, longest) =
        (retrier.interval_seconds as f64, retrier.max_delay_seconds.unwrap_or(crate::definition::MAX_SECONDS) as f64);
    let exponent = i32::try_from(attempt).unwrap_or(i32::MAX);
    let seconds = (interval * retrier.backoff_rate.powi(exponent)).min(longest);
    let seconds = match retrier.jitter {
        Jitter::None => seconds,
        Jitter::Full => seconds * random.clamp(0.0, 1.0),
    };
    // Not a number only when both factors are out of any range: then the longest pause.
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::from_secs_f64(longest))
}
