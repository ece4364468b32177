//! The pod network made by CNI plugins, where a configuration says so (specification 0.1 to 1.1).
//!
//! Life of an attachment: what is about to be asked is written to disk, then the plugins of the chain are called (ADD),
//! then their result is written, too. So it is known at any time what must be taken back (DEL, in the opposite order,
//! with the configuration and the result of then), also after a restart or a change of the configuration. A call that was
//! cut short or failed is taken back before it is made again. DEL is called until it succeeds; the pod's object stays as
//! long. CHECK is called when a sandbox is adopted after a restart, GC once at a start.
//!
//! What differs from other runtimes: the configuration is read at each use and never kept; a broken first file makes
//! the node NotReady rather than letting the next file count. An attachment has one interface, `eth0`, and a pod one
//! address, an IPv4 one where it has any.
//!
//! Limits: no delegation by annotation, no STATUS, no directories of plugins beside a list.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::net::{self, HostPort};
use crate::runtime::{Container, State};

pub mod config;
pub mod exec;
#[cfg(test)]
mod tests;

use config::Network;
use exec::Call;

/// The interface in pods.
const INTERFACE: &str = "eth0";
/// Time that leftovers may take at a start; then pods come first.
const SWEEP_LIMIT: Duration = Duration::from_secs(30);

/// Why a pod has no network, or one that cannot be taken away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory holds no configuration.
    #[error("no network config found in {}", .0.display())]
    NoConfig(PathBuf),
    /// The configuration cannot be used.
    #[error("{}: {}", .0.display(), .1)]
    Config(PathBuf, String),
    /// No such plugin.
    #[error("failed to find plugin \"{0}\" in path [{1}]")]
    NoPlugin(String, String),
    /// A plugin refused.
    #[error("plugin type=\"{kind}\" failed ({command}): {why}")]
    Plugin {
        /// Its type.
        kind: String,
        /// What it was to do.
        command: String,
        /// What it said.
        why: String,
        /// The number of the error, 0 when it said none.
        code: u64,
    },
    /// The plugins gave no address.
    #[error("the plugins of network \"{0}\" gave the pod no address")]
    NoAddress(String),
    /// What was done could not be written down.
    #[error("{}: {}", .0.display(), .1)]
    Notes(PathBuf, #[source] std::io::Error),
}

/// Result of a step.
pub type Result<T> = std::result::Result<T, Error>;

/// Where configurations and plugins are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dirs {
    /// Directory with configurations; the first by name counts.
    pub conf: PathBuf,
    /// Directories with plugins.
    pub bin: Vec<PathBuf>,
}

/// A pod's sandbox, and what its network is to be like.
#[derive(Clone, Debug)]
pub struct Link<'a> {
    /// UID of the pod.
    pub uid: &'a str,
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Name of the pod.
    pub name: &'a str,
    /// The sandbox.
    pub sandbox: &'a Container,
    /// Ports of the node that lead to the pod, whose address is not known yet.
    pub ports: Vec<HostPort>,
    /// Most bits per second to the pod and from it.
    pub bandwidth: [Option<u64>; 2],
}

/// What is written down of a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Attachment {
    sandbox: String,
    /// The variable that tells plugins about the pod.
    args: String,
    path: Vec<PathBuf>,
    network: Network,
    runtime: Map<String, Value>,
    /// Absent as long as ADD has not succeeded.
    result: Option<Value>,
}

/// The plugins of this node.
#[derive(Clone, Debug)]
pub struct Plugins {
    dirs: Dirs,
    notes: PathBuf,
    range: Option<Ipv4Net>,
}

impl Plugins {
    /// Plugins of `dirs`. `notes` is the directory for what is written down, `range` the node's range of addresses for
    /// plugins that ask for it.
    #[must_use]
    pub fn new(dirs: Dirs, notes: PathBuf, range: Option<Ipv4Net>) -> Self {
        Self { dirs, notes, range }
    }

    /// Whether pods can get a network.
    ///
    /// # Errors
    /// Why not.
    pub fn ready(&self) -> Result<()> {
        config::load(&self.dirs.conf).map(drop)
    }

    /// The address that a sandbox was given.
    #[must_use]
    pub fn address(&self, uid: &str, sandbox: &str) -> Option<IpAddr> {
        address(read(&self.note(uid, sandbox))?.result.as_ref()?)
    }

