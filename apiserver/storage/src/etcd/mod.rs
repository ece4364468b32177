//! The store of several servers: an etcd v3 cluster (3.4 and later).
//!
//! API servers keep nothing of their own; any number of them may share one etcd, which must be theirs alone: every change
//! in it is heard by every server (see [`hub`]). One write is one transaction that compares the key's modification
//! revision. Reads go through the leader. etcd's revision is the store's, and begins at 1.
//!
//! Limits: etcd refuses values beyond its request limit (1.5 MiB by default). Snapshots handed to sinks come without
//! history, so a client whose watch was on another server goes on from there only if the new server was up already.
//!
//! Failure: calls go to another member when one fails, for at most ten seconds. A lost answer is looked for before
//! anything is said (see [`resolve`]). [`Etcd::failed`] tells when the place in the history is lost (the cluster was out
//! of reach for longer than etcd keeps history); the owner should end the process then, and start it again.

mod client;
mod compactor;
mod follow;
mod hub;
mod resolve;
mod space;
mod value;
mod wire;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;

use self::client::{Client, Fault};
use self::follow::Follow;
use self::hub::{Hub, begin};
use self::resolve::Write;
use self::space::Space;
use self::wire::{RangeRequest, RangeResponse};
use crate::store::{Attached, BuildSink, Change, Compare, Entry, Error, Op, Range, Result, Revision, Store};

/// Entries asked for at once.
const PAGE: usize = 500;

/// Settings of an etcd store.
#[derive(Clone, Debug)]
pub struct Options {
    /// URLs of the members, `https://host:2379`. Any of them is enough; with all of them one may fail.
    pub endpoints: Vec<String>,
    /// Certificates, for `https`.
    pub tls: Option<Tls>,
    /// What all keys in etcd begin with, before the store's own `/`.
    pub root: String,
    /// How often history is forgotten; `None` leaves that to others.
    pub compact_every: Option<Duration>,
    /// Caches keep history for this long ...
    pub history_age: Duration,
    /// ... and for this many changes ...
    pub history_changes: usize,
    /// ... and for this many bytes of values, whichever is least.
    pub history_bytes: usize,
}

/// Certificates in PEM.
#[derive(Clone)]
pub struct Tls {
    /// The authority that signed the members' certificates.
    pub ca: String,
    /// This client's certificate and key.
    pub identity: Option<(String, String)>,
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("identity", &self.identity.is_some()).finish_non_exhaustive()
    }
}

impl Options {
    /// Defaults for these members.
    #[must_use]
    pub fn new(endpoints: Vec<String>) -> Self {
        let embedded = crate::embedded::Options::default();
        Self {
            endpoints,
            tls: None,
            root: String::new(),
            compact_every: Some(Duration::from_secs(300)),
            history_age: embedded.history_age,
            history_changes: embedded.history_changes,
            history_bytes: embedded.history_bytes,
        }
    }
}

/// Why an etcd cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The settings do not fit together.
    #[error("{0}")]
    Settings(String),
    /// No member answers, or none knows a leader.
    #[error("etcd cannot be reached: {0}")]
    Unreachable(String),
    /// The keys are somebody else's.
    #[error("{0}: choose another prefix, or an etcd of its own")]
    Foreign(String),
}

/// A store in an etcd cluster. Dropping the last handle ends its watch.
pub struct Etcd {
    client: Arc<Client>,
    space: Space,
    hub: Arc<Hub>,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let member = self.client.url(self.client.current());
        f.debug_struct("Etcd")
            .field("member", &member)
            .field("heard", &self.hub.progress.revision())
            .finish_non_exhaustive()
    }
}

