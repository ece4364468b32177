//! Leaving HTTP: which protocol the client asks for, and the connection's raw ends.

use base64::Engine as _;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use super::{Body, full, text};

/// Largest message taken from a client.
const MAX_MESSAGE: usize = 4 << 20;

/// The two ways to carry several streams over one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// RFC 6455.
    WebSocket,
    /// SPDY/3.1.
    Spdy,
}

/// A client's wish to leave HTTP.
pub(crate) struct Upgrade {
    pub(crate) wire: Wire,
    /// Sub-protocols it offers, best first.
    pub(crate) offers: Vec<String>,
    key: Option<HeaderValue>,
    on: OnUpgrade,
}

impl Upgrade {
    /// Reads the request's head. The error is the answer to give.
    pub(crate) fn of(request: &mut Request<Incoming>) -> Result<Self, Box<Response<Body>>> {
        let headers = request.headers();
        let wanted = list(headers, "upgrade");
        let wire = match wanted.first().map(|w| w.to_lowercase()).as_deref() {
            Some("websocket") => Wire::WebSocket,
            Some("spdy/3.1") => Wire::Spdy,
            _ => {
                return Err(Box::new(text(
                    StatusCode::BAD_REQUEST,
                    "you must specify at least one of SPDY/3.1 or websocket in the Upgrade header\n",
                )));
            }
        };
        let offers = match wire {
            Wire::WebSocket => list(headers, "sec-websocket-protocol"),
            Wire::Spdy => list(headers, "x-stream-protocol-version"),
        };
        let key = headers.get("sec-websocket-key").cloned();
        if wire == Wire::WebSocket && key.is_none() {
            return Err(Box::new(text(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing\n")));
        }
        Ok(Self { wire, offers, key, on: hyper::upgrade::on(request) })
    }

    /// The first protocol of the client that is among ours.
    pub(crate) fn choose(&self, ours: &[&str]) -> Option<String> {
        self.offers.iter().find(|o| ours.contains(&o.as_str())).cloned()
    }

    /// The answer that ends HTTP, and the wait for the raw connection.
    pub(crate) fn accept(self, protocol: &str) -> (Response<Body>, OnUpgrade) {
        let mut response = Response::new(full(""));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        let name = match self.wire {
            Wire::WebSocket => "sec-websocket-protocol",
            Wire::Spdy => "x-stream-protocol-version",
        };
        match self.wire {
            Wire::WebSocket => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                let accept = derive_accept_key(self.key.as_ref().map_or(b"", HeaderValue::as_bytes));
                if let Ok(accept) = HeaderValue::from_str(&accept) {
                    headers.insert("sec-websocket-accept", accept);
                }
            }
            Wire::Spdy => {
                headers.insert(header::UPGRADE, HeaderValue::from_static("SPDY/3.1"));
            }
        }
        if let Ok(value) = HeaderValue::from_str(protocol)
            && !protocol.is_empty()
        {
            headers.insert(name, value);
        }
        (response, self.on)
    }
}

/// A connection that left HTTP.
pub(crate) type Raw = TokioIo<Upgraded>;

/// Speaks WebSocket on a raw connection, as its server.
pub(crate) async fn websocket(raw: Raw) -> WebSocketStream<Raw> {
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(raw, Role::Server, Some(config)).await
}

/// The comma-separated words of a header that may come several times.
fn list(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|v| v.split(',')).map(|w| w.trim().to_string()).filter(|w| !w.is_empty()).collect()
}

/// Base64 as the text forms of the channel protocols use it.
pub(crate) fn base64() -> &'static impl base64::Engine {
    &base64::engine::general_purpose::STANDARD
}

/// Decodes base64 with or without padding.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    base64::engine::general_purpose::STANDARD_NO_PAD.decode(text).ok()
}
