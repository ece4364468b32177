//! Results into a PersistentVolumeClaim: a small pod takes them where the volume is.
//!
//! The controller has no mount, and the volume may be on another node. So once results are in the store here, a pod of the job's
//! namespace mounts the claim and unpacks what it reads from its standard input, to which the controller attaches. What
//! arrived is digested there and compared before it gets its names, one after the other, so that nobody ever reads half a file;
//! files of these names that are there already are replaced, others stay. All of it may be repeated: a pod whose controller
//! went away reads an end too early and fails, and the next one begins anew.
//!
//! # Limits
//! The pod runs as root with the right to write into others' directories: namespaces that enforce the `restricted` standard
//! refuse it. Files belong to root and everybody may read them.

use std::io::{self, Write};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{AttachParams, DeleteParams, LogParams, PostParams};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use skiff_controllers::runtime::controller_ref;
use skiff_controllers::runtime::worker::code;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::volume::{IMAGE, waits};
use super::{Case, Controller};
use crate::api::{VolumeSource, condition};
use crate::link::Link;
use crate::store::{Index, hex};

/// Time for what is sent, beside a second for each of its MiB.
const SEND: Duration = Duration::from_secs(300);
/// Between looks at the pod.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// What the pod does.
const SCRIPT: &str = r#"set -eu
umask 022
# Not what others write on the node's other file systems, where the image can tell them apart.
down() { sync -f . 2>/dev/null || sync; }
cd /results
rm -rf "$PART"
mkdir "$PART"
trap 'rm -rf "/results/$PART"' EXIT
tar -xf - -C "$PART"
cd "$PART"
got=$(find . -type f -exec sha256sum {} + | sed 's/^\\//' | cut -c1-64 | sort | sha256sum | cut -c1-64)
[ "$got" = "$DIGEST" ] || { echo "not all of the results arrived as they are"; exit 3; }
down
find . -type f -exec sh -c 'for f; do d="../${f%/*}"; mkdir -p "$d"; mv -f "$f" "$d/"; done' sh {} +
down
"#;

/// How far the results are.
pub(super) enum Fill {
    /// In the claim.
    Done,
    /// Not yet; why.
    Wait(String),
    /// Not this time; why.
    Failed(String),
}

/// The name of the pod.
fn pod_name(case: &Case) -> String {
    let short: String = case.uid().chars().take(8).collect();
    let name: String = case.name().chars().take(200).collect();
    format!("{}-results-{short}", name.trim_end_matches(['-', '.']))
}

/// The digest of the sorted digests of all files, a line each, as the pod computes it.
fn digest(index: &Index) -> String {
    let mut all: Vec<&str> = index.files.values().map(|s| s.sha256.as_str()).collect();
    all.sort_unstable();
    let text: String = all.iter().map(|d| format!("{d}\n")).collect();
    hex(&Sha256::digest(text))
}

fn pod(case: &Case, link: &Link, volume: &VolumeSource, index: &Index) -> Value {
    let image = link.spec.reader_image.as_deref().unwrap_or(IMAGE);
    let mut mount = json!({"name": "results", "mountPath": "/results"});
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
            "restartPolicy": "Never", "automountServiceAccountToken": false, "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 0, "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "results", "persistentVolumeClaim": {"claimName": volume.claim_name}}],
            "containers": [{
                "name": "take", "image": image, "imagePullPolicy": "IfNotPresent", "stdin": true, "stdinOnce": true,
                "command": ["sh", "-c", SCRIPT],
                "env": [{"name": "PART", "value": format!(".skiff-{}", case.uid())}, {"name": "DIGEST", "value": digest(index)}],
                "volumeMounts": [mount],
                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "128Mi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsUser": 0,
                    "capabilities": {"drop": ["ALL"], "add": ["DAC_OVERRIDE"]},
                },
            }],
        },
    })
}