impl Etcd {
    /// Connects, and begins to follow the history.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub async fn open(options: Options) -> Result<Arc<Self>, OpenError> {
        let client = Arc::new(Client::new(&options)?);
        let space = Space::new(&options.root);
        let first =
            RangeRequest { key: space.key("/"), range_end: space.end("/"), limit: 1, ..RangeRequest::default() };
        let answer: RangeResponse =
            client.read(wire::RANGE, first).await.map_err(|fault| OpenError::Unreachable(fault.text()))?;
        for kv in answer.kvs {
            space.entry(kv).map_err(OpenError::Foreign)?;
        }
        let revision = wire::revision(answer.header.as_ref());
        let hub = Arc::new(Hub::new(Arc::clone(&client), space.clone(), &options, revision));
        tokio::spawn(Arc::clone(&hub).run());
        let etcd = Arc::new(Self { client, space, hub });
        if let Some(every) = options.compact_every {
            etcd.compact_every(every);
        }
        Ok(etcd)
    }

    /// Takes part in forgetting history until the store closes.
    fn compact_every(&self, every: Duration) {
        let (client, space) = (Arc::clone(&self.client), self.space.clone());
        let mut ended = self.hub.ended.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                () = compactor::run(client, space, every) => {}
                _ = ended.wait_for(|ended| *ended) => {}
            }
        });
    }

    /// Becomes `Some(why)` when the place in the history is lost. The owner ends the process then.
    #[must_use]
    pub fn failed(&self) -> watch::Receiver<Option<String>> {
        self.hub.failed.subscribe()
    }

    /// Ends the watch and tells the sinks. Nothing waits to be written; safe to call twice.
    pub fn close(&self) {
        self.hub.ended.send_replace(true);
    }

    fn check_open(&self) -> Result<()> {
        if *self.hub.ended.borrow() { Err(Error::Closed) } else { Ok(()) }
    }

    async fn read(&self, request: RangeRequest) -> Result<RangeResponse> {
        self.check_open()?;
        let requested = wire::unsigned(request.revision);
        match self.client.read::<_, RangeResponse>(wire::RANGE, request).await {
            Ok(answer) => {
                self.hub.heard_of(wire::revision(answer.header.as_ref()));
                Ok(answer)
            }
            Err(Fault::Compacted) => Err(Error::Compacted { requested, oldest: self.oldest().await? }),
            Err(Fault::Future) => Err(Error::Future { requested, current: self.present().await? }),
            Err(fault) => Err(Error::Unavailable(fault.text())),
        }
    }

    /// The latest revision. Reads a key that nobody has.
    async fn present(&self) -> Result<Revision> {
        let request = RangeRequest { key: self.space.own("nothing"), ..RangeRequest::default() };
        let answer = self.client.read::<_, RangeResponse>(wire::RANGE, request).await;
        let answer = answer.map_err(|fault| Error::Unavailable(fault.text()))?;
        let revision = wire::revision(answer.header.as_ref());
        self.hub.heard_of(revision);
        Ok(revision)
    }

    /// The oldest revision that can be read. Only a refused watch says.
    async fn oldest(&self) -> Result<Revision> {
        let unavailable = |fault: Fault| Error::Unavailable(fault.text());
        let create = follow::create(&self.space, "/", 0);
        let mut watching = begin(&self.client, create).await.map_err(unavailable)?;
        let refused = tokio::time::timeout(client::READ, watching.next()).await;
        match refused {
            Ok(message) => Ok(wire::unsigned(message.map_err(unavailable)?.compact_revision)),
            Err(_) => Ok(0),
        }
    }

    async fn entry(&self, key: &str) -> Result<Option<Arc<Entry>>> {
        let answer = self.read(RangeRequest { key: self.space.key(key), ..RangeRequest::default() }).await?;
        answer.kvs.into_iter().next().map(|kv| self.space.entry(kv)).transpose().map_err(Error::Unavailable)
    }

    /// Refuses a revision that is not kept or not there.
    async fn check(&self, revision: Revision) -> Result<()> {
        let request = RangeRequest {
            key: self.space.own("nothing"),
            revision: wire::signed(revision.max(1)),
            ..RangeRequest::default()
        };
        self.read(request).await.map(drop).map_err(|error| match error {
            Error::Compacted { oldest, .. } => Error::Compacted { requested: revision, oldest },
            other => other,
        })
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.close();
    }
}

