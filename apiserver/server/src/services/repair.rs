//! The task that keeps IPAddress objects and Services in agreement.
//!
//! A Service's addresses are taken before it is stored and given back after it is gone, so a server that dies in between
//! leaves an object without a Service; and people can delete the object of an address that is in use. Both are mended, as
//! upstream's `ipallocator-repair-controller` does. Objects that other programs made are theirs.

use std::collections::{HashSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::Value;
use skiff_core::status::Status;
use skiff_storage::cache::Watcher;
use skiff_storage::{ChangeKind, Event};
use tokio::time::Instant;

use super::{Owner, addresses, cluster_ips};
use crate::registry::Collection;
use crate::server::Inner;

/// An address this young may be of a Service that is being written: longer than any request takes.
const YOUNG: Duration = Duration::from_secs(61);
/// How long the task waits after an error.
const PAUSE: Duration = Duration::from_secs(1);
/// Objects made at a time where there were none: those of Services that an older release stored.
const AT_ONCE: usize = 64;

/// Makes the objects that are missing, and watches over them from then on.
///
/// # Errors
/// When the store cannot be read or written.
pub async fn start(server: &Arc<Inner>) -> Result<(), Status> {
    let repair = Repair {
        server: Arc::clone(server),
        services: server.collection("", "services")?,
        objects: addresses::objects(server)?,
        fresh: VecDeque::new(),
    };
    repair.services.consistent().await?;
    repair.objects.consistent().await?;
    let made = stream::iter(repair.missing()).map(Ok::<_, Status>);
    made.try_for_each_concurrent(AT_ONCE, |(address, owner)| async move {
        if !addresses::make(server, address, &owner).await? {
            tracing::warn!(%address, service = owner.key, "the address is another's: create the Service again");
        }
        Ok(())
    })
    .await?;
    tokio::spawn(server.shutdown.clone().run_until_cancelled_owned(repair.run()));
    Ok(())
}

struct Repair {
    server: Arc<Inner>,
    services: Arc<Collection>,
    objects: Arc<Collection>,
    /// Addresses that are looked at when they are no longer young, in order.
    fresh: VecDeque<(Instant, String)>,
}

impl Repair {
    /// Addresses of Services that have no object.
    fn missing(&self) -> Vec<(IpAddr, Owner)> {
        let there: HashSet<String> = names(&self.objects).collect();
        let services = self.services.values();
        let of = |s: &Value| cluster_ips(s).into_iter().map(|a| (a, Owner::of(s))).collect::<Vec<_>>();
        services.iter().flat_map(of).filter(|(a, _)| !there.contains(&a.to_string())).collect()
    }

    async fn run(mut self) {
        loop {
            match self.objects.follow().await {
                Ok((snapshot, watcher)) => {
                    self.fresh.clear();
                    self.fresh.extend(snapshot.objects.iter().map(|o| (Instant::now() + YOUNG, o.name().to_owned())));
                    drop(snapshot);
                    self.follow(watcher).await;
                }
                Err(why) => tracing::warn!(why = %why.message, "addresses of Services are read anew"),
            }
            // The watch fell behind or the store is closing.
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn follow(&mut self, mut watcher: Watcher) {
        loop {
            let due = self.fresh.front().map(|(due, _)| *due);
            tokio::select! {
                event = watcher.next() => match event {
                    Some(Ok(event)) => self.changed(&event).await,
                    _ => return,
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let Some((_, name)) = self.fresh.pop_front() else { continue };
                    if let Err(why) = self.check(&name).await {
                        tracing::warn!(name, why = %why.message, "an address is looked at again later");
                        self.fresh.push_back((Instant::now() + YOUNG, name));
                    }
                }
            }
        }
    }

    async fn changed(&mut self, event: &Event) {
        let name = event.object.name();
        match event.kind {
            ChangeKind::Deleted => {
                if let Err(why) = self.restore(&event.object.value).await {
                    tracing::warn!(name, why = %why.message, "an address in use has no object");
                }
            }
            ChangeKind::Created => self.fresh.push_back((Instant::now() + YOUNG, name.to_owned())),
            // Whose an address is does not change.
            ChangeKind::Updated => {}
        }
    }

    /// Makes the object of an address anew whose Service still has it.
    async fn restore(&self, gone: &[u8]) -> Result<(), Status> {
        let object: Value = serde_json::from_slice(gone).unwrap_or_default();
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let Some(key) = addresses::service_of(&object) else { return Ok(()) };
        let Some(service) = self.service(&key).await? else { return Ok(()) };
        let Ok(address) = name.parse() else { return Ok(()) };
        if addresses::held(&service, name) && addresses::make(&self.server, address, &Owner::of(&service)).await? {
            tracing::warn!(name, service = key, "the object of an address in use was deleted: it is back");
        }
        Ok(())
    }

    /// Removes an object that no Service goes with.
    async fn check(&self, name: &str) -> Result<(), Status> {
        let Some(found) = self.objects.peek("", name) else { return Ok(()) };
        let object: Value = serde_json::from_slice(&found.value).unwrap_or_default();
        if !addresses::managed(&object) {
            return Ok(());
        }
        let key = addresses::service_of(&object).unwrap_or_default();
        let held = |s: Option<Value>| s.is_some_and(|s| addresses::held(&s, name));
        // What this server knows is enough to leave it, and not to remove it.
        if held(self.known(&key)) || held(self.service(&key).await?) {
            return Ok(());
        }
        tracing::warn!(name, service = key, "an address that no Service has is given back");
        addresses::remove(&self.server, name, |o| *o == object).await
    }

    /// The Service of this key, as far as this server knows.
    fn known(&self, key: &str) -> Option<Value> {
        let (namespace, name) = key.split_once('/')?;
        serde_json::from_slice(&self.services.peek(namespace, name)?.value).ok()
    }

    /// The Service of this key, with every acknowledged write.
    async fn service(&self, key: &str) -> Result<Option<Value>, Status> {
        self.services.consistent().await?;
        Ok(self.known(key))
    }
}

fn names(objects: &Collection) -> impl Iterator<Item = String> {
    objects.cache.list(&objects.prefix).objects.into_iter().map(|o| o.name().to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use skiff_storage::embedded::{Embedded, Options};

    use super::*;

    #[tokio::test]
    async fn what_a_server_left_behind_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Embedded::open(dir.path(), Options::default()).unwrap();
        let server = crate::Server::builder(Arc::new(store)).start().await.unwrap();
        let inner = Arc::clone(server.inner());
        let repair = Repair {
            services: inner.collection("", "services").unwrap(),
            objects: addresses::objects(&inner).unwrap(),
            server: inner,
            fresh: VecDeque::new(),
        };
        let left = |key: &str| Owner { key: key.to_owned(), uid: String::new() };
        let make = async |ip: &str, key: &str| {
            assert!(addresses::make(&repair.server, ip.parse().unwrap(), &left(key)).await.unwrap());
        };
        // Of a Service that was never stored, and of one that has another address.
        make("10.96.1.1", "default/never").await;
        make("10.96.1.2", "default/kubernetes").await;
        for ip in ["10.96.1.1", "10.96.1.2", "10.96.0.1", "10.96.9.9"] {
            repair.objects.consistent().await.unwrap();
            repair.check(ip).await.unwrap();
        }
        repair.objects.consistent().await.unwrap();
        let there: Vec<String> = names(&repair.objects).collect();
        assert_eq!(there, ["10.96.0.1", "10.96.0.10"]);
        // What another program made is its own.
        let object =
            json!({"metadata": {"name": "10.96.1.3"}, "spec": {"parentRef": {"resource": "services", "name": "x"}}});
        let key = repair.objects.key("", "10.96.1.3");
        let put = skiff_storage::Op::Put(crate::registry::object::encode(&object));
        repair.objects.store.commit(&key, skiff_storage::Compare::Absent, put).await.unwrap();
        repair.objects.consistent().await.unwrap();
        repair.check("10.96.1.3").await.unwrap();
        repair.objects.consistent().await.unwrap();
        assert!(repair.objects.peek("", "10.96.1.3").is_some());
    }
}
