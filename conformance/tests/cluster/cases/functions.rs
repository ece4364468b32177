//! Functions as people use them: the examples of docs/examples/functions, by kubectl and its plugins.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, Output};

/// kubectl with the plugins on its path.
pub(super) struct Person<'a> {
    cluster: &'a Cluster,
    ns: &'a str,
    path: String,
    _links: tempfile::TempDir,
}

impl<'a> Person<'a> {
    pub(super) fn new(cluster: &'a Cluster, ns: &'a str) -> Result<Self> {
        let links = tempfile::tempdir()?;
        for name in ["kubectl-func", "kubectl-trigger"] {
            std::os::unix::fs::symlink(cluster.binary(), links.path().join(name))?;
        }
        let path = format!("{}:{}", links.path().display(), std::env::var("PATH")?);
        Ok(Self { cluster, ns, path, _links: links })
    }

    /// `kubectl func|trigger ...` in the namespace.
    pub(super) fn run(&self, args: &[&str]) -> Result<Output> {
        let all: Vec<&str> = args.iter().copied().chain(["-n", self.ns]).collect();
        self.cluster.with_env("PATH", &self.path, &all)
    }

    pub(super) fn ok(&self, args: &[&str]) -> Result<String> {
        let o = self.run(args)?;
        ensure!(o.code == 0, "kubectl {}: {}{}", args.join(" "), o.out, o.err);
        Ok(o.out)
    }

    /// Runs what must fail with 1, and with these words.
    pub(super) fn fails(&self, args: &[&str], words: &str) -> Result<()> {
        let o = self.run(args)?;
        ensure!(o.code == 1 && o.err.contains(words), "kubectl {}: {} {}{}", args.join(" "), o.code, o.out, o.err);
        Ok(())
    }

    /// Calls until the answer is as it should be: a change of a function takes a moment.
    fn answers(&self, args: &[&str], answer: &str) -> Result<()> {
        let what = format!("kubectl {} answers {answer}", args.join(" "));
        self.cluster.eventually(&what, |_| Ok(self.run(args)?.out.trim() == answer))
    }

    fn get(&self, what: &str) -> Result<Value> {
        self.cluster.get(self.ns, what)
    }
}

pub(super) fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/functions").join(name)
}

pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str().context("the path is text")
}

/// Calls a function until it answers so.
pub(super) fn answers(c: &Cluster, ns: &str, function: &str, data: &str, answer: &str) -> Result<()> {
    Person::new(c, ns)?.answers(&["trigger", function, "-d", data], answer)
}

