//! What Slurm says, and what it means: pure.
//!
//! A [`Report`] is what one source says of one job, or of one task of an array; [`parse`] makes reports of what the tools print
//! and slurmrestd answers. [`judge`] knows all twelve states and seventeen flags. The text tools print one word, which may be a
//! flag; slurmrestd gives the state and the flags. A word that nobody knows changes nothing and is said.

pub mod array;
pub mod parse;
#[cfg(test)]
mod tests;

use crate::api::{Class, Decider, Phase};

/// An exit code as Slurm writes it: `CODE:SIGNAL`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exit {
    /// The code.
    pub code: i32,
    /// The signal, 0 for none. Slurm uses some numbers that are no signals: 53 for a launch that failed, 125 for memory.
    pub signal: i32,
}

impl Exit {
    /// Of a raw wait status, as slurmrestd gave it until v0.0.39.
    #[must_use]
    pub fn of_status(status: i64) -> Self {
        let status = i32::try_from(status & 0xffff).unwrap_or_default();
        Self { code: (status >> 8) & 0xff, signal: status & 0x7f }
    }

    /// Of `CODE:SIGNAL`, or `CODE`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (code, signal) = text.trim().split_once(':').unwrap_or((text.trim(), "0"));
        Some(Self { code: code.parse().ok()?, signal: signal.parse().ok()? })
    }
}

/// Which tasks of an array a report is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// One.
    One(u32),
    /// Those that wait, as `0-3,7%2`.
    Many(String),
}

/// What a source says of a job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// The job's id; of an array the array's.
    pub job_id: u64,
    /// The id of this task alone, where it has one.
    pub own_id: u64,
    /// The tasks it is about.
    pub task: Option<Task>,
    /// The job's name.
    pub name: String,
    /// State and flags as they came, in capitals.
    pub words: Vec<String>,
    /// Slurm's reason.
    pub reason: String,
    /// How it ended.
    pub exit: Option<Exit>,
    /// The highest code of its steps.
    pub derived: Option<Exit>,
    /// Who cancelled it, where that is said.
    pub cancelled_by: Option<String>,
    /// Its nodes.
    pub nodes: String,
    /// Its partition.
    pub partition: String,
    /// When it was submitted, in seconds since 1970, like all times here.
    pub submitted: Option<i64>,
    /// When it could start.
    pub eligible: Option<i64>,
    /// When it started or is expected to.
    pub started: Option<i64>,
    /// When it ended or must.
    pub ended: Option<i64>,
    /// How often Slurm started it again.
    pub restarts: u32,
    /// Its time limit as it came.
    pub limit: String,
}

/// What a report means.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The phase; `None` leaves it as it was.
    pub phase: Option<Phase>,
    /// Whether Slurm will not change it any more.
    pub terminal: bool,
    /// A reason for conditions.
    pub reason: &'static str,
    /// More of it, for people.
    pub message: String,
    /// For retries, of ends that are no success; of a job that waits, whether it ever can.
    pub class: Option<Class>,
    /// The exit code that people see.
    pub exit_code: Option<i32>,
    /// The signal.
    pub signal: Option<i32>,
    /// It does not start as it is.
    pub unschedulable: bool,
    /// It has nodes.
    pub allocated: bool,
    /// It was ended by what is not its own.
    pub disrupted: bool,
    /// What it depends on will never be.
    pub never: bool,
    /// The words are not understood.
    pub unknown: bool,
    /// It succeeded with a step that did not.
    pub step_failed: bool,
}

impl Verdict {
    fn of(phase: Phase, reason: &'static str) -> Self {
        Self {
            phase: Some(phase),
            terminal: false,
            reason,
            message: String::new(),
            class: None,
            exit_code: None,
            signal: None,
            unschedulable: false,
            allocated: false,
            disrupted: false,
            never: false,
            unknown: false,
            step_failed: false,
        }
    }

    fn failed(reason: &'static str, class: Class, message: impl Into<String>) -> Self {
        let disrupted = class == Class::Infrastructure;
        let message = message.into();
        Self { terminal: true, class: Some(class), message, disrupted, ..Self::of(Phase::Failed, reason) }
    }

    /// A job that nobody knows any more.
    #[must_use]
    pub fn outcome_unknown(message: String) -> Self {
        Self { unknown: true, disrupted: false, ..Self::failed("OutcomeUnknown", Class::Unknown, message) }
    }
}

