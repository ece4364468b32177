//! Class `process` with real processes and an API server in this process. Needs root, as the class itself.
#![allow(clippy::unwrap_used)]

mod served;

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, PostParams};
use serde_json::json;
use served::served;
use skiff_apiserver::Server;
use skiff_controllers::runtime::definitions::define;
use skiff_faas::api::{FunctionInstance, FunctionRevision, definitions};
use skiff_faas::instance::{Address, Class, Event, Instance, StartError};
use skiff_faas::process::{Access, Config, Host, Processes};
use skiff_faas::runtime::Language;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

const SOON: Duration = Duration::from_secs(20);

struct World {
    host: Arc<Processes>,
    node: Arc<Host>,
    client: kube::Client,
    events: mpsc::Receiver<Event>,
    _server: Server,
    _stop: DropGuard,
    _dir: tempfile::TempDir,
}

async fn world() -> Option<World> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let (server, client) = served(dir.path()).await;
    define(&client, "tests", &definitions()).await.unwrap();
    let node = Host::new(Config::new("node-1", dir.path().join("fn"))).unwrap();
    node.can(Language::Python).unwrap();
    let stop = CancellationToken::new();
    let access = Access { host: node.clone(), keys: None };
    let host = Processes::new(client.clone(), &access, None, stop.clone()).unwrap();
    host.look().await;
    let events = host.events();
    Some(World { host, node, client, events, _server: server, _stop: stop.drop_guard(), _dir: dir })
}

fn revision(name: &str, code: serde_json::Value) -> Arc<FunctionRevision> {
    let revision = json!({
        "apiVersion": "skiff.dev/v1", "kind": "FunctionRevision", "metadata": {"name": name, "namespace": "default"},
        "spec": {"function": name, "number": 1, "generation": 1, "digest": name, "code": code},
    });
    Arc::new(serde_json::from_value(revision).unwrap())
}

fn python(name: &str, text: &str) -> Arc<FunctionRevision> {
    revision(name, json!({"source": {"inline": text}}))
}

