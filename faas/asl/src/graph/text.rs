//! The picture for a terminal.

use super::layers::{Layers, arrange};
use super::sketch::{Node, Sketch, sketch};
use super::{Phase, Status, columns, columns_of, details, shorten};
use crate::definition::Definition;

/// Whether the text has escape sequences for colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Colors {
    /// Plain text: a sign before the name says how the state fared.
    #[default]
    Plain,
    /// ANSI colours.
    Ansi,
}

/// The longest line in a box.
const MAX_LINE: usize = 44;
/// The right half of a character of two columns.
const COVERED: char = '\0';
/// Columns between boxes.
const GAP: i64 = 3;

const UP: u8 = 1;
const DOWN: u8 = 2;
const LEFT: u8 = 4;
const RIGHT: u8 = 8;

/// A definition as boxes and arrows.
#[must_use]
pub fn text(definition: &Definition, status: &Status, colors: Colors) -> String {
    let drawn = machine(&sketch(&definition.machine), status);
    drawn.write(colors)
}

#[derive(Clone, Copy, Default)]
struct Cell {
    glyph: Option<char>,
    /// Lines that meet in the cell.
    lines: u8,
    color: Option<Phase>,
}

/// A rectangle of characters.
struct Canvas {
    width: usize,
    cells: Vec<Cell>,
}

impl Canvas {
    fn new(width: usize, height: usize) -> Self {
        Self { width, cells: vec![Cell::default(); width * height] }
    }

    fn height(&self) -> usize {
        self.cells.len() / self.width.max(1)
    }

    fn at(&mut self, x: usize, y: usize) -> Option<&mut Cell> {
        if x < self.width { self.cells.get_mut(y * self.width + x) } else { None }
    }

    fn line(&mut self, x: usize, y: usize, lines: u8, color: Option<Phase>) {
        if let Some(cell) = self.at(x, y) {
            cell.lines |= lines;
            cell.color = cell.color.or(color);
        }
    }

    fn put(&mut self, x: usize, y: usize, text: &str, color: Option<Phase>) {
        let mut x = x;
        for c in text.chars() {
            if let Some(cell) = self.at(x, y) {
                *cell = Cell { glyph: Some(if c.is_control() { ' ' } else { c }), lines: 0, color };
            }
            x += 1;
            if columns_of(c) == 2 {
                if let Some(cell) = self.at(x, y) {
                    *cell = Cell { glyph: Some(COVERED), lines: 0, color };
                }
                x += 1;
            }
        }
    }

    fn frame(&mut self, x: usize, y: usize, width: usize, height: usize, color: Option<Phase>) {
        let (right, bottom) = (x + width - 1, y + height - 1);
        for i in x..=right {
            let lines = if i > x { LEFT } else { 0 } | if i < right { RIGHT } else { 0 };
            self.line(i, y, lines, color);
            self.line(i, bottom, lines, color);
        }
        for i in y..=bottom {
            let lines = if i > y { UP } else { 0 } | if i < bottom { DOWN } else { 0 };
            self.line(x, i, lines, color);
            self.line(right, i, lines, color);
        }
    }

    fn paste(&mut self, x: usize, y: usize, other: &Self) {
        for row in 0..other.height() {
            for column in 0..other.width {
                let cell = other.cells[row * other.width + column];
                if (cell.glyph.is_some() || cell.lines != 0)
                    && let Some(place) = self.at(x + column, y + row)
                {
                    *place = cell;
                }
            }
        }
    }

    fn write(&self, colors: Colors) -> String {
        let mut out = String::new();
        for row in self.cells.chunks(self.width.max(1)) {
            let used = row.iter().rposition(|cell| cell.glyph.is_some() || cell.lines != 0).map_or(0, |last| last + 1);
            let mut current = None;
            for cell in &row[..used] {
                let glyph = cell.glyph.unwrap_or_else(|| line_glyph(cell.lines));
                if colors == Colors::Ansi && cell.color != current {
                    out.push_str(cell.color.map_or("\u{1b}[0m", ansi));
                    current = cell.color;
                }
                if glyph != COVERED {
                    out.push(glyph);
                }
            }
            if current.is_some() {
                out.push_str("\u{1b}[0m");
            }
            out.push('\n');
        }
        out
    }
}

