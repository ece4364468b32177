//! Upstream's example of an API server behind ours: found, described, used with kubectl; it asks us who calls it and whether
//! they may.
//!
//! It runs as a process of its own on an etcd of its own, behind a Service without a selector, with the account and the rights
//! that its manifests give it. Needs go, etcd and kubectl; where one is missing the test says so and has shown nothing.

use std::fs::File;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::process::{Api, free_port};
use super::{PATIENCE, is_there};

/// Patience with each thing that must come true.
const SOON: Duration = Duration::from_secs(60);
const GROUP: &str = "wardle.example.com";
const NAMESPACE: &str = "wardle";

/// Processes that end with the test.
struct Running(Vec<Child>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended already, which is what matters.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Running {
    fn start(&mut self, command: &mut Command, log: &Path) -> Result<()> {
        let log = File::options().create(true).append(true).open(log)?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn();
        self.0.push(child.with_context(|| format!("cannot run {command:?}"))?);
        Ok(())
    }
}

/// kubectl as somebody.
struct Kubectl {
    program: PathBuf,
    config: PathBuf,
    home: PathBuf,
}

impl Kubectl {
    fn run(&self, args: &[&str]) -> Result<(bool, String)> {
        let mut c = Command::new(&self.program);
        c.env("KUBECONFIG", &self.config).env("HOME", &self.home).args(args).stdin(Stdio::null());
        let o = c.output().context("cannot run kubectl")?;
        let text = [o.stdout, o.stderr].concat();
        Ok((o.status.success(), String::from_utf8_lossy(&text).into_owned()))
    }

    fn ok(&self, args: &[&str]) -> Result<String> {
        let (done, said) = self.run(args)?;
        ensure!(done, "kubectl {}: {said}", args.join(" "));
        Ok(said)
    }

    fn apply(&self, object: &serde_json::Value) -> Result<()> {
        let file = self.home.join("manifest.json");
        std::fs::write(&file, object.to_string())?;
        self.ok(&["apply", "-f", &file.to_string_lossy()]).map(drop)
    }

    async fn until(&self, args: &[&str], is: impl Fn(&str) -> bool) -> Result<String> {
        let end = Instant::now() + SOON;
        loop {
            let (_, said) = self.run(args)?;
            if is(&said) {
                return Ok(said);
            }
            ensure!(Instant::now() < end, "kubectl {}: {said}", args.join(" "));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// The address that others reach this machine at: endpoints may not be loopback addresses.
fn own_address() -> Result<IpAddr> {
    // Nothing is sent: connecting a datagram socket only chooses the address it would send from.
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect("192.0.2.1:9").context("a route, even if it leads nowhere")?;
    Ok(socket.local_addr()?.ip())
}

/// Builds the other server, which takes minutes the first time.
fn build() -> Result<PathBuf> {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sample-apiserver");
    let mut child = Command::new("go")
        .args(["build", "-mod=mod", "-ldflags", "-s -w", "-o"])
        .arg(&program)
        .arg("k8s.io/sample-apiserver")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/sampleapiserver"))
        .spawn()?;
    let end = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > end {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    ensure!(status.success(), "sample-apiserver is not built: {status}");
    Ok(program)
}

/// What its manifests say, with endpoints in the place of pods.
fn manifests(address: IpAddr, port: u16) -> serde_json::Value {
    let rbac = "rbac.authorization.k8s.io";
    let account = json!([{"kind": "ServiceAccount", "name": "apiserver", "namespace": NAMESPACE}]);
    let to = |kind: &str, name: &str| json!({"apiGroup": rbac, "kind": kind, "name": name});
    let read = json!(["get", "list", "watch"]);
    let service = json!({"namespace": NAMESPACE, "name": "api"});
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "apiserver", "namespace": NAMESPACE}},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "stranger", "namespace": NAMESPACE}},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "wardle:auth-delegator"},
         "roleRef": to("ClusterRole", "system:auth-delegator"), "subjects": account},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
         "metadata": {"name": "wardle-auth-reader", "namespace": "kube-system"},
         "roleRef": to("Role", "extension-apiserver-authentication-reader"), "subjects": account},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "aggregated-apiserver"}, "rules": [
            {"apiGroups": [""], "resources": ["namespaces"], "verbs": read},
            {"apiGroups": ["admissionregistration.k8s.io"], "verbs": read, "resources": ["mutatingwebhookconfigurations",
                "validatingwebhookconfigurations", "mutatingadmissionpolicies", "mutatingadmissionpolicybindings",
                "validatingadmissionpolicies", "validatingadmissionpolicybindings"]},
            {"apiGroups": ["flowcontrol.apiserver.k8s.io"], "resources": ["prioritylevelconfigurations", "flowschemas"], "verbs": read}]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "aggregated-apiserver"},
         "roleRef": to("ClusterRole", "aggregated-apiserver"), "subjects": account},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "api", "namespace": NAMESPACE},
         "spec": {"ports": [{"port": 443, "protocol": "TCP", "targetPort": port}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": [{"port": port, "protocol": "TCP"}],
         "metadata": {"name": "api-outside", "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": "api"}},
         "endpoints": [{"addresses": [address.to_string()]}]},
        {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": format!("v1alpha1.{GROUP}")},
         "spec": {"insecureSkipTLSVerify": true, "group": GROUP, "version": "v1alpha1", "groupPriorityMinimum": 1000,
            "versionPriority": 15, "service": service}},
        {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": format!("v1beta1.{GROUP}")},
         "spec": {"insecureSkipTLSVerify": true, "group": GROUP, "version": "v1beta1", "groupPriorityMinimum": 1000,
            "versionPriority": 16, "service": service}},
    ]})
}

