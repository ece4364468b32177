//! The aggregation layer: group-versions that other servers serve, named by APIServices.
//!
//! One task follows the APIServices. Each that names a Service gets a task of its own ([`tend`]), which checks whether the
//! server behind it answers, writes the condition `Available`, and reads what it offers, so that discovery and OpenAPI of
//! this server describe it. It looks again when the Service or its endpoints change, and at times. Requests pass
//! [`forward`]: identity and permission are decided here, the other server is told who asked in headers, over a connection
//! that only this server can open (the front-proxy client certificate).
//!
//! A group-version of the built-in table stays here whatever an APIService says. Limits: the merged OpenAPI v2 document
//! holds other servers' parts in its JSON form only.

mod check;
mod offers;
mod relay;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use skiff_core::discovery::Item;
use skiff_core::meta;
use skiff_core::status::Status;
use skiff_storage::cache::Watcher;
use skiff_storage::{Compare, Error, Op};
use tokio_util::sync::CancellationToken;

pub use offers::Offers;
pub use relay::{Front, forward};

use crate::ownership;
use crate::registry::{Collection, Registry, object, storage_error};
use crate::server::Inner;
use check::Verdict;

const GROUP: &str = "apiregistration.k8s.io";
const PLURAL: &str = "apiservices";
/// How often an available server is looked at, as upstream.
const RECHECK: Duration = Duration::from_secs(30);
/// Pauses between looks at one that is not available.
const FIRST: Duration = Duration::from_millis(500);
/// How long the follower waits after an error of the store.
const PAUSE: Duration = Duration::from_secs(1);

/// A group-version that another server serves, as an APIService says.
#[derive(Clone)]
pub struct Remote {
    /// Name of the APIService.
    pub name: String,
    /// Group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Namespace and name of the Service.
    pub service: (String, String),
    /// Port of the Service.
    pub port: u16,
    /// Rank among groups; higher comes first.
    pub group_priority: i32,
    /// Rank within the group; higher comes first.
    pub version_priority: i32,
    /// How its certificate is verified, and how this server proves itself.
    pub tls: Arc<rustls::ClientConfig>,
    /// Whether it answered when it was last asked.
    pub available: bool,
    /// What it offers, as last known.
    pub offers: Arc<Offers>,
}

impl Remote {
    /// Reads an APIService; `None` when it is local or cannot be used.
    fn parse(server: &Inner, object: &Value) -> Option<Self> {
        let spec = &object["spec"];
        let to = spec["service"].as_object()?;
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let (group, version) = (text(&spec["group"]), text(&spec["version"]));
        if skiff_core::resources::group_versions().any(|(g, v)| g == group && v == version) {
            return None;
        }
        let rank = |key: &str| spec[key].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
        let tls = server.front.trust(spec).inspect_err(|why| tracing::warn!(name = meta::name(object), why)).ok()?;
        Some(Self {
            name: meta::name(object).to_owned(),
            group,
            version,
            service: (text(&to["namespace"]), text(&to["name"])),
            port: to.get("port").and_then(Value::as_u64).and_then(|p| u16::try_from(p).ok()).unwrap_or(443),
            group_priority: rank("groupPriorityMinimum"),
            version_priority: rank("versionPriority"),
            tls,
            available: false,
            offers: Arc::default(),
        })
    }

    /// The name its certificate must be for.
    fn host(&self) -> String {
        format!("{}.{}.svc", self.service.1, self.service.0)
    }

    /// The path that everything it serves is below.
    fn root(&self) -> String {
        format!("/apis/{}/{}", self.group, self.version)
    }

    /// What discovery says of it.
    #[must_use]
    pub fn described(&self) -> skiff_core::discovery::Version {
        skiff_core::discovery::Version {
            group: self.group.clone(),
            version: self.version.clone(),
            stale: !self.available,
            group_priority: self.group_priority,
            version_priority: self.version_priority,
            resources: self.offers.resources.iter().map(Item::clone).collect(),
        }
    }
}

/// The one who starts and ends the tasks.
struct Follower {
    server: Arc<Inner>,
    services: Arc<Collection>,
    /// By name: what it was made from, and what ends its task.
    tended: HashMap<String, (Value, CancellationToken)>,
}

