//! How a run begins: which definition it is, what it pins, whether there is room for it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use skiff_asl::{Definition, ExecutionError, Fault, error};
use skiff_controllers::runtime::worker::{code, not_found, text};

use super::hear::Note;
use super::{Engine, Key, State};
use crate::api::{
    Concurrency, DATA_MAX, EVENTS_MAX, Kind, Overflow, Phase, Workflow, WorkflowRun, WorkflowSpec, WorkflowVersion,
};
use crate::arn;
use crate::journal::record::INLINE;
use crate::machine::Info;
use crate::pack;
use crate::payload::{Owner, Payload, PayloadError};
use crate::runs::Pinned;

/// Characters of all faults together in the cause of a run that cannot begin.
const FAULTS_MAX: usize = 4096;

/// Annotation of a run: whether there is room for it among those of its workflow, where several engines share the runs.
const ADMITTED: &str = "states.skiff.dev/admitted";
/// Pauses between tries of what does not go now.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Why a run does not begin.
pub(super) enum Refusal {
    /// It fails.
    Fails(ExecutionError),
    /// There is no room; it is told when there is.
    Waits,
    /// The API does not answer: later.
    Later(String),
}

/// Runs of one workflow.
#[derive(Default)]
pub(super) struct Line {
    running: HashSet<Key>,
    waiting: VecDeque<Key>,
}

/// A run that may begin.
pub(super) struct Begun {
    pub(super) pinned: Pinned,
    pub(super) input: String,
    pub(super) definition: Arc<Definition>,
}

/// The text of a definition that is text or an object.
pub(crate) fn definition_text(definition: &Value) -> String {
    definition.as_str().map_or_else(|| definition.to_string(), str::to_owned)
}

/// All faults in one text.
pub(crate) fn told(faults: &[Fault]) -> String {
    let all: Vec<String> = faults.iter().map(ToString::to_string).collect();
    let mut text = all.join("; ");
    if text.len() > FAULTS_MAX {
        let mut end = FAULTS_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push_str(" …");
    }
    text
}

fn fails(cause: impl Into<String>) -> Refusal {
    Refusal::Fails(ExecutionError::new(error::RUNTIME, cause))
}

fn api(e: &kube::Error) -> Refusal {
    Refusal::Later(text(e))
}

impl From<PayloadError> for Refusal {
    fn from(e: PayloadError) -> Self {
        match e {
            PayloadError::Api { .. } | PayloadError::Missing(_) => Self::Later(e.to_string()),
            e => fails(e.to_string()),
        }
    }
}

/// What a machine is told about its run.
pub(super) fn info(owner: &Owner, pinned: &Pinned, input: Value) -> Info {
    let workflow = pinned.workflow.clone().unwrap_or_else(|| owner.name.clone());
    let account = pinned.service_account.as_deref().unwrap_or("default");
    Info {
        namespace: owner.namespace.clone(),
        run: owner.name.clone(),
        uid: owner.uid.clone(),
        name: pinned.name.clone(),
        id: arn::execution(&owner.namespace, &workflow, &pinned.name),
        workflow_id: arn::machine(&owner.namespace, &workflow),
        workflow,
        role: format!("arn:aws:iam::{}:role/{account}", arn::account(&owner.namespace)),
        input,
        timeout_seconds: pinned.timeout_seconds.map(u64::from),
        max_events: pinned.max_events.unwrap_or(EVENTS_MAX),
        secret: pinned.secret.clone(),
        durable: pinned.kind == Kind::Standard,
        start_at: None,
        path: String::new(),
    }
}

