//! Forgetting etcd's history, by one of the servers that share it.
//!
//! All servers come by in the same interval. Whoever moves the mark on from the count it saw last is the one that
//! compacts, up to the revision it saw the interval before; the others note the new count and come again. So etcd keeps
//! between one and two intervals of history, however many servers there are.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::Etcd;
use super::client::Fault;
use super::wire::{
    self, CompactionRequest, CompactionResponse, Operand, PutRequest, RangeRequest, Request, RequestOp, Target,
    TxnRequest, TxnResponse,
};
use crate::store::Revision;

/// What one server remembers between two rounds.
#[derive(Default)]
pub(super) struct Round {
    /// Writes of the mark so far.
    count: i64,
    /// The revision of the last round.
    revision: Revision,
}

impl Round {
    /// One round; answers what was forgotten, where it was this server's turn.
    pub(super) async fn turn(&mut self, etcd: &Etcd) -> Result<Option<Revision>, Fault> {
        let key = etcd.space.own("compaction");
        let op = |request| vec![RequestOp { request: Some(request) }];
        let request = TxnRequest {
            compare: vec![wire::Compare {
                target: Target::Version as i32,
                key: key.clone(),
                operand: Some(Operand::Version(self.count)),
            }],
            success: op(Request::Put(PutRequest { key: key.clone(), value: self.revision.to_string().into() })),
            failure: op(Request::Range(RangeRequest { key, ..RangeRequest::default() })),
        };
        // Sent twice, the second one loses against the first: then it is nobody's turn, and the next round makes good.
        let answer: TxnResponse = etcd.client.read(wire::TXN, request).await?;
        let seen = wire::revision(answer.header.as_ref());
        let through = std::mem::replace(&mut self.revision, seen);
        if !answer.succeeded {
            self.count = answer.found().map_or(0, |kv| kv.version);
            return Ok(None);
        }
        self.count += 1;
        if through == 0 {
            return Ok(None);
        }
        compact(etcd, through).await?;
        Ok(Some(through))
    }
}

/// Forgets history up to `revision`. What is forgotten already may be forgotten again.
pub(super) async fn compact(etcd: &Etcd, revision: Revision) -> Result<(), Fault> {
    let request = CompactionRequest { revision: wire::signed(revision) };
    match etcd.client.read::<_, CompactionResponse>(wire::COMPACT, request).await {
        Ok(_) | Err(Fault::Compacted) => Ok(()),
        Err(fault) => Err(fault),
    }
}

/// Comes by for ever.
pub(super) async fn run(etcd: Arc<Etcd>, every: Duration) {
    let mut round = Round::default();
    loop {
        sleep(every).await;
        match round.turn(&etcd).await {
            Ok(Some(revision)) => tracing::debug!(revision, "etcd's history was compacted"),
            Ok(None) => {}
            Err(fault) => {
                tracing::warn!(why = fault.text(), "etcd's history could not be compacted; trying again later")
            }
        }
    }
}
