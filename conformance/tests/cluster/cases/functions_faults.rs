//! Functions whose code is bad: what callers, owners and other functions see of it, in each language and both classes.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::functions::Person;
use crate::cluster::Cluster;

/// What a handler may do wrong, by the word that asks for it; anything else is answered.
const PYTHON: &str = r#"
import os, time
def main(params):
    do = params.get("do") if isinstance(params, dict) else None
    if do == "raise":
        raise KeyError("lost")
    if do == "loop":
        while True:
            pass
    if do == "exit":
        os._exit(3)
    if do == "memory":
        return len([bytearray(1 << 20) for _ in range(1000)])
    if do == "huge":
        return "x" * 5000
    if do == "stream":
        return ("x" * 1000 for _ in range(9))
    if do == "unwritable":
        return {"what": object()}
    return {"well": True}
"#;
const NODE: &str = r#"
exports.main = (params) => {
  if (params.do === "raise") throw new Error("lost");
  if (params.do === "loop") for (;;);
  if (params.do === "exit") process.exit(3);
  if (params.do === "memory") { const all = []; for (;;) all.push(Buffer.alloc(1 << 20, 1)); }
  if (params.do === "huge") return "x".repeat(5000);
  if (params.do === "stream") return "x".repeat(9000);
  if (params.do === "unwritable") { const a = {}; a.a = a; return a; }
  return { well: true };
};
"#;
/// A program that speaks HTTP by itself, badly when asked to.
const PROGRAM: &str = r#"
import http.server, json, os
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def do_GET(self): self.say(b"{}")
    def do_POST(self):
        do = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}").get("do")
        if do == "loop":
            while True: pass
        if do == "exit": os._exit(3)
        if do == "memory": bytes([bytearray(1 << 20) for _ in range(1000)])
        if do == "huge": return self.say(b"x" * 5000)
        if do == "noise":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
            self.close_connection = True
            return
        self.say(b'{"well": true}')
    def say(self, body):
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), H).serve_forever()
"#;

/// What is asked for, and how the error begins that callers get.
const OF_CALLS: [(&str, &str); 7] = [
    ("raise", "500 FunctionError"),
    ("unwritable", "500 FunctionError"),
    ("loop", "504 Timeout"),
    ("exit", "502 InstanceEnded"),
    ("memory", "502 InstanceEnded"),
    ("huge", "502 AnswerTooLarge"),
    ("stream", "broke off|502 AnswerTooLarge"),
];
const OF_PROGRAMS: [(&str, &str); 5] = [
    ("loop", "504 Timeout"),
    ("exit", "502 InstanceEnded"),
    ("memory", "502 InstanceEnded"),
    ("huge", "502 AnswerTooLarge"),
    ("noise", "502 InstanceEnded"),
];

/// Codes that cannot be loaded, with words that callers and the owner are told.
const BROKEN: [(&str, &str, &str, &str); 6] = [
    ("python", "syntax", "def main(params:\n    return 1\n", "SyntaxError"),
    ("python", "handler", "def other(params):\n    return 1\n", "a function main is expected"),
    ("python", "import", "import nothing_of_the_name\ndef main(p):\n    return 1\n", "nothing_of_the_name"),
    ("node", "syntax", "exports.main = (params => 1;\n", "SyntaxError"),
    ("node", "handler", "exports.other = () => 1;\n", "main"),
    ("node", "throws", "throw new Error('not today');\n", "not today"),
];

fn make(c: &Cluster, ns: &str, name: &str, mut spec: Value, more: Value) -> Result<()> {
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    let function = json!({"apiVersion": "skiff.dev/v1", "kind": "Function", "metadata": {"name": name}, "spec": spec});
    let o = c.apply(&["-n", ns, "apply"], &function.to_string())?;
    ensure!(o.code == 0, "{name}: {}", o.err);
    Ok(())
}

fn events(c: &Cluster, ns: &str, name: &str) -> Result<String> {
    c.ok(&["-n", ns, "events", "--for", &format!("function/{name}")])
}

