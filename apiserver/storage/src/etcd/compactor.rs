//! Forgetting etcd's history, by one of the servers that share it.
//!
//! All servers come by in the same interval. Whoever moves the mark on from the count it saw last is the one that
//! compacts, up to the revision it saw the interval before; the others note the new count and come again. So etcd keeps
//! between one and two intervals of history, however many servers there are.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::client::{Client, Fault};
use super::space::Space;
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
    pub(super) async fn turn(&mut self, client: &Client, space: &Space) -> Result<Option<Revision>, Fault> {
        let key = space.own("compaction");
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
        let answer: TxnResponse = client.read(wire::TXN, request).await?;
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
        compact(client, through).await?;
        Ok(Some(through))
    }
}

/// Forgets history up to `revision`. What is forgotten already may be forgotten again.
pub(super) async fn compact(client: &Client, revision: Revision) -> Result<(), Fault> {
    let request = CompactionRequest { revision: wire::signed(revision) };
    match client.read::<_, CompactionResponse>(wire::COMPACT, request).await {
        Ok(_) | Err(Fault::Compacted) => Ok(()),
        Err(fault) => Err(fault),
    }
}

/// Comes by for ever.
pub(super) async fn run(client: Arc<Client>, space: Space, every: Duration) {
    let mut round = Round::default();
    loop {
        sleep(every).await;
        match round.turn(&client, &space).await {
            Ok(Some(revision)) => tracing::debug!(revision, "etcd's history was compacted"),
            Ok(None) => {}
            Err(fault) => {
                tracing::warn!(why = fault.text(), "etcd's history could not be compacted; trying again later")
            }
        }
    }
}
