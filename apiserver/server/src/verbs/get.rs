//! `get`: one object.

use std::sync::Arc;

use skiff_core::status::Status;
use tokio::time::Instant;

use super::{Answer, Call, Content};
use crate::registry::{FRESH_DEADLINE, Kind, storage_error};

/// Answers one object.
///
/// # Errors
/// 404; 500 or 504 for an impossible resourceVersion.
pub async fn get(kind: &Arc<Kind>, call: &Call) -> Result<Answer, Status> {
    let objects = kind.stored()?;
    let (ns, name) = (&call.target.namespace, &call.target.name);
    match call.query.get("resourceVersion").unwrap_or_default() {
        "" => drop(objects.consistent().await?),
        "0" => {}
        v => {
            // Upstream answers a version that is no number here with an untyped 500, and clients know it so.
            let revision = super::list::parse_revision(v).map_err(Status::untyped)?;
            objects.cache.fresh(revision, Instant::now() + FRESH_DEADLINE).await.map_err(storage_error)?;
        }
    }
    let found = objects.peek(ns, name).ok_or_else(|| kind.not_found(name))?;
    Ok(Answer::Object { code: 200, kind: Arc::clone(kind), object: Content::Stored(found.value.clone()) })
}
