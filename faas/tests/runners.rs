//! The runner programs as real processes: what callers get for code of every kind, good and bad.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use skiff_faas::runtime::{NODE_RUNNER, PYTHON_RUNNER};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// One request, and what must come.
struct Case {
    /// File name and content of the code.
    code: (&'static str, &'static str),
    handler: &'static str,
    /// Method, target and content type, then the body.
    head: (&'static str, &'static str),
    body: &'static [u8],
    status: u16,
    /// Parts that the answer's head and body must have.
    has: &'static [&'static str],
}

const fn case(
    code: (&'static str, &'static str),
    head: (&'static str, &'static str),
    body: &'static [u8],
    status: u16,
    has: &'static [&'static str],
) -> Case {
    Case { code, handler: "", head, body, status, has }
}

const POST: (&str, &str) = ("POST /", "application/json");
const CURL: (&str, &str) = ("POST /", "application/x-www-form-urlencoded");
const GET: (&str, &str) = ("GET /a%20b?x=100&y=1&y=2", "");

struct Runner {
    child: Child,
    dir: tempfile::TempDir,
}

async fn runner(case: &Case, timeout: &str) -> Runner {
    let dir = tempfile::tempdir().unwrap();
    let code = dir.path().join("code");
    std::fs::create_dir(&code).unwrap();
    std::fs::write(code.join(case.code.0), case.code.1).unwrap();
    let python = case.code.0.ends_with(".py");
    let (program, file, text) =
        if python { ("python3", "runner.py", PYTHON_RUNNER) } else { ("node", "runner.js", NODE_RUNNER) };
    std::fs::write(dir.path().join(file), text).unwrap();
    let socket = dir.path().join("s");
    let child = Command::new(program)
        .arg(dir.path().join(file))
        .env("SKIFF_SOCKET", &socket)
        .env("SKIFF_CODE", &code)
        .env("SKIFF_HANDLER", case.handler)
        .env("SKIFF_TIMEOUT_SECONDS", timeout)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let runner = Runner { child, dir };
    let up = async {
        while UnixStream::connect(&socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), up).await.unwrap();
    runner
}

