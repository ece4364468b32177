//! Which image a container runs, and pulling it when policy says so.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use super::backoff::Backoff;
use super::spec;
use super::status::Waiting;
use crate::events::{Kind, Recorder};
use crate::runtime::{Credentials, Error, Image, Runtime};
use crate::server::Extension;
use crate::source::Sources;

/// Delays between failed pulls, by image, and why the last one failed.
#[derive(Default)]
pub struct Pulls {
    /// Whether any image had to be pulled.
    pub any: bool,
    failed: HashMap<String, (Backoff, Instant, String)>,
}

impl Pulls {
    /// When the next pull may be tried.
    pub fn next_try(&self, now: Instant) -> Option<Duration> {
        self.failed.values().filter_map(|(backoff, at, _)| backoff.remaining(*at, now)).min()
    }
}

/// What images are fetched with.
pub struct Fetch<'a> {
    /// The runtime.
    pub runtime: &'a dyn Runtime,
    /// Where events go.
    pub recorder: &'a Recorder,
    /// Where pull secrets are.
    pub sources: &'a Sources,
    /// Where images are that no registry has.
    pub more: Option<&'a dyn Extension>,
}

/// Whether an image is pulled where nothing says it: always where the tag is `latest` or there is none.
fn default_policy(name: &str) -> &'static str {
    let latest = name.ends_with(":latest") || !name.rsplit('/').next().unwrap_or(name).contains([':', '@']);
    if latest { "Always" } else { "IfNotPresent" }
}

impl Fetch<'_> {
    /// The image where it is on this machine and the policy asks no registry. Tells an event only then.
    pub async fn present(&self, pod: &Pod, field: &str, name: Option<&str>, policy: Option<&str>) -> Option<Image> {
        let name = name.filter(|n| valid_reference(n))?;
        if !matches!(policy.unwrap_or(default_policy(name)), "Never" | "IfNotPresent") {
            return None;
        }
        let image = self.runtime.image(name).await.ok()?;
        self.tell_present(pod, field, name);
        Some(image)
    }

    fn tell_present(&self, pod: &Pod, field: &str, name: &str) {
        let message = format!("Container image {name:?} already present on machine and can be accessed by the pod");
        self.recorder.pod(pod, Some(field.to_owned()), Kind::Normal, "Pulled", message);
    }

    /// The image that a container runs or shows as a volume, pulled if need be; or why the container must wait.
    pub async fn ensure(
        &self,
        pulls: &mut Pulls,
        pod: &Pod,
        field: &str,
        name: Option<&str>,
        policy: Option<&str>,
    ) -> Result<Image, Waiting> {
        let name = name.unwrap_or_default().to_owned();
        let event = |kind, reason: &str, message: String| {
            self.recorder.pod(pod, Some(field.to_string()), kind, reason, message);
        };
        let waiting = |reason: &str, message: String| Waiting { reason: reason.into(), message };
        if !valid_reference(&name) {
            let message = format!(
                "Failed to apply default image tag {name:?}: couldn't parse image name {name:?}: invalid reference format"
            );
            event(Kind::Warning, "InspectFailed", message.clone());
            return Err(waiting("InvalidImageName", message));
        }
        let present = match self.runtime.image(&name).await {
            Ok(image) => Some(image),
            Err(Error::NotFound(_)) => None,
            Err(error) => {
                let message = format!("Failed to inspect image {name:?}: {error}");
                event(Kind::Warning, "InspectFailed", message.clone());
                return Err(waiting("ImageInspectError", message));
            }
        };
        match (policy.unwrap_or(default_policy(&name)), present) {
            ("Never" | "IfNotPresent", Some(image)) => {
                self.tell_present(pod, field, &name);
                return Ok(image);
            }
            ("Never", None) => {
                let message = format!("Container image {name:?} is not present with pull policy of Never");
                event(Kind::Warning, "ErrImageNeverPull", message.clone());
                return Err(waiting("ErrImageNeverPull", message));
            }
            _ => {}
        }
        let now = Instant::now();
        if let Some((backoff, at, error)) = pulls.failed.get(&name)
            && backoff.remaining(*at, now).is_some()
        {
            let message = format!("Back-off pulling image {name:?}");
            event(Kind::Normal, "BackOff", message.clone());
            return Err(waiting("ImagePullBackOff", format!("{message}: {error}")));
        }
        event(Kind::Normal, "Pulling", format!("Pulling image {name:?}"));
        match self.pull(pod, &name).await {
            Ok(image) => {
                pulls.failed.remove(&name);
                pulls.any = true;
                let took = now.elapsed();
                let message = format!(
                    "Successfully pulled image {name:?} in {took:.3?} ({took:.3?} including waiting). Image size: {} bytes.",
                    image.size
                );
                event(Kind::Normal, "Pulled", message);
                Ok(image)
            }
            Err(error) => {
                let entry = pulls.failed.entry(name.clone()).or_insert((Backoff::default(), now, String::new()));
                let failed = Instant::now();
                entry.0.tried(failed, failed);
                entry.1 = failed;
                entry.2 = format!("ErrImagePull: {error}");
                event(Kind::Warning, "Failed", format!("Failed to pull image {name:?}: {error}"));
                Err(waiting("ErrImagePull", error.to_string()))
            }
        }
    }

    async fn pull(&self, pod: &Pod, name: &str) -> Result<Image, Error> {
        if let Some(more) = self.more.filter(|m| m.has_image(name)) {
            more.bring_image(name).await.map_err(Error::Refused)?;
            return self.runtime.image(name).await;
        }
        let mut failure = None;
        let mut keys: Vec<Option<Credentials>> = self.credentials(pod, name).await.into_iter().map(Some).collect();
        if keys.is_empty() {
            keys.push(None);
        }
        for credentials in keys {
            match self.runtime.pull(name, credentials.as_ref()).await {
                Ok(()) => return self.runtime.image(name).await,
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| Error::Refused("no credentials fit".into())))
    }

    /// Credentials for the image's registry in the pod's pull secrets.
    async fn credentials(&self, pod: &Pod, image: &str) -> Vec<Credentials> {
        let mut found = Vec::new();
        for reference in spec::spec(pod).image_pull_secrets.iter().flatten() {
            // A missing pull secret is no error: the image may be public.
            let Ok(Some(secret)) = self.sources.secret(spec::namespace(pod), &reference.name).await else { continue };
            let data = secret.data.as_ref();
            let parse =
                |key: &str| data.and_then(|d| d.get(key)).and_then(|d| serde_json::from_slice::<Value>(&d.0).ok());
            let auths =
                parse(".dockerconfigjson").and_then(|v| v.get("auths").cloned()).or_else(|| parse(".dockercfg"));
            let Some(Value::Object(auths)) = auths else { continue };
            found.extend(
                auths.iter().filter(|(server, _)| same_registry(server, image)).filter_map(|(s, a)| entry(s, a)),
            );
        }
        found
    }
}

