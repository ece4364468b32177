use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::{GpuJobSpec, HpcClusterSpec};

fn spec(value: serde_json::Value) -> GpuJobSpec {
    serde_json::from_value(value).unwrap()
}

fn cluster(work: &str) -> HpcClusterSpec {
    serde_json::from_value(json!({"local": {}, "workDirectory": work})).unwrap()
}

fn plan<'a>(spec: &'a GpuJobSpec, cluster: &'a HpcClusterSpec, directory: &'a str) -> Plan<'a> {
    Plan {
        spec,
        cluster,
        name: "skiff-u-1",
        object: "ns/job",
        directory: Some(directory),
        attempt: 1,
        dependencies: &[],
        secrets: false,
    }
}

fn header(spec: GpuJobSpec) -> Vec<String> {
    let cluster = cluster("/w");
    let made = script(&plan(&spec, &cluster, "/w/d")).unwrap();
    made.text.lines().filter_map(|l| l.strip_prefix("#SBATCH ")).map(str::to_owned).collect()
}

#[test]
fn options_are_sbatchs() {
    let common = |rest: &[&str]| -> Vec<String> {
        let head = [
            "--job-name=skiff-u-1",
            r#"--comment='{"attempt":"1","object":"ns/job","skiff":"skiff-u-1"}'"#,
            "--chdir=/w/d",
        ];
        head.iter().chain(rest).map(|s| (*s).to_owned()).collect()
    };
    let run = json!({"command": ["true"]});
    let out = ["--output=/w/d/.skiff/out.1", "--error=/w/d/.skiff/err.1", "--open-mode=append"];
    let with = |rest: &[&str]| common(&[&out[..], rest].concat());
    let table = [
        (json!({}), with(&["--dependency=singleton"])),
        (
            json!({"partition": "a100", "nodes": 2, "tasksPerNode": 4, "cpusPerTask": 16, "gpus": [{"count": 4}],
                "time": "1-00:00:00"}),
            with(&[
                "--partition=a100",
                "--time=1-00:00:00",
                "--nodes=2",
                "--ntasks-per-node=4",
                "--cpus-per-task=16",
                "--gres=gpu:4",
                "--dependency=singleton",
            ]),
        ),
        (
            json!({"gpus": [{"count": 8, "per": "Job"}, {"type": "v100", "count": 1, "per": "Task"},
                {"type": "a", "count": 1}, {"type": "b", "count": 2}], "gres": ["shard:2"], "maxNodes": 3,
                "memoryPerGpu": "15G", "cpusPerGpu": 6, "tasks": 9}),
            with(&[
                "--nodes=1-3",
                "--ntasks=9",
                "--cpus-per-gpu=6",
                "--mem-per-gpu=15G",
                "--gres=gpu:a:1,gpu:b:2,shard:2",
                "--gpus=8",
                "--gpus-per-task=v100:1",
                "--dependency=singleton",
            ]),
        ),
        (
            json!({"array": {"tasks": "0-9:3,12", "limit": 2}, "signal": {"name": "USR1", "seconds": 90}, "exclusive": true,
                "requeue": false, "extraOptions": ["--nice=5", "--contiguous"], "constraint": "[r1*2&r2]",
                "qos": "q", "account": "c", "reservation": "r", "nodeList": "n[1-3]", "exclude": "n2"}),
            common(&[
                "--output=/w/d/.skiff/out.1.%a",
                "--error=/w/d/.skiff/err.1.%a",
                "--open-mode=append",
                "--account=c",
                "--qos=q",
                "--reservation=r",
                "--constraint=[r1*2&r2]",
                "--nodelist=n[1-3]",
                "--exclude=n2",
                "--array=0-9:3,12%2",
                "--signal=B:USR1@90",
                "--exclusive",
                "--no-requeue",
                "--nice=5",
                "--contiguous",
            ]),
        ),
        (
            json!({"signal": {"name": "TERM", "steps": true}, "requeue": true}),
            with(&["--signal=TERM@60", "--dependency=singleton", "--requeue"]),
        ),
    ];
    for (resources, want) in table {
        let got = header(spec(json!({"run": run, "resources": resources})));
        assert_eq!(got, want);
    }
}

#[test]
fn lines_of_sbatch_hold_one_value_or_none() {
    assert_eq!(quote_option("a", "x y"), Err(Unsafe { option: "a".into(), value: "x y".into() }));
    for bad in ["", "a\nb", "a'b", "a\\b", "ä", "a\tb"] {
        assert!(quote_option("a", bad).is_err(), "{bad:?}");
    }
    assert_eq!(quote_option("a", "a#\"b").unwrap(), "'a#\"b'");
}

