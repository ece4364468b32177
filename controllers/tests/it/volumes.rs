use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, ServiceAccount};
use k8s_openapi::api::storage::v1::{StorageClass, VolumeAttributesClass};
use kube::ResourceExt;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, eventually};

type Claim = PersistentVolumeClaim;
type Volume = PersistentVolume;

fn claim(name: &str, size: &str, class: Option<&str>) -> Value {
    json!({"metadata": {"name": name}, "spec": {"storageClassName": class, "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": size}}}})
}

fn volume(name: &str, size: &str, class: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"storageClassName": class, "capacity": {"storage": size},
        "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/nowhere"}}})
}

fn pod(name: &str, claim: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "a"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": claim}}]}})
}

impl Cluster {
    async fn volume(&self, v: Value) -> Volume {
        self.all().create(&PostParams::default(), &serde_json::from_value(v).unwrap()).await.unwrap()
    }

    async fn claim(&self, v: Value) -> Claim {
        self.create("default", v).await
    }

    async fn class(&self, v: Value) {
        let class: StorageClass = serde_json::from_value(v).unwrap();
        self.all().create(&PostParams::default(), &class).await.unwrap();
    }

    /// Waits for a claim's phase and volume.
    async fn claim_is(&self, name: &str, phase: &str, volume: &str) -> Claim {
        let api = self.api::<Claim>("default");
        eventually(&format!("claim {name} is {phase} {volume}"), || async {
            let c = api.get(name).await.unwrap();
            let named = c.spec.as_ref()?.volume_name.clone().unwrap_or_default();
            (c.status.as_ref()?.phase.as_deref() == Some(phase) && named == volume).then_some(c)
        })
        .await
    }

    async fn volume_is(&self, name: &str, phase: &str) -> Volume {
        let api = self.all::<Volume>();
        eventually(&format!("volume {name} is {phase}"), || async {
            let v = api.get(name).await.unwrap();
            (v.status.as_ref()?.phase.as_deref() == Some(phase)).then_some(v)
        })
        .await
    }

    async fn has_told(&self, name: &str, reason: &str, text: &str) {
        // Events about what has no namespace are in the default one.
        eventually(&format!("{name} {reason}: {text}"), || self.told("default", name, reason, text)).await;
    }

    async fn patch_claim(&self, name: &str, patch: Value) -> Result<Claim, kube::Error> {
        self.api::<Claim>("default").patch(name, &PatchParams::default(), &Patch::Merge(patch)).await
    }

