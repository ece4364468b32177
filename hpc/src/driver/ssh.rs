//! Commands of a login host, over one connection.
//!
//! Login hosts ban who knocks too often: there is one connection for everything, made when it is needed and kept alive; after a
//! failure the next try waits, longer each time; credentials that were refused are not shown again until they are others (or a
//! quarter of an hour went by). Few channels are open at a time. The host must show a key that is pinned.
//!
//! The command goes in a form that all shells read alike to a bash of its own: what login shell the account has does not matter.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use k8s_openapi::jiff::Timestamp;
use russh::client::{self, AuthResult, Handle, KeyboardInteractiveAuthResponse, Msg};
use russh::keys::ssh_key::EcdsaCurve;
use russh::keys::ssh_key::certificate::CertType;
use russh::keys::ssh_key::known_hosts::{KnownHosts, Marker as HostMarker};
use russh::keys::ssh_key::private::KeypairData;
use russh::keys::{
    Algorithm, Certificate, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate,
};
use russh::{Channel, ChannelMsg, cipher};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::Instant;

use super::rsa::{Rsa, SignError};
use super::{Output, PRINTED, Shell, SlurmError, Streamed};
use crate::api::SshAccess;

/// Time for a connection: address, keys, credentials.
const CONNECT: Duration = Duration::from_secs(20);
/// Time for a channel to open, and for its turn.
const TURN: Duration = Duration::from_secs(120);
/// Time until those that stream before have ended.
const STREAMS: Duration = Duration::from_secs(3600);
/// First and longest pause after a connection failed.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Pause after credentials were refused.
const REFUSED: Duration = Duration::from_secs(900);
/// Messages without an answer before a connection is given up.
const SILENT: usize = 3;
/// Bytes of complaints of a command that are kept.
const COMPLAINTS: usize = 1 << 16;

/// Kinds of keys of hosts whose certificates are asked for, where an authority is pinned.
const CERTIFIED: [Algorithm; 4] = [
    Algorithm::Ed25519,
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP384 },
    Algorithm::Ecdsa { curve: EcdsaCurve::NistP521 },
];

/// Ciphers where the processor has instructions for AES: several times faster than the first of the library's own.
const CIPHERS: [cipher::Name; 6] = [
    cipher::AES_128_GCM,
    cipher::AES_256_GCM,
    cipher::CHACHA20_POLY1305,
    cipher::AES_256_CTR,
    cipher::AES_192_CTR,
    cipher::AES_128_CTR,
];

/// How we show who we are.
enum Credential {
    Key(Arc<PrivateKey>),
    Certificate(Arc<PrivateKey>, Box<Certificate>),
    Rsa(Rsa, Box<PublicKey>, Option<Box<Certificate>>),
    Password(String),
}

/// What a host may show.
#[derive(Clone, Debug, Default)]
struct Pins {
    keys: Vec<PublicKey>,
    fingerprints: Vec<String>,
    /// Keys that sign certificates of hosts.
    authorities: Vec<PublicKey>,
}

struct Host {
    name: String,
    pins: Pins,
    shown: Arc<parking_lot::Mutex<Option<String>>>,
}

impl client::Handler for Host {
    type Error = russh::Error;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let key = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => key,
            PublicKeyOrCertificate::Certificate(certificate) => {
                let fault = self.pins.fault(certificate, &self.name, Timestamp::now().as_second());
                let good = fault.is_none();
                *self.shown.lock() = fault.map(|why| format!("a certificate that {why}"));
                return Ok(good);
            }
        };
        let fingerprint = key.fingerprint(HashAlg::Sha256).to_string();
        let known = self.pins.keys.iter().any(|k| k.key_data() == key.key_data());
        let known = known || self.pins.fingerprints.contains(&fingerprint);
        if !known {
            *self.shown.lock() = Some(format!("{fingerprint}, which is not one of hostKeys"));
        }
        Ok(known)
    }
}

