//! Signing requests: which are approved without a person, signing what is approved, and removing what is old.
//!
//! Three signers are served: `kubernetes.io/kube-apiserver-client`, `-client-kubelet` and `kubelet-serving`. Approved by
//! itself is only what node agents ask for: their client certificate, when the asker may (a SubjectAccessReview of
//! `nodeclient` or `selfnodeclient`), and their serving certificate, when it names nothing but the node's own name and
//! addresses. Everything else waits for `kubectl certificate approve`.

pub mod approve;
pub mod clean;
pub mod der;
pub mod request;
pub mod sign;

use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};

use crate::runtime::now;

/// Signer of client certificates for anybody.
pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// Signer of node agents' client certificates.
pub const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Signer of node agents' serving certificates.
pub const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";

/// The condition of a type.
#[must_use]
pub fn condition<'a>(
    object: &'a CertificateSigningRequest,
    kind: &str,
) -> Option<&'a CertificateSigningRequestCondition> {
    object.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == kind)
}

/// Whether somebody has decided over the request.
#[must_use]
pub fn decided(object: &CertificateSigningRequest) -> bool {
    condition(object, "Approved").is_some() || condition(object, "Denied").is_some()
}

/// The certificate, once there is one.
#[must_use]
pub fn certificate(object: &CertificateSigningRequest) -> Option<&[u8]> {
    object.status.as_ref()?.certificate.as_ref().map(|c| c.0.as_slice()).filter(|c| !c.is_empty())
}

fn add_condition(object: &mut CertificateSigningRequest, kind: &str, reason: &str, message: String) {
    let at = now();
    object.status.get_or_insert_default().conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
        type_: kind.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(at.clone()),
        last_transition_time: Some(at),
    });
}
