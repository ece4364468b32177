//! A job as a batch script: pure, and the same wherever it is made, so that what people are shown is what is submitted.
//!
//! Two grammars, two quotings. `#SBATCH` lines are split by sbatch itself: values there are of few characters (the schema's
//! patterns) and anything else is an error here, not an escape. Everything else is bash: every value is one quoted word, texts
//! are quoted here-documents, and what a person wrote as a script becomes a file that a shell of its own reads, so that no quote
//! left open there reaches what is around it.
//!
//! The script's own part is a frame: it notes the beginning, runs build and command as children, hands signals on, and in the
//! end, however that came, leaves a marker with the exit code where the controller looks. SIGKILL leaves none: a marker says
//! what happened, its absence says nothing.

mod options;
mod quote;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

pub use options::{Opt, dependency_word, options};
pub use quote::{Unsafe, quote, quote_option};

use crate::api::{Build, BuildPlace, GpuJobSpec, HpcClusterSpec, Launcher};

/// Directory of this room in a job's directory.
pub const OWN: &str = ".skiff";
/// Directory of markers in the work directory.
pub const MARKERS: &str = ".skiff-ended";

/// What a script is made of.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// The job.
    pub spec: &'a GpuJobSpec,
    /// Its cluster.
    pub cluster: &'a HpcClusterSpec,
    /// Its name in Slurm.
    pub name: &'a str,
    /// Its object, `NAMESPACE/NAME`: for people.
    pub object: &'a str,
    /// Its directory on the cluster. `None` where files cannot be moved: then it has the work directory.
    pub directory: Option<&'a str>,
    /// The attempt.
    pub attempt: u32,
    /// Dependencies as Slurm writes them, without `singleton`.
    pub dependencies: &'a [String],
    /// Whether there is a file with variables that are nobody else's business.
    pub secrets: bool,
}

/// A script and what sbatch is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The whole text, with its `#SBATCH` lines.
    pub text: String,
    /// What those lines say.
    pub options: Vec<Opt>,
}

impl Script {
    /// SHA-256 of the text.
    #[must_use]
    pub fn digest(&self) -> String {
        Sha256::digest(self.text.as_bytes()).iter().fold(String::new(), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        })
    }
}

/// Files of an attempt that the controller reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// Standard output, with Slurm's patterns.
    pub output: String,
    /// Standard error; the same where both go into one file.
    pub error: String,
}

/// Where an attempt's output goes.
#[must_use]
pub fn places(plan: &Plan<'_>) -> Places {
    let array = plan.spec.resources.as_ref().is_some_and(|r| r.array.is_some());
    let task = if array { ".%a" } else { "" };
    let own = |kind: &str| match plan.directory {
        Some(directory) => format!("{directory}/{OWN}/{kind}.{}{task}", plan.attempt),
        None => format!("{}/{}{task}.{kind}", plan.cluster.work_directory.trim_end_matches('/'), plan.name),
    };
    let chosen = |file: &Option<String>, kind: &str| match (file, plan.directory) {
        (Some(file), Some(directory)) => format!("{directory}/{file}"),
        _ => own(kind),
    };
    Places { output: chosen(&plan.spec.output_file, "out"), error: chosen(&plan.spec.error_file, "err") }
}

/// Replaces Slurm's patterns in the name of an output file.
#[must_use]
pub fn resolve(pattern: &str, job_id: u64, task: Option<u32>, name: &str) -> String {
    let (mut out, mut rest) = (String::new(), pattern);
    while let Some(at) = rest.find('%') {
        out.push_str(&rest[..at]);
        let mut word = rest[at + 1..].chars();
        match word.next() {
            Some('j') => out.push_str(&job_id.to_string()),
            Some('A') => out.push_str(&job_id.to_string()),
            Some('a') => out.push_str(&task.map_or_else(|| "4294967294".to_owned(), |t| t.to_string())),
            Some('x') => out.push_str(name),
            Some('%') => out.push('%'),
            Some(other) => {
                out.push('%');
                out.push(other);
            }
            None => out.push('%'),
        }
        rest = word.as_str();
    }
    out + rest
}

/// The name in Slurm of an attempt of an object.
#[must_use]
pub fn name(uid: &str, attempt: u32) -> String {
    format!("skiff-{uid}-{attempt}")
}

/// Object and attempt of a name.
#[must_use]
pub fn parse_name(name: &str) -> Option<(&str, u32)> {
    let (uid, attempt) = name.strip_prefix("skiff-")?.rsplit_once('-')?;
    (!uid.is_empty()).then_some(())?;
    Some((uid, attempt.parse().ok()?))
}

