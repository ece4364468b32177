//! The log of a namespace: steps of many runs that are stored by one write.
//!
//! Where many runs go on at once, a write for each of their steps is what everything waits for. So their steps come together in
//! one object (WorkflowLog): while a write of it is under way the next steps gather, and all of them go into the next write. The
//! runs' own pages follow later ([`super::Journal`] says when); then the steps leave the log. When what is not on pages yet gets
//! too long for an object, it is stored as a full one, which the log names until all of it is on pages.
//!
//! **One writer.** The log is replaced under its resourceVersion, and it says how often it was taken. An engine that finds a page
//! with a number (`log`) that is higher than the one under which it holds the log takes the log first: under a higher number, so
//! that whoever held it before is refused from then on, and with all that is in it. Only then it reads the page again. A step
//! goes into the log only while the last page of its run has the very number under which the log is held, and was written by the
//! same journal; whoever is refused writes the page, under its resourceVersion, as always. So there is one order of a run's
//! steps: those of its pages, then those of the same writer in the log.
//!
//! **Several engines.** Each has logs of its own name, and pages say in which one their steps may be. Who takes a run over from an
//! engine that is gone raises the number of that one's log, so that it is refused, and reads it; from one that let the run go it
//! only reads ([`others`]). Nobody writes steps to another's log.
//!
//! Limits: [`Sharing::bytes`] of steps in one object, a bounded number of full ones; beyond that steps go to their pages at
//! once. A namespace that had a log keeps its head.

mod book;
mod others;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::JournalError;
pub(crate) use book::Logs;

/// Bytes of one step; a longer one goes to its page.
pub(super) const STEP: usize = 8 * 1024;

/// When steps of several runs are stored together.
#[derive(Clone, Copy, Debug)]
pub struct Sharing {
    /// So many steps must be on their way to the store at once. Fewer are stored by a write each: their histories are then
    /// complete at once.
    pub from: usize,
    /// Bytes of steps in one object.
    pub bytes: usize,
}

impl Default for Sharing {
    fn default() -> Self {
        // Text in text doubles at worst, and an object is to stay under 64 KiB.
        Self { from: 8, bytes: 28 * 1024 }
    }
}

/// A step in the log.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// Name and uid of the run.
    pub(crate) run: String,
    pub(crate) uid: String,
    /// Whose how manieth write it was.
    pub(crate) writer: String,
    pub(crate) n: u64,
    /// Items of a JSON array.
    pub(crate) inputs: String,
}

#[derive(Deserialize)]
struct Told {
    run: String,
    uid: String,
    w: String,
    n: u64,
    i: Vec<Value>,
}

impl Line {
    fn len(&self) -> usize {
        self.inputs.len() + self.run.len() + 128
    }
}

/// Lines as the log has them.
fn text<'a>(lines: impl Iterator<Item = &'a Line>) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("[");
    for line in lines {
        let comma = if text.len() > 1 { "," } else { "" };
        let Line { run, uid, writer, n, inputs } = line;
        // Writing to a String does not fail; names, uids and writers need no escapes.
        let _ = write!(
            text,
            "{comma}{{\"run\":\"{run}\",\"uid\":\"{uid}\",\"w\":\"{writer}\",\"n\":{n},\"i\":[{inputs}]}}"
        );
    }
    text.push(']');
    text
}

/// Lines that a log has.
fn lines(text: &str) -> Result<Vec<Line>, JournalError> {
    let told: Vec<Told> =
        serde_json::from_str(text).map_err(|e| JournalError::Damaged { page: 0, why: format!("the log: {e}") })?;
    let line = |told: Told| {
        let inputs: Vec<String> = told.i.iter().map(Value::to_string).collect();
        Line { run: told.run, uid: told.uid, writer: told.w, n: told.n, inputs: inputs.join(",") }
    };
    Ok(told.into_iter().map(line).collect())
}

