//! `convert`: jobs of the predecessors, and batch scripts, as manifests of ours.
//!
//! Two predecessors had a kind `GpuJob`. One names processes, tasks, cores and GPUs, compile and run scripts, a directory with the
//! sources and the result files, and a user with a password in clear text; the other has a `gpuConfig` with a `slurmConfig`.

use std::io::Read as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::{Value, json};

use super::sbatch;
use crate::api::{Build, BuildPlace, GpuJob, GpuJobSpec, GpuRequest, Resources, Run};

/// `convert`.
#[derive(Clone, Debug, Args)]
pub(super) struct ConvertArgs {
    /// The file, or - for standard input.
    file: PathBuf,
    /// The HpcCluster that jobs are for.
    #[arg(long)]
    on: Option<String>,
    /// Partition, where the file names none.
    #[arg(long)]
    partition: Option<String>,
}

/// Text of a file, or of standard input.
pub(super) fn read(file: &std::path::Path) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut bytes)?;
    } else {
        bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    String::from_utf8(bytes).with_context(|| format!("{} is no text", file.display()))
}

pub(super) fn convert(args: &ConvertArgs) -> anyhow::Result<()> {
    let text = read(&args.file)?;
    let mut out = Vec::new();
    let mut told = Vec::new();
    if text.starts_with("#!") {
        let (spec, name, notes) = sbatch::job(&text)?;
        let name = name.or_else(|| args.file.file_stem().map(|n| n.to_string_lossy().into_owned()));
        out.push(made(name.as_deref().unwrap_or("job"), None, spec));
        told = notes;
    } else {
        for document in documents(&text)? {
            let (job, notes) = predecessor(&document)?;
            out.push(job);
            told.extend(notes);
        }
    }
    for (i, job) in out.iter_mut().enumerate() {
        job.spec.cluster.clone_from(&args.on);
        if let Some(partition) = &args.partition {
            job.spec.resources.get_or_insert_default().partition.get_or_insert_with(|| partition.clone());
        }
        if i > 0 {
            println!("---");
        }
        print!("{}", manifest(job)?);
    }
    for note in told {
        eprintln!("note: {note}");
    }
    Ok(())
}

/// Objects of a file of YAML or JSON.
pub(super) fn documents(text: &str) -> anyhow::Result<Vec<Value>> {
    let all: Vec<Value> = serde_saphyr::from_multiple(text).context("not YAML")?;
    let all: Vec<Value> = all.into_iter().filter(|d| !d.is_null()).collect();
    if all.is_empty() {
        bail!("there is no object in it");
    }
    Ok(all)
}

/// A manifest without what is empty.
pub(super) fn manifest(job: &GpuJob) -> anyhow::Result<String> {
    let mut value = serde_json::to_value(job)?;
    if let Some(map) = value.as_object_mut() {
        map.remove("status");
    }
    tidy(&mut value);
    serde_saphyr::to_string(&value).context("cannot write YAML")
}

/// Takes out nulls, and the values that are the defaults anyway.
pub(super) fn tidy(value: &mut Value) {
    if let Value::Object(map) = value {
        map.retain(|_, v| {
            tidy(v);
            !(v.is_null() || *v == json!({}) || *v == json!(false))
        });
        for (name, default) in [("launcher", "None"), ("per", "Node"), ("where", "Compute")] {
            if map.get(name).and_then(Value::as_str) == Some(default) {
                map.remove(name);
            }
        }
    } else if let Value::Array(list) = value {
        list.iter_mut().for_each(tidy);
    }
}

/// A name that objects may have.
pub(super) fn object_name(text: &str) -> String {
    let plain: String = text
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '-' })
        .collect();
    let name: String = plain.trim_matches('-').chars().take(200).collect();
    if name.is_empty() { "job".into() } else { name.trim_end_matches('-').to_owned() }
}

/// A job of this name.
pub(super) fn made(name: &str, namespace: Option<&str>, spec: GpuJobSpec) -> GpuJob {
    let mut job = GpuJob::new(&object_name(name), spec);
    job.metadata.namespace = namespace.map(str::to_owned);
    job
}

