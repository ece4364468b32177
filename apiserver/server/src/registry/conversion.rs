//! Objects of definitions whose versions a webhook converts (ConversionReview).
//!
//! Stored objects may be in any version that was once the stored one. What is read is brought to the request's version
//! before anything looks at it, a list in one call; what is written is brought to the stored version. Of the metadata a
//! webhook may change labels and annotations only: the rest is put back.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use skiff_core::invalid::quote_str;
use skiff_core::meta;
use skiff_core::resources::group_version;
use skiff_core::status::Status;
use skiff_storage::Entry;
use skiff_storage::cache::Object;
use tokio::time::Instant;

use super::{Kind, object};
use crate::outward::Endpoint;
use crate::server::Inner;
use crate::verbs::{Answer, Content};

const GROUP: &str = "apiextensions.k8s.io";
/// What a conversion may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How a definition's versions become one another.
#[derive(Debug)]
pub struct Conversion {
    endpoint: Endpoint,
    /// Version of ConversionReview.
    review: &'static str,
}

impl Conversion {
    /// Reads `spec.conversion`; `None` when versions differ in their name alone.
    #[must_use]
    pub fn parse(conversion: &Value) -> Option<Arc<Self>> {
        if conversion["strategy"] != "Webhook" {
            return None;
        }
        let webhook = &conversion["webhook"];
        let known = |v: &Value| match v.as_str() {
            Some("v1") => Some("v1"),
            Some("v1beta1") => Some("v1beta1"),
            _ => None,
        };
        let review = webhook["conversionReviewVersions"].as_array().into_iter().flatten().find_map(known);
        Some(Arc::new(Self { endpoint: Endpoint::parse(&webhook["clientConfig"]), review: review.unwrap_or("v1") }))
    }

    /// Converts objects, those that are not of the version yet.
    async fn convert(
        &self,
        server: &Inner,
        kind: &str,
        api_version: &str,
        mut objects: Vec<Value>,
    ) -> Result<Vec<Value>, Status> {
        let other: Vec<usize> = (0..objects.len()).filter(|i| objects[*i]["apiVersion"] != api_version).collect();
        if other.is_empty() {
            return Ok(objects);
        }
        let given: Vec<&Value> = other.iter().map(|i| &objects[*i]).collect();
        let what = format!("{api_version}, Kind={kind}");
        let failed = |why: &str| Status::untyped(format!("conversion webhook for {what} {why}"));
        let uid = uuid::Uuid::new_v4().to_string();
        let review = json!({"kind": "ConversionReview", "apiVersion": format!("{GROUP}/{}", self.review),
            "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": given}});
        let called =
            server.outward.post(server, &self.endpoint, review.to_string().into(), TIMEOUT, Instant::now() + TIMEOUT);
        let answer = called.await.map_err(|e| failed(&format!("failed: {e}")))?;
        let response = &answer["response"];
        if !response.is_object() {
            return Err(failed("failed: no response provided"));
        }
        let echoed = response["uid"].as_str().unwrap_or_default();
        if echoed != uid {
            let why = format!("failed: expected response.uid={}, got {}", quote_str(&uid), quote_str(echoed));
            return Err(failed(&why));
        }
        if response["result"]["status"] != "Success" {
            let why = response["result"]["message"].as_str().filter(|m| !m.is_empty());
            return Err(failed(&format!("failed: {}", why.unwrap_or("unknown error"))));
        }
        let converted = response["convertedObjects"].as_array().cloned().unwrap_or_default();
        if converted.len() != given.len() {
            let why = format!("returned {} objects, expected {}", converted.len(), given.len());
            return Err(failed(&why));
        }
        for (n, (i, mut new)) in other.iter().zip(converted).enumerate() {
            check(&objects[*i], &new, api_version)
                .map_err(|why| failed(&format!("returned invalid converted object at index {n}: {why}")))?;
            restore(&mut new, &objects[*i])
                .map_err(|why| failed(&format!("returned invalid metadata in converted object at index {n}: {why}")))?;
            objects[*i] = new;
        }
        Ok(objects)
    }
}

/// An object with other bytes.
#[must_use]
pub fn with_value(o: &Object, value: bytes::Bytes) -> Object {
    let entry = Entry { key: Arc::clone(&o.key), value, revision: o.revision };
    Object { entry: Arc::new(entry), meta: o.meta.clone() }
}

/// Whether it is the same object in the version that was asked for.
fn check(old: &Value, new: &Value, api_version: &str) -> Result<(), String> {
    let text = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
    if text(new, "apiVersion") != api_version {
        return Err(format!("invalid apiVersion: expected {api_version}, got {}", text(new, "apiVersion")));
    }
    if text(new, "kind") != text(old, "kind") {
        return Err(format!("invalid kind: expected {}, got {}", text(old, "kind"), text(new, "kind")));
    }
    for key in ["name", "namespace", "uid"] {
        let (was, is) = (meta::text(old, key), meta::text(new, key));
        if was != is {
            return Err(format!("must have the same {key}: {was} != {is}"));
        }
    }
    Ok(())
}

/// Puts back of the metadata what is not the webhook's to change.
fn restore(new: &mut Value, old: &Value) -> Result<(), String> {
    let mut kept = meta::meta(old).cloned().unwrap_or_default();
    for key in ["labels", "annotations"] {
        match new["metadata"].get(key).filter(|v| !v.is_null()) {
            Some(Value::Object(texts)) if texts.values().all(Value::is_string) => {
                kept.insert(key.to_owned(), Value::Object(texts.clone()));
            }
            Some(_) => return Err(format!("metadata.{key} is no map of texts")),
            None => drop(kept.remove(key)),
        }
    }
    new["metadata"] = Value::Object(kept);
    Ok(())
}

