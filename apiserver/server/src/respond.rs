//! Writing answers: one place where objects, lists, tables and statuses become bytes.

pub(crate) mod extras;
mod lists;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use serde_json::{Map, Value, json};
use skiff_core::codec;
use skiff_core::schema::{Handle, Struct, model};
use skiff_core::status::Status;
use skiff_core::tables;

use crate::body::Body;
use crate::negotiate::{Encoding, Form, View};
use crate::registry::Kind;
use crate::verbs::list::Listing;
use crate::verbs::{Answer, Call, Content};

/// Objects of a table's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Their metadata.
    Metadata,
    /// Whole.
    Object,
    /// Nothing.
    None,
}

/// Reads `includeObject`.
///
/// # Errors
/// 400 for another value.
pub fn include_object(call: &Call) -> Result<Include, Status> {
    match call.query.get("includeObject").unwrap_or_default() {
        "" | "Metadata" => Ok(Include::Metadata),
        "Object" => Ok(Include::Object),
        "None" => Ok(Include::None),
        other => Err(Status::bad_request(format!(
            "Unable to convert to Table as requested: includeObject: Invalid value: {}: must be 'Metadata', 'Object', 'None', or empty",
            skiff_core::invalid::quote_str(other)
        ))),
    }
}

/// Turns a verb's answer into a response.
///
/// # Errors
/// 406 when the form does not fit the answer.
pub fn write(answer: Answer, form: Form, call: &Call) -> Result<http::Response<Body>, Status> {
    match answer {
        Answer::Http(r) => Ok(r),
        // Of what is answered this way only scales have other views.
        Answer::Value { code, value, model } if value["kind"] == "Scale" => Ok(match form.view {
            View::Table(v1) => {
                let t = scales(&value, v1, include_object(call)?);
                value_response(code, &t, None, form)
            }
            View::Metadata => value_response(code, &partial(&value), model_of_partial().as_ref(), form),
            _ => value_response(code, &value, model.as_ref(), form),
        }),
        Answer::Value { code, value, model } => Ok(value_response(code, &value, model.as_ref(), form)),
        Answer::Object { code, kind, object } => {
            if form.view == View::MetadataList {
                let what = format!("*{}.{}", internal_group(kind.group()), kind.resource.kind);
                return Err(Status::new(
                    406,
                    "NotAcceptable",
                    format!("you requested PartialObjectMetadataList, but the requested object is not a list ({what})"),
                ));
            }
            if let Content::Stored(bytes) = &object
                && form.encoding == Encoding::Json
                && form.view == View::Object
                && !form.pretty
                && kind.verbatim()
            {
                let mut b = BytesMut::with_capacity(bytes.len() + 1);
                b.put_slice(bytes);
                b.put_u8(b'\n');
                return Ok(response(code, Encoding::Json, Body::full(b.freeze())));
            }
            let value = match object {
                Content::Stored(b) => kind.load_bytes(&b)?,
                Content::Parsed(v) => v,
            };
            Ok(match form.view {
                View::Table(v1) => {
                    let m = match skiff_core::meta::text(&value, "resourceVersion") {
                        "" => json!({}),
                        v => json!({"resourceVersion": v}),
                    };
                    let t = table(&kind, std::slice::from_ref(&value), &m, v1, include_object(call)?);
                    value_response(code, &t, None, form)
                }
                View::Metadata => {
                    let p = partial(&value);
                    value_response(code, &p, model_of_partial().as_ref(), form)
                }
                _ => value_response(code, &value, Some(&kind.resource.model), form),
            })
        }
    }
}

const PARTIAL: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata";

fn internal_group(group: &str) -> &str {
    if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) }
}

/// An object that is already parsed.
#[must_use]
pub fn value_response(code: u16, value: &Value, model: Option<&Handle<Struct>>, form: Form) -> http::Response<Body> {
    let (encoding, bytes) = encode(value, model, form);
    response(code, encoding, Body::full(bytes))
}

fn encode(value: &Value, model: Option<&Handle<Struct>>, form: Form) -> (Encoding, Bytes) {
    match form.encoding {
        Encoding::Protobuf => match model {
            Some(m) => (Encoding::Protobuf, codec::encode_proto(value, m)),
            None => (Encoding::Json, json_bytes(value, form.pretty)),
        },
        Encoding::Yaml => (Encoding::Yaml, Bytes::from(codec::to_yaml(value))),
        Encoding::Json => (Encoding::Json, json_bytes(value, form.pretty)),
    }
}