    async fn account(&self) {
        let accounts = self.api::<ServiceAccount>("default");
        eventually("the account comes", || async { accounts.get_opt("default").await.unwrap() }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_and_volumes_find_each_other() {
    let c = Cluster::start().await;
    for (name, size) in [("big", "9Gi"), ("small", "2Gi"), ("mid", "5Gi")] {
        c.volume(volume(name, size, "")).await;
        c.volume_is(name, "Available").await;
    }
    // The smallest that is large enough.
    c.claim(claim("three", "3Gi", Some(""))).await;
    let three = c.claim_is("three", "Bound", "mid").await;
    assert_eq!(three.annotations()["pv.kubernetes.io/bind-completed"], "yes");
    assert_eq!(three.annotations()["pv.kubernetes.io/bound-by-controller"], "yes");
    assert_eq!(three.status.unwrap().capacity.unwrap()["storage"].0, "5Gi");
    let mid = c.volume_is("mid", "Bound").await;
    assert_eq!(mid.annotations()["pv.kubernetes.io/bound-by-controller"], "yes");
    assert_eq!(mid.spec.unwrap().claim_ref.unwrap().uid, three.metadata.uid);
    // Nothing suits, and there is no class to ask.
    c.claim(claim("huge", "99Gi", Some(""))).await;
    c.has_told("huge", "FailedBinding", "no persistent volumes available for this claim and no storage class is set")
        .await;
    // It binds when one comes.
    c.volume(volume("vast", "100Gi", "")).await;
    c.claim_is("huge", "Bound", "vast").await;
    // A claim that names its volume.
    let named = |name: &str, size: &str, volume: &str| {
        let mut v = claim(name, size, Some(""));
        v["spec"]["volumeName"] = volume.into();
        v
    };
    c.claim(named("named", "1Gi", "big")).await;
    let bound = c.claim_is("named", "Bound", "big").await;
    assert!(!bound.annotations().contains_key("pv.kubernetes.io/bound-by-controller"));
    c.claim(named("late", "1Gi", "big")).await;
    c.has_told("late", "FailedBinding", "volume \"big\" already bound to a different claim.").await;
    c.claim(named("too-much", "3Gi", "small")).await;
    c.has_told("too-much", "VolumeMismatch", "Cannot bind to requested volume \"small\": requested PV is too small")
        .await;
    // A volume that names its claim waits for it, and takes no other.
    let mut reserved = volume("reserved", "1Gi", "own");
    reserved["spec"]["claimRef"] = json!({"namespace": "default", "name": "heir"});
    c.volume(reserved).await;
    c.volume_is("reserved", "Available").await;
    c.class(json!({"metadata": {"name": "own"}, "provisioner": "kubernetes.io/no-provisioner"})).await;
    c.claim(claim("stranger", "1Gi", Some("own"))).await;
    c.has_told("stranger", "ProvisioningFailed", "no volume plugin matched name: kubernetes.io/no-provisioner").await;
    c.claim(claim("heir", "1Gi", Some("own"))).await;
    c.claim_is("heir", "Bound", "reserved").await;
    // A class that is not there, and one of somebody else's provisioner.
    c.claim(claim("lost", "1Gi", Some("nobody"))).await;
    c.has_told("lost", "ProvisioningFailed", "storageclass.storage.k8s.io \"nobody\" not found").await;
    c.class(json!({"metadata": {"name": "other"}, "provisioner": "example.com/disk"})).await;
    c.claim(claim("asks", "1Gi", Some("other"))).await;
    let text = "Waiting for a volume to be created either by the external provisioner 'example.com/disk' or manually";
    c.has_told("asks", "ExternalProvisioning", text).await;
    let asks = c.claim_is("asks", "Pending", "").await;
    assert_eq!(asks.annotations()["volume.kubernetes.io/storage-provisioner"], "example.com/disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_a_volume() {
    let c = Cluster::start().await;
    let with = |name: &str, policy: &str| {
        let mut v = volume(name, "1Gi", name);
        v["spec"]["persistentVolumeReclaimPolicy"] = policy.into();
        v
    };
    for (name, policy, phase) in
        [("kept", "Retain", "Released"), ("gone", "Delete", "Failed"), ("used", "Recycle", "Failed")]
    {
        c.volume(with(name, policy)).await;
        c.claim(claim(name, "1Gi", Some(name))).await;
        c.claim_is(name, "Bound", name).await;
        c.api::<Claim>("default").delete(name, &DeleteParams::default()).await.unwrap();
        c.volume_is(name, phase).await;
    }
    c.has_told("used", "VolumeFailedRecycle", "No recycler plugin found!").await;
    c.has_told("gone", "VolumeFailedDelete", "error getting deleter volume plugin for volume \"gone\"").await;
    // Taken back by its owner, a released volume is free again.
    let free = json!({"spec": {"claimRef": null}});
    c.all::<Volume>().patch("kept", &PatchParams::default(), &Patch::Merge(free)).await.unwrap();
    c.volume_is("kept", "Available").await;
    // A bound volume stays until its claim goes; a claim whose volume is lost says so.
    c.claim(claim("again", "1Gi", Some("kept"))).await;
    c.claim_is("again", "Bound", "kept").await;
    let volumes = c.all::<Volume>();
    let deleted = volumes.delete("kept", &DeleteParams::default()).await.unwrap();
    assert_eq!(deleted.left().unwrap().finalizers(), ["kubernetes.io/pv-protection"]);
    let bare = json!({"metadata": {"finalizers": null}});
    volumes.patch("kept", &PatchParams::default(), &Patch::Merge(bare)).await.unwrap();
    c.claim_is("again", "Lost", "kept").await;
    c.has_told("again", "ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_without_class_gets_the_default_even_later() {
    let c = Cluster::start().await;
    let classes = c.all::<StorageClass>();
    classes.delete("standard", &DeleteParams::default()).await.unwrap();
    let mut bare = claim("bare", "1Gi", None);
    bare["spec"].as_object_mut().unwrap().remove("storageClassName");
    c.claim(bare.clone()).await;
    c.has_told("bare", "FailedBinding", "no persistent volumes available").await;
    c.class(
        json!({"metadata": {"name": "fast", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "example.com/disk", "volumeBindingMode": "WaitForFirstConsumer"}),
    )
    .await;
    c.has_told("bare", "WaitForFirstConsumer", "waiting for first consumer to be created before binding").await;
    let got = c.claim_is("bare", "Pending", "").await;
    assert_eq!(got.spec.unwrap().storage_class_name.as_deref(), Some("fast"));
    bare["metadata"]["name"] = "prompt".into();
    assert_eq!(c.claim(bare).await.spec.unwrap().storage_class_name.as_deref(), Some("fast"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_made_where_the_pod_goes() {
    let c = Cluster::start().await;
    c.node("n1").await;
    c.node("n2").await;
    c.run_pods();
    c.account().await;
    c.claim(claim("data", "1Gi", Some("standard"))).await;
    let mut p = pod("p", "data");
    p["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "n2"});
    c.create::<Pod>("default", p.clone()).await;
    let pods = c.api::<Pod>("default");
    eventually("the pod is bound", || async {
        pods.get("p").await.unwrap().spec.unwrap().node_name.filter(|n| n == "n2")
    })
    .await;
    let data = c.api::<Claim>("default").get("data").await.unwrap();
    let name = format!("pvc-{}", data.uid().unwrap());
    assert_eq!(data.spec.as_ref().unwrap().volume_name.as_ref(), Some(&name));
    assert_eq!(data.annotations()["volume.kubernetes.io/selected-node"], "n2");
    c.has_told("data", "ProvisioningSucceeded", &format!("Successfully provisioned volume {name}")).await;
    let made = c.volume_is(&name, "Bound").await;
    assert_eq!(made.spec.unwrap().local.unwrap().path, format!("/nowhere/volumes/{name}_default_data"));
    // Growth is granted, shrinking is not.
    let size = |s: &str| json!({"spec": {"resources": {"requests": {"storage": s}}}});
    c.patch_claim("data", size("3Gi")).await.unwrap();
    let api = c.api::<Claim>("default");
    eventually("the claim has grown", || async {
        let s = api.get("data").await.unwrap().status?;
        let settled = s.conditions.is_none_or(|c| c.is_empty());
        (s.capacity?["storage"].0 == "3Gi" && settled).then_some(())
    })
    .await;
    c.has_told("data", "VolumeResizeSuccessful", "Resize volume succeeded").await;
    let refused = c.patch_claim("data", size("2Gi")).await.unwrap_err().to_string();
    assert!(refused.contains("field can not be less than status.capacity"), "{refused}");
    // In use it stays; then everything goes but what the node's agent still has to remove.
    api.delete("data", &DeleteParams::default()).await.unwrap();
    let second = json!({"metadata": {"name": "q"}, "spec": {"containers": [{"name": "c", "image": "a"}],
        "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}});
    c.create::<Pod>("default", second).await;
    let text = "0/2 nodes are available: persistentvolumeclaim \"data\" is being deleted.";
    c.has_told("q", "FailedScheduling", text).await;
    pods.delete("q", &DeleteParams::default()).await.unwrap();
    assert!(api.get("data").await.unwrap().metadata.deletion_timestamp.is_some());
    pods.delete("p", &DeleteParams::default()).await.unwrap();
    eventually("the claim goes", || async { api.get_opt("data").await.unwrap().is_none().then_some(()) }).await;
    let volumes = c.all::<Volume>();
    eventually("the volume waits for the agent alone", || async {
        let v = volumes.get(&name).await.unwrap();
        (v.metadata.deletion_timestamp.is_some() && v.finalizers() == ["skiff.dev/local-path"]).then_some(())
    })
    .await;
    c.all::<k8s_openapi::api::core::v1::Node>().delete("n2", &DeleteParams::default()).await.unwrap();
    eventually("no agent is left to wait for", || async {
        volumes.get_opt(&name).await.unwrap().is_none().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn placement_follows_volumes() {
    let c = Cluster::start().await;
    c.node("n1").await;
    c.node("n2").await;
    c.run_pods();
    c.account().await;
    let on = |name: &str, node: &str| {
        let mut v = volume(name, "1Gi", "disks");
        v["spec"]["hostPath"] = Value::Null;
        v["spec"]["local"] = json!({"path": "/nowhere"});
        v["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}});
        v
    };
    c.class(json!({"metadata": {"name": "disks"}, "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer"}))
        .await;
    let pods = c.api::<Pod>("default");
    let node = |name: &'static str| {
        let pods = pods.clone();
        async move { pods.get(name).await.unwrap().spec.unwrap().node_name }
    };
    c.claim(claim("a", "1Gi", Some("disks"))).await;
    c.create::<Pod>("default", pod("first", "a")).await;
    let text = "0/2 nodes are available: 2 node(s) didn't find available persistent volumes to bind.";
    c.has_told("first", "FailedScheduling", text).await;
    c.has_told("a", "WaitForPodScheduled", "waiting for pod first to be scheduled").await;
    c.volume(on("disk2", "n2")).await;
    eventually("the pod goes to the disk", || async { node("first").await.filter(|n| n == "n2") }).await;
    c.claim_is("a", "Bound", "disk2").await;
    // A pod that must be elsewhere cannot have the claim.
    let mut far = pod("far", "a");
    far["spec"]["nodeSelector"] = json!({"kubernetes.io/hostname": "n1"});
    c.create::<Pod>("default", far).await;
    let text = "0/2 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity, 1 node(s) didn't match Pod's node affinity/selector.";
    c.has_told("far", "FailedScheduling", text).await;
    // A claim for one pod alone.
    let mut alone = claim("alone", "1Gi", Some("standard"));
    alone["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
    c.claim(alone).await;
    c.create::<Pod>("default", pod("one", "alone")).await;
    eventually("one is bound", || async { node("one").await }).await;
    c.create::<Pod>("default", pod("two", "alone")).await;
    let text = "0/2 nodes are available: 2 node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode.";
    c.has_told("two", "FailedScheduling", text).await;
    pods.delete("one", &DeleteParams::default()).await.unwrap();
    eventually("two is bound", || async { node("two").await }).await;
    // Bound at once or not at all: such a claim is not the scheduler's.
    c.class(json!({"metadata": {"name": "now"}, "provisioner": "example.com/disk"})).await;
    c.claim(claim("now", "1Gi", Some("now"))).await;
    c.create::<Pod>("default", pod("early", "now")).await;
    let text = "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.";
    c.has_told("early", "FailedScheduling", text).await;
    c.volume(volume("late", "1Gi", "now")).await;
    eventually("early is bound", || async { node("early").await }).await;
    // A volume that lives as long as its pod.
    let scratch = json!({"metadata": {"name": "e"}, "spec": {"containers": [{"name": "c", "image": "a"}],
        "volumes": [{"name": "tmp", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Mi"}}}}}}]}});
    c.create::<Pod>("default", scratch).await;
    eventually("e is bound", || async { node("e").await }).await;
    pods.delete("e", &DeleteParams::default()).await.unwrap();
    let claims = c.api::<Claim>("default");
    eventually("its claim goes too", || async { claims.get_opt("e-tmp").await.unwrap().is_none().then_some(()) }).await;
}

/// An agent takes its finalizer off volumes that are its own directories, and can do nothing else to volumes.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_agent_may_do_to_volumes() {
    let c = Cluster::start().await;
    for (name, host, by) in
        [("own", "n1", "skiff.dev/local-path"), ("far", "n2", "skiff.dev/local-path"), ("other", "n1", "example.com/x")]
    {
        let mut v = volume(name, "1Gi", "");
        v["metadata"]["labels"] = json!({"skiff.dev/hostname": host});
        v["metadata"]["annotations"] = json!({"pv.kubernetes.io/provisioned-by": by});
        v["metadata"]["finalizers"] = json!(["skiff.dev/local-path", "example.com/keep"]);
        c.volume(v).await;
    }
    let agent: kube::Api<Volume> = kube::Api::all(c.agent("n1"));
    let finalizers = |list: &[&str]| json!({"metadata": {"finalizers": list}});
    let protected = ["example.com/keep", "kubernetes.io/pv-protection"];
    for (name, patch, allowed) in [
        ("far", finalizers(&protected), false),
        ("other", finalizers(&protected), false),
        ("own", finalizers(&["kubernetes.io/pv-protection"]), false),
        ("own", json!({"spec": {"persistentVolumeReclaimPolicy": "Delete"}}), false),
        ("own", json!({"metadata": {"labels": {"a": "b"}}}), false),
        ("own", finalizers(&protected), true),
    ] {
        let got = agent.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
        match got {
            Ok(_) => assert!(allowed, "{name} {patch}"),
            Err(kube::Error::Api(s)) => assert!(!allowed && s.code == 403, "{name} {patch}: {s:?}"),
            Err(e) => panic!("{name} {patch}: {e}"),
        }
    }
    assert!(agent.delete("own", &DeleteParams::default()).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn classes_of_attributes_stay_while_they_are_named() {
    let c = Cluster::start().await;
    let classes = c.all::<VolumeAttributesClass>();
    for name in ["named", "free"] {
        let class = json!({"metadata": {"name": name}, "driverName": "example.com", "parameters": {"iops": "1"}});
        classes.create(&PostParams::default(), &serde_json::from_value(class).unwrap()).await.unwrap();
    }
    let mut wants = claim("wants", "1Gi", None);
    wants["spec"]["volumeAttributesClassName"] = "named".into();
    c.claim(wants).await;
    classes.delete("free", &DeleteParams::default()).await.unwrap();
    let gone = async |name: &str| classes.get_opt(name).await.unwrap().is_none().then_some(());
    eventually("the free class is gone", || gone("free")).await;
    let deleted = classes.delete("named", &DeleteParams::default()).await.unwrap();
    assert_eq!(deleted.left().unwrap().finalizers(), ["kubernetes.io/vac-protection"]);
    assert!(classes.get_opt("named").await.unwrap().is_some());
    c.api::<Claim>("default").delete("wants", &DeleteParams::default()).await.unwrap();
    eventually("the class is gone with its claim", || gone("named")).await;
}
