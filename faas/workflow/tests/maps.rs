//! Distributed Maps from start to end on an API server in this process.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use skiff_workflow::api::{Phase, WorkflowActivity, WorkflowHistory, WorkflowMapRun, WorkflowPayload, WorkflowRun};
use skiff_workflow::runs::{Answer, Runs as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

mod support;

/// A distributed Map over a task.
fn map(kind: &str, task: &Value, more: &Value) -> Value {
    let mut task = task.clone();
    task["End"] = json!(true);
    let mut state = json!({"Type": "Map", "End": true, "ItemProcessor": {
        "ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": kind}, "StartAt": "T", "States": {"T": task}}});
    state.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"StartAt": "M", "States": {"M": state}})
}

fn task(name: &str) -> Value {
    json!({"Type": "Task", "Resource": format!("skiff:function:{name}")})
}

async fn map_run(world: &support::World, run: &WorkflowRun) -> WorkflowMapRun {
    let of = ListParams::default().labels(&format!("skiff.dev/workflow-run={}", run.metadata.uid.clone().unwrap()));
    let mut all = world.api::<WorkflowMapRun>().list(&of).await.unwrap().items;
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0)
}

async fn config(world: &support::World, name: &str, data: Value) {
    let whole = json!({"metadata": {"name": name}, "data": data});
    let map: ConfigMap = serde_json::from_value(whole).unwrap();
    world.api::<ConfigMap>().create(&PostParams::default(), &map).await.unwrap();
}

#[tokio::test]
async fn executions_of_both_kinds_give_their_outputs_in_order() {
    let world = support::world().await;
    let _engine = world.engine();
    for kind in ["STANDARD", "EXPRESS"] {
        let name = kind.to_lowercase();
        let items: Vec<Value> = (0..300).map(|x| json!({"x": x})).collect();
        let want: Vec<Value> = (1..=300).map(|x| json!({"x": x})).collect();
        world.start(&name, &map(kind, &task("add"), &json!({"MaxConcurrency": 20})), &json!(items)).await;
        let run = world.over(&name).await;
        let status = run.status.clone().unwrap();
        assert_eq!((status.phase, status.error), (Phase::Succeeded, None));
        assert_eq!(status.output.unwrap(), json!(want));
        let types = world.types(&name).await;
        let told = ["ExecutionStarted", "MapStateEntered", "MapStateStarted", "MapRunStarted"];
        let told = [&told[..], &["MapRunSucceeded", "MapStateSucceeded", "MapStateExited", "ExecutionSucceeded"]];
        assert_eq!(types, told.concat());
        let map = map_run(&world, &run).await;
        let status = map.status.unwrap();
        assert_eq!(
            (status.phase.as_str(), status.executions.succeeded, status.executions.total),
            ("SUCCEEDED", 300, 300)
        );
    }
    for page in world.api::<WorkflowHistory>().list(&ListParams::default()).await.unwrap() {
        let size = serde_json::to_string(&page).unwrap().len();
        assert!(size < 64 * 1024, "{size}");
    }
    // Executions are no objects, and what they did goes with the run.
    assert_eq!(world.api::<WorkflowRun>().list(&ListParams::default()).await.unwrap().items.len(), 2);
    assert!(world.api::<WorkflowPayload>().list(&ListParams::default()).await.unwrap().items.len() < 20);
}

