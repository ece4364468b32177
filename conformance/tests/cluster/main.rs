//! The real kubectl against a real `skiff up` with a real engine.
//!
//! One cluster is started for all cases (a node's bridge, rules and ports are the machine's), each case has a namespace of
//! its own and removes it. Needs root, an engine that answers, kubectl, and the image of hack/images.sh: hack/test.sh sees
//! to them. Without them the run says what is missing and fails, unless `SKIFF_SKIP_CLUSTER=1` says that this is meant.
//!
//!     hack/test.sh cluster [CASE ...]      or      cargo test -p skiff-conformance --test cluster [-- CASE ...]

mod cases;
mod cluster;

use std::process::ExitCode;

use cluster::Cluster;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if std::env::var_os("SKIFF_SKIP_CLUSTER").is_some_and(|v| v == "1") {
        println!("skipped: SKIFF_SKIP_CLUSTER=1");
        println!("0 passed, 0 failed, {} skipped", cases::ALL.len());
        return ExitCode::SUCCESS;
    }
    let mut cluster = match Cluster::start() {
        Ok(c) => c,
        Err(e) => {
            println!("FAIL cannot start a cluster: {e:#}");
            println!("0 passed, 1 failed");
            return ExitCode::FAILURE;
        }
    };
    let (mut passed, mut failed) = (0, 0);
    for (name, case) in cases::ALL {
        if !wanted.is_empty() && !wanted.iter().any(|w| w == name) {
            continue;
        }
        let begun = std::time::Instant::now();
        let ns = format!("t-{}", name.replace('_', "-"));
        let result = cluster.namespace(&ns).and_then(|()| case(&mut cluster, &ns));
        cluster.forget(&ns);
        match result {
            Ok(()) => {
                passed += 1;
                println!("ok   {name} ({:.1} s)", begun.elapsed().as_secs_f64());
            }
            Err(e) => {
                failed += 1;
                println!("FAIL {name}: {e:#}");
            }
        }
    }
    if failed > 0 {
        cluster.show_log();
    }
    cluster.stop();
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
