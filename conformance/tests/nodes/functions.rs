//! Functions on several nodes: pods where their selector says, processes on the gateway's node only.

use anyhow::{Result, ensure};

use crate::bed::Bed;
use crate::cases::text;

const FUNCTIONS: &str = r#"
apiVersion: skiff.dev/v1
kind: Function
metadata: {name: far}
spec:
  public: true
  nodeSelector: {kubernetes.io/hostname: NODE}
  source: {image: "skiff/busybox:1"}
  command: [sh, -c, "mkdir /tmp/w; echo $HOSTNAME is here >/tmp/w/index.html; exec httpd -f -p $PORT -h /tmp/w"]
---
apiVersion: skiff.dev/v1
kind: Function
metadata: {name: forked}
spec:
  isolation: process
  nodeSelector: {kubernetes.io/hostname: NODE}
  source: {inline: "def main(params): return 1"}
---
apiVersion: skiff.dev/v1
kind: Function
metadata: {name: near}
spec:
  public: true
  isolation: process
  nodeSelector: {kubernetes.io/hostname: HOME}
  source: {inline: "def main(params): return 'near'"}
"#;

/// A selector is honoured, or its owner is told why not; the answer comes through the gateway from any node.
pub(crate) fn functions(bed: &Bed) -> Result<()> {
    let (home, far) = (&bed.nodes[0], &bed.nodes[1]);
    bed.apply(&FUNCTIONS.replace("NODE", far).replace("HOME", home))?;
    let call = |name: &str| -> Result<String> {
        let url = format!("http://127.0.0.1:8081/function/default/{name}/");
        Ok(bed.on(home, &["curl", "-s", "--max-time", "60", &url])?.out)
    };
    bed.eventually("the far one answers", || Ok(call("far")?.contains("is here")))?;
    let pods = bed.get(&["pods", "-l", "skiff.dev/function=far"])?;
    ensure!(text(&pods, "/items/0/spec/nodeName") == *far, "{pods}");
    bed.eventually("the near one answers", || Ok(call("near")? == "near"))?;
    let ready = |name: &str| -> Result<(String, String)> {
        let function = bed.get(&["function", name])?;
        let conditions = function["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.into_iter().find(|c| c["type"] == "Ready").unwrap_or_default();
        Ok((text(&ready, "/reason").to_owned(), text(&ready, "/message").to_owned()))
    };
    bed.eventually("it is told where", || {
        let (_, where_) = ready("near")?;
        Ok(where_.contains(&format!("in processes of node {home}")))
    })?;
    bed.eventually("it is told why not", || {
        let (reason, why) = ready("forked")?;
        Ok(reason == "IsolationUnavailable" && why.contains(&format!("kubernetes.io/hostname={far}")))
    })?;
    bed.ok(&["delete", "functions", "--all"])?;
    Ok(())
}
