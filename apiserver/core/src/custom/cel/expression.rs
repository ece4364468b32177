//! Expressions of admission: match conditions, and what policies say.
//!
//! An [`Env`] says which variables there are; it compiles a text into an [`Expression`], or says in upstream's words why
//! not. [`Facts`] are what the variables are in one request; a [`Run`] is one policy at work on them. Variables that a
//! policy composes (`variables.x`) are worked out when they are first asked for, and once.
//!
//! All of it is synchronous and bounded: see [`super::lower`] on loops, and [`Facts::new`] on time.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube_cel::cel::common::ast::{Expr, IdedExpr};
use kube_cel::cel::context::VariableResolver;
use kube_cel::cel::{Context, ExecutionError, Value as Cel};
use serde_json::Value;

use super::check::{self, More};
use super::permission::{self, Authorizer, Check};
use super::types::{Base, Ty};
pub use super::values::is_reserved;
use super::{lower, parse, root, values, words};

/// All expressions that are asked about one object at one time may take this long together.
const TIME_MAX: Duration = Duration::from_secs(2);
/// What stands before the name of a composed variable.
pub(super) const VARIABLES: &str = "variables";
const REQUEST_RESOURCE: &str = "authorizer.requestResource";

/// What an expression must result in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// true or false.
    Bool,
    /// A text.
    Text,
    /// A text or null.
    TextOrNull,
    /// Anything.
    Any,
    /// An object to be applied.
    Object,
    /// A list of patches.
    Patches,
}

/// The variables that expressions may use.
#[derive(Clone, Debug)]
pub struct Env {
    scopes: Vec<(String, Ty<'static>)>,
    variables: Arc<BTreeMap<String, Ty<'static>>>,
    composes: bool,
    objects: bool,
}

impl Env {
    /// For match conditions of webhooks: `object`, `oldObject`, `request`, `authorizer`.
    #[must_use]
    pub fn webhook() -> Self {
        let scopes = vec![
            ("object".to_owned(), Ty::DYN),
            ("oldObject".to_owned(), Ty::DYN),
            ("request".to_owned(), request()),
            ("authorizer".to_owned(), record([("requestResource", Ty::DYN)])),
        ];
        Self { scopes, variables: Arc::default(), composes: false, objects: false }
    }

    /// For policies: also `namespaceObject`, and `params` if there is a kind of them.
    #[must_use]
    pub fn policy(params: bool) -> Self {
        let mut env = Self::webhook();
        env.scopes.push(("namespaceObject".to_owned(), namespace()));
        if params {
            env.scopes.push(("params".to_owned(), Ty::DYN));
        }
        env
    }

    /// The same, where variables are composed: there is `variables` from the first of them on.
    #[must_use]
    pub fn composing(mut self, composes: bool) -> Self {
        self.composes = composes;
        self
    }

    /// The same, where nobody may be asked about permissions: what a refused client is told.
    #[must_use]
    pub fn without_authorizer(mut self) -> Self {
        self.scopes.retain(|(name, _)| name != "authorizer");
        self
    }

    /// The same, where expressions make objects and patches.
    #[must_use]
    pub fn with_objects(mut self) -> Self {
        self.objects = true;
        self
    }

    /// Adds a composed variable. What does not compile is there too, of any type: one fault is told once.
    pub fn declare(&mut self, name: &str, expression: Option<&Expression>) {
        let of = expression.map_or(Ty::DYN, |e| e.result.clone());
        Arc::make_mut(&mut self.variables).insert(name.to_owned(), of);
    }

