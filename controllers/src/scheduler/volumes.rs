//! Volumes in placement: which nodes can reach a pod's volumes, and the binding that goes before the pod's own.
//!
//! Claims whose class waits for a pod are decided here, with the node: each gets a volume that the node reaches, or is
//! given to the class's provisioner together with the node's name. Nothing is written before the node is chosen. Until
//! the watch shows what was decided, other decisions see it here ("assumed").
//!
//! # Limits
//! CSI limits and storage capacity are not looked at: no node of this cluster has CSI drivers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Rule;
use super::cache::{Cache, Host};
use super::filter::Refusal;
use crate::controllers::volumes::binder::reserve_for;
use crate::controllers::volumes::{
    BIND_COMPLETED, SELECTED_NODE, annotation, asked, claim_phase, claims_of, class_of_claim, made_for, matching,
    volume_name, waits,
};
use crate::runtime::informer::{Informer, join, key_of};
use crate::runtime::worker;

/// Longest wait for provisioners and binder; upstream's default.
const BIND_LIMIT: Duration = Duration::from_secs(600);
/// Labels of a volume that must be those of the node. A value may list several, joined by two underscores.
const ZONES: [&str; 4] = [
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
];

/// Decisions on their way to the server.
#[derive(Default)]
struct Assumed {
    /// Claim by volume.
    volumes: HashMap<String, String>,
    /// Node by claim.
    nodes: HashMap<String, String>,
}

/// Claims, volumes and classes as the scheduler sees them.
pub struct Storage {
    /// Claims.
    pub claims: Informer<PersistentVolumeClaim>,
    /// Volumes.
    pub volumes: Informer<PersistentVolume>,
    /// Classes.
    pub classes: Informer<StorageClass>,
    assumed: Mutex<Assumed>,
    /// Bumped when something that a binding may wait for has changed.
    changes: watch::Sender<()>,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            claims: Informer::default(),
            volumes: Informer::default(),
            classes: Informer::default(),
            assumed: Mutex::default(),
            changes: watch::channel(()).0,
        }
    }
}

/// What a pod's volumes ask of a node. Made once per decision.
#[derive(Debug, Default)]
pub struct Wants {
    bound: Vec<Arc<PersistentVolume>>,
    /// A claim says it is bound to a volume that is not there.
    lost: bool,
    open: Vec<Open>,
    /// Volumes that open claims may take.
    free: Vec<Arc<PersistentVolume>>,
    /// Claims that only one pod may use.
    alone: Vec<String>,
}

/// A claim that waits for this decision.
#[derive(Debug)]
struct Open {
    claim: Arc<PersistentVolumeClaim>,
    class: Option<Arc<StorageClass>>,
    /// The node it was promised to already.
    node: Option<String>,
}

/// What is to be written for the volumes of a pod that goes to a node.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    bind: Vec<(Arc<PersistentVolumeClaim>, Arc<PersistentVolume>)>,
    provision: Vec<Arc<PersistentVolumeClaim>>,
}

impl Choice {
    /// Whether nothing is to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bind.is_empty() && self.provision.is_empty()
    }
}

impl Storage {
    /// Looks at a pod's claims.
    ///
    /// # Errors
    /// In upstream's words why no node can take the pod now.
    pub fn wants(&self, pod: &Pod) -> Result<Wants, String> {
        let uses = claims_of(pod);
        let mut wants = Wants::default();
        if uses.is_empty() {
            return Ok(wants);
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let mut immediate = false;
        let assumed = self.assumed.lock();
        for u in uses {
            let key = join(namespace, &u.claim);
            let name = &u.claim;
            let Some(claim) = self.claims.get(&key) else {
                return Err(if u.ephemeral {
                    format!("waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\"")
                } else {
                    format!("persistentvolumeclaim \"{name}\" not found")
                });
            };
            if claim_phase(&claim) == "Lost" {
                let volume = volume_name(&claim);
                return Err(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{volume}\""
                ));
            }
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            if u.ephemeral && !made_for(&claim, pod) {
                let pod = key_of(pod);
                return Err(format!("PVC {key} was not created for pod {pod} (pod is not owner)"));
            }
            let modes = claim.spec.as_ref().and_then(|s| s.access_modes.as_deref()).unwrap_or_default();
            if modes.iter().any(|m| m == "ReadWriteOncePod") {
                wants.alone.push(key.clone());
            }
            let class = self.classes.get(class_of_claim(&claim));
            let complete = annotation(&claim.metadata, BIND_COMPLETED).is_some();
            let promised = assumed.volumes.iter().find(|(_, c)| **c == key).map(|(v, _)| v.clone());
            if let Some(volume) =
                Some(volume_name(&claim)).filter(|v| !v.is_empty() && complete).or(promised.as_deref())
            {
                match self.volumes.get(volume) {
                    Some(v) => wants.bound.push(v),
                    None => wants.lost = true,
                }
            } else if waits(class.as_deref()) && volume_name(&claim).is_empty() {
                let said = annotation(&claim.metadata, SELECTED_NODE).map(str::to_owned);
                let node = assumed.nodes.get(&key).cloned().or(said);
                wants.open.push(Open { claim, class, node });
            } else {
                immediate = true;
            }
        }
        if immediate {
            return Err("pod has unbound immediate PersistentVolumeClaims".into());
        }
        if !wants.open.is_empty() {
            wants.free = self.volumes.all();
            wants.free.retain(|v| !assumed.volumes.contains_key(&v.name_any()));
            wants.open.sort_by_key(|o| (asked(&o.claim), o.claim.name_any()));
        }
        Ok(wants)
    }

