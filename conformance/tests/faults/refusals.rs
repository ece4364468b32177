//! Starts that cannot work end at once, with one line that says what to do.

use std::net::TcpListener;

use anyhow::{Result, ensure};

use crate::process::{Api, free_port, run};

fn refused(args: &[&str], wanted: &[&str]) -> Result<()> {
    let o = run(args)?;
    let said = String::from_utf8_lossy(&o.stderr);
    ensure!(!o.status.success(), "`skiff {}` works", args.join(" "));
    ensure!(said.trim().lines().count() == 1, "more than one line: {said}");
    for w in wanted {
        ensure!(said.contains(w), "wanted {w:?} in: {said}");
    }
    Ok(())
}

#[test]
fn port_taken() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let at = taken.local_addr()?.to_string();
    let data = dir.path().join("d").to_string_lossy().into_owned();
    refused(&["apiserver", "--no-kubeconfig", "--data-dir", &data, "--listen", &at], &[&at, "--listen"])
}

#[test]
fn data_directory_that_cannot_be_one() -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().to_string_lossy().into_owned();
    refused(&["apiserver", "--no-kubeconfig", "--data-dir", &path, "--listen", "127.0.0.1:0"], &[&path, "--data-dir"])
}

#[test]
fn damaged_data() -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::create_dir(dir.path().join("store"))?;
    std::fs::write(dir.path().join("store/skiff.redb"), [7; 5000])?;
    let data = dir.path().to_string_lossy().into_owned();
    let args = ["apiserver", "--no-kubeconfig", "--data-dir", &data, "--listen", "127.0.0.1:0"];
    refused(&args, &["skiff.redb", "backup"])?;
    ensure!(std::fs::read(dir.path().join("store/skiff.redb"))? == [7; 5000], "the file was changed");
    Ok(())
}

#[test]
fn no_engine() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (data, socket) = (dir.path().join("d"), dir.path().join("none.sock"));
    let (data, socket) = (data.to_string_lossy(), socket.to_string_lossy());
    let listen = format!("127.0.0.1:{}", free_port()?);
    let args = ["up", "--no-kubeconfig", "--data-dir", &*data, "--engine", &*socket, "--listen", &listen];
    refused(&args, &[&socket, "start Docker", "--engine"])
}

#[tokio::test(flavor = "multi_thread")]
async fn second_server_on_the_same_data() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("d");
    let mut first = Api::start(&data, &dir.path().join("log")).await?;
    let text = data.to_string_lossy().into_owned();
    let listen = format!("127.0.0.1:{}", free_port()?);
    let args = ["apiserver", "--no-kubeconfig", "--data-dir", &text, "--listen", &listen];
    tokio::task::block_in_place(|| refused(&args, &["running already", "--data-dir"]))?;
    ensure!(first.alive()?, "the first server ended");
    first.client().await?.apiserver_version().await?;
    Ok(())
}
