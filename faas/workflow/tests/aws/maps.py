"""Runs of distributed maps: listed, described, changed; their executions as any others."""
import json
import time

from common import ROLE, client, machine, refused

c = client()


def spread(tasks, **more):
    return machine(("Spread", {"Type": "Map", "Label": "each", "ItemProcessor": {
        "ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}, **tasks}, **more}))


def until(is_so, patience=30):
    end = time.monotonic() + patience
    while time.monotonic() < end:
        seen = is_so()
        if seen:
            return seen
        time.sleep(0.05)
    raise AssertionError("it does not come")


def states(*each):
    return json.loads(machine(*each))


add = states(("Add", {"Type": "Task", "Resource": "arn:aws:lambda:r:1:function:add"}))
made = c.create_state_machine(name="Orders", definition=spread(add), roleArn=ROLE)["stateMachineArn"]
items = [{"x": i} for i in range(25)]
run = c.start_execution(stateMachineArn=made, input=json.dumps(items))["executionArn"]
done = until(lambda: (seen := c.describe_execution(executionArn=run))["status"] != "RUNNING" and seen)
assert done["status"] == "SUCCEEDED", done
assert json.loads(done["output"]) == [{"x": i + 1} for i in range(25)]
kinds = [e["type"] for e in c.get_execution_history(executionArn=run)["events"]]
assert kinds[2:6] == ["MapStateStarted", "MapRunStarted", "MapRunSucceeded", "MapStateSucceeded"], kinds

maps = c.list_map_runs(executionArn=run)["mapRuns"]
assert len(maps) == 1 and maps[0]["executionArn"] == run, maps
told = c.describe_map_run(mapRunArn=maps[0]["mapRunArn"])
assert told["status"] == "SUCCEEDED" and told["executionCounts"]["succeeded"] == 25 == told["itemCounts"]["total"], told
assert told["stopDate"] >= told["startDate"] and told["toleratedFailureCount"] == 0

pages = c.get_paginator("list_executions").paginate(mapRunArn=told["mapRunArn"], PaginationConfig={"PageSize": 10})
pages = [p["executions"] for p in pages]
assert [len(p) for p in pages] == [10, 10, 5], pages
each = [e for p in pages for e in p]
assert len({e["executionArn"] for e in each}) == 25 and all(e["mapRunArn"] == told["mapRunArn"] for e in each)
assert c.list_executions(mapRunArn=told["mapRunArn"], statusFilter="FAILED")["executions"] == []
one = c.describe_execution(executionArn=each[0]["executionArn"])
assert json.loads(one["output"])["x"] == json.loads(one["input"])["x"] + 1 and one["status"] == "SUCCEEDED", one
assert one["stateMachineArn"].endswith("/each"), one
kinds = [e["type"] for e in c.get_execution_history(executionArn=each[0]["executionArn"])["events"]]
assert kinds == ["ExecutionStarted", "TaskStateEntered", "LambdaFunctionScheduled", "LambdaFunctionStarted",
                 "LambdaFunctionSucceeded", "TaskStateExited", "ExecutionSucceeded"], kinds
refused("ExecutionDoesNotExist", c.describe_execution, executionArn=each[0]["executionArn"] + "99")
refused("ResourceNotFound", c.describe_map_run, mapRunArn=told["mapRunArn"] + "x")

# Changed while it goes on, and stopped.
wait = states(("Wait", {"Type": "Wait", "Seconds": 600}))
made = c.create_state_machine(name="Slow", definition=spread(wait, MaxConcurrency=1), roleArn=ROLE)["stateMachineArn"]
run = c.start_execution(stateMachineArn=made, input="[1,2,3]")["executionArn"]
arn = until(lambda: c.list_map_runs(executionArn=run)["mapRuns"])[0]["mapRunArn"]
until(lambda: c.describe_map_run(mapRunArn=arn)["executionCounts"]["running"] == 1)
c.update_map_run(mapRunArn=arn, maxConcurrency=2, toleratedFailureCount=3)
until(lambda: c.describe_map_run(mapRunArn=arn)["executionCounts"]["running"] == 2)
told = c.describe_map_run(mapRunArn=arn)
assert (told["maxConcurrency"], told["toleratedFailureCount"]) == (2, 3), told
c.stop_execution(executionArn=run)
until(lambda: c.describe_map_run(mapRunArn=arn)["status"] == "ABORTED")
assert c.describe_map_run(mapRunArn=arn)["executionCounts"]["aborted"] == 2

# S3 is not there: its resources are refused with the place.
s3 = spread(wait, ItemReader={"Resource": "arn:aws:states:::s3:getObject", "Parameters": {"Bucket": "b", "Key": "k"}})
assert "ItemReader" in refused("InvalidDefinition", c.create_state_machine, name="S3", definition=s3, roleArn=ROLE)
