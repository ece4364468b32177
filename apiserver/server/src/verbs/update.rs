//! `update`: PUT of a whole object.

use std::sync::Arc;

use serde_json::Value;
use skiff_core::invalid::Errors;
use skiff_core::meta;
use skiff_core::path::Path;
use skiff_core::status::Status;

use super::create::settle_namespace;
use super::options::{WriteOptions, write_options};
use super::write::{self, Attempt, Old, Part};
use super::{Answer, Call};
use crate::decode::{self, Expected};
use crate::ownership::Owner;
use crate::registry::Kind;
use crate::server::Inner;

/// Writers that race this often in a row are told so.
pub const RACE_TRIES: usize = 256;

/// Replaces the object named in the path.
///
/// # Errors
/// As upstream's server answers.
pub async fn update(server: &Arc<Inner>, kind: &Arc<Kind>, call: &mut Call, part: Part) -> Result<Answer, Status> {
    let options = write_options(call, "UpdateOptions")?;
    let mut obj = decode::body(call, Expected::of(kind), options.validation)?;
    check_identity(kind, call, &mut obj)?;
    replace(server, kind, call, obj, part, &options).await
}

/// Checks name and namespace of a body against the path.
///
/// # Errors
/// 400 on a mismatch.
pub fn check_identity(kind: &Kind, call: &Call, obj: &mut Value) -> Result<(), Status> {
    let want = &call.target.name;
    let name = meta::name(obj);
    if name.is_empty() {
        return Err(Status::bad_request(format!(
            "the name of the object ({want} based on URL) was undeterminable: name must be provided"
        )));
    }
    if name != want {
        return Err(Status::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({want})"
        )));
    }
    settle_namespace(kind, call, obj)
}

/// Replaces the stored object by a decoded one.
///
/// # Errors
/// As [`update`].
pub async fn replace(
    server: &Arc<Inner>,
    kind: &Arc<Kind>,
    call: &mut Call,
    mut obj: Value,
    part: Part,
    options: &WriteOptions,
) -> Result<Answer, Status> {
    let objects = Arc::clone(kind.stored()?);
    let (ns, name) = (call.target.namespace.clone(), call.target.name.clone());
    kind.strategy.default(&mut obj);
    for _ in 0..RACE_TRIES {
        let Some(old) = objects.get(&ns, &name).await? else {
            let uid = meta::uid(&obj);
            if !uid.is_empty() && kind.strategy.traits().create_on_update {
                let why = uid_mismatch(kind, &ns, &name, uid, "");
                return Err(Status::conflict(kind.group(), kind.plural(), &name, why));
            }
            if kind.strategy.traits().create_on_update && part == Part::Main {
                version_number(meta::text(&obj, "resourceVersion"))?;
                crate::chain::authorise_create(server, call)?;
                return write::create(server, kind, call, obj, Owner::Update, options).await;
            }
            return Err(kind.not_found(&name));
        };
        let uid = meta::uid(&obj);
        if !uid.is_empty() && uid != old.meta.uid() {
            let why = uid_mismatch(kind, &ns, &name, uid, &old.meta.uid());
            return Err(Status::conflict(kind.group(), kind.plural(), &name, why));
        }
        let locked = check_version(kind, &obj, &name, old.revision)?;
        let value = kind.load_from(server, &old).await?;
        // A race is final where the client named a version.
        let new = if locked { std::mem::take(&mut obj) } else { obj.clone() };
        let old = Old { object: &old, value };
        let attempt = write::update(server, kind, call, old, new, part, Owner::Update, options, locked).await?;
        if let Attempt::Done(answer) = attempt {
            return Ok(answer);
        }
    }
    Err(Status::modified(kind.group(), kind.plural(), &name))
}

/// Upstream's text for a uid that is not the stored one's, with the key that the object has in upstream's store.
#[must_use]
pub fn uid_mismatch(kind: &Kind, namespace: &str, name: &str, wanted: &str, found: &str) -> String {
    let collection = match (kind.group(), kind.plural()) {
        ("", "endpoints") => "services/endpoints",
        ("", "nodes") => "minions",
        ("", "replicationcontrollers") => "controllers",
        ("", "services") => "services/specs",
        ("networking.k8s.io", "ingresses") => "ingress",
        ("apiextensions.k8s.io", _) => "apiextensions.k8s.io/customresourcedefinitions",
        ("apiregistration.k8s.io", _) => "apiregistration.k8s.io/apiservices",
        (_, plural) => plural,
    };
    let own = if kind.strategy.traits().untyped { kind.group() } else { "" };
    let namespace = if kind.resource.namespaced { namespace } else { "" };
    let key: Vec<&str> = [own, collection, namespace, name].into_iter().filter(|part| !part.is_empty()).collect();
    format!(
        "StorageError: invalid object, Code: 4, Key: /registry/{}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}",
        key.join("/")
    )
}

/// Checks the client's resourceVersion; answers whether there was one.
///
/// # Errors
/// 409 when it is old, 422 when the kind needs one, 500 when it is no number (upstream's accident).
pub fn check_version(kind: &Kind, obj: &Value, name: &str, current: u64) -> Result<bool, Status> {
    match meta::text(obj, "resourceVersion") {
        "" | "0" => {
            if kind.strategy.traits().unconditional_update {
                return Ok(false);
            }
            let mut e = Errors::new();
            let m = Path::new("metadata");
            e.invalid(&m.child("resourceVersion"), 0, "must be specified for an update");
            Err(Status::invalid(kind.group(), kind.plural(), name, &e))
        }
        v => {
            if version_number(v)? == current {
                Ok(true)
            } else {
                Err(Status::modified(kind.group(), kind.plural(), name))
            }
        }
    }
}

/// The number in a client's resourceVersion; 0 when there is none.
fn version_number(version: &str) -> Result<u64, Status> {
    if version.is_empty() {
        return Ok(0);
    }
    version.parse().map_err(|_| {
        let quoted = skiff_core::invalid::quote_str(version);
        Status::untyped(format!("strconv.ParseUint: parsing {quoted}: invalid syntax"))
    })
}
