//! The etcd driver against a real etcd: the contract, caches of several servers, and members that die or hang.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use skiff_storage::etcd::{OpenError, Options, Tls};
use skiff_storage::{Cache, ChangeKind, Compare, Error, Etcd, Meta, Op, Payload, Store};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::etcd_cluster::{Cluster, available};
use crate::suite::{self, put, show, soon, take};

fn options(cluster: &Cluster) -> Options {
    let mut options = Options::new(cluster.urls());
    options.tls = cluster.certificates.as_ref().map(|c| Tls { ca: c.ca.clone(), identity: Some(c.leaf.clone()) });
    options.compact_every = None;
    options
}

async fn open(options: Options) -> Arc<Etcd> {
    soon("etcd", async {
        loop {
            match Etcd::open(options.clone()).await {
                Ok(store) => return store,
                Err(OpenError::Unreachable(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
    })
    .await
}

async fn cache(store: &Arc<Etcd>, prefix: &str) -> Cache {
    let config = skiff_storage::cache::Config { extract: Arc::new(|_, _| Meta::default()), indexed: Vec::new() };
    Cache::open(Arc::<Etcd>::clone(store) as Arc<dyn Store>, prefix, config).await.unwrap()
}

fn deadline() -> Instant {
    Instant::now() + suite::SOON
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn contract() {
    if !available() {
        return;
    }
    let clusters = parking_lot::Mutex::new(Vec::new());
    suite::run(|| async {
        let cluster = Cluster::start(1, false);
        let store = open(options(&cluster)).await;
        let mut clusters = clusters.lock();
        // The one before has done its duty.
        clusters.clear();
        clusters.push(cluster);
        store
    })
    .await;
}

/// The same over mutual TLS, beside other keys, under a root of its own.
#[tokio::test]
async fn certificates_and_a_root_of_its_own() {
    if !available() {
        return;
    }
    let cluster = Cluster::start(1, true);
    let mut one = options(&cluster);
    one.root = "/one".to_owned();
    let mut two = options(&cluster);
    two.root = "/two".to_owned();
    let (first, second) = (open(one.clone()).await, open(two).await);
    let watched = first.revision().await.unwrap();
    let a = first.commit("/a/x", Compare::Absent, put("1")).await.unwrap();
    let b = second.commit("/a/x", Compare::Absent, put("2")).await.unwrap();
    assert!(a < b);
    assert_eq!(first.get("/a/x").await.unwrap().unwrap().value, "1");
    assert_eq!(second.range("/", None, 0, 0).await.unwrap().entries.len(), 1);
    let c = first.commit("/a/x", Compare::At(a), put("3")).await.unwrap();
    let mut watch = first.watch("/", watched).await.unwrap();
    let seen: Vec<String> = take(&mut watch, 2).await.iter().map(show).collect();
    assert_eq!(seen, [format!("{a}+/a/x=1 was none@0"), format!("{c}~/a/x=3 was 1@{a}")]);

    one.tls.as_mut().unwrap().identity = None;
    let refused = Etcd::open(one).await.expect_err("no certificate");
    assert!(matches!(refused, OpenError::Unreachable(_)), "{refused}");
}

#[tokio::test]
async fn what_others_wrote_is_not_touched() {
    if !available() {
        return;
    }
    let cluster = Cluster::start(1, false);
    drop(open(options(&cluster)).await);
    let put = ["--endpoints", &cluster.url(0), "put", "/registry/pods/x", "k8s"];
    let done = std::process::Command::new("etcdctl").env("ETCDCTL_API", "3").args(put).output().unwrap();
    assert!(done.status.success());
    let refused = Etcd::open(options(&cluster)).await.expect_err("somebody else's");
    assert!(matches!(refused, OpenError::Foreign(_)), "{refused}");
}

/// Two servers under load: each cache tells exactly the history, from wherever it began, and consistent reads include
/// what the other server acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn caches_of_two_servers() {
    if !available() {
        return;
    }
    let cluster = Cluster::start(1, false);
    let stores = [open(options(&cluster)).await, open(options(&cluster)).await];
    let writers: Vec<_> = (0..4)
        .map(|writer: usize| {
            let store = Arc::clone(&stores[writer % 2]);
            tokio::spawn(async move {
                for n in 0..150 {
                    let key = format!("/k/{}", (writer + n) % 7);
                    let op = if n % 5 == 4 { Op::Delete } else { put(&format!("{writer}.{n}")) };
                    store.commit(&key, Compare::Any, op).await.unwrap();
                    // Another resource moves the revision too.
                    store.commit(&format!("/other/{writer}"), Compare::Any, put("x")).await.unwrap();
                }
            })
        })
        .collect();
    let mut caches = Vec::new();
    while caches.len() < 12 {
        let cache = cache(&stores[caches.len() % 2], "/k/").await;
        let snapshot = cache.list("/k/");
        let watcher = cache.watch("/k/", snapshot.revision).unwrap();
        caches.push((cache, snapshot, watcher));
        // What this store says is in the other one's cache at once.
        let written = stores[0].commit("/k/mark", Compare::Any, put(&caches.len().to_string())).await.unwrap();
        let (last, ..) = caches.last().unwrap();
        assert!(last.consistent(deadline()).await.unwrap() >= written);
        assert_eq!(last.get("/k/mark").unwrap().value, caches.len().to_string());
    }
    for writer in writers {
        soon("a writer", writer).await.unwrap();
    }
    let head = stores[0].commit("/k/mark", Compare::Any, put("the end")).await.unwrap();
    let present = stores[0].range("/k/", None, 0, 0).await.unwrap();
    let mut history = stores[0].watch("/k/", 0).await.unwrap();
    let mut all = Vec::new();
    while all.last().is_none_or(|c: &skiff_storage::Change| c.revision < head) {
        all.extend(take(&mut history, 1).await);
    }
    for (cache, snapshot, mut watcher) in caches {
        assert!(cache.consistent(deadline()).await.unwrap() >= head);
        let mut state: BTreeMap<_, _> = snapshot.objects.iter().map(|o| (o.key.clone(), o.revision)).collect();
        for want in all.iter().filter(|c| c.revision > snapshot.revision) {
            let event = soon("an event", watcher.next()).await.unwrap().unwrap();
            assert_eq!(
                (event.kind, &event.object.key, &event.object.value, event.revision),
                (want.kind, &want.entry.key, &want.entry.value, want.revision)
            );
            match event.kind {
                ChangeKind::Deleted => state.remove(&event.object.key),
                _ => state.insert(event.object.key.clone(), event.revision),
            };
        }
        let now: BTreeMap<_, _> = present.entries.iter().map(|e| (e.key.clone(), e.revision)).collect();
        assert_eq!(state, now);
        assert!(watcher.try_next().is_none());
    }
}

/// The window of caches is bounded although etcd keeps more, and one server of two forgets etcd's history.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_is_forgotten() {
    if !available() {
        return;
    }
    let cluster = Cluster::start(1, false);
    let mut bounded = options(&cluster);
    bounded.history_changes = 50;
    bounded.history_age = Duration::from_millis(1500);
    let store = open(bounded).await;
    let cache = cache(&store, "/k/").await;
    for n in 0..200 {
        store.commit("/k/x", Compare::Any, put(&n.to_string())).await.unwrap();
    }
    soon("the window", async {
        while cache.stats().window > 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(matches!(cache.watch("/k/", 10).map(drop), Err(Error::Compacted { .. })));
    assert!(store.watch("/k/", 10).await.is_ok(), "etcd still has it");

    let mut quick = options(&cluster);
    quick.compact_every = Some(Duration::from_millis(200));
    let _servers = [open(quick.clone()).await, open(quick).await];
    soon("compaction", async {
        while !matches!(store.watch("/k/", 10).await.map(drop), Err(Error::Compacted { .. })) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(store.get("/k/x").await.unwrap().unwrap().value, "199");
}

/// A value beyond etcd's limits is refused for what it is; the store goes on.
#[tokio::test]
async fn a_value_that_is_too_large() {
    if !available() {
        return;
    }
    let cluster = Cluster::start(1, false);
    let store = open(options(&cluster)).await;
    for size in [1_700_000, 3_000_000] {
        let large = store.commit("/k/x", Compare::Any, put(&"x".repeat(size))).await;
        assert!(matches!(large, Err(Error::TooLarge(_))), "{size}: {large:?}");
    }
    // Many at once are more than one message of a watch may be.
    let cache = cache(&store, "/k/").await;
    let mut watch = store.watch("/k/", store.revision().await.unwrap()).await.unwrap();
    let puts = (0..12).map(|n| {
        let store = &store;
        async move { store.commit(&format!("/k/{n}"), Compare::Any, put(&"x".repeat(1_200_000))).await.unwrap() }
    });
    let last = futures::future::join_all(puts).await.into_iter().max().unwrap();
    cache.consistent(deadline()).await.unwrap();
    assert_eq!(cache.list("/k/").objects.len(), 12);
    assert_eq!(take(&mut watch, 12).await.last().unwrap().revision, last);
}

/// A server that was cut off for longer than etcd keeps history says so: it cannot know what it missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gap_is_told() {
    if !available() {
        return;
    }
    let mut cluster = Cluster::start(3, false);
    let others = open(Options { endpoints: vec![cluster.url(1), cluster.url(2)], ..options(&cluster) }).await;
    let store = open(Options { endpoints: vec![cluster.url(0)], ..options(&cluster) }).await;
    let cache = cache(&store, "/k/").await;
    let mut watcher = cache.watch("/k/", cache.revision()).unwrap();
    store.commit("/k/x", Compare::Any, put("0")).await.unwrap();
    cluster.kill(0);
    let mut last = 0;
    for n in 0..20 {
        // The one that was killed may have led: an answer may be lost with it.
        last = soon("a write", async {
            loop {
                if let Ok(revision) = others.commit("/k/x", Compare::Any, put(&n.to_string())).await {
                    return revision;
                }
            }
        })
        .await;
    }
    others.compact(last).await.unwrap();
    let mut failed = store.failed();
    cluster.revive(0);
    soon("the end", failed.wait_for(Option::is_some)).await.unwrap();
    soon("the end of the watch", async { while watcher.next().await.is_some() {} }).await;
    assert!(matches!(store.revision().await, Err(Error::Closed)));
}

/// `kill -9` of the leader, again and again, under load: every acknowledged write is there, in the order of its
/// revisions; writers that compare never both win.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leaders_die_under_load() {
    const WRITERS: usize = 6;
    if !available() {
        return;
    }
    let mut cluster = Cluster::start(3, false);
    let stores = [open(options(&cluster)).await, open(options(&cluster)).await];
    let pods = cache(&stores[0], "/w/").await;
    let begun = pods.list("/w/").revision;
    let mut watcher = pods.watch("/w/", begun).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (store, stop) = (Arc::clone(&stores[writer % 2]), Arc::clone(&stop));
            tokio::spawn(async move {
                let (mut acknowledged, mut unknown) = (Vec::new(), 0);
                let mut n = 0;
                while !stop.load(Ordering::Relaxed) {
                    n += 1;
                    let key = format!("/w/{writer}/{n}");
                    match store.commit(&key, Compare::Absent, put("first")).await {
                        Ok(revision) => acknowledged.push((key.clone(), "first", revision)),
                        Err(Error::Unavailable(_)) => {
                            unknown += 1;
                            continue;
                        }
                        Err(other) => panic!("{key}: {other}"),
                    }
                    let revision = acknowledged.last().unwrap().2;
                    match store.commit(&key, Compare::At(revision), put("second")).await {
                        Ok(revision) => *acknowledged.last_mut().unwrap() = (key, "second", revision),
                        Err(Error::Unavailable(_)) => {
                            // The one before stands, or this one.
                            acknowledged.pop();
                            unknown += 1;
                        }
                        Err(other) => panic!("{key}: {other}"),
                    }
                    // All count together on one key: a lost race is not an acknowledgement.
                    let Ok(entry) = store.get("/count").await else { continue };
                    let (compare, count) = entry.map_or((Compare::Absent, 0), |e| {
                        (Compare::At(e.revision), std::str::from_utf8(&e.value).unwrap().parse::<u64>().unwrap())
                    });
                    match store.commit("/count", compare, put(&(count + 1).to_string())).await {
                        Ok(revision) => acknowledged.push(("/count".to_owned(), "", revision)),
                        Err(Error::Conflict { .. }) => {}
                        Err(Error::Unavailable(_)) => unknown += 1,
                        Err(other) => panic!("{other}"),
                    }
                }
                (acknowledged, unknown)
            })
        })
        .collect();
    for round in 0..3 {
        let before = stores[1].revision().await.unwrap();
        let leader = soon("a leader", async {
            loop {
                if let Some(leader) = cluster.leader() {
                    return leader;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
        cluster.kill(leader);
        // The load goes on without it.
        soon("writes without the leader", async {
            loop {
                if stores[1].revision().await.is_ok_and(|now| now > before + 50) {
                    return;
                }
            }
        })
        .await;
        cluster.revive(leader);
        eprintln!("round {round}: member {leader} led and died");
    }
    stop.store(true, Ordering::Relaxed);
    let (mut acknowledged, mut unknown) = (Vec::new(), 0);
    for writer in writers {
        let (a, u) = soon("a writer", writer).await.unwrap();
        acknowledged.extend(a);
        unknown += u;
    }
    let mut counts = 0;
    for (key, value, revision) in &acknowledged {
        if key == "/count" {
            counts += 1;
            continue;
        }
        let entry = soon("a read", stores[1].get(key)).await.unwrap();
        let entry = entry.unwrap_or_else(|| panic!("{key} was acknowledged at {revision} and is lost"));
        assert_eq!((&entry.value[..], entry.revision), (value.as_bytes(), *revision), "{key}");
    }
    let counted = stores[0]
        .get("/count")
        .await
        .unwrap()
        .map_or(0, |e| std::str::from_utf8(&e.value).unwrap().parse::<u64>().unwrap());
    assert!(
        (counts..=counts + unknown).contains(&counted),
        "{counted} counted, {counts} acknowledged, {unknown} unknown"
    );
    let mut revisions: Vec<_> = acknowledged.iter().map(|a| a.2).collect();
    revisions.sort_unstable();
    let all = revisions.len();
    revisions.dedup();
    assert_eq!(revisions.len(), all, "a revision was given twice");
    // The watch went through all of it without a gap: it leads to what is there.
    let head = pods.consistent(deadline()).await.unwrap();
    let mut state = BTreeMap::new();
    while let Some(event) = watcher.try_next() {
        let event = event.unwrap();
        assert!(event.revision <= head);
        state.insert(event.object.key.to_string(), event.revision);
    }
    let present = stores[1].range("/w/", None, 0, 0).await.unwrap();
    assert_eq!(present.entries.iter().map(|e| (e.key.to_string(), e.revision)).collect::<BTreeMap<_, _>>(), state);
    eprintln!("{all} acknowledged, {unknown} unknown, {} keys", state.len());
}

/// A member that hangs (no connection breaks): reads and writes go on over another one within seconds, caches too.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_member_hangs() {
    if !available() {
        return;
    }
    let cluster = Cluster::start(3, false);
    let other = open(Options { endpoints: vec![cluster.url(1)], ..options(&cluster) }).await;
    let store = open(options(&cluster)).await;
    let cache = cache(&store, "/k/").await;
    let first = store.commit("/k/x", Compare::Absent, put("1")).await.unwrap();
    // The first one named is the one that is asked; it may lead.
    cluster.pause(0, true);
    let begun = Instant::now();
    let second = soon("a write", async {
        loop {
            match other.commit("/k/x", Compare::At(first), put("2")).await {
                Ok(revision) => return revision,
                Err(Error::Unavailable(_)) => {}
                Err(e) => panic!("{e}"),
            }
        }
    })
    .await;
    soon("a consistent read", async { while cache.consistent(deadline()).await.is_err() {} }).await;
    assert_eq!(cache.get("/k/x").unwrap().value, "2");
    let third = soon("a write", store.commit("/k/x", Compare::At(second), put("3"))).await.unwrap();
    eprintln!("a member hung: read and written after {:?}", begun.elapsed());
    cluster.pause(0, false);
    assert_eq!(store.get("/k/x").await.unwrap().unwrap().revision, third);
}

/// Between a store and a member: passes everything on, until answers are to be lost.
struct Lossy {
    url: String,
    losing: Arc<AtomicBool>,
    cut: tokio::sync::watch::Sender<u64>,
}

impl Lossy {
    async fn before(member: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let member = member.trim_start_matches("http://").to_owned();
        let losing = Arc::new(AtomicBool::new(false));
        let cut = tokio::sync::watch::Sender::new(0);
        let (flag, cuts) = (Arc::clone(&losing), cut.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (flag, mut cuts, member) = (Arc::clone(&flag), cuts.subscribe(), member.clone());
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(&member).await else { return };
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let answers = async {
                        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                        let mut buffer = [0; 16384];
                        while let Ok(n @ 1..) = from_server.read(&mut buffer).await {
                            if !flag.load(Ordering::SeqCst) && to_client.write_all(&buffer[..n]).await.is_err() {
                                break;
                            }
                        }
                    };
                    tokio::select! {
                        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                        () = answers => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { url, losing, cut }
    }
}

/// The answer to a write is lost after etcd carried it out, and perhaps others wrote before the writer could look.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lost_answers_are_found() {
    if !available() {
        return;
    }
    let cluster = Cluster::start(1, false);
    let direct = open(options(&cluster)).await;
    let lossy = Lossy::before(cluster.url(0)).await;
    let store = open(Options { endpoints: vec![lossy.url.clone()], ..options(&cluster) }).await;
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Want {
        /// The revision it got.
        Ours,
        Unknown,
    }
    type Case = (&'static str, bool, Option<&'static str>, Option<Option<&'static str>>, Want);
    // Name, whether the key is there, what is written (`None`: deleted) under a comparison that holds, what somebody
    // writes on top before the writer looks, and what is answered.
    let cases: [Case; 9] = [
        ("create", false, Some("new"), None, Want::Ours),
        ("create, updated", false, Some("new"), Some(Some("theirs")), Want::Ours),
        ("create, the same again", false, Some("new"), Some(Some("new")), Want::Ours),
        ("create, deleted", false, Some("new"), Some(None), Want::Unknown),
        ("update", true, Some("new"), None, Want::Ours),
        ("update, updated", true, Some("new"), Some(Some("theirs")), Want::Ours),
        ("update, deleted", true, Some("new"), Some(None), Want::Ours),
        ("delete", true, None, None, Want::Ours),
        ("delete, created", true, None, Some(Some("theirs")), Want::Ours),
    ];
    for (n, (name, present, write, on_top, want)) in cases.into_iter().enumerate() {
        let key = format!("/k/{n}");
        let mut compare = Compare::Absent;
        let mut before = direct.revision().await.unwrap();
        if present {
            before = direct.commit(&key, Compare::Absent, put("old")).await.unwrap();
            compare = Compare::At(before);
        }
        // A connection that stands, so that the request gets through.
        store.revision().await.unwrap();
        lossy.losing.store(true, Ordering::SeqCst);
        let op = write.map_or(Op::Delete, put);
        let commit = tokio::spawn({
            let (store, key) = (Arc::clone(&store), key.clone());
            async move { store.commit(&key, compare, op).await }
        });
        let mut watch = direct.watch(&key, before).await.unwrap();
        let change = take(&mut watch, 1).await.remove(0);
        if let Some(value) = on_top {
            direct.commit(&key, Compare::Any, value.map_or(Op::Delete, put)).await.unwrap();
        }
        lossy.losing.store(false, Ordering::SeqCst);
        lossy.cut.send_modify(|n| *n += 1);
        match (soon(name, commit).await.unwrap(), want) {
            (Ok(revision), Want::Ours) => assert_eq!(revision, change.revision, "{name}"),
            (Err(Error::Unavailable(_)), Want::Unknown) => {}
            (other, _) => panic!("{name}: {other:?}"),
        }
    }
}

/// A request that never got through is sent again where a comparison guards it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_guarded_write_is_sent_again() {
    if !available() {
        return;
    }
    let mut cluster = Cluster::start(1, false);
    let store = open(options(&cluster)).await;
    let first = store.commit("/k/x", Compare::Absent, Op::Put(Payload::plain("1"))).await.unwrap();
    cluster.kill(0);
    let commit = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.commit("/k/x", Compare::At(first), put("2")).await }
    });
    cluster.revive(0);
    let second = soon("the write", commit).await.unwrap().unwrap();
    let entry = store.get("/k/x").await.unwrap().unwrap();
    assert_eq!((entry.revision, &entry.value[..]), (second, &b"2"[..]));
}
