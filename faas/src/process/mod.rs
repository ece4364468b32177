//! Class `process`: instances forked from a warm parent on this node, each in a sandbox of its own.
//!
//! One parent (`parent.py`) has Python, the runner and common modules loaded; an instance of Python is a fork of it, an
//! instance of Node.js a process of its own that waits ahead for its code. Each has namespaces of its own (mounts,
//! processes, IPC, host name, network), a user of its own without privileges, a root directory with programs and its own
//! code, all read-only, a private `/tmp`, and control groups for memory, processor and processes.
//!
//! Limits: Linux, root, and a Python on the node. An instance has no network but its own loopback: a function that calls
//! others needs isolation `container`. Packages come as wheels. When this process ends, its instances end with it.

mod code;
mod env;
mod limits;
mod logs;
mod parent;
mod record;
mod start;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};

use crate::api::{Code, FunctionRevision, Isolation};
use crate::instance::{Class, Event, Instance, Line, StartError};
use crate::runtime::{Language, NODE_RUNNER, PYTHON_RUNNER};
use code::Codes;
use limits::Groups;
use logs::Logs;
use parent::{Parent, Reader};
use record::Records;
use start::Spare;

/// Starts that are under way at a time; further ones wait.
const STARTS: usize = 32;
/// Events that may wait for their reader.
const EVENTS: usize = 1024;
/// Time to read this node's labels.
const LOOK: Duration = Duration::from_secs(5);
/// Time for an instance to end.
const STOP: Duration = Duration::from_secs(10);

/// Settings of a node's processes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of this node.
    pub node: String,
    /// Where codes, packages, logs and sockets are kept: a directory of its own, not too deep, because the names of
    /// sockets are short.
    pub data_dir: PathBuf,
    /// Python; none to look for it.
    pub python: Option<PathBuf>,
    /// Node.js; none to look for it.
    pub node_js: Option<PathBuf>,
    /// Instances on this node at a time.
    pub max_instances: usize,
    /// Further arguments of pip, such as `--find-links`.
    pub pip_args: Vec<String>,
}

impl Config {
    /// The settings that a node has if nobody says otherwise.
    #[must_use]
    pub fn new(node: impl Into<String>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            node: node.into(),
            data_dir: data_dir.into(),
            python: None,
            node_js: None,
            max_instances: 2000,
            pip_args: Vec::new(),
        }
    }
}

/// One instance that was started and has not ended.
#[derive(Debug)]
struct Running {
    namespace: Arc<str>,
    name: Arc<str>,
    function: Arc<str>,
    parent: Weak<Parent>,
    /// It answers: its end is an event.
    ready: bool,
    /// Its end is asked for.
    stopping: bool,
    memory: u64,
    ended: Vec<oneshot::Sender<String>>,
}

/// The processes of one node.
pub struct Host {
    client: Client,
    config: Config,
    python: Option<PathBuf>,
    node_js: Option<PathBuf>,
    groups: Arc<Groups>,
    codes: Codes,
    logs: Arc<Logs>,
    records: Arc<Records>,
    parent: tokio::sync::Mutex<Option<Arc<Parent>>>,
    running: Mutex<HashMap<String, Running>>,
    spares: Mutex<Vec<Spare>>,
    starting: Semaphore,
    number: AtomicU64,
    /// Those of this node, as last read; none before that.
    labels: Mutex<Option<BTreeMap<String, String>>>,
    events: mpsc::Sender<Event>,
    reader: Mutex<Option<mpsc::Receiver<Event>>>,
    this: Weak<Self>,
}

