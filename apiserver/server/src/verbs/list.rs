//! `list`: a consistent view of a collection, paged or whole.
//!
//! A list is a header, stored bytes, a footer: objects are never decoded unless the client wants another form. Revisions:
//! none given means the present; `0` whatever the cache has; `N` at least N, or exactly N with `limit` (a legacy rule) or
//! `resourceVersionMatch=Exact`. A continue token carries the revision of the first page and the next key.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use serde::{Deserialize, Serialize};
use skiff_core::invalid::{Errors, quote_str};
use skiff_core::path::Path;
use skiff_core::selector::{FieldSelector, FieldTerm, LabelSelector, Labels};
use skiff_core::status::Status;
use skiff_storage::cache::{Meta, Object};
use tokio::time::Instant;

use super::Call;
use crate::registry::{Collection, FRESH_DEADLINE, Kind, storage_error};
use crate::request::Verb;
use crate::server::Inner;

/// What a request selects.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// By labels.
    pub labels: LabelSelector,
    /// By fields.
    pub fields: FieldSelector,
    /// By fields of the request's version, where a webhook makes it of the stored one: [`present`] looks at them.
    converted: FieldSelector,
}

impl Selection {
    /// Reads and checks both selectors of a request, and the options beside them.
    ///
    /// # Errors
    /// 400 and 422 in upstream's words.
    pub fn from_call(kind: &Kind, call: &Call) -> Result<Self, Status> {
        let get = |k: &str| call.query.get(k).unwrap_or_default();
        let labels = LabelSelector::parse(get("labelSelector")).map_err(|e| Status::bad_request(e.0))?;
        let fields = FieldSelector::parse(get("fieldSelector")).map_err(|e| Status::bad_request(e.0))?;
        // Between reading the selectors and asking which fields there are, as upstream does.
        validate_options(call, call.target.verb == Verb::Watch)?;
        let mut fields = fields;
        for t in &mut fields.terms {
            if let Some(text) = kind.strategy.unsupported_field(&t.field, &kind.resource) {
                return Err(Status::bad_request(text));
            }
            let stored = kind.strategy.stored_field(&t.field).to_owned();
            t.field = stored;
        }
        let mut converted = FieldSelector::default();
        if kind.converts() {
            let stays = |t: &FieldTerm| matches!(t.field.as_str(), "metadata.name" | "metadata.namespace");
            (fields.terms, converted.terms) = fields.terms.into_iter().partition(stays);
        }
        Ok(Self { labels, fields, converted })
    }

    /// Whether everything is selected.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything() && !self.asks_converted()
    }

    /// Whether only objects in the request's version tell if they are selected.
    #[must_use]
    pub fn asks_converted(&self) -> bool {
        !self.converted.is_everything()
    }

    /// Whether a stored object is selected, as far as can be told without converting it.
    #[must_use]
    pub fn matches(&self, o: &Object) -> bool {
        (self.labels.is_everything() || self.labels.matches(&Labelled(&o.meta))) && Self::fit(&self.fields, o)
    }

    /// Whether an object that was selected is, after [`Kind::present`].
    #[must_use]
    pub fn matches_presented(&self, o: &Object) -> bool {
        Self::fit(&self.converted, o)
    }

    fn fit(fields: &FieldSelector, o: &Object) -> bool {
        let field = |name: &str, value: &str| match name {
            "metadata.name" => o.name() == value,
            "metadata.namespace" => o.namespace() == value,
            _ => {
                let mut values = o.meta.values(name).peekable();
                if values.peek().is_none() { value.is_empty() } else { values.any(|v| v == value) }
            }
        };
        fields.terms.iter().all(|t| field(&t.field, &t.value) != t.negated)
    }
}

/// Brings a listing to the request's version, and drops what only that version's fields tell apart. So a page may be shorter
/// than its limit, and how many remain is not known.
///
/// # Errors
/// As [`Kind::present`].
pub async fn present(
    server: &Inner,
    kind: &Kind,
    mut listing: Listing,
    selection: &Selection,
) -> Result<Listing, Status> {
    listing.objects = kind.present(server, listing.objects).await?;
    if selection.asks_converted() {
        listing.objects.retain(|o| selection.matches_presented(o));
        listing.remaining = None;
    }
    Ok(listing)
}

