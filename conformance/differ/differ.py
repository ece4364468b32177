#!/usr/bin/env python3
"""Asks two API servers the same and shows where their answers differ.

  differ.py mutate --upstream URL --token T --ours KUBECONFIG [--seed N] [--each N] [--out FILE] [AREA or AREA/NAME ...]
  differ.py read   --upstream URL --token T --ours KUBECONFIG [--seed N] [--requests N] [--out FILE]
  differ.py write  --upstream URL --token T --ours KUBECONFIG [--seed N] [--rounds N] [--steps N] [--out FILE] [KIND ...]
  differ.py habits --upstream URL --token T --ours KUBECONFIG [--seed N] [--each N] [--out FILE] [KIND ...]

`mutate` plays the recorded scenarios of conformance/vectors on both servers and, before each writing step, sends --each
changed forms of its body as dry runs: fields removed, doubled, of another type, at an edge, taken from another scenario.
`read` makes a few objects on both and then sends reads, deletions and patches with odd options, media types and verbs.
`write` does the same random sequence of writes to objects of both, `habits` sends --each objects of each kind the same few
requests (both in sequences.py).
Upstream's server is the one at --upstream (see hack/conformance.sh server), with a token of an administrator.

What differs from run to run is masked. Where upstream itself answers differently when it is asked again (it walks its maps
in no order), the request does not count. Each difference is one line of JSON in --out; a count per kind of difference is
printed, and last the number of requests and of differences. Starts nothing and ends nothing; uses namespaces and objects of
its own and removes them. Needs python3 and kubectl (to read the kubeconfig).
"""
import argparse
import base64
import collections
import copy
import glob
import http.client
import json
import os
import random
import re
import ssl
import subprocess
import tempfile
import time
import urllib.parse
import uuid

import sequences

VECTORS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "vectors")
JSON = {"Content-Type": "application/json"}
UID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")
ASKED_AGAIN = 4  # times, before upstream is held to what it said


class Server:
    """One connection, opened again when it was closed."""

    def __init__(self, url, token=None, cert=None, key=None):
        self.url, self.token, self.connection = urllib.parse.urlsplit(url), token, None
        self.context = ssl._create_unverified_context()
        self.anonymous = Server(url) if cert else None
        if cert:
            self.context.load_cert_chain(cert, key)

    def call(self, method, path, headers=None, body=None):
        if self.anonymous and "Authorization" in (headers or {}):
            return self.anonymous.call(method, path, headers, body)
        all_headers = {"User-Agent": "differ/1", "Accept": "application/json"}
        if self.token:
            all_headers["Authorization"] = "Bearer " + self.token
        all_headers |= headers or {}
        all_headers = {k: v for k, v in all_headers.items() if v is not None}
        for last in (False, True):
            try:
                if self.connection is None:
                    at = (self.url.hostname, self.url.port)
                    self.connection = http.client.HTTPSConnection(*at, context=self.context, timeout=30)
                self.connection.request(method, path, body=body, headers=all_headers)
                answer = self.connection.getresponse()
                data = answer.read()
                if answer.will_close:
                    self.connection.close()
                    self.connection = None
                return answer.status, answer.msg, data
            except (http.client.HTTPException, OSError):
                self.connection = None
                if last:
                    raise


def from_kubeconfig(path):
    cmd = ["kubectl", "config", "view", "--raw", "--minify", "--flatten", "-o", "json", "--kubeconfig", path]
    k = json.loads(subprocess.run(cmd, capture_output=True, check=True, text=True).stdout)
    cluster, user = k["clusters"][0]["cluster"], k["users"][0]["user"]

    def file(data):
        if data is None:
            return None
        with tempfile.NamedTemporaryFile(delete=False) as f:
            f.write(base64.b64decode(data))
        return f.name

    pair = file(user.get("client-certificate-data")), file(user.get("client-key-data"))
    server = Server(cluster["server"], user.get("token"), *pair)
    for name in filter(None, pair):
        os.unlink(name)
    return server