    /// Compiles an expression.
    ///
    /// # Errors
    /// Why it cannot be used, in upstream's words.
    pub fn compile(&self, text: &str, want: Want) -> Result<Expression, String> {
        let failed = |why: String| format!("compilation failed: {why}");
        let program = parse(text).map_err(failed)?;
        let mut scopes = self.scopes.clone();
        if self.composes {
            scopes.push((VARIABLES.to_owned(), Ty::Record(Arc::clone(&self.variables))));
        }
        let more = More { authorizer: true, objects: self.objects };
        let result = check::typed_in(text, &program, scopes, more).map_err(failed)?;
        fits(&result, &program, want)?;
        let program = lower::lower(&program, &[VARIABLES, REQUEST_RESOURCE]);
        Ok(Expression { text: text.to_owned(), program, result })
    }
}

/// Whether a result of this type is what is wanted. What our checker does not follow passes; a plain field of an object
/// without schema does not, as upstream has it.
fn fits(result: &Ty<'static>, program: &IdedExpr, want: Want) -> Result<(), String> {
    let unknown = result.is_dyn() && !is_field(program);
    let patch = |t: &Ty<'_>| t.is_dyn() || matches!(t, Ty::Message(m) if m == check::PATCH);
    let (fits, name) = match want {
        Want::Any => (true, ""),
        Want::Bool => (result.is(Base::Bool), "bool"),
        Want::Text => (result.is(Base::String), "string"),
        Want::TextOrNull => (result.is(Base::String) || result.is(Base::Null), ""),
        Want::Object => (matches!(result, Ty::Message(m) if m == check::OBJECT), check::OBJECT),
        Want::Patches => (matches!(result, Ty::List(t) if patch(t)), "list(JSONPatch)"),
    };
    if fits || unknown {
        return Ok(());
    }
    Err(match want {
        Want::TextOrNull => "must evaluate to one of [string null_type]".to_owned(),
        _ => format!("must evaluate to {name} but got {result}"),
    })
}

fn is_field(e: &IdedExpr) -> bool {
    match &e.expr {
        // What our checker knows of variables may be less than there is to know.
        Expr::Ident(name) => name != VARIABLES,
        Expr::Select(s) => is_field(&s.operand),
        Expr::Call(c) => c.func_name == "_[_]" && c.args.first().is_some_and(is_field),
        _ => false,
    }
}

pub(super) fn record<const N: usize>(fields: [(&str, Ty<'static>); N]) -> Ty<'static> {
    Ty::Record(Arc::new(fields.into_iter().map(|(n, t)| (n.to_owned(), t)).collect()))
}

/// The type of `request`.
pub(super) fn request() -> Ty<'static> {
    let s = || Ty::STRING;
    let list = || Ty::List(Box::new(Ty::STRING));
    let kind = || record([("group", s()), ("version", s()), ("kind", s())]);
    let resource = || record([("group", s()), ("version", s()), ("resource", s())]);
    let user = record([("username", s()), ("uid", s()), ("groups", list()), ("extra", Ty::Map(Box::new(list())))]);
    record([
        ("kind", kind()),
        ("resource", resource()),
        ("subResource", s()),
        ("requestKind", kind()),
        ("requestResource", resource()),
        ("requestSubResource", s()),
        ("name", s()),
        ("namespace", s()),
        ("operation", s()),
        ("userInfo", user),
        ("dryRun", Ty::BOOL),
        ("options", Ty::DYN),
    ])
}

/// The type of `namespaceObject`: what of a namespace does not change with every write.
pub(super) fn namespace() -> Ty<'static> {
    let s = || Ty::STRING;
    let map = || Ty::Map(Box::new(Ty::STRING));
    let list = || Ty::List(Box::new(Ty::STRING));
    let time = || Ty::Base(Base::Timestamp);
    let metadata = record([
        ("name", s()),
        ("generateName", s()),
        ("namespace", s()),
        ("labels", map()),
        ("annotations", map()),
        ("UID", s()),
        ("creationTimestamp", time()),
        ("deletionGracePeriodSeconds", Ty::INT),
        ("deletionTimestamp", time()),
        ("generation", Ty::INT),
        ("resourceVersion", s()),
        ("finalizers", list()),
    ]);
    record([("metadata", metadata), ("spec", record([("finalizers", list())])), ("status", record([("phase", s())]))])
}

/// A compiled expression.
#[derive(Clone, Debug)]
pub struct Expression {
    text: String,
    program: IdedExpr,
    result: Ty<'static>,
}

impl Expression {
    /// As it was written, without the space around it.
    #[must_use]
    pub fn text(&self) -> &str {
        self.text.trim()
    }
}

/// What an expression came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// `true`.
    True,
    /// Anything else, as JSON; null for what has no such form.
    Other(Value),
}

/// What the variables are in one request.
pub struct Facts {
    context: Context<'static>,
}

impl std::fmt::Debug for Facts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Facts").finish_non_exhaustive()
    }
}