impl Engine {
    /// What a run that has not begun is to be.
    pub(super) async fn begin(&self, run: &WorkflowRun, owner: &Owner) -> Result<Begun, Refusal> {
        let (definition, version, spec) = match (&run.spec.workflow, &run.spec.definition) {
            (Some(name), _) => self.chosen(run, owner, name).await?,
            (None, Some(definition)) => (definition_text(definition), None, WorkflowSpec::default()),
            (None, None) => return Err(fails("the run has neither workflow nor definition")),
        };
        let revision = pack::digest(definition.as_bytes());
        let parsed = self.definition(&revision, &definition).map_err(|faults| fails(told(&faults)))?;
        let (input, kept, input_ref) = match &run.spec.input_ref {
            Some(long) => {
                // Whoever made the run stores it next; until then this is tried again.
                let input = crate::payload::load(&self.client, owner, long).await?;
                (input, None, Some(long.clone()))
            }
            None => {
                let input = run.spec.input.as_ref().map_or_else(|| "{}".to_owned(), Value::to_string);
                if input.len() <= INLINE {
                    (input.clone(), Some(input), None)
                } else {
                    let payload = Payload::of(&input)?;
                    payload.store(&self.client, owner).await?;
                    (input, None, Some(payload.reference))
                }
            }
        };
        if input.len() > DATA_MAX {
            let cause = format!("the input is longer than {DATA_MAX} bytes");
            return Err(Refusal::Fails(ExecutionError::new(error::DATA_LIMIT_EXCEEDED, cause)));
        }
        if let Some(name) = &run.spec.workflow {
            self.enter(run, owner, name, &spec).await?;
        }
        let pinned = Pinned {
            definition,
            revision,
            name: run.spec.name.clone().unwrap_or_else(|| owner.name.clone()),
            input: kept,
            input_ref,
            secret: uuid::Uuid::new_v4().simple().to_string(),
            trace_header: run.spec.trace_header.clone(),
            workflow: run.spec.workflow.clone(),
            version,
            kind: spec.kind,
            timeout_seconds: spec.timeout_seconds.or((spec.kind == Kind::Express).then_some(300)),
            max_events: spec.max_events,
            service_account: spec.service_account_name.or_else(|| run.spec.service_account_name.clone()),
        };
        Ok(Begun { pinned, input, definition: parsed })
    }

    /// The definition of a workflow that a run asks for: its own, that of a version, that of an alias.
    async fn chosen(
        &self,
        run: &WorkflowRun,
        owner: &Owner,
        name: &str,
    ) -> Result<(String, Option<i64>, WorkflowSpec), Refusal> {
        let workflows = Api::<Workflow>::namespaced(self.client.clone(), &owner.namespace);
        let workflow = match workflows.get_opt(name).await {
            Ok(Some(workflow)) => workflow,
            Ok(None) => return Err(fails(format!("there is no workflow {name}"))),
            Err(e) => return Err(api(&e)),
        };
        let mut spec = workflow.spec;
        let version = match (&run.spec.version, &run.spec.alias) {
            (Some(version), _) => Some(*version),
            (None, Some(alias)) => {
                let found = spec.aliases.iter().find(|a| a.name == *alias);
                let alias = found.ok_or_else(|| fails(format!("the workflow {name} has no alias {alias}")))?;
                Some(routed(alias, &owner.uid))
            }
            (None, None) => None,
        };
        let Some(number) = version else {
            return Ok((definition_text(&std::mem::take(&mut spec.definition)), None, spec));
        };
        let versions = Api::<WorkflowVersion>::namespaced(self.client.clone(), &owner.namespace);
        match versions.get(&WorkflowVersion::name_of(name, number)).await {
            Ok(found) => Ok((found.spec.definition, Some(number), spec)),
            Err(e) if code(&e) == 404 => Err(fails(format!("the workflow {name} has no version {number}"))),
            Err(e) => Err(api(&e)),
        }
    }

    /// Takes a place among the runs of a workflow. Where several engines share the runs, one of them gives the places of a
    /// workflow that has a limit, and says so on the runs' objects.
    async fn enter(
        &self,
        run: &WorkflowRun,
        owner: &Owner,
        workflow: &str,
        spec: &WorkflowSpec,
    ) -> Result<(), Refusal> {
        let key = (owner.namespace.clone(), owner.name.clone());
        let Some(limit) = &spec.concurrency else {
            if self.share.view().is_none() {
                // There may be a limit later.
                self.line_up(&key, workflow, None);
            }
            return Ok(());
        };
        // What has no object is counted by the engine that it was started at.
        let alone = self.share.view().is_none() || run.metadata.resource_version.is_none();
        match is_admitted(run) {
            _ if alone => {}
            Some(true) => return Ok(()),
            Some(false) => return Err(crowded(workflow, limit)),
            None if !self.minds(&owner.namespace, workflow) => return Err(Refusal::Waits),
            None => {}
        }
        match self.line_up(&key, workflow, Some(limit)) {
            Lot::In if alone => Ok(()),
            Lot::In => self.admit(&key, &owner.uid, true).await.map_err(|e| {
                self.leave_line(&key);
                api(&e)
            }),
            Lot::Waits => Err(Refusal::Waits),
            Lot::Refused => Err(crowded(workflow, limit)),
        }
    }

