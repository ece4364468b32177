//! The matrix: policies as people write them, and who then reaches whom on which port, by a reading of the compiled
//! table that knows nothing of policies. That the kernel reads the table alike is shown in `tests/netns.rs`.

use std::collections::{BTreeMap, HashSet};
use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1::Pod as ApiPod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::compile::{Direction, Peers, Ports, Table, compile, merged};
use super::model::{Listed, Pod, Policy, World};
use super::script;
use crate::model::{Id, Protocol};

const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Pods a, b, c in each of the namespaces x, y, z: the name, its address.
const PODS: [(&str, [u8; 4]); 9] = [
    ("x/a", [10, 244, 0, 11]),
    ("x/b", [10, 244, 0, 12]),
    ("x/c", [10, 244, 0, 13]),
    ("y/a", [10, 244, 0, 21]),
    ("y/b", [10, 244, 0, 22]),
    ("y/c", [10, 244, 0, 23]),
    ("z/a", [10, 244, 1, 31]),
    ("z/b", [10, 244, 1, 32]),
    ("z/c", [10, 244, 1, 33]),
];

fn id(name: &str) -> Id {
    let (namespace, name) = name.split_once('/').unwrap();
    Id { namespace: namespace.into(), name: name.into() }
}

/// Every pod has the label `pod` and serves 80 as `web` and 53 as `dns`; c calls 81 `web`. The pods are all on the node,
/// so that one table judges both ends. Namespaces have the label `ns`.
fn world(policies: &[Value]) -> World {
    let mut world = World::default();
    for (name, address) in PODS {
        let id = id(name);
        let web = if &*id.name == "c" { 81 } else { 80 };
        let pod: ApiPod = serde_json::from_value(json!({
            "metadata": {"name": id.name, "namespace": id.namespace, "labels": {"pod": id.name}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [
                {"name": "web", "containerPort": web},
                {"name": "dns", "containerPort": 53, "protocol": "UDP"}]}]},
            "status": {"phase": "Running", "podIP": Ipv4Addr::from(address).to_string()},
        }))
        .unwrap();
        world.pods.put(id.clone(), Pod::parse(&pod, "n"));
        let space = Id { namespace: "".into(), name: id.namespace.clone() };
        world.namespaces.put(space, Some([("ns".to_owned(), id.namespace.to_string())].into()));
    }
    let system = ("kubernetes.io/metadata.name".to_owned(), "kube-system".to_owned());
    world.namespaces.put(Id { namespace: "".into(), name: "kube-system".into() }, Some([system].into()));
    for (number, spec) in policies.iter().enumerate() {
        let namespace = spec["in"].as_str().unwrap_or("x");
        let policy: NetworkPolicy =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": namespace}, "spec": spec})).unwrap();
        world.policies.put(id(&format!("{namespace}/{number}")), Policy::parse(&policy));
    }
    world
}

/// Whether the table lets a new connection through.
fn passes(table: &Table, from: Ipv4Addr, to: Ipv4Addr, protocol: Protocol, port: u16) -> bool {
    let judged = |chain: Option<&String>, peer: Ipv4Addr| {
        let Some(chain) = chain else { return true };
        table.chains[chain].1.iter().any(|allow| {
            let known = match &allow.peers {
                Peers::Any => true,
                Peers::Set(set) => table.peers[set].contains(&peer),
                Peers::Ranges(ranges, except) => {
                    ranges.iter().any(|r| r.contains(&peer)) && !except.iter().any(|r| r.contains(&peer))
                }
            };
            known
                && match &allow.ports {
                    Ports::Any => true,
                    Ports::Numbers(p, ranges) => {
                        *p == protocol && ranges.iter().any(|(a, b)| (*a..=*b).contains(&port))
                    }
                    Ports::Set(set) => table.ports[set].contains(&(to, protocol, port)),
                }
        })
    };
    from == to && table.selves().contains(&to)
        || judged(table.egress.get(&from), to) && judged(table.ingress.get(&to), from)
}

fn address(name: &str) -> Ipv4Addr {
    match PODS.iter().find(|(n, _)| *n == name) {
        Some((_, address)) => Ipv4Addr::from(*address),
        None if name == "dns" => RESOLVER,
        None => name.parse().unwrap(),
    }
}

