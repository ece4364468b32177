//! Calls to the members of an etcd cluster: which one is asked, for how long, and what a failure means.
//!
//! One member is asked at a time, the same one until it fails. Every request says that it wants a member that knows a
//! leader, so a member that is cut off refuses at once instead of holding the request. Reads are asked again elsewhere
//! until their patience is over. A write is only repeated by whoever knows that this is safe: [`Fault`] says whether the
//! request may have had an effect.

use std::error::Error as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tonic::client::Grpc;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, ConnectError, Status, Streaming};
use tonic_prost::ProstCodec;

use super::wire::{self, WatchCreateRequest, WatchRequest, WatchResponse};
use super::{OpenError, Options};

/// A connection is made within this time.
const CONNECT: Duration = Duration::from_secs(2);
/// A read is answered by one member within this time, a watch begun.
pub(super) const READ: Duration = Duration::from_secs(2);
/// A write is answered within this time. Members give up after about seven seconds.
pub(super) const WRITE: Duration = Duration::from_secs(5);
/// How long all members are tried. Covers an election.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// A connection that carries no traffic is asked for life this often, and lost without an answer for a while.
const ALIVE_EVERY: Duration = Duration::from_secs(15);
const ALIVE_WITHIN: Duration = Duration::from_secs(5);
/// Pauses after all members failed once.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MOST: Duration = Duration::from_secs(1);

/// Why a call failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The member did not act and will not. Another one may be asked.
    NotSent(String),
    /// Nobody knows whether the member acted, or will yet.
    Lost(String),
    /// The revision is no longer kept.
    Compacted,
    /// The revision is not there yet.
    Future,
    /// The request is too large for the cluster.
    TooLarge(String),
    /// The cluster refuses.
    Refused(String),
}

impl Fault {
    pub(super) fn text(self) -> String {
        match self {
            Self::NotSent(why) | Self::Lost(why) | Self::TooLarge(why) | Self::Refused(why) => why,
            Self::Compacted => "the revision has been compacted".to_owned(),
            Self::Future => "the revision is in the future".to_owned(),
        }
    }

    fn of(status: &Status) -> Self {
        let why = status.message();
        let mut cause = status.source();
        while let Some(error) = cause {
            if error.is::<ConnectError>() {
                return Self::NotSent(chain(error));
            }
            cause = error.source();
        }
        if why.contains("required revision has been compacted") {
            Self::Compacted
        } else if why.contains("required revision is a future revision") {
            Self::Future
        } else if why.contains("etcdserver: no leader") || why.contains("etcdserver: too many requests") {
            Self::NotSent(why.to_owned())
        } else if why.contains("etcdserver: request is too large") || why.contains("received message larger than max") {
            Self::TooLarge(why.to_owned())
        } else if matches!(
            status.code(),
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Unknown
                | Code::Cancelled
                | Code::Internal
                | Code::Aborted
        ) {
            let why = if why.is_empty() { status.code().description() } else { why };
            Self::Lost(why.to_owned())
        } else {
            Self::Refused(why.to_owned())
        }
    }
}

/// An error with its causes. The outer ones of a connection say only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let text = e.to_string();
        if !out.contains(&text) {
            out = format!("{out}: {text}");
        }
        cause = e.source();
    }
    out
}

struct Member {
    url: String,
    grpc: Grpc<Channel>,
}

/// The members, and which of them is asked.
pub(super) struct Client {
    members: Vec<Member>,
    current: AtomicUsize,
}

/// A watch in progress. Dropping it ends it.
pub(super) struct Watching {
    inbound: Streaming<WatchResponse>,
    /// The member ends the watch when this is closed.
    _requests: mpsc::Sender<WatchRequest>,
    /// What came with the announcement.
    first: Option<WatchResponse>,
}

