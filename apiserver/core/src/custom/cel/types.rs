//! Types of expressions, as far as they follow from a schema.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::super::schema::{Additional, Node, Type};
use super::values::escape;
use crate::schema::{Shape, Struct};

/// A type.
#[derive(Clone, Copy, Debug)]
pub(super) enum Base {
    Dyn,
    Null,
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    Type,
}

/// A type, possibly of an object of a schema.
#[derive(Clone, Debug)]
pub(super) enum Ty<'a> {
    Base(Base),
    List(Box<Ty<'a>>),
    Map(Box<Ty<'a>>),
    Optional(Box<Ty<'a>>),
    /// Declared fields; the flag says that it is a whole object.
    Object(&'a Node, bool),
    /// `metadata` of a whole object.
    Names,
    /// Fields of a variable that has no schema: a request, composed variables.
    Record(Arc<BTreeMap<String, Ty<'a>>>),
    /// A structure of the schema table.
    Model(&'a Struct),
    /// An object that an expression makes, by the name of its type.
    Message(String),
}

impl<'a> Ty<'a> {
    pub(super) const DYN: Self = Self::Base(Base::Dyn);
    pub(super) const BOOL: Self = Self::Base(Base::Bool);
    pub(super) const INT: Self = Self::Base(Base::Int);
    pub(super) const STRING: Self = Self::Base(Base::String);

    /// The type of values of a schema; `None` when rules cannot see them.
    pub(super) fn of(node: &'a Node, root: bool) -> Option<Self> {
        if node.int_or_string {
            return Some(Self::DYN);
        }
        Some(match node.kind? {
            Type::Boolean => Self::BOOL,
            Type::Integer => Self::INT,
            Type::Number => Self::Base(Base::Double),
            Type::String => Self::Base(match node.format.as_str() {
                "date" | "date-time" => Base::Timestamp,
                "duration" => Base::Duration,
                "byte" => Base::Bytes,
                _ => Base::String,
            }),
            Type::Array => Self::List(Box::new(Self::of(node.items.as_deref()?, false)?)),
            Type::Object => match &node.additional {
                Additional::Schema(value) => Self::Map(Box::new(Self::of(value, false)?)),
                _ => Self::Object(node, root || node.embedded),
            },
        })
    }

    /// The type of values of this shape.
    fn of_shape(shape: &'a Shape) -> Self {
        match shape {
            Shape::String | Shape::Duration | Shape::Quantity => Self::STRING,
            Shape::Bytes => Self::Base(Base::Bytes),
            Shape::Bool => Self::BOOL,
            Shape::Int32 | Shape::Int64 => Self::INT,
            Shape::Double => Self::Base(Base::Double),
            Shape::Time | Shape::MicroTime => Self::Base(Base::Timestamp),
            Shape::Struct(s) => Self::Model(s),
            Shape::List(item) => Self::List(Box::new(Self::of_shape(item))),
            Shape::Map(value) => Self::Map(Box::new(Self::of_shape(value))),
            _ => Self::DYN,
        }
    }

    /// The type of a field; `Err` when there is none of this name.
    pub(super) fn field(&self, name: &str) -> Result<Self, ()> {
        match self {
            Self::Base(Base::Dyn) => Ok(Self::DYN),
            Self::Map(value) => Ok((**value).clone()),
            Self::Optional(inner) => Ok(Self::Optional(Box::new(inner.field(name)?))),
            Self::Names if matches!(name, "name" | "generateName") => Ok(Self::STRING),
            Self::Record(fields) => fields.get(name).cloned().ok_or(()),
            Self::Message(_) => Ok(Self::DYN),
            Self::Model(s) => match s.fields.iter().find(|f| escape(&f.name) == name) {
                Some(f) => Ok(Self::of_shape(&f.shape)),
                None if s.preserve_unknown || (s.fields.is_empty() && s.name.is_empty()) => Ok(Self::DYN),
                None => Err(()),
            },
            Self::Object(node, whole) => {
                if *whole {
                    match name {
                        "metadata" => return Ok(Self::Names),
                        "apiVersion" | "kind" => return Ok(Self::STRING),
                        _ => {}
                    }
                }
                let found = node.properties.iter().find(|(n, _)| escape(n) == name);
                found.and_then(|(_, n)| Self::of(n, false)).ok_or(())
            }
            _ => Err(()),
        }
    }

    /// Whether values of both types can be told apart or not: numbers of all types compare.
    pub(super) fn equatable(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Base(Base::Dyn), _) | (_, Self::Base(Base::Dyn)) => true,
            // An object may be compared to null, as any message may.
            (
                Self::Object(..) | Self::Names | Self::Record(_) | Self::Message(_) | Self::Model(_),
                Self::Base(Base::Null),
            ) => true,
            (
                Self::Base(Base::Null),
                Self::Object(..) | Self::Names | Self::Record(_) | Self::Message(_) | Self::Model(_),
            ) => true,
            (Self::Model(a), Self::Model(b)) => std::ptr::eq(*a, *b),
            (Self::Record(a), Self::Record(b)) => Arc::ptr_eq(a, b),
            (Self::Message(a), Self::Message(b)) => a == b,
            (Self::Base(a), Self::Base(b)) => std::mem::discriminant(a) == std::mem::discriminant(b),
            (Self::List(a), Self::List(b)) | (Self::Map(a), Self::Map(b)) | (Self::Optional(a), Self::Optional(b)) => {
                a.equatable(b)
            }
            (Self::Object(a, _), Self::Object(b, _)) => std::ptr::eq(*a, *b),
            (Self::Object(..), Self::Map(_)) | (Self::Map(_), Self::Object(..)) => false,
            (Self::Names, Self::Names) => true,
            _ => false,
        }
    }

    pub(super) fn is(&self, base: Base) -> bool {
        matches!(self, Self::Base(b) if std::mem::discriminant(b) == std::mem::discriminant(&base))
    }

    pub(super) fn is_dyn(&self) -> bool {
        self.is(Base::Dyn)
    }

    pub(super) fn is_number(&self) -> bool {
        matches!(self, Self::Base(Base::Int | Base::Uint | Base::Double))
    }
}

impl fmt::Display for Ty<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base(base) => f.write_str(match base {
                Base::Dyn => "dyn",
                Base::Null => "null",
                Base::Bool => "bool",
                Base::Int => "int",
                Base::Uint => "uint",
                Base::Double => "double",
                Base::String => "string",
                Base::Bytes => "bytes",
                Base::Timestamp => "timestamp",
                Base::Duration => "duration",
                Base::Type => "type",
            }),
            Self::List(item) => write!(f, "list({item})"),
            Self::Map(value) => write!(f, "map(string, {value})"),
            Self::Optional(inner) => write!(f, "optional_type({inner})"),
            Self::Object(..) | Self::Names | Self::Record(_) | Self::Model(_) => f.write_str("object"),
            Self::Message(name) => f.write_str(name),
        }
    }
}
