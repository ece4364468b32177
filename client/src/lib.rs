//! What the components share as clients of the API: one watch for all kinds.
//!
//! A watcher that is generic in its kind is compiled once per kind, with everything it calls: fifty of them were a tenth of the
//! program. Here there is one, of objects whose text is not looked at beyond what a watch has to know; the text becomes an
//! object of its kind at the very end.
//!
//! Limit: events must come as `{"type": ..., "object": ...}` in this order, as every server of Kubernetes' API writes them.

mod pace;

use std::borrow::Cow;
use std::fmt::Debug;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::wait::Condition;
use kube::runtime::watcher::{self, Error, Event};
use kube::{Api, Resource};
use serde::de::{self, DeserializeOwned};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Follows the objects of a kind: [`watcher::watcher`], and after each error a pause that grows, up to 5 s while nobody
/// answers and up to 30 s while the server refuses. The stream never ends by itself.
///
/// An object that is not one of `K` (stored under an older definition, say) is left out with a warning: it must not keep the
/// others from being seen.
pub fn watch<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Result<Event<K>, Error>> + Send + Unpin
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Debug + Send + 'static,
{
    follow(erased(api), config).filter_map(|event| std::future::ready(typed(event)))
}

/// The same for a type that is told its kind at run time, or for a part of the objects, as their metadata alone. It is compiled
/// once for each such type, and an object that is not one of `K` is an error.
pub fn watch_dynamic<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = Result<Event<K>, Error>> + Send + Unpin
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    pace::events(watcher::watcher(api, config))
}

/// Follows one object: what it is now, then every change; `None` while there is none. Errors end no stream; what comes after
/// one comes after a pause.
pub fn watch_object<K>(api: Api<K>, name: &str) -> impl Stream<Item = Result<Option<K>, Error>> + Send + Unpin
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Debug + Send + 'static,
{
    follow_one(erased(api), name).map(|found| Ok(found?.and_then(Raw::decode)))
}

/// Waits until a condition holds for an object (`None`: for there being none), which is the answer. Drop it at a deadline.
///
/// # Errors
/// When the object cannot be watched.
pub async fn wait_for<K>(api: Api<K>, name: &str, condition: impl Condition<K>) -> Result<Option<K>, Error>
where
    K: Resource<DynamicType = ()> + DeserializeOwned + Debug + Send + 'static,
{
    let mut states = watch_object(api, name);
    loop {
        match states.next().await {
            Some(Ok(state)) if condition.matches_object(state.as_ref()) => return Ok(state),
            Some(Err(error)) => return Err(error),
            Some(Ok(_)) => {}
            // Such a stream has no end.
            None => std::future::pending().await,
        }
    }
}

fn erased<K: Resource<DynamicType = ()>>(api: Api<K>) -> Api<Raw> {
    let kind = Kind { group: K::group(&()), version: K::version(&()), kind: K::kind(&()), plural: K::plural(&()) };
    let namespace = api.namespace().map(str::to_owned);
    match namespace {
        Some(namespace) => Api::namespaced_with(api.into_client(), &namespace, &kind),
        None => Api::all_with(api.into_client(), &kind),
    }
}

fn follow(api: Api<Raw>, config: watcher::Config) -> BoxStream<'static, Result<Event<Raw>, Error>> {
    pace::events(watcher::watcher(api, config))
}

fn follow_one(api: Api<Raw>, name: &str) -> BoxStream<'static, Result<Option<Raw>, Error>> {
    pace::paced(watcher::watch_object(api, name))
}

fn typed<K: Resource<DynamicType = ()> + DeserializeOwned>(
    event: Result<Event<Raw>, Error>,
) -> Option<Result<Event<K>, Error>> {
    let event = match event {
        Ok(Event::Apply(raw)) => Event::Apply(raw.decode()?),
        Ok(Event::Delete(raw)) => Event::Delete(raw.decode()?),
        Ok(Event::Init) => Event::Init,
        Ok(Event::InitApply(raw)) => Event::InitApply(raw.decode()?),
        Ok(Event::InitDone) => Event::InitDone,
        Err(error) => return Some(Err(error)),
    };
    Some(Ok(event))
}

/// A kind.
#[derive(Clone, Debug)]
struct Kind {
    group: Cow<'static, str>,
    version: Cow<'static, str>,
    kind: Cow<'static, str>,
    plural: Cow<'static, str>,
}

/// Go's zero time, which has no other meaning.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// An object as it came.
#[derive(Clone, Debug)]
struct Raw {
    /// What a watch needs: name, namespace, resourceVersion.
    meta: ObjectMeta,
    text: Box<RawValue>,
}

impl Raw {
    fn decode<K: Resource<DynamicType = ()> + DeserializeOwned>(self) -> Option<K> {
        let mut decoded = serde_json::from_str(self.text.get());
        if decoded.is_err()
            && let Some(text) = self.with_times()
        {
            decoded = serde_json::from_str(&text);
        }
        let kind = K::kind(&());
        decoded.inspect_err(|error| self.unreadable(&kind, error)).ok()
    }

