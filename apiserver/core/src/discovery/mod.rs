//! The discovery documents: the old ones (`/api`, `/apis`, a group, a group-version) and the aggregated form.
//!
//! A [`Catalog`] is built whenever the set of resources changes; it is plain data, so the server can keep one and swap it.
//! Groups of definitions come after the built-in groups, in order of their names; their versions go from the most stable
//! down.

mod document;

use std::borrow::Cow;
use std::cmp::Ordering;

use sha2::{Digest as _, Sha256};

use crate::resources::{self, Resource, Verbs};
use crate::schema::Handle;
pub use document::*;

/// A group-version to describe.
#[derive(Clone, Debug, Default)]
pub struct Version {
    /// API group; "" is the core group.
    pub group: String,
    /// Version.
    pub version: String,
    /// Whether the description is old, because the server that serves it does not answer.
    pub stale: bool,
    /// Higher comes first; 0 unless an APIService says otherwise.
    pub group_priority: i32,
    /// Higher comes first within its group.
    pub version_priority: i32,
    /// What it offers, sorted by name.
    pub resources: Vec<Item>,
}

/// A resource as discovery describes it.
#[derive(Clone, Debug)]
pub struct Item {
    /// Plural.
    pub name: String,
    /// Singular.
    pub singular: String,
    /// Kind of an object; group and version only where they are not to be left empty.
    pub kind: GroupVersionKind,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// What can be done.
    pub verbs: Vec<Cow<'static, str>>,
    /// Short forms.
    pub short_names: Vec<String>,
    /// Categories.
    pub categories: Vec<String>,
    /// Hash of the version that objects are stored as.
    pub storage_version_hash: Option<String>,
    /// Subresources, sorted by name.
    pub subresources: Vec<SubItem>,
}

/// A subresource as discovery describes it.
#[derive(Clone, Debug)]
pub struct SubItem {
    /// Name, without that of the resource.
    pub name: String,
    /// Kind of the body.
    pub kind: GroupVersionKind,
    /// What can be done.
    pub verbs: Vec<Cow<'static, str>>,
}

impl From<&Resource> for Item {
    fn from(r: &Resource) -> Self {
        // Definitions are described by other code upstream: it names the group of each kind, and its verbs are not sorted.
        let custom = matches!(r.model, Handle::Shared(_));
        let kind = |elsewhere: &Option<(Cow<'static, str>, Cow<'static, str>)>, kind: &str| match elsewhere {
            Some((group, version)) => GroupVersionKind::new(group, version, kind),
            None if custom => GroupVersionKind::new(&r.group, &r.version, kind),
            None => GroupVersionKind::new("", "", kind),
        };
        Self {
            name: r.plural.to_string(),
            singular: r.singular.to_string(),
            kind: kind(&None, &r.kind),
            namespaced: r.namespaced,
            verbs: verbs(r.verbs, custom),
            short_names: r.short_names.iter().map(Cow::to_string).collect(),
            categories: r.categories.iter().map(Cow::to_string).collect(),
            storage_version_hash: r.storage_version_hash(),
            subresources: r
                .subresources
                .iter()
                .map(|s| SubItem {
                    name: s.name.to_string(),
                    kind: kind(&s.elsewhere, &s.kind),
                    verbs: verbs(s.verbs, false),
                })
                .collect(),
        }
    }
}

fn verbs(verbs: Verbs, custom: bool) -> Vec<Cow<'static, str>> {
    let mut names: Vec<&'static str> = verbs.names().collect();
    if custom {
        names.sort_by_key(|n| match *n {
            "create" => 5,
            "update" => 6,
            "watch" => 7,
            _ => 0,
        });
    }
    names.into_iter().map(Cow::Borrowed).collect()
}

/// Everything there is to discover.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    versions: Vec<Version>,
}

