//! Values as upstream's language prints them (`%v`): some answers carry a whole patch in that form.

use std::fmt::Write;

use serde_json::Value;

/// `map[a:1 b:[x y]]`.
#[must_use]
pub fn print(value: &Value) -> String {
    let mut out = String::new();
    write(value, &mut out);
    out
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Null => out.push_str("<nil>"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) => number(n, out),
        Value::String(s) => out.push_str(s),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(' ');
                }
                write(item, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            let mut keys: Vec<&String> = members.keys().collect();
            keys.sort_unstable();
            out.push_str("map[");
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(' ');
                }
                out.push_str(key);
                out.push(':');
                write(&members[key], out);
            }
            out.push(']');
        }
    }
}

fn number(n: &serde_json::Number, out: &mut String) {
    let Some(f) = n.as_f64().filter(|_| n.is_f64()) else {
        let _ = write!(out, "{n}");
        return;
    };
    // `%v` of a float is `%g`: exponents below -4 and from 21 on, at least two digits of exponent.
    let exponent = if f == 0.0 { 0 } else { f.abs().log10().floor() as i32 };
    if (-4..21).contains(&exponent) {
        let _ = write!(out, "{f}");
    } else {
        let text = format!("{f:e}");
        let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        let _ = write!(out, "{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    }
}

/// A value as upstream's language prints it where a text was meant (`%s`): what is no text is marked.
#[must_use]
pub fn as_text(value: &Value) -> String {
    let join = |items: Vec<String>| items.join(" ");
    match value {
        Value::String(s) => s.clone(),
        Value::Null => "%!s(<nil>)".to_owned(),
        Value::Array(items) => format!("[{}]", join(items.iter().map(as_text).collect())),
        Value::Object(members) => {
            let mut keys: Vec<&String> = members.keys().collect();
            keys.sort_unstable();
            format!("map[{}]", join(keys.into_iter().map(|k| format!("{k}:{}", as_text(&members[k]))).collect()))
        }
        other => format!("%!s({}={})", type_name(other), print(other)),
    }
}

/// A value as upstream's language would write it in a program (`%#v`).
#[must_use]
pub fn literal(value: &Value) -> String {
    let list = |items: Vec<String>| items.join(", ");
    match value {
        Value::Null => "interface {}(nil)".to_owned(),
        Value::String(s) => crate::invalid::quote_str(s),
        Value::Array(items) => format!("[]interface {{}}{{{}}}", list(items.iter().map(literal).collect())),
        Value::Object(members) => {
            let mut keys: Vec<&String> = members.keys().collect();
            keys.sort_unstable();
            let member = |k: &&String| format!("{}:{}", crate::invalid::quote_str(k), literal(&members[*k]));
            format!("map[string]interface {{}}{{{}}}", list(keys.iter().map(member).collect()))
        }
        other => print(other),
    }
}

/// The type of a decoded value, as upstream names it in messages.
#[must_use]
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "<nil>",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    }
}
