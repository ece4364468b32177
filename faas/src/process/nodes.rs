//! What the gateway knows of the nodes that can run processes, and which one an instance goes to.
//!
//! Pure: it is told what nodes and agents say, and is asked for a node. The one with the fewest instances takes the next; its own
//! is first among equals, because no request leaves the machine there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use tokio_util::sync::DropGuard;

use super::agent::Agent;
use super::host::Host;
use super::job::{Can, Record};
use crate::api::Code;
use crate::runtime::Language;

/// A node whose agent failed is asked again after this time, or when no other is left.
const REST: Duration = Duration::from_secs(10);

/// Namespace and name of an instance.
pub(super) type Key = (String, String);

/// How a node's processes are reached.
#[derive(Clone, Debug)]
pub(super) enum Reach {
    /// They are those of this process.
    Here(Arc<Host>),
    /// Through its agent.
    There(Arc<Agent>),
}

/// One node.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) reach: Reach,
    labels: BTreeMap<String, String>,
    /// Of its object, as last read.
    version: u64,
    /// Why it takes nothing new, by its object.
    closed: Option<String>,
    /// What it runs, as it last said.
    pub(super) can: Option<Can>,
    /// It is being watched now.
    pub(super) watched: bool,
    /// It was tried at least once.
    pub(super) tried: bool,
    pub(super) instances: HashMap<Key, Record>,
    pub(super) starting: HashSet<Key>,
    /// Those whose end is asked for: it is no news.
    pub(super) stopping: HashSet<Key>,
    rests: Option<Instant>,
    /// Ends its watch.
    pub(super) watching: Option<DropGuard>,
}

impl Entry {
    pub(super) fn new(reach: Reach) -> Self {
        Self {
            reach,
            labels: BTreeMap::new(),
            version: 0,
            closed: None,
            can: None,
            watched: false,
            tried: false,
            instances: HashMap::new(),
            starting: HashSet::new(),
            stopping: HashSet::new(),
            rests: None,
            watching: None,
        }
    }

    /// Takes what its object says. A node that this process runs on need not be ready: it is there.
    pub(super) fn read(&mut self, node: &Node) {
        // It is read in two ways, of which one may be behind.
        let version = node.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(self.version);
        if version < self.version {
            return;
        }
        self.version = version;
        self.labels = node.metadata.labels.clone().unwrap_or_default();
        self.closed = closed(node, matches!(self.reach, Reach::Here(_)));
    }

    /// Whether it takes something new, by its object.
    pub(super) fn is_open(&self) -> bool {
        self.closed.is_none()
    }

    fn count(&self) -> usize {
        self.instances.len() + self.starting.len()
    }

    /// Why it cannot take an instance now.
    fn fault(&self, language: Language, selector: &BTreeMap<String, String>) -> Result<(), String> {
        missing(&self.labels, selector)?;
        let Some(can) = &self.can else { return Err("its agent has not answered yet".to_owned()) };
        can.run(language)?;
        if let Some(closed) = &self.closed {
            return Err(closed.clone());
        }
        if !self.watched {
            return Err("its agent does not answer".to_owned());
        }
        if self.count() >= can.max {
            return Err(format!("it runs {} processes of functions already", self.count()));
        }
        Ok(())
    }
}

fn missing(labels: &BTreeMap<String, String>, selector: &BTreeMap<String, String>) -> Result<(), String> {
    match selector.iter().find(|(key, value)| labels.get(*key) != Some(*value)) {
        None => Ok(()),
        Some((key, value)) => Err(format!("it does not have the label {key}={value} of the function's nodeSelector")),
    }
}

/// Why a node takes nothing that does not tolerate anything.
fn closed(node: &Node, here: bool) -> Option<String> {
    let spec = node.spec.as_ref();
    if spec.and_then(|s| s.unschedulable) == Some(true) {
        return Some("it is cordoned".to_owned());
    }
    let taints = spec.and_then(|s| s.taints.as_ref()).into_iter().flatten();
    // Those of a node that is not ready yet say nothing of the one that this process is on.
    const OF_STATE: [&str; 3] = ["not-ready", "unreachable", "network-unavailable"];
    let of_state =
        |key: &str| here && key.strip_prefix("node.kubernetes.io/").is_some_and(|name| OF_STATE.contains(&name));
    if let Some(taint) = taints.into_iter().find(|t| t.effect != "PreferNoSchedule" && !of_state(&t.key)) {
        return Some(format!("it has the taint {}", taint.key));
    }
    let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
    let ready = conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
    (!ready && !here).then(|| "it is not ready".to_owned())
}

