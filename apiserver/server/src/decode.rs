//! Reading request bodies: JSON, YAML or protobuf into a normalised object of the expected kind.

use serde_json::Value;
use skiff_core::codec::{self, DecodeError, Decoded, Parsed};
use skiff_core::invalid::quote_str;
use skiff_core::kinds::Strategy;
use skiff_core::schema::Struct;
use skiff_core::status::Status;

use crate::negotiate::{Encoding, body_encoding};
use crate::registry::Kind;
use crate::verbs::Call;
use crate::verbs::options::FieldValidation;

/// What a body must be.
#[derive(Clone, Copy)]
pub struct Expected<'a> {
    /// Group of the kind.
    pub group: &'a str,
    /// Version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// Its shape.
    pub shape: &'a Struct,
    /// The kind's rules; `None` for bodies that are no objects of a resource.
    pub rules: Option<&'a dyn Strategy>,
}

impl<'a> Expected<'a> {
    /// An object of a kind.
    #[must_use]
    pub fn of(kind: &'a Kind) -> Self {
        let r = &kind.resource;
        let rules = Some(&*kind.strategy);
        Self { group: &r.group, version: &r.version, kind: &r.kind, shape: &r.model, rules }
    }

    fn untyped(&self) -> bool {
        self.rules.is_some_and(|r| r.traits().untyped)
    }

    fn normalize(&self, value: &mut Value, faults: &mut codec::Faults) -> Result<(), codec::TypeError> {
        match self.rules {
            Some(rules) => rules.normalize(value, self.shape, faults),
            None => codec::normalize(value, self.shape, faults),
        }
    }

    fn api_version(&self) -> String {
        skiff_core::resources::group_version(self.group, self.version)
    }
}

/// Reads the body of a call as the expected kind. `kind` and `apiVersion` may be left out and are filled in.
///
/// # Errors
/// 400 and 415 in upstream's words.
pub fn body(call: &mut Call, expected: Expected<'_>, validation: FieldValidation) -> Result<Value, Status> {
    let encoding = body_encoding(call.headers.get("content-type").and_then(|v| v.to_str().ok()), !expected.untyped())?;
    let decoded = decode(&call.body, encoding, expected)?;
    if expected.untyped() {
        let kind = decoded.value["kind"].as_str().unwrap_or_default();
        check_kind(kind, skiff_core::meta::name(&decoded.value), expected)?;
    }
    report(decoded, expected, validation, call)
}

/// Applies the strictness to what decoding found.
///
/// # Errors
/// 400 under [`FieldValidation::Strict`].
pub fn report(
    decoded: Decoded,
    expected: Expected<'_>,
    validation: FieldValidation,
    call: &mut Call,
) -> Result<Value, Status> {
    if !decoded.strict.is_empty() {
        match validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => call.warnings.extend(decoded.warnings()),
            FieldValidation::Strict => {
                let why = format!("strict decoding error: {}", decoded.strict.join(", "));
                return Err(cannot_handle(expected, expected.version, expected.kind, &why));
            }
        }
    }
    call.emptied = decoded.emptied;
    let mut value = decoded.value;
    value["kind"] = expected.kind.into();
    value["apiVersion"] = expected.api_version().into();
    Ok(value)
}

fn cannot_handle(expected: Expected<'_>, version: &str, kind: &str, why: &str) -> Status {
    let want = expected.kind;
    Status::bad_request(format!("{kind} in version {} cannot be handled as a {want}: {why}", quote_str(version)))
}

fn unrecognised(expected: Expected<'_>, bytes: &[u8], why: &str) -> Status {
    let shown = if bytes.is_empty() {
        "<empty>".to_owned()
    } else {
        match std::str::from_utf8(bytes) {
            Ok(t) if t.starts_with('{') && t.len() <= 30 => t.to_owned(),
            Ok(t) if t.starts_with('{') => {
                format!("{} ...", t.chars().take(30).collect::<String>())
            }
            _ => {
                let hex: String = bytes.iter().take(30).map(|b| format!("{b:02x}")).collect();
                if bytes.len() > 30 { format!("{hex} ...") } else { hex }
            }
        }
    };
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {why} ({shown})",
        expected.kind
    ))
}