/// The words of states, each with its short form.
const STATES: [(&str, &str); 12] = [
    ("PENDING", "PD"),
    ("RUNNING", "R"),
    ("SUSPENDED", "S"),
    ("COMPLETED", "CD"),
    ("CANCELLED", "CA"),
    ("FAILED", "F"),
    ("TIMEOUT", "TO"),
    ("NODE_FAIL", "NF"),
    ("PREEMPTED", "PR"),
    ("BOOT_FAIL", "BF"),
    ("DEADLINE", "DL"),
    ("OUT_OF_MEMORY", "OOM"),
];
/// The words of flags.
const FLAGS: [(&str, &str); 17] = [
    ("LAUNCH_FAILED", "LF"),
    ("RECONFIG_FAIL", "RCF"),
    ("POWER_UP_NODE", "PUN"),
    ("REVOKED", "RV"),
    ("REQUEUE_FED", "RF"),
    ("RESV_DEL_HOLD", "RD"),
    ("SIGNALING", "SI"),
    ("STAGE_OUT", "SO"),
    ("RESIZING", "RS"),
    ("CONFIGURING", "CF"),
    ("COMPLETING", "CG"),
    ("STOPPED", "ST"),
    ("SPECIAL_EXIT", "SE"),
    ("REQUEUE_HOLD", "RH"),
    ("REQUEUED", "RQ"),
    ("UPDATE_DB", "UD"),
    ("EXPEDITING", "EX"),
];

/// The long word of what a tool printed: a short form, a word that was cut (`OUT_OF_ME+`), other capitals.
#[must_use]
pub fn word(printed: &str) -> Option<&'static str> {
    let printed = printed.trim().to_ascii_uppercase();
    let all = || STATES.iter().chain(&FLAGS);
    if let Some((long, _)) = all().find(|(long, short)| printed == *long || printed == *short) {
        return Some(long);
    }
    let aliases = [("LAUNCH_FAIL", "LAUNCH_FAILED"), ("RECONFIG_FAILED", "RECONFIG_FAIL"), ("OOM", "OUT_OF_MEMORY")];
    if let Some((_, long)) = aliases.iter().find(|(alias, _)| printed == *alias) {
        return Some(long);
    }
    let cut = printed.strip_suffix('+').filter(|c| c.len() >= 2)?;
    let mut fits = all().filter(|(long, _)| long.starts_with(cut));
    match (fits.next(), fits.next()) {
        (Some((long, _)), None) => Some(long),
        _ => None,
    }
}

/// The words of a state as printed: `CANCELLED by 0`, `RUNNING+COMPLETING`, `OUT_OF_ME+`; and who cancelled.
#[must_use]
pub fn words(printed: &str) -> (Vec<String>, Option<String>) {
    let printed = printed.trim();
    let (state, by) = match printed.split_once(" by ") {
        Some((state, by)) => (state, Some(by.trim().trim_end_matches('+').to_owned())),
        None => (printed.split_whitespace().next().unwrap_or_default(), None),
    };
    let known = |w: &str| word(w).map_or_else(|| w.to_ascii_uppercase(), str::to_owned);
    if word(state).is_some() || !state.contains('+') {
        return (vec![known(state)], by);
    }
    (state.split('+').filter(|w| !w.is_empty()).map(known).collect(), by)
}

/// The reason of jobs that Slurm could not start and holds.
pub const LAUNCH_FAILED_HELD: &str = "LaunchFailedHeld";

/// Reasons of jobs that wait for somebody, and who that is.
const HELD: [(&str, &str); 5] = [
    ("JobHeldUser", "this account holds it, `kubectl gpu release` lets it go"),
    ("JobHeldAdmin", "an administrator of Slurm holds it and must let it go"),
    ("JobArrayTaskLimitHeld", "it waits for other tasks of its array"),
    ("ReservationDeleted", "its reservation is gone; `kubectl gpu release` lets it go without one"),
    ("job requeued in held state", "it was queued again and held, `kubectl gpu release` lets it go"),
];
/// Reasons of jobs that Slurm queued again and holds because it could not start them.
const UNLAUNCHED: [&str; 2] = ["launch failed requeued held", "JobHoldMaxRequeue"];
/// Reasons of jobs that do not start as they are: whole, and as beginnings.
const STUCK: [&str; 14] = [
    "BadConstraints",
    "PartitionConfig",
    "PartitionNodeLimit",
    "PartitionTimeLimit",
    "PartitionDown",
    "PartitionInactive",
    "AccountNotAllowed",
    "AccountingPolicy",
    "InvalidAccount",
    "InvalidQOS",
    "NodeDown",
    "FailedToGetResources",
    "JobSizeExceeds",
    "DeadLine",
];
const STUCK_PREFIX: [&str; 3] = ["QOS", "Assoc", "MaxCpuPerAccount"];

