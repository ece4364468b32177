//! Images of functions whose code needs more than its base image has: packages, or a Dockerfile of its own.
//!
//! Built by the engine of one node, named by what goes in (`skiff.local/fn:DIGEST`), so that the same code is built once.
//! The log is kept in the ConfigMap `REVISION-build`, readable while the build runs. With a registry the image is pushed and
//! every node can have it; without one it is handed to nodes whose pods need it, where their agents take it (`process/images`), and
//! where they do not, the pods must run on the node that built it.
//!
//! Limits: no secrets for builds but those of registries; two builds at a time; steps of a Dockerfile run as the engine
//! runs them, with its own network and a bound on memory.

mod docker;
mod log;
mod logins;

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::PostParams;
use kube::{Api, Client, CustomResourceExt as _};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OnceCell, Semaphore};

use crate::api::{Code, Function, FunctionRevision};
use crate::runtime::{
    CODE, Images, Language, MAX_BYTES, NODE_RUNNER, PORT, PYTHON_RUNNER, Source, fetch_revision, hex,
};
pub use docker::Docker;
pub use log::Log;
pub use logins::{Logins, SecretName};

/// How images begin that are in no registry. No host has this name.
pub const PREFIX: &str = "skiff.local/fn:";
/// Builds at a time.
const BUILDS: usize = 2;
/// Time of one build.
const LIMIT: Duration = Duration::from_secs(900);
/// Pause between writes of a log that grows.
const WRITE: Duration = Duration::from_secs(3);
/// Lines of a log that a failed build's condition has.
const TAIL: usize = 20;
/// Characters of a condition's message.
const MESSAGE: usize = 16_384;
/// Revisions whose image is remembered.
const KNOWN: usize = 10_000;
/// Folder of the context with what is ours.
const OURS: &str = ".skiff";

/// Settings of builds.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Images that code is built on.
    pub images: Images,
    /// The node whose engine builds.
    pub node: Option<String>,
    /// Where images are pushed to, `HOST[:PORT][/PATH]`; none to leave them on the node.
    pub registry: Option<String>,
    /// Secret with the names and passwords of registries.
    pub secret: Option<SecretName>,
    /// Further arguments of pip, such as `--find-links`.
    pub pip_args: Vec<String>,
    /// Further arguments of npm.
    pub npm_args: Vec<String>,
}

/// Where packages come from and images go to, as the owner of a cluster says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supplies {
    /// Registry that images are pushed to, `HOST[:PORT][/PATH]`; none to leave them on the node that built them.
    pub registry: Option<String>,
    /// Secret of type `kubernetes.io/dockerconfigjson` with names and passwords, for pushing there and for the images that builds
    /// begin with; none if nobody asks for any.
    pub registry_secret: Option<SecretName>,
    /// Index of Python packages; none for that of pip itself.
    pub pip_index: Option<http::Uri>,
    /// Registry of Node.js packages; none for that of npm itself.
    pub npm_registry: Option<http::Uri>,
    /// The engine's network that the steps of builds are in; none for its default.
    pub network: Option<String>,
}

impl Supplies {
    /// Arguments of pip. An index without TLS was chosen by the owner, so pip is to believe it.
    #[must_use]
    pub fn pip_args(&self) -> Vec<String> {
        let Some(index) = &self.pip_index else { return vec![] };
        let plain = index.host().filter(|_| index.scheme_str() == Some("http"));
        let trusted = plain.map(|host| ["--trusted-host".to_owned(), host.to_owned()]);
        ["--index-url".to_owned(), index.to_string()].into_iter().chain(trusted.into_iter().flatten()).collect()
    }

    /// Settings of builds by the engine of `node`.
    #[must_use]
    pub fn build(&self, images: Images, node: &str) -> Config {
        let npm = self.npm_registry.iter().flat_map(|r| ["--registry".to_owned(), r.to_string()]);
        Config {
            images,
            node: Some(node.to_owned()),
            registry: self.registry.clone(),
            secret: self.registry_secret.clone(),
            pip_args: self.pip_args(),
            npm_args: npm.collect(),
        }
    }
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The code or what it needs is at fault; with the last lines of the log.
    #[error("the build failed:\n{log_tail}")]
    Failed {
        /// Last lines of the log.
        log_tail: String,
    },
    /// The engine or the node failed; trying again may help.
    #[error("the build could not be made")]
    Other(#[from] anyhow::Error),
}

/// What makes images.
#[async_trait]
pub trait Engine: Send + Sync + 'static {
    /// Whether it has the image.
    async fn has(&self, image: &str) -> anyhow::Result<bool>;
    /// Builds an image from a gzipped tar, by the Dockerfile at the path in it. Says everything to the log; an error of the
    /// build itself is [`BuildError::Failed`], whose text the builder fills in.
    async fn build(
        &self,
        image: &str,
        dockerfile: &str,
        context: Bytes,
        cluster: &str,
        logins: &Logins,
        log: &Log,
    ) -> Result<(), BuildError>;
    /// Names of the images that begin with [`PREFIX`] and were built for this cluster.
    async fn ours(&self, cluster: &str) -> anyhow::Result<Vec<String>>;
    /// Deletes an image that no container has. Whether it is gone.
    async fn remove(&self, image: &str) -> anyhow::Result<bool>;
    /// The archive of an image, as another engine takes it.
    fn save(&self, image: &str) -> BoxStream<'static, anyhow::Result<Bytes>>;
    /// Pushes it to its registry.
    async fn push(&self, image: &str, logins: &Logins, log: &Log) -> Result<(), BuildError>;
}

