//! `rollback`, `scale` and `rm`.

use anyhow::{Context as _, bail};
use clap::Args;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use super::show::revisions_of;
use super::{MANAGER, Session};
use crate::api::{Code, Function, FunctionRevision};

/// `rollback`.
#[derive(Clone, Debug, Args)]
pub(super) struct RollbackArgs {
    /// The function.
    name: String,
    /// Name or number of the revision. Default: the one before the last.
    #[arg(long)]
    to: Option<String>,
}

/// `scale`.
#[derive(Clone, Debug, Args)]
pub(super) struct ScaleArgs {
    /// The function.
    name: String,
    /// So many, whatever the requests.
    #[arg(long, conflicts_with_all = ["min", "max"])]
    replicas: Option<u32>,
    /// At least so many; requests decide.
    #[arg(long)]
    min: Option<u32>,
    /// At most so many; requests decide. 0 is no limit.
    #[arg(long)]
    max: Option<u32>,
}

/// `rm`.
#[derive(Clone, Debug, Args)]
pub(super) struct RmArgs {
    /// The functions.
    #[arg(required_unless_present = "all")]
    names: Vec<String>,
    /// All of the namespace.
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// Be content when there is none of that name.
    #[arg(long)]
    ignore_not_found: bool,
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

pub(super) async fn rollback(session: &Session, args: RollbackArgs) -> anyhow::Result<()> {
    let api = session.api::<Function>();
    let function = api.get(&args.name).await?;
    let revisions = revisions_of(session, &args.name).await?;
    let target = chosen(&function, &revisions, args.to.as_deref())?;
    let name = target.name_any();
    let patch = back(&function.spec.code, &target.spec.code, &name)?;
    let patch = json!({"metadata": {"resourceVersion": function.resource_version()}, "spec": patch});
    api.patch(&args.name, &params(), &Patch::Merge(patch)).await?;
    println!("function.skiff.dev/{} rolled back to {name}", args.name);
    Ok(())
}

/// The revision to go back to; revisions are oldest first.
fn chosen<'a>(
    function: &Function,
    revisions: &'a [FunctionRevision],
    to: Option<&str>,
) -> anyhow::Result<&'a FunctionRevision> {
    let name = function.name_any();
    if let Some(to) = to {
        let found = revisions.iter().find(|r| r.name_any() == to || r.spec.number.to_string() == to);
        return found
            .with_context(|| format!("function {name} has no revision {to}: see `kubectl func revisions {name}`"));
    }
    let now = function.status.as_ref().and_then(|s| s.latest_revision.as_deref());
    let latest = revisions.iter().rposition(|r| now.is_none_or(|now| r.name_any() == now));
    let before = latest.and_then(|at| at.checked_sub(1)).map(|at| &revisions[at]);
    before.with_context(|| format!("function {name} has no revision before the last"))
}

/// The change that makes a function run a revision's code. What is in a ConfigMap may be otherwise by now, so that revision is
/// given all requests instead; the same where the code is the function's already.
fn back(now: &Code, then: &Code, revision: &str) -> anyhow::Result<Value> {
    if then.source.config_map.is_some() || now == then {
        return Ok(json!({"traffic": [{"revision": revision, "percent": 100}]}));
    }
    let (now, then) = (serde_json::to_value(now)?, serde_json::to_value(then)?);
    let mut patch = difference(&now, &then);
    // Shares of traffic may name the revision that is to be left.
    patch["traffic"] = Value::Null;
    Ok(patch)
}

/// The merge patch from one object to another.
fn difference(from: &Value, to: &Value) -> Value {
    let (Some(a), Some(b)) = (from.as_object(), to.as_object()) else { return to.clone() };
    let gone = a.keys().filter(|k| !b.contains_key(*k)).map(|k| (k.clone(), Value::Null));
    let other = b.iter().filter(|(k, v)| a.get(*k) != Some(v));
    gone.chain(other.map(|(k, v)| (k.clone(), a.get(k).map_or_else(|| v.clone(), |old| difference(old, v))))).collect()
}

