//! Names of the cluster by cases, and the server over real sockets with an upstream that plays a part.

use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::op::Query;
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::A;

use super::*;
use crate::model::{Endpoint, Id, Port, Protocol, Service, Slice, SlicePort};

const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10));

fn zone() -> Zone {
    Zone::new("cluster.local", RESOLVER, "10.96.0.0/16".parse().unwrap()).unwrap()
}

fn put(shared: &Shared, name: &str, service: Service, endpoints: &[(&str, Option<&str>, bool)]) {
    let id = |name: &str| Id { namespace: "shop".into(), name: name.into() };
    let ports = [("http", Protocol::Tcp, 8080), ("dns", Protocol::Udp, 5353)];
    let slice = Slice {
        ports: ports.map(|(name, protocol, port)| SlicePort { name: name.into(), protocol, port }).into(),
        endpoints: endpoints
            .iter()
            .map(|(address, hostname, ready)| Endpoint {
                address: address.parse().unwrap(),
                hostname: hostname.map(Into::into),
                local: None,
                ready: *ready,
                draining: false,
            })
            .collect(),
        proxied: true,
    };
    let mut index = shared.index.write();
    index.put_service(id(name), service);
    index.put_slice(id(&format!("{name}-1")), id(name), slice);
}

fn world() -> Shared {
    let shared = Shared::default();
    let port = |name: &str, protocol, port| Port { name: name.into(), protocol, port, node_port: None };
    let plain = Service {
        cluster_ips: ["10.96.0.5".parse().unwrap(), "fd00::5".parse().unwrap()].into(),
        ports: [port("http", Protocol::Tcp, 80), port("dns", Protocol::Udp, 53)].into(),
        proxied: true,
        ..Service::default()
    };
    let headless = Service { cluster_ips: Box::default(), headless: true, ..plain.clone() };
    let alias = |target: &str| Service { external_name: Some(target.into()), ..Service::default() };
    put(&shared, "web", plain, &[("10.244.0.1", None, true)]);
    let members = [
        ("10.244.0.2", Some("db-0"), true),
        ("10.244.0.3", Some("db-1"), false),
        ("10.244.0.4", None, true),
        ("fd00:1::4", None, true),
    ];
    put(&shared, "db", headless.clone(), &members);
    put(&shared, "all", Service { publish_not_ready: true, ..headless.clone() }, &members[..2]);
    put(&shared, "none", headless, &[("10.244.0.9", None, false)]);
    put(&shared, "inner", alias("web.shop.svc.cluster.local"), &[]);
    put(&shared, "outer", alias("example.com"), &[]);
    put(&shared, "loop", alias("loop.shop.svc.cluster.local"), &[]);
    let mut index = shared.index.write();
    let known: std::collections::HashSet<Id> =
        index.iter().map(|(n, s, _)| Id { namespace: n.into(), name: s.into() }).collect();
    index.retain_services(&known);
    let slices = known.iter().map(|id| Id { name: format!("{}-1", id.name).into(), ..id.clone() }).collect();
    index.retain_slices(&slices);
    drop(index);
    shared
}

/// An answer in words: records' data, or why there are none.
fn words(answer: Answer) -> String {
    let data = |records: &[Record]| {
        let mut words: Vec<String> = records.iter().map(|r| r.data.to_string()).collect();
        words.sort();
        words.join(", ")
    };
    match answer {
        Answer::Foreign => "foreign".into(),
        Answer::Missing { authority } => format!("missing in {}", authority.name),
        Answer::Found { answers, authority, .. } if answers.is_empty() => format!("nothing in {}", authority.name),
        Answer::Found { answers, .. } => data(&answers),
        Answer::Alias(target) => format!("alias {target}"),
    }
}

