//! What the executions of a distributed Map get: items as ItemSelector makes them, alone or in batches.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value, json};
use skiff_asl::definition::{Map, State, StateKind};
use skiff_asl::{Definition, ExecutionError, Scope, dice, error};

use crate::api::DATA_MAX;
use crate::machine::Plan;

/// Bytes around the items of a batch.
const AROUND: usize = 32;

/// The inputs of a map's executions, made when they are asked for: the same each time.
pub(super) struct Items {
    definition: Arc<Definition>,
    plan: Arc<Plan>,
    items: Vec<Value>,
    /// Which items each execution has, where they come in batches.
    batches: Option<Vec<Range<usize>>>,
}

/// The Map state of a plan.
pub(super) fn map_of<'a>(definition: &'a Definition, state: &str) -> Result<(&'a State, &'a Map), ExecutionError> {
    let state = definition.find(state);
    match state.map(|s| (s, &s.kind)) {
        Some((state, StateKind::Map(map))) => Ok((state, map)),
        _ => Err(ExecutionError::new(error::RUNTIME, "the Map is gone")),
    }
}

impl Items {
    /// Puts items together as the plan says.
    ///
    /// # Errors
    /// When ItemSelector fails on one of them, where that must be known for their length.
    pub(super) fn new(definition: Arc<Definition>, plan: Arc<Plan>, items: Vec<Value>) -> Result<Self, ExecutionError> {
        let mut whole = Self { definition, plan, items, batches: None };
        let Some(batches) = whole.plan.batches.clone() else { return Ok(whole) };
        let size = |n: Option<u64>| n.map_or(usize::MAX, |n| usize::try_from(n).unwrap_or(usize::MAX));
        let (most, bytes) = (size(batches.most), size(batches.bytes).min(DATA_MAX));
        let around = AROUND + batches.shared.as_ref().map_or(0, |s| s.to_string().len());
        let (mut all, mut begin, mut length) = (vec![], 0, around);
        for index in 0..whole.items.len() {
            let item = whole.selected(index)?.to_string().len() + 1;
            if index > begin && (index - begin >= most || length + item > bytes) {
                all.push(begin..index);
                (begin, length) = (index, around);
            }
            length += item;
        }
        if begin < whole.items.len() {
            all.push(begin..whole.items.len());
        }
        whole.batches = Some(all);
        Ok(whole)
    }

    /// How many executions there are.
    pub(super) fn len(&self) -> usize {
        self.batches.as_ref().map_or(self.items.len(), Vec::len)
    }

    /// How many items an execution has.
    pub(super) fn size(&self, index: usize) -> usize {
        match &self.batches {
            None => 1,
            Some(all) => all.get(index).map_or(0, Range::len),
        }
    }

    /// How many items there are.
    pub(super) fn total(&self) -> usize {
        self.items.len()
    }

    /// The input of an execution.
    ///
    /// # Errors
    /// When ItemSelector fails.
    pub(super) fn input(&self, index: usize) -> Result<Value, ExecutionError> {
        let Some(all) = &self.batches else { return self.selected(index) };
        let range = all.get(index).cloned().unwrap_or_default();
        let items = range.map(|i| self.selected(i)).collect::<Result<Vec<_>, _>>()?;
        let mut whole = json!({"Items": items});
        if let (Some(shared), Some(fields)) =
            (self.plan.batches.as_ref().and_then(|b| b.shared.clone()), whole.as_object_mut())
        {
            fields.insert("BatchInput".to_owned(), shared);
        }
        Ok(whole)
    }

    fn selected(&self, index: usize) -> Result<Value, ExecutionError> {
        let item = self.items.get(index).cloned().unwrap_or_default();
        let (_, map) = map_of(&self.definition, &self.plan.state)?;
        let Some(selector) = &map.item_selector else { return Ok(item) };
        let mut context = self.plan.context.clone();
        if let Some(fields) = context.as_object_mut() {
            fields.insert("Map".to_owned(), json!({"Item": {"Index": index, "Value": item}}));
        }
        // The same each time it is asked for, chance and time too.
        let seed = self.plan.at.as_microsecond().unsigned_abs() ^ (index as u64).rotate_left(32);
        dice::with_seed_at(seed, self.plan.at, || {
            selector.eval(&self.plan.input, &Scope::new(&context, &self.plan.variables))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Batches;

    fn items(selector: Value, batches: Option<Batches>, items: Vec<Value>) -> Items {
        let mut state = json!({"Type": "Map", "End": true, "ItemProcessor": {
            "ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"},
            "StartAt": "P", "States": {"P": {"Type": "Pass", "End": true}}}});
        if !selector.is_null() {
            state["ItemSelector"] = selector;
        }
        let definition = Definition::parse(&json!({"StartAt": "M", "States": {"M": state}})).unwrap();
        let plan = Plan {
            state: "M".into(),
            label: "M".into(),
            name: "m".into(),
            at: k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
            input: json!({"a": 1}),
            context: json!({}),
            variables: Default::default(),
            items: None,
            source: None,
            batches,
            target: None,
            concurrency: 0,
            tolerated: None,
            percentage: None,
            express: false,
        };
        Items::new(Arc::new(definition), Arc::new(plan), items).unwrap()
    }

    #[test]
    fn selectors_see_input_and_item() {
        let selector = json!({"a.$": "$.a", "i.$": "$$.Map.Item.Index", "v.$": "$$.Map.Item.Value"});
        let all = items(selector, None, vec![json!("x"), json!("y")]);
        assert_eq!((all.len(), all.size(0)), (2, 1));
        assert_eq!(all.input(1).unwrap(), json!({"a": 1, "i": 1, "v": "y"}));
    }

    #[test]
    fn batches_have_so_many_items_and_bytes() {
        let of = |most, bytes, length: usize| {
            let shared = Some(json!({"k": 1}));
            let all = items(Value::Null, Some(Batches { shared, most, bytes }), vec![json!("x".repeat(100)); length]);
            let sizes: Vec<usize> = (0..all.len()).map(|i| all.size(i)).collect();
            for (i, size) in sizes.iter().enumerate() {
                let input = all.input(i).unwrap();
                assert_eq!((input["BatchInput"].clone(), all.total()), (json!({"k": 1}), length));
                assert_eq!(input["Items"].as_array().unwrap().len(), *size);
                assert!(bytes.is_none_or(|b| *size == 1 || input.to_string().len() as u64 <= b));
            }
            sizes
        };
        assert_eq!(of(Some(3), None, 7), [3, 3, 1]);
        assert_eq!(of(None, Some(300), 5), [2, 2, 1]);
        assert_eq!(of(None, Some(10), 2), [1, 1], "one that is too long goes alone");
        assert_eq!(of(Some(3), None, 0), [0; 0]);
    }
}