def fill(value, names):
    if isinstance(value, str):
        for name, text in names.items():
            value = value.replace("{" + name + "}", text)
        return value
    if isinstance(value, list):
        return [fill(x, names) for x in value]
    if isinstance(value, dict):
        return {fill(k, names): fill(x, names) for k, x in value.items()}
    return value


def text_of(value, names, sent):
    for name in sorted(names, key=lambda n: -len(names[n])):
        if len(names[name]) > 3:
            value = value.replace(names[name], "{" + name + "}")
    value = UID.sub("<uid>", value)
    if "json: cannot unmarshal" in value or "Go struct field" in value or "invalid character" in value:
        return "<any>"
    if "not currently held" not in value:
        value = value.split("\n")[0]
    # Values in the form of upstream's own language, allocated numbers, and the store's own words for its keys.
    value = re.sub(r"value: [\[{].*?[\]}](: |$)", lambda m: "value: <value>" + m[1] if re.search(r'[{]"[A-Z]', m[0]) or len(m[0]) > 100 else m[0], value)
    value = re.sub(r'Invalid value: "\{.*\}": ', "Invalid value: <value>: ", value)
    value = re.sub(r"Duplicate value: 3\d{4}", "Duplicate value: <port>", value)
    value = re.sub(r"Key: (/registry)?/", "Key: /", value)
    value = re.sub(r"\(\d+\)|(?<=resource version: )\d+|(?<=current: )\d+|(?<=resourceVersion: )\d+", "<rv>", value)
    return re.sub(r'"10\.\d+\.\d+\.\d+"', lambda m: m[0] if m[0].strip('"') in sent else '"<ip>"', value)


def normal(value, names, sent="", key=""):
    """An answer without what differs from run to run."""
    if isinstance(value, dict):
        out = {}
        for k, x in value.items():
            # The description of a table's column is prose.
            if k == "storageVersionHash" or (k == "description" and "format" in value and "priority" in value):
                continue
            # Upstream names whose fields are in the way in no order.
            if k == "causes" and isinstance(x, list) and all(c.get("reason") == "FieldManagerConflict" for c in x):
                x = sorted(x, key=lambda c: c["message"])
            if k == "managedFields" and isinstance(x, list):
                x = sorted(x, key=lambda f: [f.get(p, "") for p in ("manager", "operation", "subresource", "apiVersion")])
            if k == "name" and isinstance(x, str) and value.get("generateName"):
                x = "<generated>"
            out[text_of(k, names, sent)] = normal(x, names, sent, k)
        return out
    if isinstance(value, list):
        return [normal(x, names, sent, key) for x in value]
    if isinstance(value, int) and key in ("nodePort", "healthCheckNodePort", "remainingItemCount") and str(value) not in sent:
        return "<number>"
    if not isinstance(value, str):
        return value
    if key in ("resourceVersion", "continue", "uid") and value not in ("", "0"):
        return "<" + key + ">"
    if key == "token" and value.count(".") == 2:
        return "<token>"
    if (TIME.match(value) and value not in sent) or (key == "cells" and re.match(r"^(\d+[smhdy])+( ago)?$", value)):
        return "<time>"
    if key in ("clusterIP", "clusterIPs", "cells") and re.match(r"^10\.\d+\.\d+\.\d+$", value) and value not in sent:
        return "<ip>"
    return re.sub(r"kube-api-access-[a-z0-9]{5}", "kube-api-access-<rand>", text_of(value, names, sent))


def difference(a, b, at=""):
    """The first difference between upstream's answer a and ours b."""
    if isinstance(a, dict) and isinstance(b, dict):
        for k in sorted(a.keys() | b.keys()):
            if k not in a or k not in b:
                return f"{at}.{k}: only {'ours' if k in b else 'upstream'} has it: {json.dumps(b.get(k, a.get(k)))[:200]}"
            found = difference(a[k], b[k], f"{at}.{k}")
            if found:
                return found
        return None
    if isinstance(a, list) and isinstance(b, list):
        for i, (x, y) in enumerate(zip(a, b)):
            found = difference(x, y, f"{at}[{i}]")
            if found:
                return found
        return None if len(a) == len(b) else f"{at}: {len(a)} items upstream, {len(b)} ours"
    if isinstance(a, str) and isinstance(b, str):
        if "<any>" in (a, b) or re.fullmatch(re.escape(a).replace("<value>", ".*"), b):
            return None
    return None if a == b and type(a) is type(b) else f"{at}: {json.dumps(a)[:300]} upstream, {json.dumps(b)[:300]} ours"


