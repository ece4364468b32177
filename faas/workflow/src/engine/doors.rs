//! The engine as doors see it: what API objects can do, and what needs its memory.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use skiff_controllers::runtime::worker::{code, text};

use super::begin::{self, Refusal};
use super::{Engine, actor};
use crate::api::{Kind, Stop, WorkflowActivity, WorkflowRun, WorkflowRunSpec};
use crate::machine::Machine;
use crate::payload::Owner;
use crate::runs::{
    ActivityTask, Answer, Cursor, Description, Events, Outcome, Pinned, Runs, RunsError, Start, Started, parsed,
    run_name,
};

/// Longest wait for an activity's task.
const POLL_MAX: Duration = Duration::from_secs(60);

#[async_trait]
impl Runs for Engine {
    async fn start(&self, start: Start) -> Result<Started, RunsError> {
        self.stored().start(start).await
    }

    async fn start_sync(&self, start: Start) -> Result<Outcome, RunsError> {
        let input = parsed(&start.input)?;
        let name = start.name.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        // No object: the run is only in memory.
        let mut run = WorkflowRun::new(
            &run_name(&start.workflow, &name),
            WorkflowRunSpec {
                workflow: Some(start.workflow.clone()),
                version: start.version,
                alias: start.alias,
                input: Some(input),
                name: Some(name.clone()),
                trace_header: start.trace_header,
                ..WorkflowRunSpec::default()
            },
        );
        run.metadata.namespace = Some(start.namespace);
        run.metadata.uid = Some(uuid::Uuid::new_v4().to_string());
        let owner = Owner::of(&run);
        let begun = self.begin_express(&run, &owner).await?;
        let engine = self.shared().ok_or_else(|| RunsError::Unavailable("the engine stops".to_owned()))?;
        let input = parsed(&begun.input)?;
        let machine = Machine::new(begun.definition, Arc::new(begin::info(&owner, &begun.pinned, input)));
        let key = (owner.namespace.clone(), owner.name.clone());
        let work = self.stop.run_until_cancelled(actor::express(engine, owner, machine, begun.pinned));
        let ended = work.await;
        self.leave_line(&key);
        let machine = ended
            .ok_or_else(|| RunsError::Unavailable("the engine stops".to_owned()))?
            .map_err(|e| RunsError::Unavailable(e.to_string()))?;
        let over = machine.over().ok_or_else(|| RunsError::Unavailable("the engine stops".to_owned()))?;
        Ok(Outcome {
            name,
            phase: over.phase,
            output: over.output.as_ref().map(ToString::to_string),
            error: over.error.clone(),
            cause: over.cause.clone(),
            start: machine.started(),
            stop: over.at,
        })
    }

    async fn stop(&self, namespace: &str, run: &str, stop: Stop) -> Result<Timestamp, RunsError> {
        self.stored().stop(namespace, run, stop).await
    }

    async fn redrive(&self, namespace: &str, run: &str, token: Option<&str>) -> Result<Timestamp, RunsError> {
        self.stored().redrive(namespace, run, token).await
    }

    async fn describe(&self, namespace: &str, run: &str) -> Result<Description, RunsError> {
        self.stored().describe(namespace, run).await
    }

    async fn pinned(&self, namespace: &str, run: &str) -> Result<Pinned, RunsError> {
        self.stored().pinned(namespace, run).await
    }

    async fn history(
        &self,
        namespace: &str,
        run: &str,
        from: Option<Cursor>,
        reverse: bool,
        limit: usize,
    ) -> Result<Events, RunsError> {
        self.show(&(namespace.to_owned(), run.to_owned())).await;
        self.stored().history(namespace, run, from, reverse, limit).await
    }

    async fn signal(&self, token: &str, answer: Answer) -> Result<(), RunsError> {
        self.stored().signal(token, answer).await
    }

    async fn poll_activity(
        &self,
        namespace: &str,
        activity: &str,
        worker: Option<&str>,
        wait: Duration,
    ) -> Result<Option<ActivityTask>, RunsError> {
        let activities = Api::<WorkflowActivity>::namespaced(self.client.clone(), namespace);
        match activities.get_opt(activity).await {
            Ok(Some(_)) => {}
            Ok(None) => return Err(RunsError::NoActivity(activity.to_owned())),
            Err(e) if code(&e) == 403 => return Err(RunsError::Forbidden(text(&e))),
            Err(e) => return Err(RunsError::Unavailable(text(&e))),
        }
        let wait = wait.min(POLL_MAX);
        if self.share.view().is_some_and(|v| v.has_others()) {
            return self.fetch_anywhere(namespace, activity, worker, wait).await;
        }
        Ok(self.fetch(namespace, activity, worker, wait).await)
    }
}

impl Engine {
    async fn begin_express(&self, run: &WorkflowRun, owner: &Owner) -> Result<begin::Begun, RunsError> {
        match self.begin(run, owner).await {
            Ok(begun) if begun.pinned.kind == Kind::Express => Ok(begun),
            Ok(_) => {
                self.leave_line(&(owner.namespace.clone(), owner.name.clone()));
                Err(RunsError::WrongType)
            }
            Err(Refusal::Fails(e)) if e.cause.starts_with("there is no workflow") => {
                Err(RunsError::NoWorkflow(run.spec.workflow.clone().unwrap_or_default()))
            }
            Err(Refusal::Fails(e)) => Err(RunsError::InvalidDefinition(e.cause)),
            Err(Refusal::Waits) => {
                self.leave_line(&(owner.namespace.clone(), owner.name.clone()));
                Err(RunsError::TooMany("runs of this workflow".to_owned()))
            }
            Err(Refusal::Later(why)) => Err(RunsError::Unavailable(why)),
        }
    }
}
