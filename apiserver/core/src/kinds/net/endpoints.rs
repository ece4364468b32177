//! EndpointSlice and Endpoints.

use std::net::IpAddr;

use serde_json::Value;

use super::addresses::{bad_ip, endpoint_ip, not_canonical_ip};
use crate::invalid::Errors;
use crate::kinds::check::{complain, immutable_untold, list, one_of, text};
use crate::kinds::{Strategy, Traits, defaults};
use crate::meta;
use crate::names;
use crate::path::Path;

const ROOT: Path<'static> = Path::new("");
const PROTOCOLS: &[&str] = &["SCTP", "TCP", "UDP"];
const MAX_ADDRESSES: usize = 100;
const MAX_HINTS: usize = 8;
const MAX_PORTS: usize = 20_000;
const MAX_ENDPOINTS: usize = 1000;

/// Rules of EndpointSlices.
pub(in crate::kinds) struct EndpointSlice;

impl Strategy for EndpointSlice {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { generation: true, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        defaults::endpoint_slice(obj);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        // Labels say which Service a slice belongs to, so they count.
        let before = old["metadata"]["generation"].as_i64().unwrap_or(0);
        let changed = self.desired_changed(new, old) || new["metadata"]["labels"] != old["metadata"]["labels"];
        meta::meta_mut(new).insert("generation".into(), (before + i64::from(changed)).into());
    }

    /// No list is an empty one.
    fn desired_changed(&self, new: &Value, old: &Value) -> bool {
        ["endpoints", "ports"].iter().any(|key| list(new, key) != list(old, key))
            || new.get("addressType") != old.get("addressType")
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let kind = text(obj, "addressType");
        errors.generated(|e| match kind {
            "" => e.required(&ROOT.child("addressType"), ""),
            _ => one_of(obj, "addressType", &["FQDN", "IPv4", "IPv6"], &ROOT, e),
        });
        ports(obj, errors);
        let all = ROOT.child("endpoints");
        let endpoints = list(obj, "endpoints");
        if endpoints.len() > MAX_ENDPOINTS {
            errors.too_many(&all, endpoints.len(), MAX_ENDPOINTS);
        }
        for (i, e) in endpoints.iter().enumerate() {
            endpoint(e, kind, &all.index(i), errors);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, errors);
        errors.generated(|e| immutable_untold(new, old, "addressType", &ROOT, e));
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        if old.is_none() && new["addressType"] == "FQDN" {
            out.push("spec.addressType: FQDN endpoints are deprecated".into());
        }
    }
}

fn endpoint(e: &Value, kind: &str, at: &Path<'_>, errors: &mut Errors) {
    let addresses = list(e, "addresses");
    let addresses_at = at.child("addresses");
    if addresses.is_empty() {
        errors.generated(|e| e.required(&addresses_at, ""));
    } else if addresses.len() > MAX_ADDRESSES {
        errors.generated(|e| e.too_many(&addresses_at, addresses.len(), MAX_ADDRESSES));
    }
    for (i, a) in addresses.iter().filter_map(Value::as_str).enumerate() {
        let here = addresses_at.index(i);
        match kind {
            "IPv4" | "IPv6" => {
                // How an address of the wrong family is written does not matter any more.
                let wrong = a.parse::<IpAddr>().is_ok_and(|ip| ip.is_ipv6() != (kind == "IPv6"));
                match not_canonical_ip(a).filter(|_| !wrong) {
                    Some(why) => errors.invalid(&here, a, why),
                    None => {
                        if wrong {
                            errors.invalid(&addresses_at, a, format!("must be an {kind} address"));
                        }
                        endpoint_ip(a, &here, errors);
                    }
                }
            }
            "FQDN" => {
                let bare = a.strip_suffix('.').unwrap_or(a);
                complain(&here, a, names::is_dns1123_subdomain(bare), errors);
                if !bare.contains('.') {
                    errors.invalid(&here, a, "should be a domain with at least two segments separated by dots");
                }
            }
            _ => {}
        }
    }
    if let Some(n) = e["nodeName"].as_str() {
        complain(&at.child("nodeName"), n, names::is_dns1123_subdomain(n), errors);
    }
    if let Some(h) = e["hostname"].as_str() {
        complain(&at.child("hostname"), h, names::is_dns1123_label(h), errors);
    }
    let hints = at.child("hints");
    for (key, rule) in
        [("forZones", names::is_label_value as fn(&str) -> Vec<String>), ("forNodes", names::is_dns1123_subdomain)]
    {
        let (all, given) = (hints.child(key), list(&e["hints"], key));
        if given.len() > MAX_HINTS {
            errors.too_many(&all, given.len(), MAX_HINTS);
        }
        let mut seen = vec![];
        for (i, h) in given.iter().enumerate() {
            let (one, name) = (all.index(i), text(h, "name"));
            if seen.contains(&name) {
                errors.duplicate(&one.child("name"), name);
            }
            complain(&one.child("name"), name, rule(name), errors);
            seen.push(name);
        }
    }
}