impl Pins {
    fn parse(lines: &[String]) -> Result<Self, SlurmError> {
        let mut pins = Self::default();
        for line in lines {
            let line = line.trim();
            if line.starts_with("SHA256:") {
                pins.fingerprints.push(line.trim_end_matches('=').to_owned());
                continue;
            }
            let bad =
                || SlurmError::Denied(format!("{line:?} is neither a line of known_hosts nor a fingerprint SHA256:…"));
            // A bare public key is as good as a line with names.
            if let Ok(key) = line.parse::<PublicKey>() {
                pins.keys.push(key);
                continue;
            }
            let mut entries = KnownHosts::new(line);
            let entry = entries.next().ok_or_else(bad)?.map_err(|_| bad())?;
            match entry.marker() {
                None => pins.keys.push(entry.public_key().clone()),
                Some(HostMarker::CertAuthority) => pins.authorities.push(entry.public_key().clone()),
                Some(HostMarker::Revoked) => return Err(bad()),
            }
        }
        Ok(pins)
    }

    /// The kinds of keys to ask the host for, when they are known.
    fn algorithms(&self) -> Option<Vec<Algorithm>> {
        let all: Vec<_> = self.keys.iter().map(PublicKey::algorithm).collect();
        (self.fingerprints.is_empty() && !all.is_empty()).then_some(all)
    }

    /// What is wrong with a host's certificate. The connection itself proves that the host has its key.
    fn fault(&self, certificate: &Certificate, host: &str, now: i64) -> Option<&'static str> {
        let known: Vec<_> = self.authorities.iter().map(|a| a.fingerprint(HashAlg::Sha256)).collect();
        let names = certificate.valid_principals();
        if certificate.cert_type() != CertType::Host {
            return Some("is not a host's");
        }
        // None: any host, as the format has it.
        if !names.is_empty() && !names.iter().any(|n| n.eq_ignore_ascii_case(host)) {
            return Some("is for other hosts");
        }
        let valid = certificate.validate_at(u64::try_from(now).unwrap_or_default(), &known);
        valid.is_err().then_some("no pinned authority signed, or whose time is over or has not come")
    }
}

#[derive(Default)]
struct State {
    handle: Option<Arc<Handle<Host>>>,
    failures: u32,
    next: Option<(Instant, SlurmError)>,
}

/// Commands of a login host.
pub struct Ssh {
    access: SshAccess,
    pins: Pins,
    credential: Credential,
    state: Mutex<State>,
    turns: Semaphore,
    /// Of those that move much: one channel is left for questions, where there are several.
    streams: Semaphore,
}

/// Whether the processor has instructions for AES.
fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

fn text<'a>(secret: &'a BTreeMap<String, Vec<u8>>, key: &str) -> Option<&'a str> {
    secret.get(key).and_then(|v| std::str::from_utf8(v).ok()).filter(|v| !v.is_empty())
}

/// How many channels are open at a time, at most.
fn channels(access: &SshAccess) -> usize {
    access.channels.unwrap_or(2).max(1) as usize
}

impl Ssh {
    /// A line to this host with these credentials: nothing is sent yet.
    ///
    /// # Errors
    /// When the credentials or the host's keys cannot be read.
    pub fn new(access: SshAccess, secret: &BTreeMap<String, Vec<u8>>) -> Result<Self, SlurmError> {
        let pins = Pins::parse(&access.host_keys)?;
        let name = format!("{}/{}", access.secret.namespace, access.secret.name);
        let bad = |what: &str, e: &dyn std::fmt::Display| SlurmError::Denied(format!("{what} of Secret {name}: {e}"));
        let credential = match (text(secret, "ssh-privatekey"), text(secret, "password")) {
            (Some(key), _) => {
                let key = russh::keys::decode_secret_key(key, text(secret, "passphrase"));
                let key = key.map_err(|e| bad("ssh-privatekey", &e))?;
                let certificate = match text(secret, "ssh-certificate") {
                    None => None,
                    Some(text) => {
                        let certificate =
                            Certificate::from_openssh(text.trim()).map_err(|e| bad("ssh-certificate", &e))?;
                        if certificate.public_key() != key.public_key().key_data() {
                            return Err(bad("ssh-certificate", &"it is for another key"));
                        }
                        Some(Box::new(certificate))
                    }
                };
                match (key.key_data(), certificate) {
                    (KeypairData::Rsa(pair), certificate) => {
                        let rsa = Rsa::new(pair).map_err(|e| bad("ssh-privatekey", &e))?;
                        Credential::Rsa(rsa, Box::new(key.public_key().clone()), certificate)
                    }
                    (_, Some(certificate)) => Credential::Certificate(Arc::new(key), certificate),
                    (_, None) => Credential::Key(Arc::new(key)),
                }
            }
            (None, Some(password)) => Credential::Password(password.to_owned()),
            (None, None) => {
                return Err(SlurmError::Denied(format!("Secret {name} has neither ssh-privatekey nor password")));
            }
        };
        let channels = channels(&access);
        let (turns, streams) = (Semaphore::new(channels), Semaphore::new(channels.saturating_sub(1).max(1)));
        Ok(Self { access, pins, credential, state: Mutex::default(), turns, streams })
    }

