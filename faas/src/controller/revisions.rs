//! Revisions: made when the code changes, tried before they serve, forgotten when they are many.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use skiff_controllers::runtime::controller_ref;
use skiff_controllers::runtime::events::Level;
use skiff_controllers::runtime::informer::split;
use skiff_controllers::runtime::worker::{Error, code};

use super::status::{Fault, Seen, condition, on_nodes};
use super::{AGAIN, Controller, HISTORY, entry, names};
use crate::api::{FUNCTION, Function, FunctionRevision, FunctionRevisionSpec};
use crate::gateway::fleet::Fleet;
use crate::gateway::hub::Serving;
use crate::runtime::{Source, fetch};
use crate::scale::{Settings, concurrency};

/// Longest name of a function: with the number of a revision it must be a label's value.
const NAME_MAX: usize = 56;

/// Whether a revision may get requests: what its condition says.
pub(super) fn ready(revision: &FunctionRevision) -> Option<bool> {
    let conditions = revision.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let ready = conditions.iter().find(|c| c.type_ == "Ready")?;
    match ready.status.as_str() {
        "True" => Some(true),
        "False" => Some(false),
        _ => None,
    }
}

/// Whether it is ready because it was seen to start.
fn proven(revision: &FunctionRevision) -> bool {
    let conditions = revision.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True" && c.reason == "Started")
}

impl Controller {
    /// Makes a revision when the code is not that of the newest one. What keeps the function's owner from that.
    pub(super) async fn revise(&self, function: &Arc<Function>) -> Result<Option<Fault>, Error> {
        let (namespace, name) = names(&**function);
        let fault = |reason: &str, message: String| Ok(Some(Fault { reason: reason.to_owned(), message }));
        if name.len() > NAME_MAX {
            return fault("NameTooLong", format!("a function's name has at most {NAME_MAX} characters"));
        }
        let newest = self.revisions_of(namespace, name).pop();
        let generation = function.metadata.generation.unwrap_or(1);
        let code = &function.spec.code;
        let outside = code.source.config_map.is_some();
        // Code in the function itself changes with its generation only.
        if !outside && newest.as_ref().is_some_and(|r| r.spec.generation == generation || r.spec.code == *code) {
            return Ok(None);
        }
        let source = match fetch(&self.client, namespace, code).await {
            Ok(source) => source,
            Err(e) if e.is_permanent() => return fault("SourceInvalid", e.to_string()),
            Err(e) => return Err(Error::Other(e.to_string())),
        };
        let digest = source.digest(code);
        if newest.as_ref().is_some_and(|r| r.spec.digest == digest) {
            return Ok(None);
        }
        if let Some(processes) = self.classes.processes.as_ref().filter(|_| !code.node_selector.is_empty()) {
            processes.look().await;
        }
        if let Err(message) = self.classes.of(code) {
            return fault("IsolationUnavailable", message);
        }
        let number = newest.map_or(0, |r| r.spec.number) + 1;
        self.make(function, number, generation, digest, &source).await?;
        Ok(None)
    }

    async fn make(
        &self,
        function: &Arc<Function>,
        number: i64,
        generation: i64,
        digest: String,
        source: &Source,
    ) -> Result<(), Error> {
        let (namespace, name) = names(&**function);
        let revision = FunctionRevision {
            metadata: ObjectMeta {
                name: Some(format!("{name}-{number:05}")),
                namespace: Some(namespace.to_owned()),
                labels: Some(BTreeMap::from([(FUNCTION.to_owned(), name.to_owned())])),
                owner_references: Some(vec![controller_ref(&**function)]),
                ..ObjectMeta::default()
            },
            spec: FunctionRevisionSpec {
                function: name.to_owned(),
                number,
                generation,
                code: function.spec.code.clone(),
                digest,
            },
            status: None,
        };
        let api = Api::<FunctionRevision>::namespaced(self.client.clone(), namespace);
        let made = match api.create(&PostParams::default(), &revision).await {
            Err(e) if code(&e) == 409 => {
                // Of an earlier try, or of a function of this name that is being forgotten.
                return Err(Error::Other("the revision exists already".into()));
            }
            made => made?,
        };
        if function.spec.code.source.config_map.is_some() {
            // Whatever becomes of the ConfigMap, this revision stays what it is.
            self.classes.pods.prepare(&made, source).await.map_err(|e| Error::Other(format!("{e:#}")))?;
        }
        let message = format!("made revision {name}-{number:05}");
        self.recorder.note(&**function, Level::Normal, "RevisionCreated", message);
        // The next look at this function must not make it again.
        self.prepare(&Arc::new(made.clone()));
        self.revisions.apply(made);
        Ok(())
    }

