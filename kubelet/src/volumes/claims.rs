//! Claims of pods: from the claim to its volume to a directory on this node.
//!
//! A claim is resolved once per pod: what a volume is made of never changes, and a claim that is deleted later stays
//! usable for pods that have it already.
//!
//! Volumes of this cluster's own provisioner are directories that this agent makes when a pod first mounts them, and
//! only if the volume says that it lies on this node.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    HostPathVolumeSource, NFSVolumeSource, Node, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim,
    PersistentVolumeSpec, Pod, Volume,
};
use kube::Api;
use skiff_core::selector::{LabelSelector, Operator, Requirement};

use super::{REQUEST_TIMEOUT, host_path, make_dir};
use crate::pod::spec;

/// The provisioner whose volumes are this agent's own directories.
pub(super) const PROVISIONER: &str = "skiff.dev/local-path";
/// A mount over the network that takes longer failed.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);

/// What a claim turned out to be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bound {
    /// The volume's name.
    pub volume: String,
    pub source: Source,
    pub mount_options: Vec<String>,
}

/// The kinds of volume this node can mount.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Source {
    HostPath(HostPathVolumeSource),
    /// A directory of this node; made when missing if it is our provisioner's.
    Local {
        path: PathBuf,
        ours: bool,
    },
    Nfs(NFSVolumeSource),
}

/// The claim behind a volume of a pod.
pub(super) fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(c), _) => Some(c.claim_name.clone()),
        (None, Some(_)) => Some(format!("{}-{}", spec::name(pod), volume.name)),
        _ => None,
    }
}

/// Asks the server for the claim and its volume. `started`: the pod had the claim already, so it may be on its way out.
pub(super) async fn resolve(
    client: &kube::Client,
    node: &str,
    pod: &Pod,
    volume: &Volume,
    name: &str,
    started: bool,
) -> Result<Bound, String> {
    let namespace = spec::namespace(pod);
    let lookup = async {
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
        let claim = claims.get(name).await.map_err(|e| format!("failed to fetch PVC from API server: {e}"))?;
        let bound = bound_volume(&claim, pod, volume, started)?;
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        let fetched = volumes.get(&bound).await;
        let found = fetched.map_err(|e| format!("failed to fetch PV {bound} from API server: {e}"))?;
        let spec = found.spec.clone().unwrap_or_default();
        match &spec.claim_ref {
            None => {
                return Err(format!(
                    "found PV object {bound:?} with nil pv.Spec.ClaimRef indicating it is not yet bound to the claim"
                ));
            }
            Some(r) if r.uid != claim.metadata.uid => {
                return Err(format!(
                    "found PV object {bound:?} bound to another claim with UID {:?}",
                    r.uid.as_deref().unwrap_or_default()
                ));
            }
            Some(_) => {}
        }
        if spec.node_affinity.is_some() {
            let nodes: Api<Node> = Api::all(client.clone());
            let node = nodes.get(node).await.map_err(|e| format!("failed to fetch the node: {e}"))?;
            if !reachable(&spec, &node) {
                return Err(format!(
                    "volume {bound:?} cannot be reached from this node: no matching NodeSelectorTerms"
                ));
            }
        }
        of_volume(&found, spec)
    };
    let answer = tokio::time::timeout(REQUEST_TIMEOUT, lookup).await.unwrap_or_else(|_| Err("timed out".into()));
    answer.map_err(|why| format!("error processing PVC {namespace}/{name}: {why}"))
}

/// The name of the claim's volume, if the pod may have it.
fn bound_volume(claim: &PersistentVolumeClaim, pod: &Pod, volume: &Volume, started: bool) -> Result<String, String> {
    if volume.ephemeral.is_some() {
        let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
        if !owners.iter().any(|o| o.controller == Some(true) && o.uid == spec::uid(pod)) {
            return Err("PVC was not created for the pod (pod is not owner)".into());
        }
    }
    if claim.metadata.deletion_timestamp.is_some() && !started {
        return Err("PVC is being deleted".into());
    }
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    let named = claim.spec.as_ref().and_then(|s| s.volume_name.clone()).filter(|n| !n.is_empty());
    named.filter(|_| phase == Some("Bound")).ok_or_else(|| "PVC is not bound".into())
}

fn of_volume(volume: &PersistentVolume, spec: PersistentVolumeSpec) -> Result<Bound, String> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err("block volumes are not supported on this node".into());
    }
    let ours = volume.metadata.annotations.as_ref().and_then(|a| a.get("pv.kubernetes.io/provisioned-by"));
    let ours = ours.is_some_and(|p| p == PROVISIONER);
    let source = match (spec.host_path, spec.local, spec.nfs) {
        (Some(host), ..) => Source::HostPath(host),
        (_, Some(local), _) => Source::Local { path: local.path.into(), ours },
        (.., Some(nfs)) => Source::Nfs(nfs),
        _ => return Err(format!("volume {name:?} is of a type that is not supported on this node")),
    };
    Ok(Bound { volume: name, source, mount_options: spec.mount_options.unwrap_or_default() })
}

