//! Pod ranges of nodes: a /24 (IPv4) or /64 (IPv6) each out of the cluster's range.

use std::collections::HashMap;

use ipnet::IpNet;

/// Which node has which range.
#[derive(Debug)]
pub struct Ranges {
    cluster: IpNet,
    by_node: HashMap<String, String>,
}

impl Ranges {
    /// No node has a range yet.
    #[must_use]
    pub fn new(cluster: IpNet) -> Self {
        Self { cluster, by_node: HashMap::new() }
    }

    /// A node has a range already.
    pub fn keep(&mut self, node: &str, range: &str) {
        self.by_node.insert(node.to_owned(), range.to_owned());
    }

    /// The node is gone.
    pub fn release(&mut self, node: &str) {
        self.by_node.remove(node);
    }

    /// The range of a node, a free one if it has none. None when all are taken.
    pub fn give(&mut self, node: &str) -> Option<String> {
        if let Some(range) = self.by_node.get(node) {
            return Some(range.clone());
        }
        let length = if matches!(self.cluster, IpNet::V4(_)) { 24 } else { 64 };
        let length = length.max(self.cluster.prefix_len());
        let free = self.cluster.subnets(length).ok()?.map(|n| n.to_string());
        let free = free.into_iter().find(|n| !self.by_node.values().any(|taken| taken == n))?;
        self.by_node.insert(node.to_owned(), free.clone());
        Some(free)
    }
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
}