impl Facts {
    /// Facts of one request, which begin the time that its expressions may take. They are to be used on this thread,
    /// without waiting in between.
    #[must_use]
    pub fn new(object: Option<&Value>, old: Option<&Value>, request: &Value) -> Self {
        lower::begin(TIME_MAX);
        let mut context = root().new_inner_scope();
        let of = |v: Option<&Value>| v.map_or(Cel::Null, values::plain);
        context.add_variable_from_value("object", of(object));
        context.add_variable_from_value("oldObject", of(old));
        context.add_variable_from_value("request", values::plain(request));
        Self { context }
    }

    /// The namespace of the request; none of a cluster-wide object.
    #[must_use]
    pub fn in_namespace(mut self, namespace: Option<&Value>) -> Self {
        let seen = namespace.map(namespace_seen);
        let seen = seen.as_ref().map_or(Cel::Null, values::plain);
        self.context.add_variable_from_value("namespaceObject", seen);
        self
    }

    /// Who answers questions about permissions, and what the request itself is about.
    #[must_use]
    pub fn with_authorizer(mut self, who: &Arc<dyn Authorizer>, own: Check) -> Self {
        self.context.add_variable_from_value("authorizer", permission::variable(who, Check::default()));
        self.context.add_variable_from_value(REQUEST_RESOURCE, permission::variable(who, own));
        self
    }

    /// One policy's view: its parameter, if its kind has any, and its variables.
    #[must_use]
    pub fn run<'a>(&'a self, params: Option<&Value>, variables: &'a [(String, Expression)]) -> Run<'a> {
        let mut context = self.context.new_inner_scope();
        context.add_variable_from_value("params", params.map_or(Cel::Null, values::plain));
        Run { context, variables, known: Mutex::default(), failed: Mutex::default() }
    }
}

/// What expressions see of a namespace.
fn namespace_seen(namespace: &Value) -> Value {
    let mut out = serde_json::json!({"metadata": {}, "spec": {}, "status": {}});
    let names = [
        "name",
        "generateName",
        "namespace",
        "labels",
        "annotations",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "generation",
        "resourceVersion",
        "finalizers",
    ];
    for (part, names) in [("metadata", &names[..]), ("spec", &["finalizers"]), ("status", &["phase"])] {
        for name in names {
            if let Some(v) = namespace.get(part).and_then(|p| p.get(name)) {
                out[part][name] = v.clone();
            }
        }
    }
    if let Some(uid) = namespace["metadata"].get("uid") {
        out["metadata"]["UID"] = uid.clone();
    }
    out
}

/// One policy at work.
pub struct Run<'a> {
    context: Context<'a>,
    variables: &'a [(String, Expression)],
    known: Mutex<HashMap<String, Cel>>,
    failed: Mutex<Option<String>>,
}

impl std::fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").finish_non_exhaustive()
    }
}

impl Run<'_> {
    /// What an expression comes to.
    ///
    /// # Errors
    /// Why it comes to nothing, in upstream's words.
    pub fn evaluate(&self, e: &Expression) -> Result<Outcome, String> {
        lower::begin_expression();
        match self.resolve(e)? {
            Cel::Bool(true) => Ok(Outcome::True),
            v => Ok(Outcome::Other(values::to_json(&v).unwrap_or_default())),
        }
    }

    fn resolve(&self, e: &Expression) -> Result<Cel, String> {
        let mut scope = self.context.new_inner_scope();
        scope.set_variable_resolver(self);
        Cel::resolve(&e.program, &scope).map_err(|e| {
            let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
            match (&e, failed) {
                (ExecutionError::UndeclaredReference(name), Some(why)) if name.starts_with(VARIABLES) => why,
                _ => words(&e),
            }
        })
    }
}

