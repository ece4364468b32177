"""Executions: started, followed, stopped, redriven; history by pages; tokens, activities; express."""
import json
import time

from common import ROLE, client, machine, refused

c = client()


def create(name, definition, **more):
    return c.create_state_machine(name=name, definition=definition, roleArn=ROLE, **more)["stateMachineArn"]


def ended(arn, patience=30):
    until = time.monotonic() + patience
    while time.monotonic() < until:
        seen = c.describe_execution(executionArn=arn)
        if seen["status"] != "RUNNING":
            return seen
        time.sleep(0.05)
    raise AssertionError(f"{seen} does not end")


def run(machine_arn, data, **more):
    return ended(c.start_execution(stateMachineArn=machine_arn, input=json.dumps(data), **more)["executionArn"])


def events(arn, **more):
    return c.get_execution_history(executionArn=arn, maxResults=1000, **more)["events"]


# From start to end.
branch = create("Branch", json.dumps({"StartAt": "Judge", "States": {
    "Judge": {"Type": "Choice", "Default": "Small",
              "Choices": [{"Variable": "$.x", "NumericGreaterThan": 10, "Next": "Large"}]},
    "Large": {"Type": "Pass", "Result": "large", "ResultPath": "$.is", "End": True},
    "Small": {"Type": "Fail", "Error": "TooSmall", "Cause": "10 is the least"}}}))
done = run(branch, {"x": 11}, name="Eleven")
assert done["status"] == "SUCCEEDED" and json.loads(done["output"]) == {"x": 11, "is": "large"}, done
assert done["stopDate"] >= done["startDate"] and done["inputDetails"] == {"included": True}
assert done["redriveStatus"] == "NOT_REDRIVABLE"
failed = run(branch, {"x": 1})
assert (failed["status"], failed["error"], failed["cause"]) == ("FAILED", "TooSmall", "10 is the least"), failed
assert failed["redriveStatus"] == "REDRIVABLE"
refused("ExecutionAlreadyExists", c.start_execution, stateMachineArn=branch, name="Eleven", input='{"x": 11}')
assert c.describe_execution(executionArn=done["executionArn"], includedData="METADATA_ONLY").get("input") is None

# History: forward, backward, by pages.
told = events(done["executionArn"])
assert [e["type"] for e in told] == ["ExecutionStarted", "ChoiceStateEntered", "ChoiceStateExited", "PassStateEntered",
                                     "PassStateExited", "ExecutionSucceeded"], told
assert [e["id"] for e in told] == [1, 2, 3, 4, 5, 6] and told[1]["previousEventId"] == 1
assert told[1]["stateEnteredEventDetails"]["name"] == "Judge" and json.loads(told[1]["stateEnteredEventDetails"]["input"]) == {"x": 11}
assert told[0]["executionStartedEventDetails"]["inputDetails"] == {"truncated": False}
assert [e["id"] for e in events(done["executionArn"], reverseOrder=True)] == [6, 5, 4, 3, 2, 1]
assert "input" not in events(done["executionArn"], includeExecutionData=False)[1]["stateEnteredEventDetails"]
for reverse in (False, True):
    pages = c.get_paginator("get_execution_history").paginate(
        executionArn=done["executionArn"], reverseOrder=reverse, PaginationConfig={"PageSize": 2})
    ids = [e["id"] for page in pages for e in page["events"]]
    assert ids == sorted(range(1, 7), reverse=reverse), ids
refused("ExecutionDoesNotExist", c.get_execution_history, executionArn=done["executionArn"] + "x")

# Lists.
assert [e["name"] for e in c.list_executions(stateMachineArn=branch, statusFilter="SUCCEEDED")["executions"]] == ["Eleven"]
assert len(c.list_executions(stateMachineArn=branch)["executions"]) == 2
assert c.list_executions(stateMachineArn=branch)["executions"][0]["name"] == failed["name"], "the newest is first"
assert c.describe_state_machine_for_execution(executionArn=done["executionArn"])["name"] == "Branch"

# Stopped, and redriven.
wait = create("Wait", machine(("Long", {"Type": "Wait", "Seconds": 3600}), ("Done", {"Type": "Succeed"})))
arn = c.start_execution(stateMachineArn=wait, name="one")["executionArn"]
assert c.start_execution(stateMachineArn=wait, name="one")["executionArn"] == arn
refused("ExecutionNotRedrivable", c.redrive_execution, executionArn=arn)
c.stop_execution(executionArn=arn, error="Enough", cause="it takes too long")
seen = ended(arn)
assert (seen["status"], seen["error"], seen["cause"]) == ("ABORTED", "Enough", "it takes too long"), seen
assert events(arn)[-1]["type"] == "ExecutionAborted"
first = c.redrive_execution(executionArn=arn, clientToken="once")["redriveDate"]
assert c.redrive_execution(executionArn=arn, clientToken="once")["redriveDate"] == first
c.stop_execution(executionArn=arn)
assert ended(arn)["status"] == "ABORTED"

