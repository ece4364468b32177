//! Runs of distributed Maps: executions of their own, with one journal for all of one map.
//!
//! An execution is a machine as any run's, but is no object: what comes for it is stored on the pages of its map's run, in one
//! write with what came for others meanwhile. So ten thousand of them cost some hundreds of writes, and what each promises is
//! the same: the outcome of every step is stored before the next begins. Its history is made anew from what was stored.
//!
//! The map's run belongs to the task that asks for it (`tell`): it begins when that is stored, and is begun again when an engine
//! takes the run over. [`WorkflowMapRun`] is what people see of it; its spec may be changed while it goes on.
//!
//! Limits: [`CONCURRENCY_MAX`] executions at a time; executions of type EXPRESS begin anew when an engine takes over.

mod files;
mod formats;
mod items;
pub(crate) mod ledger;
mod reader;
mod results;
mod work;

use std::sync::Arc;
use std::time::Duration;

use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde::{Deserialize, Serialize};
use serde_json::json;
use skiff_asl::{Definition, ExecutionError, error};
use skiff_controllers::runtime::worker::{code, not_found};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use self::items::Items;
use self::ledger::Ledger;
pub(crate) use self::reader::SOURCES;
pub(crate) use self::results::TARGETS;
use super::hear::Note;
use super::work::Tell;
use super::{Engine, Point};
use crate::api::{MapRunStatus, WorkflowMapRun, WorkflowMapRunSpec};
use crate::arn;
use crate::journal::load::Pages;
use crate::journal::{Journal, JournalError};
use crate::machine::{CONCURRENCY_MAX, Info, Plan, Spread, Step, What, path};
use crate::payload::Owner;
use crate::runs::maps::name_of;

/// Pauses between tries of what does not go now.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Tries of a map's run that is stopped.
const STOPS: u32 = 5;
/// Seconds that an execution of type EXPRESS may take.
const EXPRESS: u64 = 300;

/// The execution that has a map.
pub(crate) struct Around {
    /// The run that owns everything.
    pub(crate) root: Owner,
    /// What the execution is told about itself.
    pub(crate) info: Arc<Info>,
    pub(crate) definition: Arc<Definition>,
}

/// What a map's run pinned when it began.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Pin {
    /// The definition as text.
    pub(crate) definition: String,
    /// The state that executions begin with.
    start_at: String,
    step: Step,
    info: Info,
    plan: Plan,
}

/// What an execution is told about itself, but for its input.
pub(crate) fn about(pin: &Pin, index: usize) -> Info {
    let (info, plan) = (&pin.info, &pin.plan);
    let machine = format!("{}/{}", info.workflow, plan.label);
    let name = name_of(&plan.name, index);
    Info {
        id: arn::execution(&info.namespace, &machine, &name),
        name,
        workflow_id: arn::machine(&info.namespace, &machine),
        input: serde_json::Value::Null,
        timeout_seconds: plan.express.then_some(EXPRESS),
        durable: !plan.express,
        start_at: Some(pin.start_at.clone()),
        path: path(&info.path, pin.step, index),
        ..info.clone()
    }
}

/// What a map's run is told.
enum Told {
    /// Something for an execution.
    Child(usize, Note),
    /// It is to be broken off.
    Cancel,
}

/// A map's run that is under way.
pub(super) struct Map {
    notes: mpsc::UnboundedSender<Told>,
    task: JoinHandle<()>,
}

impl Map {
    /// Begins it, or takes it up; `tell` hears how it ended. It is broken off, as by the end of the process, when this is dropped.
    pub(super) fn begin(engine: &Arc<Engine>, around: Around, spread: Spread, tell: Tell) -> Self {
        let (notes, inbox) = mpsc::unbounded_channel();
        let whole = Whole { engine: Arc::clone(engine), around, spread, me: notes.downgrade() };
        let stop = engine.stop.clone();
        let task = engine.tracker.spawn(async move {
            stop.run_until_cancelled(Box::pin(drive(whole, inbox, tell))).await;
        });
        Self { notes, task }
    }

    /// Something for an execution.
    pub(super) fn tell(&self, index: usize, note: Note) {
        // Where it ended meanwhile nobody waits for this.
        let _ = self.notes.send(Told::Child(index, note));
    }

    /// Breaks it off for good. What is returned ends when that is written down.
    pub(super) fn cancel(self) -> Option<JoinHandle<()>> {
        self.notes.send(Told::Cancel).is_ok().then_some(self.task)
    }
}

