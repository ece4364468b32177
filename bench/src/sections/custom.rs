//! Whether objects of a CustomResourceDefinition cost what built-in ones cost: the same data as both, in one server.

use std::time::Duration;

use serde_json::{Value, json};

use crate::Context;
use crate::http::{Target, Version};
use crate::load::{Request, Until, closed};
use crate::process::Skiff;
use crate::report::Report;

const CUSTOM: &str = "/apis/bench.skiff.dev/v1/namespaces/default/records";
const BUILT_IN: &str = "/api/v1/namespaces/default/configmaps";
/// Longest wait for the definition to be served.
const SERVED: Duration = Duration::from_secs(10);

fn definition() -> Value {
    let text = json!({"type": "string"});
    let schema = json!({"type": "object", "properties": {"data": {"type": "object", "additionalProperties": text}}});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "records.bench.skiff.dev"},
        "spec": {"group": "bench.skiff.dev", "scope": "Namespaced", "names": {"plural": "records", "kind": "Record"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}})
}

async fn define(target: &Target) -> anyhow::Result<()> {
    let mut client = target.h1().await?;
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    client.call("POST", path, definition().to_string().as_bytes()).await?.success()?;
    let served = async {
        while client.call("GET", CUSTOM, b"").await?.code != 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(SERVED, served).await?
}

pub(crate) async fn run(cx: &Context, report: &mut Report) -> anyhow::Result<()> {
    let objects = cx.scaled(10_000);
    let skiff = Skiff::start(&cx.skiff, cx.data("custom"), false).await?;
    let target = super::through_rbac(&skiff).await?;
    define(&target).await?;
    let mut rates = vec![];
    for (path, api, kind) in [(BUILT_IN, "v1", "ConfigMap"), (CUSTOM, "bench.skiff.dev/v1", "Record")] {
        let make = move |n: u64| {
            let body = json!({"apiVersion": api, "kind": kind, "metadata": {"name": format!("o-{n:07}")},
                "data": {"value": "x".repeat(1000)}});
            Request { method: "POST", path: path.to_owned(), body: body.to_string().into_bytes() }
        };
        rates.push(closed(&target, Version::H1, 16, Until::Count(objects), make).await?.rate());
    }
    let (built_in, custom) = (rates[0], rates[1]);
    report.row(
        "creates of custom objects of 1 KB, 16 clients",
        "-",
        format!("{custom:.0}/s"),
        format!("the same as ConfigMaps: {built_in:.0}/s"),
    );
    for (what, query) in [("all", ""), ("one by name", "?fieldSelector=metadata.name%3Do-0000007")] {
        let mut both = vec![];
        // By turns, so that what else the machine does meets both.
        for path in [BUILT_IN, CUSTOM, BUILT_IN, CUSTOM] {
            let make = move |_| Request::get(format!("{path}{query}"));
            both.push(closed(&target, cx.version, 2, Until::Time(cx.time / 4, u64::MAX), make).await?);
        }
        let mut halves = both.into_iter();
        let (mut built_in, mut custom) = (halves.next().unwrap_or_default(), halves.next().unwrap_or_default());
        for (of, more) in [&mut built_in, &mut custom].into_iter().zip(halves) {
            of.times.join(more.times);
            of.took += more.took;
        }
        let ratio = custom.rate() / built_in.rate();
        report.row(
            format!("LIST of {what} of {objects} custom objects of 1 KB, 2 clients"),
            "as fast as built-in ones",
            format!("{:.1}/s, {}: {ratio:.2} times as many", custom.rate(), custom.times.summary()),
            format!("ConfigMaps: {:.1}/s, {}", built_in.rate(), built_in.times.summary()),
        );
    }
    skiff.process.stop().await
}