    async fn connect(&self) -> Result<Handle<Host>, SlurmError> {
        if let Some(end) = self.credential_expires().filter(|e| *e <= Timestamp::now().as_second()) {
            let end = Timestamp::from_second(end).map(|t| t.to_string()).unwrap_or_default();
            return Err(SlurmError::Denied(format!("the SSH certificate ended at {end}")));
        }
        let mut config = client::Config {
            keepalive_interval: Some(Duration::from_secs(self.access.keep_alive_seconds.unwrap_or(60).into())),
            keepalive_max: SILENT,
            nodelay: true,
            // Large files come in large windows.
            window_size: 16 << 20,
            maximum_packet_size: 65_535,
            ..client::Config::default()
        };
        if has_aes() {
            config.preferred.cipher = Cow::Borrowed(&CIPHERS);
        }
        if let Some(algorithms) = self.pins.algorithms() {
            config.preferred.key = Cow::Owned(algorithms);
        }
        if !self.pins.authorities.is_empty() {
            config.preferred.host_key_certificates = Cow::Borrowed(&CERTIFIED);
        }
        let shown = Arc::new(parking_lot::Mutex::new(None));
        let host = Host { name: self.access.host.clone(), pins: self.pins.clone(), shown: Arc::clone(&shown) };
        let address = (self.access.host.as_str(), self.access.port.unwrap_or(22));
        let connected = client::connect(Arc::new(config), address, host).await;
        let mut handle = connected.map_err(|e| match shown.lock().take() {
            Some(key) => SlurmError::Denied(format!("the host shows {key}")),
            None => SlurmError::Unreachable(e.to_string()),
        })?;
        let user = self.access.user.clone();
        let broken = |e: russh::Error| SlurmError::Unreachable(e.to_string());
        let result = match &self.credential {
            Credential::Key(key) => {
                let key = PrivateKeyWithHashAlg::new(Arc::clone(key), None);
                handle.authenticate_publickey(user, key).await.map_err(broken)?
            }
            Credential::Certificate(key, certificate) => {
                let certificate = (**certificate).clone();
                handle.authenticate_openssh_cert(user, Arc::clone(key), certificate).await.map_err(broken)?
            }
            Credential::Rsa(rsa, key, certificate) => {
                // None: the host does not say; each since 2016 takes the longer one.
                let hash = match handle.best_supported_rsa_hash().await.map_err(broken)? {
                    Some(None) => return Err(SlurmError::Denied("the host takes RSA keys with SHA-1 only".into())),
                    Some(Some(hash)) => Some(hash),
                    None => Some(HashAlg::Sha512),
                };
                let (mut rsa, broken) = (rsa.clone(), |e: SignError| SlurmError::Unreachable(e.to_string()));
                match certificate {
                    None => handle.authenticate_publickey_with(user, (**key).clone(), hash, &mut rsa).await,
                    Some(c) => handle.authenticate_certificate_with(user, (**c).clone(), hash, &mut rsa).await,
                }
                .map_err(broken)?
            }
            Credential::Password(password) => {
                match handle.authenticate_password(user.clone(), password.clone()).await.map_err(broken)? {
                    AuthResult::Success => AuthResult::Success,
                    refused => self.interactive(&mut handle, user, password).await?.unwrap_or(refused),
                }
            }
        };
        match result {
            AuthResult::Success => Ok(handle),
            AuthResult::Failure { remaining_methods, .. } => {
                let user = &self.access.user;
                Err(SlurmError::Denied(format!("the host does not let {user} in (it takes {remaining_methods:?})")))
            }
        }
    }

