//! The processes of one node: started from a warm parent when the gateway asks, ended when it asks or goes away.
//!
//! It knows no API. What it runs is told to those who watch it; who watches first gets everything that runs, then each change in
//! order. Where nobody watches for a minute, no gateway is there to send requests: everything ends.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};

use super::code::{Codes, Ready};
use super::job::{Can, Job, Record, Said, Told};
use super::limits::Groups;
use super::logs::Logs;
use super::parent::{Parent, Reader};
use super::start::Spare;
use crate::instance::{Line, StartError};
use crate::runtime::{Language, NODE_RUNNER, PYTHON_RUNNER, Source};

/// Starts that are under way at a time; further ones wait.
const STARTS: usize = 32;
/// What may wait to be read by one who watches. Who is slower begins anew.
const BEHIND: usize = 1024;
/// Those who watch at a time: the gateway, and another that takes over.
const WATCHERS: usize = 16;
/// Instances outlive the last one who watched for so long: a gateway that starts again finds them.
const ALONE: Duration = Duration::from_secs(60);
/// Code that comes has the disk looked over, so often at most. The gateway asks for it too.
const TIDY: Duration = Duration::from_secs(300);
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
pub(super) struct Running {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
    pub(super) function: Arc<str>,
    pub(super) parent: Weak<Parent>,
    /// It answers: its end is told.
    pub(super) record: Option<Record>,
    /// Its end is asked for.
    pub(super) stopping: bool,
    pub(super) memory: u64,
    /// Stays on the disk while it runs.
    pub(super) _code: Ready,
    pub(super) ended: Vec<oneshot::Sender<End>>,
}

/// Why an instance is gone.
#[derive(Clone, Debug, Default)]
pub(super) struct End {
    /// In words for the function's owner.
    pub(super) reason: String,
    /// Whether its own code, or what that needs, is the cause. A kill from outside is not: the same may succeed.
    pub(super) own: bool,
}

/// Those who are told what happens.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    all: Mutex<Vec<mpsc::Sender<Told>>>,
    /// How often somebody began or ceased to watch.
    turns: AtomicU64,
}

impl Watchers {
    /// Tells all; who is too far behind is told nothing any more, and sees that.
    pub(super) fn tell(&self, told: &Told) {
        self.all.lock().retain(|w| w.try_send(told.clone()).is_ok());
    }

    fn count(&self) -> usize {
        let mut all = self.all.lock();
        all.retain(|w| !w.is_closed());
        all.len()
    }
}

/// What happens on a node, from now on.
pub(crate) struct Watch {
    told: mpsc::Receiver<Told>,
    host: Weak<Host>,
}

impl Watch {
    /// The next; none when this one was too slow, or the node's host ends.
    pub(crate) async fn next(&mut self) -> Option<Told> {
        self.told.recv().await
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.told.close();
        if let (Some(host), Ok(runtime)) = (self.host.upgrade(), tokio::runtime::Handle::try_current()) {
            let turn = host.watchers.turns.fetch_add(1, Ordering::Relaxed) + 1;
            if host.watchers.count() == 0 {
                let host = Weak::clone(&self.host);
                runtime.spawn(async move {
                    tokio::time::sleep(ALONE).await;
                    let Some(host) = host.upgrade() else { return };
                    if host.watchers.turns.load(Ordering::Relaxed) == turn {
                        host.end_all().await;
                    }
                });
            }
        }
    }
}

/// The processes of one node.
pub struct Host {
    pub(super) config: Config,
    pub(super) python: Option<PathBuf>,
    pub(super) node_js: Option<PathBuf>,
    pub(super) groups: Arc<Groups>,
    pub(super) codes: Codes,
    pub(super) logs: Arc<Logs>,
    parent: tokio::sync::Mutex<Option<Arc<Parent>>>,
    pub(super) running: Mutex<HashMap<String, Running>>,
    pub(super) spares: Mutex<Vec<Spare>>,
    pub(super) starting: Semaphore,
    pub(super) number: AtomicU64,
    pub(super) watchers: Watchers,
    /// When the disk was last looked over.
    tidied: Mutex<Option<Instant>>,
    pub(super) this: Weak<Self>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Host {
    /// Makes the directories and ends what a former process left. Nothing runs yet: the warm parent comes with the first
    /// function that needs it.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn new(config: Config) -> std::io::Result<Arc<Self>> {
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
        Ok(Arc::new_cyclic(|this| Self {
            groups: Arc::new(Groups::open(dir)),
            codes: Codes::new(dir, python.clone().unwrap_or_default(), config.pip_args.clone()),
            logs: Arc::new(Logs::new(dir.join("log"))),
            parent: tokio::sync::Mutex::default(),
            running: Mutex::default(),
            spares: Mutex::default(),
            starting: Semaphore::new(STARTS),
            number: AtomicU64::new(0),
            watchers: Watchers::default(),
            tidied: Mutex::default(),
            this: this.clone(),
            python,
            node_js,
            config,
        }))
    }

