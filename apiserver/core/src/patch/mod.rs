//! The patches that change an object by a document: JSON patch, JSON merge patch, strategic merge patch. (The fourth,
//! apply, is in [`crate::managed`].)
//!
//! All work on JSON values and know no storage: the caller reads the object, patches, and sends the result down the path
//! of an update. Where upstream's libraries differ from the RFCs, upstream's behaviour is kept, because clients have come
//! to live with it; the differences are named in the modules.

pub mod go;
pub mod json;
pub mod merge;
pub mod restore;
pub mod strategic;

#[cfg(test)]
mod recorded;
#[cfg(test)]
mod tests;

pub use json::JsonPatch;
pub use strategic::strategic_merge;

use crate::status::Status;

/// Why a patch cannot be read or applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch is no document of its kind: 400.
    #[error("{0}")]
    Malformed(String),
    /// More operations than are allowed in a JSON patch: 413.
    #[error("The allowed maximum operations in a JSON patch is {max}, got {got}", max = json::MAX_OPERATIONS)]
    TooManyOperations {
        /// How many there are.
        got: usize,
    },
    /// An operation of a JSON patch cannot be done (a test that failed included): 422 with a general text. The text here
    /// is for logs.
    #[error("{0}")]
    Operation(String),
    /// A strategic merge patch uses directives wrongly. Upstream answers 500 with this text.
    #[error("{0}")]
    Directive(String),
}

impl From<PatchError> for Status {
    fn from(error: PatchError) -> Self {
        match error {
            PatchError::Malformed(text) => Self::bad_request(text),
            PatchError::TooManyOperations { .. } => Self::too_large(format!("Request entity too large: {error}")),
            PatchError::Operation(_) => {
                let text = "the server rejected our request due to an error in our request";
                Self::new(422, "Invalid", text).about("", "", "")
            }
            PatchError::Directive(text) => Self::untyped(text),
        }
    }
}

/// A document that does not parse, in upstream's words.
fn not_json() -> PatchError {
    PatchError::Malformed("invalid JSON patch".to_owned())
}
