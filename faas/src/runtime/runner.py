"""Skiff's runner for Python: loads a function's code and answers HTTP/1.1 for it.

Used by both classes of instances: as the command of a pod, and (through `process/parent.py`) as what a process forked from a warm
parent runs. Standard library only, Python 3.8 or newer. One thread per connection, because the gateway decides how many
requests an instance is given; the parser is written here, because that of `http.server` costs more than most functions. One long file, because
it travels into pods as one.

Environment: PORT or SKIFF_SOCKET, SKIFF_CODE (directory), SKIFF_HANDLER, SKIFF_TIMEOUT_SECONDS, SKIFF_FUNCTION, ...
"""

import asyncio
import contextvars
import importlib.util
import inspect
import io
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
import types
from urllib.parse import parse_qs, unquote

MAX_HEAD = 64 << 10
MAX_BODY = int(os.environ.get("SKIFF_MAX_REQUEST_BYTES") or 1 << 30)
MAX_CONNECTIONS = 1100  # above the most that `concurrency` may say; further ones wait in the backlog
FILES = ("main.py", "func.py", "handler.py", "app.py", "index.py", "wsgi.py", "asgi.py")
NAMES = ("main", "run", "handler", "handle", "http", "app", "application")
FAILED_STAYS_SECONDS = 10
REASONS = {200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 400: "Bad Request", 404: "Not Found",
           413: "Content Too Large", 431: "Request Header Fields Too Large", 500: "Internal Server Error",
           503: "Service Unavailable", 504: "Gateway Timeout"}
PENDING = object()


class Timeout(BaseException):
    """Raised in the thread of a call that took too long; not an Exception, so that code's own handlers let it pass."""


class BadRequest(Exception):
    """The caller's fault: answered with 400."""

    def __init__(self, code, message, status=400):
        super().__init__(message)
        self.code, self.status = code, status


class LoadError(Exception):
    """The code cannot be used: no file, no handler."""


class Request:
    """What handlers of the HTTP form get."""

    def __init__(self, method, target, headers, body):
        self.method, self.headers, self.body = method, headers, body
        path, _, self.query_string = target.partition("?")
        self.path = unquote(path)
        self.raw_path = path
        self.id = headers.get("x-request-id", "")
        self.traceparent = headers.get("traceparent", "")

    @property
    def query(self):
        return {k: v[0] if len(v) == 1 else v for k, v in parse_qs(self.query_string, keep_blank_values=True).items()}

    @property
    def text(self):
        return self.body.decode("utf-8", "replace")

    def json(self):
        try:
            return json.loads(self.body) if self.body.strip() else {}
        except (ValueError, RecursionError) as error:
            raise BadRequest("InvalidJson", "the body is not valid JSON: %s" % error) from None

    def params(self):
        """The parameters of `main(params)`: JSON, a form, the query, or the bytes of anything else."""
        if not self.body:
            return self.query
        kind = self.headers.get("content-type", "").split(";")[0].strip().lower()
        # What curl says of everything it sends with -d is not believed of what looks like JSON.
        if kind == "application/x-www-form-urlencoded" and self.body.lstrip()[:1] not in (b"{", b"["):
            form = parse_qs(self.body.decode("utf-8", "replace"), keep_blank_values=True)
            return {k: v[0] if len(v) == 1 else v for k, v in form.items()}
        if kind in ("", "text/plain", "application/x-www-form-urlencoded") or kind.endswith("json"):
            return self.json()
        return {"body": self.body, "contentType": kind}


class Response:
    """What a handler may return to choose status and headers: `skiff.Response(body, 201, {"x": "y"})`."""

    def __init__(self, body=b"", status=200, headers=None):
        self.body, self.status, self.headers = body, status, headers or {}


current = contextvars.ContextVar("skiff_request", default=None)
skiff = types.ModuleType("skiff", "What code can ask of its runner.")
skiff.Response = Response
skiff.request = current.get
sys.modules.setdefault("skiff", skiff)


# --- loading -----------------------------------------------------------------------------------------------------------

