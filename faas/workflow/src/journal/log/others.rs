//! Logs of other engines: read by whoever takes runs over from them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt as _};
use skiff_controllers::runtime::worker::{code, not_found};
use tokio::time::Instant;

use super::super::JournalError;
use super::{Line, Logs, lines};
use crate::api::{WorkflowHistory, WorkflowLog, WorkflowRun};
use crate::journal::load::last_page;

/// Tries of a write that others come before.
const TRIES: u32 = 16;
/// Logs that are remembered.
const KEPT: usize = 256;

/// Logs by namespace and name, as they were read last. Who reads one lets others wait for that.
pub(super) type Others = HashMap<(String, String), Arc<tokio::sync::Mutex<Option<Read>>>>;

/// A log as it was read.
pub(super) struct Read {
    at: Instant,
    taken: i64,
    /// By uid of the run.
    lines: HashMap<String, Vec<Line>>,
}

fn api(e: kube::Error) -> JournalError {
    JournalError::Api(Box::new(e))
}

impl Logs {
    /// The steps of a run in another engine's log, and whether that was read just now. `held`: the number on the run's page. Where
    /// that engine is gone it is refused from here on; where it is `live` it must have let the run go before `after`.
    ///
    /// # Errors
    /// When the API does not answer, or the log is damaged.
    pub(crate) async fn of_other(
        &self,
        (namespace, name): (&str, &str),
        uid: &str,
        held: i64,
        live: bool,
        after: Option<Instant>,
    ) -> Result<(bool, Vec<Line>), JournalError> {
        let slot = {
            let mut others = self.others.lock();
            if others.len() >= KEPT {
                others.retain(|_, slot| Arc::strong_count(slot) > 1);
            }
            Arc::clone(others.entry((namespace.to_owned(), name.to_owned())).or_default())
        };
        let mut slot = slot.lock().await;
        let known = |read: &Read| if live { after.is_some_and(|after| read.at >= after) } else { read.taken > held };
        if let Some(read) = slot.as_ref().filter(|r| known(r)) {
            return Ok((false, read.lines.get(uid).cloned().unwrap_or_default()));
        }
        let at = Instant::now();
        let (taken, all) = self.read_other(namespace, name, held, live).await?;
        let mut by_run: HashMap<String, Vec<Line>> = HashMap::new();
        for line in all {
            by_run.entry(line.uid.clone()).or_default().push(line);
        }
        let found = by_run.get(uid).cloned().unwrap_or_default();
        *slot = Some(Read { at, taken, lines: by_run });
        Ok((true, found))
    }

    async fn read_other(
        &self,
        namespace: &str,
        name: &str,
        held: i64,
        live: bool,
    ) -> Result<(i64, Vec<Line>), JournalError> {
        let logs = Api::<WorkflowLog>::namespaced(self.client.clone(), namespace);
        for _ in 0..TRIES {
            // Who cleared it found that everything was on pages.
            let Some(mut head) = logs.get_opt(name).await.map_err(api)? else { return Ok((i64::MAX, vec![])) };
            if !live && head.spec.taken <= held {
                head.spec.taken = held + 1;
                head.spec.writer = format!("{}/taken", uuid::Uuid::new_v4().simple());
                match logs.replace(name, &PostParams::default(), &head).await {
                    Ok(_) => {}
                    Err(e) if code(&e) == 409 || not_found(&e) => continue,
                    Err(e) => return Err(api(e)),
                }
            }
            let mut all = vec![];
            for full in &head.spec.full {
                // One that is not there was deleted when all of it was on pages.
                if let Some(full) = logs.get_opt(full).await.map_err(api)? {
                    all.append(&mut lines(&full.spec.steps)?);
                }
            }
            all.append(&mut lines(&head.spec.steps)?);
            return Ok((head.spec.taken, all));
        }
        Err(JournalError::Damaged { page: 0, why: "others change the log all the time".to_owned() })
    }

    /// Deletes what engines that are gone left, where all of it is on pages. Whether something stays.
    ///
    /// # Errors
    /// When the API does not answer.
    pub(crate) async fn clear(&self, is_gone: impl Fn(&str) -> bool) -> Result<bool, JournalError> {
        let all = Api::<WorkflowLog>::all(self.client.clone());
        let mut page = ListParams::default().limit(500);
        let mut heads: HashMap<(String, String), Vec<String>> = HashMap::new();
        loop {
            let found = all.list_metadata(&page).await.map_err(api)?;
            for log in found.items {
                let (namespace, name) = (log.namespace().unwrap_or_default(), log.name_any());
                // `log-ENGINE`, and its full ones `log-ENGINE-WRITER-NUMBER`.
                let head = name.splitn(3, '-').take(2).collect::<Vec<_>>().join("-");
                if is_gone(&head) {
                    heads.entry((namespace, head)).or_default().push(name);
                }
            }
            page.continue_token = found.metadata.continue_.filter(|c| !c.is_empty());
            if page.continue_token.is_none() {
                break;
            }
        }
        let mut stays = false;
        for ((namespace, head), mut names) in heads {
            if self.is_needed(&namespace, &head).await? {
                stays = true;
                continue;
            }
            let logs = Api::<WorkflowLog>::namespaced(self.client.clone(), &namespace);
            // The head at last: what is left is found again by it.
            names.sort_by_key(|n| *n == head);
            for name in names {
                match logs.delete(&name, &DeleteParams::default()).await {
                    Err(e) if !not_found(&e) => return Err(api(e)),
                    _ => {}
                }
            }
        }
        Ok(stays)
    }

    /// Whether a log has steps of which a run's pages know nothing.
    async fn is_needed(&self, namespace: &str, name: &str) -> Result<bool, JournalError> {
        let (_, all) = self.read_other(namespace, name, 0, true).await?;
        let mut runs: BTreeMap<_, u64> = BTreeMap::new();
        for line in all {
            let last = runs.entry((line.run, line.uid, line.writer)).or_default();
            *last = line.n.max(*last);
        }
        let api_of_runs = Api::<WorkflowRun>::namespaced(self.client.clone(), namespace);
        let pages = Api::<WorkflowHistory>::namespaced(self.client.clone(), namespace);
        for ((run, uid, writer), n) in runs {
            let found = api_of_runs.get_opt(&run).await.map_err(api)?;
            let going = found.filter(|r| r.metadata.uid.as_ref() == Some(&uid));
            let Some(going) = going.filter(|r| r.status.as_ref().is_none_or(|s| !s.phase.is_over())) else { continue };
            let hint = going.status.map_or(1, |s| s.history_pages);
            let last = last_page(&pages, &run, hint).await?;
            // Whoever took it over from there wrote a page of its own.
            let written = last.as_ref().and_then(|p| p.spec.writer.split_once('/'));
            if written.is_some_and(|(by, k)| by == writer && k.parse().is_ok_and(|k: u64| k < n)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
