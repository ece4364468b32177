//! Services to frontends to text: by cases, and one law over all changes.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::frontends::{Action, Scope};
use super::*;
use crate::model::{Endpoint, Port, Protocol, Service, Slice, SlicePort};

fn frame() -> Frame {
    Frame {
        table: "t".into(),
        pods: "10.244.0.0/16".parse().unwrap(),
        services: "10.96.0.0/16".parse().unwrap(),
        resolver: "10.96.0.10".parse().unwrap(),
    }
}

fn id(name: &str) -> Id {
    Id { namespace: "default".into(), name: name.into() }
}

fn service(vip: &str) -> Service {
    let port = Port { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(30080) };
    Service { cluster_ips: [vip.parse().unwrap()].into(), ports: [port].into(), proxied: true, ..Service::default() }
}

/// Endpoints from short words: address's last octet, then `l` for local, `n` for not ready, `d` for draining; `h`
/// makes the slice one for names only.
fn slice(words: &str) -> Slice {
    let endpoint = |word: &str| {
        let number: String = word.chars().take_while(char::is_ascii_digit).collect();
        let has = |flag: char| word.contains(flag);
        Endpoint {
            address: format!("10.244.0.{number}").parse().unwrap(),
            hostname: None,
            local: Some(has('l')),
            ready: !has('n') && !has('d'),
            draining: has('d'),
        }
    };
    let port = SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 };
    Slice {
        ports: [port].into(),
        endpoints: words.split_whitespace().map(endpoint).collect(),
        proxied: !words.contains('h'),
    }
}

/// What becomes of traffic, as one line per frontend: scope, address, outcome.
fn outcome(service: Service, endpoints: &str) -> String {
    let mut index = Index::default();
    index.put_service(id("web"), service);
    index.put_slice(id("web-1"), id("web"), slice(endpoints));
    let mut made = frontends::frontends(index.get("default", "web").unwrap(), frame().resolver);
    made.sort_by_key(|(key, _)| *key);
    let lines = made.iter().map(|(key, frontend)| {
        let action = match &frontend.action {
            Action::Balance { endpoints, masquerade, .. } => {
                let octets: Vec<String> = endpoints.iter().map(|e| e.ip().octets()[3].to_string()).collect();
                format!("{}{}", octets.join(","), if *masquerade { " as node" } else { "" })
            }
            Action::Drop => "drop".into(),
            Action::Refuse => "refuse".into(),
        };
        format!("{:?}: {action}", key.scope)
    });
    lines.collect::<Vec<_>>().join("; ")
}

#[test]
fn policies_readiness_and_draining() {
    let plain = || service("10.96.0.5");
    let internal = || Service { internal_local: true, ..plain() };
    let external = || Service { external_local: true, ..plain() };
    let cases = [
        (plain(), "1 2l", "Vip: 1,2; Node: 1,2 as node"),
        (plain(), "1 2n 3d", "Vip: 1; Node: 1 as node"),
        (plain(), "1n 2d 3d", "Vip: 2,3; Node: 2,3 as node"),
        (plain(), "1n", "Vip: refuse; Node: refuse"),
        (plain(), "", "Vip: refuse; Node: refuse"),
        (internal(), "1 2l", "Vip: 2; Node: 1,2 as node"),
        (internal(), "1 2ln", "Vip: drop; Node: 1 as node"),
        (internal(), "1 2ld", "Vip: 2; Node: 1 as node"),
        (internal(), "", "Vip: refuse; Node: refuse"),
        (external(), "1 2l", "Vip: 1,2; Node: 1,2; NodeExternal: 2"),
        (external(), "1", "Vip: 1; Node: 1; NodeExternal: drop"),
        (external(), "", "Vip: refuse; Node: refuse; NodeExternal: refuse"),
        (Service { headless: true, ..plain() }, "1", ""),
        (Service { external_name: Some("example.com".into()), ..plain() }, "1", ""),
        (Service { proxied: false, ..plain() }, "1", ""),
        (service("10.96.0.10"), "1", "Node: 1 as node"),
        (plain(), "1h", "Vip: refuse; Node: refuse"),
    ];
    for (service, endpoints, expected) in cases {
        assert_eq!(outcome(service.clone(), endpoints), expected, "{service:?} {endpoints}");
    }
}

