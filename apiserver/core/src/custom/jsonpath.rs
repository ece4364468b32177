//! The simple JSONPath of definitions: `.spec.a`, `.items[0].b`, `.m['a.b']`, `.conditions[?(@.type=="Ready")].status`,
//! `[*]`, slices. Used for printer columns, scale and selectable fields.
//!
//! The grammar is what kubectl's JSONPath accepts between braces, without nested templates.

use serde_json::Value;

/// One step of a path.
#[derive(Clone, Debug, PartialEq)]
enum Step {
    Member(String),
    /// `[*]` or `.*`
    All,
    /// `..`
    Below,
    /// `[1]`, `[-1]`
    Index(i64),
    /// `[1:3:2]`
    Slice(Option<i64>, Option<i64>, i64),
    /// `['a','b']`
    Union(Vec<Step>),
    /// `[?(@.a == 'x')]`
    Filter(Operand, Option<(Compare, Operand)>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    /// Relative to the element (`@`) or to the root (`$`).
    Path(bool, JsonPath),
    Literal(Value),
}

/// A parsed path.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JsonPath(Vec<Step>);

impl JsonPath {
    /// Parses a path, which may or may not start with `$` and a dot.
    ///
    /// # Errors
    /// What is wrong, in upstream's words where it has any.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { rest: text.strip_prefix('$').unwrap_or(text) };
        let path = parser.path(&[])?;
        if parser.rest.is_empty() {
            Ok(path)
        } else {
            Err(format!("unrecognized character in action: {:?}", parser.rest))
        }
    }

    /// Every value at the path.
    #[must_use]
    pub fn find<'v>(&self, root: &'v Value) -> Vec<&'v Value> {
        self.eval(root, root)
    }

    fn eval<'v>(&self, root: &'v Value, at: &'v Value) -> Vec<&'v Value> {
        let mut found = vec![at];
        for step in &self.0 {
            let mut next = Vec::new();
            for value in found {
                step.apply(root, value, &mut next);
            }
            found = next;
        }
        found
    }
}

impl Step {
    fn apply<'v>(&self, root: &'v Value, value: &'v Value, out: &mut Vec<&'v Value>) {
        match self {
            Self::Member(name) => out.extend(value.get(name)),
            Self::All => match value {
                Value::Array(list) => out.extend(list),
                Value::Object(map) => out.extend(map.values()),
                _ => {}
            },
            Self::Below => {
                out.push(value);
                match value {
                    Value::Array(list) => list.iter().for_each(|v| self.apply(root, v, out)),
                    Value::Object(map) => map.values().for_each(|v| self.apply(root, v, out)),
                    _ => {}
                }
            }
            Self::Index(i) => {
                let Value::Array(list) = value else { return };
                let len = i64::try_from(list.len()).unwrap_or(i64::MAX);
                let at = if *i < 0 { len + i } else { *i };
                out.extend(usize::try_from(at).ok().and_then(|at| list.get(at)));
            }
            Self::Slice(from, to, step) => {
                let Value::Array(list) = value else { return };
                let len = i64::try_from(list.len()).unwrap_or(i64::MAX);
                let place = |i: i64| if i < 0 { len + i } else { i }.clamp(0, len);
                let (from, to) = (place(from.unwrap_or(0)), place(to.unwrap_or(len)));
                let mut at = from;
                while at < to {
                    out.extend(usize::try_from(at).ok().and_then(|at| list.get(at)));
                    at += (*step).max(1);
                }
            }
            Self::Union(steps) => steps.iter().for_each(|s| s.apply(root, value, out)),
            Self::Filter(left, test) => {
                let Value::Array(list) = value else { return };
                out.extend(list.iter().filter(|item| holds(root, item, left, test.as_ref())));
            }
        }
    }
}

