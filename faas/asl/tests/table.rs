//! The table of the language: rows in `cases/*.yaml`, one kind of row per file, named after what they show.
//!
//! Every row has a `name`, what is evaluated, and one of `is` (the value), `nothing` (a path that finds nothing),
//! `error` (the error's name; `cause` is part of its text) and `invalid` (it cannot be read; the text is part of the message).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use skiff_asl::definition::{Definition, QueryLanguage, Retrier, State, StateKind};
use skiff_asl::path::{Path, Reference};
use skiff_asl::template::{Source, Template};
use skiff_asl::{ExecutionError, Scope, check, choice, convert, data, jsonata, retry};

type Row = serde_json::Map<String, Value>;

/// What came out, in the words of the rows.
#[derive(Debug, PartialEq)]
enum Outcome {
    Is(Value),
    Nothing,
    /// The name and the cause.
    Error(String, String),
    Invalid(String),
}

impl From<Result<Value, ExecutionError>> for Outcome {
    fn from(result: Result<Value, ExecutionError>) -> Self {
        match result {
            Ok(value) => Self::Is(value),
            Err(e) => {
                assert!(!e.cause.is_empty(), "an error without a cause: {}", e.error);
                Self::Error(e.error, e.cause)
            }
        }
    }
}

/// Runs every row of a file and says all that differ at once.
fn table(file: &str, run: impl Fn(&Row) -> Outcome) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/cases").join(file);
    let text = std::fs::read_to_string(&path).expect("the file of cases");
    let rows: Vec<Row> = serde_saphyr::from_str(&text).expect("a list of rows");
    let mut names = std::collections::BTreeSet::new();
    let mut wrong = Vec::new();
    for row in &rows {
        let name = row["name"].as_str().expect("a name");
        assert!(names.insert(name), "{file}: the name '{name}' occurs twice");
        let got = run(row);
        let fits = match &got {
            Outcome::Is(value) => row.get("is").is_some_and(|wanted| same(wanted, value)),
            Outcome::Nothing => row.contains_key("nothing"),
            Outcome::Error(error, cause) => {
                let part = row.get("cause").and_then(Value::as_str).unwrap_or_default();
                row.get("error").and_then(Value::as_str) == Some(error) && cause.contains(part)
            }
            Outcome::Invalid(why) => {
                row.get("invalid").and_then(Value::as_str).is_some_and(|wanted| why.contains(wanted))
            }
        };
        if !fits {
            wrong.push(format!("{name}: {got:?}"));
        }
    }
    assert!(wrong.is_empty(), "{file}: {} of {} rows:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    println!("{file}: {} rows", rows.len());
}

/// Equality in which `1` and `1.0` are one number.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

fn text<'a>(row: &'a Row, key: &str) -> &'a str {
    row.get(key).and_then(Value::as_str).unwrap_or_else(|| panic!("{}: no text '{key}'", row["name"]))
}

fn input(row: &Row) -> Value {
    row.get("input").cloned().unwrap_or_else(|| json!({}))
}

/// Context and variables of a row.
struct Around(Value, BTreeMap<String, Value>);

impl Around {
    fn of(row: &Row) -> Self {
        let variables = row.get("variables").and_then(Value::as_object).cloned().unwrap_or_default();
        Self(row.get("context").cloned().unwrap_or_else(|| json!({})), variables.into_iter().collect())
    }

    fn scope(&self) -> Scope<'_> {
        Scope::new(&self.0, &self.1)
    }
}

fn language(row: &Row) -> QueryLanguage {
    match row.get("language").and_then(Value::as_str) {
        Some("JSONata") => QueryLanguage::Jsonata,
        _ => QueryLanguage::JsonPath,
    }
}

#[test]
fn paths() {
    table("paths.yaml", |row| {
        let around = Around::of(row);
        match Path::parse(text(row, "path")) {
            Err(why) => Outcome::Invalid(why),
            Ok(path) => {
                path.get(&input(row), &around.scope()).map_or(Outcome::Nothing, |v| Outcome::Is(v.into_owned()))
            }
        }
    });
}

#[test]
fn references() {
    table("references.yaml", |row| match Reference::parse(text(row, "path")) {
        Err(why) => Outcome::Invalid(why),
        Ok(reference) => reference.set(input(row), row.get("value").cloned().unwrap_or(Value::Null)).into(),
    });
}

