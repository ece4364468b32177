//! exec and attach: a process's streams carried to the client over WebSocket or SPDY.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::query::Query;
use super::upgrade::{Upgrade, Wire};
use super::{Body, Server, spdy, text, websocket};
use crate::pod::spec;
use crate::pod::status::attempts;
use crate::runtime::{self, Attached, ExecConfig, InputSink, Out, OutputStream, Runtime, State};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

const WEBSOCKET_PROTOCOLS: [&str; 5] =
    ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io", "channel.k8s.io", "base64.channel.k8s.io"];
const SPDY_PROTOCOLS: [&str; 4] = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// A client must open its streams in this time.
const STREAMS_TIMEOUT: Duration = Duration::from_secs(30);
/// How long to ask for an exit code after a command's output ended.
const EXIT_TIMEOUT: Duration = Duration::from_secs(10);
const EXIT_POLL: Duration = Duration::from_millis(10);
/// A client that is told the end leaves by itself; it gets this long.
const LINGER: Duration = Duration::from_secs(2);
/// Pieces of input waiting for a slow process.
const QUEUE: usize = 32;

/// Which streams the client wants.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    fn of(query: &Query) -> Self {
        let tty = query.flag(&["tty"]);
        Self {
            stdin: query.flag(&["stdin", "input"]),
            stdout: query.flag(&["stdout", "output"]),
            // A terminal has one output.
            stderr: query.flag(&["stderr", "error"]) && !tty,
            tty,
        }
    }
}

/// What to connect the client with.
enum Target {
    Exec { id: String, command: Vec<String> },
    Attach { id: String },
}

/// Runs a command in a container.
pub(crate) async fn exec(
    server: &Arc<Server>,
    namespace: &str,
    pod: &str,
    container: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let command = query.all("command");
    if command.is_empty() {
        return text(StatusCode::BAD_REQUEST, "you must specify at least 1 command\n");
    }
    match running(server, namespace, pod, container).await {
        Ok((id, _)) => stream(server, Target::Exec { id, command }, Wanted::of(&query), request),
        Err(refusal) => refusal,
    }
}

/// Connects to a container's first process.
pub(crate) async fn attach(
    server: &Arc<Server>,
    namespace: &str,
    pod: &str,
    container: &str,
    request: Request<Incoming>,
) -> Response<Body> {
    let query = Query::parse(request.uri().query().unwrap_or_default());
    match running(server, namespace, pod, container).await {
        Ok((id, tty)) => {
            let wanted = Wanted::of(&query);
            let wanted = Wanted { tty, stderr: wanted.stderr && !tty, ..wanted };
            stream(server, Target::Attach { id }, wanted, request)
        }
        Err(refusal) => refusal,
    }
}

