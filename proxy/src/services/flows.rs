//! What is left over of a removed endpoint: connections that the kernel remembers, and clients that stick to it.
//!
//! Only UDP: a TCP connection ends with its endpoint, but a UDP client that keeps its port would talk into the void
//! for as long as it talks, since every packet renews the entry.

use std::collections::{BTreeSet, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use super::frontends::{Action, Frontend, Key, Scope};
use super::nft::{self, Error};
use super::rules::{Change, Rules};
use crate::model::Protocol;

/// Calls of `conntrack` after one update; beyond that, whole frontends are forgotten instead of single endpoints, and
/// beyond that all redirected flows.
const PRECISE: usize = 64;

/// What must be forgotten after some changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stale {
    /// UDP frontends with an endpoint they no longer have; `None` stands for packets that were not redirected at all.
    pub flows: BTreeSet<(Key, Option<Ipv4Addr>)>,
    /// Whether a frontend with affinity has lost an endpoint.
    pub clients: bool,
}

/// Reads from changes what must be forgotten once they are in force.
pub fn stale(changes: &[Change]) -> Stale {
    let mut stale = Stale::default();
    for change in changes {
        let Change::Frontend(key, old, new) = change else { continue };
        let (before, after) = (endpoints(old.as_ref()), endpoints(new.as_ref()));
        let lost = || before.iter().filter(|endpoint| !after.contains(endpoint));
        if key.protocol == Protocol::Udp {
            stale.flows.extend(lost().map(|endpoint| (*key, Some(*endpoint.ip()))));
            if before.is_empty() && !after.is_empty() {
                stale.flows.insert((*key, None));
            }
        }
        let sticky = |f: &Option<Frontend>| {
            matches!(f, Some(Frontend { action: Action::Balance { affinity: Some(_), .. }, .. }))
        };
        stale.clients |= sticky(old) && (lost().next().is_some() || !sticky(new));
    }
    stale
}

fn endpoints(frontend: Option<&Frontend>) -> &[SocketAddrV4] {
    match frontend.map(|f| &f.action) {
        Some(Action::Balance { endpoints, .. }) => endpoints,
        _ => &[],
    }
}

/// Makes the kernel forget UDP connections to endpoints that are gone.
pub async fn forget(flows: &BTreeSet<(Key, Option<Ipv4Addr>)>) {
    let coarse: BTreeSet<_> = flows.iter().map(|(key, _)| (*key, None)).collect();
    let flows = if flows.len() > PRECISE { &coarse } else { flows };
    if flows.len() > PRECISE {
        // At a start with many Services: every redirected flow finds its way again with its next packet.
        if let Err(Error::Start { source, .. }) = nft::run("conntrack", &["-D", "-p", "udp", "--dst-nat"], "").await {
            tracing::warn!(error = %source, "conntrack is missing: UDP clients of removed endpoints may hang");
        }
        return;
    }
    for (key, endpoint) in flows {
        let port = key.port.to_string();
        let mut args = vec!["-D".to_string(), "-p".into(), "udp".into(), "--dport".into(), port];
        if matches!(key.scope, Scope::Vip | Scope::VipExternal) {
            args.extend(["--orig-dst".into(), key.address.to_string()]);
        }
        if let Some(endpoint) = endpoint {
            args.extend(["--reply-src".into(), endpoint.to_string()]);
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        // It also fails when there is nothing to delete, which is the usual case.
        if let Err(Error::Start { source, .. }) = nft::run("conntrack", &args, "").await {
            tracing::warn!(error = %source, "conntrack is missing: UDP clients of removed endpoints may hang");
            return;
        }
    }
}

/// Makes the table forget clients that stick to endpoints that are gone.
pub async fn forget_clients(table: &str, rules: &Rules) -> nft::Result<()> {
    let listed = nft::run("nft", &["-nj", "list", "map", "ip", table, "affinity"], "").await?;
    let valid = |address, protocol, port, endpoint| {
        let key = |scope, address| Key { scope, address, protocol, port };
        [key(Scope::Vip, address), key(Scope::Node, Ipv4Addr::UNSPECIFIED)].into_iter().any(|key| {
            let frontend = rules.frontends.get(&key);
            let sticky = matches!(frontend.map(|f| &f.action), Some(Action::Balance { affinity: Some(_), .. }));
            sticky && endpoints(frontend).contains(&endpoint)
        })
    };
    let stale: Vec<String> = remembered(&listed)
        .into_iter()
        .filter(|r| !valid(r.address, r.protocol, r.port, r.endpoint))
        .map(|r| {
            let (protocol, endpoint) = (r.protocol.name(), r.endpoint);
            let key = format!("{} . {} . {protocol} . {}", r.client, r.address, r.port);
            format!("{key} : {} . {}", endpoint.ip(), endpoint.port())
        })
        .collect();
    if stale.is_empty() {
        return Ok(());
    }
    let delete = |elements: &str| format!("delete element ip {table} affinity {{ {elements} }}\n");
    if nft::load(&delete(&stale.join(", "))).await.is_ok() {
        return Ok(());
    }
    // One has expired in between, which fails them all. One by one, the expired ones alone fail.
    for element in stale {
        let _ = nft::load(&delete(&element)).await;
    }
    Ok(())
}

/// A client's endpoint, as the table remembers it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Remembered {
    client: Ipv4Addr,
    address: Ipv4Addr,
    protocol: Protocol,
    port: u16,
    endpoint: SocketAddrV4,
}

/// Reads nft's JSON of the affinity map. What it does not understand it leaves out.
fn remembered(listed: &str) -> HashSet<Remembered> {
    let parsed: serde_json::Value = serde_json::from_str(listed).unwrap_or_default();
    let maps = parsed["nftables"].as_array().into_iter().flatten();
    let elements = maps.flat_map(|item| item["map"]["elem"].as_array().into_iter().flatten());
    elements
        .filter_map(|pair| {
            let key = pair[0]["elem"]["val"]["concat"].as_array().or_else(|| pair[0]["concat"].as_array())?;
            let data = pair[1]["concat"].as_array()?;
            let port = |value: &serde_json::Value| u16::try_from(value.as_u64()?).ok();
            let protocol = match key.get(2)? {
                name if name == "tcp" || name == 6 => Protocol::Tcp,
                name if name == "udp" || name == 17 => Protocol::Udp,
                name if name == "sctp" || name == 132 => Protocol::Sctp,
                _ => return None,
            };
            Some(Remembered {
                client: key.first()?.as_str()?.parse().ok()?,
                address: key.get(1)?.as_str()?.parse().ok()?,
                protocol,
                port: port(key.get(3)?)?,
                endpoint: SocketAddrV4::new(data.first()?.as_str()?.parse().ok()?, port(data.get(1)?)?),
            })
        })
        .collect()
}
