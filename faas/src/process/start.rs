//! How an instance comes to be.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::code;
use super::host::{Host, Running};
use super::job::{Job, Record, Said, Told};
use super::limits::{Limits, PIDS, SMALLEST};
use super::parent::{Order, Parent};
use crate::instance::StartError;
use crate::runtime::Language;

/// Time for code to be loaded.
const LOAD: Duration = Duration::from_secs(60);
/// Users of instances are from here on; each instance has its own.
const FIRST_USER: u32 = 200_000;
/// So many, then they begin again.
const USERS: u64 = 100_000;
/// Open files of one instance.
const FILES: u64 = 4096;

/// A process of Node.js that waits for its code.
pub(super) struct Spare {
    pub(super) id: String,
    parent: Arc<Parent>,
    pipes: Pipes,
}

/// Our ends of an instance's pipes.
struct Pipes {
    /// Tells that it runs, and then how loading went.
    told: Lines<BufReader<pipe::Receiver>>,
    log: Option<pipe::Receiver>,
    order: Option<pipe::Sender>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Outcome {
    problem: Option<Problem>,
    fault: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Problem {
    error: String,
    log: String,
}

impl Host {
    /// Starts an instance and waits until its code is loaded. None if the code is not here.
    pub(super) async fn begin(&self, job: &Job) -> Result<Option<Said>, StartError> {
        let asked = Instant::now();
        let language = job.language;
        self.can(language).map_err(StartError::Code)?;
        let limits = Limits { memory: job.memory.max(SMALLEST), cpu: job.cpu };
        let namespace: Arc<str> = job.namespace.as_str().into();
        let (function, name): (Arc<str>, Arc<str>) = (job.function.as_str().into(), job.name.as_str().into());
        {
            let running = self.running.lock();
            if running.len() >= self.config.max_instances {
                return Err(StartError::NoRoom(format!(
                    "node {} runs {} processes of functions already",
                    self.config.node, self.config.max_instances
                )));
            }
            if running.values().any(|r| r.namespace == namespace && r.name == name) {
                return Err(anyhow::anyhow!("there is an instance {name} already").into());
            }
        }
        let _turn = self.starting.acquire().await.map_err(anyhow::Error::from)?;
        let Some(ready) = self.codes.ready(&job.code, language, job.pip_index.as_deref()).await? else {
            return Ok(None);
        };
        let running = |parent: &Arc<Parent>, ended| Running {
            namespace: namespace.clone(),
            name: name.clone(),
            function: function.clone(),
            parent: Arc::downgrade(parent),
            record: None,
            stopping: false,
            memory: limits.memory,
            _code: ready.clone(),
            ended: vec![ended],
        };
        let (tell, ended) = oneshot::channel();
        let (id, mut pipes, parent, spare) = if let Some(spare) = self.take_spare(language) {
            self.running.lock().insert(spare.id.clone(), running(&spare.parent, tell));
            (spare.id, spare.pipes, spare.parent, true)
        } else {
            let parent = self.parent().await?;
            let id = self.next();
            self.running.lock().insert(id.clone(), running(&parent, tell));
            let order = self.order(&id, language, &ready, limits, job.environment.clone(), &function);
            match self.launch(&parent, order, limits).await {
                Ok(pipes) => (id, pipes, parent, false),
                Err(error) => {
                    self.running.lock().remove(&id);
                    self.clear(id);
                    return Err(error.into());
                }
            }
        };
        if let Some(log) = pipes.log.take() {
            let logs = self.logs.clone();
            let (namespace, function, instance) = (namespace.clone(), function.clone(), name.clone());
            tokio::spawn(async move { logs.keep(namespace, function, instance, log).await });
        }
        let loaded = async {
            if language == Language::Node {
                let environment = job.environment.clone();
                self.specialise(&id, &mut pipes, &ready, spare.then_some(limits), environment).await?;
            }
            pipes.loaded(asked).await
        };
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(LOAD, loaded) => match outcome {
                Ok(Ok(Ok(started))) => Ok(started),
                // What failed may still run, so that somebody can ask it why: here nobody does.
                Ok(Ok(Err(error))) => Err(error),
                Ok(Err(error)) => Err(StartError::Other(error)),
                Err(_) => Err(StartError::Code(format!("the code was not loaded within {} s", LOAD.as_secs()))),
            },
            end = ended => {
                let end = end.unwrap_or_default();
                let why = format!("the process ended while the code was loaded: {}{}", end.reason, self.last_lines(job));
                Err(if end.own { StartError::Code(why) } else { StartError::Other(anyhow::anyhow!(why)) })
            }
        };
        if language == Language::Node {
            self.refill();
        }
        let started = match outcome {
            Ok(started) => started,
            Err(error) => {
                if let Some(gone) = self.running.lock().get_mut(&id) {
                    gone.stopping = true;
                }
                let _ = parent.stop(&id).await;
                return Err(error);
            }
        };
        let record = Record {
            namespace: job.namespace.clone(),
            function: job.function.clone(),
            revision: job.revision.clone(),
            name: job.name.clone(),
            asked_at: job.asked_at,
            ready_at: jiff::Timestamp::now(),
        };
        {
            // Under one lock, so that an end at this very moment is seen by one side, and who watches hears all in order.
            let mut all = self.running.lock();
            let Some(running) = all.get_mut(&id) else {
                // Why is told to who watches, as of one that was there; what keeps ending so fails in the end.
                return Err(anyhow::anyhow!("the process ended as soon as its code was loaded").into());
            };
            running.record = Some(record.clone());
            self.watchers.tell(&Told::Began(record.clone()));
        }
        let after = |moment: Instant| moment.saturating_duration_since(asked).as_secs_f64() * 1000.0;
        Ok(Some(Said::Ready { record, started: after(started), loaded: after(Instant::now()) }))
    }

    pub(super) fn run_dir(&self, id: &str) -> PathBuf {
        self.config.data_dir.join("run").join(id)
    }

    fn next(&self) -> String {
        self.number.fetch_add(1, Ordering::Relaxed).to_string()
    }

    fn last_lines(&self, job: &Job) -> String {
        let lines = self.logs.tail(&job.namespace, &job.function, Some(&job.name), 10);
        lines.iter().map(|l| format!("\n{}", l.text)).collect()
    }

    fn order(
        &self,
        id: &str,
        language: Language,
        ready: &code::Ready,
        limits: Limits,
        environment: HashMap<String, String>,
        name: &str,
    ) -> Order {
        let node = self.node_js.as_deref().filter(|_| language == Language::Node).and_then(Path::to_str);
        let number: u64 = id.parse().unwrap_or_default();
        Order {
            id: id.to_owned(),
            code: ready.code.to_string(),
            packages: ready.packages.as_deref().map(str::to_owned),
            uid: FIRST_USER + u32::try_from(number % USERS).unwrap_or_default(),
            hostname: name.chars().take(63).collect(),
            tmp: (limits.memory / 2).min(64 << 20),
            files: FILES,
            pids: PIDS,
            // Node.js reserves far more addresses than it uses.
            address_space: (node.is_none() && !self.groups.bound_memory()).then_some(limits.memory + (64 << 20)),
            environment: if node.is_some() { HashMap::new() } else { environment },
            exec: node.map(|node| vec![node.to_owned(), "/opt/runner.js".to_owned(), "--wait".to_owned()]),
        }
    }

    /// Makes what the child finds, and has it forked.
    async fn launch(&self, parent: &Parent, order: Order, limits: Limits) -> anyhow::Result<Pipes> {
        let (dir, groups, id, waits) =
            (self.run_dir(&order.id), self.groups.clone(), order.id.clone(), order.exec.is_some());
        // Some system calls that may wait for the disk or the kernel's locks.
        tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            std::fs::create_dir(&dir)?;
            let mode = nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR;
            for name in ["ready", "log"] {
                nix::unistd::mkfifo(&dir.join(name), mode)?;
            }
            if waits {
                nix::unistd::mkfifo(&dir.join("order"), mode)?;
                std::fs::create_dir(dir.join("code"))?;
            }
            groups.make(&id, limits)?;
            Ok(())
        })
        .await??;
        let dir = self.run_dir(&order.id);
        let told = pipe::OpenOptions::new().open_receiver(dir.join("ready"))?;
        let log = Some(pipe::OpenOptions::new().open_receiver(dir.join("log"))?);
        let order_pipe = if order.exec.is_some() {
            // Both ways, so that it opens before the child does.
            Some(pipe::OpenOptions::new().read_write(true).open_sender(dir.join("order"))?)
        } else {
            None
        };
        parent.order(&order).await?;
        Ok(Pipes { told: BufReader::new(told).lines(), log, order: order_pipe })
    }

    /// Gives a waiting process its code and its environment.
    async fn specialise(
        &self,
        id: &str,
        pipes: &mut Pipes,
        ready: &code::Ready,
        limits: Option<Limits>,
        mut environment: HashMap<String, String>,
    ) -> anyhow::Result<()> {
        let (from, to) = (self.codes.code.join(&*ready.code), self.run_dir(id).join("code"));
        let (groups, id) = (self.groups.clone(), id.to_owned());
        tokio::task::spawn_blocking(move || -> std::io::Result<()> {
            if let Some(limits) = limits {
                groups.set(&id, limits)?;
            }
            link_all(&from, &to)
        })
        .await??;
        environment.insert("SKIFF_LISTEN_FD".to_owned(), "4".to_owned());
        let mut line = serde_json::to_vec(&json!({"environment": environment}))?;
        line.push(b'\n');
        if let Some(mut order) = pipes.order.take() {
            order.write_all(&line).await?;
            pipes.order = Some(order);
        }
        Ok(())
    }

    fn take_spare(&self, language: Language) -> Option<Spare> {
        if language != Language::Node {
            return None;
        }
        let mut spares = self.spares.lock();
        spares.retain(|s| !s.parent.is_dead());
        spares.pop()
    }

    /// Sees to it that one process of Node.js waits, in the background.
    pub(super) fn refill(&self) {
        if !self.spares.lock().is_empty() {
            return;
        }
        let Some(host) = self.this.upgrade() else { return };
        tokio::spawn(async move {
            let limits = Limits::of(None);
            let id = host.next();
            let none = code::Ready { code: "".into(), packages: None };
            let order = host.order(&id, Language::Node, &none, limits, HashMap::new(), "function");
            let made = async {
                let parent = host.parent().await?;
                let pipes = host.launch(&parent, order, limits).await?;
                anyhow::Ok(Spare { id: id.clone(), parent, pipes })
            };
            match made.await {
                Ok(spare) => {
                    let surplus = {
                        let mut spares = host.spares.lock();
                        if spares.is_empty() {
                            spares.push(spare);
                            None
                        } else {
                            Some(spare)
                        }
                    };
                    if let Some(spare) = surplus {
                        let _ = spare.parent.stop(&spare.id).await;
                    }
                }
                Err(error) => {
                    host.clear(id);
                    tracing::warn!(%error, "no process of Node.js can be started ahead");
                }
            }
        });
    }
}