    /// Name of the node.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.config.node
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

    /// What it runs, or why not.
    fn able(&self) -> Can {
        let fault = |language| self.can(language).err();
        Can { python: fault(Language::Python), node: fault(Language::Node), max: self.config.max_instances }
    }

    /// Everything that runs, then this, then every change. None when too many watch already.
    pub(crate) fn watch(&self, more: impl IntoIterator<Item = Told>) -> Option<Watch> {
        let running = self.running.lock();
        if self.watchers.count() >= WATCHERS {
            return None;
        }
        let (tell, told) = mpsc::channel(BEHIND);
        let instances = running.values().filter(|r| !r.stopping).filter_map(|r| r.record.clone()).collect();
        for told in std::iter::once(Told::State { can: self.able(), instances }).chain(more) {
            // There is room for the first ones; who is told nothing more begins anew.
            let _ = tell.try_send(told);
        }
        self.watchers.all.lock().push(tell);
        self.watchers.turns.fetch_add(1, Ordering::Relaxed);
        Some(Watch { told, host: self.this.clone() })
    }

    /// Starts an instance and waits until it can answer or cannot. Dropping the future does not stop the start: who watches is
    /// told of what came of it.
    pub(crate) async fn start(&self, job: Job) -> Said {
        if !job.is_plain() {
            return Said::Code { message: "its names are not those of objects".to_owned() };
        }
        let Some(host) = self.this.upgrade() else { return Said::Failed { message: "the host ends".to_owned() } };
        let started = tokio::spawn(async move { host.begin(&job).await });
        match started.await {
            Ok(Ok(Some(said))) => said,
            Ok(Ok(None)) => Said::Missing,
            Ok(Err(error)) => error.into(),
            Err(error) => Said::Failed { message: format!("the start was lost: {error}") },
        }
    }

    /// Does ahead what a first start of such a job would wait for: installs packages, starts the warm parent.
    pub(crate) async fn prepare(&self, job: &Job) -> Said {
        let work = async {
            if !job.is_plain() {
                return Ok(Said::Code { message: "its names are not those of objects".to_owned() });
            }
            self.can(job.language).map_err(StartError::Code)?;
            if self.codes.ready(&job.code, job.language, job.pip_index.as_deref()).await?.is_none() {
                return Ok(Said::Missing);
            }
            self.parent().await?;
            if job.language == Language::Node {
                self.refill();
            }
            Ok(Said::Prepared)
        };
        work.await.unwrap_or_else(|error: StartError| error.into())
    }

    /// Keeps code for those who come.
    ///
    /// # Errors
    /// When it is not what code may be, or the disk refuses.
    pub(crate) async fn keep(&self, key: &str, source: Source) -> Result<(), StartError> {
        self.codes.keep(key, source).await?;
        if self.tidied.lock().is_none_or(|last| last.elapsed() >= TIDY) {
            // In the background: whoever hands over code waits to run it.
            if let Some(host) = self.this.upgrade() {
                tokio::spawn(async move { host.tidy(HashSet::new()).await });
            }
        }
        Ok(())
    }

    /// Codes that are here.
    pub(crate) fn kept(&self) -> Vec<String> {
        self.codes.all()
    }

    /// Deletes what need not stay on the disk. `unwanted` are codes of which there is no revision.
    pub(crate) async fn tidy(&self, unwanted: HashSet<String>) {
        *self.tidied.lock() = Some(Instant::now());
        let Some(host) = self.this.upgrade() else { return };
        // It is tried again by the next.
        let _ = tokio::task::spawn_blocking(move || host.codes.tidy(&unwanted)).await;
    }