/// Whether a volume's node affinity takes a node.
pub(super) fn reachable(spec: &PersistentVolumeSpec, node: &Node) -> bool {
    let terms = spec.node_affinity.as_ref().and_then(|a| a.required.as_ref()).map(|r| &r.node_selector_terms);
    terms.is_none_or(|t| t.iter().any(|t| takes(t, node)))
}

fn takes(term: &NodeSelectorTerm, node: &Node) -> bool {
    let name = [("metadata.name".to_owned(), node.metadata.name.clone().unwrap_or_default())].into();
    let selector = |list: &Option<Vec<k8s_openapi::api::core::v1::NodeSelectorRequirement>>| {
        let one = |r: &k8s_openapi::api::core::v1::NodeSelectorRequirement| {
            let operator = match r.operator.as_str() {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                "Gt" => Operator::GreaterThan,
                "Lt" => Operator::LessThan,
                _ => return None,
            };
            Some(Requirement { key: r.key.clone(), operator, values: r.values.clone().unwrap_or_default() })
        };
        let requirements: Option<Vec<_>> = list.iter().flatten().map(one).collect();
        LabelSelector { nothing: requirements.is_none(), requirements: requirements.unwrap_or_default() }
    };
    let (labels, fields) = (selector(&term.match_expressions), selector(&term.match_fields));
    // A term without any requirement takes nothing.
    !(labels.is_everything() && fields.is_everything())
        && labels.matches(&node.metadata.labels.clone().unwrap_or_default())
        && fields.matches::<std::collections::BTreeMap<String, String>>(&name)
}

/// Makes what may be made, and checks the rest.
pub(super) fn prepare(source: &Source) -> Result<(), String> {
    match source {
        Source::HostPath(host) => host_path(host),
        Source::Local { path, ours: true } => make_dir(path, 0o777),
        Source::Local { path, .. } if path.exists() => Ok(()),
        Source::Local { path, .. } => Err(format!("path {:?} does not exist", path.display().to_string())),
        Source::Nfs(_) => Ok(()),
    }
}

/// Gives everything in a volume to the pod's group, as upstream does: group-readable and -writable, and directories hand
/// their group on. With `only_if_wrong` a root that is right already is taken as a sign that all is.
pub(super) fn own_all(root: &Path, group: u32, only_if_wrong: bool) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let right = |m: &std::fs::Metadata| m.gid() == group && m.mode() & 0o2070 == 0o2070;
    if only_if_wrong && right(&std::fs::metadata(root)?) {
        return Ok(());
    }
    let mut pending = vec![root.to_path_buf()];
    while let Some(path) = pending.pop() {
        let meta = std::fs::symlink_metadata(&path)?;
        std::os::unix::fs::lchown(&path, None, Some(group))?;
        if meta.is_symlink() {
            continue;
        }
        let more = if meta.is_dir() { 0o2770 } else { 0o660 };
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(meta.mode() & 0o7777 | more))?;
        if meta.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
        }
    }
    Ok(())
}

