//! Calling a function by hand.

use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Method, Request};
use http_body_util::BodyExt as _;
use kube::client::Body;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::Value;

use super::Session;
use crate::api::{CallState, FunctionCall};

/// What a URL's path cannot have as it is.
const PATH: &AsciiSet =
    &CONTROLS.add(b' ').add(b'"').add(b'#').add(b'<').add(b'>').add(b'`').add(b'{').add(b'}').add(b'%');
/// Longest text of an error that is read.
const ERROR_MAX: usize = 64 * 1024;

/// What is called, and with what.
#[derive(Clone, Debug, Args)]
pub(super) struct CallArgs {
    /// The function.
    name: String,
    /// Body of the request; `@FILE` is a file's content, `-` standard input.
    #[arg(short, long, conflicts_with = "file")]
    data: Option<String>,
    /// File that is the body; `-` is standard input.
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// A header, as in 'accept: text/plain'. Several times.
    #[arg(short = 'H', long = "header")]
    headers: Vec<String>,
    /// Method. Default: POST.
    #[arg(short = 'X', long = "request")]
    method: Option<Method>,
    /// Path and query behind the function's name.
    #[arg(long, default_value = "")]
    path: String,
    /// Tag of the revision to call.
    #[arg(long)]
    tag: Option<String>,
    /// Print status and headers of the answer too.
    #[arg(short, long)]
    include: bool,
    /// Do not wait for the answer: print the name of the call.
    #[arg(long = "async")]
    asynchronous: bool,
    /// With --async: wait for the end and print the result.
    #[arg(long, requires = "asynchronous")]
    wait: bool,
    /// Seconds to wait for the answer.
    #[arg(long, default_value_t = 3610)]
    timeout: u64,
}

/// A call that was accepted.
#[derive(Clone, Debug, Args)]
pub(super) struct ResultArgs {
    /// Its name, as `--async` printed it.
    id: String,
    /// Wait for its end.
    #[arg(long)]
    wait: bool,
    /// Print status and headers too.
    #[arg(short, long)]
    include: bool,
    /// Seconds to wait.
    #[arg(long, default_value_t = 3610)]
    timeout: u64,
}

pub(super) async fn call(session: &Session, args: CallArgs) -> anyhow::Result<()> {
    let patience = Duration::from_secs(args.timeout);
    let request = request(&session.namespace, &args)?;
    let gateway = session.gateway().await?;
    let sent = tokio::time::timeout(patience, gateway.send(request)).await;
    let answer = sent.with_context(|| format!("no answer within {} s", args.timeout))?.map_err(unreached)?;
    let (head, mut body) = answer.into_parts();
    if args.asynchronous && head.status == http::StatusCode::ACCEPTED {
        let location = head.headers.get(http::header::LOCATION).and_then(|l| l.to_str().ok()).unwrap_or_default();
        let id =
            location.rsplit('/').next().filter(|id| !id.is_empty()).context("the gateway did not name the call")?;
        if !args.wait {
            println!("functioncall.skiff.dev/{id} accepted");
            return Ok(());
        }
        return finished(session, id, patience, args.include).await;
    }
    if args.include {
        let lines = head.headers.iter().map(|(n, v)| format!("{n}: {}\n", String::from_utf8_lossy(v.as_bytes())));
        print!("{:?} {}\n{}\n", head.version, head.status, lines.collect::<String>());
    }
    if !head.status.is_success() && !head.status.is_redirection() {
        let mut text = vec![];
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                text.extend_from_slice(&data);
            }
            if text.len() > ERROR_MAX {
                break;
            }
        }
        bail!("{}", failure(head.status, &text));
    }
    let mut out = std::io::stdout();
    let mut last = b'\n';
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.context("the answer broke off")?.into_data() else { continue };
        last = data.last().copied().unwrap_or(last);
        out.write_all(&data)?;
        out.flush()?;
    }
    if last != b'\n' {
        out.write_all(b"\n")?;
    }
    Ok(())
}

