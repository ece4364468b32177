//! Several nodes: `skiff up`, `skiff join`, and the network between them, on hack/testbed.sh.
//!
//! Each node is a network namespace with an engine and a skiff of its own; the tests pull cables, kill agents and look at
//! what kubectl and pods see. One bed of three nodes with plain routes for all cases, then one of two nodes with VXLAN for
//! the network alone, and one whose first node has CNI plugins (Debian's containernetworking-plugins). Needs what
//! tests/cluster needs. `SKIFF_SKIP_CLUSTER=1` skips both, `SKIFF_LATER=nodes` leaves them for a later command.
//!
//!     hack/test.sh nodes [CASE ...]      or      cargo test -p skiff-conformance --test nodes [-- CASE ...]

mod bed;
mod cases;
mod faults;
mod functions;
mod outside;
mod plugins;

use std::process::ExitCode;

use bed::Bed;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if std::env::var("SKIFF_LATER").is_ok_and(|all| all.split(',').any(|suite| suite == "nodes")) {
        println!("left for later: SKIFF_LATER names it");
        return ExitCode::SUCCESS;
    }
    if std::env::var_os("SKIFF_SKIP_CLUSTER").is_some_and(|v| v == "1") {
        println!("skipped: SKIFF_SKIP_CLUSTER=1");
        return ExitCode::SUCCESS;
    }
    let (mut passed, mut failed) = (0, 0);
    let beds = [(3, "auto", false, cases::ALL), (2, "vxlan", false, cases::TUNNEL), (2, "auto", true, plugins::ALL)];
    for (nodes, network, plugins, all) in beds {
        let chosen: Vec<_> = all.iter().filter(|(n, _)| wanted.is_empty() || wanted.iter().any(|w| w == n)).collect();
        if chosen.is_empty() {
            continue;
        }
        let bed = match Bed::up(nodes, network, plugins) {
            Ok(bed) => bed,
            Err(e) => {
                println!("FAIL cannot start {nodes} nodes: {e:#}");
                failed += 1;
                continue;
            }
        };
        for (name, case) in chosen {
            let begun = std::time::Instant::now();
            match case(&bed) {
                Ok(()) => {
                    passed += 1;
                    println!("ok   {name} ({:.1} s)", begun.elapsed().as_secs_f64());
                }
                Err(e) => {
                    failed += 1;
                    println!("FAIL {name}: {e:#}");
                    bed.show_logs();
                }
            }
        }
    }
    println!("{passed} passed, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
