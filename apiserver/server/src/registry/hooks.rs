//! Rules that need other objects or memory of the server: address allocation, namespace life cycle, default bindings.

use std::sync::Arc;

use futures::future::BoxFuture;
use serde_json::Value;
use skiff_core::invalid::Errors;
use skiff_core::status::Status;

use crate::server::Inner;
use crate::verbs::Call;

/// Undoes what a hook reserved, when the write did not happen; dropped when it did.
pub type Undo = Option<BoxFuture<'static, ()>>;

/// Server-side rules of one resource. Every method has the answer of a resource without such rules.
pub trait Hooks: Send + Sync {
    /// Whether no object may be made now; `Some` refuses.
    fn refuse_create(&self, _name: &str) -> Option<Status> {
        None
    }

    /// Checks of a new object, or of an update of one that was `old`, with what the rules of kinds do not have.
    fn validate(&self, _new: &Value, _old: Option<&Value>, _errors: &mut Errors) {}

    /// After validation of a new object, before it is stored. May fill in allocated values.
    fn before_create<'a>(
        &'a self,
        _server: &'a Arc<Inner>,
        _obj: &'a mut Value,
        _dry_run: bool,
    ) -> BoxFuture<'a, Result<Undo, Status>> {
        Box::pin(async { Ok(None) })
    }

    /// After validation of an update, before it is stored.
    fn before_update<'a>(
        &'a self,
        _server: &'a Arc<Inner>,
        _new: &'a mut Value,
        _old: &'a Value,
        _dry_run: bool,
    ) -> BoxFuture<'a, Result<Undo, Status>> {
        Box::pin(async { Ok(None) })
    }

    /// Before patching or defaulting of an update against the old object, for values that a client may leave out
    /// (a Service's addresses).
    fn patch_allocated(&self, _new: &mut Value, _old: &Value) {}

    /// After an update is stored, before it is answered.
    fn after_update<'a>(&'a self, _server: &'a Arc<Inner>, _new: &'a Value, _old: &'a Value) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    /// After an object is gone from the store, before that is answered.
    fn after_delete<'a>(&'a self, _server: &'a Arc<Inner>, _obj: &'a Value) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    /// The answer to a `get` or `list` of a resource that is computed when it is asked for; `None` when objects are stored.
    fn computed<'a>(
        &'a self,
        _server: &'a Arc<Inner>,
        _call: &'a Call,
    ) -> Option<BoxFuture<'a, Result<Value, Status>>> {
        None
    }

    /// Whether this object may be deleted at all; `Some` refuses.
    fn refuse_delete(&self, _name: &str) -> Option<Status> {
        None
    }
}

/// No rules.
pub struct NoHooks;

impl Hooks for NoHooks {}
