"""Two more modes of differ.py. `write`: the same random sequence of writes to a few objects of both servers.

What one write leaves behind (owners of fields, generations, defaults, what a patch met) is seen by the next, so a
difference need not be in the answer of the request that caused it. Objects are described by what may vary in them: places,
and the values each may have. A write sets, changes or removes some of them, by one of the ways there are: create, update,
each kind of patch, server-side apply by one of several managers, the same of the status, delete. At the end the watch of all
of it is compared, too. `habits`: the same few requests to objects of every kind.
"""
import copy
import json
import time

JSON_TYPES = {
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "json": "application/json-patch+json",
    "apply": "application/apply-patch+yaml",
}
MANAGERS = ["one", "two", "three"]
GONE = object()  # a place that is not there

META = {
    "metadata.labels.l": ["a", "b", "c"],
    "metadata.labels.m": ["a", ""],
    "metadata.annotations.n": ["x", "y"],
    "metadata.finalizers": [["e.com/f"], ["e.com/f", "e.com/g"], ["e.com/g"]],
}


def container(name, *more):
    out = {"name": name, "image": "i:1"}
    for part in more:
        out |= part
    return out


PORT = {"ports": [{"containerPort": 80}]}
PORTS = {"ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 80, "protocol": "UDP"}, {"containerPort": 81, "protocol": "TCP"}]}
ENV = {"env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}
ENV2 = {"env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}]}
LIMITS = {"resources": {"limits": {"cpu": "1", "memory": "1024Mi"}, "requests": {"cpu": "0.5"}}}
MOUNT = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
PROBE = {"readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 3}}
TEMPLATE = {
    "metadata": {"labels": {"app": "x"}},
    "spec": {"containers": [container("a")], "volumes": [{"name": "v", "emptyDir": {}}]},
}
CONTAINERS = [
    [container("a")],
    [container("a", PORT), container("b")],
    [container("b", ENV), container("a", PORTS)],
    [container("a", ENV2, LIMITS)],
    [container("a", MOUNT, PROBE), container("c", {"args": ["x", "y"], "command": ["z"]})],
    [container("a", {"image": "i:2", "imagePullPolicy": "Never"}, ENV)],
]
OF_TEMPLATES = {
    "spec.template.spec.containers": CONTAINERS,
    "spec.template.metadata.labels.more": ["1", "2"],
    "spec.template.metadata.annotations.note": ["1", "2"],
    "spec.template.spec.nodeSelector.disk": ["ssd", "hdd"],
    "spec.template.spec.tolerations": [[{"key": "a", "operator": "Exists"}], [{"key": "a", "value": "b"}, {"operator": "Exists"}]],
    "spec.template.spec.terminationGracePeriodSeconds": [0, 30, 31],
    "spec.template.spec.securityContext": [{}, {"runAsUser": 5}],
    "spec.template.spec.hostAliases": [[{"ip": "1.2.3.4", "hostnames": ["a"]}], [{"ip": "1.2.3.4", "hostnames": ["b"]}, {"ip": "1.2.3.5"}]],
    "spec.template.spec.imagePullSecrets": [[{"name": "s"}], [{"name": "t"}, {"name": "s"}]],
    "spec.template.spec.topologySpreadConstraints": [[{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}]],
}
SELECTOR = {"selector": {"matchLabels": {"app": "x"}}, "template": TEMPLATE}
CONDITION = {"type": "A", "status": "True"}
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "boxes.{id}.example.com"},
    "spec": {
        "group": "{id}.example.com",
        "scope": "Namespaced",
        "names": {"plural": "boxes", "singular": "box", "kind": "Box", "listKind": "BoxList"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}},
                "schema": {
                    "openAPIV3Schema": {
                        "type": "object",
                        "properties": {
                            "spec": {
                                "type": "object",
                                "x-kubernetes-validations": [{"rule": "!has(oldSelf.fixed) || has(self.fixed)", "message": "fixed stays"}],
                                "properties": {
                                    "replicas": {"type": "integer", "default": 1, "minimum": 0},
                                    "fixed": {"type": "string"},
                                    "set": {"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"},
                                    "plain": {"type": "array", "items": {"type": "string"}},
                                    "map": {
                                        "type": "array",
                                        "x-kubernetes-list-type": "map",
                                        "x-kubernetes-list-map-keys": ["name", "kind"],
                                        "items": {
                                            "type": "object",
                                            "required": ["name"],
                                            "properties": {"name": {"type": "string"}, "kind": {"type": "string", "default": "k"}, "value": {"type": "integer", "nullable": True}},
                                        },
                                    },
                                    "one": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": {"type": "string"}},
                                    "each": {"type": "object", "additionalProperties": {"type": "string"}},
                                    "any": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                                    "either": {"x-kubernetes-int-or-string": True},
                                },
                            },
                            "status": {"type": "object", "properties": {"replicas": {"type": "integer"}, "said": {"type": "string"}}},
                        },
                    }
                },
            }
        ],
    },
}
# Collection, kind, what every object has, what may vary, what may vary in the status.
KINDS = [
    ("/api/v1/namespaces/{ns}/configmaps", "v1", "ConfigMap", {}, {"data.a": ["1", "2"], "data.b": ["1", ""], "binaryData.c": ["AA==", "AQ=="], "immutable": [True, False]}, {}),
    ("/api/v1/namespaces/{ns}/secrets", "v1", "Secret", {}, {"data.a": ["MQ==", "Mg=="], "stringData.a": ["x"], "stringData.b": ["y"], "type": ["Opaque", "e.com/t"]}, {}),
    ("/api/v1/namespaces/{ns}/services", "v1", "Service", {"spec": {"ports": [{"port": 80}]}}, {
        "spec.ports": [[{"port": 80}], [{"port": 80, "name": "a"}, {"port": 81, "name": "b", "targetPort": "x"}], [{"port": 80, "name": "a", "protocol": "UDP"}, {"port": 80, "name": "b"}], [{"port": 82, "appProtocol": "http"}]],
        "spec.selector.app": ["x", "y"], "spec.type": ["ClusterIP", "NodePort", "LoadBalancer"], "spec.sessionAffinity": ["ClientIP", "None"],
        "spec.externalTrafficPolicy": ["Local", "Cluster"], "spec.internalTrafficPolicy": ["Local"], "spec.publishNotReadyAddresses": [True, False], "spec.externalIPs": [["1.2.3.4"], ["1.2.3.4", "1.2.3.5"]],
        "spec.loadBalancerClass": ["e.com/lb"], "spec.allocateLoadBalancerNodePorts": [False]}, {"loadBalancer.ingress": [[{"ip": "9.9.9.9"}], [{"hostname": "h"}]]}),
    ("/api/v1/namespaces/{ns}/serviceaccounts", "v1", "ServiceAccount", {}, {"secrets": [[{"name": "a"}], [{"name": "b"}, {"name": "a"}]], "imagePullSecrets": [[{"name": "a"}]], "automountServiceAccountToken": [True, False]}, {}),
    ("/api/v1/namespaces/{ns}/resourcequotas", "v1", "ResourceQuota", {"spec": {}}, {"spec.hard.pods": ["1000", "1k", 2000], "spec.hard.cpu": ["100", "0.1"], "spec.scopes": [["BestEffort"]]}, {"hard.pods": ["1000"], "used.pods": ["0", "1"]}),
    ("/api/v1/namespaces/{ns}/pods", "v1", "Pod", {"spec": {"automountServiceAccountToken": False, "containers": [container("a")], "volumes": [{"name": "v", "emptyDir": {}}]}}, {
        "spec.containers": CONTAINERS, "spec.activeDeadlineSeconds": [100, 50, 200], "spec.tolerations": OF_TEMPLATES["spec.template.spec.tolerations"], "spec.schedulingGates": [[{"name": "g"}]],
        "spec.nodeSelector.disk": ["ssd", "hdd"], "spec.terminationGracePeriodSeconds": [5, 1]},
        {"conditions": [[CONDITION], [CONDITION, {"type": "B", "status": "False"}]], "phase": ["Running", "Pending"], "podIP": ["10.1.2.3"], "podIPs": [[{"ip": "10.1.2.3"}]]}),
    ("/apis/apps/v1/namespaces/{ns}/deployments", "apps/v1", "Deployment", {"spec": SELECTOR}, OF_TEMPLATES | {"spec.replicas": [0, 1, 2], "spec.paused": [True, False], "spec.strategy": [{"type": "Recreate"}, {"rollingUpdate": {"maxSurge": "30%"}}, {"type": "RollingUpdate"}], "spec.minReadySeconds": [0, 5]},
        {"replicas": [1, 2], "conditions": [[CONDITION], [CONDITION | {"reason": "r"}, {"type": "B", "status": "False"}]]}),
    ("/apis/apps/v1/namespaces/{ns}/statefulsets", "apps/v1", "StatefulSet", {"spec": SELECTOR | {"serviceName": "s"}}, OF_TEMPLATES | {"spec.replicas": [0, 1], "spec.updateStrategy": [{"type": "OnDelete"}, {"rollingUpdate": {"partition": 1}}], "spec.podManagementPolicy": ["Parallel"], "spec.minReadySeconds": [3]}, {"replicas": [0, 1]}),
    ("/apis/apps/v1/namespaces/{ns}/daemonsets", "apps/v1", "DaemonSet", {"spec": SELECTOR}, OF_TEMPLATES | {"spec.minReadySeconds": [3], "spec.updateStrategy": [{"type": "OnDelete"}]}, {}),
    ("/apis/batch/v1/namespaces/{ns}/jobs", "batch/v1", "Job", {"spec": {"suspend": True, "template": {"spec": {"restartPolicy": "Never", "containers": [container("a")]}}}}, {
        "spec.parallelism": [1, 2], "spec.completions": [2, 3], "spec.suspend": [True, False], "spec.ttlSecondsAfterFinished": [9, 10], "spec.backoffLimit": [1, 2], "spec.template.spec.containers": CONTAINERS[:1] + CONTAINERS[3:4], "spec.template.metadata.labels.z": ["1", "2"]}, {}),
    ("/apis/batch/v1/namespaces/{ns}/cronjobs", "batch/v1", "CronJob", {"spec": {"schedule": "* * * * *", "suspend": True, "jobTemplate": {"spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container("a")]}}}}}}, {
        "spec.schedule": ["@daily", "1 2 3 4 5", "x"], "spec.suspend": [True], "spec.timeZone": ["Etc/UTC", "Nowhere"], "spec.concurrencyPolicy": ["Forbid", "Allow"], "spec.successfulJobsHistoryLimit": [0, 5]}, {}),
    ("/apis/networking.k8s.io/v1/namespaces/{ns}/networkpolicies", "networking.k8s.io/v1", "NetworkPolicy", {"spec": {"podSelector": {}}}, {
        "spec.podSelector.matchLabels.a": ["1", "2"], "spec.ingress": [[], [{}], [{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}]], "spec.egress": [[{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}]], "spec.policyTypes": [["Ingress"], ["Egress", "Ingress"]]}, {}),
    ("/apis/networking.k8s.io/v1/namespaces/{ns}/ingresses", "networking.k8s.io/v1", "Ingress", {"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}}, {
        "spec.rules": [[{"host": "a.b"}], [{"host": "a.b", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"name": "p"}}}}]}}]], "spec.ingressClassName": ["c", "d"], "spec.tls": [[{"hosts": ["a.b"], "secretName": "s"}]]}, {}),
    ("/apis/autoscaling/v2/namespaces/{ns}/horizontalpodautoscalers", "autoscaling/v2", "HorizontalPodAutoscaler", {"spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "none", "apiVersion": "apps/v1"}}}, {
        "spec.minReplicas": [1, 2], "spec.maxReplicas": [3, 4], "spec.metrics": [[{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}]], "spec.behavior.scaleDown.stabilizationWindowSeconds": [10, 20]}, {}),
    ("/apis/policy/v1/namespaces/{ns}/poddisruptionbudgets", "policy/v1", "PodDisruptionBudget", {"spec": {"selector": {"matchLabels": {"a": "b"}}}}, {"spec.minAvailable": [1, "50%"], "spec.maxUnavailable": [1, "5%"], "spec.selector.matchLabels.c": ["d", "e"]}, {}),
    ("/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/roles", "rbac.authorization.k8s.io/v1", "Role", {}, {"rules": [[], [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}], [{"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["*"]}]]}, {}),
    ("/apis/rbac.authorization.k8s.io/v1/namespaces/{ns}/rolebindings", "rbac.authorization.k8s.io/v1", "RoleBinding", {"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}}, {"subjects": [[{"kind": "User", "name": "u", "apiGroup": "rbac.authorization.k8s.io"}], [{"kind": "ServiceAccount", "name": "s"}, {"kind": "Group", "name": "g"}]]}, {}),
    ("/apis/coordination.k8s.io/v1/namespaces/{ns}/leases", "coordination.k8s.io/v1", "Lease", {}, {"spec.holderIdentity": ["a", "b", ""], "spec.leaseDurationSeconds": [1, 2, 0], "spec.renewTime": ["2020-01-01T00:00:00.000000Z"]}, {}),
    ("/apis/discovery.k8s.io/v1/namespaces/{ns}/endpointslices", "discovery.k8s.io/v1", "EndpointSlice", {"addressType": "IPv4", "endpoints": []}, {"endpoints": [[{"addresses": ["1.2.3.4"]}], [{"addresses": ["1.2.3.4"], "conditions": {"ready": True}}, {"addresses": ["1.2.3.5"]}]], "ports": [[{"port": 80}], [{"port": 80, "name": "a"}, {"name": "b", "protocol": "UDP"}]]}, {}),
    ("/apis/{id}.example.com/v1/namespaces/{ns}/boxes", "{id}.example.com/v1", "Box", {}, {
        "spec.replicas": [0, 2, -1, "x"], "spec.fixed": ["a", "b"], "spec.set": [["a"], ["b", "a"], ["a", "a"]], "spec.plain": [["a"], ["b", "a"]],
        "spec.map": [[{"name": "a"}], [{"name": "a", "value": 1}, {"name": "b", "kind": "k"}], [{"name": "a", "kind": "z", "value": None}, {"name": "a"}]],
        "spec.one.x": ["1", "2"], "spec.one.y": ["1"], "spec.each.x": ["1", "2"], "spec.each.y": ["1"], "spec.any.deep": [{"a": [1, {"b": 2}]}, {"a": []}], "spec.either": [1, "1", True], "spec.unknown": [1]},
        {"replicas": [1, 2], "said": ["a", "b"]}),
]


def put(obj, place, value):
    """Sets a place of an object, or removes it."""
    *parents, last = place.split(".")
    for k in parents:
        if not isinstance(obj.get(k), dict):
            if value is GONE:
                return
            obj[k] = {}
        obj = obj[k]
    if value is GONE:
        obj.pop(last, None)
    else:
        obj[last] = copy.deepcopy(value)


class Sequence:
    """One kind's objects, and the next write to one of them."""

    def __init__(self, rng, kind):
        self.rng = rng
        self.collection, version, name, self.base, self.places, status = kind
        self.head = {"apiVersion": version, "kind": name}
        self.places = self.places | META
        self.status = {"status." + p: v for p, v in status.items()}

    def some(self, places, most=3):
        names = self.rng.sample(sorted(places), min(len(places), self.rng.randint(1, most)))
        return [(p, GONE if self.rng.random() < 0.2 else self.rng.choice(places[p])) for p in names]

    def whole(self, name, changes, base):
        out = copy.deepcopy(self.head | {"metadata": {"name": name}} | (self.base if base else {}))
        for place, value in changes:
            put(out, place, value)
        return out

    def patch(self, changes):
        out = {}
        for place, value in changes:
            put(out, place, None if value is GONE else value)
        return out

    def json_patch(self, changes):
        out = []
        for place, value in changes:
            path = "/" + place.replace(".", "/")
            if value is GONE:
                out.append({"op": "remove", "path": path})
            else:
                out.append({"op": self.rng.choice(["add", "add", "replace"]), "path": path, "value": value})
        if self.rng.random() < 0.2:
            out.append({"op": "test", "path": "/kind", "value": self.head["kind"]})
        return out

    def request(self, name, current):
        """A label, the request, and whether its body is made of what each server has: None, or what to change in that."""
        rng, path = self.rng, self.collection + "/" + name
        manager = rng.choice(MANAGERS)
        query, places, sub = f"?fieldManager={manager}", self.places, ""
        if self.status and current and rng.random() < 0.2:
            places, sub = self.status, "/status"
        if rng.random() < 0.1:
            query += "&fieldValidation=Strict"
        changes = self.some(places)
        how = rng.choice(["create", "update", "update", "merge", "strategic", "json", "apply", "apply", "apply", "apply", "delete"] if current else ["create", "create", "apply", "merge"])
        label = f"{self.head['kind']} {how}{sub}"
        if how == "create":
            return label, ("POST", self.collection + query, None, self.whole(name, changes if not sub else [], True)), None
        if how == "update":
            return label, ("PUT", path + sub + query, None, None), changes
        if how == "delete":
            body = rng.choice([None, {"propagationPolicy": "Background"}, {"propagationPolicy": "Orphan"}, {"propagationPolicy": "Foreground"}, {"gracePeriodSeconds": 0}])
            return label, ("DELETE", path, None, body), None
        if how == "apply":
            force = rng.choice(["", "", "&force=true"])
            set_only = [(p, v) for p, v in changes if v is not GONE]
            body = self.whole(name, set_only, not sub and (rng.random() < 0.6 or not current))
            return label + force, ("PATCH", path + sub + query + force, {"Content-Type": JSON_TYPES[how]}, body), None
        body = self.json_patch(changes) if how == "json" else self.patch(changes)
        return label, ("PATCH", path + sub + query, {"Content-Type": JSON_TYPES[how]}, body), None


def of_kind(c, kind, names, steps):
    """One sequence on both servers. c: a Comparison of differ.py; names: as it makes them."""
    s, rng = Sequence(c.rng, kind), c.rng
    begun, c.history = [], []
    for server, n in zip((c.upstream, c.ours), names):
        status, _, listed, *_ = c.raw(server, n, "GET", s.collection, None, None)
        begun.append(listed["metadata"]["resourceVersion"] if status == 200 else None)
    for _ in range(steps):
        name = rng.choice(["a", "a", "b"])
        current = []
        for server, n in zip((c.upstream, c.ours), names):
            status, _, found, *_ = c.raw(server, n, "GET", f"{s.collection}/{name}", None, None)
            current.append(found if status == 200 else None)
        label, request, changes = s.request(name, current[0])
        if changes is None:
            bodies = [request[3]] * 2
        elif None in current:
            continue
        else:
            bodies = [copy.deepcopy(x) for x in current]
            stale = rng.random()
            for body in bodies:
                for place, value in changes:
                    put(body, place, value)
                if stale < 0.3:
                    body["metadata"].pop("resourceVersion")
                elif stale < 0.4:
                    body["metadata"]["resourceVersion"] = "1"
                if 0.4 < stale < 0.5:
                    body["metadata"].pop("managedFields", None)
                elif 0.5 < stale < 0.55:
                    body["metadata"]["managedFields"] = []
        c.history.append((*request[:3], bodies[0]))
        same = c.compare_pair(label, names, [(*request[:3], body) for body in bodies], again=False)
        after = ("GET", f"{s.collection}/{name}", None, None)
        # What follows a difference says nothing.
        if not (same and c.compare(f"{s.head['kind']} after {label.split(' ', 1)[1]}", names, after)):
            return
    events = []
    for server, n, version in zip((c.upstream, c.ours), names, begun):
        path = f"{s.collection}?watch=true&timeoutSeconds=1&resourceVersion={version}"
        events.append(("GET", path, None, None))
    c.compare_pair(f"{s.head['kind']} watch", names, events)


def run(c, rounds, steps, kinds):
    names = c.namespaces()
    try:
        for server, n in zip((c.upstream, c.ours), names):
            c.raw(server, n, "POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", None, CRD)
            end = time.time() + 20
            while c.raw(server, n, "GET", "/apis/{id}.example.com/v1/namespaces/{ns}/boxes", None, None)[0] != 200:
                if time.time() > end:
                    raise TimeoutError("the custom resource is not served")
                time.sleep(0.1)
        for _ in range(rounds):
            for kind in KINDS:
                if kinds and kind[2] not in kinds:
                    continue
                of_kind(c, kind, names, steps)
                for server, n in zip((c.upstream, c.ours), names):
                    for name in ("a", "b"):
                        free = json.dumps({"metadata": {"finalizers": None}})
                        path = f"{kind[0]}/{name}"
                        c.raw(server, n, "PATCH", path, {"Content-Type": JSON_TYPES["merge"]}, free)
                        c.raw(server, n, "DELETE", path + "?gracePeriodSeconds=0", None, None)
    finally:
        for server, n in zip((c.upstream, c.ours), names):
            c.raw(server, n, "DELETE", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/boxes.{id}.example.com", None, None)
        c.forget(names)
    c.report()


# --- habits ---------------------------------------------------------------------------------------------------------------

# Kinds of which no recorded exchange makes an object.
MORE = [
    {"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "r"}, "revision": 1, "data": {}},
    {"apiVersion": "certificates.k8s.io/v1", "kind": "ClusterTrustBundle", "metadata": {"name": "x-{id}"}, "spec": {"trustBundle": "x"}},
    {"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": {"name": "10.9.8.7"}, "spec": {"parentRef": {"resource": "services", "namespace": "{ns}", "name": "none"}}},
    {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "x-{id}"}, "handler": "h"},
    {"apiVersion": "resource.k8s.io/v1", "kind": "DeviceTaintRule", "metadata": {"name": "x-{id}"}, "spec": {"deviceSelector": {"driver": "d"}, "taint": {"key": "k", "effect": "NoSchedule"}}},
    {"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaimTemplate", "metadata": {"name": "t"}, "spec": {"spec": {"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}}},
    {"apiVersion": "storagemigration.k8s.io/v1", "kind": "StorageVersionMigration", "metadata": {"name": "x-{id}"}, "spec": {"resource": {"group": "apps", "resource": "deployments"}}},
]


def bodies(recorded):
    """Bodies that make an object, by version and kind. recorded: all steps of the recorded exchanges."""
    out = {}
    for step in recorded:
        q, body = step["request"], step["request"].get("body")
        if q["method"] == "POST" and isinstance(body, dict) and (step.get("expect") or {}).get("status") == 201:
            # What refers to other objects of its scenario has been changed by them.
            out.setdefault((body.get("apiVersion"), body.get("kind")), []).append(body)
    for body in MORE:
        out.setdefault((body["apiVersion"], body["kind"]), []).append(body)
    return out


def habits(c, recorded, each, kinds):
    """Each kind's answers to the same few requests that any object can be sent."""
    known = bodies(recorded)
    _, _, groups, *_ = c.raw(c.upstream, {}, "GET", "/apis", None, None)
    versions = ["/api/v1"] + [f"/apis/{v['groupVersion']}" for g in groups["groups"] for v in g["versions"]]
    for root in versions:
        _, _, listed, *_ = c.raw(c.upstream, {}, "GET", root, None, None)
        for r in listed.get("resources", []):
            if "/" in r["name"] or not {"create", "update", "delete"} <= set(r["verbs"]) or (kinds and r["kind"] not in kinds):
                continue
            has_status = any(s["name"] == r["name"] + "/status" for s in listed["resources"])
            choice = known.get((root.split("/", 2)[2], r["kind"]), [])
            for body in c.rng.sample(choice, min(each, len(choice))):
                names = c.namespaces()
                try:
                    habit(c, names, root, r, has_status, body)
                finally:
                    c.forget(names)
    c.report()


def habit(c, names, root, resource, has_status, body):
    kind, name = resource["kind"], body["metadata"].get("name") or "x-{id}"
    body = body | {"metadata": {k: v for k, v in body["metadata"].items() if k not in ("generateName", "namespace")} | {"name": name}}
    collection = root + ("/namespaces/{ns}/" if resource["namespaced"] else "/") + resource["name"]
    path, merge, c.history = f"{collection}/{name}", {"Content-Type": JSON_TYPES["merge"]}, []

    def both(label, method, path, headers=None, body=None):
        c.history.append((method, path, headers, body))
        return c.compare_pair(f"{kind} {label}", names, [(method, path, headers, body)] * 2, again=False)

    def with_meta(**more):
        return body | {"metadata": body["metadata"] | more}

    def stored():
        found = [c.raw(s, n, "GET", path, None, None)[2] for s, n in zip((c.upstream, c.ours), names)]
        return found if all(isinstance(x, dict) and x.get("kind") == kind for x in found) else None

    both("put on nothing", "PUT", path, None, body)
    both("gone", "DELETE", path)
    both("put a version on nothing", "PUT", path, None, with_meta(resourceVersion="5"))
    both("put a uid on nothing", "PUT", path, None, with_meta(uid="x"))
    both("apply on nothing, dry", "PATCH", path + "?dryRun=All&fieldManager=m", {"Content-Type": JSON_TYPES["apply"]}, body)
    both("merge on nothing", "PATCH", path, merge, {})
    both("delete nothing", "DELETE", path)
    if not both("post", "POST", collection + "?fieldManager=m", None, body) or not stored():
        return
    both("post again", "POST", collection, None, body)
    both("get", "GET", path)
    table = {"Accept": "application/json;as=Table;v=v1;g=meta.k8s.io"}
    both("table", "GET", path, table)
    both("table of nothing", "GET", collection + "?fieldSelector=metadata.name%3Dnone", table)
    both("put without version", "PUT", path, None, with_meta(labels={"l": "a"}))
    both("put an old version", "PUT", path, None, with_meta(resourceVersion="1"))
    both("put another uid", "PUT", path, None, with_meta(uid="x"))
    both("put another name", "PUT", path, None, with_meta(name="other"))
    both("put a word as version", "PUT", path, None, with_meta(resourceVersion="x"))

    def put(label, change, sub=""):
        found = stored()
        if found is None:
            return
        for x in found:
            change(x)
        c.history.append((label, found[0]))
        c.compare_pair(f"{kind} {label}", names, [("PUT", path + sub, None, x) for x in found], again=False)

    put("put the same", lambda x: None)
    put("put labels", lambda x: x["metadata"].update(labels={"l": "b"}))
    put("put no creation time", lambda x: x["metadata"].pop("creationTimestamp"))
    put("put generation", lambda x: x["metadata"].update(generation=7))
    put("put owners", lambda x: x["metadata"].update(ownerReferences=[{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u", "controller": True}]))
    both("merge labels", "PATCH", path, merge, {"metadata": {"labels": {"m": "1"}}})
    both("merge an unknown field", "PATCH", path + "?fieldValidation=Strict", merge, {"bogus": 1})
    both("merge a deletion time", "PATCH", path, merge, {"metadata": {"deletionTimestamp": "2020-01-01T00:00:00Z"}})
    both("merge another name", "PATCH", path, merge, {"metadata": {"name": "other"}})
    both("strategic", "PATCH", path, {"Content-Type": JSON_TYPES["strategic"]}, {"metadata": {"annotations": {"a": "b"}}})
    both("apply by another", "PATCH", path + "?fieldManager=other", {"Content-Type": JSON_TYPES["apply"]}, {"apiVersion": body["apiVersion"], "kind": kind, "metadata": {"labels": {"m": "2"}}})
    if has_status:
        put("put status", lambda x: x["metadata"].update(labels={"l": "status"}, annotations={"s": "1"}), "/status")
        both("merge status", "PATCH", path + "/status", merge, {"status": {"bogus": 1}, "metadata": {"annotations": {"t": "1"}}})
        both("get status", "GET", path + "/status")
        both("delete status", "DELETE", path + "/status")
    both("get", "GET", path)
    both("delete, dry", "DELETE", path + "?dryRun=All")
    both("delete another", "DELETE", path, None, {"preconditions": {"uid": "x"}})
    both("delete collection, dry", "DELETE", collection + "?dryRun=All&labelSelector=m%3D1")
    both("finalizer", "PATCH", path, merge, {"metadata": {"finalizers": ["e.com/f"]}})
    both("delete with finalizer", "DELETE", path)
    both("delete again", "DELETE", path)
    both("add a finalizer", "PATCH", path, merge, {"metadata": {"finalizers": ["e.com/f", "e.com/g"]}})
    both("get the deleted", "GET", path)
    both("let go", "PATCH", path, merge, {"metadata": {"finalizers": None}})
    both("get nothing", "GET", path)
    c.raw(c.upstream, names[0], "DELETE", path + "?gracePeriodSeconds=0", None, None)
    c.raw(c.ours, names[1], "DELETE", path + "?gracePeriodSeconds=0", None, None)
