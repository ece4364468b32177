use super::*;
use serde_json::{Value, json};

fn job(spec: Value, status: Value) -> Job {
    let mut spec = spec;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c"}]}});
    spec.as_object_mut().unwrap().entry("template").or_insert(template);
    serde_json::from_value(json!({"metadata": {"name": "j", "uid": "j"}, "spec": spec, "status": status})).unwrap()
}

/// `name phase [index] [flags]`: `-` is deleting, `!` is freed already.
fn pods(list: &[&str]) -> Vec<Arc<Pod>> {
    let one = |text: &&str| {
        let words: Vec<&str> = text.split(' ').collect();
        let mut v = json!({"metadata": {"name": words[0], "uid": words[0], "finalizers": [FINALIZER]},
            "spec": {"containers": []}, "status": {"phase": words[1]}});
        if let Some(i) = words.get(2).filter(|w| w.parse::<i32>().is_ok()) {
            v["metadata"]["annotations"] = json!({INDEX: i});
        }
        if words.contains(&"-") {
            v["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        if words.contains(&"!") {
            v["metadata"]["finalizers"] = json!([]);
        }
        if words.contains(&"exit3") {
            v["status"]["containerStatuses"] = json!([{"name": "c", "image": "", "imageID": "", "ready": false,
                "restartCount": 0, "state": {"terminated": {"exitCode": 3}}}]);
        }
        Arc::new(serde_json::from_value(v).unwrap())
    };
    list.iter().map(one).collect()
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn names(pods: &[Arc<Pod>]) -> Vec<String> {
    pods.iter().map(|p| p.name_any()).collect()
}

fn shown(work: &Work) -> String {
    match work {
        Work::Nothing => "nothing".into(),
        Work::Delete(p) => format!("delete {}", names(p).join(",")),
        Work::Create(l) => {
            let all: Vec<String> = l.iter().map(|i| i.map_or("x".into(), |i| i.to_string())).collect();
            format!("create {}", all.join(","))
        }
        Work::Wait(d) => format!("wait {}", d.as_secs()),
    }
}

#[test]
fn what_is_missing_is_made_and_what_is_too_much_goes() {
    let none: &[&str] = &[];
    for (spec, status, list, want) in [
        (json!({"completions": 3, "parallelism": 2}), json!({}), none, "create x,x"),
        (json!({"completions": 3, "parallelism": 2}), json!({"succeeded": 2}), none, "create x"),
        (json!({"completions": 3, "parallelism": 2}), json!({}), &["a Running", "b Pending"], "nothing"),
        (json!({"completions": 3, "parallelism": 1}), json!({}), &["a Running", "b Pending"], "delete b"),
        (json!({"completions": 3, "parallelism": 2, "suspend": true}), json!({}), &["a Running"], "delete a"),
        (json!({"parallelism": 2}), json!({}), &["a Running"], "create x"),
        (json!({"parallelism": 2}), json!({}), &["a Running", "b Succeeded"], "nothing"),
        // A pod that ended counts at once, one that was counted does not count again.
        (json!({"completions": 2, "parallelism": 2}), json!({}), &["a Succeeded"], "create x"),
        (json!({"completions": 2, "parallelism": 2}), json!({"succeeded": 1}), &["a Succeeded !"], "create x"),
        (
            json!({"completions": 2, "parallelism": 2}),
            json!({"uncountedTerminatedPods": {"succeeded": ["a"]}}),
            &["a Succeeded"],
            "create x",
        ),
        // Replaced while terminating, or only after.
        (json!({"completions": 1, "parallelism": 1}), json!({}), &["a Running -"], "create x"),
        (
            json!({"completions": 1, "parallelism": 1, "podReplacementPolicy": "Failed"}),
            json!({}),
            &["a Running -"],
            "nothing",
        ),
        // Indexes: the first free ones; doubles and those beyond the end go.
        (
            json!({"completions": 5, "parallelism": 3, "completionMode": "Indexed"}),
            json!({"completedIndexes": "0,2"}),
            &["a Running 1"],
            "create 3,4",
        ),
        (
            json!({"completions": 2, "parallelism": 3, "completionMode": "Indexed"}),
            json!({}),
            &["a Running 1", "b Pending 1", "c Running 7"],
            "delete c,b",
        ),
        (
            json!({"completions": 3, "parallelism": 3, "completionMode": "Indexed", "backoffLimitPerIndex": 0}),
            json!({"failedIndexes": "1"}),
            none,
            "create 0,2",
        ),
    ] {
        let (j, p, freed) = (job(spec.clone(), status), pods(list), HashSet::new());
        let work = Sight::new(&j, &p, &freed).unwrap().work(Duration::ZERO, now());
        assert_eq!(shown(&work), want, "{spec} {list:?}");
    }
    let (j, freed) = (job(json!({"completions": 1}), json!({})), HashSet::new());
    let sight = Sight::new(&j, &[], &freed).unwrap();
    assert_eq!(shown(&sight.work(Duration::from_secs(7), now())), "wait 7");
}

#[test]
fn endings() {
    let start = json!({"startTime": Timestamp::from_second(1_800_000_000 - 100).unwrap().to_string()});
    let policy = json!({"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [3]}}]});
    for (spec, status, list, want) in [
        (json!({"backoffLimit": 1}), json!({}), &["a Failed", "b Failed"][..], "BackoffLimitExceeded"),
        (json!({"backoffLimit": 1}), json!({"failed": 1}), &["a Failed !", "b Running"], ""),
        (json!({"activeDeadlineSeconds": 100}), start.clone(), &["a Running"], "DeadlineExceeded"),
        (json!({"activeDeadlineSeconds": 101}), start.clone(), &["a Running"], ""),
        (json!({"activeDeadlineSeconds": 1, "suspend": true}), start, &[], ""),
        (json!({"podFailurePolicy": policy, "backoffLimit": 6}), json!({}), &["a Failed exit3"], "PodFailurePolicy"),
        (
            json!({"completions": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 0, "maxFailedIndexes": 0}),
            json!({}),
            &["a Failed 0"],
            "MaxFailedIndexesExceeded",
        ),
        (
            json!({"completions": 2, "completionMode": "Indexed", "backoffLimitPerIndex": 0}),
            json!({"completedIndexes": "1"}),
            &["a Failed 0"],
            "FailedIndexes",
        ),
        (
            json!({"completions": 9, "completionMode": "Indexed",
                "successPolicy": {"rules": [{"succeededIndexes": "7,8"}, {"succeededIndexes": "0-4", "succeededCount": 2}]}}),
            json!({"completedIndexes": "1"}),
            &["a Succeeded 3"],
            "SuccessPolicy",
        ),
    ] {
        let (j, p, freed) = (job(spec.clone(), status), pods(list), HashSet::new());
        let ending = Sight::new(&j, &p, &freed).unwrap().ending(now());
        assert_eq!(ending.map(|e| e.reason).unwrap_or_default(), want, "{spec} {list:?}");
    }
}

/// Whatever is interrupted between writes, every pod counts once.
#[test]
fn pods_count_once_whatever_is_lost() {
    let spec = json!({"completions": 9, "parallelism": 9});
    let all = ["a Succeeded", "b Failed", "c Running"];
    let freed = HashSet::new();
    let j = job(spec.clone(), json!({}));
    let p = pods(&all);
    let mut status = JobStatus::default();
    let tally = Sight::new(&j, &p, &freed).unwrap().tally(&mut status, None);
    assert_eq!(names(&tally.free), ["a", "b"]);
    let u = status.uncounted_terminated_pods.clone().unwrap();
    assert_eq!((u.succeeded.as_deref().unwrap(), u.failed.as_deref().unwrap()), (&["a".into()][..], &["b".into()][..]));
    let with = |status: &JobStatus| Job { status: Some(status.clone()), ..job(spec.clone(), json!({})) };
    // The same again, before any finalizer went: nothing new.
    let j = with(&status);
    let sight = Sight::new(&j, &p, &freed).unwrap();
    assert_eq!((sight.succeeded, sight.failed), (1, 1));
    let mut again = status.clone();
    let _ = sight.tally(&mut again, None);
    assert_eq!(again, status);
    // One finalizer went, then the process died.
    let half = pods(&["a Succeeded !", "b Failed", "c Running"]);
    let sight = Sight::new(&j, &half, &freed).unwrap();
    assert_eq!((sight.succeeded, sight.failed), (1, 1));
    let _ = sight.tally(&mut again, None);
    assert_eq!((again.succeeded, again.failed), (Some(1), None));
    // The cache still shows a finalizer that was removed.
    let j = with(&again);
    let freed: HashSet<String> = ["a".to_owned()].into();
    assert_eq!(Sight::new(&j, &p, &freed).unwrap().succeeded, 1);
}

#[test]
fn indexes_are_counted_as_intervals() {
    let j = job(
        json!({"completions": 5, "completionMode": "Indexed", "backoffLimitPerIndex": 1}),
        json!({"completedIndexes": "0"}),
    );
    let p = pods(&["x Succeeded 2", "y Succeeded 1", "z Failed 3", "q Succeeded 9"]);
    let freed = HashSet::new();
    let sight = Sight::new(&j, &p, &freed).unwrap();
    let mut status = j.status.clone().unwrap();
    let tally = sight.tally(&mut status, None);
    assert_eq!(status.completed_indexes.as_deref(), Some("0-2"));
    assert_eq!(status.failed_indexes.as_deref(), Some(""));
    // z stays until index 3 has a new pod, which takes its failure over; q has an index of nobody.
    assert_eq!(names(&tally.free), ["y", "x", "q"]);
    let next = sight.pod(Some(3));
    assert_eq!(next.metadata.generate_name.as_deref(), Some("j-3-"));
    assert_eq!(next.annotations()[INDEX_FAILURES], "1");
    assert_eq!((next.annotations()[INDEX].as_str(), next.labels()[INDEX].as_str()), ("3", "3"));
    let spec = next.spec.unwrap();
    assert_eq!(spec.hostname.as_deref(), Some("j-3"));
    assert_eq!(spec.containers[0].env.as_ref().unwrap()[0].name, "JOB_COMPLETION_INDEX");
}

#[test]
fn the_end_waits_for_pods_and_counts() {
    let e = Ending::complete();
    let mut s: JobStatus = serde_json::from_value(json!({"terminating": 1})).unwrap();
    assert!(!finish(&mut s, &e, false, now()));
    s.terminating = Some(0);
    s.uncounted_terminated_pods.get_or_insert_default().failed = Some(vec!["a".into()]);
    assert!(!finish(&mut s, &e, false, now()));
    settle(&mut s, |_| false);
    assert!(finish(&mut s, &e, false, now()));
    assert!(is(&s, "Complete") && s.completion_time.is_some() && s.failed == Some(1));
    assert!(!finish(&mut s, &e, false, now()), "once");
}