# Functions: their results and their errors.
call = create("Call", json.dumps({"StartAt": "Add", "States": {
    "Add": {"Type": "Task", "Resource": "arn:aws:states:::lambda:invoke", "ResultSelector": {"x.$": "$.Payload.x"},
            "Parameters": {"FunctionName": "add", "Payload.$": "$"}, "Next": "Fail"},
    "Fail": {"Type": "Task", "Resource": "arn:aws:lambda:eu-central-1:123456789012:function:fail",
             "Parameters": {"error": "Odd"}, "End": True,
             "Catch": [{"ErrorEquals": ["Odd"], "ResultPath": "$.error", "Next": "Caught"}]},
    "Caught": {"Type": "Pass", "End": True}}}))
seen = run(call, {"x": 1})
assert seen["status"] == "SUCCEEDED", seen
output = json.loads(seen["output"])
assert output["x"] == 2 and output["error"]["Error"] == "Odd", output
types = [e["type"] for e in events(seen["executionArn"])]
for wanted in ("TaskScheduled", "TaskSucceeded", "LambdaFunctionScheduled", "LambdaFunctionFailed"):
    assert wanted in types, types

# Versions and aliases are pinned.
first = c.publish_state_machine_version(stateMachineArn=branch)["stateMachineVersionArn"]
alias = c.create_state_machine_alias(name="PROD", routingConfiguration=[
    {"stateMachineVersionArn": first, "weight": 100}])["stateMachineAliasArn"]
c.update_state_machine(stateMachineArn=branch, definition=machine(("New", {"Type": "Pass", "Result": "new"})))
assert json.loads(run(branch, {})["output"]) == "new"
old = run(alias, {"x": 20})
assert json.loads(old["output"])["is"] == "large", old
assert (old["stateMachineVersionArn"], old["stateMachineAliasArn"]) == (first, alias), old
assert [e["name"] for e in c.list_executions(stateMachineArn=alias)["executions"]] == [old["name"]]

# A machine starts another, whose name no object can have.
outer = create("Outer", machine(("Call", {"Type": "Task", "Resource": "arn:aws:states:::states:startExecution.sync:2",
                                          "Parameters": {"StateMachineArn": branch, "Input": {"x": 1}},
                                          "OutputPath": "$.Output"})))
assert json.loads(run(outer, {})["output"]) == "new"

# A worker fetches work, and answers.
activity = c.create_activity(name="By_Hand")["activityArn"]
manual = create("Manual", machine(("Work", {"Type": "Task", "Resource": activity, "HeartbeatSeconds": 60})))
arn = c.start_execution(stateMachineArn=manual, input='{"n": 7}')["executionArn"]
task = c.get_activity_task(activityArn=activity, workerName="w1")
assert json.loads(task["input"]) == {"n": 7}, task
c.send_task_heartbeat(taskToken=task["taskToken"])
c.send_task_success(taskToken=task["taskToken"], output='{"n": 8}')
assert json.loads(ended(arn)["output"]) == {"n": 8}
refused("TaskTimedOut", c.send_task_success, taskToken=task["taskToken"], output="{}")
arn = c.start_execution(stateMachineArn=manual)["executionArn"]
task = c.get_activity_task(activityArn=activity)
c.send_task_failure(taskToken=task["taskToken"], error="Broken", cause="bad tool")
seen = ended(arn)
assert (seen["status"], seen["error"], seen["cause"]) == ("FAILED", "Broken", "bad tool"), seen

# In memory.
express = create("Quick", machine(("Twice", {"Type": "Pass", "Parameters": {"y.$": "States.MathAdd($.x, $.x)"}})),
                 type="EXPRESS")
seen = c.start_sync_execution(stateMachineArn=express, input='{"x": 4}')
assert (seen["status"], json.loads(seen["output"])) == ("SUCCEEDED", {"y": 8}), seen
assert seen["billingDetails"]["billedDurationInMilliseconds"] % 100 == 0
seen = c.start_sync_execution(stateMachineArn=express, input='{"x": "no"}')
assert seen["status"] == "FAILED" and seen["error"].startswith("States."), seen
# A name that is used starts another one.
twice = [c.start_execution(stateMachineArn=express, name="used", input='{"x": 4}')["executionArn"] for _ in range(2)]
assert twice[0] != twice[1], twice
refused("StateMachineTypeNotSupported", c.list_executions, stateMachineArn=express)