/// A node is left by load balancers when what it has of a Service terminates, while that still answers who comes.
#[test]
fn health_is_about_what_is_ready_here() {
    for (endpoints, count) in [("1l 2l 3", 2), ("1ld 2", 0), ("1ld 2l", 1), ("1ln", 0), ("", 0)] {
        let mut index = Index::default();
        index.put_service(id("web"), Service { external_local: true, ..service("10.96.0.5") });
        index.put_slice(id("web-1"), id("web"), slice(endpoints));
        assert_eq!(frontends::local_endpoints(index.get("default", "web").unwrap()), count, "{endpoints}");
    }
}

#[test]
fn a_second_service_waits_for_the_first_ones_port() {
    let (mut index, mut proxy) = (Index::default(), Proxy::new(frame()));
    for (name, vip, octet) in [("a", "10.96.0.1", "1"), ("b", "10.96.0.2", "2")] {
        index.put_service(id(name), service(vip));
        index.put_slice(id(&format!("{name}-1")), id(name), slice(octet));
    }
    proxy.take(&mut index);
    let node_port = |proxy: &Proxy| {
        let key = proxy.rules.frontends.keys().find(|key| key.scope == Scope::Node).copied();
        key.map(|key| proxy.owners[&key].name.to_string())
    };
    assert_eq!(node_port(&proxy).as_deref(), Some("a"));
    index.remove_service(&id("a"));
    proxy.take(&mut index);
    assert_eq!(node_port(&proxy).as_deref(), Some("b"));
    index.remove_service(&id("b"));
    proxy.take(&mut index);
    assert_eq!(proxy.rules, Proxy::new(frame()).rules);
    assert!(proxy.held.is_empty() && proxy.owners.is_empty() && proxy.contended.is_empty());
}

/// The scripts that load what changed, for ranges put in (or, when empty, taken out) one after the other.
fn loads_of_ranges(steps: &[(&str, &str)]) -> Vec<String> {
    let (mut index, mut proxy) = (Index::default(), Proxy::new(frame()));
    let load = |(name, words): &(&str, &str)| {
        let id = Id { namespace: "".into(), name: (*name).into() };
        match words.split_whitespace().map(|r| r.parse().unwrap()).collect::<Box<[_]>>() {
            none if none.is_empty() => index.remove_ranges(&id),
            ranges => index.put_ranges(id, ranges),
        };
        let changes = proxy.take(&mut index);
        let (chains, difference) = rules::update(&proxy.frame, changes.into_iter(), &mut proxy.chains);
        chains + &rules::script(&proxy.frame, &difference)
    };
    steps.iter().map(load).collect()
}

#[test]
fn a_change_of_ranges_loads_what_changed_of_the_set() {
    let add = |range: &str| format!("add element ip t ranges {{ {range} }}\n");
    let delete = |range: &str| format!("delete element ip t ranges {{ {range} }}\n");
    let cases = [
        // The configured one is there from the start, and stays whatever is said of it.
        (("kubernetes", "10.96.0.0/16"), String::new()),
        (("more", "172.20.0.0/24"), add("172.20.0.0/24")),
        (("within", "172.20.0.128/25"), String::new()),
        (("beside", "10.97.0.0/16"), delete("10.96.0.0/16") + &add("10.96.0.0/15")),
        (("wide", "172.16.0.0/12 10.0.0.0/8"), {
            delete("10.96.0.0/15, 172.20.0.0/24") + &add("10.0.0.0/8, 172.16.0.0/12")
        }),
        (("wide", ""), delete("10.0.0.0/8, 172.16.0.0/12") + &add("10.96.0.0/15, 172.20.0.0/24")),
        (("beside", ""), delete("10.96.0.0/15") + &add("10.96.0.0/16")),
        (("more", ""), delete("172.20.0.0/24") + &add("172.20.0.128/25")),
        (("kubernetes", ""), String::new()),
        (("within", ""), delete("172.20.0.128/25")),
    ];
    let (steps, expected): (Vec<_>, Vec<_>) = cases.into_iter().unzip();
    assert_eq!(loads_of_ranges(&steps), expected);
}

