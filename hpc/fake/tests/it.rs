//! The fake as its users have it: commands, servers, faults.

// A test that cannot go on should say where.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_fake-slurm");

fn fake(args: &[&str]) -> Output {
    let out = Command::new(PROGRAM).args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out
}

fn cluster(settings: &[&str]) -> TempDir {
    let dir = TempDir::new().unwrap();
    fake(&[&["init", dir.path().to_str().unwrap()], settings].concat());
    dir
}

fn fault(dir: &Path, settings: &[&str]) {
    fake(&[&["fault", dir.to_str().unwrap()], settings].concat());
}

/// Runs a command of the cluster in its directory, with a script as standard input.
fn tool(dir: &Path, name: &str, args: &[&str], script: &str) -> (i32, String, String) {
    let mut child = Command::new(dir.join("bin").join(name))
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    (out.status.code().unwrap(), text(out.stdout), text(out.stderr))
}

fn submit(dir: &Path, args: &[&str], script: &str) -> String {
    let (code, out, err) = tool(dir, "sbatch", &[&["--parsable"], args].concat(), &format!("#!/bin/bash\n{script}\n"));
    assert_eq!(code, 0, "{err}");
    out.trim().to_owned()
}

fn queue(dir: &Path, format: &str) -> String {
    let (code, out, err) = tool(dir, "squeue", &["-h", "-t", "all", "-o", format], "");
    assert_eq!(code, 0, "{err}");
    out.trim().to_owned()
}

