//! Activities, their workers, and answers to task tokens.

use std::time::Duration;

use kube::api::{DeleteParams, ListParams, ObjectMeta, PostParams};
use serde_json::{Value, json};

use super::{Call, created, invalid_name, known_as, named, seconds, tags};
use crate::api::{WorkflowActivity, WorkflowActivitySpec};
use crate::endpoint::arn::{self, Resource};
use crate::endpoint::error::{Answer, Fault};
use crate::endpoint::page::{Row, page};
use crate::runs;
use crate::token::Token;

/// How long a worker waits for work, as with the service.
const POLL: Duration = Duration::from_secs(60);

/// The activity of a name.
pub(super) async fn find(call: &Call<'_>, name: &str, arn: &str) -> Result<WorkflowActivity, Fault> {
    let found = call.api::<WorkflowActivity>().get_opt(&arn::object_name(name)).await?;
    found.filter(|a| activity_name(a) == name).ok_or_else(|| Fault::absent("ActivityDoesNotExist", arn))
}

fn activity_name(activity: &WorkflowActivity) -> String {
    activity.spec.name.clone().unwrap_or_else(|| known_as(activity))
}

fn activity(call: &Call<'_>) -> Result<String, Fault> {
    match call.resource("activityArn")? {
        Resource::Activity { name } => Ok(name),
        _ => Err(call.wrong("activityArn")),
    }
}

fn tell(call: &Call<'_>, activity: &WorkflowActivity) -> Value {
    let name = activity_name(activity);
    json!({"activityArn": call.arn(Resource::Activity { name: name.clone() }), "name": name,
        "creationDate": seconds(created(activity))})
}

pub(super) async fn create(call: &Call<'_>) -> Answer {
    let name = call.required("name");
    if !arn::is_name(name) {
        return Err(invalid_name(name));
    }
    let mut metadata =
        ObjectMeta { name: Some(arn::object_name(name)), annotations: Some(named(name)), ..ObjectMeta::default() };
    tags::set(&mut metadata, &call.request["tags"])?;
    let spec = WorkflowActivitySpec { name: Some(name.to_owned()), description: None };
    let api = call.api::<WorkflowActivity>();
    let stored = match api.create(&PostParams::default(), &WorkflowActivity { metadata, spec }).await {
        Ok(stored) => stored,
        // There is nothing that could differ: the same again is the same answer.
        Err(kube::Error::Api(s)) if s.code == 409 => {
            let exists = |_| Fault::new("ActivityAlreadyExists", format!("Activity Already Exists: '{name}'"));
            find(call, name, name).await.map_err(exists)?
        }
        Err(e) => return Err(e.into()),
    };
    let told = tell(call, &stored);
    Ok(json!({"activityArn": told["activityArn"], "creationDate": told["creationDate"]}))
}

pub(super) async fn describe(call: &Call<'_>) -> Answer {
    let found = find(call, &activity(call)?, call.required("activityArn")).await?;
    let mut told = tell(call, &found);
    told["encryptionConfiguration"] = json!({"type": "AWS_OWNED_KEY"});
    Ok(told)
}

pub(super) async fn list(call: &Call<'_>) -> Answer {
    let all = call.api::<WorkflowActivity>().list(&ListParams::default()).await?.items;
    let rows: Vec<Row> = all.iter().map(|a| (activity_name(a), tell(call, a))).collect();
    page(&call.request, "activities", rows)
}

pub(super) async fn delete(call: &Call<'_>) -> Answer {
    let name = arn::object_name(&activity(call)?);
    match call.api::<WorkflowActivity>().delete(&name, &DeleteParams::default()).await {
        Ok(_) => Ok(Value::Null),
        Err(kube::Error::Api(s)) if s.code == 404 => Ok(Value::Null),
        Err(e) => Err(e.into()),
    }
}

/// Waits for work. Nothing came: no token.
pub(super) async fn task(call: &Call<'_>) -> Answer {
    let (name, arn) = (activity(call)?, call.required("activityArn"));
    let found = find(call, &name, arn).await?;
    let object = found.metadata.name.unwrap_or_default();
    let worker = call.text("workerName");
    let polled = call.endpoint.runs.poll_activity(&call.namespace, &object, worker, POLL).await;
    match polled.map_err(|e| call.failed(e, arn))? {
        Some(task) => Ok(json!({"taskToken": task.token, "input": task.input})),
        None => Ok(json!({"taskToken": null})),
    }
}

pub(super) async fn answer(operation: &str, call: &Call<'_>) -> Answer {
    let token = call.required("taskToken");
    // A token of another namespace is none.
    if Token::parse(token).is_none_or(|t| t.namespace != call.namespace) {
        return Err(Fault::new("InvalidToken", "Invalid Token: 'Invalid token'"));
    }
    let own = |member: &str| call.text(member).map(str::to_owned);
    let answer = match operation {
        "SendTaskSuccess" => runs::Answer::Success(call.required("output").to_owned()),
        "SendTaskFailure" => runs::Answer::Failure { error: own("error"), cause: own("cause") },
        _ => runs::Answer::Heartbeat,
    };
    match call.endpoint.runs.signal(token, answer).await {
        Ok(()) => Ok(Value::Null),
        Err(runs::RunsError::InvalidData(m)) => Err(Fault::new("InvalidOutput", format!("Invalid Output: '{m}'"))),
        Err(e) => Err(call.failed(e, token)),
    }
}
