//! `metrics.k8s.io/v1beta1`: what nodes and pods use now, for `kubectl top` and for autoscalers.
//!
//! Nothing is stored. The node agents are asked for `/metrics/resource` while somebody wants to know: the first question
//! starts a task that reads all nodes every [`PERIOD`] and ends, with all it knows, when nobody has asked for [`IDLE`]. So
//! an idle cluster pays nothing. CPU use is a rate and needs two readings; the second follows the first after
//! [`SECOND`], and the first question waits for it. A container that began between two readings counts from its start,
//! once it has run for [`FRESH`].
//!
//! A node that does not answer has no numbers (not old ones); a pod has numbers when each of its containers has.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Value, json};
use skiff_core::quantity::{Format, Quantity};
use skiff_core::resources::{Resource, Verbs};
use skiff_core::schema::Handle;
use skiff_core::status::Status;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::registry::{Hooks, Kind, Registry};
use crate::request::Verb;
use crate::server::Inner;
use crate::subresources::streams::agent_of;
use crate::verbs::Call;
use crate::verbs::list::Selection;

/// Group of the resources.
pub const GROUP: &str = "metrics.k8s.io";
/// Their version.
pub const VERSION: &str = "v1beta1";

/// Between two readings.
const PERIOD: Duration = Duration::from_secs(15);
/// Between the first two.
const SECOND: Duration = Duration::from_secs(2);
/// After this long without a question nobody is asked.
const IDLE: Duration = Duration::from_secs(120);
/// How long a question waits for the first numbers.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a node may take to answer.
const ANSWER: Duration = Duration::from_secs(8);
/// Largest answer of a node: hundreds of containers are some hundred KiB.
const ANSWER_MAX: usize = 8 * 1024 * 1024;
/// Nodes asked at once.
const CONCURRENT: usize = 16;
/// How long a new container must have run before its start counts as a reading.
const FRESH: f64 = 10.0;

/// One reading of a counter of CPU time and of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Point {
    /// When, in seconds since 1970.
    at: f64,
    /// CPU time in seconds.
    cpu: f64,
    /// Memory in use in bytes.
    memory: f64,
    /// When it began; 0 when that is not known.
    started: f64,
}

/// What one answer of a node says.
#[derive(Clone, Debug, Default, PartialEq)]
struct Reading {
    node: Point,
    /// By namespace and pod, then container.
    pods: HashMap<(String, String), BTreeMap<String, Point>>,
}

/// What is known of a node: the last reading and the one before.
#[derive(Default)]
struct Known {
    last: Arc<Reading>,
    before: Option<Arc<Reading>>,
}

#[derive(Default)]
struct State {
    nodes: HashMap<String, Known>,
    asked: Option<Instant>,
    running: bool,
}

/// The numbers, and the task that reads them.
pub struct Usage {
    state: Mutex<State>,
    /// Readings of all nodes so far.
    rounds: watch::Sender<u32>,
}

impl Default for Usage {
    fn default() -> Self {
        Self { state: Mutex::default(), rounds: watch::channel(0).0 }
    }
}

/// A rate of use.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rate {
    at: f64,
    window: f64,
    /// Cores.
    cpu: f64,
    memory: f64,
}

/// The use between two readings; `None` while there are not two.
fn rate(now: &Point, before: Option<&Point>, since: f64) -> Option<Rate> {
    let base = match before {
        Some(b) if b.at < now.at && b.cpu <= now.cpu => *b,
        // New, or begun anew: its start is a reading too.
        _ if now.started >= since && now.started > 0.0 && now.at - now.started >= FRESH => {
            Point { at: now.started, ..Point::default() }
        }
        _ => return None,
    };
    let window = now.at - base.at;
    Some(Rate { at: now.at, window, cpu: (now.cpu - base.cpu) / window, memory: now.memory })
}

impl Known {
    fn node(&self) -> Option<Rate> {
        rate(&self.last.node, Some(&self.before.as_ref()?.node), f64::INFINITY)
    }

    /// By container; `None` when one has no numbers yet.
    fn pod(&self, namespace: &str, name: &str) -> Option<Vec<(&str, Rate)>> {
        let key = (namespace.to_owned(), name.to_owned());
        let before = self.before.as_ref()?;
        let old = before.pods.get(&key);
        let containers = self.last.pods.get(&key)?;
        let of = |name: &String, point| rate(point, old.and_then(|o| o.get(name)), before.node.at);
        containers.iter().map(|(name, point)| Some((name.as_str(), of(name, point)?))).collect()
    }
}

