//! Docker Engine as the container runtime.
//!
//! Limits: API 1.41 or newer; `json-file` or `local` logging, so that logs can be read back. Why bollard and not the
//! engine's command: the socket gives typed errors, events and streams without a process per call.

mod sandbox;

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults};
use bollard::models::{
    ContainerCreateBody, ContainerInspectResponse, ContainerStateStatusEnum, ContainerUpdateBody, DeviceMapping,
    HostConfig, MountBindOptions, MountBindOptionsPropagationEnum, MountType,
};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, CreateImageOptionsBuilder, EventsOptionsBuilder,
    InspectContainerOptions, KillContainerOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptions,
    LogsOptionsBuilder, RemoveContainerOptionsBuilder, ResizeContainerTTYOptionsBuilder, StartContainerOptions,
    StatsOptionsBuilder, WaitContainerOptions,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::{
    Attached, Container, ContainerConfig, Credentials, Error, Event, ExecConfig, Image, Info, LogOptions, Mount, Out,
    OutputStream, Result, Runtime, SandboxConfig, State, Stats, label,
};
use crate::{Config, pause};

/// How long one request to the engine may take. Creating on a busy disk takes seconds; longer means it hangs.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a pull may make no progress.
const PULL_STALL: Duration = Duration::from_secs(120);

/// A connection to the engine, for one node's containers.
pub struct Docker {
    client: bollard::Docker,
    node: String,
    /// Smallest out-of-memory score that may be asked for.
    least_oom_score: i64,
    /// Whether sandboxes make their network namespaces themselves, until the engine is seen not to let them.
    own_network: AtomicBool,
}

impl Docker {
    /// Connects, agrees on an API version and makes sure that the pause image exists.
    pub async fn connect(config: &Config) -> Result<Self> {
        let path = config.docker_socket.to_string_lossy();
        let client = bollard::Docker::connect_with_unix(&path, REQUEST_TIMEOUT.as_secs(), bollard::API_DEFAULT_VERSION)
            .map_err(error)?
            .negotiate_version()
            .await
            .map_err(error)?;
        let (node, own_network) = (config.node_name.clone(), AtomicBool::new(true));
        let docker = Self { client, node, least_oom_score: least_oom_score(), own_network };
        if let Err(Error::NotFound(_)) = docker.image(pause::IMAGE).await {
            docker.import(pause::IMAGE, pause::layer()).await?;
        }
        Ok(docker)
    }

    fn oom_score(&self, wanted: i64) -> i64 {
        wanted.max(self.least_oom_score)
    }

    fn filters(&self, pod_uid: Option<&str>) -> HashMap<String, Vec<String>> {
        let mut labels = vec![format!("{}={}", label::NODE, self.node)];
        labels.extend(pod_uid.map(|uid| format!("{}={uid}", label::POD_UID)));
        HashMap::from([("label".to_string(), labels)])
    }

    fn labels(&self, given: &BTreeMap<String, String>, kind: &str) -> HashMap<String, String> {
        let mut labels: HashMap<_, _> = given.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        labels.insert(label::NODE.into(), self.node.clone());
        labels.insert(label::KIND.into(), kind.into());
        labels
    }

    async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<String> {
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        Ok(timed("create", self.client.create_container(Some(options), body)).await.map_err(error)?.id)
    }
}

/// Says how long the engine took for a call on a pod's way to Running: what is left of that way is this program's own
/// part, which the benchmark reports.
async fn timed<T>(call: &'static str, work: impl Future<Output = T>) -> T {
    let began = Timestamp::now();
    let done = work.await;
    let took = Timestamp::now().as_microsecond() - began.as_microsecond();
    tracing::debug!(target: "skiff_kubelet::engine", call, began = began.as_microsecond(), took, "engine call");
    done
}

#[async_trait]
impl Runtime for Docker {
    async fn info(&self) -> Result<Info> {
        let info = self.client.info().await.map_err(error)?;
        Ok(Info {
            version: info.server_version.unwrap_or_default(),
            root_dir: info.docker_root_dir.unwrap_or_else(|| "/var/lib/docker".into()),
            os_image: info.operating_system.unwrap_or_default(),
        })
    }

