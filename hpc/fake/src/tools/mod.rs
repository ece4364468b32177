//! Slurm's commands. Which one this is says the name it was called by.

mod accounting;
mod control;
mod queue;
mod sbatch;
mod sinfo;

use std::io::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::Loss;
use crate::fields::{Shown, value};
use crate::state::{Locked, Store, now};
use crate::submit::Submission;

pub(crate) use control::{cancel, change as change_job};
pub(crate) use queue::same as same_job;
pub(crate) use sinfo::node_state as node_word;

/// Names that this program answers to.
pub const NAMES: [&str; 7] = ["sbatch", "squeue", "scancel", "scontrol", "sacct", "sinfo", "srun"];

/// What a command prints, and how it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// For standard output.
    pub out: String,
    /// For standard error.
    pub err: String,
    /// The exit code.
    pub code: i32,
    /// Whether the answer never arrives.
    pub lost: bool,
}

impl Answer {
    fn out(text: impl Into<String>) -> Self {
        Self { out: text.into(), ..Self::default() }
    }

    fn fail(code: i32, text: impl Into<String>) -> Self {
        Self { err: text.into(), code, ..Self::default() }
    }
}

/// What a command asks the controller.
#[derive(Debug, Serialize, Deserialize)]
pub enum Ask {
    /// To take a job.
    Submit(Submission),
    /// Anything else, by the command's name and arguments.
    Command(String, Vec<String>),
}

/// Runs a command: reads what is on its own side, asks the resident controller, or is the controller itself where none is.
///
/// # Errors
/// What is wrong with the cluster's directory.
pub fn run(store: &Store, name: &str, args: &[String]) -> anyhow::Result<i32> {
    log(store, name, args);
    if name == "srun" {
        return sbatch::srun(args);
    }
    let faults = store.faults()?;
    std::thread::sleep(Duration::from_millis(faults.delay_ms));
    if args.iter().any(|a| a == "--version" || a == "-V") {
        println!("slurm {}", store.config()?.version);
        return Ok(0);
    }
    let answer = if now() < faults.down_until {
        unreachable(name)
    } else {
        let ask = match name {
            "sbatch" => sbatch::read(args, &store.config()?.user)?.map(Ask::Submit),
            _ => Ok(Ask::Command(name.to_owned(), args.to_vec())),
        };
        match ask {
            Ok(ask) => match crate::resident::ask(store, &ask)? {
                Some(answer) => answer,
                None => decide(store, &ask)?,
            },
            Err(answer) => answer,
        }
    };
    if answer.lost {
        return Ok(lose(faults.loss));
    }
    std::io::stdout().write_all(answer.out.as_bytes())?;
    std::io::stderr().write_all(answer.err.as_bytes())?;
    Ok(answer.code)
}

/// What the controller answers.
///
/// # Errors
/// What is wrong with the cluster's directory.
pub fn decide(store: &Store, ask: &Ask) -> anyhow::Result<Answer> {
    let mut locked = store.lock()?;
    let (name, args) = match ask {
        Ask::Submit(submission) => return sbatch::sbatch(locked, submission),
        Ask::Command(name, args) => (name.as_str(), args.as_slice()),
    };
    // What time brought is written down before anything is asked.
    crate::process::settle(locked)?;
    locked = store.lock()?;
    if locked.faults.disconnect > 0.0 && locked.chance(locked.faults.disconnect) {
        locked.save()?;
        return Ok(Answer { lost: true, ..Answer::default() });
    }
    Ok(match name {
        "squeue" => queue::squeue(&locked, args),
        "scancel" => control::scancel(locked, args)?,
        "scontrol" => control::scontrol(locked, args)?,
        "sacct" => accounting::sacct(&locked, args),
        "sinfo" => sinfo::sinfo(&locked, args),
        _ => Answer::fail(127, format!("{name}: no such command\n")),
    })
}

/// An answer that does not arrive.
fn lose(loss: Loss) -> i32 {
    let connection = std::env::var_os("FAKE_SLURM_CONNECTION");
    match (loss, connection) {
        // The SSH server sees the file and ends the connection without a word.
        (Loss::Disconnect, Some(file)) if std::fs::write(&file, "").is_ok() => 255,
        (Loss::Hang, _) => {
            std::thread::sleep(Duration::from_secs(60));
            1
        }
        _ => {
            eprintln!("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation");
            1
        }
    }
}

/// Slurm's words where the controller does not answer.
fn unreachable(name: &str) -> Answer {
    const WHY: &str = "Unable to contact slurm controller (connect failure)";
    Answer::fail(
        1,
        match name {
            "sbatch" => format!("sbatch: error: Batch job submission failed: {WHY}\n"),
            "squeue" => format!("slurm_load_jobs error: {WHY}\n"),
            "sinfo" => format!("slurm_load_partitions: {WHY}\n"),
            "scancel" => format!("scancel: error: Kill job error on job id 0: {WHY}\n"),
            "sacct" => "sacct: error: Sending PersistInit msg: Connection refused\n".into(),
            _ => format!("slurm_load_jobs error: {WHY}\n"),
        },
    )
}

