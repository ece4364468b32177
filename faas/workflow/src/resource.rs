//! Resources of tasks: which there are, how they are waited for, what the history calls them.

/// What does a task's work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A function, called with the task's whole input.
    Function {
        /// Its name.
        name: String,
        /// Version or alias of it.
        qualifier: Option<String>,
    },
    /// A function that the parameters name.
    Invoke,
    /// A workflow with the task's whole input (`skiff:workflow:NAME`).
    Workflow {
        /// Its name.
        name: String,
    },
    /// A workflow that the parameters name.
    StartExecution {
        /// Whether the output is the child's own JSON (`.sync:2`), not the text of it.
        parsed: bool,
    },
    /// A request.
    Http,
    /// An object of the API.
    Kubernetes(Verb),
    /// A container that runs to its end.
    Container,
    /// Work that is fetched.
    Activity {
        /// Its name.
        name: String,
    },
}

/// What happens to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// It is made.
    Create,
    /// It is applied.
    Apply,
    /// It is patched.
    Patch,
    /// It is deleted.
    Delete,
    /// It is read.
    Get,
    /// A condition of it is waited for.
    Wait,
}

/// How long a task goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pattern {
    /// Until the answer.
    #[default]
    Request,
    /// Until the job is over (`.sync`).
    Sync,
    /// Until somebody answers its token.
    Callback,
}

/// A resource, understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// What does the work.
    pub target: Target,
    /// How long it goes on.
    pub pattern: Pattern,
}

impl Resource {
    /// Reads a resource.
    ///
    /// # Errors
    /// When nothing here does such work; the text says what is.
    pub fn parse(text: &str) -> Result<Self, String> {
        let unknown = || {
            Err(format!(
                "the resource '{text}' is not supported; there are functions (arn:aws:lambda:…:function:NAME, \
                 arn:aws:states:::lambda:invoke, skiff:function:NAME), workflows (arn:aws:states:::states:startExecution, \
                 skiff:workflow:NAME), activities, HTTP (arn:aws:states:::http:invoke, skiff:http), \
                 skiff:kubernetes:{{create,apply,patch,delete,get,wait}} and skiff:container"
            ))
        };
        let (plain, pattern) = if let Some(plain) = text.strip_suffix(".waitForTaskToken") {
            (plain, Pattern::Callback)
        } else if let Some(plain) = text.strip_suffix(".sync").or_else(|| text.strip_suffix(".sync:2")) {
            (plain, Pattern::Sync)
        } else {
            (text, Pattern::Request)
        };
        let parts: Vec<&str> = plain.split(':').collect();
        let named = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        let target = match parts.as_slice() {
            ["arn", _, "lambda", _, _, "function", name, rest @ ..] if rest.len() <= 1 => {
                let name = named(name);
                let qualifier = rest.first().map(|q| (*q).to_owned());
                name.map(|name| Target::Function { name, qualifier })
            }
            ["skiff", "function", name] => named(name).map(|name| Target::Function { name, qualifier: None }),
            ["arn", _, "states", "", "", "lambda", "invoke"] => Some(Target::Invoke),
            ["arn", _, "states", "", "", "states", "startExecution"] => {
                Some(Target::StartExecution { parsed: text.ends_with(".sync:2") })
            }
            ["skiff", "workflow", name] => named(name).map(|name| Target::Workflow { name }),
            ["arn", _, "states", "", "", "http", "invoke"] | ["skiff", "http"] => Some(Target::Http),
            ["skiff", "container"] => Some(Target::Container),
            ["arn", _, "states", _, _, "activity", name] => named(name).map(|name| Target::Activity { name }),
            ["skiff", "activity", name] => named(name).map(|name| Target::Activity { name }),
            ["skiff", "kubernetes", verb] => match *verb {
                "create" => Some(Target::Kubernetes(Verb::Create)),
                "apply" => Some(Target::Kubernetes(Verb::Apply)),
                "patch" => Some(Target::Kubernetes(Verb::Patch)),
                "delete" => Some(Target::Kubernetes(Verb::Delete)),
                "get" => Some(Target::Kubernetes(Verb::Get)),
                "wait" => Some(Target::Kubernetes(Verb::Wait)),
                _ => None,
            },
            _ => None,
        };
        let Some(target) = target else { return unknown() };
        let fits = match (&target, pattern) {
            (_, Pattern::Request) => true,
            (Target::StartExecution { .. }, _) => true,
            (Target::Invoke | Target::Http | Target::Workflow { .. } | Target::Container, Pattern::Callback) => true,
            (Target::Function { .. }, Pattern::Callback) => text.starts_with("skiff:"),
            (Target::Kubernetes(Verb::Create | Verb::Apply), _) => true,
            _ => false,
        };
        // A workflow by its short name and a container are waited for in any case.
        let pattern = match (&target, pattern) {
            (Target::Workflow { .. } | Target::Container, Pattern::Request) => Pattern::Sync,
            (_, pattern) => pattern,
        };
        if fits { Ok(Self { target, pattern }) } else { unknown() }
    }