    async fn list(&self, pod_uid: Option<&str>) -> Result<Vec<Container>> {
        let options = ListContainersOptionsBuilder::new().all(true).filters(&self.filters(pod_uid)).build();
        let summaries = timed("list", self.client.list_containers(Some(options))).await.map_err(error)?;
        let inspected = futures::stream::iter(summaries.into_iter().filter_map(|s| s.id))
            .map(|id| async move { self.inspect(&id).await })
            .buffered(8)
            .collect::<Vec<_>>()
            .await;
        // One that vanished between the list and the look is simply not there.
        inspected.into_iter().filter(|r| !matches!(r, Err(Error::NotFound(_)))).collect()
    }

    async fn create_sandbox(&self, config: &SandboxConfig, made: oneshot::Sender<String>) -> Result<String> {
        self.make_sandbox(config, made).await
    }

    async fn create_container(&self, config: &ContainerConfig) -> Result<String> {
        let shared = |host: bool| Some(if host { "host".into() } else { format!("container:{}", config.sandbox) });
        let host_config = HostConfig {
            network_mode: shared(config.host_network),
            ipc_mode: shared(config.host_ipc),
            pid_mode: if config.share_pid || config.host_pid { shared(config.host_pid) } else { None },
            uts_mode: config.host_network.then(|| "host".to_string()),
            mounts: Some(config.mounts.iter().map(bind).collect()),
            devices: Some(
                config
                    .devices
                    .iter()
                    .map(|path| DeviceMapping {
                        path_on_host: Some(path.clone()),
                        path_in_container: Some(path.clone()),
                        cgroup_permissions: Some("rwm".into()),
                    })
                    .collect(),
            ),
            group_add: Some(config.groups.iter().map(ToString::to_string).collect()),
            privileged: Some(config.privileged),
            cap_add: Some(config.cap_add.clone()),
            cap_drop: Some(config.cap_drop.clone()),
            readonly_rootfs: Some(config.read_only_rootfs),
            security_opt: Some(config.security_opt.clone()),
            masked_paths: config.unmasked_proc.then(Vec::new),
            readonly_paths: config.unmasked_proc.then(Vec::new),
            cpu_shares: Some(config.cpu_shares),
            cpu_period: (config.cpu_quota > 0).then_some(100_000),
            cpu_quota: (config.cpu_quota > 0).then_some(config.cpu_quota),
            memory: (config.memory > 0).then_some(config.memory),
            // Swap would let a container outlive its limit.
            memory_swap: (config.memory > 0).then_some(config.memory),
            oom_score_adj: Some(self.oom_score(config.oom_score_adj)),
            ..Default::default()
        };
        let body = ContainerCreateBody {
            image: Some(config.image.clone()),
            entrypoint: config.entrypoint.clone(),
            cmd: config.cmd.clone(),
            env: Some(config.env.clone()),
            working_dir: config.working_dir.clone(),
            labels: Some(self.labels(&config.labels, "container")),
            tty: Some(config.tty),
            open_stdin: Some(config.stdin),
            stdin_once: Some(config.stdin_once),
            user: config.user.clone(),
            // An image's own health check is not Kubernetes' business.
            healthcheck: Some(bollard::models::HealthConfig { test: Some(vec!["NONE".into()]), ..Default::default() }),
            host_config: Some(host_config),
            ..Default::default()
        };
        self.create(&config.name, body).await
    }

    async fn start(&self, id: &str) -> Result<()> {
        let started = timed("start", self.client.start_container(id, None::<StartContainerOptions>)).await;
        started.or_else(gone_is_fine(&[304]))
    }

