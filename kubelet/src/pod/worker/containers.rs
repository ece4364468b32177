//! Starting, resizing and ending single containers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container as Spec, LifecycleHandler, Pod, Volume};
use tokio::sync::oneshot;

use super::{Shared, Snapshot, Worker};
use crate::events::Kind as EventKind;
use crate::pod::config::{self, Context};
use crate::pod::fields::Facts;
use crate::pod::hooks;
use crate::pod::images::Fetch;
use crate::pod::plan::{Kill, Start};
use crate::pod::spec::{self, Role};
use crate::pod::status::{self, Waiting};
use crate::runtime::{ContainerConfig, Error as RuntimeError, State, label};

/// A container that cannot be configured is tried again this often; a change of what it refers to wakes it earlier.
const CONFIG_RETRY: Duration = Duration::from_secs(5);
/// Grace given to stop hooks when the grace period is used up.
const MINIMUM_GRACE: Duration = Duration::from_secs(2);

/// The volumes of a container that show an image.
fn image_volumes(pod: &Pod, container: &Spec) -> Vec<Volume> {
    let mounted = |v: &Volume| container.volume_mounts.iter().flatten().any(|m| m.name == v.name);
    let volumes = spec::spec(pod).volumes.iter().flatten();
    volumes.filter(|v| v.image.is_some() && mounted(v)).cloned().collect()
}

/// A container that was made while its sandbox started.
pub(super) struct Ahead {
    id: String,
    made: ContainerConfig,
    attempt: i32,
    /// Digest of what the pod said of it then.
    spec: String,
}

impl Ahead {
    /// Whether it is what is to be started there now.
    fn is_for(&self, sandbox: &str, start: &Start) -> bool {
        self.made.sandbox == sandbox && self.attempt == start.attempt && self.spec == spec::hash(&start.container)
    }
}

fn fetch(shared: &Shared) -> Fetch<'_> {
    Fetch {
        runtime: &*shared.runtime,
        recorder: &shared.recorder,
        sources: &shared.sources,
        more: shared.config.functions.as_deref(),
    }
}

