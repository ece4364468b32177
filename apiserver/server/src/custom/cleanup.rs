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

use crate::auth::User;
use crate::registry::{Collection, Kind, object, storage_error};
use crate::request::{Query, ResourceRequest, Verb};
use crate::server::Inner;
use crate::verbs::{Call, delete};

/// Objects that somebody holds are looked at again this often, should a watch have missed their end.
const AGAIN: Duration = Duration::from_secs(5);

/// Deletes the objects of the definition `name` (served as group and plural, if it is), waits until they are gone, and
/// takes its finalizer out. Goes on until that worked.
pub(super) async fn run(server: &Arc<Inner>, definitions: &Collection, name: &str, served: Option<(String, String)>) {
    loop {
        let left = match &served {
            Some((group, plural)) => objects(server, group, plural).await,
            None => Ok(0),
        };
        let done = match left {
            Ok(0) => finish(definitions, name).await,
            Ok(_) => Ok(false),
            Err(e) => Err(e),
        };
        match done {
            Ok(true) => return,
            Ok(false) => {}
            Err(e) => tracing::warn!(name, why = %e.message, "a definition cannot go yet"),
        }
        let waited = async {
            let (group, plural) = served.as_ref()?;
            let kind = server.registry.load().any_version(group, plural).cloned()?;
            let objects = kind.collection.as_ref()?;
            let mut watcher = objects.cache.watch(&objects.prefix, objects.cache.revision()).ok()?;
            watcher.next().await
        };
        // Without objects to wait for, only the pause is left.
        if tokio::time::timeout(AGAIN, waited).await.is_ok_and(|w| w.is_none()) {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Deletes all objects; how many are still there.
async fn objects(server: &Arc<Inner>, group: &str, plural: &str) -> Result<usize, Status> {
    let kind = server.registry.load().any_version(group, plural).cloned();
    let Some(kind) = kind else { return Ok(0) };
    let stored = kind.stored()?;
    stored.consistent().await?;
    let all = stored.cache.list(&stored.prefix).objects;
    let pending = all.iter().any(|o| !serde_json::from_slice::<Value>(&o.value).is_ok_and(|v| meta::deleting(&v)));
    if pending {
        delete::delete_collection(server, &kind, &mut call(&kind)).await?;
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
        upgrade: None,
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