impl Store for Etcd {
    fn shared(&self) -> bool {
        true
    }

    fn revision(&self) -> BoxFuture<'_, Result<Revision>> {
        Box::pin(async {
            self.check_open()?;
            self.present().await
        })
    }

    fn get<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<Arc<Entry>>>> {
        Box::pin(self.entry(key))
    }

    fn range<'a>(
        &'a self,
        prefix: &'a str,
        start: Option<&'a str>,
        revision: Revision,
        limit: usize,
    ) -> BoxFuture<'a, Result<Range>> {
        Box::pin(async move {
            let limit = if limit == 0 { usize::MAX } else { limit };
            let mut from = self.space.key(start.filter(|s| *s > prefix).unwrap_or(prefix));
            let end = self.space.end(prefix);
            let mut out = Range { entries: Vec::new(), more: false, revision };
            if !end.starts_with(b"\0") && from >= end {
                // Nothing is there; the answer is as of a revision all the same.
                self.check(revision).await?;
                out.revision = if revision == 0 { self.present().await? } else { revision };
                return Ok(out);
            }
            loop {
                let page = PAGE.min(limit - out.entries.len());
                let request = RangeRequest {
                    key: from,
                    range_end: end.clone(),
                    limit: i64::try_from(page).unwrap_or(i64::MAX),
                    revision: wire::signed(out.revision),
                    keys_only: false,
                };
                let answer = self.read(request).await?;
                if out.revision == 0 {
                    // The further pages are of the same revision as the first.
                    out.revision = wire::revision(answer.header.as_ref());
                }
                let last = answer.kvs.last().map(|kv| kv.key.clone());
                for kv in answer.kvs {
                    out.entries.push(self.space.entry(kv).map_err(Error::Unavailable)?);
                }
                out.more = answer.more;
                match last {
                    Some(last) if answer.more && out.entries.len() < limit => from = [&last[..], b"\0"].concat().into(),
                    _ => return Ok(out),
                }
            }
        })
    }

    fn commit<'a>(&'a self, key: &'a str, compare: Compare, op: Op) -> BoxFuture<'a, Result<Revision>> {
        Box::pin(async move {
            self.check_open()?;
            let revision = Write::new(key, compare, &op, self.hub.progress.revision()).carry_out(self).await?;
            self.hub.arrival(revision).await;
            Ok(revision)
        })
    }

    fn watch<'a>(
        &'a self,
        prefix: &'a str,
        after: Revision,
    ) -> BoxFuture<'a, Result<BoxStream<'static, Result<Change>>>> {
        Box::pin(async move {
            self.check(after).await?;
            let follow = Follow {
                client: Arc::clone(&self.client),
                space: self.space.clone(),
                ended: self.hub.ended.subscribe(),
                prefix: prefix.to_owned(),
                cursor: after,
                watching: None,
                taken: VecDeque::new(),
                over: false,
            };
            Ok(stream::unfold(follow, Follow::next).boxed())
        })
    }

    fn compact(&self, revision: Revision) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            self.check_open()?;
            if revision == 0 {
                return Ok(());
            }
            match compactor::compact(&self.client, revision).await {
                Ok(()) => {
                    self.hub.arrival(revision).await;
                    self.hub.forget(revision);
                    Ok(())
                }
                Err(Fault::Future) => Err(Error::Future { requested: revision, current: self.present().await? }),
                Err(fault) => Err(Error::Unavailable(fault.text())),
            }
        })
    }

    fn attach<'a>(&'a self, prefix: &'a str, build: BuildSink) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let entering = self.hub.enter(prefix);
            // What was heard before the entrance is at or before this revision, because reads go through the leader.
            let Range { entries, revision, .. } = self.range(prefix, None, 0, 0).await?;
            let progress = Arc::clone(&self.hub.progress);
            let attached = Attached { entries, history: Vec::new(), compacted: revision, revision, progress };
            entering.open(revision, || build(attached));
            if *self.hub.ended.borrow() {
                return Err(Error::Closed);
            }
            Ok(())
        })
    }
}
