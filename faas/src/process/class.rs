//! Class `process` as the gateway has it: which node an instance goes to, and what becomes of those on every node.
//!
//! Each node is watched, this process's own directly, others through their agents. What a node says runs there is what is believed:
//! instances that were not started by this process are found, those that are missing have ended. A node that says nothing for some
//! seconds is given up: its instances are lost, connections to them break, and requests go to others. When it is back, what still
//! runs there is found again; a node without a gateway ends its own.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::runtime::watcher;
use kube::{Api, Client};
use parking_lot::Mutex;
use rand::Rng as _;
use skiff_controllers::runtime::informer::Informer;
use tokio::sync::{Semaphore, broadcast, mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::agent::{Agent, Keys};
use super::host::Host;
use super::job::{Job, Kept, Said, key};
use super::limits::Limits;
use super::nodes::{Book, Entry, Key, Nowhere, Reach};
use super::record::Records;
use super::{code, env};
use crate::api::{Code, FunctionRevision, Isolation};
use crate::build::PREFIX;
use crate::container::Pods;
use crate::instance::{Address, Class, Event, Instance, Line, StartError, Times};
use crate::runtime::{self, Language};

/// Starts that are under way at a time; further ones wait.
const STARTS: usize = 64;
/// Events that may wait for their reader.
const EVENTS: usize = 1024;
/// Time to read nodes, and for their agents to say what they run.
const LOOK: Duration = Duration::from_secs(4);
/// Nodes that are tried for one instance.
const TRIES: usize = 3;
/// Lines that one who follows may be behind.
const BEHIND: usize = 1024;
/// Images that are handed over at a time.
const IMAGES: usize = 2;

/// Processes of functions, on all nodes.
pub struct Processes {
    pub(super) client: Client,
    own: Arc<Host>,
    tls: Option<TlsConnector>,
    pip_index: Option<String>,
    pub(super) book: Mutex<Book>,
    /// Told of every change of the book that somebody may wait for.
    pub(super) turned: watch::Sender<u64>,
    nodes: Informer<Node>,
    /// All nodes are known.
    listed: AtomicBool,
    pub(super) records: Arc<Records>,
    starting: Semaphore,
    pub(super) events: mpsc::Sender<Event>,
    reader: Mutex<Option<mpsc::Receiver<Event>>>,
    pub(super) lines: broadcast::Sender<Line>,
    /// Nodes whose lines are passed on.
    pub(super) passing: Mutex<HashSet<String>>,
    pub(super) pods: OnceLock<Weak<Pods>>,
    pub(super) handing: Mutex<HashSet<(String, String)>>,
    pub(super) images: Semaphore,
    stop: CancellationToken,
    pub(super) this: Weak<Self>,
}

/// How the gateway has its processes.
#[derive(Clone, Debug)]
pub struct Access {
    /// Those of this process's own node.
    pub host: Arc<Host>,
    /// What agents of other nodes are shown; without it there is no other node.
    pub keys: Option<Keys>,
}

impl Processes {
    /// Watches nodes until `stop`. `pip_index` is where all nodes get packages from; none for that of pip itself.
    ///
    /// # Errors
    /// When the keys cannot be read.
    pub fn new(
        client: Client,
        access: &Access,
        pip_index: Option<String>,
        stop: CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        let tls = access.keys.as_ref().map(Keys::connector).transpose()?;
        let (events, reader) = mpsc::channel(EVENTS);
        let mut book = Book::default();
        let own = Arc::clone(&access.host);
        book.all.insert(own.node().to_owned(), Entry::new(Reach::Here(Arc::clone(&own))));
        let records = Arc::<Records>::default();
        let all = Arc::new_cyclic(|this| Self {
            client: client.clone(),
            own,
            tls,
            pip_index,
            book: Mutex::new(book),
            turned: watch::Sender::new(0),
            nodes: Informer::default(),
            listed: AtomicBool::new(false),
            records: Arc::clone(&records),
            starting: Semaphore::new(STARTS),
            events,
            reader: Mutex::new(Some(reader)),
            lines: broadcast::channel(BEHIND).0,
            passing: Mutex::default(),
            pods: OnceLock::new(),
            handing: Mutex::default(),
            images: Semaphore::new(IMAGES),
            stop: stop.clone(),
            this: this.clone(),
        });
        tokio::spawn(records.run(client.clone(), stop.clone()));
        all.follow(all.own.node(), Reach::Here(Arc::clone(&all.own)), stop.child_token());
        let told = Arc::downgrade(&all);
        all.nodes.on_change(move |change| {
            let Some(all) = told.upgrade() else { return };
            match &change.new {
                Some(node) => all.see(node),
                None => all.forget(change.latest().metadata.name.as_deref().unwrap_or_default()),
            }
            if (change.old.is_none() || change.new.is_none()) && all.listed.load(Ordering::Relaxed) {
                all.count();
            }
        });
        all.nodes.start(Api::all(client), watcher::Config::default(), stop.clone());
        let (told, nodes) = (Arc::downgrade(&all), all.nodes.clone());
        tokio::spawn(async move {
            // Until then records of other nodes are left as they are.
            while !stop.is_cancelled() {
                if let (true, Some(all)) = (nodes.wait_synced(Duration::from_secs(60)).await, told.upgrade()) {
                    all.listed.store(true, Ordering::Relaxed);
                    return all.count();
                }
            }
        });
        Ok(all)
    }

    /// Tells who keeps records which nodes there are.
    fn count(&self) {
        let mut names: HashSet<String> = self.nodes.keys().into_iter().collect();
        names.insert(self.own.node().to_owned());
        self.records.nodes(names);
    }

    /// A node as it is now. One that is new, or is elsewhere, is watched from now on.
    fn see(&self, node: &Node) {
        let Some(name) = node.metadata.name.as_deref() else { return };
        let moved = {
            let mut book = self.book.lock();
            let (address, tls) = (address(node), self.tls.as_ref());
            let known = book.all.get(name).map(|e| match &e.reach {
                Reach::Here(_) => None,
                Reach::There(agent) => Some(agent.address()),
            });
            let moved = match (known, address, tls) {
                (Some(None), ..) | (None, None, _) | (_, _, None) => None,
                (Some(Some(was)), Some(now), _) if was == now => None,
                (Some(Some(_)), None, _) => None,
                (_, Some(now), Some(tls)) => Some(Arc::new(Agent::new(name, now, tls.clone()))),
            };
            if let Some(entry) = book.all.get_mut(name) {
                entry.read(node);
            }
            moved
        };
        if let Some(agent) = moved {
            // What was at another address is not there any more.
            self.forget(name);
            let (reach, end) = (Reach::There(agent), self.stop.child_token());
            let mut entry = Entry::new(reach.clone());
            entry.read(node);
            entry.watching = Some(end.clone().drop_guard());
            self.book.lock().all.insert(name.to_owned(), entry);
            self.follow(name, reach, end);
        }
        self.turned.send_modify(|n| *n += 1);
    }

    /// There is no such node any more.
    fn forget(&self, name: &str) {
        if name == self.own.node() {
            return;
        }
        let was = self.book.lock().all.remove(name);
        if let Some(entry) = was {
            if let Reach::There(agent) = &entry.reach {
                agent.cut();
            }
            self.lose(name, entry.instances.into_values().collect(), "its node is gone");
        }
    }

    /// What a node is told of an instance of a revision.
    async fn job(
        &self,
        revision: &FunctionRevision,
        language: Language,
        node: &str,
        name: &str,
    ) -> Result<Job, StartError> {
        let limits = Limits::of(revision.spec.code.resources.as_ref());
        Ok(Job {
            namespace: revision.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()),
            function: revision.spec.function.clone(),
            revision: revision.metadata.name.clone().unwrap_or_default(),
            name: name.to_owned(),
            code: key(revision),
            language,
            environment: env::resolve(&self.client, revision, node).await?,
            memory: limits.memory,
            cpu: limits.cpu,
            pip_index: self.pip_index.clone(),
            asked_at: jiff::Timestamp::now(),
        })
    }

    /// Gives an order to a node, with the code where it does not have it.
    async fn order(
        &self,
        reach: &Reach,
        job: &Job,
        revision: &FunctionRevision,
        start: bool,
    ) -> Result<Said, StartError> {
        let give = async || -> Result<Said, StartError> {
            Ok(match (reach, start) {
                (Reach::Here(host), true) => host.start(job.clone()).await,
                (Reach::Here(host), false) => host.prepare(job).await,
                (Reach::There(agent), true) => agent.start(job).await?,
                (Reach::There(agent), false) => agent.prepare(job).await?,
            })
        };
        let said = give().await?;
        if !matches!(said, Said::Missing) {
            return Ok(said);
        }
        let source = runtime::fetch_revision(&self.client, revision).await.map_err(code::fault)?;
        match reach {
            Reach::Here(host) => host.keep(&job.code, source).await?,
            Reach::There(agent) => {
                let packed = tokio::task::spawn_blocking(move || source.pack()).await.map_err(anyhow::Error::from)?;
                let kept = agent.keep(&job.code, packed.map_err(anyhow::Error::from)?).await?;
                ready(kept)?;
            }
        }
        give().await
    }

    fn language(revision: &FunctionRevision) -> Result<Language, StartError> {
        match Language::of(&revision.spec.code) {
            Ok(Language::Http) => Err(StartError::Code("runtime http runs in containers".to_owned())),
            Ok(language) => Ok(language),
            Err(error) => Err(StartError::Code(error.to_string())),
        }
    }

    fn choose(
        &self,
        key: &Key,
        language: Language,
        code: &Code,
        tried: &[String],
    ) -> Result<(String, Reach), StartError> {
        let chosen = self.book.lock().choose(key.clone(), language, &code.node_selector, tried);
        chosen.map_err(|Nowhere(why)| StartError::NoRoom(why))
    }

    /// Starts an instance where there is room.
    async fn begin(&self, revision: &FunctionRevision) -> Result<Instance, StartError> {
        let (asked, language) = (Instant::now(), Self::language(revision)?);
        let _turn = self.starting.acquire().await.map_err(anyhow::Error::from)?;
        let name = format!("{}-{}", revision.metadata.name.as_deref().unwrap_or_default(), suffix());
        let key: Key = (revision.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned()), name);
        let mut tried = vec![];
        let mut failed: Option<StartError> = None;
        loop {
            let (node, reach) = match self.choose(&key, language, &revision.spec.code, &tried) {
                Ok(chosen) => chosen,
                // What was tried says more than that there is no other.
                Err(nowhere) => return Err(failed.unwrap_or(nowhere)),
            };
            let started = Starting { of: self, node: &node, key: &key };
            let outcome = match self.job(revision, language, &node, &key.1).await {
                Ok(job) => self.order(&reach, &job, revision, true).await.and_then(|said| match said {
                    Said::Ready { record, started, loaded: _ } => Ok((record, started)),
                    other => Err(ready(other).err().unwrap_or_else(|| anyhow::anyhow!("the node says nothing").into())),
                }),
                Err(error) => Err(error),
            };
            match outcome {
                Ok((record, after)) => {
                    started.arrived(record);
                    drop(started);
                    let ran = asked + Duration::try_from_secs_f64(after / 1000.0).unwrap_or_default();
                    let times = Times { asked, started: ran.min(Instant::now()), loaded: Instant::now() };
                    let address = match &reach {
                        Reach::Here(host) => match host.socket(&key.0, &key.1) {
                            Some(socket) => Address::Unix(socket),
                            None => {
                                return Err(anyhow::anyhow!("the process ended as soon as its code was loaded").into());
                            }
                        },
                        Reach::There(agent) => agent.door(&key.0, &key.1),
                    };
                    return Ok(Instance { name: key.1, node, address, times });
                }
                Err(StartError::Code(why)) => return Err(StartError::Code(why)),
                Err(error) => {
                    drop(started);
                    if matches!(error, StartError::Other(_)) {
                        self.book.lock().rest(&node);
                        if let Reach::There(agent) = reach {
                            // Perhaps it runs after all: nobody would ask it anything.
                            let (namespace, name) = key.clone();
                            tokio::spawn(async move { agent.stop(&namespace, &name).await });
                        }
                    }
                    tracing::warn!(node, error = format!("{error:#}"), "a node did not start an instance");
                    tried.push(node);
                    failed = Some(error);
                    if tried.len() >= TRIES {
                        return Err(failed.unwrap_or_else(|| StartError::NoRoom(String::new())));
                    }
                }
            }
        }
    }

    /// Whether an image that the gateway's node has can be had by every node that may run such code.
    pub(crate) fn reaches_all(&self, code: &Code) -> bool {
        self.book.lock().reaches_all(&code.node_selector)
    }
}

