//! Pods as real containers: the agent against Docker Engine and an API server in memory.
//!
//! Needs root, an engine at the usual socket, and a static busybox; skipped without them, so that the suite passes on
//! a machine that has none. `SKIFF_REQUIRE_ENGINE=1` makes their absence a failure.

#![allow(clippy::unwrap_used)]

mod fake;

use std::time::{Duration, Instant};

use fake::Fake;
use serde_json::{Value, json};
use skiff_kubelet::Config;
use tokio_util::sync::CancellationToken;

const IMAGE: &str = "skiff-test/busybox:1";
const DEADLINE: Duration = Duration::from_secs(60);

/// One node of its own: bridge, range and directory differ per test, so that tests may run side by side.
struct Node {
    fake: Fake,
    config: Config,
    pki: fake::front::Pki,
    shutdown: CancellationToken,
    agent: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
    _dir: tempfile::TempDir,
}

fn docker(args: &[&str]) -> Option<String> {
    let output = std::process::Command::new("docker").args(args).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_string())
}

fn engine() -> bool {
    let usable = nix::unistd::geteuid().is_root()
        && std::path::Path::new("/var/run/docker.sock").exists()
        && std::path::Path::new("/bin/busybox").exists()
        && docker(&["version"]).is_some();
    assert!(usable || std::env::var_os("SKIFF_REQUIRE_ENGINE").is_none(), "an engine is required");
    if !usable {
        eprintln!("skipped: no engine");
        return false;
    }
    // Tests run side by side; one makes the image.
    static MAKING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _making = MAKING.lock();
    if docker(&["image", "inspect", IMAGE]).is_none() {
        let script = format!(
            "d=$(mktemp -d) && mkdir -p $d/bin $d/tmp $d/etc && cp /bin/busybox $d/bin/ && \
             for a in $(/bin/busybox --list | grep -vx busybox); do ln -sf busybox $d/bin/$a; done && \
             tar -C $d -c . | docker import -c 'ENV PATH=/bin' - {IMAGE} && rm -r $d"
        );
        assert!(std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success());
    }
    true
}

impl Drop for Node {
    /// A test that failed leaves nothing on the machine either.
    fn drop(&mut self) {
        self.shutdown.cancel();
        let filter = format!("label=skiff.dev/node={}", self.config.node_name);
        for id in docker(&["ps", "-aq", "--filter", &filter]).unwrap_or_default().lines() {
            docker(&["rm", "-f", id]);
        }
        let bridge = &self.config.bridge;
        for command in [
            format!("ip link del {bridge}"),
            format!("nft delete table ip skiff-node-{bridge}"),
            format!("iptables -w 5 -D DOCKER-USER -i {bridge} -j ACCEPT"),
            format!("iptables -w 5 -D DOCKER-USER -o {bridge} -j ACCEPT"),
            format!("umount -R -l {}", self.config.data_dir.join("pods").display()),
        ] {
            let _ = std::process::Command::new("sh").args(["-c", &format!("{command} 2>/dev/null")]).status();
        }
    }
}

impl Node {
    fn start(number: u8) -> Self {
        let fake = Fake::new();
        let dir = tempfile::tempdir().unwrap();
        let name = format!("test{number}-{}", std::process::id());
        let mut config = Config::new(name, [127, 0, 0, 1].into(), dir.path());
        config.bridge = format!("skt{number}");
        config.pod_cidr = Some(format!("10.250.{number}.0/24").parse().unwrap());
        config.cluster_cidr = config.pod_cidr;
        // A port that is free now; the agent binds it a moment later.
        config.listen = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let pki = fake::front::pki();
        (config.cert_pem, config.key_pem) = pki.server.clone();
        config.client_ca_pem = pki.ca.clone();
        let mut node = Self { fake, config, pki, shutdown: CancellationToken::new(), agent: None, _dir: dir };
        node.run();
        node
    }

    fn run(&mut self) {
        self.shutdown = CancellationToken::new();
        let agent = skiff_kubelet::run(self.fake.client(), self.config.clone(), self.shutdown.clone());
        self.agent = Some(tokio::spawn(agent));
    }

    async fn halt(&mut self) {
        self.shutdown.cancel();
        if let Some(agent) = self.agent.take() {
            agent.await.unwrap().unwrap();
        }
    }

