//! slurmrestd, of any version of its API from v0.0.38 on: which one is read from the document it publishes.
//!
//! Whether a request went well is in its error numbers, never in the HTTP status alone: an unknown job is a 500. It moves no
//! files and runs no commands; markers and the completion log are read by the way to files, where there is one. Options of
//! sbatch that the API in use has no field for are refused before anything is sent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::text::Beside;
use super::{Catalogue, Facts, Files, Found, PRINTED, QUICK, SUBMIT, Slurm, SlurmError, Snapshot, Submitted};
use crate::api::{Decider, RestAccess};
use crate::catalogue::{parse_minutes, rest_nodes, rest_partitions};
use crate::script::{Opt, Script};
use crate::state::Report;
use crate::state::parse::rest_jobs;

/// Versions of the API whose shapes are known here.
const VERSIONS: std::ops::RangeInclusive<u32> = 38..=45;
/// From this version on jobs are described with the newer names.
const NEWER: u32 = 40;
/// From this version on the script is a part of the job.
const SCRIPT_IN_JOB: u32 = 41;
/// Time for a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// Slurm's error numbers.
mod number {
    /// There is no such job.
    pub(super) const INVALID_JOB: i64 = 2017;
    /// It has ended already.
    pub(super) const ALREADY_DONE: i64 = 2021;
    /// The controller does not answer, in its several forms.
    pub(super) const AWAY: [i64; 7] = [1001, 1002, 1003, 1004, 1005, 1006, 1008];
    /// Nobody knows whether it was heard.
    pub(super) const LOST: [i64; 3] = [5004, 5005, 1900];
    /// Credentials.
    pub(super) const DENIED: [i64; 4] = [2002, 1007, 6001, 6004];
    /// It may be taken later.
    pub(super) const LATER: [i64; 4] = [11, 2040, 2050, 3003];
}

/// slurmrestd.
pub struct Rest {
    access: RestAccess,
    token: Option<String>,
    tls: Option<TlsConnector>,
    files: Option<Arc<dyn Files>>,
    beside: Beside,
    version: Mutex<Option<u32>>,
}

/// An answer: its body, and what it says went wrong.
struct Answer {
    status: u16,
    body: Value,
    text: String,
}

impl Answer {
    fn errors(&self) -> Vec<(i64, String)> {
        let all = self.body.get("errors").and_then(Value::as_array).into_iter().flatten();
        all.map(|e| {
            let number = ["error_number", "error_code"].iter().find_map(|k| e.get(k).and_then(Value::as_i64));
            let text = |k: &str| e.get(k).and_then(Value::as_str).filter(|s| !s.is_empty());
            let said = [text("description"), text("error")].into_iter().flatten().collect::<Vec<_>>().join(": ");
            (number.unwrap_or_default(), said)
        })
        .collect()
    }

    fn has(&self, number: i64) -> bool {
        self.errors().iter().any(|(n, _)| *n == number)
    }

    /// The error that it is, if it is one.
    fn error(&self) -> Option<SlurmError> {
        let errors = self.errors();
        if self.status < 400 && errors.is_empty() {
            return None;
        }
        let short = self.text.chars().take(300).collect::<String>();
        let said = errors.iter().map(|(_, t)| t.as_str()).filter(|t| !t.is_empty()).collect::<Vec<_>>().join("; ");
        let said = if said.is_empty() { format!("HTTP {}: {}", self.status, short.trim()) } else { said };
        let any = |numbers: &[i64]| errors.iter().any(|(n, _)| numbers.contains(n));
        // A token that is not valid makes it fail to load anything.
        let token = said.contains("config is unable to load") || said.to_ascii_lowercase().contains("authentication");
        Some(if self.status == 401 || token || any(&number::DENIED) {
            SlurmError::Denied(said)
        } else if any(&number::LOST) {
            SlurmError::Lost(said)
        } else if any(&number::AWAY) || any(&number::LATER) || said.contains("Unable to contact") {
            SlurmError::Busy(said)
        } else if errors.is_empty() && self.status >= 500 {
            SlurmError::Lost(said)
        } else {
            SlurmError::Refused(said)
        })
    }