#[tokio::test(flavor = "multi_thread")]
async fn sample_apiserver() -> Result<()> {
    let program = std::env::var_os("SKIFF_KUBECTL").map_or_else(|| "kubectl".into(), PathBuf::from);
    for needed in [Path::new("go"), Path::new("etcd"), &program] {
        if !is_there(&needed.to_string_lossy()) {
            println!("not tried: {} is not installed", needed.display());
            return Ok(());
        }
    }
    let wardle = tokio::task::spawn_blocking(build).await??;
    let dir = tempfile::tempdir()?;
    let (data, log) = (dir.path().join("data"), dir.path().join("others.log"));
    let server = Api::start(&data, &dir.path().join("log")).await?;
    let kubectl = Kubectl { program, config: data.join("kubeconfig/admin.yaml"), home: dir.path().to_owned() };
    let result = story(&kubectl, &wardle, dir.path(), &log).await;
    result.with_context(|| format!("{}\n---\n{}", server.said(), std::fs::read_to_string(&log).unwrap_or_default()))
}

async fn story(kubectl: &Kubectl, wardle: &Path, dir: &Path, log: &Path) -> Result<()> {
    let (client, peer, port) = (free_port()?, free_port()?, free_port()?);
    let at = |port: u16| format!("http://127.0.0.1:{port}");
    let mut running = Running(vec![]);
    let etcd =
        ["--listen-client-urls", &at(client), "--advertise-client-urls", &at(client), "--listen-peer-urls", &at(peer)];
    running.start(Command::new("etcd").arg("--data-dir").arg(dir.join("etcd")).args(etcd), log)?;
    kubectl.apply(&manifests(own_address()?, port))?;
    let available =
        "--output=jsonpath={.status.conditions[?(@.type==\"Available\")].status} {.status.conditions[*].reason}";
    let service = format!("apiservice/v1alpha1.{GROUP}");
    let state = ["get", service.as_str(), available];
    kubectl.until(&state, |s| s == "False FailedDiscoveryCheck").await?;

    // It has a kubeconfig of its own: the administrator's cluster, its account's token.
    let config = dir.join("wardle.kubeconfig");
    std::fs::copy(&kubectl.config, &config)?;
    let token = |account: &str| kubectl.ok(&["-n", NAMESPACE, "create", "token", account]).map(|t| t.trim().to_owned());
    let own = Kubectl { config: config.clone(), program: kubectl.program.clone(), home: dir.to_owned() };
    own.ok(&["config", "set-credentials", "wardle", "--token", &token("apiserver")?])?;
    own.ok(&["config", "set-context", "--current", "--user", "wardle"])?;
    let mut command = Command::new(wardle);
    command
        .args(["--etcd-servers", &at(client), "--secure-port", &port.to_string(), "--cert-dir"])
        .arg(dir.join("certs"));
    for flag in ["--kubeconfig", "--authentication-kubeconfig", "--authorization-kubeconfig"] {
        command.arg(flag).arg(&config);
    }
    running.start(&mut command, log)?;
    kubectl.until(&state, |s| s == "True Passed").await?;

    // Found and described.
    let rows =
        kubectl.until(&["api-resources", "--api-group", GROUP, "--no-headers"], |s| s.contains("flunders")).await?;
    for part in ["flunders", "fischers", &format!("{GROUP}/v1beta1"), "Flunder"] {
        ensure!(rows.contains(part), "no {part} in {rows}");
    }
    let versions = kubectl.ok(&["api-versions"])?;
    ensure!(versions.contains(&format!("{GROUP}/v1alpha1")), "{versions}");
    let explained = kubectl.ok(&["explain", "flunders.spec", "--api-version", &format!("{GROUP}/v1alpha1")])?;
    ensure!(explained.contains("KIND:") && explained.contains("reference"), "{explained}");
    let merged = kubectl.ok(&["get", "--raw", "/openapi/v2"])?;
    ensure!(
        merged.contains("/apis/wardle.example.com/v1alpha1/namespaces/{namespace}/flunders"),
        "OpenAPI v2 has no flunders"
    );

    // Used: written, listed as its server prints it, watched, changed, deleted.
    let flunder = |name: &str| {
        json!({"apiVersion": format!("{GROUP}/v1alpha1"), "kind": "Flunder", "metadata": {"name": name, "labels": {"sample": "true"}},
            "spec": {"reference": "other", "referenceType": "Flunder"}})
    };
    kubectl.apply(&flunder("first"))?;
    let table = kubectl.ok(&["get", "flunders"])?;
    ensure!(table.starts_with("NAME") && table.contains("first"), "{table}");
    kubectl.ok(&["annotate", "flunder", "first", "note=here"])?;
    let one = kubectl.ok(&[
        "get",
        &format!("flunders.v1beta1.{GROUP}"),
        "first",
        "-o",
        "jsonpath={.apiVersion} {.metadata.annotations.note}",
    ])?;
    ensure!(one == format!("{GROUP}/v1beta1 here"), "{one}");
    kubectl.ok(&["wait", "flunder/first", "--for=jsonpath={.metadata.annotations.note}=here", "--timeout=20s"])?;
    // Its own admission answers through us: fischers may forbid the names of flunders.
    let fischer = json!({"apiVersion": format!("{GROUP}/v1alpha1"), "kind": "Fischer", "metadata": {"name": "f"}, "disallowedFlunders": ["bad"]});
    kubectl.apply(&fischer)?;
    kubectl.ok(&["get", "fischers"])?;
    let end = Instant::now() + SOON;
    while let Err(error) = forbidden(kubectl, &flunder("bad")) {
        // It hears of the fischer by its own watch.
        ensure!(Instant::now() < end, "{error:#}");
        kubectl.run(&["delete", "flunder", "bad"])?;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    // Who may not is told so by us; who asks it directly is told by it, after it has asked us.
    let stranger = format!("--as=system:serviceaccount:{NAMESPACE}:stranger");
    let (done, said) = kubectl.run(&["get", "flunders", &stranger])?;
    ensure!(!done && said.contains("flunders.wardle.example.com is forbidden"), "{said}");
    let direct = |token: &str| -> Result<String> {
        let bearer = format!("Authorization: Bearer {token}");
        let url = format!("https://127.0.0.1:{port}/apis/{GROUP}/v1alpha1/namespaces/default/flunders");
        let o = Command::new("curl")
            .args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", "-H", &bearer, &url])
            .output()?;
        Ok(String::from_utf8_lossy(&o.stdout).into_owned())
    };
    let strangers = token("stranger")?;
    ensure!(direct("nonsense")? == "401" && direct(&strangers)? == "403", "it lets everybody in");
    kubectl.ok(&["create", "clusterrole", "flunders", "--verb=get,list", &format!("--resource=flunders.{GROUP}")])?;
    let account = format!("--serviceaccount={NAMESPACE}:stranger");
    kubectl.ok(&["create", "clusterrolebinding", "flunders", "--clusterrole=flunders", &account])?;
    let end = Instant::now() + SOON;
    while direct(&strangers)? != "200" {
        // What it was told before is believed for some seconds.
        ensure!(Instant::now() < end, "{} after the right was given", direct(&strangers)?);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    kubectl.ok(&["get", "flunders", &stranger])?;
    kubectl.ok(&["delete", "flunder", "first"])?;

    // It ends: that is told, and the rest of the API does not mind.
    drop(running);
    kubectl.until(&state, |s| s == "False FailedDiscoveryCheck").await?;
    let (done, said) = kubectl.run(&["get", "flunders"])?;
    ensure!(!done && said.contains("ServiceUnavailable") || said.contains("unable to handle the request"), "{said}");
    kubectl.ok(&["get", "namespaces"])?;
    let metrics = kubectl.ok(&["get", "--raw", "/metrics"])?;
    let gauge = format!("aggregator_unavailable_apiservice{{name=\"v1alpha1.{GROUP}\"}} 1");
    ensure!(metrics.contains(&gauge), "no {gauge}");
    Ok(())
}

/// Its admission refuses this.
fn forbidden(kubectl: &Kubectl, object: &serde_json::Value) -> Result<()> {
    let file = kubectl.home.join("bad.json");
    std::fs::write(&file, object.to_string())?;
    let (done, said) = kubectl.run(&["create", "-f", &file.to_string_lossy()])?;
    ensure!(!done && said.contains("Forbidden"), "{said}");
    Ok(())
}
