//! Acting as another user.
//!
//! Two rights allow it. The old one, verb `impersonate`, allows everything the other user may do. Constrained impersonation
//! (KEP-5284) asks for two rights instead: to act as that user at all (`impersonate:MODE` on the user), and to do this
//! very thing as somebody else (`impersonate-on:MODE:VERB` on what the request is about). The constrained right is
//! tried first; the members of `system:masters` can only be impersonated by the old one.

use http::HeaderMap;
use skiff_core::status::Status;

use super::User;
use super::identity::{ANONYMOUS, AUTHENTICATED, MASTERS, NODES, UNAUTHENTICATED};
use super::rbac::Attributes;
use crate::server::Inner;

/// Group of the resources that stand for users.
const GROUP: &str = "authentication.k8s.io";

/// Takes the headers off a request once they are decided: pods, nodes and servers behind this one are not to hear them, and
/// some would decide them again.
pub fn forget(headers: &mut HeaderMap) {
    let asked: Vec<_> = headers.keys().filter(|k| k.as_str().starts_with("impersonate-")).cloned().collect();
    for header in asked {
        headers.remove(header);
    }
}

/// Who is to be impersonated, as the headers say.
struct Wanted<'a> {
    name: &'a str,
    uid: &'a str,
    groups: Vec<String>,
    extra: Vec<(String, String)>,
}

impl<'a> Wanted<'a> {
    fn read(headers: &'a HeaderMap) -> Self {
        let get = |k: &str| headers.get(k).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let groups = headers.get_all("impersonate-group").iter().filter_map(|v| v.to_str().ok().map(str::to_owned));
        let extra = headers.iter().filter_map(|(k, v)| {
            let key = k.as_str().strip_prefix("impersonate-extra-")?;
            let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy().into_owned();
            Some((key, v.to_str().ok()?.to_owned()))
        });
        Self {
            name: get("impersonate-user"),
            uid: get("impersonate-uid"),
            groups: groups.collect(),
            extra: extra.collect(),
        }
    }

    fn only_a_name(&self) -> bool {
        self.uid.is_empty() && self.groups.is_empty() && self.extra.is_empty()
    }

    /// Namespace and name of a service account.
    fn account(&self) -> Option<(&'a str, &'a str)> {
        self.name.strip_prefix("system:serviceaccount:").and_then(|r| r.split_once(':'))
    }

    fn node(&self) -> Option<&'a str> {
        self.name.strip_prefix("system:node:")
    }
}

/// The user a request acts as: `user`, or whom its headers name. `action` is what the request wants to do.
///
/// # Errors
/// 403 when the caller may not; 500 when the headers name no user (upstream's answer).
pub fn impersonate(server: &Inner, headers: &HeaderMap, user: User, action: &Attributes) -> Result<User, Status> {
    let wanted = Wanted::read(headers);
    if wanted.name.is_empty() {
        if wanted.only_a_name() {
            return Ok(user);
        }
        return Err(Status::internal("requested impersonation without impersonating a user"));
    }
    let refused = constrained(server, &user, &wanted, action).err();
    let is_constrained = refused.is_none();
    if let Some(why) = refused {
        // Whoever holds the old right for this user hears what is missing of it; anybody else, of the new one.
        legacy(server, &user, &wanted).map_err(|(known, old)| if known { old } else { why.unwrap_or(old) })?;
    }
    Ok(assume(wanted, is_constrained))
}

