//! `submit`: from a directory, a script or a manifest to a GpuJob.
//!
//! Files go into ConfigMaps that belong to the job and go with it. The job is made first: who brings it to Slurm waits for its files,
//! and a half-finished upload leaves nothing behind once the job is deleted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use kube::api::PostParams;
use kube::{Resource as _, ResourceExt as _};
use skiff_plugin::archive::{self, Entry, Files};
use skiff_plugin::parts;

use super::convert::{documents, made, manifest, read};
use super::{MANAGER, Session, sbatch};
use crate::api::{
    Archive, Array, Build, BuildPlace, Dependency, DependencyType, EnvVar, GpuJob, GpuJobSpec, GpuRequest, GpuScope,
    Make, Phase, Run, Source,
};

/// Parts that an archive may have.
const PARTS_MAX: usize = 64;
/// Manifests that a directory may have for itself, and scripts.
const MANIFESTS: [&str; 3] = ["gpujob.yaml", "gpujob.yml", "job.yaml"];
const SCRIPTS: [&str; 3] = [".slurm", ".sbatch", ".job"];

/// `submit`.
#[derive(Clone, Debug, Args)]
pub(super) struct SubmitArgs {
    /// A directory or ZIP file that the job starts with, a batch script, a manifest, or - for one of these two on standard input.
    path: PathBuf,
    /// The manifest that says what is done with a directory (gpujob.yaml in it, else a batch script in it).
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// Name of the job. Default: that of the directory or file, and something behind it.
    #[arg(long)]
    name: Option<String>,
    /// The HpcCluster (the only one there is).
    #[arg(long)]
    on: Option<String>,
    /// Partition.
    #[arg(short, long)]
    partition: Option<String>,
    /// Nodes.
    #[arg(short = 'N', long)]
    nodes: Option<u32>,
    /// Tasks of the whole job.
    #[arg(long)]
    tasks: Option<u32>,
    /// Tasks on each node.
    #[arg(long)]
    tasks_per_node: Option<u32>,
    /// Cores for each task.
    #[arg(long)]
    cpus_per_task: Option<u32>,
    /// Cores for each GPU.
    #[arg(long)]
    cpus_per_gpu: Option<u32>,
    /// GPUs on each node, as 2 or a100:2.
    #[arg(short, long)]
    gpus: Vec<String>,
    /// Memory of each node, as 16G.
    #[arg(long)]
    mem: Option<String>,
    /// Time limit, as 30 (minutes), 2:00:00, 1-12.
    #[arg(short, long)]
    time: Option<String>,
    /// Quality of service.
    #[arg(long)]
    qos: Option<String>,
    /// Account that is charged.
    #[arg(long)]
    account: Option<String>,
    /// Numbers of an array, as 0-15 or 0-99%10.
    #[arg(short, long)]
    array: Option<String>,
    /// A module to load; again for more.
    #[arg(short, long)]
    module: Vec<String>,
    /// A command that builds; again for more.
    #[arg(short, long)]
    build: Vec<String>,
    /// Run make to build.
    #[arg(long)]
    make: bool,
    /// Build on the login host before submission, not in the job.
    #[arg(long)]
    build_on_login: bool,
    /// A variable, as KEY=VALUE; again for more.
    #[arg(short, long)]
    env: Vec<String>,
    /// Results to bring back, as '*.csv' or 'out/**'; again for more.
    #[arg(short, long)]
    output: Vec<String>,
    /// Start after this job succeeded; again for more.
    #[arg(long)]
    after: Vec<String>,
    /// Start the command as every task, with srun.
    #[arg(long)]
    srun: bool,
    /// Submit it held.
    #[arg(long)]
    hold: bool,
    /// Wait for the end; the exit code is the job's.
    #[arg(short, long)]
    wait: bool,
    /// How long --wait waits, in seconds.
    #[arg(long, default_value_t = 7 * 86_400)]
    timeout: u64,
    /// Print the manifest instead.
    #[arg(long)]
    dry_run: bool,
    /// What runs.
    #[arg(last = true)]
    command: Vec<String>,
}

