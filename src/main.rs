//! Skiff: a Kubernetes-compatible cluster in one program.

fn main() {}
