//! Prometheus on the cluster, by the script that people use, and the queries of the dashboards.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cluster::{Cluster, Output, repository};

/// Port of the Prometheus under test: not the default, so that a person's is told apart.
const PORT: &str = "29090";

fn script(c: &Cluster, dir: &std::path::Path, what: &str) -> Result<Output> {
    let mut command = Command::new(repository().join("hack/monitoring.sh"));
    command.arg(what).env("SKIFF_RUN_DIR", dir).env("SKIFF_PROMETHEUS_PORT", PORT).env("SKIFF_SCRAPE_INTERVAL", "2s");
    c.run(&mut command)
}

/// The first sample that a query gives, with its labels.
fn ask(c: &Cluster, query: &str) -> Result<Option<(Value, String)>> {
    let url = format!("http://127.0.0.1:{PORT}/api/v1/query");
    let o = c.run(Command::new("curl").args(["-sS", "-G", &url, "--data-urlencode", &format!("query={query}")]))?;
    let answer: Value = serde_json::from_str(&o.out).with_context(|| format!("{}{}", o.out, o.err))?;
    let sample = &answer["data"]["result"][0];
    Ok(sample["value"][1].as_str().map(|v| (sample["metric"].clone(), v.to_owned())))
}

/// That Grafana can import what docs/dashboards holds: names and panels are told apart, every panel has a place and asks the
/// data source that the person chooses.
fn dashboards() -> Result<()> {
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(repository().join("docs/dashboards"))? {
        let path = entry?.path();
        let page: Value = serde_json::from_str(&std::fs::read_to_string(&path)?)?;
        let file = path.display();
        ensure!(names.insert(page["uid"].to_string()) && page["title"].is_string(), "{file}: name");
        ensure!(page["schemaVersion"].as_u64().is_some_and(|v| v >= 36), "{file}: schemaVersion");
        let source = &page["templating"]["list"][0];
        ensure!(source["type"] == "datasource" && source["query"] == "prometheus", "{file}: {source}");
        let panels = page["panels"].as_array().context("panels")?;
        let ids: BTreeSet<u64> = panels.iter().filter_map(|p| p["id"].as_u64()).collect();
        ensure!(ids.len() == panels.len(), "{file}: panels share an id");
        for panel in panels {
            let place = ["h", "w", "x", "y"].map(|k| panel["gridPos"][k].as_u64());
            let [Some(_), Some(width), Some(left), Some(_)] = place else { anyhow::bail!("{file}: no place: {panel}") };
            ensure!(left + width <= 24, "{file}: too wide: {panel}");
            let targets = panel["targets"].as_array().map_or(&[][..], Vec::as_slice);
            ensure!((panel["type"] == "row") == targets.is_empty(), "{file}: a panel without a query: {panel}");
            for target in targets {
                let chosen = target["datasource"]["uid"] == "${datasource}" && target["refId"].is_string();
                ensure!(chosen && target["expr"].as_str().is_some_and(|e| !e.is_empty()), "{file}: {target}");
            }
        }
    }
    ensure!(names.len() >= 4, "dashboards are missing: {names:?}");
    Ok(())
}

/// Every target is up, every query of the dashboards has data, and pods are found by their label and annotation.
pub(crate) fn monitoring(c: &mut Cluster, ns: &str) -> Result<()> {
    dashboards()?;
    let example = repository().join("docs/examples/monitored.yaml");
    let function = repository().join("docs/examples/functions/add.yaml");
    for file in [&example, &function] {
        c.ok(&["-n", ns, "apply", "-f", &file.to_string_lossy()])?;
    }
    let annotated = r#"{"metadata":{"annotations":{"prometheus.io/scrape":"true","prometheus.io/port":"9200","prometheus.io/path":"/numbers"}},
        "apiVersion":"v1","kind":"Pod","spec":{"containers":[{"name":"c","image":"skiff/busybox:1","command":["sh","-c",
        "trap exit TERM; echo annotated_answer 7 >/tmp/numbers; httpd -p 9200 -h /tmp; while true; do sleep 0.2; done"]}]}}"#;
    let o = c.apply(
        &["-n", ns, "apply"],
        &annotated.replacen("\"metadata\":{", "\"metadata\":{\"name\":\"annotated\",", 1),
    )?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["-n", ns, "rollout", "status", "deployment/monitored", "--timeout=60s"])?;
    c.ok(&["-n", ns, "wait", "--for=condition=Ready", "pod/annotated", "--timeout=60s"])?;
    // The page of functions shows those that were called.
    super::functions::answers(c, ns, "add", r#"{"x":100}"#, r#"{"x": 105}"#)?;
    let dir = tempfile::tempdir()?;
    let result = observe(c, ns, dir.path());
    let down = script(c, dir.path(), "down")?;
    result?;
    ensure!(down.code == 0, "down: {}{}", down.out, down.err);
    let o = c.kubectl(&["get", "clusterrole", "skiff-monitoring:prometheus"])?;
    ensure!(o.err.contains("NotFound"), "the account's rights are left: {}{}", o.out, o.err);
    Ok(())
}

fn observe(c: &Cluster, ns: &str, dir: &std::path::Path) -> Result<()> {
    for what in ["up", "check"] {
        let o = script(c, dir, what)?;
        ensure!(o.code == 0, "{what}: {}{}", o.out, o.err);
    }
    for (query, value) in [("monitored_answers_total", "42"), ("annotated_answer", "7")] {
        let query = format!("{query}{{job=\"pods\", namespace=\"{ns}\"}}");
        c.eventually("the pods' own metrics are there", |c| {
            Ok(ask(c, &query)?.is_some_and(|(labels, v)| v == value && labels["pod"].is_string()))
        })?;
    }
    // Components are told apart by job, though one process shows them.
    for (metric, job) in [
        ("scheduler_schedule_attempts_total", "kube-scheduler"),
        ("workqueue_adds_total", "kube-controller-manager"),
        ("kubeproxy_sync_proxy_rules_duration_seconds_count", "kube-proxy"),
        ("coredns_dns_requests_total", "kube-dns"),
        ("kubelet_running_pods", "kubelet"),
        ("apiserver_request_total", "kube-apiserver"),
        ("skiff_function_requests_accepted_total", "skiff-functions"),
    ] {
        let found = ask(c, metric)?.with_context(|| format!("no {metric}"))?;
        ensure!(found.0["job"] == job, "{metric}: {}", found.0);
    }
    // The account may do no more than it must.
    let who = "--as=system:serviceaccount:skiff-monitoring:prometheus";
    for what in [["list", "secrets", "-A"], ["create", "pods", "-A"], ["get", "nodes", "--subresource=proxy"]] {
        let o = c.kubectl(&["auth", "can-i", what[0], what[1], what[2], who])?;
        ensure!(o.out.trim() == "no", "{what:?}: {}", o.out);
    }
    Ok(())
}
