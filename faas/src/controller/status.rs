//! What a function's status says, from what was seen of it.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use skiff_controllers::runtime::events::Level;

use super::names;
use super::revisions::now;
use crate::api::{FUNCTION, Function, FunctionStatus, OnNode};

/// Longest message of a condition.
const MESSAGE: usize = 4096;

/// Something that is not as the function says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) reason: String,
    pub(super) message: String,
}

/// What one look at a function found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Why its code cannot be a revision.
    pub(super) source: Option<Fault>,
    /// Why its newest revision does not start.
    pub(super) failure: Option<Fault>,
    /// What is wrong with the shares.
    pub(super) traffic: Option<Fault>,
    /// What is wrong with its Service.
    pub(super) service: Option<Fault>,
    pub(super) no_room: Option<String>,
    pub(super) latest: Option<String>,
    pub(super) serving: Option<String>,
    /// Where the instances of that are.
    pub(super) place: Option<String>,
    pub(super) instances: u32,
    pub(super) starting: u32,
    /// Of each revision that has a fleet.
    pub(super) per_revision: Vec<(String, BTreeMap<String, u32>)>,
}

/// Instances by node, as a status has them.
pub(super) fn on_nodes<'a>(all: impl IntoIterator<Item = &'a BTreeMap<String, u32>>) -> Vec<OnNode> {
    let mut sums: BTreeMap<&str, u32> = BTreeMap::new();
    for (name, instances) in all.into_iter().flatten() {
        *sums.entry(name).or_default() += instances;
    }
    let count = |n| i32::try_from(n).unwrap_or(i32::MAX);
    sums.into_iter().map(|(name, n)| OnNode { name: name.to_owned(), instances: count(n) }).collect()
}

/// Sets a condition; its time stays when its status does.
pub(super) fn condition(
    all: &mut Vec<Condition>,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
    generation: Option<i64>,
) {
    let mut message = message.to_owned();
    if message.len() > MESSAGE {
        // The last lines say most.
        let cut = message.len() - MESSAGE;
        let cut = (cut..message.len()).find(|i| message.is_char_boundary(*i)).unwrap_or(message.len());
        message.drain(..cut);
    }
    let before = all.iter().position(|c| c.type_ == kind);
    let since = before.map(|i| &all[i]).filter(|c| c.status == status).map(|c| c.last_transition_time.clone());
    let new = Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: since.unwrap_or_else(now),
    };
    match before {
        Some(i) => all[i] = new,
        None => all.push(new),
    }
}

