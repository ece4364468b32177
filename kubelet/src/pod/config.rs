//! From a container's spec to what the runtime is asked for: variables, mounts, security, resources, name files.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod, VolumeMount};

use super::fields::{self, Facts};
use super::spec;
use crate::Config;
use crate::runtime::{ContainerConfig, Image, Mount, SandboxConfig, label};
use crate::source::Sources;
use crate::volumes::{Volumes, subpath};

/// Longest resolv.conf search list and name-server list that the C library reads.
const MAX_SEARCHES: usize = 32;
const MAX_NAMESERVERS: usize = 3;
const DEFAULT_TERMINATION_PATH: &str = "/dev/termination-log";

/// The container cannot be configured; the text is for the pod's status.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ConfigError {
    /// Reason in CamelCase.
    pub reason: &'static str,
    /// Text for people.
    pub message: String,
}

impl ConfigError {
    fn config(message: impl Into<String>) -> Self {
        Self { reason: "CreateContainerConfigError", message: message.into() }
    }
}

/// What is known about the pod when a container is made.
pub struct Context<'a> {
    /// The agent's configuration.
    pub config: &'a Config,
    /// The pod.
    pub pod: &'a Pod,
    /// Node and pod addresses and capacity.
    pub facts: &'a Facts,
    /// ConfigMaps and Secrets.
    pub sources: &'a Sources,
    /// The pod's volumes.
    pub volumes: &'a Volumes,
    /// Identifier of the sandbox.
    pub sandbox: &'a str,
}

/// Labels every container and sandbox of a pod carries.
pub fn labels(pod: &Pod) -> BTreeMap<String, String> {
    [
        (label::POD_NAME, spec::name(pod).to_string()),
        (label::POD_NAMESPACE, spec::namespace(pod).into()),
        (label::POD_UID, spec::uid(pod).into()),
        (
            label::GRACE,
            spec::spec(pod).termination_grace_period_seconds.unwrap_or(spec::DEFAULT_GRACE_SECONDS).to_string(),
        ),
    ]
    .map(|(k, v)| (k.to_string(), v))
    .into()
}

/// The sandbox of a pod.
pub fn sandbox(pod: &Pod, address: Option<IpAddr>, attempt: usize, cluster_domain: &str) -> SandboxConfig {
    let spec = spec::spec(pod);
    let (short, full) = spec::hostname(pod, cluster_domain);
    let mut labels = labels(pod);
    labels.insert(label::ATTEMPT.into(), attempt.to_string());
    labels.extend(address.map(|ip| (label::IP.to_string(), ip.to_string())));
    let sysctls = spec.security_context.iter().flat_map(|s| s.sysctls.iter().flatten());
    SandboxConfig {
        name: runtime_name("POD", pod, attempt as i32),
        hostname: if spec.set_hostname_as_fqdn == Some(true) { full.unwrap_or(short) } else { short },
        labels,
        host_network: spec.host_network.unwrap_or(false),
        host_pid: spec.host_pid.unwrap_or(false),
        host_ipc: spec.host_ipc.unwrap_or(false),
        sysctls: sysctls.map(|s| (s.name.clone(), s.value.clone())).collect(),
    }
}

/// Unique name of a container: making one twice fails instead of running two.
fn runtime_name(container: &str, pod: &Pod, attempt: i32) -> String {
    format!("k8s_{container}_{}_{}_{}_{attempt}", spec::name(pod), spec::namespace(pod), spec::uid(pod))
}

/// File on the host that a container's termination message is written to.
pub fn termination_file(volumes: &Volumes, pod_uid: &str, container: &str, attempt: i32) -> PathBuf {
    volumes.pod_dir(pod_uid).join("containers").join(container).join(format!("termination-{attempt}"))
}

