//! What a request asks for, read from its method, path and query. Upstream calls this RequestInfo.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;
use skiff_core::selector::FieldSelector;
use skiff_core::status::Status;

/// The verb that is authorised and carried out.
#[derive(Default, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Verb {
    #[default]
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
    /// `OPTIONS` of what a proxy passes on. RBAC has no word for it: it takes a right to all verbs.
    Options,
}

impl Verb {
    /// As RBAC spells it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Options => "",
        }
    }

    /// Whether the verb changes something.
    #[must_use]
    pub const fn mutates(self) -> bool {
        !matches!(self, Self::Get | Self::List | Self::Watch | Self::Options)
    }
}

/// The query string, decoded. Repeated keys keep their order.
#[derive(Clone, Debug, Default)]
pub struct Query(pub Vec<(String, String)>);

impl Query {
    /// Decodes a raw query string.
    #[must_use]
    pub fn parse(raw: &str) -> Self {
        let text = |s: &str| {
            let s = s.replace('+', " ");
            percent_decode_str(&s).decode_utf8_lossy().into_owned()
        };
        Self(
            raw.split('&')
                .filter(|p| !p.is_empty())
                .map(|p| {
                    let (k, v) = p.split_once('=').unwrap_or((p, ""));
                    (text(k), text(v))
                })
                .collect(),
        )
    }

    /// First value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// All values of `key`.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// A boolean option: absent and `false`/`0` are false, everything else (also the bare key) is true.
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| !matches!(v.to_ascii_lowercase().as_str(), "false" | "0"))
    }

    /// A number option.
    ///
    /// # Errors
    /// 400 in upstream's words when it is not a number.
    pub fn number(&self, key: &str) -> Result<Option<i64>, Status> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => v
                .parse()
                .map(Some)
                .map_err(|_| Status::bad_request(format!("strconv.ParseInt: parsing {}: invalid syntax", quote(v)))),
        }
    }
}

fn quote(s: &str) -> String {
    skiff_core::invalid::quote_str(s)
}

/// A request to a resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceRequest {
    /// API group, empty for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Namespace, empty for cluster-wide requests.
    pub namespace: String,
    /// Plural name.
    pub resource: String,
    /// Object name, empty for collections.
    pub name: String,
    /// First segment after the name, empty for the object itself.
    pub subresource: String,
    /// What follows the subresource (proxy paths), with its leading slash, still percent-encoded.
    pub rest: String,
    /// What to do.
    pub verb: Verb,
}

/// What the path means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An API object or collection.
    Resource(ResourceRequest),
    /// Anything else: discovery, health, metrics, OpenAPI.
    Path,
}

impl Target {
    /// Reads the target. `path` is the raw path.
    #[must_use]
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        let mut parts = path.trim_start_matches('/').split('/');
        let (group, version) = match parts.next() {
            Some("api") => (String::new(), parts.next().unwrap_or_default()),
            Some("apis") => (decode(parts.next().unwrap_or_default()), parts.next().unwrap_or_default()),
            _ => return Self::Path,
        };
        let mut parts: Vec<&str> = parts.collect();
        // A trailing slash counts as nothing, except inside what a proxy passes on.
        let trailing = parts.last() == Some(&"");
        if trailing {
            parts.pop();
        }
        if version.is_empty() || parts.is_empty() {
            return Self::Path;
        }
        let watch_prefix = parts[0] == "watch";
        if watch_prefix {
            parts.remove(0);
            if parts.is_empty() {
                return Self::Path;
            }
        }
        let mut namespace = String::new();
        if parts[0] == "namespaces" && parts.len() > 1 {
            namespace = decode(parts[1]);
            // `namespaces/x/status` is a subresource of the namespace; `namespaces/x/pods` a resource in it.
            if parts.len() > 2 && !matches!(parts[2], "status" | "finalize") {
                parts.drain(..2);
            }
        }
        let resource = decode(parts[0]);
        let name = parts.get(1).map(|s| decode(s)).unwrap_or_default();
        let subresource = parts.get(2).map(|s| decode(s)).unwrap_or_default();
        let mut rest = String::new();
        for p in parts.iter().skip(3) {
            rest.push('/');
            rest.push_str(p);
        }
        if trailing && !subresource.is_empty() {
            rest.push('/');
        }
        let mut verb = match *method {
            Method::GET | Method::HEAD => Verb::Get,
            Method::POST => Verb::Create,
            Method::PUT => Verb::Update,
            Method::PATCH => Verb::Patch,
            Method::DELETE => Verb::Delete,
            // Known to no resource, so that whoever may ask is told so; a proxy passes OPTIONS on.
            _ => Verb::Options,
        };
        let mut out =
            ResourceRequest { group, version: version.to_owned(), namespace, resource, name, subresource, rest, verb };
        if verb == Verb::Get && out.subresource.is_empty() {
            if watch_prefix || (out.name.is_empty() && query.flag("watch")) {
                verb = Verb::Watch;
            } else if out.name.is_empty() {
                verb = Verb::List;
            }
        } else if watch_prefix {
            // Nothing is written there.
            verb = Verb::Options;
        }
        if verb == Verb::Delete && out.name.is_empty() {
            verb = Verb::DeleteCollection;
        }
        out.verb = verb;
        Self::Resource(out)
    }
}

