//! What comes out of a map's run: the output of the state, or files where the ResultWriter says (`skiff:configmap` with `Name`;
//! `skiff:pvc` with `Name` and `Path`): `manifest.json`, and the executions by how they ended, in files of bounded length. Writing
//! them again changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ObjectMeta, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use skiff_asl::definition::ResultWriter;
use skiff_asl::{ExecutionError, error};

use super::items::Items;
use super::{Around, files, reader};
use crate::api::{DATA_MAX, Phase};
use crate::arn;
use crate::engine::Engine;
use crate::journal::JournalError;
use crate::machine::Spread;
use crate::payload::Owner;
use crate::runs::maps::{Data, Told, executions, name_of};

/// Resources of writers.
pub(crate) const TARGETS: [&str; 2] = ["skiff:configmap", "skiff:pvc"];
/// Bytes of a file of results on a volume, and in a ConfigMap, unless one result is longer.
const FILE: usize = 8 << 20;
const CONFIG: usize = 48 << 10;
/// Field manager of ConfigMaps with results.
const MANAGER: &str = "skiff-workflow";

/// Results that could not be had.
pub(super) enum Failed {
    /// The state fails.
    State(ExecutionError),
    /// The API does not answer: later.
    Later(JournalError),
}

impl From<JournalError> for Failed {
    fn from(e: JournalError) -> Self {
        Self::Later(e)
    }
}

fn refused(cause: impl Into<String>) -> Failed {
    Failed::State(ExecutionError::new(error::RESULT_WRITER_FAILED, cause))
}

/// Whose results, and how they are to look.
pub(super) struct Results<'a> {
    pub(super) engine: &'a Arc<Engine>,
    pub(super) around: &'a Around,
    pub(super) spread: &'a Spread,
    pub(super) own: &'a Owner,
    pub(super) items: &'a Items,
    pub(super) writer: Option<&'a ResultWriter>,
}

