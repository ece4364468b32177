//! Programs of the host that the proxy needs: `nft` to load rules, `conntrack` to forget connections, `iptables` to
//! pass the container engine's forward chain.
//!
//! `nft` reads one script and loads it as one transaction: all of it or nothing.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Why the packet filter did not take something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be started or talked to.
    #[error("cannot run {program}")]
    Start {
        /// Name of the program.
        program: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The program refused.
    #[error("{program} failed: {message}")]
    Failed {
        /// Name of the program.
        program: &'static str,
        /// The first lines it printed.
        message: String,
    },
    /// The kernel refused a change of elements.
    #[error("the kernel refused a change of the table")]
    Refused(#[source] std::io::Error),
    /// The program did not end in time.
    #[error("{0} took too long")]
    Timeout(&'static str),
}

/// Result of running a program.
pub type Result<T> = std::result::Result<T, Error>;

/// A load that takes longer hangs: fifty thousand Services take two seconds.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Loads a script in one transaction.
pub async fn load(script: &str) -> Result<()> {
    run("nft", &["-f", "-"], script).await.map(drop)
}

/// Whether the table is there. Says yes when it cannot tell, so that a failing program causes no reload.
///
/// It lists the chains of all tables, which is cheap; listing one chain makes nft read every map.
pub async fn present(table: &str) -> bool {
    let head = format!("table ip {table} {{");
    run("nft", &["list", "chains", "ip"], "").await.map_or(true, |listed| listed.lines().any(|line| line == head))
}

/// Removes the table, if it is there.
pub async fn remove(table: &str) -> Result<()> {
    load(&format!("add table ip {table}\ndelete table ip {table}\n")).await
}

/// Runs a program to its end with `input`, and gives what it printed.
pub async fn run(program: &'static str, args: &[&str], input: &str) -> Result<String> {
    let start = |source| Error::Start { program, source };
    let work = async {
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        let stdin = child.stdin.take();
        // Written while the output is read: either pipe alone could fill and block the other.
        let feed = async {
            if let Some(mut stdin) = stdin {
                // A program that ends without reading says why on its own.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        let output = output.map_err(start)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let message = said.lines().take(4).map(|l| l.chars().take(300).collect::<String>()).collect::<Vec<_>>();
        Err(Error::Failed { program, message: message.join("; ") })
    };
    tokio::time::timeout(TIMEOUT, work).await.unwrap_or(Err(Error::Timeout(program)))
}
