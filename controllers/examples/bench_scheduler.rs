//! The scheduler's engine alone: how many pods a second it places in memory, without API, queue or binding.
//!
//! `cargo run --release -p skiff-controllers --example bench_scheduler [NODES [PODS]]`, or `hack/bench.sh engine`.

use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};
use skiff_controllers::scheduler::cache::{Cache, Placed};
use skiff_controllers::scheduler::company::Namespaces;
use skiff_controllers::scheduler::policy::Policy;
use skiff_controllers::scheduler::volumes::Wants;
use skiff_controllers::scheduler::{Context, choose};

fn node(number: usize) -> anyhow::Result<Arc<Node>> {
    let name = format!("node-{number}");
    let labels = json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("z{}", number % 3)});
    let has = json!({"cpu": "32", "memory": "256Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    Ok(Arc::new(serde_json::from_value(
        json!({"metadata": {"name": name, "labels": labels}, "status": {"allocatable": has}}),
    )?))
}

/// A pod as a ReplicaSet makes it; `more` is added to its spec.
fn pod(number: usize, set: usize, more: &Value) -> anyhow::Result<Arc<Pod>> {
    let mut v = json!({
        "metadata": {"name": format!("web-{set}-{number}"), "namespace": "default", "uid": format!("uid-{number}"),
            "labels": {"app": format!("web-{set}")}, "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet",
                "name": format!("web-{set}"), "uid": format!("5f0c1ab4-0000-0000-0000-{set:012}"), "controller": true}]},
        "spec": {"containers": [{"name": "web", "image": "registry.example/web:1",
            "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}]},
    });
    if let (Some(spec), Some(more)) = (v["spec"].as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    Ok(Arc::new(serde_json::from_value(v)?))
}

fn main() -> anyhow::Result<()> {
    let mut numbers = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let nodes = numbers.next().transpose()?.unwrap_or(1000);
    let pods = numbers.next().transpose()?.unwrap_or(10_000);
    let spread = json!({"topologySpreadConstraints": [{"maxSkew": 5, "topologyKey": "topology.kubernetes.io/zone",
        "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web-0"}}}]});
    let apart = json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web-0"}}}]}}});
    for (what, count, sets, more) in [
        ("pods of 10 ReplicaSets", pods, 10, json!({})),
        ("pods of one ReplicaSet", pods, 1, json!({})),
        ("the same, spread over zones by a hard constraint", pods / 10, 1, spread),
        ("the same, each on a node of its own", (pods / 10).min(nodes), 1, apart),
    ] {
        let mut cache = Cache::default();
        for n in 0..nodes {
            cache.set_node(node(n)?);
        }
        let waiting = (0..count).map(|n| pod(n, n % sets, &more)).collect::<anyhow::Result<Vec<_>>>()?;
        let (namespaces, wants) = (Namespaces::new(), Wants::default());
        let context = Context {
            namespaces: &namespaces,
            wants: &wants,
            policy: Policy::Default,
            last: "",
            usage: &Default::default(),
        };
        let begun = Instant::now();
        for pod in waiting {
            let placed = Placed::new(pod);
            let place = choose(&placed, &cache, &context).map_err(|_| anyhow::anyhow!("a pod fits nowhere"))?;
            cache.assume(placed, place.node.metadata.name.as_deref().unwrap_or_default());
        }
        let took = begun.elapsed();
        let most = cache.nodes().map(|(_, h)| h.pods.len()).max().unwrap_or(0);
        println!(
            "{count} {what} on {nodes} nodes: {:.0} pods/s, {:.0} us each; at most {most} on a node",
            count as f64 / took.as_secs_f64(),
            took.as_secs_f64() * 1e6 / count as f64
        );
    }
    Ok(())
}
