//! A server like slurmrestd: its answers have the shapes of v0.0.38 (Slurm 22.05) or v0.0.40 (23.11), as the path says, with Slurm's
//! error numbers and the HTTP status that slurmrestd gives, which says little.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::config::Loss;
use crate::fields::{Shown, collapse, node_list, value, wait_status};
use crate::process::settle;
use crate::schedule::{UNLAUNCHED, minutes};
use crate::state::{Job, Locked, Store, now};
use crate::submit::{Refused, Submission, directives, options};
use crate::tools::{cancel, change_job, node_word, same_job};
use crate::words::printed;

/// Bytes of a request that are read.
const BODY_MAX: usize = 8 << 20;

/// Serves until the program ends. Answers the address.
///
/// # Errors
/// When there is no such address.
pub async fn serve(store: Store, at: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(at).await.with_context(|| at.to_string())?;
    let at = listener.local_addr()?;
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let store = store.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| answer(store.clone(), request));
                // An error here is an answer that was lost on purpose, or a client that went.
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    Ok(at)
}

/// An answer that does not come: the connection ends.
#[derive(Debug)]
struct Lost;
impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("lost")
    }
}
impl std::error::Error for Lost {}

/// What a request comes to.
enum Outcome {
    Answer(StatusCode, Value),
    Text(StatusCode, &'static str),
    Lost,
}

async fn answer(store: Store, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Lost> {
    let faults = store.faults().map_err(|_| Lost)?;
    tokio::time::sleep(Duration::from_millis(faults.delay_ms)).await;
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_MAX).collect().await.map_err(|_| Lost)?.to_bytes();
    // The lock is waited for on a thread of its own.
    let outcome = tokio::task::spawn_blocking(move || handle(&store, &head, &body)).await;
    let (status, kind, bytes) = match outcome {
        Ok(Ok(Outcome::Answer(status, value))) => (status, "application/json", value.to_string()),
        Ok(Ok(Outcome::Text(status, text))) => (status, "text/plain", text.to_owned()),
        Ok(Ok(Outcome::Lost)) => {
            if faults.loss == Loss::Hang {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            return Err(Lost);
        }
        Ok(Err(e)) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{e:#}")),
        Err(_) => return Err(Lost),
    };
    Response::builder().status(status).header("content-type", kind).body(Full::new(bytes.into())).map_err(|_| Lost)
}

fn handle(store: &Store, head: &http::request::Parts, body: &[u8]) -> anyhow::Result<Outcome> {
    let config = store.config()?;
    let header = |name: &str| head.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let (user, token) = (header("x-slurm-user-name"), header("x-slurm-user-token"));
    if token.is_empty() {
        return Ok(Outcome::Text(StatusCode::UNAUTHORIZED, "Authentication failure"));
    }
    let path = head.uri.path();
    if path.starts_with("/openapi") {
        return Ok(Outcome::Answer(StatusCode::OK, openapi(&config)));
    }
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let not_found =
        Outcome::Text(StatusCode::NOT_FOUND, "Unable find requested URL. Please view /openapi/v3 for API reference.");
    let [set @ ("slurm" | "slurmdb"), version, rest @ ..] = &parts[..] else { return Ok(not_found) };
    if !config.rest_versions.iter().any(|v| v == version) || (*set == "slurmdb" && !config.accounting) {
        return Ok(not_found);
    }
    let rest_of = Api { late: *version > "v0.0.38", version, release: &config.version };
    let faults = store.faults()?;
    // A token that does not hold shows late, as slurmrestd has it: the controller does not speak to it.
    if token != config.token || faults.expired || user != config.user {
        return Ok(rest_of.failed(-1, "Unspecified error", "slurm_load_jobs", "Failed while looking for jobs"));
    }
    if now() < faults.down_until {
        return Ok(rest_of.failed(1007, "Unable to contact slurm controller (connect failure)", "slurm_load_jobs", ""));
    }
    let mut locked = store.lock()?;
    let submits = head.method == Method::POST && *rest == ["job", "submit"];
    if !submits {
        settle(locked)?;
        locked = store.lock()?;
    }
    if !submits && locked.chance(faults.disconnect) {
        locked.save()?;
        return Ok(Outcome::Lost);
    }
    let api = rest_of;
    Ok(match (&head.method, rest) {
        (&Method::GET, ["ping"]) => api.ok([(
            "pings",
            json!([{"hostname": "fake", "pinged": "UP", "ping": "UP", "status": 0, "latency": 1, "mode": "primary"}]),
        )]),
        (&Method::GET, ["diag"]) => api.ok([("statistics", json!({"jobs_submitted": locked.state.next_id - 1}))]),
        (&Method::GET, ["jobs"]) if *set == "slurmdb" => {
            let query = head.uri.query().unwrap_or_default();
            let name = query.split('&').find_map(|p| p.strip_prefix("job_name="));
            let ours = |j: &&Job| name.is_none_or(|n| j.name() == n);
            let jobs: Vec<Value> =
                locked.state.jobs.values().filter(ours).map(|j| accounted(&locked, &api, j)).collect();
            if jobs.is_empty() {
                let nothing =
                    json!({"description": "Nothing found", "error_number": 9003, "error": "Nothing found with query"});
                return Ok(Outcome::Answer(
                    StatusCode::OK,
                    api.body([("errors", json!([nothing])), ("jobs", json!([]))]),
                ));
            }
            api.ok([("jobs", jobs.into())])
        }
        (&Method::GET, ["jobs"]) => {
            let jobs = collapse(locked.state.jobs.values().filter(|j| !j.gone), false);
            let jobs: Vec<Value> = jobs.iter().map(|s| api.job(&locked, s)).collect();
            api.ok([("jobs", jobs.into()), ("last_update", api.time(Some(now())))])
        }
        (&Method::GET, ["job", id]) if *set == "slurmdb" => {
            let jobs: Vec<Value> =
                locked.state.jobs.values().filter(|j| same_job(j, id)).map(|j| accounted(&locked, &api, j)).collect();
            api.ok([("jobs", jobs.into())])
        }
        (&Method::GET, ["job", id]) => {
            let jobs = collapse(locked.state.jobs.values().filter(|j| !j.gone && same_job(j, id)), false);
            if jobs.is_empty() {
                return Ok(api.unknown(id, "slurm_load_job", &format!("Unable to find JobId={id}")));
            }
            let jobs: Vec<Value> = jobs.iter().map(|s| api.job(&locked, s)).collect();
            api.ok([("jobs", jobs.into())])
        }
        (&Method::DELETE, ["job", id]) => {
            let ids: Vec<&Job> = locked.state.jobs.values().filter(|j| !j.gone && same_job(j, id)).collect();
            if ids.is_empty() {
                let words = format!("unable to kill JobId={id} with signal 9: Invalid job id specified");
                return Ok(api.unknown(id, "slurm_kill_job", &words));
            }
            let ids: Vec<u32> = ids.iter().filter(|j| !j.ended()).map(|j| j.id).collect();
            if ids.is_empty() {
                return Ok(api.failed(2021, "Job/step already completing or completed", "slurm_kill_job", ""));
            }
            let groups = cancel(&mut locked, &ids, nix::unistd::getuid().as_raw());
            settle(locked)?;
            crate::process::kill_groups(&groups, nix::sys::signal::Signal::SIGKILL);
            api.ok([])
        }
        (&Method::POST, ["job", "submit"]) => return submit(locked, &api, body),
        (&Method::POST, ["job", id]) => {
            let wish: Value = serde_json::from_slice(body).unwrap_or_default();
            let wish = wish.get("job").unwrap_or(&wish);
            let priority = number(&wish["priority"]);
            let verb = match (wish["hold"].as_bool(), priority) {
                (Some(true), _) | (_, Some(0)) => "hold",
                _ => "release",
            };
            if !api.late && priority == Some(0) {
                return Ok(Outcome::Answer(StatusCode::OK, api.body([("errors", json!([
                    {"error": "Priority must be >0", "error_code": -1},
                    {"description": "Unable to process key \"priority\"", "error_number": -1, "error": "Unspecified error", "source": "slurm_process_option_data"},
                ]))])));
            }
            let mut later = Vec::new();
            match change_job(&mut locked, verb, id, &mut later) {
                Ok(()) => {
                    settle(locked)?;
                    api.ok([])
                }
                Err(words) if words.starts_with("Invalid") => api.unknown(id, "slurm_update_job", words),
                Err(words) => api.failed(2021, words, "slurm_update_job", ""),
            }
        }
        (&Method::GET, ["nodes"]) => {
            let nodes: Vec<Value> = locked.config.nodes.iter().map(|n| api.node(&locked, n)).collect();
            api.ok([("nodes", nodes.into())])
        }
        (&Method::GET, ["node", name]) => match locked.config.nodes.iter().find(|n| n.name == **name) {
            Some(node) => api.ok([("nodes", json!([api.node(&locked, node)]))]),
            None => api.failed(2009, "Invalid node name specified", "slurm_load_node", ""),
        },
        (&Method::GET, ["partitions"]) => {
            let all: Vec<Value> =
                locked.config.partitions.iter().enumerate().map(|(i, p)| api.partition(p, i == 0)).collect();
            api.ok([("partitions", all.into())])
        }
        (&Method::GET, ["partition", name]) => match locked.config.partitions.iter().find(|p| p.name == **name) {
            Some(p) => api.ok([("partitions", json!([api.partition(p, false)]))]),
            None => api.failed(2000, "Invalid partition name specified", "slurm_load_partitions", ""),
        },
        _ => not_found,
    })
}

/// One version of the interface.
struct Api<'a> {
    late: bool,
    version: &'a str,
    release: &'a str,
}

impl Api<'_> {
    fn body<const N: usize>(&self, parts: [(&str, Value); N]) -> Value {
        let numbers: Vec<i64> = self.release.split('.').filter_map(|n| n.parse().ok()).collect();
        let number = |i: usize| numbers.get(i).copied().unwrap_or_default();
        let version = |i: usize| if self.late { json!(number(i).to_string()) } else { json!(number(i)) };
        let slurm = json!({"version": {"major": version(0), "minor": version(1), "micro": version(2)}, "release": self.release});
        let mut meta = json!({"plugin": {"type": format!("openapi/{}", self.version), "name": format!("Slurm OpenAPI {}", self.version)}});
        meta[if self.late { "slurm" } else { "Slurm" }] = slurm;
        let mut all = json!({"meta": meta, "errors": []});
        if self.late {
            all["warnings"] = json!([]);
        }
        for (name, part) in parts {
            all[name] = part;
        }
        all
    }

    fn ok<const N: usize>(&self, parts: [(&str, Value); N]) -> Outcome {
        Outcome::Answer(StatusCode::OK, self.body(parts))
    }

    fn failed(&self, number: i32, words: &str, source: &str, description: &str) -> Outcome {
        let error = json!({"description": description, "error_number": number, "error": words, "source": source});
        Outcome::Answer(StatusCode::INTERNAL_SERVER_ERROR, self.body([("errors", json!([error]))]))
    }

    fn unknown(&self, _id: &str, source: &str, description: &str) -> Outcome {
        self.failed(2017, "Invalid job id specified", source, description)
    }

    /// A number that may be unset or without end; late versions say so beside it.
    fn number(&self, n: Option<i64>) -> Value {
        match (self.late, n) {
            (true, n) => json!({"set": n.is_some(), "infinite": false, "number": n.unwrap_or(0)}),
            (false, n) => json!(n),
        }
    }

    fn time(&self, ms: Option<i64>) -> Value {
        let seconds = ms.map_or(0, |t| t / 1000);
        if self.late { json!({"set": ms.is_some(), "infinite": false, "number": seconds}) } else { json!(seconds) }
    }

    fn job(&self, locked: &Locked, shown: &Shown<'_>) -> Value {
        let job = shown.job;
        let v = |name: &str| value(locked, shown, name, now()).unwrap_or_default();
        let word = printed(&job.state, &job.flags).0;
        let unlaunched = job.reason == UNLAUNCHED;
        let limit = i64::from(minutes(job.option("time")).unwrap_or(60));
        let state = if self.late {
            let mut all = vec![job.state.clone()];
            all.extend(job.flags.iter().cloned());
            json!(all)
        } else {
            json!(word)
        };
        let exit = |(code, signal): (i32, i32)| {
            if !self.late {
                return json!(wait_status((code, signal)));
            }
            let word = match (code, signal) {
                (0, 0) => "SUCCESS",
                (_, 0) => "ERROR",
                _ => "SIGNALED",
            };
            json!({"status": [word], "return_code": self.number(Some(code.into())), "signal": {"id": self.number((signal != 0).then_some(signal.into())), "name": ""}})
        };
        let array = job.array.map_or((0, None), |a| (a.0, shown.tasks.is_none().then_some(i64::from(a.1))));
        let end = job.end.or(job.start.map(|s| s + limit * 60_000));
        json!({
            "account": job.option("account"), "array_job_id": if self.late { self.number(Some(array.0.into())) } else { json!(array.0) },
            "array_task_id": self.number(array.1), "array_task_string": shown.tasks.clone().unwrap_or_default(),
            "batch_host": v("batch-host"), "cluster": locked.config.cluster, "comment": job.option("comment"),
            "current_working_directory": job.directory, "dependency": job.option("dependency"), "derived_exit_code": exit((job.derived, 0)),
            "eligible_time": self.time(Some(job.submit)), "end_time": self.time(end), "exit_code": exit(job.exit), "group_id": job.uid,
            "job_id": job.id, "job_state": state, "name": job.name(), "nodes": node_list(&job.nodes),
            "node_count": self.number(Some(job.node_count().into())), "partition": job.option("partition"),
            "cpus": self.number(Some(job.cpus().into())), "tasks": self.number(Some(job.tasks().into())),
            "priority": self.number(Some(if job.held.is_some() { 0 } else { 1 })), "hold": job.held.is_some(),
            "qos": job.option("qos"), "requeue": !job.options.contains_key("no-requeue"), "restart_cnt": job.restarts,
            "start_time": self.time(job.start), "state_description": if unlaunched { UNLAUNCHED } else { "" },
            "state_reason": if unlaunched { "JobHeldUser" } else { job.reason.as_str() },
            "standard_error": job.option("error"), "standard_input": job.option("input"), "standard_output": job.option("output"),
            "submit_time": self.time(Some(job.submit)), "time_limit": self.number(Some(limit)),
            "tres_per_node": if v("gres") == "N/A" { String::new() } else { v("gres") }, "tres_req_str": v("tres"), "tres_alloc_str": v("tres"),
            "user_id": job.uid, "user_name": job.user,
        })
    }

    fn node(&self, locked: &Locked, n: &crate::config::Node) -> Value {
        let (cpus, gpus) = locked.used_on(&n.name);
        let word = node_word(locked, n);
        let state = if self.late { json!([word.to_uppercase()]) } else { json!(word) };
        let partitions: Vec<&str> =
            locked.config.partitions.iter().filter(|p| p.nodes.contains(&n.name)).map(|p| p.name.as_str()).collect();
        let list = |text: &str| if self.late { json!(text.split(',').collect::<Vec<_>>()) } else { json!(text) };
        json!({
            "name": n.name, "hostname": n.name, "address": "127.0.0.1", "architecture": "x86_64", "cpus": n.cpus, "alloc_cpus": cpus,
            "idle_cpus": n.cpus.saturating_sub(cpus), "alloc_idle_cpus": n.cpus.saturating_sub(cpus), "real_memory": n.memory,
            "alloc_memory": 0, "features": list(&n.features), "active_features": list(&n.features),
            "gres": if n.gpus == 0 { String::new() } else { format!("gpu:{}:{}", n.gpu, n.gpus) },
            "gres_used": if n.gpus == 0 { String::new() } else { format!("gpu:{}:{gpus}(IDX:N/A)", n.gpu) },
            "state": state, "state_flags": [], "partitions": partitions, "reason": locked.state.down.get(&n.name).cloned().unwrap_or_default(),
        })
    }

    fn partition(&self, p: &crate::config::Partition, default: bool) -> Value {
        let most = (p.max_minutes > 0).then_some(i64::from(p.max_minutes));
        if self.late {
            let infinite = json!({"set": false, "infinite": true, "number": 0});
            return json!({
                "name": p.name, "nodes": {"configured": node_list(&p.nodes), "total": p.nodes.len()},
                "partition": {"state": [p.state]}, "maximums": {"time": most.map_or(infinite.clone(), |n| self.number(Some(n))), "nodes": infinite},
                "minimums": {"nodes": 0}, "defaults": {"time": self.number(Some(60)), "partition_memory_per_cpu": self.number(Some(1000))},
                "flags": if default { json!(["DEFAULT"]) } else { json!([]) },
            });
        }
        json!({
            "flags": if default { json!(["default"]) } else { json!([]) }, "name": p.name, "nodes": node_list(&p.nodes), "state": p.state,
            "total_nodes": p.nodes.len(), "max_time_limit": most, "default_time_limit": 60, "maximum_nodes_per_job": -1,
            "maximum_cpus_per_node": -1, "min nodes per job": 0, "default_memory_per_cpu": 1000,
        })
    }
}

fn number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.get("number")?.as_i64())
}

