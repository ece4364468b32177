//! Runs over API objects: nothing is in memory, any process may use it beside the engine.

use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};
use skiff_controllers::runtime::worker::{code, text};

use super::{ActivityTask, Answer, Cursor, Description, Events, Outcome, Pinned, Runs, RunsError, Start, Started};
use crate::api::{
    DATA_MAX, Kind, Phase, Stop, WORKFLOW, Workflow, WorkflowHistory, WorkflowHistorySpec, WorkflowRun,
    WorkflowRunSpec, WorkflowSignal, WorkflowSignalSpec,
};
use crate::journal::load::content;
use crate::pack;
use crate::payload::{self, Owner, Payload};
use crate::token::Token;

/// Bytes of data that an object holds itself.
pub(crate) const INLINE: usize = 8 * 1024;
/// Annotation of a run: when it was redriven last, and with what token of the caller's.
const REDRIVE: &str = "states.skiff.dev/redrive";
/// Tries of a write that others come before.
const TRIES: u32 = 8;

/// Runs over API objects. Cloning shares the connection.
#[derive(Clone)]
pub struct Stored {
    client: Client,
}

/// The object's name of an execution: readable where the execution's name is a valid one, otherwise a digest.
#[must_use]
pub fn run_name(workflow: &str, execution: &str) -> String {
    let plain = !execution.is_empty()
        && execution.len() <= 80
        && execution.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !execution.starts_with('-')
        && !execution.ends_with('-');
    if plain && workflow.len() + execution.len() < 200 {
        return format!("{workflow}.{execution}");
    }
    let digest = pack::digest(format!("{workflow}/{execution}").as_bytes());
    let workflow: String = workflow.chars().take(150).collect();
    // No readable name begins like this: `x.` and 32 digits could be one, so the dot is doubled by a letter.
    format!("{}.x.{}", workflow.trim_end_matches(['.', '-']), digest.get(..32).unwrap_or_default())
}

fn failed(e: &kube::Error) -> RunsError {
    match code(e) {
        403 => RunsError::Forbidden(text(e)),
        400 | 422 => RunsError::InvalidData(text(e)),
        _ => RunsError::Unavailable(text(e)),
    }
}

/// The JSON of a text that is input or output.
pub(crate) fn parsed(text: &str) -> Result<Value, RunsError> {
    if text.len() > DATA_MAX {
        return Err(RunsError::InvalidData(format!("longer than {DATA_MAX} bytes")));
    }
    serde_json::from_str(text).map_err(|e| RunsError::InvalidData(e.to_string()))
}

impl Stored {
    /// Runs of the cluster that the client reaches, with its rights.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn runs(&self, namespace: &str) -> Api<WorkflowRun> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn run(&self, namespace: &str, name: &str) -> Result<WorkflowRun, RunsError> {
        match self.runs(namespace).get_opt(name).await {
            Ok(Some(run)) => Ok(run),
            Ok(None) => Err(RunsError::NoRun(name.to_owned())),
            Err(e) => Err(failed(&e)),
        }
    }

    /// The text of a run's input.
    pub(crate) async fn input(&self, run: &WorkflowRun) -> Result<String, RunsError> {
        match &run.spec.input_ref {
            Some(reference) => self.long(run, reference).await,
            None => Ok(run.spec.input.as_ref().map_or_else(|| "{}".to_owned(), Value::to_string)),
        }
    }

    async fn long(&self, run: &WorkflowRun, reference: &crate::api::PayloadRef) -> Result<String, RunsError> {
        payload::load(&self.client, &Owner::of(run), reference).await.map_err(|e| RunsError::Unavailable(e.to_string()))
    }

    async fn page(&self, namespace: &str, run: &str, number: i64) -> Result<Option<WorkflowHistory>, RunsError> {
        let pages = Api::<WorkflowHistory>::namespaced(self.client.clone(), namespace);
        pages.get_opt(&WorkflowHistory::name_of(run, number)).await.map_err(|e| failed(&e))
    }

    /// The events of a page, with long data read back.
    async fn events(&self, run: &WorkflowRun, page: WorkflowHistorySpec) -> Result<Vec<Value>, RunsError> {
        let mut events = events_of(page)?;
        for event in &mut events {
            let Some(fields) = event.as_object_mut() else { continue };
            for details in fields.values_mut().filter_map(Value::as_object_mut) {
                let long: Vec<String> = details.keys().filter(|k| k.ends_with("Ref")).cloned().collect();
                for key in long {
                    let Some(reference) = details.get(&key).cloned() else { continue };
                    let Ok(reference) = serde_json::from_value(reference) else { continue };
                    let text = self.long(run, &reference).await?;
                    details.remove(&key);
                    details.insert(key.trim_end_matches("Ref").to_owned(), Value::String(text));
                }
            }
        }
        Ok(events)
    }
}