fn pending(report: &Report) -> Verdict {
    let reason = report.reason.trim();
    let said = || if reason.is_empty() { String::new() } else { format!("Slurm says {reason}") };
    // Tools write blanks in reasons as they are or as low lines.
    let spaced = reason.replace('_', " ");
    let is = |known: &str| spaced.eq_ignore_ascii_case(known);
    if UNLAUNCHED.iter().any(|u| is(u)) {
        let message = format!("Slurm could not start it and holds it ({spaced})");
        return Verdict {
            class: Some(Class::Infrastructure),
            message,
            ..Verdict::of(Phase::Suspended, LAUNCH_FAILED_HELD)
        };
    }
    if let Some((_, who)) = HELD.iter().find(|(h, _)| is(h)) {
        return Verdict { message: format!("{}: {who}", said()), ..Verdict::of(Phase::Suspended, "Held") };
    }
    if reason == "DependencyNeverSatisfied" {
        let message = "a job that this one comes after did not end as it must".into();
        return Verdict {
            never: true,
            class: Some(Class::Never),
            message,
            ..Verdict::of(Phase::Queued, "DependencyNeverSatisfied")
        };
    }
    if STUCK.contains(&reason) || STUCK_PREFIX.iter().any(|p| reason.starts_with(p)) {
        return Verdict {
            unschedulable: true,
            class: Some(Class::Never),
            message: said(),
            ..Verdict::of(Phase::Queued, "Unschedulable")
        };
    }
    Verdict { message: said(), ..Verdict::of(Phase::Queued, "Queued") }
}

fn failed(report: &Report) -> Verdict {
    let exit = report.exit.unwrap_or_default();
    if exit.signal == 53 {
        return Verdict::failed("LaunchFailed", Class::Infrastructure, "Slurm could not start the script");
    }
    // A submission that was refused can leave such a record.
    if exit == Exit::default() && (STUCK.contains(&report.reason.as_str()) || report.reason.starts_with("Invalid")) {
        return Verdict::failed("Refused", Class::Never, format!("Slurm says {}", report.reason));
    }
    if exit.signal != 0 {
        let message = format!("ended by signal {}", exit.signal);
        let signal = Some(exit.signal);
        let exit_code = Some(128 + exit.signal);
        return Verdict { signal, exit_code, ..Verdict::failed("Signaled", Class::User, message) };
    }
    if report.exit.is_none() {
        let message = "failed, with a code that is not known".to_owned();
        return Verdict::failed("JobFailed", Class::User, message);
    }
    if exit.code == 0 {
        let message = format!("Slurm says {}", if report.reason.is_empty() { "nothing more" } else { &report.reason });
        return Verdict::failed("JobFailed", Class::User, message);
    }
    let as_signal = if (129..=192).contains(&exit.code) {
        format!(", as of a program that signal {} ended", exit.code - 128)
    } else {
        String::new()
    };
    let message = format!("ended with exit code {}{as_signal}", exit.code);
    Verdict { exit_code: Some(exit.code), ..Verdict::failed("NonZeroExit", Class::User, message) }
}

