//! `kill -9` in a write storm, twenty times: every acknowledged write is there, and the watch told all of them, once, in
//! order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api as Objects, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use tokio::sync::Mutex;

use crate::process::Api;

const KILLS: usize = 20;
const WRITERS: usize = 8;
/// Acknowledged writes between two kills.
const BETWEEN: usize = 250;
/// Bound on every wait.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a write left: value, or nothing after a deletion.
type State = Option<String>;

/// What one writer knows of its keys. Each key has one writer.
#[derive(Default)]
struct Ledger {
    /// Acknowledged states with their revisions, in order. A deletion's answer carries no revision: 0.
    acknowledged: BTreeMap<String, Vec<(u64, State)>>,
    /// Writes without an answer: they may have happened.
    open: BTreeMap<String, Vec<State>>,
}

fn map(name: &str, value: &str) -> ConfigMap {
    let mut m = ConfigMap::default();
    m.metadata.name = Some(name.to_owned());
    m.data = Some([("v".to_owned(), value.to_owned())].into());
    m
}

fn revision(m: &ConfigMap) -> u64 {
    m.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn value(m: &ConfigMap) -> State {
    m.data.as_ref().and_then(|d| d.get("v")).cloned()
}

/// Creates, replaces and deletes its own keys until told to stop. Failures while the server is dead are expected; each
/// leaves an open write.
async fn write(objects: Objects<ConfigMap>, writer: usize, acks: Arc<AtomicUsize>, stop: Arc<AtomicBool>) -> Ledger {
    let mut ledger = Ledger::default();
    for n in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let name = format!("w{writer}-{}", n / 3);
        let text = format!("{writer}/{n}");
        let (wanted, result) = match n % 3 {
            0 => (
                Some(text.clone()),
                objects.create(&PostParams::default(), &map(&name, &text)).await.map(|m| revision(&m)),
            ),
            1 => (
                Some(text.clone()),
                objects.replace(&name, &PostParams::default(), &map(&name, &text)).await.map(|m| revision(&m)),
            ),
            // Every other key is deleted, so that some stay.
            _ if n % 2 == 0 => (None, objects.delete(&name, &DeleteParams::default()).await.map(|_| 0)),
            _ => continue,
        };
        match result {
            Ok(at) => {
                ledger.acknowledged.entry(name).or_default().push((at, wanted));
                acks.fetch_add(1, Ordering::SeqCst);
            }
            // Refused with an answer: the write before it is open too, so this one changed nothing.
            Err(kube::Error::Api(s)) if matches!(s.code, 404 | 409) => {}
            Err(_) => {
                ledger.open.entry(name).or_default().push(wanted);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
    ledger
}

/// One event as the watch told it.
#[derive(Clone, Debug)]
struct Seen {
    revision: u64,
    name: String,
    state: State,
}

/// Watches from `from` across every kill and resumes at the last revision it saw.
async fn watch(
    objects: Objects<ConfigMap>,
    from: u64,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
) -> Result<()> {
    let mut last = from;
    while !stop.load(Ordering::SeqCst) {
        let Ok(stream) = objects.watch(&WatchParams::default().timeout(20), &last.to_string()).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut stream = std::pin::pin!(stream);
        loop {
            let next = tokio::time::timeout(Duration::from_millis(200), stream.next()).await;
            let event = match next {
                Err(_) if stop.load(Ordering::SeqCst) => break,
                Err(_) => continue,
                Ok(None | Some(Err(_))) => break,
                Ok(Some(Ok(e))) => e,
            };
            let (m, gone) = match event {
                WatchEvent::Added(m) | WatchEvent::Modified(m) => (m, false),
                WatchEvent::Deleted(m) => (m, true),
                WatchEvent::Bookmark(_) => continue,
                WatchEvent::Error(e) => bail!("the watch cannot resume at {last}: {e:?}"),
            };
            let at = revision(&m);
            ensure!(at > last, "revision {at} after {last}");
            last = at;
            let state = if gone { None } else { value(&m) };
            seen.lock().await.push(Seen { revision: at, name: m.metadata.name.unwrap_or_default(), state });
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_kills_lose_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut server = Api::start(&dir.path().join("data"), &dir.path().join("log")).await?;
    let client = server.client().await?;
    let objects = || Objects::<ConfigMap>::namespaced(client.clone(), "default");
    let from: u64 =
        objects().list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default().parse()?;

    let (acks, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(vec![])));
    let (stop_writers, stop_watch) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let watcher = tokio::spawn(watch(objects(), from, Arc::clone(&seen), Arc::clone(&stop_watch)));
    let writers: Vec<_> =
        (0..WRITERS).map(|i| tokio::spawn(write(objects(), i, Arc::clone(&acks), Arc::clone(&stop_writers)))).collect();
    for kill in 0..KILLS {
        let goal = acks.load(Ordering::SeqCst) + BETWEEN;
        tokio::time::timeout(PATIENCE, async {
            while acks.load(Ordering::SeqCst) < goal {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await
        .map_err(|_| anyhow::anyhow!("kill {kill}: no progress\n{}", server.said()))?;
        server.kill()?;
        server.restart().await?;
    }
    stop_writers.store(true, Ordering::SeqCst);
    let mut ledgers = vec![];
    for w in writers {
        ledgers.push(tokio::time::timeout(PATIENCE, w).await??);
    }
    let list = objects().list(&ListParams::default()).await?;
    let end: u64 = list.metadata.resource_version.unwrap_or_default().parse()?;
    // One more write tells when the watch has seen everything before it.
    let last = revision(&objects().create(&PostParams::default(), &map("last", "last")).await?);
    ensure!(last > end);
    tokio::time::timeout(PATIENCE, async {
        while seen.lock().await.last().is_none_or(|s: &Seen| s.revision < last) && !watcher.is_finished() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await?;
    stop_watch.store(true, Ordering::SeqCst);
    watcher.await??;

    let seen = seen.lock().await.clone();
    let stored: BTreeMap<String, (u64, State)> = list
        .items
        .into_iter()
        .map(|m| (m.metadata.name.clone().unwrap_or_default(), (revision(&m), value(&m))))
        .collect();
    let mut told: BTreeMap<&str, Vec<&Seen>> = BTreeMap::new();
    for s in &seen {
        told.entry(&s.name).or_default().push(s);
    }
    let total: usize = ledgers.iter().flat_map(|l| l.acknowledged.values()).map(Vec::len).sum();
    ensure!(total >= KILLS * BETWEEN, "only {total} acknowledged writes");
    for ledger in &ledgers {
        let names: std::collections::BTreeSet<&String> = ledger.acknowledged.keys().chain(ledger.open.keys()).collect();
        for name in names {
            let acknowledged = ledger.acknowledged.get(name).map_or(&[][..], Vec::as_slice);
            let open = ledger.open.get(name).map_or(&[][..], Vec::as_slice);
            let history = told.get(name.as_str()).map_or(&[][..], Vec::as_slice);
            check(name, acknowledged, open, history, stored.get(name))?;
        }
    }
    println!("{KILLS} kills, {total} acknowledged writes, {} events", seen.len());
    Ok(())
}

/// The events of one key against what its writer knows.
fn check(
    name: &str,
    acknowledged: &[(u64, State)],
    open: &[State],
    history: &[&Seen],
    stored: Option<&(u64, State)>,
) -> Result<()> {
    // Acknowledged writes are told in their order, with the revision that was answered.
    let mut rest = history.iter();
    for (at, state) in acknowledged {
        let found = rest.any(|s| s.state == *state && (*at == 0 || s.revision == *at));
        ensure!(found, "{name}: {state:?} at {at} was acknowledged and not told: {history:?}");
    }
    // Nothing else is told but writes whose answer was lost.
    let extra = history.iter().filter(|s| !acknowledged.iter().any(|(_, a)| *a == s.state));
    for s in extra {
        ensure!(open.contains(&s.state), "{name}: {s:?} was never written");
    }
    // What is stored is what was told last.
    let last = history.last().and_then(|s| s.state.clone().map(|v| (s.revision, Some(v))));
    ensure!(last.as_ref() == stored, "{name}: stored {stored:?}, told {last:?}");
    Ok(())
}
