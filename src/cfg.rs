//! `skiff cfg`, also `kubectl cfg`: settings of a running cluster, read and changed from the command line.
//!
//! There is one setting: `sched`, the scheduler's placement policy, which is the key `policy` of the ConfigMap
//! `kube-system/skiff-scheduler`. Whoever may write that may change it.

use std::path::PathBuf;

use anyhow::{anyhow, bail};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use serde_json::json;
use skiff_controllers::runtime::worker::text;
use skiff_controllers::scheduler::policy::{KEY, NAME, NAMESPACE, Policy};

/// Other names of policies, as people know them from elsewhere.
const ALIASES: [(&str, &str); 5] = [
    ("min-pods", "fewest-pods"),
    ("max-pods", "most-pods"),
    ("min-cpu", "lowest-cpu"),
    ("min-mem", "lowest-memory"),
    ("poll", "round-robin"),
];

/// What `cfg` is asked for.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CfgArgs {
    /// What to change: sched=POLICY. Without it the settings are shown. Policies: default, random, round-robin,
    /// fewest-pods (min-pods), most-pods (max-pods), lowest-cpu (min-cpu), lowest-memory (min-mem).
    setting: Option<String>,
    /// kubeconfig file. Default: $KUBECONFIG, else ~/.kube/config.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig. Default: the current one.
    #[arg(long)]
    context: Option<String>,
}

/// The policy that a setting names.
fn policy(setting: &str) -> anyhow::Result<&'static str> {
    let Some(("sched", value)) = setting.split_once('=') else {
        bail!("unknown setting {setting:?}: the only one is sched=POLICY");
    };
    let name = ALIASES.iter().find(|(alias, _)| *alias == value).map_or(value, |(_, name)| name);
    let map = ConfigMap { data: Some([(KEY.to_owned(), name.to_owned())].into()), ..ConfigMap::default() };
    Ok(Policy::read(Some(&map)).map_err(anyhow::Error::msg)?.name())
}

/// Shows or changes settings.
pub(crate) async fn run(args: CfgArgs) -> anyhow::Result<()> {
    let wanted = args.setting.as_deref().map(policy).transpose()?;
    let options = KubeConfigOptions { context: args.context, ..KubeConfigOptions::default() };
    let config = match &args.kubeconfig {
        Some(path) => kube::Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &options).await?,
        None => kube::Config::from_kubeconfig(&options).await?,
    };
    let api: Api<ConfigMap> = Api::namespaced(Client::try_from(config)?, NAMESPACE);
    let Some(name) = wanted else {
        let map = api.get_opt(NAME).await.map_err(|e| anyhow!("cannot read the settings: {}", text(&e)))?;
        println!("sched={}", Policy::read(map.as_ref()).map_or("default", Policy::name));
        return Ok(());
    };
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": {KEY: name}});
    // By ownership, so that it need not exist; whoever set it before has no say any more.
    let params = PatchParams::apply("kubectl-cfg").force();
    api.patch(NAME, &params, &Patch::Apply(map))
        .await
        .map_err(|e| anyhow!("cannot change the settings: {}", text(&e)))?;
    println!("sched={name}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::policy;

    #[test]
    fn what_settings_mean() {
        for (setting, want) in
            [("sched=min-pods", "fewest-pods"), ("sched=min-mem", "lowest-memory"), ("sched=random", "random")]
        {
            assert_eq!(policy(setting).ok(), Some(want));
        }
        for (setting, want) in [
            ("sched=fastest", "unknown policy \"fastest\": must be one of default, random,"),
            ("sched", "unknown setting \"sched\": the only one is sched=POLICY"),
            ("color=red", "unknown setting \"color=red\""),
        ] {
            let text = policy(setting).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(text.starts_with(want), "{text}");
        }
    }
}
