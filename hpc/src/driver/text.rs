//! Slurm by its commands, and files by those of any system, wherever there is a [`Shell`].
//!
//! One question is one command line: over SSH that is one channel. Parts of an answer are told apart by lines that begin with
//! [`MARK`]; sbatch runs under `timeout`, so that a submission whose answer is lost is over some time.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::batch::{self, Job, Together};
use super::{Catalogue, Facts, Found, Marker, Output, QUICK, SUBMIT, Shell, Slurm, SlurmError, Snapshot, Submitted};
use crate::api::Decider;
use crate::catalogue;
use crate::script::{MARKERS, Script, quote};
use crate::state::parse::{self, SACCT, SQUEUE};

/// Begins a line between two parts of an answer.
const MARK: &str = "@@skiff";
/// Ids that are asked for one by one; more are asked for all together.
const EACH: usize = 16;
/// What is known of jobs without Slurm's commands: markers and the completion log.
#[derive(Clone, Debug)]
pub(super) struct Beside {
    markers: String,
    completion_log: Option<String>,
}

impl Beside {
    /// Below this work directory.
    pub(super) fn new(work: &str, completion_log: Option<&str>) -> Self {
        let markers = format!("{}/{MARKERS}", work.trim_end_matches('/'));
        Self { markers, completion_log: completion_log.map(str::to_owned) }
    }

    /// Makes directories that jobs need before they are submitted.
    pub(super) fn make(&self, directories: &[String]) -> String {
        format!("mkdir -p -- {} || exit 99\n", self.directories(directories))
    }

    /// Those directories as words of a shell.
    fn directories(&self, directories: &[String]) -> String {
        std::iter::once(&self.markers).chain(directories).map(|d| quote(d)).collect::<Vec<_>>().join(" ")
    }

    /// Asks for markers since a time there, and for the clock.
    pub(super) fn ask_markers(&self, since: i64) -> String {
        let dir = quote(&self.markers);
        let newer = if since > 0 { format!("-newermt @{}", since - 60) } else { String::new() };
        format!(
            "find {dir} -maxdepth 1 -name 'skiff-*' ! -name '*.tmp' {newer} -exec grep -H '' {{}} + 2>/dev/null\n\
             echo \"{MARK} markers $?\"\ndate +%s; echo \"{MARK} clock $?\"\n"
        )
    }

    /// Reads the answer.
    pub(super) fn read_markers(text: &str) -> (Vec<Marker>, i64) {
        let noted = part(text, "markers").map(|(_, t)| markers(&t)).unwrap_or_default();
        (noted, part(text, "clock").and_then(|(_, t)| t.trim().parse().ok()).unwrap_or_default())
    }

    /// Asks for everything under a name.
    pub(super) fn ask_name(&self, name: &str) -> String {
        let (n, dir) = (quote(name), quote(&self.markers));
        let log = match &self.completion_log {
            Some(log) => {
                let line = quote(&format!(" Name={name} "));
                format!(
                    "tail -n 200000 -- {} | grep -F -- {line}; echo \"{MARK} log ${{PIPESTATUS[0]}}\"\n",
                    quote(log)
                )
            }
            None => String::new(),
        };
        format!("(cd {dir} 2>/dev/null && grep -H '' -- {n} {n}.* 2>/dev/null); echo \"{MARK} markers 0\"\n{log}")
    }

    /// Reads the answer.
    pub(super) fn read_name(&self, out: &Output, name: &str, found: &mut Found) -> Result<(), SlurmError> {
        let text = out.text();
        let lost = || SlurmError::Lost(out.complaint());
        found.markers = part(&text, "markers").map(|(_, t)| markers(&t)).ok_or_else(lost)?;
        found.markers.retain(|m| m.name == name);
        if self.completion_log.is_some() {
            let (code, log) = part(&text, "log").ok_or_else(lost)?;
            found.lasting |= code == 0;
            let reports = parse::completion_log(&log).into_iter().filter(|r| r.name == name);
            found.reports.extend(reports.map(|r| (Decider::CompletionLog, r)));
        }
        Ok(())
    }
}

/// Slurm's commands at some place.
pub struct Text<S> {
    pub(super) shell: S,
    /// What is before every command: where the programs are.
    place: String,
    beside: Beside,
    /// Where few commands run at a time, submissions that wait go together.
    together: Option<Together>,
}

impl<S: Shell> Text<S> {
    /// Of the commands in `bin`, or those in `PATH`.
    pub fn new(shell: S, bin: Option<&str>, conf: Option<&str>, work: &str, completion_log: Option<&str>) -> Self {
        let mut place = String::from("export LC_ALL=C\n");
        if let Some(bin) = bin {
            place.push_str(&format!("PATH={}:\"$PATH\"\n", quote(bin)));
        }
        if let Some(conf) = conf {
            place.push_str(&format!("export SLURM_CONF={}\n", quote(conf)));
        }
        let together = shell.narrow().map(Together::new);
        Self { shell, place, beside: Beside::new(work, completion_log), together }
    }

