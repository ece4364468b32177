//! Images that pods of functions run on: built here, and brought to where a pod is.

use std::sync::{Arc, Weak};

use anyhow::Context as _;
use bytes::Bytes;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::Pod;

use super::Pods;
use crate::api::FunctionRevision;
use crate::build::{BuildError, Builder};
use crate::instance::StartError;
use crate::process::Processes;

impl Pods {
    /// From now on code that needs an image of its own gets one. Only the first counts.
    pub fn build_with(&self, builder: Arc<Builder>) {
        let _ = self.builder.set(builder);
    }

    /// What this cluster is called on engines; none where no images are built, or the API does not answer.
    pub(crate) async fn cluster(&self) -> Option<String> {
        self.builder.get()?.cluster().await.ok().map(str::to_owned)
    }

    /// From now on images that only this node has are brought to others. Only the first counts.
    pub(crate) fn hand_over_with(&self, bearer: Weak<Processes>) {
        let _ = self.bearer.set(bearer);
    }

    /// The engine's archive of an image, for a node that has a pod of a function that needs it.
    pub(crate) async fn archive(
        &self,
        node: &str,
        image: &str,
    ) -> anyhow::Result<BoxStream<'static, anyhow::Result<Bytes>>> {
        let needs = |pod: &Pod| {
            let spec = pod.spec.as_ref();
            let all = spec.into_iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
            let on = spec.and_then(|s| s.node_name.as_deref()) == Some(node);
            on && pod.metadata.deletion_timestamp.is_none()
                && all.into_iter().any(|c| c.image.as_deref() == Some(image))
        };
        anyhow::ensure!(
            self.informer.all().iter().any(|pod| needs(pod)),
            "no pod of a function on {node} needs {image}"
        );
        let builder = self.builder.get().context("no images are built here")?;
        builder.archive(image).await
    }

    /// The revision with the image that was built for it, if it needs one.
    pub(super) async fn built(
        &self,
        revision: Arc<FunctionRevision>,
    ) -> Result<(Arc<FunctionRevision>, Option<String>), StartError> {
        let archive = revision.spec.code.source.archive.is_some();
        let Some(builder) = self.builder.get().filter(|_| archive) else { return Ok((revision, None)) };
        let image = builder.image(&revision).await.map_err(|e| match e {
            BuildError::Failed { .. } => StartError::Code(e.to_string()),
            BuildError::Other(e) => StartError::Other(e),
        })?;
        if image.is_none() {
            return Ok((revision, None));
        }
        let bearer = self.bearer.get().and_then(Weak::upgrade);
        let everywhere = bearer.is_some_and(|b| b.reaches_all(&revision.spec.code));
        let mut revision = (*revision).clone();
        revision.status.get_or_insert_default().image = image;
        Ok((Arc::new(revision), builder.only_node().filter(|_| !everywhere).map(str::to_owned)))
    }
}