/// The running container of that name, and whether it has a terminal.
async fn running(
    server: &Server,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<(String, bool), Response<Body>> {
    let Some(found) = server.manager.pod(namespace, pod) else {
        return Err(text(StatusCode::NOT_FOUND, format!("pod {pod}_{namespace} not found")));
    };
    let all = spec::containers(&found);
    let tty = all.iter().find(|(_, c)| c.name == container).is_some_and(|(_, c)| c.tty.unwrap_or(false));
    let listed = server.manager.shared.runtime.list(Some(spec::uid(&found))).await;
    let listed = listed.map_err(|e| text(StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))?;
    match attempts(&listed, container).first() {
        Some(c) if c.state == State::Running => Ok((c.id.clone(), tty)),
        _ => Err(text(StatusCode::INTERNAL_SERVER_ERROR, format!("container not found ({container:?})"))),
    }
}

fn stream(server: &Arc<Server>, target: Target, wanted: Wanted, mut request: Request<Incoming>) -> Response<Body> {
    if !(wanted.stdin || wanted.stdout || wanted.stderr) {
        return text(StatusCode::BAD_REQUEST, "you must specify at least 1 of stdin, stdout, stderr\n");
    }
    let upgrade = match Upgrade::of(&mut request) {
        Ok(upgrade) => upgrade,
        Err(refusal) => return *refusal,
    };
    let wire = upgrade.wire;
    let protocol = match (wire, upgrade.offers.is_empty()) {
        (Wire::WebSocket, true) => Some(String::new()),
        (Wire::WebSocket, false) => upgrade.choose(&WEBSOCKET_PROTOCOLS),
        (Wire::Spdy, true) => Some("channel.k8s.io".into()),
        (Wire::Spdy, false) => upgrade.choose(&SPDY_PROTOCOLS),
    };
    let Some(protocol) = protocol else {
        let offers = upgrade.offers.join(",");
        return text(
            StatusCode::FORBIDDEN,
            format!("unable to upgrade: unable to negotiate protocol: client supports [{offers}]\n"),
        );
    };
    let (response, raw) = upgrade.accept(&protocol);
    let runtime = server.manager.shared.runtime.clone();
    tokio::spawn(async move {
        let Ok(raw) = raw.await.map(TokioIo::new) else { return };
        let remote = match wire {
            Wire::WebSocket => over_websocket(raw, &protocol, wanted).await,
            Wire::Spdy => over_spdy(raw, wanted).await,
        };
        let Some(mut remote) = remote else { return };
        // The structured end came with version 4.
        let structured = protocol.starts_with("v4") || protocol.starts_with("v5");
        let end = carry(&*runtime, target, wanted, &mut remote).await;
        remote.finish(&end, structured).await;
    });
    response
}

/// The client's ends.
struct Remote {
    stdin: mpsc::Receiver<Bytes>,
    resize: mpsc::Receiver<(u16, u16)>,
    output: Output,
    /// Cancelled when the client left.
    left: CancellationToken,
}

enum Output {
    WebSocket(websocket::Sender),
    Spdy { error: spdy::Writer, stdout: Option<spdy::Writer>, stderr: Option<spdy::Writer> },
}

impl Output {
    async fn write(&self, channel: u8, data: Bytes) -> io::Result<()> {
        match self {
            Self::WebSocket(sender) => sender.send(channel, &data).await,
            Self::Spdy { error, stdout, stderr } => {
                let writer = match channel {
                    STDOUT => stdout.as_ref(),
                    STDERR => stderr.as_ref(),
                    _ => Some(error),
                };
                match writer {
                    Some(writer) => writer.write(data).await,
                    None => Ok(()),
                }
            }
        }
    }
}

impl Remote {
    /// Tells the end and waits a little for the client to leave. Errors mean that it left already.
    async fn finish(self, end: &Value, structured: bool) {
        let message = match (structured, end["status"].as_str()) {
            (true, _) => end.to_string(),
            (false, Some("Success")) => String::new(),
            (false, _) => end["message"].as_str().unwrap_or_default().to_string(),
        };
        if !message.is_empty() {
            let _ = self.output.write(ERROR, message.into()).await;
        }
        match &self.output {
            Output::WebSocket(sender) => sender.close().await,
            Output::Spdy { error, stdout, stderr } => {
                for writer in stdout.iter().chain(stderr).chain([error]) {
                    let _ = writer.finish().await;
                }
            }
        }
        let _ = tokio::time::timeout(LINGER, self.left.cancelled()).await;
    }
}

async fn over_websocket(raw: super::upgrade::Raw, protocol: &str, wanted: Wanted) -> Option<Remote> {
    let (sender, mut receiver) = websocket::channels(raw, protocol).await;
    let (stdin_to, stdin) = mpsc::channel(QUEUE);
    let (resize_to, resize) = mpsc::channel(QUEUE);
    let left = CancellationToken::new();
    let leaving = left.clone().drop_guard();
    tokio::spawn(async move {
        let _leaving = leaving;
        let mut stdin_to = Some(stdin_to);
        while let Some(received) = receiver.next().await {
            match received {
                websocket::Received::Data(STDIN, data) => {
                    if let Some(to) = &stdin_to
                        && to.send(data).await.is_err()
                    {
                        stdin_to = None;
                    }
                }
                websocket::Received::Closed(STDIN) => stdin_to = None,
                websocket::Received::Data(RESIZE, data) => {
                    // A size that cannot be taken now is outdated by the next one.
                    let _ = size(&data).map(|s| resize_to.try_send(s));
                }
                _ => {}
            }
        }
    });
    // An empty message tells the client that the connection stands.
    let first = if wanted.stdout {
        STDOUT
    } else if wanted.stderr {
        STDERR
    } else {
        ERROR
    };
    sender.send(first, b"").await.ok()?;
    Some(Remote { stdin, resize, output: Output::WebSocket(sender), left })
}

async fn over_spdy(raw: super::upgrade::Raw, wanted: Wanted) -> Option<Remote> {
    let (opened, mut streams) = mpsc::channel(8);
    let left = CancellationToken::new();
    let leaving = left.clone().drop_guard();
    tokio::spawn(async move {
        let _leaving = leaving;
        if let Err(error) = spdy::run(raw, opened).await {
            tracing::debug!(%error, "exec connection ended");
        }
    });
    let (mut stdin, mut stdout, mut stderr, mut error, mut resize) = (None, None, None, None, None);
    let collect = async {
        loop {
            let complete = error.is_some()
                && (!wanted.stdin || stdin.is_some())
                && (!wanted.stdout || stdout.is_some())
                && (!wanted.stderr || stderr.is_some())
                && (!wanted.tty || resize.is_some() || !wanted.stdin);
            if complete {
                return Some(());
            }
            let stream = streams.recv().await?;
            match stream.headers.get("streamtype").map(String::as_str) {
                Some("stdin") => stdin = Some(stream),
                Some("stdout") => stdout = Some(stream),
                Some("stderr") => stderr = Some(stream),
                Some("error") => error = Some(stream),
                Some("resize") => resize = Some(stream),
                _ => drop(stream.writer.reset().await),
            }
        }
    };
    tokio::time::timeout(STREAMS_TIMEOUT, collect).await.ok()??;
    let (resize_to, sizes) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        // A resize stream may come after the others; keep taking streams so that the session goes on.
        let mut resize = resize;
        loop {
            let data = match &mut resize {
                Some(stream) => tokio::select! {
                    data = stream.incoming.recv() => data,
                    () = resize_to.closed() => return,
                },
                None => {
                    tokio::select! {
                        stream = streams.recv() => match stream {
                            Some(stream) => {
                                resize = Some(stream);
                                continue;
                            }
                            None => return,
                        },
                        () = resize_to.closed() => return,
                    }
                }
            };
            match data {
                Some(data) => drop(size(&data).map(|s| resize_to.try_send(s))),
                None => return,
            }
        }
    });
    let stdin = match stdin {
        // The writer half is dropped: nothing is ever sent back on the input.
        Some(stream) => stream.incoming,
        None => mpsc::channel(1).1,
    };
    let writer = |stream: Option<spdy::Stream>| stream.map(|s| s.writer);
    let output = Output::Spdy { error: error?.writer, stdout: writer(stdout), stderr: writer(stderr) };
    Some(Remote { stdin, resize: sizes, output, left })
}