/// What to ask the runtime for. Makes the files that are mounted into the container.
pub async fn container(
    context: &Context<'_>,
    container: &Container,
    image: &Image,
    attempt: i32,
) -> Result<ContainerConfig, ConfigError> {
    let pod = context.pod;
    let pod_spec = spec::spec(pod);
    let pod_security = pod_spec.security_context.clone().unwrap_or_default();
    let security = container.security_context.clone().unwrap_or_default();

    let run_as_user = security.run_as_user.or(pod_security.run_as_user);
    let run_as_group = security.run_as_group.or(pod_security.run_as_group);
    if security.run_as_non_root.or(pod_security.run_as_non_root) == Some(true) {
        check_non_root(pod, container, run_as_user, &image.user)?;
    }
    let user = match (run_as_user, run_as_group) {
        (Some(user), Some(group)) => Some(format!("{user}:{group}")),
        (Some(user), None) => Some(user.to_string()),
        (None, Some(group)) => {
            let user = image.user.split(':').next().filter(|u| !u.is_empty()).unwrap_or("0");
            Some(format!("{user}:{group}"))
        }
        (None, None) => None,
    };
    let env = environment(context, container).await?;
    let expand = |texts: &Option<Vec<String>>| {
        texts.as_ref().filter(|t| !t.is_empty()).map(|t| t.iter().map(|t| spec::expand(t, &env)).collect::<Vec<_>>())
    };
    let entrypoint = expand(&container.command);
    // A command without arguments must not inherit the image's arguments.
    let cmd = expand(&container.args).or_else(|| entrypoint.is_some().then(Vec::new));

    let mounts = match &context.config.fake {
        Some(_) => vec![],
        None => prepare_files(context, container, &env, attempt).await?,
    };

    let privileged = security.privileged.unwrap_or(false);
    let capabilities = security.capabilities.unwrap_or_default();
    let mut security_opt = Vec::new();
    if security.allow_privilege_escalation == Some(false) && !privileged {
        security_opt.push("no-new-privileges".to_string());
    }
    // The engine's default profile applies only when asked for: upstream's default is no profile.
    match security.seccomp_profile.or(pod_security.seccomp_profile) {
        Some(profile) if profile.type_ == "RuntimeDefault" => {}
        Some(profile) if profile.type_ == "Localhost" => {
            let file = profile.localhost_profile.unwrap_or_default();
            let path = context.config.data_dir.join("seccomp").join(file);
            let text = std::fs::read_to_string(&path)
                .map_err(|e| ConfigError::config(format!("failed to load seccomp profile {}: {e}", path.display())))?;
            security_opt.push(format!("seccomp={text}"));
        }
        _ => security_opt.push("seccomp=unconfined".into()),
    }
    let mut groups = pod_security.supplemental_groups.clone().unwrap_or_default();
    groups.extend(pod_security.fs_group);

    let mut all_labels = labels(pod);
    all_labels.insert(label::CONTAINER_NAME.into(), container.name.clone());
    all_labels.insert(label::ATTEMPT.into(), attempt.to_string());
    all_labels.insert(label::HASH.into(), spec::hash(container));
    all_labels.insert(label::SANDBOX.into(), context.sandbox.into());
    let (cpu_shares, cpu_quota, memory) = resources(container);
    all_labels.insert(label::RESOURCES.into(), format!("{cpu_shares}/{cpu_quota}/{memory}"));
    let strip = |names: Option<Vec<String>>| -> Vec<String> {
        names.unwrap_or_default().into_iter().map(|n| n.trim_start_matches("CAP_").to_string()).collect()
    };
    Ok(ContainerConfig {
        name: runtime_name(&container.name, pod, attempt),
        sandbox: context.sandbox.into(),
        image: image.id.clone(),
        entrypoint,
        cmd,
        env: env.iter().map(|(k, v)| format!("{k}={v}")).collect(),
        working_dir: container.working_dir.clone().filter(|d| !d.is_empty()),
        labels: all_labels,
        mounts,
        devices: Vec::new(),
        tty: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        user,
        groups,
        privileged,
        cap_add: strip(capabilities.add),
        cap_drop: strip(capabilities.drop),
        read_only_rootfs: security.read_only_root_filesystem.unwrap_or(false),
        security_opt,
        unmasked_proc: security.proc_mount.as_deref() == Some("Unmasked"),
        cpu_shares,
        cpu_quota,
        memory,
        oom_score_adj: spec::oom_score_adj(pod, container, context.facts.allocatable_millimemory / 1000),
        share_pid: pod_spec.share_process_namespace.unwrap_or(false),
        host_network: pod_spec.host_network.unwrap_or(false),
        host_pid: pod_spec.host_pid.unwrap_or(false),
        host_ipc: pod_spec.host_ipc.unwrap_or(false),
    })
}

