//! Port-forward: connections to a pod's ports from inside its network namespace.
//!
//! Three forms: plain SPDY, SPDY inside WebSocket messages (both with a pair of streams per connection), and the old
//! WebSocket form with two channels per port.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::query::Query;
use super::upgrade::{Upgrade, Wire};
use super::{Body, Server, spdy, text, websocket};
use crate::net;
use crate::pod::spec;
use crate::runtime::{State, label};

const PROTOCOL: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const CHANNELS: [&str; 2] = ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
/// The second stream of a pair must come in this time.
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);
/// Half pairs waiting for their other half.
const MAX_HALVES: usize = 256;
/// Ports of one request in the old form; a channel number is one byte.
const MAX_PORTS: usize = 64;
const QUEUE: usize = 32;
const BUFFER: usize = 32 << 10;

/// Serves a port-forward request.
pub(crate) async fn serve(
    server: &Arc<Server>,
    namespace: &str,
    pod: &str,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let Some(found) = server.manager.pod(namespace, pod) else {
        return text(StatusCode::NOT_FOUND, format!("pod not found ({pod}_{namespace})"));
    };
    let listed = match server.manager.shared.runtime.list(Some(spec::uid(&found))).await {
        Ok(listed) => listed,
        Err(error) => return text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    };
    let sandbox = listed.iter().find(|c| c.label(label::KIND) == "sandbox" && c.state == State::Running);
    let Some(pid) = sandbox.and_then(|s| s.pid) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, format!("pod {pod} is not running"));
    };
    let ports: Result<Vec<u16>, _> = Query::parse(request.uri().query().unwrap_or_default())
        .all("ports")
        .iter()
        .chain(&Query::parse(request.uri().query().unwrap_or_default()).all("port"))
        .flat_map(|p| p.split(','))
        .map(|p| p.trim().parse::<u16>())
        .collect();
    let upgrade = match Upgrade::of(&mut request) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return *refusal,
    };
    let form = match (upgrade.wire, upgrade.offers.is_empty()) {
        (Wire::Spdy, true) => Some(PROTOCOL.to_string()),
        (Wire::Spdy, false) => upgrade.choose(&[PROTOCOL]),
        (Wire::WebSocket, true) => Some(String::new()),
        (Wire::WebSocket, false) => upgrade.choose(&[TUNNEL, CHANNELS[0], CHANNELS[1]]),
    };
    let Some(form) = form else {
        let offers = upgrade.offers.join(",");
        return text(
            StatusCode::FORBIDDEN,
            format!("unable to negotiate protocol: client supports [{offers}], server supports [{PROTOCOL}]\n"),
        );
    };
    let wire = upgrade.wire;
    let ports = match (wire, form.as_str()) {
        (Wire::WebSocket, form) if form != TUNNEL => match ports {
            Ok(ports) if (1..=MAX_PORTS).contains(&ports.len()) => ports,
            _ => return text(StatusCode::BAD_REQUEST, "query parameter \"port\" is required\n"),
        },
        _ => Vec::new(),
    };
    let (response, raw) = upgrade.accept(&form);
    tokio::spawn(async move {
        let Ok(raw) = raw.await.map(TokioIo::new) else { return };
        match (wire, form.as_str()) {
            (Wire::Spdy, _) => pairs(raw, pid).await,
            (_, TUNNEL) => pairs(websocket::tunnel(raw).await, pid).await,
            _ => channels(raw, &form, ports, pid).await,
        }
    });
    response
}

/// Connects to a port as a program inside the pod would.
async fn connect(pid: i32, port: u16) -> Result<TcpStream, String> {
    let dial = move || async move {
        let failed = |e| net::Error::Io("connect", e);
        let stream = match TcpStream::connect(("127.0.0.1", port)).await {
            Ok(stream) => stream,
            // A program may listen on the other family only; the first error is the one to tell.
            Err(error) => TcpStream::connect(("::1", port)).await.map_err(|_| failed(error))?,
        };
        stream.into_std().map_err(failed)
    };
    let stream = net::in_netns(pid, dial).await.map_err(|e| match e {
        net::Error::Io(_, cause) => {
            format!("failed to connect to localhost:{port} inside namespace, IPv4: dial tcp4 127.0.0.1:{port}: {cause}")
        }
        other => other.to_string(),
    })?;
    TcpStream::from_std(stream).map_err(|e| e.to_string())
}

