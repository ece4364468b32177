//! Slurm's words: twelve states that exclude each other, seventeen flags on top, and scripts of what a job goes through.

use serde::{Deserialize, Serialize};

/// States, with their short form and the exit code and signal that usually go with them.
pub const STATES: [(&str, &str, (i32, i32)); 12] = [
    ("PENDING", "PD", (0, 0)),
    ("RUNNING", "R", (0, 0)),
    ("SUSPENDED", "S", (0, 0)),
    ("COMPLETED", "CD", (0, 0)),
    ("CANCELLED", "CA", (0, 15)),
    ("FAILED", "F", (1, 0)),
    ("TIMEOUT", "TO", (0, 15)),
    ("NODE_FAIL", "NF", (0, 0)),
    ("PREEMPTED", "PR", (0, 15)),
    ("BOOT_FAIL", "BF", (0, 0)),
    ("DEADLINE", "DL", (0, 0)),
    ("OUT_OF_MEMORY", "OOM", (0, 125)),
];

/// Flags in the order in which text tools prefer them, with their short form and the state they usually go with. The last five
/// are never printed by text tools.
pub const FLAGS: [(&str, &str, &str); 17] = [
    ("COMPLETING", "CG", "COMPLETED"),
    ("STAGE_OUT", "SO", "RUNNING"),
    ("CONFIGURING", "CF", "RUNNING"),
    ("RESIZING", "RS", "RUNNING"),
    ("REQUEUED", "RQ", "PENDING"),
    ("REQUEUE_FED", "RF", "PENDING"),
    ("REQUEUE_HOLD", "RH", "PENDING"),
    ("SPECIAL_EXIT", "SE", "PENDING"),
    ("STOPPED", "ST", "RUNNING"),
    ("REVOKED", "RV", "CANCELLED"),
    ("RESV_DEL_HOLD", "RD", "PENDING"),
    ("SIGNALING", "SI", "RUNNING"),
    ("LAUNCH_FAILED", "", "FAILED"),
    ("UPDATE_DB", "", "RUNNING"),
    ("RECONFIG_FAIL", "", "FAILED"),
    ("POWER_UP_NODE", "", "RUNNING"),
    ("EXPEDITING", "", "PENDING"),
];

/// What a job goes through next.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// The state.
    pub state: String,
    /// Flags.
    pub flags: Vec<String>,
    /// Slurm's reason.
    pub reason: Option<String>,
    /// For how long, in milliseconds; for ever in the last step.
    pub milliseconds: Option<i64>,
    /// Exit code and signal.
    pub exit: Option<(i32, i32)>,
    /// The highest exit code of its steps.
    pub derived: Option<i32>,
    /// Whether the controller forgets it instead.
    pub gone: bool,
}

/// Reads steps: words with blanks between, each `STATE[+FLAG…][/REASON][=EXIT[:SIGNAL][,DERIVED]][@DURATION]`, or `GONE`.
/// A flag alone goes with its usual state.
///
/// # Errors
/// The word that is none.
pub fn steps(text: &str) -> Result<Vec<Step>, String> {
    let mut out: Vec<Step> = text.split_whitespace().map(step).collect::<Result<_, _>>()?;
    // What is completing has the state it will have.
    for i in 0..out.len() {
        if out[i].flags == ["COMPLETING"]
            && let Some(next) = out.get(i + 1).filter(|n| !n.gone).cloned()
            && out[i].exit.is_none()
        {
            (out[i].state, out[i].exit) = (next.state, next.exit);
        }
    }
    Ok(out)
}

fn step(word: &str) -> Result<Step, String> {
    let wrong = || format!("{word}: not STATE[+FLAG…][/REASON][=EXIT[:SIGNAL][,DERIVED]][@DURATION]");
    let mut step = Step::default();
    let (word, duration) = word.split_once('@').map_or((word, None), |(w, d)| (w, Some(d)));
    if let Some(d) = duration {
        let (number, factor) = match (d.strip_suffix("ms"), d.strip_suffix('s')) {
            (Some(n), _) => (n, 1),
            (_, Some(n)) => (n, 1000),
            _ => return Err(wrong()),
        };
        step.milliseconds = Some(number.parse::<i64>().map_err(|_| wrong())? * factor);
    }
    let (word, exit) = word.split_once('=').map_or((word, None), |(w, e)| (w, Some(e)));
    if let Some(e) = exit {
        let (e, derived) = e.split_once(',').map_or((e, None), |(e, d)| (e, Some(d)));
        let (code, signal) = e.split_once(':').unwrap_or((e, "0"));
        step.exit = Some((code.parse().map_err(|_| wrong())?, signal.parse().map_err(|_| wrong())?));
        step.derived = derived.map(str::parse).transpose().map_err(|_| wrong())?;
    }
    let (word, reason) = word.split_once('/').map_or((word, None), |(w, r)| (w, Some(r)));
    step.reason = reason.map(|r| r.replace('_', " "));
    if word == "GONE" {
        step.gone = true;
        return Ok(step);
    }
    for (i, part) in word.split('+').enumerate() {
        if let Some((state, ..)) = STATES.iter().find(|s| s.0 == part || s.1 == part) {
            step.state = (*state).into();
        } else if let Some((flag, _, state)) = FLAGS.iter().find(|f| f.0 == part || f.1 == part) {
            step.flags.push((*flag).into());
            if i == 0 {
                step.state = (*state).into();
            }
        } else {
            return Err(wrong());
        }
    }
    Ok(step)
}

/// The one word that text tools print, in its long and its short form.
#[must_use]
pub fn printed(state: &str, flags: &[String]) -> (String, String) {
    for (flag, short, _) in FLAGS.iter().filter(|f| !f.1.is_empty()) {
        if flags.iter().any(|f| f == flag) {
            return ((*flag).into(), (*short).into());
        }
    }
    let short = STATES.iter().find(|s| s.0 == state).map_or("?", |s| s.1);
    (state.into(), short.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read() {
        let read = steps("PENDING/Resources@2s CF@5ms R CG@1s FAILED+LAUNCH_FAILED/x_y=0:53,7 GONE").unwrap();
        let words: Vec<_> = read.iter().map(|s| (s.state.as_str(), s.flags.join("+"), s.milliseconds)).collect();
        assert_eq!(
            words,
            [
                ("PENDING", String::new(), Some(2000)),
                ("RUNNING", "CONFIGURING".into(), Some(5)),
                ("RUNNING", String::new(), None),
                ("FAILED", "COMPLETING".into(), Some(1000)),
                ("FAILED", "LAUNCH_FAILED".into(), None),
                ("", String::new(), None),
            ]
        );
        assert_eq!(read[4].exit, Some((0, 53)));
        assert_eq!(read[4].derived, Some(7));
        assert_eq!(read[4].reason.as_deref(), Some("x y"));
        for wrong in ["NOTHING", "FAILED=x", "R@5", "R+Z"] {
            assert!(steps(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn text_tools_prefer_flags() {
        let flags = |f: &[&str]| f.iter().map(|f| (*f).to_owned()).collect::<Vec<_>>();
        assert_eq!(printed("RUNNING", &[]), ("RUNNING".into(), "R".into()));
        assert_eq!(printed("FAILED", &flags(&["LAUNCH_FAILED", "COMPLETING"])), ("COMPLETING".into(), "CG".into()));
        assert_eq!(printed("FAILED", &flags(&["LAUNCH_FAILED"])), ("FAILED".into(), "F".into()));
    }
}