fn holds(root: &Value, item: &Value, left: &Operand, test: Option<&(Compare, Operand)>) -> bool {
    let value = |operand: &Operand| match operand {
        Operand::Literal(v) => Some(v.clone()),
        Operand::Path(relative, path) => {
            let start = if *relative { item } else { root };
            path.eval(root, start).first().map(|v| (*v).clone())
        }
    };
    let Some((compare, right)) = test else { return value(left).is_some() };
    let (Some(left), Some(right)) = (value(left), value(right)) else { return false };
    let order = match (&left, &right) {
        (Value::String(a), Value::String(b)) => Some(a.as_str().cmp(b.as_str())),
        (Value::Number(a), Value::Number(b)) => a.as_f64().zip(b.as_f64()).and_then(|(a, b)| a.partial_cmp(&b)),
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        _ => None,
    };
    let Some(order) = order else { return *compare == Compare::Ne };
    match compare {
        Compare::Eq => order.is_eq(),
        Compare::Ne => order.is_ne(),
        Compare::Lt => order.is_lt(),
        Compare::Le => order.is_le(),
        Compare::Gt => order.is_gt(),
        Compare::Ge => order.is_ge(),
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn eat(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn word(&mut self, end: impl Fn(char) -> bool) -> &'a str {
        let at = self.rest.find(end).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(at);
        self.rest = rest;
        word
    }

    /// Steps until the end, or until one of `stops` (inside a filter).
    fn path(&mut self, stops: &[char]) -> Result<JsonPath, String> {
        let mut steps = Vec::new();
        loop {
            match self.rest.chars().next() {
                None => return Ok(JsonPath(steps)),
                Some(c) if stops.contains(&c) => return Ok(JsonPath(steps)),
                Some('.') => {
                    self.rest = &self.rest[1..];
                    if self.eat(".") {
                        steps.push(Step::Below);
                    }
                    if self.rest.is_empty() || self.rest.starts_with('[') {
                        continue;
                    }
                    steps.push(self.member(stops)?);
                }
                Some('[') => {
                    self.rest = &self.rest[1..];
                    steps.push(self.bracket()?);
                }
                Some(_) if steps.is_empty() => steps.push(self.member(stops)?),
                Some(c) => return Err(format!("unrecognized character in action: U+{:04X} '{c}'", c as u32)),
            }
        }
    }

    fn member(&mut self, stops: &[char]) -> Result<Step, String> {
        // A backslash takes the next character as it is: `.metadata.annotations.a\.b`.
        let mut name = String::new();
        let mut chars = self.rest.char_indices();
        let mut end = self.rest.len();
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => name.extend(chars.next().map(|(_, c)| c)),
                '.' | '[' => {
                    end = i;
                    break;
                }
                c if stops.contains(&c) => {
                    end = i;
                    break;
                }
                c => name.push(c),
            }
        }
        self.rest = &self.rest[end..];
        match name.as_str() {
            "*" => Ok(Step::All),
            "" => Err("unexpected empty field name".to_owned()),
            _ => Ok(Step::Member(name)),
        }
    }

    fn bracket(&mut self) -> Result<Step, String> {
        if self.eat("?(") {
            let left = self.operand()?;
            self.spaces();
            let found = [
                ("==", Compare::Eq),
                ("!=", Compare::Ne),
                ("<=", Compare::Le),
                (">=", Compare::Ge),
                ("<", Compare::Lt),
                (">", Compare::Gt),
            ]
            .into_iter()
            .find(|(text, _)| self.eat(text));
            let test = match found {
                Some((_, compare)) => {
                    self.spaces();
                    Some((compare, self.operand()?))
                }
                None => None,
            };
            self.spaces();
            return if self.eat(")]") { Ok(Step::Filter(left, test)) } else { Err("unterminated filter".to_owned()) };
        }
        let mut steps = Vec::new();
        loop {
            self.spaces();
            steps.push(if self.rest.starts_with(['\'', '"']) {
                Step::Member(self.quoted()?)
            } else {
                range(self.word(|c| matches!(c, ',' | ']')).trim())?
            });
            self.spaces();
            if self.eat("]") {
                break;
            }
            if !self.eat(",") {
                return Err("unterminated array".to_owned());
            }
        }
        Ok(if steps.len() == 1 { steps.swap_remove(0) } else { Step::Union(steps) })
    }

    fn operand(&mut self) -> Result<Operand, String> {
        self.spaces();
        if self.rest.starts_with(['\'', '"']) {
            return Ok(Operand::Literal(self.quoted()?.into()));
        }
        for (mark, relative) in [("@", true), ("$", false)] {
            if self.eat(mark) {
                return Ok(Operand::Path(relative, self.path(&[' ', ')', '=', '!', '<', '>'])?));
            }
        }
        let word = self.word(|c| matches!(c, ' ' | ')' | '=' | '!' | '<' | '>'));
        serde_json::from_str(word).map(Operand::Literal).map_err(|_| format!("unrecognized identifier {word}"))
    }

    fn quoted(&mut self) -> Result<String, String> {
        let quote = self.rest.chars().next().unwrap_or('\'');
        let mut out = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            if c == '\\' {
                out.extend(chars.next().map(|(_, c)| c));
            } else if c == quote {
                self.rest = &self.rest[i + 1..];
                return Ok(out);
            } else {
                out.push(c);
            }
        }
        Err("unterminated quoted string".to_owned())
    }

    fn spaces(&mut self) {
        self.rest = self.rest.trim_start();
    }
}

