//! The table against the kernel: a node, two pods and an outside client, each in a network namespace of its own.
//!
//! Needs root, `ip` and `nft`; without root every test says so and passes.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use skiff_proxy::index::Index;
use skiff_proxy::model::{Endpoint, Id, Port, Protocol, Service, Slice, SlicePort};
use skiff_proxy::services::rules::Frame;
use skiff_proxy::services::{Proxy, nft};

const PODS: [&str; 2] = ["10.244.0.2", "10.244.0.3"];
const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const CLIENT: &str = "192.0.2.9";
const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 77);
const TIMEOUT: Duration = Duration::from_secs(3);
/// Whether frames from port to port of a bridge pass the packet filter.
const BRIDGED: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// Where a connection is opened.
#[derive(Clone, Copy, PartialEq, Debug)]
enum From {
    Node,
    Pod(usize),
    Client,
}

/// The namespaces. They vanish with the value.
struct World {
    node: Arc<File>,
    names: Vec<String>,
    proxy: Proxy,
    index: Index,
    runtime: tokio::runtime::Runtime,
}

impl Drop for World {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn sh(line: &str) {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Runs `test` in a world of its own, on a thread of its own: a namespace belongs to a thread.
fn with_world(test: impl FnOnce(&mut World) + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root for network namespaces");
        return;
    }
    std::thread::spawn(move || test(&mut World::new())).join().unwrap();
}

impl World {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let tag = format!("skp-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let names = vec![format!("{tag}-a"), format!("{tag}-b"), format!("{tag}-c")];
        let frame = Frame {
            table: "skp".into(),
            pods: "10.244.0.0/16".parse().unwrap(),
            services: "10.96.0.0/16".parse().unwrap(),
            resolver: "10.96.0.10".parse().unwrap(),
        };
        let world = Self {
            node: Arc::new(File::open("/proc/thread-self/ns/net").unwrap()),
            names,
            proxy: Proxy::new(frame),
            index: Index::default(),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap(),
        };
        sh("ip link set lo up; ip link add br0 type bridge; ip addr add 10.244.0.1/24 dev br0; ip link set br0 up");
        for (i, ip) in PODS.iter().enumerate() {
            let name = &world.names[i];
            sh(&format!(
                "ip netns add {name}; ip link add pod{i} type veth peer name eth0 netns {name}
                 ip link set pod{i} master br0 up; bridge link set dev pod{i} hairpin on
                 ip -n {name} link set lo up; ip -n {name} addr add {ip}/24 dev eth0; ip -n {name} link set eth0 up
                 ip -n {name} route add default via 10.244.0.1"
            ));
            world.serve(From::Pod(i), &i.to_string());
        }
        let name = &world.names[2];
        sh(&format!(
            "ip netns add {name}; ip link add out type veth peer name eth0 netns {name}
             ip addr add {NODE}/24 dev out; ip link set out up; ip route add default via {CLIENT}
             ip route add 198.51.100.0/24 dev br0
             ip -n {name} link set lo up; ip -n {name} addr add {CLIENT}/24 dev eth0; ip -n {name} link set eth0 up
             ip -n {name} route add default via {NODE}"
        ));
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv4/conf/br0/route_localnet", "1").unwrap();
        world
    }

    fn enter(&self, from: From) -> impl FnOnce() + Send + use<> {
        let node = self.node.clone();
        let name = match from {
            From::Node => None,
            From::Pod(i) => Some(self.names[i].clone()),
            From::Client => Some(self.names[2].clone()),
        };
        move || {
            let file = name.map(|name| File::open(format!("/run/netns/{name}")).unwrap());
            setns(file.as_ref().unwrap_or(&node), CloneFlags::CLONE_NEWNET).unwrap();
        }
    }