/// Options that decide who a job is and where it writes, or that change what sbatch does.
const OURS: [&str; 24] = [
    "array",
    "batch",
    "chdir",
    "clusters",
    "cluster-constraint",
    "comment",
    "dependency",
    "error",
    "export",
    "export-file",
    "gid",
    "help",
    "hold",
    "input",
    "job-name",
    "kill-on-invalid-dep",
    "open-mode",
    "output",
    "parsable",
    "test-only",
    "uid",
    "wait",
    "wait-all-nodes",
    "wrap",
];

/// Whether a path lies in the job's directory, outside what is this room's own, and is one that a shell and sbatch take.
#[must_use]
pub fn inside(path: &str) -> bool {
    let part = |p: &str| !matches!(p, "" | "." | "..");
    path.len() <= 1024
        && !path.contains(char::is_control)
        && path.split('/').all(part)
        && path.split('/').next() != Some(OWN)
}

/// What is wrong with a job that its schema does not see.
#[must_use]
pub fn faults(spec: &GpuJobSpec) -> Vec<String> {
    let mut faults = vec![];
    let mut text = |at: &str, value: &str| {
        if value.contains('\0') {
            faults.push(format!("{at}: a NUL character cannot be in a script"));
        }
    };
    for (i, word) in spec.run.command.iter().chain(&spec.run.args).enumerate() {
        text(&format!("spec.run.command[{i}]"), word);
    }
    text("spec.run.script", spec.run.script.as_deref().unwrap_or_default());
    text("spec.stdin", spec.stdin.as_deref().unwrap_or_default());
    for variable in &spec.env {
        text(&format!("spec.env[{}]", variable.name), variable.value.as_deref().unwrap_or_default());
    }
    if let Some(build) = &spec.build {
        let nvcc =
            build.nvcc.iter().flat_map(|n| n.sources.iter().chain(&n.flags).chain([&n.output]).chain(&n.compiler));
        let make = build.make.iter().flat_map(|m| m.targets.iter().chain(&m.directory));
        for word in build.commands.iter().chain(nvcc).chain(make) {
            text("spec.build", word);
        }
    }
    if spec.run.command.first().is_some_and(String::is_empty) {
        faults.push("spec.run.command: the program has no name".into());
    }
    for variable in &spec.env {
        if variable.name.to_ascii_lowercase().starts_with("skiff_") || variable.name.starts_with("SLURM_") {
            faults.push(format!("spec.env: {} is not for jobs to set", variable.name));
        }
    }
    let inline = spec.source.iter().flat_map(|s| &s.inline).flat_map(|files| files.keys());
    for path in inline.chain(spec.inputs.iter().map(|i| &i.path)) {
        if !inside(path) {
            faults.push(format!("{path:?} does not lie in the job's directory"));
        }
    }
    for option in spec.resources.iter().flat_map(|r| &r.extra_options) {
        let name = option.trim_start_matches('-').split('=').next().unwrap_or_default();
        // sbatch takes any unambiguous beginning of a name.
        if name.len() < 3 || OURS.iter().any(|ours| ours.starts_with(name) || name == *ours) {
            faults.push(format!("spec.resources.extraOptions: --{name} is not for jobs to set"));
        }
    }
    for pattern in &spec.outputs {
        let escapes = pattern.starts_with('/') || pattern.split('/').any(|p| p == "..");
        if escapes || pattern.contains(['\0', '\n']) {
            faults.push(format!("spec.outputs: {pattern:?} does not lie in the job's directory"));
        }
    }
    faults
}

/// Makes the script of an attempt.
///
/// # Errors
/// When a value cannot be in a line of sbatch.
pub fn script(plan: &Plan<'_>) -> Result<Script, Unsafe> {
    let options = options(plan)?;
    let mut text = String::from("#!/bin/bash\n");
    for option in &options {
        let _ = writeln!(text, "#SBATCH {}", option.line()?);
    }
    frame(&mut text, plan);
    Ok(Script { text, options })
}

/// The build as a script of its own, for the login side. It runs in the job's directory.
#[must_use]
pub fn login_build(plan: &Plan<'_>) -> Option<String> {
    let build = plan.spec.build.as_ref().filter(|b| b.place == BuildPlace::Login)?;
    let mut text = String::new();
    environment(&mut text, plan, &build.modules);
    let _ = writeln!(text, "cd -- {} || exit 1", quote(plan.directory?));
    write_file(&mut text, &quote(&format!("{}/{OWN}/build.sh", plan.directory?)), &build_text(build));
    let _ = writeln!(
        text,
        "( skiff_environment && exec bash {} ) </dev/null 2>&1",
        quote(&format!("{}/{OWN}/build.sh", plan.directory?))
    );
    Some(text)
}