impl Catalog {
    /// The built-in resources and `more`: custom resources in any order (served versions only), several of which may
    /// share a group-version.
    #[must_use]
    pub fn new<'a>(more: impl IntoIterator<Item = &'a Resource>) -> Self {
        let mut custom: Vec<Version> = Vec::new();
        for resource in more {
            push(&mut custom, resource);
        }
        Self::with(custom)
    }

    /// The built-in resources and whole group-versions, for example of aggregated servers. A group-version that is
    /// built in already stays as it is.
    #[must_use]
    pub fn with(more: Vec<Version>) -> Self {
        let mut versions: Vec<Version> = Vec::new();
        for resource in resources::all() {
            push(&mut versions, resource);
        }
        Self { versions }.beside(more)
    }

    /// With further group-versions behind what there is; those that are there already stay as they are.
    #[must_use]
    pub fn beside(self, more: impl IntoIterator<Item = Version>) -> Self {
        let mut versions = self.versions;
        let mut more: Vec<Version> = more.into_iter().collect();
        more.sort_by(|a, b| {
            let priority = b.group_priority.cmp(&a.group_priority);
            let version = b.version_priority.cmp(&a.version_priority);
            priority
                .then_with(|| a.group.cmp(&b.group))
                .then(version)
                .then_with(|| compare_versions(&a.version, &b.version))
        });
        for version in &mut more {
            version.resources.sort_by(|a, b| a.name.cmp(&b.name));
        }
        more.retain(|m| !versions.iter().any(|v| v.group == m.group && v.version == m.version));
        // A version of a group that is there already joins it.
        for version in more {
            let behind = versions.iter().rposition(|v| v.group == version.group);
            versions.insert(behind.map_or(versions.len(), |i| i + 1), version);
        }
        Self { versions }
    }

    /// Groups with their versions, the core group first.
    fn groups(&self) -> impl Iterator<Item = &[Version]> {
        self.versions.chunk_by(|a, b| a.group == b.group)
    }

    fn find(&self, group: &str, version: &str) -> Option<&Version> {
        self.versions.iter().find(|v| v.group == group && v.version == version)
    }

    /// `/api`. `address` is what clients reach the server by.
    #[must_use]
    pub fn api_versions(&self, address: &str) -> ApiVersions {
        let address = ServerAddress { client_cidr: "0.0.0.0/0", server_address: address.to_owned() };
        ApiVersions { kind: "APIVersions", versions: vec!["v1"], server_address_by_client_cidrs: vec![address] }
    }

    /// `/apis`.
    #[must_use]
    pub fn group_list(&self) -> ApiGroupList {
        let groups = self.groups().filter(|versions| !versions[0].group.is_empty());
        ApiGroupList { kind: "APIGroupList", api_version: "v1", groups: groups.map(|v| group(v, false)).collect() }
    }

    /// `/apis/{group}`.
    #[must_use]
    pub fn group(&self, name: &str) -> Option<ApiGroup> {
        let versions = self.groups().find(|versions| !name.is_empty() && versions[0].group == name)?;
        Some(group(versions, true))
    }

    /// `/api/v1` and `/apis/{group}/{version}`.
    #[must_use]
    pub fn resource_list(&self, group: &str, version: &str) -> Option<ApiResourceList> {
        let found = self.find(group, version)?;
        let mut resources = Vec::new();
        for item in &found.resources {
            resources.push(ApiResource {
                name: item.name.clone(),
                singular_name: item.singular.clone(),
                namespaced: item.namespaced,
                group: String::new(),
                version: String::new(),
                kind: item.kind.kind.clone(),
                verbs: item.verbs.clone(),
                short_names: item.short_names.clone(),
                categories: item.categories.clone(),
                storage_version_hash: item.storage_version_hash.clone(),
            });
            for sub in &item.subresources {
                let elsewhere = (&*sub.kind.group, &*sub.kind.version) != (group, version);
                let (group, version) = if elsewhere { (&*sub.kind.group, &*sub.kind.version) } else { ("", "") };
                resources.push(ApiResource {
                    name: format!("{}/{}", item.name, sub.name),
                    singular_name: String::new(),
                    namespaced: item.namespaced,
                    group: group.to_owned(),
                    version: version.to_owned(),
                    kind: sub.kind.kind.clone(),
                    verbs: sub.verbs.clone(),
                    short_names: Vec::new(),
                    categories: Vec::new(),
                    storage_version_hash: None,
                });
            }
        }
        Some(ApiResourceList {
            kind: "APIResourceList",
            // The core group's document never had one.
            api_version: (!group.is_empty()).then_some("v1"),
            group_version: resources::group_version(group, version),
            resources,
        })
    }

    /// The aggregated form of `/api` (the core group alone).
    #[must_use]
    pub fn aggregated_core(&self) -> ApiGroupDiscoveryList {
        self.aggregate(true)
    }

    /// The aggregated form of `/apis` (every other group).
    #[must_use]
    pub fn aggregated(&self) -> ApiGroupDiscoveryList {
        self.aggregate(false)
    }

    fn aggregate(&self, core: bool) -> ApiGroupDiscoveryList {
        let groups = self.groups().filter(|versions| versions[0].group.is_empty() == core);
        ApiGroupDiscoveryList {
            kind: "APIGroupDiscoveryList",
            api_version: "apidiscovery.k8s.io/v2",
            metadata: Metadata::default(),
            items: groups
                .map(|versions| ApiGroupDiscovery {
                    metadata: Metadata { name: versions[0].group.clone() },
                    versions: versions.iter().map(aggregate_version).collect(),
                })
                .collect(),
        }
    }
}

