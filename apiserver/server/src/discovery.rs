//! Everything that is not an API object: discovery, OpenAPI, version, health, metrics, token issuer.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, VARY};
use http::{HeaderMap, Method};
use serde_json::{Value, json};
use skiff_core::openapi::Custom;
use skiff_core::resources::Verbs;
use skiff_core::schema::{Handle, model};
use skiff_core::status::Status;

use crate::auth::User;
use crate::auth::rbac::Attributes;
use crate::backup;
use crate::body::Body;
use crate::negotiate::{Encoding, Form, OBJECTS, Offer, choose, clauses, produced};
use crate::registry::{Kind, Registry};
use crate::request::Query;
use crate::respond;
use crate::server::Inner;

/// The version this server reports: the API level, and the program's own version as build metadata.
pub const GIT_VERSION: &str = concat!("v1.37.0+skiff", env!("CARGO_PKG_VERSION"));

/// A document that changes only when kinds come or go.
#[derive(Debug)]
pub struct Document {
    /// The bytes.
    pub bytes: Bytes,
    /// Strong ETag, quoted.
    pub etag: String,
    /// Media type.
    pub media: &'static str,
}

impl Document {
    /// A document with the hash of its bytes as tag.
    #[must_use]
    pub fn new(bytes: impl Into<Bytes>, media: &'static str) -> Self {
        let bytes = bytes.into();
        let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
        let hex: String = hash.as_ref().iter().map(|b| format!("{b:02X}")).collect();
        Self { bytes, etag: format!("\"{hex}\""), media }
    }
}

type Response = http::Response<Body>;

/// 404 outside the API.
#[must_use]
pub fn not_found_text() -> Response {
    let mut r = text(404, "404 page not found\n".into());
    r.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    r
}

fn text(code: u16, body: String) -> Response {
    let mut r = http::Response::new(Body::full(body));
    *r.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
    r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    r
}

/// A code and nothing else.
fn bare(code: u16) -> Response {
    let mut r = http::Response::new(Body::empty());
    *r.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
    r
}

/// Answers a request outside the API objects.
///
/// # Errors
/// 401, 403, 404, 405, 406.
pub async fn handle(
    server: &Arc<Inner>,
    method: &Method,
    path: &str,
    query: &Query,
    headers: &HeaderMap,
    user: &User,
    raw_query: &str,
) -> Result<Response, Status> {
    let _ = raw_query;
    let verb = method.as_str().to_ascii_lowercase();
    let a = Attributes { verb, path: path.to_owned(), ..Attributes::default() };
    // Probes of health are always allowed, as upstream's default.
    if !matches!(path, "/healthz" | "/livez" | "/readyz") {
        server.authorise(user, &a)?;
    }
    let head = method == Method::HEAD;
    if path == backup::PATH {
        if method != Method::GET {
            return Err(Status::method_not_allowed());
        }
        return backup::answer(server).await;
    }
    let mut response = match route(server, method, path, query, headers)? {
        Some(r) => r,
        None => not_found_text(),
    };
    if head {
        *response.body_mut() = Body::empty();
    }
    Ok(response)
}

