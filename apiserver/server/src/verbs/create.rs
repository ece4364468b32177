//! `create`.

use std::sync::Arc;

use skiff_core::meta;
use skiff_core::status::Status;

use super::options::write_options;
use super::{Answer, Call, write};
use crate::decode::{self, Expected};
use crate::negotiate::body_encoding;
use crate::ownership::Owner;
use crate::registry::Kind;
use crate::server::Inner;

/// Creates the object in the body.
///
/// # Errors
/// As upstream's server answers.
pub async fn create(server: &Arc<Inner>, kind: &Arc<Kind>, call: &mut Call) -> Result<Answer, Status> {
    // Of the verbs with a body only this one looks at its type before the options.
    body_encoding(Some(call.header("content-type")), !kind.strategy.traits().untyped)?;
    let options = write_options(call, "CreateOptions")?;
    let mut obj = decode::body(call, Expected::of(kind), options.validation)?;
    settle_namespace(kind, call, &mut obj)?;
    if let Some(answer) = crate::subresources::virtual_create(server, kind, call, &obj, &options).await? {
        return Ok(answer);
    }
    write::create(server, kind, call, obj, Owner::Update, &options).await
}

/// Fills in the namespace of the path, or complains when the body names another.
///
/// # Errors
/// 400 on a mismatch.
pub fn settle_namespace(kind: &Kind, call: &Call, obj: &mut serde_json::Value) -> Result<(), Status> {
    let ns = meta::namespace(obj);
    if !kind.resource.namespaced {
        // A namespace on a cluster-scoped object is dropped, as upstream does.
        meta::meta_mut(obj).remove("namespace");
        return Ok(());
    }
    if ns.is_empty() {
        meta::meta_mut(obj).insert("namespace".into(), call.target.namespace.as_str().into());
    } else if ns != call.target.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}
