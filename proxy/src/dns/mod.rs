//! The cluster's name server: UDP and TCP on the cluster DNS address, on every node.
//!
//! [`zone`] knows the cluster's own names and answers from the index at once; [`forward`] asks the host's name servers
//! for the rest. Each node answers for itself, so there is nothing to schedule, and pods resolve while the API server
//! is down.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::index::Shared;
use crate::metrics;

pub mod forward;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
pub mod zone;

use forward::{Forwarder, UDP_SIZE, Upstream};
use zone::{Answer, Zone};

/// TCP connections at a time.
const CONNECTIONS: usize = 256;
/// Questions over UDP that wait for an upstream at a time; each keeps its question, which is small.
const WAITING: usize = 1_024;
/// A TCP client that says nothing for that long is gone.
const IDLE: Duration = Duration::from_secs(10);
/// Aliases followed for one question.
const ALIASES: usize = 8;

/// The name server.
pub struct Server {
    zone: Zone,
    forwarder: Forwarder,
    shared: Shared,
    /// Hosts of Ingresses, whose names are answered like the cluster's own.
    pub hosts: Arc<crate::ingress::State>,
    turn: AtomicUsize,
    waiting: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// Questions and connections turned away because too many were open.
    pub shed: AtomicU64,
}

impl Server {
    /// A name server for `zone` over the index, which asks `upstream` about other names, except at `own`.
    pub fn new(zone: Zone, upstream: Upstream, own: SocketAddr, shared: Shared) -> Self {
        Self {
            zone,
            forwarder: Forwarder::new(upstream, own.ip()),
            shared,
            hosts: Arc::default(),
            turn: AtomicUsize::new(0),
            waiting: Arc::new(Semaphore::new(WAITING)),
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            shed: AtomicU64::new(0),
        }
    }

    /// Serves both protocols until `stop`.
    pub async fn serve(self: Arc<Self>, udp: UdpSocket, tcp: TcpListener, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.clone().serve_udp(Arc::new(udp)) => {}
            () = self.clone().serve_tcp(tcp) => {}
        }
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; 4096];
        loop {
            let (length, peer) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    pause(&error).await;
                    continue;
                }
            };
            let begun = Instant::now();
            match self.at_once(&buffer[..length]) {
                Ready::Ignore => {}
                Ready::Answer(request, answer) => {
                    metrics::answered("udp", peer, &request, &answer, begun.elapsed());
                    send(&socket, peer, &request, answer).await;
                }
                Ready::Later(request) => {
                    let Ok(permit) = self.waiting.clone().try_acquire_owned() else {
                        self.shed.fetch_add(1, Ordering::Relaxed);
                        metrics::shed();
                        let failed = failure(&request, ResponseCode::ServFail);
                        send(&socket, peer, &request, failed).await;
                        continue;
                    };
                    let (server, socket) = (self.clone(), socket.clone());
                    tokio::spawn(async move {
                        let _permit = permit;
                        let answer = server.later(&request).await;
                        metrics::answered("udp", peer, &request, &answer, begun.elapsed());
                        send(&socket, peer, &request, answer).await;
                    });
                }
            }
        }
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause(&error).await;
                    continue;
                }
            };
            let Ok(permit) = self.connections.clone().try_acquire_owned() else {
                self.shed.fetch_add(1, Ordering::Relaxed);
                metrics::shed();
                continue;
            };
            let server = self.clone();
            tokio::spawn(async move {
                let _permit = permit;
                // A client that breaks off is no news.
                let _ = server.converse(stream, peer).await;
            });
        }
    }

    async fn converse(&self, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        loop {
            let question = async {
                let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
                stream.read_exact(&mut bytes).await?;
                io::Result::Ok(bytes)
            };
            let bytes = tokio::time::timeout(IDLE, question).await??;
            let begun = Instant::now();
            let (request, answer) = match self.at_once(&bytes) {
                Ready::Ignore => return Ok(()),
                Ready::Answer(request, answer) => (request, answer),
                Ready::Later(request) => {
                    let answer = self.later(&request).await;
                    (request, answer)
                }
            };
            metrics::answered("tcp", peer, &request, &answer, begun.elapsed());
            let bytes = encode(&request, answer, usize::from(u16::MAX));
            let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes();
            tokio::time::timeout(IDLE, stream.write_all(&[&length, &bytes[..]].concat())).await??;
        }
    }

    /// Answers what needs nobody else.
    fn at_once(&self, bytes: &[u8]) -> Ready {
        let request = match Message::from_vec(bytes) {
            Ok(request) if request.metadata.message_type == MessageType::Query => request,
            // An answer to an answer could go on for ever.
            Ok(_) => return Ready::Ignore,
            Err(_) => {
                let Some(&[high, low]) = bytes.get(..2) else { return Ready::Ignore };
                if bytes.get(2).is_none_or(|flags| flags & 0x80 != 0) {
                    return Ready::Ignore;
                }
                let id = u16::from_be_bytes([high, low]);
                let answer = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
                return Ready::Answer(Box::new(Message::query()), answer);
            }
        };
        let request = Box::new(request);
        let refusal = match &request.queries[..] {
            _ if request.metadata.op_code != OpCode::Query => Some(ResponseCode::NotImp),
            [_] if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) => Some(ResponseCode::BADVERS),
            [query] if query.query_class() != DNSClass::IN => Some(ResponseCode::Refused),
            [query] if matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR) => Some(ResponseCode::Refused),
            [_] => None,
            _ => Some(ResponseCode::FormErr),
        };
        if let Some(code) = refusal {
            let answer = failure(&request, code);
            return Ready::Answer(request, answer);
        }
        let query = &request.queries[0];
        let mut answer = failure(&request, ResponseCode::NoError);
        match self.step(query.name(), query.query_type(), &mut answer) {
            Step::Done => Ready::Answer(request, answer),
            Step::Alias(_) | Step::Foreign => Ready::Later(request),
        }
    }

    /// Answers with the help of upstream servers, and follows aliases.
    async fn later(&self, request: &Message) -> Message {
        let mut answer = failure(request, ResponseCode::NoError);
        let Some(query) = request.queries.first() else { return failure(request, ResponseCode::FormErr) };
        let (mut name, kind) = (query.name().clone(), query.query_type());
        for _ in 0..ALIASES {
            match self.step(&name, kind, &mut answer) {
                Step::Done => return answer,
                Step::Alias(target) => {
                    answer.add_answer(zone::alias(name, target.clone()));
                    if matches!(kind, RecordType::CNAME | RecordType::ANY) {
                        return answer;
                    }
                    name = target;
                }
                Step::Foreign => {
                    match self.forwarder.ask(request, &name, kind).await {
                        Ok(found) => {
                            answer.metadata.response_code = found.metadata.response_code;
                            answer.metadata.truncation = found.metadata.truncation;
                            answer.metadata.authentic_data = found.metadata.authentic_data && answer.answers.is_empty();
                            answer.metadata.authoritative = false;
                            answer.add_answers(found.answers.iter().cloned());
                            answer.add_authorities(found.authorities.iter().cloned());
                            answer.add_additionals(found.additionals.iter().cloned());
                        }
                        Err(error) => {
                            tracing::debug!(%name, ?kind, %error, "not resolved");
                            answer.metadata.response_code = ResponseCode::ServFail;
                        }
                    }
                    return answer;
                }
            }
        }
        answer.metadata.response_code = ResponseCode::ServFail;
        answer
    }

    /// One look into the zone.
    fn step(&self, name: &Name, kind: RecordType, answer: &mut Message) -> Step {
        let index = self.shared.index.read();
        let found = self.zone.answer(&index, name, kind);
        if !index.ready() && !matches!(found, Answer::Foreign) {
            // Nothing is known yet, not even what does not exist.
            answer.metadata.response_code = ResponseCode::ServFail;
            return Step::Done;
        }
        drop(index);
        match found {
            Answer::Foreign => {
                let hosts = self.hosts.addresses(name.to_ascii().to_ascii_lowercase().trim_end_matches('.'));
                if hosts.is_empty() {
                    return Step::Foreign;
                }
                answer.add_answers(zone::addresses(name, &hosts, kind));
            }
            Answer::Alias(target) => {
                answer.metadata.authoritative = true;
                return Step::Alias(target);
            }
            Answer::Missing { authority } => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                answer.add_authority(authority);
            }
            Answer::Found { answers, authority, .. } if answers.is_empty() => {
                answer.add_authority(authority);
            }
            Answer::Found { mut answers, additionals, .. } => {
                // Many clients take the first address: each answer begins with another one.
                let turn = self.turn.fetch_add(1, Ordering::Relaxed) % answers.len();
                answers.rotate_left(turn);
                answer.add_answers(answers);
                answer.add_additionals(additionals);
            }
        }
        answer.metadata.authoritative = true;
        Step::Done
    }
}

