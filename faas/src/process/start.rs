//! How an instance comes to be.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use rand::Rng as _;
use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::limits::{Limits, PIDS};
use super::parent::{Order, Parent};
use super::{Host, Running, code, env};
use crate::api::{FunctionInstanceSpec, FunctionRevision};
use crate::instance::{Address, Instance, StartError, Times};
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
    /// Starts an instance and waits until its code is loaded.
    pub(super) async fn begin(&self, revision: &FunctionRevision) -> Result<Instance, StartError> {
        let asked = Instant::now();
        let asked_at = jiff::Timestamp::now();
        let language = self.language(revision)?;
        if self.running.lock().len() >= self.config.max_instances {
            return Err(StartError::NoRoom(format!(
                "this node runs {} processes of functions already",
                self.config.max_instances
            )));
        }
        let _turn = self.starting.acquire().await.map_err(anyhow::Error::from)?;
        let ready = self.codes.ready(&self.client, revision, language).await?;
        let environment = env::resolve(&self.client, revision, &self.config.node).await?;
        let limits = Limits::of(revision.spec.code.resources.as_ref());
        let meta = &revision.metadata;
        let name = format!("{}-{}", meta.name.as_deref().unwrap_or_default(), suffix());
        let function: Arc<str> = revision.spec.function.as_str().into();
        let namespace: Arc<str> = meta.namespace.as_deref().unwrap_or("default").into();
        let running = |parent: &Arc<Parent>, ended| Running {
            namespace: namespace.clone(),
            name: name.as_str().into(),
            function: function.clone(),
            parent: Arc::downgrade(parent),
            ready: false,
            stopping: false,
            memory: limits.memory,
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
            let order = self.order(&id, language, &ready, limits, environment.clone(), &function);
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
            let (namespace, instance): (_, Arc<str>) = (namespace.clone(), name.as_str().into());
            tokio::spawn(async move { logs.keep(namespace, function, instance, log).await });
        }
        let loaded = async {
            if language == Language::Node {
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
            reason = ended => Err(StartError::Code(format!(
                "the process ended while the code was loaded: {}{}",
                reason.unwrap_or_default(),
                self.last_lines(revision, &name),
            ))),
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
        let spec = FunctionInstanceSpec {
            function: revision.spec.function.clone(),
            revision: meta.name.clone().unwrap_or_default(),
            node: self.config.node.clone(),
            state: "Running".to_owned(),
            asked_at: Some(Time(asked_at)),
            ready_at: Some(Time(jiff::Timestamp::now())),
        };
        {
            // Under one lock, so that an end at this very moment is seen by one side.
            let mut all = self.running.lock();
            let Some(running) = all.get_mut(&id) else {
                return Err(StartError::Code("the process ended as soon as its code was loaded".to_owned()));
            };
            running.ready = true;
            self.records.put(&namespace, &name, spec);
        }
        Ok(Instance {
            name,
            node: self.config.node.clone(),
            address: Address::Unix(self.run_dir(&id).join("s")),
            times: Times { asked, started, loaded: Instant::now() },
        })
    }

    fn run_dir(&self, id: &str) -> PathBuf {
        self.config.data_dir.join("run").join(id)
    }

    fn next(&self) -> String {
        self.number.fetch_add(1, Ordering::Relaxed).to_string()
    }

    fn last_lines(&self, revision: &FunctionRevision, name: &str) -> String {
        let namespace = revision.metadata.namespace.as_deref().unwrap_or("default");
        let lines = self.logs.tail(namespace, &revision.spec.function, Some(name), 10);
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
            code: ready.code.clone(),
            packages: ready.packages.clone(),
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
        let (from, to) = (self.codes.code.join(&ready.code), self.run_dir(id).join("code"));
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
            let none = code::Ready { code: String::new(), packages: None };
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

/// Five characters, as names of pods have them.
fn suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    (0..5).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
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
