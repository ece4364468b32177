//! What plugins of kubectl share: the way to the cluster, tables, and errors in kubectl's words.
//!
//! A plugin is this program under another name, which kubectl finds on the PATH. It knows the cluster only by the person's
//! kubeconfig, as kubectl does. Messages and exit codes are kubectl's: `error: …`, or `Error from server (NotFound): …`, and 1.

pub mod archive;
mod connect;
mod door;
mod output;
pub mod parts;
pub mod table;

pub use connect::{Connection, Session};
pub use door::Door;
pub use output::{Format, nothing_found};

/// An error in kubectl's words.
#[must_use]
pub fn told(error: &anyhow::Error) -> String {
    match error.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) if !status.reason.is_empty() => {
            format!("Error from server ({}): {}", status.reason, status.message)
        }
        Some(kube::Error::Api(status)) => format!("Error from server: {}", status.message),
        _ => format!("error: {error:#}"),
    }
}

/// Runs one thing on a runtime of its own.
///
/// # Errors
/// Those of the work, and when there is no runtime.
pub fn alone(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    // A read of standard input may still wait; nobody does for it.
    runtime.shutdown_background();
    done
}
