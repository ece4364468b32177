//! Cluster addresses and node ports of Services.
//!
//! Whose an address is says an object ([`addresses`]). Which node ports are in use is known from the Services themselves
//! (read once, then kept in step with every write of this server); where several servers share a store, that is only a
//! hint: each port is claimed by a key of its own ([`claims`]), and whoever makes the key has it.
//! Allocation is random within the range, as upstream, from the upper part first: the lower part stays free for people
//! who pick by hand.

mod addresses;
pub mod claims;
pub mod repair;

use std::collections::HashMap;
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

    async fn take_port(
        &self,
        server: &Inner,
        wanted: Option<u16>,
        protocol: &str,
        owner: &Owner,
    ) -> Result<u16, Taken> {
        let (lo, hi) = self.ports;
        if let Some(p) = wanted {
            if p < lo || p > hi {
                return Err(Taken::OutOfRange);
            }
            if server.store.shared() {
                return claims::port(server, p, protocol, owner).await?.then_some(p).ok_or(Taken::InUse);
            }
            let mut used = self.used.lock();
            if used.ports.keys().any(|(n, _)| *n == p) {
                return Err(Taken::InUse);
            }
            used.ports.insert((p, protocol.into()), owner.key.clone());
            return Ok(p);
        }
        let low = lo + ((hi - lo) / 32).clamp(16, 128);
        let candidates = tries(low..=hi).chain(low..=hi).chain(lo..low);
        if !server.store.shared() {
            let mut used = self.used.lock();
            let free = candidates.into_iter().find(|p| !used.ports.keys().any(|(n, _)| n == p)).ok_or(Taken::Full)?;
            used.ports.insert((free, protocol.into()), owner.key.clone());
            return Ok(free);
        }
        let held = claims::ports(server).await?;
        for p in candidates.filter(|p| !held.contains(p)).take(TRIES) {
            if claims::port(server, p, protocol, owner).await? {
                return Ok(p);
            }
        }
        Err(Taken::Full)
    }

    /// Notes that the owner uses a port that is its own for another protocol, too.
    async fn share(
        &self,
        server: &Inner,
        port: i64,
        protocol: &str,
        owner: &Owner,
        ports: &mut Vec<(u16, String)>,
    ) -> Result<(), Status> {
        let Ok(port) = u16::try_from(port) else { return Ok(()) };
        let new = if server.store.shared() {
            claims::port(server, port, protocol, owner).await.map_err(crate::registry::storage_error)?
        } else {
            self.used.lock().ports.insert((port, protocol.to_owned()), owner.key.clone()).is_none()
        };
        if new {
            ports.push((port, protocol.to_owned()));
        }
        Ok(())
    }

    async fn give_back(&self, server: &Inner, owner: &Owner, addresses: &[IpAddr], ports: &[(u16, String)]) {
        addresses::release(server, owner, addresses).await;
        if server.store.shared() {
            claims::release(server, owner, ports).await;
        } else {
            self.release(ports);
        }
    }

    fn release(&self, ports: &[(u16, String)]) {
        let mut used = self.used.lock();
        for p in ports {
            used.ports.remove(p);
        }
    }
}

/// Random numbers to begin with.
fn tries<T: rand::distr::uniform::SampleUniform + PartialOrd + Copy>(
    range: std::ops::RangeInclusive<T>,
) -> impl Iterator<Item = T> {
    let mut rng = rand::rng();
    (0..TRIES).map(|_| rng.random_range(range.clone())).collect::<Vec<_>>().into_iter()
}

enum Taken {
    OutOfRange,
    InUse,
    Full,
    Failed(Status),
}

impl From<skiff_storage::Error> for Taken {
    fn from(e: skiff_storage::Error) -> Self {
        Self::Failed(crate::registry::storage_error(e))
    }
}

impl From<Status> for Taken {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

/// A Service that takes and gives back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Namespace and name.
    pub key: String,
    /// Which of the Services that had this name.
    pub uid: String,
}

impl Owner {
    fn of(s: &Value) -> Self {
        Self { key: key(s), uid: meta::uid(s).to_owned() }
    }
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
    matches!(kind_of(s), "NodePort" | "LoadBalancer")
}

/// Whether ports that ask for no node port get one. Those that ask get it in any case.
fn gives_ports(s: &Value) -> bool {
    kind_of(s) != "LoadBalancer" || s["spec"]["allocateLoadBalancerNodePorts"] != false
}

fn node_port(port: &Value) -> i64 {
    port["nodePort"].as_i64().unwrap_or(0)
}

fn protocol(port: &Value) -> &str {
    port["protocol"].as_str().unwrap_or("TCP")
}

