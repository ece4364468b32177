//! An API server alone on a port of loopback, without controllers and nodes: what upstream's server is compared with.
//!
//! `cargo run -p skiff-apiserver --example serve -- DIR [PORT]` writes `DIR/kubeconfig` with an administrator's certificate
//! and serves until it is killed. Nothing in it knows that it is not a cluster; nobody acts on what is written.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use skiff_apiserver::Server;
use skiff_storage::embedded::{Embedded, Options};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let dir = PathBuf::from(args.next().ok_or("usage: serve DIR [PORT]")?);
    let port: u16 = args.next().map_or(Ok(7444), |p| p.parse())?;
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let store = Embedded::open(dir.join("data"), Options::default())?;
    let server = Server::builder(Arc::new(store)).advertise(here, port).start().await?;
    let pki = server.pki();
    let serving = pki.cluster.server("kube-apiserver", &["localhost".to_owned()], &[here])?;
    let admin = pki.cluster.client("admin", &["system:masters"])?;
    let file = |name: &str, text: &str| -> std::io::Result<PathBuf> {
        let path = dir.join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    };
    let (ca, cert, key) =
        (file("ca.crt", &pki.cluster.cert)?, file("admin.crt", &admin.cert)?, file("admin.key", &admin.key)?);
    let cluster = json!({"server": format!("https://{here}:{port}"), "certificate-authority": ca});
    let user = json!({"client-certificate": cert, "client-key": key});
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "current-context": "serve",
        "clusters": [{"name": "serve", "cluster": cluster}], "users": [{"name": "admin", "user": user}],
        "contexts": [{"name": "serve", "context": {"cluster": "serve", "user": "admin"}}]});
    file("kubeconfig", &kubeconfig.to_string())?;
    let listener = tokio::net::TcpListener::bind((here, port)).await?;
    println!("https://{here}:{port}");
    server.listen(listener, &serving).await?;
    Ok(())
}