/// What a log is asked for.
enum Ask {
    /// To be held under at least this number.
    Hold(i64, oneshot::Sender<Result<bool, JournalError>>),
    /// To be held, because writes are to be shared.
    Share(oneshot::Sender<()>),
    /// To be held under a higher number than before, where it is held: what was on its way to it is stored before, or refused.
    Renew(oneshot::Sender<()>),
    /// To store a step, while it is held under this number.
    Add(i64, Line, oneshot::Sender<bool>),
    /// All steps of a run so far are on its pages, or it is gone; those of one writer, or all.
    Done(String, Option<String>),
    /// The steps of a run, where it is held under at least this number.
    Of(String, i64, oneshot::Sender<Option<Vec<Line>>>),
}

/// The log of a namespace, as runs see it.
pub(crate) struct Log {
    name: Arc<str>,
    asks: mpsc::Sender<Ask>,
    /// The number under which it is held; 0 where it is not.
    held: Arc<AtomicI64>,
}

impl Log {
    /// Its name.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The number under which it is held here, as far as is known.
    pub(crate) fn held(&self) -> Option<i64> {
        Some(self.held.load(Ordering::Acquire)).filter(|n| *n > 0)
    }

    /// Holds it under this number or a higher one. Whether it had to be taken for that: then what was read before may be old.
    ///
    /// # Errors
    /// When it cannot be taken or read.
    pub(crate) async fn hold(&self, least: i64) -> Result<bool, JournalError> {
        if self.held().is_some_and(|n| n >= least) {
            return Ok(false);
        }
        let (reply, answer) = oneshot::channel();
        let _ = self.asks.send(Ask::Hold(least, reply)).await;
        answer.await.unwrap_or(Err(JournalError::Fenced))
    }

    /// Refuses whatever is on its way to it and not stored when this returns.
    pub(crate) async fn renew(&self) {
        let (reply, answer) = oneshot::channel();
        let _ = self.asks.send(Ask::Renew(reply)).await;
        let _ = answer.await;
    }

    /// Takes it where it is not held, if that goes now, so that later steps can be stored together.
    pub(crate) async fn share(&self) {
        if self.held().is_none() {
            let (reply, answer) = oneshot::channel();
            let _ = self.asks.send(Ask::Share(reply)).await;
            let _ = answer.await;
        }
    }

    /// Stores a step while the log is held under this number. Where it says false, the step is not known to be stored.
    pub(crate) async fn add(&self, held: i64, line: Line) -> bool {
        let (reply, answer) = oneshot::channel();
        self.asks.send(Ask::Add(held, line, reply)).await.is_ok() && answer.await.unwrap_or(false)
    }

    /// All steps of a run so far are on its pages, or it is gone: they may leave the log.
    pub(crate) async fn done(&self, uid: &str) {
        let _ = self.asks.send(Ask::Done(uid.to_owned(), None)).await;
    }

    /// The steps of a run, in their order. None where the log is not held under this number or a higher one any more.
    pub(crate) async fn of(&self, uid: &str, least: i64) -> Option<Vec<Line>> {
        let (reply, answer) = oneshot::channel();
        let _ = self.asks.send(Ask::Of(uid.to_owned(), least, reply)).await;
        answer.await.ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back() {
        let line = |n, inputs: &str| Line {
            run: "r.1".into(),
            uid: "u".into(),
            writer: "w".into(),
            n,
            inputs: inputs.to_owned(),
        };
        let all = [line(1, ""), line(2, r#"{"at":1,"k":"go"}"#), line(3, r#"{"k":"start"},{"k":"\"x\""}"#)];
        let back = lines(&text(all.iter())).unwrap();
        assert_eq!(back.len(), 3);
        for (line, back) in all.iter().zip(back) {
            assert_eq!((line.n, &line.inputs, &line.run), (back.n, &back.inputs, &back.run));
        }
        assert!(lines(&text([].iter())).unwrap().is_empty());
        assert!(lines("[{}]").is_err());
    }
}