impl Results<'_> {
    fn client(&self) -> &Client {
        self.engine.client()
    }

    /// Everything that is known of an execution, as the service writes it down.
    fn record(&self, told: &Told, data: Data) -> Value {
        let (info, plan) = (&self.around.info, &self.spread.plan);
        let machine = format!("{}/{}", info.workflow, plan.label);
        let name = name_of(&plan.name, told.index);
        let redrivable = told.phase != Phase::Succeeded;
        let mut whole = json!({
            "ExecutionArn": arn::execution(&info.namespace, &machine, &name),
            "Input": data.input, "InputDetails": {"Included": true}, "Name": name,
            "RedriveCount": told.redrives.0,
            "RedriveStatus": if redrivable { "REDRIVABLE_BY_MAP_RUN" } else { "NOT_REDRIVABLE" },
            "StartDate": format!("{:.3}", told.start),
            "StateMachineArn": arn::machine(&info.namespace, &machine), "Status": told.phase.as_str(),
        });
        let more = [
            ("StopDate", told.stop.map(|at| format!("{at:.3}"))),
            ("Output", data.output.clone()),
            ("Error", told.error.clone()),
            ("Cause", data.cause),
        ];
        if let Some(fields) = whole.as_object_mut() {
            fields.extend(more.into_iter().filter_map(|(k, v)| Some((k.to_owned(), v?.into()))));
            if data.output.is_some() {
                fields.insert("OutputDetails".to_owned(), json!({"Included": true}));
            }
        }
        whole
    }

    fn transformation(&self, default: &'static str) -> &str {
        self.writer.and_then(|w| w.transformation.as_deref()).unwrap_or(default)
    }

    /// What an execution that ended is in the results.
    async fn shown(&self, told: &Told, how: &str) -> Result<Vec<Value>, JournalError> {
        let data = told.data(self.client(), self.own).await?;
        let output = data.output.as_deref().filter(|_| told.phase == Phase::Succeeded && how != "NONE");
        // Of what failed everything is told in any case.
        let Some(output) = output else { return Ok(vec![self.record(told, data)]) };
        let output: Value = serde_json::from_str(output).unwrap_or_default();
        Ok(match output {
            Value::Array(all) if how == "FLATTEN" => all,
            output => vec![output],
        })
    }

    /// The output of the state where nothing writes files. `known` is the length of all outputs together.
    pub(super) async fn output(&self, known: usize) -> Result<String, Failed> {
        if known > DATA_MAX {
            let cause = format!(
                "the Map's result is longer than the maximum number of bytes service limit, which is {DATA_MAX}: a \
                 ResultWriter takes it"
            );
            return Err(Failed::State(ExecutionError::new(error::DATA_LIMIT_EXCEEDED, cause)));
        }
        let how = self.transformation("COMPACT").to_owned();
        let mut all = vec![];
        for told in executions(self.client(), self.own).await?.values() {
            all.extend(self.shown(told, &how).await?);
        }
        if self.writer.and_then(|w| w.output_type.as_deref()) == Some("JSONL") {
            let lines: Vec<String> = all.iter().map(Value::to_string).collect();
            return Ok(Value::from(lines.join("\n")).to_string());
        }
        Ok(Value::Array(all).to_string())
    }

    /// Writes files; how many results are in them, and the output of the state.
    pub(super) async fn write(&self, pending: std::ops::Range<usize>) -> Result<(usize, String), Failed> {
        let target = self.target().await?;
        let (how, lines) = (
            self.transformation("NONE").to_owned(),
            self.writer.and_then(|w| w.output_type.as_deref()) == Some("JSONL"),
        );
        let mut groups: BTreeMap<&str, Vec<String>> = BTreeMap::new();
        for group in ["SUCCEEDED", "FAILED", "PENDING"] {
            groups.insert(group, vec![]);
        }
        let mut written = 0;
        for told in executions(self.client(), self.own).await?.values() {
            let group = if told.phase == Phase::Succeeded { "SUCCEEDED" } else { "FAILED" };
            let shown = self.shown(told, &how).await?;
            groups.entry(group).or_default().extend(shown.iter().map(Value::to_string));
            written += 1;
        }
        for index in pending {
            let input = self.items.input(index).map_err(Failed::State)?;
            let name = name_of(&self.spread.plan.name, index);
            let shown = json!({"Name": name, "Input": input.to_string(), "Status": "PENDING"});
            groups.entry("PENDING").or_default().push(shown.to_string());
        }
        let mut listed = json!({});
        for (group, all) in groups {
            let mut told = vec![];
            for (number, file) in cut(&all, target.limit(), lines).into_iter().enumerate() {
                let ending = if lines { "jsonl" } else { "json" };
                let key = target.put(&format!("{group}_{number}.{ending}"), &file).await.map_err(refused)?;
                told.push(json!({"Key": key, "Size": file.len()}));
            }
            listed[group] = told.into();
        }
        let arn = arn::map_run(
            &self.around.info.namespace,
            &self.around.info.workflow,
            &self.spread.plan.label,
            &self.spread.plan.name,
        );
        let manifest = json!({"DestinationBucket": target.name, "MapRunArn": arn, "ResultFiles": listed});
        let key = target.put("manifest.json", &manifest.to_string()).await.map_err(refused)?;
        let output = json!({"MapRunArn": arn, "ResultWriterDetails": {"Bucket": target.name, "Key": key}});
        Ok((written, output.to_string()))
    }

    /// Where the parameters say that results go.
    async fn target(&self) -> Result<Target, Failed> {
        let parameters = self.spread.plan.target.clone().unwrap_or_else(|| json!({}));
        let call = reader::call(self.engine, self.around, self.spread, &parameters);
        let name = call.text("Name").map_err(|e| refused(e.cause))?.to_owned();
        let namespace = self.around.root.namespace.clone();
        let place = match self.writer.and_then(|w| w.resource.as_deref()) {
            Some("skiff:pvc") => {
                let volume = files::volume(self.client(), &call.asked(), &namespace, &name, "update").await;
                let path = parameters["Path"].as_str().unwrap_or_default().trim_matches('/');
                let path = [path, &self.spread.plan.name].iter().filter(|p| !p.is_empty()).copied().collect::<Vec<_>>();
                Place::Volume(Arc::new(volume.map_err(refused)?), path.join("/"))
            }
            _ => Place::Maps(Box::new((Api::namespaced(call.asked(), &namespace), self.around.root.clone()))),
        };
        Ok(Target { name, place })
    }
}

