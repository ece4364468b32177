//! Functions of a gateway in another process.

use async_trait::async_trait;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Request, Uri};
use http_body_util::{BodyExt as _, Limited};
use kube::Client;
use kube::client::Body;
use skiff_faas::gateway::invoke::Shared;
use skiff_plugin::{Door, Session};
use tokio::sync::Mutex;

use super::functions::{FunctionAnswer, FunctionCall, FunctionError, Functions, Gateway};

/// The gateway.
const GATEWAY: Door = Door {
    what: "the gateway of functions",
    option: "--gateway",
    namespace: "kube-system",
    service: "skiff-gateway",
    port: 8443,
};
/// Bytes of an answer.
const ANSWER_MAX: usize = 64 << 20;
/// Asks for a revision by its tag.
const TAG: &str = "skiff-tag";

/// The functions that the gateway of the cluster has, over HTTPS, as whoever the session is: that one needs the right to
/// `create` `functions/invoke`.
pub struct Elsewhere {
    session: Session,
    gateway: Option<Uri>,
    /// The way there, while it works. Held while it is looked for: everybody who needs one waits for the same.
    open: Mutex<Option<Client>>,
}

impl Elsewhere {
    /// The gateway that is there, or else the one that the cluster's Service leads to.
    #[must_use]
    pub fn new(mut session: Session, gateway: Option<Uri>) -> Self {
        // Functions may take long; each call has a deadline of its own.
        session.config.read_timeout = None;
        Self { session, gateway, open: Mutex::default() }
    }

    async fn client(&self) -> Result<Client, FunctionError> {
        let mut open = self.open.lock().await;
        if let Some(client) = &*open {
            return Ok(client.clone());
        }
        let found = self.session.door(&GATEWAY, self.gateway.as_ref()).await;
        let client = found.map_err(|e| FunctionError::Unavailable(format!("{e:#}")))?;
        *open = Some(client.clone());
        Ok(client)
    }
}

#[async_trait]
impl Functions for Elsewhere {
    async fn call(&self, call: FunctionCall) -> Result<FunctionAnswer, FunctionError> {
        let client = self.client().await?;
        let mut request = Request::post(format!("/function/{}/{}", call.namespace, call.name))
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in call.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(&name), HeaderValue::try_from(&value)) {
                if name == "idempotency-key" {
                    // What answers and logs call it.
                    request = request.header("x-request-id", value.clone());
                }
                request = request.header(name, value);
            }
        }
        if let Some(tag) = call.qualifier {
            request = request.header(TAG, tag);
        }
        let request = request.body(Body::from(call.payload.into_bytes()));
        let request = request.map_err(|e| FunctionError::NotFound(format!("no function has this name: {e}")))?;
        let answer = match client.send(request).await {
            Ok(answer) => answer,
            Err(e) => {
                // The gateway may be at another place by now.
                *self.open.lock().await = None;
                return Err(FunctionError::Unavailable(format!("the gateway of functions does not answer: {e}")));
            }
        };
        let (parts, body) = answer.into_parts();
        let body: Bytes = match Limited::new(body, ANSWER_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(e) => return Err(FunctionError::Unavailable(format!("the answer broke off: {e}"))),
        };
        Ok(FunctionAnswer { status: parts.status.as_u16(), body: body.to_vec() })
    }
}

/// The functions of the gateway in this process while there is one, otherwise of the one elsewhere: of several servers one has
/// the gateway.
pub struct Nearest {
    /// That of this process.
    pub here: Shared,
    /// The other.
    pub elsewhere: Elsewhere,
}

#[async_trait]
impl Functions for Nearest {
    async fn call(&self, call: FunctionCall) -> Result<FunctionAnswer, FunctionError> {
        match self.here.get() {
            Some(_) => Gateway(self.here.clone()).call(call).await,
            None => self.elsewhere.call(call).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// Reads one request and answers it; what was asked.
    async fn answered(listener: &TcpListener, status: &str, body: &str) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut asked = vec![];
        while !asked.ends_with(b"{\"x\":1}") {
            asked.push(stream.read_u8().await.unwrap());
        }
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        String::from_utf8(asked).unwrap().to_lowercase()
    }

    #[tokio::test]
    async fn functions_are_asked_over_http() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: Uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let mut config = kube::Config::new("https://127.0.0.1:1".parse().unwrap());
        config.auth_info.token = Some("secret-token".to_owned().into());
        let client = Client::try_from(config.clone()).unwrap();
        let session = Session { client, namespace: "kube-system".to_owned(), config };
        let functions = Elsewhere::new(session, Some(url));
        let call = FunctionCall {
            namespace: "ns".to_owned(),
            name: "f".to_owned(),
            qualifier: Some("prod".to_owned()),
            payload: "{\"x\":1}".to_owned(),
            headers: vec![("idempotency-key".to_owned(), "uid/1".to_owned())],
            deadline: None,
        };
        for (status, number) in [("200 OK", 200), ("500 Internal Server Error", 500), ("503 Service Unavailable", 503)]
        {
            let (asked, said) = tokio::join!(answered(&listener, status, "{\"y\":2}"), functions.call(call.clone()));
            assert!(asked.starts_with("post /function/ns/f http/1.1\r\n"), "{asked}");
            for header in ["idempotency-key: uid/1", "x-request-id: uid/1", "skiff-tag: prod"] {
                assert!(asked.contains(header), "{asked}");
            }
            assert!(!asked.contains("secret-token"), "nothing secret goes over plain http: {asked}");
            let said = said.unwrap();
            assert_eq!((said.status, said.body), (number, b"{\"y\":2}".to_vec()));
        }
        drop(listener);
        assert!(matches!(functions.call(call).await, Err(FunctionError::Unavailable(_))));
    }
}
