//! Roles and their bindings.

use serde_json::Value;

use super::{Strategy, Traits, defaults};
use crate::invalid::Errors;
use crate::meta::NameRule;
use crate::path::Path;

const T: Traits = Traits { name: NameRule::PathSegment, create_on_update: true, ..Traits::DEFAULT };

fn empty(v: &Value) -> bool {
    v.as_array().is_none_or(Vec::is_empty)
}

/// Rules of Roles and ClusterRoles.
pub(super) struct Role {
    /// Whether rules about non-resource paths are allowed.
    pub(super) cluster: bool,
}

impl Strategy for Role {
    fn traits(&self) -> &Traits {
        &T
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let rules = Path::new("rules");
        for (i, r) in obj["rules"].as_array().into_iter().flatten().enumerate() {
            let at = rules.index(i);
            if !empty(&r["nonResourceURLs"]) {
                let paths = at.child("nonResourceURLs");
                if !self.cluster {
                    errors.invalid_raw(
                        &paths,
                        r["nonResourceURLs"].to_string(),
                        "namespaced rules cannot apply to non-resource URLs",
                    );
                }
                if !empty(&r["apiGroups"]) || !empty(&r["resources"]) || !empty(&r["resourceNames"]) {
                    errors.invalid_raw(
                        &paths,
                        r["nonResourceURLs"].to_string(),
                        "rules cannot apply to both regular resources and non-resource URLs",
                    );
                }
            } else {
                resources(r, &at, errors);
            }
            if empty(&r["verbs"]) {
                errors.generated(|e| e.required(&at.child("verbs"), ""));
            }
        }
    }
}

fn resources(r: &Value, at: &Path<'_>, errors: &mut Errors) {
    if empty(&r["apiGroups"]) {
        errors.required(&at.child("apiGroups"), "resource rules must supply at least one api group");
    }
    if empty(&r["resources"]) {
        errors.required(&at.child("resources"), "resource rules must supply at least one resource");
    }
}

/// Rules of RoleBindings and ClusterRoleBindings.
pub(super) struct Binding {
    /// Whether it is cluster-scoped.
    pub(super) cluster: bool,
}

impl Strategy for Binding {
    fn traits(&self) -> &Traits {
        &T
    }

    fn default(&self, obj: &mut Value) {
        defaults::binding(obj);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let role = &obj["roleRef"];
        let path = Path::new("roleRef");
        let text = |v: &Value, k: &str| v[k].as_str().unwrap_or_default().to_owned();
        const GROUP: &str = "rbac.authorization.k8s.io";
        if text(role, "apiGroup") != GROUP {
            errors.not_supported(&path.child("apiGroup"), text(role, "apiGroup"), &[GROUP]);
        }
        let kinds: &[&str] = if self.cluster { &["ClusterRole"] } else { &["Role", "ClusterRole"] };
        if !kinds.contains(&text(role, "kind").as_str()) {
            errors.not_supported(&path.child("kind"), text(role, "kind"), kinds);
        }
        let name = text(role, "name");
        if !name.is_empty() {
            for why in crate::names::is_path_segment(&name) {
                errors.invalid(&path.child("name"), name.as_str(), why);
            }
        }
        let subjects = Path::new("subjects");
        for (i, s) in obj["subjects"].as_array().into_iter().flatten().enumerate() {
            let at = subjects.index(i);
            if text(s, "name").is_empty() {
                errors.generated(|e| e.required(&at.child("name"), ""));
            }
            match text(s, "kind").as_str() {
                "ServiceAccount" => {
                    for why in crate::names::is_dns1123_subdomain(&text(s, "name")) {
                        if !text(s, "name").is_empty() {
                            errors.invalid(&at.child("name"), text(s, "name"), why);
                        }
                    }
                    if !text(s, "apiGroup").is_empty() {
                        errors.not_supported(&at.child("apiGroup"), text(s, "apiGroup"), &[""]);
                    }
                    if self.cluster && text(s, "namespace").is_empty() {
                        errors.required(&at.child("namespace"), "");
                    }
                }
                "User" | "Group" => {
                    if text(s, "apiGroup") != GROUP {
                        errors.not_supported(&at.child("apiGroup"), text(s, "apiGroup"), &[GROUP]);
                    }
                }
                other => errors.not_supported(&at.child("kind"), other, &["ServiceAccount", "User", "Group"]),
            }
        }
        if name.is_empty() {
            errors.generated(|e| e.required(&path.child("name"), ""));
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        if new["roleRef"] != old["roleRef"] {
            let shown = new["roleRef"].to_string();
            errors.generated(|e| e.invalid_raw(&Path::new("roleRef"), shown, "field is immutable"));
        }
    }
}
