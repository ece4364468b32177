//! The task that follows FlowSchemas and priority levels.
//!
//! What they say is what the server goes by from then on; and every schema is told whether the level that it names is there:
//! the condition `Dangling`, in upstream's words and under its manager's name.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use skiff_core::status::Status;
use skiff_storage::cache::Watcher;
use tokio::time::Instant;

use crate::auth::identity::{MASTERS, User};
use crate::registry::Collection;
use crate::server::Inner;
use crate::{Server, bootstrap, verbs};

const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";
/// How long the task waits after an error, and how long one write may take.
const PAUSE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);
/// A schema is written so often in so long a time and no oftener: a server of another version may see it otherwise and write
/// it back.
const WRITES: usize = 6;
const WINDOW: Duration = Duration::from_secs(60);

/// Follows schemas and levels from now on.
///
/// # Errors
/// When the store cannot be read.
pub(crate) async fn start(server: &Server) -> Result<(), Status> {
    let collection = |plural| server.inner().collection(GROUP, plural);
    let (schemas, levels) = (collection("flowschemas")?, collection("prioritylevelconfigurations")?);
    let client = server.client(User::new("system:apiserver", &[MASTERS]));
    let inner = Arc::clone(server.inner());
    let follower = Follower { server: inner, schemas, levels, api: Api::all(client), written: HashMap::new() };
    let watchers = follower.watch().await?;
    follower.configure();
    tokio::spawn(server.inner().shutdown.clone().run_until_cancelled_owned(follower.run(watchers)));
    Ok(())
}

struct Follower {
    server: Arc<Inner>,
    schemas: Arc<Collection>,
    levels: Arc<Collection>,
    api: Api<FlowSchema>,
    /// By name of a schema: when it was written lately.
    written: HashMap<String, VecDeque<Instant>>,
}

impl Follower {
    async fn watch(&self) -> Result<(Watcher, Watcher), Status> {
        Ok((self.schemas.follow().await?.1, self.levels.follow().await?.1))
    }

    async fn run(mut self, mut watchers: (Watcher, Watcher)) {
        loop {
            self.configure();
            let wait = self.settle().await;
            let event = tokio::select! {
                event = watchers.0.next() => event,
                event = watchers.1.next() => event,
                () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => continue,
            };
            if matches!(event, Some(Ok(_))) {
                continue;
            }
            // A watch fell behind or the store is closing: begin anew.
            watchers = loop {
                tokio::time::sleep(PAUSE).await;
                match self.watch().await {
                    Ok(watchers) => break watchers,
                    Err(why) => tracing::warn!(why = %why.message, "FlowSchemas are read anew"),
                }
            };
        }
    }

    /// Has the server go by what is stored. The mandatory objects are part of it though somebody may have deleted them.
    fn configure(&self) {
        let schemas = with_mandatory(parsed(&self.schemas), |s: &FlowSchema| s.metadata.name.as_deref());
        let levels = with_mandatory(parsed(&self.levels), |l: &PriorityLevelConfiguration| l.metadata.name.as_deref());
        self.server.flow.configure(schemas, levels);
    }

    /// Brings every schema in line; after what time to look again, where something is left to do.
    async fn settle(&mut self) -> Option<Duration> {
        let mut again = None;
        let schemas = self.schemas.values();
        self.written.retain(|name, _| schemas.iter().any(|s| s["metadata"]["name"] == *name));
        for schema in schemas {
            let name = schema["metadata"]["name"].as_str().unwrap_or_default();
            let level = schema["spec"]["priorityLevelConfiguration"]["name"].as_str().unwrap_or_default();
            let Some(condition) = news(&schema, level, self.levels.peek("", level).is_some()) else { continue };
            let written = self.written.entry(name.to_owned()).or_default();
            while written.front().is_some_and(|t| t.elapsed() > WINDOW) {
                written.pop_front();
            }
            if written.len() >= WRITES {
                again.get_or_insert(WINDOW);
                continue;
            }
            written.push_back(Instant::now());
            if let Err(why) = self.apply(name, &condition).await {
                tracing::warn!(name, why, "cannot write the condition of a FlowSchema");
                again = Some(PAUSE);
            }
        }
        again
    }

    async fn apply(&self, name: &str, condition: &Value) -> Result<(), String> {
        let patch = json!({"kind": "FlowSchema", "apiVersion": format!("{GROUP}/v1"), "metadata": {"name": name},
            "status": {"conditions": [condition]}});
        let params = PatchParams::apply(MANAGER).force();
        match tokio::time::timeout(PATIENCE, self.api.patch_status(name, &params, &Patch::Apply(patch))).await {
            Ok(Ok(_)) => Ok(()),
            // Deleted meanwhile: its watch says so next.
            Ok(Err(kube::Error::Api(s))) if s.code == 404 => Ok(()),
            Ok(Err(why)) => Err(why.to_string()),
            Err(late) => Err(late.to_string()),
        }
    }
}

/// What a schema is told of the level that it names: the condition, from now.
pub(crate) fn dangling(level: &str, there: bool) -> Value {
    let (status, reason, end) = match there {
        true => ("False", "Found", "and it exists"),
        false => ("True", "NotFound", "but there is no such object"),
    };
    let message = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?} {end}");
    json!({"type": "Dangling", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": verbs::write::now()})
}

/// The condition of a schema, unless it says so already.
fn news(schema: &Value, level: &str, there: bool) -> Option<Value> {
    let new = dangling(level, there);
    let mut old = schema["status"]["conditions"].as_array().into_iter().flatten();
    let said = old.any(|c| ["type", "status", "reason", "message"].iter().all(|key| c[*key] == new[*key]));
    (!said).then_some(new)
}

fn parsed<T: DeserializeOwned>(objects: &Collection) -> Vec<T> {
    objects.values().into_iter().filter_map(|o| serde_json::from_value(o).ok()).collect()
}

/// Adds what every server goes by, where it is missing: who would be exempt is, and nobody falls under nothing.
fn with_mandatory<T: DeserializeOwned>(mut all: Vec<T>, name: impl Fn(&T) -> Option<&str>) -> Vec<T> {
    for object in bootstrap::flow() {
        let wanted = object["metadata"]["name"].as_str().filter(|n| matches!(*n, "exempt" | "catch-all"));
        if wanted.is_none() || all.iter().any(|o| name(o) == wanted) {
            continue;
        }
        all.extend(serde_json::from_value(object).ok());
    }
    all
}