def find(directory, handler):
    """File and name for a handler `FILE.NAME`, `NAME` or none."""
    stem, _, name = (handler or "").rpartition(".")
    if stem:
        path = os.path.join(directory, *stem.replace("/", ".").split(".")) + ".py"
        if not os.path.isfile(path):
            raise LoadError("there is no file %s for the handler %s" % (os.path.relpath(path, directory), handler))
        return path, name
    for known in FILES:
        if os.path.isfile(os.path.join(directory, known)):
            return os.path.join(directory, known), name
    files = sorted(f for f in os.listdir(directory) if f.endswith(".py") and f not in ("setup.py", "conftest.py"))
    if len(files) != 1:
        raise LoadError("none of %s is there; name the file: handler FILE.NAME" % ", ".join(FILES))
    return os.path.join(directory, files[0]), name


def load(directory, handler):
    """Loads the code; gives what answers a Request."""
    path, name = find(directory, handler)
    for extra in (directory, os.path.join(directory, "site-packages")):
        if extra not in sys.path:
            sys.path.insert(0, extra)
    os.chdir(directory)
    stem = os.path.relpath(path, directory)[:-3].replace(os.sep, ".")
    spec = importlib.util.spec_from_file_location(stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[stem] = module
    spec.loader.exec_module(module)
    names = (name,) if name else NAMES
    target = next((getattr(module, n) for n in names if callable(getattr(module, n, None))), None)
    if target is None:
        what = "a function %s" % name if name else "a function main"
        raise LoadError("%s has no handler: %s is expected" % (os.path.basename(path), what))
    return adapt(target)


def adapt(target):
    """How a handler wants to be called is read from its signature."""
    plain = inspect.isroutine(target) or inspect.isclass(target)
    call = target if plain else type(target).__call__
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return lambda request: target(request.params())
    positional = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p.name for p in positional if p.default is p.empty]
    if len(required) == 3 and inspect.iscoroutinefunction(call):
        return Asgi(target)
    if len(required) == 2 and required[1] == "start_response":
        return lambda request: wsgi(target, request)
    by_keyword = any(p.kind in (p.VAR_KEYWORD, p.KEYWORD_ONLY) for p in signature.parameters.values())
    # `run` takes its parameters by name, as one of the predecessors called it.
    if getattr(target, "__name__", "") == "run" and [p.name for p in positional] not in (["params"], ["args"], ["event"], []):
        by_keyword = True
    if len(required) == 2 and required[1] == "context":
        return lambda request: target(request.params(), request)
    if not by_keyword and (getattr(target, "__name__", "") == "http" or [p.name for p in positional][:1] in (["request"], ["req"])):
        return target
    if by_keyword or len(required) > 1:
        return lambda request: keywords(target, signature, request)
    if not positional and not any(p.kind == p.VAR_POSITIONAL for p in signature.parameters.values()):
        return lambda request: target()
    return lambda request: target(request.params())


def keywords(target, signature, request):
    params = request.params()
    if not isinstance(params, dict):
        raise BadRequest("InvalidParameters", "the function takes its parameters by name: a JSON object is expected")
    try:
        bound = signature.bind(**params)
    except TypeError as error:
        raise BadRequest("InvalidParameters", str(error)) from None
    return target(*bound.args, **bound.kwargs)


def wsgi(app, request):
    environ = {
        "REQUEST_METHOD": request.method, "SCRIPT_NAME": "", "PATH_INFO": request.path,
        "QUERY_STRING": request.query_string, "SERVER_NAME": "function", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_TYPE": request.headers.get("content-type", ""), "CONTENT_LENGTH": str(len(request.body)),
        "wsgi.version": (1, 0), "wsgi.url_scheme": "http", "wsgi.input": io.BytesIO(request.body), "wsgi.errors": sys.stderr,
        "wsgi.multithread": True, "wsgi.multiprocess": False, "wsgi.run_once": False,
    }
    for name, value in request.headers.items():
        if name not in ("content-type", "content-length"):
            environ["HTTP_" + name.upper().replace("-", "_")] = value
    answer = Response()
    written = []

    def start_response(status, headers, exc_info=None):
        answer.status, answer.headers = int(status.split(" ", 1)[0]), list(headers)
        return written.append

    body = app(environ, start_response)
    answer.body = body if not written else b"".join(written) + b"".join(body)
    return answer


class Loop:
    """One event loop in a thread of its own, made when something asynchronous is first needed."""

    _lock = threading.Lock()
    _loop = None

    @classmethod
    def get(cls):
        with cls._lock:
            if cls._loop is None:
                cls._loop = asyncio.new_event_loop()
                threading.Thread(target=cls._loop.run_forever, name="skiff-loop", daemon=True).start()
            return cls._loop

    @classmethod
    def wait(cls, coroutine, seconds):
        async def inner():
            return await coroutine
        future = asyncio.run_coroutine_threadsafe(inner(), cls.get())
        try:
            return future.result(seconds)
        except BaseException:
            future.cancel()
            raise


