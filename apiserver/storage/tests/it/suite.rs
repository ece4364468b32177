//! The contract of a store, once, for every implementation: each case gets a fresh, empty store.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use skiff_storage::{Change, ChangeKind, Compare, Error, Op, Payload, Result, Revision, Store};

/// Patience for something that is to happen at once.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Waits, but not for ever.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(SOON, future).await.unwrap_or_else(|_| panic!("{what}: nothing happened in {SOON:?}"))
}

pub(crate) fn put(value: &str) -> Op {
    Op::Put(Payload::plain(value.as_bytes().to_vec()))
}

/// Takes exactly `count` changes.
pub(crate) async fn take(watch: &mut BoxStream<'static, Result<Change>>, count: usize) -> Vec<Change> {
    let mut out = Vec::new();
    while out.len() < count {
        out.push(soon("a change", watch.next()).await.expect("the watch ended").expect("a change"));
    }
    out
}

/// A change as text, for comparison.
pub(crate) fn show(change: &Change) -> String {
    let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
    let kind = match change.kind {
        ChangeKind::Created => "+",
        ChangeKind::Updated => "~",
        ChangeKind::Deleted => "-",
    };
    let (before, at) = change.previous.as_deref().map_or(("none".to_owned(), 0), |p| (text(&p.value), p.revision));
    format!("{}{kind}{}={} was {before}@{at}", change.revision, change.key(), text(&change.entry.value))
}

async fn keys(store: &dyn Store, prefix: &str, revision: Revision) -> Vec<String> {
    let range = store.range(prefix, None, revision, 0).await.expect("range");
    range.entries.iter().map(|e| format!("{}={}", e.key, String::from_utf8_lossy(&e.value))).collect()
}

/// Runs every case.
pub(crate) async fn run<S: Store, F: Future<Output = Arc<S>>>(make: impl Fn() -> F) {
    preconditions(&*make().await).await;
    the_hole_is_filled(&*make().await).await;
    no_ops_write_nothing(&*make().await).await;
    ranges(&*make().await).await;
    the_past_can_be_read(&*make().await).await;
    watches_replay_from_every_revision(&*make().await).await;
    watches_are_live_and_filtered(make().await).await;
    compaction(&*make().await).await;
    one_winner_per_race(make().await).await;
    writes_in_flight_keep_their_order(make().await).await;
    eprintln!("the contract holds");
}

async fn preconditions(store: &dyn Store) {
    let empty = store.revision().await.unwrap();
    assert!(empty <= 1, "an empty store stands at 0, or where etcd begins: {empty}");
    let first = store.commit("/a/x", Compare::Absent, put("1")).await.unwrap();
    assert!(first > empty);
    // (compare, whether it holds) against a present key.
    let cases = [(Compare::Absent, false), (Compare::At(first + 1), false), (Compare::At(0), false)];
    for (compare, _) in cases {
        for op in [put("2"), Op::Delete] {
            match store.commit("/a/x", compare, op).await {
                Err(Error::Conflict { current: Some(e) }) => assert_eq!((e.revision, &e.value[..]), (first, &b"1"[..])),
                other => panic!("{compare:?}: {other:?}"),
            }
        }
    }
    assert_eq!(store.revision().await.unwrap(), first, "a lost compare makes no revision");
    for op in [put("2"), Op::Delete] {
        match store.commit("/a/none", Compare::At(first), op).await {
            Err(Error::Conflict { current: None }) => {}
            other => panic!("{other:?}"),
        }
    }
    let second = store.commit("/a/x", Compare::At(first), put("2")).await.unwrap();
    let third = store.commit("/a/x", Compare::Any, put("3")).await.unwrap();
    let gone = store.commit("/a/x", Compare::At(third), Op::Delete).await.unwrap();
    assert!(first < second && second < third && third < gone);
    assert_eq!(store.get("/a/x").await.unwrap(), None);
    let again = store.commit("/a/x", Compare::Absent, put("4")).await.unwrap();
    assert!(again > gone);
    let entry = store.get("/a/x").await.unwrap().unwrap();
    assert_eq!((&*entry.key, &entry.value[..], entry.revision), ("/a/x", &b"4"[..], again));
}

async fn the_hole_is_filled(store: &dyn Store) {
    let hole = Payload { bytes: "{\"v\":\"\"}".into(), hole: Some(6) };
    for _ in 0..12 {
        let revision = store.commit("/a/x", Compare::Any, Op::Put(hole.clone())).await.unwrap();
        let entry = store.get("/a/x").await.unwrap().unwrap();
        assert_eq!(entry.value, format!("{{\"v\":\"{revision}\"}}"));
    }
}

async fn no_ops_write_nothing(store: &dyn Store) {
    let at = store.commit("/a/x", Compare::Any, put("1")).await.unwrap();
    assert_eq!(store.commit("/a/y", Compare::Any, Op::Delete).await.unwrap(), at);
    assert_eq!(store.commit("/a/y", Compare::Absent, Op::Delete).await.unwrap(), at);
    assert_eq!(store.revision().await.unwrap(), at);
    let next = store.commit("/a/x", Compare::Any, put("2")).await.unwrap();
    let mut watch = store.watch("/", 0).await.unwrap();
    let seen: Vec<_> = take(&mut watch, 2).await.iter().map(|c| c.revision).collect();
    assert_eq!(seen, [at, next], "the history knows no no-ops");
}

