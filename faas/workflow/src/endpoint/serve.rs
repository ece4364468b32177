//! The door: requests of the Step Functions API, and starts of workflows by plain HTTP.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use kube::Client;
use serde_json::Value;
use skiff_faas::gateway::auth::{Auth, User};
use skiff_faas::gateway::call::whole;
use skiff_faas::gateway::door::{self, Behind};
use skiff_faas::gateway::invoke::InvokeError;
use skiff_faas::gateway::link::Body;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::error::{Answer, Fault};
use super::keys::{Caller, Keys};
use super::sigv4::Claim;
use super::{check, ops};
use crate::runs::Runs;

/// Clients' connections at a time: each worker of an activity holds one.
const CONNECTIONS: usize = 4096;
/// Bytes of a request: a definition of 1 MiB with every letter escaped, and room.
pub(crate) const BODY_MAX: usize = 4 << 20;
/// Time for a body to come.
const BODY_TIME: Duration = Duration::from_secs(30);
/// What names the operation, and what stands before its name.
const TARGET: (&str, &str) = ("x-amz-target", "AWSStepFunctions.");
/// The service in signatures.
const SERVICE: &str = "states";
const JSON: &str = "application/x-amz-json-1.0";

/// What is behind the door.
pub struct Endpoint {
    pub(crate) runs: Arc<dyn Runs>,
    pub(crate) client: Client,
    pub(crate) auth: Auth,
    keys: Keys,
    connections: Arc<Semaphore>,
}

impl Endpoint {
    /// The API over these runs. `client` reads keys, keeps workflows, and is asked who may what.
    #[must_use]
    pub fn new(client: Client, runs: Arc<dyn Runs>) -> Self {
        Self {
            runs,
            auth: Auth::new(client.clone()),
            keys: Keys::new(client.clone()),
            client,
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
        }
    }

    /// Serves HTTPS, or HTTP where there is no acceptor, until `stop`.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, tls: Option<TlsAcceptor>, stop: CancellationToken) {
        let connections = Arc::clone(&self.connections);
        door::serve(self, connections, listener, tls, stop).await;
    }

    /// Answers a request of the Step Functions API.
    async fn api(&self, request: Request<Incoming>) -> Answer {
        let (parts, body) = request.into_parts();
        let target = parts.headers.get(TARGET.0).and_then(|t| t.to_str().ok());
        let name = target.and_then(|t| t.strip_prefix(TARGET.1));
        let operation = name.and_then(check::operation);
        // Nobody's body is read before they show a key that there is.
        let claim = Claim::of(&parts, SERVICE, Timestamp::now())?;
        self.keys.known(&claim).await?;
        let body = gather(body).await?;
        let caller = self.keys.caller(&claim, &parts, &body).await?;
        // Who may not even sign learns nothing of what there is.
        let unknown = || Fault::new("UnknownOperationException", "The requested operation is not supported.");
        let operation = operation.ok_or_else(unknown)?;
        let empty = || Fault::new("SerializationException", "The request is no JSON object.");
        let request: Value = serde_json::from_slice(&body).map_err(|_| empty())?;
        check::check(operation, &request)?;
        let (right, ours) = ops::right(operation.name, &request);
        self.permit(&caller, right, &ours, operation.name).await?;
        let call = ops::Call { endpoint: self, namespace: caller.namespace, region: claim.region, request };
        ops::run(operation.name, call).await.map_err(|fault| operation.known(fault))
    }

    /// Whether the caller's account may.
    async fn permit(
        &self,
        caller: &Caller,
        right: skiff_faas::gateway::auth::Right,
        name: &str,
        operation: &str,
    ) -> Result<(), Fault> {
        let Some(account) = &caller.account else { return Ok(()) };
        let namespace = &caller.namespace;
        let user = User {
            name: format!("system:serviceaccount:{namespace}:{account}"),
            groups: vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ],
            ..User::default()
        };
        let who = user.name.clone();
        let may = self.auth.may(user, right, namespace, name).await.map_err(|e| Fault::internal(&e))?;
        let denied = || {
            Fault::new(
                "AccessDeniedException",
                format!(
                    "User: {who} is not authorized to perform: states:{operation}: it needs the right to {} {} in {namespace}",
                    right.verb, right.resource
                ),
            )
        };
        may.then_some(()).ok_or_else(denied)
    }
}

/// The bytes of a request.
pub(crate) async fn gather(body: Incoming) -> Result<Bytes, Fault> {
    let broken = |m: String| Fault::new("MalformedHttpRequestException", m);
    match tokio::time::timeout(BODY_TIME, Limited::new(body, BODY_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(e)) if e.is::<LengthLimitError>() => {
            Err(Fault::new("RequestEntityTooLargeException", format!("Request has more than {BODY_MAX} bytes.")))
        }
        Ok(Err(e)) => Err(broken(e.to_string())),
        Err(_) => Err(Fault::new("RequestTimeoutException", "The body did not come in time.")),
    }
}

impl Behind for Endpoint {
    async fn answer(&self, request: Request<Incoming>, client: door::Client) -> Response<Body> {
        let id = uuid::Uuid::new_v4().to_string();
        let mut response = match (request.method(), request.uri().path()) {
            (_, path) if path.starts_with(crate::trigger::http::PATH) => {
                crate::trigger::http::answer(self, request, client.certificate.as_deref()).await
            }
            (&Method::GET, "/healthz") => Response::new(whole("ok\n")),
            (&Method::POST, _) => {
                let (status, mut body) = match self.api(request).await {
                    Ok(answer) => (StatusCode::OK, answer),
                    Err(fault) => {
                        tracing::debug!(%id, %fault, "a request to the endpoint of workflows is refused");
                        (fault.status(), fault.body())
                    }
                };
                if body.is_null() {
                    body = Value::Object(serde_json::Map::new());
                }
                let mut response = Response::new(whole(body.to_string()));
                *response.status_mut() = status;
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(JSON));
                response
            }
            _ => {
                let mut response = Response::new(whole("this is the Step Functions API: POST /\n"));
                *response.status_mut() = StatusCode::NOT_FOUND;
                response
            }
        };
        if let Ok(id) = HeaderValue::try_from(id) {
            response.headers_mut().insert("x-amzn-requestid", id);
        }
        response
    }
}

impl From<InvokeError> for Fault {
    fn from(error: InvokeError) -> Self {
        Self::internal(&error)
    }
}
