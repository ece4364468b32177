//! The text of a path. The cursor is shared with intrinsic functions, whose arguments are paths too.

use super::eval::Function;
use super::filter::{Comparison, Filter, Term};
use super::{Path, Root, Segment};

/// Filters within filters beyond this are refused, so that a definition cannot exhaust the stack.
const MAX_DEPTH: usize = 32;

/// A place in a text.
pub(crate) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, at: 0, depth: 0 }
    }

    pub(crate) fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    pub(crate) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    pub(crate) fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    pub(crate) fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    pub(crate) fn spaces(&mut self) {
        while self.peek().is_some_and(char::is_whitespace) {
            self.bump();
        }
    }

    pub(crate) fn expect(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) { Ok(()) } else { Err(self.fault(&format!("'{token}' expected"))) }
    }

    pub(crate) fn end(&self) -> Result<(), String> {
        if self.at == self.text.len() { Ok(()) } else { Err(self.fault("unexpected text")) }
    }

    pub(crate) fn fault(&self, what: &str) -> String {
        format!("'{}' at character {}: {what}", self.text, self.text[..self.at].chars().count())
    }

    /// A path from its `$` to where it can go no further.
    pub(crate) fn path(&mut self) -> Result<Path, String> {
        let from = self.at;
        if !self.eat("$") {
            return Err(self.fault("a path begins with '$'"));
        }
        let root = if self.eat("$") {
            Root::Context
        } else if self.peek().is_some_and(|c| c.is_alphabetic() || c == '_') {
            let start = self.at;
            while self.peek().is_some_and(|c| c.is_alphanumeric() || c == '_') {
                self.bump();
            }
            Root::Variable(self.text[start..self.at].to_owned())
        } else {
            Root::Input
        };
        let segments = self.segments(false)?;
        Ok(Path { text: self.text[from..self.at].to_owned(), root, segments })
    }

    fn segments(&mut self, in_filter: bool) -> Result<Vec<Segment>, String> {
        let mut out: Vec<Segment> = Vec::new();
        while let Some(c) = self.peek() {
            let segment = match c {
                '.' if self.eat("..") => {
                    let inner = if self.peek() == Some('[') {
                        self.bracket()?
                    } else if self.eat("*") {
                        Segment::Wildcard
                    } else {
                        Segment::Child(self.name(in_filter)?)
                    };
                    Segment::Descend(Box::new(inner))
                }
                '.' => {
                    self.bump();
                    if self.eat("*") {
                        Segment::Wildcard
                    } else {
                        let name = self.name(in_filter)?;
                        if self.eat("()") {
                            let f = Function::parse(&name)
                                .ok_or_else(|| self.fault(&format!("there is no function '{name}()'")))?;
                            Segment::Function(f)
                        } else {
                            Segment::Child(name)
                        }
                    }
                }
                '[' => self.bracket()?,
                _ => break,
            };
            if matches!(out.last(), Some(Segment::Function(_))) {
                return Err(self.fault("nothing can follow a function"));
            }
            out.push(segment);
        }
        Ok(out)
    }

    /// A name after a dot; a backslash takes the next character as it is, `\uXXXX` a code unit.
    fn name(&mut self, in_filter: bool) -> Result<String, String> {
        let mut units: Vec<u16> = Vec::new();
        let mut buffer = [0; 2];
        while let Some(c) = self.peek() {
            let c = match c {
                '\\' => {
                    self.bump();
                    let next = self.bump().ok_or_else(|| self.fault("nothing follows the backslash"))?;
                    if next == 'u'
                        && let Some(unit) = self.rest().get(..4).and_then(|hex| u16::from_str_radix(hex, 16).ok())
                    {
                        self.at += 4;
                        units.push(unit);
                        continue;
                    }
                    next
                }
                '.' | '[' | ']' | '(' | ')' | ',' | '?' | '*' | '@' | '\'' | '"' => break,
                c if c.is_whitespace() || c.is_control() => break,
                '=' | '<' | '>' | '!' | '&' | '|' if in_filter => break,
                c => {
                    self.bump();
                    c
                }
            };
            units.extend_from_slice(c.encode_utf16(&mut buffer));
        }
        if units.is_empty() {
            return Err(self.fault("a name expected"));
        }
        String::from_utf16(&units).map_err(|_| self.fault("half of a surrogate pair"))
    }

    fn bracket(&mut self) -> Result<Segment, String> {
        self.expect("[")?;
        self.spaces();
        let segment = match self.peek() {
            Some('*') => {
                self.bump();
                Segment::Wildcard
            }
            Some('?') => {
                self.bump();
                self.spaces();
                self.expect("(")?;
                let filter = self.filter()?;
                self.spaces();
                self.expect(")")?;
                Segment::Filter(Box::new(filter))
            }
            Some('\'' | '"') => {
                let mut names = vec![self.quoted()?];
                self.spaces();
                while self.eat(",") {
                    self.spaces();
                    names.push(self.quoted()?);
                    self.spaces();
                }
                match names.pop() {
                    Some(name) if names.is_empty() => Segment::Child(name),
                    last => Segment::Children(names.into_iter().chain(last).collect()),
                }
            }
            _ => self.numbers()?,
        };
        self.spaces();
        self.expect("]")?;
        Ok(segment)
    }

    fn numbers(&mut self) -> Result<Segment, String> {
        let first = self.integer()?;
        self.spaces();
        match self.peek() {
            Some(':') => {
                self.bump();
                self.spaces();
                let end = self.integer()?;
                self.spaces();
                let step = if self.eat(":") {
                    self.spaces();
                    self.integer()?.unwrap_or(1)
                } else {
                    1
                };
                if step <= 0 {
                    return Err(self.fault("the step of a slice is at least 1"));
                }
                Ok(Segment::Slice(first, end, step))
            }
            Some(',') => {
                let mut all = vec![first.ok_or_else(|| self.fault("an index expected"))?];
                while self.eat(",") {
                    self.spaces();
                    all.push(self.integer()?.ok_or_else(|| self.fault("an index expected"))?);
                    self.spaces();
                }
                Ok(Segment::Indexes(all))
            }
            _ => first.map(Segment::Index).ok_or_else(|| self.fault("an index, a name, '*' or '?' expected")),
        }
    }

    fn integer(&mut self) -> Result<Option<i64>, String> {
        let start = self.at;
        self.eat("-");
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.bump();
        }
        let digits = &self.text[start..self.at];
        if digits.is_empty() {
            return Ok(None);
        }
        digits.parse().map(Some).map_err(|_| self.fault("not an index"))
    }

    /// A string in single or double quotes; a backslash takes the next character as it is.
    fn quoted(&mut self) -> Result<String, String> {
        let quote = match self.peek() {
            Some(c @ ('\'' | '"')) => c,
            _ => return Err(self.fault("a quoted name expected")),
        };
        self.bump();
        let mut out = String::new();
        loop {
            match self.bump() {
                Some(c) if c == quote => return Ok(out),
                Some('\\') => out.push(self.bump().ok_or_else(|| self.fault("nothing follows the backslash"))?),
                Some(c) => out.push(c),
                None => return Err(self.fault("the quote is not closed")),
            }
        }
    }

    fn filter(&mut self) -> Result<Filter, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.fault("too deeply nested"));
        }
        let mut any = vec![self.all()?];
        self.spaces();
        while self.eat("||") {
            any.push(self.all()?);
            self.spaces();
        }
        self.depth -= 1;
        Ok(if any.len() == 1 { any.remove(0) } else { Filter::Any(any) })
    }

    fn all(&mut self) -> Result<Filter, String> {
        let mut all = vec![self.one()?];
        self.spaces();
        while self.eat("&&") {
            all.push(self.one()?);
            self.spaces();
        }
        Ok(if all.len() == 1 { all.remove(0) } else { Filter::All(all) })
    }

    fn one(&mut self) -> Result<Filter, String> {
        self.spaces();
        if self.rest().starts_with('!') && !self.rest().starts_with("!=") {
            self.bump();
            self.depth += 1;
            if self.depth > MAX_DEPTH {
                return Err(self.fault("too deeply nested"));
            }
            let inner = self.one()?;
            self.depth -= 1;
            return Ok(Filter::Not(Box::new(inner)));
        }
        if self.eat("(") {
            let inner = self.filter()?;
            self.spaces();
            self.expect(")")?;
            return Ok(inner);
        }
        let left = self.term()?;
        self.spaces();
        for (token, comparison) in Comparison::TOKENS {
            if self.eat(token) {
                self.spaces();
                let right = self.term()?;
                return Ok(Filter::Compare(left, comparison, right));
            }
        }
        match left {
            Term::Here(_) | Term::Whole(_) => Ok(Filter::Exists(left)),
            Term::Literal(_) => Err(self.fault("a comparison expected")),
        }
    }

    fn term(&mut self) -> Result<Term, String> {
        match self.peek() {
            Some('@') => {
                self.bump();
                Ok(Term::Here(self.segments(true)?))
            }
            Some('$') => {
                self.bump();
                Ok(Term::Whole(self.segments(true)?))
            }
            Some('\'' | '"') => Ok(Term::Literal(self.quoted()?.into())),
            Some('[') => {
                self.bump();
                let mut items = Vec::new();
                self.spaces();
                while !self.eat("]") {
                    match self.term()? {
                        Term::Literal(value) => items.push(value),
                        _ => return Err(self.fault("a list holds constants only")),
                    }
                    self.spaces();
                    if !self.eat(",") && !self.rest().starts_with(']') {
                        return Err(self.fault("',' or ']' expected"));
                    }
                    self.spaces();
                }
                Ok(Term::Literal(items.into()))
            }
            _ => {
                let start = self.at;
                while self.peek().is_some_and(|c| c.is_alphanumeric() || matches!(c, '-' | '+' | '.')) {
                    self.bump();
                }
                match serde_json::from_str(&self.text[start..self.at]) {
                    Ok(value) => Ok(Term::Literal(value)),
                    Err(_) => Err(self.fault("a path, a string, a number, true, false or null expected")),
                }
            }
        }
    }
}
