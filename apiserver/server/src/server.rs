//! The server's state, shared by all requests.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::Value;
use skiff_core::status::Status;
use skiff_storage::Store;

use crate::auth::rbac::{Attributes, Index, Sources};
use crate::auth::token::Tokens;
use crate::auth::{User, node};
use crate::metrics::Metrics;
use crate::registry::{Collection, Kind, Registry};
use crate::services::Addresses;

/// Settings that do not change while the server runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address that the `kubernetes` Service points to, and its port.
    pub advertise: (IpAddr, u16),
    /// Range of cluster addresses of Services.
    pub service_cidr: ipnet::IpNet,
    /// Range of node ports, inclusive.
    pub node_ports: (u16, u16),
    /// PEM of the CA that clients verify this server with; published in `kube-root-ca.crt`.
    pub ca: String,
    /// PEM of the CA of the certificate that requests to aggregated servers are made with.
    pub front_ca: String,
    /// Client certificate and key (PEM) for calls to node agents.
    pub kubelet_client: Option<crate::pki::Leaf>,
    /// Upper bound for ordinary requests.
    pub request_timeout: Duration,
    /// Requests that are served at a time, as priority and fairness counts them.
    pub seats: u32,
    /// What is recorded of requests.
    pub audit: Option<Arc<crate::audit::Audit>>,
}

/// Shared state.
pub struct Inner {
    /// Settings.
    pub config: Config,
    /// The store.
    pub store: Arc<dyn Store>,
    /// What is served.
    pub registry: ArcSwap<Registry>,
    /// ServiceAccount tokens.
    pub tokens: Tokens,
    /// Counters.
    pub metrics: Metrics,
    /// What nodes and pods use.
    pub usage: crate::usage::Usage,
    /// Addresses and ports of Services.
    pub addresses: Addresses,
    /// Connections to node agents.
    pub kubelets: crate::kubelets::Kubelets,
    /// How this server proves itself to aggregated servers.
    pub front: crate::aggregate::Front,
    /// Connections to webhooks.
    pub outward: crate::outward::Outward,
    /// Policies and webhooks.
    pub dynamic: crate::admission::Dynamic,
    /// Priority and fairness.
    pub flow: crate::flow::Flow,
    /// Set once bootstrap objects exist.
    pub ready: tokio::sync::watch::Sender<bool>,
    /// Ends watches when the server stops.
    pub shutdown: tokio_util::sync::CancellationToken,
    rbac: ArcSwap<Index>,
    rebuild: Mutex<()>,
    verified: Mutex<HashMap<[u8; 32], (crate::auth::token::Claims, std::time::Instant)>>,
    documents: Mutex<(u64, HashMap<String, Arc<crate::discovery::Document>>)>,
}

/// Verified tokens remembered at once; beyond that the memory is dropped and signatures are checked again.
const TOKENS_MAX: usize = 4096;
/// How long a verified signature is remembered. Bound objects are checked on every request all the same.
const TOKEN_TTL: Duration = Duration::from_secs(60);

impl Inner {
    /// Assembles the state.
    #[must_use]
    pub fn new(
        config: Config,
        store: Arc<dyn Store>,
        registry: Registry,
        tokens: Tokens,
        kubelets: crate::kubelets::Kubelets,
        front: crate::aggregate::Front,
    ) -> Self {
        let flow = crate::flow::Flow::new(config.seats);
        Self {
            addresses: Addresses::new(config.service_cidr, config.node_ports),
            config,
            store,
            registry: ArcSwap::from_pointee(registry),
            tokens,
            metrics: Metrics::default(),
            usage: crate::usage::Usage::default(),
            kubelets,
            front,
            outward: crate::outward::Outward::default(),
            dynamic: crate::admission::Dynamic::default(),
            flow,
            ready: tokio::sync::watch::channel(false).0,
            shutdown: tokio_util::sync::CancellationToken::new(),
            rbac: ArcSwap::default(),
            rebuild: Mutex::new(()),
            verified: Mutex::new(HashMap::new()),
            documents: Mutex::default(),
        }
    }

    /// The collection of a built-in resource.
    ///
    /// # Errors
    /// 500 when it is not served (a fault of the table, not of the request).
    pub fn collection(&self, group: &str, plural: &str) -> Result<Arc<Collection>, Status> {
        let registry = self.registry.load();
        let kind = registry.any_version(group, plural);
        kind.and_then(|k| k.collection.clone()).ok_or_else(|| Status::internal(format!("{plural} is not served")))
    }

    /// A served kind in its stored version.
    ///
    /// # Errors
    /// As [`Inner::collection`].
    pub fn kind(&self, group: &str, plural: &str) -> Result<Arc<Kind>, Status> {
        let registry = self.registry.load();
        registry.any_version(group, plural).cloned().ok_or_else(|| Status::internal(format!("{plural} is not served")))
    }

