//! Names and passwords of registries, from a Secret as `kubectl create secret docker-registry` makes it.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use anyhow::Context as _;
use base64::Engine as _;
use bollard::auth::DockerCredentials;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use serde_json::Value;

/// Which Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl FromStr for SecretName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("{text:?} is no NAMESPACE/NAME of a Secret")),
        }
    }
}

/// Who one is at which registry.
#[derive(Clone, Default)]
pub struct Logins(HashMap<String, DockerCredentials>);

impl fmt::Debug for Logins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Logins {
    /// Reads the Secret. It is read for each build, so that a changed password needs no restart.
    ///
    /// # Errors
    /// When there is none, or it is of another kind.
    pub(super) async fn read(client: &Client, which: &SecretName) -> anyhow::Result<Self> {
        let SecretName { namespace, name } = which;
        let secret = Api::<Secret>::namespaced(client.clone(), namespace).get_opt(name).await;
        let secret = secret.context("the Secret of the registry cannot be read")?;
        let secret = secret.with_context(|| format!("there is no Secret {namespace}/{name} for the registry"))?;
        let data = secret.data.unwrap_or_default();
        let whole = data.get(".dockerconfigjson").and_then(|d| serde_json::from_slice::<Value>(&d.0).ok());
        let logins = whole.as_ref().and_then(|v| Self::of(&v["auths"]));
        logins.with_context(|| format!("the Secret {namespace}/{name} is not of type kubernetes.io/dockerconfigjson"))
    }

    fn of(auths: &Value) -> Option<Self> {
        let all = auths.as_object()?.iter().map(|(server, auth)| {
            let text = |key: &str| auth[key].as_str().filter(|t| !t.is_empty()).map(str::to_owned);
            let (mut username, mut password) = (text("username"), text("password"));
            let joined = text("auth").and_then(|a| base64::engine::general_purpose::STANDARD.decode(a).ok());
            let joined = joined.and_then(|a| String::from_utf8(a).ok());
            if let (None, Some((user, word))) = (&username, joined.as_ref().and_then(|j| j.split_once(':'))) {
                (username, password) = (Some(user.to_owned()), Some(word.to_owned()));
            }
            let login = DockerCredentials {
                username,
                password,
                identitytoken: text("identitytoken"),
                serveraddress: Some(server.clone()),
                ..DockerCredentials::default()
            };
            (server.clone(), login)
        });
        Some(Self(all.collect()))
    }

    /// That of the registry of an image. Only a name with a host is one of a registry here.
    pub(super) fn to(&self, image: &str) -> Option<DockerCredentials> {
        let host = image.split_once('/')?.0;
        let same = |server: &str| {
            let server = server.trim_start_matches("https://").trim_start_matches("http://");
            let (name, path) = server.split_once('/').unwrap_or((server, ""));
            name == host && matches!(path.trim_end_matches('/'), "" | "v1" | "v2")
        };
        self.0.iter().find(|(server, _)| same(server)).map(|(_, login)| login.clone())
    }

    /// All of them, as builds need them for the images that they begin with.
    pub(super) fn all(&self) -> Option<HashMap<String, DockerCredentials>> {
        Some(self.0.clone()).filter(|all| !all.is_empty())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn logins_are_found_by_their_registry() {
        let logins = Logins::of(&json!({
            "https://reg.example:5000/v2/": {"username": "u", "password": "p"},
            "ghcr.io": {"auth": "YTpiOmM="},
        }))
        .unwrap();
        let of = |image: &str| logins.to(image).map(|l| (l.username.unwrap(), l.password.unwrap()));
        assert_eq!(of("reg.example:5000/team/fn:1"), Some(("u".into(), "p".into())));
        assert_eq!(of("ghcr.io/x:1"), Some(("a".into(), "b:c".into())));
        assert_eq!((of("reg.example/team/fn:1"), of("fn:1")), (None, None));
        assert!(!format!("{logins:?}").contains("\"p\""));
        assert!(Logins::of(&json!([])).is_none());
    }

    #[test]
    fn secrets_are_named_with_their_namespace() {
        let name = "kube-system/registry".parse::<SecretName>().unwrap();
        assert_eq!((name.namespace.as_str(), name.name.as_str()), ("kube-system", "registry"));
        for bad in ["registry", "/registry", "a/", "a/b/c"] {
            assert!(bad.parse::<SecretName>().is_err(), "{bad}");
        }
    }
}