/// How code becomes an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The Dockerfile; none if the code has its own.
    dockerfile: Option<String>,
    /// The runner that goes with it.
    runner: Option<(&'static str, &'static str)>,
}

impl Plan {
    /// What must be built, if anything. `process` says that instances are processes: those have their packages from the node.
    ///
    /// Only archives are built: one file or a ConfigMap has no packages.
    #[must_use]
    pub fn of(code: &Code, source: &Source, config: &Config, process: bool) -> Option<Self> {
        let Source::Archive(_) = source else { return None };
        if source.file("Dockerfile").is_some() {
            return Some(Self { dockerfile: None, runner: None });
        }
        let language = Language::of(code).ok().filter(|_| !process)?;
        // Quoted, because a step is a line for the shell.
        let joined =
            |args: &[String]| args.iter().map(|a| format!(" '{}'", a.replace('\'', "'\\''"))).collect::<String>();
        let (install, file, text, program) = match language {
            Language::Python => {
                let wanted = source.file("requirements.txt")?;
                let any = String::from_utf8_lossy(&wanted)
                    .lines()
                    .any(|l| !l.trim().is_empty() && !l.trim().starts_with('#'));
                let pip = "python3 -m pip install --no-cache-dir --no-input --disable-pip-version-check --root-user-action=ignore";
                let install = format!(
                    "{pip} --target {CODE}/site-packages -r {CODE}/requirements.txt{}",
                    joined(&config.pip_args)
                );
                (any.then_some(install)?, "runner.py", PYTHON_RUNNER, "python3")
            }
            Language::Node => {
                let package: serde_json::Value = serde_json::from_slice(&source.file("package.json")?).ok()?;
                let any = package.get("dependencies").and_then(|d| d.as_object()).is_some_and(|d| !d.is_empty());
                let install =
                    format!("npm install --omit=dev --no-audit --no-fund --prefix {CODE}{}", joined(&config.npm_args));
                (any.then_some(install)?, "runner.js", NODE_RUNNER, "node")
            }
            Language::Http => return None,
        };
        let dockerfile = format!(
            "FROM {}\nCOPY . {CODE}\nRUN {install} && mv {CODE}/{OURS} /skiff\nWORKDIR {CODE}\nENV PORT={PORT} SKIFF_CODE={CODE}\n\
             USER 65534\nCMD [\"{program}\", \"/skiff/{file}\"]\n",
            config.images.of(language),
        );
        Some(Self { dockerfile: Some(dockerfile), runner: Some((file, text)) })
    }

    fn image(&self, archive: &[u8], registry: Option<&str>) -> String {
        let mut hash = Sha256::new();
        for part in [self.dockerfile.as_deref().unwrap_or_default(), self.runner.map_or("", |(_, text)| text)] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        hash.update(archive);
        let digest = &hex(&hash.finalize())[..32];
        registry.map_or_else(|| format!("{PREFIX}{digest}"), |registry| format!("{registry}/fn:{digest}"))
    }

