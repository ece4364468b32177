//! The state on the disk: a file with all of it as it once was, and a journal with what changed since, a line for each change.
//!
//! A change costs what it changes, not what there is. Whoever holds the lock reads and writes. A process that looked before goes on
//! reading where it was; one that is new reads everything once. When the journal is longer than the state it is begun anew under
//! the next number, and a process that misses its journal knows that it must read everything.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::sync::{LazyLock, Mutex, PoisonError};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::state::{Job, State, Store};

/// A journal is never begun anew below this length.
const SHORT: u64 = 1 << 20;

/// A line of the journal.
#[derive(Serialize, Deserialize)]
struct Change {
    head: Head,
    jobs: Vec<Job>,
    accepted: Vec<(String, u32)>,
}

/// What is small enough to be in each line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    next_id: u32,
    draws: u64,
    down: BTreeMap<String, String>,
}

impl Head {
    fn of(state: &State) -> Self {
        Self { next_id: state.next_id, draws: state.draws, down: state.down.clone() }
    }
}

/// Where a reader is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    offset: u64,
    whole: u64,
    head: Head,
}

/// States that this process read before, by directory. Each is of use only to who holds the lock, who takes it out.
static KNOWN: LazyLock<Mutex<HashMap<PathBuf, (State, Place)>>> = LazyLock::new(Mutex::default);

fn known() -> std::sync::MutexGuard<'static, HashMap<PathBuf, (State, Place)>> {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn name(generation: u64) -> String {
    format!("journal-{generation}")
}

/// Reads the state. The caller holds the lock.
pub(crate) fn read(store: &Store) -> anyhow::Result<(State, Place)> {
    let before = known().remove(&store.dir);
    if let Some((mut state, mut place)) = before
        && let Ok(journal) = File::open(store.path(&name(state.generation)))
    {
        follow(journal, &mut state, &mut place)?;
        return Ok((state, place));
    }
    let (mut state, whole) = match std::fs::read(store.path("state.json")) {
        Ok(bytes) => (serde_json::from_slice(&bytes).context("state.json")?, bytes.len() as u64),
        Err(_) => (State { next_id: 1, ..State::default() }, 0),
    };
    let mut place = Place { offset: 0, whole, head: Head::of(&state) };
    if let Ok(journal) = File::open(store.path(&name(state.generation))) {
        follow(journal, &mut state, &mut place)?;
    }
    Ok((state, place))
}

fn follow(mut journal: File, state: &mut State, place: &mut Place) -> anyhow::Result<()> {
    if journal.metadata()?.len() == place.offset {
        return Ok(());
    }
    journal.seek(SeekFrom::Start(place.offset))?;
    let mut text = Vec::new();
    journal.read_to_end(&mut text)?;
    // A line without its end is of somebody who was killed: it never was.
    for line in text.split_inclusive(|b| *b == b'\n').filter(|l| l.ends_with(b"\n")) {
        let change: Change = serde_json::from_slice(line).context("the journal")?;
        for job in change.jobs {
            state.jobs.put(job.id, job);
        }
        for (name, count) in change.accepted {
            state.accepted.put(name, count);
        }
        (state.next_id, state.draws, state.down) = (change.head.next_id, change.head.draws, change.head.down.clone());
        place.head = change.head;
        place.offset += line.len() as u64;
    }
    Ok(())
}

/// Whether there is nothing to write.
fn same(state: &State, place: &Place) -> bool {
    !state.jobs.is_touched() && !state.accepted.is_touched() && Head::of(state) == place.head
}

/// Writes down what changed. The caller holds the lock.
pub(crate) fn write(store: &Store, state: &mut State, place: &mut Place) -> anyhow::Result<()> {
    if same(state, place) && place.offset > 0 {
        return Ok(());
    }
    let head = Head::of(state);
    let change = Change {
        head: head.clone(),
        jobs: state.jobs.touched().map(|(_, j)| j.clone()).collect(),
        accepted: state.accepted.touched().map(|(n, c)| (n.clone(), *c)).collect(),
    };
    let mut line = serde_json::to_vec(&change)?;
    line.push(b'\n');
    let mut journal =
        File::options().create(true).truncate(false).write(true).open(store.path(&name(state.generation)))?;
    // What somebody who was killed left behind is written over.
    journal.set_len(place.offset)?;
    journal.seek(SeekFrom::Start(place.offset))?;
    journal.write_all(&line)?;
    place.offset += line.len() as u64;
    place.head = head;
    state.jobs.settled();
    state.accepted.settled();
    if place.offset > SHORT.max(place.whole) {
        begin(store, state, place)?;
    }
    Ok(())
}

/// Begins the journal anew.
fn begin(store: &Store, state: &mut State, place: &mut Place) -> anyhow::Result<()> {
    let old = name(state.generation);
    state.generation += 1;
    File::create(store.path(&name(state.generation)))?;
    place.whole = store.write("state.json", &*state)?;
    place.offset = 0;
    std::fs::remove_file(store.path(&old))?;
    Ok(())
}

/// Keeps a state for who holds the lock next, if it is what is written down.
pub(crate) fn keep(store: &Store, state: State, place: Place) {
    if same(&state, &place) {
        known().insert(store.dir.clone(), (state, place));
    }
}

/// Forgets a directory that goes.
pub(crate) fn forget(store: &Store) {
    known().remove(&store.dir);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::submit::Submission;

    fn submit(store: &Store, name: &str) {
        let mut locked = store.lock().unwrap();
        let options = [("job-name".to_owned(), name.to_owned())].into();
        let submission = Submission { options, script: "#!/bin/sh\n".into(), ..Submission::default() };
        locked.submit(&submission).unwrap();
        locked.save().unwrap();
    }

    #[test]
    fn what_is_written_is_read_by_who_looked_before_and_by_who_did_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        for i in 0..40 {
            submit(&store, &format!("job-{i}"));
        }
        let warm = serde_json::to_value(&store.lock().unwrap().state).unwrap();
        forget(&store);
        let cold = serde_json::to_value(&store.lock().unwrap().state).unwrap();
        assert_eq!(warm, cold);
        assert_eq!(cold["jobs"].as_object().unwrap().len(), 40);
        // What is not saved never was, for nobody.
        store.lock().unwrap().state.jobs.get_mut(&7).unwrap().state = "FAILED".into();
        assert_eq!(store.lock().unwrap().state.jobs[&7].state, "PENDING");
    }

    #[test]
    fn it_is_begun_anew_and_a_torn_line_never_was() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path());
        submit(&store, "first");
        let mut generations = 0;
        for i in 0..4000 {
            let mut locked = store.lock().unwrap();
            locked.state.jobs.get_mut(&1).unwrap().reason = format!("round {i}");
            locked.save().unwrap();
            generations = generations.max(store.lock().unwrap().state.generation);
        }
        assert!(generations > 0, "the journal grows for ever");
        let journal = store.path(&name(generations));
        let whole = std::fs::read(&journal).unwrap();
        forget(&store);
        std::fs::write(&journal, [whole.as_slice(), b"{\"head\":"].concat()).unwrap();
        assert_eq!(store.lock().unwrap().state.jobs[&1].reason, "round 3999");
        submit(&store, "second");
        forget(&store);
        let locked = store.lock().unwrap();
        assert_eq!((locked.state.jobs.len(), locked.state.accepted["second"]), (2, 1));
    }
}
