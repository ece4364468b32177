//! `skiff faas` as a process of its own, with an account that may do just what its manifest says; and what is killed while
//! functions are called.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::{functions, start};
use crate::cluster::{Cluster, run};

/// Ports of gateways: that of the process of its own, and that of `skiff up`.
const PORTS: (&str, &str) = ("18081", "8081");
/// Name of the process.
const FAAS: &str = "faas";
/// Calls that are under way when it is killed: with somebody who waits, and without.
const CALLS: (usize, usize) = (8, 24);

/// Functions whose instances go a few seconds after their last call.
const FUNCTIONS: &str = r#"
apiVersion: skiff.dev/v1
kind: Function
metadata: {name: echo}
spec:
  public: true
  isolation: container
  source: {inline: "def main(params): return {'got': params}"}
  scale: {initial: 0, windowSeconds: 6, scaleToZeroGraceSeconds: 0}
---
apiVersion: skiff.dev/v1
kind: Function
metadata: {name: private}
spec:
  source: {inline: "def main(params): return 'for you'"}
  scale: {initial: 0, windowSeconds: 6, scaleToZeroGraceSeconds: 0}
---
apiVersion: skiff.dev/v1
kind: Function
metadata: {name: slow}
spec:
  public: true
  source: {inline: "import time\ndef main(params):\n    time.sleep(1)\n    return params"}
  async: {retries: 5, backoffSeconds: 1}
  scale: {initial: 0, max: 2, windowSeconds: 6, scaleToZeroGraceSeconds: 0}
---
apiVersion: skiff.dev/v1
kind: Function
metadata: {name: forked}
spec: {isolation: process, source: {inline: "def main(params): return 1"}}
"#;

fn curl(port: &str, path: &str, more: &[&str]) -> Command {
    let mut c = Command::new("curl");
    c.args(["-s", "--max-time", "60", "-w", "\n%{http_code}"]).args(more).arg(format!("http://127.0.0.1:{port}{path}"));
    c
}

/// Status and body.
fn call(c: &Cluster, path: &str, more: &[&str]) -> Result<(String, String)> {
    let o = c.run(&mut curl(PORTS.0, path, more))?;
    let (body, code) = o.out.rsplit_once('\n').unwrap_or_default();
    Ok((code.to_owned(), body.trim().to_owned()))
}

fn serve(c: &mut Cluster, config: &Path) -> Result<()> {
    let args =
        ["--kubeconfig", &config.to_string_lossy(), "--functions-http-port", PORTS.0, "--functions-https-port", "0"];
    c.start_process(FAAS, &args.map(OsString::from))
}

/// Nothing of these functions runs any more.
fn asleep(c: &Cluster, ns: &str) -> Result<()> {
    c.eventually("all functions sleep", |c| {
        let states = "jsonpath={.items[*].status.state}";
        let states = c.ok(&["-n", ns, "get", "functions", "echo", "private", "slow", "-o", states])?;
        let pods = c.ok(&["-n", ns, "get", "pods", "-l", "skiff.dev/function", "-o", "name"])?;
        Ok(states.split(' ').all(|s| s == "Hibernated") && pods.is_empty())
    })
}

