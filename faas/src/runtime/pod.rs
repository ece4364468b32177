//! What a pod needs so that it runs a revision.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{
    ConfigMap, ConfigMapProjection, ConfigMapVolumeSource, Container, EmptyDirVolumeSource, EnvVar, KeyToPath,
    ProjectedVolumeSource, Volume, VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource as _;

use super::{CODE, Language, NODE_RUNNER, PORT, PYTHON_RUNNER, Source, SourceError, environment};
use crate::api::{Archive, FUNCTION, FunctionRevision, REVISION};

/// Most bytes of a ConfigMap's values.
const MAX_MAP: usize = 1 << 20;
/// Where a pod has the runner.
const RUNNER: &str = "/skiff";
/// Key of the runner in the ConfigMap of a revision; all others are the code.
pub(super) const RUNNER_KEY: &str = ".skiff-runner";

/// The images that code without one runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// With `python3`, and `sh`, `tar`, `sha256sum` for uploaded directories.
    pub python: String,
    /// The same with `node`.
    pub node: String,
    /// The same with nothing else.
    pub http: String,
}

impl Default for Images {
    /// Those that `hack/images.sh` makes.
    fn default() -> Self {
        Self {
            python: "skiff/python:1".to_owned(),
            node: "skiff/node:1".to_owned(),
            http: "skiff/busybox:1".to_owned(),
        }
    }
}

impl Images {
    /// The image for a language.
    #[must_use]
    pub fn of(&self, language: Language) -> &str {
        match language {
            Language::Python => &self.python,
            Language::Node => &self.node,
            Language::Http => &self.http,
        }
    }
}

/// What goes into a pod beside what the function itself says of resources, nodes and accounts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Launch {
    /// The image.
    pub image: String,
    /// The program and its arguments; none for what the image says.
    pub command: Option<Vec<String>>,
    /// Directory the program begins in; none for the image's.
    pub working_dir: Option<String>,
    /// The whole environment.
    pub env: Vec<EnvVar>,
    /// Volumes of the pod.
    pub volumes: Vec<Volume>,
    /// Where the container has them.
    pub mounts: Vec<VolumeMount>,
    /// Containers that run first.
    pub init: Vec<Container>,
    /// A ConfigMap that must be there before the pod: owned by the revision, never changed.
    pub config_map: Option<ConfigMap>,
}