/// Serves pairs of streams: data and error with one request identifier.
async fn pairs<S: AsyncRead + AsyncWrite + Send + 'static>(connection: S, pid: i32) {
    let (opened, mut streams) = mpsc::channel(QUEUE);
    let session = tokio::spawn(async move {
        if let Err(error) = spdy::run(connection, opened).await {
            tracing::debug!(%error, "port-forward connection ended");
        }
    });
    let mut halves: HashMap<String, (spdy::Stream, std::time::Instant)> = HashMap::new();
    while let Some(stream) = streams.recv().await {
        let of = |name: &str| stream.headers.get(name).cloned().unwrap_or_default();
        let kind = of("streamtype");
        // Old clients send no identifier: the data stream's number follows the error stream's.
        let number = stream.writer.id();
        let id = match of("requestid") {
            id if !id.is_empty() => id,
            _ if kind == "error" => number.to_string(),
            _ => number.saturating_sub(2).to_string(),
        };
        let port = of("port").parse::<u16>().ok().filter(|p| *p > 0);
        if !matches!(kind.as_str(), "data" | "error") || port.is_none() || halves.len() >= MAX_HALVES {
            // The client is told by the reset; a failure means that it left.
            let _ = stream.writer.reset().await;
            continue;
        }
        halves.retain(|_, (_, since)| since.elapsed() < PAIR_TIMEOUT);
        match (halves.remove(&id), port) {
            (Some((other, _)), Some(port)) => {
                let (data, error) = if kind == "data" { (stream, other) } else { (other, stream) };
                tokio::spawn(pair(pid, port, data, error.writer));
            }
            _ => drop(halves.insert(id, (stream, std::time::Instant::now()))),
        }
    }
    drop(streams);
    // The session ends with its connection.
    let _ = session.await;
}

/// One connection: until both halves are closed.
async fn pair(pid: i32, port: u16, mut data: spdy::Stream, error: spdy::Writer) {
    let failure = match connect(pid, port).await {
        Ok(stream) => {
            let (mut read, mut write) = stream.into_split();
            let writer = data.writer.clone();
            let inward = async {
                while let Some(bytes) = data.incoming.recv().await {
                    if write.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                // The client closed its half; the pod's program sees an end of input.
                let _ = write.shutdown().await;
            };
            let outward = async {
                let mut buffer = vec![0; BUFFER];
                while let Ok(count @ 1..) = read.read(&mut buffer).await {
                    if writer.write(Bytes::copy_from_slice(&buffer[..count])).await.is_err() {
                        return;
                    }
                }
            };
            // When the pod closes, the connection is over, whatever the client may still send.
            let mut outward = std::pin::pin!(outward);
            tokio::select! {
                () = inward => outward.await,
                () = &mut outward => {}
            }
            None
        }
        Err(message) => Some(message),
    };
    // Errors here mean that the client left.
    if let Some(message) = failure {
        let text = format!("an error occurred forwarding {port}: {message}");
        let _ = error.write(Bytes::from(text)).await;
    }
    let _ = error.finish().await;
    let _ = data.writer.finish().await;
}

/// The old form: for port number i, channel 2i carries data and 2i+1 errors; each begins with the port.
async fn channels(raw: super::upgrade::Raw, protocol: &str, ports: Vec<u16>, pid: i32) {
    let (sender, mut receiver) = websocket::channels(raw, protocol).await;
    let sender = Arc::new(sender);
    let mut inputs = Vec::new();
    let mut tasks = tokio::task::JoinSet::new();
    for (index, port) in ports.into_iter().enumerate() {
        let (data, error) = ((index * 2) as u8, (index * 2 + 1) as u8);
        for channel in [data, error] {
            if sender.send(channel, &port.to_le_bytes()).await.is_err() {
                return;
            }
        }
        let (input, mut incoming) = mpsc::channel::<Bytes>(QUEUE);
        inputs.push(Some(input));
        let sender = sender.clone();
        tasks.spawn(async move {
            let stream = match connect(pid, port).await {
                Ok(stream) => stream,
                Err(message) => {
                    // The client may have left.
                    let _ = sender.send(error, message.as_bytes()).await;
                    return;
                }
            };
            let (mut read, mut write) = stream.into_split();
            let inward = async {
                while let Some(bytes) = incoming.recv().await {
                    if write.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
                let _ = write.shutdown().await;
            };
            let outward = async {
                let mut buffer = vec![0; BUFFER];
                while let Ok(count @ 1..) = read.read(&mut buffer).await {
                    if sender.send(data, &buffer[..count]).await.is_err() {
                        return;
                    }
                }
            };
            let mut outward = std::pin::pin!(outward);
            tokio::select! {
                () = inward => outward.await,
                () = &mut outward => {}
            }
        });
    }
    loop {
        tokio::select! {
            received = receiver.next() => match received {
                Some(websocket::Received::Data(channel, data)) if channel % 2 == 0 => {
                    let input = inputs.get_mut(usize::from(channel / 2));
                    if let Some(slot) = input
                        && let Some(input) = slot
                        && input.send(data).await.is_err()
                    {
                        *slot = None;
                    }
                }
                Some(_) => {}
                None => return,
            },
            ended = tasks.join_next() => if ended.is_none() {
                sender.close().await;
                return;
            },
        }
    }
}
