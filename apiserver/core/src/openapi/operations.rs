//! The operations of a group-version, in neither of the two languages.

use crate::resources::{Resource, Subresource, Verbs};
use crate::schema::{Field, Handle, Shape, Struct};

use super::custom;

pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
const RESOURCE_LIST: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.APIResourceList";

/// What a body or an answer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Model(String),
    /// A stream or a text.
    Text,
}

#[derive(Clone, Debug)]
pub(super) struct Operation {
    pub(super) path: String,
    /// HTTP method in lower case.
    pub(super) method: &'static str,
    pub(super) id: String,
    pub(super) tag: String,
    pub(super) description: String,
    /// `x-kubernetes-action`.
    pub(super) action: Option<&'static str>,
    /// `x-kubernetes-group-version-kind`.
    pub(super) kind: Option<(String, String, String)>,
    pub(super) parameters: Vec<Parameter>,
    pub(super) body: Option<String>,
    pub(super) answer: Content,
    /// Statuses with that answer.
    pub(super) statuses: &'static [u16],
    /// Whether the kind can travel as protobuf and take a strategic merge patch.
    pub(super) custom: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) kind: &'static str,
    pub(super) description: String,
}

fn parameter(name: &str, kind: &'static str, description: &str) -> Parameter {
    Parameter { name: name.to_owned(), kind, description: description.to_owned() }
}

/// Parameters of a whole path.
pub(super) fn path_parameters(path: &str) -> Vec<(&'static str, &'static str)> {
    [
        ("name", "Name of the object."),
        ("namespace", "Namespace of the object."),
        ("path", "Path below the proxied object."),
    ]
    .into_iter()
    .filter(|(name, _)| path.contains(&format!("{{{name}}}")))
    .collect()
}

fn dry_run() -> Parameter {
    parameter("dryRun", "string", "All: go through every stage, but store nothing.")
}

fn write(out: &mut Vec<Parameter>) {
    out.push(dry_run());
    out.push(parameter("fieldManager", "string", "Who makes the change, for the ownership of fields."));
    out.push(parameter(
        "fieldValidation",
        "string",
        "Ignore, Warn or Strict: what to do about unknown and duplicate fields.",
    ));
}

fn list() -> Vec<Parameter> {
    vec![
        parameter("allowWatchBookmarks", "boolean", "Whether a watch may send bookmarks."),
        parameter("continue", "string", "Where a list in pages goes on."),
        parameter("fieldSelector", "string", "Restricts the objects by their fields."),
        parameter("labelSelector", "string", "Restricts the objects by their labels."),
        parameter("limit", "integer", "The largest number of objects in one answer."),
        parameter("resourceVersion", "string", "How new the data must be."),
        parameter("resourceVersionMatch", "string", "How resourceVersion is meant: Exact or NotOlderThan."),
        parameter("sendInitialEvents", "boolean", "Whether a watch begins with the present objects."),
        parameter("timeoutSeconds", "integer", "How long a list or watch may last."),
        parameter("watch", "boolean", "Stream changes instead of a list."),
    ]
}

fn delete() -> Vec<Parameter> {
    vec![
        dry_run(),
        parameter("gracePeriodSeconds", "integer", "Seconds until the object is deleted; zero is at once."),
        parameter("ignoreStoreReadErrorWithClusterBreakingPotential", "boolean", "Delete even what cannot be read."),
        parameter("orphanDependents", "boolean", "Deprecated; see propagationPolicy."),
        parameter("propagationPolicy", "string", "What becomes of dependents: Orphan, Background or Foreground."),
    ]
}

/// Every operation of a group-version.
pub(super) fn of_group_version(group: &str, version: &str, resources: &[&Resource]) -> Vec<Operation> {
    let root = format!("/{}", super::path(group, version));
    let names = Names { prefix: prefix(group, version), tag: tag(group, version), root };
    let mut out = vec![Operation {
        path: format!("{}/", names.root),
        method: "get",
        id: format!("get{}APIResources", names.prefix),
        tag: names.tag.clone(),
        description: "get available resources".into(),
        action: None,
        kind: None,
        parameters: Vec::new(),
        body: None,
        answer: Content::Model(RESOURCE_LIST.into()),
        statuses: &[200],
        custom: false,
    }];
    for resource in resources {
        Builder { names: &names, resource, out: &mut out }.resource();
    }
    out
}

