//! Three servers on three members.

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use futures::StreamExt as _;
use futures::future::{join_all, try_join_all};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api as Objects, DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;

use crate::etcd_cluster::{Cluster, available};
use crate::process::{Api, binary};
use crate::{copy_keys, flags, until};

/// Servers on one cluster, all with the same keys.
pub(crate) async fn servers(cluster: &Cluster, dir: &Path, count: usize) -> Result<Vec<Api>> {
    let flags = flags(cluster);
    let (data, log) = (|n: usize| dir.join(format!("d{n}")), |n: usize| dir.join(format!("s{n}.log")));
    let mut out = vec![Api::start_with(&data(0), &log(0), &flags).await?];
    for n in 1..count {
        copy_keys(&data(0), &data(n))?;
    }
    let rest: Vec<_> = (1..count).map(|n| (data(n), log(n))).collect();
    out.extend(try_join_all(rest.iter().map(|(data, log)| Api::start_with(data, log, &flags))).await?);
    Ok(out)
}

fn map(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"v": value}})).unwrap_or_default()
}

fn service(name: &str, spec: serde_json::Value) -> Service {
    let mut spec = spec;
    spec["ports"] = json!([{"port": 80}]);
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_servers() -> Result<()> {
    if !available() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mut cluster = Cluster::start(3, true);
    let mut apis = servers(&cluster, dir.path(), 3).await?;
    let clients = try_join_all(apis.iter().map(Api::client)).await?;
    let result = story(&mut cluster, &mut apis, &clients).await;
    let said: Vec<String> = apis.iter().map(Api::said).collect();
    result.with_context(|| said.join("\n---\n"))
}

async fn story(cluster: &mut Cluster, apis: &mut [Api], clients: &[Client]) -> Result<()> {
    let post = PostParams::default();
    let maps: Vec<Objects<ConfigMap>> = clients.iter().map(|c| Objects::default_namespaced(c.clone())).collect();
    let begun = maps[2].list(&ListParams::default()).await?.metadata.resource_version.unwrap_or_default();
    let mut watch = maps[2].watch(&WatchParams::default(), &begun).await?.boxed();

    // What one acknowledged, the others read.
    let mut wanted = vec![];
    for n in 0..30 {
        let (writer, reader, third) = (&maps[n % 3], &maps[(n + 1) % 3], &maps[(n + 2) % 3]);
        let name = format!("m{n}");
        let made = writer.create(&post, &map(&name, "1")).await?;
        let mut seen = reader.get(&name).await?;
        ensure!(seen.metadata.resource_version == made.metadata.resource_version, "{name}: an older one");
        seen.data = map(&name, "2").data;
        let changed = reader.replace(&name, &post, &seen).await?;
        let list = third.list(&ListParams::default()).await?;
        let found = list.items.iter().find(|m| m.name_any() == name).context("it is in no list")?;
        ensure!(found.metadata.resource_version == changed.metadata.resource_version, "{name}: an older one in a list");
        third.delete(&name, &DeleteParams::default()).await?;
        ensure!(writer.get_opt(&name).await?.is_none(), "{name} is gone, and is read");
        wanted.extend([format!("added {name}"), format!("modified {name}"), format!("deleted {name}")]);
    }
    let mut told = vec![];
    while told.len() < wanted.len() {
        let event = tokio::time::timeout(crate::PATIENCE, watch.next()).await?.context("the watch ended")??;
        told.push(match event {
            WatchEvent::Added(m) => format!("added {}", m.name_any()),
            WatchEvent::Modified(m) => format!("modified {}", m.name_any()),
            WatchEvent::Deleted(m) => format!("deleted {}", m.name_any()),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(e) => anyhow::bail!("{e:?}"),
        });
    }
    ensure!(told == wanted, "{told:?}");
    addresses(clients).await?;

    let published: Objects<EndpointSlice> = Objects::default_namespaced(clients[1].clone());
    let old: Objects<Endpoints> = Objects::default_namespaced(clients[2].clone());
    until("all servers are published", || async {
        // They share an address and differ in their ports: as many groups as servers.
        let groups = old.get("kubernetes").await?.subsets.unwrap_or_default().len();
        Ok((groups == 3 && published.get("kubernetes").await?.endpoints.is_some_and(|e| e.len() == 1)).then_some(()))
    })
    .await?;

    // A member that leads dies; everybody writes on.
    let leader = until("a leader", || async { Ok(cluster.leader()) }).await?;
    cluster.kill(leader);
    for (n, maps) in maps.iter().enumerate() {
        until("a write without the leader", || async {
            Ok(maps.create(&post, &map(&format!("after-{n}"), "1")).await.ok())
        })
        .await?;
    }
    // A server dies; the others do not care.
    apis[0].kill()?;
    for n in 0..3 {
        ensure!(maps[1].get_opt(&format!("after-{n}")).await?.is_some(), "after-{n} is lost");
        ensure!(maps[2].get_opt(&format!("after-{n}")).await?.is_some(), "after-{n} is lost");
    }
    cluster.revive(leader);
    apis[0].restart().await?;
    let fresh: Objects<ConfigMap> = Objects::default_namespaced(apis[0].client().await?);
    ensure!(fresh.get_opt("after-2").await?.is_some(), "a server that was started again reads everything");
    Ok(())
}

/// No address and no port is given twice, whoever is asked.
async fn addresses(clients: &[Client]) -> Result<()> {
    const EACH: usize = 25;
    let post = PostParams::default();
    let services: Vec<Objects<Service>> = clients.iter().map(|c| Objects::default_namespaced(c.clone())).collect();
    let makes = (0..EACH * 3).map(|n| {
        let (api, post) = (&services[n % 3], &post);
        async move { api.create(post, &service(&format!("s{n}"), json!({"type": "NodePort"}))).await }
    });
    let made = try_join_all(makes).await?;
    let spec = |s: &Service| s.spec.clone().unwrap_or_default();
    let ips: HashSet<_> = made.iter().filter_map(|s| spec(s).cluster_ip).collect();
    let ports: HashSet<_> = made.iter().filter_map(|s| spec(s).ports?.first()?.node_port).collect();
    ensure!((ips.len(), ports.len()) == (EACH * 3, EACH * 3), "{} addresses, {} ports", ips.len(), ports.len());

    // The same one wanted from all at once: one gets it; given back, the next one does.
    for round in 0..5 {
        let wanted = format!("10.96.200.{}", round + 1);
        let asks = services.iter().enumerate().map(|(n, api)| {
            let wish = service(&format!("wish-{round}-{n}"), json!({"clusterIP": wanted}));
            let post = &post;
            async move { api.create(post, &wish).await }
        });
        let answers = join_all(asks).await;
        let won: Vec<_> = answers.iter().flatten().map(kube::ResourceExt::name_any).collect();
        ensure!(won.len() == 1, "{wanted}: {won:?}");
        for e in answers.iter().filter_map(|a| a.as_ref().err()) {
            ensure!(e.to_string().contains("provided IP is already allocated"), "{e}");
        }
        services[round % 3].delete(&won[0], &DeleteParams::default()).await?;
        let next = service(&format!("next-{round}"), json!({"clusterIP": wanted}));
        let next = services[(round + 1) % 3].create(&post, &next);
        next.await.with_context(|| format!("{wanted} was given back"))?;
    }
    // What was never stored holds nothing: the name is taken.
    let taken = service("s0", json!({"clusterIP": "10.96.201.1"}));
    ensure!(services[1].create(&post, &taken).await.is_err(), "a name twice");
    let free = service("free", json!({"clusterIP": "10.96.201.1"}));
    until("what was not used is given back", || async { Ok(services[2].create(&post, &free).await.ok()) }).await?;
    Ok(())
}

/// A process that is killed with the value.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already, which is what matters.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a component as a process of its own, on the server of a data directory.
pub(crate) fn component(name: &str, data: &Path, log: &Path, more: &[&str]) -> Result<Running> {
    let log = File::options().create(true).append(true).open(log)?;
    let mut c = Command::new(binary()?);
    c.args(["--log", "info", name, "--kubeconfig"]).arg(data.join(format!("kubeconfig/{name}.yaml")));
    c.arg("--data-dir").arg(data).args(more);
    Ok(Running(c.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?))
}

fn manager(data: &Path, log: &Path) -> Result<Running> {
    component("controller-manager", data, log, &[])
}

/// Of two managers one works; when it is killed, the other one does, and there is one holder of the Lease at a time.
#[tokio::test(flavor = "multi_thread")]
async fn managers_take_over() -> Result<()> {
    if !available() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let cluster = Cluster::start(1, false);
    let apis = servers(&cluster, dir.path(), 2).await?;
    let client = apis[0].client().await?;
    let deployments: Objects<Deployment> = Objects::default_namespaced(client.clone());
    let sets: Objects<ReplicaSet> = Objects::default_namespaced(client.clone());
    let leases: Objects<Lease> = Objects::namespaced(client, "kube-system");
    let deployment = |name: &str| -> Result<Deployment> {
        Ok(serde_json::from_value(
            json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": {"a": name}},
            "template": {"metadata": {"labels": {"a": name}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}}),
        )?)
    };
    let holder = || async {
        let lease = leases.get_opt("kube-controller-manager").await?;
        anyhow::Ok(lease.and_then(|l| l.spec?.holder_identity).filter(|h| !h.is_empty()))
    };
    let worked = async |name: &'static str| {
        deployments.create(&PostParams::default(), &deployment(name)?).await?;
        let lists = ListParams::default().labels(&format!("a={name}"));
        until(name, || async { Ok((sets.list(&lists).await?.items.len() == 1).then_some(())) }).await
    };
    let first = manager(&dir.path().join("d0"), &dir.path().join("m0.log"))?;
    let one = until("a leader", holder).await?;
    let _second = manager(&dir.path().join("d1"), &dir.path().join("m1.log"))?;
    worked("before").await?;
    ensure!(holder().await?.as_ref() == Some(&one), "the second one took over from one that works");
    drop(first);
    worked("after").await?;
    let two = holder().await?.context("nobody leads")?;
    ensure!(two != one, "the holder is still {one}");
    Ok(())
}
