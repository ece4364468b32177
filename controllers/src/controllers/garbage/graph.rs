//! Who owns whom, as far as it is known. No I/O.
//!
//! Only objects with owners, and those that wait for their dependents, are kept in full; of all others just the uid,
//! to know that a new dependent's owner is there without asking. So memory follows the number of dependents.

use std::collections::{BTreeSet, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// Finalizer of an owner that goes after its dependents.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an owner whose dependents stay.
pub const ORPHAN: &str = "orphan";

/// Where an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Key of its kind.
    pub kind: String,
    /// Namespace; empty for objects of the whole cluster.
    pub namespace: String,
    /// Name.
    pub name: String,
}

#[derive(Clone, Debug)]
struct Entry {
    place: Place,
    owners: Vec<OwnerReference>,
    waits: bool,
}

/// The graph.
#[derive(Debug, Default)]
pub struct Graph {
    entries: HashMap<String, Entry>,
    dependents: HashMap<String, BTreeSet<String>>,
    alive: HashMap<u128, u16>,
    kinds: Vec<String>,
}

fn short(uid: &str) -> u128 {
    uuid::Uuid::parse_str(uid).map_or_else(
        |_| uid.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u128::from(b)).wrapping_mul(0x0100_0000_01b3)),
        |u| u.as_u128(),
    )
}

/// Whether a deleted object waits for what the collector has to do first.
#[must_use]
pub fn waits(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some() && meta.finalizers.iter().flatten().any(|f| f == FOREGROUND || f == ORPHAN)
}

impl Graph {
    fn kind(&mut self, name: &str) -> u16 {
        let at = self.kinds.iter().position(|k| k == name).unwrap_or_else(|| {
            self.kinds.push(name.to_owned());
            self.kinds.len() - 1
        });
        u16::try_from(at).unwrap_or(u16::MAX)
    }

    /// Whether an object is there.
    #[must_use]
    pub fn knows(&self, uid: &str) -> bool {
        self.alive.contains_key(&short(uid))
    }

    /// An object as it is now; answers the uids to look at.
    pub fn set(&mut self, kind: &str, meta: &ObjectMeta) -> Vec<String> {
        let Some(uid) = meta.uid.clone() else { return vec![] };
        let index = self.kind(kind);
        self.alive.insert(short(&uid), index);
        let owners = meta.owner_references.clone().unwrap_or_default();
        let waits = waits(meta);
        let before = self.entries.remove(&uid);
        for o in before.iter().flat_map(|e| &e.owners) {
            if let Some(d) = self.dependents.get_mut(&o.uid) {
                d.remove(&uid);
                if d.is_empty() {
                    self.dependents.remove(&o.uid);
                }
            }
        }
        let mut look = Vec::new();
        if let Some(b) = &before {
            // An owner that waits may have lost its last dependent.
            let left = b.owners.iter().filter(|o| !owners.contains(o)).map(|o| o.uid.clone());
            look.extend(left.filter(|u| self.waiting(u)));
        }
        if owners.is_empty() && !waits {
            return look;
        }
        for o in &owners {
            self.dependents.entry(o.uid.clone()).or_default().insert(uid.clone());
        }
        let doubtful = owners.iter().any(|o| !self.alive.contains_key(&short(&o.uid)) || self.waiting(&o.uid));
        let place = Place {
            kind: kind.to_owned(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        };
        self.entries.insert(uid.clone(), Entry { place, owners, waits });
        if waits || doubtful {
            look.push(uid);
        }
        look
    }

    /// An object is gone; answers the uids to look at: its dependents, and owners that waited for it.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        self.alive.remove(&short(uid));
        let mut look: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        if let Some(entry) = self.entries.remove(uid) {
            for o in entry.owners {
                if let Some(d) = self.dependents.get_mut(&o.uid) {
                    d.remove(uid);
                    if d.is_empty() {
                        self.dependents.remove(&o.uid);
                    }
                }
                if self.waiting(&o.uid) {
                    look.push(o.uid);
                }
            }
        }
        look
    }