    /// The code with what is ours beside it, and the path of the Dockerfile.
    fn context(&self, archive: &[u8]) -> std::io::Result<(Bytes, String)> {
        let Some(dockerfile) = &self.dockerfile else {
            return Ok((Bytes::copy_from_slice(archive), "Dockerfile".to_owned()));
        };
        let mut out = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        let mut given = tar::Archive::new(flate2::read::GzDecoder::new(archive).take(MAX_BYTES));
        for entry in given.entries()? {
            let entry = entry?;
            let path = entry.path()?.into_owned();
            // Not theirs to say.
            if path.components().find(|c| *c != std::path::Component::CurDir).is_some_and(|c| c.as_os_str() == OURS) {
                continue;
            }
            let (mut header, link) = (entry.header().clone(), entry.link_name()?.map(|l| l.into_owned()));
            match link {
                Some(link) => out.append_link(&mut header, path, link)?,
                None => out.append_data(&mut header, path, entry)?,
            }
        }
        let runner = self.runner.map(|(name, text)| (name, text.to_owned()));
        for (name, text) in runner.into_iter().chain([("Dockerfile", dockerfile.clone())]) {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            out.append_data(&mut header, format!("{OURS}/{name}"), text.as_bytes())?;
        }
        Ok((out.into_inner()?.finish()?.into(), format!("{OURS}/Dockerfile")))
    }
}

/// Makes images of revisions.
pub struct Builder {
    client: Client,
    engine: Arc<dyn Engine>,
    config: Config,
    turns: Semaphore,
    /// By the revision's uid: its image, or that it needs none.
    known: Mutex<HashMap<String, Arc<OnceCell<Option<String>>>>>,
    cluster: OnceCell<String>,
}

impl Builder {
    /// With what it needs.
    #[must_use]
    pub fn new(client: Client, engine: Arc<dyn Engine>, config: Config) -> Self {
        Self {
            client,
            engine,
            config,
            turns: Semaphore::new(BUILDS),
            known: Mutex::default(),
            cluster: OnceCell::new(),
        }
    }

    /// What must be built for a revision, if anything; see [`Plan::of`].
    #[must_use]
    pub fn plan(&self, code: &Code, source: &Source, process: bool) -> Option<Plan> {
        Plan::of(code, source, &self.config, process)
    }

    /// The node that pods must run on, because only its engine has the images.
    #[must_use]
    pub fn only_node(&self) -> Option<&str> {
        self.config.node.as_deref().filter(|_| self.config.registry.is_none())
    }

    /// The image for the pods of a revision, built if it must be; none if its code needs no build. What came of it is written
    /// to the revision: `status.image` and the condition `BuildSucceeded`. Dropping the future does not end the build.
    ///
    /// # Errors
    /// As of [`Builder::build`]. A failed build is tried again by the next call.
    pub async fn image(self: &Arc<Self>, revision: &FunctionRevision) -> Result<Option<String>, BuildError> {
        let cell = {
            let mut known = self.known.lock();
            if known.len() >= KNOWN {
                known.clear();
            }
            known.entry(revision.metadata.uid.clone().unwrap_or_default()).or_default().clone()
        };
        if let Some(image) = cell.get() {
            return Ok(image.clone());
        }
        let (this, revision) = (Arc::clone(self), revision.clone());
        let work = tokio::spawn(async move { cell.get_or_try_init(|| this.decide(&revision)).await.cloned() });
        work.await.map_err(anyhow::Error::from)?
    }