impl Host {
    /// Makes the directories, ends what a former process left, and begins to write records. Nothing runs yet: the warm
    /// parent comes with the first function that needs it.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn new(client: Client, config: Config) -> std::io::Result<Arc<Self>> {
        let dir = &config.data_dir.clone();
        // Sockets and pipes of instances that ended with their host.
        let _ = std::fs::remove_dir_all(dir.join("run"));
        for name in ["lib", "root", "code", "packages", "run", "log"] {
            std::fs::create_dir_all(dir.join(name))?;
        }
        for (name, text) in
            [("runner.py", PYTHON_RUNNER), ("runner.js", NODE_RUNNER), ("parent.py", include_str!("parent.py"))]
        {
            std::fs::write(dir.join("lib").join(name), text)?;
        }
        let python = config.python.clone().or_else(|| program("python3"));
        let node_js = config.node_js.clone().or_else(|| program("node"));
        let (events, reader) = mpsc::channel(EVENTS);
        let records = Arc::<Records>::default();
        if tokio::runtime::Handle::try_current().is_ok() {
            tokio::spawn(records.clone().run(client.clone(), config.node.clone()));
        }
        Ok(Arc::new_cyclic(|this| Self {
            groups: Arc::new(Groups::open(dir)),
            codes: Codes::new(dir, python.clone().unwrap_or_default(), config.pip_args.clone()),
            logs: Arc::new(Logs::new(dir.join("log"))),
            records,
            parent: tokio::sync::Mutex::default(),
            running: Mutex::default(),
            spares: Mutex::default(),
            starting: Semaphore::new(STARTS),
            number: AtomicU64::new(0),
            labels: Mutex::default(),
            events,
            reader: Mutex::new(Some(reader)),
            this: this.clone(),
            client,
            python,
            node_js,
            config,
        }))
    }

    /// Whether this node can run such functions as processes, or why not.
    ///
    /// # Errors
    /// In words for the function's owner.
    pub fn can(&self, language: Language) -> Result<(), String> {
        if !nix::unistd::geteuid().is_root() {
            return Err("processes need root on the node".to_owned());
        }
        if self.python.is_none() {
            return Err("there is no python3 on the node".to_owned());
        }
        match language {
            Language::Python => Ok(()),
            Language::Node if self.node_js.is_some() => Ok(()),
            Language::Node => Err("there is no node on the node".to_owned()),
            Language::Http => Err("runtime http runs in containers".to_owned()),
        }
    }

    /// Forgets the logs of a function that is deleted.
    pub fn forget(&self, namespace: &str, function: &str) {
        self.logs.forget(namespace, function);
    }

    fn language(&self, revision: &FunctionRevision) -> Result<Language, StartError> {
        let language = Language::of(&revision.spec.code).map_err(|e| StartError::Code(e.to_string()))?;
        self.can(language).map_err(StartError::Code)?;
        Ok(language)
    }

    /// The warm parent; started if there is none.
    async fn parent(&self) -> Result<Arc<Parent>, StartError> {
        let mut parent = self.parent.lock().await;
        if let Some(parent) = parent.as_ref().filter(|p| !p.is_dead()) {
            return Ok(parent.clone());
        }
        let python = self.python.clone().unwrap_or_default();
        let prefixes: Vec<String> =
            [self.python.as_deref(), self.node_js.as_deref()].into_iter().flatten().filter_map(prefix).collect();
        let (new, reader) = Parent::start(&self.config.data_dir, &python, &prefixes, &self.groups).await?;
        let new = Arc::new(new);
        if let Some(host) = self.this.upgrade() {
            tokio::spawn(host.listen(new.clone(), reader));
        }
        *parent = Some(new.clone());
        Ok(new)
    }

    async fn listen(self: Arc<Self>, parent: Arc<Parent>, mut reader: Reader) {
        // Weak from here: the host must be able to end.
        let host = Arc::downgrade(&self);
        drop(self);
        while let Some(told) = reader.next().await {
            let Some(host) = host.upgrade() else { return };
            let reason = match (told.fault, told.signal) {
                (Some(fault), _) => fault,
                (None, true) => format!("killed by signal {}", told.status),
                (None, false) => format!("exit code {}", told.status),
            };
            host.ended(&told.id, reason).await;
        }
        parent.died();
        if let Some(host) = host.upgrade() {
            let lost: Vec<String> = {
                let running = host.running.lock();
                let of_it = |r: &Running| r.parent.upgrade().is_none_or(|p| Arc::ptr_eq(&p, &parent));
                running.iter().filter(|(_, r)| of_it(r)).map(|(id, _)| id.clone()).collect()
            };
            tracing::warn!(instances = lost.len(), "the warm parent of functions ended");
            for id in lost {
                host.ended(&id, "the warm parent of its node ended".to_owned()).await;
            }
        }
    }

    /// An instance is gone: everything of it goes, and who wants to know is told.
    async fn ended(&self, id: &str, mut reason: String) {
        self.spares.lock().retain(|s| s.id != id);
        let Some(gone) = self.running.lock().remove(id) else {
            self.clear(id.to_owned());
            return;
        };
        if self.groups.out_of_memory(id) {
            reason = format!("killed: it used more memory than its limit of {} MiB", gone.memory >> 20);
        }
        self.clear(id.to_owned());
        for waiter in gone.ended {
            let _ = waiter.send(reason.clone());
        }
        if gone.ready {
            self.records.remove(&gone.namespace, &gone.name);
            if !gone.stopping {
                tracing::info!(namespace = %gone.namespace, function = %gone.function, instance = %gone.name, reason, "an instance ended");
                let event = Event::Ended { namespace: gone.namespace.to_string(), name: gone.name.to_string(), reason };
                let _ = self.events.send(event).await;
            }
        }
    }

    /// Removes directory and control groups, in the background.
    fn clear(&self, id: String) {
        let (dir, groups) = (self.config.data_dir.join("run").join(&id), self.groups.clone());
        tokio::task::spawn_blocking(move || {
            let _ = std::fs::remove_dir_all(dir);
            groups.remove(&id);
        });
    }
}

#[async_trait]
impl Class for Host {
    fn isolation(&self) -> Isolation {
        Isolation::Process
    }

    fn takes(&self, code: &Code) -> Result<(), String> {
        if code.source.image.is_some() {
            return Err("an image is run as isolation container only".to_owned());
        }
        selected(&self.config.node, self.labels.lock().as_ref(), &code.node_selector)?;
        self.can(Language::of(code).map_err(|e| e.to_string())?)
    }