    /// Many hosts ask for the password as a question.
    async fn interactive(
        &self,
        handle: &mut Handle<Host>,
        user: String,
        password: &str,
    ) -> Result<Option<AuthResult>, SlurmError> {
        let broken = |e: russh::Error| SlurmError::Unreachable(e.to_string());
        let mut answer = handle.authenticate_keyboard_interactive_start(user, None).await.map_err(broken)?;
        for _ in 0..4 {
            match answer {
                KeyboardInteractiveAuthResponse::Success => return Ok(Some(AuthResult::Success)),
                KeyboardInteractiveAuthResponse::Failure { .. } => return Ok(None),
                KeyboardInteractiveAuthResponse::InfoRequest { prompts, .. } => {
                    let answers = prompts.iter().map(|p| if p.echo { String::new() } else { password.to_owned() });
                    let answers = answers.collect();
                    answer = handle.authenticate_keyboard_interactive_respond(answers).await.map_err(broken)?;
                }
            }
        }
        Ok(None)
    }

    /// The connection, which is made where there is none.
    async fn handle(&self) -> Result<Arc<Handle<Host>>, SlurmError> {
        let mut state = self.state.lock().await;
        if let Some(handle) = state.handle.as_ref().filter(|h| !h.is_closed()) {
            return Ok(Arc::clone(handle));
        }
        state.handle = None;
        if let Some((at, error)) = &state.next
            && *at > Instant::now()
        {
            return Err(error.clone());
        }
        let connected = tokio::time::timeout(CONNECT, self.connect()).await;
        let error = match connected {
            Ok(Ok(handle)) => {
                let handle = Arc::new(handle);
                *state = State { handle: Some(Arc::clone(&handle)), ..State::default() };
                return Ok(handle);
            }
            Ok(Err(error)) => error,
            Err(_) => SlurmError::Unreachable(format!("no connection within {CONNECT:?}")),
        };
        let pause = match &error {
            SlurmError::Denied(_) => REFUSED,
            _ => PAUSE.0.saturating_mul(1 << state.failures.min(10)).min(PAUSE.1),
        };
        state.failures += 1;
        state.next = Some((Instant::now() + pause, error.clone()));
        Err(error)
    }

    /// A channel; what fails here was not sent.
    async fn open(&self) -> Result<Channel<Msg>, SlurmError> {
        // A connection that just broke is made again once.
        for last in [false, true] {
            let handle = self.handle().await?;
            let opened = tokio::time::timeout(CONNECT, handle.channel_open_session()).await;
            match opened {
                Ok(Ok(channel)) => return Ok(channel),
                Ok(Err(e)) if last => return Err(SlurmError::Unreachable(e.to_string())),
                Err(_) if last => return Err(SlurmError::Unreachable("no channel in time".into())),
                _ => {
                    let mut state = self.state.lock().await;
                    if state.handle.as_ref().is_some_and(|h| Arc::ptr_eq(h, &handle)) {
                        state.handle = None;
                    }
                }
            }
        }
        Err(SlurmError::Unreachable("no channel".into()))
    }

    async fn turn(&self) -> Result<tokio::sync::SemaphorePermit<'_>, SlurmError> {
        let busy = || SlurmError::Unreachable("the connection is busy".into());
        tokio::time::timeout(TURN, self.turns.acquire()).await.map_err(|_| busy())?.map_err(|_| busy())
    }
}

/// A command for any login shell: within single quotes there is nothing that any of them reads, and no process is needed to
/// read it back, as for each of many submissions.
fn command(script: &str) -> String {
    let mut text = String::with_capacity(script.len() + script.len() / 4 + 40);
    for c in script.chars() {
        if matches!(c, '\\' | '\'' | '!') || c.is_ascii_control() {
            text.push_str(&format!("\\x{:02x}", u32::from(c)));
        } else {
            text.push(c);
        }
    }
    format!("exec /bin/bash -c 'eval $'\\''{text}'\\'''")
}

