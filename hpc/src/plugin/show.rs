//! `list`, `describe`, `partitions` and `script`.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use http_body_util::BodyExt as _;
use k8s_openapi::api::core::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use skiff_plugin::table::{age, render};
use skiff_plugin::{Format, nothing_found};

use super::Session;
use super::submit::of_file;
use crate::api::{CLUSTER, GpuJob, GpuJobStatus, HpcCluster, HpcClusterSpec, Phase, SlurmPartition};
use crate::script::{Plan, name as slurm_name, script as batch_script};

/// `list`.
#[derive(Clone, Debug, Args)]
pub(super) struct ListArgs {
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Labels that they must have.
    #[arg(short = 'l', long)]
    selector: Option<String>,
    /// Form of the output.
    #[arg(short, long)]
    output: Option<Format>,
}

/// `describe`.
#[derive(Clone, Debug, Args)]
pub(super) struct DescribeArgs {
    /// The job.
    name: String,
}

/// `partitions`.
#[derive(Clone, Debug, Args)]
pub(super) struct PartitionsArgs {
    /// Of this HpcCluster.
    #[arg(long)]
    on: Option<String>,
    /// Form of the output.
    #[arg(short, long)]
    output: Option<Format>,
}

/// `script`.
#[derive(Clone, Debug, Args)]
pub(super) struct ScriptArgs {
    /// The job.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// A manifest that was not submitted.
    #[arg(short, long, conflicts_with = "name")]
    file: Option<PathBuf>,
}

