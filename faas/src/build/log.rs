//! What a build says: its end is kept, in memory and in a ConfigMap.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource as _};
use parking_lot::Mutex;

use crate::api::{FUNCTION, FunctionRevision, REVISION};

/// Most bytes that are kept.
const MAX: usize = 256 << 10;

/// The log of one build.
#[derive(Debug, Default)]
pub struct Log {
    /// What is kept, and how much there was.
    text: Mutex<(String, u64)>,
}

impl Log {
    /// Adds what was said.
    pub fn say(&self, text: &str) {
        let mut kept = self.text.lock();
        kept.0.push_str(text);
        kept.1 += text.len() as u64;
        if kept.0.len() > MAX {
            let mut from = kept.0.len() - MAX / 2;
            while !kept.0.is_char_boundary(from) {
                from += 1;
            }
            kept.0.replace_range(..from, "[...]\n");
        }
    }

    /// Adds a line.
    pub fn line(&self, text: &str) {
        self.say(&format!("{text}\n"));
    }

    /// How much was said.
    pub(super) fn size(&self) -> u64 {
        self.text.lock().1
    }

    /// The last lines.
    pub(super) fn tail(&self, lines: usize) -> String {
        let kept = self.text.lock();
        let all: Vec<&str> = kept.0.lines().filter(|l| !l.trim().is_empty()).collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Writes what is kept to the ConfigMap `REVISION-build` under the key `log`.
    pub(super) async fn write(&self, client: &Client, revision: &FunctionRevision) -> kube::Result<()> {
        let name = format!("{}-build", revision.metadata.name.as_deref().unwrap_or_default());
        let namespace = revision.metadata.namespace.as_deref().unwrap_or("default");
        let map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(BTreeMap::from([
                    (FUNCTION.to_owned(), revision.spec.function.clone()),
                    (REVISION.to_owned(), revision.metadata.name.clone().unwrap_or_default()),
                ])),
                owner_references: revision.controller_owner_ref(&()).map(|o| vec![o]),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([("log".to_owned(), self.text.lock().0.clone())])),
            ..ConfigMap::default()
        };
        let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
        maps.patch(&name, &PatchParams::apply("skiff-build").force(), &Patch::Apply(&map)).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept() {
        let log = Log::default();
        for number in 0..100_000 {
            log.line(&format!("line ä {number}"));
        }
        assert!(log.text.lock().0.len() <= MAX && log.size() > MAX as u64);
        assert_eq!(log.tail(2), "line ä 99998\nline ä 99999");
    }
}
