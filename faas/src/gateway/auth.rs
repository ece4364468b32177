//! Who asks, and whether they may: the cluster's own answers (TokenReview, SubjectAccessReview), remembered for a short time.
//!
//! A client certificate was verified by TLS already; a bearer token is shown to the API server. Then that is asked whether
//! the caller may `create` `functions/invoke` of the function. What was granted is believed for a minute, what was refused
//! for some seconds. Of tokens only digests are kept.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::invoke::InvokeError;
use crate::api::GROUP;

/// Answers that are remembered, of either kind.
const KEPT: usize = 4096;
/// How long a yes holds.
const YES: Duration = Duration::from_secs(60);
/// How long a no holds.
const NO: Duration = Duration::from_secs(5);
/// Time for the API server to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Somebody the cluster knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// Name.
    pub name: String,
    /// Unique id, empty when unknown.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Further facts.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The identity of a verified client certificate: common name and organizations.
    #[must_use]
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let organizations = subject.iter_organization().filter_map(|o| o.as_str().ok().map(str::to_owned));
        let groups = organizations.chain(["system:authenticated".to_owned()]).collect();
        Some(Self { name, groups, ..Self::default() })
    }
}

/// What somebody may do with objects of group `skiff.dev`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Right {
    /// Verb.
    pub verb: &'static str,
    /// Plural of the kind.
    pub resource: &'static str,
    /// Part of the object.
    pub subresource: Option<&'static str>,
}

/// Calling a function.
const INVOKE: Right = Right { verb: "create", resource: "functions", subresource: Some("invoke") };
/// Reading what its instances print.
const LOG: Right = Right { verb: "get", resource: "functions", subresource: Some("log") };

/// Answers with their end. When it is full, what has ended goes; when that does not help, all of it.
struct Memory<K, V> {
    known: HashMap<K, (V, Instant)>,
}

impl<K: Eq + Hash, V: Clone> Memory<K, V> {
    fn get(&self, key: &K) -> Option<V> {
        self.known.get(key).filter(|(_, until)| *until > Instant::now()).map(|(v, _)| v.clone())
    }

    fn put(&mut self, key: K, value: V, holds: Duration) {
        let now = Instant::now();
        if self.known.len() >= KEPT {
            self.known.retain(|_, (_, until)| *until > now);
        }
        if self.known.len() >= KEPT {
            self.known.clear();
        }
        self.known.insert(key, (value, now + holds));
    }
}

impl<K, V> Default for Memory<K, V> {
    fn default() -> Self {
        Self { known: HashMap::new() }
    }
}

/// What somebody wants to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Act {
    /// Something with the object NAMESPACE/NAME.
    Object(Right, String),
    /// To read a path of this server.
    Path(&'static str),
}

impl Act {
    /// What it is done to, in words.
    fn object(&self) -> &str {
        match self {
            Self::Object(_, key) => key,
            Self::Path(path) => path,
        }
    }

    /// As the question to the cluster whether a user may.
    fn question(&self, user: &User) -> SubjectAccessReviewSpec {
        let mut spec = SubjectAccessReviewSpec {
            user: Some(user.name.clone()),
            uid: Some(user.uid.clone()).filter(|u| !u.is_empty()),
            groups: Some(user.groups.clone()),
            extra: Some(user.extra.clone()).filter(|e| !e.is_empty()),
            ..SubjectAccessReviewSpec::default()
        };
        match self {
            Self::Object(right, key) => {
                let (namespace, name) = key.split_once('/').unwrap_or(("", key));
                spec.resource_attributes = Some(ResourceAttributes {
                    group: Some(GROUP.into()),
                    version: Some("v1".into()),
                    resource: Some(right.resource.into()),
                    subresource: right.subresource.map(Into::into),
                    verb: Some(right.verb.into()),
                    namespace: Some(namespace.to_owned()),
                    name: Some(name.to_owned()),
                    ..ResourceAttributes::default()
                });
            }
            Self::Path(path) => {
                let (path, verb) = (Some((*path).to_owned()), Some("get".to_owned()));
                spec.non_resource_attributes = Some(NonResourceAttributes { path, verb });
            }
        }
        spec
    }
}

/// The cluster's answers.
pub struct Auth {
    client: Client,
    tokens: Mutex<Memory<[u8; 32], Option<User>>>,
    rights: Mutex<Memory<(User, Act), bool>>,
}

fn unavailable(error: &impl std::fmt::Display) -> InvokeError {
    InvokeError::Unavailable(format!("the cluster does not say who may: {error}"))
}

/// The bearer token of a request.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