    /// Starts a server on port 8080 that answers with its name and the address it sees.
    fn serve(&self, at: From, name: &str) {
        let (enter, name) = (self.enter(at), name.to_string());
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            enter();
            let tcp = TcpListener::bind("0.0.0.0:8080").unwrap();
            let udp = UdpSocket::bind("0.0.0.0:8080").unwrap();
            tell.send(()).unwrap();
            let answer = move |peer: SocketAddr| format!("{name} {}", peer.ip());
            let over_udp = answer.clone();
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                    let _ = udp.send_to(over_udp(peer).as_bytes(), peer);
                }
            });
            for stream in tcp.incoming().flatten() {
                let mut stream = stream;
                if let Ok(peer) = stream.peer_addr() {
                    let _ = stream.write_all(answer(peer).as_bytes());
                }
            }
        });
        told.recv().unwrap();
    }

    /// The answer to a connection: which server, and which address it saw.
    fn ask(&self, from: From, to: impl Into<IpAddr>, port: u16) -> io::Result<(String, String)> {
        self.ask_within(TIMEOUT, from, to, port)
    }

    fn ask_within(
        &self,
        limit: Duration,
        from: From,
        to: impl Into<IpAddr>,
        port: u16,
    ) -> io::Result<(String, String)> {
        let (enter, to) = (self.enter(from), SocketAddr::new(to.into(), port));
        let work = move || {
            enter();
            let mut stream = TcpStream::connect_timeout(&to, limit)?;
            stream.set_read_timeout(Some(limit))?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let (server, seen) = answer.split_once(' ').unwrap();
            Ok((server.to_string(), seen.to_string()))
        };
        std::thread::spawn(work).join().unwrap()
    }

    /// The servers that `times` connections reach.
    fn reached(&self, from: From, to: impl Into<IpAddr> + Copy, port: u16, times: usize) -> Vec<String> {
        let mut servers: Vec<String> =
            (0..times).map(|_| self.ask(from, to, port).unwrap_or_else(|e| panic!("{from:?}: {e}")).0).collect();
        servers.sort();
        servers.dedup();
        servers
    }

    fn put(&mut self, service: Service, endpoints: &[usize]) {
        let id = id("web");
        let slice = Slice {
            ports: [Protocol::Tcp, Protocol::Udp]
                .map(|p| SlicePort { name: p.name().into(), protocol: p, port: 8080 })
                .into(),
            endpoints: endpoints
                .iter()
                .map(|i| Endpoint {
                    address: PODS[*i].parse().unwrap(),
                    hostname: None,
                    // The second pod plays one on another node.
                    local: Some(*i == 0),
                    ready: true,
                    draining: false,
                })
                .collect(),
            proxied: true,
        };
        self.index.put_service(id.clone(), service);
        self.index.put_slice(self::id("web-1"), id, slice);
        self.load();
    }

    fn load(&mut self) {
        let changes = self.proxy.take(&mut self.index);
        self.runtime.block_on(self.proxy.apply(&changes)).unwrap();
    }
}

fn id(name: &str) -> Id {
    Id { namespace: "default".into(), name: name.into() }
}

/// A Service on port 80, over TCP and UDP, and on the node's port 30080.
fn service() -> Service {
    let port = |protocol: Protocol| Port { name: protocol.name().into(), protocol, port: 80, node_port: Some(30080) };
    Service {
        cluster_ips: [VIP.into()].into(),
        ports: [port(Protocol::Tcp), port(Protocol::Udp)].into(),
        proxied: true,
        ..Service::default()
    }
}

#[track_caller]
fn refused(answer: io::Result<(String, String)>) {
    assert_eq!(answer.map_err(|e| e.kind()), Err(io::ErrorKind::ConnectionRefused));
}

#[test]
fn a_virtual_address_reaches_every_endpoint_from_everywhere() {
    with_world(|world| {
        world.put(service(), &[0, 1]);
        for from in [From::Node, From::Pod(0)] {
            assert_eq!(world.reached(from, VIP, 80, 30), ["0", "1"], "{from:?}");
        }
        // A pod keeps its address, unless it reaches itself: then it must not answer itself directly.
        for _ in 0..20 {
            let (server, seen) = world.ask(From::Pod(0), VIP, 80).unwrap();
            assert_eq!(seen == PODS[0], server == "1", "{server} saw {seen}");
        }
        // Ports the Service does not have, and addresses nobody has.
        refused(world.ask(From::Pod(0), VIP, 81));
        refused(world.ask(From::Node, Ipv4Addr::new(10, 96, 9, 9), 80));
    });
}