#[test]
fn names_of_the_specification() {
    use RecordType::{A, AAAA, NS, PTR, SRV, TXT};
    let missing = "missing in cluster.local.";
    let nothing = "nothing in cluster.local.";
    let cases = [
        // Services with an address.
        ("web.shop.svc.cluster.local.", A, "10.96.0.5"),
        ("Web.SHOP.svc.Cluster.Local.", A, "10.96.0.5"),
        ("web.shop.svc.cluster.local.", AAAA, "fd00::5"),
        ("web.shop.svc.cluster.local.", TXT, nothing),
        ("_http._tcp.web.shop.svc.cluster.local.", SRV, "0 100 80 web.shop.svc.cluster.local."),
        ("_dns._udp.web.shop.svc.cluster.local.", SRV, "0 100 53 web.shop.svc.cluster.local."),
        ("_http._tcp.web.shop.svc.cluster.local.", A, nothing),
        ("_http._udp.web.shop.svc.cluster.local.", SRV, missing),
        ("_tcp.web.shop.svc.cluster.local.", SRV, nothing),
        ("10-244-0-1.web.shop.svc.cluster.local.", A, "10.244.0.1"),
        ("nope.web.shop.svc.cluster.local.", A, missing),
        // Headless ones.
        ("db.shop.svc.cluster.local.", A, "10.244.0.2, 10.244.0.4"),
        ("db.shop.svc.cluster.local.", AAAA, "fd00:1::4"),
        ("db-0.db.shop.svc.cluster.local.", A, "10.244.0.2"),
        ("db-1.db.shop.svc.cluster.local.", A, missing),
        ("10-244-0-4.db.shop.svc.cluster.local.", A, "10.244.0.4"),
        ("all.shop.svc.cluster.local.", A, "10.244.0.2, 10.244.0.3"),
        ("db-1.all.shop.svc.cluster.local.", A, "10.244.0.3"),
        (
            "_http._tcp.all.shop.svc.cluster.local.",
            SRV,
            "0 50 8080 db-0.all.shop.svc.cluster.local., 0 50 8080 db-1.all.shop.svc.cluster.local.",
        ),
        ("none.shop.svc.cluster.local.", A, missing),
        // Aliases.
        ("outer.shop.svc.cluster.local.", A, "alias example.com."),
        // Pods.
        ("10-244-0-7.shop.pod.cluster.local.", A, "10.244.0.7"),
        ("10-244-0-7.shop.pod.cluster.local.", AAAA, nothing),
        ("fd00--7.shop.pod.cluster.local.", AAAA, "fd00::7"),
        ("not-an-address.shop.pod.cluster.local.", A, missing),
        // The zone itself.
        ("cluster.local.", NS, "ns.dns.cluster.local."),
        ("cluster.local.", A, nothing),
        ("ns.dns.cluster.local.", A, "10.96.0.10"),
        ("dns-version.cluster.local.", TXT, "1.1.0"),
        ("svc.cluster.local.", A, nothing),
        ("shop.svc.cluster.local.", A, nothing),
        ("other.svc.cluster.local.", A, missing),
        ("nope.shop.svc.cluster.local.", A, missing),
        ("web.shop.cluster.local.", A, missing),
        ("a.b.c.web.shop.svc.cluster.local.", A, missing),
        // Addresses to names.
        ("5.0.96.10.in-addr.arpa.", PTR, "web.shop.svc.cluster.local."),
        ("2.0.244.10.in-addr.arpa.", PTR, "db-0.all.shop.svc.cluster.local., db-0.db.shop.svc.cluster.local."),
        ("5.0.96.10.in-addr.arpa.", A, "nothing in 96.10.in-addr.arpa."),
        ("99.0.96.10.in-addr.arpa.", PTR, "missing in 96.10.in-addr.arpa."),
        ("0.96.10.in-addr.arpa.", PTR, "nothing in 96.10.in-addr.arpa."),
        ("1.0.244.10.in-addr.arpa.", PTR, "foreign"),
        ("8.8.8.8.in-addr.arpa.", PTR, "foreign"),
        // Others'.
        ("example.com.", A, "foreign"),
        ("local.", A, "foreign"),
        ("xcluster.local.", A, "foreign"),
    ];
    let (zone, shared) = (zone(), world());
    for (name, kind, expected) in cases {
        let answer = zone.answer(&shared.index.read(), &Name::from_ascii(name).unwrap(), kind);
        assert_eq!(words(answer), expected, "{name} {kind}");
    }
}

