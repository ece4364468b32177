use serde_json::json;

use super::array::{compress, expand, gather};
use super::parse::{completion_log, number, rest_accounted, rest_jobs, sacct, sbatch, scontrol_jobs, squeue};
use super::*;
use crate::api::TaskCounts;

fn report(words: &[&str], reason: &str, exit: &str) -> Report {
    Report {
        words: words.iter().map(|w| (*w).to_owned()).collect(),
        reason: reason.into(),
        exit: Exit::parse(exit),
        ..Report::default()
    }
}

/// Every state and every flag: words, reason, exit -> phase, reason, terminal, class.
#[test]
fn the_whole_map() {
    use Class::{Infrastructure, Never, User};
    use Phase::{Failed, Finishing, Queued, Running, Starting, Succeeded, Suspended};
    type Row = (&'static [&'static str], &'static str, &'static str, Option<Phase>, &'static str, bool, Option<Class>);
    let table: &[Row] = &[
        (&["PENDING"], "Priority", "0:0", Some(Queued), "Queued", false, None),
        (&["PENDING"], "Resources", "", Some(Queued), "Queued", false, None),
        (&["PENDING"], "JobHeldUser", "", Some(Suspended), "Held", false, None),
        (&["PENDING"], "JobHeldAdmin", "", Some(Suspended), "Held", false, None),
        (
            &["PENDING"],
            "launch failed requeued held",
            "",
            Some(Suspended),
            "LaunchFailedHeld",
            false,
            Some(Infrastructure),
        ),
        (
            &["PENDING"],
            "launch_failed_requeued_held",
            "",
            Some(Suspended),
            "LaunchFailedHeld",
            false,
            Some(Infrastructure),
        ),
        (&["PENDING"], "JobHoldMaxRequeue", "", Some(Suspended), "LaunchFailedHeld", false, Some(Infrastructure)),
        (&["PENDING"], "job_requeued_in_held_state", "", Some(Suspended), "Held", false, None),
        (&["PENDING"], "DependencyNeverSatisfied", "", Some(Queued), "DependencyNeverSatisfied", false, Some(Never)),
        (&["PENDING"], "BadConstraints", "", Some(Queued), "Unschedulable", false, Some(Never)),
        (&["PENDING"], "PartitionConfig", "", Some(Queued), "Unschedulable", false, Some(Never)),
        (&["PENDING"], "AccountNotAllowed", "", Some(Queued), "Unschedulable", false, Some(Never)),
        (&["PENDING"], "QOSMaxJobsPerUserLimit", "", Some(Queued), "Unschedulable", false, Some(Never)),
        (&["PENDING"], "AssocGrpGRES", "", Some(Queued), "Unschedulable", false, Some(Never)),
        (&["CONFIGURING"], "", "", Some(Starting), "Configuring", false, None),
        (&["RUNNING", "CONFIGURING"], "", "", Some(Starting), "Configuring", false, None),
        (&["RUNNING", "POWER_UP_NODE"], "", "", Some(Starting), "Configuring", false, None),
        (&["RUNNING"], "", "", Some(Running), "Running", false, None),
        (&["RUNNING", "SIGNALING"], "", "", Some(Running), "Running", false, None),
        (&["RUNNING", "RESIZING"], "", "", Some(Running), "Running", false, None),
        (&["PENDING", "UPDATE_DB"], "Priority", "", Some(Queued), "Queued", false, None),
        (&["PENDING", "EXPEDITING"], "Priority", "", Some(Queued), "Queued", false, None),
        (&["SIGNALING"], "", "", None, "UnknownState", false, None),
        (&["STAGE_OUT"], "", "", None, "UnknownState", false, None),
        (&["COMPLETED", "STAGE_OUT"], "", "0:0", Some(Finishing), "StageOut", false, None),
        (&["COMPLETING"], "", "0:0", Some(Finishing), "Completing", false, None),
        (&["FAILED", "COMPLETING"], "", "1:0", Some(Finishing), "Completing", false, None),
        (&["SUSPENDED"], "", "", Some(Suspended), "SlurmSuspended", false, None),
        (&["STOPPED"], "", "", Some(Suspended), "Stopped", false, None),
        (&["COMPLETED"], "", "0:0", Some(Succeeded), "Completed", true, None),
        (&["FAILED"], "NonZeroExitCode", "3:0", Some(Failed), "NonZeroExit", true, Some(User)),
        (&["FAILED"], "JobLaunchFailure", "0:9", Some(Failed), "Signaled", true, Some(User)),
        (&["FAILED"], "", "0:53", Some(Failed), "LaunchFailed", true, Some(Infrastructure)),
        (&["FAILED"], "BadConstraints", "0:0", Some(Failed), "Refused", true, Some(Never)),
        (&["FAILED", "LAUNCH_FAILED"], "", "1:0", Some(Failed), "LaunchFailed", true, Some(Infrastructure)),
        (&["FAILED", "RECONFIG_FAIL"], "", "1:0", Some(Failed), "LaunchFailed", true, Some(Infrastructure)),
        (&["CANCELLED"], "", "0:15", Some(Failed), "CancelledExternally", true, Some(Never)),
        (&["TIMEOUT"], "TimeLimit", "0:15", Some(Failed), "DeadlineExceeded", true, Some(User)),
        (&["DEADLINE"], "", "0:0", Some(Failed), "DeadlineUnreachable", true, Some(Never)),
        (&["OUT_OF_MEMORY"], "", "0:125", Some(Failed), "OOMKilled", true, Some(User)),
        (&["NODE_FAIL"], "", "0:0", Some(Failed), "NodeLost", true, Some(Infrastructure)),
        (&["NODE_FAIL", "REQUEUED"], "", "0:0", Some(Queued), "Requeued", false, None),
        (&["BOOT_FAIL"], "", "0:0", Some(Failed), "BootFailed", true, Some(Infrastructure)),
        (&["PREEMPTED"], "", "0:0", Some(Failed), "Preempted", true, Some(Infrastructure)),
        (&["PREEMPTED", "REQUEUED"], "", "", Some(Queued), "Requeued", false, None),
        (&["REQUEUED"], "", "", Some(Queued), "Requeued", false, None),
        (&["REQUEUE_FED"], "", "", Some(Queued), "Requeued", false, None),
        (&["REQUEUE_HOLD"], "", "", Some(Suspended), "RequeuedHeld", false, None),
        (&["PENDING", "RESV_DEL_HOLD"], "", "", Some(Suspended), "ReservationDeleted", false, None),
        (&["SPECIAL_EXIT"], "", "", Some(Failed), "SpecialExit", true, Some(Never)),
        (&["PENDING", "SPECIAL_EXIT"], "", "", Some(Failed), "SpecialExit", true, Some(Never)),
        (&["REVOKED"], "", "", Some(Failed), "Revoked", true, Some(Never)),
        (&["NEWWORD"], "", "", None, "UnknownState", false, None),
        (&[], "", "", None, "UnknownState", false, None),
    ];
    let mut seen = std::collections::BTreeSet::new();
    for (words, reason, exit, phase, want, terminal, class) in table {
        let v = judge(&report(words, reason, exit), false);
        assert_eq!((v.phase, v.reason, v.terminal, v.class), (*phase, *want, *terminal, *class), "{words:?} {reason}");
        assert_eq!(v.unknown, words.is_empty() || words == &["NEWWORD"], "{words:?}");
        seen.extend(words.iter().copied());
    }
    for (word, _) in STATES.iter().chain(&FLAGS) {
        assert!(seen.contains(word), "{word} is not in the table");
    }
    assert_eq!(judge(&report(&["CANCELLED"], "", ""), true).reason, "Cancelled");
    let signaled = judge(&report(&["FAILED"], "", "0:9"), false);
    assert_eq!((signaled.exit_code, signaled.signal), (Some(137), Some(9)));
    let derived = Report { derived: Exit::parse("2:0"), ..report(&["COMPLETED"], "", "0:0") };
    assert!(judge(&derived, false).step_failed);
}

