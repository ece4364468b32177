//! Lists that are sent piece by piece, so that a list costs the memory of one piece, whatever its length.
//!
//! What is stored in the form that was asked for is sent as it is. Anything else is decoded and encoded object by object
//! while the client reads. The length of a protobuf list stands at its beginning: there, all objects are encoded twice, the
//! first time only to be measured.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures::Stream;
use serde_json::{Value, json};
use skiff_core::codec::proto;
use skiff_core::schema::{Handle, Struct};
use skiff_core::status::Status;
use skiff_storage::cache::Object;

use super::{Include, include_object, partial, response, row, table_version};
use crate::body::Body;
use crate::negotiate::{Encoding, Form, View};
use crate::registry::{Kind, object};
use crate::verbs::Call;

/// Pieces are at least this long.
const CHUNK: usize = 64 * 1024;
/// Stored bytes from which on a list that has to be encoded is sent in pieces. Below, it is made whole: it then has a
/// length, and may be compressed.
const LARGE: usize = 1 << 20;
/// Objects encoded before other requests get the thread.
const TURN: usize = 64;
/// Stored bytes sent before they do: about what takes as long.
const TURN_BYTES: usize = 512 * 1024;

/// What became of a list.
pub(super) enum Sent {
    /// It is on its way.
    InPieces(http::Response<Body>),
    /// It is small, or of a form that is made whole; these are its objects.
    NotYet(Vec<Arc<Object>>),
}

/// Sends a list in pieces if that is the way for it. `metadata` is the list's.
///
/// # Errors
/// 400 for an unknown `includeObject`.
pub(super) fn pieces(
    kind: &Arc<Kind>,
    objects: Vec<Arc<Object>>,
    metadata: &Value,
    form: Form,
    call: &Call,
) -> Result<Sent, Status> {
    let r = &kind.resource;
    let json = form.encoding == Encoding::Json && !form.pretty;
    let begin = |list_kind: &str, version: &str, rest: &str| {
        let (list_kind, version) = (Value::from(list_kind), Value::from(version));
        Bytes::from(format!("{{\"kind\":{list_kind},\"apiVersion\":{version},\"metadata\":{metadata},{rest}:["))
    };
    let version = r.group_version();
    let whole = kind.strategy.traits().untyped;
    if json && form.view == View::Object && kind.verbatim() {
        let head = begin(&r.list_kind, &version, "\"items\"");
        return Ok(Sent::InPieces(response(200, Encoding::Json, stored(head, objects, whole))));
    }
    if objects.iter().map(|o| o.value.len()).sum::<usize>() < LARGE {
        return Ok(Sent::NotYet(objects));
    }
    let body = match (form.encoding, form.view) {
        (Encoding::Json, _) if !json => return Ok(Sent::NotYet(objects)),
        (Encoding::Json, View::Object) => {
            let head = begin(&r.list_kind, &version, "\"items\"");
            encoded(head, kind, objects, move |v| {
                if let (Value::Object(o), false) = (&mut *v, whole) {
                    o.remove("kind");
                    o.remove("apiVersion");
                }
            })
        }
        (Encoding::Json, View::MetadataList) => {
            let head = begin("PartialObjectMetadataList", "meta.k8s.io/v1", "\"items\"");
            encoded(head, kind, objects, |v| *v = partial(v))
        }
        (Encoding::Json, View::Table(v1)) => {
            let include = include_object(call)?;
            let columns = Value::from(super::columns(kind));
            let head = begin("Table", table_version(v1), &format!("\"columnDefinitions\":{columns},\"rows\""));
            rows(head, kind, objects, v1, include)
        }
        (Encoding::Protobuf, View::Object) => {
            let shape = skiff_core::schema::kind(&r.group, &r.version, &r.list_kind).map(Handle::Static);
            let list = json!({"kind": r.list_kind, "apiVersion": version, "metadata": metadata});
            match shape.filter(|s| proto::list_head(&list, s, 0).is_some()) {
                Some(shape) => protobuf(list, shape, kind, objects),
                None => return Ok(Sent::NotYet(objects)),
            }
        }
        _ => return Ok(Sent::NotYet(objects)),
    };
    Ok(Sent::InPieces(response(200, form.encoding, body)))
}

