//! The task that writes the log of a namespace.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use kube::{Api, Client};
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_controllers::runtime::worker::{code, not_found};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::super::{JournalError, Written};
use super::others::Others;
use super::{Ask, Line, Log, Sharing, lines, text};
use crate::api::{GROUP, WorkflowLog, WorkflowRun};
use crate::engine::{Faults, Point};

/// What may wait for the log at a time.
const ASKS: usize = 1024;
/// Full logs of a namespace at a time.
const FULL: usize = 64;
/// Tries of a write that was not answered, and the first pause between them.
const TRIES: (u32, Duration) = (6, Duration::from_millis(50));
/// Time in which the API answers.
const ANSWER: Duration = Duration::from_secs(15);
/// After so long without a step what is on pages is taken out of the objects.
const TIDY: Duration = Duration::from_secs(1);
/// Pause before a log that another engine took is taken back only to share writes.
const COOL: Duration = Duration::from_secs(10);

/// A full log.
struct Full {
    name: String,
    lines: Vec<Line>,
}

/// The log of a namespace, as the task that writes it has it.
struct Book {
    client: Client,
    namespace: String,
    /// Its name.
    name: Arc<str>,
    sharing: Sharing,
    faults: Arc<dyn Faults>,
    stop: CancellationToken,
    tracker: TaskTracker,
    /// For the task that looks for runs that are gone.
    me: mpsc::WeakSender<Ask>,
    held: Arc<AtomicI64>,
    taken: i64,
    version: String,
    writer: String,
    writes: u64,
    /// What is in the head, after what is in the full ones.
    head: Vec<Line>,
    full: Vec<Full>,
    fulls: u64,
    lost: Option<Instant>,
    /// Whether objects have steps that are on pages.
    stale: bool,
    /// Those that wait to be stored.
    waiting: VecDeque<(i64, Line, oneshot::Sender<bool>)>,
}

/// The logs of all namespaces.
pub(crate) struct Logs {
    pub(super) client: Client,
    sharing: Sharing,
    faults: Arc<dyn Faults>,
    stop: CancellationToken,
    tracker: TaskTracker,
    all: Mutex<Own>,
    /// Those of other engines, as they were read last.
    pub(super) others: Mutex<Others>,
}

/// The logs that this engine writes.
struct Own {
    name: Arc<str>,
    of: HashMap<String, Arc<Log>>,
}

impl Logs {
    /// Logs of this name in the cluster that the client reaches. What they do ends with `stop`, and is told to `tracker`.
    pub(crate) fn new(
        client: Client,
        name: String,
        sharing: Sharing,
        faults: Arc<dyn Faults>,
        stop: CancellationToken,
        tracker: TaskTracker,
    ) -> Self {
        let all = Mutex::new(Own { name: name.into(), of: HashMap::new() });
        Self { client, sharing, faults, stop, tracker, all, others: Mutex::default() }
    }

    /// Those that are asked for from now on have another name; what still holds the others is refused nothing by that.
    pub(crate) fn rename(&self, name: &str) {
        *self.all.lock() = Own { name: name.into(), of: HashMap::new() };
    }

    /// The log of a namespace. It is not taken before it is asked for.
    pub(crate) fn of(&self, namespace: &str) -> Arc<Log> {
        let mut all = self.all.lock();
        if let Some(log) = all.of.get(namespace) {
            return Arc::clone(log);
        }
        let log = self.start(namespace.to_owned(), Arc::clone(&all.name));
        all.of.insert(namespace.to_owned(), Arc::clone(&log));
        log
    }

    fn start(&self, namespace: String, name: Arc<str>) -> Arc<Log> {
        let (asks, inbox) = mpsc::channel(ASKS);
        let held = Arc::<AtomicI64>::default();
        let book = Book {
            client: self.client.clone(),
            namespace,
            name: Arc::clone(&name),
            sharing: self.sharing,
            faults: Arc::clone(&self.faults),
            stop: self.stop.clone(),
            tracker: self.tracker.clone(),
            me: asks.downgrade(),
            held: Arc::clone(&held),
            taken: 0,
            version: String::new(),
            writer: uuid::Uuid::new_v4().simple().to_string(),
            writes: 0,
            head: vec![],
            full: vec![],
            fulls: 0,
            lost: None,
            stale: false,
            waiting: VecDeque::new(),
        };
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            stop.run_until_cancelled(book.work(inbox)).await;
        });
        Arc::new(Log { name, asks, held })
    }
}

fn api(e: kube::Error) -> JournalError {
    JournalError::Api(Box::new(e))
}

