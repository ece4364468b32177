//! What differs from run to run is replaced on both sides; what is only prose is dropped.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value};

/// Values of a scenario: namespace, unique word, saved values.
pub(crate) type Vars = BTreeMap<String, String>;

fn re(text: &str) -> Regex {
    Regex::new(text).expect("a constant pattern is well-formed")
}

static TIME: LazyLock<Regex> = LazyLock::new(|| re(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$"));
static AGE: LazyLock<Regex> = LazyLock::new(|| re(r"^(\d+[smhdy])+( ago)?$|^<unknown>$"));
static UID: LazyLock<Regex> = LazyLock::new(|| re(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"));
static NODE_PORT: LazyLock<Regex> = LazyLock::new(|| re(r":3[0-2]\d{3}/"));
static ADDRESS: LazyLock<Regex> = LazyLock::new(|| re(r"^10\.\d+\.\d+\.\d+$"));
static VOLUME: LazyLock<Regex> = LazyLock::new(|| re(r"kube-api-access-[a-z0-9]{5}"));
static LIST_VALUE: LazyLock<Regex> = LazyLock::new(|| re(r"Invalid value: [\[{].*?[\]}]: "));
static STRUCT: LazyLock<Regex> = LazyLock::new(|| re(r#"[{]"[A-Z]"#));
static QUOTED_ADDRESS: LazyLock<Regex> = LazyLock::new(|| re(r#""(10\.\d+\.\d+\.\d+)""#));
static QUOTED_OBJECT: LazyLock<Regex> = LazyLock::new(|| re(r#"Invalid value: "\{.*\}": "#));
static RECORD: LazyLock<Regex> = LazyLock::new(|| re(r"(ResourceVersion in (?:record|the precondition)) \((\d+)\)"));
static TOO_LARGE: LazyLock<Regex> = LazyLock::new(|| re(r"Too large resource version: \d+, current: \d+"));
static VERSION: LazyLock<Regex> = LazyLock::new(|| re(r"(resource version|resourceVersion)[: ]+\d+( \(\d+\))?"));
static TOO_OLD: LazyLock<Regex> = LazyLock::new(|| re(r"too old resource version.*"));

/// Replaces `{name}` by values, in keys too.
pub(crate) fn fill(v: &Value, vars: &Vars) -> Value {
    let text = |s: &str| vars.iter().fold(s.to_owned(), |s, (k, x)| s.replace(&format!("{{{k}}}"), x));
    match v {
        Value::String(s) => text(s).into(),
        Value::Array(a) => a.iter().map(|x| fill(x, vars)).collect(),
        Value::Object(o) => Value::Object(o.iter().map(|(k, x)| (text(k), fill(x, vars))).collect()),
        other => other.clone(),
    }
}

/// The normal form of an answer.
pub(crate) fn normal(v: &Value, vars: &Vars, sent: &str, key: &str) -> Value {
    match v {
        Value::Object(o) => {
            let mut out = Map::new();
            for (k, x) in o {
                let column = !o.contains_key("jsonPath") && o.contains_key("format") && o.contains_key("priority");
                if k == "storageVersionHash" || (k == "description" && column) {
                    continue;
                }
                let mut x = x.clone();
                if k == "managedFields"
                    && let Value::Array(a) = &mut x
                {
                    let of = |f: &Value, k: &str| f[k].as_str().unwrap_or_default().to_owned();
                    a.sort_by_key(|f| {
                        (of(f, "manager"), of(f, "operation"), of(f, "subresource"), of(f, "apiVersion"))
                    });
                }
                if k == "name"
                    && let (Some(name), Some(base)) = (x.as_str(), o.get("generateName").and_then(Value::as_str))
                    && !base.is_empty()
                    && name.starts_with(base)
                {
                    x = format!("{base}<rand>").into();
                }
                let k2 = normal(&k.as_str().into(), vars, sent, "").as_str().unwrap_or_default().to_owned();
                out.insert(k2, normal(&x, vars, sent, k));
            }
            Value::Object(out)
        }
        Value::Array(a) => a.iter().map(|x| normal(x, vars, sent, key)).collect(),
        Value::Number(n) if matches!(key, "nodePort" | "healthCheckNodePort") => {
            if n.as_i64() != Some(0) && !sent.contains(&n.to_string()) { "<port>".into() } else { v.clone() }
        }
        Value::String(s) => text(s, vars, sent, key).into(),
        other => other.clone(),
    }
}

fn text(s: &str, vars: &Vars, sent: &str, key: &str) -> String {
    match key {
        "resourceVersion" if !matches!(s, "" | "0") => return "<rv>".into(),
        "uid" if !s.is_empty() => return "<uid>".into(),
        "continue" if !s.is_empty() => return "<continue>".into(),
        "token" if s.matches('.').count() == 2 => return "<jwt>".into(),
        _ => {}
    }
    if TIME.is_match(s) && !sent.contains(s) {
        return "<time>".into();
    }
    if key == "cells" && AGE.is_match(s) {
        return "<age>".into();
    }
    let mut v = s.to_owned();
    let mut longest: Vec<_> = vars.iter().filter(|(_, x)| x.len() > 3).collect();
    longest.sort_by_key(|(_, x)| std::cmp::Reverse(x.len()));
    for (k, x) in longest {
        v = v.replace(x.as_str(), &format!("{{{k}}}"));
    }
    v = UID.replace_all(&v, "<uid>").into_owned();
    if key == "cells" {
        v = NODE_PORT.replace_all(&v, ":<port>/").into_owned();
    }
    if matches!(key, "clusterIP" | "clusterIPs" | "cells") && ADDRESS.is_match(&v) && !sent.contains(&v) {
        return "<ip>".into();
    }
    v = VOLUME.replace_all(&v, "kube-api-access-<rand>").into_owned();
    if key != "message" {
        return v;
    }
    if ["json: cannot unmarshal", "Go struct field", "invalid character"].iter().any(|t| v.contains(t)) {
        return "<any>".into();
    }
    if !v.contains("not currently held") {
        v = v.split('\n').next().unwrap_or_default().to_owned();
    }
    let shorten = |m: &regex::Captures<'_>| {
        let whole = &m[0];
        if whole.chars().count() < 100 && !STRUCT.is_match(whole) {
            whole.to_owned()
        } else {
            "Invalid value: <value>: ".into()
        }
    };
    v = LIST_VALUE.replace_all(&v, shorten).into_owned();
    let own = |m: &regex::Captures<'_>| if sent.contains(&m[1]) { m[0].to_owned() } else { "\"<ip>\"".into() };
    v = QUOTED_ADDRESS.replace_all(&v, own).into_owned();
    v = QUOTED_OBJECT.replace_all(&v, "Invalid value: <value>: ").into_owned();
    // A saved revision stays recognisable, however short it is in a young store.
    let saved = |m: &regex::Captures<'_>| match vars.iter().find(|(_, x)| **x == m[2]) {
        Some((k, _)) => format!("{} ({{{k}}})", &m[1]),
        None => format!("{} (<rv>)", &m[1]),
    };
    v = RECORD.replace_all(&v, saved).into_owned();
    v = TOO_LARGE.replace_all(&v, "Too large resource version").into_owned();
    v = VERSION.replace_all(&v, "$1 <rv>").into_owned();
    TOO_OLD.replace_all(&v, "too old resource version").into_owned()
}

/// A body by its media type: JSON, a list of JSON lines, or text.
pub(crate) fn decode(kind: &str, data: &[u8]) -> Value {
    let text = String::from_utf8_lossy(data).into_owned();
    if !kind.contains("json") {
        return text.into();
    }
    serde_json::from_str(&text).unwrap_or_else(|_| {
        let lines: Result<Vec<Value>, _> =
            text.lines().filter(|l| !l.trim().is_empty()).map(serde_json::from_str).collect();
        lines.map_or_else(|_| text.clone().into(), Value::Array)
    })
}

/// The value at a dotted path.
pub(crate) fn pick<'a>(v: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(v, |v, p| match v {
        Value::Array(a) => a.get(p.parse::<usize>().ok()?),
        Value::Object(o) => o.get(p),
        _ => None,
    })
}

/// Removes what a scenario does not compare; `*` is any key or index.
pub(crate) fn drop_path(v: &mut Value, path: &str) {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    match v {
        Value::Object(o) => {
            let keys: Vec<String> = o.keys().filter(|k| first == "*" || *k == first).cloned().collect();
            for k in keys {
                if rest.is_empty() {
                    o.remove(&k);
                } else if let Some(x) = o.get_mut(&k) {
                    drop_path(x, rest);
                }
            }
        }
        Value::Array(a) => {
            for (i, x) in a.iter_mut().enumerate() {
                if first == "*" || first == i.to_string() {
                    if rest.is_empty() { *x = "<ignored>".into() } else { drop_path(x, rest) }
                }
            }
        }
        _ => {}
    }
}

fn brief(v: &Value) -> String {
    v.to_string().chars().take(300).collect()
}

/// The first difference between what is expected and what came.
pub(crate) fn differs(want: &Value, got: &Value, at: &str) -> Option<String> {
    match (want, got) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            keys.into_iter().find_map(|k| match (a.get(k), b.get(k)) {
                (None, Some(y)) => Some(format!("{at}.{k}: not expected, got {}", brief(y))),
                (Some(x), None) => Some(format!("{at}.{k}: expected {}, absent", brief(x))),
                (Some(x), Some(y)) => differs(x, y, &format!("{at}.{k}")),
                (None, None) => None,
            })
        }
        (Value::Array(a), Value::Array(b)) => {
            let inner = a.iter().zip(b).enumerate().find_map(|(i, (x, y))| differs(x, y, &format!("{at}[{i}]")));
            inner.or_else(|| (a.len() != b.len()).then(|| format!("{at}: expected {} items, got {}", a.len(), b.len())))
        }
        (Value::String(a), Value::String(b)) if a == "<any>" && !b.is_empty() => None,
        (Value::String(a), Value::String(b)) if a.contains("<value>") && matches_value(a, b) => None,
        (a, b) => (a != b).then(|| format!("{at}: expected {}, got {}", brief(a), brief(b))),
    }
}

fn matches_value(want: &str, got: &str) -> bool {
    let pattern = format!("^{}$", regex::escape(want).replace("<value>", ".*"));
    Regex::new(&pattern).is_ok_and(|r| r.is_match(got))
}
