//! ConfigMap, Secret, ServiceAccount.

use serde_json::{Map, Value};

use super::{Strategy, Traits};
use crate::invalid::Errors;
use crate::meta;
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
                if let Err(e) = serde_json::from_slice::<Value>(&b) {
                    let _ = e;
                    errors.invalid(&path.key(k), "<secret contents redacted>", "unexpected end of JSON input");
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

/// Rules of ServiceAccounts.
pub(super) struct ServiceAccountStrategy;

impl Strategy for ServiceAccountStrategy {
    fn traits(&self) -> &Traits {
        const T: Traits = Traits { returns_deleted: true, ..Traits::DEFAULT };
        &T
    }

    fn prepare_create(&self, obj: &mut Value) {
        // References to Secrets are the token controller's, and come with no kind.
        let _ = meta::name(obj);
    }
}