fn decode(bytes: &[u8], encoding: Encoding, expected: Expected<'_>) -> Result<Decoded, Status> {
    match encoding {
        Encoding::Json => {
            if bytes.iter().all(u8::is_ascii_whitespace) {
                let why = "couldn't get version/kind; json parse error: unexpected end of JSON input";
                return Err(unrecognised(expected, bytes, why));
            }
            let parsed = codec::parse_json(bytes).map_err(|e| match e {
                DecodeError::End => {
                    let why = "couldn't get version/kind; json parse error: unexpected end of JSON input";
                    unrecognised(expected, bytes, why)
                }
                e => unrecognised(expected, bytes, &format!("couldn't get version/kind; json parse error: {e}")),
            })?;
            let parsed = typed(bytes, parsed, expected)?;
            let forget = forgets_owners(&parsed.value);
            let mut decoded = if expected.untyped() {
                untyped(parsed, expected, |d| d.iter().map(|p| format!("duplicate field {}", quote_str(p))).collect())
            } else {
                codec::json::decode_parsed(bytes, parsed, expected.shape)
            }
            .map_err(|e| cannot_handle(expected, expected.version, expected.kind, &e.to_string()))?;
            if forget {
                decoded.value["metadata"]["managedFields"] = Value::Array(vec![]);
            }
            Ok(decoded)
        }
        Encoding::Yaml => {
            let parsed = codec::parse_yaml(bytes).map_err(|e| unrecognised(expected, bytes, &e.to_string()))?;
            let parsed = typed(bytes, Parsed { value: parsed.value, duplicates: parsed.duplicates }, expected)?;
            if expected.untyped() {
                return untyped(parsed, expected, |d| codec::yaml::duplicates_fault(d).into_iter().collect())
                    .map_err(|e| cannot_handle(expected, expected.version, expected.kind, &e.to_string()));
            }
            codec::decode_yaml(bytes, expected.shape)
                .map_err(|e| cannot_handle(expected, expected.version, expected.kind, &e.to_string()))
        }
        Encoding::Protobuf => {
            let value = codec::decode_proto(bytes, |api_version, kind| {
                let (g, v) = api_version.split_once('/').unwrap_or(("", api_version));
                skiff_core::schema::kind(g, v, kind).or(Some(expected.shape))
            })
            .map_err(|e| unrecognised(expected, bytes, &e.to_string()))?;
            let parsed = typed(bytes, Parsed { value, duplicates: vec![] }, expected)?;
            let mut value = parsed.value;
            let mut faults = codec::Faults::default();
            expected
                .normalize(&mut value, &mut faults)
                .map_err(|e| cannot_handle(expected, expected.version, expected.kind, &e.to_string()))?;
            // Unknown fields of protobuf are dropped without a word, whatever the strictness.
            Ok(Decoded { value, strict: vec![], emptied: vec![] })
        }
    }
}

/// Reads an object that upstream has no type for: what was given twice is told first, then what was dropped.
fn untyped(
    parsed: Parsed,
    expected: Expected<'_>,
    twice: fn(&[String]) -> Vec<String>,
) -> Result<Decoded, DecodeError> {
    let Parsed { mut value, duplicates } = parsed;
    let mut faults = codec::Faults::default();
    expected.normalize(&mut value, &mut faults)?;
    let mut strict = twice(&duplicates);
    strict.extend(faults.unknown.iter().map(|path| format!("unknown field {}", quote_str(path))));
    Ok(Decoded { strict, value, emptied: faults.emptied })
}

/// Checks the version that an untyped object gives itself.
///
/// # Errors
/// 400.
pub fn check_version(api_version: &str, expected: Expected<'_>) -> Result<(), Status> {
    if api_version == expected.api_version() {
        return Ok(());
    }
    Err(Status::bad_request(format!(
        "the API version in the data ({api_version}) does not match the expected API version ({})",
        expected.api_version()
    )))
}

/// Checks the kind that an untyped object gives itself: upstream looks at it only after it has read the rest.
///
/// # Errors
/// 422.
pub fn check_kind(kind: &str, name: &str, expected: Expected<'_>) -> Result<(), Status> {
    if kind == expected.kind {
        return Ok(());
    }
    let mut e = skiff_core::invalid::Errors::new();
    e.invalid(&skiff_core::path::Path::new("kind"), kind, format!("must be {}", expected.kind));
    Err(Status::invalid(expected.group, kind, name, &e))
}

/// Whether an object asks to drop all owners: the empty list, which the typed form cannot tell from none.
#[must_use]
pub fn forgets_owners(value: &Value) -> bool {
    value.get("metadata").and_then(|m| m.get("managedFields")).and_then(Value::as_array).is_some_and(Vec::is_empty)
}

/// Versions that are read though no longer served; their shape is that of the served version.
const READ_ONLY: [(&str, &str, &str); 1] = [("policy", "v1beta1", "Eviction")];

