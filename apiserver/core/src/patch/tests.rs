#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::schema::kind;

fn merged(object: Value, patch: &Value) -> Value {
    let mut object = object;
    merge::merge_patch(&mut object, patch);
    object
}

fn strategic(object: &Value, patch: &Value) -> Result<Value, PatchError> {
    let mut object = object.clone();
    strategic_merge(&mut object, &mut patch.clone(), kind("", "v1", "Pod").unwrap())?;
    Ok(object)
}

#[test]
fn json_patch_differs_from_the_rfc_where_upstream_does() {
    let document = json!({"a": {"x": 1}, "l": ["p", "q"], "~/": 0});
    let cases = [
        (
            json!([{"op": "replace", "path": "/a/new", "value": 2}]),
            Some(json!({"a": {"x": 1, "new": 2}, "l": ["p", "q"], "~/": 0})),
        ),
        (json!([{"op": "test", "path": "/a/none", "value": null}]), Some(document.clone())),
        (
            json!([{"op": "copy", "from": "/a/none", "path": "/b"}]),
            Some(json!({"a": {"x": 1}, "l": ["p", "q"], "~/": 0, "b": null})),
        ),
        (
            json!([{"op": "add", "path": "/l/-1", "value": "r"}]),
            Some(json!({"a": {"x": 1}, "l": ["p", "q", "r"], "~/": 0})),
        ),
        (
            json!([{"op": "add", "path": "/l/01", "value": "r"}]),
            Some(json!({"a": {"x": 1}, "l": ["p", "r", "q"], "~/": 0})),
        ),
        (json!([{"op": "remove", "path": "/l/-2"}]), Some(json!({"a": {"x": 1}, "l": ["q"], "~/": 0}))),
        (
            json!([{"op": "replace", "path": "/~0~1", "value": 1}]),
            Some(json!({"a": {"x": 1}, "l": ["p", "q"], "~/": 1})),
        ),
        (json!([{"op": "add", "path": "/l/3", "value": "r"}]), None),
        (json!([{"op": "add", "path": "/l/x", "value": "r"}]), None),
        (json!([{"op": "remove", "path": "/a/none"}]), None),
        (json!([{"op": "move", "from": "/a/none", "path": "/b"}]), None),
        (json!([{"op": "move", "from": "/a", "path": "/a/b"}]), None),
        (json!([{"op": "test", "path": "/a/x", "value": 1.0}]), None),
        (json!([{"op": "add", "path": "/none/x", "value": 1}]), None),
        (json!([{"op": "add", "path": "", "value": {}}]), None),
        (json!([{"op": "what", "path": "/a"}]), None),
    ];
    for (patch, want) in cases {
        let got = JsonPatch::parse(patch.to_string().as_bytes()).unwrap().apply(&document);
        match want {
            Some(want) => assert_eq!(got.unwrap(), want, "{patch}"),
            None => assert!(matches!(got, Err(PatchError::Operation(_))), "{patch}: {got:?}"),
        }
    }
}