/// An instance that is being started: it counts until it is there or is not.
struct Starting<'a> {
    of: &'a Processes,
    node: &'a str,
    key: &'a Key,
}

impl Starting<'_> {
    /// It is there.
    fn arrived(&self, record: super::job::Record) {
        let mut book = self.of.book.lock();
        if let Some(entry) = book.all.get_mut(self.node) {
            self.of.records.put(self.node, &record);
            entry.instances.insert(self.key.clone(), record);
        }
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.of.book.lock().all.get_mut(self.node) {
            entry.starting.remove(self.key);
        }
    }
}

/// What a node says, as an error where it is one.
fn ready(said: Said) -> Result<(), StartError> {
    match said {
        Said::Ready { .. } | Said::Prepared => Ok(()),
        Said::Missing => Err(anyhow::anyhow!("the node lost the code it was given").into()),
        Said::Code { message } => Err(StartError::Code(message)),
        Said::NoRoom { message } => Err(StartError::NoRoom(message)),
        Said::Failed { message } => Err(StartError::Other(anyhow::anyhow!(message))),
    }
}

/// Where a node's agent listens.
fn address(node: &Node) -> Option<SocketAddr> {
    let status = node.status.as_ref()?;
    let ip = status.addresses.iter().flatten().find(|a| a.type_ == "InternalIP")?.address.parse().ok()?;
    let port = status.daemon_endpoints.as_ref()?.kubelet_endpoint.as_ref()?.port;
    Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
}