/// Why no node takes an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nowhere(pub(super) String);

/// All nodes by name.
#[derive(Debug, Default)]
pub(super) struct Book {
    pub(super) all: BTreeMap<String, Entry>,
}

impl Book {
    /// The node for an instance, not one of those that were tried; the instance counts from now on.
    pub(super) fn choose(
        &mut self,
        key: Key,
        language: Language,
        selector: &BTreeMap<String, String>,
        tried: &[String],
    ) -> Result<(String, Reach), Nowhere> {
        let now = Instant::now();
        let mut faults = vec![];
        let mut best: Option<(&String, &mut Entry)> = None;
        let rank =
            |e: &Entry| (e.rests.is_some_and(|until| until > now), e.count(), !matches!(e.reach, Reach::Here(_)));
        for (name, entry) in &mut self.all {
            if let Err(why) = entry.fault(language, selector) {
                faults.push(format!("{name}: {why}"));
            } else if tried.contains(name) {
                faults.push(format!("{name}: it was tried"));
            } else if best.as_ref().is_none_or(|(_, b)| rank(entry) < rank(b)) {
                best = Some((name, entry));
            }
        }
        let Some((name, entry)) = best else { return Err(Nowhere(told(&faults))) };
        entry.starting.insert(key);
        Ok((name.clone(), entry.reach.clone()))
    }

    /// A start on this node failed for a reason of the node's: others are asked first for a while.
    pub(super) fn rest(&mut self, node: &str) {
        if let Some(entry) = self.all.get_mut(node) {
            entry.rests = Some(Instant::now() + REST);
        }
    }

    /// Whether there is a node for such code, now or when it is there again; or why not.
    pub(super) fn takes(&self, code: &Code, language: Language) -> Result<(), String> {
        let mut faults = vec![];
        for (name, entry) in &self.all {
            let fault = missing(&entry.labels, &code.node_selector).and_then(|()| match &entry.can {
                Some(can) => can.run(language),
                None => Err("its agent runs no functions".to_owned()),
            });
            match fault {
                Ok(()) => return Ok(()),
                Err(why) => faults.push(format!("{name}: {why}")),
            }
        }
        Err(format!("no node runs it as a process ({}): isolation container runs on any node", told(&faults)))
    }

    /// Nodes that may run such code.
    pub(super) fn places(&self, code: &Code, language: Language) -> Vec<&str> {
        let may = |e: &Entry| {
            missing(&e.labels, &code.node_selector).is_ok() && e.can.as_ref().is_some_and(|c| c.run(language).is_ok())
        };
        self.all.iter().filter(|(_, e)| may(e)).map(|(name, _)| name.as_str()).collect()
    }

    /// Whether every node that a pod with this selector can be on is there to be given an image.
    pub(super) fn reaches_all(&self, selector: &BTreeMap<String, String>) -> bool {
        let mut may = self.all.values().filter(|e| e.is_open() && missing(&e.labels, selector).is_ok()).peekable();
        may.peek().is_some() && may.all(|e| e.watched)
    }

    /// The node that has an instance; the end of the instance is no news from now on.
    pub(super) fn ends(&mut self, key: &Key) -> Option<Reach> {
        let entry = self.all.values_mut().find(|e| e.instances.contains_key(key))?;
        entry.stopping.insert(key.clone());
        Some(entry.reach.clone())
    }

    /// An instance's end was asked for, and it ended or did not.
    pub(super) fn ended(&mut self, key: &Key, gone: bool) {
        for entry in self.all.values_mut() {
            entry.stopping.remove(key);
            if gone {
                entry.instances.remove(key);
            }
        }
    }
}

