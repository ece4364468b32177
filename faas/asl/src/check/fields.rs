//! The fields of one object: each is asked for by name and type, and those that nobody asked for are faults.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::Check;
use crate::definition::{QueryLanguage, ResultPath, Selection, Setting, escape};
use crate::fault::{self, Fault};
use crate::jsonata;
use crate::path::{Path, Reference};
use crate::template::{Source, Template};

pub(super) struct Fields<'v, 'c> {
    map: &'v Map<String, Value>,
    used: BTreeSet<&'v str>,
    pub(super) at: String,
    pub(super) check: &'c mut Check,
    /// The language of the state that the object belongs to.
    pub(super) language: QueryLanguage,
    /// Where the object is in its state, in the words of the service: `Choices[1]/`, empty for the state itself.
    place: String,
}

impl<'v, 'c> Fields<'v, 'c> {
    /// The fields of an object at a pointer; anything else there is a fault.
    pub(super) fn new(value: &'v Value, at: impl Into<String>, check: &'c mut Check) -> Option<Self> {
        let at = at.into();
        let language = check.language;
        match value.as_object() {
            Some(map) => Some(Self { map, used: BTreeSet::new(), at, check, language, place: String::new() }),
            None => {
                check.error(&at, format!("The value must be an OBJECT but is {}", kind(value)));
                None
            }
        }
    }

    pub(super) fn with_language(self, language: QueryLanguage) -> Self {
        Self { language, ..self }
    }

    pub(super) fn with_place(self, place: String) -> Self {
        Self { place, ..self }
    }

    pub(super) fn is_jsonata(&self) -> bool {
        self.language == QueryLanguage::Jsonata
    }

    pub(super) fn pointer(&self, field: &str) -> String {
        format!("{}/{}", self.at, escape(field))
    }

    pub(super) fn fault(&mut self, field: &str, message: impl Into<String>) {
        let at = self.pointer(field);
        self.check.error(&at, message);
    }

    /// A fault of an expression.
    pub(super) fn invalid(&mut self, field: &str, why: jsonata::Invalid) {
        let at = self.pointer(field);
        self.check.faults.push(Fault::error(why.code, at, why.message));
    }

    /// A fault of the object itself.
    pub(super) fn own_fault(&mut self, message: impl Into<String>) {
        let at = self.at.clone();
        self.check.error(&at, message);
    }

    pub(super) fn warning(&mut self, code: &str, field: &str, message: impl Into<String>) {
        let at = self.pointer(field);
        self.check.faults.push(Fault::warning(code, at, message));
    }

    pub(super) fn has(&self, field: &str) -> bool {
        self.map.contains_key(field)
    }

    pub(super) fn is_used(&self, field: &str) -> bool {
        self.used.contains(field)
    }

    /// Whether a field of that name has a `…Path` form in JSONPath.
    pub(super) fn takes_path_form(&self, field: &str) -> bool {
        const SETTINGS: [&str; 13] = [
            "TimeoutSeconds",
            "HeartbeatSeconds",
            "Seconds",
            "Timestamp",
            "Error",
            "Cause",
            "MaxConcurrency",
            "ToleratedFailureCount",
            "ToleratedFailurePercentage",
            "MaxItems",
            "MaxItemsPerBatch",
            "MaxInputBytesPerBatch",
            "Items",
        ];
        SETTINGS.contains(&field)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &'v str> + use<'v> {
        self.map.keys().map(String::as_str)
    }

    pub(super) fn get(&mut self, field: &str) -> Option<&'v Value> {
        let (key, value) = self.map.get_key_value(field)?;
        self.used.insert(key);
        Some(value)
    }

