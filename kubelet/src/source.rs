//! ConfigMaps, Secrets, trust bundles and Services as pods on this node need them.
//!
//! ConfigMaps and Secrets are watched one by one (the Node authoriser allows nothing wider), and only while there are pods
//! that refer to them, or somebody asks for them. ClusterTrustBundles are watched all together, because signers and labels choose them, and again only
//! while somebody asks. Services are watched as a whole, for the environment variables of containers.
//!
//! Contract: `config_map` and `secret` answer `Ok(None)` only when the server said that there is no such object;
//! an answer may be as old as the watch is behind. A change is told on [`Sources::changed`].

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::certificates::v1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, Service};
use kube::runtime::{reflector, watcher};
use kube::{Api, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, watch};

use crate::trust::Bundles;

/// How long a first answer may take before the caller is told to come back.
const FIRST_ANSWER: Duration = Duration::from_secs(10);
/// A watch nobody asked for in this time ends.
const UNUSED_FOR: Duration = Duration::from_secs(300);
/// Changes remembered for a slow listener; one that falls behind looks at everything.
const CHANGES: usize = 256;

/// The object cannot be had right now.
#[derive(Debug, thiserror::Error)]
#[error("failed to sync {kind} cache: timed out waiting for {namespace}/{name}")]
pub struct Unavailable {
    kind: &'static str,
    namespace: String,
    name: String,
}

/// Which object changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// `ConfigMap`, `Secret`, or what the makers below say.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Key {
    /// Any ClusterTrustBundle.
    pub fn bundles() -> Self {
        Self { kind: "ClusterTrustBundle", namespace: String::new(), name: String::new() }
    }

    /// A certificate that the agent asked for on behalf of the pod with this UID.
    pub fn certificate(namespace: &str, pod_uid: &str) -> Self {
        Self { kind: "PodCertificateRequest", namespace: namespace.into(), name: pod_uid.into() }
    }
}

struct Entry<K> {
    latest: watch::Receiver<Option<Option<Arc<K>>>>,
    used: Instant,
    task: tokio::task::JoinHandle<()>,
}

impl<K> Drop for Entry<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Entries<K> = Mutex<HashMap<(String, String), Entry<K>>>;

