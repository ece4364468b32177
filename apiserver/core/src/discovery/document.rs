//! The forms of the discovery documents.

use std::borrow::Cow;

use serde::Serialize;

fn empty<T>(list: &[T]) -> bool {
    list.is_empty()
}

/// The answer to `/api`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ApiVersions {
    pub kind: &'static str,
    pub versions: Vec<&'static str>,
    #[serde(rename = "serverAddressByClientCIDRs")]
    pub server_address_by_client_cidrs: Vec<ServerAddress>,
}

/// By which address clients in a network reach the server.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ServerAddress {
    #[serde(rename = "clientCIDR")]
    pub client_cidr: &'static str,
    pub server_address: String,
}

/// The answer to `/apis`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ApiGroupList {
    pub kind: &'static str,
    pub api_version: &'static str,
    pub groups: Vec<ApiGroup>,
}

/// A group and its versions; kind and apiVersion only when it is the whole answer.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ApiGroup {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_version: Option<&'static str>,
    pub name: String,
    pub versions: Vec<GroupVersionForDiscovery>,
    pub preferred_version: GroupVersionForDiscovery,
}

/// A version by its two names.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct GroupVersionForDiscovery {
    pub group_version: String,
    pub version: String,
}

/// The answer for one group-version.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ApiResourceList {
    pub kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_version: Option<&'static str>,
    pub group_version: String,
    pub resources: Vec<ApiResource>,
}

/// A resource or subresource.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ApiResource {
    pub name: String,
    pub singular_name: String,
    pub namespaced: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    pub kind: String,
    pub verbs: Vec<Cow<'static, str>>,
    #[serde(skip_serializing_if = "empty")]
    pub short_names: Vec<String>,
    #[serde(skip_serializing_if = "empty")]
    pub categories: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_version_hash: Option<String>,
}

/// The aggregated document.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ApiGroupDiscoveryList {
    pub kind: &'static str,
    pub api_version: &'static str,
    pub metadata: Metadata,
    pub items: Vec<ApiGroupDiscovery>,
}

/// What is used of ObjectMeta here.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Metadata {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
}

/// A group in the aggregated document.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ApiGroupDiscovery {
    pub metadata: Metadata,
    pub versions: Vec<ApiVersionDiscovery>,
}

/// A version in the aggregated document.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ApiVersionDiscovery {
    pub version: String,
    #[serde(skip_serializing_if = "empty")]
    pub resources: Vec<ApiResourceDiscovery>,
    pub freshness: &'static str,
}

/// A resource in the aggregated document.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ApiResourceDiscovery {
    pub resource: String,
    pub response_kind: GroupVersionKind,
    pub scope: &'static str,
    pub singular_resource: String,
    pub verbs: Vec<Cow<'static, str>>,
    #[serde(skip_serializing_if = "empty")]
    pub short_names: Vec<String>,
    #[serde(skip_serializing_if = "empty")]
    pub categories: Vec<String>,
    #[serde(skip_serializing_if = "empty")]
    pub subresources: Vec<ApiSubresourceDiscovery>,
}

/// A subresource in the aggregated document.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct ApiSubresourceDiscovery {
    pub subresource: String,
    pub response_kind: GroupVersionKind,
    pub verbs: Vec<Cow<'static, str>>,
}

/// Group, version and kind; group and version are empty where they are those of the document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct GroupVersionKind {
    pub group: String,
    pub version: String,
    pub kind: String,
}

impl GroupVersionKind {
    /// From its parts.
    #[must_use]
    pub fn new(group: &str, version: &str, kind: &str) -> Self {
        Self { group: group.to_owned(), version: version.to_owned(), kind: kind.to_owned() }
    }
}