    /// A question: its times come in seconds.
    async fn ask(&self, script: &str) -> Result<Output, SlurmError> {
        let script = format!("{}export TZ=UTC SLURM_TIME_FORMAT=%s\n{script}", self.place);
        self.shell.exec(&script, Bytes::new(), QUICK).await
    }

    /// Submits jobs by one command.
    async fn send(&self, jobs: Vec<Job>) -> Vec<Result<Output, SlurmError>> {
        if let [job] = &jobs[..] {
            return vec![self.send_one(job).await];
        }
        let (command, input) = batch::command(&jobs);
        match self.shell.exec(&format!("{}{command}", self.place), input, SUBMIT).await {
            Ok(out) => batch::answers(&out, jobs.len()),
            Err(error) => vec![Err(error); jobs.len()],
        }
    }

    async fn send_one(&self, job: &Job) -> Result<Output, SlurmError> {
        let make = format!("mkdir -p -- {} || exit 99\n", job.directories);
        let command = format!("{}{make}exec timeout -k 5 30 sbatch --parsable", self.place);
        self.shell.exec(&command, job.script.clone(), SUBMIT).await
    }

    /// A command that says no more than whether it went well.
    async fn act(&self, script: &str, limit: Duration) -> Result<Output, SlurmError> {
        let out = self.shell.exec(&format!("{}{script}", self.place), Bytes::new(), limit).await?;
        if out.code == 0 { Ok(out) } else { Err(refusal(&out)) }
    }
}

/// What a failed command of Slurm means.
#[must_use]
pub fn refusal(out: &Output) -> SlurmError {
    let said = out.complaint();
    let has = |words: &[&str]| words.iter().any(|w| said.contains(w));
    // Nobody knows whether these were heard.
    let lost = [
        "Socket timed out",
        "Zero Bytes were transmitted",
        "Communication connection failure",
        "Unexpected message received",
        "Connection reset",
        "Message receive failure",
        "Unspecified error",
        "Header lengths are longer",
    ];
    if has(&lost) || out.code == 124 || out.code == 137 || out.code == -1 {
        return SlurmError::Lost(said);
    }
    let busy = [
        "Resource temporarily unavailable",
        "temporarily unable",
        "Unable to contact slurm controller",
        "standby mode",
        "job submit limit",
        "Slurm controller not responding",
        "Unable to contact controller",
        "Transport endpoint",
        "Connection refused",
    ];
    if has(&busy) {
        return SlurmError::Busy(said);
    }
    if has(&["Access/permission denied", "Invalid authentication credential", "Protocol authentication error"]) {
        return SlurmError::Denied(said);
    }
    if out.code == 127 {
        return SlurmError::Unsupported(said);
    }
    let words = ["sbatch: error: ", "Batch job submission failed: ", "scontrol: error: ", "slurm_load_jobs error: "];
    let short = words.iter().fold(said.clone(), |s, w| s.replace(w, ""));
    SlurmError::Refused(short)
}

/// The parts of an answer: each mark with its words, and what was printed before it.
fn parts(text: &str) -> Vec<(&str, Vec<&str>)> {
    let (mut all, mut lines) = (vec![], vec![]);
    for line in text.lines() {
        match line.strip_prefix(MARK) {
            Some(words) => all.push((words.trim(), std::mem::take(&mut lines))),
            None => lines.push(line),
        }
    }
    all
}

/// The part that a mark ends, and the exit code in the mark.
fn part(text: &str, name: &str) -> Option<(i32, String)> {
    parts(text).into_iter().find_map(|(words, lines)| {
        let (word, code) = words.split_once(' ')?;
        (word == name).then(|| (code.parse().unwrap_or(-1), lines.join("\n")))
    })
}

/// Markers as `grep -H` prints them.
fn markers(text: &str) -> Vec<Marker> {
    let read = |line: &str| {
        let (path, line) = line.split_once(':')?;
        Marker::parse(path.rsplit('/').next()?, line)
    };
    text.lines().filter_map(read).collect()
}

#[async_trait]
impl<S: Shell> Slurm for Text<S> {
    async fn submit(&self, script: &Script, directories: &[String]) -> Result<Submitted, SlurmError> {
        let job = Job { script: script.text.clone().into(), directories: self.beside.directories(directories) };
        let out = match &self.together {
            Some(together) => together.submit(job, |jobs| self.send(jobs)).await?,
            None => self.send_one(&job).await?,
        };
        if out.code == 99 {
            return Err(SlurmError::Unreachable(format!("the work directory cannot be used: {}", out.complaint())));
        }
        if out.code != 0 {
            return Err(refusal(&out));
        }
        let (job_id, cluster) =
            parse::sbatch(&out.text()).ok_or_else(|| SlurmError::Lost(format!("sbatch said {:?}", out.complaint())))?;
        Ok(Submitted { job_id, cluster })
    }

