//! The embedded store: the contract, restarts, and faults of the disk.

use std::sync::Arc;
use std::time::Duration;

use crate::suite::{self, put, show, soon, take};
use futures::StreamExt;
use skiff_storage::embedded::{OpenError, Options};
use skiff_storage::{Compare, Embedded, Error, Op, Store};

fn open(dir: &std::path::Path) -> Embedded {
    Embedded::open(dir, Options::default()).expect("open")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn contract() {
    let dirs = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicUsize::new(0);
    suite::run(|| async {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Arc::new(open(&dirs.path().join(n.to_string())))
    })
    .await;
}

#[tokio::test]
async fn a_second_process_and_a_broken_directory_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let second = Embedded::open(dir.path(), Options::default()).expect_err("in use");
    assert!(matches!(second, OpenError::InUse { .. }));
    assert!(second.to_string().starts_with("another skiff uses this data directory"), "{second}");
    drop(store);
    open(dir.path()).close();

    let file = dir.path().join("skiff.redb");
    std::fs::write(&file, b"this is no database, whatever its name says").unwrap();
    let broken = Embedded::open(dir.path(), Options::default()).expect_err("not a database");
    assert!(
        matches!(broken, OpenError::Corrupt { .. } | OpenError::Io { .. } | OpenError::Database { .. }),
        "{broken:?}"
    );
    assert!(broken.to_string().contains("skiff.redb"), "{broken}");

    let not_a_dir = dir.path().join("file");
    std::fs::write(&not_a_dir, b"").unwrap();
    assert!(matches!(Embedded::open(&not_a_dir, Options::default()), Err(OpenError::Io { .. })));
}

#[tokio::test]
async fn a_restart_keeps_state_history_and_revision() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for n in 0..40 {
        let op = if n % 5 == 4 { Op::Delete } else { put(&n.to_string()) };
        store.commit(&format!("/a/{}", n % 3), Compare::Any, op).await.unwrap();
    }
    let head = store.revision().await.unwrap();
    store.compact(10).await.unwrap();
    let mut watch = store.watch("/a/", 10).await.unwrap();
    let before: Vec<String> = take(&mut watch, usize::try_from(head).unwrap() - 10).await.iter().map(show).collect();
    let present = store.range("/", None, 0, 0).await.unwrap();
    drop(store);
    assert!(soon("the end of the watch", watch.next()).await.is_none(), "a watch ends with its store");

    let store = open(dir.path());
    assert_eq!(store.revision().await.unwrap(), head);
    assert_eq!(store.range("/", None, 0, 0).await.unwrap().entries, present.entries);
    let mut watch = store.watch("/a/", 10).await.unwrap();
    let after: Vec<String> = take(&mut watch, before.len()).await.iter().map(show).collect();
    assert_eq!(after, before);
    assert!(matches!(store.watch("/a/", 9).await.map(|_| ()), Err(Error::Compacted { oldest: 10, .. })));

    // Forget everything; the revision must not be given again.
    store.compact(head).await.unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.revision().await.unwrap(), head);
    assert_eq!(store.commit("/a/new", Compare::Absent, put("")).await.unwrap(), head + 1);
}

#[tokio::test]
async fn history_is_bounded_by_count_bytes_and_age() {
    let base = Options::default();
    let cases = [
        ("count", Options { history_changes: 50, ..base }),
        ("bytes", Options { history_bytes: 50 * 1000, ..base }),
        ("age", Options { history_age: Duration::from_millis(50), ..base }),
    ];
    for (what, options) in cases {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path(), options).unwrap();
        for _ in 0..200 {
            store.commit("/a/x", Compare::Any, put(&"x".repeat(1000))).await.unwrap();
        }
        // Age works without further writes; the others were applied with the writes, a thirty-second part and one
        // batch late at most.
        soon(what, async {
            while store.stats().history_changes > 53 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let stats = store.stats();
        assert!(stats.compacted >= 147, "{what}: {stats:?}");
        assert!(matches!(store.watch("/a/", 100).await.map(|_| ()), Err(Error::Compacted { .. })), "{what}");
        assert!(store.watch("/a/", stats.revision).await.is_ok(), "{what}: the present is always watchable");
    }
}
