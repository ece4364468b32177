#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::arbitrary::{Random, arbitrary};
use super::super::normalize::{Faults, normalize};
use super::*;
use crate::schema;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Every kind, filled at random: what is written is read back.
    #[test]
    fn round_trip_of_every_kind(seed in any::<u64>()) {
        for (group, version, kind, shape) in schema::kinds() {
            if shape.fields.iter().all(|f| f.number == 0) {
                continue; // never sent as protobuf (Table)
            }
            let mut value = arbitrary(shape, &mut Random::new(seed));
            value["apiVersion"] = crate::resources::group_version(group, version).into();
            value["kind"] = (*kind).into();
            normalize(&mut value, shape, &mut Faults::default()).unwrap();
            let body = encode_proto(&value, shape);
            let back = decode_proto(&body, |_, _| Some(shape)).unwrap();
            prop_assert_eq!(back, value, "{} {}", version, kind);
        }
    }

    /// Damaged bodies are errors or other values, never a panic.
    #[test]
    fn damage(seed in any::<u64>(), cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        for (_, _, _, shape) in schema::kinds() {
            let body = encode_proto(&arbitrary(shape, &mut Random::new(seed)), shape);
            let mut damaged = body.to_vec();
            damaged[4 + at.index(body.len() - 4)] = byte;
            let _ = decode_proto(&damaged, |_, _| Some(shape));
            let _ = decode_proto(&body[..cut.index(body.len())], |_, _| Some(shape));
        }
    }

    #[test]
    fn noise(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for (_, _, _, shape) in schema::kinds() {
            let _ = read_message(&bytes, shape);
        }
    }
}

/// Bytes recorded from upstream.
#[test]
fn recorded() {
    let group = json!({"kind": "APIGroup", "apiVersion": "v1", "name": "coordination.k8s.io",
        "versions": [{"groupVersion": "coordination.k8s.io/v1", "version": "v1"}],
        "preferredVersion": {"groupVersion": "coordination.k8s.io/v1", "version": "v1"}});
    let shape = schema::kind("", "v1", "APIGroup").unwrap();
    let bytes = "k8s\0\n\u{e}\n\u{2}v1\u{12}\u{8}APIGroup\u{12}Q\n\u{13}coordination.k8s.io\u{12}\u{1c}\n\u{16}coordination.k8s.io/v1\u{12}\u{2}v1\u{1a}\u{1c}\n\u{16}coordination.k8s.io/v1\u{12}\u{2}v1\u{1a}\0\"\0";
    assert_eq!(encode_proto(&group, shape), bytes);
    let back = decode_proto(bytes.as_bytes(), |_, _| Some(shape)).unwrap();
    assert_eq!(back, group);
}

/// A list sent piece by piece is the list sent whole.
#[test]
fn lists_in_pieces() {
    let shape = schema::kind("", "v1", "ConfigMapList").unwrap();
    let item = |n: usize| json!({"metadata": {"name": format!("c{n}")}, "data": {"k": "v".repeat(n)}});
    for count in [0, 1, 3, 200] {
        let items: Vec<Value> = (0..count).map(item).collect();
        let head = json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": {"resourceVersion": "7"}});
        let mut pieces = Vec::new();
        for item in &items {
            list_item(&mut pieces, item, shape);
        }
        let mut got = list_head(&head, shape, pieces.len() as u64).unwrap().to_vec();
        got.extend_from_slice(&pieces);
        got.extend_from_slice(LIST_END);
        let mut whole = head;
        whole["items"] = items.into();
        assert_eq!(got, encode_proto(&whole, shape), "{count}");
    }
    // A structure without items is no list.
    assert!(list_head(&json!({}), schema::kind("", "v1", "ConfigMap").unwrap(), 0).is_none());
}

#[test]
fn lengths_take_the_bytes_they_need() {
    for value in [0, 1, 127, 128, 16_383, 16_384, (1 << 32) - 1, u64::MAX] {
        let mut out = Vec::new();
        wire::put_varint(&mut out, value);
        assert_eq!(wire::varint_len(value), out.len(), "{value}");
    }
    for len in [0, 127, 128, 20_000] {
        let (mut nested, mut plain) = (vec![9], vec![9]);
        wire::put_message(&mut nested, 5, |out| out.resize(out.len() + len, 3));
        wire::put_bytes(&mut plain, 5, &vec![3; len]);
        assert_eq!(nested, plain, "{len}");
    }
}

#[test]
fn watch_frames() {
    let frame = watch_frame("ADDED", b"k8s\0xy");
    assert_eq!(frame[..4], [0, 0, 0, 17]);
    assert_eq!(&frame[4..], b"\x0a\x05ADDED\x12\x08\x0a\x06k8s\0xy");
}

#[test]
fn refuses() {
    let shape = schema::kind("", "v1", "Pod").unwrap();
    let deep = {
        // ownerReferences and the like do not nest, a CRD's schema does.
        let mut raw = Vec::new();
        for _ in 0..300 {
            let mut outer = Vec::new();
            wire::put_message(&mut outer, 28, |out| out.extend_from_slice(&raw));
            raw = outer;
        }
        raw
    };
    let props = schema::model("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps").unwrap();
    assert!(props.fields.iter().any(|f| f.number == 28 && f.name == "not"));
    assert!(read_message(&deep, props).unwrap_err().to_string().contains("depth"));
    for body in [&b""[..], b"k8s", b"{}", b"k8s\0\xff", b"k8s\0\x12\x05a"] {
        assert!(decode_proto(body, |_, _| Some(shape)).is_err());
    }
    assert!(decode_proto(b"k8s\0", |_, _| None).is_err());
}

/// Unknown fields are skipped, packed numbers are read, an object inside may be JSON or a body of its own.
#[test]
fn lenient() {
    let event = schema::kind("", "v1", "WatchEvent").unwrap();
    let pod = encode_proto(
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}),
        schema::kind("", "v1", "Pod").unwrap(),
    );
    let mut raw = b"\xa8\x06\x01".to_vec();
    raw.extend_from_slice(&watch_frame("ADDED", &pod)[4..]);
    let value = read_message(&raw, event).unwrap();
    assert_eq!(value["object"]["kind"], "Pod");
    assert_eq!(value["object"]["metadata"], json!({"name": "a"}));
    let context = schema::model("io.k8s.api.core.v1.PodSecurityContext").unwrap();
    let groups = context.field("supplementalGroups").unwrap().number as u8;
    assert_eq!(
        read_message(&[groups << 3 | 2, 3, 1, 0xac, 2], context).unwrap(),
        json!({"supplementalGroups": [1, 300]})
    );
    assert_eq!(
        read_message(&[groups << 3, 1, groups << 3, 2], context).unwrap(),
        json!({"supplementalGroups": [1, 2]})
    );
    let empty: Value = read_message(b"", context).unwrap();
    assert_eq!(empty, json!({}));
}
