//! Cluster roles that are made of others: `aggregationRule` selects roles by label, their rules are joined.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use crate::runtime::informer::Informer;
use crate::runtime::queue::Queue;
use crate::runtime::select;
use crate::runtime::worker::{Outcome, Reconcile, found};

/// The controller.
pub struct Controller {
    client: Client,
    roles: Informer<ClusterRole>,
    queue: Arc<Queue>,
}

impl Controller {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, roles: Informer<ClusterRole>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let (q, all) = (Arc::clone(&queue), roles.clone());
        // Any role may be part of any aggregate; there are few aggregates.
        roles.on_change(move |_| enqueue(&all, &q));
        Arc::new(Self { client, roles, queue })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(role) = self.roles.get(key) else { return Ok(None) };
        let Some(rules) = joined(&role, self.roles.all()) else { return Ok(None) };
        if role.rules.as_deref().unwrap_or_default() != rules {
            let next = ClusterRole { rules: Some(rules), ..ClusterRole::clone(&role) };
            let api: Api<ClusterRole> = Api::all(self.client.clone());
            found(api.replace(key, &PostParams::default(), &next).await)?;
        }
        Ok(None)
    }
}

fn enqueue(roles: &Informer<ClusterRole>, queue: &Queue) {
    roles.all().iter().filter(|r| r.aggregation_rule.is_some()).for_each(|r| queue.add(r.name_any()));
}

/// Rules of all selected roles, in the order of selectors and names, each once. `None`: not an aggregate.
fn joined(role: &ClusterRole, mut all: Vec<Arc<ClusterRole>>) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.clone().unwrap_or_default();
    all.sort_by_key(|r| r.name_any());
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in &selectors {
        let parts = all.iter().filter(|r| r.name_any() != role.name_any());
        for part in parts.filter(|r| select::matches(selector, &r.metadata.labels)) {
            for rule in part.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
    }
    Some(rules)
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "clusterrole-aggregation-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        enqueue(&self.roles, &self.queue);
    }

    fn workers(&self) -> usize {
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_are_joined_once() {
        let role = |name: &str, labels: serde_json::Value, verb: &str| -> Arc<ClusterRole> {
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": labels},
                "rules": [{"verbs": [verb], "resources": ["pods"], "apiGroups": [""]}]})).unwrap())
        };
        let sum: ClusterRole = serde_json::from_value(json!({"metadata": {"name": "sum", "labels": {"in": "sum"}},
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"in": "sum"}}]}}))
        .unwrap();
        let all = vec![
            role("b", json!({"in": "sum"}), "get"),
            role("a", json!({"in": "sum"}), "list"),
            role("c", json!({"in": "sum"}), "list"),
            role("d", json!({}), "delete"),
            Arc::new(sum.clone()),
        ];
        let verbs: Vec<String> = joined(&sum, all).unwrap().into_iter().flat_map(|r| r.verbs).collect();
        assert_eq!(verbs, ["list", "get"]);
    }
}
