//! Probes and lifecycle hooks.

use serde_json::Value;

use super::{NOT_NEGATIVE, complain, given, list, need, one_of, text};
use crate::invalid::Errors;
use crate::names;
use crate::path::Path;

const KINDS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

/// Lifecycle hooks and probes of a container.
pub(super) fn validate(container: &Value, grace: i64, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("lifecycle");
    for key in ["postStart", "preStop"] {
        let hook = &container["lifecycle"][key];
        if !hook.is_null() {
            handler(hook, grace, &at.child(key), errors);
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let p = &container[key];
        if p.is_null() {
            continue;
        }
        let at = path.child(key);
        handler(p, grace, &at, errors);
        for n in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
            if let Some(v) = p[n].as_i64().filter(|v| *v < 0) {
                errors.invalid(&at.child(n), v, NOT_NEGATIVE);
            }
        }
        let grace = p["terminationGracePeriodSeconds"].as_i64();
        let grace_at = at.child("terminationGracePeriodSeconds");
        if let Some(g) = grace.filter(|g| *g <= 0) {
            errors.invalid(&grace_at, g, "must be greater than 0");
        }
        if key == "readinessProbe" {
            if let Some(g) = grace {
                errors.invalid(&grace_at, g, "must not be set for readinessProbes");
            }
        } else if let Some(n) = p["successThreshold"].as_i64().filter(|n| *n != 1) {
            errors.invalid(&at.child("successThreshold"), n, "must be 1");
        }
    }
}

fn handler(h: &Value, grace: i64, path: &Path<'_>, errors: &mut Errors) {
    let mut count = 0;
    for key in KINDS {
        if !given(h, key) {
            continue;
        }
        let (at, what) = (path.child(key), &h[key]);
        if count > 0 {
            errors.forbidden(&at, "may not specify more than 1 handler type");
            continue;
        }
        count += 1;
        match key {
            "exec" => {
                if list(what, "command").is_empty() {
                    errors.required(&at.child("command"), "");
                }
            }
            "httpGet" => {
                need(what, "path", &at, errors);
                port(&what["port"], &at.child("port"), errors);
                one_of(what, "scheme", &["HTTP", "HTTPS"], &at, errors);
                for header in list(what, "httpHeaders") {
                    let name = text(header, "name");
                    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
                        errors.invalid(&at.child("httpHeaders"), name, "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')");
                    }
                }
            }
            "tcpSocket" | "grpc" => port(&what["port"], &at.child("port"), errors),
            _ => {
                let seconds = what["seconds"].as_i64().unwrap_or(0);
                if seconds < 0 || seconds > grace {
                    let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                    errors.invalid(&at, seconds, why);
                }
            }
        }
    }
    if count == 0 {
        errors.required(path, "must specify a handler type");
    }
}

/// A port number or the name of a port (which need not exist).
fn port(p: &Value, at: &Path<'_>, errors: &mut Errors) {
    if let Some(name) = p.as_str() {
        if name.is_empty() {
            errors.invalid(at, "", "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)");
        }
        complain(at, name, names::is_port_name(name), errors);
    } else {
        let n = p.as_i64().unwrap_or(0);
        for why in names::is_port(n) {
            errors.invalid(at, n, why);
        }
    }
}