    /// Whether the answer comes by a task token, or may.
    #[must_use]
    pub fn has_token(&self) -> bool {
        self.pattern == Pattern::Callback || matches!(self.target, Target::Activity { .. })
    }

    /// Whether the call's own answer is not the end of the task.
    #[must_use]
    pub fn goes_on(&self) -> bool {
        self.pattern != Pattern::Request
    }

    /// `resourceType` and `resource` of events, as the service says them.
    #[must_use]
    pub fn words(&self, text: &str) -> (String, String) {
        let mut parts = text.rsplitn(3, ':');
        if text.ends_with(".sync:2") {
            parts = text.trim_end_matches(":2").rsplitn(3, ':');
            let resource = format!("{}:2", parts.next().unwrap_or_default());
            return (parts.next().unwrap_or_default().to_owned(), resource);
        }
        match &self.target {
            Target::Container => ("container".to_owned(), "run".to_owned()),
            Target::Http => ("http".to_owned(), "invoke".to_owned()),
            _ => {
                let resource = parts.next().unwrap_or_default().to_owned();
                (parts.next().unwrap_or_default().to_owned(), resource)
            }
        }
    }

    /// Which family of events tells of it.
    #[must_use]
    pub fn family(&self) -> Family {
        match &self.target {
            Target::Function { .. } if self.pattern == Pattern::Request => Family::Lambda,
            Target::Activity { .. } => Family::Activity,
            _ => Family::Task,
        }
    }
}

/// Families of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `TaskScheduled`, …
    Task,
    /// `LambdaFunctionScheduled`, …
    Lambda,
    /// `ActivityScheduled`, …
    Activity,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_understood() {
        let function = |name: &str, qualifier: Option<&str>| Target::Function {
            name: name.into(),
            qualifier: qualifier.map(str::to_owned),
        };
        let table = [
            ("arn:aws:lambda:eu-west-1:123456789012:function:add", function("add", None), Pattern::Request),
            ("arn:aws-cn:lambda:x:1:function:add:PROD", function("add", Some("PROD")), Pattern::Request),
            ("skiff:function:add", function("add", None), Pattern::Request),
            ("arn:aws:states:::lambda:invoke", Target::Invoke, Pattern::Request),
            ("arn:aws:states:::lambda:invoke.waitForTaskToken", Target::Invoke, Pattern::Callback),
            ("arn:aws:states:::states:startExecution", Target::StartExecution { parsed: false }, Pattern::Request),
            ("arn:aws:states:::states:startExecution.sync", Target::StartExecution { parsed: false }, Pattern::Sync),
            ("arn:aws:states:::states:startExecution.sync:2", Target::StartExecution { parsed: true }, Pattern::Sync),
            ("skiff:workflow:child", Target::Workflow { name: "child".into() }, Pattern::Sync),
            ("arn:aws:states:::http:invoke", Target::Http, Pattern::Request),
            ("skiff:http", Target::Http, Pattern::Request),
            ("skiff:kubernetes:create.sync", Target::Kubernetes(Verb::Create), Pattern::Sync),
            ("skiff:kubernetes:get", Target::Kubernetes(Verb::Get), Pattern::Request),
            ("skiff:container", Target::Container, Pattern::Sync),
            ("arn:aws:states:r:1:activity:a", Target::Activity { name: "a".into() }, Pattern::Request),
        ];
        for (text, target, pattern) in table {
            assert_eq!(Resource::parse(text), Ok(Resource { target, pattern }), "{text}");
        }
        for text in [
            "",
            "arn:aws:states:::aws-sdk:s3:getObject",
            "arn:aws:states:::sqs:sendMessage",
            "arn:aws:lambda:r:1:function:",
            "skiff:kubernetes:eat",
            "skiff:kubernetes:get.sync",
            "arn:aws:states:::lambda:invoke.sync",
            "skiff:function:",
        ] {
            assert!(Resource::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn events_have_the_services_words() {
        for (text, kind, resource) in [
            ("arn:aws:states:::lambda:invoke.waitForTaskToken", "lambda", "invoke.waitForTaskToken"),
            ("arn:aws:states:::states:startExecution.sync:2", "states", "startExecution.sync:2"),
            ("skiff:kubernetes:create.sync", "kubernetes", "create.sync"),
            ("skiff:http", "http", "invoke"),
        ] {
            let words = Resource::parse(text).unwrap().words(text);
            assert_eq!(words, (kind.to_owned(), resource.to_owned()), "{text}");
        }
    }
}