/// Each fault of a call is told to its caller by one code, with the request's id, and the next call is answered.
fn calls(c: &Cluster, p: &Person<'_>, ns: &str, name: &str, faults: &[(&str, &str)]) -> Result<()> {
    for (fault, code) in faults {
        let o = p.run(&["trigger", name, "-d", &json!({"do": fault}).to_string()])?;
        let told = code.split('|').any(|code| o.err.contains(code));
        ensure!(o.code == 1 && told, "{name}, {fault}: {} {}{}", o.code, o.out, o.err);
        ensure!(o.err.contains("(request ") || o.err.contains("broke off"), "{name}, {fault}: no id in {}", o.err);
        let well = p.run(&["trigger", name, "-d", "{}"])?;
        ensure!(well.out.replace(' ', "") == "{\"well\":true}\n", "{name} after {fault}: {}{}", well.out, well.err);
    }
    c.eventually(&format!("{name}'s owner is told why instances ended"), |c| {
        let all = events(c, ns, name)?;
        Ok(all.contains("InstanceEnded") && all.to_lowercase().contains("memory"))
    })
}

/// Faults of code, in Python, Node.js and a program, as processes and as pods.
pub(crate) fn functions_at_fault(c: &mut Cluster, ns: &str) -> Result<()> {
    let p = Person::new(c, ns)?;
    let limits = json!({"limits": {"memory": "128Mi"}});
    let bounds = json!({"timeoutSeconds": 6, "maxRequestBytes": 1000, "maxResponseBytes": 2000, "resources": limits,
        "scale": {"initial": 0, "windowSeconds": 6}});
    let well = json!({"source": {"inline": "def main(p):\n    return 'well'\n"}, "scale": {"min": 1}});
    make(c, ns, "well", well, json!({}))?;
    for (language, code) in [("python", PYTHON), ("node", NODE)] {
        for class in ["process", "container"] {
            let name = format!("{language}-{class}");
            let spec = json!({"runtime": language, "isolation": class, "source": {"inline": code}});
            make(c, ns, &name, spec, bounds.clone())?;
            calls(c, &p, ns, &name, &OF_CALLS)?;
            p.fails(&["trigger", &name, "-d", "{\"do\":"], "400 InvalidJson")?;
            p.fails(&["trigger", &name, "-d", &"x".repeat(1001)], "413 BodyTooLarge")?;
            c.ok(&["-n", ns, "delete", "function", &name])?;
        }
    }
    let spec = json!({"runtime": "http", "source": {"image": "skiff/python:1"}, "command": ["python3", "-c", PROGRAM]});
    make(c, ns, "program", spec, bounds.clone())?;
    calls(c, &p, ns, "program", &OF_PROGRAMS)?;

    for class in ["process", "container"] {
        for (language, kind, code, words) in BROKEN {
            let name = format!("{language}-{kind}-{class}");
            let spec = json!({"runtime": language, "isolation": class, "source": {"inline": code}});
            make(c, ns, &name, spec, json!({"scale": {"initial": 0}}))?;
            let o = p.run(&["trigger", &name, "-d", "{}"])?;
            let told = o.err.contains("503 FunctionNotReady") && o.err.contains(words) && o.err.contains("(request ");
            ensure!(o.code == 1 && told, "{name}: {}{}", o.out, o.err);
            c.eventually(&format!("{name}'s owner is told"), |c| {
                let status = c.get(ns, &format!("function/{name}"))?["status"].take();
                let all = status["conditions"].as_array().context("conditions")?.clone();
                let ready = all.iter().find(|c| c["type"] == "Ready").context("the condition Ready")?;
                let condition = ready["status"] == "False"
                    && ready["reason"] == "StartFailed"
                    && ready["message"].as_str().is_some_and(|m| m.contains(words));
                Ok(condition && status["state"] == "Failed" && events(c, ns, &name)?.contains("RevisionFailed"))
            })?;
            c.ok(&["-n", ns, "delete", "function", &name])?;
        }
    }
    for (name, command) in [("absent", "/nothing/there"), ("ends", "false")] {
        let spec = json!({"runtime": "http", "source": {"image": "skiff/busybox:1"}, "command": [command]});
        make(c, ns, name, spec, json!({"scale": {"initial": 0}}))?;
        p.fails(&["trigger", name, "-d", "{}"], "503 FunctionNotReady")?;
    }

    p.fails(&["trigger", "nobody", "-d", "{}"], "404 FunctionNotFound")?;
    let answer = p.ok(&["trigger", "well", "-d", "{}"])?;
    ensure!(answer == "well\n", "{answer}");
    let all = events(c, ns, "well")?;
    ensure!(!all.contains("InstanceEnded"), "the others' faults reached it: {all}");
    c.ok(&["-n", ns, "delete", "function", "--all"])?;
    Ok(())
}
