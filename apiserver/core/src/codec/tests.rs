#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::arbitrary::{Random, arbitrary};

use super::*;
use crate::schema;

fn decode(kind: (&str, &str, &str), text: &str) -> Result<Decoded, DecodeError> {
    decode_json(text.as_bytes(), schema::kind(kind.0, kind.1, kind.2).unwrap())
}

const POD: (&str, &str, &str) = ("", "v1", "Pod");
const CONFIG_MAP: (&str, &str, &str) = ("", "v1", "ConfigMap");
const DEPLOYMENT: (&str, &str, &str) = ("apps", "v1", "Deployment");

/// What is printed for what is read.
#[test]
fn round_trip() {
    for (kind, text, printed) in [
        (CONFIG_MAP, json!({}), json!({"metadata": {}})),
        (CONFIG_MAP, json!(null), json!({"metadata": {}})),
        (
            CONFIG_MAP,
            json!({"metadata": {"name": "a", "creationTimestamp": null, "labels": {}, "finalizers": null},
                   "data": {"a": null}, "immutable": false}),
            json!({"metadata": {"name": "a"}, "data": {"a": ""}, "immutable": false}),
        ),
        (
            CONFIG_MAP,
            json!({"metadata": {"creationTimestamp": "2026-01-02T03:04:05.5+01:00"}, "binaryData": {"a": "YQ=\n="}}),
            json!({"metadata": {"creationTimestamp": "2026-01-02T02:04:05Z"}, "binaryData": {"a": "YQ=="}}),
        ),
        (
            DEPLOYMENT,
            json!({"spec": {"replicas": 0, "strategy": {"rollingUpdate": {"maxSurge": "1"}}}}),
            json!({"metadata": {}, "status": {}, "spec": {
                "replicas": 0, "selector": null,
                "strategy": {"rollingUpdate": {"maxSurge": "1"}},
                "template": {"metadata": {}, "spec": {"containers": null}}}}),
        ),
        (
            POD,
            json!({"spec": {"hostNetwork": false, "nodeName": "", "containers": [
                {"name": "a", "resources": {"limits": {"cpu": 0.5, "memory": " 1024Ki"}}, "env": []}]}}),
            json!({"metadata": {}, "status": {}, "spec": {"containers": [
                {"name": "a", "resources": {"limits": {"cpu": "500m", "memory": "1Mi"}}}]}}),
        ),
    ] {
        let decoded = decode(kind, &text.to_string()).unwrap();
        assert_eq!((decoded.value, decoded.strict), (printed, vec![]), "{text}");
    }
}

#[test]
fn normal_form_is_a_fixed_point() {
    for (_, _, _, model) in schema::kinds() {
        let mut once = json!({});
        normalize(&mut once, model, &mut Faults::default()).unwrap();
        let mut twice = once.clone();
        normalize(&mut twice, model, &mut Faults::default()).unwrap();
        assert_eq!(once, twice, "{}", model.name);
    }
}

