//! The watch cache over the embedded store.

use std::sync::Arc;
use std::time::Duration;

use skiff_storage::cache::{Config, Run};
use skiff_storage::embedded::Options;
use skiff_storage::{
    Cache, ChangeKind, Compare, Embedded, Error, Event, Meta, Object, Op, Payload, Revision, Store, Watcher,
};
use tokio::time::Instant;

use crate::suite::{put, soon};

/// Values of these tests are `node|text`; the node is an indexed field.
fn config() -> Config {
    let extract = |_: &str, value: &[u8]| {
        let text = String::from_utf8_lossy(value);
        let node = text.split('|').next().unwrap_or_default().to_owned();
        let fields = [("spec.nodeName", node.as_str().into()), ("owner", node.as_str().into())];
        let mut meta = Meta::new(false, "", []);
        meta.fields = fields.into();
        meta
    };
    Config { extract: Arc::new(extract), indexed: vec!["spec.nodeName"] }
}

struct Fixture {
    store: Arc<Embedded>,
    pods: Cache,
    _dir: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(dir.path(), Options::default()).unwrap());
    let pods = cache(&store).await;
    Fixture { store, pods, _dir: dir }
}

async fn cache(store: &Arc<Embedded>) -> Cache {
    let store: Arc<dyn Store> = Arc::<Embedded>::clone(store);
    Cache::open(store, "/r/pods/", config()).await.unwrap()
}

impl Fixture {
    async fn put(&self, key: &str, value: &str) -> Revision {
        self.store.commit(key, Compare::Any, put(value)).await.unwrap()
    }

    async fn delete(&self, key: &str) -> Revision {
        self.store.commit(key, Compare::Any, Op::Delete).await.unwrap()
    }
}

fn deadline() -> Instant {
    Instant::now() + crate::suite::SOON
}

fn text(objects: &[Arc<Object>]) -> Vec<String> {
    objects.iter().map(|o| format!("{}={}", o.name(), String::from_utf8_lossy(&o.value))).collect()
}

fn show(event: &Event) -> String {
    let kind = match event.kind {
        ChangeKind::Created => '+',
        ChangeKind::Updated => '~',
        ChangeKind::Deleted => '-',
    };
    let value = |o: &Object| String::from_utf8_lossy(&o.value).into_owned();
    let before = event.previous.as_deref().map_or("none".to_owned(), value);
    format!("{}{kind}{}={} was {before}", event.revision, event.object.key, value(&event.object))
}

/// Everything there is now.
fn drain(watcher: &mut Watcher) -> Vec<String> {
    std::iter::from_fn(|| watcher.try_next()).map(|e| show(&e.expect("an event"))).collect()
}

#[tokio::test]
async fn a_write_is_in_the_cache_when_it_is_answered() {
    let f = fixture().await;
    for n in 0..200 {
        let revision = f.put("/r/pods/d/a", &n.to_string()).await;
        // No waiting at all: the committer told the cache first.
        assert_eq!(f.pods.revision(), revision);
        assert_eq!(f.pods.get("/r/pods/d/a").unwrap().value, n.to_string());
        assert_eq!(f.pods.list("/r/pods/").revision, revision);
        // Another resource's writes move this cache's revision too.
        let other = f.put("/r/nodes/n", "x").await;
        assert_eq!(f.pods.revision(), other);
        assert_eq!(f.pods.consistent(deadline()).await.unwrap(), other);
    }
    assert_eq!(f.pods.stats().objects, 1);
    assert_eq!(f.pods.stats().bytes, 3);
}

/// More objects than one stretch of a selection, changed all the time by others: what is selected is still what was there
/// at one revision.
#[tokio::test]
async fn a_selection_is_of_one_revision() {
    const OBJECTS: u64 = 9_000;
    let f = fixture().await;
    let puts = (0..OBJECTS).map(|n| {
        let f = &f;
        async move { f.put(&format!("/r/pods/{}/{n:05}", n % 3), &format!("n{}|0", n % 10)).await }
    });
    futures::future::join_all(puts).await;
    let mut moved = 0;
    for round in 0..30_u64 {
        let changes = async {
            for n in 0..40 {
                let n = (n * 211 + round * 37) % OBJECTS;
                let key = format!("/r/pods/{}/{n:05}", n % 3);
                match n % 4 {
                    0 => f.delete(&key).await,
                    _ => f.put(&key, &format!("n{}|{round}", (n + round) % 10)).await,
                };
            }
        };
        let wanted = |o: &Object| o.meta.values("spec.nodeName").any(|v| v == "n3");
        let prefix = ["/r/pods/", "/r/pods/1/", "/r/pods/9/"][(round % 3) as usize];
        let selections = async {
            for _ in 0..4 {
                let got = f.pods.select(prefix, wanted).await;
                let mut want = f.pods.list_at(prefix, got.revision).unwrap().objects;
                want.retain(|o| wanted(o));
                assert_eq!(text(&got.objects), text(&want), "{prefix} at {}", got.revision);
                moved += u64::from(f.pods.last_change() > got.revision);
            }
        };
        futures::join!(changes, selections);
    }
    assert!(moved > 0, "nothing changed during any selection, so nothing was shown");
}