#[test]
fn words_as_tools_print_them() {
    let table: &[(&str, &[&str], Option<&str>)] = &[
        ("CANCELLED by 0", &["CANCELLED"], Some("0")),
        ("CANCELLED by 1000+", &["CANCELLED"], Some("1000")),
        ("CANCELLED+", &["CANCELLED"], None),
        ("OUT_OF_ME+", &["OUT_OF_MEMORY"], None),
        ("NODE_FA+", &["NODE_FAIL"], None),
        ("CG", &["COMPLETING"], None),
        ("oom", &["OUT_OF_MEMORY"], None),
        ("R", &["RUNNING"], None),
        ("RUNNING+COMPLETING", &["RUNNING", "COMPLETING"], None),
        // Requeued, requeue_hold, requeue_fed: nobody knows which.
        ("REQUEUE+", &["REQUEUE"], None),
        ("Strange", &["STRANGE"], None),
    ];
    for (printed, want, by) in table {
        let (got, who) = words(printed);
        assert_eq!(
            (got.iter().map(String::as_str).collect::<Vec<_>>(), who.as_deref()),
            (want.to_vec(), *by),
            "{printed}"
        );
    }
    for (long, short) in STATES.iter().chain(&FLAGS) {
        assert_eq!((word(long), word(short)), (Some(*long), Some(*short).and(Some(*long))));
    }
}

