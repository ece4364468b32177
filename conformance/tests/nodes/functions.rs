//! Functions on several nodes: pods and processes where their selector says, on nodes that are lost, and who may ask a node for
//! them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};

use crate::bed::Bed;
use crate::cases::text;

const FUNCTIONS: &str = r#"
apiVersion: skiff.dev/v1
kind: Function
metadata: {name: far}
spec:
  public: true
  nodeSelector: {kubernetes.io/hostname: NODE}
  source: {image: "skiff/busybox:1"}
  command: [sh, -c, "mkdir /tmp/w; echo $HOSTNAME is here >/tmp/w/index.html; exec httpd -f -p $PORT -h /tmp/w"]
---
apiVersion: skiff.dev/v1
kind: Function
metadata: {name: forked}
spec:
  public: true
  isolation: process
  nodeSelector: {kubernetes.io/hostname: NODE}
  env:
  - {name: WHERE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
  - {name: SECRET, valueFrom: {secretKeyRef: {name: far, key: word}}}
  source: {inline: "import os\ndef main(params):\n    print('asked')\n    return os.environ['WHERE'] + ' ' + os.environ['SECRET']"}
---
apiVersion: skiff.dev/v1
kind: Function
metadata: {name: nowhere}
spec:
  isolation: process
  nodeSelector: {kubernetes.io/hostname: none}
  source: {inline: "def main(params): return 1"}
---
apiVersion: skiff.dev/v1
kind: Function
metadata: {name: near}
spec:
  public: true
  isolation: process
  nodeSelector: {kubernetes.io/hostname: HOME}
  source: {inline: "def main(params): return 'near'"}
"#;

/// Answers of a function through the gateway, as a person on the gateway's node gets them: status and body.
fn call(bed: &Bed, name: &str) -> Result<(String, String)> {
    let url = format!("http://127.0.0.1:8081/function/default/{name}/");
    let said = bed.on(&bed.nodes[0], &["curl", "-s", "--max-time", "60", "-w", "\n%{http_code}", &url])?.out;
    let (body, status) = said.rsplit_once('\n').context("no answer")?;
    Ok((status.to_owned(), body.to_owned()))
}

/// Instances of a function by node, as the API has them: those that are recorded, and the function's own word.
fn on_nodes(bed: &Bed, name: &str) -> Result<[BTreeMap<String, u64>; 2]> {
    let all = bed.get(&["functioninstances", "-l", &format!("skiff.dev/function={name}")])?;
    let mut recorded = BTreeMap::new();
    for instance in all["items"].as_array().into_iter().flatten() {
        *recorded.entry(text(instance, "/spec/node").to_owned()).or_default() += 1;
    }
    let function = bed.get(&["function", name])?;
    let said = function["status"]["nodes"].as_array().cloned().unwrap_or_default();
    let said = said.iter().map(|n| (text(n, "/name").to_owned(), n["instances"].as_u64().unwrap_or_default()));
    Ok([recorded, said.collect()])
}

/// A selector is honoured, or its owner is told why not; the answer comes through the gateway from any node.
pub(crate) fn functions(bed: &Bed) -> Result<()> {
    let (home, far) = (&bed.nodes[0], &bed.nodes[1]);
    bed.ok(&["create", "secret", "generic", "far", "--from-literal=word=geheim"])?;
    bed.apply(&FUNCTIONS.replace("NODE", far).replace("HOME", home))?;
    bed.eventually("the far one answers", || Ok(call(bed, "far")?.1.contains("is here")))?;
    let pods = bed.get(&["pods", "-l", "skiff.dev/function=far"])?;
    ensure!(text(&pods, "/items/0/spec/nodeName") == *far, "{pods}");
    bed.eventually("the near one answers", || Ok(call(bed, "near")?.1 == "near"))?;
    bed.eventually("the forked one answers on its node", || Ok(call(bed, "forked")?.1 == format!("{far} geheim")))?;
    let expected = BTreeMap::from([(far.clone(), 1)]);
    bed.eventually(
        "it is told where it runs",
        || Ok(on_nodes(bed, "forked")? == [expected.clone(), expected.clone()]),
    )?;
    let logs = bed.func(&["logs", "forked"])?;
    ensure!(logs.contains("asked"), "{logs}");
    let ready = |name: &str| -> Result<(String, String)> {
        let function = bed.get(&["function", name])?;
        let conditions = function["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let ready = conditions.into_iter().find(|c| c["type"] == "Ready").unwrap_or_default();
        Ok((text(&ready, "/reason").to_owned(), text(&ready, "/message").to_owned()))
    };
    for (name, node) in [("near", home), ("forked", far)] {
        bed.eventually("it is told where it may run", || {
            Ok(ready(name)?.1.contains(&format!("in processes of node {node}")))
        })?;
    }
    bed.eventually("it is told why not", || {
        let (reason, why) = ready("nowhere")?;
        Ok(reason == "IsolationUnavailable" && why.contains("kubernetes.io/hostname=none"))
    })?;
    bed.ok(&["delete", "functions", "--all"])?;
    bed.eventually("nothing is recorded", || {
        Ok(bed.get(&["functioninstances"])?["items"].as_array().is_some_and(Vec::is_empty))
    })?;
    bed.ok(&["delete", "secret", "far"])?;
    Ok(())
}

const SPREAD: &str = r#"
apiVersion: skiff.dev/v1
kind: Function
metadata: {name: spread}
spec:
  public: true
  isolation: process
  concurrency: 8
  scale: {min: 6}
  source: {inline: "import time\ndef main(params):\n    time.sleep(0.05)\n    return 'ok'"}
"#;

/// Sockets that listen for TCP on a node.
fn listening(bed: &Bed, node: &str) -> Result<usize> {
    let all = ["/proc/net/tcp", "/proc/net/tcp6"].map(|file| bed.on(node, &["cat", file]));
    let mut count = 0;
    for file in all {
        count += file?.out.lines().filter(|l| l.split_whitespace().nth(3) == Some("0A")).count();
    }
    Ok(count)
}

/// Instances are on all nodes. Nobody but the gateway reaches those of another node. A node that is killed, or whose cable is out,
/// loses its own: callers get answers, or 502 and 503, and the others take over.
pub(crate) fn functions_lost(bed: &Bed) -> Result<()> {
    let far = &bed.nodes[1];
    let before = listening(bed, far)?;
    bed.apply(SPREAD)?;
    let each: BTreeMap<String, u64> = bed.nodes.iter().map(|n| (n.clone(), 2)).collect();
    bed.eventually(
        "there are instances on each node",
        || Ok(on_nodes(bed, "spread")? == [each.clone(), each.clone()]),
    )?;
    strangers(bed)?;
    ensure!(listening(bed, far)? == before, "an instance listens on the network");
    for (way, node) in [("killed", far), ("cut", &bed.nodes[2])] {
        let stop = AtomicBool::new(false);
        let answers: Result<Vec<String>> = std::thread::scope(|scope| {
            let load = || {
                let mut seen = vec![];
                while !stop.load(Ordering::Relaxed) {
                    seen.push(call(bed, "spread").map(|(status, _)| status));
                }
                seen
            };
            let callers: Vec<_> = (0..4).map(|_| scope.spawn(load)).collect();
            let done = lose(bed, node, way);
            stop.store(true, Ordering::Relaxed);
            let mut all = vec![];
            for caller in callers {
                all.extend(caller.join().map_err(|_| anyhow::anyhow!("a caller panicked"))?);
            }
            done?;
            all.into_iter().collect()
        });
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for status in answers? {
            *counts.entry(status).or_default() += 1;
        }
        println!("     {way}: answers by status {counts:?}");
        let strange: Vec<_> = counts.keys().filter(|s| !["200", "502", "503"].contains(&s.as_str())).collect();
        ensure!(strange.is_empty() && counts.get("200").is_some_and(|n| *n > 20), "{way}: {counts:?}");
        bed.eventually("the node is ready again", || Ok(bed.ready(node)? == "True"))?;
        // What still runs there is found again, and what is too many ends: the sum is as before, whatever is where.
        bed.eventually("there are as many as before", || {
            let [recorded, said] = on_nodes(bed, "spread")?;
            Ok(recorded == said && recorded.values().sum::<u64>() == 6)
        })?;
    }
    ensure!(call(bed, "spread")?.1 == "ok", "it answers");
    bed.ok(&["delete", "functions", "--all"])?;
    Ok(())
}

/// Takes a node away until its instances are, and brings it back.
fn lose(bed: &Bed, node: &str, way: &str) -> Result<()> {
    let (take, back) = if way == "killed" { ("kill", "start") } else { ("cut", "heal") };
    bed.node(take, node)?;
    let gone = bed.eventually("others have taken over", || {
        let [recorded, said] = on_nodes(bed, "spread")?;
        Ok(!recorded.contains_key(node) && recorded == said && recorded.values().sum::<u64>() == 6)
    });
    bed.node(back, node)?;
    gone
}

/// What somebody in the network gets who is not the gateway: nobody, a pod's account, another node, an old gateway's CA.
fn strangers(bed: &Bed) -> Result<()> {
    let from = &bed.nodes[2];
    let token = bed.ok(&["create", "token", "default"])?;
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let pair = format!("{}/pki/kubelet-client-current.pem", bed.data(from));
    let instances = bed.get(&["functioninstances", "-l", "skiff.dev/function=spread"])?;
    let name = instances["items"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|i| text(i, "/spec/node") == bed.nodes[1])
        .map(|i| text(i, "/metadata/name").to_owned())
        .context("no instance on the second node")?;
    let connect = format!("functions/connect/default/{name}");
    let asks: [(&str, &str); 6] = [
        ("GET", "functions/watch"),
        ("GET", "functions/logs?namespace=default&function=spread"),
        ("POST", "functions/start"),
        ("POST", &connect),
        ("PUT", "functions/code/0000000000000000000000000000000000000000000000000000000000000000"),
        ("PUT", "functions/image/00000000000000000000000000000000"),
    ];
    for (method, path) in asks {
        let url = format!("https://10.89.0.2:10250/{path}");
        let base = ["curl", "-sk", "--max-time", "10", "-o", "/dev/null", "-w", "%{http_code}", "-X", method];
        let upgrade = ["-H", "Connection: upgrade", "-H", "Upgrade: skiff-function", "-d", "{}"];
        for (who, shown, status) in [
            ("nobody", vec![], "401"),
            ("a pod's account", vec!["-H", bearer.as_str()], "403"),
            ("another node", vec!["--cert", pair.as_str()], "403"),
        ] {
            let body: &[&str] = if method == "GET" { &[] } else { &upgrade };
            let all = [&base[..], body, &shown, &[url.as_str()]].concat();
            let o = bed.on(from, &all)?;
            ensure!(o.out == status, "{who} gets {} of {method} {path}, not {status}: {}", o.out, o.err);
        }
    }
    Ok(())
}

const IMAGE: &str = "FROM skiff/busybox:1\nCOPY index.html /www/index.html\nCMD [\"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n";

/// An image that one node built, in no registry, runs on another: it is handed over when a pod there needs it, and not before.
pub(crate) fn functions_image(bed: &Bed) -> Result<()> {
    let (home, far) = (&bed.nodes[0], &bed.nodes[1]);
    let code = tempfile::tempdir()?;
    std::fs::write(code.path().join("Dockerfile"), IMAGE)?;
    std::fs::write(code.path().join("index.html"), "handed over\n")?;
    let images = |node: &str| -> Result<bool> {
        Ok(bed.on(node, &["docker", "images", "-q", "skiff.local/fn"])?.out.lines().next().is_some())
    };
    // No pod may come here by itself.
    bed.ok(&["cordon", &bed.nodes[2]])?;
    let (path, command) = (code.path().to_string_lossy().into_owned(), "httpd -f -p 8080 -h /www");
    bed.func(&["add", "handed", "-p", &path, "--runtime", "http", "--command", command, "--public", "--wait"])?;
    bed.eventually("it answers", || Ok(call(bed, "handed")?.1.contains("handed over")))?;
    ensure!(images(home)?, "the gateway's node built no image");
    let selector = format!(r#"{{"spec": {{"nodeSelector": {{"kubernetes.io/hostname": "{far}"}}}}}}"#);
    bed.ok(&["patch", "function", "handed", "--type=merge", "-p", &selector])?;
    bed.eventually("it runs on the other node", || {
        let pods = bed.get(&["pods", "-l", "skiff.dev/function=handed"])?;
        let there =
            |p: &serde_json::Value| text(p, "/spec/nodeName") == far.as_str() && text(p, "/status/phase") == "Running";
        let _ = call(bed, "handed")?;
        Ok(pods["items"].as_array().is_some_and(|all| all.iter().any(there)))
    })?;
    bed.eventually("it answers from there", || Ok(call(bed, "handed")?.1.contains("handed over")))?;
    ensure!(images(far)?, "the node has the image");
    ensure!(!images(&bed.nodes[2])?, "a node that needs no image got one");
    // A pod that is no function's gets no such image.
    let image = bed.on(home, &["docker", "images", "--format", "{{.Repository}}:{{.Tag}}", "skiff.local/fn"])?.out;
    let image = image.lines().next().context("no image")?.to_owned();
    bed.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: thief}}\nspec:\n  nodeName: {}\n  containers: [{{name: c, image: '{image}'}}]\n",
        bed.nodes[2]
    ))?;
    bed.eventually("a stranger's pod is told why not", || {
        let events = bed.get(&["events", "--field-selector", "involvedObject.name=thief"])?;
        let told = |e: &serde_json::Value| text(e, "/message").contains("no pod of a function");
        Ok(events["items"].as_array().is_some_and(|l| l.iter().any(told)))
    })?;
    ensure!(!images(&bed.nodes[2])?, "a stranger's pod got an image");
    bed.ok(&["delete", "pod", "thief", "--grace-period=1"])?;
    bed.ok(&["uncordon", &bed.nodes[2]])?;
    bed.ok(&["delete", "functions", "--all"])?;
    Ok(())
}