fn push(versions: &mut Vec<Version>, resource: &Resource) {
    let item = Item::from(resource);
    match versions.iter_mut().find(|v| v.group == resource.group && v.version == resource.version) {
        Some(version) => version.resources.push(item),
        None => versions.push(Version {
            group: resource.group.to_string(),
            version: resource.version.to_string(),
            resources: vec![item],
            ..Version::default()
        }),
    }
}

fn group(versions: &[Version], alone: bool) -> ApiGroup {
    let name = |v: &Version| GroupVersionForDiscovery {
        group_version: resources::group_version(&v.group, &v.version),
        version: v.version.clone(),
    };
    ApiGroup {
        kind: alone.then_some("APIGroup"),
        api_version: alone.then_some("v1"),
        name: versions[0].group.clone(),
        versions: versions.iter().map(name).collect(),
        preferred_version: name(&versions[0]),
    }
}

fn aggregate_version(version: &Version) -> ApiVersionDiscovery {
    let resources = version.resources.iter().map(|item| ApiResourceDiscovery {
        resource: item.name.clone(),
        response_kind: item.kind.clone(),
        scope: if item.namespaced { "Namespaced" } else { "Cluster" },
        singular_resource: item.singular.clone(),
        verbs: item.verbs.clone(),
        short_names: item.short_names.clone(),
        categories: item.categories.clone(),
        subresources: item
            .subresources
            .iter()
            .map(|sub| ApiSubresourceDiscovery {
                subresource: sub.name.clone(),
                response_kind: sub.kind.clone(),
                verbs: sub.verbs.clone(),
            })
            .collect(),
    });
    ApiVersionDiscovery {
        version: version.version.clone(),
        resources: resources.collect(),
        freshness: if version.stale { "Stale" } else { "Current" },
    }
}