/// Addresses and node ports with their protocols that were newly taken.
type Allocated = (Vec<IpAddr>, Vec<(u16, String)>);

/// Allocation on writes of Services.
pub struct ServiceHooks;

impl ServiceHooks {
    /// Fills in what is missing; answers what was newly taken.
    ///
    /// Like upstream's, a dry run takes an asked node port as it is, in or out of the range, unless somebody has it.
    async fn allocate(
        server: &Arc<Inner>,
        s: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<Allocated, Status> {
        let a = &server.addresses;
        if !server.store.shared() {
            a.load(server);
        }
        let (mut addresses, mut ports) = (vec![], vec![]);
        let owner = Owner::of(old.unwrap_or(s));
        let name = meta::name(s).to_owned();
        let mut errors = Errors::new();
        let spec = Path::new("spec");
        // One that had an address keeps it: a change is refused when the rest is checked.
        if wants_address(s) && old.is_none_or(|o| kind_of(o) == "ExternalName") {
            let wanted = cluster_ips(s);
            match wanted.first() {
                None => match addresses::take(server, None, &owner, dry_run).await {
                    Ok(ip) => {
                        addresses.extend((!dry_run).then_some(ip));
                        s["spec"]["clusterIP"] = ip.to_string().into();
                        s["spec"]["clusterIPs"] = json!([ip.to_string()]);
                    }
                    Err(Taken::Failed(status)) => return Err(status),
                    Err(_) => {
                        return Err(Status::internal("failed to allocate IP: range is full"));
                    }
                },
                Some(ip) => match addresses::take(server, Some(*ip), &owner, dry_run).await {
                    Ok(ip) => addresses.extend((!dry_run).then_some(ip)),
                    Err(Taken::Failed(status)) => return Err(status),
                    Err(t) => {
                        let list = Value::from(vec![ip.to_string()]);
                        let why = match t {
                            Taken::InUse => "provided IP is already allocated".to_owned(),
                            // Upstream's dry runs ask one range only.
                            _ if dry_run => format!(
                                "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {}",
                                a.cidr
                            ),
                            _ => "the provided network does not match the current range".to_owned(),
                        };
                        let why = format!("failed to allocate IP {ip}: {why}");
                        errors.invalid_raw(&spec.child("clusterIPs"), list.to_string(), why);
                    }
                },
            }
        }
        if errors.is_empty() && wants_ports(s) {
            let taken = match old {
                None => Self::first_ports(server, s, &owner, dry_run, &mut ports).await,
                Some(old) => Self::next_ports(server, s, old, &owner, dry_run, &mut ports).await,
            };
            if let Err(status) = taken {
                a.give_back(server, &owner, &addresses, &ports).await;
                return Err(status);
            }
            let local = kind_of(s) == "LoadBalancer" && s["spec"]["externalTrafficPolicy"] == "Local";
            let missing = local && s["spec"]["healthCheckNodePort"].as_i64().unwrap_or(0) == 0;
            if errors.is_empty()
                && missing
                && let Ok(n) = a.take_port(server, None, "TCP", &owner).await
            {
                ports.push((n, "TCP".into()));
                s["spec"]["healthCheckNodePort"] = n.into();
            }
        }
        if !errors.is_empty() {
            a.give_back(server, &owner, &addresses, &ports).await;
            return Err(Status::invalid("", "Service", &name, &errors));
        }
        Ok((addresses, ports))
    }

    /// Node ports of a new Service. Ports of one number share theirs, over whatever protocols.
    async fn first_ports(
        server: &Arc<Inner>,
        s: &mut Value,
        owner: &Owner,
        dry_run: bool,
        ports: &mut Vec<(u16, String)>,
    ) -> Result<(), Status> {
        let list = s["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let number = |p: &Value| p["port"].as_i64().unwrap_or(0);
        let mut given: HashMap<i64, i64> = HashMap::new();
        for (i, p) in list.iter().enumerate() {
            let asked = node_port(p);
            if asked == 0 && !gives_ports(s) {
                continue;
            }
            let taken = match given.get(&number(p)) {
                Some(shared) if asked == 0 || asked == *shared => {
                    server.addresses.share(server, *shared, protocol(p), owner, ports).await?;
                    *shared
                }
                Some(_) => Self::port_at(server, s, i, asked, owner, dry_run, ports).await?,
                None => {
                    let wish = list.iter().filter(|q| number(q) == number(p)).map(node_port).find(|n| *n != 0);
                    let n = Self::port_at(server, s, i, wish.unwrap_or(0), owner, dry_run, ports).await?;
                    given.insert(number(p), n);
                    n
                }
            };
            s["spec"]["ports"][i]["nodePort"] = taken.into();
        }
        Ok(())
    }

    /// Node ports of a Service that changes: those it had stay its own.
    async fn next_ports(
        server: &Arc<Inner>,
        s: &mut Value,
        old: &Value,
        owner: &Owner,
        dry_run: bool,
        ports: &mut Vec<(u16, String)>,
    ) -> Result<(), Status> {
        let list = s["spec"]["ports"].as_array().cloned().unwrap_or_default();
        let had: Vec<i64> = node_ports(old).into_iter().map(|(n, _)| n.into()).collect();
        let mut now: Vec<(i64, &str)> = vec![];
        for (i, p) in list.iter().enumerate() {
            let asked = node_port(p);
            if asked == 0 && !gives_ports(s) {
                continue;
            }
            let own = had.contains(&asked) || now.iter().any(|(n, _)| *n == asked);
            let taken = if asked != 0 && own {
                server.addresses.share(server, asked, protocol(p), owner, ports).await?;
                asked
            } else {
                Self::port_at(server, s, i, asked, owner, dry_run, ports).await?
            };
            s["spec"]["ports"][i]["nodePort"] = taken.into();
            if now.contains(&(taken, protocol(p))) {
                return Err(Status::untyped(format!("duplicate nodePort: {{{} {taken}}}", protocol(p))));
            }
            now.push((taken, protocol(p)));
        }
        Ok(())
    }

    /// Takes the node port of the `i`th port: `asked`, or any when that is 0.
    async fn port_at(
        server: &Arc<Inner>,
        s: &Value,
        i: usize,
        asked: i64,
        owner: &Owner,
        dry_run: bool,
        ports: &mut Vec<(u16, String)>,
    ) -> Result<i64, Status> {
        let a = &server.addresses;
        let protocol = protocol(&s["spec"]["ports"][i]);
        let wanted = (asked != 0).then(|| u16::try_from(asked).unwrap_or(0));
        let why = match a.take_port(server, wanted, protocol, owner).await {
            Ok(n) => {
                ports.push((n, protocol.to_owned()));
                return Ok(n.into());
            }
            Err(Taken::OutOfRange) if dry_run => return Ok(asked),
            Err(Taken::Failed(status)) => return Err(status),
            Err(Taken::Full) => return Err(Status::internal("failed to allocate a nodePort: range is full")),
            Err(Taken::InUse) => "provided port is already allocated".to_owned(),
            Err(Taken::OutOfRange) => format!(
                "provided port is not in the valid range. The range of valid ports is {}-{}",
                a.ports.0, a.ports.1
            ),
        };
        let mut errors = Errors::new();
        let path = Path::new("spec");
        errors.invalid(&path.child("ports").index(i).child("nodePort"), asked, why);
        Err(Status::invalid("", "Service", meta::name(s), &errors))
    }

    fn undo(server: &Arc<Inner>, owner: Owner, addresses: Vec<IpAddr>, ports: Vec<(u16, String)>) -> Undo {
        if addresses.is_empty() && ports.is_empty() {
            return None;
        }
        let server = Arc::clone(server);
        // Should this process end before it is done, what was taken is found later.
        Some(Box::pin(async move { server.addresses.give_back(&server, &owner, &addresses, &ports).await }))
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
            let (a, p) = Self::allocate(server, obj, None, dry_run).await?;
            Ok(Self::undo(server, Owner::of(obj), a, p))
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
            let (a, p) = Self::allocate(server, new, Some(old), dry_run).await?;
            Ok(Self::undo(server, Owner::of(old), a, p))
        })
    }

    fn patch_allocated(&self, new: &mut Value, old: &Value) {
        skiff_core::kinds::service_patch_allocated(new, old);
    }

    fn after_update<'a>(&'a self, server: &'a Arc<Inner>, new: &'a Value, old: &'a Value) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let (now_a, now_p) = (cluster_ips(new), node_ports(new));
            let gone_a: Vec<_> = cluster_ips(old).into_iter().filter(|x| !now_a.contains(x)).collect();
            let gone_p: Vec<_> = node_ports(old).into_iter().filter(|x| !now_p.contains(x)).collect();
            server.addresses.give_back(server, &Owner::of(old), &gone_a, &gone_p).await;
        })
    }

    fn after_delete<'a>(&'a self, server: &'a Arc<Inner>, obj: &'a Value) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            server.addresses.give_back(server, &Owner::of(obj), &cluster_ips(obj), &node_ports(obj)).await;
        })
    }
}