async fn ranges(store: &dyn Store) {
    for key in ["/a/b/3", "/a/b/1", "/a/b", "/a/b/2", "/a/bb", "/a/c/1"] {
        store.commit(key, Compare::Absent, put(key)).await.unwrap();
    }
    // prefix, start, limit, keys, more
    type Case<'a> = (&'a str, Option<&'a str>, usize, &'a [&'a str], bool);
    let cases: &[Case<'_>] = &[
        ("/a/b/", None, 0, &["/a/b/1", "/a/b/2", "/a/b/3"], false),
        ("/a/b/", None, 2, &["/a/b/1", "/a/b/2"], true),
        ("/a/b/", None, 3, &["/a/b/1", "/a/b/2", "/a/b/3"], false),
        ("/a/b/", Some("/a/b/2"), 0, &["/a/b/2", "/a/b/3"], false),
        ("/a/b/", Some("/a/b/2\0"), 1, &["/a/b/3"], false),
        ("/a/b/", Some("/a/a"), 1, &["/a/b/1"], true),
        ("/a/b/", Some("/a/z"), 1, &[], false),
        ("/a/b", None, 0, &["/a/b", "/a/b/1", "/a/b/2", "/a/b/3", "/a/bb"], false),
        ("/z/", None, 0, &[], false),
    ];
    let now = store.revision().await.unwrap();
    for (prefix, start, limit, want, more) in cases {
        for revision in [0, now] {
            let range = store.range(prefix, *start, revision, *limit).await.unwrap();
            let got: Vec<&str> = range.entries.iter().map(|e| &*e.key).collect();
            assert_eq!((&got[..], range.more), (*want, *more), "{prefix} {start:?} {limit}");
            assert_eq!(range.revision, now);
        }
    }
}

async fn the_past_can_be_read(store: &dyn Store) {
    let r1 = store.commit("/a/x", Compare::Any, put("1")).await.unwrap();
    let r2 = store.commit("/a/y", Compare::Any, put("1")).await.unwrap();
    let r3 = store.commit("/a/x", Compare::Any, put("2")).await.unwrap();
    let r4 = store.commit("/a/y", Compare::Any, Op::Delete).await.unwrap();
    let r5 = store.commit("/a/y", Compare::Any, put("3")).await.unwrap();
    let want: [(Revision, &[&str]); 5] = [
        (r1, &["/a/x=1"]),
        (r2, &["/a/x=1", "/a/y=1"]),
        (r3, &["/a/x=2", "/a/y=1"]),
        (r4, &["/a/x=2"]),
        (r5, &["/a/x=2", "/a/y=3"]),
    ];
    for (revision, want) in want {
        assert_eq!(keys(store, "/a/", revision).await, want, "at {revision}");
    }
    let range = store.range("/a/", Some("/a/y"), r2, 0).await.unwrap();
    assert_eq!(range.entries.iter().map(|e| (e.revision, range.revision)).collect::<Vec<_>>(), [(r2, r2)]);
    match store.range("/a/", None, r5 + 1, 0).await {
        Err(Error::Future { requested, current }) => assert_eq!((requested, current), (r5 + 1, r5)),
        other => panic!("{other:?}"),
    }
}

async fn watches_replay_from_every_revision(store: &dyn Store) {
    let mut want = Vec::new();
    for (key, op) in
        [("/a/x", put("1")), ("/a/y", put("1")), ("/a/x", put("2")), ("/a/x", Op::Delete), ("/a/x", put("3"))]
    {
        want.push(store.commit(key, Compare::Any, op).await.unwrap());
    }
    let mut all = store.watch("/a/", 0).await.unwrap();
    let all: Vec<String> = take(&mut all, 5).await.iter().map(show).collect();
    let [r1, r2, r3, r4, r5] = want[..] else { unreachable!() };
    assert_eq!(
        all,
        [
            format!("{r1}+/a/x=1 was none@0"),
            format!("{r2}+/a/y=1 was none@0"),
            format!("{r3}~/a/x=2 was 1@{r1}"),
            format!("{r4}-/a/x=2 was 2@{r3}"),
            format!("{r5}+/a/x=3 was none@0"),
        ]
    );
    for (skip, after) in std::iter::once(0).chain(want.iter().copied()).enumerate() {
        let mut watch = store.watch("/a/", after).await.unwrap();
        let got: Vec<String> = take(&mut watch, 5 - skip).await.iter().map(show).collect();
        assert_eq!(got, all[skip..], "after {after}");
    }
    match store.watch("/a/", r5 + 1).await.map(|_| ()) {
        Err(Error::Future { .. }) => {}
        other => panic!("a watch from the future must not start: {other:?}"),
    }
}

async fn watches_are_live_and_filtered<S: Store>(store: Arc<S>) {
    let mut watch = store.watch("/a/", 0).await.unwrap();
    let writer = Arc::clone(&store);
    let task = tokio::spawn(async move {
        let mut want = Vec::new();
        for n in 0..300 {
            let key = ["/a/x", "/b/x", "/a/y"][n % 3];
            let revision = writer.commit(key, Compare::Any, put("v")).await.unwrap();
            if key.starts_with("/a/") {
                want.push(revision);
            }
        }
        want
    });
    let got: Vec<Revision> = take(&mut watch, 200).await.iter().map(|c| c.revision).collect();
    assert_eq!(got, soon("the writer", task).await.unwrap());
}

async fn compaction(store: &dyn Store) {
    let mut at = vec![0];
    for n in 0..10 {
        at.push(store.commit("/a/x", Compare::Any, put(&n.to_string())).await.unwrap());
    }
    soon("compaction", store.compact(at[6])).await.unwrap();
    for (n, revision) in at.iter().enumerate().skip(1) {
        let range = store.range("/a/", None, *revision, 0).await;
        let watch = store.watch("/a/", *revision).await.map(|_| ());
        if n < 6 {
            assert!(
                matches!(range, Err(Error::Compacted { oldest, .. }) if oldest == at[6]),
                "range at {n}: {range:?}"
            );
            assert!(matches!(watch, Err(Error::Compacted { .. })), "watch after {n}: {watch:?}");
        } else {
            assert_eq!(range.unwrap().entries[0].value, (n - 1).to_string());
            assert!(watch.is_ok());
        }
    }
    assert!(matches!(store.watch("/a/", 0).await.map(|_| ()), Err(Error::Compacted { .. })), "0 is the beginning");
    store.compact(at[3]).await.expect("what is forgotten may be forgotten again");
    assert!(matches!(store.compact(at[10] + 1).await, Err(Error::Future { .. })));
    assert_eq!(keys(store, "/a/", 0).await, ["/a/x=9"]);
    let mut watch = store.watch("/a/", at[6]).await.unwrap();
    let change = take(&mut watch, 1).await.remove(0);
    assert_eq!(show(&change), format!("{}~/a/x=6 was 5@{}", at[7], at[6]), "the oldest kept change knows its past");
}

async fn one_winner_per_race<S: Store>(store: Arc<S>) {
    let mut at = store.commit("/a/x", Compare::Absent, put("0")).await.unwrap();
    for round in 0..20 {
        let tasks: Vec<_> = (0..8)
            .map(|n| {
                let store = Arc::clone(&store);
                tokio::spawn(async move { store.commit("/a/x", Compare::At(at), put(&format!("{round}/{n}"))).await })
            })
            .collect();
        let mut won = Vec::new();
        let mut shown = Vec::new();
        for task in tasks {
            match soon("a racer", task).await.unwrap() {
                Ok(revision) => won.push(revision),
                Err(Error::Conflict { current: Some(entry) }) => {
                    // Whoever lost was shown something durable.
                    assert!(entry.revision <= store.revision().await.unwrap());
                    shown.push(entry.revision);
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(won.len(), 1, "round {round}");
        assert!(shown.iter().all(|r| *r == won[0]), "{shown:?} {won:?}");
        at = won[0];
    }
}

async fn writes_in_flight_keep_their_order<S: Store>(store: Arc<S>) {
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let mut last = 0;
                for n in 0..25 {
                    let key = format!("/a/{}", (task + n) % 5);
                    let op = if n % 7 == 3 { Op::Delete } else { put(&format!("{task}.{n}")) };
                    let revision = store.commit(&key, Compare::Any, op).await.unwrap();
                    // A deletion of nothing answers the present revision, which this writer may know already.
                    assert!(revision >= last);
                    assert!(store.revision().await.unwrap() >= revision, "an answer is visible to its writer");
                    last = revision;
                }
            })
        })
        .collect();
    for task in tasks {
        soon("a writer", task).await.unwrap();
    }
    // The history leads to the present, step by step.
    let head = store.revision().await.unwrap();
    let mut watch = store.watch("/", 0).await.unwrap();
    let mut state = std::collections::BTreeMap::new();
    let mut at = 0;
    while at < head {
        let change = take(&mut watch, 1).await.remove(0);
        assert!(change.revision > at, "strictly increasing");
        at = change.revision;
        let before: Option<(Vec<u8>, Revision)> = state.get(change.key()).cloned();
        let told = change.previous.as_ref().map(|p| (p.value.to_vec(), p.revision));
        assert_eq!(told, before, "{}", show(&change));
        let kind = match (change.kind, before.is_some()) {
            (ChangeKind::Created, false) | (ChangeKind::Updated | ChangeKind::Deleted, true) => change.kind,
            other => panic!("{other:?} at {at}"),
        };
        if kind == ChangeKind::Deleted {
            state.remove(change.key());
        } else {
            state.insert(change.key().to_owned(), (change.entry.value.to_vec(), at));
        }
    }
    let present = store.range("/", None, 0, 0).await.unwrap();
    let present: Vec<_> = present.entries.iter().map(|e| (e.key.to_string(), (e.value.to_vec(), e.revision))).collect();
    assert_eq!(present, state.into_iter().collect::<Vec<_>>());
}
