//! What calls of a revision may cost.

use std::time::Duration;

use crate::api::{Code, Isolation};
use crate::scale::concurrency;

/// What a revision's calls may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Time for an answer.
    pub timeout: Duration,
    /// Bytes of a request.
    pub request: u64,
    /// Bytes of an answer.
    pub response: u64,
    /// Requests on one instance at a time; 0 is no limit.
    pub concurrency: u32,
}

impl Limits {
    /// Those that code says, with defaults where it says nothing.
    #[must_use]
    pub fn of(code: &Code, class: Isolation) -> Self {
        let bytes = |given: Option<i64>, default: u64| given.and_then(|n| u64::try_from(n).ok()).unwrap_or(default);
        Self {
            timeout: Duration::from_secs(u64::from(code.timeout_seconds.unwrap_or(300))),
            request: bytes(code.max_request_bytes, 16 << 20),
            response: bytes(code.max_response_bytes, 64 << 20),
            concurrency: concurrency(code, class),
        }
    }
}