/// CPU weight, CPU time per period and memory limit of a container.
pub fn resources(container: &Container) -> (i64, i64, i64) {
    let memory = spec::limit(container, "memory").map_or(0, |m| i64::try_from((m + 999) / 1000).unwrap_or(0));
    let quota = spec::limit(container, "cpu").map_or(0, spec::cpu_quota);
    (spec::cpu_shares(spec::request(container, "cpu")), quota, memory)
}

fn check_non_root(pod: &Pod, container: &Container, user: Option<i64>, image_user: &str) -> Result<(), ConfigError> {
    let about = format!("(pod: {:?}, container: {})", spec::full_name(pod), container.name);
    let image_user = image_user.split(':').next().unwrap_or_default();
    let message = match user {
        Some(0) => format!("container's runAsUser breaks non-root policy {about}"),
        Some(_) => return Ok(()),
        None if image_user.is_empty() || image_user == "0" || image_user == "root" => {
            format!("container has runAsNonRoot and image will run as root {about}")
        }
        None if image_user.parse::<u32>().is_err() => format!(
            "container has runAsNonRoot and image has non-numeric user ({image_user}), cannot verify user is non-root {about}"
        ),
        None => return Ok(()),
    };
    Err(ConfigError::config(message))
}

/// The container's variables: services first, then `envFrom`, then `env`, each able to refer to those before it.
async fn environment(context: &Context<'_>, container: &Container) -> Result<BTreeMap<String, String>, ConfigError> {
    let pod = context.pod;
    let namespace = spec::namespace(pod);
    let mut all = BTreeMap::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.clone().unwrap_or_default();
        if let Some(reference) = &source.config_map_ref {
            let found = context.sources.config_map(namespace, &reference.name).await;
            let found = found.map_err(|e| ConfigError::config(e.to_string()))?;
            if found.is_none() && reference.optional != Some(true) {
                return Err(ConfigError::config(format!("configmap {:?} not found", reference.name)));
            }
            let data = found.as_ref().and_then(|c| c.data.as_ref()).into_iter().flatten();
            all.extend(data.map(|(k, v)| (format!("{prefix}{k}"), v.clone())));
        }
        if let Some(reference) = &source.secret_ref {
            let found = context.sources.secret(namespace, &reference.name).await;
            let found = found.map_err(|e| ConfigError::config(e.to_string()))?;
            if found.is_none() && reference.optional != Some(true) {
                return Err(ConfigError::config(format!("secret {:?} not found", reference.name)));
            }
            let data = found.as_ref().and_then(|s| s.data.as_ref()).into_iter().flatten();
            all.extend(data.map(|(k, v)| (format!("{prefix}{k}"), String::from_utf8_lossy(&v.0).into_owned())));
        }
    }
    let links = spec::spec(pod).enable_service_links.unwrap_or(true);
    let services = context.sources.service_env(namespace, links).await;
    // Names a pod may refer to include the services', which its own variables override.
    let mut known = services.clone();
    known.extend(all.clone());
    for variable in container.env.iter().flatten() {
        if let Some(value) = value_of(context, container, variable, &known).await? {
            known.insert(variable.name.clone(), value.clone());
            all.insert(variable.name.clone(), value);
        }
    }
    for (name, value) in services {
        all.entry(name).or_insert(value);
    }
    Ok(all)
}

