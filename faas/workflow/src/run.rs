//! Wiring: definitions, engine, endpoint.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::runtime::{conditions, wait::await_condition};
use kube::{Api, Client};
use skiff_faas::gateway::door::Tls;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::api::definitions;
use crate::endpoint::Endpoint;
use crate::engine::{Engine, NoFaults, Settings};
use crate::runs::Runs;
use crate::task::functions::Functions;

/// Time for the definitions to be served.
const DEFINED: Duration = Duration::from_secs(30);
/// Field manager of the definitions.
const MANAGER: &str = "skiff-workflows";
/// Pause between tries to reach the API at the start, and their number.
const START: (Duration, u32) = (Duration::from_millis(250), 240);

/// Settings.
#[derive(Clone)]
pub struct Config {
    /// What calls functions.
    pub functions: Arc<dyn Functions>,
    /// Where the Step Functions API is served; with HTTPS where there are certificates.
    pub endpoint: Option<(SocketAddr, Option<Tls>)>,
}

/// Installs the custom resources and waits until they are served.
///
/// # Errors
/// When the API refuses, or takes too long.
pub async fn define(client: &Client) -> anyhow::Result<()> {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    for definition in definitions() {
        let name = definition.metadata.name.clone().unwrap_or_default();
        let parameters = PatchParams::apply(MANAGER).force();
        api.patch(&name, &parameters, &Patch::Apply(&definition))
            .await
            .with_context(|| format!("cannot define {name}"))?;
        let established = await_condition(api.clone(), &name, conditions::is_crd_established());
        let waited = tokio::time::timeout(DEFINED, established).await;
        waited
            .with_context(|| format!("{name} is not served in time"))?
            .with_context(|| format!("cannot watch {name}"))?;
    }
    Ok(())
}

/// Runs workflows until `stop`.
///
/// # Errors
/// When the API does not answer at the start.
pub async fn run(client: Client, config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let mut tries = 0;
    while let Err(error) = define(&client).await {
        tries += 1;
        if tries >= START.1 {
            return Err(error);
        }
        // The rights may come a moment later than the server.
        tracing::debug!(error = format!("{error:#}"), "workflows are not defined yet");
        if stop.run_until_cancelled(tokio::time::sleep(START.0)).await.is_none() {
            return Ok(());
        }
    }
    let settings = Settings { functions: config.functions, faults: Arc::new(NoFaults) };
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
    engine.run().await;
    if let Some(door) = door {
        let _ = door.await;
    }
    Ok(())
}