fn range(text: &str) -> Result<Step, String> {
    if text == "*" {
        return Ok(Step::All);
    }
    let bad = || format!("invalid array index {text}");
    let parts: Vec<&str> = text.split(':').collect();
    let number = |s: &str| if s.is_empty() { Ok(None) } else { s.parse::<i64>().map(Some).map_err(|_| bad()) };
    match parts.as_slice() {
        [one] => number(one)?.map(Step::Index).ok_or_else(bad),
        [from, to] => Ok(Step::Slice(number(from)?, number(to)?, 1)),
        [from, to, step] => Ok(Step::Slice(number(from)?, number(to)?, number(step)?.unwrap_or(1))),
        _ => Err(bad()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths() {
        let v = json!({"a":{"b":[1,2,3]},"c":[{"type":"Ready","status":"True"},{"type":"X","n":2}],"m":{"x.y":"z"}});
        for (path, want) in [
            (".a.b[0]", json!([1])),
            ("a.b[-1]", json!([3])),
            (".a.b[*]", json!([1, 2, 3])),
            (".a.b[1:]", json!([2, 3])),
            (".a.b[0,2]", json!([1, 3])),
            (".c[?(@.type==\"Ready\")].status", json!(["True"])),
            (".c[?(@.type=='Ready')].status", json!(["True"])),
            (".c[?(@.n > 1)].type", json!(["X"])),
            (".c[?(@.n)].type", json!(["X"])),
            (".m.x\\.y", json!(["z"])),
            (".m['x.y']", json!(["z"])),
            ("$.m['x.y']", json!(["z"])),
            (".none.x", json!([])),
            ("..status", json!(["True"])),
        ] {
            let found: Vec<Value> = JsonPath::parse(path).unwrap().find(&v).into_iter().cloned().collect();
            assert_eq!(Value::Array(found), want, "{path}");
        }
        for bad in [".a[", ".a['x", ".a[?(@.b]", ".a[x]"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_path_or_none(text in "(\\.|\\[|\\]|'|\"|\\?|\\(|\\)|@|\\$|=|a|é|1|-|:|,|\\*|\\\\| ){0,12}") {
            let value = json!({"a":[{"a":1},{"é":"x"}]});
            if let Ok(path) = JsonPath::parse(&text) {
                let _ = path.find(&value);
            }
        }
    }
}
