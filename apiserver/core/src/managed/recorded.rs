//! Ownership as upstream recorded it: every write of the recorded scenarios is computed again from the object before it.
//!
//! Runs only where `SKIFF_VECTORS` names the folder of the recordings. What is compared is `managedFields` (without
//! times) and the text of refused applies; values that only a running server knows are the recording's.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::*;
use crate::schema::kind;

/// Writes where the fields owned cannot follow from the two stored objects: the strategy changed the object after
/// ownership was taken down (allocated addresses, status), or the schema is a custom one.
const FLOOR: f64 = 0.95;

struct Target<'a> {
    object: String,
    api_version: String,
    subresource: &'a str,
    collection: bool,
}

fn target<'a>(path: &'a str) -> Option<Target<'a>> {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (api_version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] => ((*version).to_owned(), rest),
        ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        ["namespaces", ns, rest @ ..] if !rest.is_empty() && !matches!(rest, ["status" | "finalize"]) => (*ns, rest),
        rest => ("", rest),
    };
    let (resource, name, subresource) = match rest {
        [resource] => (*resource, "", ""),
        [resource, name] => (*resource, *name, ""),
        [resource, name, subresource] => (*resource, *name, *subresource),
        _ => return None,
    };
    let group = api_version.split_once('/').map_or("", |(g, _)| g);
    let object = format!("{group}/{resource}/{namespace}/{name}");
    Some(Target { object, api_version, subresource, collection: name.is_empty() })
}

fn owners(object: &Value) -> Vec<String> {
    let list = managed_fields(object).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut out: Vec<String> = list
        .iter()
        .map(|e| {
            let text = |k: &str| e.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
            format!(
                "{} {} {} {} {}",
                text("manager"),
                text("operation"),
                text("apiVersion"),
                text("subresource"),
                e["fieldsV1"]
            )
        })
        .collect();
    out.sort_unstable();
    out
}

/// The owners of `got`, less what only the server filled in: fields that the recording does not own and the request does
/// not mention.
fn without_filled(got: &Value, recorded: &Value, request: &Value) -> Vec<String> {
    let entries = |o: &Value| managed_fields(o).and_then(Value::as_array).cloned().unwrap_or_default();
    let recorded = entries(recorded);
    let mut got = got.clone();
    let mut list = entries(&got);
    for entry in &mut list {
        let same =
            |r: &&Value| ["manager", "operation", "apiVersion", "subresource"].iter().all(|k| r.get(k) == entry.get(k));
        let Some(twin) = recorded.iter().find(same) else { continue };
        let own = Set::decode(&entry["fieldsV1"]).unwrap();
        let mut filled = Set::default();
        own.difference(&Set::decode(&twin["fieldsV1"]).unwrap()).each(&mut |path| {
            if !mentions(request, path) {
                filled.insert(path);
            }
        });
        entry["fieldsV1"] = own.difference(&filled).encode();
    }
    set_managed_fields(&mut got, Some(Value::Array(list)));
    owners(&got)
}

fn mentions(value: &Value, path: &[Step]) -> bool {
    match path {
        [] => true,
        [Step::Field(name), rest @ ..] => value.get(&**name).is_some_and(|v| mentions(v, rest)),
        [Step::Key(keys), rest @ ..] => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap();
            let fits = |item: &&Value| keys.iter().all(|(k, v)| item.get(k).is_none_or(|i| i == v));
            value.as_array().is_some_and(|list| list.iter().filter(fits).any(|item| mentions(item, rest)))
        }
        [Step::Value(v), ..] => value
            .as_array()
            .is_some_and(|list| list.iter().any(|i| serde_json::from_str::<Value>(v).is_ok_and(|v| v == *i))),
        [Step::Index(_), ..] => true,
    }
}

#[derive(Default)]
struct Tally {
    right: usize,
    wrong: Vec<String>,
}