async fn value_of(
    context: &Context<'_>,
    container: &Container,
    variable: &EnvVar,
    known: &BTreeMap<String, String>,
) -> Result<Option<String>, ConfigError> {
    let pod = context.pod;
    let namespace = spec::namespace(pod);
    let Some(source) = &variable.value_from else {
        return Ok(Some(spec::expand(variable.value.as_deref().unwrap_or_default(), known)));
    };
    if let Some(selector) = &source.field_ref {
        return fields::field(pod, selector, context.facts).map(Some).map_err(ConfigError::config);
    }
    if let Some(selector) = &source.resource_field_ref {
        return fields::resource(pod, selector, Some(container), context.facts).map(Some).map_err(ConfigError::config);
    }
    if let Some(selector) = &source.config_map_key_ref {
        let optional = selector.optional == Some(true);
        let found = context.sources.config_map(namespace, &selector.name).await;
        let Some(map) = found.map_err(|e| ConfigError::config(e.to_string()))? else {
            let error = format!("configmap {:?} not found", selector.name);
            return if optional { Ok(None) } else { Err(ConfigError::config(error)) };
        };
        return match map.data.as_ref().and_then(|d| d.get(&selector.key)) {
            None if !optional => Err(ConfigError::config(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                selector.key, selector.name
            ))),
            value => Ok(value.cloned()),
        };
    }
    if let Some(selector) = &source.secret_key_ref {
        let optional = selector.optional == Some(true);
        let found = context.sources.secret(namespace, &selector.name).await;
        let Some(secret) = found.map_err(|e| ConfigError::config(e.to_string()))? else {
            let error = format!("secret {:?} not found", selector.name);
            return if optional { Ok(None) } else { Err(ConfigError::config(error)) };
        };
        return match secret.data.as_ref().and_then(|d| d.get(&selector.key)) {
            None if !optional => Err(ConfigError::config(format!(
                "couldn't find key {} in Secret {namespace}/{}",
                selector.key, selector.name
            ))),
            value => Ok(value.map(|v| String::from_utf8_lossy(&v.0).into_owned())),
        };
    }
    Err(ConfigError::config(format!("environment variable {} has a source this node does not know", variable.name)))
}

/// The mounts of a container, and the files on the host that are mounted.
async fn prepare_files(
    context: &Context<'_>,
    container: &Container,
    env: &BTreeMap<String, String>,
    attempt: i32,
) -> Result<Vec<Mount>, ConfigError> {
    let pod = context.pod;
    let mut mounts = mounts(context, container, env).await?;
    let termination = termination_file(context.volumes, spec::uid(pod), &container.name, attempt);
    let path = container.termination_message_path.as_deref().unwrap_or(DEFAULT_TERMINATION_PATH);
    make_file(&termination, 0o666, b"").map_err(|e| ConfigError::config(e.to_string()))?;
    mounts.push(bind(&termination, path, false));
    for (file, target) in
        [("etc-hosts", "/etc/hosts"), ("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname")]
    {
        let source = context.volumes.pod_dir(spec::uid(pod)).join(file);
        if source.exists() && !mounts.iter().any(|m| m.target == target) {
            mounts.push(bind(&source, target, false));
        }
    }
    Ok(mounts)
}

