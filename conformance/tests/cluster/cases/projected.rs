//! Volumes made of more than the pod's own objects: trust bundles, certificates, images.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::certificates::v1::PodCertificateRequest;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
use serde_json::json;

use crate::cluster::Cluster;

const SIGNER: &str = "example.com/tests";
const HOUR: Duration = Duration::from_secs(3600);

fn shell(c: &Cluster, ns: &str, pod: &str, command: &str) -> Result<String> {
    c.ok(&["-n", ns, "exec", pod, "--", "sh", "-c", command])
}

fn apply(c: &Cluster, ns: &str, manifest: &str) -> Result<()> {
    let o = c.apply(&["-n", ns, "apply"], manifest)?;
    ensure!(o.code == 0, "{}", o.err);
    Ok(())
}

fn authority() -> Result<(String, Issuer<'static, KeyPair>)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok((params.self_signed(&key)?.pem(), Issuer::new(params, key)))
}

fn bundle(ns: &str, name: &str, label: &str, pem: &str) -> String {
    let signer = format!("{SIGNER}-{ns}");
    json!({"apiVersion": "certificates.k8s.io/v1", "kind": "ClusterTrustBundle",
        "metadata": {"name": format!("{}:{name}", signer.replace('/', ":")), "labels": {"use": label}},
        "spec": {"signerName": signer, "trustBundle": pem}})
    .to_string()
}

/// A pod that sleeps, with one projected volume at `/v`.
fn pod(name: &str, sources: &serde_json::Value) -> String {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "skiff/busybox:1", "command": ["sleep", "3600"],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
        "volumes": [{"name": "v", "projected": {"sources": sources}}]}})
    .to_string()
}

