//! One instance as the gateway has it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Request;
use http::header::HOST;
use parking_lot::Mutex;

use super::call::nothing;
use super::fleet::PAUSE;
use super::link::Link;
use crate::instance::{Class, Instance};

/// Time for an instance to say that it is there.
const PROBE: Duration = Duration::from_secs(1);
/// Tries to end an instance.
const STOPS: u32 = 5;

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

    /// Whether it answers anything at all, however busy it is. For code that our runners run.
    pub(super) async fn responds(&self) -> bool {
        let Ok(request) = Request::get("/_skiff/ready").header(HOST, "function").body(nothing()) else { return true };
        matches!(tokio::time::timeout(PROBE, self.link.send(request)).await, Ok(Ok(_)))
    }

    /// Whether this is the first time that this is asked.
    pub(super) fn first(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }
}

/// Ends an instance, with some patience.
pub fn stop(class: Arc<dyn Class>, namespace: String, name: String) {
    tokio::spawn(async move {
        let mut pause = PAUSE.0;
        for _ in 0..STOPS {
            match class.stop(&namespace, &name).await {
                Ok(()) => return,
                Err(error) => tracing::warn!(instance = %name, error = format!("{error:#}"), "cannot end an instance"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    });
}
