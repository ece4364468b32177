//! What a container finds: volumes, environment, its life cycle, its limits.

use anyhow::{Result, ensure};

use crate::cluster::Cluster;

fn exec(c: &Cluster, ns: &str, pod: &str, command: &str) -> Result<String> {
    c.ok(&["-n", ns, "exec", pod, "--", "sh", "-c", command])
}

fn ready(c: &Cluster, ns: &str, manifest: &str, pod: &str) -> Result<()> {
    let o = c.apply(&["-n", ns, "apply"], manifest)?;
    ensure!(o.code == 0, "{}", o.err);
    c.ok(&["-n", ns, "wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"])?;
    Ok(())
}

/// configMap, secret, downwardAPI, projected, emptyDir shared by containers, hostPath; updates arrive in place.
pub(crate) fn volumes(c: &mut Cluster, ns: &str) -> Result<()> {
    let before = followed_secrets(c)?;
    c.ok(&["-n", ns, "create", "configmap", "m", "--from-literal=a=one", "--from-literal=b=two"])?;
    c.ok(&["-n", ns, "create", "secret", "generic", "s", "--from-literal=password=hidden"])?;
    let manifest = r"
apiVersion: v1
kind: Pod
metadata: {name: v, labels: {app: v}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: skiff/busybox:1
    command: [sleep, '3600']
    volumeMounts:
    - {name: config, mountPath: /config}
    - {name: one, mountPath: /one/file, subPath: a}
    - {name: secret, mountPath: /secret, readOnly: true}
    - {name: info, mountPath: /info}
    - {name: shared, mountPath: /shared}
    - {name: all, mountPath: /all}
  - name: other
    image: skiff/busybox:1
    command: [sh, -c, 'echo from other > /shared/f; sleep 3600']
    volumeMounts: [{name: shared, mountPath: /shared}]
  volumes:
  - {name: config, configMap: {name: m}}
  - {name: one, configMap: {name: m}}
  - {name: secret, secret: {secretName: s, defaultMode: 256}}
  - {name: info, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: shared, emptyDir: {}}
  - name: all
    projected:
      sources:
      - {configMap: {name: m, items: [{key: a, path: deep/a}]}}
      - {secret: {name: s}}
      - {serviceAccountToken: {path: token, audience: vault, expirationSeconds: 600}}
";
    ready(c, ns, manifest, "v")?;
    ensure!(exec(c, ns, "v", "cat /config/a /config/b /one/file")? == "onetwoone");
    ensure!(exec(c, ns, "v", "cat /secret/password; stat -L -c %a /secret/password")? == "hidden400\n");
    ensure!(exec(c, ns, "v", "cat /info/labels")? == "app=\"v\"");
    c.eventually("the other container's file is seen", |c| {
        Ok(c.kubectl(&["-n", ns, "exec", "v", "-c", "c", "--", "cat", "/shared/f"])?.out == "from other\n")
    })?;
    ensure!(exec(c, ns, "v", "cat /all/deep/a /all/password; cut -d. -f1 /all/token | wc -l")? == "onehidden1\n");
    // The account's own token is where every client library looks.
    let own = "cd /var/run/secrets/kubernetes.io/serviceaccount; cat namespace; ls";
    ensure!(exec(c, ns, "v", own)? == format!("{ns}ca.crt\nnamespace\ntoken\n"));
    let read_only = c.kubectl(&["-n", ns, "exec", "v", "--", "sh", "-c", "echo x > /secret/new"])?;
    ensure!(read_only.code != 0, "{read_only:?}");
    c.ok(&["-n", ns, "patch", "configmap", "m", "-p", r#"{"data":{"a":"changed"}}"#])?;
    c.eventually("the update arrives", |c| Ok(exec(c, ns, "v", "cat /config/a")? == "changed"))?;
    ensure!(exec(c, ns, "v", "cat /one/file")? == "one", "a subPath does not follow");
    // The node follows what a pod has in it no longer than the pod lasts: afterwards it may not.
    ensure!(followed_secrets(c)? > before);
    c.ok(&["-n", ns, "delete", "pod", "v"])?;
    c.eventually("the Secret is followed no longer", |c| Ok(followed_secrets(c)? == before))
}

/// Watches of Secrets of one namespace that are open, as the server counts them.
fn followed_secrets(c: &Cluster) -> Result<u32> {
    let metrics = c.ok(&["get", "--raw", "/metrics"])?;
    let of = |l: &&str| {
        l.starts_with("apiserver_longrunning_requests{") && l.contains("resource=\"secrets\",scope=\"namespace\"")
    };
    Ok(metrics.lines().find(of).and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or(0))
}

/// Every source of environment variables, commands and arguments with references.
pub(crate) fn environment(c: &mut Cluster, ns: &str) -> Result<()> {
    c.ok(&["-n", ns, "create", "configmap", "m", "--from-literal=A=one", "--from-literal=B=two"])?;
    c.ok(&["-n", ns, "create", "secret", "generic", "s", "--from-literal=P=hidden"])?;
    c.ok(&["-n", ns, "create", "service", "clusterip", "svc", "--tcp=80"])?;
    let manifest = r#"
apiVersion: v1
kind: Pod
metadata: {name: e}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: skiff/busybox:1
    command: [sh, -c, 'printf "%s\n" "$@"; sleep 3600', sh]
    args: ['$(PLAIN)', '$$(PLAIN)', '$(NONE)']
    envFrom: [{configMapRef: {name: m}, prefix: M_}, {configMapRef: {name: none, optional: true}}]
    resources: {limits: {memory: 64Mi, cpu: 500m}}
    env:
    - {name: PLAIN, value: plain}
    - {name: REF, value: 'a $(PLAIN) b'}
    - {name: KEY, valueFrom: {configMapKeyRef: {name: m, key: B}}}
    - {name: SECRET, valueFrom: {secretKeyRef: {name: s, key: P}}}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
"#;
    ready(c, ns, manifest, "e")?;
    ensure!(c.ok(&["-n", ns, "logs", "e"])? == "plain\n$(PLAIN)\n$(NONE)\n");
    let all =
        exec(c, ns, "e", "echo $M_A $M_B $REF $KEY $SECRET $POD $NODE $MEMORY; echo $IP; echo $SVC_SERVICE_PORT")?;
    let lines: Vec<&str> = all.lines().collect();
    ensure!(lines[0] == "one two a plain b two hidden e node1 64", "{all}");
    ensure!(lines[1] == c.get(ns, "pod/e")?["status"]["podIP"] && lines[2] == "80", "{all}");
    let broken = manifest.replace("name: e}", "name: broken}").replace("{name: s, key: P}", "{name: none, key: P}");
    ensure!(c.apply(&["-n", ns, "apply"], &broken)?.code == 0);
    c.eventually("a missing Secret is named", |c| {
        let status = c.get(ns, "pod/broken")?;
        let waiting = &status["status"]["containerStatuses"][0]["state"]["waiting"];
        Ok(waiting["reason"] == "CreateContainerConfigError" && waiting["message"] == "secret \"none\" not found")
    })
}

/// Init containers in order, hooks, probes that fail, restarts with back-off, the end.
pub(crate) fn life_cycle(c: &mut Cluster, ns: &str) -> Result<()> {
    let manifest = r"
apiVersion: v1
kind: Pod
metadata: {name: l}
spec:
  terminationGracePeriodSeconds: 5
  initContainers:
  - {name: first, image: 'skiff/busybox:1', command: [sh, -c, 'echo 1 >> /w/order'], volumeMounts: [{name: w, mountPath: /w}]}
  - {name: second, image: 'skiff/busybox:1', command: [sh, -c, 'echo 2 >> /w/order'], volumeMounts: [{name: w, mountPath: /w}]}
  containers:
  - name: c
    image: skiff/busybox:1
    command: [sh, -c, 'trap exit TERM; touch /tmp/live; while true; do sleep 0.2; done']
    volumeMounts: [{name: w, mountPath: /w}]
    lifecycle: {postStart: {exec: {command: [sh, -c, 'echo started >> /w/order']}}}
    livenessProbe: {exec: {command: [cat, /tmp/live]}, periodSeconds: 1, failureThreshold: 1, initialDelaySeconds: 1}
    readinessProbe: {exec: {command: [cat, /w/order]}, periodSeconds: 1}
  volumes: [{name: w, emptyDir: {}}]
";
    ready(c, ns, manifest, "l")?;
    ensure!(exec(c, ns, "l", "cat /w/order")? == "1\n2\nstarted\n");
    exec(c, ns, "l", "rm /tmp/live")?;
    c.eventually("the liveness probe restarts the container", |c| {
        Ok(c.get(ns, "pod/l")?["status"]["containerStatuses"][0]["restartCount"].as_i64() == Some(1))
    })?;
    c.eventually("and says so", |c| Ok(c.ok(&["-n", ns, "events", "--for", "pod/l"])?.contains("Unhealthy")))?;
    ready(c, ns, manifest, "l")?;
    exec(c, ns, "l", "rm /w/order")?;
    c.ok(&["-n", ns, "wait", "--for=condition=Ready=false", "pod/l", "--timeout=60s"])?;

    let failing = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"f"},"spec":{"containers":[{"name":"c","image":"skiff/busybox:1","command":["sh","-c","echo bye; exit 3"]}]}}"#;
    ensure!(c.apply(&["-n", ns, "apply"], failing)?.code == 0);
    c.eventually("restarts back off", |c| {
        let p = c.get(ns, "pod/f")?;
        let s = &p["status"]["containerStatuses"][0];
        Ok(s["state"]["waiting"]["reason"] == "CrashLoopBackOff" && s["lastState"]["terminated"]["exitCode"] == 3)
    })?;
    ensure!(c.ok(&["-n", ns, "logs", "f", "--previous"])? == "bye\n");
    let done = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"d"},"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"skiff/busybox:1",
        "command":["sh","-c","echo last words > /dev/termination-log; exit 4"]}]}}"#;
    ensure!(c.apply(&["-n", ns, "apply"], done)?.code == 0);
    c.ok(&["-n", ns, "wait", "--for=jsonpath={.status.phase}=Failed", "pod/d", "--timeout=60s"])?;
    let p = c.get(ns, "pod/d")?;
    let end = &p["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(end["exitCode"] == 4 && end["message"] == "last words\n", "{end}");

    // While it ends, a pod is as ready as it says it is.
    let leaving = r"
apiVersion: v1
kind: Pod
metadata: {name: g}
spec:
  terminationGracePeriodSeconds: 300
  containers:
  - name: c
    image: skiff/busybox:1
    command: [sh, -c, 'touch /ready; trap : TERM; while ! [ -e /end ]; do sleep 0.2; done']
    readinessProbe: {exec: {command: [cat, /ready]}, periodSeconds: 1, failureThreshold: 1}
";
    ready(c, ns, leaving, "g")?;
    c.ok(&["-n", ns, "delete", "pod", "g", "--wait=false"])?;
    let state = |c: &Cluster| -> Result<String> {
        let path = "jsonpath={.metadata.deletionTimestamp} {.status.conditions[?(@.type=='Ready')].status}";
        c.ok(&["-n", ns, "get", "pod", "g", "-o", path])
    };
    c.eventually("it is told to end", |c| Ok(c.ok(&["-n", ns, "events", "--for", "pod/g"])?.contains("Killing")))?;
    ensure!(state(c)?.ends_with("Z True"), "ready although it ends: {}", state(c)?);
    exec(c, ns, "g", "rm /ready")?;
    c.eventually("it is no longer ready, and still there", |c| Ok(state(c)?.ends_with("Z False")))?;
    exec(c, ns, "g", "touch /end")?;
    c.ok(&["-n", ns, "wait", "--for=delete", "pod/g", "--timeout=60s"])?;
    Ok(())
}

