//! The life of attachments, with plugins that write down what they are asked.

use std::os::unix::fs::PermissionsExt;

use super::*;

/// Notes each call in `log` and its input in a file; fails where a file asks for it; prints the result it is told.
const PLUGIN: &str = r#"#!/bin/sh
d=$(dirname "$0"); n=$(basename "$0")
cat >"$d/$CNI_COMMAND.$n"
echo "$CNI_COMMAND $n $CNI_CONTAINERID $CNI_NETNS $CNI_IFNAME" >>"$d/log"
if [ -e "$d/fail.$CNI_COMMAND.$n" ]; then echo '{"code": 11, "msg": "try later", "details": "busy"}'; exit 1; fi
if [ "$CNI_COMMAND" = ADD ]; then cat "$d/result.$n"; fi
"#;

struct Rig {
    dir: tempfile::TempDir,
}

impl Rig {
    fn new(version: &str) -> Self {
        let rig = Self { dir: tempfile::tempdir().unwrap() };
        for (n, name) in ["one", "two"].into_iter().enumerate() {
            let path = rig.path(name);
            std::fs::write(&path, PLUGIN).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            let result = json!({"cniVersion": version, "ips": [{"address": format!("10.1.0.{}/24", n + 1)}]});
            rig.write(&format!("result.{name}"), &result.to_string());
        }
        rig.configure("net", version);
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    fn configure(&self, name: &str, version: &str) {
        let list = json!({"cniVersion": version, "name": name, "plugins": [{"type": "one"},
            {"type": "two", "capabilities": {"portMappings": true, "bandwidth": true}}]});
        self.write("10-net.conflist", &list.to_string());
    }

    /// As a start of the agent makes it.
    fn plugins(&self) -> Plugins {
        let dirs = Dirs { conf: self.dir.path().into(), bin: vec![self.path("nowhere"), self.dir.path().into()] };
        Plugins::new(dirs, self.path("notes"), None)
    }

    /// What was called since the last look.
    fn calls(&self) -> String {
        let log = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        self.write("log", "");
        log.lines().collect::<Vec<_>>().join(", ")
    }

    fn input(&self, call: &str) -> Value {
        serde_json::from_slice(&std::fs::read(self.path(call)).unwrap()).unwrap()
    }
}

fn sandbox(id: &str, state: State) -> Container {
    Container {
        id: id.into(),
        labels: Default::default(),
        image: String::new(),
        image_id: String::new(),
        state,
        pid: Some(7),
        created: None,
        started: None,
        finished: None,
        exit_code: 0,
        oom_killed: false,
        error: String::new(),
    }
}

fn link(sandbox: &Container) -> Link<'_> {
    let port =
        HostPort { protocol: "tcp".into(), host_ip: None, host_port: 8080, pod_ip: [0, 0, 0, 0].into(), pod_port: 80 };
    Link { uid: "u1", namespace: "default", name: "web", sandbox, ports: vec![port], bandwidth: [Some(1000), None] }
}