#[tokio::test]
async fn failures_are_tolerated_up_to_a_threshold_and_redriven() {
    let world = support::world().await;
    let running = world.engine();
    *world.functions.does.lock() = Some(Box::new(|name, call| {
        let payload: Value = serde_json::from_str(&call.payload).unwrap();
        (name == "odd" && payload["x"].as_i64().unwrap() % 2 == 1)
            .then(|| Ok(support::answer(500, &json!({"errorType": "Odd", "errorMessage": "m"}))))
    }));
    let odd = json!({"Type": "Task", "Resource": "skiff:function:odd"});
    let items = json!([{"x": 0}, {"x": 1}, {"x": 2}, {"x": 3}]);
    world.start("never", &map("STANDARD", &odd, &json!({"MaxConcurrency": 1})), &items).await;
    let run = world.over("never").await;
    let status = run.status.clone().unwrap();
    // `odd` is no function of the fake's: the even ones fail, too, so that the first ends it.
    assert_eq!(status.error.as_deref(), Some("States.ExceedToleratedFailureThreshold"));
    assert_eq!(status.cause.as_deref(), Some("The specified tolerated failure threshold was exceeded"));
    let types = world.types("never").await;
    assert_eq!(types[types.len() - 3..], ["MapRunFailed", "MapStateFailed", "ExecutionFailed"]);
    let map_status = map_run(&world, &run).await.status.unwrap();
    let counts = map_status.executions;
    assert_eq!((map_status.phase.as_str(), counts.failed, counts.pending), ("FAILED", 1, 3));

    *world.functions.does.lock() = Some(Box::new(|name, call| {
        (name == "odd").then(|| Ok(support::answer(200, &serde_json::from_str(&call.payload).unwrap())))
    }));
    running.engine.redrive("default", "never", None).await.unwrap();
    let succeeded = |r: &WorkflowRun| r.status.as_ref().is_some_and(|s| s.phase == Phase::Succeeded);
    let run = support::until(&world.api::<WorkflowRun>(), "never", succeeded).await;
    assert_eq!(run.status.clone().unwrap().output.unwrap(), items);
    assert!(world.types("never").await.contains(&"MapRunRedriven".to_owned()));
    let status = map_run(&world, &run).await.status.unwrap();
    assert_eq!((status.redrive_count, status.executions.succeeded, status.executions.failed), (1, 4, 0));

    *world.functions.does.lock() = None;
    let more = json!({"ToleratedFailurePercentage": 50, "ResultSelector": {"r.$": "$[*].Status"}});
    let fails = map("STANDARD", &json!({"Type": "Choice"}), &more);
    let mut fails = fails;
    fails["States"]["M"]["ItemProcessor"] = json!({
        "ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}, "StartAt": "C", "States": {
            "C": {"Type": "Choice", "Choices": [{"Variable": "$.x", "NumericGreaterThan": 1, "Next": "F"}], "Default": "P"},
            "F": {"Type": "Fail", "Error": "Big", "Cause": "too"}, "P": {"Type": "Pass", "End": true}}});
    world.start("some", &fails, &items).await;
    let status = world.over("some").await.status.unwrap();
    assert_eq!((status.phase, status.output), (Phase::Succeeded, Some(json!({"r": ["FAILED", "FAILED"]}))));
}

