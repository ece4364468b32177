//! Sets of completion indexes, as `0,2-5` in a Job's status: intervals in order, so that a million indexes that all
//! completed are one of them.

use std::fmt;

/// A set of indexes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads a status; what lies at or beyond `completions` (an elastic Job shrank) or is no interval is left out.
    #[must_use]
    pub fn parse(text: &str, completions: i32) -> Self {
        let mut out = Self::default();
        for part in text.split(',') {
            let (from, to) = part.split_once('-').unwrap_or((part, part));
            if let (Ok(from), Ok(to)) = (from.parse::<i32>(), to.parse::<i32>()) {
                let to = to.min(completions - 1);
                if from <= to {
                    out.push(from, to);
                }
            }
        }
        out
    }

    /// The set of what `indexes` gives, in any order.
    #[must_use]
    pub fn of(indexes: impl IntoIterator<Item = i32>) -> Self {
        let mut all: Vec<i32> = indexes.into_iter().collect();
        all.sort_unstable();
        let mut out = Self::default();
        for i in all {
            out.push(i, i);
        }
        out
    }

    /// Adds an interval that begins at or after the last one's beginning.
    fn push(&mut self, from: i32, to: i32) {
        match self.0.last_mut() {
            Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
            _ => self.0.push((from, to)),
        }
    }

    /// Both together.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut all: Vec<(i32, i32)> = self.0.iter().chain(&other.0).copied().collect();
        all.sort_unstable();
        let mut out = Self::default();
        for (from, to) in all {
            out.push(from, to);
        }
        out
    }

    /// Whether an index is in it.
    #[must_use]
    pub fn has(&self, index: i32) -> bool {
        let at = self.0.partition_point(|(_, to)| *to < index);
        self.0.get(at).is_some_and(|(from, _)| *from <= index)
    }

    /// How many there are.
    #[must_use]
    pub fn total(&self) -> i32 {
        self.0.iter().map(|(from, to)| to - from + 1).sum()
    }

    /// How many are in both.
    #[must_use]
    pub fn common(&self, other: &Self) -> i32 {
        let both = |a: &(i32, i32)| -> i32 { other.0.iter().map(|b| (a.1.min(b.1) - a.0.max(b.0) + 1).max(0)).sum() };
        self.0.iter().map(both).sum()
    }

    /// The first `count` indexes below `end` that are not in it.
    #[must_use]
    pub fn missing(&self, count: usize, end: i32) -> Vec<i32> {
        let mut out = Vec::with_capacity(count);
        let mut next = 0;
        for (from, to) in self.0.iter().copied().chain([(end, end)]) {
            while next < from.min(end) && out.len() < count {
                out.push(next);
                next += 1;
            }
            next = next.max(to.saturating_add(1));
        }
        out
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (from, to)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            match to - from {
                0 => write!(f, "{comma}{from}")?,
                // Two neighbours are shorter apart.
                1 => write!(f, "{comma}{from},{to}")?,
                _ => write!(f, "{comma}{from}-{to}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn texts() {
        for (indexes, text) in [
            (&[][..], ""),
            (&[0][..], "0"),
            (&[0, 1][..], "0,1"),
            (&[2, 0, 1][..], "0-2"),
            (&[1, 3, 4, 5, 7, 8][..], "1,3-5,7,8"),
        ] {
            assert_eq!(Indexes::of(indexes.iter().copied()).to_string(), text);
        }
        assert_eq!(Indexes::parse("0-9,12,x", 5).to_string(), "0-4");
    }

    proptest! {
        #[test]
        fn like_a_set(a: BTreeSet<u8>, b: BTreeSet<u8>, count in 0usize..20, end in 0i32..300) {
            let set = |s: &BTreeSet<u8>| Indexes::of(s.iter().map(|i| i32::from(*i)));
            let (x, y) = (set(&a), set(&b));
            prop_assert_eq!(Indexes::parse(&x.to_string(), 256), x.clone());
            prop_assert_eq!(x.union(&y), set(&a.union(&b).copied().collect()));
            prop_assert_eq!(x.common(&y) as usize, a.intersection(&b).count());
            prop_assert_eq!(x.total() as usize, a.len());
            for i in 0..=255u8 {
                prop_assert_eq!(x.has(i.into()), a.contains(&i));
            }
            let missing: Vec<i32> =
                (0..end).filter(|i| u8::try_from(*i).map_or(true, |i| !a.contains(&i))).take(count).collect();
            prop_assert_eq!(x.missing(count, end), missing);
        }
    }
}
