//! Playing one scenario.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Value, json};
use skiff_apiserver::Server;
use skiff_apiserver::auth::User;
use skiff_apiserver::chain::{self, Peer};

use crate::normal::{Vars, decode, differs, drop_path, fill, normal, pick};

/// What is escaped in paths: everything but what the recorder left as it was.
const ESCAPED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'<')
    .add(b'>')
    .add(b'[')
    .add(b']')
    .add(b'\\')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}')
    .add(b'%');

struct Answer {
    status: u16,
    kind: String,
    warnings: Vec<String>,
    body: Bytes,
}

async fn call(
    server: &Server,
    method: &str,
    path: &str,
    headers: &[(String, Option<String>)],
    body: Option<String>,
) -> Answer {
    let mut request = http::Request::builder().method(method).uri(path);
    let mut all: Vec<(String, Option<String>)> =
        vec![("user-agent".into(), Some("vectors/1".into())), ("accept".into(), Some("application/json".into()))];
    for (k, v) in headers {
        let k = k.to_lowercase();
        all.retain(|(n, _)| *n != k);
        all.push((k, v.clone()));
    }
    // Credentials in the headers, even none, take the place of the client certificate.
    let own = all.iter().any(|(k, _)| k == "authorization");
    for (k, v) in &all {
        if let Some(v) = v {
            request = request.header(k, v);
        }
    }
    if !own {
        request = request.extension(Peer(User::new("kubernetes-admin", &["system:masters"])));
    }
    let request =
        request.body(Full::new(Bytes::from(body.unwrap_or_default()))).expect("a recorded request is well-formed");
    let response = chain::handle(server.inner().clone(), request).await;
    let (parts, body) = response.into_parts();
    let status = parts.status.as_u16();
    let kind = parts.headers.get("content-type").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let warnings = parts.headers.get_all("warning").iter().filter_map(|v| v.to_str().ok().map(str::to_owned)).collect();
    let mut data = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    if method == "HEAD" {
        data = Bytes::new();
    }
    Answer { status, kind, warnings, body: data }
}

/// The JSON bodies of a scenario as the recorder sent them: members in the order of the file, a space after `,` and `:`.
pub(crate) fn bodies(text: &[u8]) -> Vec<Option<String>> {
    #[derive(serde::Deserialize)]
    struct Request<'a> {
        #[serde(borrow, default)]
        body: Option<&'a serde_json::value::RawValue>,
    }
    #[derive(serde::Deserialize)]
    struct Step<'a> {
        #[serde(borrow)]
        request: Request<'a>,
    }
    #[derive(serde::Deserialize)]
    struct Scenario<'a> {
        #[serde(borrow)]
        steps: Vec<Step<'a>>,
    }
    let scenario: Scenario<'_> = serde_json::from_slice(text).expect("a scenario has steps");
    scenario.steps.iter().map(|s| s.request.body.map(|b| spaced(b.get()))).collect()
}

fn spaced(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let (mut inside, mut escaped) = (false, false);
    for c in json.chars() {
        if inside {
            out.push(c);
            (inside, escaped) = (escaped || c != '"', !escaped && c == '\\');
            continue;
        }
        match c {
            '"' => inside = true,
            c if c.is_whitespace() => continue,
            _ => {}
        }
        out.push(c);
        if matches!(c, ',' | ':') {
            out.push(' ');
        }
    }
    out
}

/// Plays a scenario; answers its first difference, or none.
pub(crate) async fn scenario(server: &Server, scenario: &Value, bodies: &[Option<String>]) -> Option<String> {
    let id = format!("x{}", &uuid::Uuid::new_v4().simple().to_string()[..7]);
    let mut vars = Vars::from([("ns".to_owned(), format!("v-{id}")), ("id".to_owned(), id)]);
    let ns = vars["ns"].clone();
    let json_type = [("content-type".to_owned(), Some("application/json".to_owned()))];
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": ns}}).to_string();
    call(server, "POST", "/api/v1/namespaces", &json_type, Some(namespace)).await;
    // No controllers run here: the account every namespace has is made by hand.
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}).to_string();
    call(server, "POST", &format!("/api/v1/namespaces/{ns}/serviceaccounts"), &json_type, Some(account)).await;
    let mut difference = None;
    for (i, step) in scenario["steps"].as_array().into_iter().flatten().enumerate() {
        let body = bodies.get(i).cloned().flatten();
        let d = play_step(server, &step["request"], body, &step["expect"], &mut vars).await;
        if let Some(d) = d
            && difference.is_none()
        {
            let r = &step["request"];
            difference = Some(format!("step {i} {} {}: {d}", r["method"].as_str()?, r["path"].as_str()?));
        }
    }
    call(server, "DELETE", &format!("/api/v1/namespaces/{ns}"), &[], None).await;
    difference
}

async fn play_step(
    server: &Server,
    request: &Value,
    body: Option<String>,
    expect: &Value,
    vars: &mut Vars,
) -> Option<String> {
    if let Some(wait) = request["wait"].as_f64() {
        // Recorded pauses let a watch or a clock move on; they are part of the scenario.
        tokio::time::sleep(Duration::from_secs_f64(wait)).await;
    }
    let body = match &request["body"] {
        Value::Null if request.get("body").is_none() => None,
        Value::String(s) => Some(fill(&Value::String(s.clone()), vars).as_str().unwrap_or_default().to_owned()),
        Value::Null => None,
        _ => body.map(|b| fill(&b.into(), vars).as_str().unwrap_or_default().to_owned()),
    };
    let mut headers: Vec<(String, Option<String>)> = request["headers"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.clone(), fill(v, vars).as_str().map(str::to_owned)))
        .collect();
    if body.is_some() && !headers.iter().any(|(k, _)| k.eq_ignore_ascii_case("content-type")) {
        headers.push(("Content-Type".into(), Some("application/json".into())));
    }
    let path = fill(&request["path"], vars).as_str().unwrap_or_default().to_owned();
    // Escapes that are in the recording already stay.
    let path = utf8_percent_encode(&path, ESCAPED).to_string().replace("%25", "%");
    let method = request["method"].as_str().unwrap_or("GET");
    let end = Instant::now() + Duration::from_secs(10);
    let answer = loop {
        let a = call(server, method, &path, &headers, body.clone()).await;
        match request["until"].as_u64() {
            Some(code) if u64::from(a.status) != code && Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            _ => break a,
        }
    };
    let value = decode(&answer.kind, &answer.body);
    for (name, path) in request["save"].as_object().into_iter().flatten() {
        let found = pick(&value, path.as_str().unwrap_or_default());
        let text = match found {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(s)) => s.clone(),
            Some(v) => v.to_string(),
        };
        vars.insert(name.clone(), text);
    }
    let sent = format!("{path}{}", body.unwrap_or_default());
    let mut got = normal(&value, vars, &sent, "");
    for p in request["ignore"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        drop_path(&mut got, p);
    }
    let mut out =
        json!({"status": answer.status, "type": answer.kind.split(';').next().unwrap_or_default(), "body": got});
    let mut warnings: Vec<String> = answer
        .warnings
        .iter()
        .map(|w| w.strip_prefix("299 - \"").and_then(|w| w.strip_suffix('"')).unwrap_or(w).to_owned())
        .collect();
    warnings.sort();
    if !warnings.is_empty() {
        out["warnings"] = warnings.into_iter().map(|w| normal(&w.into(), vars, "", "")).collect();
    }
    differs(expect, &out, "")
}