/// Runs a command in a channel and hands on what it prints, at most so many bytes. Answers its exit code, what it complained,
/// and how many bytes came.
async fn converse(
    channel: Channel<Msg>,
    command: String,
    input: Bytes,
    to: &mut (dyn AsyncWrite + Send + Unpin),
    most: u64,
) -> Result<(i32, Bytes, u64), SlurmError> {
    let lost = |e: &dyn std::fmt::Display| SlurmError::Lost(e.to_string());
    channel.exec(true, command).await.map_err(|e| lost(&e))?;
    let (mut from, into) = channel.split();
    let write = async {
        // A command need not read what it is given.
        if !input.is_empty() {
            let _ = into.data_bytes(input).await;
        }
        let _ = into.eof().await;
    };
    let read = async {
        let (mut code, mut complaints, mut count) = (None, BytesMut::new(), 0);
        while let Some(message) = from.wait().await {
            match message {
                ChannelMsg::Data { data } => {
                    count += data.len() as u64;
                    if count > most {
                        return Err(SlurmError::Lost("too much output".into()));
                    }
                    to.write_all(&data).await.map_err(|e| SlurmError::Lost(e.to_string()))?;
                }
                ChannelMsg::ExtendedData { data, .. } if complaints.len() < COMPLAINTS => {
                    complaints.extend_from_slice(&data)
                }
                ChannelMsg::ExitStatus { exit_status } => code = i32::try_from(exit_status).ok(),
                ChannelMsg::ExitSignal { .. } => code = Some(-1),
                ChannelMsg::Failure => return Err(SlurmError::Unsupported("the host runs no commands".into())),
                _ => {}
            }
        }
        let ended = || SlurmError::Lost("the connection ended before the command".into());
        Ok((code.ok_or_else(ended)?, complaints.freeze(), count))
    };
    // Writing ends with the reading: what is not read by then never is.
    tokio::pin!(write, read);
    let mut written = false;
    loop {
        tokio::select! {
            ended = &mut read => return ended,
            () = &mut write, if !written => written = true,
        }
    }
}

#[async_trait]
impl Shell for Ssh {
    async fn exec(&self, script: &str, input: Bytes, limit: Duration) -> Result<Output, SlurmError> {
        let command = command(script);
        let _turn = self.turn().await?;
        let channel = self.open().await?;
        let mut stdout = vec![];
        let ended = tokio::time::timeout(limit, converse(channel, command, input, &mut stdout, PRINTED as u64)).await;
        let (code, stderr, _) = ended.map_err(|_| SlurmError::Lost(format!("no answer within {limit:?}")))??;
        Ok(Output { code, stdout: stdout.into(), stderr })
    }

    async fn stream(
        &self,
        script: &str,
        to: &mut (dyn AsyncWrite + Send + Unpin),
        limit: Duration,
    ) -> Result<Streamed, SlurmError> {
        let command = command(script);
        let busy = || SlurmError::Unreachable("the connection is busy with other files".into());
        let turn = tokio::time::timeout(STREAMS, self.streams.acquire()).await;
        let _stream = turn.map_err(|_| busy())?.map_err(|_| busy())?;
        let _turn = self.turn().await?;
        let channel = self.open().await?;
        let ended = tokio::time::timeout(limit, converse(channel, command, Bytes::new(), to, u64::MAX)).await;
        let (code, stderr, count) = ended.map_err(|_| SlurmError::Lost(format!("not read within {limit:?}")))??;
        Ok(Streamed { code, stderr, count })
    }

    fn narrow(&self) -> Option<usize> {
        Some(channels(&self.access))
    }

