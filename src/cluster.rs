//! What a cluster needs besides what every cluster has: rights of components of ours, rights of machines that join, and
//! what those read first.
//!
//! Made through the API at every start of the server, as an administrator would: what exists is left alone, but for the
//! two ConfigMaps, which follow the server's settings.

use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

/// The ConfigMap in `kube-system` with the settings that nodes must share.
pub(crate) const SETTINGS: &str = "skiff-config";
/// Group of machines that join.
const JOINING: &str = "system:bootstrappers";
const RBAC: &str = "rbac.authorization.k8s.io";
/// Time for what machines that join need; nothing else waits for it.
const LIMIT: Duration = Duration::from_secs(60);
/// Time for what the components of this process wait for.
const PATIENCE: Duration = Duration::from_secs(10);

/// Settings that all nodes share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) pod_cidr: ipnet::IpNet,
    pub(crate) service_cidr: ipnet::IpNet,
    pub(crate) domain: String,
    pub(crate) network: skiff_proxy::nodes::Mode,
}

impl Settings {
    fn data(&self) -> Value {
        json!({
            "podCIDR": self.pod_cidr.to_string(), "serviceCIDR": self.service_cidr.to_string(),
            "clusterDomain": self.domain, "podNetwork": self.network.to_string(),
        })
    }

    /// Reads them as a node.
    pub(crate) async fn read(client: &kube::Client) -> anyhow::Result<Self> {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
        let found = tokio::time::timeout(Duration::from_secs(10), api.get(SETTINGS)).await;
        let data = found.context("the server does not answer")?.context("no settings")?.data.unwrap_or_default();
        Self::parse(|key| data.get(key).map(String::as_str))
    }

    fn parse<'a>(field: impl Fn(&str) -> Option<&'a str>) -> anyhow::Result<Self> {
        let text = |key: &str| field(key).with_context(|| format!("ConfigMap kube-system/{SETTINGS} lacks {key}"));
        Ok(Self {
            pod_cidr: text("podCIDR")?.parse().context("podCIDR")?,
            service_cidr: text("serviceCIDR")?.parse().context("serviceCIDR")?,
            domain: text("clusterDomain")?.to_owned(),
            network: text("podNetwork")?.parse().map_err(anyhow::Error::msg).context("podNetwork")?,
        })
    }
}

/// Makes what is missing of what components of this process may do that stock clusters do not have.
pub(crate) async fn permit(client: &kube::Client) -> anyhow::Result<()> {
    let all = [crate::functions::rights(), crate::hpc::rights(), crate::workflows::rights()];
    // All at once: the store writes them together.
    let work = try_join_all(all.into_iter().flatten().map(|object| create(client, object)));
    tokio::time::timeout(PATIENCE, work).await.context("no answer")?.map(drop)
}

/// Makes what is missing for machines that join. `url` is how they reach the server, `ca` its CA.
pub(crate) async fn prepare(client: kube::Client, url: String, ca: String, settings: Settings) -> anyhow::Result<()> {
    let work = async {
        try_join_all(rights().into_iter().map(|object| create(&client, object))).await?;
        let info = [("kubeconfig", info(&url, &ca))].into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect();
        put(&client, "kube-public", "cluster-info", Value::Object(info)).await?;
        put(&client, "kube-system", SETTINGS, settings.data()).await
    };
    tokio::time::timeout(LIMIT, work).await.context("no answer")?
}

/// The kubeconfig that anybody may read: where the server is, and its CA.
fn info(url: &str, ca: &str) -> String {
    let ca = base64::engine::general_purpose::STANDARD.encode(ca);
    let v = json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": "",
        "clusters": [{"name": "", "cluster": {"server": url, "certificate-authority-data": ca}}],
        "contexts": null, "users": null,
    });
    skiff_core::codec::to_yaml(&v)
}

pub(crate) fn subject(kind: &str, name: &str) -> Value {
    json!({"kind": kind, "apiGroup": RBAC, "name": name})
}

pub(crate) fn binding(name: &str, namespace: Option<&str>, role: &str, subjects: &[Value]) -> Value {
    let (kind, of) = if namespace.is_some() { ("RoleBinding", "Role") } else { ("ClusterRoleBinding", "ClusterRole") };
    json!({"kind": kind, "metadata": {"name": name, "namespace": namespace},
        "roleRef": {"apiGroup": RBAC, "kind": of, "name": role}, "subjects": subjects})
}

