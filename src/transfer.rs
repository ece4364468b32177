//! Everything in a store, elsewhere: `migrate-store`, `backup`, `restore`.
//!
//! Whatever is written gets a revision above all that the source ever gave: a client that remembers a resourceVersion of
//! the old store never meets it again for something else.

use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use skiff_apiserver::backup::{self, Backup};
use skiff_storage::embedded::OpenError;
use skiff_storage::{Compare, Op, Payload, Revision, Store};

use crate::cli::{BackupArgs, EtcdArgs, MigrateArgs};
use crate::store::{Opened, Place};

/// Writes on their way at once.
const WIDTH: usize = 256;
/// The key whose writes only make revisions. It is deleted at the end.
const FILLER: &str = "/skiff.filler";
/// The part of a data directory that a backup holds: without the keys, no token and no certificate would be valid again.
const KEYS: &str = "pki";

/// `skiff migrate-store`.
pub(crate) async fn migrate(args: MigrateArgs) -> anyhow::Result<()> {
    ensure!(args.from != args.to, "both are the same store");
    let etcd = EtcdArgs {
        etcd_cafile: args.etcd_cafile,
        etcd_certfile: args.etcd_certfile,
        etcd_keyfile: args.etcd_keyfile,
        etcd_prefix: args.etcd_prefix,
        ..EtcdArgs::default()
    };
    let from = open_existing(&args.from, &etcd).await?;
    let source = read(&*from.store()).await.with_context(|| format!("cannot read {}", args.from))?;
    from.close();
    let to = Opened::open(&args.to, &etcd).await?;
    let revision = fill(&*to.store(), &source).await.with_context(|| format!("cannot fill {}", args.to))?;
    to.close();
    println!(
        "{} objects are in {}, which is at revision {revision} now (they were at {})",
        source.entries.len(),
        args.to,
        source.revision
    );
    Ok(())
}

/// `skiff backup`.
pub(crate) async fn backup(args: BackupArgs) -> anyhow::Result<()> {
    let place = Place::of(&args.data_dir, &args.etcd);
    let mut made = match open_existing(&place, &args.etcd).await {
        Ok(opened) => {
            let made = read(&*opened.store()).await?;
            opened.close();
            made
        }
        Err(e) if matches!(e.downcast_ref(), Some(OpenError::InUse { .. })) => ask(&args.data_dir).await?,
        Err(e) => return Err(e),
    };
    made.files = keys(&args.data_dir)?;
    write_private(&args.file, &made.encode()?)?;
    println!("{} objects as of revision {} are in {}", made.entries.len(), made.revision, args.file.display());
    Ok(())
}

/// `skiff restore`.
pub(crate) async fn restore(args: BackupArgs) -> anyhow::Result<()> {
    let bytes = std::fs::read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let made = Backup::decode(&bytes).with_context(|| format!("{} is no whole backup", args.file.display()))?;
    let place = Place::of(&args.data_dir, &args.etcd);
    if let Place::Embedded(dir) = &place {
        ensure!(!dir.join("store").exists(), "{} has a store already: restore into an empty directory", dir.display());
    }
    crate::up::make_private(&args.data_dir)?;
    for (name, bytes) in &made.files {
        put_back(&args.data_dir, name, bytes)?;
    }
    let opened = Opened::open(&place, &args.etcd).await?;
    let revision = fill(&*opened.store(), &made).await?;
    opened.close();
    println!("{} objects are in {place}, which is at revision {revision} now", made.entries.len());
    Ok(())
}

/// Opens a store that must be there; opening an embedded one would make it.
async fn open_existing(place: &Place, etcd: &EtcdArgs) -> anyhow::Result<Opened> {
    if let Place::Embedded(dir) = place {
        ensure!(dir.join("store").exists(), "there is no store in {}", dir.display());
    }
    // Whoever only reads takes no part in forgetting.
    Opened::open(place, &EtcdArgs { etcd_compaction_interval: 0, ..etcd.clone() }).await
}

/// Everything, as of one revision.
async fn read(store: &dyn Store) -> anyhow::Result<Backup> {
    let range = store.range("/", None, 0, 0).await?;
    let entries = range.entries.into_iter().map(|e| (e.key.to_string(), e.revision, e.value.clone())).collect();
    Ok(Backup { revision: range.revision, files: vec![], entries })
}

/// What the server that has the data directory says.
async fn ask(data_dir: &Path) -> anyhow::Result<Backup> {
    let client = crate::components::client(&data_dir.join("kubeconfig/admin.yaml")).await?;
    let request = http::Request::get(backup::PATH).body(vec![])?;
    let text = client.request_text(request).await.context("the server that uses the data directory does not answer")?;
    Ok(Backup::decode(text.as_bytes())?)
}

