//! Which servers there are: the endpoints of the `kubernetes` Service.
//!
//! A server that is alone publishes itself once. Where several share a store, each renews a key of its own, and whoever
//! sees the set change publishes it. A server whose key did not change for a while, by the clock of the one who looks, is
//! taken off; one that stops takes itself off.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use skiff_core::status::Status;
use skiff_storage::{Compare, Op, Payload, Revision};
use tokio::time::{Instant, interval};

use super::overwrite;
use crate::server::Inner;

const PREFIX: &str = "/registry/masterleases/";
/// Between two renewals.
const RENEW: Duration = Duration::from_secs(10);
/// Silence after which a server is taken off.
const SILENT: Duration = Duration::from_secs(30);

/// Publishes this server, and keeps the list where there are more.
pub(super) async fn start(server: &Arc<Inner>) -> Result<(), Status> {
    let (address, port) = server.config.advertise;
    if !server.store.shared() {
        return publish(server, &[SocketAddr::new(address, port)].into()).await;
    }
    let mut peers = Peers::default();
    peers.turn(server).await?;
    let server = Arc::clone(server);
    tokio::spawn(async move {
        let mut clock = interval(RENEW);
        clock.tick().await;
        loop {
            tokio::select! {
                _ = clock.tick() => {}
                () = server.shutdown.cancelled() => break,
            }
            if let Err(status) = peers.turn(&server).await {
                tracing::debug!(why = %status.message, "this server could not be announced; trying again");
            }
        }
        server.store.commit(&key(&server), Compare::Any, Op::Delete).await.ok();
    });
    Ok(())
}

fn key(server: &Inner) -> String {
    let (address, port) = server.config.advertise;
    format!("{PREFIX}{}", SocketAddr::new(address, port))
}

/// What one server knows of the others.
#[derive(Default)]
struct Peers {
    /// The last renewal of each, and when it was first seen.
    seen: BTreeMap<SocketAddr, (Revision, Instant)>,
}

impl Peers {
    /// Renews this server's key and looks for the others'.
    async fn turn(&mut self, server: &Arc<Inner>) -> Result<(), Status> {
        let renewal = Op::Put(Payload::plain("{}"));
        server.store.commit(&key(server), Compare::Any, renewal).await.map_err(crate::registry::storage_error)?;
        let range = server.store.range(PREFIX, None, 0, 0).await.map_err(crate::registry::storage_error)?;
        let found = range.entries.iter().filter_map(|e| Some((e.key.strip_prefix(PREFIX)?.parse().ok()?, e.revision)));
        let alive = self.look(found.collect(), Instant::now());
        // The list may have been changed by others, who saw less: it is compared each time, and written when it differs.
        publish(server, &alive).await
    }

    /// Who is alive, given each one's last renewal.
    fn look(&mut self, found: BTreeMap<SocketAddr, Revision>, now: Instant) -> BTreeSet<SocketAddr> {
        self.seen.retain(|peer, _| found.contains_key(peer));
        for (peer, revision) in found {
            let seen = self.seen.entry(peer).or_insert((revision, now));
            if seen.0 != revision {
                *seen = (revision, now);
            }
        }
        self.seen.iter().filter(|(_, (_, since))| now.duration_since(*since) < SILENT).map(|(peer, _)| *peer).collect()
    }
}

/// The two objects that say where servers are.
fn objects(peers: &BTreeSet<SocketAddr>) -> Option<(Value, Value)> {
    let mut groups: BTreeMap<u16, Vec<IpAddr>> = BTreeMap::new();
    for peer in peers {
        groups.entry(peer.port()).or_default().push(peer.ip());
    }
    let named = |port: u16| json!([{"name": "https", "port": port, "protocol": "TCP"}]);
    let subsets: Vec<Value> = groups
        .iter()
        .map(|(port, list)| {
            let list: Vec<Value> = list.iter().map(|ip| json!({"ip": ip.to_string()})).collect();
            json!({"addresses": list, "ports": named(*port)})
        })
        .collect();
    // A slice has one list of ports: that of most servers.
    let (port, list) = groups.into_iter().rev().max_by_key(|(_, list)| list.len())?;
    let family = if list.iter().all(IpAddr::is_ipv4) { "IPv4" } else { "IPv6" };
    let endpoints: Vec<Value> =
        list.iter().map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}})).collect();
    let old = json!({"kind": "Endpoints", "apiVersion": "v1",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": subsets});
    let slice = json!({"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": family, "endpoints": endpoints, "ports": named(port)});
    Some((old, slice))
}

async fn publish(server: &Arc<Inner>, peers: &BTreeSet<SocketAddr>) -> Result<(), Status> {
    let Some((old, slice)) = objects(peers) else { return Ok(()) };
    overwrite(server, "", "endpoints", old, "subsets").await?;
    overwrite(server, "discovery.k8s.io", "endpointslices", slice, "endpoints").await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_silent_are_taken_off() {
        let [a, b]: [SocketAddr; 2] = ["10.0.0.1:6443", "10.0.0.2:6443"].map(|s| s.parse().unwrap());
        let start = Instant::now();
        let mut peers = Peers::default();
        let mut look = |a_at, b_at: Option<u64>, secs| {
            let found = [(a, a_at)].into_iter().chain(b_at.map(|at| (b, at))).collect();
            peers.look(found, start + Duration::from_secs(secs)).into_iter().collect::<Vec<_>>()
        };
        assert_eq!(look(1, Some(2), 0), [a, b]);
        assert_eq!(look(3, Some(2), 29), [a, b]);
        assert_eq!(look(4, Some(2), 31), [a], "b was silent");
        assert_eq!(look(5, Some(6), 40), [a, b], "b is back");
        assert_eq!(look(7, None, 41), [a], "b took itself off");
    }

    #[test]
    fn ports_of_most_servers() {
        let peers = ["10.0.0.1:6443", "10.0.0.2:6443", "10.0.0.3:7443"].map(|s| s.parse().unwrap()).into();
        let (old, slice) = objects(&peers).unwrap();
        assert_eq!(old["subsets"].as_array().unwrap().len(), 2);
        assert_eq!((slice["ports"][0]["port"].as_u64(), slice["endpoints"].as_array().unwrap().len()), (Some(6443), 2));
        assert!(objects(&BTreeSet::new()).is_none());
    }
}
