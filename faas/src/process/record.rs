//! The FunctionInstance objects of all nodes: they follow what runs, never the other way round.
//!
//! Level-based: what should be there is compared with what was written, whenever something changed; a write that failed is
//! tried again with a growing pause. So nothing waits for the API, and nothing is lost while it does not answer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::job::Record;
use crate::api::{FUNCTION, FunctionInstance, FunctionInstanceSpec, REVISION};

type Key = (String, String);

/// What should be there.
#[derive(Debug, Default)]
pub(super) struct Records {
    wanted: Mutex<BTreeMap<Key, FunctionInstance>>,
    /// Nodes of which it is known what runs there: records of others are left as they are.
    known: Mutex<HashSet<String>>,
    /// The nodes that there are, once they were listed: nothing runs on others.
    nodes: Mutex<Option<HashSet<String>>>,
    changed: Notify,
}

impl Records {
    /// An instance runs on this node.
    pub(super) fn put(&self, node: &str, record: &Record) {
        let spec = FunctionInstanceSpec {
            function: record.function.clone(),
            revision: record.revision.clone(),
            node: node.to_owned(),
            state: "Running".to_owned(),
            asked_at: Some(Time(record.asked_at)),
            ready_at: Some(Time(record.ready_at)),
        };
        let mut object = FunctionInstance::new(&record.name, spec);
        object.metadata.namespace = Some(record.namespace.clone());
        object.metadata.labels = Some(
            [(FUNCTION.to_owned(), record.function.clone()), (REVISION.to_owned(), record.revision.clone())].into(),
        );
        self.wanted.lock().insert((record.namespace.clone(), record.name.clone()), object);
        self.changed.notify_one();
    }

    pub(super) fn remove(&self, namespace: &str, name: &str) {
        self.wanted.lock().remove(&(namespace.to_owned(), name.to_owned()));
        self.changed.notify_one();
    }

    /// All that runs on this node has been put: what else is recorded of it is of the past.
    pub(super) fn know(&self, node: &str) {
        if self.known.lock().insert(node.to_owned()) {
            self.changed.notify_one();
        }
    }

    /// These are all nodes.
    pub(super) fn nodes(&self, names: HashSet<String>) {
        let names = Some(names);
        let changed = {
            let mut nodes = self.nodes.lock();
            std::mem::replace(&mut *nodes, names.clone()) != names
        };
        if changed {
            self.changed.notify_one();
        }
    }

    /// Writes until `stop`. First reads what a former process left.
    pub(super) async fn run(self: Arc<Self>, client: Client, stop: CancellationToken) {
        stop.run_until_cancelled(self.follow(client)).await;
    }

    async fn follow(&self, client: Client) {
        // With the node that each is on.
        let mut written: HashMap<Key, String> = HashMap::new();
        let mut listed = false;
        let mut pause = Duration::from_millis(200);
        loop {
            let result = async {
                if !listed {
                    for old in Api::<FunctionInstance>::all(client.clone()).list(&ListParams::default()).await?.items {
                        let key = (old.metadata.namespace.unwrap_or_default(), old.metadata.name.unwrap_or_default());
                        written.insert(key, old.spec.node);
                    }
                    listed = true;
                }
                self.write(&client, &mut written).await
            }
            .await;
            match result {
                Ok(()) => {
                    pause = Duration::from_millis(200);
                    self.changed.notified().await;
                }
                Err(error) => {
                    tracing::debug!(%error, "records of instances are written later");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(30));
                }
            }
        }
    }

    async fn write(&self, client: &Client, written: &mut HashMap<Key, String>) -> kube::Result<()> {
        let (wanted, known) = (self.wanted.lock().clone(), self.known.lock().clone());
        let nodes = self.nodes.lock().clone();
        let looked_at = |node: &String| known.contains(node) || nodes.as_ref().is_some_and(|n| !n.contains(node));
        let past = |(key, node): &(&Key, &String)| !wanted.contains_key(*key) && looked_at(node);
        for key in written.iter().filter(past).map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            ignore(
                404,
                Api::<FunctionInstance>::namespaced(client.clone(), &key.0)
                    .delete(&key.1, &DeleteParams::default())
                    .await,
            )?;
            written.remove(&key);
        }
        for (key, object) in wanted {
            if written.contains_key(&key) {
                continue;
            }
            let result = Api::namespaced(client.clone(), &key.0).create(&PostParams::default(), &object).await;
            // A namespace that ends takes no new objects: the function ends too.
            match ignore(409, result) {
                Err(kube::Error::Api(status)) if status.code == 403 || status.code == 404 => {}
                other => other?,
            }
            written.insert(key, object.spec.node);
        }
        Ok(())
    }
}

fn ignore<T>(code: u16, result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.code == code => Ok(()),
        other => other.map(|_| ()),
    }
}
