//! The shape of every kind: one table that field validation, strategic merge, server-side apply, protobuf and OpenAPI
//! are all driven by.
//!
//! Built-in kinds come from a generated static table (see `hack/generate`); a custom resource builds the same structures
//! at run time. A [`Handle`] hides which of the two it is.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

#[rustfmt::skip]
mod generated;
mod table;

#[cfg(test)]
mod tests;

/// A reference into the static table, or to a run-time schema.
#[derive(Debug)]
pub enum Handle<T: 'static> {
    /// Part of the generated table.
    Static(&'static T),
    /// Built from a CustomResourceDefinition.
    Shared(Arc<T>),
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Static(t) => Self::Static(t),
            Self::Shared(t) => Self::Shared(Arc::clone(t)),
        }
    }
}

impl<T> Deref for Handle<T> {
    type Target = T;
    fn deref(&self) -> &T {
        match self {
            Self::Static(t) => t,
            Self::Shared(t) => t,
        }
    }
}

/// What a JSON value must look like.
#[derive(Clone, Debug)]
pub enum Shape {
    /// A string.
    String,
    /// Base64 in JSON, bytes in protobuf.
    Bytes,
    /// `true` or `false`.
    Bool,
    /// 32-bit integer.
    Int32,
    /// 64-bit integer.
    Int64,
    /// Double.
    Double,
    /// RFC 3339 with seconds.
    Time,
    /// RFC 3339 with microseconds.
    MicroTime,
    /// A duration in Go's notation.
    Duration,
    /// A resource quantity.
    Quantity,
    /// A number or a string.
    IntOrString,
    /// The set of fields in a managedFields entry.
    FieldsV1,
    /// A whole object of any kind (`runtime.RawExtension`).
    RawExtension,
    /// Any JSON, owned as a whole.
    Json,
    /// Any JSON, owned as it is: objects by member, everything else as a whole (custom resources).
    Deduced,
    /// In the schema of a CRD: a schema or a bool.
    SchemaOrBool(Handle<Struct>),
    /// In the schema of a CRD: a schema or a list of schemas.
    SchemaOrArray(Handle<Struct>),
    /// In the schema of a CRD: a schema or a list of strings.
    SchemaOrStringArray(Handle<Struct>),
    /// A structure.
    Struct(Handle<Struct>),
    /// A list.
    List(Handle<Shape>),
    /// A map from string.
    Map(Handle<Shape>),
}

/// How upstream's typed form prints a field that holds nothing. This decides whether an empty value survives a round
/// trip: Go drops `omitempty` zero values, keeps what a pointer points to, and always prints a struct value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// A pointer: absent stays absent, a present zero value stays.
    Pointer,
    /// A pointer without `omitempty`: as [`Presence::Pointer`], but `null` is printed when absent.
    Nullable,
    /// A value with `omitempty` (or `omitzero`): its zero value is not printed. Struct values with plain `omitempty` are
    /// [`Presence::Always`], because Go prints them.
    OmitEmpty,
    /// Always printed: the zero value (`""`, `0`, `false`, `{}`, `null` for lists and maps) when absent.
    Always,
}

/// How a list merges in server-side apply (`x-kubernetes-list-type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListType {
    /// Replaced as a whole.
    Atomic,
    /// A set of scalars.
    Set,
    /// A map keyed by [`Field::list_keys`].
    Map,
}

/// How strategic merge patch treats a field (`x-kubernetes-patch-strategy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchStrategy {
    /// Lists are replaced, structures merged.
    Default,
    /// Lists merge by [`Field::merge_key`] (or as sets of scalars when there is none).
    Merge,
    /// Only the keys named by `$retainKeys` are kept.
    RetainKeys,
    /// Both of the above.
    MergeRetainKeys,
    /// Replaced as a whole.
    Replace,
}

/// One field of a structure.
#[derive(Clone, Debug)]
pub struct Field {
    /// JSON name.
    pub name: Cow<'static, str>,
    /// Type.
    pub shape: Shape,
    /// Protobuf field number; 0 where there is none (custom resources).
    pub number: u32,
    /// Protobuf numbers of the embedded messages that hold the field, outermost first. Go inlines such structures in JSON
    /// (`VolumeSource` in `Volume`), so [`Struct::fields`] lists their fields as if they were its own.
    pub within: &'static [u32],
    /// In protobuf the list is a message `{repeated items = 1}` of its own.
    pub boxed: bool,
    /// How an empty value prints.
    pub presence: Presence,
    /// Whether OpenAPI lists it as required.
    pub required: bool,
    /// Strategic merge.
    pub patch: PatchStrategy,
    /// Key of the elements for [`PatchStrategy::Merge`].
    pub merge_key: Option<Cow<'static, str>>,
    /// Server-side apply: how a list merges. Ignored for other shapes.
    pub list: ListType,
    /// Keys for [`ListType::Map`].
    pub list_keys: Cow<'static, [Cow<'static, str>]>,
    /// Server-side apply: a map or structure that is owned as a whole (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
    /// Server-side apply: the fields of the structure are owned one by one, even if [`Struct::atomic`] says otherwise
    /// (`x-kubernetes-map-type: granular`).
    pub granular: bool,
    /// Default as JSON text, where the published schema states one.
    pub default: Option<Cow<'static, str>>,
}

impl Field {
    /// An optional field (a pointer) without merge rules, as the schemas of custom resources have them.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>, shape: Shape) -> Self {
        Self {
            name: name.into(),
            shape,
            number: 0,
            within: &[],
            boxed: false,
            presence: Presence::Pointer,
            required: false,
            patch: PatchStrategy::Default,
            merge_key: None,
            list: ListType::Atomic,
            list_keys: Cow::Borrowed(&[]),
            atomic: false,
            granular: false,
            default: None,
        }
    }
}

/// A structure.
#[derive(Clone, Debug)]
pub struct Struct {
    /// OpenAPI model name, for example `io.k8s.api.core.v1.PodSpec`.
    pub name: Cow<'static, str>,
    /// Fields in declaration order.
    pub fields: Cow<'static, [Field]>,
    /// Whether unknown fields are kept (custom resources).
    pub preserve_unknown: bool,
    /// Whether the structure as a whole is atomic for server-side apply (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
}

impl Struct {
    /// The field named `name`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| f.name == name)
    }
}

/// The structure with this OpenAPI model name.
#[must_use]
pub fn model(name: &str) -> Option<&'static Struct> {
    let i = generated::MODELS.binary_search_by(|s| s.name.as_ref().cmp(name)).ok()?;
    Some(generated::MODELS[i])
}

/// The structure of a built-in kind, including kinds that are only bodies or parameters (`Scale`, `PodExecOptions`,
/// `DeleteOptions`). Kinds of `meta/v1` are found under group "" version "v1"; `Table`, `PartialObjectMetadata` and
/// their lists under `meta.k8s.io/v1`.
#[must_use]
pub fn kind(group: &str, version: &str, kind: &str) -> Option<&'static Struct> {
    let i = generated::KINDS.binary_search_by(|(g, v, k, _)| (*g, *v, *k).cmp(&(group, version, kind))).ok()?;
    Some(generated::KINDS[i].3)
}

/// Every structure of the table, sorted by name.
#[must_use]
pub fn models() -> &'static [&'static Struct] {
    &generated::MODELS
}

/// Every built-in kind as (group, version, kind, structure), sorted.
#[must_use]
pub fn kinds() -> &'static [(&'static str, &'static str, &'static str, &'static Struct)] {
    &generated::KINDS
}
