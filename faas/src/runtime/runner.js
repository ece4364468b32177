'use strict';
// Skiff's runner for Node.js: loads a function's code and answers HTTP/1.1 for it.
//
// Used by both classes of instances: as the command of a pod, and as a process started ahead (`--wait`) that is told on its
// standard input, in one line of JSON, what environment it has and where the code is. Standard library only, Node 18 or
// newer. A call that never gives the event loop back cannot be ended from inside: the gateway's own deadline ends the
// instance then.
//
// Environment: PORT or SKIFF_SOCKET, SKIFF_CODE (directory), SKIFF_HANDLER, SKIFF_TIMEOUT_SECONDS, SKIFF_FUNCTION, ...

const fs = require('node:fs');
const http = require('node:http');
const path = require('node:path');
const { pathToFileURL } = require('node:url');
const { Readable } = require('node:stream');
const { AsyncLocalStorage } = require('node:async_hooks');

const FILES = ['main', 'index', 'func', 'function', 'handler', 'app', 'server'];
const ENDINGS = ['.js', '.mjs', '.cjs'];
const NAMES = ['main', 'default', 'run', 'handler', 'handle', 'http'];
const MAX_BODY = Number(process.env.SKIFF_MAX_REQUEST_BYTES) || 1024 ** 3;
const FAILED_STAYS_MS = 10_000;

class BadRequest extends Error {
  constructor(code, message, status = 400) {
    super(message);
    this.code = code;
    this.status = status;
  }
}

class LoadError extends Error {}

// Code finds the request it is called for, and a way of choosing a status, at `globalThis.skiff`.
class Response_ {
  constructor(body = '', status = 200, headers = {}) {
    Object.assign(this, { body, status, headers });
  }
}
const current = new AsyncLocalStorage();
globalThis.skiff = { Response: Response_, request: () => current.getStore() };

// --- loading ---------------------------------------------------------------------------------------------------------

function find(directory, handler) {
  const dot = (handler || '').lastIndexOf('.');
  const name = dot < 0 ? handler || '' : handler.slice(dot + 1);
  const exists = (stem) => ENDINGS.map((e) => path.join(directory, stem + e)).find((f) => fs.existsSync(f));
  if (dot >= 0) {
    const stem = handler.slice(0, dot);
    const file = exists(stem) || exists(stem.replaceAll('.', '/'));
    if (!file) throw new LoadError(`there is no file ${stem}.js for the handler ${handler}`);
    return [file, name];
  }
  try {
    const { main } = JSON.parse(fs.readFileSync(path.join(directory, 'package.json'), 'utf8'));
    if (main && fs.existsSync(path.join(directory, main))) return [path.join(directory, main), name];
  } catch {
    // No package.json, or a broken one: the known names are tried.
  }
  for (const stem of FILES) {
    const file = exists(stem);
    if (file) return [file, name];
  }
  const files = fs.readdirSync(directory).filter((f) => ENDINGS.includes(path.extname(f)));
  if (files.length !== 1) throw new LoadError(`none of ${FILES.map((f) => f + '.js').join(', ')} is there; name the file: handler FILE.NAME`);
  return [path.join(directory, files[0]), name];
}

async function load(directory, handler) {
  const [file, name] = find(directory, handler);
  process.chdir(directory);
  const module = await import(pathToFileURL(file).href);
  const inner = module.default;
  const candidates = name ? [name] : NAMES;
  for (const candidate of candidates) {
    const target = module[candidate] ?? (inner && typeof inner === 'object' ? inner[candidate] : undefined);
    if (typeof target === 'function') return adapt(target, candidate);
  }
  if (typeof inner === 'function' && (!name || name === 'main')) return adapt(inner, 'default');
  throw new LoadError(`${path.basename(file)} has no handler: a function ${name || 'main'} is expected`);
}

// How a handler wants to be called is read from its parameters.
function adapt(target, name) {
  const source = Function.prototype.toString.call(target);
  const inside = /^(?:async\s+)?(?:function\b[^(]*|[\w$]*\s*)?\(([^)]*)\)/.exec(source);
  const names = (inside ? inside[1] : /^(?:async\s+)?([\w$]+)\s*=>/.exec(source)?.[1] || '').split(',').map((n) => n.trim());
  if (/^_?(req|request)$/.test(names[0]) && /^_?(res|response)$/.test(names[1] || '')) return { raw: target };
  if (name === 'http' && names.length >= 2) return { raw: target };
  if (name === 'http' || /^_?(req|request)$/.test(names[0])) return { call: (request) => target(request) };
  return { call: (request) => target(params(request), request) };
}

