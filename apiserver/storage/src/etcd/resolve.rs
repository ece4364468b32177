//! Writes, and what became of those whose answer was lost.
//!
//! A request that ends without an answer may have been carried out, may be carried out yet, or never. Before anything is
//! said or tried again, the key is read. Every value carries the name of its write, so a value of ours is recognised even
//! where others wrote on top of it. What can be told:
//! - the key still stands at the revision that was compared: the write did not happen so far, and may be sent again,
//!   because the comparison lets only one of the two through;
//! - the key moved: the first change after that revision is ours or somebody else's;
//! - a creation or an unconditional write is found, or [`Error::Unavailable`] says that nobody knows: sent twice, it could
//!   bring back what others deleted in between.

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::Etcd;
use super::client::{Fault, PATIENCE, WRITE};
use super::follow;
use super::hub::begin;
use super::value::{self, Name};
use super::wire::{
    self, DeleteRangeRequest, Event, EventType, KeyValue, Operand, PutRequest, RangeRequest, RangeResponse, Request,
    RequestOp, Target, TxnRequest, TxnResponse, WatchCreateRequest,
};
use crate::store::{Compare, Error, Op, Result, Revision};

/// One write on its way.
pub(super) struct Write<'a> {
    pub(super) key: &'a str,
    pub(super) compare: Compare,
    pub(super) op: &'a Op,
    name: Name,
    /// A revision at or before the moment of sending.
    before: Revision,
}

/// What became of a write.
enum Fate {
    Known(Result<Revision>),
    /// It did not happen, and may be sent again.
    Again,
}

impl<'a> Write<'a> {
    pub(super) fn new(key: &'a str, compare: Compare, op: &'a Op, before: Revision) -> Self {
        Self { key, compare, op, name: Name::new(), before }
    }

    fn request(&self, etcd: &Etcd) -> TxnRequest {
        let key = etcd.space.key(self.key);
        let expect = |revision| wire::Compare {
            target: Target::Mod as i32,
            key: key.clone(),
            operand: Some(Operand::ModRevision(revision)),
        };
        let compare = match self.compare {
            Compare::Any => vec![],
            Compare::Absent => vec![expect(0)],
            Compare::At(revision) => vec![expect(wire::signed(revision))],
        };
        let write = match (self.op, self.compare) {
            (Op::Put(payload), _) => {
                Some(Request::Put(PutRequest { key: key.clone(), value: value::encode(payload, self.name) }))
            }
            // Deleting what must be absent only looks.
            (Op::Delete, Compare::Absent) => None,
            (Op::Delete, _) => Some(Request::Delete(DeleteRangeRequest { key: key.clone() })),
        };
        let op = |request| RequestOp { request: Some(request) };
        TxnRequest {
            compare,
            success: write.map(op).into_iter().collect(),
            failure: vec![op(Request::Range(RangeRequest { key, ..RangeRequest::default() }))],
        }
    }

    /// Sends it until its outcome is known, or cannot be.
    pub(super) async fn carry_out(&self, etcd: &Etcd) -> Result<Revision> {
        // Absence is a comparison of its own; a key that was "last written at 0" is one that is not there.
        if self.compare == Compare::At(0) {
            return Err(Error::Conflict { current: etcd.entry(self.key).await? });
        }
        let request = self.request(etcd);
        let mut patience = etcd.client.patience();
        let mut doubtful = false;
        loop {
            let at = etcd.client.current();
            let why = match etcd.client.once(at, wire::TXN, request.clone(), WRITE).await {
                Ok(answer) => {
                    let answer: TxnResponse = answer;
                    let revision = wire::revision(answer.header.as_ref());
                    etcd.hub.heard_of(revision);
                    if answer.succeeded {
                        return Ok(revision);
                    }
                    if !doubtful {
                        etcd.hub.arrival(revision).await;
                        let current = answer.found().map(|kv| etcd.space.entry(kv)).transpose();
                        return Err(Error::Conflict { current: current.map_err(Error::Unavailable)? });
                    }
                    // The one that was lost may be what stands in the way.
                    "a repeated write met a change".to_owned()
                }
                Err(Fault::NotSent(why)) => {
                    if !patience.again().await {
                        return Err(Error::Unavailable(why));
                    }
                    continue;
                }
                Err(Fault::Lost(why)) => why,
                Err(Fault::TooLarge(why)) => return Err(Error::TooLarge(why)),
                Err(fault) => return Err(Error::Unavailable(fault.text())),
            };
            tracing::info!(key = self.key, %why, "the answer to a write was lost");
            match self.fate(etcd, &why).await? {
                Fate::Known(outcome) => return outcome,
                Fate::Again => doubtful = true,
            }
            if !patience.again().await {
                return Err(Error::Unavailable(why));
            }
        }
    }