#[test]
fn the_whole_table_goes_by_all_ranges() {
    let (mut index, mut proxy) = (Index::default(), Proxy::new(frame()));
    index.put_ranges(id("more"), ["172.20.0.0/24".parse().unwrap()].into());
    proxy.take(&mut index);
    let (script, _) = rules::replace(&proxy.frame, &proxy.rules);
    let about: Vec<&str> = script.lines().map(str::trim).filter(|line| line.contains("ranges")).collect();
    let masquerade = "ip daddr @ranges ip saddr != 10.244.0.0/16 meta mark set meta mark or 0x4000";
    assert_eq!(
        about,
        [
            "set ranges { type ipv4_addr; flags interval; }",
            "ip daddr @ranges ip daddr != 10.96.0.10 reject",
            masquerade,
            masquerade,
            "add element ip t ranges { 10.96.0.0/16, 172.20.0.0/24 }",
        ]
    );
}

#[test]
fn ranges_follow_their_list() {
    let of = |cidrs: serde_json::Value| {
        crate::model::ranges_of(&serde_json::from_value(serde_json::json!({"spec": {"cidrs": cidrs}})).unwrap())
    };
    let mut index = Index::default();
    assert!(index.put_ranges(id("a"), of(serde_json::json!(["10.96.0.0/16", "fd00::/112"]))));
    assert!(!index.put_ranges(id("a"), of(serde_json::json!(["10.96.0.0/16"]))), "of IPv6 nothing is kept");
    assert!(index.put_ranges(id("b"), of(serde_json::json!(["10.97.0.0/16"]))));
    assert!(!index.retain_ranges(&[id("a"), id("b")].into()));
    assert!(index.retain_ranges(&[id("b")].into()));
    assert_eq!(index.ranges().map(|r| r.to_string()).collect::<Vec<_>>(), ["10.97.0.0/16"]);
    assert!(!index.ready(), "Services are not held up by ranges, and not let go by them");
}

#[test]
fn an_udp_endpoint_that_goes_is_forgotten() {
    let key = |protocol| Key { scope: Scope::Vip, address: Ipv4Addr::new(10, 96, 0, 1), protocol, port: 53 };
    let frontend = |octets: &[u8]| {
        let endpoints = octets.iter().map(|o| std::net::SocketAddrV4::new(Ipv4Addr::new(10, 244, 0, *o), 53)).collect();
        let action = Action::Balance { endpoints, affinity: None, masquerade: false };
        Some(frontends::Frontend { action, sources: Box::default() })
    };
    let change = |protocol, old, new| flows::stale(&[Change::Frontend(key(protocol), old, new)]).flows;
    let gone = change(Protocol::Udp, frontend(&[1, 2]), frontend(&[2, 3]));
    assert_eq!(gone, BTreeSet::from([(key(Protocol::Udp), Some(Ipv4Addr::new(10, 244, 0, 1)))]));
    assert_eq!(change(Protocol::Udp, None, frontend(&[1])), BTreeSet::from([(key(Protocol::Udp), None)]));
    assert_eq!(change(Protocol::Tcp, frontend(&[1]), None), BTreeSet::new());
}

/// A table as nft would hold it: maps and sets with their elements, and chains. Panics where nft would refuse.
#[derive(Debug, Default, PartialEq)]
struct Loaded {
    elements: BTreeMap<(String, String), String>,
    chains: BTreeSet<String>,
}

