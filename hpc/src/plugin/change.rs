//! `cancel`, `hold` and `release`.

use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use kube::Resource as _;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::runtime::wait::conditions::is_deleted;
use serde_json::{Value, json};

use super::{MANAGER, Session};
use crate::api::{GpuJob, RELEASE};

/// `cancel`.
#[derive(Clone, Debug, Args)]
pub(super) struct CancelArgs {
    /// The jobs.
    #[arg(required = true)]
    names: Vec<String>,
    /// Do not wait until they are ended in Slurm.
    #[arg(long)]
    no_wait: bool,
    /// Seconds to wait.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Be content when there is none of that name.
    #[arg(long)]
    ignore_not_found: bool,
}

/// `hold`.
#[derive(Clone, Debug, Args)]
pub(super) struct HoldArgs {
    /// The jobs.
    #[arg(required = true)]
    names: Vec<String>,
}

/// `release`.
#[derive(Clone, Debug, Args)]
pub(super) struct ReleaseArgs {
    /// The jobs.
    #[arg(required = true)]
    names: Vec<String>,
}

/// Does something to each; one that fails keeps no other from it.
async fn each<F: Future<Output = anyhow::Result<()>>>(
    names: &[String],
    work: impl Fn(String) -> F,
) -> anyhow::Result<()> {
    let mut first = None;
    for name in names {
        if let Err(e) = work(name.clone()).await {
            match first {
                None => first = Some(e),
                Some(_) => eprintln!("{}", super::told(&e)),
            }
        }
    }
    first.map_or(Ok(()), Err)
}

pub(super) async fn cancel(session: &Session, args: CancelArgs) -> anyhow::Result<()> {
    let api = session.api::<GpuJob>();
    each(&args.names, |name| {
        let (api, args) = (&api, &args);
        async move {
            let job = match api.get(&name).await {
                Err(kube::Error::Api(s)) if s.code == 404 && args.ignore_not_found => return Ok(()),
                job => job?,
            };
            match api.delete(&name, &DeleteParams::default()).await {
                Err(kube::Error::Api(s)) if s.code == 404 => {}
                done => drop(done?),
            }
            if !args.no_wait {
                // Its object goes when Slurm said that it ended.
                let uid = job.meta().uid.clone().unwrap_or_default();
                let gone = skiff_client::wait_for(api.clone(), &name, is_deleted(&uid));
                let waited = tokio::time::timeout(Duration::from_secs(args.timeout), gone).await;
                waited.with_context(|| {
                    format!("job {name} is being cancelled, but Slurm has not said so in {} s", args.timeout)
                })??;
            }
            println!("gpujob.skiff.dev/{name} cancelled");
            Ok(())
        }
    })
    .await
}

async fn patch(session: &Session, names: &[String], patch: &Value, word: &str) -> anyhow::Result<()> {
    let api = session.api::<GpuJob>();
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    each(names, |name| {
        let (api, params) = (&api, &params);
        async move {
            api.patch(&name, params, &Patch::Merge(patch)).await?;
            println!("gpujob.skiff.dev/{name} {word}");
            Ok(())
        }
    })
    .await
}

pub(super) async fn hold(session: &Session, args: HoldArgs) -> anyhow::Result<()> {
    patch(session, &args.names, &json!({"spec": {"suspend": true}}), "held").await
}

pub(super) async fn release(session: &Session, args: ReleaseArgs) -> anyhow::Result<()> {
    // The annotation speaks to jobs that Slurm itself or an administrator holds, or that wait for their next try.
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let change = json!({"metadata": {"annotations": {(RELEASE): now}}, "spec": {"suspend": false}});
    patch(session, &args.names, &change, "released").await
}