fn route(
    server: &Arc<Inner>,
    method: &Method,
    path: &str,
    query: &Query,
    headers: &HeaderMap,
) -> Result<Option<Response>, Status> {
    let accept = headers.get("accept").and_then(|v| v.to_str().ok()).unwrap_or_default();
    let get_only = || if *method == Method::GET { Ok(()) } else { Err(Status::method_not_allowed()) };
    // The lists of groups, and a group, are told whatever the method is.
    let by_any = matches!(path.trim_matches('/').split('/').collect::<Vec<_>>()[..], ["apis"] | ["apis", _]);
    let value = |v: &Value, shape: &str| -> Result<Option<Response>, Status> {
        if !by_any {
            get_only()?;
            produced(accept, OBJECTS)?;
        }
        let form = choose(Some(accept), query.flag("pretty"), Offer::OBJECT)?;
        let m = model(shape).map(Handle::Static);
        let mut r = respond::value_response(200, v, m.as_ref(), form);
        r.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        Ok(Some(r))
    };
    let trimmed = path.strip_suffix('/').filter(|p| !p.is_empty()).unwrap_or(path);
    let parts: Vec<&str> = trimmed.split('/').skip(1).collect();
    match parts.as_slice() {
        [""] => {
            let paths = root_paths(server);
            Ok(Some(respond::value_response(200, &json!({"paths": paths}), None, plain(query))))
        }
        ["version"] => {
            get_only()?;
            produced(accept, &["application/json"])?;
            Ok(Some(respond::value_response(200, &version(), None, plain(query))))
        }
        [check @ ("healthz" | "livez" | "readyz"), rest @ ..] if !path.ends_with('/') => {
            Ok(health(server, check, rest, query))
        }
        ["metrics"] if !path.ends_with('/') => {
            let mut objects: Vec<(String, usize)> = vec![];
            for k in server.registry.load().iter() {
                if let Some(c) = k.collection.as_ref().filter(|_| k.is_storage_version()) {
                    let name = skiff_core::status::qualified(k.plural(), k.group());
                    objects.push((name, c.cache.stats().objects));
                }
            }
            objects.sort();
            let mut all = server.metrics.render(&objects);
            all.push_str(&server.flow.text());
            if let Some(audit) = &server.config.audit {
                audit.render(&mut all);
            }
            let mut r = text(200, all);
            r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
            Ok(Some(r))
        }
        [".well-known", "openid-configuration"] => {
            get_only()?;
            let issuer = server.tokens.issuer();
            let v = json!({
                "issuer": issuer,
                "jwks_uri": format!("https://{}:{}/openid/v1/jwks", server.config.advertise.0, server.config.advertise.1),
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": [server.tokens.algorithm()],
            });
            Ok(Some(respond::value_response(200, &v, None, plain(query))))
        }
        ["openid", "v1", "jwks"] => {
            get_only()?;
            produced(accept, &["application/jwk-set+json"])?;
            let mut r = respond::value_response(200, server.tokens.jwks(), None, plain(query));
            r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/jwk-set+json"));
            Ok(Some(r))
        }
        ["openapi", "v2"] => Ok(Some(openapi_v2(server, accept, headers))),
        ["openapi", "v3", rest @ ..] => {
            let mut r = openapi_v3(server, rest, query, headers).unwrap_or_else(|| bare(404));
            // Upstream's handler names the type of a body only when it writes one.
            if rest.is_empty() && *method == Method::HEAD {
                r.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
            }
            Ok(Some(r))
        }
        ["api"] => {
            if let Some(r) = aggregated(server, accept, headers, true) {
                get_only()?;
                return Ok(Some(r));
            }
            value(
                &serde_json::to_value(catalog(&server.registry.load()).api_versions(&address(server)))
                    .unwrap_or_default(),
                "io.k8s.apimachinery.pkg.apis.meta.v1.APIVersions",
            )
        }
        ["apis"] => {
            if let Some(r) = aggregated(server, accept, headers, false) {
                return Ok(Some(r));
            }
            value(
                &serde_json::to_value(catalog(&server.registry.load()).group_list()).unwrap_or_default(),
                "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroupList",
            )
        }
        ["apis", group] => match catalog(&server.registry.load()).group(group) {
            Some(v) => {
                value(&serde_json::to_value(v).unwrap_or_default(), "io.k8s.apimachinery.pkg.apis.meta.v1.APIGroup")
            }
            None => Ok(None),
        },
        ["api", v] => match catalog(&server.registry.load()).resource_list("", v) {
            Some(v) => value(
                &serde_json::to_value(v).unwrap_or_default(),
                "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList",
            ),
            None => Ok(None),
        },
        ["apis", g, v] => match catalog(&server.registry.load()).resource_list(g, v) {
            Some(v) => value(
                &serde_json::to_value(v).unwrap_or_default(),
                "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList",
            ),
            // As for objects: a group that is built in answers for its versions.
            None if server.registry.load().has_group(g) && !server.registry.load().any_untyped(g, "") => {
                Err(Status::no_such_path())
            }
            None => Ok(None),
        },
        [first @ ("api" | "apis"), ..] => {
            let known = match (*first, parts.as_slice()) {
                ("api", [_, v, ..]) => server.registry.load().has_version("", v),
                ("apis", [_, g, v, ..]) => server.registry.load().has_version(g, v),
                _ => false,
            };
            if !known {
                return Ok(None);
            }
            Err(Status::no_such_path())
        }
        _ => Ok(None),
    }
}