    fn credential_expires(&self) -> Option<i64> {
        match &self.credential {
            // The largest number is for ever.
            Credential::Certificate(_, certificate) | Credential::Rsa(_, _, Some(certificate)) => {
                i64::try_from(certificate.valid_before()).ok().filter(|t| *t < i64::from(u32::MAX) * 64)
            }
            Credential::Key(_) | Credential::Rsa(_, _, None) | Credential::Password(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKfVqvv9sqXodoaL16m+vCH4/NziML9f2xrgKt+0/2Hp";

    #[test]
    fn pins_are_lines_or_fingerprints() {
        let lines = [format!("[127.0.0.1]:22 {KEY}"), KEY.to_owned(), "SHA256:abcdefgh=".to_owned()];
        let pins = Pins::parse(&lines).unwrap();
        assert_eq!((pins.keys.len(), pins.fingerprints.len()), (2, 1));
        assert!(pins.algorithms().is_none(), "a fingerprint may be of any kind");
        assert!(Pins::parse(&lines[..1]).unwrap().algorithms().is_some());
        let authority = Pins::parse(&[format!("@cert-authority *.example.org {KEY}")]).unwrap();
        assert_eq!((authority.keys.len(), authority.authorities.len()), (0, 1));
        for bad in ["", "nonsense here now", &format!("@revoked * {KEY}")] {
            assert!(Pins::parse(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }

    #[test]
    fn certificates_of_hosts() {
        use russh::keys::ssh_key::certificate::Builder;
        use russh::keys::ssh_key::private::Ed25519Keypair;
        let [authority, host] = [1u8, 2].map(|seed| PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32])));
        let pins = Pins { authorities: vec![authority.public_key().clone()], ..Pins::default() };
        let make = |kind, names: &[&str], by: &PrivateKey| {
            let mut b = Builder::new([7; 16], host.public_key().key_data().clone(), 1000, 2000).unwrap();
            b.cert_type(kind).unwrap();
            if names.is_empty() {
                b.all_principals_valid().unwrap();
            }
            for name in names {
                b.valid_principal(*name).unwrap();
            }
            b.sign(by).unwrap()
        };
        let good = make(CertType::Host, &["login.example.org"], &authority);
        assert_eq!(pins.fault(&good, "Login.example.org", 1500), None);
        assert_eq!(pins.fault(&make(CertType::Host, &[], &authority), "any", 1500), None);
        assert!(pins.fault(&good, "other.example.org", 1500).is_some());
        assert!(pins.fault(&good, "login.example.org", 2500).is_some());
        assert!(pins.fault(&good, "login.example.org", 500).is_some());
        assert!(Pins::default().fault(&good, "login.example.org", 1500).is_some());
        assert!(
            pins.fault(&make(CertType::User, &["login.example.org"], &authority), "login.example.org", 1500).is_some()
        );
        assert!(pins.fault(&make(CertType::Host, &["login.example.org"], &host), "login.example.org", 1500).is_some());
    }

    #[test]
    fn commands_are_one_word_for_any_shell() {
        let text = "echo 'a'!\n\"b\" $(c)\t\\n\\\\ \u{e4}";
        let c = command(text);
        let inner = c.strip_prefix("exec /bin/bash -c 'eval $'\\''").unwrap().strip_suffix("'\\'''").unwrap();
        // Nothing ends the quotes, is a line's end, history of csh, or an escape of fish.
        assert!(!inner.contains(['\'', '\n', '!']) && !inner.contains("\\\\"), "{inner}");
        let mut tried = 0;
        for shell in ["sh", "bash", "dash", "csh", "tcsh", "fish", "zsh", "ksh"] {
            let script = format!("printf %s {}\nexit 3", crate::script::quote(text));
            let Ok(out) = std::process::Command::new(shell).arg("-c").arg(command(&script)).output() else { continue };
            assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(3), text.as_bytes()), "{shell}");
            tried += 1;
        }
        assert!(tried >= 2);
    }

    #[test]
    fn secrets_must_open_something() {
        let access = SshAccess { host_keys: vec![KEY.into()], ..SshAccess::default() };
        let secret = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.as_bytes().to_vec())]);
        for bad in [BTreeMap::new(), secret("ssh-privatekey", "nonsense"), secret("password", "")] {
            assert!(matches!(Ssh::new(access.clone(), &bad), Err(SlurmError::Denied(_))));
        }
        assert!(Ssh::new(access, &secret("password", "x")).is_ok());
    }
}