impl Seen {
    /// The state in one word.
    fn state(&self) -> &'static str {
        match (self.instances, self.starting) {
            (1.., _) => "Running",
            (0, 1..) => "Waking",
            (0, 0) if self.source.is_some() || self.failure.is_some() => "Failed",
            (0, 0) if self.serving.is_some() => "Hibernated",
            (0, 0) => "Building",
        }
    }

    /// The status that follows; what is not known here stays as it is.
    pub(super) fn status(&self, function: &Function, before: &FunctionStatus, domain: &str) -> FunctionStatus {
        let (namespace, name) = names(function);
        let generation = function.metadata.generation;
        let mut conditions = before.conditions.clone();
        // A revision that does not start is no trouble for callers while an older one serves.
        let old_serves = self.serving.is_some() && self.serving != self.latest;
        let (status, reason, message) = if let Some(fault) = &self.source {
            (if self.serving.is_some() { "True" } else { "False" }, fault.reason.as_str(), fault.message.clone())
        } else if let Some(fault) = self.failure.as_ref().filter(|_| !old_serves) {
            ("False", fault.reason.as_str(), fault.message.clone())
        } else if let Some(fault) = &self.traffic {
            ("False", fault.reason.as_str(), fault.message.clone())
        } else if let (Some(why), 0) = (&self.no_room, self.instances) {
            ("False", "NoRoom", why.clone())
        } else if let Some(serving) = &self.serving {
            let place = self.place.as_deref().map(|p| format!(" {p}")).unwrap_or_default();
            ("True", "Serving", format!("{serving} answers{place}"))
        } else {
            ("Unknown", "Preparing", "its first revision is not ready yet".to_owned())
        };
        condition(&mut conditions, "Ready", status, reason, &message, generation);
        let (status, reason, message) = match self.source.as_ref().or(self.failure.as_ref()) {
            Some(fault) => ("False", fault.reason.as_str(), fault.message.as_str()),
            None if self.latest == self.serving => ("True", "UpToDate", "the newest revision answers"),
            None => ("Unknown", "Starting", "the newest revision is being started"),
        };
        condition(&mut conditions, "LatestRevisionReady", status, reason, message, generation);
        let (status, reason, message) = match &self.service {
            Some(fault) => ("False", fault.reason.as_str(), fault.message.as_str()),
            None => ("True", "ServiceReady", "its Service leads to the gateway"),
        };
        condition(&mut conditions, "ServiceReady", status, reason, message, generation);
        FunctionStatus {
            observed_generation: generation,
            conditions,
            url: Some(format!("http://{name}.{namespace}.svc.{domain}")),
            instances: i32::try_from(self.instances).unwrap_or(i32::MAX),
            nodes: on_nodes(self.per_revision.iter().map(|(_, nodes)| nodes)),
            state: Some(self.state().to_owned()),
            latest_revision: self.latest.clone(),
            latest_ready_revision: self.serving.clone(),
            selector: Some(format!("{FUNCTION}={name}")),
            ..before.clone()
        }
    }

    /// What is worth an event.
    pub(super) fn news(
        &self,
        before: &FunctionStatus,
        after: &FunctionStatus,
    ) -> Option<(Level, &'static str, String)> {
        if let Some(fault) = self.source.as_ref().or(self.traffic.as_ref()).or(self.service.as_ref()) {
            return Some((Level::Warning, "Invalid", fault.message.clone()));
        }
        if before.state == after.state {
            return None;
        }
        match after.state.as_deref() {
            Some("Hibernated") if before.instances > 0 => {
                Some((Level::Normal, "Hibernated", "no requests: scaled to zero".to_owned()))
            }
            Some("Running") if before.instances == 0 => {
                Some((Level::Normal, "Woken", format!("{} instance(s) can answer", after.instances)))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(s: &FunctionStatus) -> (&str, &str) {
        let c = s.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
        (c.status.as_str(), c.reason.as_str())
    }

    #[test]
    fn words_for_what_was_seen() {
        let fault = || Some(Fault { reason: "StartFailed".into(), message: "SyntaxError".into() });
        let named = |n: &str| Some(n.to_owned());
        let cases = [
            (Seen::default(), "Building", ("Unknown", "Preparing")),
            (
                Seen { latest: named("a-1"), serving: named("a-1"), ..Seen::default() },
                "Hibernated",
                ("True", "Serving"),
            ),
            (Seen { serving: named("a-1"), starting: 1, ..Seen::default() }, "Waking", ("True", "Serving")),
            (Seen { serving: named("a-1"), instances: 2, ..Seen::default() }, "Running", ("True", "Serving")),
            (
                Seen { latest: named("a-1"), serving: named("a-1"), failure: fault(), ..Seen::default() },
                "Failed",
                ("False", "StartFailed"),
            ),
            (
                Seen { latest: named("a-2"), serving: named("a-1"), failure: fault(), instances: 1, ..Seen::default() },
                "Running",
                ("True", "Serving"),
            ),
            (Seen { source: fault(), ..Seen::default() }, "Failed", ("False", "StartFailed")),
        ];
        for (seen, state, want) in cases {
            let status = seen.status(&Function::default(), &FunctionStatus::default(), "cluster.local");
            assert_eq!((status.state.as_deref(), ready(&status)), (Some(state), want), "{seen:?}");
            let again = seen.status(&Function::default(), &status, "cluster.local");
            assert_eq!(again, status, "nothing new");
        }
    }

    #[test]
    fn nodes_are_summed_over_revisions() {
        let of = |all: &[(&str, u32)]| all.iter().map(|(n, i)| ((*n).to_owned(), *i)).collect::<BTreeMap<_, _>>();
        let sums = on_nodes(&[of(&[("n2", 1), ("n1", 2)]), of(&[]), of(&[("n2", 3)])]);
        let sums: Vec<_> = sums.iter().map(|n| (n.name.as_str(), n.instances)).collect();
        assert_eq!(sums, [("n1", 2), ("n2", 4)]);
    }

    #[test]
    fn long_messages_keep_their_end() {
        let mut all = vec![];
        condition(&mut all, "Ready", "False", "R", &("é".repeat(MESSAGE) + "end"), None);
        assert!(all[0].message.len() <= MESSAGE && all[0].message.ends_with("end"));
    }
}
