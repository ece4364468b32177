//! Several engines share the runs.
//!
//! Each has a Lease of its own ([`MEMBER`]), which it renews; all see all of them. A run belongs to one of those that are there
//! ([`view`]), so there is nothing to be claimed run by run, and an engine that comes or goes moves its share only.
//!
//! **Handing over.** Each Lease says by which set its engine goes. An engine that sees another set first lets go what is not
//! its own any more, and then says that it goes by it; it begins what is new only when all others of the set say the same. So
//! a run is never begun while another still has it, but where that one is not heard of any more.
//!
//! **Death.** Whoever did not change its Lease for [`Pace::dead`], by the others' clocks, is gone. Who could not renew for
//! [`Pace::deadline`] has nothing any more, breaks everything off, and comes back under another name. Whatever an engine that does not
//! know it is dead still wants to store is refused as ever: pages and logs are replaced under the version that was read.
//!
//! **What stays.** A run on which this engine works (a function is called, a distributed Map goes on, everything is in memory as of
//! express runs) stays with it until that is over, so nothing is done twice because an engine came. Its object says so
//! ([`PIN`]); that holds as long as the engine is there.

mod view;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt as _};
use serde_json::json;
use skiff_controllers::runtime::worker::not_found;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, MissedTickBehavior, timeout};

use super::hear::Note;
use super::{Engine, Key};
use crate::api::WorkflowRun;
use crate::journal::JournalError;
use crate::journal::log::Line;

use view::Set;
pub(crate) use view::View;

/// Label of the Leases of engines.
pub const MEMBER: &str = "states.skiff.dev/engine";
/// Annotation of such a Lease: the set of engines that this one goes by.
const SET: &str = "states.skiff.dev/engines";
/// Annotation of a run: the engine that works on it, although the run would be another's by now.
pub(crate) const PIN: &str = "states.skiff.dev/engine";
/// Namespace of the Leases.
const NAMESPACE: &str = "kube-system";
/// Who fills their fields.
const MANAGER: &str = "skiff-workflows";
/// Time in which actors let go of their runs.
const LET_GO: Duration = Duration::from_secs(3);
/// A Lease of one that is gone is deleted after so many times its patience.
const FORGOTTEN: u32 = 6;

/// Who shares the runs of the cluster.
#[derive(Clone, Copy, Debug)]
pub enum Members {
    /// This engine only: there is no other, nor ever one beside it.
    Alone,
    /// All that say so in a Lease.
    Several(Pace),
}

/// How soon engines hear of each other.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time between two renewals.
    pub renew: Duration,
    /// An engine that could not renew for this long has nothing any more. Shorter than `dead`.
    pub deadline: Duration,
    /// An engine of which others saw nothing for this long is gone.
    pub dead: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { renew: Duration::from_secs(2), deadline: Duration::from_secs(7), dead: Duration::from_secs(10) }
    }
}

/// What an engine knows of others, and who waits for that.
pub(super) struct Share {
    view: parking_lot::Mutex<Option<Arc<View>>>,
    /// How often all agreed.
    settled: watch::Sender<u64>,
}

impl Share {
    pub(super) fn new(members: Members) -> Self {
        let view = match members {
            Members::Alone => None,
            Members::Several(_) => Some(Arc::new(View::nothing(name()))),
        };
        Self { view: parking_lot::Mutex::new(view), settled: watch::Sender::new(0) }
    }

    /// What is known now; none where there are no others.
    pub(super) fn view(&self) -> Option<Arc<View>> {
        self.view.lock().clone()
    }

    /// Hears whenever all agree.
    pub(super) fn agreed(&self) -> watch::Receiver<u64> {
        self.settled.subscribe()
    }
}

/// A name that no engine had before.
fn name() -> Arc<str> {
    let id = uuid::Uuid::new_v4().simple().to_string();
    id.get(..12).unwrap_or(&id).into()
}

fn lease_of(member: &str) -> String {
    format!("{MANAGER}-{member}")
}

/// The Lease of another.
struct Other {
    version: Option<String>,
    /// When it was seen to change.
    since: Instant,
    goes_by: String,
}

/// The Leases of all.
#[derive(Default)]
struct Others {
    all: HashMap<String, Other>,
    /// Whether a list was whole.
    listed: bool,
}

impl Others {
    fn seen(&mut self, lease: &Lease) {
        let Some(member) = lease.labels().get(MEMBER).cloned() else { return };
        let version = lease.metadata.resource_version.clone();
        let goes_by = lease.annotations().get(SET).cloned().unwrap_or_default();
        match self.all.get_mut(&member) {
            Some(other) if other.version == version => {}
            Some(other) => *other = Other { version, since: Instant::now(), goes_by },
            None => drop(self.all.insert(member, Other { version, since: Instant::now(), goes_by })),
        }
    }

