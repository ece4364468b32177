//! The context object, made only where something reads it.

use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

use super::Machine;
use super::model::{Entry, Step};
use crate::token::Token;

/// Whether a definition may read the context object.
pub(super) fn is_used(raw: &Value) -> bool {
    match raw {
        Value::String(text) => text.contains("$$") || text.contains("$states"),
        Value::Array(all) => all.iter().any(is_used),
        Value::Object(all) => all.values().any(is_used),
        _ => false,
    }
}

impl Machine {
    /// The context object as a visit of a state sees it. Given back with [`Machine::done_with`].
    pub(super) fn context(&mut self, scope: u64, entry: &Entry, token: bool) -> Value {
        if !self.contextual {
            return Value::Null;
        }
        if self.context.is_null() {
            self.context = self.basis();
        }
        let mut context = self.context.take();
        if let Some(fields) = context.as_object_mut() {
            fields.insert(
                "State".to_owned(),
                json!({"EnteredTime": stamp(entry.entered), "Name": entry.state, "RetryCount": entry.retries}),
            );
            if self.core.redrives > 0
                && let Some(execution) = fields.get_mut("Execution").and_then(Value::as_object_mut)
            {
                execution.insert("RedriveCount".to_owned(), json!(self.core.redrives));
                execution.insert("RedriveTime".to_owned(), json!(self.core.redriven.map(stamp)));
            }
            fields.remove("Task");
            if token {
                let step = Step { scope, entry: entry.id, attempt: entry.attempt };
                fields.insert("Task".to_owned(), json!({"Token": self.token(step)}));
            }
            fields.remove("Map");
            if let Some(item) = self.item(scope) {
                fields.insert("Map".to_owned(), json!({"Item": item}));
            }
        }
        context
    }

    /// Gives the context object back.
    pub(super) fn done_with(&mut self, context: Value) {
        self.context = context;
    }

    /// The innermost item around a scope.
    fn item(&self, mut scope: u64) -> Option<Value> {
        loop {
            let found = self.core.scopes.get(&scope)?;
            if let Some(item) = &found.item {
                return Some(item.clone());
            }
            scope = found.up?.0;
        }
    }

    fn basis(&self) -> Value {
        let info = &self.info;
        json!({
            "Execution": {
                "Id": info.id, "Input": info.input, "Name": info.name, "RoleArn": info.role,
                "StartTime": stamp(self.core.started), "RedriveCount": 0,
            },
            "StateMachine": {"Id": info.workflow_id, "Name": info.workflow},
        })
    }

    pub(super) fn token(&self, step: Step) -> String {
        let address = format!("{}{step}", self.info.path);
        Token::new(&self.info.namespace, &self.info.run, &address, &self.info.secret).to_string()
    }
}

/// A time as the context object has it.
pub(super) fn stamp(at: Timestamp) -> String {
    format!("{at:.3}")
}
