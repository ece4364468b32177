//! The commands of every day, and what they print.

use anyhow::{Context, Result, ensure};

use super::start;
use crate::cluster::Cluster;

/// label, annotate, set image, wait, patch, api-resources, get in its forms, delete by label.
pub(crate) fn daily(c: &mut Cluster, ns: &str) -> Result<()> {
    start(c, ns, "a", "sleep 3600")?;
    start(c, ns, "b", "sleep 3600")?;
    c.ok(&["-n", ns, "label", "pod", "a", "tier=front"])?;
    ensure!(c.ok(&["-n", ns, "get", "pods", "-l", "tier=front", "-o", "name"])? == "pod/a\n");
    let again = c.kubectl(&["-n", ns, "label", "pod", "a", "tier=back"])?;
    ensure!(again.code != 0 && again.err.contains("--overwrite"), "{again:?}");
    c.ok(&["-n", ns, "label", "pod", "a", "tier-"])?;
    ensure!(c.ok(&["-n", ns, "get", "pods", "-l", "tier", "-o", "name"])?.is_empty());
    c.ok(&["-n", ns, "annotate", "pod", "a", "note=one"])?;
    ensure!(c.get(ns, "pod/a")?["metadata"]["annotations"]["note"] == "one");

    let wide = c.ok(&["-n", ns, "get", "pods", "-o", "wide"])?;
    let header: Vec<&str> = wide.lines().next().context("a header")?.split_whitespace().collect();
    let wanted =
        ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE", "NOMINATED", "NODE", "READINESS", "GATES"];
    ensure!(header == wanted, "{wide}");
    let node = c.ok(&["get", "nodes", "-o", "wide"])?;
    ensure!(node.contains("node1") && node.contains("Ready") && node.contains("docker://"), "{node}");

    let resources = c.ok(&["api-resources", "--verbs=list", "-o", "name"])?;
    for r in ["pods", "deployments.apps", "endpointslices.discovery.k8s.io", "leases.coordination.k8s.io"] {
        ensure!(resources.lines().any(|l| l == r), "{r} is missing in {resources}");
    }

    c.ok(&["-n", ns, "create", "deployment", "d", "--image=skiff/busybox:1", "--", "sleep", "3600"])?;
    c.ok(&["-n", ns, "wait", "--for=condition=Available", "deployment/d", "--timeout=90s"])?;
    c.ok(&["-n", ns, "set", "image", "deployment/d", "busybox=skiff/busybox:none"])?;
    // No registry: the new pod cannot start and says why, the old one stays.
    c.eventually("the missing image shows", |c| {
        Ok(c.ok(&["-n", ns, "get", "pods", "-l", "app=d"])?.lines().any(|l| l.contains("Err") || l.contains("BackOff")))
    })?;
    ensure!(c.get(ns, "deployment/d")?["status"]["availableReplicas"] == 1);
    c.ok(&["-n", ns, "set", "image", "deployment/d", "busybox=skiff/busybox:1"])?;
    c.ok(&["-n", ns, "rollout", "status", "deployment/d", "--timeout=90s"])?;

    c.ok(&["-n", ns, "patch", "deployment", "d", "-p", r#"{"spec":{"replicas":2}}"#])?;
    c.ok(&["-n", ns, "wait", "--for=jsonpath={.status.readyReplicas}=2", "deployment/d", "--timeout=60s"])?;
    c.ok(&["-n", ns, "delete", "pods", "-l", "app=b"])?;
    let gone = c.kubectl(&["-n", ns, "get", "pod", "b"])?;
    ensure!(gone.code == 1 && gone.err.contains("pods \"b\" not found"), "{gone:?}");
    Ok(())
}

/// `edit` with a program for an editor, and `diff` before `apply`.
pub(crate) fn edit_and_diff(c: &mut Cluster, ns: &str) -> Result<()> {
    let manifest = |v: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: m}}\ndata: {{k: {v}}}\n");
    ensure!(c.apply(&["-n", ns, "apply"], &manifest("one"))?.code == 0);
    ensure!(c.apply(&["-n", ns, "diff"], &manifest("one"))?.code == 0, "no change is no difference");
    let o = c.apply(&["-n", ns, "diff"], &manifest("two"))?;
    ensure!(o.code == 1 && o.out.contains("-  k: one") && o.out.contains("+  k: two"), "{o:?}");
    ensure!(c.get(ns, "configmap/m")?["data"]["k"] == "one", "diff changed the object");
    let o = c.with_env("KUBE_EDITOR", "sed -i s/one/edited/", &["-n", ns, "edit", "configmap", "m"])?;
    ensure!(o.code == 0 && o.out.contains("configmap/m edited"), "{o:?}");
    ensure!(c.get(ns, "configmap/m")?["data"]["k"] == "edited");
    let o = c.with_env("KUBE_EDITOR", "true", &["-n", ns, "edit", "configmap", "m"])?;
    ensure!(o.code == 0 && o.err.contains("Edit cancelled, no changes made."), "{o:?}");
    Ok(())
}

