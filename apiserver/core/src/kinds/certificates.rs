//! CertificateSigningRequest, ClusterTrustBundle and PodCertificateRequest.
//!
//! Whose request it is and who may approve and sign is admission's; here is what a request, its conditions and its
//! certificate must look like. Certificates are looked at as PEM, not as ASN.1.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::check::{complain, list, text};
use super::{Strategy, Traits, carry, carry_meta};
use crate::invalid::{Errors, quote_str};
use crate::meta::NameRule;
use crate::names;
use crate::path::Path;

const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// Conditions that stay once they are set.
const LASTING: &[&str] = &["Approved", "Denied", "Failed"];
const SHORTEST: i64 = 600;
/// Life of a pod's certificate that nobody limited.
const DAY_SECONDS: i64 = 86_400;

/// Rules of CertificateSigningRequests.
pub(super) struct SigningRequest;

impl Strategy for SigningRequest {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { status: true, ..Traits::DEFAULT };
        &T
    }

    fn reset_fields(&self, _of_status: bool) -> &'static [&'static [&'static str]] {
        &[&["spec"], &["status"]]
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        carry(new, old, "spec");
        carry(new, old, "status");
    }

    fn prepare_status(&self, new: &mut Value, old: &Value) {
        carry(new, old, "spec");
        carry_meta(new, old, &["ownerReferences", "generation"]);
        stamp(new, old);
    }

    fn prepare_subresource(&self, _name: &str, new: &mut Value, old: &Value) {
        stamp(new, old);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (spec, path) = (&obj["spec"], Path::new("spec"));
        request(spec, &path.child("request"), errors);
        let at = path.child("usages");
        let usages: Vec<&str> = list(spec, "usages").iter().filter_map(Value::as_str).collect();
        if usages.is_empty() {
            errors.required(&at, "");
        }
        for (i, u) in usages.iter().enumerate() {
            if !USAGES.contains(u) {
                errors.not_supported(&at.index(i), *u, USAGES);
            }
            if usages[..i].contains(u) {
                errors.duplicate(&at.index(i), *u);
            }
        }
        signer(text(spec, "signerName"), &path.child("signerName"), errors);
        if let Some(n) = spec["expirationSeconds"].as_i64().filter(|n| *n < SHORTEST) {
            let why = "may not specify a duration less than 600 seconds (10 minutes)";
            errors.invalid(&path.child("expirationSeconds"), n, why);
        }
        conditions(&obj["status"], errors);
    }

    fn validate_status(&self, new: &Value, old: &Value, errors: &mut Errors) {
        changed(new, old, false, errors);
        let path = Path::new("status");
        let at = path.child("certificate");
        let (now, was) = (text(&new["status"], "certificate"), text(&old["status"], "certificate"));
        if now == was {
            return;
        }
        if !was.is_empty() {
            errors.forbidden(&at, "updates may not modify existing certificate content");
        }
        if !now.is_empty() {
            certificate(now, &at, errors);
        }
    }

    fn validate_subresource(&self, _name: &str, new: &Value, old: &Value, errors: &mut Errors) {
        changed(new, old, true, errors);
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        changed(new, old, false, errors);
    }

    fn fields(&self) -> &'static [&'static str] {
        &["spec.signerName"]
    }
}

/// Rules of ClusterTrustBundles: the name of one that a signer's keeps begins with the signer's. Its anchors are looked at by the
/// server, which has what reads certificates.
pub(super) struct TrustBundle;

impl Strategy for TrustBundle {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { name: NameRule::PathSegment, unconditional_update: false, ..Traits::DEFAULT };
        &T
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (name, of) = (crate::meta::name(obj), text(&obj["spec"], "signerName"));
        let path = Path::new("metadata");
        for why in bundle_name(name, of) {
            errors.invalid(&path.child("name"), name, why);
        }
        if !of.is_empty() {
            let spec = Path::new("spec");
            signer(of, &spec.child("signerName"), errors);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        let (now, was) = (text(&new["spec"], "signerName"), text(&old["spec"], "signerName"));
        if now != was {
            let spec = Path::new("spec");
            errors.invalid(&spec.child("signerName"), now, "field is immutable");
        }
    }

    fn fields(&self) -> &'static [&'static str] {
        &["spec.signerName"]
    }
}

/// Rules of PodCertificateRequests: what is asked for does not change. The request itself is not looked into.
pub(super) struct PodRequest;