pub(super) async fn result(session: &Session, args: ResultArgs) -> anyhow::Result<()> {
    if args.wait {
        return finished(session, &args.id, Duration::from_secs(args.timeout), args.include).await;
    }
    print(&args.id, &session.api::<FunctionCall>().get(&args.id).await?, args.include)
}

/// Waits for the end of a call and prints its result.
async fn finished(session: &Session, id: &str, patience: Duration, include: bool) -> anyhow::Result<()> {
    let api = session.api::<FunctionCall>();
    // Asked first, so that an unknown name is told at once.
    api.get(id).await?;
    let ended = |c: Option<&FunctionCall>| c.is_none_or(|c| is_over(state(c)));
    let waited = tokio::time::timeout(patience, skiff_client::wait_for(api, id, ended)).await;
    let call = waited.with_context(|| format!("call {id} did not end within {} s", patience.as_secs()))??;
    print(id, &call.with_context(|| format!("call {id} is forgotten"))?, include)
}

fn state(call: &FunctionCall) -> CallState {
    call.status.as_ref().map(|s| s.state).unwrap_or_default()
}

fn is_over(state: CallState) -> bool {
    matches!(state, CallState::Succeeded | CallState::Failed)
}

fn print(id: &str, call: &FunctionCall, include: bool) -> anyhow::Result<()> {
    let status = call.status.clone().unwrap_or_default();
    if !is_over(status.state) {
        let why = status.message.map(|m| format!(": {m}")).unwrap_or_default();
        bail!("call {id} is {:?} after {} tries{why}", status.state, status.attempts);
    }
    if include {
        let lines = status.headers.iter().map(|(n, v)| format!("{n}: {v}\n"));
        print!("{}\n{}\n", status.code.unwrap_or_default(), lines.collect::<String>());
    }
    let mut body = status.body.map(|b| STANDARD.decode(b)).transpose()?.unwrap_or_default();
    if status.state == CallState::Failed {
        let text = String::from_utf8_lossy(&body);
        bail!("call {id} failed: {}\n{text}", status.message.unwrap_or_default());
    }
    if body.last().is_some_and(|b| *b != b'\n') {
        body.push(b'\n');
    }
    std::io::stdout().write_all(&body)?;
    Ok(())
}

fn request(namespace: &str, args: &CallArgs) -> anyhow::Result<Request<Body>> {
    let body = body(args)?;
    let door = if args.asynchronous { "async" } else { "function" };
    let (path, query) = args.path.split_once('?').map_or((args.path.as_str(), None), |(p, q)| (p, Some(q)));
    let mut uri = format!("/{door}/{}/{}", utf8_percent_encode(namespace, PATH), utf8_percent_encode(&args.name, PATH));
    if !path.is_empty() {
        uri.push('/');
        uri.extend(utf8_percent_encode(path.trim_start_matches('/'), PATH));
    }
    if let Some(query) = query {
        uri.push('?');
        uri.push_str(&query.replace(' ', "%20"));
    }
    let mut request = Request::builder().method(args.method.clone().unwrap_or(Method::POST)).uri(uri);
    let mut typed = false;
    for header in &args.headers {
        let (name, value) =
            header.split_once(':').with_context(|| format!("{header:?} is no header: write it as 'name: value'"))?;
        let name: HeaderName = name.trim().parse().with_context(|| format!("{name:?} is no name of a header"))?;
        let value: HeaderValue = value.trim().parse().with_context(|| format!("the value of {name} cannot be sent"))?;
        typed |= name == CONTENT_TYPE;
        request = request.header(name, value);
    }
    if let Some(tag) = &args.tag {
        request = request.header("skiff-tag", tag);
    }
    if let Some(body) = &body
        && !typed
    {
        let json = serde_json::from_slice::<serde::de::IgnoredAny>(body).is_ok();
        let text =
            if std::str::from_utf8(body).is_ok() { "text/plain; charset=utf-8" } else { "application/octet-stream" };
        // What was typed after -d is meant as JSON: the function says what is wrong with it.
        request = request.header(CONTENT_TYPE, if json || args.data.is_some() { "application/json" } else { text });
    }
    Ok(request.body(Body::from(body.unwrap_or_default()))?)
}

