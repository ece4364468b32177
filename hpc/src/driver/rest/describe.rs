//! A job as slurmrestd takes it, from sbatch's options.
//!
//! v0.0.38 takes what its published document does not name (`nodelist`, `exclude_nodes`, and `nodes` as text) and passes over
//! what it does name: `nodes` as the list of two numbers becomes one node. What is here was seen on 22.05.

use serde_json::{Map, Value, json};

use crate::catalogue::parse_minutes;
use crate::driver::SlurmError;
use crate::script::Opt;

/// From this version on jobs are described with the newer names.
const NEWER: u32 = 40;

/// MiB of Slurm's memory form.
fn mebibytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let n: u64 = digits.parse().ok()?;
    Some(match text.chars().last()? {
        'K' => n.div_ceil(1024),
        'G' => n.checked_mul(1024)?,
        'T' => n.checked_mul(1024 * 1024)?,
        _ => n,
    })
}

/// The description of a job, from sbatch's options.
///
/// # Errors
/// When the version has no field for one.
pub(super) fn describe(options: &[Opt], version: u32) -> Result<Value, SlurmError> {
    let newer = version >= NEWER;
    let mut job = Map::new();
    for option in options {
        let value = option.value.as_deref().unwrap_or_default();
        let none = || SlurmError::Unsupported(format!("slurmrestd v0.0.{version} has no field for --{}", option.name));
        let int = || value.parse::<i64>().map_err(|_| none());
        let set = |n: u64| if newer { json!({"set": true, "number": n}) } else { json!(n) };
        let tres = |prefix: &str| {
            let each = value.split(',').map(|part| format!("{prefix}{part}"));
            each.collect::<Vec<_>>().join(",")
        };
        let mut put = |key: &str, value: Value| {
            job.insert(key.to_owned(), value);
        };
        match (option.name.as_str(), newer) {
            ("job-name", _) => put("name", json!(value)),
            ("chdir", _) => put("current_working_directory", json!(value)),
            ("output", _) => put("standard_output", json!(value)),
            ("error", _) => put("standard_error", json!(value)),
            ("open-mode", false) => put("open_mode", json!(value)),
            ("open-mode", true) => put("open_mode", json!([value.to_ascii_uppercase()])),
            ("comment" | "partition" | "account" | "qos" | "reservation" | "array" | "dependency" | "licenses", _) => {
                put(&option.name, json!(value));
            }
            ("constraint", _) => put("constraints", json!(value)),
            ("prefer" | "wckey", _) => put(&option.name, json!(value)),
            ("time", _) => put("time_limit", set(parse_minutes(value).ok_or_else(none)?)),
            ("nodes", _) => put("nodes", json!(value)),
            ("ntasks", _) => put("tasks", json!(int()?)),
            ("ntasks-per-node", _) => put("tasks_per_node", json!(int()?)),
            ("cpus-per-task", _) => put("cpus_per_task", json!(int()?)),
            ("cpus-per-gpu", false) => put("cpus_per_gpu", json!(value)),
            ("cpus-per-gpu", true) => put("cpus_per_tres", json!(format!("gres/gpu:{value}"))),
            ("mem", _) => put("memory_per_node", set(mebibytes(value).ok_or_else(none)?)),
            ("mem-per-cpu", _) => put("memory_per_cpu", set(mebibytes(value).ok_or_else(none)?)),
            ("mem-per-gpu", false) => put("memory_per_gpu", json!(mebibytes(value).ok_or_else(none)?)),
            ("mem-per-gpu", true) => {
                put("memory_per_tres", json!(format!("gres/gpu:{}", mebibytes(value).ok_or_else(none)?)));
            }
            ("gres", false) => put("gres", json!(value)),
            ("gres", true) => put("tres_per_node", json!(tres("gres/"))),
            ("gpus" | "gpus-per-task" | "gpus-per-socket", false) => put(&option.name.replace('-', "_"), json!(value)),
            ("gpus", true) => put("tres_per_job", json!(tres("gres/gpu:"))),
            ("gpus-per-task", true) => put("tres_per_task", json!(tres("gres/gpu:"))),
            ("gpus-per-socket", true) => put("tres_per_socket", json!(tres("gres/gpu:"))),
            ("nodelist", true) => put("required_nodes", json!(value.split(',').collect::<Vec<_>>())),
            ("exclude", true) => put("excluded_nodes", json!(value.split(',').collect::<Vec<_>>())),
            ("nodelist", false) => put("nodelist", json!(value)),
            ("exclude", false) => put("exclude_nodes", json!(value)),
            ("signal", false) if value.starts_with("B:") => {
                let why = "takes signals for steps only (signal.steps: true), not for the script";
                return Err(SlurmError::Unsupported(format!("slurmrestd v0.0.{version} {why}")));
            }
            ("signal", false) => put("signal", json!(value)),
            ("signal", true) => {
                let (flags, rest) = match value.strip_prefix("B:") {
                    Some(rest) => (json!(["BATCH_JOB"]), rest),
                    None => (json!([]), value),
                };
                let (name, seconds) = rest.split_once('@').unwrap_or((rest, "60"));
                put("kill_warning_signal", json!(name));
                put("kill_warning_delay", set(seconds.parse().map_err(|_| none())?));
                put("kill_warning_flags", flags);
            }
            ("exclusive", false) => put("exclusive", json!("exclusive")),
            ("exclusive", true) => put("shared", json!(["none"])),
            ("requeue", _) => put("requeue", json!(true)),
            ("no-requeue", _) => put("requeue", json!(false)),
            ("mail-user", _) => put("mail_user", json!(value)),
            ("mail-type", false) => put("mail_type", json!(value)),
            ("mail-type", true) => {
                let all = value.to_ascii_uppercase().replace("ALL", "BEGIN,END,FAIL,REQUEUE,STAGE_OUT");
                put("mail_type", json!(all.split(',').collect::<Vec<_>>()));
            }
            ("distribution", _) => put("distribution", json!(value)),
            ("mincpus", _) => put("minimum_cpus_per_node", json!(int()?)),
            ("tmp", _) => put("temporary_disk_per_node", json!(mebibytes(value).ok_or_else(none)?)),
            ("threads-per-core", _) => put("threads_per_core", json!(int()?)),
            ("time-min", _) => put("time_minimum", set(parse_minutes(value).ok_or_else(none)?)),
            ("begin", false) => put("begin_time", json!(value)),
            ("deadline", false) => put("deadline", json!(value)),
            ("nice", _) => put("nice", json!(int()?)),
            _ => return Err(none()),
        }
    }
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let environment = if newer { json!([format!("PATH={path}")]) } else { json!({"PATH": path}) };
    job.insert("environment".into(), environment);
    Ok(Value::Object(job))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(all: &[(&str, Option<&str>)]) -> Vec<Opt> {
        all.iter().map(|(n, v)| Opt { name: (*n).into(), value: v.map(str::to_owned) }).collect()
    }

    #[test]
    fn options_become_fields_of_old_and_new() {
        let all = options(&[
            ("job-name", Some("n")),
            ("time", Some("1-00:00:00")),
            ("nodes", Some("2-4")),
            ("mem", Some("16G")),
            ("gres", Some("gpu:a100:2,shard:1")),
            ("gpus", Some("v100:2")),
            ("open-mode", Some("append")),
            ("exclusive", None),
            ("no-requeue", None),
            ("nodelist", Some("n1,n2")),
            ("exclude", Some("n3")),
            ("signal", Some("USR1@90")),
            ("mail-type", Some("end")),
        ]);
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        assert_eq!(
            describe(&all, 38).unwrap(),
            json!({"name": "n", "time_limit": 1440, "nodes": "2-4", "memory_per_node": 16_384, "gres": "gpu:a100:2,shard:1",
                "gpus": "v100:2", "open_mode": "append", "exclusive": "exclusive", "requeue": false,
                "nodelist": "n1,n2", "exclude_nodes": "n3", "signal": "USR1@90", "mail_type": "end",
                "environment": {"PATH": path}})
        );
        assert_eq!(
            describe(&all, 42).unwrap(),
            json!({"name": "n", "time_limit": {"set": true, "number": 1440}, "nodes": "2-4",
                "memory_per_node": {"set": true, "number": 16_384}, "tres_per_node": "gres/gpu:a100:2,gres/shard:1",
                "tres_per_job": "gres/gpu:v100:2", "open_mode": ["APPEND"], "shared": ["none"], "requeue": false,
                "required_nodes": ["n1", "n2"], "excluded_nodes": ["n3"], "kill_warning_signal": "USR1",
                "kill_warning_delay": {"set": true, "number": 90}, "kill_warning_flags": [], "mail_type": ["END"],
                "environment": [format!("PATH={path}")]})
        );
        for bad in [("signal", Some("B:USR1@60")), ("contiguous", None)] {
            assert!(matches!(describe(&options(&[bad]), 38), Err(SlurmError::Unsupported(_))), "{bad:?}");
        }
    }
}
