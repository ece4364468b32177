#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

#[test]
fn reads() {
    for (text, value) in [
        ("", json!(null)),
        (
            "a: 1\nb: yes\nc: ~\nd: 'yes'\ne: 010\nf: 0x1f\ng: 1.0\nh: .5\ni: 1e3\nj: 2020-01-01\nk: 1_000\n",
            json!({"a": 1, "b": true, "c": null, "d": "yes", "e": 8, "f": 31, "g": 1, "h": 0.5, "i": 1000, "j": "2020-01-01", "k": 1000}),
        ),
        (
            "a: 08\nb: 1:30\nc: '1'\nd: !!str 1\ne: -1\nf: +1\ng: \"x\\ty\"\n",
            json!({"a": 8, "b": "1:30", "c": "1", "d": "1", "e": -1, "f": 1, "g": "x\ty"}),
        ),
        (
            "a: &x {b: [1, 2]}\nc: *x\nd:\n  <<: *x\n  e: 3\n",
            json!({"a": {"b": [1, 2]}, "c": {"b": [1, 2]}, "d": {"b": [1, 2], "e": 3}}),
        ),
        ("1: a\ntrue: b\n1.5: c\n", json!({"1": "a", "true": "b", "1.5": "c"})),
        ("a: |\n  x\n  y\nb: >-\n  x\n  y\n", json!({"a": "x\ny\n", "b": "x y"})),
        ("a: b\n---\na: c\n", json!({"a": "b"})),
        ("# a comment\n---\na: b\n", json!({"a": "b"})),
        ("{\"a\": [null, true]}", json!({"a": [null, true]})),
    ] {
        assert_eq!(parse_yaml(text.as_bytes()).unwrap().value, value, "{text}");
    }
}

#[test]
fn duplicates() {
    let parsed = parse_yaml(b"a: 1\ndata: {k: a}\ndata: {k: b}\nm:\n  x: 1\n  x:\n    z: 2\n").unwrap();
    assert_eq!(parsed.value, json!({"a": 1, "data": {"k": "b"}, "m": {"x": {"z": 2}}}));
    assert_eq!(parsed.duplicates, ["line 3: key \"data\" already set in map", "line 7: key \"x\" already set in map"]);
    let decoded = decode_yaml(
        b"apiVersion: v1\nkind: ConfigMap\ndata: {k: a}\ndata: {k: b}\nfoo: 1\nbar: 2\n",
        crate::schema::kind("", "v1", "ConfigMap").unwrap(),
    )
    .unwrap();
    let warnings = ["line 4: key \"data\" already set in map", "unknown field \"bar\"", "unknown field \"foo\""];
    assert_eq!(decoded.warnings(), warnings);
    assert_eq!(decoded.strict[0], "yaml: unmarshal errors:\n  line 4: key \"data\" already set in map");
}

#[test]
fn refuses() {
    let bomb = {
        let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for i in 1..12 {
            let item = format!("*a{}", i - 1);
            text += &format!("a{i}: &a{i} [{}]\n", vec![item; 10].join(","));
        }
        text
    };
    for text in [
        "apiVersion: v1\n  kind: ConfigMap\n bad",
        "a: [1",
        "a: *nowhere",
        "a: .nan",
        "a: &x [*x]",
        "? [a]\n: b",
        "<<: 1",
        bomb.as_str(),
        &"[".repeat(100_000),
        &"- ".repeat(100_000),
    ] {
        assert!(parse_yaml(text.as_bytes()).is_err(), "{}", &text[..text.len().min(40)]);
    }
}

