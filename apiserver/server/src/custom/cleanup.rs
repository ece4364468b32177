//! The end of a definition: its objects are deleted, then its finalizer goes, and with it the definition.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Value, json};
use skiff_core::custom::CLEANUP;
use skiff_core::meta;
use skiff_core::status::Status;
use skiff_storage::{Compare, Error, Op};

use super::PAUSE;
use crate::auth::User;
use crate::registry::{Collection, Kind, object, storage_error};
use crate::request::{Query, ResourceRequest, Verb};
use crate::server::Inner;
use crate::verbs::{Call, delete};

/// Objects that somebody holds are looked at again this often, should a watch have missed their end.
const AGAIN: Duration = Duration::from_secs(5);

/// Pause after a race for the definition.
const RACED: Duration = Duration::from_millis(20);
/// Whoever let the last object go may look for it once more: it is not found, which is said in other words than that
/// nothing is served there. So the paths outlive the last object by this. (Upstream looks every five seconds.)
const LINGER: Duration = Duration::from_millis(500);

/// Deletes the objects of the definition `name` (all there are of `kind`, if it ever had any), waits until they are gone,
/// and takes its finalizer out. Goes on until that worked.
pub(super) async fn run(server: &Arc<Inner>, definitions: &Collection, name: &str, kind: Option<&Arc<Kind>>) {
    let mut waited = false;
    loop {
        // From before the look at the objects, so that no end of one is missed.
        let watcher =
            kind.and_then(|k| k.collection.as_ref()).and_then(|c| c.cache.watch(&c.prefix, c.cache.revision()).ok());
        let left = match kind {
            Some(kind) => objects(server, kind).await,
            None => Ok(0),
        };
        let outcome = match left {
            Ok(0) => {
                if waited {
                    tokio::time::sleep(LINGER).await;
                }
                finish(definitions, name).await
            }
            Ok(_) => {
                waited = true;
                match watcher {
                    Some(mut watcher) => drop(tokio::time::timeout(AGAIN, watcher.next()).await),
                    None => tokio::time::sleep(PAUSE).await,
                }
                continue;
            }
            Err(e) => Err(e),
        };
        match outcome {
            Ok(true) => return,
            // Somebody wrote the definition in between.
            Ok(false) => tokio::time::sleep(RACED).await,
            Err(e) => {
                tracing::warn!(name, why = %e.message, "a definition cannot go yet");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Deletes all objects; how many are still there.
async fn objects(server: &Arc<Inner>, kind: &Arc<Kind>) -> Result<usize, Status> {
    let stored = kind.stored()?;
    stored.consistent().await?;
    let all = stored.cache.list(&stored.prefix).objects;
    let pending = all.iter().any(|o| !serde_json::from_slice::<Value>(&o.value).is_ok_and(|v| meta::deleting(&v)));
    if pending {
        delete::delete_collection(server, kind, &mut call(kind)).await?;
    }
    stored.consistent().await?;
    Ok(stored.cache.list(&stored.prefix).objects.len())
}

fn call(kind: &Kind) -> Call {
    let target = ResourceRequest {
        group: kind.resource.group.to_string(),
        version: kind.resource.version.to_string(),
        namespace: String::new(),
        resource: kind.resource.plural.to_string(),
        name: String::new(),
        subresource: String::new(),
        rest: String::new(),
        verb: Verb::DeleteCollection,
    };
    let user = User {
        name: "system:apiserver".into(),
        groups: vec![crate::auth::identity::MASTERS.into()],
        ..User::default()
    };
    Call {
        user,
        target,
        query: Query::default(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        warnings: vec![],
        emptied: vec![],
        upgrade: None,
        version: http::Version::default(),
    }
}

/// Takes the finalizer out; whether the definition is on its way (or gone already).
async fn finish(definitions: &Collection, name: &str) -> Result<bool, Status> {
    definitions.consistent().await?;
    let Some(found) = definitions.peek("", name) else { return Ok(true) };
    let Ok(mut crd) = serde_json::from_slice::<Value>(&found.value) else { return Ok(true) };
    if !meta::deleting(&crd) {
        return Ok(true);
    }
    let left: Vec<String> = meta::finalizers(&crd).into_iter().filter(|f| *f != CLEANUP).map(str::to_owned).collect();
    let op = if left.is_empty() {
        Op::Delete
    } else {
        meta::meta_mut(&mut crd).insert("finalizers".into(), json!(left));
        Op::Put(object::encode(&crd))
    };
    match definitions.store.commit(&found.key, Compare::At(found.revision), op).await {
        Ok(_) => Ok(true),
        Err(Error::Conflict { .. }) => Ok(false),
        Err(e) => Err(storage_error(e)),
    }
}