fn catalog(registry: &Registry) -> skiff_core::discovery::Catalog {
    let shown = |k: &Arc<Kind>| {
        let mut resource = k.resource.clone();
        // What is going away is only read and deleted.
        if k.hooks.refuse_create("").is_some() {
            let read = Verbs::GET.and(Verbs::LIST).and(Verbs::WATCH);
            resource.verbs = read.and(Verbs::DELETE).and(Verbs::DELETE_COLLECTION);
        }
        resource
    };
    let elsewhere = |k: &Arc<Kind>| registry.remote(&k.resource.group, &k.resource.version).is_some();
    let custom: Vec<_> = registry.beside().iter().filter(|k| !elsewhere(k)).map(shown).collect();
    skiff_core::discovery::Catalog::new(&custom).beside(registry.remotes().map(|r| r.described()))
}

/// What definitions add to the OpenAPI documents.
fn published(kinds: &[Arc<Kind>]) -> Vec<Custom<'_>> {
    let described = kinds.iter().filter_map(|k| Some((&k.resource, k.strategy.published()?)));
    described.map(|(resource, p)| Custom { resource, schema: p.schema, selectable: p.selectable }).collect()
}

fn address(server: &Inner) -> String {
    format!("{}:{}", server.config.advertise.0, server.config.advertise.1)
}

fn plain(query: &Query) -> Form {
    Form {
        encoding: Encoding::Json,
        view: crate::negotiate::View::Object,
        pretty: query.get("pretty").is_none_or(|_| query.flag("pretty")),
    }
}

fn version() -> Value {
    json!({
        "major": "1", "minor": "37", "emulationMajor": "1", "emulationMinor": "37",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "36",
        "gitVersion": GIT_VERSION, "gitCommit": option_env!("SKIFF_COMMIT").unwrap_or("unknown"), "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "none (rust)", "compiler": "rustc", "platform": "linux/amd64",
    })
}

fn root_paths(server: &Inner) -> Vec<String> {
    let mut out: Vec<String> = [
        "/.well-known/openid-configuration",
        "/api",
        "/apis",
        "/healthz",
        "/healthz/etcd",
        "/healthz/ping",
        "/livez",
        "/livez/etcd",
        "/livez/ping",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/readyz/etcd",
        "/readyz/ping",
        "/version",
    ]
    .map(str::to_owned)
    .to_vec();
    let registry = server.registry.load();
    out.extend(
        registry.remotes().flat_map(|r| [format!("/apis/{}", r.group), format!("/apis/{}/{}", r.group, r.version)]),
    );
    for k in registry.iter() {
        let r = &k.resource;
        if r.group.is_empty() {
            out.push(format!("/api/{}", r.version));
        } else {
            out.push(format!("/apis/{}", r.group));
            out.push(format!("/apis/{}/{}", r.group, r.version));
        }
    }
    out.sort();
    out.dedup();
    out
}

