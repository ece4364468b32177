//! One instance as the gateway has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::link::Link;
use crate::instance::Instance;

/// An instance and the connections to it.
pub struct Live {
    /// The instance.
    pub instance: Instance,
    /// Connections to it.
    pub link: Arc<Link>,
    /// Requests in a row that it did not answer.
    pub(super) unanswered: Mutex<u32>,
    /// Whether somebody was told what its first answer waited for.
    told: AtomicBool,
}

impl Live {
    /// One that was not asked anything yet.
    pub(super) fn new(instance: Instance, link: Arc<Link>) -> Self {
        Self { instance, link, unanswered: Mutex::default(), told: AtomicBool::new(false) }
    }

    /// Whether this is the first time that this is asked.
    pub(super) fn first(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }
}
