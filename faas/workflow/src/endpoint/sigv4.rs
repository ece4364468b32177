//! Signatures of requests, version 4 as AWS publishes it: what a request says about who signed it, and whether that is true.
//!
//! The caller looks up the secret of the key that [`Claim::of`] names and asks [`Claim::holds`]. A signature covers method,
//! path, query, chosen headers and the body's digest; here it must cover the host and every header that says what is to be
//! done (`x-amz-…`, but those that intermediaries add), so nothing that counts can be changed on the way. Limits: signatures
//! in the query (presigned URLs) are not read, and bodies are never left unsigned.

use std::fmt::Write as _;

use aws_lc_rs::{constant_time, digest, hmac};
use http::request::Parts;
use http::{HeaderMap, header};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::error::Fault;
use crate::pack::hex;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
/// How far the signer's clock may be from ours, in seconds, as with the service.
const SKEW: i64 = 5 * 60;
/// What stays as it is in paths and queries.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// As clients write times.
const TIME: &str = "%Y%m%dT%H%M%SZ";

/// What a request says about its signer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The access key.
    pub(crate) key: String,
    /// The region that the signer means. Any will do.
    pub(crate) region: String,
    /// Day, region, service, `aws4_request`.
    scope: String,
    /// Names of headers, in order.
    headers: Vec<String>,
    signature: Vec<u8>,
    time: Timestamp,
}

fn incomplete(message: impl Into<String>) -> Fault {
    Fault::new("IncompleteSignatureException", message)
}

fn invalid(message: impl Into<String>) -> Fault {
    Fault::new("InvalidSignatureException", message)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| (b as char).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let pairs = text.as_bytes().chunks(2);
    pairs.map(|p| if let [a, b] = p { Some(digit(*a)? << 4 | digit(*b)?) } else { None }).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// The signer's clock.
fn time(headers: &HeaderMap) -> Option<Timestamp> {
    let text = headers.get("x-amz-date").or_else(|| headers.get(header::DATE))?.to_str().ok()?;
    let read = jiff::civil::DateTime::strptime(TIME, text);
    match read {
        Ok(time) => time.to_zoned(TimeZone::UTC).ok().map(|t| t.timestamp()),
        Err(_) => jiff::fmt::rfc2822::parse(text).ok().map(|t| t.timestamp()),
    }
}

fn shown(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).strftime(TIME).to_string()
}

impl Claim {
    /// Reads who signed a request for `service`, and how.
    ///
    /// # Errors
    /// When nobody did, or it cannot be read, or the time is not now.
    pub(crate) fn of(parts: &Parts, service: &str, now: Timestamp) -> Result<Self, Fault> {
        let headers = &parts.headers;
        let missing = || Fault::new("MissingAuthenticationTokenException", "Missing Authentication Token");
        let given = headers.get(header::AUTHORIZATION).ok_or_else(missing)?;
        let given = given.to_str().map_err(|_| incomplete("Authorization header is not ASCII."))?;
        let rest = given.strip_prefix(ALGORITHM).ok_or_else(missing)?;
        let field = |name: &str| {
            let found = rest.split(',').filter_map(|p| p.trim().split_once('=')).find(|(k, _)| *k == name);
            let fault =
                || incomplete(format!("Authorization header requires '{name}' parameter. Authorization={given}"));
            found.map(|(_, v)| v).ok_or_else(fault)
        };
        let (credential, signed, signature) = (field("Credential")?, field("SignedHeaders")?, field("Signature")?);
        let (key, scope) = credential.split_once('/').ok_or_else(|| incomplete("Credential has no scope."))?;
        let scoped: Vec<&str> = scope.split('/').collect();
        let [day, region, of, "aws4_request"] = scoped[..] else {
            return Err(incomplete(format!(
                "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term, got '{credential}'"
            )));
        };
        let absent = "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.";
        let time = time(headers).ok_or_else(|| incomplete(absent))?;
        if of != service {
            return Err(invalid(format!("Credential should be scoped to correct service: '{service}'.")));
        }
        if !shown(time).starts_with(day) || day.len() != 8 {
            return Err(invalid(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{day}' != '{}'.",
                &shown(time)[..8]
            )));
        }
        let apart = now.as_second() - time.as_second();
        if apart.abs() > SKEW {
            let (word, sign, bound) = if apart > 0 {
                ("expired", '-', now.as_second() - SKEW)
            } else {
                ("not yet current", '+', now.as_second() + SKEW)
            };
            let relation = if apart > 0 { "now earlier" } else { "still later" };
            let bound = shown(Timestamp::from_second(bound).unwrap_or(now));
            let (at, now) = (shown(time), shown(now));
            return Err(invalid(format!("Signature {word}: {at} is {relation} than {bound} ({now} {sign} 5 min.)")));
        }
        let signature = unhex(signature).filter(|s| s.len() == 32);
        let names: Vec<String> = signed.split(';').map(str::to_owned).collect();
        covered(headers, &names)?;
        Ok(Self {
            key: key.to_owned(),
            region: region.to_owned(),
            scope: scope.to_owned(),
            headers: names,
            signature: signature.ok_or_else(|| invalid("The signature is not 64 hexadecimal digits."))?,
            time,
        })
    }

    /// Whether the holder of `secret` signed this request. Takes the same time for any wrong secret.
    pub(crate) fn holds(&self, secret: &str, parts: &Parts, body: &[u8]) -> bool {
        let canonical = canonical(parts, &self.headers, body);
        let text = format!("{ALGORITHM}\n{}\n{}\n{}", shown(self.time), self.scope, sha256(canonical.as_bytes()));
        let first = format!("AWS4{secret}").into_bytes();
        let mac = |key: &[u8], text: &str| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes());
        let key = self.scope.split('/').fold(first, |key, part| mac(&key, part).as_ref().to_vec());
        constant_time::verify_slices_are_equal(mac(&key, &text).as_ref(), &self.signature).is_ok()
    }
}

