//! kubectl against a real `skiff up` and a real Slurm of hack/slurm.sh, by local commands, SSH and slurmrestd; and against the
//! fake Slurm where answers must be lost.
//!
//! Slurm is installed and started by that script, in a directory of its own, and removed in the end. Needs root, an engine, kubectl,
//! a C++ compiler and make.
//!
//! `SKIFF_LATER=hpc` leaves it for a later command, beside another suite that mostly waits.
//!
//!     hack/test.sh hpc [CASE ...]      or      cargo test -p skiff-conformance --test hpc [-- CASE ...]

#[path = "../cluster/cluster.rs"]
#[allow(dead_code)]
mod cluster;
#[path = "../cluster/page.rs"]
mod page;

mod alone;
mod cases;
mod rig;
mod volumes;

use std::process::ExitCode;

use anyhow::Result;

use cluster::Cluster;
use rig::Rig;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if std::env::var("SKIFF_LATER").is_ok_and(|all| all.split(',').any(|suite| suite == "hpc")) {
        println!("left for later: SKIFF_LATER names it");
        return ExitCode::SUCCESS;
    }
    if std::env::var_os("SKIFF_SKIP_CLUSTER").is_some_and(|v| v == "1") {
        println!("skipped: SKIFF_SKIP_CLUSTER=1");
        println!("0 passed, 0 failed, {} skipped", cases::ALL.len());
        return ExitCode::SUCCESS;
    }
    match run(&wanted) {
        Ok((passed, failed)) => {
            println!("{passed} passed, {failed} failed");
            if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(e) => {
            println!("FAIL cannot start: {e:#}");
            println!("0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

fn run(wanted: &[String]) -> Result<(usize, usize)> {
    let mut rig = Rig::start()?;
    let mut cluster = Cluster::start()?;
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in cases::ALL.iter().filter(|(n, _)| wanted.is_empty() || wanted.iter().any(|w| w == n)) {
        let begun = std::time::Instant::now();
        let ns = format!("t-{}", name.replace('_', "-"));
        let result = cluster.namespace(&ns).and_then(|()| case(&mut cluster, &mut rig, &ns));
        let seconds = begun.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                passed += 1;
                println!("ok   {name} ({seconds:.1} s)");
            }
            Err(e) => {
                failed += 1;
                println!("FAIL {name} ({seconds:.1} s): {e:#}");
                let jobs = cluster.kubectl(&["get", "gpujobs,hpcclusters", "-A", "-o", "wide"]);
                println!("{}\n{}", jobs.map(|o| o.out).unwrap_or_default(), rig.queue());
            }
        }
        cluster.forget(&ns);
    }
    if failed > 0 {
        cluster.show_log();
    }
    cluster.stop();
    rig.stop()?;
    Ok((passed, failed))
}