    fn ok(self) -> Result<Self, SlurmError> {
        match self.error() {
            None => Ok(self),
            Some(error) => Err(error),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Rest {
    /// A way to this slurmrestd with these credentials; `files` moves what it does not.
    ///
    /// # Errors
    /// When the credentials cannot be used.
    pub fn new(
        access: RestAccess,
        secret: &BTreeMap<String, Vec<u8>>,
        files: Option<Arc<dyn Files>>,
        work: &str,
        completion_log: Option<&str>,
    ) -> Result<Self, SlurmError> {
        let text = |key: &str| secret.get(key).and_then(|v| std::str::from_utf8(v).ok()).map(str::trim);
        let denied = |what: String| SlurmError::Denied(what);
        let token = text("token").filter(|t| !t.is_empty()).map(str::to_owned);
        if access.url.is_some() && token.is_none() {
            return Err(denied("the Secret has no token".into()));
        }
        let tls = match access.url.as_deref().filter(|u| u.starts_with("https:")) {
            None => None,
            Some(_) => {
                let pem = text("ca.crt").ok_or_else(|| denied("https needs ca.crt in the Secret".into()))?;
                let mut roots = rustls::RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                    let certificate = certificate.map_err(|e| denied(format!("ca.crt: {e}")))?;
                    roots.add(certificate).map_err(|e| denied(format!("ca.crt: {e}")))?;
                }
                let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
                let config = rustls::ClientConfig::builder_with_provider(provider)
                    .with_safe_default_protocol_versions()
                    .map_err(|e| denied(e.to_string()))?
                    .with_root_certificates(roots)
                    .with_no_client_auth();
                Some(TlsConnector::from(Arc::new(config)))
            }
        };
        let beside = Beside::new(work, completion_log);
        Ok(Self { access, token, tls, files, beside, version: Mutex::default() })
    }

    async fn connect(&self) -> Result<(Box<dyn Stream>, String), SlurmError> {
        let away = |e: &dyn std::fmt::Display| SlurmError::Unreachable(e.to_string());
        if let Some(socket) = &self.access.socket {
            let stream = UnixStream::connect(socket).await.map_err(|e| away(&e))?;
            return Ok((Box::new(stream), "localhost".into()));
        }
        let url: http::Uri = self.access.url.as_deref().unwrap_or_default().parse().map_err(|e| away(&e))?;
        let host = url.host().unwrap_or_default().to_owned();
        let port = url.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let bare = host.trim_matches(['[', ']']);
        let stream = TcpStream::connect((bare, port)).await.map_err(|e| away(&e))?;
        let _ = stream.set_nodelay(true);
        let name = url.authority().map(ToString::to_string).unwrap_or_default();
        match &self.tls {
            None => Ok((Box::new(stream), name)),
            Some(tls) => {
                let server = ServerName::try_from(bare.to_owned()).map_err(|e| away(&e))?;
                let stream = tls.connect(server, stream).await.map_err(|e| away(&e))?;
                Ok((Box::new(stream), name))
            }
        }
    }

    /// One request. What fails before it was sent is [`SlurmError::Unreachable`], what fails later [`SlurmError::Lost`].
    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answer, SlurmError> {
        let connected = tokio::time::timeout(CONNECT, self.connect()).await;
        let (stream, host) = connected.map_err(|_| SlurmError::Unreachable("no connection in time".into()))??;
        let base = self.access.url.as_deref().and_then(|u| u.parse::<http::Uri>().ok());
        let base = base.map(|u| u.path().trim_end_matches('/').to_owned()).unwrap_or_default();
        let mut request = Request::builder().method(method).uri(format!("{base}{path}")).header("host", host);
        request = request.header("accept", "application/json").header("x-slurm-user-name", &self.access.user);
        if let Some(token) = &self.token {
            request = request.header("x-slurm-user-token", token);
        }
        let bytes = match body {
            None => Bytes::new(),
            Some(body) => {
                request = request.header("content-type", "application/json");
                Bytes::from(body.to_string())
            }
        };
        let request = request.body(Full::new(bytes)).map_err(|e| SlurmError::Unreachable(e.to_string()))?;
        let lost = |e: &dyn std::fmt::Display| SlurmError::Lost(e.to_string());
        let exchange = async {
            let shake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
            let (mut sender, connection) = shake.map_err(|e| SlurmError::Unreachable(e.to_string()))?;
            let talk = async {
                let response = sender.send_request(request).await.map_err(|e| lost(&e))?;
                let status = response.status().as_u16();
                let body = Limited::new(response.into_body(), PRINTED).collect().await.map_err(|e| lost(&e))?;
                Ok((status, body.to_bytes()))
            };
            tokio::pin!(talk);
            let drive = async {
                let _ = connection.await;
                std::future::pending::<()>().await;
            };
            tokio::pin!(drive);
            tokio::select! {
                answer = &mut talk => answer,
                () = &mut drive => Err(lost(&"the connection ended")),
            }
        };
        let ended = tokio::time::timeout(limit, exchange).await;
        let (status, bytes) = ended.map_err(|_| lost(&format!("no answer within {limit:?}")))??;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_str(&text).unwrap_or(Value::Null);
        if body.is_null() && status < 400 {
            return Err(lost(&"the answer is no JSON"));
        }
        Ok(Answer { status, body, text })
    }

    /// The version of the API: what the cluster's spec says, or the newest that both sides know.
    async fn version(&self) -> Result<u32, SlurmError> {
        let known = *self.version.lock();
        if let Some(version) = known {
            return Ok(version);
        }
        let parse = |v: &str| v.strip_prefix("v0.0.").and_then(|n| n.parse::<u32>().ok());
        let version = match self.access.version.as_deref().and_then(parse) {
            Some(version) => version,
            None => {
                let mut document = self.ask(Method::GET, "/openapi/v3", None, QUICK).await?;
                if document.status == 404 {
                    document = self.ask(Method::GET, "/openapi", None, QUICK).await?;
                }
                let document = document.ok()?;
                choose(&document.body)?
            }
        };
        *self.version.lock() = Some(version);
        Ok(version)
    }

    async fn slurm(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Answer, SlurmError> {
        let version = self.version().await.map_err(|e| match e {
            // Nothing was sent of what is asked for.
            SlurmError::Lost(why) => SlurmError::Unreachable(why),
            other => other,
        })?;
        self.ask(method, &format!("/slurm/v0.0.{version}{path}"), body, limit).await
    }

    async fn all(&self) -> Result<Vec<Report>, SlurmError> {
        let answer = self.slurm(Method::GET, "/jobs", None, QUICK).await?.ok()?;
        Ok(rest_jobs(&answer.body))
    }

    async fn update(&self, id: u64, change: &Value) -> Result<(), SlurmError> {
        self.slurm(Method::POST, &format!("/job/{id}"), Some(change), QUICK).await?.ok().map(drop)
    }
}

/// The newest version that a published document has and that is known here.
fn choose(document: &Value) -> Result<u32, SlurmError> {
    let paths = document.get("paths").and_then(Value::as_object).into_iter().flat_map(Map::keys);
    let versions = paths.filter_map(|p| {
        let rest = p.strip_prefix("/slurm/v0.0.")?;
        rest.split('/').next()?.parse::<u32>().ok()
    });
    let all: std::collections::BTreeSet<u32> = versions.collect();
    let newest = all.iter().rev().find(|v| VERSIONS.contains(v)).copied();
    newest.ok_or_else(|| {
        let all = all.iter().map(|v| format!("v0.0.{v}")).collect::<Vec<_>>().join(", ");
        SlurmError::Unsupported(format!("slurmrestd offers {all}; known here are v0.0.38 to v0.0.45"))
    })
}

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
fn describe(options: &[Opt], version: u32) -> Result<Value, SlurmError> {
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
            ("nodes", false) => {
                let (least, most) = value.split_once('-').unwrap_or((value, value));
                let both = [least, most].map(|n| n.parse::<u64>());
                let [Ok(least), Ok(most)] = both else { return Err(none()) };
                put("nodes", json!([least, most]));
            }
            ("nodes", true) => put("nodes", json!(value)),
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
            ("signal", false) if !value.starts_with("B:") => put("signal", json!(value)),
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
            ("nice", _) => put("nice", json!(int()?)),
            _ => return Err(none()),
        }
    }
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let environment = if newer { json!([format!("PATH={path}")]) } else { json!({"PATH": path}) };
    job.insert("environment".into(), environment);
    Ok(Value::Object(job))
}

#[async_trait]
impl Slurm for Rest {
    async fn submit(&self, script: &Script, directories: &[String]) -> Result<Submitted, SlurmError> {
        let unsent = |e: SlurmError| match e {
            SlurmError::Lost(why) | SlurmError::Busy(why) => SlurmError::Unreachable(why),
            other => other,
        };
        let version = self.version().await.map_err(unsent)?;
        let mut job = match describe(&script.options, version) {
            Ok(job) => job,
            Err(SlurmError::Unsupported(why)) => return Err(SlurmError::Refused(why)),
            Err(other) => return Err(other),
        };
        if let Some(files) = &self.files {
            let out = files.run(&self.beside.make(directories), QUICK).await.map_err(unsent)?;
            if out.code != 0 {
                return Err(SlurmError::Unreachable(format!("the work directory cannot be used: {}", out.complaint())));
            }
        }
        let body = if version >= SCRIPT_IN_JOB {
            job["script"] = json!(script.text);
            json!({"job": job})
        } else {
            json!({"job": job, "script": script.text})
        };
        let answer = self.slurm(Method::POST, "/job/submit", Some(&body), SUBMIT).await?;
        // Numbers beside an id are remarks, such as that it is held.
        let id = answer.body.get("job_id").or_else(|| answer.body.pointer("/result/job_id"));
        let id = id.and_then(crate::state::parse::number).and_then(|n| u64::try_from(n).ok()).filter(|n| *n > 0);
        match (id, answer.error()) {
            (Some(job_id), _) => Ok(Submitted { job_id, cluster: None }),
            (None, Some(error)) => Err(error),
            (None, None) => Err(SlurmError::Lost("slurmrestd named no job".into())),
        }
    }