/// The constrained right. `Err(None)` when it does not apply to such a user.
fn constrained(server: &Inner, user: &User, wanted: &Wanted<'_>, action: &Attributes) -> Result<(), Option<Status>> {
    let may_act = |mode: &str| {
        let on = Attributes { verb: format!("impersonate-on:{mode}:{}", action.verb), ..action.clone() };
        server.authorise(user, &on).map(drop)
    };
    let may_be = |mode: &str, resource: &str, ns: &str, name: &str| {
        server
            .authorise(user, &Attributes::resource(&format!("impersonate:{mode}"), GROUP, resource, ns, name))
            .map(drop)
    };
    if wanted.groups.iter().any(|g| g == MASTERS) {
        return Err(None);
    }
    if let Some((ns, name)) = wanted.account() {
        if !wanted.only_a_name() {
            return Err(None);
        }
        may_act("serviceaccount")?;
        return Ok(may_be("serviceaccount", "serviceaccounts", ns, name)?);
    }
    if let Some(node) = wanted.node() {
        if !wanted.only_a_name() {
            return Err(None);
        }
        // A pod's account may be allowed to act as the node it runs on, whichever that is.
        let own = user.extra.get("authentication.kubernetes.io/node-name");
        let associated = own.is_some_and(|n| n.iter().any(|n| n == node))
            && may_act("associated-node").is_ok()
            && may_be("associated-node", "nodes", "", "*").is_ok();
        if associated {
            return Ok(());
        }
        may_act("arbitrary-node")?;
        return Ok(may_be("arbitrary-node", "nodes", "", node)?);
    }
    const MODE: &str = "user-info";
    may_act(MODE)?;
    may_be(MODE, "users", "", wanted.name)?;
    for g in &wanted.groups {
        may_be(MODE, "groups", "", g)?;
    }
    if !wanted.uid.is_empty() {
        may_be(MODE, "uids", "", wanted.uid)?;
    }
    for (k, v) in &wanted.extra {
        may_be(MODE, &format!("userextras/{k}"), "", v)?;
    }
    Ok(())
}

/// The unconstrained right, for every part of the identity. An error says whether the user itself is allowed.
fn legacy(server: &Inner, user: &User, wanted: &Wanted<'_>) -> Result<(), (bool, Status)> {
    let check = |group: &str, resource: &str, ns: &str, name: &str| {
        server.authorise(user, &Attributes::resource("impersonate", group, resource, ns, name)).map(drop)
    };
    match wanted.account() {
        Some((ns, name)) => check("", "serviceaccounts", ns, name),
        None => check("", "users", "", wanted.name),
    }
    .map_err(|s| (false, s))?;
    let known = |s| (true, s);
    for g in &wanted.groups {
        check("", "groups", "", g).map_err(known)?;
    }
    if !wanted.uid.is_empty() {
        check(GROUP, "uids", "", wanted.uid).map_err(known)?;
    }
    for (k, v) in &wanted.extra {
        check(GROUP, &format!("userextras/{k}"), "", v).map_err(known)?;
    }
    Ok(())
}

/// The identity itself, with the groups that come with it (a node's only by the constrained right).
fn assume(wanted: Wanted<'_>, constrained: bool) -> User {
    let (account, node) = (wanted.account(), wanted.node());
    let mut out =
        User { name: wanted.name.to_owned(), uid: wanted.uid.to_owned(), groups: wanted.groups, ..User::default() };
    if out.groups.is_empty() {
        if let Some((ns, _)) = account {
            out.groups = vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{ns}")];
        } else if constrained && node.is_some() {
            out.groups = vec![NODES.into()];
        }
    }
    let membership = if out.name == ANONYMOUS { UNAUTHENTICATED } else { AUTHENTICATED };
    if !out.in_group(AUTHENTICATED) && !out.in_group(UNAUTHENTICATED) {
        out.groups.push(membership.into());
    }
    for (k, v) in wanted.extra {
        out.extra.entry(k).or_default().push(v);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn nothing_is_left_of_an_impersonation() {
        let mut headers = HeaderMap::new();
        for name in ["impersonate-user", "impersonate-group", "impersonate-uid", "impersonate-extra-scopes", "accept"] {
            headers.append(name, HeaderValue::from_static("x"));
            headers.append(name, HeaderValue::from_static("y"));
        }
        forget(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["accept"]);
    }
}