#[test]
fn what_schemas_do_not_see() {
    let of = |value| faults(&spec(value));
    assert!(of(json!({"run": {"command": ["true"]}, "outputs": ["*.dat", "a/**"]})).is_empty());
    let bad = [
        json!({"run": {"command": ["a\u{0}b"]}}),
        json!({"run": {"command": [""]}}),
        json!({"run": {"script": "\u{0}"}}),
        json!({"run": {"command": ["x"]}, "outputs": ["../x"]}),
        json!({"run": {"command": ["x"]}, "source": {"inline": {"a/../../x": ""}}}),
        json!({"run": {"command": ["x"]}, "source": {"inline": {"/x": ""}}}),
        json!({"run": {"command": ["x"]}, "inputs": [{"path": ".skiff/env", "text": ""}]}),
        json!({"run": {"command": ["x"]}, "outputs": ["/etc/*"]}),
        json!({"run": {"command": ["x"]}, "env": [{"name": "skiff_command", "value": "x"}]}),
        json!({"run": {"command": ["x"]}, "resources": {"extraOptions": ["--job-name=x"]}}),
        json!({"run": {"command": ["x"]}, "resources": {"extraOptions": ["--depend=x"]}}),
        json!({"run": {"command": ["x"]}, "resources": {"extraOptions": ["--wrap=x"]}}),
    ];
    for value in bad {
        assert_eq!(of(value.clone()).len(), 1, "{value}");
    }
}

#[test]
fn names_and_patterns() {
    let uid = "6a1f8e1c-1111-2222-3333-444455556666";
    assert_eq!(parse_name(&name(uid, 12)), Some((uid, 12)));
    for other in ["skiff-", "skiff-a", "x-a-1", "skiff--1", "skiff-a-b"] {
        assert_eq!(parse_name(other), None, "{other}");
    }
    assert_eq!(resolve("/d/%j.%a.%x%%", 7, Some(3), "n"), "/d/7.3.n%");
}

/// Runs a script where every program it may call writes its arguments down.
fn run(text: &str, dir: &Path) -> (i32, Vec<Vec<String>>, String) {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    for tool in ["srun", "nvcc", "make", "show"] {
        let path = bin.join(tool);
        let body = "#!/bin/bash\n{ printf '%s\\0' \"${0##*/}\" \"$@\"; printf '\\1'; } >>\"$ARGV\"\n";
        std::fs::write(&path, body).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&path, mode).unwrap();
    }
    let file = dir.join("script.sh");
    std::fs::write(&file, text).unwrap();
    let syntax = Command::new("bash").arg("-n").arg(&file).output().unwrap();
    assert!(syntax.status.success(), "{}", String::from_utf8_lossy(&syntax.stderr));
    let argv = dir.join("argv");
    let _ = std::fs::remove_file(&argv);
    let mut command = Command::new("bash");
    command.arg(&file).env_clear().env("PATH", format!("{}:/usr/bin:/bin", bin.display())).env("ARGV", &argv);
    command.env("SLURM_JOB_ID", "7").stdin(Stdio::null()).current_dir(dir);
    let out = command.output().unwrap();
    let calls = std::fs::read(&argv).unwrap_or_default();
    let calls = calls.split(|b| *b == 1).filter(|c| !c.is_empty());
    let calls = calls
        .map(|c| {
            let words = c.split(|b| *b == 0).map(|w| String::from_utf8_lossy(w).into_owned());
            let mut words: Vec<_> = words.collect();
            words.pop();
            words
        })
        .collect();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    (out.status.code().unwrap_or(-1), calls, said)
}

const MODULE: &str = r#"module() { { printf '%s\0' module "$@"; printf '\1'; } >>"$ARGV"; }"#;

