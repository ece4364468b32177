//! The picture as SVG: self-contained, readable on light and dark grounds, with a title per state for pointers.

use std::fmt::Write as _;

use super::layers::{Layers, arrange};
use super::sketch::{Node, Sketch, sketch};
use super::{Phase, Status, columns, details, shorten};
use crate::definition::Definition;

/// Sizes in pixels.
const GAP_X: i64 = 36;
const GAP_Y: i64 = 64;
const PAD: i64 = 14;
const LINE: i64 = 17;
const CHAR: i64 = 8;
const START: i64 = 34;
/// The longest line in a box, in characters.
const MAX_LINE: usize = 40;

/// A definition as an SVG document, its states coloured by the status of a run.
#[must_use]
pub fn svg(definition: &Definition, status: &Status) -> String {
    let picture = machine(&sketch(&definition.machine), status);
    let (width, height) = (picture.width + 2 * PAD, picture.height + 2 * PAD);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"13\">\n<defs><marker id=\"arrow\" viewBox=\"0 0 10 10\" \
         refX=\"9\" refY=\"5\" markerWidth=\"7\" markerHeight=\"7\" orient=\"auto-start-reverse\"><path d=\"M0 0L10 5L0 \
         10z\" fill=\"#5f6b7a\"/></marker></defs>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    _ = write!(out, "<g transform=\"translate({PAD} {PAD})\">\n{}</g>\n</svg>\n", picture.body);
    out
}

/// A piece of a picture with its size.
struct Piece {
    width: i64,
    height: i64,
    body: String,
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Not allowed in XML, even escaped.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

fn pixels(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX / 1024)
}

fn fill(phase: Option<Phase>) -> (&'static str, &'static str) {
    match phase {
        None => ("#f6f8fa", "#8b96a5"),
        Some(Phase::Running) => ("#dbeafe", "#2563eb"),
        Some(Phase::Retrying) => ("#fef3c7", "#d97706"),
        Some(Phase::Succeeded) => ("#dcfce7", "#16a34a"),
        Some(Phase::Caught) => ("#ffedd5", "#ea580c"),
        Some(Phase::Failed) => ("#fee2e2", "#dc2626"),
        Some(Phase::Aborted) => ("#ede9fe", "#7c3aed"),
    }
}

fn machine(sketch: &Sketch<'_>, status: &Status) -> Piece {
    let boxes: Vec<Piece> = sketch.nodes.iter().map(|node| state(node, status)).collect();
    let widths: Vec<i64> = boxes.iter().map(|piece| piece.width).collect();
    let layers = arrange(&widths, &sketch.edges, sketch.start, GAP_X);
    let heights: Vec<i64> = layers
        .rows
        .iter()
        .map(|row| row.iter().filter_map(|item| Some(boxes[item.node?].height)).max().unwrap_or(0))
        .collect();
    let mut tops = Vec::with_capacity(heights.len());
    let mut y = START;
    for height in &heights {
        tops.push(y);
        y += height + GAP_Y;
    }
    let height = if heights.is_empty() { 0 } else { y - GAP_Y };
    let width = layers.rows.iter().flatten().map(|item| item.x + item.width).max().unwrap_or(0);
    let mut body = String::new();
    if let Some(first) = layers.rows.first().and_then(|row| row.first()) {
        let x = first.center();
        _ = writeln!(body, "<circle cx=\"{x}\" cy=\"7\" r=\"6\" fill=\"#5f6b7a\"/>");
        _ = writeln!(body, "{}", line(&format!("M{x} 13V{}", START - 1), false, true));
    }
    down(&mut body, &layers, sketch, &boxes, &tops, &heights);
    let right = back(&mut body, &layers, sketch, &boxes, &tops, width);
    for (level, row) in layers.rows.iter().enumerate() {
        for item in row {
            if let Some(node) = item.node {
                let (x, y) = (item.x, tops[level]);
                _ = writeln!(body, "<g transform=\"translate({x} {y})\">\n{}</g>", boxes[node].body);
            }
        }
    }
    Piece { width: right.max(width), height, body }
}

fn line(path: &str, dashed: bool, arrow: bool) -> String {
    let dash = if dashed { " stroke-dasharray=\"5 4\"" } else { "" };
    let head = if arrow { " marker-end=\"url(#arrow)\"" } else { "" };
    format!("<path d=\"{path}\" fill=\"none\" stroke=\"#5f6b7a\" stroke-width=\"1.4\"{dash}{head}/>")
}