/// A job, and the files it starts with.
struct Prepared {
    jobs: Vec<GpuJob>,
    files: Option<Files>,
    notes: Vec<String>,
}

impl SubmitArgs {
    /// Whether no cluster is needed.
    pub(super) fn prints_only(&self) -> bool {
        self.dry_run
    }

    fn prepare(&self) -> anyhow::Result<Prepared> {
        let path = &self.path;
        let packed = path.is_dir() || path.extension().is_some_and(|e| e.eq_ignore_ascii_case("zip"));
        let files = if packed { Some(plain(archive::read(path)?)?) } else { None };
        let text = match (&files, &self.file) {
            (_, Some(file)) => Some((read(file)?, file.clone())),
            (None, None) => Some((read(path)?, path.clone())),
            (Some(files), None) => self.own(files)?,
        };
        let base = path.canonicalize().ok().and_then(|p| Some(p.file_stem()?.to_string_lossy().into_owned()));
        let base = self.name.clone().or(base).unwrap_or_else(|| "job".into());
        let mut notes = Vec::new();
        let mut jobs: Vec<GpuJob> = match text {
            None => vec![generated(&base, self.name.is_some(), GpuJobSpec::default())],
            Some((text, _)) if text.starts_with("#!") => {
                let (spec, name, said) = sbatch::job(&text)?;
                notes = said;
                let name = self.name.clone().or(name).unwrap_or(base);
                vec![generated(&name, self.name.is_some(), spec)]
            }
            Some((text, file)) => {
                let all = documents(&text).with_context(|| file.display().to_string())?;
                all.into_iter().map(|d| self.ours(d)).collect::<anyhow::Result<_>>()?
            }
        };
        if jobs.len() > 1 && (files.is_some() || self.name.is_some()) {
            bail!("there are {} jobs in it: files and --name are for one", jobs.len());
        }
        for job in &mut jobs {
            self.change(&mut job.spec)?;
            if job.spec.run == Run::default() {
                bail!(
                    "what should run? Name the command after --, or put a gpujob.yaml or a batch script into the directory"
                );
            }
        }
        Ok(Prepared { jobs, files, notes })
    }

    /// What a directory itself says is to be done with it.
    fn own(&self, files: &Files) -> anyhow::Result<Option<(String, PathBuf)>> {
        let text = |name: &String| match files.get(name) {
            Some(Entry::File(bytes, _)) => {
                let text = String::from_utf8(bytes.clone()).with_context(|| format!("{name} is no text"))?;
                anyhow::Ok(Some((text, PathBuf::from(name))))
            }
            _ => Ok(None),
        };
        if let Some(name) = MANIFESTS.iter().map(|m| (*m).to_owned()).find(|m| files.contains_key(m)) {
            return text(&name);
        }
        if !self.command.is_empty() {
            return Ok(None);
        }
        let scripts: Vec<&String> =
            files.keys().filter(|n| !n.contains('/') && SCRIPTS.iter().any(|s| n.ends_with(s))).collect();
        match scripts[..] {
            [] => Ok(None),
            [one] => text(one),
            _ => bail!("there are several batch scripts in it; name one with --file: {scripts:?}"),
        }
    }

    fn ours(&self, document: serde_json::Value) -> anyhow::Result<GpuJob> {
        let kind = (document["apiVersion"].as_str(), document["kind"].as_str());
        if kind != (Some("skiff.dev/v1"), Some("GpuJob")) {
            let kind = kind.1.unwrap_or("nothing known");
            bail!("it is {kind} of another API: kubectl gpu convert makes a job of ours of a predecessor's");
        }
        let mut job: GpuJob = serde_json::from_value(document).context("not a GpuJob")?;
        if let Some(name) = &self.name {
            (job.metadata.name, job.metadata.generate_name) = (Some(name.clone()), None);
        }
        Ok(job)
    }

