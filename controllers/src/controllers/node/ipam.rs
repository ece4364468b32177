//! Pod ranges of nodes: a /24 (IPv4) or /64 (IPv6) each out of the cluster's range.
//!
//! A range is given after the last one that was given, so that one that became free rests: its node may come back and
//! want it again, and others may still send to it.

use std::collections::HashMap;

use ipnet::IpNet;

/// Which node has which range.
#[derive(Debug)]
pub struct Ranges {
    cluster: IpNet,
    by_node: HashMap<String, IpNet>,
    last: Option<IpNet>,
}

impl Ranges {
    /// No node has a range yet.
    #[must_use]
    pub fn new(cluster: IpNet) -> Self {
        Self { cluster, by_node: HashMap::new(), last: None }
    }

    /// A node has a range already. What is no range is nothing.
    pub fn keep(&mut self, node: &str, range: &str) {
        if let Ok(range) = range.parse() {
            self.by_node.insert(node.to_owned(), range);
        }
    }

    /// The node is gone.
    pub fn release(&mut self, node: &str) {
        self.by_node.remove(node);
    }

    /// Another node with a range that overlaps this node's.
    #[must_use]
    pub fn rival(&self, node: &str) -> Option<&str> {
        let own = self.by_node.get(node)?;
        self.by_node.iter().find(|(n, r)| *n != node && overlap(own, r)).map(|(n, _)| n.as_str())
    }

    /// The range of a node, a free one if it has none. None when all are taken.
    pub fn give(&mut self, node: &str) -> Option<String> {
        if let Some(range) = self.by_node.get(node) {
            return Some(range.to_string());
        }
        let length = if matches!(self.cluster, IpNet::V4(_)) { 24 } else { 64 };
        let length = length.max(self.cluster.prefix_len());
        let all = || self.cluster.subnets(length).into_iter().flatten();
        let after = all().skip_while(|n| self.last.is_some_and(|l| *n <= l));
        let free = after.chain(all()).find(|n| !self.by_node.values().any(|taken| overlap(n, taken)))?;
        self.by_node.insert(node.to_owned(), free);
        self.last = Some(free);
        Some(free.to_string())
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_given_once_and_again_after_release() {
        let mut r = Ranges::new("10.0.0.0/22".parse().unwrap());
        r.keep("old", "10.0.1.0/24");
        let given: Vec<_> = ["a", "b", "c", "a", "d"].map(|n| r.give(n)).into();
        let text: Vec<_> = given.iter().map(|g| g.as_deref().unwrap_or("-")).collect();
        assert_eq!(text, ["10.0.0.0/24", "10.0.2.0/24", "10.0.3.0/24", "10.0.0.0/24", "-"]);
        r.release("b");
        assert_eq!(r.give("d").as_deref(), Some("10.0.2.0/24"));
    }

    #[test]
    fn a_free_range_rests_and_no_two_overlap() {
        let mut r = Ranges::new("10.0.0.0/22".parse().unwrap());
        assert_eq!(r.give("a").as_deref(), Some("10.0.0.0/24"));
        r.release("a");
        assert_eq!(r.give("b").as_deref(), Some("10.0.1.0/24"));
        r.keep("wide", "10.0.2.128/25");
        assert_eq!(r.give("c").as_deref(), Some("10.0.3.0/24"));
        r.keep("thief", "10.0.1.64/26");
        assert_eq!(r.rival("thief"), Some("b"));
        assert_eq!(r.rival("c"), None);
    }
}