impl Auth {
    /// Asks with this client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, tokens: Mutex::default(), rights: Mutex::default() }
    }

    /// Who sends a request with these headers. A certificate is believed before a token.
    ///
    /// # Errors
    /// When nobody says who it is, or the token is not valid.
    pub async fn user(&self, headers: &HeaderMap, certificate: Option<&User>) -> Result<User, InvokeError> {
        if let Some(user) = certificate {
            return Ok(user.clone());
        }
        let missing = "send a client certificate or a bearer token, or make the function public";
        let token = bearer(headers).ok_or_else(|| InvokeError::Unauthorized(missing.into()))?;
        let key: [u8; 32] = Sha256::digest(token.as_bytes()).into();
        let known = self.tokens.lock().get(&key);
        let user = match known {
            Some(user) => user,
            None => {
                let user = self.review(token).await?;
                self.tokens.lock().put(key, user.clone(), if user.is_some() { YES } else { NO });
                user
            }
        };
        user.ok_or_else(|| InvokeError::Unauthorized("the token is not valid".into()))
    }

    async fn review(&self, token: &str) -> Result<Option<User>, InvokeError> {
        let spec = TokenReviewSpec { token: token.to_owned(), ..TokenReviewSpec::default() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api = Api::<TokenReview>::all(self.client.clone());
        let parameters = PostParams::default();
        let asked = tokio::time::timeout(PATIENCE, api.create(&parameters, &review));
        let status = asked.await.map_err(|e| unavailable(&e))?.map_err(|e| unavailable(&e))?.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Ok(None);
        }
        let user = status.user.unwrap_or_default();
        Ok(Some(User {
            name: user.username.unwrap_or_default(),
            uid: user.uid.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
            extra: user.extra.unwrap_or_default(),
        }))
    }

    /// Whether a user may call a function.
    ///
    /// # Errors
    /// When not, or when nobody says.
    pub async fn permitted(&self, user: User, namespace: &str, name: &str) -> Result<(), InvokeError> {
        self.require(user, INVOKE, namespace, name).await
    }

    /// Whether a user may read what a function's instances print: `get` of `functions/log`.
    ///
    /// # Errors
    /// When not, or when nobody says.
    pub async fn may_read_logs(&self, user: User, namespace: &str, name: &str) -> Result<(), InvokeError> {
        self.require(user, LOG, namespace, name).await
    }

    /// Whether a user may read the counters: `get` of the path `/metrics`, as of every component.
    ///
    /// # Errors
    /// When not, or when nobody says.
    pub async fn may_read_metrics(&self, user: User) -> Result<(), InvokeError> {
        self.demand(user, Act::Path("/metrics")).await
    }

    async fn require(&self, user: User, right: Right, namespace: &str, name: &str) -> Result<(), InvokeError> {
        self.demand(user, Act::Object(right, format!("{namespace}/{name}"))).await
    }

    async fn demand(&self, user: User, act: Act) -> Result<(), InvokeError> {
        let refused = InvokeError::Forbidden { user: user.name.clone(), name: act.object().to_owned() };
        self.permits(user, act).await?.then_some(()).ok_or(refused)
    }

    /// Whether a user has a right on an object of group `skiff.dev`; an empty name means all of the namespace.
    ///
    /// # Errors
    /// When nobody says.
    pub async fn may(&self, user: User, right: Right, namespace: &str, name: &str) -> Result<bool, InvokeError> {
        self.permits(user, Act::Object(right, format!("{namespace}/{name}"))).await
    }

    async fn permits(&self, user: User, act: Act) -> Result<bool, InvokeError> {
        let key = (user, act);
        let known = self.rights.lock().get(&key);
        if let Some(allowed) = known {
            return Ok(allowed);
        }
        let allowed = self.ask(&key.0, &key.1).await?;
        self.rights.lock().put(key, allowed, if allowed { YES } else { NO });
        Ok(allowed)
    }

    async fn ask(&self, user: &User, act: &Act) -> Result<bool, InvokeError> {
        let review = SubjectAccessReview { spec: act.question(user), ..SubjectAccessReview::default() };
        let api = Api::<SubjectAccessReview>::all(self.client.clone());
        let parameters = PostParams::default();
        let asked = tokio::time::timeout(PATIENCE, api.create(&parameters, &review));
        let answer = asked.await.map_err(|e| unavailable(&e))?.map_err(|e| unavailable(&e))?;
        Ok(answer.status.is_some_and(|s| s.allowed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearers_are_found() {
        let mut headers = HeaderMap::new();
        for (value, want) in
            [("Bearer abc", Some("abc")), ("bearer  abc ", Some("abc")), ("Basic abc", None), ("Bearer", None)]
        {
            headers.insert(AUTHORIZATION, value.parse().unwrap());
            assert_eq!(bearer(&headers), want, "{value}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut m = Memory::default();
        for i in 0..KEPT * 2 + 1 {
            m.put(i, (), if i % 2 == 0 { YES } else { Duration::ZERO });
            assert!(m.known.len() <= KEPT);
        }
        assert_eq!(m.get(&(KEPT * 2)), Some(()));
        m.put(1, (), Duration::ZERO);
        assert_eq!(m.get(&1), None, "an answer ends");
    }
}