/// Names in the request of what sbatch has as options. `None`: known, and of no effect here.
const FIELDS: &[(&str, Option<&str>)] = &[
    ("account", Some("account")),
    ("array", Some("array")),
    ("begin_time", None),
    ("comment", Some("comment")),
    ("constraints", Some("constraint")),
    ("cpus_per_task", Some("cpus-per-task")),
    ("current_working_directory", Some("chdir")),
    ("dependency", Some("dependency")),
    ("environment", None),
    ("exclusive", Some("exclusive")),
    ("excluded_nodes", Some("exclude")),
    ("gres", Some("gres")),
    ("hold", Some("hold")),
    ("name", Some("job-name")),
    ("nice", None),
    ("nodes", Some("nodes")),
    ("minimum_nodes", Some("nodes")),
    ("maximum_nodes", None),
    ("ntasks_per_node", Some("ntasks-per-node")),
    ("tasks", Some("ntasks")),
    ("tasks_per_node", Some("ntasks-per-node")),
    ("ntasks", Some("ntasks")),
    ("open_mode", Some("open-mode")),
    ("partition", Some("partition")),
    ("priority", None),
    ("qos", Some("qos")),
    ("requeue", None),
    ("required_nodes", Some("nodelist")),
    ("nodelist", Some("nodelist")),
    ("reservation", Some("reservation")),
    ("signal", Some("signal")),
    ("nodelist", Some("nodelist")),
    ("exclude_nodes", Some("exclude")),
    ("mail_type", None),
    ("mail_user", None),
    ("kill_warning_signal", None),
    ("kill_warning_delay", None),
    ("kill_warning_flags", None),
    ("standard_error", Some("error")),
    ("standard_input", Some("input")),
    ("standard_output", Some("output")),
    ("time_limit", Some("time")),
    ("tres_per_node", Some("tres_per_node")),
    ("tres_per_job", Some("tres_per_job")),
    ("tres_per_task", Some("tres_per_task")),
    ("tres_per_socket", None),
    ("memory_per_node", None),
    ("memory_per_cpu", None),
    ("cpus_per_tres", None),
    ("memory_per_tres", None),
    ("shared", None),
    ("flags", None),
    ("script", None),
    ("gpus", Some("gpus")),
];

