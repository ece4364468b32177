//! Ingress and IngressClass.

use std::net::IpAddr;

use serde_json::Value;

use super::addresses::load_balancer_status;
use crate::invalid::Errors;
use crate::kinds::check::{complain, domain_prefixed_path, given, immutable, list, subdomain_if_given, text};
use crate::kinds::{Strategy, Traits, defaults};
use crate::names;
use crate::path::Path;

const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";

/// Rules of Ingresses.
pub(in crate::kinds) struct Ingress;

impl Strategy for Ingress {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { generation: true, status: true, ..Traits::DEFAULT };
        &T
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        validate_spec(&obj["spec"], errors);
        let old = obj["metadata"]["annotations"][CLASS_ANNOTATION].as_str();
        let class = obj["spec"]["ingressClassName"].as_str();
        if let (Some(a), Some(c)) = (old, class)
            && a != c
        {
            let m = Path::new("metadata");
            let at = m.child("annotations");
            let why = "must match `ingressClassName` when both are specified";
            errors.invalid(&at.child(CLASS_ANNOTATION), a, why);
        }
    }

    fn validate_update(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        validate_spec(&new["spec"], errors);
    }

    fn validate_status(&self, new: &Value, _old: &Value, errors: &mut Errors) {
        load_balancer_status(new, false, errors);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        if old.is_none() && new["metadata"]["annotations"].get(CLASS_ANNOTATION).is_some() {
            out.push(format!(
                "annotation \"{CLASS_ANNOTATION}\" is deprecated, please use 'spec.ingressClassName' instead"
            ));
        }
    }
}

fn validate_spec(spec: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let rules = list(spec, "rules");
    if rules.is_empty() && !given(spec, "defaultBackend") {
        let why = "either `defaultBackend` or `rules` must be specified";
        errors.invalid(&path, spec["rules"].clone(), why);
    }
    if given(spec, "defaultBackend") {
        backend(&spec["defaultBackend"], &path.child("defaultBackend"), errors);
    }
    let all = path.child("rules");
    for (i, r) in rules.iter().enumerate() {
        let at = all.index(i);
        let host = text(r, "host");
        if !host.is_empty() {
            if host.parse::<IpAddr>().is_ok() {
                errors.invalid(&at.child("host"), host, "must be a DNS name, not an IP address");
            }
            host_name(host, &at.child("host"), errors);
        }
        if given(r, "http") {
            let http = at.child("http");
            let paths_at = http.child("paths");
            let paths = list(&r["http"], "paths");
            if paths.is_empty() {
                errors.required(&paths_at, "");
            }
            for (j, p) in paths.iter().enumerate() {
                http_path(p, &paths_at.index(j), errors);
            }
        }
    }
    let all = path.child("tls");
    for (i, t) in list(spec, "tls").iter().enumerate() {
        let at = all.index(i);
        let hosts = at.child("hosts");
        for (j, h) in list(t, "hosts").iter().filter_map(Value::as_str).enumerate() {
            host_name(h, &hosts.index(j), errors);
        }
        subdomain_if_given(t, "secretName", &at, errors);
    }
    if let Some(c) = spec["ingressClassName"].as_str() {
        complain(&path.child("ingressClassName"), c, names::is_dns1123_subdomain(c), errors);
    }
}

fn host_name(host: &str, path: &Path<'_>, errors: &mut Errors) {
    let why = if host.contains('*') { names::is_wildcard_subdomain(host) } else { names::is_dns1123_subdomain(host) };
    complain(path, host, why, errors);
}

fn http_path(p: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("path");
    let given_path = text(p, "path");
    match p["pathType"].as_str() {
        None => {
            errors.required(&path.child("pathType"), "pathType must be specified");
            return;
        }
        Some("Exact" | "Prefix") => {
            if !given_path.starts_with('/') {
                errors.invalid(&at, given_path, "must be an absolute path");
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"] {
                if given_path.contains(part) {
                    errors.invalid(&at, given_path, format!("must not contain '{part}'"));
                }
            }
            for end in ["/..", "/."] {
                if given_path.ends_with(end) {
                    errors.invalid(&at, given_path, format!("cannot end with '{end}'"));
                }
            }
        }
        Some("ImplementationSpecific") => {
            if !given_path.is_empty() && !given_path.starts_with('/') {
                errors.invalid(&at, given_path, "must be an absolute path");
            }
        }
        Some(t) => errors.not_supported(&path.child("pathType"), t, &["Exact", "ImplementationSpecific", "Prefix"]),
    }
    backend(&p["backend"], &path.child("backend"), errors);
}