impl Loaded {
    fn load(&mut self, script: &str) {
        for line in script.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["add", "chain", _, _, name] => assert!(self.chains.insert(name.into()), "{name} twice"),
                ["add", "rule", _, _, name, ..] => assert!(self.chains.contains(name), "rule in no chain: {line}"),
                [verb @ ("add" | "delete"), "element", _, _, map, ..] => {
                    let (_, list) = line.split_once('{').unwrap();
                    for element in list.trim_end_matches('}').split(',') {
                        let (key, value) = element.split_once(" : ").unwrap_or((element, ""));
                        let (key, value) = ((map.to_string(), key.trim().to_string()), value.trim().to_string());
                        if verb == "add" {
                            if let Some(chain) = value.strip_prefix("goto ") {
                                assert!(self.chains.contains(chain), "no chain {chain}");
                            }
                            let old = self.elements.insert(key.clone(), value);
                            assert!(old.is_none(), "{key:?} is already there");
                        } else {
                            assert_eq!(self.elements.remove(&key), Some(value), "delete of {key:?}");
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// A change of the world: a Service put, with endpoints, or taken away.
#[derive(Clone, Debug)]
struct Step {
    name: u8,
    service: Option<(u8, bool, bool, bool, bool, u8)>,
    endpoints: Vec<(u8, bool, bool)>,
    /// A ServiceCIDR put, by the third octet and the length of its range, or taken away.
    range: Option<(u8, u8)>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let flags = (0..4u8, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), 0..3u8);
    let endpoints = proptest::collection::btree_map(1..6u8, (any::<bool>(), any::<bool>()), 0..5);
    let range = proptest::option::weighted(0.6, (0..4u8, 14..25u8));
    let step = (0..4u8, proptest::option::weighted(0.8, flags), endpoints, range).prop_map(
        |(name, service, endpoints, range)| Step {
            name,
            service,
            range,
            endpoints: endpoints.into_iter().map(|(octet, (ready, local))| (octet, ready, local)).collect(),
        },
    );
    proptest::collection::vec(step, 1..16)
}

fn play(index: &mut Index, step: &Step) {
    let name = format!("s{}", step.name);
    match step.range {
        Some((octet, length)) => {
            let range = Ipv4Net::new(Ipv4Addr::new(10, 96 + octet % 2, octet, 0), length).unwrap().trunc();
            index.put_ranges(id(&name), [range].into());
        }
        None => drop(index.remove_ranges(&id(&name))),
    }
    let Some((shared, sticky, external, internal, node, ranges)) = step.service else {
        index.remove_service(&id(&name));
        return;
    };
    let mut made = service(&format!("10.96.1.{}", step.name));
    made.affinity = sticky.then_some(60 + u32::from(shared));
    (made.external_local, made.internal_local) = (external, internal);
    // Addresses and ports that several Services want.
    made.balancer_ips = [Ipv4Addr::new(198, 51, 100, shared)].into();
    made.source_ranges =
        ["192.0.2.0/25", "192.0.2.0/24"][..usize::from(ranges)].iter().map(|r| r.parse().unwrap()).collect();
    made.ports[0].node_port = node.then_some(30_000 + u16::from(shared));
    let words = step.endpoints.iter().map(|(octet, ready, local)| {
        format!("{octet}{}{}", if *ready { "" } else { "n" }, if *local { "l" } else { "" })
    });
    index.put_service(id(&name), made);
    index.put_slice(id(&format!("{name}-1")), id(&name), slice(&words.collect::<Vec<_>>().join(" ")));
}

proptest! {
    /// However the world changes, and however the changes are bundled: what the differences load is what loading the
    /// whole would load, but for chains that nothing uses any more.
    #[test]
    fn differences_lead_where_the_whole_leads(steps in steps(), bundle in 1..4usize) {
        let (mut index, mut proxy) = (Index::default(), Proxy::new(frame()));
        let mut loaded = Loaded::default();
        loaded.load(&rules::replace(&proxy.frame, &proxy.rules).0);
        for part in steps.chunks(bundle) {
            for step in part {
                play(&mut index, step);
            }
            let changes = proxy.take(&mut index);
            let (chains, difference) = rules::update(&proxy.frame, changes.into_iter(), &mut proxy.chains);
            loaded.load(&chains);
            loaded.load(&rules::script(&proxy.frame, &difference));
            let mut whole = Loaded::default();
            whole.load(&rules::replace(&proxy.frame, &proxy.rules).0);
            prop_assert_eq!(&loaded.elements, &whole.elements);
            let ranges: Vec<&Ipv4Net> = proxy.rules.ranges.iter().collect();
            prop_assert!(ranges.is_sorted_by(|a, b| a.broadcast() < b.network()), "nft would refuse {:?}", ranges);
            prop_assert!(loaded.chains.is_superset(&whole.chains));
        }
    }
}
