//! kubeconfig files: writing the cluster's own, merging its context into a person's.
//!
//! Merging takes the lock file that client-go takes (`config.lock`), replaces only the entries of our name, keeps
//! everything else, and puts the new file in place by rename.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use skiff_apiserver::pki::Leaf;

/// How long another process may hold the lock.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// A kubeconfig with one context.
pub(crate) fn render(name: &str, server: &str, ca: &str, leaf: &Leaf) -> String {
    let v = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": name, "preferences": {},
        "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": base64(ca)}}],
        "users": [{"name": name, "user": {"client-certificate-data": base64(&leaf.cert), "client-key-data": base64(&leaf.key)}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
    });
    skiff_core::codec::to_yaml(&v)
}

pub(crate) fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn read(path: &Path) -> anyhow::Result<Value> {
    if !path.exists() {
        return Ok(json!({"apiVersion": "v1", "kind": "Config", "preferences": {}}));
    }
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(json!({"apiVersion": "v1", "kind": "Config", "preferences": {}}));
    }
    let v = skiff_core::codec::parse_yaml(&text)
        .map_err(|e| anyhow::anyhow!("{} is not a kubeconfig ({e}): it was left as it is", path.display()))?
        .value;
    if !v.is_object() {
        bail!("{} is not a kubeconfig: it was left as it is", path.display());
    }
    Ok(v)
}

/// Replaces the entry `name` in each list by the one of `new` (or removes it). The namespace that somebody chose for the
/// context stays.
fn replace(old: &mut Value, new: Option<&Value>, name: &str) {
    for list in ["clusters", "users", "contexts"] {
        let mut entries = old[list].as_array().cloned().unwrap_or_default();
        let chosen = entries.iter().find(|e| e["name"] == name).and_then(|e| e["context"].get("namespace")).cloned();
        entries.retain(|e| e["name"] != name);
        if let Some(e) = new.and_then(|n| n[list].as_array()).and_then(|l| l.first()) {
            let mut e = e.clone();
            e["name"] = name.into();
            if list == "contexts" {
                e["context"]["cluster"] = name.into();
                e["context"]["user"] = name.into();
                if let Some(namespace) = chosen {
                    e["context"]["namespace"] = namespace;
                }
            }
            entries.push(e);
        }
        old[list] = Value::Array(entries);
    }
}

struct Lock(std::path::PathBuf);

impl Lock {
    fn take(file: &Path) -> anyhow::Result<Self> {
        let mut name = file.as_os_str().to_owned();
        name.push(".lock");
        let path = std::path::PathBuf::from(name);
        let begun = Instant::now();
        loop {
            match fs::OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(_) => return Ok(Self(path)),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    if begun.elapsed() > LOCK_WAIT {
                        bail!(
                            "{} is locked by another program; remove {} if none is running",
                            file.display(),
                            path.display()
                        );
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(e) => return Err(e).with_context(|| format!("cannot lock {}", file.display())),
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // If this fails the next one waits and says which file to remove.
        let _ = fs::remove_file(&self.0);
    }
}

/// Writes a file only its owner can read, in one step.
pub(crate) fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let tmp = path.with_extension("skiff-new");
    let put = || -> std::io::Result<()> {
        let mut f = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&tmp)?;
        f.write_all(text.as_bytes())?;
        f.sync_all()?;
        fs::rename(&tmp, path)
    };
    put().with_context(|| format!("cannot write {}", path.display()))
}

/// Merges the context of `own` (a whole kubeconfig) into `path` under `name`, and makes it current if none is.
pub(crate) fn merge(path: &Path, own: &str, name: &str) -> anyhow::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let _lock = Lock::take(path)?;
    let mut all = read(path)?;
    let own = skiff_core::codec::parse_yaml(own.as_bytes()).map_err(|e| anyhow::anyhow!("{e}"))?.value;
    replace(&mut all, Some(&own), name);
    if all["current-context"].as_str().unwrap_or_default().is_empty() {
        all["current-context"] = name.into();
    }
    write(path, &skiff_core::codec::to_yaml(&all))
}

/// Removes the context `name`.
pub(crate) fn remove(path: &Path, name: &str) -> anyhow::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let _lock = Lock::take(path)?;
    let mut all = read(path)?;
    replace(&mut all, None, name);
    if all["current-context"] == name {
        all["current-context"] = "".into();
    }
    write(path, &skiff_core::codec::to_yaml(&all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_everything_else() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config");
        fs::write(&file, "apiVersion: v1\nkind: Config\ncurrent-context: mine\ncontexts:\n- name: mine\n  context: {cluster: c, user: u}\n").unwrap();
        let leaf = Leaf { cert: "c".into(), key: "k".into() };
        merge(&file, &render("skiff", "https://x", "ca", &leaf), "skiff").unwrap();
        let mut all = read(&file).unwrap();
        all["contexts"][1]["context"]["namespace"] = "chosen".into();
        write(&file, &all.to_string()).unwrap();
        merge(&file, &render("skiff", "https://y", "ca", &leaf), "skiff").unwrap();
        let v = read(&file).unwrap();
        assert_eq!(v["contexts"].as_array().unwrap().len(), 2);
        assert_eq!(v["current-context"], "mine");
        assert_eq!(v["contexts"][1]["context"]["namespace"], "chosen");
        assert_eq!(v["clusters"][0]["cluster"]["server"], "https://y");
        remove(&file, "skiff").unwrap();
        let v = read(&file).unwrap();
        assert_eq!(v["contexts"][0]["name"], "mine");
        assert!(v["clusters"].as_array().unwrap().is_empty());
        fs::write(&file, "[not a config").unwrap();
        assert!(merge(&file, "x: y", "skiff").is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "[not a config");
    }
}
