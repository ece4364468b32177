//! A login host: an SSH server that runs commands with the tools on the path, for one account.
//!
//! It believes keys in `authorized_keys`, certificates of the authority in `ca.pub` for the account's name, and the password of
//! `config.json`. Its own key is made at the first start; `known_hosts` has the line for clients. It is no login: whoever may come in
//! runs commands as the user of this process.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use russh::keys::{Certificate, HashAlg, PrivateKey, PublicKey, ssh_key};
use russh::server::{Auth, ChannelOpenHandle, Config, Handler, Msg, Session, VerifiedPublicKey, run_stream};
use russh::{Channel, ChannelId, ChannelMsg};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::state::Store;

/// Serves until the program ends. Answers the address.
///
/// # Errors
/// When there is no such address, or no key can be made.
pub async fn serve(store: Store, at: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(at).await.with_context(|| at.to_string())?;
    let at = listener.local_addr()?;
    let key = host_key(&store)?;
    let line = format!("[{}]:{} {}\n", at.ip(), at.port(), key.public_key().to_openssh()?);
    std::fs::write(store.path("known_hosts"), line)?;
    let config = Arc::new(Config {
        keys: vec![key],
        // Who tries keys in turn is not slowed down: this is for tests.
        auth_rejection_time: Duration::from_millis(1),
        auth_rejection_time_initial: Some(Duration::ZERO),
        inactivity_timeout: Some(Duration::from_secs(3600)),
        nodelay: true,
        ..Config::default()
    });
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            if store.faults().is_ok_and(|f| f.closed) {
                continue;
            }
            let Ok((stream, wire)) = two(stream) else { continue };
            let login = Login { store: store.clone(), wire: Arc::new(wire), channels: HashMap::new() };
            let config = Arc::clone(&config);
            tokio::spawn(async move {
                if let Ok(session) = run_stream(config, stream, login).await {
                    // However it ends, the client knows.
                    let _ = session.await;
                }
            });
        }
    });
    Ok(at)
}

/// A stream, and a second hold on it by which it can be cut.
fn two(stream: tokio::net::TcpStream) -> std::io::Result<(tokio::net::TcpStream, std::net::TcpStream)> {
    stream.set_nodelay(true)?;
    let stream = stream.into_std()?;
    let second = stream.try_clone()?;
    Ok((tokio::net::TcpStream::from_std(stream)?, second))
}

fn host_key(store: &Store) -> anyhow::Result<PrivateKey> {
    let path = store.path("host_key");
    if let Ok(text) = std::fs::read_to_string(&path) {
        return Ok(PrivateKey::from_openssh(text)?);
    }
    let key = new_key()?;
    write_key(&path, &key)?;
    Ok(key)
}

fn new_key() -> anyhow::Result<PrivateKey> {
    let mut seed = [0; 32];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut seed)?;
    Ok(PrivateKey::from(ssh_key::private::Ed25519Keypair::from_seed(&seed)))
}

fn write_key(path: &std::path::Path, key: &PrivateKey) -> anyhow::Result<()> {
    std::fs::write(path, key.to_openssh(ssh_key::LineEnding::LF)?.as_bytes())?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    Ok(())
}

/// Keys of a file, a line each.
fn keys(store: &Store, file: &str) -> Vec<PublicKey> {
    let text = std::fs::read_to_string(store.path(file)).unwrap_or_default();
    text.lines().filter_map(|l| PublicKey::from_openssh(l).ok()).collect()
}

struct Login {
    store: Store,
    wire: Arc<std::net::TcpStream>,
    channels: HashMap<ChannelId, Channel<Msg>>,
}

impl Login {
    fn known(&self, user: &str) -> bool {
        self.store.config().is_ok_and(|c| c.user == user)
    }

    fn start(&mut self, id: ChannelId, command: String, session: &mut Session) -> Result<(), russh::Error> {
        let Some(channel) = self.channels.remove(&id) else { return session.channel_failure(id) };
        session.channel_success(id)?;
        let (store, wire) = (self.store.clone(), Arc::clone(&self.wire));
        tokio::spawn(async move {
            let _counted = Counted::new();
            // What goes wrong with a command the client sees by its channel's end.
            let _ = execute(store, wire, channel, command).await;
        });
        Ok(())
    }
}

fn decide(accept: bool) -> Result<Auth, russh::Error> {
    Ok(if accept { Auth::Accept } else { Auth::reject() })
}

impl Handler for Login {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Self::Error> {
        let right = self.store.config().is_ok_and(|c| !c.password.is_empty() && c.password == password);
        decide(right && self.known(user))
    }