fn json_bytes(value: &Value, pretty: bool) -> Bytes {
    // Serialising a Value into a Vec cannot fail.
    let mut v = if pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) }.unwrap_or_default();
    v.push(b'\n');
    Bytes::from(v)
}

/// A response with the headers every object answer has.
#[must_use]
pub fn response(code: u16, encoding: Encoding, body: Body) -> http::Response<Body> {
    let mut r = http::Response::new(body);
    *r.status_mut() = http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(encoding.media_type()));
    r.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    r
}

/// The one place where an error becomes an answer.
#[must_use]
pub fn status(s: &Status, form: Form) -> http::Response<Body> {
    let form = Form { view: View::Object, ..form };
    let shape = model("io.k8s.apimachinery.pkg.apis.meta.v1.Status").map(Handle::Static);
    let mut r = value_response(s.code, &s.to_value(), shape.as_ref(), form);
    if let Some(seconds) = s.retry_seconds() {
        r.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    r
}

/// A list in the form asked for.
///
/// # Errors
/// 406 when a single object's view was asked of a list.
pub fn list(kind: &Arc<Kind>, listing: Listing, form: Form, call: &Call) -> Result<Answer, Status> {
    let mut m = Map::new();
    m.insert("resourceVersion".into(), listing.revision.to_string().into());
    if !listing.next.is_empty() || (kind.strategy.traits().untyped && form.view == View::Object) {
        m.insert("continue".into(), listing.next.as_str().into());
    }
    if let Some(n) = listing.remaining {
        m.insert("remainingItemCount".into(), n.into());
    }
    let m = Value::Object(m);
    if form.view == View::Metadata {
        return Err(no_single(kind));
    }
    let objects = match lists::pieces(kind, listing.objects, &m, form, call)? {
        lists::Sent::InPieces(response) => return Ok(Answer::Http(response)),
        lists::Sent::NotYet(objects) => objects,
    };
    let objects = objects.iter().map(|o| kind.load(o)).collect::<Result<_, _>>()?;
    items(kind, objects, m, form, call)
}

/// Objects as a list in the form asked for; `m` is the list's metadata.
///
/// # Errors
/// As [`list`].
pub fn items(kind: &Kind, items: Vec<Value>, m: Value, form: Form, call: &Call) -> Result<Answer, Status> {
    let r = &kind.resource;
    Ok(match form.view {
        View::Metadata => return Err(no_single(kind)),
        View::Table(v1) => {
            let t = table(kind, &items, &m, v1, include_object(call)?);
            Answer::Http(value_response(200, &t, None, form))
        }
        View::MetadataList => {
            let items = none_as_null(items.iter().map(partial).collect());
            let v = json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": m, "items": items});
            let shape = model("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadataList").map(Handle::Static);
            Answer::Http(value_response(200, &v, shape.as_ref(), form))
        }
        _ => {
            let v = list_value(kind, items, m);
            let shape = skiff_core::schema::kind(&r.group, &r.version, &r.list_kind).map(Handle::Static);
            Answer::Http(value_response(200, &v, shape.as_ref(), form))
        }
    })
}

fn no_single(kind: &Kind) -> Status {
    let what = format!("*{}.{}", internal_group(kind.group()), kind.resource.list_kind);
    let text = format!("you requested PartialObjectMetadata, but the requested object is a list ({what})");
    Status::new(406, "NotAcceptable", text)
}

/// Upstream appends to a list that begins as none where it makes these.
fn none_as_null(items: Vec<Value>) -> Value {
    if items.is_empty() { Value::Null } else { items.into() }
}

/// A list object; items of typed lists carry no kind and version, those of untyped ones do.
#[must_use]
pub fn list_value(kind: &Kind, mut items: Vec<Value>, metadata: Value) -> Value {
    for i in items.iter_mut().filter(|_| !kind.strategy.traits().untyped) {
        if let Value::Object(o) = i {
            o.remove("kind");
            o.remove("apiVersion");
        }
    }
    let r = &kind.resource;
    json!({"kind": r.list_kind, "apiVersion": r.group_version(), "metadata": metadata, "items": items})
}

/// `PartialObjectMetadata` of an object.
#[must_use]
pub fn partial(v: &Value) -> Value {
    let m = internal(v).get("metadata").cloned().unwrap_or_default();
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": m})
}

fn model_of_partial() -> Option<Handle<Struct>> {
    model(PARTIAL).map(Handle::Static)
}

/// The object as upstream's own form of it, which its tables and partial views show: what a served version keeps in
/// annotations is in fields there.
fn internal(v: &Value) -> Cow<'_, Value> {
    match (v["kind"].as_str().unwrap_or_default(), v["apiVersion"].as_str().unwrap_or_default()) {
        ("HorizontalPodAutoscaler", "autoscaling/v1") => {
            let mut v = v.clone();
            crate::registry::convert::convert(&mut v, "autoscaling/v2");
            Cow::Owned(v)
        }
        ("DaemonSet", "apps/v1") => {
            let mut v = v.clone();
            if let Some(all) = v["metadata"].get_mut("annotations").and_then(Value::as_object_mut) {
                all.remove("deprecated.daemonset.template.generation");
                if all.is_empty()
                    && let Some(m) = v["metadata"].as_object_mut()
                {
                    m.remove("annotations");
                }
            }
            Cow::Owned(v)
        }
        _ => Cow::Borrowed(v),
    }
}