    async fn terminate(&self, id: &str) -> Result<()> {
        // The image may name another stop signal; the engine's kill does not look at it.
        let inspected = self.client.inspect_container(id, None::<InspectContainerOptions>).await;
        let signal = inspected.ok().and_then(|c| c.config).and_then(|c| c.stop_signal).filter(|s| !s.is_empty());
        let options = KillContainerOptionsBuilder::new().signal(signal.as_deref().unwrap_or("SIGTERM")).build();
        self.client.kill_container(id, Some(options)).await.or_else(gone_is_fine(&[404, 409]))
    }

    async fn kill(&self, id: &str) -> Result<()> {
        let options = KillContainerOptionsBuilder::new().signal("SIGKILL").build();
        self.client.kill_container(id, Some(options)).await.or_else(gone_is_fine(&[404, 409]))
    }

    async fn wait(&self, id: &str) -> Result<()> {
        let mut ended = std::pin::pin!(self.client.wait_container(id, None::<WaitContainerOptions>));
        match ended.next().await {
            // The client reports an exit code other than 0 as an error.
            None | Some(Ok(_) | Err(bollard::errors::Error::DockerContainerWaitError { .. })) => Ok(()),
            Some(Err(cause)) => gone_is_fine(&[404])(cause),
        }
    }

    async fn remove(&self, id: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        // 409: a removal is already under way.
        self.client.remove_container(id, Some(options)).await.or_else(gone_is_fine(&[404, 409]))
    }

    async fn inspect(&self, id: &str) -> Result<Container> {
        let inspected = timed("inspect", self.client.inspect_container(id, None::<InspectContainerOptions>)).await;
        Ok(container(inspected.map_err(error)?))
    }

    async fn update_resources(&self, id: &str, cpu_shares: i64, cpu_quota: i64, memory: i64) -> Result<()> {
        let body = ContainerUpdateBody {
            cpu_shares: Some(cpu_shares),
            cpu_period: Some(100_000),
            cpu_quota: Some(if cpu_quota > 0 { cpu_quota } else { -1 }),
            memory: (memory > 0).then_some(memory),
            memory_swap: (memory > 0).then_some(memory),
            ..Default::default()
        };
        self.client.update_container(id, body).await.map_err(error)
    }

    async fn image(&self, reference: &str) -> Result<Image> {
        let image = timed("image", self.client.inspect_image(reference)).await.map_err(error)?;
        Ok(Image {
            id: image.id.unwrap_or_default(),
            tags: image.repo_tags.unwrap_or_default(),
            digests: image.repo_digests.unwrap_or_default(),
            size: image.size.unwrap_or_default(),
            user: image.config.and_then(|c| c.user).unwrap_or_default(),
        })
    }

    async fn images(&self) -> Result<Vec<Image>> {
        let images = self.client.list_images(None::<ListImagesOptions>).await.map_err(error)?;
        Ok(images
            .into_iter()
            .map(|image| Image {
                id: image.id,
                tags: image.repo_tags,
                digests: image.repo_digests,
                size: image.size,
                user: String::new(),
            })
            .collect())
    }

    async fn pull(&self, reference: &str, credentials: Option<&Credentials>) -> Result<()> {
        let options = CreateImageOptionsBuilder::new().from_image(&with_tag(reference)).build();
        let some = |text: &str| (!text.is_empty()).then(|| text.to_string());
        let credentials = credentials.map(|c| bollard::auth::DockerCredentials {
            username: some(&c.username),
            password: some(&c.password),
            identitytoken: some(&c.identity_token),
            serveraddress: some(&c.server),
            ..Default::default()
        });
        let mut progress = std::pin::pin!(self.client.create_image(Some(options), None, credentials));
        loop {
            match tokio::time::timeout(PULL_STALL, progress.next()).await {
                Err(_) => return Err(Error::Timeout(PULL_STALL)),
                Ok(None) => return Ok(()),
                Ok(Some(step)) => drop(step.map_err(error)?),
            }
        }
    }