impl Watching {
    /// The next message; safe to cancel.
    pub(super) async fn next(&mut self) -> Result<WatchResponse, Fault> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        match self.inbound.message().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(Fault::Lost("the member ended the watch".to_owned())),
            Err(status) => Err(Fault::of(&status)),
        }
    }
}

impl Client {
    /// Connects to nobody yet.
    pub(super) fn new(options: &Options) -> Result<Self, OpenError> {
        let members = options.endpoints.iter().map(|url| member(url, options)).collect::<Result<Vec<_>, _>>()?;
        if members.is_empty() {
            return Err(OpenError::Settings("no etcd endpoint is named".to_owned()));
        }
        Ok(Self { members, current: AtomicUsize::new(0) })
    }

    /// The member that is asked now.
    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed) % self.members.len()
    }

    pub(super) fn url(&self, at: usize) -> &str {
        &self.members[at].url
    }

    /// Turns away from the member `at`, unless somebody did already.
    pub(super) fn turn(&self, at: usize) {
        let next = (at + 1) % self.members.len();
        if self.current.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() && next != at {
            tracing::debug!(from = self.url(at), to = self.url(next), "asking another etcd member");
        }
    }

    /// Asks one member once.
    pub(super) async fn once<Q, A>(
        &self,
        at: usize,
        method: &'static str,
        request: Q,
        limit: Duration,
    ) -> Result<A, Fault>
    where
        Q: Message + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut grpc = self.members[at].grpc.clone();
        let call = async {
            grpc.ready().await.map_err(|e| Fault::NotSent(chain(&e)))?;
            let answer =
                grpc.unary(ask(request), PathAndQuery::from_static(method), ProstCodec::<Q, A>::default()).await;
            answer.map(tonic::Response::into_inner).map_err(|status| Fault::of(&status))
        };
        let answer = timeout(limit, call).await.unwrap_or_else(|_| Err(Fault::Lost(format!("no answer in {limit:?}"))));
        if let Err(Fault::NotSent(why) | Fault::Lost(why)) = &answer {
            tracing::debug!(member = self.url(at), %why, "etcd call failed");
            self.turn(at);
        }
        answer
    }

    /// Asks members until one answers: for what may be asked twice.
    pub(super) async fn read<Q, A>(&self, method: &'static str, request: Q) -> Result<A, Fault>
    where
        Q: Message + Clone + Send + Sync + 'static,
        A: Message + Default + Send + Sync + 'static,
    {
        let mut patience = self.patience();
        loop {
            match self.once(self.current(), method, request.clone(), READ).await {
                Err(fault @ (Fault::NotSent(_) | Fault::Lost(_))) => {
                    if !patience.again().await {
                        return Err(fault);
                    }
                }
                answer => return answer,
            }
        }
    }

    /// A loop over the members with a deadline and a back-off.
    pub(super) fn patience(&self) -> Patience {
        Patience { until: Instant::now() + PATIENCE, round: self.members.len(), tried: 0, pause: PAUSE }
    }

    /// Begins a watch on one member; answers when the member has announced it.
    pub(super) async fn watch(&self, at: usize, create: WatchCreateRequest) -> Result<Watching, Fault> {
        let mut grpc = self.members[at].grpc.clone();
        let (requests, outbound) = mpsc::channel(1);
        let begin = async {
            grpc.ready().await.map_err(|e| Fault::NotSent(chain(&e)))?;
            requests.send(WatchRequest { create: Some(create) }).await.map_err(|e| Fault::NotSent(e.to_string()))?;
            let outbound = futures::stream::unfold(outbound, |mut rx| async { rx.recv().await.map(|r| (r, rx)) });
            let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
            let answer = grpc.streaming(ask(outbound), PathAndQuery::from_static(wire::WATCH), codec).await;
            let inbound = answer.map_err(|status| Fault::of(&status))?.into_inner();
            let mut watching = Watching { inbound, _requests: requests, first: None };
            let first = watching.next().await?;
            if first.canceled && first.compact_revision == 0 {
                return Err(Fault::Refused(first.cancel_reason));
            }
            if !first.created || first.canceled {
                watching.first = Some(first);
            }
            Ok(watching)
        };
        let begun = timeout(READ, begin).await.unwrap_or_else(|_| Err(Fault::Lost(format!("no watch in {READ:?}"))));
        if begun.is_err() {
            self.turn(at);
        }
        begun
    }
}

