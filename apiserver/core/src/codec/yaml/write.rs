//! JSON to YAML, as upstream prints it: sorted keys, lists not indented below their key, plain scalars where they mean
//! the same string, folded at 80 columns, literal blocks for texts of several lines.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::resolve::{Scalar, resolve};

const WIDTH: usize = 80;
const STEP: usize = 2;
/// Longer keys, and those of several lines, are written with `?`.
const MAX_SIMPLE_KEY: usize = 128;

/// Prints a value as one YAML document, with a line break at its end.
#[must_use]
pub fn to_yaml(value: &Value) -> String {
    let mut writer = Writer { out: String::new(), column: 0 };
    match value {
        Value::Object(map) if !map.is_empty() => writer.mapping(map, 0, true),
        Value::Array(list) if !list.is_empty() => writer.sequence(list, 0, true),
        scalar => writer.scalar(scalar, STEP),
    }
    if writer.column > 0 {
        writer.out.push('\n');
    }
    writer.out
}

struct Writer {
    out: String,
    column: usize,
}

impl Writer {
    fn push(&mut self, c: char) {
        self.out.push(c);
        self.column = if c == '\n' { 0 } else { self.column + 1 };
    }

    fn text(&mut self, text: &str) {
        text.chars().for_each(|c| self.push(c));
    }

    fn line(&mut self, indent: usize) {
        if self.column > 0 {
            self.push('\n');
        }
        (0..indent).for_each(|_| self.push(' '));
    }

    /// `here`: the first key goes on the line that was begun.
    fn mapping(&mut self, map: &Map<String, Value>, indent: usize, here: bool) {
        let mut members: Vec<_> = map.iter().collect();
        members.sort_by(|a, b| compare_keys(a.0, b.0));
        for (i, (name, value)) in members.into_iter().enumerate() {
            if i > 0 || !here {
                self.line(indent);
            }
            let simple = name.len() <= MAX_SIMPLE_KEY && !name.contains(is_break);
            if simple {
                self.string(name, indent + STEP, true);
                self.push(':');
            } else {
                self.text("? ");
                self.string(name, indent + STEP, false);
                self.line(indent);
                self.push(':');
            }
            match value {
                Value::Object(map) if !map.is_empty() => {
                    if !simple {
                        self.push(' ');
                    }
                    self.mapping(map, indent + STEP, !simple);
                }
                Value::Array(list) if !list.is_empty() && simple => self.sequence(list, indent, false),
                Value::Array(list) if !list.is_empty() => {
                    self.push(' ');
                    self.sequence(list, indent + STEP, true);
                }
                scalar => {
                    self.push(' ');
                    self.scalar(scalar, indent + STEP);
                }
            }
        }
    }

    fn sequence(&mut self, list: &[Value], indent: usize, here: bool) {
        for (i, value) in list.iter().enumerate() {
            if i > 0 || !here {
                self.line(indent);
            }
            self.text("- ");
            match value {
                Value::Object(map) if !map.is_empty() => self.mapping(map, indent + STEP, true),
                Value::Array(list) if !list.is_empty() => self.sequence(list, indent + STEP, true),
                scalar => self.scalar(scalar, indent + STEP),
            }
        }
    }

    fn scalar(&mut self, value: &Value, indent: usize) {
        match value {
            Value::Null => self.text("null"),
            Value::Bool(b) => self.text(if *b { "true" } else { "false" }),
            Value::Number(n) => match n.as_f64().filter(|_| n.is_f64()) {
                Some(float) => self.text(&go_float(float)),
                None => self.text(&n.to_string()),
            },
            Value::String(text) => self.string(text, indent, false),
            Value::Array(_) => self.text("[]"),
            Value::Object(_) => self.text("{}"),
        }
    }

    fn string(&mut self, text: &str, indent: usize, key: bool) {
        let allowed = Allowed::of(text);
        let means_string = matches!(resolve(text), Scalar::String) && !is_base60(text);
        if text.contains('\n') {
            if allowed.block && !key {
                self.literal(text, indent);
            } else {
                self.double_quoted(text, indent, key);
            }
        } else if !means_string || !allowed.single_quoted {
            self.double_quoted(text, indent, key);
        } else if allowed.plain {
            self.folded(text, indent, key);
        } else {
            self.push('\'');
            self.folded(&text.replace('\'', "''"), indent, key);
            self.push('\'');
        }
    }

    /// Plain and single-quoted text: a space behind column 80 becomes a line break.
    fn folded(&mut self, text: &str, indent: usize, key: bool) {
        let chars: Vec<char> = text.chars().collect();
        let mut spaces = false;
        for (i, c) in chars.iter().enumerate() {
            if *c == ' ' {
                let inside = i > 0 && i + 1 < chars.len();
                if !key && !spaces && inside && self.column > WIDTH && chars.get(i + 1) != Some(&' ') {
                    self.line(indent);
                } else {
                    self.push(' ');
                }
                spaces = true;
            } else {
                self.push(*c);
                spaces = false;
            }
        }
    }

    fn double_quoted(&mut self, text: &str, indent: usize, key: bool) {
        let chars: Vec<char> = text.chars().collect();
        let mut spaces = false;
        self.push('"');
        for (i, c) in chars.iter().copied().enumerate() {
            if c == ' ' {
                if !key && !spaces && self.column > WIDTH && i > 0 && i + 1 < chars.len() {
                    self.line(indent);
                    if chars[i + 1] == ' ' {
                        self.push('\\');
                    }
                } else {
                    self.push(' ');
                }
                spaces = true;
                continue;
            }
            spaces = false;
            if is_printable(c) && !is_break(c) && c != '"' && c != '\\' {
                self.push(c);
            } else {
                self.escape(c);
            }
        }
        self.push('"');
    }

