//! A Slurm for tests that loses answers and shows every state.

fn main() {}
