use super::*;

fn runtime(name: &str, attempt: i32, state: State, exit_code: i32) -> Container {
    let now = Timestamp::from_second(1_000).unwrap();
    Container {
        id: format!("{name}{attempt}"),
        labels: [(label::CONTAINER_NAME.to_string(), name.to_string()), (label::ATTEMPT.into(), attempt.to_string())]
            .into(),
        image: "img".into(),
        image_id: "sha256:0".into(),
        state,
        pid: None,
        created: Some(now),
        started: Some(now),
        finished: (state == State::Exited).then_some(now),
        exit_code,
        oom_killed: false,
        error: String::new(),
    }
}

struct Case {
    pod: Pod,
    containers: Vec<Container>,
    waiting: HashMap<String, Waiting>,
    stopping: bool,
}

fn case(spec: Value, containers: Vec<Container>) -> Case {
    let pod =
        serde_json::from_value(json!({"metadata": {"name": "p", "uid": "u", "generation": 3}, "spec": spec})).unwrap();
    Case { pod, containers, waiting: HashMap::new(), stopping: false }
}

fn status(case: &Case) -> PodStatus {
    let health = case
        .containers
        .iter()
        .filter(|c| c.state == State::Running)
        .map(|c| (c.id.clone(), Health { started: true, ready: true }))
        .collect();
    compute(&View {
        pod: &case.pod,
        containers: &case.containers,
        sandbox_ready: true,
        pod_ip: Some([10, 0, 0, 2].into()),
        host_ip: [192, 0, 2, 1].into(),
        waiting: &case.waiting,
        health: &health,
        messages: &HashMap::new(),
        verdict: None,
        stopping: case.stopping,
        now: Timestamp::from_second(2_000).unwrap(),
    })
}

fn condition<'a>(status: &'a PodStatus, name: &str) -> &'a PodCondition {
    status.conditions.iter().flatten().find(|c| c.type_ == name).unwrap()
}

#[test]
fn phases() {
    let two = |policy: &str| json!({"restartPolicy": policy, "containers": [{"name": "a"}, {"name": "b"}]});
    let init = |policy: &str| json!({"restartPolicy": policy, "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
    let sidecar = json!({"restartPolicy": "Never", "containers": [{"name": "a"}],
        "initContainers": [{"name": "i", "restartPolicy": "Always"}]});
    use State::{Exited, Running};
    for (spec, containers, wanted) in [
        (two("Always"), vec![], "Pending"),
        (two("Always"), vec![runtime("a", 0, Running, 0)], "Pending"),
        (two("Always"), vec![runtime("a", 0, Running, 0), runtime("b", 0, Exited, 1)], "Running"),
        (two("Always"), vec![runtime("a", 0, Exited, 0), runtime("b", 0, Exited, 1)], "Running"),
        (two("Never"), vec![runtime("a", 0, Exited, 0), runtime("b", 0, Exited, 0)], "Succeeded"),
        (two("Never"), vec![runtime("a", 0, Exited, 0), runtime("b", 0, Exited, 2)], "Failed"),
        (two("OnFailure"), vec![runtime("a", 0, Exited, 0), runtime("b", 0, Exited, 2)], "Running"),
        (two("OnFailure"), vec![runtime("a", 0, Exited, 0), runtime("b", 1, Exited, 0)], "Succeeded"),
        (init("Always"), vec![runtime("i", 0, Running, 0)], "Pending"),
        (init("Never"), vec![runtime("i", 0, Exited, 1)], "Failed"),
        (init("Always"), vec![runtime("i", 0, Exited, 1)], "Pending"),
        (init("Always"), vec![runtime("i", 0, Exited, 0), runtime("a", 0, Running, 0)], "Running"),
        (sidecar.clone(), vec![runtime("i", 0, Running, 0)], "Pending"),
        (sidecar.clone(), vec![runtime("i", 0, Running, 0), runtime("a", 0, Running, 0)], "Running"),
        (sidecar, vec![runtime("i", 0, Running, 0), runtime("a", 0, Exited, 0)], "Succeeded"),
    ] {
        let label = format!("{spec} {:?}", containers.iter().map(|c| (&c.id, c.state)).collect::<Vec<_>>());
        assert_eq!(status(&case(spec, containers)).phase.as_deref(), Some(wanted), "{label}");
    }
}

#[test]
fn a_crash_loop_shows_the_last_end() {
    let mut crashing = case(json!({"containers": [{"name": "a"}]}), vec![runtime("a", 2, State::Exited, 7)]);
    crashing.waiting.insert("a".into(), Waiting { reason: "CrashLoopBackOff".into(), message: "back-off".into() });
    let status = status(&crashing);
    let container = &status.container_statuses.as_ref().unwrap()[0];
    assert_eq!(container.restart_count, 2);
    let reason = container.state.as_ref().unwrap().waiting.as_ref().unwrap().reason.as_deref();
    assert_eq!(reason, Some("CrashLoopBackOff"));
    assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 7);
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(condition(&status, "Ready").reason.as_deref(), Some("ContainersNotReady"));
}

#[test]
fn readiness_gates_hold_the_pod_back() {
    let spec = json!({"containers": [{"name": "a"}], "readinessGates": [{"conditionType": "x/y"}]});
    let mut gated = case(spec, vec![runtime("a", 0, State::Running, 0)]);
    let first = status(&gated);
    assert_eq!(condition(&first, "ContainersReady").status, "True");
    assert_eq!(condition(&first, "Ready").reason.as_deref(), Some("ReadinessGatesNotReady"));
    gated.pod.status =
        serde_json::from_value(json!({"conditions": [{"type": "x/y", "status": "True"}], "phase": "Running"})).unwrap();
    let second = status(&gated);
    assert_eq!(condition(&second, "Ready").status, "True");
    assert_eq!(condition(&second, "x/y").status, "True", "conditions of others stay");
}

#[test]
fn a_status_computed_again_needs_no_patch() {
    let mut case = case(json!({"containers": [{"name": "a"}]}), vec![runtime("a", 0, State::Running, 0)]);
    let first = status(&case);
    let patch_one = patch(&case.pod, &PodStatus::default(), &first).unwrap();
    assert_eq!(patch_one["metadata"]["uid"], "u");
    case.pod.status = Some(first.clone());
    assert_eq!(patch(&case.pod, &first, &status(&case)), None);
}

#[test]
fn only_changed_conditions_are_sent() {
    let mut case = case(json!({"containers": [{"name": "a"}]}), vec![runtime("a", 0, State::Running, 0)]);
    let first = status(&case);
    case.pod.status = Some(first.clone());
    case.containers[0] = runtime("a", 0, State::Exited, 1);
    let change = patch(&case.pod, &first, &status(&case)).unwrap();
    let types: Vec<_> =
        change["status"]["conditions"].as_array().unwrap().iter().map(|c| c["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["Ready", "ContainersReady"]);
    assert!(change["status"].get("podIP").is_none());
}