    async fn look(&self) {
        let nodes = Api::<Node>::all(self.client.clone());
        match tokio::time::timeout(LOOK, nodes.get_opt(&self.config.node)).await {
            Ok(Ok(node)) => *self.labels.lock() = node.map(|n| n.metadata.labels.unwrap_or_default()),
            // What was known stays.
            Ok(Err(error)) => tracing::warn!(%error, "the labels of this node cannot be read"),
            Err(_) => tracing::warn!("the labels of this node are not answered"),
        }
    }

    fn place(&self) -> String {
        format!("in processes of node {}", self.config.node)
    }

    async fn start(&self, revision: Arc<FunctionRevision>) -> Result<Instance, StartError> {
        let Some(host) = self.this.upgrade() else { return Err(anyhow::anyhow!("the host ends").into()) };
        let (tell, told) = oneshot::channel();
        // A task of its own: whoever asked may go away, the start goes on.
        tokio::spawn(async move {
            let result = host.begin(&revision).await;
            if let Err(Ok(instance)) = tell.send(result) {
                let namespace = revision.metadata.namespace.clone().unwrap_or_default();
                let revision = revision.metadata.name.clone().unwrap_or_default();
                let _ = host.events.send(Event::Found { namespace, revision, instance }).await;
            }
        });
        told.await.map_err(|_| anyhow::anyhow!("the start was lost"))?
    }

    /// Also installs packages, and starts the warm parent.
    async fn prepare(&self, revision: Arc<FunctionRevision>) -> Result<(), StartError> {
        let language = self.language(&revision)?;
        self.codes.ready(&self.client, &revision, language).await?;
        self.parent().await?;
        if language == Language::Node {
            self.refill();
        }
        Ok(())
    }

    async fn stop(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let (tell, told) = oneshot::channel();
        let found = {
            let mut running = self.running.lock();
            running.iter_mut().find(|(_, r)| &*r.namespace == namespace && &*r.name == name).map(|(id, r)| {
                r.stopping = true;
                r.ended.push(tell);
                (id.clone(), r.parent.upgrade())
            })
        };
        let Some((id, parent)) = found else { return Ok(()) };
        if let Some(parent) = parent {
            parent.stop(&id).await?;
        }
        tokio::time::timeout(STOP, told).await.map_err(|_| anyhow::anyhow!("{name} did not end within {STOP:?}"))?.ok();
        Ok(())
    }

    fn tail(&self, namespace: &str, function: &str, instance: Option<&str>, lines: usize) -> Vec<Line> {
        self.logs.tail(namespace, function, instance, lines)
    }

    fn follow(&self) -> Option<broadcast::Receiver<Line>> {
        Some(self.logs.follow())
    }

    fn events(&self) -> mpsc::Receiver<Event> {
        self.reader.lock().take().unwrap_or_else(|| mpsc::channel(1).1)
    }
}

/// Whether a node has the labels that a function wants. There is no other node for processes.
fn selected(
    node: &str,
    labels: Option<&BTreeMap<String, String>>,
    selector: &BTreeMap<String, String>,
) -> Result<(), String> {
    let has = |(key, value): &(&String, &String)| labels.is_some_and(|l| l.get(*key) == Some(*value));
    match selector.iter().find(|label| !has(label)) {
        None => Ok(()),
        Some((key, value)) => Err(format!(
            "isolation process runs on node {node} only, which does not have the label {key}={value} of the function's \
             nodeSelector: isolation container runs on any node"
        )),
    }
}

/// A program where systems have it; what a user's own tools put first is last, because others may not read it.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places =
        [PathBuf::from("/usr/bin"), PathBuf::from("/usr/local/bin")].into_iter().chain(std::env::split_paths(&path));
    places.map(|dir| dir.join(name)).find(|p| p.is_file())
}

/// Directory of everything that belongs to a program, where that is not `/usr`.
fn prefix(program: &Path) -> Option<String> {
    let real = std::fs::canonicalize(program).ok()?;
    Some(real.parent()?.parent()?.to_str()?.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_honoured_or_refused() {
        let map = |all: &[(&str, &str)]| -> BTreeMap<String, String> {
            all.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let labels = map(&[("disk", "ssd"), ("zone", "a")]);
        for (labels, selector, missing) in [
            (None, map(&[]), None),
            (Some(&labels), map(&[("disk", "ssd")]), None),
            (Some(&labels), map(&[("disk", "ssd"), ("zone", "b")]), Some("zone=b")),
            (Some(&labels), map(&[("gpu", "1")]), Some("gpu=1")),
            (None, map(&[("disk", "ssd")]), Some("disk=ssd")),
        ] {
            let said = selected("n1", labels, &selector);
            assert_eq!(said.is_err(), missing.is_some(), "{selector:?}");
            if let Some(missing) = missing {
                assert!(said.unwrap_err().contains(missing), "{selector:?}");
            }
        }
    }
}