/// Any text but what separates calls in these tests.
fn text() -> impl Strategy<Value = String> {
    let hostile = prop::sample::select(vec![
        "'",
        "\"",
        "`",
        "$(touch /tmp/skiff-broken)",
        "\n#SBATCH --uid=0\n",
        "; exit 3",
        "\\",
        "\r\n",
        "SKIFF_END\n",
        "*",
        "~",
        "!",
        "${x}",
        "&&",
        "|",
        "<<EOF",
        ")",
        "}",
        "\t",
        " ",
        "-n",
        "=",
        "ü",
        "\u{7f}",
    ]);
    let any = "[^\u{0}\u{1}]{0,6}";
    prop::collection::vec(prop_oneof![hostile.prop_map(str::to_owned), any.prop_map(String::from)], 0..5)
        .prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Whatever is in the fields, programs get it as it is, and nothing else happens.
    #[test]
    fn nothing_breaks_out(words in prop::collection::vec(text(), 0..4), value in text(), stdin in text(), flag in text()) {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("w").display().to_string();
        let job = format!("{work}/d");
        let mut cluster = cluster(&work);
        cluster.prologue = vec![MODULE.into()];
        let mut command = vec!["show".to_owned()];
        command.extend(words.clone());
        let spec = spec(json!({
            "run": {"command": command, "launcher": "Srun"},
            "modules": ["cuda/12"],
            "env": [{"name": "V", "value": value}],
            "stdin": stdin,
            "build": {"nvcc": {"sources": ["a.cu"], "output": "prog", "flags": [flag]}, "make": {"targets": [flag]}},
        }));
        let made = script(&plan(&spec, &cluster, &job)).unwrap();
        prop_assert!(!made.text.contains("\r\n"));
        let (code, calls, said) = run(&made.text, dir.path());
        prop_assert_eq!(code, 0, "{}", said);
        let s = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let mut srun = s(&["srun", "--", "show"]);
        srun.extend(words);
        let want = vec![s(&["module", "load", "cuda/12"]), s(&["nvcc", "-o", "prog", &flag, "a.cu"]), s(&["make", &flag]),
            s(&["module", "load", "cuda/12"]), srun];
        let marker = std::fs::read_to_string(format!("{work}/{MARKERS}/skiff-u-1")).unwrap();
        prop_assert!(marker.starts_with("end 0 run 7 0 "), "{}", marker);
        prop_assert_eq!(calls, want);
        let read = std::fs::read_to_string(format!("{job}/{OWN}/stdin.7")).unwrap();
        prop_assert_eq!(read, stdin);
    }

    /// A script of a person ends as it ends, whatever is in it, and the marker says so.
    #[test]
    fn scripts_stay_in_their_shell(mess in text(), code in 0..4) {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path().join("w").display().to_string();
        let job = format!("{work}/d");
        let cluster = cluster(&work);
        let spec = spec(json!({"run": {"script": format!("exit {code}\n{mess}")}}));
        let made = script(&plan(&spec, &cluster, &job)).unwrap();
        let (ended, ..) = run(&made.text, dir.path());
        prop_assert_eq!(ended, code);
        let marker = std::fs::read_to_string(format!("{work}/{MARKERS}/skiff-u-1")).unwrap();
        let start = format!("end {code} run 7 ");
        prop_assert!(marker.starts_with(&start), "{}", marker);
    }

    /// Words of bash are the values they were made of.
    #[test]
    fn words_are_their_values(value in text()) {
        let line = format!("printf %s {}", quote(&value));
        let out = Command::new("bash").arg("-c").arg(line).output().unwrap();
        prop_assert_eq!(String::from_utf8(out.stdout).unwrap(), value);
    }
}

fn frame(value: serde_json::Value) -> (i32, String, String) {
    let dir = tempfile::tempdir().unwrap();
    let work = dir.path().join("w").display().to_string();
    let job = format!("{work}/d");
    let cluster = cluster(&work);
    let spec = spec(value);
    let made = script(&plan(&spec, &cluster, &job)).unwrap();
    let (code, _, said) = run(&made.text, dir.path());
    let marker = std::fs::read_to_string(format!("{work}/{MARKERS}/skiff-u-1")).unwrap_or_default();
    (code, said, marker)
}

#[test]
fn the_frame_tells_how_it_ended() {
    let failed = json!({"run": {"command": ["true"]}, "build": {"commands": ["true", "false", "echo not reached"]}});
    let (code, said, marker) = frame(failed);
    assert_eq!((code, marker.starts_with("end 1 build 7 ")), (1, true), "{marker}");
    assert!(said.contains("the build failed") && !said.contains("not reached"), "{said}");

    let unknown = json!({"run": {"command": ["no-such-program"]}});
    let (code, _, marker) = frame(unknown);
    assert_eq!((code, marker.starts_with("end 127 run 7 ")), (127, true), "{marker}");

    // No shell reads a command: this is no builtin.
    let builtin = json!({"run": {"command": ["exit", "0"]}});
    assert_eq!(frame(builtin).0, 127);

    let own = json!({"run": {"script": "kill -9 $$"}});
    assert!(frame(own).2.starts_with("end 137 run 7 "));

    let stdin = json!({"run": {"command": ["cat"]}, "stdin": "a\nb\n"});
    assert_eq!(frame(stdin).1, "a\nb\n");
    let env = json!({"run": {"script": "echo \"$A\""}, "env": [{"name": "A", "value": "x  'y'"}]});
    assert_eq!(frame(env).1, "x  'y'\n");
}

#[test]
fn signals_reach_what_runs() {
    let script = "trap 'echo got; exit 5' USR1\nkill -USR1 $PPID\nwhile :; do sleep 0.05; done\n";
    let (code, said, marker) = frame(json!({"run": {"script": script}}));
    assert_eq!((code, said.as_str()), (5, "got\n"), "{marker}");
}
