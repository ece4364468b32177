//! HorizontalPodAutoscalers: the number of replicas follows what pods use.
//!
//! Each autoscaler is looked at every [`PERIOD`] while it exists, so a cluster without any pays nothing. What was
//! recommended lately is kept in memory only: after a restart stabilisation windows begin anew, as upstream's.
//! [`plan`] says what a metric asks for, [`pace`] how much of it is done now, [`source`] fetches the numbers.

pub mod pace;
pub mod plan;
pub mod source;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, CrossVersionObjectReference, ExternalMetricStatus, HorizontalPodAutoscaler as Hpa,
    HorizontalPodAutoscalerCondition as Condition, HorizontalPodAutoscalerStatus, MetricSpec, MetricStatus,
    MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{DynamicObject, PostParams};
use kube::core::gvk::{GroupVersion, GroupVersionKind};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use skiff_core::quantity::{self, Format};
use skiff_core::selector::LabelSelector;

use super::family;
use crate::runtime::events::{Level, Recorder};
use crate::runtime::informer::{Informer, key_of, split};
use crate::runtime::now;
use crate::runtime::queue::Queue;
use crate::runtime::worker::{self, Outcome, Reconcile, found};

/// Between two looks at an autoscaler.
const PERIOD: Duration = Duration::from_secs(15);

/// The autoscaler's controller.
pub struct Controller {
    client: Client,
    autoscalers: Informer<Hpa>,
    pods: Informer<Pod>,
    queue: Arc<Queue>,
    events: Recorder,
    histories: Mutex<HashMap<String, pace::History>>,
}

/// What the metrics together ask for.
struct Wish {
    replicas: i32,
    metric: String,
    statuses: Vec<MetricStatus>,
}

/// What all metrics of an autoscaler are computed from.
struct Scene<'a> {
    namespace: &'a str,
    /// Replicas asked for and there now.
    current: i32,
    observed: i32,
    selector: &'a str,
    pods: Vec<Arc<Pod>>,
    tolerance: plan::Tolerance,
    now: f64,
}

