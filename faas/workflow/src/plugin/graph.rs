//! `graph`: a workflow for people, in the terminal or as SVG; of a run with what became of each state.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use skiff_asl::Definition;
use skiff_asl::graph::{Colors, Phase as Mark, StateStatus, Status, svg, text};
use skiff_plugin::Session;

use super::data;
use super::file::definitions;
use super::show::{all_events, details, time};
use crate::api::{Phase, Workflow, WorkflowRun};
use crate::engine::{definition_text, judge};
use crate::runs::{Runs as _, RunsError, Stored};

/// `graph`.
#[derive(Clone, Debug, Args)]
pub(super) struct GraphArgs {
    /// A workflow or a run; `wf/NAME` or `wfr/NAME` says which.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// A file instead; `-` is standard input.
    #[arg(short, long, conflicts_with = "name")]
    pub(super) file: Option<PathBuf>,
    /// Write SVG to this file; `-` is standard output.
    #[arg(long)]
    svg: Option<PathBuf>,
}

fn draw(args: &GraphArgs, definition: &Definition, status: &Status) -> anyhow::Result<()> {
    match &args.svg {
        None => {
            let colors = if std::io::stdout().is_terminal() { Colors::Ansi } else { Colors::Plain };
            print!("{}", text(definition, status, colors));
        }
        Some(path) if path.as_os_str() == "-" => print!("{}", svg(definition, status)),
        Some(path) => {
            std::fs::write(path, svg(definition, status))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    Ok(())
}

/// The definition, or why it cannot be drawn.
fn whole(place: &str, found: (Option<Definition>, Vec<skiff_asl::Fault>)) -> anyhow::Result<Definition> {
    let (definition, faults) = found;
    let why = || faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ");
    definition.with_context(|| format!("{place} cannot be drawn:\n  {}", why()))
}

pub(super) fn of_file(args: &GraphArgs) -> anyhow::Result<()> {
    let Some(file) = &args.file else { return Ok(()) };
    let text = data(None, Some(file))?.unwrap_or_default();
    let all = definitions(&file.display().to_string(), &text)?;
    if args.svg.is_some() && all.len() > 1 {
        bail!("there are {} definitions in {}: one picture has one", all.len(), file.display());
    }
    for found in all {
        let definition = whole(&found.place, (found.definition, found.faults))?;
        draw(args, &definition, &Status::new())?;
    }
    Ok(())
}

pub(super) async fn of_cluster(session: &Session, args: GraphArgs) -> anyhow::Result<()> {
    let given = args.name.clone().unwrap_or_default();
    let (of, name) = given.split_once('/').unwrap_or(("", &given));
    let run = matches!(of, "wfr" | "run" | "workflowrun" | "workflowruns");
    if !run && let Some(workflow) = session.api::<Workflow>().get_opt(name).await? {
        let definition = whole(&format!("workflow/{name}"), judge(&definition_text(&workflow.spec.definition)))?;
        return draw(&args, &definition, &Status::new());
    }
    if !run && (!of.is_empty() || session.api::<WorkflowRun>().get_opt(name).await?.is_none()) {
        session.api::<Workflow>().get(name).await?;
    }
    let run = session.api::<WorkflowRun>().get(name).await?;
    let phase = run.status.as_ref().map_or(Phase::Pending, |s| s.phase);
    let stored = Stored::new(session.client.clone());
    let definition = match stored.pinned(&session.namespace, name).await {
        Ok(pinned) => Value::String(pinned.definition),
        Err(RunsError::Unavailable(_)) if phase == Phase::Pending => bail!("workflowrun/{name} has not begun"),
        Err(e) => return Err(e.into()),
    };
    let definition = whole(&format!("workflowrun/{name}"), judge(&definition_text(&definition)))?;
    let events = all_events(session, name, false, None).await?;
    draw(&args, &definition, &status(&events, phase, Timestamp::now()))
}

/// A visit of a state.
struct Visit {
    name: String,
    entered: Option<Timestamp>,
    left: Option<Timestamp>,
    /// Whether the last that happened in it was a failure.
    failed: bool,
    done: bool,
}

/// What became of each state, as the events tell: each names the one before it, so that it belongs to a visit.
fn status(events: &[Value], phase: Phase, now: Timestamp) -> Status {
    let mut visits: Vec<Visit> = vec![];
    let mut of: HashMap<i64, usize> = HashMap::new();
    for event in events {
        let id = event["id"].as_i64().unwrap_or_default();
        let kind = event["type"].as_str().unwrap_or_default();
        let before = event["previousEventId"].as_i64().and_then(|p| of.get(&p).copied());
        if kind.ends_with("StateEntered") {
            let name = details(event).and_then(|d| d["name"].as_str()).unwrap_or_default().to_owned();
            of.insert(id, visits.len());
            visits.push(Visit { name, entered: time(event), left: None, failed: false, done: false });
            continue;
        }
        if kind.ends_with("StateExited") {
            // Of nested machines the last event is one of a state inside.
            let name = details(event).and_then(|d| d["name"].as_str()).unwrap_or_default();
            let at = before.filter(|at| visits[*at].name == name);
            let at = at.or_else(|| visits.iter().rposition(|v| v.name == name && !v.done));
            if let Some(at) = at {
                (visits[at].left, visits[at].done) = (time(event), true);
                of.insert(id, at);
            }
            continue;
        }
        if let Some(at) = before {
            let fails = kind.ends_with("Failed") || kind.ends_with("TimedOut");
            visits[at].failed = fails;
            of.insert(id, at);
        }
    }
    let mut status = Status::new();
    for visit in &visits {
        let mark = match (visit.done, visit.failed) {
            (true, true) => Mark::Caught,
            (true, false) => Mark::Succeeded,
            (false, failed) => match phase {
                Phase::Succeeded => Mark::Succeeded,
                Phase::Failed | Phase::TimedOut => Mark::Failed,
                Phase::Aborted => Mark::Aborted,
                _ if failed => Mark::Retrying,
                _ => Mark::Running,
            },
        };
        let end = visit.left.or_else(|| events.last().filter(|_| phase.is_over()).and_then(time)).unwrap_or(now);
        let spent = visit.entered.map(|e| end.duration_since(e)).and_then(|d| Duration::try_from(d).ok());
        let entry = status.entry(visit.name.clone()).or_insert(StateStatus { phase: mark, duration: None, count: 0 });
        entry.phase = mark;
        entry.count += 1;
        entry.duration = match (entry.duration, spent) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
    }
    status
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// id, the one before, milliseconds, type, state.
    fn events(rows: &[(i64, i64, i64, &str, &str)]) -> Vec<Value> {
        rows.iter()
            .map(|(id, before, millis, kind, name)| {
                let time = Timestamp::from_millisecond(1_000_000 + millis).unwrap();
                let mut event =
                    json!({"id": id, "previousEventId": before, "type": kind, "timestamp": time.to_string()});
                if !name.is_empty() {
                    event["stateEventDetails"] = json!({"name": name});
                }
                event
            })
            .collect()
    }

    #[test]
    fn states_are_marked_by_what_became_of_them() {
        let now = Timestamp::from_millisecond(1_000_100).unwrap();
        let rows = events(&[
            (1, 0, 0, "ExecutionStarted", ""),
            (2, 1, 0, "TaskStateEntered", "A"),
            (3, 2, 1, "TaskScheduled", ""),
            (4, 3, 5, "TaskFailed", ""),
            (5, 4, 6, "TaskStateExited", "A"),
            (6, 5, 6, "PassStateEntered", "B"),
            (7, 6, 8, "PassStateExited", "B"),
            (8, 7, 8, "PassStateEntered", "B"),
            (9, 8, 9, "PassStateExited", "B"),
            (10, 9, 10, "TaskStateEntered", "C"),
            (11, 10, 11, "TaskScheduled", ""),
            (12, 11, 20, "TaskTimedOut", ""),
        ]);
        let marks = |phase| {
            let s = status(&rows, phase, now);
            (s["A"].phase, s["B"], s["C"].phase)
        };
        let (a, b, c) = marks(Phase::Running);
        assert_eq!((a, b.phase, b.count, c), (Mark::Caught, Mark::Succeeded, 2, Mark::Retrying));
        assert_eq!(b.duration, Some(Duration::from_millis(3)));
        assert_eq!(marks(Phase::Failed).2, Mark::Failed);
        assert_eq!(marks(Phase::Aborted).2, Mark::Aborted);
        assert_eq!(status(&rows[..2], Phase::Running, now)["A"].phase, Mark::Running);
        assert_eq!(status(&rows[..2], Phase::Running, now)["A"].duration, Some(Duration::from_millis(100)));
    }

    #[test]
    fn states_with_machines_inside_end_too() {
        let rows = events(&[
            (1, 0, 0, "ExecutionStarted", ""),
            (2, 1, 0, "ParallelStateEntered", "P"),
            (3, 2, 0, "ParallelStateStarted", ""),
            (4, 3, 1, "PassStateEntered", "X"),
            (5, 4, 2, "PassStateExited", "X"),
            (6, 5, 3, "ParallelStateSucceeded", ""),
            (7, 5, 4, "ParallelStateExited", "P"),
        ]);
        let s = status(&rows, Phase::Succeeded, Timestamp::now());
        assert_eq!((s["P"].phase, s["X"].phase), (Mark::Succeeded, Mark::Succeeded));
        assert_eq!(s["P"].duration, Some(Duration::from_millis(4)));
    }
}