#[test]
fn queues() {
    let text = "7|N/A|7|PENDING|gpu|2026-11-21T10:00:00|N/A|N/A||1-00:00:00|Nodes required for job are DOWN, DRAINED|skiff-u-1\n\
        8|[0-3%2]|8|PENDING|gpu,cpu|1795255200|N/A|N/A||5:00|Priority|skiff-v-1\n\
        8|4|9|COMPLETING|gpu|1795255200|1795255300|1795255400|n[1-2,7]|5:00|None|a|b \u{fffd}\n\
        garbage\n";
    let all = squeue(text);
    assert_eq!(all.len(), 3);
    assert_eq!((all[0].job_id, all[0].task.clone(), all[0].submitted), (7, None, Some(1_795_255_200)));
    assert_eq!(all[0].reason, "Nodes required for job are DOWN, DRAINED");
    assert_eq!((all[1].task.clone(), all[1].started), (Some(Task::Many("0-3%2".into())), None));
    assert_eq!((all[2].job_id, all[2].own_id, all[2].task.clone()), (8, 9, Some(Task::One(4))));
    assert_eq!((all[2].nodes.as_str(), all[2].name.as_str(), all[2].reason.as_str()), ("n[1-2,7]", "a|b \u{fffd}", ""));
}

#[test]
fn details() {
    let text = "JobId=9 ArrayJobId=8 ArrayTaskId=4 JobName=skiff-u-1 UserId=root(0) JobState=FAILED Reason=NonZeroExitCode \
        Dependency=(null) Requeue=1 Restarts=2 ExitCode=3:0 DerivedExitCode=1:0 RunTime=00:00:01 TimeLimit=00:05:00 \
        SubmitTime=2026-11-21T10:00:00 EligibleTime=Unknown StartTime=1795255300 EndTime=1795255400 Partition=gpu \
        NodeList=n1 WorkDir=/w Command=(null)\n\
        JobId=10 JobName=x JobState=PENDING Reason=Nodes required for job are DOWN, DRAINED or reserved Dependency=(null)\n\
        slurm_load_jobs error: Invalid job id specified\n";
    let all = scontrol_jobs(text);
    assert_eq!(all.len(), 2);
    let r = &all[0];
    assert_eq!((r.job_id, r.own_id, r.task.clone(), r.restarts), (8, 9, Some(Task::One(4)), 2));
    assert_eq!((r.exit, r.derived), (Exit::parse("3:0"), Exit::parse("1:0")));
    assert_eq!((r.submitted, r.eligible, r.started), (Some(1_795_255_200), None, Some(1_795_255_300)));
    assert_eq!(all[1].reason, "Nodes required for job are DOWN, DRAINED or reserved");

    let log = "JobId=7 UserId=root(0) GroupId=root(0) Name=skiff-u-1 JobState=TIMEOUT Partition=gpu TimeLimit=1 \
        StartTime=2026-11-21T10:00:00 EndTime=2026-11-21T10:01:00 NodeList=n1 NodeCnt=1 ProcCnt=1 WorkDir=/w \
        DerivedExitCode=0:0 ExitCode=0:0 \n";
    let all = completion_log(log);
    assert_eq!(
        (all[0].job_id, all[0].name.as_str(), judge(&all[0], false).reason),
        (7, "skiff-u-1", "DeadlineExceeded")
    );
}