/// The node's view of the objects pods refer to.
pub struct Sources {
    client: kube::Client,
    config_maps: Entries<ConfigMap>,
    secrets: Entries<Secret>,
    bundles: Mutex<Option<Entry<Bundles>>>,
    services: reflector::Store<Service>,
    changes: broadcast::Sender<Key>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Drop for Sources {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Sources {
    /// Starts watching services.
    pub fn start(client: kube::Client) -> Self {
        let (services, writer) = reflector::store();
        let stream = skiff_client::watch(Api::<Service>::all(client.clone()), watcher::Config::default());
        let task = tokio::spawn(async move {
            let mut applied = std::pin::pin!(reflector::reflector(writer, stream));
            while applied.next().await.is_some() {}
        });
        Self {
            client,
            config_maps: Mutex::default(),
            secrets: Mutex::default(),
            bundles: Mutex::default(),
            services,
            changes: broadcast::channel(CHANGES).0,
            tasks: vec![task],
        }
    }

    /// Tells which objects in use changed.
    pub fn changed(&self) -> broadcast::Receiver<Key> {
        self.changes.subscribe()
    }

    /// Where others tell of changes, too.
    pub fn changes(&self) -> broadcast::Sender<Key> {
        self.changes.clone()
    }

    /// A ConfigMap, or `None` when there is none.
    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<Arc<ConfigMap>>, Unavailable> {
        self.get(&self.config_maps, "ConfigMap", namespace, name).await
    }

    /// A Secret, or `None` when there is none.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Arc<Secret>>, Unavailable> {
        self.get(&self.secrets, "Secret", namespace, name).await
    }

    /// All ClusterTrustBundles.
    pub async fn bundles(&self) -> Result<Arc<Bundles>, Unavailable> {
        let latest = {
            let mut entry = self.bundles.lock().unwrap_or_else(PoisonError::into_inner);
            let entry = entry.get_or_insert_with(|| {
                let (sender, latest) = watch::channel(None);
                let task = tokio::spawn(follow_bundles(self.client.clone(), sender, self.changes.clone()));
                Entry { latest, used: Instant::now(), task }
            });
            entry.used = Instant::now();
            entry.latest.clone()
        };
        let missing = Unavailable { kind: "ClusterTrustBundle", namespace: String::new(), name: String::new() };
        Ok(first(latest, missing).await?.unwrap_or_default())
    }

    /// Environment variables for the services of a namespace and for the API server, in upstream's form. Empty until
    /// the services are known; waits a little for that.
    pub async fn service_env(&self, namespace: &str, enable_links: bool) -> BTreeMap<String, String> {
        if tokio::time::timeout(FIRST_ANSWER, self.services.wait_until_ready()).await.is_err() {
            tracing::warn!("services are not known yet; containers start without their variables");
        }
        let services = self.services.state();
        let wanted = services.iter().filter(|s| {
            let own = s.namespace().as_deref() == Some(namespace) && enable_links;
            own || (s.name_any() == "kubernetes" && s.namespace().as_deref() == Some("default"))
        });
        // The namespace's own service comes last, so that it wins over the API server's of the same name.
        let mut wanted: Vec<_> = wanted.collect();
        wanted.sort_by_key(|s| s.namespace().as_deref() == Some(namespace));
        wanted.into_iter().flat_map(|s| service_variables(s)).collect()
    }

    fn entries<K>(entries: &Entries<K>) -> MutexGuard<'_, HashMap<(String, String), Entry<K>>> {
        entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sweep<K>(entries: &Entries<K>) {
        Self::entries(entries).retain(|_, entry| entry.used.elapsed() < UNUSED_FOR);
    }

    /// Ends the watches of these objects. Whoever asks for one again starts a new one.
    pub fn forget(&self, keys: &[Key]) {
        for key in keys {
            let place = (key.namespace.clone(), key.name.clone());
            match key.kind {
                "ConfigMap" => drop(Self::entries(&self.config_maps).remove(&place)),
                "Secret" => drop(Self::entries(&self.secrets).remove(&place)),
                // Bundles are everybody's, and what others tell of is watched by them.
                _ => {}
            }
        }
    }

    /// Ends watches that nobody uses any more.
    pub fn forget_unused(&self) {
        Self::sweep(&self.config_maps);
        Self::sweep(&self.secrets);
        let mut bundles = self.bundles.lock().unwrap_or_else(PoisonError::into_inner);
        bundles.take_if(|entry| entry.used.elapsed() >= UNUSED_FOR);
    }

    fn get<'a, K>(
        &'a self,
        entries: &'a Entries<K>,
        kind: &'static str,
        namespace: &str,
        name: &str,
    ) -> impl Future<Output = Result<Option<Arc<K>>, Unavailable>> + Send + use<'a, K>
    where
        K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
        K: Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let latest = {
            let mut entries = Self::entries(entries);
            let entry = entries.entry((namespace.into(), name.into())).or_insert_with(|| {
                let (sender, latest) = watch::channel(None);
                let key = Key { kind, namespace: namespace.into(), name: name.into() };
                let task = tokio::spawn(follow::<K>(self.client.clone(), key, sender, self.changes.clone()));
                Entry { latest, used: Instant::now(), task }
            });
            entry.used = Instant::now();
            entry.latest.clone()
        };
        let missing = Unavailable { kind, namespace: namespace.into(), name: name.into() };
        first(latest, missing)
    }
}

/// What a watch knows; waits a little for its first answer.
async fn first<K>(
    mut latest: watch::Receiver<Option<Option<Arc<K>>>>,
    missing: Unavailable,
) -> Result<Option<Arc<K>>, Unavailable> {
    match tokio::time::timeout(FIRST_ANSWER, latest.wait_for(Option::is_some)).await {
        Ok(Ok(found)) => Ok(found.clone().flatten()),
        _ => Err(missing),
    }
}

async fn follow_bundles(
    client: kube::Client,
    sender: watch::Sender<Option<Option<Arc<Bundles>>>>,
    changes: broadcast::Sender<Key>,
) {
    let api = Api::<ClusterTrustBundle>::all(client);
    let mut events = skiff_client::watch(api, watcher::Config::default());
    // What is known is shared with the channel: there is one copy of it while nothing changes.
    let (mut all, mut listed) = (Arc::<Bundles>::default(), Bundles::new());
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(bundle)) => {
                listed.insert(bundle.name_any(), bundle.into());
                continue;
            }
            Ok(watcher::Event::InitDone) => all = Arc::new(std::mem::take(&mut listed)),
            Ok(watcher::Event::Apply(bundle)) => drop(Arc::make_mut(&mut all).insert(bundle.name_any(), bundle.into())),
            Ok(watcher::Event::Delete(bundle)) => drop(Arc::make_mut(&mut all).remove(&bundle.name_any())),
            Err(error) => {
                tracing::debug!(%error, "watch of trust bundles failed");
                continue;
            }
        }
        let first = sender.send_replace(Some(Some(all.clone()))).is_none();
        if !first {
            // No listener is fine.
            let _ = changes.send(Key::bundles());
        }
    }
}