    fn live(&self, dead: Duration) -> impl Iterator<Item = (&String, &Other)> {
        self.all.iter().filter(move |(_, o)| o.since.elapsed() < dead)
    }

    /// All that are there, with this one.
    fn set(&self, me: &Arc<str>, dead: Duration) -> Set {
        let others = self.live(dead).map(|(name, _)| Arc::from(name.as_str())).filter(|n: &Arc<str>| n != me);
        let mut all: Vec<Arc<str>> = others.chain([Arc::clone(me)]).collect();
        all.sort();
        all.into()
    }

    /// Whether all others go by a set.
    fn agree(&self, me: &str, digest: &str, dead: Duration) -> bool {
        self.live(dead).all(|(name, o)| name == me || o.goes_by == digest)
    }
}

impl Engine {
    /// Whether a run is this engine's to drive; `pin` is what its object says.
    pub(super) fn drives(&self, key: &Key, pin: Option<&str>) -> bool {
        let Some(view) = self.share.view() else { return true };
        match pin.filter(|p| view.is_live(p)) {
            Some(pin) => *pin == **view.me(),
            None => view.mine(&key.0, &key.1),
        }
    }

    /// A run's object names this engine.
    pub(super) fn stays_with(&self, key: &Key, pin: Option<&str>) {
        if let Some(place) = self.state.lock().places.get_mut(key) {
            place.pin = pin.map(Box::from);
        }
    }

    /// Whether a run's object names this engine.
    pub(super) fn is_me(&self, pin: Option<&str>) -> bool {
        self.share.view().is_some_and(|v| pin == Some(&**v.me()))
    }

    /// Whether what is to be done once for a workflow is this engine's to do.
    pub(super) fn minds(&self, namespace: &str, workflow: &str) -> bool {
        self.share.view().is_none_or(|v| v.is_settled() && v.mine(namespace, workflow))
    }