#[tokio::test]
async fn items_come_from_files_and_results_go_to_files() {
    let world = support::world().await;
    let _engine = world.engine();
    config(&world, "orders", json!({"all.csv": "id,city\n1,Kiel\n2,\"Bonn, Rhein\"\n3,Ulm\n"})).await;
    let more = json!({
        "ItemReader": {"Resource": "skiff:configmap", "Parameters": {"Name": "orders", "Key.$": "$.key"},
            "ReaderConfig": {"InputType": "CSV", "CSVHeaderLocation": "FIRST_ROW", "MaxItemsPath": "$.most"}},
        "ItemSelector": {"order.$": "$$.Map.Item.Value", "n.$": "$$.Map.Item.Index", "of.$": "$.key"},
        "ItemBatcher": {"MaxItemsPerBatch": 2, "BatchInput": {"shop": "s"}}});
    // Without the right to read it nothing is read.
    world.start("denied", &map("STANDARD", &task("echo"), &more), &json!({"key": "all.csv", "most": 3})).await;
    let status = world.over("denied").await.status.unwrap();
    assert_eq!(status.error.as_deref(), Some("States.ItemReaderFailed"), "{:?}", status.cause);

    let rule = json!({"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "create", "patch"]});
    world.allow("maps", rule).await;
    world.start("read", &map("STANDARD", &task("echo"), &more), &json!({"key": "all.csv", "most": 3})).await;
    let run = world.over("read").await;
    let output = run.status.clone().unwrap().output.unwrap();
    assert_eq!(output.as_array().unwrap().len(), 2);
    assert_eq!(output[0]["BatchInput"], json!({"shop": "s"}));
    let second = json!({"order": {"id": "2", "city": "Bonn, Rhein"}, "n": 1, "of": "all.csv"});
    assert_eq!(output[0]["Items"][1], second);
    assert_eq!(output[1]["Items"].as_array().unwrap().len(), 1);
    let counts = map_run(&world, &run).await.status.unwrap();
    assert_eq!((counts.executions.succeeded, counts.items.succeeded, counts.items.total), (2, 3, 3));

    let mut more = more;
    more.as_object_mut().unwrap().remove("ItemBatcher");
    more["ToleratedFailureCount"] = json!(1);
    more["ResultWriter"] = json!({"Resource": "skiff:configmap", "Parameters": {"Name": "out"}});
    let definition = map("EXPRESS", &json!({"Type": "Pass"}), &more);
    world.start("written", &definition, &json!({"key": "all.csv", "most": 2})).await;
    let run = world.over("written").await;
    let output = run.status.clone().unwrap().output.unwrap();
    assert_eq!(output["ResultWriterDetails"], json!({"Bucket": "out", "Key": "manifest.json"}), "{output}");
    let read = async |name: &str, key: &str| -> Value {
        let map = world.api::<ConfigMap>().get(name).await.unwrap();
        serde_json::from_str(&map.data.unwrap()[key]).unwrap()
    };
    let manifest = read("out", "manifest.json").await;
    assert_eq!(manifest["ResultFiles"]["SUCCEEDED"][0]["Key"], json!("out-succeeded-0/SUCCEEDED_0.json"), "{manifest}");
    assert_eq!(manifest["ResultFiles"]["FAILED"], json!([]));
    let results = read("out-succeeded-0", "SUCCEEDED_0.json").await;
    assert_eq!((results.as_array().unwrap().len(), results[0]["Status"].clone()), (2, json!("SUCCEEDED")));
    let input: Value = serde_json::from_str(results[0]["Input"].as_str().unwrap()).unwrap();
    assert_eq!(input["order"]["city"], json!("Kiel"));
    assert_eq!(map_run(&world, &run).await.status.unwrap().executions.results_written, 2);
}

/// A claim with a volume that is a directory.
async fn claim(world: &support::World, name: &str, root: &std::path::Path) {
    let volume = json!({"metadata": {"name": name}, "spec": {"capacity": {"storage": "1Gi"}, "storageClassName": "",
        "accessModes": ["ReadWriteOnce"], "hostPath": {"path": root}}});
    let volume: PersistentVolume = serde_json::from_value(volume).unwrap();
    let all = kube::Api::<PersistentVolume>::all(world.client.clone());
    all.create(&PostParams::default(), &volume).await.unwrap();
    let claim = json!({"metadata": {"name": name}, "spec": {"volumeName": name, "storageClassName": "",
        "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
    world.api::<PersistentVolumeClaim>().create(&PostParams::default(), &claim).await.unwrap();
}

#[tokio::test]
async fn items_and_results_are_files_of_a_volume() {
    let world = support::world().await;
    let _engine = world.engine();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("volume");
    std::fs::create_dir_all(root.join("in")).unwrap();
    std::fs::write(root.join("in/a.jsonl"), "{\"x\": 1}\n{\"x\": 2}\n").unwrap();
    std::fs::write(root.join("in/b.jsonl"), "{\"x\": 3}\n").unwrap();
    std::fs::write(dir.path().join("secret.jsonl"), "{\"x\": 9}\n").unwrap();
    std::os::unix::fs::symlink("../../secret.jsonl", root.join("in/link.jsonl")).unwrap();
    claim(&world, "data", &root).await;
    let reader = json!({"Resource": "skiff:pvc", "Parameters": {"Name": "data", "Path.$": "$.path"},
        "ReaderConfig": {"InputType": "JSONL"}});
    let read = map("EXPRESS", &task("add"), &json!({"ItemReader": reader}));
    let failed = async |name: &str, path: &str| {
        world.start(name, &read, &json!({"path": path})).await;
        let status = world.over(name).await.status.unwrap();
        assert_eq!(status.error.as_deref(), Some("States.ItemReaderFailed"), "{path}: {:?}", status.output);
        status.cause.unwrap()
    };
    let cause = failed("denied", "in/a.jsonl").await;
    assert!(cause.contains("may not get the claim data"), "{cause}");
    world.allow("volumes", json!({"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["get"]})).await;
    for (name, path) in [("absent", "in/c.jsonl"), ("out", "../secret.jsonl"), ("link", "in/link.jsonl")] {
        failed(name, path).await;
    }
    world.start("one", &read, &json!({"path": "in/a.jsonl"})).await;
    let status = world.over("one").await.status.unwrap();
    assert_eq!(status.output, Some(json!([{"x": 2}, {"x": 3}])), "{:?}", status.cause);

    // A directory is what is in it, and links are not.
    let mut all = reader.clone();
    all["ReaderConfig"]["Transformation"] = json!("LOAD_AND_FLATTEN");
    let writer = json!({"Resource": "skiff:pvc", "Parameters": {"Name": "data", "Path": "results"}});
    let written = map("STANDARD", &task("add"), &json!({"ItemReader": all, "ResultWriter": writer}));
    world.start("unwritten", &written, &json!({"path": "in"})).await;
    let status = world.over("unwritten").await.status.unwrap();
    assert_eq!(
        status.error.as_deref(),
        Some("States.ResultWriterFailed"),
        "reading is not writing: {:?}",
        status.output
    );
    world
        .allow("writes", json!({"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["update"]}))
        .await;
    world.start("written", &written, &json!({"path": "in"})).await;
    let status = world.over("written").await.status.unwrap();
    let details = status.output.unwrap()["ResultWriterDetails"].clone();
    assert_eq!(details["Bucket"], json!("data"), "{:?}", status.cause);
    let file = |key: &Value| -> Value {
        serde_json::from_slice(&std::fs::read(root.join(key.as_str().unwrap())).unwrap()).unwrap()
    };
    let manifest = file(&details["Key"]);
    assert_eq!(manifest["ResultFiles"]["FAILED"], json!([]));
    let results = file(&manifest["ResultFiles"]["SUCCEEDED"][0]["Key"]);
    let mut outputs: Vec<&str> = results.as_array().unwrap().iter().map(|r| r["Output"].as_str().unwrap()).collect();
    outputs.sort_unstable();
    assert_eq!(outputs, [r#"{"x":2}"#, r#"{"x":3}"#, r#"{"x":4}"#]);
}

/// Answers each request with what its path names; the URL of its top.
async fn serve(files: &'static [(&'static str, &'static str)]) -> String {
    // Where requests leave this machine: its own addresses may not be called by name of the loopback.
    let asked = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    asked.connect("192.0.2.1:9").unwrap();
    let socket = tokio::net::TcpListener::bind((asked.local_addr().unwrap().ip(), 0)).await.unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = socket.accept().await {
            let mut head = vec![];
            while !head.ends_with(b"\r\n\r\n") {
                let Ok(byte) = stream.read_u8().await else { break };
                head.push(byte);
            }
            let head = String::from_utf8(head).unwrap();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let found = files.iter().find(|(name, _)| *name == path);
            let (code, text) = found.map_or(("404 Not Found", ""), |(_, text)| ("200 OK", *text));
            let length = text.len();
            let answer = format!("HTTP/1.1 {code}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{text}");
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    url
}

#[tokio::test]
async fn items_are_what_an_endpoint_answers() {
    let world = support::world().await;
    let _engine = world.engine();
    let url = serve(&[
        ("/orders.json", r#"{"data": {"orders": [{"x": 1}, {"x": 2}]}}"#),
        ("/manifest.json", r#"{"fileFormat": "CSV", "fileSchema": "Key, x", "files": [{"key": "part.csv"}]}"#),
        ("/part.csv", "a,7\nb,8\n"),
    ])
    .await;
    let from = |path: &str, config: Value| {
        let reader = json!({"Resource": "skiff:http", "Parameters": {"ApiEndpoint": format!("{url}{path}")},
            "ReaderConfig": config});
        map("EXPRESS", &task("echo"), &json!({"ItemReader": reader}))
    };
    let json = from("/orders.json", json!({"InputType": "JSON", "ItemsPointer": "/data/orders"}));
    world.start("json", &json, &json!({})).await;
    let status = world.over("json").await.status.unwrap();
    assert_eq!(status.output, Some(json!([{"x": 1}, {"x": 2}])), "{:?}", status.cause);
    // The files of an inventory lie beside it.
    world.start("manifest", &from("/manifest.json", json!({"InputType": "MANIFEST"})), &json!({})).await;
    let status = world.over("manifest").await.status.unwrap();
    assert_eq!(status.output, Some(json!([{"Key": "a", "x": "7"}, {"Key": "b", "x": "8"}])), "{:?}", status.cause);
    world.start("absent", &from("/none.json", json!({"InputType": "JSON"})), &json!({})).await;
    let status = world.over("absent").await.status.unwrap();
    assert_eq!(status.error.as_deref(), Some("States.ItemReaderFailed"));
    assert!(status.cause.unwrap().contains("404"));
}

#[tokio::test]
async fn tokens_and_activities_of_executions_are_answered() {
    let world = support::world().await;
    let running = world.engine();
    let activity = WorkflowActivity::new("work", Default::default());
    world.api::<WorkflowActivity>().create(&PostParams::default(), &activity).await.unwrap();
    let fetched = json!({"Type": "Task", "Resource": "skiff:activity:work"});
    world.start("fetched", &map("STANDARD", &fetched, &json!({})), &json!(["a", "b"])).await;
    for _ in 0..2 {
        let task = running.engine.poll_activity("default", "work", Some("w"), Duration::from_secs(20)).await.unwrap();
        let task = task.unwrap();
        running.engine.signal(&task.token, Answer::Success(task.input)).await.unwrap();
    }
    assert_eq!(world.over("fetched").await.status.unwrap().output, Some(json!(["a", "b"])));

    let waits = json!({"Type": "Task", "Resource": "arn:aws:states:::lambda:invoke.waitForTaskToken",
        "Parameters": {"FunctionName": "echo", "Payload": {"token.$": "$$.Task.Token"}}});
    // One within another: a token leads through both.
    let inner = map("STANDARD", &waits, &json!({}))["States"]["M"].clone();
    let mut outer = map("STANDARD", &task("echo"), &json!({}));
    outer["States"]["M"]["ItemProcessor"]["States"] = json!({"N": inner});
    outer["States"]["M"]["ItemProcessor"]["StartAt"] = json!("N");
    world.functions.calls.lock().clear();
    world.start("nested", &outer, &json!([["a"], ["b", "c"]])).await;
    world.functions.until(3).await;
    let tokens: Vec<String> = world
        .functions
        .calls
        .lock()
        .iter()
        .map(|c| {
            let payload: Value = serde_json::from_str(&c.payload).unwrap();
            payload["token"].as_str().unwrap().to_owned()
        })
        .collect();
    for token in &tokens {
        running.engine.signal(token, Answer::Success("1".to_owned())).await.unwrap();
    }
    assert_eq!(world.over("nested").await.status.unwrap().output, Some(json!([[1], [1, 1]])));
}

#[tokio::test]
async fn settings_change_while_it_goes_on_and_a_stop_ends_all() {
    let world = support::world().await;
    let running = world.engine();
    let hold = std::sync::Arc::new(tokio::sync::Notify::new());
    *world.functions.hold.lock() = Some(hold);
    world.start("slow", &map("STANDARD", &task("echo"), &json!({"MaxConcurrency": 1})), &json!([1, 2, 3, 4])).await;
    world.functions.until(1).await;
    let run = world.api::<WorkflowRun>().get("slow").await.unwrap();
    let map = map_run(&world, &run).await;
    let name = map.metadata.name.unwrap();
    let maps = world.api::<WorkflowMapRun>();
    let patch = Patch::Merge(json!({"spec": {"maxConcurrency": 3, "toleratedFailureCount": 4}}));
    maps.patch(&name, &PatchParams::default(), &patch).await.unwrap();
    world.functions.until(3).await;
    let counts = support::until(&maps, &name, |m| m.status.as_ref().is_some_and(|s| s.executions.running == 3)).await;
    assert_eq!(counts.status.unwrap().executions.pending, 1);
    running.engine.stop("default", "slow", Default::default()).await.unwrap();
    assert_eq!(world.over("slow").await.status.unwrap().phase, Phase::Aborted);
    let status = maps.get(&name).await.unwrap().status.unwrap();
    assert_eq!((status.phase.as_str(), status.executions.aborted, status.executions.pending), ("ABORTED", 3, 1));
    assert!(world.types("slow").await.contains(&"MapRunAborted".to_owned()));
}
