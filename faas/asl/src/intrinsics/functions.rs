//! What each function does with the values of its arguments. Texts of errors say what the argument should have been.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rand::Rng as _;
use serde_json::Value;
use sha2::Digest as _;

use super::Function;

/// The longest text that Base64 and Hash take, in characters.
const MAX_TEXT: usize = 10_000;
/// The most items that ArrayRange makes.
const MAX_RANGE: usize = 1000;
/// The largest payload, and so the largest array to partition, in bytes of its JSON.
const MAX_PAYLOAD: usize = 262_144;

pub(super) fn apply(function: Function, arguments: &[Value]) -> Result<Value, String> {
    match (function, arguments) {
        (Function::Format, [template, values @ ..]) => format(text(template, "first")?, values),
        (Function::StringToJson, [value]) => string_to_json(value),
        (Function::JsonToString, [value]) => Ok(Value::String(value.to_string())),
        (Function::Array, values) => Ok(Value::Array(values.to_vec())),
        (Function::ArrayPartition, [items, size]) => partition(array(items)?, size),
        (Function::ArrayContains, [items, value]) => {
            Ok(Value::Bool(array(items)?.iter().any(|item| same(item, value))))
        }
        (Function::ArrayRange, [first, last, step]) => range(first, last, step),
        (Function::ArrayGetItem, [items, index]) => {
            let (items, index) = (array(items)?, exact(index)?);
            let item = usize::try_from(index).ok().and_then(|i| items.get(i)).cloned();
            item.ok_or_else(|| format!("the index {index} is out of range for an array of {} items", items.len()))
        }
        (Function::ArrayLength, [items]) => Ok(array(items)?.len().into()),
        (Function::ArrayUnique, [items]) => Ok(Value::Array(unique(array(items)?))),
        (Function::Base64Encode, [value]) => Ok(Value::String(STANDARD.encode(short(text(value, "first")?)?))),
        (Function::Base64Decode, [value]) => decode(short(text(value, "first")?)?),
        (Function::Hash, [data, algorithm]) => hash(data, text(algorithm, "second")?),
        (Function::JsonMerge, [left, right, deep]) => merge(left, right, deep),
        (Function::MathRandom, [start, end, seed @ ..]) => random(start, end, seed.first()),
        (Function::MathAdd, [left, right]) => Ok((small(left, "first")? + small(right, "second")?).into()),
        (Function::StringSplit, [value, splitter]) => split(text(value, "first")?, text(splitter, "second")?),
        (Function::Uuid, []) => Ok(Value::String(crate::dice::uuid())),
        _ => Err("wrong number of arguments".to_owned()),
    }
}

fn text<'a>(value: &'a Value, which: &str) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| format!("the {which} argument must be a string but is {value}"))
}

fn array(value: &Value) -> Result<&Vec<Value>, String> {
    value.as_array().ok_or_else(|| format!("the first argument must be an array but is {value}"))
}

fn short(value: &str) -> Result<&str, String> {
    let count = value.chars().count();
    if count > MAX_TEXT { Err(format!("the text has {count} characters, more than {MAX_TEXT}")) } else { Ok(value) }
}

/// A number as a whole one; the service rounds those with a fraction to the nearest.
fn whole(value: &Value, which: &str) -> Result<i64, String> {
    let rounded = value.as_i64().or_else(|| {
        let number = value.as_f64().filter(|n| n.abs() < 9.0e15)?;
        #[allow(clippy::cast_possible_truncation, reason = "guarded by the range")]
        Some(number.round() as i64)
    });
    rounded.ok_or_else(|| format!("the {which} argument must be an integer but is {value}"))
}

/// An index, which is not rounded.
fn exact(value: &Value) -> Result<i64, String> {
    let index = value.as_i64().or_else(|| crate::data::whole_number(value).and_then(|n| i64::try_from(n).ok()));
    index.ok_or_else(|| format!("the second argument must be an integer but is {value}"))
}

/// An integer of 32 bits.
fn small(value: &Value, which: &str) -> Result<i64, String> {
    let number = whole(value, which)?;
    i32::try_from(number)
        .map(i64::from)
        .map_err(|_| format!("the {which} argument must be from {} to {} but is {number}", i32::MIN, i32::MAX))
}

