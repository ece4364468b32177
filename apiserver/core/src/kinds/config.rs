//! ConfigMap, Secret, ServiceAccount.

use serde_json::{Map, Value};

use super::{Strategy, Traits};
use crate::invalid::Errors;
use crate::names;
use crate::path::Path;

/// Upper bound of the data of one object.
const MAX: usize = 1024 * 1024;

/// Rules of ConfigMaps.
pub(super) struct ConfigMapStrategy;

impl Strategy for ConfigMapStrategy {
    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let (data, binary) = (map(obj, "data"), map(obj, "binaryData"));
        let (data_path, binary_path) = (Path::new("data"), Path::new("binaryData"));
        let mut total = 0;
        for (k, v) in data {
            check_key(k, &data_path, errors);
            if binary.contains_key(k) {
                errors.invalid(&data_path.key(k), k.as_str(), "duplicate of key present in binaryData");
            }
            total += v.as_str().map_or(0, str::len);
        }
        for (k, v) in binary {
            check_key(k, &binary_path, errors);
            total += decoded_len(v);
        }
        if total > MAX {
            errors.too_long(&Path::new(""), MAX);
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        immutable(new, old, &["data", "binaryData"], errors);
        self.validate(new, errors);
    }
}

static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);

fn map<'a>(obj: &'a Value, key: &str) -> &'a Map<String, Value> {
    obj.get(key).and_then(Value::as_object).unwrap_or(&EMPTY)
}

fn check_key(k: &str, path: &Path<'_>, errors: &mut Errors) {
    for why in names::is_config_key(k) {
        errors.invalid(&path.key(k), k, why);
    }
}

/// Length of what base64 text stands for.
fn decoded_len(v: &Value) -> usize {
    let s = v.as_str().unwrap_or_default();
    (s.len() / 4 * 3).saturating_sub(s.bytes().rev().take_while(|b| *b == b'=').count())
}

/// Once `immutable` is set it stays, and so does the data.
fn immutable(new: &Value, old: &Value, parts: &[&str], errors: &mut Errors) {
    if old.get("immutable") != Some(&Value::Bool(true)) {
        return;
    }
    const WHY: &str = "field is immutable when `immutable` is set";
    if new.get("immutable") != Some(&Value::Bool(true)) {
        errors.forbidden(&Path::new("immutable"), WHY);
    }
    for part in parts {
        if map(new, part) != map(old, part) {
            errors.forbidden(&Path::new(part), WHY);
        }
    }
}

/// Rules of Secrets.
pub(super) struct SecretStrategy;

impl Strategy for SecretStrategy {
    fn default(&self, obj: &mut Value) {
        let Value::Object(o) = obj else { return };
        super::defaults::set_text(o, "type", "Opaque");
        for v in o.get_mut("data").and_then(Value::as_object_mut).into_iter().flatten().map(|(_, v)| v) {
            if v.is_null() {
                *v = "".into();
            }
        }
        if let Some(Value::Object(texts)) = o.remove("stringData") {
            use base64::Engine as _;
            let data = o.entry("data").or_insert_with(|| Value::Object(Map::new()));
            if !data.is_object() {
                *data = Value::Object(Map::new());
            }
            for (k, v) in texts {
                let text = v.as_str().unwrap_or_default();
                data[k] = base64::engine::general_purpose::STANDARD.encode(text).into();
            }
        }
    }

    fn fields(&self) -> &'static [&'static str] {
        &["type"]
    }

    fn validate(&self, obj: &Value, errors: &mut Errors) {
        let path = Path::new("data");
        let data = map(obj, "data");
        let mut total = 0;
        for (k, v) in data {
            check_key(k, &path, errors);
            total += decoded_len(v);
        }
        if total > MAX {
            errors.too_long(&path, MAX);
        }
        let text = |k: &str| {
            use base64::Engine as _;
            base64::engine::general_purpose::STANDARD.decode(data.get(k)?.as_str()?).ok()
        };
        let json_of = |k: &str, errors: &mut Errors| match text(k) {
            None => errors.required(&path.key(k), ""),
            Some(b) => {
                if let Some(why) = no_json_object(&b) {
                    errors.invalid(&path.key(k), "<secret contents redacted>", why);
                }
            }
        };
        match obj["type"].as_str().unwrap_or_default() {
            "kubernetes.io/service-account-token" => {
                const KEY: &str = "kubernetes.io/service-account.name";
                let m = Path::new("metadata");
                if obj["metadata"]["annotations"][KEY].as_str().unwrap_or_default().is_empty() {
                    errors.required(&m.child("annotations").key(KEY), "");
                }
            }
            "kubernetes.io/dockercfg" => json_of(".dockercfg", errors),
            "kubernetes.io/dockerconfigjson" => json_of(".dockerconfigjson", errors),
            "kubernetes.io/basic-auth" if !data.contains_key("username") && !data.contains_key("password") => {
                errors.required(&path.key("username"), "");
                errors.required(&path.key("password"), "");
            }
            "kubernetes.io/ssh-auth" if text("ssh-privatekey").is_none_or(|k| k.is_empty()) => {
                errors.required(&path.key("ssh-privatekey"), "");
            }
            "kubernetes.io/tls" => {
                for k in ["tls.crt", "tls.key"] {
                    if !data.contains_key(k) {
                        errors.required(&path.key(k), "");
                    }
                }
            }
            _ => {}
        }
    }

    fn warnings(&self, new: &Value, _old: Option<&Value>, out: &mut Vec<String>) {
        use base64::Engine as _;
        if new["type"] != "kubernetes.io/tls" {
            return;
        }
        let bytes = |k: &str| {
            let text = new["data"][k].as_str().unwrap_or_default();
            base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default()
        };
        out.extend(tls_complaint(&bytes("tls.crt"), &bytes("tls.key")));
    }

    fn prepare_update(&self, new: &mut Value, old: &Value) {
        // The type is kept when a client leaves it out.
        if new["type"] == "Opaque" && old["type"] != "Opaque" && new.get("type").is_none() {
            new["type"] = old["type"].clone();
        }
    }

    fn validate_update(&self, new: &Value, old: &Value, errors: &mut Errors) {
        if new["type"] != old["type"] {
            errors.invalid(&Path::new("type"), new["type"].clone(), "field is immutable");
        }
        immutable(new, old, &["data"], errors);
        self.validate(new, errors);
    }
}

