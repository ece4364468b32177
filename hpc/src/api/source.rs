//! Files that a job starts with.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Files that a job starts with: one of these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "[has(self.inline), has(self.configMap), has(self.archive), has(self.remote), has(self.volume)].filter(x, x).size() == 1",
     "message": "exactly one of inline, configMap, archive, remote and volume must be given"}
]))]
pub struct Source {
    /// Files by their path in the job's directory: no `..`, nothing absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub inline: Option<BTreeMap<String, String>>,
    /// A ConfigMap of this namespace: each key is a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<NameRef>,
    /// An uploaded directory (`kubectl gpu submit DIR`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub archive: Option<Archive>,
    /// A directory that is on the Slurm cluster already: it is copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remote: Option<RemoteSource>,
    /// A directory of a PersistentVolumeClaim of this namespace: a pod reads it, at most 32 MiB packed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<VolumeSource>,
}

/// A directory of a PersistentVolumeClaim.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeSource {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
    /// The directory in it (all of it): no `..`, nothing absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 255),
        regex(
            pattern = r"^(\.{0,2}[A-Za-z0-9_@+=, -][A-Za-z0-9_.@+=, -]*)(/\.{0,2}[A-Za-z0-9_@+=, -][A-Za-z0-9_.@+=, -]*)*$"
        )
    )]
    pub path: Option<String>,
}

/// An object of this namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NameRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A key of an object of this namespace.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The key.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// An uploaded directory: a gzipped tar in the `binaryData` of ConfigMaps `NAME-0`, `NAME-1`, … under the key `data`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Archive {
    /// Name of the ConfigMaps, without their numbers.
    #[schemars(length(min = 1, max = 248))]
    pub name: String,
    /// How many there are.
    #[schemars(range(min = 1, max = 64))]
    pub parts: u32,
    /// SHA-256 of the whole, in hexadecimal.
    #[schemars(regex(pattern = "^[0-9a-f]{64}$"))]
    pub sha256: String,
}

/// A directory on the Slurm cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RemoteSource {
    /// Its path. It must lie below the cluster's work directory.
    #[schemars(regex(pattern = r"^/[A-Za-z0-9_./@+=,-]{1,255}$"))]
    pub path: String,
}

/// A further file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    {"rule": "[has(self.text), has(self.configMap), has(self.secret)].filter(x, x).size() == 1",
     "message": "exactly one of text, configMap and secret must be given"}
]))]
pub struct Input {
    /// Where it goes in the job's directory.
    #[schemars(
        length(max = 255),
        regex(
            pattern = r"^(\.{0,2}[A-Za-z0-9_@+=, -][A-Za-z0-9_.@+=, -]*)(/\.{0,2}[A-Za-z0-9_@+=, -][A-Za-z0-9_.@+=, -]*)*$"
        )
    )]
    pub path: String,
    /// What is in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1_048_576))]
    pub text: Option<String>,
    /// A key of a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<KeyRef>,
    /// A key of a Secret. The file is for its owner only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<KeyRef>,
    /// Whether it may be executed.
    #[serde(default)]
    pub executable: bool,
}
