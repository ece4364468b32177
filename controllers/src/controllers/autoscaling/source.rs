//! Where an autoscaler's numbers come from: `metrics.k8s.io`, `custom.metrics.k8s.io`, `external.metrics.k8s.io`.
//!
//! The first is served by this cluster itself. The others are somebody's adapters; without one they are not found, which
//! is said in upstream's words.

use std::fmt::Write;

use k8s_openapi::api::autoscaling::v2::{CrossVersionObjectReference, MetricIdentifier};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::plan::{Sample, Samples, millis};
use crate::runtime::worker;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

#[derive(Deserialize)]
struct List<T> {
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Deserialize)]
struct Meta {
    name: String,
}

#[derive(Deserialize)]
struct PodMetrics {
    metadata: Meta,
    timestamp: Timestamp,
    window: String,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    usage: std::collections::BTreeMap<String, Quantity>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetricValue {
    described_object: Meta,
    timestamp: Timestamp,
    window_seconds: Option<i64>,
    value: Quantity,
}

#[derive(Deserialize)]
struct ExternalValue {
    value: Quantity,
}

/// A metrics API could not be read.
enum Failure {
    /// It is not served.
    Missing,
    /// Anything else, as text.
    Other(String),
}

async fn get<T: DeserializeOwned>(client: &Client, path: &str, query: &[(&str, &str)]) -> Result<Vec<T>, Failure> {
    let mut uri = path.to_owned();
    for (i, (key, value)) in query.iter().filter(|(_, v)| !v.is_empty()).enumerate() {
        let _ = write!(uri, "{}{key}=", if i == 0 { '?' } else { '&' });
        for b in value.bytes() {
            let plain = b.is_ascii_alphanumeric() || b"-._~".contains(&b);
            let _ = if plain { write!(uri, "{}", char::from(b)) } else { write!(uri, "%{b:02X}") };
        }
    }
    let request = http::Request::get(uri).body(Vec::new()).map_err(|e| Failure::Other(e.to_string()))?;
    match client.request::<List<T>>(request).await {
        Ok(list) => Ok(list.items),
        Err(e) if worker::not_found(&e) => Err(Failure::Missing),
        Err(e) => Err(Failure::Other(worker::text(&e))),
    }
}

/// A length of time as Go prints it, in seconds.
fn seconds(text: &str) -> f64 {
    let units = [("h", 3600.0), ("ms", 1e-3), ("m", 60.0), ("µs", 1e-6), ("ns", 1e-9), ("s", 1.0)];
    let (mut rest, mut sum) = (text, 0.0);
    while let Some(end) = rest.find(|c: char| !c.is_ascii_digit() && c != '.') {
        let (number, tail) = rest.split_at(end);
        let Some((unit, size)) = units.iter().find(|(u, _)| tail.starts_with(u)) else { break };
        sum += number.parse().unwrap_or(0.0) * size;
        rest = &tail[unit.len()..];
    }
    sum
}

fn at(t: Timestamp) -> f64 {
    t.as_millisecond() as f64 / 1e3
}

/// Use of a resource by pods, or by one container of each. A pod without the number is left out.
///
/// # Errors
/// In upstream's words.
pub async fn resource(
    client: &Client,
    namespace: &str,
    selector: &str,
    resource: &str,
    container: Option<&str>,
) -> Result<Samples, String> {
    let failed = |why: &str| format!("unable to get metrics for resource {resource}: {why}");
    let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods");
    let all: Vec<PodMetrics> = get(client, &path, &[("labelSelector", selector)]).await.map_err(|e| {
        let why = match e {
            Failure::Missing => "the server could not find the requested resource (get pods.metrics.k8s.io)".to_owned(),
            Failure::Other(text) => text,
        };
        failed(&format!("unable to fetch metrics from resource metrics API: {why}"))
    })?;
    if all.is_empty() {
        return Err(failed("no metrics returned from resource metrics API"));
    }
    let one = |p: &PodMetrics| {
        let mut chosen = p.containers.iter().filter(|c| container.is_none_or(|n| n == c.name)).peekable();
        chosen.peek()?;
        let value = chosen.map(|c| c.usage.get(resource).and_then(millis)).sum::<Option<i64>>()?;
        Some((p.metadata.name.clone(), Sample { value, at: at(p.timestamp), window: seconds(&p.window) }))
    };
    Ok(all.iter().filter_map(one).collect())
}

fn custom(name: &str, e: Failure) -> String {
    let why = match e {
        Failure::Missing => "no custom metrics API (custom.metrics.k8s.io) registered".to_owned(),
        Failure::Other(text) => text,
    };
    format!("unable to get metric {name}: unable to fetch metrics from custom metrics API: {why}")
}

/// A metric of pods.
///
/// # Errors
/// In upstream's words.
pub async fn of_pods(
    client: &Client,
    namespace: &str,
    selector: &str,
    metric: &MetricIdentifier,
) -> Result<Samples, String> {
    let path = format!("/apis/custom.metrics.k8s.io/v1beta1/namespaces/{namespace}/pods/*/{}", metric.name);
    let narrowed = selector_text(metric.selector.as_ref());
    let query = [("labelSelector", selector), ("metricLabelSelector", narrowed.as_str())];
    let all: Vec<MetricValue> = get(client, &path, &query).await.map_err(|e| custom(&metric.name, e))?;
    if all.is_empty() {
        return Err(format!("unable to get metric {}: no metrics returned from custom metrics API", metric.name));
    }
    let one = |v: MetricValue| {
        let sample = Sample {
            value: millis(&v.value)?,
            at: at(v.timestamp),
            window: v.window_seconds.map_or(60.0, |n| n as f64),
        };
        Some((v.described_object.name, sample))
    };
    Ok(all.into_iter().filter_map(one).collect())
}

/// A metric of one object; `plural` is its resource with group, empty for a Namespace itself.
///
/// # Errors
/// In upstream's words.
pub async fn of_object(
    client: &Client,
    namespace: &str,
    plural: &str,
    object: &CrossVersionObjectReference,
    metric: &MetricIdentifier,
) -> Result<i64, String> {
    let base = format!("/apis/custom.metrics.k8s.io/v1beta1/namespaces/{namespace}");
    let path = match plural {
        "namespaces" => format!("{base}/metrics/{}", metric.name),
        _ => format!("{base}/{plural}/{}/{}", object.name, metric.name),
    };
    let narrowed = selector_text(metric.selector.as_ref());
    let all: Result<Vec<MetricValue>, _> = get(client, &path, &[("metricLabelSelector", narrowed.as_str())]).await;
    let all = all.map_err(|e| format!("{} on {} {namespace}/{}", custom(&metric.name, e), object.kind, object.name))?;
    let value = all.first().and_then(|v| millis(&v.value));
    value.ok_or_else(|| format!("unable to get metric {}: no metrics returned from custom metrics API", metric.name))
}

/// A metric of something outside the cluster: the sum of all its series.
///
/// # Errors
/// In upstream's words.
pub async fn external(client: &Client, namespace: &str, metric: &MetricIdentifier) -> Result<i64, String> {
    let path = format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{}", metric.name);
    let selector = selector_text(metric.selector.as_ref());
    let failed = |why: String| {
        let (name, selector) = (&metric.name, shown(metric.selector.as_ref()));
        format!("unable to get external metric {namespace}/{name}/{selector}: {why}")
    };
    let all: Result<Vec<ExternalValue>, _> = get(client, &path, &[("labelSelector", selector.as_str())]).await;
    let all = all.map_err(|e| {
        let why = match e {
            Failure::Missing => "no external metrics API (external.metrics.k8s.io) registered".to_owned(),
            Failure::Other(text) => text,
        };
        failed(format!("unable to fetch metrics from external metrics API: {why}"))
    })?;
    if all.is_empty() {
        return Err(failed("no metrics returned from external metrics API".into()));
    }
    Ok(all.iter().filter_map(|v| millis(&v.value)).sum())
}

/// A selector in the form of queries.
fn selector_text(s: Option<&LabelSelector>) -> String {
    let Some(s) = s else { return String::new() };
    let mut parts: Vec<String> = s.match_labels.iter().flatten().map(|(k, v)| format!("{k}={v}")).collect();
    for r in s.match_expressions.iter().flatten() {
        let values = r.values.iter().flatten().cloned().collect::<Vec<_>>().join(",");
        parts.push(match r.operator.as_str() {
            "In" => format!("{} in ({values})", r.key),
            "NotIn" => format!("{} notin ({values})", r.key),
            "DoesNotExist" => format!("!{}", r.key),
            _ => r.key.clone(),
        });
    }
    parts.join(",")
}

/// A selector as upstream's messages print it.
#[must_use]
pub fn shown(s: Option<&LabelSelector>) -> String {
    let Some(s) = s else { return "nil".into() };
    let labels: String = s.match_labels.iter().flatten().map(|(k, v)| format!("{k}: {v},")).collect();
    let one = |r: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement| {
        let values = r.values.iter().flatten().cloned().collect::<Vec<_>>().join(" ");
        format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", r.key, r.operator)
    };
    let more: String = s.match_expressions.iter().flatten().map(one).collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{more}}},}}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time() {
        for (text, want) in [("15s", 15.0), ("1m15.5s", 75.5), ("1h0m1s", 3601.0), ("500ms", 0.5), ("", 0.0)] {
            assert!((seconds(text) - want).abs() < 1e-9, "{text}");
        }
    }

    #[test]
    fn selectors() {
        let s: LabelSelector = serde_json::from_value(serde_json::json!({"matchLabels": {"a": "b"},
            "matchExpressions": [{"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "Exists"}]}))
        .unwrap();
        assert_eq!(selector_text(Some(&s)), "a=b,c in (d,e),f");
        assert_eq!(shown(None), "nil");
        assert!(shown(Some(&s)).starts_with("&LabelSelector{MatchLabels:map[string]string{a: b,},MatchExpr"));
    }
}