impl Worker {
    /// Starts one container. `Some` delay: not now.
    pub(super) async fn start(
        &mut self,
        snapshot: &Snapshot,
        sandbox: &str,
        start: &Start,
    ) -> Result<Option<Duration>, anyhow::Error> {
        let Start { role, container, attempt, previous, leftover } = start;
        let name = &container.name;
        let field = spec::field_path(*role, name);
        let now = Instant::now();
        if let Some(previous) = previous {
            let ended = previous.finished.unwrap_or_else(Timestamp::now);
            let ago = Timestamp::now().duration_since(ended).unsigned_abs();
            let failed = now.checked_sub(ago).unwrap_or(now);
            let backoff = self.crashes.entry(name.clone()).or_default();
            if let Some(left) = backoff.remaining(failed, now) {
                let about = spec::full_name(&self.pod);
                let message = format!("Back-off restarting failed container {name} in pod {about}");
                self.shared.recorder.pod(&self.pod, Some(field), EventKind::Warning, "BackOff", message);
                let delay = backoff.delay().as_secs();
                let mut text = format!("{}m{}s", delay / 60, delay % 60);
                if delay < 60 {
                    text = format!("{delay}s");
                }
                let message = format!("back-off {text} restarting failed container={name} pod={about}");
                self.waiting.insert(name.clone(), Waiting { reason: "CrashLoopBackOff".into(), message });
                return Ok(Some(left));
            }
        }
        let ahead = self.ahead.remove(name);
        if let Some(ahead) = ahead.filter(|a| leftover.as_ref() == Some(&a.id) && a.is_for(sandbox, start)) {
            let failed = self.run_made(&field, *role, container, &ahead.made, ahead.id).await?;
            return Ok(self.settle(&field, name, failed));
        }
        if let Some(leftover) = leftover {
            self.shared.runtime.remove(leftover).await?;
        }
        let shared = self.shared.clone();
        let fetch = fetch(&shared);
        let (reference, policy) = (container.image.as_deref(), container.image_pull_policy.as_deref());
        let image = match fetch.ensure(&mut self.pulls, &self.pod, &field, reference, policy).await {
            Ok(image) => image,
            Err(waiting) => return Ok(Some(self.no_image(&field, name, waiting))),
        };
        for volume in image_volumes(&self.pod, container) {
            let Some(source) = volume.image.as_ref() else { continue };
            if shared.volumes.image_is_mounted(&self.pod, &volume).await {
                continue;
            }
            let (reference, policy) = (source.reference.as_deref(), source.pull_policy.as_deref());
            let shown = match fetch.ensure(&mut self.pulls, &self.pod, &field, reference, policy).await {
                Ok(shown) => shown,
                Err(waiting) => return Ok(Some(self.no_image(&field, name, waiting))),
            };
            if let Err(message) = shared.volumes.mount_image(&*shared.runtime, &self.pod, &volume, &shown).await {
                self.fail(&field, name, Waiting { reason: "CreateContainerConfigError".into(), message });
                return Ok(Some(CONFIG_RETRY));
            }
        }
        let facts = Facts { pod_ip: self.pod_ip(), ..self.facts() };
        let context = Context {
            config: &shared.config,
            pod: &self.pod,
            facts: &facts,
            sources: &shared.sources,
            volumes: &shared.volumes,
            sandbox,
        };
        let made = match config::container(&context, container, &image, *attempt).await {
            Ok(made) => made,
            Err(error) => {
                self.fail(&field, name, Waiting { reason: error.reason.into(), message: error.message });
                return Ok(Some(CONFIG_RETRY));
            }
        };
        let failed = self.create_and_start(&field, *role, container, &made).await?;
        // Dead attempts older than the last one serve nobody: `logs --previous` reads one back.
        for old in
            status::attempts(&snapshot.containers, name).into_iter().filter(|c| c.state != State::Running).skip(1)
        {
            shared.runtime.remove(&old.id).await?;
        }
        if previous.is_some() {
            let backoff = self.crashes.entry(name.clone()).or_default();
            backoff.tried(now, now);
        }
        Ok(self.settle(&field, name, failed))
    }

    /// Notes how a start went; answers when to try again.
    fn settle(&mut self, field: &str, name: &str, failed: Option<Waiting>) -> Option<Duration> {
        match failed {
            Some(waiting) => {
                self.fail(field, name, waiting);
                Some(CONFIG_RETRY)
            }
            None => {
                self.waiting.remove(name);
                None
            }
        }
    }

    /// Makes the containers that come first in a sandbox which starts meanwhile, as far as nothing has to be fetched or
    /// waited for. What fails here is not told: the start itself will meet it, and then removes what is left over.
    pub(super) async fn make_ahead(&mut self, snapshot: &Snapshot, sandbox: oneshot::Receiver<String>) {
        self.ahead.clear();
        // Without an address the container's environment and files cannot be known.
        let (Some(pod_ip), Ok(sandbox)) = (self.pod_ip(), sandbox.await) else { return };
        let shared = self.shared.clone();
        let facts = Facts { pod_ip: Some(pod_ip), ..self.facts() };
        for start in self.plan_in(snapshot, Some(&sandbox)).start {
            let Start { role, container, attempt, previous, leftover } = &start;
            if previous.is_some() || leftover.is_some() || !image_volumes(&self.pod, container).is_empty() {
                continue;
            }
            let field = spec::field_path(*role, &container.name);
            let (reference, policy) = (container.image.as_deref(), container.image_pull_policy.as_deref());
            let Some(image) = fetch(&shared).present(&self.pod, &field, reference, policy).await else { continue };
            let context = Context {
                config: &shared.config,
                pod: &self.pod,
                facts: &facts,
                sources: &shared.sources,
                volumes: &shared.volumes,
                sandbox: &sandbox,
            };
            let Ok(made) = config::container(&context, container, &image, *attempt).await else { continue };
            let Ok(id) = shared.runtime.create_container(&made).await else { continue };
            shared.recorder.pod(&self.pod, Some(field), EventKind::Normal, "Created", "Container created");
            self.ahead
                .insert(container.name.clone(), Ahead { id, made, attempt: *attempt, spec: spec::hash(container) });
        }
    }

