//! `add` and `update`: from files to a Function.
//!
//! A single source file goes into the function itself; a directory or ZIP file becomes an archive in ConfigMaps that are
//! named after their content. So nothing that an older revision needs is ever overwritten, and a roll-back finds its code. The
//! ConfigMaps belong to the function and go with it; those that no revision names any more go with the next upload.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use k8s_openapi::api::core::v1::{ConfigMap, EnvVar};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Resource as _, ResourceExt as _};
use serde_json::{Value, json};

use super::{MANAGER, Session};
use crate::api::{Archive, FUNCTION, Function, FunctionRevision, Isolation, Source};
use crate::archive::{self, Entry, Files};
use skiff_plugin::parts::PART;

/// Parts that an archive may have.
const PARTS_MAX: usize = 64;
/// Bytes of a file that goes into the function itself.
const INLINE_MAX: usize = 256 * 1024;
/// Label of the ConfigMaps of an archive: its name.
const ARCHIVE: &str = "skiff.dev/archive";

/// What a function is made of.
#[derive(Clone, Debug, Args)]
pub(super) struct Settings {
    /// The code: a file, a directory, or a ZIP file. What .skiffignore in it names is left out.
    #[arg(short, long)]
    path: Option<PathBuf>,
    /// An image that answers HTTP on $PORT, instead of code.
    #[arg(long, conflicts_with = "path")]
    image: Option<String>,
    /// A ConfigMap whose keys are the files of the code, instead of code.
    #[arg(long, conflicts_with_all = ["path", "image"])]
    config_map: Option<String>,
    /// python, node, or http. Default: what the files look like.
    #[arg(long)]
    runtime: Option<String>,
    /// The function in the code, FILE.NAME or NAME. Default: main.
    #[arg(long)]
    handler: Option<String>,
    /// Program and arguments of runtime http, in one word.
    #[arg(long)]
    command: Option<String>,
    /// How instances are kept apart. Default: what the runtime can.
    #[arg(long)]
    isolation: Option<Class>,
    /// A variable of the environment, as in KEY=VALUE; KEY- takes it out. Several times.
    #[arg(short, long = "env")]
    env: Vec<String>,
    /// Whether anybody who reaches the gateway may call it.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    public: Option<bool>,
    /// Seconds an answer may take.
    #[arg(long)]
    timeout: Option<u32>,
    /// Requests that one instance is given at a time; 0 is no limit.
    #[arg(long)]
    concurrency: Option<u32>,
    /// At least so many instances.
    #[arg(long)]
    min: Option<u32>,
    /// At most so many instances; 0 is no limit.
    #[arg(long)]
    max: Option<u32>,
    /// ServiceAccount whose token instances get.
    #[arg(long)]
    service_account: Option<String>,
    /// Wait until it can be called.
    #[arg(long)]
    wait: bool,
    /// Seconds to wait.
    #[arg(long, default_value_t = 300)]
    wait_timeout: u64,
}

