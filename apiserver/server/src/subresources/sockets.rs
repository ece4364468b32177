//! Answers that are read over a WebSocket: logs for browsers and other clients that speak nothing else.
//!
//! The answer's bytes come as messages, after one empty message, and the end of the answer closes the socket. Of the
//! protocols that the client names the first known is taken: `binary.k8s.io` (also when none is named) or
//! `base64.binary.k8s.io`, which is text. What the client sends is not looked at.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::header::{
    CONNECTION, HeaderMap, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE,
};
use http::{Response, StatusCode};
use http_body_util::BodyStream;
use hyper_util::rt::TokioIo;
use skiff_core::status::Status;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::body::Body;
use crate::verbs::{Answer, Call};

const BINARY: &str = "binary.k8s.io";
const TEXT: &str = "base64.binary.k8s.io";
/// How long a client may take to read a message.
const WRITE: Duration = Duration::from_secs(60);

/// A client that asked for a WebSocket.
pub struct Asked {
    client: hyper::upgrade::OnUpgrade,
    accept: HeaderValue,
    protocol: Option<&'static str>,
}

/// Takes the wish for a WebSocket off a call; none if it asks for a plain answer.
///
/// # Errors
/// 400 when the wish cannot be met.
pub fn asked(call: &mut Call) -> Result<Option<Asked>, Status> {
    let is = |v: &HeaderValue| v.as_bytes().eq_ignore_ascii_case(b"websocket");
    if !call.headers.get(UPGRADE).is_some_and(is) {
        return Ok(None);
    }
    let bad = || Status::bad_request("the request is no WebSocket handshake of version 13");
    let key = call.headers.get(SEC_WEBSOCKET_KEY).ok_or_else(bad)?;
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).map_err(|_| bad())?;
    let protocol = protocol(&call.headers)?;
    let client = call.upgrade.take().ok_or_else(bad)?;
    let socket = |name: &&http::HeaderName| name.as_str().starts_with("sec-websocket-");
    for name in call.headers.keys().filter(socket).cloned().collect::<Vec<_>>() {
        call.headers.remove(name);
    }
    call.headers.remove(UPGRADE);
    Ok(Some(Asked { client, accept, protocol }))
}

fn protocol(headers: &HeaderMap) -> Result<Option<&'static str>, Status> {
    let named = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let named: Vec<&str> = named.flat_map(|v| v.split(',')).map(str::trim).filter(|p| !p.is_empty()).collect();
    let known = named.iter().find_map(|p| [BINARY, TEXT].into_iter().find(|k| k == p));
    if known.is_none() && !named.is_empty() {
        return Err(Status::bad_request(format!(
            "requested protocol(s) are not supported: {named:?}; supports [\"\" {BINARY:?} {TEXT:?}]"
        )));
    }
    Ok(known)
}

/// Sends an answer over the client's WebSocket, if it is one that succeeded.
pub fn send(asked: Asked, answer: Answer) -> Answer {
    let Answer::Http(answer) = answer else { return answer };
    if !answer.status().is_success() {
        return Answer::Http(answer);
    }
    let text = asked.protocol == Some(TEXT);
    let mut switch = Response::new(Body::empty());
    *switch.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = switch.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(SEC_WEBSOCKET_ACCEPT, asked.accept);
    if let Some(protocol) = asked.protocol {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    tokio::spawn(async move {
        let Ok(client) = asked.client.await else { return };
        let socket = WebSocketStream::from_raw_socket(TokioIo::new(client), Role::Server, None).await;
        if let Err(error) = pump(socket, answer.into_body(), text).await {
            tracing::debug!(%error, "a WebSocket ended");
        }
    });
    Answer::Http(switch)
}

async fn pump<S>(mut socket: WebSocketStream<S>, body: Body, text: bool) -> Result<(), Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let message = |bytes: Bytes| {
        if text { Message::text(STANDARD.encode(bytes)) } else { Message::binary(bytes) }
    };
    let late = || Error::Io(std::io::Error::from(std::io::ErrorKind::TimedOut));
    tokio::time::timeout(WRITE, socket.send(message(Bytes::new()))).await.map_err(|_| late())??;
    let mut body = BodyStream::new(body);
    loop {
        let frame = tokio::select! {
            frame = body.next() => frame,
            said = socket.next() => match said {
                // Pings are answered by the socket itself.
                Some(Ok(m)) if !m.is_close() => continue,
                _ => return Ok(()),
            },
        };
        let Some(Ok(frame)) = frame else { break };
        let Ok(bytes) = frame.into_data() else { continue };
        tokio::time::timeout(WRITE, socket.send(message(bytes))).await.map_err(|_| late())??;
    }
    tokio::time::timeout(WRITE, socket.close(None)).await.map_err(|_| late())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;
    use tokio_tungstenite::tungstenite::protocol::Role;

    #[test]
    fn the_first_known_protocol_is_taken() {
        for (named, want) in [
            (&[][..], Ok(None)),
            (&["binary.k8s.io"][..], Ok(Some(BINARY))),
            (&["x, base64.binary.k8s.io", "binary.k8s.io"][..], Ok(Some(TEXT))),
            (&["x"][..], Err(())),
        ] {
            let mut headers = HeaderMap::new();
            for n in named {
                headers.append(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(n));
            }
            assert_eq!(protocol(&headers).map_err(|_| ()), want, "{named:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_comes_in_messages_and_closes() {
        for (text, want) in [(false, &b"alive\n"[..]), (true, &b"YWxpdmUK"[..])] {
            let (near, far) = tokio::io::duplex(1024);
            let body = Body::Fallible(Box::pin(stream::iter([Ok(Bytes::from_static(b"alive\n"))])));
            let server = WebSocketStream::from_raw_socket(near, Role::Server, None).await;
            let sent = tokio::spawn(pump(server, body, text));
            let mut client = WebSocketStream::from_raw_socket(far, Role::Client, None).await;
            let mut got = vec![];
            while let Some(Ok(m)) = client.next().await {
                if !m.is_close() {
                    got.push(m.into_data());
                }
            }
            assert_eq!(got, [Bytes::new(), Bytes::from_static(want)]);
            sent.await.unwrap().unwrap();
        }
    }
}
