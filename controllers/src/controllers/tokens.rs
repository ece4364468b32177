//! Secrets of type `kubernetes.io/service-account-token`: each gets its account's token, and goes with the account.
//!
//! Pods do not need them (their tokens are projected and short-lived); they are for clients outside that ask for one by
//! making such a Secret. The token is bound to the Secret: deleting the Secret ends it.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::ByteString;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, Client, ResourceExt};

use crate::runtime::informer::{Informer, join, key_of, split};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{self, Outcome, Reconcile, found};

/// Type of the Secrets.
pub const TYPE: &str = "kubernetes.io/service-account-token";
const ACCOUNT: &str = "kubernetes.io/service-account.name";
const UID: &str = "kubernetes.io/service-account.uid";
/// Upstream's tokens of this kind do not end by time; the longest a request may ask for is as good: ten years.
const SECONDS: i64 = 315_360_000;

/// Fills and removes token Secrets.
pub struct Tokens {
    client: Client,
    accounts: Informer<ServiceAccount>,
    secrets: Informer<Secret>,
    ca: String,
    queue: Arc<Queue>,
}

impl Tokens {
    /// Makes the controller and subscribes it to changes. `secrets` need only hold those of [`TYPE`].
    #[must_use]
    pub fn new(client: Client, accounts: Informer<ServiceAccount>, secrets: Informer<Secret>, ca: String) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        secrets.on_change(move |c| q.add(key_of(&**c.latest())));
        let (q, all) = (Arc::clone(&queue), secrets.clone());
        accounts.on_change(move |c| {
            let account = c.latest();
            for s in all.in_namespace(&account.namespace().unwrap_or_default()) {
                if s.annotations().get(ACCOUNT) == account.metadata.name.as_ref() {
                    q.add(key_of(&*s));
                }
            }
        });
        Arc::new(Self { client, accounts, secrets, ca, queue })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(secret) = self.secrets.get(key).filter(|s| s.metadata.deletion_timestamp.is_none()) else {
            return Ok(None);
        };
        let (namespace, name) = split(key);
        let Some(account) = secret.annotations().get(ACCOUNT).filter(|a| !a.is_empty()) else { return Ok(None) };
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let owner = match self.accounts.get(&join(namespace, account)) {
            Some(a) => Some(a),
            // The copy may be behind; a Secret is not deleted on its word.
            None => found(self.accounts_in(namespace).get(account).await)?.map(Arc::new),
        };
        let uid = owner.as_ref().and_then(|a| a.metadata.uid.clone());
        let theirs = secret.annotations().get(UID).filter(|u| !u.is_empty());
        if owner.is_none() || theirs.is_some_and(|t| Some(t) != uid.as_ref()) {
            let exactly = Preconditions { uid: secret.metadata.uid.clone(), resource_version: None };
            found(api.delete(name, &DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() }).await)?;
            return Ok(None);
        }
        let data = secret.data.clone().unwrap_or_default();
        let mut next = Secret::clone(&secret);
        let token = match data.get("token").filter(|t| !t.0.is_empty()) {
            Some(t) => t.clone(),
            None => ByteString(self.token(namespace, account, &secret).await?.into_bytes()),
        };
        let filled = BTreeMap::from([
            ("ca.crt".to_owned(), ByteString(self.ca.clone().into_bytes())),
            ("namespace".to_owned(), ByteString(namespace.as_bytes().to_vec())),
            ("token".to_owned(), token),
        ]);
        next.data.get_or_insert_default().extend(filled);
        next.annotations_mut().insert(UID.into(), uid.unwrap_or_default());
        if next == *secret {
            return Ok(None);
        }
        match api.replace(name, &PostParams::default(), &next).await {
            Ok(s) => self.secrets.apply(s),
            Err(e) if worker::not_found(&e) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(None)
    }

    fn accounts_in(&self, namespace: &str) -> Api<ServiceAccount> {
        Api::namespaced(self.client.clone(), namespace)
    }

    async fn token(&self, namespace: &str, account: &str, secret: &Secret) -> Result<String, kube::Error> {
        let bound = BoundObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Secret".into()),
            name: secret.metadata.name.clone(),
            uid: secret.metadata.uid.clone(),
        };
        let wanted = TokenRequest {
            spec: Some(TokenRequestSpec {
                bound_object_ref: Some(bound),
                expiration_seconds: Some(SECONDS),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let answer = self.accounts_in(namespace).create_token_request(account, &PostParams::default(), &wanted).await?;
        Ok(answer.status.and_then(|s| s.token).unwrap_or_default())
    }
}

impl Reconcile for Tokens {
    fn name(&self) -> &'static str {
        "tokens-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.secrets.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}
