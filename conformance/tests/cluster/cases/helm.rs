//! Helm's own program with the chart of `conformance/clients/chart`, which has one of each that charts have.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, Output};

/// Helm in a namespace.
struct Helm<'a> {
    program: PathBuf,
    chart: String,
    cluster: &'a Cluster,
    ns: &'a str,
}

impl Helm<'_> {
    fn run(&self, args: &[&str]) -> Result<Output> {
        let mut all = vec!["-n", self.ns];
        all.extend(args.iter().map(|a| if *a == "CHART" { self.chart.as_str() } else { a }));
        self.cluster.with_program(&self.program, &all)
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        let o = self.run(args)?;
        ensure!(o.code == 0, "helm {}: {}{}", args.join(" "), o.out, o.err);
        Ok(o.out)
    }

    /// Runs what must fail, and with these words.
    fn fails(&self, args: &[&str], words: &str) -> Result<()> {
        let o = self.run(args)?;
        ensure!(o.code != 0 && o.err.contains(words), "helm {}: {} {}{}", args.join(" "), o.code, o.out, o.err);
        Ok(())
    }

    /// The status of each revision of a release.
    fn history(&self, release: &str) -> Result<Vec<String>> {
        let all: Value = serde_json::from_str(&self.ok(&["history", release, "-o", "json"])?)?;
        let each = all.as_array().into_iter().flatten();
        Ok(each.filter_map(|r| r["status"].as_str().map(str::to_owned)).collect())
    }

    fn greeting(&self, release: &str) -> Result<Value> {
        Ok(self.cluster.get(self.ns, &format!("configmap/{release}"))?["data"]["index.html"].clone())
    }
}

/// Builds the program; it is kept beside what the tests are built to.
fn program() -> Result<PathBuf> {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("helm");
    let o = Command::new("go")
        .args(["build", "-mod=mod", "-ldflags", "-s -w", "-o"])
        .arg(&program)
        .arg("helm.sh/helm/v4/cmd/helm")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/helm"))
        .output()?;
    ensure!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    Ok(program)
}

/// A release's whole life; then another's whose objects the client merges.
pub(crate) fn helm(c: &mut Cluster, ns: &str) -> Result<()> {
    if Command::new("go").arg("version").output().is_err() {
        println!("     not tried: go is not installed");
        return Ok(());
    }
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/chart").to_string_lossy().into_owned();
    let h = Helm { program: program()?, chart, cluster: c, ns };
    let result = installed(&h)
        .and_then(|()| upgraded(&h))
        .and_then(|()| failed(&h))
        .and_then(|()| removed(&h))
        .and_then(|()| merged_by_the_client(&h));
    // Helm leaves definitions, and they belong to no namespace.
    let o = c.kubectl(&["delete", "crd", "orders.shop.example.com", "--ignore-not-found"])?;
    result.and_then(|()| {
        ensure!(o.code == 0, "{}", o.err);
        Ok(())
    })
}

fn installed(h: &Helm) -> Result<()> {
    h.fails(&["status", "shop"], "release: not found")?;
    let said = h.ok(&["install", "shop", "CHART", "--wait", "--timeout", "90s"])?;
    ensure!(said.contains("STATUS: deployed") && said.contains("shop says hello, revision 1."), "{said}");
    h.fails(&["install", "shop", "CHART"], "cannot reuse a name that is still in use")?;
    let d = h.cluster.get(h.ns, "deployment/shop")?;
    ensure!(d["status"]["readyReplicas"] == 1, "--wait did not wait: {d}");
    ensure!(h.cluster.get(h.ns, "order/shop")?["spec"]["item"] == "tea", "the chart's own kind is missing");
    let said = h.ok(&["test", "shop", "--timeout", "60s"])?;
    ensure!(said.contains("Phase:          Succeeded"), "{said}");
    // With the server at hand templates see what is there; nothing of it is kept.
    let key = h.cluster.get(h.ns, "secret/shop")?["data"]["key"].clone();
    let dry = h.ok(&["template", "shop", "CHART", "--dry-run=server", "--set", "greeting=never"])?;
    ensure!(key.as_str().is_some_and(|k| dry.contains(&format!("key: {k}"))) && dry.contains("never"), "{dry}");
    ensure!(h.greeting("shop")? == "hello", "a dry run changed something");
    let manifest = h.ok(&["get", "manifest", "shop"])?;
    ensure!(manifest.contains("kind: Order") && !manifest.contains("helm.sh/hook"), "{manifest}");
    let list: Value = serde_json::from_str(&h.ok(&["list", "-o", "json"])?)?;
    ensure!(list[0]["name"] == "shop" && list[0]["chart"] == "shop-0.1.0" && list[1].is_null(), "{list}");
    Ok(())
}

