//! Requests of the public test suite of signatures (`get-…`, `post-…`), signed by another implementation (botocore).

use http::Request;
use http::request::Parts;
use jiff::Timestamp;
use serde_json::Value;

use super::*;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

fn vectors() -> Vec<Value> {
    serde_json::from_str(include_str!("sigv4_vectors.json")).unwrap()
}

fn request(vector: &Value) -> (Parts, Vec<u8>) {
    let mut r = Request::builder().method(vector["method"].as_str().unwrap()).uri(vector["uri"].as_str().unwrap());
    for (name, value) in vector["headers"].as_object().unwrap() {
        r = r.header(name, value.as_str().unwrap());
    }
    let body = vector["body"].as_str().unwrap().as_bytes().to_vec();
    (r.body(()).unwrap().into_parts().0, body)
}

fn now() -> Timestamp {
    "2015-08-30T12:36:00Z".parse().unwrap()
}

fn read(parts: &Parts, now: Timestamp) -> Result<Claim, String> {
    Claim::of(parts, "service", now).map_err(|f| f.to_string())
}

#[test]
fn signatures_of_the_public_suite_hold() {
    for v in vectors() {
        let (parts, body) = request(&v);
        let claim = read(&parts, now()).unwrap();
        assert_eq!((claim.key.as_str(), claim.region.as_str()), ("AKIDEXAMPLE", "us-east-1"));
        assert!(claim.holds(SECRET, &parts, &body), "{}", v["name"]);
        assert!(!claim.holds("another", &parts, &body), "{}", v["name"]);
    }
}

#[test]
fn what_is_signed_cannot_be_changed() {
    let v = vectors().into_iter().find(|v| v["name"] == "post-json").unwrap();
    let (parts, body) = request(&v);
    let claim = read(&parts, now()).unwrap();
    assert!(!claim.holds(SECRET, &parts, b"{ }"));
    let changes: [fn(&mut Parts); 5] = [
        |p| p.method = http::Method::PUT,
        |p| p.uri = "/x".parse().unwrap(),
        |p| p.uri = "/?a=b".parse().unwrap(),
        |p| drop(p.headers.insert("x-amz-target", "AWSStepFunctions.DeleteStateMachine".parse().unwrap())),
        |p| assert!(p.headers.append("host", "other".parse().unwrap())),
    ];
    for (i, change) in changes.iter().enumerate() {
        let (mut parts, _) = request(&v);
        change(&mut parts);
        assert!(!claim.holds(SECRET, &parts, &body), "change {i}");
    }
    // What means something must be signed.
    let (mut parts, _) = request(&v);
    parts.headers.insert("x-amz-security-token", "t".parse().unwrap());
    assert!(read(&parts, now()).unwrap_err().contains("'x-amz-security-token' must be a 'SignedHeader'"));
}

#[test]
fn faults_of_signatures_are_told() {
    let first = vectors().remove(0);
    let given = first["headers"]["Authorization"].as_str().unwrap().to_owned();
    let with = |authorization: &str| {
        let mut v = first.clone();
        v["headers"]["Authorization"] = authorization.into();
        read(&request(&v).0, now()).err().unwrap_or_default()
    };
    for (authorization, want) in [
        (given.clone(), ""),
        (given.replace("AWS4-HMAC-SHA256", "Bearer"), "MissingAuthenticationTokenException: "),
        (given.replace("SignedHeaders", "Headers"), "IncompleteSignatureException: "),
        (given.replace("/us-east-1", ""), "IncompleteSignatureException: Credential must have exactly 5"),
        (
            given.replace("/service/", "/s3/"),
            "InvalidSignatureException: Credential should be scoped to correct service",
        ),
        (given.replace("20150830", "20150831"), "InvalidSignatureException: Date in Credential scope does not match"),
        (given.replace("Signature=5", "Signature=x"), "InvalidSignatureException: The signature is not"),
        (given.replace("host;", ""), "InvalidSignatureException: 'host' must be a 'SignedHeader'"),
        (given.replace(";x-amz-date", ""), "InvalidSignatureException: 'x-amz-date' must be a 'SignedHeader'"),
    ] {
        let told = with(&authorization);
        assert!(told.starts_with(want) && told.is_empty() == want.is_empty(), "{authorization}: {told}");
    }
    let (parts, _) = request(&first);
    let at = |minutes: i64| read(&parts, now() + jiff::SignedDuration::from_mins(minutes)).err().unwrap_or_default();
    assert_eq!((at(5), at(-5)), (String::new(), String::new()));
    let early = "InvalidSignatureException: Signature expired: 20150830T123600Z is now earlier than 20150830T123700Z \
                 (20150830T124200Z - 5 min.)";
    assert_eq!(at(6), early);
    assert!(at(-6).contains("Signature not yet current: 20150830T123600Z is still later than 20150830T123500Z"));
    let (mut parts, _) = request(&first);
    parts.headers.remove("x-amz-date");
    assert!(read(&parts, now()).unwrap_err().contains("requires existence of either"));
}
