// What stands between the expression engine (`jsonata`) and the program: texts go in, texts come out. The first
// character of an answer says what it is: `=` a JSON value, `!` an error for people, `#` what the service does not
// support, `?` nothing.
(function (jsonata, hash, uuid, random, parse) {
  "use strict";
  const known = new Map();
  const KNOWN_MAX = 100;
  const RANGE_MAX = 1000000;
  const PAD_MAX = 1000000;

  // The clock of the library, which whoever asks may stop: $now and $millis are then the same each time.
  const Clock = Date;
  let stopped = null;
  globalThis.Date = class extends Clock {
    constructor(...parts) {
      if (parts.length === 0 && stopped !== null) super(stopped);
      else super(...parts);
    }
    static now() {
      return stopped === null ? Clock.now() : stopped;
    }
  };

  function message(error) {
    const code = error && error.code ? error.code + ": " : "";
    const text = error && error.message !== undefined ? error.message : String(error);
    const where = error && error.position !== undefined ? " (at character " + error.position + ")" : "";
    return code + text + where;
  }

  // The code is that of the language's own $error.
  function fail(text) {
    throw { code: "D3137", message: text };
  }

  // What is missing is undefined, numbers lose their fraction, lists of one are that one and lists of nothing are
  // nothing: as the language's own functions do, and as the service's do.
  function register(expression) {
    expression.registerFunction("eval", () => fail("the function $eval is not available, use $parse"));
    // The library's own would fill any width in one step of the interpreter, out of the reach of the time limit.
    expression.registerFunction("pad", (text, width, fill) => {
      if (text === undefined) return undefined;
      const missing = Math.abs(width) - Array.from(text).length;
      if (!(missing > 0)) return text;
      if (missing > PAD_MAX) fail("$pad adds at most " + PAD_MAX + " characters");
      const chars = Array.from(fill === undefined || fill === "" ? " " : fill);
      let padding = "";
      for (let i = 0; i < missing; i += 1) padding += chars[i % chars.length];
      return width > 0 ? text + padding : padding + text;
    }, "<s-ns?:s>");
    expression.registerFunction("partition", (items, size) => {
      if (items === undefined) return undefined;
      const chunk = size === undefined ? items.length : Math.trunc(size);
      if (chunk < 0) fail("Second argument must be zero or greater");
      if (chunk === 0 || items.length === 0) return undefined;
      const out = [];
      for (let i = 0; i < items.length; i += chunk) out.push(items.slice(i, i + chunk));
      return out;
    }, "<an?:a>");
    expression.registerFunction("range", (first, last, step) => {
      if (first === undefined || last === undefined || step === undefined) return undefined;
      const by = Math.trunc(step);
      const [from, to] = [Math.trunc(first), Math.trunc(last)];
      if (by === 0) return undefined;
      const out = [];
      for (let at = from; by > 0 ? at <= to : at >= to; at += by) {
        if (out.length === RANGE_MAX) fail("$range gives at most " + RANGE_MAX + " numbers");
        out.push(at);
        if (at + by === at) break;
      }
      return out.length === 0 ? undefined : out.length === 1 ? out[0] : out;
    }, "<nnn?:x>");
    expression.registerFunction("hash", (data, algorithm) => {
      if (data === undefined || algorithm === undefined) return undefined;
      const digest = hash(data, algorithm);
      if (digest === "") fail("Algorithm must be one of MD5, SHA-1, SHA-256, SHA-384, SHA-512");
      return digest;
    }, "<ss?:s>");
    expression.registerFunction("random", (seed) => random(seed === undefined ? null : Math.trunc(seed)), "<n?:n>");
    expression.registerFunction("uuid", () => uuid(), "<:s>");
    expression.registerFunction("parse", (text) => {
      if (text === undefined) return undefined;
      const read = parse(text);
      if (read[0] !== "=") fail("Invalid JSON: " + read.slice(1));
      return JSON.parse(read.slice(1));
    }, "<s?:x>");
    return expression;
  }

  function prepared(text) {
    let expression = known.get(text);
    if (expression === undefined) {
      expression = register(jsonata(text));
      if (known.size >= KNOWN_MAX) known.clear();
      known.set(text, expression);
    }
    return expression;
  }

  // An expression has no data of its own at the top level: a name, `$`, `*` or `**` there would always be nothing.
  // Only the first step of a path stands at the top; a lambda's body stands where the lambda does.
  function atTop(node) {
    if (node === null || typeof node !== "object") return null;
    const first = (nodes) => {
      for (const each of nodes) {
        const found = atTop(each);
        if (found !== null) return found;
      }
      return null;
    };
    switch (node.type) {
      case "name":
      case "wildcard":
      case "descendant":
        return node.value;
      case "variable":
        return node.value === "" ? "$" : null;
      case "path":
        return atTop(node.steps[0]);
      case "function":
      case "partial":
        return first([node.procedure, ...node.arguments]);
      case "lambda":
        return atTop(node.body);
      case "apply":
      case "binary":
        return first([node.lhs, node.rhs]);
      case "bind":
        return atTop(node.rhs);
      case "condition":
        return first([node.condition, node.then, node.else]);
      case "block":
        return first(node.expressions);
      case "unary":
        if (node.value === "{") return first(node.lhs.flat());
        return node.value === "[" ? first(node.expressions) : atTop(node.expression);
      default:
        return null;
    }
  }

  function uses(node, name) {
    if (node === null || typeof node !== "object") return false;
    if (node.type === "variable" && node.value === name) return true;
    return Object.values(node).some((value) => uses(value, name));
  }

  function check(text) {
    try {
      const ast = jsonata(text).ast();
      if (uses(ast, "$")) return "#Reference to '$$' is not supported.";
      if (uses(ast, "eval")) return "#The function $eval is not available, use $parse.";
      const name = atTop(ast);
      return name === null ? "?" : "#Reference to '" + name + "' at the top level is not supported.";
    } catch (error) {
      return "!" + message(error);
    }
  }

  async function evaluate(text, states, variables, now) {
    stopped = now === undefined ? null : now;
    try {
      const bindings = JSON.parse(variables);
      bindings.states = JSON.parse(states);
      const result = await prepared(text).evaluate(undefined, bindings);
      const json = JSON.stringify(result);
      return json === undefined ? "?" : "=" + json;
    } catch (error) {
      return "!" + message(error);
    }
  }

  return { check, evaluate };
});
