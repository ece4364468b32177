//! From what the runtime shows to the pod's status. Pure: no clock, no I/O.

use std::collections::HashMap;
use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as Spec, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::spec::{self, Role};
use crate::runtime::{Container, State, label};

/// Why a container is not running, beyond what the runtime knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Reason in CamelCase.
    pub reason: String,
    /// Text for people.
    pub message: String,
}

/// What probes say about a running container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Health {
    /// Its startup probe succeeded, or it has none.
    pub started: bool,
    /// It takes traffic.
    pub ready: bool,
}

/// An end of the pod that the containers alone do not explain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// `Failed` for all verdicts so far.
    pub phase: &'static str,
    /// Reason in CamelCase.
    pub reason: String,
    /// Text for people.
    pub message: String,
}

/// Everything a status is made from.
pub struct View<'a> {
    /// The pod as the API has it.
    pub pod: &'a Pod,
    /// Its containers as the runtime has them, sandboxes left out.
    pub containers: &'a [Container],
    /// Whether the sandbox runs and has its network.
    pub sandbox_ready: bool,
    /// Address of the pod.
    pub pod_ip: Option<IpAddr>,
    /// Address of the node.
    pub host_ip: IpAddr,
    /// Reasons for waiting, by container name.
    pub waiting: &'a HashMap<String, Waiting>,
    /// Probe results, by runtime identifier.
    pub health: &'a HashMap<String, Health>,
    /// Termination messages, by runtime identifier.
    pub messages: &'a HashMap<String, String>,
    /// A verdict of the agent.
    pub verdict: Option<&'a Verdict>,
    /// No container will be started any more.
    pub stopping: bool,
    /// The time.
    pub now: Timestamp,
}

/// The attempts at a container, latest first.
pub fn attempts<'a>(containers: &'a [Container], name: &str) -> Vec<&'a Container> {
    let mut found: Vec<_> = containers.iter().filter(|c| c.label(label::CONTAINER_NAME) == name).collect();
    found.sort_by_key(|c| std::cmp::Reverse((c.attempt(), c.created)));
    found
}

/// The status the pod should have.
pub fn compute(view: &View<'_>) -> PodStatus {
    let pod = view.pod;
    let old = pod.status.clone().unwrap_or_default();
    let all = spec::containers(pod);
    let initialising = all.iter().any(|(role, c)| *role == Role::Init && !init_done(view, c))
        && !all.iter().any(|(role, c)| *role == Role::Regular && !attempts(view.containers, &c.name).is_empty());
    let of = |wanted: &[Role]| -> Vec<ContainerStatus> {
        all.iter()
            .filter(|(role, _)| wanted.contains(role))
            .map(|(role, c)| container_status(view, &old, *role, c, initialising))
            .collect()
    };
    let init = of(&[Role::Init, Role::Sidecar]);
    let regular = of(&[Role::Regular]);
    let ephemeral = of(&[Role::Ephemeral]);
    let ended = matches!(old.phase.as_deref(), Some("Succeeded" | "Failed"));
    let phase = match view.verdict {
        Some(verdict) => verdict.phase,
        // A pod that ended stays ended.
        None if ended && old.phase.as_deref() == Some("Failed") => "Failed",
        None if ended => "Succeeded",
        None => phase(view, &all, &init, &regular),
    };
    let some = |list: Vec<ContainerStatus>| (!list.is_empty()).then_some(list);
    let pod_ip = view.pod_ip.map(|ip| ip.to_string()).or_else(|| old.pod_ip.clone());
    let host_ip = view.host_ip.to_string();
    let mut status = PodStatus {
        phase: Some(phase.into()),
        reason: view.verdict.map(|v| v.reason.clone()).or_else(|| old.reason.clone().filter(|_| ended)),
        message: view.verdict.map(|v| v.message.clone()).or_else(|| old.message.clone().filter(|_| ended)),
        host_ip: Some(host_ip.clone()),
        host_ips: Some(vec![HostIP { ip: host_ip }]),
        pod_ips: pod_ip.clone().map(|ip| vec![PodIP { ip }]),
        pod_ip,
        start_time: old.start_time.clone().or(Some(Time(view.now))),
        qos_class: Some(old.qos_class.clone().unwrap_or_else(|| spec::qos_class(pod).into())),
        init_container_statuses: some(init),
        container_statuses: some(regular),
        ephemeral_container_statuses: some(ephemeral),
        observed_generation: pod.metadata.generation,
        ..old.clone()
    };
    status.conditions = Some(conditions(view, &all, &status, &old));
    status
}

