//! A small API server in memory: enough of the wire for the agent, and nothing more. JSON only, no schema, no
//! authorisation; merge patches stand in for strategic ones except for lists of conditions.

pub(crate) mod front;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Objects = BTreeMap<(String, String, String), Value>;

struct State {
    revision: u64,
    objects: Objects,
}

/// The server. Clones share one state.
#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    changes: broadcast::Sender<(String, &'static str, Value)>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        let state = State { revision: 1, objects: BTreeMap::new() };
        Self { state: Arc::new(Mutex::new(state)), changes: broadcast::channel(4096).0 }
    }

    pub(crate) fn client(&self) -> kube::Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move { Ok::<_, Infallible>(fake.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Stores an object of a resource (plural name), new or not.
    pub(crate) fn put(&self, resource: &str, mut object: Value) -> Value {
        let mut state = self.state.lock().unwrap();
        state.revision += 1;
        let meta = object["metadata"].as_object_mut().unwrap();
        meta.insert("resourceVersion".into(), state.revision.to_string().into());
        meta.entry("uid").or_insert_with(|| uuid::Uuid::new_v4().to_string().into());
        let key = key(resource, &object);
        let kind = if state.objects.insert(key, object.clone()).is_some() { "MODIFIED" } else { "ADDED" };
        let _ = self.changes.send((resource.into(), kind, object.clone()));
        object
    }

    pub(crate) fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.state.lock().unwrap().objects.get(&(resource.into(), namespace.into(), name.into())).cloned()
    }

    pub(crate) fn list(&self, resource: &str) -> Vec<Value> {
        let state = self.state.lock().unwrap();
        state.objects.iter().filter(|((r, ..), _)| r == resource).map(|(_, o)| o.clone()).collect()
    }

    /// Deletes as a user would: gracefully when the pod is bound.
    pub(crate) fn delete_pod(&self, namespace: &str, name: &str, grace: i64) {
        let Some(mut pod) = self.get("pods", namespace, name) else { return };
        pod["metadata"]["deletionTimestamp"] = json!(jiff::Timestamp::now().to_string());
        pod["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        self.put("pods", pod);
    }

    pub(crate) fn remove(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let mut state = self.state.lock().unwrap();
        let mut object = state.objects.remove(&(resource.into(), namespace.into(), name.into()))?;
        state.revision += 1;
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        let _ = self.changes.send((resource.into(), "DELETED", object.clone()));
        Some(object)
    }

    async fn answer<B: hyper::body::Body<Data = Bytes>>(
        &self,
        request: Request<B>,
    ) -> Response<BoxBody<Bytes, Infallible>> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_or_else(|_| Bytes::new(), |b| b.to_bytes());
        let segments: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
        // /api/v1/... or /apis/GROUP/VERSION/...
        let rest = if segments[0] == "api" { &segments[2..] } else { &segments[3..] };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (*namespace, rest),
            rest => ("", rest),
        };
        let resource = rest[0];
        let name = rest.get(1).copied();
        let sub = rest.get(2).copied();
        let query: BTreeMap<String, String> = parts
            .uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|p| p.split_once('='))
            .map(|(k, v)| (k.into(), v.replace("%3D", "=").replace("%2C", ",")))
            .collect();
        let sent: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        match (parts.method, name) {
            (Method::GET, None) => {
                let select = query.get("fieldSelector").cloned().unwrap_or_default();
                if query.get("watch").is_some_and(|w| w == "true" || w == "1") {
                    return self.watch(resource, namespace, select, query.get("resourceVersion").cloned());
                }
                let state = self.state.lock().unwrap();
                let items: Vec<Value> = state
                    .objects
                    .iter()
                    .filter(|((r, n, _), o)| {
                        r == resource && (namespace.is_empty() || n == namespace) && selected(o, &select)
                    })
                    .map(|(_, o)| o.clone())
                    .collect();
                reply(
                    StatusCode::OK,
                    &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": state.revision.to_string()}, "items": items}),
                )
            }
            (Method::GET, Some(name)) => match self.get(resource, namespace, name) {
                Some(object) => reply(StatusCode::OK, &object),
                None => missing(),
            },
            (Method::POST, Some(_)) if sub == Some("token") => reply(
                StatusCode::CREATED,
                &json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {},
                    "status": {"token": "a-token", "expirationTimestamp": "2099-01-01T00:00:00Z"}}),
            ),
            (Method::POST, _) => {
                let mut object = sent;
                if !namespace.is_empty() {
                    object["metadata"]["namespace"] = namespace.into();
                }
                reply(StatusCode::CREATED, &self.put(resource, object))
            }
            (Method::PATCH, Some(name)) => {
                let Some(mut object) = self.get(resource, namespace, name) else { return missing() };
                if sent["metadata"]["uid"].is_string() && sent["metadata"]["uid"] != object["metadata"]["uid"] {
                    return reply(
                        StatusCode::CONFLICT,
                        &json!({"kind": "Status", "code": 409, "reason": "Conflict", "message": "uid"}),
                    );
                }
                merge(&mut object, &sent);
                reply(StatusCode::OK, &self.put(resource, object))
            }
            (Method::DELETE, Some(name)) => match self.remove(resource, namespace, name) {
                Some(object) => reply(StatusCode::OK, &object),
                None => missing(),
            },
            (method, _) => reply(StatusCode::METHOD_NOT_ALLOWED, &json!({"message": method.to_string()})),
        }
    }

    fn watch(
        &self,
        resource: &str,
        namespace: &str,
        select: String,
        from: Option<String>,
    ) -> Response<BoxBody<Bytes, Infallible>> {
        let state = self.state.lock().unwrap();
        let changes = self.changes.subscribe();
        let from: u64 = from.and_then(|f| f.parse().ok()).unwrap_or(0);
        let matches = {
            let (resource, namespace) = (resource.to_string(), namespace.to_string());
            move |r: &str, o: &Value| {
                r == resource
                    && (namespace.is_empty() || o["metadata"]["namespace"] == namespace.as_str())
                    && selected(o, &select)
            }
        };
        let newer = |o: &Value| {
            o["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<u64>().ok()).unwrap_or(0) > from
        };
        let missed: Vec<_> = state
            .objects
            .iter()
            .filter(|((r, ..), o)| matches(r, o) && newer(o))
            .map(|(_, o)| frame("MODIFIED", o))
            .collect();
        let live = stream::unfold((changes, matches), |(mut changes, matches)| async move {
            loop {
                let (resource, kind, object) = changes.recv().await.ok()?;
                if matches(&resource, &object) {
                    return Some((frame(kind, &object), (changes, matches)));
                }
            }
        });
        let body = StreamBody::new(futures::StreamExt::chain(stream::iter(missed), live));
        Response::new(BodyExt::boxed(body))
    }
}