fn until(what: &str, mut seen: impl FnMut() -> Option<String>) -> String {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = seen() {
            return found;
        }
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn until_state(dir: &Path, id: &str, state: &str) {
    until(&format!("{id} {state}: {}", queue(dir, "%i %T %r")), || {
        queue(dir, "%i %T").lines().any(|l| l == format!("{id} {state}")).then(String::new)
    });
}

#[test]
fn scripts_run_and_end_as_they_do() {
    let dir = cluster(&["minute_ms=300"]);
    let d = dir.path();
    let ok = submit(d, &["-J", "a", "--gres=gpu:2"], "echo out $CUDA_VISIBLE_DEVICES; echo err >&2");
    let bad = submit(d, &[], "exit 3");
    let killed = submit(d, &[], "kill -9 $$");
    let long = submit(d, &["-t", "1"], "sleep 60");
    let cancelled = submit(d, &[], "sleep 60");
    let warned = submit(d, &["-t", "2", "--signal=B:USR1@60"], "trap 'echo warned; exit 4' USR1; sleep 60 & wait");
    until_state(d, &cancelled, "RUNNING");
    assert_eq!(tool(d, "scancel", &[&cancelled], "").0, 0);
    for (id, state) in [
        (&ok, "COMPLETED"),
        (&bad, "FAILED"),
        (&killed, "FAILED"),
        (&long, "TIMEOUT"),
        (&cancelled, "CANCELLED"),
        (&warned, "FAILED"),
    ] {
        until_state(d, id, state);
    }
    assert_eq!(std::fs::read_to_string(d.join(format!("slurm-{ok}.out"))).unwrap(), "out 0,1\nerr\n");
    let exits = |id: &str| {
        let (_, out, _) = tool(d, "scontrol", &["-o", "show", "job", id], "");
        out.split_whitespace().find_map(|w| w.strip_prefix("ExitCode=")).unwrap().to_owned()
    };
    assert_eq!([&ok, &bad, &killed, &long, &warned].map(|id| exits(id)), ["0:0", "3:0", "0:9", "0:15", "4:0"]);
    let log = std::fs::read_to_string(d.join("jobcomp.log")).unwrap();
    assert_eq!(log.lines().count(), 6, "{log}");
    assert!(log.contains("JobState=TIMEOUT"));
}

#[test]
fn what_waits_says_why_and_goes_on() {
    let dir = cluster(&[]);
    let d = dir.path();
    let first = submit(d, &["--hold", "-J", "x"], "true");
    let after = submit(d, &["-d", &format!("afterok:{first}")], "true");
    let same = submit(d, &["-d", "singleton", "-J", "x"], "true");
    let array = submit(d, &["--array=0-3%2", "--hold"], "echo $SLURM_ARRAY_TASK_ID");
    let waiting = queue(d, "%i|%r");
    assert_eq!(
        waiting,
        format!("{first}|JobHeldUser\n{after}|Dependency\n{same}|Dependency\n{array}_[0-3%2]|JobHeldUser")
    );
    let gone = submit(d, &["-d", &format!("afternotok:{first}")], "true");
    for id in [&first, &array] {
        assert_eq!(tool(d, "scontrol", &["release", id], "").0, 0);
    }
    for id in [&first, &after, &same] {
        until_state(d, id, "COMPLETED");
    }
    until_state(d, &format!("{array}_3"), "COMPLETED");
    assert!(queue(d, "%i|%r").contains(&format!("{gone}|DependencyNeverSatisfied")));
    assert_eq!(std::fs::read_to_string(d.join(format!("slurm-{array}_2.out"))).unwrap(), "2\n");
}

#[test]
fn every_state_and_flag_can_be_had() {
    let dir = cluster(&["accounting=true"]);
    let d = dir.path();
    let words = fake_slurm::words::STATES.iter().map(|s| s.0).chain(fake_slurm::words::FLAGS.iter().map(|f| f.0));
    for word in words {
        let id = submit(d, &[], &format!("#FAKE {word}"));
        let state = if let Some(flag) = fake_slurm::words::FLAGS.iter().find(|f| f.0 == word) {
            if flag.1.is_empty() { flag.2 } else { word }
        } else {
            word
        };
        until_state(d, &id, state);
    }
    let id = submit(d, &[], "#FAKE PENDING/Resources@50ms CF@50ms RUNNING@50ms COMPLETING@50ms FAILED/x_y=7,9");
    until_state(d, &id, "FAILED");
    let (_, out, _) =
        tool(d, "sacct", &["-n", "-P", "-X", "-j", &id, "-o", "State,ExitCode,DerivedExitCode,Reason"], "");
    assert_eq!(out, "FAILED|7:0|9:0|x y\n");
    let id = submit(d, &[], "#FAKE RUNNING@10ms GONE");
    until("gone", || tool(d, "squeue", &["-j", &id], "").2.contains("Invalid job id").then(String::new));
    let id = submit(d, &["--no-requeue"], "sleep 60");
    until_state(d, &id, "RUNNING");
    tool(d, "scontrol", &["update", "NodeName=n1", "State=DOWN", "Reason=lost"], "");
    until_state(d, &id, "NODE_FAIL");
}

#[test]
fn impossible_wishes_are_refused_in_slurms_words() {
    let dir = cluster(&[]);
    let d = dir.path();
    for (args, words) in [
        (vec!["-p", "nope"], "invalid partition specified: nope"),
        (vec!["--gres=gpu:9"], "Requested node configuration is not available"),
        (vec!["--foo"], "unrecognized option '--foo'"),
        (vec!["--array=x"], "Invalid job array specification"),
    ] {
        let (code, out, err) = tool(d, "sbatch", &args, "#!/bin/sh\n");
        assert!(code != 0 && out.is_empty() && err.contains(words), "{args:?}: {err}");
    }
    fault(d, &["down_ms=60000"]);
    let (code, _, err) = tool(d, "squeue", &[], "");
    assert!(code == 1 && err.contains("Unable to contact slurm controller"), "{err}");
    assert!(!Command::new(PROGRAM).args(["fault", d.to_str().unwrap(), "nonsense=1"]).status().unwrap().success());
}

/// A server, ended with the test.
struct Served(Child, Value);
impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn serve(dir: &Path) -> Served {
    let mut child = Command::new(PROGRAM)
        .args(["serve", dir.to_str().unwrap(), "--ssh", "127.0.0.1:0", "--rest", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    Served(child, serde_json::from_str(&line).unwrap())
}

/// A request to the REST server; `None` when the connection ended without an answer.
fn rest(served: &Served, method: &str, path: &str, token: &str, body: &Value) -> Option<(u16, Value)> {
    let mut wire = TcpStream::connect(served.1["rest"].as_str().unwrap()).unwrap();
    let body = body.to_string();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-slurm-user-name: user\r\nx-slurm-user-token: {token}\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    wire.write_all((head + &body).as_bytes()).unwrap();
    let mut answer = String::new();
    let _ = wire.read_to_string(&mut answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, serde_json::from_str(body).unwrap_or_default()))
}

#[test]
fn rest_answers_as_slurmrestd() {
    let dir = cluster(&["run=false", "simulated_ms=60000"]);
    let d = dir.path();
    let served = serve(d);
    let job = |extra: Value| {
        let mut job = serde_json::json!({"name": "r", "current_working_directory": "/", "environment": {"A": "b"}});
        job.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        serde_json::json!({"script": "#!/bin/sh\n", "job": job})
    };
    let send = |extra: Value| rest(&served, "POST", "/slurm/v0.0.38/job/submit", "token", &job(extra)).unwrap();
    let (status, said) = send(serde_json::json!({"gres": "gpu:1", "time_limit": 5}));
    assert_eq!((status, &said["job_id"]), (200, &1.into()));
    let error = |said: &Value| (said["errors"][0]["error_code"].clone(), said["errors"][0]["error"].clone());
    let (status, said) = send(serde_json::json!({"partition": "nope"}));
    assert_eq!((status, error(&said)), (500, (2000.into(), "Invalid partition name specified".into())));
    let (status, said) = send(serde_json::json!({"foo": 1}));
    assert_eq!((status, &said["errors"][0]["description"]), (400, &"Unknown key \"foo\"".into()));
    let (status, said) = send(serde_json::json!({"environment": {}}));
    assert_eq!((status, error(&said).0), (400, 2127.into()));
    let get = |path: &str, token: &str| rest(&served, "GET", path, token, &Value::Null).unwrap();
    assert_eq!(get("/slurm/v0.0.38/jobs", "").0, 401);
    assert_eq!(get("/slurm/v0.0.38/jobs", "bad").0, 500);
    assert_eq!(get("/slurm/v0.0.99/jobs", "token").0, 404);
    let (status, said) = get("/slurm/v0.0.38/job/99", "token");
    assert_eq!((status, &said["errors"][0]["error_number"]), (500, &2017.into()));
    assert_eq!(get("/slurm/v0.0.38/job/1", "token").1["jobs"][0]["job_state"], "RUNNING");
    let late = get("/slurm/v0.0.40/job/1", "token").1;
    assert_eq!(late["jobs"][0]["job_state"], serde_json::json!(["RUNNING"]));
    assert_eq!(late["jobs"][0]["time_limit"]["number"], 5);
    assert_eq!(rest(&served, "DELETE", "/slurm/v0.0.40/job/1", "token", &Value::Null).unwrap().0, 200);
    assert_eq!(get("/slurm/v0.0.38/job/1", "token").1["jobs"][0]["job_state"], "CANCELLED");
    let paths = get("/openapi/v3", "token").1;
    assert!(paths["paths"]["/slurm/v0.0.40/job/submit"]["post"].is_object());
    fault(d, &["drop_answer=1"]);
    assert!(
        rest(&served, "POST", "/slurm/v0.0.38/job/submit", "token", &job(serde_json::json!({"name": "lost"})))
            .is_none()
    );
    let counts: Value = serde_json::from_slice(&fake(&["counts", d.to_str().unwrap()]).stdout).unwrap();
    assert_eq!(counts["names"]["lost"], 1);
}

/// A command through the system's own client.
fn ssh(served: &Served, dir: &Path, command: &str) -> Output {
    let at = served.1["ssh"].as_str().unwrap();
    let (host, port) = at.rsplit_once(':').unwrap();
    Command::new("ssh")
        .args(["-i", dir.join("key").to_str().unwrap(), "-p", port, "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"])
        .args(["-o", &format!("UserKnownHostsFile={}", dir.join("known_hosts").display())])
        .arg(format!("user@{host}"))
        .arg(command)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn ssh_runs_commands_and_loses_answers() {
    if Command::new("ssh").arg("-V").output().is_err() {
        eprintln!("no ssh on this machine");
        return;
    }
    let dir = cluster(&["run=false"]);
    let d = dir.path();
    fake(&["key", d.to_str().unwrap(), "key"]);
    let served = serve(d);
    let out = ssh(&served, d, "printf '#!/bin/sh\\n' | sbatch --parsable -J s; exit 7");
    assert_eq!(
        (out.status.code(), String::from_utf8_lossy(&out.stdout).trim()),
        (Some(7), "1"),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    fault(d, &["drop_answer=1"]);
    let out = ssh(&served, d, "printf '#!/bin/sh\\n' | sbatch --parsable -J lost");
    assert_eq!((out.status.code(), out.stdout.len()), (Some(255), 0));
    fault(d, &["none"]);
    assert!(String::from_utf8_lossy(&ssh(&served, d, "squeue -h -t all -o %j").stdout).contains("lost"));
    std::fs::remove_file(d.join("authorized_keys")).unwrap();
    assert_eq!(ssh(&served, d, "true").status.code(), Some(255));
}

#[test]
fn chance_is_the_same_every_time() {
    let run = || {
        let dir = cluster(&["run=false"]);
        fault(dir.path(), &["drop_answer=0.5", "seed=7"]);
        (0..12).map(|_| tool(dir.path(), "sbatch", &["--parsable"], "#!/bin/sh\n").0).collect::<Vec<_>>()
    };
    let first = run();
    assert_eq!(first, run());
    assert!(first.contains(&0) && first.contains(&1));
}

#[test]
fn jobs_outlive_the_controller_that_stays() {
    let dir = cluster(&["run=false", "simulated_ms=3600000"]);
    let d = dir.path();
    assert_eq!(submit(d, &[], "#!/bin/sh\n"), "1");
    let served = serve(d);
    for id in 2..30 {
        assert_eq!(submit(d, &[], "#!/bin/sh\n"), id.to_string());
    }
    // What it knows, those know too that ask nobody, also after it was killed; and what they did, the next one knows.
    drop(served);
    assert_eq!(queue(d, "%i").lines().count(), 29);
    assert_eq!(tool(d, "scancel", &["7"], "").0, 0);
    let _served = serve(d);
    until_state(d, "7", "CANCELLED");
    assert_eq!(submit(d, &[], "#!/bin/sh\n"), "30");
}
