//! Paths to fields, as they are printed in validation errors: `spec.containers[0].env[name]`.
//!
//! A path is a chain of borrowed segments on the stack: walking an object costs nothing until an error is printed.

use std::fmt;

/// One step of a [`Path`].
#[derive(Clone, Copy, Debug)]
enum Segment<'a> {
    Name(&'a str),
    Index(usize),
    Key(&'a str),
}

/// A path to a field.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    segment: Segment<'a>,
}

impl<'a> Path<'a> {
    /// A path of one name. An empty name is the object itself: children print without a leading dot.
    #[must_use]
    pub const fn new(name: &'a str) -> Self {
        Self { parent: None, segment: Segment::Name(name) }
    }

    /// The field `name` below this path. `name` may itself contain dots (`"valueFrom.fieldRef"`).
    #[must_use]
    pub const fn child(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), segment: Segment::Name(name) }
    }

    /// Element `i` of the list at this path.
    #[must_use]
    pub const fn index(&'a self, i: usize) -> Self {
        Self { parent: Some(self), segment: Segment::Index(i) }
    }

    /// Entry `key` of the map at this path, printed in brackets.
    #[must_use]
    pub const fn key(&'a self, key: &'a str) -> Self {
        Self { parent: Some(self), segment: Segment::Key(key) }
    }

    fn is_empty(&self) -> bool {
        self.parent.is_none() && matches!(self.segment, Segment::Name(""))
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.segment {
            Segment::Name(n) => {
                if self.parent.is_some_and(|p| !p.is_empty()) {
                    f.write_str(".")?;
                }
                f.write_str(n)
            }
            Segment::Index(i) => write!(f, "[{i}]"),
            Segment::Key(k) => write!(f, "[{k}]"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Path;

    #[test]
    fn prints_like_upstream() {
        let spec = Path::new("spec");
        let containers = spec.child("containers");
        let first = containers.index(0);
        assert_eq!(first.child("image").to_string(), "spec.containers[0].image");
        assert_eq!(Path::new("data").key("a b").to_string(), "data[a b]");
        assert_eq!(Path::new("").child("kind").to_string(), "kind");
    }
}