#[test]
fn wrong_types() {
    for (kind, text, message) in [
        (
            CONFIG_MAP,
            r#"{"metadata":{"name":1}}"#,
            "cannot unmarshal number 1 into Go struct field metadata.name of type string",
        ),
        (CONFIG_MAP, r#"{"metadata":{"labels":{"a":1}}}"#, "number 1"),
        (CONFIG_MAP, r#"{"metadata":{"labels":["a"]}}"#, "array"),
        (CONFIG_MAP, r#"{"binaryData":{"k":"not base64!"}}"#, "illegal base64 data at input byte 3"),
        (CONFIG_MAP, r#"{"metadata":{"creationTimestamp":"yesterday"}}"#, r#"cannot parse "yesterday" as "2006""#),
        (CONFIG_MAP, r#"{"apiVersion":1}"#, "number 1"),
        (CONFIG_MAP, "[]", "array"),
        (CONFIG_MAP, "\"text\"", "string"),
        (CONFIG_MAP, "{", "unexpected end of JSON input"),
        (CONFIG_MAP, "", "unexpected end of JSON input"),
        (CONFIG_MAP, "{} trailing", "trailing"),
        (DEPLOYMENT, r#"{"spec":{"replicas":"3"}}"#, "string"),
        (DEPLOYMENT, r#"{"spec":{"replicas":1.5}}"#, "number 1.5"),
        (DEPLOYMENT, r#"{"spec":{"replicas":2147483648}}"#, "number 2147483648"),
        (DEPLOYMENT, r#"{"spec":{"strategy":{"rollingUpdate":{"maxSurge":1.5}}}}"#, "number 1.5"),
        (POD, r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":true}}}]}}"#, "quantities must match"),
        (POD, r#"{"spec":{"hostNetwork":"yes"}}"#, "spec.hostNetwork of type bool"),
    ] {
        let error = decode(kind, text).unwrap_err().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
}

/// Strict faults come in the order of the document; unknown fields are not descended into.
#[test]
fn strict_faults_in_order() {
    let text = r#"{"zeta":1,"metadata":{"name":"a","alpha":2,"labels":{"x":"1","x":"2"}},"spec":{"replicas":0,
        "replicas":0,"unknown":{"a":1,"a":2},"template":{"spec":{"containers":[{"name":"c","bad":1,
        "env":[{"name":"A","valu":"x"}]}],"beta":1}}},"alpha":1}"#;
    let decoded = decode(DEPLOYMENT, text).unwrap();
    let expected = [
        "unknown field \"zeta\"",
        "unknown field \"metadata.alpha\"",
        "duplicate field \"metadata.labels.x\"",
        "duplicate field \"spec.replicas\"",
        "unknown field \"spec.unknown\"",
        "unknown field \"spec.template.spec.containers[0].bad\"",
        "unknown field \"spec.template.spec.containers[0].env[0].valu\"",
        "unknown field \"spec.template.spec.beta\"",
        "unknown field \"alpha\"",
    ];
    assert_eq!(decoded.strict, expected);
    assert_eq!(decoded.value["metadata"]["labels"]["x"], "2");
    assert_eq!(decoded.value.get("zeta"), None::<&Value>);
}

#[test]
fn schemas_of_definitions() {
    let crd = ("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let text = json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": {
        "items": {"type": "object", "bogus": 1}, "additionalProperties": false, "maximum": 2.0,
        "dependencies": {"a": ["b"]}, "default": {"any": [null]}}}}]}});
    let decoded = decode(crd, &text.to_string()).unwrap();
    let schema = &decoded.value["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    assert_eq!(
        *schema,
        json!({"items": {"type": "object"}, "additionalProperties": false, "maximum": 2,
               "dependencies": {"a": ["b"]}, "default": {"any": [null]}})
    );
    assert!(decoded.strict.is_empty());
}

#[test]
fn numbers_without_types() {
    let mut value = json!({"a": 1.0, "b": [1e3, 1.5, -0.0], "c": u64::MAX, "d": 1e300, "e": i64::MIN});
    untyped_numbers(&mut value);
    assert_eq!(value, json!({"a": 1, "b": [1000, 1.5, 0], "c": u64::MAX, "d": 1e300, "e": i64::MIN}));
}

/// Adds fields that no structure has, beside those it has.
fn litter(value: &mut Value, random: &mut Random) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(|v| litter(v, random));
            if random.below(3) == 0 {
                map.insert("noSuchField".into(), json!({"a": {"noSuchField": 1}}));
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| litter(v, random)),
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// For every kind: a second pass changes nothing, and the two ways of finding unknown fields agree.
    #[test]
    fn laws_of_the_round_trip(seed in any::<u64>()) {
        for (_, _, _, shape) in schema::kinds() {
            let mut random = Random::new(seed);
            let mut value = arbitrary(shape, &mut random);
            litter(&mut value, &mut random);
            let text = value.to_string();
            let mut faults = Faults::default();
            // A map takes any name, and so may turn litter into a wrong type.
            if normalize(&mut value, shape, &mut faults).is_err() {
                continue;
            }
            let mut again = value.clone();
            let mut none = Faults::default();
            normalize(&mut again, shape, &mut none).unwrap();
            prop_assert_eq!(&again, &value);
            prop_assert!(none.unknown.is_empty(), "{:?}", none);
            let mut unknown: Vec<_> = faults.unknown.iter().map(|p| format!("unknown field \"{p}\"")).collect();
            let mut strict = json::strict_faults(text.as_bytes(), shape);
            prop_assert!(strict.len() <= 100);
            if unknown.len() <= 100 {
                unknown.sort();
                strict.sort();
                prop_assert_eq!(unknown, strict);
            }
        }
    }
}