#[test]
fn json_patch_is_bounded() {
    let many = format!("[{}]", vec![r#"{"op":"test","path":"/a"}"#; 10_001].join(","));
    let error = JsonPatch::parse(many.as_bytes()).unwrap_err();
    let status = Status::from(error);
    assert_eq!(status.code, 413);
    assert!(status.message.ends_with("The allowed maximum operations in a JSON patch is 10000, got 10001"));
    // Doubling a string by copies must end.
    let mut operations = vec![json!({"op": "add", "path": "/l", "value": ["x".repeat(1000)]})];
    operations.extend((0..30).map(|_| json!({"op": "copy", "from": "/l", "path": "/l/0"})));
    let patch = JsonPatch::parse(Value::Array(operations).to_string().as_bytes()).unwrap();
    assert!(matches!(patch.apply(&json!({})), Err(PatchError::Operation(_))));
}

#[test]
fn merge_patch_takes_nulls_out_of_what_is_new() {
    let cases = [
        (json!({"a": {"b": 1}}), json!({"a": {"b": null}}), json!({"a": {}})),
        (json!({}), json!({"a": {"b": null}}), json!({"a": {}})),
        (json!({"a": [1]}), json!({"a": {"b": null}}), json!({"a": {}})),
        (json!({}), json!({"a": [{"b": null, "c": 1}, null]}), json!({"a": [{"c": 1}, null]})),
        (json!({"a": 1}), json!(null), json!(null)),
    ];
    for (object, patch, want) in cases {
        assert_eq!(merged(object, &patch), want, "{patch}");
    }
}

#[test]
fn strategic_errors_say_what_upstream_says() {
    let pod = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {}}]}});
    let cases = [
        (json!({"metadata": {"labels": {"$patch": 1}}}), "unknown patch type: %!s(int64=1) in map: map[$patch:1]"),
        (
            json!({"spec": {"containers": [{"$patch": null, "name": "a"}]}}),
            "unknown patch type: %!s(<nil>) in map: map[$patch:<nil> name:a]",
        ),
        (
            json!({"spec": {"containers": [{"image": "i"}]}}),
            "map: map[image:i] does not contain declared merge key: name",
        ),
        (json!({"spec": {"containers": ["x"]}}), "list element types are not identical: [[map[name:a]] [x]]"),
        (
            json!({"spec": {"$setElementOrder/containers": {"name": "a"}}}),
            "expected a []interface {}, but received a map[string]interface {}",
        ),
        (json!({"spec": {"$setElementOrder/containers": ["a"]}}), "value for key 0 is not a map"),
        (
            json!({"spec": {"$setElementOrder/containers": [{"image": "a"}]}}),
            "map: map[image:a] does not contain declared merge key: name",
        ),
        (
            json!({"spec": {"volumes": [{"name": "v", "$retainKeys": ["name"], "secret": {}}]}}),
            "invalid patch format of retainKeys",
        ),
    ];
    for (patch, want) in cases {
        assert_eq!(strategic(&pod, &patch).unwrap_err().to_string(), want);
    }
    let patch = json!({"spec": {"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b"}]}});
    let error = strategic(&pod, &patch).unwrap_err().to_string();
    assert!(error.starts_with("The order in patch list:\n[map[name:b]]\n doesn't match"), "{error}");
}

#[test]
fn strategic_takes_what_is_new_without_nulls_and_patches() {
    let cases = [
        (json!({"metadata": {"annotations": {"$patch": "merge", "x": "y"}}}), json!({"metadata": {}})),
        (json!({"metadata": {"annotations": {"x": null, "y": "z"}}}), json!({"metadata": {"annotations": {"y": "z"}}})),
        (
            json!({"spec": {"containers": [{"name": "a", "env": [{"name": "E", "$patch": "delete"}, {"name": "F"}]}]}}),
            json!({"metadata": {}, "spec": {"containers": [{"name": "a", "env": [{"name": "F"}]}]}}),
        ),
    ];
    for (patch, want) in cases {
        assert_eq!(strategic(&json!({"metadata": {}}), &patch).unwrap(), want);
    }
}

/// The lists as `name` or `name=image`, for short.
#[test]
fn strategic_order() {
    let list = |text: &str| -> Value {
        let item = |t: &str| match t.split_once('=') {
            Some((name, "delete")) => json!({"name": name, "$patch": "delete"}),
            Some((name, image)) => json!({"name": name, "image": image}),
            None if t == "replace" => json!({"$patch": "replace"}),
            None => json!({"name": t}),
        };
        text.split_whitespace().map(item).collect()
    };
    // before, patch, order list, after
    let cases = [
        ("a b", "b=2", None, "a b=2"),
        ("a b", "c", None, "c a b"),
        ("c a b", "d a=1 e", None, "d c a=1 e b"),
        ("a b", "a=delete", None, "b"),
        ("a b", "zz=delete", None, "a b"),
        ("a b", "replace c", None, "c"),
        ("a b", "d replace", None, "d"),
        ("a b c", "", Some("c a"), "b c a"),
        ("a b c", "c=1 b=delete", Some("c a"), "c=1 a"),
        ("a b", "n b=1", Some("n a b"), "n a b=1"),
    ];
    for (before, patch, order, after) in cases {
        let mut spec = json!({});
        if !patch.is_empty() {
            spec["containers"] = list(patch);
        }
        if let Some(order) = order {
            spec["$setElementOrder/containers"] = list(order);
        }
        let got = strategic(&json!({"spec": {"containers": list(before)}}), &json!({"spec": spec})).unwrap();
        assert_eq!(got["spec"]["containers"], list(after), "{before} + {patch} {order:?}");
    }
}