    /// Puts a run among those of a workflow that run, or that wait.
    fn line_up(&self, key: &Key, workflow: &str, limit: Option<&Concurrency>) -> Lot {
        let mut state = self.state.lock();
        let line = state.limits.entry((key.0.clone(), workflow.to_owned())).or_default();
        let room = limit.is_none_or(|l| line.running.len() < usize::try_from(l.max_runs).unwrap_or(usize::MAX));
        if room || line.running.contains(key) {
            line.waiting.retain(|k| k != key);
            line.running.insert(key.clone());
            return Lot::In;
        }
        match limit.map(|l| l.policy).unwrap_or_default() {
            Overflow::Queue => {
                if !line.waiting.contains(key) {
                    line.waiting.push_back(key.clone());
                }
                Lot::Waits
            }
            Overflow::Reject => Lot::Refused,
        }
    }

    /// Writes on a run's object whether there is room for it.
    async fn admit(&self, key: &Key, uid: &str, room: bool) -> Result<(), kube::Error> {
        let runs = Api::<WorkflowRun>::namespaced(self.client.clone(), &key.0);
        let patch = json!({"metadata": {"uid": uid, "annotations": {ADMITTED: room.to_string()}}});
        match runs.patch(&key.1, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Err(e) if !not_found(&e) && code(&e) != 409 => Err(e),
            _ => Ok(()),
        }
    }

    /// A run that goes on already has its place.
    pub(super) fn in_line(&self, run: &WorkflowRun) {
        let Some(workflow) = run.spec.workflow.clone() else { return };
        let namespace = run.namespace().unwrap_or_default();
        let key = (namespace.clone(), run.name_any());
        let line = (namespace, workflow);
        let mut state = self.state.lock();
        if self.share.view().is_none() || state.rules.contains_key(&line) {
            let line = state.limits.entry(line).or_default();
            line.waiting.retain(|k| *k != key);
            line.running.insert(key);
        }
    }

    /// A run that another engine is to begin gets its place from this one, where this one gives those of its workflow.
    pub(super) fn ask_for_room(&self, run: &WorkflowRun) {
        let Some(workflow) = run.spec.workflow.clone() else { return };
        let key = (run.namespace().unwrap_or_default(), run.name_any());
        let waits = run.status.as_ref().is_none_or(|s| s.phase == Phase::Pending);
        if !self.state.lock().rules.contains_key(&(key.0.clone(), workflow.clone())) {
            return;
        }
        match is_admitted(run) {
            Some(true) => self.in_line(run),
            None if waits => self.find_room(key, workflow, run.uid().unwrap_or_default()),
            _ => {}
        }
    }

