// What stands between the expression engine (`jsonata`) and the program: texts go in, texts come out. The first
// character of an answer says what it is: `=` a JSON value, `!` an error for people, `?` nothing.
(function (jsonata, hash, uuid, random) {
  "use strict";
  const known = new Map();
  const KNOWN_MAX = 100;

  function message(error) {
    const code = error && error.code ? error.code + ": " : "";
    const text = error && error.message !== undefined ? error.message : String(error);
    const where = error && error.position !== undefined ? " (at character " + error.position + ")" : "";
    return code + text + where;
  }

  function fail(text) {
    throw { message: text };
  }

  function register(expression) {
    expression.registerFunction("eval", () => fail("the function $eval is not supported"));
    expression.registerFunction("partition", (items, size) => {
      if (items === undefined) return undefined;
      const chunk = Math.round(size);
      if (!(chunk > 0)) fail("the second argument of $partition must be a positive number");
      const out = [];
      for (let i = 0; i < items.length; i += chunk) out.push(items.slice(i, i + chunk));
      return out;
    }, "<an:a>");
    expression.registerFunction("range", (first, last, step) => {
      const by = Math.round(step);
      if (by === 0) fail("the third argument of $range must not be zero");
      const out = [];
      for (let at = Math.round(first); by > 0 ? at <= last : at >= last; at += by) {
        if (out.length === 1000) fail("$range gives at most 1000 numbers");
        out.push(at);
      }
      return out;
    }, "<nnn:a<n>>");
    expression.registerFunction("hash", (data, algorithm) => {
      if (data === undefined) return undefined;
      const text = typeof data === "string" ? data : JSON.stringify(data);
      const digest = hash(text, algorithm === undefined ? "SHA-256" : algorithm);
      if (digest === "") fail("the algorithm of $hash must be MD5, SHA-1, SHA-256, SHA-384 or SHA-512");
      return digest;
    }, "<xs?:s>");
    expression.registerFunction("random", (seed) => random(seed === undefined ? null : seed), "<n?:n>");
    expression.registerFunction("uuid", () => uuid(), "<:s>");
    expression.registerFunction("parse", (text) => {
      if (text === undefined) return undefined;
      try {
        return JSON.parse(text);
      } catch (error) {
        fail("the argument of $parse is not JSON: " + error.message);
      }
    }, "<s:x>");
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

  function check(text) {
    try {
      jsonata(text);
      return "?";
    } catch (error) {
      return "!" + message(error);
    }
  }

  async function evaluate(text, states, variables) {
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
