//! YAML to JSON.
//!
//! Bounds: nesting as for JSON; aliases may repeat content only up to a fixed number of nodes and bytes, so a short text
//! cannot become a large object. Only the first document of a text is read, as upstream does.

use std::collections::HashMap;

use base64::Engine as _;
use granit_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde_json::{Map, Value};

use super::super::json::DecodeError;
use super::faults::{alias, no_utf8, told};
use super::resolve::{Scalar, resolve};

/// As serde_json's limit.
const MAX_DEPTH: usize = 128;
const MAX_NODES: usize = 1_000_000;
const MAX_BYTES: usize = 32 << 20;

/// A document.
#[derive(Clone, Debug)]
pub struct ParsedYaml {
    /// Its content; of keys given twice, the last.
    pub value: Value,
    /// One text for each key given twice: `line 5: key "data" already set in map`.
    pub duplicates: Vec<String>,
}

/// Reads the first YAML document. An empty text is `null`.
pub fn parse_yaml(text: &[u8]) -> Result<ParsedYaml, DecodeError> {
    let text = std::str::from_utf8(text).map_err(|e| no_utf8(e, text))?;
    let mut reader = Reader {
        text,
        parser: Parser::new_from_str(text),
        anchors: HashMap::new(),
        duplicates: Vec::new(),
        size: Size::default(),
    };
    let value = reader.document()?;
    Ok(ParsedYaml { value, duplicates: reader.duplicates })
}

fn fault(message: impl Into<String>) -> DecodeError {
    DecodeError::Yaml(message.into())
}

#[derive(Clone, Copy, Default)]
struct Size {
    nodes: usize,
    bytes: usize,
}

