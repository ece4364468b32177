//! Clients that act as ServiceAccounts, for controllers that run as a process of their own.
//!
//! Each controller has an account in `kube-system` with just the rights it needs. The manager's own identity may only make
//! such accounts and ask for their tokens (TokenRequest); a client asks when it sends its first request, and anew before
//! the token ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use http::HeaderValue;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};

/// Life of a token.
const LIFE: Duration = Duration::from_secs(3600);
/// A token is asked for anew this long before its end.
const AHEAD: Duration = Duration::from_secs(600);

/// Makes clients for `system:serviceaccount:NAMESPACE:NAME` users; any other name gets the manager's own.
#[derive(Clone)]
pub(crate) struct Accounts {
    config: kube::Config,
    manager: kube::Client,
}

struct Token {
    manager: kube::Client,
    namespace: String,
    name: String,
    /// Held across the request for a new token: everybody who needs one waits for the same.
    current: tokio::sync::Mutex<Option<(HeaderValue, Instant)>>,
}

impl Accounts {
    pub(crate) fn new(config: kube::Config) -> anyhow::Result<Self> {
        let manager = kube::Client::try_from(config.clone())?;
        Ok(Self { config, manager })
    }

    /// A client for this user.
    pub(crate) fn client(&self, user: &str) -> kube::Client {
        let account = user.strip_prefix("system:serviceaccount:").and_then(|r| r.split_once(':'));
        let Some((namespace, name)) = account else { return self.manager.clone() };
        let token = Arc::new(Token {
            manager: self.manager.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            current: tokio::sync::Mutex::default(),
        });
        let mut config = self.config.clone();
        // The account's token alone: a certificate beside it would win.
        config.auth_info = kube::config::AuthInfo::default();
        match kube::Client::try_from(config) {
            Ok(plain) => {
                let signed = tower::service_fn(move |mut request: http::Request<kube::client::Body>| {
                    let (plain, token) = (plain.clone(), Arc::clone(&token));
                    async move {
                        let header = token.header().await.map_err(|e| kube::Error::Service(format!("{e:#}").into()))?;
                        request.headers_mut().insert(http::header::AUTHORIZATION, header);
                        plain.send(request).await
                    }
                });
                kube::Client::new(signed, namespace)
            }
            // The same settings made the manager's client, so this does not happen; without rights is the safe answer.
            Err(error) => {
                tracing::error!(%error, user, "cannot make a client; the manager's own is used");
                self.manager.clone()
            }
        }
    }
}

impl Token {
    async fn header(&self) -> anyhow::Result<HeaderValue> {
        let mut current = self.current.lock().await;
        if let Some((header, until)) = &*current
            && *until > Instant::now()
        {
            return Ok(header.clone());
        }
        let asked = Instant::now();
        let mut header = HeaderValue::from_str(&format!("Bearer {}", self.request().await?))?;
        header.set_sensitive(true);
        *current = Some((header.clone(), asked + LIFE - AHEAD));
        Ok(header)
    }

    async fn request(&self) -> anyhow::Result<String> {
        let accounts = Api::<ServiceAccount>::namespaced(self.manager.clone(), &self.namespace);
        let seconds = i64::try_from(LIFE.as_secs()).ok();
        let wanted = TokenRequest {
            spec: Some(TokenRequestSpec { expiration_seconds: seconds, ..TokenRequestSpec::default() }),
            ..TokenRequest::default()
        };
        let params = PostParams::default();
        let ask = || accounts.create_token_request(&self.name, &params, &wanted);
        let answer = match ask().await {
            Err(kube::Error::Api(s)) if s.code == 404 => {
                let mut account = ServiceAccount::default();
                account.metadata.name = Some(self.name.clone());
                match accounts.create(&params, &account).await {
                    Ok(_) => {}
                    // Another manager was faster.
                    Err(kube::Error::Api(s)) if s.code == 409 => {}
                    Err(e) => return Err(e).context("cannot make the account"),
                }
                ask().await
            }
            other => other,
        };
        let answer = answer.with_context(|| format!("no token for {}/{}", self.namespace, self.name))?;
        answer.status.and_then(|s| s.token).context("a token request without an answer")
    }
}