class Asgi:
    """An ASGI application: its lifespan is begun at loading, each request is a task on the loop."""

    def __init__(self, app):
        self.app = app
        self.started = threading.Event()
        self.failure = None
        asyncio.run_coroutine_threadsafe(self.lifespan(), Loop.get())
        self.started.wait(30)
        if self.failure:
            raise LoadError(self.failure)

    async def lifespan(self):
        told = False

        async def receive():
            nonlocal told
            if told:
                await asyncio.Event().wait()
            told = True
            return {"type": "lifespan.startup"}

        async def send(message):
            if message["type"] == "lifespan.startup.failed":
                self.failure = "the application did not start: %s" % message.get("message", "")
            self.started.set()

        try:
            await self.app({"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": {}}, receive, send)
        except Exception:  # an application without lifespan raises: the standard says to go on
            pass
        finally:
            self.started.set()

    def __call__(self, request):
        chunks = queue.Queue(16)
        answer = Response()
        head = threading.Event()
        error = []
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": request.method,
            "scheme": "http", "path": request.path, "raw_path": request.raw_path.encode(), "root_path": "",
            "query_string": request.query_string.encode(), "client": None, "server": ("function", 80), "state": {},
            "headers": [(k.encode("latin-1"), v.encode("latin-1")) for k, v in request.headers.items()],
        }
        given = False

        async def receive():
            nonlocal given
            if given:
                await asyncio.Event().wait()
            given = True
            return {"type": "http.request", "body": request.body, "more_body": False}

        async def put(item):
            while True:
                try:
                    return chunks.put_nowait(item)
                except queue.Full:
                    await asyncio.sleep(0.005)

        async def send(message):
            if message["type"] == "http.response.start":
                answer.status = message["status"]
                answer.headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in message.get("headers", [])]
            elif message["type"] == "http.response.body":
                head.set()
                if message.get("body"):
                    await put(message["body"])
                if not message.get("more_body"):
                    await put(None)

        async def run():
            token = current.set(request)
            try:
                await self.app(scope, receive, send)
            except BaseException as failure:  # told to the caller's thread
                error.append(failure)
            finally:
                current.reset(token)
                head.set()
                await put(None)

        future = asyncio.run_coroutine_threadsafe(run(), Loop.get())
        try:
            head.wait()
        except BaseException:
            future.cancel()
            raise
        if error:
            raise error[0]
        answer.body = iter(chunks.get, None)
        return answer


# --- answers -----------------------------------------------------------------------------------------------------------

def respond(value):
    """Status, headers, body (bytes, or an iterator of chunks) for what a handler returned."""
    status, headers = 200, []
    if isinstance(value, tuple) and len(value) == 3 and type(value[0]) is int and isinstance(value[1], (dict, list)):
        status, headers, value = value
    elif isinstance(value, dict) and type(value.get("statusCode")) is int and set(value) <= {"statusCode", "headers", "body"}:
        status, headers, value = value["statusCode"], value.get("headers") or {}, value.get("body", b"")
    elif hasattr(value, "status") and hasattr(value, "headers") and hasattr(value, "body"):
        status, headers, value = value.status, value.headers, value.body
    if not 200 <= status <= 599:
        raise ValueError("the handler chose the status %d" % status)
    headers = [(str(k), str(v)) for k, v in (headers.items() if hasattr(headers, "items") else headers)]
    if any(c in text for pair in headers for text in pair for c in "\r\n\0"):
        raise ValueError("a header has a line break")
    known = {k.lower() for k, _ in headers}
    kind = None
    if isinstance(value, str):
        kind, body = "text/plain; charset=utf-8", value.encode()
    elif isinstance(value, (bytes, bytearray, memoryview)):
        kind, body = "application/octet-stream", bytes(value)
    elif inspect.isasyncgen(value):
        kind, body = "application/octet-stream", drain(value)
    elif hasattr(value, "__next__") or (not isinstance(value, (dict, list, tuple)) and hasattr(value, "__iter__")):
        kind, body = "application/octet-stream", iter(value)
    elif isinstance(value, list) and value and "content-type" in known and all(isinstance(v, bytes) for v in value):
        body = b"".join(value)  # what WSGI applications return
    elif isinstance(value, list) and not value and "content-type" in known:
        body = b""
    else:
        try:
            kind, body = "application/json", json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError("what the function returned cannot be written as JSON: %s" % error) from None
    if kind and "content-type" not in known:
        headers.append(("Content-Type", kind))
    return status, headers, body


