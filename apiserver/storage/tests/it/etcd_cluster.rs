//! A real etcd cluster for a test: Debian's `etcd`, its own data, ports of the loopback, all gone at the end.
//!
//! The system test of several servers (conformance/tests/etcd) includes this file too.

#![allow(dead_code)] // Each of the two programs uses a part.
#![allow(clippy::unwrap_used)] // In a test a panic is the report.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Certificates of a cluster, in PEM.
pub(crate) struct Certificates {
    /// The authority.
    pub(crate) ca: String,
    /// Certificate and key that servers and clients show.
    pub(crate) leaf: (String, String),
}

/// The members; killed when dropped.
pub(crate) struct Cluster {
    members: Vec<Member>,
    pub(crate) certificates: Option<Certificates>,
    _dir: tempfile::TempDir,
}

struct Member {
    arguments: Vec<String>,
    log: PathBuf,
    url: String,
    child: Option<Child>,
}

/// Whether etcd is there. Where tests may not be left out, its absence is a failure.
pub(crate) fn available() -> bool {
    let found = Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_ok();
    assert!(found || std::env::var_os("SKIFF_REQUIRE_ETCD").is_none(), "etcd is not installed");
    if !found {
        eprintln!("etcd is not installed: left out");
    }
    found
}

/// A port nobody has.
pub(crate) fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn certificates() -> Certificates {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let cert = leaf.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
    Certificates { ca: ca_pem, leaf: (cert.pem(), key.serialize_pem()) }
}

impl Cluster {
    /// Starts `count` members; with `tls` they take only clients with a certificate.
    pub(crate) fn start(count: usize, tls: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let certificates = tls.then(certificates);
        let mut flags = vec![];
        if let Some(c) = &certificates {
            let file = |name: &str, text: &str| {
                let path = dir.path().join(name);
                std::fs::write(&path, text).unwrap();
                path.display().to_string()
            };
            let (ca, cert, key) = (file("ca.pem", &c.ca), file("cert.pem", &c.leaf.0), file("key.pem", &c.leaf.1));
            flags.extend(["--client-cert-auth".to_owned(), format!("--trusted-ca-file={ca}")]);
            flags.extend([format!("--cert-file={cert}"), format!("--key-file={key}")]);
        }
        let scheme = if tls { "https" } else { "http" };
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (port(), port())).collect();
        let peers: Vec<String> =
            ports.iter().enumerate().map(|(n, (_, peer))| format!("m{n}=http://127.0.0.1:{peer}")).collect();
        let members = ports.iter().enumerate().map(|(n, (client, peer))| {
            let url = format!("{scheme}://127.0.0.1:{client}");
            let arguments = [
                format!("--name=m{n}"),
                format!("--data-dir={}", dir.path().join(format!("m{n}")).display()),
                format!("--listen-client-urls={url}"),
                format!("--advertise-client-urls={url}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
                format!("--initial-cluster={}", peers.join(",")),
                // Quick to notice a dead leader, slow enough for a busy machine.
                "--heartbeat-interval=100".to_owned(),
                "--election-timeout=1000".to_owned(),
                "--logger=zap".to_owned(),
            ];
            let arguments = arguments.into_iter().chain(flags.iter().cloned()).collect();
            Member { arguments, log: dir.path().join(format!("m{n}.log")), url, child: None }
        });
        let mut cluster = Self { members: members.collect(), certificates, _dir: dir };
        for n in 0..count {
            cluster.revive(n);
        }
        cluster
    }

    /// URLs of all members.
    pub(crate) fn urls(&self) -> Vec<String> {
        self.members.iter().map(|m| m.url.clone()).collect()
    }

    /// URL of one member.
    pub(crate) fn url(&self, n: usize) -> String {
        self.members[n].url.clone()
    }

    /// Starts a member that is not running, on the data it has.
    pub(crate) fn revive(&mut self, n: usize) {
        let member = &mut self.members[n];
        let log = std::fs::File::options().create(true).append(true).open(&member.log).unwrap();
        let child = Command::new("etcd")
            .args(&member.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        member.child = Some(child);
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, n: usize) {
        if let Some(mut child) = self.members[n].child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops a member in its tracks (SIGSTOP), or lets it go on.
    pub(crate) fn pause(&self, n: usize, stopped: bool) {
        let child = self.members[n].child.as_ref().expect("a running member");
        let signal = if stopped { Signal::SIGSTOP } else { Signal::SIGCONT };
        kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    }

    /// The member that leads, by its own word.
    pub(crate) fn leader(&self) -> Option<usize> {
        (0..self.members.len()).find(|n| {
            let mut command = Command::new("etcdctl");
            command.env("ETCDCTL_API", "3").args(["--endpoints", &self.members[*n].url, "--command-timeout=2s"]);
            if self.certificates.is_some() {
                let file = |name: &str| self._dir.path().join(name).display().to_string();
                command.args(["--cacert", &file("ca.pem"), "--cert", &file("cert.pem"), "--key", &file("key.pem")]);
            }
            let answer = command.args(["endpoint", "status", "-w", "json"]).output().unwrap();
            let text = String::from_utf8_lossy(&answer.stdout).into_owned();
            let number = |name: &str| {
                let at = text.find(&format!("\"{name}\":"))? + name.len() + 3;
                text[at..].split(|c: char| !c.is_ascii_digit()).next().map(str::to_owned)
            };
            number("leader").is_some_and(|leader| number("member_id").as_ref() == Some(&leader))
        })
    }

    /// Where members keep their data.
    pub(crate) fn dir(&self) -> &Path {
        self._dir.path()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for n in 0..self.members.len() {
            self.kill(n);
        }
    }
}