impl ResourceRequest {
    /// The name that authorisation sees: lists and watches pinned by `metadata.name=x` count as that name.
    #[must_use]
    pub fn authorised_name<'a>(&'a self, query: &Query) -> Cow<'a, str> {
        if self.name.is_empty()
            && matches!(self.verb, Verb::List | Verb::Watch)
            && let Some(s) = query.get("fieldSelector")
            && let Ok(f) = FieldSelector::parse(s)
            && let Some(n) = f.exact("metadata.name")
            && skiff_core::names::is_path_segment(n).is_empty()
        {
            return Cow::Owned(n.to_owned());
        }
        Cow::Borrowed(&self.name)
    }

    /// `pods`, or `pods/log`.
    #[must_use]
    pub fn full_resource(&self) -> Cow<'_, str> {
        if self.subresource.is_empty() {
            Cow::Borrowed(&self.resource)
        } else {
            Cow::Owned(format!("{}/{}", self.resource, self.subresource))
        }
    }
}

fn decode(s: &str) -> String {
    percent_decode_str(s).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, url: &str) -> Option<ResourceRequest> {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        match Target::parse(&method.parse().unwrap(), path, &Query::parse(query)) {
            Target::Resource(r) => Some(r),
            Target::Path => None,
        }
    }

    #[test]
    fn paths() {
        let cases = [
            ("GET", "/api/v1/pods", ("", "pods", "", "", Verb::List)),
            ("GET", "/api/v1/namespaces/a/pods", ("a", "pods", "", "", Verb::List)),
            ("GET", "/api/v1/namespaces/a/pods/b", ("a", "pods", "b", "", Verb::Get)),
            ("GET", "/api/v1/namespaces/a/pods/b/log", ("a", "pods", "b", "log", Verb::Get)),
            ("GET", "/api/v1/namespaces/a", ("a", "namespaces", "a", "", Verb::Get)),
            ("PUT", "/api/v1/namespaces/a/finalize", ("a", "namespaces", "a", "finalize", Verb::Update)),
            ("DELETE", "/apis/apps/v1/namespaces/a/deployments", ("a", "deployments", "", "", Verb::DeleteCollection)),
            ("GET", "/apis/apps/v1/deployments?watch=1", ("", "deployments", "", "", Verb::Watch)),
            ("GET", "/api/v1/watch/namespaces/a/pods", ("a", "pods", "", "", Verb::Watch)),
            ("POST", "/api/v1/watch/namespaces", ("", "namespaces", "", "", Verb::Options)),
            ("GET", "/api/v1/namespaces/a/pods/b?watch=1", ("a", "pods", "b", "", Verb::Get)),
            ("POST", "/api/v1/namespaces", ("", "namespaces", "", "", Verb::Create)),
        ];
        for (method, url, (ns, resource, name, sub, verb)) in cases {
            let r = parse(method, url).unwrap();
            let got = (r.namespace.as_str(), r.resource.as_str(), r.name.as_str(), r.subresource.as_str(), r.verb);
            assert_eq!(got, (ns, resource, name, sub, verb), "{method} {url}");
        }
        for url in ["/api", "/api/v1", "/apis/apps/v1", "/version", "/"] {
            assert!(parse("GET", url).is_none(), "{url}");
        }
    }

    #[test]
    fn a_selector_names_what_is_read_only() {
        let name = |method: &str, query: &str| {
            let r = parse(method, &format!("/api/v1/secrets?{query}")).unwrap();
            r.authorised_name(&Query::parse(query)).into_owned()
        };
        assert_eq!(name("GET", "fieldSelector=metadata.name%3Da"), "a");
        assert_eq!(name("GET", "watch=1&fieldSelector=metadata.name%3Da"), "a");
        assert_eq!(name("GET", "fieldSelector=metadata.name%3Da%2Fb"), "");
        for method in ["POST", "DELETE"] {
            assert_eq!(name(method, "fieldSelector=metadata.name%3Da"), "", "{method}");
        }
    }

    #[test]
    fn proxied_paths_keep_their_encoding() {
        let r = parse("GET", "/api/v1/namespaces/a/services/b/proxy/x%2Fy/").unwrap();
        assert_eq!(r.rest, "/x%2Fy/");
        let r = parse("GET", "/api/v1/namespaces/a/services/b/proxy/").unwrap();
        assert_eq!(r.rest, "/");
    }
}
