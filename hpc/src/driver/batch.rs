//! Submissions that go together where a way is narrow: over SSH each command is some journeys there and back and one of few channels,
//! so what waits for one goes with the next, in order.
//!
//! It changes nothing for exactly once: each job has an answer of its own, and one whose answer did not come is
//! [`SlurmError::Lost`], as if it had gone alone. All of a batch are over when one alone would be: one `timeout` runs them all.

use std::collections::VecDeque;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use super::{Output, SlurmError};
use crate::script::quote;

/// Submissions in one command: a busy controller takes a second for each, and they have thirty together.
const MOST: usize = 8;
/// Begins a line between the answers of two jobs.
const MARK: &str = "@@skiff-job";

/// One submission.
#[derive(Clone, Debug, Default)]
pub(super) struct Job {
    /// Its script.
    pub(super) script: Bytes,
    /// Directories that are made before, as words of a shell.
    pub(super) directories: String,
}

type Answer = Result<Output, SlurmError>;

/// Submissions that wait for their turn, and how many commands may be under way with them.
pub(super) struct Together {
    waiting: Mutex<VecDeque<(Job, oneshot::Sender<Answer>)>>,
    senders: Semaphore,
}

impl Together {
    /// With so many commands at a time.
    pub(super) fn new(commands: usize) -> Self {
        Self { waiting: Mutex::default(), senders: Semaphore::new(commands.max(1)) }
    }

    /// Submits a job with those that wait beside it. `send` ends within a deadline of its own and so does this: before a job there
    /// are at most as many others as there are workers.
    pub(super) async fn submit<F>(&self, job: Job, send: impl Fn(Vec<Job>) -> F) -> Answer
    where
        F: Future<Output = Vec<Answer>>,
    {
        let (tell, mut told) = oneshot::channel();
        self.waiting.lock().push_back((job, tell));
        let gone = |_| Err(SlurmError::Lost("who submitted it was ended".into()));
        loop {
            let turn = tokio::select! {
                biased;
                answer = &mut told => return answer.unwrap_or_else(gone),
                turn = self.senders.acquire() => turn.map_err(|e| SlurmError::Unreachable(e.to_string()))?,
            };
            let batch = self.next();
            if batch.is_empty() {
                // Somebody else has ours.
                drop(turn);
                return told.await.unwrap_or_else(gone);
            }
            let (jobs, tells): (Vec<Job>, Vec<_>) = batch.into_iter().unzip();
            let mut answers = send(jobs).await.into_iter();
            for tell in tells {
                let answer = answers.next().unwrap_or_else(|| Err(SlurmError::Lost("no answer to it came".into())));
                // Who waited may be gone; what became of the job is found out by its name.
                let _ = tell.send(answer);
            }
        }
    }

    /// The next that go together. Those that nobody waits for any more were never sent.
    fn next(&self) -> Vec<(Job, oneshot::Sender<Answer>)> {
        let mut waiting = self.waiting.lock();
        waiting.retain(|(_, tell)| !tell.is_closed());
        let n = waiting.len().min(MOST);
        waiting.drain(..n).collect()
    }
}

/// The command for several jobs, and what it reads.
pub(super) fn command(jobs: &[Job]) -> (String, Bytes) {
    // Each reads its own part of the input, whatever becomes of it.
    let mut script = format!(
        "one() {{ n=$1; shift; if mkdir -p -- \"$@\"; then head -c \"$n\" | sbatch --parsable; \
         else head -c \"$n\" >/dev/null; (exit 99); fi; \
         printf '\\n{MARK} %s\\n' $?; printf '\\n{MARK}\\n' >&2; }}\n"
    );
    let mut input = Vec::new();
    for job in jobs {
        script.push_str(&format!("one {} {}\n", job.script.len(), job.directories));
        input.extend_from_slice(&job.script);
    }
    (format!("exec timeout -k 5 30 /bin/bash -c {}", quote(&script)), input.into())
}