struct Reader<'a> {
    text: &'a str,
    parser: Parser<'a, granit_parser::StrInput<'a>>,
    /// Values of anchors with what they cost to repeat.
    anchors: HashMap<usize, (Value, Size)>,
    duplicates: Vec<String>,
    /// What was built so far.
    size: Size,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(Event<'a>, Span)>, DecodeError> {
        self.parser.next_event().transpose().map_err(|e| told(&e, self.text))
    }

    fn document(&mut self) -> Result<Value, DecodeError> {
        while let Some((event, span)) = self.next()? {
            if event.is_node() {
                let value = self.node(event, &span, 0)?;
                // Upstream reads up to the document's end, and what is wrong there is told.
                self.next()?;
                return Ok(value);
            }
            if matches!(event, Event::DocumentEnd | Event::StreamEnd) {
                break;
            }
        }
        Ok(Value::Null)
    }

    fn node(&mut self, event: Event<'a>, span: &Span, depth: usize) -> Result<Value, DecodeError> {
        if depth > MAX_DEPTH {
            return Err(fault("yaml: exceeded max depth"));
        }
        let before = self.size;
        self.size.nodes += 1;
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.size.bytes += text.len();
                (anchor, scalar(&text, style, tag.as_deref())?)
            }
            Event::SequenceStart(_, anchor, _) => (anchor, self.sequence(depth)?),
            Event::MappingStart(_, anchor, _) => (anchor, self.mapping(depth)?),
            Event::Alias(id) => return self.alias(id, span),
            _ => return Err(fault(format!("yaml: line {}: unexpected event", span.start.line()))),
        };
        self.check()?;
        if anchor != 0 {
            let size = Size { nodes: self.size.nodes - before.nodes, bytes: self.size.bytes - before.bytes };
            self.anchors.insert(anchor, (value.clone(), size));
            // The kept copy counts too.
            self.size = Size { nodes: self.size.nodes + size.nodes, bytes: self.size.bytes + size.bytes };
            self.check()?;
        }
        Ok(value)
    }

    fn alias(&mut self, id: usize, span: &Span) -> Result<Value, DecodeError> {
        let Some((value, size)) = self.anchors.get(&id) else {
            let name = alias(&span.start, self.text);
            return Err(fault(format!("yaml: anchor '{name}' value contains itself")));
        };
        self.size = Size { nodes: self.size.nodes + size.nodes, bytes: self.size.bytes + size.bytes };
        if self.size.nodes > MAX_NODES || self.size.bytes > MAX_BYTES {
            return Err(fault("yaml: document contains excessive aliasing"));
        }
        Ok(value.clone())
    }

    fn check(&self) -> Result<(), DecodeError> {
        if self.size.nodes > MAX_NODES || self.size.bytes > MAX_BYTES {
            return Err(fault("yaml: document contains excessive aliasing"));
        }
        Ok(())
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, DecodeError> {
        let mut list = Vec::new();
        loop {
            let (event, span) = self.next()?.ok_or(DecodeError::End)?;
            match event {
                Event::SequenceEnd => return Ok(Value::Array(list)),
                event if event.is_node() => list.push(self.node(event, &span, depth + 1)?),
                _ => {}
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, DecodeError> {
        let mut map = Map::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.next()?.ok_or(DecodeError::End)?;
            if event == Event::MappingEnd {
                break;
            }
            if !event.is_node() {
                continue;
            }
            let is_merge = matches!(&event, Event::Scalar(t, ScalarStyle::Plain, _, None) if t == "<<");
            let name = if is_merge { String::new() } else { key(self.node(event, &span, depth + 1)?, &span)? };
            let (event, span) = loop {
                let (event, span) = self.next()?.ok_or(DecodeError::End)?;
                if event.is_node() {
                    break (event, span);
                }
            };
            let line = span.start.line();
            let value = self.node(event, &span, depth + 1)?;
            if is_merge {
                merged.push((value, line));
            } else if map.insert(name.clone(), value).is_some() && self.duplicates.len() < 1000 {
                self.duplicates.push(format!("line {line}: key {name:?} already set in map"));
            }
        }
        for (value, line) in merged {
            merge(&mut map, value, line)?;
        }
        Ok(Value::Object(map))
    }
}

/// `<<`: members that the mapping itself does not have.
fn merge(map: &mut Map<String, Value>, value: Value, line: usize) -> Result<(), DecodeError> {
    match value {
        Value::Object(other) => {
            for (name, value) in other {
                map.entry(name).or_insert(value);
            }
            Ok(())
        }
        Value::Array(list) if list.iter().all(Value::is_object) => {
            list.into_iter().try_for_each(|value| merge(map, value, line))
        }
        _ => Err(fault(format!("yaml: line {line}: map merge requires map or sequence of maps as the value"))),
    }
}

/// Keys become strings, as JSON wants.
fn key(value: Value, span: &Span) -> Result<String, DecodeError> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(n) => Ok(n.to_string()),
        Value::Bool(b) => Ok(b.to_string()),
        _ => Err(fault(format!("yaml: line {}: invalid map key", span.start.line()))),
    }
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Value, DecodeError> {
    let core = tag.and_then(Tag::core_suffix);
    let no_base64 = || fault("yaml: !!binary value contains invalid base64 data");
    match core {
        Some("str") => return Ok(text.into()),
        Some("binary") => {
            let compact: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
            let bytes = base64::engine::general_purpose::STANDARD.decode(compact).map_err(|_| no_base64())?;
            return String::from_utf8(bytes).map(Value::from).map_err(|_| no_base64());
        }
        Some(_) => {}
        None if style != ScalarStyle::Plain || tag.is_some() => return Ok(text.into()),
        None => {}
    }
    let value = match resolve(text) {
        Scalar::Value(value) => value,
        Scalar::NotFinite => {
            let sign = if text.starts_with('-') { '-' } else { '+' };
            let what = if text.eq_ignore_ascii_case(".nan") { "NaN".into() } else { format!("{sign}Inf") };
            return Err(fault(format!("json: unsupported value: {what}")));
        }
        Scalar::Timestamp | Scalar::String => text.into(),
    };
    let fits = match core {
        Some("int") => value.is_i64() || value.is_u64(),
        Some("float") => value.is_number(),
        Some("bool") => value.is_boolean(),
        Some("null") => value.is_null(),
        _ => true,
    };
    if fits {
        return Ok(value);
    }
    let found = match &value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float",
        Value::Number(_) => "int",
        _ => "str",
    };
    Err(fault(format!("yaml: cannot decode !!{found} `{text}` as a !!{}", core.unwrap_or_default())))
}
