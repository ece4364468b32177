//! Which requests a policy, a binding or a webhook is about: operations, resources, scope, names, labels.
//!
//! A rule may name a resource in another group or version than the request's. With `matchPolicy: Equivalent` it is met all
//! the same, and the object is shown as that version has it: [`Criteria::matches`] answers which kind that is. Resources
//! are equivalent when they share their stored objects.

use std::sync::Arc;

use serde_json::Value;
use skiff_core::selector::LabelSelector;
use skiff_core::status::Status;

use super::action::Action;
use crate::registry::Kind;

/// One rule.
#[derive(Debug, Default)]
struct Rule {
    operations: Vec<String>,
    groups: Vec<String>,
    versions: Vec<String>,
    resources: Vec<String>,
    scope: String,
    names: Vec<String>,
}

/// What is matched.
#[derive(Debug, Default)]
pub(super) struct Criteria {
    namespaces: LabelSelector,
    objects: LabelSelector,
    rules: Vec<Rule>,
    exclude: Vec<Rule>,
    equivalent: bool,
    /// Without rules everything is meant (bindings), not nothing (webhooks).
    open: bool,
}

fn texts(v: &Value, key: &str) -> Vec<String> {
    v[key].as_array().into_iter().flatten().filter_map(|s| s.as_str().map(str::to_owned)).collect()
}

fn has(list: &[String], one: &str) -> bool {
    list.iter().any(|x| x == "*" || x == one)
}

/// A selector; an absent one selects everything here.
pub(super) fn selector(v: &Value) -> LabelSelector {
    if v.is_null() { LabelSelector::default() } else { LabelSelector::from_object(Some(v)) }
}

impl Rule {
    fn parse(v: &Value) -> Self {
        Self {
            operations: texts(v, "operations"),
            groups: texts(v, "apiGroups"),
            versions: texts(v, "apiVersions"),
            resources: texts(v, "resources"),
            scope: v["scope"].as_str().unwrap_or("*").to_owned(),
            names: texts(v, "resourceNames"),
        }
    }

    fn matches(&self, a: &Action<'_>, kind: &Kind) -> bool {
        let r = &kind.resource;
        let resource = self.resources.iter().any(|one| {
            let (resource, sub) = one.split_once('/').unwrap_or((one, ""));
            (resource == "*" || resource == r.plural) && (sub == "*" || sub == a.subresource)
        });
        let namespaced = !a.namespace.is_empty() && !a.is_namespace();
        let scope = match self.scope.as_str() {
            "Namespaced" => namespaced,
            "Cluster" => !namespaced,
            _ => true,
        };
        resource
            && scope
            && has(&self.operations, a.operation.as_str())
            && has(&self.groups, &r.group)
            && has(&self.versions, &r.version)
            && (self.names.is_empty() || self.names.contains(&a.name))
    }
}

impl Criteria {
    /// Of a webhook.
    pub(super) fn webhook(v: &Value) -> Self {
        let rules = v["rules"].as_array().into_iter().flatten().map(Rule::parse).collect();
        Self { rules, ..Self::common(v) }
    }

    /// Of a policy (`matchConstraints`) or a binding (`matchResources`).
    pub(super) fn policy(v: &Value) -> Self {
        let rules = |key: &str| v[key].as_array().into_iter().flatten().map(Rule::parse).collect();
        Self { rules: rules("resourceRules"), exclude: rules("excludeResourceRules"), open: true, ..Self::common(v) }
    }

    fn common(v: &Value) -> Self {
        Self {
            namespaces: selector(&v["namespaceSelector"]),
            objects: selector(&v["objectSelector"]),
            equivalent: v["matchPolicy"].as_str() != Some("Exact"),
            ..Self::default()
        }
    }

    /// The kind as which the request is meant; `None` when it is not.
    ///
    /// # Errors
    /// 404 when a selector asks about a namespace that is not there.
    pub(super) fn matches(
        &self,
        a: &Action<'_>,
        object: Option<&Value>,
        old: Option<&Value>,
    ) -> Result<Option<Arc<Kind>>, Status> {
        // The rules first: they cost least and exclude most. What is refused by the selectors is so in any order.
        if self.find(&self.exclude, a).is_some() {
            return Ok(None);
        }
        let kind =
            if self.rules.is_empty() && self.open { Some(Arc::clone(a.kind)) } else { self.find(&self.rules, a) };
        let Some(kind) = kind else { return Ok(None) };
        let fits = self.in_namespace(a, object)? && self.of_labels(object, old);
        Ok(fits.then_some(kind))
    }

    fn find(&self, rules: &[Rule], a: &Action<'_>) -> Option<Arc<Kind>> {
        if rules.iter().any(|r| r.matches(a, a.kind)) {
            return Some(Arc::clone(a.kind));
        }
        if !self.equivalent || rules.is_empty() {
            return None;
        }
        let collection = a.kind.collection.as_ref()?;
        let registry = a.server.registry.load();
        let others = registry.iter().filter(|k| k.collection.as_ref().is_some_and(|c| Arc::ptr_eq(c, collection)));
        let mut others: Vec<&Arc<Kind>> = others.filter(|k| !Arc::ptr_eq(k, a.kind)).collect();
        others.sort_by_key(|k| k.api_version());
        rules.iter().find_map(|r| others.iter().find(|k| r.matches(a, k)).map(|k| Arc::clone(k)))
    }

    fn in_namespace(&self, a: &Action<'_>, object: Option<&Value>) -> Result<bool, Status> {
        if self.namespaces.is_everything() || (a.namespace.is_empty() && !a.is_namespace()) {
            return Ok(true);
        }
        // A namespace that is written is asked for its own labels, as they will be.
        if let Some(own) = object.filter(|_| a.is_namespace()) {
            return Ok(self.namespaces.matches(&own["metadata"]["labels"]));
        }
        let found = a.namespace_object()?;
        Ok(found.is_none_or(|ns| self.namespaces.matches(&ns["metadata"]["labels"])))
    }

    fn of_labels(&self, object: Option<&Value>, old: Option<&Value>) -> bool {
        let one = |v: Option<&Value>| {
            v.is_some_and(|v| v.get("metadata").is_some() && self.objects.matches(&v["metadata"]["labels"]))
        };
        self.objects.is_everything() || one(object) || one(old)
    }
}
