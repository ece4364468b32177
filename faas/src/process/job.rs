//! What a node is told of an instance and what it tells: everything is resolved before, so a node looks nothing up and needs no
//! rights for functions.

use std::collections::{HashMap, HashSet};
use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::api::FunctionRevision;
use crate::instance::{Line, StartError};
use crate::runtime::{Language, hex};

/// An instance that is to be started.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Job {
    /// Namespace of the function.
    pub(crate) namespace: String,
    /// Its name.
    pub(crate) function: String,
    /// Name of the revision.
    pub(crate) revision: String,
    /// Name of the instance: no other has it.
    pub(crate) name: String,
    /// What the node calls the code; see [`key`].
    pub(crate) code: String,
    pub(crate) language: Language,
    pub(crate) environment: HashMap<String, String>,
    /// Bytes.
    pub(crate) memory: u64,
    /// Thousandths of a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cpu: Option<u64>,
    /// Where packages come from, where the cluster's owner says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pip_index: Option<String>,
    /// When it was asked for.
    pub(crate) asked_at: Timestamp,
}

impl fmt::Debug for Job {
    /// Without the environment: Secrets are in it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Job({}/{} of {})", self.namespace, self.name, self.revision)
    }
}

impl Job {
    /// Whether its names can be parts of paths. They come from objects, whose names are checked; a node does not rely on it.
    pub(crate) fn is_plain(&self) -> bool {
        [&self.namespace, &self.function, &self.revision, &self.name].into_iter().all(|name| plain(name))
            && is_key(&self.code)
    }
}

/// Whether a name is one that objects may have.
pub(crate) fn plain(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    (1..=253).contains(&name.len()) && name.bytes().all(letter) && !name.starts_with(['.', '-'])
}

/// Whether a text is what [`key`] gives.
pub(crate) fn is_key(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// What the code of a revision is called on nodes. The digest names contents, whoever's they are; the revision's own name keeps
/// apart what has none.
pub(crate) fn key(revision: &FunctionRevision) -> String {
    let namespace = revision.metadata.namespace.as_deref().unwrap_or("default");
    let name = revision.metadata.name.as_deref().unwrap_or_default();
    hex(&Sha256::digest(format!("{namespace}/{name}/{}", revision.spec.digest)))
}

/// An instance that can answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) namespace: String,
    pub(crate) function: String,
    pub(crate) revision: String,
    pub(crate) name: String,
    pub(crate) asked_at: Timestamp,
    pub(crate) ready_at: Timestamp,
}

/// What became of a start.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "outcome")]
pub(crate) enum Said {
    /// It can answer.
    #[serde(rename_all = "camelCase")]
    Ready {
        record: Record,
        /// Milliseconds from the order until it ran.
        started: f64,
        /// And until its code was loaded.
        loaded: f64,
    },
    /// What was to be prepared is.
    Prepared,
    /// The node does not have the code.
    Missing,
    /// As of [`StartError::Code`].
    Code { message: String },
    /// As of [`StartError::NoRoom`].
    NoRoom { message: String },
    /// As of [`StartError::Other`].
    Failed { message: String },
}

impl From<StartError> for Said {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Code(message) => Self::Code { message },
            StartError::NoRoom(message) => Self::NoRoom { message },
            StartError::Other(error) => Self::Failed { message: format!("{error:#}") },
        }
    }
}

/// What a node can run, or why not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Can {
    pub(crate) python: Option<String>,
    pub(crate) node: Option<String>,
    /// Instances at a time.
    pub(crate) max: usize,
}

impl Can {
    /// Whether it runs this, or why not.
    pub(crate) fn run(&self, language: Language) -> Result<(), String> {
        let fault = match language {
            Language::Python => &self.python,
            Language::Node => &self.node,
            Language::Http => return Err("runtime http runs in containers".to_owned()),
        };
        fault.clone().map_or(Ok(()), Err)
    }
}

/// What a node tells to who watches it: first its state, then what happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Told {
    /// How it is now.
    State { can: Can, instances: Vec<Record> },
    /// An instance can answer.
    Began(Record),
    /// One that could is gone.
    Ended { namespace: String, name: String, reason: String },
    /// The node needs an image that the gateway's node has.
    Wants { image: String },
    /// Nothing happens, and the node is there.
    Beat,
}

/// What a node keeps for functions: what it has, or what of that no revision needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Codes, by what [`key`] calls them.
    #[serde(default)]
    pub(crate) codes: HashSet<String>,
    /// Images that are in no registry, by the digests in their names.
    #[serde(default)]
    pub(crate) images: HashSet<String>,
}

impl Kept {
    /// What of this is not in `needed`.
    pub(crate) fn without(&self, needed: &Self) -> Self {
        let less = |has: &HashSet<String>, needs: &HashSet<String>| has.difference(needs).cloned().collect();
        Self { codes: less(&self.codes, &needed.codes), images: less(&self.images, &needed.images) }
    }
}

/// A [`Line`] on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Printed {
    namespace: String,
    function: String,
    instance: String,
    text: String,
}

impl From<Line> for Printed {
    fn from(line: Line) -> Self {
        let [namespace, function, instance] = [&line.namespace, &line.function, &line.instance].map(|s| s.to_string());
        Self { namespace, function, instance, text: line.text }
    }
}

impl From<Printed> for Line {
    fn from(line: Printed) -> Self {
        let Printed { namespace, function, instance, text } = line;
        Self { namespace: namespace.into(), function: function.into(), instance: instance.into(), text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_directory() {
        for good in ["a", "add-00001-x4d2f", "kube-system", "a.b"] {
            assert!(plain(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "../a", "A", "a b", "-rf", "a\0b", &"x".repeat(254)] {
            assert!(!plain(bad), "{bad}");
        }
        let key = key(&FunctionRevision::default());
        assert!(is_key(&key) && !is_key(&key[1..]) && !is_key(&key.replace(|c: char| c.is_ascii_digit(), "/")));
    }

    #[test]
    fn secrets_are_not_printed() {
        let job = Job {
            namespace: "n".into(),
            function: "f".into(),
            revision: "f-1".into(),
            name: "f-1-x".into(),
            code: String::new(),
            language: Language::Python,
            environment: [("PASSWORD".to_owned(), "geheim".to_owned())].into(),
            memory: 1,
            cpu: None,
            pip_index: None,
            asked_at: Timestamp::UNIX_EPOCH,
        };
        assert!(!format!("{job:?}").contains("geheim"));
    }
}