/// Header, stored bytes (without their kind and version unless `whole`), footer. Small objects are gathered, large ones
/// sent as they are.
fn stored(head: Bytes, objects: Vec<Arc<Object>>, whole: bool) -> Body {
    Body::stream(async_stream::stream! {
        let mut pending = BytesMut::from(&head[..]);
        let (mut first, mut sent) = (true, 0);
        for o in objects {
            pending.put_slice(if first { b"{" } else { b",{" });
            first = false;
            let item = o.value.slice(if whole { 1 } else { object::item_offset(&o.value) }..);
            let large = item.len() >= CHUNK;
            if !large {
                pending.put_slice(&item);
            }
            if large || pending.len() >= CHUNK {
                sent += pending.len();
                yield pending.split().freeze();
                if large {
                    sent += item.len();
                    yield item;
                }
                // A client that reads as fast as it is written to would have the thread for the whole list.
                if sent >= TURN_BYTES {
                    sent = 0;
                    tokio::task::yield_now().await;
                }
            }
        }
        pending.put_slice(b"]}\n");
        yield pending.freeze();
    })
}

/// Stored bytes were written by this program, so they can be read; if not, the client must see a broken answer.
fn load(kind: &Kind, object: &Object) -> std::io::Result<Value> {
    kind.load(object).map_err(|s| std::io::Error::other(s.message))
}

fn encoded(
    head: Bytes,
    kind: &Arc<Kind>,
    objects: Vec<Arc<Object>>,
    change: impl Fn(&mut Value) + Send + 'static,
) -> Body {
    let kind = Arc::clone(kind);
    joined(head, objects, move |object| {
        let mut value = load(&kind, object)?;
        change(&mut value);
        Ok(value)
    })
}

fn rows(head: Bytes, kind: &Arc<Kind>, objects: Vec<Arc<Object>>, v1: bool, include: Include) -> Body {
    let (kind, now) = (Arc::clone(kind), jiff::Timestamp::now());
    joined(head, objects, move |object| Ok(row(&kind, &load(&kind, object)?, now, v1, include)))
}

/// A JSON list of what `item` makes of each object.
fn joined(
    head: Bytes,
    objects: Vec<Arc<Object>>,
    item: impl Fn(&Object) -> std::io::Result<Value> + Send + 'static,
) -> Body {
    fallible(async_stream::try_stream! {
        let mut pending = head.to_vec();
        for (i, object) in objects.into_iter().enumerate() {
            if i > 0 {
                pending.push(b',');
            }
            serde_json::to_writer(&mut pending, &item(&object)?)?;
            if pending.len() >= CHUNK {
                yield Bytes::from(std::mem::take(&mut pending));
            }
            turn(i).await;
        }
        pending.extend_from_slice(b"]}\n");
        yield Bytes::from(pending);
    })
}

fn protobuf(list: Value, shape: Handle<Struct>, kind: &Arc<Kind>, objects: Vec<Arc<Object>>) -> Body {
    let kind = Arc::clone(kind);
    fallible(async_stream::try_stream! {
        let mut pending = Vec::new();
        let mut length = 0;
        for (i, object) in objects.iter().enumerate() {
            pending.clear();
            proto::list_item(&mut pending, &load(&kind, object)?, &shape);
            length += pending.len() as u64;
            turn(i).await;
        }
        pending.clear();
        // Asked before whether there is one.
        pending.extend_from_slice(&proto::list_head(&list, &shape, length).unwrap_or_default());
        for (i, object) in objects.into_iter().enumerate() {
            proto::list_item(&mut pending, &load(&kind, &object)?, &shape);
            if pending.len() >= CHUNK {
                yield Bytes::from(std::mem::take(&mut pending));
            }
            turn(i).await;
        }
        pending.extend_from_slice(proto::LIST_END);
        yield Bytes::from(pending);
    })
}