    async fn auth_publickey(&mut self, user: &str, key: VerifiedPublicKey<'_>) -> Result<Auth, Self::Error> {
        let believed = keys(&self.store, "authorized_keys").iter().any(|k| k.key_data() == key.public_key.key_data());
        decide(believed && self.known(user))
    }

    async fn auth_openssh_certificate(&mut self, user: &str, certificate: &Certificate) -> Result<Auth, Self::Error> {
        let authorities: Vec<_> = keys(&self.store, "ca.pub").iter().map(|k| k.fingerprint(HashAlg::Sha256)).collect();
        let expired = self.store.faults().is_ok_and(|f| f.expired);
        let valid = certificate.validate(authorities.iter()).is_ok();
        let named = certificate.valid_principals().iter().any(|p| p == user);
        decide(!expired && valid && named && self.known(user))
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.channels.insert(channel.id(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        self.start(channel, String::from_utf8_lossy(data).into_owned(), session)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let server = "/usr/lib/openssh/sftp-server";
        if name != "sftp" || !std::path::Path::new(server).exists() {
            return session.channel_failure(channel);
        }
        self.start(channel, server.into(), session)
    }
}

static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
/// Sessions that are open, and the most that ever were.
static SESSIONS: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// How many commands clients of this process's servers ran at a time, at most.
#[must_use]
pub fn most_sessions() -> u64 {
    SESSIONS[1].load(Ordering::Relaxed)
}

/// A session, counted as long as it is.
struct Counted;

impl Counted {
    fn new() -> Self {
        let open = SESSIONS[0].fetch_add(1, Ordering::Relaxed) + 1;
        SESSIONS[1].fetch_max(open, Ordering::Relaxed);
        Self
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        SESSIONS[0].fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs a command for a channel.
async fn execute(
    store: Store,
    wire: Arc<std::net::TcpStream>,
    mut channel: Channel<Msg>,
    command: String,
) -> anyhow::Result<()> {
    // A tool whose answer is to be lost makes this file.
    let cut = store.path(&format!("cut-{}-{}", std::process::id(), CONNECTIONS.fetch_add(1, Ordering::Relaxed)));
    let path = std::env::var("PATH").unwrap_or_default();
    let mut child = tokio::process::Command::new("/bin/bash")
        .arg("-c")
        .arg(command)
        .env("PATH", format!("{}:{path}", store.path("bin").display()))
        .env("FAKE_SLURM_DIR", &store.dir)
        .env("FAKE_SLURM_CONNECTION", &cut)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (Some(input), Some(out), Some(err)) = (child.stdin.take(), child.stdout.take(), child.stderr.take()) else {
        anyhow::bail!("no pipes");
    };
    let (to_out, to_err) = (channel.make_writer(), channel.make_writer_ext(Some(1)));
    let copies = async {
        let out = copy(out, to_out);
        let err = copy(err, to_err);
        tokio::join!(out, err);
        child.wait().await
    };
    tokio::pin!(copies);
    let mut input = Some(input);
    let status = loop {
        tokio::select! {
            status = &mut copies => break status?,
            message = channel.wait() => match message {
                Some(ChannelMsg::Data { data }) => {
                    if let Some(pipe) = &mut input
                        && pipe.write_all(&data).await.is_err()
                    {
                        input = None;
                    }
                }
                Some(ChannelMsg::Eof) => input = None,
                // The client went away: so does the command.
                Some(ChannelMsg::Close) | None => return Ok(()),
                Some(_) => {}
            },
        }
    };
    if std::fs::remove_file(&cut).is_ok() {
        wire.shutdown(std::net::Shutdown::Both)?;
        return Ok(());
    }
    let code = status.code().unwrap_or(255);
    channel.exit_status(u32::try_from(code).unwrap_or(255)).await?;
    channel.eof().await?;
    channel.close().await?;
    Ok(())
}

async fn copy(mut from: impl tokio::io::AsyncRead + Unpin, mut to: impl tokio::io::AsyncWrite + Unpin) {
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(n) = from.read(&mut buffer).await {
        if n == 0 || to.write_all(&buffer[..n]).await.is_err() {
            break;
        }
    }
    // The channel itself is closed by its owner.
    let _ = to.flush().await;
}

/// Makes a key for a client and lets it in: `FILE` and `FILE.pub` in the cluster's directory.
///
/// # Errors
/// Those of the disk.
pub fn authorize(store: &Store, file: &str) -> anyhow::Result<()> {
    let key = new_key()?;
    write_key(&store.path(file), &key)?;
    let line = key.public_key().to_openssh()? + "\n";
    std::fs::write(store.path(&format!("{file}.pub")), &line)?;
    let mut known = std::fs::File::options().create(true).append(true).open(store.path("authorized_keys"))?;
    std::io::Write::write_all(&mut known, line.as_bytes())?;
    Ok(())
}