/// What happened, in words: `events` and `describe`.
pub(crate) fn events(c: &mut Cluster, ns: &str) -> Result<()> {
    start(c, ns, "a", "sleep 3600")?;
    c.eventually("the pod's events are there", |c| {
        let all = c.ok(&["-n", ns, "events", "--for", "pod/a"])?;
        Ok(["Scheduled", "Created", "Started"].iter().all(|r| all.contains(r)))
    })?;
    let described = c.ok(&["-n", ns, "describe", "pod", "a"])?;
    for wanted in ["Node:             node1/", "Successfully assigned", "QoS Class:                   BestEffort"] {
        ensure!(described.contains(wanted), "{wanted:?} is missing in {described}");
    }
    let huge = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"huge"},"spec":{"containers":[{"name":"c","image":"skiff/busybox:1",
        "resources":{"requests":{"cpu":"1000"}}}]}}"#;
    ensure!(c.apply(&["-n", ns, "apply"], huge)?.code == 0);
    c.eventually("the scheduler says why not", |c| {
        let all = c.ok(&["-n", ns, "events", "--for", "pod/huge"])?;
        Ok(all.contains("FailedScheduling") && all.contains("0/1 nodes are available: 1 Insufficient cpu."))
    })
}

/// RBAC through `auth can-i`, a role that allows one thing, and a token of a service account.
pub(crate) fn identities(c: &mut Cluster, ns: &str) -> Result<()> {
    let who = format!("--as=system:serviceaccount:{ns}:reader");
    c.ok(&["-n", ns, "create", "serviceaccount", "reader"])?;
    let no = c.kubectl(&["-n", ns, "auth", "can-i", "list", "pods", &who])?;
    ensure!(no.code == 1 && no.out.trim() == "no", "{no:?}");
    c.ok(&["-n", ns, "create", "role", "read", "--verb=get,list", "--resource=pods"])?;
    let account = format!("--serviceaccount={ns}:reader");
    c.ok(&["-n", ns, "create", "rolebinding", "read", "--role=read", &account])?;
    ensure!(c.ok(&["-n", ns, "auth", "can-i", "list", "pods", &who])?.trim() == "yes");
    let no = c.kubectl(&["-n", ns, "auth", "can-i", "delete", "pods", &who])?;
    ensure!(no.code == 1, "{no:?}");
    let table = c.ok(&["-n", ns, "auth", "can-i", "--list", &who])?;
    ensure!(table.lines().any(|l| l.starts_with("pods ") && l.contains("[get list]")), "{table}");
    let token = c.ok(&["-n", ns, "create", "token", "reader"])?;
    let bearer = format!("--token={}", token.trim());
    // The token alone: the administrator's certificate would win.
    let me = c.as_token(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}", &bearer])?;
    ensure!(me.out == format!("system:serviceaccount:{ns}:reader"), "{me:?}");
    let refused = c.as_token(&["-n", ns, "get", "secrets", &bearer])?;
    ensure!(refused.code == 1 && refused.err.contains("cannot list resource \"secrets\""), "{refused:?}");
    let nobody = c.as_token(&["-n", ns, "get", "pods", "--token=nonsense"])?;
    ensure!(nobody.code == 1 && nobody.err.contains("Unauthorized"), "{nobody:?}");
    Ok(())
}

/// `explain`, one field and the whole tree, and of each version of a kind.
pub(crate) fn explain(c: &mut Cluster, _ns: &str) -> Result<()> {
    let all = c.ok(&["explain", "pods", "--recursive"])?;
    for field in ["containers\t<[]Container> -required-", "livenessProbe\t<Probe>", "ephemeralContainers"] {
        ensure!(all.contains(field), "{field:?} is missing");
    }
    let one = c.ok(&["explain", "deployment.spec.strategy.rollingUpdate.maxSurge"])?;
    ensure!(one.contains("FIELD: maxSurge <IntOrString>") && one.contains("DESCRIPTION:"), "{one}");
    let old = c.ok(&["explain", "hpa", "--api-version=autoscaling/v1"])?;
    ensure!(old.contains("VERSION:    v1"), "{old}");
    let o = c.kubectl(&["explain", "pods.spec.nonsense"])?;
    ensure!(o.code != 0 && o.err.contains("field \"nonsense\" does not exist"), "{o:?}");
    Ok(())
}

/// Every kubectl release beside the one under test creates, lists, describes and deletes.
pub(crate) fn every_version(c: &mut Cluster, ns: &str) -> Result<()> {
    let releases = c.releases();
    for program in &releases {
        let name = program.file_name().context("a file name")?.to_string_lossy().replace(['.', '_'], "-");
        let run = |args: &[&str]| -> Result<String> {
            let o = c.with_program(program, args)?;
            ensure!(o.code == 0, "{} {}: {}{}", program.display(), args.join(" "), o.out, o.err);
            Ok(o.out)
        };
        run(&["-n", ns, "create", "configmap", &name, "--from-literal=k=v"])?;
        ensure!(run(&["-n", ns, "get", "configmap", &name, "--no-headers"])?.split_whitespace().nth(1) == Some("1"));
        run(&["-n", ns, "describe", "configmap", &name])?;
        run(&["-n", ns, "delete", "configmap", &name])?;
        run(&["get", "nodes"])?;
    }
    println!("     {} releases of kubectl", releases.len());
    Ok(())
}
