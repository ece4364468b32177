//! The entries of `managedFields`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::Writer;
use super::set::Set;

/// Entries of updates kept apart; older ones are folded together.
const MAX_UPDATES: usize = 10;
/// Manager of the folded ones.
const ANCIENT: &str = "ancient-changes";

/// Kind of write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// What makes an entry the same one in the next write.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    operation: Operation,
    manager: String,
    /// Of updates; an applier is the same in every version.
    api_version: String,
    subresource: String,
}

impl Id {
    pub(super) fn new(writer: &Writer<'_>, operation: Operation) -> Self {
        let api_version = if operation == Operation::Update { writer.api_version } else { "" };
        Self {
            operation,
            manager: writer.manager.to_owned(),
            api_version: api_version.to_owned(),
            subresource: writer.subresource.to_owned(),
        }
    }

    /// As in conflicts.
    pub(super) fn describe(&self, api_version: &str) -> String {
        let mut out = crate::invalid::quote_str(&self.manager);
        if !self.subresource.is_empty() {
            out = format!("{out} with subresource {}", crate::invalid::quote_str(&self.subresource));
        }
        match self.operation {
            Operation::Update => format!("{out} using {api_version}"),
            Operation::Apply => out,
        }
    }
}

/// What an owner owns.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) set: Set,
    pub(super) api_version: String,
    pub(super) time: Option<String>,
}

/// All owners.
#[derive(Clone, Debug, Default)]
pub(super) struct Managed(pub(super) BTreeMap<Id, Entry>);

impl Managed {
    /// Reads `managedFields`. One entry that cannot be read spoils all, as upstream has it.
    pub(super) fn decode(fields: Option<&Value>) -> Self {
        let read = || -> Option<BTreeMap<Id, Entry>> {
            let mut out = BTreeMap::new();
            for entry in fields?.as_array()? {
                let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default();
                let operation = match text("operation") {
                    "Apply" => Operation::Apply,
                    "Update" => Operation::Update,
                    _ => return None,
                };
                if text("fieldsType") != "FieldsV1" || text("apiVersion").is_empty() {
                    return None;
                }
                let set = Set::decode(entry.get("fieldsV1")?)?;
                let time = entry.get("time").and_then(Value::as_str).map(str::to_owned);
                let writer = Writer {
                    manager: text("manager"),
                    api_version: text("apiVersion"),
                    subresource: text("subresource"),
                    now: "",
                };
                out.insert(
                    Id::new(&writer, operation),
                    Entry { set, api_version: text("apiVersion").to_owned(), time },
                );
            }
            Some(out)
        };
        Self(read().unwrap_or_default())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn entry(&mut self, id: Id, api_version: &str) -> &mut Entry {
        let new = || Entry { set: Set::default(), api_version: api_version.to_owned(), time: None };
        self.0.entry(id).or_insert_with(new)
    }

    pub(super) fn retain_known(&mut self, known: &dyn Fn(&str) -> bool) {
        self.0.retain(|_, entry| known(&entry.api_version));
    }

    /// Drops what is never owned, and owners of nothing.
    pub(super) fn tidy(&mut self, untracked: &Set) {
        self.0.retain(|_, entry| {
            entry.set.subtract(untracked);
            !entry.set.is_empty()
        });
    }

    /// Folds the oldest updates of each version together while there are too many.
    pub(super) fn cap(&mut self) {
        let mut updates: Vec<(Option<String>, Id)> = self
            .0
            .iter()
            .filter(|(id, _)| id.operation == Operation::Update)
            .map(|(id, entry)| (entry.time.clone(), id.clone()))
            .collect();
        updates.sort_by(|(t, a), (u, b)| (t, &a.manager).cmp(&(u, &b.manager)));
        let mut left = updates.len();
        let mut first: BTreeMap<String, Id> = BTreeMap::new();
        for (time, id) in updates {
            if left <= MAX_UPDATES {
                return;
            }
            let version = id.api_version.clone();
            let Some(oldest) = first.get(&version) else {
                first.insert(version, id);
                continue;
            };
            let bucket = Id {
                operation: Operation::Update,
                manager: ANCIENT.to_owned(),
                api_version: version.clone(),
                subresource: String::new(),
            };
            if !self.0.contains_key(&bucket)
                && let Some(entry) = self.0.remove(oldest)
            {
                self.0.insert(bucket.clone(), entry);
            }
            if bucket == id {
                continue;
            }
            if let Some(folded) = self.0.remove(&id) {
                let entry = self.entry(bucket, &version);
                entry.set = entry.set.union(&folded.set);
                entry.time = time;
                left -= 1;
            }
        }
    }

    /// The list for the object; `None` when nobody owns anything. Applies come first, then by time and name.
    pub(super) fn encode(&self) -> Option<Value> {
        let mut entries: Vec<(&Id, &Entry)> = self.0.iter().collect();
        entries.sort_by(|(a, x), (b, y)| {
            (a.operation, &x.time, &a.manager, &x.api_version, &a.subresource).cmp(&(
                b.operation,
                &y.time,
                &b.manager,
                &y.api_version,
                &b.subresource,
            ))
        });
        let list: Vec<Value> = entries.into_iter().map(|(id, entry)| show(id, entry)).collect();
        (!list.is_empty()).then_some(Value::Array(list))
    }

    /// Whether two lists differ in nothing but times.
    pub(super) fn same_owners(a: Option<&Value>, b: Option<&Value>) -> bool {
        let owners = |fields: Option<&Value>| {
            let list = fields.and_then(Value::as_array).cloned().unwrap_or_default();
            let mut list: Vec<String> = list
                .into_iter()
                .map(|mut entry| {
                    if let Some(members) = entry.as_object_mut() {
                        members.remove("time");
                    }
                    entry.to_string()
                })
                .collect();
            list.sort_unstable();
            list
        };
        owners(a) == owners(b)
    }
}

fn show(id: &Id, entry: &Entry) -> Value {
    let mut out = Map::new();
    let operation = match id.operation {
        Operation::Apply => "Apply",
        Operation::Update => "Update",
    };
    let time = entry.time.as_deref().unwrap_or_default();
    for (key, value) in [
        ("manager", id.manager.as_str()),
        ("operation", operation),
        ("apiVersion", &entry.api_version),
        ("time", time),
        ("fieldsType", "FieldsV1"),
        ("subresource", &id.subresource),
    ] {
        if !value.is_empty() {
            out.insert(key.to_owned(), Value::from(value));
        }
    }
    out.insert("fieldsV1".to_owned(), entry.set.encode());
    Value::Object(out)
}
