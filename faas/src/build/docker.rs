//! Builds by Docker Engine.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Context as _;
use async_trait::async_trait;
use bollard::query_parameters::{
    BuildImageOptionsBuilder, ListImagesOptionsBuilder, PushImageOptionsBuilder, RemoveImageOptions,
};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;

use super::{BuildError, Engine, Log, Logins, PREFIX};

/// Seconds an answer of the engine may take; a build's own answer is a stream and may take longer.
const ANSWER: u64 = 120;
/// Seconds that its answer to an image it is given may take: it comes when all of that is there.
const LOADED: u64 = 600;
/// Label of images: the cluster that they were built for.
const CLUSTER: &str = "skiff.dev/cluster";
/// Bytes of memory for a step.
const MEMORY: i32 = 2047 << 20;

/// A connection to the engine.
#[derive(Debug)]
pub struct Docker {
    client: bollard::Docker,
    network: Option<String>,
}

impl Docker {
    /// Connects. `network` is the engine's network that steps of builds are in; none for its default.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn connect(socket: &Path, network: Option<String>) -> anyhow::Result<Self> {
        Self::within(socket, network, ANSWER).await
    }

    /// Connects, for images that are handed over.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn patient(socket: &Path) -> anyhow::Result<Self> {
        Self::within(socket, None, LOADED).await
    }

    async fn within(socket: &Path, network: Option<String>, seconds: u64) -> anyhow::Result<Self> {
        let path = socket.to_string_lossy();
        let client = bollard::Docker::connect_with_unix(&path, seconds, bollard::API_DEFAULT_VERSION)?;
        Ok(Self { client: client.negotiate_version().await.context("the engine does not answer")?, network })
    }
}

impl Docker {
    /// Names of the images that are in no registry and were built for this cluster: an engine may be that of several.
    ///
    /// # Errors
    /// When the engine does not say.
    pub async fn ours(&self, cluster: &str) -> anyhow::Result<Vec<String>> {
        let (name, label) = (PREFIX.trim_end_matches(':'), format!("{CLUSTER}={cluster}"));
        let filters = HashMap::from([("reference", vec![name]), ("label", vec![label.as_str()])]);
        let options = ListImagesOptionsBuilder::new().filters(&filters).build();
        let all =
            self.client.list_images(Some(options)).await.context("the engine does not say which images it has")?;
        Ok(all.into_iter().flat_map(|image| image.repo_tags).filter(|tag| tag.starts_with(PREFIX)).collect())
    }

    /// Deletes an image, unless a container has it or it is not there. Whether it is gone.
    ///
    /// # Errors
    /// When the engine refuses for another reason.
    pub async fn remove(&self, image: &str) -> anyhow::Result<bool> {
        match self.client.remove_image(image, None::<RemoveImageOptions>, None).await {
            Ok(_) => Ok(true),
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(true),
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 409, .. }) => Ok(false),
            Err(error) => Err(error).context(format!("the engine does not delete {image}")),
        }
    }

    /// Takes an archive of images.
    ///
    /// # Errors
    /// When the archive breaks off, or the engine does not take it.
    pub async fn load(&self, archive: BoxStream<'static, std::io::Result<Bytes>>) -> anyhow::Result<()> {
        let options = bollard::query_parameters::ImportImageOptionsBuilder::new().quiet(true).build();
        let mut said = self.client.import_image(options, bollard::body_try_stream(archive), None);
        while let Some(part) = said.next().await {
            let part = part.context("the engine does not take the image")?;
            if let Some(error) = part.error_detail {
                anyhow::bail!("the engine does not take the image: {}", error.message.unwrap_or_default());
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Engine for Docker {
    async fn has(&self, image: &str) -> anyhow::Result<bool> {
        match self.client.inspect_image(image).await {
            Ok(_) => Ok(true),
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => Ok(false),
            Err(error) => Err(error).context("the engine does not say whether it has an image"),
        }
    }

    async fn build(
        &self,
        image: &str,
        dockerfile: &str,
        context: Bytes,
        cluster: &str,
        logins: &Logins,
        log: &Log,
    ) -> Result<(), BuildError> {
        let labels = HashMap::from([(CLUSTER, cluster)]);
        let mut options = BuildImageOptionsBuilder::new()
            .dockerfile(dockerfile)
            .t(image)
            .labels(&labels)
            .rm(true)
            .forcerm(true)
            .memory(MEMORY)
            .memswap(MEMORY);
        if let Some(network) = &self.network {
            options = options.networkmode(network);
        }
        let mut said = self.client.build_image(options.build(), logins.all(), Some(bollard::body_full(context)));
        while let Some(part) = said.next().await {
            let part = part.map_err(|e| failed(e, log))?;
            if let Some(text) = part.stream.or(part.status.map(|s| s + "\n")) {
                log.say(&text);
            }
            if let Some(error) = part.error_detail {
                log.line(error.message.as_deref().unwrap_or("the build failed"));
                return Err(BuildError::Failed { log_tail: String::new() });
            }
        }
        Ok(())
    }

    async fn ours(&self, cluster: &str) -> anyhow::Result<Vec<String>> {
        Self::ours(self, cluster).await
    }

    async fn remove(&self, image: &str) -> anyhow::Result<bool> {
        Self::remove(self, image).await
    }

    fn save(&self, image: &str) -> BoxStream<'static, anyhow::Result<Bytes>> {
        // The stream is the engine's own; it is given a connection of its own that lives as long as it.
        let (client, image) = (self.client.clone(), image.to_owned());
        let (send, receive) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            let mut pieces = std::pin::pin!(client.export_image(&image));
            while let Some(piece) = pieces.next().await {
                // Whoever reads may be gone.
                if send.send(piece.context("the engine broke off")).await.is_err() {
                    return;
                }
            }
        });
        futures::stream::unfold(receive, |mut r| async { Some((r.recv().await?, r)) }).boxed()
    }

    async fn push(&self, image: &str, logins: &Logins, log: &Log) -> Result<(), BuildError> {
        let (name, tag) = image.rsplit_once(':').unwrap_or((image, "latest"));
        let options = PushImageOptionsBuilder::new().tag(tag).build();
        let mut said = self.client.push_image(name, Some(options), logins.to(image));
        while let Some(part) = said.next().await {
            let part = part.map_err(|e| {
                log.line(&e.to_string());
                BuildError::Other(anyhow::Error::from(e).context("the image was not pushed"))
            })?;
            if let Some(error) = part.error_detail {
                log.line(error.message.as_deref().unwrap_or("the push failed"));
                // Registries come back.
                return Err(anyhow::anyhow!("the image was not pushed: {}", error.message.unwrap_or_default()).into());
            }
        }
        log.line(&format!("pushed {image}"));
        Ok(())
    }
}

/// An error in the stream is the build's own; others are the engine's.
fn failed(error: bollard::errors::Error, log: &Log) -> BuildError {
    match error {
        bollard::errors::Error::DockerStreamError { error } => {
            log.line(&error);
            BuildError::Failed { log_tail: String::new() }
        }
        bollard::errors::Error::DockerResponseServerError { status_code: 400, message } => {
            // What it says of a Dockerfile that cannot be read.
            log.line(&message);
            BuildError::Failed { log_tail: String::new() }
        }
        other => BuildError::Other(anyhow::Error::from(other).context("the engine broke off")),
    }
}