#[test]
fn intrinsics() {
    table("intrinsics.yaml", |row| {
        let around = Around::of(row);
        match Source::parse(text(row, "call")) {
            Err(why) => Outcome::Invalid(why),
            Ok(source) => source.eval("x.$", &input(row), &around.scope()).into(),
        }
    });
}

#[test]
fn templates() {
    table("templates.yaml", |row| {
        let around = Around::of(row);
        match Template::parse(&row["template"], language(row)) {
            Err(faults) => Outcome::Invalid(format!("{faults:?}")),
            Ok(template) => template.eval(&input(row), &around.scope()).into(),
        }
    });
}

#[test]
fn choices() {
    table("choices.yaml", |row| {
        let around = Around::of(row);
        let mut rule = row["rule"].clone();
        rule["Next"] = "Yes".into();
        let definition = Definition::parse(&json!({
            "StartAt": "C",
            "QueryLanguage": language(row).as_str(),
            "States": {
                "C": {"Type": "Choice", "Choices": [rule], "Default": "No"},
                "Yes": {"Type": "Succeed"},
                "No": {"Type": "Succeed"},
            },
        }));
        let definition = match definition {
            Err(faults) => return Outcome::Invalid(format!("{faults:?}")),
            Ok(definition) => definition,
        };
        let StateKind::Choice(state) = &definition.states["C"].kind else { panic!("no Choice") };
        match choice::decide(state, &input(row), &around.scope()) {
            Ok(decision) => Outcome::Is(Value::Bool(decision.expect("there is a default").next == "Yes")),
            Err(e) => Err::<Value, _>(e).into(),
        }
    });
}

/// A Task with the entries, parsed.
fn task(retry: &Value, catch: &Value) -> Result<State, String> {
    let definition = Definition::parse(&json!({
        "StartAt": "T",
        "States": {
            "T": {"Type": "Task", "Resource": "skiff:function:f", "Retry": retry, "Catch": catch, "End": true},
        },
    }));
    definition.map(|d| d.states["T"].clone()).map_err(|faults| format!("{faults:?}"))
}

#[test]
fn retries() {
    table("retries.yaml", |row| {
        let entries = row["retry"].as_array().expect("retriers").clone();
        let state = match task(&Value::Array(entries), &json!([])) {
            Ok(state) => state,
            Err(why) => return Outcome::Invalid(why),
        };
        if let Some(attempt) = row.get("attempt").and_then(Value::as_u64) {
            let random = row.get("random").and_then(Value::as_f64).unwrap_or(1.0);
            let retrier: &Retrier = &state.retry[0];
            return Outcome::Is(json!(retry::delay(retrier, attempt, random).as_secs_f64()));
        }
        retry::find(&state.retry, text(row, "of")).map_or(Outcome::Nothing, |i| Outcome::Is(json!(i)))
    });
}

/// All stages of one state in the order of an engine: what each gives, or the first error.
#[test]
fn stages() {
    table("stages.yaml", |row| {
        let around = Around::of(row);
        let mut state = row["state"].clone();
        state["End"] = true.into();
        let definition = Definition::parse(&json!({
            "StartAt": "S", "QueryLanguage": language(row).as_str(), "States": {"S": state},
        }));
        let definition = match definition {
            Ok(definition) => definition,
            Err(faults) => return Outcome::Invalid(format!("{faults:?}")),
        };
        let run = || {
            let state = &definition.states["S"];
            let raw = input(row);
            let scope = around.scope();
            let effective = data::input(state, &raw, &scope)?;
            let parameters = data::parameters(state, &effective, &scope)?;
            let result = match (&state.kind, row.get("result")) {
                (StateKind::Pass(pass), _) => pass.result.clone().unwrap_or_else(|| parameters.clone()),
                (_, Some(result)) => result.clone(),
                (_, None) => effective.clone(),
            };
            let with_result = scope.with_result(&result);
            let here = if state.is_jsonata() { &raw } else { &result };
            let variables = data::assign(state, here, &with_result)?;
            let selected = data::result_selector(state, &result, &with_result)?;
            let placed = data::result_path(&state.result_path, &raw, selected)?;
            let output = data::output(state, &raw, placed, &with_result)?;
            Ok(json!({"parameters": parameters, "variables": variables, "output": output}))
        };
        let got: Result<Value, ExecutionError> = run();
        // A row names the parts that it is about.
        match (got, row.get("is").and_then(Value::as_object)) {
            (Ok(Value::Object(mut parts)), Some(wanted)) => {
                parts.retain(|key, _| wanted.contains_key(key));
                Outcome::Is(Value::Object(parts))
            }
            (got, _) => got.into(),
        }
    });
}

