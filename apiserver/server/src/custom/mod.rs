//! Definitions at work: what a CustomResourceDefinition makes is put into the registry while the server runs.
//!
//! One task follows the collection of definitions. For every change it decides which names
//! a definition gets, serves its kinds, and only then writes the conditions that say so: whoever sees `Established` can
//! use the kind. A definition that is being deleted gets a task that deletes its objects and then lets it go.
//!
//! Nothing here polls: the tasks wait on watches. What is served survives a restart, because [`start`] serves what is
//! established before the server answers anybody.

mod cleanup;
mod services;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::Value;
use skiff_core::custom::{Definition, Version, names};
use skiff_core::kinds::Strategy;
use skiff_core::meta;
use skiff_core::status::Status;
use skiff_storage::cache::Watcher;
use skiff_storage::{Compare, Error, Op, Revision};
use tokio_util::sync::CancellationToken;

use crate::ownership;
use crate::registry::conversion::Conversion;
use crate::registry::{Collection, Hooks, Kind, Registry, object, storage_error};
use crate::server::Inner;

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";
/// How long the task waits after an error of the store.
const PAUSE: Duration = Duration::from_secs(1);

/// Server-side rules of a custom kind.
struct CustomHooks {
    group: String,
    plural: String,
    terminating: bool,
}

impl Hooks for CustomHooks {
    fn refuse_create(&self, name: &str) -> Option<Status> {
        let why = "create not allowed while custom resource definition is terminating";
        self.terminating.then(|| Status::forbidden(&self.group, &self.plural, name, why))
    }
}

/// The rules by which stored objects are indexed: the selectable fields of all versions.
struct Indexed(&'static [&'static str]);

impl Strategy for Indexed {
    fn fields(&self) -> &'static [&'static str] {
        self.0
    }
}

/// What is served of one definition.
struct Served {
    uid: String,
    group: String,
    plural: String,
    /// A digest of what it was made from: spec, names, and whether it is going.
    made_from: Vec<u8>,
    collection: Arc<Collection>,
    /// The stored version, served or not.
    stored: Option<Arc<Kind>>,
    fields: &'static [&'static str],
}

/// The one writer of definitions' kinds in the registry.
struct Follower {
    server: Arc<Inner>,
    definitions: Arc<Collection>,
    served: HashMap<String, Served>,
    /// Definitions that are cleaned up, with their uids: the next of a name is another.
    cleaning: HashMap<String, (String, CancellationToken)>,
    /// What other definitions have to know of each, with the revision it was read from: definitions are large.
    briefs: HashMap<String, (Revision, Value)>,
    /// Whether definitions that appear are new; what is there at the start may be old.
    started: bool,
}

/// Serves every established definition, and follows definitions from then on.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn start(server: &Arc<Inner>) -> Result<(), Status> {
    let definitions = server.collection(GROUP, PLURAL)?;
    let mut follower = Follower {
        server: Arc::clone(server),
        definitions: Arc::clone(&definitions),
        served: HashMap::new(),
        cleaning: HashMap::new(),
        briefs: HashMap::new(),
        started: false,
    };
    let watcher = follower.catch_up().await?;
    follower.started = true;
    tokio::spawn(follower.run(watcher));
    Ok(())
}

impl Follower {
    /// Brings everything in line with what is stored; the watch begins where that was read.
    async fn catch_up(&mut self) -> Result<Watcher, Status> {
        let (snapshot, watcher) = self.definitions.follow().await?;
        let present: Vec<String> = snapshot.objects.iter().map(|o| o.name().to_owned()).collect();
        let gone: Vec<String> = self.served.keys().filter(|n| !present.contains(n)).cloned().collect();
        for name in gone {
            self.withdraw(&name).await?;
        }
        for name in present {
            self.settle(&name).await?;
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
            let done = match event {
                Some(Ok(event)) => self.changed(event.object.name()).await,
                // The watch fell behind or the store is closing: begin anew.
                Some(Err(_)) | None => Err(Status::unavailable("the watch of definitions ended")),
            };
            let Err(mut why) = done else { continue };
            loop {
                tracing::warn!(why = %why.message, "definitions are read anew");
                tokio::select! {
                    () = tokio::time::sleep(PAUSE) => {}
                    () = stop.cancelled() => return,
                }
                match self.catch_up().await {
                    Ok(w) => {
                        watcher = w;
                        break;
                    }
                    Err(e) => why = e,
                }
            }
        }
    }

    /// A definition changed. Names it gave up may be what others wait for.
    async fn changed(&mut self, name: &str) -> Result<(), Status> {
        self.settle(name).await?;
        let waiting = |crd: &Value| meta::name(crd) != name && !names::established(&crd["status"]);
        self.read_briefs();
        let others: Vec<String> =
            self.briefs.values().map(|(_, c)| c).filter(|c| waiting(c)).map(|c| meta::name(c).to_owned()).collect();
        for other in others {
            self.settle(&other).await?;
        }
        Ok(())
    }

    /// Brings [`Follower::briefs`] up to date; only what changed is read.
    fn read_briefs(&mut self) {
        let present = self.definitions.cache.list(&self.definitions.prefix).objects;
        let mut briefs = HashMap::with_capacity(present.len());
        for object in present {
            let name = object.name().to_owned();
            let known = self.briefs.remove(&name).filter(|(revision, _)| *revision == object.revision);
            let brief = known.unwrap_or_else(|| {
                let crd: Value = serde_json::from_slice(&object.value).unwrap_or_default();
                let brief = serde_json::json!({"metadata": {"name": name}, "spec": {"group": crd["spec"]["group"]},
                    "status": crd["status"]});
                (object.revision, brief)
            });
            briefs.insert(name, brief);
        }
        self.briefs = briefs;
    }