/// Lets other requests have the thread now and then.
async fn turn(i: usize) {
    if i % TURN == TURN - 1 {
        tokio::task::yield_now().await;
    }
}

fn fallible(stream: impl Stream<Item = std::io::Result<Bytes>> + Send + 'static) -> Body {
    Body::Fallible(Box::pin(stream))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use skiff_core::codec;

    use super::*;
    use crate::auth::User;
    use crate::chain::{self, Peer};

    async fn get(server: &crate::Server, path: &str, accept: &str) -> (bool, Bytes) {
        let mut request = http::Request::get(path).header("accept", accept).body(Body::empty()).unwrap();
        request.extensions_mut().insert(Peer(User::new("admin", &["system:masters"])));
        let response = chain::handle(Arc::clone(server.inner()), request).await;
        assert_eq!(response.status(), 200, "{path}");
        let (parts, body) = response.into_parts();
        assert_eq!(parts.headers["content-type"].to_str().unwrap(), accept.split(';').next().unwrap_or_default());
        let whole = matches!(body, Body::Full(_));
        (whole, body.collect().await.unwrap().to_bytes())
    }

    /// A large list in pieces says what its pages, each made whole, say together.
    #[tokio::test]
    async fn pieces_are_the_whole() {
        const OBJECTS: usize = 70;
        let dir = tempfile::tempdir().unwrap();
        let store = skiff_storage::Embedded::open(dir.path(), skiff_storage::embedded::Options::default()).unwrap();
        let server = crate::Server::builder(Arc::new(store)).start().await.unwrap();
        let put = |n: usize| {
            let value = json!({"kind": "ConfigMap", "apiVersion": "v1", "data": {"v": "x".repeat(20_000)},
                "metadata": {"name": format!("m{n:02}"), "namespace": "default", "labels": {"n": n.to_string()}}});
            let inner = Arc::clone(server.inner());
            async move {
                let key = format!("/registry/configmaps/default/m{n:02}");
                let op = skiff_storage::Op::Put(object::encode(&value));
                inner.store.commit(&key, skiff_storage::Compare::Any, op).await.unwrap();
            }
        };
        futures::future::join_all((0..OBJECTS).map(put)).await;
        let path = "/api/v1/namespaces/default/configmaps";
        let json = "application/json";
        for (accept, items) in [
            (json, "items"),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", "items"),
            ("application/json;as=Table;g=meta.k8s.io;v=v1", "rows"),
            ("application/vnd.kubernetes.protobuf", "items"),
        ] {
            let read = |bytes: &Bytes| -> Value {
                if accept.starts_with(json) {
                    return serde_json::from_slice(bytes).unwrap();
                }
                let find = |group: &str, version: &str, kind: &str| skiff_core::schema::kind(group, version, kind);
                codec::decode_proto(bytes, |version, kind| find("", version, kind)).unwrap()
            };
            let (whole, bytes) = get(&server, path, accept).await;
            assert!(!whole, "{accept}");
            let mut large = read(&bytes);
            let (mut joined, mut next) = (vec![], String::new());
            loop {
                let page = format!("{path}?limit=20&continue={next}");
                let (whole, bytes) = get(&server, &page, accept).await;
                assert_eq!(whole, accept != json, "{accept}");
                let mut page = read(&bytes);
                joined.append(page[items].as_array_mut().unwrap());
                next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
                if next.is_empty() {
                    // But for the items, the last page is what the large list is.
                    page[items] = Value::Null;
                    let listed = large[items].take();
                    assert_eq!(listed.as_array().map_or(&[][..], Vec::as_slice), joined, "{accept}");
                    assert_eq!(large, page, "{accept}");
                    break;
                }
            }
            assert_eq!(joined.len(), OBJECTS, "{accept}");
        }
    }
}