/// The order of versions, best first: `v2, v1, v2beta1, v1beta2, v1alpha1`, then other names alphabetically.
#[must_use]
pub fn compare_versions(a: &str, b: &str) -> Ordering {
    let rank = |version: &str| -> Option<(u8, u64, u64)> {
        let rest = version.strip_prefix('v')?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest[..end].parse().ok()?;
        let (stability, minor) = match &rest[end..] {
            "" => (2, "0"),
            tail => match (tail.strip_prefix("beta"), tail.strip_prefix("alpha")) {
                (Some(minor), _) => (1, minor),
                (None, Some(minor)) => (0, minor),
                (None, None) => return None,
            },
        };
        let digits = !minor.is_empty() && minor.bytes().all(|b| b.is_ascii_digit());
        Some((stability, major, digits.then(|| minor.parse().ok()).flatten()?))
    };
    match (rank(a), rank(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// A strong ETag of a document.
#[must_use]
pub fn etag(document: &[u8]) -> String {
    let mut out = String::with_capacity(66);
    out.push('"');
    for byte in Sha256::digest(document) {
        out.push_str(&format!("{byte:02X}"));
    }
    out.push('"');
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::{json, to_value};

    #[test]
    fn versions_in_order() {
        let mut versions =
            ["foo1", "v10beta3", "v1", "v11alpha2", "v3beta1", "v2", "v11", "foo10", "v10", "v1beta", "v11beta2"];
        versions.sort_by(|a, b| compare_versions(a, b));
        let wanted =
            ["v11", "v10", "v2", "v1", "v11beta2", "v10beta3", "v3beta1", "v11alpha2", "foo1", "foo10", "v1beta"];
        assert_eq!(versions, wanted);
    }

    #[test]
    fn documents() {
        let catalog = Catalog::new([]);
        let core = to_value(catalog.resource_list("", "v1").unwrap()).unwrap();
        assert_eq!(core.get("apiVersion"), None);
        let find =
            |name: &str| core["resources"].as_array().unwrap().iter().find(|r| r["name"] == name).unwrap().clone();
        assert_eq!(
            find("pods/eviction"),
            json!({"name": "pods/eviction", "singularName": "", "namespaced": true, "group": "policy", "version": "v1",
                   "kind": "Eviction", "verbs": ["create"]})
        );
        assert_eq!(find("pods")["storageVersionHash"], "xPOwRZ+Yhw8=");
        assert_eq!(find("pods/status").get("group"), None);
        let groups = to_value(catalog.group_list()).unwrap();
        assert_eq!(groups["groups"][0]["name"], "apiregistration.k8s.io");
        assert_eq!(groups["groups"].as_array().unwrap().len(), 21);
        assert!(catalog.group("").is_none() && catalog.group("no.such").is_none());
        let autoscaling = to_value(catalog.group("autoscaling").unwrap()).unwrap();
        assert_eq!(autoscaling["preferredVersion"]["version"], "v2");
        let aggregated = to_value(catalog.aggregated_core()).unwrap();
        assert_eq!((&aggregated["metadata"], &aggregated["items"][0]["metadata"]), (&json!({}), &json!({})));
    }

    #[test]
    fn definitions_join() {
        let shape = std::sync::Arc::new(resources::all()[0].model.clone());
        let custom = |group: &str, version: &str, plural: &str| Resource {
            group: group.to_owned().into(),
            version: version.to_owned().into(),
            plural: plural.to_owned().into(),
            model: Handle::Shared(std::sync::Arc::new((**shape).clone())),
            ..resources::by_plural("apps", "v1", "deployments").unwrap().clone()
        };
        let more = [
            custom("z.example.com", "v1beta1", "b"),
            custom("z.example.com", "v1", "b"),
            custom("z.example.com", "v1", "a"),
            custom("a.example.com", "v1", "x"),
            custom("batch", "v7", "x"),
        ];
        let catalog = Catalog::new(&more);
        let names: Vec<_> = catalog.groups().map(|v| v[0].group.as_str()).collect();
        assert_eq!(names[22..], ["a.example.com", "z.example.com"]);
        assert_eq!(catalog.group("batch").unwrap().versions.len(), 2);
        assert_eq!(catalog.group("z.example.com").unwrap().preferred_version.version, "v1");
        let list = catalog.resource_list("z.example.com", "v1").unwrap();
        assert_eq!(list.resources.iter().map(|r| r.name.as_str()).collect::<Vec<_>>()[..2], ["a", "a/scale"]);
        let all = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
        assert_eq!(list.resources[0].verbs, all);
    }

    #[test]
    fn etags_are_strong_and_follow_the_content() {
        assert!(etag(b"a").starts_with("\"CA978112CA1BBDCAFAC231B39A23DC4DA786EFF8"));
        assert_ne!(etag(b"a"), etag(b"b"));
    }
}
