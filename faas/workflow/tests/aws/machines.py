"""State machines, versions, aliases, tags, activities, definitions that are looked at."""
import json

from common import ROLE, client, machine, refused

c = client()
definition = machine(("Hello", {"Type": "Pass", "Result": "Hello"}))

# Made, made again, described, listed.
made = c.create_state_machine(name="HelloWorld", definition=definition, roleArn=ROLE,
                              tags=[{"key": "team", "value": "a"}])
arn = made["stateMachineArn"]
assert arn.startswith("arn:aws:states:eu-central-1:") and arn.endswith(":stateMachine:HelloWorld"), arn
assert len(arn.split(":")[4]) == 12
again = c.create_state_machine(name="HelloWorld", definition=definition, roleArn=ROLE)
assert again["stateMachineArn"] == arn and again["creationDate"] == made["creationDate"]
refused("StateMachineAlreadyExists", c.create_state_machine, name="HelloWorld", roleArn=ROLE,
        definition=machine(("Other", {"Type": "Succeed"})))
seen = c.describe_state_machine(stateMachineArn=arn)
assert (seen["name"], seen["status"], seen["type"], seen["definition"], seen["roleArn"]) == (
    "HelloWorld", "ACTIVE", "STANDARD", definition, ROLE), seen
assert seen["loggingConfiguration"]["level"] == "OFF"
# The same machine by its namespace, and in another region.
by_hand = arn.replace(arn.split(":")[4], "default")
assert client(region="us-west-2").describe_state_machine(stateMachineArn=by_hand)["name"] == "HelloWorld"

# A change makes another revision.
other = machine(("Bye", {"Type": "Pass", "Result": "Bye"}))
first = c.publish_state_machine_version(stateMachineArn=arn, description="the first")
assert first["stateMachineVersionArn"] == arn + ":1"
assert c.publish_state_machine_version(stateMachineArn=arn)["stateMachineVersionArn"] == arn + ":1"
changed = c.update_state_machine(stateMachineArn=arn, definition=other, publish=True, versionDescription="second",
                                 loggingConfiguration={"level": "ERROR", "includeExecutionData": True})
assert changed["stateMachineVersionArn"] == arn + ":2" and changed["revisionId"] != seen["revisionId"]
assert c.describe_state_machine(stateMachineArn=arn)["definition"] == other
assert c.describe_state_machine(stateMachineArn=arn)["loggingConfiguration"]["level"] == "ERROR"
one = c.describe_state_machine(stateMachineArn=arn + ":1")
assert (one["definition"], one["description"]) == (definition, "the first")
versions = c.list_state_machine_versions(stateMachineArn=arn)["stateMachineVersions"]
assert [v["stateMachineVersionArn"] for v in versions] == [arn + ":2", arn + ":1"]
refused("ConflictException", c.publish_state_machine_version, stateMachineArn=arn, revisionId="another")
refused("StateMachineDoesNotExist", c.describe_state_machine, stateMachineArn=arn + ":7")

# Aliases.
routes = [{"stateMachineVersionArn": arn + ":1", "weight": 90}, {"stateMachineVersionArn": arn + ":2", "weight": 10}]
alias = c.create_state_machine_alias(name="PROD", description="d", routingConfiguration=routes)["stateMachineAliasArn"]
assert alias == arn + ":PROD"
c.create_state_machine_alias(name="PROD", description="d", routingConfiguration=routes)
refused("ConflictException", c.create_state_machine_alias, name="PROD", routingConfiguration=[
    {"stateMachineVersionArn": arn + ":1", "weight": 100}])
told = c.describe_state_machine_alias(stateMachineAliasArn=alias)
assert (told["name"], told["description"], told["routingConfiguration"]) == ("PROD", "d", routes)
assert [a["stateMachineAliasArn"] for a in c.list_state_machine_aliases(stateMachineArn=arn)["stateMachineAliases"]] == [alias]
assert c.list_state_machine_aliases(stateMachineArn=arn + ":9")["stateMachineAliases"] == []
refused("ValidationException", c.create_state_machine_alias, name="X", routingConfiguration=[
    {"stateMachineVersionArn": arn + ":1", "weight": 50}])
refused("ResourceNotFound", c.create_state_machine_alias, name="X", routingConfiguration=[
    {"stateMachineVersionArn": arn + ":9", "weight": 100}])
refused("ConflictException", c.delete_state_machine_version, stateMachineVersionArn=arn + ":1")
c.update_state_machine_alias(stateMachineAliasArn=alias, routingConfiguration=[
    {"stateMachineVersionArn": arn + ":2", "weight": 100}])
assert c.describe_state_machine_alias(stateMachineAliasArn=alias)["description"] == "d"
c.delete_state_machine_version(stateMachineVersionArn=arn + ":1")
c.delete_state_machine_version(stateMachineVersionArn=arn + ":1")
c.delete_state_machine_alias(stateMachineAliasArn=alias)
refused("ResourceNotFound", c.describe_state_machine_alias, stateMachineAliasArn=alias)
# A number is never given twice.
c.delete_state_machine_version(stateMachineVersionArn=arn + ":2")
assert c.publish_state_machine_version(stateMachineArn=arn)["stateMachineVersionArn"] == arn + ":3"