/// The events of a page, as they are.
pub(crate) fn events_of(page: WorkflowHistorySpec) -> Result<Vec<Value>, RunsError> {
    content(page).map(|c| c.events).map_err(|e| RunsError::Unavailable(e.to_string()))
}

fn id_of(event: &Value) -> i64 {
    event.get("id").and_then(Value::as_i64).unwrap_or_default()
}

/// What text a value is, where an object can hold it; otherwise its payload.
pub(crate) fn inline_or_long(text: &str) -> Result<(Option<Value>, Option<Payload>), RunsError> {
    if text.len() <= INLINE {
        return Ok((Some(parsed(text)?), None));
    }
    parsed(text)?;
    Ok((None, Some(Payload::of(text).map_err(|e| RunsError::InvalidData(e.to_string()))?)))
}

#[async_trait]
impl Runs for Stored {
    async fn start(&self, start: Start) -> Result<Started, RunsError> {
        let workflows = Api::<Workflow>::namespaced(self.client.clone(), &start.namespace);
        let workflow = match workflows.get_opt(&start.workflow).await {
            Ok(Some(workflow)) => workflow,
            Ok(None) => return Err(RunsError::NoWorkflow(start.workflow)),
            Err(e) => return Err(failed(&e)),
        };
        let (input, long) = inline_or_long(&start.input)?;
        let named = start.name.is_some();
        let execution = start.name.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        if execution.is_empty() || execution.len() > 80 {
            return Err(RunsError::InvalidName(execution));
        }
        let run = run_name(&start.workflow, &execution);
        let labels = Some(&start.workflow).filter(|w| w.len() <= 63);
        let object = WorkflowRun {
            metadata: ObjectMeta {
                name: Some(run.clone()),
                labels: labels.map(|w| [(WORKFLOW.to_owned(), w.clone())].into()),
                ..ObjectMeta::default()
            },
            spec: WorkflowRunSpec {
                workflow: Some(start.workflow),
                version: start.version,
                alias: start.alias,
                input,
                input_ref: long.as_ref().map(|p| p.reference.clone()),
                name: Some(execution.clone()),
                parent: start.parent,
                trace_header: start.trace_header,
                ..WorkflowRunSpec::default()
            },
            status: None,
        };
        let runs = self.runs(&start.namespace);
        let (stored, again) = match runs.create(&PostParams::default(), &object).await {
            Ok(stored) => (stored, false),
            Err(e) if code(&e) == 409 && named && start.another => {
                let mut another = object.clone();
                let id = uuid::Uuid::new_v4().simple().to_string();
                another.metadata.name = Some(format!("{run}.{}", id.get(..12).unwrap_or_default()));
                (runs.create(&PostParams::default(), &another).await.map_err(|e| failed(&e))?, false)
            }
            Err(e) if code(&e) == 409 && named => {
                let there = self.run(&start.namespace, &run).await?;
                let same = there.spec.input == object.spec.input && there.spec.input_ref == object.spec.input_ref;
                let over = there.status.as_ref().is_some_and(|s| s.phase.is_over());
                // What starts express runs here means the same one by the same name.
                if !same || over || workflow.spec.kind == Kind::Express {
                    return Err(RunsError::AlreadyExists(execution));
                }
                (there, true)
            }
            Err(e) => return Err(failed(&e)),
        };
        if let Some(long) = long {
            long.store(&self.client, &Owner::of(&stored)).await.map_err(|e| RunsError::Unavailable(e.to_string()))?;
        }
        let at = stored.metadata.creation_timestamp.as_ref().map_or_else(Timestamp::now, |t| t.0);
        let run = stored.name_any();
        Ok(Started { run, name: execution, at, again })
    }