#[test]
fn settings() {
    table("settings.yaml", |row| {
        let around = Around::of(row);
        let definition = Definition::parse(&json!({
            "StartAt": "S", "QueryLanguage": language(row).as_str(), "States": {"S": row["state"]},
        }));
        let definition = match definition {
            Ok(definition) => definition,
            Err(faults) => return Outcome::Invalid(format!("{faults:?}")),
        };
        let (raw, scope) = (input(row), around.scope());
        let got = match &definition.states["S"].kind {
            StateKind::Wait(wait) => data::pause(wait, &raw, &scope).map(|pause| match pause {
                data::Pause::Seconds(seconds) => json!(seconds),
                data::Pause::Until(moment) => json!(moment.to_string()),
            }),
            StateKind::Fail(fail) => data::failure(fail, &raw, &scope).map(|e| e.output()),
            StateKind::Task(task) => {
                let timeout = task.timeout.as_ref().expect("a timeout");
                data::whole("TimeoutSeconds", timeout, 1, 99_999_999, &raw, &scope).map(|n| json!(n))
            }
            StateKind::Map(map) => data::items(map, &raw, &scope).map(Value::Array),
            other => panic!("no settings in {other:?}"),
        };
        got.into()
    });
}

#[test]
fn expressions() {
    table("expressions.yaml", expression);
}

fn expression(row: &Row) -> Outcome {
    let around = Around::of(row);
    let expression = text(row, "expression");
    match jsonata::check(expression) {
        Err(why) => Outcome::Invalid(format!("{}: {}", why.code, why.message)),
        Ok(()) => jsonata::evaluate(expression, &around.scope().states(&input(row)), &around.1).into(),
    }
}

/// Every function and operator of JSONata; what they give was computed by the same version of the library in Node.js,
/// so that a difference is one of the interpreter.
#[test]
fn library() {
    table("library.yaml", expression);
}

/// The faults of definitions: `[CODE, path]` or `[CODE, path, part of the message]`, all of them, in any order.
#[test]
fn faults() {
    table("faults.yaml", |row| {
        let (definition, mut faults) = match (row.get("text"), row.get("states")) {
            (Some(text), _) => check::text(text.as_str().expect("a text")),
            (None, Some(states)) => {
                let start = row.get("start").cloned().unwrap_or_else(|| "A".into());
                let mut definition = json!({"StartAt": start, "States": states});
                if let Some(extra) = row.get("with").and_then(Value::as_object) {
                    for (key, value) in extra {
                        definition[key] = value.clone();
                    }
                }
                check::definition(&definition)
            }
            (None, None) => check::definition(&row["definition"]),
        };
        let refused = faults.iter().any(|f| f.severity == skiff_asl::Severity::Error);
        assert_eq!(definition.is_none(), refused, "{}: {faults:?}", row["name"]);
        let wanted = row["is"].as_array().expect("faults").clone();
        let mut missing = Vec::new();
        for want in wanted {
            let at = faults.iter().position(|f| {
                f.code == want[0]
                    && f.path == want[1].as_str().unwrap_or_default()
                    && want.get(2).and_then(Value::as_str).is_none_or(|part| f.message.contains(part))
            });
            match at {
                Some(i) => _ = faults.remove(i),
                None => missing.push(want),
            }
        }
        if missing.is_empty() && faults.is_empty() {
            return Outcome::Is(row["is"].clone());
        }
        let more: Vec<String> = faults.iter().map(ToString::to_string).collect();
        Outcome::Invalid(format!("missing {missing:?}, too much {more:#?}"))
    });
}

#[test]
fn conversions() {
    table("conversions.yaml", |row| match convert::convert(&row["from"]) {
        Err(why) => Outcome::Invalid(why.join("; ")),
        Ok(converted) => {
            for wanted in row.get("notes").and_then(Value::as_array).into_iter().flatten() {
                let wanted = wanted.as_str().expect("a text");
                assert!(
                    converted.notes.iter().any(|n| n.contains(wanted)),
                    "no note '{wanted}': {:?}",
                    converted.notes
                );
            }
            assert_eq!(row.get("gives_input"), converted.input.as_ref(), "{}", row["name"]);
            let definition = &converted.workflow["spec"]["definition"];
            assert_eq!(converted.workflow["kind"], "Workflow");
            assert_eq!(Definition::parse(definition).map(drop), Ok(()));
            Outcome::Is(definition.clone())
        }
    });
}
