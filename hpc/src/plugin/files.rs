//! `files` and `get`: results.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use http_body_util::BodyExt as _;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use skiff_plugin::table::render;

use super::Session;
use super::logs::get as ask;
use crate::api::GpuJob;
use crate::script::inside;

/// `files`.
#[derive(Clone, Debug, Args)]
pub(super) struct FilesArgs {
    /// The job.
    name: String,
}

/// `get`.
#[derive(Clone, Debug, Args)]
pub(super) struct GetArgs {
    /// The job.
    name: String,
    /// The file; again for more. Default: all.
    #[arg(short, long)]
    file: Vec<String>,
    /// Directory to put them into.
    #[arg(short, long, default_value = ".")]
    directory: PathBuf,
    /// Print a file instead.
    #[arg(long, requires = "file")]
    stdout: bool,
}

/// A result.
#[derive(Clone, Debug, Deserialize)]
struct Listed {
    path: String,
    size: u64,
    sha256: String,
}

#[derive(Debug, Deserialize)]
struct Listing {
    files: Vec<Listed>,
}

async fn listing(session: &Session, name: &str) -> anyhow::Result<Vec<Listed>> {
    // Errors about the job are the API's.
    session.api::<GpuJob>().get(name).await?;
    let body = ask(session, &format!("/hpc/{}/{name}/files", session.namespace), None).await?.into_body();
    let bytes = body.collect().await.context("the answer broke off")?.to_bytes();
    let listing: Listing = serde_json::from_slice(&bytes).context("the server of results speaks another language")?;
    Ok(listing.files)
}

pub(super) async fn files(session: &Session, args: FilesArgs) -> anyhow::Result<()> {
    let files = listing(session, &args.name).await?;
    if files.is_empty() {
        eprintln!("No results of job {}.", args.name);
        return Ok(());
    }
    let rows: Vec<Vec<String>> =
        files.into_iter().map(|f| vec![f.path, f.size.to_string(), f.sha256.chars().take(12).collect()]).collect();
    print!("{}", render(&["FILE", "BYTES", "SHA256"], &rows));
    Ok(())
}

pub(super) async fn get(session: &Session, args: GetArgs) -> anyhow::Result<()> {
    let mut files = listing(session, &args.name).await?;
    if !args.file.is_empty() {
        if let Some(missing) = args.file.iter().find(|f| !files.iter().any(|l| l.path == **f)) {
            bail!("job {} has no result {missing}: kubectl gpu files {} lists them", args.name, args.name);
        }
        files.retain(|f| args.file.contains(&f.path));
    }
    if files.is_empty() {
        eprintln!("No results of job {}.", args.name);
    }
    for file in files {
        if args.stdout {
            let mut body = ask(session, &place(session, &args.name, &file), None).await?.into_body();
            while let Some(frame) = body.frame().await {
                if let Ok(data) = frame?.into_data() {
                    std::io::stdout().write_all(&data)?;
                }
            }
            continue;
        }
        // The server is believed as little as an archive is.
        if !inside(&file.path) {
            bail!("{:?} would lie outside {}", file.path, args.directory.display());
        }
        let to = args.directory.join(&file.path);
        fetch(session, &args.name, &file, &to).await?;
        println!("{}", to.display());
    }
    Ok(())
}

fn place(session: &Session, job: &str, file: &Listed) -> String {
    let mut path = format!("/hpc/{}/{job}/files/", session.namespace);
    for byte in file.path.bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-~".contains(&byte) {
            path.push(byte as char);
        } else {
            path.push_str(&format!("%{byte:02X}"));
        }
    }
    path
}

/// Fetches a file beside its place and moves it there once its digest is right. What an earlier call left is gone on with.
async fn fetch(session: &Session, job: &str, file: &Listed, to: &Path) -> anyhow::Result<()> {
    let directory = to.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let short: String = file.sha256.chars().take(12).collect();
    let mut name = to.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{short}.part"));
    let part = directory.join(name);
    let have = std::fs::metadata(&part).map_or(0, |m| m.len()).min(file.size);
    let mut digest = Sha256::new();
    if have > 0 {
        std::io::copy(&mut std::fs::File::open(&part)?, &mut digest)?;
    }
    if have < file.size {
        let answer = ask(session, &place(session, job, file), (have > 0).then_some(have)).await?;
        let goes_on = answer.status() == http::StatusCode::PARTIAL_CONTENT;
        let mut out =
            std::fs::File::options().create(true).write(true).append(goes_on).truncate(!goes_on).open(&part)?;
        if !goes_on {
            digest = Sha256::new();
        }
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            let frame = frame.with_context(|| format!("{} broke off: the next call goes on from there", file.path))?;
            if let Ok(data) = frame.into_data() {
                digest.update(&data);
                out.write_all(&data)?;
            }
        }
        out.sync_all()?;
    } else if have == 0 {
        std::fs::write(&part, "")?;
    }
    let got: String = digest.finalize().iter().map(|b| format!("{b:02x}")).collect();
    if got != file.sha256 {
        std::fs::remove_file(&part)?;
        bail!("{} arrived damaged: its digest is {got}, not {}", file.path, file.sha256);
    }
    std::fs::rename(&part, to).with_context(|| to.display().to_string())?;
    Ok(())
}
