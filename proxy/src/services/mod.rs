//! The service proxy: virtual addresses and node ports, in the kernel.
//!
//! [`frontends`] holds the rules of Services, [`rules`] writes them as an nftables table of [`elements`], [`nft`] loads
//! the whole and [`netlink`] small differences, [`flows`]
//! clears away what removed endpoints leave behind, [`health`] answers load balancers. [`Proxy`] knows what is loaded
//! and applies differences. The table stays when the process ends: Services answer while Skiff is being updated.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

use crate::balancer;
use crate::index::{Index, Shared};
use crate::metrics::SYNCS;
use crate::model::Id;

pub mod elements;
pub mod flows;
pub mod frontends;
pub mod health;
pub mod netlink;
pub mod nft;
pub mod rules;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use frontends::Key;
use rules::{Chain, Change, Frame, Rules};

/// Events within this time after an update wait and go together. The first after a rest does not wait.
const WINDOW: Duration = Duration::from_millis(20);
/// How often it is checked that nobody has removed the table.
const CHECK: Duration = Duration::from_secs(60);
/// First and longest wait after a failed load.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Keeps the table in step with the index until `stop`. Never fails: what does not load is tried again. Tells `balancers`
/// which addresses the node named `node` answers for, once their Services are in the table.
pub async fn run(
    frame: Frame,
    node: &str,
    shared: Shared,
    balancers: channel::Sender<balancer::Wanted>,
    stop: CancellationToken,
) {
    let mut proxy = Proxy::new(frame);
    let mut health = health::Servers::default();
    let mut wait = BACKOFF.0;
    loop {
        let woken = tokio::select! {
            () = stop.cancelled() => return,
            () = shared.changed.notified() => true,
            () = tokio::time::sleep(CHECK) => false,
        };
        if !shared.index.read().ready() {
            continue;
        }
        if !woken && proxy.loaded && !nft::present(&proxy.frame.table).await {
            tracing::warn!(table = %proxy.frame.table, "somebody removed the table; loading it again");
            proxy.loaded = false;
        }
        let (seen, begun, full) = (SYNCS.seen(), Instant::now(), !proxy.loaded);
        let triggers = std::mem::take(&mut *shared.triggers.lock());
        let changes = proxy.take(&mut shared.index.write());
        health.update(&shared.index.read());
        match proxy.apply(&changes).await {
            Ok(()) => {
                SYNCS.loaded(seen, full, begun.elapsed(), &triggers);
                wait = BACKOFF.0;
                let addresses = Some(balancer::wanted(&shared.index.read(), node));
                balancers.send_if_modified(|old| std::mem::replace(old, addresses) != *old);
            }
            Err(error) => {
                SYNCS.failed();
                triggers.into_iter().for_each(|t| shared.triggered(t));
                tracing::error!(%error, ?wait, "services not loaded; trying again");
                shared.changed.notify_one();
                if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                    return;
                }
                wait = (wait * 2).min(BACKOFF.1);
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(WINDOW)).await.is_none() {
            return;
        }
    }
}

/// What one Service contributes.
#[derive(Debug, Default)]
struct Held {
    keys: BTreeSet<Key>,
    hairpins: BTreeSet<Ipv4Addr>,
}

/// The table as it should be, and whether the kernel has it.
#[derive(Debug)]
pub struct Proxy {
    frame: Frame,
    rules: Rules,
    held: BTreeMap<Id, Held>,
    owners: BTreeMap<Key, Id>,
    /// Services that want a frontend another Service has.
    contended: BTreeSet<Id>,
    chains: BTreeSet<Chain>,
    loaded: bool,
}

impl Proxy {
    /// A proxy that has loaded nothing yet.
    pub fn new(frame: Frame) -> Self {
        let rules = Rules { ranges: [frame.services.trunc()].into(), ..Rules::default() };
        Self {
            frame,
            rules,
            held: BTreeMap::new(),
            owners: BTreeMap::new(),
            contended: BTreeSet::new(),
            chains: BTreeSet::new(),
            loaded: false,
        }
    }

    /// The state the table should have.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Works the changes of the index in, and says what they change in the table.
    pub fn take(&mut self, index: &mut Index) -> Vec<Change> {
        let mut changes = Vec::new();
        for id in index.take_dirty() {
            self.work_in(index, &id, &mut changes);
        }
        // Something may have become free for those who waited for it.
        if changes.iter().any(|c| matches!(c, Change::Frontend(_, _, None))) {
            for id in std::mem::take(&mut self.contended) {
                self.work_in(index, &id, &mut changes);
            }
        }
        self.work_in_ranges(index, &mut changes);
        changes
    }

