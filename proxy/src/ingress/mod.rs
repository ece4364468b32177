//! The ingress gateway of one node: HTTP and HTTPS from outside to Services, by host and path.
//!
//! Three watches (Ingresses, their classes, Secrets with certificates) make one [`table::Table`]; the endpoints of
//! backends come from the index that Services use, so a change of an endpoint costs the gateway nothing. Requests go to
//! endpoints directly, in turn.
//!
//! Contract: class `skiff` (`spec.controller: skiff.dev/ingress`); exact and wildcard hosts, `Exact`, `Prefix` and
//! `ImplementationSpecific` (as `Prefix`) paths, `spec.defaultBackend`, TLS by server name, upgrades such as WebSocket;
//! the annotation `skiff.dev/rewrite-target`. Hosts of Ingresses that have an address are answered by the name server.
//!
//! Limits: backends speak HTTP/1.1 without TLS and are Services, no other resources. A port that is taken is tried again;
//! nothing else of the proxy depends on it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use parking_lot::RwLock;
use rustls::sign::CertifiedKey;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::index::Shared;

pub mod pool;
pub mod serve;
pub mod table;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
pub mod tls;

use table::Table;

/// First and longest wait between two tries to listen.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Where the gateway listens. Port 0: not at all.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address and port for HTTP.
    pub http: SocketAddr,
    /// Address and port for HTTPS.
    pub https: SocketAddr,
}

impl Default for Config {
    fn default() -> Self {
        Self { http: ([0, 0, 0, 0], 80).into(), https: ([0, 0, 0, 0], 443).into() }
    }
}

/// Namespace and name.
type Key = (Box<str>, Box<str>);

/// What is known of the cluster's Ingresses.
#[derive(Default)]
pub struct State {
    known: RwLock<Known>,
    table: RwLock<Arc<Table>>,
}

#[derive(Default)]
struct Known {
    ingresses: BTreeMap<Key, Ingress>,
    classes: BTreeMap<Key, IngressClass>,
    certificates: HashMap<Key, Arc<CertifiedKey>>,
}

impl State {
    /// The rules as they are now.
    #[must_use]
    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read())
    }

    fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let table = self.table();
        let key = table.certificate(name)?;
        self.known.read().certificates.get(key).cloned()
    }

    /// Addresses of a host of an Ingress, for the name server. The name is lower-case, without a dot at its end.
    #[must_use]
    pub fn addresses(&self, name: &str) -> Vec<IpAddr> {
        self.table().addresses(name).to_vec()
    }

    fn remake(&self) {
        let known = self.known.read();
        let ours = known.ingresses.values().filter(|i| table::ours(i, known.classes.values()));
        let made = Table::new(ours);
        drop(known);
        let mut present = self.table.write();
        if **present != made {
            *present = Arc::new(made);
        }
    }

    fn put_secret(&self, key: Key, secret: &Secret) {
        match tls::certified(secret) {
            Ok(c) => drop(self.known.write().certificates.insert(key, Arc::new(c))),
            Err(error) => {
                tracing::warn!(secret = %format!("{}/{}", key.0, key.1), error = format!("{error:#}"), "no usable certificate");
                self.known.write().certificates.remove(&key);
            }
        }
    }
}

fn key(meta: &kube::api::ObjectMeta) -> Key {
    (meta.namespace.as_deref().unwrap_or_default().into(), meta.name.as_deref().unwrap_or_default().into())
}

/// Follows one kind until `stop`: `put` for what is there, `keep` with all that is left after a new list.
async fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    stop: &CancellationToken,
    put: impl Fn(Key, Option<K>),
    keep: impl Fn(&HashSet<Key>),
) where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let mut listed = HashSet::new();
    let mut events = pin!(watcher::watcher(api, config).default_backoff());
    while let Some(Some(event)) = stop.run_until_cancelled(events.next()).await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => {
                let key = key(object.meta());
                listed.insert(key.clone());
                put(key, Some(object));
            }
            Ok(Event::InitDone) => keep(&std::mem::take(&mut listed)),
            Ok(Event::Apply(object)) => put(key(object.meta()), Some(object)),
            Ok(Event::Delete(object)) => put(key(object.meta()), None),
            Err(error) => {
                tracing::warn!(%error, kind = %K::kind(&()), "a watch of the ingress gateway broke; it starts again")
            }
        }
    }
}

/// Runs the gateway until `stop`.
pub async fn run(client: kube::Client, config: Config, state: Arc<State>, shared: Shared, stop: CancellationToken) {
    let s = &state;
    let ingresses = follow(
        Api::<Ingress>::all(client.clone()),
        watcher::Config::default(),
        &stop,
        |key, object| {
            match object {
                Some(o) => drop(s.known.write().ingresses.insert(key, slim(o))),
                None => drop(s.known.write().ingresses.remove(&key)),
            }
            s.remake();
        },
        |left| {
            s.known.write().ingresses.retain(|k, _| left.contains(k));
            s.remake();
        },
    );
    let classes = follow(
        Api::<IngressClass>::all(client.clone()),
        watcher::Config::default(),
        &stop,
        |key, object| {
            match object {
                Some(o) => drop(s.known.write().classes.insert(key, o)),
                None => drop(s.known.write().classes.remove(&key)),
            }
            s.remake();
        },
        |left| {
            s.known.write().classes.retain(|k, _| left.contains(k));
            s.remake();
        },
    );
    let secrets = follow(
        Api::<Secret>::all(client),
        watcher::Config::default().fields("type=kubernetes.io/tls"),
        &stop,
        |key, object| match object {
            Some(secret) => s.put_secret(key, &secret),
            None => drop(s.known.write().certificates.remove(&key)),
        },
        |left| s.known.write().certificates.retain(|k, _| left.contains(k)),
    );
    let gateway = Arc::new(serve::Gateway::new(Arc::clone(&state), shared));
    let plain = listen(config.http, "HTTP", &stop, async |listener| {
        serve::plain(Arc::clone(&gateway), listener, stop.clone()).await;
    });
    let secure = listen(config.https, "HTTPS", &stop, async |listener| {
        if let Err(error) = serve::secure(Arc::clone(&gateway), listener, stop.clone()).await {
            tracing::error!(error = format!("{error:#}"), "the ingress gateway has no HTTPS");
        }
    });
    tokio::join!(ingresses, classes, secrets, plain, secure);
}

/// What is kept of an Ingress.
fn slim(mut ingress: Ingress) -> Ingress {
    ingress.metadata.managed_fields = None;
    ingress.metadata.labels = None;
    ingress
}

/// Listens, as soon as the port is free.
async fn listen(address: SocketAddr, what: &str, stop: &CancellationToken, serve: impl AsyncFnOnce(TcpListener)) {
    if address.port() == 0 {
        return;
    }
    let mut wait = RETRY.0;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return serve(listener).await,
            Err(error) => tracing::warn!(
                %error, %address, "the ingress gateway cannot listen for {what}; trying again. Another program has the \
                 port, or choose one with --ingress-http-port and --ingress-https-port (0 turns the gateway off)"
            ),
        }
        if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
        wait = (wait * 2).min(RETRY.1);
    }
}
