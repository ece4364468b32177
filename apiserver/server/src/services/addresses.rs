//! Cluster addresses of Services: which there are, and who has which (KEP-1880).
//!
//! An address is taken by making the IPAddress object of its name: of several servers that share a store one wins, and
//! everybody can see whose it is. It is given back by deleting the object. There are those of every ServiceCIDR that is
//! ready. What a server leaves behind that dies between the two writes, [`super::repair`] finds.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};
use skiff_core::status::Status;
use skiff_storage::{Compare, Error, Op};

use super::{Owner, Taken, cluster_ips, offset, tries};
use crate::registry::Collection;
use crate::server::Inner;

const GROUP: &str = "networking.k8s.io";
/// The labels of the objects, and who makes them.
const MANAGED_BY: &str = "ipaddress.kubernetes.io/managed-by";
const FAMILY: &str = "ipaddress.kubernetes.io/ip-family";
const MANAGER: &str = "ipallocator.k8s.io";
/// How often somebody else may be faster.
const RACES: usize = 64;

/// The IPAddress objects.
pub(super) fn objects(server: &Inner) -> Result<std::sync::Arc<Collection>, Status> {
    server.collection(GROUP, "ipaddresses")
}

/// The ranges that addresses are taken from, that of this server's configuration first.
fn ranges(server: &Inner) -> Result<Vec<IpNet>, Status> {
    let own = server.config.service_cidr.trunc();
    let objects = server.collection(GROUP, "servicecidrs")?.values();
    let of = |o: &Value| -> Vec<IpNet> {
        let all = o["spec"]["cidrs"].as_array().into_iter().flatten();
        let all = all.filter_map(|c| c.as_str()?.parse::<IpNet>().ok()).map(|r| r.trunc());
        all.filter(|r| r.addr().is_ipv4() == own.addr().is_ipv4()).collect()
    };
    let mut all: Vec<IpNet> = objects.iter().filter(|o| usable(o)).flat_map(of).collect();
    // Until its object is there, which the first Services come before.
    if !objects.iter().any(|o| of(o).contains(&own)) {
        all.push(own);
    }
    all.sort_by_key(|r| (*r != own, *r));
    all.dedup();
    Ok(all)
}

/// Whether a ServiceCIDR gives addresses. One of which no controller has said anything does.
fn usable(cidr: &Value) -> bool {
    let conditions = cidr["status"]["conditions"].as_array().into_iter().flatten();
    let ready = conditions.filter(|c| c["type"] == "Ready").all(|c| c["status"] == "True");
    ready && cidr["metadata"]["deletionTimestamp"].is_null()
}

/// Whether an address is one of a range's: not its network's, not that for all.
fn holds(range: &IpNet, address: IpAddr) -> bool {
    range.contains(&address) && address != range.network() && (range.addr().is_ipv6() || address != range.broadcast())
}

/// Takes an address: a certain one, or any. A dry run takes none, and is told the range's own where it asks for none, as
/// upstream's.
pub(super) async fn take(
    server: &Inner,
    wanted: Option<IpAddr>,
    owner: &Owner,
    dry_run: bool,
) -> Result<IpAddr, Taken> {
    let ranges = ranges(server).map_err(Taken::Failed)?;
    if let Some(address) = wanted {
        return match ranges.iter().any(|r| holds(r, address)) {
            false => Err(Taken::OutOfRange),
            true if dry_run || make(server, address, owner).await? => Ok(address),
            true => Err(Taken::InUse),
        };
    }
    if dry_run {
        return ranges.first().map(IpNet::network).ok_or(Taken::Full);
    }
    let objects = objects(server).map_err(Taken::Failed)?;
    let mut races = 0;
    for address in ranges.iter().flat_map(|r| candidates(*r)) {
        if objects.peek("", &address.to_string()).is_some() {
            continue;
        }
        if make(server, address, owner).await? {
            return Ok(address);
        }
        races += 1;
        if races == RACES {
            break;
        }
    }
    Err(Taken::Full)
}

/// Addresses in the order in which they are tried: from the upper part first, at random and then all; the lower part is
/// left for people who pick addresses by hand (KEP-3070).
fn candidates(range: IpNet) -> impl Iterator<Item = IpAddr> {
    let bits = u32::from(range.max_prefix_len() - range.prefix_len()).min(16);
    let size = (1u64 << bits).saturating_sub(2);
    let low = (size / 16).clamp(16, 256).min(size / 2);
    let random = (low < size).then(|| tries(low..=size - 1)).into_iter().flatten();
    random.chain(low..size).chain(0..low).map(move |n| offset(range, n + 1))
}