/// JSON of few names, so that patches meet what is there.
fn document(nulls: bool) -> impl Strategy<Value = Value> {
    let leaf = if nulls {
        prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), (0..3i64).prop_map(Value::from)].boxed()
    } else {
        prop_oneof![any::<bool>().prop_map(Value::from), (0..3i64).prop_map(Value::from)].boxed()
    };
    let tree = leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            prop::collection::btree_map("[a-d]", inner, 0..4).prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    });
    prop::collection::btree_map("[a-d]", tree, 0..4).prop_map(|m| Value::Object(m.into_iter().collect()))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn merging_twice_is_merging_once(object in document(false), patch in document(true)) {
        let once = merged(object, &patch);
        prop_assert_eq!(merged(once.clone(), &patch), once);
    }

    #[test]
    fn merging_disjoint_patches_commutes(object in document(false), patch in document(true)) {
        let Value::Object(all) = patch else { unreachable!() };
        let (a, b): (serde_json::Map<_, _>, serde_json::Map<_, _>) = all.into_iter().partition(|(k, _)| k.as_str() < "c");
        let (a, b) = (Value::Object(a), Value::Object(b));
        prop_assert_eq!(merged(merged(object.clone(), &a), &b), merged(merged(object, &b), &a));
    }

    #[test]
    fn an_object_patched_with_itself_stays(labels in document(false), names in prop::collection::btree_set("[a-e]", 0..5)) {
        let containers: Vec<Value> = names.iter().map(|n| json!({"name": n, "env": [{"name": "E", "value": n}]})).collect();
        let pod = json!({"metadata": {"annotations": labels, "finalizers": names}, "spec": {"containers": containers, "tolerations": [{"key": "k"}]}});
        prop_assert_eq!(strategic(&pod, &pod).unwrap(), pod.clone());
        prop_assert_eq!(strategic(&pod, &json!({})).unwrap(), pod);
    }

    #[test]
    fn a_strategic_merge_twice_is_once(
        before in prop::collection::btree_set("[a-e]", 1..5),
        patch in prop::collection::btree_set("[a-h]", 1..5),
    ) {
        let list = |names: &std::collections::BTreeSet<String>, image: &str| -> Value {
            names.iter().map(|n| json!({"name": n, "image": image})).collect()
        };
        let pod = json!({"metadata": {"finalizers": before}, "spec": {"containers": list(&before, "1")}});
        let change = json!({"metadata": {"finalizers": patch}, "spec": {"containers": list(&patch, "2")}});
        let once = strategic(&pod, &change).unwrap();
        let names: std::collections::BTreeSet<&str> =
            once["spec"]["containers"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
        prop_assert_eq!(names, before.iter().chain(&patch).map(String::as_str).collect());
        prop_assert_eq!(strategic(&once, &change).unwrap(), once);
    }
}

#[test]
fn refusals_quote_what_is_left_of_a_patch() {
    let shape = kind("", "v1", "Pod").unwrap();
    let object = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    // (patch, what of it is quoted afterwards)
    let cases = [
        (json!({"metadata": {"labels": {"$patch": "replace", "x": 1}}}), "map[metadata:map[labels:map[x:1]]]"),
        (json!({"metadata": {"annotations": {"q": null}}}), "map[metadata:map[annotations:map[]]]"),
        (
            json!({"spec": {"$setElementOrder/containers": [{"name": "c"}], "containers": [{"name": "c", "image": 7}]}}),
            "map[spec:map[]]",
        ),
    ];
    for (mut patch, left) in cases {
        strategic_merge(&mut object.clone(), &mut patch, shape).unwrap();
        assert_eq!(go::print(&patch), left);
    }
    assert_eq!(go::as_text(&json!({"a": [7, "x", null]})), "map[a:[%!s(int64=7) x %!s(<nil>)]]");
    // An order of nothing is no order.
    let mut none = json!({"spec": {"$setElementOrder/containers": [], "containers": [{"name": "c", "image": "j"}]}});
    let mut merged = object.clone();
    strategic_merge(&mut merged, &mut none, shape).unwrap();
    assert_eq!(merged["spec"]["containers"], json!([{"name": "c", "image": "j"}]));
}
