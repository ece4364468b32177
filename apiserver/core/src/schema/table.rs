//! Short names for the generated table: a row must fit a line.

use std::borrow::Cow;

pub(super) use super::Handle::Static as H;
pub(super) use super::Presence::{Always, Nullable, OmitEmpty, Pointer};
pub(super) use super::Shape::Struct as Object;
pub(super) use super::Shape::{
    Bool, Bytes, Double, FieldsV1, Int32, Int64, IntOrString, Json, List, Map, MicroTime, Quantity, RawExtension,
    SchemaOrArray, SchemaOrBool, SchemaOrStringArray, String, Time,
};
pub(super) use super::{Field, Shape, Struct};
use super::{ListType, PatchStrategy, Presence};

pub(super) type Key = Cow<'static, str>;

/// OpenAPI lists the field as required.
pub(super) const REQUIRED: u16 = 1;
/// `x-kubernetes-map-type: atomic`.
pub(super) const ATOMIC: u16 = 2;
/// `x-kubernetes-map-type: granular`.
pub(super) const GRANULAR: u16 = 256;
/// The list is a message of its own in protobuf.
pub(super) const BOXED: u16 = 4;
/// `x-kubernetes-list-type: set`.
pub(super) const SET: u16 = 8;
/// `x-kubernetes-list-type: map`.
pub(super) const MAP: u16 = 16;
/// Patch strategy `merge`.
pub(super) const MERGE: u16 = 32;
/// Patch strategy `retainKeys`.
pub(super) const RETAIN_KEYS: u16 = 64;
/// Patch strategy `replace`.
pub(super) const REPLACE: u16 = 128;

pub(super) const fn s(name: &'static str, fields: &'static [Field], atomic: bool) -> Struct {
    Struct { name: Cow::Borrowed(name), fields: Cow::Borrowed(fields), preserve_unknown: false, atomic }
}

/// A field without the rarer facts.
pub(super) const fn f(name: &'static str, shape: Shape, number: u32, presence: Presence, flags: u16) -> Field {
    fx(name, shape, number, presence, flags, "", &[], "", &[])
}

/// A field with merge key, list keys, default, and the embedded messages that hold it in protobuf.
#[allow(clippy::too_many_arguments)]
pub(super) const fn fx(
    name: &'static str,
    shape: Shape,
    number: u32,
    presence: Presence,
    flags: u16,
    merge_key: &'static str,
    list_keys: &'static [Key],
    default: &'static str,
    within: &'static [u32],
) -> Field {
    let patch = match (flags & MERGE != 0, flags & RETAIN_KEYS != 0, flags & REPLACE != 0) {
        (true, true, _) => PatchStrategy::MergeRetainKeys,
        (true, false, _) => PatchStrategy::Merge,
        (false, true, _) => PatchStrategy::RetainKeys,
        (false, false, true) => PatchStrategy::Replace,
        (false, false, false) => PatchStrategy::Default,
    };
    let list = match (flags & SET != 0, flags & MAP != 0) {
        (true, _) => ListType::Set,
        (false, true) => ListType::Map,
        (false, false) => ListType::Atomic,
    };
    Field {
        name: Cow::Borrowed(name),
        shape,
        number,
        within,
        boxed: flags & BOXED != 0,
        presence,
        required: flags & REQUIRED != 0,
        patch,
        merge_key: if merge_key.is_empty() { None } else { Some(Cow::Borrowed(merge_key)) },
        list,
        list_keys: Cow::Borrowed(list_keys),
        atomic: flags & ATOMIC != 0,
        granular: flags & GRANULAR != 0,
        default: if default.is_empty() { None } else { Some(Cow::Borrowed(default)) },
    }
}