/// Names that only v0.0.38, or only later versions, know.
const EARLY: &[&str] = &["gres", "exclusive", "signal", "nodelist", "exclude_nodes"];
const LATE: &[&str] = &["tres_per_node", "tres_per_job", "tres_per_task", "minimum_nodes"];

fn submit(mut locked: Locked, api: &Api<'_>, body: &[u8]) -> anyhow::Result<Outcome> {
    let parse = |first: Value| {
        Outcome::Answer(
            StatusCode::BAD_REQUEST,
            api.body([("errors", json!([first, {"error_code": 9001, "error": "Failure during parsing"}]))]),
        )
    };
    let Ok(wish) = serde_json::from_slice::<Value>(body) else {
        return Ok(parse(json!({"description": "unable to parse JSON", "source": "data_g_deserialize"})));
    };
    let empty = serde_json::Map::new();
    let job = wish["job"].as_object().unwrap_or(&empty);
    let script = wish["script"].as_str().or_else(|| job.get("script")?.as_str()).unwrap_or_default().to_owned();
    let mut all = BTreeMap::new();
    // slurmrestd does not read these lines, but sites' scripts have them.
    let mut ignored = BTreeMap::new();
    let _ = options(&directives(&script), &mut ignored);
    for (name, value) in job {
        let known = FIELDS.iter().find(|f| f.0 == name);
        let other = if api.late { EARLY } else { LATE };
        let Some((_, option)) = known.filter(|_| !other.contains(&name.as_str())) else {
            return Ok(parse(json!({"description": format!("Unknown key \"{name}\""), "source": "hsearch_r"})));
        };
        // As v0.0.38 of 22.05 has it: this form of signal is refused, and the list of two numbers is passed over.
        if name == "signal" && value.as_str().is_some_and(|s| s.starts_with("B:")) {
            return Ok(parse(json!({"error": "Invalid SIGNAL specification", "error_code": -1})));
        }
        if name == "nodes" && value.is_array() && !api.late {
            continue;
        }
        let text = match value {
            Value::String(s) => s.clone(),
            Value::Number(n) => n.to_string(),
            Value::Bool(false) | Value::Null => continue,
            Value::Bool(true) => "yes".into(),
            Value::Array(list) => list
                .iter()
                .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
                .collect::<Vec<_>>()
                .join("-"),
            Value::Object(_) => match number(value) {
                Some(n) => n.to_string(),
                None => continue,
            },
        };
        let gpus = |t: &str| {
            t.split(',')
                .filter_map(|i| {
                    i.trim_start_matches("gres:")
                        .trim_start_matches("gres/")
                        .strip_prefix("gpu")
                        .map(|r| r.trim_start_matches([':', '=']).replace('=', ":"))
                })
                .collect::<Vec<_>>()
                .join(",")
        };
        match option {
            Some("tres_per_node") => drop(all.insert("gpus-per-node".into(), gpus(&text))),
            Some("tres_per_job") => drop(all.insert("gpus".into(), gpus(&text))),
            Some("tres_per_task") => drop(all.insert("gpus-per-task".into(), gpus(&text))),
            Some(option) => drop(all.insert((*option).into(), text)),
            None if name == "requeue" && text == "no" => drop(all.insert("no-requeue".into(), "yes".into())),
            None => {}
        }
    }
    if job.get("requeue") == Some(&Value::Bool(false)) {
        all.insert("no-requeue".into(), "yes".into());
    }
    let environment: Option<BTreeMap<String, String>> = match job.get("environment") {
        Some(Value::Object(map)) if !api.late && !map.is_empty() => {
            Some(map.iter().map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect())
        }
        Some(Value::Array(list)) if api.late && !list.is_empty() => Some(
            list.iter()
                .filter_map(|v| v.as_str()?.split_once('='))
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
        ),
        _ => None,
    };
    let Some(environment) = environment else {
        return Ok(parse(json!({"error": "environment must be set", "error_code": 2127})));
    };
    let directory = all.get("chdir").cloned().unwrap_or_else(|| "/".into());
    let user = locked.config.user.clone();
    let submission =
        Submission { options: all, script, environment, user, uid: nix::unistd::getuid().as_raw(), directory };
    let (before, after) = (locked.faults.drop_request, locked.faults.drop_answer);
    if locked.chance(before) {
        locked.save()?;
        return Ok(Outcome::Lost);
    }
    match locked.submit(&submission) {
        Err(Refused(number, words)) => Ok(Outcome::Answer(
            StatusCode::INTERNAL_SERVER_ERROR,
            api.body([("errors", json!([{"error_code": number, "error_number": number, "error": words}]))]),
        )),
        Ok(id) => {
            let lost = locked.chance(after);
            let explained = locked.faults.loss == Loss::Error;
            settle(locked)?;
            if lost && explained {
                return Ok(api.failed(5004, "Socket timed out on send/recv operation", "slurm_submit_batch_job", ""));
            }
            if lost {
                return Ok(Outcome::Lost);
            }
            let mut body =
                api.body([("job_id", json!(id)), ("step_id", json!("BATCH")), ("job_submit_user_msg", json!(""))]);
            if api.late {
                body["result"] = json!({"job_id": id, "step_id": "BATCH", "error_code": 0, "error": "No error", "job_submit_user_msg": ""});
                body["step_id"] = json!("batch");
            }
            Ok(Outcome::Answer(StatusCode::OK, body))
        }
    }
}

