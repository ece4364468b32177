//! Table columns of built-in kinds: what `kubectl get` prints.
//!
//! Names, order, priorities and cell formats are upstream's, because people and scripts read them.

mod apps;
mod cluster;
mod format;
mod network;
mod pod;
mod policy;

use jiff::Timestamp;
use serde_json::Value;

use crate::meta;

pub use format::{age, duration};

/// One column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Title.
    pub name: &'static str,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: &'static str,
    /// `name` for the name column, else empty.
    pub format: &'static str,
    /// 0 is always shown, higher only with `-o wide`.
    pub priority: i32,
}

const fn column(name: &'static str, kind: &'static str, format: &'static str, priority: i32) -> Column {
    Column { name, kind, format, priority }
}

/// The name column.
const NAME: Column = column("Name", "string", "name", 0);
const AGE: Column = s("Age");

const fn s(name: &'static str) -> Column {
    column(name, "string", "", 0)
}

const fn i(name: &'static str) -> Column {
    column(name, "integer", "", 0)
}

const fn b(name: &'static str) -> Column {
    column(name, "boolean", "", 0)
}

const fn w(name: &'static str) -> Column {
    column(name, "string", "", 1)
}

/// Makes the cells of one object.
type Cells = fn(&Value, Timestamp) -> Vec<Value>;
/// Columns with the cells that fill them.
type Row = (&'static [Column], Cells);

/// How the objects of one resource are printed.
#[derive(Clone, Copy)]
pub struct Table {
    /// Columns.
    pub columns: &'static [Column],
    /// Cells of one object, as many as there are columns.
    pub cells: Cells,
}

/// The table of a built-in resource; of others the name and the time of creation.
#[must_use]
pub fn of(group: &str, plural: &str) -> Table {
    const PLAIN: &[Column] = &[NAME, column("Created At", "date", "", 0)];
    let plain = Table { columns: PLAIN, cells: |o, _| vec![name(o), meta::text(o, "creationTimestamp").into()] };
    own(group, plural).unwrap_or(plain)
}

/// Whether a table of no objects has an empty list of rows; of kinds that upstream prints by their name and age alone, and
/// of definitions, it has none.
#[must_use]
pub fn has_own(group: &str, plural: &str) -> bool {
    own(group, plural).is_some() && (group, plural) != ("apiextensions.k8s.io", "customresourcedefinitions")
}

fn own(group: &str, plural: &str) -> Option<Table> {
    pod::table(group, plural)
        .or_else(|| apps::table(group, plural))
        .or_else(|| network::table(group, plural))
        .or_else(|| cluster::table(group, plural))
        .or_else(|| policy::table(group, plural))
}

/// `conditions` of a row: finished pods have one, so that clients can tell them apart.
#[must_use]
pub fn row_conditions(group: &str, plural: &str, obj: &Value) -> Vec<Value> {
    let phase = obj["status"]["phase"].as_str().unwrap_or_default();
    if !(group.is_empty() && plural == "pods" && matches!(phase, "Succeeded" | "Failed")) {
        return vec![];
    }
    let text = if phase == "Succeeded" { "The pod has completed successfully." } else { "The pod failed." };
    vec![serde_json::json!({"type": "Completed", "status": "True", "reason": phase, "message": text})]
}

fn name(o: &Value) -> Value {
    meta::name(o).into()
}

/// Age since creation.
fn created(o: &Value, now: Timestamp) -> Value {
    age(meta::text(o, "creationTimestamp"), now).into()
}

fn text(v: &Value) -> Value {
    v.as_str().unwrap_or_default().into()
}

fn number(v: &Value) -> Value {
    v.as_i64().unwrap_or(0).into()
}

fn or_unset(v: &Value) -> Value {
    v.as_str().filter(|s| !s.is_empty()).unwrap_or("<unset>").into()
}

fn count(v: &Value) -> Value {
    v.as_array().map_or(0, Vec::len).into()
}

fn list<'a>(v: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    v.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// `a,b,c + 2 more...`
fn shortened(items: &[String], max: usize) -> String {
    if items.len() > max {
        format!("{} + {} more...", items[..max].join(","), items.len() - max)
    } else {
        items.join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_a_cell_per_column() {
        let now = Timestamp::UNIX_EPOCH;
        for r in crate::resources::all() {
            let t = of(&r.group, &r.plural);
            let empty = serde_json::json!({"metadata": {"name": "a"}});
            // Upstream sends the age of an address without a column for it.
            let more = usize::from(r.plural == "ipaddresses");
            assert_eq!((t.cells)(&empty, now).len(), t.columns.len() + more, "{}", r.plural);
        }
    }
}