pub(super) async fn list(session: &Session, args: ListArgs) -> anyhow::Result<()> {
    let params = ListParams { label_selector: args.selector, ..ListParams::default() };
    let jobs = session.some::<GpuJob>(args.all_namespaces).list(&params).await?.items;
    if let Some(format) = args.output
        && format.data(&jobs, "gpujob")?
    {
        return Ok(());
    }
    if jobs.is_empty() {
        nothing_found((!args.all_namespaces).then_some(session.namespace.as_str()));
        return Ok(());
    }
    let wide = args.output == Some(Format::Wide);
    let mut head = vec!["NAME", "CLUSTER", "JOB-ID", "PHASE", "SLURM", "REASON", "EXIT", "AGE"];
    if args.all_namespaces {
        head.insert(0, "NAMESPACE");
    }
    if wide {
        head.extend(["PARTITION", "NODES", "ATTEMPT", "QUEUED", "RAN", "FILES"]);
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = jobs
        .iter()
        .map(|job| {
            let s = job.status.clone().unwrap_or_default();
            let waiting = s.waiting.clone().unwrap_or_default();
            let mut row = vec![
                job.name_any(),
                s.cluster.clone().unwrap_or_default(),
                s.job_id.clone().unwrap_or_default(),
                s.phase.map_or("", Phase::as_str).to_owned(),
                word(&s),
                s.reason.clone().unwrap_or_default(),
                s.exit_code.map(|c| c.to_string()).unwrap_or_default(),
                age(job.metadata.creation_timestamp.as_ref(), now),
            ];
            if args.all_namespaces {
                row.insert(0, job.namespace().unwrap_or_default());
            }
            if wide {
                row.extend([
                    s.partition.clone().unwrap_or_default(),
                    s.node_list.clone().unwrap_or_default(),
                    s.attempt.to_string(),
                    format!("{}s", waiting.queued_seconds),
                    format!("{}s", waiting.running_seconds),
                    s.outputs.as_ref().map(|o| o.files.to_string()).unwrap_or_default(),
                ]);
            }
            row
        })
        .collect();
    print!("{}", render(&head, &rows));
    Ok(())
}

/// Slurm's word with its flags.
fn word(status: &GpuJobStatus) -> String {
    let state = status.state.as_deref().unwrap_or_default();
    let flags = status.flags.iter().map(String::as_str).filter(|f| *f != state);
    std::iter::once(state).chain(flags).collect::<Vec<_>>().join("+")
}

pub(super) async fn describe(session: &Session, args: DescribeArgs) -> anyhow::Result<()> {
    let job = session.api::<GpuJob>().get(&args.name).await?;
    print!("{}", described(&job)?);
    let of = ListParams::default().fields(&format!("involvedObject.kind=GpuJob,involvedObject.name={}", args.name));
    let mut events = session.api::<Event>().list(&of).await?.items;
    events.retain(|e| e.involved_object.uid == job.metadata.uid);
    events.sort_by_key(|e| e.last_timestamp.as_ref().map(|t| t.0));
    if events.is_empty() {
        println!("Events:      <none>");
        return Ok(());
    }
    let now = Timestamp::now();
    let rows: Vec<Vec<String>> = events
        .into_iter()
        .map(|e| {
            vec![
                format!("  {}", e.type_.unwrap_or_default()),
                e.reason.unwrap_or_default(),
                age(e.last_timestamp.as_ref(), now),
                e.message.unwrap_or_default(),
            ]
        })
        .collect();
    print!("Events:\n{}", render(&["  TYPE", "REASON", "AGE", "MESSAGE"], &rows));
    Ok(())
}

fn described(job: &GpuJob) -> anyhow::Result<String> {
    let s = job.status.clone().unwrap_or_default();
    let mut out = String::new();
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(out, "{:<13}{value}", format!("{name}:"));
        }
    };
    let or = |v: &Option<String>| v.clone().unwrap_or_default();
    line("Name", job.name_any());
    line("Namespace", job.namespace().unwrap_or_default());
    line("Cluster", or(&s.cluster));
    line("Phase", s.phase.map_or("", Phase::as_str).to_owned());
    line("Slurm", [word(&s), or(&s.reason)].iter().filter(|t| !t.is_empty()).cloned().collect::<Vec<_>>().join(", "));
    line("Job id", or(&s.job_id));
    line("Partition", or(&s.partition));
    line("Nodes", or(&s.node_list));
    line("Directory", or(&s.directory));
    line("Exit code", s.exit_code.map(|c| c.to_string()).unwrap_or_default());
    line("Signal", s.signal.map(|c| c.to_string()).unwrap_or_default());
    line("Decided by", s.decided_by.map(|d| format!("{d:?}")).unwrap_or_default());
    line("Attempt", if s.attempt > 0 { s.attempt.to_string() } else { String::new() });
    line("Restarts", if s.restarts > 0 { s.restarts.to_string() } else { String::new() });
    if let Some(t) = &s.tasks {
        line(
            "Tasks",
            format!(
                "{}: {} pending, {} running, {} succeeded, {} failed",
                t.total, t.pending, t.running, t.succeeded, t.failed
            ),
        );
    }
    if let Some(t) = &s.times {
        let time = |t: &Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
            t.as_ref().map(|t| t.0.strftime("%Y-%m-%d %H:%M:%S").to_string()).unwrap_or_default()
        };
        line("Submitted", time(&t.submitted));
        line("Expected", if t.started.is_none() { time(&t.expected_start) } else { String::new() });
        line("Started", time(&t.started));
        line("Limit", if t.ended.is_none() { time(&t.limit) } else { String::new() });
        line("Ended", time(&t.ended));
    }
    if let Some(w) = &s.waiting {
        line(
            "Waiting",
            format!(
                "{} s in the queue, {} s starting, {} s running, {} s files on their way",
                w.queued_seconds, w.starting_seconds, w.running_seconds, w.staging_seconds
            ),
        );
    }
    if let Some(o) = &s.outputs {
        let more = o.message.as_ref().map(|m| format!(" ({m})")).unwrap_or_default();
        line("Results", format!("{:?}: {} files, {} bytes{more}", o.state, o.files, o.bytes));
    }
    let mut spec = serde_json::to_value(&job.spec)?;
    super::convert::tidy(&mut spec);
    let spec = serde_saphyr::to_string(&spec)?;
    let _ = writeln!(out, "Spec:");
    for text in spec.lines() {
        let _ = writeln!(out, "  {text}");
    }
    if !s.conditions.is_empty() {
        let rows: Vec<Vec<String>> = s
            .conditions
            .iter()
            .map(|c| vec![format!("  {}", c.type_), c.status.clone(), c.reason.clone(), c.message.clone()])
            .collect();
        let _ = write!(out, "Conditions:\n{}", render(&["  TYPE", "STATUS", "REASON", "MESSAGE"], &rows));
    }
    Ok(out)
}

pub(super) async fn partitions(session: &Session, args: PartitionsArgs) -> anyhow::Result<()> {
    let mut params = ListParams::default();
    if let Some(cluster) = &args.on {
        params = params.labels(&format!("{CLUSTER}={cluster}"));
    }
    let all = Api::<SlurmPartition>::all(session.client.clone()).list(&params).await?.items;
    if let Some(format) = args.output
        && format.data(&all, "slurmpartition")?
    {
        return Ok(());
    }
    if all.is_empty() {
        nothing_found(None);
        return Ok(());
    }
    let rows: Vec<Vec<String>> = all
        .into_iter()
        .map(|p| {
            let s = p.status.unwrap_or_default();
            vec![
                p.spec.cluster,
                format!("{}{}", p.spec.partition, if s.default { "*" } else { "" }),
                s.state.unwrap_or_default(),
                format!("{}/{}", s.nodes.free, s.nodes.total),
                format!("{}/{}", s.cpus.free, s.cpus.total),
                s.gpu_summary.unwrap_or_default(),
                s.max_time.unwrap_or_default(),
                format!("{} cores, {} GiB", s.node_cpus, s.node_memory_mib >> 10),
                s.features.join(","),
            ]
        })
        .collect();
    let head = ["CLUSTER", "PARTITION", "STATE", "NODES", "CORES", "GPUS", "TIME-LIMIT", "LARGEST-NODE", "FEATURES"];
    print!("{}", render(&head, &rows));
    Ok(())
}