fn down(body: &mut String, layers: &Layers, sketch: &Sketch<'_>, boxes: &[Piece], tops: &[i64], heights: &[i64]) {
    for (level, links) in layers.links.iter().enumerate() {
        for (i, link) in links.iter().enumerate() {
            let (source, target) = (&layers.rows[level][link.from], &layers.rows[level + 1][link.to]);
            let (x1, x2) = (source.center(), target.center());
            let y1 = tops[level] + source.node.map_or(heights[level], |node| boxes[node].height);
            let y2 = tops[level + 1];
            let start =
                if source.node.is_none() { format!("M{x1} {}V{y1}", tops[level]) } else { format!("M{x1} {y1}") };
            let middle = y1 + (y2 - y1) / 2;
            let path = format!("{start}C{x1} {middle} {x2} {middle} {x2} {}", y2 - i64::from(target.node.is_some()));
            _ = writeln!(body, "{}", line(&path, link.catch, target.node.is_some()));
            let label = link.edge.and_then(|edge| sketch.edges[edge].label.as_deref());
            if let Some(label) = label {
                // Labels of neighbours stand on different heights.
                let y = y2 - 12 - 13 * i64::from(i % 3 == 1) - 26 * i64::from(i % 3 == 2);
                _ = writeln!(
                    body,
                    "<text x=\"{}\" y=\"{y}\" text-anchor=\"middle\" font-size=\"11\" fill=\"#374151\" stroke=\"#ffffff\" \
                     stroke-width=\"3\" paint-order=\"stroke\">{}</text>",
                    x1 + (x2 - x1) * 2 / 3,
                    escape(label)
                );
            }
        }
    }
}

/// Transitions that lead back, on the right of everything; the new width.
fn back(body: &mut String, layers: &Layers, sketch: &Sketch<'_>, boxes: &[Piece], tops: &[i64], width: i64) -> i64 {
    let place = |node: usize| {
        layers.rows.iter().zip(tops).find_map(|(row, top)| {
            let item = row.iter().find(|item| item.node == Some(node))?;
            Some((item.x + item.width, top + boxes[node].height / 2))
        })
    };
    let mut right = width;
    for edge in layers.back.iter().map(|i| &sketch.edges[*i]) {
        let (Some((x1, y1)), Some((x2, y2))) = (place(edge.from), place(edge.to)) else { continue };
        right += 18;
        // A state that leads to itself leaves and enters at two heights.
        let (y1, y2) = if edge.from == edge.to { (y1 + 8, y2 - 8) } else { (y1, y2) };
        let path = format!(
            "M{x1} {y1}H{}Q{right} {y1} {right} {}V{}Q{right} {y2} {} {y2}H{x2}",
            right - 8,
            y1 - 8,
            y2 + 8,
            right - 8
        );
        _ = writeln!(body, "{}", line(&path, true, true));
    }
    right
}

fn state(node: &Node<'_>, status: &Status) -> Piece {
    let own = status.get(&node.state.name);
    let phase = own.map(|status| status.phase);
    let name = shorten(&node.state.name, MAX_LINE);
    let second = details(node.state.type_name(), own);
    let inner: Vec<Piece> = node.inner.iter().map(|sketch| machine(sketch, status)).collect();
    let inner_width = inner.iter().map(|piece| piece.width + 2 * PAD).sum::<i64>();
    let inner_height = inner.iter().map(|piece| piece.height + 2 * PAD).max().unwrap_or(0);
    let text = CHAR * pixels(columns(&name).max(columns(&second))) + 2 * PAD;
    let width = text.max(inner_width + PAD).max(96);
    let header = 2 * LINE + PAD;
    let height = header + if inner.is_empty() { 0 } else { inner_height + PAD };
    let (ground, border) = fill(phase);
    let mut body = String::new();
    let word = phase.map_or("not reached", Phase::as_str);
    _ = writeln!(body, "<title>{} ({}, {word})</title>", escape(&node.state.name), node.state.type_name());
    _ = writeln!(
        body,
        "<rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"{ground}\" stroke=\"{border}\" stroke-width=\"1.6\"/>"
    );
    if node.ends {
        _ = writeln!(
            body,
            "<rect x=\"3\" y=\"3\" width=\"{}\" height=\"{}\" rx=\"6\" fill=\"none\" stroke=\"{border}\"/>",
            width - 6,
            height - 6
        );
    }
    let center = width / 2;
    _ = writeln!(
        body,
        "<text x=\"{center}\" y=\"21\" text-anchor=\"middle\" font-weight=\"bold\" fill=\"#111827\">{}</text>",
        escape(&name)
    );
    _ = writeln!(
        body,
        "<text x=\"{center}\" y=\"38\" text-anchor=\"middle\" font-size=\"11\" fill=\"#374151\">{}</text>",
        escape(&second)
    );
    let mut x = (width - inner_width) / 2;
    for piece in &inner {
        let (w, h) = (piece.width + 2 * PAD - 8, inner_height);
        _ = writeln!(
            body,
            "<rect x=\"{}\" y=\"{header}\" width=\"{w}\" height=\"{h}\" rx=\"6\" fill=\"#ffffff\" stroke=\"#c3cad3\" \
             stroke-dasharray=\"3 3\"/>",
            x + 4
        );
        _ = writeln!(body, "<g transform=\"translate({} {})\">\n{}</g>", x + PAD, header + PAD, piece.body);
        x += piece.width + 2 * PAD;
    }
    Piece { width, height, body }
}