/// Sends bytes, reads to the end of the connection.
async fn exchange(dir: &Path, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(dir.join("s")).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(head: (&str, &str), body: &[u8]) -> Vec<u8> {
    let kind = if head.1.is_empty() { String::new() } else { format!("Content-Type: {}\r\n", head.1) };
    let head = format!(
        "{} HTTP/1.1\r\nHost: f\r\nX-Request-Id: r-1\r\n{kind}Content-Length: {}\r\nConnection: close\r\n\r\n",
        head.0,
        body.len()
    );
    [head.as_bytes(), body].concat()
}

async fn check(cases: &[Case]) {
    for case in cases {
        let runner = runner(case, "20").await;
        let answer = exchange(runner.dir.path(), &request(case.head, case.body)).await;
        let name = format!("{}\n{}\n-> {answer}", case.code.1, String::from_utf8_lossy(case.body));
        assert!(answer.starts_with(&format!("HTTP/1.1 {} ", case.status)), "{name}");
        let small = answer.to_lowercase();
        for part in case.has {
            assert!(small.contains(&part.to_lowercase()), "{part:?} is missing: {name}");
        }
    }
}

const ADD: (&str, &str) = ("main.py", "def main(params):\n    return {'x': params['x'] + 5}\n");

#[tokio::test]
async fn python_answers() {
    const ECHO: (&str, &str) = ("main.py", "def main(params):\n    return params\n");
    const HTTP: (&str, &str) = (
        "main.py",
        "import skiff\ndef http(request):\n    assert skiff.request() is request\n    return skiff.Response([request.method, request.path, request.query, request.id, request.text], 201, {'X-A': 'b'})\n",
    );
    const WSGI: (&str, &str) = (
        "app.py",
        "def app(environ, start_response):\n    start_response('202 Accepted', [('Content-Type', 'text/x')])\n    return [environ['PATH_INFO'].encode(), environ['wsgi.input'].read()]\n",
    );
    const ASGI: (&str, &str) = (
        "app.py",
        "async def app(scope, receive, send):\n    if scope['type'] == 'lifespan':\n        await receive()\n        await send({'type': 'lifespan.startup.complete'})\n        return\n    body = (await receive())['body']\n    await send({'type': 'http.response.start', 'status': 207, 'headers': [(b'x-p', scope['path'].encode())]})\n    await send({'type': 'http.response.body', 'body': body, 'more_body': True})\n    await send({'type': 'http.response.body', 'body': b'!'})\n",
    );
    check(&[
        case(ADD, POST, b"{\"x\": 100}", 200, &["{\"x\": 105}", "content-type: application/json"]),
        case(ADD, CURL, b"{\"x\": 100}", 200, &["{\"x\": 105}"]),
        case(ECHO, CURL, b"x=1&y=a+b", 200, &["{\"x\": \"1\", \"y\": \"a b\"}"]),
        case(ECHO, GET, b"", 200, &["{\"x\": \"100\", \"y\": [\"1\", \"2\"]}"]),
        case(ECHO, ("POST /", ""), b"", 200, &["\r\n\r\n{}"]),
        case(ECHO, POST, b"[1,2]", 200, &["[1, 2]"]),
        case(HTTP, GET, b"hi", 201, &["x-a: b", "\"/a b\"", "\"r-1\"", "\"hi\""]),
        case(WSGI, ("PUT /p", "text/y"), b"in", 202, &["text/x", "/pin"]),
        case(ASGI, ("PUT /p", "text/y"), b"in", 207, &["x-p: /p", "2\r\nin\r\n1\r\n!\r\n0\r\n\r\n"]),
        case(
            ("main.py", "def main(p):\n    return (418, {'X-T': 'pot'}, 'short')\n"),
            POST,
            b"",
            418,
            &["x-t: pot", "short"],
        ),
        case(
            ("main.py", "def main(p):\n    return b'\\x00\\x01'\n"),
            POST,
            b"",
            200,
            &["octet-stream", "content-length: 2"],
        ),
        case(
            ("main.py", "async def main(p):\n    import asyncio\n    await asyncio.sleep(0)\n    return 'späte'\n"),
            POST,
            b"",
            200,
            &["späte", "text/plain"],
        ),
        case(
            ("main.py", "def main(p):\n    yield 'a'\n    yield {'b': 1}\n"),
            POST,
            b"",
            200,
            &["chunked", "1\r\na\r\n9\r\n{\"b\": 1}\n\r\n0\r\n\r\n"],
        ),
        case(("main.py", "def main():\n    return 7\n"), POST, b"", 200, &["\r\n\r\n7"]),
        case(
            ("main.py", "def main(p, context):\n    return context.headers['x-request-id']\n"),
            POST,
            b"",
            200,
            &["r-1"],
        ),
        // The predecessors' layouts.
        case(("func.py", "def run(x, y=2):\n    return x * y\n"), POST, b"{\"x\": 21, \"y\": 2}", 200, &["42"]),
        case(
            ("func.py", "def run(**params):\n    return sum(params.values())\n"),
            POST,
            b"{\"x\": 1, \"y\": 2}",
            200,
            &["\r\n\r\n3"],
        ),
        case(
            ("handler.py", "def handler(args):\n    return args['n'] - 1\n"),
            POST,
            b"{\"n\": 1}",
            200,
            &["\r\n\r\n0"],
        ),
        Case {
            handler: "lib.twice",
            ..case(("lib.py", "def twice(p):\n    return 2 * p['x']\n"), POST, b"{\"x\": 4}", 200, &["\r\n\r\n8"])
        },
    ])
    .await;
}

#[tokio::test]
async fn python_says_what_is_wrong() {
    check(&[
        case(
            ADD,
            POST,
            b"{\"y\": 1}",
            500,
            &["\"code\": \"FunctionError\"", "KeyError: 'x'", "\"requestId\": \"r-1\""],
        ),
        case(ADD, POST, b"{\"y\":", 400, &["InvalidJson"]),
        case(("main.py", "def main(p):\n    return {'a': object()}\n"), POST, b"", 500, &["cannot be written as JSON"]),
        case(("main.py", "def main(p):\n    return float('nan')\n"), POST, b"", 500, &["cannot be written as JSON"]),
        case(("main.py", "import sys\ndef main(p):\n    sys.exit(3)\n"), POST, b"", 500, &["SystemExit: 3"]),
        case(("main.py", "def main(p):\n    raise ValueError\n    yield\n"), POST, b"", 500, &["ValueError"]),
        case(("main.py", "def main(p):\n    return (200, {'a': 'b\\r\\nc'}, '')\n"), POST, b"", 500, &["line break"]),
        case(
            ("func.py", "def run(x, z):\n    return x\n"),
            POST,
            b"{\"x\": 1}",
            400,
            &["missing a required argument: 'z'"],
        ),
        case(
            ("main.py", "def main(p)\n    return 1\n"),
            ("GET /_skiff/ready", ""),
            b"",
            500,
            &["SyntaxError", "\"log\"", "main.py"],
        ),
        case(
            ("main.py", "import nothing_of_that_name\n"),
            ("GET /_skiff/ready", ""),
            b"",
            500,
            &["nothing_of_that_name"],
        ),
        case(("main.py", "x = 1\n"), ("GET /_skiff/ready", ""), b"", 500, &["a function main is expected"]),
        case(("main.py", "x = 1\n"), POST, b"", 503, &["NotReady", "a function main is expected"]),
        Case { handler: "no.such", ..case(ADD, ("GET /_skiff/ready", ""), b"", 500, &["there is no file no.py"]) },
        case(ADD, ("GET /_skiff/ready", ""), b"", 200, &[]),
        case(ADD, ("GET", ""), b"", 400, &["not an HTTP/1.1 request"]),
    ])
    .await;
}

#[tokio::test]
async fn node_answers() {
    const ADD: (&str, &str) = ("main.js", "exports.main = (params) => ({ x: params.x + 5 });\n");
    const ECHO: (&str, &str) = ("main.mjs", "export default (params) => params;\n");
    const HTTP: (&str, &str) =
        ("main.js", "module.exports = (req, res) => { res.statusCode = 207; res.end(req.method + req.url); };\n");
    const REQUEST: (&str, &str) =
        ("main.js", "exports.http = (request) => [201, { 'X-A': 'b' }, [request.path, request.id, request.text]];\n");
    check(&[
        case(ADD, POST, b"{\"x\": 100}", 200, &["{\"x\":105}", "content-type: application/json"]),
        case(ADD, CURL, b"{\"x\": 100}", 200, &["{\"x\":105}"]),
        case(ECHO, CURL, b"x=1&y=a+b", 200, &["{\"x\":\"1\",\"y\":\"a b\"}"]),
        case(ECHO, GET, b"", 200, &["{\"x\":\"100\",\"y\":[\"1\",\"2\"]}"]),
        case(HTTP, ("PUT /p", "text/y"), b"in", 207, &["PUT/p"]),
        case(REQUEST, GET, b"hi", 201, &["x-a: b", "[\"/a b\",\"r-1\",\"hi\"]"]),
        case(
            ("main.js", "exports.main = async () => { await null; return Buffer.from([0, 1]); };\n"),
            POST,
            b"",
            200,
            &["octet-stream", "content-length: 2"],
        ),
        case(
            ("main.js", "exports.main = function* () { yield 'a'; yield { b: 1 }; };\n"),
            POST,
            b"",
            200,
            &["chunked", "1\r\na\r\n8\r\n{\"b\":1}\n\r\n0\r\n\r\n"],
        ),
        Case {
            handler: "lib.twice",
            ..case(("lib.js", "exports.twice = ({ x }) => 2 * x;\n"), POST, b"{\"x\": 4}", 200, &["\r\n\r\n8"])
        },
    ])
    .await;
}

#[tokio::test]
async fn node_says_what_is_wrong() {
    const BAD: (&str, &str) = ("main.js", "exports.main = (params) => params.a.b;\n");
    check(&[
        case(BAD, POST, b"{}", 500, &["\"code\":\"FunctionError\"", "TypeError", "\"requestId\":\"r-1\""]),
        case(BAD, POST, b"{\"y\":", 400, &["InvalidJson"]),
        case(
            ("main.js", "exports.main = () => { const a = {}; a.a = a; return a; };\n"),
            POST,
            b"",
            500,
            &["cannot be written as JSON"],
        ),
        case(("main.js", "exports.main = async () => { throw 'text'; };\n"), POST, b"", 500, &["\"text\""]),
        case(
            ("main.js", "exports.main = (p => ;\n"),
            ("GET /_skiff/ready", ""),
            b"",
            500,
            &["SyntaxError", "\"log\"", "main.js"],
        ),
        case(
            ("main.js", "exports.other = 1;\n"),
            ("GET /_skiff/ready", ""),
            b"",
            500,
            &["a function main is expected"],
        ),
        case(("main.js", "exports.other = 1;\n"), POST, b"", 503, &["NotReady"]),
        case(BAD, ("GET /_skiff/ready", ""), b"", 200, &[]),
    ])
    .await;
}

/// An endless loop is interrupted and the instance goes on; one that cannot be interrupted ends it. Both callers are told.
#[tokio::test]
async fn calls_end_in_time() {
    let code = "import time\ndef main(p):\n    while p.get('loop'):\n        pass\n    if p.get('hold'):\n        try:\n            while True:\n                time.sleep(0.01)\n        except BaseException:\n            while True:\n                time.sleep(0.01)\n    return 'well'\n";
    let case = case(("main.py", code), POST, b"", 200, &[]);
    let mut runner = runner(&case, "0.3").await;
    let dir = runner.dir.path().to_owned();
    let answer = exchange(&dir, &request(POST, b"{\"loop\": 1}")).await;
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("did not answer within 0.3 s"), "{answer}");
    assert!(exchange(&dir, &request(POST, b"{}")).await.ends_with("well"));
    let answer = exchange(&dir, &request(POST, b"{\"hold\": 1}")).await;
    assert!(answer.starts_with("HTTP/1.1 504 ") && answer.contains("cannot be interrupted"), "{answer}");
    assert_eq!(runner.child.wait().await.unwrap().code(), Some(124));
}