    async fn queue(&self, since: i64) -> Result<Snapshot, SlurmError> {
        let reports = self.all().await?;
        let (markers, clock) = match &self.files {
            // Without markers the queue is still the truth.
            Some(files) => match files.run(&self.beside.ask_markers(since), QUICK).await {
                Ok(out) => Beside::read_markers(&out.text()),
                Err(_) => (vec![], since),
            },
            None => (vec![], 0),
        };
        Ok(Snapshot { reports, markers, clock })
    }

    async fn jobs(&self, ids: &[u64]) -> Result<Vec<Report>, SlurmError> {
        let mut all = vec![];
        for id in ids {
            let answer = self.slurm(Method::GET, &format!("/job/{id}"), None, QUICK).await?;
            if !answer.has(number::INVALID_JOB) {
                all.extend(rest_jobs(&answer.ok()?.body));
            }
        }
        Ok(all)
    }

    async fn find(&self, name: &str) -> Result<Found, SlurmError> {
        let mut found = Found::default();
        found.reports.extend(self.all().await?.into_iter().filter(|r| r.name == name).map(|r| (Decider::Queue, r)));
        if let Some(files) = &self.files {
            let out = files.run(&self.beside.ask_name(name), QUICK).await?;
            self.beside.read_name(&out, name, &mut found)?;
        }
        Ok(found)
    }