/// Whatever ranges come and go, in one small load each, what nobody has is refused in all of them.
#[test]
fn ranges_of_virtual_addresses_come_and_go() {
    with_world(|world| {
        world.put(service(), &[0, 1]);
        // Refusals are ICMP, of which the kernel sends one client only some in a second.
        std::fs::write("/proc/sys/net/ipv4/icmp_ratelimit", "0").unwrap();
        let probes =
            ["10.96.9.9", "10.97.9.9", "172.20.0.9", "172.20.0.200", "172.21.0.9"].map(|ip| ip.parse().unwrap());
        let refused = |world: &World, ip: Ipv4Addr| {
            // What is not refused leaves the node, and nobody is there.
            let answer = world.ask_within(Duration::from_millis(300), From::Pod(0), ip, 80);
            answer.expect_err("nobody has it").kind() == io::ErrorKind::ConnectionRefused
        };
        for (name, ranges, expected) in [
            ("kubernetes", "10.96.0.0/16", [true, false, false, false, false]),
            ("more", "172.20.0.0/25", [true, false, true, false, false]),
            ("beside", "10.97.0.0/16", [true, true, true, false, false]),
            ("wide", "172.16.0.0/12", [true, true, true, true, true]),
            ("wide", "", [true, true, true, false, false]),
            ("more", "172.20.0.128/25", [true, true, false, true, false]),
            ("beside", "", [true, false, false, true, false]),
            ("kubernetes", "", [true, false, false, true, false]),
        ] {
            let id = Id { namespace: "".into(), name: name.into() };
            match ranges {
                "" => world.index.remove_ranges(&id),
                range => world.index.put_ranges(id, [range.parse().unwrap()].into()),
            };
            world.load();
            assert_eq!(probes.map(|ip| refused(world, ip)), expected, "{name}: {ranges}");
            assert_eq!(world.reached(From::Pod(0), VIP, 80, 1).len(), 1);
        }
        // A table loaded anew has them at once.
        world.runtime.block_on(nft::remove("skp")).unwrap();
        world.index.remove_service(&id("web"));
        let changes = world.proxy.take(&mut world.index);
        assert!(world.runtime.block_on(world.proxy.apply(&changes)).is_err());
        world.put(service(), &[0]);
        assert!(refused(world, probes[3]) && !refused(world, probes[2]));
        // An address of a range that is no more answers while its Service has it.
        let far = Ipv4Addr::new(172, 20, 0, 77);
        world.put(Service { cluster_ips: [far.into()].into(), ..service() }, &[1]);
        world.index.remove_ranges(&Id { namespace: "".into(), name: "more".into() });
        world.load();
        assert_eq!(world.reached(From::Pod(0), far, 80, 3), ["1"]);
    });
}

#[test]
fn a_lost_table_is_noticed_and_a_wrong_one_replaced() {
    with_world(|world| {
        world.put(service(), &[0]);
        assert!(world.runtime.block_on(nft::present("skp")));
        // Somebody meddles: the difference does not load, and says so; then everything is loaded.
        sh("nft delete element ip skp vip_tcp '{ 0 . 10.96.0.77 . 80 : 10.244.0.2 . 8080 }'");
        world.index.remove_service(&id("web"));
        let changes = world.proxy.take(&mut world.index);
        assert!(world.runtime.block_on(world.proxy.apply(&changes)).is_err());
        world.put(service(), &[0, 1]);
        assert_eq!(world.reached(From::Pod(0), VIP, 80, 20), ["0", "1"]);
        world.runtime.block_on(nft::remove("skp")).unwrap();
        assert!(!world.runtime.block_on(nft::present("skp")));
    });
}

#[test]
fn without_endpoints_clients_are_refused_at_once() {
    with_world(|world| {
        world.put(service(), &[]);
        for from in [From::Node, From::Pod(0)] {
            let before = Instant::now();
            refused(world.ask(from, VIP, 80));
            assert!(before.elapsed() < Duration::from_secs(1));
        }
        refused(world.ask(From::Client, NODE, 30080));
        world.put(service(), &[1]);
        assert_eq!(world.reached(From::Pod(0), VIP, 80, 3), ["1"]);
        world.index.remove_service(&id("web"));
        world.load();
        refused(world.ask(From::Pod(0), VIP, 80));
    });
}

#[test]
fn a_node_port_answers_on_every_address_of_the_node() {
    with_world(|world| {
        world.put(service(), &[0, 1]);
        assert_eq!(world.reached(From::Client, NODE, 30080, 30), ["0", "1"]);
        assert_eq!(world.reached(From::Pod(0), NODE, 30080, 30), ["0", "1"]);
        assert_eq!(world.reached(From::Node, NODE, 30080, 30), ["0", "1"]);
        assert_eq!(world.reached(From::Node, Ipv4Addr::LOCALHOST, 30080, 30), ["0", "1"]);
        assert_eq!(world.ask(From::Client, NODE, 30080).unwrap().1, "10.244.0.1");
        // Local: only the pod on this node, and it sees the client.
        world.put(Service { external_local: true, ..service() }, &[0, 1]);
        for _ in 0..10 {
            assert_eq!(world.ask(From::Client, NODE, 30080).unwrap(), ("0".into(), CLIENT.into()));
        }
        assert_eq!(world.reached(From::Pod(0), NODE, 30080, 30), ["0", "1"], "inside the cluster, Local means nothing");
        // Without an endpoint on this node, packets vanish: no refusal.
        world.put(Service { external_local: true, ..service() }, &[1]);
        let vanished = world.ask(From::Client, NODE, 30080).unwrap_err();
        assert_eq!(vanished.kind(), io::ErrorKind::TimedOut);
    });
}