fn await_ready(c: &Cluster, ns: &str, pod: &str) -> Result<()> {
    c.ok(&["-n", ns, "wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]).map(drop)
}

/// Trust bundles by signer and labels; what changes arrives in place.
pub(crate) fn trust(c: &mut Cluster, ns: &str) -> Result<()> {
    let (one, two) = (authority()?.0, authority()?.0);
    let doubled = c.apply(&["-n", ns, "apply"], &bundle(ns, "one", "tls", &format!("{one}{one}")))?;
    ensure!(doubled.code == 1 && doubled.err.contains("duplicate trust anchor (indices [0 1])"), "{}", doubled.err);
    apply(c, ns, &bundle(ns, "one", "tls", &format!("a word\n{one}")))?;
    apply(c, ns, &bundle(ns, "again", "tls", &one))?;
    apply(c, ns, &bundle(ns, "other", "none", &two))?;
    let signer = format!("{SIGNER}-{ns}");
    let by = |use_: &str, path: &str| {
        json!({"clusterTrustBundle": {"signerName": signer, "path": path, "optional": true,
        "labelSelector": {"matchLabels": {"use": use_}}}})
    };
    apply(c, ns, &pod("p", &json!([by("tls", "a.pem"), by("nothing", "empty.pem")])))?;
    await_ready(c, ns, "p")?;
    ensure!(shell(c, ns, "p", "cat /v/a.pem")? == one, "each anchor once, and nothing else");
    ensure!(shell(c, ns, "p", "wc -c </v/empty.pem")?.trim() == "0");
    apply(c, ns, &bundle(ns, "two", "tls", &two))?;
    c.eventually("a new bundle arrives", |c| {
        Ok(shell(c, ns, "p", "cat /v/a.pem")?.lines().filter(|l| l.starts_with("-----BEGIN")).count() == 2)
    })?;
    // One that must be there and is not keeps the pod waiting, and says so.
    let name = format!("{}:late", signer.replace('/', ":"));
    apply(c, ns, &pod("late", &json!([{"clusterTrustBundle": {"name": name, "path": "a.pem"}}])))?;
    c.eventually("what is missing is told", |c| {
        Ok(c.ok(&["-n", ns, "get", "events"])?.contains(&format!("{name:?} not found")))
    })?;
    apply(c, ns, &bundle(ns, "late", "tls", &one))?;
    await_ready(c, ns, "late")
}

/// A certificate: asked for in the pod's name, decided by a signer, shown with its key.
pub(crate) fn certificates(c: &mut Cluster, ns: &str) -> Result<()> {
    let signer = format!("{SIGNER}-{ns}");
    let source = |kind: &str| {
        json!([{"podCertificate": {"signerName": signer, "keyType": kind, "credentialBundlePath": "both.pem",
            "keyPath": "key.pem", "certificateChainPath": "chain.pem", "userAnnotations": {"example.com/who": "me"}}}])
    };
    // The request of a pod, once it is there.
    let request = |c: &Cluster, pod: &str| -> Result<PodCertificateRequest> {
        let mut found = None;
        c.eventually("the node asks", |c| {
            let all = c.get(ns, "podcertificaterequests")?;
            found = all["items"].as_array().into_iter().flatten().find(|r| r["spec"]["podName"] == pod).cloned();
            Ok(found.is_some())
        })?;
        Ok(serde_json::from_value(found.context("a request")?)?)
    };
    let decide = |c: &Cluster, name: &str, status: serde_json::Value| {
        let patch = json!({"status": status}).to_string();
        c.ok(&["-n", ns, "patch", "podcertificaterequest", name, "--subresource=status", "--type=merge", "-p", &patch])
    };
    let condition = |kind: &str| {
        json!([{"type": kind, "status": "True", "reason": "Tested", "message": "so it was decided",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}])
    };
    let (_, issuer) = authority()?;
    apply(c, ns, &pod("good", &source("ED25519")))?;
    let asked = request(c, "good")?;
    ensure!(asked.spec.signer_name == signer && asked.spec.max_expiration_seconds == Some(86400), "{asked:?}");
    ensure!(asked.spec.unverified_user_annotations.is_some_and(|a| a["example.com/who"] == "me"));
    let mut csr = CertificateSigningRequestParams::from_der(&asked.spec.stub_pkc_s10_request.0.into())?;
    let now = SystemTime::now();
    (csr.params.not_before, csr.params.not_after) = (now.into(), (now + HOUR * 24).into());
    let chain = csr.signed_by(&issuer)?.pem();
    let name = asked.metadata.name.context("a name")?;
    let at = |hours: u32| Time(Timestamp::try_from(now + HOUR * hours).unwrap_or_default());
    let times = json!({"certificateChain": chain, "conditions": condition("Issued"), "notBefore": at(0),
        "beginRefreshAt": at(12), "notAfter": at(24)});
    decide(c, &name, times)?;
    await_ready(c, ns, "good")?;
    ensure!(shell(c, ns, "good", "cat /v/chain.pem")? == chain);
    ensure!(shell(c, ns, "good", "cat /v/key.pem /v/chain.pem")? == shell(c, ns, "good", "cat /v/both.pem")?);
    ensure!(shell(c, ns, "good", "head -n 1 /v/key.pem")? == "-----BEGIN PRIVATE KEY-----\n");

    apply(c, ns, &pod("bad", &source("ECDSAP256")))?;
    let name = request(c, "bad")?.metadata.name.context("a name")?;
    decide(c, &name, json!({"conditions": condition("Denied")}))?;
    c.eventually("the denial is told", |c| {
        Ok(c.ok(&["-n", ns, "describe", "pod", "bad"])?.contains("so it was decided"))
    })?;
    ensure!(c.get(ns, "pod/bad")?["status"]["phase"] == "Pending");
    Ok(())
}

/// The files of an image, whole and in part; nothing can be written or run there, and nothing stays behind.
pub(crate) fn images(c: &mut Cluster, ns: &str) -> Result<()> {
    let manifest = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "c", "image": "skiff/busybox:1", "command": ["sleep", "3600"],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "v", "mountPath": "/part", "subPath": "bin", "readOnly": true}]}],
        "volumes": [{"name": "v", "image": {"reference": "skiff/busybox:1", "pullPolicy": "IfNotPresent"}}]}})
    .to_string();
    apply(c, ns, &manifest)?;
    await_ready(c, ns, "p")?;
    let same = "cmp /bin/busybox /v/bin/busybox && cmp /bin/busybox /part/busybox && echo same";
    ensure!(shell(c, ns, "p", same)? == "same\n");
    for refused in ["touch /v/new", "touch /part/new", "/v/bin/busybox true", "/part/busybox true"] {
        let o = c.kubectl(&["-n", ns, "exec", "p", "--", "sh", "-c", refused])?;
        ensure!(o.code != 0, "{refused}: {o:?}");
    }
    let kept = || -> Result<usize> {
        let dir = c.data_dir().join("kubelet/images");
        Ok(if dir.is_dir() { std::fs::read_dir(dir)?.count() } else { 0 })
    };
    ensure!(kept()? == 1, "{}", c.data_dir().display());
    // An image that cannot be had keeps the container waiting, as its own would.
    let absent = manifest
        .replace("\"p\"", "\"q\"")
        .replace("\"reference\":\"skiff/busybox:1\"", "\"reference\":\"skiff/none:1\"");
    apply(c, ns, &absent.replace("IfNotPresent", "Never"))?;
    c.eventually("the image is missed", |c| {
        let status = c.get(ns, "pod/q")?;
        Ok(status["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImageNeverPull")
    })?;
    c.ok(&["-n", ns, "delete", "pod", "p", "q", "--timeout=60s"])?;
    ensure!(kept()? == 0, "an image stays behind");
    Ok(())
}
