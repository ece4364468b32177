//! The ingress gateway alone, with one rule to one endpoint, to be measured from outside.
//!
//! `cargo run --release -p skiff-proxy --example bench_ingress LISTEN ENDPOINT` serves until it is ended;
//! `hack/bench.sh ingress` puts load on it, and on nginx beside it.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::json;
use skiff_proxy::index::Shared;
use skiff_proxy::ingress::State;
use skiff_proxy::ingress::serve::{Gateway, plain};
use skiff_proxy::ingress::table::Table;
use skiff_proxy::model::{Service, Slice};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut address = |what| arguments.next().context(what)?.parse::<SocketAddr>().context(what);
    let (listen, endpoint) = (address("where to listen")?, address("the endpoint")?);
    let shared = Shared::default();
    let service = serde_json::from_value(json!({
        "metadata": {"namespace": "bench", "name": "web"},
        "spec": {"clusterIP": "10.96.1.1", "ports": [{"name": "web", "port": 80}]},
    }))?;
    let slice = serde_json::from_value(json!({
        "metadata": {"namespace": "bench", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "web", "port": endpoint.port(), "protocol": "TCP"}],
        "endpoints": [{"addresses": [endpoint.ip().to_string()], "conditions": {"ready": true}}],
    }))?;
    let (id, service) = Service::parse(&service).context("no Service")?;
    let (own, of, slice) = Slice::parse(&slice, "node").context("no slice")?;
    shared.index.write().put_service(id, service);
    shared.index.write().put_slice(own, of, slice);
    let backend = json!({"service": {"name": "web", "port": {"name": "web"}}});
    let ingress = serde_json::from_value(json!({
        "metadata": {"namespace": "bench", "name": "web"},
        "spec": {"rules": [{"host": "bench.example", "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": backend}]}}]},
    }))?;
    let gateway = Arc::new(Gateway::new(Arc::new(State::of(Table::new([&ingress]))), shared));
    plain(gateway, TcpListener::bind(listen).await?, CancellationToken::new()).await;
    Ok(())
}
