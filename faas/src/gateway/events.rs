//! `POST /events/NAMESPACE`: CloudEvents for the functions whose triggers take them. For who may `create` `functions/invoke` in
//! the namespace. The answer is 202 once every call that follows is stored.

use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde_json::json;

use super::call::whole;
use super::door::Client;
use super::invoke::InvokeError;
use super::link::Body;
use super::serve::{Gateway, gather};
use crate::trigger::Event;

impl Gateway {
    pub(super) async fn events(
        &self,
        request: Request<Incoming>,
        client: &Client,
        namespace: &str,
    ) -> Result<Response<Body>, InvokeError> {
        if *request.method() != Method::POST {
            return Err(InvokeError::Method { method: request.method().clone(), allow: "POST" });
        }
        let user = self.auth.user(request.headers(), client.certificate.as_deref()).await?;
        self.auth.permitted(user, namespace, "").await?;
        let broker = self.broker.get().ok_or_else(|| InvokeError::Unavailable("nobody takes events here".into()))?;
        // Until all functions are known nobody can say which of them take it.
        self.hub.listed().await?;
        let (parts, body) = request.into_parts();
        let events = Event::read(&parts.headers, gather(body).await?).map_err(InvokeError::BadRequest)?;
        let mut calls = 0;
        for event in &events {
            calls += broker.publish(namespace, event).await?;
        }
        let body = json!({"events": events.len(), "calls": calls});
        let mut response = Response::new(whole(format!("{body}\n")));
        *response.status_mut() = StatusCode::ACCEPTED;
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(response)
    }
}
