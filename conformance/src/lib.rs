//! Tests from outside. The library is empty: see `tests/`.
