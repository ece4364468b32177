//! Node.

use serde_json::{Value, json};

use super::{Strategy, Traits, carry};
use crate::invalid::Errors;
use crate::names;
use crate::path::Path;

fn forget_config(obj: &mut Value) {
    if let Some(spec) = obj.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("configSource");
    }
}

/// A string that may be absent, as JSON.
fn text_json(v: &Value) -> String {
    Value::from(v.as_str().unwrap_or_default()).to_string()
}

/// Rules of Nodes.
pub(super) struct NodeStrategy;

impl Strategy for NodeStrategy {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { status: true, ..Traits::DEFAULT };
        &T
    }

    fn default(&self, obj: &mut Value) {
        if let Some(status) = obj.get_mut("status").and_then(Value::as_object_mut)
            && status.get("allocatable").is_none_or(|a| a.as_object().is_none_or(serde_json::Map::is_empty))
            && let Some(c) = status.get("capacity").filter(|c| c.as_object().is_some_and(|c| !c.is_empty())).cloned()
        {
            status.insert("allocatable".into(), c);
        }
        // The older single field and the list mirror each other.
        let Some(spec) = obj.get_mut("spec").and_then(Value::as_object_mut) else { return };
        let one = spec.get("podCIDR").and_then(Value::as_str).unwrap_or_default().to_owned();
        let list = spec.get("podCIDRs").and_then(Value::as_array).cloned().unwrap_or_default();
        if !one.is_empty() && list.is_empty() {
            spec.insert("podCIDRs".into(), json!([one]));
        } else if one.is_empty()
            && let Some(first) = list.first()
        {
            spec.insert("podCIDR".into(), first.clone());
        }
    }

    fn prepare_create(&self, obj: &mut Value) {
        // A node agent registers with its status, so that stays. Configuration from the API is no longer a feature.
        forget_config(obj);
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        carry(new, old, "status");
        if old["spec"].get("configSource").is_none() {
            forget_config(new);
        }
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let spec = Path::new("spec");
        // Upstream reports taints below metadata; clients have seen no other path.
        let meta_path = Path::new("metadata");
        let taints = meta_path.child("taints");
        let mut seen: Vec<(String, String)> = vec![];
        for (i, t) in obj["spec"]["taints"].as_array().into_iter().flatten().enumerate() {
            let at = taints.index(i);
            let text = |k: &str| t[k].as_str().unwrap_or_default();
            for why in names::is_qualified_name(text("key")) {
                errors.invalid(&at.child("key"), text("key"), why);
            }
            for why in names::is_label_value(text("value")) {
                errors.invalid(&at.child("value"), text("value"), why);
            }
            match text("effect") {
                "NoSchedule" | "PreferNoSchedule" | "NoExecute" => {}
                "" => errors.required(&at.child("effect"), ""),
                e => errors.not_supported(&at.child("effect"), e, &["NoSchedule", "PreferNoSchedule", "NoExecute"]),
            }
            let key = (text("key").to_owned(), text("effect").to_owned());
            if seen.contains(&key) {
                // Upstream prints the taint with its Go field names.
                let shown = format!(
                    "{{\"Key\":{},\"Value\":{},\"Effect\":{},\"TimeAdded\":{}}}",
                    t["key"],
                    text_json(&t["value"]),
                    t["effect"],
                    t["timeAdded"]
                );
                errors.duplicate_raw(&at, shown, "taints must be unique by key and effect pair");
            }
            seen.push(key);
        }
        let cidrs = spec.child("podCIDRs");
        for (i, c) in obj["spec"]["podCIDRs"].as_array().into_iter().flatten().filter_map(Value::as_str).enumerate() {
            if c.parse::<ipnet::IpNet>().is_err() {
                errors.invalid(&cidrs.index(i), c, "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)");
            }
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        let spec = Path::new("spec");
        let set = |v: &Value, k: &str| !v["spec"].get(k).is_none_or(|x| x.is_null() || x == "" || x == &json!([]));
        if set(old, "podCIDRs") && new["spec"].get("podCIDRs") != old["spec"].get("podCIDRs") {
            errors.forbidden(&spec.child("podCIDRs"), "node updates may not change podCIDR except from \"\" to valid");
        }
        if set(old, "providerID") && new["spec"].get("providerID") != old["spec"].get("providerID") {
            errors.invalid_raw(&spec.child("providerID"), "null", "field cannot be modified once set");
        }
        self.validate(new, errors);
    }

    fn fields(&self) -> &'static [&'static str] {
        &["spec.unschedulable"]
    }

    fn field(&self, obj: &Value, _name: &str) -> String {
        (obj["spec"]["unschedulable"] == true).to_string()
    }
}
