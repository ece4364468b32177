//! One request as policies and webhooks see it: what is done, to what, by whom.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use skiff_core::custom::cel::{Authorizer, Check, Decision};
use skiff_core::meta;
use skiff_core::status::Status;
use tokio::time::Instant;

use super::Operation;
use crate::auth::User;
use crate::auth::rbac::Attributes;
use crate::registry::Kind;
use crate::server::Inner;
use crate::subresources::reviews::user_info;
use crate::verbs::Call;

/// All policies and webhooks of a request together may take this long.
const TIME_MAX: Duration = Duration::from_secs(34);

/// One request.
pub(super) struct Action<'a> {
    pub(super) server: &'a Arc<Inner>,
    /// Kind of the resource at the endpoint.
    pub(super) kind: &'a Arc<Kind>,
    pub(super) user: &'a User,
    pub(super) operation: Operation,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) subresource: &'a str,
    pub(super) dry_run: bool,
    pub(super) deadline: Instant,
    /// Group, version, kind of the object, which is not the endpoint's for some subresources.
    gvk: [String; 3],
    options: Value,
}

impl<'a> Action<'a> {
    /// The action of a call on an object; `object` is the new state, or what there was when it is deleted.
    pub(super) fn new(
        server: &'a Arc<Inner>,
        kind: &'a Arc<Kind>,
        call: &'a Call,
        operation: Operation,
        object: &Value,
        dry_run: bool,
    ) -> Self {
        let api_version = object["apiVersion"].as_str().unwrap_or_default();
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let text = |key: &str| object[key].as_str().unwrap_or_default().to_owned();
        let own = meta::name(object);
        let name = if call.target.name.is_empty() { own } else { &call.target.name }.to_owned();
        let is_namespace = kind.group().is_empty() && kind.plural() == "namespaces";
        let namespace = if is_namespace {
            name.clone()
        } else if kind.resource.namespaced {
            match meta::namespace(object) {
                "" => call.target.namespace.clone(),
                ns => ns.to_owned(),
            }
        } else {
            String::new()
        };
        Self {
            server,
            kind,
            user: &call.user,
            operation,
            namespace,
            name,
            subresource: &call.target.subresource,
            dry_run,
            deadline: Instant::now() + TIME_MAX,
            gvk: [group.to_owned(), version.to_owned(), text("kind")],
            options: options(call, operation),
        }
    }

    /// Whether the object is of the endpoint's own kind, and not a view or a request of a subresource.
    pub(super) fn is_whole(&self) -> bool {
        let r = &self.kind.resource;
        self.gvk[0] == r.group && self.gvk[1] == r.version && self.gvk[2] == r.kind
    }

    /// Whether the resource is `namespaces`.
    pub(super) fn is_namespace(&self) -> bool {
        self.kind.group().is_empty() && self.kind.plural() == "namespaces"
    }

    /// The request of an AdmissionReview, without its uid and objects; `seen` is the kind it was matched as.
    pub(super) fn request(&self, seen: &Kind) -> Value {
        let kind = |[group, version, kind]: [&str; 3]| json!({"group": group, "version": version, "kind": kind});
        let resource = |k: &Kind| {
            let r = &k.resource;
            json!({"group": r.group, "version": r.version, "resource": r.plural})
        };
        let own = kind(self.gvk.each_ref().map(String::as_str));
        let r = &seen.resource;
        let as_seen = if self.is_whole() { kind([&r.group, &r.version, &r.kind]) } else { own.clone() };
        let mut out = json!({"kind": as_seen, "resource": resource(seen), "requestKind": own,
            "requestResource": resource(self.kind), "operation": self.operation.as_str(),
            "userInfo": user_info(self.user), "dryRun": self.dry_run, "options": self.options});
        let text = [
            ("subResource", self.subresource),
            ("requestSubResource", self.subresource),
            ("name", &self.name),
            ("namespace", &self.namespace),
        ];
        for (key, value) in text {
            if !value.is_empty() {
                out[key] = value.into();
            }
        }
        out
    }

    /// The namespace of the request; `None` of cluster-wide ones.
    ///
    /// # Errors
    /// 404 when it is not there.
    pub(super) fn namespace_object(&self) -> Result<Option<Value>, Status> {
        if self.namespace.is_empty() {
            return Ok(None);
        }
        let found = self.server.peek("", "namespaces", "", &self.namespace);
        found.map(Some).ok_or_else(|| Status::not_found("", "namespaces", &self.namespace))
    }

    /// Who answers questions about permissions, and the question what the request itself is.
    pub(super) fn authorizer(&self) -> (Arc<dyn Authorizer>, Check) {
        let own = Check {
            group: self.kind.group().to_owned(),
            resource: self.kind.plural().to_owned(),
            subresource: self.subresource.to_owned(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            ..Check::default()
        };
        (Arc::new(Permissions { server: Arc::clone(self.server), user: self.user.clone() }), own)
    }
}

/// The options of a request as an object.
fn options(call: &Call, operation: Operation) -> Value {
    let query = |key: &str| call.query.get(key).filter(|v| !v.is_empty());
    match operation {
        Operation::Connect => return Value::Null,
        Operation::Delete => {
            let mut out = serde_json::from_slice(&call.body).ok().filter(Value::is_object).unwrap_or_else(|| json!({}));
            for (key, number) in
                [("gracePeriodSeconds", true), ("orphanDependents", false), ("propagationPolicy", false)]
            {
                if let Some(v) = query(key) {
                    let parsed = serde_json::from_str(v).ok().filter(|v: &Value| v.is_number() == number);
                    out[key] = parsed.unwrap_or_else(|| v.into());
                }
            }
            out["kind"] = "DeleteOptions".into();
            out["apiVersion"] = "meta.k8s.io/v1".into();
            return out;
        }
        Operation::Create | Operation::Update => {}
    }
    let kind = if operation == Operation::Create { "CreateOptions" } else { "UpdateOptions" };
    let mut out = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
    for key in ["fieldManager", "fieldValidation"] {
        if let Some(v) = query(key) {
            out[key] = v.into();
        }
    }
    let dry: Vec<&str> = call.query.all("dryRun").filter(|v| !v.is_empty()).collect();
    if !dry.is_empty() {
        out["dryRun"] = json!(dry);
    }
    out
}

/// The server's own rules, asked for a user.
struct Permissions {
    server: Arc<Inner>,
    user: User,
}

impl std::fmt::Debug for Permissions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permissions").field("user", &self.user.name).finish_non_exhaustive()
    }
}

impl Authorizer for Permissions {
    fn decide(&self, account: Option<(&str, &str)>, check: &Check) -> Decision {
        let own;
        let user = match account {
            Some((ns, name)) => {
                let group = format!("system:serviceaccounts:{ns}");
                own = User::new(format!("system:serviceaccount:{ns}:{name}"), &["system:serviceaccounts", &group]);
                &own
            }
            None => &self.user,
        };
        let resource = match check.subresource.as_str() {
            "" => check.resource.clone(),
            sub => format!("{}/{sub}", check.resource),
        };
        let attributes = Attributes {
            path: check.path.clone(),
            ..Attributes::resource(&check.verb, &check.group, &resource, &check.namespace, &check.name)
        };
        match self.server.authorise(user, &attributes) {
            Ok(reason) => Decision { allowed: true, reason, error: None },
            Err(_) => Decision::default(),
        }
    }
}