fn play(file: &Path, tally: &mut Tally) {
    let scenario: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let mut objects: BTreeMap<String, Value> = BTreeMap::new();
    for (n, step) in scenario["steps"].as_array().unwrap().iter().enumerate() {
        let (request, expect) = (&step["request"], &step["expect"]);
        let method = request["method"].as_str().unwrap();
        let (path, query) =
            request["path"].as_str().unwrap().split_once('?').unwrap_or((request["path"].as_str().unwrap(), ""));
        let Some(mut target) = target(path) else { continue };
        let parameter = |name: &str| query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('='));
        let body = &expect["body"];
        let code = expect["status"].as_u64().unwrap_or(200);
        if method == "POST" && target.collection {
            let Some(name) = body["metadata"]["name"].as_str() else { continue };
            target.object.push_str(name);
        } else if target.collection || method == "POST" {
            continue;
        }
        let live = objects.get(&target.object).cloned();
        let typed = |body: &Value| {
            let (group, version) = target.api_version.split_once('/').unwrap_or(("", &target.api_version));
            kind(group, version, body["kind"].as_str()?)
        };
        let agent = request["headers"]["User-Agent"].as_str().map(|a| a.split('/').next().unwrap_or_default());
        let writer = Writer {
            manager: parameter("fieldManager").filter(|m| !m.is_empty()).or(agent).unwrap_or("vectors"),
            api_version: &target.api_version,
            subresource: target.subresource,
            now: "<time>",
        };
        let reset =
            if target.subresource == "status" { Set::of_fields(&[&["spec"]]) } else { Set::of_fields(&[&["status"]]) };
        let known = |v: &str| v == target.api_version;
        let applies =
            request["headers"]["Content-Type"].as_str().is_some_and(|t| t.starts_with("application/apply-patch"));
        let label = || format!("{}#{n}", file.file_stem().unwrap().to_string_lossy());
        if matches!(method, "PUT" | "PATCH" | "POST")
            && !matches!(target.subresource, "scale" | "eviction" | "binding" | "token")
        {
            let unrecorded = request["ignore"].as_array().is_some_and(|paths| {
                paths.iter().filter_map(Value::as_str).any(|p| p.starts_with("metadata.managedFields") || p == "spec")
            });
            let mut check = |got: Vec<String>, want: Vec<String>| {
                if unrecorded {
                } else if got == want {
                    tally.right += 1;
                } else {
                    let diff =
                        |a: &[String], b: &[String]| a.iter().filter(|x| !b.contains(x)).cloned().collect::<Vec<_>>();
                    tally.wrong.push(format!(
                        "{}: got {:#?} want {:#?}",
                        label(),
                        diff(&got, &want),
                        diff(&want, &got)
                    ));
                }
            };
            let config = match &request["body"] {
                Value::String(text) => {
                    crate::codec::parse_yaml(text.as_bytes()).map(|p| p.value).unwrap_or(Value::Null)
                }
                other => other.clone(),
            };
            if applies && config.is_object() && (code < 300 || code == 409 || code == 500) {
                if let Some(shape) = typed(if code < 300 { body } else { &config }) {
                    let kind = Kind { shape, reset: &reset, known: &known };
                    match apply(
                        &kind,
                        live.as_ref(),
                        &config,
                        &writer,
                        matches!(parameter("force"), Some("true" | "1" | "t" | "T")),
                    ) {
                        Ok(object) if code < 300 => check(owners(&object), owners(body)),
                        Ok(_) => check(vec!["no error".into()], vec![body["message"].to_string()]),
                        Err(error) => {
                            let first = |text: &str| text.lines().next().unwrap_or_default().to_owned();
                            check(
                                vec![first(&error.to_string())],
                                vec![first(body["message"].as_str().unwrap_or("ok"))],
                            );
                        }
                    }
                }
            } else if code < 300
                && let Some(shape) = typed(body)
                && body["metadata"].is_object()
                && (method == "POST" || live.is_some())
            {
                let kind = Kind { shape, reset: &reset, known: &known };
                let mut new = body.clone();
                let replaced = config.as_array().and_then(|ops| {
                    let set = ops.iter().find(|op| op["path"] == "/metadata/managedFields" && op["op"] == "replace")?;
                    set.get("value").cloned()
                });
                let given = config.pointer("/metadata/managedFields").cloned().or(replaced);
                set_managed_fields(&mut new, given);
                update(&kind, live.as_ref(), &mut new, &writer);
                check(without_filled(&new, body, &config), owners(body));
            }
        }
        if code < 300 && parameter("dryRun").is_none() {
            if method == "DELETE" {
                objects.remove(&target.object);
            } else if body["metadata"]["uid"].is_string() && matches!(target.subresource, "" | "status") {
                objects.insert(target.object, body.clone());
            }
        }
    }
}

#[test]
fn ownership_is_as_recorded() {
    let Ok(root) = std::env::var("SKIFF_VECTORS") else {
        return eprintln!("SKIPPED: SKIFF_VECTORS names no recordings");
    };
    let (mut right, mut all) = (0, 0);
    let mut areas: Vec<_> =
        std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()).collect();
    areas.sort();
    for area in areas {
        let mut tally = Tally::default();
        let mut files: Vec<_> = std::fs::read_dir(&area).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files.iter().filter(|f| f.extension().is_some_and(|e| e == "json")).for_each(|f| play(f, &mut tally));
        let name = area.file_name().unwrap().to_string_lossy().into_owned();
        eprintln!("{name}: {} right, {} wrong", tally.right, tally.wrong.len());
        for wrong in &tally.wrong {
            eprintln!("  {name}/{wrong}");
        }
        right += tally.right;
        all += tally.right + tally.wrong.len();
    }
    eprintln!("{right} of {all} writes as recorded");
    assert!(all > 0 && right as f64 >= FLOOR * all as f64, "{right} of {all}");
}