    async fn finish(mut self) {
        self.halt().await;
        skiff_kubelet::cleanup(&self.config).await.unwrap();
        let filter = format!("label=skiff.dev/node={}", self.config.node_name);
        assert_eq!(docker(&["ps", "-aq", "--filter", &filter]).unwrap(), "", "containers are left");
    }

    fn create(&self, name: &str, mut spec: Value) {
        spec["nodeName"] = self.config.node_name.clone().into();
        for container in spec["containers"].as_array_mut().unwrap() {
            container["image"] = container.get("image").cloned().unwrap_or(IMAGE.into());
        }
        for container in spec.get_mut("initContainers").and_then(Value::as_array_mut).into_iter().flatten() {
            container["image"] = IMAGE.into();
        }
        self.fake.put(
            "pods",
            json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": name}}, "spec": spec}),
        );
    }

    fn pod(&self, name: &str) -> Value {
        self.fake.get("pods", "default", name).unwrap_or(Value::Null)
    }

    /// Waits until the pod satisfies a condition; shows it when time is up.
    async fn until(&self, name: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            let pod = self.pod(name);
            if holds(&pod) {
                return pod;
            }
            if Instant::now() > end {
                let events: Vec<_> =
                    self.fake.list("events").iter().map(|e| format!("{} {}", e["reason"], e["message"])).collect();
                panic!("{name}: not {what}: {:#}\n{}", pod["status"], events.join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn phase(&self, name: &str, phase: &str) -> Value {
        self.until(name, phase, |p| p["status"]["phase"] == phase).await
    }

    async fn ready(&self, name: &str) -> Value {
        self.until(name, "ready", |p| condition(p, "Ready") == "True").await
    }

    fn logs(&self, pod: &Value, container: usize) -> String {
        let id = container_id(pod, container);
        let output = std::process::Command::new("docker").args(["logs", &id]).output().unwrap();
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    fn has_event(&self, reason: &str) -> bool {
        self.fake.list("events").iter().any(|e| e["reason"] == reason)
    }
}

fn condition<'a>(pod: &'a Value, name: &str) -> &'a str {
    let conditions = pod["status"]["conditions"].as_array();
    let found = conditions.and_then(|c| c.iter().find(|c| c["type"] == name));
    found.and_then(|c| c["status"].as_str()).unwrap_or_default()
}

fn container_id(pod: &Value, index: usize) -> String {
    let id = pod["status"]["containerStatuses"][index]["containerID"].as_str().unwrap_or_default();
    id.trim_start_matches("docker://").to_string()
}

fn sh(script: &str) -> Value {
    json!(["sh", "-c", script])
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_and_deletes_a_pod() {
    if !engine() {
        return;
    }
    let node = Node::start(1);
    node.create(
        "web",
        json!({"containers": [
        {"name": "a", "command": sh("echo hello > /tmp/x; httpd -f -p 8080 -h /tmp")},
        {"name": "b", "command": sh("trap 'exit 0' TERM; while true; do sleep 1; done")}]}),
    );
    let pod = node.ready("web").await;
    let ip = pod["status"]["podIP"].as_str().unwrap().to_string();
    assert!(ip.starts_with("10.250.1."), "{ip}");
    // The host reaches the pod, the containers share one network.
    let answer =
        std::process::Command::new("busybox").args(["wget", "-qO-", &format!("http://{ip}:8080/x")]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "hello\n");
    let inside = docker(&["exec", &container_id(&pod, 1), "wget", "-qO-", "http://127.0.0.1:8080/x"]);
    assert_eq!(inside.as_deref(), Some("hello"));
    // Once for each, though containers are made while their sandbox starts.
    for reason in ["Pulled", "Created", "Started"] {
        let events = node.fake.list("events");
        let told = events.iter().filter(|e| e["reason"] == reason).map(|e| e["count"].as_i64().unwrap_or(1));
        assert_eq!(told.sum::<i64>(), 2, "{reason}: {events:#?}");
    }
    let of_pod = format!("label=io.kubernetes.pod.uid={}", pod["metadata"]["uid"].as_str().unwrap());
    let made = docker(&["ps", "-aq", "--filter", &of_pod]).unwrap();
    assert_eq!(made.lines().count(), 3, "a sandbox and two containers");
    node.fake.delete_pod("default", "web", 10);
    node.until("web", "gone", Value::is_null).await;
    assert!(node.has_event("Killing"));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_restarts_nothing() {
    if !engine() {
        return;
    }
    let mut node = Node::start(2);
    node.create(
        "stay",
        json!({"containers": [{"name": "a", "command": ["sleep", "1000"],
        "readinessProbe": {"exec": {"command": ["true"]}, "periodSeconds": 1}}]}),
    );
    let before = node.ready("stay").await;
    node.create(
        "goes",
        json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "a", "command": ["sleep", "1000"]}]}),
    );
    node.ready("goes").await;
    node.halt().await;
    // While the agent is away one pod's object vanishes: its containers are orphans.
    let gone = node.fake.remove("pods", "default", "goes").unwrap();
    node.run();
    let end = Instant::now() + DEADLINE;
    let filter = format!("label=io.kubernetes.pod.uid={}", gone["metadata"]["uid"].as_str().unwrap());
    while docker(&["ps", "-aq", "--filter", &filter]).unwrap() != "" {
        assert!(Instant::now() < end, "the orphan stays");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let after = node.pod("stay");
    assert_eq!(container_id(&before, 0), container_id(&after, 0));
    assert_eq!(before["status"]["conditions"], after["status"]["conditions"], "readiness must not flap");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_are_told() {
    if !engine() {
        return;
    }
    let node = Node::start(3);
    let never = |script: &str| json!({"restartPolicy": "Never", "containers": [{"name": "a", "command": sh(script)}]});
    node.create("good", never("echo done > /dev/termination-log"));
    node.create("bad", never("exit 3"));
    node.create(
        "init",
        json!({"restartPolicy": "Never", "initContainers": [{"name": "i", "command": sh("exit 1")}],
        "containers": [{"name": "a", "command": ["true"]}]}),
    );
    node.create("loop", json!({"containers": [{"name": "a", "command": sh("exit 1")}]}));
    node.create("nocmd", json!({"restartPolicy": "Never", "containers": [{"name": "a", "command": ["/no/such"]}]}));
    let ended = |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["terminated"].clone();
    let good = node.phase("good", "Succeeded").await;
    assert_eq!(
        (ended(&good)["reason"].as_str(), ended(&good)["message"].as_str()),
        (Some("Completed"), Some("done\n"))
    );
    assert_eq!(condition(&good, "Ready"), "False");
    let bad = node.phase("bad", "Failed").await;
    assert_eq!((ended(&bad)["exitCode"].as_i64(), ended(&bad)["reason"].as_str()), (Some(3), Some("Error")));
    let init = node.phase("init", "Failed").await;
    assert_eq!(init["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 1);
    let nocmd = node.phase("nocmd", "Failed").await;
    assert_eq!(ended(&nocmd)["reason"], "StartError");
    let looping = node
        .until("loop", "crash looping", |p| {
            p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
    assert_eq!(looping["status"]["containerStatuses"][0]["restartCount"], 1, "the first restart is at once");
    for name in ["good", "bad", "init", "loop", "nocmd"] {
        node.fake.delete_pod("default", name, 0);
    }
    for name in ["good", "bad", "init", "loop", "nocmd"] {
        node.until(name, "gone", Value::is_null).await;
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_and_variables() {
    if !engine() {
        return;
    }
    let node = Node::start(4);
    node.fake.put(
        "configmaps",
        json!({"metadata": {"name": "conf", "namespace": "default"}, "data": {"k": "one", "ENVK": "env"}}),
    );
    node.fake.put("secrets", json!({"metadata": {"name": "sec", "namespace": "default"}, "data": {"s": "c2VjcmV0"}}));
    node.fake.put(
        "services",
        json!({"metadata": {"name": "kubernetes", "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 443, "name": "https"}]}}),
    );
    node.create("vol", json!({"serviceAccountName": "default", "securityContext": {"fsGroup": 2000},
        "volumes": [
            {"name": "c", "configMap": {"name": "conf"}},
            {"name": "s", "secret": {"secretName": "sec", "defaultMode": 256}},
            {"name": "e", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
            {"name": "p", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
                {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}}]}}],
        "containers": [{"name": "a",
            "env": [{"name": "A", "value": "x"}, {"name": "B", "value": "$(A)-$(KUBERNETES_SERVICE_HOST)"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "K", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "k"}}}],
            "envFrom": [{"configMapRef": {"name": "conf"}, "prefix": "P_"}],
            "resources": {"limits": {"memory": "32Mi", "cpu": "200m"}},
            "volumeMounts": [
                {"name": "c", "mountPath": "/c"}, {"name": "s", "mountPath": "/s"}, {"name": "e", "mountPath": "/e"},
                {"name": "p", "mountPath": "/p"}, {"name": "c", "mountPath": "/one", "subPath": "k"}],
            "command": sh("echo B=$B K=$K P=$P_ENVK IP=$IP; cat /c/k /s/s /p/token /p/labels /one; df -k /e | tail -1; ls -ln /s/..data/s; \
                cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; hostname; cat /etc/resolv.conf; echo END; exec sleep 1000")}]}));
    let pod = node.ready("vol").await;
    let end = Instant::now() + DEADLINE;
    while !node.logs(&pod, 0).contains("END") {
        assert!(Instant::now() < end, "{}", node.logs(&pod, 0));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let log = node.logs(&pod, 0);
    let ip = pod["status"]["podIP"].as_str().unwrap();
    for wanted in [
        &format!("B=x-10.96.0.1 K=one P=env IP={ip}") as &str,
        "onesecreta-tokenapp=\"vol\"one",
        "1024",
        "33554432",
        "2000",
        "\nvol\n",
        "search default.svc.cluster.local svc.cluster.local cluster.local",
    ] {
        assert!(log.contains(wanted), "{wanted:?} is not in\n{log}");
    }
    // A change of the ConfigMap reaches the running container.
    node.fake.put("configmaps", json!({"metadata": {"name": "conf", "namespace": "default"}, "data": {"k": "two"}}));
    let id = container_id(&pod, 0);
    while docker(&["exec", &id, "cat", "/c/k"]).as_deref() != Some("two") {
        assert!(Instant::now() < end, "the volume is not refreshed");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    node.fake.delete_pod("default", "vol", 0);
    node.until("vol", "gone", Value::is_null).await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_hooks_and_sidecars() {
    if !engine() {
        return;
    }
    let node = Node::start(5);
    node.create(
        "probed",
        json!({"containers": [{"name": "a", "command": sh("touch /tmp/live; exec sleep 1000"),
        "ports": [{"containerPort": 80}],
        "lifecycle": {"postStart": {"exec": {"command": sh("touch /tmp/ready")}}},
        "readinessProbe": {"exec": {"command": ["cat", "/tmp/ready"]}, "periodSeconds": 1, "failureThreshold": 1},
        "livenessProbe": {"exec": {"command": ["cat", "/tmp/live"]}, "periodSeconds": 1, "failureThreshold": 1}}],
        "terminationGracePeriodSeconds": 1}),
    );
    node.create("side", json!({"restartPolicy": "Never",
        "initContainers": [
            {"name": "s", "restartPolicy": "Always", "command": sh("trap 'echo bye; exit 0' TERM; while true; do sleep 0.1; done")},
            {"name": "i", "command": ["true"]}],
        "containers": [{"name": "a", "command": sh("sleep 1")}]}));
    let pod = node.ready("probed").await;
    let id = container_id(&pod, 0);
    docker(&["exec", &id, "rm", "/tmp/ready"]).unwrap();
    node.until("probed", "unready", |p| condition(p, "Ready") == "False").await;
    docker(&["exec", &id, "rm", "/tmp/live"]).unwrap();
    let again = node
        .until("probed", "restarted", |p| {
            p["status"]["containerStatuses"][0]["restartCount"] == 1 && condition(p, "Ready") == "True"
        })
        .await;
    assert_ne!(container_id(&again, 0), id);
    assert!(node.has_event("Unhealthy"));
    let side = node.phase("side", "Succeeded").await;
    assert_eq!(side["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_start_says_why() {
    if !engine() {
        return;
    }
    let node = Node::start(6);
    let waiting = |p: &Value| {
        p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().unwrap_or_default().to_string()
    };
    for (name, container, reason) in [
        ("never", json!({"name": "a", "image": "skiff-test/none:1", "imagePullPolicy": "Never"}), "ErrImageNeverPull"),
        ("badname", json!({"name": "a", "image": "Bad Name"}), "InvalidImageName"),
        (
            "nokey",
            json!({"name": "a", "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "k"}}}]}),
            "CreateContainerConfigError",
        ),
        ("root", json!({"name": "a", "securityContext": {"runAsNonRoot": true}}), "CreateContainerConfigError"),
    ] {
        node.create(name, json!({"containers": [container]}));
        node.until(name, reason, |p| waiting(p) == reason).await;
    }
    node.create(
        "novol",
        json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "nfs": {"server": "x", "path": "/"}}]}),
    );
    let end = Instant::now() + DEADLINE;
    while !node.has_event("FailedMount") {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.create("greedy", json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "1000"}}}]}));
    let greedy = node.phase("greedy", "Failed").await;
    assert_eq!(greedy["status"]["reason"], "OutOfcpu");
    node.finish().await;
}

/// Runs stock kubectl; answers exit code, output and errors.
async fn kubectl(server: std::net::SocketAddr, websockets: bool, args: &[&str], input: &str) -> (i32, String, String) {
    use tokio::io::AsyncWriteExt;
    let mut child = tokio::process::Command::new("kubectl")
        .args(["--server", &format!("http://{server}"), "--kubeconfig", "/dev/null"])
        .args(args)
        .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets.to_string())
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets.to_string())
        .env("HOME", "/nonexistent")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = tokio::time::timeout(DEADLINE, child.wait_with_output()).await.expect("kubectl hangs").unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_kubectl_reads_logs_and_runs_commands() {
    if !engine() || std::process::Command::new("kubectl").arg("help").output().is_err() {
        return;
    }
    let node = Node::start(7);
    node.create("shell", json!({"terminationGracePeriodSeconds": 1, "containers": [{"name": "a", "command":
        sh("echo one; echo two; echo three >&2; echo page > /tmp/index.html; httpd -p 8080 -h /tmp; exec sleep 1000")}]}));
    node.ready("shell").await;
    let front = fake::front::front(node.fake.clone(), node.config.listen, &node.pki).await;
    for websockets in [true, false] {
        let run = async |args: &[&str], input: &str| kubectl(front, websockets, args, input).await;
        let (code, out, err) = run(&["exec", "shell", "--", "echo", "hello world"], "").await;
        assert_eq!((code, out.as_str()), (0, "hello world\n"), "{err}");
        let (code, out, err) = run(&["exec", "shell", "--", "sh", "-c", "echo out; echo err >&2; exit 7"], "").await;
        assert_eq!((code, out.as_str()), (7, "out\n"), "{err}");
        assert!(err.starts_with("err\n"), "{err}");
        let (code, out, err) = run(&["exec", "-i", "shell", "--", "wc", "-c"], &"x".repeat(200_000)).await;
        assert_eq!((code, out.trim()), (0, "200000"), "{err}");
        let (code, out, err) =
            run(&["exec", "shell", "--", "sh", "-c", "head -c 300000 /dev/zero | tr '\\0' y"], "").await;
        assert_eq!((code, out.len()), (0, 300_000), "{err}");
        let (code, _, err) = run(&["exec", "shell", "--", "/no/such"], "").await;
        assert_ne!(code, 0, "{err}");
        port_forward(front, websockets).await;
    }
    let (code, out, err) = kubectl(front, true, &["logs", "shell"], "").await;
    assert_eq!((code, out.lines().count()), (0, 3), "{out}{err}");
    let (_, out, _) = kubectl(front, true, &["logs", "shell", "--tail=1", "--timestamps"], "").await;
    assert!(out.starts_with("20") && out.lines().count() == 1, "{out}");
    let (_, out, _) = kubectl(front, true, &["logs", "shell", "--limit-bytes=5"], "").await;
    assert_eq!(out.len(), 5);
    let (code, ..) = kubectl(front, true, &["logs", "shell", "--previous"], "").await;
    assert_ne!(code, 0, "there is no previous container");
    node.finish().await;
}

async fn port_forward(front: std::net::SocketAddr, websockets: bool) {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
    let mut child = tokio::process::Command::new("kubectl")
        .args(["--server", &format!("http://{front}"), "--kubeconfig", "/dev/null", "port-forward", "shell", ":8080"])
        .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", websockets.to_string())
        .env("HOME", "/nonexistent")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let first = tokio::time::timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap();
    let Some(first) = first else {
        let output = child.wait_with_output().await.unwrap();
        panic!("no forwarding: {}", String::from_utf8_lossy(&output.stderr));
    };
    // "Forwarding from 127.0.0.1:40123 -> 8080"
    let address = first.split(' ').nth(2).unwrap().to_string();
    for _ in 0..3 {
        let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
        stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.expect("port-forward hangs").unwrap();
        assert!(answer.ends_with("page\n"), "websockets={websockets}: {answer:?}");
    }
    child.kill().await.unwrap();
}