class Comparison:
    def __init__(self, args):
        self.upstream, self.ours = Server(args.upstream, args.token), from_kubeconfig(args.ours)
        self.out = open(args.out, "w") if args.out else None
        self.rng, self.requests, self.kinds, self.begun = random.Random(args.seed), 0, collections.Counter(), time.time()
        self.history = []  # requests to upstream that a difference may come from

    def raw(self, server, names, method, path, headers, body):
        path = urllib.parse.quote(fill(path, names), safe="/?&=%,;:@!$'()*+~")
        body = fill(copy.deepcopy(body), names)
        if body is not None and not isinstance(body, str):
            body = json.dumps(body)
        headers = fill(dict(headers or {}), names)
        if body is not None:
            headers = JSON | headers
        status, got, data = server.call(method, path, headers, body.encode() if body is not None else None)
        media, text = (got.get("Content-Type") or "").split(";")[0], data.decode("utf-8", "replace")
        value = text
        if "json" in media:
            try:
                value = json.loads(text)
            except ValueError:
                value = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return status, media, value, got.get_all("Warning") or [], path + (body or "")

    def answer(self, server, names, request, own=False):
        """own: the request repeats what the server chose itself, so that is no reason to compare it."""
        status, media, value, warnings, sent = self.raw(server, names, *request)
        sent = "" if own else sent
        warnings = sorted(normal(w, names, sent) for w in warnings)
        return {"status": status, "type": media, "body": normal(value, names, sent), "warnings": warnings}

    def compare(self, label, names, request, again=True):
        """Sends a request to both; names are those of upstream's and of our objects. Whether they answer the same."""
        return self.compare_pair(label, names, (request, request), again)

    def compare_pair(self, label, names, requests, again=True):
        """The same with a request for each. again: it changes nothing, so upstream may be asked again."""
        try:
            servers = (self.upstream, self.ours)
            theirs, ours = (self.answer(*each, own=not again) for each in zip(servers, names, requests))
        except (http.client.HTTPException, OSError):
            return True  # upstream falls over some bodies; there is nothing to compare with
        self.requests += 1
        found = difference(theirs, ours)
        if not found:
            return True
        for _ in range(ASKED_AGAIN if again else 0):
            more = self.answer(self.upstream, names[0], requests[0])
            if difference(more, theirs) or not difference(more, ours):
                return True
        kind = f"{label} | " + re.sub(r"\[\d+\]", "[*]", found.split(": ")[0])
        self.kinds[kind] += 1
        if self.out:
            line = {"label": label, "difference": found, "request": requests[0], "upstream": theirs, "ours": ours, "history": self.history}
            self.out.write(json.dumps(line) + "\n")
            self.out.flush()
        return False

    def namespaces(self):
        names = []
        for server in (self.upstream, self.ours):
            word = "x" + uuid.uuid4().hex[:7]
            ns = "v-" + word
            names.append({"id": word, "ns": ns})
            for path, kind, name in [("/api/v1/namespaces", "Namespace", ns), (f"/api/v1/namespaces/{ns}/serviceaccounts", "ServiceAccount", "default")]:
                made = {"apiVersion": "v1", "kind": kind, "metadata": {"name": name}}
                server.call("POST", path, JSON, json.dumps(made))
        return names

    def forget(self, names):
        for server, n in zip((self.upstream, self.ours), names):
            server.call("DELETE", "/api/v1/namespaces/" + n["ns"])

    def report(self):
        for kind, count in self.kinds.most_common():
            print(count, kind)
        total = sum(self.kinds.values())
        print(f"{self.requests} requests, {total} answered differently ({len(self.kinds)} kinds), {time.time() - self.begun:.0f} s")