    /// Notes that an image is missing; answers when to try again.
    fn no_image(&mut self, field: &str, name: &str, waiting: Waiting) -> Duration {
        let retry = self.pulls.next_try(Instant::now()).unwrap_or(CONFIG_RETRY);
        self.fail(field, name, waiting);
        retry
    }

    pub(super) async fn create_and_start(
        &mut self,
        field: &str,
        role: Role,
        container: &Spec,
        made: &ContainerConfig,
    ) -> Result<Option<Waiting>, anyhow::Error> {
        let shared = self.shared.clone();
        let event = |kind, reason: &str, message: &str| {
            shared.recorder.pod(&self.pod, Some(field.to_string()), kind, reason, message)
        };
        let turn = shared.starts.acquire().await?;
        let id = match shared.runtime.create_container(made).await {
            Ok(id) => id,
            Err(error @ (RuntimeError::Unavailable(_) | RuntimeError::Timeout(_))) => return Err(error.into()),
            // An earlier step that was cut short made it; the next look finds it as a leftover.
            Err(RuntimeError::Conflict(message)) if message.contains("is already in use") => return Ok(None),
            Err(error) => {
                return Ok(Some(Waiting { reason: "CreateContainerError".into(), message: error.to_string() }));
            }
        };
        drop(turn);
        event(EventKind::Normal, "Created", "Container created");
        self.run_made(field, role, container, made, id).await
    }

    /// Starts what was made.
    async fn run_made(
        &mut self,
        field: &str,
        role: Role,
        container: &Spec,
        made: &ContainerConfig,
        id: String,
    ) -> Result<Option<Waiting>, anyhow::Error> {
        let shared = self.shared.clone();
        let event = |kind, reason: &str, message: &str| {
            shared.recorder.pod(&self.pod, Some(field.to_string()), kind, reason, message)
        };
        let turn = shared.starts.acquire().await?;
        if let Err(error) = shared.runtime.start(&id).await {
            if matches!(error, RuntimeError::Unavailable(_) | RuntimeError::Timeout(_)) {
                return Err(error.into());
            }
            return Ok(Some(Waiting { reason: "RunContainerError".into(), message: error.to_string() }));
        }
        drop(turn);
        event(EventKind::Normal, "Started", "Container started");
        self.resources.insert(id.clone(), made.labels.get(label::RESOURCES).cloned().unwrap_or_default());
        let Some(hook) = container.lifecycle.as_ref().and_then(|l| l.post_start.clone()) else { return Ok(None) };
        if let Err(error) = hooks::run(&*shared.runtime, &id, container, &hook, self.pod_ip()).await {
            let message = format!("PostStartHook failed: {error}");
            event(EventKind::Warning, "FailedPostStartHook", &message);
            let kill =
                Kill { container: (role, container.clone()), id, message: "FailedPostStartHook".into(), grace: None };
            self.kill(&kill).await;
            return Ok(Some(Waiting { reason: "PostStartHookError".into(), message }));
        }
        Ok(None)
    }

    /// Notes why a container cannot be started.
    fn fail(&mut self, field: &str, name: &str, waiting: Waiting) {
        let message = match waiting.reason.as_str() {
            "ErrImagePull" | "ImagePullBackOff" | "ErrImageNeverPull" | "InvalidImageName" | "ImageInspectError" => {
                format!("Error: {}", waiting.reason)
            }
            _ => format!("Error: {}", waiting.message),
        };
        self.shared.recorder.pod(&self.pod, Some(field.into()), EventKind::Warning, "Failed", message);
        self.waiting.insert(name.into(), waiting);
    }