/// Follows the APIServices from now on.
///
/// # Errors
/// When the store cannot be read.
pub async fn start(server: &Arc<Inner>) -> Result<(), Status> {
    let services = server.collection(GROUP, PLURAL)?;
    let mut follower = Follower { server: Arc::clone(server), services, tended: HashMap::new() };
    let watcher = follower.catch_up().await?;
    tokio::spawn(follower.run(watcher));
    Ok(())
}

impl Follower {
    /// Brings everything in line with what is stored; the watch begins where that was read.
    async fn catch_up(&mut self) -> Result<Watcher, Status> {
        let (snapshot, watcher) = self.services.follow().await?;
        let present: Vec<&str> = snapshot.objects.iter().map(|o| o.name()).collect();
        let gone: Vec<String> = self.tended.keys().filter(|n| !present.contains(&n.as_str())).cloned().collect();
        for name in gone.iter().map(String::as_str).chain(present) {
            self.settle(name);
        }
        Ok(watcher)
    }

    async fn run(mut self, mut watcher: Watcher) {
        let stop = self.server.shutdown.clone();
        loop {
            let event = tokio::select! {
                event = watcher.next() => event,
                () = stop.cancelled() => return,
            };
            if let Some(Ok(event)) = event {
                self.settle(event.object.name());
                continue;
            }
            // The watch fell behind or the store is closing: begin anew.
            watcher = loop {
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = stop.cancelled() => return,
                }
                match self.catch_up().await {
                    Ok(watcher) => break watcher,
                    Err(why) => tracing::warn!(why = %why.message, "APIServices are read anew"),
                }
            };
        }
    }

    /// Brings one APIService in line.
    fn settle(&mut self, name: &str) {
        let object = self.server.peek(GROUP, PLURAL, "", name);
        match &object {
            None => self.server.metrics.forget_service(name),
            Some(local) if !local["spec"]["service"].is_object() => self.server.metrics.service(name, true),
            Some(_) => {}
        }
        let object = object.filter(|o| o["spec"]["service"].is_object());
        let made_from = object.as_ref().map(|o| json!([meta::uid(o), o["spec"]]));
        if self.tended.get(name).map(|(m, _)| m) == made_from.as_ref() {
            return;
        }
        let remote = object.as_ref().and_then(|o| Remote::parse(&self.server, o));
        let mut before = None;
        if let Some((was, task)) = self.tended.remove(name) {
            task.cancel();
            // What is known of an APIService that was changed is true until it is looked at again: until then it serves on.
            if made_from.as_ref().is_some_and(|m| m[0] == was[0]) {
                before = self.server.registry.load().remotes().find(|r| r.name == name).cloned();
            }
            if remote.is_none() {
                set(&self.server, name, None);
            }
            if object.is_none() {
                self.server.metrics.forget_service(name);
            }
        }
        let (Some(mut remote), Some(made_from)) = (remote, made_from) else { return };
        if let Some(before) = before.filter(|b| (&b.group, &b.version) == (&remote.group, &remote.version)) {
            remote.available = before.available;
            remote.offers = Arc::clone(&before.offers);
        }
        let stop = self.server.shutdown.child_token();
        self.tended.insert(name.to_owned(), (made_from, stop.clone()));
        set(&self.server, name, Some(remote.clone()));
        let server = Arc::clone(&self.server);
        tokio::spawn(async move {
            stop.run_until_cancelled(tend(&server, remote, &stop)).await;
        });
    }
}

/// Puts a remote into the registry, or takes it out.
fn set(server: &Inner, name: &str, remote: Option<Remote>) {
    let remote = remote.map(Arc::new);
    server.registry.rcu(|registry| {
        let mut registry = Registry::clone(registry);
        registry.set_remote(name, remote.clone());
        registry
    });
}