fn body(args: &CallArgs) -> anyhow::Result<Option<Vec<u8>>> {
    let file = match (&args.file, args.data.as_deref()) {
        (Some(file), _) => Some(file.clone()),
        (None, Some("-")) => Some("-".into()),
        (None, Some(data)) => match data.strip_prefix('@') {
            Some(file) => Some(file.into()),
            None => return Ok(Some(data.as_bytes().to_vec())),
        },
        (None, None) => None,
    };
    let Some(file) = file else { return Ok(None) };
    let mut bytes = vec![];
    if file.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
    } else {
        bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    Ok(Some(bytes))
}

fn unreached(e: kube::Error) -> anyhow::Error {
    anyhow::Error::new(e).context("the gateway of functions cannot be reached")
}

/// An answer that is no success, in a line: what the function or gateway said of it.
fn failure(status: http::StatusCode, body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &json["error"];
    let code = error["code"].as_str().unwrap_or_else(|| status.canonical_reason().unwrap_or("error"));
    let id = error["requestId"].as_str().map(|id| format!(" (request {id})")).unwrap_or_default();
    let message = match (error["message"].as_str(), error.as_str()) {
        (Some(m), _) | (None, Some(m)) => m.to_owned(),
        (None, None) => String::from_utf8_lossy(body).trim().to_owned(),
    };
    format!("{} {code}: {message}{id}", status.as_u16())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Typed {
        #[command(flatten)]
        call: CallArgs,
    }

    fn typed(words: &[&str]) -> Request<Body> {
        let all = std::iter::once("x").chain(words.iter().copied());
        request("shop", &Typed::try_parse_from(all).unwrap().call).unwrap()
    }

    #[test]
    fn requests_are_as_typed() {
        let r = typed(&["add", "-d", r#"{"x":100}"#]);
        assert_eq!((r.method(), r.uri().to_string().as_str()), (&Method::POST, "/function/shop/add"));
        assert_eq!(r.headers()[CONTENT_TYPE], "application/json");
        let r = typed(&["add", "--path", "/a b?q=1", "-X", "GET", "-H", "accept: text/plain", "--tag", "new"]);
        assert_eq!((r.method(), r.uri().to_string().as_str()), (&Method::GET, "/function/shop/add/a%20b?q=1"));
        assert_eq!(
            (&r.headers()["accept"], &r.headers()["skiff-tag"]),
            (&"text/plain".parse().unwrap(), &"new".parse().unwrap())
        );
        assert!(r.headers().get(CONTENT_TYPE).is_none(), "without a body there is no type");
        let r = typed(&["add", "--async", "-d", "x", "-H", "content-type: text/csv"]);
        assert_eq!(
            (r.uri().to_string().as_str(), &r.headers()[CONTENT_TYPE]),
            ("/async/shop/add", &"text/csv".parse().unwrap())
        );
    }

    #[test]
    fn failures_are_told() {
        let bad = http::StatusCode::INTERNAL_SERVER_ERROR;
        let cases: [(&[u8], &str); 3] = [
            (
                br#"{"error":{"code":"FunctionError","message":"no x","requestId":"7"}}"#,
                "500 FunctionError: no x (request 7)",
            ),
            (br#"{"error":"plain"}"#, "500 Internal Server Error: plain"),
            (b"oh no\n", "500 Internal Server Error: oh no"),
        ];
        for (body, text) in cases {
            assert_eq!(failure(bad, body), text);
        }
    }
}