# --- mutate ---------------------------------------------------------------------------------------------------------------

TEXTS = ["", "-", "A_B.c", "a" * 64, "a" * 260, "1", " x", "é", "example.com/x", "10.0.0.1", "*", "a/b/c", "-1", "0", "100%", "1Gi", "2001:db8::1"]
NUMBERS = [-1, 0, 1, 2, 65536, 2**31, 1.5, "1", 10**12]
OTHER = ["x", 7, True, [], {}, ["x"], {"a": "b"}]


def nodes(value, at=()):
    yield at, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for k, x in pairs:
        yield from nodes(x, at + (k,))


def place(at):
    return ".".join("*" if isinstance(k, int) else k for k in at)


class Mutator:
    def __init__(self, rng):
        self.rng, self.pool = rng, collections.defaultdict(list)
        for file in sorted(glob.glob(VECTORS + "/*/*.json")):
            for step in json.load(open(file))["steps"]:
                body = step["request"].get("body")
                if isinstance(body, dict) and body.get("kind"):
                    for at, value in nodes(body):
                        self.pool[body["kind"], place(at)].append(value)

    def edge(self, value):
        if isinstance(value, bool):
            return self.rng.choice([not value, "true", None])
        if isinstance(value, (int, float)):
            return self.rng.choice(NUMBERS)
        if isinstance(value, str):
            return self.rng.choice(TEXTS)
        return self.rng.choice([[], None, [None]] if isinstance(value, list) else [{}, None])

    def mutate(self, body):
        """Changes body in one place; says how, or None when it did not."""
        kind, rng = body.get("kind", "") if isinstance(body, dict) else "", self.rng
        keep = (("metadata",), ("metadata", "name"))
        places = [(at, v) for at, v in nodes(body) if at and at[0] not in ("kind", "apiVersion") and at not in keep]
        if not places:
            return None
        at, value = rng.choice(places)
        parent = body
        for k in at[:-1]:
            parent = parent[k]
        how = rng.choice(["remove", "edge", "edge", "other", "other", "type", "unknown", "double", "sibling"])
        if how == "remove":
            del parent[at[-1]]
        elif how == "edge":
            parent[at[-1]] = self.edge(value)
        elif how == "type":
            parent[at[-1]] = copy.deepcopy(rng.choice([x for x in OTHER if type(x) is not type(value)]))
        elif how == "other":
            others = [x for x in self.pool.get((kind, place(at)), []) if x != value]
            if not others:
                return None
            parent[at[-1]] = copy.deepcopy(rng.choice(others))
        elif how == "double" and isinstance(value, list) and value:
            value.append(copy.deepcopy(value[-1]))
        elif how == "unknown" and isinstance(value, dict):
            value["bogus"] = 1
        elif how == "sibling" and isinstance(value, dict):
            above = place(at) + "."
            fields = {p[len(above):] for k, p in self.pool if k == kind and p.startswith(above)}
            fields = sorted(f for f in fields if "." not in f and f != "*" and f not in value)
            if not fields:
                return None
            field = rng.choice(fields)
            value[field] = copy.deepcopy(rng.choice(self.pool[kind, above + field]))
        else:
            return None
        return f"{how} {place(at)}"


def pick(value, path):
    for p in path.split("."):
        value = value[int(p)] if isinstance(value, list) else value.get(p)
        if value is None:
            return ""
    return str(value)


