//! Controllers and the scheduler.
