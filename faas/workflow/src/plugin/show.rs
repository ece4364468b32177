//! `list`, `describe`, `history`.

use std::fmt::Write as _;

use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::ResourceExt as _;
use kube::api::ListParams;
use serde_json::{Value, json};
use skiff_plugin::table::{age, render};
use skiff_plugin::{Format, Session, nothing_found};

use super::run::{bare, reason};
use crate::api::{Kind, RUN, RunStatus, Trigger, Workflow, WorkflowMapRun, WorkflowRun, WorkflowVersion};
use crate::runs::{Runs as _, Stored};

/// Letters of data in a table.
const SHORT: usize = 80;
/// Events that are read at a time.
const CHUNK: usize = 1000;
/// Runs that a description shows.
const RUNS: usize = 10;

/// `list`.
#[derive(Clone, Debug, Args)]
pub(super) struct ListArgs {
    /// Runs of this workflow.
    workflow: Option<String>,
    /// Runs instead of workflows.
    #[arg(long)]
    runs: bool,
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
    /// A workflow or a run; `wf/NAME` or `wfr/NAME` says which.
    name: String,
}

/// `history`.
#[derive(Clone, Debug, Args)]
pub(super) struct HistoryArgs {
    /// The run.
    run: String,
    /// The newest first.
    #[arg(long)]
    reverse: bool,
    /// At most so many events.
    #[arg(long)]
    limit: Option<usize>,
    /// Form of the output.
    #[arg(short, long)]
    output: Option<Data>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Data {
    Json,
}

pub(super) async fn list(session: &Session, args: ListArgs) -> anyhow::Result<()> {
    let params = ListParams { label_selector: args.selector.clone(), ..ListParams::default() };
    let (now, all) = (Timestamp::now(), args.all_namespaces);
    let here = (!all).then_some(session.namespace.as_str());
    let place = |row: &mut Vec<String>, namespace: Option<String>| {
        if all {
            row.insert(0, namespace.unwrap_or_default());
        }
    };
    if args.runs || args.workflow.is_some() {
        let mut runs = session.some::<WorkflowRun>(all).list(&params).await?.items;
        if let Some(workflow) = args.workflow.as_deref().map(bare) {
            runs.retain(|r| r.spec.workflow.as_deref() == Some(workflow));
        }
        runs.sort_by_key(|r| std::cmp::Reverse(began(r)));
        if args.output.map_or(Ok(false), |f| f.data(&runs, "workflowrun"))? {
            return Ok(());
        }
        if runs.is_empty() {
            nothing_found(here);
            return Ok(());
        }
        let rows: Vec<Vec<String>> = runs
            .iter()
            .map(|r| {
                let mut row = run_row(r, now);
                place(&mut row, r.namespace());
                row
            })
            .collect();
        let mut head = RUN_HEAD.to_vec();
        if all {
            head.insert(0, "NAMESPACE");
        }
        print!("{}", render(&head, &rows));
        return Ok(());
    }
    let workflows = session.some::<Workflow>(all).list(&params).await?.items;
    if args.output.map_or(Ok(false), |f| f.data(&workflows, "workflow"))? {
        return Ok(());
    }
    if workflows.is_empty() {
        nothing_found(here);
        return Ok(());
    }
    let wide = args.output == Some(Format::Wide);
    let rows: Vec<Vec<String>> = workflows
        .iter()
        .map(|w| {
            let status = w.status.clone().unwrap_or_default();
            let mut row = vec![
                w.name_any(),
                kind(w.spec.kind).to_owned(),
                condition(&status.conditions, "Valid"),
                status.latest_version.map_or_else(|| "-".to_owned(), |v| v.to_string()),
                status.running.to_string(),
                age(w.metadata.creation_timestamp.as_ref(), now),
            ];
            place(&mut row, w.namespace());
            if wide {
                let names = |all: &mut dyn Iterator<Item = &str>| all.collect::<Vec<_>>().join(",");
                row.push(names(&mut w.spec.triggers.iter().map(|t| t.name.as_str())));
                row.push(names(&mut w.spec.aliases.iter().map(|a| a.name.as_str())));
            }
            row
        })
        .collect();
    let mut head = vec!["NAME", "TYPE", "VALID", "VERSION", "RUNNING", "AGE"];
    if all {
        head.insert(0, "NAMESPACE");
    }
    if wide {
        head.extend(["TRIGGERS", "ALIASES"]);
    }
    print!("{}", render(&head, &rows));
    Ok(())
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Standard => "standard",
        Kind::Express => "express",
    }
}

