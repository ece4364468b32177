//! The addresses of a Service and the families they belong to, on a cluster that has IPv4 only.
//!
//! Upstream settles these before it allocates anything and before it looks at the rest: what is wrong here is told alone.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::kind;
use crate::invalid::Errors;
use crate::kinds::check::{list, text};
use crate::kinds::net::bad_ip;
use crate::path::Path;

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
const POLICIES: [&str; 3] = ["PreferDualStack", "RequireDualStack", "SingleStack"];

fn texts<'a>(spec: &'a Value, key: &str) -> Vec<&'a str> {
    list(spec, key).iter().map(|v| v.as_str().unwrap_or_default()).collect()
}

fn family(address: &str) -> &'static str {
    if address.parse::<IpAddr>().is_ok_and(|a| a.is_ipv6()) { "IPv6" } else { "IPv4" }
}

/// Completes `ipFamilyPolicy` and `ipFamilies` and checks them with the cluster's addresses.
pub(super) fn settle(new: &mut Value, old: Option<&Value>, errors: &mut Errors) {
    if kind(new) == "ExternalName" || stays_as_it_prefers(new, old) {
        return;
    }
    let headless = new["spec"]["clusterIP"] == "None";
    let free = headless && new["spec"]["selector"].as_object().is_none_or(serde_json::Map::is_empty);
    if new["spec"]["ipFamilyPolicy"].is_null() {
        let before = old.and_then(|o| o["spec"]["ipFamilyPolicy"].as_str());
        new["spec"]["ipFamilyPolicy"] = before.unwrap_or(if free { "RequireDualStack" } else { "SingleStack" }).into();
    }
    well_formed(&new["spec"], old.map(|o| &o["spec"]), errors);
    if !errors.is_empty() {
        return;
    }
    let mut families: Vec<String> = texts(&new["spec"], "ipFamilies").into_iter().map(str::to_owned).collect();
    fitting(&mut new["spec"], old.map(|o| &o["spec"]), &mut families, errors);
    if !errors.is_empty() {
        return;
    }
    let root = Path::new("spec");
    let policy = text(&new["spec"], "ipFamilyPolicy").to_owned();
    if free {
        // Addresses that nobody here gives out may be of any family.
        if families.is_empty() {
            families.push("IPv4".into());
        }
        if families.len() < 2 && policy != "SingleStack" {
            let other = if families[0] == "IPv4" { "IPv6" } else { "IPv4" };
            families.push(other.into());
        }
    } else {
        if policy == "RequireDualStack" {
            let why = "this cluster is not configured for dual-stack services";
            errors.invalid(&root.child("ipFamilyPolicy"), policy, why);
        }
        for (i, f) in families.iter().enumerate().filter(|(_, f)| *f != "IPv4") {
            errors.invalid(&root.child("ipFamilies").index(i), f.as_str(), "not configured on this cluster");
        }
        if !errors.is_empty() {
            return;
        }
        if families.is_empty() {
            families.push("IPv4".into());
        }
    }
    new["spec"]["ipFamilies"] = families.into();
}

/// A Service that prefers both families keeps what it was given, whatever the cluster has now.
fn stays_as_it_prefers(new: &Value, old: Option<&Value>) -> bool {
    let Some(old) = old else { return false };
    let prefers = |s: &Value| s["spec"]["ipFamilyPolicy"] == "PreferDualStack";
    let same = |key: &str| texts(&new["spec"], key) == texts(&old["spec"], key);
    kind(old) != "ExternalName" && prefers(new) && prefers(old) && same("clusterIPs") && same("ipFamilies")
}

