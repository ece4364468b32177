//! The configuration of a network: which plugins make it, in which order, and what each is given.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::Error;

/// Versions of the specification that are spoken here, oldest first.
const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A network: plugins that are called one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// The version that is spoken with its plugins.
    pub version: String,
    /// Whether CHECK is not to be called.
    pub disable_check: bool,
    /// Whether GC is not to be called.
    pub disable_gc: bool,
    /// The configurations of the plugins.
    pub plugins: Vec<Map<String, Value>>,
}

/// Whether a directory has a configuration, usable or not.
#[must_use]
pub fn present(dir: &Path) -> bool {
    files(dir).is_ok_and(|f| !f.is_empty())
}

/// Files with configurations, in the order of their names.
fn files(dir: &Path) -> std::io::Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "conf" || e == "conflist" || e == "json") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Reads the first configuration of a directory. One that is broken is not passed over: pods would get another network
/// than the one that was meant.
///
/// # Errors
/// When there is none, or it cannot be used.
pub fn load(dir: &Path) -> Result<Network, Error> {
    // A directory that does not exist has none either.
    let first = files(dir).unwrap_or_default().into_iter().next();
    let file = first.ok_or_else(|| Error::NoConfig(dir.to_owned()))?;
    let broken = |why: String| Error::Config(file.clone(), why);
    let text = std::fs::read(&file).map_err(|e| broken(e.to_string()))?;
    let value: Map<String, Value> = serde_json::from_slice(&text).map_err(|e| broken(e.to_string()))?;
    parse(value).map_err(broken)
}

/// A list of plugins, or the configuration of a single one, which is a list of itself.
fn parse(value: Map<String, Value>) -> Result<Network, String> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
    // Booleans are written as text, too.
    let flag = |key: &str| value.get(key).is_some_and(|v| v == true || v.as_str() == Some("true"));
    let name = text("name").to_owned();
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b)) {
        return Err(format!("invalid network name {name:?}"));
    }
    let (disable_check, disable_gc) = (flag("disableCheck"), flag("disableGC"));
    let version = version(text("cniVersion"), value.get("cniVersions"))?;
    let plugins = match value.get("plugins") {
        Some(Value::Array(list)) => {
            let maps = list.iter().map(|p| p.as_object().cloned().ok_or("a plugin is not an object"));
            maps.collect::<Result<Vec<_>, _>>()?
        }
        Some(_) => return Err("plugins is not a list".into()),
        None => vec![value],
    };
    if plugins.is_empty() {
        return Err("no plugins in list".into());
    }
    for plugin in &plugins {
        let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
        if kind.is_empty() || kind.contains('/') {
            return Err(format!("invalid plugin type {kind:?}"));
        }
    }
    Ok(Network { name, version, disable_check, disable_gc, plugins })
}

/// The highest version that both sides know.
fn version(one: &str, more: Option<&Value>) -> Result<String, String> {
    let one = if one.is_empty() { "0.2.0" } else { one };
    let more: Vec<&str> = more.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let known = VERSIONS.iter().rev().find(|v| **v == one || more.contains(*v));
    known.map(|v| (*v).to_owned()).ok_or_else(|| format!("unsupported CNI version {one:?}"))
}

impl Network {
    /// Whether the version that is spoken is this one or a later one.
    #[must_use]
    pub fn speaks(&self, version: &str) -> bool {
        let place = |v: &str| VERSIONS.iter().position(|known| *known == v);
        place(&self.version) >= place(version)
    }

    /// Whether a plugin of the chain has asked for something that only the runtime knows.
    #[must_use]
    pub fn wants(&self, capability: &str) -> bool {
        self.plugins.iter().any(|p| capable(p, capability))
    }

    /// What a plugin is given: its configuration, with what it has asked for of `runtime`, and what was made before it.
    #[must_use]
    pub fn input(&self, plugin: &Map<String, Value>, runtime: &Map<String, Value>, before: Option<&Value>) -> Value {
        let mut input = plugin.clone();
        input.insert("name".into(), self.name.clone().into());
        input.insert("cniVersion".into(), self.version.clone().into());
        let asked: Map<String, Value> =
            runtime.iter().filter(|(k, _)| capable(plugin, k)).map(|(k, v)| (k.clone(), v.clone())).collect();
        if !asked.is_empty() {
            input.insert("runtimeConfig".into(), asked.into());
        }
        if let Some(before) = before {
            input.insert("prevResult".into(), before.clone());
        }
        input.into()
    }
}

fn capable(plugin: &Map<String, Value>, capability: &str) -> bool {
    plugin.get("capabilities").and_then(|c| c.get(capability)) == Some(&Value::Bool(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn network(value: Value) -> Result<Network, String> {
        parse(value.as_object().unwrap().clone())
    }

    #[test]
    fn lists_and_single_plugins_are_read() {
        let list =
            network(json!({"cniVersion": "1.0.0", "name": "a", "plugins": [{"type": "x"}, {"type": "y"}]})).unwrap();
        assert_eq!((list.version.as_str(), list.plugins.len(), list.speaks("0.4.0")), ("1.0.0", 2, true));
        let one = network(json!({"name": "a", "type": "x"})).unwrap();
        assert_eq!((one.version.as_str(), one.plugins.len(), one.speaks("0.4.0")), ("0.2.0", 1, false));
        let newer =
            json!({"cniVersion": "0.4.0", "cniVersions": ["0.4.0", "1.1.0", "9.0.0"], "name": "a", "type": "x"});
        assert_eq!(network(newer).unwrap().version, "1.1.0");
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (value, why) in [
            (json!({"name": "a/b", "type": "x"}), "invalid network name \"a/b\""),
            (json!({"type": "x"}), "invalid network name \"\""),
            (json!({"name": "a"}), "invalid plugin type \"\""),
            (json!({"name": "a", "type": "../x"}), "invalid plugin type \"../x\""),
            (json!({"name": "a", "plugins": []}), "no plugins in list"),
            (json!({"name": "a", "cniVersion": "7.0.0", "type": "x"}), "unsupported CNI version \"7.0.0\""),
        ] {
            assert_eq!(network(value).unwrap_err(), why);
        }
    }

    #[test]
    fn the_first_file_counts_even_when_it_is_broken() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        assert!(!present(dir.path()) && matches!(load(dir.path()), Err(Error::NoConfig(_))));
        write("00-readme.txt", "{}");
        write("20-b.conf", r#"{"name": "b", "type": "x"}"#);
        assert_eq!(load(dir.path()).unwrap().name, "b");
        write("10-a.conflist", "{");
        assert!(present(dir.path()) && matches!(load(dir.path()), Err(Error::Config(..))));
    }

    #[test]
    fn a_plugin_gets_what_it_asks_for() {
        let value = json!({"cniVersion": "1.0.0", "name": "a", "plugins": [
            {"type": "x"}, {"type": "y", "capabilities": {"portMappings": true, "bandwidth": false}}]});
        let network = network(value).unwrap();
        let runtime = json!({"portMappings": [1], "bandwidth": {}}).as_object().unwrap().clone();
        let before = json!({"ips": []});
        let input = |n: usize, before| network.input(&network.plugins[n], &runtime, before);
        assert_eq!(input(0, None), json!({"type": "x", "name": "a", "cniVersion": "1.0.0"}));
        let second = input(1, Some(&before));
        assert_eq!((&second["runtimeConfig"], &second["prevResult"]), (&json!({"portMappings": [1]}), &before));
        assert!(network.wants("portMappings") && !network.wants("bandwidth"));
    }
}
