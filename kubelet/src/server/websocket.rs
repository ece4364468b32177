//! The channel protocols over WebSocket: every message begins with a channel number.
//!
//! `v4.channel.k8s.io`, `v5.channel.k8s.io` (255 closes a channel) and the older `channel.k8s.io` carry bytes; their
//! `base64` forms carry text with the channel as a digit.

use std::io;

use base64::Engine as _;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::Mutex;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::upgrade::{self, Raw};

/// Channel number that closes the channel named by the next byte, from v5 on.
const CLOSE_CHANNEL: u8 = 255;
/// Bytes between the tunnel and the protocol inside it.
const TUNNEL_BUFFER: usize = 64 << 10;

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// Bytes for a channel.
    Data(u8, Bytes),
    /// The client will send no more on a channel.
    Closed(u8),
}

/// The sending half. A lock keeps messages whole; it is held across the write on purpose.
pub(crate) struct Sender {
    sink: Mutex<SplitSink<WebSocketStream<Raw>, Message>>,
    base64: bool,
}

/// The receiving half.
pub(crate) struct Receiver {
    stream: SplitStream<WebSocketStream<Raw>>,
    base64: bool,
    half_close: bool,
}

/// Speaks one of the channel protocols on a raw connection.
pub(crate) async fn channels(raw: Raw, protocol: &str) -> (Sender, Receiver) {
    let (sink, stream) = upgrade::websocket(raw).await.split();
    let base64 = protocol.contains("base64");
    let half_close = protocol.starts_with("v5");
    (Sender { sink: Mutex::new(sink), base64 }, Receiver { stream, base64, half_close })
}

impl Sender {
    /// Sends bytes on a channel.
    pub(crate) async fn send(&self, channel: u8, data: &[u8]) -> io::Result<()> {
        let message = if self.base64 {
            let digit = char::from(b'0' + channel);
            Message::text(format!("{digit}{}", upgrade::base64().encode(data)))
        } else {
            let mut bytes = Vec::with_capacity(1 + data.len());
            bytes.push(channel);
            bytes.extend_from_slice(data);
            Message::binary(bytes)
        };
        self.sink.lock().await.send(message).await.map_err(io::Error::other)
    }

    /// Says good-bye.
    pub(crate) async fn close(&self) {
        let frame = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let mut sink = self.sink.lock().await;
        // The client may be gone already.
        let _ = sink.send(Message::Close(Some(frame))).await;
        let _ = sink.close().await;
    }
}

impl Receiver {
    /// The next message; `None` when the client left.
    pub(crate) async fn next(&mut self) -> Option<Received> {
        loop {
            let bytes: Bytes = match self.stream.next().await? {
                Ok(Message::Binary(bytes)) => bytes,
                Ok(Message::Text(text)) => Bytes::from(text.to_string().into_bytes()),
                Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
                Ok(Message::Close(_)) | Err(_) => return None,
            };
            if let Some(received) = decode(&bytes, self.base64, self.half_close) {
                return Some(received);
            }
        }
    }
}

/// Takes a message apart. `None`: nothing for anybody.
fn decode(bytes: &Bytes, base64: bool, half_close: bool) -> Option<Received> {
    let channel = *bytes.first()?;
    if base64 {
        let data = upgrade::from_base64(std::str::from_utf8(&bytes[1..]).ok()?)?;
        return Some(Received::Data(channel.checked_sub(b'0')?, data.into()));
    }
    if half_close && channel == CLOSE_CHANNEL {
        return Some(Received::Closed(*bytes.get(1)?));
    }
    Some(Received::Data(channel, bytes.slice(1..)))
}

/// Bytes tunnelled through binary messages, as a plain connection.
pub(crate) async fn tunnel(raw: Raw) -> DuplexStream {
    let (near, far) = tokio::io::duplex(TUNNEL_BUFFER);
    let (mut sink, mut stream) = upgrade::websocket(raw).await.split();
    let (mut read, mut write) = tokio::io::split(far);
    tokio::spawn(async move {
        while let Some(Ok(message)) = stream.next().await {
            let written = match message {
                Message::Binary(bytes) => write.write_all(&bytes).await,
                Message::Close(_) => break,
                _ => Ok(()),
            };
            if written.is_err() {
                break;
            }
        }
        // The end of the tunnel is the end of the connection inside; an error means it ended already.
        let _ = write.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; 32 << 10];
        while let Ok(count @ 1..) = read.read(&mut buffer).await {
            if sink.send(Message::binary(buffer[..count].to_vec())).await.is_err() {
                return;
            }
        }
        let _ = sink.send(Message::Close(None)).await;
        let _ = sink.close().await;
    });
    near
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        let data = |channel, data: &'static str| Some(Received::Data(channel, data.into()));
        for (bytes, base64, half_close, wanted) in [
            (&b"\x00hi"[..], false, true, data(0, "hi")),
            (b"\x04{}", false, false, data(4, "{}")),
            (b"\xff\x00", false, true, Some(Received::Closed(0))),
            (b"\xff\x00", false, false, data(255, "\0")),
            (b"0aGk=", true, false, data(0, "hi")),
            (b"0aGk", true, false, data(0, "hi")),
            (b"0!!", true, false, None),
            (b"", false, true, None),
        ] {
            assert_eq!(decode(&Bytes::from_static(bytes), base64, half_close), wanted, "{bytes:?}");
        }
    }
}