    /// Counts a choice as made.
    pub fn assume(&self, choice: &Choice, node: &str) {
        let mut assumed = self.assumed.lock();
        for (claim, volume) in &choice.bind {
            assumed.volumes.insert(volume.name_any(), key_of(&**claim));
        }
        for claim in &choice.provision {
            assumed.nodes.insert(key_of(&**claim), node.to_owned());
        }
    }

    /// Forgets a choice: it is visible by now, or void.
    pub fn forget(&self, choice: &Choice) {
        let mut assumed = self.assumed.lock();
        for (_, volume) in &choice.bind {
            assumed.volumes.remove(&volume.name_any());
        }
        for claim in &choice.provision {
            assumed.nodes.remove(&key_of(&**claim));
        }
    }

    /// Says that something changed that a binding may wait for.
    pub fn touch(&self) {
        self.changes.send_replace(());
    }

    /// Writes a choice and waits until all its claims are bound, or `pod_lives` says that nobody needs them any more.
    ///
    /// # Errors
    /// In upstream's words why that failed.
    pub async fn bind(
        &self,
        client: &Client,
        choice: &Choice,
        node: &Node,
        pod_lives: impl Fn() -> bool,
    ) -> Result<(), String> {
        let mut changes = self.changes.subscribe();
        let work = async {
            let promised = self.write(client, choice, node).await.map_err(|e| worker::text(&e))?;
            loop {
                changes.borrow_and_update();
                if self.is_bound(choice, &promised, node)? {
                    return Ok(());
                }
                if !pod_lives() {
                    return Err("pod does not exist any more".to_owned());
                }
                if changes.changed().await.is_err() {
                    return Err("the scheduler ends".to_owned());
                }
            }
        };
        let result = tokio::time::timeout(BIND_LIMIT, work).await;
        result.unwrap_or_else(|_| Err("context deadline exceeded".into()))
    }

    /// Writes; answers the versions in which claims carry the node's name.
    async fn write(
        &self,
        client: &Client,
        choice: &Choice,
        node: &Node,
    ) -> Result<HashMap<String, Option<u64>>, kube::Error> {
        let mut promised = HashMap::new();
        for (claim, volume) in &choice.bind {
            let mut new = PersistentVolume::clone(volume);
            reserve_for(&mut new, claim);
            if new != **volume {
                Api::<PersistentVolume>::all(client.clone())
                    .replace(&volume.name_any(), &PostParams::default(), &new)
                    .await?;
            }
        }
        for claim in &choice.provision {
            let name = node.name_any();
            if annotation(&claim.metadata, SELECTED_NODE) == Some(&name) {
                promised.insert(key_of(&**claim), version(claim));
                continue;
            }
            let mut new = PersistentVolumeClaim::clone(claim);
            new.annotations_mut().insert(SELECTED_NODE.to_owned(), name);
            let api: Api<PersistentVolumeClaim> =
                Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
            let written = api.replace(&claim.name_any(), &PostParams::default(), &new).await?;
            promised.insert(key_of(&written), version(&written));
        }
        Ok(promised)
    }

