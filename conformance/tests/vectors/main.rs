//! Recorded exchanges with upstream's API server (v1.37.0), played against ours.
//!
//! Each file in `conformance/vectors` is a scenario: requests, and what upstream answered. They are played in process,
//! through the same gates as a connection, on a store in a temporary directory. What differs from run to run is replaced
//! on both sides (see `normal`). Scenarios known to differ are listed in `known-differences.txt` with nothing but their
//! names (the reasons are in docs/compatibility.md): one that is not listed must pass, and one that is listed must fail,
//! so that the list stays true.
//!
//!     cargo test -p skiff-conformance --test vectors [-- AREA or AREA/NAME ... [--show]]
//!
//! `SKIFF_UPDATE=1` writes the list anew from what differs now. `--show` also prints the first difference of each scenario that is known to differ.

mod normal;
mod play;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::Value;
use skiff_apiserver::Server;
use skiff_apiserver::pki::Pki;
use skiff_storage::embedded::{Embedded, Options};

#[tokio::main]
async fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let show = std::env::args().any(|a| a == "--show");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let known: BTreeSet<String> = std::fs::read_to_string(root.join("known-differences.txt"))
        .expect("the list of known differences is part of the tree")
        .lines()
        .filter(|l| !l.is_empty() && !l.starts_with('#'))
        .map(str::to_owned)
        .collect();
    let (server, _dir) = fresh().await;
    let (mut passed, mut failed, mut differing) = (0, 0, 0);
    let mut tasks = tokio::task::JoinSet::new();
    let mut areas: Vec<_> = std::fs::read_dir(root.join("vectors"))
        .expect("the vectors are part of the tree")
        .map(|e| e.expect("a readable folder").path())
        .filter(|p| p.is_dir())
        .collect();
    areas.sort();
    for area in areas {
        let (shared, wanted) = (server.clone(), wanted.clone());
        tasks.spawn(async move {
            // What definitions of other areas add to the API must not be seen where the whole of it is asked for.
            if area.ends_with("discovery") {
                let (server, _dir) = fresh().await;
                return play_area(&server, &area, &wanted).await;
            }
            play_area(&shared, &area, &wanted).await
        });
    }
    let mut results = vec![];
    while let Some(r) = tasks.join_next().await {
        results.extend(r.expect("a player does not panic"));
    }
    results.sort();
    if std::env::var_os("SKIFF_UPDATE").is_some_and(|v| v == "1") && wanted.is_empty() {
        write_list(root, &results);
        return ExitCode::SUCCESS;
    }
    for (name, difference) in results {
        match (difference, known.contains(&name)) {
            (None, false) => passed += 1,
            (Some(d), true) => {
                differing += 1;
                if show {
                    println!("differs {name}: {d}");
                }
            }
            (Some(d), false) => {
                failed += 1;
                println!("FAIL {name}: {d}");
            }
            (None, true) => {
                failed += 1;
                println!("FAIL {name}: passes now: take it out of known-differences.txt");
            }
        }
    }
    println!("known differences: {differing}");
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The list of known differences, from the results of a whole run.
fn write_list(root: &Path, results: &[(String, Option<String>)]) {
    let mut text = "# Scenarios that differ from upstream: the reasons are in docs/compatibility.md. A scenario that passes must not be here.\n".to_owned();
    for (name, _) in results.iter().filter(|(_, difference)| difference.is_some()) {
        text += name;
        text.push('\n');
    }
    std::fs::write(root.join("known-differences.txt"), text).expect("the list can be written");
}

async fn fresh() -> (Server, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let store = Embedded::open(dir.path(), Options::default()).expect("an empty store");
    // Keys as a cluster keeps them: those that live in memory alone are of another kind.
    let pki = Pki::load_or_create(&dir.path().join("pki")).expect("keys");
    let server = Server::builder(Arc::new(store)).pki(Arc::new(pki)).start().await;
    (server.expect("a server on an empty store"), dir)
}

/// Plays the scenarios of one area one after the other; answers each name with its first difference.
async fn play_area(server: &Server, area: &Path, wanted: &[String]) -> Vec<(String, Option<String>)> {
    let mut files: Vec<_> = std::fs::read_dir(area)
        .expect("a readable folder")
        .map(|e| e.expect("a readable file").path())
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    let area_name = area.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut out = vec![];
    for file in files {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let name = format!("{area_name}/{stem}");
        if !wanted.is_empty() && !wanted.iter().any(|w| *w == area_name || *w == name) {
            continue;
        }
        let text = std::fs::read(&file).expect("a readable scenario");
        let scenario: Value = serde_json::from_slice(&text).expect("a scenario is JSON");
        let bodies = play::bodies(&text);
        out.push((name, play::scenario(server, &scenario, &bodies).await));
    }
    out
}
