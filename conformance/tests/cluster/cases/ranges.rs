//! Ranges of Service addresses that are added while the cluster runs.

use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::basic::http;
use super::start;
use crate::cluster::Cluster;

const RANGE: &str = "10.98.77.0/28";
const ADDRESS: &str = "10.98.77.5";

/// A ServiceCIDR of one's own: its addresses answer, have names and objects; it goes when nobody has one any more.
pub(crate) fn ranges(c: &mut Cluster, ns: &str) -> Result<()> {
    let result = added(c, ns);
    c.kubectl(&["delete", "servicecidr", "added", "--ignore-not-found", "--wait=false"])?;
    result
}

fn added(c: &Cluster, ns: &str) -> Result<()> {
    let range = json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "added"},
        "spec": {"cidrs": [RANGE]}});
    let o = c.apply(&["apply"], &range.to_string())?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["wait", "--for=condition=Ready", "servicecidr/added", "--timeout=30s"])?;
    start(c, ns, "server", "mkdir -p /www; echo here > /www/index.html; exec httpd -f -p 8080 -h /www")?;
    start(c, ns, "client", "sleep 3600")?;
    let expose = ["-n", ns, "expose", "pod", "server", "--port=80", "--target-port=8080"];
    c.ok(&[&expose[..], &["--overrides", &format!("{{\"spec\":{{\"clusterIP\":\"{ADDRESS}\"}}}}")]].concat())?;
    let table = c.ok(&["get", "ipaddress", ADDRESS, "--no-headers"])?;
    ensure!(table.contains(&format!("services/{ns}/server")), "{table}");
    let wget = |at: &str| c.kubectl(&["-n", ns, "exec", "client", "--", "wget", "-q", "-O", "-", at]);
    c.eventually("a pod reaches the Service", |_| Ok(wget("http://server/")?.out == "here\n"))?;
    let url = format!("http://{ADDRESS}/");
    ensure!(wget(&url)?.out == "here\n");
    let at = format!("{ADDRESS}:80");
    c.eventually("the host reaches the Service", |_| Ok(http(&at).is_ok_and(|page| page.contains("here"))))?;
    let name = c.ok(&["-n", ns, "exec", "client", "--", "nslookup", ADDRESS])?;
    ensure!(name.contains(&format!("server.{ns}.svc.cluster.local")), "{name}");
    // An address that nobody has refuses at once instead of leading out.
    c.eventually("a free address refuses", |_| {
        let error = TcpStream::connect_timeout(&"10.98.77.6:80".parse()?, Duration::from_secs(5)).err();
        Ok(error.is_some_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused))
    })?;
    c.ok(&["delete", "servicecidr", "added", "--wait=false"])?;
    c.eventually("it is told why the range stays", |c| {
        let condition = c.get("", "servicecidr/added")?["status"]["conditions"][0].clone();
        Ok(condition["status"] == "False" && condition["reason"] == "Terminating")
    })?;
    ensure!(wget(&url)?.out == "here\n", "who has an address keeps it");
    c.ok(&["-n", ns, "delete", "service", "server"])?;
    c.ok(&["wait", "--for=delete", "servicecidr/added", "--timeout=60s"]).map(drop)
}