fn init_done(view: &View<'_>, container: &Spec) -> bool {
    attempts(view.containers, &container.name).first().is_some_and(|c| c.state == State::Exited && c.exit_code == 0)
}

fn container_status(
    view: &View<'_>,
    old: &PodStatus,
    role: Role,
    container: &Spec,
    initialising: bool,
) -> ContainerStatus {
    let attempts = attempts(view.containers, &container.name);
    let latest = attempts.first().copied();
    let waiting = view.waiting.get(&container.name);
    let default_wait = || Waiting {
        reason: if initialising || (role != Role::Regular && latest.is_none()) && has_init(view.pod) {
            "PodInitializing".into()
        } else {
            "ContainerCreating".into()
        },
        message: String::new(),
    };
    let previous = old_status(old, &container.name);
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        ready: false,
        started: Some(false),
        ..Default::default()
    };
    let mut last = attempts.get(1).map(|c| terminated(view, c));
    status.state = Some(match latest {
        None if view.stopping || view.verdict.is_some() => match previous.and_then(|p| p.state.clone()) {
            // Never started: keep what was said. Started and vanished: its end is unknown.
            Some(state) if state.running.is_none() => state,
            Some(_) => ContainerState { terminated: Some(vanished()), ..Default::default() },
            None => wait_state(waiting.cloned().unwrap_or_else(default_wait)),
        },
        None => {
            if let Some(previous) = previous
                && previous.container_id.is_some()
            {
                // The runtime lost it (someone removed it): count it as ended in an unknown way.
                status.restart_count = previous.restart_count;
                last = match previous.state.clone() {
                    Some(ContainerState { terminated: Some(ended), .. }) => Some(ended),
                    Some(ContainerState { running: Some(_), .. }) => Some(vanished()),
                    _ => previous.last_state.clone().and_then(|s| s.terminated),
                };
            }
            wait_state(waiting.cloned().unwrap_or_else(default_wait))
        }
        Some(latest) => {
            status.restart_count = latest.attempt();
            status.image_id = image_id(latest);
            status.container_id = Some(container_id(latest));
            match latest.state {
                State::Running => ContainerState {
                    running: Some(ContainerStateRunning { started_at: latest.started.map(Time) }),
                    ..Default::default()
                },
                State::Created => wait_state(waiting.cloned().unwrap_or_else(default_wait)),
                State::Exited => {
                    let again = spec::should_restart(view.pod, role, container, latest.exit_code);
                    match waiting {
                        Some(reason) if again && !view.stopping => {
                            last = Some(terminated(view, latest));
                            wait_state(reason.clone())
                        }
                        _ => ContainerState { terminated: Some(terminated(view, latest)), ..Default::default() },
                    }
                }
            }
        }
    });
    status.last_state = Some(ContainerState { terminated: last, ..Default::default() });
    if let Some(latest) = latest.filter(|c| c.state == State::Running) {
        let health = view.health.get(&latest.id).copied().unwrap_or_default();
        status.started = Some(health.started);
        status.ready = match role {
            Role::Init | Role::Ephemeral => false,
            _ => health.ready,
        };
        status.resources = container.resources.clone().or_else(|| Some(Default::default()));
        status.allocated_resources = container.resources.as_ref().and_then(|r| r.requests.clone());
    }
    if role == Role::Init && latest.is_some_and(|c| c.state == State::Exited && c.exit_code == 0) {
        status.ready = true;
    }
    status.volume_mounts = container.volume_mounts.as_ref().filter(|m| !m.is_empty()).map(|mounts| {
        mounts
            .iter()
            .map(|m| VolumeMountStatus {
                name: m.name.clone(),
                mount_path: m.mount_path.clone(),
                read_only: m.read_only,
                recursive_read_only: m.read_only.filter(|r| *r).map(|_| "Disabled".into()),
                ..Default::default()
            })
            .collect()
    });
    status
}

fn has_init(pod: &Pod) -> bool {
    spec::spec(pod).init_containers.as_ref().is_some_and(|c| !c.is_empty())
}

fn old_status<'a>(old: &'a PodStatus, name: &str) -> Option<&'a ContainerStatus> {
    [&old.container_statuses, &old.init_container_statuses, &old.ephemeral_container_statuses]
        .into_iter()
        .flatten()
        .flatten()
        .find(|s| s.name == name)
}

fn wait_state(waiting: Waiting) -> ContainerState {
    let state = ContainerStateWaiting {
        reason: Some(waiting.reason),
        message: Some(waiting.message).filter(|m| !m.is_empty()),
    };
    ContainerState { waiting: Some(state), ..Default::default() }
}