/// `add`.
#[derive(Clone, Debug, Args)]
pub(super) struct AddArgs {
    /// The function.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// The function, in another place.
    #[arg(short, long, conflicts_with = "name")]
    file: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

/// `update`.
#[derive(Clone, Debug, Args)]
pub(super) struct UpdateArgs {
    /// The function.
    #[arg(required_unless_present = "file")]
    name: Option<String>,
    /// The function, in another place.
    #[arg(short, long, conflicts_with = "name")]
    file: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Class {
    Container,
    Process,
}

impl From<Class> for Isolation {
    fn from(class: Class) -> Self {
        match class {
            Class::Container => Self::Container,
            Class::Process => Self::Process,
        }
    }
}

pub(super) async fn add(session: &Session, args: AddArgs) -> anyhow::Result<()> {
    let name = args.name.or(args.file).context("a name is needed")?;
    let settings = args.settings;
    let upload = settings.upload(&name)?;
    if upload.is_none() && settings.image.is_none() && settings.config_map.is_none() {
        bail!("where is the code? Name it with -p PATH, --image or --config-map");
    }
    let mut spec = json!({});
    settings.write(&mut spec, upload.as_ref(), &[])?;
    put_parts(session, &name, upload.as_ref()).await?;
    let api = session.api::<Function>();
    let before = api.get_opt(&name).await?;
    let object = json!({"apiVersion": Function::api_version(&()), "kind": Function::kind(&()),
        "metadata": {"name": name}, "spec": spec});
    let after = api.patch(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object)).await?;
    adopt_parts(session, &after, upload.as_ref()).await?;
    let done = match before {
        None => "created",
        Some(before) if before.metadata.generation == after.metadata.generation => "unchanged",
        Some(_) => "configured",
    };
    println!("function.skiff.dev/{name} {done}");
    settings.ready(session, &after).await
}

pub(super) async fn update(session: &Session, args: UpdateArgs) -> anyhow::Result<()> {
    let name = args.name.or(args.file).context("a name is needed")?;
    let settings = args.settings;
    let api = session.api::<Function>();
    let before = api.get(&name).await?;
    let upload = settings.upload(&name)?;
    let mut patch = json!({});
    settings.write(&mut patch, upload.as_ref(), &before.spec.code.env)?;
    if patch == json!({}) {
        bail!("nothing to change: name what is to be otherwise");
    }
    if let Some(source) = patch.get_mut("source").and_then(Value::as_object_mut) {
        // A merge keeps what is not named, but there is one source.
        for kind in ["inline", "configMap", "archive", "image"] {
            source.entry(kind).or_insert(Value::Null);
        }
    }
    put_parts(session, &name, upload.as_ref()).await?;
    // Variables were merged with those that were read: somebody else's change in between must not be lost.
    let patch = json!({"metadata": {"resourceVersion": before.resource_version()}, "spec": patch});
    let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
    let after = api.patch(&name, &params, &Patch::Merge(patch)).await?;
    adopt_parts(session, &after, upload.as_ref()).await?;
    let same = before.metadata.generation == after.metadata.generation;
    println!("function.skiff.dev/{name} {}", if same { "unchanged" } else { "updated" });
    settings.ready(session, &after).await
}

/// Code that was read.
#[derive(Debug, PartialEq)]
struct Upload {
    source: Source,
    parts: Vec<Vec<u8>>,
    runtime: Option<&'static str>,
    handler: Option<String>,
    isolation: Option<Isolation>,
}

impl Settings {
    fn upload(&self, name: &str) -> anyhow::Result<Option<Upload>> {
        self.path.as_deref().map(|path| Upload::read(name, path, self.runtime.as_deref())).transpose()
    }

    /// Writes what was named into a spec.
    fn write(&self, spec: &mut Value, upload: Option<&Upload>, env: &[EnvVar]) -> anyhow::Result<()> {
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                spec[key] = value;
            }
        };
        let source = if let Some(upload) = upload {
            Some(json!(upload.source))
        } else if let Some(image) = &self.image {
            Some(json!({"image": image}))
        } else {
            self.config_map.as_ref().map(|name| json!({"configMap": {"name": name}}))
        };
        set("source", source);
        let runtime = self.runtime.as_deref().or(upload.and_then(|u| u.runtime));
        set("runtime", runtime.map(Value::from));
        let handler = self.handler.clone().or_else(|| upload.and_then(|u| u.handler.clone()));
        set("handler", handler.map(Value::from));
        set("command", self.command.as_ref().map(|c| c.split_whitespace().map(Value::from).collect()));
        let isolation = self.isolation.map(Isolation::from).or(upload.and_then(|u| u.isolation));
        set("isolation", isolation.map(|c| json!(c)));
        set("public", self.public.map(Value::from));
        set("timeoutSeconds", self.timeout.map(Value::from));
        set("concurrency", self.concurrency.map(Value::from));
        set("serviceAccountName", self.service_account.clone().map(Value::from));
        if !self.env.is_empty() {
            set("env", Some(json!(merged(env, &self.env)?)));
        }
        if self.min.is_some() || self.max.is_some() {
            let each = [("min", self.min), ("max", self.max)].into_iter();
            set("scale", Some(each.filter_map(|(k, v)| v.map(|v| (k.to_owned(), Value::from(v)))).collect()));
        }
        Ok(())
    }

    /// Waits until the function as it now is can be called, where that was asked for.
    async fn ready(&self, session: &Session, function: &Function) -> anyhow::Result<()> {
        if !self.wait {
            return Ok(());
        }
        let name = function.name_any();
        let generation = function.metadata.generation;
        let known = |f: Option<&Function>| f.and_then(|f| settled(f, generation)).is_some();
        let patience = Duration::from_secs(self.wait_timeout);
        let waited =
            tokio::time::timeout(patience, skiff_client::wait_for(session.api::<Function>(), &name, known)).await;
        let function = waited.with_context(|| format!("timed out waiting for function {name}"))??;
        match function.as_ref().and_then(|f| settled(f, generation)) {
            Some(Ok(())) => {
                println!("function.skiff.dev/{name} ready");
                Ok(())
            }
            Some(Err(why)) => bail!("function {name} cannot be called: {why}"),
            None => bail!("function {name} is gone"),
        }
    }
}

