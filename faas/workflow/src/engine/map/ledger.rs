//! The books of a map's run: which executions there are, how far each is, what is written down about them. No I/O: what is
//! written is collected here and stored by whoever holds it, and the books are made anew from what was written.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use skiff_asl::{Definition, ExecutionError};

use crate::api::{MapCounts, PayloadRef, Phase};
use crate::journal::Whole;
use crate::journal::load::Rebuilt;
use crate::journal::record::{Record, Text, micros, time};
use crate::machine::{Command, Info, Input, Machine, What};
use crate::payload::{Payload, PayloadError};

/// Bytes of executions that failed, kept so that a redrive goes on where they did; beyond that it begins anew with them.
const KEPT_MAX: usize = 8 << 20;

/// What is written down. Times are microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "m", rename_all = "lowercase")]
pub(crate) enum Entry {
    /// An execution begins.
    Begin {
        /// Which.
        c: usize,
        at: i64,
        /// JSON text.
        input: Text,
    },
    /// One that failed goes on.
    Again { c: usize, at: i64, count: u32 },
    /// Something came for one.
    Step { c: usize, r: Record },
    /// One is over.
    End {
        c: usize,
        at: i64,
        phase: Phase,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<Text>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<Text>,
        /// Events of its history.
        n: i64,
    },
    /// The whole goes on where it failed.
    Redrive { at: i64, count: u32 },
    /// The whole is over.
    Over {
        at: i64,
        phase: Phase,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cause: Option<String>,
        /// Results that are written where the ResultWriter says.
        #[serde(default)]
        written: usize,
        /// The output of the state where it says where they are, JSON text.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<String>,
    },
}

impl Entry {
    /// The long texts of an entry, in the order in which [`Ledger::take`] wants them.
    pub(crate) fn long(&self) -> Vec<PayloadRef> {
        let there = |text: &Text| match text {
            Text::Here(_) => None,
            Text::There(reference) => Some(reference.clone()),
        };
        match self {
            Self::Begin { input, .. } => there(input).into_iter().collect(),
            Self::Step { r, .. } => r.long().cloned().into_iter().collect(),
            // How it ended its own steps say; of what is in memory only nobody asks for more.
            _ => vec![],
        }
    }
}

/// How the whole ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) at: Timestamp,
    pub(super) phase: Phase,
    pub(super) error: Option<String>,
    pub(super) cause: Option<String>,
    pub(super) written: usize,
    pub(super) output: Option<String>,
}

/// An execution that runs.
pub(super) struct Child {
    pub(super) machine: Machine,
    /// JSON text.
    input: Arc<str>,
    wake: Option<Timestamp>,
}

/// What of the books is not in machines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Core {
    entries: i64,
    next: usize,
    #[serde(default, skip_serializing_if = "VecDeque::is_empty")]
    again: VecDeque<usize>,
    counts: Sums,
    /// Bytes of outputs.
    bytes: usize,
    redrives: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    redriven: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    over: Option<Ended>,
    /// Those that failed, with what they were where that is kept: input and checkpoint.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    failed: BTreeMap<usize, Option<(Arc<str>, String)>>,
    kept: usize,
}

/// Executions and their items, by how they ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Sums {
    succeeded: [i64; 2],
    failed: [i64; 2],
    timed_out: [i64; 2],
    aborted: [i64; 2],
}