/// Writes everything into an empty store, above every revision of the source; answers the last revision.
async fn fill(store: &dyn Store, source: &Backup) -> anyhow::Result<Revision> {
    ensure!(store.range("/", None, 0, 1).await?.entries.is_empty(), "it is not empty");
    raise(store, source.revision).await?;
    stream::iter(&source.entries)
        .map(|(key, revision, value)| async move {
            let op = Op::Put(backup::payload(value, *revision));
            store.commit(key, Compare::Absent, op).await.with_context(|| format!("cannot write {key}"))
        })
        .buffer_unordered(WIDTH)
        .try_for_each(|_| async { Ok(()) })
        .await?;
    let there = store.range("/", None, 0, 0).await?;
    let (found, wanted) = (there.entries.len(), source.entries.len());
    ensure!(found == wanted, "{found} objects arrived of {wanted}: does a server run on it?");
    Ok(there.revision)
}

/// Moves a store's revision to `to` at least.
async fn raise(store: &dyn Store, to: Revision) -> anyhow::Result<()> {
    let mut at = store.revision().await?;
    if at >= to {
        return Ok(());
    }
    tracing::info!(from = at, to, "raising the revision");
    while at < to {
        let writes = (to - at).min(100_000);
        let fill = || store.commit(FILLER, Compare::Any, Op::Put(Payload::plain("")));
        let done = stream::iter(0..writes).map(|_| fill()).buffer_unordered(WIDTH);
        done.try_for_each(|_| async { Ok(()) }).await?;
        at = store.revision().await?;
    }
    store.commit(FILLER, Compare::Any, Op::Delete).await?;
    store.compact(store.revision().await?).await?;
    Ok(())
}

fn keys(data_dir: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let dir = data_dir.join(KEYS);
    let mut out = vec![];
    let entries = std::fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        if let (true, Some(name)) = (path.is_file(), path.file_name().and_then(|n| n.to_str())) {
            let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            out.push((format!("{KEYS}/{name}"), bytes));
        }
    }
    out.sort();
    Ok(out)
}

/// Writes one of the keys; one that is there already must be the same.
fn put_back(data_dir: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let plain: Vec<_> = Path::new(name).components().collect();
    if !matches!(plain[..], [Component::Normal(dir), Component::Normal(_)] if dir == KEYS) {
        bail!("the backup has a file {name}, which is none of a data directory's keys");
    }
    let path = data_dir.join(name);
    match std::fs::read(&path) {
        Ok(there) if there == bytes => return Ok(()),
        Ok(_) => bail!("{} is another cluster's: restore into an empty directory", path.display()),
        Err(_) => {}
    }
    crate::up::make_private(&data_dir.join(KEYS))?;
    write_private(&path, bytes)
}

/// Writes a file that only its owner reads, as a whole or not at all.
fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    let write = || {
        let mut file = std::fs::File::options().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use skiff_storage::embedded::{Embedded, Options};

    fn value(name: &str, revision: Revision) -> String {
        let meta = format!(r#"{{"resourceVersion":"{revision}","name":"{name}"}}"#);
        format!(r#"{{"kind":"X","apiVersion":"v1","metadata":{meta}}}"#)
    }

    /// What is restored stands above the backup's revision, says so in itself, and is otherwise the same.
    #[tokio::test]
    async fn revisions_only_rise() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path(), Options::default()).unwrap();
        let entries =
            [("a", 3), ("b", 699)].map(|(name, at)| (format!("/registry/x/{name}"), at, value(name, at).into()));
        let source = Backup { revision: 700, files: vec![], entries: entries.into() };
        let last = fill(&store, &source).await.unwrap();
        assert!(last > 700);
        let made = read(&store).await.unwrap();
        assert_eq!(made.entries.len(), 2);
        for ((key, revision, bytes), (was, ..)) in made.entries.iter().zip(&source.entries) {
            assert_eq!(key, was);
            assert!(*revision > 700);
            assert_eq!(*bytes, value(key.rsplit('/').next().unwrap(), *revision));
        }
        assert!(fill(&store, &source).await.is_err(), "not empty");
    }

    #[test]
    fn only_keys_are_put_back() {
        let dir = tempfile::tempdir().unwrap();
        for wrong in ["pki", "../pki/ca.crt", "/pki/ca.crt", "pki/../x", "kubeconfig/admin.yaml", "pki/a/b"] {
            assert!(put_back(dir.path(), wrong, b"x").is_err(), "{wrong}");
        }
        put_back(dir.path(), "pki/ca.crt", b"x").unwrap();
        put_back(dir.path(), "pki/ca.crt", b"x").unwrap();
        assert!(put_back(dir.path(), "pki/ca.crt", b"y").is_err(), "another's");
        assert_eq!(keys(dir.path()).unwrap(), [("pki/ca.crt".to_owned(), b"x".to_vec())]);
    }
}