/// What a report means. `ours` is whether we cancelled it.
#[must_use]
pub fn judge(report: &Report, ours: bool) -> Verdict {
    let has = |word: &str| report.words.iter().any(|w| w == word);
    let base = STATES.iter().map(|(long, _)| *long).find(|s| has(s));
    let suspended = |reason| Verdict { message: report.reason.clone(), ..Verdict::of(Phase::Suspended, reason) };
    // Flags that decide whatever the state below them is.
    if has("SPECIAL_EXIT") {
        return Verdict::failed(
            "SpecialExit",
            Class::Never,
            "Slurm holds it for its operator: it ended with a special code",
        );
    }
    if has("REVOKED") {
        return Verdict::failed("Revoked", Class::Never, "another cluster of its federation runs it");
    }
    if has("REQUEUE_HOLD") {
        return suspended("RequeuedHeld");
    }
    if has("RESV_DEL_HOLD") {
        return suspended("ReservationDeleted");
    }
    if has("COMPLETING") {
        return Verdict { allocated: true, ..Verdict::of(Phase::Finishing, "Completing") };
    }
    if has("REQUEUED") || has("REQUEUE_FED") {
        return Verdict::of(Phase::Queued, "Requeued");
    }
    if has("STAGE_OUT") && base.is_some_and(|b| !matches!(b, "PENDING" | "RUNNING" | "SUSPENDED")) {
        return Verdict { allocated: true, ..Verdict::of(Phase::Finishing, "StageOut") };
    }
    if (has("LAUNCH_FAILED") || has("RECONFIG_FAIL")) && matches!(base, None | Some("FAILED")) {
        return Verdict::failed("LaunchFailed", Class::Infrastructure, "Slurm could not start the script");
    }
    if has("CONFIGURING") || has("POWER_UP_NODE") {
        return Verdict { allocated: true, ..Verdict::of(Phase::Starting, "Configuring") };
    }
    if has("STOPPED") {
        return Verdict { allocated: true, ..suspended("Stopped") };
    }
    let Some(base) = base else {
        let noted = ["STAGE_OUT", "SIGNALING", "RESIZING", "UPDATE_DB", "EXPEDITING"];
        let unknown = report.words.is_empty() || !report.words.iter().all(|w| noted.contains(&w.as_str()));
        let message = if unknown { format!("Slurm says {:?}", report.words.join("+")) } else { String::new() };
        return Verdict { phase: None, unknown, message, ..Verdict::of(Phase::Pending, "UnknownState") };
    };
    let lost = |reason, what: &str| Verdict::failed(reason, Class::Infrastructure, format!("{what}: {}", report.nodes));
    match base {
        "PENDING" => pending(report),
        "RUNNING" => Verdict { allocated: true, ..Verdict::of(Phase::Running, "Running") },
        "SUSPENDED" => suspended("SlurmSuspended"),
        "COMPLETED" => {
            let step_failed = report.derived.is_some_and(|d| d.code != 0 || d.signal != 0);
            let message = match report.derived {
                Some(d) if step_failed => format!("a step ended with {}:{}, but the script with 0", d.code, d.signal),
                _ => String::new(),
            };
            Verdict {
                terminal: true,
                exit_code: Some(0),
                step_failed,
                message,
                ..Verdict::of(Phase::Succeeded, "Completed")
            }
        }
        "CANCELLED" if ours => Verdict::failed("Cancelled", Class::Never, "cancelled here"),
        "CANCELLED" => {
            let who = |u: &String| {
                let number = u.bytes().all(|b| b.is_ascii_digit());
                format!(" by the account {}{u}", if number { "with uid " } else { "" })
            };
            let by = report.cancelled_by.as_ref().map(who).unwrap_or_default();
            Verdict::failed("CancelledExternally", Class::Never, format!("cancelled in Slurm{by}"))
        }
        "FAILED" => failed(report),
        "TIMEOUT" => {
            let limit = if report.limit.is_empty() { String::new() } else { format!(" of {}", report.limit) };
            Verdict::failed("DeadlineExceeded", Class::User, format!("ran longer than its limit{limit}"))
        }
        "DEADLINE" => Verdict::failed("DeadlineUnreachable", Class::Never, "could not end before its deadline"),
        "OUT_OF_MEMORY" => Verdict::failed("OOMKilled", Class::User, "needed more memory than it had"),
        "NODE_FAIL" => lost("NodeLost", "a node was lost"),
        "BOOT_FAIL" => lost("BootFailed", "a node did not boot"),
        _ => Verdict::failed("Preempted", Class::Infrastructure, "had to make room for another job"),
    }
}

/// How sure a source is: of two reports that both say that a job ended, the one with the lower number is taken.
#[must_use]
pub fn rank(source: Decider) -> u8 {
    match source {
        Decider::Controller => 0,
        Decider::Accounting => 1,
        Decider::Queue | Decider::Push => 2,
        // It writes 0:0 where the controller says 0:15.
        Decider::CompletionLog => 3,
        Decider::Marker => 4,
        Decider::Skiff => 5,
    }
}
