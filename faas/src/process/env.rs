//! The environment of a process: what a kubelet does for containers, of what a function may say.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{ConfigMap, EnvVarSource, Secret};
use kube::{Api, Client};

use crate::api::FunctionRevision;
use crate::instance::StartError;
use crate::runtime::{self, CODE};

type Values = BTreeMap<String, String>;

/// Resolves everything, also references to ConfigMaps and Secrets. Without references nobody is asked.
pub(super) async fn resolve(
    client: &Client,
    revision: &FunctionRevision,
    node: &str,
) -> Result<HashMap<String, String>, StartError> {
    let namespace = revision.metadata.namespace.as_deref().unwrap_or("default");
    let code = &revision.spec.code;
    let mut all: HashMap<String, String> =
        [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("HOME", "/tmp"), ("LANG", "C.UTF-8"), ("SKIFF_CODE", CODE)]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    let mut seen = Seen { client, namespace, maps: HashMap::new(), secrets: HashMap::new() };
    for from in &code.env_from {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let values = match (&from.config_map_ref, &from.secret_ref) {
            (Some(map), _) => seen.map(&map.name, map.optional).await?,
            (None, Some(secret)) => seen.secret(&secret.name, secret.optional).await?,
            (None, None) => continue,
        };
        all.extend(values.into_iter().map(|(name, value)| (format!("{prefix}{name}"), value)));
    }
    for variable in &code.env {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(from)) => seen.value(revision, node, from).await?,
            (Some(text), None) => Some(expand(text, &all)),
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            all.insert(variable.name.clone(), value);
        }
    }
    // Ours last: the runner relies on them.
    all.extend(runtime::environment(revision));
    all.insert("SKIFF_ISOLATION".to_owned(), "process".to_owned());
    Ok(all)
}

struct Seen<'a> {
    client: &'a Client,
    namespace: &'a str,
    maps: HashMap<String, Option<Values>>,
    secrets: HashMap<String, Option<Values>>,
}

impl Seen<'_> {
    async fn map(&mut self, name: &str, optional: Option<bool>) -> Result<Values, StartError> {
        if !self.maps.contains_key(name) {
            let found = Api::<ConfigMap>::namespaced(self.client.clone(), self.namespace).get_opt(name).await;
            let values = found.map_err(anyhow::Error::from)?.map(|m| m.data.unwrap_or_default());
            self.maps.insert(name.to_owned(), values);
        }
        found(self.maps.get(name), "ConfigMap", name, optional)
    }

    async fn secret(&mut self, name: &str, optional: Option<bool>) -> Result<Values, StartError> {
        if !self.secrets.contains_key(name) {
            let found = Api::<Secret>::namespaced(self.client.clone(), self.namespace).get_opt(name).await;
            let text = |(k, v): (String, k8s_openapi::ByteString)| (k, String::from_utf8_lossy(&v.0).into_owned());
            let values =
                found.map_err(anyhow::Error::from)?.map(|s| s.data.unwrap_or_default().into_iter().map(text).collect());
            self.secrets.insert(name.to_owned(), values);
        }
        found(self.secrets.get(name), "Secret", name, optional)
    }

    async fn value(
        &mut self,
        revision: &FunctionRevision,
        node: &str,
        from: &EnvVarSource,
    ) -> Result<Option<String>, StartError> {
        let (values, key, optional, what) = if let Some(of) = &from.config_map_key_ref {
            (self.map(&of.name, of.optional).await?, &of.key, of.optional, format!("ConfigMap {}", of.name))
        } else if let Some(of) = &from.secret_key_ref {
            (self.secret(&of.name, of.optional).await?, &of.key, of.optional, format!("Secret {}", of.name))
        } else if let Some(of) = &from.field_ref {
            return match of.field_path.as_str() {
                "metadata.namespace" => Ok(Some(self.namespace.to_owned())),
                "metadata.name" => Ok(revision.metadata.name.clone()),
                "spec.nodeName" => Ok(Some(node.to_owned())),
                other => Err(StartError::Code(format!(
                    "the field {other} is not known of processes: isolation container has it"
                ))),
            };
        } else {
            return Err(StartError::Code(
                "only configMapKeyRef, secretKeyRef and fieldRef are known of processes".to_owned(),
            ));
        };
        match values.get(key) {
            Some(value) => Ok(Some(value.clone())),
            None if optional == Some(true) => Ok(None),
            None => Err(StartError::Code(format!("{what} has no key {key}"))),
        }
    }
}

fn found(
    values: Option<&Option<Values>>,
    kind: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<Values, StartError> {
    match values {
        Some(Some(values)) => Ok(values.clone()),
        _ if optional == Some(true) => Ok(Values::new()),
        _ => Err(StartError::Code(format!("there is no {kind} {name}"))),
    }
}

/// Replaces `$(NAME)` by what was said before; `$$` is a dollar; what is not known stays.
fn expand(text: &str, known: &HashMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match known.get(name) {
                Some(value) => out.push_str(value),
                None => out.extend(["$(", name, ")"]),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_replaced_as_in_containers() {
        let known = HashMap::from([("A".to_owned(), "1".to_owned())]);
        for (text, becomes) in [
            ("$(A)", "1"),
            ("$$(A)", "$(A)"),
            ("x$(B)y", "x$(B)y"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("a$(A)b$(A)", "a1b1"),
        ] {
            assert_eq!(expand(text, &known), becomes, "{text}");
        }
    }
}
