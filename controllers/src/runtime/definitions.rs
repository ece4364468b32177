//! Custom resources that a room brings along: installed by server-side apply, and waited for.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

/// Time for a definition to be served.
const DEFINED: Duration = Duration::from_secs(30);
/// Pause between tries to reach the API at the start, and their number.
const START: (Duration, u32) = (Duration::from_millis(250), 240);

/// Definitions that a room keeps as JSON beside its types: made from them by a test, so that what makes them is no part of the
/// program.
///
/// # Panics
/// When the text is no list of objects, which that test would have told.
#[must_use]
pub fn read(json: &str) -> Vec<DynamicObject> {
    serde_json::from_str(json).expect("a list of definitions")
}

fn is_established(found: Option<&DynamicObject>) -> bool {
    let conditions = found.and_then(|d| d.data["status"]["conditions"].as_array());
    conditions.into_iter().flatten().any(|c| c["type"] == "Established" && c["status"] == "True")
}

/// Installs definitions as field manager `manager`, and waits until they are served.
///
/// # Errors
/// When the API refuses, or takes too long.
pub async fn define(client: &Client, manager: &str, definitions: &[DynamicObject]) -> anyhow::Result<()> {
    let kind = ApiResource::erase::<CustomResourceDefinition>(&());
    let api = Api::<DynamicObject>::all_with(client.clone(), &kind);
    for definition in definitions {
        let name = definition.metadata.name.clone().unwrap_or_default();
        let parameters = PatchParams::apply(manager).force();
        let applied = api.patch(&name, &parameters, &Patch::Apply(definition)).await;
        applied.with_context(|| format!("cannot define {name}"))?;
        let established = await_condition(api.clone(), &name, is_established);
        let waited = tokio::time::timeout(DEFINED, established).await;
        waited
            .with_context(|| format!("{name} is not served in time"))?
            .with_context(|| format!("cannot watch {name}"))?;
    }
    Ok(())
}

/// The same at the start of a process, when the server, or the rights there, may come a moment later. False when `stop` came
/// first.
///
/// # Errors
/// When it did not work for a minute.
pub async fn define_at_start(
    client: &Client,
    manager: &str,
    definitions: &[DynamicObject],
    stop: &CancellationToken,
) -> anyhow::Result<bool> {
    let mut tries = 0;
    while let Err(error) = define(client, manager, definitions).await {
        tries += 1;
        if tries >= START.1 {
            return Err(error);
        }
        tracing::debug!(manager, error = format!("{error:#}"), "not defined yet");
        if stop.run_until_cancelled(tokio::time::sleep(START.0)).await.is_none() {
            return Ok(false);
        }
    }
    Ok(true)
}