fn predecessor(document: &Value) -> anyhow::Result<(GpuJob, Vec<String>)> {
    let name = document["metadata"]["name"].as_str().context("metadata.name is missing")?;
    if document["kind"] != "GpuJob" {
        bail!("{name}: kind {} is none that converts; GpuJob does", document["kind"]);
    }
    if document["apiVersion"] == "skiff.dev/v1" {
        bail!("{name} is one of ours already");
    }
    let old = &document["spec"];
    let mut notes = Vec::new();
    let spec = if old["gpuConfig"].is_object() { with_config(old, &mut notes)? } else { with_scripts(old, &mut notes) };
    let namespace = document["metadata"]["namespace"].as_str();
    Ok((made(name, namespace, spec), notes.into_iter().map(|n| format!("{name}: {n}")).collect()))
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|n| n.try_into().ok()).or_else(|| value.as_str()?.parse().ok()).filter(|n| *n > 0)
}

/// Lines of a list, or of one text.
fn lines(value: &Value) -> Vec<String> {
    match value {
        Value::String(s) => s.lines().map(str::to_owned).filter(|l| !l.trim().is_empty()).collect(),
        Value::Array(list) => list.iter().filter_map(|l| l.as_str()).map(str::to_owned).collect(),
        _ => Vec::new(),
    }
}

/// Lines that load modules, apart from the others.
fn modules(lines: Vec<String>) -> (Vec<String>, Vec<String>) {
    let loads = |l: &String| {
        l.trim().strip_prefix("module load ").or_else(|| l.trim().strip_prefix("module add ")).map(str::to_owned)
    };
    let (mut modules, mut rest) = (Vec::new(), Vec::new());
    for line in lines {
        match loads(&line) {
            // What comes after a command may depend on it.
            Some(names) if rest.is_empty() => modules.extend(names.split_whitespace().map(str::to_owned)),
            _ => rest.push(line),
        }
    }
    (modules, rest)
}

/// Build and run of their lines.
fn steps(spec: &mut GpuJobSpec, compile: Vec<String>, run: Vec<String>) {
    let (build_modules, commands) = modules(compile);
    let (run_modules, run) = modules(run);
    if !commands.is_empty() {
        let own: Vec<String> = build_modules.iter().filter(|m| !run_modules.contains(m)).cloned().collect();
        // It was compiled on the login host, before the submission.
        spec.build = Some(Build { place: BuildPlace::Login, modules: own, commands, ..Build::default() });
    }
    spec.modules = run_modules;
    spec.run = Run { script: Some(run.join("\n") + "\n"), ..Run::default() };
}

/// `numProcess`, `compileScripts`, `runScripts`, `volume`, …
fn with_scripts(old: &Value, notes: &mut Vec<String>) -> GpuJobSpec {
    let mut spec = GpuJobSpec::default();
    let run = [&old["runScripts"], &old["scripts"]].into_iter().flat_map(lines).collect();
    steps(&mut spec, lines(&old["compileScripts"]), run);
    spec.resources = Some(Resources {
        // It had no other.
        partition: Some("dgx2".into()),
        nodes: number(&old["numProcess"]),
        tasks_per_node: number(&old["numTasksPerNode"]),
        cpus_per_task: number(&old["cpusPerTask"]),
        gpus: number(&old["numGpus"]).map(|count| GpuRequest { count, ..GpuRequest::default() }).into_iter().collect(),
        ..Resources::default()
    });
    spec.output_file = old["outputFile"].as_str().map(str::to_owned);
    spec.error_file = old["errorFile"].as_str().map(str::to_owned);
    spec.outputs = vec!["*".into()];
    if let Some(volume) = old["volume"].as_str() {
        notes.push(format!(
            "the sources in {volume} are not in the manifest: kubectl gpu submit {volume} -f FILE takes them along"
        ));
    }
    if let Some(directory) = old["workDir"].as_str() {
        notes.push(format!(
            "workDir {directory} is left out: each job has a directory of its own below the cluster's workDirectory"
        ));
    }
    if !old["username"].is_null() || !old["password"].is_null() {
        notes.push("username and password are left out: they belong into a Secret that an HpcCluster names".into());
    }
    spec
}