/// Whether a function as of a generation can be called, or why it never will; nothing while that is not known.
fn settled(function: &Function, generation: Option<i64>) -> Option<Result<(), String>> {
    let status = function.status.as_ref()?;
    if status.observed_generation < generation {
        return None;
    }
    // An older revision may answer while the newest is still being made, or never will be.
    let find = |kind: &str| status.conditions.iter().find(|c| c.type_ == kind);
    let known =
        find("LatestRevisionReady").filter(|c| c.observed_generation >= generation).or_else(|| find("Ready"))?;
    match known.status.as_str() {
        "True" if known.type_ == "LatestRevisionReady" || status.latest_revision == status.latest_ready_revision => {
            Some(Ok(()))
        }
        "False" => Some(Err(format!("{}: {}", known.reason, known.message))),
        _ => None,
    }
}

/// Variables with changes.
fn merged(before: &[EnvVar], changes: &[String]) -> anyhow::Result<Vec<EnvVar>> {
    let mut all = before.to_vec();
    for change in changes {
        if let Some((name, value)) = change.split_once('=') {
            let value = Some(value.to_owned());
            match all.iter_mut().find(|v| v.name == name) {
                Some(old) => *old = EnvVar { name: name.to_owned(), value, value_from: None },
                None => all.push(EnvVar { name: name.to_owned(), value, value_from: None }),
            }
        } else if let Some(name) = change.strip_suffix('-') {
            all.retain(|v| v.name != name);
        } else {
            bail!("{change:?} is no variable: write it as KEY=VALUE, or KEY- to take it out");
        }
    }
    Ok(all)
}

impl Upload {
    fn read(name: &str, path: &Path, runtime: Option<&str>) -> anyhow::Result<Self> {
        let files = archive::read(path)?;
        let guess = runtime_of(&files);
        let runtime = if runtime.is_some() { None } else { guess };
        if let (1, Some((_, Entry::File(bytes, _)))) = (files.len(), files.first_key_value())
            && guess.is_some()
            && bytes.len() <= INLINE_MAX
            && let Ok(text) = String::from_utf8(bytes.clone())
        {
            let source = Source { inline: Some(text), ..Source::default() };
            return Ok(Self { source, parts: vec![], runtime, handler: None, isolation: None });
        }
        let packed = archive::pack(&files)?;
        let parts: Vec<Vec<u8>> = packed.chunks(PART).map(<[u8]>::to_vec).collect();
        if parts.len() > PARTS_MAX {
            bail!(
                "the code is {} MiB when packed, more than {}: leave data out with {}, or make an image",
                packed.len() >> 20,
                (PARTS_MAX * PART) >> 20,
                archive::IGNORE_FILE
            );
        }
        let sha256 = archive::digest(&packed);
        let archive = Archive { name: archive_name(name, &sha256), parts: u32::try_from(parts.len())?, sha256 };
        let source = Source { archive: Some(archive), ..Source::default() };
        Ok(Self { source, parts, runtime, handler: handler_of(&files), isolation: isolation_of(&files) })
    }
}

