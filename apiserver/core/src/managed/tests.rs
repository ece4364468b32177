#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::schema::kind;

const NOW: &str = "2026-01-02T03:04:05Z";

fn status() -> Set {
    Set::of_fields(&[&["status"]])
}

struct Object {
    shape: &'static Struct,
    live: Option<Value>,
}

impl Object {
    fn new(group: &str, version: &str, name: &str) -> Self {
        Self { shape: kind(group, version, name).unwrap(), live: None }
    }

    fn apply(&mut self, manager: &str, config: &Value, force: bool) -> Result<(), String> {
        let (reset, writer) = (status(), Writer { manager, api_version: "v1", subresource: "", now: NOW });
        let kind = Kind { shape: self.shape, reset: &reset, known: &|v| v == "v1" };
        let mut new = apply(&kind, self.live.as_ref(), config, &writer, force).map_err(|e| e.to_string())?;
        normalize(&mut new, self.shape, &mut Faults::default()).unwrap();
        self.live = Some(new);
        Ok(())
    }

    fn write(&mut self, manager: &str, now: &str, object: Value) {
        let (reset, writer) = (status(), Writer { manager, api_version: "v1", subresource: "", now });
        let kind = Kind { shape: self.shape, reset: &reset, known: &|v| v == "v1" };
        let mut new = object;
        normalize(&mut new, self.shape, &mut Faults::default()).unwrap();
        update(&kind, self.live.as_ref(), &mut new, &writer);
        self.live = Some(new);
    }

    fn owners(&self) -> BTreeMap<String, Value> {
        let list = managed_fields(self.live.as_ref().unwrap()).and_then(Value::as_array).cloned().unwrap_or_default();
        list.iter()
            .map(|e| {
                (
                    format!("{} {}", e["manager"].as_str().unwrap(), e["operation"].as_str().unwrap()),
                    e["fieldsV1"].clone(),
                )
            })
            .collect()
    }

    fn data(&self) -> &Value {
        &self.live.as_ref().unwrap()["data"]
    }
}

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": data})
}

#[test]
fn the_life_of_a_field() {
    let mut o = Object::new("", "v1", "ConfigMap");
    o.apply("one", &map(json!({"k": "v", "l": "v"})), false).unwrap();
    assert_eq!(o.owners(), BTreeMap::from([("one Apply".into(), json!({"f:data": {"f:k": {}, "f:l": {}}}))]));

    // The same value is shared, another is a conflict.
    o.apply("two", &map(json!({"k": "v"})), false).unwrap();
    let conflict = o.apply("two", &map(json!({"k": "w"})), false).unwrap_err();
    assert_eq!(conflict, "Apply failed with 1 conflict: conflict with \"one\": .data.k");
    let conflict = o.apply("two", &map(json!({"k": "w", "l": "w"})), false).unwrap_err();
    assert_eq!(conflict, "Apply failed with 2 conflicts: conflicts with \"one\":\n- .data.k\n- .data.l");

    // Dropped by one of two owners, it stays; dropped by the last, it goes.
    o.apply("one", &map(json!({"l": "v"})), false).unwrap();
    assert_eq!(o.data(), &json!({"k": "v", "l": "v"}));
    o.apply("two", &map(json!({})), false).unwrap();
    assert_eq!(o.data(), &json!({"l": "v"}));

    // Force takes, and an update takes without asking.
    o.apply("two", &map(json!({"l": "w"})), true).unwrap();
    assert_eq!(o.owners()["two Apply"], json!({"f:data": {"f:l": {}}}));
    assert!(!o.owners().contains_key("one Apply"));
    o.write("me", NOW, map(json!({"l": "x", "m": "x"})));
    assert_eq!(o.owners(), BTreeMap::from([("me Update".into(), json!({"f:data": {"f:l": {}, "f:m": {}}}))]));
    let conflict = o.apply("two", &map(json!({"l": "w"})), false).unwrap_err();
    assert_eq!(conflict, "Apply failed with 1 conflict: conflict with \"me\" using v1: .data.l");
}