fn condition(all: &[Condition], name: &str) -> String {
    all.iter().find(|c| c.type_ == name).map(|c| c.status.clone()).unwrap_or_default()
}

/// When a run began, more exactly than its object's creation where that is known.
fn began(run: &WorkflowRun) -> Option<Timestamp> {
    let started = run.status.as_ref().and_then(|s| s.start_time.as_ref()).map(|t| t.0);
    started.or_else(|| run.creation_timestamp().map(|t| t.0))
}

const RUN_HEAD: [&str; 7] = ["NAME", "WORKFLOW", "PHASE", "STATE", "EVENTS", "DURATION", "AGE"];

fn run_row(run: &WorkflowRun, now: Timestamp) -> Vec<String> {
    let status = run.status.clone().unwrap_or_default();
    vec![
        run.name_any(),
        run.spec.workflow.clone().unwrap_or_default(),
        status.phase.as_str().to_owned(),
        status.current_states.first().cloned().unwrap_or_default(),
        status.events.to_string(),
        took(&status, now),
        age(run.metadata.creation_timestamp.as_ref(), now),
    ]
}

/// How long a run took, or takes so far.
fn took(status: &RunStatus, now: Timestamp) -> String {
    let Some(start) = &status.start_time else { return String::new() };
    let end = status.stop_time.as_ref().map_or(now, |t| t.0);
    span(end.duration_since(start.0))
}

/// A time span, short.
pub(super) fn span(time: SignedDuration) -> String {
    let millis = time.as_millis().max(0);
    match millis {
        0..1000 => format!("{millis}ms"),
        1000..60_000 => format!("{}.{}s", millis / 1000, millis % 1000 / 100),
        60_000..3_600_000 => format!("{}m{}s", millis / 60_000, millis % 60_000 / 1000),
        _ => format!("{}h{}m", millis / 3_600_000, millis % 3_600_000 / 60_000),
    }
}

/// Lines of a description.
struct Lines(String);

impl Lines {
    fn line(&mut self, key: &str, value: impl AsRef<str>) {
        let value = value.as_ref();
        if !value.is_empty() {
            let _ = writeln!(self.0, "{:<14}{}", format!("{key}:"), value.replace('\n', "\n              "));
        }
    }
}

pub(super) async fn describe(session: &Session, args: DescribeArgs) -> anyhow::Result<()> {
    let (of, name) = args.name.split_once('/').unwrap_or(("", &args.name));
    let run = matches!(of, "wfr" | "run" | "workflowrun" | "workflowruns");
    if !run {
        let found = session.api::<Workflow>().get_opt(name).await?;
        if let Some(workflow) = found {
            return describe_workflow(session, workflow).await;
        }
        if !of.is_empty() || session.api::<WorkflowRun>().get_opt(name).await?.is_none() {
            session.api::<Workflow>().get(name).await?;
        }
    }
    describe_run(session, name).await
}

