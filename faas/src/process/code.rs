//! The codes of functions on this node's disk, unpacked once per digest, and the packages they need.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use super::tidy::Bounds;
use crate::build::Supplies;
use crate::instance::StartError;
use crate::runtime::{Language, Source, SourceError, hex};

/// Time for packages to be fetched.
const INSTALL: Duration = Duration::from_secs(300);

/// Code that is ready to be bound into a sandbox. As long as this is there, so are the directories.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    /// Directory below that of all codes.
    pub(super) code: Arc<str>,
    /// Directory below that of all packages.
    pub(super) packages: Option<Arc<str>>,
}

/// The directories, and who is writing which.
#[derive(Debug)]
pub(super) struct Codes {
    pub(super) code: PathBuf,
    pub(super) packages: PathBuf,
    pub(super) python: PathBuf,
    pub(super) pip_args: Vec<String>,
    busy: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Directories that somebody has.
    pub(super) held: Mutex<HashMap<String, Weak<str>>>,
    /// Bytes of those that were counted.
    pub(super) sizes: Mutex<HashMap<String, u64>>,
    pub(super) tidying: Mutex<()>,
    pub(super) bounds: Bounds,
}

impl Codes {
    pub(super) fn new(dir: &Path, python: PathBuf, pip_args: Vec<String>) -> Self {
        Self {
            code: dir.join("code"),
            packages: dir.join("packages"),
            python,
            pip_args,
            busy: Mutex::default(),
            held: Mutex::default(),
            sizes: Mutex::default(),
            tidying: Mutex::default(),
            bounds: Bounds::default(),
        }
    }

    /// A directory that is there, and stays while the answer does.
    fn hold(&self, dir: &Path, name: &str) -> Option<Arc<str>> {
        let path = dir.join(name);
        let hold = {
            let mut held = self.held.lock();
            if !path.is_dir() {
                return None;
            }
            let hold = held.get(name).and_then(Weak::upgrade).unwrap_or_else(|| name.into());
            held.insert(name.to_owned(), Arc::downgrade(&hold));
            hold
        };
        // When it was used last. Where that cannot be written it only looks older than it is.
        let _ = std::fs::File::open(path).and_then(|d| d.set_modified(SystemTime::now()));
        Some(hold)
    }

    /// Code that is on the disk, with its packages; none if it is not.
    pub(super) async fn ready(
        &self,
        key: &str,
        language: Language,
        index: Option<&str>,
    ) -> Result<Option<Ready>, StartError> {
        let Some(code) = self.hold(&self.code, key) else { return Ok(None) };
        let packages = if language == Language::Python { self.packages(key, index).await? } else { None };
        Ok(Some(Ready { code, packages }))
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
    async fn packages(&self, code: &str, index: Option<&str>) -> Result<Option<Arc<str>>, StartError> {
        let Some(wanted) = wanted(&self.code.join(code))? else { return Ok(None) };
        let Some(digest) = wanted.digest() else { return Ok(None) };
        let turn = self.turn(&digest);
        let _turn = turn.lock().await;
        if let Some(hold) = self.hold(&self.packages, &digest) {
            return Ok(Some(hold));
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
            .args(&wanted.0)
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
        let dir = self.packages.join(&digest);
        std::fs::create_dir_all(&half).and_then(|()| std::fs::rename(&half, &dir)).map_err(anyhow::Error::from)?;
        let hold = self.hold(&self.packages, &digest);
        Ok(Some(hold.ok_or_else(|| anyhow::anyhow!("its packages went as soon as they came"))?))
    }
}

pub(super) fn fault(error: SourceError) -> StartError {
    if error.is_permanent() { StartError::Code(error.to_string()) } else { StartError::Other(error.into()) }
}

/// The packages that code asks for.
#[derive(Debug)]
pub(super) struct Wanted(Vec<String>);

impl Wanted {
    /// The name of the directory with them; none if there are none.
    pub(super) fn digest(&self) -> Option<String> {
        (!self.0.is_empty()).then(|| hex(&Sha256::digest(self.0.join("\n"))))
    }
}

/// What the code in a directory asks for; none if it asks for nothing.
pub(super) fn wanted(code: &Path) -> Result<Option<Wanted>, StartError> {
    let Ok(text) = std::fs::read_to_string(code.join("requirements.txt")) else { return Ok(None) };
    Ok(Some(Wanted(requirements(&text)?)))
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