/// Changes by hand: what Helm does not own stays, what it owns is a conflict until it may force.
fn upgraded(h: &Helm) -> Result<()> {
    let key = h.cluster.get(h.ns, "secret/shop")?["data"]["key"].clone();
    h.cluster.ok(&["-n", h.ns, "annotate", "deployment", "shop", "mine=kept"])?;
    h.cluster.ok(&["-n", h.ns, "scale", "deployment", "shop", "--replicas=2"])?;
    let to_moon = ["upgrade", "shop", "CHART", "--set", "greeting=moon", "--wait", "--timeout", "90s"];
    h.fails(&to_moon, "with subresource \"scale\" using apps/v1: .spec.replicas")?;
    let mut forced = to_moon.to_vec();
    forced.push("--force-conflicts");
    h.ok(&forced)?;
    let d = h.cluster.get(h.ns, "deployment/shop")?;
    ensure!(d["metadata"]["annotations"]["mine"] == "kept" && d["spec"]["replicas"] == 1, "{d}");
    ensure!(h.greeting("shop")? == "moon", "not upgraded");
    ensure!(h.cluster.get(h.ns, "secret/shop")?["data"]["key"] == key, "lookup found nothing");
    ensure!(h.history("shop")? == ["superseded", "failed", "deployed"], "{:?}", h.history("shop")?);
    h.ok(&["test", "shop", "--timeout", "60s"])?;
    h.ok(&["rollback", "shop", "1", "--wait", "--timeout", "90s"])?;
    ensure!(h.greeting("shop")? == "hello", "not rolled back");
    Ok(())
}

fn failed(h: &Helm) -> Result<()> {
    let upgrade = ["upgrade", "shop", "CHART", "--timeout", "60s", "--set"];
    let with = |more: &[&'static str]| [&upgrade[..], more].concat();
    h.fails(&with(&["before=false"]), "pre-upgrade hooks failed")?;
    ensure!(h.greeting("shop")? == "hello", "a failed hook let the upgrade pass");
    h.fails(&with(&["broken=true,greeting=never", "--rollback-on-failure", "--timeout", "8s"]), "rolled back")?;
    ensure!(h.greeting("shop")? == "hello", "not rolled back");
    let history = h.history("shop")?;
    ensure!(history.last().is_some_and(|s| s == "deployed"), "{history:?}");
    ensure!(history.iter().filter(|s| *s == "failed").count() == 3, "{history:?}");
    Ok(())
}

fn removed(h: &Helm) -> Result<()> {
    h.ok(&["uninstall", "shop", "--wait", "--timeout", "60s"])?;
    h.fails(&["status", "shop"], "release: not found")?;
    let left = "deployment,service,ingress,serviceaccount,secret,order,job";
    let left = h.cluster.ok(&["-n", h.ns, "get", left, "-l", "app.kubernetes.io/instance=shop", "-o", "name"])?;
    ensure!(left.is_empty(), "left: {left}");
    ensure!(h.cluster.get(h.ns, "configmap/shop-after")?["data"]["gone"] == "shop", "the last hook did not run");
    Ok(())
}

/// Without server-side apply Helm merges three ways: its last manifest, its new one, and what there is.
fn merged_by_the_client(h: &Helm) -> Result<()> {
    h.ok(&["install", "side", "CHART", "--server-side=false", "--wait=legacy", "--timeout", "90s"])?;
    h.cluster.ok(&["-n", h.ns, "annotate", "deployment", "side", "mine=kept"])?;
    h.cluster.ok(&["-n", h.ns, "scale", "deployment", "side", "--replicas=2"])?;
    h.cluster.ok(&["-n", h.ns, "delete", "service", "side"])?;
    let upgrade =
        ["upgrade", "side", "CHART", "--set", "greeting=moon", "--server-side=false", "--wait", "--timeout", "90s"];
    h.ok(&upgrade)?;
    let d = h.cluster.get(h.ns, "deployment/side")?;
    ensure!(d["metadata"]["annotations"]["mine"] == "kept" && d["spec"]["replicas"] == 1, "{d}");
    ensure!(h.cluster.get(h.ns, "service/side")?["spec"]["ports"][0]["port"] == 80, "what was lost is not made again");
    h.ok(&["uninstall", "side", "--keep-history", "--wait", "--timeout", "60s"])?;
    ensure!(h.history("side")? == ["superseded", "uninstalled"], "{:?}", h.history("side")?);
    Ok(())
}