async fn describe_workflow(session: &Session, workflow: Workflow) -> anyhow::Result<()> {
    let (name, now) = (workflow.name_any(), Timestamp::now());
    let (versions, runs) = (session.api::<WorkflowVersion>(), session.api::<WorkflowRun>());
    let (all, of) = (ListParams::default(), ListParams::default());
    let (versions, runs, events) =
        tokio::join!(versions.list(&all), runs.list(&of), events(session, "Workflow", &name));
    let (spec, status) = (&workflow.spec, workflow.status.clone().unwrap_or_default());
    let mut out = Lines(String::new());
    out.line("Name", &name);
    out.line("Namespace", &session.namespace);
    out.line("Type", kind(spec.kind));
    out.line("Revision", status.revision.as_deref().unwrap_or_default());
    out.line("Account", spec.service_account_name.as_deref().unwrap_or("default"));
    let limit = spec.concurrency.as_ref().map(|c| format!(" of {}", c.max_runs)).unwrap_or_default();
    out.line("Running", format!("{}{limit}", status.running));
    for alias in &spec.aliases {
        let routes: Vec<String> = alias.routing.iter().map(|r| format!("{} {}%", r.version, r.weight)).collect();
        out.line("Alias", format!("{}: version {}", alias.name, routes.join(", ")));
    }
    for trigger in &spec.triggers {
        let told = status.triggers.get(&trigger.name).cloned().unwrap_or_default();
        let last = told.last_time.map(|t| format!(", last {} ago", age(Some(&t), now))).unwrap_or_default();
        let fault = told.message.map(|m| format!(": {m}")).unwrap_or_default();
        out.line("Trigger", format!("{}: {}{last}{fault}", trigger.name, what(trigger)));
    }
    for c in &status.conditions {
        out.line("Condition", format!("{}={} {} {}", c.type_, c.status, c.reason, c.message));
    }
    print!("{}", out.0);
    let mut versions = versions?.items;
    versions.retain(|v| v.spec.workflow == name);
    versions.sort_by_key(|v| v.spec.number);
    if !versions.is_empty() {
        let rows: Vec<Vec<String>> = versions
            .iter()
            .map(|v| {
                let age = age(v.metadata.creation_timestamp.as_ref(), now);
                vec![v.spec.number.to_string(), v.spec.description.clone().unwrap_or_default(), age]
            })
            .collect();
        print!("\nVersions:\n{}", render(&["NUMBER", "DESCRIPTION", "AGE"], &rows));
    }
    let mut runs = runs?.items;
    runs.retain(|r| r.spec.workflow.as_deref() == Some(&name));
    runs.sort_by_key(|r| std::cmp::Reverse(began(r)));
    let more = runs.len().saturating_sub(RUNS);
    runs.truncate(RUNS);
    if runs.is_empty() {
        println!("\nRuns:         none");
    } else {
        let rows: Vec<Vec<String>> = runs.iter().map(|r| run_row(r, now)).collect();
        print!("\nRuns:\n{}", render(&RUN_HEAD, &rows));
        if more > 0 {
            println!("and {more} more");
        }
    }
    print!("{}", events?);
    Ok(())
}

fn what(trigger: &Trigger) -> String {
    if let Some(cron) = &trigger.cron {
        return format!("cron {} ({})", cron.schedule, cron.time_zone.as_deref().unwrap_or("UTC"));
    }
    if let Some(objects) = &trigger.objects {
        return format!("objects {} {}", objects.api_version, objects.kind);
    }
    trigger.http.as_ref().map(|h| format!("http, token in secret/{}", h.secret)).unwrap_or_default()
}

