//! Names and addresses of a pod: DNS policy and configuration, host names, host aliases.

use serde_json::Value;

use super::{complain, given, list, one_of, text};
use crate::invalid::Errors;
use crate::kinds::net::bad_ip;
use crate::names;
use crate::path::Path;

const SEARCH: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')";

pub(super) fn validate_policy(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    one_of(spec, "dnsPolicy", &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"], path, errors);
}

/// `dnsConfig`, and what `dnsPolicy: None` demands of it.
pub(super) fn validate_dns(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let at = path.child("dnsConfig");
    let config = &spec["dnsConfig"];
    let servers = list(config, "nameservers");
    if text(spec, "dnsPolicy") == "None" {
        if config.is_null() {
            errors.required(&at, "must provide `dnsConfig` when `dnsPolicy` is None");
            return;
        }
        if servers.is_empty() {
            errors.required(
                &at.child("nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
            return;
        }
    }
    let here = at.child("nameservers");
    if servers.len() > 3 {
        errors.invalid(&here, servers.to_vec(), "must not have more than 3 nameservers");
    }
    for (i, s) in servers.iter().enumerate() {
        let s = s.as_str().unwrap_or_default();
        if let Some(why) = bad_ip(s) {
            errors.invalid(&here.index(i), s, why);
        }
    }
    let here = at.child("searches");
    let searches = list(config, "searches");
    if searches.len() > 32 {
        errors.invalid(&here, searches.to_vec(), "must not have more than 32 search paths");
    }
    let total: usize = searches.iter().map(|s| s.as_str().unwrap_or_default().len() + 1).sum();
    if total.saturating_sub(1) > 2048 {
        errors.invalid(
            &here,
            searches.to_vec(),
            "must not have more than 2048 characters (including spaces) in the search list",
        );
    }
    for (i, s) in searches.iter().enumerate() {
        let s = s.as_str().unwrap_or_default();
        let name = s.strip_suffix('.').unwrap_or(s);
        if s != "." && !is_search(name) {
            errors.invalid(&here.index(i), name, SEARCH);
        }
    }
    let here = at.child("options");
    for (i, o) in list(config, "options").iter().enumerate() {
        if text(o, "name").is_empty() {
            errors.required(&here.index(i), "must not be empty");
        }
    }
}

/// A search path: a subdomain whose labels may hold underscores.
fn is_search(s: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    s.len() <= names::DNS1123_SUBDOMAIN_MAX
        && s.split('.').all(|l| {
            let l = l.strip_prefix('_').unwrap_or(l).as_bytes();
            matches!((l.first(), l.last()), (Some(&a), Some(&z)) if inner(a) && inner(z))
                && l.iter().all(|&c| inner(c) || c == b'-' || c == b'_')
        })
}

/// `hostname`, `subdomain`, `hostnameOverride`.
pub(super) fn validate_host_names(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    for key in ["hostname", "subdomain"] {
        let s = text(spec, key);
        if !s.is_empty() {
            complain(&path.child(key), s, names::is_dns1123_label(s), errors);
        }
    }
}

pub(super) fn validate_host_name_override(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    if !given(spec, "hostnameOverride") {
        return;
    }
    let (at, name) = (path.child("hostnameOverride"), text(spec, "hostnameOverride"));
    if spec["setHostnameAsFQDN"] == true {
        errors.forbidden(&at, "may not be specified when setHostnameAsFQDN is true");
    }
    if spec["hostNetwork"] == true {
        errors.forbidden(&at, "may not be specified when hostNetwork is true");
    }
    if name.len() > 64 {
        errors.too_long(&at, 64);
    }
    complain(&at, name, names::is_dns1123_subdomain(name), errors);
}

pub(super) fn validate_aliases(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    for (i, a) in list(spec, "hostAliases").iter().enumerate() {
        let at = path.index(i);
        if let Some(why) = bad_ip(text(a, "ip")) {
            errors.invalid(&at.child("ip"), text(a, "ip"), why);
        }
        let hosts = at.child("hostnames");
        for (j, h) in list(a, "hostnames").iter().enumerate() {
            let h = h.as_str().unwrap_or_default();
            complain(&hosts.index(j), h, names::is_dns1123_subdomain(h), errors);
        }
    }
}
