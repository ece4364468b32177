//! Programs of other languages against a real server process.
//!
//! They are in `conformance/clients`. Each needs its language's tools, which a machine may lack: then the test says so and
//! has shown nothing. hack/test.sh runs where they are.

mod aggregated;
mod kube_rs;

// One helper for all tests with processes; each uses a part of it.
#[allow(dead_code)]
#[path = "../faults/process.rs"]
mod process;

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use process::Api;

/// Time for a program, with fetching and building it.
const PATIENCE: Duration = Duration::from_secs(540);

fn is_there(program: &str) -> bool {
    Command::new(program).arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Runs the program in a folder of `conformance/clients` against a server, which must have started.
async fn play(name: &str, data: &Path, server: &Api) -> Result<()> {
    let mut child = Command::new("go")
        .args(["run", "."])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name))
        .env("KUBECONFIG", data.join("kubeconfig/admin.yaml"))
        .env("GOFLAGS", "-mod=mod")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run go")?;
    let end = Instant::now() + PATIENCE;
    while child.try_wait()?.is_none() {
        if Instant::now() > end {
            child.kill()?;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let o = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&o.stdout);
    print!("{said}");
    ensure!(o.status.success(), "{said}{}\n{}", String::from_utf8_lossy(&o.stderr), server.said());
    Ok(())
}

/// Starts the controllers beside a server. The caller ends them.
fn controllers(data: &Path, log: &Path) -> Result<Child> {
    let log = File::options().append(true).open(log)?;
    let mut c = Command::new(process::binary()?);
    c.args(["--log", "warn", "controller-manager", "--kubeconfig"])
        .arg(data.join("kubeconfig/controller-manager.yaml"));
    c.arg("--data-dir").arg(data);
    Ok(c.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?)
}

/// client-go: protobuf, informers, pages, server-side apply, every kind, leader election.
#[tokio::test(flavor = "multi_thread")]
async fn client_go() -> Result<()> {
    if !is_there("go") {
        println!("not tried: go is not installed");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let server = Api::start(&data, &dir.path().join("log")).await?;
    play("go", &data, &server).await
}

/// controller-runtime: an operator with its kind, webhooks, leader election, finalizers and owned objects.
#[tokio::test(flavor = "multi_thread")]
async fn controller_runtime() -> Result<()> {
    if !is_there("go") {
        println!("not tried: go is not installed");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("data");
    let log = dir.path().join("log");
    let server = Api::start(&data, &log).await?;
    // Deployments and the collector of what is owned are the controllers'.
    let mut controllers = controllers(&data, &log)?;
    let result = play("operator", &data, &server).await;
    controllers.kill()?;
    controllers.wait()?;
    result
}
