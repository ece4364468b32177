//! `limits.ephemeral-storage`: what a pod's containers write on the node's disk, into their own layers, their logs and the
//! pod's emptyDirs. Nothing bounds it while it is written; a pod that is found over its limits is evicted, as by upstream
//! (kubernetes.io/docs/concepts/storage/ephemeral-storage).

use k8s_openapi::api::core::v1::{Container as Spec, Pod};

use super::spec::{self, Role};
use crate::runtime::{Container, Runtime, State, label};
use crate::volumes::{self, Volumes};

const RESOURCE: &str = "ephemeral-storage";

/// Whether what the pod writes has to be looked at.
pub fn is_limited(pod: &Pod) -> bool {
    volumes::has_limits(pod) || spec::containers(pod).iter().any(|(_, c)| limit(c).is_some())
}

/// Says in upstream's words what of a pod holds more than it may. Looks at every file, so ask seldom.
pub async fn over_limit(
    runtime: &dyn Runtime,
    volumes: &Volumes,
    pod: &Pod,
    containers: &[Container],
) -> Option<String> {
    if let Some(message) = volumes.over_limit(pod).await {
        return Some(message);
    }
    let all = spec::containers(pod);
    if all.iter().all(|(_, c)| limit(c).is_none()) {
        return None;
    }
    let mut written = Vec::new();
    for container in containers.iter().filter(|c| c.state == State::Running) {
        // What cannot be asked now is asked the next time.
        let bytes = runtime.written(&container.id).await.unwrap_or(0);
        written.push((container.label(label::CONTAINER_NAME).to_owned(), bytes));
    }
    judge(&all, volumes.kept_on_disk(pod).await, &written)
}

/// The limit of a container in bytes, and as it was written.
fn limit(container: &Spec) -> Option<(u64, &str)> {
    let quantity = container.resources.as_ref()?.limits.as_ref()?.get(RESOURCE)?;
    Some((u64::try_from(spec::whole(quantity)?).ok()?, &quantity.0))
}

/// The pod as a whole first: the sum of its limits bounds also what containers without one write.
fn judge(all: &[(Role, Spec)], volumes: u64, written: &[(String, u64)]) -> Option<String> {
    let bytes = |role: Role| all.iter().filter(move |(r, _)| *r == role).filter_map(|(_, c)| limit(c)).map(|l| l.0);
    let lasting = bytes(Role::Regular).chain(bytes(Role::Sidecar)).sum::<u64>();
    let most = lasting.max(bytes(Role::Init).max().unwrap_or(0));
    if volumes + written.iter().map(|(_, n)| n).sum::<u64>() > most {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            shown(most)
        ));
    }
    written.iter().find_map(|(name, used)| {
        let (most, text) = all.iter().find(|(_, c)| c.name == *name).and_then(|(_, c)| limit(c))?;
        (*used > most).then(|| format!("Container {name} exceeded its local ephemeral storage limit {text:?}. "))
    })
}

/// A number of bytes as a quantity.
fn shown(bytes: u64) -> String {
    let units = [(30, "Gi"), (20, "Mi"), (10, "Ki")];
    let unit = units.into_iter().find(|(power, _)| bytes.trailing_zeros() >= *power && bytes > 0);
    unit.map_or_else(|| bytes.to_string(), |(power, name)| format!("{}{name}", bytes >> power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_over() {
        let pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "initContainers": [{"name": "i", "resources": {"limits": {"ephemeral-storage": "3Mi"}}}],
            "containers": [{"name": "a", "resources": {"limits": {"ephemeral-storage": "1Mi"}}},
                {"name": "b", "resources": {"limits": {"ephemeral-storage": "4Mi"}}}, {"name": "c"}]}}))
        .unwrap();
        let all = spec::containers(&pod);
        let mib = |n: u64| n << 20;
        let judged = |volumes: u64, used: &[(&str, u64)]| {
            judge(&all, volumes, &used.iter().map(|(n, b)| ((*n).to_owned(), *b)).collect::<Vec<_>>())
        };
        assert!(is_limited(&pod));
        assert_eq!(judged(mib(1), &[("a", mib(1)), ("b", mib(2)), ("c", mib(1))]), None);
        let whole = "Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. ";
        assert_eq!(judged(mib(1), &[("a", 0), ("c", mib(5))]).as_deref(), Some(whole));
        let one = "Container a exceeded its local ephemeral storage limit \"1Mi\". ";
        assert_eq!(judged(0, &[("b", mib(2)), ("a", mib(2))]).as_deref(), Some(one));
    }
}