    async fn start_sync(&self, _: Start) -> Result<Outcome, RunsError> {
        Err(RunsError::Unavailable("no engine in this process".to_owned()))
    }

    async fn stop(&self, namespace: &str, run: &str, stop: Stop) -> Result<Timestamp, RunsError> {
        let found = self.run(namespace, run).await?;
        if found.status.as_ref().is_none_or(|s| !s.phase.is_over()) && found.spec.stop.is_none() {
            let patch = Patch::Merge(json!({"spec": {"stop": stop}}));
            self.runs(namespace).patch(run, &PatchParams::default(), &patch).await.map_err(|e| failed(&e))?;
        }
        Ok(Timestamp::now())
    }

    async fn redrive(&self, namespace: &str, run: &str, token: Option<&str>) -> Result<Timestamp, RunsError> {
        let runs = self.runs(namespace);
        for _ in 0..TRIES {
            let mut found = self.run(namespace, run).await?;
            let known = found.annotations().get(REDRIVE).and_then(|last| last.split_once(' '));
            if let (Some(token), Some((at, last))) = (token, known)
                && token == last
                && let Ok(at) = at.parse()
            {
                return Ok(at);
            }
            let now = Timestamp::now();
            let status = found.status.clone().unwrap_or_default();
            let asked = found.spec.redrive.unwrap_or(0);
            if !status.phase.is_over() || asked > status.redrive_count {
                return Err(RunsError::NotRedrivable(format!("it is {}", status.phase.as_str())));
            }
            if status.phase == Phase::Succeeded {
                return Err(RunsError::NotRedrivable("it succeeded".to_owned()));
            }
            found.spec.redrive = Some(asked + 1);
            match token {
                Some(token) => drop(found.annotations_mut().insert(REDRIVE.to_owned(), format!("{now} {token}"))),
                None => drop(found.annotations_mut().remove(REDRIVE)),
            }
            match runs.replace(run, &PostParams::default(), &found).await {
                Ok(_) => return Ok(now),
                Err(e) if code(&e) == 409 => {}
                Err(e) => return Err(failed(&e)),
            }
        }
        Err(RunsError::Unavailable("others change it all the time".to_owned()))
    }

    async fn describe(&self, namespace: &str, run: &str) -> Result<Description, RunsError> {
        let run = self.run(namespace, run).await?;
        let input = self.input(&run).await?;
        let status = run.status.as_ref();
        let output = match status.and_then(|s| s.output_ref.as_ref()) {
            Some(reference) => Some(self.long(&run, reference).await?),
            None => status.and_then(|s| s.output.as_ref()).map(Value::to_string),
        };
        Ok(Description { run, input, output })
    }

    async fn pinned(&self, namespace: &str, run: &str) -> Result<Pinned, RunsError> {
        let object = self.run(namespace, run).await?;
        let page = self.page(namespace, run, 1).await?;
        let page = page.ok_or_else(|| RunsError::Unavailable("it has not begun".to_owned()))?;
        let text = match (&page.spec.pinned, &page.spec.pinned_ref) {
            (Some(packed), _) => pack::unpack(packed).map_err(|e| RunsError::Unavailable(e.to_string()))?,
            (None, Some(reference)) => self.long(&object, reference).await?,
            (None, None) => return Err(RunsError::Unavailable("its first page is damaged".to_owned())),
        };
        serde_json::from_str(&text).map_err(|e| RunsError::Unavailable(e.to_string()))
    }