def drain(generator):
    while True:
        try:
            yield Loop.wait(generator.__anext__(), None)
        except StopAsyncIteration:
            return


def chunk(value):
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    return json.dumps(value, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def failure(code, message, request_id):
    return json.dumps({"error": {"code": code, "message": message, "requestId": request_id}}).encode()


def trace(error):
    """The traceback without the runner's own frames."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_code.co_filename in (__file__, "<frozen importlib._bootstrap>",
                                                                        "<frozen importlib._bootstrap_external>"):
        frames = frames.tb_next
    return "".join(traceback.format_exception(type(error), error, frames))


# --- serving -----------------------------------------------------------------------------------------------------------

class Call:
    __slots__ = ("deadline", "thread", "connection", "request", "begun", "state")


class Server:
    """Accepts connections and answers requests with one handler, until it is told to stop."""

    def __init__(self, listener, timeout):
        self.listener, self.timeout = listener, timeout
        self.handler = None
        self.problem = None
        self.lock = threading.Lock()
        self.calls = set()
        self.watching = threading.Condition(self.lock)
        self.watch_idle = True
        self.watcher = None
        self.room = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.stopping = False

    def serve(self):
        while not self.stopping:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                if self.stopping:
                    return
                time.sleep(0.05)  # out of files: those in use come back
                continue
            self.room.acquire()
            if connection.family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self.connection, args=(connection,), daemon=True).start()

    def connection(self, connection):
        try:
            buffer = bytearray()
            while self.request(connection, buffer):
                pass
        except (OSError, Timeout):
            pass
        finally:
            connection.close()
            self.room.release()

    def request(self, connection, buffer):
        """Reads and answers one request; whether the connection stays."""
        try:
            parsed = read(connection, buffer)
        except BadRequest as error:
            send(connection, error.status, [("Content-Type", "application/json")], failure(error.code, str(error), ""), False)
            return False
        if parsed is None:
            return False
        request, keep = parsed
        keep = keep and not self.stopping
        if request.raw_path == "/_skiff/ready":
            if self.problem is not None:
                body = json.dumps(self.problem).encode()
                send(connection, 500, [("Content-Type", "application/json")], body, keep)
            else:
                send(connection, 200 if self.handler else 503, [], b"", keep)
            return keep
        if self.handler is None:
            message = self.problem["error"] if self.problem else "the code is not loaded yet"
            send(connection, 503, [("Content-Type", "application/json")], failure("NotReady", message, request.id), keep)
            return keep
        return self.answer(connection, request, keep)

    def answer(self, connection, request, keep):
        call = Call()
        call.thread, call.connection, call.request, call.state = threading.get_ident(), connection, request, "running"
        call.deadline = time.monotonic() + self.timeout
        call.begun = False
        with self.lock:
            self.calls.add(call)
            if self.watch_idle:
                self.watch_idle = False
                if self.watcher is None:
                    self.watcher = threading.Thread(target=self.watch, daemon=True)
                    self.watcher.start()
                else:
                    self.watching.notify()
        token = current.set(request)
        try:
            try:
                value = self.handler(request)
                if inspect.isawaitable(value):
                    value = Loop.wait(value, max(0.0, call.deadline - time.monotonic()))
                status, headers, body = respond(value)
                if isinstance(body, bytes):
                    self.done(call)
                    return send(connection, status, headers, body, keep, request.method == "HEAD")
                return self.stream(call, status, headers, body, keep)
            finally:
                self.done(call)
        except BadRequest as error:
            return self.fail(call, error.status, error.code, str(error), keep)
        except (Timeout, asyncio.TimeoutError) as error:
            if isinstance(error, asyncio.TimeoutError) and time.monotonic() < call.deadline:
                return self.broken(call, error, keep)
            return self.fail(call, 504, "Timeout", "the function did not answer within %g s" % self.timeout, keep)
        except OSError as error:
            if call.begun:
                raise
            return self.broken(call, error, keep)
        except BaseException as error:  # also SystemExit: one call's fault must not end the others
            return self.broken(call, error, keep)
        finally:
            current.reset(token)

    def broken(self, call, error, keep):
        sys.stderr.write(trace(error))
        text = str(error)
        message = "%s: %s" % (type(error).__name__, text) if text else type(error).__name__
        return self.fail(call, 500, "FunctionError", message, keep)

    def fail(self, call, status, code, message, keep):
        request = call.request
        sys.stderr.write("call failed: id=%s %s %s status=%d %s: %s\n"
                         % (request.id or "-", request.method, request.raw_path, status, code, message.replace("\n", " ")[:500]))
        sys.stderr.flush()
        if call.begun:
            return False  # closing in the middle of a chunked body is how HTTP says that it failed
        send(call.connection, status, [("Content-Type", "application/json")], failure(code, message[:4096], request.id), keep)
        return keep

    def stream(self, call, status, headers, chunks, keep):
        """A chunked answer; the first chunk is made before the head is sent, so that an early error has its status."""
        first = next(chunks, PENDING)
        data = b"" if first is PENDING else chunk(first)
        call.begun = True
        headers = [(k, v) for k, v in headers if k.lower() not in ("transfer-encoding",)]
        length = any(k.lower() == "content-length" for k, _ in headers)
        bare = call.request.method == "HEAD"
        lines = head(status, headers, keep) + ("" if length else "Transfer-Encoding: chunked\r\n") + "\r\n"
        call.connection.sendall(lines.encode("latin-1"))
        while first is not PENDING:
            if data and not bare:
                call.connection.sendall(data if length else b"%x\r\n%b\r\n" % (len(data), data))
            first = next(chunks, PENDING)
            data = b"" if first is PENDING else chunk(first)
        if not length and not bare:
            call.connection.sendall(b"0\r\n\r\n")
        close = getattr(chunks, "close", None)
        if close:
            close()
        return keep

    def done(self, call):
        with self.lock:
            call.state = "done"
            self.calls.discard(call)

    def watch(self):
        """Ends calls that take too long: by an exception in their thread, and if that does not help by ending the process."""
        with self.lock:
            while True:
                if not self.calls:
                    self.watch_idle = True
                    while self.watch_idle:
                        self.watching.wait()
                    continue
                now = time.monotonic()
                first = min(call.deadline for call in self.calls)
                if first > now:
                    self.watching.wait(first - now)
                    continue
                for call in [call for call in self.calls if call.deadline <= now]:
                    if call.state == "running":
                        call.state, call.deadline = "interrupted", now + 1.0
                        interrupt(call.thread)
                        continue
                    message = "the function did not answer within %g s and cannot be interrupted" % self.timeout
                    sys.stderr.write("call failed: id=%s status=504 %s; the instance ends\n" % (call.request.id or "-", message))
                    sys.stderr.flush()
                    try:
                        if not call.begun:
                            send(call.connection, 504, [("Content-Type", "application/json")],
                                 failure("Timeout", message, call.request.id), False)
                    finally:
                        os._exit(124)

    def stop(self, *_):
        """Answers what is in flight, then ends."""
        if self.stopping:
            return
        self.stopping = True

        def leave():
            end = time.monotonic() + min(self.timeout, 30)
            while self.calls and time.monotonic() < end:
                time.sleep(0.01)
            sys.stdout.flush()
            os._exit(0)

        threading.Thread(target=leave, daemon=True).start()


def interrupt(thread):
    import ctypes
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Timeout))


def read(connection, buffer):
    """One request from a connection: (Request, whether the connection stays), or None at its end."""
    while True:
        end = buffer.find(b"\r\n\r\n")
        if end >= 0:
            break
        if len(buffer) > MAX_HEAD:
            raise BadRequest("HeadTooLarge", "the head of the request is too large", 431)
        more = connection.recv(65536)
        if not more:
            return None
        buffer += more
    lines = bytes(buffer[:end]).decode("latin-1").split("\r\n")
    del buffer[:end + 4]
    try:
        method, target, version = lines[0].split(" ")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            name, value = name.strip().lower(), value.strip()
            headers[name] = headers[name] + ", " + value if name in headers else value
        length = int(headers.get("content-length") or 0)
        if length < 0 or not version.startswith("HTTP/1."):
            raise ValueError
    except ValueError:
        raise BadRequest("BadRequest", "this is not an HTTP/1.1 request") from None
    if headers.get("expect", "").lower() == "100-continue":
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    if "transfer-encoding" in headers:
        body = bytearray()
        while True:
            size = line_of(connection, buffer)
            try:
                size = int(size.split(b";")[0], 16)
            except ValueError:
                raise BadRequest("BadRequest", "a chunk has no length") from None
            if size < 0 or len(body) + size > MAX_BODY:
                raise BadRequest("BodyTooLarge", "the body is too large", 413)
            if size == 0:
                while line_of(connection, buffer):
                    pass
                break
            body += exactly(connection, buffer, size)
            line_of(connection, buffer)
        body = bytes(body)
    elif length > MAX_BODY:
        raise BadRequest("BodyTooLarge", "the body is too large", 413)
    else:
        body = exactly(connection, buffer, length) if length else b""
    keep = headers.get("connection", "").lower() != "close" and version != "HTTP/1.0"
    return Request(method, target, headers, body), keep


def line_of(connection, buffer):
    while True:
        end = buffer.find(b"\r\n")
        if end >= 0:
            line = bytes(buffer[:end])
            del buffer[:end + 2]
            return line
        if len(buffer) > MAX_HEAD:
            raise BadRequest("BadRequest", "a line is too long")
        more = connection.recv(65536)
        if not more:
            raise ConnectionResetError("the caller left")
        buffer += more


def exactly(connection, buffer, size):
    while len(buffer) < size:
        more = connection.recv(min(1 << 20, max(65536, size - len(buffer))))
        if not more:
            raise ConnectionResetError("the caller left")
        buffer += more
    data = bytes(buffer[:size])
    del buffer[:size]
    return data


def head(status, headers, keep):
    lines = ["HTTP/1.1 %d %s\r\n" % (status, REASONS.get(status, ""))]
    lines += ["%s: %s\r\n" % pair for pair in headers if pair[0].lower() not in ("connection", "keep-alive")]
    if not keep:
        lines.append("Connection: close\r\n")
    return "".join(lines)


def send(connection, status, headers, body, keep, bare=False):
    headers = [pair for pair in headers if pair[0].lower() not in ("content-length", "transfer-encoding")]
    lines = head(status, headers, keep)
    if status != 204 and status != 304:
        lines += "Content-Length: %d\r\n" % len(body)
    data = (lines + "\r\n").encode("latin-1", "replace")
    connection.sendall(data if bare or status in (204, 304) else data + body)
    return keep


def listen(environment):
    path = environment.get("SKIFF_SOCKET")
    if path:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        if os.path.exists(path):
            os.unlink(path)
        listener.bind(path)
    else:
        family = socket.AF_INET6 if socket.has_ipv6 and os.path.exists("/proc/net/if_inet6") else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", int(environment.get("PORT") or 8080)))
    listener.listen(1024)
    return listener


def run(environment, listener=None, loaded=None):
    """Loads the code, tells `loaded` (None, or what went wrong), and answers requests until told to stop."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")
    server = Server(None, float(environment.get("SKIFF_TIMEOUT_SECONDS") or 300))
    signal.signal(signal.SIGTERM, server.stop)
    signal.signal(signal.SIGINT, server.stop)
    try:
        handler = load(environment.get("SKIFF_CODE") or "/function", environment.get("SKIFF_HANDLER"))
    except BaseException as error:  # also SystemExit at load
        handler = None
        log = "%s\n" % error if isinstance(error, LoadError) else trace(error)
        text = str(error)
        summary = text if isinstance(error, LoadError) else "%s: %s" % (type(error).__name__, text)
        sys.stderr.write(log)
        server.problem = {"error": summary[:4096], "log": "\n".join(log.splitlines()[-20:])[-8192:]}
        print("the code cannot be loaded", file=sys.stderr)
    server.handler = handler
    if loaded:
        loaded(server.problem)
    server.listener = listener or listen(environment)
    if server.problem is not None:
        threading.Timer(FAILED_STAYS_SECONDS, os._exit, (1,)).start()
    server.serve()
    threading.Event().wait(60)  # stop() ends the process


if __name__ == "__main__":
    # Code finds the runner under its own name too, not only as __main__.
    sys.modules["runner"] = sys.modules["__main__"]
    run(os.environ)