fn readable(namespace: &str, map: &str) -> Value {
    json!({"kind": "Role", "metadata": {"name": format!("skiff:{map}"), "namespace": namespace},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [map], "verbs": ["get"]}]})
}

/// Who may do what while joining, and as a node.
fn rights() -> Vec<Value> {
    let joining = subject("Group", JOINING);
    let nodes = subject("Group", "system:nodes");
    let approver = json!({"kind": "ServiceAccount", "name": "certificate-controller", "namespace": "kube-system"});
    let requests = "system:certificates.k8s.io:certificatesigningrequests";
    let settings = format!("skiff:{SETTINGS}");
    vec![
        binding("skiff:node-bootstrap", None, "system:node-bootstrapper", std::slice::from_ref(&joining)),
        binding("skiff:node-approval", None, &format!("{requests}:nodeclient"), std::slice::from_ref(&joining)),
        binding("skiff:node-renewal", None, &format!("{requests}:selfnodeclient"), std::slice::from_ref(&nodes)),
        binding("skiff:serving-approval", None, "system:certificates.k8s.io:kubelet-serving-approver", &[approver]),
        // Whoever joins sees whether the name is taken.
        json!({"kind": "ClusterRole", "metadata": {"name": "skiff:get-nodes"},
            "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}]}),
        binding("skiff:get-nodes", None, "skiff:get-nodes", std::slice::from_ref(&joining)),
        readable("kube-public", "cluster-info"),
        binding(
            "skiff:cluster-info",
            Some("kube-public"),
            "skiff:cluster-info",
            &[subject("User", "system:anonymous"), subject("Group", "system:unauthenticated")],
        ),
        readable("kube-system", SETTINGS),
        binding(&settings, Some("kube-system"), &settings, &[nodes, joining]),
    ]
}

async fn create(client: &kube::Client, object: Value) -> anyhow::Result<()> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let resource = ApiResource {
        group: RBAC.into(),
        version: "v1".into(),
        api_version: format!("{RBAC}/v1"),
        kind: kind.into(),
        plural: format!("{}s", kind.to_lowercase()),
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let api: Api<DynamicObject> = match object["metadata"]["namespace"].as_str() {
        Some(ns) => Api::namespaced_with(client.clone(), ns, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    if api.get_opt(&name).await?.is_some() {
        return Ok(());
    }
    settled(api.create(&PostParams::default(), &serde_json::from_value(object)?).await)
        .with_context(|| format!("cannot make {name}"))
}

/// Somebody else was faster: done.
fn settled<T>(answer: kube::Result<T>) -> anyhow::Result<()> {
    match answer {
        Err(kube::Error::Api(s)) if s.code == 409 => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

async fn put(client: &kube::Client, namespace: &str, name: &str, data: Value) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let object = json!({"metadata": {"name": name}, "data": data});
    match api.get_opt(name).await? {
        None => settled(api.create(&PostParams::default(), &serde_json::from_value(object)?).await),
        Some(found) => {
            let present = found.data.unwrap_or_default();
            let wanted = data.as_object().into_iter().flatten();
            if wanted.clone().all(|(k, v)| present.get(k).map(String::as_str) == v.as_str()) {
                return Ok(());
            }
            let patch = Patch::Merge(json!({"data": data}));
            settled(api.patch(name, &PatchParams::default(), &patch).await)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_as_written() {
        let s = Settings {
            pod_cidr: "10.1.0.0/16".parse().unwrap(),
            service_cidr: "10.2.0.0/16".parse().unwrap(),
            domain: "x.y".into(),
            network: skiff_proxy::nodes::Mode::Vxlan,
        };
        let data = s.data();
        assert_eq!(Settings::parse(|k| data[k].as_str()).unwrap(), s);
        let error = Settings::parse(|k| data[k].as_str().filter(|_| k != "podNetwork")).unwrap_err();
        assert_eq!(error.to_string(), "ConfigMap kube-system/skiff-config lacks podNetwork");
    }
}
