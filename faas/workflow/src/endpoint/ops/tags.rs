//! Tags: kept in an annotation of the machine or activity.

use std::collections::BTreeMap;

use kube::api::{ObjectMeta, Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Call, TAGS, activities};
use crate::api::{Workflow, WorkflowActivity};
use crate::endpoint::arn::Resource;
use crate::endpoint::error::{Answer, Fault};

/// Tags of one resource.
const TAGS_MAX: usize = 50;
/// Tries of a change that meets another.
const TRIES: u32 = 8;

type Tags = BTreeMap<String, String>;

fn read(metadata: &ObjectMeta) -> Tags {
    let text = metadata.annotations.as_ref().and_then(|a| a.get(TAGS));
    text.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default()
}

/// Adds the tags of a request.
pub(super) fn set(metadata: &mut ObjectMeta, given: &Value) -> Result<(), Fault> {
    let Some(given) = given.as_array().filter(|g| !g.is_empty()) else { return Ok(()) };
    let mut tags = read(metadata);
    for tag in given {
        let part = |member: &str| tag[member].as_str().unwrap_or_default().to_owned();
        tags.insert(part("key"), part("value"));
    }
    if tags.len() > TAGS_MAX {
        return Err(Fault::new("TooManyTags", format!("Too many tags: a resource has at most {TAGS_MAX}")));
    }
    metadata.annotations.get_or_insert_default().insert(TAGS.to_owned(), json!(tags).to_string());
    Ok(())
}

/// Changes the tags of whatever the request names.
async fn change(call: &Call<'_>, with: impl Fn(&mut ObjectMeta) -> Result<(), Fault>) -> Answer {
    let arn = call.required("resourceArn");
    for _ in 0..TRIES {
        let mut metadata = metadata(call).await?;
        with(&mut metadata)?;
        let annotation = metadata.annotations.as_ref().and_then(|a| a.get(TAGS)).cloned();
        let patch =
            json!({"metadata": {"resourceVersion": metadata.resource_version, "annotations": {TAGS: annotation}}});
        let name = metadata.name.unwrap_or_default();
        let patched = match call.resource("resourceArn")? {
            Resource::Activity { .. } => patch_one::<WorkflowActivity>(call, &name, patch).await,
            _ => patch_one::<Workflow>(call, &name, patch).await,
        };
        match patched {
            Err(kube::Error::Api(s)) if s.code == 409 => {}
            Err(kube::Error::Api(s)) if s.code == 404 => return Err(Fault::absent("ResourceNotFound", arn)),
            other => return other.map(|()| Value::Null).map_err(Into::into),
        }
    }
    Err(Fault::new("ServiceUnavailable", "others change it all the time"))
}

async fn patch_one<K>(call: &Call<'_>, name: &str, patch: Value) -> Result<(), kube::Error>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    call.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

/// The metadata of what the request names.
async fn metadata(call: &Call<'_>) -> Result<ObjectMeta, Fault> {
    let arn = call.required("resourceArn");
    let absent = |_| Fault::absent("ResourceNotFound", arn);
    match call.resource("resourceArn")? {
        Resource::Machine { name, label: None } => Ok(call.workflow(&name, arn).await.map_err(absent)?.metadata),
        Resource::Activity { name } => Ok(activities::find(call, &name, arn).await.map_err(absent)?.metadata),
        _ => Err(call.wrong("resourceArn")),
    }
}

pub(super) async fn add(call: &Call<'_>) -> Answer {
    change(call, |m| set(m, &call.request["tags"])).await
}

pub(super) async fn remove(call: &Call<'_>) -> Answer {
    change(call, |m| {
        let mut tags = read(m);
        tags.retain(|key, _| !call.request["tagKeys"].as_array().is_some_and(|k| k.contains(&json!(key))));
        m.annotations.get_or_insert_default().insert(TAGS.to_owned(), json!(tags).to_string());
        Ok(())
    })
    .await
}

pub(super) async fn list(call: &Call<'_>) -> Answer {
    let tags: Vec<Value> =
        read(&metadata(call).await?).iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    Ok(json!({"tags": tags}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_bounded_and_the_last_counts() {
        let mut metadata = ObjectMeta::default();
        set(&mut metadata, &json!([{"key": "a", "value": "1"}, {"key": "a", "value": "2"}])).unwrap();
        assert_eq!(read(&metadata)["a"], "2");
        let many: Vec<Value> = (0..50).map(|i| json!({"key": i.to_string()})).collect();
        assert_eq!(set(&mut metadata, &json!(many)).unwrap_err().name, "TooManyTags");
    }
}
