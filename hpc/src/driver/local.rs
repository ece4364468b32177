//! Commands of this machine. They see nothing of this process's environment: what sbatch sees, jobs inherit.

use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::{Output, PRINTED, Shell, SlurmError, Streamed};

/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes that a command may complain.
const COMPLAINTS: usize = 1 << 20;

/// Commands of this machine, as this account or as another.
#[derive(Clone, Debug, Default)]
pub struct Local {
    user: Option<String>,
}

impl Local {
    /// As `user`, or as whoever runs this.
    #[must_use]
    pub fn new(user: Option<String>) -> Self {
        Self { user }
    }

    fn start(&self, script: &str) -> Result<Child, SlurmError> {
        let mut command = match &self.user {
            None => {
                let mut c = Command::new("/bin/bash");
                c.arg("-c").arg(script);
                c
            }
            Some(user) => {
                let mut c = Command::new("runuser");
                c.args(["-u", user, "--", "/bin/bash", "-c"]).arg(script);
                c
            }
        };
        let home = if self.user.is_none() { std::env::var_os("HOME") } else { None };
        command.env_clear().env("PATH", PATH).envs(home.map(|h| ("HOME", h))).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command.process_group(0);
        command.spawn().map_err(|e| SlurmError::Unreachable(format!("no command can be started: {e}")))
    }
}

/// Reads to the end; more than `most` is an error.
async fn gather(from: Option<impl AsyncRead + Unpin>, most: usize) -> std::io::Result<Vec<u8>> {
    let mut all = vec![];
    if let Some(from) = from {
        from.take(most as u64 + 1).read_to_end(&mut all).await?;
    }
    if all.len() > most {
        return Err(std::io::Error::other("too much output"));
    }
    Ok(all)
}

#[async_trait]
impl Shell for Local {
    async fn exec(&self, script: &str, input: Bytes, limit: Duration) -> Result<Output, SlurmError> {
        let mut child = self.start(script)?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let write = async move {
            if let Some(mut stdin) = stdin {
                // A command need not read what it is given.
                let _ = stdin.write_all(&input).await;
                let _ = stdin.shutdown().await;
            }
        };
        let all = async { tokio::join!(write, gather(stdout, PRINTED), gather(stderr, COMPLAINTS), child.wait()) };
        let lost = |what: String| SlurmError::Lost(what);
        let ended = tokio::time::timeout(limit, all).await;
        let ((), stdout, stderr, status) = ended.map_err(|_| lost(format!("no answer within {limit:?}")))?;
        let status = status.map_err(|e| lost(e.to_string()))?;
        let stdout = stdout.map_err(|e| lost(e.to_string()))?;
        let stderr = stderr.map_err(|e| lost(e.to_string()))?;
        Ok(Output { code: status.code().unwrap_or(-1), stdout: stdout.into(), stderr: stderr.into() })
    }

    async fn stream(
        &self,
        script: &str,
        to: &mut (dyn AsyncWrite + Send + Unpin),
        limit: Duration,
    ) -> Result<Streamed, SlurmError> {
        let mut child = self.start(script)?;
        drop(child.stdin.take());
        let lost = |e: &dyn std::fmt::Display| SlurmError::Lost(e.to_string());
        let mut stdout = child.stdout.take().ok_or_else(|| lost(&"no pipe"))?;
        let stderr = child.stderr.take();
        let all = async {
            let (count, stderr) = tokio::try_join!(tokio::io::copy(&mut stdout, to), gather(stderr, COMPLAINTS))?;
            let code = child.wait().await?.code().unwrap_or(-1);
            Ok::<_, std::io::Error>(Streamed { code, stderr: stderr.into(), count })
        };
        let ended = tokio::time::timeout(limit, all).await;
        ended.map_err(|_| lost(&format!("not read within {limit:?}")))?.map_err(|e| lost(&e))
    }
}
