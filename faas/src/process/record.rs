//! The FunctionInstance objects of this node: they follow what runs, never the other way round.
//!
//! Level-based: what should be there is compared with what was written, whenever something changed; a write that failed is
//! tried again with a growing pause. So nothing waits for the API, and nothing is lost while it does not answer.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::api::{FUNCTION, FunctionInstance, FunctionInstanceSpec, REVISION};

type Key = (String, String);

/// What should be there.
#[derive(Debug, Default)]
pub(super) struct Records {
    wanted: Mutex<BTreeMap<Key, FunctionInstance>>,
    changed: Notify,
}

impl Records {
    pub(super) fn put(&self, namespace: &str, name: &str, spec: FunctionInstanceSpec) {
        let mut object = FunctionInstance::new(name, spec);
        object.metadata.namespace = Some(namespace.to_owned());
        object.metadata.labels = Some(
            [(FUNCTION.to_owned(), object.spec.function.clone()), (REVISION.to_owned(), object.spec.revision.clone())]
                .into(),
        );
        self.wanted.lock().insert((namespace.to_owned(), name.to_owned()), object);
        self.changed.notify_one();
    }

    pub(super) fn remove(&self, namespace: &str, name: &str) {
        self.wanted.lock().remove(&(namespace.to_owned(), name.to_owned()));
        self.changed.notify_one();
    }

    /// Writes for ever. First ends the records of a former process on this node.
    pub(super) async fn run(self: Arc<Self>, client: Client, node: String) {
        let mut written: HashSet<Key> = HashSet::new();
        let mut listed = false;
        let mut pause = Duration::from_millis(200);
        loop {
            let result = async {
                if !listed {
                    for old in Api::<FunctionInstance>::all(client.clone()).list(&ListParams::default()).await?.items {
                        if old.spec.node == node {
                            written.insert((
                                old.metadata.namespace.unwrap_or_default(),
                                old.metadata.name.unwrap_or_default(),
                            ));
                        }
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

    async fn write(&self, client: &Client, written: &mut HashSet<Key>) -> kube::Result<()> {
        let wanted = self.wanted.lock().clone();
        for key in written.iter().filter(|k| !wanted.contains_key(*k)).cloned().collect::<Vec<_>>() {
            ignore(
                404,
                Api::<FunctionInstance>::namespaced(client.clone(), &key.0)
                    .delete(&key.1, &DeleteParams::default())
                    .await,
            )?;
            written.remove(&key);
        }
        for (key, object) in wanted {
            if !written.contains(&key) {
                let result = Api::namespaced(client.clone(), &key.0).create(&PostParams::default(), &object).await;
                // A namespace that ends takes no new objects: the function ends too.
                match ignore(409, result) {
                    Err(kube::Error::Api(status)) if status.code == 403 || status.code == 404 => {}
                    other => other?,
                }
                written.insert(key);
            }
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