#[tokio::test]
async fn lists_pages_and_the_past() {
    let f = fixture().await;
    let mut at = Vec::new();
    for (key, value) in [("a/1", "n1|a"), ("a/2", "n2|b"), ("b/1", "n1|c"), ("a/3", "n1|d"), ("a/2", "n1|e")] {
        at.push(f.put(&format!("/r/pods/{key}"), value).await);
    }
    at.push(f.delete("/r/pods/a/1").await);
    let all = f.pods.list("/r/pods/");
    assert_eq!(text(&all.objects), ["2=n1|e", "3=n1|d", "1=n1|c"]);
    assert_eq!(all.revision, at[5]);
    assert_eq!(text(&f.pods.list("/r/pods/b/").objects), ["1=n1|c"]);

    let page = f.pods.page("/r/pods/", None, 2);
    assert_eq!((text(&page.objects), page.remaining), (vec!["2=n1|e".to_owned(), "3=n1|d".to_owned()], 1));
    let page = f.pods.page("/r/pods/", Some("/r/pods/a/3\0"), 2);
    assert_eq!((text(&page.objects), page.remaining), (vec!["1=n1|c".to_owned()], 0));

    let then: [&[&str]; 6] = [
        &["1=n1|a"],
        &["1=n1|a", "2=n2|b"],
        &["1=n1|a", "2=n2|b", "1=n1|c"],
        &["1=n1|a", "2=n2|b", "3=n1|d", "1=n1|c"],
        &["1=n1|a", "2=n1|e", "3=n1|d", "1=n1|c"],
        &["2=n1|e", "3=n1|d", "1=n1|c"],
    ];
    for (revision, want) in at.iter().zip(then) {
        let past = f.pods.list_at("/r/pods/", *revision).unwrap();
        assert_eq!((text(&past.objects), past.revision), (want.iter().map(|s| (*s).to_owned()).collect(), *revision));
        // Pages of the past, one by one, are the past.
        let (mut start, mut joined) = ("/r/pods/".to_owned(), Vec::new());
        loop {
            let page = f.pods.page_at("/r/pods/", Some(&start), 1, *revision).unwrap();
            joined.extend(text(&page.objects));
            assert_eq!(page.remaining, want.len() - joined.len());
            let Some(last) = page.objects.last().filter(|_| page.remaining > 0) else { break };
            start = format!("{}\0", last.key);
        }
        assert_eq!(joined, want);
    }

    let on = |node: &str| text(&f.pods.list_by_field("/r/pods/", "spec.nodeName", node).unwrap().objects);
    assert_eq!(on("n1"), ["2=n1|e", "3=n1|d", "1=n1|c"]);
    assert_eq!(on("n2"), [""; 0], "moved away");
    assert_eq!(text(&f.pods.list_by_field("/r/pods/b/", "spec.nodeName", "n1").unwrap().objects), ["1=n1|c"]);
    assert!(f.pods.list_by_field("/r/pods/", "owner", "n1").is_none(), "not indexed");

    f.store.compact(at[2]).await.unwrap();
    assert!(matches!(f.pods.list_at("/r/pods/", at[1]), Err(Error::Compacted { .. })));
    assert_eq!(text(&f.pods.list_at("/r/pods/", at[2]).unwrap().objects).len(), 3);
    assert!(matches!(f.pods.list_at("/r/pods/", at[5] + 1), Err(Error::Future { .. })));
}