/// What became of a write.
enum Put {
    Stored,
    /// Another's write came before.
    Refused,
    Failed(JournalError),
}

impl Book {
    async fn work(mut self, mut inbox: mpsc::Receiver<Ask>) {
        loop {
            if self.waiting.is_empty() {
                let pause = if self.stale { TIDY } else { Duration::MAX };
                match timeout(pause, inbox.recv()).await {
                    Ok(Some(ask)) => self.heard(ask).await,
                    Ok(None) => return,
                    Err(_) => self.tidy().await,
                }
            }
            while self.waiting.iter().map(|(_, line, _)| line.len()).sum::<usize>() < self.sharing.bytes
                && let Ok(ask) = inbox.try_recv()
            {
                self.heard(ask).await;
            }
            self.store().await;
        }
    }

    async fn reached(&self, point: Point, run: &str) {
        if self.faults.reached(point, run) {
            self.stop.cancel();
            std::future::pending::<()>().await;
        }
    }

    async fn heard(&mut self, ask: Ask) {
        match ask {
            Ask::Hold(least, reply) => {
                let held = self.taken > 0 && self.taken >= least;
                let _ = reply.send(if held { Ok(false) } else { self.take(least).await.map(|()| true) });
            }
            Ask::Renew(reply) => {
                if self.taken > 0
                    && let Err(e) = self.take(self.taken + 1).await
                {
                    self.lose();
                    tracing::debug!(namespace = self.namespace, error = &e as &dyn std::error::Error, "a log is lost");
                }
                let _ = reply.send(());
            }
            Ask::Share(reply) => {
                if self.taken == 0
                    && self.lost.is_none_or(|at| at.elapsed() > COOL)
                    && let Err(e) = self.take(1).await
                {
                    self.lose();
                    tracing::debug!(
                        namespace = self.namespace,
                        error = &e as &dyn std::error::Error,
                        "no log is shared"
                    );
                }
                let _ = reply.send(());
            }
            Ask::Add(held, line, reply) => self.waiting.push_back((held, line, reply)),
            Ask::Done(uid, writer) => {
                let stays = |l: &Line| l.uid != uid || writer.as_ref().is_some_and(|w| *w != l.writer);
                for lines in self.full.iter_mut().map(|f| &mut f.lines).chain([&mut self.head]) {
                    let before = lines.len();
                    lines.retain(stays);
                    self.stale |= lines.len() < before;
                }
            }
            Ask::Of(uid, least, reply) => {
                // What waits may be its own.
                while !self.waiting.is_empty() {
                    self.store().await;
                }
                let all = self.full.iter().flat_map(|f| &f.lines).chain(&self.head);
                let held = self.taken > 0 && self.taken >= least;
                let _ = reply.send(held.then(|| all.filter(|l| l.uid == uid).cloned().collect()));
            }
        }
    }

    /// Stores what waits, as much as goes into one object.
    async fn store(&mut self) {
        let (mut bytes, mut steps, mut replies) = (0, vec![], vec![]);
        while let Some((held, line, reply)) = self.waiting.pop_front() {
            if self.taken == 0 || held != self.taken {
                let _ = reply.send(false);
                continue;
            }
            if !steps.is_empty() && bytes + line.len() > self.sharing.bytes {
                self.waiting.push_front((held, line, reply));
                break;
            }
            bytes += line.len();
            steps.push(line);
            replies.push(reply);
        }
        if steps.is_empty() {
            return;
        }
        let stored = self.put_together(steps, bytes).await;
        for reply in replies {
            let _ = reply.send(stored);
        }
    }

    /// Takes what is on pages out of the objects.
    async fn tidy(&mut self) {
        self.stale = false;
        if self.taken > 0 {
            self.drop_empty();
            self.written().await;
        }
    }

    async fn put_together(&mut self, mut steps: Vec<Line>, bytes: usize) -> bool {
        self.drop_empty();
        let before = self.head.len();
        if before > 0 && self.head.iter().map(Line::len).sum::<usize>() + bytes > self.sharing.bytes {
            if self.full.len() >= FULL || !self.set_aside().await {
                // Pages are written instead, and that makes room.
                return false;
            }
            self.reached(Point::Full, steps.first().map_or("", |l| &l.run)).await;
        }
        self.head.append(&mut steps);
        self.written().await
    }

    /// Writes the head. Where it is not known to be written it is not held any more.
    async fn written(&mut self) -> bool {
        match self.put().await {
            Put::Stored => {
                self.stale = false;
                true
            }
            Put::Refused => {
                tracing::info!(namespace = self.namespace, "another engine took the log");
                self.lose();
                false
            }
            Put::Failed(e) => {
                // Whether it is stored is not known: it is read when the log is taken again.
                tracing::warn!(
                    namespace = self.namespace,
                    error = &e as &dyn std::error::Error,
                    "a log is not written"
                );
                self.lose();
                false
            }
        }
    }