/// Limits hold: memory over its limit is an OOM kill; the CPU quota is what the cgroup says.
pub(crate) fn limits(c: &mut Cluster, ns: &str) -> Result<()> {
    let hungry = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"o"},"spec":{"restartPolicy":"Never","containers":[{"name":"c","image":"skiff/busybox:1",
        "command":["sh","-c","dd if=/dev/zero of=/dev/null bs=200M count=1"],"resources":{"limits":{"memory":"32Mi"}}}]}}"#;
    ensure!(c.apply(&["-n", ns, "apply"], hungry)?.code == 0);
    c.ok(&["-n", ns, "wait", "--for=jsonpath={.status.phase}=Failed", "pod/o", "--timeout=60s"])?;
    let p = c.get(ns, "pod/o")?;
    let end = &p["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(end["reason"] == "OOMKilled" && end["exitCode"] == 137, "{end}");
    let tight = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"q"},"spec":{"terminationGracePeriodSeconds":1,"containers":[{"name":"c","image":"skiff/busybox:1",
        "command":["sleep","3600"],"resources":{"limits":{"cpu":"250m","memory":"64Mi"}}}]}}"#;
    ready(c, ns, tight, "q")?;
    ensure!(c.get(ns, "pod/q")?["status"]["qosClass"] == "Guaranteed");
    let quota = c.cgroup_quota(&format!("k8s_c_q_{ns}"))?;
    ensure!(quota == 25_000, "{quota}");
    Ok(())
}