/// The labels of a stored object, for selectors.
struct Labelled<'a>(&'a Meta);

impl Labels for Labelled<'_> {
    fn label(&self, key: &str) -> Option<&str> {
        self.0.label(key)
    }
}

/// A position in a paged list, as the opaque `continue` token.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    #[serde(default)]
    v: String,
    #[serde(default)]
    rv: i64,
    #[serde(default)]
    start: String,
}

fn encode_token(revision: u64, start: &str) -> String {
    let t = Token { v: "meta.k8s.io/v1".into(), rv: i64::try_from(revision).unwrap_or(i64::MAX), start: start.into() };
    B64.encode(serde_json::to_vec(&t).unwrap_or_default())
}

fn decode_token(text: &str) -> Result<Token, Status> {
    let bad = |why: &str| Status::bad_request(format!("invalid continue token: continue key is not valid: {why}"));
    let odd = |b: u8| !(b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    let bytes = B64.decode(text.trim_end_matches('=')).map_err(|_| {
        let at = text.bytes().position(odd).unwrap_or(text.len() / 4 * 4);
        bad(&format!("illegal base64 data at input byte {at}"))
    })?;
    let t: Token = serde_json::from_slice(&bytes).map_err(|e| bad(&e.to_string()))?;
    if t.v != "meta.k8s.io/v1" {
        return Err(bad(&format!("server does not recognize this encoded version {}", quote_str(&t.v))));
    }
    if t.rv == 0 {
        return Err(bad("incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
    }
    if t.start.is_empty() {
        return Err(bad("encoded start key empty (version meta.k8s.io/v1)"));
    }
    // The key names an object of this collection; a path trick must not lead out of it.
    if t.start.split('/').any(|p| p == ".." || p == ".") {
        return Err(bad(&t.start));
    }
    Ok(t)
}

/// Parses a resourceVersion.
///
/// # Errors
/// The text of upstream's field error.
pub fn parse_revision(v: &str) -> Result<u64, String> {
    let what = |why: &str| {
        format!("resourceVersion: Invalid value: {}: strconv.ParseUint: parsing {}: {why}", quote_str(v), quote_str(v))
    };
    if v.is_empty() || !v.bytes().all(|b| b.is_ascii_digit()) {
        return Err(what("invalid syntax"));
    }
    v.parse().map_err(|_| what("value out of range"))
}

/// Which state of the collection is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Present,
    AnyCached,
    NotOlderThan(u64),
    Exact(u64),
}

/// A page of objects.
#[derive(Debug, Default)]
pub struct Listing {
    /// Selected objects in key order.
    pub objects: Vec<Arc<Object>>,
    /// Revision of the view.
    pub revision: u64,
    /// Token for the next page, empty on the last.
    pub next: String,
    /// Objects after this page, when known.
    pub remaining: Option<usize>,
}

fn forbidden_option(field: &str, why: &str) -> Status {
    let mut e = Errors::new();
    e.forbidden(&Path::new(field), why);
    Status::invalid("meta.k8s.io", "ListOptions", "", &e)
}

/// Checks the options of lists and watches that depend on each other.
///
/// # Errors
/// 422 naming the field.
fn validate_options(call: &Call, watch: bool) -> Result<(), Status> {
    let q = |k: &str| call.query.get(k).unwrap_or_default();
    let (version, matching) = (q("resourceVersion"), q("resourceVersionMatch"));
    let field = "resourceVersionMatch";
    if watch {
        let initial = call.query.get("sendInitialEvents").filter(|v| !v.is_empty());
        return match (initial, matching) {
            (None, "") | (Some(_), "NotOlderThan") => {
                if initial.is_some() && call.query.flag("sendInitialEvents") && !call.query.flag("allowWatchBookmarks")
                {
                    // Upstream accepts this; the client merely never learns that the initial events are over.
                    return Ok(());
                }
                Ok(())
            }
            (Some(_), "") => {
                Err(forbidden_option(field, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"))
            }
            (Some(_), _) => {
                let mut e = Errors::new();
                e.not_supported(&Path::new(field), matching, &["NotOlderThan"]);
                Err(Status::invalid("meta.k8s.io", "ListOptions", "", &e))
            }
            (None, _) => Err(forbidden_option(
                field,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            )),
        };
    }
    let mut errors = Errors::new();
    let path = Path::new(field);
    if !matching.is_empty() {
        if version.is_empty() {
            errors.forbidden(&path, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if !q("continue").is_empty() {
            errors.forbidden(&path, "resourceVersionMatch is forbidden when continue is provided");
        }
        if !matches!(matching, "Exact" | "NotOlderThan") {
            errors.not_supported(&path, matching, &["Exact", "NotOlderThan", ""]);
        }
        if matching == "Exact" && version == "0" {
            errors.forbidden(&path, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
    }
    if call.query.get("sendInitialEvents").is_some_and(|v| !v.is_empty()) {
        errors.forbidden(&Path::new("sendInitialEvents"), "sendInitialEvents is forbidden for list");
    }
    if errors.is_empty() { Ok(()) } else { Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors)) }
}

fn which(call: &Call, limit: usize) -> Result<At, Status> {
    let q = |k: &str| call.query.get(k).unwrap_or_default();
    let version = q("resourceVersion");
    match version {
        "" => Ok(At::Present),
        "0" => Ok(At::AnyCached),
        v => {
            let n = parse_revision(v).map_err(|e| Status::bad_request(format!("invalid resource version: {e}")))?;
            Ok(match q("resourceVersionMatch") {
                "Exact" => At::Exact(n),
                "" if limit > 0 => At::Exact(n),
                _ => At::NotOlderThan(n),
            })
        }
    }
}

/// Carries the list out.
///
/// # Errors
/// 400, 410, 422 or 504 as the options deserve.
pub async fn list(kind: &Kind, call: &Call) -> Result<(Listing, Selection), Status> {
    call.query.number("timeoutSeconds")?;
    let limit = usize::try_from(call.query.number("limit")?.unwrap_or(0)).unwrap_or(0);
    let selection = Selection::from_call(kind, call)?;
    let objects = kind.stored()?;
    let scope = objects.scope(&call.target.namespace);
    let token = call.query.get("continue").unwrap_or_default();
    if !token.is_empty() {
        let t = decode_token(token)?;
        let version = call.query.get("resourceVersion").unwrap_or_default();
        if !matches!(version, "" | "0") {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let start = format!("{scope}{}", t.start);
        let revision = match u64::try_from(t.rv) {
            Ok(r) if r > 0 => r,
            _ => objects.consistent().await?,
        };
        let page = take(objects, &scope, Some(&start), limit, Some(revision), &selection).await;
        return match page {
            Ok(p) => Ok((p, selection)),
            Err(s) if s.code == 410 => Err(expired_continue(s, &t.start)),
            Err(s) => Err(s),
        };
    }
    let at = which(call, limit)?;
    let deadline = Instant::now() + FRESH_DEADLINE;
    let (revision, limit) = match at {
        At::Present => {
            objects.consistent().await?;
            (None, limit)
        }
        // A list of "whatever you have" is always whole.
        At::AnyCached => (None, 0),
        At::NotOlderThan(n) => {
            objects.cache.fresh(n, deadline).await.map_err(storage_error)?;
            (None, limit)
        }
        At::Exact(n) => {
            objects.cache.fresh(n, deadline).await.map_err(storage_error)?;
            (Some(n), limit)
        }
    };
    Ok((take(objects, &scope, None, limit, revision, &selection).await?, selection))
}

/// 410 with a token that goes on from the same key in the present state.
fn expired_continue(mut s: Status, start: &str) -> Status {
    s.message = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.".into();
    let t = Token { v: "meta.k8s.io/v1".into(), rv: -1, start: start.into() };
    s.continue_token = Some(B64.encode(serde_json::to_vec(&t).unwrap_or_default()));
    s
}

/// Objects are looked at this many at a time while a page is filled.
const STEP: usize = 1024;

async fn take(
    objects: &Collection,
    scope: &str,
    start: Option<&str>,
    limit: usize,
    revision: Option<u64>,
    selection: &Selection,
) -> Result<Listing, Status> {
    // Pinned to one name: a look-up instead of a walk.
    if let (Some(name), None, None) = (selection.fields.exact("metadata.name"), start, revision)
        && (!objects.namespaced || scope != objects.prefix)
    {
        let snapshot_revision = objects.cache.revision();
        let found = objects.cache.get(&format!("{scope}{name}")).filter(|o| selection.matches(o));
        return Ok(Listing { objects: found.into_iter().collect(), revision: snapshot_revision, ..Listing::default() });
    }
    if limit == 0 && start.is_none() {
        let indexed = revision.is_none().then(|| {
            let value = selection.fields.exact("spec.nodeName")?;
            objects.cache.list_by_field(scope, "spec.nodeName", value)
        });
        let snapshot = match (indexed.flatten(), revision) {
            (Some(s), _) => s,
            (None, None) if selection.is_everything() => objects.cache.list(scope),
            (None, None) => {
                let found = objects.cache.select(scope, |o| selection.matches(o)).await;
                return Ok(Listing { objects: found.objects, revision: found.revision, ..Listing::default() });
            }
            (None, Some(r)) => objects.cache.list_at(scope, r).map_err(storage_error)?,
        };
        let mut found = snapshot.objects;
        if !selection.is_everything() {
            found.retain(|o| selection.matches(o));
        }
        return Ok(Listing { objects: found, revision: snapshot.revision, ..Listing::default() });
    }
    let mut out = Listing::default();
    let mut from = start.map(str::to_owned);
    let mut at = revision;
    loop {
        let step = if selection.is_everything() && limit > 0 { limit } else { STEP };
        let page = match at {
            Some(r) => objects.cache.page_at(scope, from.as_deref(), step, r).map_err(storage_error)?,
            None => objects.cache.page(scope, from.as_deref(), step),
        };
        out.revision = page.revision;
        at = Some(page.revision);
        let last = page.objects.last().map(|o| Arc::clone(&o.key));
        let (len, remaining) = (page.objects.len(), page.remaining);
        for (i, o) in page.objects.into_iter().enumerate() {
            if limit > 0 && out.objects.len() == limit {
                // One more would match or not; either way the next page starts here.
                out.next = encode_token(out.revision, &o.key[scope.len()..]);
                out.remaining = selection.is_everything().then_some(len - i + remaining);
                return Ok(out);
            }
            if selection.matches(&o) {
                out.objects.push(o);
            }
        }
        let Some(last) = last.filter(|_| remaining > 0) else { return Ok(out) };
        // The next key after `last`.
        let next = format!("{last}\0");
        if limit > 0 && out.objects.len() == limit {
            out.next = encode_token(out.revision, &next[scope.len()..]);
            out.remaining = selection.is_everything().then_some(remaining);
            return Ok(out);
        }
        from = Some(next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_refuse_tricks() {
        let t = decode_token(&encode_token(7, "ns/name")).unwrap();
        assert_eq!((t.rv, t.start.as_str()), (7, "ns/name"));
        for bad in ["abc!", "YWJj", &encode_token(1, "../x"), &encode_token(1, "")] {
            assert_eq!(decode_token(bad).unwrap_err().code, 400, "{bad}");
        }
    }

    #[test]
    fn revisions() {
        assert_eq!(parse_revision("12").unwrap(), 12);
        assert!(parse_revision("-5").unwrap_err().contains("invalid syntax"));
        assert!(parse_revision("99999999999999999999").unwrap_err().contains("out of range"));
    }
}
