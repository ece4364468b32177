//! Cluster addresses and node ports of Services.
//!
//! What is in use is known from the Services themselves (read once, then kept in step with every write of this server).
//! Allocation is random within the range, as upstream, from the upper part first: the lower part stays free for people
//! who pick addresses by hand.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use ipnet::IpNet;
use parking_lot::Mutex;
use rand::Rng;
use serde_json::{Value, json};
use skiff_core::invalid::Errors;
use skiff_core::meta;
use skiff_core::path::Path;
use skiff_core::status::Status;

use crate::registry::Hooks;
use crate::registry::hooks::Undo;
use crate::server::Inner;

#[derive(Default)]
struct Used {
    loaded: bool,
    addresses: HashSet<IpAddr>,
    /// Port and protocol to the Service's key.
    ports: HashMap<(u16, String), String>,
}

/// The allocator.
pub struct Addresses {
    cidr: IpNet,
    ports: (u16, u16),
    used: Mutex<Used>,
}

/// Random tries before the range is walked.
const TRIES: usize = 64;

impl Addresses {
    /// An allocator over these ranges.
    #[must_use]
    pub fn new(cidr: IpNet, ports: (u16, u16)) -> Self {
        Self { cidr, ports, used: Mutex::default() }
    }

    fn load(&self, server: &Inner) {
        let mut used = self.used.lock();
        if used.loaded {
            return;
        }
        used.loaded = true;
        if let Ok(c) = server.collection("", "services") {
            for s in c.values() {
                for a in cluster_ips(&s) {
                    used.addresses.insert(a);
                }
                for (p, proto) in node_ports(&s) {
                    used.ports.insert((p, proto), key(&s));
                }
            }
        }
    }

    /// The address of the `kubernetes` Service: the first of the range.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        offset(self.cidr, 1)
    }

    /// The `n`th address of the range.
    #[must_use]
    pub fn nth(&self, n: u64) -> IpAddr {
        offset(self.cidr, n)
    }

    fn take(&self, wanted: Option<IpAddr>) -> Result<IpAddr, Taken> {
        let mut used = self.used.lock();
        if let Some(a) = wanted {
            if !self.cidr.contains(&a) || a == self.cidr.network() || a == self.cidr.broadcast() {
                return Err(Taken::OutOfRange);
            }
            return if used.addresses.insert(a) { Ok(a) } else { Err(Taken::InUse) };
        }
        let bits = u32::from(self.cidr.max_prefix_len() - self.cidr.prefix_len()).min(16);
        let size = (1u64 << bits) - 2;
        // min(max(16, size/16), 256) low addresses are left for manual choice.
        let low = (size / 16).clamp(16, 256).min(size / 2);
        let mut rng = rand::rng();
        let random = (0..TRIES).map(|_| rng.random_range(low..size) + 1).collect::<Vec<_>>();
        for n in random.into_iter().chain((low..size).map(|n| n + 1)).chain((1..low).map(|n| n + 1)) {
            let a = offset(self.cidr, n);
            if used.addresses.insert(a) {
                return Ok(a);
            }
        }
        Err(Taken::Full)
    }

    fn take_port(&self, wanted: Option<u16>, protocol: &str, owner: &str) -> Result<u16, Taken> {
        let mut used = self.used.lock();
        let (lo, hi) = self.ports;
        if let Some(p) = wanted {
            if p < lo || p > hi {
                return Err(Taken::OutOfRange);
            }
            // One Service may use one number for several protocols.
            let other = used.ports.iter().any(|((n, proto), o)| *n == p && (proto == protocol || o != owner));
            if other {
                return Err(Taken::InUse);
            }
            used.ports.insert((p, protocol.into()), owner.into());
            return Ok(p);
        }
        let mut rng = rand::rng();
        let low = lo + ((hi - lo) / 32).clamp(16, 128);
        let random = (0..TRIES).map(|_| rng.random_range(low..=hi)).collect::<Vec<_>>();
        for p in random.into_iter().chain(low..=hi).chain(lo..low) {
            if !used.ports.keys().any(|(n, _)| *n == p) {
                used.ports.insert((p, protocol.into()), owner.into());
                return Ok(p);
            }
        }
        Err(Taken::Full)
    }

    fn release(&self, addresses: &[IpAddr], ports: &[(u16, String)]) {
        let mut used = self.used.lock();
        for a in addresses {
            used.addresses.remove(a);
        }
        for p in ports {
            used.ports.remove(p);
        }
    }
}

