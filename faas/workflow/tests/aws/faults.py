"""Requests that are refused: signatures, rights, shapes, names."""
import urllib.request
import urllib.error
import json
import time

from common import ROLE, URL, client, machine, refused

c = client()
definition = machine(("A", {"Type": "Succeed"}))
arn = c.create_state_machine(name="m", definition=definition, roleArn=ROLE)["stateMachineArn"]

# Who asks.
refused("UnrecognizedClientException", client(key="AKIDNOBODY").list_state_machines)
told = refused("InvalidSignatureException", client(secret="x" * 40).list_state_machines)
assert "does not match" in told
refused("UnrecognizedClientException", client(aws_session_token="made-up").list_state_machines)
try:
    request = urllib.request.Request(URL, data=b"{}", headers={"X-Amz-Target": "AWSStepFunctions.ListStateMachines"})
    urllib.request.urlopen(request)
    raise AssertionError("answered without a signature")
except urllib.error.HTTPError as e:
    assert e.code == 400 and json.load(e)["__type"] == "MissingAuthenticationTokenException"
# A key is good for its namespace.
other = client(key="AKIDOTHER")
assert other.list_state_machines()["stateMachines"] == []
refused("AccessDeniedException", other.describe_state_machine, stateMachineArn=arn)
# The key's account has no rights.
told = refused("AccessDeniedException", client(key="AKIDREADER", secret="another-secret-access-key").list_state_machines)
assert "system:serviceaccount:default:reader" in told and "list workflows" in told, told

# What is asked.
told = refused("ValidationException", c.start_execution)
assert told == ("1 validation error detected: Value null at 'stateMachineArn' failed to satisfy constraint: "
                "Member must not be null"), told
refused("ValidationException", c.list_state_machines, maxResults=1001)
refused("InvalidToken", c.list_state_machines, nextToken="%%")
refused("InvalidArn", c.describe_state_machine, stateMachineArn="nothing")
refused("InvalidArn", c.describe_state_machine, stateMachineArn=arn.replace("stateMachine", "activity"))
refused("InvalidArn", c.create_state_machine, name="x", definition=definition, roleArn="role")
refused("StateMachineDoesNotExist", c.start_execution, stateMachineArn=arn + "x")
refused("InvalidName", c.create_state_machine, name="a b", definition=definition, roleArn=ROLE)
refused("InvalidName", c.start_execution, stateMachineArn=arn, name="a/b")
told = refused("InvalidDefinition", c.create_state_machine, name="bad", roleArn=ROLE,
               definition='{"StartAt": "A", "States": {"A": {"Type": "Pass", "Next": "B"}}}')
assert "MISSING_TRANSITION_TARGET" in told and "/States/A/Next" in told, told
refused("InvalidDefinition", c.create_state_machine, name="bad", roleArn=ROLE, definition="no json: [")
refused("InvalidExecutionInput", c.start_execution, stateMachineArn=arn, input="{")
refused("ValidationException", c.start_execution, stateMachineArn=arn, input='"' + "x" * 262144 + '"')
refused("StateMachineTypeNotSupported", c.start_sync_execution, stateMachineArn=arn)
refused("ExecutionDoesNotExist", c.describe_execution, executionArn=arn.replace("stateMachine", "execution") + ":x")
refused("MissingRequiredParameter", c.update_state_machine, stateMachineArn=arn)
refused("InvalidToken", c.send_task_success, taskToken="made-up", output="{}")
refused("ActivityDoesNotExist", c.get_activity_task, activityArn=arn.replace("stateMachine", "activity"))
refused("InvalidEncryptionConfiguration", c.create_state_machine, name="k", definition=definition, roleArn=ROLE,
        encryptionConfiguration={"type": "CUSTOMER_MANAGED_KMS_KEY", "kmsKeyId": "k"})

# Started with a used name: while that execution runs the same answer for the same input; refused otherwise.
waits = c.create_state_machine(name="waits", roleArn=ROLE, definition=machine(("W", {"Type": "Wait", "Seconds": 3600})))
waits = waits["stateMachineArn"]
one = c.start_execution(stateMachineArn=waits, name="Run_1", input='{"a": 1}')
assert one["executionArn"] == waits.replace("stateMachine", "execution") + ":Run_1", one
assert c.start_execution(stateMachineArn=waits, name="Run_1", input='{"a":1}')["executionArn"] == one["executionArn"]
refused("ExecutionAlreadyExists", c.start_execution, stateMachineArn=waits, name="Run_1", input='{"a": 2}')
seen = c.describe_execution(executionArn=one["executionArn"])
assert (seen["name"], seen["stateMachineArn"], json.loads(seen["input"])) == ("Run_1", waits, {"a": 1}), seen
c.stop_execution(executionArn=one["executionArn"])
deadline = time.monotonic() + 30
while c.describe_execution(executionArn=one["executionArn"])["status"] == "RUNNING":
    assert time.monotonic() < deadline, "it was not stopped"
    time.sleep(0.05)
refused("ExecutionAlreadyExists", c.start_execution, stateMachineArn=waits, name="Run_1", input='{"a": 1}')