    /// Gives a run a place, or a turn.
    fn find_room(&self, key: Key, workflow: String, uid: String) {
        if self.tell(&key, Note::Wake) {
            // It asks itself.
            return;
        }
        let limit = self.state.lock().rules.get(&(key.0.clone(), workflow.clone())).cloned();
        let (Some(limit), Some(engine)) = (limit, self.shared()) else { return };
        let room = match self.line_up(&key, &workflow, Some(&limit)) {
            Lot::In => true,
            Lot::Refused => false,
            Lot::Waits => return,
        };
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            let work = async {
                let mut pause = PAUSE.0;
                while let Err(e) = engine.admit(&key, &uid, room).await {
                    tracing::debug!(run = key.1, error = &e as &dyn std::error::Error, "a run waits for its place");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
            };
            stop.run_until_cancelled(work).await;
        });
    }

    /// From now on this engine gives the places of a workflow, if it has a limit.
    pub(super) async fn gives_places(&self, workflow: &Workflow) {
        let key = (workflow.namespace().unwrap_or_default(), workflow.name_any());
        let Some(limit) = workflow.spec.concurrency.clone() else {
            self.state.lock().rules.remove(&key);
            return;
        };
        if self.share.view().is_none() || self.state.lock().rules.insert(key.clone(), limit).is_some() {
            return;
        }
        let runs = Api::<WorkflowRun>::namespaced(self.client.clone(), &key.0);
        let mut page = ListParams::default().fields(&format!("spec.workflow={}", key.1)).limit(super::hear::PAGE);
        let mut waiting = vec![];
        loop {
            let found = match runs.list(&page).await {
                Ok(found) => found,
                Err(e) => {
                    tracing::warn!(workflow = key.1, error = &e as &dyn std::error::Error, "its runs are not counted");
                    return;
                }
            };
            for run in found.items {
                match run.status.as_ref().map_or(Phase::Pending, |s| s.phase) {
                    phase if phase.is_over() => {}
                    Phase::Pending if is_admitted(&run).is_none() => waiting.push(run),
                    _ => self.in_line(&run),
                }
            }
            page.continue_token = found.metadata.continue_.filter(|c| !c.is_empty());
            if page.continue_token.is_none() {
                break;
            }
        }
        // Those that run are counted before anybody gets a place.
        waiting.sort_by_key(|r| r.metadata.creation_timestamp.as_ref().map(|t| t.0));
        waiting.iter().for_each(|run| self.ask_for_room(run));
    }

    /// Others may give the places from now on.
    pub(super) fn gives_no_places(&self) {
        let mut state = self.state.lock();
        state.rules.clear();
        state.limits.clear();
    }

    /// Gives the place of a run to the next that waits.
    pub(super) fn leave_line(&self, key: &Key) {
        let mut next = vec![];
        {
            let mut state = self.state.lock();
            let State { limits, places, .. } = &mut *state;
            limits.retain(|(_, workflow), line| {
                line.waiting.retain(|k| k != key);
                if line.running.remove(key)
                    && let Some(first) = line.waiting.front()
                {
                    let uid = places.get(first).map(|p| p.uid.clone()).unwrap_or_default();
                    next.push((first.clone(), workflow.clone(), uid));
                }
                !line.running.is_empty() || !line.waiting.is_empty()
            });
        }
        for (key, workflow, uid) in next {
            self.find_room(key, workflow, uid);
        }
    }
}

/// What becomes of a run that wants a place.
enum Lot {
    In,
    Waits,
    Refused,
}

/// What a run's object says about room for it, where one engine gives places for all.
pub(super) fn is_admitted(run: &WorkflowRun) -> Option<bool> {
    run.annotations().get(ADMITTED).map(|a| a == "true")
}

fn crowded(workflow: &str, limit: &Concurrency) -> Refusal {
    let max = limit.max_runs;
    fails(format!("{max} runs of the workflow {workflow} go on already, and it takes no more"))
}

/// The version that an alias gives a run: always the same for the same run.
fn routed(alias: &crate::api::Alias, uid: &str) -> i64 {
    let digest = pack::digest(uid.as_bytes());
    let dice = digest.get(..8).and_then(|d| u32::from_str_radix(d, 16).ok()).unwrap_or_default() % 100;
    let mut sum = 0;
    for route in &alias.routing {
        sum += route.weight;
        if dice < sum {
            return route.version;
        }
    }
    alias.routing.last().map_or(0, |r| r.version)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{Alias, Route};

    #[test]
    fn aliases_share_runs_by_weight() {
        let routing = vec![Route { version: 1, weight: 90 }, Route { version: 2, weight: 10 }];
        let alias = Alias { name: "a".into(), description: None, routing };
        let second = (0..10_000).filter(|i| routed(&alias, &format!("uid-{i}")) == 2).count();
        assert!((800..1200).contains(&second), "{second}");
        assert_eq!(routed(&alias, "u"), routed(&alias, "u"));
        let whole = Alias { routing: vec![Route { version: 7, weight: 100 }], ..alias };
        assert!((0..100).all(|i| routed(&whole, &i.to_string()) == 7));
    }
}