async fn describe_run(session: &Session, name: &str) -> anyhow::Result<()> {
    // What is not there is told as kubectl tells it.
    session.api::<WorkflowRun>().get(name).await?;
    let stored = Stored::new(session.client.clone());
    let (told, events) = tokio::join!(stored.describe(&session.namespace, name), events(session, "WorkflowRun", name));
    let told = told?;
    let of = ListParams::default().labels(&format!("{RUN}={}", told.run.uid().unwrap_or_default()));
    // Who may not list them sees the rest.
    let maps = session.api::<WorkflowMapRun>().list(&of).await.map(|l| l.items).unwrap_or_default();
    let (spec, status, now) = (&told.run.spec, told.run.status.clone().unwrap_or_default(), Timestamp::now());
    let mut out = Lines(String::new());
    out.line("Name", name);
    out.line("Namespace", &session.namespace);
    out.line("Workflow", spec.workflow.as_deref().unwrap_or("<its own definition>"));
    out.line("Execution", spec.name.as_deref().unwrap_or_default());
    out.line("Version", status.version.or(spec.version).map(|v| v.to_string()).unwrap_or_default());
    out.line("Alias", spec.alias.as_deref().unwrap_or_default());
    out.line("Phase", status.phase.as_str());
    out.line("States", status.current_states.join(", "));
    out.line("Started", status.start_time.as_ref().map(|t| t.0.to_string()).unwrap_or_default());
    out.line("Stopped", status.stop_time.as_ref().map(|t| t.0.to_string()).unwrap_or_default());
    out.line("Duration", took(&status, now));
    out.line(
        "Events",
        format!("{} on {} pages, {} transitions", status.events, status.history_pages, status.transitions),
    );
    out.line("Redriven", Some(status.redrive_count).filter(|n| *n > 0).map(|n| n.to_string()).unwrap_or_default());
    if let Some(r) = &status.receipt {
        let parts =
            format!("engine {:.1} ms, queue {:.1} ms, tasks {:.1} ms", r.engine_millis, r.queue_millis, r.task_millis);
        out.line("Time", parts);
    }
    out.line("Input", pretty(&told.input));
    out.line("Output", told.output.as_deref().map(pretty).unwrap_or_default());
    out.line("Error", reason(status.error.as_deref(), status.cause.as_deref()).trim_start_matches(": "));
    for map in &maps {
        let status = map.status.clone().unwrap_or_default();
        let m = status.executions;
        let counts = format!("{} of {} done, {} failed, {} running", m.succeeded, m.total, m.failed, m.running);
        out.line("Map", format!("{} {} {}: {counts}", map.name_any(), map.spec.state, status.phase));
    }
    for c in &status.conditions {
        out.line("Condition", format!("{}={} {} {}", c.type_, c.status, c.reason, c.message));
    }
    print!("{}{}", out.0, events?);
    Ok(())
}

/// JSON for people.
fn pretty(text: &str) -> String {
    let value = serde_json::from_str::<Value>(text);
    value.and_then(|v| serde_json::to_string_pretty(&v)).unwrap_or_else(|_| text.to_owned())
}

/// The events about an object, as a table.
async fn events(session: &Session, kind: &str, name: &str) -> anyhow::Result<String> {
    let about = ListParams::default().fields(&format!("involvedObject.kind={kind},involvedObject.name={name}"));
    let mut events = session.api::<Event>().list(&about).await?.items;
    events.sort_by_key(|e| e.last_timestamp.as_ref().map(|t| t.0));
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = events
        .into_iter()
        .map(|e| {
            let last: Option<&Time> = e.last_timestamp.as_ref().or(e.metadata.creation_timestamp.as_ref());
            let last = age(last, now);
            vec![e.type_.unwrap_or_default(), e.reason.unwrap_or_default(), last, e.message.unwrap_or_default()]
        })
        .collect();
    if rows.is_empty() {
        return Ok("\nEvents:       <none>\n".to_owned());
    }
    Ok(format!("\nEvents:\n{}", render(&["TYPE", "REASON", "AGE", "MESSAGE"], &rows)))
}

/// All events of a run, or so many.
pub(super) async fn all_events(
    session: &Session,
    run: &str,
    reverse: bool,
    limit: Option<usize>,
) -> anyhow::Result<Vec<Value>> {
    let stored = Stored::new(session.client.clone());
    let (mut found, mut from) = (vec![], None);
    loop {
        let room = limit.map_or(CHUNK, |l| l.saturating_sub(found.len()).min(CHUNK));
        if room == 0 {
            return Ok(found);
        }
        let mut some = stored.history(&session.namespace, run, from, reverse, room).await?;
        found.append(&mut some.events);
        match some.next {
            Some(next) => from = Some(next),
            None => return Ok(found),
        }
    }
}