    /// Writes what was said on the command line over what the file says.
    fn change(&self, spec: &mut GpuJobSpec) -> anyhow::Result<()> {
        if self.on.is_some() {
            spec.cluster.clone_from(&self.on);
        }
        let mut r = spec.resources.clone().unwrap_or_default();
        fn over<T: Clone>(field: &mut Option<T>, said: &Option<T>) {
            if said.is_some() {
                field.clone_from(said);
            }
        }
        over(&mut r.partition, &self.partition);
        over(&mut r.nodes, &self.nodes);
        over(&mut r.tasks, &self.tasks);
        over(&mut r.tasks_per_node, &self.tasks_per_node);
        over(&mut r.cpus_per_task, &self.cpus_per_task);
        over(&mut r.cpus_per_gpu, &self.cpus_per_gpu);
        over(&mut r.memory, &self.mem);
        over(&mut r.time, &self.time);
        over(&mut r.qos, &self.qos);
        over(&mut r.account, &self.account);
        if !self.gpus.is_empty() {
            r.gpus = self
                .gpus
                .iter()
                .map(|g| {
                    let gpu = sbatch::gpu(&format!("gpu:{g}"));
                    gpu.map(|g| GpuRequest { per: GpuScope::Node, ..g })
                        .with_context(|| format!("--gpus {g}: as 2 or a100:2"))
                })
                .collect::<anyhow::Result<_>>()?;
        }
        if let Some(array) = &self.array {
            let (tasks, limit) = array.split_once('%').map_or((array.as_str(), None), |(t, l)| (t, l.parse().ok()));
            r.array = Some(Array { tasks: tasks.to_owned(), limit });
        }
        spec.resources = Some(r).filter(|r| *r != Default::default());
        spec.modules.extend(self.module.iter().cloned());
        if !self.build.is_empty() || self.make {
            let build = spec.build.get_or_insert_with(Build::default);
            build.commands.extend(self.build.iter().cloned());
            if self.make {
                build.make.get_or_insert_with(Make::default);
            }
        }
        if let (true, Some(build)) = (self.build_on_login, &mut spec.build) {
            build.place = BuildPlace::Login;
        }
        for variable in &self.env {
            let (name, value) = variable.split_once('=').with_context(|| format!("--env {variable}: as KEY=VALUE"))?;
            spec.env.retain(|e| e.name != name);
            spec.env.push(EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None });
        }
        spec.outputs.extend(self.output.iter().cloned());
        spec.dependencies
            .extend(self.after.iter().map(|job| Dependency { kind: DependencyType::AfterOk, job: Some(job.clone()) }));
        spec.suspend |= self.hold;
        if !self.command.is_empty() {
            spec.run = Run { command: self.command.clone(), ..Run::default() };
        }
        if self.srun {
            spec.run.launcher = crate::api::Launcher::Srun;
        }
        Ok(())
    }
}

/// A job that gets a name of its own unless somebody chose one.
fn generated(base: &str, chosen: bool, spec: GpuJobSpec) -> GpuJob {
    let mut job = made(base, None, spec);
    if !chosen {
        job.metadata.generate_name = job.metadata.name.take().map(|n| format!("{n}-"));
    }
    job
}

/// Files without links: what a link leads to takes its place.
fn plain(files: Files) -> anyhow::Result<Files> {
    let mut out = Files::new();
    for (name, entry) in &files {
        let mut entry = entry.clone();
        let mut at = name.clone();
        for _ in 0..8 {
            let Entry::Link(to) = &entry else { break };
            let mut parts: Vec<&str> = at.split('/').collect();
            parts.pop();
            for part in to.split('/') {
                match part {
                    "" | "." => {}
                    ".." => drop(parts.pop()),
                    part => parts.push(part),
                }
            }
            at = parts.join("/");
            entry = files.get(&at).with_context(|| format!("{name} leads to {at}, which is no file in it"))?.clone();
        }
        if matches!(entry, Entry::Link(_)) {
            bail!("{name} leads round in circles");
        }
        out.insert(name.clone(), entry);
    }
    Ok(out)
}

