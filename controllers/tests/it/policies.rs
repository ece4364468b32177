use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyStatus};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually};

fn policy(name: &str, group: &str, resource: &str, expression: &str) -> ValidatingAdmissionPolicy {
    let rule = json!({"apiGroups": [group], "apiVersions": ["v1"], "resources": [resource], "operations": ["CREATE"]});
    let object = json!({"metadata": {"name": name}, "spec": {"matchConstraints": {"resourceRules": [rule]},
        "validations": [{"expression": expression}]}});
    serde_json::from_value(object).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_checked_against_the_kinds_they_are_about() {
    let c = Cluster::start().await;
    let definition: Value = json!({"metadata": {"name": "things.e.com"}, "spec": {"group": "e.com", "scope": "Namespaced",
        "names": {"plural": "things", "kind": "Thing"}, "versions": [{"name": "v1", "served": true, "storage": true,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object",
                "properties": {"size": {"type": "integer"}}}}}}}]}});
    let definitions = c.all::<CustomResourceDefinition>();
    definitions.create(&PostParams::default(), &serde_json::from_value(definition).unwrap()).await.unwrap();
    let api = c.all::<ValidatingAdmissionPolicy>();
    let cases = [
        ("fine", "apps", "deployments", "object.spec.replicas > 1", None),
        ("doubtful", "apps", "deployments", "object.spec.replicas > '1'", Some("apps/v1, Kind=Deployment: ERROR: ")),
        ("custom", "e.com", "things", "object.spec.sise > 1", Some("e.com/v1, Kind=Thing: ERROR: ")),
        ("unknown", "none.com", "things", "object.spec.sise > 1", None),
    ];
    for (name, group, resource, expression, _) in cases {
        let policy = policy(name, group, resource, expression);
        api.create(&PostParams::default(), &policy).await.unwrap();
    }
    for (name, _, _, _, want) in cases {
        let checked = eventually(name, || async {
            let status: ValidatingAdmissionPolicyStatus = api.get(name).await.unwrap().status?;
            (status.observed_generation == Some(1)).then_some(status.type_checking).flatten()
        })
        .await;
        let told = checked.expression_warnings.unwrap_or_default();
        assert_eq!(told.len(), usize::from(want.is_some()), "{name}: {told:?}");
        if let (Some(want), Some(told)) = (want, told.first()) {
            assert!(told.warning.starts_with(want) && told.field_ref == "spec.validations[0].expression", "{told:?}");
        }
    }
}
