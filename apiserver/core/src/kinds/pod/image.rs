//! Names of images, as the reference grammar of container registries has them (github.com/distribution/reference).

use std::sync::LazyLock;

use regex::Regex;

/// Longest repository name, with its domain.
const NAME_MAX: usize = 255;

/// A whole reference: name, tag, digest.
static REFERENCE: LazyLock<Regex> = LazyLock::new(|| {
    let label = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
    let host = format!(r"(?:{label}(?:\.{label})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?");
    let component = "[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*";
    let name = format!("(?:{host}/)?{component}(?:/{component})*");
    let digest = "[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}";
    let all = format!(r"^({name})(?::([0-9A-Za-z_][0-9A-Za-z_.-]{{0,127}}))?(?:@({digest}))?$");
    // The pattern is a constant, and a test uses it.
    Regex::new(&all).expect("the grammar of references is well formed")
});

/// Whether an image name means "the latest": the tag `latest`, or neither tag nor digest. A text that is no reference
/// means nothing, which is not "the latest".
pub(super) fn is_latest(image: &str) -> bool {
    let identifier = image.len() == 64 && image.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let whole = normal(image);
    if identifier {
        return false;
    }
    let Some(found) = REFERENCE.captures(&whole) else { return false };
    let part = |n: usize| found.get(n).map(|m| m.as_str());
    if part(1).is_none_or(|name| name.len() > NAME_MAX) {
        return false;
    }
    part(2).map_or(part(3).is_none(), |tag| tag == "latest")
}

/// With the domain that is meant where none is named.
fn normal(image: &str) -> String {
    let named = image.split_once('/').is_some_and(|(first, _)| {
        first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase())
    });
    match (named, image.contains('/')) {
        (true, _) => image.to_owned(),
        (false, true) => format!("docker.io/{image}"),
        (false, false) => format!("docker.io/library/{image}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_the_latest() {
        let digest = format!("@sha256:{}", "a".repeat(64));
        for (image, yes) in [
            ("b", true),
            ("b:1", false),
            ("b:latest", true),
            ("host:5000/b", true),
            ("host:5000/b:1", false),
            ("localhost/b", true),
            ("Host/b", true),
            ("a.b/c/d__e-f", true),
            // These are no references.
            ("", false),
            ("B", false),
            ("b c", false),
            ("-", false),
            ("a..b", false),
            ("a/B", false),
            ("b:", false),
            ("\u{e9}", false),
            (&"a".repeat(64), false),
            (&"g".repeat(64), true),
            (&"g".repeat(256), false),
            (&format!("b{digest}"), false),
            (&format!("b:latest{digest}"), true),
        ] {
            assert_eq!(is_latest(image), yes, "{image}");
        }
    }
}