    /// Takes part in the sharing until it is dropped.
    pub(super) async fn take_part(&self, pace: Pace) {
        let leases = Api::<Lease>::namespaced(self.client.clone(), NAMESPACE);
        let mut events = skiff_client::watch(leases.clone(), watcher::Config::default().labels(MEMBER));
        let mut others = Others::default();
        let mut fresh: Option<Others> = None;
        let mut renewed: Option<Instant> = None;
        let mut ticks = tokio::time::interval(pace.renew);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut renew = false;
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Event::Init)) => fresh = Some(Others::default()),
                    Some(Ok(Event::InitApply(lease))) => {
                        others.seen(&lease);
                        fresh.get_or_insert_default().seen(&lease);
                    }
                    Some(Ok(Event::InitDone)) => {
                        let listed = fresh.take().unwrap_or_default();
                        others.all.retain(|name, _| listed.all.contains_key(name));
                        others.listed = true;
                    }
                    Some(Ok(Event::Apply(lease))) => others.seen(&lease),
                    Some(Ok(Event::Delete(lease))) => {
                        others.all.retain(|name, _| lease.labels().get(MEMBER) != Some(name));
                    }
                    Some(Err(e)) => tracing::debug!(error = &e as &dyn std::error::Error, "the watch of engines begins anew"),
                    None => return,
                },
                _ = ticks.tick() => renew = true,
            }
            let Some(mut view) = self.share.view() else { return };
            if renewed.is_some_and(|at| at.elapsed() >= pace.deadline) {
                tracing::warn!(engine = %view.me(), "the share of runs is lost: its Lease could not be renewed");
                renewed = None;
                view = self.lose_share();
            }
            let set = others.set(view.me(), pace.dead);
            // Whoever made its Lease before this one made its own is seen by then: the later one waits for the earlier.
            let sees = others.listed && renewed.is_some() && others.all.contains_key(&**view.me());
            if sees && *set != *view.current() {
                tracing::info!(engine = %view.me(), engines = set.len(), "the runs are shared anew");
                view = self.look_at(view.narrowed(set));
                self.let_go(&view).await;
                renew = true;
            }
            if renew {
                let goes_by = view::digest(view.current());
                match timeout(pace.deadline / 2, self.renew(&leases, view.me(), &goes_by, pace)).await {
                    Ok(Ok(())) => renewed = Some(Instant::now()),
                    Ok(Err(e)) => tracing::debug!(error = &e as &dyn std::error::Error, "a Lease is not renewed"),
                    Err(_) => tracing::debug!("a Lease is not renewed in time"),
                }
                self.forget_engines(&leases, &others, &view, pace).await;
            }
            let agreed = sees
                && *others.set(view.me(), pace.dead) == *view.current()
                && others.agree(view.me(), &view::digest(view.current()), pace.dead);
            if agreed && !view.is_settled() {
                let view = self.look_at(view.settled());
                tracing::info!(engine = %view.me(), engines = view.current().len(), "all engines agree who has which runs");
                self.take_over();
                self.share.settled.send_modify(|n| *n += 1);
            }
        }
    }

    /// Says that this engine shares no more; the others need not wait.
    pub(super) async fn depart(&self) {
        let Some(view) = self.share.view() else { return };
        let leases = Api::<Lease>::namespaced(self.client.clone(), NAMESPACE);
        let _ = timeout(LET_GO, leases.delete(&lease_of(view.me()), &DeleteParams::default())).await;
    }

    fn look_at(&self, view: View) -> Arc<View> {
        let view = Arc::new(view);
        *self.share.view.lock() = Some(Arc::clone(&view));
        view
    }

    async fn renew(&self, leases: &Api<Lease>, me: &str, goes_by: &str, pace: Pace) -> Result<(), kube::Error> {
        let now = MicroTime(Timestamp::now());
        let seconds = i32::try_from(pace.dead.as_secs()).ok();
        let patch = json!({"metadata": {"annotations": {SET: goes_by}}, "spec": {"renewTime": now}});
        let patched = leases.patch(&lease_of(me), &PatchParams::default(), &Patch::Merge(&patch)).await;
        match patched {
            Err(e) if not_found(&e) => {}
            patched => return patched.map(drop),
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let mut lease = Lease {
            spec: Some(LeaseSpec {
                holder_identity: Some(format!("{}_{me}", host.trim())),
                lease_duration_seconds: seconds,
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                ..LeaseSpec::default()
            }),
            ..Lease::default()
        };
        lease.metadata.name = Some(lease_of(me));
        lease.labels_mut().insert(MEMBER.to_owned(), me.to_owned());
        lease.annotations_mut().insert(SET.to_owned(), goes_by.to_owned());
        leases.create(&PostParams::default(), &lease).await.map(drop)
    }

    /// Deletes the Leases of those that are gone for long.
    async fn forget_engines(&self, leases: &Api<Lease>, others: &Others, view: &View, pace: Pace) {
        if !view.is_first() {
            return;
        }
        for (member, _) in others.all.iter().filter(|(_, o)| o.since.elapsed() > pace.dead * FORGOTTEN) {
            let _ = timeout(pace.renew, leases.delete(&lease_of(member), &DeleteParams::default())).await;
        }
    }

    /// Breaks off all that this engine does, for it may be another's already. It comes back under another name.
    fn lose_share(&self) -> Arc<View> {
        let mut state = self.state.lock();
        let super::State { places, timers, .. } = &mut *state;
        timers.clear();
        for place in places.values_mut() {
            (place.taken, place.wake, place.known) = (false, None, None);
            if let Some(live) = place.live.take() {
                live.quit.cancel();
            }
        }
        drop(state);
        let view = self.look_at(View::nothing(name()));
        self.logs.rename(&log_name(view.me()));
        view
    }

    /// Lets go what is not this engine's any more, and waits for that, not for long.
    async fn let_go(&self, view: &View) {
        let mut waits = vec![];
        {
            let mut state = self.state.lock();
            let super::State { places, timers, .. } = &mut *state;
            for (key, place) in places.iter_mut().filter(|(_, p)| p.taken) {
                let pinned = place.pin.as_deref().is_some_and(|p| *p == **view.me());
                if pinned || view.mine(&key.0, &key.1) {
                    continue;
                }
                match &place.live {
                    Some(live) => {
                        let (reply, left) = oneshot::channel();
                        if live.sender.send(Box::new(Note::Leave(reply))).is_ok() {
                            waits.push((key.clone(), left));
                        }
                    }
                    None => {
                        (place.taken, place.known) = (false, None);
                        if let Some(at) = place.wake.take() {
                            timers.remove(&(at, key.clone()));
                        }
                    }
                }
            }
        }
        let until = Instant::now() + LET_GO;
        let mut late = vec![];
        for (key, left) in waits {
            if !matches!(tokio::time::timeout_at(until, left).await, Ok(Ok(()))) {
                late.push(key);
            }
        }
        self.break_off(late).await;
    }

    /// Breaks off actors that did not let go in time.
    async fn break_off(&self, late: Vec<Key>) {
        let mut namespaces = std::collections::BTreeSet::new();
        {
            let mut state = self.state.lock();
            for key in late {
                let Some(place) = state.places.get_mut(&key) else { continue };
                // One that ended while it was asked has nothing any more.
                if let Some(live) = place.live.take() {
                    tracing::warn!(namespace = key.0, run = key.1, "a run is broken off: it was not let go in time");
                    live.quit.cancel();
                    namespaces.insert(key.0);
                }
                (place.taken, place.known) = (false, None);
            }
        }
        for namespace in namespaces {
            // What they still have on the way to the log is refused from here on.
            self.logs.of(&namespace).renew().await;
        }
    }

    /// Begins with what is this engine's now.
    fn take_over(&self) {
        let mut keys: Vec<Key> = {
            let state = self.state.lock();
            let mine = state.places.iter().filter(|(key, p)| !p.taken && self.drives(key, p.pin.as_deref()));
            mine.map(|(key, _)| key.clone()).collect()
        };
        keys.sort_unstable();
        self.take_up(keys);
    }

    /// Writes on a run's object that this engine works on it, or that it does not any more.
    pub(super) async fn pin(&self, key: &Key, uid: &str, pinned: bool) -> Result<(), kube::Error> {
        let Some(view) = self.share.view() else { return Ok(()) };
        let runs = Api::<WorkflowRun>::namespaced(self.client.clone(), &key.0);
        let engine = pinned.then(|| view.me().to_string());
        let patch = json!({"metadata": {"uid": uid, "annotations": {PIN: engine}}});
        match runs.patch(&key.1, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => Ok(()),
            Err(e) if not_found(&e) || skiff_controllers::runtime::worker::code(&e) == 409 => Ok(()),
            Err(e) => Err(e),
        }
    }
}