#[test]
fn accounting_and_submissions() {
    let text = "9|8_4|CANCELLED by 1000|0:15|0:0|gpu|2026-11-21T10:00:00|Unknown|None|None|None assigned|00:05:00|None|skiff-u-1\n";
    let all = sacct(text);
    assert_eq!((all[0].job_id, all[0].task.clone()), (8, Some(Task::One(4))));
    assert_eq!((all[0].cancelled_by.as_deref(), all[0].started, all[0].nodes.as_str()), (Some("1000"), None, ""));
    let table = [
        ("7\n", Some((7, None))),
        ("7;pi\n", Some((7, Some("pi".to_owned())))),
        ("Submitted batch job 12\n", Some((12, None))),
        ("sbatch: your balance is 5\n8\n", Some((8, None))),
        ("sbatch: error: Batch job submission failed: Invalid partition name specified\n", None),
        ("", None),
    ];
    for (printed, want) in table {
        assert_eq!(sbatch(printed), want, "{printed}");
    }
}

#[test]
fn slurmrestd_old_and_new() {
    let old = json!({"jobs": [{"job_id": 7, "array_job_id": 0, "array_task_id": null, "array_task_string": "", "name": "n",
        "job_state": "FAILED", "state_reason": "NonZeroExitCode", "exit_code": 768, "derived_exit_code": 0, "nodes": "n1",
        "submit_time": 5, "start_time": 0, "restart_cnt": 1, "partition": "gpu"}]});
    let new = json!({"jobs": [{"job_id": 7, "array_job_id": {"set": true, "number": 0}, "array_task_id": {"set": false, "number": 0},
        "array_task_string": "", "name": "n", "job_state": ["FAILED"], "state_reason": "NonZeroExitCode",
        "exit_code": {"status": ["ERROR"], "return_code": {"set": true, "number": 3}, "signal": {"id": {"set": false, "number": 0}}},
        "derived_exit_code": {"return_code": {"set": true, "number": 0}}, "nodes": "n1", "partition": "gpu",
        "submit_time": {"set": true, "infinite": false, "number": 5}, "start_time": {"set": true, "number": 0}, "restart_cnt": 1}]});
    assert_eq!(rest_jobs(&old), rest_jobs(&new));
    // Its reason says less than its description.
    let held = json!({"jobs": [{"job_id": 7, "job_state": "PENDING", "state_reason": "JobHeldUser",
        "state_description": "launch failed requeued held"}]});
    assert_eq!(judge(&rest_jobs(&held)[0], false).reason, LAUNCH_FAILED_HELD);
    assert_eq!(judge(&rest_jobs(&old)[0], false).exit_code, Some(3));
    let array = json!({"jobs": [
        {"job_id": 8, "array_job_id": 8, "array_task_string": "3-5", "job_state": ["PENDING"]},
        {"job_id": 9, "array_job_id": 8, "array_task_id": {"set": true, "number": 2}, "job_state": ["RUNNING", "COMPLETING"]}]});
    let all = rest_jobs(&array);
    assert_eq!((all[0].task.clone(), all[1].task.clone()), (Some(Task::Many("3-5".into())), Some(Task::One(2))));
    assert_eq!((all[1].job_id, judge(&all[1], false).phase), (8, Some(Phase::Finishing)));
    assert_eq!(Exit::of_status(4021), Exit { code: 15, signal: 53 });
    assert_eq!(Exit::of_status(15), Exit { code: 0, signal: 15 });
    assert_eq!(number(&json!({"set": true, "infinite": true, "number": 9})), None);
}