    /// Says of the newest revision whether it may get requests, and starts it where that has to be seen first.
    pub(super) async fn judge(
        &self,
        function: &Arc<Function>,
        revisions: &[Arc<FunctionRevision>],
        seen: &mut Seen,
    ) -> Result<Option<Duration>, Error> {
        let Some(newest) = revisions.last() else { return Ok(None) };
        let fleet = match self.fleet(newest) {
            Ok(fleet) => fleet,
            Err(message) => {
                seen.source.get_or_insert(Fault { reason: "IsolationUnavailable".into(), message });
                return Ok(None);
            }
        };
        let report = fleet.report();
        let older = revisions[..revisions.len() - 1].iter().any(|r| ready(r) == Some(true));
        let scale = function.spec.scale.clone().unwrap_or_default();
        let initial = scale.initial.unwrap_or(1).max(u32::from(older));
        let present = ready(newest);
        let mut again = None;
        if report.ready > 0 || (report.proven && report.failure.is_none()) {
            if !proven(newest) {
                self.say(newest, &fleet, "True", "Started", "an instance of it was started").await?;
                let message = format!("revision {} is ready", names(&**newest).1);
                self.recorder.note(&**function, Level::Normal, "RevisionReady", message);
            }
        } else if let Some(why) = &report.failure {
            // What once started keeps its place: the trouble is not of its code alone.
            if !proven(newest) && self.say(newest, &fleet, "False", "StartFailed", why).await? {
                let message = format!("revision {} does not start: {why}", names(&**newest).1);
                self.recorder.note(&**function, Level::Warning, "RevisionFailed", message);
            }
            again = older.then_some(AGAIN);
            seen.failure = Some(Fault { reason: "StartFailed".into(), message: why.clone() });
        } else if present != Some(true) && initial == 0 {
            self.say(newest, &fleet, "True", "NotStartedYet", "its first request starts it").await?;
        } else if present.is_none() && newest.status.is_none() {
            self.say(newest, &fleet, "Unknown", "Starting", "it is started before it gets requests").await?;
        }
        if initial > 0 && !report.proven && ready(newest) != Some(true) && report.starting == 0 {
            let settings = Settings::of(&function.spec, fleet.limits.concurrency);
            let first_time = present.is_none();
            if first_time || report.failure.is_none() {
                fleet.configure(Settings { min: 0, ..settings }, initial);
            }
        }
        Ok(again)
    }