async fn follow<K>(
    client: kube::Client,
    key: Key,
    sender: watch::Sender<Option<Option<Arc<K>>>>,
    changes: broadcast::Sender<Key>,
) where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
    K: Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let api = Api::<K>::namespaced(client, &key.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
    let mut events = skiff_client::watch(api, config);
    let mut found_in_list = None;
    while let Some(event) = events.next().await {
        let latest = match event {
            Ok(watcher::Event::Init) => {
                found_in_list = None;
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                found_in_list = Some(Arc::new(object));
                continue;
            }
            Ok(watcher::Event::InitDone) => found_in_list.take(),
            Ok(watcher::Event::Apply(object)) => Some(Arc::new(object)),
            Ok(watcher::Event::Delete(_)) => None,
            Err(error) => {
                tracing::debug!(%error, kind = key.kind, name = key.name, "watch failed");
                continue;
            }
        };
        let first = sender.borrow().is_none();
        sender.send_replace(Some(latest));
        if !first {
            // No listener is fine.
            let _ = changes.send(key.clone());
        }
    }
}

/// The variables one service adds: `NAME_SERVICE_HOST`, ports, and the older link form.
fn service_variables(service: &Service) -> Vec<(String, String)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let (Some(ip), Some(ports)) = (&spec.cluster_ip, &spec.ports) else { return Vec::new() };
    let Some(first) = ports.first() else { return Vec::new() };
    if ip.is_empty() || ip == "None" {
        return Vec::new();
    }
    let upper = |name: &str| name.to_uppercase().replace('-', "_");
    let prefix = upper(&service.name_any());
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.clone() };
    let mut variables = vec![
        (format!("{prefix}_SERVICE_HOST"), ip.clone()),
        (format!("{prefix}_SERVICE_PORT"), first.port.to_string()),
    ];
    for port in ports {
        if let Some(name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            variables.push((format!("{prefix}_SERVICE_PORT_{}", upper(name)), port.port.to_string()));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let url = format!("{}://{host}:{}", protocol.to_lowercase(), port.port);
        if index == 0 {
            variables.push((format!("{prefix}_PORT"), url.clone()));
        }
        let one = format!("{prefix}_PORT_{}_{}", port.port, protocol.to_uppercase());
        variables.push((one.clone(), url));
        variables.push((format!("{one}_PROTO"), protocol.to_lowercase()));
        variables.push((format!("{one}_PORT"), port.port.to_string()));
        variables.push((format!("{one}_ADDR"), ip.clone()));
    }
    variables
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn service_variables_have_both_forms() {
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "redis-primary", "namespace": "a"},
            "spec": {"clusterIP": "10.0.0.11", "ports": [{"name": "db-main", "port": 6379}]}
        }))
        .unwrap();
        let variables: BTreeMap<_, _> = service_variables(&service).into_iter().collect();
        for (name, value) in [
            ("REDIS_PRIMARY_SERVICE_HOST", "10.0.0.11"),
            ("REDIS_PRIMARY_SERVICE_PORT", "6379"),
            ("REDIS_PRIMARY_SERVICE_PORT_DB_MAIN", "6379"),
            ("REDIS_PRIMARY_PORT", "tcp://10.0.0.11:6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP", "tcp://10.0.0.11:6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PROTO", "tcp"),
            ("REDIS_PRIMARY_PORT_6379_TCP_PORT", "6379"),
            ("REDIS_PRIMARY_PORT_6379_TCP_ADDR", "10.0.0.11"),
        ] {
            assert_eq!(variables.get(name).map(String::as_str), Some(value), "{name}");
        }
    }

    #[test]
    fn headless_services_have_none() {
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "x"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}
        }))
        .unwrap();
        assert!(service_variables(&service).is_empty());
    }
}