#[tokio::test]
async fn watchers_hear_what_concerns_them_and_nothing_else() {
    let f = fixture().await;
    let r0 = f.put("/r/pods/a/1", "n1|a").await;
    let mut all = f.pods.watch("/r/pods/", r0).unwrap();
    let mut ns = f.pods.watch("/r/pods/a/", r0).unwrap();
    let mut odd = f.pods.watch("/r/pods/a/1", r0).unwrap();
    let mut key = f.pods.watch_key("/r/pods/b/1", r0).unwrap();
    let mut n1 = f.pods.watch_field("/r/pods/", "spec.nodeName", "n1", r0).unwrap();
    let mut n1_b = f.pods.watch_field("/r/pods/b/", "spec.nodeName", "n1", r0).unwrap();
    let mut from_start = f.pods.watch("/r/pods/", 0).unwrap();

    let r1 = f.put("/r/pods/b/1", "n2|x").await;
    let r2 = f.put("/r/pods/b/1", "n1|y").await;
    let r3 = f.put("/r/pods/b/1", "n1|z").await;
    let r4 = f.put("/r/pods/b/1", "n3|z").await;
    f.put("/r/nodes/n1", "n1|").await;
    let r6 = f.delete("/r/pods/a/1").await;
    let b1 = format!("{r1}+/r/pods/b/1=n2|x was none");
    let b2 = format!("{r2}~/r/pods/b/1=n1|y was n2|x");
    let b3 = format!("{r3}~/r/pods/b/1=n1|z was n1|y");
    let b4 = format!("{r4}~/r/pods/b/1=n3|z was n1|z");
    let a6 = format!("{r6}-/r/pods/a/1=n1|a was n1|a");
    assert_eq!(n1.bookmark(), None, "events wait");
    assert_eq!(drain(&mut all), [&*b1, &b2, &b3, &b4, &a6]);
    assert_eq!(drain(&mut ns), [&*a6]);
    assert_eq!(drain(&mut odd), [&*a6]);
    assert_eq!(drain(&mut key), [&*b1, &b2, &b3, &b4]);
    assert_eq!(drain(&mut n1), [&*b2, &b3, &b4, &a6]);
    assert_eq!(drain(&mut n1_b), [&*b2, &b3, &b4]);
    assert_eq!(drain(&mut from_start), [&*format!("{r0}+/r/pods/a/1=n1|a was none"), &b1, &b2, &b3, &b4, &a6]);
    for watcher in [&all, &ns, &key, &n1, &n1_b] {
        assert_eq!(watcher.bookmark(), Some(r6), "all is delivered, so the present is the bookmark");
    }
    // A late watcher joins a lane that is there already, at its own place.
    let mut late = f.pods.watch_field("/r/pods/", "spec.nodeName", "n1", r3).unwrap();
    assert_eq!(drain(&mut late), [&*b4, &a6]);
    assert_eq!(f.pods.stats().interests, 4);
    drop((all, from_start, odd, ns, key, n1, n1_b, late));
    // The committer held them until it had woken them, which it does before its next turn.
    f.put("/r/nodes/n1", "n1|").await;
    assert_eq!(f.pods.stats().interests, 0, "lanes end with their watchers");
    assert!(matches!(f.pods.watch("/r/pods/", r6 + 9).map(|_| ()), Err(Error::Future { .. })));
}

#[tokio::test]
async fn a_waiting_watcher_is_woken() {
    let f = fixture().await;
    let mut all = f.pods.watch("/r/pods/", 0).unwrap();
    let mut n1 = f.pods.watch_field("/r/pods/", "spec.nodeName", "n1", 0).unwrap();
    for n in 0..50 {
        let value = format!("n1|{n}");
        // Joined in this order: both wait before the write begins.
        let (a, b, revision) =
            tokio::join!(soon("the event", all.next()), soon("the event", n1.next()), f.put("/r/pods/a/1", &value));
        assert_eq!([a, b].map(|e| e.unwrap().unwrap().revision), [revision; 2]);
    }
}

/// The next run, if it comes at once.
async fn run(watcher: &mut Watcher) -> Option<Arc<Run>> {
    tokio::select! {
        biased;
        run = watcher.next_run() => Some(run.expect("not over").expect("not behind")),
        () = std::future::ready(()) => None,
    }
}

