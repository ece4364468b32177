//! What the server says of itself, line by line: discovery, OpenAPI, the columns of tables.
//!
//! The files in `conformance/golden` are what it said when somebody last looked; a change shows as a difference in them.
//! `SKIFF_UPDATE=1 cargo test -p skiff-conformance --test golden` writes them anew.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_apiserver::chain::{self, Peer};
use skiff_storage::embedded::{Embedded, Options};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io";

struct Api {
    server: Server,
    _dir: tempfile::TempDir,
}

impl Api {
    async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let store = Embedded::open(dir.path(), Options::default())?;
        Ok(Self { server: Server::builder(Arc::new(store)).start().await?, _dir: dir })
    }

    async fn get(&self, path: &str, accept: &str) -> Result<Value> {
        let request = http::Request::get(path)
            .header("accept", accept)
            .extension(Peer(User::new("kubernetes-admin", &["system:masters"])))
            .body(Full::new(Bytes::new()))?;
        let response = chain::handle(self.server.inner().clone(), request).await;
        let status = response.status();
        let bytes = response.into_body().collect().await.map(http_body_util::Collected::to_bytes);
        let bytes = bytes.map_err(|_| anyhow::anyhow!("{path}: the body broke off"))?;
        ensure!(status.is_success(), "{path}: {status}");
        serde_json::from_slice(&bytes).with_context(|| path.to_owned())
    }

    /// `api/v1`, `apis/apps/v1`, ... in the order of discovery.
    async fn versions(&self) -> Result<Vec<String>> {
        let mut out = vec!["api/v1".to_owned()];
        for group in list(&self.get("/apis", "application/json").await?["groups"]) {
            out.extend(list(&group["versions"]).iter().map(|v| format!("apis/{}", text(&v["groupVersion"]))));
        }
        Ok(out)
    }
}

fn list(v: &Value) -> &[Value] {
    v.as_array().map_or(&[], Vec::as_slice)
}

fn text(v: &Value) -> &str {
    v.as_str().unwrap_or_default()
}

fn words(v: &Value) -> String {
    list(v).iter().map(text).collect::<Vec<_>>().join(",")
}

/// Compares with a file, or writes it.
fn golden(name: &str, found: &str) -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name);
    if std::env::var_os("SKIFF_UPDATE").is_some_and(|v| v == "1") {
        return Ok(std::fs::write(file, found)?);
    }
    let wanted = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut pairs = wanted.lines().zip(found.lines()).enumerate();
    if let Some((n, (was, is))) = pairs.find(|(_, (was, is))| was != is) {
        anyhow::bail!("{name}, line {}:\nwas {was}\nis  {is}", n + 1);
    }
    ensure!(wanted == found, "{name}: {} lines were, {} are", wanted.lines().count(), found.lines().count());
    Ok(())
}

#[tokio::test]
async fn discovery() -> Result<()> {
    let api = Api::start().await?;
    let mut out = String::new();
    for version in api.versions().await? {
        let doc = api.get(&format!("/{version}"), "application/json").await?;
        for r in list(&doc["resources"]) {
            let scope = if r["namespaced"] == true { "namespaced" } else { "cluster" };
            let kind = [text(&r["group"]), text(&r["version"]), text(&r["kind"])].join("/");
            let (verbs, short, of) = (words(&r["verbs"]), words(&r["shortNames"]), words(&r["categories"]));
            writeln!(out, "{version} {} {kind} {scope} verbs={verbs} short={short} categories={of}", text(&r["name"]))?;
        }
    }
    // The aggregated form has the same resources.
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let mut resources = 0;
    for path in ["/api", "/apis"] {
        for group in list(&api.get(path, accept).await?["items"]) {
            for version in list(&group["versions"]) {
                resources += list(&version["resources"]).len();
            }
        }
    }
    let plain = out.lines().filter(|l| l.split(' ').nth(1).is_some_and(|n| !n.contains('/'))).count();
    ensure!(plain == resources, "{plain} resources listed, {resources} in the aggregated form");
    golden("discovery.txt", &out)
}

#[tokio::test]
async fn openapi() -> Result<()> {
    let api = Api::start().await?;
    let index = api.get("/openapi/v3", "application/json").await?;
    let mut out = String::new();
    for (name, _) in index["paths"].as_object().context("paths")? {
        let doc = api.get(&format!("/openapi/v3/{name}"), "application/json").await?;
        for (path, item) in doc["paths"].as_object().into_iter().flatten() {
            for (method, op) in item.as_object().into_iter().flatten().filter(|(m, _)| *m != "parameters") {
                let both = list(&item["parameters"]).iter().chain(list(&op["parameters"]));
                let mut names: Vec<&str> = both.map(|p| text(&p["name"])).collect();
                names.sort_unstable();
                writeln!(out, "{name} {method} {path} {} {}", text(&op["operationId"]), names.join(","))?;
            }
        }
        let schemas = doc["components"]["schemas"].as_object();
        for (schema, s) in schemas.into_iter().flatten() {
            let fields = s["properties"].as_object().map_or(0, serde_json::Map::len);
            writeln!(out, "{name} schema {schema} {fields} required={}", words(&s["required"]))?;
        }
    }
    golden("openapi.txt", &out)
}

#[tokio::test]
async fn tables() -> Result<()> {
    let api = Api::start().await?;
    let mut out = String::new();
    for version in api.versions().await? {
        let doc = api.get(&format!("/{version}"), "application/json").await?;
        for r in list(&doc["resources"]).iter().filter(|r| list(&r["verbs"]).iter().any(|v| v == "list")) {
            let table = api.get(&format!("/{version}/{}", text(&r["name"])), TABLE).await?;
            write!(out, "{version} {}:", text(&r["name"]))?;
            for c in list(&table["columnDefinitions"]) {
                let wide = if c["priority"] == 0 { "" } else { "+" };
                let format = text(&c["format"]);
                let format = if format.is_empty() { String::new() } else { format!("({format})") };
                write!(out, " {wide}{}<{}{format}>", text(&c["name"]).replace(' ', "_"), text(&c["type"]))?;
            }
            out.push('\n');
        }
    }
    golden("tables.txt", &out)
}