/// Checks `kind` and `apiVersion` of a body against what is expected.
fn typed(bytes: &[u8], mut parsed: Parsed, expected: Expected<'_>) -> Result<Parsed, Status> {
    if parsed.value.is_null() {
        parsed.value = Value::Object(serde_json::Map::new());
    }
    if !parsed.value.is_object() {
        let why = "json: cannot unmarshal value into Go value of type struct";
        return Err(unrecognised(expected, b"", &format!("couldn't get version/kind; json parse error: {why}")));
    }
    let text = |k: &str| parsed.value.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (kind, api_version) = (text("kind"), text("apiVersion"));
    if expected.untyped() {
        for (shown, given) in [("Kind", &kind), ("apiVersion", &api_version)] {
            if given.is_empty() {
                let whole = String::from_utf8_lossy(bytes);
                return Err(unrecognised(expected, bytes, &format!("Object '{shown}' is missing in '{whole}'")));
            }
        }
        check_version(&api_version, expected)?;
        return Ok(parsed);
    }
    if let Some(why) = no_version(&api_version) {
        return Err(unrecognised(expected, bytes, &why));
    }
    let (group, version) = match api_version.split_once('/') {
        Some((g, v)) => (g.to_owned(), v.to_owned()),
        None => (String::new(), api_version.clone()),
    };
    let same_kind = kind.is_empty() || kind == expected.kind;
    let same_version = api_version.is_empty() || (group == expected.group && version == expected.version);
    if same_kind && same_version {
        return Ok(parsed);
    }
    if same_kind && READ_ONLY.contains(&(group.as_str(), version.as_str(), expected.kind)) && group == expected.group {
        return Ok(parsed);
    }
    let known = |k: &str| skiff_core::schema::kind(&group, &version, k).is_some();
    let kind = if kind.is_empty() { expected.kind.to_owned() } else { kind };
    if !same_version && same_kind && known(&kind) {
        return Err(Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            expected.api_version()
        )));
    }
    let (group, version) = if api_version.is_empty() {
        (expected.group.to_owned(), expected.version.to_owned())
    } else {
        (group, version)
    };
    if skiff_core::schema::kind(&group, &version, &kind).is_none() {
        let what = quote_str(&kind);
        let shown = skiff_core::resources::group_version(&group, &version);
        let why = format!(
            "no kind {what} is registered for version {} in scheme \"pkg/runtime/scheme.go:111\"",
            quote_str(&shown)
        );
        return Err(cannot_handle(expected, &version, &kind, &why));
    }
    let internal = |g: &str| if g.is_empty() { "core".to_owned() } else { g.split('.').next().unwrap_or(g).to_owned() };
    let why = format!(
        "converting ({version}.{kind}) to ({}.{}): unknown conversion",
        internal(expected.group),
        expected.kind
    );
    Err(cannot_handle(expected, &version, &kind, &why))
}

/// What upstream says of a text that is no group and version.
fn no_version(text: &str) -> Option<String> {
    (text.matches('/').count() > 1).then(|| format!("unexpected GroupVersion string: {text}"))
}

/// Reads a DeleteOptions body: any group's version, unknown fields ignored.
///
/// # Errors
/// 400 and 415.
pub fn delete_options(call: &Call) -> Result<Value, Status> {
    let encoding = body_encoding(call.headers.get("content-type").and_then(|v| v.to_str().ok()), true)?;
    let Some(shape) = skiff_core::schema::model("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions") else {
        return Err(Status::internal("DeleteOptions has no schema"));
    };
    // Said as it is, not as of the body of an object.
    let refused = |why: &dyn std::fmt::Display| Status::bad_request(why.to_string());
    let mut value = match encoding {
        Encoding::Json => {
            let said = |e| refused(&format!("couldn't get version/kind; json parse error: {e}"));
            codec::parse_json(&call.body).map_err(said)?.value
        }
        Encoding::Yaml => codec::parse_yaml(&call.body).map_err(|e| refused(&e))?.value,
        Encoding::Protobuf => codec::decode_proto(&call.body, |_, _| Some(shape)).map_err(|e| refused(&e))?,
    };
    codec::normalize(&mut value, shape, &mut codec::Faults::default()).map_err(|e| refused(&e))?;
    let version = value["apiVersion"].as_str().filter(|v| !v.is_empty()).unwrap_or("meta.k8s.io/v1");
    if let Some(why) = no_version(version) {
        return Err(refused(&why));
    }
    let kind = value["kind"].as_str().unwrap_or("DeleteOptions");
    // Any group's DeleteOptions will do, known or not.
    if kind != "DeleteOptions" {
        let why = format!(
            "no kind {} is registered for version {} in scheme \"pkg/runtime/scheme.go:111\"",
            quote_str(kind),
            quote_str(version)
        );
        return Err(Status::bad_request(why));
    }
    Ok(value)
}
