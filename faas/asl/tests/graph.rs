//! Pictures of definitions.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use skiff_asl::Definition;
use skiff_asl::graph::{Colors, Phase, StateStatus, Status, svg, text};

fn order() -> Definition {
    Definition::parse(&json!({
        "StartAt": "Check",
        "States": {
            "Check": {"Type": "Task", "Resource": "skiff:function:check", "Next": "Decide",
                      "Catch": [{"ErrorEquals": ["States.ALL"], "Next": "Sorry"}]},
            "Decide": {"Type": "Choice", "Default": "Wait", "Choices": [
                {"Variable": "$.total", "NumericGreaterThanEquals": 100, "Next": "Both"},
                {"Not": {"Variable": "$.id", "IsPresent": true}, "Next": "Sorry"}]},
            "Wait": {"Type": "Wait", "Seconds": 5, "Next": "Check"},
            "Both": {"Type": "Parallel", "Next": "Done", "Branches": [
                {"StartAt": "Pack", "States": {"Pack": {"Type": "Pass", "Next": "Ship"}, "Ship": {"Type": "Pass", "End": true}}},
                {"StartAt": "Bill", "States": {"Bill": {"Type": "Pass", "End": true}}}]},
            "Done": {"Type": "Succeed"},
            "Sorry": {"Type": "Fail", "Error": "Order.Refused"},
        },
    }))
    .expect("a definition")
}

fn status() -> Status {
    let of = |phase, millis, count| StateStatus { phase, duration: Some(Duration::from_millis(millis)), count };
    [
        ("Check".to_owned(), of(Phase::Succeeded, 12, 2)),
        ("Decide".to_owned(), of(Phase::Succeeded, 1, 2)),
        ("Both".to_owned(), of(Phase::Running, 61_000, 1)),
        ("Pack".to_owned(), of(Phase::Failed, 1_500, 1)),
    ]
    .into()
}

#[test]
fn a_text() {
    let drawn = text(&order(), &status(), Colors::Plain);
    let wanted = include_str!("graph.txt");
    assert!(drawn == wanted, "got\n{drawn}\nwanted\n{wanted}");
}

#[test]
fn colours_only_add_escapes() {
    let plain = text(&order(), &status(), Colors::Plain);
    let colored = text(&order(), &status(), Colors::Ansi);
    assert!(colored.contains("\u{1b}[31m"));
    let mut stripped = String::new();
    let mut rest = colored.as_str();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        stripped.push_str(before);
        rest = after.split_once('m').expect("an escape ends").1;
    }
    stripped.push_str(rest);
    assert_eq!(stripped, plain);
}

#[test]
fn a_svg_names_every_state_once_with_its_colour() {
    let drawn = svg(&order(), &status());
    for name in ["Check", "Decide", "Wait", "Both", "Pack", "Ship", "Bill", "Done", "Sorry"] {
        assert_eq!(drawn.matches(&format!("<title>{name} (")).count(), 1, "{name}");
    }
    assert_eq!(drawn.matches("#fee2e2").count(), 1, "one state failed");
    assert_eq!(drawn.matches("<g ").count(), drawn.matches("</g>").count());
    assert!(drawn.contains("$.total ≥ 100"));
    assert!(drawn.contains("1 min 1 s"));
}

#[test]
fn wide_characters_keep_the_frame() {
    let definition = Definition::parse(&json!({"StartAt": "图像处理", "States": {"图像处理": {"Type": "Succeed"}}}));
    let drawn = text(&definition.expect("a definition"), &Status::new(), Colors::Plain);
    let wanted = "      ●\n      ▼\n┌───────────┐\n│ 图像处理  │\n│ Succeed ◉ │\n└───────────┘\n";
    assert!(drawn == wanted, "{drawn}");
}

/// A machine of `count` Pass and Choice states with arbitrary transitions, every state reachable and one that ends.
fn machines() -> impl Strategy<Value = Value> {
    (2..14_usize).prop_flat_map(|count| {
        proptest::collection::vec((0..count, 0..count), count).prop_map(move |pairs| {
            let mut states = serde_json::Map::new();
            for (i, (a, b)) in pairs.iter().enumerate() {
                let next = format!("S{}", i + 1);
                let rule = |to: String| json!({"Variable": "$.x", "NumericEquals": i, "Next": to});
                let state = if i + 1 == count {
                    json!({"Type": "Succeed"})
                } else {
                    let rules = [rule(format!("S{a}")), rule(format!("S{b}"))];
                    json!({"Type": "Choice", "Choices": rules, "Default": next})
                };
                states.insert(format!("S{i}"), state);
            }
            json!({"StartAt": "S0", "States": states})
        })
    })
}

proptest! {
    #[test]
    fn every_state_is_in_every_picture(machine in machines()) {
        let definition = Definition::parse(&machine).expect("a definition");
        let drawn = text(&definition, &Status::new(), Colors::Plain);
        let vector = svg(&definition, &Status::new());
        for name in definition.states.keys() {
            let boxed = format!("│ {name} ");
            prop_assert!(drawn.contains(&boxed), "{} in\n{}", name, drawn);
            let title = format!("<title>{name} (");
            prop_assert!(vector.contains(&title));
        }
        prop_assert_eq!(drawn, text(&definition, &Status::new(), Colors::Plain));
    }
}
