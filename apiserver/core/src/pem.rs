//! Bytes as PEM text.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// Characters of a line.
const LINE: usize = 64;

/// One block of PEM: `label` is what stands after BEGIN.
#[must_use]
pub fn encode(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(LINE).map(|i| &text[i..(i + LINE).min(text.len())]).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_of_64_characters() {
        let text = encode("X", &[0; 60]);
        assert_eq!(text, format!("-----BEGIN X-----\n{}\n{}\n-----END X-----\n", "A".repeat(64), "A".repeat(16)));
        assert_eq!(encode("X", &[0; 48]), format!("-----BEGIN X-----\n{}\n-----END X-----\n", "A".repeat(64)));
    }
}