/// A metric that tells nothing: reason of the condition, and why.
type Broken = (&'static str, String);

impl Controller {
    /// Makes the controller and subscribes it to changes.
    #[must_use]
    pub fn new(client: Client, autoscalers: Informer<Hpa>, pods: Informer<Pod>) -> Arc<Self> {
        let queue = Arc::new(Queue::default());
        let q = Arc::clone(&queue);
        autoscalers.on_change(move |c| {
            // Our own writes change the status only.
            let same = matches!((&c.old, &c.new), (Some(a), Some(b)) if a.spec == b.spec && a.uid() == b.uid());
            if !same {
                q.add(key_of(&**c.latest()));
            }
        });
        let events = Recorder::start(client.clone(), "horizontal-pod-autoscaler");
        Arc::new(Self { client, autoscalers, pods, queue, events, histories: Mutex::default() })
    }

    async fn sync(&self, key: &str) -> Outcome {
        let Some(hpa) = self.autoscalers.get(key) else {
            self.histories.lock().remove(key);
            return Ok(None);
        };
        let mut next = (*hpa).clone();
        self.look(key, &mut next).await;
        if next.status != hpa.status {
            let api = family::api::<Hpa>(&self.client, split(key).0);
            if let Err(e) = self.write(&api, next).await {
                self.events.note(&*hpa, Level::Warning, "FailedUpdateStatus", worker::text(&e));
                return Err(e.into());
            }
        }
        Ok(Some(PERIOD))
    }

    /// Writes the status. Somebody may have changed the autoscaler meanwhile, but the status is ours alone, and what was
    /// done must be said: it is put on what is there now.
    async fn write(&self, api: &Api<Hpa>, next: Hpa) -> Result<(), kube::Error> {
        let (name, params) = (next.name_any(), PostParams::default());
        match found(api.replace_status(&name, &params, &next).await) {
            Err(e) if worker::code(&e) == 409 => {}
            other => return other.map(drop),
        }
        let Some(fresh) = found(api.get(&name).await)?.filter(|f| f.uid() == next.uid()) else { return Ok(()) };
        let again = Hpa { status: next.status, ..fresh };
        found(api.replace_status(&name, &params, &again).await).map(drop)
    }

    /// One look: scales if that is called for, and says in the status what was found.
    async fn look(&self, key: &str, hpa: &mut Hpa) {
        let namespace = split(key).0;
        let spec = hpa.spec.clone();
        let target = &spec.scale_target_ref;
        let (api, scale) = match self.scale_of(namespace, target).await {
            Ok(found) => found,
            Err(why) => {
                self.events.note(hpa, Level::Warning, "FailedGetScale", &*why);
                let text = format!("the HPA controller was unable to get the target's current scale: {why}");
                condition(hpa, "AbleToScale", false, "FailedGetScale", text);
                return;
            }
        };
        let text = "the HPA controller was able to get the target's current scale";
        condition(hpa, "AbleToScale", true, "SucceededGetScale", text);
        let current = scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        let (min, max) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
        let time = now().0.as_millisecond() as f64 / 1e3;
        self.histories.lock().entry(key.to_owned()).or_default().begin(current, time);
        let mut statuses = None;
        let (wanted, why) = if current == 0 && min != 0 {
            let text = "scaling is disabled since the replica count of the target is zero";
            condition(hpa, "ScalingActive", false, "ScalingDisabled", text);
            (current, String::new())
        } else if current > max {
            (max, "Current number of replicas above Spec.MaxReplicas".into())
        } else if current < min {
            (min, "Current number of replicas below Spec.MinReplicas".into())
        } else {
            let wish = match self.wish(hpa, namespace, &scale, current, time).await {
                Ok(wish) => wish,
                Err((found, why)) => {
                    self.events.note(hpa, Level::Warning, "FailedComputeMetricsReplicas", why);
                    let desired = hpa.status.as_ref().map_or(0, |s| s.desired_replicas);
                    report(hpa, current, desired, found, false);
                    return;
                }
            };
            statuses = Some(wish.statuses);
            let why = match wish.replicas.cmp(&current) {
                std::cmp::Ordering::Greater => format!("{} above target", wish.metric),
                std::cmp::Ordering::Less => "All metrics below target".to_owned(),
                std::cmp::Ordering::Equal => String::new(),
            };
            let paced = {
                let mut all = self.histories.lock();
                let history = all.entry(key.to_owned()).or_default();
                pace::pace(spec.behavior.as_ref(), history, current, wish.replicas, (min, max), time)
            };
            condition(hpa, "AbleToScale", true, paced.able.0, paced.able.1);
            condition(hpa, "ScalingLimited", paced.limited, paced.limit.0, paced.limit.1);
            (paced.replicas, why)
        };
        if wanted == current {
            report(hpa, current, current, statuses.unwrap_or_default(), false);
            return;
        }
        let mut next = scale;
        next.spec.get_or_insert_default().replicas = Some(wanted);
        match api.replace_scale(&target.name, &PostParams::default(), &next).await {
            Ok(_) => {
                let text = format!("the HPA controller was able to update the target scale to {wanted}");
                condition(hpa, "AbleToScale", true, "SucceededRescale", text);
                let text = format!("New size: {wanted}; reason: {why}");
                self.events.note(hpa, Level::Normal, "SuccessfulRescale", text);
                if let Some(history) = self.histories.lock().get_mut(key) {
                    history.scaled(current, wanted, time);
                }
                report(hpa, current, wanted, statuses.unwrap_or_default(), true);
            }
            Err(e) => {
                let error = worker::text(&e);
                let text = format!("New size: {wanted}; reason: {why}; error: {error}");
                self.events.note(hpa, Level::Warning, "FailedRescale", text);
                let text = format!("the HPA controller was unable to update the target scale: {error}");
                condition(hpa, "AbleToScale", false, "FailedUpdateScale", text);
                let desired = hpa.status.as_ref().map_or(0, |s| s.desired_replicas);
                report(hpa, current, desired, statuses.unwrap_or_default(), false);
            }
        }
    }

    /// The resource of a kind, by discovery: the target may be of any kind.
    async fn resource(&self, r: &CrossVersionObjectReference) -> Result<kube::core::ApiResource, String> {
        let version: GroupVersion =
            r.api_version.as_deref().unwrap_or("v1").parse().map_err(|e| format!("invalid API version: {e}"))?;
        let kind = GroupVersionKind { group: version.group, version: version.version, kind: r.kind.clone() };
        let none = |group: &str| {
            let kind = if group.is_empty() { r.kind.clone() } else { format!("{}.{group}", r.kind) };
            format!("no matches for kind \"{}\" in group \"{group}\"", kind.split('.').next().unwrap_or_default())
        };
        match kube::discovery::oneshot::pinned_kind(&self.client, &kind).await {
            Ok((resource, _)) => Ok(resource),
            Err(kube::Error::Discovery(_)) => Err(none(&kind.group)),
            Err(e) if worker::not_found(&e) => Err(none(&kind.group)),
            Err(e) => Err(worker::text(&e)),
        }
    }

    async fn scale_of(
        &self,
        namespace: &str,
        target: &CrossVersionObjectReference,
    ) -> Result<(Api<DynamicObject>, Scale), String> {
        let resource = self.resource(target).await?;
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let scale = api.get_scale(&target.name).await.map_err(|e| worker::text(&e))?;
        Ok((api, scale))
    }

    /// The most that any metric asks for.
    async fn wish(
        &self,
        hpa: &mut Hpa,
        namespace: &str,
        scale: &Scale,
        current: i32,
        time: f64,
    ) -> Result<Wish, (Vec<MetricStatus>, String)> {
        let selector = scale.status.as_ref().and_then(|s| s.selector.as_deref()).unwrap_or_default();
        if selector.is_empty() {
            self.events.note(hpa, Level::Warning, "SelectorRequired", "selector is required");
            let text = "the HPA target's scale is missing a selector";
            condition(hpa, "ScalingActive", false, "InvalidSelector", text);
            return Err((vec![], "selector is required".into()));
        }
        let parsed = match LabelSelector::parse(selector) {
            Ok(s) => s,
            Err(e) => {
                let text = format!("couldn't convert selector into a corresponding internal selector object: {}", e.0);
                self.events.note(hpa, Level::Warning, "InvalidSelector", &*text);
                condition(hpa, "ScalingActive", false, "InvalidSelector", &*text);
                return Err((vec![], text));
            }
        };
        let empty = std::collections::BTreeMap::new();
        let mut pods = self.pods.in_namespace(namespace);
        pods.retain(|p| parsed.matches(p.metadata.labels.as_ref().unwrap_or(&empty)));
        let behavior = hpa.spec.behavior.as_ref();
        let rules = (behavior.and_then(|b| b.scale_up.as_ref()), behavior.and_then(|b| b.scale_down.as_ref()));
        let scene = Scene {
            namespace,
            current,
            observed: scale.status.as_ref().map_or(0, |s| s.replicas),
            selector,
            pods,
            tolerance: plan::Tolerance::new(rules.0, rules.1),
            now: time,
        };
        let metrics = hpa.spec.metrics.clone().unwrap_or_default();
        let mut wish = Wish { replicas: 0, metric: String::new(), statuses: Vec::new() };
        let mut broken: Vec<(Broken, &'static str)> = Vec::new();
        let mut heard = false;
        for metric in &metrics {
            match self.one(&scene, metric).await {
                Ok((replicas, name, status)) => {
                    if !heard || replicas > wish.replicas {
                        (wish.replicas, wish.metric, heard) = (replicas, name, true);
                    }
                    wish.statuses.push(status);
                }
                Err(b) => {
                    self.events.note(hpa, Level::Warning, b.0, &*b.1);
                    broken.push((b, kind_of(metric)));
                }
            }
        }
        // With a metric missing nothing is taken away: what it would ask for is not known.
        if !heard || (!broken.is_empty() && wish.replicas < current) {
            let Some(((reason, why), what)) = broken.first() else {
                return Err((wish.statuses, "no metrics are given".into()));
            };
            let text = format!("the HPA was unable to compute the replica count: {why}");
            condition(hpa, "ScalingActive", false, reason, text);
            let (bad, all) = (broken.len(), metrics.len());
            let name = metrics.iter().find(|m| kind_of(m) == *what).and_then(name_of).unwrap_or_default();
            let what = if name.is_empty() { (*what).to_owned() } else { format!("{name} {what}") };
            let text = format!(
                "invalid metrics ({bad} invalid out of {all}), first error is: failed to get {what} metric value: {why}"
            );
            return Err((wish.statuses, text));
        }
        let text = format!("the HPA was able to successfully calculate a replica count from {}", wish.metric);
        condition(hpa, "ScalingActive", true, "ValidMetricFound", text);
        Ok(wish)
    }

    /// What one metric asks for: replicas, its name in messages, and what the status says of it.
    async fn one(&self, s: &Scene<'_>, metric: &MetricSpec) -> Result<(i32, String, MetricStatus), Broken> {
        let mut status = MetricStatus { type_: metric.type_.clone(), ..MetricStatus::default() };
        if let Some(m) = &metric.resource {
            let (p, raw) = self
                .of_resource(s, &m.name, None, &m.target)
                .await
                .map_err(|why| ("FailedGetResourceMetric", format!("failed to get {} utilization: {why}", m.name)))?;
            let how = if raw { "" } else { " utilization (percentage of request)" };
            status.resource = Some(ResourceMetricStatus { name: m.name.clone(), current: of_average(&p) });
            return Ok((p.replicas, format!("{} resource{how}", m.name), status));
        }
        if let Some(m) = &metric.container_resource {
            let found = self.of_resource(s, &m.name, Some(&m.container), &m.target).await;
            let (p, raw) = found.map_err(|why| {
                ("FailedGetContainerResourceMetric", format!("failed to get {} utilization: {why}", m.name))
            })?;
            let how = if raw { "" } else { " utilization (percentage of request)" };
            status.container_resource = Some(ContainerResourceMetricStatus {
                name: m.name.clone(),
                container: m.container.clone(),
                current: of_average(&p),
            });
            return Ok((p.replicas, format!("{} container resource{how}", m.name), status));
        }
        if let Some(m) = &metric.pods {
            let failed = |why: String| ("FailedGetPodsMetric", why);
            let samples = source::of_pods(&self.client, s.namespace, s.selector, &m.metric).await.map_err(failed)?;
            let target = plan::Target::Average(aim(m.target.average_value.as_ref()).map_err(failed)?);
            let p = plan::of_pods(s.current, &s.pods, samples, &target, s.tolerance, false, s.now).map_err(failed)?;
            status.pods = Some(PodsMetricStatus { metric: m.metric.clone(), current: of_average(&p) });
            return Ok((p.replicas, format!("pods metric {}", m.metric.name), status));
        }
        if let Some(m) = &metric.object {
            let failed = |why: String| ("FailedGetObjectMetric", why);
            let object = &m.described_object;
            let resource = self.resource(object).await.map_err(failed)?;
            let plural = match resource.group.as_str() {
                "" => resource.plural,
                group => format!("{}.{group}", resource.plural),
            };
            let value = source::of_object(&self.client, s.namespace, &plural, object, &m.metric).await;
            let (p, current) = of_number(s, value.map_err(failed)?, &m.target).map_err(failed)?;
            status.object =
                Some(ObjectMetricStatus { described_object: object.clone(), metric: m.metric.clone(), current });
            return Ok((p.replicas, format!("{} metric {}", object.kind, m.metric.name), status));
        }
        if let Some(m) = &metric.external {
            let name = &m.metric.name;
            let failed = |why: String| {
                let what = match m.target.average_value {
                    Some(_) => format!("{name} external metric"),
                    None => format!("external metric {name}"),
                };
                ("FailedGetExternalMetric", format!("failed to get {what}: {why}"))
            };
            let value = source::external(&self.client, s.namespace, &m.metric).await.map_err(failed)?;
            let (p, current) = of_number(s, value, &m.target).map_err(failed)?;
            let text = format!("external metric {name}({})", source::shown(m.metric.selector.as_ref()));
            status.external = Some(ExternalMetricStatus { metric: m.metric.clone(), current });
            return Ok((p.replicas, text, status));
        }
        Err(("InvalidMetricSourceType", format!("unknown metric source type {:?}", metric.type_)))
    }

    /// A resource's use; whether it is aimed at as such and not as a part of what is requested.
    async fn of_resource(
        &self,
        s: &Scene<'_>,
        resource: &str,
        container: Option<&str>,
        target: &MetricTarget,
    ) -> Result<(plan::Proposal, bool), String> {
        let samples = source::resource(&self.client, s.namespace, s.selector, resource, container).await?;
        let aim = match (&target.average_value, target.average_utilization) {
            (Some(_), _) => plan::Target::Average(aim(target.average_value.as_ref())?),
            (None, Some(percent)) => plan::Target::Utilization(percent, plan::requests(&s.pods, resource, container)?),
            (None, None) => {
                let what = if container.is_some() { "container resource" } else { "resource" };
                return Err(format!(
                    "invalid {what} metric source: neither an average utilization target nor an average value (usage) \
                     target was set"
                ));
            }
        };
        let p = plan::of_pods(s.current, &s.pods, samples, &aim, s.tolerance, resource == "cpu", s.now)?;
        Ok((p, matches!(aim, plan::Target::Average(_))))
    }
}

/// What a number about something else asks for, and how the status shows it.
fn of_number(s: &Scene<'_>, value: i64, target: &MetricTarget) -> Result<(plan::Proposal, MetricValueStatus), String> {
    if target.average_value.is_some() {
        let p = plan::of_share(s.observed, value, aim(target.average_value.as_ref())?, s.tolerance);
        return Ok((p, of_average(&p)));
    }
    let p = plan::of_value(s.current, &s.pods, value, aim(target.value.as_ref())?, s.tolerance)?;
    Ok((p, MetricValueStatus { value: Some(thousandths(p.value)), ..MetricValueStatus::default() }))
}

/// A target's number; the API lets none pass that is not positive.
fn aim(q: Option<&Quantity>) -> Result<i64, String> {
    let n = q.and_then(plan::millis).filter(|n| *n > 0);
    n.ok_or_else(|| "invalid metric source: neither a value target nor an average value target was set".into())
}

fn thousandths(n: i64) -> Quantity {
    Quantity(quantity::Quantity::from_millis(n, Format::DecimalSi).to_string())
}

fn of_average(p: &plan::Proposal) -> MetricValueStatus {
    MetricValueStatus {
        average_utilization: p.utilization,
        average_value: Some(thousandths(p.value)),
        ..MetricValueStatus::default()
    }
}

/// How messages call the source of a metric.
fn kind_of(m: &MetricSpec) -> &'static str {
    match m.type_.as_str() {
        "Resource" => "resource",
        "ContainerResource" => "container resource",
        "Pods" => "pods",
        "Object" => "object",
        _ => "external",
    }
}

/// Which resource it is about, where the message says so.
fn name_of(m: &MetricSpec) -> Option<String> {
    let resource = m.resource.as_ref().map(|r| r.name.clone());
    resource.or_else(|| m.container_resource.as_ref().map(|r| r.name.clone()))
}

fn condition(hpa: &mut Hpa, kind: &str, holds: bool, reason: &str, message: impl Into<String>) {
    let all = hpa.status.get_or_insert_default().conditions.get_or_insert_default();
    let status = if holds { "True" } else { "False" };
    let at = match all.iter().position(|c| c.type_ == kind) {
        Some(i) => i,
        None => {
            all.push(Condition { type_: kind.into(), ..Condition::default() });
            all.len() - 1
        }
    };
    let c = &mut all[at];
    if c.status != status {
        c.last_transition_time = Some(now());
        c.status = status.into();
    }
    c.reason = Some(reason.into());
    c.message = Some(message.into());
}

fn report(hpa: &mut Hpa, current: i32, desired: i32, metrics: Vec<MetricStatus>, rescaled: bool) {
    let old = hpa.status.take().unwrap_or_default();
    hpa.status = Some(HorizontalPodAutoscalerStatus {
        current_replicas: Some(current),
        desired_replicas: desired,
        last_scale_time: if rescaled { Some(now()) } else { old.last_scale_time },
        current_metrics: (!metrics.is_empty()).then_some(metrics),
        conditions: old.conditions,
        observed_generation: old.observed_generation,
    });
}

impl Reconcile for Controller {
    fn name(&self) -> &'static str {
        "horizontal-pod-autoscaler"
    }

    fn queue(&self) -> &Queue {
        &self.queue
    }

    fn reconcile<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Outcome> {
        self.sync(key).boxed()
    }

    fn resync(&self) {
        self.autoscalers.keys().into_iter().for_each(|k| self.queue.add(k));
    }
}
