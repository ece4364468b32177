//! The threads that have interpreters. Evaluations come from any thread of the program, of which there may be many:
//! a few threads do the work, so that memory is bounded and the interpreter's stack is its own, and they end when
//! there is nothing to do for a while, which gives their memory back.

use std::collections::VecDeque;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Answer;
use super::engine::Slot;

/// Threads at most.
const WORKERS_MAX: usize = 4;
/// How long a thread without work stays.
const IDLE: Duration = Duration::from_secs(30);
/// Stack of a thread, well above the interpreter's own limit.
const STACK: usize = 2 * 1024 * 1024;

/// What is to be done, and where the answer goes. Whoever asks waits, so that there are never more of these than
/// threads that ask.
struct Job {
    work: Work,
    answer: SyncSender<Answer>,
}

/// Chance and time as whoever asks has them: that is another thread.
#[derive(Clone, Copy, Default)]
pub(super) struct Fixed {
    pub(super) seed: Option<u64>,
    pub(super) millis: Option<i64>,
}

pub(super) enum Work {
    Check { expression: String },
    Evaluate { expression: String, states: String, variables: String, fixed: Fixed },
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    workers: usize,
    idle: usize,
}

static STATE: Mutex<State> = Mutex::new(State { queue: VecDeque::new(), workers: 0, idle: 0 });
static WORK: Condvar = Condvar::new();

fn state() -> MutexGuard<'static, State> {
    // Nothing panics while it holds the lock; if it did, the state would still be whole.
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has the work done and waits for its answer.
pub(super) fn run(work: Work) -> Answer {
    let (answer, answered) = sync_channel(1);
    {
        let mut state = state();
        if state.idle <= state.queue.len() && state.workers < WORKERS_MAX {
            let thread = std::thread::Builder::new().name("jsonata".to_owned()).stack_size(STACK);
            match thread.spawn(worker) {
                Ok(_) => state.workers += 1,
                Err(e) if state.workers == 0 => return Answer::Failure(format!("the engine does not start: {e}")),
                // Those that are there will come to it.
                Err(_) => {}
            }
        }
        state.queue.push_back(Job { work, answer });
    }
    WORK.notify_one();
    answered.recv().unwrap_or_else(|_| Answer::Failure("the engine failed".to_owned()))
}

fn worker() {
    /// Counts the thread out when it panics, so that another can take its place.
    struct Panicked;
    impl Drop for Panicked {
        fn drop(&mut self) {
            if std::thread::panicking() {
                let mut state = state();
                state.workers -= 1;
                if state.workers == 0 {
                    // Those who asked hear that the engine failed rather than wait for ever.
                    state.queue.clear();
                }
            }
        }
    }
    let _panicked = Panicked;
    let mut slot = Slot::default();
    while let Some(job) = next() {
        let answer = slot.run(&job.work);
        // Nobody waits only if the asker's thread is gone.
        _ = job.answer.send(answer);
    }
}

/// The next job. Nothing when there was none for a while: the thread is then counted out, under the same lock, so that
/// nobody relies on it.
fn next() -> Option<Job> {
    let mut state = state();
    state.idle += 1;
    let (mut state, _) =
        WORK.wait_timeout_while(state, IDLE, |state| state.queue.is_empty()).unwrap_or_else(PoisonError::into_inner);
    state.idle -= 1;
    let job = state.queue.pop_front();
    if job.is_none() {
        state.workers -= 1;
    }
    job
}
