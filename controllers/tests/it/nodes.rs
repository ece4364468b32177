//! Joining: signing requests of machines and nodes, bootstrap tokens, pod ranges.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kube::Client;
use kube::api::{DeleteParams, PostParams};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};
use serde_json::json;
use skiff_apiserver::auth::User;

use crate::cluster::{Cluster, eventually as wait};

const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const SERVING: &str = "kubernetes.io/kubelet-serving";

fn request(node: &str, addresses: &[&str], signer: &str) -> CertificateSigningRequest {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, format!("system:node:{node}"));
    params.subject_alt_names = addresses.iter().map(|a| SanType::IpAddress(a.parse().unwrap())).collect();
    let pem = params.serialize_request(&KeyPair::generate().unwrap()).unwrap().pem().unwrap();
    let usage = if signer == SERVING { "server auth" } else { "client auth" };
    let mut object: CertificateSigningRequest = serde_json::from_value(json!({
        "metadata": {"generateName": "csr-"},
        "spec": {"request": "", "signerName": signer, "usages": ["digital signature", usage]},
    }))
    .unwrap();
    object.spec.request = ByteString(pem.into_bytes());
    object
}

async fn ask(client: Client, object: CertificateSigningRequest) -> String {
    let api: kube::Api<CertificateSigningRequest> = kube::Api::all(client);
    api.create(&PostParams::default(), &object).await.unwrap().metadata.name.unwrap()
}

/// Waits until the request has this: `certificate`, `Failed`, or `Approved`.
async fn becomes(c: &Cluster, name: &str, what: &str) -> CertificateSigningRequest {
    let api = c.all::<CertificateSigningRequest>();
    wait(what, || async {
        let found = api.get(name).await.ok()?;
        let status = found.status.clone().unwrap_or_default();
        let has = match what {
            "certificate" => status.certificate.is_some(),
            kind => status.conditions.iter().flatten().any(|c| c.type_ == kind),
        };
        has.then_some(found)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_nodes_are_approved_by_right_and_signed() {
    let c = Cluster::start().await;
    let machine = c.server.client(User::new("system:bootstrap:abcdef", &["system:bootstrappers"]));
    let node = c.server.client(User::new("system:node:a", &["system:nodes"]));
    // Nobody may yet: the rights are given below.
    for (role, group) in [
        ("system:node-bootstrapper", "system:bootstrappers"),
        ("system:certificates.k8s.io:certificatesigningrequests:nodeclient", "system:bootstrappers"),
        ("system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", "system:nodes"),
    ] {
        c.bind(role, json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": group})).await;
    }
    let approver = json!({"kind": "ServiceAccount", "name": "certificate-controller", "namespace": "kube-system"});
    c.bind("system:certificates.k8s.io:kubelet-serving-approver", approver).await;

    let joined = ask(machine, request("a", &[], CLIENT)).await;
    let signed = becomes(&c, &joined, "certificate").await;
    let pem = signed.status.unwrap().certificate.unwrap().0;
    assert!(pem.starts_with(b"-----BEGIN CERTIFICATE-----\n"));
    let renewed = ask(node.clone(), request("a", &[], CLIENT)).await;
    becomes(&c, &renewed, "certificate").await;

    // Another's certificate, and a serving certificate for an address that is not the node's, wait for a person.
    let stolen = ask(node.clone(), request("b", &[], CLIENT)).await;
    let early = ask(node.clone(), request("a", &["192.0.2.1"], SERVING)).await;
    let wrong = ask(node, request("a", &["192.0.2.9"], SERVING)).await;
    let status =
        json!({"metadata": {"name": "a"}, "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}});
    let object: Node = serde_json::from_value(status).unwrap();
    c.all::<Node>().create(&PostParams::default(), &object).await.unwrap();
    // The one that named the right address is approved as soon as the node is there.
    becomes(&c, &early, "certificate").await;
    for name in [&stolen, &wrong] {
        let found = c.all::<CertificateSigningRequest>().get(name).await.unwrap();
        assert_eq!(found.status.and_then(|s| s.conditions).unwrap_or_default(), [], "{name}");
    }
    // What a person approves against the signer's rules fails.
    let admin = ask(c.client.clone(), request("a", &[], SERVING)).await;
    let api = c.all::<CertificateSigningRequest>();
    let mut object = api.get(&admin).await.unwrap();
    object.status =
        serde_json::from_value(json!({"conditions": [{"type": "Approved", "status": "True", "reason": "r"}]})).unwrap();
    api.replace_subresource("approval", &admin, &PostParams::default(), &object).await.unwrap();
    let failed = becomes(&c, &admin, "Failed").await;
    let conditions = failed.status.unwrap().conditions.unwrap();
    let failed = conditions.iter().find(|c| c.type_ == "Failed").unwrap();
    assert_eq!(failed.reason.as_deref(), Some("SignerValidationFailure"));
    assert_eq!(failed.message.as_deref(), Some("DNS or IP subjectAltName is required"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_sign_and_expire() {
    let c = Cluster::start().await;
    c.create::<ConfigMap>("kube-public", json!({"metadata": {"name": "cluster-info"}, "data": {"kubeconfig": "text"}}))
        .await;
    let token = |id: &str, end: jiff::Timestamp| {
        json!({"metadata": {"name": format!("bootstrap-token-{id}")}, "type": "bootstrap.kubernetes.io/token", "stringData": {
            "token-id": id, "token-secret": "0123456789abcdef", "usage-bootstrap-signing": "true",
            "usage-bootstrap-authentication": "true", "expiration": end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        }})
    };
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3);
    let later = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3600);
    c.create::<Secret>("kube-system", token("aaaaaa", soon)).await;
    c.create::<Secret>("kube-system", token("bbbbbb", later)).await;
    let keys = |n: usize| {
        let api = c.api::<ConfigMap>("kube-public");
        move || {
            let api = api.clone();
            async move {
                let data: BTreeMap<String, String> = api.get("cluster-info").await.ok()?.data?;
                let keys: Vec<String> = data.into_keys().filter(|k| k.starts_with("jws-")).collect();
                (keys.len() == n).then_some(keys)
            }
        }
    };
    assert_eq!(wait("two signatures", keys(2)).await, ["jws-kubeconfig-aaaaaa", "jws-kubeconfig-bbbbbb"]);
    assert_eq!(wait("the end of one token", keys(1)).await, ["jws-kubeconfig-bbbbbb"]);
    let left = c.api::<Secret>("kube-system").list(&Default::default()).await.unwrap();
    assert_eq!(left.items.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_comes_back_keeps_its_range() {
    let c = Cluster::start().await;
    let nodes = c.all::<Node>();
    let range = |name: &'static str| {
        let nodes = nodes.clone();
        wait("a range", move || {
            let nodes = nodes.clone();
            async move { nodes.get(name).await.ok()?.spec?.pod_cidr }
        })
    };
    c.node("a").await;
    c.node("b").await;
    let (a, b) = (range("a").await, range("b").await);
    assert_ne!(a, b);
    nodes.delete("a", &DeleteParams::default()).await.unwrap();
    c.node("c").await;
    let third = range("c").await;
    assert!(third != a && third != b, "{third} was in use");
    let again = json!({"metadata": {"name": "a"}, "spec": {"podCIDR": a, "podCIDRs": [a]}});
    nodes.create(&PostParams::default(), &serde_json::from_value(again).unwrap()).await.unwrap();
    assert_eq!(range("a").await, a);
}