fn line_glyph(lines: u8) -> char {
    match lines {
        0 => ' ',
        _ if lines & (LEFT | RIGHT) == 0 => '│',
        _ if lines & (UP | DOWN) == 0 => '─',
        l if l == DOWN | RIGHT => '┌',
        l if l == DOWN | LEFT => '┐',
        l if l == UP | RIGHT => '└',
        l if l == UP | LEFT => '┘',
        l if l == UP | DOWN | RIGHT => '├',
        l if l == UP | DOWN | LEFT => '┤',
        l if l == DOWN | LEFT | RIGHT => '┬',
        l if l == UP | LEFT | RIGHT => '┴',
        _ => '┼',
    }
}

fn ansi(phase: Phase) -> &'static str {
    match phase {
        Phase::Running => "\u{1b}[34m",
        Phase::Retrying | Phase::Caught => "\u{1b}[33m",
        Phase::Succeeded => "\u{1b}[32m",
        Phase::Failed => "\u{1b}[31m",
        Phase::Aborted => "\u{1b}[35m",
    }
}

fn sign(phase: Phase) -> char {
    match phase {
        Phase::Running => '▶',
        Phase::Retrying => '↻',
        Phase::Succeeded => '✔',
        Phase::Caught => '⚠',
        Phase::Failed => '✘',
        Phase::Aborted => '■',
    }
}

/// A machine: a dot for the start, then its layers.
fn machine(sketch: &Sketch<'_>, status: &Status) -> Canvas {
    let notes = |back: &[usize], node: usize| -> Vec<String> {
        let edges = sketch.edges.iter().enumerate().filter(|(_, edge)| edge.from == node);
        edges
            .filter(|(i, edge)| edge.label.is_some() || back.contains(i))
            .map(|(i, edge)| {
                let arrow = if back.contains(&i) { '↑' } else { '→' };
                let target = &sketch.nodes[edge.to].state.name;
                match &edge.label {
                    Some(label) => shorten(&format!("{label} {arrow} {target}"), MAX_LINE),
                    None => shorten(&format!("{arrow} {target}"), MAX_LINE),
                }
            })
            .collect()
    };
    // Which transitions lead back does not depend on the widths.
    let plain = arrange(&vec![1; sketch.nodes.len()], &sketch.edges, sketch.start, GAP);
    let boxes: Vec<Canvas> =
        sketch.nodes.iter().enumerate().map(|(i, node)| state(node, &notes(&plain.back, i), status)).collect();
    let widths: Vec<i64> = boxes.iter().map(|canvas| i64::try_from(canvas.width).unwrap_or(i64::MAX / 8)).collect();
    let layers = arrange(&widths, &sketch.edges, sketch.start, GAP);
    draw(&layers, &boxes)
}

fn column(x: i64) -> usize {
    usize::try_from(x).unwrap_or(0)
}