impl Strategy for PodRequest {
    fn traits(&self) -> &Traits {
        const T: Traits =
            Traits { status: true, status_keeps_meta: true, unconditional_update: false, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        let spec = obj.get_mut("spec").and_then(Value::as_object_mut);
        if let Some(life) = spec.map(|s| s.entry("maxExpirationSeconds").or_insert(Value::Null))
            && life.is_null()
        {
            *life = DAY_SECONDS.into();
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        if new["spec"] != old["spec"] {
            errors.invalid(&Path::new("spec"), new["spec"].clone(), "field is immutable");
        }
    }

    fn fields(&self) -> &'static [&'static str] {
        &["spec.signerName", "spec.podName", "spec.nodeName"]
    }
}

/// Complaints about the name of a bundle of `signer`, which may be nobody.
pub(super) fn bundle_name(name: &str, signer: &str) -> Vec<String> {
    if signer.is_empty() {
        if name.contains(':') {
            return vec!["ClusterTrustBundle without signer name must not have \":\" in its name".to_owned()];
        }
        return names::is_dns1123_subdomain(name);
    }
    let prefix = format!("{}:", signer.replace('/', ":"));
    match name.strip_prefix(&prefix) {
        Some(rest) => names::is_dns1123_subdomain(rest),
        None => vec![format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}")],
    }
}

/// New conditions get the present time.
fn stamp(new: &mut Value, old: &Value) {
    let now = crate::time::format(jiff::Timestamp::now());
    let before = list(&old["status"], "conditions").to_vec();
    let all = new.get_mut("status").and_then(|s| s.get_mut("conditions")).and_then(Value::as_array_mut);
    for c in all.into_iter().flatten() {
        if c["lastUpdateTime"].is_null() {
            c["lastUpdateTime"] = now.as_str().into();
        }
        if c["lastTransitionTime"].is_null() {
            let same = before.iter().find(|b| b["type"] == c["type"] && b["status"] == c["status"]);
            let kept = same.map(|s| s["lastTransitionTime"].clone()).filter(|t| !t.is_null());
            c["lastTransitionTime"] = kept.unwrap_or_else(|| now.as_str().into());
        }
    }
}

/// The kinds of the PEM blocks in base64 data.
fn blocks(data: &str) -> Vec<String> {
    let bytes = STANDARD.decode(data).unwrap_or_default();
    let pem = String::from_utf8_lossy(&bytes).into_owned();
    let begins = pem.lines().filter_map(|l| l.trim_end().strip_prefix("-----BEGIN ")?.strip_suffix("-----"));
    begins.filter(|k| pem.contains(&format!("-----END {k}-----"))).map(str::to_owned).collect()
}

fn request(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let found = blocks(text(spec, "request"));
    if found.first().is_none_or(|k| k != "CERTIFICATE REQUEST") {
        let shown = if text(spec, "request").is_empty() { Value::Null } else { spec["request"].clone() };
        errors.invalid(path, shown, "PEM block type must be CERTIFICATE REQUEST");
    }
}

fn certificate(data: &str, path: &Path<'_>, errors: &mut Errors) {
    const SHOWN: &str = "<certificate data>";
    let found = blocks(data);
    if found.is_empty() {
        errors.invalid(path, SHOWN, "must contain at least one CERTIFICATE PEM block");
    } else if let Some(k) = found.iter().find(|k| *k != "CERTIFICATE") {
        let why = format!("only CERTIFICATE PEM blocks are allowed, found {}", quote_str(k));
        errors.invalid(path, SHOWN, why);
    }
}

fn signer(name: &str, path: &Path<'_>, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "");
        return;
    }
    let parts: Vec<&str> = name.split('/').collect();
    let [domain, tail] = parts.as_slice() else {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.invalid(path, name, why);
        return;
    };
    complain(path, domain, names::is_dns1123_subdomain(domain), errors);
    if !domain.contains('.') {
        errors.invalid(path, *domain, "should be a domain with at least two segments separated by dots");
    }
    complain(path, tail, names::is_dns1123_subdomain(tail), errors);
}

fn conditions(status: &Value, errors: &mut Errors) {
    let path = Path::new("status");
    let all = path.child("conditions");
    let mut seen = vec![];
    for (i, c) in list(status, "conditions").iter().enumerate() {
        let (at, kind) = (all.index(i), text(c, "type"));
        if kind.is_empty() {
            errors.required(&at.child("type"), "");
        }
        let allowed: &[&str] = if LASTING.contains(&kind) { &["True"] } else { &["False", "True", "Unknown"] };
        match text(c, "status") {
            "" => errors.required(&at.child("status"), ""),
            s if !allowed.contains(&s) => errors.not_supported(&at.child("status"), s, allowed),
            _ => {}
        }
        if seen.contains(&kind) {
            errors.duplicate(&at.child("type"), kind);
        }
        seen.push(kind);
    }
    if seen.contains(&"Approved") && seen.contains(&"Denied") {
        let why =
            "must specify at most one of: `conditions[{\"type\": \"Approved\"}]`, `conditions[{\"type\": \"Denied\"}]`";
        errors.invalid(&all, status["conditions"].clone(), why);
    }
}

/// Conditions that last are not taken away, and only the approval adds a decision.
fn changed(new: &Value, old: &Value, approval: bool, errors: &mut Errors) {
    conditions(&new["status"], errors);
    let path = Path::new("status");
    let at = path.child("conditions");
    let count = |v: &Value, k: &str| list(&v["status"], "conditions").iter().filter(|c| c["type"] == k).count();
    for k in LASTING {
        if count(new, k) < count(old, k) {
            errors.forbidden(&at, format!("updates may not remove a condition of type {}", quote_str(k)));
        }
    }
    for k in ["Approved", "Denied"] {
        if !approval && count(new, k) > count(old, k) {
            errors.forbidden(&at, format!("updates may not add a condition of type {}", quote_str(k)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pods_request_has_a_limit_and_stays() {
        for (given, wanted) in [(json!({}), 86_400), (json!({"maxExpirationSeconds": 3600}), 3600)] {
            let mut request = json!({"spec": given});
            PodRequest.default(&mut request);
            assert_eq!(request["spec"]["maxExpirationSeconds"], wanted);
            let (mut same, mut other) = (Errors::new(), Errors::new());
            PodRequest.validate_update(&request, &request, &mut same);
            PodRequest.validate_update(&json!({"spec": {"maxExpirationSeconds": 1}}), &request, &mut other);
            assert_eq!((same.len(), other.len()), (0, 1));
        }
    }
}