    /// It is not held any more.
    fn lose(&mut self) {
        self.held.store(0, Ordering::Release);
        self.taken = 0;
        self.head.clear();
        self.full.clear();
        self.stale = false;
        self.lost = Some(Instant::now());
    }

    /// Deletes full ones of which everything is on pages.
    fn drop_empty(&mut self) {
        let empty: Vec<String> = self.full.extract_if(.., |f| f.lines.is_empty()).map(|f| f.name).collect();
        self.delete(empty);
    }

    fn delete(&self, names: Vec<String>) {
        if names.is_empty() {
            return;
        }
        let logs = Api::<WorkflowLog>::namespaced(self.client.clone(), &self.namespace);
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            let work = async {
                for name in names {
                    // One that stays is found and deleted by whoever takes the log next.
                    let how = kube::api::DeleteParams::default();
                    if let Ok(Err(e)) = timeout(ANSWER, logs.delete(&name, &how)).await
                        && !not_found(&e)
                    {
                        tracing::debug!(name, error = &e as &dyn std::error::Error, "a full log stays");
                    }
                }
            };
            stop.run_until_cancelled(work).await;
        });
    }

    fn body(&self, name: &str, version: Option<&str>, spec: &Value) -> Vec<u8> {
        let mut meta = json!({"name": name, "namespace": self.namespace});
        if let Some(version) = version {
            meta["resourceVersion"] = json!(version);
        }
        json!({"apiVersion": format!("{GROUP}/v1"), "kind": "WorkflowLog", "metadata": meta, "spec": spec})
            .to_string()
            .into_bytes()
    }

    fn spec(&self, taken: i64, full: &[&str], steps: String) -> Value {
        json!({"taken": taken, "writer": format!("{}/{}", self.writer, self.writes), "full": full, "steps": steps})
    }

    /// Makes an object where there is no version, or replaces it. None where nobody answered in time.
    async fn write(&self, name: &str, version: Option<&str>, spec: &Value) -> Result<Option<String>, kube::Error> {
        let collection = format!("/apis/{GROUP}/v1/namespaces/{}/workflowlogs", self.namespace);
        let request = match version {
            None => http::Request::post(collection),
            Some(_) => http::Request::put(format!("{collection}/{name}")),
        };
        let request = request.header(http::header::CONTENT_TYPE, "application/json");
        let request = request.body(self.body(name, version, spec)).map_err(kube::Error::HttpError)?;
        match timeout(ANSWER, self.client.request::<Written>(request)).await {
            Ok(written) => Ok(Some(written?.metadata.resource_version)),
            Err(_) => Ok(None),
        }
    }

    async fn read(&self, name: &str) -> Result<Option<WorkflowLog>, JournalError> {
        let logs = Api::<WorkflowLog>::namespaced(self.client.clone(), &self.namespace);
        let late = || JournalError::Damaged { page: 0, why: "the log is not read in time".to_owned() };
        timeout(ANSWER, logs.get_opt(name)).await.map_err(|_| late())?.map_err(api)
    }

    /// Stores what is in the head as a full one. False where that does not go.
    async fn set_aside(&mut self) -> bool {
        self.fulls += 1;
        let name = format!("{}-{}-{}", self.name, self.writer, self.fulls);
        let spec = self.spec(self.taken, &[], text(self.head.iter()));
        let mut pause = TRIES.1;
        for _ in 0..TRIES.0 {
            match self.write(&name, None, &spec).await {
                Ok(Some(_)) => {
                    self.full.push(Full { name, lines: std::mem::take(&mut self.head) });
                    return true;
                }
                // Nobody else makes this name: it was not answered before.
                Err(e) if code(&e) == 409 => {
                    self.full.push(Full { name, lines: std::mem::take(&mut self.head) });
                    return true;
                }
                Err(e) if (400..500).contains(&code(&e)) && code(&e) != 429 => return false,
                Ok(None) | Err(_) => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                }
            }
        }
        false
    }

    /// Writes the head as it is to be.
    async fn put(&mut self) -> Put {
        self.writes += 1;
        let full: Vec<&str> = self.full.iter().map(|f| f.name.as_str()).collect();
        let spec = self.spec(self.taken, &full, text(self.head.iter()));
        let mut pause = TRIES.1;
        let mut last = JournalError::Fenced;
        for _ in 0..TRIES.0 {
            match self.write(&self.name, Some(&self.version), &spec).await {
                Ok(Some(version)) => {
                    self.version = version;
                    return Put::Stored;
                }
                Err(e) if code(&e) == 409 => {
                    return match self.read(&self.name).await {
                        // It was stored, but not answered.
                        Ok(Some(head)) if Some(head.spec.writer.as_str()) == spec["writer"].as_str() => {
                            self.version = head.metadata.resource_version.unwrap_or_default();
                            Put::Stored
                        }
                        Ok(_) => Put::Refused,
                        Err(e) => Put::Failed(e),
                    };
                }
                Err(e) if (400..500).contains(&code(&e)) && code(&e) != 429 => return Put::Failed(api(e)),
                Err(e) => last = api(e),
                Ok(None) => {}
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Put::Failed(last)
    }

    /// Takes the log under a number that is at least this, with all that is in it.
    async fn take(&mut self, least: i64) -> Result<(), JournalError> {
        self.held.store(0, Ordering::Release);
        self.taken = 0;
        let mut pause = TRIES.1;
        for _ in 0..TRIES.0 {
            let head = self.read(&self.name).await?;
            let version = head.as_ref().and_then(|h| h.metadata.resource_version.clone());
            let was = head.map(|h| h.spec).unwrap_or_default();
            let taken = was.taken.max(least - 1) + 1;
            let steps = if version.is_some() { was.steps } else { "[]".to_owned() };
            self.writes += 1;
            let full: Vec<&str> = was.full.iter().map(String::as_str).collect();
            let spec = self.spec(taken, &full, steps.clone());
            match self.write(&self.name, version.as_deref(), &spec).await {
                Ok(Some(version)) => {
                    self.reached(Point::Taken, &self.namespace).await;
                    self.version = version;
                    self.open(&steps, &was.full).await?;
                    self.taken = taken;
                    self.held.store(taken, Ordering::Release);
                    tracing::debug!(namespace = self.namespace, taken, "the log is taken");
                    return Ok(());
                }
                Err(e) if code(&e) == 403 || not_found(&e) => return Err(JournalError::Gone),
                Err(e) if code(&e) != 409 => return Err(api(e)),
                // Another's write came before, or nobody answered: it is read again.
                Err(_) | Ok(None) => {}
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Err(JournalError::Damaged { page: 0, why: "others change the log all the time".to_owned() })
    }

    /// Reads what is in a log that was taken just now.
    async fn open(&mut self, steps: &str, full: &[String]) -> Result<(), JournalError> {
        (self.head, self.full) = (lines(steps)?, vec![]);
        for name in full {
            // One that is not there was deleted when all of it was on pages.
            if let Some(found) = self.read(name).await? {
                self.full.push(Full { name: name.clone(), lines: lines(&found.spec.steps)? });
            }
        }
        let logs = Api::<WorkflowLog>::namespaced(self.client.clone(), &self.namespace);
        if let Ok(Ok(all)) = timeout(ANSWER, logs.list_metadata(&Default::default())).await {
            let names = all.items.into_iter().filter_map(|l| l.metadata.name);
            // Stored by an engine that came no further: what is in them is in the head.
            let own = format!("{}-", self.name);
            let left = names.filter(|n| n.starts_with(&own) && !full.contains(n)).collect();
            self.delete(left);
        }
        self.look_for_gone();
        Ok(())
    }

    /// Finds out which runs are gone or over: nobody else says that they need nothing of the log.
    fn look_for_gone(&self) {
        let all = self.full.iter().flat_map(|f| &f.lines).chain(&self.head);
        let runs: BTreeSet<_> = all.map(|l| (l.run.clone(), l.uid.clone(), l.writer.clone())).collect();
        if runs.is_empty() {
            return;
        }
        let (me, stop) = (self.me.clone(), self.stop.clone());
        let api = Api::<WorkflowRun>::namespaced(self.client.clone(), &self.namespace);
        self.tracker.spawn(async move {
            let work = async {
                for (name, uid, writer) in runs {
                    let Ok(Ok(run)) = timeout(ANSWER, api.get_opt(&name)).await else { continue };
                    let run = run.filter(|r| r.metadata.uid.as_ref() == Some(&uid));
                    // The end of a run is on its last page.
                    let over = run.is_none_or(|r| r.status.is_some_and(|s| s.phase.is_over()));
                    if over && let Some(me) = me.upgrade() {
                        let _ = me.send(Ask::Done(uid, Some(writer))).await;
                    }
                }
            };
            stop.run_until_cancelled(work).await;
        });
    }
}