def mutate(args):
    c = Comparison(args)
    mutator = Mutator(c.rng)
    files = []
    for area in args.areas or ["*/*"]:
        files += glob.glob(f"{VECTORS}/{area}.json" if "/" in area else f"{VECTORS}/{area}/*.json")
    for file in sorted(files):
        scenario = json.load(open(file))
        if any("watch" in step["request"]["path"] for step in scenario["steps"]):
            continue
        names = c.namespaces()
        try:
            for step in scenario["steps"]:
                q = step["request"]
                time.sleep(min(q.get("wait", 0), 1))
                media = (q.get("headers") or {}).get("Content-Type", "json")
                if isinstance(q.get("body"), (dict, list)) and q["method"] in ("POST", "PUT", "PATCH") and "json" in media:
                    for _ in range(args.each):
                        body = copy.deepcopy(q["body"])
                        how = [mutator.mutate(body) for _ in range(c.rng.choice([1, 1, 1, 2]))]
                        if body == q["body"] or not any(how):
                            continue
                        path = q["path"] + ("" if "dryRun" in q["path"] else ("&" if "?" in q["path"] else "?") + "dryRun=All")
                        if c.rng.random() < 0.15 and "fieldValidation" not in path:
                            path += "&fieldValidation=" + c.rng.choice(["Strict", "Warn", "Ignore"])
                        kind = q["body"].get("kind", "patch") if isinstance(q["body"], dict) else "patch"
                        label = f"{kind} {q['method']} {' + '.join(filter(None, how))}"
                        c.compare(label, names, (q["method"], path, q.get("headers"), body))
                for server, n in zip((c.upstream, c.ours), names):
                    end = time.time() + 5
                    while True:
                        status, _, value, _, _ = c.raw(server, n, q["method"], q["path"], q.get("headers"), q.get("body"))
                        if "until" not in q or status == q["until"] or time.time() > end:
                            break
                        time.sleep(0.1)
                    for name, path in (q.get("save") or {}).items():
                        n[name] = pick(value, path) if isinstance(value, (dict, list)) else ""
        finally:
            c.forget(names)
    c.report()


# --- read -----------------------------------------------------------------------------------------------------------------