pub(super) async fn script(session: &Session, args: ScriptArgs) -> anyhow::Result<()> {
    let job = match (&args.name, &args.file) {
        (Some(name), _) => {
            let job = session.api::<GpuJob>().get(name).await?;
            // The one that submits knows best; before that, and where it does not answer, it is made here in the same way.
            if let Ok(answer) =
                super::logs::get(session, &format!("/hpc/{}/{name}/script", session.namespace), None).await
                && let Ok(body) = answer.into_body().collect().await
            {
                print!("{}", String::from_utf8_lossy(&body.to_bytes()));
                return Ok(());
            }
            job
        }
        (None, Some(file)) => of_file(file)?,
        (None, None) => bail!("which job?"),
    };
    let status = job.status.clone().unwrap_or_default();
    let named = job.spec.cluster.clone().or_else(|| status.cluster.clone());
    let clusters = Api::<HpcCluster>::all(session.client.clone());
    let found = match &named {
        Some(name) => clusters.get_opt(name).await.map(|c| c.into_iter().collect::<Vec<_>>()),
        None => clusters.list(&ListParams::default()).await.map(|l| l.items),
    };
    let cluster = match found {
        Ok(mut all) if all.len() == 1 => all.remove(0).spec,
        Ok(_) => {
            eprintln!("note: there is no such cluster, so its defaults are not in the script");
            HpcClusterSpec { work_directory: "/WORK-DIRECTORY".into(), ..HpcClusterSpec::default() }
        }
        // How a cluster is reached is its owner's business.
        Err(kube::Error::Api(s)) if s.code == 403 => {
            eprintln!("note: you may not read the cluster, so its defaults are not in the script");
            HpcClusterSpec { work_directory: "/WORK-DIRECTORY".into(), ..HpcClusterSpec::default() }
        }
        Err(e) => return Err(e.into()),
    };
    print!("{}", text_of(&job, &status, &cluster)?);
    Ok(())
}

fn text_of(job: &GpuJob, status: &GpuJobStatus, cluster: &HpcClusterSpec) -> anyhow::Result<String> {
    let attempt = status.attempt.max(1);
    let name = slurm_name(job.metadata.uid.as_deref().unwrap_or("UID"), attempt);
    let space = job.namespace().unwrap_or_else(|| "NAMESPACE".into());
    let fallback = format!("{}/{space}/{}", cluster.work_directory.trim_end_matches('/'), job.name_any());
    let directory = status.directory.clone().unwrap_or(fallback);
    // Slurm's numbers of other jobs are known to the one who submits.
    let dependencies: Vec<String> = job
        .spec
        .dependencies
        .iter()
        .filter_map(|d| Some(format!("{}:{}", crate::script::dependency_word(d.kind)?, d.job.as_deref()?)))
        .collect();
    let plan = Plan {
        spec: &job.spec,
        cluster,
        name: &name,
        object: &format!("{space}/{}", job.name_any()),
        directory: Some(&directory),
        attempt,
        dependencies: &dependencies,
        secrets: job.spec.env.iter().any(|e| e.value_from.is_some()),
    };
    Ok(batch_script(&plan).context("there is no script that says this")?.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn job() -> GpuJob {
        serde_json::from_value(json!({
            "apiVersion": "skiff.dev/v1", "kind": "GpuJob", "metadata": {"name": "add", "namespace": "lab", "uid": "u1"},
            "spec": {"run": {"command": ["./add", "it's"]}, "resources": {"partition": "a100", "gpus": [{"count": 2}]}},
            "status": {"phase": "Running", "state": "RUNNING", "flags": ["SIGNALING"], "jobId": "7", "attempt": 2, "nodeList": "n1",
                "conditions": [{"type": "Running", "status": "True", "reason": "Running", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
                "waiting": {"queuedSeconds": 3, "startingSeconds": 1, "runningSeconds": 9, "stagingSeconds": 0}}
        }))
        .unwrap()
    }

    #[test]
    fn a_job_is_described() {
        let text = described(&job()).unwrap();
        for part in [
            "Name:        add",
            "Slurm:       RUNNING+SIGNALING",
            "Job id:      7",
            "3 s in the queue",
            "  Running   True",
            "count: 2",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }

    #[test]
    fn a_script_is_what_is_submitted() {
        let job = job();
        let cluster = HpcClusterSpec { work_directory: "/w".into(), ..HpcClusterSpec::default() };
        let text = text_of(&job, &job.status.clone().unwrap(), &cluster).unwrap();
        assert!(text.starts_with("#!"), "{text}");
        for part in ["--job-name=skiff-u1-2", "--partition=a100", "--gres=gpu:2", "/w/lab/add"] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
    }
}