/// Packs files: what the job says of them, and the parts.
fn pack(name: &str, files: &Files) -> anyhow::Result<(Archive, Vec<Vec<u8>>)> {
    let packed = archive::pack(files)?;
    let parts: Vec<Vec<u8>> = packed.chunks(parts::PART).map(<[u8]>::to_vec).collect();
    if parts.len() > PARTS_MAX {
        bail!(
            "the files are {} MiB when packed, more than {}: leave data out with {}, and have it on the cluster",
            packed.len() >> 20,
            (PARTS_MAX * parts::PART) >> 20,
            archive::IGNORE_FILE
        );
    }
    let sha256 = archive::digest(&packed);
    let name = format!("{name}-files-{}", &sha256[..12]);
    Ok((Archive { name, parts: u32::try_from(parts.len())?, sha256 }, parts))
}

/// Prints what would be submitted.
pub(super) fn print(args: &SubmitArgs) -> anyhow::Result<()> {
    let prepared = args.prepare()?;
    for (i, job) in prepared.jobs.iter().enumerate() {
        if i > 0 {
            println!("---");
        }
        print!("{}", manifest(job)?);
    }
    if let Some(files) = prepared.files {
        eprintln!("note: with {} files from {}", files.len(), args.path.display());
    }
    for note in prepared.notes {
        eprintln!("note: {note}");
    }
    Ok(())
}

pub(super) async fn submit(session: &Session, args: SubmitArgs) -> anyhow::Result<()> {
    let Prepared { jobs, files, notes } = args.prepare()?;
    let mut names = Vec::new();
    for mut job in jobs {
        if job.namespace().is_some_and(|n| n != session.namespace) {
            let namespace = job.namespace().unwrap_or_default();
            bail!("the job is for namespace {namespace}, not {}: name it with -n", session.namespace);
        }
        let mut upload = None;
        if let Some(files) = &files {
            let base = job.metadata.name.clone().or_else(|| job.metadata.generate_name.clone()).unwrap_or_default();
            let packed = pack(base.trim_end_matches('-'), files)?;
            job.spec.source = Some(Source { archive: Some(packed.0.clone()), ..Source::default() });
            upload = Some(packed);
        }
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let made = session.api::<GpuJob>().create(&params, &job).await?;
        if let Some((archive, parts)) = upload {
            let owner = made.controller_owner_ref(&());
            let stored = async {
                parts::put(session, &archive.name, &parts, &[], MANAGER).await?;
                parts::adopt(session, &archive.name, archive.parts, owner).await
            };
            if let Err(e) = stored.await {
                // A job that waits for ever for its files helps nobody.
                session.api::<GpuJob>().delete(&made.name_any(), &Default::default()).await?;
                return Err(e.context("the files cannot be stored"));
            }
        }
        println!("gpujob.skiff.dev/{} created", made.name_any());
        names.push(made.name_any());
    }
    for note in notes {
        eprintln!("note: {note}");
    }
    if args.wait {
        for name in names {
            wait(session, &name, Duration::from_secs(args.timeout)).await?;
        }
    }
    Ok(())
}

/// Waits for a job's end. The process ends with its exit code unless that is zero.
async fn wait(session: &Session, name: &str, patience: Duration) -> anyhow::Result<()> {
    let ended =
        |job: Option<&GpuJob>| job.is_none_or(|j| j.status.as_ref().and_then(|s| s.phase).is_some_and(Phase::ended));
    let waited = tokio::time::timeout(patience, skiff_client::wait_for(session.api::<GpuJob>(), name, ended)).await;
    let job = waited.with_context(|| format!("job {name} has not ended in {} s", patience.as_secs()))??;
    let status = job.with_context(|| format!("job {name} was deleted"))?.status.unwrap_or_default();
    let said = status.conditions.iter().find(|c| c.status == "True" && (c.type_ == "Failed" || c.type_ == "Complete"));
    let said = said.map(|c| format!(" ({}: {})", c.reason, c.message)).unwrap_or_default();
    eprintln!("job {name}: {}{said}", status.phase.map_or("unknown", Phase::as_str));
    match (status.phase, status.exit_code) {
        (Some(Phase::Succeeded), _) => Ok(()),
        (_, Some(code)) if (1..=255).contains(&code) => std::process::exit(code),
        _ => std::process::exit(1),
    }
}

