//! Listening to nodes: what runs there, what they print, which images they want.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use http::StatusCode;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;

use super::agent::{Agent, Lines, Refused};
use super::class::Processes;
use super::host::Watch;
use super::images::is_digest;
use super::job::{Printed, Record, Told};
use super::nodes::Reach;
use crate::build::PREFIX;
use crate::gateway::link::BoxError;
use crate::instance::{Address, Event, Instance, Line, Times};

/// A node that says nothing for this long is given up.
pub(super) const SILENCE: Duration = Duration::from_secs(10);
/// Tries in a row to which a node has no agent, after which it is given up at once: where it ended, so did its processes.
const REFUSALS: u32 = 3;
/// First and longest pause between tries.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// Pause after an agent that does not know what it is asked, or does not let us.
const STRANGE: Duration = Duration::from_secs(60);
/// How often who passes on lines looks whether anybody reads them.
const READ: Duration = Duration::from_secs(5);
/// Time for the last lines of all nodes.
const TAIL: Duration = Duration::from_secs(5);

/// What a node tells, from here or from there.
enum Source {
    Here(Watch),
    There(Lines<Told>),
}

impl Source {
    async fn of(reach: &Reach) -> anyhow::Result<Self> {
        Ok(match reach {
            Reach::Here(host) => Self::Here(host.watch([]).ok_or_else(|| anyhow::anyhow!("too many watch"))?),
            Reach::There(agent) => Self::There(agent.watch().await?),
        })
    }

    /// The next thing told; none when this source has ended.
    async fn next(&mut self) -> Option<Told> {
        match self {
            // It beats only over the network.
            Self::Here(watch) => watch.next().await,
            Self::There(lines) => tokio::time::timeout(SILENCE, lines.next()).await.ok()?.ok()?,
        }
    }
}

