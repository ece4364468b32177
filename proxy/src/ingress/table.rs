//! Which backend a request goes to: all Ingresses of our class as one table. No I/O.
//!
//! The rules are those of the Ingress API (networking.k8s.io/v1): an exact host beats a wildcard, which stands for just
//! one label; an exact path beats a prefix, a longer prefix a shorter one, and prefixes end at a slash; where two
//! Ingresses say the same the older one counts. What no rule takes goes to the default backend, if there is one.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::networking::v1::{Ingress, IngressBackend, IngressClass};
use k8s_openapi::jiff::Timestamp;

use crate::model::Id;

/// `spec.controller` of the classes that are served here.
pub const CONTROLLER: &str = "skiff.dev/ingress";
/// Annotation that named the class before there was a field.
const OLD_CLASS: &str = "kubernetes.io/ingress.class";
/// Annotation with what replaces the part of the path that a rule matched.
const REWRITE: &str = "skiff.dev/rewrite-target";

/// A port of a Service, as a rule names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// By name.
    Name(Box<str>),
    /// By number.
    Number(u16),
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Namespace of the Ingress and the Service.
    pub namespace: Box<str>,
    /// Name of the Service.
    pub service: Box<str>,
    /// The Service's port.
    pub port: Port,
}

impl Backend {
    fn parse(namespace: &str, backend: &IngressBackend) -> Option<Self> {
        let service = backend.service.as_ref()?;
        let port = service.port.as_ref()?;
        let port = match (port.number.and_then(|n| u16::try_from(n).ok()), &port.name) {
            (Some(n), _) if n != 0 => Port::Number(n),
            (_, Some(name)) if !name.is_empty() => Port::Name(name.as_str().into()),
            _ => return None,
        };
        Some(Self { namespace: namespace.into(), service: service.name.as_str().into(), port })
    }
}

/// One path of one host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    path: Box<str>,
    exact: bool,
    rewrite: Option<Box<str>>,
    /// Where it goes.
    pub backend: Backend,
}

impl Rule {
    fn takes(&self, path: &str) -> bool {
        if self.exact {
            return path == &*self.path;
        }
        let prefix = self.path.trim_end_matches('/');
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// Path and query to ask the backend for, where it is not that of the request.
    #[must_use]
    pub fn rewritten(&self, path: &str, query: Option<&str>) -> Option<String> {
        let target = self.rewrite.as_deref()?;
        let rest = if self.exact { "" } else { path.strip_prefix(self.path.trim_end_matches('/'))? };
        let mut out = format!("{}{rest}", target.trim_end_matches('/'));
        if !out.starts_with('/') {
            out.insert(0, '/');
        }
        if let Some(q) = query {
            out.push('?');
            out.push_str(q);
        }
        Some(out)
    }
}

/// All rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// By host; the empty host is every host.
    hosts: HashMap<Box<str>, Vec<Rule>>,
    /// By what follows the `*.` of a wildcard.
    wildcards: HashMap<Box<str>, Vec<Rule>>,
    default: Option<Backend>,
    /// The Secret with the certificate of a host, wildcards with their `*`.
    pub certificates: BTreeMap<Box<str>, Id>,
    /// Addresses of hosts that Ingresses were given, for the name server.
    pub addresses: BTreeMap<Box<str>, Vec<std::net::IpAddr>>,
}

/// Whether an Ingress is ours: by its class, or because it has none and ours is the default.
#[must_use]
pub fn ours<'a>(ingress: &Ingress, classes: impl IntoIterator<Item = &'a IngressClass>) -> bool {
    let spec = ingress.spec.as_ref();
    let old = ingress.metadata.annotations.as_ref().and_then(|a| a.get(OLD_CLASS));
    // A class that was not there when the Ingress was made is not given to it later: admission does that.
    let Some(named) = spec.and_then(|s| s.ingress_class_name.as_ref()).or(old) else { return false };
    classes.into_iter().any(|c| {
        c.metadata.name.as_ref() == Some(named)
            && c.spec.as_ref().is_some_and(|s| s.controller.as_deref() == Some(CONTROLLER))
    })
}