/// Checks by name: liveness must not depend on the store.
fn health(server: &Arc<Inner>, check: &str, rest: &[&str], query: &Query) -> Option<Response> {
    let ready = *server.ready.borrow();
    let going = !server.shutdown.is_cancelled();
    let mut checks: Vec<(&str, bool)> = vec![("ping", true), ("log", true), ("etcd", true)];
    if check == "readyz" {
        checks.push(("etcd-readiness", true));
        checks.push(("informer-sync", true));
    }
    checks.push(("poststarthook/rbac/bootstrap-roles", ready || check == "livez"));
    checks.push(("poststarthook/start-system-namespaces-controller", ready || check == "livez"));
    if check == "readyz" {
        checks.push(("shutdown", going));
    }
    if let [first, more @ ..] = rest {
        let name = std::iter::once(*first).chain(more.iter().copied()).collect::<Vec<_>>().join("/");
        let (_, ok) = checks.iter().find(|(n, _)| *n == name)?;
        return Some(if *ok {
            text(200, "ok".into())
        } else {
            text(500, "internal server error: reason withheld\n".into())
        });
    }
    let excluded: Vec<&str> = query.all("exclude").filter(|e| !e.is_empty()).collect();
    let mut body = String::new();
    let mut failed = false;
    for (name, ok) in &checks {
        if excluded.contains(name) {
            body.push_str(&format!("[+]{name} excluded: ok\n"));
        } else if *ok {
            body.push_str(&format!("[+]{name} ok\n"));
        } else {
            failed = true;
            body.push_str(&format!("[-]{name} failed: reason withheld\n"));
        }
    }
    let unknown: Vec<String> =
        excluded.iter().filter(|e| !checks.iter().any(|(n, _)| n == *e)).map(|e| format!("\"{e}\"")).collect();
    if !unknown.is_empty() {
        body.push_str(&format!("warn: some health checks cannot be excluded: no matches for {}\n", unknown.join(",")));
    }
    if failed {
        body.push_str(&format!("{check} check failed\n"));
        let mut r = text(500, body);
        r.headers_mut().insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        return Some(r);
    }
    if query.get("verbose").is_none() {
        return Some(text(200, "ok".into()));
    }
    body.push_str(&format!("{check} check passed\n"));
    Some(text(200, body))
}

/// The aggregated form, if the client prefers it.
fn aggregated(server: &Arc<Inner>, accept: &str, headers: &HeaderMap, core: bool) -> Option<Response> {
    const MEDIA: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let wanted = clauses(accept)
        .into_iter()
        .find(|c| matches!(c.media, "application/json" | "application/vnd.kubernetes.protobuf" | "*/*"))?;
    let asked = clauses(accept).into_iter().any(|c| {
        c.media == "application/json"
            && c.param("g") == Some("apidiscovery.k8s.io")
            && c.param("v") == Some("v2")
            && c.param("as") == Some("APIGroupDiscoveryList")
    });
    if !asked || wanted.param("as").is_none() && wanted.media == "application/json" {
        return None;
    }
    let name = if core { "aggregated-api" } else { "aggregated-apis" };
    let doc = server.document(name, |registry| {
        let c = catalog(registry);
        let v = if core { c.aggregated_core() } else { c.aggregated() };
        Document::new(serde_json::to_vec(&v).unwrap_or_default(), MEDIA)
    });
    let mut r = serve(&doc, headers);
    r.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    Some(r)
}

/// A document with its tag, or 304.
fn serve(doc: &Document, headers: &HeaderMap) -> Response {
    let known = headers.get(IF_NONE_MATCH).and_then(|v| v.to_str().ok()) == Some(doc.etag.as_str());
    let mut r = http::Response::new(if known { Body::empty() } else { Body::full(doc.bytes.clone()) });
    if known {
        *r.status_mut() = http::StatusCode::NOT_MODIFIED;
    }
    let h = r.headers_mut();
    h.insert(CONTENT_TYPE, HeaderValue::from_static(doc.media));
    if let Ok(v) = HeaderValue::from_str(&doc.etag) {
        h.insert(ETAG, v);
    }
    h.insert(CACHE_CONTROL, HeaderValue::from_static("public"));
    r
}

