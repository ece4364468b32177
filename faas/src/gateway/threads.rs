//! The gateway's own threads.
//!
//! On a small machine everything of a cluster shares two or four threads, and a step of some control loop keeps one busy for
//! milliseconds: what is due on that thread waits. Requests are short and many; on threads of their own the kernel lets them
//! in between. One pool per process, never ended: what a request begins (a start, a connection to a node's agent) may outlive the gateway
//! that it came through, when another process becomes the leader.

use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

/// Where the doors and the requests that come through them run.
pub fn handle() -> Handle {
    static THREADS: OnceLock<Option<Runtime>> = OnceLock::new();
    let own = THREADS.get_or_init(|| match Builder::new_multi_thread().thread_name("functions").enable_all().build() {
        Ok(runtime) => Some(runtime),
        Err(error) => {
            tracing::warn!(%error, "requests of functions have no threads of their own");
            None
        }
    });
    own.as_ref().map_or_else(Handle::current, |runtime| runtime.handle().clone())
}
