//! Uploads: an archive in ConfigMaps, as it is larger than one object may be.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::Session;

/// Bytes of an archive in one ConfigMap; with names and base64 it stays below the 1 MiB and more that stores take.
pub const PART: usize = 900 * 1024;
/// Key of a part in its ConfigMap.
const KEY: &str = "data";

/// Stores the parts of an archive as immutable ConfigMaps `NAME-0`, `NAME-1`, …; the name must say what is in it, since one that is
/// there already is left as it is.
///
/// # Errors
/// When one cannot be stored.
pub async fn put(
    session: &Session,
    name: &str,
    parts: &[Vec<u8>],
    labels: &[(&str, &str)],
    manager: &str,
) -> anyhow::Result<()> {
    let api = session.api::<ConfigMap>();
    for (number, part) in parts.iter().enumerate() {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(format!("{name}-{number}"));
        object.metadata.labels = Some(labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
        object.binary_data = Some(BTreeMap::from([(KEY.to_owned(), ByteString(part.clone()))]));
        object.immutable = Some(true);
        let params = PostParams { field_manager: Some(manager.to_owned()), ..PostParams::default() };
        match api.create(&params, &object).await {
            Err(kube::Error::Api(s)) if s.code == 409 && s.reason == "AlreadyExists" => {}
            made => drop(made?),
        }
    }
    Ok(())
}

/// Gives the parts to an object: they go with it.
///
/// # Errors
/// When one cannot be changed.
pub async fn adopt(session: &Session, name: &str, parts: u32, owner: Option<OwnerReference>) -> anyhow::Result<()> {
    let owner = owner.map(|mut o| {
        o.controller = None;
        o
    });
    let patch = json!({"metadata": {"ownerReferences": owner.into_iter().collect::<Vec<_>>()}});
    for number in 0..parts {
        let params = PatchParams::default();
        session.api::<ConfigMap>().patch(&format!("{name}-{number}"), &params, &Patch::Merge(&patch)).await?;
    }
    Ok(())
}