    /// Brings running containers' limits to what the spec says now.
    pub(super) async fn resize(&mut self, snapshot: &Snapshot) {
        for (_, container) in spec::containers(&self.pod) {
            let attempts = status::attempts(&snapshot.containers, &container.name);
            let Some(running) = attempts.first().filter(|c| c.state == State::Running) else { continue };
            let (shares, quota, memory) = config::resources(&container);
            let wanted = format!("{shares}/{quota}/{memory}");
            let applied =
                self.resources.get(&running.id).cloned().unwrap_or_else(|| running.label(label::RESOURCES).into());
            if applied == wanted || applied.is_empty() {
                continue;
            }
            match self.shared.runtime.update_resources(&running.id, shares, quota, memory).await {
                Ok(()) => drop(self.resources.insert(running.id.clone(), wanted)),
                Err(error) => tracing::warn!(%error, container = container.name, "resize failed"),
            }
        }
    }

    /// Ends one container: event, stop hook, signal, grace, kill.
    pub(super) async fn kill(&self, kill: &Kill) {
        let (role, container) = &kill.container;
        let field = spec::field_path(*role, &container.name);
        self.shared.recorder.pod(&self.pod, Some(field), EventKind::Normal, "Killing", kill.message.clone());
        let grace = kill.grace.unwrap_or_else(|| spec::grace(&self.pod)).max(0) as u64;
        self.ending(&kill.id, container, Instant::now() + Duration::from_secs(grace), true).run().await;
    }

    /// What ends a container.
    pub(super) fn ending(&self, id: &str, container: &Spec, deadline: Instant, hook: bool) -> Ending {
        let hook = container.lifecycle.as_ref().and_then(|l| l.pre_stop.clone()).filter(|_| hook);
        Ending {
            shared: self.shared.clone(),
            pod: self.pod.clone(),
            pod_ip: self.pod_ip(),
            id: id.to_owned(),
            container: container.clone(),
            hook,
            deadline,
        }
    }
}

/// The end of one container. It owns what it needs: its pod is looked after meanwhile.
pub(super) struct Ending {
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    pod_ip: Option<IpAddr>,
    id: String,
    container: Spec,
    hook: Option<LifecycleHandler>,
    deadline: Instant,
}

impl Ending {
    /// Stop hook, signal, wait, kill. Errors are for the next look.
    pub(super) async fn run(self) {
        let Self { shared, pod, pod_ip, id, container, hook, mut deadline } = self;
        let (runtime, id) = (&*shared.runtime, id.as_str());
        if let Some(handler) = &hook
            && deadline > Instant::now()
        {
            let run = hooks::run(runtime, id, &container, handler, pod_ip);
            let failure = match tokio::time::timeout_at(deadline.into(), run).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(format!("PreStopHook failed: {error}")),
                Err(_) => Some("PreStopHook did not complete in the grace period".into()),
            };
            if let Some(message) = failure {
                shared.recorder.pod(&pod, None, EventKind::Warning, "FailedPreStopHook", message);
            }
            deadline = deadline.max(Instant::now() + MINIMUM_GRACE);
        }
        if deadline > Instant::now() {
            if let Err(error) = runtime.terminate(id).await {
                tracing::warn!(%error, id, "stop signal failed");
            }
            match tokio::time::timeout_at(deadline.into(), runtime.wait(id)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => tracing::debug!(%error, id, "waiting for a container failed"),
                Err(_) => {}
            }
        }
        if let Err(error) = runtime.kill(id).await {
            tracing::warn!(%error, id, "kill failed");
            return;
        }
        if tokio::time::timeout(MINIMUM_GRACE * 5, runtime.wait(id)).await.is_err() {
            tracing::warn!(id, "container survives its kill");
        }
    }
}