/// What a pod of the revision is made of. `source` is the code as [`super::fetch`] gave it when the revision was made; for an
/// archive or an image its content is not looked at.
///
/// # Errors
/// When the runtime is not known, or the code does not fit into a ConfigMap.
pub fn pod(revision: &FunctionRevision, source: &Source, images: &Images) -> Result<Launch, SourceError> {
    let code = &revision.spec.code;
    let language = Language::of(code)?;
    let built = revision.status.as_ref().and_then(|s| s.image.clone()).or_else(|| code.source.image.clone());
    let mut env: Vec<EnvVar> = environment(revision)
        .into_iter()
        .chain([("PORT".to_owned(), PORT.to_string()), ("SKIFF_CODE".to_owned(), CODE.to_owned())])
        .map(|(name, value)| EnvVar { name, value: Some(value), value_from: None })
        .collect();
    env.extend(code.env.iter().cloned());
    if let Some(image) = built {
        let command = (!code.command.is_empty()).then(|| code.command.clone());
        return Ok(Launch { image, command, env, ..Launch::default() });
    }
    let runner = match language {
        Language::Python => Some(("runner.py", "python3", PYTHON_RUNNER)),
        Language::Node => Some(("runner.js", "node", NODE_RUNNER)),
        Language::Http => None,
    };
    let command = match runner {
        Some((file, program, _)) => vec![program.to_owned(), format!("{RUNNER}/{file}")],
        None => program(&code.command),
    };
    let mut launch = Launch {
        image: images.of(language).to_owned(),
        command: Some(command),
        working_dir: Some(CODE.to_owned()),
        env,
        mounts: vec![mount("skiff-code", CODE)],
        ..Launch::default()
    };
    let mut data = BTreeMap::new();
    let mut own = |launch: &mut Launch, volume: &str, files: Vec<(String, String, ByteString)>| {
        let items = files
            .iter()
            .map(|(key, path, _)| KeyToPath { key: key.clone(), path: path.clone(), ..KeyToPath::default() })
            .collect();
        data.extend(files.into_iter().map(|(key, _, content)| (key, content)));
        let map = ConfigMapVolumeSource {
            name: map_name(revision),
            items: Some(items),
            default_mode: Some(0o755),
            ..Default::default()
        };
        launch.volumes.push(Volume { name: volume.to_owned(), config_map: Some(map), ..Volume::default() });
    };
    if let Some((file, _, text)) = runner {
        own(&mut launch, "skiff-runner", vec![(RUNNER_KEY.to_owned(), file.to_owned(), ByteString(text.into()))]);
        launch.mounts.push(mount("skiff-runner", RUNNER));
    }
    if let Source::Files(files) = source {
        // These come from ConfigMaps or are inline: their names are keys.
        let of = |f: &super::File| (f.path.clone(), f.path.clone(), ByteString(f.content.to_vec()));
        own(&mut launch, "skiff-code", files.iter().map(of).collect());
    } else if let Some(archive) = &code.source.archive {
        launch.volumes.push(Volume {
            name: "skiff-code".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        });
        launch.volumes.push(parts(archive));
        launch.init.push(unpacker(archive, &launch.image));
    }
    let size: usize = data.values().map(|v| v.0.len()).sum();
    if size > MAX_MAP {
        return Err(SourceError::TooLarge(format!(
            "{size} bytes with the runner; more than {MAX_MAP} need an archive or an image"
        )));
    }
    launch.config_map = (!data.is_empty()).then(|| ConfigMap {
        metadata: ObjectMeta {
            name: Some(map_name(revision)),
            namespace: revision.metadata.namespace.clone(),
            labels: Some(BTreeMap::from([
                (FUNCTION.to_owned(), revision.spec.function.clone()),
                (REVISION.to_owned(), revision.metadata.name.clone().unwrap_or_default()),
            ])),
            owner_references: revision.controller_owner_ref(&()).map(|o| vec![o]),
            ..ObjectMeta::default()
        },
        binary_data: Some(data),
        immutable: Some(true),
        data: None,
    });
    Ok(launch)
}

/// Name of the ConfigMap with a revision's code.
pub(super) fn map_name(revision: &FunctionRevision) -> String {
    format!("{}-code", revision.metadata.name.as_deref().unwrap_or_default())
}

fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

/// The command of runtime `http`: what is a path is one of the code's.
fn program(command: &[String]) -> Vec<String> {
    let mut command = command.to_vec();
    if let Some(first) = command.first_mut()
        && !first.starts_with('/')
        && first.contains('/')
    {
        *first = format!("{CODE}/{}", first.trim_start_matches("./"));
    }
    command
}

fn parts(archive: &Archive) -> Volume {
    let part = |number: u32| VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: format!("{}-{number}", archive.name),
            items: Some(vec![KeyToPath { key: "data".to_owned(), path: number.to_string(), ..KeyToPath::default() }]),
            optional: None,
        }),
        ..VolumeProjection::default()
    };
    let sources = (0..archive.parts).map(part).collect();
    let projected = ProjectedVolumeSource { sources: Some(sources), ..ProjectedVolumeSource::default() };
    Volume { name: "skiff-archive".to_owned(), projected: Some(projected), ..Volume::default() }
}