/// What the files look like.
fn runtime_of(files: &Files) -> Option<&'static str> {
    let has = |ends: &[&str]| files.keys().any(|n| ends.iter().any(|e| n.ends_with(e)));
    let top = |name: &str| files.contains_key(name);
    if top("requirements.txt") || top("main.py") || top("pyproject.toml") {
        Some("python")
    } else if top("package.json") || top("index.js") {
        Some("node")
    } else if has(&[".py"]) {
        Some("python")
    } else if has(&[".js", ".mjs", ".cjs"]) {
        Some("node")
    } else {
        None
    }
}

/// The class that files need: what an image must be built for runs as a pod.
fn isolation_of(files: &Files) -> Option<Isolation> {
    let packages = || {
        let Some(Entry::File(text, _)) = files.get("package.json") else { return false };
        let whole: Value = serde_json::from_slice(text).unwrap_or_default();
        whole["dependencies"].as_object().is_some_and(|d| !d.is_empty())
            && !files.keys().any(|f| f.starts_with("node_modules/"))
    };
    (files.contains_key("Dockerfile") || packages()).then_some(Isolation::Container)
}

/// The handler, where a directory has no `main.py` but one other file that can only be it.
fn handler_of(files: &Files) -> Option<String> {
    if files.contains_key("main.py") || files.contains_key("package.json") || files.contains_key("index.js") {
        return None;
    }
    let mut modules = files.keys().filter_map(|n| n.strip_suffix(".py")).filter(|n| !n.contains('/'));
    let (Some(module), None) = (modules.next(), modules.next()) else { return None };
    let Some(Entry::File(text, _)) = files.get(&format!("{module}.py")) else { return None };
    let text = String::from_utf8_lossy(text);
    let defines = |name: &str| text.lines().any(|l| l.starts_with(&format!("def {name}(")));
    ["main", module, "handler"].into_iter().find(|n| defines(n)).map(|n| format!("{module}.{n}"))
}

fn archive_name(function: &str, sha256: &str) -> String {
    // Room for the number of the part; names of functions are labels, so far shorter than names of ConfigMaps may be.
    format!("{function}-code-{}", &sha256[..12])
}

/// Stores an archive, before a function names it.
async fn put_parts(session: &Session, function: &str, upload: Option<&Upload>) -> anyhow::Result<()> {
    let Some(Upload { source: Source { archive: Some(archive), .. }, parts, .. }) = upload else { return Ok(()) };
    let labels = [(FUNCTION, function), (ARCHIVE, archive.name.as_str())];
    skiff_plugin::parts::put(session, &archive.name, parts, &labels, MANAGER).await
}