/// Checks questions of the form `from > to protocol port`, each with its answer.
#[track_caller]
fn check(what: &str, policies: &[Value], questions: &[(&str, bool)]) {
    let table = compile(&world(policies), Some(RESOLVER));
    for (question, expected) in questions {
        let words: Vec<&str> = question.split_whitespace().collect();
        let [from, ">", to, protocol, port] = words[..] else { panic!("{question}") };
        let protocol = Protocol::parse(Some(&protocol.to_uppercase())).unwrap();
        let found = passes(&table, address(from), address(to), protocol, port.parse().unwrap());
        assert_eq!(found, *expected, "{what}: {question}\n{table:#?}");
    }
}

fn to_all_in(namespace: &str, extra: Value) -> Value {
    let mut policy = json!({"in": namespace, "podSelector": {}});
    policy.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    policy
}

#[test]
fn without_a_policy_everything_passes() {
    check("none", &[], &[("x/a > y/a tcp 80", true), ("192.0.2.1 > x/a tcp 1", true), ("x/a > dns udp 53", true)]);
    let table = compile(&world(&[]), Some(RESOLVER));
    assert_eq!(table, Table::default());
    let elsewhere = json!({"podSelector": {"matchLabels": {"pod": "nobody"}}, "policyTypes": ["Ingress", "Egress"]});
    assert_eq!(compile(&world(&[elsewhere]), Some(RESOLVER)), Table::default(), "a policy that holds for no pod");
}

#[test]
fn defaults_and_policy_types() {
    let questions = [("y/a > x/a tcp 80", false), ("x/b > x/a udp 80", false), ("x/a > y/a tcp 80", true)];
    check("deny all ingress", &[to_all_in("x", json!({"policyTypes": ["Ingress"]}))], &questions);
    check("the type is Ingress when nothing is said", &[to_all_in("x", json!({}))], &questions);
    check(
        "rules for egress make it both",
        &[to_all_in("x", json!({"egress": [{}]}))],
        &[("y/a > x/a tcp 80", false), ("x/a > y/a tcp 80", true), ("y/a > z/a tcp 80", true)],
    );
    check(
        "Egress alone leaves ingress free",
        &[to_all_in("x", json!({"policyTypes": ["Egress"]}))],
        &[
            ("y/a > x/a tcp 80", true),
            ("x/a > y/a tcp 80", false),
            ("x/a > dns udp 53", false),
            ("x/a > x/a tcp 80", true),
        ],
    );
    check(
        "an empty rule allows everything",
        &[to_all_in("x", json!({"ingress": [{}]}))],
        &[("y/a > x/a tcp 80", true), ("192.0.2.1 > x/b sctp 7", true)],
    );
    check(
        "an empty list of peers is no limit",
        &[to_all_in("x", json!({"ingress": [{"from": [], "ports": [{"port": 80}]}]}))],
        &[("y/a > x/a tcp 80", true), ("y/a > x/a udp 80", false), ("y/a > x/a tcp 81", false)],
    );
}

#[test]
fn peers() {
    let from = |peers: Value| to_all_in("x", json!({"ingress": [{"from": peers}]}));
    let (pod_a, ns_y) = (json!({"matchLabels": {"pod": "a"}}), json!({"matchLabels": {"ns": "y"}}));
    check(
        "pods of the own namespace",
        &[from(json!([{"podSelector": pod_a}]))],
        &[("x/a > x/b tcp 80", true), ("x/c > x/b tcp 80", false), ("y/a > x/b tcp 80", false)],
    );
    check(
        "all pods of a namespace",
        &[from(json!([{"namespaceSelector": ns_y}]))],
        &[("y/a > x/b tcp 80", true), ("y/c > x/b udp 9", true), ("x/a > x/b tcp 80", false)],
    );
    check(
        "both in one peer: and",
        &[from(json!([{"namespaceSelector": ns_y, "podSelector": pod_a}]))],
        &[("y/a > x/b tcp 80", true), ("y/b > x/b tcp 80", false), ("x/a > x/b tcp 80", false)],
    );
    check(
        "two peers: or",
        &[from(json!([{"namespaceSelector": ns_y}, {"podSelector": pod_a}]))],
        &[("y/b > x/b tcp 80", true), ("x/a > x/b tcp 80", true), ("z/a > x/b tcp 80", false)],
    );
    check(
        "an empty selector of namespaces means all, of pods all of the own",
        &[from(json!([{"namespaceSelector": {}, "podSelector": pod_a}]))],
        &[("z/a > x/b tcp 80", true), ("z/b > x/b tcp 80", false), ("192.0.2.1 > x/b tcp 80", false)],
    );
    check(
        "expressions",
        &[from(
            json!([{"namespaceSelector": {"matchExpressions": [{"key": "ns", "operator": "NotIn", "values": ["x"]}]},
            "podSelector": {"matchExpressions": [{"key": "pod", "operator": "In", "values": ["b", "c"]}]}}]),
        )],
        &[
            ("y/b > x/a tcp 80", true),
            ("z/c > x/a tcp 80", true),
            ("x/b > x/a tcp 80", false),
            ("y/a > x/a tcp 80", false),
        ],
    );
    check(
        "addresses, with a hole",
        &[from(
            json!([{"ipBlock": {"cidr": "10.244.1.0/24", "except": ["10.244.1.32/32"]}}, {"ipBlock": {"cidr": "192.0.2.0/24"}}]),
        )],
        &[
            ("z/a > x/a tcp 80", true),
            ("z/b > x/a tcp 80", false),
            ("y/a > x/a tcp 80", false),
            ("192.0.2.9 > x/a tcp 80", true),
        ],
    );
    check(
        "everywhere but here",
        &[to_all_in("x", json!({"egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/8"]}}]}]}))],
        &[("x/a > 198.51.100.1 tcp 443", true), ("x/a > y/a tcp 80", false), ("x/a > dns udp 53", false)],
    );
    check(
        "only a range of IPv6 is nobody",
        &[from(json!([{"ipBlock": {"cidr": "::/0"}}]))],
        &[("y/a > x/a tcp 80", false)],
    );
}