/// Apply, call, wait for an asynchronous call, look at it, remove it.
pub(crate) fn functions(c: &mut Cluster, ns: &str) -> Result<()> {
    let p = Person::new(c, ns)?;
    c.ok(&["-n", ns, "apply", "-f", text(&example("add.yaml"))?])?;
    let answer = p.ok(&["trigger", "add", "-d", r#"{"x":100}"#])?;
    ensure!(answer.replace(' ', "") == "{\"x\":105}\n", "{answer}");
    let list = p.ok(&["func", "list"])?;
    ensure!(list.starts_with("NAME") && list.lines().nth(1).is_some_and(|l| l.starts_with("add ")), "{list}");
    let answer = p.ok(&["trigger", "add", "-d", r#"{"x":1}"#, "--async", "--wait"])?;
    ensure!(answer.replace(' ', "") == "{\"x\":6}\n", "{answer}");
    let accepted = p.ok(&["func", "invoke", "add", "-d", r#"{"x":2}"#, "--async"])?;
    let id = accepted.trim().strip_prefix("functioncall.skiff.dev/").and_then(|r| r.strip_suffix(" accepted"));
    let id = id.with_context(|| accepted.clone())?;
    c.ok(&["-n", ns, "wait", "--for=condition=Complete", &format!("fncall/{id}"), "--timeout=60s"])?;
    ensure!(p.ok(&["func", "result", id])?.replace(' ', "") == "{\"x\":7}\n", "the result of {id}");

    p.fails(&["trigger", "add", "-d", r#"{"y":1}"#], "500 FunctionError")?;
    p.fails(&["trigger", "add", "-d", "{"], "400 ")?;
    p.fails(&["trigger", "none"], "404 ")?;
    p.fails(&["func", "describe", "none"], "Error from server (NotFound): functions.skiff.dev \"none\" not found")?;
    let described = p.ok(&["func", "describe", "add"])?;
    for part in ["Name:         add", "Condition:    Ready=True", "Revisions:", "100%"] {
        ensure!(described.contains(part), "no {part:?} in {described}");
    }
    p.ok(&["func", "rm", "add"])?;
    c.eventually("nothing of it is left", |c| {
        let o = c.kubectl(&["-n", ns, "get", "functions,functionrevisions,functioncalls,services", "-o", "name"])?;
        Ok(o.code == 0 && !o.out.contains("add"))
    })
}

/// Files and directories become functions; changes are revisions; back again.
pub(crate) fn functions_of_files(c: &mut Cluster, ns: &str) -> Result<()> {
    let p = Person::new(c, ns)?;
    let out = p.ok(&["func", "add", "-f", "sum", "-p", text(&example("add.py"))?, "--wait"])?;
    ensure!(out == "function.skiff.dev/sum created\nfunction.skiff.dev/sum ready\n", "{out}");
    p.answers(&["trigger", "sum", "-d", r#"{"x":1}"#], r#"{"x": 6}"#)?;
    let again = p.ok(&["func", "add", "sum", "-p", text(&example("add.py"))?])?;
    ensure!(again == "function.skiff.dev/sum unchanged\n", "{again}");

    // Another code is another revision; a roll-back brings the first one back.
    let changed = tempfile::tempdir()?;
    let file = changed.path().join("add.py");
    std::fs::write(&file, "def main(params):\n    return {\"x\": params[\"x\"] - 1}\n")?;
    p.ok(&["func", "update", "sum", "-p", text(&file)?, "--wait"])?;
    p.answers(&["trigger", "sum", "-d", r#"{"x":1}"#], r#"{"x": 0}"#)?;
    ensure!(p.ok(&["func", "revisions", "sum"])?.lines().count() == 3, "a head and two revisions");
    p.ok(&["func", "rollback", "sum"])?;
    p.answers(&["trigger", "sum", "-d", r#"{"x":1}"#], r#"{"x": 6}"#)?;

    p.ok(&["func", "add", "words", "-p", text(&example("words"))?, "--wait"])?;
    p.answers(&["trigger", "words", "-d", "a b b", "-H", "content-type: text/plain"], r#"{"a": 1, "b": 2}"#)?;
    let archive = p.get("function/words")?["spec"]["source"]["archive"]["name"].clone();
    let map = p.get(&format!("configmap/{}-0", archive.as_str().context("an archive")?))?;
    ensure!(map["immutable"] == true && map["metadata"]["ownerReferences"][0]["name"] == "words", "{map}");

    p.ok(&["func", "add", "hello", "-p", text(&example("hello.js"))?, "--wait"])?;
    p.answers(&["trigger", "hello", "-d", "{}"], r#"{"hello":"world"}"#)?;

    // What is broken says so, and what was there before goes on.
    std::fs::write(&file, "def main(params:\n")?;
    p.ok(&["func", "update", "sum", "-p", text(&file)?])?;
    c.eventually("the fault is told", |_| Ok(p.ok(&["func", "describe", "sum"])?.contains("SyntaxError")))?;
    p.answers(&["trigger", "sum", "-d", r#"{"x":1}"#], r#"{"x": 6}"#)?;
    p.ok(&["func", "rm", "sum", "words", "hello"])?;
    c.eventually("the archive goes with its function", |c| {
        let o = c.kubectl(&["-n", ns, "get", "configmaps", "-l", "skiff.dev/function=words", "-o", "name"])?;
        Ok(o.code == 0 && o.out.is_empty())
    })
}

/// Time and objects call functions; what fails for good is told to another.
pub(crate) fn functions_by_triggers(c: &mut Cluster, ns: &str) -> Result<()> {
    let p = Person::new(c, ns)?;
    for file in ["clock.yaml", "orders.yaml"] {
        // A binding names the namespace of its subjects.
        let manifest =
            std::fs::read_to_string(example(file))?.replace("namespace: default", &format!("namespace: {ns}"));
        let o = c.apply(&["-n", ns, "apply"], &manifest)?;
        ensure!(o.code == 0, "{file}: {}", o.err);
    }
    let calls = |function: &str| -> Result<Vec<Value>> {
        let list = p.get("functioncalls")?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        Ok(items.into_iter().filter(|i| i["spec"]["function"] == function).collect())
    };
    let succeeded = |function: &str| -> Result<usize> {
        Ok(calls(function)?.iter().filter(|i| i["status"]["state"] == "Succeeded").count())
    };
    c.eventually("the clock ticks", |_| Ok(succeeded("clock")? >= 2))?;
    c.eventually("orders are watched", |_| {
        Ok(p.get("function/orders")?["status"]["triggers"]["orders"]["resourceVersion"].is_string())
    })?;
    c.ok(&["-n", ns, "create", "configmap", "other"])?;
    c.ok(&["-n", ns, "create", "configmap", "first"])?;
    c.ok(&["-n", ns, "label", "configmap", "first", "kind=order"])?;
    c.ok(&["-n", ns, "delete", "configmap", "first"])?;
    c.eventually("both are told", |_| Ok(succeeded("orders")? == 2))?;

    let failed = p.run(&["trigger", "clock", "-d", r#"{"fail": true}"#, "--async", "--wait"])?;
    ensure!(failed.code == 1 && failed.err.contains("asked to fail"), "{}{}", failed.out, failed.err);
    c.eventually("the other is told", |_| Ok(succeeded("lost")? == 1))?;
    c.ok(&["-n", ns, "delete", "function", "--all"])?;
    Ok(())
}
