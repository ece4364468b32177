//! Which resources there are: one description for a built-in and a custom one.
//!
//! The built-in ones come from a table of recorded facts; a CustomResourceDefinition makes the same [`Resource`] at run
//! time, so no caller needs to ask which of the two it holds.

mod builtin;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine as _;
use sha2::{Digest as _, Sha256};

use crate::schema::{self, Handle, Struct};

/// A set of API verbs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verbs(u8);

const VERB_NAMES: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

impl Verbs {
    /// `create`
    pub const CREATE: Self = Self(1);
    /// `delete`
    pub const DELETE: Self = Self(1 << 1);
    /// `deletecollection`
    pub const DELETE_COLLECTION: Self = Self(1 << 2);
    /// `get`
    pub const GET: Self = Self(1 << 3);
    /// `list`
    pub const LIST: Self = Self(1 << 4);
    /// `patch`
    pub const PATCH: Self = Self(1 << 5);
    /// `update`
    pub const UPDATE: Self = Self(1 << 6);
    /// `watch`
    pub const WATCH: Self = Self(1 << 7);
    /// All eight.
    pub const ALL: Self = Self(u8::MAX);

    /// The union of two sets.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every verb of `other` is in this set.
    #[must_use]
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether the verb with this name is in the set.
    #[must_use]
    pub fn contains(self, name: &str) -> bool {
        self.names().any(|n| n == name)
    }

    /// Names in alphabetical order, as discovery prints them.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        VERB_NAMES.into_iter().enumerate().filter(move |(i, _)| self.0 & (1 << i) != 0).map(|(_, n)| n)
    }
}

/// A resource in one version of its group.
#[derive(Clone, Debug)]
pub struct Resource {
    /// API group; "" is the core group.
    pub group: Cow<'static, str>,
    /// Version.
    pub version: Cow<'static, str>,
    /// Name in paths.
    pub plural: Cow<'static, str>,
    /// Name of one object.
    pub singular: Cow<'static, str>,
    /// Kind of the objects.
    pub kind: Cow<'static, str>,
    /// Kind of a list of them.
    pub list_kind: Cow<'static, str>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// What can be done.
    pub verbs: Verbs,
    /// Short forms for people.
    pub short_names: Vec<Cow<'static, str>>,
    /// Groups of resources for people, such as `all`.
    pub categories: Vec<Cow<'static, str>>,
    /// Subresources by name.
    pub subresources: Vec<Subresource>,
    /// Group and version that objects are stored as; `None` for resources that are never stored (reviews).
    pub storage: Option<(Cow<'static, str>, Cow<'static, str>)>,
    /// The structure of an object.
    pub model: Handle<Struct>,
}

/// A subresource, for example `status`.
#[derive(Clone, Debug)]
pub struct Subresource {
    /// Name in paths.
    pub name: Cow<'static, str>,
    /// Group and version of the kind where they are not the parent's.
    pub elsewhere: Option<(Cow<'static, str>, Cow<'static, str>)>,
    /// Kind of the body (or of the query parameters).
    pub kind: Cow<'static, str>,
    /// What can be done.
    pub verbs: Verbs,
    /// The structure of the body.
    pub model: Handle<Struct>,
}

impl Resource {
    /// `group/version`, or `version` alone for the core group.
    #[must_use]
    pub fn group_version(&self) -> String {
        group_version(&self.group, &self.version)
    }

    /// The subresource of this name.
    #[must_use]
    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// What discovery calls `storageVersionHash`: clients compare it to see whether objects must be migrated.
    #[must_use]
    pub fn storage_version_hash(&self) -> Option<String> {
        let (group, version) = self.storage.as_ref()?;
        let digest = Sha256::digest(format!("{group}/{version}/{}", self.kind));
        Some(base64::engine::general_purpose::STANDARD.encode(&digest[..8]))
    }
}

/// `group/version`, or `version` alone for the core group.
#[must_use]
pub fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// Every built-in resource. Groups and versions are in the order of discovery (preferred version first), the resources of
/// one group-version are sorted by plural.
#[must_use]
pub fn all() -> &'static [Resource] {
    &BUILT_IN.all
}

/// The built-in resource with this plural.
#[must_use]
pub fn by_plural(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    BUILT_IN.by_plural.get(&(group, version, plural)).map(|i| &BUILT_IN.all[*i])
}

/// The built-in resource whose objects have this kind.
#[must_use]
pub fn by_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    BUILT_IN.by_kind.get(&(group, version, kind)).map(|i| &BUILT_IN.all[*i])
}