/// Looks after one server until the task is ended.
async fn tend(server: &Arc<Inner>, mut remote: Remote, stop: &CancellationToken) {
    let mut pause = FIRST;
    loop {
        // From before the look, so that nothing that happens meanwhile is missed.
        let changes = Changes::since_now(server, &remote.service.0);
        let (verdict, offers) = check::look(server, &remote).await;
        let available = verdict.available();
        if stop.is_cancelled() {
            return;
        }
        server.metrics.service(&remote.name, available);
        let news = offers.is_some_and(|o| {
            let changed = *remote.offers != o;
            remote.offers = Arc::new(o);
            changed
        });
        if news || available != remote.available {
            remote.available = available;
            // The task may have been ended while it looked, and another be there for the name.
            if stop.is_cancelled() {
                return;
            }
            set(server, &remote.name, Some(remote.clone()));
        }
        if let Err(why) = say(server, &remote.name, &verdict).await {
            tracing::warn!(name = remote.name, why = %why.message, "cannot write the condition of an APIService");
        }
        let wait = if available { RECHECK } else { pause };
        pause = if available { FIRST } else { (pause * 2).min(RECHECK) };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = changes.of(&remote.service.1) => pause = FIRST,
        }
    }
}

/// Changes of Services and endpoints of a namespace.
struct Changes(Vec<Watcher>);

impl Changes {
    fn since_now(server: &Inner, namespace: &str) -> Self {
        let watch = |group, plural| {
            let collection = server.collection(group, plural).ok()?;
            let now = collection.cache.list(&collection.scope(namespace)).revision;
            collection.cache.watch(&collection.scope(namespace), now).ok()
        };
        Self(
            [("", "services"), ("discovery.k8s.io", "endpointslices")]
                .into_iter()
                .filter_map(|(g, p)| watch(g, p))
                .collect(),
        )
    }

    /// Until the Service of that name or its endpoints change, or the watch ends.
    async fn of(self, name: &str) {
        let each = self.0.into_iter().map(|mut watcher| {
            Box::pin(async move {
                while let Some(Ok(event)) = watcher.next().await {
                    let o = &event.object;
                    if o.meta.label("kubernetes.io/service-name").unwrap_or_else(|| o.name()) == name {
                        return;
                    }
                }
                // A watch that ends at once must not make this a busy loop.
                tokio::time::sleep(PAUSE).await;
            })
        });
        let each: Vec<_> = each.collect();
        if each.is_empty() {
            return std::future::pending().await;
        }
        futures::future::select_all(each).await;
    }
}

/// Writes the condition `Available`, unless it says so already.
async fn say(server: &Inner, name: &str, verdict: &Verdict) -> Result<(), Status> {
    let services = server.collection(GROUP, PLURAL)?;
    // Others write too; a conflict is read anew, and after some the next look tries again.
    for _ in 0..5 {
        let Some(found) = services.get("", name).await? else { return Ok(()) };
        let Ok(mut object) = serde_json::from_slice::<Value>(&found.value) else { return Ok(()) };
        let old = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let before = old.iter().find(|c| c["type"] == "Available");
        let status = if verdict.available() { "True" } else { "False" };
        let same = |key: &str, value: &str| before.is_some_and(|c| c[key] == value);
        if same("status", status) && same("reason", verdict.reason) && same("message", &verdict.message) {
            return Ok(());
        }
        let since = match before {
            Some(c) if c["status"] == status => c["lastTransitionTime"].clone(),
            _ => crate::verbs::write::now().into(),
        };
        let condition = json!({"type": "Available", "status": status, "lastTransitionTime": since,
            "reason": verdict.reason, "message": verdict.message});
        let mut all: Vec<Value> = old.iter().filter(|c| c["type"] != "Available").cloned().collect();
        all.push(condition);
        let was = object.clone();
        object["status"] = json!({"conditions": all});
        ownership::track_own(&*server.kind(GROUP, PLURAL)?, &mut object, &was);
        match services.store.commit(&found.key, Compare::At(found.revision), Op::Put(object::encode(&object))).await {
            Ok(_) => {
                if !verdict.available() && before.is_some_and(|c| c["status"] == "True") {
                    server.metrics.service_lost(name, verdict.reason);
                }
                return Ok(());
            }
            Err(Error::Conflict { .. }) => {}
            Err(e) => return Err(storage_error(e)),
        }
    }
    Ok(())
}