async fn mounts(
    context: &Context<'_>,
    container: &Container,
    env: &BTreeMap<String, String>,
) -> Result<Vec<Mount>, ConfigError> {
    let pod = context.pod;
    let mut mounts = Vec::new();
    for (index, wanted) in container.volume_mounts.iter().flatten().enumerate() {
        let volume = spec::spec(pod).volumes.iter().flatten().find(|v| v.name == wanted.name);
        let volume =
            volume.ok_or_else(|| ConfigError::config(format!("volume {:?} is not in the pod", wanted.name)))?;
        let path = context.volumes.path(pod, volume);
        let sub = sub_path(wanted, env)?;
        let source = match sub {
            None => path,
            Some(sub) => {
                let target = context
                    .volumes
                    .pod_dir(spec::uid(pod))
                    .join("volume-subpaths")
                    .join(&wanted.name)
                    .join(&container.name)
                    .join(index.to_string());
                let (volume_path, bound, text) = (path, target.clone(), sub.clone());
                let done = tokio::task::spawn_blocking(move || subpath::bind(&volume_path, &text, &bound)).await;
                done.map_err(io::Error::other).flatten().map_err(|error| {
                    ConfigError::config(format!(
                        "failed to prepare subPath for volumeMount {:?} of container {:?}: {error}",
                        wanted.name, container.name
                    ))
                })?;
                target
            }
        };
        let propagation = match wanted.mount_propagation.as_deref() {
            Some("HostToContainer") => "rslave",
            Some("Bidirectional") => "rshared",
            _ => "rprivate",
        };
        let always_read_only = volume.config_map.is_some()
            || volume.secret.is_some()
            || volume.projected.is_some()
            || volume.downward_api.is_some()
            || volume.persistent_volume_claim.as_ref().is_some_and(|c| c.read_only == Some(true));
        mounts.push(Mount {
            source: source.to_string_lossy().into_owned(),
            target: wanted.mount_path.clone(),
            // An image's mount is read-only itself; made so once more by the engine it could be run from.
            read_only: (wanted.read_only.unwrap_or(false) || always_read_only) && volume.image.is_none(),
            propagation,
        });
    }
    Ok(mounts)
}

fn sub_path(wanted: &VolumeMount, env: &BTreeMap<String, String>) -> Result<Option<String>, ConfigError> {
    if let Some(sub) = wanted.sub_path.as_ref().filter(|s| !s.is_empty()) {
        return Ok(Some(sub.clone()));
    }
    let Some(expression) = wanted.sub_path_expr.as_ref().filter(|s| !s.is_empty()) else { return Ok(None) };
    let expanded = spec::expand(expression, env);
    if expanded.contains("$(") || expanded.starts_with('/') {
        let message = format!("failed to expand subPath {expression:?} of volume mount {:?}", wanted.name);
        return Err(ConfigError::config(message));
    }
    Ok(Some(expanded))
}

fn bind(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount { source: source.to_string_lossy().into_owned(), target: target.into(), read_only, propagation: "rprivate" }
}

fn make_file(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    if !path.exists() {
        std::fs::write(path, content)?;
    }
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
}

/// Writes `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf` of a pod.
pub fn name_files(config: &Config, pod: &Pod, directory: &Path, address: Option<IpAddr>) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    let spec = spec::spec(pod);
    let (short, full) = spec::hostname(pod, &config.cluster_domain);
    let host_network = spec.host_network.unwrap_or(false);
    // Written in place: the file is mounted, and a new file under the name would not be seen inside.
    let mut hosts = String::new();
    if host_network {
        hosts.push_str("# Kubernetes-managed hosts file (host network).\n");
        hosts.push_str(&std::fs::read_to_string("/etc/hosts").unwrap_or_default());
    } else {
        hosts.push_str(
            "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n",
        );
        hosts.push_str(
            "fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        if let Some(address) = address {
            let names = full.iter().map(String::as_str).chain([short.as_str()]).collect::<Vec<_>>();
            let _ = writeln!(hosts, "{address}\t{}", names.join("\t"));
        }
        std::fs::write(directory.join("hostname"), format!("{short}\n"))?;
    }
    let aliases = spec.host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        hosts.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let _ = writeln!(hosts, "{}\t{}", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t"));
        }
    }
    std::fs::write(directory.join("etc-hosts"), hosts)?;
    let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    std::fs::write(directory.join("resolv.conf"), resolv_conf(config, pod, &host))
}

