//! What the watch says of a pod, as far as a start needs it.

use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;

use super::NAME;

/// Reasons for which a waiting container never runs.
const HOPELESS: [&str; 7] = [
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "ErrImageNeverPull",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
];

/// What the watch says of a pod, as far as a start needs it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub(super) address: Option<std::net::IpAddr>,
    pub(super) node: String,
    pub(super) started: Option<Instant>,
    pub(super) trouble: Option<Trouble>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Trouble {
    /// The container ended, or never will begin.
    Code(String),
    /// It fits nowhere.
    NoRoom(String),
    /// It is being deleted or is gone.
    Gone(String),
}

fn trouble(pod: &Pod) -> Option<Trouble> {
    let status = pod.status.as_ref()?;
    let (phase, reason) = (status.phase.as_deref(), status.reason.as_deref().unwrap_or_default());
    if pod.metadata.deletion_timestamp.is_some() {
        return Some(Trouble::Gone("its pod is being deleted".into()));
    }
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    for container in all {
        let Some(state) = &container.state else { continue };
        if let Some(waiting) = &state.waiting
            && let Some(reason) = waiting.reason.as_deref().filter(|r| HOPELESS.contains(r))
        {
            let message = waiting.message.as_deref().unwrap_or("no message");
            return Some(Trouble::Code(format!("{reason}: {message}")));
        }
        if let Some(ended) = state.terminated.as_ref().filter(|e| container.name == NAME || e.exit_code != 0) {
            // The words that owners have of processes too.
            let why = match (ended.reason.as_deref(), ended.exit_code) {
                (Some("OOMKilled"), _) => format!("killed: it used more memory than its limit{}", limit(pod)),
                (None | Some("Error" | "Completed"), 129..=192) => {
                    format!("killed by signal {}", ended.exit_code - 128)
                }
                (None | Some("Error" | "Completed"), code) => format!("exit code {code}"),
                (Some(reason), code) => format!("{reason}: exit code {code}"),
            };
            return Some(Trouble::Code(why));
        }
    }
    if matches!(phase, Some("Failed" | "Succeeded")) {
        let message = status.message.clone().unwrap_or_default();
        let why = format!("{reason}: {message}");
        let full = reason.starts_with("OutOf") || reason == "NodeAffinity" || reason == "Evicted";
        return Some(if full { Trouble::NoRoom(why) } else { Trouble::Gone(why) });
    }
    let unplaced = status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    let unplaced = unplaced.filter(|c| c.reason.as_deref() == Some("Unschedulable"));
    unplaced.map(|c| Trouble::NoRoom(c.message.clone().unwrap_or_else(|| "no node fits".into())))
}

/// ` of 64Mi`, where the function's container has a limit.
fn limit(pod: &Pod) -> String {
    let all = pod.spec.iter().flat_map(|s| &s.containers);
    let limits = all.filter(|c| c.name == NAME).find_map(|c| c.resources.as_ref()?.limits.as_ref());
    limits.and_then(|l| l.get("memory")).map(|m| format!(" of {}", m.0)).unwrap_or_default()
}

pub(super) fn look(pod: &Pod) -> Seen {
    let status = pod.status.as_ref();
    let running = status.and_then(|s| s.container_statuses.as_ref()).into_iter().flatten();
    let started = running.into_iter().any(|c| c.state.as_ref().is_some_and(|s| s.running.is_some()));
    Seen {
        address: status.and_then(|s| s.pod_ip.as_ref()?.parse().ok()),
        node: pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default(),
        started: started.then(Instant::now),
        trouble: trouble(pod),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn troubles() {
        let pod = |status: serde_json::Value| -> Pod { serde_json::from_value(json!({"status": status})).unwrap() };
        let container = |state| json!({"phase": "Pending", "containerStatuses": [{"name": "function", "image": "x", "imageID": "", "ready": false, "restartCount": 0, "state": state}]});
        for (status, want) in [
            (json!({"phase": "Pending"}), None),
            (container(json!({"waiting": {"reason": "ContainerCreating"}})), None),
            (
                container(json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}})),
                Some(Trouble::Code("ImagePullBackOff: no such image".into())),
            ),
            (
                container(json!({"terminated": {"exitCode": 3, "reason": "Error"}})),
                Some(Trouble::Code("exit code 3".into())),
            ),
            (
                container(json!({"terminated": {"exitCode": 143, "reason": "Error"}})),
                Some(Trouble::Code("killed by signal 15".into())),
            ),
            (
                container(json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})),
                Some(Trouble::Code("killed: it used more memory than its limit".into())),
            ),
            (
                json!({"phase": "Failed", "reason": "OutOfcpu", "message": "m"}),
                Some(Trouble::NoRoom("OutOfcpu: m".into())),
            ),
            (
                json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}]}),
                Some(Trouble::NoRoom("0/1".into())),
            ),
        ] {
            assert_eq!(trouble(&pod(status.clone())), want, "{status}");
        }
    }
}
