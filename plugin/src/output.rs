//! Forms of output.

use anyhow::Context as _;
use clap::ValueEnum;
use kube::ResourceExt as _;
use serde::Serialize;

/// What `-o` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table with more columns.
    Wide,
    /// JSON, objects as the server has them.
    Json,
    /// The same as YAML.
    Yaml,
    /// Names alone.
    Name,
}

impl Format {
    /// Prints a list of objects of group `skiff.dev` as data; false where a table is wanted.
    ///
    /// # Errors
    /// When an object cannot be written.
    pub fn data<K: Serialize + kube::Resource<DynamicType = ()>>(
        self,
        items: &[K],
        kind: &str,
    ) -> anyhow::Result<bool> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items});
        match self {
            Self::Wide => return Ok(false),
            Self::Json => println!("{}", serde_json::to_string_pretty(&list)?),
            Self::Yaml => print!("{}", serde_saphyr::to_string(&list).context("cannot write YAML")?),
            Self::Name => items.iter().for_each(|i| println!("{kind}.skiff.dev/{}", i.name_any())),
        }
        Ok(true)
    }
}

/// Says that there is nothing to list: in this namespace, or at all.
pub fn nothing_found(namespace: Option<&str>) {
    match namespace {
        None => eprintln!("No resources found"),
        Some(namespace) => eprintln!("No resources found in {namespace} namespace."),
    }
}
