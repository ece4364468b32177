//! The Amazon States Language: definitions, their checks, and the evaluation of paths, templates and conditions.
//!
//! No I/O and no clock of its own: the engine (skiff-workflow) walks the states and calls the stages of [`data`]; the
//! command line and admission use [`definition::Definition::parse`]. Both query languages are behind the same
//! functions. What depends on chance (`States.MathRandom`, `States.UUID`) is drawn when it is evaluated: an engine
//! that replays has to keep the results of stages, not evaluate them again.

mod budget;
pub mod check;
pub mod choice;
pub mod convert;
pub mod data;
pub mod definition;
pub mod dice;
pub mod error;
pub mod fault;
pub mod graph;
pub mod intrinsics;
pub mod jsonata;
pub mod path;
pub mod retry;
pub mod scope;
pub mod template;
pub mod time;

pub use definition::{Definition, Machine, State, StateKind};
pub use error::ExecutionError;
pub use fault::{Fault, Severity};
pub use scope::Scope;