/// Why bytes are not a JSON object, in the words of upstream's decoder.
fn no_json_object(b: &[u8]) -> Option<String> {
    let kind = match serde_json::from_slice::<Value>(b) {
        Ok(Value::Object(_) | Value::Null) => return None,
        Ok(Value::Array(_)) => "array",
        Ok(Value::String(_)) => "string",
        Ok(Value::Number(_)) => "number",
        Ok(Value::Bool(_)) => "bool",
        Err(e) if e.is_eof() => return Some("unexpected end of JSON input".into()),
        Err(e) => {
            let at = b.split(|c| *c == b'\n').nth(e.line().saturating_sub(1)).unwrap_or_default();
            let c = at.get(e.column().saturating_sub(1)).copied().map_or(' ', char::from);
            return Some(format!("invalid character '{c}' looking for beginning of value"));
        }
    };
    Some(format!("json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"))
}

/// Rules of ServiceAccounts.
pub(super) struct ServiceAccountStrategy;

impl Strategy for ServiceAccountStrategy {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { returns_deleted: true, ..Traits::DEFAULT };
        &T
    }

    fn prepare_create(&self, obj: &mut Value) {
        names_only(obj);
    }

    fn prepare_update(&self, new: &mut Value, _old: &Value) {
        names_only(new);
    }

    fn warnings(&self, new: &Value, old: Option<&Value>, out: &mut Vec<String>) {
        const MOUNTABLE: &str = "kubernetes.io/enforce-mountable-secrets";
        let has = |v: &Value| v["metadata"]["annotations"].get(MOUNTABLE).is_some();
        if has(new) && !old.is_some_and(has) {
            out.push(format!("metadata.annotations[{MOUNTABLE}]: deprecated in v1.32+; prefer separate namespaces to isolate access to mounted secrets"));
        }
    }
}

/// References to Secrets are names, whatever else was sent.
fn names_only(obj: &mut Value) {
    for s in obj.get_mut("secrets").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(o) = s.as_object_mut() {
            o.retain(|k, _| k == "name");
        }
    }
}

/// Complaint about the certificate or the key of a TLS secret: what a server would say that loads the two.
fn tls_complaint(cert: &[u8], key: &[u8]) -> Option<String> {
    for (data, what, wanted) in [(cert, "certificate", "CERTIFICATE"), (key, "key", "PRIVATE KEY")] {
        let text = String::from_utf8_lossy(data);
        let kinds: Vec<&str> = text
            .lines()
            .filter_map(|l| l.trim_end().strip_prefix("-----BEGIN ")?.strip_suffix("-----"))
            .filter(|k| text.contains(&format!("-----END {k}-----")))
            .collect();
        let found = kinds.iter().any(|k| *k == wanted || (what == "key" && k.ends_with(" PRIVATE KEY")));
        if found {
            continue;
        }
        if kinds.is_empty() {
            return Some(format!("tls: failed to find any PEM data in {what} input"));
        }
        if what == "key" {
            if kinds == ["CERTIFICATE"] {
                return Some("tls: found a certificate rather than a key in the PEM for the private key".into());
            }
            let skipped = kinds.join(" ");
            return Some(format!(
                "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM blocks of the following types: [{skipped}]"
            ));
        }
        if kinds.len() == 1 && kinds[0].ends_with("PRIVATE KEY") {
            return Some("tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched".into());
        }
        let skipped = kinds.join(" ");
        return Some(format!(
            "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the following types: [{skipped}]"
        ));
    }
    None
}