/// A terminal size as clients send it.
fn size(data: &[u8]) -> Option<(u16, u16)> {
    let value: Value = serde_json::from_slice(data).ok()?;
    let number = |name: &str| value[name].as_u64().and_then(|n| u16::try_from(n).ok());
    Some((number("Width")?, number("Height")?))
}

/// Starts the process and carries its streams until it ends or the client leaves. Answers the end as a Status.
async fn carry(runtime: &dyn Runtime, target: Target, wanted: Wanted, remote: &mut Remote) -> Value {
    // What comes after the end is refused, so that the client's leaving is seen: the receiver goes with this call.
    let stdin = std::mem::replace(&mut remote.stdin, mpsc::channel(1).1);
    let (id, attached) = match target {
        Target::Exec { id, command } => {
            let config = ExecConfig {
                cmd: command,
                stdin: wanted.stdin,
                stdout: wanted.stdout,
                stderr: wanted.stderr,
                tty: wanted.tty,
            };
            let attached = runtime.exec(&id, &config).await;
            (id, attached)
        }
        Target::Attach { id } => {
            let attached = runtime.attach(&id, wanted.stdin, wanted.stdout, wanted.stderr || wanted.tty).await;
            (id, attached)
        }
    };
    let Attached { output, input, exec_id } = match attached {
        Ok(attached) => attached,
        Err(error) => return internal(&error.to_string()),
    };
    // All three at once: a process that does not read goes on to write and to end, and one whose output waits is still fed.
    let to_process = async {
        let fed = feed(stdin, wanted.stdin.then_some(input));
        tokio::join!(fed, adjust(runtime, &id, &exec_id, &mut remote.resize));
        std::future::pending::<()>().await;
    };
    tokio::select! {
        shown = show(output, &remote.output, wanted) => {
            if let Err(error) = shown {
                return internal(&error.to_string());
            }
        }
        () = to_process => {}
        () = remote.left.cancelled() => {}
    }
    if exec_id.is_empty() {
        return success();
    }
    let code = async {
        loop {
            match runtime.exec_exit_code(&exec_id).await {
                Ok(Some(code)) => return Ok(code),
                Ok(None) => tokio::time::sleep(EXIT_POLL).await,
                Err(error) => return Err(error.to_string()),
            }
        }
    };
    match tokio::time::timeout(EXIT_TIMEOUT, code).await {
        Ok(Ok(0)) => success(),
        Ok(Ok(code)) => json!({
            "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Ok(Err(error)) => internal(&error),
        Err(_) => internal("the command's exit code is not known"),
    }
}

/// Brings what the client sends to the process, and the end of it, where the client wanted an input.
async fn feed(mut stdin: mpsc::Receiver<Bytes>, input: Option<InputSink>) {
    // Without a wanted input its end must not be sent: the runtime would end the whole connection.
    let Some(mut sink) = input else { return };
    while let Some(data) = stdin.recv().await {
        if sink.write_all(&data).await.is_err() || sink.flush().await.is_err() {
            return;
        }
    }
    // The process may have closed its end first.
    let _ = sink.shutdown().await;
}

/// Brings what the process writes to the client until one of them ends.
async fn show(mut output: OutputStream, to: &Output, wanted: Wanted) -> runtime::Result<()> {
    while let Some(chunk) = output.next().await {
        let (out, data) = chunk?;
        let channel = if out == Out::Stderr && !wanted.tty { STDERR } else { STDOUT };
        let asked = if channel == STDOUT { wanted.stdout } else { wanted.stderr };
        if asked && to.write(channel, data).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Gives the terminal the sizes that the client's has.
async fn adjust(runtime: &dyn Runtime, id: &str, exec_id: &str, sizes: &mut mpsc::Receiver<(u16, u16)>) {
    while let Some((width, height)) = sizes.recv().await {
        let resized = if exec_id.is_empty() {
            runtime.resize(id, width, height).await
        } else {
            runtime.exec_resize(exec_id, width, height).await
        };
        if let Err(error) = resized {
            tracing::debug!(%error, "terminal not resized");
        }
    }
}

fn success() -> Value {
    json!({"metadata": {}, "status": "Success"})
}

fn internal(message: &str) -> Value {
    json!({
        "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("Internal error occurred: error executing command in container: {message}"),
        "details": {"causes": [{"message": message}]},
    })
}