/// Reads the text of a node agent.
fn parse(text: &str) -> Reading {
    let mut reading = Reading::default();
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (name, rest) = match line.find(['{', ' ']) {
            Some(i) => line.split_at(i),
            None => continue,
        };
        let (labels, numbers) = match rest.strip_prefix('{') {
            Some(inner) => match inner.split_once('}') {
                Some(parts) => parts,
                None => continue,
            },
            None => ("", rest),
        };
        let mut numbers = numbers.split_whitespace().map(str::parse::<f64>);
        let Some(Ok(value)) = numbers.next() else { continue };
        let at = numbers.next().and_then(Result::ok).map(|ms| ms / 1e3);
        // Names of namespaces, pods and containers need no escapes.
        let label = |key: &str| {
            let pairs = labels.split(',').filter_map(|p| p.split_once('='));
            pairs.filter(|(k, _)| *k == key).map(|(_, v)| v.trim_matches('"').to_owned()).next().unwrap_or_default()
        };
        let point = match name {
            n if n.starts_with("node_") => &mut reading.node,
            n if n.starts_with("container_") => {
                let pod = reading.pods.entry((label("namespace"), label("pod"))).or_default();
                pod.entry(label("container")).or_default()
            }
            _ => continue,
        };
        match name.split_once('_').map_or("", |(_, rest)| rest) {
            "cpu_usage_seconds_total" => {
                point.cpu = value;
                point.at = at.unwrap_or(point.at);
            }
            "memory_working_set_bytes" => point.memory = value,
            "start_time_seconds" => point.started = value,
            _ => {}
        }
    }
    for containers in reading.pods.values_mut() {
        // What has no CPU reading has only begun.
        containers.retain(|_, p| p.at > 0.0);
    }
    reading.pods.retain(|_, containers| !containers.is_empty());
    reading
}

impl Usage {
    /// Notes that somebody asks, and waits until there are numbers.
    async fn ask(server: &Arc<Inner>) {
        let usage = &server.usage;
        let mut rounds = usage.rounds.subscribe();
        {
            let mut state = usage.state.lock();
            state.asked = Some(Instant::now());
            if !state.running {
                state.running = true;
                rounds.borrow_and_update();
                usage.rounds.send_replace(0);
                tokio::spawn(follow(Arc::clone(server)));
            }
        }
        // Without numbers in time there is an answer without numbers.
        let _ = tokio::time::timeout(PATIENCE, rounds.wait_for(|n| *n >= 2)).await;
    }
}

async fn follow(server: Arc<Inner>) {
    let usage = &server.usage;
    loop {
        round(&server).await;
        let done = *usage.rounds.borrow() + 1;
        usage.rounds.send_replace(done);
        let pause = if done == 1 { SECOND } else { PERIOD };
        tokio::select! {
            () = server.shutdown.cancelled() => {}
            () = tokio::time::sleep(pause) => {}
        }
        let mut state = usage.state.lock();
        if server.shutdown.is_cancelled() || state.asked.is_none_or(|t| t.elapsed() > IDLE) {
            *state = State::default();
            return;
        }
    }
}

/// Reads every node once.
async fn round(server: &Arc<Inner>) {
    let Ok(nodes) = server.collection("", "nodes") else { return };
    let names: Vec<String> = nodes.cache.list(&nodes.prefix).objects.iter().map(|o| o.name().to_owned()).collect();
    let asked = futures::stream::iter(names).map(|name| async move {
        let read = async {
            let (address, port) = agent_of(server, &name)?;
            server.kubelets.fetch(address, port, "/metrics/resource", ANSWER_MAX).await
        };
        let text = tokio::time::timeout(ANSWER, read).await;
        (name, text.unwrap_or_else(|_| Err(Status::timeout("the node did not answer in time", 0))))
    });
    let found: Vec<_> = asked.buffer_unordered(CONCURRENT).collect().await;
    let mut state = server.usage.state.lock();
    let mut old = std::mem::take(&mut state.nodes);
    for (name, answer) in found {
        match answer {
            Ok(text) => {
                let before = old.remove(&name).map(|k| k.last);
                let last = Arc::new(parse(&String::from_utf8_lossy(&text)));
                state.nodes.insert(name, Known { last, before });
            }
            Err(e) => tracing::debug!(node = name, error = %e.message, "a node does not tell its use"),
        }
    }
}

