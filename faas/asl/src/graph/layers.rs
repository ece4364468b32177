//! Nodes in layers: every transition that is drawn goes down by one layer, longer ones by way of joints.

use std::collections::{BTreeMap, BTreeSet};

use super::sketch::Edge;

/// Joints beyond this are not made: the transitions stay undrawn (the text names them), so that no definition of a
/// megabyte costs minutes.
const MAX_JOINTS: usize = 20_000;
/// Sweeps to put connected nodes above each other.
const SWEEPS: usize = 4;

/// A place in a layer: a node, or a joint of a longer line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub(super) node: Option<usize>,
    /// The left side.
    pub(super) x: i64,
    pub(super) width: i64,
}

impl Item {
    pub(super) fn center(&self) -> i64 {
        self.x + self.width / 2
    }
}

#[derive(Debug, Default)]
pub(super) struct Layers {
    pub(super) rows: Vec<Vec<Item>>,
    /// Between a row and the next: the indexes in the two rows, and whether only catchers lead there.
    pub(super) links: Vec<Vec<Link>>,
    /// The transitions that are not drawn downwards: they lead back, or too far.
    pub(super) back: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Link {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) catch: bool,
    /// The transition where this is its first piece.
    pub(super) edge: Option<usize>,
}

/// Puts nodes of the given widths in layers, `gap` apart, and joints of width 1.
pub(super) fn arrange(widths: &[i64], edges: &[Edge], start: usize, gap: i64) -> Layers {
    if widths.is_empty() {
        return Layers::default();
    }
    let (depth, back) = depths(widths.len(), edges, start);
    let mut layers = rows(widths, edges, &depth, back);
    for sweep in 0..SWEEPS {
        order(&mut layers, sweep % 2 == 1);
    }
    place(&mut layers, gap);
    layers
}

/// The layer of every node, and the transitions that lead back.
fn depths(count: usize, edges: &[Edge], start: usize) -> (Vec<usize>, BTreeSet<usize>) {
    let mut out: Vec<Vec<usize>> = vec![Vec::new(); count];
    for (i, edge) in edges.iter().enumerate() {
        out[edge.from].push(i);
    }
    // Depth first without recursion: a node that is still open when it is met again is above.
    let (mut open, mut done) = (vec![false; count], vec![false; count]);
    let mut back = BTreeSet::new();
    let mut finished = Vec::with_capacity(count);
    for root in std::iter::once(start).chain(0..count) {
        if done[root] || open[root] {
            continue;
        }
        let mut stack = vec![(root, 0)];
        open[root] = true;
        while let Some((node, next)) = stack.pop() {
            let Some(edge) = out[node].get(next) else {
                open[node] = false;
                done[node] = true;
                finished.push(node);
                continue;
            };
            stack.push((node, next + 1));
            let to = edges[*edge].to;
            if open[to] {
                back.insert(*edge);
            } else if !done[to] {
                open[to] = true;
                stack.push((to, 0));
            }
        }
    }
    let mut depth = vec![0; count];
    for node in finished.into_iter().rev() {
        for edge in out[node].iter().filter(|edge| !back.contains(*edge)) {
            let to = edges[*edge].to;
            depth[to] = depth[to].max(depth[node] + 1);
        }
    }
    (depth, back)
}

fn rows(widths: &[i64], edges: &[Edge], depth: &[usize], back: BTreeSet<usize>) -> Layers {
    let height = depth.iter().max().map_or(0, |deepest| deepest + 1);
    let mut layers = Layers { rows: vec![Vec::new(); height], links: vec![Vec::new(); height], back: Vec::new() };
    let mut place = vec![0; widths.len()];
    for (node, width) in widths.iter().enumerate() {
        let row = &mut layers.rows[depth[node]];
        place[node] = row.len();
        row.push(Item { node: Some(node), x: 0, width: *width });
    }
    // Lines to one node share their joints.
    let mut joints: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for (i, edge) in edges.iter().enumerate() {
        let (from, to) = (depth[edge.from], depth[edge.to]);
        if back.contains(&i) || (to - from > 1 && joints.len() + to - from > MAX_JOINTS) {
            layers.back.push(i);
            continue;
        }
        let mut at = place[edge.from];
        for level in from..to {
            let next = if level + 1 == to {
                place[edge.to]
            } else {
                let row = &mut layers.rows[level + 1];
                *joints.entry((edge.to, level + 1)).or_insert_with(|| {
                    row.push(Item { node: None, x: 0, width: 1 });
                    row.len() - 1
                })
            };
            let links = &mut layers.links[level];
            let first = (level == from).then_some(i);
            match links.iter_mut().find(|link| link.from == at && link.to == next) {
                Some(link) => {
                    link.catch &= edge.catch;
                    link.edge = link.edge.or(first);
                }
                None => links.push(Link { from: at, to: next, catch: edge.catch, edge: first }),
            }
            at = next;
        }
    }
    layers
}

/// Sorts every row by the mean place of its neighbours above (or below).
fn order(layers: &mut Layers, upwards: bool) {
    let count = layers.rows.len();
    for step in 1..count {
        let (row, links) = if upwards { (count - 1 - step, count - 1 - step) } else { (step, step - 1) };
        let size = layers.rows[row].len();
        let (mut sum, mut neighbours) = (vec![0; size], vec![0_usize; size]);
        for link in &layers.links[links] {
            let (here, there) = if upwards { (link.from, link.to) } else { (link.to, link.from) };
            // Twice the place, so that rows of different lengths compare by their middles.
            sum[here] += 2 * there + 1;
            neighbours[here] += 1;
        }
        let mut permutation: Vec<usize> = (0..size).collect();
        permutation.sort_by(|a, b| {
            let key = |i: usize| if neighbours[i] == 0 { (2 * i + 1, 1) } else { (sum[i], neighbours[i]) };
            let ((left, by), (right, of)) = (key(*a), key(*b));
            (left * of).cmp(&(right * by))
        });
        let mut place = vec![0; size];
        for (new, old) in permutation.iter().enumerate() {
            place[*old] = new;
        }
        layers.rows[row] = permutation.iter().map(|old| layers.rows[row][*old].clone()).collect();
        for link in &mut layers.links[row] {
            link.from = place[link.from];
        }
        if row > 0 {
            for link in &mut layers.links[row - 1] {
                link.to = place[link.to];
            }
        }
    }
}

/// Left to right with a gap, each row as near as possible below its neighbours above.
fn place(layers: &mut Layers, gap: i64) {
    for row in 0..layers.rows.len() {
        let mut wanted = vec![Vec::new(); layers.rows[row].len()];
        if row > 0 {
            for link in &layers.links[row - 1] {
                wanted[link.to].push(layers.rows[row - 1][link.from].center());
            }
        }
        let mean = |all: &[i64]| all.iter().sum::<i64>() / i64::try_from(all.len()).unwrap_or(1).max(1);
        let mut free = i64::MIN / 4;
        let mut off = Vec::new();
        for (item, wanted) in layers.rows[row].iter_mut().zip(&wanted) {
            let at = if wanted.is_empty() { free.max(0) } else { mean(wanted) - item.width / 2 };
            item.x = at.max(free);
            off.push(at - item.x);
            free = item.x + item.width + gap;
        }
        let shift = mean(&off);
        for item in &mut layers.rows[row] {
            item.x += shift;
        }
    }
    let left = layers.rows.iter().flatten().map(|item| item.x).min().unwrap_or(0);
    for item in layers.rows.iter_mut().flatten() {
        item.x -= left;
    }
}
