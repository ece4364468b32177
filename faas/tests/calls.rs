//! The queue of calls nobody waits for, against a real API server and functions that are made up.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;

use http::StatusCode;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;
use skiff_faas::api::{CallState, Function, FunctionCall};
use skiff_faas::asynchronous::Queue;
use skiff_faas::gateway::invoke::{Call, InvokeError, Sink};
use support::{Fake, World, until, world};
use tokio_util::sync::{CancellationToken, DropGuard};

fn run(queue: &Arc<Queue>, functions: &Arc<Fake>) -> DropGuard {
    let stop = CancellationToken::new();
    tokio::spawn(Arc::clone(queue).run(functions.clone(), stop.clone()));
    stop.drop_guard()
}

fn state(call: &FunctionCall) -> CallState {
    call.status.clone().unwrap_or_default().state
}

async fn over(w: &World, id: &str) -> FunctionCall {
    until(&w.api::<FunctionCall>(), id, |c| matches!(state(c), CallState::Succeeded | CallState::Failed)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_call_is_answered_once_somebody_works() {
    let w = world().await;
    w.function("pay", json!({})).await;
    let queue = Queue::new(w.client.clone(), "n1");
    let missing = queue.accept(Call::post("default", "none", "{}")).await.unwrap_err();
    assert!(matches!(missing, InvokeError::NotFound { .. }), "{missing:?}");
    let large = queue.accept(Call::post("default", "pay", vec![0; 256 * 1024 + 1])).await.unwrap_err();
    assert_eq!(large.status(), StatusCode::PAYLOAD_TOO_LARGE);
    let id = queue.accept(Call::post("default", "pay", r#"{"sum": 7}"#)).await.unwrap();
    assert_eq!(queue.result("default", &id).await.unwrap().unwrap().status, StatusCode::ACCEPTED);
    assert!(queue.result("default", "unknown").await.unwrap().is_none());

    // The process that accepted it is gone; another one works.
    drop(queue);
    let queue = Queue::new(w.client.clone(), "n2");
    let functions = Fake::with([]);
    let _running = run(&queue, &functions);
    let call = over(&w, &id).await;
    let status = call.status.clone().unwrap();
    assert_eq!((status.state, status.attempts, status.code), (CallState::Succeeded, 1, Some(200)));
    assert_eq!(call.owner_references()[0].kind, "Function", "it goes with the function");
    let sent = functions.until(1).await;
    assert_eq!((sent[0].body.as_ref(), sent[0].id.as_str()), (&br#"{"sum": 7}"#[..], id.as_str()));
    let answer = queue.result("default", &id).await.unwrap().unwrap();
    assert_eq!((answer.status, answer.body), (StatusCode::OK, format!("pay {id}").into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_pass_is_tried_again_and_what_may_not_is_told() {
    let w = world().await;
    w.function("sink", json!({})).await;
    w.function("pay", json!({"async": {"retries": 2, "deadLetter": "sink"}})).await;
    let queue = Queue::new(w.client.clone(), "n1");
    let functions = Fake::with([Err(InvokeError::Broken("x".into())), Ok(503), Ok(200)]);
    let _running = run(&queue, &functions);
    let id = queue.accept(Call::post("default", "pay", "{}")).await.unwrap();
    let status = over(&w, &id).await.status.unwrap();
    assert_eq!((status.state, status.attempts, status.message), (CallState::Succeeded, 3, None));
    let ids: Vec<String> = functions.calls.lock().iter().map(|c| c.id.clone()).collect();
    assert_eq!(ids, [id.clone(), id.clone(), id], "each try has the same name");

    functions.answers.lock().extend([Ok(422), Ok(422)]);
    let id = queue.accept(Call::post("default", "pay", "[1]")).await.unwrap();
    let status = over(&w, &id).await.status.unwrap();
    assert_eq!((status.state, status.attempts, status.code), (CallState::Failed, 1, Some(422)));
    assert_eq!((status.conditions[0].type_.as_str(), status.conditions[0].reason.as_str()), ("Complete", "Failed"));
    let letter = over(&w, &status.dead_letter.unwrap()).await;
    assert_eq!(letter.spec.dead_letter_of.as_deref(), Some(id.as_str()));
    assert_eq!(letter.status.unwrap().dead_letter, None, "a dead letter has none");
    let told = functions.calls.lock().last().unwrap().clone();
    assert_eq!((told.function.as_str(), told.body.as_ref()), ("sink", &b"[1]"[..]));
    assert_eq!(told.headers["skiff-dead-letter-function"], "pay");
    assert_eq!(told.headers["skiff-dead-letter-reason"], "the function answered 422 Unprocessable Entity");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_tried_by_one_at_a_time() {
    let w = world().await;
    w.function("pay", json!({})).await;
    let (first, functions) = (Queue::new(w.client.clone(), "n1"), Fake::with([]));
    let hold = Arc::new(tokio::sync::Notify::new());
    *functions.hold.lock() = Some(Arc::clone(&hold));
    let id = first.accept(Call::post("default", "pay", "{}")).await.unwrap();
    let stops = run(&first, &functions);
    functions.until(1).await;
    // Two more see it under a lease; one is asked for another call, so it has looked.
    let others = [Queue::new(w.client.clone(), "n2"), Queue::new(w.client.clone(), "n3")];
    let beside = Fake::with([]);
    let _running: Vec<DropGuard> = others.iter().map(|q| run(q, &beside)).collect();
    w.function("probe", json!({})).await;
    first.accept(Call::post("default", "probe", "{}")).await.unwrap();
    let api = w.api::<FunctionCall>();
    let held = until(&api, &id, |c| state(c) == CallState::Running).await.status.unwrap();
    assert!(held.lease_holder.unwrap().starts_with("n1/"));
    assert!(beside.calls.lock().iter().all(|c| c.function == "probe"));

    // The first dies in the middle. Its next run takes its own lease back at once, without waiting for its end.
    drop(stops);
    *functions.hold.lock() = None;
    let again = Queue::new(w.client.clone(), "n1");
    let _again = run(&again, &functions);
    let status = over(&w, &id).await.status.unwrap();
    assert_eq!((status.state, status.attempts, status.lease_holder), (CallState::Succeeded, 2, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn results_are_forgotten_and_go_with_the_function() {
    let w = world().await;
    w.function("pay", json!({"async": {"retentionSeconds": 1}})).await;
    let (queue, functions) = (Queue::new(w.client.clone(), "n1"), Fake::with([]));
    let _running = run(&queue, &functions);
    let id = queue.accept(Call::post("default", "pay", "{}")).await.unwrap();
    functions.until(1).await;
    let gone =
        kube::runtime::wait::await_condition(w.api::<FunctionCall>(), &id, |c: Option<&FunctionCall>| c.is_none());
    tokio::time::timeout(support::PATIENCE, gone).await.unwrap().unwrap();

    // A function that is gone meanwhile.
    functions.answers.lock().push_back(Err(InvokeError::NotFound { namespace: "default".into(), name: "pay".into() }));
    let hold = Arc::new(tokio::sync::Notify::new());
    *functions.hold.lock() = Some(Arc::clone(&hold));
    let id = queue.accept(Call::post("default", "pay", "{}")).await.unwrap();
    functions.until(2).await;
    w.api::<Function>().delete("pay", &DeleteParams::default()).await.unwrap();
    hold.notify_one();
    let status = over(&w, &id).await.status.unwrap();
    assert_eq!((status.state, status.code), (CallState::Failed, Some(404)));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_made_by_hand_run_and_cannot_be_changed() {
    let w = world().await;
    w.function("pay", json!({})).await;
    let (queue, functions) = (Queue::new(w.client.clone(), "n1"), Fake::with([]));
    let _running = run(&queue, &functions);
    let api = w.api::<FunctionCall>();
    let by_hand = |name: &str, spec: serde_json::Value| -> FunctionCall {
        serde_json::from_value(
            json!({"apiVersion": "skiff.dev/v1", "kind": "FunctionCall", "metadata": {"name": name}, "spec": spec}),
        )
        .unwrap()
    };
    api.create(&Default::default(), &by_hand("good", json!({"function": "pay", "body": "e30="}))).await.unwrap();
    api.create(&Default::default(), &by_hand("bad", json!({"function": "pay", "path": "no"}))).await.unwrap();
    assert_eq!(over(&w, "good").await.status.unwrap().state, CallState::Succeeded);
    let status = over(&w, "bad").await.status.unwrap();
    assert_eq!(
        (status.state, status.message.as_deref()),
        (CallState::Failed, Some("the request is not valid: the call's path is not valid"))
    );
    let change = Patch::Merge(json!({"spec": {"function": "other"}}));
    let refused = api.patch("good", &PatchParams::default(), &change).await.unwrap_err();
    assert!(refused.to_string().contains("a call cannot be changed"), "{refused}");
}