pub(super) async fn history(session: &Session, args: HistoryArgs) -> anyhow::Result<()> {
    let run = bare(&args.run);
    session.api::<WorkflowRun>().get(run).await?;
    let events = all_events(session, run, args.reverse, args.limit).await?;
    if args.output.is_some() {
        println!("{}", serde_json::to_string_pretty(&json!({"events": events}))?);
        return Ok(());
    }
    print!("{}", table(&events));
    Ok(())
}

/// The details of an event.
pub(super) fn details(event: &Value) -> Option<&Value> {
    event.as_object()?.iter().find(|(key, _)| key.ends_with("EventDetails")).map(|(_, value)| value)
}

/// The time of an event.
pub(super) fn time(event: &Value) -> Option<Timestamp> {
    event["timestamp"].as_str()?.parse().ok()
}

fn table(events: &[Value]) -> String {
    let first = events.iter().filter_map(time).min();
    let rows: Vec<Vec<String>> = events
        .iter()
        .map(|e| {
            let since = time(e).zip(first).map(|(t, first)| format!("+{}", span(t.duration_since(first))));
            let none = Value::Null;
            let details = details(e).unwrap_or(&none);
            let text = |member: &str| details[member].as_str().map(short);
            let what = match (text("name"), text("resource"), details["index"].as_i64()) {
                (Some(name), _, Some(index)) => format!("{name} [{index}]"),
                (Some(name), ..) => name,
                (None, Some(resource), _) => resource,
                (None, None, _) => String::new(),
            };
            let told =
                [text("error"), text("cause")].into_iter().flatten().filter(|t| !t.is_empty()).collect::<Vec<_>>();
            let told = if told.is_empty() {
                text("output").or(text("input")).or(text("parameters")).unwrap_or_default()
            } else {
                told.join(": ")
            };
            let id = e["id"].as_i64().unwrap_or_default();
            vec![
                id.to_string(),
                e["type"].as_str().unwrap_or_default().to_owned(),
                what,
                since.unwrap_or_default(),
                told,
            ]
        })
        .collect();
    render(&["ID", "TYPE", "NAME", "TIME", "DATA"], &rows)
}

/// The beginning of data, on one line.
fn short(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if line.chars().count() <= SHORT {
        return line;
    }
    line.chars().take(SHORT - 1).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_are_tables() {
        let events = [
            json!({"id": 1, "type": "ExecutionStarted", "timestamp": "2026-01-01T00:00:00Z",
                "executionStartedEventDetails": {"input": "{}"}}),
            json!({"id": 2, "type": "PassStateEntered", "timestamp": "2026-01-01T00:00:00.005Z",
                "stateEnteredEventDetails": {"name": "Hello", "input": "{\n}"}}),
            json!({"id": 3, "type": "ExecutionFailed", "timestamp": "2026-01-01T00:00:01.25Z",
                "executionFailedEventDetails": {"error": "E", "cause": "x".repeat(100)}}),
        ];
        let table = table(&events);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines[1], "1    ExecutionStarted           +0ms    {}");
        assert_eq!(lines[2], "2    PassStateEntered   Hello   +5ms    { }");
        assert!(
            lines[3].starts_with("3    ExecutionFailed            +1.2s   E: xxx") && lines[3].ends_with('…'),
            "{table}"
        );
    }

    #[test]
    fn spans_are_short() {
        for (millis, want) in
            [(0, "0ms"), (999, "999ms"), (1500, "1.5s"), (61_000, "1m1s"), (3_660_000, "1h1m"), (-5, "0ms")]
        {
            assert_eq!(span(SignedDuration::from_millis(millis)), want);
        }
    }
}
