//! Which files of a directory are no code: `.skiffignore`, in the manner of `.gitignore`.
//!
//! A line is a pattern; `#` begins a comment, `!` takes back in. `*` and `?` stop at `/`, `**` does not. A pattern with a `/`
//! before its end is about the path from the top, another about names anywhere; one that ends in `/` is about directories.
//! The last line that matches decides. What no function needs is left out without being named.

use std::path::Path;
use std::{fs, io};

/// Left out unless a line takes it in.
const ALWAYS: [&str; 8] =
    [".git/", "__pycache__/", "*.pyc", "node_modules/", ".venv/", ".DS_Store", "/.skiffignore", ".*.sw?"];

/// The lines of a file.
pub(super) struct Rules(Vec<Rule>);

struct Rule {
    pattern: String,
    from_top: bool,
    directories: bool,
    back_in: bool,
}

impl Rules {
    /// Reads the file of a directory, if there is one.
    pub(super) fn of(directory: &Path) -> io::Result<Self> {
        match fs::read_to_string(directory.join(super::IGNORE_FILE)) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::parse("")),
            Err(e) => Err(e),
        }
    }

    pub(super) fn parse(text: &str) -> Self {
        let lines = ALWAYS.into_iter().chain(text.lines());
        Self(lines.filter_map(Rule::parse).collect())
    }

    /// Whether the file or directory of this path is left out; its directories were asked before.
    pub(super) fn leaves_out(&self, path: &str, directory: bool) -> bool {
        let last = self.0.iter().rev().find(|r| r.matches(path, directory));
        last.is_some_and(|r| !r.back_in)
    }

    /// The same for a file whose directories were not asked.
    pub(super) fn leaves_out_below(&self, path: &str) -> bool {
        let above = path.match_indices('/').map(|(at, _)| &path[..at]);
        above.into_iter().any(|d| self.leaves_out(d, true)) || self.leaves_out(path, false)
    }
}

impl Rule {
    fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let (back_in, line) = line.strip_prefix('!').map_or((false, line), |rest| (true, rest));
        let (directories, line) = line.strip_suffix('/').map_or((false, line), |rest| (true, rest));
        let from_top = line.contains('/');
        let pattern = line.trim_start_matches('/').to_owned();
        Some(Self { pattern, from_top, directories, back_in })
    }

    fn matches(&self, path: &str, directory: bool) -> bool {
        if self.directories && !directory {
            return false;
        }
        let what = if self.from_top { path } else { path.rsplit('/').next().unwrap_or(path) };
        glob(self.pattern.as_bytes(), what.as_bytes())
    }
}

/// Whether a text matches. Of two stars only the last is gone back to, so the time is the product of the lengths, but for
/// `**`, of which a pattern has few.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern {
        [] => text.is_empty(),
        [b'*', b'*', b'/', rest @ ..] => {
            glob(rest, text) || text.iter().enumerate().any(|(i, c)| *c == b'/' && glob(rest, &text[i + 1..]))
        }
        [b'*', b'*', rest @ ..] => (0..=text.len()).any(|i| glob(rest, &text[i..])),
        [b'*', rest @ ..] => {
            let end = text.iter().position(|c| *c == b'/').unwrap_or(text.len());
            (0..=end).any(|i| glob(rest, &text[i..]))
        }
        [b'?', rest @ ..] => text.first().is_some_and(|c| *c != b'/') && glob(rest, &text[1..]),
        [c, rest @ ..] => text.first() == Some(c) && glob(rest, &text[1..]),
    }
}

#[cfg(test)]
mod tests {
    use super::Rules;

    #[test]
    fn lines_decide() {
        let rules = Rules::parse("# data\n*.log\n!keep.log\n/build\ndocs/*.md\na/**/z\ntmp/\nq?x\n");
        let cases = [
            ("x.log", false, true),
            ("deep/x.log", false, true),
            ("deep/keep.log", false, false),
            ("build", true, true),
            ("sub/build", true, false),
            ("docs/a.md", false, true),
            ("docs/sub/a.md", false, false),
            ("a/z", false, true),
            ("a/b/c/z", false, true),
            ("a/b/zz", false, false),
            ("tmp", true, true),
            ("sub/tmp", true, true),
            ("tmp", false, false),
            ("qqx", false, true),
            ("qx", false, false),
            (".git", true, true),
            ("sub/__pycache__", true, true),
            ("main.py", false, false),
        ];
        for (path, directory, out) in cases {
            assert_eq!(rules.leaves_out(path, directory), out, "{path}");
        }
        assert!(rules.leaves_out_below("tmp/a/b.py") && !rules.leaves_out_below("src/a/b.py"));
    }
}