    /// The present object as JSON, without waiting for the store.
    #[must_use]
    pub fn peek(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Option<Value> {
        let c = self.collection(group, plural).ok()?;
        serde_json::from_slice(&c.peek(namespace, name)?.value).ok()
    }

    /// The RBAC index, rebuilt if roles or bindings have changed.
    #[must_use]
    pub fn rbac(&self) -> Arc<Index> {
        const GROUP: &str = "rbac.authorization.k8s.io";
        let names = ["clusterroles", "roles", "clusterrolebindings", "rolebindings"];
        let found: Vec<_> = names.iter().filter_map(|n| self.collection(GROUP, n).ok()).collect();
        let [cluster_roles, roles, cluster_bindings, bindings] = found.as_slice() else { return self.rbac.load_full() };
        // The revisions only grow, so their sum changes exactly when one of them does.
        let stamp = || found.iter().map(|c| c.cache.last_change()).sum::<u64>();
        let current = self.rbac.load_full();
        if current.stamp == stamp() && current.stamp != 0 {
            return current;
        }
        let _one = self.rebuild.lock();
        let now = stamp();
        if self.rbac.load().stamp != now {
            let sources = Sources {
                cluster_roles: cluster_roles.values(),
                roles: roles.values(),
                cluster_bindings: cluster_bindings.values(),
                bindings: bindings.values(),
            };
            self.rbac.store(Arc::new(Index::build(&sources, now)));
        }
        self.rbac.load_full()
    }

    /// Decides. `Ok` carries the reason of the permission.
    ///
    /// # Errors
    /// 403 in upstream's words.
    pub fn authorise(&self, user: &User, a: &Attributes) -> Result<String, Status> {
        if user.in_group(crate::auth::identity::MASTERS) {
            return Ok(String::new());
        }
        if let Some(name) = user.node_name() {
            let pods = || self.pods_of(name);
            let objects = |group: &str, plural: &str, namespace: &str| self.in_namespace(group, plural, namespace);
            if node::authorise(name, a, pods, objects) == node::Opinion::Allow {
                return Ok(String::new());
            }
        }
        if let Some(binding) = self.rbac().allows(user, a) {
            return Ok(format!("RBAC: allowed by {binding}"));
        }
        Err(denied(user, a))
    }

    /// Objects of a kind in a namespace.
    fn in_namespace(&self, group: &str, plural: &str, namespace: &str) -> Vec<Value> {
        let Ok(all) = self.collection(group, plural) else { return vec![] };
        let objects = all.cache.list(&all.scope(namespace)).objects;
        objects.iter().filter_map(|o| serde_json::from_slice(&o.value).ok()).collect()
    }

    /// Pods bound to a node.
    #[must_use]
    pub fn pods_of(&self, node: &str) -> Vec<Value> {
        let Ok(pods) = self.collection("", "pods") else { return vec![] };
        let found = pods.cache.list_by_field(&pods.prefix, "spec.nodeName", node);
        let objects = found.map(|s| s.objects).unwrap_or_default();
        objects.iter().filter_map(|o| serde_json::from_slice(&o.value).ok()).collect()
    }

    /// Verifies a bearer token's signature (remembered for a minute) and that all it is bound to still exists.
    #[must_use]
    pub fn verify_token(&self, token: &str) -> Option<crate::auth::token::Claims> {
        let mut key = [0; 32];
        key.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes()).as_ref());
        let now = std::time::Instant::now();
        let known = self.verified.lock().get(&key).filter(|(_, until)| *until > now).map(|(c, _)| c.clone());
        let claims = match known {
            Some(c) if c.exp > jiff::Timestamp::now().as_second() => c,
            _ => {
                let c = self.tokens.verify(token)?;
                let mut verified = self.verified.lock();
                if verified.len() >= TOKENS_MAX {
                    verified.clear();
                }
                verified.insert(key, (c.clone(), now + TOKEN_TTL));
                c
            }
        };
        self.token_objects_exist(&claims).then_some(claims)
    }

    fn token_objects_exist(&self, c: &crate::auth::token::Claims) -> bool {
        let k = &c.kubernetes;
        let same = |resource: &str, ns: &str, r: &crate::auth::token::Reference| {
            let Ok(objects) = self.collection("", resource) else { return false };
            objects.peek(ns, &r.name).is_some_and(|o| {
                let deleting = resource != "nodes"
                    && serde_json::from_slice::<Value>(&o.value).is_ok_and(|v| skiff_core::meta::deleting(&v))
                    && resource != "pods";
                (r.uid.is_empty() || o.meta.uid() == r.uid) && !deleting
            })
        };
        same("serviceaccounts", &k.namespace, &k.serviceaccount)
            && k.pod.as_ref().is_none_or(|r| same("pods", &k.namespace, r))
            && k.secret.as_ref().is_none_or(|r| same("secrets", &k.namespace, r))
            && (k.pod.is_some() || k.node.as_ref().is_none_or(|r| same("nodes", "", r)))
    }

    /// A built document (discovery, OpenAPI), made once for every state of the registry.
    pub fn document(
        &self,
        name: &str,
        build: impl FnOnce(&Registry) -> crate::discovery::Document,
    ) -> Arc<crate::discovery::Document> {
        let registry = self.registry.load_full();
        {
            let mut documents = self.documents.lock();
            if documents.0 < registry.generation {
                *documents = (registry.generation, HashMap::new());
            }
            if documents.0 == registry.generation
                && let Some(d) = documents.1.get(name)
            {
                return Arc::clone(d);
            }
        }
        let made = Arc::new(build(&registry));
        let mut documents = self.documents.lock();
        // Made from a state that has passed: good for this answer alone.
        if documents.0 == registry.generation {
            return Arc::clone(documents.1.entry(name.to_owned()).or_insert(made));
        }
        made
    }
}

/// The 403 of a refused request.
#[must_use]
pub fn denied(user: &User, a: &Attributes) -> Status {
    use skiff_core::invalid::quote_str as q;
    let who = q(&user.name);
    if !a.path.is_empty() {
        let text = format!("forbidden: User {who} cannot {} path {}", a.verb, q(&a.path));
        let mut s = Status::new(403, "Forbidden", text);
        s.details = Some(Box::default());
        return s;
    }
    let scope = if a.namespace.is_empty() {
        " at the cluster scope".to_owned()
    } else {
        format!(" in the namespace {}", q(&a.namespace))
    };
    let why = format!("User {who} cannot {} resource {} in API group {}{scope}", a.verb, q(&a.resource), q(&a.group));
    let resource = a.resource.split('/').next().unwrap_or_default();
    Status::forbidden(&a.group, resource, &a.name, why)
}