impl VariableResolver for Run<'_> {
    fn resolve(&self, whole: &str) -> Option<Cel> {
        let name = whole.strip_prefix(VARIABLES)?.strip_prefix('.')?;
        let lock =
            |m: &Mutex<HashMap<String, Cel>>| m.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        if let Some(known) = lock(&self.known) {
            return Some(known);
        }
        let (_, expression) = self.variables.iter().find(|(n, _)| n == name)?;
        match Run::resolve(self, expression) {
            Ok(v) => {
                self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), v.clone());
                Some(v)
            }
            Err(why) => {
                let why = format!("composited variable {} fails to evaluate: {why}", crate::invalid::quote_str(name));
                *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// (expression, what it comes to)
    #[test]
    fn outcomes() {
        let object =
            json!({"metadata": {"name": "a", "namespace": "n", "labels": {"x": "y"}}, "spec": {"n": 3, "l": [1, 2]}});
        let request = json!({"operation": "CREATE", "userInfo": {"username": "u", "groups": ["g"]}});
        let mut env = Env::policy(true).composing(true).with_objects();
        let mut variables = vec![];
        for (name, text) in [("n", "object.spec.n"), ("twice", "variables.n * 2"), ("bad", "object.none.x")] {
            let e = env.compile(text, Want::Any).unwrap();
            env.declare(name, Some(&e));
            variables.push((name.to_owned(), e));
        }
        let facts = Facts::new(Some(&object), None, &request).in_namespace(None);
        let run = facts.run(Some(&json!({"max": 5})), &variables);
        let cases = [
            ("object.spec.n == 3 && oldObject == null && namespaceObject == null", Ok(json!(true))),
            ("variables.twice > params.max", Ok(json!(true))),
            ("variables.bad == 1", Err("composited variable \"bad\" fails to evaluate: no such key: none")),
            ("true || variables.bad == 1", Ok(json!(true))),
            ("object.metadata.name.x == 1", Err("no such overload")),
            ("object.?none.x.orValue('d') == 'd'", Ok(json!(true))),
            ("object.?metadata.?labels[?'x'].orValue('d') == 'y'", Ok(json!(true))),
            ("has(object.?none.x)", Ok(json!(false))),
            ("has(object.metadata.labels.x) && !has(object.spec.z)", Ok(json!(true))),
            ("object.spec.l.all(x, x > 0) && object.spec.l.map(x, x + 1) == [2, 3]", Ok(json!(true))),
            ("request.operation in ['CREATE'] && 'g' in request.userInfo.groups", Ok(json!(true))),
            (
                "Object{metadata: Object.metadata{labels: {'a': 'b'}}, spec: Object.spec{?z: optional.none(), y: 1}}",
                Ok(json!({"metadata": {"labels": {"a": "b"}}, "spec": {"y": 1}})),
            ),
            (
                "[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: 1}]",
                Ok(json!([{"op": "add", "path": "/metadata/labels/a~1b", "value": 1}])),
            ),
        ];
        for (text, want) in cases {
            let e = env.compile(text, Want::Any).unwrap();
            let got = run.evaluate(&e).map(|o| if let Outcome::Other(v) = o { v } else { json!(true) });
            assert_eq!(got, want.map_err(str::to_owned), "{text}");
        }
    }

    /// Expressions as policies have them: they compile, and are true of an object that fits.
    #[test]
    fn expressions_people_write() {
        let object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default",
            "creationTimestamp": "2024-01-01T00:00:00Z", "labels": {"app.kubernetes.io/name": "web"}},
            "spec": {"replicas": 3, "template": {"spec": {"containers": [
                {"name": "c", "image": "example.com/web:v1", "resources": {"limits": {"memory": "512Mi"}},
                    "securityContext": {"privileged": false}},
                {"name": "d", "image": "example.com/side:latest", "ports": [{"containerPort": 80}]}]}}}});
        let request = json!({"operation": "UPDATE", "namespace": "default", "userInfo": {"username": "u", "groups": ["a", "b"]},
            "kind": {"group": "apps", "version": "v1", "kind": "Deployment"}, "dryRun": false});
        let mut env = Env::policy(true).composing(true);
        let variables =
            vec![("containers".to_owned(), env.compile("object.spec.template.spec.containers", Want::Any).unwrap())];
        env.declare("containers", Some(&variables[0].1));
        let params = json!({"registries": ["example.com", "other.com"], "max": 5});
        let facts = Facts::new(Some(&object), Some(&object), &request).in_namespace(None);
        let run = facts.run(Some(&params), &variables);
        let all = [
            "object.spec.replicas <= params.max && object.spec.replicas in [1, 3]",
            "variables.containers.all(c, !has(c.securityContext) || !has(c.securityContext.privileged) || c.securityContext.privileged == false)",
            "variables.containers.all(c, params.registries.exists(r, c.image.startsWith(r + '/')))",
            "variables.containers.filter(c, c.image.endsWith(':latest')).map(c, c.name).join(', ') == 'd'",
            "variables.containers.exists_one(c, has(c.ports) && c.ports.all(p, p.containerPort < 1024))",
            "quantity(variables.containers[0].resources.limits.memory).isLessThan(quantity('1Gi'))",
            "object.metadata.?annotations['x'].orValue('none') == 'none'",
            "object.metadata.?labels[?'app.kubernetes.io/name'].orValue('') == 'web'",
            "has(object.metadata.labels) && 'app.kubernetes.io/name' in object.metadata.labels",
            "object.metadata.labels.exists(k, k.startsWith('app') && object.metadata.labels[k] == 'web')",
            "request.userInfo.groups.exists(g, g == 'a') && !('z' in request.userInfo.groups)",
            "object.spec.replicas == oldObject.spec.replicas && object.spec == oldObject.spec",
            "timestamp(object.metadata.creationTimestamp) < timestamp('2030-01-01T00:00:00Z')",
            "duration('90m').getMinutes() == 90 && duration('1h') < duration('2h')",
            "cidr('10.0.0.0/8').containsIP('10.1.1.1') && ip('1.1.1.1').family() == 4 && !isIP('x')",
            "url('https://a.com:8080/b?c=d').getHost() == 'a.com:8080' && isURL('https://a')",
            "semver('1.2.3').isLessThan(semver('2.0.0')) && isSemver('1.0.0')",
            "sets.contains([1, 2], [1]) && sets.intersects(['a'], ['a', 'b'])",
            "!format.dns1123Label().validate('a-b').hasValue()",
            "'%s has %d'.format(['a', 1]) == 'a has 1'",
            "'a-b-c'.split('-').size() == 3 && 'Abc'.lowerAscii() == 'abc' && 'abc'.replace('b', 'x') == 'axc'",
            "'a1b22'.findAll('[0-9]+') == ['1', '22'] && 'abc'.find('b') == 'b'",
            "[3, 1, 2].max() == 3 && [1, 2].sum() == 3 && [1, 2].isSorted() && [1, 2, 2].indexOf(2) == 1",
            "math.greatest(1, 2) == 2 && math.abs(-1) == 1",
            "optional.of(1).value() == 1 && !optional.none().hasValue() && optional.none().or(optional.of(2)).value() == 2",
            "optional.of(1).optMap(x, x + 1).optMap(y, y * 2).optMap(x, [x].map(y, y + x)[0]).value() == 8",
            "object.?spec.?replicas.optFlatMap(x, x > 5 ? optional.of(x) : optional.none()).orValue(7) == 7",
            "request.userInfo.?extra[?'a/b'][0].orValue('') == '' && {'a': [7]}[?'a'][0].value() == 7",
            "!{'a': [7]}[?'b'][0].hasValue() && {'a': [7]}[?'a'][?1].orValue(5) == 5 && {'a': {'b': 2}}[?'a']['b'].value() == 2",
            "type(object.spec.replicas) == int && type(object.metadata.name) == string",
            "string(object.spec.replicas) + 'x' == '3x' && int('4') == 4 && double(1) == 1.0",
            "object.spec.replicas > 2.5 && 1 < 1.5",
            "(has(object.spec.paused) ? object.spec.paused : false) == false",
            "size(object.metadata.name) == 3 && object.metadata.name.size() < 64",
            "object.metadata.name.matches('^[a-z]+$') && object.metadata.namespace == request.namespace",
            "[1, 2, 3].all(x, x > 0) && [[1], [2]].exists(l, l.exists(x, x == 2)) && {'a': 1}.exists(k, k == 'a')",
            "{'a': 1, 'b': 2}.map(k, k).size() == 2 && {'a': {'b': 1}}.a.b == 1",
        ];
        let failed: Vec<String> = all
            .iter()
            .filter_map(|text| match env.compile(text, Want::Bool).and_then(|e| run.evaluate(&e)) {
                Ok(Outcome::True) => None,
                other => Some(format!("{text}: {other:?}")),
            })
            .collect();
        assert_eq!(failed, Vec::<String>::new());
    }

    #[test]
    fn loops_end() {
        let env = Env::policy(false);
        let ten = "[1,2,3,4,5,6,7,8,9,10]";
        let deep = format!(
            "{ten}.all(a, {ten}.all(b, {ten}.all(c, {ten}.all(d, {ten}.all(e, {ten}.all(f, {ten}.all(g, true)))))))"
        );
        let e = env.compile(&deep, Want::Bool).unwrap();
        let request = json!({});
        let facts = Facts::new(None, None, &request);
        let why = facts.run(None, &[]).evaluate(&e).unwrap_err();
        assert_eq!(why, "operation cancelled: actual cost limit exceeded");
    }

    /// (expression, what it must be, the first line of what is said)
    #[test]
    fn what_does_not_compile() {
        let cases = [
            ("1 + 1", Want::Bool, "must evaluate to bool but got int"),
            ("object.spec.flag", Want::Bool, "must evaluate to bool but got dyn"),
            ("request.none == 1", Want::Bool, "compilation failed: ERROR: <input>:1:8: undefined field 'none'"),
            (
                "params.x",
                Want::Any,
                "compilation failed: ERROR: <input>:1:1: undeclared reference to 'params' (in container '')",
            ),
            (
                "variables.x",
                Want::Any,
                "compilation failed: ERROR: <input>:1:1: undeclared reference to 'variables' (in container '')",
            ),
            (
                "Object{}",
                Want::Any,
                "compilation failed: ERROR: <input>:1:7: undeclared reference to 'Object' (in container '')",
            ),
            ("1", Want::TextOrNull, "must evaluate to one of [string null_type]"),
        ];
        for (text, want, said) in cases {
            let got = Env::policy(false).compile(text, want).map(|_| ()).unwrap_err();
            assert_eq!(got.lines().next().unwrap(), said, "{text}");
        }
        let fits = [
            ("object.spec.flag == true", Want::Bool),
            ("authorizer.requestResource.check('get').allowed()", Want::Bool),
            ("authorizer.group('').resource('pods').namespace('d').check('get').reason() == ''", Want::Bool),
            ("authorizer.serviceAccount('a', 'b').path('/x').check('get').errored()", Want::Bool),
            ("'a' + string(1)", Want::Text),
            ("null", Want::TextOrNull),
            ("has(namespaceObject.metadata.labels) && namespaceObject.metadata.labels['a'] == 'b'", Want::Bool),
        ];
        for (text, want) in fits {
            assert!(Env::policy(false).compile(text, want).is_ok(), "{text}");
        }
    }
}
