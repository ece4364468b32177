//! The Amazon States Language: definitions, their checks, and the evaluation of paths, templates and conditions. No I/O.
