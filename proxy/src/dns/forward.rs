//! Questions about other names, put to the host's own name servers.
//!
//! UDP first, TCP when the answer does not fit; each server in turn, one that has answered before first. A small cache
//! in front, because a pod's resolver asks the same thing again and again. Bounds: questions in flight, cache entries,
//! time for each try and for the whole. Who comes when all are busy gets a failure at once, and is counted.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use hickory_proto::op::{Edns, Message, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Time one server has to answer.
const TRY: Duration = Duration::from_millis(1_500);
/// Time for one question over all servers: less than the five seconds after which resolvers ask again.
const WHOLE: Duration = Duration::from_millis(4_500);
/// Questions in flight.
const IN_FLIGHT: usize = 512;
/// Answers kept.
const KEPT: usize = 2_048;
/// Longest time an answer is kept, and the time for negative ones that do not say.
const KEEP: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(5));
/// Largest answer that is kept, in records.
const KEPT_RECORDS: usize = 64;
/// How often it is looked whether the list of servers has changed.
const LOOK: Duration = Duration::from_secs(5);
/// Largest UDP answer asked for: what passes every network in one piece.
pub const UDP_SIZE: u16 = 1_232;

/// Where questions about other names go.
#[derive(Clone, Debug)]
pub enum Upstream {
    /// The name servers of a `resolv.conf`, read again when it changes.
    ResolvConf(PathBuf),
    /// These name servers.
    Addresses(Vec<SocketAddr>),
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no name server to ask.
    #[error("no upstream name server")]
    NoServer,
    /// Too many questions are in flight.
    #[error("too many questions in flight")]
    Busy,
    /// No server has answered in time.
    #[error("no answer in time")]
    Timeout,
    /// The network refused.
    #[error("cannot reach the name server")]
    Io(#[from] std::io::Error),
    /// A message could not be written or read.
    #[error("malformed message")]
    Message(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Counters {
    /// Answers from the cache.
    pub hits: AtomicU64,
    /// Questions put to a server.
    pub asked: AtomicU64,
    /// Questions turned away because too many were in flight.
    pub shed: AtomicU64,
    /// Answers dropped from the cache before their time, to make room.
    pub evicted: AtomicU64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Question {
    name: Name,
    kind: RecordType,
    class: DNSClass,
    dnssec: bool,
    unchecked: bool,
}

struct Kept {
    message: Arc<Message>,
    since: Instant,
    until: Instant,
}

struct Servers {
    list: Arc<[SocketAddr]>,
    stamp: Option<SystemTime>,
    looked: Option<Instant>,
}

/// The forwarder.
pub struct Forwarder {
    upstream: Upstream,
    own: IpAddr,
    servers: Mutex<Servers>,
    /// Index of the server that answered last.
    good: AtomicUsize,
    permits: Semaphore,
    cache: Mutex<HashMap<Question, Kept>>,
    /// What has happened so far.
    pub counters: Counters,
}

impl Forwarder {
    /// A forwarder that never asks `own`, the address this name server listens on.
    pub fn new(upstream: Upstream, own: IpAddr) -> Self {
        Self {
            upstream,
            own,
            servers: Mutex::new(Servers { list: Arc::from([]), stamp: None, looked: None }),
            good: AtomicUsize::new(0),
            permits: Semaphore::new(IN_FLIGHT),
            cache: Mutex::default(),
            counters: Counters::default(),
        }
    }

    /// The answer to the first question of `request`. Its id is not the request's.
    pub async fn ask(&self, request: &Message, name: &Name, kind: RecordType) -> Result<Arc<Message>, Error> {
        let class = request.queries.first().map_or(DNSClass::IN, |q| q.query_class());
        let dnssec = request.edns.as_ref().is_some_and(|edns| edns.flags().dnssec_ok);
        let unchecked = request.metadata.checking_disabled;
        let question = Question { name: name.to_lowercase(), kind, class, dnssec, unchecked };
        if let Some(message) = self.cached(&question) {
            self.counters.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(message);
        }
        let Ok(_permit) = self.permits.try_acquire() else {
            self.counters.shed.fetch_add(1, Ordering::Relaxed);
            return Err(Error::Busy);
        };
        self.counters.asked.fetch_add(1, Ordering::Relaxed);
        let servers = self.servers();
        let answer = tokio::time::timeout(WHOLE, self.ask_each(&servers, name, &question));
        let message = Arc::new(answer.await.unwrap_or(Err(Error::Timeout))?);
        self.keep(question, &message);
        Ok(message)
    }

    async fn ask_each(&self, servers: &[SocketAddr], name: &Name, question: &Question) -> Result<Message, Error> {
        let mut last = Err(Error::NoServer);
        let first = self.good.load(Ordering::Relaxed);
        for turn in 0..servers.len() * 2 {
            let at = (first + turn) % servers.len();
            last = exchange(servers[at], name, question).await;
            match last.as_ref().map(|m| m.metadata.response_code) {
                Ok(ResponseCode::ServFail | ResponseCode::Refused | ResponseCode::NotImp)
                    if turn + 1 < servers.len() => {}
                Ok(_) => {
                    self.good.store(at, Ordering::Relaxed);
                    break;
                }
                Err(error) => tracing::debug!(server = %servers[at], %error, "name server did not answer"),
            }
        }
        last
    }

    /// The servers to ask, as of now.
    fn servers(&self) -> Arc<[SocketAddr]> {
        let mut servers = self.servers.lock();
        if servers.looked.is_none_or(|at| at.elapsed() >= LOOK) {
            servers.looked = Some(Instant::now());
            match &self.upstream {
                Upstream::Addresses(list) => {
                    servers.list = list.iter().copied().filter(|a| a.ip() != self.own).collect();
                }
                Upstream::ResolvConf(path) => {
                    let stamp = std::fs::metadata(path).and_then(|m| m.modified()).ok();
                    if stamp.is_none() || stamp != servers.stamp {
                        servers.stamp = stamp;
                        servers.list = name_servers(&std::fs::read_to_string(path).unwrap_or_default(), self.own);
                    }
                }
            }
        }
        servers.list.clone()
    }

    fn cached(&self, question: &Question) -> Option<Arc<Message>> {
        let cache = self.cache.lock();
        let kept = cache.get(question).filter(|kept| Instant::now() < kept.until)?;
        let age = u32::try_from(kept.since.elapsed().as_secs()).unwrap_or(u32::MAX);
        let mut message = Message::clone(&kept.message);
        let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
        for record in sections.into_iter().flatten() {
            record.decrement_ttl(age);
        }
        Some(Arc::new(message))
    }

    fn keep(&self, question: Question, message: &Arc<Message>) {
        let Some(time) = lifetime(message) else { return };
        let mut cache = self.cache.lock();
        let now = Instant::now();
        if cache.len() >= KEPT {
            cache.retain(|_, kept| now < kept.until);
        }
        if cache.len() >= KEPT
            && let Some(victim) = cache.keys().next().cloned()
        {
            cache.remove(&victim);
            self.counters.evicted.fetch_add(1, Ordering::Relaxed);
        }
        cache.insert(question, Kept { message: message.clone(), since: now, until: now + time });
    }
}

/// How long an answer may be kept; `None` for not at all.
fn lifetime(message: &Message) -> Option<Duration> {
    let records = message.answers.len() + message.authorities.len() + message.additionals.len();
    if message.metadata.truncation || records > KEPT_RECORDS {
        return None;
    }
    let seconds = match message.metadata.response_code {
        ResponseCode::NoError if !message.answers.is_empty() => message.answers.iter().map(|r| r.ttl).min(),
        ResponseCode::NoError | ResponseCode::NXDomain => {
            let minimum = message.authorities.iter().find_map(|record| match &record.data {
                RData::SOA(soa) => Some(soa.minimum.min(record.ttl)),
                _ => None,
            });
            return Some(minimum.map_or(KEEP.1, |s| Duration::from_secs(s.into())).min(KEEP.0));
        }
        _ => return None,
    };
    seconds.filter(|s| *s > 0).map(|s| Duration::from_secs(s.into()).min(KEEP.0))
}

/// The name servers of a `resolv.conf`, without `own`.
pub fn name_servers(text: &str, own: IpAddr) -> Arc<[SocketAddr]> {
    let words = text.lines().map(|line| line.split_whitespace());
    let addresses = words.filter_map(|mut words| match (words.next(), words.next()) {
        (Some("nameserver"), Some(address)) => address.parse::<IpAddr>().ok(),
        _ => None,
    });
    addresses.filter(|ip| *ip != own).map(|ip| SocketAddr::new(ip, 53)).collect()
}

async fn exchange(server: SocketAddr, name: &Name, question: &Question) -> Result<Message, Error> {
    let malformed = |e: hickory_proto::ProtoError| Error::Message(Box::new(e));
    let mut query = hickory_proto::op::Query::query(name.clone(), question.kind);
    query.set_query_class(question.class);
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.metadata.checking_disabled = question.unchecked;
    message.add_query(query);
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_SIZE).set_dnssec_ok(question.dnssec);
    message.set_edns(edns);
    let bytes = message.to_vec().map_err(malformed)?;
    let matches = |answer: &Message| {
        let same = |a: &hickory_proto::op::Query| a.query_type() == question.kind && a.name() == name;
        answer.metadata.id == message.metadata.id && answer.queries.first().is_none_or(same)
    };
    let answer = tokio::time::timeout(TRY, over_udp(server, &bytes, matches));
    let answer = answer.await.unwrap_or(Err(Error::Timeout))?;
    if !answer.metadata.truncation {
        return Ok(answer);
    }
    let whole = tokio::time::timeout(TRY, over_tcp(server, &bytes));
    // The cut answer is better than none.
    Ok(whole.await.unwrap_or(Err(Error::Timeout)).ok().filter(matches).unwrap_or(answer))
}

async fn over_udp(server: SocketAddr, query: &[u8], matches: impl Fn(&Message) -> bool) -> Result<Message, Error> {
    let local: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A new socket, and so a new random port, for each question: a forger must guess it besides the id.
    let socket = UdpSocket::bind((local, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Ok(message) = Message::from_vec(&buffer[..length])
            && matches(&message)
        {
            return Ok(message);
        }
    }
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> Result<Message, Error> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(query.len()).unwrap_or(u16::MAX).to_be_bytes();
    stream.write_all(&[&length, query].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Message::from_vec(&answer).map_err(|e| Error::Message(Box::new(e)))
}
