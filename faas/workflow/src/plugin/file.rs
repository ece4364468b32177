//! `lint`, `validate`, `convert`: definitions in files, and what they lack.
//!
//! A file is a definition in the States Language, as JSON or YAML, or manifests of Workflows and WorkflowRuns among others.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use skiff_asl::{Definition, Fault, Severity, convert as forms};
use skiff_plugin::Session;

use super::data;
use super::run::bare;
use crate::api::Workflow;
use crate::engine::{definition_text, judge};
use crate::needs::missing;

/// `lint`.
#[derive(Clone, Debug, Args)]
pub(super) struct LintArgs {
    /// Files; `-` is standard input.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Warnings are faults too.
    #[arg(long)]
    strict: bool,
}

/// `validate`.
#[derive(Clone, Debug, Args)]
pub(super) struct ValidateArgs {
    /// Workflows of the cluster. Default: all of the namespace.
    workflows: Vec<String>,
    /// A file instead; `-` is standard input.
    #[arg(short, long, conflicts_with = "workflows")]
    file: Option<PathBuf>,
}

/// `convert`.
#[derive(Clone, Debug, Args)]
pub(super) struct ConvertArgs {
    /// The predecessor's workflow; `-` is standard input.
    file: PathBuf,
    /// Form of the output.
    #[arg(short, long, default_value = "yaml")]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Form {
    Yaml,
    Json,
}

/// A definition of a file.
pub(super) struct Found {
    /// Which, for people: the file, and the object where there is one.
    pub(super) place: String,
    /// It, where it has no errors.
    pub(super) definition: Option<Definition>,
    pub(super) faults: Vec<Fault>,
}

/// The definitions of a text.
pub(super) fn definitions(place: &str, text: &str) -> anyhow::Result<Vec<Found>> {
    let of = |place: String, (definition, faults)| Found { place, definition, faults };
    let documents: Vec<Value> = match serde_saphyr::from_multiple(text) {
        Ok(documents) => documents,
        // The language says what is wrong with its text.
        Err(_) => return Ok(vec![of(place.to_owned(), judge(text))]),
    };
    let is_object = |d: &Value| d.get("apiVersion").is_some() && d.get("kind").is_some();
    if !documents.iter().any(is_object) {
        return Ok(vec![of(place.to_owned(), judge(text))]);
    }
    let mut found = vec![];
    for document in &documents {
        let kind = document["kind"].as_str().unwrap_or_default();
        let definition = &document["spec"]["definition"];
        let ours = document["apiVersion"] == "skiff.dev/v1" && matches!(kind, "Workflow" | "WorkflowRun");
        if !ours || (kind == "WorkflowRun" && definition.is_null()) {
            continue;
        }
        let name = document["metadata"]["name"].as_str().unwrap_or_default();
        found.push(of(format!("{place}: {kind}/{name}"), judge(&definition_text(definition))));
    }
    if found.is_empty() {
        if forms::text(text).is_ok() {
            bail!("{place} is a predecessor's workflow: kubectl wf convert {place}");
        }
        bail!("there is no Workflow in {place}");
    }
    Ok(found)
}

fn told(fault: &Fault) -> String {
    let word = if fault.severity == Severity::Error { "error" } else { "warning" };
    format!("{word}: {fault}")
}

pub(super) fn lint(args: &LintArgs) -> anyhow::Result<()> {
    let mut bad = 0;
    for file in &args.files {
        let place = file.display().to_string();
        let text = data(None, Some(file))?.unwrap_or_default();
        for found in definitions(&place, &text)? {
            let counts = |f: &&Fault| args.strict || f.severity == Severity::Error;
            bad += found.faults.iter().filter(counts).count();
            for fault in &found.faults {
                println!("{}: {}", found.place, told(fault));
            }
            if found.faults.is_empty() {
                println!("{}: ok", found.place);
            }
        }
    }
    match bad {
        0 => Ok(()),
        1 => bail!("1 fault"),
        n => bail!("{n} faults"),
    }
}

pub(super) async fn validate(session: &Session, args: ValidateArgs) -> anyhow::Result<()> {
    let found = match &args.file {
        Some(file) => {
            let text = data(None, Some(file))?.unwrap_or_default();
            definitions(&file.display().to_string(), &text)?
        }
        None => {
            let api = session.api::<Workflow>();
            let mut all = vec![];
            for name in &args.workflows {
                all.push(api.get(bare(name)).await?);
            }
            if args.workflows.is_empty() {
                all = api.list(&kube::api::ListParams::default()).await?.items;
            }
            let of = |w: Workflow| {
                let (definition, faults) = judge(&definition_text(&w.spec.definition));
                Found { place: format!("workflow/{}", w.metadata.name.unwrap_or_default()), definition, faults }
            };
            all.into_iter().map(of).collect()
        }
    };
    let mut bad = 0;
    for mut found in found {
        if let Some(definition) = &found.definition {
            found.faults.extend(missing(&session.client, &session.namespace, definition).await?);
        }
        bad += found.faults.iter().filter(|f| f.severity == Severity::Error).count();
        for fault in &found.faults {
            println!("{}: {}", found.place, told(fault));
        }
        if found.faults.is_empty() {
            println!("{}: ok", found.place);
        }
    }
    if bad > 0 {
        bail!("{bad} faults");
    }
    Ok(())
}

pub(super) fn convert(args: &ConvertArgs) -> anyhow::Result<()> {
    let text = data(None, Some(&args.file))?.unwrap_or_default();
    let converted = forms::text(&text).map_err(|why| anyhow::anyhow!("{}: {}", args.file.display(), why.join("; ")))?;
    for note in &converted.notes {
        eprintln!("note: {note}");
    }
    match args.output {
        Form::Json => println!("{}", serde_json::to_string_pretty(&converted.workflow)?),
        Form::Yaml => print!("{}", serde_saphyr::to_string(&converted.workflow).context("cannot write YAML")?),
    }
    if let Some(input) = &converted.input {
        let name = converted.workflow["metadata"]["name"].as_str().unwrap_or_default();
        eprintln!("note: it ran with this input: kubectl wf run {name} -d '{}'", json!(input));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        r#"{"StartAt": "A", "States": {"A": {"Type": "Task", "Resource": "skiff:function:f", "End": true}}}"#;

    #[test]
    fn definitions_are_found_in_files() {
        let places = |text: &str| -> Vec<(String, bool)> {
            let found = definitions("f", text).unwrap();
            found.into_iter().map(|f| (f.place, f.definition.is_some())).collect()
        };
        assert_eq!(places(GOOD), [("f".to_owned(), true)]);
        assert_eq!(places("StartAt: A\nStates: {}\n"), [("f".to_owned(), false)]);
        let manifests = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c}}\n---\napiVersion: skiff.dev/v1\nkind: Workflow\nmetadata: {{name: w}}\n\
             spec:\n  definition: {GOOD}\n---\napiVersion: skiff.dev/v1\nkind: Workflow\nmetadata: {{name: x}}\nspec: {{definition: '{{'}}\n"
        );
        assert_eq!(places(&manifests), [("f: Workflow/w".to_owned(), true), ("f: Workflow/x".to_owned(), false)]);
        assert!(definitions("f", "apiVersion: v1\nkind: ConfigMap\n").is_err());
    }
}