/// The job of a manifest or script, as it would be submitted: for `script`.
pub(super) fn of_file(path: &Path) -> anyhow::Result<GpuJob> {
    let text = read(path)?;
    if text.starts_with("#!") {
        let (spec, name, _) = sbatch::job(&text)?;
        return Ok(made(name.as_deref().unwrap_or("job"), None, spec));
    }
    let all = documents(&text)?;
    let [one] = &all[..] else { bail!("there are {} objects in {}", all.len(), path.display()) };
    serde_json::from_value(one.clone()).context("not a GpuJob")
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: SubmitArgs,
    }

    fn prepared(words: &[&str]) -> anyhow::Result<Prepared> {
        Line::try_parse_from([&["submit"], words].concat())?.args.prepare()
    }

    fn spec(prepared: &Prepared) -> serde_json::Value {
        serde_saphyr::from_str::<serde_json::Value>(&manifest(&prepared.jobs[0]).unwrap()).unwrap()["spec"].clone()
    }

    #[test]
    fn a_directory_and_flags_become_a_job() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path().join("Matrix_add");
        std::fs::create_dir(&d).unwrap();
        std::fs::write(d.join("add.cu"), "x").unwrap();
        std::os::unix::fs::symlink("add.cu", d.join("same.cu")).unwrap();
        let path = d.to_str().unwrap();
        assert!(prepared(&[path]).is_err(), "nothing says what runs");
        let p = prepared(&[
            path,
            "-g",
            "a100:2",
            "-p",
            "a100",
            "-t",
            "10",
            "--build",
            "nvcc add.cu -o add",
            "-e",
            "A=b",
            "-o",
            "*.out",
            "--after",
            "other",
            "--array",
            "0-3%2",
            "--",
            "./add",
            "a b",
        ])
        .unwrap();
        assert_eq!(p.jobs[0].metadata.generate_name.as_deref(), Some("matrix-add-"));
        assert_eq!(p.files.as_ref().unwrap()["same.cu"], p.files.as_ref().unwrap()["add.cu"]);
        assert_eq!(
            spec(&p),
            json!({
                "build": {"commands": ["nvcc add.cu -o add"]}, "run": {"command": ["./add", "a b"]}, "env": [{"name": "A", "value": "b"}],
                "resources": {"partition": "a100", "time": "10", "gpus": [{"type": "a100", "count": 2}], "array": {"tasks": "0-3", "limit": 2}},
                "outputs": ["*.out"], "dependencies": [{"type": "AfterOk", "job": "other"}]
            })
        );
        std::fs::write(d.join("go.slurm"), "#!/bin/sh\n#SBATCH -N 2\n./x\n").unwrap();
        assert_eq!(spec(&prepared(&[path]).unwrap())["resources"]["nodes"], 2);
        std::fs::write(
            d.join("gpujob.yaml"),
            "apiVersion: skiff.dev/v1\nkind: GpuJob\nmetadata: {name: m}\nspec: {run: {command: [./y]}, resources: {nodes: 3}}\n",
        )
        .unwrap();
        let p = prepared(&[path, "--tasks", "4"]).unwrap();
        assert_eq!(p.jobs[0].metadata.name.as_deref(), Some("m"));
        assert_eq!(spec(&p)["resources"], json!({"nodes": 3, "tasks": 4}));
        std::fs::write(d.join("gpujob.yaml"), "kind: GpuJob\nmetadata: {name: m}\n").unwrap();
        assert!(prepared(&[path]).is_err());
    }
}
