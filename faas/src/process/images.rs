//! Images of functions that a node does not have: built on the gateway's node, in no registry, handed over when a pod here needs one.
//!
//! The node asks for nothing but by name: it tells the gateway, which watches it, what is wanted, and the gateway brings the
//! engine's archive of it, or says why not. So a node needs no right to read images of others, and gets only what the gateway has
//! seen a function's pod on this node for. What was not asked for is not taken.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures::StreamExt as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use super::host::Host;
use super::job::Told;
use crate::build::{Docker, Engine as _, PREFIX};

/// Most bytes of an archive.
pub(crate) const LIMIT: u64 = 16 << 30;
/// Time for an image to be handed over.
pub(crate) const TIME: Duration = Duration::from_secs(600);
/// Time for the gateway to begin, or to say that it does not.
const BEGIN: Duration = Duration::from_secs(30);
/// A sender that is silent for this long is gone.
const STALL: Duration = Duration::from_secs(30);
/// Time for the engine to say which images it has, and to delete some.
const TIDY: Duration = Duration::from_secs(120);
/// Images that are wanted at a time.
const WANTED: usize = 64;
/// Images that are taken in at a time.
const LOADS: usize = 1;

/// Whether a text is the tag of an image that was built here.
pub(super) fn is_digest(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// How far an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// The gateway was told.
    Asked,
    /// It comes.
    Coming,
    /// It is here.
    Here,
    /// It does not come.
    Not(String),
}

/// The wish of who asked first.
struct First<'a>(&'a Wanted, &'a str);

impl Drop for First<'_> {
    fn drop(&mut self) {
        self.0.all.lock().remove(self.1);
    }
}

/// Images that this node wants.
#[derive(Debug)]
pub struct Wanted {
    host: Weak<Host>,
    engine: PathBuf,
    all: Mutex<HashMap<String, watch::Sender<State>>>,
    loads: Semaphore,
}

impl Wanted {
    /// For the engine at this socket; the gateway that watches `host` is asked.
    #[must_use]
    pub fn new(host: &Arc<Host>, engine: PathBuf) -> Arc<Self> {
        let (all, loads) = (Mutex::default(), Semaphore::new(LOADS));
        Arc::new(Self { host: Arc::downgrade(host), engine, all, loads })
    }

    /// Whether an image is one that a gateway may have: then no registry has it.
    #[must_use]
    pub fn is_ours(&self, image: &str) -> bool {
        image.strip_prefix(PREFIX).is_some_and(is_digest)
    }

    /// What is wanted now, by its full name.
    pub(super) fn all(&self) -> Vec<String> {
        self.all.lock().keys().map(|digest| format!("{PREFIX}{digest}")).collect()
    }

    /// Images of this cluster's functions that the engine has, by their digests.
    pub(super) async fn kept(&self, cluster: &str) -> HashSet<String> {
        let all = async { Docker::connect(&self.engine, None).await?.ours(cluster).await };
        let all = match tokio::time::timeout(TIDY, all).await {
            Ok(Ok(all)) => all,
            // A node without an engine has none.
            _ => return HashSet::new(),
        };
        all.iter().filter_map(|image| image.strip_prefix(PREFIX)).filter(|d| is_digest(d)).map(str::to_owned).collect()
    }

    /// Deletes images that no revision needs. What a container has stays.
    pub(super) async fn drop_images(&self, digests: &HashSet<String>) {
        let work = async {
            if digests.is_empty() {
                return anyhow::Ok(());
            }
            let engine = Docker::connect(&self.engine, None).await?;
            for digest in digests.iter().filter(|d| is_digest(d) && !self.all.lock().contains_key(*d)) {
                engine.remove(&format!("{PREFIX}{digest}")).await?;
            }
            Ok(())
        };
        match tokio::time::timeout(TIDY, work).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = format!("{error:#}"), "an image of a function is not deleted"),
            Err(_) => tracing::warn!("images of functions were not all deleted in time"),
        }
    }

    /// Asks for an image and waits until the engine has it.
    ///
    /// # Errors
    /// When it does not come.
    pub async fn fetch(&self, image: &str) -> anyhow::Result<()> {
        let Some(digest) = image.strip_prefix(PREFIX).filter(|d| is_digest(d)) else {
            bail!("{image} is no image of a function");
        };
        let (mut state, first) = {
            let mut all = self.all.lock();
            match all.get(digest) {
                Some(known) => (known.subscribe(), false),
                None if all.len() >= WANTED => bail!("too many images are wanted at a time"),
                None => {
                    let (sender, state) = watch::channel(State::Asked);
                    all.insert(digest.to_owned(), sender);
                    (state, true)
                }
            }
        };
        // Whoever asked first forgets it, so that the next one asks anew; also when it does not wait any more.
        let _first = first.then_some(First(self, digest));
        if first {
            let host = self.host.upgrade().context("the node ends")?;
            host.watchers.tell(&Told::Wants { image: image.to_owned() });
        }
        self.wait(&mut state).await
    }

    async fn wait(&self, state: &mut watch::Receiver<State>) -> anyhow::Result<()> {
        let begun = tokio::time::timeout(BEGIN, state.wait_for(|s| *s != State::Asked)).await;
        begun.context("the gateway of functions does not bring it")?.context("it was given up")?;
        let done = state.wait_for(|s| matches!(s, State::Here | State::Not(_)));
        let done = tokio::time::timeout(TIME, done).await.context("it did not come in time")?;
        match &*done.context("it was given up")? {
            State::Not(why) => bail!("{why}"),
            _ => Ok(()),
        }
    }

    fn set(&self, digest: &str, state: State) {
        if let Some(sender) = self.all.lock().get(digest) {
            sender.send_replace(state);
        }
    }

    /// The gateway does not bring an image.
    pub(super) fn refuse(&self, digest: &str, why: String) {
        self.set(digest, State::Not(why));
    }

    /// Takes an image that is wanted.
    ///
    /// # Errors
    /// When it is not wanted, or the engine does not take it.
    pub(super) async fn take(&self, digest: &str, body: Incoming) -> anyhow::Result<()> {
        let asked = self.all.lock().get(digest).is_some_and(|s| *s.borrow() == State::Asked);
        anyhow::ensure!(asked, "this image is not wanted");
        self.set(digest, State::Coming);
        let result = tokio::time::timeout(TIME, self.load(digest, body)).await;
        let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("it did not come in time")));
        self.set(digest, result.as_ref().map_or_else(|e| State::Not(format!("{e:#}")), |()| State::Here));
        result
    }

    async fn load(&self, digest: &str, body: Incoming) -> anyhow::Result<()> {
        let _turn = self.loads.acquire().await?;
        let engine = Docker::patient(&self.engine).await?;
        let mut left = LIMIT;
        let pieces = futures::stream::unfold(body, |mut body| async {
            let frame = match tokio::time::timeout(STALL, body.frame()).await {
                Ok(frame) => frame?.map_err(std::io::Error::other),
                Err(_) => Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "its sender is silent")),
            };
            Some((frame.map(|f| f.into_data().unwrap_or_default()), body))
        });
        let pieces = pieces.map(move |piece: std::io::Result<Bytes>| {
            let piece = piece?;
            left = left
                .checked_sub(piece.len() as u64)
                .ok_or_else(|| std::io::Error::other(format!("it has more than {LIMIT} bytes")))?;
            Ok(piece)
        });
        engine.load(pieces.boxed()).await?;
        let image = format!("{PREFIX}{digest}");
        anyhow::ensure!(engine.has(&image).await?, "the archive did not have {image}");
        tracing::info!(image, "an image of a function was handed over");
        Ok(())
    }
}