    /// The archive of an image that was built here and is in no registry.
    ///
    /// # Errors
    /// When the engine does not have it any more: then it is built anew for the next pod.
    pub async fn archive(&self, image: &str) -> anyhow::Result<BoxStream<'static, anyhow::Result<Bytes>>> {
        anyhow::ensure!(image.starts_with(PREFIX), "{image} is in a registry");
        if !self.engine.has(image).await? {
            self.known.lock().clear();
            anyhow::bail!("{image} is not on the node that built it any more");
        }
        Ok(self.engine.save(image))
    }

    /// What this cluster is called on engines: the uid of its definition of functions.
    ///
    /// # Errors
    /// When the API does not answer.
    pub async fn cluster(&self) -> anyhow::Result<&str> {
        let read = async {
            let all = Api::<CustomResourceDefinition>::all(self.client.clone());
            Ok(all.get_metadata(Function::crd_name()).await?.metadata.uid.unwrap_or_default())
        };
        self.cluster.get_or_try_init(|| read).await.map(String::as_str)
    }

    /// Deletes images that are in no registry and that no revision has, unless a container has them.
    ///
    /// # Errors
    /// When the engine refuses.
    pub async fn tidy(&self, needed: &HashSet<&str>) -> anyhow::Result<()> {
        // A build that is under way may be about to say that it has one of these: nothing is built meanwhile.
        let _turns = self.turns.acquire_many(BUILDS as u32).await?;
        let mut gone = 0;
        for image in self.engine.ours(self.cluster().await?).await? {
            if !needed.contains(image.as_str()) && self.engine.remove(&image).await? {
                gone += 1;
            }
        }
        if gone > 0 {
            tracing::info!(images = gone, "images of functions that no revision has were deleted");
        }
        Ok(())
    }

    async fn decide(&self, revision: &FunctionRevision) -> Result<Option<String>, BuildError> {
        let source = fetch_revision(&self.client, revision).await.map_err(|e| match e.is_permanent() {
            true => BuildError::Failed { log_tail: e.to_string() },
            false => BuildError::Other(e.into()),
        })?;
        let Some(plan) = self.plan(&revision.spec.code, &source, false) else { return Ok(None) };
        let result = self.build(revision, &source, &plan).await;
        let written = match &result {
            Ok(image) => self.tell(revision, "True", "Built", image, Some(image)).await,
            Err(BuildError::Failed { log_tail }) => self.tell(revision, "False", "BuildFailed", log_tail, None).await,
            Err(BuildError::Other(error)) => {
                self.tell(revision, "Unknown", "EngineFailed", &format!("{error:#}"), None).await
            }
        };
        if let Err(error) = written {
            tracing::warn!(%error, "the outcome of a build is not written to its revision");
        }
        result.map(Some)
    }

    /// Writes the outcome; a conflict is another's write, so it is read again.
    async fn tell(
        &self,
        revision: &FunctionRevision,
        status: &str,
        reason: &str,
        message: &str,
        image: Option<&String>,
    ) -> kube::Result<()> {
        let namespace = revision.metadata.namespace.as_deref().unwrap_or("default");
        let api = Api::<FunctionRevision>::namespaced(self.client.clone(), namespace);
        let name = revision.metadata.name.as_deref().unwrap_or_default();
        for last in [false, false, false, true] {
            let Some(mut now) = api.get_opt(name).await? else { return Ok(()) };
            let known = now.status.get_or_insert_default();
            known.conditions.retain(|c| c.type_ != "BuildSucceeded");
            known.conditions.push(Condition {
                type_: "BuildSucceeded".to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message: message.chars().take(MESSAGE).collect(),
                last_transition_time: Time(jiff::Timestamp::now()),
                observed_generation: None,
            });
            if image.is_some() {
                known.image = image.cloned();
            }
            match api.replace_status(name, &PostParams::default(), &now).await {
                Err(kube::Error::Api(e)) if e.code == 409 && !last => {}
                other => return other.map(|_| ()),
            }
        }
        Ok(())
    }

    /// Builds the image of a revision, unless the engine has it, and gives its name. Nothing is left behind when the future is
    /// dropped but what the engine has cached.
    ///
    /// # Errors
    /// When the build fails; its log is in the ConfigMap then too.
    pub async fn build(&self, revision: &FunctionRevision, source: &Source, plan: &Plan) -> Result<String, BuildError> {
        let Source::Archive(archive) = source else { return Err(anyhow::anyhow!("only an archive is built").into()) };
        let image = plan.image(archive, self.config.registry.as_deref());
        let _turn = self.turns.acquire().await.map_err(anyhow::Error::from)?;
        let built = self.engine.has(&image).await?;
        if built && self.config.registry.is_none() {
            return Ok(image);
        }
        let log = Log::default();
        let work = async {
            let logins = match &self.config.secret {
                Some(secret) => Logins::read(&self.client, secret).await?,
                None => Logins::default(),
            };
            if !built {
                let (plan, archive) = (plan.clone(), archive.clone());
                let (context, dockerfile) = tokio::task::spawn_blocking(move || plan.context(&archive))
                    .await
                    .map_err(anyhow::Error::from)?
                    .map_err(anyhow::Error::from)?;
                // Without a name it is not deleted by us; that hinders no build.
                let cluster = self.cluster().await.unwrap_or_default();
                self.engine.build(&image, &dockerfile, context, cluster, &logins, &log).await?;
            }
            // Also what was built before: perhaps it was not pushed then.
            if self.config.registry.is_some() {
                self.engine.push(&image, &logins, &log).await?;
            }
            Ok(())
        };
        let mut work = std::pin::pin!(tokio::time::timeout(LIMIT, work));
        let mut written = 0;
        let result = loop {
            tokio::select! {
                result = &mut work => break result,
                () = tokio::time::sleep(WRITE), if !built => written = self.keep(revision, &log, written).await,
            }
        };
        let result = result.unwrap_or_else(|_| {
            log.line(&format!("the build took longer than {} s", LIMIT.as_secs()));
            Err(BuildError::Failed { log_tail: String::new() })
        });
        if let Err(BuildError::Other(error)) = &result {
            log.line(&format!("{error:#}"));
        }
        // What was said when it was built stays.
        if !built || result.is_err() {
            self.keep(revision, &log, written).await;
        }
        match result {
            Ok(()) => Ok(image.clone()),
            Err(BuildError::Failed { .. }) => Err(BuildError::Failed { log_tail: log.tail(TAIL) }),
            Err(other) => Err(other),
        }
    }

    /// Writes the log if it has grown. That it cannot be written hinders no build.
    async fn keep(&self, revision: &FunctionRevision, log: &Log, written: u64) -> u64 {
        let size = log.size();
        if size != written
            && let Err(error) = log.write(&self.client, revision).await
        {
            tracing::debug!(%error, "the log of a build is not written");
            return written;
        }
        size
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn archive(files: &[(&str, &str)]) -> Source {
        let mut out = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        for (path, text) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o644);
            out.append_data(&mut header, path, text.as_bytes()).unwrap();
        }
        Source::Archive(out.into_inner().unwrap().finish().unwrap().into())
    }

    fn code(runtime: &str) -> Code {
        Code { runtime: Some(runtime.to_owned()), ..Code::default() }
    }

    #[test]
    fn only_what_needs_it_is_built() {
        // (files, runtime, processes, built, what the Dockerfile has; `own` for the code's)
        #[allow(clippy::type_complexity)]
        let cases: &[(&[(&str, &str)], &str, bool, Option<&str>)] = &[
            (&[("main.py", "")], "python", false, None),
            (&[("main.py", ""), ("requirements.txt", "# none\n\n")], "python", false, None),
            (&[("main.py", ""), ("requirements.txt", "six==1\n")], "python", false, Some("pip install")),
            (&[("main.py", ""), ("requirements.txt", "six==1\n")], "python", true, None),
            (&[("main.js", ""), ("package.json", "{\"dependencies\": {}}")], "node", false, None),
            (
                &[("main.js", ""), ("package.json", "{\"dependencies\": {\"a\": \"1\"}}")],
                "node",
                false,
                Some("npm install"),
            ),
            (&[("Dockerfile", "FROM x")], "http", false, Some("own")),
            (&[("Dockerfile", "FROM x")], "python", true, Some("own")),
        ];
        for (files, runtime, process, built) in cases {
            let plan = Plan::of(&code(runtime), &archive(files), &Config::default(), *process);
            let text = plan.map(|p| p.dockerfile.unwrap_or("own".to_owned()));
            match built {
                None => assert_eq!(text, None, "{files:?}"),
                Some(part) => assert!(text.as_deref().unwrap_or_default().contains(part), "{files:?}: {text:?}"),
            }
        }
        assert_eq!(Plan::of(&code("python"), &Source::Files(Vec::new()), &Config::default(), false), None);
    }

    #[test]
    fn supplies_are_arguments() {
        let uri = |s: &str| Some(s.parse().unwrap());
        let plain = Supplies { pip_index: uri("http://pip:8000/simple?a=1&b=2"), ..Supplies::default() };
        assert_eq!(plain.pip_args(), ["--index-url", "http://pip:8000/simple?a=1&b=2", "--trusted-host", "pip"]);
        let safe = Supplies { pip_index: uri("https://pip/simple"), npm_registry: uri("http://npm/"), ..plain };
        assert_eq!(safe.pip_args(), ["--index-url", "https://pip/simple"]);
        let config = safe.build(Images::default(), "n");
        assert_eq!(config.npm_args, ["--registry", "http://npm/"]);
        let source = archive(&[("package.json", "{\"dependencies\": {\"a\": \"1\"}}")]);
        let plan = Plan::of(&code("node"), &source, &config, false).unwrap();
        assert!(plan.dockerfile.unwrap().contains("--prefix /function '--registry' 'http://npm/' && "));
    }

    #[test]
    fn the_name_is_what_goes_in_and_ours_wins() {
        let files = [("./.skiff/runner.py", "theirs"), ("main.py", "x"), ("requirements.txt", "six")];
        let source = archive(&files);
        let Source::Archive(data) = &source else { panic!() };
        let plan = |config: &Config| Plan::of(&code("python"), &source, config, false).unwrap();
        let one = plan(&Config::default());
        let other = plan(&Config { pip_args: vec!["--no-index".to_owned()], ..Config::default() });
        assert_eq!(one.image(data, None), one.image(data, None));
        assert_ne!(one.image(data, None), other.image(data, None));
        assert!(one.image(data, Some("reg:5000/x")).starts_with("reg:5000/x/fn:"));
        let (context, dockerfile) = one.context(data).unwrap();
        assert_eq!(dockerfile, ".skiff/Dockerfile");
        let context = Source::Archive(context);
        assert_eq!(context.file(".skiff/runner.py").unwrap(), PYTHON_RUNNER);
        assert_eq!(context.file("main.py").unwrap(), "x");
    }
}