/// Where results go.
struct Target {
    /// The claim, or the ConfigMap that has the manifest.
    name: String,
    place: Place,
}

enum Place {
    Volume(Arc<files::Volume>, String),
    Maps(Box<(Api<ConfigMap>, Owner)>),
}

impl Target {
    fn limit(&self) -> usize {
        match self.place {
            Place::Volume(..) => FILE,
            Place::Maps(..) => CONFIG,
        }
    }

    /// Writes a file; what names it.
    async fn put(&self, file: &str, text: &str) -> Result<String, String> {
        match &self.place {
            Place::Volume(volume, path) => {
                let key = format!("{path}/{file}");
                let (volume, at, text) = (Arc::clone(volume), key.clone(), text.to_owned());
                let wrote = tokio::task::spawn_blocking(move || volume.write(&at, &text)).await;
                wrote.map_err(|e| e.to_string())??;
                Ok(key)
            }
            Place::Maps(of) => {
                let (maps, owner) = &**of;
                // Each file has a ConfigMap of its own, for what one can hold is little.
                let (map, key) = match file {
                    "manifest.json" => (self.name.clone(), file.to_owned()),
                    file => {
                        let part = file.split('.').next().unwrap_or(file).to_lowercase().replace('_', "-");
                        let map = format!("{}-{part}", self.name);
                        let key = format!("{map}/{file}");
                        (map, key)
                    }
                };
                let object = ConfigMap {
                    metadata: ObjectMeta {
                        labels: Some([(crate::api::RUN.to_owned(), owner.uid.clone())].into()),
                        ..ObjectMeta::default()
                    },
                    data: Some([(file.to_owned(), text.to_owned())].into()),
                    ..ConfigMap::default()
                };
                let mut whole = json!(object);
                whole["apiVersion"] = "v1".into();
                whole["kind"] = "ConfigMap".into();
                whole["metadata"]["name"] = map.clone().into();
                let how = PatchParams::apply(MANAGER).force();
                maps.patch(&map, &how, &Patch::Apply(&whole)).await.map_err(|e| e.to_string())?;
                Ok(key)
            }
        }
    }
}

/// JSON texts as files: arrays, or lines.
fn cut(all: &[String], limit: usize, lines: bool) -> Vec<String> {
    let (open, between, close) = if lines { ("", "\n", "\n") } else { ("[", ",", "]") };
    let mut files: Vec<String> = vec![];
    let mut file = String::new();
    for text in all {
        if !file.is_empty() && file.len() + text.len() > limit {
            files.push(std::mem::take(&mut file) + close);
        }
        file.push_str(if file.is_empty() { open } else { between });
        file.push_str(text);
    }
    if !file.is_empty() {
        files.push(file + close);
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_of_bounded_length() {
        let all: Vec<String> = (0..10).map(|i| json!({"n": i}).to_string()).collect();
        let files = cut(&all, 30, false);
        assert!(files.len() > 1 && files.iter().all(|f| f.len() <= 32), "{files:?}");
        let back: Vec<Value> = files.iter().flat_map(|f| serde_json::from_str::<Vec<Value>>(f).unwrap()).collect();
        assert_eq!(back.len(), 10);
        assert_eq!(cut(&all[..2], 1000, true), ["{\"n\":0}\n{\"n\":1}\n"]);
        assert!(cut(&[], 10, false).is_empty());
    }
}
