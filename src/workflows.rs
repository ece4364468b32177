//! Wiring of workflows: in `skiff up`, beside functions, which do most of the work.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use clap::Args;
use http::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use skiff_apiserver::pki::Pki;
use skiff_faas::Callers;
use skiff_faas::gateway::invoke::{Call, Invoke as _, InvokeError};
use skiff_faas::gateway::serve::Tls;
use skiff_workflow::Config;
use skiff_workflow::task::functions::{FunctionAnswer, FunctionCall, FunctionError, Functions};

use crate::cli::UpArgs;

/// The identity of what runs workflows.
pub(crate) const USER: &str = "system:skiff-workflows";

/// How workflows are run.
#[derive(Clone, Debug, Args)]
pub(crate) struct WorkflowsArgs {
    /// Port of the Step Functions API and of triggers by HTTP, with TLS; 0 turns them off.
    #[arg(long, default_value_t = 8083)]
    pub(crate) workflows_https_port: u16,
    /// Do not run workflows.
    #[arg(long)]
    pub(crate) no_workflows: bool,
}

/// Functions of this process.
struct Here(Callers);

#[async_trait]
impl Functions for Here {
    async fn call(&self, call: FunctionCall) -> Result<FunctionAnswer, FunctionError> {
        let caller = self.0.get().ok_or_else(|| FunctionError::Unavailable("functions are not served yet".into()))?;
        let mut wanted = Call::post(&call.namespace, &call.name, call.payload);
        wanted.tag = call.qualifier;
        for (name, value) in call.headers {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                wanted.headers.insert(name, value);
            }
        }
        match caller.invoke(wanted).await {
            Ok(answer) => Ok(FunctionAnswer { status: answer.status.as_u16(), body: answer.body.to_vec() }),
            Err(error) => Err(unanswered(&error)),
        }
    }
}

fn unanswered(error: &InvokeError) -> FunctionError {
    let text = error.to_string();
    match error {
        InvokeError::NotFound { .. } => FunctionError::NotFound(text),
        InvokeError::Timeout(_) => FunctionError::Timeout(text),
        InvokeError::Overloaded { .. } => FunctionError::TooMany(text),
        InvokeError::Unauthorized(_) | InvokeError::Forbidden { .. } => FunctionError::Forbidden(text),
        _ => FunctionError::Unavailable(text),
    }
}

/// What workflows need, where they are wanted.
pub(crate) fn config(
    args: &UpArgs,
    pki: &Arc<Pki>,
    address: IpAddr,
    node: &str,
    callers: Callers,
) -> anyhow::Result<Option<Config>> {
    if args.workflows.no_workflows {
        return Ok(None);
    }
    let names = ["localhost".to_owned(), node.to_owned(), "sync-localhost".to_owned(), format!("sync-{node}")];
    let leaf = pki.cluster.server("skiff-workflows", &names, &[address, Ipv4Addr::LOCALHOST.into()])?;
    let tls = Tls { certificate: leaf.cert, key: leaf.key, client_ca: pki.cluster.cert.clone() };
    let port = args.workflows.workflows_https_port;
    let at = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    Ok(Some(Config { functions: Arc::new(Here(callers)), endpoint: (port != 0).then_some((at, tls)) }))
}

/// What [`USER`] may do, and what those may who have the cluster's own roles.
pub(crate) fn rights() -> Vec<Value> {
    let all = ["get", "list", "watch", "create", "update", "patch", "delete"];
    let read = ["get", "list", "watch"];
    let rule = |group: &str, resources: &[&str], verbs: &[&str]| json!({"apiGroups": [group], "resources": resources, "verbs": verbs});
    let role = |name: &str, labels: Value, rules: Vec<Value>| json!({"kind": "ClusterRole", "metadata": {"name": name, "labels": labels}, "rules": rules});
    let aggregated = |to: &[&str]| -> Value {
        to.iter().map(|r| (format!("rbac.authorization.k8s.io/aggregate-to-{r}"), json!("true"))).collect()
    };
    let group = skiff_workflow::api::GROUP;
    let people = ["workflows", "workflowversions", "workflowruns", "workflowactivities", "workflowsignals"];
    let kept = ["workflowhistories", "workflowpayloads"];
    let with_status: Vec<&str> =
        people.iter().chain(&kept).copied().chain(["workflows/status", "workflowruns/status"]).collect();
    vec![
        role(
            "skiff:workflows",
            json!({}),
            vec![
                rule("apiextensions.k8s.io", &["customresourcedefinitions"], &all),
                rule(group, &with_status, &all),
                // Tasks on objects, and triggers by objects, act as the workflow's account.
                rule("", &["serviceaccounts"], &["impersonate"]),
                // Access keys, and tokens of triggers.
                rule("", &["secrets"], &["get", "list"]),
                rule("", &["events"], &["create", "patch", "update"]),
                rule("coordination.k8s.io", &["leases"], &["get", "create", "update", "patch"]),
                rule("authentication.k8s.io", &["tokenreviews"], &["create"]),
                rule("authorization.k8s.io", &["subjectaccessreviews"], &["create"]),
            ],
        ),
        crate::cluster::binding("skiff:workflows", None, "skiff:workflows", &[crate::cluster::subject("User", USER)]),
        role(
            "skiff:workflows-edit",
            aggregated(&["admin", "edit"]),
            vec![rule(group, &people, &all), rule(group, &kept, &read)],
        ),
        role(
            "skiff:workflows-view",
            aggregated(&["view"]),
            vec![rule(group, &people[..4], &read), rule(group, &kept, &read)],
        ),
    ]
}
