//! The ingress gateway of one node: HTTP and HTTPS from outside to Services, by host and path.
//!
//! Two watches (Ingresses and their classes) make one [`table::Table`]; the Secrets it names are watched one by one,
//! because a node that joined may read no others. The endpoints of backends come from the index that Services use, so a
//! change of an endpoint costs the gateway nothing. Requests go to endpoints directly, in turn.
//!
//! Contract: class `skiff` (`spec.controller: skiff.dev/ingress`); exact and wildcard hosts, `Exact`, `Prefix` and
//! `ImplementationSpecific` (as `Prefix`) paths, `spec.defaultBackend`, TLS by server name, upgrades such as WebSocket;
//! the annotation `skiff.dev/rewrite-target`. Hosts of Ingresses that have an address are answered by the name server.
//!
//! Limits: backends speak HTTP/1.1 without TLS and are Services, no other resources. A port that is taken is tried again;
//! nothing else of the proxy depends on it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::Api;
use kube::runtime::watcher;
use parking_lot::RwLock;
use rustls::sign::CertifiedKey;
use tokio::net::TcpListener;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::index::Shared;
use crate::model::Id;
use crate::watch::{self, Seen};

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

/// What is known of the cluster's Ingresses.
#[derive(Default)]
pub struct State {
    known: RwLock<Known>,
    table: RwLock<Arc<Table>>,
    /// The Secrets that the table names.
    named: channel::Sender<BTreeSet<Id>>,
}

#[derive(Default)]
struct Known {
    ingresses: BTreeMap<Id, Ingress>,
    classes: BTreeMap<Id, IngressClass>,
    certificates: HashMap<Id, Arc<CertifiedKey>>,
}

impl State {
    /// A gateway's state with fixed rules, for one that follows no server.
    #[must_use]
    pub fn of(table: Table) -> Self {
        Self { table: RwLock::new(Arc::new(table)), ..Self::default() }
    }

    /// The rules as they are now.
    #[must_use]
    pub fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.read())
    }

    fn certificate(&self, name: &str) -> Option<Arc<CertifiedKey>> {
        let table = self.table();
        let id = table.certificate(name)?;
        self.known.read().certificates.get(id).cloned()
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
            let named: BTreeSet<Id> = made.certificates.values().cloned().collect();
            *present = Arc::new(made);
            self.named.send_if_modified(|old| {
                let changed = *old != named;
                *old = named;
                changed
            });
        }
    }

    fn put_secret(&self, id: Id, secret: &Secret) {
        match tls::certified(secret) {
            Ok(c) => drop(self.known.write().certificates.insert(id, Arc::new(c))),
            Err(error) => {
                tracing::warn!(secret = %format!("{}/{}", id.namespace, id.name), error = format!("{error:#}"), "no usable certificate");
                self.known.write().certificates.remove(&id);
            }
        }
    }
}

/// Runs the gateway until `stop`.
pub async fn run(client: kube::Client, config: Config, state: Arc<State>, shared: Shared, stop: CancellationToken) {
    let s = &state;
    let ingresses = watch::follow(Api::<Ingress>::all(client.clone()), watcher::Config::default(), |seen| {
        match seen {
            Seen::Put(id, o) | Seen::Listing(id, o) => drop(s.known.write().ingresses.insert(id, slim(o))),
            Seen::Gone(id) => drop(s.known.write().ingresses.remove(&id)),
            Seen::Listed(left) => s.known.write().ingresses.retain(|id, _| left.contains(id)),
        }
        s.remake();
    });
    let classes = watch::follow(Api::<IngressClass>::all(client.clone()), watcher::Config::default(), |seen| {
        match seen {
            Seen::Put(id, o) | Seen::Listing(id, o) => drop(s.known.write().classes.insert(id, o)),
            Seen::Gone(id) => drop(s.known.write().classes.remove(&id)),
            Seen::Listed(left) => s.known.write().classes.retain(|id, _| left.contains(id)),
        }
        s.remake();
    });
    let secrets = certificates(client, Arc::clone(&state));
    let watches = async {
        let all = async { tokio::join!(ingresses, classes, secrets) };
        stop.run_until_cancelled(all).await;
    };
    let gateway = Arc::new(serve::Gateway::new(Arc::clone(&state), shared));
    let plain = listen(config.http, "HTTP", &stop, async |listener| {
        serve::plain(Arc::clone(&gateway), listener, stop.clone()).await;
    });
    let secure = listen(config.https, "HTTPS", &stop, async |listener| {
        if let Err(error) = serve::secure(Arc::clone(&gateway), listener, stop.clone()).await {
            tracing::error!(error = format!("{error:#}"), "the ingress gateway has no HTTPS");
        }
    });
    tokio::join!(watches, plain, secure);
}

/// Follows the Secrets that the table names.
async fn certificates(client: kube::Client, state: Arc<State>) {
    let mut named = state.named.subscribe();
    // Each ends with its handle.
    let mut followed: BTreeMap<Id, AbortOnDropHandle<()>> = BTreeMap::new();
    loop {
        let now = named.borrow_and_update().clone();
        followed.retain(|id, _| now.contains(id));
        state.known.write().certificates.retain(|id, _| now.contains(id));
        for id in now {
            followed.entry(id).or_insert_with_key(|id| {
                let (client, id, state) = (client.clone(), id.clone(), Arc::clone(&state));
                AbortOnDropHandle::new(tokio::spawn(certificate(client, id, state)))
            });
        }
        if named.changed().await.is_err() {
            return;
        }
    }
}

/// Follows one Secret.
async fn certificate(client: kube::Client, id: Id, state: Arc<State>) {
    let only = watcher::Config::default().fields(&format!("metadata.name={},type=kubernetes.io/tls", id.name));
    let api = Api::<Secret>::namespaced(client, &id.namespace);
    watch::follow(api, only, |seen| match seen {
        Seen::Put(id, secret) | Seen::Listing(id, secret) => state.put_secret(id, &secret),
        Seen::Gone(id) => drop(state.known.write().certificates.remove(&id)),
        Seen::Listed(left) => {
            if !left.contains(&id) {
                state.known.write().certificates.remove(&id);
            }
        }
    })
    .await;
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
