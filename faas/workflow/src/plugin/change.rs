//! `publish` and `alias`.

use anyhow::{Context as _, bail};
use clap::Args;
use kube::ResourceExt as _;
use kube::api::PostParams;
use skiff_plugin::Session;

use super::run::bare;
use crate::api::{Alias, Route, Workflow, WorkflowVersion};
use crate::endpoint;

/// Tries of a change that meets another.
const TRIES: u32 = 8;

/// `publish`.
#[derive(Clone, Debug, Args)]
pub(super) struct PublishArgs {
    /// The workflow.
    workflow: String,
    /// What the version is for.
    #[arg(long)]
    description: Option<String>,
}

/// `alias`.
#[derive(Clone, Debug, Args)]
pub(super) struct AliasArgs {
    /// The workflow.
    workflow: String,
    /// The alias.
    alias: String,
    /// VERSION, or VERSION=PERCENT twice.
    #[arg(required_unless_present = "delete")]
    routes: Vec<String>,
    /// What it is for.
    #[arg(long)]
    description: Option<String>,
    /// Take the alias away.
    #[arg(long, conflicts_with = "routes")]
    delete: bool,
}

pub(super) async fn publish(session: &Session, args: PublishArgs) -> anyhow::Result<()> {
    let workflow = session.api::<Workflow>().get(bare(&args.workflow)).await?;
    let version = endpoint::publish(&session.client, &workflow, args.description.as_deref()).await?;
    println!("workflowversion.skiff.dev/{} published", version.name_any());
    Ok(())
}

fn routes(given: &[String]) -> anyhow::Result<Vec<Route>> {
    let mut routes = vec![];
    for text in given {
        let (version, weight) = text.split_once('=').unwrap_or((text, "100"));
        let read =
            || Some(Route { version: version.parse().ok()?, weight: weight.trim_end_matches('%').parse().ok()? });
        routes.push(read().with_context(|| format!("{text:?} is not VERSION=PERCENT"))?);
    }
    if routes.len() > 2 || routes.iter().map(|r| u64::from(r.weight)).sum::<u64>() != 100 {
        bail!("an alias has one version, or two whose percents add up to 100");
    }
    Ok(routes)
}

pub(super) async fn alias(session: &Session, args: AliasArgs) -> anyhow::Result<()> {
    let (name, api) = (bare(&args.workflow), session.api::<Workflow>());
    let wanted = if args.delete { None } else { Some(routes(&args.routes)?) };
    for route in wanted.iter().flatten() {
        let version = WorkflowVersion::name_of(name, route.version);
        session.api::<WorkflowVersion>().get(&version).await?;
    }
    for _ in 0..TRIES {
        let mut workflow = api.get(name).await?;
        let aliases = &mut workflow.spec.aliases;
        let there = aliases.iter().position(|a| a.name == args.alias);
        match (&wanted, there) {
            (None, None) => bail!("workflow/{name} has no alias {}", args.alias),
            (None, Some(i)) => drop(aliases.remove(i)),
            (Some(routing), there) => {
                let old = there.map(|i| aliases.remove(i)).unwrap_or_default();
                let description = args.description.clone().or(old.description);
                aliases.push(Alias { name: args.alias.clone(), description, routing: routing.clone() });
            }
        }
        match api.replace(name, &PostParams::default(), &workflow).await {
            Ok(_) => {
                println!(
                    "workflow.skiff.dev/{name} alias {} {}",
                    args.alias,
                    if args.delete { "deleted" } else { "set" }
                );
                return Ok(());
            }
            Err(kube::Error::Api(s)) if s.code == 409 => {}
            Err(e) => return Err(e.into()),
        }
    }
    bail!("others change workflow/{name} all the time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read() {
        let read = |words: &[&str]| routes(&words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
        assert_eq!(read(&["3"]).unwrap(), [Route { version: 3, weight: 100 }]);
        assert_eq!(read(&["1=90", "2=10%"]).unwrap()[1], Route { version: 2, weight: 10 });
        for bad in [&["x"][..], &["1=50"], &["1=50", "2=30", "3=20"], &["1", "2"]] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