enum Taken {
    OutOfRange,
    InUse,
    Full,
}

fn offset(cidr: IpNet, n: u64) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(a) => IpAddr::V4((u32::from(a).wrapping_add(u32::try_from(n).unwrap_or(0))).into()),
        IpAddr::V6(a) => IpAddr::V6((u128::from(a).wrapping_add(u128::from(n))).into()),
    }
}

fn key(s: &Value) -> String {
    format!("{}/{}", meta::namespace(s), meta::name(s))
}

fn cluster_ips(s: &Value) -> Vec<IpAddr> {
    let list = s["spec"]["clusterIPs"].as_array().into_iter().flatten();
    let mut out: Vec<IpAddr> = list.filter_map(|v| v.as_str()?.parse().ok()).collect();
    if let Some(a) = s["spec"]["clusterIP"].as_str().and_then(|a| a.parse().ok())
        && !out.contains(&a)
    {
        out.push(a);
    }
    out
}

fn node_ports(s: &Value) -> Vec<(u16, String)> {
    let mut out: Vec<(u16, String)> = s["spec"]["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|p| {
            let n = u16::try_from(p["nodePort"].as_i64()?).ok().filter(|n| *n > 0)?;
            Some((n, p["protocol"].as_str().unwrap_or("TCP").to_owned()))
        })
        .collect();
    if let Some(h) = s["spec"]["healthCheckNodePort"].as_i64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0) {
        out.push((h, "TCP".into()));
    }
    out
}

fn kind_of(s: &Value) -> &str {
    s["spec"]["type"].as_str().unwrap_or("ClusterIP")
}

fn headless(s: &Value) -> bool {
    s["spec"]["clusterIP"] == "None"
}

fn wants_address(s: &Value) -> bool {
    kind_of(s) != "ExternalName" && !headless(s)
}

fn wants_ports(s: &Value) -> bool {
    match kind_of(s) {
        "NodePort" => true,
        "LoadBalancer" => s["spec"]["allocateLoadBalancerNodePorts"] != false,
        _ => false,
    }
}

/// Addresses and node ports with their protocols that were newly taken.
type Allocated = (Vec<IpAddr>, Vec<(u16, String)>);

/// Allocation on writes of Services.
pub struct ServiceHooks;

