//! The API server: gates, verbs, registry, admission, authentication and authorisation, subresource streams.
//!
//! It is a library first: [`Server::builder`] starts one on any [`skiff_storage::Store`], and [`Server::client`] gives a
//! `kube::Client` that sits directly on it (same bytes, same gates, no socket). [`Server::listen`] adds TLS.

pub mod admission;
pub mod aggregate;
mod anchors;
pub mod audit;
pub mod auth;
pub mod backup;
pub mod body;
pub mod bootstrap;
pub mod chain;
pub mod custom;
pub mod deadline;
pub mod decode;
pub mod discovery;
mod flow;
mod gather;
mod inside;
pub mod kubelets;
pub mod metrics;
pub mod negotiate;
pub mod outward;
pub mod ownership;
pub mod patching;
pub mod pki;
pub mod registry;
pub mod request;
pub mod respond;
pub mod server;
pub mod services;
pub mod subresources;
pub mod tls;
pub mod usage;
pub mod verbs;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use skiff_core::kinds;
use skiff_core::resources;
use skiff_storage::Store;
use tokio::net::TcpListener;

use crate::auth::User;
use crate::auth::token::Tokens;
use crate::body::Body;
use crate::chain::Peer;
use crate::pki::{Leaf, Pki};
use crate::registry::{Collection, Hooks, Kind, Registry};
use crate::server::{Config, Inner};

/// Name of the client certificate that requests to aggregated servers are made with.
pub(crate) const FRONT_PROXY: &str = "front-proxy-client";

