//! AdmissionReview, v1 and v1beta1: what webhooks are sent, and what is accepted from them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Value, json};
use skiff_core::invalid::quote_str;
use skiff_core::status::Status;

use crate::admission::action::Action;
use crate::registry::Kind;

const GROUP: &str = "admission.k8s.io";
/// Warnings of one webhook that are passed on, and how long each may be.
const WARNINGS_MAX: usize = 64;

/// A usable answer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    /// The `status` of a refusal.
    pub(super) refusal: Option<Value>,
    /// A JSON patch.
    pub(super) patch: Option<Vec<u8>>,
    pub(super) warnings: Vec<String>,
    /// What the audit log is to say.
    pub(super) audit: Vec<(String, String)>,
}

impl Answer {
    /// Puts what the webhook has to say on the request's record, under its name.
    pub(super) fn annotate(&self, webhook: &str) {
        for (key, value) in &self.audit {
            crate::audit::annotate(format!("{webhook}/{key}"), value.as_str());
        }
    }
}

/// The request as JSON.
pub(super) fn request(
    version: &str,
    uid: &str,
    a: &Action<'_>,
    kind: &Kind,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Bytes {
    let mut request = a.request(kind);
    request["uid"] = uid.into();
    request["object"] = object.cloned().unwrap_or_default();
    request["oldObject"] = old.cloned().unwrap_or_default();
    let review = json!({"kind": "AdmissionReview", "apiVersion": format!("{GROUP}/{version}"), "request": request});
    review.to_string().into()
}

/// Reads an answer.
///
/// # Errors
/// Why it cannot be used, in upstream's words.
pub(super) fn answer(v: &Value, version: &str, uid: &str, mutating: bool) -> Result<Answer, String> {
    let text = |v: &Value, key: &str| v[key].as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text(v, "apiVersion"), text(v, "kind"));
    let beta = version == "v1beta1";
    // The older version was accepted without saying what it is.
    if !(beta && api_version.is_empty() && kind.is_empty())
        && (kind != "AdmissionReview" || api_version != format!("{GROUP}/{version}"))
    {
        let shown = if api_version.contains('/') { api_version } else { format!("/{api_version}") };
        return Err(format!(
            "expected webhook response of {GROUP}/{version}, Kind=AdmissionReview, got {shown}, Kind={kind}"
        ));
    }
    let response = &v["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    let echoed = text(response, "uid");
    if !beta && echoed != uid {
        return Err(format!("expected response.uid={}, got {}", quote_str(uid), quote_str(&echoed)));
    }
    let warnings = response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let mut out = Answer { warnings: warnings.take(WARNINGS_MAX).map(str::to_owned).collect(), ..Answer::default() };
    let annotations = response["auditAnnotations"].as_object().into_iter().flatten();
    out.audit = annotations.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
    let (patch, sort) = (text(response, "patch"), text(response, "patchType"));
    if !beta && !patch.is_empty() && !mutating {
        return Err("validating webhook may not return response.patch".to_owned());
    }
    if !patch.is_empty() && mutating {
        if sort.is_empty() && !beta {
            return Err("webhook returned response.patch but not response.patchType".to_owned());
        }
        if sort != "JSONPatch" && !sort.is_empty() {
            return Err(format!("webhook returned invalid response.patchType of {}", quote_str(&sort)));
        }
        let bytes = STANDARD.decode(&patch).map_err(|_| "response.patch is not base64".to_owned())?;
        out.patch = Some(bytes);
    } else if patch.is_empty() && !sort.is_empty() && !beta {
        return Err("webhook returned response.patchType but not response.patch".to_owned());
    }
    if response["allowed"] != true {
        out.refusal = Some(response["status"].clone());
        out.patch = None;
    }
    Ok(out)
}

/// Reasons that statuses have. Others than upstream's own are told as none.
const REASONS: [&str; 20] = [
    "Unauthorized",
    "Forbidden",
    "NotFound",
    "AlreadyExists",
    "Conflict",
    "Gone",
    "Invalid",
    "ServerTimeout",
    "StoreReadError",
    "Timeout",
    "TooManyRequests",
    "BadRequest",
    "MethodNotAllowed",
    "NotAcceptable",
    "RequestEntityTooLarge",
    "UnsupportedMediaType",
    "InternalError",
    "Expired",
    "ServiceUnavailable",
    "Unknown",
];

/// The Status of a refusal: the webhook's own, with who said it before its words.
pub(super) fn refused(webhook: &str, status: Value) -> Status {
    let by = format!("admission webhook {} denied the request", quote_str(webhook));
    let text = |key: &str| status[key].as_str().unwrap_or_default();
    let message = match (text("message"), text("reason")) {
        ("", "") => format!("{by} without explanation"),
        ("", why) | (why, _) => format!("{by}: {why}"),
    };
    let code = status["code"].as_u64().and_then(|c| u16::try_from(c).ok()).filter(|c| (400..600).contains(c));
    let reason = REASONS.into_iter().find(|r| *r == text("reason")).unwrap_or_default();
    let mut s = Status::new(code.unwrap_or(400), reason, message);
    s.details = status["details"].as_object().cloned().map(Box::new);
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        let whole = |response: Value| json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response});
        let said = |v: &Value, mutating| answer(v, "v1", "u", mutating).map(|a| (a.refusal, a.patch, a.warnings));
        let patch = STANDARD.encode("[]");
        let cases = [
            (whole(json!({"uid": "u", "allowed": true})), true, Ok((None, None, vec![]))),
            (
                whole(
                    json!({"uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": patch, "warnings": ["w"]}),
                ),
                true,
                Ok((None, Some(b"[]".to_vec()), vec!["w".to_owned()])),
            ),
            (
                whole(json!({"uid": "u", "allowed": false, "status": {"code": 403}})),
                false,
                Ok((Some(json!({"code": 403})), None, vec![])),
            ),
            (whole(json!({"uid": "v", "allowed": true})), true, Err("expected response.uid=\"u\", got \"v\"")),
            (whole(Value::Null), true, Err("webhook response was absent")),
            (
                whole(json!({"uid": "u", "allowed": true, "patch": patch})),
                true,
                Err("webhook returned response.patch but not response.patchType"),
            ),
            (
                whole(json!({"uid": "u", "allowed": true, "patch": patch, "patchType": "JSONPatch"})),
                false,
                Err("validating webhook may not return response.patch"),
            ),
            (
                whole(json!({"uid": "u", "allowed": true, "patch": patch, "patchType": "Merge"})),
                true,
                Err("webhook returned invalid response.patchType of \"Merge\""),
            ),
            (
                json!({"kind": "Status", "apiVersion": "v1"}),
                true,
                Err("expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got /v1, Kind=Status"),
            ),
        ];
        for (v, mutating, want) in cases {
            assert_eq!(said(&v, mutating), want.map_err(str::to_owned), "{v}");
        }
    }

    /// (status, code, reason, message)
    #[test]
    fn refusals() {
        let cases = [
            (Value::Null, 400, "", "admission webhook \"w\" denied the request without explanation"),
            (json!({"message": "no"}), 400, "", "admission webhook \"w\" denied the request: no"),
            (
                json!({"code": 403, "reason": "Forbidden"}),
                403,
                "Forbidden",
                "admission webhook \"w\" denied the request: Forbidden",
            ),
            (json!({"code": 200, "message": "m"}), 400, "", "admission webhook \"w\" denied the request: m"),
        ];
        for (v, code, reason, message) in cases {
            let s = refused("w", v);
            assert_eq!((s.code, s.reason, s.message.as_str()), (code, reason, message));
        }
    }
}