    /// Where an instance that can answer listens.
    pub(crate) fn socket(&self, namespace: &str, name: &str) -> Option<PathBuf> {
        let running = self.running.lock();
        let (id, _) = running
            .iter()
            .find(|(_, r)| r.record.is_some() && !r.stopping && &*r.namespace == namespace && &*r.name == name)?;
        Some(self.run_dir(id).join("s"))
    }

    /// No gateway is there: nobody asks for anything, so nothing is kept.
    async fn end_all(&self) {
        let lost: Vec<(Arc<str>, Arc<str>)> =
            self.running.lock().values().map(|r| (r.namespace.clone(), r.name.clone())).collect();
        if !lost.is_empty() {
            tracing::warn!(instances = lost.len(), "no gateway of functions is there any more: their processes end");
        }
        for (namespace, name) in lost {
            if let Err(error) = self.stop(&namespace, &name).await {
                tracing::warn!(%error, "a process of a function does not end");
            }
        }
        self.spares.lock().clear();
        let parent = self.parent.lock().await.take();
        if let Some(parent) = parent {
            parent.end().await;
        }
    }

    /// The warm parent; started if there is none.
    pub(super) async fn parent(&self) -> Result<Arc<Parent>, StartError> {
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
            let (reason, own) = match (told.fault, told.signal) {
                (Some(fault), _) => (fault, false),
                (None, true) => (format!("killed by signal {}", told.status), told.status != Signal::SIGKILL as i32),
                (None, false) => (format!("exit code {}", told.status), true),
            };
            host.ended(&told.id, End { reason, own });
        }
        parent.died();
        if let Some(host) = host.upgrade() {
            let lost: Vec<String> = {
                let running = host.running.lock();
                let of_it = |r: &Running| r.parent.upgrade().is_none_or(|p| Arc::ptr_eq(&p, &parent));
                running.iter().filter(|(_, r)| of_it(r)).map(|(id, _)| id.clone()).collect()
            };
            if !lost.is_empty() {
                tracing::warn!(instances = lost.len(), "the warm parent of functions ended");
            }
            for id in lost {
                host.ended(&id, End { reason: "the warm parent of its node ended".to_owned(), own: false });
            }
        }
    }

    /// An instance is gone: everything of it goes, and who wants to know is told.
    fn ended(&self, id: &str, mut end: End) {
        self.spares.lock().retain(|s| s.id != id);
        let Some(gone) = self.running.lock().remove(id) else {
            self.clear(id.to_owned());
            return;
        };
        if self.groups.out_of_memory(id) {
            let reason = format!("killed: it used more memory than its limit of {} MiB", gone.memory >> 20);
            end = End { reason, own: true };
        }
        self.clear(id.to_owned());
        for waiter in gone.ended {
            let _ = waiter.send(end.clone());
        }
        let reason = end.reason;
        if gone.record.is_some() {
            if !gone.stopping {
                tracing::info!(namespace = %gone.namespace, function = %gone.function, instance = %gone.name, reason, "an instance ended");
            }
            let (namespace, name) = (gone.namespace.to_string(), gone.name.to_string());
            self.watchers.tell(&Told::Ended { namespace, name, reason });
        }
    }

    /// Removes directory and control groups, in the background.
    pub(super) fn clear(&self, id: String) {
        let (dir, groups) = (self.config.data_dir.join("run").join(&id), self.groups.clone());
        tokio::task::spawn_blocking(move || {
            let _ = std::fs::remove_dir_all(dir);
            groups.remove(&id);
        });
    }

    /// Ends an instance and waits until it is gone. Nothing happens if there is none of that name.
    ///
    /// # Errors
    /// When it does not end.
    pub(crate) async fn stop(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
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

    /// The last lines of each instance of a function, also of some that ended.
    pub(crate) fn tail(&self, namespace: &str, function: &str, instance: Option<&str>, lines: usize) -> Vec<Line> {
        self.logs.tail(namespace, function, instance, lines)
    }

    /// Lines of all instances from now on.
    pub(crate) fn follow(&self) -> broadcast::Receiver<Line> {
        self.logs.follow()
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