    async fn queue(&self, since: i64) -> Result<Snapshot, SlurmError> {
        let script = format!(
            "squeue -h -a -t all --me -o {}; echo \"{MARK} queue $?\"\n{}",
            quote(SQUEUE),
            self.beside.ask_markers(since)
        );
        let out = self.ask(&script).await?;
        let text = out.text();
        let (code, queue) = part(&text, "queue").ok_or_else(|| SlurmError::Lost(out.complaint()))?;
        if code != 0 {
            return Err(refusal(&Output { code, stdout: Bytes::from(queue), stderr: out.stderr }));
        }
        let (noted, clock) = Beside::read_markers(&text);
        Ok(Snapshot { reports: parse::squeue(&queue), markers: noted, clock })
    }

    async fn jobs(&self, ids: &[u64]) -> Result<Vec<crate::state::Report>, SlurmError> {
        if ids.is_empty() {
            return Ok(vec![]);
        }
        let script = if ids.len() > EACH {
            "scontrol -a -o show job".to_owned()
        } else {
            ids.iter().map(|id| format!("scontrol -a -o show job {id}; ")).collect::<String>()
        };
        let out = self.ask(&format!("{script}\necho \"{MARK} jobs 0\"")).await?;
        let text = out.text();
        let (_, jobs) = part(&text, "jobs").ok_or_else(|| SlurmError::Lost(out.complaint()))?;
        let reports = parse::scontrol_jobs(&jobs);
        let complaint = String::from_utf8_lossy(&out.stderr);
        let unknown = complaint.lines().filter(|l| !l.trim().is_empty()).all(|l| l.contains("Invalid job id"));
        if reports.is_empty() && !unknown {
            return Err(refusal(&Output { code: 1, ..out }));
        }
        Ok(reports.into_iter().filter(|r| ids.contains(&r.job_id) || ids.contains(&r.own_id)).collect())
    }

    async fn find(&self, name: &str) -> Result<Found, SlurmError> {
        let script = format!(
            "squeue -h -a -t all --me -n {n} -o {}; echo \"{MARK} queue $?\"\n{}\
             sacct -X -n -P -D -S now-30days --name={n} -o {SACCT} 2>&1; echo \"{MARK} accounting $?\"\n",
            quote(SQUEUE),
            self.beside.ask_name(name),
            n = quote(name)
        );
        let out = self.ask(&script).await?;
        let text = out.text();
        let lost = || SlurmError::Lost(out.complaint());
        let (code, queue) = part(&text, "queue").ok_or_else(lost)?;
        if code != 0 {
            return Err(refusal(&Output { code, stdout: Bytes::from(queue), stderr: out.stderr.clone() }));
        }
        let mut found = Found::default();
        found.reports.extend(parse::squeue(&queue).into_iter().map(|r| (Decider::Queue, r)));
        self.beside.read_name(&out, name, &mut found)?;
        let (code, accounting) = part(&text, "accounting").ok_or_else(lost)?;
        let disabled = accounting.contains("accounting storage is disabled") || code == 127;
        if code == 0 {
            found.lasting = true;
            found.reports.extend(parse::sacct(&accounting).into_iter().map(|r| (Decider::Accounting, r)));
        } else if !disabled && !found.lasting {
            return Err(refusal(&Output { code, stdout: Bytes::from(accounting), stderr: Bytes::new() }));
        }
        found.reports.retain(|(_, r)| r.name == name);
        Ok(found)
    }

    async fn cancel(&self, id: Option<u64>, name: &str) -> Result<(), SlurmError> {
        let id = id.map(|i| i.to_string()).unwrap_or_default();
        // By name too: an id may be another's after a reset.
        let out = self.ask(&format!("scancel --name={} {id}", quote(name))).await?;
        let said = out.complaint();
        let gone = ["Invalid job id", "already completing or completed", "No active jobs", "Job/step already"];
        if out.code == 0 || gone.iter().any(|g| said.contains(g)) { Ok(()) } else { Err(refusal(&out)) }
    }

    async fn hold(&self, id: u64) -> Result<(), SlurmError> {
        self.act(&format!("scontrol hold {id}"), QUICK).await.map(drop)
    }

    async fn release(&self, id: u64) -> Result<(), SlurmError> {
        self.act(&format!("scontrol release {id}"), QUICK).await.map(drop)
    }

