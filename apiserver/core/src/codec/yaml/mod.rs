//! YAML bodies.
//!
//! Upstream turns YAML into JSON with the rules of YAML 1.1 (`yes` is true, `010` is eight) and prints JSON as YAML with
//! the habits of one library. Both are visible to clients, so this reads parser events and prints text itself instead of
//! going through a serde format, which decides these things differently.

mod faults;
mod read;
mod resolve;
mod write;

#[cfg(test)]
mod tests;

pub use read::{ParsedYaml, parse_yaml};
pub use write::to_yaml;

use super::json::{DecodeError, Decoded};
use super::normalize::{Faults, normalize};
use crate::schema::Struct;

/// Reads a YAML object along its schema. Keys given twice come first among the strict faults, as one fault of several
/// lines; see [`Decoded::warnings`].
pub fn decode_yaml(text: &[u8], shape: &Struct) -> Result<Decoded, DecodeError> {
    decode_parsed_yaml(parse_yaml(text)?, shape)
}

/// [`decode_yaml`] for a text that was already parsed, to find out its kind.
pub fn decode_parsed_yaml(parsed: ParsedYaml, shape: &Struct) -> Result<Decoded, DecodeError> {
    let ParsedYaml { mut value, duplicates } = parsed;
    let mut faults = Faults::default();
    normalize(&mut value, shape, &mut faults)?;
    let mut strict: Vec<String> = duplicates_fault(&duplicates).into_iter().collect();
    strict.extend(faults.unknown.iter().map(|path| format!("unknown field \"{path}\"")));
    Ok(Decoded { value, strict, emptied: faults.emptied })
}

/// Keys given twice, as the one strict fault that upstream makes of them.
#[must_use]
pub fn duplicates_fault(duplicates: &[String]) -> Option<String> {
    let first = duplicates.first()?;
    let mut text = format!("yaml: unmarshal errors:\n  {first}");
    for line in &duplicates[1..] {
        text.push_str("\n  ");
        text.push_str(line);
    }
    Some(text)
}