/// Some reasons of many.
fn told(faults: &[String]) -> String {
    const SHOWN: usize = 4;
    match faults.len() {
        0 => "there is no node".to_owned(),
        n if n > SHOWN => format!("{}; and {} others", faults[..SHOWN].join("; "), n - SHOWN),
        _ => faults.join("; "),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn book(dir: &std::path::Path, nodes: &[(&str, serde_json::Value)]) -> Book {
        let mut book = Book::default();
        for (name, spec) in nodes {
            let config = super::super::host::Config::new(*name, dir.join(name));
            let host = Host::new(config).unwrap();
            // The first is this process's own.
            let reach = match book.all.is_empty() {
                true => Reach::Here(host),
                false => Reach::There(Arc::new(Agent::nowhere(name))),
            };
            let mut entry = Entry::new(reach);
            let node = json!({"metadata": {"name": name, "labels": {"name": name, "kind": "x"}}, "spec": spec,
                "status": {"conditions": [{"type": "Ready", "status": if spec["down"] == true { "False" } else { "True" }}]}});
            entry.read(&serde_json::from_value(node).unwrap());
            entry.can = Some(Can { python: None, node: Some("there is no node".into()), max: 3 });
            entry.watched = true;
            book.all.insert((*name).to_owned(), entry);
        }
        book
    }

    fn choose(book: &mut Book, number: usize, selector: &[(&str, &str)], tried: &[&str]) -> Result<String, String> {
        let selector = selector.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let tried: Vec<String> = tried.iter().map(|t| (*t).to_owned()).collect();
        let key = ("ns".to_owned(), format!("i-{number}"));
        book.choose(key, Language::Python, &selector, &tried).map(|(name, _)| name).map_err(|n| n.0)
    }

    #[test]
    fn the_node_with_the_fewest_is_next_and_the_own_one_first() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = book(dir.path(), &[("b", json!({})), ("a", json!({})), ("c", json!({}))]);
        let all: Vec<String> = (0..9).map(|i| choose(&mut book, i, &[], &[]).unwrap()).collect();
        assert_eq!(all[0], "b", "the own one");
        for node in ["a", "b", "c"] {
            assert_eq!(all.iter().filter(|n| *n == node).count(), 3, "{all:?}");
        }
        assert!(choose(&mut book, 9, &[], &[]).unwrap_err().contains("it runs 3 processes"));
    }

    #[test]
    fn nodes_that_may_not_are_left_out_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let taint = json!({"taints": [{"key": "gpu", "effect": "NoSchedule"}]});
        let nodes = [("a", json!({"unschedulable": true})), ("b", taint), ("c", json!({"down": true}))];
        let mut book = book(dir.path(), &nodes);
        let why = choose(&mut book, 0, &[], &[]).unwrap_err();
        assert!(why.contains("a: it is cordoned") && why.contains("b: it has the taint gpu"), "{why}");
        assert!(why.contains("c: it is not ready"), "{why}");
        let code = Code::default();
        assert!(book.takes(&code, Language::Python).is_ok(), "they may again later");
        assert!(book.takes(&code, Language::Node).unwrap_err().contains("there is no node"));
    }

    #[test]
    fn a_selector_is_honoured_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = book(dir.path(), &[("a", json!({})), ("b", json!({}))]);
        assert_eq!(choose(&mut book, 0, &[("name", "b")], &[]).unwrap(), "b");
        let why = choose(&mut book, 1, &[("name", "z")], &[]).unwrap_err();
        assert!(why.contains("name=z"), "{why}");
        let code = Code { node_selector: [("name".to_owned(), "z".to_owned())].into(), ..Code::default() };
        assert!(book.takes(&code, Language::Python).unwrap_err().contains("name=z"));
        let code = Code { node_selector: [("kind".to_owned(), "x".to_owned())].into(), ..Code::default() };
        assert_eq!(book.places(&code, Language::Python), ["a", "b"]);
    }

    #[test]
    fn who_failed_is_asked_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut book = book(dir.path(), &[("a", json!({})), ("b", json!({}))]);
        book.rest("a");
        assert_eq!(choose(&mut book, 0, &[], &[]).unwrap(), "b");
        assert_eq!(choose(&mut book, 1, &[], &["b"]).unwrap(), "a", "there is no other");
        assert!(choose(&mut book, 2, &[], &["a", "b"]).unwrap_err().contains("it was tried"));
        book.all.get_mut("b").unwrap().watched = false;
        assert!(choose(&mut book, 3, &[], &["a"]).unwrap_err().contains("b: its agent does not answer"));
    }
}
