//! Routes and tunnels between two nodes against the kernel, each node in a network namespace of its own.
//!
//! Needs root and `ip`; without root the test says so and passes.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use skiff_proxy::nodes::{self, Frame, Mode, Peer, Peers, kernel};

fn sh(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Two connected namespaces. They vanish with the value.
struct World(String);

impl Drop for World {
    fn drop(&mut self) {
        for n in ["a", "b"] {
            let _ = Command::new("ip").args(["netns", "del", &format!("{}-{n}", self.0)]).status();
        }
    }
}

impl World {
    fn new() -> Self {
        let tag = format!("skn-{}", std::process::id());
        let world = Self(tag.clone());
        sh(&format!(
            "ip netns add {tag}-a; ip netns add {tag}-b; ip link add e0 netns {tag}-a type veth peer name e0 netns {tag}-b"
        ));
        for (i, n) in ["a", "b"].iter().enumerate() {
            let last = i + 1;
            // An address of the node's range stands for a pod.
            sh(&format!(
                "ip -n {tag}-{n} addr add 192.0.2.{last}/24 dev e0; ip -n {tag}-{n} link set e0 up; ip -n {tag}-{n} link set lo up; \
                 ip -n {tag}-{n} addr add 10.244.{i}.5/32 dev lo"
            ));
        }
        world
    }

    /// Runs `work` in a namespace, on a thread of its own.
    fn inside<T: Send + 'static>(&self, node: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        let ns = File::open(format!("/run/netns/{}-{node}", self.0)).unwrap();
        let enter = move || {
            setns(ns, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::spawn(enter).join().unwrap()
    }

    fn apply(&self, node: &'static str, mode: Mode, peers: Peers) -> usize {
        self.inside(node, move || {
            let address = peers[node].address;
            let frame = Frame { node: node.into(), address, cluster: "10.244.0.0/16".parse().unwrap(), mode };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(kernel::apply(&frame, &peers)).unwrap().len()
        })
    }

    /// Sends from the pod of `a` to that of `b` and back; whom each saw.
    fn exchange(&self) -> Option<(String, String)> {
        let open = |address: &'static str| {
            move || {
                let socket = UdpSocket::bind(address).unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                socket
            }
        };
        let a = self.inside("a", open("10.244.0.5:7000"));
        let b = self.inside("b", open("10.244.1.5:7000"));
        let mut buffer = [0; 2000];
        // As large as a pod's packets are.
        a.send_to(&[7; 1422], "10.244.1.5:7000").ok()?;
        let (n, seen) = b.recv_from(&mut buffer).ok()?;
        assert_eq!(n, 1422);
        b.send_to(b"back", seen).ok()?;
        let (_, back) = a.recv_from(&mut buffer).ok()?;
        Some((seen.to_string(), back.to_string()))
    }

    fn routes(&self, node: &str) -> String {
        sh(&format!("ip -n {}-{node} route show proto 83", self.0))
    }
}

#[test]
fn packets_keep_their_addresses_on_both_ways() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root for network namespaces");
        return;
    }
    let world = World::new();
    let peer = |address: &str, range: &str| Peer { address: address.parse().unwrap(), range: range.parse().unwrap() };
    let (a, b) = (peer("192.0.2.1", "10.244.0.0/24"), peer("192.0.2.2", "10.244.1.0/24"));
    let both: Peers = [("a".to_owned(), a), ("b".to_owned(), b)].into();
    assert_eq!(world.exchange(), None);
    let expected = Some(("10.244.0.5:7000".to_owned(), "10.244.1.5:7000".to_owned()));
    // From one way to the other and back, twice each: what is there already stays.
    for mode in [Mode::Auto, Mode::Vxlan, Mode::Vxlan, Mode::HostGw, Mode::HostGw] {
        for node in ["a", "b"] {
            assert_eq!(world.apply(node, mode, both.clone()), 1);
        }
        assert_eq!(world.exchange(), expected, "{mode}");
        assert_eq!(world.routes("a").contains("skiff.1"), mode == Mode::Vxlan, "{mode}: {}", world.routes("a"));
    }
    // A node that moved, with another range; then one that left.
    world.apply("a", Mode::Vxlan, both);
    let moved: Peers = [("a".to_owned(), a), ("b".to_owned(), peer("192.0.2.3", "10.244.2.0/24"))].into();
    world.apply("a", Mode::Vxlan, moved);
    let routes = world.routes("a");
    assert!(routes.starts_with("10.244.2.0/24") && routes.lines().count() == 1, "{routes}");
    let fdb = sh(&format!("bridge -n {}-a fdb show dev skiff.1", world.0));
    assert!(fdb.contains("0a:58:0a:f4:02:00 dst 192.0.2.3") && !fdb.contains("192.0.2.2"), "{fdb}");
    world.apply("a", Mode::Vxlan, [("a".to_owned(), a)].into());
    assert_eq!(world.routes("a"), "");
    // What is ours goes, what is not stays.
    sh(&format!("ip -n {}-a route add 10.244.9.0/24 via 192.0.2.9", world.0));
    world.apply("a", Mode::HostGw, [("a".to_owned(), a), ("b".to_owned(), b)].into());
    world.inside("a", || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(nodes::cleanup()).unwrap();
    });
    let left = sh(&format!("ip -n {}-a route", world.0));
    assert!(left.contains("10.244.9.0/24") && !left.contains("10.244.1.0/24"), "{left}");
}
