//! The codes of functions on this node's disk, unpacked once per digest, and the packages they need.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use crate::build::Supplies;
use crate::instance::StartError;
use crate::runtime::{Language, Source, SourceError, hex};

/// Time for packages to be fetched.
const INSTALL: Duration = Duration::from_secs(300);

/// Code that is ready to be bound into a sandbox.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    /// Directory below that of all codes.
    pub(super) code: String,
    /// Directory below that of all packages.
    pub(super) packages: Option<String>,
}

/// The directories, and who is writing which.
#[derive(Debug)]
pub(super) struct Codes {
    pub(super) code: PathBuf,
    pub(super) packages: PathBuf,
    pub(super) python: PathBuf,
    pub(super) pip_args: Vec<String>,
    busy: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Codes {
    pub(super) fn new(dir: &Path, python: PathBuf, pip_args: Vec<String>) -> Self {
        Self { code: dir.join("code"), packages: dir.join("packages"), python, pip_args, busy: Mutex::default() }
    }

    /// Code that is on the disk, with its packages; none if it is not.
    pub(super) async fn ready(
        &self,
        key: &str,
        language: Language,
        index: Option<&str>,
    ) -> Result<Option<Ready>, StartError> {
        if !self.code.join(key).is_dir() {
            return Ok(None);
        }
        let packages = if language == Language::Python { self.packages(key, index).await? } else { None };
        Ok(Some(Ready { code: key.to_owned(), packages }))
    }

    /// Writes code to the disk, whole or not at all.
    pub(super) async fn keep(&self, key: &str, source: Source) -> Result<(), StartError> {
        let dir = self.code.join(key);
        let turn = self.turn(key);
        let _turn = turn.lock().await;
        if dir.is_dir() {
            return Ok(());
        }
        let half = self.code.join(format!("{key}.half"));
        let written = tokio::task::spawn_blocking(move || -> Result<(), SourceError> {
            let _ = std::fs::remove_dir_all(&half);
            std::fs::create_dir_all(&half)?;
            source.write(&half)?;
            Ok(std::fs::rename(&half, &dir)?)
        });
        written.await.map_err(anyhow::Error::from)?.map_err(fault)
    }

    fn turn(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut busy = self.busy.lock();
        busy.retain(|_, turn| turn.strong_count() > 0);
        let turn = busy.get(key).and_then(Weak::upgrade).unwrap_or_default();
        busy.insert(key.to_owned(), Arc::downgrade(&turn));
        turn
    }

    /// Installs what `requirements.txt` asks for, once for all functions that ask for the same.
    async fn packages(&self, code: &str, index: Option<&str>) -> Result<Option<String>, StartError> {
        let Ok(text) = std::fs::read_to_string(self.code.join(code).join("requirements.txt")) else { return Ok(None) };
        let wanted = requirements(&text)?;
        if wanted.is_empty() {
            return Ok(None);
        }
        let digest = hex(&Sha256::digest(wanted.join("\n")));
        let dir = self.packages.join(&digest);
        let turn = self.turn(&digest);
        let _turn = turn.lock().await;
        if dir.is_dir() {
            return Ok(Some(digest));
        }
        let index = index.map(|i| Supplies { pip_index: i.parse().ok(), ..Supplies::default() }.pip_args());
        let half = self.packages.join(format!("{digest}.half"));
        let _ = std::fs::remove_dir_all(&half);
        // Wheels only: what is installed here is installed as root, and a wheel runs nothing while it is.
        let run = Command::new(&self.python)
            .args([
                "-I",
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-input",
                "--disable-pip-version-check",
                "--no-cache-dir",
            ])
            .args(["--only-binary=:all:", "--root-user-action=ignore", "--target"])
            .arg(&half)
            .args(index.iter().flatten())
            .args(&self.pip_args)
            .arg("--")
            .args(&wanted)
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(INSTALL, run)
            .await
            .map_err(|_| StartError::Code(format!("its packages were not installed in {INSTALL:?}")))?;
        let output = output.map_err(anyhow::Error::from)?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let lines: Vec<&str> = said.lines().filter(|l| !l.trim().is_empty()).collect();
            return Err(StartError::Code(format!("pip: {}", lines[lines.len().saturating_sub(10)..].join("\n"))));
        }
        std::fs::create_dir_all(&half).and_then(|()| std::fs::rename(&half, &dir)).map_err(anyhow::Error::from)?;
        Ok(Some(digest))
    }
}

pub(super) fn fault(error: SourceError) -> StartError {
    if error.is_permanent() { StartError::Code(error.to_string()) } else { StartError::Other(error.into()) }
}

/// The lines of a `requirements.txt` that name packages by name and version. Options, paths and addresses would let code
/// choose what is read on the node, so they are refused here; an image that is built takes them.
fn requirements(text: &str) -> Result<Vec<String>, StartError> {
    let mut all = Vec::new();
    for line in text.lines().map(|l| l.split(" #").next().unwrap_or_default().trim()) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let plain = line.starts_with(|c: char| c.is_ascii_alphanumeric())
            && line.chars().all(|c| c.is_ascii_alphanumeric() || " ._-[],<>=!~*+;'\"()".contains(c))
            && !line.contains("--");
        if !plain {
            return Err(StartError::Code(format!(
                "requirements.txt: {line:?} is not a package's name and version; isolation container takes it"
            )));
        }
        all.push(line.to_owned());
    }
    all.sort();
    Ok(all)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn requirements_name_packages_only() {
        assert_eq!(requirements("# x\nb==1 # why\n\na[z]>=2,<3\nc; python_version < '3.9'\n").unwrap().len(), 3);
        for bad in [
            "-r /etc/passwd",
            "--index-url http://x",
            "./local",
            "git+https://x/y",
            "x @ file:///etc",
            "a --hash=sha256:x",
        ] {
            assert!(requirements(bad).is_err(), "{bad}");
        }
    }
}