/// Five characters, as names of pods have them.
fn suffix() -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut random = rand::rng();
    (0..5).map(|_| char::from(LETTERS[random.random_range(0..LETTERS.len())])).collect()
}

#[async_trait]
impl Class for Processes {
    fn isolation(&self) -> Isolation {
        Isolation::Process
    }

    fn takes(&self, code: &Code) -> Result<(), String> {
        if code.source.image.is_some() {
            return Err("an image is run as isolation container only".to_owned());
        }
        let language = Language::of(code).map_err(|e| e.to_string())?;
        self.book.lock().takes(code, language)
    }

    async fn look(&self) {
        let mut turned = self.turned.subscribe();
        let work = async {
            match Api::<Node>::all(self.client.clone()).list(&ListParams::default()).await {
                Ok(nodes) => nodes.items.iter().for_each(|node| self.see(node)),
                // What was known stays.
                Err(error) => tracing::warn!(%error, "nodes cannot be read"),
            }
            while self.book.lock().all.values().any(|e| !e.tried && e.is_open()) && turned.changed().await.is_ok() {}
        };
        if tokio::time::timeout(LOOK, work).await.is_err() {
            tracing::warn!("not every node has said yet what it runs");
        }
    }

    fn place(&self, code: &Code) -> String {
        let Ok(language) = Language::of(code) else { return "in processes".to_owned() };
        let book = self.book.lock();
        match book.places(code, language).as_slice() {
            [] => "in processes".to_owned(),
            [one] => format!("in processes of node {one}"),
            [first @ .., last] if first.len() < 4 => format!("in processes of nodes {} and {last}", first.join(", ")),
            all => format!("in processes of {} nodes", all.len()),
        }
    }

