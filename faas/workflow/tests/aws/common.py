"""A client of the endpoint, and what must fail."""
import json
import sys

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

URL = sys.argv[1]
ROLE = "arn:aws:iam::123456789012:role/anything"


def client(key="AKIDEXAMPLE", secret="wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY", region="eu-central-1", **more):
    # Some operations would be sent to the host sync-HOST otherwise.
    config = Config(inject_host_prefix=False, retries={"max_attempts": 1, "mode": "standard"},
                    parameter_validation=False, read_timeout=70)
    return boto3.client("stepfunctions", endpoint_url=URL, region_name=region, aws_access_key_id=key,
                        aws_secret_access_key=secret, config=config, **more)


def refused(name, call, /, **arguments):
    """Calls, and wants an error of this name; its message comes back."""
    try:
        answer = call(**arguments)
    except ClientError as e:
        assert e.response["Error"]["Code"] == name, f"{e.response['Error']} is not {name}"
        return e.response["Error"]["Message"]
    raise AssertionError(f"{name} expected, answered {answer}")


def machine(*states, **more):
    """A definition of states one after the other: (name, state)."""
    named = {}
    for i, (name, state) in enumerate(states):
        follow = {} if state["Type"] in ("Choice", "Succeed", "Fail") or "Next" in state else (
            {"Next": states[i + 1][0]} if i + 1 < len(states) else {"End": True})
        named[name] = {**state, **follow}
    return json.dumps({"StartAt": states[0][0], "States": named, **more})