impl Sums {
    fn of(&mut self, phase: Phase) -> &mut [i64; 2] {
        match phase {
            Phase::Succeeded => &mut self.succeeded,
            Phase::TimedOut => &mut self.timed_out,
            Phase::Aborted => &mut self.aborted,
            _ => &mut self.failed,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Checkpoint {
    core: Core,
    /// Input and checkpoint of what runs.
    running: BTreeMap<usize, (Arc<str>, String)>,
}

/// Sizes of executions, in items.
pub(super) type Sizes = Arc<dyn Fn(usize) -> usize + Send + Sync>;
/// What an execution is told about itself; its input is filled in.
pub(super) type About = Arc<dyn Fn(usize) -> Info + Send + Sync>;

/// The books.
pub(super) struct Ledger {
    definition: Arc<Definition>,
    about: About,
    sizes: Sizes,
    express: bool,
    /// Executions there are, and items.
    total: (usize, usize),
    core: Core,
    running: BTreeMap<usize, Child>,
    timers: BTreeSet<(Timestamp, usize)>,
    ready: VecDeque<usize>,
    /// Not stored yet.
    entries: Vec<String>,
    long: Vec<Payload>,
    bytes: usize,
    commands: Vec<(usize, Command)>,
}

impl Ledger {
    pub(super) fn new(
        definition: Arc<Definition>,
        about: About,
        sizes: Sizes,
        express: bool,
        total: (usize, usize),
    ) -> Self {
        Self {
            definition,
            about,
            sizes,
            express,
            total,
            core: Core::default(),
            running: BTreeMap::new(),
            timers: BTreeSet::new(),
            ready: VecDeque::new(),
            entries: vec![],
            long: vec![],
            bytes: 0,
            commands: vec![],
        }
    }

    /// The execution that begins next.
    pub(super) fn next(&self) -> Option<usize> {
        self.core.again.front().copied().or((self.core.next < self.total.0).then_some(self.core.next))
    }

    pub(super) fn running(&self) -> usize {
        self.running.len()
    }

    pub(super) fn child(&self, index: usize) -> Option<&Machine> {
        self.running.get(&index).map(|c| &c.machine)
    }

    /// How many failed in any way.
    pub(super) fn failed(&self) -> usize {
        let sums = self.core.counts;
        usize::try_from(sums.failed[0] + sums.timed_out[0] + sums.aborted[0]).unwrap_or_default()
    }

    pub(super) fn total(&self) -> usize {
        self.total.0
    }

    /// Those that never began.
    pub(super) fn pending(&self) -> std::ops::Range<usize> {
        self.core.next..self.total.0
    }

    /// Bytes of outputs.
    pub(super) fn outputs(&self) -> usize {
        self.core.bytes
    }

    pub(super) fn over(&self) -> Option<&Ended> {
        self.core.over.as_ref()
    }

    pub(super) fn redrives(&self) -> (u32, Option<Timestamp>) {
        (self.core.redrives, self.core.redriven)
    }

    /// Counts of executions, or of items.
    pub(super) fn counts(&self, items: bool) -> MapCounts {
        let which = usize::from(items);
        let sums = self.core.counts;
        let total = i64::try_from(if items { self.total.1 } else { self.total.0 }).unwrap_or(i64::MAX);
        let running = self.running.keys().map(|i| if items { (self.sizes)(*i) } else { 1 }).sum::<usize>();
        let running = i64::try_from(running).unwrap_or(i64::MAX);
        let [succeeded, failed, timed_out, aborted] =
            [sums.succeeded, sums.failed, sums.timed_out, sums.aborted].map(|s| s[which]);
        let written = self.core.over.as_ref().map_or(0, |o| i64::try_from(o.written).unwrap_or_default());
        MapCounts {
            total,
            pending: total - running - succeeded - failed - timed_out - aborted,
            running,
            succeeded,
            failed,
            timed_out,
            aborted,
            results_written: written,
        }
    }

    /// When time alone changes something.
    pub(super) fn wake(&self) -> Option<Timestamp> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// An execution whose time has come.
    pub(super) fn due(&self, now: Timestamp) -> Option<usize> {
        self.timers.first().filter(|(at, _)| *at <= now).map(|(_, index)| *index)
    }

    /// Bytes that are not stored yet.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What is to be stored.
    pub(super) fn unstored(&mut self) -> (Vec<String>, Vec<Payload>) {
        self.bytes = 0;
        (std::mem::take(&mut self.entries), std::mem::take(&mut self.long))
    }

    /// What is to be done once that is stored.
    pub(super) fn commands(&mut self) -> Vec<(usize, Command)> {
        std::mem::take(&mut self.commands)
    }

    /// Everything that is under way, as if it was to be done anew.
    pub(super) fn outstanding(&self) -> Vec<(usize, Command)> {
        let each = self.running.iter();
        each.flat_map(|(i, c)| c.machine.outstanding().into_iter().map(move |command| (*i, command))).collect()
    }

    /// An execution that goes on by itself.
    pub(super) fn ready(&mut self) -> Option<usize> {
        while let Some(index) = self.ready.pop_front() {
            if self.running.get(&index).is_some_and(|c| c.machine.more()) {
                return Some(index);
            }
        }
        None
    }

    /// All that run.
    pub(super) fn live(&self) -> Vec<usize> {
        self.running.keys().copied().collect()
    }

    fn note(&mut self, entry: &Entry) {
        let text = serde_json::to_string(entry).unwrap_or_default();
        self.bytes += text.len();
        self.core.entries += 1;
        self.entries.push(text);
    }

    fn machine(&self, index: usize, input: &str) -> Machine {
        let mut info = (self.about)(index);
        // It was written as JSON.
        info.input = serde_json::from_str(input).unwrap_or_default();
        Machine::new(Arc::clone(&self.definition), Arc::new(info))
    }

    /// The next execution begins, as [`Ledger::next`] says.
    pub(super) fn begin(&mut self, index: usize, input: Arc<str>, now: Timestamp) -> Result<(), PayloadError> {
        if self.core.again.front() == Some(&index) && !self.is_fresh(index) {
            let count = self.core.redrives;
            self.note(&Entry::Again { c: index, at: micros(now), count });
            self.again(index, now, count);
        } else {
            let text = Text::of(&input, &mut self.long)?;
            self.note(&Entry::Begin { c: index, at: micros(now), input: text });
            self.began(index, input, now);
        }
        self.settle(index, now)
    }

    fn began(&mut self, index: usize, input: Arc<str>, now: Timestamp) {
        self.core.next = self.core.next.max(index + 1);
        self.unkeep(index);
        let mut machine = self.machine(index, &input);
        machine.apply(&Input { at: now, what: What::Start });
        self.running.insert(index, Child { machine, input, wake: None });
    }

    /// One that failed goes on, or begins anew.
    fn again(&mut self, index: usize, now: Timestamp, count: u32) {
        let Some((input, checkpoint)) = self.unkeep(index) else { return };
        let mut machine = self.machine(index, &input);
        if !checkpoint.is_empty()
            && let Ok(restored) =
                Machine::restore(Arc::clone(machine.definition()), Arc::clone(machine.info()), &checkpoint)
        {
            machine = restored;
            machine.apply(&Input { at: now, what: What::Redrive { count } });
        } else {
            machine.apply(&Input { at: now, what: What::Start });
        }
        self.running.insert(index, Child { machine, input, wake: None });
    }

    /// What is kept of one that failed, which begins again.
    fn unkeep(&mut self, index: usize) -> Option<(Arc<str>, String)> {
        self.core.again.retain(|i| *i != index);
        let (input, checkpoint) = self.core.failed.remove(&index)??;
        self.core.kept = self.core.kept.saturating_sub(input.len() + checkpoint.len());
        Some((input, checkpoint))
    }

    /// Whether the input of an execution that goes on must be given anew: it is not kept.
    pub(super) fn is_fresh(&self, index: usize) -> bool {
        !matches!(self.core.failed.get(&index), Some(Some(_)))
    }

    /// Something came for an execution. False when it says nothing to it.
    pub(super) fn apply(&mut self, index: usize, what: What, now: Timestamp) -> Result<bool, PayloadError> {
        let Some(child) = self.running.get_mut(&index) else { return Ok(false) };
        let input = Input { at: now, what };
        if !child.machine.apply(&input) {
            return Ok(false);
        }
        if !self.express {
            let record = Record::of(&input, &mut self.long)?;
            self.note(&Entry::Step { c: index, r: record });
        }
        self.settle(index, now)?;
        Ok(true)
    }

    /// After something happened to an execution: what follows outside, when it wakes, whether it is over.
    fn settle(&mut self, index: usize, now: Timestamp) -> Result<(), PayloadError> {
        let Some(child) = self.running.get_mut(&index) else { return Ok(()) };
        child.machine.events();
        self.commands.extend(child.machine.commands().into_iter().map(|command| (index, command)));
        if child.machine.more() {
            self.ready.push_back(index);
        }
        let wake = child.machine.wake();
        if wake != child.wake {
            if let Some(old) = child.wake.take() {
                self.timers.remove(&(old, index));
            }
            self.timers.extend(wake.map(|at| (at, index)));
            child.wake = wake;
        }
        let Some(over) = child.machine.over().cloned() else { return Ok(()) };
        let output: Option<Arc<str>> = over.output.as_ref().map(|o| o.to_string().into());
        let length = output.as_ref().map_or(0, |o| o.len());
        let cause: Option<Arc<str>> = over.cause.as_deref().map(Into::into);
        let entry = Entry::End {
            c: index,
            at: micros(now),
            phase: over.phase,
            output: output.as_ref().map(|o| Text::of(o, &mut self.long)).transpose()?,
            error: over.error,
            cause: cause.as_ref().map(|c| Text::of(c, &mut self.long)).transpose()?,
            n: child.machine.last_event(),
        };
        self.note(&entry);
        self.ended(index, over.phase, length);
        Ok(())
    }

    /// An execution that fails before it begins.
    pub(super) fn refuse(&mut self, index: usize, error: &ExecutionError, now: Timestamp) -> Result<(), PayloadError> {
        let cause: Arc<str> = error.cause.as_str().into();
        let cause = Some(Text::of(&cause, &mut self.long)?);
        let error = Some(error.error.clone());
        self.note(&Entry::End { c: index, at: micros(now), phase: Phase::Failed, output: None, error, cause, n: 0 });
        self.ended(index, Phase::Failed, 0);
        Ok(())
    }

    fn ended(&mut self, index: usize, phase: Phase, length: usize) {
        self.core.next = self.core.next.max(index + 1);
        self.core.bytes += length;
        self.unkeep(index);
        let size = i64::try_from((self.sizes)(index)).unwrap_or(i64::MAX);
        let sums = self.core.counts.of(phase);
        sums[0] += 1;
        sums[1] += size;
        let child = self.running.remove(&index);
        if let Some(at) = child.as_ref().and_then(|c| c.wake) {
            self.timers.remove(&(at, index));
        }
        if phase == Phase::Succeeded {
            return;
        }
        let kept = child.map(|c| {
            let checkpoint = if self.express { String::new() } else { c.machine.checkpoint() };
            (c.input, checkpoint)
        });
        let kept = kept.filter(|(input, checkpoint)| self.core.kept + input.len() + checkpoint.len() <= KEPT_MAX);
        self.core.kept += kept.as_ref().map_or(0, |(input, checkpoint)| input.len() + checkpoint.len());
        self.core.failed.insert(index, kept);
    }

    /// The whole goes on: what failed begins again. False when it does not.
    pub(super) fn redrive(&mut self, count: u32, now: Timestamp) -> bool {
        let failed = self.core.over.as_ref().is_some_and(|o| o.phase != Phase::Succeeded);
        if !failed || count <= self.core.redrives {
            return false;
        }
        self.note(&Entry::Redrive { at: micros(now), count });
        self.redriven(count, now);
        true
    }

    fn redriven(&mut self, count: u32, now: Timestamp) {
        self.core.over = None;
        self.core.redrives = count;
        self.core.redriven = Some(now);
        let failed: Vec<usize> = self.core.failed.keys().copied().collect();
        for index in failed {
            if !self.core.again.contains(&index) {
                self.core.again.push_back(index);
            }
        }
        // They are waited for again, each in the way it ended.
        for phase in [Phase::Failed, Phase::TimedOut, Phase::Aborted] {
            *self.core.counts.of(phase) = [0, 0];
        }
    }

    /// The whole is over.
    pub(super) fn end(&mut self, ended: Ended) {
        self.note(&Entry::Over {
            at: micros(ended.at),
            phase: ended.phase,
            error: ended.error.clone(),
            cause: ended.cause.clone(),
            written: ended.written,
            output: ended.output.clone(),
        });
        self.core.over = Some(ended);
    }

    fn took(&mut self, entry: Entry, long: Vec<Arc<str>>) -> Result<(), String> {
        let text = |text: Text| match text {
            Text::Here(text) => text,
            Text::There(_) => long.first().cloned().unwrap_or_default(),
        };
        self.core.entries += 1;
        let of = match &entry {
            Entry::Begin { c, .. } | Entry::Again { c, .. } | Entry::Step { c, .. } => Some(*c),
            _ => None,
        };
        match entry {
            Entry::Begin { c, at, input } => self.began(c, text(input), time(at)),
            Entry::Again { c, at, count } => self.again(c, time(at), count),
            Entry::Step { c, r } => {
                let child = self.running.get_mut(&c).ok_or("a step of what does not run")?;
                if !child.machine.apply(&r.input(long.first().cloned())) {
                    return Err("a step says nothing to its execution".to_owned());
                }
            }
            Entry::End { c, phase, output, .. } => {
                let length = output.map_or(0, |o| match o {
                    Text::Here(text) => text.len(),
                    Text::There(long) => usize::try_from(long.size).unwrap_or(usize::MAX),
                });
                self.ended(c, phase, length);
            }
            Entry::Redrive { at, count } => self.redriven(count, time(at)),
            Entry::Over { at, phase, error, cause, written, output } => {
                self.core.over = Some(Ended { at: time(at), phase, error, cause, written, output });
            }
        }
        // What it wanted done is in its outstanding commands.
        if let Some(child) = of.and_then(|c| self.running.get_mut(&c)) {
            child.machine.events();
            child.machine.commands();
        }
        Ok(())
    }

    /// Timers of what was made anew, and what of it goes on by itself.
    pub(super) fn arm(&mut self) {
        self.timers.clear();
        self.ready = self.running.keys().copied().collect();
        for (index, child) in &mut self.running {
            child.wake = child.machine.wake();
            self.timers.extend(child.wake.map(|at| (at, *index)));
        }
    }
}

impl Whole for Ledger {
    fn last(&self) -> i64 {
        self.core.entries
    }

    fn is_over(&self) -> bool {
        self.core.over.is_some()
    }

    fn checkpoint(&self) -> String {
        let each = self.running.iter();
        let running = each.map(|(i, c)| (*i, (Arc::clone(&c.input), c.machine.checkpoint()))).collect();
        serde_json::to_string(&Checkpoint { core: self.core.clone(), running }).unwrap_or_default()
    }
}

impl Rebuilt for Ledger {
    fn restore(&mut self, checkpoint: &str) -> Result<(), String> {
        let Checkpoint { core, running } = serde_json::from_str(checkpoint).map_err(|e| e.to_string())?;
        self.core = core;
        self.running.clear();
        for (index, (input, checkpoint)) in running {
            let fresh = self.machine(index, &input);
            let machine = Machine::restore(Arc::clone(fresh.definition()), Arc::clone(fresh.info()), &checkpoint);
            let machine = machine.map_err(|e| e.to_string())?;
            self.running.insert(index, Child { machine, input, wake: None });
        }
        Ok(())
    }

    fn long(&self, input: &Value) -> Vec<PayloadRef> {
        Entry::deserialize(input).map(|e| e.long()).unwrap_or_default()
    }

    fn take(&mut self, input: Value, long: Vec<Arc<str>>) -> Result<(), String> {
        let entry = Entry::deserialize(input).map_err(|e| e.to_string())?;
        self.took(entry, long)
    }

    fn last(&self) -> i64 {
        self.core.entries
    }
}