    /// Gives a sandbox its network, or finds that it has it. Answers its address.
    ///
    /// # Errors
    /// When a plugin fails; what was done is taken back.
    pub async fn attach(&self, link: &Link<'_>, pid: i32) -> Result<IpAddr> {
        let note = self.note(link.uid, &link.sandbox.id);
        let netns = namespace(pid);
        if let Some(known) = read(&note) {
            if let Some(address) = known.result.as_ref().and_then(address) {
                if let Err(error) = known.check(&netns).await {
                    tracing::warn!(%error, pod = link.name, namespace = link.namespace, "the pod's network is not as it was made");
                }
                return Ok(address);
            }
            self.take_back(&note, &known, &netns).await?;
        }
        let network = config::load(&self.dirs.conf)?;
        let mut attachment = Attachment {
            sandbox: link.sandbox.id.clone(),
            args: args(link),
            path: self.dirs.bin.clone(),
            runtime: self.runtime(link),
            network,
            result: None,
        };
        write(&note, &attachment)?;
        let added = attachment.add(&netns).await.and_then(|result| {
            let ip = address(&result).ok_or_else(|| Error::NoAddress(attachment.network.name.clone()))?;
            attachment.result = Some(result);
            write(&note, &attachment)?;
            Ok(ip)
        });
        if added.is_err()
            && let Err(error) = self.take_back(&note, &attachment, &netns).await
        {
            tracing::debug!(%error, "a network that was half made is not taken back yet");
        }
        added
    }

    /// Takes the networks of a pod's sandboxes away. `sandboxes` are those that still exist.
    ///
    /// # Errors
    /// When a plugin fails; another call goes on.
    pub async fn detach(&self, uid: &str, sandboxes: &[Container]) -> Result<()> {
        let prefix = format!("{uid}_");
        for note in self.notes() {
            let own = note.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix));
            if own && let Some(known) = read(&note) {
                let netns = alive(sandboxes, &known.sandbox).map(namespace).unwrap_or_default();
                self.take_back(&note, &known, &netns).await?;
            }
        }
        Ok(())
    }

    /// Takes away what belongs to sandboxes that exist no more. `notes` must be older than `all`, the list of all there
    /// are. Says whether all is done.
    pub async fn sweep(&self, notes: &[PathBuf], all: &[Container]) -> bool {
        let work = async {
            let mut done = true;
            for note in notes {
                let Some(known) = read(note).filter(|k| !all.iter().any(|c| c.id == k.sandbox)) else { continue };
                if let Err(error) = self.take_back(note, &known, "").await {
                    tracing::warn!(%error, sandbox = known.sandbox, "the network of a sandbox that is gone is not taken away yet");
                    done = false;
                }
            }
            done
        };
        tokio::time::timeout(SWEEP_LIMIT, work).await.unwrap_or(false)
    }

    /// Tells the plugins which attachments there are, so that they free what belongs to others. Must not run beside other
    /// calls.
    pub async fn collect(&self) {
        let Ok(network) = config::load(&self.dirs.conf) else { return };
        if !network.speaks("1.1.0") || network.disable_gc {
            return;
        }
        let known = self.notes().into_iter().filter_map(|n| read(&n)).filter(|k| k.network.name == network.name);
        let valid: Vec<Value> = known.map(|k| json!({"containerID": k.sandbox, "ifname": INTERFACE})).collect();
        let call = Call { command: "GC", container: "", netns: "", interface: "", args: "", path: &self.dirs.bin };
        let work = async {
            for plugin in &network.plugins {
                let mut input = network.input(plugin, &Map::new(), None);
                input["cni.dev/valid-attachments"] = valid.clone().into();
                if let Err(error) = call.run(kind(plugin), &input).await {
                    tracing::warn!(%error, "a plugin did not clean up");
                }
            }
        };
        let _ = tokio::time::timeout(SWEEP_LIMIT, work).await;
    }

    /// Takes everything away, as far as that works; for the end of a node.
    pub async fn remove_all(&self, sandboxes: &[Container]) {
        for note in self.notes() {
            let Some(known) = read(&note) else { continue };
            let netns = alive(sandboxes, &known.sandbox).map(namespace).unwrap_or_default();
            if let Err(error) = self.take_back(&note, &known, &netns).await {
                tracing::warn!(%error, sandbox = known.sandbox, "a network could not be taken away");
            }
        }
    }

    async fn take_back(&self, note: &Path, known: &Attachment, netns: &str) -> Result<()> {
        known.delete(netns).await?;
        match std::fs::remove_file(note) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::Notes(note.to_owned(), e)),
            _ => Ok(()),
        }
    }

    /// What plugins may ask for.
    fn runtime(&self, link: &Link<'_>) -> Map<String, Value> {
        let mut runtime = Map::new();
        let port = |p: &HostPort| {
            json!({"hostPort": p.host_port, "containerPort": p.pod_port, "protocol": p.protocol,
                "hostIP": p.host_ip.map(|ip| ip.to_string()).unwrap_or_default()})
        };
        if !link.ports.is_empty() {
            runtime.insert("portMappings".into(), link.ports.iter().map(port).collect());
        }
        // As much at once as fits: the rate is what was asked for.
        let mut limits = Map::new();
        for (rate, way) in link.bandwidth.iter().zip(["ingress", "egress"]) {
            if let Some(rate) = rate {
                limits.insert(format!("{way}Rate"), (*rate).into());
                limits.insert(format!("{way}Burst"), u32::MAX.into());
            }
        }
        if !limits.is_empty() {
            runtime.insert("bandwidth".into(), limits.into());
        }
        if let Some(range) = self.range {
            runtime.insert("ipRanges".into(), json!([[{"subnet": range.to_string()}]]));
        }
        runtime
    }

    fn note(&self, uid: &str, sandbox: &str) -> PathBuf {
        self.notes.join(format!("{uid}_{sandbox}.json"))
    }

    /// What is written down, one file per sandbox.
    #[must_use]
    pub fn notes(&self) -> Vec<PathBuf> {
        let found = std::fs::read_dir(&self.notes).into_iter().flatten().flatten().map(|e| e.path());
        found.filter(|p| p.extension().is_some_and(|e| e == "json")).collect()
    }
}