/// Gives the archive to its function, and removes those that nobody names any more.
async fn adopt_parts(session: &Session, function: &Function, upload: Option<&Upload>) -> anyhow::Result<()> {
    let Some(Upload { source: Source { archive: Some(archive), .. }, .. }) = upload else { return Ok(()) };
    let owner = function.controller_owner_ref(&());
    skiff_plugin::parts::adopt(session, &archive.name, archive.parts, owner).await?;
    let api: Api<ConfigMap> = session.api();
    let name = function.name_any();
    let revisions = session.api::<FunctionRevision>().list(&ListParams::default()).await?;
    let mine = revisions.items.into_iter().filter(|r| r.spec.function == name);
    let mut kept: BTreeSet<String> = mine.filter_map(|r| r.spec.code.source.archive).map(|a| a.name).collect();
    kept.insert(archive.name.clone());
    let all = api.list_metadata(&ListParams::default().labels(&format!("{FUNCTION}={name},{ARCHIVE}"))).await?;
    for old in all.items {
        if old.labels().get(ARCHIVE).is_some_and(|a| !kept.contains(a)) {
            api.delete(&old.name_any(), &DeleteParams::default()).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        settings: Settings,
    }

    fn spec(words: &[&str], env: &[EnvVar]) -> Value {
        let settings = Typed::try_parse_from(std::iter::once(&"x").chain(words)).unwrap().settings;
        let mut spec = json!({});
        let upload = settings.upload("add").unwrap();
        settings.write(&mut spec, upload.as_ref(), env).unwrap();
        spec
    }

    #[test]
    fn flags_become_a_spec() {
        assert_eq!(spec(&[], &[]), json!({}), "what is not named is not written");
        let before = [
            EnvVar { name: "A".into(), value: Some("1".into()), value_from: None },
            EnvVar { name: "B".into(), ..EnvVar::default() },
        ];
        let whole = spec(
            &[
                "--image",
                "i:1",
                "--env",
                "A=2",
                "-e",
                "C=x=y",
                "-e",
                "B-",
                "--public",
                "--min",
                "1",
                "--isolation",
                "container",
                "--command",
                "./run -v",
            ],
            &before,
        );
        assert_eq!(
            whole,
            json!({"source": {"image": "i:1"}, "env": [{"name": "A", "value": "2"}, {"name": "C", "value": "x=y"}],
            "public": true, "scale": {"min": 1}, "isolation": "container", "command": ["./run", "-v"]})
        );
        assert_eq!(spec(&["--public=false"], &[]), json!({"public": false}));
        assert!(merged(&[], &["A".into()]).is_err());
    }

    #[test]
    fn only_the_newest_revision_settles_it() {
        let with = |generation: i64, conditions: Value| -> Option<Result<(), String>> {
            let whole = json!({"apiVersion": "skiff.dev/v1", "kind": "Function", "metadata": {"name": "f"}, "spec": {"source": {}},
                "status": {"observedGeneration": generation, "conditions": conditions}});
            settled(&serde_json::from_value(whole).unwrap(), Some(2))
        };
        let condition = |kind: &str, status: &str| {
            json!({"type": kind, "status": status, "reason": "R", "message": "m", "observedGeneration": 2,
                "lastTransitionTime": "2026-01-01T00:00:00Z"})
        };
        let both = |latest: &str| json!([condition("Ready", "True"), condition("LatestRevisionReady", latest)]);
        assert_eq!(with(2, both("True")), Some(Ok(())));
        assert_eq!(with(1, both("True")), None, "that is about what was before");
        assert_eq!(with(2, both("Unknown")), None, "an older one answers");
        assert_eq!(with(2, both("False")), Some(Err("R: m".into())));
    }

    #[test]
    fn files_tell_runtime_and_handler() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("add.py");
        std::fs::write(&file, "def main(params):\n  return 1\n").unwrap();
        let path = file.to_str().unwrap();
        assert_eq!(
            spec(&["-p", path], &[]),
            json!({"source": {"inline": "def main(params):\n  return 1\n"}, "runtime": "python"})
        );
        assert_eq!(spec(&["-p", path, "--runtime", "python3"], &[])["runtime"], "python3");

        std::fs::write(dir.path().join("data.json"), "{}").unwrap();
        let whole = spec(&["-p", dir.path().to_str().unwrap()], &[]);
        let archive = &whole["source"]["archive"];
        assert_eq!(
            (&whole["handler"], &whole["runtime"], &archive["parts"]),
            (&json!("add.main"), &json!("python"), &json!(1))
        );
        let sha256 = archive["sha256"].as_str().unwrap();
        assert_eq!(archive["name"], format!("add-code-{}", &sha256[..12]));
        let package = |text: &str| std::fs::write(dir.path().join("package.json"), text).unwrap();
        package("{}");
        let whole = spec(&["-p", dir.path().to_str().unwrap()], &[]);
        assert_eq!((&whole["runtime"], &whole["isolation"]), (&json!("node"), &Value::Null));
        package(r#"{"dependencies": {"left-pad": "1"}}"#);
        let path = ["-p", dir.path().to_str().unwrap()];
        assert_eq!(spec(&path, &[])["isolation"], "container", "its packages are in an image");
        assert_eq!(spec(&[&path[..], &["--isolation", "process"]].concat(), &[])["isolation"], "process");
    }
}