    fn escape(&mut self, c: char) {
        let short = match c {
            '\0' => '0',
            '\x07' => 'a',
            '\x08' => 'b',
            '\t' => 't',
            '\n' => 'n',
            '\x0b' => 'v',
            '\x0c' => 'f',
            '\r' => 'r',
            '\x1b' => 'e',
            '"' => '"',
            '\\' => '\\',
            '\u{85}' => 'N',
            '\u{a0}' => '_',
            '\u{2028}' => 'L',
            '\u{2029}' => 'P',
            _ => {
                let code = u32::from(c);
                let text = match code {
                    0..=0xff => format!("\\x{code:02X}"),
                    0x100..=0xffff => format!("\\u{code:04X}"),
                    _ => format!("\\U{code:08X}"),
                };
                return self.text(&text);
            }
        };
        self.push('\\');
        self.push(short);
    }

    fn literal(&mut self, text: &str, indent: usize) {
        self.push('|');
        if text.starts_with([' ', '\n']) {
            self.text("2");
        }
        if !text.ends_with('\n') {
            self.push('-');
        } else if text.len() == 1 || text.ends_with("\n\n") {
            self.push('+');
        }
        self.push('\n');
        for line in text.split_inclusive('\n') {
            if line != "\n" {
                self.line(indent);
            }
            self.text(line);
        }
    }
}

/// Which styles can hold a text unchanged.
struct Allowed {
    plain: bool,
    single_quoted: bool,
    block: bool,
}

impl Allowed {
    fn of(text: &str) -> Self {
        let mut allowed = Self { plain: !text.is_empty(), single_quoted: true, block: true };
        let (mut special, mut space_break, mut break_space) = (false, false, false);
        allowed.plain &= !text.starts_with("---") && !text.starts_with("...");
        let (mut after_blank, mut previous_space, mut previous_break) = (true, false, false);
        let mut chars = text.chars().peekable();
        let mut first = true;
        while let Some(c) = chars.next() {
            let last = chars.peek().is_none();
            let before_blank = chars.peek().is_none_or(|c| matches!(c, ' ' | '\t') || is_break(*c));
            let indicator = if first {
                match c {
                    '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`' => {
                        true
                    }
                    '?' | ':' | '-' => before_blank,
                    _ => false,
                }
            } else {
                match c {
                    ':' => before_blank,
                    '#' => after_blank,
                    _ => false,
                }
            };
            allowed.plain &= !indicator;
            special |= !is_printable(c);
            if c == ' ' {
                break_space |= previous_break;
                allowed.plain &= !(first || last);
                allowed.block &= !last;
                (previous_space, previous_break) = (true, false);
            } else if is_break(c) {
                space_break |= previous_space;
                allowed.plain = false;
                (previous_space, previous_break) = (false, true);
            } else {
                (previous_space, previous_break) = (false, false);
            }
            after_blank = matches!(c, ' ' | '\t') || is_break(c);
            first = false;
        }
        if break_space {
            (allowed.plain, allowed.single_quoted) = (false, false);
        }
        if space_break || special {
            allowed = Self { plain: false, single_quoted: false, block: false };
        }
        allowed
    }
}

fn is_break(c: char) -> bool {
    matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// What the library upstream uses prints unescaped: nothing outside of the basic plane.
fn is_printable(c: char) -> bool {
    matches!(c, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}') && c != '\u{feff}'
}

/// `1:30` was a number once; some readers still think so.
fn is_base60(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let mut parts = unsigned.split(':');
    let head = parts.next().is_some_and(|h| {
        h.starts_with(|c: char| c.is_ascii_digit()) && h.bytes().all(|b| b.is_ascii_digit() || b == b'_')
    });
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return false };
    let sixty = |p: &str| match p.as_bytes() {
        [a] => a.is_ascii_digit(),
        [a, b] => (b'0'..=b'5').contains(a) && b.is_ascii_digit(),
        _ => false,
    };
    let last = match last.split_once('.') {
        Some((whole, fraction)) => sixty(whole) && fraction.bytes().all(|b| b.is_ascii_digit() || b == b'_'),
        None => sixty(last),
    };
    head && last && middle.iter().all(|p| sixty(p))
}

/// Keys in an order for people: digits as numbers, letters after everything else.
fn compare_keys(a: &str, b: &str) -> Ordering {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let Some(i) = (0..a.len().min(b.len())).find(|i| a[*i] != b[*i]) else { return a.len().cmp(&b.len()) };
    let (x, y) = (a[i], b[i]);
    match (x.is_alphabetic(), y.is_alphabetic()) {
        (true, true) => return x.cmp(&y),
        (true, false) => return Ordering::Greater,
        (false, true) => return Ordering::Less,
        (false, false) => {}
    }
    // A zero inside of a number counts; a leading one does not.
    let inside = (x == '0' || y == '0') && a[..i].iter().rev().take_while(|c| c.is_ascii_digit()).any(|c| *c != '0');
    let number = |chars: &[char]| {
        let mut n: i64 = i64::from(inside);
        let mut end = i;
        while let Some(digit) = chars.get(end).and_then(|c| c.to_digit(10)) {
            n = n.wrapping_mul(10).wrapping_add(digit.into());
            end += 1;
        }
        (n, end)
    };
    number(&a).cmp(&number(&b)).then(x.cmp(&y))
}

/// Go's shortest form: an exponent below 1e-4 and from 1e6.
fn go_float(float: f64) -> String {
    let scientific = format!("{float:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let power: i32 = exponent.parse().unwrap_or(0);
    if (-4..6).contains(&power) {
        return float.to_string();
    }
    let sign = if power < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", power.abs())
}
