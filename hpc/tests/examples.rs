//! The templates of the SJTU documentation, as examples: the scripts that Slurm gets of them are kept in
//! docs/examples/hpc/scripts and written anew by `SKIFF_UPDATE=1`; ratios that its queues do not have are refused.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use serde_json::json;
use skiff_hpc::admission::{Judgment, judge};
use skiff_hpc::api::{GpuJob, GpuJobSpec, HpcClusterSpec};
use skiff_hpc::script::{Plan, script};

fn examples() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/hpc"))
}

/// The queues as their documentation has them: cores for each GPU, fewest and most GPUs.
fn cluster() -> HpcClusterSpec {
    serde_json::from_value(json!({"workDirectory": "/lustre/home/acct/me/skiff", "partitions": [
        {"name": "dgx2", "cpusPerGpu": 6, "minGpus": 1, "gpus": 128, "memoryPerCpuMib": 15 * 1024},
        {"name": "a100", "cpusPerGpu": 16, "minGpus": 1, "gpus": 92, "memoryPerCpuMib": 8 * 1024},
    ]}))
    .unwrap()
}

#[test]
fn templates_become_these_scripts() {
    let update = std::env::var_os("SKIFF_UPDATE").is_some_and(|v| v == "1");
    for name in ["one-gpu", "several-gpus", "several-nodes"] {
        let job: GpuJob =
            serde_saphyr::from_str(&std::fs::read_to_string(examples().join(format!("{name}.yaml"))).unwrap()).unwrap();
        assert_eq!(judge(&job.spec, &cluster(), &Default::default()), Judgment::Fits, "{name}");
        let directory = format!("/lustre/home/acct/me/skiff/default/{name}-0f6a2c1e-7d3b");
        let made = script(&Plan {
            spec: &job.spec,
            cluster: &cluster(),
            name: "skiff-0f6a2c1e-7d3b-4c55-9a3e-b1de5a7f1c20-1",
            object: &format!("default/{name}"),
            directory: Some(&directory),
            attempt: 1,
            dependencies: &[],
            secrets: false,
        })
        .unwrap();
        let kept = examples().join(format!("scripts/{name}.sh"));
        if update {
            std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
            std::fs::write(&kept, &made.text).unwrap();
        }
        assert_eq!(made.text, std::fs::read_to_string(&kept).unwrap_or_default(), "{name}: see the head of this file");
    }
}

#[test]
fn impossible_ratios_are_refused() {
    let bad = [
        (json!({"partition": "dgx2", "cpusPerTask": 7, "gpus": [{"count": 1}]}), "cores"),
        (json!({"partition": "dgx2", "cpusPerTask": 6}), "GPU"),
        (
            json!({"partition": "dgx2", "nodes": 9, "tasksPerNode": 16, "cpusPerTask": 6, "gpus": [{"count": 16}]}),
            "GPU",
        ),
        (json!({"partition": "a100", "tasksPerNode": 2, "cpusPerTask": 16, "gpus": [{"count": 1}]}), "cores"),
        (json!({"partition": "a100", "cpusPerTask": 16, "gpus": [{"count": 1}], "memoryPerCpu": "9G"}), "MiB"),
        (
            json!({"partition": "a100", "nodes": 24, "tasksPerNode": 4, "cpusPerTask": 16, "gpus": [{"count": 4}]}),
            "GPU",
        ),
    ];
    for (resources, word) in bad {
        let spec: GpuJobSpec =
            serde_json::from_value(json!({"run": {"command": ["x"]}, "resources": resources})).unwrap();
        match judge(&spec, &cluster(), &Default::default()) {
            Judgment::Refused(why) => assert!(why.contains(word), "{resources}: {why}"),
            other => panic!("{resources}: {other:?}"),
        }
    }
}