/// Built-in group-versions in the order of discovery.
pub fn group_versions() -> impl Iterator<Item = (&'static str, &'static str)> {
    builtin::GROUP_VERSIONS.iter().map(|(g, v, _)| (*g, *v))
}

type Key = (&'static str, &'static str, &'static str);

struct BuiltIn {
    all: Vec<Resource>,
    by_plural: HashMap<Key, usize>,
    by_kind: HashMap<Key, usize>,
}

static BUILT_IN: LazyLock<BuiltIn> = LazyLock::new(|| {
    let mut built = BuiltIn { all: Vec::new(), by_plural: HashMap::new(), by_kind: HashMap::new() };
    for (group, version, rows) in builtin::GROUP_VERSIONS {
        for row in *rows {
            // A row without a structure is a fault of the table; a test finds it, and a server goes on without the row.
            let Some(resource) = resource(group, version, row) else { continue };
            built.by_plural.insert((group, version, row.plural), built.all.len());
            built.by_kind.insert((group, version, row.kind), built.all.len());
            built.all.push(resource);
        }
    }
    built
});

fn resource(group: &'static str, version: &'static str, row: &builtin::Row) -> Option<Resource> {
    let subresources = row.subresources.iter().map(|sub| {
        let (g, v) = sub.elsewhere.unwrap_or((group, version));
        Some(Subresource {
            name: sub.name.into(),
            elsewhere: sub.elsewhere.map(|(g, v)| (g.into(), v.into())),
            kind: sub.kind.into(),
            verbs: sub.verbs,
            model: Handle::Static(schema::kind(g, v, sub.kind)?),
        })
    });
    Some(Resource {
        group: group.into(),
        version: version.into(),
        plural: row.plural.into(),
        singular: row.kind.to_ascii_lowercase().into(),
        kind: row.kind.into(),
        list_kind: format!("{}List", row.kind).into(),
        namespaced: row.namespaced,
        verbs: row.verbs,
        short_names: row.short_names.split_whitespace().map(Cow::Borrowed).collect(),
        categories: row.categories.split_whitespace().map(Cow::Borrowed).collect(),
        subresources: subresources.collect::<Option<_>>()?,
        storage: storage(group, version, row),
        model: Handle::Static(schema::kind(group, version, row.kind)?),
    })
}

/// Two kinds are served in several versions or groups and stored in one of them.
fn storage(
    group: &'static str,
    version: &'static str,
    row: &builtin::Row,
) -> Option<(Cow<'static, str>, Cow<'static, str>)> {
    if !row.verbs.has(Verbs::DELETE) {
        return None;
    }
    let (group, version) = match (group, row.kind) {
        ("autoscaling", "HorizontalPodAutoscaler") => ("autoscaling", "v2"),
        ("events.k8s.io", "Event") => ("", "v1"),
        _ => (group, version),
    };
    Some((group.into(), version.into()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_its_structures() {
        let rows: usize = builtin::GROUP_VERSIONS.iter().map(|(_, _, rows)| rows.len()).sum();
        assert_eq!(all().len(), rows);
        for r in all() {
            assert!(by_plural(&r.group, &r.version, &r.plural).is_some_and(|x| x.kind == r.kind));
            assert!(by_kind(&r.group, &r.version, &r.kind).is_some_and(|x| x.plural == r.plural));
            let list = schema::kind(&r.group, &r.version, &r.list_kind);
            assert_eq!(list.is_some(), r.verbs.has(Verbs::LIST), "{}", r.list_kind);
            assert!(r.subresources.is_sorted_by(|a, b| a.name < b.name));
        }
    }

    /// Hashes that upstream publishes.
    #[test]
    fn storage_version_hashes() {
        for (group, version, plural, hash) in [
            ("", "v1", "pods", Some("xPOwRZ+Yhw8=")),
            ("autoscaling", "v1", "horizontalpodautoscalers", Some("qwQve8ut294=")),
            ("events.k8s.io", "v1", "events", Some("r2yiGXH7wu8=")),
            ("authentication.k8s.io", "v1", "tokenreviews", None),
        ] {
            let resource = by_plural(group, version, plural).unwrap();
            assert_eq!(resource.storage_version_hash().as_deref(), hash, "{plural}");
        }
    }

    #[test]
    fn verbs_print_sorted() {
        let verbs = Verbs::WATCH.and(Verbs::CREATE);
        assert_eq!(verbs.names().collect::<Vec<_>>(), ["create", "watch"]);
        assert!(verbs.contains("watch") && !verbs.contains("get") && !verbs.has(Verbs::ALL));
    }
}
