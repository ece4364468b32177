//! Work on one task, begun by whatever holds the machine that asks for it: the actor of a run, or that of a map's run.

use std::sync::Arc;

use skiff_asl::{ExecutionError, error};
use tokio::task::AbortHandle;

use super::hear::Note;
use super::{Engine, Point};
use crate::journal::record::now;
use crate::machine::{Dispatch, Info, What};
use crate::payload::Owner;
use crate::resource::Resource;
use crate::task::{Call, Done};

/// Tells whoever holds the machine.
pub(super) type Tell = Arc<dyn Fn(Note) + Send + Sync>;

/// Work that is under way.
pub(super) struct Work {
    live: AbortHandle,
    call: Arc<Call>,
}

impl Work {
    /// Begins it; none where it cannot be, and then that is told.
    pub(super) fn begin(
        engine: &Arc<Engine>,
        owner: &Owner,
        info: &Arc<Info>,
        dispatch: Dispatch,
        tell: Tell,
    ) -> Option<Self> {
        let (step, started) = (dispatch.step, now());
        let resource = match Resource::parse(&dispatch.resource) {
            Ok(resource) => resource,
            Err(cause) => {
                let error = ExecutionError::new(error::RUNTIME, cause);
                tell(Note::Ended(What::Failed { step, error, started: Some(started) }));
                return None;
            }
        };
        let report = {
            let tell = Arc::clone(&tell);
            Box::new(move |output: String, stored| {
                let what = What::Submitted { step, output: output.into(), started };
                tell(Note::Input(what, Some(stored)));
            })
        };
        let call = Arc::new(Call {
            engine: Arc::clone(engine),
            owner: owner.clone(),
            info: Arc::clone(info),
            dispatch,
            resource,
            report,
        });
        let work = Arc::clone(&call);
        let stop = engine.stop.clone();
        let task = engine.tracker.spawn(async move {
            let work = std::pin::pin!(async {
                let done = work.perform().await;
                work.engine.reached(Point::Calling, &work.owner.name).await;
                tell(match done {
                    Ok(Done::Output(output)) => {
                        Note::Ended(What::Succeeded { step, output: output.into(), started: Some(started) })
                    }
                    Ok(Done::Elsewhere) => Note::Released(step),
                    Err(error) => Note::Ended(What::Failed { step, error, started: Some(started) }),
                });
            });
            stop.run_until_cancelled(work).await;
        });
        Some(Self { live: task.abort_handle(), call })
    }

    /// Ends it, and what it began elsewhere: nobody waits for it any more.
    pub(super) fn cancel(self, engine: &Engine) {
        self.live.abort();
        let (stop, call) = (engine.stop.clone(), Arc::clone(&self.call));
        engine.tracker.spawn(async move {
            stop.run_until_cancelled(Box::pin(call.undo())).await;
        });
    }
}

/// What is not held any more is not worked on here.
impl Drop for Work {
    fn drop(&mut self) {
        self.live.abort();
    }
}
