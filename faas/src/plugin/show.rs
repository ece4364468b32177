//! `list`, `describe` and `revisions`.

use std::fmt::Write as _;

use clap::Args;
use k8s_openapi::api::core::v1::{Event, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use kube::api::ListParams;
use skiff_plugin::table::{age, render};
use skiff_plugin::{Format, nothing_found};

use super::Session;
use crate::api::{Code, FUNCTION, Function, FunctionInstance, FunctionRevision, Isolation, Trigger};

/// `list`.
#[derive(Clone, Debug, Args)]
pub(super) struct ListArgs {
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Labels that they must have.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Form of the output.
    #[arg(short, long)]
    output: Option<Format>,
}

/// `describe`.
#[derive(Clone, Debug, Args)]
pub(super) struct DescribeArgs {
    /// The function.
    name: String,
}

/// `revisions`.
#[derive(Clone, Debug, Args)]
pub(super) struct RevisionsArgs {
    /// The function.
    name: String,
    /// Form of the output.
    #[arg(short, long)]
    output: Option<Format>,
}

pub(super) async fn list(session: &Session, args: ListArgs) -> anyhow::Result<()> {
    let params = ListParams { label_selector: args.selector, ..ListParams::default() };
    let functions = session.some::<Function>(args.all_namespaces).list(&params).await?.items;
    if let Some(format) = args.output
        && format.data(&functions, "function")?
    {
        return Ok(());
    }
    if functions.is_empty() {
        nothing_found((!args.all_namespaces).then_some(session.namespace.as_str()));
        return Ok(());
    }
    let wide = args.output == Some(Format::Wide);
    let mut head = vec!["NAME", "READY", "URL", "INSTANCES", "STATE", "REVISION", "AGE"];
    if args.all_namespaces {
        head.insert(0, "NAMESPACE");
    }
    if wide {
        head.extend(["RUNTIME", "SOURCE", "TRIGGERS"]);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = functions
        .iter()
        .map(|f| {
            let status = f.status.clone().unwrap_or_default();
            let ready = status.conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.status.clone());
            let mut row = vec![
                f.name_any(),
                ready.unwrap_or_default(),
                status.url.unwrap_or_default(),
                status.instances.to_string(),
                status.state.unwrap_or_default(),
                status.latest_ready_revision.unwrap_or_default(),
                age(f.metadata.creation_timestamp.as_ref(), now),
            ];
            if args.all_namespaces {
                row.insert(0, f.namespace().unwrap_or_default());
            }
            if wide {
                let triggers: Vec<&str> = f.spec.triggers.iter().map(|t| t.name.as_str()).collect();
                row.extend([runtime(&f.spec.code), source(&f.spec.code), triggers.join(",")]);
            }
            row
        })
        .collect();
    print!("{}", render(&head, &rows));
    Ok(())
}

fn runtime(code: &Code) -> String {
    let default = if code.source.image.is_some() { "http" } else { "python" };
    code.runtime.clone().unwrap_or_else(|| default.to_owned())
}

fn source(code: &Code) -> String {
    let s = &code.source;
    match (&s.inline, &s.config_map, &s.archive, &s.image) {
        (Some(_), ..) => "inline".into(),
        (_, Some(map), ..) => format!("configmap/{}", map.name),
        (_, _, Some(archive), _) => archive.name.clone(),
        (.., Some(image)) => image.clone(),
        _ => String::new(),
    }
}

/// The revisions of a function, oldest first.
pub(super) async fn revisions_of(session: &Session, name: &str) -> anyhow::Result<Vec<FunctionRevision>> {
    let mut all = session.api::<FunctionRevision>().list(&ListParams::default()).await?.items;
    all.retain(|r| r.spec.function == name);
    all.sort_by_key(|r| r.spec.number);
    Ok(all)
}

pub(super) async fn revisions(session: &Session, args: RevisionsArgs) -> anyhow::Result<()> {
    let function = session.api::<Function>().get(&args.name).await?;
    let revisions = revisions_of(session, &args.name).await?;
    if let Some(format) = args.output
        && format.data(&revisions, "functionrevision")?
    {
        return Ok(());
    }
    print!("{}", revision_table(&function, &revisions, Timestamp::now()));
    Ok(())
}

fn revision_table(function: &Function, revisions: &[FunctionRevision], now: Timestamp) -> String {
    let rows: Vec<Vec<String>> = revisions
        .iter()
        .map(|r| {
            let status = r.status.clone().unwrap_or_default();
            let ready = status.conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.status.clone());
            vec![
                r.spec.number.to_string(),
                r.name_any(),
                ready.unwrap_or_default(),
                share(function, &r.name_any()),
                status.instances.to_string(),
                source(&r.spec.code),
                age(r.metadata.creation_timestamp.as_ref(), now),
            ]
        })
        .collect();
    render(&["NUMBER", "NAME", "READY", "TRAFFIC", "INSTANCES", "SOURCE", "AGE"], &rows)
}

/// The share of the requests that a revision gets, and its tags.
fn share(function: &Function, revision: &str) -> String {
    let latest = function.status.as_ref().and_then(|s| s.latest_ready_revision.as_deref());
    if function.spec.traffic.is_empty() {
        return if latest == Some(revision) { "100%".into() } else { String::new() };
    }
    let to = function.spec.traffic.iter().filter(|s| s.revision.as_deref().or(latest) == Some(revision));
    let (percent, tags) = to.fold((0, String::new()), |(sum, mut tags), s| {
        if let Some(tag) = &s.tag {
            tags.push(' ');
            tags.push_str(tag);
        }
        (sum + s.percent, tags)
    });
    if percent == 0 && tags.is_empty() { String::new() } else { format!("{percent}%{tags}") }
}

