//! Stores that move: embedded to etcd and back, and through a file.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api as Objects, DeleteParams, ListParams, PostParams};
use serde_json::json;

use crate::etcd_cluster::{Cluster, available};
use crate::process::{Api, run};
use crate::{copy_keys, flags};

/// The config maps by name: uid, data, and the resourceVersion.
type Seen = BTreeMap<String, (String, serde_json::Value, u64)>;

async fn seen(api: &Api) -> Result<Seen> {
    // Those of the other namespaces are the server's: they say where it is.
    let maps: Objects<ConfigMap> = Objects::default_namespaced(api.client().await?);
    let list = maps.list(&ListParams::default()).await?;
    list.items
        .into_iter()
        .map(|m| {
            let (meta, data) = (m.metadata, serde_json::to_value(m.data)?);
            let version = meta.resource_version.context("no version")?.parse()?;
            anyhow::Ok((meta.name.unwrap_or_default(), (meta.uid.unwrap_or_default(), data, version)))
        })
        .collect()
}

async fn make(api: &Api, from: usize, to: usize) -> Result<()> {
    let maps: Objects<ConfigMap> = Objects::default_namespaced(api.client().await?);
    for n in from..to {
        let map = serde_json::from_value(json!({"metadata": {"name": format!("m{n}")}, "data": {"n": "ü".repeat(n)}}))?;
        maps.create(&PostParams::default(), &map).await?;
    }
    maps.delete(&format!("m{from}"), &DeleteParams::default()).await?;
    Ok(())
}

/// The same objects; every version above all that was ever given before.
fn moved(before: &Seen, after: &Seen) -> Result<()> {
    ensure!(before.keys().eq(after.keys()), "{:?}\n{:?}", before.keys(), after.keys());
    for (name, (uid, data, _)) in before {
        ensure!((uid, data) == (&after[name].0, &after[name].1), "{name} is another one");
    }
    let highest = before.values().map(|v| v.2).max().unwrap_or(0);
    for (key, (.., version)) in after {
        ensure!(*version > highest, "{key} is at {version}, and {highest} was given before");
    }
    Ok(())
}

fn skiff(args: &[&str]) -> Result<()> {
    let o = run(args)?;
    ensure!(o.status.success(), "`skiff {}`: {}", args.join(" "), String::from_utf8_lossy(&o.stderr));
    Ok(())
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn there_and_back() -> Result<()> {
    if !available() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (one, two, log) = (dir.path().join("one"), dir.path().join("two"), dir.path().join("log"));
    let cluster = Cluster::start(1, true);
    let mut api = Api::start(&one, &log).await?;
    make(&api, 0, 40).await?;
    let before = seen(&api).await?;
    let embedded = format!("embedded:{}", text(&one));
    let etcd = format!("etcd:{}", cluster.urls().join(","));
    let flags = flags(&cluster);
    let certificates: Vec<&str> = flags[1..].iter().map(String::as_str).collect();
    let busy = run(&[&["migrate-store", "--from", &embedded, "--to", &etcd], &certificates[..]].concat())?;
    ensure!(!busy.status.success(), "a store that is in use was read");
    api.kill()?;
    skiff(&[&["migrate-store", "--from", &embedded, "--to", &etcd], &certificates[..]].concat())?;
    let twice = run(&[&["migrate-store", "--from", &embedded, "--to", &etcd], &certificates[..]].concat())?;
    ensure!(!twice.status.success(), "a store that is not empty was filled");

    let mut api = Api::start_with(&one, &log, &flags).await?;
    let there = seen(&api).await?;
    moved(&before, &there)?;
    make(&api, 40, 60).await?;
    let more = seen(&api).await?;
    api.kill()?;
    copy_keys(&one, &two)?;
    let back = format!("embedded:{}", text(&two));
    skiff(&[&["migrate-store", "--from", &etcd, "--to", &back], &certificates[..]].concat())?;
    let api = Api::start(&two, &log).await?;
    moved(&more, &seen(&api).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn through_a_file() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (one, two, log) = (dir.path().join("one"), dir.path().join("two"), dir.path().join("log"));
    let (file, later) = (dir.path().join("backup"), dir.path().join("later"));
    let mut api = Api::start(&one, &log).await?;
    make(&api, 0, 40).await?;
    let before = seen(&api).await?;
    // While it runs, and again when it does not.
    skiff(&["backup", &text(&file), "--data-dir", &text(&one)])?;
    make(&api, 50, 60).await?;
    let more = seen(&api).await?;
    api.kill()?;
    skiff(&["backup", &text(&later), "--data-dir", &text(&one)])?;
    let full = run(&["restore", &text(&file), "--data-dir", &text(&one)])?;
    ensure!(!full.status.success(), "a store that is there was filled");

    skiff(&["restore", &text(&file), "--data-dir", &text(&two)])?;
    let mut api = Api::start(&two, &log).await?;
    moved(&before, &seen(&api).await?)?;
    api.kill()?;
    std::fs::remove_dir_all(two.join("store"))?;
    skiff(&["restore", &text(&later), "--data-dir", &text(&two)])?;
    let api = Api::start(&two, &log).await?;
    moved(&more, &seen(&api).await?)?;

    let mut cut = std::fs::read(&file)?;
    cut.truncate(cut.len() / 2);
    std::fs::write(&file, cut)?;
    let refused = run(&["restore", &text(&file), "--data-dir", &text(&dir.path().join("three"))])?;
    ensure!(!refused.status.success() && !dir.path().join("three").exists(), "half a backup was restored");
    Ok(())
}
