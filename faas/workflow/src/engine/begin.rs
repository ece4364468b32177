//! How a run begins: which definition it is, what it pins, whether there is room for it.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use kube::{Api, ResourceExt as _};
use serde_json::Value;
use skiff_asl::{Definition, ExecutionError, Fault, error};
use skiff_controllers::runtime::worker::{code, text};

use super::hear::Note;
use super::{Engine, Key};
use crate::api::{DATA_MAX, EVENTS_MAX, Kind, Overflow, Workflow, WorkflowRun, WorkflowSpec, WorkflowVersion};
use crate::arn;
use crate::journal::record::INLINE;
use crate::machine::Info;
use crate::pack;
use crate::payload::{Owner, Payload, PayloadError};
use crate::runs::Pinned;

/// Characters of all faults together in the cause of a run that cannot begin.
const FAULTS_MAX: usize = 4096;

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
            self.enter_line(owner, name, &spec)?;
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

    /// Takes a place among the runs of a workflow.
    fn enter_line(&self, owner: &Owner, workflow: &str, spec: &WorkflowSpec) -> Result<(), Refusal> {
        let key = (owner.namespace.clone(), owner.name.clone());
        let mut state = self.state.lock();
        let line = state.limits.entry((owner.namespace.clone(), workflow.to_owned())).or_default();
        let limit = spec.concurrency.as_ref();
        let room = limit.is_none_or(|l| line.running.len() < usize::try_from(l.max_runs).unwrap_or(usize::MAX));
        if room || line.running.contains(&key) {
            line.waiting.retain(|k| *k != key);
            line.running.insert(key);
            return Ok(());
        }
        match limit.map(|l| l.policy).unwrap_or_default() {
            Overflow::Queue => {
                if !line.waiting.contains(&key) {
                    line.waiting.push_back(key);
                }
                Err(Refusal::Waits)
            }
            Overflow::Reject => {
                let max = limit.map_or(0, |l| l.max_runs);
                Err(fails(format!("{max} runs of the workflow {workflow} go on already, and it takes no more")))
            }
        }
    }

    /// A run that goes on already has its place.
    pub(super) fn in_line(&self, run: &WorkflowRun) {
        let Some(workflow) = run.spec.workflow.clone() else { return };
        let namespace = run.namespace().unwrap_or_default();
        let key = (namespace.clone(), run.name_any());
        self.state.lock().limits.entry((namespace, workflow)).or_default().running.insert(key);
    }

    /// Gives the place of a run to the next that waits.
    pub(super) fn leave_line(&self, key: &Key) {
        let mut next = vec![];
        self.state.lock().limits.retain(|_, line| {
            line.waiting.retain(|k| k != key);
            if line.running.remove(key) {
                next.extend(line.waiting.front().cloned());
            }
            !line.running.is_empty() || !line.waiting.is_empty()
        });
        for key in next {
            self.tell(&key, Note::Wake);
        }
    }
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