    async fn cancel(&self, id: Option<u64>, name: &str) -> Result<(), SlurmError> {
        let known = match id {
            Some(id) => self.jobs(&[id]).await?,
            None => self.all().await?,
        };
        // An id may be another's after a reset.
        let mut ids: Vec<u64> = known.iter().filter(|r| r.name == name).map(|r| r.job_id).collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let answer = self.slurm(Method::DELETE, &format!("/job/{id}"), None, QUICK).await?;
            let gone = answer.has(number::INVALID_JOB) || answer.has(number::ALREADY_DONE);
            if !gone {
                answer.ok()?;
            }
        }
        Ok(())
    }

    async fn hold(&self, id: u64) -> Result<(), SlurmError> {
        self.update(id, &json!({"hold": true})).await
    }

    async fn release(&self, id: u64) -> Result<(), SlurmError> {
        self.update(id, &json!({"hold": false})).await
    }

    async fn catalogue(&self) -> Result<Catalogue, SlurmError> {
        let partitions = self.slurm(Method::GET, "/partitions", None, QUICK).await?.ok()?;
        let nodes = self.slurm(Method::GET, "/nodes", None, QUICK).await?.ok()?;
        let jobs = self.all().await?;
        let has = |r: &Report, words: &[&str]| r.words.iter().any(|w| words.contains(&w.as_str()));
        let waiting = jobs.iter().filter(|r| has(r, &["PENDING"])).count() as u64;
        let running = jobs.iter().filter(|r| has(r, &["RUNNING", "COMPLETING", "SUSPENDED"])).count() as u64;
        Ok(Catalogue {
            partitions: rest_partitions(&partitions.body),
            nodes: rest_nodes(&nodes.body),
            waiting,
            running,
        })
    }