/// What a map's run is made of.
struct Whole {
    engine: Arc<Engine>,
    around: Around,
    spread: Spread,
    /// Not for ever: it ends when nobody holds its [`Map`].
    me: mpsc::WeakUnboundedSender<Told>,
}

/// How a map's run ended here.
enum Done {
    /// In this way.
    Ended(What),
    /// Nobody waits for it.
    Dropped,
}

async fn drive(whole: Whole, mut inbox: mpsc::UnboundedReceiver<Told>, tell: Tell) {
    let name = whole.spread.plan.name.clone();
    let (mut pause, mut cancelled, mut tries) = (PAUSE.0, false, 0);
    loop {
        match Box::pin(attempt(&whole, &mut inbox, &mut cancelled)).await {
            Ok(Done::Ended(what)) => return tell(Note::Ended(what)),
            Ok(Done::Dropped) => return,
            Err(JournalError::Gone) => {
                let error = ExecutionError::new(error::RUNTIME, "the run of the map was deleted");
                let step = whole.spread.step;
                return tell(Note::Ended(What::Failed { step, error, started: None }));
            }
            Err(JournalError::Fenced) => tracing::info!(map = name, "another engine had the run of a map"),
            Err(e) => tracing::warn!(map = name, error = &e as &dyn std::error::Error, "the run of a map waits"),
        }
        tries += 1;
        if (cancelled && tries >= STOPS) || (inbox.is_closed() && inbox.is_empty() && !cancelled) {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

fn api(e: kube::Error) -> JournalError {
    JournalError::Api(Box::new(e))
}

async fn attempt(
    whole: &Whole,
    inbox: &mut mpsc::UnboundedReceiver<Told>,
    cancelled: &mut bool,
) -> Result<Done, JournalError> {
    let Whole { engine, around, spread, .. } = whole;
    let objects = Api::<WorkflowMapRun>::namespaced(engine.client.clone(), &around.root.namespace);
    let there = objects.get_opt(&spread.plan.name).await.map_err(api)?;
    let there = match there {
        Some(there) => there,
        None => create(&objects, around, spread).await?,
    };
    if there.spec.run_uid != around.root.uid {
        return Err(JournalError::Damaged { page: 0, why: "its name belongs to another run".to_owned() });
    }
    let own = Owner::of_map(&there);
    let pages = Pages::read(&engine.client, &own, there.status.as_ref().map_or(0, |s| s.history_pages)).await?;
    let damaged = |why: String| JournalError::Damaged { page: 1, why };
    let begun = match &pages {
        Some(pages) => serde_json::from_str::<Pin>(&pages.pinned).map_err(|e| damaged(e.to_string())),
        None => {
            engine.reached(Point::Begin, &around.root.name).await;
            match pinned(whole).await {
                Ok(pin) => Ok(pin),
                Err(error) => return refuse(whole, &objects, error).await,
            }
        }
    };
    let mut pin = begun?;
    let text = if pages.is_none() { serde_json::to_string(&pin).unwrap_or_default() } else { String::new() };
    let items = pin.plan.items.take().unwrap_or_default();
    let items = match Items::new(Arc::clone(&around.definition), Arc::new(pin.plan.clone()), items) {
        Ok(items) => Arc::new(items),
        Err(error) => return refuse(whole, &objects, error).await,
    };
    let (express, total) = (pin.plan.express, (items.len(), items.total()));
    let sizes = Arc::clone(&items);
    let mut ledger = Ledger::new(
        Arc::clone(&around.definition),
        Arc::new(move |index| about(&pin, index)),
        Arc::new(move |index| sizes.size(index)),
        express,
        total,
    );
    let journal = match pages {
        Some(pages) => pages.replay(&mut ledger).await?,
        None => Journal::begin(engine.client.clone(), own.clone(), &text).await?,
    };
    ledger.arm();
    Box::pin(work::Actor::new(whole, there, own, items, ledger, journal, objects).run(inbox, cancelled)).await
}

/// Makes the object of a map's run.
async fn create(
    objects: &Api<WorkflowMapRun>,
    around: &Around,
    spread: &Spread,
) -> Result<WorkflowMapRun, JournalError> {
    let (plan, root) = (&spread.plan, &around.root);
    let whole = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let object = WorkflowMapRun {
        metadata: root.meta(plan.name.clone()),
        spec: WorkflowMapRunSpec {
            run: root.name.clone(),
            run_uid: root.uid.clone(),
            step: format!("{}{}", around.info.path, spread.step),
            state: plan.state.clone(),
            label: plan.label.clone(),
            workflow: around.info.workflow.clone(),
            max_concurrency: whole(plan.concurrency),
            tolerated_failure_count: plan.tolerated.map(whole),
            tolerated_failure_percentage: plan.percentage,
            express: plan.express,
        },
        status: None,
    };
    match objects.create(&PostParams::default(), &object).await {
        Ok(made) => Ok(made),
        Err(e) if code(&e) == 409 => objects.get(&plan.name).await.map_err(api),
        // The namespace goes, or it is gone.
        Err(e) if not_found(&e) || code(&e) == 403 => Err(JournalError::Gone),
        Err(e) => Err(api(e)),
    }
}

/// What a map's run is from its beginning; its items are read.
async fn pinned(whole: &Whole) -> Result<Pin, ExecutionError> {
    let Whole { engine, around, spread, .. } = whole;
    let (_, map) = items::map_of(&around.definition, &spread.plan.state)?;
    let mut plan = (*spread.plan).clone();
    if let (Some(source), Some(reader)) = (&plan.source, &map.item_reader) {
        plan.items = Some(reader::read(engine, around, spread, reader, source).await?);
    }
    Ok(Pin {
        definition: around.definition.raw.to_string(),
        start_at: map.processor.start_at.clone(),
        step: spread.step,
        info: (*around.info).clone(),
        plan,
    })
}

/// A map's run fails before it begins.
async fn refuse(whole: &Whole, objects: &Api<WorkflowMapRun>, error: ExecutionError) -> Result<Done, JournalError> {
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(crate::journal::record::now());
    let status = MapRunStatus {
        phase: "FAILED".to_owned(),
        error: Some(error.error.clone()),
        cause: Some(error.cause.clone()),
        start_time: Some(now.clone()),
        stop_time: Some(now),
        redrive_count: whole.spread.redrives,
        ..MapRunStatus::default()
    };
    write_status(objects, &whole.spread.plan.name, &status).await?;
    Ok(Done::Ended(What::Failed { step: whole.spread.step, error, started: None }))
}

/// Writes the status of a map's run; it as it is then. None where it is gone.
async fn write_status(
    objects: &Api<WorkflowMapRun>,
    name: &str,
    status: &MapRunStatus,
) -> Result<Option<WorkflowMapRun>, JournalError> {
    let mut fields = json!(status);
    if let Some(fields) = fields.as_object_mut() {
        for absent in ["error", "cause", "stopTime"] {
            fields.entry(absent).or_insert(serde_json::Value::Null);
        }
    }
    let patch = Patch::Merge(json!({"status": fields}));
    match objects.patch_status(name, &PatchParams::default(), &patch).await {
        Ok(map) => Ok(Some(map)),
        Err(e) if not_found(&e) => Ok(None),
        Err(e) => Err(api(e)),
    }
}

/// Executions at a time.
fn concurrency(asked: u32) -> usize {
    match usize::try_from(asked).unwrap_or(usize::MAX) {
        0 => CONCURRENCY_MAX,
        some => some.min(CONCURRENCY_MAX),
    }
}

/// Whether more failed than may.
fn is_beyond(failed: usize, total: usize, count: Option<u32>, percentage: Option<f64>) -> bool {
    #[allow(clippy::cast_precision_loss)] // There are far fewer than 2^52.
    let share = |p: f64| failed as f64 * 100.0 > p * total as f64;
    match (count, percentage) {
        (None, None) => failed > 0,
        (count, percentage) => {
            count.is_some_and(|c| failed > usize::try_from(c).unwrap_or(usize::MAX)) || percentage.is_some_and(share)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_tolerated_by_count_and_share() {
        for (failed, total, count, percentage, beyond) in [
            (0, 10, None, None, false),
            (1, 10, None, None, true),
            (2, 10, Some(2), None, false),
            (3, 10, Some(2), None, true),
            (2, 10, None, Some(20.0), false),
            (3, 10, None, Some(20.0), true),
            (2, 10, Some(1), Some(50.0), true),
            (6, 10, Some(9), Some(50.0), true),
            (10, 10, None, Some(100.0), false),
            (1, 3, None, Some(33.0), true),
        ] {
            assert_eq!(is_beyond(failed, total, count, percentage), beyond, "{failed} of {total}");
        }
        assert_eq!((concurrency(0), concurrency(7), concurrency(u32::MAX)), (CONCURRENCY_MAX, 7, CONCURRENCY_MAX));
    }
}