/// A file with this text, by a command of bash. `path` is an expression of bash.
fn write_file(out: &mut String, path: &str, text: &str) {
    // sbatch refuses scripts with CR LF anywhere; a here-document always ends with a newline.
    if text.contains('\r') || !text.ends_with('\n') {
        let _ = writeln!(out, "printf %s {} >{path}", quote(text));
        return;
    }
    let mut end = String::from("SKIFF_END");
    while text.lines().any(|line| line == end) {
        end.push('_');
    }
    let _ = writeln!(out, "cat >{path} <<'{end}'\n{text}{end}");
}

fn words<'a>(words: impl IntoIterator<Item = &'a String>) -> String {
    words.into_iter().map(|w| quote(w)).collect::<Vec<_>>().join(" ")
}

/// The commands of a build. They are a file of their own.
fn build_text(build: &Build) -> String {
    let mut text = String::from("set -e\n");
    if let Some(nvcc) = &build.nvcc {
        let compiler = quote(nvcc.compiler.as_deref().unwrap_or("nvcc"));
        let _ = write!(text, "{compiler} -o {}", quote(&nvcc.output));
        for part in [words(&nvcc.flags), words(&nvcc.sources)].iter().filter(|p| !p.is_empty()) {
            let _ = write!(text, " {part}");
        }
        text.push('\n');
    }
    if let Some(make) = &build.make {
        let directory = make.directory.as_ref().map(|d| format!(" -C {}", quote(d))).unwrap_or_default();
        let targets = words(&make.targets);
        let _ = writeln!(text, "make{directory}{}{targets}", if targets.is_empty() { "" } else { " " });
    }
    for command in &build.commands {
        text.push_str(command);
        text.push('\n');
    }
    text
}

/// What every child has: a function, so that nothing of it reaches the frame.
fn environment(text: &mut String, plan: &Plan<'_>, more: &[String]) {
    text.push_str("skiff_environment() {\n");
    for line in &plan.cluster.prologue {
        let _ = writeln!(text, "{line}");
    }
    let defaults = plan.cluster.defaults.iter().flat_map(|d| &d.modules);
    let modules: Vec<_> = defaults.chain(&plan.spec.modules).chain(more).collect();
    if !modules.is_empty() {
        let failed = "{ echo 'skiff: the modules cannot be loaded' >&2; return 1; }";
        let _ = writeln!(text, "module load {} || {failed}", words(modules));
    }
    for variable in plan.spec.env.iter().filter(|v| v.value_from.is_none()) {
        let _ = writeln!(text, "export {}={}", variable.name, quote(variable.value.as_deref().unwrap_or_default()));
    }
    if plan.secrets
        && let Some(directory) = plan.directory
    {
        let _ = writeln!(text, ". {} || return 1", quote(&format!("{directory}/{OWN}/env")));
    }
    text.push_str("return 0\n}\n");
}

/// The variables of a job that are in objects, as the file that [`environment`] reads.
#[must_use]
pub fn secret_env<'a>(values: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    values.into_iter().map(|(name, value)| format!("export {name}={}\n", quote(value))).collect()
}

fn frame(text: &mut String, plan: &Plan<'_>) {
    let work = plan.cluster.work_directory.trim_end_matches('/');
    let directory = plan.directory.unwrap_or(work);
    let _ = writeln!(text, "\n# {} attempt {}, made by skiff.", plan.object, plan.attempt);
    let _ = writeln!(text, "skiff_directory={}", quote(directory));
    let _ = writeln!(text, "skiff_own={}", quote(&format!("{directory}/{OWN}")));
    let _ = writeln!(text, "skiff_name={}", quote(plan.name));
    let _ = writeln!(text, "skiff_ended={}", quote(&format!("{work}/{MARKERS}")));
    text.push_str(HEAD);
    environment(text, plan, &[]);
    if let Some(build) = plan.spec.build.as_ref().filter(|b| b.place == BuildPlace::Compute) {
        if !build.modules.is_empty() {
            let _ = writeln!(text, "skiff_build_modules() {{ module load {}; }}", words(&build.modules));
        } else {
            text.push_str("skiff_build_modules() { :; }\n");
        }
        write_file(text, "\"$skiff_own/build.$skiff_key.sh\"", &build_text(build));
        text.push_str(if plan.spec.resources.as_ref().is_some_and(|r| r.array.is_some()) { BUILD_ONCE } else { BUILD });
    }
    let input = match &plan.spec.stdin {
        None => "/dev/null",
        Some(stdin) => {
            write_file(text, "\"$skiff_own/stdin.$skiff_key\"", stdin);
            "\"$skiff_own/stdin.$skiff_key\""
        }
    };
    text.push_str("skiff_stage=run\n");
    let run = &plan.spec.run;
    let start = match (&run.script, run.launcher) {
        (Some(script), _) => {
            let newline = if script.ends_with('\n') { "" } else { "\n" };
            write_file(text, "\"$skiff_own/run.$skiff_key.sh\"", &format!("{script}{newline}"));
            "exec bash \"$skiff_own/run.$skiff_key.sh\""
        }
        (None, launcher) => {
            let _ = writeln!(text, "skiff_command=({})", words(run.command.iter().chain(&run.args)));
            match launcher {
                Launcher::None => "exec -- \"${skiff_command[@]}\"",
                Launcher::Srun => "exec srun -- \"${skiff_command[@]}\"",
            }
        }
    };
    let _ = writeln!(text, "( trap - {SIGNALS} EXIT; skiff_environment && {start} ) <{input} &");
    text.push_str("skiff_wait $!\nexit \"$skiff_code\"\n");
}