impl Table {
    /// Makes the table of Ingresses that are ours.
    #[must_use]
    pub fn new<'a>(ingresses: impl IntoIterator<Item = &'a Ingress>) -> Self {
        let mut all: Vec<&Ingress> = ingresses.into_iter().collect();
        // The oldest first: what is there already is not replaced.
        let age = |i: &Ingress| i.metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |t| t.0);
        all.sort_by_key(|i| (age(i), i.metadata.namespace.clone(), i.metadata.name.clone()));
        let mut table = Self::default();
        for ingress in all {
            table.add(ingress);
        }
        for rules in table.hosts.values_mut().chain(table.wildcards.values_mut()) {
            // Stable, so that the older of equals stays in front.
            rules.sort_by(|a, b| b.exact.cmp(&a.exact).then(b.path.len().cmp(&a.path.len())));
            rules.dedup_by(|later, first| later.exact == first.exact && later.path == first.path);
        }
        table
    }

    fn add(&mut self, ingress: &Ingress) {
        let Some(spec) = &ingress.spec else { return };
        let namespace = ingress.metadata.namespace.as_deref().unwrap_or_default();
        let rewrite = ingress.metadata.annotations.as_ref().and_then(|a| a.get(REWRITE)).map(|r| r.as_str().into());
        let ips: Vec<std::net::IpAddr> = ingress
            .status
            .iter()
            .flat_map(|s| &s.load_balancer)
            .flat_map(|l| l.ingress.iter().flatten())
            .filter_map(|i| i.ip.as_deref()?.parse().ok())
            .collect();
        let own_default = spec.default_backend.as_ref().and_then(|b| Backend::parse(namespace, b));
        for rule in spec.rules.iter().flatten() {
            let host = rule.host.as_deref().unwrap_or_default().to_ascii_lowercase();
            let list = match host.strip_prefix("*.") {
                Some(rest) => self.wildcards.entry(rest.into()).or_default(),
                None => self.hosts.entry(host.as_str().into()).or_default(),
            };
            let paths = rule.http.as_ref().map(|h| h.paths.as_slice()).unwrap_or_default();
            list.extend(paths.iter().filter_map(|p| {
                Some(Rule {
                    path: p.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/").into(),
                    exact: p.path_type == "Exact",
                    rewrite: rewrite.clone(),
                    backend: Backend::parse(namespace, &p.backend)?,
                })
            }));
            // A host without paths, and what the paths leave, belongs to the Ingress's own default.
            if let Some(backend) = &own_default {
                list.push(Rule { path: "/".into(), exact: false, rewrite: None, backend: backend.clone() });
            }
            if !host.is_empty() && !ips.is_empty() {
                self.addresses.entry(host.as_str().into()).or_insert_with(|| ips.clone());
            }
        }
        if spec.rules.as_ref().is_none_or(Vec::is_empty) && self.default.is_none() {
            self.default = own_default;
        }
        for tls in spec.tls.iter().flatten() {
            let Some(secret) = tls.secret_name.as_deref().filter(|s| !s.is_empty()) else { continue };
            let of_rules = || spec.rules.iter().flatten().filter_map(|r| r.host.clone()).collect();
            // Without hosts it is for those of the rules.
            let hosts: Vec<String> = tls.hosts.clone().filter(|h| !h.is_empty()).unwrap_or_else(of_rules);
            for host in hosts {
                let entry = self.certificates.entry(host.to_ascii_lowercase().into());
                entry.or_insert_with(|| Id { namespace: namespace.into(), name: secret.into() });
            }
        }
    }

    /// The backend for a host (without port) and a path; the rule that says so, if it was one.
    #[must_use]
    pub fn find(&self, host: &str, path: &str) -> Option<(&Backend, Option<&Rule>)> {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let exact = self.hosts.get(host.as_str());
        let wild = host.split_once('.').and_then(|(_, rest)| self.wildcards.get(rest));
        // The most precise host that is known decides, even when none of its paths fits.
        let rules = exact.or(wild).or_else(|| self.hosts.get(""));
        let found = rules.into_iter().flatten().find(|r| r.takes(path));
        found.map(|r| (&r.backend, Some(r))).or_else(|| self.default.as_ref().map(|b| (b, None)))
    }

    /// The Secret for a server name.
    #[must_use]
    pub fn certificate(&self, name: &str) -> Option<&Id> {
        let name = name.to_ascii_lowercase();
        self.certificates.get(name.as_str()).or_else(|| {
            let (_, rest) = name.split_once('.')?;
            self.certificates.get(format!("*.{rest}").as_str())
        })
    }

    /// Addresses of a host of an Ingress.
    #[must_use]
    pub fn addresses(&self, name: &str) -> &[std::net::IpAddr] {
        let wild = || self.addresses.get(format!("*.{}", name.split_once('.')?.1).as_str());
        self.addresses.get(name).or_else(wild).map(Vec::as_slice).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn ingress(name: &str, made: &str, spec: Value) -> Ingress {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "d", "creationTimestamp": made}, "spec": spec,
        }))
        .unwrap()
    }

    fn rule(host: &str, paths: &[(&str, &str, &str)]) -> Value {
        let paths: Vec<Value> = paths
            .iter()
            .map(|(path, kind, service)| {
                json!({"path": path, "pathType": kind, "backend": {"service": {"name": service, "port": {"number": 80}}}})
            })
            .collect();
        json!({"host": host, "http": {"paths": paths}})
    }

    #[test]
    fn the_most_precise_rule_takes_a_request() {
        let old = ingress(
            "old",
            "2030-01-01T00:00:00Z",
            json!({"rules": [
                rule("a.example", &[("/", "Prefix", "root"), ("/x", "Prefix", "x"), ("/x/y/", "Prefix", "xy"), ("/x", "Exact", "just-x")]),
                rule("*.example", &[("/", "Prefix", "wild")]),
            ]}),
        );
        let new = ingress(
            "new",
            "2030-01-02T00:00:00Z",
            json!({"defaultBackend": {"service": {"name": "rest", "port": {"name": "web"}}}, "rules": [
                rule("a.example", &[("/x", "Prefix", "stolen"), ("/z", "ImplementationSpecific", "z")]),
            ]}),
        );
        let all = ingress(
            "all",
            "2030-01-03T00:00:00Z",
            json!({"defaultBackend": {"service": {"name": "default", "port": {"number": 80}}}}),
        );
        let table = Table::new([&all, &new, &old]);
        for (host, path, service) in [
            ("a.example", "/", "root"),
            ("A.Example.", "/q", "root"),
            ("a.example", "/x", "just-x"),
            ("a.example", "/x/", "x"),
            ("a.example", "/xx", "root"),
            ("a.example", "/x/y", "xy"),
            ("a.example", "/x/yy", "x"),
            ("a.example", "/z/1", "z"),
            ("b.example", "/", "wild"),
            ("a.b.example", "/", "default"),
            ("example", "/", "default"),
        ] {
            assert_eq!(&*table.find(host, path).unwrap().0.service, service, "{host}{path}");
        }
        assert!(Table::new([&old]).find("other", "/").is_none());
    }

    #[test]
    fn rewriting_replaces_what_matched() {
        for (path, exact, target, asked, query, wanted) in [
            ("/api", false, "/", "/api/v1", None, "/v1"),
            ("/api", false, "/", "/api", Some("q=1"), "/?q=1"),
            ("/api/", false, "/base/", "/api/v1", None, "/base/v1"),
            ("/old", true, "/new", "/old", None, "/new"),
        ] {
            let backend = Backend { namespace: "d".into(), service: "s".into(), port: Port::Number(80) };
            let rule = Rule { path: path.into(), exact, rewrite: Some(target.into()), backend };
            assert!(rule.takes(asked));
            assert_eq!(rule.rewritten(asked, query).unwrap(), wanted);
        }
    }

    #[test]
    fn certificates_by_host() {
        let one = ingress(
            "one",
            "2030-01-01T00:00:00Z",
            json!({"rules": [rule("c.example", &[])], "tls": [
                {"hosts": ["a.example", "*.b.example"], "secretName": "ab"}, {"secretName": "rules"}, {"hosts": ["d.example"]},
            ]}),
        );
        let table = Table::new([&one]);
        let secret = |name: &str| table.certificate(name).map(|id| id.name.to_string());
        assert_eq!(secret("A.example").as_deref(), Some("ab"));
        assert_eq!(secret("x.b.example").as_deref(), Some("ab"));
        assert_eq!(secret("c.example").as_deref(), Some("rules"));
        assert_eq!((secret("b.example"), secret("d.example")), (None, None));
    }

    #[test]
    fn only_ingresses_of_our_class() {
        let class = |name: &str, controller: &str| -> IngressClass {
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"controller": controller}})).unwrap()
        };
        let classes = [class("skiff", CONTROLLER), class("other", "example.com/x")];
        for (spec, annotation, wanted) in [
            (json!({"ingressClassName": "skiff"}), None, true),
            (json!({"ingressClassName": "other"}), None, false),
            (json!({"ingressClassName": "missing"}), None, false),
            (json!({}), Some("skiff"), true),
            (json!({}), None, false),
        ] {
            let mut i = ingress("i", "2030-01-01T00:00:00Z", spec);
            i.metadata.annotations = annotation.map(|a: &str| [(OLD_CLASS.to_owned(), a.to_owned())].into());
            assert_eq!(ours(&i, &classes), wanted, "{i:?}");
        }
    }
}
