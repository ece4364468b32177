//! Approves what node agents ask for.
//!
//! A client certificate: the asker must be allowed to create `certificatesigningrequests/nodeclient` (a machine that
//! joins) or `selfnodeclient` (a node that renews its own). A serving certificate: the asker is the node, and every name
//! and address in it is one that its Node object has. What is not recognised is left to people.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{Node, NodeAddress};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};

use super::request::{NODE_PREFIX, Request};
use super::{NODE_CLIENT, NODE_SERVING, add_condition, decided};
use crate::runtime::informer::{Informer, key_of};
use crate::runtime::queue::Queue;
use crate::runtime::worker::{Error, Outcome, Reconcile, found};

/// The controller.
pub struct Approver {
    client: Client,
    requests: Informer<CertificateSigningRequest>,
    nodes: Informer<Node>,
    queue: Arc<Queue>,
}

impl Approver {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, requests: Informer<CertificateSigningRequest>, nodes: Informer<Node>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        requests.on_change(move |c| {
            if c.new.as_deref().is_some_and(|r| !decided(r)) {
                q.add(key_of(&**c.latest()));
            }
        });
        // A request that waits for its node's addresses.
        let (q, all) = (Arc::clone(&queue), requests.clone());
        nodes.on_change(move |c| {
            let Some(node) = &c.new else { return };
            if c.old.as_deref().map(addresses) == Some(addresses(node)) {
                return;
            }
            let user = format!("{NODE_PREFIX}{}", node.name_any());
            for r in all.all() {
                if !decided(&r) && r.spec.username.as_deref() == Some(&user) {
                    q.add(key_of(&*r));
                }
            }
        });
        Arc::new(Self { client, requests, nodes, queue })
    }

    async fn sync(&self, name: &str) -> Outcome {
        let Some(object) = self.requests.get(name).filter(|r| !decided(r) && super::certificate(r).is_none()) else {
            return Ok(None);
        };
        let Ok(request) = Request::parse(&object.spec.request.0) else { return Ok(None) };
        let signer = object.spec.signer_name.as_str();
        if request.check(signer, object.spec.usages.as_deref().unwrap_or_default()).is_err() {
            return Ok(None);
        }
        let message = match signer {
            NODE_CLIENT => self.client_certificate(&object, &request).await?,
            NODE_SERVING => self.serving_certificate(&object, &request),
            _ => None,
        };
        let Some(message) = message else { return Ok(None) };
        let mut next = CertificateSigningRequest::clone(&object);
        add_condition(&mut next, "Approved", "AutoApproved", message.to_owned());
        let api: Api<CertificateSigningRequest> = Api::all(self.client.clone());
        if let Some(written) = found(api.replace_subresource("approval", name, &PostParams::default(), &next).await)? {
            self.requests.apply(written);
        }
        Ok(None)
    }

    async fn client_certificate(
        &self,
        object: &CertificateSigningRequest,
        request: &Request,
    ) -> Result<Option<&'static str>, Error> {
        let own = object.spec.username.as_deref() == Some(&request.common_name);
        if own && self.may(object, "selfnodeclient").await? {
            return Ok(Some("Auto approving self kubelet client certificate after SubjectAccessReview."));
        }
        if self.may(object, "nodeclient").await? {
            return Ok(Some("Auto approving kubelet client certificate after SubjectAccessReview."));
        }
        Ok(None)
    }

    async fn may(&self, object: &CertificateSigningRequest, subresource: &str) -> Result<bool, Error> {
        let spec = &object.spec;
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: spec.username.clone(),
                uid: spec.uid.clone(),
                groups: spec.groups.clone(),
                extra: spec.extra.clone().map(|e| e.into_iter().collect::<BTreeMap<_, _>>()),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("certificates.k8s.io".into()),
                    version: Some("v1".into()),
                    resource: Some("certificatesigningrequests".into()),
                    subresource: Some(subresource.into()),
                    verb: Some("create".into()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|s| s.allowed))
    }

    fn serving_certificate(&self, object: &CertificateSigningRequest, request: &Request) -> Option<&'static str> {
        let spec = &object.spec;
        let is_node = spec.username.as_deref() == Some(&request.common_name)
            && spec.groups.iter().flatten().any(|g| g == "system:nodes");
        let node = self.nodes.get(request.node()?).filter(|_| is_node)?;
        all_own(request, &node).then_some("Auto approving kubelet serving certificate: it names only its node.")
    }
}

fn addresses(node: &Node) -> &[NodeAddress] {
    node.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default()
}

/// Whether every name and address of the request belongs to the node.
fn all_own(request: &Request, node: &Node) -> bool {
    let known = |text: &str| addresses(node).iter().any(|a| a.address == text);
    let name = node.name_any();
    let ip = |ip: &IpAddr| addresses(node).iter().any(|a| a.address.parse() == Ok(*ip));
    request.dns.iter().all(|n| *n == name || known(n)) && request.addresses.iter().all(ip)
}

impl Reconcile for Approver {
    fn name(&self) -> &'static str {
        "csrapproving-controller"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.requests.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_serving_certificate_names_only_its_node() {
        let node: Node = serde_json::from_value(json!({"metadata": {"name": "a"}, "status": {"addresses": [
            {"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "a"},
            {"type": "InternalDNS", "address": "a.lan"},
        ]}}))
        .unwrap();
        for (dns, ips, good) in [
            (vec!["a"], vec!["192.0.2.1"], true),
            (vec!["a.lan"], vec![], true),
            (vec!["b"], vec![], false),
            (vec!["a"], vec!["192.0.2.2"], false),
        ] {
            let request = Request {
                dns: dns.iter().map(|s| (*s).into()).collect(),
                addresses: ips.iter().map(|s| s.parse().unwrap()).collect(),
                ..Request::default()
            };
            assert_eq!(all_own(&request, &node), good, "{dns:?} {ips:?}");
        }
    }
}
