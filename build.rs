//! How the released program is linked: as small as it can be, because its text is most of what it holds when idle.

use std::env::var;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| var(name).is_ok_and(|v| v == value);
    // There rustc links with its own LLD, which knows these; other linkers may not.
    let lld = is("CARGO_CFG_TARGET_ARCH", "x86_64") && is("CARGO_CFG_TARGET_ENV", "gnu");
    if !is("PROFILE", "release") || !lld {
        return;
    }
    // The same function for two types is often the same code. Rust promises no address of its own to a function.
    println!("cargo:rustc-link-arg-bins=-Wl,--icf=all");
    // A bit per relocation of tables instead of 24 bytes; the loader of glibc reads that from 2.36 on.
    if glibc().is_some_and(|version| version >= (2, 36)) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The C library of this machine, which is the one the program is linked to.
fn glibc() -> Option<(u32, u32)> {
    let out = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    let (major, minor) = text.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