fn ports(obj: &Value, errors: &mut Errors) {
    let (all, ports) = (ROOT.child("ports"), list(obj, "ports"));
    if ports.len() > MAX_PORTS {
        errors.too_many(&all, ports.len(), MAX_PORTS);
        return;
    }
    let mut seen = std::collections::BTreeSet::new();
    for (i, p) in ports.iter().enumerate() {
        let (at, name) = (all.index(i), text(p, "name"));
        if !seen.insert(name) {
            errors.duplicate(&at.child("name"), name);
        }
        if !name.is_empty() {
            complain(&at.child("name"), name, names::is_dns1123_label(name), errors);
        }
        one_of(p, "protocol", PROTOCOLS, &at, errors);
        app_protocol(p, &at, errors);
    }
}

fn app_protocol(p: &Value, at: &Path<'_>, errors: &mut Errors) {
    if let Some(a) = p["appProtocol"].as_str() {
        complain(&at.child("appProtocol"), a, names::is_qualified_name(a), errors);
    }
}

/// Rules of Endpoints.
pub(in crate::kinds) struct Endpoints;

impl Strategy for Endpoints {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { create_on_update: true, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        defaults::endpoints(obj);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let all = ROOT.child("subsets");
        for (i, s) in list(obj, "subsets").iter().enumerate() {
            let at = all.index(i);
            if list(s, "addresses").is_empty() && list(s, "notReadyAddresses").is_empty() {
                errors.required(&at, "must specify `addresses` or `notReadyAddresses`");
            }
            for key in ["addresses", "notReadyAddresses"] {
                let addresses = at.child(key);
                for (j, a) in list(s, key).iter().enumerate() {
                    address(a, &addresses.index(j), errors);
                }
            }
            let (ports_at, ports) = (at.child("ports"), list(s, "ports"));
            for (j, p) in ports.iter().enumerate() {
                port(p, ports.len() > 1, &ports_at.index(j), errors);
            }
        }
    }
}

fn address(a: &Value, at: &Path<'_>, errors: &mut Errors) {
    let (ip, host) = (text(a, "ip"), text(a, "hostname"));
    if let Some(why) = bad_ip(ip) {
        errors.invalid(&at.child("ip"), ip, why);
    }
    if !host.is_empty() {
        complain(&at.child("hostname"), host, names::is_dns1123_label(host), errors);
    }
    if let Some(n) = a["nodeName"].as_str() {
        complain(&at.child("nodeName"), n, names::is_dns1123_subdomain(n), errors);
    }
    endpoint_ip(ip, &at.child("ip"), errors);
}

fn port(p: &Value, named: bool, at: &Path<'_>, errors: &mut Errors) {
    let name = text(p, "name");
    if !name.is_empty() {
        complain(&at.child("name"), name, names::is_dns1123_label(name), errors);
    } else if named {
        errors.required(&at.child("name"), "");
    }
    let number = p["port"].as_i64().unwrap_or(0);
    for why in names::is_port(number) {
        errors.invalid(&at.child("port"), number, why);
    }
    one_of(p, "protocol", PROTOCOLS, at, errors);
    app_protocol(p, at, errors);
}
