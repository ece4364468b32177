//! Addresses and ranges in the words of upstream's checks.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::invalid::Errors;
use crate::kinds::check::{complain, list, text};
use crate::names;
use crate::path::Path;

const BAD_IP: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
const BAD_CIDR: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";

fn leading_zeros(s: &str) -> bool {
    let octets: Vec<&str> = s.split('.').collect();
    octets.len() == 4
        && octets.iter().all(|o| !o.is_empty() && o.bytes().all(|b| b.is_ascii_digit()))
        && octets.iter().any(|o| o.len() > 1 && o.starts_with('0'))
}

fn mapped(ip: &IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
}

/// Complaint about an address that may be written in any way.
pub(in crate::kinds) fn bad_ip(s: &str) -> Option<&'static str> {
    if s.parse::<IpAddr>().is_ok() {
        return None;
    }
    Some(if leading_zeros(s) { "must not have leading 0s" } else { BAD_IP })
}

/// Complaint about an address that must be written in the one canonical way.
pub(super) fn not_canonical_ip(s: &str) -> Option<String> {
    let Ok(ip) = s.parse::<IpAddr>() else { return bad_ip(s).map(str::to_owned) };
    if mapped(&ip) {
        return Some("must not be an IPv4-mapped IPv6 address".into());
    }
    let written = ip.to_string();
    (written != s).then(|| format!("must be in canonical form ({})", crate::invalid::quote_str(&written)))
}

/// A range, or what is wrong with it.
///
/// # Errors
/// The complaint.
pub(super) fn range(s: &str) -> Result<IpNet, String> {
    let (ip, bits) = s.split_once('/').unwrap_or((s, ""));
    let padded = bits.len() > 1 && bits.starts_with('0') && bits.bytes().all(|b| b.is_ascii_digit());
    if !bits.is_empty() && (leading_zeros(ip) || (padded && ip.parse::<IpAddr>().is_ok())) {
        return Err("must not have leading 0s in IP or prefix length".into());
    }
    let Ok(net) = s.parse::<IpNet>() else { return Err(BAD_CIDR.into()) };
    if mapped(&net.addr()) {
        return Err("must not have an IPv4-mapped IPv6 address".into());
    }
    if net.addr() != net.network() {
        return Err("must not have bits set beyond the prefix length".into());
    }
    let written = net.to_string();
    if written != s {
        return Err(format!("must be in canonical form ({})", crate::invalid::quote_str(&written)));
    }
    Ok(net)
}

/// Refuses addresses that no endpoint can have.
pub(super) fn endpoint_ip(s: &str, path: &Path<'_>, errors: &mut Errors) {
    let Ok(ip) = s.parse::<IpAddr>() else {
        errors.invalid(path, s, "must be a valid IP address");
        return;
    };
    if ip.is_unspecified() {
        errors.invalid(path, s, format!("may not be unspecified ({s})"));
    }
    if ip.is_loopback() {
        errors.invalid(path, s, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (unicast, multicast) = match ip {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.segments()[0] & 0xffc0 == 0xfe80, v6.segments()[0] & 0xff0f == 0xff02),
    };
    if unicast {
        errors.invalid(path, s, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if multicast {
        errors.invalid(path, s, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

/// An address of a Service's load balancer is a virtual one unless it says otherwise.
pub(in crate::kinds) fn default_modes(obj: &mut Value) {
    let Some(b) = obj.get_mut("status").and_then(|s| s.get_mut("loadBalancer")) else { return };
    for g in crate::kinds::defaults::each(b, "ingress") {
        if g.get("ip").and_then(Value::as_str).is_some_and(|ip| !ip.is_empty()) {
            crate::kinds::defaults::set(g, "ipMode", "VIP");
        }
    }
}

/// Checks `status.loadBalancer` of an Ingress or a Service; `modes` says that its addresses have modes.
pub(in crate::kinds) fn load_balancer_status(obj: &Value, modes: bool, errors: &mut Errors) {
    let status = Path::new("status");
    let at = status.child("loadBalancer");
    let all = at.child("ingress");
    for (i, g) in list(&obj["status"]["loadBalancer"], "ingress").iter().enumerate() {
        let here = all.index(i);
        let (ip, host) = (text(g, "ip"), text(g, "hostname"));
        if let Some(why) = bad_ip(ip).filter(|_| !ip.is_empty()) {
            errors.invalid(&here.child("ip"), ip, why);
        }
        if modes {
            let mode_at = here.child("ipMode");
            match g["ipMode"].as_str() {
                Some(_) if ip.is_empty() => errors.forbidden(&mode_at, "may not be specified when `ip` is not set"),
                None if !ip.is_empty() => errors.required(&mode_at, "must be specified when `ip` is set"),
                Some("VIP" | "Proxy") | None => {}
                Some(m) => errors.not_supported(&mode_at, m, &["Proxy", "VIP"]),
            }
        }
        if !host.is_empty() {
            complain(&here.child("hostname"), host, names::is_dns1123_subdomain(host), errors);
            if host.parse::<IpAddr>().is_ok() {
                errors.invalid(&here.child("hostname"), host, "must be a DNS name, not an IP address");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        for (s, why) in [
            ("10.0.0.0/8", ""),
            ("2001:db8::/64", ""),
            ("10.0.0.1", BAD_CIDR),
            ("10.0.0.1/8", "must not have bits set beyond the prefix length"),
            ("010.0.0.0/8", "must not have leading 0s in IP or prefix length"),
            ("10.0.0.0/08", "must not have leading 0s in IP or prefix length"),
            ("::ffff:1.2.3.0/120", "must not have an IPv4-mapped IPv6 address"),
            ("2001:DB8::/64", "must be in canonical form (\"2001:db8::/64\")"),
        ] {
            assert_eq!(range(s).err().unwrap_or_default(), why, "{s}");
        }
    }
}
