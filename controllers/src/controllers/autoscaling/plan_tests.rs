use super::*;
use serde_json::{Value, json};

const NOW: f64 = 100_000.0;

fn time(seconds: f64) -> String {
    k8s_openapi::jiff::Timestamp::from_second(seconds as i64).unwrap().to_string()
}

/// A pod: phase, seconds since its start, whether it is ready and for how long that is so.
fn pod_of(name: &str, phase: &str, age: f64, ready: bool, since: f64, request: Value) -> Arc<Pod> {
    let status = if ready { "True" } else { "False" };
    let pod = json!({"metadata": {"name": name},
        "spec": {"containers": [{"name": "c", "resources": {"requests": request}}]},
        "status": {"phase": phase, "startTime": time(NOW - age),
            "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": time(NOW - since)}]}});
    Arc::new(serde_json::from_value(pod).unwrap())
}

fn running(names: &[&str]) -> Vec<Arc<Pod>> {
    names.iter().map(|n| pod_of(n, "Running", 3600.0, true, 3500.0, json!({"cpu": "1"}))).collect()
}

fn samples(values: &[(&str, i64)]) -> Samples {
    values.iter().map(|(n, value)| ((*n).to_owned(), Sample { value: *value, at: NOW - 5.0, window: 15.0 })).collect()
}

fn ask(current: i32, pods: &[Arc<Pod>], values: &[(&str, i64)], percent: i32) -> Result<Proposal, String> {
    let target = Target::Utilization(percent, requests(pods, "cpu", None)?);
    of_pods(current, pods, samples(values), &target, Tolerance::new(None, None), true, NOW)
}

#[test]
fn one_ratio() {
    let pods = running(&["a", "b"]);
    let cases = [
        ([("a", 900), ("b", 900)], 30, 6, 90),
        ([("a", 300), ("b", 350)], 30, 2, 32),
        ([("a", 100), ("b", 0)], 50, 1, 5),
        ([("a", 0), ("b", 0)], 50, 0, 0),
    ];
    for (values, target, replicas, utilization) in cases {
        let p = ask(2, &pods, &values, target).unwrap();
        assert_eq!((p.replicas, p.utilization), (replicas, Some(utilization)), "{values:?} {target}");
    }
}

#[test]
fn pods_without_numbers_hold_a_change_back() {
    let pods = running(&["a", "b", "c"]);
    // Growth: the missing pod uses nothing. Alone the two would ask for six.
    assert_eq!(ask(3, &pods, &[("a", 1000), ("b", 1000)], 50).unwrap().replicas, 4);
    // Shrinking: the missing pod uses all it requests. Alone the two would ask for less than one.
    assert_eq!(ask(3, &pods, &[("a", 100), ("b", 100)], 50).unwrap().replicas, 3);
    assert_eq!(ask(3, &pods, &[("a", 0), ("b", 0)], 90).unwrap().replicas, 2);
}

#[test]
fn pods_that_start_count_for_nothing_before_anything_is_added() {
    let young = |ready, since| pod_of("b", "Running", 60.0, ready, since, json!({"cpu": "1"}));
    let old = running(&["a"]).remove(0);
    let values = [("a", 1000), ("b", 1000)];
    // Ready long before its numbers: it counts.
    let p = ask(2, &[Arc::clone(&old), young(true, 50.0)], &values, 50).unwrap();
    assert_eq!(p.replicas, 4);
    for starting in
        [young(false, 50.0), young(true, 10.0), pod_of("b", "Pending", 5.0, false, 5.0, json!({"cpu": "1"}))]
    {
        let p = ask(2, &[Arc::clone(&old), starting], &values, 50).unwrap();
        assert_eq!((p.replicas, p.utilization), (2, Some(100)), "half of them at full use is what is aimed at");
    }
}

#[test]
fn what_cannot_be_told() {
    let pods = running(&["a"]);
    let text = |r: Result<Proposal, String>| r.unwrap_err();
    assert_eq!(text(ask(1, &[], &[], 50)), "no pods returned by selector while calculating replica count");
    assert_eq!(text(ask(1, &pods, &[], 50)), "did not receive metrics for any ready pods");
    assert_eq!(text(ask(1, &pods, &[("other", 1)], 50)), "no metrics returned matched known pods");
    let bare = [pod_of("a", "Running", 3600.0, true, 3500.0, json!({}))];
    assert_eq!(text(ask(1, &bare, &[("a", 1)], 50)), "missing request for cpu in container c of Pod a");
}

#[test]
fn numbers_about_something_else() {
    let (t, pods) = (Tolerance::new(None, None), running(&["a", "b", "c"]));
    assert_eq!(of_value(3, &pods, 2000, 1000, t).unwrap().replicas, 6);
    assert_eq!(of_value(3, &pods, 1050, 1000, t).unwrap().replicas, 3);
    assert_eq!(of_value(0, &[], 2500, 1000, t).unwrap().replicas, 3);
    assert!(of_value(3, &[], 2000, 1000, t).is_err());
    let p = of_share(3, 10_000, 1000, t);
    assert_eq!((p.replicas, p.value), (10, 3334));
    assert_eq!(of_share(3, 3100, 1000, t).replicas, 3);
}