/// Writes down that a command was called: tests count them.
fn log(store: &Store, name: &str, args: &[String]) {
    let line = serde_json::json!({"at": now(), "command": name, "args": args});
    let file = std::fs::File::options().create(true).append(true).open(store.path("commands.log"));
    // Only tests read it.
    let _ = file.and_then(|mut f| writeln!(f, "{line}"));
}

/// A reader of options of one command: `--long VALUE`, `--long=VALUE`, `-sVALUE`, `-s VALUE`.
struct Args<'a> {
    rest: std::slice::Iter<'a, String>,
    /// Short flags glued together, as in `-hr`.
    glued: String,
    /// Short options that take a value.
    valued: &'a str,
}

impl<'a> Args<'a> {
    fn new(args: &'a [String], valued: &'a str) -> Self {
        Self { rest: args.iter(), glued: String::new(), valued }
    }

    /// The next option and its value, where it was glued to it; an argument that is no option has an empty name.
    fn next(&mut self) -> Option<(String, Option<String>)> {
        if let Some(c) = self.glued.chars().next() {
            let rest = self.glued.split_off(c.len_utf8());
            self.glued = rest;
            return Some(self.short(c));
        }
        let arg = self.rest.next()?;
        if let Some(long) = arg.strip_prefix("--") {
            return Some(match long.split_once('=') {
                Some((name, value)) => (format!("--{name}"), Some(value.to_owned())),
                None => (arg.clone(), None),
            });
        }
        match arg.strip_prefix('-').filter(|s| !s.is_empty()) {
            Some(short) => {
                let mut chars = short.chars();
                let c = chars.next().unwrap_or_default();
                self.glued = chars.collect();
                Some(self.short(c))
            }
            None => Some((String::new(), Some(arg.clone()))),
        }
    }

    fn short(&mut self, c: char) -> (String, Option<String>) {
        let value = (self.valued.contains(c) && !self.glued.is_empty()).then(|| std::mem::take(&mut self.glued));
        (format!("-{c}"), value)
    }

    /// The value of the option that was just read.
    fn value(&mut self, glued: Option<String>) -> String {
        glued.or_else(|| self.rest.next().cloned()).unwrap_or_default()
    }
}

/// Fills a format of `%[.][WIDTH]LETTER` for a job.
fn letters(locked: &Locked, shown: &Shown<'_>, format: &str, names: &[(char, &str)]) -> String {
    fill(format, |letter| {
        let name = names.iter().find(|n| n.0 == letter)?.1;
        value(locked, shown, name, now())
    })
}

/// Fills a format of `%[.][WIDTH]LETTER`.
fn fill(format: &str, value: impl Fn(char) -> Option<String>) -> String {
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let right = chars.next_if_eq(&'.').is_some();
        let mut width = String::new();
        while let Some(digit) = chars.next_if(char::is_ascii_digit) {
            width.push(digit);
        }
        let Some(letter) = chars.next() else { break };
        let text = value(letter).unwrap_or_else(|| letter.to_string());
        match width.parse::<usize>() {
            Ok(width) => {
                let cut: String = text.chars().take(width).collect();
                out.push_str(&if right { format!("{cut:>width$}") } else { format!("{cut:<width$}") });
            }
            Err(_) => out.push_str(&text),
        }
    }
    out
}

/// Fills a format of `NAME[:[.]WIDTH][SUFFIX],…` as `-O` has it: twenty characters each unless told.
fn names(format: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    for item in format.split(',') {
        let (name, size) = item.split_once(':').unwrap_or((item, "20"));
        let (right, size) = size.strip_prefix('.').map_or((false, size), |s| (true, s));
        let digits = size.len() - size.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (width, suffix) = size.split_at(digits);
        let text = value(&name.to_ascii_lowercase()).unwrap_or_default();
        let width = width.parse().unwrap_or(20);
        let cut: String = text.chars().take(width).collect();
        // With a suffix nothing is filled up.
        if !suffix.is_empty() {
            out.push_str(&cut);
            out.push_str(suffix);
        } else if right {
            out.push_str(&format!("{cut:>width$}"));
        } else {
            out.push_str(&format!("{cut:<width$}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_filled() {
        let value = |c: char| (c == 'i').then(|| "12345".to_owned());
        assert_eq!(fill("%i|%.8i|%8i|%3i", value), "12345|   12345|12345   |123");
        let value = |n: &str| (n == "jobid").then(|| "12345".to_owned());
        assert_eq!(names("JobID:|,jobid:7,JobID:.7", value), "12345|12345    12345");
        assert_eq!(names("JobID", value).len(), 20);
    }

    #[test]
    fn options_are_read() {
        let args: Vec<String> = ["-hr", "-tall", "--name=x", "-o", "%i", "7"].map(String::from).to_vec();
        let mut read = Args::new(&args, "to");
        let mut seen = Vec::new();
        while let Some((name, value)) = read.next() {
            let value = if name == "-o" { Some(read.value(value)) } else { value };
            seen.push(format!("{name}={}", value.unwrap_or_default()));
        }
        assert_eq!(seen, ["-h=", "-r=", "-t=all", "--name=x", "-o=%i", "=7"]);
    }
}