#[test]
fn ports() {
    let on = |ports: Value| to_all_in("x", json!({"ingress": [{"ports": ports}]}));
    check(
        "ranges and protocols",
        &[on(
            json!([{"port": 80, "endPort": 90}, {"port": 85, "endPort": 99}, {"protocol": "UDP"}, {"protocol": "SCTP", "port": 7}]),
        )],
        &[
            ("y/a > x/a tcp 79", false),
            ("y/a > x/a tcp 80", true),
            ("y/a > x/a tcp 99", true),
            ("y/a > x/a tcp 100", false),
            ("y/a > x/a udp 65535", true),
            ("y/a > x/a sctp 7", true),
            ("y/a > x/a sctp 8", false),
        ],
    );
    check(
        "a name means what the receiving pod calls so",
        &[on(json!([{"port": "web"}]))],
        &[
            ("y/a > x/a tcp 80", true),
            ("y/a > x/a tcp 81", false),
            ("y/a > x/c tcp 81", true),
            ("y/a > x/c tcp 80", false),
            ("y/a > x/a udp 80", false),
        ],
    );
    check(
        "also for what goes out",
        &[to_all_in(
            "x",
            json!({"policyTypes": ["Egress"], "egress": [{"ports": [{"port": "web"}], "to": [{"namespaceSelector": {}}]}]}),
        )],
        &[
            ("x/a > y/c tcp 81", true),
            ("x/a > y/c tcp 80", false),
            ("x/a > y/a tcp 80", true),
            ("x/a > 192.0.2.1 tcp 80", false),
        ],
    );
    check("a name nobody has", &[on(json!([{"port": "nope"}]))], &[("y/a > x/a tcp 80", false)]);
}

#[test]
fn policies_add_up_and_both_ends_must_agree() {
    let b = json!({"podSelector": {"matchLabels": {"pod": "b"}}, "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"ns": "y"}}}]}]});
    check(
        "deny all, and allow one",
        &[to_all_in("x", json!({})), b.clone()],
        &[("y/a > x/b tcp 80", true), ("y/a > x/a tcp 80", false), ("z/a > x/b tcp 80", false)],
    );
    let quiet = json!({"in": "y", "podSelector": {"matchLabels": {"pod": "c"}}, "policyTypes": ["Egress"]});
    check(
        "the sender's policy forbids what the receiver's allows",
        &[b, quiet],
        &[("y/a > x/b tcp 80", true), ("y/c > x/b tcp 80", false), ("y/c > y/c tcp 80", true)],
    );
}

#[test]
fn names_can_be_asked_for_by_the_usual_policy() {
    let peer = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}});
    for ports in [json!([{"port": 53, "protocol": "UDP"}]), json!([{"port": "dns", "protocol": "UDP"}])] {
        let policy = to_all_in("x", json!({"policyTypes": ["Egress"], "egress": [{"to": [peer], "ports": ports}]}));
        check(
            "names",
            &[policy],
            &[("x/a > dns udp 53", true), ("x/a > dns tcp 53", false), ("x/a > y/a udp 53", false)],
        );
    }
}