    /// Objects of a kind that a complete list did not contain are gone.
    pub fn retain(&mut self, kind: &str, listed: &BTreeSet<String>) -> Vec<String> {
        let index = self.kind(kind);
        let kept: BTreeSet<u128> = listed.iter().map(|u| short(u)).collect();
        let gone: Vec<u128> =
            self.alive.iter().filter(|(u, k)| **k == index && !kept.contains(u)).map(|(u, _)| *u).collect();
        gone.iter().for_each(|u| {
            self.alive.remove(u);
        });
        let known = self.entries.iter().filter(|(u, e)| e.place.kind == kind && !listed.contains(*u));
        let known: Vec<String> = known.map(|(u, _)| u.clone()).collect();
        let mut look: Vec<String> = known.iter().flat_map(|u| self.remove(u)).collect();
        let gone: BTreeSet<u128> = gone.into_iter().collect();
        let orphans = self.dependents.iter().filter(|(owner, _)| gone.contains(&short(owner)));
        look.extend(orphans.flat_map(|(_, d)| d.iter().cloned()));
        look
    }

    /// Where an object is, if it is one to look at.
    #[must_use]
    pub fn place(&self, uid: &str) -> Option<Place> {
        self.entries.get(uid).map(|e| e.place.clone())
    }

    /// Dependents of an owner, and whether each blocks its deletion.
    #[must_use]
    pub fn dependents(&self, uid: &str) -> Vec<(String, bool)> {
        let blocks = |d: &String| {
            let entry = self.entries.get(d);
            entry.is_some_and(|e| e.owners.iter().any(|o| o.uid == uid && o.block_owner_deletion == Some(true)))
        };
        self.dependents.get(uid).into_iter().flatten().map(|d| (d.clone(), blocks(d))).collect()
    }

    /// Whether an object's dependents include one that waits for its own: then their waiting may go round in a circle.
    #[must_use]
    pub fn closes_circle(&self, uid: &str) -> bool {
        self.dependents.get(uid).is_some_and(|all| all.iter().any(|d| self.waiting(d)))
    }

    fn waiting(&self, uid: &str) -> bool {
        self.entries.get(uid).is_some_and(|e| e.waits)
    }

    /// Everything that is kept in full.
    #[must_use]
    pub fn uids(&self) -> Vec<String> {
        self.entries.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn meta(uid: &str, owners: &[&str], deleting: bool) -> ObjectMeta {
        let owners: Vec<_> = owners
            .iter()
            .map(|o| json!({"apiVersion": "v1", "kind": "K", "name": o, "uid": o, "blockOwnerDeletion": true}))
            .collect();
        let mut m = json!({"name": uid, "namespace": "x", "uid": uid, "ownerReferences": owners});
        if deleting {
            m["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            m["finalizers"] = json!([FOREGROUND]);
        }
        serde_json::from_value(m).unwrap()
    }

    #[test]
    fn dependents_are_looked_at_when_an_owner_goes() {
        let mut g = Graph::default();
        assert!(g.set("K", &meta("owner", &[], false)).is_empty());
        assert!(g.set("K", &meta("child", &["owner"], false)).is_empty(), "its owner is there");
        assert_eq!(g.set("K", &meta("lost", &["nobody"], false)), ["lost"]);
        assert_eq!(g.remove("owner"), ["child"]);
        assert_eq!(g.uids().len(), 2);
    }

    #[test]
    fn an_owner_that_waits_is_looked_at_when_a_dependent_goes() {
        let mut g = Graph::default();
        g.set("K", &meta("owner", &[], false));
        g.set("K", &meta("child", &["owner"], false));
        assert_eq!(g.set("K", &meta("owner", &[], true)), ["owner"]);
        assert_eq!(g.dependents("owner"), [("child".to_owned(), true)]);
        assert_eq!(g.remove("child"), ["owner"]);
        assert!(g.dependents("owner").is_empty());
    }

    #[test]
    fn a_relist_finds_what_vanished() {
        let mut g = Graph::default();
        g.set("K", &meta("owner", &[], false));
        g.set("L", &meta("child", &["owner"], false));
        assert_eq!(g.retain("K", &BTreeSet::new()), ["child"]);
        assert!(g.retain("L", &BTreeSet::from(["child".to_owned()])).is_empty());
    }
}
