//! The way to the cluster.

use std::path::PathBuf;

use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

/// Which cluster, as whom: kubectl's own options.
#[derive(Clone, Debug, Args)]
pub struct Connection {
    /// Path to the kubeconfig file to use.
    #[arg(long, global = true)]
    kubeconfig: Option<PathBuf>,
    /// Name of the kubeconfig context to use.
    #[arg(long, global = true)]
    context: Option<String>,
    /// Name of the kubeconfig cluster to use.
    #[arg(long, global = true)]
    cluster: Option<String>,
    /// Name of the kubeconfig user to use.
    #[arg(long, global = true)]
    user: Option<String>,
    /// The namespace.
    #[arg(short, long, global = true)]
    namespace: Option<String>,
}

/// A cluster, and a namespace in it.
pub struct Session {
    /// Asks as the person.
    pub client: Client,
    /// The namespace that was named, else the context's.
    pub namespace: String,
    /// How the client was made.
    pub config: Config,
}

impl Connection {
    /// Opens the way.
    ///
    /// # Errors
    /// When there is no such cluster in the file, or no file and this is no pod.
    pub async fn open(self) -> anyhow::Result<Session> {
        let options = KubeConfigOptions { context: self.context, cluster: self.cluster, user: self.user };
        let named = self.kubeconfig.is_some() || options.context.is_some() || options.cluster.is_some();
        let config = match &self.kubeconfig {
            Some(file) => {
                let file = Kubeconfig::read_from(file)?;
                Config::from_custom_kubeconfig(file, &options).await?
            }
            None if named => Config::from_kubeconfig(&options).await?,
            None => match Config::from_kubeconfig(&options).await {
                Ok(config) => config,
                // In a pod there is no such file.
                Err(e) => Config::incluster().map_err(|_| e)?,
            },
        };
        let client = Client::try_from(config.clone())?;
        let namespace = self.namespace.unwrap_or_else(|| config.default_namespace.clone());
        Ok(Session { client, namespace, config })
    }
}

impl Session {
    /// Objects of a kind in the namespace.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Objects of a kind in the namespace, or in all.
    #[must_use]
    pub fn some<K>(&self, all: bool) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        if all { Api::all(self.client.clone()) } else { self.api() }
    }
}