/// The pod's resolver configuration.
fn resolv_conf(config: &Config, pod: &Pod, host: &str) -> String {
    let spec = spec::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirst" => !spec.host_network.unwrap_or(false),
        "ClusterFirstWithHostNet" => true,
        _ => false,
    };
    let mut servers: Vec<String> = Vec::new();
    let mut searches: Vec<String> = Vec::new();
    let mut options: Vec<(String, Option<String>)> = Vec::new();
    let mut host_searches = Vec::new();
    for line in host.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") if !cluster && policy != "None" => servers.extend(words.next().map(String::from)),
            Some("search" | "domain") => host_searches = words.map(String::from).collect(),
            Some("options") if !cluster && policy != "None" => {
                options.extend(words.map(|o| match o.split_once(':') {
                    Some((name, value)) => (name.to_string(), Some(value.to_string())),
                    None => (o.to_string(), None),
                }));
            }
            _ => {}
        }
    }
    if cluster {
        servers.push(config.cluster_dns.to_string());
        let (namespace, domain) = (spec::namespace(pod), &config.cluster_domain);
        searches.extend([format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()]);
        options.push(("ndots".into(), Some("5".into())));
    }
    if policy != "None" {
        searches.extend(host_searches);
    }
    if let Some(extra) = &spec.dns_config {
        servers.extend(extra.nameservers.iter().flatten().cloned());
        searches.extend(extra.searches.iter().flatten().cloned());
        for option in extra.options.iter().flatten() {
            let Some(name) = option.name.clone() else { continue };
            options.retain(|(n, _)| *n != name);
            options.push((name, option.value.clone()));
        }
    }
    let unique = |list: Vec<String>, most: usize| {
        let mut seen: Vec<String> = Vec::new();
        list.into_iter().for_each(|s| {
            if !seen.contains(&s) {
                seen.push(s)
            }
        });
        seen.truncate(most);
        seen
    };
    let mut text = String::new();
    let searches = unique(searches, MAX_SEARCHES);
    if !searches.is_empty() {
        let _ = writeln!(text, "search {}", searches.join(" "));
    }
    for server in unique(servers, MAX_NAMESERVERS) {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !options.is_empty() {
        let words = options.iter().map(|(n, v)| v.as_ref().map_or_else(|| n.clone(), |v| format!("{n}:{v}")));
        let _ = writeln!(text, "options {}", words.collect::<Vec<_>>().join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(
            serde_json::json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}),
        )
        .unwrap()
    }

    #[test]
    fn resolver_policies() {
        let config = Config::new("node", [192, 0, 2, 1].into(), "/nowhere");
        let host = "nameserver 192.0.2.53\nsearch corp.example\noptions edns0\n";
        for (spec, wanted) in [
            (
                serde_json::json!({"containers": []}),
                "search n.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n",
            ),
            (
                serde_json::json!({"containers": [], "dnsPolicy": "Default"}),
                "search corp.example\nnameserver 192.0.2.53\noptions edns0\n",
            ),
            (
                serde_json::json!({"containers": [], "hostNetwork": true}),
                "search corp.example\nnameserver 192.0.2.53\noptions edns0\n",
            ),
            (
                serde_json::json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
                    "nameservers": ["1.1.1.1"], "searches": ["a.b"], "options": [{"name": "ndots", "value": "2"}, {"name": "x"}]}}),
                "search a.b\nnameserver 1.1.1.1\noptions ndots:2 x\n",
            ),
        ] {
            assert_eq!(resolv_conf(&config, &pod(spec.clone()), host), wanted, "{spec}");
        }
    }

    #[test]
    fn hosts_file_names_the_pod_and_its_aliases() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::new("node", [192, 0, 2, 1].into(), "/nowhere");
        let pod = pod(serde_json::json!({"containers": [], "subdomain": "s",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["x", "y"]}]}));
        name_files(&config, &pod, dir.path(), Some([10, 0, 0, 9].into())).unwrap();
        let hosts = std::fs::read_to_string(dir.path().join("etc-hosts")).unwrap();
        assert!(hosts.contains("10.0.0.9\tp.s.n.svc.cluster.local\tp\n"), "{hosts}");
        assert!(hosts.contains("1.2.3.4\tx\ty\n"), "{hosts}");
    }

    #[test]
    fn non_root_policy() {
        let pod = pod(serde_json::json!({"containers": []}));
        let container = Container { name: "c".into(), ..Default::default() };
        for (user, image, allowed) in
            [(Some(0), "", false), (Some(5), "", true), (None, "", false), (None, "7:7", true), (None, "web", false)]
        {
            assert_eq!(check_non_root(&pod, &container, user, image).is_ok(), allowed, "{user:?} {image}");
        }
    }
}