/// A job as slurmdbd has it. v0.0.38 says 0 of every exit code, as that of 22.05 does.
fn accounted(locked: &Locked, api: &Api<'_>, job: &Job) -> Value {
    let mut words = vec![job.state.clone()];
    words.extend(job.flags.iter().cloned());
    let state = if api.late { json!(words) } else { json!(job.state) };
    let exit = |code: i32, signal: i32| match (api.late, signal) {
        (true, _) => {
            json!({"return_code": api.number(Some(code.into())), "signal": {"id": api.number((signal != 0).then_some(signal.into()))}})
        }
        (false, 0) => json!({"status": "SUCCESS", "return_code": 0}),
        (false, _) => json!({"status": "SIGNALED", "return_code": null, "signal": {"signal_id": signal}}),
    };
    let seconds = |ms: Option<i64>| ms.map_or(0, |t| t / 1000);
    let (array, task) = job.array.map_or((0, None), |a| (a.0, Some(i64::from(a.1))));
    let task = if api.late { api.number(task) } else { json!(task) };
    json!({
        "job_id": job.id, "name": job.name(), "state": {"current": state, "reason": job.reason},
        "exit_code": exit(job.exit.0, job.exit.1), "derived_exit_code": exit(job.derived, 0),
        "nodes": node_list(&job.nodes), "partition": job.option("partition"),
        "time": {"submission": job.submit / 1000, "eligible": job.submit / 1000, "start": seconds(job.start), "end": seconds(job.end)},
        "array": {"job_id": array, "task_id": task}, "user": job.user, "comment": {"job": job.option("comment")},
        "kill_request_user": job.cancelled_by.map(|u| u.to_string()), "cluster": locked.config.cluster,
    })
}

fn openapi(config: &crate::config::Config) -> Value {
    let mut paths = serde_json::Map::new();
    for version in &config.rest_versions {
        let mut add = |set: &str, path: &str, methods: &[&str]| {
            let methods: serde_json::Map<String, Value> =
                methods.iter().map(|m| ((*m).to_owned(), json!({"tags": [set]}))).collect();
            paths.insert(format!("/{set}/{version}/{path}"), methods.into());
        };
        for path in ["ping", "diag", "jobs", "nodes", "node/{node_name}", "partitions", "partition/{partition_name}"] {
            add("slurm", path, &["get"]);
        }
        add("slurm", "job/{job_id}", &["get", "post", "delete"]);
        add("slurm", "job/submit", &["post"]);
        if config.accounting {
            add("slurmdb", "jobs", &["get"]);
            add("slurmdb", "job/{job_id}", &["get"]);
        }
    }
    json!({"openapi": "3.0.2", "info": {"title": "Slurm Rest API", "version": "0.0.36"}, "servers": [{"url": "/"}], "paths": paths})
}
