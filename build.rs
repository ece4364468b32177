//! How the released program is linked: as small as it can be, because its text is most of what it holds when idle.

use std::env::var;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Written by hack/link-order.sh.
const ORDER: &str = "hack/link-order.gz";

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
    println!("cargo:rerun-if-changed={ORDER}");
    if let Some(order) = order() {
        println!("cargo:rustc-link-arg-bins=-Wl,--symbol-ordering-file={}", order.display());
        println!("cargo:rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
    }
    println!("cargo:rerun-if-env-changed=SKIFF_LINK_MAP");
    if let Ok(map) = var("SKIFF_LINK_MAP") {
        println!("cargo:rustc-link-arg-bins=-Wl,-Map={map},--no-demangle");
    }
    // A bit per relocation of tables instead of 24 bytes; the loader of glibc reads that from 2.36 on.
    if glibc().is_some_and(|version| version >= (2, 36)) {
        println!("cargo:rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The functions that an idle cluster runs, which are put side by side: a file of their names. Names that are not there are
/// no error, so with another compiler, which gives other names, only the program's size in memory is another.
fn order() -> Option<PathBuf> {
    let names = said(Command::new("gzip").args(["-dc", ORDER]))?;
    let (_, made_with) = names.lines().next()?.split_once(" with ")?;
    if said(Command::new(var("RUSTC").ok()?).arg("--version"))? != made_with {
        println!("cargo:warning={ORDER} is of {made_with}; made anew by hack/link-order.sh it saves 20 MiB of memory");
    }
    let order = Path::new(&var("OUT_DIR").ok()?).join("order");
    std::fs::write(&order, names).ok()?;
    Some(order)
}

/// The C library of this machine, which is the one the program is linked to.
fn glibc() -> Option<(u32, u32)> {
    let text = said(Command::new("getconf").arg("GNU_LIBC_VERSION"))?;
    let (major, minor) = text.strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// What a program says.
fn said(command: &mut Command) -> Option<String> {
    let out = command.output().ok()?;
    String::from_utf8(out.stdout).ok().map(|text| text.trim().to_owned())
}