# Tags.
c.tag_resource(resourceArn=arn, tags=[{"key": "team", "value": "b"}, {"key": "x", "value": ""}])
assert c.list_tags_for_resource(resourceArn=arn)["tags"] == [{"key": "team", "value": "b"}, {"key": "x", "value": ""}]
c.untag_resource(resourceArn=arn, tagKeys=["team", "nothing"])
assert c.list_tags_for_resource(resourceArn=arn)["tags"] == [{"key": "x", "value": ""}]
refused("ResourceNotFound", c.list_tags_for_resource, resourceArn=arn + "x")
refused("TooManyTags", c.tag_resource, resourceArn=arn, tags=[{"key": str(i), "value": ""} for i in range(51)])

# Pages.
for i in range(5):
    c.create_state_machine(name=f"many-{i}", definition=definition, roleArn=ROLE, type="EXPRESS")
pages = list(c.get_paginator("list_state_machines").paginate(PaginationConfig={"PageSize": 2}))
names = [m["name"] for page in pages for m in page["stateMachines"]]
assert len(pages) == 3 and sorted(names) == ["HelloWorld"] + [f"many-{i}" for i in range(5)], names

# Activities.
activity = c.create_activity(name="Work")["activityArn"]
assert c.create_activity(name="Work")["activityArn"] == activity
assert c.describe_activity(activityArn=activity)["name"] == "Work"
assert [a["name"] for a in c.list_activities()["activities"]] == ["Work"]
c.delete_activity(activityArn=activity)
refused("ActivityDoesNotExist", c.describe_activity, activityArn=activity)

# Definitions without a run.
assert c.validate_state_machine_definition(definition=definition)["result"] == "OK"
bad = json.dumps({"StartAt": "A", "States": {"A": {"Type": "Pass", "Next": "B"}, "C": {"Type": "Odd", "End": True}}})
told = c.validate_state_machine_definition(definition=bad)
assert told["result"] == "FAIL" and len(told["diagnostics"]) >= 2, told
assert all(d["severity"] == "ERROR" and d["code"] and d["message"] for d in told["diagnostics"]), told
assert c.validate_state_machine_definition(definition=bad, maxResults=1)["truncated"] is True

state = json.dumps({"Type": "Task", "Resource": "arn:aws:states:::lambda:invoke", "Next": "N",
                    "Parameters": {"FunctionName": "f", "Payload.$": "$.x"},
                    "ResultSelector": {"y.$": "$.Payload"}, "ResultPath": "$.r", "OutputPath": "$.r",
                    "Retry": [{"ErrorEquals": ["Odd"], "MaxAttempts": 2, "IntervalSeconds": 3}],
                    "Catch": [{"ErrorEquals": ["States.ALL"], "ResultPath": "$.e", "Next": "C"}]})
tried = c.test_state(definition=state, roleArn=ROLE, input='{"x": 5}', inspectionLevel="DEBUG",
                     mock={"result": '{"Payload": 7}'})
assert (tried["status"], tried["output"], tried["nextState"]) == ("SUCCEEDED", '{"y":7}', "N"), tried
seen = tried["inspectionData"]
assert json.loads(seen["afterParameters"]) == {"FunctionName": "f", "Payload": 5}
assert json.loads(seen["afterResultPath"]) == {"x": 5, "r": {"y": 7}}
failed = {"errorOutput": {"error": "Odd", "cause": "why"}}
tried = c.test_state(definition=state, roleArn=ROLE, input='{"x": 5}', mock=failed)
assert (tried["status"], tried["error"]) == ("RETRIABLE", "Odd"), tried
tried = c.test_state(definition=state, roleArn=ROLE, input='{"x": 5}', mock=failed,
                     stateConfiguration={"retrierRetryCount": 2})
assert (tried["status"], tried["nextState"]) == ("CAUGHT_ERROR", "C"), tried
assert json.loads(tried["output"]) == {"x": 5, "e": {"Error": "Odd", "Cause": "why"}}
choice = json.dumps({"Type": "Choice", "Default": "no",
                     "Choices": [{"Variable": "$.n", "NumericGreaterThan": 3, "Next": "yes"}]})
assert c.test_state(definition=choice, input='{"n": 4}')["nextState"] == "yes"
assert c.test_state(definition=choice, input='{"n": 3}')["nextState"] == "no"
inner = {"StartAt": "P", "States": {"P": {"Type": "Pass", "Parameters": {"n.$": "$"}, "End": True}}}
spread = json.dumps({"Type": "Map", "ItemsPath": "$.all", "ItemProcessor": inner, "ResultPath": "$.done", "End": True})
tried = c.test_state(definition=spread, roleArn=ROLE, input='{"all": [1, 2]}')
assert json.loads(tried["output"]) == {"all": [1, 2], "done": [{"n": 1}, {"n": 2}]}, tried
tried = c.test_state(definition=json.dumps({"Type": "Fail", "Error": "E", "Cause": "C"}))
assert (tried["status"], tried["error"], tried["cause"]) == ("FAILED", "E", "C")
refused("ValidationException", c.test_state, definition=state)
refused("InvalidDefinition", c.test_state, definition='{"Type": "Odd"}')

# Gone, and gone again.
for i in range(5):
    c.delete_state_machine(stateMachineArn=arn.replace("HelloWorld", f"many-{i}"))
c.delete_state_machine(stateMachineArn=arn)
c.delete_state_machine(stateMachineArn=arn)
refused("StateMachineDoesNotExist", c.describe_state_machine, stateMachineArn=arn)
assert c.list_state_machines()["stateMachines"] == []