/// Column definitions of a kind.
#[must_use]
pub fn columns(kind: &Kind) -> Vec<Value> {
    if let Some(own) = kind.strategy.columns() {
        return own.definitions();
    }
    definitions(tables::of(kind.group(), kind.plural()).columns, &kind.resource.kind)
}

fn definitions(columns: &[tables::Column], of: &str) -> Vec<Value> {
    let described = |c: &tables::Column| format!("{} of the {of}.", c.name);
    let row = |c: &tables::Column| json!({"name": c.name, "type": c.kind, "format": c.format, "description": described(c), "priority": c.priority});
    columns.iter().map(row).collect()
}

/// A `Table` of one scale.
fn scales(scale: &Value, v1: bool, include: Include) -> Value {
    let t = tables::of("autoscaling", "scale");
    let mut row = Map::new();
    row.insert("cells".into(), (t.cells)(scale, jiff::Timestamp::now()).into());
    show(&mut row, scale, v1, include);
    let m = json!({"resourceVersion": skiff_core::meta::text(scale, "resourceVersion")});
    let columns = definitions(t.columns, "Scale");
    json!({"kind": "Table", "apiVersion": table_version(v1), "metadata": m, "columnDefinitions": columns, "rows": [row]})
}

/// A `Table` of objects.
#[must_use]
pub fn table(kind: &Kind, items: &[Value], metadata: &Value, v1: bool, include: Include) -> Value {
    let now = jiff::Timestamp::now();
    let rows: Vec<Value> = items.iter().map(|item| row(kind, item, now, v1, include)).collect();
    let own = kind.strategy.columns().is_some() || tables::has_own(kind.group(), kind.plural());
    let rows = if own { rows.into() } else { none_as_null(rows) };
    json!({"kind": "Table", "apiVersion": table_version(v1), "metadata": metadata, "columnDefinitions": columns(kind), "rows": rows})
}

fn table_version(v1: bool) -> &'static str {
    if v1 { "meta.k8s.io/v1" } else { "meta.k8s.io/v1beta1" }
}

/// One object's row of a `Table`.
fn row(kind: &Kind, item: &Value, now: jiff::Timestamp, v1: bool, include: Include) -> Value {
    let mut row = Map::new();
    let cells = match kind.strategy.columns() {
        Some(own) => own.cells(item, now),
        None => (tables::of(kind.group(), kind.plural()).cells)(&internal(item), now),
    };
    row.insert("cells".into(), Value::Array(cells));
    let conditions = tables::row_conditions(kind.group(), kind.plural(), item);
    if !conditions.is_empty() {
        row.insert("conditions".into(), Value::Array(conditions));
    }
    show(&mut row, item, v1, include);
    Value::Object(row)
}

/// Adds the row's object as far as it was asked for.
fn show(row: &mut Map<String, Value>, item: &Value, v1: bool, include: Include) {
    let object = match include {
        Include::None => Value::Null,
        Include::Object => item.clone(),
        Include::Metadata => {
            let mut p = partial(item);
            p["apiVersion"] = table_version(v1).into();
            p
        }
    };
    row.insert("object".into(), object);
}

/// One protobuf watch frame: length, then a meta.k8s.io WatchEvent around the object.
#[must_use]
pub fn proto_watch_frame(event: &str, object: &Value, shape: Option<&Handle<Struct>>) -> Bytes {
    let name = match object["kind"].as_str() {
        Some("Status") => "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
        _ => PARTIAL,
    };
    match shape.cloned().or_else(|| model(name).map(Handle::Static)) {
        Some(s) => codec::proto::watch_frame(event, &codec::encode_proto(object, &s)),
        None => Bytes::new(),
    }
}