fn frame(kind: &str, object: &Value) -> Result<Frame<Bytes>, Infallible> {
    // In the order in which upstream writes it.
    Ok(Frame::data(format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into()))
}

fn key(resource: &str, object: &Value) -> (String, String, String) {
    let meta = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_string();
    (resource.into(), meta("namespace"), meta("name"))
}

fn selected(object: &Value, selector: &str) -> bool {
    selector.split(',').filter(|s| !s.is_empty()).all(|term| {
        let (path, wanted) = term.split_once('=').unwrap_or((term, ""));
        let found = path.split('.').fold(object, |o, p| &o[p]);
        found.as_str().unwrap_or_default() == wanted.trim_start_matches('=')
    })
}

fn merge(target: &mut Value, patch: &Value) {
    let (Some(target), Some(patch)) = (target.as_object_mut(), patch.as_object()) else { return };
    for (key, value) in patch {
        match (key.as_str(), value) {
            (_, Value::Null) => drop(target.remove(key)),
            ("conditions", Value::Array(items)) => {
                let list = target.entry(key.clone()).or_insert_with(|| json!([])).as_array_mut().unwrap();
                for item in items {
                    match list.iter_mut().find(|c| c["type"] == item["type"]) {
                        Some(known) => *known = item.clone(),
                        None => list.push(item.clone()),
                    }
                }
            }
            (_, Value::Object(_)) => merge(target.entry(key.clone()).or_insert_with(|| json!({})), value),
            (_, Value::Array(items)) => {
                let kept = items.iter().filter(|i| i.get("$patch").is_none()).cloned().collect();
                target.insert(key.clone(), Value::Array(kept));
            }
            _ => drop(target.insert(key.clone(), value.clone())),
        }
    }
}

fn missing() -> Response<BoxBody<Bytes, Infallible>> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "not found", "reason": "NotFound", "code": 404});
    reply(StatusCode::NOT_FOUND, &status)
}

fn reply(status: StatusCode, value: &Value) -> Response<BoxBody<Bytes, Infallible>> {
    let body = Full::new(Bytes::from(value.to_string())).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    response
}