#[test]
fn what_is_kept_of_a_pod() {
    let parse = |pod: Value| Pod::parse(&serde_json::from_value(pod).unwrap(), "n");
    let pod = |spec: Value, status: Value| json!({"metadata": {"name": "p"}, "spec": spec, "status": status});
    let plain = json!({"nodeName": "n", "containers": []});
    let running = json!({"phase": "Running", "podIPs": [{"ip": "fd00::1"}, {"ip": "10.244.0.5"}], "podIP": "fd00::1"});
    assert!(
        parse(pod(plain.clone(), running.clone()))
            .is_some_and(|p| p.local && p.address == Ipv4Addr::new(10, 244, 0, 5))
    );
    let other = json!({"nodeName": "m", "containers": []});
    assert!(parse(pod(other, running.clone())).is_some_and(|p| !p.local));
    assert_eq!(parse(pod(json!({"nodeName": "n", "hostNetwork": true, "containers": []}), running)), None);
    assert_eq!(parse(pod(plain.clone(), json!({"phase": "Pending"}))), None, "no address yet");
    assert_eq!(parse(pod(plain, json!({"phase": "Succeeded", "podIP": "10.244.0.5"}))), None, "ended");
}

#[test]
fn a_listing_ends_what_it_does_not_name() {
    let mut listed = Listed::default();
    assert!(listed.put(id("x/a"), Some(1)) && !listed.put(id("x/a"), Some(1)) && listed.put(id("x/b"), Some(2)));
    assert!(listed.retain(&HashSet::from([id("x/b")])));
    assert!(!listed.retain(&HashSet::from([id("x/b")])));
    assert_eq!(listed.items, BTreeMap::from([(id("x/b"), 2)]));
    assert!(listed.put(id("x/b"), None) && !listed.put(id("x/b"), None));
}

#[test]
fn a_pod_that_comes_changes_elements_only() {
    let mut world = world(&[to_all_in("x", json!({"ingress": [{"from": [{"podSelector": {}}]}]}))]);
    let last = world.pods.items.remove(&id("x/c")).unwrap();
    let before = compile(&world, Some(RESOLVER));
    world.pods.put(id("x/c"), Some(last));
    let after = compile(&world, Some(RESOLVER));
    let (load, clear) = script::update("t", &before, &after);
    assert!(!load.is_empty() && load.lines().all(|line| line.starts_with("add element ip t ")), "{load}");
    assert_eq!(clear, "");
    assert_eq!(script::update("t", &after, &after), (String::new(), String::new()));
}

/// Where a changed policy leaves chains and sets behind, the second script takes exactly those away.
#[test]
fn what_nothing_refers_to_is_cleared_away() {
    let one = compile(&world(&[to_all_in("x", json!({"ingress": [{"from": [{"podSelector": {}}]}]}))]), None);
    let two = compile(&world(&[to_all_in("x", json!({"ingress": [{"ports": [{"port": "web"}]}]}))]), None);
    let (load, clear) = script::update("t", &one, &two);
    let (chain, set) = (one.chains.keys().next().unwrap(), one.peers.keys().next().unwrap());
    assert_eq!(clear, format!("delete chain ip t {chain}\ndelete set ip t {set}\n"));
    assert!(!load.contains("delete chain") && !load.contains("delete set"), "{load}");
    let (name, (direction, _)) = two.chains.iter().next().unwrap();
    assert_eq!(*direction, Direction::Ingress);
    assert!(load.contains(&format!("goto {name}")), "{load}");
}

proptest! {
    /// Merged ranges hold the same numbers, and no two of them touch: nft refuses ranges that overlap.
    #[test]
    fn merging_keeps_the_numbers(ranges in prop::collection::vec((0u16..40, 0u16..40), 0..8)) {
        let ranges: Vec<_> = ranges.into_iter().map(|(a, b)| (a.min(b), a.max(b))).collect();
        let holds = |ranges: &[(u16, u16)], n| ranges.iter().any(|(a, b)| (*a..=*b).contains(&n));
        let after = merged(ranges.clone());
        prop_assert!((0..41).all(|n| holds(&ranges, n) == holds(&after, n)));
        prop_assert!(after.windows(2).all(|w| w[0].1 + 1 < w[1].0));
    }
}