impl Pipes {
    /// Waits for the two lines: it runs; its code is loaded, or why not.
    async fn loaded(&mut self, asked: Instant) -> anyhow::Result<Result<Instant, StartError>> {
        let mut started = asked;
        for number in 0..2 {
            let Some(line) = self.told.next_line().await? else {
                // Its end is told by the parent, with the reason.
                std::future::pending::<()>().await;
                continue;
            };
            let outcome: Outcome = serde_json::from_str(&line)?;
            if let Some(fault) = outcome.fault {
                anyhow::bail!("the sandbox could not be made: {fault}");
            }
            if let Some(problem) = outcome.problem {
                let said = if problem.log.trim_end() == problem.error {
                    problem.error
                } else {
                    format!("{}\n{}", problem.error, problem.log)
                };
                return Ok(Err(StartError::Code(said)));
            }
            if number == 0 {
                started = Instant::now();
            }
        }
        Ok(Ok(started))
    }
}

/// The same files at another place, without copying them.
fn link_all(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            std::fs::create_dir(&target)?;
            link_all(&entry.path(), &target)?;
        } else {
            std::fs::hard_link(entry.path(), &target)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Config;

    #[tokio::test]
    async fn whose_host_went_after_the_order_ends() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(Config::new("node-1", dir.path().join("fn"))).unwrap();
        let python = host.python.clone().unwrap();
        let (parent, mut told) = Parent::start(&host.config.data_dir, &python, &[], &host.groups).await.unwrap();
        let (id, limits) = (host.next(), Limits::of(None));
        let run = host.run_dir(&id);
        std::fs::create_dir(&run).unwrap();
        // Nobody reads from them, as after the end of a host.
        for name in ["ready", "log"] {
            nix::unistd::mkfifo(&run.join(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
        }
        host.groups.make(&id, limits).unwrap();
        let none = code::Ready { code: "".into(), packages: None };
        let order = host.order(&id, Language::Python, &none, limits, HashMap::new(), "function");
        parent.order(&order).await.unwrap();
        let told = tokio::time::timeout(Duration::from_secs(20), told.next()).await;
        host.groups.remove(&id);
        let told = told.unwrap().unwrap();
        assert_eq!((told.id, told.signal, told.status), (id, false, 70));
    }
}