    async fn save(&self, id: &str, to: &std::path::Path) -> Result<()> {
        use tokio::io::AsyncWriteExt as _;
        let failed = |e: std::io::Error| Error::Refused(format!("{}: {e}", to.display()));
        let mut file = tokio::fs::File::create(to).await.map_err(failed)?;
        let mut pieces = std::pin::pin!(self.client.export_image(id));
        loop {
            match tokio::time::timeout(PULL_STALL, pieces.next()).await {
                Err(_) => return Err(Error::Timeout(PULL_STALL)),
                Ok(None) => return file.flush().await.map_err(failed),
                Ok(Some(piece)) => file.write_all(&piece.map_err(error)?).await.map_err(failed)?,
            }
        }
    }

    async fn import(&self, reference: &str, layer: Vec<u8>) -> Result<()> {
        let (repo, tag) = reference.rsplit_once(':').unwrap_or((reference, "latest"));
        let options = CreateImageOptionsBuilder::new().from_src("-").repo(repo).tag(tag).build();
        self.client
            .create_image(Some(options), Some(bollard::body_full(layer.into())), None)
            .try_collect::<Vec<_>>()
            .await
            .map_err(error)?;
        Ok(())
    }

    async fn exec(&self, id: &str, config: &ExecConfig) -> Result<Attached> {
        let options = CreateExecOptions {
            attach_stdin: Some(config.stdin),
            attach_stdout: Some(config.stdout),
            attach_stderr: Some(config.stderr && !config.tty),
            tty: Some(config.tty),
            cmd: Some(config.cmd.clone()),
            ..Default::default()
        };
        let exec_id = self.client.create_exec(id, options).await.map_err(error)?.id;
        let start = StartExecOptions { detach: false, tty: config.tty, output_capacity: None };
        match self.client.start_exec(&exec_id, Some(start)).await.map_err(error)? {
            StartExecResults::Attached { output, input } => {
                Ok(Attached { output: Box::pin(output.filter_map(output_item)), input, exec_id })
            }
            StartExecResults::Detached => Err(Error::Refused("the engine detached the command".into())),
        }
    }

    async fn exec_exit_code(&self, exec_id: &str) -> Result<Option<i32>> {
        let exec = self.client.inspect_exec(exec_id).await.map_err(error)?;
        Ok(if exec.running.unwrap_or(false) { None } else { exec.exit_code.map(|code| code as i32) })
    }

    async fn exec_resize(&self, exec_id: &str, width: u16, height: u16) -> Result<()> {
        self.client.resize_exec(exec_id, ResizeExecOptions { height, width }).await.map_err(error)
    }

    async fn attach(&self, id: &str, stdin: bool, stdout: bool, stderr: bool) -> Result<Attached> {
        let options =
            AttachContainerOptionsBuilder::new().stream(true).stdin(stdin).stdout(stdout).stderr(stderr).build();
        let attached = self.client.attach_container(id, Some(options)).await.map_err(error)?;
        Ok(Attached {
            output: Box::pin(attached.output.filter_map(output_item)),
            input: attached.input,
            exec_id: String::new(),
        })
    }

    async fn resize(&self, id: &str, width: u16, height: u16) -> Result<()> {
        let options = ResizeContainerTTYOptionsBuilder::new().w(width.into()).h(height.into()).build();
        self.client.resize_container_tty(id, options).await.map_err(error)
    }

    async fn logs(&self, id: &str, options: &LogOptions) -> Result<OutputStream> {
        let tail = options.tail.map_or_else(|| "all".to_string(), |n| n.to_string());
        let query = LogsOptionsBuilder::new()
            .follow(options.follow)
            .stdout(options.stdout)
            .stderr(options.stderr)
            .since(options.since.map_or(0, |s| i32::try_from(s).unwrap_or(i32::MAX)))
            .timestamps(true)
            .tail(&tail)
            .build();
        let mut stream = Box::pin(self.client.logs(id, Some(query)).filter_map(output_item)).peekable();
        // A refusal comes with the first item; the caller wants it as an answer, not as a broken stream.
        if !options.follow
            && let Some(Err(_)) = Pin::new(&mut stream).peek().await
            && let Some(Err(refusal)) = stream.next().await
        {
            return Err(refusal);
        }
        Ok(Box::pin(stream))
    }