    fn is_bound(&self, choice: &Choice, promised: &HashMap<String, Option<u64>>, node: &Node) -> Result<bool, String> {
        let mut all = true;
        for claim in choice.bind.iter().map(|(c, _)| c).chain(&choice.provision) {
            let (name, key) = (claim.name_any(), key_of(&**claim));
            let now = self.claims.get(&key).filter(|c| c.uid() == claim.uid());
            let now = now.ok_or_else(|| {
                format!("failed to get pvc \"{name}\" from cache: persistentvolumeclaim \"{name}\" not found")
            })?;
            // The phase is written last, and it is what a node's agent looks at.
            let complete = annotation(&now.metadata, BIND_COMPLETED).is_some() && claim_phase(&now) == "Bound";
            if !volume_name(&now).is_empty() && complete {
                let volume = self.volumes.get(volume_name(&now));
                match volume {
                    Some(v) if !matching::reachable(&v, node) => {
                        return Err(format!(
                            "PV \"{}\" node affinity doesn't match node \"{}\": no matching NodeSelectorTerms",
                            v.name_any(),
                            node.name_any()
                        ));
                    }
                    Some(_) => {}
                    None => all = false,
                }
                continue;
            }
            all = false;
            // A provisioner that cannot serve the node takes its name off. A copy older than our write says nothing.
            let Some(written) = promised.get(&key) else { continue };
            match annotation(&now.metadata, SELECTED_NODE) {
                _ if version(&now) < *written => {}
                Some(n) if n == node.name_any() => {}
                None => return Err(format!("selectedNode annotation reset for PVC \"{name}\"")),
                Some(n) => {
                    return Err(format!(
                        "selectedNode annotation value \"{n}\" not set to scheduled node \"{}\"",
                        node.name_any()
                    ));
                }
            }
        }
        Ok(all)
    }
}

fn version(claim: &PersistentVolumeClaim) -> Option<u64> {
    claim.resource_version()?.parse().ok()
}

impl Wants {
    /// Whether a node can have the pod's volumes, and what is to be written if it is chosen.
    ///
    /// # Errors
    /// The refusal.
    pub fn allows(&self, host: &Host, conflict: bool) -> Result<Choice, Refusal> {
        let Some(node) = &host.node else { return Ok(Choice::default()) };
        if conflict {
            let text = "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode";
            return Err(Refusal::new(Rule::Volumes, text, true));
        }
        let mut reasons = Vec::new();
        if self.lost {
            reasons.push("node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)".to_owned());
        } else if self.bound.iter().any(|v| !matching::reachable(v, node)) {
            reasons.push("node(s) didn't match PersistentVolume's node affinity".to_owned());
        }
        let choice = self.choose(node);
        if choice.is_none() {
            reasons.push("node(s) didn't find available persistent volumes to bind".to_owned());
        }
        if !reasons.is_empty() {
            return Err(Refusal { rule: Rule::Volumes, reasons, curable: false });
        }
        if !self.bound.iter().all(|v| in_zone(v, node)) {
            return Err(Refusal::new(Rule::Volumes, "node(s) had no available volume zone", false));
        }
        Ok(choice.unwrap_or_default())
    }

    fn choose(&self, node: &Node) -> Option<Choice> {
        let mut choice = Choice::default();
        let mut free = self.free.clone();
        for open in &self.open {
            if let Some(promised) = &open.node {
                if *promised != node.name_any() {
                    return None;
                }
                choice.provision.push(Arc::clone(&open.claim));
                continue;
            }
            if let Some(volume) = matching::best(&open.claim, &free, Some(node), true).cloned() {
                free.retain(|v| v.name_any() != volume.name_any());
                choice.bind.push((Arc::clone(&open.claim), volume));
                continue;
            }
            let class = open.class.as_ref()?;
            let terms = class.allowed_topologies.as_deref().unwrap_or_default();
            if matches!(class.provisioner.as_str(), "" | "kubernetes.io/no-provisioner")
                || !matching::in_topology(terms, node)
            {
                return None;
            }
            choice.provision.push(Arc::clone(&open.claim));
        }
        Some(choice)
    }

    /// Whether another pod has one of the claims that only one may use.
    #[must_use]
    pub fn conflict(&self, pod: &Pod, cache: &Cache) -> bool {
        if self.alone.is_empty() {
            return false;
        }
        let others = cache.hosts.values().flat_map(|h| h.pods.values()).filter(|p| p.pod.uid() != pod.uid());
        let keys = |p: &Pod| -> Vec<String> {
            let ns = p.namespace().unwrap_or_default();
            claims_of(p).iter().map(|u| join(&ns, &u.claim)).collect()
        };
        others.into_iter().any(|p| keys(&p.pod).iter().any(|k| self.alone.contains(k)))
    }
}