#[derive(Clone, Copy)]
enum What {
    Nodes,
    Pods,
}

impl What {
    fn plural(self) -> &'static str {
        match self {
            Self::Nodes => "nodes",
            Self::Pods => "pods",
        }
    }

    fn kind(self) -> &'static str {
        match self {
            Self::Nodes => "NodeMetrics",
            Self::Pods => "PodMetrics",
        }
    }

    fn singular(self) -> &'static str {
        match self {
            Self::Nodes => "nodemetrics",
            Self::Pods => "podmetrics",
        }
    }
}

struct UsageHooks(What);

impl Hooks for UsageHooks {
    fn computed<'a>(&'a self, server: &'a Arc<Inner>, call: &'a Call) -> Option<BoxFuture<'a, Result<Value, Status>>> {
        Some(Box::pin(answer(self.0, server, call)))
    }
}

async fn answer(what: What, server: &Arc<Inner>, call: &Call) -> Result<Value, Status> {
    let t = &call.target;
    let source = server.kind("", what.plural())?;
    let objects = source.stored()?;
    let one = t.verb == Verb::Get;
    let selection = if one { Selection::default() } else { Selection::from_call(&source, call)? };
    Usage::ask(server).await;
    if one {
        let name = if matches!(what, What::Pods) { format!("{}/{}", t.namespace, t.name) } else { t.name.clone() };
        let object = objects.get(&t.namespace, &t.name).await?;
        let object = object.ok_or_else(|| Status::not_found("", what.plural(), &name))?;
        let found = metrics(what, server, &source.load(&object)?);
        return found.ok_or_else(|| Status::not_found(GROUP, what.singular(), &name));
    }
    objects.consistent().await?;
    let all = objects.cache.list(&objects.scope(&t.namespace)).objects;
    let chosen = all.iter().filter(|o| selection.matches(o));
    let items: Vec<Value> =
        chosen.filter_map(|o| source.load(o).ok()).filter_map(|v| metrics(what, server, &v)).collect();
    Ok(json!({"kind": format!("{}List", what.kind()), "apiVersion": format!("{GROUP}/{VERSION}"), "metadata": {},
        "items": items}))
}

/// The numbers of one object.
fn metrics(what: What, server: &Inner, object: &Value) -> Option<Value> {
    let m = &object["metadata"];
    let (name, namespace) = (skiff_core::meta::name(object), skiff_core::meta::namespace(object));
    let state = server.usage.state.lock();
    let mut meta = json!({"name": name, "creationTimestamp": crate::verbs::write::now()});
    if let Some(labels) = m.get("labels") {
        meta["labels"] = labels.clone();
    }
    let api = format!("{GROUP}/{VERSION}");
    let time = |r: &Rate| {
        let at = Timestamp::from_second(r.at as i64).unwrap_or_default();
        (skiff_core::time::format(at), window(r.window))
    };
    match what {
        What::Nodes => {
            let r = state.nodes.get(name)?.node()?;
            let (at, window) = time(&r);
            Some(json!({"kind": what.kind(), "apiVersion": api, "metadata": meta, "timestamp": at, "window": window,
                "usage": used(&r)}))
        }
        What::Pods => {
            let node = object["spec"]["nodeName"].as_str()?;
            let containers = state.nodes.get(node)?.pod(namespace, name)?;
            meta["namespace"] = namespace.into();
            let (_, first) = containers.iter().min_by(|a, b| a.1.at.total_cmp(&b.1.at))?;
            let (at, window) = time(first);
            let containers: Vec<Value> =
                containers.iter().map(|(name, r)| json!({"name": name, "usage": used(r)})).collect();
            Some(json!({"kind": what.kind(), "apiVersion": api, "metadata": meta, "timestamp": at, "window": window,
                "containers": containers}))
        }
    }
}

/// CPU in billionths of a core, memory in KiB.
fn used(r: &Rate) -> Value {
    let nanos = (r.cpu * 1e9).round() as i64;
    let memory = Quantity::from_i64(r.memory as i64 / 1024 * 1024, Format::BinarySi);
    let cpu = if nanos == 0 { "0".to_owned() } else { format!("{nanos}n") };
    json!({"cpu": cpu, "memory": memory.to_string()})
}