    async fn stats(&self, id: &str) -> Result<Stats> {
        let options = StatsOptionsBuilder::new().stream(false).one_shot(true).build();
        let stats = std::pin::pin!(self.client.stats(id, Some(options)))
            .try_next()
            .await
            .map_err(error)?
            .ok_or_else(|| Error::NotFound(format!("no statistics of container {id}")))?;
        let memory = stats.memory_stats.unwrap_or_default();
        let detail = memory.stats.unwrap_or_default();
        let first = |names: &[&str]| names.iter().find_map(|n| detail.get(*n).copied()).unwrap_or(0);
        let usage = memory.usage.unwrap_or(0);
        let limit = memory.limit.unwrap_or(0);
        Ok(Stats {
            cpu_nanos: stats.cpu_stats.and_then(|c| c.cpu_usage).and_then(|u| u.total_usage).unwrap_or(0),
            memory_usage: usage,
            memory_working_set: usage.saturating_sub(first(&["total_inactive_file", "inactive_file"])),
            memory_rss: first(&["total_rss", "anon"]),
            page_faults: first(&["total_pgfault", "pgfault"]),
            major_page_faults: first(&["total_pgmajfault", "pgmajfault"]),
            memory_limit: limit,
            pids: stats.pids_stats.and_then(|p| p.current).unwrap_or(0),
        })
    }

    async fn written(&self, id: &str) -> Result<u64> {
        let options = InspectContainerOptions { size: true };
        let inspected = self.client.inspect_container(id, Some(options)).await.map_err(error)?;
        let layer = inspected.size_rw.and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
        let log = match inspected.log_path.filter(|p| !p.is_empty()) {
            Some(path) => tokio::fs::metadata(path).await.map_or(0, |m| m.len()),
            None => 0,
        };
        Ok(layer + log)
    }

    async fn events(&self) -> Result<Pin<Box<dyn Stream<Item = Event> + Send>>> {
        let mut filters = self.filters(None);
        filters.insert("type".into(), vec!["container".into()]);
        let options = EventsOptionsBuilder::new().filters(&filters).build();
        let stream = self.client.events(Some(options)).take_while(|e| futures::future::ready(e.is_ok()));
        Ok(Box::pin(stream.filter_map(|event| async move {
            let event = event.ok()?;
            let attributes = event.actor?.attributes?;
            Some(Event { pod_uid: attributes.get(label::POD_UID)?.clone(), action: event.action? })
        })))
    }
}

/// A process without CAP_SYS_RESOURCE cannot lower the score, and neither can an engine beside it: a container that
/// asks for less would not start at all.
fn least_oom_score() -> i64 {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let effective = effective.and_then(|h| u64::from_str_radix(h.trim(), 16).ok()).unwrap_or(u64::MAX);
    if effective & CAP_SYS_RESOURCE != 0 {
        return -1000;
    }
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    own.trim().parse().unwrap_or(0)
}

/// The reference with a tag: without one the engine would pull every tag of the repository.
fn with_tag(reference: &str) -> String {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    if last.contains(':') || reference.contains('@') { reference.into() } else { format!("{reference}:latest") }
}

fn bind(mount: &Mount) -> bollard::models::Mount {
    let propagation = match mount.propagation {
        "rslave" => MountBindOptionsPropagationEnum::RSLAVE,
        "rshared" => MountBindOptionsPropagationEnum::RSHARED,
        _ => MountBindOptionsPropagationEnum::RPRIVATE,
    };
    bollard::models::Mount {
        source: Some(mount.source.clone()),
        target: Some(mount.target.clone()),
        typ: Some(MountType::BIND),
        read_only: Some(mount.read_only),
        bind_options: Some(MountBindOptions { propagation: Some(propagation), ..Default::default() }),
        ..Default::default()
    }
}