    async fn fate(&self, etcd: &Etcd, why: &str) -> Result<Fate> {
        let key = RangeRequest { key: etcd.space.key(self.key), ..RangeRequest::default() };
        let answer: RangeResponse = etcd.read(key).await?;
        let now = wire::revision(answer.header.as_ref());
        let present = answer.kvs.into_iter().next();
        let unknown = || Error::Unavailable(format!("the outcome of the write is unknown: {why}"));
        let outcome = match (self.compare, self.op) {
            (Compare::Absent, Op::Delete) => return Ok(Fate::Again),
            (Compare::At(revision), _) => {
                if present.as_ref().is_some_and(|kv| wire::unsigned(kv.mod_revision) == revision) {
                    return Ok(Fate::Again);
                }
                let next = self.events(etcd, revision, |_| true).await?;
                match next.last().filter(|event| self.is_ours(event)) {
                    Some(event) => Ok(at(event)),
                    None => {
                        let current = present.map(|kv| etcd.space.entry(kv)).transpose().map_err(Error::Unavailable)?;
                        Err(Error::Conflict { current })
                    }
                }
            }
            (Compare::Any, Op::Delete) if present.is_none() => Ok(now),
            (Compare::Any | Compare::Absent, _) => {
                let Some(last) = present else { return Err(unknown()) };
                let events =
                    self.events(etcd, self.before, |event| at(event) >= wire::unsigned(last.mod_revision)).await?;
                match events.iter().find(|event| self.is_ours(event)) {
                    Some(event) => Ok(at(event)),
                    None => return Err(unknown()),
                }
            }
        };
        Ok(Fate::Known(outcome))
    }

    fn is_ours(&self, event: &Event) -> bool {
        let deleted = event.r#type == EventType::Delete as i32;
        match self.op {
            // Deletions carry no name. One that took the very state that was compared is the outcome that was asked for.
            Op::Delete => deleted,
            Op::Put(_) => {
                let named = |kv: &KeyValue| value::decode(kv.value.clone()).is_some_and(|v| v.name == self.name);
                !deleted && event.kv.as_ref().is_some_and(named)
            }
        }
    }

    /// The key's changes after `after` up to the first that is the `last`, which is there.
    async fn events(&self, etcd: &Etcd, after: Revision, last: impl Fn(&Event) -> bool) -> Result<Vec<Event>> {
        let create = WatchCreateRequest { range_end: Bytes::new(), ..follow::create(&etcd.space, self.key, after) };
        let lost = |fault: Fault| Error::Unavailable(format!("the outcome of the write is unknown: {}", fault.text()));
        let read = async {
            let mut out = Vec::new();
            loop {
                let mut watching = begin(&etcd.client, create.clone()).await.map_err(lost)?;
                out.clear();
                while let Ok(message) = watching.next().await {
                    if message.canceled {
                        return Err(lost(Fault::Compacted));
                    }
                    for event in message.events.into_iter().filter(|event| at(event) > after) {
                        let end = last(&event);
                        out.push(event);
                        if end {
                            return Ok(out);
                        }
                    }
                }
            }
        };
        timeout_at(Instant::now() + PATIENCE, read)
            .await
            .unwrap_or_else(|_| Err(lost(Fault::Lost("no answer".to_owned()))))
    }
}

/// Revision of an event.
fn at(event: &Event) -> Revision {
    event.kv.as_ref().map_or(0, |kv| wire::unsigned(kv.mod_revision))
}
