#!/usr/bin/env python3
"""Writes faas/workflow/src/endpoint/model.rs: what a request to each operation of the Step Functions API may look like.

The service's model is data inside botocore (Apache-2.0; pip install botocore). Only the members of requests are taken,
with their types and bounds, and the names of each operation's errors.
    hack/states-model.py PATH/service-2.json.gz > faas/workflow/src/endpoint/model.rs
"""
import gzip
import json
import re
import sys

model = json.load(gzip.open(sys.argv[1]))
shapes = model["shapes"]
done = {}
out = []


def text(s):
    return 'r#"' + s + '"#' if '"' in s or "\\" in s else '"' + s + '"'


def option(v):
    return "None" if v is None else f"Some({v})"


def ident(name):
    return "S_" + re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).upper()


def emit(name):
    if name in done:
        return done[name]
    s = shapes[name]
    done[name] = ident(name)
    kind = s["type"]
    low, high = s.get("min"), s.get("max")
    if kind == "string":
        values = ", ".join(text(v) for v in s.get("enum", []))
        pattern = s.get("pattern")
        pattern = f"Some({text(pattern)})" if pattern else "None"
        body = (f"Shape::Text {{ min: {low or 0}, max: {option(high)}, pattern: {pattern}, "
                f"values: &[{values}], secret: {str(s.get('sensitive', False)).lower()} }}")
    elif kind in ("integer", "long"):
        body = f"Shape::Whole {{ min: {option(low)}, max: {option(high)} }}"
    elif kind in ("float", "double"):
        body = f"Shape::Float {{ min: {option(low and float(low) or (0.0 if low == 0 else None))}, max: {option(high and float(high))} }}"
    elif kind == "boolean":
        body = "Shape::Boolean"
    elif kind == "list":
        body = f"Shape::List {{ of: &{emit(s['member']['shape'])}, min: {low or 0}, max: {option(high)} }}"
    elif kind == "structure":
        required = s.get("required", [])
        members = ", ".join(
            f'Member {{ name: "{m}", required: {str(m in required).lower()}, shape: &{emit(v["shape"])} }}'
            for m, v in s["members"].items())
        body = f"Shape::Structure(&[{members}])"
    else:
        raise SystemExit(f"{name}: {kind} is not known here")
    out.append(f"static {done[name]}: Shape = {body};")
    return done[name]


operations = []
for name, operation in sorted(model["operations"].items()):
    shape = emit(operation["input"]["shape"])
    errors = ", ".join(f'"{e["shape"]}"' for e in sorted(operation.get("errors", []), key=lambda e: e["shape"]))
    operations.append(f'Operation {{ name: "{name}", input: &{shape}, errors: &[{errors}] }},')

print(f"""//! What a request to each operation of the Step Functions API may look like. A table: it may be long.
//!
//! Written by hack/states-model.py from the service's model of {model['metadata']['apiVersion']} inside botocore. Do not edit.

use super::check::{{Member, Operation, Shape}};

/// The operations, by name.
pub(crate) static OPERATIONS: &[Operation] = &[
    {chr(10).join('    ' + o for o in operations).strip()}
];
""")
print("\n".join(out))