    async fn history(
        &self,
        namespace: &str,
        run: &str,
        from: Option<Cursor>,
        reverse: bool,
        limit: usize,
    ) -> Result<Events, RunsError> {
        let object = self.run(namespace, run).await?;
        let mut at = match from {
            Some(from) => from,
            None if reverse => {
                // The status may be a second behind.
                let mut page = object.status.as_ref().map_or(1, |s| s.history_pages).max(1);
                while self.page(namespace, run, page + 1).await?.is_some() {
                    page += 1;
                }
                Cursor { page, event: 0 }
            }
            None => Cursor { page: 1, event: 0 },
        };
        let mut found = Events::default();
        while let Some(page) = self.page(namespace, run, at.page).await? {
            let mut events = self.events(&object, page.spec).await?;
            if reverse {
                events.retain(|e| at.event == 0 || id_of(e) < at.event);
                events.reverse();
            } else {
                events.retain(|e| id_of(e) > at.event);
            }
            let room = limit.saturating_sub(found.events.len());
            if events.len() > room {
                events.truncate(room);
                let event = events.last().or(found.events.last()).map_or(at.event, id_of);
                found.events.append(&mut events);
                found.next = Some(Cursor { page: at.page, event });
                return Ok(found);
            }
            found.events.append(&mut events);
            at = Cursor { page: if reverse { at.page - 1 } else { at.page + 1 }, event: 0 };
            if at.page < 1 {
                break;
            }
        }
        Ok(found)
    }

    async fn signal(&self, token: &str, answer: Answer) -> Result<(), RunsError> {
        let parsed_token = Token::parse(token).ok_or(RunsError::InvalidToken)?;
        let run = match self.run(&parsed_token.namespace, &parsed_token.run).await {
            Err(RunsError::NoRun(_)) => return Err(RunsError::NoTask),
            run => run?,
        };
        if run.status.as_ref().is_some_and(|s| s.phase.is_over()) {
            return Err(RunsError::TaskOver);
        }
        let mut spec = WorkflowSignalSpec { token: token.to_owned(), ..WorkflowSignalSpec::default() };
        match answer {
            Answer::Success(text) => {
                let (inline, long) = inline_or_long(&text)?;
                spec.output = inline;
                if let Some(long) = long {
                    let stored = long.store(&self.client, &Owner::of(&run)).await;
                    stored.map_err(|e| RunsError::Unavailable(e.to_string()))?;
                    spec.output_ref = Some(long.reference);
                }
            }
            Answer::Failure { error, cause } => {
                spec.error = Some(error.unwrap_or_default());
                spec.cause = cause;
            }
            Answer::Heartbeat => spec.heartbeat = true,
        }
        let name = format!("s-{}", uuid::Uuid::new_v4());
        let object = WorkflowSignal { metadata: Owner::of(&run).meta(name), spec };
        let signals = Api::<WorkflowSignal>::namespaced(self.client.clone(), &parsed_token.namespace);
        signals.create(&PostParams::default(), &object).await.map(|_| ()).map_err(|e| failed(&e))
    }

    async fn poll_activity(
        &self,
        _: &str,
        _: &str,
        _: Option<&str>,
        _: Duration,
    ) -> Result<Option<ActivityTask>, RunsError> {
        Err(RunsError::Unavailable("no engine in this process".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_runs_are_readable_and_differ() {
        assert_eq!(run_name("wf", "nightly-1"), "wf.nightly-1");
        let odd = run_name("wf", "Nightly_1");
        assert!(odd.starts_with("wf.x.") && odd.len() == 37, "{odd}");
        assert_ne!(odd, run_name("wf", "nightly_1"));
        assert_ne!(run_name("wf", "-a"), run_name("wf", "a-"));
        let long = run_name(&"w".repeat(250), "a");
        assert!(long.len() < 220, "{long}");
    }
}
