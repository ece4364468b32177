//! definitions.json is what the types say. `SKIFF_UPDATE=1 cargo test -p skiff-workflow --test definitions_json` writes it anew.

use kube::CustomResourceExt as _;
use skiff_workflow::api::{
    Workflow, WorkflowActivity, WorkflowHistory, WorkflowLog, WorkflowMapRun, WorkflowPayload, WorkflowRun,
    WorkflowSignal, WorkflowVersion,
};

#[test]
fn definitions_are_what_the_types_say() {
    let all = [
        Workflow::crd(),
        WorkflowVersion::crd(),
        WorkflowRun::crd(),
        WorkflowMapRun::crd(),
        WorkflowHistory::crd(),
        WorkflowLog::crd(),
        WorkflowPayload::crd(),
        WorkflowActivity::crd(),
        WorkflowSignal::crd(),
    ];
    let made = serde_json::to_string_pretty(&all).unwrap() + "\n";
    if std::env::var_os("SKIFF_UPDATE").is_some_and(|v| v == "1") {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/definitions.json"), &made).unwrap();
        return;
    }
    assert!(made == include_str!("../definitions.json"), "run this with SKIFF_UPDATE=1");
}
