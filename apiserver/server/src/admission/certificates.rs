//! Signing requests: whose they are, and who may approve and sign them (CertificateApproval, CertificateSigning,
//! CertificateSubjectRestriction).

use serde_json::{Value, json};
use skiff_core::invalid::Errors;
use skiff_core::status::Status;

use super::{Operation, Review};
use crate::auth::identity::MASTERS;
use crate::auth::rbac::Attributes;
use crate::subresources::reviews::user_info;

const GROUP: &str = "certificates.k8s.io";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client";

fn applies(r: &Review<'_>) -> bool {
    r.is(GROUP, "certificatesigningrequests")
}

/// A request speaks for its caller, whatever the body says.
pub(super) fn identify(r: &Review<'_>, obj: &mut Value) {
    if !applies(r) || r.operation != Operation::Create {
        return;
    }
    let user = &r.call.user;
    let spec = obj.as_object_mut().map(|o| o.entry("spec").or_insert_with(|| json!({})));
    let Some(spec) = spec.and_then(Value::as_object_mut) else { return };
    for key in ["username", "uid", "groups", "extra"] {
        spec.remove(key);
    }
    if let Value::Object(who) = user_info(user) {
        spec.extend(who);
    }
}

/// Checks the rights on the signer.
///
/// # Errors
/// 403, and 422 where a pod's certificate is signed.
pub(super) fn check(r: &Review<'_>, obj: &Value) -> Result<(), Status> {
    if r.is(GROUP, "podcertificaterequests") && r.operation == Operation::Update && r.subresource() == "status" {
        return check_pods(r, obj);
    }
    if !applies(r) {
        return Ok(());
    }
    let signer = r.old.unwrap_or(obj)["spec"]["signerName"].as_str().unwrap_or_default().to_owned();
    match (r.operation, r.subresource()) {
        (Operation::Create, _) => subject(r, obj, &signer),
        (Operation::Update, "approval") => holds(r, obj, "approve", &signer),
        (Operation::Update, "status") => {
            // Only a change of the certificate or of the decision to fail is signing.
            let part = |v: &Value| (v["status"]["certificate"].clone(), v["status"]["conditions"].clone());
            if r.old.is_some_and(|o| part(o) == part(obj)) { Ok(()) } else { holds(r, obj, "sign", &signer) }
        }
        _ => Ok(()),
    }
}

/// Who decides about a pod's certificate must be its signer.
fn check_pods(r: &Review<'_>, obj: &Value) -> Result<(), Status> {
    let signer = obj["spec"]["signerName"].as_str().unwrap_or_default();
    if r.old.is_some_and(|o| o["status"] == obj["status"]) || may(r, "sign", signer) {
        return Ok(());
    }
    let mut errors = Errors::new();
    let why = format!("User {:?} is not permitted to \"sign\" for signer {signer:?}", r.call.user.name);
    errors.forbidden(&"spec.signerName", why);
    Err(Status::invalid(GROUP, "PodCertificateRequest", skiff_core::meta::name(obj), &errors))
}

/// The right may be on the signer, or on all of its domain.
fn may(r: &Review<'_>, verb: &str, signer: &str) -> bool {
    let domain = format!("{}/*", signer.split('/').next().unwrap_or_default());
    [signer, domain.as_str()]
        .iter()
        .any(|name| r.server.authorise(&r.call.user, &Attributes::resource(verb, GROUP, "signers", "", name)).is_ok())
}

fn holds(r: &Review<'_>, obj: &Value, verb: &str, signer: &str) -> Result<(), Status> {
    if may(r, verb, signer) {
        return Ok(());
    }
    Err(r.forbidden(obj, format!("user not permitted to {verb} requests with signerName \"{signer}\"")))
}

/// Nobody becomes an administrator by a client certificate. Looked at as bytes: an organisation stands in the request as
/// it is.
fn subject(r: &Review<'_>, obj: &Value, signer: &str) -> Result<(), Status> {
    use base64::Engine as _;
    if signer != CLIENT {
        return Ok(());
    }
    let engine = base64::engine::general_purpose::STANDARD;
    let pem = engine.decode(obj["spec"]["request"].as_str().unwrap_or_default()).unwrap_or_default();
    let body: String =
        String::from_utf8_lossy(&pem).lines().filter(|l| !l.starts_with("-----")).map(str::trim).collect();
    let der = engine.decode(body).unwrap_or_default();
    if der.windows(MASTERS.len()).any(|w| w == MASTERS.as_bytes()) {
        let why = format!("use of {CLIENT} signer with {MASTERS} group is not allowed");
        return Err(r.forbidden(obj, why));
    }
    Ok(())
}
