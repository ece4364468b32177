//! The node's packet filter rules: masquerading, host ports, and leave to forward.
//!
//! One nftables table per bridge, replaced as a whole in one transaction. The engine sets the policy of `FORWARD` to
//! drop, and an accept in another table does not overrule a drop; so a rule also goes into the engine's own
//! `DOCKER-USER` chain, which it keeps for this purpose.

use std::fmt::Write;
use std::process::Stdio;
use std::time::Duration;

use ipnet::Ipv4Net;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::{Error, HostPort, Result};

/// A rule change that takes longer hangs.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Set on packets of pods that go to a host port.
const HAIRPIN_MARK: &str = "0x2000";

/// Name of the table for a bridge. The default bridge has the plain name.
fn table(bridge: &str) -> String {
    if bridge == "skiff0" { "skiff-node".into() } else { format!("skiff-node-{bridge}") }
}

/// The whole table as an nftables script that replaces what was there.
pub fn ruleset(bridge: &str, range: Ipv4Net, cluster: Ipv4Net, ports: &[HostPort]) -> String {
    let table = table(bridge);
    let mut dnat = String::new();
    for port in ports {
        let address = port.host_ip.filter(|ip| !ip.is_unspecified()).map(|ip| format!("ip daddr {ip} "));
        let matched = format!("{}{} dport {}", address.unwrap_or_default(), port.protocol, port.host_port);
        // A pod that reaches itself this way must see the bridge as the sender, or it would answer itself directly.
        let _ = writeln!(dnat, "    ip saddr {range} {matched} meta mark set meta mark or {HAIRPIN_MARK}");
        let _ = writeln!(dnat, "    {matched} dnat to {}:{}", port.pod_ip, port.pod_port);
    }
    format!(
        "add table ip {table}
delete table ip {table}
table ip {table} {{
  chain hostports {{
{dnat}  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    fib daddr type local jump hostports
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    fib daddr type local jump hostports
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifname \"{bridge}\" ip saddr 127.0.0.0/8 masquerade
    oifname \"{bridge}\" meta mark and {HAIRPIN_MARK} == {HAIRPIN_MARK} masquerade
    ip saddr {range} oifname != \"{bridge}\" ip daddr != {cluster} ip daddr != 224.0.0.0/4 masquerade
  }}
}}
"
    )
}

/// Loads a script in one transaction.
pub async fn apply(script: &str) -> Result<()> {
    run("nft", &["-f", "-"], script).await.map(drop)
}

/// How the engine's forward chain knows traffic: two matches, one for each direction.
pub type Matches = [[String; 2]; 2];

/// Traffic of a bridge.
#[must_use]
pub fn of_bridge(bridge: &str) -> Matches {
    ["-i", "-o"].map(|direction| [direction.to_owned(), bridge.to_owned()])
}

/// Traffic of a range of addresses.
#[must_use]
pub fn of_range(range: Ipv4Net) -> Matches {
    ["-s", "-d"].map(|direction| [direction.to_owned(), range.to_string()])
}

fn rule(verb: &'static str, [direction, value]: &[String; 2]) -> [String; 8] {
    ["-w", "5", verb, "DOCKER-USER", direction, value, "-j", "ACCEPT"].map(str::to_owned)
}

/// Lets traffic through the engine's forward chain, where there is one.
pub async fn accept(matches: &Matches) -> Result<()> {
    if run("iptables", &["-w", "5", "-n", "-L", "DOCKER-USER"], "").await.is_err() {
        return Ok(());
    }
    for one in matches {
        if run("iptables", &rule("-C", one), "").await.is_err() {
            run("iptables", &rule("-I", one), "").await?;
        }
    }
    Ok(())
}

/// Takes back what [`accept`] allowed.
pub async fn refuse(matches: &Matches) {
    for one in matches {
        // Fails when the rule is not there, which is what we want.
        let _ = run("iptables", &rule("-D", one), "").await;
    }
}

/// Removes what [`apply`] made for a bridge, and the leave to forward.
pub async fn remove(bridge: &str) -> Result<()> {
    let table = table(bridge);
    apply(&format!("add table ip {table}\ndelete table ip {table}\n")).await?;
    refuse(&of_bridge(bridge)).await;
    Ok(())
}

async fn run(program: &'static str, args: &[impl AsRef<std::ffi::OsStr>], input: &str) -> Result<String> {
    let failed = |message: String| Error::Filter { program, message };
    let work = async {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(e.to_string()))?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await.map_err(|e| failed(e.to_string()))?;
        }
        let output = child.wait_with_output().await.map_err(|e| failed(e.to_string()))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_string()))
        }
    };
    tokio::time::timeout(TIMEOUT, work).await.unwrap_or(Err(Error::Timeout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_ports_become_rules() {
        let range = "10.244.0.0/24".parse().unwrap();
        let ports = [HostPort {
            protocol: "tcp".into(),
            host_ip: Some("192.0.2.1".parse().unwrap()),
            host_port: 8080,
            pod_ip: "10.244.0.5".parse().unwrap(),
            pod_port: 80,
        }];
        let script = ruleset("skiff0", range, range, &ports);
        assert!(script.contains("ip daddr 192.0.2.1 tcp dport 8080 dnat to 10.244.0.5:80"), "{script}");
        assert!(script.starts_with("add table ip skiff-node\ndelete table ip skiff-node\n"), "{script}");
    }
}
