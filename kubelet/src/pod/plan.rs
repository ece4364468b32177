//! What to do next for a pod that is to run. Pure.

use k8s_openapi::api::core::v1::{Container as Spec, Pod};

use super::spec::{self, Role};
use super::status::attempts;
use crate::probes::Failed;
use crate::runtime::{Container, State, label};

/// What is known when planning.
pub struct Observed<'a> {
    /// The pod as it should be.
    pub pod: &'a Pod,
    /// The pod's containers in the runtime, sandboxes left out.
    pub containers: &'a [Container],
    /// Identifier of the running sandbox.
    pub sandbox: Option<&'a str>,
    /// Whether a running container's startup probe succeeded.
    pub started: &'a dyn Fn(&str) -> bool,
    /// Whether a running container's probe demands its end.
    pub failed: &'a dyn Fn(&str) -> Option<Failed>,
}

/// A container to kill, with the text of the event.
#[derive(Clone, Debug)]
pub struct Kill {
    /// Kind and spec, when the pod still has it.
    pub container: (Role, Spec),
    /// The runtime's identifier.
    pub id: String,
    /// Why, for the event.
    pub message: String,
    /// Grace period in place of the pod's.
    pub grace: Option<i64>,
}

/// A container to start.
#[derive(Clone, Debug)]
pub struct Start {
    /// Its kind.
    pub role: Role,
    /// Its spec.
    pub container: Spec,
    /// Its restart count.
    pub attempt: i32,
    /// The attempt before it that ended.
    pub previous: Option<Container>,
    /// Leftovers of a start that was cut short; to be removed.
    pub leftover: Option<String>,
}

/// What to do next.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// A sandbox must be made.
    pub sandbox: bool,
    /// Containers to kill, all at once.
    pub kill: Vec<Kill>,
    /// Containers to start, in order.
    pub start: Vec<Start>,
    /// Nothing will run any more.
    pub done: bool,
}

/// Plans the next moves.
pub fn plan(seen: &Observed<'_>) -> Plan {
    let mut plan = Plan::default();
    let all = spec::containers(seen.pod);
    if finished(seen, &all) {
        plan.done = true;
        return plan;
    }
    let Some(sandbox) = seen.sandbox else {
        // Without the sandbox's namespaces nothing can go on; everything starts again in a new one.
        plan.kill = running(seen, &all)
            .map(|(c, id)| Kill { message: format!("Stopping container {}", c.1.name), container: c, id, grace: None })
            .collect();
        plan.sandbox = true;
        return plan;
    };
    for (container, id) in running(seen, &all) {
        let name = &container.1.name;
        let latest = seen.containers.iter().find(|c| c.id == id);
        let ours = latest.map(|c| c.label(label::HASH).to_string()).unwrap_or_default();
        if container.0 != Role::Ephemeral && !ours.is_empty() && ours != spec::hash(&container.1) {
            let message = format!("Container {name} definition changed, will be restarted");
            plan.kill.push(Kill { container, id, message, grace: None });
        } else if let Some(failed) = (seen.failed)(&id) {
            let word = if failed.kind == crate::probes::Kind::Startup { "startup" } else { "liveness" };
            let message = format!("Container {name} failed {word} probe, will be restarted");
            plan.kill.push(Kill { container, id, message, grace: failed.grace });
        }
    }
    let here = |c: &Container| c.label(label::SANDBOX) == sandbox || c.label(label::SANDBOX).is_empty();
    let begun = all
        .iter()
        .any(|(role, c)| *role == Role::Regular && attempts(seen.containers, &c.name).first().is_some_and(|c| here(c)));
    for (role, container) in all.iter().filter(|(r, _)| *r == Role::Ephemeral) {
        if attempts(seen.containers, &container.name).is_empty() && begun {
            plan.start.push(start(seen, *role, container));
        }
    }
    for (role, container) in all.iter().filter(|(r, _)| matches!(r, Role::Init | Role::Sidecar)) {
        if *role == Role::Init && begun {
            continue;
        }
        let tries = attempts(seen.containers, &container.name);
        let latest = tries.first().filter(|c| here(c));
        match latest {
            Some(c) if c.state == State::Running && *role == Role::Sidecar => {
                if !begun && !(seen.started)(&c.id) {
                    return plan;
                }
            }
            Some(c) if c.state == State::Running => return plan,
            Some(c) if c.state == State::Exited && *role == Role::Init && c.exit_code == 0 => {}
            _ => {
                plan.start.push(start(seen, *role, container));
                if !begun {
                    return plan;
                }
            }
        }
    }
    for (role, container) in all.iter().filter(|(r, _)| *r == Role::Regular) {
        let tries = attempts(seen.containers, &container.name);
        match tries.first() {
            Some(c) if c.state == State::Running => {}
            Some(c) if c.state == State::Exited && !spec::should_restart(seen.pod, *role, container, c.exit_code) => {}
            _ => plan.start.push(start(seen, *role, container)),
        }
    }
    plan
}

