//! Operations in the words of version 2 or 3.

use serde_json::{Map, Value, json};

use super::models::{Dialect, Models};
use super::operations::{Content, Operation, PATCH, path_parameters};

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// `paths` of a document.
pub(super) fn paths(operations: &[Operation], models: &mut Models<'_>) -> Map<String, Value> {
    let mut out = Map::new();
    for operation in operations {
        let path = out.entry(operation.path.clone()).or_insert_with(|| path_item(&operation.path, models.dialect));
        path[operation.method] = render(operation, models);
    }
    out
}

fn path_item(path: &str, dialect: Dialect) -> Value {
    if path.ends_with('/') {
        return json!({}); // the list of resources
    }
    let mut parameters: Vec<Value> = path_parameters(path)
        .into_iter()
        .map(|(name, text)| {
            let mut parameter = typed("string", dialect);
            parameter["name"] = name.into();
            parameter["in"] = "path".into();
            parameter["required"] = true.into();
            parameter["description"] = text.into();
            parameter
        })
        .collect();
    parameters.push(query("pretty", "string", "Print the answer for people.", dialect));
    json!({"parameters": parameters})
}

fn query(name: &str, kind: &str, text: &str, dialect: Dialect) -> Value {
    let mut parameter = typed(kind, dialect);
    parameter["name"] = name.into();
    parameter["in"] = "query".into();
    parameter["description"] = text.into();
    parameter
}

fn typed(kind: &str, dialect: Dialect) -> Value {
    match dialect {
        Dialect::V2 => json!({"type": kind, "uniqueItems": true}),
        Dialect::V3 => json!({"schema": {"type": kind, "uniqueItems": true}}),
    }
}

fn render(operation: &Operation, models: &mut Models<'_>) -> Value {
    let dialect = models.dialect;
    let mut out = json!({
        "description": operation.description,
        "operationId": operation.id,
        "tags": [operation.tag],
    });
    if let Some(action) = operation.action {
        out["x-kubernetes-action"] = action.into();
    }
    if let Some((group, version, kind)) = &operation.kind {
        out["x-kubernetes-group-version-kind"] = json!({"group": group, "version": version, "kind": kind});
    }
    let mut parameters: Vec<Value> =
        operation.parameters.iter().map(|p| query(&p.name, p.kind, &p.description, dialect)).collect();
    if dialect == Dialect::V2 {
        out["consumes"] = consumes(operation).into();
        out["produces"] = produces(operation).into();
        out["schemes"] = json!(["https"]);
        if let Some(body) = &operation.body {
            let mut parameter = json!({"name": "body", "in": "body", "schema": models.reference(body)});
            if operation.action != Some("delete") && operation.action != Some("deletecollection") {
                parameter["required"] = true.into();
            }
            parameters.insert(0, parameter);
        }
    } else if let Some(body) = &operation.body {
        let reference = models.reference(body);
        let content = consumes(operation).into_iter().map(|t| (t.to_owned(), json!({"schema": reference})));
        out["requestBody"] = json!({"content": content.collect::<Map<_, _>>()});
        if operation.action != Some("delete") && operation.action != Some("deletecollection") {
            out["requestBody"]["required"] = true.into();
        }
    }
    if !parameters.is_empty() {
        out["parameters"] = parameters.into();
    }
    let mut responses = Map::new();
    for status in operation.statuses {
        responses.insert(status.to_string(), response(operation, *status, models));
    }
    responses.insert("401".into(), json!({"description": "Unauthorized"}));
    out["responses"] = responses.into();
    out
}

fn response(operation: &Operation, status: u16, models: &mut Models<'_>) -> Value {
    let description = match status {
        201 => "Created",
        202 => "Accepted",
        _ => "OK",
    };
    let schema = match &operation.answer {
        Content::Model(model) => models.reference(model),
        Content::Text => json!({"type": "string"}),
    };
    match models.dialect {
        Dialect::V2 => json!({"description": description, "schema": schema}),
        Dialect::V3 => {
            let content = produces(operation).into_iter().map(|t| (t.to_owned(), json!({"schema": schema})));
            json!({"description": description, "content": content.collect::<Map<_, _>>()})
        }
    }
}

/// Media types of a body. kubectl reads from the list of a patch whether strategic merge will do.
fn consumes(operation: &Operation) -> Vec<&'static str> {
    if operation.body.as_deref() != Some(PATCH) {
        return if operation.custom { vec![JSON, YAML] } else { vec!["*/*"] };
    }
    let mut types = vec!["application/json-patch+json", "application/merge-patch+json"];
    if !operation.custom {
        types.push("application/strategic-merge-patch+json");
    }
    types.push("application/apply-patch+yaml");
    types
}

fn produces(operation: &Operation) -> Vec<&'static str> {
    if operation.answer == Content::Text {
        return if operation.action == Some("connect") {
            vec!["*/*"]
        } else {
            vec!["text/plain", JSON, YAML, PROTOBUF]
        };
    }
    let mut types = vec![JSON, YAML];
    if !operation.custom {
        types.push(PROTOBUF);
    }
    if operation.action == Some("list") {
        types.push("application/json;stream=watch");
        if !operation.custom {
            types.push("application/vnd.kubernetes.protobuf;stream=watch");
        }
    }
    types
}