/// Whether a volume's zone and region labels are those of the node. A node without any takes all.
fn in_zone(volume: &PersistentVolume, node: &Node) -> bool {
    let of = |labels: &Option<std::collections::BTreeMap<String, String>>, key: &str| {
        labels.as_ref().and_then(|l| l.get(key)).cloned()
    };
    if ZONES.iter().all(|z| of(&node.metadata.labels, z).is_none()) {
        return true;
    }
    ZONES.iter().all(|z| {
        let wanted = of(&volume.metadata.labels, z);
        wanted.is_none_or(|w| of(&node.metadata.labels, z).is_some_and(|has| w.split("__").any(|one| one == has)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn storage(claims: Value, volumes: Value) -> Storage {
        let s = Storage::default();
        for c in serde_json::from_value::<Vec<PersistentVolumeClaim>>(claims).unwrap() {
            s.claims.apply(c);
        }
        for v in serde_json::from_value::<Vec<PersistentVolume>>(volumes).unwrap() {
            s.volumes.apply(v);
        }
        for (name, provisioner, mode) in [
            ("later", "example.com/x", "WaitForFirstConsumer"),
            ("static", "kubernetes.io/no-provisioner", "WaitForFirstConsumer"),
            ("now", "example.com/x", "Immediate"),
        ] {
            let class = json!({"metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode});
            s.classes.apply(serde_json::from_value(class).unwrap());
        }
        s
    }

    fn claim(name: &str, class: &str, more: Value) -> Value {
        let mut c = json!({"metadata": {"name": name, "namespace": "x", "uid": name}, "spec": {"storageClassName": class,
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        for (k, v) in more.as_object().unwrap() {
            let at = if k == "volumeName" || k == "accessModes" { "spec" } else { "metadata" };
            c[at][k] = v.clone();
        }
        c
    }

    fn volume(name: &str, class: &str, host: &str) -> Value {
        json!({"metadata": {"name": name}, "spec": {"storageClassName": class, "capacity": {"storage": "2Gi"},
            "accessModes": ["ReadWriteOnce"], "local": {"path": "/x"}, "nodeAffinity": {"required": {"nodeSelectorTerms": [
                {"matchExpressions": [{"key": "host", "operator": "In", "values": [host]}]}]}}},
            "status": {"phase": "Available"}})
    }

    fn host(name: &str) -> Host {
        let node = json!({"metadata": {"name": name, "labels": {"host": name}}});
        Host::of(Arc::new(serde_json::from_value(node).unwrap()))
    }

    fn pod(name: &str, claims: &[&str]) -> Pod {
        let volumes: Vec<Value> =
            claims.iter().map(|c| json!({"name": c, "persistentVolumeClaim": {"claimName": c}})).collect();
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "x", "uid": name},
            "spec": {"containers": [], "volumes": volumes}}))
        .unwrap()
    }

    /// Per node: what would be done, or the refusal.
    fn verdicts(s: &Storage, pod: &Pod) -> Result<Vec<String>, String> {
        let wants = s.wants(pod)?;
        let one = |n: &str| match wants.allows(&host(n), false) {
            Ok(c) => {
                let bind = c.bind.iter().map(|(c, v)| format!("{}={}", c.name_any(), v.name_any()));
                let made = c.provision.iter().map(|c| format!("{}=new", c.name_any()));
                bind.chain(made).collect::<Vec<_>>().join(" ")
            }
            Err(r) => r.reasons.join(", "),
        };
        Ok(["n1", "n2"].map(one).to_vec())
    }

    #[test]
    fn what_nodes_can_do_for_claims() {
        let bound = |v: &str| json!({"volumeName": v, "annotations": {BIND_COMPLETED: "yes"}});
        let claims = json!([
            claim("a", "later", json!({})),
            claim("b", "static", json!({})),
            claim("c", "static", json!({})),
            claim("imm", "now", json!({})),
            claim("on1", "static", bound("v1")),
            claim("gone", "static", bound("nowhere")),
            claim("sel", "later", json!({"annotations": {SELECTED_NODE: "n2"}})),
            claim("del", "later", json!({"deletionTimestamp": "2026-01-01T00:00:00Z"})),
        ]);
        let mut taken = volume("v1", "static", "n1");
        taken["spec"]["claimRef"] = json!({"namespace": "x", "name": "on1", "uid": "on1"});
        let volumes =
            json!([taken, volume("v2", "static", "n2"), volume("v3", "static", "n1"), volume("v4", "static", "n1")]);
        let s = storage(claims, volumes);
        let none = "node(s) didn't find available persistent volumes to bind";
        let far = "node(s) didn't match PersistentVolume's node affinity";
        let lost = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";
        for (claims, want) in [
            (&["a"][..], Ok(["a=new", "a=new"])),
            (&["b"], Ok(["b=v3", "b=v2"])),
            (&["b", "c"], Ok(["b=v3 c=v4", none])),
            (&["a", "b"], Ok(["b=v3 a=new", "b=v2 a=new"])),
            (&["on1"], Ok(["", far])),
            (&["on1", "b", "c"], Ok(["b=v3 c=v4", "far, none"])),
            (&["gone"], Ok([lost, lost])),
            (&["sel"], Ok([none, "sel=new"])),
            (&["imm", "a"], Err("pod has unbound immediate PersistentVolumeClaims")),
            (&["none"], Err("persistentvolumeclaim \"none\" not found")),
            (&["del"], Err("persistentvolumeclaim \"del\" is being deleted")),
        ] {
            let want = want.map(|w| w.map(|t| t.replace("far", far).replace(", none", &format!(", {none}"))).to_vec());
            assert_eq!(verdicts(&s, &pod("p", claims)), want.map_err(str::to_owned), "{claims:?}");
        }
    }

    #[test]
    fn decisions_not_yet_seen_count() {
        let claims =
            json!([claim("b", "static", json!({})), claim("c", "static", json!({})), claim("a", "later", json!({}))]);
        let s = storage(claims, json!([volume("v1", "static", "n1")]));
        let choice = s.wants(&pod("p", &["b", "a"])).unwrap().allows(&host("n1"), false).unwrap();
        s.assume(&choice, "n1");
        let none = "node(s) didn't find available persistent volumes to bind".to_owned();
        assert_eq!(verdicts(&s, &pod("q", &["c"])).unwrap(), [none.clone(), none.clone()]);
        assert_eq!(verdicts(&s, &pod("q", &["a"])).unwrap(), ["a=new".to_owned(), none.clone()]);
        let far = "node(s) didn't match PersistentVolume's node affinity".to_owned();
        assert_eq!(verdicts(&s, &pod("q", &["b"])).unwrap(), [String::new(), far]);
        s.forget(&choice);
        assert_eq!(verdicts(&s, &pod("q", &["c"])).unwrap(), ["c=v1".to_owned(), none]);
    }

    #[test]
    fn one_pod_alone() {
        let s = storage(json!([claim("a", "later", json!({"accessModes": ["ReadWriteOncePod"]}))]), json!([]));
        let wants = s.wants(&pod("p", &["a"])).unwrap();
        let mut cache = Cache::default();
        assert!(!wants.conflict(&pod("p", &["a"]), &cache));
        cache.assume(crate::scheduler::cache::Placed::new(Arc::new(pod("other", &["a"]))), "n1");
        assert!(wants.conflict(&pod("p", &["a"]), &cache));
        assert!(wants.allows(&host("n2"), true).unwrap_err().curable);
        assert!(!wants.conflict(&pod("other", &["a"]), &cache));
    }

    #[test]
    fn zones() {
        for (on_volume, on_node, want) in [
            (json!({}), json!({}), true),
            (json!({ZONES[0]: "a"}), json!({}), true),
            (json!({ZONES[0]: "a"}), json!({ZONES[0]: "a"}), true),
            (json!({ZONES[0]: "a__b"}), json!({ZONES[0]: "b"}), true),
            (json!({ZONES[0]: "a"}), json!({ZONES[0]: "b"}), false),
            (json!({ZONES[0]: "a"}), json!({ZONES[1]: "r"}), false),
        ] {
            let v = serde_json::from_value(json!({"metadata": {"labels": on_volume}})).unwrap();
            let n = serde_json::from_value(json!({"metadata": {"labels": on_node}})).unwrap();
            assert_eq!(in_zone(&v, &n), want, "{on_volume} {on_node}");
        }
    }
}
