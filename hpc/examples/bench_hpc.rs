//! What this room adds to Slurm, measured on the fake Slurm (and results on a real one): for docs/SPECIFICATION.md.
//!
//!     cargo build -p skiff-fake-slurm && cargo run -p skiff-hpc --example bench_hpc -- [SECTION ...]
//!
//! Sections: `added` (time a submission takes beyond the tool's own), `rate` (jobs a second, memory of 1,000 in flight),
//! `ends` (until an end is seen, by polling and by push), `cancel` (from deletion to CANCELLED), `drops` (1,000 submissions of
//! which answers are lost, by SSH and REST; not among those that run when none is named), `results` (1 GB from the Slurm of
//! SKIFF_SLURM_MANIFEST, reached by SSH, against scp; only where that is set). SKIFF_HPC_JOBS is how many jobs, SKIFF_HPC_DRIVERS
//! which drivers `rate` is of.
//! The API server and the fake's servers are in this process; for `rate` the controller is one of its own: this one again, or
//! `skiff hpc` of the program that SKIFF_PROGRAM names.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::HashMap;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use fake_slurm::control;
use fake_slurm::state::Store;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};
use skiff_hpc::api::{GpuJob, HpcCluster, Phase};
use support::Fake;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[path = "../tests/support/mod.rs"]
mod support;

/// Patience for a section.
const LIMIT: Duration = Duration::from_secs(1200);

