//! What a definition calls that has to be there: functions, workflows, activities. It may come later, so what is missing is a
//! warning, never a fault.

use kube::{Api, Client};
use serde_json::Value;
use skiff_asl::{Definition, Fault};
use skiff_faas::api::Function;

use crate::api::{Workflow, WorkflowActivity};
use crate::arn;
use crate::endpoint::arn::object_name;
use crate::resource::{Resource, Target};

/// What a definition calls that the namespace has not, as warnings with their places.
///
/// # Errors
/// When the API does not answer, or the client may not ask.
pub(crate) async fn missing(
    client: &Client,
    namespace: &str,
    definition: &Definition,
) -> Result<Vec<Fault>, kube::Error> {
    let mut faults = vec![];
    for (path, kind, name) in needs(definition) {
        let (client, namespace) = (client.clone(), namespace);
        let there = match kind {
            "function" => Api::<Function>::namespaced(client, namespace).get_metadata_opt(&name).await?.is_some(),
            "workflow" => Api::<Workflow>::namespaced(client, namespace).get_metadata_opt(&name).await?.is_some(),
            _ => Api::<WorkflowActivity>::namespaced(client, namespace).get_metadata_opt(&name).await?.is_some(),
        };
        if !there {
            let why = format!("there is no {kind} {name} in {namespace}");
            faults.push(Fault::warning("MISSING_RESOURCE", path, why));
        }
    }
    Ok(faults)
}

/// Functions, workflows and activities that a definition names, with their places.
fn needs(definition: &Definition) -> Vec<(String, &'static str, String)> {
    let mut needs = vec![];
    for (path, resource) in definition.resources() {
        let at = |pointer: &str| definition.raw.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let state = path.trim_end_matches("/Resource");
        let parameter = |name: &str| {
            ["Parameters", "Arguments"].iter().find_map(|p| {
                let pointer = format!("{state}/{p}/{name}");
                at(&pointer).filter(|v| !v.starts_with("{%")).map(|v| (pointer, v))
            })
        };
        match Resource::parse(resource).map(|r| r.target) {
            Ok(Target::Function { name, .. }) => needs.push((path, "function", name)),
            Ok(Target::Workflow { name }) => needs.push((path, "workflow", name)),
            Ok(Target::Activity { name }) => needs.push((path, "activity", object_name(&name))),
            Ok(Target::Invoke) => {
                if let Some((pointer, name)) = parameter("FunctionName") {
                    let parts: Vec<&str> = name.split(':').collect();
                    let name =
                        if let ["arn", _, "lambda", _, _, "function", name, ..] = parts[..] { name } else { parts[0] };
                    needs.push((pointer, "function", name.to_owned()));
                }
            }
            Ok(Target::StartExecution { .. }) => {
                if let Some((pointer, name)) = parameter("StateMachineArn") {
                    let name = arn::name(&name).split(':').next().unwrap_or_default();
                    needs.push((pointer, "workflow", object_name(name)));
                }
            }
            _ => {}
        }
    }
    needs
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_called_is_known() {
        let state = |resource: &str, parameters: Value| {
            let whole = json!({"StartAt": "A/B", "States": {"A/B": {"Type": "Task", "Resource": resource, "End": true, "Parameters": parameters}}});
            needs(&Definition::parse(&whole).unwrap())
        };
        for (resource, parameters, kind, name) in [
            ("skiff:function:f", json!({}), "function", "f"),
            ("arn:aws:lambda:r:1:function:f:3", json!({}), "function", "f"),
            ("arn:aws:states:::lambda:invoke", json!({"FunctionName": "f"}), "function", "f"),
            (
                "arn:aws:states:::lambda:invoke.waitForTaskToken",
                json!({"FunctionName": "arn:aws:lambda:r:1:function:f", "Payload": {"t.$": "$$.Task.Token"}}),
                "function",
                "f",
            ),
            (
                "arn:aws:states:::states:startExecution",
                json!({"StateMachineArn": "arn:aws:states:r:1:stateMachine:w"}),
                "workflow",
                "w",
            ),
            ("arn:aws:states:r:1:activity:a", json!({}), "activity", "a"),
        ] {
            let found = state(resource, parameters);
            assert_eq!((found[0].1, found[0].2.as_str()), (kind, name), "{resource}");
            assert!(found[0].0.starts_with("/States/A~1B/"), "{}", found[0].0);
        }
        assert!(state("arn:aws:states:::lambda:invoke", json!({"FunctionName.$": "$.f"})).is_empty());
    }
}