/// `gpuConfig.slurmConfig`.
fn with_config(old: &Value, notes: &mut Vec<String>) -> anyhow::Result<GpuJobSpec> {
    let config = &old["gpuConfig"];
    let slurm = &config["slurmConfig"];
    let mut spec = GpuJobSpec::default();
    steps(&mut spec, lines(&config["compileScripts"]), lines(&slurm["scripts"]));
    let cores = number(&slurm["cpusPerTask"]);
    let per_node = number(&slurm["ntasksPerNode"]);
    let mut resources = Resources {
        partition: slurm["partition"].as_str().map(str::to_owned),
        tasks_per_node: per_node,
        cpus_per_task: cores,
        ..Resources::default()
    };
    for item in slurm["gres"].as_str().unwrap_or_default().split(',').filter(|i| !i.is_empty()) {
        match sbatch::gpu(item) {
            Some(gpu) => resources.gpus.push(gpu),
            None => resources.gres.push(item.to_owned()),
        }
    }
    // Its number of cores went to the option for nodes: what the file's author got is kept, and said.
    if let Some(total) = number(&slurm["totalCoreNumber"]) {
        resources.nodes = Some(total);
        if total > 1 {
            notes.push(format!("totalCoreNumber {total} became that many nodes, as it did there; if cores were meant, lower spec.resources.nodes"));
        }
    }
    spec.resources = Some(resources);
    spec.output_file = Some("%j.out".into());
    spec.error_file = Some("%j.err".into());
    match number(&old["completions"]) {
        Some(n) if n > 1 => {
            let array = crate::api::Array { tasks: format!("0-{}", n - 1), limit: number(&old["parallelism"]) };
            spec.resources.get_or_insert_default().array = Some(array);
            (spec.output_file, spec.error_file) = (Some("%A_%a.out".into()), Some("%A_%a.err".into()));
            notes.push(format!("completions {n} became an array of {n} tasks"));
        }
        _ => {}
    }
    if let Some(limit) = number(&old["backOffLimit"]) {
        spec.retries = Some(crate::api::Retries { user: Some(limit), ..Default::default() });
    }
    notes.push("the uploaded code is not in the manifest: kubectl gpu submit CODE.zip -f FILE takes it along".into());
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(text: &str) -> (Value, Vec<String>) {
        let (job, notes) = predecessor(&documents(text).unwrap()[0]).unwrap();
        (serde_saphyr::from_str(&manifest(&job).unwrap()).unwrap(), notes)
    }

    #[test]
    fn processes_tasks_and_scripts() {
        let (job, notes) = converted(
            "kind: GpuJob\nmetadata: {name: matrix_ops, namespace: default}\nspec:\n  numProcess: 1\n  numTasksPerNode: 1\n  cpusPerTask: 6\n  numGpus: 2\n  compileScripts: [module load cuda/9.2, nvcc add.cu -o add]\n  runScripts: [module load cuda/9.2, ./add]\n  volume: ~/gpu\n  outputFile: add.out\n  errorFile: add.err\n  username: u\n  password: p\n  workDir: matrix\n",
        );
        assert_eq!(job["metadata"]["name"], "matrix-ops");
        assert_eq!(
            job["spec"],
            json!({
                "build": {"where": "Login", "commands": ["nvcc add.cu -o add"]},
                "modules": ["cuda/9.2"], "run": {"script": "./add\n"}, "outputs": ["*"],
                "resources": {"partition": "dgx2", "nodes": 1, "tasksPerNode": 1, "cpusPerTask": 6, "gpus": [{"count": 2}]},
                "outputFile": "add.out", "errorFile": "add.err"
            })
        );
        assert_eq!(notes.len(), 3);
        assert!(!job.to_string().contains("password"));
    }

    #[test]
    fn slurm_config() {
        let (job, _) = converted(
            "kind: GpuJob\nmetadata: {name: cuda}\nspec:\n  completions: 3\n  parallelism: 2\n  gpuConfig:\n    slurmConfig: {partition: dgx2, totalCoreNumber: 1, ntasksPerNode: 1, cpusPerTask: 6, gres: 'gpu:1', scripts: [ulimit -s unlimited, module load cuda, ./x]}\n    compileScripts: make\n",
        );
        assert_eq!(job["spec"]["build"], json!({"where": "Login", "commands": ["make"]}));
        assert_eq!(job["spec"]["run"]["script"], "ulimit -s unlimited\nmodule load cuda\n./x\n");
        assert_eq!(job["spec"]["resources"]["array"], json!({"tasks": "0-2", "limit": 2}));
        assert_eq!(job["spec"]["resources"]["gpus"], json!([{"count": 1}]));
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "kind: Pod\nmetadata: {name: x}",
            "kind: GpuJob\nmetadata: {}",
            "apiVersion: skiff.dev/v1\nkind: GpuJob\nmetadata: {name: x}\nspec: {}",
        ] {
            assert!(predecessor(&documents(text).unwrap()[0]).is_err(), "{text}");
        }
    }

    #[test]
    fn names_become_names() {
        for (text, name) in [("matrix_ops", "matrix-ops"), ("A.B", "a-b"), ("__", "job"), ("-x-", "x")] {
            assert_eq!(object_name(text), name);
        }
    }
}
