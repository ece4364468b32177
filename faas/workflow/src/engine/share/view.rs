//! Whose a run is, by the names of those who share them: no I/O.

use std::sync::Arc;

use tokio::time::Instant;

/// Names of engines, sorted.
pub(crate) type Set = Arc<[Arc<str>]>;

/// A number of a text: the same in every version of this program, for engines of two versions must agree.
fn hash(parts: [&str; 3]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        // A byte that is in no name keeps parts apart.
        for byte in part.bytes().chain([0xff]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    // What differs at the end only must differ everywhere.
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Which of a set has something: the one with the highest number for it. One that comes takes its share of each, one that goes
/// leaves its own to all; nothing else moves.
fn owner<'a>(set: &'a [Arc<str>], namespace: &str, name: &str) -> Option<&'a Arc<str>> {
    set.iter().max_by_key(|member| (hash([member, namespace, name]), Arc::clone(member)))
}

/// One text of a set.
pub(super) fn digest(set: &[Arc<str>]) -> String {
    let all = crate::pack::digest(set.join(",").as_bytes());
    all.get(..16).unwrap_or_default().to_owned()
}

/// What an engine knows of those who share the runs.
#[derive(Clone, Debug)]
pub(crate) struct View {
    me: Arc<str>,
    /// What must all give something to this engine: the set it goes by, and, until all others go by that, those before.
    /// Empty: it has nothing.
    sets: Vec<Set>,
    /// Whether all go by the same.
    settled: bool,
    /// Since when it is as it is.
    since: Instant,
}

impl View {
    /// Of one that has nothing yet.
    pub(super) fn nothing(me: Arc<str>) -> Self {
        Self { me, sets: vec![], settled: false, since: Instant::now() }
    }

    /// Of one that goes by another set from now on: it has what both give it.
    pub(super) fn narrowed(&self, set: Set) -> Self {
        let mut sets = self.sets.clone();
        if sets.is_empty() {
            // It had nothing, and nobody let anything go for it yet.
            sets.push(Arc::from([]));
        }
        sets.push(set);
        Self { me: Arc::clone(&self.me), sets, settled: false, since: Instant::now() }
    }

    /// All go by the set that this one goes by.
    pub(super) fn settled(&self) -> Self {
        let sets = self.sets.last().cloned().into_iter().collect();
        Self { me: Arc::clone(&self.me), sets, settled: true, since: Instant::now() }
    }

    /// Whether all go by the same.
    pub(crate) fn is_settled(&self) -> bool {
        self.settled
    }

    /// Since when it is as it is.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// Whether something is this engine's.
    pub(crate) fn mine(&self, namespace: &str, name: &str) -> bool {
        let ours = |set: &Set| owner(set, namespace, name).is_some_and(|o| *o == self.me);
        !self.sets.is_empty() && self.sets.iter().all(ours)
    }

    /// Whether an engine is there.
    pub(crate) fn is_live(&self, member: &str) -> bool {
        self.current().iter().any(|m| **m == *member)
    }

    /// Whether this engine is the first of those that are there, who does what one must do for all.
    pub(crate) fn is_first(&self) -> bool {
        self.settled && self.current().first().is_some_and(|m| *m == self.me)
    }

    /// Whether there are others.
    pub(crate) fn has_others(&self) -> bool {
        self.current().iter().any(|m| *m != self.me)
    }

    /// Its name.
    pub(crate) fn me(&self) -> &Arc<str> {
        &self.me
    }

    /// The set it goes by.
    pub(super) fn current(&self) -> &[Arc<str>] {
        self.sets.last().map_or(&[], |s| s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: &[&str]) -> Set {
        names.iter().map(|n| Arc::from(*n)).collect()
    }

    fn of(set: &Set, run: usize) -> &str {
        owner(set, "ns", &format!("wf.{run}")).unwrap()
    }

    #[test]
    fn shares_are_even_and_little_moves() {
        let (two, three) = (set(&["a", "b"]), set(&["a", "b", "c"]));
        for member in ["a", "b", "c"] {
            let has = (0..9000).filter(|r| of(&three, *r) == member).count();
            assert!((2700..3300).contains(&has), "{member}: {has}");
        }
        for run in 0..1000 {
            let (before, after) = (of(&two, run), of(&three, run));
            assert!(before == after || after == "c", "{run} went from {before} to {after}");
        }
        // What it is must never change: engines of different versions work together.
        assert_eq!(hash(["a", "b", "c"]), 0x10f1_77ac_dafa_4189);
    }

    #[test]
    fn nothing_is_begun_before_all_let_go() {
        let (one, two) = (set(&["a"]), set(&["a", "b"]));
        let begins = View::nothing("b".into());
        assert!((0..100).all(|r| !begins.mine("ns", &format!("wf.{r}"))));
        let narrowed = begins.narrowed(Arc::clone(&two));
        assert!((0..100).all(|r| !narrowed.mine("ns", &format!("wf.{r}"))), "nobody let go yet");
        let a = View::nothing("a".into()).narrowed(Arc::clone(&one)).settled();
        assert!((0..100).all(|r| a.mine("ns", &format!("wf.{r}"))));
        let (a, b) = (a.narrowed(Arc::clone(&two)), narrowed.settled());
        for run in 0..100 {
            let name = format!("wf.{run}");
            assert!(a.mine("ns", &name) != b.mine("ns", &name), "{run}");
        }
        // Back again: what was let go is not had before that is settled.
        let back = a.narrowed(one);
        assert!((0..100).all(|r| back.mine("ns", &format!("wf.{r}")) == a.mine("ns", &format!("wf.{r}"))));
        assert!((0..100).all(|r| back.settled().mine("ns", &format!("wf.{r}"))));
    }
}