impl Processes {
    /// Listens to a node until `end`.
    pub(super) fn follow(&self, node: &str, reach: Reach, end: CancellationToken) {
        let (all, node) = (self.this.clone(), node.to_owned());
        tokio::spawn(async move {
            end.run_until_cancelled(async {
                let (mut pause, mut heard, mut refused) = (PAUSE.0, Instant::now(), 0);
                loop {
                    match Source::of(&reach).await {
                        Ok(mut source) => {
                            (pause, refused) = (PAUSE.0, 0);
                            while let Some(told) = source.next().await {
                                heard = Instant::now();
                                let Some(all) = all.upgrade() else { return };
                                all.told(&node, &reach, told).await;
                            }
                        }
                        Err(error) => {
                            tracing::debug!(
                                node,
                                error = format!("{error:#}"),
                                "a node's agent does not say what it runs"
                            );
                            refused += 1;
                            let strange = [StatusCode::NOT_FOUND, StatusCode::FORBIDDEN, StatusCode::UNAUTHORIZED];
                            if let Some(refusal) = error.downcast_ref::<Refused>()
                                && strange.contains(&refusal.status)
                            {
                                // An agent of another version runs no functions; rights may come later.
                                pause = if refusal.status == StatusCode::NOT_FOUND { STRANGE } else { PAUSE.1 };
                            }
                        }
                    }
                    let Some(all) = all.upgrade() else { return };
                    all.unwatched(&node);
                    if heard.elapsed() >= SILENCE || refused >= REFUSALS {
                        all.give_up(&node).await;
                    }
                    drop(all);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1).max(pause);
                }
            })
            .await;
        });
    }

    /// A node said something.
    async fn told(&self, node: &str, reach: &Reach, told: Told) {
        let mut events = vec![];
        {
            let mut book = self.book.lock();
            let Some(entry) = book.all.get_mut(node) else { return };
            match told {
                Told::Beat => {}
                Told::State { can, instances } => {
                    (entry.can, entry.watched, entry.tried) = (Some(can), true, true);
                    let there: std::collections::HashSet<_> =
                        instances.iter().map(|r| (r.namespace.clone(), r.name.clone())).collect();
                    let missing = entry.instances.extract_if(|key, _| !there.contains(key));
                    for (key, _) in missing {
                        let asked = entry.stopping.contains(&key);
                        let (namespace, name) = key;
                        self.records.remove(&namespace, &name);
                        if !asked {
                            events.push(Event::Ended { namespace, name, reason: "its node began anew".to_owned() });
                        }
                    }
                    for record in instances {
                        self.found(node, reach, entry, record, &mut events);
                    }
                    self.records.know(node);
                }
                Told::Began(record) => self.found(node, reach, entry, record, &mut events),
                Told::Ended { namespace, name, reason } => {
                    let key = (namespace, name);
                    if entry.instances.remove(&key).is_some() {
                        let asked = entry.stopping.contains(&key);
                        let (namespace, name) = key;
                        self.records.remove(&namespace, &name);
                        if !asked {
                            events.push(Event::Ended { namespace, name, reason });
                        }
                    }
                }
                Told::Wants { image } => {
                    if let Reach::There(agent) = reach {
                        self.hand_over(node, Arc::clone(agent), image);
                    }
                }
            }
        }
        self.turned.send_modify(|n| *n += 1);
        for event in events {
            // Who reads decides how fast; a node waits for it, not the others.
            let _ = self.events.send(event).await;
        }
        if self.lines.receiver_count() > 0 {
            self.pass_lines();
        }
    }

    /// An instance runs: news, unless it is known or just being started.
    fn found(
        &self,
        node: &str,
        reach: &Reach,
        entry: &mut super::nodes::Entry,
        record: Record,
        events: &mut Vec<Event>,
    ) {
        let key = (record.namespace.clone(), record.name.clone());
        if entry.instances.contains_key(&key) || entry.starting.contains(&key) {
            return;
        }
        let address = match reach {
            Reach::Here(host) => match host.socket(&key.0, &key.1) {
                Some(socket) => Address::Unix(socket),
                None => return,
            },
            Reach::There(agent) => agent.door(&key.0, &key.1),
        };
        self.records.put(node, &record);
        let now = Instant::now();
        let times = Times { asked: now, started: now, loaded: now };
        let instance = Instance { name: record.name.clone(), node: node.to_owned(), address, times };
        events.push(Event::Found { namespace: key.0.clone(), revision: record.revision.clone(), instance });
        entry.instances.insert(key, record);
    }

    /// Nobody listens to a node at the moment.
    fn unwatched(&self, node: &str) {
        if let Some(entry) = self.book.lock().all.get_mut(node) {
            (entry.watched, entry.tried) = (false, true);
        }
        self.turned.send_modify(|n| *n += 1);
    }

    /// A node does not answer: what ran there is lost.
    async fn give_up(&self, node: &str) {
        let lost: Vec<Record> = {
            let mut book = self.book.lock();
            let Some(entry) = book.all.get_mut(node) else { return };
            if let Reach::There(agent) = &entry.reach {
                agent.cut();
            }
            entry.instances.drain().map(|(_, record)| record).collect()
        };
        self.records.know(node);
        if !lost.is_empty() {
            tracing::warn!(node, instances = lost.len(), "a node with processes of functions does not answer");
        }
        self.lose(node, lost, "its node does not answer");
    }

    /// Tells of instances that are gone with their node.
    pub(super) fn lose(&self, node: &str, lost: Vec<Record>, why: &str) {
        for Record { namespace, name, .. } in lost {
            self.records.remove(&namespace, &name);
            let (events, reason) = (self.events.clone(), format!("{why} ({node})"));
            tokio::spawn(async move { events.send(Event::Ended { namespace, name, reason }).await });
        }
    }

    /// The last lines of all nodes; one that does not answer in time has none.
    pub(super) async fn tails(
        &self,
        namespace: &str,
        function: &str,
        instance: Option<&str>,
        lines: usize,
    ) -> Vec<Line> {
        let nodes: Vec<Reach> =
            self.book.lock().all.values().filter(|e| e.can.is_some()).map(|e| e.reach.clone()).collect();
        let mut query = format!("namespace={namespace}&function={function}&tail={lines}");
        if let Some(instance) = instance {
            query.push_str(&format!("&instance={instance}"));
        }
        let ask = |reach: Reach| {
            let query = query.clone();
            async move {
                match reach {
                    Reach::Here(host) => host.tail(namespace, function, instance, lines),
                    Reach::There(agent) => match tokio::time::timeout(TAIL, agent.tail(&query)).await {
                        Ok(Ok(lines)) => lines.into_iter().map(Line::from).collect(),
                        _ => vec![],
                    },
                }
            }
        };
        futures::future::join_all(nodes.into_iter().map(ask)).await.concat()
    }

    /// Sees to it that lines of all nodes reach those who follow, for as long as there are any.
    pub(super) fn pass_lines(&self) {
        let nodes: Vec<(String, Reach)> =
            self.book.lock().all.iter().filter(|(_, e)| e.watched).map(|(n, e)| (n.clone(), e.reach.clone())).collect();
        for (node, reach) in nodes {
            if !self.passing.lock().insert(node.clone()) {
                continue;
            }
            // Listened to before this returns, so that what is printed next on this node is not missed.
            let here = match &reach {
                Reach::Here(host) => Some(host.follow()),
                Reach::There(_) => None,
            };
            let (all, lines) = (self.this.clone(), self.lines.clone());
            tokio::spawn(async move {
                match (reach, here) {
                    (_, Some(from)) => pass_near(from, &lines).await,
                    (Reach::There(agent), None) => pass_far(&agent, &lines).await,
                    (Reach::Here(_), None) => {}
                }
                if let Some(all) = all.upgrade() {
                    all.passing.lock().remove(&node);
                }
            });
        }
    }

    /// Brings an image to a node that wants it, in the background.
    fn hand_over(&self, node: &str, agent: Arc<Agent>, image: String) {
        let Some(digest) = image.strip_prefix(PREFIX).filter(|d| is_digest(d)).map(str::to_owned) else { return };
        let key = (node.to_owned(), image.clone());
        if !self.handing.lock().insert(key.clone()) {
            return;
        }
        let all = self.this.clone();
        let node = node.to_owned();
        tokio::spawn(async move {
            let Some(all) = all.upgrade() else { return };
            let brought = async {
                let pods = all.pods.get().and_then(std::sync::Weak::upgrade);
                let pods = pods.ok_or_else(|| anyhow::anyhow!("the gateway has no images"))?;
                let archive = pods.archive(&node, &image).await?;
                let _turn = all.images.acquire().await?;
                let frames = archive.map(|piece| piece.map(Frame::data).map_err(BoxError::from));
                tracing::info!(node, image, "an image of a function is handed over");
                agent.image(&digest, StreamBody::new(frames).boxed_unsync()).await
            };
            if let Err(error) = brought.await {
                let why = format!("{error:#}");
                tracing::warn!(node, image, error = why, "an image of a function is not handed over");
                // A node that does not hear it gives up by itself.
                let _ = agent.refuse(&digest, &why).await;
            }
            all.handing.lock().remove(&key);
        });
    }
}

async fn pass_near(mut from: broadcast::Receiver<Line>, to: &broadcast::Sender<Line>) {
    while to.receiver_count() > 0 {
        match tokio::time::timeout(READ, from.recv()).await {
            // Nobody reads any more: that is seen at the next look.
            Ok(Ok(line)) => drop(to.send(line)),
            Ok(Err(RecvError::Closed)) => return,
            Ok(Err(RecvError::Lagged(_))) | Err(_) => {}
        }
    }
}

async fn pass_far(agent: &Agent, to: &broadcast::Sender<Line>) {
    let mut from: Lines<Printed> = match agent.lines().await {
        Ok(from) => from,
        Err(error) => return tracing::debug!(%error, "lines of a node are not passed on"),
    };
    while to.receiver_count() > 0 {
        match tokio::time::timeout(READ, from.next()).await {
            Ok(Ok(Some(line))) => drop(to.send(line.into())),
            Ok(Ok(None) | Err(_)) => return,
            Err(_) => {}
        }
    }
}