fn vanished() -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: 137,
        reason: Some("ContainerStatusUnknown".into()),
        message: Some("The container could not be located when the pod was terminated".into()),
        ..Default::default()
    }
}

/// The container's identifier as the API shows it.
pub fn container_id(container: &Container) -> String {
    format!("docker://{}", container.id)
}

fn image_id(container: &Container) -> String {
    format!("docker://{}", container.image_id)
}

fn terminated(view: &View<'_>, container: &Container) -> ContainerStateTerminated {
    let reason = match container.exit_code {
        _ if container.oom_killed => "OOMKilled",
        _ if container.started.is_none() => "StartError",
        0 => "Completed",
        _ => "Error",
    };
    let message = view.messages.get(&container.id).cloned().or_else(|| Some(container.error.clone()));
    ContainerStateTerminated {
        exit_code: container.exit_code,
        reason: Some(reason.into()),
        message: message.filter(|m| !m.is_empty()),
        started_at: container.started.or(container.created).map(Time),
        finished_at: container.finished.map(Time),
        container_id: Some(container_id(container)),
        signal: None,
    }
}

/// The pod's phase, by upstream's rules.
fn phase(view: &View<'_>, all: &[(Role, Spec)], init: &[ContainerStatus], regular: &[ContainerStatus]) -> &'static str {
    let never = spec::spec(view.pod).restart_policy.as_deref() == Some("Never");
    let always = matches!(spec::spec(view.pod).restart_policy.as_deref(), None | Some("Always"));
    let exit = |s: &ContainerStatus| -> Option<i32> {
        let ended =
            |state: &Option<ContainerState>| state.as_ref().and_then(|s| s.terminated.as_ref()).map(|t| t.exit_code);
        ended(&s.state).or_else(|| ended(&s.last_state))
    };
    let running = |s: &ContainerStatus| s.state.as_ref().is_some_and(|s| s.running.is_some());
    let started_regular = regular.iter().any(|s| running(s) || exit(s).is_some());
    let mut pending = 0;
    let mut failed = 0;
    let roles = all.iter().filter(|(r, _)| matches!(r, Role::Init | Role::Sidecar));
    for ((role, container), status) in roles.zip(init) {
        match role {
            Role::Sidecar if !started_regular => {
                if !(running(status) && status.started == Some(true)) {
                    pending += 1;
                }
            }
            Role::Sidecar => {}
            _ => match exit(status) {
                Some(0) if !running(status) => {}
                Some(code) if !running(status) && !spec::should_restart(view.pod, *role, container, code) => {
                    failed += 1
                }
                _ if started_regular => {}
                _ => pending += 1,
            },
        }
    }
    if failed > 0 && never {
        return "Failed";
    }
    let (mut live, mut waiting, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for status in regular {
        if running(status) {
            live += 1;
        } else if let Some(code) = exit(status) {
            stopped += 1;
            succeeded += usize::from(code == 0);
        } else {
            waiting += 1;
        }
    }
    if view.stopping && live == 0 && pending == 0 && waiting == 0 {
        return if stopped == succeeded { "Succeeded" } else { "Failed" };
    }
    if view.stopping && live == 0 {
        // It never got going and never will.
        return "Failed";
    }
    let again = |code| {
        let regulars = all.iter().filter(|(r, _)| *r == Role::Regular);
        regulars.zip(regular).any(|((role, c), s)| {
            exit(s).is_some_and(|own| own == code && spec::should_restart(view.pod, *role, c, own))
        })
    };
    match () {
        () if pending > 0 || waiting > 0 => "Pending",
        () if live > 0 => "Running",
        () if stopped == 0 => "Pending",
        () if always => "Running",
        () if regular.iter().filter_map(exit).any(again) => "Running",
        () if stopped == succeeded => "Succeeded",
        () => "Failed",
    }
}

/// Conditions of the agent in upstream's order, then those of others unchanged.
fn conditions(view: &View<'_>, all: &[(Role, Spec)], status: &PodStatus, old: &PodStatus) -> Vec<PodCondition> {
    let ended = match status.phase.as_deref() {
        Some("Succeeded") => Some("PodCompleted"),
        Some("Failed") => Some("PodFailed"),
        _ => None,
    };
    let init: Vec<&ContainerStatus> = status.init_container_statuses.iter().flatten().collect();
    let is_sidecar = |name: &str| all.iter().any(|(r, c)| *r == Role::Sidecar && c.name == name);
    let regular_started = status.container_statuses.iter().flatten().any(|s| s.container_id.is_some());
    let incomplete: Vec<&str> = init
        .iter()
        .filter(|s| !(if is_sidecar(&s.name) { s.started == Some(true) } else { s.ready }) && !regular_started)
        .map(|s| s.name.as_str())
        .collect();
    let unready: Vec<&str> = status
        .container_statuses
        .iter()
        .flatten()
        .chain(init.iter().copied().filter(|s| is_sidecar(&s.name)))
        .filter(|s| !s.ready)
        .map(|s| s.name.as_str())
        .collect();
    let gates: Vec<&str> = spec::spec(view.pod)
        .readiness_gates
        .iter()
        .flatten()
        .map(|g| g.condition_type.as_str())
        .filter(|t| !old.conditions.iter().flatten().any(|c| c.type_ == *t && c.status == "True"))
        .collect();

    let mut fresh: Vec<(&str, bool, &str, String)> = Vec::new();
    fresh.push(("PodReadyToStartContainers", view.sandbox_ready, "", String::new()));
    fresh.push(match ended {
        Some("PodCompleted") => ("Initialized", true, "PodCompleted", String::new()),
        _ if incomplete.is_empty() => ("Initialized", true, "", String::new()),
        _ => {
            let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
            ("Initialized", false, "ContainersNotInitialized", message)
        }
    });
    let containers: (bool, &str, String) = match ended {
        Some(reason) => (false, reason, String::new()),
        None if unready.is_empty() => (true, "", String::new()),
        None => (false, "ContainersNotReady", format!("containers with unready status: [{}]", unready.join(" "))),
    };
    fresh.push(if containers.0 && !gates.is_empty() {
        let message = gates
            .iter()
            .map(|g| {
                let known = old.conditions.iter().flatten().any(|c| c.type_ == *g);
                if known {
                    format!("the status of pod readiness gate \"{g}\" is not \"True\", but False")
                } else {
                    format!("corresponding condition of pod readiness gate \"{g}\" does not exist.")
                }
            })
            .collect::<Vec<_>>()
            .join(", ");
        ("Ready", false, "ReadinessGatesNotReady", message)
    } else {
        ("Ready", containers.0, containers.1, containers.2.clone())
    });
    fresh.push(("ContainersReady", containers.0, containers.1, containers.2));
    fresh.push(("PodScheduled", true, "", String::new()));

    let some = |text: &str| (!text.is_empty()).then(|| text.to_string());
    let mut conditions: Vec<PodCondition> = fresh
        .iter()
        .map(|(type_, holds, reason, message)| {
            let value = if *holds { "True" } else { "False" };
            let before = old.conditions.iter().flatten().find(|c| c.type_ == *type_ && c.status == value);
            let since = before.and_then(|c| c.last_transition_time.clone()).unwrap_or(Time(view.now));
            PodCondition {
                type_: (*type_).into(),
                status: value.into(),
                reason: some(reason),
                message: some(message),
                last_transition_time: Some(since),
                observed_generation: view.pod.metadata.generation,
                ..Default::default()
            }
        })
        .collect();
    let ours = |c: &PodCondition| fresh.iter().any(|(type_, ..)| *type_ == c.type_);
    conditions.extend(old.conditions.iter().flatten().filter(|c| !ours(c)).cloned());
    conditions
}

/// The strategic merge patch that takes `old` to `new`, or `None` when nothing differs. Conditions merge by type, so
/// that a condition someone else just wrote survives.
pub fn patch(pod: &Pod, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let (old, new) = (serde_json::to_value(old).ok()?, serde_json::to_value(new).ok()?);
    let (old, new) = (old.as_object()?, new.as_object()?);
    let mut changes = serde_json::Map::new();
    for (field, value) in new {
        if old.get(field) == Some(value) {
            continue;
        }
        let change = match (field.as_str(), value) {
            ("conditions", Value::Array(items)) => {
                let known = old.get("conditions").and_then(Value::as_array);
                let changed = items.iter().filter(|i| !known.is_some_and(|k| k.contains(i)));
                Value::Array(changed.cloned().collect())
            }
            ("podIPs" | "hostIPs", Value::Array(items)) if old.contains_key(field) => {
                Value::Array(std::iter::once(json!({"$patch": "replace"})).chain(items.iter().cloned()).collect())
            }
            _ => value.clone(),
        };
        changes.insert(field.clone(), change);
    }
    for field in old.keys().filter(|f| !new.contains_key(*f)) {
        changes.insert(field.clone(), Value::Null);
    }
    changes.retain(|field, change| field != "conditions" || change.as_array().is_none_or(|c| !c.is_empty()));
    let uid = spec::uid(pod);
    (!changes.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": changes}))
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