    /// Loads what [`Self::take`] gave, or everything when the kernel's state is not known.
    ///
    /// After an error the kernel has the old state, and the next call loads everything.
    pub async fn apply(&mut self, changes: &[Change]) -> nft::Result<()> {
        if self.loaded && changes.is_empty() {
            return Ok(());
        }
        let loaded = std::mem::replace(&mut self.loaded, false);
        if loaded {
            let (chains, difference) = rules::update(&self.frame, changes.iter().cloned(), &mut self.chains);
            if netlink::fits(&difference) {
                if !chains.is_empty() {
                    nft::load(&chains).await?;
                }
                let table = self.frame.table.clone();
                let call = tokio::task::spawn_blocking(move || netlink::apply(&table, &difference));
                call.await.map_err(std::io::Error::other).flatten().map_err(nft::Error::Refused)?;
            } else {
                nft::load(&(chains + &rules::script(&self.frame, &difference))).await?;
            }
        } else {
            let (script, chains) = rules::replace(&self.frame, &self.rules);
            self.chains = chains;
            nft::load(&script).await?;
        }
        self.loaded = true;
        let stale = flows::stale(changes);
        flows::forget(&stale.flows).await;
        if stale.clients
            && let Err(error) = flows::forget_clients(&self.frame.table, &self.rules).await
        {
            tracing::warn!(%error, "clients may still stick to removed endpoints");
        }
        Ok(())
    }

    fn work_in_ranges(&mut self, index: &Index, changes: &mut Vec<Change>) {
        let all: Vec<Ipv4Net> = std::iter::once(self.frame.services.trunc()).chain(index.ranges()).collect();
        // Overlapping ranges of one set would be an error to nft.
        let wanted: BTreeSet<Ipv4Net> = Ipv4Net::aggregate(&all).into_iter().collect();
        changes.extend(self.rules.ranges.difference(&wanted).map(|range| Change::Range(*range, false)));
        changes.extend(wanted.difference(&self.rules.ranges).map(|range| Change::Range(*range, true)));
        self.rules.ranges = wanted;
    }

    fn work_in(&mut self, index: &Index, id: &Id, changes: &mut Vec<Change>) {
        let entry = index.get(&id.namespace, &id.name);
        let mut wanted = BTreeMap::new();
        let mut hairpins = BTreeSet::new();
        self.contended.remove(id);
        if let Some(entry) = entry {
            for (key, frontend) in frontends::frontends(entry, self.frame.resolver) {
                match self.owners.get(&key) {
                    Some(owner) if owner != id => {
                        tracing::warn!(service = ?id, ?owner, ?key, "another service has this address and port");
                        self.contended.insert(id.clone());
                    }
                    _ => drop(wanted.insert(key, frontend)),
                }
            }
            if !wanted.is_empty() {
                hairpins.extend(frontends::hairpins(entry, self.frame.pods));
            }
        }
        let held = self.held.remove(id).unwrap_or_default();
        for key in held.keys.iter().filter(|key| !wanted.contains_key(key)) {
            self.owners.remove(key);
            if let Some(old) = self.rules.frontends.remove(key) {
                changes.push(Change::Frontend(*key, Some(old), None));
            }
        }
        let keys = wanted.keys().copied().collect();
        for (key, frontend) in wanted {
            self.owners.insert(key, id.clone());
            let old = self.rules.frontends.insert(key, frontend.clone());
            if old.as_ref() != Some(&frontend) {
                changes.push(Change::Frontend(key, old, Some(frontend)));
            }
        }
        for ip in hairpins.difference(&held.hairpins) {
            let count = self.rules.hairpins.entry(*ip).or_default();
            *count += 1;
            if *count == 1 {
                changes.push(Change::Hairpin(*ip, true));
            }
        }
        for ip in held.hairpins.difference(&hairpins) {
            if let Some(count) = self.rules.hairpins.get_mut(ip) {
                *count -= 1;
                if *count == 0 {
                    self.rules.hairpins.remove(ip);
                    changes.push(Change::Hairpin(*ip, false));
                }
            }
        }
        if entry.is_some() {
            self.held.insert(id.clone(), Held { keys, hairpins });
        }
    }
}