/// Makes the object of an address; `false` when there is one.
pub(super) async fn make(server: &Inner, address: IpAddr, owner: &Owner) -> Result<bool, Status> {
    let (namespace, name) = owner.key.split_once('/').unwrap_or_default();
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let object = json!({"kind": "IPAddress", "apiVersion": "networking.k8s.io/v1",
        "metadata": {"name": address.to_string(), "labels": {FAMILY: family, MANAGED_BY: MANAGER}},
        "spec": {"parentRef": {"resource": "services", "namespace": namespace, "name": name}}});
    objects(server)?.make(object).await
}

/// Gives addresses back that this Service has. What cannot be given back now is found later.
pub(super) async fn release(server: &Inner, owner: &Owner, addresses: &[IpAddr]) {
    for address in addresses {
        let ours = |o: &Value| service_of(o).is_some_and(|key| key == owner.key);
        if let Err(error) = remove(server, &address.to_string(), ours).await {
            tracing::warn!(%address, error = %error.message, "an address stays taken for a while");
        }
    }
}

/// Removes an address's object, if it is as it should be for that.
pub(super) async fn remove(server: &Inner, name: &str, when: impl Fn(&Value) -> bool) -> Result<(), Status> {
    let objects = objects(server)?;
    let key = objects.key("", name);
    let mut found = objects.store.get(&key).await.map_err(crate::registry::storage_error)?;
    for _ in 0..RACES {
        let Some(entry) = found else { return Ok(()) };
        let object: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
        if !when(&object) {
            return Ok(());
        }
        match objects.store.commit(&key, Compare::At(entry.revision), Op::Delete).await {
            Ok(_) => return Ok(()),
            Err(Error::Conflict { current }) => found = current,
            Err(e) => return Err(crate::registry::storage_error(e)),
        }
    }
    Ok(())
}

/// Whether an IPAddress was made here, and not by another program for its own ends.
pub(super) fn managed(address: &Value) -> bool {
    address["metadata"]["labels"][MANAGED_BY] == MANAGER
}

/// The Service that an IPAddress names, as namespace and name.
pub(super) fn service_of(address: &Value) -> Option<String> {
    let parent = &address["spec"]["parentRef"];
    let group = parent["group"].as_str().unwrap_or_default();
    let text = |field: &str| parent[field].as_str();
    (group.is_empty() && text("resource") == Some("services"))
        .then(|| Some(format!("{}/{}", text("namespace")?, text("name")?)))
        .flatten()
}

/// Whether a Service has the address of this name.
pub(super) fn held(service: &Value, address: &str) -> bool {
    cluster_ips(service).iter().any(|a| a.to_string() == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_every_size_give_each_address_once_at_least() {
        for (range, size) in [("10.0.0.0/32", 0), ("10.0.0.0/31", 0), ("10.0.0.0/30", 2), ("10.0.0.0/24", 254)] {
            let range: IpNet = range.parse().unwrap();
            let all: std::collections::BTreeSet<IpAddr> = candidates(range).collect();
            assert_eq!(all.len(), size, "{range}");
            assert!(all.iter().all(|a| holds(&range, *a)), "{range}");
        }
        let wide: IpNet = "fd00::/112".parse().unwrap();
        assert!(candidates(wide).take(100).all(|a| holds(&wide, a)));
    }

    #[test]
    fn the_first_addresses_are_tried_last() {
        let range: IpNet = "10.0.0.0/24".parse().unwrap();
        let late: Vec<IpAddr> = candidates(range).skip(super::super::TRIES + 254 - 16).collect();
        assert_eq!(late.len(), 16);
        assert_eq!(late[0].to_string(), "10.0.0.1");
    }

    #[test]
    fn what_is_not_ready_or_goes_gives_no_addresses() {
        let cidr =
            |status: &str| json!({"metadata": {}, "status": {"conditions": [{"type": "Ready", "status": status}]}});
        assert!(usable(&cidr("True")) && usable(&json!({"metadata": {}})));
        assert!(!usable(&cidr("False")));
        assert!(!usable(&json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})));
    }
}
