//! Wiring: definitions, engine, endpoint.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use kube::Client;
use skiff_controllers::runtime::definitions::define_at_start;
use skiff_faas::gateway::door::Tls;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::api::definitions;
use crate::endpoint::Endpoint;
use crate::engine::{Engine, Members, NoFaults, Settings, Sharing};
use crate::runs::Runs;
use crate::task::functions::Functions;

/// Field manager of the definitions.
const MANAGER: &str = "skiff-workflows";

/// Settings.
#[derive(Clone)]
pub struct Config {
    /// What calls functions.
    pub functions: Arc<dyn Functions>,
    /// Where the Step Functions API is served; with HTTPS where there are certificates.
    pub endpoint: Option<(SocketAddr, Option<Tls>)>,
    /// Who shares the runs of the cluster.
    pub members: Members,
}

/// Installs the custom resources and waits until they are served.
///
/// # Errors
/// When the API refuses, or takes too long.
pub async fn define(client: &Client) -> anyhow::Result<()> {
    skiff_controllers::runtime::definitions::define(client, MANAGER, &definitions()).await
}

/// Runs workflows until `stop`.
///
/// # Errors
/// When the API does not answer at the start.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    if !define_at_start(&client, MANAGER, &definitions(), &stop).await? {
        return Ok(());
    }
    let settings = Settings {
        functions: config.functions,
        faults: Arc::new(NoFaults),
        sharing: Sharing::default(),
        members: config.members,
    };
    let inner = stop.child_token();
    let engine = Engine::new(client.clone(), settings, inner.clone());
    let mut door = None;
    if let Some((address, tls)) = config.endpoint {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} for workflows: is the port taken?"))?;
        let tls = tls.map(|t| t.acceptor()).transpose().context("certificates of the endpoint of workflows")?;
        let endpoint = Arc::new(Endpoint::new(client, Arc::clone(&engine) as Arc<dyn Runs>));
        tracing::info!(%address, "workflows are served");
        door = Some(tokio::spawn(endpoint.serve(listener, tls, inner.clone())));
    }
    Arc::clone(&engine).run().await;
    // Others need not wait until its Lease runs out.
    engine.leave().await;
    if let Some(door) = door {
        let _ = door.await;
    }
    Ok(())
}
