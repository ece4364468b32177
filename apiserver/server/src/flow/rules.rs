//! Which FlowSchema a request falls under: the first, in the order of precedence, one of whose rules matches.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;

use http::HeaderValue;
use k8s_openapi::api::flowcontrol::v1::{
    FlowSchema, FlowSchemaSpec, NonResourcePolicyRule, PolicyRulesWithSubjects, ResourcePolicyRule, Subject,
};

use super::Counts;
use crate::auth::User;
use crate::auth::rbac::Attributes;

/// A FlowSchema whose level is there.
pub(super) struct Schema {
    pub(super) name: String,
    /// The level's name.
    pub(super) level: String,
    /// Where the level's seats are; none when its requests take none.
    pub(super) slot: Option<usize>,
    /// As many seats as one request may take.
    pub(super) widest: u32,
    /// UIDs of the schema and the level, as answers carry them.
    pub(super) marks: [HeaderValue; 2],
    pub(super) counts: Arc<Counts>,
    spec: FlowSchemaSpec,
}

impl Schema {
    pub(super) fn new(
        schema: FlowSchema,
        level: (&str, &str),
        slot: Option<usize>,
        widest: u32,
        counts: Arc<Counts>,
    ) -> Option<Self> {
        let mark = |uid: &str| HeaderValue::from_str(uid).ok();
        Some(Self {
            name: schema.metadata.name?,
            level: level.0.to_owned(),
            slot,
            widest,
            marks: [mark(&schema.metadata.uid.unwrap_or_default())?, mark(level.1)?],
            counts,
            spec: schema.spec,
        })
    }

    /// Smaller is asked first.
    pub(super) fn precedence(&self) -> (i32, &str) {
        (self.spec.matching_precedence.unwrap_or(1000), &self.name)
    }

    /// Whether the request falls under it.
    pub(super) fn matches(&self, user: &User, action: &Attributes) -> bool {
        self.spec.rules.iter().flatten().any(|rule| applies(rule, user, action))
    }

    /// Whose request it is among those of this schema, as a number.
    pub(super) fn flow(&self, user: &User, action: &Attributes, by: &RandomState) -> u64 {
        let method = self.spec.distinguisher_method.as_ref().map_or("", |m| m.type_.as_str());
        let who = match method {
            "ByUser" => user.name.as_str(),
            "ByNamespace" => action.namespace.as_str(),
            _ => "",
        };
        by.hash_one((self.name.as_str(), who))
    }
}

fn applies(rule: &PolicyRulesWithSubjects, user: &User, action: &Attributes) -> bool {
    rule.subjects.iter().any(|s| is(s, user))
        && match action.path.as_str() {
            "" => rule.resource_rules.iter().flatten().any(|r| covers(r, action)),
            path => rule.non_resource_rules.iter().flatten().any(|r| reaches(r, &action.verb, path)),
        }
}

fn is(subject: &Subject, user: &User) -> bool {
    match subject.kind.as_str() {
        "User" => subject.user.as_ref().is_some_and(|u| u.name == "*" || u.name == user.name),
        "Group" => subject.group.as_ref().is_some_and(|g| g.name == "*" || user.in_group(&g.name)),
        "ServiceAccount" => subject.service_account.as_ref().is_some_and(|account| {
            let own = user.name.strip_prefix("system:serviceaccount:").and_then(|n| n.split_once(':'));
            own.is_some_and(|(ns, name)| ns == account.namespace && (account.name == "*" || name == account.name))
        }),
        _ => false,
    }
}

/// Whether a list has a word, or is the star alone.
fn has(list: &[String], word: &str) -> bool {
    matches!(list, [one] if one == "*") || list.iter().any(|w| w == word)
}

fn covers(rule: &ResourcePolicyRule, action: &Attributes) -> bool {
    has(&rule.verbs, &action.verb)
        && has(&rule.resources, &action.resource)
        && has(&rule.api_groups, &action.group)
        && match action.namespace.as_str() {
            "" => rule.cluster_scope.unwrap_or_default(),
            namespace => has(rule.namespaces.as_deref().unwrap_or_default(), namespace),
        }
}

fn reaches(rule: &NonResourcePolicyRule, verb: &str, path: &str) -> bool {
    has(&rule.verbs, verb)
        && rule.non_resource_urls.iter().any(|url| {
            // Upstream takes each for the beginning of paths, at a slash, with or without its star.
            let begin = url.trim_end_matches('*').trim_end_matches('/');
            url == "*" || url == path || path.strip_prefix(begin).is_some_and(|rest| rest.starts_with('/'))
        })
}