impl Engine {
    /// The steps of a run that a log has behind its pages, and whether the pages are to be read again.
    pub(super) async fn steps_in_log(
        &self,
        namespace: &str,
        name: &str,
        held: i64,
        uid: &str,
    ) -> Result<(bool, Vec<Line>), JournalError> {
        let log = self.logs.of(namespace);
        if **log.name() == *name {
            let anew = log.hold(held).await?;
            let lines = log.of(uid, held).await.ok_or(JournalError::Fenced)?;
            return Ok((anew, lines));
        }
        let view = self.share.view();
        let live = view.as_ref().is_some_and(|v| member_of(name).is_some_and(|m| v.is_live(m)));
        self.logs.of_other((namespace, name), uid, held, live, view.map(|v| v.since())).await
    }

    /// Deletes logs of engines that are gone, when everything of them is on pages, until it is dropped.
    pub(super) async fn clear_logs(&self, pace: Pace) {
        let mut agreed = self.share.agreed();
        loop {
            if agreed.changed().await.is_err() {
                return;
            }
            // Others come to what they took over in the meantime.
            tokio::time::sleep(pace.dead).await;
            while let Some(view) = self.share.view().filter(|v| v.is_first()) {
                let gone = |name: &str| member_of(name).is_some_and(|m| !view.is_live(m));
                match self.logs.clear(gone).await {
                    Ok(false) => break,
                    Ok(true) => {}
                    Err(e) => {
                        tracing::debug!(error = &e as &dyn std::error::Error, "logs of engines that are gone stay")
                    }
                }
                if tokio::time::timeout(pace.dead * FORGOTTEN, agreed.changed()).await.is_ok() {
                    agreed.mark_changed();
                    break;
                }
            }
        }
    }
}

/// The name of the logs of an engine that shares the runs.
pub(super) fn log_name(member: &str) -> String {
    format!("log-{member}")
}

/// The engine whose log this is, where it shares the runs.
pub(crate) fn member_of(log: &str) -> Option<&str> {
    log.strip_prefix("log-").and_then(|rest| rest.split('-').next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_silent_is_gone_and_who_says_another_set_does_not_agree() {
        let dead = Duration::from_secs(10);
        let mut others = Others::default();
        let now = Instant::now();
        for (name, silent, goes_by) in [("b", 0, "x"), ("c", 9, "x"), ("d", 11, "y")] {
            let since = now.checked_sub(Duration::from_secs(silent)).unwrap();
            others.all.insert(name.to_owned(), Other { version: None, since, goes_by: goes_by.to_owned() });
        }
        let set = others.set(&"a".into(), dead);
        assert_eq!(set.iter().map(|n| &**n).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert!(others.agree("a", "x", dead));
        others.all.get_mut("b").unwrap().goes_by = "y".to_owned();
        assert!(!others.agree("a", "x", dead) && others.agree("b", "x", dead));
    }

    #[test]
    fn a_log_says_whose_it_is() {
        assert_eq!(member_of(&log_name("0a1b")), Some("0a1b"));
        assert_eq!(member_of("log-0a1b-writer-3"), Some("0a1b"));
        assert_eq!(member_of("steps"), None);
    }
}