async fn output_item(item: Result<LogOutput, bollard::errors::Error>) -> Option<Result<(Out, Bytes)>> {
    match item {
        Ok(LogOutput::StdOut { message } | LogOutput::Console { message }) => Some(Ok((Out::Stdout, message))),
        Ok(LogOutput::StdErr { message }) => Some(Ok((Out::Stderr, message))),
        Ok(LogOutput::StdIn { .. }) => None,
        Err(cause) => Some(Err(error(cause))),
    }
}

fn container(inspected: ContainerInspectResponse) -> Container {
    let config = inspected.config.unwrap_or_default();
    let state = inspected.state.unwrap_or_default();
    let time = |text: Option<String>| text.and_then(|t| t.parse::<Timestamp>().ok()).filter(|t| t.as_second() > 0);
    let created = time(inspected.created);
    let error = state.error.unwrap_or_default();
    let exit_code = state.exit_code.unwrap_or(0) as i32;
    let (kind, exit_code, finished) = match state.status {
        // The engine leaves a container that could not be started as "created", with the reason beside it.
        Some(ContainerStateStatusEnum::CREATED) if !error.is_empty() => (State::Exited, 128, created),
        Some(ContainerStateStatusEnum::CREATED) => (State::Created, exit_code, None),
        _ if state.running == Some(true) => (State::Running, 0, None),
        _ => (State::Exited, exit_code, time(state.finished_at)),
    };
    Container {
        id: inspected.id.unwrap_or_default(),
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        image: config.image.unwrap_or_default(),
        image_id: inspected.image.unwrap_or_default(),
        state: kind,
        pid: state.pid.filter(|p| *p > 0).map(|p| p as i32),
        created,
        started: time(state.started_at),
        finished,
        exit_code,
        oom_killed: state.oom_killed.unwrap_or(false),
        error,
    }
}

/// Turns the engine's "it is gone already" into success, for calls that want it gone.
fn gone_is_fine(codes: &'static [u16]) -> impl Fn(bollard::errors::Error) -> Result<()> {
    move |cause| match &cause {
        bollard::errors::Error::DockerResponseServerError { status_code, .. } if codes.contains(status_code) => Ok(()),
        _ => Err(error(cause)),
    }
}

fn error(cause: bollard::errors::Error) -> Error {
    use bollard::errors::Error as E;
    match cause {
        E::DockerResponseServerError { status_code: 404, message } => Error::NotFound(message),
        E::DockerResponseServerError { status_code: 409, message } => Error::Conflict(message),
        E::DockerResponseServerError { message, .. } => Error::Refused(message),
        E::DockerStreamError { error } => Error::Refused(error),
        E::RequestTimeoutError => Error::Timeout(REQUEST_TIMEOUT),
        E::IOError { .. } | E::HyperResponseError { .. } | E::SocketNotFoundError(_) => {
            Error::Unavailable(cause.to_string())
        }
        // The client's own connection failures come as this one.
        E::HyperLegacyError { .. } => Error::Unavailable(cause.to_string()),
        other => Error::Refused(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_names_one_tag() {
        for (given, wanted) in [
            ("busybox", "busybox:latest"),
            ("busybox:1.36", "busybox:1.36"),
            ("host:5000/a/b", "host:5000/a/b:latest"),
            ("host:5000/a/b:2", "host:5000/a/b:2"),
            ("a@sha256:00", "a@sha256:00"),
        ] {
            assert_eq!(with_tag(given), wanted);
        }
    }

    #[test]
    fn a_container_that_could_not_start_is_over() {
        let inspected = ContainerInspectResponse {
            created: Some("2026-01-02T03:04:05.6Z".into()),
            state: Some(bollard::models::ContainerState {
                status: Some(ContainerStateStatusEnum::CREATED),
                error: Some("exec: \"nope\": not found".into()),
                exit_code: Some(127),
                started_at: Some("0001-01-01T00:00:00Z".into()),
                ..Default::default()
            }),
            ..Default::default()
        };
        let seen = container(inspected);
        assert_eq!((seen.state, seen.exit_code), (State::Exited, 128));
        assert!(seen.started.is_none() && seen.finished.is_some());
    }
}