#[test]
fn addresses_of_every_range_have_their_names_here() {
    let cases = [
        ("5.0.20.172.in-addr.arpa.", "far.shop.svc.cluster.local."),
        ("99.0.20.172.in-addr.arpa.", "missing in 0.20.172.in-addr.arpa."),
        ("0.20.172.in-addr.arpa.", "nothing in 0.20.172.in-addr.arpa."),
        // In two ranges, of which one is in the other.
        ("99.1.20.172.in-addr.arpa.", "missing in 20.172.in-addr.arpa."),
        ("99.0.96.10.in-addr.arpa.", "missing in 96.10.in-addr.arpa."),
        ("1.0.21.172.in-addr.arpa.", "foreign"),
        ("21.172.in-addr.arpa.", "foreign"),
    ];
    let (zone, shared) = (zone(), world());
    put(&shared, "far", Service { cluster_ips: ["172.20.0.5".parse().unwrap()].into(), ..Service::default() }, &[]);
    let ask = |name: &str| words(zone.answer(&shared.index.read(), &Name::from_ascii(name).unwrap(), RecordType::PTR));
    assert_eq!(ask("99.0.20.172.in-addr.arpa."), "foreign", "before the range is known");
    let put = |name: &str, range: &str| {
        let id = Id { namespace: "".into(), name: name.into() };
        shared.index.write().put_ranges(id, [range.parse().unwrap()].into())
    };
    for (name, expected) in &cases[..3] {
        put("more", "172.20.0.0/24");
        assert_eq!(ask(name), *expected, "{name}");
    }
    put("within", "172.20.1.0/24");
    put("wide", "172.20.0.0/16");
    for (name, expected) in &cases[3..] {
        assert_eq!(ask(name), *expected, "{name}");
    }
}

/// An upstream that knows `example.com`, has an answer that fits TCP alone, and fails for the rest.
async fn upstream() -> SocketAddr {
    let (udp, address) = loop {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        // The same number may be taken for the other protocol.
        if let Ok(udp) = UdpSocket::bind(address).await {
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = tcp.accept().await {
                    let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
                    stream.read_exact(&mut bytes).await.unwrap();
                    let answer = play(&bytes, true);
                    stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
                    stream.write_all(&answer).await.unwrap();
                }
            });
            break (udp, address);
        }
    };
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
            udp.send_to(&play(&buffer[..length], false), peer).await.unwrap();
        }
    });
    address
}

fn play(question: &[u8], tcp: bool) -> Vec<u8> {
    let question = Message::from_vec(question).unwrap();
    let query = question.queries[0].clone();
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    let records = match query.name().to_ascii().as_str() {
        "example.com." => 1,
        "big.example." if tcp => 150,
        "big.example." => {
            answer.metadata.truncation = true;
            0
        }
        _ => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            0
        }
    };
    for i in 0..records {
        let data = RData::A(A(Ipv4Addr::new(203, 0, 113, i)));
        answer.add_answer(Record::from_rdata(query.name().clone(), 60, data));
    }
    answer.add_query(query);
    answer.to_vec().unwrap()
}

/// A server with that upstream, and the address it listens on.
async fn serve(upstream: Vec<SocketAddr>) -> (Arc<Server>, SocketAddr) {
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = udp.local_addr().unwrap();
    let own = SocketAddr::new(RESOLVER, 53);
    let server = Arc::new(Server::new(zone(), Upstream::Addresses(upstream), own, world()));
    tokio::spawn(server.clone().serve(udp, tcp, CancellationToken::new()));
    (server, address)
}

async fn ask(server: SocketAddr, name: &str, edns: bool) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        message.set_edns(edns);
    }
    let answer = exchange(server, &message.to_vec().unwrap()).await;
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!(answer.metadata.id, message.metadata.id);
    assert_eq!(answer.queries, message.queries);
    assert_eq!(answer.edns.is_some(), edns);
    assert!(answer.metadata.recursion_available && answer.metadata.recursion_desired);
    answer
}

async fn exchange(server: SocketAddr, question: &[u8]) -> Vec<u8> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(question, server).await.unwrap();
    let mut buffer = vec![0; 4096];
    let length = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.unwrap().unwrap();
    buffer[..length].to_vec()
}