impl Kind {
    /// Whether a webhook may be needed to read or write objects.
    #[must_use]
    pub fn converts(&self) -> bool {
        self.conversion.is_some() && !self.verbatim()
    }

    /// Like [`Kind::load`], where a webhook may have to be asked.
    ///
    /// # Errors
    /// As [`Kind::load`]; 500 in upstream's words when the conversion fails.
    pub async fn load_from(&self, server: &Inner, object: &Object) -> Result<Value, Status> {
        if !self.converts() {
            return self.load(object);
        }
        let stored =
            serde_json::from_slice(&object.value).map_err(|e| Status::internal(format!("stored object: {e}")))?;
        let mut value = self.converted(server, &self.api_version(), stored).await?;
        self.strategy.read(&mut value);
        Ok(value)
    }

    async fn converted(&self, server: &Inner, api_version: &str, value: Value) -> Result<Value, Status> {
        let Some(conversion) = &self.conversion else { return Ok(value) };
        let mut out = conversion.convert(server, &self.resource.kind, api_version, vec![value]).await?;
        out.pop().ok_or_else(|| Status::internal("a conversion lost an object"))
    }

    /// Stored objects as this version has them: their bytes, and the fields they are selected by, are of this version
    /// afterwards.
    ///
    /// # Errors
    /// As [`Kind::load_from`].
    pub async fn present(&self, server: &Inner, objects: Vec<Arc<Object>>) -> Result<Vec<Arc<Object>>, Status> {
        let Some(conversion) = self.conversion.as_ref().filter(|_| self.converts()) else { return Ok(objects) };
        let api_version = self.api_version();
        let parsed: Vec<Value> = objects.iter().map(|o| serde_json::from_slice(&o.value).unwrap_or_default()).collect();
        let other: Vec<bool> = parsed.iter().map(|v| v["apiVersion"] != api_version).collect();
        let converted = conversion.convert(server, &self.resource.kind, &api_version, parsed).await?;
        let renewed = |((o, v), other): ((Arc<Object>, Value), bool)| {
            if !other {
                return o;
            }
            // At the version it had, which of a deletion is not that of its last write.
            let revision = meta::text(&v, "resourceVersion").parse().unwrap_or(o.revision);
            let mut new = with_value(&o, object::encode(&v).stamp(revision));
            new.meta.fields = super::selectable(&*self.strategy, &v);
            Arc::new(new)
        };
        Ok(objects.into_iter().zip(converted).zip(other).map(renewed).collect())
    }

    /// An answer in which stored bytes are of the version that is answered.
    ///
    /// # Errors
    /// As [`Kind::load_from`].
    pub async fn present_answer(server: &Inner, answer: Answer) -> Result<Answer, Status> {
        match answer {
            Answer::Object { code, kind, object: Content::Stored(bytes) } if kind.converts() => {
                let stored =
                    serde_json::from_slice(&bytes).map_err(|e| Status::internal(format!("stored object: {e}")))?;
                let mut value = kind.converted(server, &kind.api_version(), stored).await?;
                kind.strategy.read(&mut value);
                Ok(Answer::Object { code, kind, object: Content::Parsed(value) })
            }
            other => Ok(other),
        }
    }

    /// Like [`Kind::to_storage`], where a webhook may have to be asked; borrowed where this version is the stored one.
    ///
    /// # Errors
    /// 500 in upstream's words when the conversion fails.
    pub async fn stored_form<'v>(&self, server: &Inner, value: &'v Value) -> Result<Cow<'v, Value>, Status> {
        let Some((group, version)) = self.resource.storage.as_ref().filter(|_| self.conversion.is_some()) else {
            let same = self.is_storage_version();
            return Ok(if same { Cow::Borrowed(value) } else { Cow::Owned(self.to_storage(value.clone())) });
        };
        Ok(Cow::Owned(self.converted(server, &group_version(group, version), value.clone()).await?))
    }

    /// An object of this version as another version of the same resource has it.
    ///
    /// # Errors
    /// 500 in upstream's words when the conversion fails.
    pub async fn translate(&self, server: &Inner, to: &Self, value: Value) -> Result<Value, Status> {
        let mut v = if self.conversion.is_some() {
            self.converted(server, &to.api_version(), value).await?
        } else {
            let mut v = self.to_storage(value);
            super::convert::convert(&mut v, &to.api_version());
            v
        };
        if !to.verbatim() {
            to.strategy.read(&mut v);
        }
        Ok(v)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (what the webhook made, whether it is accepted)
    #[test]
    fn metadata_is_kept() {
        let old = json!({"apiVersion": "e.com/v1", "kind": "T", "metadata": {"name": "a", "uid": "u", "resourceVersion": "7",
            "labels": {"x": "1"}, "annotations": {"y": "2"}}});
        let with = |m: Value| json!({"apiVersion": "e.com/v2", "kind": "T", "metadata": m, "spec": 1});
        let mut new = with(json!({"name": "a", "uid": "u", "labels": {"z": "3"}, "finalizers": ["f"]}));
        assert_eq!(check(&old, &new, "e.com/v2"), Ok(()));
        restore(&mut new, &old).unwrap();
        assert_eq!(new["metadata"], json!({"name": "a", "uid": "u", "resourceVersion": "7", "labels": {"z": "3"}}));
        for bad in [json!({"name": "b", "uid": "u"}), json!({"name": "a"})] {
            assert!(check(&old, &with(bad), "e.com/v2").is_err());
        }
        assert!(restore(&mut with(json!({"name": "a", "labels": {"a": 1}})), &old).is_err());
    }
}