/// A server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be read.
    #[error("cannot read the store: {0}")]
    Storage(#[from] skiff_storage::Error),
    /// Keys or certificates.
    #[error(transparent)]
    Pki(#[from] pki::PkiError),
    /// Tokens cannot be signed.
    #[error(transparent)]
    Token(#[from] auth::token::TokenError),
    /// TLS refuses a certificate.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A bootstrap object cannot be written.
    #[error("cannot write the objects every cluster has: {0}")]
    Bootstrap(#[from] skiff_core::status::Status),
}

/// Settings of a server.
pub struct Builder {
    store: Arc<dyn Store>,
    pki: Option<Arc<Pki>>,
    advertise: (IpAddr, u16),
    service_cidr: ipnet::IpNet,
    issuer: String,
    kubelet_client: Option<Leaf>,
    extras: bool,
    audit: Option<Arc<audit::Audit>>,
    seats: u32,
}

impl Builder {
    /// How many requests are served at a time, those of exempt priority levels and those that last apart; the others wait for
    /// their turn. Default: 600, as upstream's two limits together.
    #[must_use]
    pub fn seats(mut self, seats: u32) -> Self {
        self.seats = seats;
        self
    }

    /// What is recorded of requests. Default: nothing.
    #[must_use]
    pub fn audit(mut self, audit: Option<Arc<audit::Audit>>) -> Self {
        self.audit = audit;
        self
    }

    /// Authorities and keys; by default they are made for this process alone.
    #[must_use]
    pub fn pki(mut self, pki: Arc<Pki>) -> Self {
        self.pki = Some(pki);
        self
    }

    /// Address and port that pods reach this server at. Default: 127.0.0.1:6443.
    #[must_use]
    pub fn advertise(mut self, address: IpAddr, port: u16) -> Self {
        self.advertise = (address, port);
        self
    }

    /// Range of Service addresses. Default: 10.96.0.0/16.
    #[must_use]
    pub fn service_cidr(mut self, cidr: ipnet::IpNet) -> Self {
        self.service_cidr = cidr;
        self
    }

    /// Client certificate for node agents. Default: none, so logs and exec are unavailable.
    #[must_use]
    pub fn kubelet_client(mut self, leaf: Leaf) -> Self {
        self.kubelet_client = Some(leaf);
        self
    }

    /// Makes what this cluster's own components need beyond upstream's objects: the StorageClass `standard`, the default,
    /// of the provisioner that the controllers bring along, the scheduler's right to read its placement policy, and
    /// `metrics.k8s.io`. Default: none of it, as upstream's server.
    #[must_use]
    pub fn extras(mut self) -> Self {
        self.extras = true;
        self
    }

    /// Opens the collections and writes the objects every cluster has.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(self) -> Result<Server, StartError> {
        let pki = match self.pki {
            Some(p) => p,
            None => Arc::new(Pki::ephemeral()?),
        };
        let mut registry = built_in(&self.store).await?;
        if self.extras {
            usage::register(&mut registry);
        }
        let config = Config {
            advertise: self.advertise,
            service_cidr: self.service_cidr,
            node_ports: (30000, 32767),
            ca: pki.cluster.cert.clone(),
            front_ca: pki.front_proxy.cert.clone(),
            kubelet_client: self.kubelet_client,
            request_timeout: Duration::from_secs(60),
            seats: self.seats,
            audit: self.audit,
        };
        let tokens = Tokens::new(&self.issuer, &pki.token_key)?;
        let kubelets = kubelets::Kubelets::new(&pki.cluster.cert, config.kubelet_client.as_ref())?;
        let front = aggregate::Front::new(&pki.front_proxy.client(FRONT_PROXY, &[])?)?;
        let inner = Arc::new(Inner::new(config, self.store, registry, tokens, kubelets, front));
        bootstrap::run(&inner).await?;
        if self.extras {
            bootstrap::extras(&inner).await?;
        }
        services::claims::adopt(&inner).await?;
        services::repair::start(&inner).await?;
        custom::start(&inner).await?;
        aggregate::start(&inner).await?;
        let server = Server { inner, pki };
        flow::start(&server).await?;
        server.inner.ready.send_replace(true);
        Ok(server)
    }
}

/// Opens every built-in kind.
async fn built_in(store: &Arc<dyn Store>) -> skiff_storage::Result<Registry> {
    use std::collections::HashMap;
    let mut collections: HashMap<String, Arc<Collection>> = HashMap::new();
    let mut registry = Registry::default();
    for r in resources::all() {
        let strategy = kinds::strategy(&r.group, &r.plural);
        let collection = match &r.storage {
            None if !r.verbs.has(skiff_core::resources::Verbs::LIST) => None,
            // Listed but never written (component statuses): an empty collection answers for them.
            _ => {
                // Resources served in several versions (or groups, as events) share one collection by plural name.
                let prefix = format!("/registry/{}/", r.plural);
                let found = collections.get(&prefix).cloned();
                Some(match found {
                    Some(c) => c,
                    None => {
                        let opened =
                            Collection::open(Arc::clone(store), prefix.clone(), r.namespaced, stored_strategy(r), 0)
                                .await?;
                        let c = Arc::new(opened);
                        collections.insert(prefix, Arc::clone(&c));
                        c
                    }
                })
            }
        };
        let hooks: Arc<dyn Hooks> = match (&*r.group, &*r.plural) {
            ("", "services") => Arc::new(services::ServiceHooks),
            ("certificates.k8s.io", "clustertrustbundles") => Arc::new(anchors::AnchorHooks),
            _ => Arc::new(registry::hooks::NoHooks),
        };
        let ended = tokio_util::sync::CancellationToken::new();
        registry.insert(Arc::new(Kind { resource: r.clone(), strategy, hooks, conversion: None, collection, ended }));
    }
    Ok(registry)
}

/// The rules of the version that is stored: its fields are what selectors see.
fn stored_strategy(r: &resources::Resource) -> Arc<dyn kinds::Strategy> {
    let group = r.storage.as_ref().map_or(&r.group, |(g, _)| g);
    kinds::strategy(group, &r.plural)
}

/// A running API server. Cloning shares it.
#[derive(Clone)]
pub struct Server {
    inner: Arc<Inner>,
    pki: Arc<Pki>,
}

impl Server {
    /// A server over `store`, with defaults.
    #[must_use]
    pub fn builder(store: Arc<dyn Store>) -> Builder {
        Builder {
            store,
            pki: None,
            advertise: (IpAddr::V4(Ipv4Addr::LOCALHOST), 6443),
            service_cidr: ipnet::IpNet::V4(ipnet::Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16)),
            issuer: auth::token::ISSUER.to_owned(),
            kubelet_client: None,
            extras: false,
            audit: None,
            seats: flow::SEATS,
        }
    }

    /// The shared state.
    #[must_use]
    pub fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// Its authorities.
    #[must_use]
    pub fn pki(&self) -> &Arc<Pki> {
        &self.pki
    }

    /// A client in this process that acts as `user`: what a client certificate of that name would be.
    #[must_use]
    pub fn client(&self, user: User) -> kube::Client {
        let inner = Arc::clone(&self.inner);
        let agent = agent(&user.name).and_then(|a| http::HeaderValue::from_str(a).ok());
        let service = tower::service_fn(move |mut request: http::Request<kube::client::Body>| {
            request.extensions_mut().insert(Peer(user.clone()));
            if let Some(agent) = &agent {
                request.headers_mut().entry(http::header::USER_AGENT).or_insert_with(|| agent.clone());
            }
            let inner = Arc::clone(&inner);
            let peer = request.headers().contains_key(http::header::UPGRADE).then(|| Peer(user.clone()));
            async move {
                match peer {
                    Some(peer) => inside::carry(inner, peer, request).await,
                    None => Ok::<http::Response<Body>, std::io::Error>(chain::handle(inner, request).await),
                }
            }
        });
        kube::Client::new(service, "default")
    }

    /// Serves TLS on `listener` until [`Server::shutdown`].
    ///
    /// # Errors
    /// When the certificate cannot be used.
    pub async fn listen(&self, listener: TcpListener, leaf: &Leaf) -> Result<(), tls::TlsError> {
        let acceptor = tls::acceptor(leaf, &self.pki.cluster.cert)?;
        tls::serve(Arc::clone(&self.inner), listener, acceptor).await;
        Ok(())
    }

    /// Ends watches and connections.
    pub fn shutdown(&self) {
        self.inner.shutdown.cancel();
    }
}

/// The program that upstream's component of an identity is, which is the name its changes have in managed fields.
fn agent(user: &str) -> Option<&str> {
    match user.strip_prefix("system:")? {
        name if name.starts_with("serviceaccount:kube-system:") => Some("kube-controller-manager"),
        name if name.starts_with("serviceaccount:") => None,
        name if name.starts_with("node:") => Some("kubelet"),
        name => Some(name),
    }
}