#[tokio::test]
async fn a_chain_is_called_forth_and_back() {
    let rig = Rig::new("1.0.0");
    let s = sandbox("s1", State::Running);
    let ip = rig.plugins().attach(&link(&s), 7).await.unwrap();
    assert_eq!(ip.to_string(), "10.1.0.2", "the last result counts");
    assert_eq!(rig.calls(), "ADD one s1 /proc/7/ns/net eth0, ADD two s1 /proc/7/ns/net eth0");
    assert_eq!(rig.input("ADD.one"), json!({"cniVersion": "1.0.0", "name": "net", "type": "one"}));
    let second = rig.input("ADD.two");
    assert_eq!(second["prevResult"]["ips"][0]["address"], "10.1.0.1/24");
    let runtime = json!({"bandwidth": {"ingressBurst": u32::MAX, "ingressRate": 1000},
        "portMappings": [{"containerPort": 80, "hostIP": "", "hostPort": 8080, "protocol": "tcp"}]});
    assert_eq!(second["runtimeConfig"], runtime);

    // Another start finds it as it is, and looks whether it is whole.
    assert_eq!(rig.plugins().address("u1", "s1"), Some(ip));
    assert_eq!(rig.plugins().attach(&link(&s), 7).await.unwrap(), ip);
    assert_eq!(rig.calls(), "CHECK one s1 /proc/7/ns/net eth0, CHECK two s1 /proc/7/ns/net eth0");

    // It is taken back with the configuration that made it; a process that ended is no way into a namespace.
    rig.configure("other", "1.0.0");
    rig.write("fail.DEL.one", "");
    let dead = [sandbox("s1", State::Exited)];
    let error = rig.plugins().detach("u1", &dead).await.unwrap_err();
    assert_eq!(error.to_string(), "plugin type=\"one\" failed (del): try later; busy");
    assert_eq!(rig.calls(), "DEL two s1  eth0, DEL one s1  eth0");
    assert_eq!(
        (&rig.input("DEL.one")["name"], &rig.input("DEL.two")["prevResult"]),
        (
            &json!("net"),
            &json!({
        "cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]})
        )
    );
    // Until it succeeds; then there is nothing to do any more.
    std::fs::remove_file(rig.path("fail.DEL.one")).unwrap();
    rig.plugins().detach("u1", std::slice::from_ref(&s)).await.unwrap();
    assert_eq!(rig.calls(), "DEL two s1 /proc/7/ns/net eth0, DEL one s1 /proc/7/ns/net eth0");
    rig.plugins().detach("u1", &[s]).await.unwrap();
    assert_eq!(rig.calls(), "");
}

#[tokio::test]
async fn what_failed_is_taken_back() {
    let rig = Rig::new("0.3.1");
    let s = sandbox("s1", State::Running);
    rig.write("fail.ADD.two", "");
    rig.write("fail.DEL.one", "");
    let error = rig.plugins().attach(&link(&s), 7).await.unwrap_err();
    assert_eq!(error.to_string(), "plugin type=\"two\" failed (add): try later; busy");
    let ends = |calls: String| calls.split(", ").map(|c| c[..7].trim().to_owned()).collect::<Vec<_>>();
    assert_eq!(ends(rig.calls()), ["ADD one", "ADD two", "DEL two", "DEL one"]);
    // What could not be taken back is, before anything is made again.
    for name in ["fail.ADD.two", "fail.DEL.one"] {
        std::fs::remove_file(rig.path(name)).unwrap();
    }
    rig.plugins().attach(&link(&s), 7).await.unwrap();
    assert_eq!(ends(rig.calls()), ["DEL two", "DEL one", "ADD one", "ADD two"]);
    // This version has no CHECK, and no result in DEL.
    rig.plugins().attach(&link(&s), 7).await.unwrap();
    rig.plugins().detach("u1", &[s]).await.unwrap();
    assert_eq!(ends(rig.calls()), ["DEL two", "DEL one"]);
    assert_eq!(rig.input("DEL.one").get("prevResult"), None);
}

#[tokio::test]
async fn a_missing_plugin_is_named() {
    let rig = Rig::new("1.0.0");
    std::fs::remove_file(rig.path("two")).unwrap();
    let s = sandbox("s1", State::Running);
    let error = rig.plugins().attach(&link(&s), 7).await.unwrap_err().to_string();
    assert!(error.starts_with("failed to find plugin \"two\" in path ["), "{error}");
}

#[tokio::test]
async fn leftovers_go_and_plugins_hear_what_is_left() {
    let rig = Rig::new("1.1.0");
    let (kept, lost) = (sandbox("kept", State::Running), sandbox("lost", State::Running));
    rig.plugins().attach(&link(&kept), 7).await.unwrap();
    rig.plugins().attach(&Link { uid: "u2", ..link(&lost) }, 7).await.unwrap();
    rig.calls();
    let plugins = rig.plugins();
    assert!(plugins.sweep(&plugins.notes(), &[kept]).await);
    plugins.collect().await;
    assert_eq!(rig.calls(), "DEL two lost  eth0, DEL one lost  eth0, GC one   , GC two   ");
    assert_eq!(rig.input("GC.one")["cni.dev/valid-attachments"], json!([{"containerID": "kept", "ifname": "eth0"}]));
    assert_eq!(plugins.notes().len(), 1);
}

#[test]
fn the_address_is_that_in_the_sandbox() {
    let found = |result: Value| address(&result).map(|a| a.to_string());
    let interfaces = json!([{"name": "cni0"}, {"name": "eth0", "sandbox": "/proc/7/ns/net"}]);
    let ips = json!([{"address": "10.1.0.1/24", "interface": 0}, {"address": "2001:db8::2/64", "interface": 1},
        {"address": "10.1.0.2/24", "interface": 1}]);
    assert_eq!(found(json!({"interfaces": interfaces, "ips": ips})).as_deref(), Some("10.1.0.2"));
    assert_eq!(found(json!({"ips": [{"address": "2001:db8::2/64"}]})).as_deref(), Some("2001:db8::2"));
    assert_eq!(found(json!({"ip4": {"ip": "10.1.0.3/24"}})).as_deref(), Some("10.1.0.3"));
    assert_eq!(found(json!({"ips": []})), None);
}