fn draw(layers: &Layers, boxes: &[Canvas]) -> Canvas {
    let width = layers.rows.iter().flatten().map(|item| column(item.x + item.width)).max().unwrap_or(1);
    let heights: Vec<usize> = layers
        .rows
        .iter()
        .map(|row| row.iter().filter_map(|item| Some(boxes[item.node?].height())).max().unwrap_or(1))
        .collect();
    // In a gap every node with a line to the side has a row of its own for it.
    let tracks: Vec<Vec<usize>> = layers
        .rows
        .iter()
        .zip(&layers.links)
        .map(|(row, links)| (0..row.len()).filter(|i| links.iter().any(|link| link.from == *i)).collect::<Vec<usize>>())
        .enumerate()
        .map(|(level, sources)| {
            let bent = |source: &usize| {
                layers.links[level]
                    .iter()
                    .filter(|link| link.from == *source)
                    .any(|link| layers.rows[level][*source].center() != layers.rows[level + 1][link.to].center())
            };
            sources.into_iter().filter(bent).collect()
        })
        .collect();
    let gap = |level: usize| if level + 1 == layers.rows.len() { 0 } else { tracks[level].len() + 2 };
    let total: usize = 2 + heights.iter().sum::<usize>() + (0..layers.rows.len()).map(gap).sum::<usize>();
    let mut canvas = Canvas::new(width, total);
    let mut y = 2;
    if let Some(first) = layers.rows.first().and_then(|row| row.first()) {
        canvas.put(column(first.center()), 0, "●", None);
        canvas.put(column(first.center()), 1, "▼", None);
    }
    for (level, row) in layers.rows.iter().enumerate() {
        let below = y + heights[level];
        for item in row {
            let center = column(item.center());
            let (from, lines) = match item.node {
                Some(node) => {
                    canvas.paste(column(item.x), y, &boxes[node]);
                    (y + boxes[node].height(), UP | DOWN)
                }
                None => (y, UP | DOWN),
            };
            let goes_on = item.node.is_none()
                || layers.links[level].iter().any(|link| row.get(link.from).is_some_and(|source| source == item));
            if goes_on {
                for at in from..below {
                    canvas.line(center, at, lines, None);
                }
            }
        }
        if gap(level) > 0 {
            lines(&mut canvas, layers, level, below, &tracks[level]);
        }
        y = below + gap(level);
    }
    canvas
}

/// The lines of one gap: down from a node, to the side on its track, down to the targets.
fn lines(canvas: &mut Canvas, layers: &Layers, level: usize, top: usize, tracks: &[usize]) {
    let bottom = top + tracks.len() + 1;
    for link in &layers.links[level] {
        let from = column(layers.rows[level][link.from].center());
        let target = &layers.rows[level + 1][link.to];
        let to = column(target.center());
        let turn = tracks.iter().position(|source| *source == link.from).map_or(bottom, |track| top + 1 + track);
        for y in top..turn {
            canvas.line(from, y, UP | DOWN, None);
        }
        if from == to {
            canvas.line(from, turn, UP | DOWN, None);
        } else {
            let (left, right) = (from.min(to), from.max(to));
            for x in left..=right {
                let side = if x > left { LEFT } else { 0 } | if x < right { RIGHT } else { 0 };
                let end = if x == from {
                    UP
                } else if x == to {
                    DOWN
                } else {
                    0
                };
                canvas.line(x, turn, side | end, None);
            }
        }
        for y in turn + 1..=bottom {
            canvas.line(to, y, UP | DOWN, None);
        }
    }
    for item in &layers.rows[level + 1] {
        if item.node.is_some() {
            canvas.put(column(item.center()), bottom, "▼", None);
        }
    }
}

/// A box: name, details, notes, and the machines inside side by side.
fn state(node: &Node<'_>, notes: &[String], status: &Status) -> Canvas {
    let own = status.get(&node.state.name);
    let phase = own.map(|status| status.phase);
    let mut name = shorten(&node.state.name, MAX_LINE);
    if let Some(phase) = phase {
        name = format!("{} {name}", sign(phase));
    }
    let mut second = details(node.state.type_name(), own);
    if node.ends {
        second.push_str(" ◉");
    }
    let mut content = vec![name, second];
    content.extend(notes.iter().cloned());
    let inner: Vec<Canvas> = node.inner.iter().map(|sketch| machine(sketch, status)).collect();
    let inner_width = inner.iter().map(|canvas| canvas.width).sum::<usize>() + 2 * inner.len().saturating_sub(1);
    let inner_height = inner.iter().map(Canvas::height).max().unwrap_or(0);
    let text_width = content.iter().map(|line| columns(line)).max().unwrap_or(0);
    let width = text_width.max(inner_width) + 4;
    let height = content.len() + inner_height + 2;
    let mut canvas = Canvas::new(width, height);
    canvas.frame(0, 0, width, height, phase);
    for (i, line) in content.iter().enumerate() {
        canvas.put(2, 1 + i, line, phase.filter(|_| i < 2));
    }
    let mut x = 2 + (width - 4 - inner_width) / 2;
    for part in &inner {
        canvas.paste(x, 1 + content.len(), part);
        x += part.width + 2;
    }
    canvas
}