/// Checks and unpacks an archive before the runner begins.
fn unpacker(archive: &Archive, image: &str) -> Container {
    let files: Vec<String> = (0..archive.parts).map(|n| format!("/skiff-archive/{n}")).collect();
    let files = files.join(" ");
    // `sha256` is hexadecimal by its schema, so nothing of the caller's gets into the script.
    let script = format!(
        "set -e\nfound=$(cat {files} | sha256sum | cut -d' ' -f1)\n\
         [ \"$found\" = {sha} ] || {{ echo \"the archive's SHA-256 is $found, not {sha}\" >&2; exit 1; }}\n\
         cat {files} | tar -xzf - -C {CODE}\n",
        sha = archive.sha256,
    );
    Container {
        name: "skiff-unpack".to_owned(),
        image: Some(image.to_owned()),
        command: Some(vec!["sh".to_owned(), "-c".to_owned(), script]),
        volume_mounts: Some(vec![mount("skiff-archive", "/skiff-archive"), mount("skiff-code", CODE)]),
        ..Container::default()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::File;
    use super::*;
    use crate::api::{Code, FunctionRevisionSpec, RevisionStatus, Source as Where};

    fn revision(code: Code) -> FunctionRevision {
        let mut revision = FunctionRevision::new(
            "add-00001",
            FunctionRevisionSpec { function: "add".to_owned(), code, ..Default::default() },
        );
        revision.metadata.namespace = Some("ns".to_owned());
        revision.metadata.uid = Some("u".to_owned());
        revision
    }

    #[test]
    fn files_of_the_code_and_the_runner_are_in_one_map() {
        let revision = revision(Code::default());
        let source = Source::Files(vec![File { path: "a.py".to_owned(), content: "x".into() }]);
        let launch = pod(&revision, &source, &Images::default()).unwrap();
        assert_eq!(launch.image, "skiff/python:1");
        assert_eq!(launch.command.unwrap(), ["python3", "/skiff/runner.py"]);
        let map = launch.config_map.unwrap();
        assert_eq!(map.binary_data.unwrap().keys().collect::<Vec<_>>(), [".skiff-runner", "a.py"]);
        assert_eq!(map.metadata.owner_references.unwrap()[0].name, "add-00001");
        let code = launch.volumes.iter().find(|v| v.name == "skiff-code").unwrap().config_map.clone().unwrap();
        assert_eq!(code.items.unwrap()[0].path, "a.py");
        assert_eq!(launch.mounts.len(), 2);
    }

    #[test]
    fn an_image_runs_by_itself() {
        let mut revision =
            revision(Code { source: Where { image: Some("x:1".to_owned()), ..Where::default() }, ..Code::default() });
        let launch = pod(&revision, &Source::Image("x:1".to_owned()), &Images::default()).unwrap();
        assert_eq!((launch.image.as_str(), launch.command, launch.config_map), ("x:1", None, None));
        revision.status = Some(RevisionStatus { image: Some("built".to_owned()), ..RevisionStatus::default() });
        let launch = pod(&revision, &Source::Image("x:1".to_owned()), &Images::default()).unwrap();
        assert_eq!(launch.image, "built");
        let env = |name: &str| launch.env.iter().find(|e| e.name == name).unwrap().value.clone().unwrap();
        assert_eq!(
            (env("PORT"), env("SKIFF_NAMESPACE"), env("SKIFF_REVISION")),
            ("8080".into(), "ns".into(), "add-00001".into())
        );
    }

    #[test]
    fn an_archive_is_unpacked_first() {
        let archive = Archive { name: "up".to_owned(), parts: 2, sha256: "ab".repeat(32) };
        let source = Where { archive: Some(archive), ..Where::default() };
        let code = Code {
            source,
            runtime: Some("http".to_owned()),
            command: vec!["./bin/serve".to_owned()],
            ..Code::default()
        };
        let launch = pod(&revision(code), &Source::Archive(bytes::Bytes::new()), &Images::default()).unwrap();
        assert_eq!(launch.command.unwrap(), ["/function/bin/serve"]);
        assert!(
            launch.init[0].command.as_ref().unwrap()[2]
                .contains("cat /skiff-archive/0 /skiff-archive/1 | tar -xzf - -C /function")
        );
        assert!(launch.config_map.is_none());
    }

    #[test]
    fn what_does_not_fit_is_said() {
        let source = Source::Files(vec![File { path: "a".to_owned(), content: vec![0; MAX_MAP].into() }]);
        assert!(matches!(pod(&revision(Code::default()), &source, &Images::default()), Err(SourceError::TooLarge(_))));
    }
}