impl Controller {
    /// Brings results from the store into a claim, in several steps.
    pub(super) async fn fill(
        &self,
        case: &Case,
        link: &Link,
        volume: &VolumeSource,
        index: &Index,
    ) -> Result<Fill, kube::Error> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), case.namespace());
        let name = pod_name(case);
        let Some(there) = pods.get_opt(&name).await? else {
            let new: Pod = match serde_json::from_value(pod(case, link, volume, index)) {
                Ok(new) => new,
                Err(e) => return Ok(Fill::Failed(format!("the pod that fills the volume: {e}"))),
            };
            return match pods.create(&PostParams::default(), &new).await {
                Ok(_) => Ok(Fill::Wait(format!("pod {name} fills the volume"))),
                Err(e) if code(&e) == 409 => Ok(Fill::Wait(format!("pod {name} is there already"))),
                // A quota, a policy of the namespace: it may become otherwise.
                Err(e) if matches!(code(&e), 403 | 422) => {
                    Ok(Fill::Failed(format!("the pod that fills the volume is refused: {e}")))
                }
                Err(e) => Err(e),
            };
        };
        if !there.metadata.owner_references.iter().flatten().any(|o| o.uid == case.uid()) {
            return Ok(Fill::Failed(format!("pod {name} is there and not this job's")));
        }
        let status = there.status.unwrap_or_default();
        match status.phase.as_deref() {
            Some("Succeeded") => {
                self.drop_pod(&pods, &name).await?;
                Ok(Fill::Done)
            }
            Some("Failed") => {
                let log = pods.logs(&name, &LogParams { tail_lines: Some(3), ..LogParams::default() }).await;
                let said = log.unwrap_or_default().trim().lines().collect::<Vec<_>>().join("; ");
                let why = status.message.or(status.reason).unwrap_or_default();
                self.drop_pod(&pods, &name).await?;
                Ok(Fill::Failed(format!("pod {name} could not fill the volume: {why} {said}").trim().to_owned()))
            }
            Some("Running") => {
                let bytes: u64 = index.files.values().map(|s| s.size).sum();
                let sent =
                    tokio::time::timeout(SEND + Duration::from_secs(bytes >> 20), self.send(case, &pods, &name, index));
                Ok(match sent.await {
                    Ok(Ok(())) => Fill::Wait(format!("pod {name} has the results")),
                    // What became of them the pod tells by how it ends; it ends when nobody is attached any more.
                    Ok(Err(error)) => Fill::Wait(format!("pod {name} was not told all of them: {error:#}")),
                    Err(_) => Fill::Wait(format!("pod {name} does not take them in time")),
                })
            }
            _ => Ok(Fill::Wait(format!("pod {name} fills the volume{}", waits(&status)))),
        }
    }

    /// Removes the pod: the next look makes another, where there is one.
    pub(super) async fn give_up_filling(&self, case: &Case) -> Result<(), kube::Error> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), case.namespace());
        self.drop_pod(&pods, &pod_name(case)).await
    }

    async fn drop_pod(&self, pods: &Api<Pod>, name: &str) -> Result<(), kube::Error> {
        let gone = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::background() };
        match pods.delete(name, &gone).await {
            Err(e) if code(&e) != 404 => Err(e),
            _ => Ok(()),
        }
    }

    async fn send(&self, case: &Case, pods: &Api<Pod>, name: &str, index: &Index) -> anyhow::Result<()> {
        let mut files = vec![];
        for (path, stored) in &index.files {
            files.push((path.clone(), stored.clone(), self.store.open(case.uid(), stored).await?.into_std().await));
        }
        // Errors are asked for because the end of an attachment is the end of its output.
        let attached = AttachParams { stdin: true, stdout: false, stderr: true, ..AttachParams::default() };
        let mut attached = pods.attach(name, &attached).await?;
        let (Some(stdin), Some(mut stderr), Some(status)) =
            (attached.stdin(), attached.stderr(), attached.take_status())
        else {
            anyhow::bail!("nothing can be sent to it")
        };
        let ended = async {
            let drained = async {
                // What it says is in its log.
                let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                _ = status => {}
                () = drained => {}
            }
        };
        let mut ended = std::pin::pin!(ended);
        // A pipe of the client does not tell its writer that nobody reads it any more.
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let to = Blocking { to: stdin, runtime: Handle::current(), stop: stop.clone() };
        let mut packing = tokio::task::spawn_blocking(move || pack(files, to));
        let packed = tokio::select! {
            packed = &mut packing => packed,
            () = &mut ended => {
                stop.cancel();
                packing.await
            }
        };
        packed??;
        if !stop.is_cancelled() {
            ended.await;
        }
        Ok(())
    }
}

/// Writes results as a tar archive, and its end.
fn pack<W: AsyncWrite + Unpin>(
    files: Vec<(String, crate::store::Stored, std::fs::File)>,
    to: Blocking<W>,
) -> io::Result<()> {
    let mut archive = tar::Builder::new(io::BufWriter::with_capacity(1 << 18, to));
    for (path, stored, file) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(stored.size);
        header.set_mode(0o644);
        header.set_mtime(stored.modified.try_into().unwrap_or_default());
        archive.append_data(&mut header, path, io::Read::take(file, stored.size))?;
    }
    let mut to = archive.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    to.wait(async |w| w.shutdown().await)
}

/// Writes for a thread that may wait, until it is stopped.
struct Blocking<W> {
    to: W,
    runtime: Handle,
    stop: CancellationToken,
}