fn addresses(message: &Message) -> usize {
    message.answers.iter().filter(|r| r.record_type() == RecordType::A).count()
}

#[tokio::test]
async fn other_names_are_forwarded_and_kept() {
    let (server, address) = serve(vec![upstream().await]).await;
    for (name, code, count) in [
        ("example.com.", ResponseCode::NoError, 1),
        ("example.com.", ResponseCode::NoError, 1),
        ("EXAMPLE.com.", ResponseCode::NoError, 1),
        ("nope.example.", ResponseCode::NXDomain, 0),
    ] {
        let answer = ask(address, name, false).await;
        assert_eq!((answer.metadata.response_code, addresses(&answer)), (code, count), "{name}");
        assert!(!answer.metadata.authoritative);
    }
    assert_eq!(server.forwarder.counters.asked.load(Ordering::Relaxed), 2);
    assert_eq!(server.forwarder.counters.hits.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn aliases_are_followed() {
    let (_, address) = serve(vec![upstream().await]).await;
    for (name, records) in [("inner.shop.svc.cluster.local.", 2), ("outer.shop.svc.cluster.local.", 2)] {
        let answer = ask(address, name, false).await;
        assert_eq!((answer.answers.len(), addresses(&answer)), (records, 1), "{name}: {answer:?}");
        assert_eq!(answer.answers[0].record_type(), RecordType::CNAME);
    }
    let answer = ask(address, "loop.shop.svc.cluster.local.", false).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn what_does_not_fit_is_cut() {
    let (_, address) = serve(vec![upstream().await]).await;
    for (edns, most) in [(false, 31), (true, 80)] {
        let answer = ask(address, "big.example.", edns).await;
        assert!(answer.metadata.truncation);
        assert!((most / 2..most).contains(&addresses(&answer)), "{} of {most}", addresses(&answer));
    }
}

#[tokio::test]
async fn without_upstream_it_fails_fast() {
    let (_, address) = serve(Vec::new()).await;
    let before = std::time::Instant::now();
    let answer = ask(address, "example.com.", true).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(before.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn before_the_first_list_nothing_is_denied() {
    let server = Server::new(zone(), Upstream::Addresses(Vec::new()), SocketAddr::new(RESOLVER, 53), Shared::default());
    let mut answer = Message::query();
    server.step(&Name::from_ascii("web.shop.svc.cluster.local.").unwrap(), RecordType::A, &mut answer);
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn odd_questions_get_their_code() {
    let (_, address) = serve(Vec::new()).await;
    let plain = |kind| {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii("web.shop.svc.cluster.local.").unwrap(), kind));
        message
    };
    let mut version = plain(RecordType::A);
    let mut edns = Edns::new();
    edns.set_version(1);
    version.set_edns(edns);
    let mut update = plain(RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    let mut chaos = plain(RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    for (message, code) in [
        (plain(RecordType::AXFR), ResponseCode::Refused),
        (Message::query(), ResponseCode::FormErr),
        (version, ResponseCode::BADVERS),
        (update, ResponseCode::NotImp),
        (chaos, ResponseCode::Refused),
    ] {
        let answer = Message::from_vec(&exchange(address, &message.to_vec().unwrap()).await).unwrap();
        // As numbers: one of them stands for two codes.
        assert_eq!(u16::from(answer.metadata.response_code), u16::from(code));
        assert_eq!(answer.metadata.id, message.metadata.id);
    }
    let answer = Message::from_vec(&exchange(address, &[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 63]).await).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (0x0707, ResponseCode::FormErr));
}

#[test]
fn name_servers_of_a_resolv_conf() {
    let text = "# nameserver 192.0.2.9\nsearch example.com\nnameserver 10.96.0.10\n nameserver 192.0.2.1 \n\
                nameserver fe80::1%eth0\nnameserver 2001:db8::1\noptions ndots:5\n";
    let expected: Vec<SocketAddr> = vec!["192.0.2.1:53".parse().unwrap(), "[2001:db8::1]:53".parse().unwrap()];
    assert_eq!(&*forward::name_servers(text, RESOLVER), expected);
}
