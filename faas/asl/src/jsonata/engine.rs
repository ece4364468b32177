//! An interpreter with the library in it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rquickjs::context::intrinsic::{Date, Eval, Json, MapSet, Promise as Promises, RegExp, RegExpCompiler};
use rquickjs::function::Func;
use rquickjs::{Context, Function, Object, Persistent, Promise, Runtime};

use super::pool::Work;
use super::{Answer, MEMORY_LIMIT, TIME_LIMIT};

const LIBRARY: &str = include_str!("jsonata.min.js");
const GLUE: &str = include_str!("glue.js");
/// Stack of the interpreter: well below that of the program's threads.
const STACK: usize = 512 * 1024;

/// An interpreter, or none yet.
#[derive(Default)]
pub(super) struct Slot(Option<Engine>);

impl Slot {
    /// Does the work. A failure that is not the expression's own (time, memory) throws the interpreter away.
    pub(super) fn run(&mut self, work: &Work) -> Answer {
        let used = self.0.is_some();
        let answer = self.once(work);
        // What earlier work left behind counts against the limit, too: the verdict is that of a fresh interpreter.
        if used && self.0.is_none() && matches!(&answer, Answer::Failure(why) if why == NO_MEMORY) {
            return self.once(work);
        }
        answer
    }

    fn once(&mut self, work: &Work) -> Answer {
        let engine = match self.0.take().map_or_else(Engine::new, Ok) {
            Ok(engine) => engine,
            Err(e) => return Answer::Failure(format!("the engine does not start: {e}")),
        };
        engine.deadline.set(Some(Instant::now() + TIME_LIMIT));
        let answer = match work {
            Work::Check { expression } => engine.check(expression),
            Work::Evaluate { expression, states, variables, fixed } => {
                let evaluate = || engine.evaluate(expression, states, variables, fixed.millis);
                match fixed.seed {
                    Some(seed) => crate::dice::with_seed(seed, evaluate),
                    None => evaluate(),
                }
            }
        };
        let late = engine.deadline.take().is_none_or(|deadline| Instant::now() > deadline);
        let answer = match answer {
            Ok(text) => match (text.get(..1), text.get(1..)) {
                (Some("="), Some(json)) => Answer::Json(json.to_owned()),
                (Some("!"), Some("out of memory")) => Answer::Failure(NO_MEMORY.to_owned()),
                (Some("!"), Some(why)) => Answer::Failure(why.to_owned()),
                (Some("#"), Some(why)) => Answer::Unsupported(why.to_owned()),
                _ => Answer::Nothing,
            },
            // An exception that the glue could not catch: memory or stack.
            Err(_) => Answer::Failure(NO_MEMORY.to_owned()),
        };
        match answer {
            Answer::Failure(_) | Answer::Nothing if late => Answer::Failure(too_long()),
            Answer::Failure(why) if why == NO_MEMORY => Answer::Failure(why),
            answer => {
                // An interpreter that was interrupted is not to be trusted any further.
                if !late {
                    self.0 = Some(engine);
                }
                answer
            }
        }
    }
}

const NO_MEMORY: &str = "Expression evaluation memory limit exceeded: Check for excessive memory usage";

fn too_long() -> String {
    format!("Expression evaluation timeout: Check for infinite loop (it took longer than {} s)", TIME_LIMIT.as_secs())
}

/// A browser's `btoa`, which the library needs: characters up to 255 are bytes.
fn to_base64(text: String) -> rquickjs::Result<String> {
    let bytes: Result<Vec<u8>, _> = text.chars().map(u8::try_from).collect();
    let bytes = bytes.map_err(|_| {
        rquickjs::Error::new_from_js_message("string", "bytes", "$base64encode takes characters up to U+00FF only")
    })?;
    Ok(STANDARD.encode(bytes))
}

/// A browser's `atob`.
fn from_base64(text: String) -> rquickjs::Result<String> {
    let bytes = STANDARD
        .decode(text.trim())
        .map_err(|e| rquickjs::Error::new_from_js_message("string", "bytes", format!("the text is not Base64: {e}")))?;
    Ok(bytes.into_iter().map(char::from).collect())
}

/// Fields are dropped in this order: what lives in the interpreter goes before it.
struct Engine {
    check: Persistent<Function<'static>>,
    evaluate: Persistent<Function<'static>>,
    context: Context,
    deadline: Rc<Cell<Option<Instant>>>,
    _runtime: Runtime,
}

impl Engine {
    fn new() -> rquickjs::Result<Self> {
        let runtime = Runtime::new()?;
        runtime.set_memory_limit(MEMORY_LIMIT);
        runtime.set_max_stack_size(STACK);
        let deadline = Rc::new(Cell::new(None::<Instant>));
        let watched = Rc::clone(&deadline);
        runtime.set_interrupt_handler(Some(Box::new(move || {
            watched.get().is_some_and(|deadline| Instant::now() > deadline)
        })));
        let context = Context::custom::<(Eval, Date, RegExp, RegExpCompiler, Json, MapSet, Promises)>(&runtime)?;
        let (check, evaluate) = context.with(|ctx| {
            // The library puts itself into `window` where there is no module system.
            let globals = ctx.globals();
            globals.set("window", globals.clone())?;
            globals.set("btoa", Func::from(to_base64))?;
            globals.set("atob", Func::from(from_base64))?;
            ctx.eval::<(), _>(LIBRARY)?;
            let glue: Function<'_> = ctx.eval(GLUE)?;
            let library: Function<'_> = globals.get("jsonata")?;
            let hash = Func::from(|text: String, algorithm: String| {
                crate::intrinsics::digest(&algorithm, text.as_bytes()).unwrap_or_default()
            });
            let uuid = Func::from(crate::dice::uuid);
            let random = Func::from(|seed: Option<f64>| crate::intrinsics::fraction(seed));
            let parse = Func::from(|text: String| match crate::check::strict_json(&text) {
                Ok(value) => format!("={value}"),
                Err(why) => format!("!{why}"),
            });
            let api: Object<'_> = glue.call((library, hash, uuid, random, parse))?;
            let check: Function<'_> = api.get("check")?;
            let evaluate: Function<'_> = api.get("evaluate")?;
            rquickjs::Result::Ok((Persistent::save(&ctx, check), Persistent::save(&ctx, evaluate)))
        })?;
        Ok(Self { check, evaluate, context, deadline, _runtime: runtime })
    }

    fn check(&self, expression: &str) -> rquickjs::Result<String> {
        self.context.with(|ctx| self.check.clone().restore(&ctx)?.call((expression,)))
    }

    fn evaluate(
        &self,
        expression: &str,
        states: &str,
        variables: &str,
        millis: Option<i64>,
    ) -> rquickjs::Result<String> {
        #[allow(clippy::cast_precision_loss)] // Milliseconds of any year people meet are exact.
        let now = rquickjs::function::Opt(millis.map(|m| m as f64));
        self.context.with(|ctx| {
            let promise: Promise<'_> =
                self.evaluate.clone().restore(&ctx)?.call((expression, states, variables, now))?;
            promise.finish()
        })
    }
}
