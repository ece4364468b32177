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
    fn what_is_called_is_known_with_its_place() {
        let task = |resource: &str, parameters: Value, next: &str| json!({"Type": "Task", "Resource": resource, "Parameters": parameters, "Next": next});
        let definition = Definition::parse(&json!({"StartAt": "A", "States": {
            "A": task("skiff:function:f", json!({}), "B"),
            "B": task("arn:aws:states:::lambda:invoke", json!({"FunctionName": "arn:aws:lambda:r:1:function:g:PROD"}), "C"),
            "C": task("arn:aws:states:::states:startExecution", json!({"StateMachineArn": "w:3"}), "D"),
            "D": task("skiff:activity:a", json!({}), "E"),
            "E": task("skiff:http", json!({"ApiEndpoint": "http://h/"}), "F"),
            "F": {"Type": "Succeed"}}}))
        .unwrap();
        let want = [
            ("/States/A/Resource", "function", "f"),
            ("/States/B/Parameters/FunctionName", "function", "g"),
            ("/States/C/Parameters/StateMachineArn", "workflow", "w"),
            ("/States/D/Resource", "activity", "a"),
        ];
        let found = needs(&definition);
        let found: Vec<_> = found.iter().map(|(p, k, n)| (p.as_str(), *k, n.as_str())).collect();
        assert_eq!(found, want);
    }
}
