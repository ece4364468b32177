//! What a controller wrote last, so that it does not decide on a copy from before its own write.
//!
//! A status is a controller's memory (how many pods of a Job have succeeded). The watch of owners and that of their
//! children are two streams: one may be ahead. Deciding on an old status with new children would do a thing twice.

use std::collections::HashMap;

use kube::Resource;
use parking_lot::Mutex;

/// The last versions written, by key.
#[derive(Default)]
pub struct Written {
    versions: Mutex<HashMap<String, (String, u64)>>,
}

fn version<K: Resource>(object: &K) -> Option<(String, u64)> {
    let meta = object.meta();
    Some((meta.uid.clone()?, meta.resource_version.as_ref()?.parse().ok()?))
}

impl Written {
    /// Remembers what the server answered to a write.
    pub fn note<K: Resource>(&self, key: &str, written: &K) {
        if let Some(v) = version(written) {
            self.versions.lock().insert(key.to_owned(), v);
        }
    }

    /// Whether `seen` is from before the last write. The watch will bring a newer one.
    #[must_use]
    pub fn behind<K: Resource>(&self, key: &str, seen: &K) -> bool {
        let Some((uid, at)) = version(seen) else { return false };
        let mut versions = self.versions.lock();
        let behind = versions.get(key).is_some_and(|(u, v)| *u == uid && at < *v);
        if !behind {
            versions.remove(key);
        }
        behind
    }

    /// The object is gone.
    pub fn forget(&self, key: &str) {
        self.versions.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    #[test]
    fn a_copy_from_before_the_write_is_known() {
        let at = |uid: &str, v: &str| {
            let mut m = ConfigMap::default();
            m.metadata.uid = Some(uid.into());
            m.metadata.resource_version = Some(v.into());
            m
        };
        let w = Written::default();
        assert!(!w.behind("k", &at("a", "1")));
        w.note("k", &at("a", "10"));
        assert!(w.behind("k", &at("a", "9")));
        assert!(!w.behind("k", &at("b", "9")), "another object of the same name");
        w.note("k", &at("a", "10"));
        assert!(!w.behind("k", &at("a", "10")));
        assert!(!w.behind("k", &at("a", "9")), "known once is enough");
    }
}
