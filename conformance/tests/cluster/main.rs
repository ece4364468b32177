//! The real kubectl against a real `skiff up` with a real engine.
//!
//! One cluster is started for all cases (a node's bridge, rules and ports are the machine's), and one whose components are
//! processes of their own; each case has a namespace of
//! its own and removes it. Needs root, an engine that answers, kubectl, and the image of hack/images.sh: hack/test.sh sees
//! to them. Without them the run says what is missing and fails, unless `SKIFF_SKIP_CLUSTER=1` says that this is meant.
//!
//!     hack/test.sh cluster [CASE ...]      or      cargo test -p skiff-conformance --test cluster [-- CASE ...]

mod cases;
mod cluster;
mod page;

use std::process::ExitCode;

use cluster::Cluster;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if std::env::var_os("SKIFF_SKIP_CLUSTER").is_some_and(|v| v == "1") {
        println!("skipped: SKIFF_SKIP_CLUSTER=1");
        println!("0 passed, 0 failed, {} skipped", cases::ALL.len() + cases::APART.len());
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut failed) = (0, 0);
    for (start, all) in [(Cluster::start as fn() -> _, cases::ALL), (Cluster::start_apart, cases::APART)] {
        let chosen: Vec<_> = all.iter().filter(|(n, _)| wanted.is_empty() || wanted.iter().any(|w| w == n)).collect();
        if chosen.is_empty() {
            continue;
        }
        let mut cluster = match start() {
            Ok(c) => c,
            Err(e) => {
                println!("FAIL cannot start a cluster: {e:#}");
                failed += 1;
                continue;
            }
        };
        let failed_before = failed;
        for (name, case) in chosen {
            match play(&mut cluster, name, *case) {
                Ok(seconds) => {
                    passed += 1;
                    println!("ok   {name} ({seconds:.1} s)");
                }
                Err(e) => {
                    failed += 1;
                    println!("FAIL {name}: {e:#}");
                }
            }
        }
        if failed > failed_before {
            cluster.show_log();
        }
        cluster.stop();
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Plays one case in a namespace of its own; answers how long it took.
fn play(cluster: &mut Cluster, name: &str, case: cases::Case) -> anyhow::Result<f64> {
    let begun = std::time::Instant::now();
    let ns = format!("t-{}", name.replace('_', "-"));
    let result = cluster.namespace(&ns).and_then(|()| case(cluster, &ns));
    cluster.forget(&ns);
    result.map(|()| begun.elapsed().as_secs_f64())
}