    pub(super) fn required(&mut self, field: &str) -> Option<&'v Value> {
        let value = self.get(field);
        if value.is_none() {
            self.own_fault(format!("The required field '{field}' is missing"));
        }
        value
    }

    fn wrong(&mut self, field: &str, wanted: &str, value: &Value) {
        self.fault(field, format!("The value for the field '{field}' must be {wanted} but is {}", kind(value)));
    }

    pub(super) fn string(&mut self, field: &str) -> Option<String> {
        match self.get(field)? {
            Value::String(text) => Some(text.clone()),
            other => {
                self.wrong(field, "a STRING", other);
                None
            }
        }
    }

    pub(super) fn required_string(&mut self, field: &str) -> Option<String> {
        self.required(field)?;
        self.string(field)
    }

    /// One of a few words.
    pub(super) fn word(&mut self, field: &str, words: &[&str]) -> Option<String> {
        let word = self.string(field)?;
        if words.contains(&word.as_str()) {
            return Some(word);
        }
        self.fault(field, format!("The field '{field}' must be one of {} but is '{word}'", words.join(", ")));
        None
    }

    pub(super) fn boolean(&mut self, field: &str) -> Option<bool> {
        match self.get(field)? {
            Value::Bool(value) => Some(*value),
            other => {
                self.wrong(field, "a BOOLEAN", other);
                None
            }
        }
    }

    pub(super) fn whole(&mut self, field: &str, least: u64, most: u64) -> Option<u64> {
        let value = self.get(field)?;
        match crate::data::whole_number(value).filter(|n| (least..=most).contains(n)) {
            Some(n) => Some(n),
            None => {
                self.wrong(field, &format!("a whole NUMBER from {least} to {most}"), value);
                None
            }
        }
    }

    pub(super) fn array(&mut self, field: &str) -> Option<&'v Vec<Value>> {
        match self.get(field)? {
            Value::Array(items) => Some(items),
            other => {
                self.wrong(field, "an ARRAY", other);
                None
            }
        }
    }

    pub(super) fn object(&mut self, field: &str) -> Option<Fields<'v, '_>> {
        let value = self.get(field)?;
        let (at, language, place) = (self.pointer(field), self.language, format!("{}{field}/", self.place));
        Fields::new(value, at, self.check).map(|fields| fields.with_language(language).with_place(place))
    }

    pub(super) fn language(&mut self) -> Option<QueryLanguage> {
        match self.word("QueryLanguage", &["JSONPath", "JSONata"])?.as_str() {
            "JSONata" => {
                if !jsonata::SUPPORTED {
                    self.fault("QueryLanguage", "JSONata is not supported by this build: use JSONPath");
                }
                Some(QueryLanguage::Jsonata)
            }
            _ => Some(QueryLanguage::JsonPath),
        }
    }

    /// At most one of the fields.
    pub(super) fn exclusive(&mut self, names: &[&str]) {
        let present: Vec<&str> = names.iter().copied().filter(|name| self.has(name)).collect();
        if present.len() > 1 {
            self.own_fault(format!("The fields '{}' exclude each other", present.join("', '")));
        }
    }

    pub(super) fn path(&mut self, field: &str) -> Option<Path> {
        let text = self.string(field)?;
        match Path::parse(&text) {
            Ok(path) => Some(path),
            Err(why) => {
                self.fault(field, format!("The value for the field '{field}' must be a valid JSONPath: {why}"));
                None
            }
        }
    }

    /// A path that names one place, in the input, the context object or a variable.
    pub(super) fn reference(&mut self, field: &str) -> Option<Path> {
        let path = self.path(field)?;
        if path.is_reference() {
            return Some(path);
        }
        self.fault(
            field,
            format!("The value for the field '{field}' must be a Reference Path, with names and indexes only"),
        );
        None
    }

    pub(super) fn selection(&mut self, field: &str) -> Selection {
        match self.get(field) {
            None => Selection::Whole,
            Some(Value::Null) => Selection::Nothing,
            Some(_) => match self.path(field) {
                Some(path) if path.as_str() == "$" => Selection::Whole,
                Some(path) => Selection::Path(path),
                None => Selection::Whole,
            },
        }
    }

    pub(super) fn result_path(&mut self) -> ResultPath {
        match self.get("ResultPath") {
            None => ResultPath::Replace,
            Some(Value::Null) => ResultPath::Discard,
            Some(Value::String(text)) if text == "$" => ResultPath::Replace,
            Some(Value::String(text)) => match Reference::parse(text) {
                Ok(reference) => ResultPath::At(reference),
                Err(why) => {
                    let message = format!("The value for the field 'ResultPath' must be a valid Reference Path: {why}");
                    self.fault("ResultPath", message);
                    ResultPath::Replace
                }
            },
            Some(other) => {
                self.wrong("ResultPath", "a STRING or null", other);
                ResultPath::Replace
            }
        }
    }

    /// Any value as a template.
    pub(super) fn template(&mut self, field: &str) -> Option<Template> {
        let value = self.get(field)?;
        if !self.is_jsonata() {
            self.forgotten_dollars(value, &self.pointer(field));
        }
        match Template::parse_for(&format!("{}{field}", self.place), value, self.language) {
            Ok(template) => Some(template),
            Err(faults) => {
                let at = self.pointer(field);
                for fault in faults {
                    self.check.faults.push(Fault::error(fault.code, format!("{at}{}", fault.pointer), fault.message));
                }
                None
            }
        }
    }

    /// A template that is an object, or in JSONata an expression for one.
    pub(super) fn payload(&mut self, field: &str) -> Option<Template> {
        match self.get(field)? {
            Value::Object(_) => {}
            Value::String(text) if self.is_jsonata() && text.starts_with("{%") => {}
            other => {
                self.wrong(field, if self.is_jsonata() { "an OBJECT or an expression" } else { "an OBJECT" }, other);
                return None;
            }
        }
        self.template(field)
    }

    /// Strings that look like paths or calls under keys without `.$` are probably meant as such.
    fn forgotten_dollars(&mut self, value: &Value, at: &str) {
        match value {
            Value::Object(map) => {
                for (key, value) in map {
                    let at = format!("{at}/{}", escape(key));
                    match value {
                        Value::String(text) if !key.ends_with(".$") && looks_evaluated(text) => {
                            let message = format!(
                                "The value '{text}' is taken literally: a JSONPath or an intrinsic function needs the \
                                 field name '{key}.$'"
                            );
                            self.check.faults.push(Fault::warning(fault::NO_DOLLAR, at, message));
                        }
                        Value::Object(_) | Value::Array(_) => self.forgotten_dollars(value, &at),
                        _ => {}
                    }
                }
            }
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate().filter(|(_, item)| item.is_object() || item.is_array()) {
                    self.forgotten_dollars(item, &format!("{at}/{i}"));
                }
            }
            _ => {}
        }
    }

    /// A number: constant, from a reference path (`…Path`, JSONPath only), or an expression (JSONata only).
    pub(super) fn whole_setting(&mut self, field: &str, least: u64, most: u64) -> Option<Setting<u64>> {
        if let Some(setting) = self.dynamic(field) {
            return setting;
        }
        self.whole(field, least, most).map(Setting::Literal)
    }

    pub(super) fn fraction_setting(&mut self, field: &str, least: f64, most: f64) -> Option<Setting<f64>> {
        if let Some(setting) = self.dynamic(field) {
            return setting;
        }
        let value = self.get(field)?;
        match value.as_f64().filter(|n| (least..=most).contains(n)) {
            Some(n) => Some(Setting::Literal(n)),
            None => {
                self.wrong(field, &format!("a NUMBER from {least} to {most}"), value);
                None
            }
        }
    }

    pub(super) fn string_setting(&mut self, field: &str) -> Option<Setting<String>> {
        if let Some(setting) = self.dynamic(field) {
            return setting;
        }
        let text = self.string(field)?;
        if !self.is_jsonata() && looks_evaluated(&text) {
            let message = format!("The value '{text}' is taken literally: a JSONPath needs the field '{field}Path'");
            self.warning(fault::NO_PATH, field, message);
        }
        Some(Setting::Literal(text))
    }

    /// Like [`Self::string_setting`], with intrinsic functions in the `…Path` field.
    pub(super) fn string_or_call_setting(&mut self, field: &str) -> Option<Setting<String>> {
        let path_field = format!("{field}Path");
        if self.is_jsonata() || !self.has(&path_field) {
            return self.string_setting(field);
        }
        self.exclusive(&[field, &path_field]);
        self.get(field);
        let text = self.string(&path_field)?;
        match Source::parse(&text) {
            Ok(Source::Path(path)) if !path.is_reference() => {
                let message = format!("The value for the field '{path_field}' must be a Reference Path");
                self.fault(&path_field, message);
                None
            }
            Ok(source) => Some(Setting::Path(source)),
            Err(why) => {
                let message = format!(
                    "The value for the field '{path_field}' must be a valid JSONPath or a valid intrinsic function \
                     call: {why}"
                );
                self.fault(&path_field, message);
                None
            }
        }
    }

    /// The `…Path` form or the expression of a setting; the outer nothing means that it is neither.
    fn dynamic<T>(&mut self, field: &str) -> Option<Option<Setting<T>>> {
        if self.is_jsonata() {
            let text = self.map.get(field)?.as_str()?;
            return match jsonata::unwrap(text) {
                Ok(None) => None,
                Ok(Some(expression)) => {
                    self.get(field);
                    if let Err(why) = jsonata::check(expression) {
                        self.invalid(field, why);
                    }
                    Some(Some(Setting::Expression(expression.to_owned())))
                }
                Err(why) => {
                    self.get(field);
                    self.invalid(field, why);
                    Some(None)
                }
            };
        }
        let path_field = format!("{field}Path");
        if !self.has(&path_field) {
            return None;
        }
        self.exclusive(&[field, &path_field]);
        self.get(field);
        Some(self.reference(&path_field).map(|path| Setting::Path(Source::Path(path))))
    }

    /// Ends the reading: fields that were not asked for are faults. `of` says what the object is.
    pub(super) fn finish(self, of: &str) -> &'c mut Check {
        for key in self.map.keys().filter(|key| !self.used.contains(key.as_str())) {
            let at = format!("{}/{}", self.at, escape(key));
            self.check.error(&at, format!("The field '{key}' is not supported as a field {of}"));
        }
        self.check
    }
}

/// Whether a string has the form of a path or of an intrinsic function.
fn looks_evaluated(text: &str) -> bool {
    text == "$"
        || ["$.", "$$.", "$["].iter().any(|start| text.starts_with(start))
        || (text.starts_with("States.") && text.ends_with(')'))
}

pub(super) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "a BOOLEAN".to_owned(),
        Value::Number(n) => n.to_string(),
        Value::String(text) => {
            let mut short: String = text.chars().take(80).collect();
            if short.len() < text.len() {
                short.push('…');
            }
            format!("the STRING '{short}'")
        }
        Value::Array(_) => "an ARRAY".to_owned(),
        Value::Object(_) => "an OBJECT".to_owned(),
    }
}
