//! A full disk answers errors and loses nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api as Objects, DeleteParams, ListParams, PostParams};

use crate::process::Api;

/// Size of the file system: small, and large enough for ext4's own tables.
const SIZE: u64 = 64 << 20;
/// Objects of 100 KB that surely do not fit.
const TOO_MANY: usize = 1000;

fn run(program: &str, args: &[&str]) -> Result<()> {
    let o = Command::new(program).args(args).output().with_context(|| format!("cannot run {program}"))?;
    ensure!(o.status.success(), "{program} {}: {}", args.join(" "), String::from_utf8_lossy(&o.stderr));
    Ok(())
}

/// A file system in a file. Unmounted when dropped.
struct Loop(PathBuf);

impl Loop {
    fn mount(dir: &Path) -> Result<Self> {
        let (image, at) = (dir.join("image"), dir.join("mounted"));
        std::fs::File::create(&image)?.set_len(SIZE)?;
        std::fs::create_dir(&at)?;
        let (i, a) = (image.to_string_lossy(), at.to_string_lossy());
        run("mkfs.ext4", &["-q", "-F", &i])?;
        run("mount", &["-o", "loop", &i, &a])?;
        Ok(Self(at))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Err(e) = run("umount", &[&self.0.to_string_lossy()]) {
            eprintln!("left mounted: {e:#}");
        }
    }
}

fn large(n: usize) -> ConfigMap {
    let mut m = ConfigMap::default();
    m.metadata.name = Some(format!("m{n}"));
    m.data = Some([("v".to_owned(), "x".repeat(100_000))].into());
    m
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_answers_errors_and_loses_nothing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let disk = Loop::mount(dir.path())?;
    let mut server = Api::start(&disk.0.join("data"), &dir.path().join("log")).await?;
    let client = server.client().await?;
    let objects = Objects::<ConfigMap>::namespaced(client, "default");
    let mut stored = 0;
    let refusal = loop {
        match objects.create(&PostParams::default(), &large(stored)).await {
            Ok(_) => stored += 1,
            Err(e) => break e,
        }
        ensure!(stored < TOO_MANY, "the disk never fills");
    };
    let kube::Error::Api(status) = refusal else { anyhow::bail!("no answer but {refusal}: {}", server.said()) };
    ensure!(status.code == 507 && status.message.contains("the disk is full"), "{status:?}");
    // The refused write left nothing, reads go on, deletions go on.
    ensure!(objects.get_opt(&format!("m{stored}")).await?.is_none());
    ensure!(objects.list(&ListParams::default()).await?.items.len() == stored);
    objects.delete("m0", &DeleteParams::default()).await?;
    ensure!(server.alive()?, "the server ended: {}", server.said());
    server.kill()?;
    server.restart().await?;
    let left = objects.list(&ListParams::default()).await?.items;
    ensure!(left.len() == stored - 1, "{} of {} objects are left", left.len(), stored - 1);
    ensure!(left.iter().all(|m| m.data.as_ref().is_some_and(|d| d["v"].len() == 100_000)));
    // The mount must be idle before it goes.
    server.kill()?;
    drop(disk);
    Ok(())
}