/// Whether every container that decides has ended for good.
fn finished(seen: &Observed<'_>, all: &[(Role, Spec)]) -> bool {
    let over = |role: Role, container: &Spec| {
        attempts(seen.containers, &container.name)
            .first()
            .is_some_and(|c| c.state == State::Exited && !spec::should_restart(seen.pod, role, container, c.exit_code))
    };
    let init_failed = all.iter().any(|(role, container)| {
        *role == Role::Init
            && over(*role, container)
            && attempts(seen.containers, &container.name).first().is_some_and(|c| c.exit_code != 0)
    });
    let mut regular = all.iter().filter(|(r, _)| *r == Role::Regular).peekable();
    init_failed || (regular.peek().is_some() && regular.all(|(role, container)| over(*role, container)))
}

fn running<'a>(seen: &'a Observed<'_>, all: &'a [(Role, Spec)]) -> impl Iterator<Item = ((Role, Spec), String)> + 'a {
    all.iter().filter_map(|container| {
        let latest = *attempts(seen.containers, &container.1.name).first()?;
        (latest.state == State::Running).then(|| (container.clone(), latest.id.clone()))
    })
}

fn start(seen: &Observed<'_>, role: Role, container: &Spec) -> Start {
    let tries = attempts(seen.containers, &container.name);
    let (previous, leftover) = match tries.first() {
        Some(c) if c.state == State::Created => (tries.get(1).copied(), Some(c.id.clone())),
        first => (first.copied(), None),
    };
    // When the runtime forgot the container, the API still knows how often it was started.
    let known = seen
        .pod
        .status
        .iter()
        .flat_map(|s| s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten()));
    let remembered =
        known.filter(|s| s.name == container.name && s.container_id.is_some()).map(|s| s.restart_count + 1);
    let attempt = match previous {
        Some(c) => c.attempt() + 1,
        None => remembered.max().unwrap_or(0),
    };
    Start { role, container: container.clone(), attempt, previous: previous.cloned(), leftover }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn runtime(name: &str, attempt: i32, state: State, exit_code: i32) -> Container {
        Container {
            id: format!("{name}{attempt}"),
            labels: [
                (label::CONTAINER_NAME.to_string(), name.to_string()),
                (label::ATTEMPT.into(), attempt.to_string()),
                (label::SANDBOX.into(), "s".into()),
            ]
            .into(),
            image: String::new(),
            image_id: String::new(),
            state,
            pid: None,
            created: None,
            started: None,
            finished: None,
            exit_code,
            oom_killed: false,
            error: String::new(),
        }
    }

    /// A plan as a short text: what is killed, started, made.
    fn check(spec: serde_json::Value, containers: Vec<Container>, sandbox: Option<&str>, wanted: &str) {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec.clone()})).unwrap();
        let seen = Observed {
            pod: &pod,
            containers: &containers,
            sandbox,
            started: &|id| !id.starts_with("slow"),
            failed: &|id| id.starts_with("sick").then_some(Failed { kind: crate::probes::Kind::Liveness, grace: None }),
        };
        let plan = plan(&seen);
        let mut got: Vec<String> = Vec::new();
        got.extend(plan.sandbox.then(|| "sandbox".to_string()));
        got.extend(plan.kill.iter().map(|k| format!("-{}", k.id)));
        got.extend(plan.start.iter().map(|s| format!("+{}{}", s.container.name, s.attempt)));
        got.extend(plan.done.then(|| "done".to_string()));
        let state: Vec<_> = containers.iter().map(|c| (&c.id, c.state)).collect();
        assert_eq!(got.join(" "), wanted, "{spec} {state:?}");
    }

    #[test]
    fn moves() {
        use State::{Created, Exited, Running};
        let two = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let never = json!({"restartPolicy": "Never", "containers": [{"name": "a"}, {"name": "b"}]});
        let init = json!({"initContainers": [{"name": "i"}, {"name": "j"}], "containers": [{"name": "a"}]});
        let init_never =
            json!({"restartPolicy": "Never", "initContainers": [{"name": "i"}], "containers": [{"name": "a"}]});
        let sidecar = |name: &str| json!({"initContainers": [{"name": name, "restartPolicy": "Always"}, {"name": "j"}], "containers": [{"name": "a"}]});
        let s = Some("s");
        check(two.clone(), vec![], None, "sandbox");
        check(two.clone(), vec![], s, "+a0 +b0");
        check(two.clone(), vec![runtime("a", 0, Running, 0)], s, "+b0");
        check(two.clone(), vec![runtime("a", 0, Running, 0), runtime("b", 3, Exited, 1)], s, "+b4");
        check(two.clone(), vec![runtime("a", 0, Created, 0), runtime("b", 0, Running, 0)], s, "+a0");
        check(
            two.clone(),
            vec![runtime("a", 1, Created, 0), runtime("a", 0, Exited, 0), runtime("b", 0, Running, 0)],
            s,
            "+a1",
        );
        check(two.clone(), vec![runtime("a", 0, Running, 0)], None, "sandbox -a0");
        check(never.clone(), vec![runtime("a", 0, Exited, 0), runtime("b", 0, Exited, 1)], s, "done");
        check(never.clone(), vec![runtime("a", 0, Exited, 0), runtime("b", 0, Exited, 1)], None, "done");
        check(never.clone(), vec![runtime("a", 0, Exited, 0)], s, "+b0");
        check(never, vec![runtime("a", 0, Exited, 0), runtime("b", 0, Running, 0)], s, "");
        check(init.clone(), vec![], s, "+i0");
        check(init.clone(), vec![runtime("i", 0, Running, 0)], s, "");
        check(init.clone(), vec![runtime("i", 0, Exited, 0)], s, "+j0");
        check(init.clone(), vec![runtime("i", 0, Exited, 1)], s, "+i1");
        check(init.clone(), vec![runtime("i", 0, Exited, 0), runtime("j", 0, Exited, 0)], s, "+a0");
        // A new sandbox runs the init containers again.
        check(
            init,
            vec![runtime("i", 0, Exited, 0), runtime("j", 0, Exited, 0), runtime("a", 0, Exited, 1)],
            Some("t"),
            "+i1",
        );
        check(init_never, vec![runtime("i", 0, Exited, 1)], s, "done");
        check(sidecar("fast"), vec![runtime("fast", 0, Running, 0)], s, "+j0");
        check(sidecar("slow"), vec![runtime("slow", 0, Running, 0)], s, "");
        check(
            sidecar("fast"),
            vec![runtime("fast", 0, Exited, 0), runtime("j", 0, Exited, 0), runtime("a", 0, Running, 0)],
            s,
            "+fast1",
        );
        check(json!({"containers": [{"name": "sick"}]}), vec![runtime("sick", 0, Running, 0)], s, "-sick0");
    }
}