fn entry(server: &str, auth: &Value) -> Option<Credentials> {
    let text = |key: &str| auth.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
    let mut credentials = Credentials {
        username: text("username"),
        password: text("password"),
        identity_token: text("identitytoken"),
        server: server.into(),
    };
    if credentials.username.is_empty() && !text("auth").is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth")).ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (user, password) = decoded.split_once(':')?;
        credentials.username = user.into();
        credentials.password = password.into();
    }
    Some(credentials)
}

/// The registry of an image reference; the engine's default one has no host in the name.
fn registry(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    }
}

fn same_registry(server: &str, image: &str) -> bool {
    let server = server.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = server.split_once('/').unwrap_or((server, ""));
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let versioned = matches!(path.trim_end_matches('/'), "" | "v1" | "v2");
    host == registry(image) && (versioned || image.strip_prefix(host).is_some_and(|rest| rest[1..].starts_with(path)))
}

/// Whether a reference has the form `[host[:port]/]path[:tag][@digest]`.
fn valid_reference(name: &str) -> bool {
    let (rest, digest) = name.split_once('@').map_or((name, None), |(r, d)| (r, Some(d)));
    let digest_ok = digest.is_none_or(|d| {
        d.split_once(':')
            .is_some_and(|(a, hex)| !a.is_empty() && hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
    });
    let last = rest.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match rest[last..].split_once(':') {
        Some((name, tag)) => (&rest[..last + name.len()], Some(tag)),
        None => (rest, None),
    };
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let tag_ok = tag.is_none_or(|t| (1..=128).contains(&t.len()) && t.bytes().all(word) && !t.starts_with(['.', '-']));
    let mut parts = path.split('/').peekable();
    let mut first = true;
    let mut path_ok = !path.is_empty() && path.len() <= 255;
    while let Some(part) = parts.next() {
        let is_host = first && parts.peek().is_some() && (part.contains(['.', ':']) || part == "localhost");
        first = false;
        path_ok &= if is_host {
            part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'))
        } else {
            let edge = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            let bytes = part.as_bytes();
            edge(bytes.first())
                && edge(bytes.last())
                && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b'-'))
        };
    }
    digest_ok && tag_ok && path_ok
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        for (name, valid) in [
            ("busybox", true),
            ("busybox:1.36", true),
            ("library/busybox:latest", true),
            ("registry.example:5000/a/b-c:v1", true),
            ("sha@sha256:0123456789abcdef0123456789abcdef", true),
            ("", false),
            ("Busybox", false),
            ("busybox:", false),
            ("a b", false),
            ("a//b", false),
            (":x", false),
            ("x:!", false),
        ] {
            assert_eq!(valid_reference(name), valid, "{name:?}");
        }
    }

    #[test]
    fn registries() {
        for (server, image, same) in [
            ("https://index.docker.io/v1/", "busybox", true),
            ("https://index.docker.io/v1/", "ghcr.io/x/y", false),
            ("ghcr.io", "ghcr.io/x/y:1", true),
            ("ghcr.io/x", "ghcr.io/x/y:1", true),
            ("ghcr.io/z", "ghcr.io/x/y:1", false),
            ("host:5000", "host:5000/a", true),
        ] {
            assert_eq!(same_registry(server, image), same, "{server} {image}");
        }
    }
}