OBJECTS = [
    ("/api/v1/namespaces/{ns}/configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "data": {"k": "v"}}),
    ("/api/v1/namespaces/{ns}/secrets", {"apiVersion": "v1", "kind": "Secret", "stringData": {"k": "v"}}),
    ("/api/v1/namespaces/{ns}/services", {"apiVersion": "v1", "kind": "Service", "spec": {"ports": [{"port": 80}]}}),
    ("/api/v1/namespaces/{ns}/pods", {"apiVersion": "v1", "kind": "Pod", "spec": {"automountServiceAccountToken": False, "containers": [{"name": "c", "image": "i:1"}]}}),
    ("/apis/apps/v1/namespaces/{ns}/deployments", {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"paused": True, "replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i:1"}]}}}}),
    ("/apis/batch/v1/namespaces/{ns}/jobs", {"apiVersion": "batch/v1", "kind": "Job", "spec": {"suspend": True, "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}}}}),
    ("/apis/coordination.k8s.io/v1/namespaces/{ns}/leases", {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": {"holderIdentity": "me"}}),
    ("/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/roles", {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": []}),
]
LIST_OPTIONS = {
    "limit": ["0", "1", "2", "-1", "x", "500", ""],
    "continue": ["", "x", "eyJ2IjoibWV0YS5rOHMuaW8vdjEifQ"],
    "resourceVersion": ["0", "1", "", "abc", "-1", "99999999"],
    "resourceVersionMatch": ["Exact", "NotOlderThan", "", "Foo"],
    "fieldSelector": ["metadata.name=a", "metadata.name!=a", "spec.foo=1", "=", "metadata.name", "metadata.namespace={ns}", "a==b,c", "status.phase=Pending", "spec.nodeName=", "type=Opaque"],
    "labelSelector": ["l=a", "l!=a", "l in (a,b)", "!l", "l", "l=(", "l in ()", "n>1", "n<3", "A_B=c d", "x y", "l notin (a)", ",", "a/b/c=d", "l=" + "v" * 64],
    "watch": ["false", "0", "maybe"],
    "timeoutSeconds": ["1", "x", "-1"],
    "allowWatchBookmarks": ["true", "maybe"],
    "sendInitialEvents": ["true", "false", "x"],
    "pretty": ["true"],
    "unknownOption": ["1"],
}
MEDIA = [None, "application/json", "*/*", "application/yaml", "text/plain", "application/xml", "application/*", "",
         "application/json;as=Table;v=v1;g=meta.k8s.io", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
         "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io", "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io",
         "application/json;as=Foo;v=v1;g=meta.k8s.io", "application/json;as=Table;v=v2;g=meta.k8s.io", "application/json;stream=watch", "application/xml,application/json;q=0.5"]
WRITE_OPTIONS = {
    "dryRun": ["All", "Foo", "All&dryRun=All", ""],
    "fieldValidation": ["Strict", "Warn", "Ignore", "Foo", ""],
    "fieldManager": ["m", "m" * 129, "a%0Ab", ""],
    "force": ["true", "false", "x"],
}
DELETE_OPTIONS = {
    "propagationPolicy": ["Foreground", "Background", "Orphan", "Foo", ""],
    "gracePeriodSeconds": ["0", "-1", "x", "30"],
    "orphanDependents": ["true", "false", "x"],
}
DELETE_BODIES = [None, {}, {"preconditions": {"uid": "x"}}, {"preconditions": {"resourceVersion": "1"}}, {"propagationPolicy": "Foo"},
                 {"propagationPolicy": "Orphan", "orphanDependents": True}, {"gracePeriodSeconds": -1}, {"gracePeriodSeconds": "x"},
                 {"kind": "DeleteOptions", "apiVersion": "v1"}, {"kind": "Foo", "apiVersion": "v1"}, {"dryRun": ["Foo"]}, {"bogus": 1}, [], "x"]
PATCHES = [
    ("application/merge-patch+json", [{"metadata": {"labels": {"l": "z"}}}, {"metadata": {"name": "other"}}, {"metadata": {"resourceVersion": "1"}}, {"metadata": {"uid": "x"}}, {"bogus": 1}, {}, [], 7, None, "x", {"metadata": None}, {"kind": "Foo"}, {"metadata": {"labels": None}}, {"metadata": {"labels": {"l": 1}}}]),
    ("application/strategic-merge-patch+json", [{"metadata": {"labels": {"l": "z"}}}, {"metadata": {"$patch": "delete"}}, {"$patch": "replace"}, {"metadata": {"finalizers": ["e.com/x"]}}, {"bogus": 1}, {}, [], 7, None, "x", {"metadata": {"labels": {"$patch": "Foo"}}}]),
    ("application/json-patch+json", [[], [{"op": "add", "path": "/metadata/labels/z", "value": "1"}], [{"op": "remove", "path": "/metadata/labels/none"}], [{"op": "test", "path": "/metadata/name", "value": "a"}], [{"op": "test", "path": "/metadata/name", "value": "b"}], [{"op": "move", "from": "/metadata/labels/l", "path": "/metadata/labels/m"}], [{"op": "copy", "from": "/none", "path": "/metadata/labels/m"}], [{"op": "foo", "path": "/x"}], [{"op": "replace", "path": "", "value": {}}], [{"path": "/x"}], {}, 7, "x", [{"op": "add", "path": "x", "value": 1}], [{"op": "add", "path": "/metadata/labels"}]]),
    ("application/apply-patch+yaml", [{"metadata": {"name": "a", "labels": {"l": "y"}}}, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}, {}, "x: [", "- a"]),
    ("application/json", [{}]), ("text/plain", ["x"]), ("application/merge-patch+json; charset=utf-8", [{}]), ("", [{}]),
]
ODD = ["/api/v1/namespaces/{ns}/nothings", "/apis/none.example.com/v1/things", "/apis/apps/v9/deployments", "/api/v1/namespaces/{ns}/configmaps/a/none",
       "/api/v1/configmaps/a", "/api/v1/namespaces/{ns}/pods/a/log", "/api/v1/namespaces/{ns}/pods/a/status", "/api/v1/namespaces/{ns}/pods/a/eviction",
       "/api/v1/namespaces/{ns}/pods/a/binding", "/apis/apps/v1/namespaces/{ns}/deployments/a/scale", "/api/v1/namespaces/{ns}/finalize", "/api/v1/namespaces/{ns}/status",
       "/api/v1/nodes", "/api/v1/namespaces/none/configmaps", "/api", "/apis", "/api/v1", "/apis/apps", "/apis/apps/v1", "/version", "/nothing", "/api/v1/namespaces/{ns}/"]


class Reader:
    def __init__(self, rng):
        self.rng = rng

    def options(self, known, most):
        chosen = self.rng.sample(sorted(known), self.rng.randint(0, most))
        return [f"{name}={self.rng.choice(known[name])}" for name in chosen]

    def request(self):
        rng = self.rng
        collection = rng.choice(OBJECTS)[0]
        target = rng.choice([collection, collection, collection + "/a", collection + "/none", collection.replace("/namespaces/{ns}", ""), rng.choice(ODD)])
        headers, body = {}, None
        method = rng.choice(["GET"] * 5 + ["PATCH"] * 3 + ["DELETE", "DELETE", "POST", "PUT", "OPTIONS", "FOO"])
        if method == "GET":
            query = self.options(LIST_OPTIONS, 3)
            # Lists of all namespaces have what others made.
            if "{ns}" not in target and "/none" not in target:
                query.append("labelSelector=only%3D{id}")
        elif method == "PATCH":
            query = ["dryRun=All"] + self.options(WRITE_OPTIONS, 2)
            media, bodies = rng.choice(PATCHES)
            headers["Content-Type"], body = media, rng.choice(bodies)
            if body is None:
                body = "null"
        elif method == "DELETE":
            query, body = ["dryRun=All"] + self.options(DELETE_OPTIONS, 2), rng.choice(DELETE_BODIES)
            if "{ns}" not in target:
                target = collection + "/a"
        else:
            query = ["dryRun=All"] + self.options(WRITE_OPTIONS, 2)
            body = rng.choice([None, {}, [], "x", "{", {"metadata": {"name": "a"}}, {"kind": "Foo", "apiVersion": "v1"}, rng.choice(OBJECTS)[1]])
            headers["Content-Type"] = rng.choice(["application/json", "application/json", "application/yaml", "text/plain", "", "application/json; charset=utf-8"])
        accept = rng.choice(MEDIA) if rng.random() < 0.4 else None
        if accept is not None:
            headers["Accept"] = accept
        path = target + ("?" + "&".join(query) if query else "")
        return f"{method} {target} {headers.get('Content-Type', '')} {' '.join(q.split('=')[0] for q in query)}", (method, path, headers, body)


def read(args):
    c = Comparison(args)
    reader = Reader(c.rng)
    names = c.namespaces()
    try:
        for path, body in OBJECTS:
            for name, labels in [("a", {"l": "a", "n": "1"}), ("b", {"l": "b", "n": "2"}), ("c", {})]:
                made = body | {"metadata": {"name": name, "labels": labels}}
                for server, n in zip((c.upstream, c.ours), names):
                    c.raw(server, n, "POST", path, None, made)
        for _ in range(args.requests):
            c.compare(*(lambda label, request: (label, names, request))(*reader.request()))
    finally:
        c.forget(names)
    c.report()


# --- write ----------------------------------------------------------------------------------------------------------------


def write(args):
    sequences.run(Comparison(args), args.rounds, args.steps, args.kinds)


def habits(args):
    files = sorted(glob.glob(VECTORS + "/*/*.json"))
    sequences.habits(Comparison(args), [step for file in files for step in json.load(open(file))["steps"]], args.each, args.kinds)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = p.add_subparsers(required=True)
    for name, run in (("mutate", mutate), ("read", read), ("write", write), ("habits", habits)):
        m = modes.add_parser(name)
        m.set_defaults(run=run)
        m.add_argument("--upstream", required=True)
        m.add_argument("--token", required=True)
        m.add_argument("--ours", required=True, help="kubeconfig")
        m.add_argument("--seed", type=int, default=1)
        m.add_argument("--out")
        if run is mutate:
            m.add_argument("--each", type=int, default=3)
            m.add_argument("areas", nargs="*")
        elif run is habits:
            m.add_argument("--each", type=int, default=2)
            m.add_argument("kinds", nargs="*")
        elif run is write:
            m.add_argument("--rounds", type=int, default=3)
            m.add_argument("--steps", type=int, default=20)
            m.add_argument("kinds", nargs="*")
        else:
            m.add_argument("--requests", type=int, default=1000)
    args = p.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