fn openapi_v2(server: &Arc<Inner>, accept: &str, headers: &HeaderMap) -> Response {
    const PROTO: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    let proto =
        clauses(accept).first().is_some_and(|c| c.media.starts_with("application/com.github.proto-openapi.spec.v2"));
    let doc = if proto {
        server.document("openapi-v2-proto", |r| {
            Document::new(skiff_core::openapi::document_v2_protobuf(&published(&r.custom())), PROTO)
        })
    } else {
        server.document("openapi-v2-json", |r| {
            let own = skiff_core::openapi::document_v2(&published(&r.custom()));
            Document::new(merged_v2(r, own), "application/json")
        })
    };
    let mut r = serve(&doc, headers);
    r.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    r
}

fn openapi_v3(server: &Arc<Inner>, rest: &[&str], query: &Query, headers: &HeaderMap) -> Option<Response> {
    if rest.is_empty() {
        let doc = server.document("openapi-v3", |r| {
            let mut index = skiff_core::openapi::index_v3(&published(&r.custom()));
            for remote in r.remotes() {
                let name = format!("apis/{}/{}", remote.group, remote.version);
                if let Some((_, hash)) = &remote.offers.v3 {
                    index["paths"][&name] = json!({"serverRelativeURL": format!("/openapi/v3/{name}?hash={hash}")});
                }
            }
            Document::new(index.to_string(), "application/json")
        });
        return Some(serve(&doc, headers));
    }
    let name = rest.join("/");
    let (group, version) = match rest {
        ["api", v] => ("", *v),
        ["apis", g, v] => (*g, *v),
        _ => return None,
    };
    let registry = server.registry.load_full();
    if let Some(remote) = registry.remote(group, version) {
        let (bytes, hash) = remote.offers.v3.clone()?;
        return Some(hashed(&name, bytes, &hash, query, headers));
    }
    if !registry.has_version(group, version) {
        return None;
    }
    let kinds = registry.custom();
    let custom = published(&kinds);
    let hash = skiff_core::openapi::hash_v3(group, version, &custom);
    if moved(query, &hash) {
        return Some(hashed(&name, Bytes::new(), &hash, query, headers));
    }
    // Built on demand and not kept: clients keep it (it is immutable under its hash), and together they are megabytes.
    let bytes = skiff_core::openapi::document_v3(group, version, &custom)?;
    Some(hashed(&name, bytes.into(), &hash, query, headers))
}

/// Whether the client asks for a document that is no more.
fn moved(query: &Query, hash: &str) -> bool {
    query.get("hash").is_some_and(|given| given != hash)
}

/// A document under its hash; for ever under that, and where it is now for another.
fn hashed(name: &str, bytes: Bytes, hash: &str, query: &Query, headers: &HeaderMap) -> Response {
    if moved(query, hash) {
        let mut r = bare(301);
        if let Ok(v) = HeaderValue::from_str(&format!("/openapi/v3/{name}?hash={hash}")) {
            r.headers_mut().insert("location", v);
        }
        return r;
    }
    let doc = Document { bytes, etag: format!("\"{hash}\""), media: "application/json" };
    let mut r = serve(&doc, headers);
    if query.get("hash").is_some() {
        r.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
    }
    r
}

/// The document with the parts of other servers; where both define a name, this server's stays.
fn merged_v2(registry: &Registry, own: Vec<u8>) -> Vec<u8> {
    let parts: Vec<_> = registry.remotes().filter_map(|r| r.offers.v2.as_ref()).collect();
    if parts.is_empty() {
        return own;
    }
    let mut whole: Value = serde_json::from_slice(&own).unwrap_or_default();
    for (paths, definitions) in parts {
        for (key, more) in [("paths", paths), ("definitions", definitions)] {
            let Some(into) = whole[key].as_object_mut() else { continue };
            for (name, value) in more {
                into.entry(name).or_insert_with(|| value.clone());
            }
        }
    }
    serde_json::to_vec(&whole).unwrap_or(own)
}