#[test]
fn lists_merge_by_key_and_keep_what_others_added() {
    let pod = |containers: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": containers}});
    let mut o = Object::new("", "v1", "Pod");
    o.apply(
        "one",
        &pod(json!([{"name": "a", "image": "i", "ports": [{"containerPort": 80}]}, {"name": "b", "image": "i"}])),
        false,
    )
    .unwrap();
    let ports = &o.owners()["one Apply"]["f:spec"]["f:containers"]["k:{\"name\":\"a\"}"]["f:ports"];
    assert_eq!(ports, &json!({"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}));
    o.apply("two", &pod(json!([{"name": "s", "image": "side"}, {"name": "b", "workingDir": "/w"}])), false).unwrap();
    o.apply("one", &pod(json!([{"name": "b", "image": "i"}])), false).unwrap();
    let names: Vec<&str> = o.live.as_ref().unwrap()["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["s", "b"], "a was one's alone");

    let cases = [
        (json!([{"name": "a"}, {"name": "a"}]), ".spec.containers: duplicate entries for key [name=\"a\"]"),
        (json!([{"name": "a", "bar": 1}]), ".spec.containers[name=\"a\"].bar: field not declared in schema"),
    ];
    for (containers, want) in cases {
        let error = o.apply("x", &pod(containers), false).unwrap_err();
        assert_eq!(error, format!("failed to create typed patch object (/a; /v1, Kind=Pod): {want}"));
    }
}

#[test]
fn old_updates_are_folded_and_reset_means_reset() {
    let mut o = Object::new("", "v1", "ConfigMap");
    for n in 0..15 {
        let mut data: serde_json::Map<String, Value> = (0..=n).map(|k| (format!("k{k}"), json!("v"))).collect();
        data.insert("k".into(), json!("v"));
        o.write(&format!("m{n:02}"), &format!("2026-01-02T03:04:{n:02}Z"), map(Value::Object(data)));
    }
    let owners = o.owners();
    assert_eq!(owners.len(), 10);
    assert!(owners.contains_key("ancient-changes Update") && owners.contains_key("m14 Update"));
    assert_eq!(owners["ancient-changes Update"]["f:data"].as_object().unwrap().len(), 8, "{owners:?}");

    let mut object = map(json!({"k": "v"}));
    object["metadata"]["managedFields"] = json!([{}]);
    o.write("me", NOW, object);
    assert!(o.owners().is_empty());
    o.write("me", NOW, map(json!({"k": "w"})));
    assert!(o.owners().is_empty(), "nobody owns until somebody applies");
    let conflict = o.apply("one", &map(json!({"k": "v"})), false).unwrap_err();
    assert_eq!(conflict, "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.k");
}

/// Times change only with the owners.
#[test]
fn a_write_without_effect_changes_no_time() {
    let mut o = Object::new("", "v1", "ConfigMap");
    o.write("me", "2026-01-01T00:00:00Z", map(json!({"k": "v"})));
    let before = o.live.clone();
    o.write("me", NOW, map(json!({"k": "v"})));
    assert_eq!(o.live, before);
    o.apply("one", &map(json!({"k": "v"})), false).unwrap();
    let before = o.live.clone();
    o.apply("one", &map(json!({"k": "v"})), false).unwrap();
    assert_eq!(o.live, before);
}

fn set() -> impl Strategy<Value = Set> {
    let step = prop_oneof![
        "[a-c]".prop_map(|n| Step::field(&n)),
        "[a-b]".prop_map(|n| Step::Key(json!({"name": n}).to_string().into())),
        (0..2u64).prop_map(Step::Index),
        "[a-b]".prop_map(|n| Step::Value(json!(n).to_string().into())),
    ];
    prop::collection::vec(prop::collection::vec(step, 1..4), 0..8).prop_map(|paths| {
        let mut set = Set::default();
        paths.iter().for_each(|path| set.insert(path));
        set
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn sets_are_sets(a in set(), b in set(), c in set()) {
        prop_assert_eq!(Set::decode(&a.encode()), Some(a.clone()));
        prop_assert_eq!(a.union(&b), b.union(&a));
        prop_assert_eq!(a.union(&b).union(&c), a.union(&b.union(&c)));
        prop_assert_eq!(a.intersection(&b), b.intersection(&a));
        prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
        prop_assert!(a.difference(&b).intersection(&b).is_empty());
        prop_assert_eq!(a.intersection(&b.union(&c)), a.intersection(&b).union(&a.intersection(&c)));
        prop_assert!(a.without(&a).is_empty());
        let mut paths = 0;
        a.each(&mut |_| paths += 1);
        prop_assert_eq!(paths == 0, a.is_empty());
    }
}
