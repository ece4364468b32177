//! definitions.json is what the types say. `SKIFF_UPDATE=1 cargo test -p skiff-hpc --test definitions_json` writes it anew.

use kube::CustomResourceExt as _;
use skiff_hpc::api::{GpuJob, HpcCluster, SlurmPartition};

#[test]
fn definitions_are_what_the_types_say() {
    let all = [HpcCluster::crd(), SlurmPartition::crd(), GpuJob::crd()];
    let made = serde_json::to_string_pretty(&all).unwrap() + "\n";
    if std::env::var_os("SKIFF_UPDATE").is_some_and(|v| v == "1") {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/definitions.json"), &made).unwrap();
        return;
    }
    assert!(made == include_str!("../definitions.json"), "run this with SKIFF_UPDATE=1");
}
