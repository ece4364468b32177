//! Sources in a PersistentVolumeClaim: a small pod reads them where the volume is.
//!
//! The controller has no mount, and the volume may be on another node. So a pod of the job's namespace mounts the claim, read
//! only, packs the directory, and prints the archive as text with its digest; the controller reads that log and the pod goes.
//! The pod is the job's: it goes with it. It runs as the scheduler, the quota and the namespace's policies let it, with no
//! token, no rights and no need of a network.
//!
//! The directory is a `subPath` of the mount, which the node's agent resolves without leaving the volume; what is packed is
//! checked as an uploaded archive is: links, devices and paths that lead out are refused, and nothing is followed.
//!
//! # Limits
//! [`PACKED`] bytes of archive. A node that cuts a container's log shorter than that makes the digest wrong, which is said. The
//! pod runs as root with the right to read others' files: namespaces that enforce the `restricted` standard refuse it.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::io::AsyncReadExt as _;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{DeleteParams, LogParams, PostParams};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use skiff_controllers::runtime::controller_ref;
use skiff_controllers::runtime::worker::code;

use super::{Case, Controller};
use crate::api::VolumeSource;
use crate::link::Link;
use crate::stage::StageError;
use crate::store::hex;

/// Bytes that an archive may have, packed.
const PACKED: u64 = 32 << 20;
/// Seconds that the pod may take, the pull of its image included.
const DEADLINE: i64 = 600;
/// The image of the pod where the HpcCluster names none: any with sh, tar, base64 and sha256sum.
pub(super) const IMAGE: &str = "busybox:1";
/// Between looks at the pod.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// What the pod does. It prints one line, the archive as text, and another line.
const SCRIPT: &str = r#"set -eu
cd /source
tar -czf /packed/a .
size=$(wc -c </packed/a)
[ "$size" -le "$MOST" ] || { echo "toolarge $size"; exit 3; }
echo "begin $size"
base64 /packed/a
echo "end $(sha256sum </packed/a | cut -d' ' -f1)"
"#;

/// How far a volume's files are.
pub(super) enum Read {
    /// The pod is on its way.
    Wait(String),
    /// Here, as a gzipped tar.
    Here(Vec<u8>),
}

/// The name of the pod.
fn pod_name(case: &Case) -> String {
    let short: String = case.uid().chars().take(8).collect();
    let name: String = case.name().chars().take(200).collect();
    format!("{}-source-{short}", name.trim_end_matches(['-', '.']))
}

fn pod(case: &Case, link: &Link, volume: &VolumeSource) -> Value {
    let image = link.spec.reader_image.as_deref().unwrap_or(IMAGE);
    let mut mount = json!({"name": "source", "mountPath": "/source", "readOnly": true});
    if let Some(path) = &volume.path {
        mount["subPath"] = json!(path);
    }
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod_name(case), "labels": {"app.kubernetes.io/managed-by": "skiff-hpc"},
            "ownerReferences": [controller_ref(&case.job)],
        },
        "spec": {
            "restartPolicy": "Never", "activeDeadlineSeconds": DEADLINE, "automountServiceAccountToken": false,
            "enableServiceLinks": false, "terminationGracePeriodSeconds": 0,
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [
                {"name": "source", "persistentVolumeClaim": {"claimName": volume.claim_name, "readOnly": true}},
                {"name": "packed", "emptyDir": {}},
            ],
            "containers": [{
                "name": "read", "image": image, "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", SCRIPT], "env": [{"name": "MOST", "value": PACKED.to_string()}],
                "volumeMounts": [mount, {"name": "packed", "mountPath": "/packed"}],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "128Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsUser": 0,
                    "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]},
                },
            }],
        },
    })
}

/// Why a pod waits, as far as it says.
pub(super) fn waits(status: &PodStatus) -> String {
    let containers = status.container_statuses.iter().flatten();
    let waiting = containers.filter_map(|c| c.state.as_ref()?.waiting.as_ref());
    let waiting = waiting.filter_map(|w| Some((w.reason.clone()?, w.message.clone())));
    let unscheduled = status.conditions.iter().flatten().filter(|c| c.type_ == "PodScheduled" && c.status == "False");
    let unscheduled = unscheduled.filter_map(|c| Some((c.reason.clone()?, c.message.clone())));
    let said = unscheduled.chain(waiting).next();
    said.map_or_else(String::new, |(reason, message)| format!(": {reason} {}", message.unwrap_or_default()))
}