pub(super) async fn scale(session: &Session, args: ScaleArgs) -> anyhow::Result<()> {
    let patch = match (args.replicas, args.min, args.max) {
        (Some(n), ..) => json!({"replicas": n, "scale": {"metric": "replicas"}}),
        (None, None, None) => bail!("how many? Name --replicas, --min or --max"),
        (None, min, max) => {
            let function = session.api::<Function>().get(&args.name).await?;
            let mut scale = json!({});
            if function.spec.scale.and_then(|s| s.metric) == Some(crate::api::Metric::Replicas) {
                scale["metric"] = Value::Null;
            }
            for (key, value) in [("min", min), ("max", max)] {
                if let Some(value) = value {
                    scale[key] = value.into();
                }
            }
            json!({"scale": scale})
        }
    };
    session.api::<Function>().patch(&args.name, &params(), &Patch::Merge(json!({"spec": patch}))).await?;
    println!("function.skiff.dev/{} scaled", args.name);
    Ok(())
}

pub(super) async fn rm(session: &Session, args: RmArgs) -> anyhow::Result<()> {
    let api = session.api::<Function>();
    let names = if args.all {
        api.list_metadata(&Default::default()).await?.items.iter().map(kube::ResourceExt::name_any).collect()
    } else {
        args.names
    };
    if names.is_empty() {
        println!("No functions found in {} namespace.", session.namespace);
    }
    // One that cannot be removed keeps no other from being removed.
    let mut first = None;
    for name in names {
        match api.delete(&name, &DeleteParams::foreground()).await {
            Ok(_) => println!("function.skiff.dev \"{name}\" deleted"),
            Err(kube::Error::Api(s)) if s.code == 404 && args.ignore_not_found => {}
            Err(e) => {
                let e = e.into();
                match first {
                    None => first = Some(e),
                    Some(_) => eprintln!("{}", super::told(&e)),
                }
            }
        }
    }
    first.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(json: Value) -> Code {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn going_back_is_the_smallest_change() {
        let old = code(json!({"source": {"inline": "1"}, "env": [{"name": "A"}], "timeoutSeconds": 5}));
        let new = code(
            json!({"source": {"archive": {"name": "a", "parts": 1, "sha256": "0"}}, "env": [{"name": "A"}], "handler": "h"}),
        );
        let patch =
            json!({"source": {"inline": "1", "archive": null}, "handler": null, "timeoutSeconds": 5, "traffic": null});
        assert_eq!(back(&new, &old, "f-1").unwrap(), patch);
        let pinned = json!({"traffic": [{"revision": "f-1", "percent": 100}]});
        assert_eq!(back(&old, &old, "f-1").unwrap(), pinned, "the code is the same already");
        let map = code(json!({"source": {"configMap": {"name": "c"}}}));
        assert_eq!(back(&old, &map, "f-1").unwrap(), pinned, "the ConfigMap may have changed");
    }

    #[test]
    fn the_one_before_the_last_is_chosen() {
        let revision = |n: i64| {
            let mut r = FunctionRevision::default();
            r.metadata.name = Some(format!("f-{n}"));
            r.spec.number = n;
            r
        };
        let all = [revision(3), revision(4), revision(7)];
        let mut function = Function::default();
        function.metadata.name = Some("f".into());
        let name = |to| chosen(&function, &all, to).map(kube::ResourceExt::name_any).map_err(|e| e.to_string());
        assert_eq!(name(None).unwrap(), "f-4");
        assert_eq!(name(Some("3")).unwrap(), "f-3");
        assert_eq!(name(Some("f-7")).unwrap(), "f-7");
        assert!(name(Some("5")).unwrap_err().contains("has no revision 5"));
        assert!(chosen(&function, &all[..1], None).is_err());
    }
}
