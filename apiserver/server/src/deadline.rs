//! How long requests may take.

use std::time::Duration;

use skiff_core::status::Status;

use crate::request::{Query, Target, Verb};
use crate::server::Inner;
use crate::subresources;

/// How long a request may take: what it asks for, at most what the server allows. Requests that last have no such limit, and a
/// write is not given up on its way, as short as it asks to be.
///
/// # Errors
/// 400 when what is asked for is no length of time.
pub fn time_limit(server: &Inner, target: &Target, query: &Query) -> Result<Duration, Status> {
    let most = server.config.request_timeout;
    let asked = query.get("timeout").unwrap_or_default();
    if asked.is_empty() || matches!(target, Target::Resource(t) if subresources::long_running(t, query)) {
        return Ok(most);
    }
    let nanos = skiff_core::duration::parse(asked)
        .map_err(|e| Status::bad_request(format!("invalid timeout specified in the request URL - {e}")))?;
    // None, and less than none, is no wish.
    let asked = u64::try_from(nanos).ok().filter(|n| *n > 0 && reads(target)).map(Duration::from_nanos);
    Ok(asked.map_or(most, |asked| asked.min(most)))
}

fn reads(target: &Target) -> bool {
    !matches!(target, Target::Resource(t) if !matches!(t.verb, Verb::Get | Verb::List | Verb::Watch))
}

/// 504 for a request that took longer.
pub fn overdue() -> Status {
    Status::timeout("request did not complete within the allotted timeout", 0)
}
