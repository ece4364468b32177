//! Which kinds the server has now.
//!
//! One request each for `/api` and `/apis` in the aggregated form; the preferred version of each resource counts.

use std::collections::BTreeSet;

use http::Request;
use kube::Client;
use kube::core::ApiResource;
use serde::Deserialize;

/// A kind and what can be done with it.
#[derive(Clone, Debug)]
pub struct Found {
    /// How to address it.
    pub resource: ApiResource,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// The verbs it has.
    pub verbs: BTreeSet<String>,
}

impl Found {
    /// Whether the kind has a verb.
    #[must_use]
    pub fn can(&self, verb: &str) -> bool {
        self.verbs.contains(verb)
    }

    /// `plural.group`, or `plural` in the core group.
    #[must_use]
    pub fn name(&self) -> String {
        let r = &self.resource;
        if r.group.is_empty() { format!("{}.", r.plural) } else { format!("{}.{}", r.plural, r.group) }
    }
}

/// All kinds, and why some may be missing.
#[derive(Clone, Debug, Default)]
pub struct Kinds {
    /// The kinds.
    pub kinds: Vec<Found>,
    /// Groups whose server does not answer.
    pub failed: Option<String>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    items: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    #[serde(default)]
    metadata: GroupMeta,
    #[serde(default)]
    versions: Vec<Version>,
}

#[derive(Deserialize, Default)]
struct GroupMeta {
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct Version {
    version: String,
    #[serde(default)]
    resources: Vec<Resource>,
    #[serde(default)]
    freshness: String,
}

#[derive(Deserialize)]
struct Resource {
    resource: String,
    #[serde(rename = "responseKind", default)]
    kind: Option<Kind>,
    scope: String,
    #[serde(default)]
    verbs: BTreeSet<String>,
}

#[derive(Deserialize, Default)]
struct Kind {
    #[serde(default)]
    kind: String,
}

const ACCEPT: &str =
    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// All kinds of the server.
///
/// # Errors
/// When discovery does not answer.
pub async fn all(client: &Client) -> Result<Kinds, kube::Error> {
    let mut kinds = Kinds::default();
    let mut seen: BTreeSet<(String, String)> = BTreeSet::new();
    let mut stale = Vec::new();
    for path in ["/api", "/apis"] {
        let request = Request::get(path).header("accept", ACCEPT).body(vec![]).map_err(kube::Error::HttpError)?;
        let document: Document = client.request(request).await?;
        for group in document.items {
            for version in group.versions {
                if version.freshness == "Stale" {
                    stale.push(format!("{}/{}", group.metadata.name, version.version));
                }
                for r in version.resources {
                    if !seen.insert((group.metadata.name.clone(), r.resource.clone())) {
                        continue;
                    }
                    let name = &group.metadata.name;
                    let v = &version.version;
                    let resource = ApiResource {
                        group: name.clone(),
                        version: v.clone(),
                        api_version: if name.is_empty() { v.clone() } else { format!("{name}/{v}") },
                        kind: r.kind.unwrap_or_default().kind,
                        plural: r.resource,
                    };
                    kinds.kinds.push(Found { resource, namespaced: r.scope == "Namespaced", verbs: r.verbs });
                }
            }
        }
    }
    kinds.failed = (!stale.is_empty()).then(|| stale.join(", "));
    Ok(kinds)
}

/// Kinds whose objects live in namespaces.
///
/// # Errors
/// As [`all`].
pub async fn namespaced(client: &Client) -> Result<Kinds, kube::Error> {
    let mut kinds = all(client).await?;
    kinds.kinds.retain(|k| k.namespaced);
    Ok(kinds)
}
