use super::*;
use proptest::prelude::*;
use serde_json::json;

fn deployment(replicas: i32, strategy: serde_json::Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "d", "uid": "d"},
        "spec": {"replicas": replicas, "selector": {}, "template": {}, "strategy": strategy},
    }))
    .unwrap()
}

fn rolling_by(surge: &serde_json::Value, unavailable: &serde_json::Value) -> serde_json::Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

fn set(name: &str, wanted: i32, available: i32) -> Arc<ReplicaSet> {
    set_of(name, wanted, available, &json!({}))
}

fn set_of(name: &str, wanted: i32, available: i32, annotations: &serde_json::Value) -> Arc<ReplicaSet> {
    let age = name.bytes().next().unwrap() - b'a' + 1;
    let v = json!({
        "metadata": {"name": name, "annotations": annotations, "creationTimestamp": format!("2026-01-{age:02}T00:00:00Z")},
        "spec": {"replicas": wanted, "selector": {}},
        "status": {"replicas": wanted, "availableReplicas": available, "readyReplicas": available},
    });
    Arc::new(serde_json::from_value(v).unwrap())
}

#[test]
fn percents_round_as_upstream() {
    for (n, surge, unavailable, want) in [
        (10, json!("25%"), json!("25%"), (3, 2)),
        (1, json!("25%"), json!("25%"), (1, 0)),
        (4, json!(0), json!("10%"), (0, 1)),
        (0, json!("25%"), json!("25%"), (0, 1)),
        (3, json!(2), json!(1), (2, 1)),
    ] {
        assert_eq!(bounds(&deployment(n, rolling_by(&surge, &unavailable))), want, "{n} {surge} {unavailable}");
    }
    assert_eq!(bounds(&deployment(10, json!(null))), (3, 2), "25% when nothing is said");
    assert_eq!(bounds(&deployment(10, json!({"type": "Recreate"}))), (0, 0));
}

#[test]
fn growth_of_the_new_set() {
    // wanted, surge, old, new, result: upstream's table of cases.
    for (n, surge, old, new, want) in
        [(10, 0, 0, 0, 10), (10, 2, 0, 10, 10), (10, 2, 5, 0, 7), (10, 2, 10, 2, 2), (10, 5, 5, 5, 10)]
    {
        let d = deployment(n, rolling_by(&json!(surge), &json!(1)));
        let (o, w) = (set("a", old, old), set("b", new, new));
        assert_eq!(new_set_size(&d, &[o, Arc::clone(&w)], &w), want, "{n} {surge} {old} {new}");
    }
}

#[test]
fn unhealthy_old_pods_go_first() {
    let d = deployment(10, rolling_by(&json!(3), &json!(2)));
    let (a, b, new) = (set("a", 5, 5), set("b", 5, 0), set("c", 3, 0));
    let all = [Arc::clone(&a), Arc::clone(&b), Arc::clone(&new)];
    let cut = shrink_old(&d, &all, &[a, b], &new);
    // 13 pods, 8 must be available, 3 new ones are not yet: 2 may go, and both are unhealthy.
    assert_eq!(cut.iter().map(|(r, n)| (r.name_any(), *n)).collect::<Vec<_>>(), [("b".to_owned(), 3)]);
}

#[test]
fn scaling_in_the_middle_is_proportional() {
    let annotated = |max: i32| json!({DESIRED: "10", MAX: max.to_string()});
    // Upstream's example: 10 wanted, surge 3 of which 8 old and 5 new; then 15 are wanted.
    let d = deployment(15, rolling_by(&json!(3), &json!(2)));
    let (old, new) = (set_of("a", 8, 8, &annotated(13)), set_of("b", 5, 0, &annotated(13)));
    assert!(is_scaling(&d, &[Arc::clone(&old), Arc::clone(&new)]));
    let sizes: Vec<i32> = scale(&d, Some(&new), &[old]).iter().map(|(_, n)| *n).collect();
    assert_eq!(sizes, [11, 7]);
}

#[test]
fn hash_is_stable_and_blind_to_itself() {
    let t: PodTemplateSpec = serde_json::from_value(json!({"metadata": {"labels": {"a": "b"}}})).unwrap();
    let u: PodTemplateSpec =
        serde_json::from_value(json!({"metadata": {"labels": {"a": "b", HASH_LABEL: "x"}, "annotations": {}}}))
            .unwrap();
    assert_eq!(hash(&t, None), hash(&u, None));
    assert_ne!(hash(&t, None), hash(&t, Some(1)));
    assert!(same_template(&t, &u));
    assert!(hash(&t, None).len() <= 10);
}

#[test]
fn history_beyond_the_limit_is_forgotten() {
    let mut d = deployment(1, json!(null));
    d.spec.revision_history_limit = Some(1);
    let with = |n: &str, rev: &str| set_of(n, 0, 0, &json!({"deployment.kubernetes.io/revision": rev}));
    let old = [with("a", "3"), with("b", "1"), with("c", "2")];
    let gone: Vec<String> = forgotten(&d, &old).iter().map(|r| r.name_any()).collect();
    assert_eq!(gone, ["b", "c"]);
}

proptest! {
    /// However pods become ready, and however late the old set's status is, a rollout never has too many or promises too
    /// few, and it ends.
    #[test]
    fn a_rollout_keeps_its_bounds_and_ends(
        n in 0..20i32, surge in 0..6i32, unavailable in 0..6i32, luck in proptest::collection::vec(0..3u8, 400),
    ) {
        let d = deployment(n, rolling_by(&json!(surge), &json!(unavailable)));
        let (surge, _) = bounds(&d);
        let least = n - max_unavailable(&d);
        let (mut old, mut new) = ((n, n), (0, 0));
        // What the old set's status says is available.
        let mut told = n;
        let mut luck = luck.into_iter();
        let mut steps = 0;
        while old.0 > 0 || new.1 < n {
            steps += 1;
            prop_assert!(steps < 400, "stuck at {old:?} {new:?}");
            let (o, w) = (set("a", old.0, told), set("b", new.0, new.1));
            let all = [Arc::clone(&o), Arc::clone(&w)];
            let size = new_set_size(&d, &all, &w);
            if size != new.0 {
                new.0 = size;
            } else if let Some((_, size)) = shrink_old(&d, &all, &[o], &w).first() {
                old.0 = *size;
                old.1 = old.1.min(*size);
            }
            prop_assert!(old.0 + new.0 <= n + surge);
            prop_assert!(old.1 + new.1 >= least, "{old:?} {new:?} {least}");
            let luck = luck.next().unwrap_or(2);
            if luck > 0 {
                new.1 = (new.1 + 1).min(new.0);
            }
            if luck != 1 {
                told = old.1;
            }
        }
    }
}