struct Names {
    prefix: String,
    tag: String,
    root: String,
}

struct Builder<'a> {
    names: &'a Names,
    resource: &'a Resource,
    out: &'a mut Vec<Operation>,
}

impl Builder<'_> {
    fn resource(&mut self) {
        let r = self.resource;
        let scope = if r.namespaced { "Namespaced" } else { "" };
        let namespace = if r.namespaced { "/namespaces/{namespace}" } else { "" };
        let all = format!("{}/{}", self.names.root, r.plural);
        let collection = format!("{}{namespace}/{}", self.names.root, r.plural);
        let item = format!("{collection}/{{name}}");
        let kind = &r.kind;
        let model = model(&r.group, &r.version, kind, &r.model);
        let object = Content::Model(model.clone());
        let list_model = Content::Model(list_model(r));
        if r.verbs.has(Verbs::LIST) {
            let id = format!("{scope}{kind}");
            self.add(
                &collection,
                "get",
                "list",
                "list",
                &id,
                list(),
                None,
                list_model.clone(),
                &[200],
                "list or watch objects of kind",
            );
            if r.namespaced {
                let id = format!("{kind}ForAllNamespaces");
                self.add(
                    &all,
                    "get",
                    "list",
                    "list",
                    &id,
                    list(),
                    None,
                    list_model,
                    &[200],
                    "list or watch objects of kind",
                );
            }
        }
        let id = format!("{scope}{kind}");
        if r.verbs.has(Verbs::CREATE) {
            let mut parameters = Vec::new();
            write(&mut parameters);
            self.add(
                &collection,
                "post",
                "post",
                "create",
                &id,
                parameters,
                Some(&model),
                object.clone(),
                &[200, 201, 202],
                "create objects of kind",
            );
        }
        if r.verbs.has(Verbs::DELETE_COLLECTION) {
            let parameters =
                list().into_iter().filter(|p| !["allowWatchBookmarks", "watch"].contains(&&*p.name)).chain(delete());
            let id = format!("Collection{scope}{kind}");
            let status = Content::Model(STATUS.into());
            self.add(
                &collection,
                "delete",
                "deletecollection",
                "delete",
                &id,
                parameters.collect(),
                Some(DELETE_OPTIONS),
                status,
                &[200],
                "delete collection of",
            );
        }
        self.single(&item, &id, r.verbs, &model, &object, "the specified");
        if r.verbs.has(Verbs::DELETE) {
            let status = Content::Model(STATUS.into());
            self.add(
                &item,
                "delete",
                "delete",
                "delete",
                &id,
                delete(),
                Some(DELETE_OPTIONS),
                status,
                &[200, 202],
                "delete objects of kind",
            );
        }
        for sub in &r.subresources {
            self.subresource(sub, &item, &id);
        }
    }

    /// Get, update and patch of one object.
    fn single(&mut self, path: &str, id: &str, verbs: Verbs, model: &str, object: &Content, what: &str) {
        if verbs.has(Verbs::GET) {
            self.add(path, "get", "get", "read", id, Vec::new(), None, object.clone(), &[200], &format!("read {what}"));
        }
        let mut parameters = Vec::new();
        write(&mut parameters);
        if verbs.has(Verbs::UPDATE) {
            self.add(
                path,
                "put",
                "put",
                "replace",
                id,
                parameters.clone(),
                Some(model),
                object.clone(),
                &[200, 201],
                &format!("replace {what}"),
            );
        }
        if verbs.has(Verbs::PATCH) {
            parameters.push(parameter("force", "boolean", "Take fields that others own (apply patches only)."));
            self.add(
                path,
                "patch",
                "patch",
                "patch",
                id,
                parameters,
                Some(PATCH),
                object.clone(),
                &[200, 201],
                &format!("partially update {what}"),
            );
        }
    }

    fn subresource(&mut self, sub: &Subresource, item: &str, id: &str) {
        let path = format!("{item}/{}", sub.name);
        let name = capital(&sub.name);
        let (group, version) = match &sub.elsewhere {
            Some((group, version)) => (&**group, &**version),
            None => (&*self.resource.group, &*self.resource.version),
        };
        let gvk = (group.to_owned(), version.to_owned(), sub.kind.to_string());
        let before = self.out.len();
        if sub.kind.ends_with("Options") {
            self.connect(sub, &path, id, &name, "");
            if sub.name == "proxy" {
                self.connect(sub, &format!("{path}/{{path}}"), id, &name, "WithPath");
            }
        } else if sub.name == "log" {
            let options = crate::schema::kind("", "v1", "PodLogOptions");
            let parameters = options.map(query).unwrap_or_default();
            self.add(
                &path,
                "get",
                "get",
                "read",
                &format!("{id}Log"),
                parameters,
                None,
                Content::Text,
                &[200],
                "read log of the specified",
            );
        } else {
            let model = model(group, version, &sub.kind, &sub.model);
            let object = Content::Model(model.clone());
            let id = format!("{id}{name}");
            self.single(&path, &id, sub.verbs, &model, &object, &format!("{} of the specified", sub.name));
            if sub.verbs.has(Verbs::CREATE) {
                let mut parameters = Vec::new();
                write(&mut parameters);
                self.add(
                    &path,
                    "post",
                    "post",
                    "create",
                    &id,
                    parameters,
                    Some(&model),
                    object,
                    &[200, 201, 202],
                    &format!("create {} of a", sub.name),
                );
            }
        }
        for operation in &mut self.out[before..] {
            operation.kind = Some(gvk.clone());
        }
    }

    fn connect(&mut self, sub: &Subresource, path: &str, id: &str, name: &str, suffix: &str) {
        let methods = [
            (Verbs::GET, "get", "Get"),
            (Verbs::CREATE, "post", "Post"),
            (Verbs::UPDATE, "put", "Put"),
            (Verbs::DELETE, "delete", "Delete"),
            (Verbs::PATCH, "patch", "Patch"),
        ];
        for (verb, method, word) in methods {
            if sub.verbs.has(verb) {
                let what = format!("connect {} requests to {} of", word.to_uppercase(), sub.name);
                let id = format!("{word}{id}{name}{suffix}");
                self.add(
                    path,
                    method,
                    "connect",
                    "connect",
                    &id,
                    query(&sub.model),
                    None,
                    Content::Text,
                    &[200],
                    &what,
                );
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn add(
        &mut self,
        path: &str,
        method: &'static str,
        action: &'static str,
        verb: &str,
        id: &str,
        parameters: Vec<Parameter>,
        body: Option<&str>,
        answer: Content,
        statuses: &'static [u16],
        description: &str,
    ) {
        let r = self.resource;
        // deleteCoreV1CollectionNamespacedPod: the version stands between verb and object.
        self.out.push(Operation {
            path: path.to_owned(),
            method,
            id: format!("{verb}{}{id}", self.names.prefix),
            tag: self.names.tag.clone(),
            description: format!("{description} {}", r.kind),
            action: Some(action),
            kind: Some((r.group.to_string(), r.version.to_string(), r.kind.to_string())),
            parameters,
            body: body.map(str::to_owned),
            answer,
            statuses,
            custom: matches!(r.model, Handle::Shared(_)),
        });
    }
}

fn model(group: &str, version: &str, kind: &str, shape: &Handle<Struct>) -> String {
    match shape {
        Handle::Static(shape) => shape.name.to_string(),
        Handle::Shared(_) => custom::model_name(group, version, kind),
    }
}

fn list_model(r: &Resource) -> String {
    match crate::schema::kind(&r.group, &r.version, &r.list_kind) {
        Some(shape) => shape.name.to_string(),
        None => custom::model_name(&r.group, &r.version, &r.list_kind),
    }
}

/// The fields of an options kind as parameters.
fn query(options: &Struct) -> Vec<Parameter> {
    let kind = |field: &Field| match field.shape {
        Shape::Bool => "boolean",
        Shape::Int32 | Shape::Int64 => "integer",
        _ => "string",
    };
    let fields = options.fields.iter().filter(|f| !matches!(&*f.name, "apiVersion" | "kind"));
    fields.map(|f| parameter(&f.name, kind(f), &format!("The option {}.", f.name))).collect()
}

/// `RbacAuthorizationV1`
fn prefix(group: &str, version: &str) -> String {
    let name = if group.is_empty() { "core" } else { group };
    let name = name.strip_suffix(".k8s.io").unwrap_or(name);
    name.split(['.', '-']).chain([version]).map(capital).collect()
}

/// `rbacAuthorization_v1`
fn tag(group: &str, version: &str) -> String {
    let name = prefix(group, "");
    format!("{}{}_{version}", name[..1].to_lowercase(), &name[1..])
}

fn capital(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
