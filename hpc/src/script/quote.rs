//! Quoting for bash, and for the lines that sbatch reads.

/// A value that cannot be in a line of sbatch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--{option} cannot be {value:?}: Slurm would not read it as one value")]
pub struct Unsafe {
    /// The option.
    pub option: String,
    /// The value.
    pub value: String,
}

/// One word of bash with exactly this value. NUL characters are dropped: bash has no word for them.
#[must_use]
pub fn quote(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | ',' | '@' | '%' | '+' | '-' | ':');
    // A word in assignment form or with a leading tilde means more than itself; those characters are not plain.
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    let special = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !value.contains(special) {
        return format!("'{}'", value.replace('\'', r"'\''"));
    }
    let mut out = String::from("$'");
    for c in value.chars() {
        match c {
            '\0' => {}
            '\'' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c if c.is_ascii_control() => out.push_str(&format!("\\{:03o}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

/// A value as sbatch reads it in a `#SBATCH` line: plain, or in single quotes. There is no escape that all versions agree on, so
/// what needs one is refused.
pub fn quote_option(option: &str, value: &str) -> Result<String, Unsafe> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:,=@%+*&|()[]-".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return Ok(value.to_owned());
    }
    let quotable = |c: char| c.is_ascii_graphic() && c != '\'' && c != '\\';
    if !value.is_empty() && value.chars().all(quotable) {
        return Ok(format!("'{value}'"));
    }
    Err(Unsafe { option: option.to_owned(), value: value.to_owned() })
}