enum Step {
    Done,
    Alias(Name),
    Foreign,
}

enum Ready {
    Ignore,
    Answer(Box<Message>, Message),
    Later(Box<Message>),
}

/// An answer without records.
fn failure(request: &Message, code: ResponseCode) -> Message {
    let mut answer = Message::error_msg(request.metadata.id, request.metadata.op_code, code);
    answer.metadata.recursion_desired = request.metadata.recursion_desired;
    answer.metadata.checking_disabled = request.metadata.checking_disabled;
    answer.metadata.recursion_available = true;
    answer.add_queries(request.queries.iter().cloned());
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_SIZE);
        // The upper bits of an extended code travel here.
        edns.set_rcode_high(u8::try_from(u16::from(code) >> 4).unwrap_or(0));
        answer.set_edns(edns);
    }
    answer
}

/// The answer's bytes, at most `limit`: addresses that nobody asked for go first, then records from the end, and then
/// the client is told that there is more.
fn encode(request: &Message, mut answer: Message, limit: usize) -> Vec<u8> {
    loop {
        match answer.to_vec() {
            Ok(bytes) if bytes.len() <= limit => return bytes,
            Ok(_) if !answer.additionals.is_empty() => answer.additionals.clear(),
            Ok(bytes) if !answer.answers.is_empty() => {
                let keep = answer.answers.len() * limit / bytes.len();
                answer.answers.truncate(keep.min(answer.answers.len() - 1));
                answer.metadata.truncation = true;
            }
            Ok(_) if !answer.authorities.is_empty() => {
                let _: Vec<Record> = std::mem::take(&mut answer.authorities);
                answer.metadata.truncation = true;
            }
            Ok(bytes) => return bytes,
            Err(error) => {
                tracing::warn!(%error, "answer cannot be written");
                return failure(request, ResponseCode::ServFail).to_vec().unwrap_or_default();
            }
        }
    }
}

async fn send(socket: &UdpSocket, peer: SocketAddr, request: &Message, answer: Message) {
    let asked = request.edns.as_ref().map_or(512, |edns| edns.max_payload());
    let bytes = encode(request, answer, usize::from(asked.clamp(512, UDP_SIZE)));
    if let Err(error) = socket.send_to(&bytes, peer).await {
        tracing::debug!(%error, %peer, "answer not sent");
    }
}

/// After an error of a listening socket: out of file descriptors, most likely. The pause keeps the loop from spinning.
async fn pause(error: &io::Error) {
    tracing::debug!(%error, "name server's socket");
    tokio::time::sleep(Duration::from_millis(50)).await;
}
