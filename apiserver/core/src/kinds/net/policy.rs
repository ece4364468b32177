//! NetworkPolicy.

use serde_json::Value;

use super::addresses::range;
use crate::invalid::Errors;
use crate::kinds::check::{complain, given, label_selector, list, one_of, text};
use crate::kinds::{Strategy, Traits, defaults};
use crate::names;
use crate::path::Path;

/// Rules of NetworkPolicies.
pub(in crate::kinds) struct Policy;

impl Strategy for Policy {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { generation: true, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        defaults::network_policy(obj);
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (spec, path) = (&obj["spec"], Path::new("spec"));
        label_selector(&spec["podSelector"], &path.child("podSelector"), errors);
        // Required values are looked at after everything else.
        let mut missing = Errors::new();
        for (way, peers) in [("ingress", "from"), ("egress", "to")] {
            let all = path.child(way);
            for (i, rule) in list(spec, way).iter().enumerate() {
                let at = all.index(i);
                let ports = at.child("ports");
                for (j, p) in list(rule, "ports").iter().enumerate() {
                    port(p, &ports.index(j), errors);
                }
                let peers_at = at.child(peers);
                for (j, p) in list(rule, peers).iter().enumerate() {
                    peer(p, &peers_at.index(j), errors, &mut missing);
                }
            }
        }
        types(spec, &path.child("policyTypes"), errors);
        errors.0.append(&mut missing.0);
    }
}

fn types(spec: &Value, path: &Path<'_>, errors: &mut Errors) {
    let known = ["Ingress", "Egress"];
    let all = list(spec, "policyTypes");
    if all.len() > 2 {
        errors.invalid(path, spec["policyTypes"].clone(), "may not specify more than two policyTypes");
        return;
    }
    for (i, t) in all.iter().filter_map(Value::as_str).enumerate().filter(|(_, t)| !known.contains(t)) {
        errors.not_supported(&path.index(i), t, &known);
    }
}

fn port(p: &Value, path: &Path<'_>, errors: &mut Errors) {
    one_of(p, "protocol", &["SCTP", "TCP", "UDP"], path, errors);
    let (at, end_at, end) = (path.child("port"), path.child("endPort"), p["endPort"].as_i64());
    match &p["port"] {
        Value::Number(n) => {
            let n = n.as_i64().unwrap_or(0);
            if let Some(e) = end.filter(|e| *e < n) {
                errors.invalid(&end_at, e, "must be greater than or equal to `port`");
            }
            for why in names::is_port(n) {
                errors.invalid(&at, n, why);
            }
        }
        Value::String(s) => {
            if let Some(e) = end {
                errors.invalid(&end_at, e, "may not be specified when `port` is non-numeric");
            }
            complain(&at, s, names::is_port_name(s), errors);
        }
        _ => {
            if let Some(e) = end {
                errors.invalid(&end_at, e, "may not be specified when `port` is not specified");
            }
        }
    }
}

fn peer(p: &Value, path: &Path<'_>, errors: &mut Errors, missing: &mut Errors) {
    let mut count = 0;
    for key in ["podSelector", "namespaceSelector"] {
        if given(p, key) {
            count += 1;
            label_selector(&p[key], &path.child(key), errors);
        }
    }
    if given(p, "ipBlock") {
        count += 1;
        block(&p["ipBlock"], &path.child("ipBlock"), errors, missing);
    }
    if count == 0 {
        errors.required(path, "must specify a peer");
    } else if count > 1 && given(p, "ipBlock") {
        errors.forbidden(path, "may not specify both ipBlock and another peer");
    }
}

fn block(b: &Value, path: &Path<'_>, errors: &mut Errors, missing: &mut Errors) {
    let (at, cidr) = (path.child("cidr"), text(b, "cidr"));
    if cidr.is_empty() {
        missing.required(&at, "");
        return;
    }
    if let Err(why) = range(cidr) {
        errors.invalid(&at, cidr, why);
    }
    let Ok(outer) = cidr.parse::<ipnet::IpNet>() else { return };
    let all = path.child("except");
    for (i, e) in list(b, "except").iter().filter_map(Value::as_str).enumerate() {
        let here = all.index(i);
        if let Err(why) = range(e) {
            errors.invalid(&here, e, why);
        }
        let Ok(inner) = e.parse::<ipnet::IpNet>() else { continue };
        if !outer.contains(&inner.addr()) || outer.prefix_len() >= inner.prefix_len() {
            errors.invalid(&here, e, "must be a strict subset of `cidr`");
        }
    }
}
