use super::*;
use serde_json::json;

fn service(extra: serde_json::Value) -> Service {
    let mut v = json!({"metadata": {"name": "s", "namespace": "x", "uid": "s"},
        "spec": {"selector": {"app": "a"}, "ports": [{"name": "web", "port": 80, "targetPort": "http"}]}});
    for (k, x) in extra.as_object().unwrap() {
        v["spec"][k] = x.clone();
    }
    serde_json::from_value(v).unwrap()
}

fn pod(n: usize, port: i32, ready: bool) -> Arc<Pod> {
    let v = json!({"metadata": {"name": format!("p{n}"), "namespace": "x", "uid": format!("p{n}"), "labels": {"app": "a"}},
        "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {"phase": "Running", "podIP": format!("10.0.{}.{}", n / 200, n % 200), "conditions": [
            {"type": "Ready", "status": if ready {"True"} else {"False"}}]}});
    Arc::new(serde_json::from_value(v).unwrap())
}

fn zone(_: &str) -> Option<String> {
    Some("z".into())
}

fn written(plan: Plan) -> Vec<Arc<EndpointSlice>> {
    let all = plan.create.into_iter().chain(plan.update).enumerate();
    all.map(|(i, mut s)| {
        s.metadata.name.get_or_insert_with(|| format!("s-{i}"));
        Arc::new(s)
    })
    .collect()
}

#[test]
fn slices_hold_a_hundred_and_are_stable() {
    let s = service(json!({}));
    let pods: Vec<Arc<Pod>> = (0..250).map(|n| pod(n, 8080, true)).collect();
    let slices = written(plan(&s, &pods, &[], &zone));
    let sizes: Vec<usize> = slices.iter().map(|s| s.endpoints.as_ref().unwrap().len()).collect();
    assert_eq!(sizes, [100, 100, 50]);
    let again = plan(&s, &pods, &slices, &zone);
    assert!(again.create.is_empty() && again.update.is_empty() && again.delete.is_empty(), "{again:?}");
    // One pod goes: one slice changes.
    let fewer = plan(&s, &pods[1..], &slices, &zone);
    assert_eq!((fewer.create.len(), fewer.update.len(), fewer.delete.len()), (0, 1, 0));
    // All go: one empty slice stays, the others go.
    let none = plan(&s, &[], &slices, &zone);
    assert_eq!((none.create.len(), none.delete.len()), (1, 3));
}

#[test]
fn conditions_and_ports() {
    let leaving = {
        let mut p = Pod::clone(&pod(2, 8080, true));
        p.metadata.deletion_timestamp = Some(crate::runtime::now());
        Arc::new(p)
    };
    let pods = [pod(0, 8080, true), pod(1, 9090, false), leaving];
    let slices = written(plan(&service(json!({})), &pods, &[], &zone));
    let mut seen: Vec<(i32, String, Vec<Option<bool>>)> = slices
        .iter()
        .flat_map(|s| {
            let port = s.ports.as_ref().unwrap()[0].port.unwrap();
            s.endpoints.iter().flatten().map(move |e| {
                let c = e.conditions.clone().unwrap();
                (port, e.target_ref.clone().unwrap().name.unwrap(), vec![c.ready, c.serving, c.terminating])
            })
        })
        .collect();
    seen.sort();
    let flags = |a, b, c| vec![Some(a), Some(b), Some(c)];
    assert_eq!(
        seen,
        [
            (8080, "p0".to_owned(), flags(true, true, false)),
            (8080, "p2".to_owned(), flags(false, true, true)),
            (9090, "p1".to_owned(), flags(false, false, false)),
        ]
    );
    let published = service(json!({"publishNotReadyAddresses": true, "clusterIP": "None"}));
    let slices = written(plan(&published, &pods, &[], &zone));
    assert!(
        slices
            .iter()
            .flat_map(|s| s.endpoints.iter().flatten())
            .all(|e| e.conditions.as_ref().unwrap().ready == Some(true))
    );
    assert!(slices.iter().all(|s| s.labels().contains_key(HEADLESS)));
    let (old, over) = subsets(&service(json!({})), &pods);
    assert!(!over);
    let counts: Vec<(usize, usize)> = old
        .iter()
        .map(|s| (s.addresses.as_ref().map_or(0, Vec::len), s.not_ready_addresses.as_ref().map_or(0, Vec::len)))
        .collect();
    assert_eq!(counts, [(1, 0), (0, 1)]);
}
