//! The measurements, one file each.

pub(crate) mod apply;
pub(crate) mod creates;
pub(crate) mod custom;
pub(crate) mod flood;
pub(crate) mod functions;
pub(crate) mod gets;
pub(crate) mod idle;
pub(crate) mod kills;
pub(crate) mod limit;
pub(crate) mod lists;
pub(crate) mod mixed;
pub(crate) mod runs;
pub(crate) mod scale;
pub(crate) mod waiting;
pub(crate) mod watch;

use crate::http::Target;
use crate::load::{Request, Until, closed};
use crate::{Context, http::Version};

/// An identity that has to pass RBAC: the controllers' certificate, bound to all rights.
async fn through_rbac(skiff: &crate::process::Skiff) -> anyhow::Result<Target> {
    let body = r#"{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRoleBinding","metadata":{"name":"bench"},
        "roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"cluster-admin"},
        "subjects":[{"apiGroup":"rbac.authorization.k8s.io","kind":"User","name":"system:kube-controller-manager"}]}"#;
    let mut admin = skiff.target("admin")?.h1().await?;
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    admin.call("POST", path, body.as_bytes()).await?.success()?;
    skiff.target("controller-manager")
}

/// Creates `count` ConfigMaps in the namespace `default`, named by their number.
async fn fill(
    target: &Target,
    count: u64,
    body: impl Fn(&str, u64) -> Vec<u8> + Send + Sync + 'static,
) -> anyhow::Result<()> {
    let path = "/api/v1/namespaces/default/configmaps";
    closed(target, Version::H1, 64, Until::Count(count), move |n| {
        let name = format!("o-{n:07}");
        Request { method: "POST", path: path.into(), body: body(&name, n) }
    })
    .await?;
    Ok(())
}

/// A short run before the measured one, so that neither side is cold.
fn warm(cx: &Context) -> Until {
    Until::Time(cx.time / 10, u64::MAX)
}