fn jobs(usual: usize) -> usize {
    std::env::var("SKIFF_HPC_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// Median and 95th percentile in milliseconds.
fn quantiles(mut all: Vec<f64>) -> String {
    all.sort_by(f64::total_cmp);
    let at = |q: f64| all[((all.len() - 1) as f64 * q).round() as usize];
    format!("p50 {:.0} ms, p95 {:.0} ms of {}", at(0.5), at(0.95), all.len())
}

fn phase(job: &GpuJob) -> Phase {
    job.status.as_ref().and_then(|s| s.phase).unwrap_or_default()
}

async fn until_all(api: &Api<GpuJob>, is: impl Fn(&GpuJob) -> bool, n: usize) {
    let done = async {
        loop {
            let all = api.list(&ListParams::default()).await.unwrap().items;
            if all.len() == n && all.iter().all(&is) {
                return;
            }
            // To look costs too.
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    };
    tokio::time::timeout(LIMIT, done).await.unwrap();
}

/// One submission after the other, against sbatch called the same way.
async fn added() {
    for driver in ["local", "ssh", "rest"] {
        let fake = Fake::prepared(driver, &["run=false", "simulated_ms=3600000"], &[], json!({})).await;
        fake.run();
        fake.submit("first", json!({"run": {"command": ["true"]}})).await;
        support::until(&fake.jobs(), "first", |j: &GpuJob| phase(j) == Phase::Running).await;
        let (mut ours, mut own) = (vec![], vec![]);
        for i in 0..jobs(40) {
            let name = format!("job-{i}");
            let began = Instant::now();
            fake.submit(&name, json!({"run": {"command": ["true"]}})).await;
            let done = |j: &GpuJob| j.status.as_ref().is_some_and(|s| s.identity.is_some());
            support::until(&fake.jobs(), &name, done).await;
            ours.push(began.elapsed().as_secs_f64() * 1000.0);
            let began = Instant::now();
            let sbatch = fake.dir.path().join("bin/sbatch");
            let mut child = tokio::process::Command::new(sbatch);
            let out = child.args(["--parsable", "--wrap", "true"]).output().await.unwrap();
            assert!(out.status.success());
            own.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        println!(
            "added, {driver}: GpuJob created until it has its id {}; sbatch alone {}",
            quantiles(ours),
            quantiles(own)
        );
        fake.stop().await;
    }
}

/// The controller as a process of its own.
struct Alone {
    child: tokio::process::Child,
    pid: u32,
}

impl Alone {
    /// Starts one that works for this fake, through the API server's port as any other program would.
    async fn start(fake: &Fake) -> Self {
        let pki = fake.world.server.pki();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let leaf = pki.cluster.server("kube-apiserver", &["localhost".into()], &[[127, 0, 0, 1].into()]).unwrap();
        let server = fake.world.server.clone();
        tokio::spawn(async move { server.listen(listener, &leaf).await.unwrap() });
        let user = pki.cluster.client("hpc", &["system:masters"]).unwrap();
        let data = |text: &str| STANDARD.encode(text);
        let config = json!({"apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": format!("https://127.0.0.1:{port}"),
                "certificate-authority-data": data(&pki.cluster.cert)}}],
            "users": [{"name": "u", "user": {"client-certificate-data": data(&user.cert), "client-key-data": data(&user.key)}}]});
        let file = fake.world.dir.path().join("kubeconfig");
        std::fs::write(&file, config.to_string()).unwrap();
        let results = fake.world.dir.path().join("results");
        let mut command = match std::env::var_os("SKIFF_PROGRAM") {
            Some(program) => {
                let mut c = tokio::process::Command::new(program);
                c.args(["hpc", "--hpc-port", "0", "--secure-port", "0", "--kubeconfig"]).arg(&file);
                c.arg("--data-dir").arg(&results).stderr(std::process::Stdio::null());
                c
            }
            None => {
                let mut c = tokio::process::Command::new(std::env::current_exe().unwrap());
                c.arg("controller").arg(&file).arg(&results);
                c
            }
        };
        let child = command.kill_on_drop(true).spawn().unwrap();
        let pid = child.id().unwrap();
        Self { child, pid }
    }

    /// What it is when it is started so.
    async fn run(file: &str, data: &str) {
        let config = kube::config::Kubeconfig::read_from(file).unwrap();
        let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.unwrap();
        let client = kube::Client::try_from(config).unwrap();
        let settings = skiff_hpc::Config { settled: Duration::from_secs(3), ..skiff_hpc::Config::new(data.into()) };
        skiff_hpc::run(client, settings, tokio_util::sync::CancellationToken::new()).await.unwrap();
    }

    /// Its memory in MiB: all of it, and what is its own.
    fn memory(&self) -> (f64, f64) {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let of = |name: &str| {
            let line = text.lines().find(|l| l.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
        };
        (of("VmRSS"), of("RssAnon"))
    }

    /// Seconds of the processor it took, without those of the commands it called.
    fn busy(&self) -> f64 {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        let rest: Vec<&str> = text.rsplit_once(") ").unwrap().1.split_whitespace().collect();
        rest[11..13].iter().map(|n| n.parse::<f64>().unwrap()).sum::<f64>() / 100.0
    }

    async fn stop(mut self) {
        self.child.kill().await.unwrap();
    }
}

/// How many submissions a second the fake takes from `sbatch` itself, two at a time.
async fn sbatch_alone(fake: &Fake, n: usize) -> f64 {
    let (began, sbatch) = (Instant::now(), fake.dir.path().join("bin/sbatch"));
    let half = async || {
        for _ in 0..n / 2 {
            let mut child = tokio::process::Command::new(&sbatch);
            assert!(child.args(["--parsable", "--wrap", "true"]).output().await.unwrap().status.success());
        }
    };
    tokio::join!(half(), half());
    n as f64 / began.elapsed().as_secs_f64()
}

/// Many at once: how fast they are in Slurm, and what they cost while they are. The controller is a process of its own.
async fn rate() {
    let wanted = std::env::var("SKIFF_HPC_DRIVERS").unwrap_or_else(|_| "local,ssh,rest".into());
    for driver in wanted.split(',') {
        let limits = json!({"limits": {"jobs": 5000, "submissionsPerSecond": 1000}});
        let fake = Fake::prepared(driver, &["run=false", "simulated_ms=3600000"], &[], limits).await;
        let n = jobs(1000);
        let alone = sbatch_alone(&fake, 100).await;
        for i in 0..n {
            fake.submit(&format!("job-{i}"), json!({"run": {"command": ["true"]}})).await;
        }
        // The API server has its part behind it: what is measured begins with a controller that finds them all.
        let began = Instant::now();
        let controller = Alone::start(&fake).await;
        // Slurm's side is looked at first: a list of all jobs each moment would be most of what is measured.
        let store = Store::new(fake.dir.path());
        while store.lock().unwrap().state.accepted.len() <= n {
            assert!(began.elapsed() < LIMIT, "not all are in Slurm");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        until_all(&fake.jobs(), |j| j.status.as_ref().is_some_and(|s| s.identity.is_some()), n).await;
        let took = began.elapsed().as_secs_f64();
        let (busy, memory) = (controller.busy(), controller.memory());
        println!(
            "rate, {driver}: {n} jobs in Slurm {took:.1} s after the controller's start, {:.0}/s (sbatch alone, two at a time: \
             {alone:.0}/s); it took {:.1} ms of the processor for each, and {:.0} MiB, {:.0} of them its own",
            n as f64 / took,
            busy * 1000.0 / n as f64,
            memory.0,
            memory.1,
        );
        if driver == "ssh" {
            println!("rate, ssh: at most {} channels at a time", fake_slurm::ssh::most_sessions());
        }
        controller.stop().await;
        fake.stop().await;
    }
}

async fn push(address: &str) {
    let mut wire = tokio::net::TcpStream::connect(address).await.unwrap();
    let text = "POST /hpc/fake/done HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer word\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    wire.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    wire.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
}

/// From an end in Slurm to the moment it is written down that it was seen.
async fn ends() {
    for pushed in [false, true] {
        let hook = json!({"hookSecret": {"namespace": "default", "name": "hook"}, "polling": {"slowSeconds": 30}});
        let mut fake = Fake::prepared("local", &["run=false", "simulated_ms=3600000"], &[], hook).await;
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hook"}, "stringData": {"token": "word"}});
        let secrets = fake.world.api::<Secret>();
        secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        fake.config.door = Some((address, None));
        fake.run();
        let n = jobs(40);
        for i in 0..n {
            fake.submit(&format!("job-{i}"), json!({"run": {"command": ["true"]}})).await;
        }
        until_all(&fake.jobs(), |j| phase(j) == Phase::Running || phase(j) == Phase::Queued, n).await;
        let all = fake.jobs().list(&ListParams::default()).await.unwrap().items;
        let mut ended = HashMap::new();
        for job in &all {
            let id = job.status.as_ref().unwrap().identity.as_ref().unwrap().job_id;
            // Ends do not come in step with questions.
            tokio::time::sleep(Duration::from_millis(137 + id % 7 * 61)).await;
            control::set(fake.dir.path(), u32::try_from(id).unwrap(), "RUNNING@1ms COMPLETED").unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
            ended.insert(id, k8s_openapi::jiff::Timestamp::now());
            if pushed {
                push(&address.to_string()).await;
            }
        }
        until_all(&fake.jobs(), |j| phase(j) == Phase::Succeeded, n).await;
        let all = fake.jobs().list(&ListParams::default()).await.unwrap().items;
        let late = all.iter().map(|j| {
            let status = j.status.as_ref().unwrap();
            let seen = status.times.as_ref().unwrap().noticed.as_ref().unwrap().0;
            let at = ended[&status.identity.as_ref().unwrap().job_id];
            (seen.as_microsecond() - at.as_microsecond()) as f64 / 1000.0
        });
        println!("ends, {}: {}", if pushed { "by push" } else { "by polling" }, quantiles(late.collect()));
        fake.stop().await;
    }
}

/// From the deletion of an object to CANCELLED in Slurm.
async fn cancel() {
    for driver in ["local", "ssh", "rest"] {
        let fake = Fake::prepared(driver, &["run=false", "simulated_ms=3600000"], &[], json!({})).await;
        fake.run();
        let n = jobs(40);
        for i in 0..n {
            fake.submit(&format!("job-{i}"), json!({"run": {"command": ["true"]}})).await;
        }
        until_all(&fake.jobs(), |j| j.status.as_ref().is_some_and(|s| s.identity.is_some()), n).await;
        let store = Store::new(fake.dir.path());
        let mut took = vec![];
        for job in fake.jobs().list(&ListParams::default()).await.unwrap().items {
            let id = u32::try_from(job.status.unwrap().identity.unwrap().job_id).unwrap();
            let began = Instant::now();
            fake.jobs().delete(&job.metadata.name.unwrap(), &DeleteParams::default()).await.unwrap();
            while store.lock().unwrap().state.jobs[&id].state != "CANCELLED" {
                assert!(began.elapsed() < LIMIT, "job {id} is not cancelled");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            took.push(began.elapsed().as_secs_f64() * 1000.0);
        }
        println!("cancel, {driver}: {}", quantiles(took));
        fake.stop().await;
    }
}

/// Answers are lost: none twice, none lost.
async fn drops() {
    for driver in ["ssh", "rest"] {
        let faults = ["drop_answer=0.2", "loss=disconnect"];
        let settings = ["run=false", "simulated_ms=100", "accounting=true"];
        let fake = Fake::prepared(driver, &settings, &faults, json!({})).await;
        let n = jobs(1000);
        for i in 0..n {
            fake.submit(&format!("job-{i}"), json!({"run": {"command": ["true"]}})).await;
        }
        let began = Instant::now();
        fake.run();
        until_all(&fake.jobs(), |j| phase(j).ended(), n).await;
        let all = fake.jobs().list(&ListParams::default()).await.unwrap().items;
        let good = all.iter().filter(|j| phase(j) == Phase::Succeeded).count();
        let found =
            all.iter().filter(|j| j.status.as_ref().and_then(|s| s.identity.as_ref()).is_some_and(|i| i.adopted));
        let counts = control::counts(fake.dir.path()).unwrap();
        println!(
            "drops, {driver}: {good} of {n} succeeded in {:.0} s, {} found again, {} accepted, {} twice",
            began.elapsed().as_secs_f64(),
            found.count(),
            counts["accepted"],
            counts["duplicates"]
        );
        fake.stop().await;
    }
}

/// A gigabyte from a real cluster over SSH, and the same file by scp.
async fn results() {
    let Some(manifest) = std::env::var_os("SKIFF_SLURM_MANIFEST") else { return };
    let text = std::fs::read_to_string(manifest).unwrap();
    let objects: Vec<Value> = text.split("\n---\n").map(|d| serde_saphyr::from_str(d).unwrap()).collect();
    let [secret, cluster] = &objects[..] else { panic!("a Secret and an HpcCluster") };
    let world = support::world().await;
    let secrets = Api::<Secret>::namespaced(world.client.clone(), "default");
    secrets.create(&PostParams::default(), &serde_json::from_value(secret.clone()).unwrap()).await.unwrap();
    let clusters = Api::<HpcCluster>::all(world.client.clone());
    clusters.create(&PostParams::default(), &serde_json::from_value(cluster.clone()).unwrap()).await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let store = world.dir.path().join("results");
    let running = tokio::spawn(skiff_hpc::run(world.client.clone(), skiff_hpc::Config::new(store), stop.clone()));
    let job = json!({"apiVersion": "skiff.dev/v1", "kind": "GpuJob", "metadata": {"name": "big"}, "spec": {
        "run": {"script": "head -c 1000000000 /dev/urandom >big.dat"}, "outputs": ["big.dat"], "keepDirectory": true}});
    let api = world.api::<GpuJob>();
    api.create(&PostParams::default(), &serde_json::from_value(job).unwrap()).await.unwrap();
    support::until(&api, "big", |j: &GpuJob| {
        phase(j) == Phase::Finishing && j.status.as_ref().is_some_and(|s| s.outputs.is_some())
    })
    .await;
    let began = Instant::now();
    let end = async {
        while !phase(&api.get("big").await.unwrap()).ended() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, end).await.unwrap();
    let ours = began.elapsed().as_secs_f64();
    let status = api.get("big").await.unwrap().status.unwrap();
    let path = format!("{}/big.dat", status.directory.unwrap());
    let ssh = &cluster["spec"]["ssh"];
    let key = world.dir.path().join("key");
    std::fs::write(&key, secret["stringData"]["ssh-privatekey"].as_str().unwrap()).unwrap();
    std::fs::write(world.dir.path().join("key-cert.pub"), secret["stringData"]["ssh-certificate"].as_str().unwrap())
        .unwrap();
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    println!("results: 1 GB brought, digests compared, in {ours:.1} s");
    // As it is, and with the cipher that is used here: its own first choice is a slower one.
    for cipher in [None, Some("aes128-gcm@openssh.com")] {
        let began = Instant::now();
        let copied = tokio::process::Command::new("scp")
            .args(["-q", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-i"])
            .arg(&key)
            .args(cipher.iter().flat_map(|c| ["-c", *c]))
            .args(["-P", &ssh["port"].to_string()])
            .arg(format!("{}@127.0.0.1:{path}", ssh["user"].as_str().unwrap()))
            .arg(world.dir.path().join("copied"))
            .status();
        assert!(copied.await.unwrap().success());
        let scp = began.elapsed().as_secs_f64();
        let cipher = cipher.unwrap_or("its own cipher");
        println!("results: by scp with {cipher}, without digests, in {scp:.1} s ({:.0} %)", scp / ours * 100.0);
    }
    stop.cancel();
    running.await.unwrap().unwrap();
}

#[tokio::main]
async fn main() {
    let asked: Vec<String> = std::env::args().skip(1).collect();
    if let [word, file, data] = &asked[..]
        && word == "controller"
    {
        return Alone::run(file, data).await;
    }
    let wanted = |name: &str, usual: bool| if asked.is_empty() { usual } else { asked.iter().any(|a| a == name) };
    println!("{}", if cfg!(debug_assertions) { "a debug build" } else { "an optimised build" });
    if wanted("added", true) {
        added().await;
    }
    if wanted("rate", true) {
        rate().await;
    }
    if wanted("ends", true) {
        ends().await;
    }
    if wanted("cancel", true) {
        cancel().await;
    }
    if wanted("drops", false) {
        drops().await;
    }
    if wanted("results", true) {
        results().await;
    }
}