#[tokio::test]
async fn watchers_at_the_same_place_share_what_they_take() {
    let f = fixture().await;
    let start = f.put("/r/pods/a/0", "n|0").await;
    let mut all: Vec<_> = (0..3).map(|_| f.pods.watch("/r/pods/a/", start).unwrap()).collect();
    let shown = |run: &Run| run.events().iter().map(|e| show(e)).collect::<Vec<_>>();
    assert!(run(&mut all[0]).await.is_none());
    f.put("/r/pods/a/1", "n|1").await;
    f.put("/r/pods/b/1", "n|elsewhere").await;
    f.put("/r/pods/a/2", "n|2").await;
    let first = run(&mut all[0]).await.unwrap();
    assert_eq!(first.events().len(), 2);
    assert!(Arc::ptr_eq(&first, &run(&mut all[1]).await.unwrap()), "the same place");
    // The bytes are made once.
    let made = first.bytes(false, |events| format!("{} events", events.len()).into());
    assert_eq!(made, first.bytes(false, |_| unreachable!("made already")));
    assert_eq!(first.bytes(true, |_| "the other form".into()), "the other form");

    f.put("/r/pods/a/3", "n|3").await;
    // Who is further behind takes more; who stands elsewhere takes what follows.
    let longer = run(&mut all[2]).await.unwrap();
    let next = run(&mut all[0]).await.unwrap();
    assert_eq!(shown(&longer), [shown(&first), shown(&next)].concat());
    assert!(Arc::ptr_eq(&next, &run(&mut all[1]).await.unwrap()));
    for watcher in &mut all {
        assert!(run(watcher).await.is_none(), "nothing twice");
    }
    assert!(f.pods.watch("/r/pods/a/", start).unwrap().shares());
    assert!(!f.pods.watch("/r/pods/a/1", start).unwrap().shares(), "others hear of more");
}

#[tokio::test]
async fn runs_are_bounded_and_whole() {
    let f = fixture().await;
    let start = f.put("/r/pods/a/0", "n|0").await;
    let (mut small, mut single) =
        (f.pods.watch("/r/pods/a/", start).unwrap(), f.pods.watch("/r/pods/a/", start).unwrap());
    for n in 0..200 {
        f.put("/r/pods/a/1", &format!("n|{n}")).await;
    }
    let large = format!("n|{}", "x".repeat(40_000));
    for _ in 0..5 {
        f.put("/r/pods/a/2", &large).await;
    }
    let (mut shown, mut sizes) = (vec![], vec![]);
    while let Some(run) = run(&mut small).await {
        shown.extend(run.events().iter().map(|e| show(e)));
        sizes.push(run.events().len());
    }
    // 64 events, or the one that makes them 64 KiB.
    assert_eq!(sizes, [64, 64, 64, 10, 2, 1]);
    assert_eq!(shown, drain(&mut single), "as one by one");
    f.store.close();
    assert!(small.next_run().await.is_none(), "over with the store");
    assert!(small.is_over());
}