async fn ask(instance: &Instance, body: &str) -> String {
    let Address::Unix(path) = &instance.address else { panic!("no socket") };
    let mut stream = UnixStream::connect(path).await.unwrap();
    let request =
        format!("POST / HTTP/1.1\r\nHost: f\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    let _ = tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap();
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()
}

/// Waits until the records of instances are so many.
async fn recorded(client: &kube::Client, count: usize) -> Vec<FunctionInstance> {
    let all = Api::<FunctionInstance>::all(client.clone());
    let wait = async {
        loop {
            let items = all.list(&ListParams::default()).await.unwrap().items;
            if items.len() == count {
                return items;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(SOON, wait).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_answers_is_recorded_and_ends() {
    let Some(world) = world().await else { return };
    let add =
        python("add", "print('hello')\ndef main(params):\n    print('called')\n    return {'x': params['x'] + 5}\n");
    let instance = world.host.start(add.clone()).await.unwrap();
    assert_eq!(ask(&instance, "{\"x\": 100}").await, "{\"x\": 105}");
    let record = &recorded(&world.client, 1).await[0];
    assert_eq!((record.metadata.name.as_deref(), record.spec.node.as_str()), (Some(instance.name.as_str()), "node-1"));
    assert!(record.spec.ready_at.as_ref().unwrap().0 >= record.spec.asked_at.as_ref().unwrap().0);
    let texts: Vec<String> = world.host.tail("default", "add", None, 10).await.into_iter().map(|l| l.text).collect();
    assert!(texts[0].ends_with(" hello") && texts[1].ends_with(" called"), "{texts:?}");
    world.host.stop("default", &instance.name).await.unwrap();
    recorded(&world.client, 0).await;
    world.host.stop("default", &instance.name).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_instance_answers() {
    let Some(world) = world().await else { return };
    if world.node.can(Language::Node).is_err() {
        return;
    }
    let add = revision(
        "add",
        json!({"runtime": "node", "source": {"inline": "exports.main = (p) => ({ x: p.x + 5, e: process.env.E });\n"}, "env": [{"name": "E", "value": "v"}]}),
    );
    world.host.prepare(add.clone()).await.unwrap();
    for _ in 0..3 {
        let instance = world.host.start(add.clone()).await.unwrap();
        assert_eq!(ask(&instance, "{\"x\": 100}").await, "{\"x\":105,\"e\":\"v\"}");
    }
    let broken = revision("broken", json!({"runtime": "node", "source": {"inline": "exports.main = (;\n"}}));
    let error = world.host.start(broken).await.unwrap_err();
    assert!(matches!(&error, StartError::Code(text) if text.contains("SyntaxError")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_holds() {
    let Some(world) = world().await else { return };
    let secret =
        world.host.start(python("other", "def main(p):\n    open('/tmp/mine', 'w').write('x')\n")).await.unwrap();
    ask(&secret, "{}").await;
    let code = r#"
import os, socket, subprocess, ctypes
def attempt(what):
    try:
        return what()
    except BaseException as e:
        return type(e).__name__
def main(p):
    status = dict(line.split(':\t', 1) for line in open('/proc/self/status').read().splitlines() if ':\t' in line)
    return {
        'uid': os.getuid() >= 200000 and os.getgid() >= 200000 and os.getgroups() == [],
        'caps': [status[k] for k in ('CapPrm', 'CapEff', 'CapBnd', 'NoNewPrivs')],
        'setuid': attempt(lambda: os.setuid(0)),
        'root': sorted(os.listdir('/')),
        'skiff': attempt(lambda: os.listdir('/skiff')),
        'code': attempt(lambda: open('/function/x', 'w')),
        'usr': attempt(lambda: open('/usr/x', 'w')),
        'tmp': sorted(os.listdir('/tmp')),
        'processes': [d for d in os.listdir('/proc') if d.isdigit()],
        'kill': attempt(lambda: os.kill(4000, 9)),
        'net': attempt(lambda: socket.create_connection(('192.0.2.1', 80), 2)),
        'links': os.listdir('/sys/class/net') if os.path.exists('/sys/class/net') else [n for _, n in socket.if_nameindex()],
        'mount': ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None),
        'shell': subprocess.run(['sh', '-c', 'id -u; echo $SKIFF_FUNCTION'], capture_output=True, text=True).stdout.split()[1:],
        'fds': [link for link in (attempt(lambda: os.readlink('/proc/self/fd/' + f)) for f in os.listdir('/proc/self/fd') if int(f) > 2) if link != 'FileNotFoundError'],
        'shadow': attempt(lambda: open('/etc/shadow').read()),
    }
"#;
    let instance = world.host.start(python("spy", code)).await.unwrap();
    let said: serde_json::Value = serde_json::from_str(&ask(&instance, "{}").await).unwrap();
    let zero = "0000000000000000";
    let expected = json!({
        "uid": true, "caps": [zero, zero, zero, "1"], "setuid": "PermissionError", "skiff": [], "code": "OSError", "usr": "OSError", "tmp": [],
        "processes": ["1"], "kill": "ProcessLookupError", "net": "OSError", "links": ["lo"], "mount": -1, "shell": ["spy"], "shadow": "FileNotFoundError",
    });
    for (key, value) in expected.as_object().unwrap() {
        assert_eq!(&said[key], value, "{key} of {said}");
    }
    assert!(
        said["root"]
            .as_array()
            .unwrap()
            .iter()
            .all(|n| !["work", "home", "sys", "var", "old"].contains(&n.as_str().unwrap())),
        "{said}"
    );
    assert!(said["fds"].as_array().unwrap().iter().all(|f| f.as_str().unwrap().starts_with("socket:")), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_code_is_told_and_ends_nothing_else() {
    let Some(mut world) = world().await else { return };
    let well = world.host.start(python("well", "def main(p):\n    return 1\n")).await.unwrap();
    let cases = [
        ("syntax", "def main(p)\n", "SyntaxError"),
        ("handler", "x = 1\n", "a function main is expected"),
        ("exits", "import os\nprint('last words', flush=True)\nos._exit(3)\n", "exit code 3"),
        ("memory", "x = bytearray(1 << 30)\ndef main(p):\n    pass\n", "mem"),
        ("raises", "import nothing_of_the_name\n", "nothing_of_the_name"),
    ];
    for (name, text, why) in cases {
        let error = world.host.start(python(name, text)).await.unwrap_err();
        assert!(
            matches!(&error, StartError::Code(said) if said.to_lowercase().contains(&why.to_lowercase())),
            "{name}: {error}"
        );
    }
    let eats = "def main(p):\n    x = [bytearray(1 << 20) for _ in range(400)]\n    return len(x)\n";
    let limits = json!({"source": {"inline": eats}, "resources": {"limits": {"memory": "64Mi"}}});
    let greedy = world.host.start(revision("greedy", limits)).await.unwrap();
    ask(&greedy, "{}").await;
    let dies = world
        .host
        .start(python("dies", "import os\ndef main(p):\n    os.kill(os.getpid(), 11) or os._exit(7)\n"))
        .await
        .unwrap();
    ask(&dies, "{}").await;
    let mut ended = std::collections::BTreeMap::new();
    for _ in 0..2 {
        if let Event::Ended { name, reason, .. } =
            tokio::time::timeout(SOON, world.events.recv()).await.unwrap().unwrap()
        {
            ended.insert(name, reason);
        }
    }
    assert!(ended[&greedy.name].contains("more memory than its limit of 64 MiB"), "{ended:?}");
    assert!(ended[&dies.name].contains("exit code 7") || ended[&dies.name].contains("signal 11"), "{ended:?}");
    assert_eq!(ask(&well, "{}").await, "1");
    recorded(&world.client, 1).await;
}

/// Who kills a process while its code is loaded does not make the code bad: the same may be started again.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_from_outside_is_not_the_codes_fault() {
    let Some(world) = world().await else { return };
    let comm = format!("kill{}", std::process::id());
    // Its name is what the process is found by.
    let named = format!("import ctypes, time\nctypes.CDLL(None).prctl(15, b'{comm}')\n");
    let text = format!("{named}time.sleep(20)\ndef main(p):\n    return 1\n");
    let starting = tokio::spawn({
        let (host, code) = (world.host.clone(), python("slow", &text));
        async move { host.start(code).await }
    });
    let kill = async {
        loop {
            let named =
                |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == comm);
            let all =
                std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
            if let Some(pid) = all.into_iter().find(named) {
                return nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                    .unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(SOON, kill).await.unwrap();
    let error = tokio::time::timeout(SOON, starting).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(&error, StartError::Other(e) if e.to_string().contains("killed by signal 9")), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn environment_and_files_come_from_the_api() {
    let Some(world) = world().await else { return };
    let maps = Api::<ConfigMap>::namespaced(world.client.clone(), "default");
    for (name, data) in [
        ("values", json!({"A": "1", "B": "2"})),
        (
            "code",
            json!({"main.py": "import os, lib\ndef main(p):\n    return lib.get()\n", "lib.py": "import os\ndef get():\n    return [os.environ.get(k) for k in ('A', 'X_B', 'C', 'SKIFF_REVISION', 'D')]\n"}),
        ),
    ] {
        let map = serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap();
        maps.create(&PostParams::default(), &map).await.unwrap();
    }
    let code = json!({
        "source": {"configMap": {"name": "code"}},
        "envFrom": [{"prefix": "X_", "configMapRef": {"name": "values"}}, {"secretRef": {"name": "none", "optional": true}}],
        "env": [
            {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "values", "key": "A"}}},
            {"name": "C", "value": "$(A)$(X_B)"},
            {"name": "D", "valueFrom": {"secretKeyRef": {"name": "none", "key": "k", "optional": true}}},
        ],
    });
    let instance = world.host.start(revision("env", code)).await.unwrap();
    assert_eq!(ask(&instance, "{}").await, "[\"1\", \"2\", \"12\", \"env\", null]");
    let missing =
        revision("missing", json!({"source": {"inline": "x"}, "envFrom": [{"configMapRef": {"name": "none"}}]}));
    let error = world.host.start(missing).await.unwrap_err();
    assert!(error.to_string().contains("there is no ConfigMap none"), "{error}");
}

/// The parent's end is the end of its instances, and the next start has a new one.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_parent_is_replaced() {
    let Some(mut world) = world().await else { return };
    let parent = python("pid", "def main(p):\n    return 1\n");
    let instance = world.host.start(parent.clone()).await.unwrap();
    let Address::Unix(socket) = &instance.address else { panic!("no socket") };
    let lib = socket.ancestors().nth(3).unwrap().join("lib");
    let of_us = |entry: &std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let parent = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        String::from_utf8_lossy(&line).ends_with(&format!("{}\0", lib.display()))
            && parent.split(' ').nth(3) == Some(&std::process::id().to_string())
    };
    let found = std::fs::read_dir("/proc").unwrap().flatten().find(of_us).unwrap();
    let id: i32 = found.file_name().to_str().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGKILL).unwrap();
    let event = tokio::time::timeout(SOON, world.events.recv()).await.unwrap().unwrap();
    assert!(matches!(&event, Event::Ended { name, .. } if *name == instance.name), "{event:?}");
    assert!(tokio::time::timeout(SOON, async { while UnixStream::connect(socket).await.is_ok() {} }).await.is_ok());
    let again = world.host.start(parent).await.unwrap();
    assert_eq!(ask(&again, "{}").await, "1");
}

/// Not a test of speed on a busy machine: it shows the figures, and that none is absurd.
#[tokio::test(flavor = "multi_thread")]
async fn starts_are_quick() {
    let Some(world) = world().await else { return };
    let add = python("add", "def main(params):\n    return {'x': params['x'] + 5}\n");
    world.host.prepare(add.clone()).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..50 {
        let begun = Instant::now();
        let instance = world.host.start(add.clone()).await.unwrap();
        times.push(begun.elapsed());
        world.host.stop("default", &instance.name).await.unwrap();
    }
    times.sort();
    let begun = Instant::now();
    let all = futures::future::join_all((0..50).map(|_| world.host.start(add.clone()))).await;
    let burst = begun.elapsed();
    println!("one at a time: p50 {:?} p90 {:?} max {:?}; 50 at once: {burst:?}", times[25], times[45], times[49]);
    assert!(all.iter().all(Result::is_ok) && times[25] < Duration::from_millis(500), "{times:?}");
}