fn backend(b: &Value, path: &Path<'_>, errors: &mut Errors) {
    match (given(b, "resource"), given(b, "service")) {
        (true, true) => errors.invalid(path, "", "cannot set both resource and service backends"),
        (false, false) => errors.invalid(path, "", "resource or service backend is required"),
        (true, false) => {
            let (at, r) = (path.child("resource"), &b["resource"]);
            api_group(r, &at, errors);
            reference(r, &at, errors);
        }
        (false, true) => {
            let (at, s) = (path.child("service"), &b["service"]);
            let name = text(s, "name");
            if name.is_empty() {
                errors.required(&at.child("name"), "");
            } else {
                complain(&at.child("name"), name, names::is_dns1123_label(name), errors);
            }
            let port = at.child("port");
            let (port_name, number) = (text(&s["port"], "name"), s["port"]["number"].as_i64().unwrap_or(0));
            match (!port_name.is_empty(), number != 0) {
                (true, true) => errors.invalid(path, "", "cannot set both port name & port number"),
                (true, false) => complain(&port.child("name"), port_name, names::is_port_name(port_name), errors),
                (false, true) => {
                    for why in names::is_port(number) {
                        errors.invalid(&port.child("number"), number, why);
                    }
                }
                (false, false) => errors.required(path, "port name or number is required"),
            }
        }
    }
}

fn api_group(r: &Value, path: &Path<'_>, errors: &mut Errors) {
    if let Some(g) = r["apiGroup"].as_str() {
        complain(&path.child("apiGroup"), g, names::is_dns1123_subdomain(g), errors);
    }
}

/// Kind and name of an object.
fn reference(r: &Value, path: &Path<'_>, errors: &mut Errors) {
    for key in ["kind", "name"] {
        let s = text(r, key);
        if s.is_empty() {
            errors.required(&path.child(key), "");
        } else {
            complain(&path.child(key), s, names::is_path_segment(s), errors);
        }
    }
}

/// Rules of IngressClasses.
pub(in crate::kinds) struct Class;

impl Strategy for Class {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { generation: true, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        defaults::ingress_class(obj);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (spec, path) = (&obj["spec"], Path::new("spec"));
        let controller = text(spec, "controller");
        let at = path.child("controller");
        if controller.len() > 250 {
            errors.too_long(&at, 250);
        }
        domain_prefixed_path(controller, &at, errors);
        if given(spec, "parameters") {
            parameters(&spec["parameters"], &path.child("parameters"), errors);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(&new["spec"], &old["spec"], "controller", &Path::new("spec"), errors);
        self.validate(new, errors);
    }
}

fn parameters(p: &Value, path: &Path<'_>, errors: &mut Errors) {
    api_group(p, path, errors);
    let scope = text(p, "scope");
    if !matches!(scope, "Cluster" | "Namespace") {
        errors.not_supported(&path.child("scope"), scope, &["Cluster", "Namespace"]);
    }
    for key in ["kind", "name"] {
        let s = text(p, key);
        if s.is_empty() {
            errors.generated(|e| e.required(&path.child(key), ""));
        } else {
            complain(&path.child(key), s, names::is_path_segment(s), errors);
        }
    }
    let (at, namespace) = (path.child("namespace"), &p["namespace"]);
    match (scope, namespace.as_str()) {
        ("Namespace", None) => errors.required(&at, "`parameters.scope` is set to 'Namespace'"),
        ("Namespace", Some(n)) => complain(&at, n, names::is_dns1123_label(n), errors),
        ("Cluster", Some(_)) => errors.forbidden(&at, "`parameters.scope` is set to 'Cluster'"),
        _ => {}
    }
}