/// The shapes are those of 22.05's v0.0.38, seen, and of v0.0.40 as published.
#[test]
fn accounting_of_slurmrestd() {
    let time = json!({"submission": 5, "eligible": 5, "start": 6, "end": 9, "limit": 60});
    let success = json!({"status": "SUCCESS", "return_code": 0});
    let old = |state: &str, exit: serde_json::Value, by: serde_json::Value, task: serde_json::Value| {
        json!({"job_id": 9, "name": "n", "nodes": "n1", "partition": "gpu", "array": {"job_id": 8, "task": null, "task_id": task},
            "state": {"current": state, "reason": "None"}, "exit_code": exit, "derived_exit_code": success, "kill_request_user": by,
            "time": time})
    };
    let killed = json!({"status": "SIGNALED", "return_code": null, "signal": {"signal_id": 9, "name": "Killed"}});
    let none = serde_json::Value::Null;
    let all = rest_accounted(&json!({"jobs": [
        old("FAILED", killed, none.clone(), json!(3)),
        old("CANCELLED", success.clone(), json!("root"), none.clone()),
        old("FAILED", success.clone(), none.clone(), none.clone()),
        old("COMPLETED", success.clone(), none.clone(), none.clone()),
    ]}));
    let first = &all[0];
    assert_eq!((first.job_id, first.own_id, first.task.clone(), first.ended), (8, 9, Some(Task::One(3)), Some(9)));
    assert_eq!(judge(first, false).signal, Some(9));
    assert!(judge(&all[1], false).message.ends_with("by the account root"));
    let unsaid = judge(&all[2], false);
    assert_eq!((unsaid.reason, unsaid.exit_code), ("JobFailed", None), "its 0 of a failed job is no code");
    assert_eq!(judge(&all[3], false).reason, "Completed");
    let set = |n: i64| json!({"set": true, "infinite": false, "number": n});
    let new = json!({"jobs": [{"job_id": 9, "name": "n", "array": {"job_id": 0, "task_id": {"set": false, "number": 0}},
        "state": {"current": ["FAILED"], "reason": "NonZeroExitCode"}, "time": {"end": 9, "limit": set(60)}, "restart_cnt": 2,
        "exit_code": {"status": ["ERROR"], "return_code": set(3), "signal": {"id": {"set": false, "number": 0}, "name": ""}}}]});
    let new = &rest_accounted(&new)[0];
    assert_eq!((new.job_id, new.task.clone(), new.restarts, judge(new, false).exit_code), (9, None, 2, Some(3)));
}

#[test]
fn sets_of_tasks() {
    let set = |t| expand(t).into_iter().collect::<Vec<_>>();
    assert_eq!(set("0-6:3,9,11-12%4"), [0, 3, 6, 9, 11, 12]);
    assert_eq!(set("[2-3%2]"), [2, 3]);
    assert_eq!(set("x,5-,7"), [7]);
    assert_eq!(compress(&expand("0-3,5,7-8")), "0-3,5,7-8");
    assert!(expand("0-4000000000").len() <= 1_000_000);
}

#[test]
fn arrays_are_judged_as_one() {
    let task = |n, words: &[&str], exit: &str| Report { task: Some(Task::One(n)), ..report(words, "", exit) };
    let waiting = Report { task: Some(Task::Many("2-9%1".into())), ..report(&["PENDING"], "JobArrayTaskLimit", "") };
    let none = TaskCounts::default();
    let (v, c) = gather("0-9", &none, &[waiting, task(1, &["RUNNING"], ""), task(0, &["COMPLETED"], "0:0")], false);
    assert_eq!((v.phase, v.terminal), (Some(Phase::Running), false));
    assert_eq!((c.total, c.pending, c.running, c.succeeded, c.failed), (10, 8, 1, 1, 0));
    // Slurm has forgotten task 0 meanwhile.
    let (v, c) = gather("0-2", &c, &[task(1, &["COMPLETED"], "0:0"), task(2, &["FAILED"], "4:0")], false);
    assert_eq!((v.phase, v.terminal, v.exit_code, c.succeeded), (Some(Phase::Failed), true, Some(4), 2));
    assert!(v.message.contains("1 of 3 tasks failed; task 2"), "{}", v.message);
    assert_eq!((c.succeeded_tasks.as_str(), c.failed_tasks.as_str()), ("0-1", "2"));
    let (v, _) = gather("0-2", &none, &[task(1, &["COMPLETED"], "0:0")], false);
    assert!(v.unknown && !v.terminal, "an end that nobody told is not guessed");
    let (v, _) = gather("0-1", &none, &[task(0, &["COMPLETED"], "0:0"), task(1, &["COMPLETED"], "0:0")], false);
    assert_eq!((v.phase, v.exit_code), (Some(Phase::Succeeded), Some(0)));
}
