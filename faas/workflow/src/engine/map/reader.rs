//! ItemReader: where items are read. `skiff:configmap` (`Name`, `Key`), `skiff:pvc` (`Name`, `Path`), `skiff:http` (as of such a
//! task). Without a key, or with a directory, the items are what there is: `Key`, `Size`; with `Transformation:
//! LOAD_AND_FLATTEN` what is in each. A `MANIFEST` names files beside itself. ConfigMaps and claims are read with the rights of
//! the workflow's ServiceAccount. Limit: 64 MiB a file.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use serde_json::{Value, json};
use skiff_asl::definition::{ItemReader, ReaderConfig};
use skiff_asl::{ExecutionError, error};

use super::Around;
use super::files::{self, Content};
use super::formats;
use crate::engine::Engine;
use crate::machine::{Dispatch, Source, Spread};
use crate::resource::Resource;
use crate::task::Call;

/// Resources of readers.
pub(crate) const SOURCES: [&str; 3] = ["skiff:configmap", "skiff:pvc", "skiff:http"];

fn failed(cause: impl Into<String>) -> ExecutionError {
    ExecutionError::new(error::ITEM_READER_FAILED, cause)
}

/// What reads.
struct Reader<'a> {
    resource: &'a str,
    call: Call,
}

/// A call of something beside tasks, with parameters: to ask as the workflow's account, and to make requests.
pub(super) fn call(engine: &Arc<Engine>, around: &Around, spread: &Spread, parameters: &Value) -> Call {
    Call {
        engine: Arc::clone(engine),
        owner: around.root.clone(),
        info: Arc::clone(&around.info),
        dispatch: Dispatch {
            step: spread.step,
            state: spread.plan.state.clone(),
            resource: "skiff:http".to_owned(),
            parameters: Arc::new(parameters.clone()),
            deadline: None,
            token: None,
            submitted: false,
            taken: None,
        },
        resource: Resource { target: crate::resource::Target::Http, pattern: crate::resource::Pattern::Request },
        report: Box::new(|_, _| {}),
    }
}

/// Reads the items of a map.
///
/// # Errors
/// `States.ItemReaderFailed`.
pub(super) async fn read(
    engine: &Arc<Engine>,
    around: &Around,
    spread: &Spread,
    reader: &ItemReader,
    source: &Source,
) -> Result<Vec<Value>, ExecutionError> {
    let call = call(engine, around, spread, &source.parameters);
    let from = Reader { resource: &reader.resource, call };
    let mut items = from.items(&reader.config).await.map_err(failed)?;
    if let Some(most) = source.most {
        items.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    }
    Ok(items)
}

impl Reader<'_> {
    async fn items(&self, config: &ReaderConfig) -> Result<Vec<Value>, String> {
        let files = match self.content(self.path()).await? {
            Content::Directory(files) => files,
            Content::File(text) if config.input_type.as_deref() == Some("MANIFEST") => {
                let (columns, keys) = formats::manifest(&text)?;
                let mut items = vec![];
                for key in keys {
                    let rows = formats::rows(&self.text(&key).await?, ',')?;
                    items.extend(rows.into_iter().map(|row| formats::named(&columns, row)));
                }
                return Ok(items);
            }
            Content::File(text) => return formats::items(config, &text),
        };
        if config.transformation.as_deref() != Some("LOAD_AND_FLATTEN") {
            return Ok(files);
        }
        let mut items = vec![];
        for key in files.iter().filter_map(|f| f["Key"].as_str()) {
            items.extend(formats::items(config, &self.text(key).await?).map_err(|e| format!("{key}: {e}"))?);
        }
        Ok(items)
    }

    /// The file that the parameters name, in what they name.
    fn path(&self) -> &str {
        let field = if self.resource == "skiff:configmap" { "Key" } else { "Path" };
        self.call.field(field).and_then(Value::as_str).unwrap_or_default()
    }

    async fn text(&self, path: &str) -> Result<String, String> {
        match self.content(path).await? {
            Content::File(text) => Ok(text),
            Content::Directory(_) => Err(format!("{path} is a directory")),
        }
    }

    async fn content(&self, path: &str) -> Result<Content, String> {
        let name = || self.call.text("Name").map_err(|e| e.cause);
        let namespace = &self.call.owner.namespace;
        match self.resource {
            "skiff:configmap" => {
                let maps = Api::<ConfigMap>::namespaced(self.call.asked(), namespace);
                let found = maps.get(name()?).await.map_err(|e| e.to_string())?;
                let mut data = found.data.unwrap_or_default();
                if path.is_empty() {
                    let each = data.iter().map(|(key, text)| json!({"Key": key, "Size": text.len()}));
                    return Ok(Content::Directory(each.collect()));
                }
                data.remove(path).map(Content::File).ok_or_else(|| format!("the ConfigMap has no key {path}"))
            }
            "skiff:pvc" => {
                let claim = name()?;
                let (engine, account) = (self.call.client(), self.call.asked());
                let volume = files::volume(engine, &account, namespace, claim, "get").await?;
                let path = path.to_owned();
                let read = tokio::task::spawn_blocking(move || volume.read(&path)).await;
                read.map_err(|e| e.to_string())?
            }
            _ => {
                let limit = usize::try_from(files::FILE_MAX).unwrap_or(usize::MAX);
                let (parts, body) = self.beside(path).fetch(limit).await.map_err(|e| e.to_string())?;
                if !parts.status.is_success() {
                    return Err(format!("the endpoint answers {}", parts.status));
                }
                String::from_utf8(body.to_vec()).map(Content::File).map_err(|e| e.to_string())
            }
        }
    }

    /// The request for a file that is named beside the one of the parameters.
    fn beside(&self, path: &str) -> Call {
        let mut parameters = (*self.call.dispatch.parameters).clone();
        let endpoint = parameters["ApiEndpoint"].as_str().unwrap_or_default().to_owned();
        if !path.is_empty()
            && let Some((base, _)) = endpoint.rsplit_once('/')
        {
            parameters["ApiEndpoint"] = format!("{base}/{path}").into();
        }
        let mut dispatch = self.call.dispatch.clone();
        dispatch.parameters = Arc::new(parameters);
        Call {
            engine: Arc::clone(&self.call.engine),
            owner: self.call.owner.clone(),
            info: Arc::clone(&self.call.info),
            dispatch,
            resource: self.call.resource.clone(),
            report: Box::new(|_, _| {}),
        }
    }
}