    async fn start(&self, revision: Arc<FunctionRevision>) -> Result<Instance, StartError> {
        let Some(all) = self.this.upgrade() else { return Err(anyhow::anyhow!("the gateway ends").into()) };
        // A task of its own: whoever asked may go away, the start goes on.
        let started = tokio::spawn(async move {
            let result = all.begin(&revision).await;
            (result, all, revision)
        });
        let mut told = Told { started: Some(started) };
        let Some(started) = told.started.as_mut() else { return Err(anyhow::anyhow!("the start was lost").into()) };
        let outcome = started.await;
        told.started = None;
        outcome.map_err(anyhow::Error::from)?.0
    }

    /// Also installs packages and starts the warm parent, on the node that would be next.
    async fn prepare(&self, revision: Arc<FunctionRevision>) -> Result<(), StartError> {
        let language = Self::language(&revision)?;
        let key: Key = (revision.metadata.namespace.clone().unwrap_or_default(), format!("prepare-{}", suffix()));
        let (node, reach) = self.choose(&key, language, &revision.spec.code, &[])?;
        drop(Starting { of: self, node: &node, key: &key });
        let job = self.job(&revision, language, &node, revision.metadata.name.as_deref().unwrap_or_default()).await?;
        ready(self.order(&reach, &job, &revision, false).await?)
    }