impl ServiceHooks {
    /// Fills in what is missing; answers what was newly taken.
    ///
    /// Like upstream's, a dry run takes an asked node port as it is, in or out of the range, unless somebody has it.
    fn allocate(server: &Arc<Inner>, s: &mut Value, old: Option<&Value>, dry_run: bool) -> Result<Allocated, Status> {
        let a = &server.addresses;
        a.load(server);
        let (mut addresses, mut ports) = (vec![], vec![]);
        let owner = key(s);
        let name = meta::name(s).to_owned();
        let mut errors = Errors::new();
        let spec = Path::new("spec");
        let before_ips = old.map(cluster_ips).unwrap_or_default();
        let before_ports = old.map(node_ports).unwrap_or_default();
        if wants_address(s) {
            let wanted = cluster_ips(s);
            match wanted.first() {
                None => match a.take(None) {
                    Ok(ip) => {
                        addresses.push(ip);
                        s["spec"]["clusterIP"] = ip.to_string().into();
                        s["spec"]["clusterIPs"] = json!([ip.to_string()]);
                    }
                    Err(_) => {
                        return Err(Status::internal("failed to allocate IP: range is full"));
                    }
                },
                Some(ip) if !before_ips.contains(ip) => match a.take(Some(*ip)) {
                    Ok(ip) => addresses.push(ip),
                    Err(t) => {
                        let list = Value::from(vec![ip.to_string()]);
                        let why = match t {
                            Taken::InUse => format!("failed to allocate IP {ip}: provided IP is already allocated"),
                            _ => format!(
                                "failed to allocate IP {ip}: the provided network does not match the current range, provided IP is not in the valid range. The range of valid IPs is {}",
                                a.cidr
                            ),
                        };
                        let why = match t {
                            Taken::OutOfRange => format!(
                                "failed to allocate IP {ip}: the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                                a.cidr
                            ),
                            _ => why,
                        };
                        errors.invalid_raw(&spec.child("clusterIPs"), list.to_string(), why);
                    }
                },
                Some(_) => {}
            }
        }
        if errors.is_empty() && wants_ports(s) {
            let list = s["spec"]["ports"].as_array().cloned().unwrap_or_default();
            let mut given: Vec<(i64, u16)> = vec![];
            for (i, p) in list.iter().enumerate() {
                let protocol = p["protocol"].as_str().unwrap_or("TCP").to_owned();
                let wanted = p["nodePort"].as_i64().unwrap_or(0);
                let number = p["port"].as_i64().unwrap_or(0);
                if wanted > 0 && before_ports.contains(&(u16::try_from(wanted).unwrap_or(0), protocol.clone())) {
                    continue;
                }
                // The same port over another protocol shares its node port.
                let shared = given.iter().find(|(n, _)| *n == number).map(|(_, p)| *p);
                let ask = if wanted == 0 { shared } else { Some(u16::try_from(wanted).unwrap_or(0)) };
                let path = spec.child("ports");
                match a.take_port(ask, &protocol, &owner) {
                    Ok(n) => {
                        ports.push((n, protocol));
                        given.push((number, n));
                        s["spec"]["ports"][i]["nodePort"] = n.into();
                    }
                    Err(Taken::OutOfRange) if dry_run => {}
                    Err(t) => {
                        let why = match t {
                            Taken::InUse => "provided port is already allocated".to_owned(),
                            Taken::OutOfRange => format!(
                                "provided port is not in the valid range. The range of valid ports is {}-{}",
                                a.ports.0, a.ports.1
                            ),
                            Taken::Full => "range is full".to_owned(),
                        };
                        errors.invalid(&path.index(i).child("nodePort"), wanted, why);
                        break;
                    }
                }
            }
            let local = kind_of(s) == "LoadBalancer" && s["spec"]["externalTrafficPolicy"] == "Local";
            let missing = local && s["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0) == 0;
            if errors.is_empty()
                && missing
                && let Ok(n) = a.take_port(None, "TCP", &owner)
            {
                ports.push((n, "TCP".into()));
                s["spec"]["healthCheckNodePort"] = n.into();
            }
        }
        if !errors.is_empty() {
            a.release(&addresses, &ports);
            return Err(Status::invalid("", "Service", &name, &errors));
        }
        Ok((addresses, ports))
    }

    fn undo(server: &Arc<Inner>, addresses: Vec<IpAddr>, ports: Vec<(u16, String)>) -> Undo {
        if addresses.is_empty() && ports.is_empty() {
            return None;
        }
        let server = Arc::clone(server);
        Some(Box::new(move || server.addresses.release(&addresses, &ports)))
    }
}

impl Hooks for ServiceHooks {
    fn before_create<'a>(
        &'a self,
        server: &'a Arc<Inner>,
        obj: &'a mut Value,
        dry_run: bool,
    ) -> BoxFuture<'a, Result<Undo, Status>> {
        // The caller gives everything back after a dry run.
        Box::pin(async move {
            let (a, p) = Self::allocate(server, obj, None, dry_run)?;
            Ok(Self::undo(server, a, p))
        })
    }

    fn before_update<'a>(
        &'a self,
        server: &'a Arc<Inner>,
        new: &'a mut Value,
        old: &'a Value,
        dry_run: bool,
    ) -> BoxFuture<'a, Result<Undo, Status>> {
        Box::pin(async move {
            let (a, p) = Self::allocate(server, new, Some(old), dry_run)?;
            Ok(Self::undo(server, a, p))
        })
    }

    fn patch_allocated(&self, new: &mut Value, old: &Value) {
        skiff_core::kinds::service_patch_allocated(new, old);
    }

    fn after_update(&self, server: &Arc<Inner>, new: &Value, old: &Value) {
        let (now_a, now_p) = (cluster_ips(new), node_ports(new));
        let gone_a: Vec<_> = cluster_ips(old).into_iter().filter(|x| !now_a.contains(x)).collect();
        let gone_p: Vec<_> = node_ports(old).into_iter().filter(|x| !now_p.contains(x)).collect();
        server.addresses.release(&gone_a, &gone_p);
    }

    fn after_delete(&self, server: &Arc<Inner>, obj: &Value) {
        server.addresses.release(&cluster_ips(obj), &node_ports(obj));
    }
}