impl Attachment {
    fn call<'a>(&'a self, command: &'static str, netns: &'a str) -> Call<'a> {
        Call { command, container: &self.sandbox, netns, interface: INTERFACE, args: &self.args, path: &self.path }
    }

    /// Calls the chain; each plugin is given what those before it made.
    async fn add(&self, netns: &str) -> Result<Value> {
        let mut result = None;
        for plugin in &self.network.plugins {
            let input = self.network.input(plugin, &self.runtime, result.as_ref());
            // One that prints nothing has changed nothing.
            result = self.call("ADD", netns).run(kind(plugin), &input).await?.or(result);
        }
        Ok(result.unwrap_or_default())
    }

    async fn delete(&self, netns: &str) -> Result<()> {
        let before = self.result.as_ref().filter(|_| self.network.speaks("0.4.0"));
        for plugin in self.network.plugins.iter().rev() {
            let input = self.network.input(plugin, &self.runtime, before);
            self.call("DEL", netns).run(kind(plugin), &input).await?;
        }
        Ok(())
    }

    async fn check(&self, netns: &str) -> Result<()> {
        if !self.network.speaks("0.4.0") || self.network.disable_check {
            return Ok(());
        }
        for plugin in &self.network.plugins {
            let input = self.network.input(plugin, &self.runtime, self.result.as_ref());
            self.call("CHECK", netns).run(kind(plugin), &input).await?;
        }
        Ok(())
    }
}

fn kind(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn args(link: &Link<'_>) -> String {
    format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
        link.namespace, link.name, link.sandbox.id, link.uid
    )
}

fn namespace(pid: i32) -> String {
    format!("/proc/{pid}/ns/net")
}

/// The process of a sandbox that runs. The number of one that does not may be somebody else's by now.
fn alive(sandboxes: &[Container], id: &str) -> Option<i32> {
    sandboxes.iter().find(|s| s.id == id && s.state == State::Running)?.pid
}

/// The pod's address in a result: on an interface in the sandbox, IPv4 first.
fn address(result: &Value) -> Option<IpAddr> {
    let parse = |text: &Value| text.as_str()?.split('/').next()?.parse::<IpAddr>().ok();
    let list = |key: &str| result[key].as_array().cloned().unwrap_or_default();
    let interfaces = list("interfaces");
    let inside = |ip: &Value| {
        let of = ip["interface"].as_u64().and_then(|i| interfaces.get(usize::try_from(i).ok()?));
        of.is_none_or(|i| i["sandbox"].as_str().is_some_and(|s| !s.is_empty()))
    };
    let mut all: Vec<IpAddr> =
        list("ips").iter().filter(|ip| inside(ip)).filter_map(|ip| parse(&ip["address"])).collect();
    // Before version 0.3.
    all.extend(["ip4", "ip6"].iter().filter_map(|family| parse(&result[family]["ip"])));
    all.iter().find(|ip| ip.is_ipv4()).or(all.first()).copied()
}

/// What was written down; none when there is nothing, or half a file, which is as if nothing had begun.
fn read(note: &Path) -> Option<Attachment> {
    serde_json::from_slice(&std::fs::read(note).ok()?).ok()
}

fn write(note: &Path, attachment: &Attachment) -> Result<()> {
    let failed = |e| Error::Notes(note.to_owned(), e);
    if let Some(dir) = note.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    let fresh = note.with_extension("new");
    let text = serde_json::to_vec(attachment).map_err(|e| failed(e.into()))?;
    std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, note)).map_err(failed)
}

/// What must hold on the host for any plugin: packets are forwarded, and those between pods pass the packet filter.
///
/// # Errors
/// When the kernel or the engine's filter refuses.
pub async fn prepare(cluster: Ipv4Net) -> net::Result<()> {
    net::forward_packets()?;
    net::filter::accept(&net::filter::of_range(cluster)).await
}
