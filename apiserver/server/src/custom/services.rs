//! The APIServices of group-versions that definitions make: clients that look there find every group-version.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;
use skiff_core::meta;
use skiff_core::status::Status;
use skiff_storage::{Compare, Error, Op};

use crate::bootstrap::{AUTOMANAGED, api_service};
use crate::registry::storage_error;
use crate::server::Inner;

const GROUP: &str = "apiregistration.k8s.io";
const PLURAL: &str = "apiservices";
/// Rank of these groups and versions, upstream's numbers.
const PRIORITY: (i64, i64) = (1000, 100);
/// What marks those that come and go with definitions.
const WITH_DEFINITIONS: &str = "true";

/// Makes what is missing for a group, and takes away what nothing serves any more. Objects that a person made stay.
///
/// # Errors
/// When the store refuses a write.
pub(super) async fn settle(server: &Arc<Inner>, group: &str) -> Result<(), Status> {
    let served: BTreeSet<String> = {
        let registry = server.registry.load();
        let of_group = registry.iter().filter(|k| k.group() == group && k.strategy.traits().untyped);
        of_group.map(|k| k.resource.version.to_string()).collect()
    };
    let objects = server.collection(GROUP, PLURAL)?;
    for version in &served {
        if objects.peek("", &format!("{version}.{group}")).is_none() {
            api_service(server, group, version, PRIORITY.0, PRIORITY.1, WITH_DEFINITIONS).await?;
        }
    }
    for found in objects.cache.list(&objects.prefix).objects {
        if found.meta.label(AUTOMANAGED) != Some(WITH_DEFINITIONS) {
            continue;
        }
        let object: Value = serde_json::from_slice(&found.value).unwrap_or_default();
        let version = object["spec"]["version"].as_str().unwrap_or_default();
        if object["spec"]["group"] != group || served.contains(version) {
            continue;
        }
        match objects.store.commit(&found.key, Compare::At(found.revision), Op::Delete).await {
            // Whoever changed it in between has made it their own, or it is gone.
            Ok(_) | Err(Error::Conflict { .. }) => {
                tracing::debug!(name = meta::name(&object), "an APIService went with its definition");
            }
            Err(e) => return Err(storage_error(e)),
        }
    }
    Ok(())
}