/// Signals that are handed on to what runs. Those that Slurm ends jobs with, and those that people choose for `signal`.
const SIGNALS: &str = "TERM INT HUP USR1 USR2 ALRM XCPU CONT";

/// The frame's head: it needs nothing but bash, date, mkdir, mv and rm.
const HEAD: &str = r#"skiff_key="${SLURM_JOB_ID:-0}"
skiff_marker="$skiff_ended/$skiff_name${SLURM_ARRAY_TASK_ID:+.$SLURM_ARRAY_TASK_ID}"
skiff_stage=start
skiff_code=1
skiff_began=$(date +%s)
skiff_note() {
  mkdir -p -- "$skiff_ended" && printf '%s\n' "$1" >"$skiff_marker.tmp" && mv -f -- "$skiff_marker.tmp" "$skiff_marker"
}
skiff_end() {
  skiff_code=$?
  trap - EXIT
  skiff_note "end $skiff_code $skiff_stage ${SLURM_JOB_ID:-0} ${SLURM_RESTART_COUNT:-0} $skiff_began $(date +%s)"
  exit "$skiff_code"
}
skiff_hand_on() {
  skiff_signalled=1
  kill -s "$1" "$skiff_child" 2>/dev/null
}
skiff_wait() {
  skiff_child=$1
  for skiff_signal in TERM INT HUP USR1 USR2 ALRM XCPU CONT; do
    trap "skiff_hand_on $skiff_signal" "$skiff_signal"
  done
  while :; do
    skiff_signalled=
    wait "$skiff_child"
    skiff_code=$?
    [ -n "$skiff_signalled" ] || break
  done
}
trap skiff_end EXIT
mkdir -p -- "$skiff_own" && cd -- "$skiff_directory" || exit 1
skiff_note "begin 0 start ${SLURM_JOB_ID:-0} ${SLURM_RESTART_COUNT:-0} $skiff_began $skiff_began"
"#;

const BUILD: &str = r#"skiff_stage=build
( trap - TERM INT HUP USR1 USR2 ALRM XCPU CONT EXIT; skiff_environment && skiff_build_modules && exec bash "$skiff_own/build.$skiff_key.sh" ) </dev/null &
skiff_wait $!
if [ "$skiff_code" -ne 0 ]; then
  echo "skiff: the build failed with exit code $skiff_code" >&2
  exit "$skiff_code"
fi
"#;

/// The tasks of an array share a directory: the first that comes builds, the others wait for it.
const BUILD_ONCE: &str = r#"skiff_stage=build
skiff_built="$skiff_own/built.${SLURM_ARRAY_JOB_ID:-0}"
if mkdir -- "$skiff_built" 2>/dev/null; then
  ( trap - TERM INT HUP USR1 USR2 ALRM XCPU CONT EXIT; skiff_environment && skiff_build_modules && exec bash "$skiff_own/build.$skiff_key.sh" ) </dev/null &
  skiff_wait $!
  printf '%s\n' "$skiff_code" >"$skiff_built/tmp" && mv -- "$skiff_built/tmp" "$skiff_built/code"
else
  while ! read -r skiff_code <"$skiff_built/code"; do sleep 1; done 2>/dev/null
fi
if [ "$skiff_code" -ne 0 ]; then
  echo "skiff: the build failed with exit code $skiff_code" >&2
  exit "$skiff_code"
fi
"#;
