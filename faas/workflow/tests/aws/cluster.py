"""A cluster's endpoint by TLS, set up as docs/workflows.md says: URL, and the file with the cluster's CA."""
import json
import sys
import time

import boto3
from botocore.config import Config
from botocore.exceptions import SSLError

url, ca = sys.argv[1:]


def client(**more):
    config = Config(inject_host_prefix=False, retries={"max_attempts": 1, "mode": "standard"})
    return boto3.client("stepfunctions", endpoint_url=url, region_name="skiff", aws_access_key_id="AKIDCLUSTER",
                        aws_secret_access_key="not-a-secret-at-all", config=config, **more)


sfn = client(verify=ca)
definition = json.dumps({"StartAt": "W", "States": {
    "W": {"Type": "Wait", "Seconds": 1, "Next": "P"},
    "P": {"Type": "Pass", "Result": "done", "ResultPath": "$.is", "End": True}}})
machine = sfn.create_state_machine(name="tls", definition=definition, roleArn="arn:aws:iam::1:role/any")["stateMachineArn"]
run = sfn.start_execution(stateMachineArn=machine, input='{"x": 1}')["executionArn"]
until = time.monotonic() + 30
while (seen := sfn.describe_execution(executionArn=run))["status"] == "RUNNING" and time.monotonic() < until:
    time.sleep(0.1)
assert (seen["status"], json.loads(seen["output"])) == ("SUCCEEDED", {"x": 1, "is": "done"}), seen
kinds = [e["type"] for e in sfn.get_execution_history(executionArn=run)["events"]]
assert kinds == ["ExecutionStarted", "WaitStateEntered", "WaitStateExited", "PassStateEntered", "PassStateExited",
                 "ExecutionSucceeded"], kinds
tried = sfn.test_state(definition='{"Type": "Pass", "Result": 1, "End": true}', roleArn="arn:aws:iam::1:role/any")
assert (tried["status"], tried["output"]) == ("SUCCEEDED", "1"), tried

# Who does not know the CA does not believe the endpoint.
try:
    client().list_state_machines()
except SSLError:
    pass
else:
    raise AssertionError("a stranger's certificate was believed")
