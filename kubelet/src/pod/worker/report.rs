//! Telling the API what became of the pod.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;

use super::{Snapshot, Worker};
use crate::metrics::AGENT;
use crate::pod::config;
use crate::pod::spec;
use crate::pod::status::{self, View};
use crate::runtime::{Container, LogOptions, label};

/// Bytes of a termination message that are kept, and of log kept in its place.
const MAX_MESSAGE: usize = 4096;
const MAX_LOG_MESSAGE: usize = 2048;
const MAX_LOG_LINES: u64 = 80;

impl Worker {
    /// Writes the status if it differs from what the API has. Failure is remembered, not raised: the pod's containers
    /// must not wait for the API.
    pub(super) async fn publish(&mut self, snapshot: &Snapshot, stopping: bool) {
        if self.desired.borrow().gone {
            return;
        }
        let ready = snapshot.sandbox().is_some_and(|s| self.attached.as_ref() == Some(&s.id));
        let health = self.probes.health();
        let view = View {
            pod: &self.pod,
            containers: &snapshot.containers,
            sandbox_ready: ready,
            pod_ip: if ready { self.pod_ip() } else { None },
            host_ip: self.shared.config.node_ip,
            waiting: &self.waiting,
            health: &health,
            messages: &self.messages,
            verdict: self.verdict.as_ref(),
            stopping,
            now: Timestamp::now(),
        };
        let new = status::compute(&view);
        let old = self.pod.status.clone().unwrap_or_default();
        self.write_status(&old, &new).await;
    }

    pub(super) async fn write_status(&mut self, old: &PodStatus, new: &PodStatus) {
        let Some(patch) = status::patch(&self.pod, old, new) else {
            self.stale_status = false;
            return;
        };
        match self.shared.patch_status(&self.pod, &patch).await {
            Ok(Some(pod)) => {
                self.pod = Arc::new(pod);
                self.stale_status = false;
                self.note_start(new);
            }
            // The object is gone or another one has its name: the watch will say so.
            Ok(None) => self.stale_status = false,
            Err(error) => {
                tracing::debug!(pod = %spec::full_name(&self.pod), %error, "status was not taken");
                self.stale_status = true;
            }
        }
    }

    /// Counts the time to a pod's start once, when the API has it as running.
    fn note_start(&mut self, status: &PodStatus) {
        if status.phase.as_deref() != Some("Running") {
            return;
        }
        let Some(begun) = self.begun.take() else { return };
        AGENT.starts.observe(begun.elapsed().as_secs_f64());
        // The promise is about neither pulls nor init containers.
        let plain = !self.pulls.any && spec::spec(&self.pod).init_containers.as_ref().is_none_or(Vec::is_empty);
        if let Some(created) = self.pod.metadata.creation_timestamp.as_ref().filter(|_| plain) {
            AGENT.starts_sli.observe(Timestamp::now().duration_since(created.0).as_secs_f64().max(0.0));
        }
    }

    /// What a container left as its last words.
    pub(super) async fn termination_message(&self, container: &Container) -> String {
        let name = container.label(label::CONTAINER_NAME);
        let all = spec::containers(&self.pod);
        let spec = all.iter().map(|(_, c)| c).find(|c| c.name == name);
        let file = config::termination_file(&self.shared.volumes, &self.uid, name, container.attempt());
        let text = tokio::fs::read(&file).await.unwrap_or_default();
        if !text.is_empty() {
            return String::from_utf8_lossy(&text[..text.len().min(MAX_MESSAGE)]).into_owned();
        }
        let fallback = spec.and_then(|c| c.termination_message_policy.as_deref()) == Some("FallbackToLogsOnError");
        if !fallback || container.exit_code == 0 {
            return container.error.clone();
        }
        let options = LogOptions { tail: Some(MAX_LOG_LINES), stdout: true, stderr: true, ..Default::default() };
        let Ok(mut lines) = self.shared.runtime.logs(&container.id, &options).await else { return String::new() };
        let mut log = Vec::new();
        while let Some(Ok((_, line))) = futures::StreamExt::next(&mut lines).await {
            // Each line begins with its time.
            let start = line.iter().position(|b| *b == b' ').map_or(0, |at| at + 1);
            log.extend_from_slice(&line[start..]);
        }
        let start = log.len().saturating_sub(MAX_LOG_MESSAGE);
        String::from_utf8_lossy(&log[start..]).into_owned()
    }
}