/// How often and how long something is tried again.
pub(super) struct Patience {
    until: Instant,
    round: usize,
    tried: usize,
    pause: Duration,
}

impl Patience {
    /// Waits where that is due; `false` when the time is over.
    pub(super) async fn again(&mut self) -> bool {
        self.tried += 1;
        if self.tried.is_multiple_of(self.round) {
            sleep(self.pause).await;
            self.pause = (self.pause * 2).min(PAUSE_MOST);
        }
        Instant::now() < self.until
    }
}

fn ask<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    request
}

fn member(url: &str, options: &Options) -> Result<Member, OpenError> {
    let refuse = |why: String| OpenError::Settings(format!("the etcd endpoint {url}: {why}"));
    let mut endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|e| refuse(chain(&e)))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(ALIVE_EVERY)
        .keep_alive_timeout(ALIVE_WITHIN)
        .keep_alive_while_idle(true);
    match (endpoint.uri().scheme_str(), &options.tls) {
        (Some("https"), Some(tls)) => {
            let mut config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca));
            if let Some((cert, key)) = &tls.identity {
                config = config.identity(Identity::from_pem(cert, key));
            }
            endpoint = endpoint.tls_config(config).map_err(|e| refuse(chain(&e)))?;
        }
        (Some("https"), None) => {
            return Err(refuse("https needs the authority that signed its certificate".to_owned()));
        }
        (Some("http"), None) => {}
        (Some("http"), Some(_)) => return Err(refuse("certificates are named, but it is http".to_owned())),
        _ => return Err(refuse("it begins with neither https:// nor http://".to_owned())),
    }
    let grpc = Grpc::new(endpoint.connect_lazy()).max_decoding_message_size(usize::MAX);
    Ok(Member { url: url.to_owned(), grpc })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failure_means() {
        let kind = |code, text: &str| match Fault::of(&Status::new(code, text)) {
            Fault::NotSent(_) => "not sent",
            Fault::Lost(_) => "lost",
            Fault::Compacted => "compacted",
            Fault::Future => "future",
            Fault::TooLarge(_) => "too large",
            Fault::Refused(_) => "refused",
        };
        let cases = [
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", "compacted"),
            (Code::OutOfRange, "etcdserver: mvcc: required revision is a future revision", "future"),
            (Code::Unavailable, "etcdserver: no leader", "not sent"),
            (Code::Unavailable, "etcdserver: request timed out", "lost"),
            (Code::Unavailable, "etcdserver: leader changed", "lost"),
            (Code::DeadlineExceeded, "", "lost"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", "refused"),
            (Code::InvalidArgument, "etcdserver: request is too large", "too large"),
            (Code::ResourceExhausted, "grpc: received message larger than max (3000000 vs. 2097152)", "too large"),
            (Code::PermissionDenied, "etcdserver: permission denied", "refused"),
        ];
        for (code, text, want) in cases {
            assert_eq!(kind(code, text), want, "{text}");
        }
    }

    #[tokio::test]
    async fn endpoints_are_checked() {
        let cases = [
            (vec![], "no etcd endpoint"),
            (vec!["127.0.0.1:2379"], "neither https"),
            (vec!["https://127.0.0.1:2379"], "needs the authority"),
            (vec!["http://127.0.0.1:2379", "ftp://x"], "neither https"),
        ];
        for (endpoints, want) in cases {
            let endpoints = endpoints.into_iter().map(str::to_owned).collect();
            let error = Client::new(&Options::new(endpoints)).err().expect("refused").to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