    async fn catalogue(&self) -> Result<Catalogue, SlurmError> {
        let script = format!(
            "scontrol -a -o show partition; echo \"{MARK} partitions $?\"\n\
             scontrol -a -d -o show node; echo \"{MARK} nodes $?\"\n\
             squeue -h -a -t PD,R -o %t; echo \"{MARK} queue $?\"\n"
        );
        let out = self.ask(&script).await?;
        let text = out.text();
        let get = |name: &str| match part(&text, name) {
            Some((0, text)) => Ok(text),
            Some((code, said)) => Err(refusal(&Output { code, stdout: Bytes::from(said), stderr: out.stderr.clone() })),
            None => Err(SlurmError::Lost(out.complaint())),
        };
        let (waiting, running) = catalogue::queue_counts(&get("queue")?);
        Ok(Catalogue {
            partitions: catalogue::partitions(&get("partitions")?),
            nodes: catalogue::nodes(&get("nodes")?),
            waiting,
            running,
        })
    }

    fn credential_expires(&self) -> Option<i64> {
        self.shell.credential_expires()
    }

    async fn facts(&self) -> Result<Facts, SlurmError> {
        let script = format!(
            "scontrol --version; echo \"{MARK} version $?\"\nscontrol show config; echo \"{MARK} config $?\"\n\
             mkdir -p -- {}; echo \"{MARK} work $?\"\n",
            quote(&self.beside.markers)
        );
        let out = self.ask(&script).await?;
        let text = out.text();
        let fail = |name: &str| match part(&text, name) {
            Some((0, text)) => Ok(text),
            Some((code, said)) => Err(refusal(&Output { code, stdout: Bytes::from(said), stderr: out.stderr.clone() })),
            None => Err(SlurmError::Lost(out.complaint())),
        };
        let version = fail("version")?.trim().trim_start_matches("slurm ").to_owned();
        let config = fail("config")?;
        fail("work")?;
        let value = |key: &str| {
            let line = config.lines().find(|l| l.split_whitespace().next() == Some(key))?;
            Some(line.split_once('=')?.1.trim().to_owned())
        };
        Ok(Facts {
            version,
            api_version: None,
            cluster: value("ClusterName"),
            accounting: value("AccountingStorageType").is_some_and(|t| t.contains("slurmdbd")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::local::Local;

    fn said(code: i32, text: &'static str) -> SlurmError {
        refusal(&Output { code, stdout: Bytes::new(), stderr: Bytes::from_static(text.as_bytes()) })
    }

    #[test]
    fn refusals_are_told_from_lost_answers() {
        let bad = said(1, "sbatch: error: Batch job submission failed: Invalid partition name specified\n");
        assert!(bad.sure());
        assert_eq!(bad.to_string(), "Slurm says: Invalid partition name specified");
        let lost = said(1, "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation");
        assert!(matches!(lost, SlurmError::Lost(_)) && !lost.sure());
        assert!(matches!(said(124, ""), SlurmError::Lost(_)), "timeout ended it");
        let busy = said(1, "slurm_load_jobs error: Unable to contact slurm controller (connect failure)");
        assert!(matches!(busy, SlurmError::Busy(_)) && !busy.sure());
        assert!(matches!(said(127, "bash: sbatch: command not found"), SlurmError::Unsupported(_)));
    }

    #[test]
    fn parts_of_answers() {
        let text = "a\nb\n@@skiff queue 0\n@@skiff markers 1\nx\n@@skiff clock 17\n";
        assert_eq!(part(text, "queue"), Some((0, "a\nb".into())));
        assert_eq!(part(text, "markers"), Some((1, String::new())));
        assert_eq!(part(text, "clock"), Some((17, "x".into())));
        assert_eq!(part(text, "none"), None);
    }

    #[tokio::test]
    async fn commands_have_a_deadline_and_no_environment() {
        let shell = Local::default();
        let ended = shell.exec("sleep 100", Bytes::new(), Duration::from_millis(50)).await;
        assert!(matches!(ended, Err(SlurmError::Lost(_))), "{ended:?}");
        let out = shell.exec("env | cut -d= -f1 | sort", Bytes::new(), QUICK).await.unwrap();
        assert!(!out.text().contains("CARGO"), "{}", out.text());
    }

    #[test]
    fn markers_are_read() {
        let name = "skiff-6a1f-2";
        let m = Marker::parse(&format!("{name}.7"), "end 3 run 12 1 100 160").unwrap();
        assert_eq!((m.name.as_str(), m.task, m.ended, m.code, m.job_id, m.restarts), (name, Some(7), true, 3, 12, 1));
        assert!(!Marker::parse(name, "begin 0 start 12 0 100 100").unwrap().ended);
        for (file, line) in [(name, "end 3"), ("other", "end 3 run 12 1 100 160"), (name, "what 3 run 12 1 100 160")] {
            assert_eq!(Marker::parse(file, line), None, "{file} {line}");
        }
    }
}
