//! Claims on node ports of Services, for servers that share a store.
//!
//! A claim is a key named for the port; making it is the compare-and-swap that lets one server win. Its
//! value says whose it is. A claim is made before its Service is stored and given back after the Service is gone, so a
//! process that dies in between leaves one behind: a claim of a certain age whose Service does not exist, or does not
//! hold what was claimed, may be taken over.
//!
//! Services that were made before the store was shared have no claims yet; [`adopt`] makes them when a server starts.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use skiff_core::meta;
use skiff_storage::{Compare, Entry, Error, Op, Payload, Result, Store};
use tokio::time::Instant;

use super::{Owner, node_ports};
use crate::registry::FRESH_DEADLINE;
use crate::server::Inner;

const PORTS: &str = "/registry/ranges/servicenodeports/";
/// A claim this young may be of a Service that is being written. Far beyond any request's deadline and clocks' difference.
const YOUNG: Duration = Duration::from_secs(600);
/// How often a race for one claim is run again.
const RACES: usize = 8;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    service: String,
    uid: String,
    #[serde(default)]
    protocols: Vec<String>,
    /// When it was made, in seconds of the Unix clock.
    at: u64,
}

impl Claim {
    fn new(owner: &Owner, protocol: &str) -> Self {
        let (service, uid) = (owner.key.clone(), owner.uid.clone());
        Self { service, uid, protocols: vec![protocol.to_owned()], at: now() }
    }

    /// What is not a claim is nobody's, and old.
    fn read(entry: &Entry) -> Self {
        let nobody = Self { service: String::new(), uid: String::new(), protocols: vec![], at: 0 };
        serde_json::from_slice(&entry.value).unwrap_or(nobody)
    }

    fn op(&self) -> Op {
        // A struct of texts and a number always serialises.
        Op::Put(Payload::plain(serde_json::to_vec(self).unwrap_or_default()))
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Claims a port for a protocol; `false` when it is somebody else's. One Service may use it for several protocols.
pub(super) async fn port(server: &Inner, port: u16, protocol: &str, owner: &Owner) -> Result<bool> {
    let (held, key) = (|s: &Value| node_ports(s).iter().any(|(n, _)| *n == port), format!("{PORTS}{port}"));
    let store = &server.store;
    let mine = Claim::new(owner, protocol);
    let mut compare = Compare::Absent;
    let mut op = mine.op();
    for _ in 0..RACES {
        let found = match store.commit(&key, compare, op).await {
            Ok(_) => return Ok(true),
            Err(Error::Conflict { current }) => current,
            Err(other) => return Err(other),
        };
        let Some(entry) = found else {
            (compare, op) = (Compare::Absent, mine.op());
            continue;
        };
        let theirs = Claim::read(&entry);
        if theirs.uid == owner.uid {
            if theirs.protocols.iter().any(|p| p == protocol) {
                return Ok(false);
            }
            let mut both = theirs;
            both.protocols.push(protocol.to_owned());
            op = both.op();
        } else if stale(server, &theirs, &held).await? {
            tracing::info!(key, service = theirs.service, "a claim that was left behind is taken over");
            op = mine.op();
        } else {
            return Ok(false);
        }
        compare = Compare::At(entry.revision);
    }
    Err(Error::Unavailable(format!("too many servers claim {key}")))
}

/// Whether nobody will miss a claim.
async fn stale(server: &Inner, claim: &Claim, held: impl Fn(&Value) -> bool) -> Result<bool> {
    if now().saturating_sub(claim.at) < YOUNG.as_secs() {
        return Ok(false);
    }
    let Ok(services) = server.collection("", "services") else { return Ok(false) };
    services.cache.consistent(Instant::now() + FRESH_DEADLINE).await?;
    Ok(!services.values().iter().any(|s| meta::uid(s) == claim.uid && held(s)))
}

/// Gives claims back. One that cannot be given back now is found stale later.
pub(super) async fn release(server: &Inner, owner: &Owner, ports: &[(u16, String)]) {
    for (port, protocol) in ports {
        if let Err(error) = give_back(&*server.store, &format!("{PORTS}{port}"), owner, protocol).await {
            tracing::warn!(port, %error, "a claim stays behind for a while");
        }
    }
}

async fn give_back(store: &dyn Store, key: &str, owner: &Owner, protocol: &str) -> Result<()> {
    let mut found = store.get(key).await?;
    for _ in 0..RACES {
        let Some(entry) = found else { return Ok(()) };
        let mut claim = Claim::read(&entry);
        if claim.uid != owner.uid {
            return Ok(());
        }
        claim.protocols.retain(|p| p != protocol);
        let op = if claim.protocols.is_empty() { Op::Delete } else { claim.op() };
        match store.commit(key, Compare::At(entry.revision), op).await {
            Ok(_) => return Ok(()),
            Err(Error::Conflict { current }) => found = current,
            Err(other) => return Err(other),
        }
    }
    Ok(())
}

/// Ports that are claimed.
pub(super) async fn ports(server: &Inner) -> Result<HashSet<u16>> {
    let range = server.store.range(PORTS, None, 0, 0).await?;
    Ok(range.entries.iter().filter_map(|e| e.key.strip_prefix(PORTS)?.parse().ok()).collect())
}

/// Makes the claims of the Services that are there.
///
/// # Errors
/// Those of the store.
pub async fn adopt(server: &Inner) -> Result<()> {
    if !server.store.shared() {
        return Ok(());
    }
    let Ok(services) = server.collection("", "services") else { return Ok(()) };
    services.cache.consistent(Instant::now() + FRESH_DEADLINE).await?;
    let held = ports(server).await?;
    for s in services.values() {
        let owner = Owner::of(&s);
        for (p, protocol) in node_ports(&s).into_iter().filter(|(p, _)| !held.contains(p)) {
            if !port(server, p, &protocol, &owner).await? {
                tracing::debug!(port = p, service = owner.key, "claimed already");
            }
        }
    }
    Ok(())
}