/// One connection carries one request after the other, also with chunked bodies; a signal ends the process without a loss.
#[tokio::test]
async fn connections_stay_and_processes_end_well() {
    for (code, slow) in [
        (
            ADD,
            (
                "main.py",
                "import time\ndef main(p):\n    print('begun', flush=True)\n    time.sleep(0.3)\n    return 'done'\n",
            ),
        ),
        (
            ("main.js", "exports.main = (params) => ({ x: params.x + 5 });\n"),
            (
                "main.js",
                "exports.main = () => { console.log('begun'); return new Promise((r) => setTimeout(() => r('done'), 300)); };\n",
            ),
        ),
    ] {
        let runner_ = runner(&case(code, POST, b"", 200, &[]), "20").await;
        let one =
            b"POST / HTTP/1.1\r\nHost: f\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n{\"x\"\r\n3\r\n:1}\r\n0\r\n\r\n"
                .to_vec();
        let answer = exchange(runner_.dir.path(), &[one, request(POST, b"{\"x\": 2}")].concat()).await;
        assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");

        let mut runner_ = runner(&case(slow, POST, b"", 200, &[]), "20").await;
        let mut out = runner_.child.stdout.take().unwrap();
        let dir = runner_.dir.path().to_owned();
        let call = tokio::spawn(async move { exchange(&dir, &request(POST, b"{}")).await });
        let mut seen = [0; 5];
        tokio::time::timeout(Duration::from_secs(10), out.read_exact(&mut seen)).await.unwrap().unwrap();
        let id = i32::try_from(runner_.child.id().unwrap()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(call.await.unwrap().ends_with("done"));
        let status = tokio::time::timeout(Duration::from_secs(10), runner_.child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0));
    }
}
