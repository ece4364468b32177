//! What the gateway and the scaler know of things that run functions.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{broadcast, mpsc};

use crate::api::{Code, FunctionRevision, Isolation};
use crate::container::Pods;

/// Where an instance answers HTTP/1.1.
#[derive(Clone, Debug)]
pub enum Address {
    /// A pod.
    Tcp(SocketAddr),
    /// A process on this node.
    Unix(PathBuf),
    /// A process on another node, reached through that node's agent.
    Through(Arc<dyn Dial>),
}

/// A connection.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Opens connections to what has no address that others could connect to.
#[async_trait]
pub trait Dial: fmt::Debug + Send + Sync + 'static {
    /// A new connection. The caller bounds the time.
    async fn dial(&self) -> io::Result<Box<dyn Stream>>;
}

/// One thing that runs a revision and can answer.
#[derive(Clone, Debug)]
pub struct Instance {
    /// Name of its Pod or FunctionInstance; no other has it.
    pub name: String,
    /// The node it runs on.
    pub node: String,
    /// Where it answers.
    pub address: Address,
    /// When what, for the receipt of the first answer.
    pub times: Times,
}

/// The phases of a start.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// When it was asked for.
    pub asked: Instant,
    /// When its container or process ran.
    pub started: Instant,
    /// When its code was loaded and it could answer.
    pub loaded: Instant,
}

/// Why an instance did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The code is at fault (syntax, missing handler, crash while loading): trying again does not help. With the last lines
    /// of what it said.
    #[error("the function's code cannot be started: {0}")]
    Code(String),
    /// There is no room now; trying again may help.
    #[error("there is no room for another instance: {0}")]
    NoRoom(String),
    /// Something of ours or of the node failed; trying again may help.
    #[error("the instance did not start: {0}")]
    Other(#[from] anyhow::Error),
}

/// What happens to instances without being asked for.
#[derive(Debug)]
pub enum Event {
    /// It ended. With the reason for its owner: killed for memory, exit code, node lost.
    Ended {
        /// Namespace of the function.
        namespace: String,
        /// Name of the instance.
        name: String,
        /// In one line.
        reason: String,
    },
    /// It is there although this process did not start it: found again after a restart.
    Found {
        /// Namespace of the function.
        namespace: String,
        /// Name of its revision.
        revision: String,
        /// The instance.
        instance: Instance,
    },
}

/// One line that an instance printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Namespace of the function.
    pub namespace: Arc<str>,
    /// Name of the function.
    pub function: Arc<str>,
    /// Name of the instance.
    pub instance: Arc<str>,
    /// When, in RFC 3339, a blank, and what.
    pub text: String,
}

/// One way of running functions.
///
/// Implementations write their own API objects (Pods, FunctionInstances), labelled [`crate::api::FUNCTION`] and
/// [`crate::api::REVISION`], and end what has no object any more. They bound how many starts are under way.
#[async_trait]
pub trait Class: Send + Sync + 'static {
    /// Which one it is.
    fn isolation(&self) -> Isolation;

    /// Whether it can run such code, or why not, in words for the function's owner.
    fn takes(&self, code: &Code) -> Result<(), String> {
        let _ = code;
        Ok(())
    }

    /// Reads anew what [`Class::takes`] depends on and others may change: nodes and their labels. Takes some seconds at most.
    async fn look(&self) {}

    /// Where instances of such code are, to follow "answers", in words for the function's owner.
    fn place(&self, code: &Code) -> String {
        let _ = code;
        "in pods".to_owned()
    }

    /// Starts an instance and waits until it can answer, at most a minute or until the revision's own deadline. Dropping the
    /// future does not stop the start: its outcome is then told as an event.
    async fn start(&self, revision: Arc<FunctionRevision>) -> Result<Instance, StartError>;

    /// Does ahead what a first start would wait for: code is fetched, what it is started from is warmed. Nothing depends on it.
    async fn prepare(&self, revision: Arc<FunctionRevision>) -> Result<(), StartError> {
        let _ = revision;
        Ok(())
    }

    /// Ends an instance that has no request in flight. Nothing happens if there is none of that name.
    async fn stop(&self, namespace: &str, name: &str) -> anyhow::Result<()>;

    /// Deletes what was kept for revisions that are gone: codes, packages, images. `revisions` are all that there are, as of a moment
    /// ago; what instances have stays.
    async fn tidy(&self, revisions: &[Arc<FunctionRevision>]) {
        let _ = revisions;
    }

    /// The last lines of each instance of a function, also of some that ended; none where others keep the logs.
    async fn tail(&self, namespace: &str, function: &str, instance: Option<&str>, lines: usize) -> Vec<Line> {
        let _ = (namespace, function, instance, lines);
        Vec::new()
    }

    /// Lines of all instances from now on; none where others keep the logs. Who is too slow misses some and is told how many.
    fn follow(&self) -> Option<broadcast::Receiver<Line>> {
        None
    }

    /// Is told of the class of pods beside it, before anything is started.
    fn meet(&self, pods: &Arc<Pods>) {
        let _ = pods;
    }

    /// What happens from now on. Only one reader; what it does not read in time makes starts wait.
    fn events(&self) -> mpsc::Receiver<Event>;
}
