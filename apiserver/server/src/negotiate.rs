//! Content negotiation: which form of an answer the client wants, and which form its body is in.

use skiff_core::status::Status;

/// Encoding of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`.
    Json,
    /// `application/yaml`.
    Yaml,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

impl Encoding {
    /// Media type of an answer.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }
}

/// A view of an object that the client asked for with `as=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The object itself.
    Object,
    /// `Table` of meta.k8s.io; the flag says v1 (true) or v1beta1.
    Table(bool),
    /// `PartialObjectMetadata`.
    Metadata,
    /// `PartialObjectMetadataList`.
    MetadataList,
}

/// What to answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// Encoding.
    pub encoding: Encoding,
    /// View.
    pub view: View,
    /// Whether JSON is indented.
    pub pretty: bool,
}

/// One clause of an Accept header.
#[derive(Debug)]
pub struct Clause<'a> {
    /// `type/subtype`, lower case not enforced.
    pub media: &'a str,
    /// Parameters in order, without `q`.
    pub params: Vec<(&'a str, &'a str)>,
    q: f32,
}

impl<'a> Clause<'a> {
    /// Value of parameter `name`.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&'a str> {
        self.params.iter().find(|(k, _)| *k == name).map(|(_, v)| *v)
    }
}

/// Splits an Accept header into clauses, best first (stable for equal quality). Malformed clauses are dropped.
#[must_use]
pub fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut out: Vec<Clause<'_>> = accept
        .split(',')
        .filter_map(|c| {
            let mut parts = c.split(';').map(str::trim);
            let media = parts.next().filter(|m| m.contains('/'))?;
            let mut q = 1.0;
            let mut params = vec![];
            for p in parts {
                let (k, v) = p.split_once('=').unwrap_or((p, ""));
                let v = v.trim_matches('"');
                if k == "q" { q = v.parse().unwrap_or(0.0) } else { params.push((k, v)) }
            }
            Some(Clause { media, params, q })
        })
        .collect();
    out.sort_by(|a, b| b.q.total_cmp(&a.q).then_with(|| specificity(b.media).cmp(&specificity(a.media))));
    out
}

fn specificity(media: &str) -> u8 {
    match media {
        "*/*" => 0,
        m if m.ends_with("/*") => 1,
        _ => 2,
    }
}

/// What an endpoint can offer.
#[derive(Clone, Copy, Debug)]
pub struct Offer {
    /// Whether objects can be protobuf (built-in kinds).
    pub protobuf: bool,
    /// Whether `as=Table` is served.
    pub table: bool,
    /// Whether the metadata views are served.
    pub metadata: bool,
    /// Whether YAML is (not for watches).
    pub yaml: bool,
    /// Whether it is a stream of events.
    pub stream: bool,
}

impl Offer {
    /// Everything a built-in kind offers.
    pub const BUILT_IN: Self = Self { protobuf: true, table: true, metadata: true, yaml: true, stream: false };
    /// Plain objects only: statuses and virtual resources.
    pub const OBJECT: Self = Self { protobuf: true, table: false, metadata: false, yaml: true, stream: false };

    fn names(self) -> Vec<&'static str> {
        if self.stream {
            let mut v = vec!["application/json;stream=watch"];
            v.extend(self.protobuf.then_some("application/vnd.kubernetes.protobuf;stream=watch"));
            return v;
        }
        let mut v = vec!["application/json"];
        if self.yaml {
            v.push("application/yaml");
        }
        if self.protobuf {
            v.push("application/vnd.kubernetes.protobuf");
        }
        v
    }
}

/// What routes of objects produce.
pub const OBJECTS: &[&str] = &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];

/// The first gate, before a resource is looked at: some clause must name a type that the route produces. Quality values do not
/// count here and spelling does, as in upstream's router.
///
/// # Errors
/// 406 with the router's text.
pub fn produced(accept: &str, types: &[&str]) -> Result<(), Status> {
    let mut named = accept.split(',').map(|c| c.split(';').next().unwrap_or_default().trim());
    if accept.is_empty() || named.any(|m| m == "*/*" || types.contains(&m)) {
        return Ok(());
    }
    let mut s = Status::new(406, "NotAcceptable", "406: Not Acceptable");
    s.details = Some(Box::default());
    Err(s)
}

