//! Requests of this process that become streams: exec, attach, port-forward through [`crate::Server::client`].
//!
//! An upgrade belongs to a connection, and a client that sits directly on the server has none. So such a request gets one of
//! its own, in memory, with HTTP on both of its ends; the gates are the same.

use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use http::header::{HOST, HeaderValue};
use http::{Request, Response};
use http_body_util::BodyStream;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use crate::body::Body;
use crate::chain::{self, Peer};
use crate::server::Inner;

/// Bytes on their way in each direction.
const BUFFER: usize = 256 << 10;

/// Answers a request whose connection may become a stream.
///
/// # Errors
/// When the connection ends before the answer.
pub(crate) async fn carry<B>(server: Arc<Inner>, peer: Peer, mut request: Request<B>) -> std::io::Result<Response<Body>>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (ours, theirs) = tokio::io::duplex(BUFFER);
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let server = Arc::clone(&server);
        async move { Ok::<_, std::convert::Infallible>(chain::handle(server, request).await) }
    });
    // Each ends with the other.
    let serving = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(theirs), service);
    tokio::spawn(serving.with_upgrades());
    let shaken = hyper::client::conn::http1::handshake(TokioIo::new(ours)).await;
    let (mut sender, connection) = shaken.map_err(std::io::Error::other)?;
    tokio::spawn(connection.with_upgrades());
    request.headers_mut().entry(HOST).or_insert(HeaderValue::from_static("localhost"));
    let answer = sender.send_request(request).await.map_err(std::io::Error::other)?;
    Ok(answer.map(|body| {
        let pieces = BodyStream::new(body).filter_map(|piece| async {
            match piece {
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(error) => Some(Err(std::io::Error::other(error))),
            }
        });
        Body::Fallible(Box::pin(pieces))
    }))
}