impl<W: AsyncWrite + Unpin> Blocking<W> {
    fn wait<T>(&mut self, act: impl AsyncFnOnce(&mut W) -> io::Result<T>) -> io::Result<T> {
        let Self { to, runtime, stop } = self;
        let done = runtime.block_on(stop.run_until_cancelled(act(to)));
        done.unwrap_or_else(|| Err(io::Error::new(io::ErrorKind::BrokenPipe, "it ended before it had all of them")))
    }
}

impl<W: AsyncWrite + Unpin> Write for Blocking<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.wait(async |w| w.write(bytes).await)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.wait(async |w| w.flush().await)
    }
}

/// The condition that says what keeps results from being where they should be.
fn kept(case: &Case) -> Option<&Condition> {
    case.status.conditions.iter().find(|c| c.type_ == condition::OUTPUTS_READY && c.status == "False")
}

/// Whether what is brought home is here, and on its way into a claim.
pub(super) fn under_way(case: &Case) -> bool {
    kept(case).is_some_and(|c| matches!(&*c.reason, FILLING | FAILING))
}

/// Reasons of the condition while results are on their way into a claim, and while that fails.
pub(super) const FILLING: &str = "FillingVolume";
/// See [`FILLING`].
pub(super) const FAILING: &str = "VolumeFailed";

/// For how many seconds something has kept results from being where they should be.
pub(super) fn age(case: &Case) -> i64 {
    kept(case).map_or(0, |c| Timestamp::now().as_second() - c.last_transition_time.0.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Stored;

    #[tokio::test]
    async fn what_is_packed_is_what_the_pod_expects() {
        let dir = tempfile::tempdir().unwrap();
        let long = format!("{}/deep", "long/".repeat(40));
        let (mut index, mut files) = (Index::default(), vec![]);
        for (i, path) in ["a 'b'\n$(c)", "sub/x", &long].into_iter().enumerate() {
            let text = format!("content {i}");
            let at = dir.path().join(i.to_string());
            std::fs::write(&at, &text).unwrap();
            let stored =
                Stored { size: text.len() as u64, sha256: hex(&Sha256::digest(&text)), modified: 1_700_000_000 };
            files.push((path.to_owned(), stored.clone(), std::fs::File::open(at).unwrap()));
            index.files.insert(path.to_owned(), stored);
        }
        let packed = dir.path().join("packed");
        let to = Blocking {
            to: tokio::fs::File::create(&packed).await.unwrap(),
            runtime: Handle::current(),
            stop: CancellationToken::new(),
        };
        tokio::task::spawn_blocking(move || pack(files, to)).await.unwrap().unwrap();
        let results = dir.path().join("results");
        std::fs::create_dir(&results).unwrap();
        std::fs::write(results.join("other"), "stays").unwrap();
        let run = |digest: &str, script: &str| {
            let script = script.replace("/results", &results.display().to_string());
            let mut c = std::process::Command::new("sh");
            c.args(["-c", &script]).env("PART", ".skiff-u").env("DIGEST", digest);
            c.stdin(std::fs::File::open(&packed).unwrap()).output().unwrap()
        };
        let wrong = run("0", SCRIPT);
        assert_eq!(wrong.status.code(), Some(3), "{wrong:?}");
        let names = || std::fs::read_dir(&results).unwrap().map(|e| e.unwrap().file_name()).collect::<Vec<_>>();
        assert_eq!(names(), ["other"], "nothing of what is not whole is left");
        let whole = run(&digest(&index), SCRIPT);
        assert!(whole.status.success(), "{whole:?}");
        for (i, path) in index.files.keys().enumerate() {
            let text = std::fs::read_to_string(results.join(path)).unwrap();
            assert!(text.starts_with("content "), "{i} {path}");
        }
        assert_eq!(std::fs::read_to_string(results.join("other")).unwrap(), "stays");
        assert!(!results.join(".skiff-u").exists());
        // Again, over what is there; and an end that comes too early is told.
        assert!(run(&digest(&index), SCRIPT).status.success());
        let half = std::fs::read(&packed).unwrap();
        std::fs::write(&packed, &half[..700]).unwrap();
        assert!(!run(&digest(&index), SCRIPT).status.success());
    }

    #[tokio::test]
    async fn packing_ends_with_who_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), vec![7; 100_000]).unwrap();
        let stored = Stored { size: 100_000, sha256: String::new(), modified: 0 };
        let files = vec![("file".to_owned(), stored, std::fs::File::open(dir.path().join("file")).unwrap())];
        let (_reads_nothing, to) = tokio::io::simplex(1024);
        let stop = CancellationToken::new();
        let to = Blocking { to, runtime: Handle::current(), stop: stop.clone() };
        let packing = tokio::task::spawn_blocking(move || pack(files, to));
        stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(30), packing).await.unwrap().unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