/// Whether the signature covers what it must.
fn covered(headers: &HeaderMap, signed: &[String]) -> Result<(), Fault> {
    // Headers that proxies and instrumentation add after signing.
    let added = ["x-amzn-trace-id", "x-amz-cf-id"];
    let must = headers.keys().map(header::HeaderName::as_str).filter(|n| n.starts_with("x-amz-") && !added.contains(n));
    let mut must = std::iter::once("host").chain(must);
    match must.find(|name| !signed.iter().any(|s| s == name)) {
        None => Ok(()),
        Some(name) => Err(invalid(format!("'{name}' must be a 'SignedHeader' in the AWS Authorization."))),
    }
}

fn canonical(parts: &Parts, signed: &[String], body: &[u8]) -> String {
    let mut out =
        format!("{}\n{}\n{}\n", parts.method, path(parts.uri.path()), query(parts.uri.query().unwrap_or_default()));
    for name in signed {
        let values: Vec<String> = match name.as_str() {
            // HTTP/2 has the host elsewhere.
            "host" if !parts.headers.contains_key(header::HOST) => {
                parts.uri.authority().map(|a| a.as_str().to_owned()).into_iter().collect()
            }
            name => parts.headers.get_all(name).iter().map(|v| trimmed(v.as_bytes())).collect(),
        };
        let _ = writeln!(out, "{name}:{}", values.join(","));
    }
    let _ = write!(out, "\n{}\n{}", signed.join(";"), sha256(body));
    out
}

/// Without blanks around, runs of blanks as one.
fn trimmed(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    text.split([' ', '\t', '\n']).filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ")
}

/// A path without `.`, `..` and empty segments; its letters as they were sent are encoded once more.
fn path(path: &str) -> String {
    let mut segments: Vec<&str> = vec![];
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            other => segments.push(other),
        }
    }
    let mut out: String = segments.iter().map(|s| format!("/{}", utf8_percent_encode(s, PLAIN))).collect();
    if out.is_empty() || path.ends_with('/') {
        out.push('/');
    }
    out
}

fn query(query: &str) -> String {
    let again = |text: &str| utf8_percent_encode(&percent_decode_str(text).decode_utf8_lossy(), PLAIN).to_string();
    let pairs = query.split('&').filter(|p| !p.is_empty());
    let mut pairs: Vec<(String, String)> =
        pairs.map(|p| p.split_once('=').unwrap_or((p, ""))).map(|(k, v)| (again(k), again(v))).collect();
    pairs.sort();
    pairs.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
#[path = "sigv4_tests.rs"]
mod tests;