    /// The object with the zero time where a condition has none: clients may write such conditions, the server says `null`
    /// then as upstream's does, and the types of `k8s-openapi` want a time. As text: a second way to read every kind would be
    /// two megabytes of program.
    fn with_times(&self) -> Option<String> {
        let mut object: serde_json::Value = serde_json::from_str(self.text.get()).ok()?;
        let conditions = object.get_mut("status")?.get_mut("conditions")?.as_array_mut()?;
        for condition in conditions.iter_mut().filter_map(serde_json::Value::as_object_mut) {
            if condition.get("lastTransitionTime").is_none_or(serde_json::Value::is_null) {
                condition.insert("lastTransitionTime".into(), ZERO_TIME.into());
            }
        }
        Some(object.to_string())
    }

    fn unreadable(&self, kind: &str, error: &serde_json::Error) {
        let ObjectMeta { namespace, name, .. } = &self.meta;
        tracing::warn!(kind, namespace, name, %error, "left out what is no object of its kind");
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Head {
            metadata: Meta,
        }
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct Meta {
            name: Option<String>,
            namespace: Option<String>,
            resource_version: Option<String>,
        }
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let Meta { name, namespace, resource_version } =
            serde_json::from_str::<Head>(text.get()).map_err(de::Error::custom)?.metadata;
        Ok(Self { meta: ObjectMeta { name, namespace, resource_version, ..ObjectMeta::default() }, text })
    }
}

impl Resource for Raw {
    type DynamicType = Kind;
    type Scope = kube::core::DynamicResourceScope;

    fn kind(kind: &Kind) -> Cow<'_, str> {
        kind.kind.as_ref().into()
    }
    fn group(kind: &Kind) -> Cow<'_, str> {
        kind.group.as_ref().into()
    }
    fn version(kind: &Kind) -> Cow<'_, str> {
        kind.version.as_ref().into()
    }
    fn plural(kind: &Kind) -> Cow<'_, str> {
        kind.plural.as_ref().into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Client, ResourceExt as _};

    use super::*;

    /// A server whose watches say these lines.
    fn server(lines: &'static str) -> Api<ConfigMap> {
        let answer = move |_: http::Request<kube::client::Body>| async move {
            Ok::<_, std::io::Error>(http::Response::new(Full::new(bytes::Bytes::from_static(lines.as_bytes()))))
        };
        Api::namespaced(Client::new(tower::service_fn(answer), "default"), "a")
    }

    const LINES: &str = concat!(
        r#"{"type":"ADDED","object":{"metadata":{"name":"x","namespace":"a","resourceVersion":"1","labels":{"l":"1"}},"data":{"k":"v"}}}"#,
        "\n",
        r#"{"type":"ADDED","object":{"metadata":{"name":"y","namespace":"a","resourceVersion":"2"},"data":7}}"#,
        "\n",
        r#"{"type":"BOOKMARK","object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"2","annotations":{"k8s.io/initial-events-end":"true"}}}}"#,
        "\n",
        r#"{"type":"DELETED","object":{"metadata":{"name":"x","namespace":"a","resourceVersion":"3"},"data":{"k":"w"}}}"#,
        "\n",
    );

    #[tokio::test]
    async fn what_is_no_object_of_the_kind_is_left_out() {
        let mut events = watch(server(LINES), watcher::Config::default().streaming_lists());
        assert!(matches!(events.next().await, Some(Ok(Event::Init))));
        let Some(Ok(Event::InitApply(first))) = events.next().await else { panic!("no first object") };
        assert_eq!(
            (first.name_any().as_str(), &first.labels()["l"], &first.data.as_ref().unwrap()["k"]),
            ("x", &"1".to_owned(), &"v".to_owned())
        );
        assert!(matches!(events.next().await, Some(Ok(Event::InitDone))));
        let Some(Ok(Event::Delete(gone))) = events.next().await else { panic!("no deletion") };
        assert_eq!(gone.data.unwrap()["k"], "w");
    }

    #[test]
    fn a_condition_without_a_time_has_the_zero_time() {
        use k8s_openapi::api::core::v1::Service;
        for time in [r#","lastTransitionTime":null"#, ""] {
            let text = format!(
                r#"{{"metadata":{{"name":"x"}},"status":{{"conditions":[{{"type":"A","status":"True","reason":"","message":""{time}}}]}}}}"#
            );
            let raw: Raw = serde_json::from_str(&text).unwrap();
            let service: Service = raw.decode().unwrap();
            let conditions = serde_json::to_value(service.status.unwrap().conditions).unwrap();
            assert_eq!(conditions[0]["lastTransitionTime"], ZERO_TIME);
        }
        let wrong: Raw = serde_json::from_str(r#"{"metadata":{"name":"x"},"status":{"conditions":[7]}}"#).unwrap();
        assert!(wrong.decode::<Service>().is_none());
    }

    #[tokio::test]
    async fn one_object_is_waited_for() {
        let lines = r#"{"metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"x"},"data":{"k":"v"}}]}"#;
        let has = |found: Option<&ConfigMap>| found.is_some_and(|c| c.data.is_some());
        let found = wait_for(server(lines), "x", has).await.unwrap().unwrap();
        assert_eq!(found.name_any(), "x");
    }
}
