//! Names under which this program is a plugin of kubectl: a link `kubectl-NAME` to it on the PATH makes `kubectl NAME`
//! the command behind the name.

use std::ffi::OsString;
use std::path::Path;

/// Names of links, and the command that each stands for.
const PLUGINS: &[(&str, &str)] = &[
    ("kubectl-cfg", "cfg"),
    ("kubectl-func", "func"),
    ("kubectl-trigger", "trigger"),
    ("kubectl-wf", "wf"),
    ("kubectl-gpu", "gpu"),
];

/// The command line as if the program had been called by its own name.
pub(crate) fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut all: Vec<OsString> = given.into_iter().collect();
    let name = all.first().and_then(|n| Path::new(n).file_name()).and_then(|n| n.to_str());
    let plugin = PLUGINS.iter().find(|(link, _)| Some(*link) == name);
    if let Some((_, command)) = plugin {
        all.splice(..1, ["skiff".into(), (*command).into()]);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_its_command() {
        for (given, want) in [
            (vec!["/usr/local/bin/kubectl-cfg", "sched=random"], vec!["skiff", "cfg", "sched=random"]),
            (vec!["kubectl-func", "list"], vec!["skiff", "func", "list"]),
            (vec!["./skiff", "cfg"], vec!["./skiff", "cfg"]),
            (vec![], vec![]),
        ] {
            let got = arguments(given.iter().map(OsString::from));
            assert_eq!(got, want.iter().map(OsString::from).collect::<Vec<_>>());
        }
    }
}
