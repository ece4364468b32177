//! The verbs, one file each. None of them knows which kind it handles.

pub mod create;
pub mod delete;
pub mod get;
pub mod list;
pub mod options;
pub mod patch;
pub mod update;
pub mod watch;
pub mod write;

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use serde_json::Value;
use skiff_core::schema::{Handle, Struct};

use crate::auth::User;
use crate::body::Body;
use crate::registry::Kind;
use crate::request::{Query, ResourceRequest};

/// A request that has passed the gates.
pub struct Call {
    /// Who.
    pub user: User,
    /// What.
    pub target: ResourceRequest,
    /// Options.
    pub query: Query,
    /// Headers.
    pub headers: HeaderMap,
    /// Body, whole.
    pub body: Bytes,
    /// `Warning` headers to send along.
    pub warnings: Vec<String>,
    /// Empty maps and lists of the body, of which the typed form knows nothing: `spec.selector={}`. For the words of a refusal.
    pub emptied: Vec<String>,
    /// The connection, for subresources that take it over.
    pub upgrade: Option<hyper::upgrade::OnUpgrade>,
    /// What it came by. With HTTP/2 others may use the same connection.
    pub version: http::Version,
}

impl Call {
    /// A header as text, empty when absent.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
    }

    /// Name for managedFields: the `fieldManager` option, or the client's name.
    #[must_use]
    pub fn field_manager(&self) -> String {
        match self.query.get("fieldManager") {
            Some(m) if !m.is_empty() => m.to_owned(),
            _ => {
                let name = self.header("user-agent").split('/').next().unwrap_or_default();
                if name.is_empty() { "unknown".to_owned() } else { name.chars().take(128).collect() }
            }
        }
    }
}

/// What a verb answers.
pub enum Answer {
    /// One object of a kind.
    Object {
        /// HTTP status.
        code: u16,
        /// Its kind, in the version to answer.
        kind: Arc<Kind>,
        /// The object.
        object: Content,
    },
    /// An object that is not of the resource's own kind: Scale, reviews, Status.
    Value {
        /// HTTP status.
        code: u16,
        /// The object.
        value: Value,
        /// Its shape, if it can be protobuf.
        model: Option<Handle<Struct>>,
    },
    /// Anything else, finished.
    Http(http::Response<Body>),
}

/// An object as stored bytes (of the stored version) or parsed (of the version to answer).
pub enum Content {
    /// Finished JSON in the stored version.
    Stored(Bytes),
    /// Parsed, in the answered version.
    Parsed(Value),
}

impl Answer {
    /// A `Status` of success or any other plain object of `v1`.
    #[must_use]
    pub fn status(code: u16, value: Value) -> Self {
        let model = skiff_core::schema::model("io.k8s.apimachinery.pkg.apis.meta.v1.Status").map(Handle::Static);
        Self::Value { code, value, model }
    }
}
