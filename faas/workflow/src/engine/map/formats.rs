//! What is in the files that items are read from.

use serde_json::{Map, Value, json};
use skiff_asl::definition::ReaderConfig;

/// The items of a file.
///
/// # Errors
/// What is wrong with it, for people.
pub(super) fn items(config: &ReaderConfig, text: &str) -> Result<Vec<Value>, String> {
    match config.input_type.as_deref().unwrap_or("JSON") {
        "JSON" => {
            let whole: Value = serde_json::from_str(text).map_err(|e| format!("the file is no JSON: {e}"))?;
            let pointer = config.items_pointer.as_deref().unwrap_or("");
            let found = whole.pointer(pointer).ok_or_else(|| format!("there is nothing at {pointer}"))?;
            of(found.clone())
        }
        "JSONL" => {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            lines
                .map(|(n, line)| serde_json::from_str(line).map_err(|e| format!("line {} is no JSON: {e}", n + 1)))
                .collect()
        }
        "CSV" => csv(config, text),
        other => Err(format!("files of type {other} are not read")),
    }
}

/// An array's elements; members of an object as pairs.
fn of(value: Value) -> Result<Vec<Value>, String> {
    match value {
        Value::Array(items) => Ok(items),
        Value::Object(fields) => {
            Ok(fields.into_iter().map(|(key, value)| json!({"Key": key, "Value": value})).collect())
        }
        _ => Err("the items must be an array or an object".to_owned()),
    }
}

fn csv(config: &ReaderConfig, text: &str) -> Result<Vec<Value>, String> {
    let delimiter = match config.csv_delimiter.as_deref().unwrap_or("COMMA") {
        "PIPE" => '|',
        "SEMICOLON" => ';',
        "SPACE" => ' ',
        "TAB" => '\t',
        _ => ',',
    };
    let mut rows = rows(text, delimiter)?.into_iter();
    let names = match config.csv_header_location.as_deref() {
        Some("GIVEN") => config.csv_headers.clone(),
        _ => rows.next().unwrap_or_default(),
    };
    Ok(rows.map(|row| named(&names, row)).collect())
}

/// A row as an object. What is missing is empty, what is too much has no name and is dropped.
pub(super) fn named(names: &[String], row: Vec<String>) -> Value {
    let mut row = row.into_iter();
    let fields = names.iter().map(|name| (name.clone(), Value::String(row.next().unwrap_or_default())));
    Value::Object(fields.collect::<Map<_, _>>())
}

/// The rows of delimited text (RFC 4180): quotes around what has delimiters, quotes or line ends in it.
///
/// # Errors
/// A quote that is not closed.
pub(super) fn rows(text: &str, delimiter: char) -> Result<Vec<Vec<String>>, String> {
    let (mut rows, mut row, mut field) = (vec![], vec![], String::new());
    let (mut quoted, mut any) = (false, false);
    let mut rest = text.trim_start_matches('\u{feff}').chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '"' if quoted && rest.peek() == Some(&'"') => {
                rest.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => (quoted, any) = (true, true),
            c if quoted => field.push(c),
            '\r' if rest.peek() == Some(&'\n') => {}
            '\n' => {
                if any || !field.is_empty() || !row.is_empty() {
                    row.push(std::mem::take(&mut field));
                    rows.push(std::mem::take(&mut row));
                }
                any = false;
            }
            c if c == delimiter => {
                row.push(std::mem::take(&mut field));
                any = true;
            }
            c => field.push(c),
        }
    }
    if quoted {
        return Err(format!("row {}: a quote is not closed", rows.len() + 1));
    }
    if any || !field.is_empty() || !row.is_empty() {
        row.push(field);
        rows.push(row);
    }
    Ok(rows)
}

/// The files that a manifest names, and the columns of their rows: an inventory (`fileSchema`, `files` with `key`).
///
/// # Errors
/// When it is none.
pub(super) fn manifest(text: &str) -> Result<(Vec<String>, Vec<String>), String> {
    let whole: Value = serde_json::from_str(text).map_err(|e| format!("the manifest is no JSON: {e}"))?;
    let format = whole["fileFormat"].as_str().unwrap_or("CSV");
    if format != "CSV" {
        return Err(format!("files of format {format} are not read: there is CSV"));
    }
    let columns = whole["fileSchema"].as_str().ok_or("the manifest has no fileSchema")?;
    let columns = columns.split(',').map(|c| c.trim().to_owned()).collect();
    let files = whole["files"].as_array().ok_or("the manifest has no files")?;
    let keys = files.iter().map(|f| f["key"].as_str().map(str::to_owned).ok_or("a file of the manifest has no key"));
    Ok((columns, keys.collect::<Result<_, _>>()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(kind: &str) -> ReaderConfig {
        ReaderConfig { input_type: Some(kind.into()), ..ReaderConfig::default() }
    }

    #[test]
    fn files_have_items() {
        let pointed = ReaderConfig { items_pointer: Some("/a/b".into()), ..config("JSON") };
        let given = ReaderConfig {
            csv_header_location: Some("GIVEN".into()),
            csv_headers: vec!["x".into(), "y".into()],
            csv_delimiter: Some("SEMICOLON".into()),
            ..config("CSV")
        };
        for (config, text, want) in [
            (config("JSON"), "[1,2]", json!([1, 2])),
            (config("JSON"), r#"{"k":1}"#, json!([{"Key": "k", "Value": 1}])),
            (pointed, r#"{"a":{"b":[3]}}"#, json!([3])),
            (config("JSONL"), "{\"a\":1}\n\n2\n", json!([{"a": 1}, 2])),
            (
                config("CSV"),
                "a,b\r\n1,\"x,\"\"y\"\"\nz\"\r\n\r\n2\n",
                json!([{"a": "1", "b": "x,\"y\"\nz"}, {"a": "2", "b": ""}]),
            ),
            (given, "1;2;3\n;\n", json!([{"x": "1", "y": "2"}, {"x": "", "y": ""}])),
        ] {
            assert_eq!(items(&config, text).map(Value::Array), Ok(want), "{text}");
        }
        for (config, text) in [
            (config("JSON"), "1"),
            (config("JSON"), "["),
            (config("JSONL"), "1\nx"),
            (config("CSV"), "a\n\"b"),
            (config("PARQUET"), ""),
        ] {
            assert!(items(&config, text).is_err(), "{text}");
        }
    }

    #[test]
    fn manifests_name_files_and_columns() {
        let text = r#"{"fileFormat":"CSV","fileSchema":"Bucket, Key","files":[{"key":"a.csv"},{"key":"b.csv"}]}"#;
        let (columns, keys) = manifest(text).unwrap();
        assert_eq!((columns, keys), (vec!["Bucket".into(), "Key".into()], vec!["a.csv".into(), "b.csv".into()]));
        assert!(manifest("{}").is_err());
    }

    proptest! {
        #[test]
        fn rows_come_back(all in proptest::collection::vec(proptest::collection::vec("[a\",\n\r ]{0,4}", 1..4), 0..4)) {
            let quoted = |f: &String| format!("\"{}\"", f.replace('"', "\"\""));
            let text: String = all.iter().map(|r| r.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n").collect();
            prop_assert_eq!(rows(&text, ',').unwrap(), all);
        }
    }
}