/// The archive in what the pod printed.
///
/// # Errors
/// When it is not whole.
fn archive(log: &str) -> Result<Vec<u8>, StageError> {
    let bad = |what: &str| StageError::Invalid(format!("the files of the volume could not be read: {what}"));
    if let Some(size) = log.lines().find_map(|l| l.strip_prefix("toolarge ")) {
        return Err(bad(&format!("packed they have {} bytes, more than {PACKED}", size.trim())));
    }
    let cut = || bad("the log of the pod that read them is not whole");
    let (_, rest) = log.split_once("begin ").ok_or_else(cut)?;
    let (_, rest) = rest.split_once('\n').ok_or_else(cut)?;
    let (text, end) = rest.rsplit_once("end ").ok_or_else(cut)?;
    let packed: String = text.split_ascii_whitespace().collect();
    let bytes = STANDARD.decode(packed).map_err(|_| cut())?;
    let digest: String = hex(&Sha256::digest(&bytes));
    if digest == end.trim() { Ok(bytes) } else { Err(cut()) }
}

impl Controller {
    /// Reads a volume's files, in several steps.
    pub(super) async fn read_volume(
        &self,
        case: &Case,
        link: &Link,
        volume: &VolumeSource,
    ) -> Result<Read, StageError> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), case.namespace());
        let name = pod_name(case);
        let Some(pod) = pods.get_opt(&name).await? else {
            let new: Pod = serde_json::from_value(pod(case, link, volume))
                .map_err(|e| StageError::Invalid(format!("the pod that reads the volume: {e}")))?;
            return match pods.create(&PostParams::default(), &new).await {
                Ok(_) => Ok(Read::Wait(format!("pod {name} reads the volume"))),
                Err(e) if code(&e) == 409 => Ok(Read::Wait(format!("pod {name} is there already"))),
                // A quota, a policy of the namespace: it may become otherwise.
                Err(e) if matches!(code(&e), 403 | 422) => {
                    Err(StageError::Missing(format!("the pod that reads the volume is refused: {e}")))
                }
                Err(e) => Err(e.into()),
            };
        };
        let ours = pod.metadata.owner_references.iter().flatten().any(|o| o.uid == case.uid());
        if !ours {
            return Err(StageError::Missing(format!("pod {name} is there and not this job's")));
        }
        let status = pod.status.unwrap_or_default();
        match status.phase.as_deref() {
            Some("Succeeded" | "Failed") => {}
            _ => return Ok(Read::Wait(format!("pod {name} reads the volume{}", waits(&status)))),
        }
        // Text is a third longer than what it means, with line breaks.
        let mut log = String::new();
        let stream = pods.log_stream(&name, &LogParams::default()).await?;
        let most = PACKED / 3 * 4 + (PACKED >> 5) + 4096;
        stream.take(most).read_to_string(&mut log).await.map_err(|e| StageError::Missing(format!("its log: {e}")))?;
        let read = match status.phase.as_deref() {
            Some("Succeeded") => archive(&log).map(Read::Here),
            _ if log.starts_with("toolarge ") => archive(&log).map(Read::Here),
            _ => {
                let said = log.lines().next_back().unwrap_or_default();
                let why = status.message.or(status.reason).unwrap_or_default();
                Err(StageError::Missing(
                    format!("pod {name} could not read the volume: {why} {said}").trim().to_owned(),
                ))
            }
        };
        // A pod that failed goes too: the next look makes another.
        let gone = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::background() };
        match pods.delete(&name, &gone).await {
            Err(e) if code(&e) != 404 => Err(e.into()),
            _ => read,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_whole_or_refused() {
        // What `printf hello | sha256sum` says.
        let digest = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
        let log = format!("begin 5\naGVs\nbG8=\nend {digest}\n");
        assert_eq!(archive(&log).unwrap(), b"hello");
        for bad in [
            log.replace("bG8=", ""),
            log.replace("begin 5\n", ""),
            log.replace(digest, ""),
            log.replace("aGVs", "aGV!"),
            String::new(),
            "toolarge 99999999999\n".into(),
        ] {
            assert!(matches!(archive(&bad), Err(StageError::Invalid(_))), "{bad}");
        }
        assert!(archive("toolarge 99999999999\n").unwrap_err().to_string().contains("99999999999 bytes"));
    }
}