#[test]
fn external_addresses_and_source_ranges() {
    with_world(|world| {
        let outside = Ipv4Addr::new(198, 51, 100, 7);
        let balancer = Ipv4Addr::new(198, 51, 100, 8);
        let ranges = |ranges: &[&str]| ranges.iter().map(|r| r.parse().unwrap()).collect();
        let with = |source_ranges| Service {
            external_ips: [outside].into(),
            balancer_ips: [balancer].into(),
            source_ranges,
            ..service()
        };
        world.put(with(ranges(&["192.0.2.0/28", "192.0.2.8/29"])), &[0, 1]);
        assert_eq!(world.reached(From::Client, outside, 80, 30), ["0", "1"]);
        assert_eq!(world.reached(From::Client, balancer, 80, 30), ["0", "1"]);
        world.put(with(ranges(&["203.0.113.0/24"])), &[0, 1]);
        assert_eq!(world.reached(From::Client, outside, 80, 30), ["0", "1"]);
        assert_eq!(world.ask(From::Client, balancer, 80).unwrap_err().kind(), io::ErrorKind::TimedOut);
        world.put(with(ranges(&[])), &[]);
        refused(world.ask(From::Client, outside, 80));
    });
}

#[test]
fn a_client_stays_with_its_endpoint_until_that_is_gone() {
    with_world(|world| {
        let sticky = Service { affinity: Some(60), ..service() };
        world.put(sticky.clone(), &[0, 1]);
        for (from, to, port) in [(From::Pod(0), VIP, 80), (From::Client, NODE, 30080), (From::Node, VIP, 80)] {
            assert_eq!(world.reached(from, to, port, 20).len(), 1, "{from:?}");
        }
        let first: usize = world.reached(From::Pod(0), VIP, 80, 1)[0].parse().unwrap();
        let other = 1 - first;
        world.put(sticky.clone(), &[other]);
        assert_eq!(world.reached(From::Pod(0), VIP, 80, 5), [other.to_string()]);
        world.put(sticky, &[0, 1]);
        assert_eq!(world.reached(From::Pod(0), VIP, 80, 20), [other.to_string()]);
        world.put(service(), &[0, 1]);
        assert_eq!(world.reached(From::Pod(0), VIP, 80, 30), ["0", "1"]);
    });
}

#[test]
fn a_udp_client_moves_when_its_endpoint_is_gone() {
    with_world(|world| {
        if Command::new("conntrack").arg("--version").output().is_err() {
            eprintln!("skipped: needs conntrack");
            return;
        }
        world.put(service(), &[0]);
        let (enter, mut answers) = (world.enter(From::Node), Vec::new());
        let (ask, asked) = std::sync::mpsc::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let client = std::thread::spawn(move || {
            enter();
            // One socket, one port: the same connection to the kernel all along.
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.connect((VIP, 80)).unwrap();
            while asked.recv().is_ok() {
                socket.send(b"?").unwrap();
                let mut buffer = [0; 64];
                let length = socket.recv(&mut buffer).unwrap_or(0);
                tell.send(String::from_utf8_lossy(&buffer[..length]).into_owned()).unwrap();
            }
        });
        for endpoint in [0, 1] {
            world.put(service(), &[endpoint]);
            ask.send(()).unwrap();
            answers.push(told.recv().unwrap());
        }
        drop(ask);
        client.join().unwrap();
        assert!(answers[0].starts_with("0 ") && answers[1].starts_with("1 "), "{answers:?}");
    });
}