    /// Writes the status of a revision. Whether its `Ready` is now another.
    async fn say(
        &self,
        revision: &Arc<FunctionRevision>,
        fleet: &Arc<Fleet>,
        status: &str,
        reason: &str,
        message: &str,
    ) -> Result<bool, Error> {
        let before = revision.status.as_ref().map(|s| s.conditions.clone()).unwrap_or_default();
        let mut conditions = before.clone();
        condition(&mut conditions, "Ready", status, reason, message, None);
        if conditions == before {
            return Ok(false);
        }
        let (namespace, name) = names(&**revision);
        let api = Api::<FunctionRevision>::namespaced(self.client.clone(), namespace);
        let built = revision.status.as_ref().and_then(|s| s.image.as_ref());
        let image = revision.spec.code.source.image.as_ref().or(built);
        let mut patch = json!({"status": {"conditions": conditions, "class": fleet.class()}});
        // None is said of one that was built meanwhile, too: it must not be taken back.
        if let Some(image) = image {
            patch["status"]["image"] = json!(image);
        }
        match api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            // Seen at once, so that this step goes on with it.
            Ok(written) => self.revisions.apply(written),
            Err(e) if code(&e) == 404 => {}
            Err(e) => return Err(e.into()),
        }
        let was =
            |c: &[Condition]| c.iter().find(|c| c.type_ == "Ready").map(|c| (c.status.clone(), c.message.clone()));
        Ok(was(&before) != was(&conditions))
    }

    /// Tells the gateway where requests go, and fleets what they must have.
    pub(super) fn route(&self, function: &Arc<Function>, revisions: &[Arc<FunctionRevision>], seen: &mut Seen) {
        seen.latest = revisions.last().map(|r| names(&**r).1.to_owned());
        let latest_ready = revisions.iter().rev().find(|r| ready(r) == Some(true)).or_else(|| {
            // The only one there is: each request may try again, after a rest.
            revisions.last().filter(|_| seen.failure.is_some() && revisions.iter().all(|r| ready(r) != Some(true)))
        });
        seen.serving = latest_ready.map(|r| names(&**r).1.to_owned());
        seen.place = latest_ready.and_then(|r| Some(self.classes.running(r).ok()?.place(&r.spec.code)));
        let mut shares: Vec<(u32, Arc<Fleet>)> = vec![];
        let mut tags = HashMap::new();
        let default = latest_ready.and_then(|r| self.fleet(r).ok());
        for share in &function.spec.traffic {
            let named = share.revision.as_ref();
            let found = named.map(|n| revisions.iter().find(|r| names(&***r).1 == n));
            let fleet = match found {
                None => default.clone(),
                Some(Some(revision)) => self.fleet(revision).ok(),
                Some(None) => {
                    let message = format!("traffic names {}, which is no revision", named.map_or("", String::as_str));
                    seen.traffic = Some(Fault { reason: "RevisionMissing".into(), message });
                    default.clone()
                }
            };
            let Some(fleet) = fleet else { continue };
            if let Some(tag) = &share.tag {
                tags.insert(tag.clone(), Arc::clone(&fleet));
            }
            shares.push((share.percent, fleet));
        }
        if function.spec.traffic.is_empty() {
            shares.extend(default.map(|f| (100, f)));
        }
        let serving = match (&seen.source, shares.iter().map(|(percent, _)| percent).sum::<u32>()) {
            (Some(fault), 0) => Serving::Failed(fault.message.clone()),
            (None, 0) => Serving::Pending,
            _ => Serving::Revisions { shares: shares.clone(), tags: tags.clone() },
        };
        self.hub.put(entry(function, serving));
        let serves = |fleet: &Arc<Fleet>| {
            shares.iter().any(|(percent, f)| *percent > 0 && Arc::ptr_eq(f, fleet))
                || tags.values().any(|f| Arc::ptr_eq(f, fleet))
        };
        for revision in revisions {
            let (namespace, name) = names(&**revision);
            // Old revisions that nobody asks for have no fleet.
            let Some(fleet) = self.hub.known(namespace, name) else { continue };
            fleet.renew(revision);
            let settings = Settings::of(&function.spec, concurrency(&revision.spec.code, fleet.class()));
            let settings = if serves(&fleet) { settings } else { Settings { min: 0, replicas: 0, ..settings } };
            fleet.configure(settings, 0);
            let report = fleet.report();
            seen.instances += report.ready;
            seen.starting += report.starting;
            seen.no_room = seen.no_room.take().or(report.no_room);
            seen.per_revision.push((name.to_owned(), report.nodes));
        }
    }

    /// Deletes what is older than the history and gets no requests.
    pub(super) async fn forget_old(
        &self,
        function: &Arc<Function>,
        revisions: &[Arc<FunctionRevision>],
    ) -> Result<(), Error> {
        let keep = function.spec.revision_history_limit.and_then(|n| usize::try_from(n).ok()).unwrap_or(HISTORY);
        let used = |name: &str| function.spec.traffic.iter().any(|t| t.revision.as_deref() == Some(name));
        let newest = revisions.last().map(|r| names(&**r).1);
        let serving = revisions.iter().rev().find(|r| ready(r) == Some(true)).map(|r| names(&**r).1);
        let old: Vec<_> = revisions
            .iter()
            .filter(|r| {
                let name = names(&***r).1;
                Some(name) != newest && Some(name) != serving && !used(name)
            })
            .collect();
        for revision in &old[..old.len().saturating_sub(keep)] {
            let (namespace, name) = names(&***revision);
            let api = Api::<FunctionRevision>::namespaced(self.client.clone(), namespace);
            match api.delete(name, &DeleteParams::background()).await {
                Ok(_) => {}
                Err(e) if code(&e) == 404 => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Writes a function's status where it is another than before.
    pub(super) async fn report(
        &self,
        function: &Arc<Function>,
        revisions: &[Arc<FunctionRevision>],
        seen: &Seen,
    ) -> Result<(), Error> {
        let key = format!("{}/{}", names(&**function).0, names(&**function).1);
        let (namespace, name) = split(&key);
        let before = function.status.clone().unwrap_or_default();
        let after = seen.status(function, &before, &self.place.domain);
        if after != before {
            let mut patch = json!({"status": {
                "observedGeneration": after.observed_generation, "conditions": after.conditions, "url": after.url,
                "instances": after.instances, "nodes": after.nodes, "state": after.state, "latestRevision": after.latest_revision,
                "latestReadyRevision": after.latest_ready_revision, "selector": after.selector,
            }});
            patch["metadata"] = json!({"uid": function.metadata.uid});
            let api = Api::<Function>::namespaced(self.client.clone(), namespace);
            match api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(written) => self.functions.apply(written),
                // Gone, or another of this name: its own turn comes.
                Err(e) if matches!(code(&e), 404 | 409) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
            if let Some((level, reason, message)) = seen.news(&before, &after) {
                self.recorder.note(&**function, level, reason, message);
            }
        }
        for (name, nodes) in &seen.per_revision {
            let (nodes, instances) = (on_nodes([nodes]), nodes.values().sum::<u32>());
            let known = revisions.iter().find(|r| names(&***r).1 == name).and_then(|r| r.status.as_ref());
            if known.is_some_and(|s| s.instances != instances as i32 || s.nodes != nodes) {
                let api = Api::<FunctionRevision>::namespaced(self.client.clone(), namespace);
                let patch = json!({"status": {"instances": instances, "nodes": nodes}});
                match api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await {
                    Ok(written) => self.revisions.apply(written),
                    Err(e) if code(&e) == 404 => {}
                    Err(e) => return Err(e.into()),
                }
            }
        }
        Ok(())
    }
}

/// Now, for conditions.
pub(super) fn now() -> Time {
    skiff_controllers::runtime::now()
}
