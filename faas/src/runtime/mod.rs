//! What runs code of a language: the runner programs, the code as files, and the pod that has both.
//!
//! A runner loads the code, listens on `$PORT` or `$SKIFF_SOCKET`, and answers `GET /_skiff/ready` with 200 when the code is
//! loaded, or with 500 and the reason (then it stays for ten seconds, so that the reason can be read). Both classes of
//! instances use the same runners, so the contract of requests is one. Any other program that answers HTTP on `$PORT` is of
//! the runtime `http`.

mod pod;
mod source;

pub use pod::{Images, Launch, pod};

pub(crate) use source::hex;
pub use source::{File, MAX_BYTES, MAX_ENTRIES, Source, SourceError, fetch, fetch_revision};

use serde::{Deserialize, Serialize};

use crate::api::{Code, FunctionRevision};

/// The runner of Python.
pub const PYTHON_RUNNER: &str = include_str!("runner.py");
/// The runner of Node.js.
pub const NODE_RUNNER: &str = include_str!("runner.js");
/// Where a pod has the code.
pub const CODE: &str = "/function";
/// Port of an instance that is a pod.
pub const PORT: u16 = 8080;
/// Seconds an answer may take if the function does not say.
pub const TIMEOUT_SECONDS: u32 = 300;

/// A runtime that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Language {
    /// CPython 3.8 or newer.
    Python,
    /// Node.js 18 or newer.
    Node,
    /// Any executable that answers HTTP on `$PORT`.
    Http,
}

impl Language {
    /// The runtime of a function's code.
    ///
    /// # Errors
    /// When its name is not known.
    pub fn of(code: &Code) -> Result<Self, SourceError> {
        match code.runtime.as_deref() {
            Some("python" | "python3") => Ok(Self::Python),
            Some("node" | "nodejs" | "javascript") => Ok(Self::Node),
            Some("http") => Ok(Self::Http),
            None if code.source.image.is_some() => Ok(Self::Http),
            None => Ok(Self::Python),
            Some(other) => Err(SourceError::Runtime(other.to_owned())),
        }
    }

    /// Name of the file that inline code becomes.
    #[must_use]
    pub fn file(self, text: &str) -> &'static str {
        // Node takes a file for a module by its name.
        let is_module =
            || text.lines().any(|l| l.starts_with("export ") || l.starts_with("import ") || l.starts_with("export{"));
        match self {
            Self::Python => "main.py",
            Self::Node if is_module() => "main.mjs",
            Self::Node => "main.js",
            Self::Http => "main",
        }
    }
}

/// What every instance of a revision finds in its environment, beside its own `env` and where it listens.
#[must_use]
pub fn environment(revision: &FunctionRevision) -> Vec<(String, String)> {
    let (meta, spec) = (&revision.metadata, &revision.spec);
    let of = |name: &str, value: &str| (format!("SKIFF_{name}"), value.to_owned());
    vec![
        of("FUNCTION", &spec.function),
        of("NAMESPACE", meta.namespace.as_deref().unwrap_or("default")),
        of("REVISION", meta.name.as_deref().unwrap_or_default()),
        of("HANDLER", spec.code.handler.as_deref().unwrap_or_default()),
        of("TIMEOUT_SECONDS", &spec.code.timeout_seconds.unwrap_or(TIMEOUT_SECONDS).to_string()),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::api::Source as Where;

    #[test]
    fn runtimes_have_defaults() {
        let image = Where { image: Some("x".to_owned()), ..Where::default() };
        let code = |runtime: Option<&str>, source: &Where| Code {
            runtime: runtime.map(str::to_owned),
            source: source.clone(),
            ..Code::default()
        };
        assert_eq!(Language::of(&code(None, &Where::default())).unwrap(), Language::Python);
        assert_eq!(Language::of(&code(None, &image)).unwrap(), Language::Http);
        assert_eq!(Language::of(&code(Some("node"), &image)).unwrap(), Language::Node);
        assert!(Language::of(&code(Some("cobol"), &image)).unwrap_err().to_string().contains("\"cobol\""));
    }

    #[test]
    fn modules_are_told_by_their_text() {
        assert_eq!(Language::Node.file("export default (p) => p"), "main.mjs");
        assert_eq!(Language::Node.file("exports.main = (p) => p"), "main.js");
    }
}