/// What can be said of each field, and of the addresses with their families.
fn well_formed(spec: &Value, old: Option<&Value>, errors: &mut Errors) {
    let root = Path::new("spec");
    let at = root.child("clusterIPs");
    let all = texts(spec, "clusterIPs");
    let shown = || spec["clusterIPs"].to_string();
    let first = text(spec, "clusterIP");
    match all.first() {
        None if !first.is_empty() => errors.required(&at, ""),
        Some(_) if first.is_empty() => {
            errors.invalid_raw(&at, shown(), "must be empty when `clusterIP` is not specified");
        }
        Some(one) if *one != first => errors.invalid_raw(&at, shown(), "first value must match `clusterIP`"),
        _ => {}
    }
    let families = texts(spec, "ipFamilies");
    for (i, f) in families.iter().enumerate() {
        let at = root.child("ipFamilies");
        if !FAMILIES.contains(f) {
            errors.not_supported(&at.index(i), *f, &FAMILIES);
        }
        if families[..i].contains(f) {
            errors.duplicate(&at.index(i), *f);
        }
    }
    if let Some(policy) = spec["ipFamilyPolicy"].as_str().filter(|p| !POLICIES.contains(p)) {
        errors.not_supported(&root.child("ipFamilyPolicy"), policy, &POLICIES);
    }
    let known = old.map(|o| texts(o, "clusterIPs")).unwrap_or_default();
    let mut bad = false;
    for (i, a) in all.iter().enumerate() {
        if i == 0 && *a == "None" {
            if all.len() > 1 {
                bad = true;
                errors.invalid_raw(&at, shown(), "'None' must be the first and only value");
            }
        } else if let Some(why) = bad_ip(a).filter(|_| !known.contains(a)) {
            bad = true;
            errors.invalid(&at.index(i), *a, why);
        }
    }
    if all.len() > 2 {
        errors.invalid_raw(&at, shown(), "may only hold up to 2 values");
    }
    if bad {
        return;
    }
    if all.len() > 1 && all.iter().all(|a| family(a) == family(all[0])) {
        errors.invalid_raw(&at, shown(), "may specify no more than one IP for each IP family");
    }
    for (i, (a, f)) in all.iter().zip(&families).enumerate() {
        if *a != "None" && family(a) != *f && FAMILIES.contains(f) {
            errors.invalid(&at.index(i), *a, format!("expected an {f} value as indicated by `ipFamilies[{i}]`"));
        }
    }
}

/// Whether policy, families and addresses fit each other; families that addresses imply are added.
fn fitting(spec: &mut Value, old: Option<&Value>, families: &mut Vec<String>, errors: &mut Errors) {
    let root = Path::new("spec");
    let at = root.child("ipFamilyPolicy");
    let policy = text(spec, "ipFamilyPolicy").to_owned();
    if let Some(old) = old {
        for (key, what) in [("clusterIPs", "secondary cluster IP"), ("ipFamilies", "secondary IP family")] {
            let (now, before) = (texts(spec, key).len(), texts(old, key).len());
            if policy == "SingleStack" {
                // The policy says which of them goes: the first stays.
                if now > 1 && spec[key] == old[key] {
                    let first = spec[key][0].clone();
                    spec[key] = json!([first]);
                    if key == "ipFamilies" {
                        families.truncate(1);
                    }
                }
            } else if now > 0 && now < before {
                errors.invalid(&at, policy.as_str(), format!("must be 'SingleStack' to release the {what}"));
            }
        }
    }
    if policy == "SingleStack" {
        for (key, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
            if texts(spec, key).len() == 2 {
                let why = format!("must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified");
                errors.invalid(&at, policy.as_str(), why);
            }
        }
    }
    let shown = spec["clusterIPs"].to_string();
    for (i, a) in texts(spec, "clusterIPs").into_iter().enumerate().take_while(|(_, a)| *a != "None") {
        if i < families.len() {
            continue;
        }
        if family(a) == "IPv4" {
            families.push("IPv4".into());
        } else {
            let at = root.child("clusterIPs");
            errors.invalid_raw(&at.index(i), shown.clone(), "IPv6 is not configured on this cluster");
        }
    }
}