function params(request) {
  const { body, headers } = request;
  if (!body.length) return request.query;
  const kind = (headers['content-type'] || '').split(';')[0].trim().toLowerCase();
  const text = () => body.toString('utf8');
  // What curl says of everything it sends with -d is not believed of what looks like JSON.
  if (kind === 'application/x-www-form-urlencoded' && !/^\s*[{[]/.test(text())) return entries(new URLSearchParams(text()));
  if (!kind || kind === 'text/plain' || kind === 'application/x-www-form-urlencoded' || kind.endsWith('json')) return request.json();
  return { body, contentType: kind };
}

function entries(search) {
  const all = {};
  for (const key of new Set(search.keys())) {
    const values = search.getAll(key);
    Object.defineProperty(all, key, { value: values.length === 1 ? values[0] : values, enumerable: true, writable: true, configurable: true });
  }
  return all;
}

class Request {
  constructor(incoming, body) {
    const url = new URL(incoming.url, 'http://function');
    this.method = incoming.method;
    this.path = decodeURIComponentSafe(url.pathname);
    this.query = entries(url.searchParams);
    this.headers = incoming.headers;
    this.body = body;
    this.id = incoming.headers['x-request-id'] || '';
    this.traceparent = incoming.headers.traceparent || '';
  }

  get text() {
    return this.body.toString('utf8');
  }

  json() {
    const text = this.text;
    try {
      return text.trim() ? JSON.parse(text) : {};
    } catch (error) {
      throw new BadRequest('InvalidJson', `the body is not valid JSON: ${error.message}`);
    }
  }
}

function decodeURIComponentSafe(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

// --- answers ---------------------------------------------------------------------------------------------------------

function respond(value) {
  let status = 200;
  let headers = {};
  const object = value !== null && typeof value === 'object';
  if (Array.isArray(value) && value.length === 3 && Number.isInteger(value[0]) && value[0] >= 200 && value[0] < 600 && value[1]?.constructor === Object) {
    [status, headers, value] = value;
  } else if (object && Number.isInteger(value.statusCode) && Object.keys(value).every((k) => ['statusCode', 'headers', 'body'].includes(k))) {
    ({ statusCode: status, headers = {}, body: value = '' } = value);
  } else if (value instanceof Response_) {
    ({ status, headers, body: value } = value);
  } else if (typeof Response !== 'undefined' && value instanceof Response) {
    const answer = value;
    status = answer.status;
    headers = Object.fromEntries(answer.headers);
    value = answer.body ? Readable.fromWeb(answer.body) : Buffer.alloc(0);
  }
  headers = { ...headers };
  const typed = Object.keys(headers).some((k) => k.toLowerCase() === 'content-type');
  let kind;
  let body;
  if (typeof value === 'string') {
    kind = 'text/plain; charset=utf-8';
    body = Buffer.from(value);
  } else if (value instanceof Uint8Array) {
    kind = 'application/octet-stream';
    body = Buffer.from(value);
  } else if (value && typeof value === 'object' && !Array.isArray(value) && (value[Symbol.asyncIterator] || typeof value.next === 'function')) {
    kind = 'application/octet-stream';
    body = value;
  } else {
    kind = 'application/json';
    let text;
    try {
      text = JSON.stringify(value === undefined ? null : value);
    } catch (error) {
      throw new TypeError(`what the function returned cannot be written as JSON: ${error.message}`);
    }
    if (text === undefined) throw new TypeError(`what the function returned cannot be written as JSON: a ${typeof value}`);
    body = Buffer.from(text);
  }
  if (!typed) headers['Content-Type'] = kind;
  return { status, headers, body };
}

function failure(code, message, requestId) {
  return JSON.stringify({ error: { code, message: String(message).slice(0, 4096), requestId } });
}

async function* chunks(body) {
  for await (const piece of body) {
    yield typeof piece === 'string' || piece instanceof Uint8Array ? piece : `${JSON.stringify(piece)}\n`;
  }
}

// --- serving ---------------------------------------------------------------------------------------------------------

class Server {
  constructor(environment) {
    this.timeout = (Number(environment.SKIFF_TIMEOUT_SECONDS) || 300) * 1000;
    this.handler = null;
    this.problem = null;
    this.server = http.createServer((incoming, outgoing) => this.request(incoming, outgoing));
    this.server.keepAliveTimeout = 0; // the gateway decides how long its connections live
    this.server.requestTimeout = 0;
    this.server.headersTimeout = 0;
  }

  async request(incoming, outgoing) {
    const id = incoming.headers['x-request-id'] || '';
    if (incoming.url.split('?')[0] === '/_skiff/ready') {
      outgoing.writeHead(this.problem ? 500 : this.handler ? 200 : 503, { 'Content-Type': 'application/json' });
      outgoing.end(this.problem ? JSON.stringify(this.problem) : '');
      return;
    }
    if (!this.handler) {
      this.send(outgoing, 503, failure('NotReady', this.problem?.error || 'the code is not loaded yet', id));
      return;
    }
    const fail = (status, code, message) => {
      process.stderr.write(`call failed: id=${id || '-'} ${incoming.method} ${incoming.url.split('?')[0]} status=${status} ${code}: ${String(message).replaceAll('\n', ' ').slice(0, 500)}\n`);
      if (outgoing.headersSent) outgoing.destroy();
      else this.send(outgoing, status, failure(code, message, id));
    };
    const timer = setTimeout(() => fail(504, 'Timeout', `the function did not answer within ${this.timeout / 1000} s`), this.timeout);
    try {
      if (this.handler.raw) {
        await current.run({ id, headers: incoming.headers }, () => this.handler.raw(incoming, outgoing));
        if (!outgoing.writableFinished && !outgoing.destroyed) await new Promise((done) => outgoing.once('close', done));
        return;
      }
      const parts = [];
      let size = 0;
      for await (const part of incoming) {
        size += part.length;
        if (size > MAX_BODY) throw new BadRequest('BodyTooLarge', 'the body is too large', 413);
        parts.push(part);
      }
      const request = new Request(incoming, Buffer.concat(parts));
      const value = await current.run(request, () => this.handler.call(request));
      const { status, headers, body } = respond(value);
      if (outgoing.headersSent || outgoing.destroyed) return;
      if (body instanceof Uint8Array) {
        outgoing.writeHead(status, { ...headers, 'Content-Length': body.length });
        outgoing.end(body);
        return;
      }
      const stream = chunks(body);
      let next = await stream.next(); // before the head is sent, so that an early error has its status
      outgoing.writeHead(status, headers);
      for (; !next.done && !outgoing.destroyed; next = await stream.next()) {
        if (!outgoing.write(next.value)) await new Promise((done) => { outgoing.once('drain', done); outgoing.once('close', done); });
      }
      outgoing.end();
    } catch (error) {
      if (error instanceof BadRequest) fail(error.status, error.code, error.message);
      else {
        process.stderr.write(`${error?.stack || error}\n`);
        const name = error?.constructor?.name || typeof error;
        fail(500, 'FunctionError', error instanceof Error ? `${name}: ${error.message}` : String(error));
      }
    } finally {
      clearTimeout(timer);
    }
  }

  send(outgoing, status, body) {
    outgoing.writeHead(status, { 'Content-Type': 'application/json', 'Content-Length': Buffer.byteLength(body) });
    outgoing.end(body);
  }

  stop() {
    if (this.stopping) return;
    this.stopping = true;
    this.server.close(() => process.exit(0));
    this.server.closeIdleConnections?.();
    setTimeout(() => process.exit(0), Math.min(this.timeout, 30_000)).unref();
  }
}

async function run(environment, loaded) {
  const server = new Server(environment);
  process.on('SIGTERM', () => server.stop());
  process.on('SIGINT', () => server.stop());
  // A promise nobody waits for must not end the calls of others.
  process.on('unhandledRejection', (error) => process.stderr.write(`unhandled rejection: ${error?.stack || error}\n`));
  try {
    server.handler = await load(environment.SKIFF_CODE || '/function', environment.SKIFF_HANDLER);
  } catch (error) {
    const log = error instanceof LoadError ? error.message : String(error?.stack || error);
    process.stderr.write(`${log}\nthe code cannot be loaded\n`);
    const summary = error instanceof LoadError ? error.message : `${error?.constructor?.name || 'Error'}: ${error?.message ?? error}`;
    server.problem = { error: summary.slice(0, 4096), log: log.split('\n').slice(0, 20).join('\n').slice(0, 8192) };
    setTimeout(() => process.exit(1), FAILED_STAYS_MS);
  }
  const given = environment.SKIFF_LISTEN_FD && { fd: Number(environment.SKIFF_LISTEN_FD) };
  const where = given ?? (environment.SKIFF_SOCKET ? { path: environment.SKIFF_SOCKET } : { port: Number(environment.PORT) || 8080 });
  server.server.listen({ ...where, backlog: 1024 }, () => loaded?.(server.problem));
}

// Started ahead: everything needed is loaded, and one line of standard input says what for.
function wait() {
  let text = '';
  process.stdin.setEncoding('utf8');
  process.stdin.on('data', (piece) => {
    text += piece;
    const end = text.indexOf('\n');
    if (end < 0) return;
    process.stdin.pause();
    process.stdin.removeAllListeners();
    const order = JSON.parse(text.slice(0, end));
    for (const name of Object.keys(process.env)) delete process.env[name];
    Object.assign(process.env, order.environment);
    // The outcome is told once, on a descriptor that the code does not get.
    run(process.env, (problem) => {
      fs.writeSync(3, JSON.stringify({ problem }) + '\n');
      fs.closeSync(3);
    });
  });
  process.stdin.on('end', () => process.exit(0));
}

if (process.argv.includes('--wait')) wait();
else run(process.env);