    /// Brings one definition in line: names, kinds, conditions, cleaning up.
    async fn settle(&mut self, name: &str) -> Result<(), Status> {
        let Some(found) = self.definitions.peek("", name) else {
            return self.withdraw(name).await;
        };
        let Ok(crd) = serde_json::from_slice::<Value>(&found.value) else { return Ok(()) };
        self.read_briefs();
        let all = self.briefs.values().map(|(_, brief)| brief);
        let status = names::settle(&crd, all, &crate::verbs::write::now());
        let mut wanted = crd.clone();
        wanted["status"] = status;
        if names::established(&wanted["status"]) {
            self.serve(&wanted, found.revision).await?;
        } else {
            self.withdraw(name).await?;
        }
        if wanted["status"] != crd["status"] {
            if let Ok(kind) = self.server.kind(GROUP, PLURAL) {
                ownership::track_own(&kind, &mut wanted, &crd);
            }
            let payload = object::encode(&wanted);
            match self.definitions.store.commit(&found.key, Compare::At(found.revision), Op::Put(payload)).await {
                // A conflict means that somebody wrote in between: the watch tells, and this runs again.
                Ok(_) | Err(Error::Conflict { .. }) => {}
                Err(e) => return Err(storage_error(e)),
            }
        }
        if meta::deleting(&wanted) {
            self.clean(&wanted);
        }
        match self.served.get(name) {
            Some(s) => services::settle(&self.server, &s.group).await,
            None => Ok(()),
        }
    }

    /// Puts the kinds of an established definition into the registry, unless they are there.
    async fn serve(&mut self, crd: &Value, revision: Revision) -> Result<(), Status> {
        let deleting = meta::deleting(crd);
        let made_from = (&crd["spec"], &crd["status"]["acceptedNames"], deleting, meta::uid(crd));
        let made_from = serde_json::to_vec(&made_from).map_err(Status::internal)?;
        let made_from = digest(&SHA256, &made_from).as_ref().to_vec();
        let known = self.served.get(meta::name(crd));
        if known.is_some_and(|s| s.made_from == made_from) {
            return Ok(());
        }
        let Some(definition) = Definition::compile(crd) else { return Ok(()) };
        let same = |s: &&Served| {
            s.uid == definition.uid && s.fields == definition.fields && s.collection.namespaced == definition.namespaced
        };
        let collection = match known.filter(same) {
            Some(s) => Arc::clone(&s.collection),
            None => Arc::new(open(&self.server, &definition, if self.started { revision } else { 0 }).await?),
        };
        let conversion = Conversion::parse(&crd["spec"]["conversion"]);
        let kind = |v: &Version| {
            let hooks = CustomHooks {
                group: definition.group.clone(),
                plural: definition.plural.clone(),
                terminating: deleting,
            };
            Arc::new(Kind {
                resource: v.resource.clone(),
                strategy: Arc::clone(&v.strategy) as Arc<dyn Strategy>,
                hooks: Arc::new(hooks),
                conversion: conversion.clone(),
                collection: Some(Arc::clone(&collection)),
                ended: CancellationToken::new(),
            })
        };
        let kinds = definition.versions.iter().map(kind).collect();
        let stored = definition.stored.as_ref().map(kind);
        replace(&self.server, &definition.group, &definition.plural, kinds);
        let served = Served {
            uid: definition.uid,
            group: definition.group,
            plural: definition.plural,
            made_from,
            collection,
            stored,
            fields: definition.fields,
        };
        self.served.insert(definition.name, served);
        Ok(())
    }

    async fn withdraw(&mut self, name: &str) -> Result<(), Status> {
        if let Some((_, task)) = self.cleaning.remove(name) {
            task.cancel();
        }
        if let Some(s) = self.served.remove(name) {
            replace(&self.server, &s.group, &s.plural, vec![]);
            services::settle(&self.server, &s.group).await?;
        }
        Ok(())
    }

    /// Begins to delete the objects of a definition that is being deleted.
    fn clean(&mut self, crd: &Value) {
        let name = meta::name(crd).to_owned();
        let uid = meta::uid(crd).to_owned();
        match self.cleaning.get(&name) {
            Some((known, _)) if *known == uid => return,
            Some((_, other)) => other.cancel(),
            None => {}
        }
        let stop = self.server.shutdown.child_token();
        self.cleaning.insert(name.clone(), (uid, stop.clone()));
        let stored = self.served.get(&name).and_then(|s| s.stored.clone());
        let (server, definitions) = (Arc::clone(&self.server), Arc::clone(&self.definitions));
        tokio::spawn(async move {
            tokio::select! {
                () = cleanup::run(&server, &definitions, &name, stored.as_ref()) => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn open(server: &Inner, definition: &Definition, since: Revision) -> Result<Collection, Status> {
    let prefix = format!("/registry/{}/{}/", definition.group, definition.plural);
    let indexed = Arc::new(Indexed(definition.fields));
    Collection::open(Arc::clone(&server.store), prefix, definition.namespaced, indexed, since)
        .await
        .map_err(storage_error)
}

/// Swaps the registry for one with these kinds.
fn replace(server: &Inner, group: &str, plural: &str, kinds: Vec<Arc<Kind>>) {
    let mut gone = vec![];
    server.registry.rcu(|registry| {
        let mut registry = Registry::clone(registry);
        gone = registry.replace(group, plural, kinds.clone());
        registry
    });
    // Only now: whoever is told to come back finds what is new.
    for kind in gone {
        kind.ended.cancel();
    }
}