/// Policies in the kernel: what [`compile`](skiff_proxy::policy::compile) means is what packets meet.
#[test]
fn policies_judge_new_connections_by_their_endpoints() {
    use skiff_proxy::policy::{Enforcer, Frame as Policies, compile, model};
    if !nix::unistd::geteuid().is_root() || std::fs::read_to_string(BRIDGED).is_ok_and(|v| v.trim() != "1") {
        eprintln!("skipped: needs root, and bridges that pass the packet filter");
        return;
    }
    /// Long enough for a connection in one machine, and shorter than the kernel's second try.
    const WAIT: Duration = Duration::from_millis(700);
    with_world(|net| {
        net.put(service(), &[0]);
        let frame = Policies { node: "n".into(), table: "skp-policy".into(), resolver: Some(NODE) };
        let mut enforcer = Enforcer::new(frame);
        let mut world = model::World::default();
        for (i, address) in PODS.iter().enumerate() {
            let labels = [("pod".to_owned(), i.to_string())].into();
            let ports = [("web".into(), Protocol::Tcp, 8080)].into();
            world.pods.put(
                id(&i.to_string()),
                Some(model::Pod { labels, address: address.parse().unwrap(), ports, local: true }),
            );
        }
        world.namespaces.put(Id { namespace: "".into(), name: "default".into() }, Some([].into()));
        let mut enforce = |net: &mut World, policies: &[serde_json::Value]| {
            world.policies = model::Listed::default();
            for (i, spec) in policies.iter().enumerate() {
                let policy = serde_json::from_value(serde_json::json!({"metadata": {}, "spec": spec})).unwrap();
                world.policies.put(id(&i.to_string()), model::Policy::parse(&policy));
            }
            let table = compile::compile(&world, Some(NODE));
            net.runtime.block_on(enforcer.load(table)).unwrap();
        };
        let [target, other] = PODS.map(|ip| ip.parse::<Ipv4Addr>().unwrap());
        let passes = |net: &World, from, to: Ipv4Addr, port| match net.ask_within(WAIT, from, to, port) {
            Ok(_) => true,
            Err(e) if e.kind() == io::ErrorKind::TimedOut => false,
            Err(e) => panic!("{from:?} to {to}: {e}"),
        };
        let to_target = |rest: serde_json::Value| {
            let mut policy = serde_json::json!({"podSelector": {"matchLabels": {"pod": "0"}}});
            policy.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            policy
        };
        use serde_json::json;

        enforce(net, &[to_target(json!({}))]);
        assert!(!passes(net, From::Pod(1), target, 8080), "denied on the bridge");
        assert!(!passes(net, From::Pod(1), VIP, 80), "denied through the Service");
        assert!(!passes(net, From::Client, target, 8080) && !passes(net, From::Client, NODE, 30080));
        assert!(passes(net, From::Node, target, 8080) && passes(net, From::Node, VIP, 80), "the node reaches its pods");
        assert!(passes(net, From::Pod(0), other, 8080), "answers to the denied pod come back");
        assert!(passes(net, From::Pod(0), VIP, 80), "a pod reaches itself, also through the Service");

        // Each peer and each way to write ports, in turn: the differences load, and mean what they say.
        for (rule, pod, client) in [
            (json!({"from": [{"podSelector": {"matchLabels": {"pod": "1"}}}]}), true, false),
            (json!({"from": [{"namespaceSelector": {}}], "ports": [{"port": "web"}]}), true, false),
            (
                json!({"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}, {"ipBlock": {"cidr": "198.51.100.0/24"}}]}),
                false,
                true,
            ),
            (
                json!({"from": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.244.0.0/24", "10.244.1.0/24"]}}]}),
                false,
                true,
            ),
            (
                json!({"ports": [{"port": 8000, "endPort": 8100}, {"port": 9}, {"protocol": "SCTP", "port": 1}]}),
                true,
                true,
            ),
            (json!({"ports": [{"protocol": "TCP"}]}), true, true),
            (json!({"ports": [{"protocol": "UDP"}, {"port": "nope"}]}), false, false),
            (json!({}), true, true),
        ] {
            enforce(net, &[to_target(json!({"ingress": [rule]}))]);
            assert_eq!(passes(net, From::Pod(1), VIP, 80), pod, "{rule}");
            assert_eq!(passes(net, From::Client, target, 8080), client, "{rule}");
        }

        // What a pod may send: the endpoint counts, its own node is always reached, the name server is not.
        net.serve(From::Node, "node");
        let quiet = json!({"podSelector": {"matchLabels": {"pod": "1"}}, "policyTypes": ["Egress"]});
        enforce(net, std::slice::from_ref(&quiet));
        assert!(!passes(net, From::Pod(1), VIP, 80) && !passes(net, From::Pod(1), CLIENT.parse().unwrap(), 8080));
        assert!(!passes(net, From::Pod(1), NODE, 8080), "the name server's address");
        assert!(passes(net, From::Pod(1), Ipv4Addr::new(10, 244, 0, 1), 8080), "the node");
        assert!(passes(net, From::Pod(0), other, 8080), "what comes in is not touched");
        let mut some = quiet;
        some["egress"] = json!([{"to": [{"podSelector": {}}], "ports": [{"port": "web"}]}, {"to": [{"ipBlock": {"cidr": format!("{NODE}/32")}}]}]);
        enforce(net, &[some]);
        assert!(passes(net, From::Pod(1), VIP, 80) && passes(net, From::Pod(1), NODE, 8080));
        enforce(net, &[]);
        assert!(passes(net, From::Client, target, 8080));
    });
}
