//! Subresources, one file per family.

pub mod binding;
pub mod eviction;
mod links;
pub mod proxy;
pub mod reviews;
pub mod scale;
pub mod sockets;
pub mod special;
pub mod streams;
pub mod token;

use std::sync::Arc;

use http::Method;
use serde_json::Value;
use skiff_core::resources::Subresource;
use skiff_core::status::Status;

use crate::admission::{self, Operation};
use crate::registry::Kind;
use crate::request::{Query, ResourceRequest, Verb};
use crate::server::Inner;
use crate::verbs::options::WriteOptions;
use crate::verbs::{Answer, Call};

/// Whether the subresource may take the connection over.
#[must_use]
pub fn takes_stream(t: &ResourceRequest) -> bool {
    matches!(t.subresource.as_str(), "exec" | "attach" | "portforward" | "proxy")
}

/// Whether a call lasts, and is exempt from the request timeout.
#[must_use]
pub fn long_running(target: &ResourceRequest, query: &Query) -> bool {
    takes_stream(target) || target.verb == Verb::Watch || (target.subresource == "log" && query.flag("follow"))
}

/// Resources that are only answered: reviews. `None`: not one of them.
///
/// # Errors
/// As upstream's server answers.
pub async fn virtual_create(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    call: &mut Call,
    obj: &Value,
    options: &WriteOptions,
) -> Result<Option<Answer>, Status> {
    if kind.collection.is_some() {
        return Ok(None);
    }
    if kind.group().is_empty() && kind.plural() == "bindings" {
        let name = skiff_core::meta::name(obj).to_owned();
        call.target.name.clone_from(&name);
        let mut obj = obj.clone();
        admission::review(server, kind, call, Operation::Create, &mut obj, options.dry_run).await?;
        let obj = &obj;
        return binding::bind(server, call, obj, options).await.map(Some);
    }
    reviews::create(server, kind, call, obj, options).map(Some)
}

/// Answers a subresource other than `status`.
///
/// # Errors
/// As upstream's server answers.
pub async fn handle(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    sub: &Subresource,
    method: &Method,
    call: &mut Call,
    raw_query: &str,
) -> Result<Answer, Status> {
    if takes_stream(&call.target) {
        admission::connect(server, kind, call).await?;
    }
    match (kind.plural(), &*sub.name) {
        (_, "scale") => scale::handle(server, kind, sub, call).await,
        ("serviceaccounts", "token") => token::create(server, kind, sub, call).await,
        ("pods", "binding") => {
            let (mut obj, options) = special::body(sub, "", "v1", call, "CreateOptions")?;
            crate::verbs::create::settle_namespace(kind, call, &mut obj)?;
            admission::review(server, kind, call, Operation::Create, &mut obj, options.dry_run).await?;
            binding::bind(server, call, &obj, &options).await
        }
        ("pods", "eviction") => eviction::evict(server, kind, sub, call).await,
        ("pods", "log") => streams::log(server, kind, call, raw_query).await,
        ("pods", "exec" | "attach" | "portforward") => streams::stream(server, kind, method, call, raw_query).await,
        ("pods" | "services" | "nodes", "proxy") => proxy::handle(server, kind, method, call, raw_query).await,
        _ => special::handle(server, kind, sub, call).await,
    }
}
