//! Bootstrap tokens: what a machine shows that wants to become a node.
//!
//! A token is `ID.SECRET`, kept as the Secret `kube-system/bootstrap-token-ID`. It makes a user of the group
//! `system:bootstrappers` for as long as the Secret exists, allows authentication, and has not expired. The Secret is
//! read on every request, so that deleting it ends the token at once.

use base64::Engine as _;
use serde_json::Value;

use super::User;
use crate::server::Inner;

/// Type of the Secrets.
const TYPE: &str = "bootstrap.kubernetes.io/token";
/// Group of every bootstrapping user, and what names of further groups begin with.
const GROUP: &str = "system:bootstrappers";
const ID: usize = 6;
const SECRET: usize = 16;

/// Whether `token` has the form of a bootstrap token: its id and its secret.
#[must_use]
pub fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let plain = |s: &str| s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    (id.len() == ID && secret.len() == SECRET && plain(id) && plain(secret)).then_some((id, secret))
}

/// The user of a good token; `None` for any other.
#[must_use]
pub fn user(server: &Inner, token: &str) -> Option<User> {
    let (id, secret) = split(token)?;
    let object = server.peek("", "secrets", "kube-system", &format!("bootstrap-token-{id}"))?;
    check(&object, id, secret, jiff::Timestamp::now())
}

fn check(object: &Value, id: &str, secret: &str, now: jiff::Timestamp) -> Option<User> {
    if object["type"] != TYPE || skiff_core::meta::deleting(object) {
        return None;
    }
    let field = |key: &str| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(object["data"][key].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let kept = field("token-secret").unwrap_or_default();
    // In constant time, or the secret could be found letter by letter.
    aws_lc_rs::constant_time::verify_slices_are_equal(kept.as_bytes(), secret.as_bytes()).ok()?;
    if field("token-id").as_deref() != Some(id) || field("usage-bootstrap-authentication").as_deref() != Some("true") {
        return None;
    }
    // What cannot be read has ended: a token must not live for ever because of a slip of the pen.
    if let Some(end) = field("expiration").filter(|e| !e.is_empty())
        && end.parse::<jiff::Timestamp>().ok().is_none_or(|end| end <= now)
    {
        return None;
    }
    let mut groups = vec![GROUP.to_owned()];
    for group in field("auth-extra-groups").unwrap_or_default().split(',').filter(|g| !g.is_empty()) {
        groups.push(extra_group(group)?.to_owned());
    }
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    Some(User::new(format!("system:bootstrap:{id}"), &groups))
}

/// A group a token may add: `system:bootstrappers:` and up to 256 of `a-z0-9:-`, the last a letter or digit.
fn extra_group(group: &str) -> Option<&str> {
    let rest = group.strip_prefix(GROUP)?.strip_prefix(':')?;
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let good = rest.len() <= 256
        && rest.bytes().all(|b| word(b) || b == b':' || b == b'-')
        && rest.bytes().next_back().is_some_and(word);
    good.then_some(group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_whole_unexpired_tokens_pass() {
        let b64 = |s: &str| base64::engine::general_purpose::STANDARD.encode(s);
        let now: jiff::Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        let good = [
            ("token-id", "abcdef"),
            ("token-secret", "0123456789abcdef"),
            ("usage-bootstrap-authentication", "true"),
            ("expiration", "2030-01-01T00:00:01Z"),
            ("auth-extra-groups", "system:bootstrappers:a,system:bootstrappers:b-c"),
        ];
        let secret = |change: Option<(&str, &str)>| {
            let mut data = serde_json::Map::new();
            for (k, v) in good.into_iter().chain(change) {
                data.insert(k.into(), b64(v).into());
            }
            json!({"type": TYPE, "metadata": {}, "data": data})
        };
        let passes = |o: &Value| check(o, "abcdef", "0123456789abcdef", now);
        let user = passes(&secret(None)).unwrap();
        assert_eq!(user.name, "system:bootstrap:abcdef");
        let groups =
            ["system:bootstrappers", "system:bootstrappers:a", "system:bootstrappers:b-c", "system:authenticated"];
        assert_eq!(user.groups, groups);
        for change in [
            ("token-id", "abcdeg"),
            ("token-secret", "0123456789abcdeg"),
            ("usage-bootstrap-authentication", "false"),
            ("expiration", "2030-01-01T00:00:00Z"),
            ("expiration", "tomorrow"),
            ("auth-extra-groups", "system:masters"),
            ("auth-extra-groups", "system:bootstrappers:"),
            ("auth-extra-groups", "system:bootstrappers:a-"),
        ] {
            assert!(passes(&secret(Some(change))).is_none(), "{change:?}");
        }
        for change in [("expiration", ""), ("expiration", "2030-01-01T02:00:00+01:00")] {
            assert!(passes(&secret(Some(change))).is_some(), "{change:?}");
        }
        let mut other = secret(None);
        other["type"] = "Opaque".into();
        assert!(passes(&other).is_none());
        let mut going = secret(None);
        going["metadata"]["deletionTimestamp"] = "2029-12-31T00:00:00Z".into();
        assert!(passes(&going).is_none());
    }

    #[test]
    fn form() {
        for (token, good) in [
            ("abcdef.0123456789abcdef", true),
            ("abcde.0123456789abcdef", false),
            ("abcdef.0123456789abcde", false),
            ("ABCDEF.0123456789abcdef", false),
            ("abcdef0123456789abcdef", false),
            ("abc.ef.0123456789abcde", false),
        ] {
            assert_eq!(split(token).is_some(), good, "{token}");
        }
    }
}