fn what(trigger: &Trigger) -> String {
    if let Some(cron) = &trigger.cron {
        let zone = cron.time_zone.as_deref().unwrap_or("UTC");
        return format!("cron {} ({zone})", cron.schedule);
    }
    if let Some(watch) = &trigger.watch {
        return format!("watch {} {}", watch.api_version, watch.kind);
    }
    trigger.files.as_ref().map(|f| format!("files {}", f.path)).unwrap_or_default()
}

pub(super) async fn describe(session: &Session, args: DescribeArgs) -> anyhow::Result<()> {
    let name = &args.name;
    let function = session.api::<Function>().get(name).await?;
    let mine = ListParams::default().labels(&format!("{FUNCTION}={name}"));
    let about = ListParams::default().fields(&format!("involvedObject.kind=Function,involvedObject.name={name}"));
    let (pods, processes, events) = (session.api::<Pod>(), session.api::<FunctionInstance>(), session.api::<Event>());
    let (revisions, pods, processes, events) =
        tokio::join!(revisions_of(session, name), pods.list(&mine), processes.list(&mine), events.list(&about));
    let now = Timestamp::now();
    let (spec, status) = (&function.spec, function.status.clone().unwrap_or_default());
    let mut out = String::new();
    let mut line = |key: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "{:<14}{value}", format!("{key}:"));
        }
    };
    line("Name", name.clone());
    line("Namespace", session.namespace.clone());
    line("State", status.state.unwrap_or_default());
    line("URL", status.url.unwrap_or_default());
    line("Hosts", spec.hosts.join(", "));
    line("Public", spec.public.to_string());
    line("Runtime", runtime(&spec.code));
    line("Handler", spec.code.handler.clone().unwrap_or_default());
    line("Source", source(&spec.code));
    let class = spec.code.isolation.map(|i| match i {
        Isolation::Container => "container",
        Isolation::Process => "process",
    });
    line("Isolation", class.unwrap_or_default().to_owned());
    let env: Vec<&str> = spec.code.env.iter().map(|e| e.name.as_str()).collect();
    line("Environment", env.join(", "));
    for trigger in &spec.triggers {
        let told = status.triggers.get(&trigger.name).cloned().unwrap_or_default();
        let last = told.last_time.map(|t| format!(", last {} ago", age(Some(&t), now))).unwrap_or_default();
        let fault = told.message.map(|m| format!(": {m}")).unwrap_or_default();
        line("Trigger", format!("{}: {}{last}{fault}", trigger.name, what(trigger)));
    }
    for c in &status.conditions {
        line(
            "Condition",
            format!("{}={} {} {}", c.type_, c.status, c.reason, c.message.replace('\n', "\n              ")),
        );
    }
    print!("{out}\nRevisions:\n{}", revision_table(&function, &revisions?, now));
    let mut rows: Vec<Vec<String>> = vec![];
    for pod in pods?.items {
        let status = pod.status.clone().unwrap_or_default();
        let node = pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
        let revision = pod.labels().get(crate::api::REVISION).cloned().unwrap_or_default();
        let age = age(pod.metadata.creation_timestamp.as_ref(), now);
        rows.push(vec![format!("pod/{}", pod.name_any()), revision, node, status.phase.unwrap_or_default(), age]);
    }
    for i in processes?.items {
        let age = age(i.metadata.creation_timestamp.as_ref(), now);
        rows.push(vec![format!("functioninstance/{}", i.name_any()), i.spec.revision, i.spec.node, i.spec.state, age]);
    }
    if rows.is_empty() {
        println!("\nInstances:    none");
    } else {
        print!("\nInstances:\n{}", render(&["NAME", "REVISION", "NODE", "STATE", "AGE"], &rows));
    }
    let mut events = events?.items;
    events.sort_by_key(|e| e.last_timestamp.as_ref().map(|t| t.0));
    let rows: Vec<Vec<String>> = events
        .into_iter()
        .map(|e| {
            let last = age(e.last_timestamp.as_ref().or(e.metadata.creation_timestamp.as_ref()), now);
            vec![e.type_.unwrap_or_default(), e.reason.unwrap_or_default(), last, e.message.unwrap_or_default()]
        })
        .collect();
    if rows.is_empty() {
        println!("\nEvents:       <none>");
    } else {
        print!("\nEvents:\n{}", render(&["TYPE", "REASON", "AGE", "MESSAGE"], &rows));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn shares_are_told() {
        let function = |traffic: serde_json::Value| -> Function {
            let whole = json!({"apiVersion": "skiff.dev/v1", "kind": "Function", "metadata": {"name": "f"},
                "spec": {"source": {"image": "i"}, "traffic": traffic}, "status": {"latestReadyRevision": "f-2"}});
            serde_json::from_value(whole).unwrap()
        };
        let all = function(json!([]));
        assert_eq!((share(&all, "f-2").as_str(), share(&all, "f-1").as_str()), ("100%", ""));
        let split = function(json!([{"percent": 90}, {"revision": "f-1", "percent": 10, "tag": "old"}]));
        assert_eq!((share(&split, "f-2").as_str(), share(&split, "f-1").as_str()), ("90%", "10% old"));
    }
}