/// The answers to that command, as many as there are jobs.
pub(super) fn answers(out: &Output, jobs: usize) -> Vec<Answer> {
    let split = |bytes: &Bytes| {
        let (text, mut all, mut lines) = (String::from_utf8_lossy(bytes).into_owned(), vec![], String::new());
        for line in text.lines() {
            match line.strip_prefix(MARK) {
                Some(code) => all.push((code.trim().to_owned(), std::mem::take(&mut lines))),
                None => lines.extend([line, "\n"]),
            }
        }
        all
    };
    let (said, mut complained) = (split(&out.stdout), split(&out.stderr).into_iter());
    let nothing = said.is_empty();
    let mut all: Vec<Answer> = said
        .into_iter()
        .take(jobs)
        .map(|(code, text)| {
            let code = code.parse().map_err(|_| SlurmError::Lost(format!("{code:?} is no exit code")))?;
            let stderr = complained.next().map(|(_, text)| text).unwrap_or_default();
            Ok(Output { code, stdout: text.into(), stderr: stderr.into() })
        })
        .collect();
    all.resize_with(jobs, || {
        // Not even the first began; else nobody knows of those that are missing.
        if nothing && out.code == 127 { Ok(out.clone()) } else { Err(SlurmError::Lost(out.complaint())) }
    });
    all
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::local::Local;
    use super::super::{QUICK, Shell as _};
    use super::*;

    fn job(script: &str, directories: &str) -> Job {
        Job { script: script.to_owned().into(), directories: directories.to_owned() }
    }

    #[tokio::test]
    async fn each_job_reads_its_own_script_and_has_its_own_answer() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        // It says no id for what it refuses, and complains without ending its line.
        let sbatch =
            "#!/bin/bash\ns=$(cat)\ncase $s in bad*) printf 'no: %s' \"$s\" >&2; exit 3;; esac\nprintf %s \"${#s}\"\n";
        std::fs::write(at("sbatch"), sbatch).unwrap();
        std::fs::set_permissions(at("sbatch"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(at("file"), "").unwrap();
        let made = quote(&at("made"));
        let jobs = [
            job("four", &made),
            job("bad one", &made),
            job("of a disk that is full", &quote(&at("file/sub"))),
            job("@@skiff-job 0\nsixteen or so", &made),
        ];
        let (text, input) = command(&jobs);
        let out = Local::default().exec(&format!("PATH={}:$PATH\n{text}", quote(&at(""))), input, QUICK).await.unwrap();
        let all: Vec<_> = answers(&out, 4).into_iter().map(Result::unwrap).collect();
        assert_eq!(all.iter().map(|o| o.code).collect::<Vec<_>>(), [0, 3, 99, 0], "{out:?}");
        assert_eq!((all[0].text().trim(), all[3].text().trim()), ("4", "27"));
        assert_eq!(all[1].complaint(), "no: bad one");
        assert!(all[2].complaint().contains("file"), "{:?}", all[2]);
        assert!(all[3].stderr.iter().all(u8::is_ascii_whitespace), "another's complaint: {:?}", all[3]);
    }

    #[test]
    fn who_has_no_answer_is_lost() {
        let out = |code, stdout: &str| Output { code, stdout: stdout.to_owned().into(), stderr: Bytes::new() };
        let half = answers(&out(124, "7\n\n@@skiff-job 0\n"), 3);
        assert_eq!(half[0].as_ref().unwrap().text().trim(), "7");
        assert!(half[1..].iter().all(|a| matches!(a, Err(SlurmError::Lost(_)))), "{half:?}");
        assert!(answers(&out(0, ""), 2).iter().all(|a| matches!(a, Err(SlurmError::Lost(_)))));
        assert!(answers(&out(127, ""), 2).iter().all(|a| a.as_ref().is_ok_and(|o| o.code == 127)));
    }

    #[tokio::test]
    async fn what_waits_goes_together_and_each_is_told() {
        let (together, commands) = (Arc::new(Together::new(1)), Arc::new(AtomicUsize::new(0)));
        let (go, wait) = tokio::sync::watch::channel(false);
        let all: Vec<_> = (0..20)
            .map(|i| {
                let (together, commands, wait) = (Arc::clone(&together), Arc::clone(&commands), wait.clone());
                tokio::spawn(async move {
                    let send = |jobs: Vec<Job>| {
                        commands.fetch_add(1, Ordering::Relaxed);
                        let mut wait = wait.clone();
                        async move {
                            wait.wait_for(|go| *go).await.unwrap();
                            jobs.into_iter().map(|j| Ok(Output { stdout: j.script, ..Output::default() })).collect()
                        }
                    };
                    (i, together.submit(job(&format!("job {i}"), ""), send).await)
                })
            })
            .collect();
        while together.waiting.lock().len() < 19 {
            tokio::task::yield_now().await;
        }
        // One who went away is not sent.
        all[19].abort();
        while !all[19].is_finished() {
            tokio::task::yield_now().await;
        }
        go.send(true).unwrap();
        for task in all {
            let Ok((i, answer)) = task.await else { continue };
            assert_eq!(answer.unwrap().text(), format!("job {i}"));
        }
        // The first alone, then eight, eight, and two.
        assert_eq!(commands.load(Ordering::Relaxed), 4);
    }
}
