//! ServiceCIDR and IPAddress.

use serde_json::Value;

use super::addresses::{not_canonical_ip, range};
use crate::invalid::Errors;
use crate::kinds::check::{IMMUTABLE, complain, given, immutable, list, text};
use crate::kinds::{Strategy, Traits};
use crate::meta::{self, NameRule};
use crate::names;
use crate::path::Path;

/// Rules of ServiceCIDRs.
pub(in crate::kinds) struct Range;

impl Strategy for Range {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { status: true, status_keeps_meta: true, ..Traits::DEFAULT };
        &T
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let spec = Path::new("spec");
        let (at, all) = (spec.child("cidrs"), list(&obj["spec"], "cidrs"));
        if all.is_empty() {
            errors.required(&at, "at least one CIDR required");
        }
        let shown = obj["spec"]["cidrs"].clone();
        if all.len() > 2 {
            errors.invalid(&at, shown, "may only hold up to 2 values");
            return;
        }
        for (i, c) in all.iter().filter_map(Value::as_str).enumerate() {
            if let Err(why) = range(c) {
                errors.invalid(&at.index(i), c, why);
            }
        }
        if let [a, b] = all {
            let v4 = |v: &Value| v.as_str().and_then(|s| s.parse::<ipnet::IpNet>().ok()).map(|n| n.addr().is_ipv4());
            if v4(a).is_some() && v4(a) == v4(b) {
                let why = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
                errors.invalid(&at, shown, why);
            }
        }
    }

    /// A second family may be added, what is there stays.
    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let spec = Path::new("spec");
        let at = spec.child("cidrs");
        let (n, o) = (list(&new["spec"], "cidrs"), list(&old["spec"], "cidrs"));
        if n == o {
            return;
        }
        if o.len() != 1 || n.len() != 2 {
            errors.invalid(&at, new["spec"]["cidrs"].clone(), IMMUTABLE);
        } else if n.first() != o.first() {
            errors.invalid(&at.index(0), n[0].clone(), IMMUTABLE);
        }
        self.validate(new, errors);
    }
}

/// Rules of IPAddresses.
pub(in crate::kinds) struct Address;

impl Strategy for Address {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { name: NameRule::PathSegment, ..Traits::DEFAULT };
        &T
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (name, m) = (meta::name(obj), Path::new("metadata"));
        if let Some(why) = not_canonical_ip(name) {
            errors.invalid(&m.child("name"), name, why);
        }
        let spec = Path::new("spec");
        let (at, parent) = (spec.child("parentRef"), &obj["spec"]["parentRef"]);
        if !given(&obj["spec"], "parentRef") {
            errors.required(&at, "");
            return;
        }
        let group = text(parent, "group");
        if !group.is_empty() {
            complain(&at.child("group"), group, names::is_dns1123_subdomain(group), errors);
        }
        for (key, needed) in [("resource", true), ("name", true), ("namespace", false)] {
            let s = text(parent, key);
            if !s.is_empty() {
                complain(&at.child(key), s, names::is_path_segment(s), errors);
            } else if needed {
                errors.required(&at.child(key), "");
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(&new["spec"], &old["spec"], "parentRef", &Path::new("spec"), errors);
    }
}
