//! `kill -9` in the middle of a storm of writes: nothing that was acknowledged is lost, nothing else is there.
//!
//! The child is this test program again. It reports acknowledgements on its standard error, a pipe, so a report that
//! arrived here was certainly sent after the answer.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use futures::StreamExt;
use skiff_storage::embedded::Options;
use skiff_storage::{Compare, Embedded, Error, Op, Store};

use crate::suite::{put, soon};

const WRITERS: usize = 8;
const ROUNDS: usize = 20;
const DIR: &str = "SKIFF_CRASH_DIR";
const STARTS: &str = "SKIFF_CRASH_STARTS";

fn options() -> Options {
    // Small, so that history is being forgotten all the time.
    Options { history_changes: 300, ..Options::default() }
}

/// The `n`th write of a writer: key and value, or a deletion. Values are long enough to need several pages.
fn step(writer: usize, n: u64) -> (String, Option<String>) {
    let key = format!("/w/{writer}/{}", n % 5);
    (key, (n % 7 != 3).then(|| format!("{n}:{}", "x".repeat(500 + usize::try_from(n % 11).unwrap() * 300))))
}

/// What a writer's keys hold after its first `count` writes.
fn after(writer: usize, count: u64) -> BTreeMap<String, String> {
    let mut state = BTreeMap::new();
    // Five keys in turn: older writes are overwritten, except by deletions of the same key, which are steps too.
    for n in count.saturating_sub(10)..count {
        match step(writer, n) {
            (key, Some(value)) => state.insert(key, value),
            (key, None) => state.remove(&key),
        };
    }
    state
}

#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let starts: Vec<u64> = std::env::var(STARTS).unwrap().split(',').map(|n| n.parse().unwrap()).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    let store = Arc::new(Embedded::open(dir, options()).unwrap());
    let threads: Vec<_> = starts
        .into_iter()
        .enumerate()
        .map(|(writer, start)| {
            let (store, handle) = (Arc::clone(&store), runtime.handle().clone());
            std::thread::spawn(move || handle.block_on(storm(&store, writer, start)))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

async fn storm(store: &Embedded, writer: usize, start: u64) {
    let report = |line: String| std::io::stderr().write_all(line.as_bytes()).unwrap();
    // Ends by itself should the parent die.
    for n in start..start + 200_000 {
        let (key, value) = step(writer, n);
        let op = value.map_or(Op::Delete, |v| put(&v));
        let revision = store.commit(&key, Compare::Any, op).await.unwrap();
        report(format!("w {writer} {n} {revision}\n"));
        if n % 3 == 0 {
            // All writers count together on one key; a lost race is not an acknowledgement.
            let entry = store.get("/count").await.unwrap();
            let (compare, count) = entry.map_or((Compare::Absent, 0), |e| {
                (Compare::At(e.revision), std::str::from_utf8(&e.value).unwrap().parse::<u64>().unwrap())
            });
            match store.commit("/count", compare, put(&(count + 1).to_string())).await {
                Ok(revision) => report(format!("c {} {revision}\n", count + 1)),
                Err(Error::Conflict { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let mut starts = vec![0u64; WRITERS];
    let (mut highest, mut count) = (0u64, 0u64);
    let mut acknowledged = 0;
    for round in 0..ROUNDS {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["crash::child", "--exact", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path())
            .env(STARTS, starts.iter().map(u64::to_string).collect::<Vec<_>>().join(","))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut reports = BufReader::new(process.stderr.take().unwrap()).lines();
        // A different moment each round, the first ones within the first batches.
        let moment = 1 + round * round * 8;
        let mut seen = 0;
        let mut acked: Vec<Option<u64>> = vec![None; WRITERS];
        let mut take = |line: String| {
            let mut words = line.split(' ');
            let kind = words.next().unwrap_or_default().to_owned();
            let numbers: Vec<u64> = words.filter_map(|w| w.parse().ok()).collect();
            match (kind.as_str(), &numbers[..]) {
                ("w", [writer, n, revision]) => {
                    acked[usize::try_from(*writer).unwrap()] = Some(*n);
                    highest = highest.max(*revision);
                }
                ("c", [value, revision]) => {
                    count = count.max(*value);
                    highest = highest.max(*revision);
                }
                _ => panic!("the child said: {line}"),
            }
        };
        while seen < moment {
            take(reports.next().expect("the child ended by itself").unwrap());
            seen += 1;
        }
        process.kill().unwrap();
        process.wait().unwrap();
        // What was in the pipe counts too; the last line may be cut.
        for line in
            reports.map_while(Result::ok).filter(|l| l.split(' ').count() == if l.starts_with('w') { 4 } else { 3 })
        {
            take(line);
            seen += 1;
        }
        acknowledged += seen;
        starts = check(dir.path(), &starts, &acked, highest, count).await;
    }
    eprintln!("{ROUNDS} kills, {acknowledged} acknowledged writes, all there");
}

/// Opens what the child left; answers where each writer goes on.
async fn check(dir: &Path, starts: &[u64], acked: &[Option<u64>], highest: u64, count: u64) -> Vec<u64> {
    let store = Embedded::open(dir, options()).expect("a killed store opens");
    let head = store.revision().await.unwrap();
    assert!(head >= highest, "revision {head} is behind the acknowledged {highest}");
    let mut next = Vec::new();
    for (writer, start) in starts.iter().enumerate() {
        let range = store.range(&format!("/w/{writer}/"), None, 0, 0).await.unwrap();
        let found: BTreeMap<String, String> =
            range.entries.iter().map(|e| (e.key.to_string(), String::from_utf8(e.value.to_vec()).unwrap())).collect();
        let done = acked[writer].map_or(*start, |n| n + 1);
        // One write may have been in flight: it is there as a whole or not at all.
        let at = (done..=done + 1).find(|n| after(writer, *n) == found);
        // A deletion of what is absent changes nothing, so the state may fit both; either is right.
        next.push(at.unwrap_or_else(|| panic!("writer {writer} after {done}: {:?}", found.keys())));
    }
    let counted = store.get("/count").await.unwrap();
    let counted: u64 = counted.map_or(0, |e| std::str::from_utf8(&e.value).unwrap().parse().unwrap());
    // Each writer may have had one count answered and not yet reported.
    let most = count + WRITERS as u64;
    assert!((count..=most).contains(&counted), "counted {counted}, acknowledged {count}");

    // The history is whole and leads to the present.
    let stats = store.stats();
    let mut watch = store.watch("/", stats.compacted).await.unwrap();
    let mut last = stats.compacted;
    for _ in 0..stats.history_changes {
        let change = soon("the history", watch.next()).await.unwrap().unwrap();
        assert_eq!(change.revision, last + 1, "every revision is one change");
        last = change.revision;
    }
    assert_eq!(last, head);
    next
}