/// A length of time as Go prints it, to the millisecond.
fn window(seconds: f64) -> String {
    let millis = (seconds * 1e3).round() as u64;
    let (minutes, rest) = (millis / 60_000, (millis % 60_000) as f64 / 1e3);
    match minutes {
        0 => format!("{rest}s"),
        1..60 => format!("{minutes}m{rest}s"),
        _ => format!("{}h{}m{rest}s", minutes / 60, minutes % 60),
    }
}

/// Adds both resources to what is served.
pub fn register(registry: &mut Registry) {
    let Some(model) = skiff_core::schema::model("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta") else { return };
    for what in [What::Nodes, What::Pods] {
        let resource = Resource {
            group: GROUP.into(),
            version: VERSION.into(),
            plural: what.plural().into(),
            singular: "".into(),
            kind: what.kind().into(),
            list_kind: format!("{}List", what.kind()).into(),
            namespaced: matches!(what, What::Pods),
            verbs: Verbs::GET.and(Verbs::LIST),
            short_names: vec![],
            categories: vec![],
            subresources: vec![],
            storage: None,
            model: Handle::Static(model),
        };
        registry.insert(Arc::new(Kind {
            resource,
            strategy: skiff_core::kinds::strategy(GROUP, what.plural()),
            hooks: Arc::new(UsageHooks(what)),
            conversion: None,
            collection: None,
            ended: tokio_util::sync::CancellationToken::new(),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# HELP x y\nnode_cpu_usage_seconds_total 100.5 20000\nnode_memory_working_set_bytes 1024 20000\n\
        container_cpu_usage_seconds_total{container=\"c\",namespace=\"a\",pod=\"p\"} 3.25 20000\n\
        container_memory_working_set_bytes{container=\"c\",namespace=\"a\",pod=\"p\"} 4096 20000\n\
        container_start_time_seconds{container=\"c\",namespace=\"a\",pod=\"p\"} 5.5\n\
        container_memory_working_set_bytes{container=\"half\",namespace=\"a\",pod=\"p\"} 1 20000\n\
        pod_cpu_usage_seconds_total{namespace=\"a\",pod=\"p\"} 3.5 20000\nnonsense\n";

    #[test]
    fn the_text_of_an_agent() {
        let r = parse(TEXT);
        assert_eq!(r.node, Point { at: 20.0, cpu: 100.5, memory: 1024.0, started: 0.0 });
        let pod = &r.pods[&("a".to_owned(), "p".to_owned())];
        assert_eq!(pod.len(), 1, "a container without CPU reading is not known yet");
        assert_eq!(pod["c"], Point { at: 20.0, cpu: 3.25, memory: 4096.0, started: 5.5 });
    }

    #[test]
    fn rates() {
        let p = |at, cpu, started| Point { at, cpu, memory: 7.0, started };
        let cases = [
            (p(20.0, 6.0, 1.0), Some(p(10.0, 1.0, 1.0)), 10.0, Some((10.0, 0.5))),
            // One reading is none, and neither is the same twice.
            (p(20.0, 6.0, 1.0), None, 10.0, None),
            (p(20.0, 6.0, 1.0), Some(p(20.0, 6.0, 1.0)), 20.0, None),
            // It began between the readings: long enough ago, and too lately.
            (p(30.0, 6.0, 18.0), None, 15.0, Some((12.0, 0.5))),
            (p(30.0, 6.0, 28.0), None, 15.0, None),
            // The counter went back: it began anew.
            (p(30.0, 5.0, 20.0), Some(p(15.0, 9.0, 1.0)), 15.0, Some((10.0, 0.5))),
            (p(30.0, 5.0, 1.0), Some(p(15.0, 9.0, 1.0)), 15.0, None),
        ];
        for (now, before, since, want) in cases {
            assert_eq!(rate(&now, before.as_ref(), since).map(|r| (r.window, r.cpu)), want, "{now:?} {before:?}");
        }
    }

    #[test]
    fn printed() {
        assert_eq!([15.0, 15.0321, 75.5, 3661.0].map(window), ["15s", "15.032s", "1m15.5s", "1h1m1s"]);
        let r = Rate { at: 0.0, window: 1.0, cpu: 0.0123, memory: 1_500_000.0 };
        assert_eq!(used(&r), json!({"cpu": "12300000n", "memory": "1464Ki"}));
        assert_eq!(used(&Rate { cpu: 0.0, ..r })["cpu"], "0");
    }
}
