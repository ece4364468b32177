//! Which store: the embedded one in a data directory, or an etcd cluster.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use skiff_storage::Store;
use skiff_storage::embedded::{self, Embedded, OpenError};
use skiff_storage::etcd::{self, Etcd};
use tokio::sync::watch;

use crate::cli::EtcdArgs;

/// Where a store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In this data directory.
    Embedded(PathBuf),
    /// In the etcd cluster with these members.
    Etcd(Vec<String>),
}

impl Place {
    /// What the settings say.
    pub(crate) fn of(data_dir: &Path, etcd: &EtcdArgs) -> Self {
        if etcd.used() { Self::Etcd(etcd.etcd_servers.clone()) } else { Self::Embedded(data_dir.to_owned()) }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("embedded", dir)) if !dir.is_empty() => Ok(Self::Embedded(dir.into())),
            Some(("etcd", urls)) if !urls.is_empty() => Ok(Self::Etcd(urls.split(',').map(str::to_owned).collect())),
            _ => Err("a store is embedded:DATA_DIR or etcd:URL,URL...".to_owned()),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Embedded(dir) => write!(f, "{}", dir.display()),
            Self::Etcd(urls) => write!(f, "etcd at {}", urls.join(",")),
        }
    }
}

/// A store that is open.
pub(crate) enum Opened {
    /// In this process.
    Embedded(Arc<Embedded>, PathBuf),
    /// Elsewhere.
    Etcd(Arc<Etcd>),
}

impl Opened {
    /// Opens it.
    pub(crate) async fn open(place: &Place, etcd: &EtcdArgs) -> anyhow::Result<Self> {
        match place {
            Place::Embedded(dir) => Ok(Self::Embedded(Arc::new(embedded(dir)?), dir.clone())),
            Place::Etcd(urls) => {
                let mut options = etcd::Options::new(urls.clone());
                options.tls = certificates(etcd)?;
                options.root.clone_from(&etcd.etcd_prefix);
                options.compact_every =
                    Some(Duration::from_secs(etcd.etcd_compaction_interval)).filter(|every| !every.is_zero());
                Ok(Self::Etcd(Etcd::open(options).await.context("check --etcd-servers and its certificates")?))
            }
        }
    }

    /// The store.
    pub(crate) fn store(&self) -> Arc<dyn Store> {
        match self {
            Self::Embedded(store, _) => Arc::<Embedded>::clone(store),
            Self::Etcd(store) => Arc::<Etcd>::clone(store),
        }
    }

    /// Becomes `Some(why)` when it can be used no more.
    pub(crate) fn failed(&self) -> watch::Receiver<Option<String>> {
        match self {
            Self::Embedded(store, _) => store.failed(),
            Self::Etcd(store) => store.failed(),
        }
    }

    /// What to do when it has failed.
    pub(crate) fn advice(&self, why: &str) -> String {
        match self {
            Self::Embedded(_, dir) => format!(
                "the store cannot write any more: {why}. Free space on the disk of {} and start again",
                dir.display()
            ),
            Self::Etcd(_) => format!("etcd was out of reach for too long: {why}. Start again"),
        }
    }

    /// Writes what waits.
    pub(crate) fn close(&self) {
        match self {
            Self::Embedded(store, _) => store.close(),
            Self::Etcd(store) => store.close(),
        }
    }
}

fn embedded(dir: &Path) -> anyhow::Result<Embedded> {
    Embedded::open(dir.join("store"), embedded::Options::default()).map_err(|e| match e {
        OpenError::InUse { .. } => anyhow::Error::new(e).context(
            "another skiff uses this data directory: it is running already; stop it, or choose another with --data-dir",
        ),
        e => anyhow::Error::new(e)
            .context("the data cannot be read: restore a backup, or start empty with another --data-dir"),
    })
}

fn certificates(etcd: &EtcdArgs) -> anyhow::Result<Option<etcd::Tls>> {
    let read =
        |path: &PathBuf| std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()));
    let Some(ca) = &etcd.etcd_cafile else { return Ok(None) };
    let identity = match (&etcd.etcd_certfile, &etcd.etcd_keyfile) {
        (Some(cert), Some(key)) => Some((read(cert)?, read(key)?)),
        _ => None,
    };
    Ok(Some(etcd::Tls { ca: read(ca)?, identity }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        assert_eq!("embedded:/var/lib/skiff".parse(), Ok(Place::Embedded("/var/lib/skiff".into())));
        let etcd = Place::Etcd(vec!["https://a:2379".into(), "https://b:2379".into()]);
        assert_eq!("etcd:https://a:2379,https://b:2379".parse(), Ok(etcd));
        for wrong in ["", "embedded", "embedded:", "etcd:", "/var/lib/skiff"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }
}
