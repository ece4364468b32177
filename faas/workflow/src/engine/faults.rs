//! Where an engine may be broken off, so that tests show what survives it.

/// The places around what must be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Point {
    /// Before the start of a run is stored.
    Begin,
    /// After that.
    Begun,
    /// After a task's schedule is stored, before it is dispatched.
    Scheduled,
    /// While a task is worked on.
    Calling,
    /// After a task's answer, before it is stored.
    Answered,
    /// After the answer is stored, before what follows is done.
    Persisted,
    /// After a step is in the shared log, while its run's page is behind.
    Shared,
    /// After what fills the shared log is stored in a full one, before the log goes on without it.
    Full,
    /// After the shared log was taken, before what is in it is read.
    Taken,
    /// While a timer is armed.
    Armed,
    /// Before the end of a Parallel or Map is stored.
    Join,
    /// After the end of the run is stored, before its status says so.
    Terminal,
}

impl Point {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Begin,
        Self::Begun,
        Self::Scheduled,
        Self::Calling,
        Self::Answered,
        Self::Persisted,
        Self::Shared,
        Self::Full,
        Self::Taken,
        Self::Armed,
        Self::Join,
        Self::Terminal,
    ];
}

/// Breaks engines off.
pub trait Faults: Send + Sync + 'static {
    /// Whether the engine ends here, as if its process was killed: nothing more of it happens.
    fn reached(&self, point: Point, run: &str) -> bool;
}

/// Nothing is broken off.
pub struct NoFaults;

impl Faults for NoFaults {
    fn reached(&self, _: Point, _: &str) -> bool {
        false
    }
}
