//! What people do with a cluster, one case each.

mod apart;
mod autoscaling;
mod basic;
mod change;
mod claims;
mod daily;
mod faults;
mod functions;
mod functions_apart;
mod functions_faults;
mod helm;
mod ingress;
mod monitoring;
mod policies;
mod predecessors;
mod probes;
mod projected;
mod ranges;
mod terminal;
mod volumes;
mod workflows;
mod workflows_apart;
mod workflows_aws;
mod workflows_killed;
mod workloads;

use anyhow::{Result, ensure};

use crate::cluster::Cluster;

/// A case: a cluster and the namespace that is its own.
pub(crate) type Case = fn(&mut Cluster, &str) -> Result<()>;

/// All cases by name. Each has a namespace of its own.
pub(crate) const ALL: &[(&str, Case)] = &[
    ("web_example", basic::web_example),
    ("streams", basic::streams),
    ("rollout", basic::rollout),
    ("bad_manifests", basic::bad_manifests),
    ("server_side_apply", basic::server_side_apply),
    ("names_and_services", basic::names_and_services),
    ("self_healing", basic::self_healing),
    ("daily", daily::daily),
    ("edit_and_diff", daily::edit_and_diff),
    ("events", daily::events),
    ("identities", daily::identities),
    ("explain", daily::explain),
    ("every_version", daily::every_version),
    ("terminal", terminal::terminal),
    ("run_and_remove", terminal::run_and_remove),
    ("volumes", volumes::volumes),
    ("environment", volumes::environment),
    ("life_cycle", volumes::life_cycle),
    ("limits", volumes::limits),
    ("trust", projected::trust),
    ("pod_certificates", projected::certificates),
    ("image_volumes", projected::images),
    ("claims", claims::claims),
    ("volumes_by_hand", claims::volumes_by_hand),
    ("stateful_data", claims::stateful_data),
    ("placement_policy", claims::placement_policy),
    ("change", change::change),
    ("grpc", probes::grpc),
    ("ranges", ranges::ranges),
    ("ingress", ingress::ingress),
    ("load_balancer", ingress::load_balancer),
    ("autoscaling", autoscaling::autoscaling),
    ("policies", policies::policies),
    ("monitoring", monitoring::monitoring),
    ("predecessors", predecessors::predecessors),
    ("workflows", workflows::workflows),
    ("workflows_aws", workflows_aws::workflows_aws),
    ("workflows_killed", workflows_killed::workflows_killed),
    ("helm", helm::helm),
    ("functions", functions::functions),
    ("functions_of_files", functions::functions_of_files),
    ("functions_by_triggers", functions::functions_by_triggers),
    ("functions_at_fault", functions_faults::functions_at_fault),
    ("functions_killed", functions_apart::functions_killed),
    ("jobs", workloads::jobs),
    ("job_and_crash", workloads::job_and_crash),
    ("sets", workloads::sets),
    ("drain", workloads::drain),
    ("quota", workloads::quota),
    ("crash", basic::crash),
    ("crash_while_busy", faults::crash_while_busy),
    ("pressure", faults::pressure),
    ("engine_restart", faults::engine_restart),
];

/// Cases for components that run as processes of their own.
pub(crate) const APART: &[(&str, Case)] = &[
    ("functions_apart", functions_apart::functions_apart),
    ("workflows_apart", workflows_apart::workflows_apart),
    ("apart", apart::apart),
];

fn pod(name: &str, command: &str) -> String {
    format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","labels":{{"app":"{name}"}}}},"spec":{{"terminationGracePeriodSeconds":1,
        "containers":[{{"name":"c","image":"skiff/busybox:1","command":["sh","-c","{command}"]}}]}}}}"#
    )
}

pub(crate) fn start(c: &Cluster, ns: &str, name: &str, command: &str) -> Result<()> {
    let o = c.apply(&["-n", ns, "apply"], &pod(name, command))?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["-n", ns, "wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"])?;
    Ok(())
}