    async fn stop(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let key: Key = (namespace.to_owned(), name.to_owned());
        let Some(holder) = self.book.lock().ends(&key) else { return Ok(()) };
        let stopped = match holder {
            Reach::Here(host) => host.stop(namespace, name).await,
            Reach::There(agent) => agent.stop(namespace, name).await,
        };
        self.book.lock().ended(&key, stopped.is_ok());
        stopped?;
        self.records.remove(namespace, name);
        Ok(())
    }

    async fn tidy(&self, revisions: &[Arc<FunctionRevision>]) {
        let images = revisions.iter().filter_map(|r| r.status.as_ref()?.image.as_deref()?.strip_prefix(PREFIX));
        let images = images.map(str::to_owned).collect();
        let needed = Kept { codes: revisions.iter().map(|r| key(r)).collect(), images };
        let pods = self.pods.get().and_then(Weak::upgrade);
        let cluster = match &pods {
            Some(pods) => pods.cluster().await,
            None => None,
        };
        let nodes: Vec<Reach> = self.book.lock().all.values().filter(|e| e.watched).map(|e| e.reach.clone()).collect();
        for reach in nodes {
            match reach {
                // Its images are looked after by who builds them.
                Reach::Here(host) => {
                    let codes = host.kept().into_iter().collect();
                    host.tidy(Kept { codes, ..Kept::default() }.without(&needed).codes).await;
                }
                Reach::There(agent) => {
                    let dropped =
                        async { agent.drop_kept(&agent.kept(cluster.as_deref()).await?.without(&needed)).await };
                    if let Err(error) = dropped.await {
                        // Perhaps of another version; the next time comes.
                        tracing::debug!(error = format!("{error:#}"), "a node does not delete what no function needs");
                    }
                }
            }
        }
    }

    async fn tail(&self, namespace: &str, function: &str, instance: Option<&str>, lines: usize) -> Vec<Line> {
        self.tails(namespace, function, instance, lines).await
    }

    fn follow(&self) -> Option<broadcast::Receiver<Line>> {
        let lines = self.lines.subscribe();
        self.pass_lines();
        Some(lines)
    }

    fn meet(&self, pods: &Arc<Pods>) {
        let _ = self.pods.set(Arc::downgrade(pods));
        pods.hand_over_with(Weak::clone(&self.this));
    }

    fn events(&self) -> mpsc::Receiver<Event> {
        // A second reader gets nothing: the contract has one.
        self.reader.lock().take().unwrap_or_else(|| mpsc::channel(1).1)
    }
}

type Begun = (Result<Instance, StartError>, Arc<Processes>, Arc<FunctionRevision>);

/// A start that somebody waits for. When they do not any more, what comes of it is told as an event.
struct Told {
    started: Option<tokio::task::JoinHandle<Begun>>,
}

impl Drop for Told {
    fn drop(&mut self) {
        if let (Some(started), Ok(runtime)) = (self.started.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                if let Ok((Ok(instance), all, revision)) = started.await {
                    let namespace = revision.metadata.namespace.clone().unwrap_or_default();
                    let revision = revision.metadata.name.clone().unwrap_or_default();
                    let _ = all.events.send(Event::Found { namespace, revision, instance }).await;
                }
            });
        }
    }
}