#[test]
fn writes() {
    for (value, text) in [
        (json!({}), "{}\n"),
        (json!("a"), "a\n"),
        (json!({"b": [], "a": {}, "c": null}), "a: {}\nb: []\nc: null\n"),
        (json!({"a": [1, {"b": 1, "c": [2]}, [3, [4]]]}), "a:\n- 1\n- b: 1\n  c:\n  - 2\n- - 3\n  - - 4\n"),
        (json!({"a10": 1, "a9": 2, "A": 3, ".": 4}), ".: 4\nA: 3\na9: 2\na10: 1\n"),
        (
            json!({"s": ["é", "a'b", "a\"b", "x \"é\" y", "2020-01-01", "=", "<<", "!x", "&x", "[a]", "{a}", " a", "a:", "a: b",
            "0o7", "1_000", "1:30", "", "yes", "n", "null", "1", "-", "- a", "-a", "?", "#", "a #b", "a#b", "a\tb", "😀", "~", "0x1"]}),
            "s:\n- é\n- a'b\n- a\"b\n- x \"é\" y\n- \"2020-01-01\"\n- =\n- <<\n- '!x'\n- '&x'\n- '[a]'\n- '{a}'\n- ' a'\n- 'a:'\n- 'a: b'\n\
             - \"0o7\"\n- \"1_000\"\n- \"1:30\"\n- \"\"\n- \"yes\"\n- \"n\"\n- \"null\"\n- \"1\"\n- '-'\n- '- a'\n- -a\n- '?'\n- '#'\n- 'a #b'\n- a#b\n\
             - \"a\\tb\"\n- \"\\U0001F600\"\n- \"~\"\n- \"0x1\"\n",
        ),
        (
            json!({"a": "x\ny\n", "b": "x\ny", "c": "x\n\n", "d": "\nx", "e": "x \ny"}),
            "a: |\n  x\n  y\nb: |-\n  x\n  y\nc: |+\n  x\n\nd: |2-\n\n  x\ne: \"x \\ny\"\n",
        ),
        (json!({"f": 1.5, "g": 1e-7, "h": 1234567.5, "i": true}), "f: 1.5\ng: 1e-07\nh: 1.2345675e+06\ni: true\n"),
        (
            json!({"m": "word ".repeat(18).trim()}),
            "m: word word word word word word word word word word word word word word word word\n  word word\n",
        ),
    ] {
        assert_eq!(to_yaml(&value), text, "{value}");
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let text = prop_oneof![
        "\\PC{0,30}",
        "[ a-c:#\\-?'\"\n\t0-9]{0,20}",
        "(yes|no|~|null|[0-9]{1,3}|0x1|1e3|\\.5|2020-1-1|[a-z]{1,9}( [a-z]{1,9}){0,30})"
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        text.clone().prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(text.clone().prop_filter("merge", |k| k != "<<"), inner, 0..5)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(value in any_json()) {
        let text = to_yaml(&value);
        prop_assert_eq!(parse_yaml(text.as_bytes()).unwrap().value, value, "{}", text);
    }

    #[test]
    fn never_panics(text in "\\PC{0,60}|[-a:\\[\\]{}&*!|>'\"%@,#? \n\t0-9~.]{0,60}") {
        let _ = parse_yaml(text.as_bytes());
    }
}

/// Each as upstream's server said it of the same text (kube-apiserver v1.37.0).
#[test]
fn what_is_no_yaml_is_told_in_upstream_s_words() {
    let start = "kind: ConfigMap\nmetadata:\n  name: a\n";
    let cases = [
        (" labels: x\n", "line 3: did not find expected key"),
        ("  labels\n", "line 5: could not find expected ':'"),
        ("  labels: a: b\n", "line 4: mapping values are not allowed in this context"),
        ("  labels: @x\n", "line 4: found character that cannot start any token"),
        ("  labels: *x\n", "unknown anchor 'x' referenced"),
        ("  labels: &x [*x]\n", "anchor 'x' value contains itself"),
        ("  labels: \"x\n", "line 5: found unexpected end of stream"),
        ("  labels: \"\\q\"\n", "line 4: found unknown escape character"),
        ("  labels: \"a\" b\n", "line 3: did not find expected key"),
        ("  labels: {\"a\" \"b\"}\n", "line 3: did not find expected ',' or '}'"),
        ("  labels: |x\n", "line 4: did not find expected comment or line break"),
        ("  labels: \u{1}\n", "control characters are not allowed"),
        ("  labels: !!int x\n", "cannot decode !!str `x` as a !!int"),
        ("data:\n  - a\n  b: c\n", "line 5: did not find expected '-' indicator"),
        ("data:\n  b: c\n  - a\n", "line 5: did not find expected key"),
        ("data:\n  a: b\n\tc: d\n", "line 6: found a tab character that violates indentation"),
        ("data: }\n", "line 3: did not find expected node content"),
        ("data: {a: b\n", "line 4: did not find expected ',' or '}'"),
        ("data: {a: b]\n", "line 3: did not find expected ',' or '}'"),
        ("data: [a,\n", "line 4: did not find expected node content"),
    ];
    for (text, told) in cases {
        let text = format!("{start}{text}");
        let fault = parse_yaml(text.as_bytes()).unwrap_err();
        assert_eq!(fault.to_string(), format!("yaml: {told}"), "{text}");
    }
    for (text, told) in [
        ("{", "line 1: did not find expected node content"),
        ("[a", "line 1: did not find expected ',' or ']'"),
        ("{]", "did not find expected node content"),
        ("kind: a\nmetadata:\n\tname: b", "line 3: found character that cannot start any token"),
        ("a: b: c", "mapping values are not allowed in this context"),
        ("a\nb: c", "line 2: mapping values are not allowed in this context"),
        ("%x", "found unknown directive name"),
    ] {
        assert_eq!(parse_yaml(text.as_bytes()).unwrap_err().to_string(), format!("yaml: {told}"), "{text}");
    }
    assert_eq!(parse_yaml(b"a: -.inf").unwrap_err().to_string(), "json: unsupported value: -Inf");
    for (bytes, told) in [
        (&b"a: \xff"[..], "invalid leading UTF-8 octet"),
        (&b"a: \xc3("[..], "invalid trailing UTF-8 octet"),
        (&b"a: \xe2\x82"[..], "incomplete UTF-8 octet sequence"),
    ] {
        assert_eq!(parse_yaml(bytes).unwrap_err().to_string(), format!("yaml: {told}"));
    }
}