#[tokio::test]
async fn a_deletion_is_sent_with_its_own_revision() {
    let f = fixture().await;
    let hole = Payload { bytes: r#"{"metadata":{"resourceVersion":""}}"#.into(), hole: Some(32) };
    let made = f.store.commit("/r/pods/a/1", Compare::Any, Op::Put(hole)).await.unwrap();
    let gone = f.delete("/r/pods/a/1").await;
    let mut watcher = f.pods.watch("/r/pods/", 0).unwrap();
    let bodies: Vec<_> = std::iter::from_fn(|| watcher.try_next()).map(|e| e.unwrap().body()).collect();
    let want = [made, gone].map(|r| format!(r#"{{"metadata":{{"resourceVersion":"{r}"}}}}"#));
    assert_eq!(bodies, want);
}

#[tokio::test]
async fn slow_watchers_end_and_idle_ones_do_not() {
    let f = fixture().await;
    f.put("/r/pods/a/1", "n1|a").await;
    let mut slow = f.pods.watch("/r/pods/", 0).unwrap();
    let mut by_runs = f.pods.watch("/r/pods/", 0).unwrap();
    let mut idle = f.pods.watch_field("/r/pods/", "spec.nodeName", "n9", 1).unwrap();
    for n in 0..100 {
        f.put("/r/pods/a/1", &format!("n1|{n}")).await;
    }
    f.store.compact(60).await.unwrap();
    match slow.next().await {
        Some(Err(Error::Compacted { .. })) => {}
        other => panic!("{other:?}"),
    }
    assert!(slow.next().await.is_none());
    assert!(matches!(by_runs.next_run().await, Some(Err(Error::Compacted { .. }))));
    assert!(by_runs.next_run().await.is_none());
    assert_eq!(f.pods.stats().lagged, 2);
    assert_eq!(idle.bookmark(), Some(101), "nothing of its own was forgotten");
    f.put("/r/pods/a/2", "n9|x").await;
    let event = soon("the idle watcher's event", idle.next()).await.unwrap().unwrap();
    assert_eq!(event.revision, 102);
    // The window is the store's.
    assert_eq!(f.pods.stats().window, f.store.stats().history_changes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_list_and_a_watch_from_it_lose_and_repeat_nothing() {
    let f = Arc::new(fixture().await);
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let f = Arc::clone(&f);
            tokio::spawn(async move {
                for n in 0..150 {
                    let key = format!("/r/pods/ns{}/{}", n % 3, (n + w) % 7);
                    if n % 5 == 4 {
                        f.delete(&key).await
                    } else {
                        f.put(&key, &format!("n{}|{w}.{n}", n % 2)).await
                    };
                    f.put("/r/nodes/x", "beside").await;
                }
            })
        })
        .collect();
    let readers: Vec<_> = ["/r/pods/", "/r/pods/ns1/"]
        .into_iter()
        .cycle()
        .take(6)
        .map(|prefix| {
            let f = Arc::clone(&f);
            tokio::spawn(async move {
                let mut seen = 0;
                // Lists at many moments, each followed to a bookmark, must arrive at a list of that revision.
                for _ in 0..15 {
                    f.pods.consistent(deadline()).await.unwrap();
                    let list = f.pods.list(prefix);
                    assert!(list.revision >= seen, "time does not run backwards");
                    let mut state: std::collections::BTreeMap<Arc<str>, Revision> =
                        list.objects.iter().map(|o| (Arc::clone(&o.key), o.revision)).collect();
                    let mut watcher = f.pods.watch(prefix, list.revision).unwrap();
                    let mut at = list.revision;
                    for _ in 0..10 {
                        let Ok(next) = tokio::time::timeout(Duration::from_millis(200), watcher.next()).await else {
                            break; // the writers are done
                        };
                        let event = next.unwrap().unwrap();
                        assert!(event.revision > at);
                        at = event.revision;
                        let was = event.previous.as_ref().map(|o| o.revision);
                        assert_eq!(state.get(&event.object.key).copied(), was, "{}", show(&event));
                        if event.kind == ChangeKind::Deleted {
                            state.remove(&event.object.key);
                        } else {
                            state.insert(Arc::clone(&event.object.key), event.revision);
                        }
                    }
                    let then = f.pods.list_at(prefix, at).unwrap();
                    let then: std::collections::BTreeMap<_, _> =
                        then.objects.iter().map(|o| (Arc::clone(&o.key), o.revision)).collect();
                    assert_eq!(state, then);
                    seen = at;
                }
            })
        })
        .collect();
    for task in writers.into_iter().chain(readers) {
        soon("a task", task).await.unwrap();
    }
}

#[tokio::test]
async fn a_cache_made_later_knows_the_window_and_dies_alone() {
    let f = fixture().await;
    for n in 0..30 {
        let key = format!("/r/pods/a/{}", n % 4);
        if n % 6 == 5 {
            f.delete(&key).await
        } else {
            f.put(&key, &format!("n{}|{n}", n % 2)).await
        };
    }
    f.store.compact(7).await.unwrap();
    let later = cache(&f.store).await;
    assert_eq!(text(&later.list("/r/pods/").objects), text(&f.pods.list("/r/pods/").objects));
    let events = |c: &Cache| drain(&mut c.watch("/r/pods/", 7).unwrap());
    assert_eq!(events(&later), events(&f.pods));
    assert!(!events(&later).is_empty());
    drop(later);
    f.put("/r/pods/a/1", "n1|after").await;
    assert_eq!(f.pods.revision(), f.store.stats().revision);
}

#[tokio::test]
async fn waiting_for_the_future_ends_at_the_deadline_or_when_it_comes() {
    let f = Arc::new(fixture().await);
    f.put("/r/pods/a/1", "n1|a").await;
    let soon_over = Instant::now() + Duration::from_millis(20);
    match f.pods.fresh(2, soon_over).await {
        Err(Error::Future { requested: 2, current: 1 }) => {}
        other => panic!("{other:?}"),
    }
    let waiter = {
        let f = Arc::clone(&f);
        tokio::spawn(async move { f.pods.fresh(2, deadline()).await })
    };
    f.put("/r/nodes/x", "other").await;
    soon("the waiter", waiter).await.unwrap().unwrap();

    let mut watcher = f.pods.watch("/r/pods/", 2).unwrap();
    f.put("/r/pods/a/1", "n1|last").await;
    f.store.close();
    assert_eq!(soon("the last event", watcher.next()).await.unwrap().unwrap().revision, 3);
    assert!(soon("the end", watcher.next()).await.is_none());
    assert!(matches!(f.pods.fresh(9, deadline()).await, Err(Error::Closed)));
    assert!(matches!(f.store.commit("/x", Compare::Any, put("")).await, Err(Error::Closed)));
}