/// Chooses a form, behind the router where the kind is.
///
/// # Errors
/// 406 when nothing the client accepts can be offered.
pub fn negotiate(accept: Option<&str>, pretty: bool, offer: Offer) -> Result<Form, Status> {
    // Kinds without protobuf are not behind the router that refuses what no route offers.
    if offer.protobuf {
        produced(accept.map(str::trim).unwrap_or_default(), OBJECTS)?;
    }
    choose(accept, pretty, offer)
}

/// Chooses a form.
///
/// # Errors
/// 406 when nothing the client accepts can be offered.
pub fn choose(accept: Option<&str>, pretty: bool, offer: Offer) -> Result<Form, Status> {
    let form = |encoding, view| Form { encoding, view, pretty };
    let accept = accept.map(str::trim).unwrap_or_default();
    if accept.is_empty() {
        return Ok(form(Encoding::Json, View::Object));
    }
    for c in clauses(accept) {
        let encoding = match c.media {
            "*/*" | "application/*" | "application/json" => Encoding::Json,
            "application/yaml" if offer.yaml => Encoding::Yaml,
            "application/vnd.kubernetes.protobuf" => Encoding::Protobuf,
            _ => continue,
        };
        let view = match (c.param("as"), c.param("g"), c.param("v")) {
            (None | Some(""), _, _) => View::Object,
            (Some("Table"), Some("meta.k8s.io"), Some(v @ ("v1" | "v1beta1"))) if offer.table => View::Table(v == "v1"),
            (Some("PartialObjectMetadata"), Some("meta.k8s.io"), Some("v1")) if offer.metadata => View::Metadata,
            (Some("PartialObjectMetadataList"), Some("meta.k8s.io"), Some("v1")) if offer.metadata => {
                View::MetadataList
            }
            _ => continue,
        };
        if encoding == Encoding::Protobuf && !offer.protobuf && view == View::Object {
            continue;
        }
        let pretty = c.param("pretty").map_or(pretty, |p| p != "0");
        return Ok(Form { encoding, view, pretty });
    }
    Err(Status::not_acceptable(&Offer { protobuf: true, ..offer }.names()))
}

/// The encoding of a request body by its Content-Type. `protobuf` says whether the kind has one.
///
/// # Errors
/// 415 naming what is read.
pub fn body_encoding(content_type: Option<&str>, protobuf: bool) -> Result<Encoding, Status> {
    let media = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    match media {
        "" | "application/json" => Ok(Encoding::Json),
        "application/yaml" => Ok(Encoding::Yaml),
        "application/vnd.kubernetes.protobuf" if protobuf => Ok(Encoding::Protobuf),
        _ => {
            let mut known = vec!["application/json", "application/yaml"];
            if protobuf {
                known.push("application/vnd.kubernetes.protobuf");
            }
            Err(Status::unsupported_media_type(&known))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept() {
        let ok = |a: &str| negotiate(Some(a), false, Offer::BUILT_IN).map(|f| (f.encoding, f.view)).ok();
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(ok(table), Some((Encoding::Json, View::Table(true))));
        assert_eq!(ok("application/vnd.kubernetes.protobuf, */*"), Some((Encoding::Protobuf, View::Object)));
        assert_eq!(ok("text/html, */*;q=0.8"), Some((Encoding::Json, View::Object)));
        assert_eq!(ok("application/json;q=0.1, application/yaml"), Some((Encoding::Yaml, View::Object)));
        assert_eq!(ok("text/html"), None);
        let no_proto = Offer { protobuf: false, ..Offer::BUILT_IN };
        let f = negotiate(Some("application/vnd.kubernetes.protobuf,application/json"), false, no_proto).unwrap();
        assert_eq!(f.encoding, Encoding::Json);
        let f = negotiate(Some(table), false, Offer::OBJECT).unwrap();
        assert_eq!(f.view, View::Object);
    }
}