/// Equality in which `1` and `1.0` are one number.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(_), Value::Number(_)) => crate::path::order(left, right).is_some_and(std::cmp::Ordering::is_eq),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => left == right,
    }
}

fn format(template: &str, values: &[Value]) -> Result<Value, String> {
    let mut out = String::new();
    let mut next = values.iter();
    let mut chars = template.chars().peekable();
    let mut places = 0;
    while let Some(c) = chars.next() {
        match c {
            // In a template from data a backslash before anything else is itself.
            '\\' => out.push(chars.next_if(|c| matches!(c, '\'' | '{' | '}' | '\\')).unwrap_or('\\')),
            '{' if chars.next_if_eq(&'}').is_some() => {
                places += 1;
                match next.next() {
                    Some(Value::String(text)) => out.push_str(text),
                    Some(other) => _ = write!(out, "{other}"),
                    None => {}
                }
            }
            '{' | '}' => return Err(format!("the brace '{c}' in the template must be escaped")),
            c => out.push(c),
        }
    }
    if places == values.len() {
        Ok(Value::String(out))
    } else {
        Err(format!("the template has {places} places for {} values", values.len()))
    }
}

fn string_to_json(value: &Value) -> Result<Value, String> {
    let text = text(value, "first")?;
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(text).map_err(|e| format!("the text is not JSON: {e}"))
}

fn partition(items: &[Value], size: &Value) -> Result<Value, String> {
    let wanted = whole(size, "second")?;
    let size = usize::try_from(wanted).ok().filter(|size| *size > 0);
    let size = size.ok_or_else(|| format!("the second argument must be a positive integer but is {wanted}"))?;
    let bytes = serde_json::to_vec(items).map_or(usize::MAX, |json| json.len());
    if bytes > MAX_PAYLOAD {
        return Err(format!("the array has {bytes} bytes, more than {MAX_PAYLOAD}"));
    }
    Ok(items.chunks(size).map(<[Value]>::to_vec).collect())
}

fn range(first: &Value, last: &Value, step: &Value) -> Result<Value, String> {
    let (first, last, step) = (whole(first, "first")?, whole(last, "second")?, whole(step, "third")?);
    if step == 0 {
        return Err("the third argument must not be zero".to_owned());
    }
    let mut out = Vec::new();
    let mut at = first;
    while if step > 0 { at <= last } else { at >= last } {
        if out.len() == MAX_RANGE {
            return Err(format!("the array would have more than {MAX_RANGE} items"));
        }
        out.push(at);
        let Some(next) = at.checked_add(step) else { break };
        at = next;
    }
    Ok(out.into())
}

fn unique(items: &[Value]) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    // Equal values have equal keys, so that large arrays of small values take linear time.
    let mut seen = std::collections::HashMap::<String, Vec<usize>>::new();
    for item in items {
        let key = match item {
            Value::Number(n) => n.as_f64().unwrap_or_default().to_string(),
            Value::Array(_) | Value::Object(_) => String::new(),
            other => other.to_string(),
        };
        let places = seen.entry(key).or_default();
        if !places.iter().any(|i| same(&out[*i], item)) {
            places.push(out.len());
            out.push(item.clone());
        }
    }
    out
}

fn decode(value: &str) -> Result<Value, String> {
    let bytes = STANDARD.decode(value).map_err(|e| format!("the text is not Base64: {e}"))?;
    String::from_utf8(bytes).map(Value::String).map_err(|_| "the decoded bytes are no text in UTF-8".to_owned())
}

fn hash(data: &Value, algorithm: &str) -> Result<Value, String> {
    let data = match data {
        Value::String(text) => short(text)?.to_owned(),
        other => short(&other.to_string())?.to_owned(),
    };
    digest(algorithm, data.as_bytes())
        .map(Value::String)
        .ok_or_else(|| format!("the algorithm must be MD5, SHA-1, SHA-256, SHA-384 or SHA-512 but is {algorithm}"))
}