/// Mounts a directory of another machine, with the helper that the machine has for it.
pub(super) async fn mount_nfs(
    nfs: &NFSVolumeSource,
    read_only: bool,
    options: &[String],
    target: &Path,
) -> Result<(), String> {
    let mut options = options.to_vec();
    if read_only || nfs.read_only == Some(true) {
        options.push("ro".into());
    }
    let mut arguments = vec!["-t".to_owned(), "nfs".into()];
    if !options.is_empty() {
        arguments.extend(["-o".to_owned(), options.join(",")]);
    }
    arguments.extend([format!("{}:{}", nfs.server, nfs.path), target.display().to_string()]);
    let mut command = tokio::process::Command::new("mount");
    command.args(&arguments).kill_on_drop(true).stdin(std::process::Stdio::null());
    let shown = |what: &str, output: &str| {
        format!(
            "mount failed: {what}\nMounting command: mount\nMounting arguments: {}\nOutput: {output}",
            arguments.join(" ")
        )
    };
    match tokio::time::timeout(MOUNT_LIMIT, command.output()).await {
        Ok(Ok(o)) if o.status.success() => Ok(()),
        Ok(Ok(o)) => {
            let code = o.status.code().unwrap_or(-1);
            Err(shown(&format!("exit status {code}"), String::from_utf8_lossy(&o.stderr).trim()))
        }
        Ok(Err(e)) => Err(shown(&e.to_string(), "")),
        Err(_) => Err(shown(&format!("no answer within {} s", MOUNT_LIMIT.as_secs()), "")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn bound(claim: Value, started: bool, ephemeral: bool) -> Result<String, String> {
        let volume = if ephemeral { json!({"name": "v", "ephemeral": {}}) } else { json!({"name": "v"}) };
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "uid": "1"}})).unwrap();
        let volume: Volume = serde_json::from_value(volume).unwrap();
        bound_volume(&serde_json::from_value(claim).unwrap(), &pod, &volume, started)
    }

    #[test]
    fn which_claims_may_be_used() {
        let claim = |meta: Value, phase: &str| json!({"metadata": meta, "spec": {"volumeName": "pv"}, "status": {"phase": phase}});
        let owner = |uid: &str| json!({"ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid, "controller": true}]});
        let going = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        for (claim, started, ephemeral, want) in [
            (claim(json!({}), "Bound"), false, false, Ok("pv")),
            (claim(json!({}), "Pending"), false, false, Err("PVC is not bound")),
            (claim(going.clone(), "Bound"), false, false, Err("PVC is being deleted")),
            (claim(going, "Bound"), true, false, Ok("pv")),
            (claim(owner("1"), "Bound"), false, true, Ok("pv")),
            (claim(owner("2"), "Bound"), false, true, Err("PVC was not created for the pod (pod is not owner)")),
        ] {
            let got = bound(claim.clone(), started, ephemeral);
            assert_eq!(got.as_ref().map(String::as_str).map_err(String::as_str), want, "{claim}");
        }
    }

    #[test]
    fn where_a_volume_can_be_reached() {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/hostname": "n1"}}}))
                .unwrap();
        let expression = |operator: &str, values: Value| json!({"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": operator, "values": values}]});
        for (terms, want) in [
            (json!([expression("In", json!(["n1"]))]), true),
            (json!([expression("In", json!(["n2"]))]), false),
            (json!([expression("In", json!(["n2"])), expression("Exists", json!([]))]), true),
            (json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}]), true),
            (json!([{}]), false),
            (json!([expression("Near", json!(["n1"]))]), false),
        ] {
            let spec = json!({"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}});
            assert_eq!(reachable(&serde_json::from_value(spec).unwrap(), &node), want, "{terms}");
        }
        assert!(reachable(&PersistentVolumeSpec::default(), &node));
    }

    #[test]
    fn what_a_volume_is_made_of() {
        let ours = json!({"pv.kubernetes.io/provisioned-by": PROVISIONER});
        for (annotations, spec, want) in [
            (json!({}), json!({"local": {"path": "/d"}}), Ok(Source::Local { path: "/d".into(), ours: false })),
            (ours, json!({"local": {"path": "/d"}}), Ok(Source::Local { path: "/d".into(), ours: true })),
            (
                json!({}),
                json!({"volumeMode": "Block", "local": {"path": "/d"}}),
                Err("block volumes are not supported on this node".to_owned()),
            ),
            (json!({}), json!({}), Err("volume \"pv\" is of a type that is not supported on this node".to_owned())),
        ] {
            let v: PersistentVolume =
                serde_json::from_value(json!({"metadata": {"name": "pv", "annotations": annotations}, "spec": spec}))
                    .unwrap();
            let spec = v.spec.clone().unwrap();
            assert_eq!(of_volume(&v, spec).map(|b| b.source), want);
        }
    }

    #[test]
    fn missing_directories() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/v");
        let local = |ours| Source::Local { path: path.clone(), ours };
        assert!(prepare(&local(false)).unwrap_err().ends_with("does not exist"));
        prepare(&local(true)).unwrap();
        prepare(&local(false)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o777);
    }

    #[test]
    fn the_group_of_a_volume() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        std::fs::create_dir(root.join("d")).unwrap();
        std::fs::write(root.join("d/f"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        // The process's own group can be given without privileges.
        let group = std::fs::metadata(root).unwrap().gid();
        let mode = |p: &str| std::fs::metadata(root.join(p)).unwrap().mode() & 0o7777;
        let before = std::fs::metadata("/etc").unwrap().mode();
        std::fs::set_permissions(root.join("d/f"), std::fs::Permissions::from_mode(0o600)).unwrap();
        own_all(root, group, false).unwrap();
        assert_eq!((mode("d") & 0o2770, mode("d/f")), (0o2770, 0o660));
        assert_eq!(std::fs::metadata("/etc").unwrap().mode(), before, "links are not followed");
        std::fs::set_permissions(root.join("d/f"), std::fs::Permissions::from_mode(0o600)).unwrap();
        own_all(root, group, true).unwrap();
        assert_eq!(mode("d/f"), 0o600, "a right root is trusted");
    }
}
