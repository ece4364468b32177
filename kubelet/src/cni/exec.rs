//! Calls of plugins: a program, variables, a configuration on its input, a result or an error on its output.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::Error;

/// A plugin that takes longer hangs.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What is asked of a plugin.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// `ADD`, `DEL`, `CHECK` or `GC`.
    pub command: &'static str,
    /// Identifier of the sandbox.
    pub container: &'a str,
    /// Path of its network namespace; empty when it is no more.
    pub netns: &'a str,
    /// Name of the interface in it.
    pub interface: &'a str,
    /// Pairs for plugins that know pods.
    pub args: &'a str,
    /// Where plugins are.
    pub path: &'a [PathBuf],
}

impl Call<'_> {
    /// Runs the plugin of a type; answers what it printed, if that was anything.
    ///
    /// # Errors
    /// When there is no such plugin, or it fails, or its answer is none.
    pub async fn run(&self, kind: &str, input: &Value) -> Result<Option<Value>, Error> {
        let program = find(self.path, kind)?;
        let work = async {
            let mut child = Command::new(&program)
                .env("CNI_COMMAND", self.command)
                .env("CNI_CONTAINERID", self.container)
                .env("CNI_NETNS", self.netns)
                .env("CNI_IFNAME", self.interface)
                .env("CNI_ARGS", self.args)
                .env("CNI_PATH", std::env::join_paths(self.path).unwrap_or_default())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            let stdin = child.stdin.take();
            let bytes = input.to_string();
            // Written while the output is read: either pipe alone could fill and block the other.
            let feed = async {
                if let Some(mut stdin) = stdin {
                    // A plugin that ends without reading says why on its own.
                    let _ = stdin.write_all(bytes.as_bytes()).await;
                }
            };
            let ((), output) = tokio::join!(feed, child.wait_with_output());
            output
        };
        let failed =
            |why: String| Error::Plugin { kind: kind.into(), command: self.command.to_lowercase(), why, code: 0 };
        let output = match tokio::time::timeout(TIMEOUT, work).await {
            Ok(Ok(output)) => output,
            Ok(Err(e)) => return Err(failed(e.to_string())),
            Err(_) => return Err(failed(format!("no answer within {TIMEOUT:?}"))),
        };
        let said: Option<Value> = serde_json::from_slice(&output.stdout).ok();
        if output.status.success() {
            if said.is_none() && !output.stdout.trim_ascii().is_empty() {
                return Err(failed("its answer is no JSON".into()));
            }
            return Ok(said);
        }
        let Some(said) = said else {
            let stderr = String::from_utf8_lossy(&output.stderr);
            return Err(failed(format!("{}: {}", output.status, stderr.trim().chars().take(500).collect::<String>())));
        };
        let text = |key: &str| said[key].as_str().unwrap_or_default();
        let details = if text("details").is_empty() { String::new() } else { format!("; {}", text("details")) };
        let (why, code) = (format!("{}{details}", text("msg")), said["code"].as_u64().unwrap_or_default());
        Err(Error::Plugin { kind: kind.into(), command: self.command.to_lowercase(), why, code })
    }
}

fn find(path: &[PathBuf], kind: &str) -> Result<PathBuf, Error> {
    let found = path.iter().map(|dir| dir.join(kind)).find(|p| p.is_file());
    let shown = || path.iter().map(|p: &PathBuf| Path::display(p).to_string()).collect::<Vec<_>>().join(" ");
    found.ok_or_else(|| Error::NoPlugin(kind.into(), shown()))
}