/// Called, asleep, woken, killed in the middle of calls: what was accepted is done.
pub(crate) fn functions_apart(c: &mut Cluster, ns: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("faas");
    let manifest = functions::example("faas.yaml");
    c.ok(&["apply", "-f", functions::text(&manifest)?])?;
    c.kubeconfig_of("kube-system", "skiff-faas", &config)?;
    serve(c, &config)?;
    c.eventually("functions are served", |c| Ok(call(c, "/healthz", &[])?.0 == "200"))?;
    c.eventually("functions can be made", |c| Ok(c.apply(&["-n", ns, "apply"], FUNCTIONS)?.code == 0))?;
    let echo = format!("/function/{ns}/echo");
    let wakes = |c: &Cluster| {
        let said = call(c, &echo, &["-d", r#"{"a":1}"#])?;
        ensure!(said == ("200".into(), r#"{"got": {"a": 1}}"#.into()), "{said:?}");
        anyhow::Ok(())
    };
    wakes(c)?;

    // By its name from a pod, and with a token where that is needed.
    start(c, ns, "client", "trap exit TERM; while :; do sleep 1; done")?;
    c.eventually("pods reach it by name", |c| {
        let url = format!("http://echo.{ns}/?b=2");
        Ok(c.kubectl(&["-n", ns, "exec", "client", "--", "wget", "-q", "-O", "-", &url])?.out.contains(r#""b": "2""#))
    })?;
    let private = format!("/function/{ns}/private");
    ensure!(call(c, &private, &[])?.0 == "401", "it is not public");
    c.ok(&["-n", ns, "create", "serviceaccount", "caller"])?;
    let token = c.ok(&["-n", ns, "create", "token", "caller"])?;
    let bearer = format!("Authorization: Bearer {}", token.trim());
    ensure!(call(c, &private, &["-H", &bearer])?.0 == "403", "nobody allowed it");
    let account = format!("--serviceaccount={ns}:caller");
    c.ok(&["-n", ns, "create", "rolebinding", "caller", "--clusterrole=edit", &account])?;
    c.eventually("who may call is answered", |c| {
        Ok(call(c, &private, &["-H", &bearer])? == ("200".into(), "for you".into()))
    })?;
    c.eventually("there are no processes here", |c| {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].reason}";
        Ok(c.ok(&["-n", ns, "get", "function", "forked", "-o", path])? == "IsolationUnavailable")
    })?;
    asleep(c, ns)?;
    wakes(c)?;
    killed(c, ns, &config)?;
    asleep(c, ns)?;
    wakes(c)?;
    // The apart cluster has other cases: what runs functions goes with this one.
    c.ok(&["-n", ns, "delete", "functions", "--all"])?;
    c.kill_component(FAAS)
}

/// Calls of a function, of which some run when this is back: those that somebody waits for, and how many are accepted in all.
fn calls(c: &Cluster, port: &str, ns: &str, function: &str) -> Result<Vec<Child>> {
    let (waiting, queued) = CALLS;
    for i in 0..queued {
        let body = format!(r#"{{"n":{i}}}"#);
        let o = c.run(&mut curl(port, &format!("/async/{ns}/{function}"), &["-d", &body]))?;
        ensure!(o.out.ends_with("\n202"), "{}", o.out);
    }
    let mut callers = vec![];
    for _ in 0..waiting {
        let mut c = curl(port, &format!("/function/{ns}/{function}"), &["-d", "{}"]);
        callers.push(c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?);
    }
    c.eventually("some calls run", |c| Ok(states(c, ns)?.iter().any(|s| s == "Running")))?;
    Ok(callers)
}

fn states(c: &Cluster, ns: &str) -> Result<Vec<String>> {
    let path = "jsonpath={.items[*].status.state}";
    Ok(c.ok(&["-n", ns, "get", "fncall", "-o", path])?.split_whitespace().map(str::to_owned).collect())
}

/// Those who waited were answered, or know that they were not; what was accepted is done.
fn none_lost(c: &Cluster, ns: &str, callers: Vec<Child>, accepted: usize) -> Result<()> {
    for caller in callers {
        let out = caller.wait_with_output()?;
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        let code = said.rsplit('\n').next().context("curl says a status")?;
        ensure!(matches!(code, "200" | "000" | "502" | "503"), "{said}");
    }
    c.eventually("no accepted call is lost", |c| {
        let states = states(c, ns)?;
        Ok(states.len() == accepted && states.iter().all(|s| s == "Succeeded"))
    })
}

fn killed(c: &mut Cluster, ns: &str, config: &Path) -> Result<()> {
    let callers = calls(c, PORTS.0, ns, "slow")?;
    c.kill_component(FAAS)?;
    serve(c, config)?;
    none_lost(c, ns, callers, CALLS.1)
}

/// Processes of functions below a process: they have users of their own.
fn processes(of: u32) -> Vec<u32> {
    let status = |pid: u32, field: &str| -> Option<u32> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        text.lines().find_map(|l| l.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
    };
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| {
        let below = || std::iter::successors(Some(*pid), |p| status(*p, "PPid:")).any(|p| p == of);
        status(*pid, "Uid:").is_some_and(|uid| (200_000..300_000).contains(&uid)) && below()
    })
    .collect()
}

/// From none to some and back, in both classes, while instances or the whole program are killed.
pub(crate) fn functions_killed(c: &mut Cluster, ns: &str) -> Result<()> {
    let spec = |name: &str, isolation: &str| {
        format!(
            "apiVersion: skiff.dev/v1\nkind: Function\nmetadata: {{name: {name}}}\nspec:\n  public: true\n  isolation: {isolation}\n  \
             source: {{inline: \"import time\\ndef main(params):\\n    time.sleep(0.5)\\n    return params\"}}\n  \
             async: {{retries: 10, backoffSeconds: 1}}\n  \
             scale: {{initial: 0, max: 4, windowSeconds: 6, scaleToZeroGraceSeconds: 0}}\n---\n"
        )
    };
    // Pods take longer to start.
    let functions = ["container", "process"];
    let all: String = functions.iter().map(|name| spec(name, name)).collect();
    let o = c.apply(&["-n", ns, "apply"], &all)?;
    ensure!(o.code == 0, "{}", o.err);
    let containers = format!("label=io.kubernetes.pod.namespace={ns}");
    let mut accepted = 0;
    for victim in ["instances", "program", "instances"] {
        let mut callers = vec![];
        for function in functions {
            callers.extend(calls(c, PORTS.1, ns, function)?);
            accepted += CALLS.1;
        }
        if victim == "program" {
            c.crash_and_restart()?;
        } else {
            let ready = |c: &Cluster| -> Result<bool> {
                let path = "jsonpath={.items[*].status.instances}";
                Ok(c.ok(&["-n", ns, "get", "functions", "-o", path])?
                    .split(' ')
                    .all(|n| n.parse::<u32>().is_ok_and(|n| n > 0)))
            };
            c.eventually("instances of both run", ready)?;
            let processes = processes(c.pid());
            ensure!(!processes.is_empty(), "no process of a function runs");
            let pids: Vec<String> = processes.iter().map(u32::to_string).collect();
            run(Command::new("kill").arg("-9").args(&pids))?;
            let ids = run(Command::new("docker").args(["ps", "-q", "--filter", &containers]))?.out;
            run(Command::new("docker").arg("kill").args(ids.split_whitespace()))?;
        }
        none_lost(c, ns, callers, accepted)?;
        c.eventually("both sleep", |c| {
            let path = "jsonpath={.items[*].status.state}";
            let states = c.ok(&["-n", ns, "get", "functions", "-o", path])?;
            let left = c.ok(&["-n", ns, "get", "pods,functioninstances", "-o", "name"])?;
            Ok(states == "Hibernated Hibernated" && left.is_empty() && self::processes(c.pid()).is_empty())
        })?;
    }
    c.ok(&["-n", ns, "delete", "functions", "--all"])?;
    Ok(())
}