/// The digest in hexadecimal; nothing for an algorithm that is not known.
pub(crate) fn digest(algorithm: &str, data: &[u8]) -> Option<String> {
    let bytes = match algorithm {
        "MD5" => md5::Md5::digest(data).to_vec(),
        "SHA-1" => sha1::Sha1::digest(data).to_vec(),
        "SHA-256" => sha2::Sha256::digest(data).to_vec(),
        "SHA-384" => sha2::Sha384::digest(data).to_vec(),
        "SHA-512" => sha2::Sha512::digest(data).to_vec(),
        _ => return None,
    };
    Some(bytes.iter().fold(String::new(), |mut out, byte| {
        _ = write!(out, "{byte:02x}");
        out
    }))
}

fn merge(left: &Value, right: &Value, deep: &Value) -> Result<Value, String> {
    match deep {
        Value::Bool(false) => {}
        Value::Bool(true) => return Err("deep merging is not supported: the third argument must be false".to_owned()),
        other => return Err(format!("the third argument must be false but is {other}")),
    }
    let (Value::Object(left), Value::Object(right)) = (left, right) else {
        return Err("the first and the second argument must be objects".to_owned());
    };
    let mut out = left.clone();
    out.extend(right.clone());
    Ok(Value::Object(out))
}

fn random(start: &Value, end: &Value, seed: Option<&Value>) -> Result<Value, String> {
    let (start, end) = (small(start, "first")?, small(end, "second")?);
    if start >= end {
        return Err(format!("the first argument must be less than the second, but {start} is not less than {end}"));
    }
    Ok(match seed.map(|seed| whole(seed, "third")).transpose()? {
        None => crate::dice::throw(|dice| dice.random_range(start..end)).into(),
        Some(seed) => (start + i64::from(Seeded::new(seed).below(end.abs_diff(start)))).into(),
    })
}

/// The numbers of the service for a seed: those of `java.util.Random`, whose documentation gives the algorithm (a
/// linear congruence of 48 bits).
struct Seeded(u64);

impl Seeded {
    const MULTIPLIER: u64 = 0x5_deec_e66d;
    const MASK: u64 = (1 << 48) - 1;

    fn new(seed: i64) -> Self {
        Self((seed.cast_unsigned() ^ Self::MULTIPLIER) & Self::MASK)
    }

    /// The next bits, at most 32.
    fn bits(&mut self, count: u32) -> u32 {
        self.0 = self.0.wrapping_mul(Self::MULTIPLIER).wrapping_add(0xb) & Self::MASK;
        u32::try_from(self.0 >> (48 - count)).unwrap_or(u32::MAX)
    }

    /// A number below the bound.
    fn below(&mut self, bound: u64) -> u32 {
        let bound = u32::try_from(bound).unwrap_or(u32::MAX);
        if bound.is_power_of_two() && bound < 1 << 31 {
            let bits = u64::from(self.bits(31)) * u64::from(bound);
            return u32::try_from(bits >> 31).unwrap_or(0);
        }
        if bound > 1 << 31 {
            // More than Java's bound: whole words until one is below.
            loop {
                let bits = self.bits(32);
                if bits < bound {
                    return bits;
                }
            }
        }
        loop {
            let bits = self.bits(31);
            let value = bits % bound;
            // The last, incomplete run of remainders would favour the small ones.
            if u64::from(bits - value) + u64::from(bound) <= 1 << 31 {
                return value;
            }
        }
    }
}

/// A number from 0 up to 1, the same one for the same seed.
#[cfg(feature = "jsonata")]
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "53 bits are exact; seeds saturate")]
pub(crate) fn fraction(seed: Option<f64>) -> f64 {
    let Some(seed) = seed else { return crate::dice::throw(|dice| dice.random()) };
    let mut numbers = Seeded::new(seed as i64);
    let bits = (u64::from(numbers.bits(26)) << 27) + u64::from(numbers.bits(27));
    bits as f64 / (1_u64 << 53) as f64
}

/// Each character of the splitter divides; nothing empty comes out.
fn split(value: &str, splitter: &str) -> Result<Value, String> {
    Ok(value
        .split(|c| splitter.contains(c))
        .filter(|part| !part.is_empty())
        .map(|part| Value::String(part.to_owned()))
        .collect())
}
