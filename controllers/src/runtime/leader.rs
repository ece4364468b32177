//! Leader election by Lease: of several processes one works.
//!
//! A holder renews every 2 s and gives up when 10 s passed without success; others take over when the Lease did not
//! change for 15 s by their own clock, so clocks need not agree. Every write carries the resourceVersion it read.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::worker::found;

/// How long others wait for a silent holder.
const DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew for this long stops.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two tries.
const PERIOD: Duration = Duration::from_secs(2);

/// Whether a Lease is ours, free, or another's.
#[derive(Debug, PartialEq, Eq)]
enum Claim {
    Take { transition: bool },
    Renew,
    Wait,
}

fn judge(spec: &LeaseSpec, me: &str, unchanged: Duration) -> Claim {
    match spec.holder_identity.as_deref() {
        Some(h) if h == me => Claim::Renew,
        None | Some("") => Claim::Take { transition: true },
        Some(_) if unchanged > DURATION => Claim::Take { transition: true },
        Some(_) => Claim::Wait,
    }
}

/// A candidate for the Lease `name` in `kube-system`.
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    me: String,
    observed: Option<(Option<String>, Instant)>,
}

impl Candidate {
    /// A candidate with an identity of its own.
    #[must_use]
    pub fn new(client: Client, name: &str) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let me = format!("{}_{}", host.trim(), uuid::Uuid::new_v4());
        Self { api: Api::namespaced(client, "kube-system"), name: name.to_owned(), me, observed: None }
    }

    /// Waits until this candidate leads. False when `stop` came first.
    pub async fn lead(&mut self, stop: &CancellationToken) -> bool {
        loop {
            if matches!(tokio::time::timeout(DEADLINE, self.step()).await, Ok(Ok(true))) {
                tracing::info!(lease = self.name, identity = self.me, "leading");
                return true;
            }
            tokio::select! {
                () = stop.cancelled() => return false,
                () = tokio::time::sleep(PERIOD) => {}
            }
        }
    }

    /// Renews until leadership is lost or `stop`; on `stop` the Lease is given back.
    pub async fn hold(&mut self, stop: &CancellationToken) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < DEADLINE {
            tokio::select! {
                () = stop.cancelled() => {
                    let _ = tokio::time::timeout(PERIOD, self.release()).await;
                    return;
                }
                () = tokio::time::sleep(PERIOD) => {}
            }
            let left = DEADLINE.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, self.step()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => break,
                Ok(Err(e)) => tracing::debug!(error = &e as &dyn std::error::Error, "lease not renewed"),
                Err(_) => break,
            }
        }
        tracing::warn!(lease = self.name, "leadership lost");
    }

    /// One try to take or renew; whether this candidate holds the Lease now.
    async fn step(&mut self) -> Result<bool, kube::Error> {
        let now = MicroTime(k8s_openapi::jiff::Timestamp::now());
        let Some(mut lease) = found(self.api.get(&self.name).await)? else {
            let mut lease = Lease { spec: Some(self.spec(&now, None, 0)), ..Lease::default() };
            lease.metadata.name = Some(self.name.clone());
            return match self.api.create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(true),
                Err(e) if super::worker::code(&e) == 409 => Ok(false),
                Err(e) => Err(e),
            };
        };
        let version = lease.metadata.resource_version.clone();
        let since = match &self.observed {
            Some((v, at)) if *v == version => *at,
            _ => Instant::now(),
        };
        self.observed = Some((version, since));
        let old = lease.spec.clone().unwrap_or_default();
        let spec = match judge(&old, &self.me, since.elapsed()) {
            Claim::Wait => return Ok(false),
            Claim::Renew => self.spec(&now, old.acquire_time, old.lease_transitions.unwrap_or(0)),
            Claim::Take { transition } => {
                self.spec(&now, None, old.lease_transitions.unwrap_or(0) + i32::from(transition))
            }
        };
        lease.spec = Some(spec);
        match self.api.replace(&self.name, &PostParams::default(), &lease).await {
            Ok(_) => Ok(true),
            Err(e) if super::worker::code(&e) == 409 => Ok(false),
            Err(e) => Err(e),
        }
    }

    async fn release(&self) -> Result<(), kube::Error> {
        let mut lease = self.api.get(&self.name).await?;
        if let Some(spec) = lease.spec.as_mut().filter(|s| s.holder_identity.as_deref() == Some(&self.me)) {
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
            self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }

    fn spec(&self, now: &MicroTime, acquired: Option<MicroTime>, transitions: i32) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now.clone()),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}

/// Runs `work` while this process holds the Lease, again each time it gets it, until `stop`. What is lost is ended first:
/// `work` hears of it by its token, and must be over before the Lease is asked for again.
///
/// # Errors
/// Those of `work`, and when it does not end in time.
pub async fn while_leading<F>(
    client: Client,
    lease: &str,
    stop: &CancellationToken,
    work: impl Fn(CancellationToken) -> F,
) -> anyhow::Result<()>
where
    F: Future<Output = anyhow::Result<()>>,
{
    let mut candidate = Candidate::new(client, lease);
    crate::metrics::lead(lease, false);
    while candidate.lead(stop).await {
        crate::metrics::lead(lease, true);
        let inner = stop.child_token();
        let work = work(inner.clone());
        tokio::pin!(work);
        tokio::select! {
            ended = &mut work => {
                if stop.is_cancelled() {
                    // Others need not wait until it runs out.
                    let _ = tokio::time::timeout(PERIOD, candidate.release()).await;
                }
                return ended;
            }
            () = candidate.hold(stop) => {}
        }
        crate::metrics::lead(lease, false);
        inner.cancel();
        match tokio::time::timeout(DEADLINE, work).await {
            Ok(ended) => ended?,
            Err(_) => anyhow::bail!("leadership of {lease} was lost, and its work does not end"),
        }
        if stop.is_cancelled() {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims() {
        let spec =
            |holder: Option<&str>| LeaseSpec { holder_identity: holder.map(str::to_owned), ..LeaseSpec::default() };
        for (holder, silent, want) in [
            (Some("me"), 100, Claim::Renew),
            (Some("you"), 15, Claim::Wait),
            (Some("you"), 16, Claim::Take { transition: true }),
            (Some(""), 0, Claim::Take { transition: true }),
            (None, 0, Claim::Take { transition: true }),
        ] {
            assert_eq!(judge(&spec(holder), "me", Duration::from_secs(silent)), want, "{holder:?} {silent}");
        }
    }
}
