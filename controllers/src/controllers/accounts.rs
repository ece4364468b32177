//! What every namespace has: the ServiceAccount `default`, and the ConfigMap `kube-root-ca.crt` that pods verify the
//! server with.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use crate::runtime::informer::{Informer, key_of};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{self, Outcome, Reconcile};

/// Name of the ConfigMap with the server's CA.
pub const ROOT_CA: &str = "kube-root-ca.crt";
const DESCRIPTION: &str = "kubernetes.io/description";
const ABOUT: &str =
    "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the \
     internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes \
     clusters.";

fn open(namespaces: &Informer<Namespace>, name: &str) -> bool {
    namespaces.get(name).is_some_and(|n| {
        n.metadata.deletion_timestamp.is_none()
            && n.status.as_ref().and_then(|s| s.phase.as_deref()) != Some("Terminating")
    })
}

/// Takes "exists already" and "the namespace is ending" as done.
fn settled<T>(r: Result<T, kube::Error>) -> Outcome {
    match r {
        Ok(_) => Ok(None),
        Err(e) if worker::code(&e) == 409 || worker::namespace_terminating(&e) || worker::not_found(&e) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Makes the default ServiceAccount.
pub struct Accounts {
    client: Client,
    namespaces: Informer<Namespace>,
    accounts: Informer<ServiceAccount>,
    queue: Arc<Queue>,
}

impl Accounts {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, namespaces: Informer<Namespace>, accounts: Informer<ServiceAccount>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        namespaces.on_change(move |c| q.add(key_of(&**c.latest())));
        let q = Arc::clone(&queue);
        accounts.on_change(move |c| {
            if c.new.is_none() {
                q.add(c.latest().namespace().unwrap_or_default());
            }
        });
        Arc::new(Self { client, namespaces, accounts, queue })
    }

    async fn sync(&self, namespace: &str) -> Outcome {
        if !open(&self.namespaces, namespace) || self.accounts.get(&format!("{namespace}/default")).is_some() {
            return Ok(None);
        }
        let mut account = ServiceAccount::default();
        account.metadata.name = Some("default".into());
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        settled(api.create(&PostParams::default(), &account).await)
    }
}

impl Reconcile for Accounts {
    fn name(&self) -> &'static str {
        "service-account-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.namespaces.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}

/// Publishes the CA.
pub struct RootCa {
    client: Client,
    namespaces: Informer<Namespace>,
    maps: Informer<ConfigMap>,
    ca: String,
    queue: Arc<Queue>,
}

impl RootCa {
    /// Makes the controller and subscribes it to changes. `maps` need only hold those named [`ROOT_CA`].
    #[must_use]
    pub fn new(client: Client, namespaces: Informer<Namespace>, maps: Informer<ConfigMap>, ca: String) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        namespaces.on_change(move |c| q.add(key_of(&**c.latest())));
        let q = Arc::clone(&queue);
        maps.on_change(move |c| {
            if c.latest().name_any() == ROOT_CA {
                q.add(c.latest().namespace().unwrap_or_default());
            }
        });
        Arc::new(Self { client, namespaces, maps, ca, queue })
    }

    async fn sync(&self, namespace: &str) -> Outcome {
        if !open(&self.namespaces, namespace) {
            return Ok(None);
        }
        let present = self.maps.get(&format!("{namespace}/{ROOT_CA}"));
        let data = BTreeMap::from([("ca.crt".to_owned(), self.ca.clone())]);
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        match present {
            None => {
                let mut map = ConfigMap { data: Some(data), ..ConfigMap::default() };
                map.metadata.name = Some(ROOT_CA.into());
                map.metadata.annotations = Some(BTreeMap::from([(DESCRIPTION.to_owned(), ABOUT.to_owned())]));
                settled(api.create(&PostParams::default(), &map).await)
            }
            Some(map) if map.data.as_ref() == Some(&data) && map.annotations().contains_key(DESCRIPTION) => Ok(None),
            Some(map) => {
                let mut map = ConfigMap { data: Some(data), ..ConfigMap::clone(&map) };
                map.annotations_mut().insert(DESCRIPTION.to_owned(), ABOUT.to_owned());
                api.replace(ROOT_CA, &PostParams::default(), &map).await?;
                Ok(None)
            }
        }
    }
}

impl Reconcile for RootCa {
    fn name(&self) -> &'static str {
        "root-ca-cert-publisher"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.namespaces.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}