    async fn facts(&self) -> Result<Facts, SlurmError> {
        let version = self.version().await?;
        let ping = self.slurm(Method::GET, "/ping", None, QUICK).await?.ok()?;
        let text = |paths: [&str; 2]| {
            let found = paths.iter().find_map(|p| ping.body.pointer(p)).and_then(Value::as_str);
            found.filter(|t| !t.is_empty()).map(str::to_owned)
        };
        Ok(Facts {
            version: text(["/meta/Slurm/release", "/meta/slurm/release"]).unwrap_or_default(),
            api_version: Some(format!("v0.0.{version}")),
            cluster: text(["/meta/slurm/cluster", "/meta/Slurm/cluster"]),
            accounting: false,
        })
    }

    /// Of a JWT: its claim `exp`.
    fn credential_expires(&self) -> Option<i64> {
        let claims = self.token.as_deref()?.split('.').nth(1)?;
        let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()?;
        claims.get("exp")?.as_i64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_common_version() {
        let of = |versions: &[u32]| {
            let paths = versions.iter().map(|v| (format!("/slurm/v0.0.{v}/jobs"), json!({})));
            choose(&json!({"paths": paths.collect::<Map<_, _>>()}))
        };
        // 22.05, 24.11, 26.05, one of the future.
        let table: [(&[u32], Option<u32>); 5] = [
            (&[36, 37, 38], Some(38)),
            (&[40, 41, 42], Some(42)),
            (&[42, 43, 44, 45], Some(45)),
            (&[44, 45, 46, 47], Some(45)),
            (&[35, 36, 37], None),
        ];
        for (offered, want) in table {
            assert_eq!(of(offered).ok(), want, "{offered:?}");
        }
    }

    fn answer(status: u16, body: Value) -> Answer {
        Answer { status, text: body.to_string(), body }
    }

    #[test]
    fn numbers_decide_not_the_status() {
        let error = |status, errors: Value| answer(status, json!({"errors": errors})).error();
        assert!(error(200, json!([])).is_none());
        let refused = error(500, json!([{"error_code": 2000, "error": "Invalid partition name specified"}]));
        assert!(matches!(refused, Some(SlurmError::Refused(m)) if m == "Invalid partition name specified"));
        let token = error(500, json!([{"description": "slurmctld config is unable to load", "error_number": -1}]));
        assert!(matches!(token, Some(SlurmError::Denied(_))));
        assert!(matches!(answer(401, Value::Null).error(), Some(SlurmError::Denied(_))));
        assert!(matches!(answer(502, Value::Null).error(), Some(SlurmError::Lost(_))), "a proxy knows nothing");
        assert!(answer(500, json!({"errors": [{"error_number": 2017}]})).has(number::INVALID_JOB));
    }

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
        ]);
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        assert_eq!(
            describe(&all, 38).unwrap(),
            json!({"name": "n", "time_limit": 1440, "nodes": [2, 4], "memory_per_node": 16_384, "gres": "gpu:a100:2,shard:1",
                "gpus": "v100:2", "open_mode": "append", "exclusive": "exclusive", "requeue": false,
                "environment": {"PATH": path}})
        );
        assert_eq!(
            describe(&all, 42).unwrap(),
            json!({"name": "n", "time_limit": {"set": true, "number": 1440}, "nodes": "2-4",
                "memory_per_node": {"set": true, "number": 16_384}, "tres_per_node": "gres/gpu:a100:2,gres/shard:1",
                "tres_per_job": "gres/gpu:v100:2", "open_mode": ["APPEND"], "shared": ["none"], "requeue": false,
                "environment": [format!("PATH={path}")]})
        );
        for bad in [("nodelist", Some("n1")), ("signal", Some("B:USR1@60")), ("contiguous", None)] {
            assert!(matches!(describe(&options(&[bad]), 38), Err(SlurmError::Unsupported(_))), "{bad:?}");
        }
    }

    #[test]
    fn tokens_tell_their_end() {
        let access = RestAccess { url: Some("http://x:1".into()), ..RestAccess::default() };
        let secret = |t: &str| BTreeMap::from([("token".to_owned(), t.as_bytes().to_vec())]);
        let token = format!("h.{}.s", URL_SAFE_NO_PAD.encode(r#"{"exp":1795368746,"sun":"u"}"#));
        let rest = Rest::new(access.clone(), &secret(&token), None, "/w", None).unwrap();
        assert_eq!(rest.credential_expires(), Some(1_795_368_746));
        assert!(Rest::new(access, &BTreeMap::new(), None, "/w", None).is_err());
    }
}
